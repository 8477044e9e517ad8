"""Compiled 3x3 convolutions by Winograd's algorithm F(4x4, 3x3): a quarter of the multiplications.

A filter of three taps slid over six pixels gives four results. Seen as polynomials, pixels and taps can be evaluated at
six points, multiplied there, and the results found from the six products: 6 multiplications for 12, and in two
dimensions 36 for 144. (Lavin & Gray, "Fast algorithms for convolutional neural networks", 2015.) So for each of the 36
points there is a matrix product over the channels, between transforms of tiles of 6x6 pixels, 4 apart, and of filters::

    result = Aᵀ [Σ_c (G w Gᵀ) · (Bᵀ x B)] A

- :func:`forward_tiles` is the convolution; given the filters turned round, also the gradient of the input.
- The weight's gradient is the same read backwards, ``Gᵀ [Σ_tiles (A dy Aᵀ) · (Bᵀ x B)] G``: :func:`tiles_at_points`,
  :func:`multiply_points`, and :func:`filters_from_points`.

**Accuracy.** Rounding errors grow with the size of the matrices' elements. The points 0, ±3/4, ±3/2 and ∞ keep them
small: over 512 channels the largest error in float32 is twice that of the direct kernels, where with the usual points
0, ±1, ±2, ∞ it is ten times (tests/backends/test_winograd.py). What is not finite spreads over its tiles: of a pixel
that is infinite or NaN, to all results of the up to four tiles that it is in.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from gpuconv.backends import host_graph
from gpuconv.backends.cpu.compile import ELEMENTS, SIZE, kernel, split
from gpuconv.backends.cpu.conv import Forward
from gpuconv.backends.cpu.conv_grad import fill_channels_last
from gpuconv.backends.cpu.memory import constant_zeros, empty, lasting
from gpuconv.backends.cpu.simd import (
    InVectors,
    copy,
    forget_loads,
    load,
    multiply_add,
    prefetch,
    registers,
    relu,
    scratch,
    scratch_zeros,
    store,
    store_grid,
    store_part,
    transform,
    transpose,
    zeros,
)
from gpuconv.backends.cpu.threads import launch
from gpuconv.geometry import Pair

TILE = 4  # results of a tile in each direction
_SIDE = TILE + 2  # pixels of a tile, and points
POINTS = _SIDE**2
#: Tiles, at all points, that are worked on at a time: about half of a core's second-level cache.
_TILES_BYTES = 1 << 20
#: The least and the most of tiles of both factors, at all points, that a weight's gradient is summed over at a time.
_GRADIENT_BYTES = 4 << 20, 24 << 20
#: How far ahead filters are fetched from the last-level cache.
_AHEAD_BYTES = 4096
_AHEAD_TILES = 8
#: Where it pays, of the convolution and of its weight's gradient: from so many channels and filters on, else the
#: transforms cost more than the multiplications saved; from so many tiles on, else the transformed filters, four times
#: as large, cost more to make and read (two cores with AVX-512 and float32, against the direct kernels: 4 images of 128
#: channels at 28x28 take 0.93 of the time, 2 images 1.08; 32 images of 64 channels at 56x56 0.61, of 512 at 7x7 0.63).
_CHANNELS, _LEAST_TILES = (32, 64), (128, 32)
#: ... and up to so many of the multiplications: maps that fill their tiles.
_MOST_MULTIPLICATIONS = 0.5

# The points are 0, a, -a, b, -b and infinity. Sums and differences of what belongs to a and -a are taken once.
_A, _B = 0.75, 1.5
_FA, _FB = 1 / (2 * _A**2 * (_A**2 - _B**2)), 1 / (2 * _B**2 * (_B**2 - _A**2))
_PAIRS = ((1, 0, 0, 0, 0, 0), (0, 1, 1, 0, 0, 0), (0, 1, -1, 0, 0, 0), (0, 0, 0, 1, 1, 0), (0, 0, 0, 1, -1, 0),
          (0, 0, 0, 0, 0, 1))  # fmt: skip
_PIXELS = (
    (_A**2 * _B**2, 0, -(_A**2) - _B**2, 0, 1, 0),
    (0, 0, -(_B**2), 0, 1, 0),
    (0, -(_B**2) * _A, 0, _A, 0, 0),
    (0, 0, -(_A**2), 0, 1, 0),
    (0, -(_A**2) * _B, 0, _B, 0, 0),
    (0, _A**2 * _B**2, 0, -(_A**2) - _B**2, 0, 1),
)
_RESULTS = ((1, 1, 0, 1, 0, 0), (0, 0, _A, 0, _B, 0), (0, _A**2, 0, _B**2, 0, 0), (0, 0, _A**3, 0, _B**3, 1))
_TAPS = (
    (1 / (_A**2 * _B**2), _FA, 0, _FB, 0, 0),
    (0, 0, _FA * _A, 0, _FB * _B, 0),
    (0, _FA * _A**2, 0, _FB * _B**2, 0, 1),
)


def _turned(matrix):
    return tuple(zip(*matrix, strict=True))


_pixels_to_points = transform(_PIXELS, _PAIRS)  # Bᵀ x B
_points_to_results = transform(_PAIRS, _RESULTS)  # Aᵀ m A
_results_to_points = transform(_turned(_RESULTS), _PAIRS)  # A y Aᵀ
_taps_to_points = transform(_turned(_TAPS), _PAIRS)  # G w Gᵀ
_points_to_taps = transform(_PAIRS, _TAPS)  # Gᵀ m G


def _divide(a: int, b: int) -> int:
    """``a / b`` rounded up."""
    return -(-a // b)


@dataclass(frozen=True)
class Tiles:
    """What the kernels for a convolution are compiled for.

    Attributes:
        forward: the convolution, which :func:`suits`.
    """

    forward: Forward

    @property
    def dtype(self) -> str:
        """Name of the element type."""
        return self.forward.dtype

    @cached_property
    def lanes(self) -> int:
        """Elements in a vector register."""
        return self.forward.lanes

    @cached_property
    def grid(self) -> tuple[int, int]:
        """Rows of tiles in an image, and tiles in each."""
        return _divide(self.forward.p, TILE), _divide(self.forward.q, TILE)

    @cached_property
    def block(self) -> tuple[int, int]:
        """Filters that sums are taken for at a time, as vectors and as elements."""
        return 2, 2 * self.lanes

    @cached_property
    def blocks(self) -> int:
        """Blocks of filters."""
        return _divide(self.forward.k, self.block[1])

    @cached_property
    def pitch(self) -> int:
        """Elements for the channels of a tile at a point: whole vectors."""
        return _divide(self.forward.c, self.lanes) * self.lanes

    @cached_property
    def rows(self) -> int:
        """Rows of tiles that are worked on at a time."""
        bytes_a_row = self.grid[1] * self.pitch * POINTS * np.dtype(self.dtype).itemsize
        return max(1, min(_TILES_BYTES // bytes_a_row, 128 // self.grid[1]), _divide(24, self.grid[1]))

    @cached_property
    def register_tiles(self) -> int:
        """Tiles that sums are taken for at a time."""
        most = (registers()[1] - self.block[0] - 2) // self.block[0]
        tiles = self.rows * self.grid[1]
        return _divide(tiles, _divide(tiles, most))

    @cached_property
    def packed_step(self) -> int:
        """Elements from a block's filters at one point to those at the next; no power of two, or all would share a
        set of the cache.
        """
        return self.forward.c * self.block[1] + self.lanes


def suits(plan: Forward) -> bool:
    """Whether a convolution can be computed so: 3x3 filters, next to each other, over all channels."""
    return (
        (plan.r, plan.s) == (3, 3)
        and plan.stride == plan.dilation == plan.spread == plan.window == (1, 1)
        and plan.groups == 1
        and min(plan.before) >= 0
    )


def multiplications(plan: Forward) -> float:
    """How many times the multiplications of the sum over taps there are: 1/4 where tiles of results fit."""
    return POINTS * _divide(plan.p, TILE) * _divide(plan.q, TILE) / (9 * plan.p * plan.q)


def pays(plan: Forward, n: int, *, grad_weight: bool = False) -> bool:
    """Whether it is faster than the direct kernels, for a batch of n."""
    tiles = n * _divide(plan.p, TILE) * _divide(plan.q, TILE)
    return (
        min(plan.c, plan.k) >= _CHANNELS[grad_weight]
        and tiles >= _LEAST_TILES[grad_weight]
        and multiplications(plan) <= _MOST_MULTIPLICATIONS
    )


@kernel(ELEMENTS, ELEMENTS, SIZE)
def _pack_filters(plan: Tiles):
    """``(weight, packed, parts)``: see :func:`packed_filters`. A chunk packs part of the channels of a block."""
    filters, channels = plan.forward.k, plan.forward.c
    filter_step, channel_step, row_step, column_step = plan.forward.steps
    first_tap = plan.forward.first_tap
    lanes = plan.lanes
    vectors, block = plan.block
    step, points, side = plan.packed_step, POINTS, _SIDE
    dtype = np.dtype(plan.dtype).type

    def compute(chunk, weight, packed, parts):
        b = chunk // parts
        first, last = split(channels, parts, chunk - b * parts)
        taps = scratch_zeros(9 * block, dtype)
        count = min(block, filters - b * block)
        for c in range(first, last):
            source = b * block * filter_step + c * channel_step + first_tap
            for lane in range(count):
                for i in range(3):
                    for j in range(3):
                        taps[(3 * i + j) * block + lane] = weight[source + i * row_step + j * column_step]
                source += filter_step
            for v in range(vectors):
                tile = _taps_to_points(taps, v * lanes, 3 * block, block, lanes)
                target = b * points * step + c * block + v * lanes
                store_grid(packed, target, side, side * step, side, step, tile)

    return compute


def packed_filters(plan: Tiles, weight: np.ndarray) -> np.ndarray:
    """The filters at the points: (blocks, points, channels, filters of a block), zeros for filters that the last block
    has too many.
    """
    packed = empty((plan.blocks * POINTS * plan.packed_step,), weight.dtype)
    parts = min(plan.forward.c, _divide(32, plan.blocks))
    launch(_pack_filters(plan), plan.blocks * parts, weight, packed, parts, work=16 * weight.size)
    return packed


@kernel(ELEMENTS, ELEMENTS, ELEMENTS, ELEMENTS, SIZE, SIZE, SIZE)
def forward_tiles(plan: Tiles):
    """``(x, packed, bias, y, n, row_parts, filter_parts)``: convolution, and ReLU.

    A chunk computes some rows of tiles for some blocks of filters. ``packed`` is made by :func:`packed_filters`;
    ``bias`` has a value for each filter of the blocks.
    """
    channels, h, w, p, q = plan.forward.c, plan.forward.h, plan.forward.w, plan.forward.p, plan.forward.q
    filters, before, rectified = plan.forward.k, plan.forward.before, plan.forward.relu
    grid_rows, grid_columns = plan.grid
    lanes, square = plan.lanes, 32 // np.dtype(plan.dtype).itemsize
    vectors, block = plan.block
    blocks, most_rows, register_tiles = plan.blocks, plan.rows, plan.register_tiles
    sums_count = register_tiles * vectors
    most_tiles = _divide(most_rows * grid_columns, register_tiles) * register_tiles
    pitch, packed_step = plan.pitch, plan.packed_step
    point_step = most_tiles * pitch + lanes  # no power of two
    sums_step = most_tiles * block + lanes
    ahead = _AHEAD_BYTES // np.dtype(plan.dtype).itemsize
    side, points, tile_side = _SIDE, POINTS, TILE
    columns = grid_columns * tile_side + 2
    image_pitch = columns * channels
    results, collected_size = tile_side**2, (tile_side * (q + tile_side) + lanes) * block
    dtype = np.dtype(plan.dtype).type

    def compute(chunk, x, packed, bias, y, n, row_parts, filter_parts):
        image = scratch_zeros(side * image_pitch + lanes, dtype)
        at_points = scratch(points * point_step, dtype)
        sums_at_points = scratch(points * sums_step, dtype)
        collected = scratch_zeros(collected_size, dtype)
        turned = scratch(lanes * lanes, dtype)
        one = np.ones(1, dtype)
        part = chunk // filter_parts
        first, last = split(n * grid_rows, row_parts, part)
        b_first, b_last = split(blocks, filter_parts, chunk - part * filter_parts)
        for row_first in range(first, last, most_rows):
            row_last = min(row_first + most_rows, last)
            tiles = (row_last - row_first) * grid_columns
            for row in range(row_first, row_last):
                i = row // grid_rows
                top = (row - i * grid_rows) * tile_side
                there = 0
                if row > row_first and top > 0:  # two rows of the scratch are known from the tiles above
                    there = 2
                    copy(image, 0, image, tile_side * image_pitch, there * image_pitch)
                start = i * channels * h * w
                fill_channels_last(image, x, start, channels, h, w, top, there, side, columns, before, square)
                for column in range(grid_columns):
                    target = ((row - row_first) * grid_columns + column) * pitch
                    for c in range(0, channels, lanes):
                        tile = _pixels_to_points(image, column * tile_side * channels + c, image_pitch, channels, lanes)
                        store_grid(at_points, target + c, side, side * point_step, side, point_step, tile)
            for b in range(b_first, b_last):
                for point in range(points):
                    weights = (b * points + point) * packed_step
                    for t in range(0, tiles, register_tiles):
                        sums = zeros(x, sums_count, lanes)
                        element, tap = point * point_step + t * pitch, weights
                        for _ in range(channels):
                            factors = load(packed, tap, 1, 0, vectors, lanes)
                            sums = multiply_add(sums, at_points, element, register_tiles, pitch, 1, 0, factors)
                            forget_loads()
                            prefetch(packed, tap + ahead)
                            prefetch(packed, tap + ahead + lanes)
                            element += 1
                            tap += block
                        store(sums_at_points, point * sums_step + t * block, register_tiles, block, sums)
                for row in range(row_first, row_last):
                    i = row // grid_rows
                    top = (row - i * grid_rows) * tile_side
                    # From right to left: what a tile has beyond the last column is overwritten by the row below.
                    for tile_column in range(grid_columns):
                        column = grid_columns - 1 - tile_column
                        for v in range(vectors):
                            source = ((row - row_first) * grid_columns + column) * block + v * lanes
                            result = _points_to_results(sums_at_points, source, side * sums_step, sums_step, lanes)
                            shift = load(bias, b * block + v * lanes, 1, 0, 1, lanes)
                            result = multiply_add(result, one, 0, results, 0, 1, 0, shift)
                            if rectified:
                                result = relu(result)
                            target = column * tile_side * block + v * lanes
                            store_grid(collected, target, tile_side, q * block, tile_side, block, result)
                    positions = min(tile_side, p - top) * q
                    for v in range(vectors):
                        k = b * block + v * lanes
                        for position in range(0, positions, lanes):
                            tile = load(collected, position * block + v * lanes, lanes, block, 1, lanes)
                            store(turned, 0, lanes, lanes, transpose(tile))
                            target = (i * filters + k) * p * q + top * q + position
                            for lane in range(min(lanes, filters - k)):
                                run = load(turned, lane * lanes, 1, 0, 1, lanes)
                                store_part(y, target, 1, 0, run, positions - position)
                                target += p * q

    return compute


def convolve(plan: Tiles, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, work: int) -> np.ndarray:
    """The convolution of C-contiguous arrays: (n, k, p, q)."""
    n, k = len(x), plan.forward.k
    y = empty((n, k, plan.forward.p, plan.forward.q), x.dtype)
    padded_bias = constant_zeros(plan.blocks * plan.block[1], x.dtype)
    if bias is not None:
        padded_bias = empty(padded_bias.shape, x.dtype)
        host_graph.call(_pad, padded_bias, bias)
    rows = n * plan.grid[0]
    # Each part of the filters transforms the pixels anew, each part of the rows reads all filters of its part.
    row_parts = max(1, min(32, rows * plan.grid[1] // 28))
    filter_parts = min(plan.blocks, _divide(8, row_parts))
    batch = (n, row_parts, filter_parts)
    packed = packed_filters(plan, weight)
    launch(forward_tiles(plan), row_parts * filter_parts, x, packed, padded_bias, y, *batch, work=work)
    return y


def _pad(padded: np.ndarray, values: np.ndarray) -> None:
    padded[: len(values)], padded[len(values) :] = values, 0


# -- the gradient of the weight --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Maps(InVectors):
    """What :func:`tiles_at_points` is compiled for.

    Attributes:
        dtype: name of the element type.
        channels, h, w: of an image.
        before: rows and columns of padding above and left of it.
        grid: rows of tiles in an image, and tiles in each.
        side: of a tile: 6 for pixels, whose tiles overlap, 4 for results.
    """

    channels: int
    h: int
    w: int
    before: Pair
    grid: tuple[int, int]
    side: int

    @cached_property
    def pitch(self) -> int:
        """Elements for the channels of a tile at a point: whole vectors."""
        return _divide(self.channels, self.lanes) * self.lanes

    def point_step(self, rows: int) -> int:
        """Elements from the tiles of so many rows at one point to those at the next; some are read behind the last."""
        return rows * self.grid[1] * self.pitch + 2 * self.lanes


@kernel(ELEMENTS, ELEMENTS, *[SIZE] * 4)
def tiles_at_points(plan: Maps):
    """``(x, at_points, first_row, rows, point_step, parts)``: tiles of some rows, at the points.

    ``at_points`` is (points, tiles, channels); rows count through the images. A chunk takes some of the rows.
    """
    channels, h, w, before, pitch = plan.channels, plan.h, plan.w, plan.before, plan.pitch
    grid_rows, grid_columns = plan.grid
    of_pixels, tile_rows = plan.side == _SIDE, plan.side
    lanes, square = plan.lanes, 32 // np.dtype(plan.dtype).itemsize
    side, tile_side = _SIDE, TILE
    columns = grid_columns * tile_side + 2
    image_pitch = columns * channels
    dtype = np.dtype(plan.dtype).type

    def compute(chunk, x, at_points, first_row, rows, point_step, parts):
        image = scratch_zeros(tile_rows * image_pitch + lanes, dtype)
        first, last = split(rows, parts, chunk)
        for row in range(first, last):
            i = (first_row + row) // grid_rows
            top = (first_row + row - i * grid_rows) * tile_side
            there = 0
            if of_pixels and row > first and top > 0:  # two rows are known from the tiles above
                there = 2
                copy(image, 0, image, tile_side * image_pitch, there * image_pitch)
            start = i * channels * h * w
            fill_channels_last(image, x, start, channels, h, w, top, there, tile_rows, columns, before, square)
            for column in range(grid_columns):
                for c in range(0, channels, lanes):
                    source = column * tile_side * channels + c
                    if of_pixels:
                        tile = _pixels_to_points(image, source, image_pitch, channels, lanes)
                    else:
                        tile = _results_to_points(image, source, image_pitch, channels, lanes)
                    target = (row * grid_columns + column) * pitch + c
                    store_grid(at_points, target, side, side * point_step, side, point_step, tile)

    return compute


@dataclass(frozen=True)
class Products(InVectors):
    """What the kernels for the sums over tiles are compiled for.

    Attributes:
        dtype: name of the element type.
        c, k: channels, filters.
    """

    c: int
    k: int

    @cached_property
    def tile(self) -> tuple[int, int]:
        """Sums in registers: channels, and vectors of filters."""
        vectors = 2
        most = (registers()[1] - vectors - 2) // vectors
        return _divide(self.c, _divide(self.c, most)), vectors

    @cached_property
    def sums_pitch(self) -> int:
        """Elements of a channel's sums at a point: filters, in whole tiles."""
        width = self.tile[1] * self.lanes
        return _divide(self.k, width) * width

    @cached_property
    def sums_step(self) -> int:
        """Elements of the sums at a point: channels, in whole tiles; no power of two."""
        return _divide(self.c, self.tile[0]) * self.tile[0] * self.sums_pitch + self.lanes


