"""What the host decides before a launch: support, alignment, and the choice of a tiling."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias, TypeVar

import numpy as np

T = TypeVar("T")

#: The most elements that an array may have: offsets are 32-bit numbers, signed in some kernels.
MAX_ELEMENTS = 2**31 - 1


class Refusal(str):
    """Why a variant does not support a geometry. It is false, so that ``if supports(geometry)`` reads naturally."""

    __slots__ = ()

    def __bool__(self) -> bool:
        return False


#: Of `supports`: True, or a false value that gives the reason.
Answer: TypeAlias = "bool | Refusal"


def fits_offsets(**sizes: int) -> Answer:
    """Whether arrays of these sizes can be indexed with 32 bits; the names are for the message."""
    for name, size in sizes.items():
        if size > MAX_ELEMENTS:
            return Refusal(
                f"{name} has {size} elements, which needs 64-bit offsets: the kernels use 32 bits, up to "
                f"{MAX_ELEMENTS}. Split the batch"
            )
    return True


def aligned(*arrays: Any) -> bool:
    """Whether all arrays start at a multiple of 16 bytes, so that 128-bit accesses are allowed; for the host.

    Allocations do; a view may not, even if it is contiguous.
    """
    interfaces = (getattr(array, "__cuda_array_interface__", None) or array.__array_interface__ for array in arrays)
    return all((interface["data"][0] or 0) % 16 == 0 for interface in interfaces)


#: Elements of shared memory that a tile may take: 24 KB in float32, the static limit of 48 KB in float64.
SHARED_ELEMENTS = 6 * 1024
#: Elements that a thread may hold for a row of taps.
LONGEST_SEGMENT = 32

#: Multiprocessors of a large GPU (H100, H200), assumed when tilings are compared.
MULTIPROCESSORS = 132
#: Its cycles a microsecond, and multiply-adds that a multiprocessor makes in a cycle.
CLOCK, LANES = 1980, 128
#: Microseconds of a launch in an H100's timings with a cold cache, and of each further one in a row.
LAUNCH, NEXT_LAUNCH = 4.8, 2.4


def launch_time(adds: float) -> float:
    """Microseconds on an H100, about, of a launch whose busiest multiprocessor takes as long as for ``adds``.

    These are multiply-adds that fill its lanes.
    """
    return LAUNCH + adds / LANES / CLOCK


def bounds(threads: int, held: int = 512, /) -> tuple[int, int]:
    """Launch bounds: blocks of so many threads, and registers for ``held`` threads a multiprocessor."""
    return threads, max(1, held // (-(-threads // 32) * 32))


def first_fitting(tilings: Iterable[T], fits: Callable[[T], bool], /) -> list[T]:
    """The first of some tilings that fits, in a list, which is empty if there is none."""
    for tiling in tilings:
        if fits(tiling):
            return [tiling]
    return []


def fitted(size: int, tile: int, unit: int, /) -> int:
    """The smallest multiple of ``unit`` of which no more are needed to cover ``size`` than of ``tile``."""
    return -(-size // (-(-size // tile) * unit)) * unit


def widest_access(length: int, dtype: Any, /) -> int:
    """The most elements, 4, 2 or 1, that 128 bits hold and that divide ``length``, that of rows one after the other."""
    most = min(4, 16 // np.dtype(dtype).itemsize)
    return next(count for count in (4, 2, 1) if count <= most and length % count == 0)


def bank_conflicts(offsets: Iterable[int]) -> int:
    """How many passes the worst of some 128-bit accesses to shared memory takes: 1 is free of conflicts; for the host.

    Args:
        offsets: for each thread in turn, the first of the four float32 elements that it accesses; a multiple of 4.
    """
    words, worst = [offset // 4 for offset in offsets], 1
    # Eight lanes are served at once, by eight banks of that width, each of which has one address at a time.
    for first in range(0, len(words), 8):
        distinct = set(words[first : first + 8])
        worst = max(worst, *(sum(word % 8 == bank for word in distinct) for bank in range(8)))
    return worst
