"""Gradients of a chain of fully connected layers for its input, and before each layer's ReLU, in one launch.

A block takes ``rows`` rows back through all layers. The gradient of a layer's results, zero where its ReLU let nothing
through, waits in shared memory; it is written besides, because the weights' gradients need it. A thread computes up to
four neighbouring elements of the layer's input in each row, and neighbouring threads read neighbouring weights, 128
bits each where rows of the weight allow it. Groups of threads share the layer's results, as many groups as the block
has room for, so that all of it is at work on narrow layers, too; of a dozen results the loads are under way before the
first is used. The groups' sums meet in shared memory, in a fixed order.

Each block reads all weights, from the second-level cache: LeNet's 236 KB take a multiprocessor, at 64 bytes a cycle,
3,700 cycles, and the cache serves about a third of all multiprocessors at that rate. So a batch becomes no more blocks
than that, of more rows each, where a block has room for them.

Shared bytes (float32): at most ``8 · rows · (features of the widest layer + 2 · threads)``. Registers aimed at: at most
128. Expected bottleneck: the weights' way from the second-level cache.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

from numba import cuda, types

from gpuconv.geometry import ChainGeometry
from gpuconv.kernels.chain.linear_chain import fits_chain, pitch
from gpuconv.kernels.compiled import specialised
from gpuconv.kernels.device.host import MULTIPROCESSORS, Answer, widest_access
from gpuconv.kernels.device.launch import Call, call, device_function, jit
from gpuconv.kernels.device.memory import ld, ldg_if, st
from gpuconv.kernels.device.registers import fma, unrolled, vector_access
from gpuconv.kernels.device.words import i32, minimum, u32
from gpuconv.kernels.variant import Arguments

#: Bytes of static shared memory.
_SHARED_BYTES = 48 * 1024
#: Results of a layer whose weights a thread loads at once, at most.
_AT_ONCE = 12


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How the work is cut up.

    Attributes:
        threads: threads a block.
        rows: rows a block.
    """

    threads: int
    rows: int


def supports(geometry: ChainGeometry) -> Answer:
    """True for at most 8 layers of which a row fits into shared memory."""
    return fits_chain(geometry, _choices)


