"""Coroutines in tasks: the stack of an awaited coroutine leads through the one that awaits it."""
import asyncio

from _expected import Expected

COUNT = 400
kept = [None] * COUNT


async def leaf(size):
    await asyncio.sleep(0)
    return "x" * size  # at: leaf


async def task(slot):
    kept[slot] = await leaf(100)  # at: task


async def main():
    await asyncio.gather(*[task(slot) for slot in range(COUNT)])


asyncio.run(main())

expected = Expected(__file__)
expected.stack([("task", "task"), ("leaf", "leaf")], COUNT, kept[0])
expected.print()
