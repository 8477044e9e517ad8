"""Softmax, the mean cross-entropy, and its gradient for the logits: one launch of one block.

What a step of training needs of ``softmax_cross_entropy`` and its gradient, and the sums between them, for batches so
small that a launch takes longer than the work. First the block adds up the weights of the rows that count, by which the
mean divides. Then ``lanes`` threads share a row, as in ``softmax_cross_entropy``: largest logit, sum of exponentials,
gradient. Last the rows' losses are added up. The order of all sums is fixed.

A label that is neither a class nor ``ignore_index`` makes the loss NaN, its row has the gradient zero, and it enters
``wrong`` if it is the first one, by an atomic minimum of integers; no row does otherwise.

Shared bytes: at most 128. Registers aimed at: at most 64. Expected bottleneck: latency; about four passes over a row,
and two reductions over the block. More than 32,768 logits are refused: they are work for more than one multiprocessor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from numba import cuda, types

from gpuconv.kernels.compiled import specialised
from gpuconv.kernels.device import Answer, Call, Refusal, call, jit, ldg, reduction, st, u32
from gpuconv.kernels.loss.rowwise import Tiling, numbers
from gpuconv.kernels.variant import Arguments

__all__ = ["Tiling", "calls", "tilings"]

_MOST_LOGITS = 32_768
#: What ``wrong`` holds where every label is a class.
_NONE_WRONG = 2**31 - 1


def supports(shape: tuple[int, int]) -> Answer:
    """True for shapes (rows, classes) of at most 32,768 logits."""
    if math.prod(shape) > _MOST_LOGITS:
        return Refusal(f"{shape[0]}x{shape[1]} logits are too many for one block, which takes {_MOST_LOGITS}")
    return True


def tilings(shape: tuple[int, int]) -> tuple[Tiling, ...]:
    """As many lanes as leave each a few columns; as many threads as rows can use, up to a whole block.

    Each pass over the rows takes as long as the first, however many rows it has.
    """
    rows, columns = shape
    lanes = 4
    while lanes < 32 and lanes * 4 < columns:
        lanes *= 2
    threads = 64
    while threads < 1024 and threads < rows * lanes:
        threads *= 2
    choices = [Tiling(threads, lanes), Tiling(max(64, threads // 2), lanes), Tiling(256, min(32, 2 * lanes))]
    return tuple(dict.fromkeys([*choices, Tiling(64, lanes)]))


@specialised
def _kernel(classes: int, tiling: Tiling, dtype: str, has_weight: bool, smooths: bool) -> Callable[..., None]:
    real = getattr(types, dtype)
    threads, lanes = tiling.threads, tiling.lanes
    rows_a_pass, lowest, not_a_number = threads // lanes, float("-inf"), float("nan")
    largest_of_row, sum_of_row = reduction(lanes, threads, dtype, largest=True), reduction(lanes, threads, dtype)
    sum_of_block = reduction(threads, threads, dtype)

    @jit(launch_bounds=threads)
    def softmax_cross_entropy_mean(
        logits: Any,
        labels: Any,
        weight: Any,
        loss: Any,
        out: Any,
        wrong: Any,
        ignore_index: Any,
        kept: Any,
        share: Any,
        rows: Any,
    ) -> None:
        thread = u32(cuda.threadIdx.x)
        row_here, lane = divmod(thread, lanes)

        if thread == 0:
            st(wrong, 0, types.int32(_NONE_WRONG))
        divisor = real(0)
        i = thread
        while i < rows:
            label = ldg(labels, i)
            if (label != ignore_index) & (label >= 0) & (label < classes):
                divisor += ldg(weight, u32(label)) if has_weight else real(1)
            i += threads
        divisor = sum_of_block(divisor)

        shares = share * real(classes) if smooths else real(0)
        if smooths and has_weight:
            shares = real(0)
            i = lane
            while i < classes:
                shares += share * ldg(weight, i)
                i += lanes
            shares = sum_of_row(shares)

        losses = real(0)
        first_row = u32(0)
        # All threads make all passes, because their warps meet; those without a row take no classes.
        while first_row < rows:
            row = first_row + row_here
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
            total, spread = real(0), real(0)
            i = lane
            while i < end:
                shifted = ldg(logits, first + i) - largest
                total += real(math.exp(shifted))
                if smooths:
                    spread += ldg(weight, i) * shifted if has_weight else shifted
                i += lanes
            total = sum_of_row(total)
            if smooths:
                spread = sum_of_row(spread)

            if row < rows:
                label = ldg(labels, row)
                is_class = (label >= 0) & (label < classes)
                counts = is_class & (label != ignore_index)
                certain = kept
                if has_weight and counts:
                    certain = kept * ldg(weight, u32(label))
                coefficients = certain + shares
                i = lane
                while i < end:
                    probability = real(math.exp(ldg(logits, first + i) - largest)) / total
                    value = probability * coefficients
                    if smooths:
                        value -= share * ldg(weight, i) if has_weight else share
                    if i == label:
                        value -= certain
                    st(out, first + i, value / divisor if counts else real(0))
                    i += lanes
                if lane == 0:
                    if counts:
                        log_total = real(math.log(total))
                        one = certain * (log_total - (ldg(logits, first + u32(label)) - largest))
                        if smooths:
                            # Of shares of all classes, each times -log p = log_total - shifted.
                            one += shares * log_total - share * spread
                        losses += one
                    elif label != ignore_index:
                        cuda.atomic.min(wrong, 0, row)
                        losses += real(not_a_number)
            first_row += rows_a_pass
        losses = sum_of_block(losses)
        if thread == 0:
            # Over nothing the mean is 0 / 0, NaN.
            st(loss, 0, losses / divisor)

    return softmax_cross_entropy_mean


def calls(a: Arguments, shape: tuple[int, int], tiling: Tiling) -> Iterator[Call]:
    """One launch of one block; for no rows too, of which the mean is NaN."""
    rows, classes = shape
    kernel = _kernel(classes, tiling, a.dtype, a.has("weight"), a.label_smoothing != 0)
    arrays = a.logits, a.labels, a.weight, a.loss, a.out, a.wrong
    yield call(kernel, 1, tiling.threads, *arrays, *numbers(a, classes), rows)
