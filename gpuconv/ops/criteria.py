"""Losses other than cross-entropy and squared error: of differences, of probabilities, of distances.

``reduction`` is 'mean', 'sum' or 'none'. All raise ``ValueError`` for shapes that do not fit (targets are not
broadcast, which is nearly always a mistake; ``gaussian_nll_loss`` does, as PyTorch's), values out of range and an
unknown reduction, and ``TypeError`` for an argument of the wrong kind or dtypes that differ. The mean of no elements is
NaN.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import numpy as np

from gpuconv.autograd import Context, Function, Tensor, to_array
from gpuconv.backends import Array, capturing
from gpuconv.dtypes import kind_of
from gpuconv.geometry import integer
from gpuconv.ops.arithmetic import _sum_to as sum_to
from gpuconv.ops.arithmetic import add, div, exp, log, mean, mul, rounded_once, sub
from gpuconv.ops.arithmetic import sum as _sum
from gpuconv.ops.checks import REDUCTIONS, element_type, floats, number, one_of, operand, shape_of
from gpuconv.ops.elementwise import clamp, minimum, sqrt, square, where
from gpuconv.ops.nonlinear import LogSigmoid
from gpuconv.ops.pointwise import expit
from gpuconv.ops.pointwise import softplus as _softplus
from gpuconv.ops.rearrange import expand
from gpuconv.ops.reduce import norm
from gpuconv.ops.shape import dimension, reshape

__all__ = [
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "cosine_embedding_loss",
    "cosine_similarity",
    "gaussian_nll_loss",
    "hinge_embedding_loss",
    "huber_loss",
    "kl_div",
    "l1_loss",
    "margin_ranking_loss",
    "nll_loss",
    "pairwise_distance",
    "poisson_nll_loss",
    "smooth_l1_loss",
    "soft_margin_loss",
    "triplet_margin_loss",
]


def _reduced(losses: Any, reduction: str) -> Any:
    if reduction == "none":
        return losses
    return _sum(losses) if reduction == "sum" else mean(losses)


def _pair(op: str, input: Any, target: Any, reduction: Any, choices: tuple[str, ...] = REDUCTIONS) -> tuple[Any, Any]:
    """Input and target, of one float type and shape."""
    input, target = floats(op, input=input, target=target)
    one_of(op, "reduction", reduction, choices)
    if shape_of(input) != shape_of(target):
        raise ValueError(f"{op}: target must have the input's shape {shape_of(input)}, got {shape_of(target)}")
    return input, target


# -- of differences --------------------------------------------------------------------------------------------------


class Difference(Function):
    """A loss of the differences ``input - target``. Subclasses define it and its derivative."""

    value: ClassVar[Callable[..., Array]]
    slope: ClassVar[Callable[..., Array]]

    @classmethod
    def forward(cls, ctx: Context, x: Array, target: Array, **options: Any) -> Array:
        xp = ctx.backend.xp
        difference = x - target
        ctx.save(difference, options)
        return xp.asarray(cls.value(xp, difference, **options), dtype=x.dtype)

    @classmethod
    def backward(cls, ctx: Context, grad: Array) -> tuple[Array | None, ...]:
        difference, options = ctx.saved
        need_x, need_target = ctx.needs_input_grad
        dx = grad * cls.slope(ctx.backend.xp, difference, **options)
        return dx if need_x else None, -dx if need_target else None


class L1(Difference):
    """``|d|``."""

    @staticmethod
    def value(xp: Any, d: Array) -> Array:
        return xp.abs(d)

    @staticmethod
    def slope(xp: Any, d: Array) -> Array:
        return xp.sign(d)


class Huber(Difference):
    """``½ d²`` where ``|d|`` is below ``width``, else ``width · (|d| - ½ width)``; both times ``scale``."""

    @staticmethod
    def value(xp: Any, d: Array, *, width: float, scale: float) -> Array:
        size = xp.abs(d)
        return scale * xp.where(size < width, 0.5 * d * d, width * (size - 0.5 * width))

    @staticmethod
    def slope(xp: Any, d: Array, *, width: float, scale: float) -> Array:
        return scale * xp.clip(d, -width, width)


@rounded_once
def l1_loss(input: Any, target: Any, reduction: str = "mean") -> Any:
    """``|input - target|``."""
    return _reduced(L1.apply(*_pair("l1_loss", input, target, reduction)), reduction)


@rounded_once
def smooth_l1_loss(input: Any, target: Any, reduction: str = "mean", beta: float = 1.0) -> Any:
    """``½ d² / beta`` where the difference d is below ``beta``, else ``|d| - ½ beta`` (Girshick, 2015)."""
    op = "smooth_l1_loss"
    input, target = _pair(op, input, target, reduction)
    beta = number(op, "beta", beta)
    if not beta >= 0:
        raise ValueError(f"{op}: beta must be at least 0, got {beta}")
    if beta == 0:
        return _reduced(L1.apply(input, target), reduction)
    return _reduced(Huber.apply(input, target, width=beta, scale=1 / beta), reduction)


@rounded_once
def huber_loss(input: Any, target: Any, reduction: str = "mean", delta: float = 1.0) -> Any:
    """``½ d²`` where the difference d is below ``delta``, else ``delta · (|d| - ½ delta)`` (Huber, 1964)."""
    op = "huber_loss"
    input, target = _pair(op, input, target, reduction)
    delta = number(op, "delta", delta)
    if not delta > 0:
        raise ValueError(f"{op}: delta must be above 0, got {delta}")
    return _reduced(Huber.apply(input, target, width=delta, scale=1.0), reduction)


# -- of classes ------------------------------------------------------------------------------------------------------


class NLL(Function):
    """``-weight[t] · x[n, t, l]``: x (n, c, l), labels (n, l), weight (c,) or None; the mean is weighted."""

    @staticmethod
    def forward(
        ctx: Context, x: Array, labels: Array, weight: Array | None, *, ignore_index: int, reduction: str
    ) -> Array:
        xp, zero = ctx.backend.xp, x.dtype.type(0)
        counted = labels != ignore_index
        labels = xp.where(counted, labels, 0)
        weights = xp.where(counted, x.dtype.type(1) if weight is None else weight[labels], zero)
        picked = xp.take_along_axis(x, labels[:, None], axis=1)[:, 0]
        losses = xp.where(counted, -picked * weights, zero)
        total = weights.sum() if reduction == "mean" else x.dtype.type(1)
        ctx.save(x.shape, labels, weights, counted, total)
        return losses if reduction == "none" else xp.asarray(losses.sum() / total, dtype=x.dtype)

    @staticmethod
    def backward(ctx: Context, grad: Array) -> tuple[Array, None, None]:
        shape, labels, weights, counted, total = ctx.saved
        xp = ctx.backend.xp
        share = xp.where(counted, -(grad / total) * weights, grad.dtype.type(0))
        hit = xp.arange(shape[1])[:, None] == labels[:, None]
        return xp.where(hit, share[:, None], grad.dtype.type(0)), None, None


@rounded_once
def nll_loss(input: Any, target: Any, weight: Any = None, ignore_index: int = -100, reduction: str = "mean") -> Any:
    """``-weight[t] · input[t]`` for each label t: with ``log_softmax`` before it, the cross-entropy.

    Args:
        input: log-probabilities (N, C), (C,) for one sample, or (N, C, d1, ...).
        target: labels, integers, the input's shape without C.
        weight: (C,), or None for ones.
        ignore_index: a label whose loss is 0 and that does not count in the mean.
        reduction: 'mean', divided by the sum of the labels' weights; 'sum' or 'none'.

    Returns:
        A scalar, or with 'none' the target's shape. The mean over nothing is NaN.
    """
    op = "nll_loss"
    input, weight = floats(op, input=input, weight=weight, optional=("weight",))
    target = operand(op, "target", target)
    one_of(op, "reduction", reduction, REDUCTIONS)
    ignore_index = integer(ignore_index, "ignore_index", minimum=-(2**63), op=op)
    shape = shape_of(input)
    if not shape:
        raise ValueError(f"{op}: input must have shape (N, C), (C,) or (N, C, d1, ...), got a single number")
    class_dim = 0 if len(shape) == 1 else 1
    classes, rest = shape[class_dim], shape[:class_dim] + shape[class_dim + 1 :]
    if kind_of(element_type(target)) not in "iu":
        raise TypeError(f"{op}: target must hold integer labels, got {element_type(target)}")
    if shape_of(target) != rest:
        raise ValueError(f"{op}: target must have shape {rest}, as input has {shape}; got {shape_of(target)}")
    if weight is not None and shape_of(weight) != (classes,):
        raise ValueError(f"{op}: weight must have shape ({classes},), one value a class, got {shape_of(weight)}")
    labels = to_array(target)

    def check() -> None:
        wrong = labels[(labels != ignore_index) & ((labels < 0) | (labels >= classes))]
        if wrong.size:
            raise ValueError(f"{op}: target must be classes from 0 to {classes - 1}, got {wrong.flat[0]}")

    if isinstance(labels, np.ndarray):
        capturing.repeated(check, labels)
    n = shape[0] if class_dim else 1
    length = math.prod(rest[class_dim:])
    losses = NLL.apply(
        reshape(input, (n, classes, length)),
        reshape(target, (n, length)),
        weight,
        ignore_index=ignore_index,
        reduction=reduction,
    )
    return reshape(losses, rest) if reduction == "none" else losses


# -- of probabilities ------------------------------------------------------------------------------------------------


class BinaryCrossEntropy(Function):
    """``-(t · log x + (1 - t) · log(1 - x))``, each logarithm at least -100."""

    @staticmethod
    def forward(ctx: Context, x: Array, target: Array) -> Array:
        xp = ctx.backend.xp
        ctx.save(x, target)
        low = x.dtype.type(-100)
        return (target - 1) * xp.maximum(xp.log1p(-x), low) - target * xp.maximum(xp.log(x), low)

    @staticmethod
    def backward(ctx: Context, grad: Array) -> tuple[Array | None, ...]:
        x, target = ctx.saved
        xp, (need_x, need_target) = ctx.backend.xp, ctx.needs_input_grad
        return (
            grad * (x - target) / xp.maximum((1 - x) * x, x.dtype.type(1e-12)) if need_x else None,
            grad * (xp.log1p(-x) - xp.log(x)) if need_target else None,
        )


class BinaryCrossEntropyWithLogits(Function):
    """``(1 - t) · x + (1 + (pos_weight - 1) · t) · log(1 + e^-x)``; pos_weight broadcasts, or is None for 1."""

    @staticmethod
    def forward(ctx: Context, x: Array, target: Array, pos_weight: Array | None) -> Array:
        ctx.save(x, target, pos_weight)
        factor = 1 if pos_weight is None else 1 + (pos_weight - 1) * target
        return (1 - target) * x + factor * _softplus(ctx.backend.xp, -x)

    @staticmethod
    def backward(ctx: Context, grad: Array) -> tuple[Array | None, ...]:
        x, target, pos_weight = ctx.saved
        xp, (need_x, need_target, need_weight) = ctx.backend.xp, ctx.needs_input_grad
        factor = 1 if pos_weight is None else 1 + (pos_weight - 1) * target
        rest = _softplus(xp, -x) if need_weight or (need_target and pos_weight is not None) else None
        d_target = -grad * x
        if need_target and pos_weight is not None:
            d_target = d_target + grad * (pos_weight - 1) * rest
        return (
            grad * ((1 - target) - factor * expit(xp, -x)) if need_x else None,
            d_target if need_target else None,
            sum_to(grad * target * rest, pos_weight.shape) if need_weight else None,
        )


def _weighted(op: str, losses: Any, weight: Any, reduction: str) -> Any:
    if weight is not None:
        _broadcasts(op, "weight", weight, shape_of(losses))
        losses = mul(losses, weight)
    return _reduced(losses, reduction)


def _broadcasts(op: str, name: str, value: Any, shape: tuple[int, ...]) -> None:
    try:
        fits = np.broadcast_shapes(shape_of(value), shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"{op}: {name} of shape {shape_of(value)} does not broadcast to {shape}")


@rounded_once
def binary_cross_entropy(input: Any, target: Any, weight: Any = None, reduction: str = "mean") -> Any:
    """``-weight · (t · log x + (1 - t) · log(1 - x))``, each logarithm at least -100.

    Args:
        input: probabilities, floats from 0 to 1; this is checked on the host only.
        target: floats of the same shape and type.
        weight: what broadcasts to the shape, or None for ones.
        reduction: 'mean', 'sum' or 'none'.
    """
    op = "binary_cross_entropy"
    input, target = _pair(op, input, target, reduction)
    values = to_array(input)

    def check() -> None:
        if not ((values >= 0) & (values <= 1)).all():
            raise ValueError(f"{op}: input must be from 0 to 1; binary_cross_entropy_with_logits takes any numbers")

    if isinstance(values, np.ndarray):
        capturing.repeated(check, values)
    if weight is not None:
        input, weight = floats(op, input=input, weight=weight)
    return _weighted(op, BinaryCrossEntropy.apply(input, target), weight, reduction)


@rounded_once
def binary_cross_entropy_with_logits(
    input: Any, target: Any, weight: Any = None, reduction: str = "mean", pos_weight: Any = None
) -> Any:
    """:func:`binary_cross_entropy` of sigmoid(input), without overflow; ``pos_weight`` multiplies the term of t.

    Args:
        input: logits, floats.
        target: floats of the same shape and dtype.
        weight, pos_weight: broadcast to the shape; None for ones.
        reduction: 'mean', 'sum' or 'none'.
    """
    op = "binary_cross_entropy_with_logits"
    input, target = _pair(op, input, target, reduction)
    input, weight, pos_weight = floats(
        op, input=input, weight=weight, pos_weight=pos_weight, optional=("weight", "pos_weight")
    )
    if pos_weight is not None:
        _broadcasts(op, "pos_weight", pos_weight, shape_of(input))
    return _weighted(op, BinaryCrossEntropyWithLogits.apply(input, target, pos_weight), weight, reduction)


class KLDivergence(Function):
    """``t · (log t - x)``, 0 where t is 0; with ``log_target`` ``e^t · (t - x)``."""

    @staticmethod
    def forward(ctx: Context, x: Array, target: Array, *, log_target: bool) -> Array:
        xp = ctx.backend.xp
        ctx.save(x, target, log_target)
        if log_target:
            return xp.exp(target) * (target - x)
        positive = target > 0
        logarithm = xp.log(xp.where(positive | (target != target) | (target < 0), target, target.dtype.type(1)))
        return target * logarithm - target * x

    @staticmethod
    def backward(ctx: Context, grad: Array) -> tuple[Array | None, ...]:
        x, target, log_target = ctx.saved
        xp, (need_x, need_target) = ctx.backend.xp, ctx.needs_input_grad
        if log_target:
            e = xp.exp(target)
            return -grad * e if need_x else None, grad * e * (target - x + 1) if need_target else None
        return -grad * target if need_x else None, grad * (xp.log(target) + 1 - x) if need_target else None


@rounded_once
def kl_div(input: Any, target: Any, reduction: str = "mean", log_target: bool = False) -> Any:
    """``t · (log t - input)``: the divergence of the input's probabilities from the target's.

    Args:
        input: log-probabilities, floats.
        target: probabilities, or with ``log_target`` their logarithms, of the same shape and type.
        reduction: 'mean', over all elements; 'batchmean', divided by the first dimension: the divergence of the
            definition; 'sum' or 'none'.
        log_target: whether the target holds logarithms.
    """
    op = "kl_div"
    input, target = _pair(op, input, target, reduction, (*REDUCTIONS, "batchmean"))
    losses = KLDivergence.apply(input, target, log_target=bool(log_target))
    if reduction != "batchmean":
        return _reduced(losses, reduction)
    rows = shape_of(input)[0] if shape_of(input) else 1
    return div(_sum(losses), rows)


@rounded_once
def poisson_nll_loss(
    input: Any, target: Any, log_input: bool = True, full: bool = False, eps: float = 1e-8, reduction: str = "mean"
) -> Any:
    """``e^input - t · input``; without ``log_input`` ``input - t · log(input + eps)``.

    ``full`` adds Stirling's approximation of ``log t!`` where t is above 1.
    """
    op = "poisson_nll_loss"
    input, target = _pair(op, input, target, reduction)
    eps = number(op, "eps", eps)
    losses = sub(exp(input), mul(target, input)) if log_input else sub(input, mul(target, log(add(input, eps))))
    if full:
        stirling = add(sub(mul(target, log(target)), target), mul(log(mul(target, 2 * math.pi)), 0.5))
        values = to_array(target)
        above = capturing.repeated(lambda: values > 1, values)
        losses = add(losses, where(Tensor(above) if isinstance(losses, Tensor) else above, stirling, 0.0))
    return _reduced(losses, reduction)


@rounded_once
def gaussian_nll_loss(
    input: Any, target: Any, var: Any, full: bool = False, eps: float = 1e-6, reduction: str = "mean"
) -> Any:
    """``½ · (log var + (input - t)² / var)``, with variances of at least ``eps``; ``full`` adds ``½ · log 2π``.

    Input and target broadcast. ``var``: variances, not negative, of the input's shape, or that shape with one dimension
    1, or without the last one; or a number. The lower bound ``eps`` does not affect its gradient.
    """
    op = "gaussian_nll_loss"
    input, target = floats(op, input=input, target=target)
    one_of(op, "reduction", reduction, REDUCTIONS)
    shape = shape_of(input)
    try:
        np.broadcast_shapes(shape, shape_of(target))
    except ValueError:
        raise ValueError(f"{op}: target of shape {shape_of(target)} does not broadcast with input {shape}") from None
    eps = number(op, "eps", eps)
    if not eps > 0:
        raise ValueError(f"{op}: eps must be above 0, got {eps}")
    squares = square(sub(input, target))
    if isinstance(var, (int, float)):
        if var < 0:
            raise ValueError(f"{op}: var must not be negative, got {var}")
        bounded = max(number(op, "var", var), eps)
        losses = mul(add(div(squares, bounded), math.log(bounded)), 0.5)
    else:
        bounded = _bounded_variances(op, shape, floats(op, input=input, var=var)[1], eps)
        losses = mul(add(log(bounded), div(squares, bounded)), 0.5)
    return _reduced(add(losses, 0.5 * math.log(2 * math.pi)) if full else losses, reduction)


def _bounded_variances(op: str, shape: tuple[int, ...], var: Any, eps: float) -> Any:
    """Variances for an input of that shape, each at least eps."""
    given = shape_of(var)
    if given != shape and given == shape[:-1]:
        var = reshape(var, (*given, 1))
    elif given not in (shape, *[(*shape[:axis], 1, *shape[axis + 1 :]) for axis in range(len(shape))]):
        raise ValueError(f"{op}: var must have shape {shape}, with at most one 1 instead, or not the last, got {given}")
    values = to_array(var)

    def check() -> None:
        if (values < 0).any():
            raise ValueError(f"{op}: var must not be negative")

    if isinstance(values, np.ndarray):
        capturing.repeated(check, values)
    # What a variance lacks to eps, as a constant.
    return add(var, clamp(sub(eps, var.detach() if isinstance(var, Tensor) else var), min=0.0))


# -- of distances ----------------------------------------------------------------------------------------------------


@rounded_once
def cosine_similarity(x1: Any, x2: Any, dim: int = 1, eps: float = 1e-8) -> Any:
    """``x1 · x2 / (|x1| · |x2|)`` along ``dim``; each norm at least ``eps``. Shapes broadcast.

    IndexError: no such dimension.
    """
    op = "cosine_similarity"
    x1, x2 = floats(op, x1=x1, x2=x2)
    eps = number(op, "eps", eps)
    try:
        shape = np.broadcast_shapes(shape_of(x1), shape_of(x2))
    except ValueError:
        raise ValueError(f"{op}: x2 of shape {shape_of(x2)} does not fit x1 of shape {shape_of(x1)}") from None
    axis = dimension(dim, len(shape), op) - len(shape)
    units = [div(x, clamp(norm(x, 2, axis, True), min=eps)) for x in (expand(x1, shape), expand(x2, shape))]
    return _sum(mul(*units), axis)


@rounded_once
def pairwise_distance(x1: Any, x2: Any, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False) -> Any:
    """The p-norm of ``x1 - x2 + eps`` along the last dimension. Shapes broadcast."""
    op = "pairwise_distance"
    x1, x2 = floats(op, x1=x1, x2=x2)
    return norm(add(sub(x1, x2), number(op, "eps", eps)), number(op, "p", p), -1, keepdim)


def _signs(op: str, target: Any, losses: tuple[int, ...]) -> Any:
    target = operand(op, "target", target)
    _broadcasts(op, "target", target, losses)
    return target


@rounded_once
def margin_ranking_loss(input1: Any, input2: Any, target: Any, margin: float = 0.0, reduction: str = "mean") -> Any:
    """``max(0, -t · (input1 - input2) + margin)`` for t of 1 or -1."""
    op = "margin_ranking_loss"
    one_of(op, "reduction", reduction, REDUCTIONS)
    input1, input2 = floats(op, input1=input1, input2=input2)
    if shape_of(input1) != shape_of(input2):
        raise ValueError(f"{op}: input2 must have the shape {shape_of(input1)} of input1, got {shape_of(input2)}")
    target = _signs(op, target, shape_of(input1))
    losses = clamp(add(mul(mul(target, -1), sub(input1, input2)), number(op, "margin", margin)), min=0.0)
    return _reduced(losses, reduction)


@rounded_once
def hinge_embedding_loss(input: Any, target: Any, margin: float = 1.0, reduction: str = "mean") -> Any:
    """The input where t is 1, and ``max(0, margin - input)`` where t is -1; elsewhere both."""
    op = "hinge_embedding_loss"
    one_of(op, "reduction", reduction, REDUCTIONS)
    (input,) = floats(op, input=input)
    target = _signs(op, target, shape_of(input))
    signs = to_array(target)
    kind = Tensor if isinstance(input, Tensor) or isinstance(target, Tensor) else lambda values: values
    apart, together = (kind(capturing.repeated(partial(operator.ne, signs, one), signs)) for one in (1, -1))
    near = where(apart, clamp(sub(number(op, "margin", margin), input), min=0.0), 0.0)
    return _reduced(add(near, where(together, input, 0.0)), reduction)


@rounded_once
def soft_margin_loss(input: Any, target: Any, reduction: str = "mean") -> Any:
    """``log(1 + e^(-t · input))`` for t of 1 or -1."""
    input, target = _pair("soft_margin_loss", input, target, reduction)
    return _reduced(mul(LogSigmoid.apply(mul(input, target)), -1), reduction)


@rounded_once
def cosine_embedding_loss(input1: Any, input2: Any, target: Any, margin: float = 0.0, reduction: str = "mean") -> Any:
    """``1 - cos(input1, input2)`` where t is 1, ``max(0, cos(...) - margin)`` where it is -1.

    Inputs (N, D) with target (N,), or (D,) with a single number. The norms are rooted sums of squares plus 1e-12.
    """
    op = "cosine_embedding_loss"
    one_of(op, "reduction", reduction, REDUCTIONS)
    input1, input2 = floats(op, input1=input1, input2=input2)
    target = operand(op, "target", target)
    shape = shape_of(input1)
    if shape_of(input2) != shape or len(shape) not in (1, 2):
        raise ValueError(
            f"{op}: input1 and input2 must have one shape, (N, D) or (D,), got {shape}, {shape_of(input2)}"
        )
    if shape_of(target) != shape[:-1]:
        raise ValueError(f"{op}: target must have shape {shape[:-1]}, got {shape_of(target)}")
    eps = 1e-12
    squares = [add(_sum(square(x), -1), eps) for x in (input1, input2)]
    cosine = div(_sum(mul(input1, input2), -1), sqrt(mul(*squares)))
    signs = to_array(target)
    kind = Tensor if isinstance(cosine, Tensor) else lambda values: values
    alike, unlike = (kind(capturing.repeated(partial(operator.eq, signs, one), signs)) for one in (1, -1))
    apart = clamp(sub(cosine, number(op, "margin", margin)), min=0.0)
    losses = add(where(alike, sub(1.0, cosine), 0.0), where(unlike, apart, 0.0))
    return _reduced(losses, reduction)


@rounded_once
def triplet_margin_loss(
    anchor: Any,
    positive: Any,
    negative: Any,
    margin: float = 1.0,
    p: float = 2.0,
    eps: float = 1e-6,
    swap: bool = False,
    reduction: str = "mean",
) -> Any:
    """``max(0, d(anchor, positive) - d(anchor, negative) + margin)``, d the :func:`pairwise_distance`.

    ``swap``: the negative's distance is the smaller one of those from anchor and from positive (Balntas et al., 2016).
    """
    op = "triplet_margin_loss"
    one_of(op, "reduction", reduction, REDUCTIONS)
    anchor, positive, negative = floats(op, anchor=anchor, positive=positive, negative=negative)
    margin = number(op, "margin", margin)
    if not margin > 0:
        raise ValueError(f"{op}: margin must be above 0, got {margin}")
    far = pairwise_distance(anchor, negative, p, eps)
    if swap:
        far = minimum(far, pairwise_distance(positive, negative, p, eps))
    return _reduced(clamp(add(sub(pairwise_distance(anchor, positive, p, eps), far), margin), min=0.0), reduction)
