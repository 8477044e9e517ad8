"""Compiled loops for the CPU over single elements and rows: ReLU, softmax with cross-entropy, the optimizers' updates.

NumPy needs one pass over memory, and one temporary array, for each operation in a formula; these need one for all.
Roundings are those of the formulas in :mod:`gpuconv.backends.numpy_backend`, operation by operation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic, register_jitable

from gpuconv.backends.cpu.compile import ELEMENTS, INTEGERS, SIZE, Elements, kernel, split

_NUMBER = types.float64


# -- ReLU ------------------------------------------------------------------------------------------------------------


@kernel(ELEMENTS, ELEMENTS, SIZE, SIZE)
def relu(plan: Elements):
    """``(x, y, size, chunks)``."""
    zero = np.dtype(plan.dtype).type(0)

    def compute(chunk, x, y, size, chunks):
        first, last = split(size, chunks, chunk)
        for i in range(first, last):
            y[i] = zero if x[i] <= zero else x[i]  # NaN is not <= 0

    return compute


@kernel(ELEMENTS, ELEMENTS, ELEMENTS, SIZE, SIZE)
def relu_grad(plan: Elements):
    """``(grad, y, dx, size, chunks)``."""
    zero = np.dtype(plan.dtype).type(0)

    def compute(chunk, grad, y, dx, size, chunks):
        first, last = split(size, chunks, chunk)
        for i in range(first, last):
            dx[i] = zero if y[i] <= zero else grad[i]

    return compute


# -- softmax and cross-entropy ---------------------------------------------------------------------------------------


@kernel(ELEMENTS, INTEGERS, ELEMENTS, ELEMENTS, ELEMENTS, INTEGERS, SIZE, _NUMBER, SIZE, SIZE, SIZE)
def softmax_cross_entropy(plan: Elements):
    """``(logits, labels, weight, losses, probabilities, wrong, ignore_index, smoothing, rows, classes, chunks)``.

    Counts in ``wrong`` (chunks,) the labels that are neither a class nor ``ignore_index``: a kernel cannot raise.
    """
    dtype = np.dtype(plan.dtype).type

    def compute(
        chunk, logits, labels, weight, losses, probabilities, wrong, ignore_index, smoothing, rows, classes, chunks
    ):
        smooth, certain = dtype(smoothing / classes), dtype(1 - smoothing)
        wrong[chunk] = 0
        first, last = split(rows, chunks, chunk)
        for row in range(first, last):
            start = row * classes
            largest = logits[start]
            for j in range(1, classes):
                value = logits[start + j]
                if value > largest or value != value:
                    largest = value
            total = dtype(0)
            for j in range(classes):
                probability = math.exp(logits[start + j] - largest)
                probabilities[start + j] = probability
                total += probability
            for j in range(classes):
                probabilities[start + j] /= total
            label = labels[row]
            losses[row] = 0
            if label == ignore_index:
                continue
            if label < 0 or label >= classes:
                wrong[chunk] += 1
                continue
            log_total = math.log(total)
            loss = -(logits[start + label] - largest - log_total) * weight[label]
            if smooth != 0:
                spread = dtype(0)
                for j in range(classes):
                    spread += (logits[start + j] - largest - log_total) * weight[j]
                loss = certain * loss - smooth * spread
            losses[row] = loss

    return compute


@kernel(ELEMENTS, ELEMENTS, INTEGERS, ELEMENTS, ELEMENTS, SIZE, _NUMBER, SIZE, SIZE, SIZE)
def softmax_cross_entropy_grad(plan: Elements):
    """``(grad, probabilities, labels, weight, dlogits, ignore_index, smoothing, rows, classes, chunks)``.

    With coefficients ``a[j]`` on ``-log p[j]`` the gradient is ``p · Σ a - a``.
    """
    dtype = np.dtype(plan.dtype).type

    def compute(chunk, grad, probabilities, labels, weight, dlogits, ignore_index, smoothing, rows, classes, chunks):
        smooth = dtype(smoothing / classes)
        smooth_total = dtype(0)
        for j in range(classes):
            smooth_total += smooth * weight[j]
        first, last = split(rows, chunks, chunk)
        for row in range(first, last):
            start = row * classes
            label = labels[row]
            if label == ignore_index:
                for j in range(classes):
                    dlogits[start + j] = 0
            else:
                certain = dtype(1 - smoothing) * weight[label]
                for j in range(classes):
                    coefficient = probabilities[start + j] * (certain + smooth_total) - smooth * weight[j]
                    if j == label:
                        coefficient -= certain
                    dlogits[start + j] = coefficient * grad[row]

    return compute


@kernel(ELEMENTS, INTEGERS, ELEMENTS, ELEMENTS, ELEMENTS, SIZE, SIZE, SIZE)
def mean_loss(plan: Elements):
    """``(losses, labels, weight, mean, row_grads, ignore_index, rows, classes)``: the weighted mean, and its gradient
    for each row's loss. Sums are in float64, from first to last.
    """
    dtype = np.dtype(plan.dtype).type

    def compute(chunk, losses, labels, weight, mean, row_grads, ignore_index, rows, classes):
        total = total_weight = 0.0
        for row in range(rows):
            label = labels[row]
            if label != ignore_index and 0 <= label < classes:
                total += losses[row]
                total_weight += weight[label]
        mean[0] = dtype(total / total_weight)
        for row in range(rows):
            row_grads[row] = dtype(1.0 / total_weight)

    return compute


@kernel(ELEMENTS, ELEMENTS, SIZE, SIZE, SIZE)
def column_sums(plan: Elements):
    """``(x, sums, rows, columns, chunks)``, from the first row to the last; a chunk takes some columns."""

    def compute(chunk, x, sums, rows, columns, chunks):
        first, last = split(columns, chunks, chunk)
        for j in range(first, last):
            sums[j] = x[j]
        for row in range(1, rows):
            for j in range(first, last):
                sums[j] += x[row * columns + j]

    return compute


# -- optimizer updates -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Update:
    """What an optimizer's update is compiled for. What is left out is not the same as times zero: 0 · inf is NaN.

    Attributes:
        dtype: name of the element type.
        momentum: whether there is a velocity (SGD).
        nesterov: whether to look ahead along it (SGD).
        decay: whether weights decay: through the gradient.
        decoupled: whether they decay by themselves (AdamW).
    """

    dtype: str
    momentum: bool = False
    nesterov: bool = False
    decay: bool = False
    decoupled: bool = False


# Of a unit that is never active the averages decay until they are denormal, and stay so: 0.9 times the smallest number
# rounds to itself. A processor takes many times as long for such numbers, so that they become zero here.
#
# All parameters of a network are updated in one launch. A row of the table for each: how many elements come before its
# own, and the addresses of its arrays; behind them a row that has the number of all.


@intrinsic
def _elements_at(typing: Any, address: Any, kind: Any) -> Any:
    """A pointer to elements of the type of ``kind``."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.inttoptr(values[0], context.get_value_type(signature.return_type))

    return types.CPointer(kind)(types.int64, kind), generate


