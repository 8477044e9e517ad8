"""Normalisation: by batch, layer, group or instance; by neighbouring channels; of vectors to length 1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from gpuconv import backends
from gpuconv.autograd import Context, Function, Tensor, overwrite, to_array
from gpuconv.backends import Array, capturing
from gpuconv.dtypes import computed
from gpuconv.geometry import integer
from gpuconv.ops.arithmetic import _sum_to as sum_to
from gpuconv.ops.arithmetic import add, div, mul, pow, rounded_once
from gpuconv.ops.checks import element_type, floats, number, shape_of
from gpuconv.ops.elementwise import clamp, square
from gpuconv.ops.padding import PadConstant
from gpuconv.ops.rearrange import narrow
from gpuconv.ops.reduce import norm
from gpuconv.ops.shape import dimension, reshape

__all__ = [
    "batch_norm",
    "batch_norm_relu",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "local_response_norm",
    "normalize",
    "rms_norm",
]


class Normalize(Function):
    """``(x - mean) / sqrt(var + eps) · weight + bias``, with the mean and (biased) variance of x over ``axes``.

    x is reshaped to ``inside`` first. weight and bias may be None; they broadcast to x's own shape. Also returns mean
    and variance, in the shape of ``inside``.
    """

    @staticmethod
    def forward(
        ctx: Context,
        x: Array,
        weight: Array | None,
        bias: Array | None,
        *,
        inside: tuple[int, ...],
        axes: tuple[int, ...],
        eps: float,
        centered: bool,
    ) -> tuple[Array, Array, Array]:
        xp, dtype = ctx.backend.xp, x.dtype.type
        grouped = x.reshape(inside)
        count = dtype(math.prod(inside[axis] for axis in axes))
        mean = grouped.sum(axis=axes, keepdims=True) / count if centered else xp.zeros((1,) * len(inside), x.dtype)
        unit = grouped - mean if centered else grouped
        var = xp.square(unit).sum(axis=axes, keepdims=True) / count
        rate = 1 / xp.sqrt(var + dtype(eps))
        unit = (unit * rate).reshape(x.shape)
        y = unit if weight is None else unit * weight
        if bias is not None:
            y = y + bias
        need_x, need_weight, _ = ctx.needs_input_grad
        shapes = tuple(None if part is None else part.shape for part in (weight, bias))
        ctx.save(unit if need_x or need_weight else None, rate, weight, shapes, inside, axes, centered)
        return y, mean, var

    @staticmethod
    def backward(ctx: Context, grad: Array) -> tuple[Array | None, ...]:
        unit, rate, weight, (weight_shape, bias_shape), inside, axes, centered = ctx.saved
        need_x, need_weight, need_bias = ctx.needs_input_grad
        dx = None
        if need_x:
            d_unit = (grad if weight is None else grad * weight).reshape(inside)
            whole = unit.reshape(inside)
            count = grad.dtype.type(math.prod(inside[axis] for axis in axes))
            dx = d_unit - whole * ((d_unit * whole).sum(axis=axes, keepdims=True) / count)
            if centered:
                dx = dx - d_unit.sum(axis=axes, keepdims=True) / count
            dx = (dx * rate).reshape(grad.shape)
        return (
            dx,
            sum_to(grad * unit, weight_shape) if need_weight else None,
            sum_to(grad, bias_shape) if need_bias else None,
        )


class BatchNorm(Function):
    """Batch normalisation, the addition of ``residual`` and a ReLU behind it; also gives mean and variance.

    x is (N, C, ...). ``mean`` and ``var``, (C,), are constants; None stands for those of x.
    """

    @staticmethod
    def forward(
        ctx: Context,
        x: Array,
        weight: Array | None,
        bias: Array | None,
        residual: Array | None,
        mean: Array | None,
        var: Array | None,
        *,
        eps: float,
        relu: bool,
    ) -> tuple[Array, Array, Array]:
        planes, own = (*x.shape[:2], math.prod(x.shape[2:])), mean is None
        added = None if residual is None else residual.reshape(planes)
        y, mean, var = ctx.backend.batch_norm(x.reshape(planes), mean, var, weight, bias, added, eps=eps, relu=relu)
        need_x, need_weight, *_ = ctx.needs_input_grad
        result = y.reshape(x.shape)
        # Of given statistics, only the weight's gradient looks at x; but the sums want its shape.
        ctx.save(x if need_x or need_weight else None, result if relu else None, mean, var, weight, eps, own)
        return result, mean, var

    @staticmethod
    def backward(ctx: Context, grad: Array) -> tuple[Array | None, ...]:
        x, y, mean, var, weight, eps, own = ctx.saved
        planes = (*grad.shape[:2], math.prod(grad.shape[2:]))
        x = grad if x is None else x
        dx, dw, db, dresidual = ctx.backend.batch_norm_grad(
            grad.reshape(planes), x.reshape(planes), None if y is None else y.reshape(planes), mean, var, weight,
            eps=eps, own=own, needs=ctx.needs_input_grad[:4],
        )  # fmt: skip
        whole = (None if part is None else part.reshape(grad.shape) for part in (dx, dresidual))
        dx, dresidual = whole
        return dx, dw, db, dresidual, None, None


# -- arguments -------------------------------------------------------------------------------------------------------


def _operands(op: str, input: Any, weight: Any, bias: Any) -> tuple[Any, Any, Any]:
    both = ("weight", "bias")
    input, weight, bias = floats(op, input=input, weight=weight, bias=bias, optional=both, wide=both)
    return input, weight, bias


def _of_shape(op: str, shape: tuple[int, ...], **operands: Any) -> None:
    for name, value in operands.items():
        if value is not None and shape_of(value) != shape:
            raise ValueError(f"{op}: {name} must have shape {shape}, got {shape_of(value)}")


def _eps(op: str, eps: Any) -> float:
    eps = number(op, "eps", eps)
    if not eps >= 0:
        raise ValueError(f"{op}: eps must be at least 0, got {eps}")
    return eps


def _per_channel(value: Any, ndim: int) -> Any:
    """One value a channel, (C,), in a shape that broadcasts to (N, C, ...)."""
    return None if value is None else reshape(value, (*shape_of(value), *[1] * (ndim - 2)))


def _running(op: str, channels: int, dtype: Any, running_mean: Any, running_var: Any) -> None:
    _of_shape(op, (channels,), running_mean=running_mean, running_var=running_var)
    for name, value in (("running_mean", running_mean), ("running_var", running_var)):
        if value is not None and element_type(value) not in (dtype, computed(dtype)):
            raise TypeError(f"{op}: {name} is {element_type(value)} but input is {dtype}; convert one of them")


def _move(running: Any, now: Any, momentum: float, scale: float = 1.0) -> None:
    """Update a running statistic with a new value of the same shape, in place and without a graph."""
    values, array = to_array(running), to_array(now)
    backend, number = backends.current(array), computed(values.dtype).type

    def moved() -> Any:
        with backend.computing():
            before, found = backend.asarray(values), backend.asarray(array).reshape(values.shape)
            return before * number(1 - momentum) + found * number(momentum * scale)

    overwrite(values, capturing.repeated(moved, values, array), "a running statistic")


# -- functions -------------------------------------------------------------------------------------------------------


def batch_norm(
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    """``(x - mean) / sqrt(var + eps) · weight + bias``, channel by channel (Ioffe & Szegedy, 2015).

    Args:
        input: (N, C, ...), floats.
        running_mean, running_var: (C,), Tensors or arrays, or None. While training they are updated in place with the
            batch's mean and (unbiased) variance: ``(1 - momentum) · running + momentum · batch``. Otherwise they are
            used in place of the batch's.
        weight, bias: (C,) or None.
        training: use the batch's mean and (biased) variance.
        momentum: see above.
        eps: at least 0.

    Raises:
        ValueError: a shape that does not fit; one value a channel while training; no running statistics otherwise.
        TypeError: no floats, or types that differ.
    """
    options: dict[str, Any] = {"training": training, "momentum": momentum, "eps": eps}
    return _batch_norm("batch_norm", input, running_mean, running_var, weight, bias, None, relu=False, **options)


def batch_norm_relu(
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    residual: Any = None,
    *,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    """``relu(batch_norm(input, ...) + residual)`` in one pass over memory: what ends a block of ResNet.

    Args:
        residual: of the input's shape and type, or None for nothing.
        input, running_mean, running_var, weight, bias, training, momentum, eps: as :func:`batch_norm` takes them.

    Raises:
        ValueError, TypeError: as :func:`batch_norm`, and for a residual of another shape or type.
    """
    options: dict[str, Any] = {"training": training, "momentum": momentum, "eps": eps}
    op = "batch_norm_relu"
    return _batch_norm(op, input, running_mean, running_var, weight, bias, residual, relu=True, **options)


def _batch_norm(
    op: str,
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any,
    bias: Any,
    residual: Any,
    *,
    relu: bool,
    training: bool,
    momentum: float,
    eps: float,
) -> Any:
    given = {"weight": weight, "bias": bias, "residual": residual}
    there = {name: value for name, value in given.items() if value is not None}
    operands = floats(op, input=input, **there, wide=("weight", "bias"))
    input, rest = operands[0], iter(operands[1:])
    weight, bias, residual = (None if value is None else next(rest) for value in given.values())
    shape, eps, momentum = shape_of(input), _eps(op, eps), number(op, "momentum", momentum)
    if len(shape) < 2:
        raise ValueError(f"{op}: input must have at least 2 dimensions (N, C, ...), got shape {shape}")
    _of_shape(op, shape[1:2], weight=weight, bias=bias)
    _of_shape(op, shape, residual=residual)
    _running(op, shape[1], element_type(input), running_mean, running_var)
    if not training:
        if running_mean is None or running_var is None:
            raise ValueError(f"{op}: running_mean and running_var must be given unless training is True")
        statistics = _constant(running_mean), _constant(running_var)
        return BatchNorm.apply(input, weight, bias, residual, *statistics, eps=eps, relu=relu)[0]
    count = math.prod(shape) // max(1, shape[1])
    if count == 1:
        raise ValueError(f"{op}: input must have more than 1 value a channel while training, got shape {shape}")
    y, mean, var = BatchNorm.apply(input, weight, bias, residual, None, None, eps=eps, relu=relu)
    if count:
        if running_mean is not None:
            _move(running_mean, mean, momentum)
        if running_var is not None:
            _move(running_var, var, momentum, count / (count - 1))
    return y


def _constant(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def instance_norm(
    input: Any,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    """As :func:`batch_norm`, but mean and variance are those of each image and channel (Ulyanov et al., 2016).

    Args:
        input: (N, C, ...), floats.
        running_mean, running_var, weight, bias, momentum, eps: as for :func:`batch_norm`; the running statistics are
            updated with means over the batch.
        use_input_stats: use the input's own mean and variance; otherwise the running ones.
    """
    op = "instance_norm"
    input, weight, bias = _operands(op, input, weight, bias)
    shape, eps, momentum = shape_of(input), _eps(op, eps), number(op, "momentum", momentum)
    if len(shape) < 3:
        raise ValueError(f"{op}: input must have at least 3 dimensions (N, C, ...), got shape {shape}")
    if not use_input_stats:
        return batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    _of_shape(op, shape[1:2], weight=weight, bias=bias)
    _running(op, shape[1], element_type(input), running_mean, running_var)
    weight, bias = (_per_channel(value, len(shape)) for value in (weight, bias))
    count = math.prod(shape[2:])
    if count == 1:
        raise ValueError(f"{op}: input must have more than 1 value an image and channel, got shape {shape}")
    axes = tuple(range(2, len(shape)))
    y, mean, var = Normalize.apply(input, weight, bias, inside=shape, axes=axes, eps=eps, centered=True)
    if count and shape[0]:
        for running, found, scale in ((running_mean, mean, 1.0), (running_var, var, count / (count - 1))):
            if running is not None:
                values = to_array(found)
                mean_of = partial(lambda values: values.reshape(shape[:2]).mean(axis=0), values)
                _move(running, capturing.repeated(mean_of, values), momentum, scale)
    return y


def _normalized(op: str, input: Any, normalized_shape: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shape of the last dimensions, and which they are."""
    several = normalized_shape if isinstance(normalized_shape, Sequence) else (normalized_shape,)
    wanted = tuple(integer(size, "normalized_shape", minimum=1, op=op) for size in several)
    shape = shape_of(input)
    if not wanted or shape[len(shape) - len(wanted) :] != wanted or len(shape) < len(wanted):
        raise ValueError(f"{op}: input must end in normalized_shape {wanted}, got shape {shape}")
    return wanted, tuple(range(len(shape) - len(wanted), len(shape)))


