"""Arrays whose memory is reused.

A training step allocates the same large arrays each time. The C library returns their memory to the operating system in
between, and getting it back page by page took a third of a step of LeNet. So the memory of an array that is no longer
used is kept here for the next one of the same size.

The pool keeps no more than one round of work needs: a request that it cannot serve means that the work has changed, so
it first releases all that it holds.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from gpuconv.backends import host_graph

#: Smallest size worth keeping; the C library keeps smaller pieces itself.
_LARGE = 64 << 10
_LINE = 64

#: Unused pieces of memory by their size, each with the address of its first cache line.
_Pieces = dict[int, list[tuple[np.ndarray, int]]]

_kept: _Pieces = {}


class _Loan:
    """The memory of an array, given to it through NumPy's array interface; freed with the array's last view."""

    __slots__ = ("__array_interface__", "__weakref__", "_kept", "_piece")

    def __init__(self, kept: _Pieces, piece: tuple[np.ndarray, int], shape: tuple[int, ...], dtype: np.dtype):
        self._kept, self._piece = kept, piece
        self.__array_interface__ = {"version": 3, "shape": shape, "typestr": dtype.str, "data": (piece[1], False)}

    def __del__(self) -> None:
        self._kept.setdefault(self._piece[0].nbytes, []).append(self._piece)


def _piece(size: int) -> tuple[np.ndarray, int]:
    memory = np.empty(size, np.uint8)
    address = memory.ctypes.data
    return memory, address + -address % _LINE


def empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An uninitialised array; the memory of a large one may be reused. In a captured step it is the step's."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize + _LINE
    if (scope := host_graph.scope()) is not None:
        array = scope.memory.empty(shape, dtype, size)
        scope.allocated(array)
        return array
    if size < _LARGE:
        return np.empty(shape, dtype)
    try:
        piece = _kept[size].pop()
    except (KeyError, IndexError):  # none was ever kept, or all are in use
        _kept.clear()
        piece = _piece(size)
    return np.asarray(_Loan(_kept, piece, shape, dtype))


def lasting(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An uninitialised array in memory of its own, for what outlives the step, as a parameter's gradient does."""
    return np.empty(shape, dtype) if host_graph.scope() is None else empty(shape, dtype)


class StepMemory:
    """Memory of a captured step. What the step frees is used again by what it allocates later, as each repetition does
    the same in the same order; nobody else gets it.
    """

    def __init__(self) -> None:
        self._unused: _Pieces = {}
        self._pieces: list[tuple[np.ndarray, int]] = []

    def empty(self, shape: tuple[int, ...], dtype: np.dtype, size: int) -> np.ndarray:
        """An uninitialised array that takes ``size`` bytes."""
        unused = self._unused.get(size)
        if unused:
            piece = unused.pop()
        else:
            piece = _piece(size)
            self._pieces.append(piece)
        return np.asarray(_Loan(self._unused, piece, shape, dtype))

    def owns(self, array: np.ndarray) -> bool:
        """Whether an array lies here."""
        address = array.ctypes.data
        return any(start <= address < start + memory.nbytes - _LINE for memory, start in self._pieces)


def aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An uninitialised array that starts at a cache line, so that no full vector crosses two."""
    size = math.prod(shape) * np.dtype(dtype).itemsize + _LINE
    if size >= _LARGE or host_graph.scope() is not None:
        return empty(shape, dtype)
    memory = np.empty(size, np.uint8)
    return np.ndarray(shape, dtype, memory, -memory.ctypes.data % _LINE)


@functools.lru_cache(maxsize=256)
def constant_zeros(size: int, dtype: np.dtype) -> np.ndarray:
    """Zeros that nobody may write."""
    return host_graph.constant(np.zeros(size, dtype))


@functools.lru_cache(maxsize=256)
def constant_ones(size: int, dtype: np.dtype) -> np.ndarray:
    """Ones that nobody may write."""
    return host_graph.constant(np.ones(size, dtype))
