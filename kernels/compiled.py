"""Kernels are compiled once for each set of arguments, and kept on disk for later processes.

Compiling takes about a second for a kernel, loading a compiled one some milliseconds. A function that makes a kernel is
decorated with :func:`specialised`::

    @specialised
    def _kernel(geometry, tiling, dtype):
        @jit(launch_bounds=tiling.threads)
        def relu(x, out, elements): ...
        return relu

**Why not numba-cuda's ``cache=True``** (as of 0.30.4). It looks a kernel up by the pickled values of its closure, but
intrinsics and nested functions pickle differently in every process, so these kernels would never be found again. Its
key does not include what a kernel calls in other files, nor constants or launch bounds. And it raises an error if the
cache is damaged or cannot be written.

**The key of a file** is: the function that makes the kernel, and its arguments; the source text of its file, of the
files of this folder and of ``gpuconv.geometry``; the types of the kernel's arguments, options and compute capability;
the versions of CUDA, numba-cuda, Numba, llvmlite and Python. So nothing has to be invalidated, and any file may be
deleted at any time. Files that only describe operations and make launches (:data:`UNREAD`) are left out: they affect a
kernel through the arguments alone.

Files are in ``$GPUCONV_CACHE``, else in ``~/.cache/gpuconv/kernels`` (with ``$XDG_CACHE_HOME``, or on Windows
``%LOCALAPPDATA%``, in place of ``~/.cache``). They are pickles: do not let anybody write there whose code you would not
run.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import importlib.metadata
import inspect
import os
import pickle
import sys
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from gpuconv import geometry
from gpuconv.kernels.device import SIMULATED

__all__ = ["CACHE_VARIABLE", "folder", "specialised"]

CACHE_VARIABLE = "GPUCONV_CACHE"


#: Files of this folder on which no kernel's code depends.
UNREAD = frozenset({"__init__.py", "driver.py", "operations.py", "variant.py"})


def folder() -> Path:
    """The folder of compiled kernels; it may not exist yet."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or "~/.cache"
    return Path(base).expanduser() / "gpuconv" / "kernels"


def specialised(factory: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator for a function that makes a kernel, compiled once for each set of arguments, also across processes.

    The kernel must depend only on the arguments, on the file in which the function is defined, and on this folder.
    Arguments are numbers, strings, None, and tuples and dataclasses of these.

    Raises:
        TypeError: at the call, for other arguments: what they refer to could change without being noticed.
    """
    # Read now, because the files may be edited while this process runs the code that it has loaded.
    sources = None if SIMULATED else _digest(factory)

    @functools.cache
    @functools.wraps(factory)
    def make(*arguments: Any) -> Any:
        _check(factory, arguments)
        kernel = factory(*arguments)
        if sources is not None:
            kernel._cache = _Disk(f"{factory.__module__}.{factory.__qualname__}", repr(arguments), sources, kernel)
        return kernel

    return make


def _check(factory: Callable[..., Any], values: Iterable[Any]) -> None:
    for value in values:
        if isinstance(value, tuple):
            _check(factory, value)
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            _check(factory, (getattr(value, field.name) for field in dataclasses.fields(value)))
        elif not isinstance(value, (bool, int, float, str, type(None))):
            raise TypeError(
                f"{factory.__module__}.{factory.__qualname__}: arguments must be numbers, strings, None, or tuples and "
                f"dataclasses of these, got {type(value).__name__}"
            )


def _digest(factory: Callable[..., Any]) -> str | None:
    """Of the files that a kernel depends on; None where one cannot be read, as of what was typed into a notebook."""
    own = inspect.getsourcefile(factory)
    try:
        here = Path(__file__).parent
        files = {path for path in here.rglob("*.py") if path.parent != here or path.name not in UNREAD}
        files |= {Path(inspect.getfile(geometry)), Path(own or "")}
        digest = hashlib.sha256()
        for content in sorted(path.read_bytes() for path in files):
            digest.update(hashlib.sha256(content).digest())
    except OSError:
        return None
    return digest.hexdigest()


class _Disk:
    """The cache that numba-cuda's dispatcher asks before it compiles, and tells what it has compiled."""

    def __init__(self, name: str, arguments: str, sources: str, kernel: Any):
        self._name = name.rpartition(".kernels.")[2]
        packages = ("numba-cuda", "numba", "llvmlite")
        versions = [importlib.metadata.version(package) for package in packages]
        self._parts = [name, arguments, sources, repr(sorted(kernel.targetoptions.items())), sys.version, *versions]

    @property
    def cache_path(self) -> str:
        return str(folder())

    def _path(self, signature: Any, codegen: Any) -> Path:
        # The tuple has the versions of CUDA and the compute capability.
        key = "\0".join([*self._parts, str(signature), repr(codegen.magic_tuple())])
        return folder() / f"{self._name}-{hashlib.sha256(key.encode()).hexdigest()[:32]}.kernel"

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        """The compiled kernel, or None."""
        # Whatever is wrong with a file (zlib notices if it is cut short), the kernel is compiled again and replaces it.
        try:
            payload = pickle.loads(zlib.decompress(self._path(signature, target_context.codegen()).read_bytes()))
            return importlib.import_module("numba.cuda.dispatcher")._Kernel._rebuild(**payload)
        except Exception:
            return None

    def save_overload(self, signature: Any, kernel: Any) -> None:
        """Store a compiled kernel. If that fails, warn, because every process will compile it again."""
        try:
            dumps = importlib.import_module("numba.cuda.serialize").dumps
            path = self._path(signature, kernel.codegen)
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # In one step: other processes may be reading or writing the same file.
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
                file.write(zlib.compress(dumps(kernel._reduce_states())))
            os.replace(file.name, path)
        except Exception as error:
            warnings.warn(
                f"compiled kernels cannot be kept in {folder()} ({type(error).__name__}: {error}), so every process "
                f"compiles them again; {CACHE_VARIABLE} names another folder",
                RuntimeWarning,
                stacklevel=2,
            )

    def flush(self) -> None:
        """Nothing to do: files are found by content."""
