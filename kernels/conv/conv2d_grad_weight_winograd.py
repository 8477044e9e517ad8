"""Gradient for the weight of a 3x3 convolution with stride 1 by Winograd's algorithm, forward's read backwards.

``dW = Gᵀ [Σ_tiles (A dy Aᵀ) · (Bᵀ x B)] G``: of each tile of 2x2 gradients and of the 4x4 inputs that it met 16 points,
a product of matrices in each of them, filters by tiles and tiles by channels, and of its 16 sums the 3x3 taps: 16
multiplications where the direct sum has 36.

A block computes ``filters x channels`` windows over a part of all tiles. Each of its 8 warps has two points, with 8x8
sums a thread. Tiles go by in stages of 4, neighbours: while a stage in shared memory is multiplied, the next one is
fetched to registers, and comes to its points on the way to the other of two buffers: inputs as in the forward kernel,
of gradients a tile a thread. Four lanes have a stage's tiles, and eight of them as many channels or filters. In the end
the points meet in shared memory, and a thread computes the taps of a window. Parts go to a workspace, which
``partial_sums`` adds up in a fixed order.

In shared memory four neighbouring filters (or channels) of a tile are 128 bits, and the four tiles of a stage follow
each other, turned round by one for each two such groups: so neither the stores, of 4 tiles and 8 filters, nor the
loads, of 8 groups of one tile, have bank conflicts.

Shared bytes: 48 KB. Registers aimed at: 255, 128 of them sums; one block fills a multiprocessor. Expected bottleneck:
multiply-adds, two thirds of the instructions of the main loop, and the loads of global memory, each of which touches
eight lines. Accuracy and what is not finite: as forward; an infinite gradient or input reaches all taps of its channel
and filter. In float64 the sums would not fit: there the product is that of ``conv2d_grad_weight_implicit_gemm.py``.

Not chosen by the rule before a GPU has timed it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from numba import cuda, types

from gpuconv.geometry import Conv2dGeometry
from gpuconv.kernels.compiled import specialised
from gpuconv.kernels.conv import conv2d_grad_weight_implicit_gemm as direct
from gpuconv.kernels.conv import conv2d_winograd as forward
from gpuconv.kernels.device.host import MULTIPROCESSORS, NEXT_LAUNCH, Answer, launch_time
from gpuconv.kernels.device.launch import Call, call, device_function, jit
from gpuconv.kernels.device.memory import ld, ld4, ldg_if, st, st4
from gpuconv.kernels.device.registers import add_outer, clear, fma, unrolled
from gpuconv.kernels.device.words import i32, minimum, u32
from gpuconv.kernels.partial_sums import sum_parts
from gpuconv.kernels.variant import Arguments

_POINTS, _OWN_POINTS, _THREADS = 16, 2, 256
#: Tiles a stage, and stages that are worth a block.
_DEPTH, _FEWEST_STAGES = 4, 4
# Of the estimate, in issue slots of a warp, as forward: a 128-bit load of shared memory; an element that is fetched; a
# stage. No GPU has timed this kernel.
_SHARED_LOAD, _FETCH, _STAGE = 5, 4, 130


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How the work is cut up.

    Attributes:
        filters, channels: windows of a block.
        parts: into how many parts the sum over all tiles is cut; at most 65,535.
    """

    filters: int
    channels: int
    parts: int = 1


def supports(geometry: Conv2dGeometry) -> Answer:
    """True for windows of 3x3 with stride 1 and without dilation."""
    return forward.supports(geometry)


def flop(geometry: Conv2dGeometry) -> int:
    """Operations of the products at all points, a multiply-add being two: as many as forward."""
    return forward.flop(geometry)


