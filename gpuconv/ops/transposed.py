"""Transposed convolution: the gradient of a convolution's input as a layer (Zeiler et al., 2010)."""

from __future__ import annotations

from typing import Any

from gpuconv.autograd import Context, Function
from gpuconv.backends import Array
from gpuconv.geometry import Conv2dGeometry, IntOrPair, sizes_of
from gpuconv.ops.checks import floats, shape_of
from gpuconv.ops.layout import batched, unbatched, with_height, without_height
from gpuconv.ops.padding import pad

__all__ = ["conv_transpose1d", "conv_transpose2d"]


class ConvTranspose2d(Function):
    """Inputs x (n, k, p, q), weight (k, c/groups, r, s), bias (c,) or None; result (n, c, h, w): see ``geometry``.

    What is forward for a convolution is backward here, so that each backend's kernels serve both.
    """

    @staticmethod
    def forward(ctx: Context, x: Array, weight: Array, bias: Array | None, *, geometry: Conv2dGeometry) -> Array:
        need_x, need_weight, _ = ctx.needs_input_grad
        ctx.save(x if need_weight else None, weight if need_x else None, geometry)
        y = ctx.backend.conv2d_grad_input(x, weight, geometry)
        return y if bias is None else y + bias.reshape(-1, 1, 1)

    @staticmethod
    def backward(ctx: Context, grad: Array) -> tuple[Array | None, ...]:
        x, weight, geometry = ctx.saved
        need_x, need_weight, need_bias = ctx.needs_input_grad
        return (
            ctx.backend.conv2d(grad, weight, None, geometry) if need_x else None,
            ctx.backend.conv2d_grad_weight(x, grad, geometry) if need_weight else None,
            ctx.backend.conv2d_grad_bias(grad) if need_bias else None,
        )


#: What leaves a dimension as it is.
PLAIN = {"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1}


def transposed_sizes(
    op: str, rank: int, stride: Any, padding: Any, output_padding: Any, dilation: Any
) -> dict[str, tuple[int, ...]]:
    """The sizes of a transposed convolution by name, each checked and given for every dimension."""
    given = {"stride": stride, "padding": padding, "output_padding": output_padding, "dilation": dilation}
    return {name: sizes_of(value, name, rank, minimum=PLAIN[name], op=op) for name, value in given.items()}


def transpose_conv(input: Any, weight: Any, bias: Any, **arguments: Any) -> Any:
    """A transposed convolution of (N, C, H, W); the arguments are those of ``Conv2dGeometry.of_transposed``."""
    shape = shape_of(input)
    geometry = Conv2dGeometry.of_transposed(
        shape, shape_of(weight), bias_shape=None if bias is None else shape_of(bias), **arguments
    )
    if (geometry.p, geometry.q) != shape[2:]:
        input = pad(input, (0, geometry.q - shape[3], 0, geometry.p - shape[2]))
    return ConvTranspose2d.apply(input, weight, bias, geometry=geometry)


def conv_transpose2d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: IntOrPair = 1,
    padding: IntOrPair = 0,
    output_padding: IntOrPair = 0,
    groups: int = 1,
    dilation: IntOrPair = 1,
) -> Any:
    """Transposed 2-D convolution: each input element adds the filter, times its value, to the result.

    It is the gradient of :func:`conv2d` with these arguments for its input, and gives back the size that went into it.

    Args:
        input: (N, C, H, W) or (C, H, W), float32 or float64.
        weight: (C, K / groups, R, S), same type.
        bias: (K,), same type, or None.
        stride: distance of the filter's places in the result, int or (height, width).
        padding: rows and columns that are cut off all around, int or (height, width).
        output_padding: rows and columns that are added at the bottom and right: of the sizes that a convolution makes
            one, which is meant. Less than stride or dilation.
        groups: channels are cut into so many groups, each convolved on its own.
        dilation: distance of a filter's taps, int or (height, width).

    Returns:
        (N, K, P, Q), or (K, P, Q), with ``P = (H - 1) · stride - 2 · padding + dilation · (R - 1) + output_padding +
        1``.

    Raises:
        ValueError: a shape or value does not fit.
        TypeError: an argument of the wrong kind, or element types that differ.
    """
    op = "conv_transpose2d"
    input, weight, bias = floats(op, input=input, weight=weight, bias=bias, optional=("bias",))
    input, alone = batched(op, input, "NCHW")
    output = transpose_conv(
        input, weight, bias, stride=stride, padding=padding, output_padding=output_padding, groups=groups,
        dilation=dilation, op=op,
    )  # fmt: skip
    return unbatched(output, alone)


def conv_transpose1d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Any:
    """Transposed 1-D convolution: input (N, C, L) or (C, L), weight (C, K / groups, S); as :func:`conv_transpose2d`."""
    op = "conv_transpose1d"
    input, weight, bias = floats(op, input=input, weight=weight, bias=bias, optional=("bias",))
    input, alone = batched(op, input, "NCL")
    if len(shape_of(weight)) != 3:
        raise ValueError(f"{op}: weight must have 3 dimensions (C, K, S), got shape {shape_of(weight)}")
    sizes = transposed_sizes(op, 1, stride, padding, output_padding, dilation)
    images = {name: (PLAIN[name], *size) for name, size in sizes.items()}
    output = transpose_conv(with_height(input), with_height(weight), bias, groups=groups, op=op, **images)
    return unbatched(without_height(output), alone)
