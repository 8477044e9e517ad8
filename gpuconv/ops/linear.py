"""The fully connected layer, and the blocks that begin with one."""

from __future__ import annotations

import math
from typing import Any

from gpuconv.autograd import Context, Function
from gpuconv.backends import Array
from gpuconv.geometry import ChainGeometry


class Linear(Function):
    """``x · weightᵀ + bias``: x (..., in), weight (out, in), bias (out,) or None; result (..., out)."""

    @staticmethod
    def forward(ctx: Context, x: Array, weight: Array, bias: Array | None) -> Array:
        need_x, need_weight, _ = ctx.needs_input_grad
        ctx.save(x if need_weight else None, weight if need_x else None)
        return ctx.backend.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Context, grad: Array) -> tuple[Array | None, ...]:
        x, weight = ctx.saved
        return _gradients(ctx, grad, x, weight)


class LinearReLU(Function):
    """ReLU of :class:`Linear`, in one primitive."""

    @staticmethod
    def forward(ctx: Context, x: Array, weight: Array, bias: Array | None) -> Array:
        y = ctx.backend.linear_relu(x, weight, bias)
        need_x, need_weight, _ = ctx.needs_input_grad
        ctx.save(x if need_weight else None, weight if need_x else None, y)
        return y

    @staticmethod
    def backward(ctx: Context, grad: Array) -> tuple[Array | None, ...]:
        x, weight, y = ctx.saved
        return _gradients(ctx, ctx.backend.relu_grad(grad, y), x, weight)


def _gradients(ctx: Context, grad: Array, x: Array, weight: Array) -> tuple[Array | None, ...]:
    need_x, need_weight, need_bias = ctx.needs_input_grad
    return (
        ctx.backend.linear_grad_input(grad, weight) if need_x else None,
        ctx.backend.linear_grad_weight(grad, x) if need_weight else None,
        ctx.backend.linear_grad_bias(grad) if need_bias else None,
    )


class LinearChain(Function):
    """Several of :class:`Linear` and :class:`LinearReLU`, in one primitive: inputs x, weight, bias, weight, bias..."""

    @staticmethod
    def forward(ctx: Context, x: Array, *parameters: Any, relu: tuple[bool, ...]) -> Array:
        weights, biases = parameters[::2], parameters[1::2]
        n = math.prod(x.shape[:-1])
        rows = x.reshape(n, x.shape[-1])
        geometry = ChainGeometry(n, (x.shape[-1], *(len(weight) for weight in weights)), relu)
        ys = ctx.backend.linear_chain(rows, weights, biases, geometry)
        ctx.save(x.shape, rows, weights, ys, geometry)
        return ys[-1].reshape(*x.shape[:-1], geometry.sizes[-1])

    @staticmethod
    def backward(ctx: Context, grad: Array) -> tuple[Array | None, ...]:
        shape, rows, weights, ys, geometry = ctx.saved
        grad = grad.reshape(ys[-1].shape)
        dx, *rest = ctx.backend.linear_chain_grad(grad, rows, weights, ys, geometry, ctx.needs_input_grad)
        return None if dx is None else dx.reshape(shape), *rest
