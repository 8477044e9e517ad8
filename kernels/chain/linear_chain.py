"""Fully connected layers with ReLU between them, one after the other, in one launch.

A block takes ``rows`` rows of the input through all layers; a row's results wait in shared memory for the next layer,
and are written besides, because the gradients need them. A warp computes ``features`` results of each row: its lanes
share the sums, reading neighbouring weights, 128 bits each where rows of the weight allow it; then the lanes' parts
meet by shuffles, half as many of them in each round, always in the same order.

Each block reads all weights, from the second-level cache, if they are not too many: this is for layers so small, and
batches so short, that a launch for each layer, with a matrix product that fills a few tiles, takes longer.

Shared bytes (float32): ``8 · rows · features of the widest layer``, at most 24 KB. Registers aimed at: at most 64.
Expected bottleneck: the latency of the weights' loads, ``features`` of which a lane has under way.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

from numba import cuda, types

from gpuconv.geometry import ChainGeometry
from gpuconv.kernels.compiled import specialised
from gpuconv.kernels.device.host import Answer, Refusal, widest_access
from gpuconv.kernels.device.launch import Call, call, device_function, jit
from gpuconv.kernels.device.memory import ldg, ldg_if, st
from gpuconv.kernels.device.reduce import reduce_scatter
from gpuconv.kernels.device.registers import fma, unrolled, vector_access
from gpuconv.kernels.device.words import u32
from gpuconv.kernels.variant import Arguments

#: Elements of shared memory: 24 KB in float32, the static limit of 48 KB in float64.
_SHARED_ELEMENTS = 6 * 1024
#: Layers of a chain; an array takes 56 bytes of arguments, and a kernel has 4 KB.
MOST_LAYERS = 8


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How the work is cut up; ``rows · features`` is a power of two, at most 32.

    Attributes:
        threads: threads a block, a multiple of 32.
        rows: rows a block.
        features: results of each row that a warp computes at once.
    """

    threads: int
    rows: int
    features: int


