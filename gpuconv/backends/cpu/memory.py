"""Arrays whose memory is used again.

A training step allocates the same large arrays each time. The allocator of the C library gives them back to the
operating system in between, and fetching them anew, page by page, took a third of a step of LeNet. So here the memory
of an array that nobody holds any more is kept for the next one of the same size.

What is kept stays within what one round of work needs: a request that cannot be served means that the work has changed,
and gives all that is kept back first.
"""

from __future__ import annotations

import math

import numpy as np

#: Bytes from which it pays; the C library keeps smaller pieces itself.
_LARGE = 64 << 10
_LINE = 64

#: For each size the pieces of memory that nobody uses, and where in them a cache line begins.
_kept: dict[int, list[tuple[np.ndarray, int]]] = {}


class _Loan:
    """What an array lies in, through NumPy's array interface: it goes when the array and all views of it are gone."""

    __slots__ = ("__array_interface__", "_piece")

    def __init__(self, piece: tuple[np.ndarray, int], shape: tuple[int, ...], dtype: np.dtype):
        self._piece = piece
        self.__array_interface__ = {"version": 3, "shape": shape, "typestr": dtype.str, "data": (piece[1], False)}

    def __del__(self, kept: dict[int, list[tuple[np.ndarray, int]]] = _kept) -> None:
        kept.setdefault(self._piece[0].nbytes, []).append(self._piece)


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An uninitialised array; a large one perhaps in memory that was another array's."""
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
    """An array of zeros that begins at a cache line: whole vectors of it never lie across two."""
    memory = np.zeros(math.prod(shape) * dtype.itemsize + _LINE, np.uint8)
    return np.ndarray(shape, dtype, memory, -memory.ctypes.data % _LINE)
