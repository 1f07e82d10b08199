"""Many blocks that are let go at once, at one line, and now and then one at another: more than small files hold.

The rare blocks are made at a stack that is used at the start and at the end of it.
"""
from _expected import Expected

COUNT = 220000
RARE = 10
SIZE = 700
kept = [None] * RARE


def churn():
    for i in range(COUNT):
        block = "x" * SIZE  # at: churn
    return block


def rare():
    for i in range(RARE):
        kept[i] = "y" * SIZE  # at: rare


def both():
    rare()  # at: call


for turn in range(2):
    both()  # at: again
    block = churn()  # at: first
both()  # at: last

expected = Expected(__file__)
expected.stack([("<module>", "first"), ("churn", "churn")], 2 * COUNT, block)
expected.stack([("<module>", "again"), ("both", "call"), ("rare", "rare")], 2 * RARE, kept[0])
expected.stack([("<module>", "last"), ("both", "call"), ("rare", "rare")], RARE, kept[0])
expected.print()
