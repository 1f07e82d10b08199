"""A function that calls a function that allocates: small blocks (pymalloc) and large ones (malloc)."""
from _expected import Expected

COUNT = 400
kept = [None] * (2 * COUNT)


def inner(size):
    return "x" * size  # at: inner


def outer(size):
    return inner(size)  # at: outer


def main():
    for i in range(COUNT):
        kept[i] = outer(100)  # at: small
    for i in range(COUNT, 2 * COUNT):
        kept[i] = outer(1000)  # at: large


main()  # at: module

expected = Expected(__file__)
for mark, sample in [("small", kept[0]), ("large", kept[-1])]:
    frames = [("<module>", "module"), ("main", mark), ("outer", "outer"), ("inner", "inner")]
    expected.stack(frames, COUNT, sample)
expected.print()
