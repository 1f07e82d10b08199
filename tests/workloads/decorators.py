"""Decorators: the wrapper has a frame of its own between caller and function."""
import functools

from _expected import Expected

COUNT = 400


def logged(function):
    @functools.wraps(function)
    def wrapper(*args):
        return function(*args)  # at: wrapper

    return wrapper


@logged
def make(size):
    return "x" * size  # at: make


def main():
    kept = [None] * COUNT
    for i in range(COUNT):
        kept[i] = make(100)  # at: main
    return kept


kept = main()

expected = Expected(__file__)
frames = [("main", "main"), ("logged.<locals>.wrapper", "wrapper"), ("make", "make")]
expected.stack(frames, COUNT, kept[0])
expected.print()
