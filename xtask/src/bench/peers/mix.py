"""Allocates heavily: JSON both ways, regular expressions, sorting, dicts that grow and shrink, and records that are kept and replaced."""

import json
import random
import re

from control import Control

ROUNDS = 120
ROWS = 1500
NAME = re.compile(r'"name": "(\w+)"')
NUMBER = re.compile(r"(\d+)-(\d+)")


class Record:
    __slots__ = ("key", "tags", "total")

    def __init__(self, row):
        self.key = row["name"]
        self.tags = tuple(row["tags"])
        self.total = sum(row["values"])


def rows(turn):
    return [
        {
            "id": turn * ROWS + i,
            "name": "user%d" % i,
            "tags": ["t%d" % (i % 7), "u%d" % (i % 11)],
            "values": [random.random() for _ in range(4)],
        }
        for i in range(ROWS)
    ]


def documents(turn):
    text = json.dumps(rows(turn))
    return text, json.loads(text)


def words(text):
    return {name: len(name) for name in NAME.findall(text)}


def spans():
    line = " ".join("%d-%d" % (i, i * i) for i in range(1500))
    return sum(int(last) - int(first) for first, last in NUMBER.findall(line))


def index(loaded):
    table = {}
    for row in loaded:
        table[row["name"], row["id"]] = row
    for key in sorted(table)[::2]:
        del table[key]
    return table


def work(times):
    kept = [None] * 10
    for turn in range(times * ROUNDS):
        text, loaded = documents(turn)
        words(text)
        spans()
        loaded.sort(key=lambda row: row["values"][0])
        table = index(loaded)
        kept[turn % len(kept)] = [Record(row) for row in table.values()]
    return kept


random.seed(1)
control = Control()
control.ready()
control.begin()
work(control.times)
control.end()