def _stages(geometry: Conv2dGeometry) -> int:
    return -(-geometry.n * -(-geometry.p // 2) * -(-geometry.q // 2) // _DEPTH)


def _blocks(geometry: Conv2dGeometry, tiling: Tiling) -> tuple[int, int]:
    """Blocks along the filters and the channels of a group."""
    filters, channels = geometry.k // geometry.groups, geometry.c // geometry.groups
    return -(-filters // tiling.filters), -(-channels // tiling.channels)


def estimate(geometry: Conv2dGeometry, tiling: Tiling) -> float:
    """Microseconds on an H100, about: what ranks tilings, and says how many parts."""
    down, across = _blocks(geometry, tiling)
    rows, columns = tiling.filters // 8, tiling.channels // 4
    loads = _SHARED_LOAD * (1 / rows + 1 / columns) / 4
    fetches = _FETCH * (2 / tiling.filters + 1 / tiling.channels)
    fixed = _STAGE / (_DEPTH * _OWN_POINTS * rows * columns)
    stages = -(-_stages(geometry) // tiling.parts)
    adds = _POINTS * tiling.filters * tiling.channels * stages * _DEPTH
    waves = -(-down * across * geometry.groups * tiling.parts // MULTIPROCESSORS)
    found = launch_time(waves * adds * (1 + loads + fetches + fixed))
    if tiling.parts > 1:
        found += NEXT_LAUNCH + direct.estimate_sum(geometry, tiling.parts)
    return found


def tilings(geometry: Conv2dGeometry) -> tuple[Tiling, ...]:
    """By estimated time, each with the number of parts estimated to be best; last the first one with one part."""
    found = []
    for shape in (Tiling(64, 32), Tiling(32, 32)):
        down, across = _blocks(geometry, shape)
        blocks, most = down * across * geometry.groups, max(1, _stages(geometry) // _FEWEST_STAGES)
        counts = {1, *(max(1, min(waves * MULTIPROCESSORS // blocks, most)) for waves in (1, 2, 3, 4))}
        cuts = [dataclasses.replace(shape, parts=count) for count in sorted(counts)]
        found.append(min(cuts, key=lambda cut: estimate(geometry, cut)))
    found.sort(key=lambda tiling: estimate(geometry, tiling))
    return tuple(dict.fromkeys([*found, dataclasses.replace(found[0], parts=1)]))


def workspace_size(geometry: Conv2dGeometry, tiling: Tiling) -> int:
    """Elements of the workspace: one for each part of each weight, none if there is one part."""
    return tiling.parts * geometry.k * geometry.c // geometry.groups * 9 if tiling.parts > 1 else 0


@specialised
def _kernel(geometry: Conv2dGeometry, tiling: Tiling) -> Callable[..., None]:
    """The kernel for images of a geometry, whatever their number and parts: ``n`` and ``parts`` are not looked at."""
    real = types.float32
    c, h, w, k, p, q, groups = (getattr(geometry, name) for name in ("c", "h", "w", "k", "p", "q", "groups"))
    channels, filters = c // groups, k // groups
    top, left = geometry.padding[0][0], geometry.padding[1][0]
    across = -(-q // 2)
    map_tiles, plane, pixels = -(-p // 2) * across, h * w, p * q
    padded = geometry.padding != ((0, 0), (0, 0)) or p % 2 + q % 2 > 0
    halved = p % 2 + q % 2 > 0
    elements = k * channels * 9

    tile_filters, tile_channels = tiling.filters, tiling.channels
    filter_blocks, channel_blocks = _blocks(geometry, tiling)
    thread_filters, thread_channels = tile_filters // 8, tile_channels // 4
    filter_pitch, channel_pitch = _DEPTH * tile_filters, _DEPTH * tile_channels
    grads_size = _POINTS * filter_pitch
    buffer_size = grads_size + _POINTS * channel_pitch
    both_buffers = 2 * buffer_size
    # Inputs: a row of points of a tile and channel, of 16 channels at a time. Gradients: a tile of a filter.
    input_fetches, staged_inputs = tile_channels // 16, tile_channels // 2
    idle = tile_filters < 64
    # Where the points meet: 8 filters of all channels at a time.
    gathered_pitch = tile_channels + 16
    gathered_point = 8 * gathered_pitch

    @device_function
    def multiply(
        tile: int, total: Any, a: Any, b: Any, stage: Any, rows: Any, turn: Any, columns: Any, side: Any
    ) -> None:
        row, column = rows + ((turn + tile) & 3) * 4, columns + ((side + tile) & 3) * 4
        other = columns + ((side + (tile + 2)) & 3) * 4
        for point in range(_OWN_POINTS):
            for i in range(0, thread_filters, 4):
                found = ld4(stage, row + (point * filter_pitch + i * 32))
                for j in range(4):
                    a[i + j] = found[j]
            for i in range(0, thread_channels, 4):
                # Half a turn further stand the groups from the fourth on.
                found = ld4(stage, (other if i else column) + (point * channel_pitch + i * 16))
                for j in range(4):
                    b[i + j] = found[j]
            add_outer(total[point], a, b, 0)

    multiply_half = unrolled(multiply, _DEPTH // 2)

    @device_function
    def place(first: Any, tile: Any) -> Any:
        """Where in a point's factors one of a filter or channel and a tile stands."""
        four = first >> 2
        return i32(four * 16 + (((four >> 1) + tile) & 3) * 4 + (first & 3))

    @device_function
    def corner(tile: Any) -> Any:
        """Image, row and column of a tile's first result."""
        image, rest = divmod(tile, map_tiles)
        row, column = divmod(rest, across)
        return image, 2 * row, 2 * column

    @device_function
    def fetch_grads(grads: Any, grad: Any, map_: Any, corner: Any, live: Any) -> None:
        if idle:
            live = live & (u32(cuda.threadIdx.x) < 4 * tile_filters)
        image, row, column = corner
        at = image * (k * pixels) + map_ + row * q + column
        for i in range(2):
            for j in range(2):
                inside = live & (row + i < p) & (column + j < q) if halved else live
                grads[2 * i + j] = ldg_if(grad, at + (i * q + j), inside)

    @device_function
    def fetch_inputs(rows: Any, x: Any, maps: Any, upper_row: Any, lower_row: Any, corner: Any, live: Any) -> None:
        """Two rows of a tile, of one channel or two."""
        image, row, column = corner
        # Unsigned: what lies above or left of the image is a huge row or column.
        upper_row, lower_row, column = row + upper_row, row + lower_row, column - left
        at = image * (c * plane) + column
        upper_at, lower_at = at + upper_row * w, at + lower_row * w
        upper, lower = live, live
        if padded:
            upper, lower = live & (upper_row < h), live & (lower_row < h)
        for i in range(input_fetches):
            for j in range(4):
                inside = column + j < w if padded else True
                rows[8 * i + j] = ldg_if(x, upper_at + maps[i] + j, upper & inside)
                rows[8 * i + 4 + j] = ldg_if(x, lower_at + maps[i] + j, lower & inside)

    @device_function
    def store_grads(stage: Any, grads: Any, at: Any) -> None:
        """``A dy Aᵀ``."""
        if (u32(cuda.threadIdx.x) < 4 * tile_filters) if idle else True:
            for i in range(4):
                if i == 0:
                    one, two = grads[0], grads[1]
                elif i == 1:
                    one, two = grads[0] + grads[2], grads[1] + grads[3]
                elif i == 2:
                    one, two = grads[0] - grads[2], grads[1] - grads[3]
                else:
                    one, two = -grads[2], -grads[3]
                st(stage, at + 4 * i * filter_pitch, one)
                st(stage, at + (4 * i + 1) * filter_pitch, one + two)
                st(stage, at + (4 * i + 2) * filter_pitch, one - two)
                st(stage, at + (4 * i + 3) * filter_pitch, -two)

    @device_function
    def store_inputs(stage: Any, rows: Any, sign: Any, at: Any) -> None:
        """``Bᵀ x B``, a row of it."""
        for i in range(input_fetches):
            one, two = fma(sign, rows[8 * i + 4], rows[8 * i]), fma(sign, rows[8 * i + 5], rows[8 * i + 1])
            three, four = fma(sign, rows[8 * i + 6], rows[8 * i + 2]), fma(sign, rows[8 * i + 7], rows[8 * i + 3])
            # 16 channels further: four groups, and half a turn, which is why they are told apart.
            first = at[i]
            st(stage, first, one - three)
            st(stage, first + channel_pitch, two + three)
            st(stage, first + 2 * channel_pitch, three - two)
            st(stage, first + 3 * channel_pitch, two - four)

    @device_function
    def window(shared: Any, at: Any, out: Any, offset: Any) -> None:
        """``Gᵀ m G``: of 16 sums nine taps."""
        rows = cuda.local.array(12, real)
        for j in range(4):
            first, second = ld(shared, at + j * gathered_point), ld(shared, at + (4 + j) * gathered_point)
            third, last = ld(shared, at + (8 + j) * gathered_point), ld(shared, at + (12 + j) * gathered_point)
            half = real(0.5) * (second + third)
            rows[j], rows[4 + j], rows[8 + j] = first + half, real(0.5) * (second - third), half + last
        for i in range(3):
            half = real(0.5) * (rows[4 * i + 1] + rows[4 * i + 2])
            st(out, offset + 3 * i, rows[4 * i] + half)
            st(out, offset + (3 * i + 1), real(0.5) * (rows[4 * i + 1] - rows[4 * i + 2]))
            st(out, offset + (3 * i + 2), half + rows[4 * i + 3])

    @device_function
    def finish(
        i: int, shared: Any, total: Any, gather_at: Any, at: Any, out: Any, filter_: Any, inside: Any, offset: Any
    ) -> None:
        cuda.syncthreads()
        for point in range(_OWN_POINTS):
            for j in range(0, thread_channels, 4):
                found = (total[point, i, j], total[point, i, j + 1], total[point, i, j + 2], total[point, i, j + 3])
                st4(shared, gather_at + (point * gathered_point + j * 4), found)
        cuda.syncthreads()
        other = i // 4 * 32 + i % 4
        if inside & (filter_ + other < filters):
            window(shared, at, out, offset + other * channels * 9)

    finish_all = unrolled(finish, thread_filters)

    @jit(launch_bounds=(_THREADS, 1))
    def conv2d_grad_weight_winograd(grad: Any, x: Any, out: Any, tiles: Any, tiles_a_part: Any) -> None:
        shared = cuda.shared.array(both_buffers, real, alignment=16)
        total = cuda.local.array((_OWN_POINTS, thread_filters, thread_channels), real)
        a, b = cuda.local.array(thread_filters, real), cuda.local.array(thread_channels, real)
        grads, rows = cuda.local.array(4, real), cuda.local.array(staged_inputs, real)
        maps, input_at = cuda.local.array(input_fetches, types.uint32), cuda.local.array(input_fetches, types.int32)
        for own_point in range(_OWN_POINTS):
            clear(total[own_point])

        thread, part = u32(cuda.threadIdx.x), u32(cuda.blockIdx.y)
        rest, channel_block = divmod(u32(cuda.blockIdx.x), channel_blocks)
        group, filter_block = divmod(rest, filter_blocks)
        warp, lane = thread >> 5, thread & 31
        # What the thread fetches: one of a stage's tiles; of it a row of points, in one channel or two; and a filter.
        own_tile, own_map = lane & 3, lane >> 2
        row = warp & 3
        upper_row = u32(1) - top
        if row == 0:
            upper_row = u32(0) - top
        if row == 2:
            upper_row = u32(2) - top
        lower_row = u32(2) - top
        if row == 2:
            lower_row = u32(1) - top
        if row == 3:
            lower_row = u32(3) - top
        sign = real(1) if row == 1 else real(-1)
        for i in range(input_fetches):
            channel = (warp >> 2) * 8 + own_map + 16 * i
            input_at[i] = place(channel, own_tile) + i32(row * (4 * channel_pitch)) + grads_size
            maps[i] = (group * channels + minimum(channel_block * tile_channels + channel, channels - 1)) * plane
        filter_ = warp * 8 + own_map
        grad_at = place(filter_, own_tile)
        map_ = (group * filters + minimum(filter_block * tile_filters + filter_, filters - 1)) * pixels

        tile = part * tiles_a_part
        end = minimum(tile + tiles_a_part, tiles)
        own_tile += tile
        first = corner(own_tile)
        fetch_grads(grads, grad, map_, first, own_tile < end)
        fetch_inputs(rows, x, maps, upper_row, lower_row, first, own_tile < end)
        store_grads(shared, grads, grad_at)
        store_inputs(shared, rows, sign, input_at)
        cuda.syncthreads()
        point, lane_filter, lane_channel = warp * _OWN_POINTS, lane >> 2, lane & 3
        filter_own = i32(point * filter_pitch + lane_filter * 16)
        channel_own = i32(point * channel_pitch + lane_channel * 16) + grads_size
        turn, side = i32(lane_filter >> 1), i32(lane_channel >> 1)
        buffer = i32(0)
        tile += _DEPTH
        while tile < end:
            own_tile += _DEPTH
            tile += _DEPTH
            other = buffer_size - buffer
            next_ = corner(own_tile)
            fetch_inputs(rows, x, maps, upper_row, lower_row, next_, own_tile < end)
            multiply_half(total, a, b, shared, filter_own + buffer, turn, channel_own + buffer, side)
            for i in range(input_fetches):
                input_at[i] += other - buffer
            store_inputs(shared, rows, sign, input_at)
            fetch_grads(grads, grad, map_, next_, own_tile < end)
            multiply_half(total, a, b, shared, filter_own + buffer, turn + 2, channel_own + buffer, side + 2)
            store_grads(shared, grads, grad_at + other)
            buffer = other
            cuda.syncthreads()
        multiply_half(total, a, b, shared, filter_own + buffer, turn, channel_own + buffer, side)
        multiply_half(total, a, b, shared, filter_own + buffer, turn + 2, channel_own + buffer, side + 2)

        gather_at = i32(point * gathered_point + lane_filter * gathered_pitch + lane_channel * 4)
        own_filter, own_channel = divmod(thread, tile_channels)
        filter_ = filter_block * tile_filters + own_filter * 4
        channel = channel_block * tile_channels + own_channel
        at = i32(own_filter * gathered_pitch + own_channel)
        offset = part * elements + ((group * filters + filter_) * channels + channel) * 9
        finish_all(shared, total, gather_at, at, out, filter_, channel < channels, offset)

    return conv2d_grad_weight_winograd


def calls(a: Arguments, geometry: Conv2dGeometry, tiling: Tiling) -> Iterator[Call]:
    """Partial sums, and with several parts their reduction; for an empty batch too: the gradient is zero."""
    if a.dtype == "float64":
        yield from direct.calls(a, geometry, direct.Tiling(32, 32, 4, 4, positions=8, parts=tiling.parts))
        return
    kernel = _kernel(dataclasses.replace(geometry, n=1), dataclasses.replace(tiling, parts=1))
    down, across = _blocks(geometry, tiling)
    tiles = geometry.n * -(-geometry.p // 2) * -(-geometry.q // 2)
    # Whole stages a part, so that no stage belongs to two.
    tiles_a_part = -(-_stages(geometry) // tiling.parts) * _DEPTH
    target = a.out if tiling.parts == 1 else a.workspace
    grid = down * across * geometry.groups, tiling.parts
    yield call(kernel, grid, _THREADS, a.grad, a.x, target, tiles, tiles_a_part)
    if tiling.parts > 1:
        yield sum_parts(a.workspace, a.out, tiling.parts)
