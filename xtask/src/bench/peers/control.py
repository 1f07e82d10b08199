"""A program's line to the bench: it says that it is ready, begins when it is told to, and tells what its work took.

Not by standard streams, which the tools around a program use too. A program whose bench is gone ends.
"""

import os
import socket
import sys
import time


def queued():
    """Seconds for which this thread waited for a processor: proc(5), `schedstat`."""
    with open("/proc/thread-self/schedstat") as file:
        return int(file.read().split()[1]) / 1e9


class Control:
    def __init__(self):
        host, _, port = sys.argv[1].rpartition(":")
        self.socket = socket.create_connection((host, int(port)))
        self.lines = self.socket.makefile("r")
        #: How many times the work is to be done.
        self.times = int(sys.argv[2])
        # A processor to stay on, where it is held against one beside it.
        if len(sys.argv) > 3:
            os.sched_setaffinity(0, {int(sys.argv[3])})

    def say(self, *words):
        self.socket.sendall((" ".join(map(str, words)) + "\n").encode())

    def wait(self):
        if not self.lines.readline():
            sys.exit("the bench is gone")

    def ready(self, port=0):
        """Says that it is there, and where it can be reached."""
        self.say("ready", os.getpid(), port)

    def begin(self):
        """Waits for the word, and starts the clocks."""
        self.wait()
        self.start()

    def start(self):
        """Starts the clocks, for who has waited in another way."""
        self.wall, self.cpu, self.queued = time.perf_counter(), time.process_time(), queued()

    def end(self):
        wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        self.say("took", wall, cpu, queued() - self.queued)
