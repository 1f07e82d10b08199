"""What a workload made, as one line of JSON, for the tests to compare with what pyrobe saw.

A workload marks the lines that matter with a comment, `# at: MARK`. A stack is a list of frames
`(qualified name, mark)`, root first; frames above the first one may be left out.
"""
import os
import sys

#: `co_qualname` came with 3.11; before, a code object knows its bare name only.
HAS_QUALNAME = sys.version_info >= (3, 11)
#: Comprehensions of lists, dicts and sets have a frame of their own up to 3.11.
COMPREHENSIONS_HAVE_FRAMES = sys.version_info < (3, 12)
#: Built without the GIL: mimalloc instead of pymalloc.
FREE_THREADED = "t" in sys.abiflags


def occupied(size):
    """Bytes that a block of `size` requested bytes occupies: pymalloc's size class or glibc's usable size.

    Without the GIL mimalloc's size class. Below 128 KiB: glibc may map larger blocks by themselves, in whole pages.
    """
    if FREE_THREADED:
        words = (size + 7) // 8
        step = 1 if words < 2 else 2 if words <= 8 else 1 << ((words - 1).bit_length() - 3)
        return -(-max(words, 1) // step) * step * 8
    if size <= 512:
        return max(16, (size + 15) & ~15)
    return ((size + 8 + 15) & ~15) - 8


def name(qualname):
    """The name by which this interpreter's code objects know a function."""
    return qualname if HAS_QUALNAME else qualname.rpartition(".")[2]


def lines_of(code):
    """All lines that an instruction of a code object can be at, and the first one."""
    lines = {code.co_firstlineno}
    if hasattr(code, "co_lines"):
        return lines | {line for _, _, line in code.co_lines() if line is not None}
    # Before 3.10: pairs of (bytes of code, signed difference of lines).
    line = code.co_firstlineno
    for step in code.co_lnotab[1::2]:
        line += step - 256 if step > 127 else step
        lines.add(line)
    return lines


def places(code):
    """Each function of a code object, itself included, with its lines: no other pair of them can be in a stack."""
    found = [{"function": getattr(code, "co_qualname", code.co_name), "lines": sorted(lines_of(code))}]
    for constant in code.co_consts:
        if isinstance(constant, type(code)):
            found += places(constant)
    return found


def to_json(value):
    """JSON of what is told here. Importing `json` would allocate many times as much as a workload does."""
    if isinstance(value, dict):
        return "{%s}" % ", ".join("%s: %s" % (to_json(key), to_json(item)) for key, item in value.items())
    if isinstance(value, list):
        return "[%s]" % ", ".join(map(to_json, value))
    if value is None:
        return "null"
    if isinstance(value, int):
        return str(value)
    if set(value) & {'"', "\\"} or not value.isprintable():
        raise ValueError("a name that would have to be escaped: %r" % value)
    return '"%s"' % value


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
        sys.stdout.write(to_json(message) + "\n")
        sys.stdout.flush()
