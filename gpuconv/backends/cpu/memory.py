"""Arrays whose memory is reused.

A training step allocates the same large arrays each time. The C library returns their memory to the operating system in
between, and getting it back page by page took a third of a step of LeNet. So the memory of an array that is no longer
used is kept here for the next one of the same size.

The pool keeps no more than one round of work needs: a request that it cannot serve means that the work has changed, so
it first releases all that it holds.
"""

from __future__ import annotations

import math

import numpy as np

#: Smallest size worth keeping; the C library keeps smaller pieces itself.
_LARGE = 64 << 10
_LINE = 64

#: For each size the unused pieces of memory, and the offset of the first cache line in each.
_kept: dict[int, list[tuple[np.ndarray, int]]] = {}


class _Loan:
    """The memory of an array, given to it through NumPy's array interface; freed with the array's last view."""

    __slots__ = ("__array_interface__", "_piece")

    def __init__(self, piece: tuple[np.ndarray, int], shape: tuple[int, ...], dtype: np.dtype):
        self._piece = piece
        self.__array_interface__ = {"version": 3, "shape": shape, "typestr": dtype.str, "data": (piece[1], False)}

    def __del__(self, kept: dict[int, list[tuple[np.ndarray, int]]] = _kept) -> None:
        kept.setdefault(self._piece[0].nbytes, []).append(self._piece)


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An uninitialised array; the memory of a large one may be reused."""
    size = math.prod(shape) * dtype.itemsize + _LINE
    if size < _LARGE:
        return np.empty(shape, dtype)
    try:
        piece = _kept[size].pop()
    except (KeyError, IndexError):  # none was ever kept, or all are in use
        _kept.clear()
        memory = np.empty(size, np.uint8)
        address = memory.ctypes.data
        piece = (memory, address + -address % _LINE)
    return np.asarray(_Loan(piece, shape, dtype))


def aligned_zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array of zeros that starts at a cache line, so that no full vector crosses two."""
    memory = np.zeros(math.prod(shape) * dtype.itemsize + _LINE, np.uint8)
    return np.ndarray(shape, dtype, memory, -memory.ctypes.data % _LINE)