@register_jitable
def _part(table: Any, row: int, columns: int, first: int, last: int) -> tuple[int, int]:
    """Which of a row's elements are among those from ``first`` to ``last`` of all."""
    before, behind = table[row * columns], table[(row + 1) * columns]
    return max(first, before) - before, min(last, behind) - before


@kernel(INTEGERS, SIZE, _NUMBER, _NUMBER, _NUMBER, _NUMBER, SIZE, SIZE)
def sgd(plan: Update):
    """``(table, rows, lr, momentum, undamped, weight_decay, size, chunks)``: undamped is 1 - dampening.

    Columns: elements before, param, grad, velocity.
    """
    has_momentum, nesterov, decay = plan.momentum, plan.nesterov, plan.decay
    dtype = np.dtype(plan.dtype).type
    zero, smallest = dtype(0), np.finfo(dtype).tiny

    def compute(chunk, table, rows, lr, momentum, undamped, weight_decay, size, chunks):
        rate, keep, take, shrink = dtype(lr), dtype(momentum), dtype(undamped), dtype(weight_decay)
        first, last = split(size, chunks, chunk)
        for row in range(rows):
            param, grad = _elements_at(table[4 * row + 1], rate), _elements_at(table[4 * row + 2], rate)
            velocity = _elements_at(table[4 * row + 3], rate)
            begin, end = _part(table, row, 4, first, last)
            for i in range(begin, end):
                g = grad[i]
                if decay:
                    g += shrink * param[i]
                if has_momentum:
                    v = velocity[i] * keep + take * g
                    if abs(v) < smallest:  # not of a NaN
                        v = zero
                    velocity[i] = v
                    g = g + keep * v if nesterov else v
                param[i] -= rate * g

    return compute


@kernel(INTEGERS, SIZE, *[_NUMBER] * 8, SIZE, SIZE)
def adam(plan: Update):
    """``(table, rows, rate, beta1, rest1, beta2, rest2, correction, eps, weight_decay, size, chunks)``.

    ``rate`` is ``lr / (1 - beta1^t)``, ``rest`` is ``1 - beta``, ``correction`` is ``sqrt(1 - beta2^t)``;
    ``weight_decay`` is the factor of the parameters if decoupled, ``1 - lr · weight_decay``. Columns: elements before,
    param, grad, mean, square.
    """
    decay, decoupled = plan.decay, plan.decoupled
    dtype = np.dtype(plan.dtype).type
    zero, smallest = dtype(0), np.finfo(dtype).tiny

    def compute(chunk, table, rows, rate, beta1, rest1, beta2, rest2, correction, eps, weight_decay, size, chunks):
        step, keep1, take1, keep2, take2 = dtype(rate), dtype(beta1), dtype(rest1), dtype(beta2), dtype(rest2)
        corrected, small, shrink = dtype(correction), dtype(eps), dtype(weight_decay)
        first, last = split(size, chunks, chunk)
        for row in range(rows):
            param, grad = _elements_at(table[5 * row + 1], step), _elements_at(table[5 * row + 2], step)
            mean, square = _elements_at(table[5 * row + 3], step), _elements_at(table[5 * row + 4], step)
            begin, end = _part(table, row, 5, first, last)
            for i in range(begin, end):
                g = grad[i]
                if decoupled:
                    param[i] *= shrink
                elif decay:
                    g += shrink * param[i]
                m = mean[i] * keep1 + take1 * g
                v = square[i] * keep2 + take2 * g * g
                if abs(m) < smallest:
                    m = zero
                if v < smallest:
                    v = zero
                mean[i] = m
                square[i] = v
                param[i] -= step * (m / (math.sqrt(v) / corrected + small))

    return compute
