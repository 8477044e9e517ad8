"""Element types: what kind they are, which of them are half types, and what two of them become together.

The half types, float16 and bfloat16, are storage: operations compute in float32 and round the result once (see
:class:`gpuconv.autograd.Function`). Tensor cores, too, which multiply large convolutions: their sums are float32. NumPy
has no bfloat16; ``ml_dtypes`` adds it, and is needed for that alone. NumPy calls it no float, so ask :func:`kind_of`
instead of ``dtype.kind``.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np

__all__ = [
    "bfloat16",
    "computed",
    "element_type",
    "float_type",
    "has_bfloat16",
    "is_half",
    "kind_of",
    "number_type",
    "promoted",
]

_FLOAT32 = np.dtype(np.float32)


def kind_of(dtype: np.dtype) -> str:
    """NumPy's letter for the kind of an element type: 'f', 'i', 'u', 'b', or another; 'f' for bfloat16, too."""
    kind = dtype.kind
    return "f" if kind == "V" and dtype.type.__name__ == "bfloat16" else kind


def is_half(dtype: np.dtype) -> bool:
    """Whether it is float16 or bfloat16."""
    return dtype.itemsize == 2 and kind_of(dtype) == "f"


def computed(dtype: np.dtype) -> np.dtype:
    """The type in which operations on it compute: float32 for half types, else itself."""
    return _FLOAT32 if is_half(dtype) else dtype


def has_bfloat16() -> bool:
    """Whether ``ml_dtypes`` is installed."""
    return importlib.util.find_spec("ml_dtypes") is not None


def bfloat16() -> Any:
    """The type of bfloat16 numbers. ModuleNotFoundError: ``ml_dtypes`` is not installed."""
    try:
        from ml_dtypes import bfloat16 as found
    except ModuleNotFoundError:
        raise ModuleNotFoundError("bfloat16 needs ml_dtypes: pip install 'gpuconv[bfloat16]'") from None
    return found


def element_type(given: Any) -> np.dtype:
    """A type, or its name, as a dtype.

    Raises:
        TypeError: it is none.
        ModuleNotFoundError: it is 'bfloat16', and ``ml_dtypes`` is not installed.
    """
    return np.dtype(bfloat16() if isinstance(given, str) and given == "bfloat16" else given)


def float_type(given: Any, op: str) -> np.dtype:
    """A float type of 16, 32 or 64 bits, for the argument ``dtype`` of ``op``. Raises as :func:`element_type`."""
    return number_type(given, op, "a float type", "f")


def number_type(given: Any, op: str, name: str = "a type of numbers", kinds: str = "fiub") -> np.dtype:
    """A float, an integer or bool of at most 64 bits; otherwise as :func:`float_type`."""
    try:
        dtype = element_type(given)
    except TypeError:
        raise TypeError(f"{op}: dtype must be {name}, got {given!r}") from None
    if kind_of(dtype) not in kinds or dtype.itemsize > 8:
        raise TypeError(f"{op}: dtype must be {name} of at most 64 bits, got {dtype}")
    return dtype


def promoted(a: np.dtype, b: np.dtype) -> np.dtype:
    """The smallest type that holds the numbers of two types of one kind; float32 for the two half types together."""
    return a if a == b else _FLOAT32 if is_half(a) and is_half(b) else np.promote_types(a, b)
