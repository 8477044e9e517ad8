"""The available backends, and which one an operation runs on.

The first of these decides: the arrays (those on a GPU run on ``cuda``); :func:`use_backend`; the environment variable
``GPUCONV_BACKEND``; ``auto``, which is the first available of cuda (if there is a real device), numba and numpy. If a
backend that was asked for by name cannot run, that is an error that says why; there is no silent fallback.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np

from gpuconv.arrays import Stream, on_device, stream_handle
from gpuconv.backends.base import Array, Backend, BackendUnavailable
from gpuconv.names import did_you_mean

__all__ = [
    "Array",
    "Backend",
    "BackendUnavailable",
    "Stream",
    "available",
    "current",
    "current_stream",
    "get",
    "names",
    "use_backend",
    "use_stream",
]

#: name -> module and class, in the order in which ``auto`` tries them. A module is imported when it is first used.
_TABLE = {
    "cuda": ("gpuconv.backends.cuda.backend", "CudaBackend"),
    "numba": ("gpuconv.backends.cpu.backend", "NumbaBackend"),
    "numpy": ("gpuconv.backends.numpy_backend", "NumpyBackend"),
}
AUTO = "auto"
ENVIRONMENT_VARIABLE = "GPUCONV_BACKEND"

_chosen: ContextVar[Backend | None] = ContextVar("gpuconv_backend", default=None)


def names() -> tuple[str, ...]:
    """Names of all backends, available or not, in the order in which ``auto`` tries them."""
    return tuple(_TABLE)


def _checked(name: str, source: str) -> str:
    if name not in _TABLE and name != AUTO:
        known = [*_TABLE, AUTO]
        there_are = f"there are {', '.join(known)}{did_you_mean(name, known)}"
        raise ValueError(f"{source}: unknown backend {name!r}; {there_are}")
    return name


@functools.cache
def _load(name: str) -> type[Backend] | str:
    """The backend's class, or the reason why it cannot be used here."""
    module_name, class_name = _TABLE[name]
    if importlib.util.find_spec(module_name) is None:
        return "not part of this version of gpuconv"
    try:
        backend: type[Backend] = getattr(importlib.import_module(module_name), class_name)
    except ImportError as error:
        return f"cannot be imported: {error}"
    return backend.unavailable() or backend


def available() -> dict[str, str | None]:
    """For each backend None if it can run here, else one line that says why it cannot."""
    return {name: found if isinstance(found := _load(name), str) else None for name in _TABLE}


@functools.cache
def _instance(name: str) -> Backend:
    backend = _load(name)
    if isinstance(backend, str):
        raise BackendUnavailable(f"the {name} backend is not available: {backend}")
    return backend()


@functools.cache
def _automatic() -> str:
    for name in _TABLE:
        backend = _load(name)
        if not isinstance(backend, str) and backend.automatic():
            return name
    raise BackendUnavailable("no backend is available")  # pragma: no cover - numpy always is


def get(name: str) -> Backend:
    """Return a backend by name (``auto`` included).

    Raises:
        ValueError: no such name; the nearest one is suggested.
        BackendUnavailable: it cannot run here; the message says why.
    """
    _checked(name, "backend")
    return _instance(_automatic() if name == AUTO else name)


@contextmanager
def use_backend(name: str | Backend) -> Iterator[Backend]:
    """Run the operations of a ``with`` block on the backend ``name``, in this thread or task only.

    A :class:`Backend` instance of your own may be given too.

    Raises:
        ValueError: no such name.
        BackendUnavailable: it cannot run here.
    """
    backend = name if isinstance(name, Backend) else get(name)
    token = _chosen.set(backend)
    try:
        yield backend
    finally:
        _chosen.reset(token)


@contextmanager
def use_stream(stream: Any) -> Iterator[Stream]:
    """Queue the GPU work of a ``with`` block on ``stream``, in this thread only.

    The stream becomes CuPy's current stream, so the work runs in order with everything else that is queued on it. It
    does not wait for other streams. If another stream is still computing an input, make this one wait, for example with
    ``cupy.cuda.Stream.wait_event``; arrays that come from other libraries by DLPack are waited for. In the simulator,
    which computes at once, streams make no difference.

    Args:
        stream: an object with ``__cuda_stream__``, a stream of CuPy or PyTorch, or the address of a ``cudaStream_t``,
            on the current device. It is kept alive until the block ends.

    Raises:
        TypeError: not a stream.
        ValueError: a version of ``__cuda_stream__`` other than 0, or an invalid address.
        BackendUnavailable: there is no GPU; the message says why.
    """
    handle = stream_handle(stream)
    backend: Any = _instance("cuda")
    if backend.simulated:
        yield Stream(handle)
        return
    xp = backend.xp
    with xp.cuda.ExternalStream(handle, xp.cuda.runtime.getDevice()):
        yield Stream(handle)


def current_stream() -> Stream:
    """The stream on which GPU work is queued now: CuPy's current stream, in a form that other libraries take.

    Raises:
        BackendUnavailable: there is no GPU; the message says why.
    """
    backend: Any = _instance("cuda")
    return Stream(backend.current_stream())


def current(*arrays: Any) -> Backend:
    """The backend on which an operation on these arrays runs; the module's docstring says how it is chosen.

    Raises:
        ValueError: ``GPUCONV_BACKEND`` holds an unknown name.
        BackendUnavailable: the backend that was asked for cannot run here.
    """
    chosen = _chosen.get()
    if any([_on_device(array) for array in arrays]):
        return chosen if chosen is not None and chosen.name == "cuda" else _instance("cuda")
    if chosen is not None:
        return chosen
    name = os.environ.get(ENVIRONMENT_VARIABLE) or AUTO
    return _instance(_automatic() if _checked(name, ENVIRONMENT_VARIABLE) == AUTO else name)


def _on_device(array: Any) -> bool:
    kind = type(array)
    if kind is np.ndarray or array is None:
        return False
    # CuPy arrays are always on a device, and their interface is slow to ask for: it is built anew each time.
    return kind.__module__.startswith("cupy") or on_device(array)
