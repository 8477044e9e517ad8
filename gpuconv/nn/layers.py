"""Layers: the functions of ``gpuconv.functional`` with their parameters. Names and defaults are PyTorch's.

Constructors raise ``ValueError`` or ``TypeError`` for arguments that fit no input. As those of the functions, the
messages name the layer and the argument.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpuconv import functional as F
from gpuconv.autograd import to_array
from gpuconv.dtypes import float_type
from gpuconv.geometry import (
    IntOrPair,
    PaddingLike,
    conv_padding,
    effective,
    flag,
    immutable,
    integer,
    one_of,
    pair,
    pool_divisor,
    pool_window,
    pool_window_1d,
    sides_1d,
    single,
    triple,
)
from gpuconv.nn import init
from gpuconv.nn.module import Calling, Module, Parameter

__all__ = [
    "AvgPool2d",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "CrossEntropyLoss",
    "Dropout",
    "Flatten",
    "Linear",
    "LogSoftmax",
    "MSELoss",
    "MaxPool1d",
    "MaxPool2d",
    "ReLU",
    "Sigmoid",
    "Softmax",
    "SumPool2d",
    "Tanh",
]


class _Weighted(Module):
    """A layer each of whose outputs is a sum over weights of its own filter or row, and a bias."""

    weight: Parameter
    bias: Parameter | None

    def connections(self, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> int:
        return math.prod(output_shape) * (math.prod(self.weight.shape[1:]) + (self.bias is not None))


def _default_parameters(layer: _Weighted, shape: tuple[int, ...], outputs: int, bias: Any, dtype: Any) -> None:
    """Give a layer weight and bias, both uniform in ``± 1 / sqrt(fan_in)``, which is PyTorch's default."""
    op = type(layer).__name__
    bias = bias is not None and flag(bias, "bias", op=op)  # PyTorch accepts None too
    dtype = float_type(dtype, op)
    layer.weight = Parameter(init.empty(shape, dtype))
    bound = 1 / math.sqrt(math.prod(shape[1:]))
    init.uniform_(layer.weight, -bound, bound)
    layer.bias = Parameter(init.empty(outputs, dtype)) if bias else None
    if layer.bias is not None:
        init.uniform_(layer.bias, -bound, bound)


