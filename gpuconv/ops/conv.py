"""Convolution (cross-correlation: the filter is not flipped) and the blocks that begin with one."""

from __future__ import annotations

from typing import Any

from gpuconv.autograd import Context, Function
from gpuconv.backends import Array, capturing
from gpuconv.geometry import BlockPairGeometry, Conv2dGeometry, Pool2dGeometry


class Conv2d(Function):
    """Inputs x (n, c, h, w), weight (k, c/groups, r, s), bias (k,) or None; result (n, k, p, q)."""

    @staticmethod
    def forward(ctx: Context, x: Array, weight: Array, bias: Array | None, *, geometry: Conv2dGeometry) -> Array:
        need_x, need_weight, _ = ctx.needs_input_grad
        ctx.save(x if need_weight else None, weight if need_x else None, geometry)
        return ctx.backend.conv2d(x, weight, bias, geometry)

    @staticmethod
    def backward(ctx: Context, grad: Array) -> tuple[Array | None, ...]:
        x, weight, geometry = ctx.saved
        return _gradients(ctx, grad, x, weight, geometry)


def _gradients(
    ctx: Context, grad: Array, x: Array, weight: Array, geometry: Conv2dGeometry
) -> tuple[Array | None, ...]:
    need_x, need_weight, need_bias = ctx.needs_input_grad
    return (
        ctx.backend.conv2d_grad_input(grad, weight, geometry) if need_x else None,
        ctx.backend.conv2d_grad_weight(grad, x, geometry) if need_weight else None,
        ctx.backend.conv2d_grad_bias(grad) if need_bias else None,
    )


class Conv2dReLU(Function):
    """ReLU of :class:`Conv2d`, in one primitive."""

    @staticmethod
    def forward(ctx: Context, x: Array, weight: Array, bias: Array | None, *, geometry: Conv2dGeometry) -> Array:
        y = ctx.backend.conv2d_relu(x, weight, bias, geometry)
        need_x, need_weight, _ = ctx.needs_input_grad
        ctx.save(x if need_weight else None, weight if need_x else None, y, geometry)
        return y

    @staticmethod
    def backward(ctx: Context, grad: Array) -> tuple[Array | None, ...]:
        x, weight, y, geometry = ctx.saved
        return _gradients(ctx, ctx.backend.relu_grad(grad, y), x, weight, geometry)


class Conv2dReLUMaxPool2d(Function):
    """Max pooling of :class:`Conv2dReLU`, in one primitive: the maps before pooling are never kept."""

    @staticmethod
    def forward(
        ctx: Context,
        x: Array,
        weight: Array,
        bias: Array | None,
        *,
        geometry: Conv2dGeometry,
        pool: Pool2dGeometry,
    ) -> Array:
        y, winners = ctx.backend.conv2d_relu_max_pool2d(x, weight, bias, geometry, pool)
        ctx.save(x, weight, y, winners, geometry, pool)
        return y

    @staticmethod
    def backward(ctx: Context, grad: Array) -> tuple[Array | None, ...]:
        x, weight, y, winners, geometry, pool = ctx.saved
        need_x, need_weight, need_bias = ctx.needs_input_grad
        with capturing.sums_may_wait():
            return ctx.backend.conv2d_relu_max_pool2d_grad(
                grad, x, weight, y, winners, geometry, pool, (need_x, need_weight, need_bias)
            )


class Conv2dReLUMaxPool2dPair(Function):
    """Two of :class:`Conv2dReLUMaxPool2d`, in one primitive: inputs x, weight, bias, weight, bias."""

    @staticmethod
    def forward(ctx: Context, x: Array, *parameters: Any, geometry: BlockPairGeometry) -> Array:
        weights, biases = parameters[::2], parameters[1::2]
        ys, winners = ctx.backend.conv2d_relu_max_pool2d_pair(x, weights, biases, geometry)
        ctx.save(x, weights, ys, winners, geometry)
        return ys[-1]

    @staticmethod
    def backward(ctx: Context, grad: Array) -> tuple[Array | None, ...]:
        x, weights, ys, winners, geometry = ctx.saved
        with capturing.sums_may_wait():
            return ctx.backend.conv2d_relu_max_pool2d_pair_grad(
                grad, x, weights, ys, winners, geometry, ctx.needs_input_grad
            )
