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

**Of parts**: of some parameters there is no gradient yet, but its sums over parts of a batch. Their blocks first add
these up, with as many rows of threads as ``partial_sums`` has, and so to the same bits, and write the gradient, too.
Such a block has a column for each 32 threads, and the first thread of each column updates its element.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from numba import cuda, types

from gpuconv.geometry import UpdateGeometry
from gpuconv.kernels.device import Answer, Call, Refusal, call, device_function, ld, st, u32
from gpuconv.kernels.operations import UPDATE_THREADS, rows_at
from gpuconv.kernels.partial_sums import columns_of, summing
from gpuconv.kernels.pointwise.elementwise import Tiling, blocks_of, each, vector_of
from gpuconv.kernels.variant import Arguments

#: Parameters a launch, and sums over parts. An array takes 56 bytes of arguments, of which a kernel has 4 KB; Adam's
#: update takes four.
_MOST, _MOST_SUMS = 16, 8
#: Rows of threads that add up an element: those of 256 threads for 8 columns.
_ROWS = 32


def _geometry(sizes: Any) -> UpdateGeometry:
    """Sizes, or a geometry, as a geometry."""
    return sizes if isinstance(sizes, UpdateGeometry) else UpdateGeometry(sizes, ())


def supports(geometry: Any) -> Answer:
    """True unless there are too many sums over parts for a launch's arguments, or one of them fills a GPU by itself."""
    sums = _geometry(geometry).sums
    if len(sums) > _MOST_SUMS:
        return Refusal(f"{len(sums)} sums over parts: the arguments of a launch have place for {_MOST_SUMS}")
    for one in sums:
        if columns_of(geometry.row(one)) != UPDATE_THREADS // _ROWS * 2:
            return Refusal(f"a row of {geometry.row(one):,} elements fills a GPU, and is added up in another order")
    return True


def tilings(geometry: Any) -> tuple[Tiling, ...]:
    """Blocks of 128 to 512 threads; many small parameters leave the larger ones partly empty."""
    found = Tiling(UPDATE_THREADS), Tiling(256), Tiling(512)
    # Four rows of a column have to be in one warp.
    return found[:2] if _geometry(geometry).sums else found


def _chunks(sizes: Sequence[int]) -> list[list[int]]:
    """Which parameters, by number, each launch updates; those without elements are left out."""
    numbers = [number for number, size in enumerate(sizes) if size]
    return [numbers[first : first + _MOST] for first in range(0, len(numbers), _MOST)]


@dataclasses.dataclass(frozen=True)
class Rows:
    """Where the gradient of a parameter is as a sum over parts.

    Attributes:
        array: number of the array among the launch's.
        first: the gradient's place in a row.
        elements: of a row.
        parts: rows.
    """

    array: int
    first: int
    elements: int
    parts: int


