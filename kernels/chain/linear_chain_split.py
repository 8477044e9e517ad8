"""Fully connected layers with ReLU between them: the first one spread over the GPU, then the others as ``rows`` does.

The first layer has most of a chain's weights: of LeNet's 192 KiB of 236. In ``rows`` each block reads all of them. Here
it is a launch of its own, in which a block computes a tile of ``rows`` by ``features`` results, and reads the inputs
and weights of that tile alone: 25 KiB for 8 by 8 of LeNet's, in 120 blocks for 64 rows. A warp computes 2 rows of 4
features. Its lanes share the sums, 128 bits of a row at a time where rows allow it; loads of up to four such passes are
under way before the first is used. Then the lanes' parts meet by shuffles, in a fixed order.

The second launch takes the results through the other layers: a block for some rows, as in ``linear_chain``. It only
reads what the first one wrote, and says so, so that in a captured step others may read it beside it.

Shared bytes: none in the first launch. Registers aimed at: at most 128. Expected bottleneck: the latency of the loads,
which a warp waits for once or twice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from numba import cuda, types

from gpuconv.geometry import ChainGeometry
from gpuconv.kernels.chain import linear_chain as rows_variant
from gpuconv.kernels.compiled import specialised
from gpuconv.kernels.device.host import widest_access
from gpuconv.kernels.device.launch import Call, call, device_function, jit
from gpuconv.kernels.device.memory import ldg, ldg2_if, ldg4_if, ldg_if, st
from gpuconv.kernels.device.reduce import reduce_scatter
from gpuconv.kernels.device.registers import fma, unrolled, vector_access
from gpuconv.kernels.device.words import i32, minimum, u32
from gpuconv.kernels.variant import Arguments

#: Rows and features of a warp.
_ROWS, _FEATURES = 2, 4
#: Passes over a row whose loads are under way at once.
_AT_ONCE = 4


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How the first layer is cut up.

    Attributes:
        rows: rows a block, a multiple of 2.
        features: results of each row that a block computes, a multiple of 4.
    """

    rows: int
    features: int


#: As ``rows``, which runs the other layers.
supports = rows_variant.supports


def tilings(geometry: ChainGeometry) -> tuple[Tiling, ...]:
    """Tiles of 8 by 8 read least; smaller ones give more blocks to a short batch."""
    return Tiling(8, 8), Tiling(4, 8), Tiling(16, 4), Tiling(2, 8)


