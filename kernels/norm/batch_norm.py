"""``(x - mean) / sqrt(var + eps) · weight + bias + residual``, channel by channel, and a ReLU behind it.

A thread computes a vector of 128 bits, all of one channel: see ``elementwise``. Shared memory: none. Registers aimed
at: at most 32, for full occupancy. Expected bottleneck: memory bandwidth; each element is read once and written once,
and the numbers of a channel come from the cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from numba import cuda, types

from gpuconv.kernels.compiled import specialised
from gpuconv.kernels.device import Call, call, device_function, fma, jit, ldg, unrolled, vector_access
from gpuconv.kernels.norm.channels import vector_of
from gpuconv.kernels.pointwise.elementwise import Tiling, blocks_of, each, tilings
from gpuconv.kernels.variant import Arguments

__all__ = ["Tiling", "calls", "tilings"]


@specialised
def _kernel(
    channels: int, length: int, tiling: Tiling, dtype: str, vector: int, has: tuple[bool, bool, bool], relu: bool
) -> Callable[..., None]:
    real = getattr(types, dtype)
    has_weight, has_bias, has_residual = has
    _, load, store = vector_access(vector)

    @device_function
    def finish(j: int, values: Any, others: Any, middle: Any, factor: Any, shift: Any) -> None:
        value = fma(values[j] - middle, factor, shift)
        if has_residual:
            value += others[j]
        if relu:
            # A NaN fails the comparison, and stays.
            value = real(0) if value <= real(0) else value
        values[j] = value

    finish_all = unrolled(finish, vector)

    @device_function
    def step(i: Any, x: Any, mean: Any, var: Any, weight: Any, bias: Any, residual: Any, out: Any, eps: Any) -> None:
        values, others = cuda.local.array(vector, real), cuda.local.array(vector, real)
        channel = i // length % channels
        load(values, x, i)
        if has_residual:
            load(others, residual, i)
        factor = real(1) / real(math.sqrt(ldg(var, channel) + eps))
        if has_weight:
            factor *= ldg(weight, channel)
        shift = ldg(bias, channel) if has_bias else real(0)
        finish_all(values, others, ldg(mean, channel), factor, shift)
        store(values, out, i)

    # Vectors lie within planes: none is left over.
    work = each(step, step, tiling.threads, vector)

    @jit(launch_bounds=tiling.threads)
    def batch_norm(
        x: Any, mean: Any, var: Any, weight: Any, bias: Any, residual: Any, out: Any, eps: Any, elements: Any
    ) -> None:
        work(elements, x, mean, var, weight, bias, residual, out, eps)

    return batch_norm


def calls(a: Arguments, shape: tuple[int, int, int], tiling: Tiling) -> Iterator[Call]:
    """One launch, a thread for each vector."""
    vector = vector_of(shape, a.dtype, a.aligned("x", "residual", "out"))
    has = a.has("weight"), a.has("bias"), a.has("residual")
    kernel = _kernel(*shape[1:], tiling, a.dtype, vector, has, bool(a.relu))
    arrays = a.x, a.mean, a.var, a.weight, a.bias, a.residual, a.out
    yield call(kernel, blocks_of(a.out.size, tiling, vector), tiling.threads, *arrays, a.real(a.eps), a.out.size)
