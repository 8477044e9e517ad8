"""Direct gradient for a convolution's weight: one thread computes one element, or a part of its sum. Every geometry.

A weight's gradient is a sum over all images and output positions. The rows of all output maps, ``n · p`` of them, are
cut into ``parts``; a thread walks along the rows of one part and multiplies the output's gradient with the input that
its tap met, read under a predicate that is off in the padding. A block computes ``threads`` elements that follow each
other in memory, of one part: neighbouring lanes have neighbouring taps, so that their inputs overlap and their gradient
is a broadcast. With several parts the sums go to a workspace, which ``partial_sums`` adds up in a fixed order.

Shared memory: none. Registers aimed at: at most 40, for full occupancy at 256 threads a block.

Expected bottleneck: the load units, as there are two loads for each multiply-add; nothing is reused but by the caches.
It is the variant for geometries that the others refuse, and the one to compare them with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from numba import cuda, types

from gpuconv.geometry import Conv2dGeometry
from gpuconv.kernels.compiled import specialised
from gpuconv.kernels.device import MULTIPROCESSORS, Call, call, fma, i32, jit, ldg, ldg_if, minimum, st, u32
from gpuconv.kernels.partial_sums import sum_parts
from gpuconv.kernels.variant import Arguments

#: Threads that keep a large GPU busy.
_ENOUGH_THREADS = 1024 * MULTIPROCESSORS
# Nanoseconds of a thread's position, and of a part in the second stage: those of an H100 on LeNet's layers.
_POSITION_NS, _PART_NS = 48, 35


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How the work is cut up.

    Attributes:
        threads: elements, and threads, a block.
        parts: into how many parts the sum is cut; at most 65,535.
    """

    threads: int
    parts: int


def _elements(geometry: Conv2dGeometry) -> int:
    return geometry.k * geometry.c // geometry.groups * geometry.r * geometry.s


def _cost(geometry: Conv2dGeometry, tiling: Tiling) -> float:
    """Estimated time, in nanoseconds on a large GPU.

    A thread's positions come one after the other, each with the latency of its loads, and slower where there are more
    threads than that hides. The second stage adds up the parts one after the other, too.
    """
    positions, threads = geometry.n * geometry.p * geometry.q, _elements(geometry) * tiling.parts
    busy = max(1, threads / (_ENOUGH_THREADS / 2))
    return _POSITION_NS * positions / tiling.parts * busy + (_PART_NS * tiling.parts if tiling.parts > 1 else 0)


def tilings(geometry: Conv2dGeometry) -> tuple[Tiling, ...]:
    """As many parts as keep a large GPU busy, a quarter of them, and one, which needs no second stage.

    The quarter comes first where so many parts take longer to add up than they save: of few weights.
    """
    rows = max(1, geometry.n * geometry.p)
    # A grid is at most 65,535 blocks high.
    parts = min(rows, -(-_ENOUGH_THREADS // _elements(geometry)), 65_535)
    many, few = [Tiling(128, parts), Tiling(256, parts)], Tiling(64, -(-parts // 4))
    choices = [few, *many] if _cost(geometry, few) < _cost(geometry, many[0]) else [*many, few]
    return tuple(dict.fromkeys([*choices, Tiling(128, 1)]))


def workspace_size(geometry: Conv2dGeometry, tiling: Tiling) -> int:
    """Elements of the workspace: one for each part of each weight, none if there is one part."""
    return tiling.parts * _elements(geometry) if tiling.parts > 1 else 0


@specialised
def _kernel(geometry: Conv2dGeometry, threads: int, dtype: str) -> Callable[..., None]:
    """The kernel for images of a geometry, whatever their number: ``geometry.n`` is not looked at."""
    real = getattr(types, dtype)
    elements = _elements(geometry)
    c, h, w, k, r, s, p, q = (getattr(geometry, name) for name in "chwkrspq")
    channels, filters = c // geometry.groups, k // geometry.groups
    (stride_h, stride_w), (dilation_h, dilation_w) = geometry.stride, geometry.dilation
    top, left = geometry.padding[0][0], geometry.padding[1][0]
    padded = geometry.padding != ((0, 0), (0, 0))

    @jit(launch_bounds=threads)
    def conv2d_grad_weight_direct(grad: Any, x: Any, out: Any, rows: Any, rows_a_part: Any) -> None:
        i = u32(cuda.blockIdx.x) * threads + cuda.threadIdx.x
        if i < elements:
            part = u32(cuda.blockIdx.y)
            rest, ds = divmod(i, s)
            filter_channel, dr = divmod(rest, r)
            filter_, channel = divmod(filter_channel, channels)
            channel += filter_ // filters * channels
            tap_row, tap_column = i32(dr) * dilation_h - top, i32(ds) * dilation_w - left
            total = real(0)
            row = part * rows_a_part
            end = minimum(row + rows_a_part, rows)
            while row < end:
                image, output_row = divmod(row, p)
                input_row = i32(output_row) * stride_h + tap_row
                grad_offset = ((image * k + filter_) * p + output_row) * q
                x_row = ((i32(image) * c + i32(channel)) * h + input_row) * w
                column = tap_column
                for output_column in range(q):
                    offset = x_row + column
                    if padded:
                        # Unsigned, so that one comparison tests both borders.
                        value = ldg_if(x, offset, (u32(input_row) < h) & (u32(column) < w))
                    else:
                        value = ldg(x, offset)
                    total = fma(ldg(grad, grad_offset + output_column), value, total)
                    column += stride_w
                row += 1
            st(out, part * elements + i, total)

    return conv2d_grad_weight_direct


def calls(a: Arguments, geometry: Conv2dGeometry, tiling: Tiling) -> Iterator[Call]:
    """Partial sums, and with several parts their reduction; for an empty batch too: the gradient is zero."""
    kernel = _kernel(dataclasses.replace(geometry, n=1), tiling.threads, a.dtype)
    grid, rows = (-(-a.out.size // tiling.threads), tiling.parts), geometry.n * geometry.p
    target = a.out if tiling.parts == 1 else a.workspace
    yield call(kernel, grid, tiling.threads, a.grad, a.x, target, rows, -(-rows // tiling.parts))
    if tiling.parts > 1:
        yield sum_parts(a.workspace, a.out, tiling.parts)
