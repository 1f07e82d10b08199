"""Memory that an extension takes from libc and tells of, as numpy does (`PyTraceMalloc_Track`): some of it is given back, and some is only not
told of any more.

`heap_domains.py --size MB`. Nothing but ctypes is needed; tracemalloc is off, so the interpreter takes no note of it. It tells what its lines
hold and stays until the input ends.
"""
import ctypes

from _held import MEGABYTE, Held, libc, options, stay

#: Any number but that of the interpreter's own memory.
DOMAIN = 389047

track, untrack = ctypes.pythonapi.PyTraceMalloc_Track, ctypes.pythonapi.PyTraceMalloc_Untrack
# Pointers come back as numbers, so that one call's result is the next one's argument.
for function, result, arguments in (
    (libc.malloc, ctypes.c_void_p, [ctypes.c_size_t]),
    (libc.free, None, [ctypes.c_void_p]),
    (libc.memset, ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]),
    (track, ctypes.c_int, [ctypes.c_uint, ctypes.c_size_t, ctypes.c_size_t]),
    (untrack, ctypes.c_int, [ctypes.c_uint, ctypes.c_size_t]),
):
    function.restype, function.argtypes = result, arguments


def small(goal):
    taken = []
    for i in range(goal // 2000):
        size = 1000 + i % 2000
        address = libc.malloc(size)
        track(DOMAIN, address, size)  # at: small
        taken.append((libc.memset(address, 1, size), size))  # at: write
    return taken


def big(goal, size=4 << 20):
    taken = []
    for _ in range(goal // size):
        address = libc.malloc(size)
        track(DOMAIN, address, size)  # at: big
        taken.append((libc.memset(address, 1, size), size))  # at: write, too
    return taken


def give_back(taken):
    for address, _ in taken:
        untrack(DOMAIN, address)
        libc.free(address)


def main():
    given = options(size=100)
    goal = given["size"] * MEGABYTE
    kept = {"small": small(goal * 50 // 100), "big": big(goal * 80 // 100)}
    give_back(kept["small"][::4])
    del kept["small"][::4]
    give_back(kept["big"][::4])
    del kept["big"][::4]
    # It is still there, and nobody says whose it is.
    for address, _ in kept["big"][-2:]:
        untrack(DOMAIN, address)
    del kept["big"][-2:]
    held = Held(__file__)
    for mark, blocks in kept.items():
        for _, size in blocks:
            held.native(mark, mark, size)
    # Whoever writes first to what another line has told of does not hold it.
    for function, mark in (("small", "write"), ("big", "write, too")):
        held.native(function, mark, 0)
    held.print()
    stay()


main()
