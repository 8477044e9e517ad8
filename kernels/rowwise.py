"""How kernels that work on rows of a matrix share a row among threads, and bring together what these found."""

from __future__ import annotations

import dataclasses
from typing import Any

from numba import cuda, types

from gpuconv.kernels.device import MULTIPROCESSORS, device_function, i32, ld, st

_WARP = 32
_ALL_LANES = 0xFFFFFFFF


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How the work is cut up.

    Attributes:
        threads: threads a block, a multiple of 32.
        lanes: threads a row, a power of two: at most 32, or ``threads``.
    """

    threads: int
    lanes: int


def tilings(shape: tuple[int, int]) -> tuple[Tiling, ...]:
    """For rows of so many columns: as many lanes as leave each a few columns, twice and half as many.

    A block for each row comes first where the rows are long, and too few to give each multiprocessor four blocks of
    four rows: a thread then waits for a quarter of the loads, one behind the other. On an H100 it takes 32 rows of 1000
    columns 9 µs, and a warp for each 22.
    """
    rows, columns = shape
    if columns > 4096:
        return Tiling(256, 256), Tiling(128, 128), Tiling(128, 32)
    lanes = 4
    while lanes < 32 and lanes * 4 < columns:
        lanes *= 2
    choices = [Tiling(128, lanes), Tiling(128, min(32, 2 * lanes)), Tiling(64, max(4, lanes // 2)), Tiling(128, 128)]
    if columns >= 8 * _WARP and rows < 16 * MULTIPROCESSORS:
        choices.insert(0, choices.pop())
    return tuple(dict.fromkeys(choices))


def meeting(tiling: Tiling, dtype: str, *, largest: bool) -> Any:
    """A device function that gives each thread of a row the sum, or the largest, of a value of each of them.

    All threads of the block have to call it. The order is fixed. A NaN among the values gives NaN.
    """
    real = getattr(types, dtype)
    lanes, warps = min(tiling.lanes, _WARP), tiling.threads // _WARP
    whole_block = tiling.lanes > _WARP

    @device_function
    def together(a: Any, b: Any) -> Any:
        if largest:
            return a if a >= b or a != a else b
        return a + b

    @device_function
    def in_warp(value: Any) -> Any:
        distance = lanes // 2
        while distance > 0:
            value = together(value, cuda.shfl_xor_sync(_ALL_LANES, value, distance))
            distance = distance // 2
        return value

    @device_function
    def in_block(value: Any) -> Any:
        parts = cuda.shared.array(warps, real)
        thread = i32(cuda.threadIdx.x)
        value = in_warp(value)
        # Of the value before this one, if there was one.
        cuda.syncthreads()
        if (thread & (_WARP - 1)) == 0:
            st(parts, thread >> 5, value)
        cuda.syncthreads()
        value = ld(parts, 0)
        for i in range(1, warps):
            value = together(value, ld(parts, i))
        return value

    return in_block if whole_block else in_warp
