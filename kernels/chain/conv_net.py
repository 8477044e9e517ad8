"""Experiment: a whole convolutional network in one launch, a thread block for each image.

The network is blocks of convolution, bias, ReLU and max pooling, then fully connected layers: LeNet, for one. A thread
block takes an image through all of it. The maps wait in shared memory for the next layer, and only the last layer's
results are written. Nothing is kept for a backward pass: this is for inference, of one image with the least delay, or
of so many that each has a multiprocessor to itself.

Each stage uses all threads of the block:

1. The image and the weights of all filters are fetched, all loads of a thread under way at once. A filter is read by
   several warps, so it waits in shared memory, its taps in whole 128 bits.
2. In a block, a thread computes one pooled output of some filters, its patch and sums in registers, as in
   ``conv2d_relu_max_pool2d``, from which this is taken. Four taps of a filter are one load, which all lanes share.
3. In a fully connected layer, a few neighbouring lanes compute one result. With a single row no weight is used twice:
   so there are as many results at a time as there are lanes for, and 128 bits of weights a load. (``linear_chain`` has
   a warp compute several results of several rows instead, and reads a weight once for all rows.)

**The floor** for an image of LeNet, on a multiprocessor that makes 128 multiply-adds and receives about 64 bytes from
the second-level cache in a cycle: 416,520 multiply-adds take 3,254 cycles, 246,824 bytes of weights 3,857. One after
the other that is 7,100, with the second-level cache's latency, some hundred cycles, for each stage; both at the same
time, 3,857. The first fully connected layer has 78 % of the weights, and the convolutions 86 % of the arithmetic; so
the weights have to come while the convolutions are computed, and wait somewhere. Registers are the largest place that a
multiprocessor has, 256 KB, and half of them are free meanwhile: each thread fetches ``ahead`` pieces of its weights of
the first layer before the first block is computed, and keeps them. With 512 threads and 16 pieces these are 123 of
192 KB. Likewise each layer's first weights are under way before the layer before it is computed. All warps together
execute 27,902 instructions (``python -m bench.static --op conv_net --executed``), 6,976 cycles of four schedulers: of
what is not a multiply-add, most are loads of patches and filters from shared memory.

One image on one multiprocessor leaves all others idle. Three kernels, one for each block and one for the layers,
spread the work over many of them, and pay with two more launches, and with maps that go through the second-level cache.
Which is faster, only a GPU can tell; so nothing chooses this kernel by itself.

Shared bytes (float32): the two largest of the maps that follow each other, and all filters; LeNet takes 24,800, and at
most 48 KB are taken. Registers aimed at: all that the threads of a block leave each other, 128 with 512 threads, and
about 45 where nothing is fetched ahead. Expected bottleneck for one image: see above; for hundreds, multiply-adds.

Refused: groups; windows whose patch and sums do not fit into registers; maps and filters that do not fit into shared
memory, which in float64 are fewer; more blocks or layers than 8. Asked for by name, it is then an error.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numba import cuda, types

from gpuconv.geometry import BlockGeometry, NetGeometry
from gpuconv.kernels.block.conv2d_relu_max_pool2d import (
    finding_largest,
    origin,
    patch,
    patch_access,
    patch_elements,
    patch_vector,
    quiet_pitch,
    single,
    steps,
)
from gpuconv.kernels.chain.linear_chain import MOST_LAYERS, fits_chain, flat
from gpuconv.kernels.compiled import specialised
from gpuconv.kernels.device import (
    Answer,
    Launch,
    Refusal,
    add_outer,
    aligned,
    array_type,
    device_function,
    fits_offsets,
    fma,
    i32,
    jit,
    ld,
    ldg2_early,
    ldg4_early,
    ldg_early,
    ldg_if,
    minimum,
    reduction,
    st,
    u32,
    unrolled,
    vector_access,
    widest_access,
)

#: Bytes of shared memory a block that need no permission of the driver.
_SHARED_BYTES = 48 * 1024
#: Inputs and sums that a thread may hold; in float64, where they take twice as many registers, some may be spilled.
_MOST_REGISTERS = 80
#: Registers of a multiprocessor; and what a thread needs for indices, weights and inputs of the instructions under way.
_REGISTERS, _OTHER_REGISTERS = 64 * 1024, 20
#: Multiply-adds that are written out for a channel.
_MOST_UNROLLED = 2048
#: Loads of a thread that are under way at once, where nothing else decides.
_BATCH = 8


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How the work is cut up.

    Attributes:
        threads: threads a block, a multiple of 32.
        ahead: loads of its weights that each thread makes before what comes before a fully connected layer is computed;
            fewer where there are not as many, or not enough registers.
    """

    threads: int
    ahead: int


