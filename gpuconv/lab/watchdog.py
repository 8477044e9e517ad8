"""Stops Python code that runs for too long, wherever it stands, at no cost while it does not."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable
from types import TracebackType

#: Seconds between two looks at the time, and without anything to watch until the thread that looks ends: launches
#: follow each other in fractions of a millisecond, and starting a thread for each would take longer than most of them.
_TICK, _PATIENCE = 0.05, 1.0


class TimeUp(BaseException):
    """Raised inside the code that took too long. Not an ``Exception``, so that no ``except Exception`` stops it."""


class Watchdog:
    """A context manager: what runs inside, in this operating system thread, gets a :class:`TimeUp` when time is up.

    Args:
        seconds: the time it has; None for ever.
        too_much: whether it has to stop earlier, which is asked now and then.
    """

    def __init__(self, seconds: float | None, too_much: Callable[[], bool] = lambda: False) -> None:
        self._seconds, self.too_much = seconds, too_much
        self.thread = 0
        self.deadline = 0.0
        self.fired = False

    def __enter__(self) -> Watchdog:
        if self._seconds is not None:
            self.thread, self.deadline = threading.get_ident(), time.monotonic() + self._seconds
            _guard.watch(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._seconds is None:
            return
        _guard.leave(self)  # from here on it is not raised any more
        if self.fired and kind is None:
            _raise_in(self.thread, None)  # it ended in the very moment: forget what is still to be raised


class _Guard:
    """The thread that looks at the time, as long as there is something to watch."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watched: set[Watchdog] = set()
        self._looking = False
        self._last = 0.0

    def watch(self, dog: Watchdog) -> None:
        with self._lock:
            self._watched.add(dog)
            started, self._looking = self._looking, True
        if not started:
            threading.Thread(target=self._look, name="gpuconv.lab.watchdog", daemon=True).start()

    def leave(self, dog: Watchdog) -> None:
        with self._lock:
            self._watched.discard(dog)
            self._last = time.monotonic()

    def _look(self) -> None:
        while True:
            with self._lock:
                now = time.monotonic()
                for dog in [dog for dog in self._watched if dog.deadline <= now or dog.too_much()]:
                    self._watched.discard(dog)
                    dog.fired = True
                    _raise_in(dog.thread, ctypes.py_object(TimeUp))
                if not self._watched and now > self._last + _PATIENCE:
                    self._looking = False
                    return
                wait = min([_TICK, *(dog.deadline - now for dog in self._watched)])
            time.sleep(wait)


_guard = _Guard()


def _forget() -> None:
    """In a process that was forked: the thread that looks at the time is not in it."""
    global _guard
    _guard = _Guard()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _raise_in(thread: int, error: ctypes.py_object[type[TimeUp]] | None) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), error)
