"""Python functions called by C: a sort key, `functools.partial`, `map` and `functools.reduce`."""
import functools

from _expected import Expected

COUNT = 400
kept = []


def key(number):
    block = "x" * number  # at: key
    kept.append(block)
    return number


def make(size, _=None):
    return "x" * size  # at: make


def combine(total, number):
    block = "x" * number  # at: combine
    kept.append(block)
    return total


def main():
    sorted([200] * COUNT, key=key)  # at: sorted
    partial = functools.partial(make, 300)
    for _ in range(COUNT):
        kept.append(partial())  # at: partial
    kept.extend(map(make, [400] * COUNT))  # at: map
    functools.reduce(combine, [500] * COUNT, 0)  # at: reduce


main()

expected = Expected(__file__)
expected.stack([("main", "sorted"), ("key", "key")], COUNT, kept[0])
expected.stack([("main", "partial"), ("make", "make")], COUNT, kept[COUNT])
expected.stack([("main", "map"), ("make", "make")], COUNT, kept[2 * COUNT])
expected.stack([("main", "reduce"), ("combine", "combine")], COUNT, kept[3 * COUNT])
expected.print()