# -- sizes -------------------------------------------------------------------------------------------------------------


def _thread_filters(block: BlockGeometry, threads: int) -> int:
    """Filters a thread: of those that divide all filters and leave enough registers, the ones estimated as fastest.

    0 if even one filter's patch and sums do not fit.
    """
    conv, pool = block
    taps, window, loads = conv.r * conv.s, pool.r * pool.s, patch_elements(block) // patch_vector(block)

    def cost(filters: int) -> float:
        """In instructions of a scheduler, of which there are four."""
        warps = -(-pool.p * pool.q * (conv.k // filters) // 32)
        item = conv.c * (filters * (taps * window + -(-taps // 4)) + loads)
        # Two warps keep a scheduler busy.
        return -(-warps // 4) * item / min(1.0, min(warps, threads // 32) / 8)

    room = min((_MOST_REGISTERS - patch_elements(block)) // window, _MOST_UNROLLED // (window * taps))
    fitting = [filters for filters in range(1, min(conv.k, room) + 1) if conv.k % filters == 0]
    return min(fitting, key=cost, default=0)


def _tap_pitch(block: BlockGeometry) -> int:
    """Elements from one filter's channel to the next: whole accesses."""
    return -(-block.conv.r * block.conv.s // 4) * 4


@functools.cache
def _tile(block: BlockGeometry, dtype: str) -> tuple[int, int, int]:
    """Of what a block reads: rows and columns, those of padding included, and elements from one row to the next."""
    conv, pool = block
    (down, beside), (height, width), (above, before) = steps(block), patch(block), origin(block)
    vector = patch_vector(block)
    rows = max((pool.p - 1) * down + height, above + conv.h)
    columns = max((pool.q - 1) * beside + -(-width // vector) * vector, before + conv.w)
    columns = -(-columns // vector) * vector
    # In float64, which is there to check by, twice the size has to fit: without gaps against bank conflicts.
    return rows, columns, quiet_pitch(block, pool.p, pool.q, columns) if dtype == "float32" else columns


def _stages(geometry: NetGeometry, dtype: str) -> list[int]:
    """Elements of shared memory that each block and layer reads."""
    tiles = ((block.conv.c, *_tile(block, dtype)) for block in geometry.blocks)
    return [*(channels * rows * pitch for channels, rows, _, pitch in tiles), *geometry.chain.sizes[:-1]]


def _filters(block: BlockGeometry) -> tuple[int, int]:
    """Elements of shared memory that the weights of a block's filters take, and these and the biases together."""
    weights = block.conv.k * block.conv.c * _tap_pitch(block)
    return weights, weights + -(-block.conv.k // 4) * 4


def _buffers(geometry: NetGeometry, dtype: str) -> tuple[int, int, int]:
    """Elements of the two buffers that the stages use in turns, and of all filters."""
    stages = _stages(geometry, dtype)
    filters = sum(_filters(block)[1] for block in geometry.blocks)
    # Whole accesses, so that what lies behind is aligned.
    first, second = (-(-max(stages[turn::2]) // 4) * 4 for turn in (0, 1))
    return first, second, filters


def supports(geometry: NetGeometry) -> Answer:
    """True for a network of small maps, in float32: see the module's docstring for what is refused."""
    blocks, chain = geometry
    if not blocks:
        return Refusal("there is no convolution in front of the fully connected layers")
    if len(blocks) > MOST_LAYERS:
        return Refusal(f"{len(blocks)} convolutions are more than the {MOST_LAYERS} that a launch takes")
    if not (answer := fits_chain(chain)):
        return answer
    if not (answer := fits_offsets(input=math.prod(blocks[0].conv.input_shape))):
        return answer
    for number, block in enumerate(blocks, 1):
        conv, pool = block
        if conv.groups > 1:
            return Refusal(f"convolution {number} has {conv.groups} groups")
        if not _thread_filters(single(block), 512):
            height, width = patch(block)
            return Refusal(
                f"convolution {number}: a {pool.r}x{pool.s} pooling of a {conv.r}x{conv.s} convolution sees "
                f"{height}x{width} inputs, which do not fit into registers"
            )
    return _fits_shared_memory(geometry, "float32")


def _fits_shared_memory(geometry: NetGeometry, dtype: str) -> Answer:
    size = sum(_buffers(geometry, dtype)) * np.dtype(dtype).itemsize
    if size > _SHARED_BYTES:
        return Refusal(f"maps and filters in {dtype} take {size} bytes of shared memory, of which there are 49152")
    return True


def tilings(geometry: NetGeometry) -> tuple[Tiling, ...]:
    """Half of all registers, or none, for weights that are fetched ahead; likewise with fewer threads."""
    return Tiling(512, 16), Tiling(512, 0), Tiling(256, 32), Tiling(256, 0)


# -- the kernel --------------------------------------------------------------------------------------------------------


def _fetching(total: int, threads: int, load: Any, store: Any) -> Any:
    """A device function ``fetch(values, to, source, thread, first)``: ``total`` elements, by all threads together.

    ``load(source, i, first)`` gives the element i, and ``store(to, i, value)`` takes it; ``values`` is a local array of
    _BATCH elements. The loads of a batch are under way before the first is stored.
    """

    batches, rest = divmod(-(-total // threads), _BATCH)

    def moving(count: int) -> Any:
        @device_function
        def move(values: Any, to: Any, source: Any, i: Any, first: Any) -> None:
            for j in range(count):
                values[j] = load(source, i + j * threads, first)
            for j in range(count):
                if i + j * threads < total:
                    store(to, i + j * threads, values[j])

        return move

    move_batch, move_rest = moving(_BATCH) if batches else None, moving(rest) if rest else None

    @device_function
    def fetch(values: Any, to: Any, source: Any, thread: Any, first: Any) -> None:
        i = thread
        if move_batch is not None:
            for _ in range(batches):
                move_batch(values, to, source, i, first)
                i += _BATCH * threads
        if move_rest is not None:
            move_rest(values, to, source, i, first)

    return fetch


def _lanes(pieces: int, outputs: int, threads: int) -> int:
    """Lanes that share a result, a power of two: those with the fewest loads and exchanges one after the other."""

    def rounds(lanes: int) -> int:
        return -(-outputs * lanes // threads) * -(-pieces // lanes) + int(math.log2(lanes))

    return min((1, 2, 4, 8, 16, 32), key=rounds)


def _most_ahead(blocks: tuple[BlockGeometry, ...], tiling: Tiling) -> int:
    """Loads of 128 bits, or less, that a thread can keep beside a patch, its sums, and what goes with them."""
    needed = max(
        patch_elements(block) + block.pool.r * block.pool.s * _thread_filters(block, tiling.threads) for block in blocks
    )
    free = min(255, _REGISTERS // tiling.threads) - needed - _OTHER_REGISTERS
    return min(tiling.ahead, free // 4)


@dataclasses.dataclass(frozen=True)
class _Layer:
    """How the threads share a fully connected layer.

    Attributes:
        inputs, outputs, active, biased: what it computes.
        vector: elements of a piece, which is one load.
        lanes: neighbouring threads that compute one result.
        whole, left: pieces that each lane multiplies, and the number of lanes that have one more.
        ahead: of these, those that are fetched before the layer before is computed.
    """

    inputs: int
    outputs: int
    active: bool
    biased: bool
    vector: int
    lanes: int
    whole: int
    left: int
    ahead: int

    @classmethod
    def of(
        cls, sizes: Any, active: bool, biased: bool, threads: int, most_ahead: int, dtype: str, aligned16: bool
    ) -> _Layer:
        inputs, outputs = sizes
        vector = widest_access(inputs, dtype) if aligned16 else 1
        lanes = _lanes(inputs // vector, outputs, threads)
        whole, left = divmod(inputs // vector, lanes)
        ahead = min(most_ahead, whole)
        return cls(inputs, outputs, active, biased, vector, lanes, whole, left, ahead)

    @property
    def held(self) -> int:
        """Elements of the local array for what is fetched ahead: the bias, then pieces of weights."""
        return 1 + self.ahead * self.vector


def _layer_functions(layer: _Layer, threads: int, dtype: str) -> tuple[Any, Any]:
    """``prefetch(held, weight, bias, thread)`` and ``run(held, before, after, first, weight, bias, thread)``.

    ``run`` reads the row ``before`` and writes the results to ``after``, from its element ``first`` on.
    """
    real = getattr(types, dtype)
    inputs, outputs, active, biased = layer.inputs, layer.outputs, layer.active, layer.biased
    vector, lanes, ahead, left = layer.vector, layer.lanes, layer.ahead, layer.left
    stride, at_once, whole = lanes * vector, threads // lanes, layer.whole
    rounds, warp_results = -(-outputs // at_once), 32 // lanes
    shift, sum_of_lanes = int(math.log2(lanes)), reduction(lanes, threads, dtype)
    load, load_weight, _ = vector_access(vector)
    load_early = {1: ldg_early, 2: ldg2_early, 4: ldg4_early}[vector]

    # Loops here have few instructions, so that the compiler unrolls them: it is as fast, and compiles faster.
    @device_function
    def prefetch(held: Any, weight: Any, bias: Any, thread: Any) -> None:
        # Threads beyond the last result compute it once more, and do not write it.
        result, lane = minimum(thread >> shift, outputs - 1), thread & (lanes - 1)
        held[0] = ldg_early(bias, result, lane == 0) if biased else real(0)
        at = result * inputs + lane * vector
        for i in range(ahead):
            piece = load_early(weight, at + i * stride, True)
            if vector == 1:
                held[1 + i] = piece
            else:
                for e in range(vector):
                    held[1 + i * vector + e] = piece[e]

    @device_function
    def add_held(held: Any, sums: Any, before: Any, at: Any) -> None:
        x = cuda.local.array(vector, real)
        for i in range(ahead):
            load(x, before, at + i * stride)
            for e in range(vector):
                sums[e] = fma(held[1 + i * vector + e], x[e], sums[e])

    def adding(count: int) -> Any:
        """A device function that adds the products of so many pieces; their loads are under way together."""
        size = count * vector

        @device_function
        def add(sums: Any, before: Any, weight: Any, at: Any, x_at: Any) -> None:
            values, piece = cuda.local.array(size, real), cuda.local.array(vector, real)
            for i in range(count):
                load_weight(piece, weight, at + i * stride)
                for e in range(vector):
                    values[i * vector + e] = piece[e]
            for i in range(count):
                load(piece, before, x_at + i * stride)
                for e in range(vector):
                    sums[e] = fma(values[i * vector + e], piece[e], sums[e])

        return add

    add_batch, add_one = adding(_BATCH), adding(1)

    def adding_from(first: int) -> Any:
        """A device function that adds the products of all pieces from ``first`` on."""
        batches, rest = divmod(whole - first, _BATCH)
        add_rest = adding(rest) if rest else None

        @device_function
        def add_all(sums: Any, before: Any, weight: Any, at: Any, x_at: Any, lane: Any) -> None:
            at, x_at = at + first * stride, x_at + first * stride
            for _ in range(batches):
                add_batch(sums, before, weight, at, x_at)
                at, x_at = at + _BATCH * stride, x_at + _BATCH * stride
            if add_rest is not None:
                add_rest(sums, before, weight, at, x_at)
                at, x_at = at + rest * stride, x_at + rest * stride
            if left and lane < left:
                add_one(sums, before, weight, at, x_at)

        return add_all

    @device_function
    def finish(sums: Any, after: Any, first: Any, result: Any, lane: Any) -> None:
        total = sums[0]
        for e in range(1, vector):
            total += sums[e]
        total = sum_of_lanes(total)
        if active:
            # Written so that a NaN stays.
            total = real(0) if total <= real(0) else total
        if (lane == 0) & (result < outputs):
            st(after, first + result, total)

    add_behind, add_all = adding_from(ahead), adding_from(0) if rounds > 1 else None

    @device_function
    def run(held: Any, before: Any, after: Any, first: Any, weight: Any, bias: Any, thread: Any) -> None:
        sums = cuda.local.array(vector, real)
        result, lane = thread >> shift, thread & (lanes - 1)
        # Of the warp: its lanes exchange sums, so they go together.
        warp_first = (thread >> 5) * warp_results
        x_at = lane * vector
        if warp_first < outputs:
            for e in range(vector):
                sums[e] = real(0)
            sums[0] = held[0]
            add_held(held, sums, before, x_at)
            add_behind(sums, before, weight, minimum(result, outputs - 1) * inputs + x_at, x_at, lane)
            finish(sums, after, first, result, lane)
        if add_all is not None:
            for _ in range(1, rounds):
                result, warp_first = result + at_once, warp_first + at_once
                if warp_first < outputs:
                    here = minimum(result, outputs - 1)
                    for e in range(vector):
                        sums[e] = real(0)
                    sums[0] = ldg_if(bias, here, lane == 0) if biased else real(0)
                    add_all(sums, before, weight, here * inputs + x_at, x_at, lane)
                    finish(sums, after, first, result, lane)

    return prefetch, run


def _block_function(block: BlockGeometry, threads: int, dtype: str, filters_at: int, place: Any) -> Any:
    """A device function ``run(before, after, filters, thread)`` that computes a block.

    ``before`` is its tile; its weights, and behind them its biases, begin at ``filters_at`` of ``filters``; a pooled
    output is stored at ``place(filter, row, column)`` of ``after``.
    """
    real = getattr(types, dtype)
    conv, pool = block
    channels, s, taps, p, q, window = conv.c, conv.s, conv.r * conv.s, pool.p, pool.q, pool.r * pool.s
    (down, beside), (pool_down, pool_beside) = steps(block), pool.stride
    (pool_top, _), (pool_left, _) = pool.padding
    tile_rows, _, pitch = _tile(block, dtype)
    plane, tap_pitch = tile_rows * pitch, _tap_pitch(block)
    thread_filters = _thread_filters(block, threads)
    filter_pitch, items = channels * tap_pitch, p * q * (conv.k // thread_filters)
    biases_at = filters_at + _filters(block)[0]
    patch_size, pair_size = patch_elements(block), patch_vector(block)
    vector = widest_access(4, dtype)
    load_weights, _, _ = vector_access(vector)
    load_patch, gather = patch_access(block, pitch)
    find_largest, lowest = finding_largest(block), float("-inf")

    @device_function
    def load_filter(f: int, first: int, few: Any, piece: Any, filters: Any, at: Any) -> None:
        load_weights(piece, filters, at + (f * filter_pitch + first))
        for e in range(vector):
            few[e, f] = piece[e]

    load_filters = unrolled(load_filter, thread_filters)

    @device_function
    def add_tap(e: int, first: int, total: Any, inputs: Any, a: Any, b: Any, few: Any) -> None:
        if first + e < taps:
            for f in range(thread_filters):
                b[f] = few[e, f]
            gather((first + e) // s, (first + e) % s, a, inputs)
            add_outer(total, a, b, 0)

    add_taps = unrolled(add_tap, vector)

    @device_function
    def add_few(i: int, total: Any, inputs: Any, a: Any, b: Any, few: Any, piece: Any, filters: Any, at: Any) -> None:
        load_filters(i * vector, few, piece, filters, at)
        add_taps(i * vector, total, inputs, a, b, few)

    add_channel = unrolled(add_few, -(-taps // vector))

    @device_function
    def finish(f: int, total: Any, best: Any, winner: Any, after: Any, filter_: Any, row: Any, column: Any) -> None:
        best[0], winner[0] = real(lowest), types.int32(0)
        map_row, map_column = row * pool_down - pool_top, column * pool_beside - pool_left
        find_largest(f, total, best, winner, map_row, map_column)
        # Written so that a NaN stays.
        st(after, place(filter_ + f, row, column), real(0) if best[0] <= real(0) else best[0])

    finish_all = unrolled(finish, thread_filters)

    @device_function
    def run(before: Any, after: Any, filters: Any, thread: Any) -> None:
        total, inputs = cuda.local.array((window, thread_filters), real), cuda.local.array(patch_size, real)
        a, b = cuda.local.array(window, real), cuda.local.array(thread_filters, real)
        few, piece = cuda.local.array((vector, thread_filters), real), cuda.local.array(vector, real)
        pair = cuda.local.array(pair_size, real)
        best, winner = cuda.local.array(1, real), cuda.local.array(1, types.int32)
        item = thread
        while item < items:
            rest, column = divmod(item, q)
            filter_, row = divmod(rest, p)
            filter_ *= thread_filters
            for f in range(thread_filters):
                start = ld(filters, biases_at + filter_ + f)
                for i in range(window):
                    total[i, f] = start
            line_at = i32(row * (down * pitch) + column * beside)
            at = i32(filters_at + filter_ * filter_pitch)
            for _ in range(channels):
                load_patch(inputs, pair, before, line_at)
                add_channel(total, inputs, a, b, few, piece, filters, at)
                line_at, at = line_at + plane, at + tap_pitch
            finish_all(total, best, winner, after, filter_, row, column)
            item += threads

    return run


def _tile_functions(block: BlockGeometry, dtype: str) -> tuple[Any, Any, Any]:
    """``place(channel, row, column)``, ``source(i)`` and ``target(i)``, device functions for a block's tile.

    ``place`` gives where an element of the block's input is in shared memory, ``target`` likewise for the element i of
    the tile, padding included. ``source`` gives where that is in the input, and whether it is.
    """
    h, w, (above, left) = block.conv.h, block.conv.w, origin(block)
    rows, columns, pitch = _tile(block, dtype)

    @device_function
    def parts(i: Any) -> Any:
        rest = i // columns
        channel = rest // rows
        return channel, rest % rows, i % columns

    @device_function
    def target(i: Any) -> Any:
        channel, row, column = parts(i)
        return (channel * rows + row) * pitch + column

    @device_function
    def source(i: Any) -> Any:
        channel, row, column = parts(i)
        # Unsigned: what lies above or left of the image is a huge row or column.
        row, column = row - above, column - left
        return (channel * h + row) * w + column, (row < h) & (column < w)

    @device_function
    def place(channel: Any, row: Any, column: Any) -> Any:
        return (channel * rows + row + above) * pitch + column + left

    return place, source, target


def _flat_place(block: BlockGeometry) -> Any:
    """A device function ``place(channel, row, column)`` of a pooled output in the row of the fully connected layers."""
    p, q = block.pool.p, block.pool.q

    @device_function
    def place(channel: Any, row: Any, column: Any) -> Any:
        return (channel * p + row) * q + column

    return place


def _fetching_image(block: BlockGeometry, threads: int, dtype: str) -> Any:
    """:func:`_fetching` of the first block's tile; the image begins at ``first``."""
    total = block.conv.c * math.prod(_tile(block, dtype)[:2])
    _, source, target = _tile_functions(block, dtype)

    @device_function
    def load(x: Any, i: Any, first: Any) -> Any:
        offset, inside = source(i)
        return ldg_if(x, first + offset, inside & (i < total))

    @device_function
    def store(tile: Any, i: Any, value: Any) -> None:
        st(tile, target(i), value)

    return _fetching(total, threads, load, store)


def _fetching_filters(block: BlockGeometry, threads: int, dtype: str, filters_at: int, biased: bool) -> Any:
    """A device function ``fetch(values, filters, weight, bias, thread)`` that brings a block's filters."""
    real = getattr(types, dtype)
    taps, tap_pitch, k, (weights, _) = block.conv.r * block.conv.s, _tap_pitch(block), block.conv.k, _filters(block)

    @device_function
    def load_weight(weight: Any, i: Any, first: Any) -> Any:
        row, tap = divmod(i, tap_pitch)
        return ldg_if(weight, row * taps + tap, (tap < taps) & (i < weights))

    @device_function
    def store_weight(filters: Any, i: Any, value: Any) -> None:
        st(filters, i + filters_at, value)

    @device_function
    def load_bias(bias: Any, i: Any, first: Any) -> Any:
        return ldg_if(bias, i, i < k) if biased else real(0)

    @device_function
    def store_bias(filters: Any, i: Any, value: Any) -> None:
        st(filters, i + (filters_at + weights), value)

    fetch_weights = _fetching(weights, threads, load_weight, store_weight)
    fetch_biases = _fetching(k, threads, load_bias, store_bias)

    @device_function
    def fetch(values: Any, filters: Any, weight: Any, bias: Any, thread: Any) -> None:
        fetch_weights(values, filters, weight, thread, u32(0))
        fetch_biases(values, filters, bias, thread, u32(0))

    return fetch


def _filling(block: BlockGeometry, threads: int, dtype: str) -> Any:
    """A device function ``fill(tile, thread)`` that sets to zero what of a block's tile is not its input."""
    real, total = getattr(types, dtype), block.conv.c * math.prod(_tile(block, dtype)[:2])
    nothing = total == math.prod(block.conv.input_shape[1:])
    _, source, target = _tile_functions(block, dtype)

    @device_function
    def fill(tile: Any, thread: Any) -> None:
        if not nothing:
            i = thread
            while i < total:
                _, inside = source(i)
                if not inside:
                    st(tile, target(i), real(0))
                i += threads

    return fill


@specialised
def _kernel(
    geometry: NetGeometry, tiling: Tiling, dtype: str, has_bias: tuple[bool, ...], aligned16: bool
) -> Callable[..., None]:
    """The kernel for images of a geometry, whatever their number: ``n`` is not looked at.

    ``has_bias`` is of the blocks and then of the layers; ``aligned16``: all weights begin at multiples of 128 bits.
    """
    real, threads = getattr(types, dtype), tiling.threads
    blocks, (_, sizes, relu) = geometry
    count, last, outputs = len(blocks), len(has_bias) - 1, sizes[-1]
    first_size, second_size, filters_size = _buffers(geometry, dtype)
    image_size = math.prod(blocks[0].conv.input_shape[1:])
    filters_at = [sum(_filters(block)[1] for block in blocks[:number]) for number in range(count)]
    most_ahead = _most_ahead(blocks, tiling) if dtype == "float32" else 0
    layers = [
        _Layer.of(pair, active, biased, threads, most_ahead, dtype, aligned16)
        for pair, active, biased in zip(pairwise(sizes), relu, has_bias[count:], strict=True)
    ]
    layer_functions = [_layer_functions(layer, threads, dtype) for layer in layers]
    fetch_image = _fetching_image(blocks[0], threads, dtype)

    def fetching_filters(number: int) -> Any:
        """A device function that brings the filters of the blocks from ``number`` on."""
        fetch = _fetching_filters(blocks[number], threads, dtype, filters_at[number], has_bias[number])
        rest = fetching_filters(number + 1) if number + 1 < count else None

        def fetch_all(values: Any, filters: Any, weights: Any, biases: Any, thread: Any) -> None:
            fetch(values, filters, weights[number], biases[number], thread)
            if rest is not None:
                rest(values, filters, weights, biases, thread)

        return device_function(fetch_all)

    def stages(number: int) -> Any:
        """A device function that runs the stages from ``number`` on, blocks and then layers, the first on ``before``.

        ``held`` is what has been fetched ahead for the first layer among them.
        """
        run = stage(number)
        if number == last:
            return run
        rest = stages(number + 1)
        fill = _filling(blocks[number + 1], threads, dtype) if number + 1 < count else None

        def run_block(
            held: Any, before: Any, after: Any, filters: Any, weights: Any, biases: Any, out: Any, thread: Any
        ) -> None:
            if fill is not None:
                fill(after, thread)
            run(held, before, after, filters, weights, biases, out, thread)
            cuda.syncthreads()
            rest(held, after, before, filters, weights, biases, out, thread)

        if number < count:
            return device_function(run_block)
        prefetch, held_size = layer_functions[number + 1 - count][0], layers[number + 1 - count].held

        def run_layer(
            held: Any, before: Any, after: Any, filters: Any, weights: Any, biases: Any, out: Any, thread: Any
        ) -> None:
            next_held = cuda.local.array(held_size, real)
            prefetch(next_held, weights[number + 1], biases[number + 1], thread)
            run(held, before, after, filters, weights, biases, out, thread)
            cuda.syncthreads()
            rest(next_held, after, before, filters, weights, biases, out, thread)

        return device_function(run_layer)

    def stage(number: int) -> Any:
        if number < count:
            place = _tile_functions(blocks[number + 1], dtype)[0] if number + 1 < count else _flat_place(blocks[number])
            compute = _block_function(blocks[number], threads, dtype, filters_at[number], place)

            def run_block(
                held: Any, before: Any, after: Any, filters: Any, weights: Any, biases: Any, out: Any, thread: Any
            ) -> None:
                compute(before, after, filters, thread)

            return device_function(run_block)
        compute = layer_functions[number - count][1]

        def run_layer(
            held: Any, before: Any, after: Any, filters: Any, weights: Any, biases: Any, out: Any, thread: Any
        ) -> None:
            compute(held, before, after, u32(0), weights[number], biases[number], thread)

        def run_last(
            held: Any, before: Any, after: Any, filters: Any, weights: Any, biases: Any, out: Any, thread: Any
        ) -> None:
            first = u32(cuda.blockIdx.x) * outputs
            compute(held, before, out, first, weights[number], biases[number], thread)

        return device_function(run_last if number == last else run_layer)

    fetch_filters, run_stages = fetching_filters(0), stages(0)
    prefetch, held_size = layer_functions[0][0], layers[0].held

    @jit(launch_bounds=threads)
    def conv_net(x: Any, weights: Any, biases: Any, out: Any) -> None:
        first = cuda.shared.array(first_size, real, alignment=16)
        second = cuda.shared.array(second_size, real, alignment=16)
        filters = cuda.shared.array(filters_size, real, alignment=16)
        values, held = cuda.local.array(_BATCH, real), cuda.local.array(held_size, real)
        thread = u32(cuda.threadIdx.x)
        fetch_image(values, first, x, thread, u32(cuda.blockIdx.x) * image_size)
        fetch_filters(values, filters, weights, biases, thread)
        prefetch(held, weights[count], biases[count], thread)
        cuda.syncthreads()
        run_stages(held, first, second, filters, weights, biases, out, thread)

    return conv_net


# -- the launch --------------------------------------------------------------------------------------------------------


def launches(
    geometry: NetGeometry,
    tiling: Tiling,
    dtype: Any,
    *,
    has_bias: tuple[bool, ...] | None = None,
    aligned16: bool = True,
) -> tuple[Launch, ...]:
    """The one launch of :func:`launch`, or none for no images.

    Args:
        geometry, tiling, dtype: see :func:`launch`.
        has_bias: which blocks, and then layers, have one; None for all.
        aligned16: the weights of all layers begin at multiples of 16 bytes.

    Raises:
        ValueError: the network is refused, see the module's docstring; the message says why.
    """
    name = np.dtype(dtype).name
    if not (answer := supports(geometry) and _fits_shared_memory(geometry, name)):
        raise ValueError(f"conv_net: {answer}")
    blocks, chain = geometry
    if not chain.n:
        return ()
    count = len(blocks) + len(chain.relu)
    one = NetGeometry(tuple(map(single, blocks)), chain._replace(n=1))
    kernel = _kernel(one, tiling, name, has_bias or (True,) * count, aligned16)
    arrays = types.UniTuple(array_type(name), count)
    signature = (array_type(name), arrays, arrays, array_type(name))
    return (Launch(kernel, signature, (chain.n, 1, 1), (tiling.threads, 1, 1)),)


def launch(
    x: Any,
    weights: Sequence[Any],
    biases: Sequence[Any],
    out: Any,
    geometry: NetGeometry,
    tiling: Tiling,
    stream: Any = None,
) -> None:
    """``out``, the last layer's results (n, size), of the images ``x`` (n, c, h, w).

    ``weights`` and ``biases`` are those of the blocks, (k, c, r, s) and (k,), and then those of the layers, (size, size
    before) and (size,); a bias may be None.

    Raises:
        ValueError: the network is refused, see the module's docstring; the message says why.
    """
    has_bias = tuple(bias is not None for bias in biases)
    given = [weight if bias is None else bias for weight, bias in zip(weights, biases, strict=True)]
    aligned16 = aligned(*weights[len(geometry.blocks) :])
    for one in launches(geometry, tiling, x.dtype, has_bias=has_bias, aligned16=aligned16):
        one(stream, x.reshape(-1), flat(weights), flat(given), out.reshape(-1))