@kernel(ELEMENTS, ELEMENTS, ELEMENTS, *[SIZE] * 6)
def multiply_points(plan: Products):
    """``(pixels, grads, sums, tiles, pixels_step, grads_step, pixels_pitch, grads_pitch, add)``: sums over tiles.

    ``sums`` is (points, channels, filters), added to if ``add``; a chunk computes those of a point.
    """
    lanes = plan.lanes
    tile_channels, vectors = plan.tile
    tile_count = tile_channels * vectors
    block = vectors * lanes
    sums_pitch, sums_step, channels, filters = plan.sums_pitch, plan.sums_step, plan.c, plan.k
    ahead = _AHEAD_TILES

    def compute(chunk, pixels, grads, sums, tiles, pixels_step, grads_step, pixels_pitch, grads_pitch, add):
        for k in range(0, filters, block):
            for c in range(0, channels, tile_channels):
                target = chunk * sums_step + c * sums_pitch + k
                tile = zeros(pixels, tile_count, lanes)
                if add:
                    tile = load(sums, target, tile_channels, sums_pitch, vectors, lanes)
                pixel, grad = chunk * pixels_step + c, chunk * grads_step + k
                for _ in range(tiles):
                    factors = load(grads, grad, 1, 0, vectors, lanes)
                    tile = multiply_add(tile, pixels, pixel, tile_channels, 1, 1, 0, factors)
                    forget_loads()
                    prefetch(pixels, pixel + ahead * pixels_pitch)
                    prefetch(grads, grad + ahead * grads_pitch)
                    prefetch(grads, grad + ahead * grads_pitch + lanes)
                    pixel += pixels_pitch
                    grad += grads_pitch
                store(sums, target, tile_channels, sums_pitch, tile)

    return compute


