"""The second stage of gradients that are sums over a batch: adds up partial sums in a fixed order.

The first stage divides the batch into ``parts`` and writes the sums over each part to a workspace of ``parts`` rows of
``elements``. (Atomics would round differently in each run.) Here a block of 256 threads adds up 32 neighbouring
elements:
thread ``(x, y)`` adds the parts ``y, y + 8, ...`` of element ``x``, in that order. Then the eight sums of an element
are added through shared memory, always in the same order.

Shared bytes: 1024 (float32). Expected bottleneck: the latency of the loads, as there is little to read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cuda, types

from gpuconv.kernels.compiled import specialised
from gpuconv.kernels.device import Call, call, device_function, jit, ld, ldg, st, u32

#: Elements of a block, and threads for each element.
COLUMNS, ROWS = 32, 8
_THREADS = COLUMNS * ROWS


def _summing(dtype: str) -> Any:
    """A device function of (workspace, elements, parts): the sum of the thread's element, in the threads of row 0."""
    real = getattr(types, dtype)

    @device_function
    def summed(workspace: Any, elements: Any, parts: Any) -> Any:
        sums = cuda.shared.array(_THREADS, real)
        column, row = u32(cuda.threadIdx.x), u32(cuda.threadIdx.y)
        element = u32(cuda.blockIdx.x) * COLUMNS + column
        total = real(0)
        if element < elements:
            part = row
            offset = row * elements + element
            while part < parts:
                total += ldg(workspace, offset)
                offset += u32(elements) * ROWS
                part += ROWS
        st(sums, row * COLUMNS + column, total)
        cuda.syncthreads()
        if row == 0:
            for other in range(1, ROWS):
                total += ld(sums, column + other * COLUMNS)
        return total

    return summed


@specialised
def _kernel(dtype: str) -> Callable[..., None]:
    summed = _summing(dtype)

    @jit(launch_bounds=_THREADS)
    def sum_parts(workspace: Any, out: Any, elements: Any, parts: Any) -> None:
        total = summed(workspace, elements, parts)
        element = u32(cuda.blockIdx.x) * COLUMNS + cuda.threadIdx.x
        if (cuda.threadIdx.y == 0) & (element < elements):
            st(out, element, total)

    return sum_parts


@specialised
def _kernel_of_two(dtype: str) -> Callable[..., None]:
    summed = _summing(dtype)

    @jit(launch_bounds=_THREADS)
    def sum_parts_of_two(workspace: Any, first: Any, second: Any, split: Any, elements: Any, parts: Any) -> None:
        total = summed(workspace, elements, parts)
        element = u32(cuda.blockIdx.x) * COLUMNS + cuda.threadIdx.x
        if (cuda.threadIdx.y == 0) & (element < elements):
            if element < split:
                st(first, element, total)
            else:
                st(second, element - split, total)

    return sum_parts_of_two


def sum_parts(workspace: Any, out: Any, parts: int) -> Call:
    """The launch of ``out[i] = Σ workspace[part, i]``, over so many parts."""
    kernel = _kernel(np.dtype(out.dtype).name)
    return call(kernel, -(-out.size // COLUMNS), (COLUMNS, ROWS), workspace, out, out.size, parts)


def sum_parts_of_two(workspace: Any, first: Any, second: Any, parts: int) -> Call:
    """As :func:`sum_parts`, for two results; a row of the workspace has the elements of one, then of the other."""
    kernel, elements = _kernel_of_two(np.dtype(first.dtype).name), first.size + second.size
    arrays = workspace, first, second
    return call(kernel, -(-elements // COLUMNS), (COLUMNS, ROWS), *arrays, first.size, elements, parts)
