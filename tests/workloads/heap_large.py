"""Nothing but large blocks, made and dropped as fast as the interpreter can, above a few that stay: the worst case for what counts each of them.

`heap_large.py --keep MB --seconds S`. `--wait` as in `heap_shares.py`. It tells how many it made a second and what its lines hold, and stays until
the input ends.
"""
import itertools
import time

from _held import MEGABYTE, Held, barrier, blocks, options, stay

SIZE = 600
BATCH = 10_000


def keep(kept, goal):
    size = 0
    while size < goal:
        kept.append(b"k" * (1000 + len(kept) % 3000))  # at: keep
        size += len(kept[-1])


def churn():
    for _ in itertools.repeat(None, BATCH):
        bytes(SIZE)  # at: churn


def main():
    given = options(keep=50, seconds=10.0, wait=False)
    if given["wait"]:
        barrier("ready")
    kept = []
    keep(kept, given["keep"] * MEGABYTE)
    made = 0
    start = time.monotonic()
    while time.monotonic() - start < given["seconds"]:
        churn()
        made += BATCH
    elapsed = time.monotonic() - start
    held = Held(__file__)
    held.objects("keep", "keep", kept)
    # The list that keeps them grows on the same line.
    held.blocks("keep", "keep", blocks(kept)[1:])
    held.print(blocks_a_second=int(made / elapsed), made=made)
    stay()


main()
