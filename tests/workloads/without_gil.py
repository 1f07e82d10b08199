"""A thread that allocates while it does not hold the GIL, and another that runs Python meanwhile.

zlib allocates its window (32 KiB and more) on the first piece of output of a stream, in the raw domain, after it
has let go of the GIL. What is seen of it belongs to `inflate` or to no Python frame, never to `bystander`.
"""
import threading
import zlib

from _expected import Expected

COUNT = 300
#: zlib's window, without what zlib adds to it.
WINDOW = 32768

packed = zlib.compress(bytes(range(256)) * 256)
finished = threading.Event()


def inflate():
    stream = zlib.decompressobj()
    return stream.decompress(packed, 40000)  # at: inflate


def bystander():
    kept = [None] * 64
    turn = 0
    while not finished.is_set():
        turn += 1
        kept[turn % 64] = "x" * 100  # at: bystander


def main():
    thread = threading.Thread(target=bystander)
    thread.start()
    for _ in range(COUNT):
        inflate()
    finished.set()
    thread.join()


main()

expected = Expected(__file__)
expected.print(
    count=COUNT,
    window=WINDOW,
    inflate={"function": "inflate", "file": __file__, "line": expected.lines["inflate"]},
    bystander={"function": "bystander", "file": __file__, "line": expected.lines["bystander"]},
)
