"""Caches that grow to a limit, are trimmed by a quarter when they pass it and grow again, and then sit.

`heap_cache.py --size MB --turns N --pause S`: limits for so much in all, and so many passes over all keys, after which what is cached has
been replaced many times; it rests after every 2000 keys. Three caches take blocks of the same sizes, so that what one of them frees
another one fills. `--wait` as in `heap_shares.py`. It tells what its lines hold and stays until the input ends.
"""
import time
from itertools import islice

from _held import BIG, MEGABYTE, Held, barrier, blocks, options, stay

PADDING = "." * 60


class User:
    __slots__ = ("name", "visits", "home")

    def __init__(self, name, visits):
        self.name = name
        self.visits = visits


class Cache:
    """Least recently used last out: a dict in the order of use."""

    def __init__(self, limit, make):
        self.entries = {}
        self.limit = limit
        self.make = make

    def get(self, key):
        value = self.entries.pop(key, None)
        if value is None:
            value = self.make(key)
        self.entries[key] = value  # at: tables
        if len(self.entries) > self.limit:
            self.trim()

    def trim(self):
        for key in list(islice(self.entries, self.limit // 4)):
            del self.entries[key]


def make_user(key):
    name = f"user {key} {PADDING[:key % 60]}"  # at: names
    return User(name, BIG + key)  # at: users


def make_page(key):
    return b"<p>" * (40 + key % 1000)  # at: pages


def make_token(key):
    return ("t" * (20 + key % 100), key, None)  # at: tokens


def main():
    given = options(size=60, turns=6, wait=False, pause=0.0)
    if given["wait"]:
        barrier("ready")
    size = given["size"] * MEGABYTE
    # Bytes of one entry, roughly: 64 + 48 + 144, 1650, 64 + 128.
    users = Cache(size * 30 // 100 // 260, make_user)
    pages = Cache(size * 40 // 100 // 1650, make_page)
    tokens = Cache(size * 20 // 100 // 192, make_token)
    # Twice as many keys as there is room for; a stride that is prime to their number makes an order without a pattern.
    keys = 2 * max(users.limit, tokens.limit)
    # From 3.14 on the interpreter keeps small numbers to use again: what a line computes for a moment another one would keep, and no
    # allocator would know of it. So none of those that are computed is kept.
    numbers = list(range(keys + 1))  # at: keys
    for turn in range(given["turns"]):
        for i in range(keys):
            key = (i * 7919 + turn * 31) % keys
            users.get(numbers[key])
            tokens.get(numbers[keys - key])
            if i % 6 == 0:
                pages.get(numbers[key % (2 * pages.limit)])
            if given["pause"] and i % 2000 == 0:
                time.sleep(given["pause"])
    held = Held(__file__)
    held.objects("make_user", "names", (user.name for user in users.entries.values()))
    held.objects("make_user", "users", users.entries.values())
    held.objects("make_user", "users", (user.visits for user in users.entries.values()))
    held.objects("make_page", "pages", pages.entries.values())
    held.objects("make_token", "tokens", tokens.entries.values())
    held.objects("make_token", "tokens", (token[0] for token in tokens.entries.values()))
    # The smallest ones are there from the start.
    held.objects("main", "keys", numbers[257:])
    held.blocks("main", "keys", blocks(numbers)[1:])
    tables = [blocks(cache.entries)[1] for cache in (users, pages, tokens)]
    held.blocks("Cache.get", "tables", tables)
    held.print()
    stay()


main()
