"""Arithmetic on blocks of numbers that stay in registers.

A local array stays in registers only if each of its indices is a constant when the machine code is made. LLVM unrolls a
loop around a few dozen multiply-adds, but not around hundreds: then the array moves to memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numba.core.errors import TypingError

from gpuconv.kernels.device.intrinsic import SIMULATED, intrinsic
from gpuconv.kernels.device.launch import device_function
from gpuconv.kernels.device.memory import ld, ld2, ld4, ldg, ldg2, ldg4, st, st2, st4


def _fused_multiply_add(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    if not isinstance(a, types.Float) or a != b or a != c:
        raise TypingError(f"fma needs three floats of one type, got {a}, {b}, {c}")
    return a(a, a, a), lambda context, builder, signature, args: builder.fma(*args)


def _fma_twin(a: Any, b: Any, c: Any) -> Any:
    if not type(a) is type(b) is type(c) or not isinstance(a, np.floating):
        names = ", ".join(type(value).__name__ for value in (a, b, c))
        raise TypeError(f"fma needs three floats of one type, got {names}")
    return a * b + c  # rounds twice: as near to the kernel as another order of summation


fma = intrinsic("fma", _fused_multiply_add, _fma_twin)


def unrolled(body: Callable[..., None], count: int, /) -> Any:
    """A device function that calls ``body(i, *arguments)`` for i from 0 to ``count`` - 1, with i a constant in each.

    ``body`` is a device function too.
    """
    if SIMULATED:

        def repeated(*arguments: Any) -> None:
            for i in range(count):
                body(i, *arguments)

        return repeated

    # Written out in the text of one function: a function for each call would take as many compilations.
    calls = "".join(f"    body({i}, *arguments)\n" for i in range(count))
    names: dict[str, Any] = {"body": body}
    exec(f"def repeated(*arguments):\n{calls}", names)
    return device_function(names["repeated"])


def _add_outer(total: Any, a: Any, b: Any, first: int) -> None:
    for i in range(total.shape[0]):
        for j in range(total.shape[1]):
            total[i, j] = fma(a[i], b[first + j], total[i, j])


def _add_outer_twin(total: Any, a: Any, b: Any, first: int) -> None:
    if not total.dtype == a.dtype == b.dtype:
        raise TypeError(f"add_outer needs three arrays of one type, got {total.dtype}, {a.dtype}, {b.dtype}")
    # Of traced arrays the plain ones: a trace learns nothing from their slices.
    total, a, b = np.asarray(total), np.asarray(a), np.asarray(b)
    total += a[: len(total), None] * b[first : first + total.shape[1]]


#: ``total[i, j] += a[i] · b[first + j]``: local arrays of one type. The twin takes one step, not one a multiply-add.
add_outer = _add_outer_twin if SIMULATED else device_function(_add_outer)


def _clear(total: Any) -> None:
    for i in range(total.shape[0]):
        for j in range(total.shape[1]):
            total[i, j] = 0


def _clear_twin(total: Any) -> None:
    total[...] = 0


#: Zeros for all elements of a local array of two dimensions.
clear = _clear_twin if SIMULATED else device_function(_clear)


def loading(count: int, vector: int, /) -> Any:
    """``load(values, array, i)``: a device function that reads elements from i on into a local array.

    They are ``count`` elements, ``vector`` of them, 1, 2 or 4, in each access.
    """
    load = {1: ld, 2: ld2, 4: ld4}[vector]

    def load_each(values: Any, array: Any, at: Any) -> None:
        for i in range(count):
            values[i] = load(array, at + i)

    def load_vectors(values: Any, array: Any, at: Any) -> None:
        for i in range(0, count, vector):
            found = load(array, at + i)
            for j in range(vector):
                values[i + j] = found[j]

    return device_function(load_each if vector == 1 else load_vectors)


def vector_access(count: int, /) -> tuple[Any, Any, Any]:
    """``load(values, array, i)``, ``load_read_only`` likewise, and ``store``: device functions.

    They move ``count`` elements, 1, 2 or 4, between a local array and another array from i on, in one access.
    """
    load, load_read_only, store = {1: (ld, ldg, st), 2: (ld2, ldg2, st2), 4: (ld4, ldg4, st4)}[count]

    def loading(instruction: Any) -> Any:
        def load_one(values: Any, array: Any, i: Any) -> None:
            values[0] = instruction(array, i)

        def load_two(values: Any, array: Any, i: Any) -> None:
            values[0], values[1] = instruction(array, i)

        def load_four(values: Any, array: Any, i: Any) -> None:
            values[0], values[1], values[2], values[3] = instruction(array, i)

        return device_function({1: load_one, 2: load_two, 4: load_four}[count])

    def store_one(values: Any, array: Any, i: Any) -> None:
        store(array, i, values[0])

    def store_two(values: Any, array: Any, i: Any) -> None:
        store(array, i, (values[0], values[1]))

    def store_four(values: Any, array: Any, i: Any) -> None:
        store(array, i, (values[0], values[1], values[2], values[3]))

    storing = {1: store_one, 2: store_two, 4: store_four}[count]
    return loading(load), loading(load_read_only), device_function(storing)
