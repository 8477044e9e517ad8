"""Gradient of softmax and cross-entropy for the logits, row by row, from the probabilities.

With coefficients ``a[j]`` on ``-log p[j]`` the gradient is ``grad · (p · Σ a - a)``: the label's class has the
coefficient ``(1 - label_smoothing) · weight``, and smoothing adds ``label_smoothing / classes · weight[j]`` to each.
``lanes`` threads share a row, as in ``softmax_cross_entropy``; they have to meet only where smoothing and weights make
Σ a a sum.

Shared bytes: at most 64, where a row takes several warps. Registers aimed at: at most 40. Expected bottleneck: memory
bandwidth; a probability is read and a gradient written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from numba import cuda, types

from gpuconv.kernels.compiled import specialised
from gpuconv.kernels.device import Call, call, jit, ldg, reduction, st, u32
from gpuconv.kernels.loss.rowwise import Tiling, numbers, tilings
from gpuconv.kernels.variant import Arguments

__all__ = ["Tiling", "calls", "tilings"]


@specialised
def _kernel(classes: int, tiling: Tiling, dtype: str, has_weight: bool, smooths: bool) -> Callable[..., None]:
    real = getattr(types, dtype)
    threads, lanes = tiling.threads, tiling.lanes
    rows_a_block = threads // lanes
    sum_of_row = reduction(tiling.lanes, tiling.threads, dtype)

    @jit(launch_bounds=threads)
    def softmax_cross_entropy_grad(
        grad: Any,
        probabilities: Any,
        labels: Any,
        weight: Any,
        out: Any,
        ignore_index: Any,
        kept: Any,
        share: Any,
        rows: Any,
    ) -> None:
        thread = u32(cuda.threadIdx.x)
        row_here, lane = divmod(thread, lanes)
        row = u32(cuda.blockIdx.x) * rows_a_block + row_here
        # All threads stay, because their warps and blocks meet; those without a row take no classes.
        end = classes if row < rows else 0
        first = row * classes

        coefficients = share * real(classes) if smooths else real(0)
        if smooths and has_weight:
            coefficients = real(0)
            i = lane
            while i < end:
                coefficients += share * ldg(weight, i)
                i += lanes
            coefficients = sum_of_row(coefficients)

        if row < rows:
            label, row_grad = ldg(labels, row), ldg(grad, row)
            counts = (label != ignore_index) & (label >= 0) & (label < classes)
            certain = kept
            if has_weight and counts:
                certain = kept * ldg(weight, u32(label))
            coefficients += certain
            i = lane
            while i < end:
                value = ldg(probabilities, first + i) * coefficients
                if smooths:
                    value -= share * ldg(weight, i) if has_weight else share
                if i == label:
                    value -= certain
                st(out, first + i, value * row_grad if counts else real(0))
                i += lanes

    return softmax_cross_entropy_grad


def calls(a: Arguments, shape: tuple[int, int], tiling: Tiling) -> Iterator[Call]:
    """One launch, some lanes for each row."""
    rows, classes = shape
    kernel = _kernel(classes, tiling, a.dtype, a.has("weight"), a.label_smoothing != 0)
    arrays = a.grad, a.probabilities, a.labels, a.weight, a.out
    blocks = -(-rows * tiling.lanes // tiling.threads)
    yield call(kernel, blocks, tiling.threads, *arrays, *numbers(a, classes), rows)
