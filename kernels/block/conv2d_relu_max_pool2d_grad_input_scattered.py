"""Gradient of a fused block for its input: each window adds its winner's patch to the image's gradient.

A window's gradient reaches the input through the taps around its winner, and nowhere else: with 2x2 windows that is a
quarter of the multiply-adds of the unpooled maps, without the zeros around these. A block takes ``channels`` channels
of an image, a warp the filters ``warp, warp + warps, ...``. A lane holds one tap's weights of the warp's filter in
registers. Lanes first fetch a window each: its gradient, zero where ReLU let nothing through, and where its winner's
patch begins. Then the warp goes through these windows in order: each lane adds gradient times weight to its tap's
element, in all channels of the block. A warp adds to a copy of the image's gradient of its own in shared memory, so no
two add to one element, and no warp waits for another one before the end. There the copies are added up in the order of
the warps.

A copy is of the padded image, so that no patch has to be cut. A row holds all channels side by side, and the next one
begins where the lanes of a patch are in as many banks as there are. In float64 a block has half as many warps.

Shared bytes (float32): ``4 · warps · rows · (channels · columns + a few) + 8 · warps · windows at a time``, at most 48
KB. Registers aimed at: at most 64. Expected bottleneck: shared memory, of which a multiply-add reads and writes an
element; for one image a multiprocessor, the time from an element's load to its store, once for each of a warp's
windows.

Refused: groups, more than 32 taps, and images of which a copy does not fit into shared memory.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

from numba import cuda, types

from gpuconv.geometry import BlockGeometry, effective
from gpuconv.kernels.block.conv2d_relu_max_pool2d import fusible, pairs_loading, single
from gpuconv.kernels.compiled import specialised
from gpuconv.kernels.device.host import MULTIPROCESSORS, Answer, Refusal, fitted, widest_access
from gpuconv.kernels.device.launch import Call, call, device_function, jit
from gpuconv.kernels.device.memory import ld, ldg_if, st
from gpuconv.kernels.device.registers import fma, unrolled, vector_access
from gpuconv.kernels.device.words import i32, u32
from gpuconv.kernels.variant import Arguments

#: Bytes of static shared memory.
_SHARED_BYTES = 48 * 1024
_LANES = 32
#: Channels and warps a block.
_MOST_CHANNELS, _MOST_WARPS = 8, 16
#: Tilings that are worth a measurement.
_CHOICES = 6


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How the work is cut up.

    Attributes:
        channels: channels a block; the last block of an image may have fewer.
        warps: warps a block, each with a copy of the image's gradient; in float64 half as many.
    """

    channels: int
    warps: int


