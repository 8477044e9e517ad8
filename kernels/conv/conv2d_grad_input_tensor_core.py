"""Gradient for a convolution's input on tensor cores: the forward kernel, on turned filters.

The products are those of ``conv2d_grad_input_implicit_gemm.py``, one for each phase of a stride: a first kernel writes
the filters turned by 180 degrees, their channels and filters exchanged, phase by phase, to the workspace; then for each
phase comes the kernel of ``conv2d_tensor_core.py``, as it is, on the gradient's geometry; elements that no tap meets
are zeros of a last one. The first kernel costs a launch and two passes over the weights: for 256 filters of 256x3x3,
4.7 MB of the L2 cache.

Accuracy, shared bytes, registers and bottleneck: as of ``conv2d_tensor_core.py``. Of a stride, stores are of single
elements, and each phase has its own, smaller product. Refused is what is refused there, and very large strides.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from gpuconv.geometry import Conv2dGeometry
from gpuconv.kernels.conv import conv2d_grad_input_implicit_gemm as implicit
from gpuconv.kernels.conv import conv2d_tensor_core as forward
from gpuconv.kernels.conv.conv2d_grad_input_implicit_gemm import by_phases, products
from gpuconv.kernels.conv.conv2d_tensor_core import COMPUTE_CAPABILITY, DTYPES, Tiling
from gpuconv.kernels.device import Answer, Call
from gpuconv.kernels.variant import Arguments

__all__ = ["COMPUTE_CAPABILITY", "DTYPES", "Tiling", "calls", "supports", "tilings", "workspace_size"]


def supports(geometry: Conv2dGeometry) -> Answer:
    """True for all but very large strides and very long windows."""
    if answer := implicit.supports(geometry):
        return next((no for product, _ in products(geometry) if not (no := forward.supports(product))), answer)
    return answer


def tilings(geometry: Conv2dGeometry) -> tuple[Tiling, ...]:
    """Those of the products; those that are estimated to be fast for all of them together come first."""
    convolutions = [product for product, _ in products(geometry)]
    every = dict.fromkeys(tiling for product in convolutions for tiling in forward.tilings(product))
    found = [tiling for tiling in every if all(forward.fits(product, tiling) for product in convolutions)]
    by_time = sorted(found, key=lambda tiling: sum(forward.cost(product, tiling) for product in convolutions))
    return tuple(by_time) or (Tiling(16, 64, 16, 32),)


def workspace_size(geometry: Conv2dGeometry, tiling: Tiling) -> int:
    """Elements of the turned filters."""
    return math.prod(geometry.weight_shape)


def calls(a: Arguments, geometry: Conv2dGeometry, tiling: Tiling) -> Iterator[Call]:
    """Turned filters, the products, and zeros."""
    a.workspace = a.stored(a.workspace)
    yield from by_phases(a, geometry, tiling, forward.products)
