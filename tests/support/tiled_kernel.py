"""A kernel of the kind that people write first with shared memory: for tests that plant faults in it.

A block computes a tile of outputs of one filter, a thread one of them; for each channel it fetches the tile and its
halo into shared memory.
"""

import dataclasses
import functools

import numpy as np
from numba import cuda, types

from gpuconv.kernels.device import Launch, Refusal, jit


@dataclasses.dataclass(frozen=True)
class Tiling:
    rows: int
    columns: int


def supports(geometry):
    plain = geometry.groups == 1 and geometry.dilation == geometry.stride == (1, 1)
    return True if plain else Refusal("it is for stride 1, without groups and dilation")


def tilings(geometry):
    return (Tiling(4, 8),)


@functools.cache
def _kernel(geometry, tiling, dtype, has_bias):
    (top, _), (left, _) = geometry.padding
    c, h, w, r, s, p, q = (getattr(geometry, name) for name in "chwrspq")
    real, rows, columns = getattr(types, dtype), tiling.rows, tiling.columns
    halo_rows, halo_columns = rows + r - 1, columns + s - 1
    across = -(-q // columns)

    @jit(launch_bounds=rows * columns)
    def tiled(x, weight, bias, out):
        tile = cuda.shared.array((halo_rows, halo_columns), real)
        thread_row, thread_column = cuda.threadIdx.y, cuda.threadIdx.x
        first_row, first_column = cuda.blockIdx.x // across * rows, cuda.blockIdx.x % across * columns
        filter_, image = cuda.blockIdx.y, cuda.blockIdx.z
        total = bias[filter_] if has_bias else real(0)
        for channel in range(c):
            i = thread_row * columns + thread_column
            while i < halo_rows * halo_columns:
                jr, jc = i // halo_columns, i % halo_columns
                y, z = first_row + jr - top, first_column + jc - left
                tile[jr, jc] = x[image, channel, y, z] if 0 <= y < h and 0 <= z < w else real(0)
                i += rows * columns
            cuda.syncthreads()
            for dr in range(r):
                for ds in range(s):
                    total += tile[thread_row + dr, thread_column + ds] * weight[filter_, channel, dr, ds]
            cuda.syncthreads()
        row, column = first_row + thread_row, first_column + thread_column
        if row < p and column < q:
            out[image, filter_, row, column] = total

    return tiled


def launches(geometry, tiling, dtype, *, has_bias=True):
    if not (geometry.n and supports(geometry)):
        return ()
    name = np.dtype(dtype).name
    array, vector = (types.Array(getattr(types, name), dimensions, "C") for dimensions in (4, 1))
    kernel = _kernel(dataclasses.replace(geometry, n=1), tiling, name, has_bias)
    blocks = -(-geometry.p // tiling.rows) * -(-geometry.q // tiling.columns)
    return (
        Launch(
            kernel, (array, array, vector, array), (blocks, geometry.k, geometry.n), (tiling.columns, tiling.rows, 1)
        ),
    )


def launch(x, weight, bias, out, geometry, tiling, stream=None):
    for one in launches(geometry, tiling, x.dtype, has_bias=bias is not None):
        one(stream, x, weight, weight[:, 0, 0, 0] if bias is None else bias, out)
