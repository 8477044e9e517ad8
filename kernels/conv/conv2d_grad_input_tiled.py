"""Tiled gradient for a convolution's input: a tile of the gradient and a block of filters in shared memory.

With stride 1 the gradient for the input is itself a convolution: of the output's gradient, padded, with the filters
turned by 180 degrees. A block computes a tile of ``rows x columns`` elements of ``channels`` maps of one image. For
``filters`` filters at a time it fetches what the tile's windows cover of their gradients (the tile and its halo), and
their weights for these channels, turned and with the channels contiguous. A thread computes ``thread_columns``
neighbouring elements of ``thread_channels`` maps in registers: for each row of taps it reads one segment of gradients,
which serves all taps of the row, and for each tap a weight a channel, 128 bits at a time. A warp spans tile positions,
not channels, so that the weights are broadcasts. One thread computes an element, in a fixed order.

A stride cuts the input into ``stride²`` phases: elements whose position, plus padding, leaves the same remainders.
Within a phase the step from element to element is one output position, and the taps that meet it, every ``stride``-th
one (or fewer steps apart, if the dilation has a factor in common with the stride), are one or more output positions
apart: a convolution with stride 1. Each phase is a launch; one that no tap meets writes zeros.

Shared bytes: ``4 · filters · (halo rows · halo columns + taps · (channels + 4))``, at most 24 KB (float32), about 16 KB
for a 3x3 window and the largest tile. Registers aimed at: at most 128 (64 of them sums), so that a multiprocessor holds
512 threads.

Expected bottleneck: multiply-adds, where there are many filters; with few, the latency of the stages' loads, which two
or more blocks a multiprocessor hide from each other. A stride leaves gaps in what a launch writes, and a window of 1x1
has no taps to share a segment: both cost memory traffic.

Positions outside of the output count as gradient 0, and 0 times a weight that is infinite or NaN is NaN. Where weights
are not finite, a NaN can therefore reach up to a window's width further than by the definition of the sum.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numba import cuda, types

from gpuconv.geometry import Conv2dGeometry
from gpuconv.kernels.compiled import specialised
from gpuconv.kernels.device.host import (
    LONGEST_SEGMENT,
    MULTIPROCESSORS,
    SHARED_ELEMENTS,
    Answer,
    Refusal,
    first_fitting,
)
from gpuconv.kernels.device.launch import Call, call, device_function, jit
from gpuconv.kernels.device.memory import ldg_if, st, st2, st4
from gpuconv.kernels.device.registers import add_outer, clear, loading, unrolled
from gpuconv.kernels.device.tiles import tile_of_block
from gpuconv.kernels.device.words import i32, u32
from gpuconv.kernels.variant import Arguments

#: Launches; each phase is one.
_MOST_PHASES = 16

# For estimates: shared memory of a multiprocessor, and what a block takes of it besides its own; cycles of a round of
# fetches, more for each warp of the block, and at least, fitted to an H100's times.
_MULTIPROCESSOR_BYTES, _BLOCK_BYTES = 227 * 1024, 1024
_ROUND, _ROUND_A_WARP, _LEAST = 40, 28, 160
#: Estimates that are nearer to each other than this tell nothing.
_NEAR = 1.12


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How the work is cut up; a block has ``rows · columns · channels / (thread_channels · thread_columns)`` threads.

    Attributes:
        rows, columns: elements a block, in each of its channels.
        channels: channels a block; the last block of a group may have fewer.
        thread_channels, thread_columns: channels and neighbouring elements a thread.
        filters: filters a stage.
    """

    rows: int
    columns: int
    channels: int
    thread_channels: int
    thread_columns: int
    filters: int

    @property
    def threads(self) -> int:
        """Threads a block."""
        return self.rows * self.columns * self.channels // (self.thread_channels * self.thread_columns)


