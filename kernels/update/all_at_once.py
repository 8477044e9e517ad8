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

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from numba import cuda, types

from gpuconv.kernels.device import Answer, Launch, aligned, array_type, device_function, fits_offsets, ld, st, u32
from gpuconv.kernels.pointwise.elementwise import Tiling, blocks_of, vector_of

#: Parameters a launch. An array takes 56 bytes of arguments, of which a kernel has 4 KB; Adam's update takes four.
_MOST = 16


def supports(sizes: tuple[int, ...]) -> Answer:
    """True for parameters of so many elements, if those of each can be indexed with 32 bits."""
    return fits_offsets(input=max(sizes, default=0))


def tilings(sizes: tuple[int, ...]) -> tuple[Tiling, ...]:
    """Blocks of 128 to 512 threads; many small parameters leave the larger ones partly empty."""
    return Tiling(128), Tiling(256), Tiling(512)


def _chunks(sizes: Sequence[int]) -> list[list[int]]:
    """Which parameters, by number, each launch updates; those without elements are left out."""
    numbers = [number for number, size in enumerate(sizes) if size]
    return [numbers[first : first + _MOST] for first in range(0, len(numbers), _MOST)]


def first_blocks(sizes: Sequence[int], tiling: Tiling, vector: int) -> list[int]:
    """The first block of each parameter, and behind them the number of all blocks."""
    return list(accumulate((blocks_of(size, tiling, vector) for size in sizes), initial=0))


def _rows_at(sizes: tuple[int, ...]) -> int:
    """Where the rows begin: behind a count for each block, of which small ones without vectors have the most."""
    smallest = min(tilings(sizes), key=lambda tiling: tiling.threads)
    counts = first_blocks([size for size in sizes if size], smallest, 1)[-1]
    return -(-(1 + counts) // 4) * 4


def numbers_size(sizes: tuple[int, ...], width: int, rows: int) -> int:
    """Elements of an array that holds the numbers of so many steps, ``width`` for each."""
    return _rows_at(sizes) + rows * width


def numbers_array(rows: Sequence[Sequence[float]], sizes: tuple[int, ...], dtype: Any) -> np.ndarray:
    """The beginning of such an array, on the host: the rows of the coming steps, no block having taken one yet."""
    first = _rows_at(sizes)
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


def launches_of(
    kernel: Callable[..., Any],
    sizes: tuple[int, ...],
    tiling: Tiling,
    dtype: Any,
    arrays: int,
    *,
    aligned16: bool,
    op: str,
) -> tuple[Launch, ...]:
    """A launch for each 16 parameters that have elements.

    Args:
        kernel: a function of (sizes, tiling, dtype, vector, first_count, rows_at) that makes one; see
            :func:`taking_row`.
        arrays: how many belong to a parameter.
        aligned16: all of them begin at multiples of 16 bytes.
        sizes, tiling, dtype, op: elements of each parameter, and the rest as usual.

    Raises:
        ValueError: a parameter is too large for 32-bit offsets, or the tiling is smaller than those of :func:`tilings`.
    """
    if not (answer := supports(sizes)):
        raise ValueError(f"{op}: {answer}")
    name, vector, found = np.dtype(dtype).name, vector_of(dtype, aligned16), []
    rows_at, first_count = _rows_at(sizes), 1
    for chunk in _chunks(sizes):
        own = tuple(sizes[number] for number in chunk)
        signature = (types.UniTuple(array_type(name), arrays * len(own)), array_type(name))
        grid = (first_blocks(own, tiling, vector)[-1], 1, 1)
        made = kernel(own, tiling, name, vector, first_count, rows_at)
        found.append(Launch(made, signature, grid, (tiling.threads, 1, 1)))
        first_count += grid[0]
        if first_count > rows_at:
            raise ValueError(f"{op}: {tiling} has more blocks than the smallest of the tilings")
    return tuple(found)


def run(
    launches: Callable[..., tuple[Launch, ...]], groups: Sequence[Sequence[Any]], numbers: Any, stream: Any
) -> None:
    """Launch the update of the parameters to whose arrays ``groups`` belong: a list of parameters, one of gradients...

    ``launches`` is given ``aligned16`` by keyword.
    """
    made = launches(aligned16=aligned(*(array for group in groups for array in group)))
    for launch, chunk in zip(made, _chunks([array.size for array in groups[0]]), strict=True):
        launch(stream, tuple(group[number].reshape(-1) for number in chunk for group in groups), numbers)
