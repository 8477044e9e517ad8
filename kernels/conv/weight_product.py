"""The gradient for a convolution's weight as a product of matrices: what its kernels share.

``dW[k, crs] = Σ grad[k, npq] · X[npq, crs]``, where row npq of X is the window of output position npq: channels times
taps, gathered from the input when it is needed. A block computes ``filters x columns`` elements of dW, for one group,
over one part of the positions, which go by in stages.

Fetching, a thread stays with one position of each stage, so that it divides once for all of its elements, and with the
same filters and columns throughout. A table in shared memory says where in an image a column of dW looks.

A kernel's tiling has ``filters`` and ``columns`` of a block, its ``threads``, and ``parts`` of the sum over positions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from gpuconv.geometry import Conv2dGeometry
from gpuconv.kernels.device.launch import Call, call, device_function
from gpuconv.kernels.device.memory import ld, ld4, ldg_if
from gpuconv.kernels.device.registers import unrolled
from gpuconv.kernels.device.words import i32, minimum, u32
from gpuconv.kernels.partial_sums import sum_parts
from gpuconv.kernels.variant import Arguments


def matrix(geometry: Conv2dGeometry) -> tuple[int, int, int]:
    """Rows and columns of a group's dW, and the positions it sums over."""
    columns = geometry.c // geometry.groups * geometry.r * geometry.s
    return geometry.k // geometry.groups, columns, geometry.n * geometry.p * geometry.q


def blocks_along(geometry: Conv2dGeometry, filters: int, columns: int) -> tuple[int, int]:
    """Blocks along the filters and the columns of a group."""
    rows, width, _ = matrix(geometry)
    return -(-rows // filters), -(-width // columns)


def workspace_size(geometry: Conv2dGeometry, tiling: Any) -> int:
    """Elements of the workspace: one for each part of each weight, none if there is one part."""
    return tiling.parts * math.prod(geometry.weight_shape) if tiling.parts > 1 else 0


class Gathering(NamedTuple):
    """How the threads of a block fetch stages of both matrices.

    Attributes:
        step: from a filter or column that a thread fetches to its next one.
        filters, columns: how many it fetches.
        table_size: elements of the table, int32.
        tile_of: a device function of a block's number: its group, first filter and first column.
        fill_table: a device function ``(table, thread, group, first_column)``.
        fetch: a device function ``(position, end, grad, x, grads, windows, first_plane, filter_, table, entry)``: the
            thread's gradients and windows at a position, zeros from ``end`` on. ``first_plane`` is where the plane of
            its first filter, ``filter_``, begins in the first image; ``entry`` where the table has its first column.
    """

    step: int
    filters: int
    columns: int
    table_size: int
    tile_of: Any
    fill_table: Any
    fetch: Any


def gathering(geometry: Conv2dGeometry, tiling: Any, positions: int) -> Gathering:
    """The device functions for a geometry, of which ``n`` is not looked at, and stages of ``positions``."""
    c, h, w, k, r, s, q = (getattr(geometry, name) for name in "chwkrsq")
    groups, plane = geometry.groups, geometry.p * geometry.q
    channels, filters, width = c // groups, k // groups, c // groups * r * s
    (stride_h, stride_w), (dilation_h, dilation_w) = geometry.stride, geometry.dilation
    (top, bottom), (left, right) = geometry.padding
    padded = top + bottom + left + right > 0
    tile_filters, tile_columns, threads = tiling.filters, tiling.columns, tiling.threads
    down, across = blocks_along(geometry, tile_filters, tile_columns)
    ragged = filters % tile_filters > 0
    step = threads // positions
    filter_fetches, column_fetches = tile_filters // step, tile_columns // step

    @device_function
    def tile_of(block: Any) -> Any:
        rest, column_tile = divmod(block, across)
        group = rest // down if groups > 1 else u32(0)
        return group, i32((rest - group * down) * tile_filters), i32(column_tile * tile_columns)

    @device_function
    def fill_table(table: Any, thread: Any, group: Any, first_column: Any) -> None:
        """For each column of the tile, the offset of its tap in an image, and its row and column there.

        They may lie in the padding. Columns past the last one repeat it; their sums are not stored.
        """
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

    @device_function
    def fetch_gradient(i: int, fetched: Any, grad: Any, offset: Any, filter_: Any, live: Any) -> None:
        wanted = live & (u32(filter_) + i * step < filters) if ragged else live
        fetched[i] = ldg_if(grad, offset + i * step * plane, wanted)

    @device_function
    def fetch_input(
        i: int, fetched: Any, x: Any, table: Any, entry: Any, offset: Any, row: Any, column: Any, live: Any
    ) -> None:
        if padded:
            tap_offset, tap_row, tap_column, _ = ld4(table, entry + 4 * i * step)
            # Unsigned, so that one comparison tests both borders.
            wanted = live & (u32(row + tap_row) < h) & (u32(column + tap_column) < w)
        else:
            tap_offset, wanted = ld(table, entry + 4 * i * step), live
        fetched[i] = ldg_if(x, offset + tap_offset, wanted)

    fetch_gradients, fetch_inputs = unrolled(fetch_gradient, filter_fetches), unrolled(fetch_input, column_fetches)

    @device_function
    def fetch(
        position: Any,
        end: Any,
        grad: Any,
        x: Any,
        grads: Any,
        windows: Any,
        first_plane: Any,
        filter_: Any,
        table: Any,
        entry: Any,
    ) -> None:
        live = position < end
        image, rest = divmod(position, plane)
        output_row, output_column = divmod(rest, q)
        row, column = i32(output_row) * stride_h, i32(output_column) * stride_w
        offset = i32(image) * (k * plane) + first_plane + i32(rest)
        fetch_gradients(grads, grad, offset, filter_, live)
        offset = i32(image) * (c * h * w) + row * w + column
        fetch_inputs(windows, x, table, entry, offset, row, column, live)

    return Gathering(step, filter_fetches, column_fetches, 4 * tile_columns, tile_of, fill_table, fetch)


def calls_of(kernel: Any, a: Arguments, geometry: Conv2dGeometry, tiling: Any, positions: int) -> Iterator[Call]:
    """The launch of a kernel of ``(grad, x, out, size, size_a_part)``, and with several parts their reduction.

    A stage has ``positions``; a part whole stages, so that no stage belongs to two.
    """
    down, across = blocks_along(geometry, tiling.filters, tiling.columns)
    size = matrix(geometry)[2]
    size_a_part = -(-size // (tiling.parts * positions)) * positions
    target = a.out if tiling.parts == 1 else a.workspace
    grid = down * across * geometry.groups, tiling.parts
    yield call(kernel, grid, tiling.threads, a.grad, a.x, target, size, size_a_part)
    if tiling.parts > 1:
        yield sum_parts(a.workspace, a.out, tiling.parts, a.dtype)
