"""ReLU: ``max(x, 0)``, element by element; NaN stays NaN.

A thread computes a vector of 128 bits: see ``elementwise``. Shared memory: none. Registers aimed at: at most 32, for
full occupancy. Expected bottleneck: memory bandwidth; an element is read once and written once.
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


def calls(a: Arguments, shape: tuple[int, ...], tiling: Tiling) -> Iterator[Call]:
    """One launch, a thread for each vector."""
    vector = vector_of(a.dtype, a.aligned("x", "out"))
    blocks = blocks_of(a.out.size, tiling, vector)
    yield call(_kernel(tiling, a.dtype, vector), blocks, tiling.threads, a.x, a.out, a.out.size)