@dataclasses.dataclass(frozen=True)
class Part:
    """What one launch updates.

    Attributes:
        sizes: elements of each of its parameters.
        rows: for each of them, where its gradient has to be added up; None if it is there.
        tiling, dtype: as usual.
        vector: elements of a vector.
        first_count: where the counts of its blocks begin in the array of numbers.
        rows_at: where the rows begin there.
    """

    sizes: tuple[int, ...]
    rows: tuple[Rows | None, ...]
    tiling: Tiling
    dtype: str
    vector: int
    first_count: int
    rows_at: int

    @property
    def columns(self) -> int:
        """Elements of a block that adds up gradients."""
        return self.tiling.threads // _ROWS

    @property
    def starts(self) -> list[int]:
        """The first block of each parameter, and behind them the number of all blocks."""
        blocks = (
            blocks_of(size, self.tiling, self.vector) if rows is None else -(-size // self.columns)
            for size, rows in zip(self.sizes, self.rows, strict=True)
        )
        return list(accumulate(blocks, initial=0))


def numbers_size(geometry: Any, width: int, rows: int) -> int:
    """Elements of an array that holds the numbers of so many steps, ``width`` for each."""
    return rows_at(*_geometry(geometry)) + rows * width


def numbers_array(rows: Sequence[Sequence[float]], geometry: Any, dtype: Any) -> np.ndarray:
    """The beginning of such an array, on the host: the rows of the coming steps, no block having taken one yet."""
    first = rows_at(*_geometry(geometry))
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


@device_function
def _take_sum(grads: Any, total: Any, i: Any) -> None:
    """Take the gradient of one element, where a load would take those of several from an array."""
    grads[0] = total


def updating(part: Part, step_of: Callable[..., Any], arrays_each: int) -> Any:
    """A device function ``update(arrays, *numbers)``: what a thread does for the parameter that its block belongs to.

    Args:
        part: what the launch updates.
        step_of: a function of a count, and perhaps of what takes gradients in place of a load, that makes a device
            function of ``i``, a parameter's arrays, and the numbers, which updates so many elements from i on.
        arrays_each: arrays that belong to a parameter: itself, its gradient, and what is kept for it.
    """
    starts = part.starts
    # The same two for all parameters, because each function that is made is compiled.
    steps = step_of(part.vector), step_of(1)

    def sum_of(number: int, rows: Rows) -> Any:
        size, param, first_block, columns = part.sizes[number], arrays_each * number, starts[number], part.columns
        grad, kept, end = param + 1, param + 2, param + arrays_each
        array, place, elements, parts = rows.array, rows.first, rows.elements, rows.parts
        summed = summing(columns, part.tiling.threads, part.dtype, most=-(-parts // _ROWS))
        step = step_of(1, _take_sum)

        def update(arrays: Any, *numbers: Any) -> None:
            thread = u32(cuda.threadIdx.x)
            i = (u32(cuda.blockIdx.x) - first_block) * columns + thread % columns
            total = summed(arrays[array], i + place, elements, parts, i < size)
            if (thread < columns) & (i < size):
                st(arrays[grad], i, total)
                step(i, arrays[param], total, *(arrays[kept:end] + numbers))

        return device_function(update)

    def work_of(number: int) -> Any:
        if (rows := part.rows[number]) is not None:
            return sum_of(number, rows)
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


def _rows_of(geometry: UpdateGeometry) -> dict[int, tuple[int, Rows]]:
    """By parameter: the number of its sum, and where that is, ``array`` being 0."""
    found = {}
    for which, one in enumerate(geometry.sums):
        firsts = accumulate((geometry.sizes[number] for number in one.members), initial=0)
        for number, first in zip(one.members, firsts, strict=False):
            found[number] = which, Rows(0, first, geometry.row(one), one.parts)
    return found


def calls_of(
    kernel: Callable[..., Any], a: Arguments, names: Sequence[str], geometry: Any, tiling: Tiling
) -> Iterator[Call]:
    """A launch for each 16 parameters that have elements.

    Args:
        kernel: a function of a :class:`Part` that makes one.
        a: has the numbers, and the lists of the arrays that belong to the parameters.
        names: of these lists, in the order in which the kernel takes them.
        geometry, tiling: elements of each parameter, or an ``UpdateGeometry``; and the rest as usual.

    Raises:
        ValueError: the tiling is smaller than those of :func:`tilings`.
    """
    geometry = _geometry(geometry)
    groups, vector = [getattr(a, name) for name in names], vector_of(a.dtype, a.aligned(*names))
    first_count, end, rows_of = 1, rows_at(*geometry), _rows_of(geometry)
    for chunk in _chunks(geometry.sizes):
        arrays = tuple(group[number] for number in chunk for group in groups)
        used = sorted({rows_of[number][0] for number in chunk if number in rows_of})
        places = {which: len(arrays) + place for place, which in enumerate(used)}
        rows = tuple(
            dataclasses.replace(rows_of[number][1], array=places[rows_of[number][0]]) if number in rows_of else None
            for number in chunk
        )
        own = tuple(geometry.sizes[number] for number in chunk)
        part = Part(own, rows, tiling, a.dtype, vector, first_count, end)
        blocks = part.starts[-1]
        first_count += blocks
        if first_count > end:
            raise ValueError(f"{tiling} has more blocks than the smallest of the tilings")
        arrays += tuple(a.rows[which] for which in used)
        yield call(kernel(part), blocks, tiling.threads, arrays, a.numbers)
