"""Allocates blocks below ten frames, or as many as it is told, and frees them; prints nanoseconds of CPU time a block for either.

Nothing else is allocated meanwhile: `map` and `repeat` run in C, and the list grows a few times only.
"""

import gc
import itertools
import sys
import time

BLOCKS = 200_000
SOURCE = b"x" * 100


def timed():
    start = time.process_time_ns()
    kept = list(map(bytes.upper, itertools.repeat(SOURCE, BLOCKS)))
    middle = time.process_time_ns()
    kept.clear()
    end = time.process_time_ns()
    return (middle - start) / BLOCKS, (end - middle) / BLOCKS


def below(frames):
    return timed() if frames == 0 else below(frames - 1)


gc.disable()
# The module, `below` and `timed` for the rest.
print(*below(int(sys.argv[1] if sys.argv[1:] else 10) - 3))
