"""A data program on numpy: columns of a table are made, filtered, grouped and joined chunk by chunk, and sums of them are kept."""

import numpy

from control import Control

CHUNKS = 60
ROWS = 200_000
GROUPS = 500


def table(generator):
    return {
        "key": generator.integers(0, GROUPS, ROWS),
        "price": generator.random(ROWS) * 100,
        "count": generator.integers(1, 20, ROWS),
    }


def grouped(keys, values):
    order = numpy.argsort(keys, kind="stable")
    keys, values = keys[order], values[order]
    starts = numpy.flatnonzero(numpy.diff(keys, prepend=-1))
    return keys[starts], numpy.add.reduceat(values, starts)


def smoothed(values, width):
    sums = numpy.cumsum(values)
    return (sums[width:] - sums[:-width]) / width


def chunk(generator, totals):
    rows = table(generator)
    total = rows["price"] * rows["count"]
    cheap = total < numpy.median(total)
    keys, sums = grouped(rows["key"][cheap], total[cheap])
    for key, value in zip(keys.tolist(), sums.tolist()):
        totals.setdefault(key, []).append(value)
    smooth = smoothed(numpy.sort(total), 50)
    return [(float(smooth[i]), "row %d" % i) for i in range(0, len(smooth), 100)]


def work(times):
    generator = numpy.random.default_rng(1)
    totals = {}
    kept = [chunk(generator, totals) for _ in range(times * CHUNKS)]
    return totals, kept


control = Control()
control.ready()
control.begin()
work(control.times)
control.end()
