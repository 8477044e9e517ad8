"""Depthwise convolution, one channel a filter: a halo tile of each channel in shared memory.

A block computes tiles of ``rows x columns`` outputs of ``planes`` channels; where maps are small, those of several
images may be among them. It fetches the tiles with their halos, 128 bits at a time where rows of the input begin at
multiples of that. A thread computes ``thread_rows`` rows of 4 neighbouring outputs, for one filter of its channel after
the other: all its multiply-adds are unrolled; it reads a row of inputs as one segment, 128 bits at a time, and keeps it
for the rows of outputs that share it. Weights come through the read-only cache, as broadcasts.

Shared bytes (float32): ``4 · planes · halo rows · halo columns``, at most 24 KB. Registers aimed at: at most 64 for a
3x3 window with one filter a channel, so that a multiprocessor holds 1024 threads.

Expected bottleneck: memory. Halos are read more than once, mostly from the L2 cache; a tile of 32x64 outputs with a 3x3
window reads an eighth more than its input. The output is written once, 128 bits at a time where its rows allow.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

from numba import cuda, types

from gpuconv.geometry import Conv2dGeometry
from gpuconv.kernels.compiled import specialised
from gpuconv.kernels.conv.windows import window_fits
from gpuconv.kernels.device.host import (
    MULTIPROCESSORS,
    SHARED_ELEMENTS,
    Answer,
    Refusal,
    bank_conflicts,
    fitted,
    widest_access,
)
from gpuconv.kernels.device.launch import Call, call, device_function, jit
from gpuconv.kernels.device.memory import ldg, ldg2_if, ldg4_if, ldg_if, st, st2, st4
from gpuconv.kernels.device.registers import clear, fma, loading, unrolled, vector_access
from gpuconv.kernels.device.words import i32, u32
from gpuconv.kernels.variant import Arguments

#: Outputs that a thread has beside each other.
_THREAD_COLUMNS = 4
#: Multiply-adds of a thread, for a filter; all are unrolled.
_MOST_ADDS = 1024


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How the work is cut up; a block has ``planes · rows · columns / (4 · thread_rows)`` threads.

    Attributes:
        planes: channels a block.
        rows, columns: outputs of each of their filters.
        thread_rows: rows a thread, of 4 columns.
    """

    planes: int
    rows: int
    columns: int
    thread_rows: int

    @property
    def threads(self) -> int:
        """Threads a block."""
        return self.planes * self.rows * self.columns // (self.thread_rows * _THREAD_COLUMNS)


#: At most; tiles shrink to divide the output.
_SHAPES = (
    Tiling(1, 32, 64, 4),
    Tiling(1, 64, 32, 4),
    Tiling(1, 32, 32, 4),
    Tiling(1, 16, 64, 2),
    Tiling(2, 16, 32, 2),
    Tiling(4, 16, 16, 2),
    Tiling(4, 16, 16, 4),
    Tiling(8, 8, 16, 2),
    Tiling(4, 8, 16, 1),
    Tiling(8, 8, 8, 1),
    Tiling(16, 8, 8, 2),
    Tiling(2, 4, 64, 1),
    Tiling(8, 1, 64, 1),
    Tiling(1, 1, 512, 1),
)


def _shift(geometry: Conv2dGeometry, vector: int) -> int:
    """By how many elements a tile begins after a multiple of ``vector``, columns of tiles being multiples of 4."""
    return -geometry.padding[1][0] % vector


