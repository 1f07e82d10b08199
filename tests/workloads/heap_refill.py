"""One line fills pools and frees nearly all of it; another line fills the holes, and keeps what it makes there.

`heap_refill.py --count N --every K --length L --pause S --pace B`: A makes N strings of L characters and frees all but every Kth, the
program pauses for S seconds (`--barrier`: says `freed` and waits for a line), B makes as many as were freed, B a second (0: as fast as
it can). `--wait` as in `heap_shares.py`. It tells what both hold and stays until the input ends.
"""
import time

from _held import Held, barrier, options, stay

A, B = "a", "b"
BATCH = 100


def a(kept, length):
    for i in range(len(kept)):
        kept[i] = A * length  # at: a


def b(kept, length, pace):
    start = time.monotonic()
    for i in range(len(kept)):
        kept[i] = B * length  # at: b
        if pace and i % BATCH == 0:
            ahead = i / pace - (time.monotonic() - start)
            if ahead > 0:
                time.sleep(ahead)


def main():
    given = options(count=200_000, every=50, length=100, pause=0.0, pace=0, barrier=False, wait=False)
    if given["wait"]:
        barrier("ready")
    # Lists that are long enough before the first block is made.
    first = [None] * given["count"]
    a(first, given["length"])
    survivors = first[:: given["every"]]
    freed = len(first) - len(survivors)
    second = [None] * freed
    first.clear()
    if given["barrier"]:
        barrier("freed")
    time.sleep(given["pause"])
    b(second, given["length"], given["pace"])
    held = Held(__file__)
    held.objects("a", "a", survivors)
    held.objects("b", "b", second)
    held.print(freed=freed)
    stay()


main()
