"""Gradient of batch normalisation for its input, and for what was added behind it.

``dx = weight / sqrt(var + eps) · (g - (dbias + (x - mean) / sqrt(var + eps) · dweight) / count)``. Here g is the
result's gradient, zero where a ReLU behind the normalisation was off, and ``count`` the number of elements of a
channel. The second term is there because mean and variance depend on x; if they were given, dweight is absent, and so
is the term. The gradient of what was added is g.

A thread computes a vector of 128 bits, all of one channel: see ``elementwise``. Shared memory: none. Registers aimed
at: at most 40, for full occupancy. Expected bottleneck: memory bandwidth; each element is read once and written once.
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
    channels: int,
    length: int,
    tiling: Tiling,
    dtype: str,
    vector: int,
    relu: bool,
    own: bool,
    weighted: bool,
    added: bool,
) -> Callable[..., None]:
    """``own``: mean and variance were those of x; ``added``: the gradient of what was added is wanted, too."""
    real = getattr(types, dtype)
    _, load, store = vector_access(vector)

    @device_function
    def finish(j: int, grads: Any, values: Any, results: Any, middle: Any, factor: Any, slope: Any, shift: Any) -> None:
        g = grads[j]
        if relu:
            g = real(0) if results[j] <= real(0) else g
        grads[j] = g
        values[j] = fma(factor, g, fma(slope, values[j] - middle, shift)) if own else factor * g

    finish_all = unrolled(finish, vector)

    @device_function
    def step(
        i: Any, grad: Any, x: Any, y: Any, mean: Any, var: Any, weight: Any, dweight: Any, dbias: Any, out: Any,
        residual_out: Any, eps: Any, share: Any,
    ) -> None:  # fmt: skip
        grads, values = cuda.local.array(vector, real), cuda.local.array(vector, real)
        results = cuda.local.array(vector, real)
        channel = i // length % channels
        load(grads, grad, i)
        middle, slope, shift = real(0), real(0), real(0)
        rate = real(1) / real(math.sqrt(ldg(var, channel) + eps))
        factor = rate * ldg(weight, channel) if weighted else rate
        if own:
            load(values, x, i)
            middle = ldg(mean, channel)
            slope = -factor * share * rate * ldg(dweight, channel)
            shift = -factor * share * ldg(dbias, channel)
        if relu:
            load(results, y, i)
        finish_all(grads, values, results, middle, factor, slope, shift)
        store(values, out, i)
        if added:
            store(grads, residual_out, i)

    work = each(step, step, tiling.threads, vector)

    @jit(launch_bounds=tiling.threads)
    def batch_norm_grad_input(
        grad: Any, x: Any, y: Any, mean: Any, var: Any, weight: Any, dweight: Any, dbias: Any, out: Any,
        residual_out: Any, eps: Any, share: Any, elements: Any,
    ) -> None:  # fmt: skip
        work(elements, grad, x, y, mean, var, weight, dweight, dbias, out, residual_out, eps, share)

    return batch_norm_grad_input


def calls(a: Arguments, shape: tuple[int, int, int], tiling: Tiling) -> Iterator[Call]:
    """One launch, a thread for each vector."""
    n, channels, length = shape
    vector = vector_of(shape, a.dtype, a.aligned("grad", "x", "y", "out", "residual_out"))
    has = a.has("y"), a.has("dweight"), a.has("weight"), a.has("residual_out")
    kernel = _kernel(channels, length, tiling, a.dtype, vector, *has)
    arrays = a.grad, a.x, a.y, a.mean, a.var, a.weight, a.dweight, a.dbias, a.out, a.residual_out
    numbers = a.real(a.eps), a.real(1 / (n * length)), a.out.size
    yield call(kernel, blocks_of(a.out.size, tiling, vector), tiling.threads, *arrays, *numbers)
