"""A process that runs another Python as a child and waits for it."""
import subprocess
import sys

from _expected import Expected

COUNT = 400


def in_parent(size):
    return "x" * size  # at: parent


def in_child(size):
    return "x" * size  # at: child


def fill(make, size):
    kept = [None] * COUNT
    for i in range(COUNT):
        kept[i] = make(size)  # at: fill
    return kept


def tell(function, mark, kept):
    expected = Expected(__file__)
    expected.stack([("fill", "fill"), (function, mark)], COUNT, kept[0])
    expected.print()


if sys.argv[1:] == ["child"]:
    tell("in_child", "child", fill(in_child, 200))
else:
    kept = fill(in_parent, 100)
    subprocess.run([sys.executable, __file__, "child"], check=True)
    tell("in_parent", "parent", kept)
