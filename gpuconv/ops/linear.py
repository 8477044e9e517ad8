"""The fully connected layer, and the block that begins with one."""

from __future__ import annotations

from gpuconv.autograd import Context, Function
from gpuconv.backends import Array


class Linear(Function):
    """``x · weightᵀ + bias``: x (..., in), weight (out, in), bias (out,) or None; result (..., out)."""

    @staticmethod
    def forward(ctx: Context, x: Array, weight: Array, bias: Array | None) -> Array:
        ctx.save(x, weight)
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
        ctx.save(x, weight, y)
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
