"""A program's line to the bench: it says that it is ready, begins when it is told to, and tells what its work took.

Not by standard streams, which the tools around a program use too. A program whose bench is gone ends.
"""

import os
import socket
import sys
import time


class Control:
    def __init__(self):
        host, _, port = sys.argv[1].rpartition(":")
        self.socket = socket.create_connection((host, int(port)))
        self.lines = self.socket.makefile("r")
        #: How many times the work is to be done.
        self.times = int(sys.argv[2])

    def say(self, *words):
        self.socket.sendall((" ".join(map(str, words)) + "\n").encode())

    def wait(self):
        if not self.lines.readline():
            sys.exit("the bench is gone")

    def begin(self, port=0):
        """Says ready (and where it can be reached), waits for the word, and starts the clocks."""
        self.say("ready", os.getpid(), port)
        self.wait()
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def end(self):
        wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        self.say("took", wall, cpu)
