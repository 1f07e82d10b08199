"""Makes and drops blocks at a pace until it is told to stop: a line on its standard input.

`python3 load.py BLOCKS_PER_SECOND` (0: as fast as it can). Prints how many blocks a second it made.
"""

import gc
import itertools
import select
import sys
import time

BATCH = 1000


def batch():
    for _ in itertools.repeat(None, BATCH):
        bytes(100)


def main():
    pace = int(sys.argv[1])
    gc.disable()
    print("ready", flush=True)
    sys.stdin.readline()
    start = time.monotonic()
    made = 0
    while not select.select([sys.stdin], [], [], 0)[0]:
        batch()
        made += BATCH
        ahead = made / pace - (time.monotonic() - start) if pace else 0
        if ahead > 0:
            time.sleep(ahead)
    print(made / (time.monotonic() - start), flush=True)


main()
