"""Gradient of a fused block for its input: the maps' gradient is put together in shared memory, tile by tile.

A block computes ``rows x columns`` elements of ``channels`` channels of one image. For ``filters`` filters at a time it
puts together the maps' gradient around them. Where pooling windows do not overlap, a thread takes a window, whose
gradient it writes to the winner's place, if ReLU let it through, and zeros to the others; what no window covers was set
to zero before. Where they overlap, a thread takes an element of a map, looks at the windows that cover it, in order,
and adds the gradients of those that it won. The maps' gradient is never written, no two threads add to one element, and
the order is fixed. Then the block convolves it with the flipped filters, as ``conv2d_tiled`` does: a thread computes
``thread_columns`` neighbouring elements of ``thread_channels`` channels, reads a segment of a row for all taps of that
row, and for each tap its channels' weights. A batch of few small images has too few elements for so many sums a thread:
then ``parts`` threads share the filters of each element, and their sums meet in shared memory, in a fixed order.

Visiting the winning positions alone would save three quarters of the multiply-adds with 2x2 windows. But which weights
meet an element would then depend on where the maxima were: 17 instructions for six multiply-adds of LeNet's second
layer, counted as if shared memory had no bank conflicts, which makes it no shorter than the sums of the zeros, too.

Shared bytes (float32): ``4 · filters · (halo rows · halo columns + r · s · (channels + 4))``, at most 24 KB. Registers
aimed at: at most 128. Expected bottleneck: multiply-adds; for small batches, the latency of what comes before them.

Refused: groups, strides of the convolution, and windows that are too long or too large.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

from numba import cuda, types

from gpuconv.geometry import BlockGeometry, effective
from gpuconv.kernels.block.conv2d_relu_max_pool2d import (
    CHOICES,
    MOST_THREADS,
    fusible,
    single,
    weight_pitch,
    weights_loading,
)
from gpuconv.kernels.compiled import specialised
from gpuconv.kernels.conv import conv2d_grad_input_tiled
from gpuconv.kernels.device.host import (
    LONGEST_SEGMENT,
    MULTIPROCESSORS,
    SHARED_ELEMENTS,
    Answer,
    Refusal,
    bounds,
    first_fitting,
    fitted,
    widest_access,
)
from gpuconv.kernels.device.launch import Call, call, device_function, jit
from gpuconv.kernels.device.memory import ld, ldg_if, st
from gpuconv.kernels.device.registers import add_outer, clear, unrolled, vector_access
from gpuconv.kernels.device.stage import staging
from gpuconv.kernels.device.tiles import tile_of_block
from gpuconv.kernels.device.words import i32, maximum, u32
from gpuconv.kernels.pool.pooling import covering, first_covering
from gpuconv.kernels.variant import Arguments

#: Filters a stage: so many are gathered at once.
_MOST_FILTERS = 8


@dataclasses.dataclass(frozen=True)
class Tiling(conv2d_grad_input_tiled.Tiling):
    """How the work is cut up: as that of the convolution's gradient.

    Attributes:
        parts: threads that share the filters of a stage, so many each.
    """

    parts: int = 1

    @property
    def part_threads(self) -> int:
        """Threads of a part."""
        return super().threads

    @property
    def threads(self) -> int:
        """Threads a block."""
        return self.parts * self.part_threads


def _vector(thread_columns: int) -> int:
    """Elements of a segment that are read at once; of float64, at most two."""
    return math.gcd(thread_columns, 4)


def _segment(geometry: BlockGeometry, thread_columns: int) -> int:
    """Elements that a thread needs for a row of taps, rounded up to whole accesses."""
    vector = _vector(thread_columns)
    return -(-(thread_columns + effective(geometry.conv.s, geometry.conv.dilation[1]) - 1) // vector) * vector


def _halo(geometry: BlockGeometry, tiling: Tiling) -> tuple[int, int]:
    """Rows and columns of the maps' gradient around a tile."""
    conv = geometry.conv
    beside = tiling.columns - tiling.thread_columns + _segment(geometry, tiling.thread_columns)
    return tiling.rows + effective(conv.r, conv.dilation[0]) - 1, beside


