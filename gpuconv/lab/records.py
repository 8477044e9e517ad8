"""Types of elements. Records, as kernels see them: ``array[i].field`` and ``array[i]['field']`` are the same."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from gpuconv.lab.integers import Cast, seen, typed
from gpuconv.lab.traced_arrays import TracedRecord


def dtype_of(kind: Any) -> np.dtype[Any]:
    """NumPy's type of a type as a kernel names it, which may be one of Numba's."""
    if isinstance(kind, (type, np.dtype, str, Cast)):
        return np.dtype(kind)
    return _of_numba(kind)


@functools.cache
def _of_numba(kind: Any) -> np.dtype[Any]:
    try:
        mlir = type(kind).__module__.startswith("numba_cuda_mlir.")
        package = "numba_cuda_mlir.numba_cuda" if mlir else "numba.cuda"
        support = importlib.import_module(f"{package}.np.numpy_support")
    except ImportError:  # numba-cuda before 0.21
        support = importlib.import_module("numba.np.numpy_support")
    dtype: np.dtype[Any] = support.as_dtype(kind)
    return dtype


class Record(np.record):  # type: ignore[misc]  # final in NumPy's stubs only
    """A record, with its fields as attributes."""

    def __getattribute__(self, name: str) -> Any:
        return _field(super().__getattribute__(name))

    def __getitem__(self, name: Any) -> Any:
        return _field(super().__getitem__(name))


class Records(np.recarray[Any, Any]):
    """An array of records, with their fields as attributes."""

    def __array_finalize__(self, base: Any) -> None:
        if self.dtype.names is not None and self.dtype.type is not Record:
            object.__setattr__(self, "dtype", np.dtype((Record, self.dtype)))

    def __getattribute__(self, name: str) -> Any:
        return _field(super().__getattribute__(name))

    def __getitem__(self, index: Any) -> Any:
        return _field(super().__getitem__(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        if isinstance(value, TracedRecord):
            value = value.whole(sys._getframe(1))
        super().__setitem__(index, value)


def _field(value: Any) -> Any:
    return seen(value) if isinstance(value, np.ndarray) else typed(value)


def as_seen(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """An array as a kernel sees it: a view of integers, or of records with their fields as attributes, or the same."""
    return seen(array) if array.dtype.names is None else array.view(Records)


def as_argument(record: np.void) -> tuple[Any, Callable[[], None]]:
    """A record for a kernel, and a function that writes what became of it back."""
    copy = np.zeros(1, record.dtype)
    copy[0] = record

    def give_back() -> None:
        for name in record.dtype.names or ():
            record[name] = copy[name][0]

    return copy.view(Records)[0], give_back
