"""Comprehensions: frames of their own up to 3.11, part of the function from 3.12 on. Generator expressions keep theirs."""
from _expected import COMPREHENSIONS_HAVE_FRAMES, Expected

COUNT = 400


def make(size):
    return "x" * size  # at: make


def as_list():
    return [make(100) for _ in range(COUNT)]  # at: list


def as_dict():
    return {i: make(200) for i in range(COUNT)}  # at: dict


def as_generator():
    return list(make(300) for _ in range(COUNT))  # at: generator


listed, mapped, generated = as_list(), as_dict(), as_generator()

expected = Expected(__file__)
for function, own, mark, sample in [
    ("as_list", "<listcomp>", "list", listed[0]),
    ("as_dict", "<dictcomp>", "dict", mapped[0]),
    ("as_generator", "<genexpr>", "generator", generated[0]),
]:
    frames = [(function, mark)]
    if COMPREHENSIONS_HAVE_FRAMES or own == "<genexpr>":
        frames.append((function + ".<locals>." + own, mark))
    expected.stack(frames + [("make", "make")], COUNT, sample)
expected.print()
