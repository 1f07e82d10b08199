"""Memory that C code takes without CPython's allocators: blocks of libc's malloc and whole mappings, touched on the line that takes them.

`heap_native.py --size MB`. Half of the small blocks are freed again. `--wait` as in `heap_shares.py`. It tells what its lines hold and stays until the
input ends.
"""
import ctypes

from _held import MEGABYTE, PAGE, Held, barrier, libc, options, stay

READ_WRITE, PRIVATE_ANONYMOUS = 3, 0x22

# Pointers come back as numbers, so that one call's result is the next one's argument.
for function, result, arguments in (
    (libc.malloc, ctypes.c_void_p, [ctypes.c_size_t]),
    (libc.free, None, [ctypes.c_void_p]),
    (libc.memset, ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]),
    (
        libc.mmap,
        ctypes.c_void_p,
        [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long],
    ),
):
    function.restype, function.argtypes = result, arguments


def small(goal):
    addresses = []
    for i in range(goal // 2000):
        size = 1000 + i % 2000
        addresses.append(libc.memset(libc.malloc(size), 1, size))  # at: small
    return addresses


def big(goal):
    size = 4 << 20
    return [libc.memset(libc.malloc(size), 1, size) for _ in range(goal // size)]  # at: big


def mappings(goal):
    size = 1 << 20
    maps = []
    for _ in range(goal // size):
        taken = libc.mmap(None, size, READ_WRITE, PRIVATE_ANONYMOUS, -1, 0)  # at: mapped
        maps.append(libc.memset(taken, 1, size))  # at: touched
    return maps, size


def main():
    given = options(size=100, wait=False)
    if given["wait"]:
        barrier("ready")
    goal = given["size"] * MEGABYTE
    kept = small(goal * 40 // 100)
    # From the end on, so that libc could give the pages back: what is freed is in nobody's account, resident or not.
    for address in kept[len(kept) // 2 :]:
        libc.free(address)
    del kept[len(kept) // 2 :]
    large = big(goal * 40 // 100)
    maps, size = mappings(goal * 40 // 100)
    held = Held(__file__)
    for address in kept:
        held.native("small", "small", libc.malloc_usable_size(address))
    for address in large:
        held.native("big", "big", libc.malloc_usable_size(address))
    for _ in maps:
        held.native("mappings", "touched", -(-size // PAGE) * PAGE)
    held.print()
    stay()


main()
