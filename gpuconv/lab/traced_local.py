"""Local arrays during a trace. No other thread reaches them: bounds, and what was written, are watched."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import CodeType, EllipsisType, FrameType, NoneType
from typing import Any, Protocol

import numpy as np

from gpuconv.lab.integers import Integers, TypedIntegers
from gpuconv.lab.places import Array, Site, site, site_name
from gpuconv.lab.traced_arrays import READ, WRITE, poison


class _Tracer(Protocol):
    out_of_bounds: Callable[[Any, int, Any, Site], None]
    negative_index: Callable[[Any, int, Any, Site], None]
    unwritten_local: Callable[[Any, Any, Site], None]


# Most of a trace's time is spent in the methods below: what they call, they find at once.


def _reading(get: Callable[[Any, Any], Any]) -> Any:
    """The method that reads, with what it reads by."""

    def __getitem__(self: Any, index: Any) -> Any:
        try:
            value = get(self, index)
        except IndexError:
            self._outside(READ, index, sys._getframe(1))
            return poison(self.dtype)
        written = self._written
        if isinstance(value, TracedLocal):
            value._written = None if written is None else written[index]
            return value
        if written is not None and not written[index]:
            frame = sys._getframe(1)
            assert self._tracer is not None
            self._tracer.unwritten_local(self, index, site(frame.f_code, frame.f_lasti))
        if (min(index) if type(index) is tuple else index) < 0:
            self._from_the_end(READ, index, sys._getframe(1))
        return value

    return __getitem__


def _writing(put: Callable[[Any, Any, Any], None]) -> Any:
    """The method that writes, with what it writes by."""

    def __setitem__(self: Any, index: Any, value: Any) -> None:
        try:
            put(self, index, value)
        except IndexError:
            self._outside(WRITE, index, sys._getframe(1))
            return
        if self._written is not None:
            self._written[index] = True
        if index < 0 if type(index) is int else _is_negative(index):
            self._from_the_end(WRITE, index, sys._getframe(1))

    return __setitem__


class TracedLocal(np.ndarray[Any, Any]):
    """A local array, or a view of one. Views of another type or shape only have their bounds watched."""

    _tracer: _Tracer | None = None
    #: The instruction that made it.
    _made: Site | None = None
    #: Which elements the thread has written.
    _written: Array | None = None

    @classmethod
    def of(cls, array: Array, tracer: Any, where: Site) -> TracedLocal:
        """A local array that nobody has written, and the instruction that made it."""
        local = array.view(TracedLocalIntegers if array.dtype.kind in "iu" else cls)
        local._tracer, local._made, local._written = tracer, where, np.zeros(array.shape, bool)
        return local

    def __array_finalize__(self, base: Any) -> None:
        if isinstance(base, TracedLocal):
            self._tracer, self._made = base._tracer, base._made

    @property
    def name(self) -> str:
        """What reports call it."""
        return "local array" if self._made is None else f"local array of {site_name(self._made)}"

    __getitem__, __setitem__ = _reading(np.ndarray.__getitem__), _writing(np.ndarray.__setitem__)

    def told(self, kind: int, offsets: Sequence[int], place: tuple[CodeType, int]) -> None:
        """Note an access of code that is not Python, to the elements at byte offsets."""
        if kind == WRITE and self._written is not None and self.flags.c_contiguous:
            self._written.reshape(-1)[[offset // self.itemsize for offset in offsets]] = True

    def _outside(self, kind: int, index: Any, frame: FrameType) -> None:
        if self._tracer is not None:
            self._tracer.out_of_bounds(self, kind, index, site(frame.f_code, frame.f_lasti))

    def _from_the_end(self, kind: int, index: Any, frame: FrameType) -> None:
        if self._tracer is not None:
            self._tracer.negative_index(self, kind, index, site(frame.f_code, frame.f_lasti))


def _is_negative(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return any(not isinstance(part, (slice, EllipsisType, NoneType)) and part < 0 for part in parts)


class TracedLocalIntegers(TracedLocal):
    """The same, of integers."""

    __getitem__, __setitem__ = _reading(TypedIntegers.__getitem__), _writing(Integers.__setitem__)
