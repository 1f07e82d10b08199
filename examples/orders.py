"""A small shop: it reads orders, keeps a cache that never forgets, and a history that it never needs.

Something to try pyrobe on: most of what is allocated is gone at once (`parse`), most of what stays is held by
`Cache.price` and `remember`.
"""
import json
import os


class Cache:
    """Prices by customer and item; nothing is ever evicted."""

    def __init__(self):
        self.prices = {}

    def price(self, customer, item):
        key = f"{customer}/{item}"
        if key not in self.prices:
            self.prices[key] = {"key": key, "cents": 100 + len(self.prices) % 900}
        return self.prices[key]["cents"]


HISTORY = []


def remember(line):
    """Keeps the raw text of every order, which nobody reads again."""
    HISTORY.append(line.upper())


def parse(line):
    """Most of these objects do not outlive the order."""
    order = json.loads(line)
    return order["customer"], [(item["name"], item["count"]) for item in order["items"]]


def total(cache, line):
    customer, items = parse(line)
    remember(line)
    return sum(cache.price(customer, name) * count for name, count in items)


def orders(count):
    for number in range(count):
        items = [{"name": f"item-{(number * 7 + i) % 500}", "count": i + 1} for i in range(5)]
        yield json.dumps({"customer": f"customer-{number % 200}", "items": items})


def main():
    cache = Cache()
    cents = sum(total(cache, line) for line in orders(4_000))
    print(f"{len(HISTORY)} orders, {cents / 100:.2f} in all, {len(cache.prices)} prices cached", flush=True)
    # Ends without the interpreter's clean-up, so that what is held here is still live at exit.
    os._exit(0)


if __name__ == "__main__":
    main()
