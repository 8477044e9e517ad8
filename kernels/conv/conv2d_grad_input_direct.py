"""Direct gradient for a convolution's input: one thread computes one element. Every geometry, float32 and float64.

A thread gathers: for each tap of the window it looks which output position, if any, met its element with that tap
(``row + top - dr · dilation`` must be a multiple of the stride, and inside the output), and sums over the filters of
its group. Each element is written once, by one thread, so the order of the sum is fixed. A block computes ``threads``
elements that follow each other in memory: with stride 1 neighbouring lanes read neighbouring gradients, and one weight,
which is a broadcast. With a stride, lanes of different remainders take turns.

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
from gpuconv.kernels.conv.conv2d_direct import Tiling, tilings
from gpuconv.kernels.device import Call, call, element_of_thread, fma, jit, ldg, st, u32
from gpuconv.kernels.variant import Arguments

__all__ = ["Tiling", "calls", "tilings"]


@specialised
def _kernel(geometry: Conv2dGeometry, tiling: Tiling, dtype: str) -> Callable[..., None]:
    """The kernel for images of a geometry, whatever their number: ``geometry.n`` is not looked at."""
    real = getattr(types, dtype)
    threads = tiling.threads
    c, h, w, k, r, s, p, q = (getattr(geometry, name) for name in "chwkrspq")
    channels, filters = c // geometry.groups, k // geometry.groups
    (stride_h, stride_w), (dilation_h, dilation_w) = geometry.stride, geometry.dilation
    top, left = geometry.padding[0][0], geometry.padding[1][0]
    plane, taps = p * q, channels * r * s

    element = element_of_thread(threads, h, w)

    @jit(launch_bounds=threads)
    def conv2d_grad_input_direct(grad: Any, weight: Any, out: Any, elements: Any) -> None:
        i, image_channel, row, column = element()
        if i < elements:
            row, column = row + top, column + left
            image, channel = divmod(image_channel, c)
            group = channel // channels
            first = group * filters
            planes = (image * k + first) * plane
            windows = (first * channels + channel % channels) * (r * s)
            total = real(0)
            for dr in range(r):
                # Unsigned: a window above the output begins at a huge row, which fails both tests.
                above = row - dr * dilation_h
                output_row = above // stride_h
                if (output_row * stride_h == above) & (output_row < p):
                    for ds in range(s):
                        before = column - ds * dilation_w
                        output_column = before // stride_w
                        if (output_column * stride_w == before) & (output_column < q):
                            position = planes + output_row * q + output_column
                            tap = windows + u32(dr * s) + ds
                            for _ in range(filters):
                                total = fma(ldg(grad, position), ldg(weight, tap), total)
                                position += plane
                                tap += taps
            st(out, i, total)

    return conv2d_grad_input_direct


def calls(a: Arguments, geometry: Conv2dGeometry, tiling: Tiling) -> Iterator[Call]:
    """One launch, a thread for each element of the gradient."""
    kernel = _kernel(dataclasses.replace(geometry, n=1), tiling, a.dtype)
    yield call(kernel, -(-a.out.size // tiling.threads), tiling.threads, a.grad, a.weight, a.out, a.out.size)