def layer_norm(input: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
    """``(x - mean) / sqrt(var + eps) · weight + bias`` over the last dimensions (Ba et al., 2016).

    Args:
        input: (..., *normalized_shape), floats.
        normalized_shape: an integer or a sequence of them.
        weight, bias: of ``normalized_shape``, or None.
        eps: at least 0.
    """
    op = "layer_norm"
    input, weight, bias = _operands(op, input, weight, bias)
    wanted, axes = _normalized(op, input, normalized_shape)
    _of_shape(op, wanted, weight=weight, bias=bias)
    options: dict[str, Any] = {"inside": shape_of(input), "axes": axes, "eps": _eps(op, eps), "centered": True}
    return Normalize.apply(input, weight, bias, **options)[0]


def rms_norm(input: Any, normalized_shape: Any, weight: Any = None, eps: float | None = None) -> Any:
    """``x / sqrt(mean(x²) + eps) · weight`` over the last dimensions (Zhang & Sennrich, 2019).

    ``eps``: None for the machine epsilon of the type in which it computes: the input's; float32 for half types.
    """
    op = "rms_norm"
    input, weight, _ = _operands(op, input, weight, None)
    wanted, axes = _normalized(op, input, normalized_shape)
    _of_shape(op, wanted, weight=weight)
    eps = float(np.finfo(computed(element_type(input))).eps) if eps is None else _eps(op, eps)
    options: dict[str, Any] = {"inside": shape_of(input), "axes": axes, "eps": eps, "centered": False}
    return Normalize.apply(input, weight, None, **options)[0]


def group_norm(input: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
    """As :func:`batch_norm`, but mean and variance are those of each image and group of channels (Wu & He, 2018).

    Args:
        input: (N, C, ...), floats.
        num_groups: divides C.
        weight, bias: (C,) or None.
        eps: at least 0.
    """
    op = "group_norm"
    input, weight, bias = _operands(op, input, weight, bias)
    groups, shape = integer(num_groups, "num_groups", minimum=1, op=op), shape_of(input)
    if len(shape) < 2:
        raise ValueError(f"{op}: input must have at least 2 dimensions (N, C, ...), got shape {shape}")
    if shape[1] % groups:
        raise ValueError(f"{op}: num_groups={groups} does not divide the {shape[1]} channels")
    _of_shape(op, shape[1:2], weight=weight, bias=bias)
    inside = (shape[0], groups, math.prod(shape[1:]) // groups)
    weight, bias = (_per_channel(value, len(shape)) for value in (weight, bias))
    return Normalize.apply(input, weight, bias, inside=inside, axes=(2,), eps=_eps(op, eps), centered=True)[0]


@rounded_once
def local_response_norm(input: Any, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Any:
    """``x / (k + alpha · m)^beta``, m the mean square of ``size`` neighbouring channels (Krizhevsky et al., 2012).

    Args:
        input: (N, C, ...), floats, with at least 3 dimensions.
        size: number of channels: ``size // 2`` before and ``(size - 1) // 2`` after; beyond the edge are zeros.
        alpha, beta, k: see above.
    """
    op = "local_response_norm"
    (input,) = floats(op, input=input)
    size, shape = integer(size, "size", minimum=1, op=op), shape_of(input)
    alpha, beta, k = (number(op, name, value) for name, value in (("alpha", alpha), ("beta", beta), ("k", k)))
    if len(shape) < 3:
        raise ValueError(f"{op}: input must have at least 3 dimensions (N, C, ...), got shape {shape}")
    sides = ((0, 0), (size // 2, (size - 1) // 2), *[(0, 0)] * (len(shape) - 2))
    padded = PadConstant.apply(square(input), sides=sides, value=0.0)
    total = narrow(padded, 1, 0, shape[1])
    for tap in range(1, size):
        total = add(total, narrow(padded, 1, tap, shape[1]))
    return div(input, pow(add(mul(total, alpha / size), k), beta))


@rounded_once
def normalize(input: Any, p: float = 2.0, dim: Any = 1, eps: float = 1e-12) -> Any:
    """``x / max(|x|_p, eps)`` with the p-norm along ``dim``. IndexError: no such dimension."""
    op = "normalize"
    (input,) = floats(op, input=input)
    p, eps, ndim = number(op, "p", p), number(op, "eps", eps), len(shape_of(input))
    several = dim if isinstance(dim, Sequence) else (dim,)
    axes = tuple(dimension(one, ndim, op) for one in several)
    return div(input, clamp(norm(input, p, axes, True), min=eps))
