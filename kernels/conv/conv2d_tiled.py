"""Tiled direct convolution: a halo tile of the input and a block of filters in shared memory.

A block computes a tile of ``rows x columns`` outputs of ``filters`` filters for one image. For ``channels`` channels at
a time it fetches what the tile's windows cover of the input (the tile and its halo), and the weights of its filters,
stored with the filters contiguous. A thread computes ``thread_columns`` neighbouring outputs of ``thread_filters``
filters in registers: for each row of taps it reads one segment of the input, which serves all taps of the row, and for
each tap a weight a filter, 128 bits at a time. A warp spans positions of the tile rather than filters, so that weights
are broadcasts. Stride and dilation choose elements of the segment, which costs nothing, but makes it longer.

Shared bytes (float32): ``4 · channels · (halo rows · halo columns + r · s · (filters + 4))``, at most 24 KB. Registers
aimed at: at most 128 (up to 64 of them sums), so that a multiprocessor holds 512 threads.

Expected bottleneck: multiply-adds, 91 % of the instructions of the main loop for a 3x3 window and 8x8 outputs a thread;
with few channels, the latency of the fetches, which the other blocks of a multiprocessor hide. Against the implicit
GEMM, the input is fetched once for all taps, and read from shared memory once a row of taps: it suits few channels or
filters and long windows. Maps of a few pixels do not fill its tiles, and in a window of 1x1 no taps share a segment.

Rows of the input tile are spaced so that segments are read without bank conflicts. Where no spacing does that (8
columns a thread, and two threads to a row or a single row; a number of segments that 8 does not divide, so that eight
lanes read the last ones and the first; some strides), a segment takes two passes, which is little beside its
multiply-adds.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

from numba import cuda, types

from gpuconv.geometry import Conv2dGeometry
from gpuconv.kernels.compiled import specialised
from gpuconv.kernels.conv.windows import window_fits
from gpuconv.kernels.device.host import (
    LONGEST_SEGMENT,
    MULTIPROCESSORS,
    SHARED_ELEMENTS,
    Answer,
    bank_conflicts,
    bounds,
    first_fitting,
    fitted,
    widest_access,
)
from gpuconv.kernels.device.launch import Call, call, device_function, jit
from gpuconv.kernels.device.memory import ldg
from gpuconv.kernels.device.registers import add_outer, clear, loading, unrolled, vector_access
from gpuconv.kernels.device.stage import halo_staging, weight_staging
from gpuconv.kernels.device.tiles import tile_of_block
from gpuconv.kernels.device.words import i32, u32
from gpuconv.kernels.variant import Arguments

#: Channels whose loads a thread has under way at once.
_MOST_CHANNELS = 8


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How the work is cut up; a block has ``rows · columns · filters / (thread_filters · thread_columns)`` threads.

    Attributes:
        rows, columns: outputs a block, in each of its filters.
        filters: filters a block; the last block of a group may have fewer.
        thread_filters, thread_columns: filters and neighbouring outputs a thread.
        channels: channels a stage.
    """

    rows: int
    columns: int
    filters: int
    thread_filters: int
    thread_columns: int
    channels: int

    @property
    def threads(self) -> int:
        """Threads a block."""
        return self.rows * self.columns * self.filters // (self.thread_filters * self.thread_columns)


#: Rows, columns and filters of a block at most; filters and columns of a thread.
_SHAPES = (
    (8, 32, 64, 8, 8),
    (8, 32, 32, 8, 8),
    (16, 16, 32, 8, 8),
    (8, 16, 64, 8, 4),
    (8, 8, 64, 8, 4),
    (16, 32, 8, 8, 8),
    (16, 32, 16, 8, 4),
    (8, 16, 32, 4, 4),
    (16, 16, 16, 4, 4),
    (8, 16, 16, 4, 4),
    (8, 32, 4, 4, 4),
    (4, 16, 16, 4, 4),
    (8, 64, 1, 1, 4),
    (1, 256, 32, 8, 8),
    (1, 128, 16, 4, 4),
)


