"""Gradient for a convolution's weight on tensor cores: of half types; in float32's accuracy (3xTF32); or in TF32.

``dW[k, crs] = Σ grad[k, npq] · X[npq, crs]``, the product of ``conv2d_grad_weight_implicit_gemm.py``: row npq of X is
the window of output position npq, gathered from the input. How a float32 is made of TF32 numbers, and what becomes of
infinity, NaN and long sums, says ``kernels/device/tensor_core.py``, and what half types are there. Tiles, their order
in shared memory and the warps' parts of them are those of ``conv2d_tensor_core.py``, and so is the accuracy.

A block computes ``filters x columns`` elements of dW, for one group, over one part of the positions, 16 positions a
stage, 32 of half types: while a stage is multiplied, the next one is fetched into registers, then stored to a second
buffer. Sixteen lanes (of half types 32) read neighbouring positions, so that both factors come in pieces of 64 bytes. A
thread stays with one position of each stage, and divides once for all of its elements. A table in shared memory says
where in an image a column of dW looks. The parts go to a workspace in float32, which ``partial_sums`` adds up in a
fixed order, and rounds.

**By the figures** of 128 x 128 (``bench.static``, sm_90a): a warp's main loop has 630 instructions for 96 ``mma``: 46
more than that of the forward product, because an element is stored by itself. A scheduler has two warps, and so begins
1,260 instructions a stage, in which its tensor core is busy for 768 cycles or more: the machine code allows 96 TFLOP/s.
Of half types it has 288 for 32 positions. Shared memory and L1 are busy for 1,024 cycles in a stage, as loads and
stores of a single element take one cycle for a warp: that allows 268 TFLOP/s at 1.98 GHz.

Shared bytes: ``128 · (filters + columns)`` and a table of ``16 · columns``, 34 KB for 128 x 128. Registers: at most
255, so that a multiprocessor holds 256 threads.

Expected bottleneck: the instructions around ``mma``; of half types shared memory. When it is taken: as of
``conv2d_tensor_core.py``. Refused are float64, and GPUs before compute capability 8.0.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

from numba import cuda, types

from gpuconv.geometry import Conv2dGeometry
from gpuconv.kernels.compiled import specialised
from gpuconv.kernels.conv.weight_product import blocks_along, calls_of, gathering, matrix, workspace_size
from gpuconv.kernels.device import tensor_core
from gpuconv.kernels.device.halves import converting
from gpuconv.kernels.device.host import MULTIPROCESSORS
from gpuconv.kernels.device.launch import Call, device_function, jit
from gpuconv.kernels.device.memory import st
from gpuconv.kernels.device.registers import unrolled
from gpuconv.kernels.device.tensor_core import (
    COMPUTE_CAPABILITY,
    DEPTH,
    DTYPES,
    Arithmetic,
    column_places,
    row_places,
    staging,
    sum_place,
    tile_place,
)
from gpuconv.kernels.device.words import i32, minimum, u32
from gpuconv.kernels.variant import Arguments

__all__ = ["COMPUTE_CAPABILITY", "DTYPES", "Tiling", "calls", "tilings", "workspace_size"]

#: Cycles in which one of 132 multiprocessors writes an element of the workspace and reads it again: 8 bytes at 4 TB/s.
_WORKSPACE_CYCLES = 0.46
#: Stages that are worth a block.
_FEWEST_STAGES = 8
_MOST_PARTS = 65_535


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How the work is cut up.

    Attributes:
        filters, columns: rows (filters) and columns (channels times taps) of the result a block.
        warp_filters, warp_columns: the same a warp, multiples of 16.
        parts: into how many parts the sum over all positions is cut; at most 65,535.
        products: of TF32 numbers for one of float32: 3, or 1 for TF32's accuracy. Of half types it is not looked at.

    Raises:
        ValueError: the tile cannot be shared out equally among its warps.
    """

    filters: int
    columns: int
    warp_filters: int
    warp_columns: int
    parts: int
    products: int = 3

    def __post_init__(self) -> None:
        if self.warp_filters % 16 or self.warp_columns % 16 or self.products not in (1, 3):
            raise ValueError(f"{self}: a warp computes multiples of 16 filters and columns; products are 1 or 3")
        if self.filters % self.warp_filters or self.columns % self.warp_columns:
            raise ValueError(f"{self}: the tile must be whole warps")
        if DEPTH * self.filters % self.threads or DEPTH * self.columns % self.threads:
            raise ValueError(f"{self}: {self.threads} threads must fetch whole gradients and inputs each")

    @property
    def threads(self) -> int:
        """Threads a block."""
        return 32 * (self.filters // self.warp_filters) * (self.columns // self.warp_columns)


#: Filters and columns of a block, and of a warp.
_SHAPES = (
    (128, 128, 64, 32),
    (128, 64, 64, 32),
    (64, 128, 32, 64),
    (64, 64, 32, 32),
    (32, 64, 32, 32),
    (16, 64, 16, 32),
)


def _stages(geometry: Conv2dGeometry) -> int:
    return -(-geometry.n * geometry.p * geometry.q // DEPTH)


def _cost(geometry: Conv2dGeometry, tiling: Tiling) -> float:
    """Estimated time, in cycles of a multiprocessor that nothing else is done on."""
    down, across = blocks_along(geometry, tiling.filters, tiling.columns)
    high, wide, warps = tiling.warp_filters // 16, tiling.warp_columns // 8, tiling.threads // 32
    matrices = 2 * tiling.products * high * wide
    staged = DEPTH * (tiling.filters + tiling.columns) / tiling.threads
    issued = matrices + 2 * high + wide + 6 * (4 * high + 2 * wide) + 8 * high * wide + 10 * staged + 40
    stages = -(-_stages(geometry) // tiling.parts)
    block = stages * max(6 * matrices, issued) * warps / 4
    blocks = max(1, -(-down * across * geometry.groups * tiling.parts // MULTIPROCESSORS))
    cost = blocks * block / min(1, blocks * tiling.threads / 256)
    if tiling.parts > 1:
        cost += 3_000 + _WORKSPACE_CYCLES * tiling.parts * math.prod(geometry.weight_shape) / MULTIPROCESSORS
    return cost


def tilings(geometry: Conv2dGeometry) -> tuple[Tiling, ...]:
    """By estimated time, each with the number of parts estimated to be best; last the first one with one part.

    Tiles of which half would be empty are left out, and those that are estimated to be four times as slow as the first.
    """
    costs: dict[Tiling, float] = {}
    filters, columns = geometry.k // geometry.groups, geometry.c // geometry.groups * geometry.r * geometry.s
    for shape in _SHAPES:
        if shape[0] >= max(17, 2 * filters) or shape[1] >= max(65, 2 * columns):
            continue
        down, across = blocks_along(geometry, *shape[:2])
        tiles, most = down * across * geometry.groups, max(1, min(_stages(geometry) // _FEWEST_STAGES, _MOST_PARTS))
        # The counts of parts with which the last of one to four waves of blocks is as full as can be.
        counts = {1, *(max(1, min(waves * MULTIPROCESSORS // tiles, most)) for waves in (1, 2, 3, 4, 6, 8))}
        cuts = {cut: _cost(geometry, cut) for cut in (Tiling(*shape, parts=parts) for parts in sorted(counts))}
        best = min(cuts, key=cuts.__getitem__)
        costs[best] = cuts[best]
    ranked = sorted(costs, key=costs.__getitem__)
    kept = [tiling for tiling in ranked if costs[tiling] <= 4 * costs[ranked[0]]]
    return tuple(dict.fromkeys([*kept, dataclasses.replace(kept[0], parts=1)]))


@specialised
def _kernel(geometry: Conv2dGeometry, tiling: Tiling, dtype: str, rounds: bool) -> Callable[..., None]:
    """The kernel for images of a geometry, whatever their number and parts: ``n`` and ``parts`` are not looked at.

    ``rounds``: the sums to ``dtype``; else they are stored as float32.
    """
    real, arithmetic = types.float32, Arithmetic.of(dtype, tiling.products)
    each, depth, vector_size, kind = arithmetic.each, arithmetic.depth, arithmetic.vector, arithmetic.element
    _, rounded = converting(dtype if rounds else "float32")
    filters, width, _ = matrix(geometry)
    elements, plane = math.prod(geometry.weight_shape), geometry.p * geometry.q
    threads, tile_filters, tile_columns = tiling.threads, tiling.filters, tiling.columns
    warp_filters, warp_columns = tiling.warp_filters, tiling.warp_columns
    high, wide, warps_across = warp_filters // 16, warp_columns // 8, tile_columns // warp_columns
    sums, halves = 4 * high * wide, 2 * high
    step, filter_fetches, column_fetches, table_size, tile_of, fill_table, fetch = gathering(geometry, tiling, depth)
    columns_from = depth * tile_filters
    buffer_size = columns_from + depth * tile_columns
    both_buffers = 2 * buffer_size
    multiply = tensor_core.product(high, wide, arithmetic)
    waited = tensor_core.waiting(filter_fetches, column_fetches, arithmetic)
    element_of = staging(arithmetic)
    # So many of a thread's rows have vectors in another order, and then the same orders again.
    orders = max(1, 8 // step)

    @device_function
    def store_one(i: int, target: Any, places: Any, first: Any, fetched: Any) -> None:
        st(target, places[i % orders] + first + i * step * depth, element_of(fetched[i]))

    store_grads, store_windows = unrolled(store_one, filter_fetches), unrolled(store_one, column_fetches)

    @device_function
    def store_row(n: int, j: int, total: Any, out: Any, offset: Any, filter_: Any, column: Any) -> None:
        row = n // 2 * 16 + n % 2 * 8
        if filter_ + row < filters:
            for e in range(2):
                if column + e < width:
                    st(out, offset + row * width + e, rounded(total[4 * (n // 2 * wide + j) + n % 2 * 2 + e]))

    store_rows = unrolled(store_row, halves)

    @device_function
    def store_column(j: int, total: Any, out: Any, offset: Any, filter_: Any, column: Any) -> None:
        store_rows(j, total, out, offset + j * 8, filter_, column + j * 8)

    store_columns = unrolled(store_column, wide)

    @jit(launch_bounds=(threads, max(1, 256 // threads)))
    def conv2d_grad_weight_tensor_core(grad: Any, x: Any, out: Any, size: Any, size_a_part: Any) -> None:
        tiles = cuda.shared.array(both_buffers, kind, alignment=128)
        table = cuda.shared.array(table_size, types.int32, alignment=16)
        total = cuda.local.array(sums, real)
        fetched_grads, fetched_windows = cuda.local.array(filter_fetches, kind), cuda.local.array(column_fetches, kind)
        places = cuda.local.array(orders, types.int32)
        for i in range(sums):
            total[i] = real(0)

        group, first_filter, first_column = tile_of(u32(cuda.blockIdx.x))
        thread = u32(cuda.threadIdx.x)
        fill_table(table, thread, group, first_column)
        cuda.syncthreads()

        # What the thread fetches, and where it stores it.
        fetch_row, fetch_position = divmod(thread, depth)
        filter_ = first_filter + i32(fetch_row)
        first_plane = (i32(group) * filters + filter_) * plane
        entry = i32(fetch_row) * 4
        vector, element = divmod(fetch_position, vector_size)
        for i in range(orders):
            places[i] = i32(tile_place(fetch_row + i * step, vector, each) + element) - i * step * depth
        # What it multiplies.
        warp, lane = thread >> 5, thread & 31
        warp_row, warp_column = divmod(warp, warps_across)
        own_row, own_column = warp_row * warp_filters, warp_column * warp_columns
        row_at, row_half = row_places(lane, each)
        column_at, column_half = column_places(lane, each)
        row_at, row_half = i32(row_at + own_row * depth), i32(row_half + own_row * depth)
        column_at = i32(column_at + own_column * depth) + columns_from
        column_half = i32(column_half + own_column * depth) + columns_from

        part = u32(cuda.blockIdx.y)
        position = part * size_a_part
        end = minimum(position + size_a_part, size)
        position += fetch_position
        fetch(position, end, grad, x, fetched_grads, fetched_windows, first_plane, filter_, table, entry)
        store_grads(tiles, places, 0, fetched_grads)
        store_windows(tiles, places, columns_from, fetched_windows)
        special = waited(fetched_grads, fetched_windows)
        buffer = i32(0)
        stage = part * size_a_part
        while stage < end:
            # With the last stage nothing is left to fetch: all predicates are off. Multiplying it outside of the loop
            # would save that, and double the code.
            position += depth
            fetch(position, end, grad, x, fetched_grads, fetched_windows, first_plane, filter_, table, entry)
            multiply(
                total, tiles, row_at + buffer, row_half + buffer, column_at + buffer, column_half + buffer, special
            )
            buffer = buffer_size - buffer
            store_grads(tiles, places, buffer, fetched_grads)
            store_windows(tiles, places, buffer + columns_from, fetched_windows)
            special = waited(fetched_grads, fetched_windows)
            stage += depth

        row, column = sum_place(lane)
        filter_, own = first_filter + i32(own_row + row), first_column + i32(own_column + column)
        offset = i32(part) * elements + (i32(group) * filters + filter_) * width + own
        store_columns(total, out, offset, filter_, own)

    return conv2d_grad_weight_tensor_core


def calls(a: Arguments, geometry: Conv2dGeometry, tiling: Tiling) -> Iterator[Call]:
    """Partial sums, and with several parts their reduction; for an empty batch too: the gradient is zero."""
    products = tiling.products if a.dtype == "float32" else 1
    cut, one = dataclasses.replace(tiling, parts=1, products=products), dataclasses.replace(geometry, n=1)
    kernel = _kernel(one, cut, a.dtype, tiling.parts == 1)
    yield from calls_of(kernel, a, geometry, tiling, Arithmetic.of(a.dtype, products).depth)