def _segment(geometry: Conv2dGeometry, vector: int) -> int:
    """Inputs that a thread reads of a row, in whole 128-bit loads of float32."""
    reach = (_THREAD_COLUMNS - 1) * geometry.stride[1] + (geometry.s - 1) * geometry.dilation[1]
    return -(-(_shift(geometry, vector) + reach + 1) // 4) * 4


def _halo(geometry: Conv2dGeometry, tiling: Tiling) -> tuple[int, int]:
    """Rows and columns of an input tile."""
    height = (tiling.rows - 1) * geometry.stride[0] + (geometry.r - 1) * geometry.dilation[0] + 1
    return height, (tiling.columns - _THREAD_COLUMNS) * geometry.stride[1] + _segment(geometry, 4)


@functools.cache
def _pitch(geometry: Conv2dGeometry, tiling: Tiling) -> int:
    """Elements from one row of an input tile to the next: the fewest of those with the fewest bank conflicts."""
    height, width = _halo(geometry, tiling)
    across, down = tiling.columns // _THREAD_COLUMNS, tiling.rows // tiling.thread_rows
    lanes = [(*divmod(thread // across, down), thread % across) for thread in range(tiling.threads)]
    right, below = _THREAD_COLUMNS * geometry.stride[1], tiling.thread_rows * geometry.stride[0]

    def conflicts(pitch: int) -> int:
        return bank_conflicts((plane * height + row * below) * pitch + column * right for plane, row, column in lanes)

    return min(range(width, width + 32, 4), key=conflicts)


@functools.cache
def _choices(geometry: Conv2dGeometry) -> tuple[Tiling, ...]:
    found = []
    for shape in _SHAPES:
        rows = fitted(geometry.p, shape.rows, shape.thread_rows)
        columns = fitted(geometry.q, shape.columns, _THREAD_COLUMNS)
        tiling = Tiling(shape.planes, rows, columns, shape.thread_rows)
        adds = shape.thread_rows * _THREAD_COLUMNS * geometry.r * geometry.s
        small = tiling.planes * _halo(geometry, tiling)[0] * _pitch(geometry, tiling) <= SHARED_ELEMENTS
        if small and adds <= _MOST_ADDS:
            found.append(tiling)
    return tuple(dict.fromkeys(found))


def supports(geometry: Conv2dGeometry) -> Answer:
    """True if each filter sees one channel, for all but long or large windows."""
    if geometry.groups != geometry.c:
        seen = geometry.c // geometry.groups
        return Refusal(f"a filter sees {seen} channels: depthwise means as many groups as channels")
    choices = _choices(dataclasses.replace(geometry, n=1))
    return window_fits(geometry, _segment(geometry, 4), choices, "too large for shared memory, or to be unrolled")


def _cost(geometry: Conv2dGeometry, tiling: Tiling) -> float:
    """Estimated time, in cycles of a large GPU's multiprocessor."""
    multiplier = geometry.k // geometry.c
    blocks = -(-geometry.n * geometry.c // tiling.planes)
    blocks *= -(-geometry.p // tiling.rows) * -(-geometry.q // tiling.columns)
    threads = -(-tiling.threads // 32) * 32
    height, width = _halo(geometry, tiling)
    # At 20 bytes a cycle, and 128 instructions; 12 to fetch and store a vector.
    memory = tiling.planes * (height * width + multiplier * tiling.rows * tiling.columns) / 5
    lines = (tiling.thread_rows - 1) * geometry.stride[0] + geometry.r
    adds = tiling.thread_rows * _THREAD_COLUMNS * geometry.r * geometry.s
    instructions = threads * multiplier * (adds + lines * _segment(geometry, 4) // 4 + 40)
    instructions += 3 * tiling.planes * height * width
    blocks = max(1, -(-blocks // MULTIPROCESSORS))
    # It takes many loads under way, and so threads, to keep the memory busy.
    return blocks * max(memory, instructions / 128) / min(1, blocks * threads / 1024)


def tilings(geometry: Conv2dGeometry) -> tuple[Tiling, ...]:
    """The tilings that fit into shared memory, shrunk to divide the output; those estimated to be fast first."""
    return tuple(sorted(_choices(dataclasses.replace(geometry, n=1)), key=lambda tiling: _cost(geometry, tiling)))


@specialised
def _kernel(
    geometry: Conv2dGeometry, tiling: Tiling, dtype: str, has_bias: bool, aligned16: bool
) -> Callable[..., None]:
    """The kernel for images of a geometry, whatever their number: ``geometry.n`` is not looked at.

    ``aligned16``: the arrays begin at multiples of 128 bits, and their rows may, too.
    """
    real = getattr(types, dtype)
    c, h, w, k, r, s, p, q = (getattr(geometry, name) for name in "chwkrspq")
    (stride_h, stride_w), (dilation_h, dilation_w) = geometry.stride, geometry.dilation
    top, left = geometry.padding[0][0], geometry.padding[1][0]
    multiplier, taps = k // c, r * s
    threads, block_planes, thread_rows = tiling.threads, tiling.planes, tiling.thread_rows
    tile_rows, tile_columns, thread_columns = tiling.rows, tiling.columns, _THREAD_COLUMNS
    across, strips = tile_columns // thread_columns, tile_rows // thread_rows
    down, beside = -(-p // tile_rows), -(-q // tile_columns)
    (height, width), pitch = _halo(geometry, tiling), _pitch(geometry, tiling)
    inputs_size = block_planes * height * pitch

    fetch_vector, out_vector = (widest_access(w, dtype), widest_access(q, dtype)) if aligned16 else (1, 1)
    shift = _shift(geometry, fetch_vector)
    segment_length = _segment(geometry, fetch_vector)
    load_segment = loading(segment_length, 4 if dtype == "float32" else 2)
    before, vectors = left + shift, width // fetch_vector
    staged = block_planes * height * vectors
    store = vector_access(out_vector)[2]
    # With 16 sums a thread, the assembler would rather spill than give up a block, unless it is told that one will do.
    # With fewer nothing is spilled, and more blocks hide more of the memory's latency.
    bounds = (threads, 1) if thread_rows * thread_columns >= 16 else threads

    @device_function
    def add_taps(step: int, total: Any, segment: Any, inputs: Any, weight: Any, input_at: Any, weight_at: Any) -> None:
        # One row of taps after the other, so that few weights are held at a time. That an input row was read before,
        # for another row of outputs, the compiler sees by itself.
        tap_row, i = step // thread_rows, step % thread_rows
        load_segment(segment, inputs, input_at + (i * stride_h + tap_row * dilation_h) * pitch)
        for tap in range(s):
            factor = ldg(weight, weight_at + (tap_row * s + tap))
            for j in range(thread_columns):
                total[i, j] = fma(segment[shift + j * stride_w + tap * dilation_w], factor, total[i, j])

    add_window = unrolled(add_taps, r * thread_rows)

    @jit(launch_bounds=bounds)
    def conv2d_depthwise(x: Any, weight: Any, bias: Any, out: Any, planes: Any) -> None:
        inputs = cuda.shared.array(inputs_size, real, alignment=16)
        total = cuda.local.array((thread_rows, thread_columns), real)
        segment = cuda.local.array(segment_length, real)
        values = cuda.local.array(out_vector, real)

        thread, block = u32(cuda.threadIdx.x), u32(cuda.blockIdx.x)
        rest = block // beside
        first_column = block % beside * tile_columns
        block = rest // down
        first_row = rest % down * tile_rows
        first_plane = block * block_planes

        # Unsigned: what lies above or left of the image is a huge row or column.
        top_row = first_row * stride_h - top
        left_column = first_column * stride_w - before
        i = thread
        while i < staged:
            line = i // vectors
            column = i % vectors * fetch_vector
            plane = line // height
            input_row, input_column = top_row + line % height, left_column + column
            plane += first_plane
            inside = (input_row < h) & (input_column < w) & (plane < u32(planes))
            offset = (plane * h + input_row) * w + input_column
            at = line * pitch + column
            if fetch_vector == 1:
                st(inputs, at, ldg_if(x, offset, inside))
            elif fetch_vector == 2:
                st2(inputs, at, ldg2_if(x, offset, inside))
            else:
                st4(inputs, at, ldg4_if(x, offset, inside))
            i += threads
        cuda.syncthreads()

        strip = thread // across
        column = thread % across * thread_columns
        plane = strip // strips
        row = strip % strips * thread_rows
        input_line = plane * height + row * stride_h
        input_at = i32(input_line * pitch + column * stride_w)
        plane += first_plane
        row, column = first_row + row, first_column + column
        if (plane < u32(planes)) & (column < q):
            map_, filter_ = plane * multiplier, plane % c * multiplier
            for _ in range(multiplier):
                start = ldg(bias, filter_) if has_bias else real(0)
                clear(total)
                add_window(total, segment, inputs, weight, input_at, filter_ * taps)
                offset = (map_ * p + row) * q + column
                for i in range(thread_rows):
                    if row + i < p:
                        for j in range(0, thread_columns, out_vector):
                            if column + j < q:
                                for e in range(out_vector):
                                    values[e] = total[i, j + e] + start
                                store(values, out, offset + (i * q + j))
                map_, filter_ = map_ + 1, filter_ + 1

    return conv2d_depthwise


def calls(a: Arguments, geometry: Conv2dGeometry, tiling: Tiling) -> Iterator[Call]:
    """One launch, a block for each tile of some planes."""
    kernel = _kernel(dataclasses.replace(geometry, n=1), tiling, a.dtype, a.has("bias"), a.aligned("x", "out"))
    planes = geometry.n * geometry.c
    blocks = -(-planes // tiling.planes) * -(-geometry.p // tiling.rows) * -(-geometry.q // tiling.columns)
    yield call(kernel, blocks, tiling.threads, a.x, a.weight, a.bias, a.out, planes)
