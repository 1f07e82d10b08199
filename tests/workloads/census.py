"""A known number of blocks of known sizes, made by known lines: what a tracer that sees every allocation must count.

Each case is marked `# census: NAME` on the lines that make its blocks. It makes COUNT objects and frees every second. Loops run
over a list of numbers that exist already and write into a list that is long enough, so that nothing else is allocated on
the marked lines. What a free list keeps (80 lists) is little against COUNT; where it keeps more (100 floats, 2,000
short tuples), nothing is freed. Free lists are emptied first. It ends without the interpreter's own clean-up, so that what is
kept is alive at exit.
"""
import gc
import os
import sys

from _expected import Expected, occupied

COUNT = 40_000
NUMBERS = list(range(COUNT))
KEPT_OF_COUNT = COUNT - len(NUMBERS[::2])
NONE = (None,)
NONES = [None]
TEXT = "abcdefgh"
BIG = 10**30
HALF = 0.5

cases = []
all_kept = []


class Slotted:
    __slots__ = ("x", "y")


def new():
    kept = [None] * COUNT
    all_kept.append(kept)
    return kept


def free_some(kept):
    for i in NUMBERS[::2]:
        kept[i] = None


def told(name, count, live, sizes, live_only=False):
    """`sizes`: bytes that the blocks of one object occupy, one number for each block."""
    blocks = len(sizes)
    cases.append(
        {
            "name": name,
            "blocks": None if live_only else count * blocks,
            "bytes": None if live_only else count * sum(sizes),
            "live_blocks": live * blocks,
            "live_bytes": None if live_only else live * sum(sizes),
        }
    )


def by_size(value):
    return [occupied(sys.getsizeof(value))]


def classes():
    each = NUMBERS[:400]
    total, live = 0, 0
    for size in range(48, 513, 16):
        length = size - 33
        kept = new()
        for i in each:
            kept[i] = bytes(length)  # census: classes
        for i in each[::2]:
            kept[i] = None
        total += size * len(each)
        live += size * (len(each) - len(each[::2]))
    count = len(range(48, 513, 16))
    cases.append(
        {
            "name": "classes",
            "blocks": count * len(each),
            "bytes": total,
            "live_blocks": count * (len(each) - len(each[::2])),
            "live_bytes": live,
        }
    )


def smallest():
    kept = new()
    for i in NUMBERS:
        kept[i] = object()  # census: smallest
    free_some(kept)
    told("smallest", COUNT, KEPT_OF_COUNT, by_size(object()))


def objects():
    kept = new()
    for i in NUMBERS:
        kept[i] = Slotted()  # census: objects
    free_some(kept)
    told("objects", COUNT, KEPT_OF_COUNT, by_size(kept[1]))


def tuples():
    kept = new()
    for i in NUMBERS:
        kept[i] = NONE * 25  # census: tuples
    free_some(kept)
    told("tuples", COUNT, KEPT_OF_COUNT, by_size(kept[1]))


def lists():
    kept = new()
    for i in NUMBERS:
        kept[i] = NONES * 10  # census: lists
    free_some(kept)
    told("lists", COUNT, KEPT_OF_COUNT, [*by_size([]), 80])


def dicts():
    kept = new()
    for i in NUMBERS:
        kept[i] = {"a": 1, "b": 2}  # census: dicts
    free_some(kept)
    whole, empty = sys.getsizeof(kept[1]), sys.getsizeof({})
    told("dicts", COUNT, KEPT_OF_COUNT, [occupied(empty), occupied(whole - empty)])


def strings():
    kept = new()
    for i in NUMBERS:
        kept[i] = TEXT * 25  # census: strings
    free_some(kept)
    told("strings", COUNT, KEPT_OF_COUNT, by_size(kept[1]))


def integers():
    kept = new()
    for i in NUMBERS:
        kept[i] = BIG + i  # census: integers
    free_some(kept)
    told("integers", COUNT, KEPT_OF_COUNT, by_size(kept[1]))


