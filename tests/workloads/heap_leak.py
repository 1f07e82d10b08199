"""A slow leak beside heavy churn and caches that fill up in the first part of the run and then hold their size.

`heap_leak.py --rate MB --churn MB --seconds S`: so many megabytes a minute stay, so many a second are made and dropped. `--wait` as in
`heap_shares.py`. It tells what its lines hold and stays until the input ends.
"""
import time

from _held import BIG, MEGABYTE, Held, barrier, blocks, mapped_or_occupied, options, stay

TICK = 0.02
NUMBERS = list(range(1000))
CACHE_MEGABYTES = 15
PAYLOAD = "-" * 150
#: Bytes of one leaked block.
LEAKED = 224


def leak(kept, number):
    kept.append(f"session {NUMBERS[number % 1000]} {PAYLOAD}")  # at: leak


def cache(kept, number):
    kept.append({"id": BIG + number, "seen": [number + BIG]})  # at: cache


def pages(kept, number):
    kept.append(b"<page>" * (100 + number % 400))  # at: pages


class Row:
    """As large as a dict, but nothing that the interpreter keeps to use again: what of the cache comes from there is the churn's by right."""

    __slots__ = ("key", "value", "text", "next")

    def __init__(self, key):
        self.key = key
        self.value = BIG + key  # at: values
        self.text = b"." * 90  # at: texts of rows


def churn():
    texts = [str(BIG + i) for i in NUMBERS]  # at: texts
    rows = [Row(i) for i in NUMBERS[:500]]  # at: rows
    chunks = [b"=" * (1000 + 4 * i) for i in NUMBERS[:50]]  # at: chunks
    return texts, rows, chunks


def size_of_churn():
    sums = 0
    for values in churn():
        for value in [values, *values]:
            sums += sum(map(mapped_or_occupied, blocks(value)))
    return sums


def unfolded(values):
    for value in values:
        yield value
        yield value["id"]
        yield value["seen"]
        yield value["seen"][0]


def main():
    given = options(rate=1.0, churn=100, seconds=180.0, wait=False)
    if given["wait"]:
        barrier("ready")
    leaked, cached, paged = [], [], []
    cached_bytes = paged_bytes = churned = 0
    batch = size_of_churn()
    start = time.monotonic()
    while True:
        elapsed = time.monotonic() - start
        if elapsed >= given["seconds"]:
            break
        while churned < elapsed * given["churn"] * MEGABYTE:
            churn()
            churned += batch
        while len(leaked) * LEAKED < elapsed * given["rate"] * MEGABYTE / 60:
            leak(leaked, len(leaked))
        # Full after a third of the run, or as fast as half a minute allows.
        full = min(1.0, elapsed / min(30.0, given["seconds"] / 3))
        while cached_bytes < full * CACHE_MEGABYTES * MEGABYTE:
            cache(cached, len(cached))
            cached_bytes += 400
        while paged_bytes < full * CACHE_MEGABYTES * MEGABYTE:
            pages(paged, len(paged))
            paged_bytes += len(paged[-1])
        ahead = TICK - (time.monotonic() - start - elapsed)
        if ahead > 0:
            time.sleep(ahead)
    elapsed = time.monotonic() - start
    held = Held(__file__)
    held.objects("leak", "leak", leaked)
    held.objects("cache", "cache", unfolded(cached))
    held.objects("pages", "pages", paged)
    # The lists that keep them grow on the same lines.
    held.blocks("leak", "leak", blocks(leaked)[1:])
    held.blocks("cache", "cache", blocks(cached)[1:])
    held.blocks("pages", "pages", blocks(paged)[1:])
    held.print(churned_a_second=int(churned / elapsed), seconds=int(elapsed))
    stay()


main()
