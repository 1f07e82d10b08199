"""Many blocks at few stacks: a loop, and a loop below more calls than are sent in one piece of a stack."""
import sys

from _expected import Expected

COUNT = 2000
DEPTH = 100
SIZE = 700
kept = [None] * (2 * COUNT)


def shallow():
    for i in range(COUNT):
        kept[i] = "x" * SIZE  # at: shallow


def deep(depth):
    if depth == 0:
        for i in range(COUNT, 2 * COUNT):
            kept[i] = "x" * SIZE  # at: deep
    else:
        deep(depth - 1)  # at: again


sys.setrecursionlimit(10 * DEPTH)
shallow()  # at: first
deep(DEPTH)  # at: second

expected = Expected(__file__)
expected.stack([("<module>", "first"), ("shallow", "shallow")], COUNT, kept[0])
expected.stack([("<module>", "second")] + [("deep", "again")] * DEPTH + [("deep", "deep")], COUNT, kept[-1])
expected.print(depth=DEPTH)