def _warps(tiling: Tiling, dtype: str) -> int:
    return tiling.warps if dtype == "float32" else max(1, tiling.warps // 2)


def _copy(geometry: BlockGeometry) -> tuple[int, int]:
    """Rows and columns of a channel in a copy: what the windows of the convolution cover."""
    conv = geometry.conv
    down, beside = conv.stride
    height = (conv.p - 1) * down + effective(conv.r, conv.dilation[0])
    return height, (conv.q - 1) * beside + effective(conv.s, conv.dilation[1])


@functools.cache
def _pitch(geometry: BlockGeometry, channels: int) -> int:
    """Elements from one row of a copy to the next: the fewest of those with the fewest bank conflicts."""
    conv, width = geometry.conv, channels * _copy(geometry)[1]
    taps = [(tap // conv.s * conv.dilation[0], tap % conv.s * conv.dilation[1]) for tap in range(conv.r * conv.s)]

    def conflicts(pitch: int) -> int:
        banks = [(row * pitch + column) % 32 for row, column in taps]
        return max(map(banks.count, banks))

    return min(range(width, width + 32), key=conflicts)


def _plane(geometry: BlockGeometry, channels: int) -> int:
    """Elements of a copy: whole accesses."""
    return -(-_copy(geometry)[0] * _pitch(geometry, channels) // 4) * 4


def _chunk(geometry: BlockGeometry) -> int:
    """Windows that a warp fetches at a time: one a lane, in rounds that are as even as can be."""
    windows = geometry.pool.p * geometry.pool.q
    return -(-windows // -(-windows // _LANES))


def _pairs(geometry: BlockGeometry) -> int:
    """Places for the windows of a warp: whole accesses."""
    return -(-_chunk(geometry) // 4) * 4


def _shared_bytes(geometry: BlockGeometry, tiling: Tiling, dtype: str) -> int:
    size, pairs = (4 if dtype == "float32" else 8), _pairs(geometry)
    return _warps(tiling, dtype) * (size * (_plane(geometry, tiling.channels) + pairs) + 4 * pairs)


@functools.cache
def _choices(geometry: BlockGeometry) -> tuple[Tiling, ...]:
    conv = geometry.conv
    if conv.r * conv.s > _LANES or not geometry.pool.p * geometry.pool.q:
        return ()
    found = (
        Tiling(fitted(conv.c, channels, 1), fitted(conv.k, warps, 1))
        for channels in range(min(conv.c, _MOST_CHANNELS), 0, -1)
        for warps in (_MOST_WARPS, _MOST_WARPS // 2, _MOST_WARPS // 4, 1)
    )
    return tuple(
        tiling
        for tiling in dict.fromkeys(found)
        if all(_shared_bytes(geometry, tiling, dtype) <= _SHARED_BYTES for dtype in ("float32", "float64"))
    )


def supports(geometry: BlockGeometry) -> Answer:
    """True without groups, for at most 32 taps, and images of which a channel fits into shared memory."""
    if not (answer := fusible(geometry)):
        return answer
    conv = geometry.conv
    if conv.r * conv.s > _LANES:
        return Refusal(f"{conv.r}x{conv.s} taps are more than the {_LANES} lanes of a warp")
    if not _choices(single(geometry)):
        return Refusal(f"an image of {conv.h}x{conv.w} does not fit into shared memory")
    return True


def _cost(geometry: BlockGeometry, tiling: Tiling) -> float:
    """Estimated time, in cycles of a large GPU."""
    conv, windows = geometry.conv, geometry.pool.p * geometry.pool.q
    blocks = conv.n * -(-conv.c // tiling.channels)
    # Shared memory serves an access of a warp a cycle: for a window two for each channel, and a quarter for its pair.
    copies = tiling.warps * _plane(geometry, tiling.channels) / _LANES
    accesses = conv.k * windows * (2 * tiling.channels + 0.5) + 1.25 * copies
    # A warp's next window waits for the stores of the one before.
    waits = -(-conv.k // tiling.warps) * windows * (40 + 4 * tiling.channels)
    return max(-(-blocks // MULTIPROCESSORS) * accesses, waits)


@functools.cache
def tilings(geometry: BlockGeometry) -> tuple[Tiling, ...]:
    """The six that are estimated to be fastest."""
    return tuple(sorted(_choices(single(geometry)), key=lambda tiling: _cost(geometry, tiling))[:_CHOICES])


@specialised
def _kernel(geometry: BlockGeometry, tiling: Tiling, dtype: str) -> Callable[..., None]:
    """The kernel for images of a geometry, whatever their number: ``n`` is not looked at."""
    real = getattr(types, dtype)
    conv, pool = geometry
    c, h, w, k, s = (getattr(conv, name) for name in "chwks")
    taps, (dilation_h, dilation_w), (stride_h, stride_w) = conv.r * conv.s, conv.dilation, conv.stride
    top, left = conv.padding[0][0], conv.padding[1][0]
    q, pool_s, windows = pool.q, pool.s, pool.p * pool.q
    (pool_stride_h, pool_stride_w), (pool_down, pool_beside) = pool.stride, pool.dilation
    (pool_top, _), (pool_left, _) = pool.padding
    channels, warps, channel_blocks = tiling.channels, _warps(tiling, dtype), -(-c // tiling.channels)
    (height, width), pitch, plane = _copy(geometry), _pitch(geometry, channels), _plane(geometry, channels)
    chunk, pairs = _chunk(geometry), _pairs(geometry)
    fours, over, uneven = chunk // 4 * 4, chunk % 4, windows % chunk != 0
    threads, ragged, elements = _LANES * warps, c % channels != 0, channels * h * w
    copies_size, pairs_size = warps * plane, warps * pairs
    vector = widest_access(4, dtype)
    clear = vector_access(vector)[2]
    # Zero, unless the image has rows or columns behind the last window.
    cut = top + h > height or left + w > width
    holding = (1 << taps) - 1
    load_pairs = pairs_loading(dtype)

    @device_function
    def load_channel(channel: int, sums: Any, copies: Any, place: Any) -> None:
        sums[channel] = ld(copies, place + channel * width)

    @device_function
    def add_channel(channel: int, sums: Any, weights: Any, grad: Any, copies: Any, place: Any) -> None:
        st(copies, place + channel * width, fma(grad, weights[channel], sums[channel]))

    load_channels, add_channels = unrolled(load_channel, channels), unrolled(add_channel, channels)

    @device_function
    def add_window(j: int, weights: Any, sums: Any, copies: Any, at: Any, grads: Any, starts: Any, rest: Any) -> None:
        """A window's patch; ``rest`` windows are left, this one among them if it exists."""
        if not uneven or j < rest:
            place = at + starts[j]
            # All loads are under way before the first is used.
            load_channels(sums, copies, place)
            add_channels(sums, weights, grads[j], copies, place)
        # What these lanes have written, others of them read.
        cuda.syncwarp(holding)

    add_four, add_rest = unrolled(add_window, 4), unrolled(add_window, over) if over else None

    @device_function
    def add_windows(
        weights: Any, copies: Any, at: Any, pair_grads: Any, pair_starts: Any, pair: Any, rest: Any
    ) -> None:
        """The fetched windows of a warp, in order, for a lane that holds a tap."""
        sums = cuda.local.array(channels, real)
        grads, starts = cuda.local.array(4, real), cuda.local.array(4, types.int32)
        for i in range(0, fours, 4):
            here = pair + i
            load_pairs(grads, starts, pair_grads, pair_starts, here)
            add_four(weights, sums, copies, at, grads, starts, rest - i)
        if over:
            for j in range(over):
                grads[j], starts[j] = ld(pair_grads, pair + (fours + j)), ld(pair_starts, pair + (fours + j))
            add_rest(weights, sums, copies, at, grads, starts, rest - fours)

    @device_function
    def fetch(sources: Any, map_: Any, window: Any, exists: Any, pair_grads: Any, pair_starts: Any, at: Any) -> None:
        """A window of a filter's map: its gradient, and where its patch begins."""
        grad, y, winners = sources
        offset = map_ * windows + window
        # All three are under way before one is looked at.
        value, activity = ldg_if(grad, offset, exists), ldg_if(y, offset, exists)
        winner_row, winner_column = divmod(u32(ldg_if(winners, offset, exists)), pool_s)
        row, column = divmod(window, q)
        row = row * pool_stride_h + winner_row * pool_down - pool_top
        column = column * pool_stride_w + winner_column * pool_beside - pool_left
        # Written so that a NaN lets the gradient through.
        st(pair_grads, at, real(0) if activity <= real(0) else value)
        st(pair_starts, at, types.int32(row * (stride_h * pitch) + column * stride_w))

    @device_function
    def added_up(copies: Any, at: Any) -> Any:
        total = real(0)
        for i in range(warps):
            total += ld(copies, at + i * plane)
        return total

    @jit(launch_bounds=threads)
    def conv2d_relu_max_pool2d_grad_input(grad: Any, weight: Any, y: Any, winners: Any, out: Any) -> None:
        copies = cuda.shared.array(copies_size, real, alignment=16)
        pair_grads = cuda.shared.array(pairs_size, real, alignment=16)
        pair_starts = cuda.shared.array(pairs_size, types.int32, alignment=16)
        weights, zeros = cuda.local.array(channels, real), cuda.local.array(vector, real)
        for i in range(vector):
            zeros[i] = real(0)

        thread = u32(cuda.threadIdx.x)
        warp, lane = thread >> 5, thread & 31
        image, first_channel = divmod(u32(cuda.blockIdx.x), channel_blocks)
        first_channel *= channels
        holds = lane < taps
        tap_row, tap_column = divmod(lane, s)
        own = warp * plane
        tap_at = i32(own + tap_row * (dilation_h * pitch) + tap_column * dilation_w)

        i = lane * vector
        while i < plane:
            clear(zeros, copies, own + i)
            i += _LANES * vector
        filter_ = warp
        while filter_ < k:
            for channel in range(channels):
                there = holds & (first_channel + channel < c) if ragged else holds
                weights[channel] = ldg_if(weight, (filter_ * c + first_channel + channel) * taps + lane, there)
            first = u32(0)
            while first < windows:
                window = first + lane
                exists = (lane < chunk) & (window < windows)
                if lane < chunk:
                    fetch(
                        (grad, y, winners),
                        image * k + filter_,
                        window,
                        exists,
                        pair_grads,
                        pair_starts,
                        warp * pairs + lane,
                    )
                cuda.syncwarp()
                if holds:
                    rest = i32(windows) - i32(first)
                    add_windows(weights, copies, tap_at, pair_grads, pair_starts, i32(warp * pairs), rest)
                cuda.syncwarp()
                first += chunk
            filter_ += warps
        cuda.syncthreads()

        i = thread
        while i < elements:
            channel, rest = divmod(i, h * w)
            row, column = divmod(rest, w)
            row, column = row + top, column + left
            inside = (row < height) & (column < width) if cut else True
            at = row * pitch + channel * width + column
            total = added_up(copies, i32(at) if inside else i32(0))
            if (first_channel + channel < c) if ragged else True:
                st(out, (image * c + first_channel) * (h * w) + i, total if inside else real(0))
            i += threads

    return conv2d_relu_max_pool2d_grad_input


def calls(a: Arguments, geometry: BlockGeometry, tiling: Tiling) -> Iterator[Call]:
    """One launch, a block for some channels of an image."""
    conv = geometry.conv
    kernel = _kernel(single(geometry), tiling, a.dtype)
    blocks = conv.n * -(-conv.c // tiling.channels)
    yield call(kernel, blocks, _LANES * _warps(tiling, a.dtype), a.grad, a.weight, a.y, a.winners, a.out)
