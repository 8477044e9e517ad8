"""3x3 convolution with stride 1 by Winograd's algorithm F(2x2, 3x3): 16 multiplications where the direct sum has 36.

A tile of 2x2 outputs takes 4x4 inputs. Tile and filter are brought to 16 points, where the convolution is a product,
and the outputs are found from the 16 sums of these products over the channels (Lavin & Gray, "Fast algorithms for
convolutional neural networks", 2015)::

    out = Aᵀ [Σ_c (G w Gᵀ) · (Bᵀ x B)] A

A first kernel brings the filters to their points, into the workspace, in the order in which blocks read them. In the
second one a block computes ``filters x tiles`` in all 16 points: each of its 8 warps has two of them, and in each makes
a product of matrices, filters by channels and channels by tiles, with 8x8 sums a thread. Channels go by in stages of 4:
while a stage in shared memory is multiplied, the next one is fetched to registers, first filters, then inputs, which
come to their points on the way to the other of two buffers. So there is one barrier a stage, and inputs are read as
often as in a direct kernel; transformed ones are never written to global memory, where they would be four times as
many. In the end the sums of all points meet in shared memory, and a thread computes the 2x2 outputs of a tile.

Why so: with the points in global memory, inputs and sums, vgg16.conv3_2 moves 1.9 GB, 0.66 ms at 2.8 TB/s, beside 53
GFLOP, 1.2 ms at the 45 TFLOP/s of the direct product; here only the latter is left. A block's 128 KB of sums are half
of a multiprocessor's registers, so that there is room for one block, of 256 threads: with 512, of one point a warp,
each would have 128 registers, of which 64 for sums, and spill. A thread has 64 multiply-adds for 4 loads of 128 bits,
as in the direct kernel of 128x128.

Shared bytes (float32): 48 KB, two stages of ``16 · 4 · (filters + tiles)``. Registers aimed at: 255, 128 of them sums.
Expected bottleneck: multiply-adds, 79 % of the instructions of the main loop; then the filters, which each block reads
from the L2 cache, an eighth of a byte for each multiply-add.

**Accuracy.** The transforms of four numbers round a little more, but a sum has a ninth of the terms: over 512 channels
the error in norm is 7e-7, where a direct sum in order has 1.2e-6. What is not finite spreads over its tile: of an input
that is infinite or NaN, to all outputs of the up to four tiles that it is in.

Not chosen by the rule before a GPU has timed it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from numba import cuda, types

from gpuconv.geometry import Conv2dGeometry
from gpuconv.kernels.compiled import specialised
from gpuconv.kernels.device.host import MAX_ELEMENTS, MULTIPROCESSORS, NEXT_LAUNCH, Answer, Refusal, launch_time
from gpuconv.kernels.device.launch import Call, call, device_function, jit
from gpuconv.kernels.device.memory import ld, ld2, ld4, ldg, ldg2, ldg4, ldg_if, st, st2, st4
from gpuconv.kernels.device.registers import add_outer, clear, fma, unrolled
from gpuconv.kernels.device.words import i32, minimum, u32
from gpuconv.kernels.variant import Arguments

POINTS = 16
#: Of a warp, and how many threads that makes.
_OWN_POINTS = 2
_THREADS = 32 * POINTS // _OWN_POINTS
#: Channels a stage.
_DEPTH = 4
_FILTER_THREADS = 128
# Of the estimate, in issue slots of a warp, as of conv2d_implicit_gemm: a 128-bit load of shared memory; an element
# that is fetched, an input or a filter; a stage. No GPU has timed this kernel.
_SHARED_LOAD, _FETCH, _STAGE = 5, 2.1, 68


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How the work is cut up.

    Attributes:
        filters, tiles: of a block: 2x2 outputs of so many filters. A thread of 32 has 8 groups of filters and 4 of
        tiles.
    """

    filters: int
    tiles: int

    @property
    def threads(self) -> int:
        """Threads a block."""
        return _THREADS


