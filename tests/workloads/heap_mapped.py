"""Few and very large blocks, each a mapping of its own, that are made and grow beside so many smaller ones that these cannot all be looked at.

`heap_mapped.py --blocks N --seconds S`: so many, one after the other in this time, and then a rest. Of every second one the kernel is
told how it is to page all but the first page, as numpy does with large arrays: that parts the mapping. It tells what its lines hold and
stays until the input ends.
"""
import ctypes
import time

from _held import PAGE, Held, blocks, libc, options, stay

#: More than what glibc maps by itself, and no two are the same.
SIZE = 300_000
STEP = 4096
#: Entries that a list gets with each block: it grows by moving its mapping.
ENTRIES = 20_000
MADV_NOHUGEPAGE = 15


def keep(kept):
    value = b"x" * (SIZE + STEP * len(kept))  # at: kept
    if len(kept) % 2:
        first = id(value) // PAGE * PAGE
        rest = ctypes.c_void_p(first + PAGE), ctypes.c_size_t(SIZE // PAGE * PAGE - PAGE)
        if libc.madvise(*rest, MADV_NOHUGEPAGE):
            raise OSError(ctypes.get_errno(), "madvise")
    kept.append(value)


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
    # Figures are as of a reading.
    time.sleep(2)
    held = Held(__file__)
    held.objects("keep", "kept", kept)
    held.blocks("grow", "growing", blocks(values)[1:])
    held.print()
    stay()


main()
