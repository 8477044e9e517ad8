"""Gradient for a depthwise convolution's weight: all taps of a filter in one pass over the maps.

Where a filter sees one channel, its gradient is a few sums over all positions: ``r · s`` of them, of the output's
gradient times the input that each tap met. A block computes those of one filter over one part of the positions,
numbered image by image. Its threads take neighbouring positions: each reads the gradient once, and the window under a
predicate that is off in the padding, from lines that its neighbours read too, and adds to ``r · s`` sums in registers.
In the end the sums of the threads meet, by shuffles that halve the number of sums in each round, and in shared memory
between warps, always in the same order. With several parts they go to a workspace, which ``partial_sums`` adds up in a
fixed order.

``conv2d_grad_weight_direct`` gives a tap to each thread, and reads both maps nine times for a window of 3x3: on an H100
60 µs for 29 MB of maps, which a copy moves in 10.

Shared bytes: 4 for each warp and tap (float32). Registers aimed at: at most 64 for 3x3. Expected bottleneck: memory
bandwidth; each map is read once from memory, the input ``r · s`` times from the first-level cache.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from numba import cuda, types

from gpuconv.geometry import Conv2dGeometry
from gpuconv.kernels.compiled import specialised
from gpuconv.kernels.device.host import CLOCK, LAUNCH, MULTIPROCESSORS, NEXT_LAUNCH, Answer, Refusal
from gpuconv.kernels.device.launch import Call, call, device_function, jit
from gpuconv.kernels.device.memory import ld, ldg, ldg_if, st
from gpuconv.kernels.device.reduce import WARP, reduce_scatter
from gpuconv.kernels.device.registers import fma, unrolled
from gpuconv.kernels.device.words import minimum, u32
from gpuconv.kernels.partial_sums import sum_parts
from gpuconv.kernels.variant import Arguments

#: Sums of a thread, at most one a lane.
_MOST_TAPS = 32
# Of the estimate: instructions of a position and of each of its taps; microseconds that a position's loads take to
# arrive; bytes a microsecond of a copy. No GPU has timed this kernel.
_POSITION, _TAP, _LATENCY, _BANDWIDTH = 20, 5, 0.6, 2.8e6


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How the work is cut up.

    Attributes:
        threads: threads a block, a multiple of 32.
        parts: into how many parts a filter's sums are cut; at most 65,535.
    """

    threads: int
    parts: int


def supports(geometry: Conv2dGeometry) -> Answer:
    """True where a filter sees one channel, through a window of at most 32 taps."""
    if geometry.c != geometry.groups:
        return Refusal(f"a filter sees {geometry.c // geometry.groups} channels: this is for one")
    if geometry.r * geometry.s > _MOST_TAPS:
        return Refusal(f"a window of {geometry.r}x{geometry.s} taps: the registers are for {_MOST_TAPS} sums")
    return True