SHAPES = (Tiling(64, 32), Tiling(32, 32))
#: In float64 all tilings are this one, whose sums and stages take no more room than theirs in float32.
_DOUBLE = Tiling(32, 16)


def supports(geometry: Conv2dGeometry) -> Answer:
    """True for windows of 3x3 with stride 1 and without dilation."""
    if (geometry.r, geometry.s, geometry.stride, geometry.dilation) != (3, 3, (1, 1), (1, 1)):
        return Refusal(
            f"a window of {geometry.r}x{geometry.s}, stride {geometry.stride}, dilation {geometry.dilation}: "
            "Winograd's algorithm is here for 3x3 with stride 1 and without dilation"
        )
    if workspace_size(geometry, SHAPES[0]) > MAX_ELEMENTS:
        return Refusal("the filters at their points need 64-bit offsets")
    return True


def _tiles(geometry: Conv2dGeometry) -> tuple[int, int]:
    """Tiles of 2x2 outputs down and across an image."""
    return -(-geometry.p // 2), -(-geometry.q // 2)


def flop(geometry: Conv2dGeometry) -> int:
    """Operations of the products at all points, a multiply-add being two: 16 for 36."""
    down, across = _tiles(geometry)
    return 2 * POINTS * geometry.n * down * across * geometry.k * geometry.c // geometry.groups


def estimate(geometry: Conv2dGeometry, tiling: Tiling) -> float:
    """Microseconds on an H100, about: what ranks tilings."""
    down, across = _tiles(geometry)
    filters, channels = geometry.k // geometry.groups, geometry.c // geometry.groups
    blocks = -(-geometry.n * down * across // tiling.tiles) * -(-filters // tiling.filters) * geometry.groups
    rows, columns = tiling.filters // 8, tiling.tiles // 4
    # Instructions for each multiply-add. For a row of points of a tile two rows are fetched.
    loads = _SHARED_LOAD * (1 / rows + 1 / columns) / 4
    fetches = _FETCH * (2 / tiling.filters + 1 / tiling.tiles)
    fixed = _STAGE / (_DEPTH * _OWN_POINTS * rows * columns)
    adds = POINTS * tiling.filters * tiling.tiles * -(-channels // _DEPTH) * _DEPTH
    waves = max(1, -(-blocks // MULTIPROCESSORS))
    return NEXT_LAUNCH + launch_time(waves * adds * (1 + loads + fetches + fixed))


def tilings(geometry: Conv2dGeometry) -> tuple[Tiling, ...]:
    """By estimated time."""
    return tuple(sorted(SHAPES, key=lambda tiling: estimate(geometry, tiling)))


def _filter_tiles(geometry: Conv2dGeometry, tiling: Tiling) -> int:
    """Of all groups."""
    return geometry.groups * -(-geometry.k // geometry.groups // tiling.filters)


def _stages(geometry: Conv2dGeometry) -> int:
    return -(-geometry.c // geometry.groups // _DEPTH)


def workspace_size(geometry: Conv2dGeometry, tiling: Tiling) -> int:
    """Elements of the filters at their points: for whole tiles and stages."""
    return POINTS * _filter_tiles(geometry, tiling) * tiling.filters * _stages(geometry) * _DEPTH


@specialised
def _filters_kernel(
    groups: int, filters: int, channels: int, tile: int, turned: bool, dtype: str
) -> Callable[..., None]:
    """The first kernel: a thread brings the window of a filter and a channel, both of a group, to its points.

    To the workspace, ``[tile of filters, stage, point, channel, filter]``; beyond the last filter or channel zeros. If
    ``turned`` the filters are those of a convolution whose gradient is wanted: ``weight[channel, filter, 2 - i, 2 -
    j]``.
    """
    real = getattr(types, dtype)
    tiles, stages = -(-filters // tile), -(-channels // _DEPTH)
    size = groups * tiles * tile * stages * _DEPTH
    point_pitch = _DEPTH * tile
    # From a window's first weight on: where the tap of a row and column is.
    first, down, across = (8, -3, -1) if turned else (0, 3, 1)

    @device_function
    def along(values: Any, at: int, step: int) -> None:
        """``G`` times three values that stand ``step`` apart, in place: the result is four."""
        top, middle, bottom = values[at], values[at + step], values[at + 2 * step]
        half = real(0.5) * (top + bottom)
        values[at + step] = half + real(0.5) * middle
        values[at + 2 * step] = half - real(0.5) * middle
        values[at + 3 * step] = bottom

    @jit(launch_bounds=_FILTER_THREADS)
    def conv2d_winograd_filters(weight: Any, out: Any) -> None:
        values = cuda.local.array(POINTS, real)
        i = u32(cuda.blockIdx.x) * _FILTER_THREADS + cuda.threadIdx.x
        if i < size:
            # Filters along the lanes: what is stored joins.
            rest, filter_ = divmod(i, tile)
            rest, channel = divmod(rest, _DEPTH)
            chunk, stage = divmod(rest, stages)
            group, filter_tile = divmod(chunk, tiles)
            own_filter, own_channel = filter_tile * tile + filter_, stage * _DEPTH + channel
            inside = (own_filter < filters) & (own_channel < channels)
            if turned:
                window = ((group * channels + own_channel) * filters + own_filter) * 9
            else:
                window = ((group * filters + own_filter) * channels + own_channel) * 9
            for row in range(3):
                for column in range(3):
                    tap = first + row * down + column * across
                    values[4 * row + column] = ldg_if(weight, window + tap, inside)
            for row in range(3):
                along(values, 4 * row, 1)
            for column in range(4):
                along(values, column, 4)
            at = rest * (POINTS * point_pitch) + channel * tile + filter_
            for point in range(POINTS):
                st(out, at + point * point_pitch, values[point])

    return conv2d_winograd_filters


@specialised
def _kernel(
    geometry: Conv2dGeometry, tiling: Tiling, dtype: str, has_bias: bool, aligned16: bool
) -> Callable[..., None]:
    """The kernel for images of a geometry, whatever their number: ``geometry.n`` is not looked at."""
    real = getattr(types, dtype)
    vector, load, load_read_only, store_all = (4, ld4, ldg4, st4) if dtype == "float32" else (2, ld2, ldg2, st2)
    store_two = st2
    c, h, w, k, p, q, groups = (getattr(geometry, name) for name in ("c", "h", "w", "k", "p", "q", "groups"))
    channels, filters = c // groups, k // groups
    top, left = geometry.padding[0][0], geometry.padding[1][0]
    down, across = _tiles(geometry)
    plane, map_tiles = h * w, down * across
    stages, ragged_channels = _stages(geometry), channels % _DEPTH != 0
    # A tile is whole inside of the image, and so all of its rows and columns there, if nothing is padded.
    padded = geometry.padding != ((0, 0), (0, 0)) or p % 2 + q % 2 > 0
    paired = aligned16 and q % 2 == 0

    tile_filters, tiles = tiling.filters, tiling.tiles
    filter_tiles = -(-filters // tile_filters)
    thread_filters, thread_tiles = tile_filters // 8, tiles // 4
    # A point's factors of a stage: its 4 channels' filters, its 4 channels' tiles. First all points' filters.
    filter_pitch, tile_pitch = _DEPTH * tile_filters, _DEPTH * tiles
    filters_size, inputs_size = POINTS * filter_pitch, POINTS * tile_pitch
    buffer_size = filters_size + inputs_size
    both_buffers = 2 * buffer_size
    half_filters, half_tiles = filter_pitch // 2, tile_pitch // 2
    # Of a stage's filters a thread fetches so many vectors, so far apart.
    filter_step = vector * _THREADS
    filter_fetches = filters_size // filter_step
    staged_filters = vector * filter_fetches
    # Of its inputs a row of points of a tile and channel, for which it needs two rows of the tile, and that of so many
    # channels, so far apart.
    input_fetches, channel_step = 4 * _DEPTH * tiles // _THREADS, _THREADS // (4 * tiles)
    staged_inputs = 8 * input_fetches
    # In the end the sums of a filter of each thread meet at a time, as many tiles as there are threads, or half of
    # them; two neighbouring filters in different banks.
    gathered_pitch = tiles + 16 if tiles % 32 == 0 else tiles
    gathered_point, gathered_tiles = 8 * gathered_pitch, 8 * tiles

    @device_function
    def multiply(step: int, total: Any, a: Any, b: Any, stage: Any, filter_at: Any, tile_at: Any) -> None:
        channel, point = step // _OWN_POINTS, step % _OWN_POINTS
        for i in range(0, thread_filters, vector):
            at = point * filter_pitch + channel * tile_filters + i // 4 * 32 + i % 4
            found = load(stage, filter_at + at)
            for j in range(vector):
                a[i + j] = found[j]
        for i in range(0, thread_tiles, vector):
            found = load(stage, tile_at + (point * tile_pitch + channel * tiles + i // 4 * 16 + i % 4))
            for j in range(vector):
                b[i + j] = found[j]
        add_outer(total[point], a, b, 0)

    multiply_half = unrolled(multiply, _OWN_POINTS * _DEPTH // 2)

    @device_function
    def fetch_filters(staged: Any, transformed: Any, filter_at: Any) -> None:
        for i in range(filter_fetches):
            found = load_read_only(transformed, filter_at + i * filter_step)
            for j in range(vector):
                staged[vector * i + j] = found[j]

    @device_function
    def fetch_inputs(rows: Any, x: Any, upper: Any, lower: Any, outside: Any, channel: Any) -> None:
        """Two rows of a tile, of one or two channels."""
        for i in range(input_fetches):
            there = channel + i * channel_step < channels if ragged_channels else True
            at = i * channel_step * plane
            for j in range(4):
                inside = (outside & (1 << j)) == 0 if padded else True
                rows[8 * i + j] = ldg_if(x, upper + (at + j), there & inside)
                inside = (outside & (16 << j)) == 0 if padded else True
                rows[8 * i + 4 + j] = ldg_if(x, lower + (at + j), there & inside)

    @device_function
    def four(values: Any, i: int) -> Any:
        return values[i], values[i + 1], values[i + 2], values[i + 3]

    @device_function
    def two(values: Any, i: int) -> Any:
        return values[i], values[i + 1]

    packed = four if vector == 4 else two

    @device_function
    def store_filters(stage: Any, staged: Any, at: Any) -> None:
        for i in range(filter_fetches):
            store_all(stage, at + i * filter_step, packed(staged, vector * i))

    @device_function
    def store_inputs(stage: Any, rows: Any, sign: Any, at: Any) -> None:
        """On the way to their points: first of the rows, ``Bᵀ x``, then of the columns."""
        for i in range(input_fetches):
            one, two, three, four_ = rows[8 * i], rows[8 * i + 1], rows[8 * i + 2], rows[8 * i + 3]
            one, two = fma(sign, rows[8 * i + 4], one), fma(sign, rows[8 * i + 5], two)
            three, four_ = fma(sign, rows[8 * i + 6], three), fma(sign, rows[8 * i + 7], four_)
            first = at + i * channel_step * tiles
            st(stage, first, one - three)
            st(stage, first + tile_pitch, two + three)
            st(stage, first + 2 * tile_pitch, three - two)
            st(stage, first + 3 * tile_pitch, two - four_)

    @device_function
    def finish(shared: Any, at: Any, bias: Any, out: Any, filter_: Any, offset: Any, row: Any, column: Any) -> None:
        """``Aᵀ m A``: of a tile's 16 sums its four outputs."""
        upper, lower = cuda.local.array(4, real), cuda.local.array(4, real)
        for j in range(4):
            first, second = ld(shared, at + j * gathered_point), ld(shared, at + (4 + j) * gathered_point)
            third, last = ld(shared, at + (8 + j) * gathered_point), ld(shared, at + (12 + j) * gathered_point)
            upper[j] = first + second + third
            lower[j] = second - third - last
        shift = ldg(bias, filter_) if has_bias else real(0)
        for i in range(2):
            line = lower if i else upper
            one, other = line[0] + line[1] + line[2], line[1] - line[2] - line[3]
            if has_bias:
                one, other = one + shift, other + shift
            if row + i < p:
                if paired:
                    store_two(out, offset + i * q, (one, other))
                else:
                    st(out, offset + i * q, one)
                    if column + 1 < q:
                        st(out, offset + (i * q + 1), other)

    @device_function
    def finish_one(
        i: int,
        shared: Any,
        total: Any,
        gather_at: Any,
        finishing: Any,
        finish_at: Any,
        bias: Any,
        out: Any,
        first: Any,
        filter_: Any,
        offset: Any,
        row: Any,
        column: Any,
    ) -> None:
        cuda.syncthreads()
        for point in range(_OWN_POINTS):
            for j in range(0, thread_tiles, vector):
                at = gather_at + (point * gathered_point + j // 4 * 16 + j % 4)
                store_all(shared, at, packed(total[point, i], j))
        cuda.syncthreads()
        other = i // 4 * 32 + i % 4
        if finishing & (filter_ + other < filters):
            finish(shared, finish_at, bias, out, first + filter_ + other, offset + other * (p * q), row, column)

    finish_all = unrolled(finish_one, thread_filters)

    @jit(launch_bounds=(_THREADS, 1))
    def conv2d_winograd(x: Any, transformed: Any, bias: Any, out: Any, all_tiles: Any) -> None:
        shared = cuda.shared.array(both_buffers, real, alignment=16)
        total = cuda.local.array((_OWN_POINTS, thread_filters, thread_tiles), real)
        a, b = cuda.local.array(thread_filters, real), cuda.local.array(thread_tiles, real)
        next_filters, rows = cuda.local.array(staged_filters, real), cuda.local.array(staged_inputs, real)
        for own_point in range(_OWN_POINTS):
            clear(total[own_point])

        # Blocks that share inputs follow each other, so that these come from the L2 cache.
        thread, block = u32(cuda.threadIdx.x), u32(cuda.blockIdx.x)
        rest, filter_tile = divmod(block, filter_tiles)
        first_tile, group = divmod(rest, groups)
        first_tile = first_tile * tiles
        point, lane = (thread >> 5) * _OWN_POINTS, thread & 31
        lane_filter, lane_tile = lane >> 2, lane & 3

        # What the thread fetches: of a tile, which goes along the lanes, in a channel the rows for a row of points.
        fetch_tile = thread % tiles
        fetch_row = thread // tiles % 4
        fetch_channel = thread // (4 * tiles)
        tile = minimum(first_tile + fetch_tile, u32(all_tiles) - 1)
        image, rest = divmod(tile, map_tiles)
        tile_row, tile_column = divmod(rest, across)
        # Rows of points are differences and sums of two rows: 0 - 2, 1 + 2, 2 - 1, 1 - 3.
        upper_row = u32(1)
        if fetch_row == 0:
            upper_row = u32(0)
        if fetch_row == 2:
            upper_row = u32(2)
        lower_row = u32(2)
        if fetch_row == 2:
            lower_row = u32(1)
        if fetch_row == 3:
            lower_row = u32(3)
        sign = real(1) if fetch_row == 1 else real(-1)
        # Unsigned: what lies above or left of the image is a huge row or column.
        upper_row = 2 * tile_row + upper_row - top
        lower_row = 2 * tile_row + lower_row - top
        column = 2 * tile_column - left
        outside = u32(0)
        if padded:
            for j in range(4):
                if (upper_row >= h) | (column + j >= w):
                    outside += u32(1) << j
                if (lower_row >= h) | (column + j >= w):
                    outside += u32(16) << j
        offset = (image * c + group * channels + fetch_channel) * plane + column
        upper, lower = offset + upper_row * w, offset + lower_row * w
        channel = fetch_channel
        filter_at = (group * filter_tiles + filter_tile) * (stages * filters_size) + thread * vector
        filter_store = i32(thread) * vector
        input_store = i32(fetch_row * 4 * tile_pitch + fetch_channel * tiles + fetch_tile) + filters_size

        fetch_filters(next_filters, transformed, filter_at)
        fetch_inputs(rows, x, upper, lower, outside, channel)
        store_filters(shared, next_filters, filter_store)
        store_inputs(shared, rows, sign, input_store)
        cuda.syncthreads()
        filter_own = i32(point * filter_pitch + lane_filter * 4)
        tile_own = i32(point * tile_pitch + lane_tile * 4) + filters_size
        buffer = i32(0)
        stage = u32(1)
        while stage < stages:
            stage += 1
            channel += _DEPTH
            filter_at += filters_size
            upper, lower = upper + _DEPTH * plane, lower + _DEPTH * plane
            # One half of the multiplications is for the filters to arrive in, the other one for the inputs: so they
            # take turns in the same registers.
            other = buffer_size - buffer
            fetch_filters(next_filters, transformed, filter_at)
            multiply_half(total, a, b, shared, filter_own + buffer, tile_own + buffer)
            store_filters(shared, next_filters, filter_store + other)
            fetch_inputs(rows, x, upper, lower, outside, channel)
            multiply_half(total, a, b, shared, filter_own + (buffer + half_filters), tile_own + (buffer + half_tiles))
            store_inputs(shared, rows, sign, input_store + other)
            buffer = other
            cuda.syncthreads()
        multiply_half(total, a, b, shared, filter_own + buffer, tile_own + buffer)
        multiply_half(total, a, b, shared, filter_own + (buffer + half_filters), tile_own + (buffer + half_tiles))

        # The points meet: a filter of each thread at a time.
        gather_at = i32(point * gathered_point + lane_filter * gathered_pitch + lane_tile * 4)
        own_filter, own_tile = divmod(thread, tiles)
        tile = first_tile + own_tile
        image, rest = divmod(tile, map_tiles)
        tile_row, tile_column = divmod(rest, across)
        row, column = 2 * tile_row, 2 * tile_column
        finish_at = i32(own_filter * gathered_pitch + own_tile)
        filter_ = filter_tile * tile_filters + own_filter * 4
        offset = ((image * k + group * filters + filter_) * p + row) * q + column
        finishing = (thread < gathered_tiles) & (tile < all_tiles)
        finish_all(
            shared, total, gather_at, finishing, finish_at, bias, out, group * filters, filter_, offset, row, column
        )

    return conv2d_winograd


def products(
    a: Arguments, geometry: Conv2dGeometry, tiling: Tiling, x: str, bias: str | None = None, *, turned: bool = False
) -> Iterator[Call]:
    """Filters to their points, then the convolution of the array ``x`` with them."""
    if a.dtype == "float64":
        tiling = _DOUBLE
    groups = geometry.groups
    shape = groups, geometry.k // groups, geometry.c // groups, tiling.filters, turned, a.dtype
    filters = workspace_size(geometry, tiling) // POINTS
    yield call(_filters_kernel(*shape), -(-filters // _FILTER_THREADS), _FILTER_THREADS, a.weight, a.workspace)
    single, has_bias = dataclasses.replace(geometry, n=1), bias is not None and a.has(bias)
    kernel = _kernel(single, tiling, a.dtype, has_bias, a.aligned("out"))
    down, across = _tiles(geometry)
    all_tiles = geometry.n * down * across
    blocks = -(-all_tiles // tiling.tiles) * _filter_tiles(geometry, tiling)
    # For a bias that there is not stands an array that is not looked at.
    arrays = (getattr(a, name) for name in (x, "workspace", bias or "weight", "out"))
    yield call(kernel, blocks, tiling.threads, *arrays, all_tiles)


def calls(a: Arguments, geometry: Conv2dGeometry, tiling: Tiling) -> Iterator[Call]:
    """Filters to their points, then the convolution."""
    yield from products(a, geometry, tiling, "x", "bias")
