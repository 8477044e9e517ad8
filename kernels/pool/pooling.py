"""What the pooling kernels share: a thread for each element of the result, in the order in which they lie in memory."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numba import types

from gpuconv.geometry import Pool2dGeometry, effective
from gpuconv.kernels.device import device_function, maximum, minimum


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How the work is cut up.

    Attributes:
        threads: threads a block.
    """

    threads: int


def tilings(geometry: Pool2dGeometry) -> tuple[Tiling, ...]:
    """Blocks of 256, 128 and 64 threads; smaller ones spread a small result over more multiprocessors."""
    return Tiling(256), Tiling(128), Tiling(64)


def padded(geometry: Pool2dGeometry) -> bool:
    """Whether a window may reach outside of the input."""
    return geometry.padding != ((0, 0), (0, 0)) or geometry.overhang != (0, 0)


def row_vector(geometry: Pool2dGeometry, dtype: str, aligned16: bool) -> int:
    """Elements of a window's row if they are one aligned access of up to 128 bits in each window, else 1.

    ``aligned16``: the input begins at a multiple of 16 bytes.
    """
    s, (left, _) = geometry.s, geometry.padding[1]
    whole = geometry.stride[1] == s and geometry.dilation[1] == 1 and left == 0 and geometry.w % s == 0
    return s if aligned16 and whole and s in (2, 4) and s * np.dtype(dtype).itemsize <= 16 else 1


def covering(geometry: Pool2dGeometry) -> tuple[int, int]:
    """The most windows that reach over an element, along each axis."""
    (r, s), (down, across) = (geometry.r, geometry.s), geometry.dilation
    return -(-effective(r, down) // geometry.stride[0]), -(-effective(s, across) // geometry.stride[1])


def first_covering(geometry: Pool2dGeometry) -> Any:
    """A device function of an element's row and column, padding counted: those of the first window that may cover it.

    All are unsigned words: a window above or left of the first one has a huge number.
    """
    (down, across), (stride_h, stride_w) = covering(geometry), geometry.stride

    def first_window(row: Any, column: Any) -> Any:
        return row // stride_h - (down - 1), column // stride_w - (across - 1)

    return device_function(first_window)


def keeping_larger(*, guarded: bool) -> Any:
    """A device function of ``(best, winner, value, tap, inside)`` that gives the new ``best, winner``.

    It is called for the taps of a window in order, beginning with -inf and the winner -1, or 0 if the window is not
    ``guarded``: then every tap is taken to be inside.
    """

    def keep_larger(best: Any, winner: Any, value: Any, tap: Any, inside: bool) -> Any:
        # A NaN is not equal to itself: it wins, and no later number is larger.
        wins = (value > best) | (value != value)
        if guarded:
            # The first element inside wins even if it is -inf; padding never does.
            wins = inside & (wins | (winner < 0))
        return value if wins else best, tap if wins else winner

    return device_function(keep_larger)


def uniform(geometry: Pool2dGeometry, include_padding: bool, override: int | None) -> bool:
    """Whether an average divides every window by the same number."""
    rows, columns = geometry.window_counts(include_padding=include_padding)
    return override is not None or len({*rows}) == len({*columns}) == 1


def divisor(geometry: Pool2dGeometry, dtype: str, include_padding: bool, override: int | None) -> Any:
    """A device function that gives what the window at (row, column), both int32, is divided by.

    It is the product of :meth:`Pool2dGeometry.window_counts`, or ``override``.
    """
    real = getattr(types, dtype)
    r, s, h, w = geometry.r, geometry.s, geometry.h, geometry.w
    stride_h, stride_w = geometry.stride
    (top, bottom), (left, right) = geometry.padding
    rows, columns = geometry.window_counts(include_padding=include_padding)
    same = rows[0] * columns[0] if override is None else override

    def the_same(row: Any, column: Any) -> Any:
        return real(same)

    def counted(row: Any, column: Any) -> Any:
        first_row, first_column = row * stride_h - top, column * stride_w - left
        last_row, last_column = minimum(first_row + r, h + bottom), minimum(first_column + s, w + right)
        if not include_padding:
            first_row, first_column = maximum(first_row, 0), maximum(first_column, 0)
            last_row, last_column = minimum(last_row, h), minimum(last_column, w)
        return real((last_row - first_row) * (last_column - first_column))

    return device_function(the_same if uniform(geometry, include_padding, override) else counted)
