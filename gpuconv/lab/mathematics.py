"""The module ``math`` in kernels: a GPU gives NaN or infinity where Python raises an error, and no function fails."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any

import numpy as np


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


def _total(name: str) -> Callable[..., Any]:
    instead, plain = _INSTEAD[name], _trunc if name == "trunc" else getattr(math, name)

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


def of_kernels(value: Any) -> Any:
    """What stands in a kernel for something that it names: another module ``math``, another function of it."""
    if value is math:
        return MATH
    return _FUNCTIONS.get(value, value) if type(value) is type(math.sqrt) else value


def bound(function: Any) -> Any:
    """A function as it runs in a kernel: the same, or a copy that finds the module above."""
    if not isinstance(function, FunctionType):
        return function
    names = function.__globals__
    others = {
        name: of_kernels(names[name])
        for name in function.__code__.co_names
        if name in names and of_kernels(names[name]) is not names[name]
    }
    if not others:
        return function
    code, defaults, closure = function.__code__, function.__defaults__, function.__closure__
    copy = FunctionType(code, {**names, **others}, function.__name__, defaults, closure)
    copy.__kwdefaults__, copy.__qualname__ = function.__kwdefaults__, function.__qualname__
    return copy
