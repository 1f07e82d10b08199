"""Large blocks of which all, a half or nothing was ever touched: libc maps what is asked for as zeros, and the kernel gives a page when it is
written to.

`heap_untouched.py --size MB --count N`: so many blocks of that size of each kind, in turn. `--wait` as in `heap_shares.py`. It tells what
of its lines' blocks is resident and stays until the input ends.
"""
import ctypes

from _held import PAGE, Held, barrier, libc, options, stay

libc.memset.restype, libc.memset.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]


def zeros(kept, size):
    kept.append(bytes(size))  # at: zeros


def half(kept, size):
    kept.append(bytes(size))  # at: half
    # The bytes begin somewhere in the object's first page.
    libc.memset(id(kept[-1]) + PAGE, 1, size // 2)  # at: touch


def filled(kept, size):
    kept.append(b"x" * size)  # at: filled


def main():
    given = options(size=48, count=3, wait=False)
    if given["wait"]:
        barrier("ready")
    size = given["size"] << 20
    kept = []
    for _ in range(given["count"]):
        for build in (zeros, half, filled):
            build(kept, size)
    held = Held(__file__)
    for mark, resident in (("zeros", 0), ("half", size // 2), ("filled", size)):
        for _ in range(given["count"]):
            held.native(mark, mark, resident)
    held.native("half", "touch", 0)
    held.print()
    stay()


main()
