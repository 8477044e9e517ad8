"""Convolution, ReLU and max pooling twice: an image stays in shared memory from the first block to the second.

A block of threads fetches an image, the weights of the first convolution and those of its share of the second one's
filters, all at once. It computes the whole first block into shared memory, and from there its filters of the second.
Both pooled maps, and which element won each window, are written besides, because the gradients need them: of ``parts``
blocks for the same image, which all compute the first block, each writes some of its filters.

In the first block a thread computes a pooled output of ``filters`` filters, as in ``conv2d_relu_max_pool2d``. In the
second one it has one filter, and with 2 ``lanes`` half of the rows of a window, so that there is work for as many
threads; neighbours tell each other their sums. Each sum begins with the bias and goes through channels, rows and
columns in turn: all results have the bits that the two kernels give one after the other.

Shared bytes: image, first pooled maps and weights; LeNet's need 15 to 20 KB. Registers aimed at: at most 72, so that
two blocks of 416 threads share a multiprocessor. Expected bottleneck: the longest thread's instructions, and loads from
shared memory, in the second block two of 64 and one of 128 bits for seven multiply-adds.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

from numba import cuda, types

from gpuconv.geometry import BlockGeometry, BlockPairGeometry
from gpuconv.kernels.block.conv2d_relu_max_pool2d import (
    finding_largest,
    fusible,
    origin,
    patch,
    patch_access,
    patch_elements,
    patch_vector,
    single,
    steps,
)
from gpuconv.kernels.compiled import specialised
from gpuconv.kernels.device.host import MULTIPROCESSORS, Answer, Refusal
from gpuconv.kernels.device.launch import Call, call, device_function, jit
from gpuconv.kernels.device.memory import ld, ld4, ldg_if, st
from gpuconv.kernels.device.reduce import ALL_LANES
from gpuconv.kernels.device.registers import add_outer, unrolled
from gpuconv.kernels.device.words import i32, settled, u32
from gpuconv.kernels.pool.pooling import padded
from gpuconv.kernels.variant import Arguments

DTYPES = ("float32",)

#: Elements of static shared memory: 48 KB.
_SHARED_ELEMENTS = 12 * 1024
#: Inputs, sums and weights that a thread may hold, and multiply-adds that are written out for a channel.
_MOST_REGISTERS, _MOST_UNROLLED = 80, 512
#: Elements that a thread fetches at once.
_MOST_FETCHES = 40
#: Threads a block at most: these leave each other 102 registers.
_MOST_THREADS = 640
#: Threads that a multiprocessor runs at once, about, of 48 registers each.
_RESIDENT = 1280
#: Tilings that are worth a measurement.
_CHOICES = 4


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How the work is cut up.

    Attributes:
        parts: blocks an image, which share the second convolution's filters.
        filters: filters a thread in the first block.
        lanes: neighbouring threads that share the rows of a window in the second block, 1 or 2.
        threads: threads a block.
    """

    parts: int
    filters: int
    lanes: int
    threads: int


