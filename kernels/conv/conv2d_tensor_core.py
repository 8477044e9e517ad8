"""Implicit GEMM on tensor cores: of half types; in float32's accuracy (3xTF32); or in TF32 on request.

The product is that of ``conv2d_implicit_gemm.py``: filters times windows, which are gathered from the input. Its
elements are multiplied by tensor cores, which take TF32, 11 of float32's 24 bits. So a float32 is split in two, and
three products of the halves stand for one; ``kernels/device/tensor_core.py`` says how, and what becomes of infinity,
NaN and long sums. In norm the error is 1.8e-7 for sums of 27 products and 4.5e-7 for 4,608; of float32's multiply-adds
one after the other it is 1.0e-7 and 1.2e-6. With ``products=1`` elements are rounded to TF32, whose error is 3e-4:
:func:`gpuconv.cuda.allow_tf32`.

**float16 and bfloat16** have products that float32 holds exactly: one for each of the operation, summed in float32 and
rounded once at the end. All is as for TF32, with a pair of neighbouring products of a sum in place of a number: a
k-tile has 32 of them, and the tiles have the same bytes.

A block computes ``filters x positions`` of the product, in k-tiles of 16: it fetches a k-tile to registers, multiplies
the one before out of shared memory, then stores what it fetched into the other of two buffers, and waits. A warp has
``warp_filters x warp_positions`` of that, and a thread 64 sums if that is 64 x 32. Both matrices lie in shared memory
with 16 columns of the sum in a row, in vectors of 128 bits, exchanged so that no bank is met twice: neither by lanes
that store neighbouring positions, nor by ``ldmatrix``, which hands each lane what ``mma`` wants of it.

**Why nothing is split beforehand, nor copied asynchronously.** Split in shared memory, the matrices would take twice
the bytes and twice the loads; in registers a split takes three instructions an element. The elements of a window come
one by one, each with a predicate, and all that is staged is looked at for infinity: so it has to pass through
registers. There it has the time of 96 ``mma`` a warp to arrive, more than 700 cycles.

**By the figures** of 128 x 128 (``bench.static``, sm_90a): a warp's main loop has 584 instructions, among them 96
``mma``, 12 ``ldmatrix``, 128 that add to the sums, 144 that split. A scheduler has two warps, and so begins 1,168
instructions a k-tile; its tensor core is busy for 768 cycles at the chip's peak, and for 1,150 at the six cycles that
``mma`` is said to take on an H100. So the machine code allows 104 TFLOP/s there, where that of the float32 kernel
allows 57 (and had 46 when it was measured). From L2 a k-tile takes 16 KiB in these 1,168 cycles.

Of half types the loop has 172 instructions for 32 products, among them 32 ``mma`` of twice the size, 16 loads of a
single element, and 24 that clear and join these. A scheduler begins 344 instructions a k-tile, the tensor core is busy
for 256 cycles at the peak and 384 at six an ``mma``. What takes longest is the path to L1 and shared memory, 128 bytes
a cycle: 384 cycles for ``ldmatrix``, 128 for stores, 64 for the table and 192 for loads, 768 together. That allows 357
TFLOP/s at 1.98 GHz, of the 990 that the chip has with ``wgmma``.

Shared bytes: ``128 · (filters + positions)`` and a table of offsets, 34 KB for 128 x 128 and a 3x3 window. Registers:
at most 255, so that a multiprocessor holds 256 threads.

Expected bottleneck: the instructions around ``mma``, and ``mma``, in equal parts; of half types shared memory. No GPU
has timed it yet. So for float32 it is taken on request, or where the tuner has found it fastest; for half types by the
rule, as the other kernels compute in float32 and need copies of the arrays in it. Refused are float64, GPUs before
compute capability 8.0, and very long windows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from numba import cuda, types

from gpuconv.geometry import Conv2dGeometry
from gpuconv.kernels.compiled import specialised
from gpuconv.kernels.conv import windows
from gpuconv.kernels.conv.conv2d_implicit_gemm import WHOLE, Place
from gpuconv.kernels.device import tensor_core
from gpuconv.kernels.device.halves import converting
from gpuconv.kernels.device.host import MULTIPROCESSORS, Answer, Refusal
from gpuconv.kernels.device.launch import Call, call, device_function, jit
from gpuconv.kernels.device.memory import ldg4_if, ldg8_if, ldg_if, st, st2
from gpuconv.kernels.device.registers import unrolled
from gpuconv.kernels.device.tensor_core import (
    COMPUTE_CAPABILITY,
    DEPTH,
    DTYPES,
    Arithmetic,
    column_places,
    row_places,
    staging_into,
    sum_place,
    tile_place,
)
from gpuconv.kernels.device.words import i32, minimum, u32
from gpuconv.kernels.variant import Arguments

__all__ = ["COMPUTE_CAPABILITY", "DTYPES", "Tiling", "calls", "cost", "fits", "products", "supports", "tilings"]

_MOST_SHARED = 48 * 1024


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How the work is cut up.

    Attributes:
        filters, positions: rows and columns of the product, a block.
        warp_filters, warp_positions: the same a warp, multiples of 16.
        products: of TF32 numbers for one of float32: 3, or 1 for TF32's accuracy. Of half types it is not looked at.

    Raises:
        ValueError: the tile cannot be shared out equally among its warps.
    """

    filters: int
    positions: int
    warp_filters: int
    warp_positions: int
    products: int = 3

    def __post_init__(self) -> None:
        if self.warp_filters % 16 or self.warp_positions % 16 or self.products not in (1, 3):
            raise ValueError(f"{self}: a warp computes multiples of 16 filters and positions; products are 1 or 3")
        if self.filters % self.warp_filters or self.positions % self.warp_positions:
            raise ValueError(f"{self}: the tile must be whole warps")
        each = DEPTH // 4 * self.positions
        if self.threads % self.positions or each % self.threads or DEPTH // 4 * self.filters % self.threads:
            raise ValueError(f"{self}: {self.threads} threads must fetch whole vectors of 4 weights, and of a position")

    @property
    def threads(self) -> int:
        """Threads a block."""
        return 32 * (self.filters // self.warp_filters) * (self.positions // self.warp_positions)


_SHAPES = (
    Tiling(128, 128, 64, 32),
    Tiling(128, 64, 64, 32),
    Tiling(64, 128, 32, 64),
    Tiling(64, 64, 32, 32),
    Tiling(32, 128, 32, 32),
    Tiling(32, 64, 32, 32),
    Tiling(16, 64, 16, 32),
)


def fits(geometry: Conv2dGeometry, tiling: Tiling) -> bool:
    """Whether shared memory holds the tiles and the table, which is longest for half types: their k-tiles are."""
    table = 8 * windows.period(geometry, 2 * DEPTH)
    return 8 * DEPTH * (tiling.filters + tiling.positions) + table <= _MOST_SHARED


def supports(geometry: Conv2dGeometry) -> Answer:
    """True for all but very long windows."""
    if (answer := windows.supports(geometry)) and not fits(geometry, _SHAPES[-1]):
        return Refusal(
            f"a window of {geometry.r}x{geometry.s} taps: shared memory cannot hold the table of its offsets"
        )
    return answer


def cost(geometry: Conv2dGeometry, tiling: Tiling) -> float:
    """Estimated time, in cycles of a multiprocessor that nothing else is done on."""
    positions, filters = geometry.n * geometry.p * geometry.q, geometry.k // geometry.groups
    tiles = -(-positions // tiling.positions) * -(-filters // tiling.filters) * geometry.groups
    down, across, warps = tiling.warp_filters // 16, tiling.warp_positions // 8, tiling.threads // 32
    matrices = 2 * tiling.products * down * across
    staged = DEPTH * (tiling.filters + tiling.positions) / tiling.threads
    # Instructions of a warp and a k-tile: `mma`; loads; splits; additions; what is staged, and what is left.
    issued = matrices + 2 * down + across + 6 * (4 * down + 2 * across) + 8 * down * across + 6 * staged + 40
    block = -(-windows.products(geometry) // DEPTH) * max(6 * matrices, issued) * warps / 4
    blocks = max(1, -(-tiles // MULTIPROCESSORS))
    # Two warps for each of its four schedulers keep a multiprocessor busy.
    return blocks * block / min(1, blocks * tiling.threads / 256)


def tilings(geometry: Conv2dGeometry) -> tuple[Tiling, ...]:
    """Those that are estimated to be fast come first.

    Left out are those estimated at three times the best or more, and tiles of which half would be empty.
    """
    filters, positions = geometry.k // geometry.groups, geometry.n * geometry.p * geometry.q
    fitting = [
        tiling
        for tiling in _SHAPES
        if fits(geometry, tiling)
        and tiling.filters < max(17, 2 * filters)
        and tiling.positions < max(65, 2 * positions)
    ]
    costs = {tiling: cost(geometry, tiling) for tiling in fitting}
    limit = 3 * min(costs.values())
    return tuple(sorted((tiling for tiling in costs if costs[tiling] < limit), key=costs.__getitem__))


@specialised
def _kernel(
    geometry: Conv2dGeometry, tiling: Tiling, dtype: str, has_bias: bool, aligned16: bool, place: Place
) -> Callable[..., None]:
    """The kernel for images of a geometry, whatever their number: ``geometry.n`` is not looked at.

    ``aligned16``: the arrays begin at multiples of 128 bits.
    """
    real, arithmetic = types.float32, Arithmetic.of(dtype, tiling.products)
    each, depth, vector_size, kind = arithmetic.each, arithmetic.depth, arithmetic.vector, arithmetic.element
    widened, rounded = converting(dtype)
    k, groups, filters = geometry.k, geometry.groups, geometry.k // geometry.groups
    plane, pixels, products = geometry.h * geometry.w, geometry.p * geometry.q, windows.products(geometry)

    threads, tile_filters, tile_positions = tiling.threads, tiling.filters, tiling.positions
    warp_filters, warp_positions = tiling.warp_filters, tiling.warp_positions
    down, across, warps_across = warp_filters // 16, warp_positions // 8, tile_positions // warp_positions
    sums, halves = 4 * down * across, 2 * down
    filter_tiles, k_tiles = -(-filters // tile_filters), -(-products // depth)
    ragged, clamped = products % depth != 0, filters % tile_filters != 0

    # A thread fetches vectors of weights, in rows so far apart, and of one position as many products as fill vectors.
    weight_rows = threads // 4
    weights_each, values_each = tile_filters // weight_rows, depth * tile_positions // threads
    staged_weights, value_vectors = vector_size * weights_each, values_each // vector_size
    wide, load_vector = aligned16 and products % vector_size == 0, ldg8_if if each == 2 else ldg4_if
    scattered, (out_h, out_w) = place.shape is not None, place.shape or (geometry.p, geometry.q)
    (out_row, out_column), (row_step, column_step) = place.first, place.step
    first_weight, q, out_plane = place.weights, geometry.q, out_h * out_w
    pairs = aligned16 and pixels % 2 == 0 and not scattered
    values_from = depth * tile_filters
    buffer_size = values_from + depth * tile_positions
    both_buffers = 2 * buffer_size
    tabled, table_size, fill_table, locate, advance, fetch_values = windows.gathering(
        geometry, depth=depth, threads=threads, rows=values_each
    )
    multiply = tensor_core.product(down, across, arithmetic)
    store_weights, store_values = staging_into(weights_each, arithmetic), staging_into(value_vectors, arithmetic)
    waited = tensor_core.waiting(staged_weights, values_each, arithmetic)

    @device_function
    def fetch_weights(staged: Any, weight: Any, rows: Any, product: Any) -> None:
        for i in range(weights_each):
            if wide:
                found = load_vector(weight, rows[i] + product, product < products if ragged else True)
                for j in range(vector_size):
                    staged[vector_size * i + j] = found[j]
            else:
                for j in range(vector_size):
                    inside = product + j < products if ragged else True
                    staged[vector_size * i + j] = ldg_if(weight, rows[i] + product + j, inside)

    @device_function
    def store_row(n: int, at: int, total: Any, added: Any, out: Any, offset: Any, filter_: Any) -> None:
        """A filter's sum of a position, or of two neighbouring ones."""
        row, at = n // 2 * 16 + n % 2 * 8, at + n // 2 * 4 * across + n % 2 * 2
        if filter_ + row < filters:
            if pairs:
                both = rounded(total[at] + added[n]), rounded(total[at + 1] + added[n])
                st2(out, offset + row * out_plane, both)
            else:
                st(out, offset + row * out_plane, rounded(total[at] + added[n]))

    store_rows = unrolled(store_row, halves)

    @device_function
    def store_position(
        j: int, total: Any, added: Any, out: Any, positions: Any, map_: Any, filter_: Any, first: Any
    ) -> None:
        # The sums of `j // 2` are of two positions, which may be of two images.
        position = first + (j // 2 * 8 + j % 2)
        if (j % 2 == 0 or not pairs) and position < positions:
            image, pixel = divmod(position, pixels)
            if scattered:
                row, column = divmod(pixel, q)
                pixel = (row * row_step + out_row) * out_w + column * column_step + out_column
            store_rows(j // 2 * 4 + j % 2, total, added, out, (image * k + map_) * out_plane + pixel, filter_)

    store_positions = unrolled(store_position, 2 * across)

    @jit(launch_bounds=(threads, max(1, 256 // threads)))
    def conv2d_tensor_core(x: Any, weight: Any, bias: Any, out: Any, positions: Any) -> None:
        tiles = cuda.shared.array(both_buffers, kind, alignment=128)
        table = cuda.shared.array(table_size, types.uint32, alignment=16)
        total, added = cuda.local.array(sums, real), cuda.local.array(halves, real)
        next_weights, next_values = cuda.local.array(staged_weights, kind), cuda.local.array(values_each, kind)
        rows = cuda.local.array(weights_each, types.uint32)
        weight_places = cuda.local.array(weights_each, types.int32)
        value_places = cuda.local.array(value_vectors, types.int32)
        for i in range(sums):
            total[i] = real(0)

        # Blocks that share windows follow each other, so that these come from the L2 cache.
        thread, block = u32(cuda.threadIdx.x), u32(cuda.blockIdx.x)
        rest = block // filter_tiles
        first_filter = block % filter_tiles * tile_filters
        block, group = divmod(rest, groups)
        first_position = block * tile_positions
        if tabled:
            fill_table(table, thread)
            cuda.syncthreads()

        # What is fetched beyond the last row or column of the product is that row or column again: it is not stored.
        row, vector = divmod(thread, 4)
        for i in range(weights_each):
            filter_ = first_filter + row + i * weight_rows
            if clamped:
                filter_ = minimum(filter_, filters - 1)
            rows[i] = (group * filters + filter_) * products + first_weight
            weight_places[i] = i32(tile_place(row, vector, each)) + i * weight_rows * depth
        weight_product = vector * vector_size

        row, column = divmod(thread, tile_positions)
        for i in range(value_vectors):
            value_places[i] = i32(tile_place(column, row * value_vectors + i, each)) + values_from
        value_product = row * values_each
        window, turn, outside = locate(minimum(first_position + column, u32(positions) - 1), group, u32(0))
        entry = value_product
        if not tabled:
            window += value_product * plane

        warp, lane = thread >> 5, thread & 31
        warp_row, warp_column = divmod(warp, warps_across)
        own_row, own_column = warp_row * warp_filters, warp_column * warp_positions
        row_at, row_half = row_places(lane, each)
        column_at, column_half = column_places(lane, each)
        row_at, row_half = i32(row_at + own_row * depth), i32(row_half + own_row * depth)
        column_at = i32(column_at + own_column * depth) + values_from
        column_half = i32(column_half + own_column * depth) + values_from

        fetch_weights(next_weights, weight, rows, weight_product)
        fetch_values(next_values, x, table, window, outside, entry, value_product)
        store_weights(tiles, weight_places, next_weights, 0)
        store_values(tiles, value_places, next_values, 0)
        special = waited(next_weights, next_values)
        buffer, tile = i32(0), u32(1)
        while tile < k_tiles:
            tile += 1
            weight_product, value_product = weight_product + depth, value_product + depth
            window, turn = advance(window, turn)
            fetch_weights(next_weights, weight, rows, weight_product)
            fetch_values(next_values, x, table, window, outside, turn + entry, value_product)
            multiply(
                total, tiles, row_at + buffer, row_half + buffer, column_at + buffer, column_half + buffer, special
            )
            buffer = buffer_size - buffer
            store_weights(tiles, weight_places, next_weights, buffer)
            store_values(tiles, value_places, next_values, buffer)
            special = waited(next_weights, next_values)
        # The last k-tile stands outside of the loop: with a branch around what fetches the next one, the compiler could
        # not begin the loads among the multiplications, and would leave them to the end.
        multiply(total, tiles, row_at + buffer, row_half + buffer, column_at + buffer, column_half + buffer, special)

        row, column = sum_place(lane)
        filter_ = first_filter + own_row + row
        for i in range(halves):
            added[i] = real(0)
            if has_bias:
                other = filter_ + (i // 2 * 16 + i % 2 * 8)
                added[i] = widened(ldg_if(bias, group * filters + other, other < filters))
        store_positions(
            total,
            added,
            out,
            u32(positions),
            group * filters + filter_,
            filter_,
            first_position + own_column + column,
        )

    return conv2d_tensor_core


def calls(a: Arguments, geometry: Conv2dGeometry, tiling: Tiling) -> Iterator[Call]:
    """The matrix product."""
    yield from products(a, geometry, tiling, "x", "weight", bias="bias")


def products(
    a: Arguments,
    geometry: Conv2dGeometry,
    tiling: Tiling,
    x: str,
    weight: str,
    bias: str | None = None,
    place: Place = WHOLE,
) -> Iterator[Call]:
    """The launch of the product of the arrays of these names, to ``out``; ``place`` is where its results stand."""
    has_bias, positions = bias is not None and a.has(bias), geometry.n * geometry.p * geometry.q
    cut = tiling if a.dtype == "float32" else dataclasses.replace(tiling, products=1)
    aligned16 = a.aligned(x, weight, "out") and place.weights % 8 == 0
    place = dataclasses.replace(place, results=0)
    kernel = _kernel(dataclasses.replace(geometry, n=1), cut, a.dtype, has_bias, aligned16, place)
    filter_tiles = geometry.groups * -(-geometry.k // geometry.groups // tiling.filters)
    blocks = -(-positions // tiling.positions) * filter_tiles
    # For a bias that there is not stands an array that is not looked at.
    arrays = (getattr(a, name) for name in (x, weight, bias or weight, "out"))
    yield call(kernel, blocks, tiling.threads, *arrays, positions)
