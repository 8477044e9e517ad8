"""Gradient of max pooling: each window's gradient goes to its winner. Every geometry; each element is written once.

A thread computes a patch of ``rows x columns`` elements of the input's gradient. It goes through the windows that reach
into the patch, top to bottom and left to right; reads where each has its winner, and, if that is in the patch, the
window's gradient, which it adds there. (A scatter would need atomics, and a different order of summation in each run.)
Windows that do not overlap are a case like others: with 2x2 windows and stride 2 a patch of 2x4 has two of them.

Shared memory: none. Registers aimed at: at most 40. Expected bottleneck: memory bandwidth: rows of a patch are written
with 64 or 128 bits where they are aligned, each gradient is read once, and winners, a byte each, by the few patches
that a window reaches into, mostly from the first-level cache.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from numba import cuda, types

from gpuconv.geometry import Pool2dGeometry, effective
from gpuconv.kernels.compiled import specialised
from gpuconv.kernels.device.host import widest_access
from gpuconv.kernels.device.launch import Call, call, device_function, jit
from gpuconv.kernels.device.memory import ldg_if
from gpuconv.kernels.device.registers import unrolled, vector_access
from gpuconv.kernels.device.tiles import element_of_thread
from gpuconv.kernels.device.words import u32
from gpuconv.kernels.variant import Arguments

__all__ = ["Tiling", "calls", "tilings"]


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How the work is cut up.

    Attributes:
        threads: threads a block.
        rows, columns: elements of a patch, which a thread computes; those at the lower and right border are cut off.
    """

    threads: int
    rows: int
    columns: int


def tilings(geometry: Pool2dGeometry) -> tuple[Tiling, ...]:
    """Patches of up to four columns, so that they divide a row, and as many rows as a window moves on."""
    columns = next((count for count in (4, 2) if geometry.w % count == 0), min(4, geometry.stride[1]))
    rows = min(4, geometry.stride[0])
    # Of a small input single rows are spread over more threads.
    choices = [Tiling(256, rows, columns), Tiling(128, rows, columns), Tiling(128, 1, columns), Tiling(64, 1, 1)]
    return tuple(dict.fromkeys(choices))


def _windows(patch: int, window: int, stride: int, before: int) -> int:
    """The most windows that reach into a patch, along one axis.

    ``window``: with its dilation; ``before``: padding.
    """
    # Where the patch begins, counted from a window's beginning: the same everywhere if patches move as windows do.
    starts = [before % stride] if patch % stride == 0 else range(stride)
    return max((start + patch - 1) // stride + (window - 1 - start) // stride + 1 for start in starts)


@specialised
def _kernel(geometry: Pool2dGeometry, tiling: Tiling, dtype: str, vector: int) -> Callable[..., None]:
    """The kernel for any number of planes: ``geometry.n`` and ``c`` are not looked at."""
    real = getattr(types, dtype)
    h, w, r, s, p, q = (getattr(geometry, name) for name in "hwrspq")
    (stride_h, stride_w), (dilation_h, dilation_w) = geometry.stride, geometry.dilation
    top, left = geometry.padding[0][0], geometry.padding[1][0]
    threads, rows, columns = tiling.threads, tiling.rows, tiling.columns
    size, patches_down, patches_across = rows * columns, -(-h // rows), -(-w // columns)
    down = _windows(rows, effective(r, dilation_h), stride_h, top)
    across = _windows(columns, effective(s, dilation_w), stride_w, left)
    whole_rows, whole_columns = h % rows == 0, w % columns == 0
    store = vector_access(vector)[2]

    @device_function
    def add(k: int, totals: Any, place: Any, value: Any) -> None:
        totals[k] += value if place == k else real(0)

    @device_function
    def store_some(i: int, totals: Any, line: Any, out: Any, first: Any, rows_left: Any, columns_left: Any) -> None:
        row, column = divmod(i * vector, columns)
        for j in range(vector):
            line[j] = totals[i * vector + j]
        if (whole_rows | (row < rows_left)) & (whole_columns | (column < columns_left)):
            store(line, out, first + (row * w + column))

    add_all, store_all = unrolled(add, size), unrolled(store_some, size // vector)

    element = element_of_thread(threads, patches_down, patches_across)

    @jit(launch_bounds=threads)
    def max_pool2d_grad(grad: Any, winners: Any, out: Any, patches: Any) -> None:
        totals, line = cuda.local.array(size, real), cuda.local.array(vector, real)
        i, plane, down_here, across_here = element()
        if i < patches:
            for k in range(size):
                totals[k] = real(0)
            row, column = down_here * rows, across_here * columns
            # Unsigned, here and below: a window above the first one has a huge number, as what lies above the patch.
            first_row = (row + (top + rows - 1)) // stride_h - (down - 1)
            first_column = (column + (left + columns - 1)) // stride_w - (across - 1)
            for a in range(down):
                window_row = first_row + a
                for b in range(across):
                    window_column = first_column + b
                    exists = (window_row < p) & (window_column < q)
                    window = (plane * p + window_row) * q + window_column
                    winner_row, winner_column = divmod(u32(ldg_if(winners, window, exists)), s)
                    below = window_row * stride_h + winner_row * dilation_h - top - row
                    beside = window_column * stride_w + winner_column * dilation_w - left - column
                    inside = exists & (below < rows) & (beside < columns)
                    add_all(totals, below * columns + beside, ldg_if(grad, window, inside))
            store_all(totals, line, out, (plane * h + row) * w + column, h - row, w - column)

    return max_pool2d_grad


def calls(a: Arguments, geometry: Pool2dGeometry, tiling: Tiling) -> Iterator[Call]:
    """One launch: a thread for each patch."""
    vector = widest_access(tiling.columns, a.dtype) if geometry.w % tiling.columns == 0 and a.aligned("out") else 1
    patches = geometry.n * geometry.c * -(-geometry.h // tiling.rows) * -(-geometry.w // tiling.columns)
    kernel = _kernel(dataclasses.replace(geometry, n=1, c=1), tiling, a.dtype, vector)
    yield call(kernel, -(-patches // tiling.threads), tiling.threads, a.grad, a.winners, a.out, patches)
