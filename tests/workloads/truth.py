"""A mixed program that keeps some of what it makes, and tracemalloc's word on what is alive at its end, line by line.

With `-X tracemalloc=1` it says so; without, it runs the same and says nothing. Objects from a free list are new to tracemalloc and old to the allocator, so nothing
that stays is made of them: the free lists are emptied first. It ends without the interpreter's own clean-up, so that what was alive when
tracemalloc was asked is still alive at exit.
"""
import gc
import os
import tracemalloc

from _expected import Expected, occupied

ROUNDS = 600


class Point:
    __slots__ = ("x", "y", "name")

    def __init__(self, x, y, name):
        self.x = x
        self.y = y
        self.name = name


class Node:
    def __init__(self, value):
        self.value = value
        self.children = []


def strings(kept):
    for i in range(ROUNDS):
        kept.append("name-%d" % (i + 1000))


def byte_strings(kept):
    for i in range(ROUNDS):
        kept.append(bytes(20 + i))


def byte_arrays(kept):
    for i in range(ROUNDS):
        array = bytearray(10)
        array.extend(b"x" * (i + 1))
        kept.append(array)


def growing_list():
    grown = []
    for i in range(10 * ROUNDS):
        grown.append(None)
    return grown


def shrinking_lists(kept):
    for _ in range(ROUNDS // 10):
        shrunk = [None] * 1000
        del shrunk[100:]
        kept.append(shrunk)


def growing_dict():
    grown = {}
    for i in range(2 * ROUNDS):
        grown[i] = i
    return grown


def objects(kept):
    for i in range(ROUNDS):
        kept.append(Point(i, i, None))


def graph():
    root = Node(0)
    for i in range(ROUNDS):
        child = Node(i)
        root.children.append(child)
        child.children.append(root)
    return root


def temporaries():
    for i in range(ROUNDS):
        sorted([str(i + 5000), "x" * 600, bytes(3000)], key=len)


def every_second_freed():
    sparse = []
    for i in range(ROUNDS):
        sparse.append("y" * (i + 1))
    del sparse[::2]
    return sparse


def garbage():
    for _ in range(ROUNDS):
        loop = []
        loop.append(loop)
    gc.collect()


def work():
    kept = []
    strings(kept)
    byte_strings(kept)
    byte_arrays(kept)
    shrinking_lists(kept)
    objects(kept)
    temporaries()
    garbage()
    return kept, every_second_freed(), growing_list(), growing_dict(), graph()


def empty_free_lists():
    """More objects of the types that have free lists than a free list can hold (200 at most; 2,000 short tuples)."""
    return [[[], {}, float(i), (i,), (i, i), (i, i, i)] for i in range(3000)]


emptied = empty_free_lists()
held = work()

lines = {}
for trace in tracemalloc.take_snapshot().traces if tracemalloc.is_tracing() else []:
    frame = trace.traceback[-1]
    if frame.filename == __file__:
        count, size = lines.get(frame.lineno, (0, 0))
        lines[frame.lineno] = (count + 1, size + occupied(trace.size))
tracemalloc.stop()

# What was made before and after the work is in nobody's truth.
first, last = strings.__code__.co_firstlineno, empty_free_lists.__code__.co_firstlineno
told = [
    {"line": line, "count": count, "bytes": size}
    for line, (count, size) in sorted(lines.items())
    if first <= line < last
]
Expected(__file__).print(lines=told)
os._exit(0)