def _segment(geometry: Conv2dGeometry, thread_columns: int) -> int:
    """Inputs that a thread needs for a row of taps, rounded up to whole 128-bit loads of float32."""
    length = (thread_columns - 1) * geometry.stride[1] + (geometry.s - 1) * geometry.dilation[1] + 1
    return -(-length // 4) * 4


def _halo(geometry: Conv2dGeometry, tiling: Tiling) -> tuple[int, int]:
    """Rows and columns of the input tile."""
    height = (tiling.rows - 1) * geometry.stride[0] + (geometry.r - 1) * geometry.dilation[0] + 1
    spread = (tiling.columns - tiling.thread_columns) * geometry.stride[1]
    return height, spread + _segment(geometry, tiling.thread_columns)


@functools.cache
def _pitch(geometry: Conv2dGeometry, tiling: Tiling) -> int:
    """Elements from one row of the input tile to the next: the fewest of those with the fewest bank conflicts."""
    width, across = _halo(geometry, tiling)[1], tiling.columns // tiling.thread_columns
    positions = [(thread // across % tiling.rows, thread % across) for thread in range(tiling.threads)]
    right, down = tiling.thread_columns * geometry.stride[1], geometry.stride[0]

    def conflicts(pitch: int) -> int:
        return bank_conflicts(row * down * pitch + column * right for row, column in positions)

    return min(range(width, width + 32, 4), key=conflicts)


def _layout(geometry: Conv2dGeometry, tiling: Tiling) -> tuple[int, int]:
    """Elements from an input channel to the next, and those of all weights of a stage."""
    weights = tiling.channels * geometry.r * geometry.s
    # Weights are fetched by eights of a filter, and stored four elements apart from what the filters need, so that the
    # lanes of a warp, with eight weights of four filters, store to 32 banks.
    return _halo(geometry, tiling)[0] * _pitch(geometry, tiling), -(-weights // 8) * 8 * (tiling.filters + 4)


def _shared_elements(geometry: Conv2dGeometry, tiling: Tiling) -> int:
    plane, weights = _layout(geometry, tiling)
    return tiling.channels * plane + weights


@functools.cache
def _choices(geometry: Conv2dGeometry) -> tuple[Tiling, ...]:
    channels, filters = geometry.c // geometry.groups, geometry.k // geometry.groups
    found = []
    for rows, columns, block_filters, thread_filters, thread_columns in _SHAPES:
        if _segment(geometry, thread_columns) > LONGEST_SEGMENT:
            continue
        rows, columns = fitted(geometry.p, rows, 1), fitted(geometry.q, columns, thread_columns)
        block_filters = fitted(filters, block_filters, thread_filters)
        # Stages of equal size.
        stages = dict.fromkeys(fitted(channels, most, 1) for most in range(_MOST_CHANNELS, 0, -1))
        staged = (Tiling(rows, columns, block_filters, thread_filters, thread_columns, stage) for stage in stages)
        found += first_fitting(staged, lambda tiling: _shared_elements(geometry, tiling) <= SHARED_ELEMENTS)
    return tuple(dict.fromkeys(found))


def supports(geometry: Conv2dGeometry) -> Answer:
    """True for all but long or large windows."""
    choices = _choices(dataclasses.replace(geometry, n=1))
    return window_fits(geometry, _segment(geometry, 4), choices, "too large for shared memory")


def _cost(geometry: Conv2dGeometry, tiling: Tiling) -> float:
    """Estimated time, in instructions of a large GPU's multiprocessor."""
    channels, filters, taps = geometry.c // geometry.groups, geometry.k // geometry.groups, geometry.r * geometry.s
    blocks = geometry.n * geometry.groups
    for size, tile in ((geometry.p, tiling.rows), (geometry.q, tiling.columns), (filters, tiling.filters)):
        blocks *= -(-size // tile)
    # Of a thread, for a channel: multiply-adds; loads of weights, and of segments with a loop's overhead; fetches.
    adds = taps * tiling.thread_filters * tiling.thread_columns
    loads = taps * -(-tiling.thread_filters // 4) + geometry.r * (_segment(geometry, tiling.thread_columns) // 4 + 6)
    height, width = _halo(geometry, tiling)
    threads = -(-tiling.threads // 32) * 32
    fetches = (4 * height * width + 15 * taps * tiling.filters) / threads
    block = -(-channels // tiling.channels) * tiling.channels * threads * (adds + loads + fetches)
    blocks = max(1, -(-blocks // MULTIPROCESSORS))
    # Two warps for each of its four schedulers keep a multiprocessor busy.
    return blocks * block / min(1, blocks * threads / 256)


def tilings(geometry: Conv2dGeometry) -> tuple[Tiling, ...]:
    """The tilings that fit into shared memory, shrunk to divide the output; those estimated to be fast first."""
    return tuple(sorted(_choices(dataclasses.replace(geometry, n=1)), key=lambda tiling: _cost(geometry, tiling)))


@specialised
def _kernel(
    geometry: Conv2dGeometry, tiling: Tiling, dtype: str, has_bias: bool, aligned16: bool
) -> Callable[..., None]:
    """The kernel for images of a geometry, whatever their number: ``geometry.n`` is not looked at.

    ``aligned16``: the output begins at a multiple of 128 bits, and its rows may, too.
    """
    real = getattr(types, dtype)
    vector = 4 if dtype == "float32" else 2
    c, h, w, k, r, s, p, q = (getattr(geometry, name) for name in "chwkrspq")
    (stride_h, stride_w), (dilation_h, dilation_w) = geometry.stride, geometry.dilation
    top, left = geometry.padding[0][0], geometry.padding[1][0]
    groups, taps, map_size = geometry.groups, r * s, h * w
    channels, filters = c // groups, k // groups
    products = channels * taps
    threads, stage = tiling.threads, tiling.channels
    tile_rows, tile_columns, tile_filters = tiling.rows, tiling.columns, tiling.filters
    thread_filters, thread_columns = tiling.thread_filters, tiling.thread_columns
    across, segment_length = tile_columns // thread_columns, _segment(geometry, thread_columns)
    down, beside, filter_blocks = -(-p // tile_rows), -(-q // tile_columns), -(-filters // tile_filters)
    pitch, weight_pitch = _pitch(geometry, tiling), tile_filters + 4
    plane, weights_size = _layout(geometry, tiling)
    inputs_size, staged_products = stage * plane, stage * taps
    stage_inputs = halo_staging(
        (h, w), _halo(geometry, tiling), threads, stage=stage, channels=channels, pitch=pitch, plane=plane
    )
    stage_weights = weight_staging(
        staged_products, tile_filters, weight_pitch, threads, products=products, filters=filters
    )
    load_weights = loading(thread_filters, vector if thread_filters % vector == 0 else 1)
    load_segment = loading(segment_length, vector)
    tile_of = tile_of_block(maps=(filter_blocks, tile_filters), rows=(down, tile_rows), columns=(beside, tile_columns))
    out_vector = widest_access(q, dtype) if aligned16 else 1
    store = vector_access(out_vector)[2]
    # Registers for 512 threads a multiprocessor; twice as large sums do not leave room for them.
    launch_bounds = bounds(threads) if dtype == "float32" else threads

    @device_function
    def add_tap(tap: int, total: Any, segment: Any, a: Any, b: Any, weights: Any, at: Any) -> None:
        load_weights(a, weights, at + tap * weight_pitch)
        for j in range(thread_columns):
            b[j] = segment[j * stride_w + tap * dilation_w]
        add_outer(total, a, b, 0)

    add_taps = unrolled(add_tap, s)

    @jit(launch_bounds=launch_bounds)
    def conv2d_tiled(x: Any, weight: Any, bias: Any, out: Any) -> None:
        inputs = cuda.shared.array(inputs_size, real, alignment=16)
        weights = cuda.shared.array(weights_size, real, alignment=16)
        total = cuda.local.array((thread_filters, thread_columns), real)
        segment = cuda.local.array(segment_length, real)
        a, b = cuda.local.array(thread_filters, real), cuda.local.array(thread_columns, real)
        clear(total)

        thread = u32(cuda.threadIdx.x)
        strip, column = divmod(thread, across)
        column *= thread_columns
        thread_group, row = divmod(strip, tile_rows)
        filter_ = thread_group * thread_filters
        input_at = i32(row * (stride_h * pitch) + column * stride_w)

        rest, first_filter, first_row, first_column = tile_of(u32(cuda.blockIdx.x))
        image, group = divmod(rest, groups)

        # Unsigned: what lies above or left of the image is a huge row or column.
        top_row = first_row * stride_h - top
        left_column = first_column * stride_w - left
        maps = (image * c + group * channels) * map_size
        filter_block = (group * filters + first_filter) * products
        channel = u32(0)
        while channel < channels:
            stage_inputs(thread, inputs, x, maps, channel, top_row, left_column)
            stage_weights(thread, weights, weight, channel * taps, first_filter, filter_block)
            cuda.syncthreads()
            plane_at, weight_at = input_at, i32(filter_)
            for _ in range(stage):
                line = plane_at
                for _ in range(r):
                    load_segment(segment, inputs, line)
                    add_taps(total, segment, a, b, weights, weight_at)
                    line += dilation_h * pitch
                    weight_at += s * weight_pitch
                plane_at += plane
            cuda.syncthreads()
            channel += stage

        row, column, filter_ = first_row + row, first_column + column, first_filter + filter_
        map_ = image * k + group * filters + filter_
        offset = (map_ * p + row) * q + column
        if row < p:
            for i in range(thread_filters):
                if filter_ + i < filters:
                    start = ldg(bias, group * filters + filter_ + i) if has_bias else real(0)
                    for j in range(0, thread_columns, out_vector):
                        if column + j < q:
                            for e in range(out_vector):
                                b[e] = total[i, j + e] + start
                            store(b, out, offset + (i * p * q + j))

    return conv2d_tiled


def calls(a: Arguments, geometry: Conv2dGeometry, tiling: Tiling) -> Iterator[Call]:
    """One launch, a block for each tile of some filters of an image."""
    blocks = geometry.n * geometry.groups
    filters = geometry.k // geometry.groups
    for size, tile in ((geometry.p, tiling.rows), (geometry.q, tiling.columns), (filters, tiling.filters)):
        blocks *= -(-size // tile)
    kernel = _kernel(dataclasses.replace(geometry, n=1), tiling, a.dtype, a.has("bias"), a.aligned("out"))
    yield call(kernel, blocks, tiling.threads, a.x, a.weight, a.bias, a.out)