class _ConvNd(_Weighted):
    #: Whether the weight's first dimension are the input's channels.
    transposed = False

    stride: Any
    padding: Any
    dilation: Any
    #: 'zeros', or another mode of `functional.pad`, and by how much that pads, from the last dimension to the first.
    padding_mode = "zeros"
    _amounts: tuple[int, ...] = ()

    def __init__(
        self, in_channels: int, out_channels: int, kernel: tuple[int, ...], groups: int, bias: bool, dtype: Any
    ):
        super().__init__()
        op = type(self).__name__
        self.in_channels = integer(in_channels, "in_channels", minimum=1, op=op)
        self.out_channels = integer(out_channels, "out_channels", minimum=1, op=op)
        self.groups = integer(groups, "groups", minimum=1, op=op)
        for name in ("in_channels", "out_channels"):
            if getattr(self, name) % self.groups:
                raise ValueError(f"{op}: groups={self.groups} does not divide {name}={getattr(self, name)}")
        self.kernel_size = kernel
        first, second = self.out_channels, self.in_channels
        first, second = (second, first) if self.transposed else (first, second)
        _default_parameters(self, (first, second // self.groups, *kernel), self.out_channels, bias, dtype)

    def connections(self, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> int:
        if not self.transposed:
            return super().connections(input_shape, output_shape)
        # Each input element takes a whole filter, each output element the bias.
        biases = math.prod(output_shape) if self.bias is not None else 0
        return math.prod(input_shape) * math.prod(self.weight.shape[1:]) + biases

    def _pad_by(self, mode: Any, sides: Sequence[tuple[int, int]]) -> None:
        """Check the mode of padding; ``sides`` are before and behind each dimension."""
        self.padding_mode = one_of(
            mode, "padding_mode", ("zeros", "reflect", "replicate", "circular"), op=type(self).__name__
        )
        if mode != "zeros":
            self._amounts = tuple(size for pair_of in reversed(sides) for size in pair_of)

    def _padded(self, input: Any) -> tuple[Any, Any]:
        """The input, and how much the convolution pads it with zeros."""
        if self.padding_mode == "zeros":
            return input, self.padding
        return F.pad(input, self._amounts, self.padding_mode), 0

    def extra_repr(self) -> str:
        shown = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        for name, default in (("padding", 0), ("output_padding", 0), ("dilation", 1)):
            value = getattr(self, name, default)
            if value != default and set(value if isinstance(value, tuple) else (value,)) != {default}:
                shown += f", {name}={value}"
        shown += f", groups={self.groups}" if self.groups > 1 else ""
        shown += "" if self.bias is not None else ", bias=False"
        return shown + (f", padding_mode={self.padding_mode}" if self.padding_mode != "zeros" else "")


class Conv2d(_ConvNd):
    """2-D convolution with learned filters; see :func:`gpuconv.functional.conv2d` for the arguments.

    Attributes:
        weight: (out_channels, in_channels / groups, R, S).
        bias: (out_channels,) or None.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrPair,
        stride: IntOrPair = 1,
        padding: PaddingLike = 0,
        dilation: IntOrPair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        dtype: Any = np.float32,
    ):
        kernel = pair(kernel_size, "kernel_size", minimum=1, op="Conv2d")
        strides = pair(stride, "stride", minimum=1, op="Conv2d")
        dilations = pair(dilation, "dilation", minimum=1, op="Conv2d")
        extent = effective(kernel[0], dilations[0]), effective(kernel[1], dilations[1])
        sides = conv_padding(padding, strides, extent, op="Conv2d")
        super().__init__(in_channels, out_channels, kernel, groups, bias, dtype)
        self.stride, self.padding, self.dilation = strides, immutable(padding), dilations
        self._pad_by(padding_mode, sides)

    def arguments(self) -> tuple[Any, ...]:
        """The arguments of ``functional.conv2d`` after the input."""
        return self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups

    def forward(self, input: Any) -> Any:
        input, padding = self._padded(input)
        return F.conv2d(input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)


class Conv1d(_ConvNd):
    """1-D convolution with learned filters; see :func:`gpuconv.functional.conv1d` for the arguments."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: Any = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        dtype: Any = np.float32,
    ):
        kernel = single(kernel_size, "kernel_size", minimum=1, op="Conv1d")
        step = single(stride, "stride", minimum=1, op="Conv1d")
        spread = single(dilation, "dilation", minimum=1, op="Conv1d")
        sides = conv_padding(sides_1d(padding, op="Conv1d"), (1, step), (1, effective(kernel, spread)), op="Conv1d")
        super().__init__(in_channels, out_channels, (kernel,), groups, bias, dtype)
        self.stride, self.padding, self.dilation = step, immutable(padding), spread
        self._pad_by(padding_mode, sides[1:])

    def forward(self, input: Any) -> Any:
        input, padding = self._padded(input)
        return F.conv1d(input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)


class Conv3d(_ConvNd):
    """3-D convolution with learned filters; see :func:`gpuconv.functional.conv3d` for the arguments."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        dtype: Any = np.float32,
    ):
        op = "Conv3d"
        kernel = triple(kernel_size, "kernel_size", minimum=1, op=op)
        strides = triple(stride, "stride", minimum=1, op=op)
        dilations = triple(dilation, "dilation", minimum=1, op=op)
        if isinstance(padding, str):
            sides = [
                conv_padding(padding, (1 if max(strides) == 1 else 2, 1), (effective(size, spread), 1), op=op)[0]
                for size, spread in zip(kernel, dilations, strict=True)
            ]
        else:
            sides = [(size, size) for size in triple(padding, "padding", minimum=0, op=op)]
        super().__init__(in_channels, out_channels, kernel, groups, bias, dtype)
        self.stride, self.padding, self.dilation = strides, immutable(padding), dilations
        self._pad_by(padding_mode, sides)

    def forward(self, input: Any) -> Any:
        input, padding = self._padded(input)
        return F.conv3d(input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)


class Linear(_Weighted):
    """Fully connected layer, ``input · weightᵀ + bias``.

    Attributes:
        weight: (out_features, in_features).
        bias: (out_features,) or None.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, *, dtype: Any = np.float32):
        super().__init__()
        self.in_features = integer(in_features, "in_features", minimum=1, op="Linear")
        self.out_features = integer(out_features, "out_features", minimum=1, op="Linear")
        _default_parameters(self, (self.out_features, self.in_features), self.out_features, bias, dtype)

    def forward(self, input: Any) -> Any:
        return F.linear(input, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}" + (", bias=False" if self.bias is None else "")


class _Pool(Calling):
    """Checks its arguments as the function does; what is no size is an option, which the function takes by name."""

    _in_repr = ("kernel_size", "stride", "padding")

    def __init__(self, kernel_size: Any, stride: Any, padding: Any, **options: Any):
        super().__init__()
        op = type(self).__name__
        self._check(op, kernel_size, stride, padding, options.get("dilation", 1))
        for name in ("ceil_mode", "return_indices", "count_include_pad"):
            if name in options:
                options[name] = flag(options[name], name, op=op)
        if "dilation" in options:
            options["dilation"] = immutable(options["dilation"])
        if "divisor_override" in options:
            options["divisor_override"] = pool_divisor(options["divisor_override"], op=op)
        self.kernel_size = immutable(kernel_size)
        self.stride = self.kernel_size if stride is None else immutable(stride)
        self.padding, self.options = immutable(padding), options

    def _check(self, op: str, kernel_size: Any, stride: Any, padding: Any, dilation: Any) -> None:
        window = kernel_size, stride, padding
        if op.endswith("1d"):
            window = pool_window_1d(*window, op=op)
            dilation = 1, single(dilation, "dilation", minimum=1, op=op)
        pool_window(*window, dilation, op=op)

    def forward(self, input: Any) -> Any:
        return type(self).function(input, self.kernel_size, self.stride, self.padding, **self.options)


class _MaxPool(_Pool):
    def __init__(
        self,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
    ):
        options = {"dilation": dilation, "ceil_mode": ceil_mode, "return_indices": return_indices}
        super().__init__(kernel_size, stride, padding, **options)


class _AvgPool(_Pool):
    def __init__(
        self,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ):
        options = {"ceil_mode": ceil_mode, "count_include_pad": count_include_pad, "divisor_override": divisor_override}
        super().__init__(kernel_size, stride, padding, **options)


class MaxPool2d(_MaxPool, function=F.max_pool2d):
    """Max pooling; see :func:`gpuconv.functional.max_pool2d`."""


class MaxPool1d(_MaxPool, function=F.max_pool1d):
    """Max pooling over one dimension; see :func:`gpuconv.functional.max_pool1d`."""


class AvgPool2d(_AvgPool, function=F.avg_pool2d):
    """Average pooling; see :func:`gpuconv.functional.avg_pool2d`."""


class SumPool2d(_Pool, function=F.sum_pool2d):
    """Sum pooling; see :func:`gpuconv.functional.sum_pool2d`."""

    def __init__(self, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False):
        super().__init__(kernel_size, stride, padding, ceil_mode=ceil_mode)


def _dimension(dim: Any, name: str, op: str) -> int:
    """A dimension's number, counted from the front or, below 0, from the back; the input decides if it exists."""
    return integer(dim, name, minimum=-(2**31), op=op)


class Flatten(Module):
    """Merge dimensions into one; by default all but the batch."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1):
        super().__init__()
        self.start_dim = _dimension(start_dim, "start_dim", "Flatten")
        self.end_dim = _dimension(end_dim, "end_dim", "Flatten")
        # Counted from the same end, they have an order in any input.
        if (self.start_dim < 0) == (self.end_dim < 0) and self.start_dim > self.end_dim:
            raise ValueError(f"Flatten: start_dim={self.start_dim} comes after end_dim={self.end_dim}")

    def forward(self, input: Any) -> Any:
        return F.flatten(input, self.start_dim, self.end_dim)


class ReLU(Module):
    """``max(x, 0)``. ``inplace=True`` gives the same result; the input's memory is not reused."""

    def __init__(self, inplace: bool = False):
        super().__init__()
        self.inplace = bool(inplace)

    def forward(self, input: Any) -> Any:
        return F.relu(input)

    def extra_repr(self) -> str:
        return "inplace=True" if self.inplace else ""


class Sigmoid(Module):
    """``1 / (1 + e^-x)``."""

    def forward(self, input: Any) -> Any:
        return F.sigmoid(input)


class Tanh(Module):
    """Hyperbolic tangent."""

    def forward(self, input: Any) -> Any:
        return F.tanh(input)


class Softmax(Module):
    """Softmax along ``dim``."""

    def __init__(self, dim: int = -1):
        super().__init__()
        self.dim = _dimension(dim, "dim", "Softmax")

    def forward(self, input: Any) -> Any:
        return F.softmax(input, self.dim)


class LogSoftmax(Module):
    """Logarithm of softmax along ``dim``."""

    def __init__(self, dim: int = -1):
        super().__init__()
        self.dim = _dimension(dim, "dim", "LogSoftmax")

    def forward(self, input: Any) -> Any:
        return F.log_softmax(input, self.dim)


class Dropout(Module):
    """Drop elements with probability ``p`` while training.

    ``inplace=True`` gives the same result; the input's memory is not reused.
    """

    _in_repr = ("p",)

    def __init__(self, p: float = 0.5, inplace: bool = False):
        super().__init__()
        self.inplace = bool(inplace)
        self.p = F.share("Dropout", "p", p)

    def forward(self, input: Any) -> Any:
        return F.dropout(input, self.p, self.training)


class CrossEntropyLoss(Module):
    """Cross-entropy; see :func:`gpuconv.functional.cross_entropy`."""

    def __init__(
        self,
        weight: Any = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ):
        super().__init__()
        op = "CrossEntropyLoss"
        if weight is not None:
            try:
                shape = to_array(weight).shape
            except TypeError as error:
                raise TypeError(f"{op}: weight: {error}") from None
            if len(shape) != 1:
                raise ValueError(f"{op}: weight must have shape (C,), one value a class, got {tuple(shape)}")
        self.class_weight = weight
        self.ignore_index = integer(ignore_index, "ignore_index", minimum=-(2**63), op=op)
        self.reduction = one_of(reduction, "reduction", F.REDUCTIONS, op=op)
        self.label_smoothing = F.share(op, "label_smoothing", label_smoothing)

    def forward(self, input: Any, target: Any) -> Any:
        return F.cross_entropy(
            input, target, self.class_weight, self.ignore_index, self.reduction, self.label_smoothing
        )


class MSELoss(Module):
    """Squared error; see :func:`gpuconv.functional.mse_loss`."""

    def __init__(self, reduction: str = "mean"):
        super().__init__()
        self.reduction = one_of(reduction, "reduction", F.REDUCTIONS, op="MSELoss")

    def forward(self, input: Any, target: Any) -> Any:
        return F.mse_loss(input, target, self.reduction)
