"""Many processes that come and go, a few at a time; each fills a heap of its own with several lines, and the last ones stay.

It says `ready`, begins at a line of input, tells of those that stay, and ends with its input.
"""
import sys
from collections import deque

from _expected import Expected
from _held import BIG, MEGABYTE, Held, barrier, blocks, options, stay

PROCESSES = 240
#: So many are alive at any time, and so many at last.
ALIVE = 40


def texts(kept, number):
    kept.append("text %d%s" % (number, "-" * (number % 300)))  # at: texts


def pairs(kept, number):
    kept.append([number + BIG, None])  # at: pairs


def pages(kept, number):
    kept.append(b"=" * (1000 + number % 4000))  # at: pages


def child(number):
    """A heap of ten to fourteen megabytes, or of fifty and more for half of those that stay; another line holds most in each of three.

    A few megabytes more are of imports, and what those left free is filled first: a smaller heap would tell of that. The budget hardly
    allows for the start of a process: at times only page faults tell of its pools.
    """
    is_large = number >= PROCESSES - ALIVE and number // 3 % 2
    size = ((50 if is_large else 10) + number % 3 * 2) * MEGABYTE
    parts = [(texts, 150), (pairs, 110), (pages, 3000)]
    kept = {build.__name__: [] for build, _ in parts}
    for turn, (build, each) in enumerate(parts):
        share = (5, 3, 2)[(turn + number) % 3]
        for index in range(size * share // 10 // each):
            build(kept[build.__name__], index)
    held = Held(__file__)
    for mark, values in kept.items():
        held.objects(mark, mark, (value for value in values if mark != "pairs"))
        # The list that keeps them grows on the same line.
        held.blocks(mark, mark, blocks(values)[1:])
    held.objects("pairs", "pairs", (part for pair in kept["pairs"] for part in (pair, pair[0])))
    held.print()
    stay()


def end(process):
    process.stdin.close()
    process.wait()


def main():
    given = options(child=-1)
    if given["child"] >= 0:
        child(given["child"])
        return
    # The children need neither, and importing them takes most of the time of a run.
    import json
    import subprocess

    barrier("ready")
    alive, told, gone = deque(), deque(), []
    for number in range(PROCESSES):
        if len(alive) >= ALIVE:
            oldest = alive.popleft()
            told.popleft()
            end(oldest)
            gone.append(oldest.pid)
        command = [sys.executable, __file__, "--child", str(number)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        alive.append(process)
        told.append(json.loads(process.stdout.readline()))
    Expected(__file__).print(children=list(told), gone=gone)
    stay()
    for process in alive:
        end(process)


main()
