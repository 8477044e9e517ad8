"""Stops Python code that runs for too long, wherever it stands, at no cost while it does not."""

from __future__ import annotations

import ctypes
import threading
import time
from types import TracebackType


class TimeUp(BaseException):
    """Raised inside the code that took too long. Not an ``Exception``, so that no ``except Exception`` stops it."""


class Watchdog:
    """A context manager: what runs inside, in this operating system thread, gets a :class:`TimeUp` when time is up.

    Args:
        seconds: the time it has; None for ever.
    """

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._watched: int | None = None
        self._over = threading.Event()
        self._fired = False

    def __enter__(self) -> Watchdog:
        if self._seconds is not None:
            self._watched = threading.get_ident()
            threading.Thread(target=self._wait, args=(time.monotonic() + self._seconds,), daemon=True).start()
        return self

    def _wait(self, deadline: float) -> None:
        if not self._over.wait(max(0.0, deadline - time.monotonic())):
            with self._lock:
                if self._watched is not None:
                    self._fired = True
                    _raise_in(self._watched, ctypes.py_object(TimeUp))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._watched is None:
            return
        with self._lock:  # from here on it is not raised any more
            watched, self._watched = self._watched, None
        self._over.set()
        if self._fired and kind is None:
            _raise_in(watched, None)  # it ended in the very moment: forget what is still to be raised


def _raise_in(thread: int, error: ctypes.py_object[type[TimeUp]] | None) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), error)
