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
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cuda, types

from gpuconv.geometry import Pool2dGeometry
from gpuconv.kernels.compiled import specialised
from gpuconv.kernels.device import Launch, aligned, array_type, i32, jit, ldg2_if, ldg4_if, ldg_if, st, u32
from gpuconv.kernels.pool.pooling import Tiling, divisor, padded, row_vector, supports, tilings

__all__ = ["Tiling", "launch", "launches", "supports", "tilings"]


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

    @jit(launch_bounds=threads)
    def avg_pool2d(x: Any, out: Any, windows: Any) -> None:
        i = u32(cuda.blockIdx.x) * threads + cuda.threadIdx.x
        if i < windows:
            rest, window_column = divmod(i, q)
            plane, window_row = divmod(rest, p)
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


def launches(
    geometry: Pool2dGeometry,
    tiling: Tiling,
    dtype: Any,
    *,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    aligned16: bool = True,
) -> tuple[Launch, ...]:
    """The one launch of :func:`launch`, or none for an empty batch.

    Args:
        geometry, tiling, dtype, count_include_pad, divisor_override: see :func:`launch`.
        aligned16: the input begins at a multiple of 16 bytes.

    Raises:
        ValueError: an array is too large for 32-bit offsets.
    """
    if not (answer := supports(geometry)):
        raise ValueError(f"avg_pool2d: {answer}")
    windows = geometry.n * geometry.c * geometry.p * geometry.q
    if not windows:
        return ()
    name = np.dtype(dtype).name
    single, vector = dataclasses.replace(geometry, n=1, c=1), row_vector(geometry, name, aligned16)
    kernel = _kernel(single, tiling.threads, name, vector, count_include_pad, divisor_override)
    signature = (array_type(name),) * 2 + (types.int64,)
    return (Launch(kernel, signature, (-(-windows // tiling.threads), 1, 1), (tiling.threads, 1, 1)),)


def launch(
    x: Any,
    out: Any,
    geometry: Pool2dGeometry,
    tiling: Tiling,
    stream: Any = None,
    *,
    count_include_pad: bool,
    divisor_override: int | None,
) -> None:
    """``out``, (n, c, p, q), is the sum of each window of ``x`` (n, c, h, w) divided by its count of elements.

    Padding counts if ``count_include_pad``; ``divisor_override``, if not None, takes the place of the count.

    Raises:
        ValueError: an array is too large for 32-bit offsets.
    """
    options: dict[str, Any] = {"count_include_pad": count_include_pad, "divisor_override": divisor_override}
    for one in launches(geometry, tiling, x.dtype, **options, aligned16=aligned(x)):
        one(stream, x.reshape(-1), out.reshape(-1), out.size)
