"""A process that allocates when it is told to: one line of input, one of output, until the input ends.

`make N SIZE` keeps N strings of SIZE characters, `drop` lets them go, `where` says which line makes them,
`map FILE` maps a file with the right to execute, and `spread N` makes blocks at N different stacks.
"""
import mmap
import sys

from _expected import Expected

kept = []
maps = []


def make(count, size):
    blocks = [None] * count
    for i in range(count):
        blocks[i] = "x" * size  # at: make
    kept.append(blocks)


def map_file(name):
    with open(name, "rb") as file:
        maps.append(mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC))


def spread(count):
    for i in range(count):
        namespace = {"kept": kept}
        exec(compile("\n" * i + "kept.append('x' * (600 + %d))" % i, "<spread %d>" % i, "exec"), namespace)


print("ready", flush=True)
for command in sys.stdin:
    words = command.split()
    if words[0] == "make":
        make(int(words[1]), int(words[2]))
    elif words[0] == "drop":
        kept.clear()
    elif words[0] == "map":
        map_file(words[1])
    elif words[0] == "spread":
        spread(int(words[1]))
    elif words[0] == "where":
        expected = Expected(__file__)
        print(expected.lines["make"], flush=True)
        continue
    print("done", flush=True)
