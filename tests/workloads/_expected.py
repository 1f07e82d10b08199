"""What a workload made, as one line of JSON, for the tests to compare with what pyrobe saw.

A workload marks the lines that matter with a comment, `# at: MARK`. A stack is a list of frames
`(qualified name, mark)`, root first; frames above the first one may be left out.
"""
import dis
import json
import os
import sys

#: `co_qualname` came with 3.11; before, a code object knows its bare name only.
HAS_QUALNAME = sys.version_info >= (3, 11)
#: Comprehensions of lists, dicts and sets have a frame of their own up to 3.11.
COMPREHENSIONS_HAVE_FRAMES = sys.version_info < (3, 12)


def occupied(size):
    """Bytes that a block of `size` requested bytes occupies: pymalloc's size class or glibc's usable size."""
    if size <= 512:
        return max(16, (size + 15) & ~15)
    return ((size + 8 + 15) & ~15) - 8


def name(qualname):
    """The name by which this interpreter's code objects know a function."""
    return qualname if HAS_QUALNAME else qualname.rpartition(".")[2]


def places(code):
    """Each function of a code object, itself included, with its lines: no other pair of them can be in a stack."""
    lines = {line for _, line in dis.findlinestarts(code) if line is not None}
    found = [{"function": getattr(code, "co_qualname", code.co_name), "lines": sorted(lines | {code.co_firstlineno})}]
    for constant in code.co_consts:
        if isinstance(constant, type(code)):
            found += places(constant)
    return found


class Expected:
    """The stacks of this process, and how often each of them allocated."""

    def __init__(self, file):
        self.file = file
        with open(file) as opened:
            source = opened.read()
        lines = enumerate(source.splitlines(), start=1)
        self.lines = {line.partition("# at: ")[2]: number for number, line in lines if "# at: " in line}
        self.places = places(compile(source, file, "exec"))
        self.stacks = []

    def stack(self, frames, count, sample):
        """`count` blocks like `sample` (an object whose whole memory is one block) were made at a stack."""
        frames = [{"function": name(function), "file": self.file, "line": self.lines[mark]} for function, mark in frames]
        self.raw_stack(frames, count, sample)

    def raw_stack(self, frames, count, sample):
        """The same, with frames as the tests read them; `file` may be None for any."""
        size = occupied(sys.getsizeof(sample))
        self.stacks.append({"frames": frames, "count": count, "bytes": count * size})

    def print(self, **more):
        """Writes what is expected of this process as one line."""
        message = {"pid": os.getpid(), "file": self.file, "places": self.places, "stacks": self.stacks, **more}
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()
