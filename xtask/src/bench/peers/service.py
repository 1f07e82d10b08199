"""A small web service with JSON handlers on asyncio, whose store is trimmed, until the bench has had its answers.

Its clocks start where its store is full: before that libc gives memory back and takes it again thousands of times, or not, as chance has it,
which makes a run faster or slower by several percent.
"""

import asyncio
import json
import socket

from control import Control

LIMIT = 5000


class Item:
    __slots__ = ("number", "name", "tags", "price")

    def __init__(self, number, name, tags, price):
        self.number = number
        self.name = name
        self.tags = tags
        self.price = price

    def as_json(self):
        return {"id": self.number, "name": self.name, "tags": self.tags, "price": self.price}


class Store:
    def __init__(self):
        self.items = {}
        self.by_tag = {}
        self.last = 0

    def add(self, fields):
        self.last += 1
        item = Item(self.last, fields["name"], fields["tags"], fields["price"])
        self.items[item.number] = item
        for tag in item.tags:
            self.by_tag.setdefault(tag, {})[item.number] = item
        if len(self.items) > LIMIT:
            self.trim()
        return item

    def trim(self):
        for number in sorted(self.items)[: LIMIT // 10]:
            for tag in self.items.pop(number).tags:
                del self.by_tag[tag][number]

    def search(self, tag):
        found = list(self.by_tag.get(tag, {}).values())[-50:]
        return sorted(found, key=lambda item: (item.price, item.name))[:20]


def handle(store, method, path, body):
    kind, _, argument = path.strip("/").partition("/")
    if method == "POST" and kind == "items":
        return 201, store.add(json.loads(body)).as_json()
    if kind == "items":
        item = store.items.get(int(argument))
        return (200, item.as_json()) if item else (404, {"error": "no such item"})
    if kind == "search":
        found = store.search(argument)
        return 200, {"count": len(found), "items": [item.as_json() for item in found]}
    return 404, {"error": "no such page"}


async def serve(store, reader, writer):
    while True:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except asyncio.IncompleteReadError:
            break
        request, *fields = head.split("\r\n")
        method, path, _ = request.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields if field)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        status, answer = handle(store, method, path, body)
        written = json.dumps(answer).encode()
        writer.write(
            b"HTTP/1.1 %d Done\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
            % (status, len(written), written)
        )
        await writer.drain()
    writer.close()


async def main():
    store = Store()
    listener = socket.create_server(("127.0.0.1", 0))
    control = Control()
    server = await asyncio.start_server(lambda reader, writer: serve(store, reader, writer), sock=listener)
    control.ready(listener.getsockname()[1])
    # It is asked before that, too; and the bench says so when it has had all its answers.
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, control.wait)
    control.start()
    await loop.run_in_executor(None, control.wait)
    control.end()
    server.close()


asyncio.run(main())
