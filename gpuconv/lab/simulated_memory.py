"""Simulated device memory: a pool that reuses freed memory, as CuPy's does.

The simulator, and the replacement for CuPy in the tests, allocate their arrays here.

Memory is split, reused and joined as in ``cupy.cuda.MemoryPool``, in units of 512 bytes. A request takes the smallest
free piece that is large enough, on the stream that freed it, and leaves the rest free. Neighbouring pieces are joined
when both are free. Freed memory is overwritten (float32 and float64 become NaN, integers -1), so that code that still
reads it gets garbage, as on a GPU, and not by luck the old values.
"""

from __future__ import annotations

import bisect
import contextlib
import ctypes
import math
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import numpy as np

__all__ = ["Memory", "Pool", "allocating", "array_at", "default_pool", "empty"]

#: Bytes of which every piece is a multiple: ``cupy.cuda.memory._allocation_unit_size``.
UNIT = 512
_POISON = 0xFF


class _Piece:
    """A piece of memory, all of it in use or all of it free.

    Attributes:
        address, size: in bytes.
        stream: for which it was allocated; other streams do not get it.
        before, after: its neighbours in the same system allocation.
    """

    __slots__ = ("address", "after", "before", "free", "size", "stream")

    def __init__(self, address: int, size: int, stream: Any, before: _Piece | None = None, after: _Piece | None = None):
        self.address, self.size, self.stream = address, size, stream
        self.before, self.after, self.free = before, after, False


class Pool:
    """The memory of one device.

    Attributes:
        reused: how often freed memory was handed out again.
    """

    def __init__(self) -> None:
        self._system: list[np.ndarray] = []  # never given back: graphs and views without an owner point there
        self._used: dict[int, _Piece] = {}
        #: By stream: size and address of each free piece, in order, and the piece by its address.
        self._free: dict[Any, list[tuple[int, int]]] = {}
        self._pieces: dict[int, _Piece] = {}
        #: Addresses freed since the last allocation; the garbage collector may add some at any moment.
        self._returned: list[int] = []
        self._lock = threading.RLock()
        self.reused = 0

    @property
    def used(self) -> int:
        """Bytes in use."""
        with self._lock:
            self._take_back()
            return sum(piece.size for piece in self._used.values())

    def allocate(self, size: int, stream: Any = None) -> int:
        """Return the address of ``size`` uninitialised bytes."""
        with self._lock:
            self._take_back()
            return self._allocate(max(UNIT, -(-size // UNIT) * UNIT), stream)

    def free(self, address: int) -> None:
        """Take back what :meth:`allocate` returned; KeyError if it did not."""
        ctypes.memset(address, _POISON, self._used[address].size)
        self._returned.append(address)

    def _allocate(self, size: int, stream: Any) -> int:
        free = self._free.setdefault(stream, [])
        at = bisect.bisect_left(free, (size, 0))
        if at < len(free):
            piece = self._pieces.pop(free.pop(at)[1])
            self.reused += 1
            if piece.size > size:
                rest = _Piece(piece.address + size, piece.size - size, stream, piece, piece.after)
                if rest.after is not None:
                    rest.after.before = rest
                piece.after, piece.size = rest, size
                self._put(rest)
        else:
            memory = np.full(size + UNIT, _POISON, np.uint8)
            self._system.append(memory)
            piece = _Piece(-(-memory.ctypes.data // UNIT) * UNIT, size, stream)
        piece.free = False
        self._used[piece.address] = piece
        return piece.address

    def _take_back(self) -> None:
        while self._returned:
            self._join(self._used.pop(self._returned.pop(0)))

    def _join(self, piece: _Piece) -> None:
        """Mark a piece as free, and join it with free neighbours."""
        if (after := piece.after) is not None and after.free:
            self._take(after)
            piece.size, piece.after = piece.size + after.size, after.after
            if piece.after is not None:
                piece.after.before = piece
        if (before := piece.before) is not None and before.free:
            self._take(before)
            before.size, before.after = before.size + piece.size, piece.after
            if before.after is not None:
                before.after.before = before
            piece = before
        self._put(piece)

    def owns(self, address: int) -> bool:
        """Whether an address belongs to this pool, in use or free."""
        return any(m.ctypes.data <= address < m.ctypes.data + m.nbytes for m in self._system)

    def _put(self, piece: _Piece) -> None:
        piece.free = True
        bisect.insort(self._free.setdefault(piece.stream, []), (piece.size, piece.address))
        self._pieces[piece.address] = piece

    def _take(self, piece: _Piece) -> None:
        self._free[piece.stream].remove((piece.size, piece.address))
        del self._pieces[piece.address]
        piece.free = False


class Memory:
    """Pool memory of an array, held as its base and given back when the last view is gone."""

    def __init__(self, pool: Pool, shape: tuple[int, ...], dtype: np.dtype, stream: Any):
        self._pool, self.address = pool, pool.allocate(math.prod(shape) * dtype.itemsize, stream)
        self.__array_interface__ = {
            "shape": shape,
            "typestr": dtype.str,
            "data": (self.address, False),
            "version": 3,
        }

    def __del__(self) -> None:
        if _POISON is not None:  # when the interpreter ends, modules are emptied before the last arrays are given back
            self._pool.free(self.address)


_default = Pool()
_current: ContextVar[Pool] = ContextVar("gpuconv_simulated_pool", default=_default)


def default_pool() -> Pool:
    """The pool that arrays come from unless another one is chosen."""
    return _default


@contextlib.contextmanager
def allocating(pool: Pool) -> Iterator[None]:
    """Make :func:`empty` allocate from ``pool`` inside the ``with`` block, in this thread or task only."""
    token = _current.set(pool)
    try:
        yield
    finally:
        _current.reset(token)


def empty(shape: Any, dtype: Any = float, *, stream: Any = None) -> np.ndarray:
    """An array in memory of the current pool, which it gives back with its last view."""
    shape = tuple(shape) if isinstance(shape, (tuple, list)) else (int(shape),)
    dtype = np.dtype(dtype)
    array = np.asarray(Memory(_current.get(), shape, dtype, stream))
    return array if array.dtype == dtype else array.view(dtype)  # the interface has no word for bfloat16


def array_at(address: int, size: int, dtype: Any) -> np.ndarray:
    """The elements at an address, (size,): a view that keeps nothing alive, as a pointer does not."""
    dtype = np.dtype(dtype)
    if not size:
        return np.empty(0, dtype)
    memory = (ctypes.c_char * (size * dtype.itemsize)).from_address(address)
    return np.frombuffer(memory, dtype)
