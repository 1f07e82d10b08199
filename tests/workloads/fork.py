"""A process that forks: the child allocates elsewhere than its parent."""
import os

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


before = fill(in_parent, 100)
child = os.fork()
if child == 0:
    tell("in_child", "child", fill(in_child, 200))
    os._exit(0)
os.waitpid(child, 0)
tell("in_parent", "parent", before)
