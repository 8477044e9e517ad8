"""Gradient for the input of a 3x3 convolution with stride 1 by Winograd's algorithm, on turned filters.

The gradient is a convolution of the output's gradient with the filters turned by 180 degrees and their channels and
filters exchanged, which costs nothing here: the kernel that brings filters to their points reads them so. All else,
with accuracy and what is not finite, is as in ``conv2d_winograd.py``.

Not chosen by the rule before a GPU has timed it.
"""

from __future__ import annotations

from collections.abc import Iterator

from gpuconv.geometry import Conv2dGeometry
from gpuconv.kernels.conv import conv2d_winograd as forward
from gpuconv.kernels.conv.conv2d_grad_input_implicit_gemm import turned
from gpuconv.kernels.conv.conv2d_grad_input_tiled import phases
from gpuconv.kernels.conv.conv2d_winograd import Tiling
from gpuconv.kernels.device.host import Answer
from gpuconv.kernels.device.launch import Call
from gpuconv.kernels.variant import Arguments

__all__ = ["Tiling", "calls", "estimate", "flop", "supports", "tilings", "workspace_size"]


def supports(geometry: Conv2dGeometry) -> Answer:
    """True for windows of 3x3 with stride 1 and without dilation."""
    return forward.supports(geometry)


def _convolution(geometry: Conv2dGeometry) -> Conv2dGeometry:
    """The one that the gradient is: of (n, k, p, q) to (n, c, h, w)."""
    ((rows, columns),) = phases(geometry)
    return turned(geometry, rows, columns)


def flop(geometry: Conv2dGeometry) -> int:
    """Operations of the products at all points, a multiply-add being two."""
    return forward.flop(_convolution(geometry))


def estimate(geometry: Conv2dGeometry, tiling: Tiling) -> float:
    """Microseconds on an H100, about: what ranks tilings."""
    return forward.estimate(_convolution(geometry), tiling)


def tilings(geometry: Conv2dGeometry) -> tuple[Tiling, ...]:
    """By estimated time."""
    return forward.tilings(_convolution(geometry))


def workspace_size(geometry: Conv2dGeometry, tiling: Tiling) -> int:
    """Elements of the turned filters at their points."""
    return forward.workspace_size(_convolution(geometry), tiling)


def calls(a: Arguments, geometry: Conv2dGeometry, tiling: Tiling) -> Iterator[Call]:
    """Turned filters to their points, then the convolution."""
    yield from forward.products(a, _convolution(geometry), tiling, "grad", turned=True)
