"""Compiled convolutions for the CPU, with the ReLU and max pooling that may follow.

Both kernels work image by image: an image, of large ones a band of rows, is copied into a padded scratch that stays
in the cache, and every access from there on is in range. They differ in what the lanes of a vector run over:

- :func:`forward_by_columns`: columns of the output. In registers are sums of filters x rows x columns. Suits few
  filters.
- :func:`forward_by_filters`: filters. In registers are sums of rows x columns x filters. Suits many filters, and any
  stride.

A pooling is taken in the registers, so that the unpooled map is never written; a plain convolution is the case of a
1x1 window without ReLU. The gradient for the input is a forward convolution too, of the output's gradient with the
filters turned round (:meth:`Forward.of_grad_input`). The other gradients are in ``conv_grad``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numba import njit
from numba.extending import register_jitable

from gpuconv.backends.cpu.compile import ELEMENTS, SIZE, WINNERS, Elements, kernel, split
from gpuconv.backends.cpu.memory import aligned
from gpuconv.backends.cpu.simd import (
    InVectors,
    broadcast,
    copy,
    forget_loads,
    load,
    multiply_add,
    pool_lanes,
    pool_vectors,
    registers,
    relu,
    scratch,
    scratch_zeros,
    store,
    store_part,
    transpose,
)
from gpuconv.backends.cpu.threads import launch
from gpuconv.geometry import Conv2dGeometry, Pair, effective

#: Size of the scratch of one band: a part of the second-level cache of any current CPU core.
SCRATCH_BYTES = 256 << 10


def _divide(a: int, b: int) -> int:
    """``a / b`` rounded up."""
    return -(-a // b)


@dataclass(frozen=True)
class Forward(InVectors):
    """What a forward kernel is compiled for. The batch size is not part of it.

    Attributes:
        dtype: name of the element type.
        c, h, w: channels and size of an input image.
        before: rows and columns of padding above and left of the image; negative ones cut some of it off.
        spread: distance in the scratch between neighbouring input elements; zeros lie between them.
        k, r, s, stride, dilation, groups: as in :class:`~gpuconv.geometry.Conv2dGeometry`.
        steps: strides in the weight array of (filters, channels, rows, columns).
        first_tap: offset in the weight array of the first tap of the first filter.
        window: height and width of the pooling; 1, 1 for none.
        relu: whether to take the maximum with zero.
        p, q: rows and columns of the result, pooled.
    """

    c: int
    h: int
    w: int
    before: Pair
    spread: Pair
    k: int
    r: int
    s: int
    stride: Pair
    dilation: Pair
    groups: int
    steps: tuple[int, int, int, int]
    first_tap: int
    window: Pair
    relu: bool
    p: int
    q: int

    @classmethod
    def of(cls, dtype: str, g: Conv2dGeometry, *, window: Pair = (1, 1), relu: bool = False) -> Forward:
        """Plan for a convolution, perhaps with ReLU and a pooling whose windows tile the map."""
        taps = g.r * g.s
        return cls(
            dtype=dtype,
            c=g.c,
            h=g.h,
            w=g.w,
            before=(g.padding[0][0], g.padding[1][0]),
            spread=(1, 1),
            k=g.k,
            r=g.r,
            s=g.s,
            stride=g.stride,
            dilation=g.dilation,
            groups=g.groups,
            steps=(g.c // g.groups * taps, taps, g.s, 1),
            first_tap=0,
            window=window,
            relu=relu,
            p=g.p // window[0],
            q=g.q // window[1],
        )

    @classmethod
    def of_grad_input(cls, dtype: str, g: Conv2dGeometry) -> Forward:
        """Plan for the gradient of a convolution's input.

        ``dx[c, h, w] = Σ_k,r,s dy[k, (h + top - r · dilation) / stride, ...] · w[k, c, r, s]``, over those taps for
        which the division leaves nothing: the convolution of dy, spread by the stride, with filters turned by 180
        degrees.
        """
        taps = g.r * g.s
        (top, _), (left, _) = g.padding
        return cls(
            dtype=dtype,
            c=g.k,
            h=g.p,
            w=g.q,
            before=(effective(g.r, g.dilation[0]) - 1 - top, effective(g.s, g.dilation[1]) - 1 - left),
            spread=g.stride,
            k=g.c,
            r=g.r,
            s=g.s,
            stride=(1, 1),
            dilation=g.dilation,
            groups=g.groups,
            steps=(taps, g.c // g.groups * taps, -g.s, -1),
            first_tap=taps - 1,
            window=(1, 1),
            relu=False,
            p=g.h,
            q=g.w,
        )

    @classmethod
    def of_grad_input_phase(cls, dtype: str, g: Conv2dGeometry, phase: Pair) -> Forward | None:
        """Plan for those rows and columns of the input's gradient that lie ``phase`` behind a multiple of the stride.

        Only every second tap, with a stride of 2, contributes to them: they are a convolution of dy with these taps,
        and a stride of 1. None where there is no such tap, or no such row or column. Without dilation and groups.
        """
        (first_h, r, top, p), (first_w, s, left, q) = (
            (
                (now + padding[0]) % stride,
                taps := len(range((now + padding[0]) % stride, all_taps, stride)),
                taps - 1 - (now + padding[0]) // stride,
                len(range(now, size, stride)),
            )
            for now, padding, stride, all_taps, size in zip(
                phase, g.padding, g.stride, (g.r, g.s), (g.h, g.w), strict=True
            )
        )
        if 0 in (r, s, p, q):
            return None
        taps, (down, across) = g.r * g.s, g.stride
        return cls(
            dtype=dtype,
            c=g.k,
            h=g.p,
            w=g.q,
            before=(top, left),
            spread=(1, 1),
            k=g.c,
            r=r,
            s=s,
            stride=(1, 1),
            dilation=(1, 1),
            groups=g.groups,
            steps=(taps, g.c // g.groups * taps, -down * g.s, -across),
            first_tap=(first_h + (r - 1) * down) * g.s + first_w + (s - 1) * across,
            window=(1, 1),
            relu=False,
            p=p,
            q=q,
        )

    @cached_property
    def width(self) -> int:
        """Columns of the padded input that the convolution reads."""
        return (self.q * self.window[1] - 1) * self.stride[1] + effective(self.s, self.dilation[1])

    @cached_property
    def column_tile(self) -> tuple[int, int]:
        """Sums that :func:`forward_by_columns` keeps in registers: filters, and vectors of columns for each row."""
        height, width = self.window
        vectors = width
        if width == 1 and self.q > self.lanes:
            vectors = 2
        # A vector for each row's columns, one for the weight, and LLVM needs one to move things about.
        room = registers()[1] - height * vectors - 2
        return min(self.k // self.groups, max(1, room // (height * vectors))), vectors

    @cached_property
    def filter_tile(self) -> tuple[int, int]:
        """Sums that :func:`forward_by_filters` keeps in registers: columns for each row, and vectors of filters."""
        height, width = self.window
        wanted = _divide(self.k // self.groups, self.lanes)
        vectors = min(wanted, 2)
        room = registers()[1] - vectors - 2
        blocks = max(1, room // (height * width * vectors))  # pooled columns
        # As few tiles as this allows, of equal width: the last one overlaps the one before where they do not fit.
        tiles = _divide(self.q, min(blocks, self.q))
        return _divide(self.q, tiles) * width, vectors

    @cached_property
    def costs(self) -> dict[str, int]:
        """For each variant that can run this, the vector multiply-adds that a tap and a row of the result take."""
        filters, columns = self.k // self.groups, self.q * self.window[1]
        tile_columns, vectors = self.filter_tile
        tiles = _divide(columns, tile_columns) * _divide(filters, vectors * self.lanes)
        costs = {"by_filters": self.window[0] * tiles * tile_columns * vectors}
        if self.stride[1] == 1:
            vectors = self.column_tile[1]
            costs["by_columns"] = self.window[0] * filters * vectors * _divide(columns, vectors * self.lanes)
        return costs

    @cached_property
    def choice(self) -> str:
        """The variant with the lowest cost; on a tie ``by_filters``, which reads its weights in order."""
        return min(self.costs, key=lambda name: self.costs[name])

    def scratch_pitch(self, columns: int) -> int:
        """Elements in a row of the scratch, given the columns that the kernel reads, wanted or not."""
        return _divide(max(columns, self.width), self.lanes) * self.lanes  # loads that begin a row are aligned

    def bands(self, n: int) -> int:
        """How many bands of rows to cut an image into: so that each fits the cache, and a small batch feeds threads."""
        bytes_a_row = (
            self.c // self.groups * self.width * self.window[0] * self.stride[0] * np.dtype(self.dtype).itemsize
        )
        for_cache = _divide(self.p * bytes_a_row, SCRATCH_BYTES)
        macs_an_image = (
            self.k * self.p * self.q * self.window[0] * self.window[1] * self.c // self.groups * self.r * self.s
        )
        for_threads = min(_divide(16, n), macs_an_image // 4_000_000)
        return min(self.p, max(1, for_cache, for_threads))


@njit(inline="always")
def _fill_band(image, x, start, channels, height, width, row, rows, pitch, before, spread):
    """Copy rows of an image into the scratch (channels, rows, pitch), zeros for those outside of it.

    ``row`` is the first one of the scratch, counted in the padded and spread image. Columns outside are zero from the
    start.
    """
    top, left = before
    down, across = spread
    first = (max(0, -left) + across - 1) // across  # columns that are not cut off
    last = min(width, (pitch - left + across - 1) // across)
    for c in range(channels):
        for i in range(rows):
            target = (c * rows + i) * pitch + left
            distance = row + i - top
            h = distance // down
            if distance >= 0 and h < height and h * down == distance:
                source = start + (c * height + h) * width
                if across == 1:
                    copy(image, target + first, x, source + first, max(0, last - first))
                else:
                    for j in range(first, last):
                        image[target + j * across] = x[source + j]
            else:
                for j in range(first, last):
                    image[target + j * across] = 0


@kernel(ELEMENTS, ELEMENTS, ELEMENTS, ELEMENTS, WINNERS, SIZE, SIZE, SIZE)
def forward_by_columns(plan: Forward):
    """``(x, weight, bias, y, winners, n, bands, chunks)``: convolution, maximum, ReLU, with lanes over columns."""
    groups, channels, filters = plan.groups, plan.c // plan.groups, plan.k // plan.groups
    h, w, r, s, p, q = plan.h, plan.w, plan.r, plan.s, plan.p, plan.q
    before, spread = plan.before, plan.spread
    down, (dilation_h, dilation_w) = plan.stride[0], plan.dilation
    filter_step, channel_step, row_step, column_step = plan.steps
    group_step, first_tap = filters * channels * r * s, plan.first_tap
    height, width = plan.window
    pooled, rectified = plan.window != (1, 1), plan.relu
    lanes = plan.lanes
    tile_filters, vectors = plan.column_tile
    row_vectors = height * vectors
    tile_columns = vectors * lanes // width  # of the result
    ragged = q < tile_columns
    dtype = np.dtype(plan.dtype).type
    pitch = plan.scratch_pitch(vectors * lanes + (s - 1) * dilation_w if ragged else 0)
    extent = effective(r, dilation_h)
    scratch_row_step = down * pitch

    def compute(chunk, x, weight, bias, y, winners, n, bands, chunks):
        most_rows = ((p + bands - 1) // bands * height - 1) * down + extent
        image = scratch_zeros(channels * most_rows * pitch, dtype)
        first, last = split(n * bands, chunks, chunk)
        for unit in range(first, last):
            i = unit // bands
            p_first, p_last = split(p, bands, unit - i * bands)
            rows = ((p_last - p_first) * height - 1) * down + extent
            for group in range(groups):
                start = (i * groups + group) * channels * h * w
                _fill_band(image, x, start, channels, h, w, p_first * height * down, rows, pitch, before, spread)
                for row in range(p_first, p_last):
                    for column_wanted in range(0, q, tile_columns):
                        column = column_wanted if ragged else min(column_wanted, q - tile_columns)
                        for filter_wanted in range(0, filters, tile_filters):
                            # The last tiles overlap those before them instead of being smaller.
                            k = min(filter_wanted, filters - tile_filters)
                            sums = broadcast(bias, group * filters + k, tile_filters, 1, row_vectors, lanes)
                            for c in range(channels):
                                tap = group * group_step + k * filter_step + c * channel_step + first_tap
                                pixel = (c * rows + (row - p_first) * height * down) * pitch + column * width
                                for i_tap in range(r):
                                    for j_tap in range(s):
                                        pixels = load(
                                            image,
                                            pixel + i_tap * dilation_h * pitch + j_tap * dilation_w,
                                            height,
                                            scratch_row_step,
                                            vectors,
                                            lanes,
                                        )
                                        sums = multiply_add(
                                            sums,
                                            weight,
                                            tap + i_tap * row_step + j_tap * column_step,
                                            tile_filters,
                                            filter_step,
                                            1,
                                            0,
                                            pixels,
                                        )
                                        forget_loads()
                            maxima, where = pool_lanes(sums, height, vectors, width)
                            if rectified:
                                maxima = relu(maxima)
                            target = ((i * groups + group) * filters + k) * p * q + row * q + column
                            if ragged:
                                store_part(y, target, tile_filters, p * q, maxima, q - column)
                                if pooled:
                                    store_part(winners, target, tile_filters, p * q, where, q - column)
                            else:
                                store(y, target, tile_filters, p * q, maxima)
                                if pooled:
                                    store(winners, target, tile_filters, p * q, where)

    return compute


@kernel(ELEMENTS, ELEMENTS, ELEMENTS, *[SIZE] * 11)
def _pack_filters(plan: Elements):
    """See :func:`packed_filters`; a chunk packs one block of filters."""

    def compute(
        chunk,
        weight,
        bias,
        packed,
        filters,
        channels,
        taps_h,
        taps_w,
        blocks,
        block,
        filter_step,
        channel_step,
        row_step,
        column_step,
        first_tap,
    ):
        taps = channels * taps_h * taps_w
        group = chunk // blocks
        k = (chunk - group * blocks) * block
        count = min(block, filters - k)
        target = chunk * (1 + taps) * block
        for lane in range(block):
            packed[target + lane] = bias[group * filters + k + lane] if lane < count else 0
        start = group * filters * taps + k * filter_step + first_tap
        for c in range(channels):
            for i in range(taps_h):
                for j in range(taps_w):
                    target += block
                    source = start + c * channel_step + i * row_step + j * column_step
                    for lane in range(count):
                        packed[target + lane] = weight[source + lane * filter_step]
                    for lane in range(count, block):
                        packed[target + lane] = 0

    return compute


def packed_filters(plan: Forward, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Weight and bias as :func:`forward_by_filters` takes them: in blocks of as many filters as a tile has.

    A block holds the biases of its filters, then tap by tap, channel by channel, a weight of each; zeros for filters
    that the last block of a group has too many.
    """
    filters, channels = plan.k // plan.groups, plan.c // plan.groups
    block = plan.filter_tile[1] * plan.lanes
    blocks = _divide(filters, block)
    packed = aligned((plan.groups * blocks * (1 + channels * plan.r * plan.s) * block,), weight.dtype)
    sizes = (filters, channels, plan.r, plan.s, blocks, block)
    pack = _pack_filters(Elements(plan.dtype))
    arrays = (weight, bias, packed)
    launch(pack, plan.groups * blocks, *arrays, *sizes, *plan.steps, plan.first_tap, work=4 * weight.size)
    return packed


