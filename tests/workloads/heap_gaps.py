"""Large blocks of two lines that stay, three of the one for each of the other, among twenty times as many that come and go: more than
what can be traced all the time at a low cost.

`heap_gaps.py --rate MB --seconds S`: so many megabytes a second stay. `--wait` as in `heap_shares.py`. It tells what its lines hold and stays
until the input ends.
"""
import time

from _held import MEGABYTE, Held, barrier, blocks, options, stay

SIZE = 3000
CHURNED = 20
TICK = 0.002


def churn():
    return [b"=" * (SIZE - 40 * i) for i in range(CHURNED)]  # at: churn


def three(kept, number):
    kept.append(b"3" * (SIZE + number % 100))  # at: three


def one(kept, number):
    kept.append(b"1" * (SIZE + number % 100))  # at: one


def main():
    given = options(rate=2.0, seconds=60.0, wait=False)
    if given["wait"]:
        barrier("ready")
    threes, ones = [], []
    start = time.monotonic()
    while (elapsed := time.monotonic() - start) < given["seconds"]:
        while (len(threes) + len(ones)) * SIZE < elapsed * given["rate"] * MEGABYTE:
            churn()
            if len(threes) < 3 * len(ones):
                three(threes, len(threes))
            else:
                one(ones, len(ones))
        time.sleep(TICK)
    held = Held(__file__)
    for mark, kept in [("three", threes), ("one", ones)]:
        held.objects(mark, mark, kept)
        # The list that keeps them grows on the same line.
        held.blocks(mark, mark, blocks(kept)[1:])
    held.blocks("churn", "churn", [])
    held.print()
    stay()


main()
