"""Gradients of batch normalisation for weight and bias: two sums over each channel.

``dbias = Σ g`` and ``dweight = Σ g · (x - mean) / sqrt(var + eps)``, over all images and positions; g is the result's
gradient, zero where a ReLU behind the normalisation was off, which is where its result y is not positive. A block sums
one part of one channel. With several parts the sums go to a workspace, which ``partial_sums`` adds up in a fixed order.

Shared bytes: 64 (float32). Registers aimed at: at most 40, for full occupancy. Expected bottleneck: memory bandwidth;
each element is read once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from numba import cuda, types

from gpuconv.kernels.compiled import specialised
from gpuconv.kernels.device.launch import Call, call, device_function, jit
from gpuconv.kernels.device.memory import ldg, st
from gpuconv.kernels.device.registers import fma, unrolled, vector_access
from gpuconv.kernels.device.words import u32
from gpuconv.kernels.norm.channels import Parts, Tiling, tilings, total_over_block, vector_of, walk, workspace_size
from gpuconv.kernels.partial_sums import sum_parts_of_two
from gpuconv.kernels.variant import Arguments

__all__ = ["Tiling", "calls", "tilings", "workspace_size"]


@specialised
def _kernel(
    channels: int, length: int, threads: int, dtype: str, vector: int, relu: bool, apart: int
) -> Callable[..., None]:
    """``apart``: elements from the sums of one part to those of the next."""
    real = getattr(types, dtype)
    load = vector_access(vector)[1]
    total_of = total_over_block(threads, vector, dtype)

    @device_function
    def add(j: int, sums: Any, products: Any, grads: Any, values: Any, results: Any, middle: Any) -> None:
        g = grads[j]
        if relu:
            g = real(0) if results[j] <= real(0) else g
        sums[j] += g
        products[j] = fma(g, values[j] - middle, products[j])

    add_all = unrolled(add, vector)

    @device_function
    def visit(
        i: Any, grad: Any, x: Any, y: Any, grads: Any, values: Any, results: Any, sums: Any, products: Any, middle: Any
    ) -> None:
        load(grads, grad, i)
        load(values, x, i)
        if relu:
            load(results, y, i)
        add_all(sums, products, grads, values, results, middle)

    add_up = walk(channels, length, threads, vector, visit)

    @jit(launch_bounds=threads)
    def batch_norm_grad_stats(
        grad: Any, x: Any, y: Any, mean: Any, var: Any, dweight: Any, dbias: Any, behind: Any, eps: Any, vectors: Any,
        vectors_a_part: Any,
    ) -> None:  # fmt: skip
        grads, values = cuda.local.array(vector, real), cuda.local.array(vector, real)
        results = cuda.local.array(vector, real)
        sums, products = cuda.local.array(vector, real), cuda.local.array(vector, real)
        for j in range(vector):
            sums[j] = real(0)
            products[j] = real(0)
        part, channel = divmod(u32(cuda.blockIdx.x), channels)
        middle = ldg(mean, channel)
        add_up(vectors, vectors_a_part, grad, x, y, grads, values, results, sums, products, middle)
        total, product = total_of(sums), total_of(products)
        if cuda.threadIdx.x == 0:
            rate = real(1) / real(math.sqrt(ldg(var, channel) + eps))
            st(dweight, part * apart + channel, product * rate)
            st(dbias, part * apart + channel + behind, total)

    return batch_norm_grad_stats


def calls(a: Arguments, shape: tuple[int, int, int], tiling: Tiling) -> Iterator[Call]:
    """Partial sums, and with several parts their reduction."""
    channels, length = shape[1:]
    vector = vector_of(shape, a.dtype, a.aligned("grad", "x", "y"))
    parts = Parts.of(shape, tiling, vector)
    several = parts.count > 1
    # A row of the workspace has the sums for the weight, then those for the bias.
    dweight, dbias, behind = (a.workspace, a.workspace, channels) if several else (a.dweight, a.dbias, 0)
    kernel = _kernel(channels, length, tiling.threads, a.dtype, vector, a.has("y"), 2 * channels)
    arrays = a.grad, a.x, a.y, a.mean, a.var, dweight, dbias
    numbers = behind, a.real(a.eps), parts.vectors, parts.vectors_a_part
    yield call(kernel, channels * parts.count, tiling.threads, *arrays, *numbers)
    if several:
        yield sum_parts_of_two(a.workspace, a.dweight, a.dbias, parts.count)