@kernel(ELEMENTS, ELEMENTS, SIZE)
def filters_from_points(plan: Products):
    """``(sums, weight_grad, parts)``: the gradient (k, c, 3, 3) from the sums; a chunk takes some of the filters."""
    lanes, channels, filters = plan.lanes, plan.c, plan.k
    sums_pitch, sums_step, side = plan.sums_pitch, plan.sums_step, _SIDE
    dtype = np.dtype(plan.dtype).type

    def compute(chunk, sums, weight_grad, parts):
        taps = scratch(9 * lanes, dtype)
        first, last = split((filters + lanes - 1) // lanes, parts, chunk)
        for k in range(first * lanes, last * lanes, lanes):
            for c in range(channels):
                tile = _points_to_taps(sums, c * sums_pitch + k, side * sums_step, sums_step, lanes)
                store(taps, 0, 9, lanes, tile)
                for lane in range(min(lanes, filters - k)):
                    target = ((k + lane) * channels + c) * 9
                    for tap in range(9):
                        weight_grad[target + tap] = taps[tap * lanes + lane]

    return compute


def weight_gradient(plan: Tiles, x: np.ndarray, grad: np.ndarray) -> np.ndarray:
    """The gradient of the weight, (k, c, 3, 3), of C-contiguous arrays."""
    f, grid, dtype = plan.forward, plan.grid, x.dtype
    pixels = Maps(dtype.name, f.c, f.h, f.w, f.before, grid, _SIDE)
    grads = Maps(dtype.name, f.k, f.p, f.q, (0, 0), grid, TILE)
    products = Products(dtype.name, f.c, f.k)
    rows = len(x) * grid[0]
    # As many tiles at a time as there are sums: fewer would have these loaded and stored more often than needed.
    point_bytes = POINTS * dtype.itemsize
    wanted = min(max(_GRADIENT_BYTES[0], products.sums_step * point_bytes), _GRADIENT_BYTES[1])
    parts = min(rows, _divide(rows * grid[1] * (pixels.pitch + grads.pitch) * point_bytes, wanted))
    most = _divide(rows, parts)
    pixels_step, grads_step = pixels.point_step(most), grads.point_step(most)
    pixels_at_points, grads_at_points = (empty((POINTS * step,), dtype) for step in (pixels_step, grads_step))
    sums = empty((POINTS * products.sums_step,), dtype)
    for part in range(parts):
        first, last = part * rows // parts, (part + 1) * rows // parts
        count = last - first
        chunks = min(count, 32)
        work = count * grid[1] * POINTS
        for maps, array, at_points, step in (
            (pixels, x, pixels_at_points, pixels_step),
            (grads, grad, grads_at_points, grads_step),
        ):
            kernel = tiles_at_points(maps)
            launch(kernel, chunks, array, at_points, first, count, step, chunks, work=4 * work * maps.pitch)
        sizes = (count * grid[1], pixels_step, grads_step, pixels.pitch, grads.pitch, int(part > 0))
        kernel = multiply_points(products)
        launch(kernel, POINTS, pixels_at_points, grads_at_points, sums, *sizes, work=work * f.c * f.k)
    weight_grad = lasting((f.k, f.c, 3, 3), dtype)
    chunks = min(_divide(f.k, products.lanes), 32)
    launch(filters_from_points(products), chunks, sums, weight_grad, chunks, work=16 * weight_grad.size)
    return weight_grad
