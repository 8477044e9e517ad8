"""Gradient of softmax and cross-entropy for the logits, row by row, from the probabilities.

With coefficients ``a[j]`` on ``-log p[j]`` the gradient is ``grad · (p · Σ a - a)``: the label's class has the
coefficient ``(1 - label_smoothing) · weight``, and smoothing adds ``label_smoothing / classes · weight[j]`` to each.
``lanes`` threads share a row, as in ``softmax_cross_entropy``; they have to meet only where smoothing and weights make
Σ a a sum.

Shared bytes: at most 64, where a row takes several warps. Registers aimed at: at most 40. Expected bottleneck: memory
bandwidth; a probability is read and a gradient written.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cuda, types

from gpuconv.kernels.compiled import specialised
from gpuconv.kernels.device import Answer, Launch, array_type, fits_offsets, jit, ldg, reduction, st, u32
from gpuconv.kernels.loss.rowwise import Tiling, tilings

__all__ = ["Tiling", "launch", "launches", "supports", "tilings"]


def supports(shape: tuple[int, int]) -> Answer:
    """True for every shape (rows, classes) whose elements can be indexed with 32 bits."""
    return fits_offsets(input=math.prod(shape))


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


def launches(
    shape: tuple[int, int], tiling: Tiling, dtype: Any, *, has_weight: bool = False, smooths: bool = False
) -> tuple[Launch, ...]:
    """The one launch of :func:`launch`, or none if there are no rows.

    Args:
        shape, tiling, dtype: see :func:`launch`.
        has_weight: classes have weights.
        smooths: ``label_smoothing`` is not 0.

    Raises:
        ValueError: the logits are too many for 32-bit offsets.
    """
    if not (answer := supports(shape)):
        raise ValueError(f"softmax_cross_entropy_grad: {answer}")
    (rows, classes), name = shape, np.dtype(dtype).name
    if not rows:
        return ()
    reals, real = array_type(name), getattr(types, name)
    signature = (reals, reals, array_type("int64"), reals, reals, types.int64, real, real, types.int64)
    grid = (-(-rows * tiling.lanes // tiling.threads), 1, 1)
    return (Launch(_kernel(classes, tiling, name, has_weight, smooths), signature, grid, (tiling.threads, 1, 1)),)


def launch(
    grad: Any,
    probabilities: Any,
    labels: Any,
    weight: Any,
    out: Any,
    shape: tuple[int, int],
    tiling: Tiling,
    stream: Any = None,
    *,
    ignore_index: int,
    label_smoothing: float,
) -> None:
    """``out``, (rows, classes), is the gradient for the logits, given that of each row's loss, ``grad`` (rows,).

    ``labels`` is int64 (rows,), ``weight`` (classes,) or None for ones. Rows whose label is ``ignore_index``, or no
    class, have the gradient zero.

    Raises:
        ValueError: the logits are too many for 32-bit offsets.
    """
    rows, classes = shape
    real = probabilities.dtype.type
    numbers = (ignore_index, real(1 - label_smoothing), real(label_smoothing / classes), rows)
    options = {"has_weight": weight is not None, "smooths": label_smoothing != 0}
    arrays = (grad, probabilities.reshape(-1), labels, grad if weight is None else weight, out.reshape(-1))
    for one in launches(shape, tiling, probabilities.dtype, **options):
        one(stream, *arrays, *numbers)
