"""Several lines that hold known shares of the heap, built side by side while others make and drop blocks of the same sizes.

`heap_shares.py --size MB --churn BLOCKS --window BLOCKS --seconds S --pause S`: so many times three blocks of the churn are made in
each of fifty rounds, so many are alive at any time, and it goes on for so long after all is built; it rests after each round. `--wait`:
says `ready` and begins at a line of input. It tells what its lines hold and stays until the input ends.
"""
import itertools
import sys
import time
from collections import deque

from _held import BIG, MEGABYTE, Held, barrier, blocks, options, stay

#: Parts of the whole, in percent.
SHARES = {"slotted": 20, "entries": 15, "strings": 15, "nested": 25, "large": 25}
LARGE = [1 << 10, 3000, 10_000, 40_000, 100_000, 300_000, 1 << 20]
KEYS = list(range(10_000, 10_040))
PADDING = "-" * 300
NUMBERS = itertools.count()
ROUNDS = 50


class Slotted:
    __slots__ = ("a", "b", "c", "d")


def slotted(kept):
    value = Slotted()  # at: slotted
    kept.append(value)
    return 64


def entries(kept):
    table = {}  # at: tables
    for key in KEYS:
        table[key] = None  # at: entries
    kept.append(table)
    return sys.getsizeof(table)


def strings(kept):
    number = len(kept)
    value = f"name {number} {PADDING[:number % 300]}"  # at: strings
    kept.append(value)
    return sys.getsizeof(value)


def nested(kept):
    number = BIG + len(kept)
    value = {"id": number + 1, "tags": [number + 2, None], "rows": [[1, 2, number + 3], [3]]}  # at: nested
    kept.append(value)
    return 700


def large(kept):
    value = b"x" * LARGE[len(kept) % len(LARGE)]  # at: large
    kept.append(value)
    return len(value)


def churn(window, count):
    """Blocks of the sizes that the others keep; the oldest goes when there are too many."""
    for i in range(count):
        # No two are the same: one that comes to lie where another one was could not be told from it.
        window.append("%d temporary %s" % (next(NUMBERS), "-" * (i % 400)))  # at: texts
        window.append([i + BIG, None])  # at: pairs
        window.append(bytes(600 + i % 5000) if i % 10 == 0 else Slotted())  # at: others


def unfolded(values):
    """All objects that the values of `nested` consist of, but their constants."""
    for value in values:
        yield value
        yield value["id"]
        yield value["tags"]
        yield value["tags"][0]
        yield value["rows"]
        for row in value["rows"]:
            yield row
        yield value["rows"][0][2]


def main():
    given = options(size=100, churn=2000, window=10_000, seconds=1.0, wait=False, pause=0.0)
    if given["wait"]:
        barrier("ready")
    builders = {"slotted": slotted, "entries": entries, "strings": strings, "nested": nested, "large": large}
    kept = {part: [] for part in builders}
    made = dict.fromkeys(builders, 0)
    window = deque(maxlen=given["window"])
    for turn in range(1, ROUNDS + 1):
        for part, build in builders.items():
            while made[part] < given["size"] * MEGABYTE * SHARES[part] // 100 * turn // ROUNDS:
                made[part] += build(kept[part])
            churn(window, given["churn"])
        time.sleep(given["pause"])
    end = time.monotonic() + given["seconds"]
    while time.monotonic() < end:
        churn(window, 2000)
    held = Held(__file__)
    for part in ("slotted", "strings", "large"):
        held.objects(part, part, kept[part])
    held.objects("nested", "nested", unfolded(kept["nested"]))
    for value in window:
        if isinstance(value, list):
            held.objects("churn", "pairs", (value, value[0]))
        else:
            held.objects("churn", "texts" if isinstance(value, str) else "others", [value])
    tables = [blocks(table) for table in kept["entries"]]
    held.blocks("entries", "tables", (head for head, _ in tables))
    held.blocks("entries", "entries", (keys for _, keys in tables))
    held.print()
    stay()


main()