@functools.cache
def _pitch(tiling: Tiling, width: int) -> int:
    """Elements from one row of the maps' gradient to the next: the fewest of those with the fewest bank conflicts."""
    vector, strips = _vector(tiling.thread_columns), tiling.columns // tiling.thread_columns
    lanes = [(lane // strips % tiling.rows, lane % strips * tiling.thread_columns) for lane in range(32)]

    def conflicts(pitch: int) -> int:
        total, banks = 0, 32 // vector
        for first in range(0, 32, banks):  # 64 bits a lane are served by half warps, 128 by quarters
            words = {(row * pitch + column) // vector for row, column in lanes[first : first + banks]}
            total += max(sum(word % banks == bank for word in words) for bank in range(banks))
        return total

    return min(range(width, width + 32, vector), key=conflicts)


def _layout(geometry: BlockGeometry, tiling: Tiling) -> tuple[int, int, int]:
    """Elements from one filter's gradient to the next, those of all of a stage, and of all weights of a stage.

    The place of the gradients also takes the sums of all parts but one.
    """
    height, width = _halo(geometry, tiling)
    plane = height * _pitch(tiling, width)
    sums = (tiling.parts - 1) * tiling.part_threads * tiling.thread_channels * tiling.thread_columns
    weights = -(-tiling.filters * geometry.conv.r * geometry.conv.s // 8) * 8
    return plane, max(tiling.filters * plane, sums), weights * weight_pitch(tiling.channels)


def _shared_elements(geometry: BlockGeometry, tiling: Tiling) -> int:
    _, grads, weights = _layout(geometry, tiling)
    return grads + weights


def _windows(geometry: BlockGeometry, tiling: Tiling) -> tuple[int, int]:
    """The most windows, along each axis, that have elements in the halo of a tile."""
    pool = geometry.pool
    spans = (effective(size, step) for size, step in zip((pool.r, pool.s), pool.dilation, strict=True))
    most = (
        (halo + span - 2) // stride + 1
        for halo, span, stride in zip(_halo(geometry, tiling), spans, pool.stride, strict=True)
    )
    rows, columns = (min(count, there) for count, there in zip(most, (pool.p, pool.q), strict=True))
    return rows, columns


@functools.cache
def _choices(geometry: BlockGeometry) -> tuple[Tiling, ...]:
    conv, found = geometry.conv, []

    def fits(tiling: Tiling) -> bool:
        return tiling.threads <= 2 * MOST_THREADS and _shared_elements(geometry, tiling) <= SHARED_ELEMENTS

    for most_rows, most_columns in ((16, 32), (8, 32), (8, 16)):
        for thread_columns in (4, 2, 1):
            if _segment(geometry, thread_columns) > LONGEST_SEGMENT or thread_columns > conv.w:
                continue
            rows, columns = fitted(conv.h, most_rows, 1), fitted(conv.w, most_columns, thread_columns)
            positions = rows * columns // thread_columns
            for most_channels in (8, 4, 2):
                thread_channels = fitted(conv.c, most_channels, 1)
                groups = -(-conv.c // thread_channels)
                threads = fitted(groups, max(1, min(groups, MOST_THREADS // positions)), 1)
                channels = threads * thread_channels
                for parts in (1, 2, 4, 8):
                    # As many filters a stage as fit.
                    staged = (
                        Tiling(rows, columns, channels, thread_channels, thread_columns, filters, parts)
                        for filters in (fitted(conv.k, most, 1) for most in range(min(conv.k, _MOST_FILTERS), 0, -1))
                        if filters % parts == 0
                    )
                    found += first_fitting(staged, fits)
    return tuple(dict.fromkeys(found))


def supports(geometry: BlockGeometry) -> Answer:
    """True for convolutions of stride 1 without groups, whose windows are neither long nor large."""
    if not (answer := fusible(geometry)):
        return answer
    conv = geometry.conv
    if conv.stride != (1, 1):
        return Refusal(f"a convolution with stride {conv.stride} leaves gaps, which this kernel would go through")
    if not _choices(single(geometry)):
        return Refusal(f"a window of {conv.r}x{conv.s} taps, dilation {conv.dilation}, is too large for shared memory")
    return True


def _cost(geometry: BlockGeometry, tiling: Tiling) -> float:
    """Estimated time, in cycles of a large GPU."""
    conv, warps = geometry.conv, -(-tiling.threads // 32)
    taps, blocks = conv.r * conv.s, conv.n
    for size, tile in ((conv.h, tiling.rows), (conv.w, tiling.columns), (conv.c, tiling.channels)):
        blocks *= -(-size // tile)
    sums = tiling.thread_channels * tiling.thread_columns
    segment = _segment(geometry, tiling.thread_columns) // _vector(tiling.thread_columns)
    filter_ = taps * (sums + -(-tiling.thread_channels // 4)) + conv.r * (segment + 4)
    if covering(geometry.pool) == (1, 1):
        gather = 20 * math.prod(_windows(geometry, tiling))
    else:
        gather = 45 * math.prod(covering(geometry.pool)) * math.prod(_halo(geometry, tiling))
    fetches = tiling.filters * (gather + 20 * taps * tiling.channels) / tiling.threads
    stages = -(-conv.k // tiling.filters)
    # What a thread executes: sums, what comes before them, and where parts meet.
    thread = stages * (tiling.filters // tiling.parts * filter_ + fetches + 40) + 100 + 4 * sums * (tiling.parts - 1)
    # A scheduler, of which a multiprocessor has four, begins an instruction a cycle. Where it has few warps, the
    # longest thread decides, by 2.5 cycles an instruction: LeNet's tilings come in the order of an H100's times then.
    return max(-(-blocks // MULTIPROCESSORS) * warps * thread / 4, 2.5 * thread)


@functools.cache
def tilings(geometry: BlockGeometry) -> tuple[Tiling, ...]:
    """The eight tilings that are estimated to be fastest, of those that fit into shared memory."""
    return tuple(sorted(_choices(single(geometry)), key=lambda tiling: _cost(geometry, tiling))[:CHOICES])


@specialised
def _kernel(geometry: BlockGeometry, tiling: Tiling, dtype: str, aligned16: bool) -> Callable[..., None]:
    """The kernel for images of a geometry, whatever their number: ``n`` is not looked at.

    ``aligned16``: the result begins at a multiple of 128 bits.
    """
    real = getattr(types, dtype)
    conv, pool = geometry
    c, h, w, k, r, s = (getattr(conv, name) for name in "chwkrs")
    taps, (dilation_h, dilation_w) = r * s, conv.dilation
    maps_height, maps_width = conv.p, conv.q
    # How far above and left of a tile the maps' gradient that reaches it begins.
    above, before = (r - 1) * dilation_h - conv.padding[0][0], (s - 1) * dilation_w - conv.padding[1][0]
    p, q, pool_r, pool_s = pool.p, pool.q, pool.r, pool.s
    (pool_stride_h, pool_stride_w), (pool_down, pool_beside) = pool.stride, pool.dilation
    (pool_top, _), (pool_left, _) = pool.padding
    (covering_h, covering_w), first_window = covering(pool), first_covering(pool)
    apart, span_h, span_w = covering_h == covering_w == 1, effective(pool_r, pool_down), effective(pool_s, pool_beside)
    windows_down, windows_beside = _windows(geometry, tiling)
    windows = windows_down * windows_beside
    tile_rows, tile_columns, tile_channels, stage = tiling.rows, tiling.columns, tiling.channels, tiling.filters
    thread_channels, thread_columns, threads = tiling.thread_channels, tiling.thread_columns, tiling.threads
    strips, segment_length = tile_columns // thread_columns, _segment(geometry, thread_columns)
    down, beside, channel_blocks = -(-h // tile_rows), -(-w // tile_columns), -(-c // tile_channels)
    (height, width), weights_row = _halo(geometry, tiling), weight_pitch(tile_channels)
    pitch, (plane, grads_size, weights_size) = _pitch(tiling, width), _layout(geometry, tiling)
    parts, part_threads, part_filters = tiling.parts, tiling.part_threads, stage // tiling.parts
    groups, sums = tile_channels // thread_channels, thread_channels * thread_columns
    halo, staged_products = height * width, stage * taps
    ragged, vector = k % stage != 0, min(_vector(thread_columns), widest_access(4, dtype))
    out_vector = min(widest_access(w, dtype), widest_access(thread_columns, dtype)) if aligned16 else 1
    load, store = vector_access(vector)[0], vector_access(out_vector)[2]
    load_weights = weights_loading(thread_channels, tile_channels // thread_channels, dtype)
    launch_bounds = bounds(threads) if dtype == "float32" else threads
    tile_of = tile_of_block(
        maps=(channel_blocks, tile_channels), rows=(down, tile_rows), columns=(beside, tile_columns)
    )

    @device_function
    def add_tap(tap: int, total: Any, segment: Any, a: Any, b: Any, weights: Any, at: Any) -> None:
        load_weights(a, weights, at + tap * weights_row)
        for j in range(thread_columns):
            b[j] = segment[j + tap * dilation_w]
        add_outer(total, a, b, 0)

    add_taps = unrolled(add_tap, s)

    @device_function
    def gathered(filter_map: Any, row: Any, column: Any, exists: bool, grad: Any, y: Any, winners: Any) -> Any:
        """The gradient of an element of a map, the one numbered ``filter_map``."""
        row, column = row + pool_top, column + pool_left
        first_row, first_column = first_window(row, column)
        total = real(0)
        for i in range(covering_h):
            window_row = first_row + i
            below = row - window_row * pool_stride_h
            tap_row = below // pool_down
            covers_row = (window_row < p) & (tap_row < pool_r) & (tap_row * pool_down == below)
            for j in range(covering_w):
                window_column = first_column + j
                right = column - window_column * pool_stride_w
                tap_column = right // pool_beside
                covers = (window_column < q) & (tap_column < pool_s) & (tap_column * pool_beside == right)
                covers = exists & covers_row & covers
                window = (filter_map * p + window_row) * q + window_column
                won = u32(ldg_if(winners, window, covers)) == tap_row * pool_s + tap_column
                # All three are under way before one is looked at.
                value, activity = ldg_if(grad, window, covers), ldg_if(y, window, covers)
                # Written so that a NaN lets the gradient through.
                total += real(0) if (not won) | (activity <= real(0)) else value
        return total

    @device_function
    def put(grads: Any, at: Any, row: Any, column: Any, winner: Any, value: Any) -> None:
        """A window's gradient: row and column are those of its first element, counted from the halo's."""
        for i in range(pool_r):
            for j in range(pool_s):
                here = row + i * pool_down, column + j * pool_beside
                if (here[0] < height) & (here[1] < width):
                    won = winner == u32(i * pool_s + j)
                    st(grads, at + here[0] * pitch + here[1], value if won else real(0))

    @device_function
    def put_weight(product: Any, jc: Any, weights: Any, weight: Any, first_filter: Any, first_channel: Any) -> None:
        if product < staged_products:
            jf, tap = divmod(product, taps)
            filter_, channel = first_filter + jf, first_channel + jc
            value = ldg_if(weight, (filter_ * c + channel) * taps + tap, (filter_ < k) & (channel < c))
            # Flipped: the last tap first.
            st(weights, (jf * taps + (taps - 1 - tap)) * weights_row + jc, value)

    stage_weights = staging(staged_products, tile_channels, threads, put_weight)

    @device_function
    def clear_maps(grads: Any, thread: Any) -> None:
        i = thread
        while i < stage * plane:
            st(grads, i, real(0))
            i += threads

    @device_function
    def spread(grads: Any, thread: Any, image: Any, filter_: Any, first_window: Any, corner: Any, sources: Any) -> None:
        """A stage of the maps' gradient, window by window: no element belongs to two of them."""
        (grad, y, winners), (top_row, left_column) = sources, corner
        i = thread
        while i < stage * windows:
            j, rest = divmod(i, windows)
            jr, jc = divmod(rest, windows_beside)
            window_row, window_column = u32(first_window[0]) + jr, u32(first_window[1]) + jc
            if (window_row < p) & (window_column < q):
                there = (filter_ + j < k) if ragged else True
                window = ((image * k + filter_ + j) * p + window_row) * q + window_column
                # All three are under way before one is looked at.
                value, activity = ldg_if(grad, window, there), ldg_if(y, window, there)
                winner = u32(ldg_if(winners, window, there))
                # Written so that a NaN lets the gradient through.
                value = real(0) if activity <= real(0) else value
                row_here = window_row * pool_stride_h - pool_top - top_row
                column_here = window_column * pool_stride_w - pool_left - left_column
                put(grads, j * plane, row_here, column_here, winner, value)
            i += threads

    @device_function
    def gather(grads: Any, thread: Any, image: Any, filter_: Any, first_window: Any, corner: Any, sources: Any) -> None:
        """A stage of the maps' gradient, element by element."""
        (grad, y, winners), (top_row, left_column) = sources, corner
        i = thread
        while i < halo:
            jr, jc = divmod(i, width)
            map_row, map_column = top_row + jr, left_column + jc
            inside = (map_row < maps_height) & (map_column < maps_width)
            at = jr * pitch + jc
            for j in range(stage):
                there = inside & (filter_ + j < k) if ragged else inside
                map_ = image * k + filter_ + j
                value = gathered(map_, map_row, map_column, there, grad, y, winners)
                st(grads, at + j * plane, value)
            i += threads

    fetch = spread if apart else gather

    @device_function
    def multiply(
        total: Any, segment: Any, a: Any, b: Any, grads: Any, weights: Any, plane_at: Any, weights_at: Any
    ) -> None:
        """The part's filters of a stage."""
        found = cuda.local.array(vector, real)
        for _ in range(part_filters):
            line = plane_at
            for _ in range(r):
                for i in range(0, segment_length, vector):
                    load(found, grads, line + i)
                    for j in range(vector):
                        segment[i + j] = found[j]
                add_taps(total, segment, a, b, weights, weights_at)
                line += dilation_h * pitch
                weights_at += s * weights_row
            plane_at += plane

    @device_function
    def join(total: Any, grads: Any, part: Any, mine: Any) -> None:
        """The sums of all parts become those of the first one; the maps' gradient is no longer needed."""
        if part > 0:
            at = (part - 1) * (sums * part_threads) + mine
            for i in range(thread_channels):
                for j in range(thread_columns):
                    st(grads, at + (i * thread_columns + j) * part_threads, total[i, j])
        cuda.syncthreads()
        if part == 0:
            for other in range(parts - 1):
                for i in range(thread_channels):
                    for j in range(thread_columns):
                        at = mine + (other * sums + i * thread_columns + j) * part_threads
                        total[i, j] += ld(grads, at)

    @device_function
    def store_sums(total: Any, b: Any, out: Any, image: Any, row: Any, column: Any, channel: Any) -> None:
        offset = ((image * c + channel) * h + row) * w + column
        for i in range(thread_channels):
            if channel + i < c:
                for j in range(0, thread_columns, out_vector):
                    if column + j < w:
                        for e in range(out_vector):
                            b[e] = total[i, j + e]
                        store(b, out, offset + (i * h * w + j))

    @jit(launch_bounds=launch_bounds)
    def conv2d_relu_max_pool2d_grad_input(grad: Any, weight: Any, y: Any, winners: Any, out: Any) -> None:
        grads = cuda.shared.array(grads_size, real, alignment=16)
        weights = cuda.shared.array(weights_size, real, alignment=16)
        total = cuda.local.array((thread_channels, thread_columns), real)
        segment = cuda.local.array(segment_length, real)
        a, b = cuda.local.array(thread_channels, real), cuda.local.array(thread_columns, real)
        clear(total)

        thread = u32(cuda.threadIdx.x)
        rest, strip = divmod(thread, strips)
        group, row = divmod(rest, tile_rows)
        part, group = divmod(group, groups)
        column, channel = strip * thread_columns, group * thread_channels
        segment_at = i32(row * pitch + column)

        image, first_channel, first_row, first_column = tile_of(u32(cuda.blockIdx.x))

        # Unsigned: what lies above or left of the maps is a huge row or column.
        corner = first_row - above, first_column - before
        # The first windows with elements there; none is above or left of the first one.
        first_window_row = (i32(first_row) + (pool_top - above + pool_stride_h - span_h)) // pool_stride_h
        first_window_column = (i32(first_column) + (pool_left - before + pool_stride_w - span_w)) // pool_stride_w
        first_window = maximum(first_window_row, 0), maximum(first_window_column, 0)
        sources = grad, y, winners
        if apart:
            clear_maps(grads, thread)
            cuda.syncthreads()
        filter_ = u32(0)
        while filter_ < k:
            fetch(grads, thread, image, filter_, first_window, corner, sources)
            stage_weights(thread, weights, weight, filter_, first_channel)
            cuda.syncthreads()
            plane_at = segment_at + i32(part) * (part_filters * plane)
            weights_at = i32(channel) + i32(part) * (part_filters * taps * weights_row)
            multiply(total, segment, a, b, grads, weights, plane_at, weights_at)
            cuda.syncthreads()
            filter_ += stage

        if parts > 1:
            join(total, grads, part, thread - part * part_threads)
        row, column, channel = first_row + row, first_column + column, first_channel + channel
        if (row < h) & (part == 0):
            store_sums(total, b, out, image, row, column, channel)

    return conv2d_relu_max_pool2d_grad_input


def calls(a: Arguments, geometry: BlockGeometry, tiling: Tiling) -> Iterator[Call]:
    """One launch, a block for each tile of some channels of an image."""
    conv = geometry.conv
    blocks = conv.n
    for size, tile in ((conv.h, tiling.rows), (conv.w, tiling.columns), (conv.c, tiling.channels)):
        blocks *= -(-size // tile)
    kernel = _kernel(single(geometry), tiling, a.dtype, a.aligned("out"))
    yield call(kernel, blocks, tiling.threads, a.grad, a.weight, a.y, a.winners, a.out)
