"""Lambdas: one at module level, one made in a function."""
from _expected import Expected

COUNT = 400

plain = lambda size: "x" * size  # at: plain


def maker(size):
    return lambda: "x" * size  # at: made


def main():
    kept = [None] * (2 * COUNT)
    made = maker(200)
    for i in range(COUNT):
        kept[i] = plain(100)  # at: call plain
    for i in range(COUNT, 2 * COUNT):
        kept[i] = made()  # at: call made
    return kept


kept = main()

expected = Expected(__file__)
expected.stack([("main", "call plain"), ("<lambda>", "plain")], COUNT, kept[0])
expected.stack([("main", "call made"), ("maker.<locals>.<lambda>", "made")], COUNT, kept[-1])
expected.print()
