"""The second stage of gradients that are sums over a batch: adds up partial sums in a fixed order.

The first stage divides the batch into ``parts`` and writes the sums over each part to a workspace of ``parts`` rows of
``elements``. (Atomics would round differently in each run.) Here a block of 256 threads adds up ``columns``
neighbouring elements, 8 or 32, and has ``256 / columns`` rows of threads: row ``y`` adds the parts ``y, y + rows, ...``
of each element, in that order, with eight loads under way. Then the sums of an element are added by shuffles within a
warp and through shared memory over the warps, always in the same order.

Shared bytes: 1024 (float32). Expected bottleneck: of few elements the latency of the loads, so that many threads share
an element (8 columns are one sector of 32 bytes); of many elements the memory, which is read in whole lines.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cuda, types

from gpuconv.kernels.compiled import specialised
from gpuconv.kernels.device.halves import converting
from gpuconv.kernels.device.host import MULTIPROCESSORS
from gpuconv.kernels.device.launch import Call, call, device_function, jit
from gpuconv.kernels.device.memory import ldg_if, st
from gpuconv.kernels.device.reduce import column_reduction
from gpuconv.kernels.device.registers import unrolled
from gpuconv.kernels.device.words import u32

_THREADS = 256
#: Loads that a thread has under way.
_LOADS = 8


def columns_of(elements: int) -> int:
    """Elements of a block: whole lines, if that leaves enough blocks for a large GPU."""
    return 32 if elements >= 32 * 4 * MULTIPROCESSORS else 8


def summing(columns: int, threads: int, dtype: str, *, most: int = _LOADS) -> Any:
    """A device function of (workspace, first, elements, parts, exists): the sum of an element over all parts.

    ``first`` is the element's place in the first row, and ``elements`` what a row has. Those that do not exist are
    zero. The sum is complete in the first ``columns`` threads of the block, of which thread ``i`` has column
    ``i % columns``. It depends on the number of rows of threads, and not on that of columns: with 128 threads for 4
    columns, it has the bits that it has with 256 for 8. A thread has at most ``most`` loads under way.
    """
    real, rows, loads = getattr(types, dtype), threads // columns, min(most, _LOADS)

    @device_function
    def load(i: int, values: Any, workspace: Any, at: Any, step: Any, left: Any) -> None:
        values[i] = ldg_if(workspace, at + i * step, left > i * rows)

    load_all, in_block = unrolled(load, loads), column_reduction(columns, threads, dtype)

    @device_function
    def summed(workspace: Any, first: Any, elements: Any, parts: Any, exists: Any) -> Any:
        values = cuda.local.array(loads, real)
        part = u32(cuda.threadIdx.x) // columns
        total = real(0)
        if exists:
            step = u32(elements) * rows
            at = part * elements + first
            while part < parts:
                load_all(values, workspace, at, step, parts - part)
                for i in range(loads):
                    total += values[i]
                at += step * loads
                part += u32(rows * loads)
        return in_block(total)

    return summed


@specialised
def _kernel(columns: int, dtype: str, out_dtype: str) -> Callable[..., None]:
    summed, (_, rounded) = summing(columns, _THREADS, dtype), converting(out_dtype)

    @jit(launch_bounds=_THREADS)
    def sum_parts(workspace: Any, out: Any, elements: Any, parts: Any) -> None:
        element = u32(cuda.blockIdx.x) * columns + u32(cuda.threadIdx.x) % columns
        total = summed(workspace, element, elements, parts, element < elements)
        if (cuda.threadIdx.x < columns) & (element < elements):
            st(out, element, rounded(total))

    return sum_parts


@specialised
def _kernel_of_two(columns: int, dtype: str) -> Callable[..., None]:
    summed = summing(columns, _THREADS, dtype)

    @jit(launch_bounds=_THREADS)
    def sum_parts_of_two(workspace: Any, first: Any, second: Any, split: Any, elements: Any, parts: Any) -> None:
        element = u32(cuda.blockIdx.x) * columns + u32(cuda.threadIdx.x) % columns
        total = summed(workspace, element, elements, parts, element < elements)
        if (cuda.threadIdx.x < columns) & (element < elements):
            if element < split:
                st(first, element, total)
            else:
                st(second, element - split, total)

    return sum_parts_of_two


def sum_parts(workspace: Any, out: Any, parts: int, dtype: str | None = None) -> Call:
    """The launch of ``out[i] = Σ workspace[part, i]``, over so many parts; rounded if ``dtype`` is a half type."""
    columns, name = columns_of(out.size), np.dtype(workspace.dtype).name
    kernel = _kernel(columns, name, dtype or name)
    return call(kernel, -(-out.size // columns), _THREADS, workspace, out, out.size, parts)


def sum_parts_of_two(workspace: Any, first: Any, second: Any, parts: int) -> Call:
    """As :func:`sum_parts`, for two results; a row of the workspace has the elements of one, then of the other."""
    elements = first.size + second.size
    columns = columns_of(elements)
    kernel = _kernel_of_two(columns, np.dtype(first.dtype).name)
    return call(kernel, -(-elements // columns), _THREADS, workspace, first, second, first.size, elements, parts)
