"""Direct convolution: one thread computes one output. Every geometry, float32 and float64.

A thread sums over its window, channel by channel, ``c/groups · r · s`` multiply-adds; it reads both factors of each
through the read-only cache, the input under a predicate that is off in the padding. A block computes ``threads``
outputs that follow each other in memory: neighbouring lanes have neighbouring columns, so that a warp's loads of the
input join into few sectors (with stride 1, about one 32-byte sector for 8 lanes) and its loads of a weight are
broadcasts.

Shared memory: none. Registers aimed at: at most 40, for full occupancy at 256 threads a block.

Expected bottleneck: the load units, as there are two loads for each multiply-add; nothing is reused but by the caches.
It is the variant for geometries that the others refuse, and the one to compare them with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from numba import types

from gpuconv.geometry import Conv2dGeometry
from gpuconv.kernels.compiled import specialised
from gpuconv.kernels.device import Call, call, element_of_thread, fma, i32, jit, ldg, ldg_if, st, u32
from gpuconv.kernels.variant import Arguments


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How the work is cut up.

    Attributes:
        threads: threads a block, and results: outputs, or elements of a gradient.
    """

    threads: int


def tilings(geometry: Conv2dGeometry) -> tuple[Tiling, ...]:
    """Blocks of 256, 128 and 64 threads; smaller ones spread few results over more multiprocessors."""
    return Tiling(256), Tiling(128), Tiling(64)


@specialised
def _kernel(geometry: Conv2dGeometry, tiling: Tiling, dtype: str, has_bias: bool) -> Callable[..., None]:
    """The kernel for images of a geometry, whatever their number: ``geometry.n`` is not looked at."""
    real = getattr(types, dtype)
    threads = tiling.threads
    c, h, w, k, r, s, p, q = (getattr(geometry, name) for name in "chwkrspq")
    channels, filters = c // geometry.groups, k // geometry.groups
    (stride_h, stride_w), (dilation_h, dilation_w) = geometry.stride, geometry.dilation
    (top, bottom), (left, right) = geometry.padding
    padded = top + bottom + left + right > 0
    plane, window, taps = h * w, r * s, channels * r * s

    element = element_of_thread(threads, p, q)

    @jit(launch_bounds=threads)
    def conv2d_direct(x: Any, weight: Any, bias: Any, out: Any, outputs: Any) -> None:
        i, image_filter, row, column = element()
        if i < outputs:
            image, filter_ = divmod(image_filter, k)
            top_row, left_column = i32(row) * stride_h - top, i32(column) * stride_w - left
            first = i32(image) * c + i32(filter_ // filters) * channels
            # Signed, so that the compiler may fold the constants added to them into the addresses of the loads.
            x_offset = first * plane + top_row * w + left_column
            w_offset = i32(filter_) * taps
            total = ldg(bias, filter_) if has_bias else real(0)
            for _ in range(channels):
                for dr in range(r):
                    for ds in range(s):
                        offset = x_offset + (dr * dilation_h * w + ds * dilation_w)
                        if padded:
                            # Unsigned, so that one comparison tests both borders.
                            inside = (u32(top_row) + dr * dilation_h < h) & (u32(left_column) + ds * dilation_w < w)
                            value = ldg_if(x, offset, inside)
                        else:
                            value = ldg(x, offset)
                        total = fma(value, ldg(weight, w_offset + (dr * s + ds)), total)
                x_offset += plane
                w_offset += window
            st(out, i, total)

    return conv2d_direct


def calls(a: Arguments, geometry: Conv2dGeometry, tiling: Tiling) -> Iterator[Call]:
    """One launch, a thread for each output."""
    kernel = _kernel(dataclasses.replace(geometry, n=1), tiling, a.dtype, a.has("bias"))
    blocks = -(-a.out.size // tiling.threads)
    yield call(kernel, blocks, tiling.threads, a.x, a.weight, a.bias, a.out, a.out.size)
