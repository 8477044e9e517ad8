"""Integers as kernels compute with them: with the types that Numba infers, which are not NumPy's.

Numba computes in 64 bits (its enhancement proposal 1, "Changes in integer typing", and ``typing/builtins.py``): two
unsigned operands give a uint64, all others an int64, which a uint64 beside an int64 gives as well. The left operand
alone decides the type of a shift. ``-x`` and ``~x`` are computed with the bits of ``x``, and widened. Beside a float32,
an int8, uint8 or int16 becomes a float32, any other integer a float64. A uint64 is compared with signed integers in
float64. What is stored is cut off. (Powers go through float64, and are rounded to 53 bits: not here.)

NumPy's int64 does almost all of this. So what is loaded from an array of fewer bits is an int64 that knows its type,
and differs where its own type matters: of a class below. Numbers of Python count as int64, or uint64 if they are too
large for that.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

_MASK = 2**64 - 1


class Int32(np.int64):
    """Of an int32: it computes as an int64 does."""

    __slots__ = ()
    stands_for, width, unsigned = np.int32, 32, False


def _class(name: str, base: Any, *, unsigned: bool, float16: Any = np.float64, float32: Any = np.float64) -> Any:
    """A class of numbers with operators of its own. (NumPy crashes on numbers of a class with two bases.)

    Args:
        name: of the type, and its bits.
        base: what holds them. That of the narrow ones is Int32, which so leaves operators to them.
        unsigned: whether the type is.
        float16, float32: what an operation with such a number gives.
    """
    contents = {
        "__slots__": (),
        "__module__": __name__,
        "__array_priority__": 1000.0,  # NumPy's own numbers leave operators to it
        "stands_for": getattr(np, name.lower()),
        "width": 8 * np.dtype(name.lower()).itemsize,
        "unsigned": unsigned,
        "beside": {np.float16: float16, np.float32: float32},
    }
    return type(name, (base,), contents)


Int8 = _class("Int8", Int32, unsigned=False, float16=np.float16, float32=np.float32)
Int16 = _class("Int16", Int32, unsigned=False, float16=np.float32, float32=np.float32)
UInt8 = _class("UInt8", Int32, unsigned=True, float16=np.float32, float32=np.float32)
UInt16 = _class("UInt16", Int32, unsigned=True)
UInt32 = _class("UInt32", Int32, unsigned=True)
UInt64 = _class("UInt64", np.uint64, unsigned=True)

_SIGNED = frozenset({int, bool, np.bool_, np.int8, np.int16, np.int32, np.int64, Int8, Int16, Int32})
_NARROW_UNSIGNED = frozenset({UInt8, UInt16, UInt32, np.uint8, np.uint16, np.uint32})
_UNSIGNED = _NARROW_UNSIGNED | {UInt64, np.uint64}
_FLOATS = frozenset({float, np.float16, np.float32, np.float64})


#: Numbers of a class that are kept: making one takes as long as several operations.
_KEPT = 1 << 14


class _Numbers(dict[Any, Any]):
    """Numbers of a class, by NumPy's number: each is made once."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self._kind = kind

    def __missing__(self, number: Any) -> Any:
        if len(self) >= _KEPT:
            self.clear()
        made = self[number] = self._kind(int(number))
        return made


#: By NumPy's type.
_KNOWN: dict[type, _Numbers] = {
    kind.stands_for: _Numbers(kind) for kind in (Int8, Int16, Int32, UInt8, UInt16, UInt32, UInt64)
}
_UINT64 = _KNOWN[np.uint64]


# -- operators -------------------------------------------------------------------------------------------


def _quotient(a: int, b: int) -> int:
    return a // b if b else int(np.int64(a != 0) // np.int64(0))  # 0, or an error where the launch wants one


def _power(a: int, b: int) -> int:
    if b >= 0:
        return pow(a, b, 2**64)
    return int(a**b) if a else -(2**63)


#: By operator: what it is for Python's integers, but for bits that are too many.
_EXACT: dict[str, Callable[[int, int], int]] = {
    **{name: getattr(operator, name) for name in ("add", "sub", "mul", "and_", "or_", "xor")},
    "floordiv": _quotient,
    "mod": lambda a, b: a - _quotient(a, b) * b if b else _quotient(a, b),
    "pow": _power,
    "lshift": lambda a, b: a << b if 0 <= b < 64 else 0,
    "rshift": lambda a, b: a >> (b if 0 <= b < 64 else 64),
}


def _as_signed(number: int) -> int:
    return (number + 2**63 & _MASK) - 2**63


