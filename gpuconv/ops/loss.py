"""Losses."""

from __future__ import annotations

from typing import Any

from gpuconv.autograd import Context, Function, is_default_seed
from gpuconv.backends import Array


class CrossEntropy(Function):
    """Cross-entropy of softmax(logits) with class labels: logits (m, c), labels (m,), weight (c,) or None.

    The mean weighs each row with its label's weight: ``Σ loss / Σ weight[label]`` over the rows that are not ignored.
    """

    @staticmethod
    def forward(
        ctx: Context,
        logits: Array,
        labels: Array,
        weight: Array | None,
        *,
        ignore_index: int,
        label_smoothing: float,
        reduction: str,
    ) -> Array:
        xp = ctx.backend.xp
        options: dict[str, Any] = {
            "weight": weight,
            "ignore_index": ignore_index,
            "label_smoothing": label_smoothing,
        }
        if reduction == "mean" and ctx.needs_input_grad[0]:
            together = ctx.backend.softmax_cross_entropy_mean(logits, labels, **options)
            if together is not None:
                loss, gradient = together
                ctx.save(gradient)
                return loss
        losses, probabilities = ctx.backend.softmax_cross_entropy(logits, labels, **options)
        if reduction == "mean":
            counted = labels != ignore_index
            if weight is None:
                total = xp.asarray(xp.count_nonzero(counted), dtype=losses.dtype)
            else:
                total = xp.where(counted, weight[xp.where(counted, labels, 0)], losses.dtype.type(0)).sum()
        else:
            total = losses.dtype.type(1)
        ctx.save(probabilities, labels, options, total)
        # Over nothing the mean is 0 / 0, NaN, as in PyTorch.
        return losses if reduction == "none" else xp.asarray(losses.sum() / total)

    @staticmethod
    def backward(ctx: Context, grad: Array) -> tuple[Array | None, ...]:
        if len(ctx.saved) == 1:
            (gradient,) = ctx.saved
            # A view where it need not be scaled: what is saved may serve another backward.
            return gradient[...] if is_default_seed(grad) else gradient * grad, None, None
        probabilities, labels, options, total = ctx.saved
        row_grad = grad / total + ctx.backend.xp.zeros(labels.shape, grad.dtype)  # a value for each row
        return (
            ctx.backend.softmax_cross_entropy_grad(row_grad, probabilities, labels, **options),
            None,
            None,
        )


class SquaredError(Function):
    """``scale · Σ (input - target)²``, or without the sum, element by element."""

    @staticmethod
    def forward(ctx: Context, x: Array, target: Array, *, scale: float, summed: bool) -> Array:
        difference = x - target
        ctx.save(difference, scale)
        squares = difference * difference
        if summed:
            squares = ctx.backend.xp.asarray(squares.sum())
        return squares * squares.dtype.type(scale)

    @staticmethod
    def backward(ctx: Context, grad: Array) -> tuple[Array | None, Array | None]:
        difference, scale = ctx.saved
        need_x, need_target = ctx.needs_input_grad
        dx = grad * difference.dtype.type(2 * scale) * difference
        return dx if need_x else None, -dx if need_target else None
