"""Gradient of average pooling: one thread computes one element of the input's gradient. Every geometry.

A thread goes through the windows that cover its element, at most ``ceil(r / stride) · ceil(s / stride)`` of them, top
to bottom and left to right, and adds up their gradients, each divided by what its window was divided by (once, at the
end, where that is the same for all). A scatter would need atomics, and a different order of summation in each run.

Shared memory: none. Registers aimed at: at most 32, for full occupancy. Expected bottleneck: memory bandwidth; the
caches serve a gradient to the elements that share it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from numba import types

from gpuconv.geometry import Pool2dGeometry
from gpuconv.kernels.compiled import specialised
from gpuconv.kernels.device import Call, call, element_of_thread, i32, jit, ldg_if, st
from gpuconv.kernels.pool.pooling import Tiling, covering, divisor, first_covering, tilings, uniform
from gpuconv.kernels.variant import Arguments

__all__ = ["Tiling", "calls", "tilings"]


@specialised
def _kernel(
    geometry: Pool2dGeometry, threads: int, dtype: str, include_padding: bool, override: int | None
) -> Callable[..., None]:
    """The kernel for images of a geometry, whatever their number: ``geometry.n`` and ``c`` are not looked at."""
    real = getattr(types, dtype)
    h, w, r, s, p, q = (getattr(geometry, name) for name in "hwrspq")
    stride_h, stride_w = geometry.stride
    top, left = geometry.padding[0][0], geometry.padding[1][0]
    (down, across), first_window = covering(geometry), first_covering(geometry)
    divide = divisor(geometry, dtype, include_padding, override)
    divide_once = uniform(geometry, include_padding, override)

    element = element_of_thread(threads, h, w)

    @jit(launch_bounds=threads)
    def avg_pool2d_grad(grad: Any, out: Any, elements: Any) -> None:
        i, plane, row, column = element()
        if i < elements:
            column, row = column + left, row + top
            first_row, first_column = first_window(row, column)
            total = real(0)
            for a in range(down):
                window_row = first_row + a
                covers_row = (window_row < p) & (row - window_row * stride_h < r)
                for b in range(across):
                    window_column = first_column + b
                    covers = covers_row & (window_column < q) & (column - window_column * stride_w < s)
                    window = (plane * p + window_row) * q + window_column
                    value = ldg_if(grad, window, covers)
                    if not divide_once:
                        # A window that does not cover the element may not exist, and have any count.
                        value = value / divide(i32(window_row), i32(window_column)) if covers else real(0)
                    total += value
            st(out, i, total / divide(i32(0), i32(0)) if divide_once else total)

    return avg_pool2d_grad


def calls(a: Arguments, geometry: Pool2dGeometry, tiling: Tiling) -> Iterator[Call]:
    """One launch, a thread for each element of the gradient."""
    single = dataclasses.replace(geometry, n=1, c=1)
    kernel = _kernel(single, tiling.threads, a.dtype, a.count_include_pad, a.divisor_override)
    yield call(kernel, -(-a.out.size // tiling.threads), tiling.threads, a.grad, a.out, a.out.size)