@kernel(ELEMENTS, ELEMENTS, ELEMENTS, WINNERS, SIZE, SIZE, SIZE)
def forward_by_filters(plan: Forward):
    """``(x, packed, y, winners, n, bands, chunks)``: convolution, maximum, ReLU, with lanes over filters.

    ``packed`` is made by :func:`packed_filters`. Results come out with filters last: they are collected for a few rows
    and turned on the way to ``y``.
    """
    groups, channels, filters = plan.groups, plan.c // plan.groups, plan.k // plan.groups
    h, w, r, s, p, q = plan.h, plan.w, plan.r, plan.s, plan.p, plan.q
    before, spread = plan.before, plan.spread
    (down, across), (dilation_h, dilation_w) = plan.stride, plan.dilation
    height, width = plan.window
    pooled, rectified = plan.window != (1, 1), plan.relu
    lanes = plan.lanes
    tile_columns, vectors = plan.filter_tile
    tile_positions = height * tile_columns
    result_columns = tile_columns // width
    block = vectors * lanes
    blocks = _divide(filters, block)
    taps = channels * r * s
    pitch = plan.scratch_pitch(0)
    extent = effective(r, dilation_h)
    scratch_row_step = down * pitch
    most_collected = min(p, _divide(4 * lanes, q))  # rows of the result
    dtype = np.dtype(plan.dtype).type

    def compute(chunk, x, packed, y, winners, n, bands, chunks):
        most_rows = ((p + bands - 1) // bands * height - 1) * down + extent
        image = scratch_zeros(channels * most_rows * pitch, dtype)
        # A tile that is turned may begin at the last position: there has to be something to read behind it.
        collected = scratch_zeros((most_collected * q + lanes) * block, dtype)
        collected_winners = scratch_zeros((most_collected * q + lanes) * block, np.uint8)
        turned = scratch(lanes * lanes, dtype)
        turned_winners = scratch(lanes * lanes, np.uint8)
        first, last = split(n * bands, chunks, chunk)
        for unit in range(first, last):
            i = unit // bands
            p_first, p_last = split(p, bands, unit - i * bands)
            rows = ((p_last - p_first) * height - 1) * down + extent
            for group in range(groups):
                start = (i * groups + group) * channels * h * w
                _fill_band(image, x, start, channels, h, w, p_first * height * down, rows, pitch, before, spread)
                for b in range(blocks):
                    weights = (group * blocks + b) * (1 + taps) * block
                    for row_first in range(p_first, p_last, most_collected):
                        row_last = min(row_first + most_collected, p_last)
                        for row in range(row_first, row_last):
                            for column_wanted in range(0, q, result_columns):
                                column = min(column_wanted, q - result_columns)
                                sums = load(packed, weights, tile_positions, 0, vectors, lanes)
                                tap = weights + block
                                for c in range(channels):
                                    pixel = (c * rows + (row - p_first) * height * down) * pitch
                                    pixel += column * width * across
                                    for i_tap in range(r):
                                        for j_tap in range(s):
                                            factors = load(packed, tap, 1, 0, vectors, lanes)
                                            sums = multiply_add(
                                                sums,
                                                image,
                                                pixel + i_tap * dilation_h * pitch + j_tap * dilation_w,
                                                height,
                                                scratch_row_step,
                                                tile_columns,
                                                across,
                                                factors,
                                            )
                                            forget_loads()
                                            tap += block
                                maxima, where = pool_vectors(sums, height, tile_columns, height, width)
                                if rectified:
                                    maxima = relu(maxima)
                                position = (row - row_first) * q + column
                                store(collected, position * block, result_columns, block, maxima)
                                if pooled:
                                    store(collected_winners, position * block, result_columns, block, where)
                        positions = (row_last - row_first) * q
                        for v in range(vectors):
                            k = b * block + v * lanes
                            for position in range(0, positions, lanes):
                                there = position * block + v * lanes
                                tile = load(collected, there, lanes, block, 1, lanes)
                                store(turned, 0, lanes, lanes, transpose(tile))
                                if pooled:
                                    tile_where = load(collected_winners, there, lanes, block, 1, lanes)
                                    store(turned_winners, 0, lanes, lanes, transpose(tile_where))
                                target = ((i * groups + group) * filters + k) * p * q + row_first * q + position
                                for lane in range(min(lanes, filters - k)):
                                    maxima_row = load(turned, lane * lanes, 1, 0, 1, lanes)
                                    store_part(y, target, 1, 0, maxima_row, positions - position)
                                    if pooled:
                                        where_row = load(turned_winners, lane * lanes, 1, 0, 1, lanes)
                                        store_part(winners, target, 1, 0, where_row, positions - position)
                                    target += p * q

    return compute


# -- the gradient of the input with a stride of 2 ----------------------------------------------------------------------

#: Of rows and columns.
PHASES = ((0, 0), (0, 1), (1, 0), (1, 1))


@dataclass(frozen=True)
class Phases:
    """Maps whose even and odd rows and columns are computed apart.

    Attributes:
        dtype: name of the element type.
        h, w: rows and columns of a map.
        present: for each of ``PHASES``, whether its elements were computed; the others are zero.
    """

    dtype: str
    h: int
    w: int
    present: tuple[bool, ...]


@register_jitable
def _interleave_row(target, start, even, even_start, has_even, odd, odd_start, has_odd, width):
    for j in range(width // 2):
        target[start + 2 * j] = even[even_start + j] if has_even else 0
        target[start + 2 * j + 1] = odd[odd_start + j] if has_odd else 0
    if width % 2:
        target[start + width - 1] = even[even_start + width // 2] if has_even else 0


@kernel(ELEMENTS, ELEMENTS, ELEMENTS, ELEMENTS, ELEMENTS, SIZE, SIZE)
def interleave(plan: Phases):
    """``(even_even, even_odd, odd_even, odd_odd, dx, planes, chunks)``; what is not present is not read."""
    h, w = plan.h, plan.w
    even_rows, odd_rows, even_columns, odd_columns = (h + 1) // 2, h // 2, (w + 1) // 2, w // 2
    has_even_even, has_even_odd, has_odd_even, has_odd_odd = plan.present

    def compute(chunk, even_even, even_odd, odd_even, odd_odd, dx, planes, chunks):
        first, last = split(planes, chunks, chunk)
        for plane in range(first, last):
            for i in range(h):
                target, row = (plane * h + i) * w, i // 2
                if i % 2 == 0:
                    row += plane * even_rows
                    _interleave_row(
                        dx, target, even_even, row * even_columns, has_even_even, even_odd, row * odd_columns,
                        has_even_odd, w,
                    )  # fmt: skip
                else:
                    row += plane * odd_rows
                    _interleave_row(
                        dx, target, odd_even, row * even_columns, has_odd_even, odd_odd, row * odd_columns,
                        has_odd_odd, w,
                    )  # fmt: skip

    return compute
