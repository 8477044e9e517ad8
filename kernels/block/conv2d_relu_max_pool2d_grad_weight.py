"""Gradients of a fused block for weight and bias: visits the winning positions alone, a quarter with 2x2 windows.

The pooled outputs of all images are cut into tiles of ``rows x columns``, and the tiles into ``parts``. A block goes
through one part for ``filters`` filters and ``channels`` channels: of a tile it fetches what the windows cover of the
input, and for each window a pair: its gradient, zero where ReLU let nothing through, and where its winner's patch
begins in the fetched input. Then each thread, which owns a tap of a filter in all of the block's channels, goes
through the pairs in order and adds gradient times input. The threads of the first channels also sum the gradients:
that is the bias's. Each part writes a row of sums, weights and then biases; ``partial_sums`` adds the rows up in a
fixed order.

Shared bytes (float32): ``4 · channels · halo rows · halo columns + 8 · filters · rows · columns``, at most 24 KB.
Registers aimed at: at most 80. Expected bottleneck: shared memory, of which a multiply-add reads one element (pairs are
read by fours, and are broadcasts); rows of the input are spaced so that the taps of a filter are in different banks.

Refused: groups, windows of more than 256 elements, and windows that do not fit into shared memory.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

from numba import cuda, types

from gpuconv.geometry import BlockGeometry
from gpuconv.kernels.block.conv2d_relu_max_pool2d import fusible, origin, pairs_loading, patch, single, steps
from gpuconv.kernels.compiled import specialised
from gpuconv.kernels.device.host import MULTIPROCESSORS, Answer, Refusal, bounds, first_fitting, fitted
from gpuconv.kernels.device.launch import Call, call, device_function, jit
from gpuconv.kernels.device.memory import ld, ldg_if, st
from gpuconv.kernels.device.registers import fma, unrolled
from gpuconv.kernels.device.stage import halo_staging
from gpuconv.kernels.device.words import i32, minimum, u32
from gpuconv.kernels.partial_sums import sum_parts_of_two
from gpuconv.kernels.variant import Arguments

#: Bytes of shared memory in float32; float64 takes less than twice as many, of the 48 KB that there are.
_SHARED_BYTES = 24 * 1024
#: Threads a block.
_MOST_THREADS = 512
#: Smaller tiles are for windows for which larger ones do not fit.
_ENOUGH_CHOICES = 3
#: Blocks that keep a large GPU busy.
_ENOUGH_BLOCKS = 4 * MULTIPROCESSORS


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How the work is cut up; a block has a thread for each tap of each of its filters.

    Attributes:
        rows, columns: pooled outputs a tile.
        filters, channels: filters and channels a block.
        parts: into how many parts the tiles are cut.
    """

    rows: int
    columns: int
    filters: int
    channels: int
    parts: int


