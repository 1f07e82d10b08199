"""Code made by `exec` in a loop: code objects die, and new ones with other names and lines take their addresses."""
from _expected import Expected

GENERATIONS = 200

SOURCE = """{blank}
def made_{generation}(kept, first, last):
    for i in range(first, last):
        kept[i] = "x" * size
size = 100
"""


def counts():
    return [5 + generation % 7 for generation in range(GENERATIONS)]


def main(kept, addresses):
    first = 0
    for generation, count in enumerate(counts()):
        namespace = {}
        source = SOURCE.format(blank="\n" * generation, generation=generation)
        exec(compile(source, "<generated %d>" % generation, "exec"), namespace)
        addresses.append(id(namespace["made_%d" % generation].__code__))
        namespace["made_%d" % generation](kept, first, first + count)  # at: call
        # Function and namespace hold each other: this lets the code object go at once.
        namespace.clear()
        first += count


kept = [None] * sum(counts())
addresses = []
main(kept, addresses)

expected = Expected(__file__)
caller = {"function": "main", "file": __file__, "line": expected.lines["call"]}
for generation, count in enumerate(counts()):
    made = {
        "function": "made_%d" % generation,
        "file": "<generated %d>" % generation,
        "line": generation + 4,
    }
    expected.raw_stack([caller, made], count, kept[0])
expected.print(reused=GENERATIONS - len(set(addresses)))
