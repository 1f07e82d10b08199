"""Workers of `multiprocessing`, started by fork."""
import multiprocessing

from _expected import Expected

COUNT = 400


def make(size):
    return "x" * size  # at: make


def worker(size):
    kept = [None] * COUNT
    for i in range(COUNT):
        kept[i] = make(size)  # at: worker
    expected = Expected(__file__)
    expected.stack([("worker", "worker"), ("make", "make")], COUNT, kept[0])
    expected.print()


def main():
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=worker, args=(size,)) for size in (100, 200, 1000)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()


if __name__ == "__main__":
    main()