@dataclasses.dataclass(frozen=True)
class Phase:
    """Along one axis, the input positions ``stride · u + offset``, for ``size`` values of u from ``first`` on.

    The taps that meet them are ``tap, tap + step, ...``, ``taps`` in number; tap m of them meets position u at the
    output position ``u - shift - m · spread``.
    """

    offset: int
    first: int
    size: int
    tap: int
    step: int
    taps: int
    shift: int
    spread: int


def _phases(length: int, kernel: int, stride: int, dilation: int, before: int) -> list[Phase]:
    common = math.gcd(stride, dilation)
    phases = []
    for remainder in range(stride):
        # Input position i meets tap t at output position (i + before - t · dilation) / stride, if that is an integer.
        step = stride // common
        tap = next((t for t in range(min(step, kernel)) if (t * dilation - remainder) % stride == 0), kernel)
        first = -((remainder - before) // stride)
        size = (length - 1 + before - remainder) // stride - first + 1
        shift = (tap * dilation - remainder) // stride if tap < kernel else 0
        if size > 0:
            taps = -(-(kernel - tap) // step)
            phases.append(Phase(remainder - before, first, size, tap, step, taps, shift, dilation // common))
    return phases


def phases(geometry: Conv2dGeometry) -> list[tuple[Phase, Phase]]:
    """The phases of the rows, with each those of the columns: all pairs that have elements."""
    (top, _), (left, _) = geometry.padding
    rows = _phases(geometry.h, geometry.r, geometry.stride[0], geometry.dilation[0], top)
    columns = _phases(geometry.w, geometry.s, geometry.stride[1], geometry.dilation[1], left)
    return [(row, column) for row in rows for column in columns]


def _segment(phase: Phase, thread_columns: int) -> int:
    """Gradients that a thread needs for a row of taps, rounded up to whole 128-bit loads of float32."""
    return -(-(thread_columns + max(0, phase.taps - 1) * phase.spread) // 4) * 4


def _layout(tiling: Tiling, rows: Phase, columns: Phase) -> tuple[int, int, int]:
    """Rows of a gradient tile, elements from one to the next, and from the channels of a tap to those of the next."""
    height = tiling.rows + max(0, rows.taps - 1) * rows.spread
    width = tiling.columns - tiling.thread_columns + _segment(columns, tiling.thread_columns)
    # Eight lanes read 128 bits each at once, maybe from several rows: they shall touch 32 different banks. Segments
    # that are 4 elements apart continue in the next row as if it were the same one; 4 segments that are 8 apart fill
    # every other four banks, and those of the next row the others.
    modulus, remainder = (2, 1) if tiling.thread_columns == 8 else (8, tiling.columns // 4 % 8)
    pitch = next(words for words in range(width // 4, width // 4 + 8) if words % modulus == remainder)
    # Four elements more than the channels, so that storing one channel of many taps spreads over the banks, too.
    return height, 4 * pitch, tiling.channels + 4


def _shared_elements(tiling: Tiling, rows: Phase, columns: Phase) -> int:
    height, pitch, tap = _layout(tiling, rows, columns)
    return tiling.filters * (height * pitch + rows.taps * columns.taps * tap)


#: Rows, columns, channels of a block, channels and columns of a thread: 32 to 256 threads.
_SHAPES = (
    (8, 32, 64, 8, 8),
    (8, 32, 32, 8, 8),
    (8, 28, 32, 8, 4),
    (7, 16, 64, 8, 4),
    (7, 8, 64, 8, 4),
    (8, 16, 32, 8, 4),
    (16, 32, 8, 8, 8),
    (16, 16, 8, 4, 4),
    (8, 32, 4, 4, 4),
    (8, 32, 1, 1, 4),
    (8, 16, 1, 1, 4),
)


def _choices(geometry: Conv2dGeometry) -> list[Tiling]:
    pairs, filters = phases(geometry), geometry.k // geometry.groups
    found = []
    for shape in _SHAPES:
        staged = (Tiling(*shape, stage) for stage in (8, 4, 2, 1) if stage == 1 or stage < 2 * filters)
        found += first_fitting(
            staged, lambda tiling: all(_shared_elements(tiling, *pair) <= SHARED_ELEMENTS for pair in pairs)
        )
    return found


def supports(geometry: Conv2dGeometry) -> Answer:
    """True for all but large windows, strides and dilations."""
    if geometry.stride[0] * geometry.stride[1] > _MOST_PHASES:
        return Refusal(f"stride {geometry.stride} would take more than {_MOST_PHASES} launches")
    pairs = phases(geometry)
    if any(_segment(columns, 8) > LONGEST_SEGMENT for _, columns in pairs):
        return Refusal(f"a row of {geometry.s} taps with dilation {geometry.dilation[1]} is too long for the registers")
    if not _choices(geometry):
        return Refusal(
            f"a window of {geometry.r}x{geometry.s} taps with dilation {geometry.dilation} is too large for "
            "shared memory"
        )
    return True


def _cost(geometry: Conv2dGeometry, tiling: Tiling) -> float:
    """Estimated time, in cycles of a large GPU's multiprocessor; the sum over the phases.

    Blocks that a multiprocessor holds at once: by registers (512 threads), by shared memory, and no more than there
    are. In each stage, of ``filters`` filters, all warps of these blocks multiply, on four schedulers, an instruction a
    cycle: multiply-adds, and loads of 128 bits from shared memory. Before that each block fetches, every thread an
    element a round; in a round the whole block waits for memory, the longer the more warps it has, since all of them
    meet at the barrier behind it.

    On an H100, twelve tilings on four layers of ResNet-50 and VGG-16 took 0.9 to 1.1 times as long, by cycles of 1.6
    GHz.
    """
    channels, filters = geometry.c // geometry.groups, geometry.k // geometry.groups
    warps, total = -(-tiling.threads // 32), 0.0
    for rows, columns in phases(geometry):
        blocks = geometry.n * geometry.groups * -(-channels // tiling.channels)
        blocks *= -(-rows.size // tiling.rows) * -(-columns.size // tiling.columns)
        by_shared = _MULTIPROCESSOR_BYTES // (4 * _shared_elements(tiling, rows, columns) + _BLOCK_BYTES)
        held = max(1, min(512 // tiling.threads, by_shared, -(-blocks // MULTIPROCESSORS)))
        taps, segment = rows.taps * columns.taps, _segment(columns, tiling.thread_columns)
        adds = taps * tiling.thread_channels * tiling.thread_columns
        loads = rows.taps * (segment // 4 + columns.taps * -(-tiling.thread_channels // 4))
        height, width = _layout(tiling, rows, columns)[0], tiling.columns - tiling.thread_columns + segment
        fetched = tiling.filters * height * width, tiling.filters * tiling.channels * taps
        rounds = sum(-(-elements // tiling.threads) for elements in fetched)
        stage = -(-held * warps // 4) * tiling.filters * (adds + loads) + rounds * max(
            _LEAST, _ROUND + _ROUND_A_WARP * warps
        )
        stages = -(-filters // tiling.filters) if taps else 0
        total += -(-blocks // (MULTIPROCESSORS * held)) * stages * stage
    return total


def _covered(geometry: Conv2dGeometry, tiling: Tiling) -> int:
    """Elements of an image that the tiles compute, with those that lie beyond its borders and channels."""
    covered = geometry.groups * -(-geometry.c // geometry.groups // tiling.channels) * tiling.channels
    return sum(
        covered * -(-rows.size // tiling.rows) * tiling.rows * -(-columns.size // tiling.columns) * tiling.columns
        for rows, columns in phases(geometry)
    )


@functools.cache
def tilings(geometry: Conv2dGeometry) -> tuple[Tiling, ...]:
    """Tilings that fit into shared memory, by estimated time; none with four times that of the first.

    Those that the estimate cannot tell from the best come in this order: what computes the fewest elements in vain,
    then what has more channels a block and so reads the gradients less often.
    """
    geometry = dataclasses.replace(geometry, n=max(1, geometry.n))
    costs = {tiling: _cost(geometry, tiling) for tiling in _choices(geometry)}
    best = min(costs.values())

    def rank(tiling: Tiling) -> tuple[float, ...]:
        cost = costs[tiling]
        if cost > _NEAR * best:
            return 1, cost
        return 0, _covered(geometry, tiling), -tiling.channels, cost

    return tuple(tiling for tiling in sorted(costs, key=rank) if costs[tiling] <= 4 * best)


@specialised
def _kernel(
    geometry: Conv2dGeometry, tiling: Tiling, dtype: str, phase: tuple[Phase, Phase], aligned16: bool
) -> Callable[..., None]:
    """The kernel for a phase of images of a geometry, whatever their number: ``geometry.n`` is not looked at.

    ``aligned16``: rows of the result begin at multiples of 128 bits, and may be written so.
    """
    real = getattr(types, dtype)
    vector, store = (4, st4) if dtype == "float32" else (2, st2)
    rows, columns = phase
    c, h, w, k, r, s, p, q = (getattr(geometry, name) for name in "chwkrspq")
    (stride_h, stride_w), groups = geometry.stride, geometry.groups
    channels, filters = c // groups, k // groups
    tile_rows, tile_columns, tile_channels = tiling.rows, tiling.columns, tiling.channels
    thread_channels, thread_columns, stage = tiling.thread_channels, tiling.thread_columns, tiling.filters
    threads, across = tiling.threads, tile_columns // thread_columns
    down, beside = -(-rows.size // tile_rows), -(-columns.size // tile_columns)
    channel_blocks = -(-channels // tile_channels)
    height, pitch, tap_pitch = _layout(tiling, rows, columns)
    width = tile_columns - thread_columns + _segment(columns, thread_columns)
    plane, taps, segment_length = height * pitch, rows.taps * columns.taps, _segment(columns, thread_columns)
    # Without taps the sum is empty, and nothing is fetched.
    summed = filters if taps else 0
    gradients_size, weights_size = stage * plane, max(1, stage * taps * tap_pitch)
    gradients_staged, weights_staged = stage * height * width, stage * tile_channels * taps
    # The tile's first position meets the last tap here.
    reach_h = rows.first - rows.shift - max(0, rows.taps - 1) * rows.spread
    reach_w = columns.first - columns.shift - max(0, columns.taps - 1) * columns.spread
    last_row, last_column = rows.tap + (rows.taps - 1) * rows.step, columns.tap + (columns.taps - 1) * columns.step
    row_step, column_step, row_taps, column_taps = rows.step, columns.step, rows.taps, columns.taps
    row_spread, column_spread = rows.spread, columns.spread
    row_size, column_size = rows.size, columns.size
    first_row, first_column = stride_h * rows.first + rows.offset, stride_w * columns.first + columns.offset
    load_factors = loading(thread_channels, vector if thread_channels % vector == 0 else 1)
    load_segment = loading(segment_length, vector)
    tile_of = tile_of_block(
        maps=(channel_blocks, tile_channels), rows=(down, tile_rows), columns=(beside, tile_columns)
    )
    # Registers for 512 threads a multiprocessor, or for 256, whose sums in float64 take twice as many.
    bounds = (threads, (512 if dtype == "float32" else 256) // threads)

    @device_function
    def add_tap(tap: int, total: Any, segment: Any, factors: Any, weights: Any, offset: Any) -> None:
        load_factors(factors, weights, offset + tap * tap_pitch)
        add_outer(total, factors, segment, tap * column_spread)

    add_taps = unrolled(add_tap, max(1, column_taps))

    @jit(launch_bounds=bounds)
    def conv2d_grad_input_tiled(grad: Any, weight: Any, out: Any) -> None:
        gradients = cuda.shared.array(gradients_size, real, alignment=16)
        weights = cuda.shared.array(weights_size, real, alignment=16)
        total = cuda.local.array((thread_channels, thread_columns), real)
        segment = cuda.local.array(segment_length, real)
        factors = cuda.local.array(thread_channels, real)
        clear(total)

        thread = u32(cuda.threadIdx.x)
        strip, column = divmod(thread, across)
        column *= thread_columns
        thread_group, row = divmod(strip, tile_rows)
        channel = thread_group * thread_channels

        rest, tile_channel, tile_row, tile_column = tile_of(u32(cuda.blockIdx.x))
        image, group = divmod(rest, groups)

        # Unsigned: what lies above or left of the output is a huge row or column.
        output_row, output_column = tile_row + reach_h, tile_column + reach_w
        planes = (i32(image) * k + i32(group) * filters) * (p * q)
        windows = (i32(group) * filters * channels + i32(tile_channel)) * (r * s)
        stage_first = u32(0)
        while stage_first < summed:
            i = thread
            while i < gradients_staged:
                rest, j = divmod(i, width)
                filter_, jr = divmod(rest, height)
                y, x = output_row + jr, output_column + j
                inside = (y < p) & (x < q) & (stage_first + filter_ < filters)
                position = ((stage_first + filter_) * p + y) * q + x
                value = ldg_if(grad, u32(planes) + position, inside)
                st(gradients, filter_ * plane + jr * pitch + j, value)
                i += threads
            i = thread
            while i < weights_staged:
                rest, tap = divmod(i, taps)
                filter_, j = divmod(rest, tile_channels)
                tap_row, tap_column = divmod(tap, column_taps)
                # Turned by 180 degrees.
                y, x = last_row - tap_row * row_step, last_column - tap_column * column_step
                inside = (stage_first + filter_ < filters) & (tile_channel + j < channels)
                position = ((stage_first + filter_) * channels + j) * (r * s) + y * s + x
                value = ldg_if(weight, u32(windows) + position, inside)
                st(weights, (filter_ * taps + tap) * tap_pitch + j, value)
                i += threads
            cuda.syncthreads()
            # Signed, so that the constants added to them fold into the addresses of the loads.
            gradient_offset = i32(row) * pitch + i32(column)
            weight_offset = i32(channel)
            for _ in range(stage):
                line = gradient_offset
                for _ in range(row_taps):
                    load_segment(segment, gradients, line)
                    add_taps(total, segment, factors, weights, weight_offset)
                    line += row_spread * pitch
                    weight_offset += column_taps * tap_pitch
                gradient_offset += plane
            cuda.syncthreads()
            stage_first += stage

        row, column = tile_row + row, tile_column + column
        y, x = row * stride_h + first_row, column * stride_w + first_column
        channel += tile_channel
        offset = (image * c + group * channels + channel) * h
        offset = (offset + y) * w + x
        if row < row_size:
            for i in range(thread_channels):
                if channel + i < channels:
                    if aligned16:
                        for j in range(0, thread_columns, vector):
                            if column + j < column_size:
                                if vector == 4:
                                    values = (total[i, j], total[i, j + 1], total[i, j + 2], total[i, j + 3])
                                else:
                                    values = (total[i, j], total[i, j + 1])
                                store(out, offset + (i * h * w + j), values)
                    else:
                        for j in range(thread_columns):
                            if column + j < column_size:
                                st(out, offset + (i * h * w + j * stride_w), total[i, j])

    return conv2d_grad_input_tiled


def calls(a: Arguments, geometry: Conv2dGeometry, tiling: Tiling) -> Iterator[Call]:
    """A launch for each phase, a block for each tile of some channels of an image."""
    rows_aligned = geometry.stride[1] == 1 and geometry.w % (16 // np.dtype(a.dtype).itemsize) == 0
    aligned16, single = a.aligned("out") and rows_aligned, dataclasses.replace(geometry, n=1)
    channel_blocks = geometry.groups * -(-geometry.c // geometry.groups // tiling.channels)
    for rows, columns in phases(geometry):
        tiles = -(-rows.size // tiling.rows) * -(-columns.size // tiling.columns)
        kernel = _kernel(single, tiling, a.dtype, (rows, columns), aligned16)
        yield call(kernel, geometry.n * channel_blocks * tiles, tiling.threads, a.grad, a.weight, a.out)
