"""Convolution, ReLU and max pooling in one: the maps before pooling exist in registers alone.

A block computes a tile of ``rows x columns`` pooled outputs of ``filters`` filters for some images. For ``channels``
channels at a time it fetches what the tile's windows cover of the images, zeros where that is padding, and the weights
of its filters, stored with the filters contiguous. A thread computes one pooled output of ``thread_filters`` filters:
it holds all inputs that the pooling window's convolutions see, the *patch*, in registers, and so the sums of all
elements of the window. What leaves is the largest of them, if positive, and one byte that says which one it was.

Of LeNet's first layer that is 4.9 KB an image to write instead of 18.8 KB, and nothing to read again. The layers'
sizes are constants of the kernel, so that its loops over taps unroll, and a patch stays in registers.

Shared bytes (float32): ``4 · channels · (images · halo rows · halo columns + r · s · (filters + 4))``, at most 24 KB.
Registers aimed at: at most 128 (patch and sums take 60 to 96 of them). Expected bottleneck: multiply-adds, 16 for each
128-bit load of weights with a 2x2 window and 4 filters a thread; for small batches, the latency of the fetches.

Refused: groups, and windows whose patch and sums do not fit into registers. The backend then composes.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

from numba import cuda, types

from gpuconv.geometry import BlockGeometry, effective
from gpuconv.kernels.compiled import specialised
from gpuconv.kernels.device.host import MULTIPROCESSORS, SHARED_ELEMENTS, Answer, Refusal, bounds, first_fitting, fitted
from gpuconv.kernels.device.launch import Call, call, device_function, jit
from gpuconv.kernels.device.memory import ld, ld2, ld4, ldg_if, st
from gpuconv.kernels.device.registers import add_outer, unrolled, vector_access
from gpuconv.kernels.device.stage import weight_staging
from gpuconv.kernels.device.tiles import tile_of_block
from gpuconv.kernels.device.words import i32, u32
from gpuconv.kernels.pool.pooling import keeping_larger, padded
from gpuconv.kernels.variant import Arguments

#: Inputs and sums that a thread may hold.
_MOST_REGISTERS = 100
#: Multiply-adds that are written out for a channel.
_MOST_UNROLLED = 2048
#: Threads a block.
MOST_THREADS = 256
#: Tilings that are worth a measurement.
CHOICES = 8


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How the work is cut up; a block has ``images · rows · columns · filters / thread_filters`` threads.

    Attributes:
        images: images a block.
        rows, columns: pooled outputs a block, of each image and filter.
        filters: filters a block; the last block may have fewer.
        thread_filters: filters a thread.
        channels: channels a stage.
    """

    images: int
    rows: int
    columns: int
    filters: int
    thread_filters: int
    channels: int

    @property
    def threads(self) -> int:
        """Threads a block."""
        return self.images * self.rows * self.columns * self.filters // self.thread_filters


def steps(geometry: BlockGeometry) -> tuple[int, int]:
    """Rows and columns of the input from one pooled output to the next."""
    conv, pool = geometry
    return pool.stride[0] * conv.stride[0], pool.stride[1] * conv.stride[1]


def patch(geometry: BlockGeometry) -> tuple[int, int]:
    """Rows and columns of the input that a pooled output depends on."""
    conv, pool = geometry
    return (
        (pool.r - 1) * pool.dilation[0] * conv.stride[0] + effective(conv.r, conv.dilation[0]),
        (pool.s - 1) * pool.dilation[1] * conv.stride[1] + effective(conv.s, conv.dilation[1]),
    )


def origin(geometry: BlockGeometry) -> tuple[int, int]:
    """How far above and left of the input the patch of the first pooled output begins."""
    conv, pool = geometry
    (pool_top, _), (pool_left, _) = pool.padding
    (top, _), (left, _) = conv.padding
    return pool_top * conv.stride[0] + top, pool_left * conv.stride[1] + left


def single(geometry: BlockGeometry) -> BlockGeometry:
    """The same for one image: what a kernel depends on."""
    conv, pool = geometry
    return BlockGeometry(dataclasses.replace(conv, n=1), dataclasses.replace(pool, n=1))


def patch_vector(geometry: BlockGeometry) -> int:
    """Elements of a patch that are read from shared memory at once."""
    return 2 if steps(geometry)[1] % 2 == 0 else 1


