"""Gradient for a convolution's weight on tensor cores, in float32's accuracy (3xTF32), or in TF32 on request.

``dW[k, crs] = Σ grad[k, npq] · X[npq, crs]``, the product of ``conv2d_grad_weight_implicit_gemm.py``: row npq of X is
the window of output position npq, gathered from the input. How a float32 is made of TF32 numbers, and what becomes of
infinity, NaN and long sums, says ``kernels/device/tensor_core.py``. Tiles, their order in shared memory and the warps'
parts of them are those of ``conv2d_tensor_core.py``, and so is the accuracy.

A block computes ``filters x columns`` elements of dW, for one group, over one part of the positions, 16 positions a
stage: while a stage is multiplied, the next one is fetched into registers, then stored to a second buffer. Sixteen
lanes read neighbouring positions, so that both factors come in pieces of 64 bytes. A thread stays with one position of
each stage, and divides once for all of its elements. A table in shared memory says where in an image a column of dW
looks. The parts go to a workspace, which ``partial_sums`` adds up in a fixed order.

**By the figures** of 128 x 128 (``bench.static``, sm_90a): a warp's main loop has 630 instructions for 96 ``mma``: 46
more than that of the forward product, because an element is stored by itself. A scheduler has two warps, and so begins
1,260 instructions a stage, in which its tensor core is busy for 768 cycles or more: the machine code allows 96 TFLOP/s.

Shared bytes: ``128 · (filters + columns)`` and a table of ``16 · columns``, 34 KB for 128 x 128. Registers: at most
255, so that a multiprocessor holds 256 threads.

Expected bottleneck: the instructions around ``mma``. No GPU has timed it yet: so it is taken on request, or where the
tuner has found it fastest. Refused are other types than float32, and GPUs before compute capability 8.0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from numba import cuda, types

from gpuconv.geometry import Conv2dGeometry
from gpuconv.kernels.compiled import specialised
from gpuconv.kernels.device import tensor_core
from gpuconv.kernels.device.host import MULTIPROCESSORS
from gpuconv.kernels.device.launch import Call, call, device_function, jit
from gpuconv.kernels.device.memory import ld, ld4, ldg_if, st
from gpuconv.kernels.device.registers import unrolled
from gpuconv.kernels.device.tensor_core import (
    COMPUTE_CAPABILITY,
    DEPTH,
    column_places,
    round_tf32,
    row_places,
    sum_place,
    tile_place,
)
from gpuconv.kernels.device.words import i32, minimum, u32
from gpuconv.kernels.partial_sums import sum_parts
from gpuconv.kernels.variant import Arguments

__all__ = ["COMPUTE_CAPABILITY", "DTYPES", "Tiling", "calls", "tilings", "workspace_size"]

#: The only element type.
DTYPES = ("float32",)
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
        products: of TF32 numbers for one of float32: 3, or 1 for TF32's accuracy.

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


def _elements(geometry: Conv2dGeometry) -> int:
    return geometry.k * geometry.c // geometry.groups * geometry.r * geometry.s


def _blocks(geometry: Conv2dGeometry, filters: int, columns: int) -> tuple[int, int]:
    """Blocks along the filters and the columns of a group."""
    width = geometry.c // geometry.groups * geometry.r * geometry.s
    return -(-geometry.k // geometry.groups // filters), -(-width // columns)


def _stages(geometry: Conv2dGeometry) -> int:
    return -(-geometry.n * geometry.p * geometry.q // DEPTH)


def _cost(geometry: Conv2dGeometry, tiling: Tiling) -> float:
    """Estimated time, in cycles of a multiprocessor that nothing else is done on."""
    down, across = _blocks(geometry, tiling.filters, tiling.columns)
    high, wide, warps = tiling.warp_filters // 16, tiling.warp_columns // 8, tiling.threads // 32
    matrices = 2 * tiling.products * high * wide
    staged = DEPTH * (tiling.filters + tiling.columns) / tiling.threads
    issued = matrices + 2 * high + wide + 6 * (4 * high + 2 * wide) + 8 * high * wide + 10 * staged + 40
    stages = -(-_stages(geometry) // tiling.parts)
    block = stages * max(6 * matrices, issued) * warps / 4
    blocks = max(1, -(-down * across * geometry.groups * tiling.parts // MULTIPROCESSORS))
    cost = blocks * block / min(1, blocks * tiling.threads / 256)
    if tiling.parts > 1:
        cost += 3_000 + _WORKSPACE_CYCLES * tiling.parts * _elements(geometry) / MULTIPROCESSORS
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
        down, across = _blocks(geometry, *shape[:2])
        tiles, most = down * across * geometry.groups, max(1, min(_stages(geometry) // _FEWEST_STAGES, _MOST_PARTS))
        # The counts of parts with which the last of one to four waves of blocks is as full as can be.
        counts = {1, *(max(1, min(waves * MULTIPROCESSORS // tiles, most)) for waves in (1, 2, 3, 4, 6, 8))}
        cuts = {cut: _cost(geometry, cut) for cut in (Tiling(*shape, parts=parts) for parts in sorted(counts))}
        best = min(cuts, key=cuts.__getitem__)
        costs[best] = cuts[best]
    ranked = sorted(costs, key=costs.__getitem__)
    kept = [tiling for tiling in ranked if costs[tiling] <= 4 * costs[ranked[0]]]
    return tuple(dict.fromkeys([*kept, dataclasses.replace(kept[0], parts=1)]))


def workspace_size(geometry: Conv2dGeometry, tiling: Tiling) -> int:
    """Elements of the workspace: one for each part of each weight, none if there is one part."""
    return tiling.parts * _elements(geometry) if tiling.parts > 1 else 0


@specialised
def _kernel(geometry: Conv2dGeometry, tiling: Tiling) -> Callable[..., None]:
    """The kernel for images of a geometry, whatever their number and parts: ``n`` and ``parts`` are not looked at."""
    real = types.float32
    c, h, w, k, r, s, p, q = (getattr(geometry, name) for name in "chwkrspq")
    groups = geometry.groups
    channels, filters, elements, plane = c // groups, k // groups, _elements(geometry), p * q
    (stride_h, stride_w), (dilation_h, dilation_w) = geometry.stride, geometry.dilation
    (top, bottom), (left, right) = geometry.padding
    padded = top + bottom + left + right > 0
    width = channels * r * s

    threads, tile_filters, tile_columns = tiling.threads, tiling.filters, tiling.columns
    warp_filters, warp_columns = tiling.warp_filters, tiling.warp_columns
    high, wide, warps_across = warp_filters // 16, warp_columns // 8, tile_columns // warp_columns
    sums, halves = 4 * high * wide, 2 * high
    down, across = _blocks(geometry, tile_filters, tile_columns)
    ragged = filters % tile_filters > 0
    fetch_rows = threads // DEPTH
    filter_fetches, column_fetches = tile_filters // fetch_rows, tile_columns // fetch_rows
    columns_from = DEPTH * tile_filters
    buffer_size = columns_from + DEPTH * tile_columns
    both_buffers, table_size = 2 * buffer_size, 4 * tile_columns
    multiply = tensor_core.product(high, wide, tiling.products)
    waited = tensor_core.waiting(filter_fetches, column_fetches, tiling.products)

    @device_function
    def fetch_gradient(i: int, fetched: Any, grad: Any, offset: Any, filter_: Any, live: Any) -> None:
        wanted = live & (u32(filter_) + i * fetch_rows < filters) if ragged else live
        fetched[i] = ldg_if(grad, offset + i * fetch_rows * plane, wanted)

    @device_function
    def fetch_input(
        i: int, fetched: Any, x: Any, table: Any, entry: Any, offset: Any, row: Any, column: Any, live: Any
    ) -> None:
        if padded:
            tap_offset, tap_row, tap_column, _ = ld4(table, entry + 4 * i * fetch_rows)
            # Unsigned, so that one comparison tests both borders.
            wanted = live & (u32(row + tap_row) < h) & (u32(column + tap_column) < w)
        else:
            tap_offset, wanted = ld(table, entry + 4 * i * fetch_rows), live
        fetched[i] = ldg_if(x, offset + tap_offset, wanted)

    fetch_gradients, fetch_inputs = unrolled(fetch_gradient, filter_fetches), unrolled(fetch_input, column_fetches)

    @device_function
    def fetch(
        position: Any,
        end: Any,
        grad: Any,
        x: Any,
        fetched_grads: Any,
        fetched_windows: Any,
        first_plane: Any,
        filter_: Any,
        table: Any,
        entry: Any,
    ) -> None:
        """The thread's elements of a stage: of all its filters and columns, at one position."""
        live = position < end
        image, rest = divmod(position, plane)
        output_row, output_column = divmod(rest, q)
        row, column = i32(output_row) * stride_h, i32(output_column) * stride_w
        offset = i32(image) * (k * plane) + first_plane + i32(rest)
        fetch_gradients(fetched_grads, grad, offset, filter_, live)
        offset = i32(image) * (c * h * w) + row * w + column
        fetch_inputs(fetched_windows, x, table, entry, offset, row, column, live)

    def storing(fetches: int, products: int) -> Any:
        # The rows of a thread stand so far apart that all have one order of vectors, or two by turns.
        def store_one(i: int, target: Any, even: Any, odd: Any, fetched: Any) -> None:
            value = round_tf32(fetched[i]) if products == 1 else fetched[i]
            st(target, (odd if i * fetch_rows % 8 else even) + i * fetch_rows * DEPTH, value)

        return unrolled(device_function(store_one), fetches)

    store_grads = storing(filter_fetches, tiling.products)
    store_windows = storing(column_fetches, tiling.products)

    @device_function
    def store_row(n: int, j: int, total: Any, out: Any, offset: Any, filter_: Any, column: Any) -> None:
        row = n // 2 * 16 + n % 2 * 8
        if filter_ + row < filters:
            for e in range(2):
                if column + e < width:
                    st(out, offset + row * width + e, total[4 * (n // 2 * wide + j) + n % 2 * 2 + e])

    store_rows = unrolled(store_row, halves)

    @device_function
    def store_column(j: int, total: Any, out: Any, offset: Any, filter_: Any, column: Any) -> None:
        store_rows(j, total, out, offset + j * 8, filter_, column + j * 8)

    store_columns = unrolled(store_column, wide)

    @jit(launch_bounds=(threads, max(1, 256 // threads)))
    def conv2d_grad_weight_tensor_core(grad: Any, x: Any, out: Any, size: Any, size_a_part: Any) -> None:
        tiles = cuda.shared.array(both_buffers, real, alignment=128)
        table = cuda.shared.array(table_size, types.int32, alignment=16)
        total = cuda.local.array(sums, real)
        fetched_grads, fetched_windows = cuda.local.array(filter_fetches, real), cuda.local.array(column_fetches, real)
        for i in range(sums):
            total[i] = real(0)

        block = u32(cuda.blockIdx.x)
        rest, column_tile = divmod(block, across)
        first_column = i32(column_tile * tile_columns)
        group = rest // down if groups > 1 else u32(0)
        first_filter = i32((rest - group * down) * tile_filters)

        # For each column of the tile, the offset of its tap in an image, and its row and column there, which may lie in
        # the padding. Columns past the last one repeat it; their sums are not stored.
        thread = u32(cuda.threadIdx.x)
        first_channel = i32(group) * channels
        i = thread
        while i < tile_columns:
            window = minimum(u32(first_column) + i, width - 1)
            rest, tap_column = divmod(window, s)
            channel, tap_row = divmod(rest, r)
            row, column = i32(tap_row) * dilation_h - top, i32(tap_column) * dilation_w - left
            table[4 * i] = ((first_channel + i32(channel)) * h + row) * w + column
            table[4 * i + 1] = row
            table[4 * i + 2] = column
            table[4 * i + 3] = 0  # read along with the others, and not used
            i += threads
        cuda.syncthreads()

        # What the thread fetches, and where it stores it.
        fetch_row, fetch_position = divmod(thread, DEPTH)
        filter_ = first_filter + i32(fetch_row)
        first_plane = (i32(group) * filters + filter_) * plane
        entry = i32(fetch_row) * 4
        vector, element = divmod(fetch_position, 4)
        even = i32(tile_place(fetch_row, vector) + element)
        odd = i32(tile_place(fetch_row + 4, vector) + element) - 4 * DEPTH
        # What it multiplies.
        warp, lane = thread >> 5, thread & 31
        warp_row, warp_column = divmod(warp, warps_across)
        own_row, own_column = warp_row * warp_filters, warp_column * warp_columns
        row_at, row_half = row_places(lane)
        column_at, column_half = column_places(lane)
        row_at, row_half = i32(row_at + own_row * DEPTH), i32(row_half + own_row * DEPTH)
        column_at = i32(column_at + own_column * DEPTH) + columns_from
        column_half = i32(column_half + own_column * DEPTH) + columns_from

        part = u32(cuda.blockIdx.y)
        position = part * size_a_part
        end = minimum(position + size_a_part, size)
        position += fetch_position
        fetch(position, end, grad, x, fetched_grads, fetched_windows, first_plane, filter_, table, entry)
        store_grads(tiles, even, odd, fetched_grads)
        store_windows(tiles, even + columns_from, odd + columns_from, fetched_windows)
        special = waited(fetched_grads, fetched_windows)
        buffer = i32(0)
        stage = part * size_a_part
        while stage < end:
            # With the last stage nothing is left to fetch: all predicates are off. Multiplying it outside of the loop
            # would save that, and double the code.
            position += DEPTH
            fetch(position, end, grad, x, fetched_grads, fetched_windows, first_plane, filter_, table, entry)
            multiply(
                total, tiles, row_at + buffer, row_half + buffer, column_at + buffer, column_half + buffer, special
            )
            buffer = buffer_size - buffer
            store_grads(tiles, even + buffer, odd + buffer, fetched_grads)
            store_windows(tiles, even + (buffer + columns_from), odd + (buffer + columns_from), fetched_windows)
            special = waited(fetched_grads, fetched_windows)
            stage += DEPTH

        row, column = sum_place(lane)
        filter_, own = first_filter + i32(own_row + row), first_column + i32(own_column + column)
        offset = i32(part) * elements + (i32(group) * filters + filter_) * width + own
        store_columns(total, out, offset, filter_, own)

    return conv2d_grad_weight_tensor_core


def calls(a: Arguments, geometry: Conv2dGeometry, tiling: Tiling) -> Iterator[Call]:
    """Partial sums, and with several parts their reduction; for an empty batch too: the gradient is zero."""
    kernel = _kernel(dataclasses.replace(geometry, n=1), dataclasses.replace(tiling, parts=1))
    down, across = _blocks(geometry, tiling.filters, tiling.columns)
    grid, positions = (down * across * geometry.groups, tiling.parts), geometry.n * geometry.p * geometry.q
    # Whole stages a part, so that no stage belongs to two.
    size_a_part = -(-positions // (tiling.parts * DEPTH)) * DEPTH
    target = a.out if tiling.parts == 1 else a.workspace
    yield call(kernel, grid, tiling.threads, a.grad, a.x, target, positions, size_a_part)
    if tiling.parts > 1:
        yield sum_parts(a.workspace, a.out, tiling.parts)
