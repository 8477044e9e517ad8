"""Gradient for a convolution's input on tensor cores: the forward kernel, on turned filters.

With stride 1 the gradient for the input is itself a convolution: of the output's gradient, padded, with the filters
turned by 180 degrees and their channels and filters exchanged. A first kernel writes the filters so to the workspace,
one thread an element; a second one is that of ``conv2d_tensor_core.py``, as it is, on the gradient's geometry. The
first one costs a launch and two passes over the weights: for 256 filters of 256x3x3, 4.7 MB of the L2 cache.

Accuracy, shared bytes, registers and bottleneck: as of ``conv2d_tensor_core.py``. Refused is what is refused there, and
strides, whose gradient has gaps, and paddings larger than the window less one, whose result would have to be cut.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from gpuconv.geometry import Conv2dGeometry
from gpuconv.kernels.conv import conv2d_tensor_core as forward
from gpuconv.kernels.conv.conv2d_grad_input_implicit_gemm import turned, turned_filters
from gpuconv.kernels.conv.conv2d_grad_input_tiled import phases
from gpuconv.kernels.conv.conv2d_tensor_core import COMPUTE_CAPABILITY, DTYPES, Tiling
from gpuconv.kernels.device import Answer, Call, Refusal
from gpuconv.kernels.variant import Arguments

__all__ = ["COMPUTE_CAPABILITY", "DTYPES", "Tiling", "calls", "supports", "tilings", "workspace_size"]


def supports(geometry: Conv2dGeometry) -> Answer:
    """True for stride 1, unless the padding is larger than the window, or the window very long."""
    if geometry.stride != (1, 1):
        return Refusal(f"stride {geometry.stride}: the output's gradient would be a map with gaps")
    if any(pad < 0 for pair in _convolution(geometry).padding for pad in pair):
        return Refusal(
            f"padding {geometry.padding} is larger than the window less one: the result would have to be cut"
        )
    return forward.supports(geometry)


def _convolution(geometry: Conv2dGeometry) -> Conv2dGeometry:
    """The convolution that the gradient is: with stride 1 there is one phase."""
    return turned(geometry, *phases(geometry)[0])


def tilings(geometry: Conv2dGeometry) -> tuple[Tiling, ...]:
    """Those of the product."""
    return forward.tilings(_convolution(geometry))


def workspace_size(geometry: Conv2dGeometry, tiling: Tiling) -> int:
    """Elements of the turned filters."""
    return math.prod(geometry.weight_shape)


def calls(a: Arguments, geometry: Conv2dGeometry, tiling: Tiling) -> Iterator[Call]:
    """Turned filters, then the product."""
    a.workspace = a.stored(a.workspace)
    yield turned_filters(a, geometry)
    yield forward.product(a, _convolution(geometry), tiling, "grad", "workspace", "out")
