"""Gradient of ReLU, element by element: zero where the result ``y <= 0``, else the gradient (so a NaN passes it on).

A thread computes a vector of 128 bits: see ``elementwise``. Shared memory: none. Registers aimed at: at most 32, for
full occupancy. Expected bottleneck: memory bandwidth; two elements are read for each one written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from numba import cuda, types

from gpuconv.kernels.compiled import specialised
from gpuconv.kernels.device import Call, call, device_function, jit, unrolled, vector_access
from gpuconv.kernels.pointwise.elementwise import Tiling, blocks_of, each, tilings, vector_of
from gpuconv.kernels.variant import Arguments

__all__ = ["Tiling", "calls", "tilings"]


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


def calls(a: Arguments, shape: tuple[int, ...], tiling: Tiling) -> Iterator[Call]:
    """One launch, a thread for each vector."""
    vector = vector_of(a.dtype, a.aligned("grad", "y", "out"))
    blocks = blocks_of(a.out.size, tiling, vector)
    yield call(_kernel(tiling, a.dtype, vector), blocks, tiling.threads, a.grad, a.y, a.out, a.out.size)
