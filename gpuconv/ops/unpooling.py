"""Max pooling undone, and pooling by a power mean."""

from __future__ import annotations

import math
from typing import Any

from gpuconv.autograd import Context, Function
from gpuconv.backends import Array
from gpuconv.dtypes import kind_of
from gpuconv.geometry import Pool2dGeometry, integer, single, sizes_of
from gpuconv.ops.activation import ReLU
from gpuconv.ops.arithmetic import mul, pow, rounded_once
from gpuconv.ops.checks import element_type, floats, number, operand, shape_of
from gpuconv.ops.elementwise import abs, neg, sign
from gpuconv.ops.layout import batched, unbatched, with_height, without_height
from gpuconv.ops.picking import checked_index
from gpuconv.ops.pool import AvgPool2d, MaxPool2d

__all__ = ["lp_pool1d", "lp_pool2d", "max_unpool1d", "max_unpool2d"]


class MaxUnpool(Function):
    """Zeros in the shape of ``output_size``, with the elements of x where the index says, counted in rows.

    If two of a plane have the same index, the later one stays.
    """

    @staticmethod
    def forward(ctx: Context, x: Array, index: Array, *, output_size: tuple[int, ...]) -> Array:
        planes = math.prod(x.shape[:2])
        xp, size = ctx.backend.xp, (planes, math.prod(x.shape[2:]))
        where = xp.arange(planes)[:, None], index.reshape(size)
        ctx.save(x.shape, where)
        y = xp.zeros((planes, math.prod(output_size)), x.dtype)
        y[where] = x.reshape(size)
        return y.reshape(*x.shape[:2], *output_size)

    @staticmethod
    def backward(ctx: Context, grad: Array) -> tuple[Array, None]:
        shape, where = ctx.saved
        return grad.reshape(len(where[0]), -1)[where].reshape(shape), None


def unpool(
    op: str, letters: str, input: Any, indices: Any, kernel_size: Any, stride: Any, padding: Any, output_size: Any
) -> Any:
    """Max unpooling over as many dimensions as there are letters behind N and C."""
    (input,) = floats(op, input=input)
    indices = operand(op, "indices", indices)
    if shape_of(indices) != shape_of(input):
        raise ValueError(f"{op}: indices must have the input's shape {shape_of(input)}, got {shape_of(indices)}")
    if kind_of(element_type(indices)) not in "iu":
        raise TypeError(f"{op}: indices must hold integers, got {element_type(indices)}")
    input, alone = batched(op, input, letters)
    indices, _ = batched(op, indices, letters)
    rank = len(letters) - 2
    kernel = sizes_of(kernel_size, "kernel_size", rank, minimum=1, op=op)
    step = kernel if stride is None or stride == () else sizes_of(stride, "stride", rank, minimum=1, op=op)
    pads = sizes_of(padding, "padding", rank, minimum=0, op=op)
    shape = shape_of(input)
    usual = tuple((n - 1) * s - 2 * p + k for n, s, p, k in zip(shape[2:], step, pads, kernel, strict=True))
    sizes = usual
    if output_size is not None:
        given = tuple(integer(size, "output_size", minimum=0, op=op) for size in output_size)
        sizes = given[2:] if len(given) == rank + 2 else given
        if len(sizes) != rank or not all(u - s < n < u + s for u, s, n in zip(usual, step, sizes, strict=True)):
            raise ValueError(f"{op}: output_size must differ from {usual} by less than stride {step}, got {given}")
    if min(sizes) < 1 or 0 in shape[1:]:
        raise ValueError(f"{op}: an input of shape {shape} gives a result of {sizes}, which has no elements")
    checked_index(op, "indices", indices, math.prod(sizes))
    return unbatched(MaxUnpool.apply(input, indices, output_size=sizes), alone)


