"""Reductions other than sum and mean: extrema, variances, products, norms, any and all.

``dim`` is an integer or, where several make sense, a sequence of them; None means all. All raise ``IndexError`` for a
dimension that does not exist, ``TypeError`` for input that is not numeric or an argument of the wrong kind, and
``ValueError`` for a dimension that is named twice and for the extremum of no elements.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from gpuconv.autograd import Context, Function, tensor_method
from gpuconv.backends import Array
from gpuconv.dtypes import float_type
from gpuconv.ops.arithmetic import _floating as floating
from gpuconv.ops.arithmetic import accumulated, cast, mean
from gpuconv.ops.checks import floats, number, operand, shape_of
from gpuconv.ops.elementwise import Abs, maximum, minimum, without_graph
from gpuconv.ops.shape import dimension, reshape

__all__ = [
    "Extreme",
    "all",
    "amax",
    "amin",
    "any",
    "argmax",
    "argmin",
    "count_nonzero",
    "cumsum",
    "logsumexp",
    "max",
    "min",
    "norm",
    "prod",
    "std",
    "std_mean",
    "var",
    "var_mean",
]


class Extreme(NamedTuple):
    """What :func:`max` and :func:`min` along a dimension return."""

    values: Any
    indices: Any


def axes_of(op: str, dim: Any, ndim: int) -> tuple[int, ...]:
    """The dimensions that ``dim`` names, counted from the front; all for None or an empty sequence."""
    several = dim if isinstance(dim, Sequence) and not isinstance(dim, str) else (dim,)
    if dim is None or not len(several):
        return tuple(range(ndim))
    axes = tuple(dimension(one, ndim, op) for one in several)
    if len({*axes}) < len(axes):
        raise ValueError(f"{op}: dim {tuple(several)} names a dimension twice")
    return axes if ndim else ()


def _kept(xp: Any, value: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
    """A result, or its gradient, with the dimensions over which it was reduced."""
    return value if keepdims or not axes else xp.expand_dims(value, axes)


def _count(shape: tuple[int, ...], axes: tuple[int, ...]) -> int:
    return math.prod(shape[axis] for axis in axes)


def _not_empty(op: str, shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    if _count(shape, axes) == 0:
        raise ValueError(f"{op}: input has no elements along dim {axes}, got shape {shape}")


# -- extrema ---------------------------------------------------------------------------------------------------------


class AMax(Function):
    """The largest, or smallest, element over ``axes``; equal ones share the gradient. NaN if any element is NaN."""

    @staticmethod
    def forward(ctx: Context, a: Array, *, axes: tuple[int, ...], keepdims: bool, largest: bool) -> Array:
        xp = ctx.backend.xp
        y = xp.asarray((xp.max if largest else xp.min)(a, axis=axes, keepdims=keepdims))
        ctx.save(a, y, axes, keepdims)
        return y

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Array:
        a, y, axes, keepdims = ctx.saved
        xp = ctx.backend.xp
        y, grad = _kept(xp, y, axes, keepdims), _kept(xp, grad, axes, keepdims)
        winners = (a == y) | ((y != y) & (a != a))
        share = grad / xp.asarray(winners.sum(axis=axes, keepdims=True), dtype=grad.dtype)
        return xp.where(winners, share, grad.dtype.type(0))


def _first_extreme(xp: Any, a: Array, axis: int | None, largest: bool) -> Any:
    """Index of the first largest, or smallest, element; of the first NaN where there is one."""
    where = (xp.argmax if largest else xp.argmin)(a, axis=axis)
    if xp is not np and a.dtype.kind == "f":  # CuPy gives the index of any of several NaNs
        nan = xp.isnan(a)
        where = xp.where(nan.any(axis=axis), nan.argmax(axis=axis), where)
    return where


class MaxAlong(Function):
    """The largest, or smallest, element along a dimension, and its first index. A NaN counts as the extremum."""

    @staticmethod
    def forward(ctx: Context, a: Array, *, axis: int, keepdims: bool, largest: bool) -> tuple[Array, Array]:
        xp = ctx.backend.xp
        where = xp.expand_dims(_first_extreme(xp, a, axis, largest), axis).astype(np.int64)
        y = xp.take_along_axis(a, where, axis=axis)
        ctx.save(a.shape, where, axis, keepdims)
        return (y, where) if keepdims else (y.squeeze(axis), where.squeeze(axis))

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Array:
        shape, where, axis, keepdims = ctx.saved
        xp = ctx.backend.xp
        grad = _kept(xp, grad, (axis,), keepdims)
        positions = xp.arange(shape[axis]).reshape(-1, *[1] * (len(shape) - axis - 1))
        return xp.where(positions == where, grad, grad.dtype.type(0))


class ArgMax(Function):
    """Index of the first largest, or smallest, element: along a dimension, or of all."""

    @staticmethod
    def forward(ctx: Context, a: Array, *, axis: int | None, keepdims: bool, largest: bool) -> Array:
        xp = ctx.backend.xp
        where = xp.asarray(_first_extreme(xp, a, axis, largest)).astype(np.int64)
        if not keepdims:
            return where
        return where.reshape((1,) * a.ndim) if axis is None else xp.expand_dims(where, axis)


def _extreme(op: str, input: Any, dim: Any, keepdim: bool, largest: bool) -> Any:
    input = operand(op, "input", input)
    shape = shape_of(input)
    if dim is None:
        if keepdim:
            raise TypeError(f"{op}: keepdim needs dim; {'amax' if largest else 'amin'} takes it without")
        _not_empty(op, shape, tuple(range(len(shape))))
        return AMax.apply(input, axes=tuple(range(len(shape))), keepdims=False, largest=largest)
    if isinstance(dim, bool) or not isinstance(dim, (int, np.integer)):
        return (maximum if largest else minimum)(input, dim)
    axis = dimension(int(dim), len(shape), op)
    if not shape:
        values, indices = MaxAlong.apply(reshape(input, 1), axis=0, keepdims=False, largest=largest)
    else:
        _not_empty(op, shape, (axis,))
        values, indices = MaxAlong.apply(input, axis=axis, keepdims=keepdim, largest=largest)
    return Extreme(values, indices)


@tensor_method
def max(input: Any, dim: Any = None, keepdim: bool = False) -> Any:
    """The largest of all elements, the largest along ``dim``, or the larger ones of two Tensors.

    Args:
        input: numbers.
        dim: None; an integer; or a Tensor or array, as ``other`` of :func:`maximum`.
        keepdim: keep the dimension, with size 1.

    Returns:
        Without ``dim`` the largest element, without dimensions; equal ones share the gradient. With ``dim`` a named
            tuple
        ``values, indices``; of equal elements the first one gives the index (int64) and gets the gradient. NaN counts
            as
        the largest.

    Raises:
        ValueError: there are no elements.
        IndexError: no such dimension.
    """
    return _extreme("max", input, dim, keepdim, True)


@tensor_method
def min(input: Any, dim: Any = None, keepdim: bool = False) -> Any:
    """The smallest element; otherwise as :func:`max`, also for NaN."""
    return _extreme("min", input, dim, keepdim, False)


def _over(op: str, input: Any, dim: Any, keepdim: bool, largest: bool) -> Any:
    input = operand(op, "input", input)
    axes = axes_of(op, dim, len(shape_of(input)))
    _not_empty(op, shape_of(input), axes)
    return AMax.apply(input, axes=axes, keepdims=bool(keepdim), largest=largest)


@tensor_method
def amax(input: Any, dim: Any = (), keepdim: bool = False) -> Any:
    """The largest element over ``dim``, one or several; equal ones share the gradient."""
    return _over("amax", input, dim, keepdim, True)


@tensor_method
def amin(input: Any, dim: Any = (), keepdim: bool = False) -> Any:
    """The smallest element over ``dim``, one or several; equal ones share the gradient."""
    return _over("amin", input, dim, keepdim, False)


def _where_extreme(op: str, input: Any, dim: Any, keepdim: bool, largest: bool) -> Any:
    input = operand(op, "input", input)
    shape = shape_of(input)
    axis = None if dim is None else dimension(dim, len(shape), op)
    _not_empty(op, shape, tuple(range(len(shape))) if axis is None or not shape else (axis,))
    options = {"axis": axis if shape else None, "keepdims": bool(keepdim), "largest": largest}
    return without_graph(ArgMax, input, **options)


@tensor_method
def argmax(input: Any, dim: int | None = None, keepdim: bool = False) -> Any:
    """Index of the first largest element, int64: along ``dim``, or of all elements in C order. NaN is the largest."""
    return _where_extreme("argmax", input, dim, keepdim, True)


@tensor_method
def argmin(input: Any, dim: int | None = None, keepdim: bool = False) -> Any:
    """Index of the first smallest element, int64; otherwise as :func:`argmax`, also for NaN."""
    return _where_extreme("argmin", input, dim, keepdim, False)


# -- moments ---------------------------------------------------------------------------------------------------------


class Var(Function):
    """Variance over ``axes``, or its root, the sum of squares divided by ``count - correction``; and the mean."""

    @staticmethod
    def forward(
        ctx: Context, a: Array, *, axes: tuple[int, ...], keepdims: bool, correction: float, root: bool
    ) -> tuple[Array, Array]:
        xp = ctx.backend.xp
        # NumPy's mean would warn if there are no elements.
        mean = xp.asarray(a.sum(axis=axes, keepdims=True) / a.dtype.type(_count(a.shape, axes)), dtype=a.dtype)
        divisor = _divisor(a, axes, correction)
        centered = a - mean
        y = xp.asarray((centered * centered).sum(axis=axes, keepdims=True) / divisor, dtype=a.dtype)
        y = xp.asarray(xp.sqrt(y)) if root else y
        ctx.save(a, mean, y if root else None, axes, keepdims, divisor)
        if not keepdims:
            y, mean = (part.squeeze(axes) for part in (y, mean))
        return y, mean

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Array:
        a, mean, root, axes, keepdims, divisor = ctx.saved
        xp = ctx.backend.xp
        grad = _kept(xp, grad, axes, keepdims)
        if root is not None:  # at 0 the slope is infinite; 0 is used
            grad = xp.where(root == 0, grad.dtype.type(0), grad / (2 * root))
        return (2 / divisor) * grad * (a - mean)


def _divisor(a: Array, axes: tuple[int, ...], correction: float) -> Any:
    left = _count(a.shape, axes) - correction
    return a.dtype.type(left if left > 0 else 0)


def _moments(op: str, input: Any, dim: Any, unbiased: Any, keepdim: Any, correction: Any, root: bool) -> Any:
    (input,) = floats(op, input=input)
    if isinstance(dim, bool):  # PyTorch's var(input, unbiased)
        dim, unbiased = None, dim
    if not isinstance(unbiased, bool):
        raise TypeError(f"{op}: unbiased must be True or False, got {unbiased!r}")
    correction = float(unbiased) if correction is None else number(op, "correction", correction)
    axes = axes_of(op, dim, len(shape_of(input)))
    return Var.apply(input, axes=axes, keepdims=bool(keepdim), correction=correction, root=root)


@tensor_method
def var(
    input: Any, dim: Any = None, unbiased: bool = True, keepdim: bool = False, *, correction: float | None = None
) -> Any:
    """Variance over ``dim``: the sum of squared deviations from the mean, divided by ``count - correction``.

    ``correction`` is 1 unless it is given, or ``unbiased`` is False: then 0. Over too few elements the result is NaN.
    """
    return _moments("var", input, dim, unbiased, keepdim, correction, False)[0]


@tensor_method
def std(
    input: Any, dim: Any = None, unbiased: bool = True, keepdim: bool = False, *, correction: float | None = None
) -> Any:
    """Standard deviation, the root of :func:`var`; where it is 0 the gradient is 0."""
    return _moments("std", input, dim, unbiased, keepdim, correction, True)[0]


def var_mean(
    input: Any, dim: Any = None, unbiased: bool = True, keepdim: bool = False, *, correction: float | None = None
) -> Any:
    """:func:`var` and the mean."""
    return var(input, dim, unbiased, keepdim, correction=correction), _mean_beside(input, dim, keepdim)


def std_mean(
    input: Any, dim: Any = None, unbiased: bool = True, keepdim: bool = False, *, correction: float | None = None
) -> Any:
    """:func:`std` and the mean."""
    return std(input, dim, unbiased, keepdim, correction=correction), _mean_beside(input, dim, keepdim)


def _mean_beside(input: Any, dim: Any, keepdim: bool) -> Any:
    return mean(input, None if isinstance(dim, bool) else dim, keepdim)


# -- products and sums -----------------------------------------------------------------------------------------------


class Prod(Function):
    """Product over ``axes``."""

    @staticmethod
    def forward(ctx: Context, a: Array, *, axes: tuple[int, ...], keepdims: bool) -> Array:
        ctx.save(a, axes, keepdims)
        return ctx.backend.xp.asarray(a.prod(axis=axes, keepdims=keepdims), dtype=a.dtype)

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Array:
        a, axes, keepdims = ctx.saved
        xp = ctx.backend.xp
        grad = _kept(xp, grad, axes, keepdims)
        # The product of the others: past a zero, that of what is not zero; past two, zero.
        zero = a == 0
        zeros = zero.sum(axis=axes, keepdims=True)
        rest = xp.where(zero, a.dtype.type(1), a).prod(axis=axes, keepdims=True)
        others = xp.where(zeros == 0, rest / a, xp.where(zero & (zeros == 1), rest, a.dtype.type(0)))
        return grad * others


class CumSum(Function):
    """Sums of the elements up to each one, along a dimension."""

    @staticmethod
    def forward(ctx: Context, a: Array, *, axis: int) -> Array:
        ctx.save(axis)
        return ctx.backend.xp.cumsum(a, axis=axis, dtype=a.dtype)

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Array:
        (axis,) = ctx.saved
        xp = ctx.backend.xp
        return xp.flip(xp.cumsum(xp.flip(grad, axis), axis=axis, dtype=grad.dtype), axis)


class LogSumExp(Function):
    """``log Σ e^a`` over ``axes``."""

    @staticmethod
    def forward(ctx: Context, a: Array, *, axes: tuple[int, ...], keepdims: bool) -> Array:
        xp = ctx.backend.xp
        if _count(a.shape, axes):
            largest = xp.max(a, axis=axes, keepdims=True)
            largest = xp.where(xp.abs(largest) == math.inf, a.dtype.type(0), largest)
        else:
            largest = xp.zeros([1 if i in axes else n for i, n in enumerate(a.shape)], a.dtype)
        y = xp.log(xp.exp(a - largest).sum(axis=axes, keepdims=True)) + largest
        y = xp.asarray(y, dtype=a.dtype)
        ctx.save(a, y, axes, keepdims)
        return y if keepdims else y.squeeze(axes)

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Array:
        a, y, axes, keepdims = ctx.saved
        xp = ctx.backend.xp
        y = xp.where(y == -math.inf, y.dtype.type(0), y)
        return _kept(xp, grad, axes, keepdims) * xp.exp(a - y)


class Norm(Function):
    """``(Σ |a|^p)^(1/p)`` over ``axes``; for p = 0 the number of elements that are not 0. Not for p = ± infinity."""

    @staticmethod
    def forward(ctx: Context, a: Array, *, axes: tuple[int, ...], keepdims: bool, p: float) -> Array:
        xp = ctx.backend.xp
        size = xp.abs(a)
        if p == 2:
            y = xp.sqrt((size * size).sum(axis=axes, keepdims=True))
        elif p == 1:
            y = size.sum(axis=axes, keepdims=True)
        elif p == 0:
            y = (size != 0).sum(axis=axes, keepdims=True)
        else:
            y = (size**p).sum(axis=axes, keepdims=True) ** (1 / p)
        y = xp.asarray(y, dtype=a.dtype)
        ctx.save(a, y, axes, keepdims, p)
        return y if keepdims else y.squeeze(axes)

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Array:
        a, y, axes, keepdims, p = ctx.saved
        xp = ctx.backend.xp
        zero = a.dtype.type(0)
        grad = _kept(xp, grad, axes, keepdims)
        if p == 0:
            return xp.zeros(a.shape, grad.dtype)
        if p == 1:
            return grad * xp.sign(a)
        if p == 2:
            return xp.where(y == 0, zero, a * (grad / y))
        slope = xp.where(a == 0, zero, xp.sign(a) * xp.abs(a) ** (p - 1))
        return xp.where(y == 0, zero, slope * (grad / y ** (p - 1)))


@tensor_method
def prod(input: Any, dim: int | None = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    """Product over ``dim``, or of all elements; ``dtype`` as of ``sum``. The gradient is right past zeros, too."""
    input = operand("prod", "input", input)
    if dim is not None and isinstance(dim, Sequence):
        raise TypeError(f"prod: dim must be an integer, got {dim!r}")
    axes = axes_of("prod", dim, len(shape_of(input)))
    return accumulated("prod", input, dtype, partial(Prod.apply, axes=axes, keepdims=bool(keepdim)))


@tensor_method
def cumsum(input: Any, dim: int, *, dtype: Any = None) -> Any:
    """Sums of the elements up to each one, along ``dim``; ``dtype`` as of ``sum``."""
    input = operand("cumsum", "input", input)
    ndim = len(shape_of(input))
    axis = dimension(dim, ndim, "cumsum")
    sums = accumulated("cumsum", input if ndim else reshape(input, 1), dtype, partial(CumSum.apply, axis=axis))
    return sums if ndim else reshape(sums, ())


@tensor_method
def logsumexp(input: Any, dim: Any, keepdim: bool = False) -> Any:
    """``log Σ e^input`` over ``dim``, without overflow; of nothing minus infinity."""
    input = floating(operand("logsumexp", "input", input))
    axes = axes_of("logsumexp", dim, len(shape_of(input)))
    return LogSumExp.apply(input, axes=axes, keepdims=bool(keepdim))


@tensor_method
def norm(input: Any, p: Any = "fro", dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    """``(Σ |input|^p)^(1/p)`` over ``dim``; where it is 0 the gradient is 0.

    Args:
        input: floats.
        p: a number; infinity (the largest), minus infinity (the smallest), 0 (how many are not 0); 'fro' is 2.
        dim: an integer or several; None for all.
        keepdim: keep the dimensions, with size 1.
        dtype: a float type, to which the input is converted first.

    Raises:
        ValueError: a string other than 'fro': the nuclear norm is not supported.
        TypeError: p is neither a number nor a string.
    """
    op = "norm"
    (input,) = floats(op, input=input)
    input = input if dtype is None else cast(input, float_type(dtype, op))
    if isinstance(p, str) and p != "fro":
        raise ValueError(f"{op}: p must be a number or 'fro', got {p!r}")
    power = 2.0 if p == "fro" else number(op, "p", p)
    axes = axes_of(op, dim, len(shape_of(input)))
    if math.isinf(power):
        _not_empty(op, shape_of(input), axes)
        return AMax.apply(Abs.apply(input), axes=axes, keepdims=bool(keepdim), largest=power > 0)
    return Norm.apply(input, axes=axes, keepdims=bool(keepdim), p=power)


# -- any, all --------------------------------------------------------------------------------------------------------


class Question(Function):
    """A reduction of the array library over ``axes`` without a gradient: any, all, count_nonzero."""

    @staticmethod
    def forward(ctx: Context, a: Array, *, name: str, axes: tuple[int, ...], keepdims: bool) -> Array:
        xp = ctx.backend.xp
        if name == "count_nonzero":
            return xp.asarray((a != 0).sum(axis=axes)).astype(np.int64)
        return xp.asarray(getattr(xp, name)(a, axis=axes, keepdims=keepdims))


def _question(name: str, input: Any, dim: Any, keepdim: bool) -> Any:
    input = operand(name, "input", input)
    axes = axes_of(name, dim, len(shape_of(input)))
    return without_graph(Question, input, name=name, axes=axes, keepdims=bool(keepdim))


@tensor_method
def any(input: Any, dim: Any = None, keepdim: bool = False) -> Any:
    """Whether any element over ``dim`` is not 0: bools."""
    return _question("any", input, dim, keepdim)


@tensor_method
def all(input: Any, dim: Any = None, keepdim: bool = False) -> Any:
    """Whether all elements over ``dim`` are not 0: bools."""
    return _question("all", input, dim, keepdim)


@tensor_method
def count_nonzero(input: Any, dim: Any = None) -> Any:
    """How many elements over ``dim`` are not 0, int64."""
    return _question("count_nonzero", input, dim, False)
