"""What the marked lines of a workload hold at a moment, and what the allocators and the kernel say of that moment.

The bytes of a line are worked out from the layouts of objects (`sys.getsizeof`) and what a block of so many bytes occupies. So no object
may have been made smaller where it is: pymalloc moves a block only if that spares a quarter of it (`pymalloc_realloc`,
https://github.com/python/cpython/blob/3.13/Objects/obmalloc.c). `"%d" % i` makes such strings; f-strings and `*` do not. With
`-X tracemalloc=1`, tracemalloc's word on the line stands beside it. What the allocators count comes from `sys._debugmallocstats` and
libc's `mallinfo2`, what is resident from the kernel.
"""
import ctypes
import os
import sys
import tracemalloc

from _expected import FREE_THREADED, Expected, name, occupied

LIST, DICT, SET = sys.getsizeof([]), sys.getsizeof({}), sys.getsizeof(set())
#: glibc maps blocks from this size on by themselves until the first one of them is freed.
MAPPED_FROM = 128 << 10
PAGE = os.sysconf("SC_PAGE_SIZE")
MEGABYTE = 1_000_000
#: Sums with it have three digits of 30 bits: the one more that a sum takes at first makes no larger block.
BIG = 10**20

libc = ctypes.CDLL(None, use_errno=True)
libc.malloc_usable_size.restype = ctypes.c_size_t
libc.malloc_usable_size.argtypes = [ctypes.c_void_p]


def options(**defaults):
    """Options `--name VALUE` of the command line, of the type of their defaults; a flag's default is False."""
    values, words = dict(defaults), iter(sys.argv[1:])
    for word in words:
        key = word[2:]
        if not word.startswith("--") or key not in values:
            sys.exit("unknown option %s, there are: %s" % (word, " ".join("--" + each for each in values)))
        values[key] = True if defaults[key] is False else type(defaults[key])(next(words))
    return values


def barrier(said):
    """Says something and waits for a line; the end of the input is one too."""
    sys.stdout.write(said + "\n")
    sys.stdout.flush()
    sys.stdin.readline()


def mapped(size):
    """Bytes that libc takes for a block that it maps by itself: whole pages, of which it tells all but its head."""
    return -(-(size + 16) // PAGE) * PAGE - 16


def blocks(value):
    """The bytes asked for of each block that an object consists of, without what it refers to."""
    size = sys.getsizeof(value)
    for kind, head in ((list, LIST), (dict, DICT), (set, SET)):
        if type(value) is kind:
            return (head, size - head) if size > head else (head,)
    return (size,)


def taken(value):
    """Bytes that each block of an object occupies."""
    if type(value) in (bytes, str) and sys.getsizeof(value) >= MAPPED_FROM and not FREE_THREADED:
        # The only block of an object without a head for the collector begins where the object does.
        return (libc.malloc_usable_size(id(value)),)
    return tuple(map(mapped_or_occupied, blocks(value)))


def mapped_or_occupied(size):
    return mapped(size) if size >= MAPPED_FROM and not FREE_THREADED else occupied(size)


class Line:
    """What one line holds: blocks of pymalloc, larger ones of CPython's allocator, and memory that it knows nothing of."""

    def __init__(self):
        self.blocks = self.small = self.large = self.native = 0

    def block(self, size):
        self.blocks += 1
        if size <= 512:
            self.small += size
        else:
            self.large += size


class Held:
    """The account of a workload's lines."""

    def __init__(self, file):
        self.expected = Expected(file)
        self.lines = {}

    def line(self, function, mark):
        return self.lines.setdefault((function, mark), Line())

    def objects(self, function, mark, values):
        """These objects, all of their blocks, were made by a line and are alive."""
        line = self.line(function, mark)
        for value in values:
            for size in taken(value):
                line.block(size)

    def blocks(self, function, mark, sizes):
        """Blocks of so many bytes, as they were asked for, were made by a line and are alive."""
        line = self.line(function, mark)
        for size in sizes:
            line.block(mapped_or_occupied(size))

    def native(self, function, mark, size):
        """A line holds memory that CPython's allocator knows nothing of."""
        line = self.line(function, mark)
        line.blocks += 1
        line.native += size

    def print(self, **more):
        lines = []
        for (function, mark), line in self.lines.items():
            lines.append(
                {
                    "mark": mark,
                    "function": name(function),
                    "line": self.expected.lines[mark],
                    "blocks": line.blocks,
                    "bytes": line.small + line.large + line.native,
                    "small": line.small,
                    "large": line.large,
                    "native": line.native,
                }
            )
        if tracemalloc.is_tracing():
            add_traced(self.expected.file, lines)
        more.update(lines=lines, allocators=allocators(), resident=resident())
        self.expected.print(**more)


def stay():
    """Holds what is held until the input ends."""
    sys.stdin.read()


def add_traced(file, lines):
    """tracemalloc's word on the lines. Objects from a free list are new to it; libc's large blocks are rounded here."""
    sums = {}
    for trace in tracemalloc.take_snapshot().traces:
        frame = trace.traceback[-1]
        if frame.filename == file:
            count, size = sums.get(frame.lineno, (0, 0))
            sums[frame.lineno] = (count + 1, size + mapped_or_occupied(trace.size))
    for line in lines:
        line["traced_blocks"], line["traced"] = sums.get(line["line"], (0, 0))


class Mallinfo(ctypes.Structure):
    """`mallinfo2(3)`."""

    _fields_ = [
        (field, ctypes.c_size_t)
        for field in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    ]


def allocators():
    """Bytes in allocated blocks of pymalloc and of libc (all that is not pymalloc's arenas), by their own count."""
    info = None
    if hasattr(libc, "mallinfo2"):
        libc.mallinfo2.restype = Mallinfo
        info = libc.mallinfo2()
    stats = "" if FREE_THREADED else malloc_stats()
    figures = {"pymalloc": None, "arenas": None, "libc": info.uordblks + info.hblkhd if info else None}
    for line in stats.splitlines():
        what, equals, number = line.rpartition("=")
        if equals and what.startswith("# bytes in allocated blocks"):
            figures["pymalloc"] = int(number.replace(",", ""))
        elif equals and "bytes/arena" in what:
            figures["arenas"] = int(number.replace(",", ""))
    figures["total"] = sum(figures[part] for part in ("pymalloc", "libc") if figures[part])
    return figures


def malloc_stats():
    """What `sys._debugmallocstats` writes to the standard error stream, from which it is turned away meanwhile."""
    sys.stderr.flush()
    file, stderr = os.memfd_create("stats"), os.dup(2)
    try:
        os.dup2(file, 2)
        sys._debugmallocstats()
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
    # C buffers nothing of the standard error stream.
    written = os.pread(file, 1 << 20, 0).decode()
    os.close(file)
    return written


def resident():
    """The kernel's word on this process, in bytes; None where its root has no /proc."""
    figures = {"rss": None, "anonymous": None, "huge": None}
    if not os.path.exists("/proc/self/smaps_rollup"):
        return figures
    with open("/proc/self/smaps_rollup") as lines:
        for line in lines:
            key, _, value = line.partition(":")
            part = {"Rss": "rss", "Anonymous": "anonymous", "AnonHugePages": "huge"}.get(key)
            if part:
                figures[part] = int(value.split()[0]) * 1024
    return figures
