"""What compiling settles, for simulated kernels: values of the module that it keeps, arguments that are pointers."""

from __future__ import annotations

import importlib
import weakref
from types import CellType, FunctionType
from typing import Any

import numpy as np

from gpuconv.lab.integers import cut_off, typed
from gpuconv.lab.machine_code import described
from gpuconv.lab.simulated_memory import array_at
from gpuconv.lab.traced_arrays import address_of, bounds_of

#: By function and by the types of the arguments: the function with the values that it was compiled with.
_frozen: weakref.WeakKeyDictionary[FunctionType, dict[Any, Any]] = weakref.WeakKeyDictionary()
_FROZEN_KINDS = (bool, int, float, complex, np.generic, np.ndarray)


def frozen(function: Any, arguments: tuple[Any, ...]) -> Any:
    """The function, with the numbers and arrays of its module and closure as they were at its first launch.

    A compiled kernel keeps them: it is compiled once for each combination of types.
    """
    if not isinstance(function, FunctionType):
        return function
    names = [name for name in function.__code__.co_names if isinstance(function.__globals__.get(name), _FROZEN_KINDS)]
    cells = [isinstance(_content(cell), _FROZEN_KINDS) for cell in function.__closure__ or ()]
    if not names and not any(cells):
        return function
    versions = _frozen.setdefault(function, {})
    key = tuple(type(kind[1]) if kind[0] == "value" else str(kind) for kind in map(described, arguments))
    if key not in versions:
        kept = {name: _copied(function.__globals__[name]) for name in names}
        closure = tuple(
            CellType(_copied(cell.cell_contents)) if fixed else cell
            for fixed, cell in zip(cells, function.__closure__ or (), strict=True)
        )
        names_now = {**function.__globals__, **kept} if names else function.__globals__
        copy = FunctionType(function.__code__, names_now, function.__name__, function.__defaults__, closure)
        copy.__kwdefaults__, copy.__qualname__ = function.__kwdefaults__, function.__qualname__
        versions[key] = copy
    return versions[key]


def _copied(value: Any) -> Any:
    return value.copy() if isinstance(value, np.ndarray) else value


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def casts(signature: Any) -> tuple[Any, ...] | None:
    """For each argument of a function that was given one signature: its type, if it is an integer's, else None."""
    if signature is None or isinstance(signature, list):
        return None
    try:
        known = importlib.import_module("numba.cuda.core.sigutils")
    except ImportError:  # numba-cuda before 0.21
        known = importlib.import_module("numba.core.sigutils")
    kinds = known.normalize_signature(signature)[0]
    found = tuple(kind if type(kind).__name__ == "Integer" else None for kind in kinds)
    return found if any(found) else None


def cast(kinds: tuple[Any, ...], arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Numbers as a function takes them that was compiled for these types: an int32 has no fraction, and wraps."""
    return tuple(
        _whole(argument, kind) if kind is not None and isinstance(argument, (int, float, np.number)) else argument
        for kind, argument in zip(kinds, arguments, strict=True)
    )


def _whole(number: Any, kind: Any) -> Any:
    return typed(cut_off(int(number), np.dtype(kind.name))[()])


def with_pointers(signature: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Arguments of a launch, where the types that a kernel was given name pointers: an address becomes one."""
    if signature is None or isinstance(signature, (str, list)):
        return arguments
    types = importlib.import_module("numba.core.types")
    kinds = getattr(signature, "args", signature if isinstance(signature, tuple) else ())
    if not any(isinstance(kind, types.CPointer) for kind in kinds):
        return arguments
    support = importlib.import_module("numba.cuda.np.numpy_support")
    return tuple(
        _behind(int(argument), support.as_dtype(kind.dtype)) if isinstance(kind, types.CPointer) else argument
        for kind, argument in zip(kinds, arguments, strict=True)
    )


#: Device arrays whose addresses programs have asked for, by address.
_pointed: dict[int, weakref.ref[np.ndarray[Any, Any]]] = {}


def has_address(array: np.ndarray[Any, Any]) -> int:
    """The address of a device array's memory, which a kernel may be given as a pointer from now on."""
    address = address_of(array)
    _pointed[address] = weakref.ref(array, lambda gone: _pointed.pop(address, None))
    return address


def _behind(address: int, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """The memory behind an address, to the end of its array: its accesses are watched like any array's."""
    for reference in list(_pointed.values()):
        array = reference()
        if array is not None:
            low, high = bounds_of(array)
            if low <= address < high:
                return array_at(address, (high - address) // dtype.itemsize, dtype)
    raise ValueError(f"the address {address:#x} is of no device array: take it from __cuda_array_interface__")
