"""Gradient of ReLU, element by element: zero where the result ``y <= 0``, else the gradient (so a NaN passes it on).

A thread computes a vector of 128 bits: see ``elementwise``. Shared memory: none. Registers aimed at: at most 32, for
full occupancy. Expected bottleneck: memory bandwidth; two elements are read for each one written.
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
    def mask(j: int, grads: Any, results: Any) -> None:
        grads[j] = real(0) if results[j] <= real(0) else grads[j]

    mask_all = unrolled(mask, vector)

    @device_function
    def step(i: Any, grad: Any, y: Any, out: Any) -> None:
        grads, results = cuda.local.array(vector, real), cuda.local.array(vector, real)
        load(grads, grad, i)
        load(results, y, i)
        mask_all(grads, results)
        store(grads, out, i)

    return step


@specialised
def _kernel(tiling: Tiling, dtype: str, vector: int) -> Callable[..., None]:
    work = each(_step(dtype, vector), _step(dtype, 1), tiling.threads, vector)

    @jit(launch_bounds=tiling.threads)
    def relu_grad(grad: Any, y: Any, out: Any, elements: Any) -> None:
        work(elements, grad, y, out)

    return relu_grad


def launches(shape: tuple[int, ...], tiling: Tiling, dtype: Any, *, aligned16: bool = True) -> tuple[Launch, ...]:
    """The one launch of :func:`launch`, or none for an empty array.

    Args:
        shape, tiling, dtype: see :func:`launch`.
        aligned16: all arrays begin at multiples of 16 bytes.

    Raises:
        ValueError: the array is too large for 32-bit offsets.
    """
    if not (answer := supports(shape)):
        raise ValueError(f"relu_grad: {answer}")
    elements, name, vector = math.prod(shape), np.dtype(dtype).name, vector_of(dtype, aligned16)
    if not elements:
        return ()
    signature = (array_type(name),) * 3 + (types.int64,)
    return (launch_of(_kernel(tiling, name, vector), signature, elements, tiling, vector),)


def launch(grad: Any, y: Any, out: Any, shape: tuple[int, ...], tiling: Tiling, stream: Any = None) -> None:
    """``out`` is the gradient for ReLU's input, given ``grad`` and its result ``y``; all of ``shape``.

    ``out`` does not overlap with the others.

    Raises:
        ValueError: the arrays are too large for 32-bit offsets.
    """
    for one in launches(shape, tiling, grad.dtype, aligned16=aligned(grad, y, out)):
        one(stream, grad.reshape(-1), y.reshape(-1), out.reshape(-1), out.size)
