"""Four threads at once, each in a function of its own."""
import threading

from _expected import Expected

COUNT = 400
kept = {}
start = threading.Barrier(4)


def make(size):
    return "x" * size  # at: make


def red():
    start.wait()
    for_red = kept["red"] = [None] * COUNT
    for i in range(COUNT):
        for_red[i] = make(100)  # at: red


def green():
    start.wait()
    for_green = kept["green"] = [None] * COUNT
    for i in range(COUNT):
        for_green[i] = make(200)  # at: green


def blue():
    start.wait()
    for_blue = kept["blue"] = [None] * COUNT
    for i in range(COUNT):
        for_blue[i] = make(300)  # at: blue


def grey():
    start.wait()
    for_grey = kept["grey"] = [None] * COUNT
    for i in range(COUNT):
        for_grey[i] = make(1000)  # at: grey


def main():
    threads = [threading.Thread(target=target) for target in (red, green, blue, grey)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


main()

expected = Expected(__file__)
for colour in kept:
    expected.stack([(colour, colour), ("make", "make")], COUNT, kept[colour][0])
expected.print()
