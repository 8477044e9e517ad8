"""Checks of arguments that the operations' public functions share; each error begins with the function's name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpuconv import geometry
from gpuconv.autograd import Tensor, to_array
from gpuconv.dtypes import is_half

__all__ = [
    "REDUCTIONS",
    "element_type",
    "flag",
    "floats",
    "number",
    "numbers",
    "one_of",
    "operand",
    "shape_of",
    "share",
]

_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
REDUCTIONS = ("mean", "sum", "none")


def operand(op: str, name: str, value: Any) -> Any:
    """Return Tensors and arrays as they are and make arrays of numbers and sequences."""
    if isinstance(value, Tensor):
        return value
    try:
        array = to_array(value)
    except TypeError as error:
        raise TypeError(f"{op}: {name}: {error}") from None
    return value if hasattr(value, "dtype") and hasattr(value, "ndim") and not isinstance(value, np.generic) else array


def floats(op: str, *, optional: Sequence[str] = (), wide: Sequence[str] = (), **operands: Any) -> list[Any]:
    """Check that all operands hold one and the same float type, and return them; the ``optional`` ones may be None.

    Where the first is of a half type, the ``wide`` ones may be float32.
    """
    checked: list[Any] = []
    first_name, first_type = None, _FLOATS[0]
    for name, value in operands.items():
        if value is None and name in optional:
            checked.append(None)
            continue
        given = value if isinstance(value, Tensor) else operand(op, name, value)
        dtype = element_type(given)
        if dtype not in _FLOATS and not is_half(dtype):
            raise TypeError(f"{op}: {name} must hold floats of 16, 32 or 64 bits, got {dtype}; convert it")
        if first_name is None:
            first_name, first_type = name, dtype
        elif dtype != first_type and not (name in wide and dtype == _FLOATS[0] and is_half(first_type)):
            raise TypeError(f"{op}: {name} is {dtype} but {first_name} is {first_type}; convert one of them")
        checked.append(given)
    return checked


def element_type(given: Any) -> np.dtype:
    """Element type of a Tensor or array, in the machine's byte order."""
    dtype = to_array(given).dtype
    return dtype if dtype.isnative else dtype.newbyteorder("=")


def shape_of(given: Any) -> tuple[int, ...]:
    """Shape of a Tensor or array."""
    return tuple(given.shape)


def number(op: str, name: str, value: Any) -> float:
    """Return a number, but no bool, as a float."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{op}: {name} must be a number, got {value!r}")
    return float(value)


def share(op: str, name: str, value: Any) -> float:
    """Return a number from 0 to 1 as a float."""
    found = number(op, name, value)
    if not 0 <= found <= 1:  # also refuses NaN
        raise ValueError(f"{op}: {name} must be between 0 and 1, got {value}")
    return found


def numbers(op: str, **values: Any) -> dict[str, float]:
    """Return several numbers as floats, by their names."""
    return {name: number(op, name, value) for name, value in values.items()}


def flag(op: str, name: str, value: Any) -> bool:
    """Return a bool; 0 and 1 are ones."""
    return geometry.flag(value, name, op=op)


def one_of(op: str, name: str, value: Any, choices: Sequence[str]) -> str:
    """Return one of several words."""
    return geometry.one_of(value, name, choices, op=op)
