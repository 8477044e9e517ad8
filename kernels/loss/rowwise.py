"""How kernels that work on rows of a matrix share a row among threads, as many lanes as suit its length."""

from __future__ import annotations

import dataclasses
from typing import Any

from gpuconv.kernels.device import MULTIPROCESSORS
from gpuconv.kernels.variant import Arguments

_WARP = 32


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How the work is cut up.

    Attributes:
        threads: threads a block, a multiple of 32.
        lanes: threads a row, a power of two: at most 32, or ``threads``.
    """

    threads: int
    lanes: int


def tilings(shape: tuple[int, int]) -> tuple[Tiling, ...]:
    """For rows of so many columns: as many lanes as leave each a few columns, twice and half as many.

    A block for each row comes first where the rows are long, and too few to give each multiprocessor four blocks of
    four rows: a thread then waits for a quarter of the loads, one behind the other. On an H100 it takes 32 rows of 1000
    columns 9 µs, and a warp for each 22.
    """
    rows, columns = shape
    if columns > 4096:
        return Tiling(256, 256), Tiling(128, 128), Tiling(128, 32)
    lanes = 4
    while lanes < 32 and lanes * 4 < columns:
        lanes *= 2
    choices = [Tiling(128, lanes), Tiling(128, min(32, 2 * lanes)), Tiling(64, max(4, lanes // 2)), Tiling(128, 128)]
    if columns >= 8 * _WARP and rows < 16 * MULTIPROCESSORS:
        choices.insert(0, choices.pop())
    return tuple(dict.fromkeys(choices))


def numbers(a: Arguments, classes: int) -> tuple[Any, Any, Any]:
    """Of a cross entropy: the label that does not count, the share of the right class, and that of each class."""
    return a.ignore_index, a.real(1 - a.label_smoothing), a.real(a.label_smoothing / classes)
