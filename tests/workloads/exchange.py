"""Four threads that hand each other blocks: who frees or grows a block is not who made it.

Without the GIL they run at the same time. It ends without the interpreter's own clean-up, so that what is kept is alive
at exit.
"""
import collections
import os
import threading

from _expected import Expected

THREADS = 4
ROUNDS = 300
BATCH = 50
PIECE = b"x" * 1000

boxes = [collections.deque() for _ in range(THREADS)]
kept = [[] for _ in range(THREADS)]
start = threading.Barrier(THREADS)


def make(size):
    return bytes(size)  # at: make


def make_array():
    return bytearray(200)  # at: array


def grow(array):
    array.extend(PIECE)  # at: grow


def take(box, mine):
    """Takes what another thread made: keeps one, grows one, frees all others."""
    try:
        array, batch = box.popleft()
    except IndexError:
        return
    mine.append(batch.pop())
    for _ in range(3):
        grow(array)


def work(me):
    start.wait()
    mine, others = boxes[me], boxes[(me + 1) % THREADS]
    for _ in range(ROUNDS):
        others.append((make_array(), [make(100 + 8 * i) for i in range(BATCH)]))
        take(mine, kept[me])


threads = [threading.Thread(target=work, args=(me,)) for me in range(THREADS)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
for box in boxes:
    box.clear()

expected = Expected(__file__)
expected.print(lines=expected.lines, made=THREADS * ROUNDS * BATCH, kept=sum(map(len, kept)))
os._exit(0)