def max_unpool2d(
    input: Any, indices: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, output_size: Any = None
) -> Any:
    """Max pooling undone as far as it can be: each maximum where it was, zeros elsewhere.

    Args:
        input: (N, C, H, W) or (C, H, W), floats.
        indices: where each element goes, ``row · width + column`` in the result; those that :func:`max_pool2d` returns.
        kernel_size, stride, padding: those of the pooling.
        output_size: (height, width), or the whole shape: which one of the sizes that give the same after pooling.

    Returns:
        (N, C, P, Q), without ``output_size`` of ``(H - 1) · stride - 2 · padding + kernel_size``.

    Raises:
        IndexError: an index outside of the result.
        ValueError: a shape or value does not fit.
        TypeError: an argument of the wrong kind.
    """
    return unpool("max_unpool2d", "NCHW", input, indices, kernel_size, stride, padding, output_size)


def max_unpool1d(
    input: Any, indices: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, output_size: Any = None
) -> Any:
    """Max pooling of (N, C, L) or (C, L) undone; as :func:`max_unpool2d`."""
    return unpool("max_unpool1d", "NCL", input, indices, kernel_size, stride, padding, output_size)


def power_of(op: str, norm_type: Any) -> float:
    """Check the power of a mean. ValueError: 0 or NaN; TypeError: no number."""
    power = number(op, "norm_type", norm_type)
    if power == 0 or math.isnan(power):
        raise ValueError(f"{op}: norm_type must be a number other than 0, got {norm_type}")
    return power


def power_mean(op: str, input: Any, norm_type: Any, taps: int, average: Any, maximum: Any) -> Any:
    """``(Σ x^p)^(1/p)`` over windows of so many taps, given functions that pool by average and by maximum."""
    power = power_of(op, norm_type)
    if math.isinf(power):
        return maximum(abs(input)) if power > 0 else neg(maximum(neg(abs(input))))
    # As in PyTorch, a window that hangs over the edge counts as if its average filled it; and where the sum is 0, the
    # gradient is, too.
    means = average(pow(input, power))
    return pow(mul(mul(sign(means), ReLU.apply(abs(means))), taps), 1 / power)


def _power_mean_2d(op: str, input: Any, norm_type: Any, kernel: Any, stride: Any, ceil_mode: Any) -> Any:
    stride = None if stride is None or stride == () else stride
    geometry = Pool2dGeometry.of(shape_of(input), kernel, stride=stride, ceil_mode=ceil_mode, op=op)
    return power_mean(
        op,
        input,
        norm_type,
        geometry.r * geometry.s,
        lambda x: AvgPool2d.apply(x, geometry=geometry, count_include_pad=True, divisor_override=None),
        lambda x: MaxPool2d.apply(x, geometry=geometry, return_indices=False),
    )


@rounded_once
def lp_pool2d(input: Any, norm_type: float, kernel_size: Any, stride: Any = None, ceil_mode: bool = False) -> Any:
    """``(Σ x^p)^(1/p)`` over each window of (N, C, H, W) or (C, H, W), p being ``norm_type``.

    1 gives the sum, infinity the maximum.


    Args:
        input: floats.
        norm_type: p, not 0; infinity is of the absolute values.
        kernel_size: size of the window, int or (height, width).
        stride: distance of windows; None means ``kernel_size``.
        ceil_mode: round the output size up: the last window may hang over the edge.

    Raises:
        ValueError: a shape or value does not fit.
        TypeError: an argument of the wrong kind.
    """
    op = "lp_pool2d"
    (input,) = floats(op, input=input)
    input, alone = batched(op, input, "NCHW")
    return unbatched(_power_mean_2d(op, input, norm_type, kernel_size, stride, ceil_mode), alone)


@rounded_once
def lp_pool1d(input: Any, norm_type: float, kernel_size: Any, stride: Any = None, ceil_mode: bool = False) -> Any:
    """:func:`lp_pool2d` of (N, C, L) or (C, L)."""
    op = "lp_pool1d"
    (input,) = floats(op, input=input)
    input, alone = batched(op, input, "NCL")
    kernel = 1, single(kernel_size, "kernel_size", minimum=1, op=op)
    step = None if stride is None or stride == () else (1, single(stride, "stride", minimum=1, op=op))
    return unbatched(without_height(_power_mean_2d(op, with_height(input), norm_type, kernel, step, ceil_mode)), alone)
