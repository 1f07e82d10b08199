"""The worst for a tool that looks at every large block: nothing but large blocks, taken and dropped, as fast as can be."""

from control import Control

BLOCKS = 15_000_000


def work(times):
    for _ in range(times * BLOCKS):
        bytes(700)


control = Control()
control.ready()
control.begin()
work(control.times)
control.end()