def floats():
    kept = new()
    for i in NUMBERS:
        kept[i] = HALF * i  # census: floats
    told("floats", COUNT, COUNT, by_size(HALF))


def make_closure(value):
    return lambda: value  # census: closures


def closures():
    kept = new()
    for i in NUMBERS:
        kept[i] = make_closure(i)
    told("closures", COUNT, COUNT, [*by_size(kept[1]), *by_size((1,))])


def generate():  # census: generators
    yield


def generators():
    kept = new()
    for i in NUMBERS:
        kept[i] = generate()  # census: generators
    # None is freed: closing a generator raises an exception within it.
    if sys.version_info >= (3, 11):
        told("generators", COUNT, COUNT, by_size(kept[1]))


def exceptions():
    kept = new()
    for i in NUMBERS:
        kept[i] = ValueError()  # census: exceptions
    free_some(kept)
    told("exceptions", COUNT, KEPT_OF_COUNT, by_size(kept[1]))


def temporaries():
    for _ in NUMBERS:
        bytes(200)  # census: temporaries
    told("temporaries", COUNT, 0, [occupied(233)])


def large():
    """Blocks of libc's malloc; those that it maps by themselves occupy whole pages, a little more than is told."""
    total, count, live = 0, 0, 0
    kept = new()
    for size, number in ((600, 3000), (1000, 3000), (5000, 600), (70_000, 300), (1 << 20, 60), (8 << 20, 9)):
        length = size - 33
        each = NUMBERS[count : count + number]
        for i in each:
            kept[i] = bytes(length)  # census: large
        for i in each[::2]:
            kept[i] = None
        total += occupied(size) * number
        live += occupied(size) * (number - len(each[::2]))
        count += number
    live_blocks = sum(1 for value in kept if value is not None)
    cases.append(
        {"name": "large", "blocks": count, "bytes": total, "live_blocks": live_blocks, "live_bytes": live}
    )


def large_strings():
    kept = new()
    each = NUMBERS[:3000]
    for i in each:
        kept[i] = TEXT * 200  # census: large_strings
    for i in each[::2]:
        kept[i] = None
    (size,) = by_size(kept[1])
    live = len(each) - len(each[::2])
    cases.append(
        {
            "name": "large_strings",
            "blocks": len(each),
            "bytes": size * len(each),
            "live_blocks": live,
            "live_bytes": size * live,
        }
    )


def grown():
    """Buffers that grow from pymalloc's blocks into libc's: one is alive for each array, whatever it took."""
    kept = new()
    each = NUMBERS[:3000]
    piece = b"x" * 60
    for i in each:
        array = bytearray()
        for _ in NUMBERS[:20]:
            array.extend(piece)  # census: grown
        kept[i] = array
    for i in each[::2]:
        kept[i] = None
    del array
    told("grown", len(each), len(each) - len(each[::2]), [0], live_only=True)


def appended():
    kept = new()
    each = NUMBERS[:3000]
    for i in each:
        values = []
        for _ in NUMBERS[:100]:
            values.append(None)  # census: appended
        kept[i] = values
    for i in each[::2]:
        kept[i] = None
    del values
    told("appended", len(each), len(each) - len(each[::2]), [0], live_only=True)


# Collections allocate too, on whatever line they happen.
gc.disable()
emptied = [[[], {}, float(i), (i,), (i, i), (i, i, i)] for i in range(3000)]
for case in (
    classes, smallest, objects, tuples, lists, dicts, strings, integers, floats, closures, generators,
    exceptions, temporaries, large, large_strings, grown, appended,
):
    case()

with open(__file__, encoding="utf-8") as source:
    marked = [line.partition("# census: ")[2].strip() for line in source]
for case in cases:
    case["lines"] = [number for number, name in enumerate(marked, 1) if name == case["name"]]
Expected(__file__).print(cases=cases)
os._exit(0)
