"""How element-wise kernels cut up their work: a vector of 128 bits a thread, and a thread for each element left over.

A warp then accesses 512 neighbouring bytes at once. Arrays of which one does not begin at a multiple of 16 bytes are
accessed one element a thread. One vector a thread is enough to keep the memory busy, because these kernels need so few
registers that a multiprocessor holds all the threads it can: 2048 of them, with 32 KB of loads under way for each
array.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numba import cuda

from gpuconv.kernels.device import device_function, u32


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How the work is cut up.

    Attributes:
        threads: threads, and vectors, a block.
    """

    threads: int


def tilings(shape: tuple[int, ...]) -> tuple[Tiling, ...]:
    """Blocks of 128 to 512 threads."""
    return Tiling(256), Tiling(128), Tiling(512)


def vector_of(dtype: Any, aligned16: bool) -> int:
    """Elements of a vector: 128 bits if the arrays are ``aligned16``, aligned to as much."""
    return 16 // np.dtype(dtype).itemsize if aligned16 else 1


def each(vector_step: Any, step: Any, threads: int, vector: int, *, first_block: int = 0) -> Any:
    """A device function of ``(elements, *arguments)``: what a thread does.

    ``vector_step(i, *arguments)`` is called for ``vector`` elements from i on, ``step`` for one that is left over. The
    blocks from ``first_block`` on do the work.
    """

    @device_function
    def thread_work(elements: Any, *arguments: Any) -> None:
        block = u32(cuda.blockIdx.x) - first_block
        thread = block * threads + cuda.threadIdx.x
        whole = u32(elements) // vector
        if thread < whole:
            vector_step(thread * vector, *arguments)
        else:
            i = thread + whole * (vector - 1)
            if i < elements:
                step(i, *arguments)

    return thread_work


def blocks_of(elements: int, tiling: Tiling, vector: int) -> int:
    """Blocks for so many elements."""
    return -(-(elements // vector + elements % vector) // tiling.threads)
