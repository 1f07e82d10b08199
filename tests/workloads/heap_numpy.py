"""Arrays of numpy that lines hold: filled ones, one that only half was ever written to, and one of zeros that was never touched.

`heap_numpy.py --size MB`. `--wait` as in `heap_shares.py`. It tells what its lines hold and stays until the input ends; `skipped` says so where
numpy is missing. What was never written to is held, but not resident: `untouched` of its line.
"""
import sys

from _held import MEGABYTE, Held, barrier, options, stay

try:
    import numpy
except ImportError:
    numpy = None


def filled(size):
    return [numpy.ones(size // 8 // 20) for _ in range(20)]  # at: filled


def computed(size):
    return numpy.arange(size // 8) * 0.5  # at: computed


def small(size):
    return [numpy.full(100, i) for i in range(size // 800)]  # at: small


def zeros(size):
    return numpy.zeros(size // 8)  # at: zeros


def half(size):
    array = numpy.empty(size // 8)  # at: half
    array[: size // 16] = 1.0  # at: touched
    return array


def main():
    given = options(size=100, wait=False)
    if given["wait"]:
        barrier("ready")
    held = Held(__file__)
    if numpy is None:
        held.print(skipped="numpy is not installed for %s" % sys.executable)
        return
    size = given["size"] * MEGABYTE
    kept = {
        "filled": filled(size * 30 // 100),
        "computed": [computed(size * 20 // 100)],
        "small": small(size * 10 // 100),
        "zeros": [zeros(size * 20 // 100)],
        "half": [half(size * 20 // 100)],
    }
    for mark, arrays in kept.items():
        for array in arrays:
            held.native(mark, mark, array.nbytes)
    held.print(untouched={"zeros": kept["zeros"][0].nbytes, "half": kept["half"][0].nbytes // 2})
    stay()


main()
