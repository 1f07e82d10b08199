"""A process that becomes another program: the same pid, another Python program.

The program is the interpreter itself unless an argument names another one.
"""
import os
import sys

from _expected import Expected

COUNT = 400


def before(size):
    return "x" * size  # at: before


def after(size):
    return "x" * size  # at: after


def fill(make, size):
    kept = [None] * COUNT
    for i in range(COUNT):
        kept[i] = make(size)  # at: fill
    return kept


def tell(function, mark, kept):
    expected = Expected(__file__)
    expected.stack([("fill", "fill"), (function, mark)], COUNT, kept[0])
    expected.print()


if sys.argv[1:] == ["after"]:
    tell("after", "after", fill(after, 200))
else:
    program = sys.argv[1] if len(sys.argv) > 1 else sys.executable
    tell("before", "before", fill(before, 100))
    os.execv(program, [program, __file__, "after"])
