"""What takes long to make is made once, however many processes run tests."""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest


def made_once(folders: pytest.TempPathFactory, name: str, make: Callable[[], str]) -> str:
    """The text that `make` gives: the first process to ask makes it, and others wait for it and read it."""
    base = folders.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # each process has a folder there
    return kept(base / name, lambda: make().encode()).decode()


def kept(path: Path, make: Callable[[], bytes]) -> bytes:
    """What is in a file, which the first process to ask makes, and others wait for."""
    with open(f"{path}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            part = path.with_suffix(".part")  # a process that is stopped leaves no half of the file
            part.write_bytes(make())
            part.replace(path)
    return path.read_bytes()