def estimate(geometry: Conv2dGeometry, tiling: Tiling) -> float:
    """Microseconds on an H100, about: what ranks tilings."""
    taps, positions = geometry.r * geometry.s, geometry.n * geometry.p * geometry.q
    turns = -(-positions // (tiling.parts * tiling.threads))
    blocks = -(-geometry.k * tiling.parts // MULTIPROCESSORS)
    issue = blocks * turns * tiling.threads / (4 * WARP) * (_POSITION + _TAP * taps) / CLOCK
    traffic = 4 * positions * geometry.k + 4 * geometry.n * geometry.c * geometry.h * geometry.w
    waves = -(-blocks * tiling.threads // 1024)
    found = LAUNCH + max(issue, traffic / _BANDWIDTH, waves * turns * _LATENCY)
    return found + NEXT_LAUNCH if tiling.parts > 1 else found


def tilings(geometry: Conv2dGeometry) -> tuple[Tiling, ...]:
    """By estimated time: blocks of 256 and 128 threads with the best number of parts, and with one."""
    positions, found = geometry.n * geometry.p * geometry.q, []
    for threads in (256, 128):
        most = max(1, min(positions // (4 * threads), 65_535))
        cuts = [Tiling(threads, parts) for parts in (2**i for i in range(16)) if parts <= most]
        found += [min(cuts, key=lambda cut: estimate(geometry, cut)), cuts[0]]
    return tuple(sorted(dict.fromkeys(found), key=lambda tiling: estimate(geometry, tiling)))


def workspace_size(geometry: Conv2dGeometry, tiling: Tiling) -> int:
    """Elements of the workspace: one for each part of each weight, none if there is one part."""
    return tiling.parts * geometry.k * geometry.r * geometry.s if tiling.parts > 1 else 0


@specialised
def _kernel(geometry: Conv2dGeometry, threads: int, dtype: str) -> Callable[..., None]:
    """The kernel for images of a geometry, whatever their number: ``geometry.n`` is not looked at."""
    real = getattr(types, dtype)
    c, h, w, k, r, s, p, q = (getattr(geometry, name) for name in "chwkrspq")
    (stride_h, stride_w), (dilation_h, dilation_w) = geometry.stride, geometry.dilation
    top, left = geometry.padding[0][0], geometry.padding[1][0]
    padded = geometry.padding != ((0, 0), (0, 0))
    taps, filters, pixels, plane = r * s, k // c, p * q, h * w
    elements = k * taps
    # Sums are exchanged in pairs: as many as the next power of two.
    count = 1 << (taps - 1).bit_length()
    warps, lanes_a_sum = threads // WARP, WARP // count
    shared_sums = warps * count
    exchange = reduce_scatter(count)

    @device_function
    def tap(i: int, totals: Any, x: Any, value: Any, offset: Any, row: Any, column: Any) -> None:
        down, across = i // s * dilation_h, i % s * dilation_w
        at = offset + (down * w + across)
        # Unsigned, so that one comparison tests both borders.
        found = ldg_if(x, at, (row + down < h) & (column + across < w)) if padded else ldg(x, at)
        totals[i] = fma(value, found, totals[i])

    all_taps = unrolled(tap, taps)

    @jit(launch_bounds=threads)
    def conv2d_grad_weight_depthwise(grad: Any, x: Any, out: Any, positions: Any, positions_a_part: Any) -> None:
        sums = cuda.shared.array(shared_sums, real)
        totals = cuda.local.array(count, real)
        for i in range(count):
            totals[i] = real(0)
        thread, filter_, part = u32(cuda.threadIdx.x), u32(cuda.blockIdx.x), u32(cuda.blockIdx.y)
        channel = filter_ // filters
        position = part * positions_a_part + thread
        end = minimum(part * positions_a_part + positions_a_part, positions)
        while position < end:
            image, pixel = divmod(position, pixels)
            row, column = divmod(pixel, q)
            row, column = row * stride_h - top, column * stride_w - left
            value = ldg(grad, (image * k + filter_) * pixels + pixel)
            all_taps(totals, x, value, (image * c + channel) * plane + row * w + column, row, column)
            position += threads

        warp, lane = divmod(thread, WARP)
        exchange(totals, lane)
        if lane % lanes_a_sum == 0:
            st(sums, warp * count + lane // lanes_a_sum, totals[0])
        cuda.syncthreads()
        if thread < taps:
            total = ld(sums, thread)
            for i in range(1, warps):
                total += ld(sums, i * count + thread)
            st(out, part * elements + filter_ * taps + thread, total)

    return conv2d_grad_weight_depthwise


def calls(a: Arguments, geometry: Conv2dGeometry, tiling: Tiling) -> Iterator[Call]:
    """Partial sums, and with several parts their reduction; for an empty batch too: the gradient is zero."""
    kernel = _kernel(dataclasses.replace(geometry, n=1), tiling.threads, a.dtype)
    positions = geometry.n * geometry.p * geometry.q
    target = a.out if tiling.parts == 1 else a.workspace
    grid = geometry.k, tiling.parts
    yield call(kernel, grid, tiling.threads, a.grad, a.x, target, positions, -(-positions // tiling.parts))
    if tiling.parts > 1:
        yield sum_parts(a.workspace, a.out, tiling.parts)
