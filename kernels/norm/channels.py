"""How sums over a channel are cut up: what the statistics of batch normalisation and of its gradient share.

The values of a channel, a plane in each image, are numbered image by image and cut into ``parts``; a block takes one
part of one channel. Thread j takes its vectors ``j, j + threads, ...``, 128 bits each where planes are aligned.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from numba import cuda

from gpuconv.kernels.device import MULTIPROCESSORS, device_function, minimum, reduction, u32

#: Blocks that keep a large GPU busy, and elements that are worth one.
_ENOUGH_BLOCKS, _FEWEST_ELEMENTS = 4 * MULTIPROCESSORS, 4096


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How the work is cut up.

    Attributes:
        threads: threads a block, a multiple of 32.
        parts: into how many parts a channel is cut, at most.
    """

    threads: int
    parts: int


def tilings(shape: tuple[int, int, int]) -> tuple[Tiling, ...]:
    """As many parts as keep a large GPU busy; and one, which needs no second stage."""
    n, channels, length = shape
    parts = max(1, min(-(-_ENOUGH_BLOCKS // max(1, channels)), -(-n * length // _FEWEST_ELEMENTS)))
    return tuple(dict.fromkeys([Tiling(256, parts), Tiling(256, 1), Tiling(128, 2 * parts), Tiling(64, 1)]))


def workspace_size(shape: tuple[int, int, int], tiling: Tiling) -> int:
    """Elements of the workspace: two for each part of each channel, none if there is one part."""
    return 2 * tiling.parts * shape[1] if tiling.parts > 1 else 0


def vector_of(shape: tuple[int, ...], dtype: str, aligned16: bool) -> int:
    """Elements that are accessed at once: 128 bits, if each plane begins at a multiple of as many."""
    vector = 16 // np.dtype(dtype).itemsize
    return vector if aligned16 and shape[-1] % vector == 0 else 1


def walk(channels: int, length: int, threads: int, vector: int, visit: Any) -> Any:
    """A device function of ``(vectors, vectors_a_part, *arguments)`` that goes through the block's part of its channel.

    It calls ``visit(i, *arguments)`` for the thread's vectors, i being where one begins. Block b has channel
    ``b % channels`` and part ``b // channels``.
    """
    vectors_a_plane = length // vector

    @device_function
    def through(vectors: Any, vectors_a_part: Any, *arguments: Any) -> None:
        part, channel = divmod(u32(cuda.blockIdx.x), channels)
        i = part * vectors_a_part
        end = minimum(i + vectors_a_part, vectors)
        i += cuda.threadIdx.x
        while i < end:
            image, position = divmod(i, vectors_a_plane)
            visit(((image * channels + channel) * vectors_a_plane + position) * vector, *arguments)
            i += threads

    return through


def total_over_block(threads: int, vector: int, dtype: str) -> Any:
    """A device function of ``sums``, ``vector`` of them in each thread: their sum over the block, in each thread."""
    sum_of_block = reduction(threads, threads, dtype)

    @device_function
    def total_of(sums: Any) -> Any:
        total = sums[0]
        for j in range(1, vector):
            total += sums[j]
        return sum_of_block(total)

    return total_of


@dataclasses.dataclass(frozen=True)
class Parts:
    """The parts of a channel, each with something in it.

    Attributes:
        vectors: of a channel.
        vectors_a_part: of all parts but the last one, which may have fewer.
        count: number of parts.
    """

    vectors: int
    vectors_a_part: int
    count: int

    @classmethod
    def of(cls, shape: tuple[int, int, int], tiling: Tiling, vector: int) -> Parts:
        """Those of a shape, cut as a tiling says: fewer parts where the channel is so small that some were empty."""
        vectors = shape[0] * shape[2] // vector
        each = max(1, math.ceil(vectors / tiling.parts))
        return cls(vectors, each, max(1, math.ceil(vectors / each)))
