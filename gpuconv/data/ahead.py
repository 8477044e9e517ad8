"""Results computed ahead by threads, and taken in order."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

__all__ = ["Ahead", "default_workers"]

_T = TypeVar("_T")
_CHECK_EVERY = 0.5  # seconds between two looks at whether the workers live


def default_workers() -> int:
    """Threads that load pictures unless another number is asked for: one a core, four at most."""
    return min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


class Ahead(Generic[_T]):
    """``make(number)`` for each number, computed by threads before it is asked for; the order is that of the numbers.

    Threads suffice for pictures: Pillow decodes without holding the interpreter's lock, and NumPy copies without it.
    What ``make`` raises is raised where its result would have been, and ends the iteration. The threads are daemons: a
    process that ends, by Ctrl-C for instance, does not wait for them.

    Args:
        make: called with each number once, in any thread.
        numbers: in the order of the results.
        workers: threads; with 0 each result is computed when it is asked for.
        ahead: results that may be waiting or under way, at least 1; two a thread by default.
    """

    def __init__(
        self, make: Callable[[int], _T], numbers: Sequence[int], workers: int | None = None, ahead: int | None = None
    ):
        workers = default_workers() if workers is None else workers
        workers = min(workers, len(numbers))
        self._work = _Work(make, numbers, ahead or max(1, 2 * workers))
        self._threads = [threading.Thread(target=self._work.run, daemon=True) for _ in range(workers)]
        for thread in self._threads:
            thread.start()

    def __iter__(self) -> Iterator[_T]:
        return self

    def __next__(self) -> _T:
        work = self._work
        if work.taken == len(work.numbers) or work.stopped:
            raise StopIteration
        if not self._threads:
            work.taken += 1
            return work.make(work.numbers[work.taken - 1])
        with work.changed:
            while work.taken not in work.results:
                if not any(thread.is_alive() for thread in self._threads) and work.taken not in work.results:
                    raise RuntimeError("the threads that load data have died; nothing is left to wait for")
                work.changed.wait(_CHECK_EVERY)
            result, error = work.results.pop(work.taken)
            work.taken += 1
            work.changed.notify_all()
        if error is not None:
            self.close()
            raise error
        return result

    def close(self) -> None:
        """Have the threads end after what they are at; nothing more comes."""
        with self._work.changed:
            self._work.stopped = True
            self._work.changed.notify_all()

    def __del__(self) -> None:
        # The threads know the work, but not this object: it can be collected while they wait.
        if hasattr(self, "_work"):
            self.close()


class _Work(Generic[_T]):
    """What the threads share."""

    def __init__(self, make: Callable[[int], _T], numbers: Sequence[int], ahead: int):
        self.make, self.numbers, self.ahead = make, numbers, ahead
        self.changed = threading.Condition()
        self.begun = self.taken = 0  # positions among the numbers
        self.results: dict[int, tuple[Any, BaseException | None]] = {}
        self.stopped = False

    def run(self) -> None:
        while True:
            with self.changed:
                while not self.stopped and self.begun - self.taken >= self.ahead:
                    self.changed.wait()
                if self.stopped or self.begun == len(self.numbers):
                    return
                position = self.begun
                self.begun += 1
            result: tuple[Any, BaseException | None]
            try:
                result = self.make(self.numbers[position]), None
            except BaseException as error:  # whatever it is: who waits for the result gets it
                result = None, error
            with self.changed:
                self.results[position] = result
                self.changed.notify_all()
