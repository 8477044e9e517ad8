"""Compiled loops for the CPU of batch normalisation: statistics, the normalised result, and its gradients.

A *plane* is one channel of one image. Statistics are taken plane by plane, while it is in the cache, and joined in
float64 by :mod:`gpuconv.backends.cpu.backend`: so they neither depend on the number of threads nor lose digits in
large batches. What follows a normalisation in a network, an addition and a ReLU, is done in the same pass over memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import types

from gpuconv.backends.cpu.compile import ELEMENTS, SIZE, Elements, kernel, split

_DOUBLES = types.CPointer(types.float64)


@dataclass(frozen=True)
class Normalisation:
    """What a kernel is compiled for.

    Attributes:
        dtype: name of the element type.
        residual: whether something is added behind the normalisation.
        relu: whether a ReLU is last.
    """

    dtype: str
    residual: bool = False
    relu: bool = False


@kernel(ELEMENTS, _DOUBLES, _DOUBLES, SIZE, SIZE, SIZE, reassociate=True)
def moments(plan: Elements):
    """``(x, means, squares, planes, length, chunks)``: mean, and sum of squared deviations from it, of each plane."""
    zero = np.dtype(plan.dtype).type(0)

    def compute(chunk, x, means, squares, planes, length, chunks):
        first, last = split(planes, chunks, chunk)
        for plane in range(first, last):
            start = plane * length
            total = zero
            for i in range(start, start + length):
                total += x[i]
            # Nearly the mean: what the rounding of the sum has left of it is made up for.
            middle = total / length
            rest, square = zero, zero
            for i in range(start, start + length):
                deviation = x[i] - middle
                rest += deviation
                square += deviation * deviation
            off = float(rest) / length
            means[plane] = float(middle) + off
            squares[plane] = float(square) - off * off * length

    return compute


@kernel(ELEMENTS, ELEMENTS, ELEMENTS, ELEMENTS, ELEMENTS, ELEMENTS, SIZE, SIZE, SIZE, SIZE)
def normalise(plan: Normalisation):
    """``(x, mean, scale, bias, residual, y, planes, channels, length, chunks)``."""
    has_residual, relu = plan.residual, plan.relu
    zero = np.dtype(plan.dtype).type(0)

    def compute(chunk, x, mean, scale, bias, residual, y, planes, channels, length, chunks):
        first, last = split(planes, chunks, chunk)
        for plane in range(first, last):
            channel = plane % channels
            middle, factor, shift = mean[channel], scale[channel], bias[channel]
            start = plane * length
            for i in range(start, start + length):
                value = (x[i] - middle) * factor + shift
                if has_residual:
                    value += residual[i]
                if relu:
                    value = zero if value <= zero else value  # NaN is not <= 0
                y[i] = value

    return compute


@kernel(ELEMENTS, ELEMENTS, ELEMENTS, ELEMENTS, _DOUBLES, _DOUBLES, SIZE, SIZE, SIZE, SIZE, reassociate=True)
def grad_sums(plan: Normalisation):
    """``(grad, x, y, mean, sums, products, planes, channels, length, chunks)``.

    Of each plane the sum of the gradient, and that of the gradient times the deviation from the mean; behind a ReLU the
    gradient is zero where y is not positive.
    """
    relu = plan.relu
    zero = np.dtype(plan.dtype).type(0)

    def compute(chunk, grad, x, y, mean, sums, products, planes, channels, length, chunks):
        first, last = split(planes, chunks, chunk)
        for plane in range(first, last):
            middle = mean[plane % channels]
            start = plane * length
            total, product = zero, zero
            for i in range(start, start + length):
                g = grad[i]
                if relu:
                    g = zero if y[i] <= zero else g
                total += g
                product += g * (x[i] - middle)
            sums[plane] = total
            products[plane] = product

    return compute


@kernel(*[ELEMENTS] * 9, SIZE, SIZE, SIZE, SIZE)
def grad_input(plan: Normalisation):
    """``(grad, x, y, mean, scale, slope, shift, dx, dresidual, planes, channels, length, chunks)``.

    ``dx = scale · g + slope · (x - mean) + shift``, g being the gradient in front of the ReLU, which is also that of
    what was added.
    """
    has_residual, relu = plan.residual, plan.relu
    zero = np.dtype(plan.dtype).type(0)

    def compute(chunk, grad, x, y, mean, scale, slope, shift, dx, dresidual, planes, channels, length, chunks):
        first, last = split(planes, chunks, chunk)
        for plane in range(first, last):
            channel = plane % channels
            middle, factor, steep, constant = mean[channel], scale[channel], slope[channel], shift[channel]
            start = plane * length
            for i in range(start, start + length):
                g = grad[i]
                if relu:
                    g = zero if y[i] <= zero else g
                if has_residual:
                    dresidual[i] = g
                dx[i] = factor * g + steep * (x[i] - middle) + constant

    return compute
