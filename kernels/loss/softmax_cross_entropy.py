"""Softmax and cross-entropy with class labels, row by row: the losses and the probabilities in one launch.

``lanes`` threads share a row, from 4 lanes of a warp up to a block of 256 threads: a row of ten classes would leave
most of a warp idle, one of many thousands needs more than a warp. Lane j takes the classes ``j, j + lanes, ...``, three
times: for the largest logit, for the sum of the exponentials (of logits less the largest one, so that none overflows),
and to write the probabilities; the second and third time the caches have the row. What the lanes found meets by
shuffles within a warp, always in the same order, and between warps in shared memory.

A label that is neither a class nor ``ignore_index`` gives the loss NaN, and its row enters ``wrong`` if it is the first
one, by an atomic minimum of integers.

Shared bytes: at most 64, where a row takes several warps. Registers aimed at: at most 40. Expected bottleneck: the
latency of the launch and of three dependent passes for small batches; memory bandwidth for large ones.
"""

from __future__ import annotations

import math
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
    rows_a_block, lowest, not_a_number = threads // lanes, float("-inf"), float("nan")
    largest_of_row, sum_of_row = reduction(lanes, threads, dtype, largest=True), reduction(lanes, threads, dtype)

    @jit(launch_bounds=threads)
    def softmax_cross_entropy(
        logits: Any,
        labels: Any,
        weight: Any,
        losses: Any,
        probabilities: Any,
        wrong: Any,
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

        largest = real(lowest)
        i = lane
        while i < end:
            value = ldg(logits, first + i)
            # Once it is NaN it stays so.
            largest = largest if largest >= value or largest != largest else value
            i += lanes
        largest = largest_of_row(largest)

        total = real(0)
        i = lane
        while i < end:
            total += real(math.exp(ldg(logits, first + i) - largest))
            i += lanes
        total = sum_of_row(total)

        log_total = real(math.log(total)) if row < rows else real(0)
        spread = real(0)
        i = lane
        while i < end:
            shifted = ldg(logits, first + i) - largest
            st(probabilities, first + i, real(math.exp(shifted)) / total)
            if smooths:
                log_probability = shifted - log_total
                spread += ldg(weight, i) * log_probability if has_weight else log_probability
            i += lanes
        if smooths:
            spread = sum_of_row(spread)

        if (lane == 0) & (row < rows):
            label = ldg(labels, row)
            loss = real(0)
            if label != ignore_index:
                if (label < 0) | (label >= classes):
                    cuda.atomic.min(wrong, 0, row)
                    loss = real(not_a_number)
                else:
                    loss = log_total - (ldg(logits, first + u32(label)) - largest)
                    if has_weight:
                        loss = loss * ldg(weight, u32(label))
                    if smooths:
                        loss = kept * loss - share * spread
            st(losses, row, loss)

    return softmax_cross_entropy


def calls(a: Arguments, shape: tuple[int, int], tiling: Tiling) -> Iterator[Call]:
    """One launch, some lanes for each row."""
    rows, classes = shape
    kernel = _kernel(classes, tiling, a.dtype, a.has("weight"), a.label_smoothing != 0)
    arrays = a.logits, a.labels, a.weight, a.losses, a.probabilities, a.wrong
    blocks = -(-rows * tiling.lanes // tiling.threads)
    yield call(kernel, blocks, tiling.threads, *arrays, *numbers(a, classes), rows)
