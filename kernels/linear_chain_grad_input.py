"""Gradients of a chain of fully connected layers for its input, and before each layer's ReLU, in one launch.

A block takes ``rows`` rows back through all layers. The gradient of a layer's results, zero where its ReLU let nothing
through, waits in shared memory; it is written besides, because the weights' gradients need it. A thread computes an
element of the layer's input in each row: neighbouring threads read neighbouring weights, and of 16 results the loads
are under way before the first is used.

Shared bytes (float32): ``8 · rows · features of the widest layer``, at most 24 KB. Registers aimed at: at most 128.
Expected bottleneck: the latency of the weights' loads.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numba import cuda, types

from gpuconv.geometry import ChainGeometry
from gpuconv.kernels.compiled import specialised
from gpuconv.kernels.device import (
    Answer,
    Launch,
    Refusal,
    array_type,
    device_function,
    fma,
    jit,
    ld,
    ldg_if,
    st,
    u32,
    uadd,
    udiv,
    umul,
    unrolled,
    usub,
)
from gpuconv.kernels.linear_chain import fits_chain, flat

#: Elements of shared memory: 24 KB in float32, the static limit of 48 KB in float64.
_SHARED_ELEMENTS = 6 * 1024
#: Results of a layer whose weights a thread loads at once.
_AT_ONCE = 16


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
    if not (answer := fits_chain(geometry)):
        return answer
    if not _choices(geometry.sizes):
        return Refusal(f"layers of {max(geometry.sizes)} features do not fit into shared memory")
    return True


def _row(size: int) -> int:
    """Elements from one row in shared memory to the next: zeros behind the last make whole steps."""
    return -(-size // _AT_ONCE) * _AT_ONCE


@functools.cache
def _choices(sizes: tuple[int, ...]) -> tuple[Tiling, ...]:
    choices = (Tiling(256, 2), Tiling(256, 4), Tiling(256, 8), Tiling(128, 1))
    return tuple(choice for choice in choices if 2 * choice.rows * _row(max(sizes)) <= _SHARED_ELEMENTS)


def tilings(geometry: ChainGeometry) -> tuple[Tiling, ...]:
    """Few rows a block for a short batch, which spread it over more multiprocessors; more rows for a longer one."""
    few = geometry.n <= 256
    return tuple(
        sorted(_choices(geometry.sizes), key=lambda tiling: (tiling.rows == 1, tiling.rows * (1 if few else -1)))
    )


@specialised
def _kernel(
    sizes: tuple[int, ...], relu: tuple[bool, ...], tiling: Tiling, dtype: str, need_input: bool
) -> Callable[..., None]:
    real = getattr(types, dtype)
    threads, rows, last_layer = tiling.threads, tiling.rows, len(relu) - 1
    buffer = rows * _row(max(sizes))
    last_size, last_row, last_active = sizes[-1], _row(sizes[-1]), relu[-1]

    def layer(number: int) -> Any:
        inputs, outputs = sizes[number], sizes[number + 1]
        row_in, row_out, first = _row(inputs), _row(outputs), number == 0
        masks = not first and relu[number - 1]

        @device_function
        def load_weight(j: int, w: Any, weight: Any, feature: Any, column: Any, inside: bool) -> None:
            here = uadd(feature, j)
            w[j] = ldg_if(weight, uadd(umul(here, inputs), column), inside & (here < outputs))

        @device_function
        def add_result(j: int, sums: Any, w: Any, after: Any, feature: Any) -> None:
            for r in range(rows):
                sums[r] = fma(w[j], ld(after, uadd(feature, r * row_out + j)), sums[r])

        load_weights, add_results = unrolled(load_weight, _AT_ONCE), unrolled(add_result, _AT_ONCE)

        @device_function
        def run(after: Any, before: Any, weights: Any, ys: Any, grads: Any, out: Any, first_row: Any, n: Any) -> None:
            sums, w = cuda.local.array(rows, real), cuda.local.array(_AT_ONCE, real)
            column = u32(cuda.threadIdx.x)
            while column < row_in:
                inside = column < inputs
                for r in range(rows):
                    sums[r] = real(0)
                feature = u32(0)
                while feature < outputs:
                    load_weights(w, weights[number], feature, column, inside)
                    add_results(sums, w, after, feature)
                    feature = uadd(feature, _AT_ONCE)
                for r in range(rows):
                    row, value = uadd(first_row, r), sums[r]
                    offset = uadd(umul(row, inputs), column)
                    exists = inside & (row < n)
                    if masks:
                        # Written so that a NaN lets the gradient through.
                        value = real(0) if ldg_if(ys[number - 1], offset, exists) <= real(0) else value
                    if first:
                        if exists:
                            st(out, offset, value)
                    else:
                        st(before, uadd(column, r * row_in), value if inside else real(0))
                        if exists:
                            st(grads[number - 1], offset, value)
                column = uadd(column, threads)

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
        first_row = umul(u32(cuda.blockIdx.x), rows)
        i = u32(cuda.threadIdx.x)
        while i < rows * last_row:
            r = udiv(i, last_row)
            column, row = usub(i, umul(r, last_row)), uadd(first_row, r)
            exists = (column < last_size) & (row < n)
            offset = uadd(umul(row, last_size), column)
            value = ldg_if(grad, offset, exists)
            if last_active:
                value = real(0) if ldg_if(ys[last_layer], offset, exists) <= real(0) else value
                if exists:
                    st(grads[last_layer], offset, value)
            st(after, i, value if exists else real(0))
            i = uadd(i, threads)
        cuda.syncthreads()
        if anything:
            run_layers(after, before, weights, ys, grads, out, first_row, u32(n))

    return linear_chain_grad_input


def launches(geometry: ChainGeometry, tiling: Tiling, dtype: Any, *, need_input: bool = True) -> tuple[Launch, ...]:
    """The one launch of :func:`launch`, or none for no rows.

    Args:
        geometry, tiling, dtype: see :func:`launch`.
        need_input: whether the input's gradient is wanted.

    Raises:
        ValueError: too many layers, too wide ones, or an array that is too large.
    """
    if not (answer := supports(geometry)):
        raise ValueError(f"linear_chain_grad_input: {answer}")
    n, sizes, relu = geometry
    if not n:
        return ()
    name = np.dtype(dtype).name
    arrays = types.UniTuple(array_type(name), len(relu))
    signature = (array_type(name), arrays, arrays, arrays, array_type(name), types.int64)
    kernel = _kernel(sizes, relu, tiling, name, need_input)
    return (Launch(kernel, signature, (-(-n // tiling.rows), 1, 1), (tiling.threads, 1, 1)),)


def launch(
    grad: Any,
    weights: Sequence[Any],
    ys: Sequence[Any],
    grads: Sequence[Any],
    out: Any,
    geometry: ChainGeometry,
    tiling: Tiling,
    stream: Any = None,
) -> None:
    """``grads``, the gradients before each layer's ReLU, (n, size), and ``out``, that of the input, (n, sizes[0]).

    Given ``grad`` (n, sizes[-1]), and of the forward the weights and the results ``ys``. The last of ``grads`` is not
    written if no ReLU follows the last layer: it is ``grad``. ``out`` is None if it is not wanted.

    Raises:
        ValueError: too many layers, too wide ones, or an array that is too large.
    """
    for one in launches(geometry, tiling, grad.dtype, need_input=out is not None):
        flat_out = (grad if out is None else out).reshape(-1)
        one(stream, grad.reshape(-1), flat(weights), flat(ys), flat(grads), flat_out, geometry.n)
