"""One launch for all parameters of a network: what the optimizers' updates of all parameters share.

A network has a dozen parameters of a few thousand elements, or of a few: a launch for each costs more than its work.
Here the blocks of one grid are dealt out to the parameters in order, as many to each as a launch of its own would have.
The sizes are constants of the kernel, so that a block finds its parameter by a few comparisons.

The numbers of the formula (learning rate, momentum) lie in device memory and not among the launch's arguments: those of
a captured CUDA graph are fixed, while the learning rate changes from step to step. There is a table of them, a row for
each of the coming steps, and each block keeps count of its own steps: it reads the row whose turn it is, and moves on
to the next; at the last row it stays. So the host has nothing to say before a step, and no two blocks have to agree.
One array holds it all, counts too, as numbers of the parameters' type::

    number of the last row | row of block 0, of block 1, ... | row 0 | row 1 | ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from numba import cuda, types

from gpuconv.kernels.device import Call, call, device_function, ld, st, u32
from gpuconv.kernels.operations import UPDATE_THREADS, rows_at
from gpuconv.kernels.pointwise.elementwise import Tiling, blocks_of, vector_of
from gpuconv.kernels.variant import Arguments

#: Parameters a launch. An array takes 56 bytes of arguments, of which a kernel has 4 KB; Adam's update takes four.
_MOST = 16


def tilings(sizes: tuple[int, ...]) -> tuple[Tiling, ...]:
    """Blocks of 128 to 512 threads; many small parameters leave the larger ones partly empty."""
    return Tiling(UPDATE_THREADS), Tiling(256), Tiling(512)


def _chunks(sizes: Sequence[int]) -> list[list[int]]:
    """Which parameters, by number, each launch updates; those without elements are left out."""
    numbers = [number for number, size in enumerate(sizes) if size]
    return [numbers[first : first + _MOST] for first in range(0, len(numbers), _MOST)]


def first_blocks(sizes: Sequence[int], tiling: Tiling, vector: int) -> list[int]:
    """The first block of each parameter, and behind them the number of all blocks."""
    return list(accumulate((blocks_of(size, tiling, vector) for size in sizes), initial=0))


def numbers_size(sizes: tuple[int, ...], width: int, rows: int) -> int:
    """Elements of an array that holds the numbers of so many steps, ``width`` for each."""
    return rows_at(sizes) + rows * width


def numbers_array(rows: Sequence[Sequence[float]], sizes: tuple[int, ...], dtype: Any) -> np.ndarray:
    """The beginning of such an array, on the host: the rows of the coming steps, no block having taken one yet."""
    first = rows_at(sizes)
    array = np.zeros(first + len(rows) * len(rows[0]), dtype)
    array[0], array[first:] = len(rows) - 1, np.ravel(rows)
    return array


def taking_row(dtype: str, first_count: int, rows_at: int, width: int) -> Any:
    """A device function of the numbers: where the row of this step begins; the block's next one is the row behind it.

    All threads of the block have to call it.
    """
    one = getattr(types, dtype)(1)

    @device_function
    def take(numbers: Any) -> Any:
        place = u32(cuda.blockIdx.x) + first_count
        row, last = ld(numbers, place), ld(numbers, 0)
        cuda.syncthreads()  # all threads have read the count
        if (cuda.threadIdx.x == 0) & (row < last):
            st(numbers, place, row + one)
        return u32(types.int32(row)) * width + rows_at

    return take


def dispatch(works: Sequence[Any], starts: Sequence[int]) -> Any:
    """A device function that calls the one of ``works`` to which the block belongs."""

    def choice(first: int, last: int) -> Any:
        if last - first == 1:
            return works[first]
        middle = (first + last) // 2
        low, high, start = choice(first, middle), choice(middle, last), starts[middle]

        def either(*arguments: Any) -> None:
            if u32(cuda.blockIdx.x) < start:
                low(*arguments)
            else:
                high(*arguments)

        return device_function(either)

    return choice(0, len(works))


def calls_of(
    kernel: Callable[..., Any], a: Arguments, names: Sequence[str], sizes: tuple[int, ...], tiling: Tiling
) -> Iterator[Call]:
    """A launch for each 16 parameters that have elements.

    Args:
        kernel: a function of (sizes, tiling, dtype, vector, first_count, rows_at) that makes one; see
            :func:`taking_row`.
        a: has the numbers, and the lists of the arrays that belong to the parameters.
        names: of these lists, in the order in which the kernel takes them.
        sizes, tiling: elements of each parameter, and the rest as usual.

    Raises:
        ValueError: the tiling is smaller than those of :func:`tilings`.
    """
    groups, vector = [getattr(a, name) for name in names], vector_of(a.dtype, a.aligned(*names))
    first_count = 1
    for chunk in _chunks(sizes):
        own = tuple(sizes[number] for number in chunk)
        made = kernel(own, tiling, a.dtype, vector, first_count, rows_at(sizes))
        blocks = first_blocks(own, tiling, vector)[-1]
        first_count += blocks
        if first_count > rows_at(sizes):
            raise ValueError(f"{tiling} has more blocks than the smallest of the tilings")
        arrays = tuple(group[number] for number in chunk for group in groups)
        yield call(made, blocks, tiling.threads, arrays, a.numbers)