def _binary(kind: Any, name: str, *, reflected: bool) -> Callable[[Any, Any], Any]:
    """An operator of one of the classes."""
    operation, exact = getattr(operator, name), _EXACT.get(name)
    plain = getattr(kind, _method(name, reflected))
    # The numbers with which NumPy's int64 gives the same.
    native = _SIGNED if kind.unsigned else _SIGNED | _NARROW_UNSIGNED
    shift = name in ("lshift", "rshift")
    if kind is UInt64 or exact is None or name == "pow" or (shift and kind.unsigned and not reflected):
        native = frozenset()

    def method(self: Any, other: Any) -> Any:
        other_kind = type(other)
        if other_kind in native:
            try:
                return plain(self, other)
            except OverflowError:  # a number of Python's that is a uint64
                pass
        if other_kind in _FLOATS:
            number = kind.beside.get(other_kind, np.float64)(float(self))
            return operation(other, number) if reflected else operation(number, other)
        unsigned = other_kind in _UNSIGNED or (other_kind is int and other >= 2**63)
        if not unsigned and other_kind not in _SIGNED:
            return plain(self, other)
        a, b = (int(other), int(self)) if reflected else (int(self), int(other))
        if exact is None:
            return np.float64(a) / np.float64(b)
        if (unsigned if reflected else kind.unsigned) if shift else (unsigned and kind.unsigned):
            return _UINT64[exact(a, b) & _MASK]
        return np.int64(_as_signed(exact(_as_signed(a), _as_signed(b))))

    return method


def _method(name: str, reflected: bool = False) -> str:
    return f"__{'r' * reflected}{name.rstrip('_')}__"


def _unary(kind: Any, name: str) -> Callable[[Any], Any]:
    operation, mask = getattr(operator, name), 2**kind.width - 1
    if kind.unsigned:
        return lambda self: self if name == "abs" else _UINT64[operation(int(self)) & mask]
    plain, lowest = getattr(np.int64, _method(name)), np.int64(-(2 ** (kind.width - 1)))
    return lambda self: lowest if self == lowest else plain(self)


def _comparison(name: str) -> Callable[[Any, Any], Any]:
    operation, plain = getattr(operator, name), getattr(np.uint64, _method(name))

    def method(self: Any, other: Any) -> Any:
        if type(other) in _SIGNED and other < 2**63:
            return operation(float(self), float(other))
        return plain(self, other)

    return method


for _kind in (Int8, Int16, UInt8, UInt16, UInt32, UInt64):
    for _name in (*_EXACT, "truediv"):
        for _reflected in (False, True):
            setattr(_kind, _method(_name, _reflected), _binary(_kind, _name, reflected=_reflected))
    _kind.__divmod__ = lambda a, b: (a // b, a % b)
    _kind.__rdivmod__ = lambda b, a: (a // b, a % b)
for _kind in (Int8, Int16, Int32, UInt8, UInt16, UInt32, UInt64):
    for _name in ("neg", "abs", *(("pos", "invert") if _kind.unsigned else ())):
        setattr(_kind, _method(_name), _unary(_kind, _name))
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    setattr(UInt64, _method(_name), _comparison(_name))
UInt64.__hash__ = np.uint64.__hash__


# -- loads, casts and stores -----------------------------------------------------------------------------


def typed(value: Any) -> Any:
    """A number as a kernel computes with it, if it is one of NumPy's integers; anything else as it is."""
    known = _KNOWN.get(type(value))
    return value if known is None else known[value]


def cast(value: Any, kind: Any) -> Any:
    """A number as another of NumPy's types; as an integer, it is cut off and knows its type."""
    try:
        return typed(kind(value))
    except OverflowError:
        return typed(cut_off(int(value), np.dtype(kind))[()])


def cut_off(numbers: Any, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Integers of Python as elements of a type that may not hold them: their lowest bits."""
    whole = [int(number) & _MASK for number in numbers] if isinstance(numbers, (tuple, list)) else int(numbers) & _MASK
    return np.array(whole, np.uint64).astype(dtype)


class Cast:
    """Stands for one of NumPy's types of integers in a kernel: as a function, and as the type of an array."""

    def __init__(self, kind: Any) -> None:
        self.dtype = np.dtype(kind)
        self.__name__ = kind.__name__

    def __call__(self, value: Any = 0) -> Any:
        """The number as this type."""
        return cast(value, self.dtype.type)


#: By NumPy's type: what a kernel finds in its place.
CASTS: dict[Any, Cast] = {kind: Cast(kind) for kind in (*_KNOWN, np.int64)}


class Integers(np.ndarray[Any, Any]):
    """An array of integers as a kernel writes it: what it stores is cut off."""

    def __setitem__(self, index: Any, value: Any) -> None:
        try:
            _set(self, index, value)
        except OverflowError:  # NumPy refuses numbers of Python's, and our uint64 where it is too large for an int64
            _set(self, index, cut_off(value, self.dtype))


class TypedIntegers(Integers):
    """An array whose elements a kernel loads as numbers of the classes above."""

    def __getitem__(self, index: Any) -> Any:
        value = _get(self, index)
        known = _KNOWN.get(type(value))
        return value if known is None else known[value]


_get, _set = np.ndarray.__getitem__, np.ndarray.__setitem__


def seen(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """An array as a kernel sees it: a view of one of the classes above, or the same if it is not of integers."""
    if isinstance(array, Integers) or array.dtype.kind not in "iu":
        return array
    return array.view(TypedIntegers if array.dtype.type in _KNOWN else Integers)
