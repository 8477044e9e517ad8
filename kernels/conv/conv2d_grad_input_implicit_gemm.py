"""Gradient for a convolution's input as matrix products: the forward kernel, on turned filters.

With stride 1 the gradient for the input is itself a convolution: of the output's gradient, padded, with the filters
turned by 180 degrees and their channels and filters exchanged. With a larger stride each element of the input meets
only some of the taps: with stride 2 and a 3x3 window those in even rows and columns four of them, those in odd ones
one. So the input is split by phase, the rows and the columns modulo the stride, and each phase is a convolution with
stride 1 by its own taps. No zero is multiplied.

A first kernel writes all filters so to the workspace, phase by phase, one thread an element; then for each phase comes
the kernel of ``conv2d_implicit_gemm.py``, as it is, on the phase's geometry, which stores its results where they
belong. Elements that no tap meets, three of four with a 1x1 window and stride 2, are zeros of a last kernel.

What this costs besides the products is a launch and two passes over the weights, which are small beside the maps where
this is chosen; and with phases a launch each, stores of which a sector needs only every second element (the other half
comes with the next phase, while the sector is in the L2 cache), and smaller products, whose tiles have to be smaller.

Shared bytes, registers and bottleneck: as of ``conv2d_implicit_gemm.py``. A first look at an H100 asked for it: there
the forward product ran at 40 to 46 TFLOP/s on layers of ResNet-50 and VGG-16, and the tiled gradient at 17 to 34.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numba import cuda, types

from gpuconv.geometry import Conv2dGeometry
from gpuconv.kernels.compiled import specialised
from gpuconv.kernels.conv import conv2d_implicit_gemm as forward
from gpuconv.kernels.conv.conv2d_grad_input_tiled import Phase, phases
from gpuconv.kernels.conv.conv2d_implicit_gemm import Place, Tiling
from gpuconv.kernels.device import Answer, Call, Refusal, call, jit, ldg, minimum, st, u32
from gpuconv.kernels.device.host import LAUNCH, MAX_ELEMENTS, NEXT_LAUNCH
from gpuconv.kernels.variant import Arguments

__all__ = ["Tiling", "by_phases", "calls", "estimate", "products", "supports", "tilings", "workspace_size"]

_THREADS = 256
#: Launches; each phase is one.
_MOST_PHASES = 16


def supports(geometry: Conv2dGeometry) -> Answer:
    """True for all but very large strides and very long windows."""
    if math.prod(geometry.stride) > _MOST_PHASES:
        return Refusal(f"stride {geometry.stride}: it would take more than {_MOST_PHASES} launches")
    return forward.supports(geometry)


def turned(geometry: Conv2dGeometry, rows: Phase, columns: Phase) -> Conv2dGeometry:
    """The convolution that a phase is: of (n, k, p, q), by its taps, to the elements of the phase.

    Where the result has to be cut, its padding is less than nothing.
    """

    def padding(phase: Phase, length: int) -> tuple[int, int]:
        reach = (phase.taps - 1) * phase.spread
        before = phase.shift + reach - phase.first
        return before, phase.size + reach - length - before

    sizes = geometry.n, geometry.k, geometry.p, geometry.q, geometry.c, rows.taps, columns.taps
    sides, spread = (padding(rows, geometry.p), padding(columns, geometry.q)), (rows.spread, columns.spread)
    return Conv2dGeometry(*sizes, padding=sides, dilation=spread, groups=geometry.groups)


def products(geometry: Conv2dGeometry) -> list[tuple[Conv2dGeometry, Place]]:
    """Of each phase that has taps the convolution, and where its filters and results stand."""
    pairs, found = geometry.c * geometry.k // geometry.groups, []
    for rows, columns in phases(geometry):
        if rows.taps and columns.taps:
            before = _before(rows, geometry.r) * geometry.s + rows.taps * _before(columns, geometry.s)
            place = Place(weights=pairs * before)
            if geometry.stride != (1, 1):
                first = tuple(
                    s * one.first + one.offset for s, one in zip(geometry.stride, (rows, columns), strict=True)
                )
                place = dataclasses.replace(place, shape=(geometry.h, geometry.w), first=first, step=geometry.stride)
            found.append((turned(geometry, rows, columns), place))
    return found


def _before(phase: Phase, kernel: int) -> int:
    """Along one axis, how many taps the phases with lower ones have. Of each ``step`` taps a phase has one."""
    return phase.tap * (kernel // phase.step) + min(phase.tap, kernel % phase.step)


def estimate(geometry: Conv2dGeometry, tiling: Tiling) -> float:
    """Microseconds on an H100, about: what ranks tilings."""
    launch = LAUNCH - NEXT_LAUNCH
    return LAUNCH + sum(forward.estimate(product, tiling) - launch for product, _ in products(geometry))


def tilings(geometry: Conv2dGeometry) -> tuple[Tiling, ...]:
    """Those of the product; without that of 1x1 filters which spills registers. Of phases, the sums are whole."""
    convolutions = [product for product, _ in products(geometry)]
    if not convolutions:
        return (forward.SHAPES[-1],)
    found = {
        tiling: estimate(geometry, tiling)
        for product in convolutions
        for tiling in forward.tilings(product)
        if (min(one.r * one.s for one in convolutions) > 1 or tiling.filters < 128 or tiling.positions < 128)
        and workspace_size(geometry, tiling) <= MAX_ELEMENTS
        and (tiling.parts == 1 or geometry.stride == (1, 1))
    }
    return tuple(sorted(found, key=found.__getitem__))


def workspace_size(geometry: Conv2dGeometry, tiling: Tiling) -> int:
    """Elements of the turned filters, and behind them of the parts of the sums, if there are several."""
    parts = tiling.parts * math.prod(geometry.input_shape) if tiling.parts > 1 else 0
    return _first_part(geometry) + parts


def _first_part(geometry: Conv2dGeometry) -> int:
    """Where the parts begin: at a multiple of 16 bytes."""
    return -(-math.prod(geometry.weight_shape) // 4) * 4


@specialised
def _turn(geometry: Conv2dGeometry) -> Callable[..., None]:
    """The first kernel: one thread moves one weight to its phase, where the first of the taps becomes the last.

    ``n``, ``h`` and ``w`` of the geometry are not looked at.
    """
    r, s, groups = geometry.r, geometry.s, geometry.groups
    channels, filters = geometry.c // groups, geometry.k // groups
    size, pairs = geometry.k * channels * r * s, geometry.c * filters
    strides = zip(geometry.stride, geometry.dilation, strict=True)
    row_step, column_step = (stride // math.gcd(stride, dilation) for stride, dilation in strides)
    # Each of the first phases has a tap more than the others.
    row_taps, longer_rows = divmod(r, row_step)
    column_taps, longer_columns = divmod(s, column_step)

    @jit(launch_bounds=_THREADS)
    def conv2d_turned_filters(weight: Any, out: Any) -> None:
        i = u32(cuda.blockIdx.x) * _THREADS + cuda.threadIdx.x
        if i < size:
            rest, tap_column = divmod(i, s)
            rest, tap_row = divmod(rest, r)
            rest, channel = divmod(rest, channels)
            group, filter_ = divmod(rest, filters)
            turn_row, row_phase = divmod(tap_row, row_step)
            turn_column, column_phase = divmod(tap_column, column_step)
            rows = u32(row_taps) + (1 if row_phase < longer_rows else 0)
            columns = u32(column_taps) + (1 if column_phase < longer_columns else 0)
            before = (row_phase * row_taps + minimum(row_phase, longer_rows)) * s
            before += (column_phase * column_taps + minimum(column_phase, longer_columns)) * rows
            pair = (group * channels + channel) * filters + filter_
            tap = (rows - turn_row - 1) * columns + (columns - turn_column - 1)
            st(out, before * pairs + pair * rows * columns + tap, ldg(weight, i))

    return conv2d_turned_filters


@specialised
def _zeros(geometry: Conv2dGeometry, dtype: str) -> Callable[..., None]:
    """The last kernel: a thread writes a zero, if its element is one that no tap meets. ``n`` is not looked at."""
    real, h, w = getattr(types, dtype), geometry.h, geometry.w
    (stride_h, stride_w), (top, left) = geometry.stride, (geometry.padding[0][0], geometry.padding[1][0])

    def met(kernel: int, stride: int, dilation: int) -> int:
        """A bit for each remainder of padded positions that a tap meets."""
        return sum(1 << remainder for remainder in {tap * dilation % stride for tap in range(kernel)})

    rows = met(geometry.r, stride_h, geometry.dilation[0])
    columns = met(geometry.s, stride_w, geometry.dilation[1])

    @jit(launch_bounds=_THREADS)
    def conv2d_grad_input_zeros(out: Any, elements: Any) -> None:
        i = u32(cuda.blockIdx.x) * _THREADS + cuda.threadIdx.x
        if i < elements:
            line, column = divmod(i, w)
            row_met = (u32(rows) >> ((line % h + top) % stride_h)) & 1
            column_met = (u32(columns) >> ((column + left) % stride_w)) & 1
            if row_met * column_met == 0:
                st(out, i, real(0))

    return conv2d_grad_input_zeros


def turned_filters(a: Arguments, geometry: Conv2dGeometry) -> Call:
    """The launch that writes the turned filters to the workspace."""
    blocks = -(-math.prod(geometry.weight_shape) // _THREADS)
    return call(_turn(dataclasses.replace(geometry, n=1)), blocks, _THREADS, a.weight, a.workspace)


def calls(a: Arguments, geometry: Conv2dGeometry, tiling: Tiling) -> Iterator[Call]:
    """Turned filters, the products, where their sums are cut into parts the launch that adds them up, and zeros.

    Raises:
        ValueError: there are more parts than k-tiles; or parts, and phases.
    """
    if tiling.parts > 1 and geometry.stride != (1, 1):
        raise ValueError(f"conv2d_grad_input: with a stride sums are not cut into parts, got parts={tiling.parts}")
    yield from by_phases(a, geometry, tiling, forward.products)


def by_phases(
    a: Arguments, geometry: Conv2dGeometry, tiling: Any, multiplied: Callable[..., Iterator[Call]]
) -> Iterator[Call]:
    """As :func:`calls`, with the launches of each product that ``multiplied`` gives, as ``forward.products``."""
    found = products(geometry)
    if found:
        yield turned_filters(a, geometry)
    for product, place in found:
        place = dataclasses.replace(place, results=_first_part(geometry))
        yield from multiplied(a, product, tiling, "grad", "workspace", place=place)
    if any(not rows.taps or not columns.taps for rows, columns in phases(geometry)):
        kernel = _zeros(dataclasses.replace(geometry, n=1), np.dtype(a.out.dtype).name)
        yield call(kernel, -(-a.out.size // _THREADS), _THREADS, a.out, a.out.size)