@dataclasses.dataclass(frozen=True)
class _Work:
    """One of the two blocks as a block of threads computes it.

    Attributes:
        block: its geometry.
        share: filters that are computed here, up to a multiple of ``filters``.
        filters: filters a thread.
        lanes: threads for the rows of a window.
    """

    block: BlockGeometry
    share: int
    filters: int
    lanes: int

    @property
    def units(self) -> int:
        """Pieces of work for a thread each."""
        pool = self.block.pool
        return self.lanes * pool.p * pool.q * self.share // self.filters

    @property
    def strip(self) -> BlockGeometry:
        """The block as a thread sees it, with some rows of a window."""
        conv, pool = self.block
        return BlockGeometry(conv, dataclasses.replace(pool, r=pool.r // self.lanes))

    @property
    def weights_row(self) -> int:
        """Elements of a filter's taps for a channel: whole accesses of four."""
        return -(-self.block.conv.r * self.block.conv.s // 4) * 4

    @property
    def weights(self) -> int:
        """Elements of all weights."""
        return self.share * self.block.conv.c * self.weights_row

    @property
    def extent(self) -> tuple[int, int]:
        """Rows and columns of its input that are in shared memory, zeros where that is padding."""
        (conv, pool), (down, beside), (height, width) = self.block, steps(self.block), patch(self.block)
        (above, before), vector = origin(self.block), patch_vector(self.block)
        rows, columns = (pool.p - 1) * down + height, (pool.q - 1) * beside + -(-width // vector) * vector
        return max(rows, above + conv.h), max(columns, before + conv.w)

    @property
    def pitch(self) -> int:
        """Elements from one row of its input in shared memory to the next."""
        vector = patch_vector(self.block)
        return -(-self.extent[1] // vector) * vector

    @property
    def plane(self) -> int:
        """Elements from one channel of its input in shared memory to the next."""
        return self.extent[0] * self.pitch

    @property
    def inputs(self) -> int:
        """Elements of its input in shared memory."""
        return self.block.conv.c * self.plane

    @property
    def held(self) -> int:
        """Inputs, sums and weights that a thread holds."""
        pool = self.strip.pool
        return patch_elements(self.strip) + (pool.r * pool.s + 4) * self.filters

    @property
    def adds(self) -> int:
        """Multiply-adds of a thread for a channel."""
        conv, pool = self.strip
        return conv.r * conv.s * pool.r * pool.s * self.filters

    def instructions(self, threads: int) -> int:
        """About as many as a thread executes, of so many."""
        conv = self.block.conv
        loads = patch_elements(self.strip) // patch_vector(self.block) + self.filters * self.weights_row // 4
        judged = 5 * self.filters * self.block.pool.r * self.block.pool.s
        return -(-self.units // threads) * (conv.c * (self.adds + loads) + judged + 25)


def _works(geometry: BlockPairGeometry, parts: int, filters: int, lanes: int) -> tuple[_Work, _Work]:
    first, second = geometry
    whole = -(-first.conv.k // filters) * filters
    return _Work(first, whole, filters, 1), _Work(second, -(-second.conv.k // parts), 1, lanes)


def _shared(works: tuple[_Work, _Work]) -> int:
    return sum(work.inputs + work.weights + work.share for work in works)


def _fetches(works: tuple[_Work, _Work], threads: int) -> int:
    """Elements that a thread fetches: of the image, of both weights, and of both biases."""
    first = works[0]
    sizes = first.block.conv.c * math.prod(first.extent), *(work.weights for work in works)
    return sum(-(-size // threads) for size in (*sizes, *(work.share for work in works)))


def supports(geometry: BlockPairGeometry) -> Answer:
    """True for blocks of which an image, the first results and all weights fit into shared memory, windows small."""
    for block in geometry:
        if not (answer := fusible(block)):
            return answer
    first, second = geometry
    if first.pool.output_shape != second.conv.input_shape:
        return Refusal(f"results {first.pool.output_shape} are not inputs {second.conv.input_shape}")
    if not _choices(BlockPairGeometry(single(first), single(second))):
        return Refusal(
            "an image, its pooled maps and the weights do not fit into shared memory, windows are large, or too few"
        )
    return True


@functools.cache
def _choices(geometry: BlockPairGeometry) -> tuple[Tiling, ...]:
    found = []
    first, second = geometry
    for parts in (1, 2, 4):
        if parts > second.conv.k:
            continue
        for filters in range(1, min(4, first.conv.k) + 1):
            for lanes in (1, 2):
                if second.pool.r % lanes:
                    continue
                works = _works(geometry, parts, filters, lanes)
                if _shared(works) > _SHARED_ELEMENTS or any(
                    work.held > _MOST_REGISTERS or work.adds > _MOST_UNROLLED for work in works
                ):
                    continue
                # As many threads as both blocks have work for, or one of them: the other then takes several turns.
                for units in {work.units for work in works}:
                    turns = -(-units // _MOST_THREADS)
                    threads = -(-units // (32 * turns)) * 32
                    if _fetches(works, threads) <= _MOST_FETCHES:
                        found.append(Tiling(parts, filters, lanes, threads))
    return tuple(dict.fromkeys(found))


def _cost(geometry: BlockPairGeometry, tiling: Tiling) -> tuple[float, int]:
    """Estimated cycles, and threads: five for each instruction of a thread, or one for each of a scheduler's warps.

    Whichever takes longer; and of what a scheduler issues a share besides, as warps wait for one another.
    """
    works = _works(geometry, tiling.parts, tiling.filters, tiling.lanes)
    instructions = sum(work.instructions(tiling.threads) for work in works) + 15 * _fetches(works, tiling.threads)
    blocks = -(-geometry.first.conv.n * tiling.parts // MULTIPROCESSORS)
    warps = blocks / 32 / 4
    issued = warps * sum(work.instructions(tiling.threads) * min(work.units, tiling.threads) for work in works)
    return max(5 * instructions * -(-blocks * tiling.threads // _RESIDENT), issued) + issued / 4, tiling.threads


@functools.cache
def tilings(geometry: BlockPairGeometry) -> tuple[Tiling, ...]:
    """The four that are estimated to be fastest."""
    choices = _choices(BlockPairGeometry(*map(single, geometry)))
    return tuple(sorted(choices, key=lambda tiling: _cost(geometry, tiling))[:_CHOICES])


def _fetching(count: int, threads: int, before: int, fetch: Any, keep: Any) -> tuple[Any, Any, int]:
    """``load(thread, found, *source)`` and ``store(thread, found, to)`` for ``count`` elements, and how many fit.

    What ``fetch(i, *source)`` gives waits in the local array ``found`` from ``before`` on until ``keep(i, to, value)``:
    so loads of other arrays can be under way at the same time.
    """
    rounds = -(-count // threads)

    @device_function
    def load(number: int, thread: Any, found: Any, *source: Any) -> None:
        found[before + number] = fetch(thread + number * threads, *source)

    @device_function
    def store(number: int, thread: Any, found: Any, to: Any) -> None:
        i = thread + number * threads
        if i < count:
            keep(i, to, found[before + number])

    return unrolled(load, rounds), unrolled(store, rounds), before + rounds


@device_function
def _keep_in_order(i: Any, to: Any, value: Any) -> None:
    st(to, i, value)


def _fetching_weights(work: _Work, threads: int, before: int) -> tuple[Any, Any, int]:
    """A filter's taps for a channel, up to a multiple of four: ``source`` is the weight, and the first filter."""
    conv, row = work.block.conv, work.weights_row
    channels, taps, filters = conv.c, conv.r * conv.s, conv.k

    @device_function
    def fetch(i: Any, weight: Any, first_filter: Any) -> Any:
        line, tap = divmod(i, row)
        line += first_filter * channels
        return ldg_if(weight, line * taps + tap, (tap < taps) & (line < filters * channels))

    return _fetching(work.weights, threads, before, fetch, _keep_in_order)


def _fetching_bias(work: _Work, threads: int, before: int) -> tuple[Any, Any, int]:
    filters = work.block.conv.k

    @device_function
    def fetch(i: Any, bias: Any, first_filter: Any) -> Any:
        return ldg_if(bias, first_filter + i, first_filter + i < filters)

    return _fetching(work.share, threads, before, fetch, _keep_in_order)


def _fetching_image(work: _Work, threads: int, before: int) -> tuple[Any, Any, int]:
    """What the windows see of an image: ``source`` is the images, and the number of one."""
    (rows, columns), (above, left), pitch, plane = work.extent, origin(work.block), work.pitch, work.plane
    c, h, w = (getattr(work.block.conv, name) for name in "chw")

    @device_function
    def fetch(i: Any, x: Any, image: Any) -> Any:
        line, column = divmod(i, columns)
        channel, row = divmod(line, rows)
        # Unsigned: what lies above or left of the image is a huge row or column.
        row, column = row - above, column - left
        inside = (channel < c) & (row < h) & (column < w)
        return ldg_if(x, ((image * c + channel) * h + row) * w + column, inside)

    @device_function
    def keep(i: Any, to: Any, value: Any) -> None:
        line, column = divmod(i, columns)
        channel, row = divmod(line, rows)
        st(to, channel * plane + row * pitch + column, value)

    return _fetching(c * rows * columns, threads, before, fetch, keep)


def _computing(work: _Work, threads: int, dtype: str, has_bias: bool, put: Any) -> Any:
    """A device function ``compute(thread, tile, weights, biases, *arguments)`` for one of the two blocks.

    It calls ``put(filter, row, column, value, winner, *arguments)`` for each of its results.
    """
    real = getattr(types, dtype)
    (conv, pool), strip, filters, lanes = work.block, work.strip, work.filters, work.lanes
    window, whole, taps, channels = strip.pool.r * pool.s, pool.r * pool.s, conv.r * conv.s, conv.c
    s, q, groups, units = conv.s, pool.q, work.share // filters, work.units
    (down, beside), pitch, plane, weights_row = steps(work.block), work.pitch, work.plane, work.weights_row
    lane_step = strip.pool.r * pool.dilation[0] * conv.stride[0] * pitch
    (stride_h, stride_w), (top, left) = pool.stride, (sides[0] for sides in pool.padding)
    patch_size, four, guarded, lowest = patch_elements(strip), 4 * filters, padded(pool), float("-inf")
    load_patch, gather = patch_access(strip, pitch, dtype)
    judge_all = finding_largest(work.block)

    @device_function
    def load_weights(f: int, b: Any, weights: Any, at: Any) -> None:
        found = ld4(weights, at + f * channels * weights_row)
        for j in range(4):
            b[j * filters + f] = found[j]

    load_all = unrolled(load_weights, filters)

    @device_function
    def add_tap(tap: int, total: Any, inputs: Any, a: Any, b: Any, weights: Any, at: Any) -> None:
        if tap % 4 == 0:
            load_all(b, weights, at + tap)
        gather(tap // s, tap % s, a, inputs)
        add_outer(total, a, b, tap % 4 * filters)

    add_taps = unrolled(add_tap, taps)

    @device_function
    def join(i: int, f: int, sums: Any, total: Any, lane: Any) -> None:
        other = cuda.shfl_xor_sync(ALL_LANES, total[i, f], 1)
        sums[i, f] = other if lane == 1 else total[i, f]
        sums[window + i, f] = total[i, f] if lane == 1 else other

    join_all = unrolled(join, window)

    @device_function
    def finish(
        f: int, total: Any, best: Any, winner: Any, filter_: Any, row: Any, column: Any, mine: Any, *arguments: Any
    ) -> None:
        best[0], winner[0] = real(lowest), types.int32(-1 if guarded else 0)
        judge_all(f, total, best, winner, row * stride_h - top, column * stride_w - left)
        if mine:
            # Written so that a NaN stays.
            value = real(0) if best[0] <= real(0) else best[0]
            put(filter_ + f, row, column, value, types.uint8(winner[0]), *arguments)

    finish_all = unrolled(finish, filters)

    @device_function
    def compute(thread: Any, tile: Any, weights: Any, biases: Any, *arguments: Any) -> None:
        total, sums = cuda.local.array((window, filters), real), cuda.local.array((whole, filters), real)
        inputs = cuda.local.array(patch_size, real)
        a, b = cuda.local.array(window, real), cuda.local.array(four, real)
        best, winner = cuda.local.array(1, real), cuda.local.array(1, types.int32)
        unit = thread
        # Lanes that share a window go through the loop with all of their warp: those without work do another's.
        while (unit if lanes == 1 else unit - unit % 32) < units:
            here = unit if lanes == 1 or unit < units else unit % lanes
            rest, lane = divmod(here, lanes)
            position, group = divmod(rest, groups)
            row, column = divmod(position, q)
            filter_ = group * filters
            for f in range(filters):
                start = ld(biases, filter_ + f) if has_bias else real(0)
                for i in range(window):
                    total[i, f] = start
            patch_at = settled(i32(lane * lane_step + row * (down * pitch) + column * beside))
            weights_at = settled(i32(filter_ * (channels * weights_row)))
            end = patch_at + channels * plane
            while patch_at < end:
                load_patch(inputs, tile, patch_at)
                add_taps(total, inputs, a, b, weights, weights_at)
                patch_at += plane
                weights_at += weights_row
            if lanes == 1:
                finish_all(total, best, winner, filter_, row, column, True, *arguments)
            else:
                join_all(0, sums, total, lane)
                finish_all(sums, best, winner, filter_, row, column, (lane == 0) & (unit < units), *arguments)
            unit += threads

    return compute


@specialised
def _kernel(
    geometry: BlockPairGeometry, tiling: Tiling, dtype: str, has_bias: tuple[bool, bool]
) -> Callable[..., None]:
    """The kernel for images of a geometry, whatever their number."""
    real = getattr(types, dtype)
    parts, threads = tiling.parts, tiling.threads
    first, second = works = _works(geometry, parts, tiling.filters, tiling.lanes)
    share, filters = second.share, geometry.second.conv.k
    maps, rows, columns = geometry.first.pool.output_shape[1:]
    last_rows, last_columns = geometry.second.pool.output_shape[2:]
    (above, before), pitch, plane = origin(geometry.second), second.pitch, second.plane
    image_size, maps_size = first.inputs, second.inputs
    (weights_size, biases_size), (more_weights, more_biases) = ((work.weights, work.share) for work in works)
    has_first, has_second = has_bias
    exact, even = first.share == maps, share * parts == filters
    # Beside the first block's results there is what the second one sees of padding, or loads without need.
    framed = second.extent != (rows, columns)

    fetch_image, keep_image, count = _fetching_image(first, threads, 0)
    fetch_first, keep_first, count = _fetching_weights(first, threads, count)
    fetch_second, keep_second, count = _fetching_weights(second, threads, count)
    fetch_bias, keep_bias, count = _fetching_bias(first, threads, count)
    fetch_more, keep_more, count = _fetching_bias(second, threads, count)

    @device_function
    def put_first(
        filter_: Any, row: Any, column: Any, value: Any, winner: Any, between: Any, out: Any, winners: Any, image: Any,
        part: Any,
    ) -> None:  # fmt: skip
        if exact or filter_ < maps:
            st(between, filter_ * plane + (row + above) * pitch + (column + before), value)
            if filter_ % parts == part:
                offset = ((image * maps + filter_) * rows + row) * columns + column
                st(out, offset, value)
                st(winners, offset, winner)

    @device_function
    def put_second(
        filter_: Any, row: Any, column: Any, value: Any, winner: Any, out: Any, winners: Any, image: Any, part: Any
    ) -> None:
        filter_ += part * share
        if even or filter_ < filters:
            offset = ((image * filters + filter_) * last_rows + row) * last_columns + column
            st(out, offset, value)
            st(winners, offset, winner)

    compute_first = _computing(first, threads, dtype, has_first, put_first)
    compute_second = _computing(second, threads, dtype, has_second, put_second)

    @jit(launch_bounds=threads)
    def conv2d_relu_max_pool2d_pair(x: Any, weights: Any, biases: Any, outs: Any, winners: Any) -> None:
        tile = cuda.shared.array(image_size, real, alignment=16)
        between = cuda.shared.array(maps_size, real, alignment=16)
        first_weights = cuda.shared.array(weights_size, real, alignment=16)
        second_weights = cuda.shared.array(more_weights, real, alignment=16)
        first_bias, second_bias = cuda.shared.array(biases_size, real), cuda.shared.array(more_biases, real)
        found = cuda.local.array(count, real)
        thread = u32(cuda.threadIdx.x)
        image, part = divmod(u32(cuda.blockIdx.x), parts)
        fetch_image(thread, found, x, image)
        fetch_first(thread, found, weights[0], u32(0))
        fetch_second(thread, found, weights[1], part * share)
        if has_first:
            fetch_bias(thread, found, biases[0], u32(0))
        if has_second:
            fetch_more(thread, found, biases[1], part * share)
        if framed:
            i = thread
            while i < maps_size:
                st(between, i, real(0))
                i += threads
        keep_image(thread, found, tile)
        keep_first(thread, found, first_weights)
        keep_second(thread, found, second_weights)
        if has_first:
            keep_bias(thread, found, first_bias)
        if has_second:
            keep_more(thread, found, second_bias)
        cuda.syncthreads()
        compute_first(thread, tile, first_weights, first_bias, between, outs[0], winners[0], image, part)
        cuda.syncthreads()
        compute_second(thread, between, second_weights, second_bias, outs[1], winners[1], image, part)

    return conv2d_relu_max_pool2d_pair


def calls(a: Arguments, geometry: BlockPairGeometry, tiling: Tiling) -> Iterator[Call]:
    """One launch, ``parts`` blocks an image."""
    kernel = _kernel(BlockPairGeometry(*map(single, geometry)), tiling, a.dtype, a.has("biases"))
    blocks = geometry.first.conv.n * tiling.parts
    yield call(kernel, blocks, tiling.threads, a.x, a.weights, a.biases, a.outs, a.winners)
