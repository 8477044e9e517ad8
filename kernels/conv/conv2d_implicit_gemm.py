"""Implicit GEMM: convolution as a product of matrices, one of which is never stored.

The filters are a matrix of ``k`` rows and ``c·r·s`` columns, as they lie in memory. The windows are another, of
``c·r·s`` rows and ``n·p·q`` columns, gathered from the input while the product is under way. The filters are the rows
of the product, because in NCHW neighbouring positions are neighbours in memory, in the input as in the output: with
positions along the lanes, loads and stores join. With groups there is one product a group.

A block computes ``filters x positions`` of the product, in k-tiles of ``depth``: it fetches a k-tile, ``depth`` columns
of weights and ``depth`` rows of windows, to registers, multiplies the one before out of shared memory, then stores what
it fetched into the other of two buffers. So there is one barrier a k-tile, and the loads of a k-tile have the
multiplications of another to arrive in. A thread computes ``thread_filters x thread_positions`` in registers, in groups
of 4 by 4, so that a warp's 128-bit loads from shared memory, of 4 groups of filters and 8 of positions, are free of
bank conflicts. Bias and ReLU are applied to the registers.

No division stands in the main loop: which channel and tap a row of windows belongs to repeats every ``lcm(r·s, depth)``
rows. A table of that length in shared memory holds the offset from the window's first element, and two bits, one for
the tap's row and one for its column; a thread knows which rows and columns of its window lie in the padding, as bits,
too. 1x1 needs no table, and if it neither strides nor pads, the windows are the input itself, fetched 128 bits at a
time: it is as good here as in a file of its own.

Where there are too few tiles for a GPU, ``parts`` blocks share a tile, each with a range of the k-tiles. Their sums go
to a workspace; a second kernel adds them up in a fixed order, then the bias.

Shared bytes (float32): ``8 · depth · (filters + 4 + positions)`` and the table, 17 KB for 128x128x8 and a 3x3 window.
Registers aimed at: at most 128 for 8x8 outputs a thread, so that a multiprocessor holds 512 threads.

Expected bottleneck: multiply-adds, 86 % of the instructions of the main loop of 128x128x8 with a 3x3 window, 90 % with
1x1. Smaller tiles have more loads for each, and are for maps that would leave multiprocessors without a block.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from numba import cuda, types

from gpuconv.geometry import Conv2dGeometry
from gpuconv.kernels.compiled import specialised
from gpuconv.kernels.conv import windows
from gpuconv.kernels.conv.windows import supports
from gpuconv.kernels.device.host import MAX_ELEMENTS, MULTIPROCESSORS, NEXT_LAUNCH, launch_time, widest_access
from gpuconv.kernels.device.launch import Call, call, device_function, jit
from gpuconv.kernels.device.memory import ld, ld2, ld4, ldg, ldg2_if, ldg4_if, ldg_if, st, st2, st4
from gpuconv.kernels.device.registers import add_outer, clear, unrolled, vector_access
from gpuconv.kernels.device.words import i32, minimum, u32
from gpuconv.kernels.variant import Arguments

__all__ = [
    "SHAPES", "WHOLE", "Place", "Tiling", "calls", "estimate", "products", "supports", "tilings", "workspace_size",
]  # fmt: skip

_REDUCTION_THREADS = 256

# Of the estimate, found by least squares in an H100's times of 36 tilings and layers, which it then misses by 7 % (in
# the mean) and at most 13 % (`python -m bench.rules`). In issue slots of a warp: a 128-bit load of shared memory; a
# value that is fetched, from its address to its store, and a weight; a k-tile, of which most is the barrier.
_SHARED_LOAD, _VALUE, _WEIGHT, _K_TILE = 5, 2.1, 6.9, 68
#: Threads that a multiprocessor needs to be busy all the time.
_BUSY_THREADS = 400
#: Bytes a microsecond of partial sums: while they fit into the L2 cache, and beyond, as of a copy in memory.
_CACHE, _CACHE_BANDWIDTH, _MEMORY_BANDWIDTH = 32 << 20, 9.3e6, 2.8e6


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a product's filters and results stand in their arrays, if that is not in the whole of them.

    Attributes:
        weights, results: elements before the first one.
        shape: height and width of the results' maps; None if they are those of the geometry.
        first, step: a result's row and column in such a map, for row and column 0 and for each further one.
    """

    weights: int = 0
    results: int = 0
    shape: tuple[int, int] | None = None
    first: tuple[int, int] = (0, 0)
    step: tuple[int, int] = (1, 1)


