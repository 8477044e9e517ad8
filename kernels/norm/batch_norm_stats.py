"""Mean and (biased) variance of each channel, over all images and positions.

A block goes through its part of a channel twice: for the mean, then for the squared deviations from it. The second time
the part comes from the cache, and no digits are lost, as they would be in a difference of squares if the mean is large.
With several parts, the mean and the squares of each go to a workspace, and one thread for each channel combines them
(Chan, Golub & LeVeque, *Updating formulae and a pairwise algorithm for computing sample variances*, 1979). Sums are
added in a fixed order.

Shared bytes: 64 (float32). Registers aimed at: at most 40, for full occupancy. Expected bottleneck: memory bandwidth;
each element is read once from memory, and once from the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from numba import cuda, types

from gpuconv.kernels.compiled import specialised
from gpuconv.kernels.device.launch import Call, call, device_function, jit
from gpuconv.kernels.device.memory import ldg, st
from gpuconv.kernels.device.registers import fma, unrolled, vector_access
from gpuconv.kernels.device.words import u32
from gpuconv.kernels.norm.channels import Parts, Tiling, tilings, total_over_block, vector_of, walk, workspace_size
from gpuconv.kernels.variant import Arguments

__all__ = ["Tiling", "calls", "tilings", "workspace_size"]

_JOINING_THREADS = 128


@specialised
def _kernel(channels: int, length: int, threads: int, dtype: str, vector: int, parts: bool) -> Callable[..., None]:
    real = getattr(types, dtype)
    load = vector_access(vector)[1]
    total_of = total_over_block(threads, vector, dtype)

    @device_function
    def add(j: int, sums: Any, values: Any) -> None:
        sums[j] += values[j]

    @device_function
    def deviate(j: int, sums: Any, squares: Any, values: Any, middle: Any) -> None:
        deviation = values[j] - middle
        sums[j] += deviation
        squares[j] = fma(deviation, deviation, squares[j])

    add_all, deviate_all = unrolled(add, vector), unrolled(deviate, vector)

    @device_function
    def first(i: Any, x: Any, values: Any, sums: Any) -> None:
        load(values, x, i)
        add_all(sums, values)

    @device_function
    def second(i: Any, x: Any, values: Any, sums: Any, squares: Any, middle: Any) -> None:
        load(values, x, i)
        deviate_all(sums, squares, values, middle)

    add_up = walk(channels, length, threads, vector, first)
    add_deviations = walk(channels, length, threads, vector, second)

    @jit(launch_bounds=threads)
    def batch_norm_stats(
        x: Any,
        mean: Any,
        var: Any,
        behind: Any,
        vectors: Any,
        vectors_a_part: Any,
        elements: Any,
        elements_of_last: Any,
    ) -> None:
        values = cuda.local.array(vector, real)
        sums, squares = cuda.local.array(vector, real), cuda.local.array(vector, real)
        for j in range(vector):
            sums[j] = real(0)
            squares[j] = real(0)
        block = u32(cuda.blockIdx.x)
        last = (block // channels + 1) * vectors_a_part >= vectors
        count = elements_of_last if last else elements
        add_up(vectors, vectors_a_part, x, values, sums)
        middle = total_of(sums) / count
        for j in range(vector):
            sums[j] = real(0)
        add_deviations(vectors, vectors_a_part, x, values, sums, squares, middle)
        # What the rounding of the first sum has left of the mean.
        off = total_of(sums) / count
        square = total_of(squares) - off * off * count
        if cuda.threadIdx.x == 0:
            # Parts are rows of the workspace, channels its columns: means, and behind them the squares.
            st(mean, block, middle + off)
            st(var, block + behind, square if parts else square / count)

    return batch_norm_stats


@specialised
def _joining(channels: int, dtype: str) -> Callable[..., None]:
    real = getattr(types, dtype)

    @jit(launch_bounds=_JOINING_THREADS)
    def batch_norm_stats_join(
        workspace: Any, mean: Any, var: Any, parts: Any, elements: Any, elements_of_last: Any, all_elements: Any
    ) -> None:
        channel = u32(cuda.blockIdx.x) * _JOINING_THREADS + cuda.threadIdx.x
        if channel < channels:
            total, squares = real(0), channel + u32(parts) * channels
            for part in range(parts):
                count = elements_of_last if part == parts - 1 else elements
                total = fma(ldg(workspace, channel + part * channels), count, total)
            middle = total / all_elements
            square = real(0)
            for part in range(parts):
                count = elements_of_last if part == parts - 1 else elements
                off = ldg(workspace, channel + part * channels) - middle
                square += fma(off * off, count, ldg(workspace, squares + part * channels))
            st(mean, channel, middle)
            st(var, channel, square / all_elements)

    return batch_norm_stats_join


def calls(a: Arguments, shape: tuple[int, int, int], tiling: Tiling) -> Iterator[Call]:
    """Mean and squares of each part, and with several parts a launch that joins them."""
    n, channels, length = shape
    vector = vector_of(shape, a.dtype, a.aligned("x"))
    parts = Parts.of(shape, tiling, vector)
    several = parts.count > 1
    mean, var = (a.workspace, a.workspace) if several else (a.mean, a.var)
    behind = parts.count * channels if several else 0
    elements = a.real(parts.vectors_a_part * vector)
    of_last = a.real((parts.vectors - (parts.count - 1) * parts.vectors_a_part) * vector)
    kernel = _kernel(channels, length, tiling.threads, a.dtype, vector, several)
    numbers = behind, parts.vectors, parts.vectors_a_part, elements, of_last
    yield call(kernel, channels * parts.count, tiling.threads, a.x, mean, var, *numbers)
    if several:
        joining = _joining(channels, a.dtype)
        numbers = parts.count, elements, of_last, a.real(n * length)
        yield call(joining, -(-channels // _JOINING_THREADS), _JOINING_THREADS, a.workspace, a.mean, a.var, *numbers)
