"""ReLU: ``max(x, 0)``, element by element; NaN stays NaN.

A thread computes a vector of 128 bits: see ``elementwise``. Shared memory: none. Registers aimed at: at most 32, for
full occupancy. Expected bottleneck: memory bandwidth; an element is read once and written once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cuda, types

from gpuconv.kernels.compiled import specialised
from gpuconv.kernels.device import Launch, aligned, array_type, device_function, jit, unrolled, vector_access
from gpuconv.kernels.pointwise.elementwise import Tiling, each, launch_of, supports, tilings, vector_of

__all__ = ["Tiling", "launch", "launches", "supports", "tilings"]


def _step(dtype: str, vector: int) -> Any:
    real = getattr(types, dtype)
    _, load, store = vector_access(vector)

    @device_function
    def rectify(j: int, values: Any) -> None:
        # A NaN fails the comparison, and stays.
        values[j] = real(0) if values[j] <= real(0) else values[j]

    rectify_all = unrolled(rectify, vector)

    @device_function
    def step(i: Any, x: Any, out: Any) -> None:
        values = cuda.local.array(vector, real)
        load(values, x, i)
        rectify_all(values)
        store(values, out, i)

    return step


@specialised
def _kernel(tiling: Tiling, dtype: str, vector: int) -> Callable[..., None]:
    work = each(_step(dtype, vector), _step(dtype, 1), tiling.threads, vector)

    @jit(launch_bounds=tiling.threads)
    def relu(x: Any, out: Any, elements: Any) -> None:
        work(elements, x, out)

    return relu


def launches(shape: tuple[int, ...], tiling: Tiling, dtype: Any, *, aligned16: bool = True) -> tuple[Launch, ...]:
    """The one launch of :func:`launch`, or none for an empty array.

    Args:
        shape, tiling, dtype: see :func:`launch`.
        aligned16: all arrays begin at multiples of 16 bytes.

    Raises:
        ValueError: the array is too large for 32-bit offsets.
    """
    if not (answer := supports(shape)):
        raise ValueError(f"relu: {answer}")
    elements, name, vector = math.prod(shape), np.dtype(dtype).name, vector_of(dtype, aligned16)
    if not elements:
        return ()
    signature = (array_type(name),) * 2 + (types.int64,)
    return (launch_of(_kernel(tiling, name, vector), signature, elements, tiling, vector),)


def launch(x: Any, out: Any, shape: tuple[int, ...], tiling: Tiling, stream: Any = None) -> None:
    """``out = max(x, 0)``; both of ``shape``, in memory that does not overlap.

    Raises:
        ValueError: the array is too large for 32-bit offsets.
    """
    for one in launches(shape, tiling, x.dtype, aligned16=aligned(x, out)):
        one(stream, x.reshape(-1), out.reshape(-1), x.size)
