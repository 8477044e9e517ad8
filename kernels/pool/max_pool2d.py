"""Maximum of each window, and which of its elements it was: one thread computes one window. Every geometry.

A thread goes through its window row by row, keeps the largest value and its offset inside the window, and writes both:
the offset as one byte if the window has at most 256 elements. Where rows of windows are aligned, neither overlapping
nor padded, as with 2x2 windows and stride 2 on an even width, a row is one access.

Shared memory: none. Registers aimed at: at most 32, for full occupancy. Expected bottleneck: memory bandwidth, if
windows do not overlap much; the caches serve an input the second time. Large windows on small outputs, as in global
pooling, leave most of the threads without work.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from numba import types

from gpuconv.geometry import Pool2dGeometry
from gpuconv.kernels.compiled import specialised
from gpuconv.kernels.device import Call, call, element_of_thread, i32, jit, ldg2_if, ldg4_if, ldg_if, st, u32
from gpuconv.kernels.pool.pooling import Tiling, keeping_larger, padded, row_vector, tilings
from gpuconv.kernels.variant import Arguments

__all__ = ["Tiling", "calls", "tilings"]


def _offset_type(geometry: Pool2dGeometry) -> str:
    return "uint8" if geometry.r * geometry.s <= 256 else "int32"


@specialised
def _kernel(geometry: Pool2dGeometry, threads: int, dtype: str, vector: int) -> Callable[..., None]:
    """The kernel for images of a geometry, whatever their number: ``geometry.n`` is not looked at."""
    real, offset_type = getattr(types, dtype), getattr(types, _offset_type(geometry))
    load = {1: ldg_if, 2: ldg2_if, 4: ldg4_if}[vector]
    h, w, r, s, p, q = (getattr(geometry, name) for name in "hwrspq")
    (stride_h, stride_w), (dilation_h, dilation_w) = geometry.stride, geometry.dilation
    top, left = geometry.padding[0][0], geometry.padding[1][0]
    guarded, lowest = padded(geometry), float("-inf")
    keep_larger = keeping_larger(guarded=guarded)

    element = element_of_thread(threads, p, q)

    @jit(launch_bounds=threads)
    def max_pool2d(x: Any, out: Any, winners: Any, windows: Any) -> None:
        i, plane, window_row, window_column = element()
        if i < windows:
            row, column = i32(window_row) * stride_h - top, i32(window_column) * stride_w - left
            first = (i32(plane) * h + row) * w + column
            best, winner = real(lowest), i32(-1 if guarded else 0)
            for dr in range(r):
                inside_row = (u32(row + dr * dilation_h) < h) | (not guarded)
                if vector > 1:
                    values = load(x, first + dr * dilation_h * w, inside_row)
                    for ds in range(s):
                        best, winner = keep_larger(best, winner, values[ds], i32(dr * s + ds), inside_row)
                else:
                    for ds in range(s):
                        inside = (inside_row & (u32(column + ds * dilation_w) < w)) | (not guarded)
                        value = load(x, first + (dr * dilation_h * w + ds * dilation_w), inside)
                        best, winner = keep_larger(best, winner, value, i32(dr * s + ds), inside)
            st(out, i, best)
            st(winners, i, offset_type(winner))

    return max_pool2d


def calls(a: Arguments, geometry: Pool2dGeometry, tiling: Tiling) -> Iterator[Call]:
    """One launch, a thread for each window."""
    single, vector = dataclasses.replace(geometry, n=1, c=1), row_vector(geometry, a.dtype, a.aligned("x"))
    kernel, windows = _kernel(single, tiling.threads, a.dtype, vector), a.out.size
    yield call(kernel, -(-windows // tiling.threads), tiling.threads, a.x, a.out, a.winners, windows)
