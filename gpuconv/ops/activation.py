"""Activations: element-wise functions, softmax, dropout."""

from __future__ import annotations

from gpuconv.autograd import Context, Function
from gpuconv.backends import Array


class ReLU(Function):
    """``max(x, 0)``; its gradient at 0 is 0."""

    @staticmethod
    def forward(ctx: Context, x: Array) -> Array:
        y = ctx.backend.relu(x)
        ctx.save(y)
        return y

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Array:
        (y,) = ctx.saved
        return ctx.backend.relu_grad(grad, y)


class Sigmoid(Function):
    """``1 / (1 + e^-x)``, for negative x as ``e^x / (1 + e^x)``: no overflow, and all digits of the tails."""

    @staticmethod
    def forward(ctx: Context, x: Array) -> Array:
        xp = ctx.backend.xp
        e = xp.exp(-xp.abs(x))
        y = xp.where(x >= 0, x.dtype.type(1), e) / (1 + e)
        ctx.save(y)
        return y

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Array:
        (y,) = ctx.saved
        return grad * (y * (1 - y))


class Tanh(Function):
    """Hyperbolic tangent."""

    @staticmethod
    def forward(ctx: Context, x: Array) -> Array:
        y = ctx.backend.xp.tanh(x)
        ctx.save(y)
        return y

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Array:
        (y,) = ctx.saved
        return grad * (1 - y * y)


def _shifted(ctx: Context, x: Array, dim: int) -> Array:
    """``x`` minus its maximum along ``dim``, so that no exponential overflows."""
    if x.shape[dim] == 0:
        return x
    return x - ctx.backend.xp.max(x, axis=dim, keepdims=True)


class Softmax(Function):
    """``e^x / Σ e^x`` along a dimension."""

    @staticmethod
    def forward(ctx: Context, x: Array, *, dim: int) -> Array:
        exponentials = ctx.backend.xp.exp(_shifted(ctx, x, dim))
        y = exponentials / exponentials.sum(axis=dim, keepdims=True)
        ctx.save(y, dim)
        return y

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Array:
        y, dim = ctx.saved
        return y * (grad - (grad * y).sum(axis=dim, keepdims=True))


class LogSoftmax(Function):
    """``x - log Σ e^x`` along a dimension."""

    @staticmethod
    def forward(ctx: Context, x: Array, *, dim: int) -> Array:
        xp = ctx.backend.xp
        shifted = _shifted(ctx, x, dim)
        y = shifted - xp.log(xp.exp(shifted).sum(axis=dim, keepdims=True))
        ctx.save(y, dim)
        return y

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Array:
        y, dim = ctx.saved
        return grad - ctx.backend.xp.exp(y) * grad.sum(axis=dim, keepdims=True)


class Dropout(Function):
    """``x · mask``; the mask holds 0 for what is dropped and ``1 / (1 - p)`` for what is kept."""

    @staticmethod
    def forward(ctx: Context, x: Array, mask: Array) -> Array:
        ctx.save(mask)
        return x * mask

    @staticmethod
    def backward(ctx: Context, grad: Array) -> tuple[Array, None]:
        (mask,) = ctx.saved
        return grad * mask, None