def _groups(inputs: int, outputs: int, vector: int, threads: int) -> tuple[int, int, int]:
    """How a block shares a layer: threads of a group, groups, and loads of a thread that are under way at once."""
    group = min(threads, -(-inputs // vector))
    most = max(1, min(threads // group, outputs))
    # A number of groups that divides the results needs no limits in the loop.
    even = max(count for count in range(1, most + 1) if outputs % count == 0)
    groups = even if 2 * even >= most else most
    share = -(-outputs // groups)
    return group, groups, -(-share // -(-share // _AT_ONCE))


def _sums(sizes: tuple[int, ...], tiling: Tiling, widest: int) -> int:
    """Elements of shared memory for the groups' sums."""
    vectors = [vector for vector in (1, 2, 4) if vector <= widest]
    return tiling.rows * max(
        _groups(inputs, outputs, vector, tiling.threads)[1] * pitch(inputs)
        for inputs, outputs in pairwise(sizes)
        for vector in vectors
    )


@functools.cache
def _choices(sizes: tuple[int, ...]) -> tuple[Tiling, ...]:
    def fits(tiling: Tiling) -> bool:
        waiting = 2 * tiling.rows * pitch(max(sizes))
        return all((waiting + _sums(sizes, tiling, 16 // size)) * size <= _SHARED_BYTES for size in (4, 8))

    return tuple(filter(fits, (Tiling(512, 1), Tiling(512, 2), Tiling(256, 4), Tiling(128, 4), Tiling(128, 1))))


def tilings(geometry: ChainGeometry) -> tuple[Tiling, ...]:
    """Few rows a block for a short batch, which spread it over more multiprocessors; more rows for a longer one.

    On an H100, two rows of LeNet's a block were faster up to 128 rows than four: 64 blocks, of twice as many threads.
    """
    limits = {1: MULTIPROCESSORS // 3, 2: MULTIPROCESSORS}
    rows = next((rows for rows, most in limits.items() if geometry.n <= most), 4)
    return tuple(sorted(_choices(geometry.sizes), key=lambda tiling: (abs(tiling.rows - rows), -tiling.threads)))


@specialised
def _kernel(
    sizes: tuple[int, ...], relu: tuple[bool, ...], tiling: Tiling, dtype: str, need_input: bool, aligned16: bool
) -> Callable[..., None]:
    """``aligned16``: all weights begin at multiples of 128 bits."""
    real = getattr(types, dtype)
    threads, rows, last_layer = tiling.threads, tiling.rows, len(relu) - 1
    buffer = rows * pitch(max(sizes))
    sums_size = _sums(sizes, tiling, widest_access(4, dtype))
    last_size, last_row, last_active = sizes[-1], pitch(sizes[-1]), relu[-1]

    def layer(number: int) -> Any:
        inputs, outputs = sizes[number], sizes[number + 1]
        row_in, row_out, first = pitch(inputs), pitch(outputs), number == 0
        masks = not first and relu[number - 1]
        vector = widest_access(inputs, dtype) if aligned16 else 1
        group_threads, groups, at_once = _groups(inputs, outputs, vector, threads)
        batches = -(-outputs // (groups * at_once))
        share, uneven = batches * at_once, groups * batches * at_once != outputs
        _, load_read_only, store = vector_access(vector)

        # Signed offsets: what is added to them becomes part of the instruction. Where shares are uneven, the last one
        # ends behind the last result.

        @device_function
        def load_weight(j: int, w: Any, one: Any, weight: Any, feature: Any, column: Any, at: Any) -> None:
            if uneven:
                at = minimum(feature + j, outputs - 1) * inputs + column
                load_read_only(one, weight, at)
            else:
                load_read_only(one, weight, at + j * inputs)
            for e in range(vector):
                w[j, e] = one[e]

        @device_function
        def add_result(j: int, sums: Any, w: Any, after: Any, feature: Any) -> None:
            here = minimum(feature + j, outputs - 1) if uneven else feature + j
            for r in range(rows):
                value = ld(after, here + r * row_out)
                for e in range(vector):
                    # Not times zero: what lies behind the last result stands for nothing, be it infinite.
                    added = fma(w[j, e], value, sums[r, e])
                    sums[r, e] = sums[r, e] if uneven and feature + j >= outputs else added

        load_weights, add_results = unrolled(load_weight, at_once), unrolled(add_result, at_once)

        @device_function
        def multiply(after: Any, parts: Any, weight: Any) -> None:
            """The groups' sums."""
            sums, w = cuda.local.array((rows, vector), real), cuda.local.array((at_once, vector), real)
            one = cuda.local.array(vector, real)
            thread = u32(cuda.threadIdx.x)
            group, column = divmod(thread, group_threads)
            column *= vector
            while (group < groups) & (column < inputs):
                for r in range(rows):
                    for e in range(vector):
                        sums[r, e] = real(0)
                feature = i32(group * share)
                for _ in range(batches):
                    at = feature * inputs + i32(column)
                    load_weights(w, one, weight, feature, i32(column), at)
                    add_results(sums, w, after, feature)
                    feature += at_once
                for r in range(rows):
                    for e in range(vector):
                        one[e] = sums[r, e]
                    store(one, parts, (group * rows + r) * row_in + column)
                column += group_threads * vector

        @device_function
        def run(
            after: Any,
            before: Any,
            parts: Any,
            weights: Any,
            ys: Any,
            grads: Any,
            out: Any,
            first_row: Any,
            n: Any,
        ) -> None:
            multiply(after, parts, weights[number])
            cuda.syncthreads()
            i = u32(cuda.threadIdx.x)
            while i < rows * inputs:
                r, column = divmod(i, inputs)
                row = first_row + r
                at = r * row_in + column
                value = real(0)
                for group in range(groups):
                    value += ld(parts, at + group * rows * row_in)
                offset, exists = row * inputs + column, row < n
                if masks:
                    # Written so that a NaN lets the gradient through.
                    value = real(0) if ldg_if(ys[number - 1], offset, exists) <= real(0) else value
                if not first:
                    st(before, at, value)
                if exists:
                    st(out if first else grads[number - 1], offset, value)
                i += threads

        return run

    def layers(number: int) -> Any:
        """A device function that goes back through the layers from ``number`` on to the first that is needed."""
        run, last = layer(number), number == (0 if need_input else 1)
        rest = None if last else layers(number - 1)

        def run_all(after: Any, before: Any, *arguments: Any) -> None:
            run(after, before, *arguments)
            cuda.syncthreads()
            rest(before, after, *arguments)

        return run if last else device_function(run_all)

    # With one layer whose input's gradient is not needed, nothing is left but to mask.
    anything = need_input or last_layer > 0
    run_layers = layers(last_layer) if anything else None

    @jit(launch_bounds=threads)
    def linear_chain_grad_input(grad: Any, weights: Any, ys: Any, grads: Any, out: Any, n: Any) -> None:
        after = cuda.shared.array(buffer, real, alignment=16)
        before = cuda.shared.array(buffer, real, alignment=16)
        parts = cuda.shared.array(sums_size, real, alignment=16)
        first_row = u32(cuda.blockIdx.x) * rows
        i = u32(cuda.threadIdx.x)
        while i < rows * last_row:
            r, column = divmod(i, last_row)
            row = first_row + r
            exists = (column < last_size) & (row < n)
            offset = row * last_size + column
            value = ldg_if(grad, offset, exists)
            if last_active:
                value = real(0) if ldg_if(ys[last_layer], offset, exists) <= real(0) else value
                if exists:
                    st(grads[last_layer], offset, value)
            st(after, i, value if exists else real(0))
            i += threads
        cuda.syncthreads()
        if anything:
            run_layers(after, before, parts, weights, ys, grads, out, first_row, u32(n))

    return linear_chain_grad_input


def calls(a: Arguments, geometry: ChainGeometry, tiling: Tiling) -> Iterator[Call]:
    """One launch, a block for some rows."""
    n, sizes, relu = geometry
    kernel = _kernel(sizes, relu, tiling, a.dtype, a.has("out"), a.aligned("weights"))
    yield call(kernel, -(-n // tiling.rows), tiling.threads, a.grad, a.weights, a.ys, a.grads, a.out, n)
