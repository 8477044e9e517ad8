"""Compiled max and average pooling for the CPU: one pass over the input, every geometry.

A chunk takes some of the planes (images x channels). For a row of the result the taps of the window come one after
the other, and the innermost loop runs along the row, so that LLVM vectorises it; borders are a matter of where that
loop begins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from gpuconv.backends.cpu.compile import ELEMENTS, INTEGERS, SIZE, WINNERS, kernel, split
from gpuconv.backends.cpu.simd import scratch
from gpuconv.geometry import Pool2dGeometry


@dataclass(frozen=True)
class Pooling:
    """What a pooling is compiled for. The geometry's ``n`` and ``c`` are not used: planes are counted at run time."""

    dtype: str
    geometry: Pool2dGeometry


@njit(inline="always")
def _reached(size: int, length: int, stride: int, offset: int) -> tuple[int, int]:
    """Begin and end of the windows whose tap is in the input: ``0 <= index · stride + offset < length``."""
    first = max(0, (-offset + stride - 1) // stride)
    last = min(size, (length - 1 - offset) // stride + 1)
    return first, last


@kernel(ELEMENTS, ELEMENTS, WINNERS, SIZE, SIZE)
def max_pool(plan: Pooling):
    """``(x, y, winners, planes, chunks)``: maxima, and where they were in their windows."""
    g = plan.geometry
    h, w, p, q, r, s = g.h, g.w, g.p, g.q, g.r, g.s
    (down, across), (dilation_h, dilation_w) = g.stride, g.dilation
    top, left = g.padding[0][0], g.padding[1][0]
    lowest = np.dtype(plan.dtype).type(-np.inf)
    one = np.uint8(1)

    def compute(chunk, x, y, winners, planes, chunks):
        first_plane, last_plane = split(planes, chunks, chunk)
        for plane in range(first_plane, last_plane):
            for row in range(p):
                target = (plane * p + row) * q
                corner = row * down - top
                for j in range(q):
                    y[target + j] = lowest
                    # If nothing is larger than -inf, the first tap inside the input is taken.
                    inside = max(0, (-corner + dilation_h - 1) // dilation_h) * s
                    winners[target + j] = inside + max(0, (left - j * across + dilation_w - 1) // dilation_w)
                for tap_row in range(r):
                    source_row = corner + tap_row * dilation_h
                    if 0 <= source_row < h:
                        for tap_column in range(s):
                            offset = tap_column * dilation_w - left
                            first, last = _reached(q, w, across, offset)
                            source = (plane * h + source_row) * w + offset
                            tap = np.uint8(tap_row * s + tap_column) * one
                            for j in range(first, last):
                                value = x[source + j * across]
                                best = y[target + j]
                                wins = (value > best) | (value != value)
                                y[target + j] = value if wins else best
                                winners[target + j] = tap if wins else winners[target + j]

    return compute


@kernel(ELEMENTS, WINNERS, ELEMENTS, SIZE, SIZE)
def max_pool_grad(plan: Pooling):
    """``(grad, winners, dx, planes, chunks)``: each gradient goes to the position of its window's maximum."""
    g = plan.geometry
    h, w, p, q, s = g.h, g.w, g.p, g.q, g.s
    (down, across), (dilation_h, dilation_w) = g.stride, g.dilation
    top, left = g.padding[0][0], g.padding[1][0]

    def compute(chunk, grad, winners, dx, planes, chunks):
        first_plane, last_plane = split(planes, chunks, chunk)
        for j in range(first_plane * h * w, last_plane * h * w):
            dx[j] = 0
        for plane in range(first_plane, last_plane):
            for row in range(p):
                for column in range(q):
                    element = (plane * p + row) * q + column
                    winner = np.int64(winners[element])
                    tap_row = winner // s
                    source_row = row * down - top + tap_row * dilation_h
                    source_column = column * across - left + (winner - tap_row * s) * dilation_w
                    dx[(plane * h + source_row) * w + source_column] += grad[element]

    return compute


@kernel(ELEMENTS, INTEGERS, INTEGERS, ELEMENTS, SIZE, SIZE)
def avg_pool(plan: Pooling):
    """``(x, row_counts, column_counts, y, planes, chunks)``: sums over the counts' product."""
    g = plan.geometry
    h, w, p, q, r, s = g.h, g.w, g.p, g.q, g.r, g.s
    (down, across), (top, left) = g.stride, (g.padding[0][0], g.padding[1][0])
    dtype = np.dtype(plan.dtype).type

    def compute(chunk, x, row_counts, column_counts, y, planes, chunks):
        first_plane, last_plane = split(planes, chunks, chunk)
        for plane in range(first_plane, last_plane):
            for row in range(p):
                target = (plane * p + row) * q
                for j in range(q):
                    y[target + j] = 0
                for tap_row in range(r):
                    source_row = row * down - top + tap_row
                    if 0 <= source_row < h:
                        for tap_column in range(s):
                            first, last = _reached(q, w, across, tap_column - left)
                            source = (plane * h + source_row) * w + tap_column - left
                            for j in range(first, last):
                                y[target + j] += x[source + j * across]
                for j in range(q):
                    y[target + j] /= dtype(row_counts[row] * column_counts[j])

    return compute


@kernel(ELEMENTS, INTEGERS, INTEGERS, ELEMENTS, SIZE, SIZE)
def avg_pool_grad(plan: Pooling):
    """``(grad, row_counts, column_counts, dx, planes, chunks)``: each gradient is divided evenly over its window."""
    g = plan.geometry
    h, w, p, q, r, s = g.h, g.w, g.p, g.q, g.r, g.s
    (down, across), (top, left) = g.stride, (g.padding[0][0], g.padding[1][0])
    dtype = np.dtype(plan.dtype).type

    def compute(chunk, grad, row_counts, column_counts, dx, planes, chunks):
        shares = scratch(q, dtype)
        first_plane, last_plane = split(planes, chunks, chunk)
        for j in range(first_plane * h * w, last_plane * h * w):
            dx[j] = 0
        for plane in range(first_plane, last_plane):
            for row in range(p):
                source = (plane * p + row) * q
                for j in range(q):
                    shares[j] = grad[source + j] / dtype(row_counts[row] * column_counts[j])
                for tap_row in range(r):
                    target_row = row * down - top + tap_row
                    if 0 <= target_row < h:
                        for tap_column in range(s):
                            first, last = _reached(q, w, across, tap_column - left)
                            target = (plane * h + target_row) * w + tap_column - left
                            for j in range(first, last):
                                dx[target + j * across] += shares[j]

    return compute
