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

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from numba import cuda, types

from gpuconv.kernels.device import Call, call, device_function, ld, st, u32
from gpuconv.kernels.operations import UPDATE_THREADS, rows_at
from gpuconv.kernels.pointwise.elementwise import Tiling, blocks_of, each, vector_of
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


@dataclasses.dataclass(frozen=True)
class Part:
    """What one launch updates.

    Attributes:
        sizes: elements of each of its parameters.
        tiling, dtype: as usual.
        vector: elements of a vector.
        first_count: where the counts of its blocks begin in the array of numbers.
        rows_at: where the rows begin there.
    """

    sizes: tuple[int, ...]
    tiling: Tiling
    dtype: str
    vector: int
    first_count: int
    rows_at: int

    @property
    def starts(self) -> list[int]:
        """The first block of each parameter, and behind them the number of all blocks."""
        return list(accumulate((blocks_of(size, self.tiling, self.vector) for size in self.sizes), initial=0))


def numbers_size(sizes: tuple[int, ...], width: int, rows: int) -> int:
    """Elements of an array that holds the numbers of so many steps, ``width`` for each."""
    return rows_at(sizes) + rows * width


def numbers_array(rows: Sequence[Sequence[float]], sizes: tuple[int, ...], dtype: Any) -> np.ndarray:
    """The beginning of such an array, on the host: the rows of the coming steps, no block having taken one yet."""
    first = rows_at(sizes)
    array = np.zeros(first + len(rows) * len(rows[0]), dtype)
    array[0], array[first:] = len(rows) - 1, np.ravel(rows)
    return array


def taking_row(part: Part, width: int) -> Any:
    """A device function of the numbers: where the row of this step begins; the block's next one is the row behind it.

    All threads of the block have to call it. A row has ``width`` numbers.
    """
    one, first_count, rows_at = getattr(types, part.dtype)(1), part.first_count, part.rows_at

    @device_function
    def take(numbers: Any) -> Any:
        place = u32(cuda.blockIdx.x) + first_count
        row, last = ld(numbers, place), ld(numbers, 0)
        cuda.syncthreads()  # all threads have read the count
        if (cuda.threadIdx.x == 0) & (row < last):
            st(numbers, place, row + one)
        return u32(types.int32(row)) * width + rows_at

    return take


def updating(part: Part, step_of: Callable[[int], Any], arrays_each: int) -> Any:
    """A device function ``update(arrays, *numbers)``: what a thread does for the parameter that its block belongs to.

    Args:
        part: what the launch updates.
        step_of: a function of a count that makes a device function of ``i``, a parameter's arrays, and the numbers,
            which updates so many elements from i on.
        arrays_each: arrays that belong to a parameter.
    """
    starts = part.starts
    # The same two for all parameters, because each function that is made is compiled.
    steps = step_of(part.vector), step_of(1)

    def work_of(number: int) -> Any:
        size, first = part.sizes[number], arrays_each * number
        end = first + arrays_each
        work = each(*steps, part.tiling.threads, part.vector, first_block=starts[number])

        def update(arrays: Any, *numbers: Any) -> None:
            work(size, *(arrays[first:end] + numbers))

        return device_function(update)

    return dispatch([work_of(number) for number in range(len(part.sizes))], starts)


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
        kernel: a function of a :class:`Part` that makes one.
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
        part = Part(own, tiling, a.dtype, vector, first_count, rows_at(sizes))
        blocks = part.starts[-1]
        first_count += blocks
        if first_count > rows_at(sizes):
            raise ValueError(f"{tiling} has more blocks than the smallest of the tilings")
        arrays = tuple(group[number] for number in chunk for group in groups)
        yield call(kernel(part), blocks, tiling.threads, arrays, a.numbers)
