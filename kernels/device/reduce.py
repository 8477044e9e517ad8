"""Reductions over the lanes of a warp and over a block. The order is fixed, so that two runs give the same bits."""

from __future__ import annotations

from typing import Any

from numba import cuda, types

from gpuconv.kernels.device.launch import device_function
from gpuconv.kernels.device.memory import ld, st
from gpuconv.kernels.device.registers import unrolled
from gpuconv.kernels.device.words import u32

WARP = 32
ALL_LANES = 0xFFFFFFFF


def reduction(lanes: int, threads: int, dtype: str, *, largest: bool = False) -> Any:
    """A device function that gives each thread the sum, or the maximum, of a value over its ``lanes``.

    Lanes are neighbouring threads: a power of two, at most 32, reduced by shuffles; or all ``threads`` of the block,
    through shared memory. All of them must call it. If any value is NaN, so is the result.
    """
    real = getattr(types, dtype)
    warps, whole_block = threads // WARP, lanes > WARP
    lanes = min(lanes, WARP)

    @device_function
    def together(a: Any, b: Any) -> Any:
        if largest:
            return a if a >= b or a != a else b
        return a + b

    @device_function
    def in_warp(value: Any) -> Any:
        distance = lanes // 2
        while distance > 0:
            value = together(value, cuda.shfl_xor_sync(ALL_LANES, value, distance))
            distance = distance // 2
        return value

    @device_function
    def in_block(value: Any) -> Any:
        parts = cuda.shared.array(warps, real)
        thread = u32(cuda.threadIdx.x)
        value = in_warp(value)
        # Of the value before this one, if there was one.
        cuda.syncthreads()
        if thread % WARP == 0:
            st(parts, thread // WARP, value)
        cuda.syncthreads()
        value = ld(parts, 0)
        for i in range(1, warps):
            value = together(value, ld(parts, i))
        return value

    return in_block if whole_block else in_warp


def column_reduction(columns: int, threads: int, dtype: str) -> Any:
    """A device function that gives thread ``j`` of the first ``columns`` the sum over threads ``j, j + columns, ...``.

    ``columns`` is a power of two, at most 32, and ``threads`` a multiple of 32; all of the block must call it, once.
    First up to four neighbouring rows of ``columns`` threads are added in pairs, by shuffles within a warp, then these
    sums one after the other: in the same order for 4 columns as for 8.
    """
    real, together = getattr(types, dtype), min(WARP, 4 * columns)
    sums_each = threads // together
    size = sums_each * columns

    @device_function
    def in_block(value: Any) -> Any:
        sums = cuda.shared.array(size, real)
        thread = u32(cuda.threadIdx.x)
        distance = columns
        while distance < together:
            value += cuda.shfl_xor_sync(ALL_LANES, value, distance)
            distance = distance * 2
        group, lane = divmod(thread, together)
        if lane < columns:
            st(sums, group * columns + lane, value)
        cuda.syncthreads()
        if thread < columns:
            for i in range(1, sums_each):
                value += ld(sums, i * columns + thread)
        return value

    return in_block


def reduce_scatter(count: int) -> Any:
    """A device function of (values, lane) for ``count`` values in each lane: gives each lane one sum over all lanes.

    ``count`` is a power of two, at most 32. A lane gets the sum of the value numbered ``lane · count // 32``. In each
    round, a lane keeps half of its values and sends the other half to a lane that keeps those.
    """

    @device_function
    def exchange(i: int, half: int, distance: int, values: Any, lane: Any) -> None:
        upper = (lane & distance) != 0
        low, high = values[i], values[i + half]
        keep, send = (high if upper else low), (low if upper else high)
        values[i] = keep + cuda.shfl_xor_sync(ALL_LANES, send, distance)

    def rounds(values_left: int, distance: int) -> Any:
        if values_left == 1:
            last = distance == 1

            def add(values: Any, lane: Any) -> None:
                values[0] += cuda.shfl_xor_sync(ALL_LANES, values[0], distance)

            this_round = device_function(add)
        else:
            half, last = values_left // 2, distance == 1
            exchange_all = unrolled(exchange, half)

            def halve(values: Any, lane: Any) -> None:
                exchange_all(half, distance, values, lane)

            this_round = device_function(halve)
        rest = None if last else rounds(max(1, values_left // 2), distance // 2)

        def all_rounds(values: Any, lane: Any) -> None:
            this_round(values, lane)
            rest(values, lane)

        return this_round if last else device_function(all_rounds)

    return rounds(count, 16)
