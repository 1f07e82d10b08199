"""Generators: resumed by a loop, through `yield from`, and by `send`."""
from _expected import Expected

COUNT = 400


def leaf(size, count):
    for _ in range(count):
        yield "x" * size  # at: leaf


def delegating():
    yield from leaf(200, COUNT)  # at: yield from


def receiving():
    size = yield
    while True:
        size = yield "x" * size  # at: receiving


def main():
    kept = []
    for block in leaf(100, COUNT):  # at: loop
        kept.append(block)
    for block in delegating():  # at: delegating loop
        kept.append(block)
    receiver = receiving()
    next(receiver)
    for _ in range(COUNT):
        kept.append(receiver.send(300))  # at: send
    return kept


kept = main()

expected = Expected(__file__)
expected.stack([("main", "loop"), ("leaf", "leaf")], COUNT, kept[0])
frames = [("main", "delegating loop"), ("delegating", "yield from"), ("leaf", "leaf")]
expected.stack(frames, COUNT, kept[COUNT])
expected.stack([("main", "send"), ("receiving", "receiving")], COUNT, kept[-1])
expected.print()
