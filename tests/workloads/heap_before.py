"""A program that holds memory when it is attached to, and builds more of it by another line afterwards.

`heap_before.py --before MB --after MB`: builds the first part, says `ready` and waits for a line, builds the second one, tells what its lines hold
and stays until the input ends.
"""
from _held import MEGABYTE, Held, barrier, blocks, options, stay

PADDING = "-" * 100


class Slotted:
    __slots__ = ("number", "text")


def before(number):
    value = Slotted()  # at: before_objects
    value.text = f"before {number} {PADDING[:number % 100]}"  # at: before_texts
    return value


def after(number):
    value = Slotted()  # at: after_objects
    value.text = f"after {number} {PADDING[:number % 100]}"  # at: after_texts
    return value


def build(make, goal):
    kept = []
    size = 0
    while size < goal:
        value = make(len(kept))
        kept.append(value)  # at: lists
        size += 48 + sum(blocks(value.text))
    return kept


def main():
    given = options(before=100, after=50)
    first = build(before, given["before"] * MEGABYTE)
    barrier("ready")
    second = build(after, given["after"] * MEGABYTE)
    held = Held(__file__)
    for name, kept in (("before", first), ("after", second)):
        held.objects(name, name + "_objects", kept)
        held.objects(name, name + "_texts", (value.text for value in kept))
    held.blocks("build", "lists", [blocks(first)[1], blocks(second)[1]])
    held.print()
    stay()


main()
