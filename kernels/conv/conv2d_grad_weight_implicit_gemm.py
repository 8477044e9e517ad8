"""Gradient for a convolution's weight as a matrix product whose second factor is never written out.

``dW[k, crs] = Σ grad[k, npq] · X[npq, crs]``, where row npq of X is the window of output position npq: channels times
taps, gathered from the input when it is needed. A block computes ``filters x columns`` elements of dW, for one group,
over one part of the positions; a thread ``thread_filters x thread_columns`` of them, in registers. The positions go by
in stages of ``positions``: while a stage in shared memory is multiplied, the next one is fetched into registers, then
stored to a second buffer, with one barrier a stage. The parts (split-K: a weight has far fewer elements than a batch
has positions) go to a workspace, which ``partial_sums`` adds up in a fixed order.

Fetching, a thread stays with one position of each stage, so that it divides once for all of its elements, and with the
same filters and columns throughout. Eight lanes read neighbouring positions: with stride 1 neighbouring gradients and
inputs. A table in shared memory says where in an image a column of dW looks.

Shared bytes: ``8 · positions · (filters + columns + 8)`` (float32) and a table of ``16 · columns``, 19 KB for 128x128.
Registers aimed at: at most 128 (64 of them sums), so that a multiprocessor holds 512 threads.

Expected bottleneck: multiply-adds, where filters and columns fill the tile; else the loads, of which a stage needs
``positions · (filters + columns)``.
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
from gpuconv.kernels.device.host import MULTIPROCESSORS, NEXT_LAUNCH, launch_time
from gpuconv.kernels.device.launch import Call, device_function, jit
from gpuconv.kernels.device.memory import ld2, ld4, st
from gpuconv.kernels.device.registers import add_outer, clear, unrolled
from gpuconv.kernels.device.words import i32, minimum, u32
from gpuconv.kernels.variant import Arguments

__all__ = ["Tiling", "calls", "estimate", "estimate_sum", "tilings", "workspace_size"]

# Of the estimate, found by least squares in an H100's times of 20 tilings and layers, which it then misses by 3 % (in
# the mean) and at most 7 % (`python -m bench.rules`). In issue slots of a warp: a 128-bit load of shared memory; an
# element that is fetched, its address and its store; a stage, of which most is the barrier.
_SHARED_LOAD, _FETCH, _STAGE = 4.2, 8.4, 78
#: Threads that a multiprocessor needs to be busy all the time.
_BUSY_THREADS = 330
#: Of the second stage: bytes a microsecond, and microseconds of a part, which matter where there are few weights.
_PARTS_BANDWIDTH, _PART = 3.6e6, 0.023
#: Positions that are worth a block.
_FEWEST_POSITIONS = 64
#: A warp's threads stand 4 high and 8 across in the block's tile: a lane's factors then serve most other lanes, too.
_WARP_ROWS, _WARP_COLUMNS = 4, 8


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How the work is cut up; a block has ``filters · columns / (thread_filters · thread_columns)`` threads.

    Attributes:
        filters, columns: rows (filters) and columns (channels times taps) of the result a block.
        thread_filters, thread_columns: the same a thread; the threads fill whole warps, 4 high and 8 across.
        positions: output positions a stage.
        parts: into how many parts the sum over all positions is cut; at most 65,535.
    """

    filters: int
    columns: int
    thread_filters: int
    thread_columns: int
    positions: int
    parts: int

    @property
    def threads(self) -> int:
        """Threads a block."""
        return self.filters * self.columns // (self.thread_filters * self.thread_columns)


#: Filters and columns of a block, and of a thread: 32 to 256 threads.
_SHAPES = (
    (128, 128, 8, 8),
    (64, 128, 8, 8),
    (128, 64, 8, 8),
    (64, 64, 8, 8),
    (64, 32, 8, 4),
    (32, 64, 4, 8),
    (32, 32, 4, 4),
    (16, 32, 4, 4),
    (8, 32, 2, 4),
)


