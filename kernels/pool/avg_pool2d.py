"""Average of each window: one thread computes one window. Every geometry.

A thread adds up what its window holds of the input and divides by the count of elements, by ``r · s``, or by what was
asked for; the count differs where a window reaches over a border. Where rows of windows are aligned, neither
overlapping nor padded, as with 2x2 windows and stride 2 on an even width, a row is one access.

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
from gpuconv.kernels.pool.pooling import Tiling, divisor, padded, row_vector, tilings
from gpuconv.kernels.variant import Arguments

__all__ = ["Tiling", "calls", "tilings"]


@specialised
def _kernel(
    geometry: Pool2dGeometry, threads: int, dtype: str, vector: int, include_padding: bool, override: int | None
) -> Callable[..., None]:
    """The kernel for images of a geometry, whatever their number: ``geometry.n`` and ``c`` are not looked at."""
    real = getattr(types, dtype)
    load = {1: ldg_if, 2: ldg2_if, 4: ldg4_if}[vector]
    h, w, r, s, p, q = (getattr(geometry, name) for name in "hwrspq")
    stride_h, stride_w = geometry.stride
    top, left = geometry.padding[0][0], geometry.padding[1][0]
    guarded = padded(geometry)
    divide = divisor(geometry, dtype, include_padding, override)

    element = element_of_thread(threads, p, q)

    @jit(launch_bounds=threads)
    def avg_pool2d(x: Any, out: Any, windows: Any) -> None:
        i, plane, window_row, window_column = element()
        if i < windows:
            row, column = i32(window_row) * stride_h - top, i32(window_column) * stride_w - left
            first = (i32(plane) * h + row) * w + column
            total = real(0)
            for dr in range(r):
                inside_row = (u32(row + dr) < h) | (not guarded)
                if vector > 1:
                    values = load(x, first + dr * w, inside_row)
                    for ds in range(s):
                        total += values[ds]
                else:
                    for ds in range(s):
                        inside = (inside_row & (u32(column + ds) < w)) | (not guarded)
                        total += load(x, first + (dr * w + ds), inside)
            st(out, i, total / divide(i32(window_row), i32(window_column)))

    return avg_pool2d


def calls(a: Arguments, geometry: Pool2dGeometry, tiling: Tiling) -> Iterator[Call]:
    """One launch, a thread for each window."""
    single, vector = dataclasses.replace(geometry, n=1, c=1), row_vector(geometry, a.dtype, a.aligned("x"))
    kernel = _kernel(single, tiling.threads, a.dtype, vector, a.count_include_pad, a.divisor_override)
    yield call(kernel, -(-a.out.size // tiling.threads), tiling.threads, a.x, a.out, a.out.size)
