"""Gradient for a convolution's input as a matrix product: the forward kernel, on turned filters.

With stride 1 the gradient for the input is itself a convolution: of the output's gradient, padded, with the filters
turned by 180 degrees and their channels and filters exchanged. A first kernel writes the filters so to the workspace,
one thread an element; a second one is that of ``conv2d_implicit_gemm.py``, as it is, on the gradient's geometry. What
the first one costs is a launch and two passes over the weights, which are small beside the maps where this is chosen.

Shared bytes, registers and bottleneck: as of ``conv2d_implicit_gemm.py``. A first look at an H100 asked for it: there
the forward product ran at 40 to 46 TFLOP/s on layers of ResNet-50 and VGG-16, and the tiled gradient at 17 to 34.

Refused are strides: the output's gradient would have gaps. So are paddings that are larger than the window less one,
whose gradient would have to be cut.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from numba import cuda

from gpuconv.geometry import Conv2dGeometry
from gpuconv.kernels.compiled import specialised
from gpuconv.kernels.conv import conv2d_implicit_gemm as forward
from gpuconv.kernels.conv.conv2d_implicit_gemm import Tiling
from gpuconv.kernels.device import Answer, Call, Refusal, call, jit, ldg, st, u32
from gpuconv.kernels.device.host import MAX_ELEMENTS, NEXT_LAUNCH
from gpuconv.kernels.variant import Arguments

__all__ = ["Tiling", "calls", "estimate", "supports", "tilings", "workspace_size"]

_THREADS = 256


def supports(geometry: Conv2dGeometry) -> Answer:
    """True for stride 1, unless the padding is larger than the window, or the window very long."""
    if geometry.stride != (1, 1):
        return Refusal(f"stride {geometry.stride}: the output's gradient would be a map with gaps")
    if any(pad < 0 for pair in _padding(geometry) for pad in pair):
        return Refusal(
            f"padding {geometry.padding} is larger than the window less one: the result would have to be cut"
        )
    return forward.supports(geometry)


def _padding(geometry: Conv2dGeometry) -> tuple[tuple[int, int], tuple[int, int]]:
    """Of the output's gradient: what the window reaches beyond it."""
    reach = (geometry.r - 1) * geometry.dilation[0], (geometry.s - 1) * geometry.dilation[1]
    (top, bottom), (left, right) = geometry.padding
    return (reach[0] - top, reach[0] - bottom), (reach[1] - left, reach[1] - right)


def turned(geometry: Conv2dGeometry) -> Conv2dGeometry:
    """The convolution that the gradient is: of (n, k, p, q) with filters (c, k / groups, r, s) to (n, c, h, w)."""
    filters = geometry.c, geometry.k // geometry.groups, geometry.r, geometry.s
    return Conv2dGeometry.of(
        geometry.output_shape,
        filters,
        padding=_padding(geometry),
        dilation=geometry.dilation,
        groups=geometry.groups,
    )


def estimate(geometry: Conv2dGeometry, tiling: Tiling) -> float:
    """Microseconds on an H100, about: what ranks tilings."""
    return NEXT_LAUNCH + forward.estimate(turned(geometry), tiling)


def tilings(geometry: Conv2dGeometry) -> tuple[Tiling, ...]:
    """Those of the product; without that of 1x1 filters which spills registers."""
    return tuple(
        tiling
        for tiling in forward.tilings(turned(geometry))
        if (geometry.r * geometry.s > 1 or tiling.filters < 128 or tiling.positions < 128)
        and workspace_size(geometry, tiling) <= MAX_ELEMENTS
    )


def workspace_size(geometry: Conv2dGeometry, tiling: Tiling) -> int:
    """Elements of the turned filters, and behind them of the parts of the sums, if there are several."""
    return _first_part(geometry) + forward.workspace_size(turned(geometry), tiling)


def _first_part(geometry: Conv2dGeometry) -> int:
    """Where the parts begin: at a multiple of 16 bytes."""
    return -(-math.prod(geometry.weight_shape) // 4) * 4


@specialised
def _turn(groups: int, channels: int, filters: int, taps: int) -> Callable[..., None]:
    """The first kernel: one thread writes one weight, ``turned[c, k, i, j] = weight[k, c, r - 1 - i, s - 1 - j]``.

    ``channels`` and ``filters`` are those of a group.
    """
    size = groups * channels * filters * taps

    @jit(launch_bounds=_THREADS)
    def conv2d_turned_filters(weight: Any, out: Any) -> None:
        i = u32(cuda.blockIdx.x) * _THREADS + cuda.threadIdx.x
        if i < size:
            row, tap = divmod(i, taps)
            channel, filter_ = divmod(row, filters)
            group, channel = divmod(channel, channels)
            source = ((group * filters + filter_) * channels + channel) * taps + (taps - 1 - tap)
            st(out, i, ldg(weight, source))

    return conv2d_turned_filters


def calls(a: Arguments, geometry: Conv2dGeometry, tiling: Tiling) -> Iterator[Call]:
    """Turned filters, then the product, and where its sums are cut into parts, the launch that adds them up.

    Raises:
        ValueError: there are more parts than k-tiles.
    """
    groups = geometry.groups
    kernel = _turn(groups, geometry.c // groups, geometry.k // groups, geometry.r * geometry.s)
    blocks = -(-math.prod(geometry.weight_shape) // _THREADS)
    yield call(kernel, blocks, _THREADS, a.weight, a.workspace)
    yield from forward.products(a, turned(geometry), tiling, "grad", "workspace", first=_first_part(geometry))
