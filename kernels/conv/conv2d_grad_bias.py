"""Gradient for a convolution's bias: for each filter, the sum of the output's gradient over images and positions.

The values of a filter, a plane in each image, are numbered image by image and cut into ``parts``. A block sums one part
of one filter: thread j takes its vectors ``j, j + threads, ...``, 128 bits each where planes are aligned; then the
threads' sums meet, by shuffles within a warp and in shared memory between warps, always in the same order. With several
parts the sums go to a workspace, which ``partial_sums`` adds up in a fixed order.

Shared bytes: 32 (float32). Registers aimed at: at most 32, for full occupancy. Expected bottleneck: memory bandwidth;
each element is read once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numba import cuda, types

from gpuconv.kernels.compiled import specialised
from gpuconv.kernels.device.host import MULTIPROCESSORS
from gpuconv.kernels.device.launch import Call, call, device_function, jit
from gpuconv.kernels.device.memory import st
from gpuconv.kernels.device.reduce import reduction
from gpuconv.kernels.device.registers import unrolled, vector_access
from gpuconv.kernels.device.words import minimum, u32
from gpuconv.kernels.partial_sums import sum_parts
from gpuconv.kernels.variant import Arguments

#: Blocks that keep a large GPU busy.
_ENOUGH_BLOCKS = 4 * MULTIPROCESSORS
#: Elements that are worth a block.
_FEWEST_ELEMENTS = 4096
# On an H100 one part was faster for 256 filters, two blocks a multiprocessor, by 8 %, and for 16 filters of 12,800
# elements by 24 %; of 100,352 elements it took nearly twice as long.
_ENOUGH_FILTERS, _ALONE = 256, 16_384


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How the work is cut up.

    Attributes:
        threads: threads a block, a multiple of 32.
        parts: into how many parts a filter's sum is cut.
    """

    threads: int
    parts: int


def tilings(shape: tuple[int, int, int, int]) -> tuple[Tiling, ...]:
    """As many parts as keep a large GPU busy; and one, which needs no second stage.

    One comes first where the launch of a second stage costs more than parts save: of many filters, or of few elements.
    """
    n, k, p, q = shape
    parts = max(1, min(-(-_ENOUGH_BLOCKS // k), -(-n * p * q // _FEWEST_ELEMENTS)))
    if k >= _ENOUGH_FILTERS or n * p * q <= _ALONE:
        return tuple(dict.fromkeys([Tiling(256, 1), Tiling(256, parts), Tiling(128, 2 * parts), Tiling(64, 1)]))
    return tuple(dict.fromkeys([Tiling(256, parts), Tiling(128, 2 * parts), Tiling(256, 1), Tiling(64, 1)]))


def workspace_size(shape: tuple[int, int, int, int], tiling: Tiling) -> int:
    """Elements of the workspace: one for each part of each filter, none if there is one part."""
    return tiling.parts * shape[1] if tiling.parts > 1 else 0


@specialised
def _kernel(filters: int, plane: int, threads: int, dtype: str, vector: int) -> Callable[..., None]:
    real = getattr(types, dtype)
    vectors = plane // vector
    load = vector_access(vector)[1]
    sum_of_block = reduction(threads, threads, dtype)

    @device_function
    def add(j: int, sums: Any, values: Any) -> None:
        sums[j] += values[j]

    add_all = unrolled(add, vector)

    @jit(launch_bounds=threads)
    def conv2d_grad_bias(grad: Any, out: Any, size: Any, size_a_part: Any) -> None:
        values, sums = cuda.local.array(vector, real), cuda.local.array(vector, real)
        for j in range(vector):
            sums[j] = real(0)
        block = u32(cuda.blockIdx.x)
        part, filter_ = divmod(block, filters)
        i = part * size_a_part
        end = minimum(i + size_a_part, size)
        i += cuda.threadIdx.x
        while i < end:
            image, position = divmod(i, vectors)
            load(values, grad, ((image * filters + filter_) * vectors + position) * vector)
            add_all(sums, values)
            i += threads
        total = sums[0]
        for j in range(1, vector):
            total += sums[j]
        total = sum_of_block(total)
        if cuda.threadIdx.x == 0:
            # Parts are rows of the workspace, filters its columns.
            st(out, block, total)

    return conv2d_grad_bias


def calls(a: Arguments, shape: tuple[int, int, int, int], tiling: Tiling) -> Iterator[Call]:
    """Partial sums, and with several parts their reduction; for an empty batch too: the sums are zero."""
    n, filters, p, q = shape
    # 128 bits at once, if each plane begins at a multiple of as many.
    vector = 16 // np.dtype(a.dtype).itemsize
    vector = vector if a.aligned("grad") and p * q % vector == 0 else 1
    kernel, vectors = _kernel(filters, p * q, tiling.threads, a.dtype, vector), n * p * q // vector
    target = a.out if tiling.parts == 1 else a.workspace
    blocks = filters * tiling.parts
    yield call(kernel, blocks, tiling.threads, a.grad, target, vectors, -(-vectors // tiling.parts))
    if tiling.parts > 1:
        yield sum_parts(a.workspace, a.out, tiling.parts)
