"""Convolution, pooling, activations and losses as functions, with torch.nn.functional's names, arguments and semantics.

A Tensor in gives a Tensor out, with gradients; an array in gives an array of the same kind out (CuPy and torch arrays
share their memory). Layouts are PyTorch's: images are (N, C, H, W), or (C, H, W) for one; filters (K, C / groups, R,
S).

Every function raises ``ValueError`` for a shape or value that does not fit, and ``TypeError`` for an argument of the
wrong kind. The message begins with the function's name and names the argument. ``inplace`` and complex numbers are not
supported.

Functions with only a few lines of argument checks are defined in ``gpuconv.ops`` and exported here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, overload

import numpy as np

from gpuconv.autograd import Function, tensor_method
from gpuconv.dtypes import float_type, kind_of
from gpuconv.geometry import (
    BlockGeometry,
    BlockPairGeometry,
    Conv2dGeometry,
    IntOrPair,
    PaddingLike,
    Pool2dGeometry,
    flag,
    integer,
    one_of,
    pool_divisor,
    pool_window_1d,
    sides_1d,
    single,
)
from gpuconv.ops import activation as _activation
from gpuconv.ops import conv as _conv
from gpuconv.ops import linear as _linear
from gpuconv.ops import loss as _loss
from gpuconv.ops import pool as _pool
from gpuconv.ops import shape as _shape_ops
from gpuconv.ops.adaptive import (
    adaptive_avg_pool1d,
    adaptive_avg_pool2d,
    adaptive_avg_pool3d,
    adaptive_max_pool1d,
    adaptive_max_pool2d,
    adaptive_max_pool3d,
)
from gpuconv.ops.arithmetic import add, cast, mul, sum
from gpuconv.ops.checks import REDUCTIONS, share
from gpuconv.ops.checks import element_type as _element_type
from gpuconv.ops.checks import floats as _floats
from gpuconv.ops.checks import operand as _operand
from gpuconv.ops.checks import shape_of as _shape
from gpuconv.ops.criteria import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    cosine_embedding_loss,
    cosine_similarity,
    gaussian_nll_loss,
    hinge_embedding_loss,
    huber_loss,
    kl_div,
    l1_loss,
    margin_ranking_loss,
    nll_loss,
    pairwise_distance,
    poisson_nll_loss,
    smooth_l1_loss,
    soft_margin_loss,
    triplet_margin_loss,
)
from gpuconv.ops.dropout import _factors, alpha_dropout, dropout1d, dropout2d, dropout3d, feature_alpha_dropout
from gpuconv.ops.layout import batched as _batched
from gpuconv.ops.layout import unbatched as _unbatched
from gpuconv.ops.layout import with_height as _with_height
from gpuconv.ops.layout import without_height as _without_height
from gpuconv.ops.nonlinear import (
    celu,
    elu,
    gelu,
    glu,
    hardshrink,
    hardsigmoid,
    hardswish,
    hardtanh,
    leaky_relu,
    logsigmoid,
    mish,
    prelu,
    relu6,
    selu,
    silu,
    softmin,
    softplus,
    softshrink,
    softsign,
    tanhshrink,
    threshold,
)
from gpuconv.ops.normalization import (
    batch_norm,
    batch_norm_relu,
    group_norm,
    instance_norm,
    layer_norm,
    local_response_norm,
    normalize,
    rms_norm,
)
from gpuconv.ops.padding import pad
from gpuconv.ops.picking import one_hot
from gpuconv.ops.rearrange import unflatten as unflatten
from gpuconv.ops.sampling import affine_grid, grid_sample
from gpuconv.ops.shape import dimension, permute, reshape
from gpuconv.ops.transposed import conv_transpose1d, conv_transpose2d
from gpuconv.ops.unpooling import lp_pool1d, lp_pool2d, max_unpool1d, max_unpool2d
from gpuconv.ops.unpooling import power_of as power_of
from gpuconv.ops.volumes import avg_pool3d, conv3d, conv_transpose3d, lp_pool3d, max_pool3d, max_unpool3d
from gpuconv.ops.windows import channel_shuffle, fold, interpolate, pixel_shuffle, pixel_unshuffle, unfold, upsample
from gpuconv.random import default_generator

__all__ = [
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
    "affine_grid",
    "alpha_dropout",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "batch_norm",
    "batch_norm_relu",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "celu",
    "channel_shuffle",
    "conv1d",
    "conv2d",
    "conv2d_relu",
    "conv2d_relu_max_pool2d",
    "conv2d_relu_max_pool2d_pair",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "cosine_embedding_loss",
    "cosine_similarity",
    "cross_entropy",
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "elu",
    "feature_alpha_dropout",
    "flatten",
    "fold",
    "gaussian_nll_loss",
    "gelu",
    "glu",
    "grid_sample",
    "group_norm",
    "half_squared_error",
    "hardshrink",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "hinge_embedding_loss",
    "huber_loss",
    "instance_norm",
    "interpolate",
    "kl_div",
    "l1_loss",
    "layer_norm",
    "leaky_relu",
    "linear",
    "linear_chain",
    "linear_relu",
    "local_response_norm",
    "log_softmax",
    "logsigmoid",
    "lp_pool1d",
    "lp_pool2d",
    "lp_pool3d",
    "margin_ranking_loss",
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
    "max_unpool1d",
    "max_unpool2d",
    "max_unpool3d",
    "mish",
    "mse_loss",
    "nll_loss",
    "normalize",
    "one_hot",
    "pad",
    "pairwise_distance",
    "pixel_shuffle",
    "pixel_unshuffle",
    "poisson_nll_loss",
    "prelu",
    "relu",
    "relu6",
    "rms_norm",
    "selu",
    "sigmoid",
    "silu",
    "smooth_l1_loss",
    "soft_margin_loss",
    "softmax",
    "softmin",
    "softplus",
    "softshrink",
    "softsign",
    "sum_pool2d",
    "tanh",
    "tanhshrink",
    "threshold",
    "triplet_margin_loss",
    "unfold",
    "upsample",
]


#: What comes in is what comes out: a Tensor, or an array of some library.
T = TypeVar("T")

# -- convolution -----------------------------------------------------------------------------------------------------


def _conv2d_geometry(
    op: str, input: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: Any
) -> Conv2dGeometry:
    return Conv2dGeometry.of(
        _shape(input),
        _shape(weight),
        bias_shape=None if bias is None else _shape(bias),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        op=op,
    )


def conv2d(
    input: T,
    weight: Any,
    bias: Any = None,
    stride: IntOrPair = 1,
    padding: PaddingLike = 0,
    dilation: IntOrPair = 1,
    groups: int = 1,
) -> T:
    """2-D convolution, in the sense of neural networks: cross-correlation, the filter is not flipped.

    ``y[n,k,p,q] = bias[k] + Σ input[n, c, p·stride + r·dilation - padding, q·stride + s·dilation - padding] ·
    weight[k,c,r,s]``, the sum running over the channels c of filter k's group and its rows and columns r, s.

    Args:
        input: (N, C, H, W) or (C, H, W), float32 or float64.
        weight: (K, C / groups, R, S), same type.
        bias: (K,), same type, or None.
        stride: int or (height, width).
        padding: zeros around the input: int; (height, width); ((top, bottom), (left, right)); 'valid', none; 'same',
            as many as keep the size (stride 1; the odd one of an even kernel at the bottom and right).
        dilation: distance of a filter's taps, int or (height, width).
        groups: channels and filters are cut into so many groups, each convolved on its own.

    Returns:
        (N, K, P, Q), or (K, P, Q), with ``P = floor((H + padding - dilation · (R - 1) - 1) / stride) + 1``.

    Raises:
        ValueError: a shape or value does not fit.
        TypeError: an argument of the wrong kind, or element types that differ.
    """
    input, weight, bias = _floats("conv2d", input=input, weight=weight, bias=bias, optional=("bias",))
    input, alone = _batched("conv2d", input, "NCHW")
    geometry = _conv2d_geometry("conv2d", input, weight, bias, stride, padding, dilation, groups)
    return _unbatched(_conv.Conv2d.apply(input, weight, bias, geometry=geometry), alone)


def conv1d(
    input: T,
    weight: Any,
    bias: Any = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] | tuple[tuple[int, int]] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> T:
    """1-D convolution: input (N, C, L) or (C, L), weight (K, C / groups, S); otherwise as :func:`conv2d`.

    ``padding`` is an int, ``((left, right),)``, 'valid' or 'same'.
    """
    op = "conv1d"
    input, weight, bias = _floats(op, input=input, weight=weight, bias=bias, optional=("bias",))
    input, alone = _batched(op, input, "NCL")
    if len(_shape(weight)) != 3:
        raise ValueError(f"{op}: weight must have 3 dimensions (K, C, S), got shape {_shape(weight)}")
    input, weight = _with_height(input), _with_height(weight)
    stride, dilation = (
        (1, single(value, name, minimum=1, op=op)) for value, name in ((stride, "stride"), (dilation, "dilation"))
    )
    geometry = _conv2d_geometry(op, input, weight, bias, stride, sides_1d(padding, op=op), dilation, groups)
    output = _conv.Conv2d.apply(input, weight, bias, geometry=geometry)
    return _unbatched(_without_height(output), alone)


def conv2d_relu(
    input: T,
    weight: Any,
    bias: Any = None,
    stride: IntOrPair = 1,
    padding: PaddingLike = 0,
    dilation: IntOrPair = 1,
    groups: int = 1,
) -> T:
    """``relu(conv2d(...))`` in one step; arguments and errors of :func:`conv2d`."""
    op = "conv2d_relu"
    input, weight, bias = _floats(op, input=input, weight=weight, bias=bias, optional=("bias",))
    input, alone = _batched(op, input, "NCHW")
    geometry = _conv2d_geometry(op, input, weight, bias, stride, padding, dilation, groups)
    return _unbatched(_conv.Conv2dReLU.apply(input, weight, bias, geometry=geometry), alone)


def conv2d_relu_max_pool2d(
    input: T,
    weight: Any,
    bias: Any = None,
    stride: IntOrPair = 1,
    padding: PaddingLike = 0,
    dilation: IntOrPair = 1,
    groups: int = 1,
    *,
    kernel_size: IntOrPair,
    pool_stride: IntOrPair | None = None,
    pool_padding: PaddingLike = 0,
    pool_dilation: IntOrPair = 1,
    ceil_mode: bool = False,
) -> T:
    """``max_pool2d(relu(conv2d(...)), kernel_size, pool_stride, ...)`` in one step.

    It does not keep the maps before pooling, which would be most of the memory. ``nn.Sequential`` calls it
    automatically. Arguments and errors are those of :func:`conv2d` and :func:`max_pool2d`.
    """
    op = "conv2d_relu_max_pool2d"
    options = kernel_size, pool_stride, pool_padding, pool_dilation, ceil_mode
    input, weight, bias = _floats(op, input=input, weight=weight, bias=bias, optional=("bias",))
    input, alone = _batched(op, input, "NCHW")
    block = _block_geometry(op, input, weight, bias, (stride, padding, dilation, groups), *options)
    result = _conv.Conv2dReLUMaxPool2d.apply(input, weight, bias, geometry=block.conv, pool=block.pool)
    return _unbatched(result, alone)


def _block_geometry(
    op: str,
    input: Any,
    weight: Any,
    bias: Any,
    convolution: tuple[Any, ...],
    kernel_size: Any,
    pool_stride: Any = None,
    pool_padding: Any = 0,
    pool_dilation: Any = 1,
    ceil_mode: Any = False,
) -> BlockGeometry:
    conv = _conv2d_geometry(op, input, weight, bias, *convolution)
    options = {"stride": pool_stride, "padding": pool_padding, "dilation": pool_dilation, "ceil_mode": ceil_mode}
    return BlockGeometry(conv, Pool2dGeometry.of(conv.output_shape, kernel_size, **options, op=op))


def conv2d_relu_max_pool2d_pair(input: T, first: Mapping[str, Any], second: Mapping[str, Any]) -> T:
    """Two of :func:`conv2d_relu_max_pool2d` in a row, in one step; ``nn.Sequential`` calls it automatically.

    Args:
        input: (n, c, h, w) or (c, h, w).
        first, second: the other arguments of each, by name: ``weight``, ``kernel_size``, and so on.

    Errors are those of :func:`conv2d_relu_max_pool2d`.
    """
    op = "conv2d_relu_max_pool2d_pair"
    parameters: list[Any] = []
    blocks: list[BlockGeometry] = []
    before: Any = input
    alone = False
    for arguments in (first, second):
        rest = {**arguments}
        weight, bias = rest.pop("weight"), rest.pop("bias", None)
        before, weight, bias = _floats(op, input=before, weight=weight, bias=bias, optional=("bias",))
        if not blocks:
            before, alone = _batched(op, before, "NCHW")
            parameters.append(before)
        usual = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
        convolution = tuple(rest.pop(name, value) for name, value in usual.items())
        blocks.append(_block_geometry(op, before, weight, bias, convolution, **rest))
        parameters += [weight, bias]
        # A placeholder for the block's result, with its shape and dtype, to check the next one with.
        before = np.broadcast_to(np.zeros((), _element_type(weight)), blocks[-1].pool.output_shape)
    return _unbatched(_conv.Conv2dReLUMaxPool2dPair.apply(*parameters, geometry=BlockPairGeometry(*blocks)), alone)


# -- pooling ---------------------------------------------------------------------------------------------------------


@overload
def max_pool2d(
    input: T,
    kernel_size: IntOrPair,
    stride: IntOrPair | None = None,
    padding: PaddingLike = 0,
    dilation: IntOrPair = 1,
    ceil_mode: bool = False,
    return_indices: Literal[False] = False,
) -> T: ...
@overload
def max_pool2d(
    input: T,
    kernel_size: IntOrPair,
    stride: IntOrPair | None = None,
    padding: PaddingLike = 0,
    dilation: IntOrPair = 1,
    ceil_mode: bool = False,
    *,
    return_indices: bool,
) -> Any: ...
def max_pool2d(
    input: Any,
    kernel_size: IntOrPair,
    stride: IntOrPair | None = None,
    padding: PaddingLike = 0,
    dilation: IntOrPair = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """Maximum of each window of (N, C, H, W) or (C, H, W).

    The gradient goes to the first maximum of a window. A NaN in a window makes its result NaN.

    Args:
        input: floats, or integers of at most 32 bits, which have no gradient.
        kernel_size: size of the window, int or (height, width).
        stride: distance of windows; None means ``kernel_size``.
        padding: around the input, at most half the window; it is never the maximum.
        dilation: distance of a window's elements.
        ceil_mode: round the output size up: the last window may hang over the edge.
        return_indices: also return where each maximum was, ``row · W + column``, int64.

    Returns:
        (N, C, P, Q), or that and the indices.

    Raises:
        ValueError: a shape or value does not fit.
        TypeError: an argument of the wrong kind.
    """
    options = {"stride": stride, "padding": padding, "dilation": dilation, "ceil_mode": ceil_mode}
    return _max_pool("max_pool2d", input, kernel_size, options, return_indices)


def _max_pool(op: str, input: Any, kernel_size: Any, options: dict[str, Any], return_indices: bool) -> Any:
    input = _operand(op, "input", input)
    dtype = _element_type(input)
    if op != "max_pool2d" or dtype.kind not in "iu" or dtype.itemsize > 4:  # those are PyTorch's exceptions
        (input,) = _floats(op, input=input)
    input, alone = _batched(op, input, "NCHW")
    geometry = Pool2dGeometry.of(_shape(input), kernel_size, **options, op=op)
    return_indices = flag(return_indices, "return_indices", op=op)
    return _unbatched(_pool.MaxPool2d.apply(input, geometry=geometry, return_indices=return_indices), alone)


def avg_pool2d(
    input: T,
    kernel_size: IntOrPair,
    stride: IntOrPair | None = None,
    padding: PaddingLike = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> T:
    """Average of each window of (N, C, H, W) or (C, H, W).

    Args:
        input: floats.
        kernel_size, stride, padding, ceil_mode: as for :func:`max_pool2d`.
        count_include_pad: whether padding zeros count as elements.
        divisor_override: divide every window's sum by this instead.

    Returns:
        (N, C, P, Q).

    Raises:
        ValueError: a shape or value does not fit.
        TypeError: an argument of the wrong kind.
    """
    options = {"stride": stride, "padding": padding, "ceil_mode": ceil_mode}
    return _avg_pool("avg_pool2d", input, kernel_size, options, count_include_pad, divisor_override)


def _avg_pool(
    op: str,
    input: Any,
    kernel_size: Any,
    options: dict[str, Any],
    count_include_pad: bool,
    divisor_override: int | None,
) -> Any:
    (input,) = _floats(op, input=input)
    input, alone = _batched(op, input, "NCHW")
    geometry = Pool2dGeometry.of(_shape(input), kernel_size, **options, op=op)
    output = _pool.AvgPool2d.apply(
        input,
        geometry=geometry,
        count_include_pad=flag(count_include_pad, "count_include_pad", op=op),
        divisor_override=pool_divisor(divisor_override, op=op),
    )
    return _unbatched(output, alone)


def sum_pool2d(
    input: T,
    kernel_size: IntOrPair,
    stride: IntOrPair | None = None,
    padding: PaddingLike = 0,
    ceil_mode: bool = False,
) -> T:
    """Sum of each window; arguments and errors of :func:`avg_pool2d`."""
    options = {"stride": stride, "padding": padding, "ceil_mode": ceil_mode}
    return _avg_pool("sum_pool2d", input, kernel_size, options, True, 1)


def max_pool1d(
    input: Any,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """Maximum of each window of (N, C, L) or (C, L); otherwise as :func:`max_pool2d`."""
    op = "max_pool1d"
    input, kernel, stride, sides = _pool_1d(op, input, kernel_size, stride, padding)
    dilation = (1, single(dilation, "dilation", minimum=1, op=op))
    options = {"stride": stride, "padding": sides, "dilation": dilation, "ceil_mode": ceil_mode}
    return _without_height(_max_pool(op, input, kernel, options, return_indices))


def avg_pool1d(
    input: T,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> T:
    """Average of each window of (N, C, L) or (C, L); otherwise as :func:`avg_pool2d`."""
    op = "avg_pool1d"
    input, kernel, stride, sides = _pool_1d(op, input, kernel_size, stride, padding)
    options = {"stride": stride, "padding": sides, "ceil_mode": ceil_mode}
    return _without_height(_avg_pool(op, input, kernel, options, count_include_pad, None))


def _pool_1d(op: str, input: Any, kernel_size: Any, stride: Any, padding: Any) -> tuple[Any, Any, Any, Any]:
    (input,) = _floats(op, input=input)
    if len(_shape(input)) not in (2, 3):
        raise ValueError(
            f"{op}: input must have 3 dimensions (N, C, L), or 2 without the batch, got shape {_shape(input)}"
        )
    return _with_height(input), *pool_window_1d(kernel_size, stride, padding, op=op)


# -- activations -----------------------------------------------------------------------------------------------------


def relu(input: T) -> T:
    """``max(input, 0)``; the gradient at 0 is 0, and NaN stays NaN."""
    return _activation.ReLU.apply(*_floats("relu", input=input))


def sigmoid(input: T) -> T:
    """``1 / (1 + e^-input)``."""
    return _activation.Sigmoid.apply(*_floats("sigmoid", input=input))


def tanh(input: T) -> T:
    """Hyperbolic tangent."""
    return _activation.Tanh.apply(*_floats("tanh", input=input))


def softmax(input: T, dim: int, *, dtype: Any = None) -> T:
    """``e^input / Σ e^input`` along ``dim``: positive, with sum 1.

    The input is converted to ``dtype``, a float type, first, if that is given. IndexError: no such dimension.
    """
    return _along(_activation.Softmax, "softmax", input, dim, dtype)


def log_softmax(input: T, dim: int, *, dtype: Any = None) -> T:
    """Logarithm of :func:`softmax`, without overflow or cancellation; arguments and errors as there."""
    return _along(_activation.LogSoftmax, "log_softmax", input, dim, dtype)


def _along(function: type[Function], op: str, input: Any, dim: int, dtype: Any) -> Any:
    if dtype is not None:
        input = cast(_operand(op, "input", input), float_type(dtype, op))
    (input,) = _floats(op, input=input)
    shape = _shape(input)
    dim = dimension(dim, len(shape), op)
    # A single number counts as one class, as in PyTorch.
    return function.apply(input, dim=dim) if shape else reshape(function.apply(reshape(input, (1,)), dim=dim), ())


def dropout(input: T, p: float = 0.5, training: bool = True, *, generator: np.random.Generator | None = None) -> T:
    """Set elements to zero with probability ``p`` and scale the others by ``1 / (1 - p)``; only if ``training``.

    Args:
        input: floats of any shape.
        p: from 0 to 1.
        training: if False, the input is returned unchanged.
        generator: of the random numbers; by default the one that ``gpuconv.manual_seed`` sets. They are drawn on the
            host, so that every backend drops the same elements.

    Raises:
        ValueError: p is out of range.
    """
    p = share("dropout", "p", p)
    (input,) = _floats("dropout", input=input)
    if not training or p == 0 or 0 in _shape(input):
        return input
    if generator is not None and not isinstance(generator, np.random.Generator):
        raise TypeError(f"dropout: generator must be a numpy.random.Generator, got {type(generator).__name__}")
    return _activation.Dropout.apply(input, _factors(generator or default_generator(), _shape(input), p, input))


def flatten(input: T, start_dim: int = 0, end_dim: int = -1) -> T:
    """Merge the dimensions from ``start_dim`` to ``end_dim``, both included, into one.

    Raises:
        IndexError: a dimension that the input does not have.
        ValueError: ``start_dim`` comes after ``end_dim``.
        TypeError: an argument of the wrong kind.
    """
    return _shape_ops.flatten(_operand("flatten", "input", input), start_dim, end_dim)


# -- fully connected -------------------------------------------------------------------------------------------------


def linear(input: T, weight: Any, bias: Any = None) -> T:
    """``input · weightᵀ + bias``.

    Args:
        input: (..., in_features).
        weight: (out_features, in_features).
        bias: (out_features,) or None.

    Returns:
        (..., out_features).

    Raises:
        ValueError: shapes that do not fit.
        TypeError: an argument of the wrong kind, or element types that differ.
    """
    return _linear.Linear.apply(*_linear_operands("linear", input, weight, bias))


def linear_relu(input: T, weight: Any, bias: Any = None) -> T:
    """``relu(linear(...))`` in one step; arguments and errors of :func:`linear`."""
    return _linear.LinearReLU.apply(*_linear_operands("linear_relu", input, weight, bias))


def linear_chain(input: Any, weights: Sequence[Any], biases: Sequence[Any], relu: Sequence[bool]) -> Any:
    """Several fully connected layers, one after the other, in one step; ``nn.Sequential`` calls it automatically.

    Args:
        input: (..., in).
        weights: for each layer (out, in), where in is the out of the layer before.
        biases: for each layer (out,) or None.
        relu: for each layer, whether a ReLU follows.

    Returns:
        (..., out of the last layer).

    Raises:
        ValueError: shapes that do not fit, or lists that are empty or of different lengths.
        TypeError: an argument of the wrong kind, or dtypes that differ.
    """
    return _linear.LinearChain.apply(*_chain_operands(input, weights, biases, relu), relu=tuple(map(bool, relu)))


def _chain_operands(input: Any, weights: Sequence[Any], biases: Sequence[Any], relu: Sequence[bool]) -> list[Any]:
    """Input, and weight and bias of each layer."""
    if not len(weights) == len(biases) == len(relu) or not len(weights):
        raise ValueError(
            f"linear_chain: weights, biases and relu must have one element a layer, got {len(weights)}, {len(biases)} "
            f"and {len(relu)}"
        )
    parameters: list[Any] = []
    features = input
    for number, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        if number and len(_shape(weight)) == 2 and _shape(weight)[1] != features.shape[1]:
            raise ValueError(
                f"linear_chain: weights[{number}] has {_shape(weight)[1]} input features, but the layer before it "
                f"gives {features.shape[1]}"
            )
        checked = _linear_operands("linear_chain", features, weight, bias)
        if not parameters:
            parameters.append(checked[0])
        parameters += checked[1:]
        # A placeholder for this layer's result, with its shape and dtype, to check the next layer with.
        features = np.empty((0, _shape(checked[1])[0]), _element_type(checked[1]))
    return parameters


def _linear_operands(op: str, input: Any, weight: Any, bias: Any) -> list[Any]:
    input, weight, bias = _floats(op, input=input, weight=weight, bias=bias, optional=("bias",))
    if len(_shape(weight)) != 2:
        raise ValueError(f"{op}: weight must have 2 dimensions (out, in), got shape {_shape(weight)}")
    outputs, features = _shape(weight)
    if not _shape(input) or _shape(input)[-1] != features:
        raise ValueError(f"{op}: weight has {features} input features, but input has shape {_shape(input)}")
    if bias is not None and _shape(bias) != (outputs,):
        raise ValueError(f"{op}: bias must have shape ({outputs},), got {_shape(bias)}")
    return [input, weight, bias]


# -- losses ----------------------------------------------------------------------------------------------------------


def cross_entropy(
    input: T,
    target: Any,
    weight: Any = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> T:
    """Cross-entropy of softmax(input) with class labels or class probabilities.

    With ``w`` the class weights and ``e`` the label smoothing, a label t costs ``-(1 - e) · w[t] · log p[t] - e/C · Σ
    w[j] · log p[j]``; probabilities q cost ``-Σ w[j] · ((1 - e) · q[j] + e/C) · log p[j]`` (Szegedy et al., 2016).

    Args:
        input: logits (N, C), (C,) for one sample, or (N, C, d1, ...), floats.
        target: labels (integers; the input's shape without C), or probabilities (floats; the input's shape).
        weight: (C,), or None for ones.
        ignore_index: a label whose loss is 0 and that does not count in the mean.
        reduction: 'mean' (labels: weighted by w[t]; probabilities: over all samples), 'sum' or 'none'.
        label_smoothing: from 0 to 1.

    Returns:
        A scalar, or with 'none' the shape of the input without C. The mean over nothing is NaN.

    Raises:
        ValueError: a shape does not fit, a label is not a class, an unknown reduction.
        TypeError: an argument of the wrong kind.
    """
    op = "cross_entropy"
    input, weight = _floats(op, input=input, weight=weight, optional=("weight",))
    target = _operand(op, "target", target)
    one_of(reduction, "reduction", REDUCTIONS, op=op)
    label_smoothing = share(op, "label_smoothing", label_smoothing)
    shape = _shape(input)
    if not shape:
        raise ValueError(f"{op}: input must have shape (N, C), (C,) or (N, C, d1, ...), got a single number")
    class_dim = 0 if len(shape) == 1 else 1
    classes = shape[class_dim]
    rest = shape[:class_dim] + shape[class_dim + 1 :]
    if classes == 0:
        raise ValueError(f"{op}: input has no classes, got shape {shape}")
    if weight is not None and _shape(weight) != (classes,):
        raise ValueError(f"{op}: weight must have shape ({classes},), one value a class, got {_shape(weight)}")
    ignore_index = integer(ignore_index, "ignore_index", minimum=-(2**63), op=op)
    rows = _classes_last(input, class_dim)
    if kind_of(_element_type(target)) == "f":
        if ignore_index >= 0:
            raise ValueError(f"{op}: ignore_index={ignore_index} names a label, but target holds probabilities")
        return _soft_cross_entropy(op, rows, target, weight, reduction, label_smoothing, shape, class_dim)
    if kind_of(_element_type(target)) not in "iu":
        raise TypeError(f"{op}: target must hold integer labels or float probabilities, got {_element_type(target)}")
    if _shape(target) != rest:
        raise ValueError(
            f"{op}: target must have shape {rest}, a label a sample, as input has {shape}; got {_shape(target)}"
        )
    losses = _loss.CrossEntropy.apply(
        rows,
        target if len(rest) == 1 else reshape(target, (-1,)),
        weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction=reduction,
    )
    return reshape(losses, rest) if reduction == "none" and len(rest) != 1 else losses


def _classes_last(values: Any, class_dim: int) -> Any:
    """(N, C, d1, ...) as (N · d1 · ..., C)."""
    shape = _shape(values)
    if len(shape) > 2:
        values = permute(values, (0, *range(2, len(shape)), 1))
    elif len(shape) == 2:
        return values
    return reshape(values, (math.prod(shape) // shape[class_dim], shape[class_dim]))


def _soft_cross_entropy(
    op: str,
    rows: Any,
    target: Any,
    weight: Any,
    reduction: str,
    label_smoothing: float,
    shape: tuple[int, ...],
    class_dim: int,
) -> Any:
    if _shape(target) != shape:
        raise ValueError(f"{op}: target probabilities must have the input's shape {shape}, got {_shape(target)}")
    if _element_type(target) != _element_type(rows):
        raise TypeError(
            f"{op}: target is {_element_type(target)} but input is {_element_type(rows)}; convert one of them"
        )
    q = _classes_last(target, class_dim)
    if label_smoothing:
        q = add(mul(q, 1 - label_smoothing), label_smoothing / shape[class_dim])
    costs = mul(mul(log_softmax(rows, 1), -1.0), q)
    if weight is not None:
        costs = mul(costs, weight)
    if reduction == "none":
        return reshape(sum(costs, 1), shape[:class_dim] + shape[class_dim + 1 :])
    total = sum(costs)
    if reduction == "sum":
        return total
    samples = math.prod(shape) // shape[class_dim]
    return mul(total, 1 / samples if samples else float("nan"))


def _squared_error(op: str, input: Any, target: Any, reduction: str, factor: float) -> Any:
    input, target = _floats(op, input=input, target=target)
    one_of(reduction, "reduction", REDUCTIONS, op=op)
    if _shape(input) != _shape(target):
        # PyTorch broadcasts here with a warning, because it is nearly always a mistake: (N,) against (N, 1).
        raise ValueError(f"{op}: target must have the input's shape {_shape(input)}, got {_shape(target)}")
    if reduction == "mean":
        count = math.prod(_shape(input))
        factor = factor / count if count else float("nan")
    return _loss.SquaredError.apply(input, target, scale=factor, summed=reduction != "none")


def mse_loss(input: T, target: Any, reduction: str = "mean") -> T:
    """``(input - target)²``, its mean or sum.

    Args:
        input, target: floats of one shape and type.
        reduction: 'mean', 'sum' or 'none'.

    Raises:
        ValueError: shapes that differ, an unknown reduction.
        TypeError: an argument of the wrong kind.
    """
    return _squared_error("mse_loss", input, target, reduction, 1.0)


def half_squared_error(input: T, target: Any, reduction: str = "sum") -> T:
    """``½ · Σ (target - output)²``, the total error of the textbooks; arguments of :func:`mse_loss`."""
    return _squared_error("half_squared_error", input, target, reduction, 0.5)


for _method in (relu, sigmoid, tanh, softmax, log_softmax):
    tensor_method(_method)
