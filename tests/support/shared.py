"""What takes long to make is made once, however many processes run tests."""

import fcntl
import os
from collections.abc import Callable

import pytest


def made_once(folders: pytest.TempPathFactory, name: str, make: Callable[[], str]) -> str:
    """The text that `make` gives: the first process to ask makes it, and others wait for it and read it."""
    base = folders.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # each process has a folder there
    path = base / name
    with open(base / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            path.write_text(make(), encoding="utf-8")
    return path.read_text(encoding="utf-8")