@specialised
def _kernel(
    inputs: int, outputs: int, active: bool, biased: bool, tiling: Tiling, dtype: str, aligned16: bool
) -> Callable[..., None]:
    """``aligned16``: inputs and weights begin at multiples of 128 bits."""
    real = getattr(types, dtype)
    warps_down, warps_across = tiling.rows // _ROWS, tiling.features // _FEATURES
    threads, count = 32 * warps_down * warps_across, _ROWS * _FEATURES
    blocks_across, lanes_a_value = -(-outputs // tiling.features), 32 // count
    vector = widest_access(inputs, dtype) if aligned16 else 1
    load, load_if = vector_access(vector)[1], {1: ldg_if, 2: ldg2_if, 4: ldg4_if}[vector]
    step = 32 * vector
    passes = -(-inputs // step)
    at_once = min(passes, _AT_ONCE)
    rounds = -(-passes // at_once)
    one_round = rounds == 1
    tile_rows, tile_features = tiling.rows, tiling.features
    sum_over_lanes = reduce_scatter(count)

    @device_function
    def fetch(i: int, found: Any, number: int, one: Any, array: Any, at: Any, k: Any) -> None:
        """A pass of a row; ``at`` is signed, so that what is added becomes part of the instruction."""
        if one_round and (i + 1) * step <= inputs:
            load(one, array, at + i * step)
        elif vector == 1:
            one[0] = load_if(array, at + i * step, k + i * step < inputs)
        else:
            some = load_if(array, at + i * step, k + i * step < inputs)
            for e in range(vector):
                one[e] = some[e]
        for e in range(vector):
            found[i, number, e] = one[e]

    fetch_passes = unrolled(fetch, at_once)

    # Beyond the last feature or row the last one is computed again, and not written.
    @device_function
    def fetch_feature(j: int, w: Any, one: Any, weight: Any, first: Any, k: Any) -> None:
        fetch_passes(w, j, one, weight, i32(minimum(first + j, outputs - 1) * inputs + k), k)

    @device_function
    def fetch_row(r: int, x: Any, one: Any, inputs_: Any, first: Any, k: Any, n: Any) -> None:
        fetch_passes(x, r, one, inputs_, i32(minimum(first + r, n - 1) * inputs + k), k)

    fetch_features, fetch_rows = unrolled(fetch_feature, _FEATURES), unrolled(fetch_row, _ROWS)

    @device_function
    def multiply(i: int, sums: Any, w: Any, x: Any) -> None:
        for j in range(_FEATURES):
            for r in range(_ROWS):
                for e in range(vector):
                    sums[j * _ROWS + r] = fma(w[i, j, e], x[i, r, e], sums[j * _ROWS + r])

    multiply_all = unrolled(multiply, at_once)

    @jit(launch_bounds=threads)
    def linear_chain_first(x: Any, weight: Any, bias: Any, out: Any, n: Any) -> None:
        sums = cuda.local.array(count, real)
        w = cuda.local.array((at_once, _FEATURES, vector), real)
        found = cuda.local.array((at_once, _ROWS, vector), real)
        one = cuda.local.array(vector, real)
        thread, rows = u32(cuda.threadIdx.x), u32(n)
        warp, lane = thread >> 5, thread & 31
        block_down, block_across = divmod(u32(cuda.blockIdx.x), blocks_across)
        warp_down, warp_across = divmod(warp, warps_across)
        first_row = block_down * tile_rows + warp_down * _ROWS
        first_feature = block_across * tile_features + warp_across * _FEATURES
        for i in range(count):
            sums[i] = real(0)
        k = lane * vector
        for _ in range(rounds):
            fetch_features(w, one, weight, first_feature, k)
            fetch_rows(found, one, x, first_row, k, rows)
            multiply_all(sums, w, found)
            k += at_once * step
        sum_over_lanes(sums, lane)
        j, r = divmod(lane // lanes_a_value, _ROWS)
        row, feature, result = first_row + r, first_feature + j, sums[0]
        if (lane % lanes_a_value == 0) & (feature < outputs) & (row < rows):
            if biased:
                result += ldg(bias, feature)
            if active:
                # Written so that a NaN stays.
                result = real(0) if result <= real(0) else result
            st(out, row * outputs + feature, result)

    return linear_chain_first


def calls(a: Arguments, geometry: ChainGeometry, tiling: Tiling) -> Iterator[Call]:
    """A launch for the first layer, and one for the others, if there are any."""
    n, (inputs, outputs, *_), relu = geometry
    biased, aligned = a.has("biases"), a.aligned("x", "weights")
    kernel = _kernel(inputs, outputs, relu[0], biased[0], tiling, a.dtype, aligned)
    blocks = -(-n // tiling.rows) * -(-outputs // tiling.features)
    warps = tiling.rows // _ROWS * (tiling.features // _FEATURES)
    yield call(kernel, blocks, 32 * warps, a.x, a.weights[0], a.biases[0], a.outs[0], n)
    if len(relu) > 1:
        rest = ChainGeometry(n, geometry.sizes[1:], relu[1:])
        arrays, what = (a.outs[0], a.weights[1:], a.biases[1:], a.outs[1:]), (biased[1:], a.dtype, a.aligned("weights"))
        yield rows_variant.launch_of(arrays, rest, rows_variant.tilings(rest)[0], *what)
