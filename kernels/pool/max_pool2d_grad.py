"""Gradient of max pooling: each window's gradient goes to its winner. Every geometry; each element is written once.

**Windows that do not overlap**: strides cut the input into cells, of which each holds one window at most (those at the
lower and right border may hold none, and a stride larger than the window leaves gaps). A thread reads one gradient and
one winner and writes a cell, in rows of 64 or 128 bits where they are aligned: all of the input's gradient in one pass.

**Windows that overlap**: a thread computes one element. It goes through the windows that cover it, at most ``ceil(r /
stride) · ceil(s / stride)`` of them, top to bottom and left to right, and adds the gradients of those that it won. A
scatter would need atomics, and a different order of summation in each run.

Shared memory: none. Registers aimed at: at most 32, for full occupancy. Expected bottleneck: memory bandwidth; where
windows overlap, the loads of the winners, which the caches serve.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numba import cuda, types

from gpuconv.geometry import Pool2dGeometry, effective
from gpuconv.kernels.compiled import specialised
from gpuconv.kernels.device import Call, call, jit, ldg_if, st, u32, vector_access
from gpuconv.kernels.pool.pooling import Tiling, tilings
from gpuconv.kernels.variant import Arguments

__all__ = ["Tiling", "calls", "tilings"]


def _apart(geometry: Pool2dGeometry) -> bool:
    """Whether no element belongs to two windows."""
    (stride_h, stride_w), (dilation_h, dilation_w) = geometry.stride, geometry.dilation
    return stride_h >= effective(geometry.r, dilation_h) and stride_w >= effective(geometry.s, dilation_w)


def _cells(geometry: Pool2dGeometry) -> tuple[int, int]:
    """Cells along the height and the width."""
    (top, _), (left, _) = geometry.padding
    return -(-(geometry.h + top) // geometry.stride[0]), -(-(geometry.w + left) // geometry.stride[1])


@specialised
def _cell_kernel(geometry: Pool2dGeometry, threads: int, dtype: str, vector: int) -> Callable[..., None]:
    """For windows that do not overlap; ``geometry.n`` and ``c`` are not looked at."""
    real = getattr(types, dtype)
    h, w, s, p, q = (getattr(geometry, name) for name in "hwspq")
    (stride_h, stride_w), (dilation_h, dilation_w) = geometry.stride, geometry.dilation
    top, left = geometry.padding[0][0], geometry.padding[1][0]
    down, across = _cells(geometry)
    store = vector_access(vector)[2]

    @jit(launch_bounds=threads)
    def max_pool2d_grad_apart(grad: Any, winners: Any, out: Any, cells: Any) -> None:
        line = cuda.local.array(vector, real)
        i = u32(cuda.blockIdx.x) * threads + cuda.threadIdx.x
        if i < cells:
            rest, cell_column = divmod(i, across)
            plane, cell_row = divmod(rest, down)
            window = (plane * p + cell_row) * q + cell_column
            exists = (cell_row < p) & (cell_column < q)
            winner, value = u32(ldg_if(winners, window, exists)), ldg_if(grad, window, exists)
            winner_row = winner // s
            winner_column = winner % s * dilation_w
            winner_row *= dilation_h
            row, column = cell_row * stride_h - top, cell_column * stride_w - left
            first = (plane * h + row) * w + column
            for a in range(stride_h):
                if row + a < h:
                    for b in range(0, stride_w, vector):
                        if column + b < w:
                            for j in range(vector):
                                won = (winner_row == a) & (winner_column == b + j)
                                line[j] = value if won else real(0)
                            store(line, out, first + (a * w + b))

    return max_pool2d_grad_apart


@specialised
def _gather_kernel(geometry: Pool2dGeometry, threads: int, dtype: str) -> Callable[..., None]:
    """For windows that overlap; ``geometry.n`` and ``c`` are not looked at."""
    real = getattr(types, dtype)
    h, w, r, s, p, q = (getattr(geometry, name) for name in "hwrspq")
    (stride_h, stride_w), (dilation_h, dilation_w) = geometry.stride, geometry.dilation
    top, left = geometry.padding[0][0], geometry.padding[1][0]
    # Windows that cover an element, along each axis.
    down, across = -(-effective(r, dilation_h) // stride_h), -(-effective(s, dilation_w) // stride_w)

    @jit(launch_bounds=threads)
    def max_pool2d_grad(grad: Any, winners: Any, out: Any, elements: Any) -> None:
        i = u32(cuda.blockIdx.x) * threads + cuda.threadIdx.x
        if i < elements:
            rest = i // w
            column = i % w + left
            plane = rest // h
            row = rest % h + top
            first_row = row // stride_h - (down - 1)
            first_column = column // stride_w - (across - 1)
            total = real(0)
            for a in range(down):
                # Unsigned: a window above the first one has a huge number.
                window_row = first_row + a
                below = row - window_row * stride_h
                tap_row = below // dilation_h
                covers_row = (window_row < p) & (tap_row < r) & (tap_row * dilation_h == below)
                for b in range(across):
                    window_column = first_column + b
                    beside = column - window_column * stride_w
                    tap_column = beside // dilation_w
                    covers = (window_column < q) & (tap_column < s) & (tap_column * dilation_w == beside)
                    covers = covers & covers_row
                    window = (plane * p + window_row) * q + window_column
                    winner = u32(ldg_if(winners, window, covers))
                    won = covers & (winner == tap_row * s + tap_column)
                    total += ldg_if(grad, window, won)
            st(out, i, total)

    return max_pool2d_grad


def calls(a: Arguments, geometry: Pool2dGeometry, tiling: Tiling) -> Iterator[Call]:
    """One launch: a thread for each cell, where windows do not overlap, else for each element of the gradient."""
    single, stride = dataclasses.replace(geometry, n=1, c=1), geometry.stride[1]
    if _apart(geometry):
        down, across = _cells(geometry)
        rows_aligned = geometry.padding[1][0] == 0 and geometry.w % stride == 0
        fits = stride in (2, 4) and stride * np.dtype(a.dtype).itemsize <= 16
        vector = stride if a.aligned("out") and rows_aligned and fits else 1
        items, kernel = geometry.n * geometry.c * down * across, _cell_kernel(single, tiling.threads, a.dtype, vector)
    else:
        items, kernel = a.out.size, _gather_kernel(single, tiling.threads, a.dtype)
    yield call(kernel, -(-items // tiling.threads), tiling.threads, a.grad, a.winners, a.out, items)