def pitch(size: int) -> int:
    """Elements from one row in shared memory to the next: whole accesses."""
    return -(-size // 4) * 4


def fits_chain(geometry: ChainGeometry, choices: Callable[[tuple[int, ...]], tuple[Any, ...]] | None = None) -> Answer:
    """Whether there are as few layers as a kernel takes, none is empty, and ``choices`` has a tiling for them."""
    sizes = geometry.sizes
    if len(sizes) - 1 > MOST_LAYERS:
        return Refusal(f"{len(sizes) - 1} layers are more than the {MOST_LAYERS} that a launch takes")
    if 0 in sizes:
        return Refusal(f"a layer without features: {sizes}")
    if choices is not None and not choices(sizes):
        return Refusal(f"layers of {max(sizes)} features do not fit into shared memory")
    return True


def supports(geometry: ChainGeometry) -> Answer:
    """True for at most 8 layers of which two rows fit into shared memory."""
    return fits_chain(geometry, _choices)


@functools.cache
def _choices(sizes: tuple[int, ...]) -> tuple[Tiling, ...]:
    choices = (Tiling(512, 2, 4), Tiling(512, 4, 4), Tiling(256, 8, 4), Tiling(256, 1, 8))
    return tuple(choice for choice in choices if 2 * choice.rows * pitch(max(sizes)) <= _SHARED_ELEMENTS)


def tilings(geometry: ChainGeometry) -> tuple[Tiling, ...]:
    """Few rows a block for a short batch, which spread it over more multiprocessors; more rows for a longer one.

    Each block reads all weights: on an H100, 128 rows of LeNet's were faster in 32 blocks than in 64.
    """
    rows = 2 if geometry.n < 128 else 4 if geometry.n <= 256 else 8
    return tuple(
        sorted(_choices(geometry.sizes), key=lambda tiling: (tiling.rows == 1, abs(tiling.rows - rows), tiling.rows))
    )


@specialised
def _kernel(
    sizes: tuple[int, ...],
    relu: tuple[bool, ...],
    has_bias: tuple[bool, ...],
    tiling: Tiling,
    dtype: str,
    aligned16: bool,
) -> Callable[..., None]:
    """``aligned16``: all weights begin at multiples of 128 bits."""
    real = getattr(types, dtype)
    threads, rows, features = tiling.threads, tiling.rows, tiling.features
    warps, count = threads // 32, rows * features
    lanes_a_value = 32 // count
    shift = int(math.log2(lanes_a_value))
    buffer = rows * max(pitch(size) for size in sizes)
    first_size, first_pitch = sizes[0], pitch(sizes[0])
    sum_over_lanes = reduce_scatter(count)

    def layer(number: int) -> Any:
        inputs, outputs, active, biased = sizes[number], sizes[number + 1], relu[number], has_bias[number]
        row_in, row_out = pitch(inputs), pitch(outputs)
        vector = widest_access(inputs, dtype) if aligned16 else 1
        load, load_weights, _ = vector_access(vector)

        @device_function
        def add_row(r: int, sums: Any, w: Any, x: Any, before: Any, k: Any) -> None:
            load(x, before, k + r * row_in)
            for j in range(features):
                for e in range(vector):
                    sums[j * rows + r] = fma(w[j, e], x[e], sums[j * rows + r])

        add_rows = unrolled(add_row, rows)

        @device_function
        def load_feature(j: int, w: Any, one: Any, weight: Any, feature: Any, k: Any) -> None:
            # Features beyond the last are computed as the last one, and not written.
            here = feature + j if feature + j < outputs else u32(outputs - 1)
            load_weights(one, weight, here * inputs + k)
            for e in range(vector):
                w[j, e] = one[e]

        load_features = unrolled(load_feature, features)

        @device_function
        def run(before: Any, after: Any, weights: Any, biases: Any, outs: Any, first_row: Any, n: Any) -> None:
            sums = cuda.local.array(count, real)
            w, one, x = (
                cuda.local.array((features, vector), real),
                cuda.local.array(vector, real),
                cuda.local.array(vector, real),
            )
            thread = u32(cuda.threadIdx.x)
            warp, lane = thread >> 5, thread & 31
            feature = warp * features
            while feature < outputs:
                for i in range(count):
                    sums[i] = real(0)
                k = lane * vector
                while k < inputs:
                    load_features(w, one, weights[number], feature, k)
                    add_rows(sums, w, x, before, k)
                    k += 32 * vector
                sum_over_lanes(sums, lane)
                value = lane >> shift
                j, row = divmod(value, rows)
                mine = feature + j
                result = sums[0]
                if ((lane & (lanes_a_value - 1)) == 0) & (mine < outputs):
                    if biased:
                        result += ldg(biases[number], mine)
                    if active:
                        # Written so that a NaN stays.
                        result = real(0) if result <= real(0) else result
                    st(after, row * row_out + mine, result)
                    if first_row + row < n:
                        st(outs[number], (first_row + row) * outputs + mine, result)
                feature += warps * features

        return run

    def layers(number: int) -> Any:
        """A device function that runs the layers from ``number`` on, of which the first reads ``before``."""
        run, last = layer(number), number == len(relu) - 1
        rest = None if last else layers(number + 1)

        def run_all(before: Any, after: Any, *arguments: Any) -> None:
            run(before, after, *arguments)
            cuda.syncthreads()
            rest(after, before, *arguments)

        return run if last else device_function(run_all)

    run_layers = layers(0)

    @jit(launch_bounds=threads)
    def linear_chain(x: Any, weights: Any, biases: Any, outs: Any, n: Any) -> None:
        before = cuda.shared.array(buffer, real, alignment=16)
        after = cuda.shared.array(buffer, real, alignment=16)
        first_row = u32(cuda.blockIdx.x) * rows
        i = u32(cuda.threadIdx.x)
        while i < rows * first_size:
            row, column = divmod(i, first_size)
            offset = (first_row + row) * first_size + column
            st(before, row * first_pitch + column, ldg_if(x, offset, first_row + row < n))
            i += threads
        cuda.syncthreads()
        run_layers(before, after, weights, biases, outs, first_row, u32(n))

    return linear_chain


def calls(a: Arguments, geometry: ChainGeometry, tiling: Tiling) -> Iterator[Call]:
    """One launch, a block for some rows."""
    arrays, what = (a.x, a.weights, a.biases, a.outs), (a.has("biases"), a.dtype, a.aligned("weights"))
    yield launch_of(arrays, geometry, tiling, *what)


def launch_of(
    arrays: tuple[Any, Any, Any, Any],
    geometry: ChainGeometry,
    tiling: Tiling,
    has_bias: tuple[bool, ...],
    dtype: str,
    aligned16: bool,
) -> Call:
    """The launch on arrays x, weights, biases, outs; of the first it only reads. ``split`` makes it, too."""
    n, sizes, relu = geometry
    kernel = _kernel(sizes, relu, has_bias, tiling, dtype, aligned16)
    return call(kernel, -(-n // tiling.rows), tiling.threads, *arrays, n, reads=(0,))
