"""Gradients of a chain of fully connected layers for all its weights and biases, in one launch.

The gradient of a layer's weight is a product of its results' gradients, transposed, and its inputs. The blocks of the
grid are dealt out to the layers: each computes a tile of ``outputs`` results by 32 inputs, 16 results where tiles of 32
would leave multiprocessors without work. For ``rows`` rows at a time it fetches both into shared memory, all loads of a
thread under way before the first is stored; a thread computes a quarter of the tile's results for one input. An input
of ones, behind the last one, gives the bias's gradient. Each sum goes through the rows in order.

Shared bytes (float32): ``4 · rows · (32 + outputs)``, at most 8192. Registers aimed at: at most 64. Expected
bottleneck: the latency of the fetches. The batch is not cut up, so that no second stage has to add up: this is for a
few hundred rows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from itertools import accumulate, pairwise
from typing import Any

from numba import cuda, types

from gpuconv.geometry import ChainGeometry
from gpuconv.kernels.chain.linear_chain import fits_chain
from gpuconv.kernels.compiled import specialised
from gpuconv.kernels.device.host import MULTIPROCESSORS, Answer, widest_access
from gpuconv.kernels.device.launch import Call, call, device_function, jit
from gpuconv.kernels.device.memory import ld, ldg_if, st
from gpuconv.kernels.device.registers import add_outer, unrolled, vector_access
from gpuconv.kernels.device.words import i32, u32
from gpuconv.kernels.update.all_at_once import dispatch
from gpuconv.kernels.variant import Arguments

#: Inputs of a tile, one a lane; and warps a block, which share the tile's results and its rows.
_INPUTS, _WARPS = 32, 4


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How the work is cut up.

    Attributes:
        rows: rows of the batch that are fetched at a time.
        outputs: results of a tile.
    """

    rows: int
    outputs: int


def supports(geometry: ChainGeometry) -> Answer:
    """True for at most 8 layers whose arrays can be indexed with 32 bits."""
    return fits_chain(geometry)


def tilings(geometry: ChainGeometry) -> tuple[Tiling, ...]:
    """Large tiles, or small ones if there are fewer large ones than multiprocessors."""
    few = _starts(geometry.sizes, Tiling(32, 32))[-1] < MULTIPROCESSORS
    choices = (Tiling(32, 32), Tiling(32, 16), Tiling(16, 32), Tiling(16, 16))
    return tuple(sorted(choices, key=lambda tiling: (tiling.outputs * (1 if few else -1), -tiling.rows)))


def _tiles(inputs: int, outputs: int, tiling: Tiling) -> tuple[int, int]:
    """Tiles across and down: the bias is one input more."""
    return -(-(inputs + 1) // _INPUTS), -(-outputs // tiling.outputs)


def _starts(sizes: tuple[int, ...], tiling: Tiling) -> list[int]:
    """The first block of each layer, and behind them the number of all blocks."""
    return list(accumulate((math.prod(_tiles(*pair, tiling)) for pair in pairwise(sizes)), initial=0))


@specialised
def _kernel(sizes: tuple[int, ...], tiling: Tiling, dtype: str) -> Callable[..., None]:
    real, stage, tile_outputs = getattr(types, dtype), tiling.rows, tiling.outputs
    features, fetches = tile_outputs // _WARPS, stage // _WARPS
    tile_size, grads_size = stage * _INPUTS, stage * tile_outputs
    per_access = min(features, widest_access(4, dtype))
    load = vector_access(per_access)[0]
    starts = _starts(sizes, tiling)

    @device_function
    def multiply(
        i: int, total: Any, a: Any, b: Any, part: Any, tile: Any, grad_tile: Any, at: Any, grad_at: Any
    ) -> None:
        # Signed: what is added becomes part of the instruction.
        b[0] = ld(tile, at + i * _INPUTS)
        for j in range(0, features, per_access):
            load(part, grad_tile, grad_at + (i * tile_outputs + j))
            for e in range(per_access):
                a[j + e] = part[e]
        add_outer(total, a, b, 0)

    multiply_all = unrolled(multiply, stage)

    def layer(number: int) -> Any:
        inputs, outputs, start = sizes[number], sizes[number + 1], starts[number]
        across = _tiles(inputs, outputs, tiling)[0]

        @device_function
        def fetch(
            j: int, found: Any, grads_found: Any, x: Any, grad: Any, row: Any, column: Any, at: Any, n: Any
        ) -> None:
            row += j * _WARPS
            found[j] = ldg_if(x, row * inputs + column, (row < n) & (column < inputs))
            grads_found[j] = ldg_if(grad, row * outputs + at, (row < n) & (at < outputs))

        @device_function
        def put(
            j: int, found: Any, grads_found: Any, tile: Any, grad_tile: Any, warp: Any, lane: Any, column: Any
        ) -> None:
            row = warp + j * _WARPS
            # The input of ones.
            st(tile, row * _INPUTS + lane, real(1) if column == inputs else found[j])
            if lane < tile_outputs:
                st(grad_tile, row * tile_outputs + lane, grads_found[j])

        fetch_all, put_all = unrolled(fetch, fetches), unrolled(put, fetches)

        @device_function
        def run(xs: Any, grads: Any, weights_out: Any, biases_out: Any, tile: Any, grad_tile: Any, n: Any) -> None:
            total = cuda.local.array((features, 1), real)
            a, b, part = cuda.local.array(features, real), cuda.local.array(1, real), cuda.local.array(per_access, real)
            found, grads_found = cuda.local.array(fetches, real), cuda.local.array(fetches, real)
            for j in range(features):
                total[j, 0] = real(0)
            thread = u32(cuda.threadIdx.x)
            warp, lane = thread >> 5, thread & 31
            block = u32(cuda.blockIdx.x) - start
            tile_down = block // across
            first_input = block % across * _INPUTS
            first_output = tile_down * tile_outputs
            column = first_input + lane
            # Lanes without a result of the tile fetch none.
            at = first_output + lane if lane < tile_outputs else u32(outputs)
            first_row = u32(0)
            while first_row < n:
                fetch_all(found, grads_found, xs[number], grads[number], first_row + warp, column, at, n)
                put_all(found, grads_found, tile, grad_tile, warp, lane, column)
                cuda.syncthreads()
                multiply_all(total, a, b, part, tile, grad_tile, i32(lane), i32(warp * features))
                cuda.syncthreads()
                first_row += stage
            for j in range(features):
                feature = first_output + warp * features + j
                if feature < outputs:
                    if column < inputs:
                        st(weights_out[number], feature * inputs + column, total[j, 0])
                    elif column == inputs:
                        st(biases_out[number], feature, total[j, 0])

        return run

    run_one = dispatch([layer(number) for number in range(len(sizes) - 1)], starts)

    @jit(launch_bounds=32 * _WARPS)
    def linear_chain_grad_weight(xs: Any, grads: Any, weights_out: Any, biases_out: Any, n: Any) -> None:
        tile = cuda.shared.array(tile_size, real, alignment=16)
        grad_tile = cuda.shared.array(grads_size, real, alignment=16)
        run_one(xs, grads, weights_out, biases_out, tile, grad_tile, u32(n))

    return linear_chain_grad_weight


def calls(a: Arguments, geometry: ChainGeometry, tiling: Tiling) -> Iterator[Call]:
    """One launch; for no rows too: the gradients are zero."""
    kernel, blocks = _kernel(geometry.sizes, tiling, a.dtype), _starts(geometry.sizes, tiling)[-1]
    yield call(kernel, blocks, 32 * _WARPS, a.xs, a.grads, a.weights_out, a.biases_out, geometry.n)
