"""What kernels find in the place of names that mean something else on a GPU: functions of ``math``, NumPy's integers.

A GPU gives NaN or infinity where a function of ``math`` raises an error, and no function fails.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from types import CellType, FunctionType, ModuleType
from typing import Any

import numpy as np

from gpuconv.lab.integers import CASTS, seen, typed


def _gamma(x: float) -> float:
    return math.copysign(math.inf, x) if x == 0 else math.inf if x > 0 else math.nan


#: What a function gives for numbers that Python's refuses: outside of where it is defined, or with too large a result.
_INSTEAD: dict[str, Callable[..., Any]] = {
    **{name: getattr(np, name) for name in ("sqrt", "exp", "expm1", "log", "log2", "log10", "log1p")},
    **{name: getattr(np, name) for name in ("sin", "cos", "tan", "sinh", "cosh", "fmod", "ldexp")},
    **{name: getattr(np, name) for name in ("trunc", "floor", "ceil")},
    **{name: getattr(np, f"arc{name[1:]}") for name in ("acos", "asin", "acosh", "atanh")},
    "pow": np.float_power,
    "gamma": _gamma,
    "lgamma": lambda x: math.inf,
}


def _trunc(x: Any) -> int:
    return math.trunc(float(x) if isinstance(x, np.floating) else x)  # NumPy's float32 lacks what it asks for


def _ldexp(x: Any, exponent: Any) -> float:
    return math.ldexp(x, operator.index(exponent))  # Python's wants its own integers


def _total(name: str) -> Callable[..., Any]:
    instead, plain = _INSTEAD[name], {"trunc": _trunc, "ldexp": _ldexp}.get(name, getattr(math, name))

    def function(*args: Any) -> Any:
        try:
            return plain(*args)
        except (ValueError, OverflowError):
            return float(instead(*args))

    function.__name__ = name
    return function


MATH = ModuleType("math", math.__doc__)
vars(MATH).update(vars(math))
vars(MATH).update({name: _total(name) for name in _INSTEAD})

#: By Python's function: a kernel's, where they differ.
_FUNCTIONS = {getattr(math, name): getattr(MATH, name) for name in _INSTEAD}


_CASTS = {name: CASTS[kind] for name, kind in vars(np).items() if isinstance(kind, type) and kind in CASTS}
#: NumPy, with other types of integers.
NUMPY = ModuleType("numpy", np.__doc__)
vars(NUMPY).update({**vars(np), **_CASTS})


def of_kernels(value: Any) -> Any:
    """What stands in a kernel for something that it names."""
    if value is math:
        return MATH
    if value is np:
        return NUMPY
    if isinstance(value, np.ndarray):
        return seen(value)
    if isinstance(value, type):
        return CASTS.get(value, value)
    return _FUNCTIONS.get(value, value) if type(value) is type(math.sqrt) else typed(value)


def _of_kernels(cell: CellType) -> CellType:
    try:
        value = of_kernels(cell.cell_contents)
    except ValueError:  # not filled yet
        return cell
    return cell if value is cell.cell_contents else CellType(value)


def bound(function: Any) -> Any:
    """A function as it runs in a kernel: the same, or a copy that finds what is above."""
    if not isinstance(function, FunctionType):
        return function
    names, code, cells = function.__globals__, function.__code__, function.__closure__ or ()
    others = {
        name: of_kernels(names[name])
        for name in code.co_names
        if name in names and of_kernels(names[name]) is not names[name]
    }
    if _CASTS.keys().isdisjoint(code.co_names):
        others = {name: value for name, value in others.items() if value is not NUMPY}
    closure = tuple(map(_of_kernels, cells))
    if not others and all(map(operator.is_, closure, cells)):
        return function
    names = {**names, **others} if others else names
    copy = FunctionType(code, names, function.__name__, function.__defaults__, closure)
    copy.__kwdefaults__, copy.__qualname__ = function.__kwdefaults__, function.__qualname__
    return copy