def _tiles(geometry: BlockGeometry, tiling: Tiling) -> int:
    """Tiles of an image."""
    return -(-geometry.pool.p // tiling.rows) * -(-geometry.pool.q // tiling.columns)


def _halo(geometry: BlockGeometry, tiling: Tiling) -> tuple[int, int]:
    """Rows and columns of the input under a tile."""
    (down, beside), (height, width) = steps(geometry), patch(geometry)
    return (tiling.rows - 1) * down + height, (tiling.columns - 1) * beside + width


@functools.cache
def _pitch(geometry: BlockGeometry, width: int) -> int:
    """Elements from one row of the fetched input to the next: the fewest of those with the fewest bank conflicts."""
    conv = geometry.conv
    taps = [(tap // conv.s * conv.dilation[0], tap % conv.s * conv.dilation[1]) for tap in range(conv.r * conv.s)][:32]

    def conflicts(pitch: int) -> int:
        banks = [(row * pitch + column) % 32 for row, column in taps]
        return max(map(banks.count, banks))

    return min(range(width, width + 32), key=conflicts)


def _pairs(tiling: Tiling) -> int:
    """Pairs of a filter, rounded up to whole loads."""
    return -(-tiling.rows * tiling.columns // 4) * 4


def _shared_bytes(geometry: BlockGeometry, tiling: Tiling) -> int:
    height, width = _halo(geometry, tiling)
    return 4 * tiling.channels * height * _pitch(geometry, width) + 8 * tiling.filters * _pairs(tiling)


@functools.cache
def _choices(geometry: BlockGeometry) -> tuple[Tiling, ...]:
    """All that fit, of one part."""
    conv, pool = geometry
    taps, found = conv.r * conv.s, []
    for most_rows, most_columns in ((16, 16), (8, 16), (8, 8), (4, 8), (1, 1)):
        rows, columns = fitted(pool.p, most_rows, 1), fitted(pool.q, most_columns, 1)
        if len(found) >= _ENOUGH_CHOICES:
            break
        for threads in (_MOST_THREADS, _MOST_THREADS // 2):
            if taps > threads:
                continue
            filters = fitted(conv.k, threads // taps, 1)
            most = range(min(conv.c, 8), 0, -1)
            staged = (Tiling(rows, columns, filters, fitted(conv.c, channels, 1), 1) for channels in most)
            found += first_fitting(staged, lambda tiling: _shared_bytes(geometry, tiling) <= _SHARED_BYTES)
    return tuple(dict.fromkeys(found))


def supports(geometry: BlockGeometry) -> Answer:
    """True for windows of at most 512 taps and 256 pooled elements that fit into shared memory, without groups."""
    if not (answer := fusible(geometry)):
        return answer
    conv, pool = geometry
    if not _choices(single(geometry)):
        return Refusal(
            f"a {pool.r}x{pool.s} pooling of a {conv.r}x{conv.s} convolution does not fit into shared memory"
        )
    return True


@functools.cache
def tilings(geometry: BlockGeometry) -> tuple[Tiling, ...]:
    """In as many parts as keep a large GPU busy, larger tiles first unless they leave more to do for a multiprocessor.

    The last one has one part, which needs no second stage.
    """
    found = []
    choices = _choices(single(geometry))
    for tiling in choices:
        blocks = -(-geometry.conv.k // tiling.filters) * -(-geometry.conv.c // tiling.channels)
        tiles = max(1, geometry.conv.n * _tiles(geometry, tiling))
        parts = min(tiles, -(-_ENOUGH_BLOCKS // blocks))
        pairs = -(-tiles // parts) * tiling.rows * tiling.columns * tiling.channels
        work = -(-blocks * parts // MULTIPROCESSORS) * pairs
        found.append((work, dataclasses.replace(tiling, parts=parts)))
    found.sort(key=lambda choice: choice[0])
    return tuple(dict.fromkeys([*(tiling for _, tiling in found), choices[0]]))


def _elements(geometry: BlockGeometry) -> int:
    return math.prod(geometry.conv.weight_shape)


def workspace_size(geometry: BlockGeometry, tiling: Tiling) -> int:
    """Elements of the workspace: a row of weights and biases for each part, none if there is one part."""
    return tiling.parts * (_elements(geometry) + geometry.conv.k) if tiling.parts > 1 else 0


@specialised
def _kernel(geometry: BlockGeometry, tiling: Tiling, dtype: str) -> Callable[..., None]:
    """The kernel for images of a geometry, whatever their number and that of parts."""
    real = getattr(types, dtype)
    conv, pool = geometry
    c, h, w, k, s = (getattr(conv, name) for name in "chwks")
    taps, (dilation_h, dilation_w) = conv.r * conv.s, conv.dilation
    p, q, pool_s = pool.p, pool.q, pool.s
    # From one element of a pooling window to the next, in rows and columns of the input.
    pool_down, pool_beside = pool.dilation[0] * conv.stride[0], pool.dilation[1] * conv.stride[1]
    (down, beside), (above, before) = steps(geometry), origin(geometry)
    tile_rows, tile_columns, filters, channels = tiling.rows, tiling.columns, tiling.filters, tiling.channels
    tiles_beside, tiles = -(-q // tile_columns), _tiles(geometry, tiling)
    filter_blocks, channel_blocks = -(-k // filters), -(-c // channels)
    (height, width), positions, pairs = _halo(geometry, tiling), tile_rows * tile_columns, _pairs(tiling)
    pitch, threads = _pitch(geometry, width), filters * taps
    plane, all_pairs = height * pitch, filters * pairs
    inputs_size = channels * plane
    stage_inputs = halo_staging((h, w), (height, width), threads, stage=channels, channels=c, pitch=pitch, plane=plane)
    load_pairs = pairs_loading(dtype)
    launch_bounds = bounds(threads, 768) if dtype == "float32" else threads

    @device_function
    def add_channel(channel: int, sums: Any, inputs: Any, at: Any, grad: Any) -> None:
        sums[channel] = fma(grad, ld(inputs, at + channel * plane), sums[channel])

    add_channels = unrolled(add_channel, channels)

    @device_function
    def add_pair(j: int, sums: Any, sum_: Any, inputs: Any, starts: Any, grads: Any, at: Any) -> None:
        add_channels(sums, inputs, at + starts[j], grads[j])
        sum_[0] += grads[j]

    add_pairs = unrolled(add_pair, 4)

    @jit(launch_bounds=launch_bounds)
    def conv2d_relu_max_pool2d_grad_weight(
        grad: Any,
        x: Any,
        y: Any,
        winners: Any,
        out: Any,
        bias_out: Any,
        row_size: Any,
        bias_start: Any,
        items: Any,
        items_a_part: Any,
    ) -> None:
        inputs = cuda.shared.array(inputs_size, real, alignment=16)
        pair_grads = cuda.shared.array(all_pairs, real, alignment=16)
        pair_starts = cuda.shared.array(all_pairs, types.int32, alignment=16)
        sums, sum_ = cuda.local.array(channels, real), cuda.local.array(1, real)
        grads, starts = cuda.local.array(4, real), cuda.local.array(4, types.int32)
        for i in range(channels):
            sums[i] = real(0)
        sum_[0] = real(0)

        thread = u32(cuda.threadIdx.x)
        filter_here, tap = divmod(thread, taps)
        tap_row, tap_column = divmod(tap, s)
        tap_at = i32(tap_row * (dilation_h * pitch) + tap_column * dilation_w)
        pairs_at = filter_here * pairs

        block = u32(cuda.blockIdx.x)
        rest = block // channel_blocks
        first_channel = block % channel_blocks * channels
        part = rest // filter_blocks
        first_filter = rest % filter_blocks * filters

        item = part * items_a_part
        end = minimum(item + items_a_part, items)
        while item < end:
            image, rest = divmod(item, tiles)
            first_row = rest // tiles_beside
            first_column = rest % tiles_beside * tile_columns
            first_row *= tile_rows
            # Unsigned: what lies above or left of the image is a huge row or column.
            top_row, left_column = first_row * down - above, first_column * beside - before
            stage_inputs(thread, inputs, x, image * (c * h * w), first_channel, top_row, left_column)
            i = thread
            while i < all_pairs:
                jf, position = divmod(i, pairs)
                row, column = divmod(position, tile_columns)
                filter_ = first_filter + jf
                exists = (position < positions) & (filter_ < k)
                exists = exists & (first_row + row < p) & (first_column + column < q)
                map_ = image * k + filter_
                offset = (map_ * p + first_row + row) * q + first_column + column
                value, activity = ldg_if(grad, offset, exists), ldg_if(y, offset, exists)
                winner = u32(ldg_if(winners, offset, exists))
                winner_row, winner_column = divmod(winner, pool_s)
                start_row = row * down + winner_row * pool_down
                start_column = column * beside + winner_column * pool_beside
                # Pairs that are not there begin where inputs are.
                start = start_row * pitch + start_column if exists else u32(0)
                # Written so that a NaN lets the gradient through.
                st(pair_grads, i, real(0) if activity <= real(0) else value)
                st(pair_starts, i, types.int32(start))
                i += threads
            cuda.syncthreads()
            i = u32(0)
            while i < pairs:
                at = pairs_at + i
                load_pairs(grads, starts, pair_grads, pair_starts, at)
                add_pairs(sums, sum_, inputs, starts, grads, tap_at)
                i += 4
            cuda.syncthreads()
            item += 1

        filter_ = first_filter + filter_here
        if filter_ < k:
            row_at = part * row_size
            for j in range(channels):
                channel = first_channel + j
                if channel < c:
                    st(out, row_at + (filter_ * c + channel) * taps + tap, sums[j])
            if (tap == 0) & (first_channel == 0):
                st(bias_out, u32(bias_start) + row_at + filter_, sum_[0])

    return conv2d_relu_max_pool2d_grad_weight


def calls(a: Arguments, geometry: BlockGeometry, tiling: Tiling) -> Iterator[Call]:
    """Partial sums, and with several parts their reduction; for an empty batch too: the gradients are zero.

    Without results the sums over parts stay in the workspace.
    """
    conv, elements = geometry.conv, _elements(geometry)
    kernel = _kernel(single(geometry), dataclasses.replace(tiling, parts=1), a.dtype)
    blocks = tiling.parts * -(-conv.k // tiling.filters) * -(-conv.c // tiling.channels)
    several = tiling.parts > 1
    if not several and not a.has("out"):
        raise ValueError("conv2d_relu_max_pool2d_grad_weight: one part has no workspace for its sums: give results")
    targets = (a.workspace, a.workspace, elements + conv.k, elements) if several else (a.out, a.bias_out, 0, 0)
    items = conv.n * _tiles(geometry, tiling)
    inputs, threads = (a.grad, a.x, a.y, a.winners), tiling.filters * conv.r * conv.s
    yield call(kernel, blocks, threads, *inputs, *targets, items, -(-items // tiling.parts))
    if several and a.has("out"):
        yield sum_parts_of_two(a.workspace, a.out, a.bias_out, tiling.parts)
