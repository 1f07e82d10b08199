"""A mixed load for some seconds: JSON, regular expressions, sorting, churn of dicts, and data that is kept and replaced.

Keeps some ten thousand blocks of every small size alive, so that a share of a percent can be seen, and has the same number of them in
each round. Says how many blocks the interpreter itself counts.
"""
import json
import re
import sys
import time

WORDS = re.compile(r"(\w+)=(\d+)")


class Record:
    __slots__ = ("key", "values", "text")

    def __init__(self, key):
        self.key = key
        self.values = [key + step for step in range(key % 12)]
        self.text = "record %d" % key + "x" * (key * 7 % 440)


def documents(kept, turn):
    text = json.dumps([{"id": turn * 1000 + i, "name": "item %d" % i, "tags": ["a%d" % i, "b"]} for i in range(200)])
    kept[turn % len(kept)] = json.loads(text)


def expressions(turn):
    line = " ".join("name%d=%d" % (i, i * turn) for i in range(300))
    return sum(int(value) for _, value in WORDS.findall(line))


def sorting(turn):
    return sorted(("%d" % (i * 7919 % 1009 + turn) for i in range(500)), key=len)


def dicts(turn):
    table = {}
    for i in range(2000):
        table[turn, i] = str(i)
        if i >= 100:
            del table[turn, i - 100]
    return len(table)


def records(kept, turn):
    for i in range(500):
        kept[(turn * 500 + i) % len(kept)] = Record(turn * 500 + i)


def main(seconds):
    end = time.monotonic() + seconds
    documents_kept, records_kept = [None] * 40, [None] * 20000
    turn = 0
    while time.monotonic() < end:
        turn += 1
        documents(documents_kept, turn)
        expressions(turn)
        sorting(turn)
        dicts(turn)
        records(records_kept, turn)
    sys.stdout.write('{"turns": %d, "blocks": %d}\n' % (turn, sys.getallocatedblocks()))
    sys.stdout.flush()


if __name__ == "__main__":
    main(float(sys.argv[1]))
