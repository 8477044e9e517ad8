"""NumPy's arrays between pages that nobody may touch: see ``guard.c``."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

_SOURCE = Path(__file__).with_name("guard.c")
#: ``PyDataMem_SetHandler`` in the table of NumPy's C API.
_SET_HANDLER = 304

_library: ctypes.CDLL | None = None
_keep: list[object] = []


def unavailable() -> str | None:
    """Why there can be no guard pages here; None where there can."""
    if not sys.platform.startswith("linux"):
        return f"guard pages are written for Linux, not {sys.platform}"
    if os.sysconf("SC_PAGE_SIZE") != 4096:
        return "guard pages are written for pages of 4096 bytes"
    if shutil.which("cc") is None:
        return "guard pages need a C compiler, `cc`"
    return None


def begin() -> None:
    """Put all arrays that NumPy makes from now on, in this context, between guard pages."""
    global _library
    _library = ctypes.CDLL(str(_compiled()))
    if _library.guard_begin():
        raise MemoryError("guard: the range of addresses was refused")
    from numpy._core import _multiarray_umath as umath

    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    capsule = ctypes.pythonapi.PyCapsule_New
    capsule.restype, capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    table = ctypes.cast(pointer(umath._ARRAY_API, None), ctypes.POINTER(ctypes.c_void_p))
    handler = capsule(ctypes.addressof(ctypes.c_char.in_dll(_library, "guard_handler")), b"mem_handler", None)
    set_handler = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object)(table[_SET_HANDLER])
    _keep.extend([handler, set_handler(handler)])
    name = np._core.multiarray.get_handler_name(np.empty(3))  # type: ignore[attr-defined]
    assert name == "guard", name


def turn(value: int) -> None:
    """Which of the next arrays begin, and not end, at a guard page: makes a program's memory its own."""
    if _library is not None:
        _library.guard_turn(ctypes.c_size_t(value))


def _compiled() -> Path:
    """The library; compiled once for each version of the source."""
    digest = hashlib.sha256(_SOURCE.read_bytes()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"gpuconv-guard-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to somebody else")
    target = folder / f"{digest}.so"
    if not target.exists():
        made = folder / f"{digest}.{os.getpid()}.so"
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-pthread", "-o", made, _SOURCE], check=True)
        made.replace(target)
    return target
