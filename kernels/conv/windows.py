"""Windows as a matrix that is gathered and never stored: what the forward products of matrices share.

A convolution is the product of the filters with a matrix of windows. It has a row for each *product* that an output is
the sum of, a channel of the group and a tap, and a column for each *position* of the output. Stored, it would be as
large as ``r · s`` inputs. A block gathers it from the input instead, a k-tile of ``depth`` rows at a time; a thread
stays with one position, and fetches neighbouring rows of it.

No division stands in the main loop: which channel and tap a row belongs to repeats every ``lcm(r·s, depth)`` rows. A
table of that length in shared memory holds the offset from the window's first element, and two bits, one for the tap's
row and one for its column. A thread knows which rows and columns of its window lie in the padding, as bits, too. 1x1
needs no table: the next row is the next plane.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from gpuconv.geometry import Conv2dGeometry
from gpuconv.kernels.device.host import LONGEST_SEGMENT, Answer, Refusal
from gpuconv.kernels.device.launch import device_function
from gpuconv.kernels.device.memory import ld4, ldg2_if, ldg4_if, ldg_if
from gpuconv.kernels.device.words import i32, u32

#: Bits of a thread's mask: one a row and one a column of the window.
_MASK_BITS = 32


def supports(geometry: Conv2dGeometry) -> Answer:
    """True for all but very long windows."""
    if geometry.r + geometry.s > _MASK_BITS:
        return Refusal(
            f"a window of {geometry.r}x{geometry.s} taps: rows and columns together may be {_MASK_BITS}, one bit each"
        )
    return True


def window_fits(geometry: Conv2dGeometry, segment: int, choices: Sequence[object], otherwise: str) -> Answer:
    """Whether a kernel that reads a row of taps as one segment is for a window.

    Args:
        geometry: of the convolution.
        segment: inputs that a thread holds for a row of taps, at least.
        choices: the tilings for that geometry.
        otherwise: what the window is if there are none.
    """
    window = f"a window of {geometry.r}x{geometry.s} taps with stride {geometry.stride}, dilation {geometry.dilation}"
    if segment > LONGEST_SEGMENT:
        return Refusal(f"{window} takes rows too long for the registers")
    return True if choices else Refusal(f"{window} is {otherwise}")


def products(geometry: Conv2dGeometry) -> int:
    """How many products an output is the sum of."""
    return geometry.c // geometry.groups * geometry.r * geometry.s


def period(geometry: Conv2dGeometry, depth: int) -> int:
    """After how many products the table repeats itself, or ends; 0 where a window has one tap, and no table."""
    taps, length = geometry.r * geometry.s, products(geometry)
    return min(math.lcm(taps, depth), -(-length // depth) * depth) if taps > 1 else 0


class Gathering(NamedTuple):
    """How the threads of a block gather k-tiles of the windows.

    Attributes:
        tabled: whether there is a table; without one ``window`` has to be where the thread's first row begins.
        table_size: elements of the table, uint32.
        fill_table: a device function ``(table, thread)``; it does nothing where there is none.
        locate: a device function ``(position, group, product)`` that gives three numbers for the k-tile that begins at
            a product: ``window``, where in the input the period of the table begins; ``turn``, where the k-tile begins
            in the period; and ``outside``, a bit for each row, and behind them for each column, of the window that lies
            outside of the image.
        advance: a device function of ``window`` and ``turn`` that gives those of the next k-tile.
        fetch: a device function ``(staged, x, table, window, outside, entry, product)``: a thread's elements of a
            k-tile, from ``product`` on, for which the table begins at ``entry``; zeros beyond the last one.
    """

    tabled: bool
    table_size: int
    fill_table: Any
    locate: Any
    advance: Any
    fetch: Any


def gathering(geometry: Conv2dGeometry, *, depth: int, threads: int, rows: int, vector: int = 1) -> Gathering:
    """The device functions for a geometry, of which ``n`` is not looked at.

    Args:
        geometry: of the convolution.
        depth: rows of a k-tile.
        threads: of a block.
        rows: of a k-tile, that a thread fetches; with a table a multiple of 4.
        vector: neighbouring positions that it fetches at once; more than one only of 1x1 without stride and padding.
    """
    c, h, w, r, s, p, q = (getattr(geometry, name) for name in "chwrspq")
    (stride_h, stride_w), (dilation_h, dilation_w) = geometry.stride, geometry.dilation
    top, left = geometry.padding[0][0], geometry.padding[1][0]
    padded = geometry.padding != ((0, 0), (0, 0))
    channels, taps, plane, length = c // geometry.groups, r * s, h * w, products(geometry)
    ragged, tabled = length % depth != 0, taps > 1
    table_period = period(geometry, depth) or depth
    period_planes = table_period // taps * plane
    load_if = ldg4_if if vector == 4 else ldg2_if

    @device_function
    def fill_table(table: Any, thread: Any) -> None:
        """For each product of a period: where its element stands in a window, and its row and column of taps."""
        if tabled:
            i = thread
            while i < table_period:
                channel, tap = divmod(i, taps)
                tap_row, tap_column = divmod(tap, s)
                table[i] = channel * plane + tap_row * (dilation_h * w) + tap_column * dilation_w
                table[i + table_period] = (u32(1) << tap_row) + (u32(1) << (tap_column + r))
                i += threads

    @device_function
    def borders(top_row: Any, left_column: Any) -> Any:
        outside = u32(0)
        for i in range(r):
            if top_row + i * dilation_h >= h:
                outside += u32(1) << i
        for i in range(s):
            if left_column + i * dilation_w >= w:
                outside += u32(1) << (r + i)
        return outside

    @device_function
    def locate(position: Any, group: Any, product: Any) -> Any:
        line = position // q
        image = line // p
        # Unsigned: what lies above or left of the image is a huge row or column.
        top_row = line % p * stride_h - top
        left_column = position % q * stride_w - left
        turns, turn = divmod(product, table_period)
        window = (image * c + group * channels) * plane + turns * period_planes + top_row * w + left_column
        return window, turn, borders(top_row, left_column) if padded else u32(0)

    @device_function
    def advance(window: Any, turn: Any) -> Any:
        turn += depth
        if turn == table_period:
            turn = u32(0)
            window += period_planes
        return window, turn

    @device_function
    def fetch_by_table(staged: Any, x: Any, table: Any, window: Any, outside: Any, entry: Any, product: Any) -> None:
        for i in range(0, rows, 4):
            offsets, marks = ld4(table, i32(entry) + i), ld4(table, i32(entry) + (i + table_period))
            for j in range(4):
                inside = product + (i + j) < length if ragged else True
                if padded:
                    inside = inside & ((outside & marks[j]) == 0)
                staged[i + j] = ldg_if(x, window + offsets[j], inside)

    @device_function
    def fetch_planes(staged: Any, x: Any, table: Any, window: Any, outside: Any, entry: Any, product: Any) -> None:
        for i in range(rows):
            inside = product + i < length if ragged else True
            if padded:
                inside = inside & (outside == 0)
            if vector == 1:
                staged[i] = ldg_if(x, window + i * plane, inside)
            else:
                found = load_if(x, window + i * plane, inside)
                for j in range(vector):
                    staged[i * vector + j] = found[j]

    return Gathering(
        tabled=tabled,
        table_size=2 * table_period if tabled else 4,
        fill_table=fill_table,
        locate=locate,
        advance=advance,
        fetch=fetch_by_table if tabled else fetch_planes,
    )
