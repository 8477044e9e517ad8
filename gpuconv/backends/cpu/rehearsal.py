"""Compiles the kernels of a step in two processes.

Where no kernel is on disk yet, compiling those of LeNet takes longer than its first epoch, and Numba compiles one at a
time. Which ones a step needs shows only when it runs. So a second process runs it without computing anything, notes the
kernels, and compiles them from the last one on, while the first process runs the step and compiles them from the first.
Where they meet, it finds the others on disk.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection

from gpuconv.backends.cpu import compile, threads

__all__ = ["compiling_ahead"]

logger = logging.getLogger("gpuconv.backends")


@contextlib.contextmanager
def compiling_ahead(*steps: Callable[[], object]) -> Iterator[None]:
    """If a kernel has to be compiled inside the ``with`` block, a second process helps with those of the steps.

    Args:
        steps: they run in a copy of this process, where nothing is computed: what their kernels would write is not
            initialised. They need no threads, which are not copied.

    Without ``fork``, or with a single core, nothing helps.
    """
    # On macOS a copy of a process must not use the system's libraries.
    if not hasattr(os, "fork") or sys.platform == "darwin" or (os.cpu_count() or 1) < 2:
        yield
        return
    waiting, asking = multiprocessing.Pipe(duplex=False)
    helper = multiprocessing.get_context("fork").Process(target=_help, args=(waiting, asking, steps), daemon=True)
    with warnings.catch_warnings():
        # Python warns of locks that another thread holds in the moment of the copy. Nobody waits for the helper.
        warnings.simplefilter("ignore", DeprecationWarning)
        helper.start()
    waiting.close()

    def ask() -> None:
        with contextlib.suppress(OSError):
            asking.send_bytes(b"compile")
        compile.on_missing.remove(ask)

    compile.on_missing.append(ask)
    try:
        yield
    finally:
        if ask in compile.on_missing:
            compile.on_missing.remove(ask)
        asking.close()  # which ends it, when it has written the code that it is compiling


def _help(waiting: Connection, asking: Connection, steps: tuple[Callable[[], object], ...]) -> None:
    """What the second process does."""
    asking.close()  # so that the first one is the only one that has it open, and its end is noticed
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to both
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    compile.on_missing.clear()
    logger.disabled = True  # the first process says what there is to say
    try:
        waiting.recv_bytes()
    except EOFError:
        return
    for step in steps:
        for kernel in reversed(_noted(step)):
            if waiting.poll():
                return
            kernel.compile()


def _noted(step: Callable[[], object]) -> list[compile.Kernel]:
    """The kernels that a step launches, each once, in order; if it fails on what is not initialised, those before."""
    threads.rehearsal = []
    with warnings.catch_warnings(), contextlib.suppress(Exception):
        warnings.simplefilter("ignore")
        step()
    kernels, threads.rehearsal = threads.rehearsal, None
    return list(dict.fromkeys(kernels))
