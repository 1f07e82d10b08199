"""Few and very large blocks, each a mapping of its own, that are made and grow beside so many smaller ones that these cannot all be looked at.

`heap_mapped.py --blocks N --seconds S`: so many, one after the other in this time. It tells what its lines hold and stays until the input
ends.
"""
import time

from _held import Held, blocks, options, stay

#: More than what glibc maps by itself, and no two are the same.
SIZE = 300_000
STEP = 4096
#: Entries that a list gets with each block: it grows by moving its mapping.
ENTRIES = 20_000


def keep(kept):
    kept.append(b"x" * (SIZE + STEP * len(kept)))  # at: kept


def grow(values):
    for _ in range(ENTRIES):
        values.append(None)  # at: growing


def churn():
    for i in range(20_000):
        b"-" * (1000 + i % 100)  # at: dropped


def main():
    given = options(blocks=40, seconds=8.0)
    kept, values = [], []
    end = time.monotonic() + given["seconds"]
    pause = given["seconds"] / given["blocks"]
    while len(kept) < given["blocks"]:
        churn()
        left = (given["blocks"] - len(kept)) * pause
        if end - time.monotonic() < left:
            keep(kept)
            grow(values)
        time.sleep(pause / 10)
    held = Held(__file__)
    held.objects("keep", "kept", kept)
    held.blocks("grow", "growing", blocks(values)[1:])
    held.print()
    stay()


main()
