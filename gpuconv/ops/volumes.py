"""Convolution and pooling of volumes, (N, C, D, H, W), made of those of images: on whatever backend those run.

A convolution gathers the planes that a filter's depth covers as channels of one image, (N · depths, C · T, H, W), and
is one convolution of images. The other way, one convolution for each plane of the filter and a sum of those, would
write and read the result T times, and leave the kernels sums that are T times shorter; this one copies the input T
times, which is small beside the arithmetic where there are many filters. Pooling takes the planes first and then the
depths: a maximum of maxima, an average of averages.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from gpuconv.autograd import Context, Function
from gpuconv.backends import Array
from gpuconv.geometry import Conv2dGeometry, Pair, Pool2dGeometry, flag, pool_divisor, triple
from gpuconv.ops.arithmetic import add, rounded_once
from gpuconv.ops.checks import floats, shape_of
from gpuconv.ops.conv import Conv2d
from gpuconv.ops.layout import batched, unbatched
from gpuconv.ops.picking import gather
from gpuconv.ops.pool import AvgPool2d, MaxPool2d
from gpuconv.ops.shape import permute, reshape
from gpuconv.ops.transposed import PLAIN, transpose_conv, transposed_sizes
from gpuconv.ops.unpooling import power_mean, unpool
from gpuconv.ops.windows import Adding, Cutting

__all__ = ["avg_pool3d", "conv3d", "conv_transpose3d", "lp_pool3d", "max_pool3d", "max_unpool3d"]


# -- depths as channels ----------------------------------------------------------------------------------------------


class _Depths(NamedTuple):
    """Which planes a filter's depth covers: at place o its plane t stands at ``o · stride + t · dilation - front``."""

    length: int
    places: int
    taps: int
    stride: int
    dilation: int
    front: int

    def _inside(self) -> Iterator[tuple[int, slice, slice]]:
        """For each of the filter's planes, the places at which it is inside of the volume, and where it is there."""
        for tap in range(self.taps):
            shift = tap * self.dilation - self.front
            first = max(0, -(shift // self.stride))
            last = min(self.places - 1, (self.length - 1 - shift) // self.stride)
            if first <= last:
                start = first * self.stride + shift
                yield tap, slice(first, last + 1), slice(start, last * self.stride + shift + 1, self.stride)

    def cut(self, xp: Any, x: Array) -> Array:
        """(N, C, D, H, W) as (N · places, C · taps, H, W); zeros where the filter is outside."""
        n, c, _, h, w = x.shape
        y = xp.zeros((n, self.places, c, self.taps, h, w), x.dtype)
        for tap, places, planes in self._inside():
            y[:, places, :, tap] = x[:, :, planes].transpose(0, 2, 1, 3, 4)
        return y.reshape(n * self.places, c * self.taps, h, w)

    def add(self, xp: Any, y: Array) -> Array:
        """(N · places, C · taps, H, W) added up to (N, C, D, H, W): the way back."""
        c, (h, w) = y.shape[1] // self.taps, y.shape[2:]
        y = y.reshape(-1, self.places, c, self.taps, h, w)
        x = xp.zeros((len(y), c, self.length, h, w), y.dtype)
        for tap, places, planes in self._inside():
            x[:, :, planes] += y[:, places, :, tap].transpose(0, 2, 1, 3, 4)
        return x


class CutDepths(Cutting):
    """See :meth:`_Depths.cut`."""


class AddDepths(Adding):
    """See :meth:`_Depths.add`."""


# -- convolution -----------------------------------------------------------------------------------------------------


def _volumes(op: str, input: Any, weight: Any, bias: Any) -> tuple[Any, Any, Any, bool]:
    input, weight, bias = floats(op, input=input, weight=weight, bias=bias, optional=("bias",))
    if len(shape_of(weight)) != 5:
        raise ValueError(f"{op}: weight must have 5 dimensions, got shape {shape_of(weight)}")
    input, alone = batched(op, input, "NCDHW")
    return input, weight, bias, alone


def conv3d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    """3-D convolution, as :func:`conv2d` is of images.

    Args:
        input: (N, C, D, H, W) or (C, D, H, W), float32 or float64.
        weight: (K, C / groups, T, R, S), same type.
        bias: (K,), same type, or None.
        stride, dilation: int or (depth, height, width).
        padding: zeros around the input: int; (depth, height, width); 'valid', none; 'same', as many as keep the size.
        groups: channels and filters are cut into so many groups, each convolved on its own.

    Returns:
        (N, K, O, P, Q), or (K, O, P, Q).

    Raises:
        ValueError: a shape or value does not fit.
        TypeError: an argument of the wrong kind, or element types that differ.
    """
    op = "conv3d"
    input, weight, bias, alone = _volumes(op, input, weight, bias)
    (n, c, d, h, w), (k, of_group, t, r, s) = shape_of(input), shape_of(weight)
    strides, dilations = (
        triple(value, name, minimum=1, op=op) for value, name in ((stride, "stride"), (dilation, "dilation"))
    )
    pads = (padding,) * 3 if isinstance(padding, str) else triple(padding, "padding", minimum=0, op=op)
    bias_shape = None if bias is None else shape_of(bias)
    # First along the depth: that checks channels, groups and bias in the caller's numbers.
    depth = Conv2dGeometry.of(
        (n, c, d, 1), (k, of_group, t, 1), bias_shape=bias_shape, stride=(strides[0], 1),
        padding=pads[0] if isinstance(padding, str) else (pads[0], 0), dilation=(dilations[0], 1), groups=groups, op=op,
    )  # fmt: skip
    plane = Conv2dGeometry.of(
        (n * depth.p, c * t, h, w), (k, of_group * t, r, s), stride=strides[1:],
        padding=padding if isinstance(padding, str) else pads[1:], dilation=dilations[1:], groups=groups, op=op,
    )  # fmt: skip
    images = CutDepths.apply(input, pieces=_Depths(d, depth.p, t, strides[0], dilations[0], depth.padding[0][0]))
    output = Conv2d.apply(images, reshape(weight, plane.weight_shape), bias, geometry=plane)
    output = permute(reshape(output, (n, depth.p, k, plane.p, plane.q)), (0, 2, 1, 3, 4))
    return unbatched(output, alone)


@rounded_once
def conv_transpose3d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Any:
    """Transposed 3-D convolution: input (N, C, D, H, W) or (C, D, H, W), weight (C, K / groups, T, R, S).

    Otherwise as :func:`conv_transpose2d`; sizes are ints or (depth, height, width).
    """
    op = "conv_transpose3d"
    input, weight, bias, alone = _volumes(op, input, weight, bias)
    (n, c, d, h, w), (filters, of_group, t, r, s) = shape_of(input), shape_of(weight)
    if isinstance(padding, str):
        raise TypeError(f"{op}: padding must be given in numbers, got {padding!r}")
    sizes = transposed_sizes(op, 3, stride, padding, output_padding, dilation)
    depth = Conv2dGeometry.of_transposed(
        (n, c, d, 1), (filters, of_group, t, 1), bias_shape=None if bias is None else shape_of(bias), groups=groups,
        op=op, **{name: (value[0], PLAIN[name]) for name, value in sizes.items()},
    )  # fmt: skip
    images = reshape(permute(input, (0, 2, 1, 3, 4)), (n * d, c, h, w))
    output = transpose_conv(
        images, reshape(weight, (filters, of_group * t, r, s)), None, groups=groups, op=op,
        **{name: value[1:] for name, value in sizes.items()},
    )  # fmt: skip
    depths = _Depths(depth.h, d, t, sizes["stride"][0], sizes["dilation"][0], sizes["padding"][0])
    output = AddDepths.apply(output, pieces=depths)
    if bias is not None:
        output = add(output, reshape(bias, (-1, 1, 1, 1)))
    return unbatched(output, alone)


# -- pooling ---------------------------------------------------------------------------------------------------------


class _Window(NamedTuple):
    """A pooling of volumes as one of planes and one of depths."""

    plane: Pool2dGeometry
    depth: Pool2dGeometry
    alone: bool

    def apart(self, input: Any) -> Any:
        """The planes of all depths, as images."""
        return reshape(input, self.plane.input_shape)

    def columns(self, pooled: Any) -> Any:
        """Pooled planes as images whose rows are the depths."""
        return reshape(pooled, self.depth.input_shape)

    def together(self, pooled: Any) -> Any:
        """The result as volumes."""
        shape = (self.depth.n, self.depth.c, self.depth.p, self.plane.p, self.plane.q)
        return unbatched(reshape(pooled, shape), self.alone)


def _window(op: str, input: Any, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: Any) -> Any:
    (input,) = floats(op, input=input)
    input, alone = batched(op, input, "NCDHW")
    n, c, d, h, w = shape_of(input)
    kernel = triple(kernel_size, "kernel_size", minimum=1, op=op)
    step = kernel if stride is None or stride == () else triple(stride, "stride", minimum=1, op=op)
    if isinstance(padding, str):
        raise TypeError(f"{op}: padding must be given in numbers, got {padding!r}")
    pads = triple(padding, "padding", minimum=0, op=op)
    spread = triple(dilation, "dilation", minimum=1, op=op)
    if 0 in (c, d):
        raise ValueError(
            f"{op}: input must have elements along each dimension but the batch, got shape {(n, c, d, h, w)}"
        )

    def geometry(shape: Any, size: Pair, steps: Pair, sides: Pair, apart: Pair) -> Pool2dGeometry:
        return Pool2dGeometry.of(shape, size, stride=steps, padding=sides, dilation=apart, ceil_mode=ceil_mode, op=op)

    plane = geometry((n, c * d, h, w), kernel[1:], step[1:], pads[1:], spread[1:])
    depth = geometry((n, c, d, plane.p * plane.q), (kernel[0], 1), (step[0], 1), (pads[0], 0), (spread[0], 1))
    return input, _Window(plane, depth, alone)


def max_pool3d(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """Maximum of each window of (N, C, D, H, W) or (C, D, H, W); otherwise as :func:`max_pool2d`.

    Sizes are ints or (depth, height, width). An index is ``(depth · H + row) · W + column``.
    """
    op = "max_pool3d"
    input, window = _window(op, input, kernel_size, stride, padding, dilation, ceil_mode)
    plane, depth = window.plane, window.depth
    if not flag(return_indices, "return_indices", op=op):
        pooled = MaxPool2d.apply(window.apart(input), geometry=plane, return_indices=False)
        return window.together(MaxPool2d.apply(window.columns(pooled), geometry=depth, return_indices=False))
    pooled, inside = MaxPool2d.apply(window.apart(input), geometry=plane, return_indices=True)
    pooled, where = MaxPool2d.apply(window.columns(pooled), geometry=depth, return_indices=True)
    # An index of the second pooling is one of a plane, and of a place in it, which knows where its maximum was.
    flat = (depth.n, depth.c, depth.p * depth.w)
    chosen = gather(reshape(inside, (depth.n, depth.c, depth.h * depth.w)), 2, reshape(where, flat))
    index = add(reshape(chosen, depth.output_shape), PlaneOf.apply(where, width=depth.w, size=plane.h * plane.w))
    return window.together(pooled), window.together(index)


class PlaneOf(Function):
    """Of indices of a plane and a place in it, where the plane begins."""

    @staticmethod
    def forward(ctx: Context, index: Array, *, width: int, size: int) -> Array:
        return index // width * size


@rounded_once
def avg_pool3d(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    """Average of each window of (N, C, D, H, W) or (C, D, H, W); otherwise as :func:`avg_pool2d`.

    Sizes are ints or (depth, height, width).
    """
    op = "avg_pool3d"
    input, window = _window(op, input, kernel_size, stride, padding, 1, ceil_mode)
    divisor = pool_divisor(divisor_override, op=op)
    counted = flag(count_include_pad, "count_include_pad", op=op)
    planes = AvgPool2d.apply(
        window.apart(input), geometry=window.plane, count_include_pad=counted,
        divisor_override=None if divisor is None else 1,
    )  # fmt: skip
    return window.together(
        AvgPool2d.apply(
            window.columns(planes), geometry=window.depth, count_include_pad=counted, divisor_override=divisor
        )
    )


@rounded_once
def lp_pool3d(input: Any, norm_type: float, kernel_size: Any, stride: Any = None, ceil_mode: bool = False) -> Any:
    """:func:`lp_pool2d` of (N, C, D, H, W) or (C, D, H, W)."""
    op = "lp_pool3d"
    (input,) = floats(op, input=input)
    return power_mean(
        op,
        input,
        norm_type,
        math.prod(triple(kernel_size, "kernel_size", minimum=1, op=op)),
        lambda x: avg_pool3d(x, kernel_size, stride, 0, ceil_mode),
        lambda x: max_pool3d(x, kernel_size, stride, 0, 1, ceil_mode),
    )


def max_unpool3d(
    input: Any, indices: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, output_size: Any = None
) -> Any:
    """Max pooling of (N, C, D, H, W) or (C, D, H, W) undone; as :func:`max_unpool2d`."""
    return unpool("max_unpool3d", "NCDHW", input, indices, kernel_size, stride, padding, output_size)
