"""An interpreter inside the process, which has a module namespace of its own."""
import sys

from _expected import Expected

if sys.version_info >= (3, 13):
    import _interpreters as interpreters
else:
    import _xxsubinterpreters as interpreters

COUNT = 400

CODE = """
def inside(kept, size):
    for i in range(len(kept)):
        kept[i] = "x" * size
inside([None] * {count}, 200)
"""


def in_main(size):
    return "x" * size  # at: main


def main():
    kept = [None] * COUNT
    for i in range(COUNT):
        kept[i] = in_main(100)  # at: fill
    inner = interpreters.create()
    interpreters.run_string(inner, CODE.format(count=COUNT))
    interpreters.destroy(inner)
    return kept


kept = main()

expected = Expected(__file__)
expected.stack([("main", "fill"), ("in_main", "main")], COUNT, kept[0])
# The name of the code's file is the interpreter's own choice.
inside = {"function": "inside", "file": None, "line": 4}
expected.raw_stack([inside], COUNT, "x" * 200)
expected.print()