def estimate(geometry: Conv2dGeometry, tiling: Tiling) -> float:
    """Microseconds on an H100, about: what ranks tilings, and says how many parts."""
    down, across = blocks_along(geometry, tiling.filters, tiling.columns)
    # Instructions for each multiply-add.
    loads = _SHARED_LOAD * (1 / tiling.thread_filters + 1 / tiling.thread_columns) / 4
    fetches = _FETCH * (1 / tiling.filters + 1 / tiling.columns)
    fixed = _STAGE / (tiling.positions * tiling.thread_filters * tiling.thread_columns)
    stages = -(-matrix(geometry)[2] // (tiling.parts * tiling.positions))
    adds = tiling.filters * tiling.columns * tiling.positions * stages * (1 + loads + fetches + fixed)
    blocks = -(-down * across * geometry.groups * tiling.parts // MULTIPROCESSORS)
    # Of the blocks of a multiprocessor so many run at once; a last one by itself leaves it half idle.
    held = max(1, _resident(tiling) // tiling.threads)
    busy = min(1, min(blocks, held) * tiling.threads / _BUSY_THREADS)
    found = launch_time(blocks * adds / busy)
    return found + NEXT_LAUNCH + estimate_sum(geometry, tiling.parts) if tiling.parts > 1 else found


def estimate_sum(geometry: Conv2dGeometry, parts: int) -> float:
    """Microseconds of writing so many parts and adding them up."""
    return _PART * parts + 8 * parts * math.prod(geometry.weight_shape) / _PARTS_BANDWIDTH


def tilings(geometry: Conv2dGeometry) -> tuple[Tiling, ...]:
    """By estimated time, each with the number of parts estimated to be best; last the first one with one part.

    Tiles that would be four times as slow as the first one, because they are mostly empty, are left out.
    """
    found = [_in_parts(geometry, Tiling(*shape, positions=8, parts=1)) for shape in _SHAPES]
    times = {tiling: estimate(geometry, tiling) for tiling in found}
    ranked = sorted(times, key=times.__getitem__)
    kept = [tiling for tiling in ranked if times[tiling] <= 4 * times[ranked[0]]]
    return tuple(dict.fromkeys([*kept, dataclasses.replace(kept[0], parts=1)]))


def _in_parts(geometry: Conv2dGeometry, tiling: Tiling) -> Tiling:
    """A tiling with the number of parts estimated to be best, of those that fill a part of a wave to four waves."""
    down, across = blocks_along(geometry, tiling.filters, tiling.columns)
    blocks, positions = down * across * geometry.groups, matrix(geometry)[2]
    slots = MULTIPROCESSORS * max(1, _resident(tiling) // tiling.threads)
    most = max(1, min(-(-positions // _FEWEST_POSITIONS), 65_535))
    counts = {1, *(max(1, min(waves * slots // blocks, most)) for waves in (0.25, 0.5, 1, 2, 3, 4))}
    cuts = [dataclasses.replace(tiling, parts=int(count)) for count in sorted(counts)]
    return min(cuts, key=lambda cut: estimate(geometry, cut))


def _resident(tiling: Tiling) -> int:
    """Threads that a multiprocessor holds, in float32. In smaller blocks a thread fetches more, and needs registers."""
    return 512 if tiling.threads == 256 else 384


@specialised
def _kernel(geometry: Conv2dGeometry, tiling: Tiling, dtype: str) -> Callable[..., None]:
    """The kernel for images of a geometry, whatever their number and parts: ``n`` and ``parts`` are not looked at."""
    real = getattr(types, dtype)
    vector, load = (4, ld4) if dtype == "float32" else (2, ld2)
    filters, width, _ = matrix(geometry)
    elements, plane = math.prod(geometry.weight_shape), geometry.p * geometry.q
    tile_filters, tile_columns, positions = tiling.filters, tiling.columns, tiling.positions
    thread_filters, thread_columns, threads = tiling.thread_filters, tiling.thread_columns, tiling.threads
    # A thread's elements are blocks as high and wide as one load, spread over the tile: neighbouring lanes then read
    # neighbouring words.
    row_vector, column_vector = min(vector, thread_filters), min(vector, thread_columns)
    load_rows = load if row_vector == vector else ld2
    row_blocks, column_blocks = thread_filters // row_vector, thread_columns // column_vector
    row_spread, column_spread = tile_filters // row_blocks, tile_columns // column_blocks
    warps_across = tile_columns // thread_columns // _WARP_COLUMNS
    # Four elements more than the tile, so that stores of several positions at once spread over the banks.
    filter_pitch, column_pitch = tile_filters + 4, tile_columns + 4
    # A buffer holds a stage: the gradients, then the windows.
    windows = positions * filter_pitch
    buffer_size = windows + positions * column_pitch
    both_buffers = 2 * buffer_size
    step, filter_fetches, column_fetches, table_size, tile_of, fill_table, fetch = gathering(
        geometry, tiling, positions
    )
    # In float64 the sums take twice as many registers.
    resident = _resident(tiling) if dtype == "float32" else 256
    bounds = (threads, resident // threads)

    @device_function
    def multiply(position: int, total: Any, a: Any, b: Any, stages: Any, row: Any, column: Any) -> None:
        for i in range(row_blocks):
            values = load_rows(stages, row + (position * filter_pitch + i * row_spread))
            for j in range(row_vector):
                a[i * row_vector + j] = values[j]
        for i in range(column_blocks):
            values = load(stages, column + (windows + position * column_pitch + i * column_spread))
            for j in range(column_vector):
                b[i * column_vector + j] = values[j]
        add_outer(total, a, b, 0)

    multiply_stage = unrolled(multiply, positions)

    @device_function
    def store(target: Any, offset: Any, fetched: Any, count: int) -> None:
        for i in range(count):
            st(target, offset + i * step, fetched[i])

    @jit(launch_bounds=bounds)
    def conv2d_grad_weight_implicit_gemm(grad: Any, x: Any, out: Any, size: Any, size_a_part: Any) -> None:
        stages = cuda.shared.array(both_buffers, real, alignment=16)
        total = cuda.local.array((thread_filters, thread_columns), real)
        a, b = cuda.local.array(thread_filters, real), cuda.local.array(thread_columns, real)
        fetched_grads, fetched_windows = cuda.local.array(filter_fetches, real), cuda.local.array(column_fetches, real)
        table = cuda.shared.array(table_size, types.int32, alignment=16)
        clear(total)

        group, first_filter, first_column = tile_of(u32(cuda.blockIdx.x))
        thread = u32(cuda.threadIdx.x)
        fill_table(table, thread, group, first_column)
        cuda.syncthreads()

        # What the thread fetches.
        fetch_row, fetch_position = i32(thread // positions), i32(thread % positions)
        filter_ = first_filter + fetch_row
        first_plane = (i32(group) * filters + filter_) * plane
        entry = fetch_row * 4
        # Where it stores it, and what it multiplies.
        grad_slot = fetch_position * filter_pitch + fetch_row
        window_slot = fetch_position * column_pitch + fetch_row + windows
        warp, lane = thread >> 5, thread & 31
        row = i32((warp // warps_across * _WARP_ROWS + (lane >> 3)) * row_vector)
        column = i32((warp % warps_across * _WARP_COLUMNS + (lane & 7)) * column_vector)

        part = u32(cuda.blockIdx.y)
        position = part * size_a_part
        end = minimum(position + size_a_part, size)
        position += u32(fetch_position)
        fetch(position, end, grad, x, fetched_grads, fetched_windows, first_plane, filter_, table, entry)
        store(stages, grad_slot, fetched_grads, filter_fetches)
        store(stages, window_slot, fetched_windows, column_fetches)
        cuda.syncthreads()
        buffer = i32(0)
        stage = part * size_a_part
        while stage < end:
            # With the last stage nothing is left to fetch: all predicates are off. Multiplying it outside of the loop
            # would save that, and double the code: the compiler then runs out of registers, and spills.
            position += positions
            fetch(position, end, grad, x, fetched_grads, fetched_windows, first_plane, filter_, table, entry)
            multiply_stage(total, a, b, stages, buffer + row, buffer + column)
            buffer = buffer_size - buffer
            store(stages, buffer + grad_slot, fetched_grads, filter_fetches)
            store(stages, buffer + window_slot, fetched_windows, column_fetches)
            cuda.syncthreads()
            stage += positions

        first_filter, first_column = first_filter + row, first_column + column
        offset = i32(part) * elements + (i32(group) * filters + first_filter) * width
        for i in range(thread_filters):
            i_row = i // row_vector * row_spread + i % row_vector
            if first_filter + i_row < filters:
                for j in range(thread_columns):
                    j_column = first_column + (j // column_vector * column_spread + j % column_vector)
                    if j_column < width:
                        st(out, offset + i_row * width + j_column, total[i, j])

    return conv2d_grad_weight_implicit_gemm


def calls(a: Arguments, geometry: Conv2dGeometry, tiling: Tiling) -> Iterator[Call]:
    """Partial sums, and with several parts their reduction; for an empty batch too: the gradient is zero."""
    kernel = _kernel(dataclasses.replace(geometry, n=1), dataclasses.replace(tiling, parts=1), a.dtype)
    yield from calls_of(kernel, a, geometry, tiling, tiling.positions)