def _halo(geometry: BlockGeometry, tiling: Tiling) -> tuple[int, int]:
    """Rows of the input tile, and columns, rounded up to whole accesses."""
    (down, beside), (height, width), vector = steps(geometry), patch(geometry), patch_vector(geometry)
    return (tiling.rows - 1) * down + height, (tiling.columns - 1) * beside + -(-width // vector) * vector


@functools.cache
def quiet_pitch(geometry: BlockGeometry, rows: int, columns: int, width: int) -> int:
    """Elements from one row of an input tile to the next: the fewest of those with the fewest bank conflicts.

    The tile is as wide as ``width``, a multiple of :func:`patch_vector`; neighbouring threads read the patches of
    ``rows x columns`` pooled outputs from it.
    """
    (down, beside), vector = steps(geometry), patch_vector(geometry)
    lanes = [(lane // columns % rows, lane % columns) for lane in range(32)]

    def conflicts(pitch: int) -> int:
        # A request of 64 bits a lane is served by half warps.
        served = [lanes[first : first + 32 // vector] for first in range(0, 32, 32 // vector)]
        words = [{(row * down * pitch + column * beside) // vector for row, column in half} for half in served]
        banks = 32 // vector
        return sum(max(sum(word % banks == bank for word in half) for bank in range(banks)) for half in words)

    return min(range(width, width + 16, vector), key=conflicts)


def _pitch(geometry: BlockGeometry, tiling: Tiling) -> int:
    return quiet_pitch(geometry, tiling.rows, tiling.columns, _halo(geometry, tiling)[1])


def weight_pitch(filters: int) -> int:
    """Elements from one weight of all filters to the next: an odd multiple of 4.

    Weights are fetched by eights of a filter; so the lanes of a warp, with eight weights of four filters, store to 32
    banks.
    """
    whole = -(-filters // 4) * 4
    return whole if whole % 8 else whole + 4


def _layout(geometry: BlockGeometry, tiling: Tiling) -> tuple[int, int]:
    """Elements from an input channel to the next, and those of all weights of a stage."""
    weights = tiling.channels * geometry.conv.r * geometry.conv.s
    return _halo(geometry, tiling)[0] * _pitch(geometry, tiling), -(-weights // 8) * 8 * weight_pitch(tiling.filters)


def _shared_elements(geometry: BlockGeometry, tiling: Tiling) -> int:
    plane, weights = _layout(geometry, tiling)
    return tiling.images * tiling.channels * plane + weights


@functools.cache
def _choices(geometry: BlockGeometry) -> tuple[Tiling, ...]:
    conv, pool = geometry
    window, taps = pool.r * pool.s, conv.r * conv.s
    room = min((_MOST_REGISTERS - math.prod(patch(geometry))) // window, _MOST_UNROLLED // (window * taps))
    found = []
    for most_rows, most_columns in ((16, 16), (8, 16), (8, 8), (4, 8)):
        rows, columns = fitted(pool.p, most_rows, 1), fitted(pool.q, most_columns, 1)
        for most_filters in (8, 4, 2):
            thread_filters = fitted(conv.k, most_filters, min(conv.k, 2))
            if thread_filters > room:
                continue
            groups = -(-conv.k // thread_filters)
            for most in (groups, -(-groups // 2), 1):
                filter_threads = fitted(groups, max(1, min(most, MOST_THREADS // (rows * columns))), 1)
                whole = rows >= pool.p and columns >= pool.q
                for images in (1, 2, 4) if whole else (1,):
                    if images > 1 and images * rows * columns * filter_threads > MOST_THREADS:
                        continue
                    filters = filter_threads * thread_filters
                    staged = (
                        Tiling(images, rows, columns, filters, thread_filters, fitted(conv.c, most_channels, 1))
                        for most_channels in range(min(conv.c, 8), 0, -1)
                    )
                    found += first_fitting(staged, lambda tiling: _shared_elements(geometry, tiling) <= SHARED_ELEMENTS)
    return tuple(dict.fromkeys(found))


def fusible(geometry: BlockGeometry) -> Answer:
    """True for a convolution without groups, and windows of which a byte can name the winner."""
    conv, pool = geometry
    if conv.groups > 1:
        return Refusal(f"a convolution with {conv.groups} groups is not fused with its pooling")
    if pool.r * pool.s > 256:
        return Refusal(f"a {pool.r}x{pool.s} pooling has more winners than a byte can tell apart")
    return True


def supports(geometry: BlockGeometry) -> Answer:
    """True for small windows: those whose patch, and sums for two filters, fit into registers."""
    if not (answer := fusible(geometry)):
        return answer
    (height, width), (conv, pool) = patch(geometry), geometry
    if not _choices(single(geometry)):
        return Refusal(
            f"a {pool.r}x{pool.s} pooling of a {conv.r}x{conv.s} convolution sees {height}x{width} inputs, which do "
            "not fit into registers and shared memory"
        )
    return True


def _cost(geometry: BlockGeometry, tiling: Tiling) -> float:
    """Estimated time, in instructions of a large GPU's multiprocessor."""
    (conv, pool), (height, width) = geometry, patch(geometry)
    taps, blocks = conv.r * conv.s, 1
    for size, tile in (
        (conv.n, tiling.images),
        (pool.p, tiling.rows),
        (pool.q, tiling.columns),
        (conv.k, tiling.filters),
    ):
        blocks *= -(-size // tile)
    adds = taps * pool.r * pool.s * tiling.thread_filters
    loads = taps * -(-tiling.thread_filters // 4) + height * -(-width // patch_vector(geometry))
    threads = -(-tiling.threads // 32) * 32
    fetches = (8 * tiling.images * math.prod(_halo(geometry, tiling)) + 15 * taps * tiling.filters) / threads
    block = conv.c * threads * (adds + loads + fetches)
    waves = max(1, -(-blocks // MULTIPROCESSORS))
    # Two warps for each of its four schedulers keep a multiprocessor busy.
    return waves * block / min(1, waves * threads / 256)


@functools.cache
def tilings(geometry: BlockGeometry) -> tuple[Tiling, ...]:
    """The eight tilings that are estimated to be fastest, of those that fit into shared memory in either type."""
    choices = _choices(single(geometry))
    useful = [tiling for tiling in choices if tiling.images <= max(1, geometry.conv.n)]
    return tuple(sorted(useful, key=lambda tiling: _cost(geometry, tiling))[:CHOICES])


def weights_loading(count: int, threads: int, dtype: str) -> Any:
    """A device function ``load(b, weights, at)`` that reads ``count`` weights from ``at`` on into a local array.

    ``threads``: how many read so many each, one after the other, of a row that begins at a multiple of 4.
    """
    widest = 4 if dtype == "float32" else 2
    if threads > 1:  # each thread's have to be aligned
        widest = math.gcd(count, widest)

    def loading(first: int) -> Any:
        width = next(width for width in (4, 2, 1) if width <= min(widest, count - first))
        load, last = {1: ld, 2: ld2, 4: ld4}[width], first + width == count
        load_rest = None if last else loading(first + width)

        def load_one(b: Any, weights: Any, at: Any) -> None:
            b[first] = load(weights, at + first)

        def load_several(b: Any, weights: Any, at: Any) -> None:
            found = load(weights, at + first)
            for j in range(width):
                b[first + j] = found[j]

        load_first = device_function(load_one if width == 1 else load_several)

        def load_all(b: Any, weights: Any, at: Any) -> None:
            load_first(b, weights, at)
            load_rest(b, weights, at)

        return load_first if last else device_function(load_all)

    return loading(0)


def pairs_loading(dtype: str) -> Any:
    """A device function ``load(grads, starts, pair_grads, pair_starts, at)``: four pairs into local arrays, of four.

    Pairs are a winner's gradient and where in shared memory the inputs begin that it saw.
    """

    def load_single(grads: Any, starts: Any, pair_grads: Any, pair_starts: Any, at: Any) -> None:
        grads[0], grads[1], grads[2], grads[3] = ld4(pair_grads, at)
        starts[0], starts[1], starts[2], starts[3] = ld4(pair_starts, at)

    def load_double(grads: Any, starts: Any, pair_grads: Any, pair_starts: Any, at: Any) -> None:
        grads[0], grads[1] = ld2(pair_grads, at)
        grads[2], grads[3] = ld2(pair_grads, at + 2)
        starts[0], starts[1], starts[2], starts[3] = ld4(pair_starts, at)

    return device_function(load_single if dtype == "float32" else load_double)


def patch_access(geometry: BlockGeometry, pitch: int, dtype: str) -> tuple[Any, Any]:
    """``load(inputs, tile, at)`` and ``gather(row, tap, a, inputs)``, device functions for a thread's patch.

    ``load`` reads the patch that begins at the element ``at`` of a tile, whose rows are ``pitch`` elements apart, into
    the local array ``inputs``. ``gather`` takes from it what the tap in that row and column of the filter is multiplied
    with: an input for each element of the pooling window.
    """
    conv, pool = geometry
    (stride_h, stride_w), (dilation_h, dilation_w) = conv.stride, conv.dilation
    # From one element of a pooling window to the next, in rows and columns of the maps.
    (pool_down, pool_beside), pool_r, pool_s = pool.dilation, pool.r, pool.s
    vector, rows = patch_vector(geometry), patch(geometry)[0]
    patch_pitch = -(-patch(geometry)[1] // vector) * vector
    load_pair, real = vector_access(vector)[0], getattr(types, dtype)

    @device_function
    def load_line(line: int, inputs: Any, tile: Any, at: Any) -> None:
        pair = cuda.local.array(vector, real)
        for j in range(0, patch_pitch, vector):
            load_pair(pair, tile, at + (line * pitch + j))
            for e in range(vector):
                inputs[line * patch_pitch + j + e] = pair[e]

    @device_function
    def gather(row: int, tap: int, a: Any, inputs: Any) -> None:
        for i in range(pool_r):
            for j in range(pool_s):
                line = i * pool_down * stride_h + row * dilation_h
                a[i * pool_s + j] = inputs[line * patch_pitch + j * pool_beside * stride_w + tap * dilation_w]

    return unrolled(load_line, rows), gather


def patch_elements(geometry: BlockGeometry) -> int:
    """Elements of the local array that holds a patch."""
    height, width = patch(geometry)
    vector = patch_vector(geometry)
    return height * -(-width // vector) * vector


def finding_largest(geometry: BlockGeometry) -> Any:
    """A device function ``find(f, total, best, winner, row, column)``: the largest of the sums ``total[:, f]``.

    ``row`` and ``column`` are those of the window's first element in the maps: what lies outside of them never wins.
    ``best`` and ``winner`` are given as :func:`gpuconv.kernels.pool.pooling.keeping_larger` takes them, and changed.
    """
    conv, pool = geometry
    (pool_down, pool_beside), pool_s, maps_height, maps_width = pool.dilation, pool.s, conv.p, conv.q
    keep_larger = keeping_larger(guarded=padded(pool))

    @device_function
    def judge(tap: int, f: int, total: Any, best: Any, winner: Any, row: Any, column: Any) -> None:
        inside = row + tap // pool_s * pool_down < maps_height
        inside = inside & (column + tap % pool_s * pool_beside < maps_width)
        best[0], winner[0] = keep_larger(best[0], winner[0], total[tap, f], types.int32(tap), inside)

    return unrolled(judge, pool.r * pool.s)


@specialised
def _kernel(geometry: BlockGeometry, tiling: Tiling, dtype: str, has_bias: bool) -> Callable[..., None]:
    """The kernel for images of a geometry, whatever their number: ``n`` is not looked at."""
    real = getattr(types, dtype)
    conv, pool = geometry
    c, h, w, k, r, s = (getattr(conv, name) for name in "chwkrs")
    p, q, window, taps = pool.p, pool.q, pool.r * pool.s, r * s
    pool_stride_h, pool_stride_w = pool.stride
    (down, beside), (above, before) = steps(geometry), origin(geometry)
    (pool_top, _), (pool_left, _) = pool.padding
    products = c * taps
    threads, stage, images = tiling.threads, tiling.channels, tiling.images
    tile_rows, tile_columns, tile_filters = tiling.rows, tiling.columns, tiling.filters
    thread_filters = tiling.thread_filters
    tiles_down, tiles_beside, filter_blocks = -(-p // tile_rows), -(-q // tile_columns), -(-k // tile_filters)
    (height, width), pitch, weights_row = (
        _halo(geometry, tiling),
        _pitch(geometry, tiling),
        weight_pitch(tiling.filters),
    )
    plane, weights_size = _layout(geometry, tiling)
    inputs_size, halo, staged_products = images * stage * plane, height * width, stage * taps
    stage_weights = weight_staging(staged_products, tile_filters, weights_row, threads, products=products, filters=k)
    patch_size, ragged = patch_elements(geometry), c % stage != 0
    guarded, lowest = padded(pool), float("-inf")
    load_weights = weights_loading(thread_filters, tile_filters // thread_filters, dtype)
    load_patch, gather = patch_access(geometry, pitch, dtype)
    judge_all = finding_largest(geometry)
    launch_bounds = bounds(threads) if dtype == "float32" else threads
    tile_of = tile_of_block(
        maps=(filter_blocks, tile_filters), rows=(tiles_down, tile_rows), columns=(tiles_beside, tile_columns)
    )

    @device_function
    def add_tap(tap: int, row: int, total: Any, inputs: Any, a: Any, b: Any, weights: Any, at: Any) -> None:
        load_weights(b, weights, at + (row * s + tap) * weights_row)
        gather(row, tap, a, inputs)
        add_outer(total, a, b, 0)

    add_taps = unrolled(add_tap, s)

    @device_function
    def add_row(row: int, *arguments: Any) -> None:
        add_taps(row, *arguments)

    add_window = unrolled(add_row, r)

    @device_function
    def finish(
        f: int,
        total: Any,
        best: Any,
        winner: Any,
        out: Any,
        winners: Any,
        offset: Any,
        row: Any,
        column: Any,
        filter_: Any,
    ) -> None:
        if filter_ + f < k:
            best[0], winner[0] = real(lowest), types.int32(-1 if guarded else 0)
            judge_all(f, total, best, winner, row, column)
            # Written so that a NaN stays.
            st(out, offset + f * p * q, real(0) if best[0] <= real(0) else best[0])
            st(winners, offset + f * p * q, types.uint8(winner[0]))

    finish_all = unrolled(finish, thread_filters)

    @jit(launch_bounds=launch_bounds)
    def conv2d_relu_max_pool2d(x: Any, weight: Any, bias: Any, out: Any, winners: Any, n: Any) -> None:
        tile = cuda.shared.array(inputs_size, real, alignment=16)
        weights = cuda.shared.array(weights_size, real, alignment=16)
        total = cuda.local.array((window, thread_filters), real)
        inputs = cuda.local.array(patch_size, real)
        a, b = cuda.local.array(window, real), cuda.local.array(thread_filters, real)
        best, winner = cuda.local.array(1, real), cuda.local.array(1, types.int32)

        thread = u32(cuda.threadIdx.x)
        rest, column = divmod(thread, tile_columns)
        image_here, row = divmod(rest, tile_rows)
        filter_group, image_here = divmod(image_here, images)
        filter_ = filter_group * thread_filters
        patch_at = i32(image_here * (stage * plane) + row * (down * pitch) + column * beside)
        weights_at = i32(filter_)

        rest, first_filter, first_row, first_column = tile_of(u32(cuda.blockIdx.x))
        first_image = rest * images

        for f in range(thread_filters):
            filter_here = first_filter + filter_ + f
            start = ldg_if(bias, filter_here, filter_here < k) if has_bias else real(0)
            for i in range(window):
                total[i, f] = start

        # Unsigned: what lies above or left of the image is a huge row or column.
        top_row, left_column = first_row * down - above, first_column * beside - before
        channel = u32(0)
        while channel < c:
            i = thread
            while i < halo * images:
                image, position = divmod(i, halo)
                jr, jc = divmod(position, width)
                input_row, input_column = top_row + jr, left_column + jc
                map_ = (first_image + image) * c + channel
                inside = (input_row < h) & (input_column < w) & (first_image + image < u32(n))
                offset = (map_ * h + input_row) * w + input_column
                at = image * (stage * plane) + jr * pitch + jc
                # The loads of all channels are under way before the first is stored.
                for j in range(stage):
                    there = inside & (channel + j < c) if ragged else inside
                    st(tile, at + j * plane, ldg_if(x, offset + j * h * w, there))
                i += threads
            stage_weights(thread, weights, weight, channel * taps, first_filter, first_filter * products)
            cuda.syncthreads()
            tap_at, line_at = weights_at, patch_at
            for _ in range(stage):
                load_patch(inputs, tile, line_at)
                add_window(total, inputs, a, b, weights, tap_at)
                line_at += plane
                tap_at += taps * weights_row
            cuda.syncthreads()
            channel += stage

        row, column = first_row + row, first_column + column
        image = first_image + image_here
        filter_ += first_filter
        offset = ((image * k + filter_) * p + row) * q + column
        # Of the first element of the window in the maps.
        map_row, map_column = row * pool_stride_h - pool_top, column * pool_stride_w - pool_left
        if (row < p) & (column < q) & (image < u32(n)):
            finish_all(total, best, winner, out, winners, offset, map_row, map_column, filter_)

    return conv2d_relu_max_pool2d


def calls(a: Arguments, geometry: BlockGeometry, tiling: Tiling) -> Iterator[Call]:
    """One launch, a block for each tile of some filters of some images."""
    conv, pool = geometry
    blocks = -(-conv.n // tiling.images)
    for size, tile in ((pool.p, tiling.rows), (pool.q, tiling.columns), (conv.k, tiling.filters)):
        blocks *= -(-size // tile)
    kernel = _kernel(single(geometry), tiling, a.dtype, a.has("bias"))
    yield call(kernel, blocks, tiling.threads, a.x, a.weight, a.bias, a.out, a.winners, conv.n)
