"""Recursion a thousand calls deep: more frames than a stack keeps."""
import sys

from _expected import Expected

COUNT = 20
DEPTH = 1000
sys.setrecursionlimit(3 * DEPTH)


def leaf(size):
    return "x" * size  # at: leaf


def descend(depth):
    if depth == 0:
        return leaf(100)  # at: bottom
    return descend(depth - 1)  # at: again


kept = [None] * COUNT
for i in range(COUNT):
    kept[i] = descend(DEPTH)

expected = Expected(__file__)
frames = [("descend", "again")] * 200 + [("descend", "bottom"), ("leaf", "leaf")]
expected.stack(frames, COUNT, kept[0])
expected.print(depth=DEPTH)
