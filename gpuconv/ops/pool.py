"""Pooling: maximum, average, sum."""

from __future__ import annotations

import numpy as np

from gpuconv.autograd import Context, Function
from gpuconv.backends import Array
from gpuconv.geometry import Pool2dGeometry


class MaxPool2d(Function):
    """Maximum of each window; with ``return_indices`` also where it was, ``row · w + column``.

    Integers of at most 32 bits are compared as floats that hold them exactly.
    """

    @staticmethod
    def forward(
        ctx: Context, x: Array, *, geometry: Pool2dGeometry, return_indices: bool
    ) -> Array | tuple[Array, Array]:
        if x.dtype.kind == "f":
            y, winners = ctx.backend.max_pool2d(x, geometry)
        else:
            y, winners = ctx.backend.max_pool2d(x.astype(np.float32 if x.itemsize <= 2 else np.float64), geometry)
            y = y.astype(x.dtype)
        ctx.save(winners, geometry)
        if return_indices:
            return y, ctx.backend.max_pool2d_indices(winners, geometry)
        return y

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Array:
        winners, geometry = ctx.saved
        return ctx.backend.max_pool2d_grad(grad, winners, geometry)


class AvgPool2d(Function):
    """Average of each window, or its sum divided by ``divisor_override``."""

    @staticmethod
    def forward(
        ctx: Context,
        x: Array,
        *,
        geometry: Pool2dGeometry,
        count_include_pad: bool,
        divisor_override: int | None,
    ) -> Array:
        ctx.save(geometry, count_include_pad, divisor_override)
        return ctx.backend.avg_pool2d(
            x, geometry, count_include_pad=count_include_pad, divisor_override=divisor_override
        )

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Array:
        geometry, count_include_pad, divisor_override = ctx.saved
        return ctx.backend.avg_pool2d_grad(
            grad, geometry, count_include_pad=count_include_pad, divisor_override=divisor_override
        )
