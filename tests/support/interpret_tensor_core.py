"""Runs compiled kernels for tensor cores in the interpreter of PTX, for tests/kernels/test_tensor_core.py.

    python interpret_tensor_core.py words arrays.npz results.npz
    python interpret_tensor_core.py halves arrays.npz results.npz
    python interpret_tensor_core.py conv2d arrays.npz results.npz '<arguments of the geometry>' '<those of the tiling>'

Behind these the name of a half type, if the arrays are to be of one; it reads and writes uint16 then.

A script, because it needs Numba's real CUDA target, and the tests run with the simulator's.
"""

from __future__ import annotations

import json
import sys

import numpy as np
from numba import cuda, types

from gpuconv.dtypes import element_type
from gpuconv.geometry import Conv2dGeometry
from gpuconv.kernels import load
from gpuconv.kernels.device import call, jit, ld, st, st2, st4, u32
from gpuconv.kernels.device.halves import from_bfloat16, from_float16, to_bfloat16, to_float16
from gpuconv.kernels.device.tensor_core import (
    DEPTH,
    Arithmetic,
    column_places,
    load_matrices,
    mma_bfloat16,
    mma_float16,
    mma_tf32,
    product,
    round_tf32,
    row_places,
    split,
    split_safely,
    sum_place,
    tile_place,
)

_multiply, _SUMS = product(1, 2, Arithmetic("float32")), 8
_TILE = 32 * DEPTH
_HALF_TILE = 2 * _TILE


@jit(launch_bounds=32)
def words(a, b, numbers, sums, parts, products, special):
    """A warp: the product of 16 x 16 and 16 x 16 by single instructions and as tiles; a number's parts."""
    tiles = cuda.shared.array(_TILE, types.float32, alignment=128)
    total = cuda.local.array(_SUMS, types.float32)
    lane = u32(cuda.threadIdx.x)
    for i in range(2):
        row, vector = divmod(lane + 32 * i, 4)
        for e in range(4):
            st(tiles, tile_place(row, vector, 1) + e, ld(a, row * DEPTH + vector * 4 + e))
            st(tiles, tile_place(row, vector, 1) + (16 * DEPTH + e), ld(b, row * DEPTH + vector * 4 + e))
    cuda.syncthreads()
    row, row_half = row_places(lane, 1)
    column, column_half = column_places(lane, 1)
    column, column_half = column + 16 * DEPTH, column_half + 16 * DEPTH
    zero = (types.float32(0), types.float32(0), types.float32(0), types.float32(0))
    left, right = load_matrices(tiles, row), load_matrices(tiles, column)
    found = mma_tf32(left, (right[0], right[1]), zero)
    left, right = load_matrices(tiles, row_half), load_matrices(tiles, column_half)
    st4(sums, lane * 4, mma_tf32(left, (right[0], right[1]), found))

    for i in range(_SUMS):
        total[i] = types.float32(0)
    _multiply(total, tiles, row, row_half, column, column_half, special)
    row, column = sum_place(lane)
    for n in range(4):
        place = (row + n % 2 * 8) * DEPTH + column + n // 2 * 8
        st2(products, place, (total[4 * (n // 2) + n % 2 * 2], total[4 * (n // 2) + n % 2 * 2 + 1]))

    value = ld(numbers, lane)
    st2(parts, lane * 2, split(value))
    whole, high, low = split_safely(value)
    st4(parts, 64 + lane * 4, (whole, high, low, round_tf32(value)))


@jit(launch_bounds=32)
def halves(a, b, numbers, sums, wide, rounded):
    """A warp: products of 16 x 16 and 16 x 8 of float16 and of bfloat16; a number of each type widened, and rounded."""
    tiles = cuda.shared.array(_HALF_TILE, types.uint16, alignment=128)
    lane = u32(cuda.threadIdx.x)
    row, vector = divmod(lane, 2)
    for e in range(8):
        st(tiles, tile_place(row, vector, 2) + e, ld(a, row * 16 + vector * 8 + e))
        st(tiles, tile_place(row, vector, 2) + (16 * DEPTH * 2 + e), ld(b, row * 16 + vector * 8 + e))
    cuda.syncthreads()
    row, _ = row_places(lane, 2)
    column, _ = column_places(lane, 2)
    zero = (types.float32(0), types.float32(0), types.float32(0), types.float32(0))
    left, right = load_matrices(tiles, row), load_matrices(tiles, column + 16 * DEPTH * 2)
    st4(sums, lane * 4, mma_float16(left, (right[0], right[1]), zero))
    st4(sums, lane * 4 + 128, mma_bfloat16(left, (right[0], right[1]), zero))
    given = ld(a, lane)
    st2(wide, lane * 2, (from_float16(given), from_bfloat16(given)))
    st2(rounded, lane * 2, (to_float16(ld(numbers, lane)), to_bfloat16(ld(numbers, lane))))


def run_halves(a, b, numbers):
    """The sums, and the numbers."""
    sums, wide, rounded = np.zeros(256, np.float32), np.zeros(64, np.float32), np.zeros(64, np.uint16)
    made = call(halves, 1, 32, a.ravel(), b.ravel(), numbers, sums, wide, rounded)
    made.launch(None, *made.arguments)
    return {"sums": sums.reshape(2, 32, 4), "wide": wide, "rounded": rounded}


def run_words(a, b, numbers, special):
    """The sums, products and parts."""
    sums, parts, products = (np.zeros(size, np.float32) for size in (128, 192, 256))
    made = call(words, 1, 32, a.ravel(), b.ravel(), numbers, sums, parts, products, np.int32(special))
    made.launch(None, *made.arguments)
    return {"sums": sums, "parts": parts, "products": products.reshape(16, 16)}


def run_variant(operation, arrays, geometry, tiling):
    """The result of the variant `tensor_core`."""
    module = load(operation, "tensor_core")
    size = module.workspace_size(geometry, tiling)
    options = {"workspace": np.full(size, np.nan, np.float32)} if size else {}
    shapes = {"conv2d": "output_shape", "conv2d_grad_input": "input_shape", "conv2d_grad_weight": "weight_shape"}
    out = np.full(getattr(geometry, shapes[operation]), np.nan, arrays[0].dtype)
    module.launch(*arrays, out, geometry, tiling, None, **options)
    return out


def main(what, given, results, shapes="", tiling="", half='""'):
    """Read arrays, write results."""
    from gpuconv.lab import ptx

    arrays = dict(np.load(given))
    with ptx.interpreted():
        if what in ("words", "halves"):
            np.savez(results, **(run_words if what == "words" else run_halves)(**arrays))
            return
        first, second, options = json.loads(shapes)
        geometry = Conv2dGeometry.of(tuple(first), tuple(second), **options)
        chosen = load(what, "tensor_core").Tiling(*json.loads(tiling))
        inputs = list(arrays.values())
        if half := json.loads(half):
            inputs = [one.view(element_type(half)) for one in inputs]
        out = run_variant(what, inputs, geometry, chosen)
        np.savez(results, out=out.view(np.uint16) if half else out)


if __name__ == "__main__":
    main(*sys.argv[1:])
