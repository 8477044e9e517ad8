"""Ctrl-C and SIGTERM during a run: the current step is finished first."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

#: The signals that end a run.
STOPPING = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """Context manager that records the first SIGINT or SIGTERM, and restores its old handler for the second."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in STOPPING:
                # An ignored signal (nohup, a background job) stays ignored; None: a handler that is not Python's.
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._previous[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore()

    def _restore(self) -> None:
        while self._previous:
            number, handler = self._previous.popitem()
            signal.signal(number, handler)

    def __exit__(self, *exc_info: object) -> None:
        self._restore()
