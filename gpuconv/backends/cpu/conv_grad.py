"""Compiled gradients of convolutions for the CPU: of the weight, and of the block with ReLU and max pooling.

*The patch* of an output is the part of the input under the filter. In a scratch with channels last, each of its rows is
``s · c`` contiguous elements: long enough for vectors even where channels are few. Both kernels have their lanes there:

- :func:`grad_weight_dense` goes through all outputs. In registers are sums of filters x a part of a patch.
- :func:`grad_sparse` goes through the maxima of a max pooling, filter by filter: a quarter of the outputs or less. In
  registers is the gradient of one filter. It adds to the input's gradient on the way.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numba import njit

from gpuconv.backends.cpu.compile import ELEMENTS, SIZE, WINNERS, Elements, kernel, split
from gpuconv.backends.cpu.conv import SCRATCH_BYTES
from gpuconv.backends.cpu.memory import aligned, lasting
from gpuconv.backends.cpu.simd import (
    copy,
    forget_loads,
    load,
    multiply_add,
    registers,
    scratch,
    scratch_zeros,
    store,
    store_part,
    transpose,
    zeros,
)
from gpuconv.backends.cpu.threads import launch
from gpuconv.geometry import Conv2dGeometry, Pair, effective


def _divide(a: int, b: int) -> int:
    """``a / b`` rounded up."""
    return -(-a // b)


@dataclass(frozen=True)
class Patches:
    """What the kernels for gradients are compiled for: how to walk over patches in a scratch with channels last.

    A patch is cut into runs of contiguous elements: its rows of ``s · c``, or with a horizontal dilation single taps
    of ``c``.

    Attributes:
        dtype: name of the element type.
        geometry: of the convolution; its batch size is not used.
        window: height and width of the pooling; 1, 1 for none.
        needs_input: whether the gradient of the input is wanted too (:func:`grad_sparse`).
    """

    dtype: str
    geometry: Conv2dGeometry
    window: Pair = (1, 1)
    needs_input: bool = False

    @cached_property
    def runs(self) -> tuple[int, int, int]:
        """Runs along the height and along the width of a patch, and elements in each."""
        g = self.geometry
        channels = g.c // g.groups
        return (g.r, 1, g.s * channels) if g.dilation[1] == 1 else (g.r, g.s, channels)

    @cached_property
    def lanes(self) -> int:
        """Elements in a vector: narrower than a register where a run is."""
        size = np.dtype(self.dtype).itemsize
        lanes = registers()[0] // size
        while lanes * size > 16 and lanes // 2 >= self.runs[2]:
            lanes //= 2
        return lanes

    @cached_property
    def square(self) -> int:
        """Size of the tiles that are turned to bring channels last; half as large as could be, to fit narrow images."""
        return 32 // np.dtype(self.dtype).itemsize

    @cached_property
    def scratch(self) -> tuple[int, int]:
        """Rows of the scratch and pixels in each: the part of the padded input that the convolution reads."""
        g = self.geometry
        return (
            (g.p - 1) * g.stride[0] + effective(g.r, g.dilation[0]),
            (g.q - 1) * g.stride[1] + effective(g.s, g.dilation[1]),
        )

    @cached_property
    def dense_tile(self) -> tuple[int, int]:
        """Sums that :func:`grad_weight_dense` keeps in registers: filters, and vectors of a run."""
        wanted = _divide(self.runs[2], self.lanes)
        vectors = min((4, 3, 2, 1), key=lambda count: _divide(wanted, count) * count)
        filters = self.geometry.k // self.geometry.groups
        return min(filters, max(1, (registers()[1] - vectors - 2) // vectors)), vectors

    @cached_property
    def sparse_tile(self) -> tuple[int, int]:
        """Sums that :func:`grad_sparse` keeps in registers: rows of the patch, and vectors of a run."""
        wanted = _divide(self.runs[2], self.lanes)
        # As many again hold the weight, if the input's gradient is wanted. LLVM may fetch those from memory instead.
        most = registers()[1] * 7 // 16
        if self.runs[1] == 1 and self.geometry.r * wanted <= most:
            return self.geometry.r, wanted
        return 1, _divide(wanted, _divide(wanted, most))

    @cached_property
    def packed_run(self) -> int:
        """Elements of a run in the packed weight and its gradient: whole tiles, zeros behind the run."""
        block = self.sparse_tile[1] * self.lanes
        return _divide(self.runs[2], block) * block

    @cached_property
    def packed_shape(self) -> tuple[int, int, int, int]:
        """Shape of the packed weight and its gradient."""
        return self.geometry.k, *self.runs[:2], self.packed_run

    @cached_property
    def bands(self) -> int:
        """Into how many bands of rows :func:`grad_weight_dense` cuts an image."""
        g = self.geometry
        bytes_a_row = self.scratch[1] * g.c // g.groups * g.stride[0] * np.dtype(self.dtype).itemsize
        return min(g.p, _divide(g.p * bytes_a_row, SCRATCH_BYTES))


@njit(inline="always")
def fill_channels_last(image, x, start, channels, height, width, row, skipped, rows, columns, before, square):
    """Copy rows of an image into the scratch (rows, columns, channels), zeros for those outside of it.

    ``row`` is the first one of the scratch, counted in the padded image; of these the first ``skipped`` are there
    already. Columns outside are zero from the start.
    Where there is room for them, tiles of ``square`` channels by as many columns are turned in the registers.
    """
    top, left = before
    reached = max(0, min(width, columns - left))
    for i in range(skipped, rows):
        h = row + i - top
        target = (i * columns + left) * channels
        source = start + h * width
        if h < 0 or h >= height:
            for j in range(reached * channels):
                image[target + j] = 0
        elif channels == 1:
            copy(image, target, x, source, reached)
        elif channels >= square and reached >= square:
            for c_wanted in range(0, channels, square):
                for j_wanted in range(0, reached, square):
                    # The last tiles overlap those before them.
                    c, j = min(c_wanted, channels - square), min(j_wanted, reached - square)
                    tile = load(x, source + c * height * width + j, square, height * width, 1, square)
                    store(image, target + j * channels + c, square, channels, transpose(tile))
        else:
            for c in range(channels):
                for j in range(reached):
                    image[target + j * channels + c] = x[source + c * height * width + j]


@kernel(ELEMENTS, ELEMENTS, ELEMENTS, *[SIZE] * 4)
def grad_weight_dense(plan: Patches):
    """``(x, grad, partial, n, image_parts, filter_parts, bands)``: gradient of the weight, over a part of the batch.

    A chunk takes some of the images and some of the filters. ``partial`` is (image_parts, k, runs, elements of a
    run); the sum over the parts is left to :func:`weight_gradient`.
    """
    g = plan.geometry
    groups, channels, filters = g.groups, g.c // g.groups, g.k // g.groups
    h, w, p, q = g.h, g.w, g.p, g.q
    before = g.padding[0][0], g.padding[1][0]
    (down, across), (dilation_h, dilation_w) = g.stride, g.dilation
    extent = effective(g.r, dilation_h)
    runs_h, runs_w, run = plan.runs
    lanes, square = plan.lanes, plan.square
    tile_filters, vectors = plan.dense_tile
    tile_vectors = tile_filters * vectors
    block = vectors * lanes
    blocks = _divide(run, block)
    columns = plan.scratch[1]
    pitch = columns * channels
    weight_size = g.k * channels * g.r * g.s
    dtype = np.dtype(plan.dtype).type

    def compute(chunk, x, grad, partial, n, image_parts, filter_parts, bands):
        most_rows = ((p + bands - 1) // bands - 1) * down + extent
        image = scratch_zeros(most_rows * pitch + blocks * block, dtype)  # the last vectors reach beyond the last run
        tile = scratch(tile_filters * block, dtype)
        part = chunk // filter_parts
        i_first, i_last = split(n, image_parts, part)
        k_first, k_last = split(filters, filter_parts, chunk - part * filter_parts)
        for group in range(groups):
            start = part * weight_size + (group * filters + k_first) * runs_h * runs_w * run
            for j in range((k_last - k_first) * runs_h * runs_w * run):
                partial[start + j] = 0
        for unit in range(i_first * bands, i_last * bands):
            i = unit // bands
            p_first, p_last = split(p, bands, unit - i * bands)
            rows = (p_last - p_first - 1) * down + extent
            for group in range(groups):
                start = (i * groups + group) * channels * h * w
                row = p_first * down
                fill_channels_last(image, x, start, channels, h, w, row, 0, rows, columns, before, square)
                for wanted in range(k_first, k_last, tile_filters):
                    # The last tile overlaps the one before; of its filters only the new ones are kept.
                    k = min(wanted, filters - tile_filters)
                    grads = ((i * groups + group) * filters + k) * p * q
                    for run_h in range(runs_h):
                        for run_w in range(runs_w):
                            for b in range(blocks):
                                sums = zeros(x, tile_vectors, lanes)
                                corner = run_h * dilation_h * pitch + run_w * dilation_w * channels + b * block
                                for row in range(p_first, p_last):
                                    pixel = corner + (row - p_first) * down * pitch
                                    upstream = grads + row * q
                                    for column in range(q):
                                        patch = load(image, pixel, 1, 0, vectors, lanes)
                                        sums = multiply_add(
                                            sums, grad, upstream + column, tile_filters, p * q, 1, 0, patch
                                        )
                                        forget_loads()
                                        pixel += across * channels
                                store(tile, 0, tile_filters, block, sums)
                                for fresh in range(wanted - k, min(tile_filters, k_last - k)):
                                    target = ((group * filters + k + fresh) * runs_h + run_h) * runs_w + run_w
                                    target = part * weight_size + target * run + b * block
                                    for j in range(min(block, run - b * block)):
                                        partial[target + j] += tile[fresh * block + j]

    return compute


@njit(inline="always")
def _total(values, count, zero):
    """Sum of the first values, four sums in turn: one alone would wait for each addition."""
    a = b = c = d = zero
    i = 0
    while i + 3 < count:
        a += values[i]
        b += values[i + 1]
        c += values[i + 2]
        d += values[i + 3]
        i += 4
    while i < count:
        a += values[i]
        i += 1
    return (a + b) + (c + d)


#: Copies of the input's gradient that :func:`grad_sparse` adds to in turn. The patches of two winners overlap; a CPU
#: that loads what it has just stored, at another offset, waits for the store to reach the cache.
_COPIES = 4


@kernel(ELEMENTS, ELEMENTS, ELEMENTS, ELEMENTS, WINNERS, ELEMENTS, ELEMENTS, ELEMENTS, SIZE, SIZE)
def grad_sparse(plan: Patches):
    """``(x, packed, grad, y, winners, dx, partial, partial_bias, n, chunks)``: gradients of a block with max pooling.

    Visits only positive outputs that are the maximum of their window: for 2x2 pooling at most a quarter. ``packed`` is
    the weight as :func:`packed_patches` makes it, ``partial`` its gradient in each chunk, (chunks, ...) likewise;
    ``partial_bias`` is (chunks, k).
    """
    g = plan.geometry
    groups, channels, filters = g.groups, g.c // g.groups, g.k // g.groups
    h, w = g.h, g.w
    height, width = plan.window
    p, q = g.p // height, g.q // width
    before = g.padding[0][0], g.padding[1][0]
    top, left = before
    (down, across), (dilation_h, dilation_w) = g.stride, g.dilation
    runs_h, runs_w, run = plan.runs
    lanes, square = plan.lanes, plan.square
    tile_rows, vectors = plan.sparse_tile
    block = vectors * lanes
    packed_run = plan.packed_run
    blocks = packed_run // block
    rows, columns = plan.scratch
    pitch = columns * channels
    size = rows * pitch + packed_run  # the last vectors reach beyond the last run
    row_step = dilation_h * pitch
    packed_row_step = runs_w * packed_run
    filter_size = runs_h * runs_w * packed_run
    exact = run == packed_run
    needs_input = plan.needs_input
    copies = _COPIES if filter_size <= 16 * lanes else 1  # longer patches give the stores time enough
    n_filters = g.k
    dtype = np.dtype(plan.dtype).type

    def compute(chunk, x, packed, grad, y, winners, dx, partial, partial_bias, n, chunks):
        image = scratch_zeros(size, dtype)
        image_grad = scratch_zeros(copies * size if needs_input else 1, dtype)
        origins = scratch(p * q, np.int64)  # where in the scratch the patch of a window's first element begins
        for row in range(p):
            for column in range(q):
                origins[row * q + column] = (row * height * down * columns + column * width * across) * channels
        shifts = scratch_zeros(256, np.int64)  # offset from there for each element; a position may be any byte
        for row in range(height):
            for column in range(width):
                shifts[row * width + column] = (row * down * columns + column * across) * channels
        corners = scratch(p * q, np.int64)  # of the winners' patches
        grads = scratch(p * q, dtype)
        # Summed here and handed over at the end: neighbouring parts share a cache line, which two threads must not
        # both write.
        weight_sums = scratch_zeros(n_filters * filter_size, dtype)
        bias_sums = scratch_zeros(n_filters, dtype)
        first, last = split(n, chunks, chunk)
        for i in range(first, last):
            for group in range(groups):
                start = (i * groups + group) * channels * h * w
                fill_channels_last(image, x, start, channels, h, w, 0, 0, rows, columns, before, square)
                if needs_input:
                    for j in range(copies * size):
                        image_grad[j] = 0
                for k in range(group * filters, (group + 1) * filters):
                    count = 0
                    first_element = (i * n_filters + k) * p * q
                    for window in range(p * q):
                        # Always written, and kept if it counts: cheaper than an unpredictable branch.
                        element = first_element + window
                        corners[count] = origins[window] + shifts[winners[element]]
                        grads[count] = grad[element]
                        count += not y[element] <= 0  # NaN passes its gradient on, as in ReLU
                    bias_sums[k] += _total(grads, count, dtype(0))
                    for run_h in range(0, runs_h, tile_rows):
                        for run_w in range(runs_w):
                            for b in range(blocks):
                                offset = run_h * dilation_h * pitch + run_w * dilation_w * channels + b * block
                                weights = k * filter_size + (run_h * runs_w + run_w) * packed_run + b * block
                                sums = load(weight_sums, weights, tile_rows, packed_row_step, vectors, lanes)
                                if needs_input:
                                    factors = load(packed, weights, tile_rows, packed_row_step, vectors, lanes)
                                for winner in range(count):
                                    corner = corners[winner] + offset
                                    patch = load(image, corner, tile_rows, row_step, vectors, lanes)
                                    sums = multiply_add(sums, grads, winner, 1, 0, 1, 0, patch)
                                    if needs_input:
                                        corner += winner % copies * size
                                        patch_grad = load(image_grad, corner, tile_rows, row_step, vectors, lanes)
                                        patch_grad = multiply_add(patch_grad, grads, winner, 1, 0, 1, 0, factors)
                                        if exact:
                                            store(image_grad, corner, tile_rows, row_step, patch_grad)
                                        else:  # a NaN times the zeros behind a run must not touch the neighbours
                                            store_part(
                                                image_grad, corner, tile_rows, row_step, patch_grad, run - b * block
                                            )
                                store(weight_sums, weights, tile_rows, packed_row_step, sums)
                if needs_input:
                    for spare in range(1, copies):
                        for j in range(size):
                            image_grad[j] += image_grad[spare * size + j]
                    for c in range(channels):
                        for row in range(h):
                            source = ((row + top) * columns + left) * channels + c
                            target = start + (c * h + row) * w
                            # What the convolution did not reach has no gradient.
                            reached = max(0, min(w, columns - left)) if row + top < rows else 0
                            for j in range(reached):
                                dx[target + j] = image_grad[source + j * channels]
                            for j in range(reached, w):
                                dx[target + j] = 0
        copy(partial, chunk * weight_sums.size, weight_sums, 0, weight_sums.size)
        copy(partial_bias, chunk * n_filters, bias_sums, 0, n_filters)

    return compute


# -- rearranging weights ---------------------------------------------------------------------------------------------


@kernel(ELEMENTS, ELEMENTS, *[SIZE] * 7)
def _pack_patches(plan: Elements):
    """See :func:`packed_patches`; a chunk takes some of the filters."""

    def compute(chunk, weight, packed, filters, channels, taps_h, taps_w, runs_w, run, chunks):
        first, last = split(filters, chunks, chunk)
        taps = taps_h * taps_w
        taps_run = taps_w // runs_w
        for k in range(first, last):
            for i in range(taps_h):
                for run_w in range(runs_w):
                    target = ((k * taps_h + i) * runs_w + run_w) * run
                    for tap in range(taps_run):
                        source = k * channels * taps + i * taps_w + run_w * taps_run + tap
                        for c in range(channels):
                            packed[target + tap * channels + c] = weight[source + c * taps]
                    for i_behind in range(taps_run * channels, run):
                        packed[target + i_behind] = 0

    return compute


def packed_patches(plan: Patches, weight: np.ndarray) -> np.ndarray:
    """A weight as :func:`grad_sparse` takes it: (k, runs, :attr:`Patches.packed_run`), zeros behind each run."""
    k, *sizes = weight.shape
    packed = aligned(plan.packed_shape, weight.dtype)
    chunks = min(k, 16)
    pack = _pack_patches(Elements(plan.dtype))
    launch(pack, chunks, weight, packed, k, *sizes, *plan.packed_shape[2:], chunks, work=4 * weight.size)
    return packed


@kernel(ELEMENTS, ELEMENTS, *[SIZE] * 8)
def _sum_partials(plan: Elements):
    """See :func:`weight_gradient`; a chunk takes some of the filters."""

    def compute(chunk, partial, weight_grad, parts, filters, channels, taps_h, taps_w, runs_w, run, chunks):
        first, last = split(filters, chunks, chunk)
        size = taps_h * runs_w * run
        for part in range(1, parts):
            start = part * filters * size
            for j in range(first * size, last * size):
                partial[j] += partial[start + j]
        taps = taps_h * taps_w
        taps_run = taps_w // runs_w
        for k in range(first, last):
            for i in range(taps_h):
                for run_w in range(runs_w):
                    source = ((k * taps_h + i) * runs_w + run_w) * run
                    for tap in range(taps_run):
                        target = k * channels * taps + i * taps_w + run_w * taps_run + tap
                        for c in range(channels):
                            weight_grad[target + c * taps] = partial[source + tap * channels + c]

    return compute


@functools.cache
def _elements(dtype: np.dtype) -> Elements:
    return Elements(dtype.name)  # which is slow to tell


def weight_gradient(partial: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The sum of partial gradients (parts, k, runs_h, runs_w, elements of a run), first to last, as (k, c, r, s)."""
    parts, k, _, *runs = partial.shape
    weight_grad = lasting(shape, partial.dtype)
    chunks = min(k, 16)
    add = _sum_partials(_elements(partial.dtype))
    launch(add, chunks, partial, weight_grad, parts, *shape, *runs, chunks, work=4 * partial.size)
    return weight_grad
