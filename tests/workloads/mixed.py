"""A mixed load for some seconds: JSON, regular expressions, sorting, churn of dicts, and data that is kept and replaced.

Keeps some ten thousand blocks alive. Then says, for each of its processes, how many blocks the interpreter itself counts, and waits for
the end of its input. `mixed.py SECONDS fork` does one half of it in two processes, of which the second one is a fork of the first.
"""
import json
import os
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


class Kept:
    def __init__(self):
        self.documents = [None] * 40
        self.records = [None] * 20000


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


def work(kept, seconds):
    end = time.monotonic() + seconds
    turn = 0
    while time.monotonic() < end:
        turn += 1
        documents(kept.documents, turn)
        expressions(turn)
        sorting(turn)
        dicts(turn)
        records(kept.records, turn)


def main(seconds, *options):
    kept = Kept()
    if "fork" in options:
        work(kept, seconds / 2)
        is_fork = os.fork() == 0
        work(kept, seconds / 2)
    else:
        is_fork = False
        work(kept, seconds)
    message = '{"pid": %d, "fork": %s, "blocks": %d}\n'
    sys.stdout.write(message % (os.getpid(), "true" if is_fork else "false", sys.getallocatedblocks()))
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main(float(sys.argv[1]), *sys.argv[2:])
