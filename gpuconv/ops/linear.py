"""The fully connected layer."""

from __future__ import annotations

from gpuconv.autograd import Context, Function
from gpuconv.backends import Array


class Linear(Function):
    """``x · weightᵀ + bias``: x (..., in), weight (out, in), bias (out,) or None; result (..., out)."""

    @staticmethod
    def forward(ctx: Context, x: Array, weight: Array, bias: Array | None) -> Array:
        ctx.save(x, weight)
        y = x @ weight.T
        if bias is not None:
            y += bias
        return y

    @staticmethod
    def backward(ctx: Context, grad: Array) -> tuple[Array | None, ...]:
        x, weight = ctx.saved
        need_x, need_weight, need_bias = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])
        return (
            grad @ weight if need_x else None,
            rows.T @ x.reshape(-1, x.shape[-1]) if need_weight else None,
            rows.sum(axis=0) if need_bias else None,
        )
