"""Gradients of a chain of fully connected layers for all its weights and biases, in one launch.

The gradient of a layer's weight is a product of its results' gradients, transposed, and its inputs. The blocks of the
grid are dealt out to the layers: each computes a tile of 32 results by 32 inputs. For 32 rows at a time it fetches both
into shared memory; a thread computes 8 results for one input. An input of ones, behind the last one, gives the bias's
gradient. Each sum goes through the rows in order.

Shared bytes (float32): 8192. Registers aimed at: at most 64. Expected bottleneck: the latency of the fetches. The batch
is not cut up, so that no second stage has to add up: this is for a few hundred rows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numba import cuda, types

from gpuconv.geometry import ChainGeometry
from gpuconv.kernels.all_at_once import dealing
from gpuconv.kernels.compiled import specialised
from gpuconv.kernels.device import (
    Answer,
    Launch,
    add_outer,
    array_type,
    device_function,
    jit,
    ld,
    ldg_if,
    st,
    u32,
    uadd,
    uand,
    udiv,
    umul,
    ushr,
    usub,
    vector_access,
)
from gpuconv.kernels.linear_chain import fits_chain, flat

_TILE, _FEATURES = 32, 8
_THREADS = _TILE * _TILE // _FEATURES


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How the work is cut up.

    Attributes:
        rows: rows of the batch that are fetched at a time.
    """

    rows: int


def supports(geometry: ChainGeometry) -> Answer:
    """True for at most 8 layers whose arrays can be indexed with 32 bits."""
    return fits_chain(geometry)


def tilings(geometry: ChainGeometry) -> tuple[Tiling, ...]:
    """32 rows at a time, or 16."""
    return Tiling(32), Tiling(16)


def _tiles(inputs: int, outputs: int) -> tuple[int, int]:
    """Tiles across and down: the bias is one input more."""
    return -(-(inputs + 1) // _TILE), -(-outputs // _TILE)


def _starts(sizes: tuple[int, ...]) -> list[int]:
    """The first block of each layer, and behind them the number of all blocks."""
    return list(accumulate((math.prod(_tiles(*pair)) for pair in pairwise(sizes)), initial=0))


@specialised
def _kernel(sizes: tuple[int, ...], tiling: Tiling, dtype: str) -> Callable[..., None]:
    real, stage = getattr(types, dtype), tiling.rows
    tile_size, per_access = stage * _TILE, 4 if dtype == "float32" else 2
    load = vector_access(per_access)[0]
    starts = _starts(sizes)

    def layer(number: int) -> Any:
        inputs, outputs, start = sizes[number], sizes[number + 1], starts[number]
        across = _tiles(inputs, outputs)[0]

        @device_function
        def run(xs: Any, grads: Any, weights_out: Any, biases_out: Any, tile: Any, grad_tile: Any, n: Any) -> None:
            total = cuda.local.array((_FEATURES, 1), real)
            a, b, part = (
                cuda.local.array(_FEATURES, real),
                cuda.local.array(1, real),
                cuda.local.array(per_access, real),
            )
            for j in range(_FEATURES):
                total[j, 0] = real(0)
            thread = u32(cuda.threadIdx.x)
            warp, lane = ushr(thread, 5), uand(thread, 31)
            block = usub(u32(cuda.blockIdx.x), start)
            tile_down = udiv(block, across)
            first_input = umul(usub(block, umul(tile_down, across)), _TILE)
            first_output = umul(tile_down, _TILE)
            column, feature = uadd(first_input, lane), uadd(first_output, lane)
            first_row = u32(0)
            while first_row < n:
                i = warp
                while i < stage:
                    row = uadd(first_row, i)
                    value = ldg_if(xs[number], uadd(umul(row, inputs), column), (row < n) & (column < inputs))
                    # The input of ones.
                    st(tile, uadd(umul(i, _TILE), lane), real(1) if column == inputs else value)
                    value = ldg_if(grads[number], uadd(umul(row, outputs), feature), (row < n) & (feature < outputs))
                    st(grad_tile, uadd(umul(i, _TILE), lane), value)
                    i = uadd(i, _THREADS // 32)
                cuda.syncthreads()
                for i in range(stage):
                    b[0] = ld(tile, uadd(lane, i * _TILE))
                    for j in range(0, _FEATURES, per_access):
                        load(part, grad_tile, uadd(umul(warp, _FEATURES), i * _TILE + j))
                        for e in range(per_access):
                            a[j + e] = part[e]
                    add_outer(total, a, b, 0)
                cuda.syncthreads()
                first_row = uadd(first_row, stage)
            for j in range(_FEATURES):
                feature = uadd(first_output, uadd(umul(warp, _FEATURES), j))
                if feature < outputs:
                    if column < inputs:
                        st(weights_out[number], uadd(umul(feature, inputs), column), total[j, 0])
                    elif column == inputs:
                        st(biases_out[number], feature, total[j, 0])

        return run

    run_one = dealing([layer(number) for number in range(len(sizes) - 1)], starts)

    @jit(launch_bounds=_THREADS)
    def linear_chain_grad_weight(xs: Any, grads: Any, weights_out: Any, biases_out: Any, n: Any) -> None:
        tile = cuda.shared.array(tile_size, real, alignment=16)
        grad_tile = cuda.shared.array(tile_size, real, alignment=16)
        run_one(xs, grads, weights_out, biases_out, tile, grad_tile, u32(n))

    return linear_chain_grad_weight


def launches(geometry: ChainGeometry, tiling: Tiling, dtype: Any) -> tuple[Launch, ...]:
    """The one launch of :func:`launch`; for no rows too: the gradients have elements, which are zero.

    Raises:
        ValueError: too many layers, or an array that is too large.
    """
    if not (answer := supports(geometry)):
        raise ValueError(f"linear_chain_grad_weight: {answer}")
    name = np.dtype(dtype).name
    kernel, blocks = _kernel(geometry.sizes, tiling, name), _starts(geometry.sizes)[-1]
    signature = (types.UniTuple(array_type(name), len(geometry.relu)),) * 4 + (types.int64,)
    return (Launch(kernel, signature, (blocks, 1, 1), (_THREADS, 1, 1)),)


def launch(
    xs: Sequence[Any],
    grads: Sequence[Any],
    weights_out: Sequence[Any],
    biases_out: Sequence[Any],
    geometry: ChainGeometry,
    tiling: Tiling,
    stream: Any = None,
) -> None:
    """``weights_out``, (size, size before), and ``biases_out``, (size,), are the gradients of each layer.

    Given each layer's input ``xs`` (n, size before), and the gradients ``grads`` (n, size) before its ReLU.

    Raises:
        ValueError: too many layers, or an array that is too large.
    """
    for one in launches(geometry, tiling, weights_out[0].dtype):
        one(stream, flat(xs), flat(grads), flat(weights_out), flat(biases_out), geometry.n)
