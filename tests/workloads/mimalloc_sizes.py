"""Blocks of many requested sizes in a build without the GIL, and how far apart neighbours of one size stand.

mimalloc fills a page with blocks of one size, side by side: the least distance of two of them is what each occupies. Each
size is made at a line of its own, of which the file has no text. It ends without the interpreter's own clean-up, so that
all blocks are alive at exit.
"""
import os
import sys

from _expected import Expected

#: Beyond it a block may have a page of its own.
LARGEST = 128 << 10
HEAD = sys.getsizeof(b"")
FIRST_LINE = 1000

classes = [64]
while classes[-1] < LARGEST:
    step = 1 << (classes[-1].bit_length() - 3)
    classes.append(classes[-1] + step)
requests = sorted({size + more for size in classes for more in (0, 1) if size + more <= LARGEST})
# What the interpreter makes once, it makes for the first one, which is not told.
requests.insert(0, 64)

sizes = []
all_kept = []
for line, request in enumerate(requests, start=FIRST_LINE):
    count = 200 if request < 8192 else 30
    source = "\n" * (line - 2) + "def make(kept, size, numbers):\n for i in numbers: kept[i] = bytes(size)"
    made = {}
    exec(compile(source, __file__, "exec"), made)
    kept = [None] * count
    made["make"](kept, request - HEAD, list(range(count)))
    all_kept.append(kept)
    addresses = sorted(map(id, kept))
    step = min(after - before for before, after in zip(addresses, addresses[1:]))
    sizes.append({"line": line, "count": count, "step": step})

Expected(__file__).print(sizes=sizes[1:])
os._exit(0)
