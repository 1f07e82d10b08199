"""Memory that C code takes, and of which it then gives a part back to the kernel or has it moved; and memory that no page fault brings.

`heap_given_back.py --size MB --pause SECONDS`: so much is taken by each of the lines, this long one after the other, then a half of most is
given back, and at last the kernel fills more. It tells what is left of its lines and stays until the input ends.
"""
import ctypes
import time

from _held import MEGABYTE, PAGE, Held, libc, options, stay

READ_WRITE, PRIVATE_ANONYMOUS, POPULATE = 3, 0x22, 0x8000
MADV_DONTNEED, MREMAP_MAYMOVE = 4, 1
PR_SET_THP_DISABLE = 41
#: Bytes of a mapping.
SIZE = 1 << 20
FAILED = ctypes.c_void_p(-1).value

POINTER, LENGTH, INT = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
# Pointers come back as numbers, so that one call's result is the next one's argument.
for function, result, arguments in (
    (libc.memset, POINTER, [POINTER, INT, LENGTH]),
    (libc.mmap, POINTER, [POINTER, LENGTH, INT, INT, INT, ctypes.c_long]),
    (libc.munmap, INT, [POINTER, LENGTH]),
    (libc.madvise, INT, [POINTER, LENGTH, INT]),
    (libc.mremap, POINTER, [POINTER, LENGTH, LENGTH, INT]),
    (libc.malloc, POINTER, [LENGTH]),
    (libc.free, None, [POINTER]),
    (libc.malloc_trim, INT, [LENGTH]),
    (libc.prctl, INT, [INT] + [ctypes.c_ulong] * 4),
):
    function.restype, function.argtypes = result, arguments


def checked(result):
    """What a call returned, if it did not fail."""
    if result in (-1, FAILED):
        raise OSError(ctypes.get_errno(), "a call of the kernel")
    return result


def mapping(flags=0):
    return checked(libc.mmap(None, SIZE, READ_WRITE, PRIVATE_ANONYMOUS | flags, -1, 0))  # at: mapped


def unmapped():
    return libc.memset(mapping(), 1, SIZE)  # at: unmapped


def dropped():
    return libc.memset(mapping(), 1, SIZE)  # at: dropped


def filled():
    return libc.memset(mapping(), 1, SIZE)  # at: filled


def trimmed():
    size = 1000
    return libc.memset(libc.malloc(size), 1, size)  # at: trimmed


def again(address):
    libc.memset(address, 1, SIZE // 4)  # at: again


def moved(address):
    return checked(libc.mremap(address, SIZE, 4 * SIZE, MREMAP_MAYMOVE))  # at: moved


def main():
    given = options(size=40, pause=1.2)
    # Of huge pages it is not known whose they are.
    checked(libc.prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0))
    count = given["size"] * MEGABYTE // SIZE
    kept = [unmapped() for _ in range(count)]
    time.sleep(given["pause"])
    others = [dropped() for _ in range(count)]
    time.sleep(given["pause"])
    to_move = [filled() for _ in range(count)]
    time.sleep(given["pause"])
    small = [trimmed() for _ in range(count * SIZE // 1024)]
    time.sleep(given["pause"])
    for address in kept:
        checked(libc.munmap(address + SIZE // 2, SIZE // 2))
    for address in others:
        checked(libc.madvise(address + SIZE // 2, SIZE // 2, MADV_DONTNEED))
        again(address + SIZE // 2)
    # The lowest ones first: where the next one ends, none can grow.
    for address in sorted(to_move):
        if moved(address) == address:
            raise RuntimeError("it was not moved")
    # From the end on, so that the heap's end can go back to the kernel.
    for address in reversed(small[len(small) // 2 :]):
        libc.free(address)
    libc.malloc_trim(0)
    time.sleep(given["pause"])
    # Some of them take the place of what was moved or unmapped.
    for _ in range(count):
        mapping(POPULATE)
    time.sleep(given["pause"])
    held = Held(__file__)
    for _ in range(count):
        held.native("unmapped", "unmapped", SIZE // 2)
        held.native("dropped", "dropped", SIZE // 2)
        held.native("filled", "filled", 0)
        held.native("again", "again", SIZE // 4)
        held.native("moved", "moved", SIZE)
        held.native("mapping", "mapped", SIZE)
    for address in small[: len(small) // 2]:
        held.native("trimmed", "trimmed", libc.malloc_usable_size(address))
    held.print()
    stay()


main()