WHOLE = Place()


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How the work is cut up.

    Attributes:
        filters, positions: rows and columns of the product, a block.
        depth: of a k-tile.
        thread_filters, thread_positions: rows and columns a thread, multiples of 4.
        parts: into how many parts the sum is cut; at most the number of k-tiles.

    Raises:
        ValueError: the tile cannot be shared out equally among its threads.
    """

    filters: int
    positions: int
    depth: int
    thread_filters: int
    thread_positions: int
    parts: int = 1

    def __post_init__(self) -> None:
        if self.thread_filters % 4 or self.thread_positions % 4 or self.depth % 4:
            raise ValueError(f"{self}: thread_filters, thread_positions and depth must be multiples of 4")
        if self.filters % (4 * self.thread_filters) or self.positions % (8 * self.thread_positions):
            raise ValueError(f"{self}: a warp computes 4 x 8 times what a thread does; the tile must be whole warps")
        if self.threads % self.positions or self.threads % self.depth:
            raise ValueError(f"{self}: positions and depth must divide the number of threads, {self.threads}")
        if self.depth * self.filters % (4 * self.threads) or self.depth * self.positions % (4 * self.threads):
            raise ValueError(f"{self}: {self.threads} threads must fetch a multiple of 4 weights and windows each")

    @property
    def threads(self) -> int:
        """Threads a block."""
        return self.filters * self.positions // (self.thread_filters * self.thread_positions)


#: All shapes of tiles.
SHAPES = (
    Tiling(128, 128, 8, 8, 8),
    Tiling(128, 64, 8, 8, 8),
    Tiling(64, 128, 8, 8, 8),
    Tiling(64, 64, 8, 8, 8),
    Tiling(64, 64, 8, 8, 4),
    Tiling(64, 32, 16, 4, 4),
    Tiling(32, 128, 16, 4, 8),
    Tiling(32, 64, 16, 4, 4),
    Tiling(32, 32, 8, 4, 4),
    Tiling(16, 64, 16, 4, 4),
)


def estimate(geometry: Conv2dGeometry, tiling: Tiling) -> float:
    """Microseconds on an H100, about: what ranks tilings."""
    positions, filters = geometry.n * geometry.p * geometry.q, geometry.k // geometry.groups
    tiles = -(-positions // tiling.positions) * -(-filters // tiling.filters) * geometry.groups
    k_tiles = -(-windows.products(geometry) // tiling.depth)
    # Instructions for each multiply-add.
    loads = _SHARED_LOAD * (1 / tiling.thread_filters + 1 / tiling.thread_positions) / 4
    fetches = _VALUE / tiling.filters + _WEIGHT / tiling.positions
    fixed = _K_TILE / (tiling.depth * tiling.thread_filters * tiling.thread_positions)
    adds = tiling.filters * tiling.positions * tiling.depth * -(-k_tiles // tiling.parts)
    blocks = max(1, -(-tiles * tiling.parts // MULTIPROCESSORS))
    busy = min(1, blocks * tiling.threads / _BUSY_THREADS)
    found = launch_time(blocks * adds * (1 + loads + fetches + fixed) / busy)
    if tiling.parts > 1:
        size = 4 * positions * geometry.k
        bandwidth = _CACHE_BANDWIDTH if tiling.parts * size <= _CACHE else _MEMORY_BANDWIDTH
        found += NEXT_LAUNCH + (2 * tiling.parts + 1) * size / bandwidth
    return found


def tilings(geometry: Conv2dGeometry) -> tuple[Tiling, ...]:
    """Each shape as it is, and cut into the best number of parts if that helps.

    Those that are estimated to be fast come first; those estimated at three times the best or more are left out.
    """
    found: dict[Tiling, float] = {}
    for shape in SHAPES:
        k_tiles = -(-windows.products(geometry) // shape.depth)
        cuts = [dataclasses.replace(shape, parts=count) for count in (1, 2, 4, 8, 16, 32, 64) if count <= k_tiles]
        times = {cut: estimate(geometry, cut) for cut in cuts if workspace_size(geometry, cut) <= MAX_ELEMENTS}
        best = min(times, key=times.__getitem__)
        found |= {shape: times[shape], best: times[best]}
    limit = 3 * min(found.values())
    return tuple(sorted((tiling for tiling in found if found[tiling] < limit), key=found.__getitem__))


def workspace_size(geometry: Conv2dGeometry, tiling: Tiling) -> int:
    """Elements of the workspace: one for each part of each output, none if there is one part."""
    return tiling.parts * geometry.n * geometry.k * geometry.p * geometry.q if tiling.parts > 1 else 0


@specialised
def _kernel(
    geometry: Conv2dGeometry, tiling: Tiling, dtype: str, has_bias: bool, aligned16: bool, place: Place
) -> Callable[..., None]:
    """The kernel for images of a geometry, whatever their number: ``geometry.n`` is not looked at.

    ``aligned16``: the arrays begin at multiples of 128 bits, and their rows may, too. Where ``place`` has elements
    before the results, they are in the filters' array.
    """
    real = getattr(types, dtype)
    vector, load, store, load_if = (4, ld4, st4, ldg4_if) if dtype == "float32" else (2, ld2, st2, ldg2_if)
    k, p, q = geometry.k, geometry.p, geometry.q
    groups, filters = geometry.groups, geometry.k // geometry.groups
    plane, pixels, products = geometry.h * geometry.w, p * q, windows.products(geometry)

    threads, depth, parts = tiling.threads, tiling.depth, tiling.parts
    tile_filters, tile_positions = tiling.filters, tiling.positions
    thread_filters, thread_positions = tiling.thread_filters, tiling.thread_positions
    # A thread's groups of 4 stand so far apart.
    filter_step, position_step = 4 * tile_filters // thread_filters, 4 * tile_positions // thread_positions
    warps_across = tile_positions // thread_positions // 8
    filter_tiles, k_tiles = -(-filters // tile_filters), -(-products // depth)
    ragged = products % depth != 0
    clamped = filters % tile_filters != 0

    # Fetching weights: columns of a row (or vectors) along the lanes. Four elements more than the filters, so that the
    # lanes of a warp, with 8 columns of 4 rows, or 2 vectors of 16 rows, store to 32 banks; with a depth of 16, in two
    # passes.
    weight_vector = vector if aligned16 and products % vector == 0 else 1
    weight_columns = depth // weight_vector
    weight_rows, weight_pitch = threads // weight_columns, tile_filters + 4
    weights_each = tile_filters // weight_rows
    # Fetching windows: positions (or vectors of them) along the lanes; a thread has one, and neighbouring rows of it.
    pointwise = (geometry.r, geometry.s, geometry.stride) == (1, 1, (1, 1)) and plane % vector == 0
    pointwise = pointwise and geometry.padding == ((0, 0), (0, 0))
    value_vector = vector if aligned16 and pointwise and depth * tile_positions % (vector * threads) == 0 else 1
    value_columns = tile_positions // value_vector
    values_each = depth * value_columns // threads
    out_vector = widest_access(pixels, dtype) if aligned16 and place.shape is None else 1
    store_out = vector_access(out_vector)[2]
    first_weight, first_result = place.weights, place.results
    scattered = place.shape is not None
    out_h, out_w = place.shape or (p, q)
    out_plane = out_h * out_w
    (out_row, out_column), (row_step, column_step) = place.first, place.step

    weights_size, values_size = depth * weight_pitch, depth * tile_positions
    buffer_size = weights_size + values_size
    both_buffers = 2 * buffer_size
    staged_weights, staged_values = weights_each * weight_vector, values_each * value_vector
    tabled, table_size, fill_table, locate, advance, fetch_values = windows.gathering(
        geometry, depth=depth, threads=threads, rows=values_each, vector=value_vector
    )
    # Registers for 512 threads a multiprocessor; for 384 in the smallest blocks, whose threads have twice as many
    # elements to fetch. Sums in float64 take twice as many registers, and a multiprocessor holds what it may.
    resident = 384 if threads == 64 else 512
    large = thread_filters * thread_positions == 64 and dtype == "float32"
    bounds = (threads, resident // threads) if large else threads

    @device_function
    def step(row: int, total: Any, a: Any, b: Any, tiles: Any, weight_at: Any, value_at: Any) -> None:
        for i in range(0, thread_filters, vector):
            found = load(tiles, weight_at + (row * weight_pitch + i // 4 * filter_step + i % 4))
            for j in range(vector):
                a[i + j] = found[j]
        for i in range(0, thread_positions, vector):
            found = load(tiles, value_at + (row * tile_positions + i // 4 * position_step + i % 4))
            for j in range(vector):
                b[i + j] = found[j]
        add_outer(total, a, b, 0)

    multiply = unrolled(step, depth)

    @device_function
    def fetch_read_only(staged: Any, weight: Any, rows: Any, product: Any) -> None:
        inside = product < products if ragged else True
        for i in range(weights_each):
            if weight_vector == 1:
                staged[i] = ldg_if(weight, rows[i] + product, inside)
            else:
                found = load_if(weight, rows[i] + product, inside)
                for j in range(vector):
                    staged[i * vector + j] = found[j]

    @device_function
    def fetch_beside_results(staged: Any, weight: Any, rows: Any, product: Any) -> None:
        """Of an array that this launch writes, elsewhere: read-only loads are not for such."""
        inside = product < products if ragged else True
        column = minimum(product, products - weight_vector) if ragged else product
        for i in range(weights_each):
            if weight_vector == 1:
                value = ld(weight, rows[i] + column)
                staged[i] = value if inside else real(0)
            else:
                found = load(weight, rows[i] + column)
                for j in range(vector):
                    staged[i * vector + j] = found[j] if inside else real(0)

    fetch_weights = fetch_beside_results if first_result else fetch_read_only

    @device_function
    def store_weights(tiles: Any, staged: Any, at: Any) -> None:
        for i in range(weights_each):
            for j in range(weight_vector):
                st(tiles, at + (j * weight_pitch + i * weight_rows), staged[i * weight_vector + j])

    @device_function
    def store_values(tiles: Any, staged: Any, at: Any) -> None:
        for i in range(values_each):
            if value_vector == 1:
                st(tiles, at + i * tile_positions, staged[i])
            elif value_vector == 2:
                store(tiles, at + i * tile_positions, (staged[2 * i], staged[2 * i + 1]))
            else:
                found = (staged[4 * i], staged[4 * i + 1], staged[4 * i + 2], staged[4 * i + 3])
                store(tiles, at + i * tile_positions, found)

    @device_function
    def store_sums(
        total: Any, a: Any, b: Any, bias: Any, out: Any, positions: Any, part: Any, group: Any, filter_: Any, first: Any
    ) -> None:
        """With the bias, or, of a part of the sum, to the workspace."""
        if has_bias:
            for i in range(thread_filters):
                other = filter_ + (i // 4 * filter_step + i % 4)
                a[i] = ldg_if(bias, group * filters + other, other < filters)
        map_ = part * (positions // pixels) * k + group * filters + filter_
        for j in range(0, thread_positions, out_vector):
            position = first + (j // 4 * position_step + j % 4)
            if position < positions:
                image, offset = divmod(position, pixels)
                if scattered:
                    row, column = divmod(offset, q)
                    offset = (row * row_step + out_row) * out_w + column * column_step + out_column
                offset += (image * k + map_) * out_plane
                for i in range(thread_filters):
                    other = i // 4 * filter_step + i % 4
                    if filter_ + other < filters:
                        for e in range(out_vector):
                            value = total[i, j + e]
                            if has_bias:
                                value += a[i]
                            b[e] = value
                        store_out(b, out, offset + (other * out_plane + first_result))

    @jit(launch_bounds=bounds)
    def conv2d_implicit_gemm(x: Any, weight: Any, bias: Any, out: Any, positions: Any) -> None:
        tiles = cuda.shared.array(both_buffers, real, alignment=16)
        table = cuda.shared.array(table_size, types.uint32, alignment=16)
        total = cuda.local.array((thread_filters, thread_positions), real)
        a = cuda.local.array(thread_filters, real)
        b = cuda.local.array(thread_positions, real)
        next_weights = cuda.local.array(staged_weights, real)
        next_values = cuda.local.array(staged_values, real)
        rows = cuda.local.array(weights_each, types.uint32)
        clear(total)

        # Blocks that share windows follow each other, so that these come from the L2 cache.
        thread, block = u32(cuda.threadIdx.x), u32(cuda.blockIdx.x)
        rest = block // filter_tiles
        first_filter = block % filter_tiles * tile_filters
        block, group = divmod(rest, groups)
        rest, part = divmod(block, parts)
        first_position = rest * tile_positions
        tile, last = part * k_tiles // parts, (part + 1) * k_tiles // parts - 1

        if tabled:
            fill_table(table, thread)
            cuda.syncthreads()

        # What is fetched beyond the last row or column of the product is that row or column again: it is not stored.
        row = thread // weight_columns
        column = thread % weight_columns * weight_vector
        for i in range(weights_each):
            filter_ = first_filter + row + i * weight_rows
            if clamped:
                filter_ = minimum(filter_, filters - 1)
            rows[i] = (group * filters + filter_) * products + first_weight
        weight_store = i32(column) * weight_pitch + i32(row)
        weight_product = tile * depth + column

        row = thread // value_columns * values_each
        column = thread % value_columns * value_vector
        value_store = i32(row) * tile_positions + i32(column) + weights_size
        value_product = tile * depth + row
        position = minimum(first_position + column, u32(positions) - value_vector)
        window, turn, outside = locate(position, group, tile * depth)
        if not tabled:
            window += row * plane

        warp, lane = thread >> 5, thread & 31
        warp_row, warp_column = divmod(warp, warps_across)
        own_filter = (warp_row * 4 + (lane >> 3)) * 4
        own_position = (warp_column * 8 + (lane & 7)) * 4

        fetch_weights(next_weights, weight, rows, weight_product)
        fetch_values(next_values, x, table, window, outside, turn + row, value_product)
        store_weights(tiles, next_weights, weight_store)
        store_values(tiles, next_values, value_store)
        cuda.syncthreads()
        weight_at, value_at = i32(own_filter), i32(own_position) + weights_size
        buffer = i32(0)
        while tile < last:
            tile += 1
            weight_product, value_product = weight_product + depth, value_product + depth
            window, turn = advance(window, turn)
            fetch_weights(next_weights, weight, rows, weight_product)
            fetch_values(next_values, x, table, window, outside, turn + row, value_product)
            multiply(total, a, b, tiles, weight_at + buffer, value_at + buffer)
            buffer = buffer_size - buffer
            store_weights(tiles, next_weights, weight_store + buffer)
            store_values(tiles, next_values, value_store + buffer)
            cuda.syncthreads()
        # The last k-tile stands outside of the loop: with a branch around what fetches the next one, the compiler could
        # not begin the loads among the multiplications, and would leave them to the end.
        multiply(total, a, b, tiles, weight_at + buffer, value_at + buffer)

        store_sums(
            total,
            a,
            b,
            bias,
            out,
            u32(positions),
            part,
            group,
            first_filter + own_filter,
            first_position + own_position,
        )

    return conv2d_implicit_gemm


@specialised
def _reduction(geometry: Conv2dGeometry, parts: int, dtype: str, has_bias: bool, first: int) -> Callable[..., None]:
    """The second kernel: one thread adds up the parts of one output, which begin at ``first``."""
    k, pixels = geometry.k, geometry.p * geometry.q

    @jit(launch_bounds=_REDUCTION_THREADS)
    def conv2d_implicit_gemm_sum(workspace: Any, bias: Any, out: Any, outputs: Any) -> None:
        i = u32(cuda.blockIdx.x) * _REDUCTION_THREADS + cuda.threadIdx.x
        if i < u32(outputs):
            value = ldg(workspace, i + first)
            for part in range(1, parts):
                value += ldg(workspace, i + (part * outputs + first))
            if has_bias:
                value += ldg(bias, i // pixels % k)
            st(out, i, value)

    return conv2d_implicit_gemm_sum


def calls(a: Arguments, geometry: Conv2dGeometry, tiling: Tiling) -> Iterator[Call]:
    """The matrix product, and where its sums are cut into parts, the launch that adds them up.

    Raises:
        ValueError: there are more parts than k-tiles.
    """
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
    """The launches of the product of the arrays of these names, to ``out``.

    Args:
        a, geometry, tiling: as of :func:`calls`.
        x, weight, bias: names.
        place: where filters and results stand; ``place.results`` is of the workspace, if sums are cut into parts.

    Raises:
        ValueError: there are more parts than k-tiles.
    """
    if tiling.parts > (k_tiles := -(-windows.products(geometry) // tiling.depth)):
        raise ValueError(f"conv2d: a sum of {k_tiles} k-tiles cannot be cut into parts={tiling.parts}")
    has_bias, positions = bias is not None and a.has(bias), geometry.n * geometry.p * geometry.q
    whole = tiling.parts == 1
    target, place = ("out", dataclasses.replace(place, results=0)) if whole else ("workspace", place)
    single, aligned16 = dataclasses.replace(geometry, n=1), a.aligned(x, weight, target) and place.weights % 4 == 0
    kernel = _kernel(single, tiling, a.dtype, has_bias and whole, aligned16, place)
    filter_tiles = geometry.groups * -(-geometry.k // geometry.groups // tiling.filters)
    blocks = -(-positions // tiling.positions) * filter_tiles * tiling.parts
    # For a bias that there is not stands an array that is not looked at.
    arrays = [getattr(a, name) for name in (x, weight, bias or weight, target)]
    yield call(kernel, blocks, tiling.threads, *arrays, positions)
    if not whole:
        kernel = _reduction(single, tiling.parts, a.dtype, has_bias, place.results)
        blocks = -(-a.out.size // _REDUCTION_THREADS)
        yield call(kernel, blocks, _REDUCTION_THREADS, a.workspace, arrays[2], a.out, a.out.size)
