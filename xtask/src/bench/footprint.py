"""A worker of a service that is moderately busy: some requests at every tick, most of what they make is dropped, some is cached.

Says `ready`, begins at a line of input and ends at the next one; prints the processor time that it took, in seconds.
"""

import json
import random
import select
import sys
import time

TICK = 0.1
REQUESTS = 5
CACHED = 2000


def request(cache, number):
    body = json.dumps({"id": number, "tags": ["t%d" % (number % 9), "u%d" % (number % 5)], "values": list(range(40))})
    fields = json.loads(body)
    cache[number % CACHED] = {"id": fields["id"], "name": "item %d" % number, "tags": fields["tags"]}
    found = [item for item in cache if item and item["id"] % 97 == number % 97]
    return json.dumps(sorted(found, key=lambda item: item["name"]))


def main():
    cache = [None] * CACHED
    # What an application is: modules and data that were there before.
    kept = [{"row": i, "text": "row %d" % i} for i in range(20_000)]
    print("ready", flush=True)
    sys.stdin.readline()
    # Workers do not tick together.
    time.sleep(random.random() * TICK)
    start = time.process_time()
    number = 0
    while not select.select([sys.stdin], [], [], TICK)[0]:
        for _ in range(REQUESTS):
            number += 1
            request(cache, number)
    print(time.process_time() - start, flush=True)
    return kept


main()
