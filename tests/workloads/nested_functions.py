"""Functions inside functions, called through the closures that hold them."""
from _expected import Expected

COUNT = 400


def outer(size):
    def middle():
        def inner():
            return "x" * size  # at: inner

        return inner()  # at: middle

    return middle


def main():
    kept = [None] * COUNT
    make = outer(100)
    for i in range(COUNT):
        kept[i] = make()  # at: main
    return kept


kept = main()

expected = Expected(__file__)
frames = [
    ("main", "main"),
    ("outer.<locals>.middle", "middle"),
    ("outer.<locals>.middle.<locals>.inner", "inner"),
]
expected.stack(frames, COUNT, kept[0])
expected.print()
