"""How each operation of gpuconv is said in ONNX: a function a Function, by its name.

Each one takes the writer, what is known of shapes and types, the names of the inputs and the operation's options; it
returns the name of the result, or a tuple of several. What ONNX cannot say is a ValueError.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from gpuconv.dtypes import kind_of
from gpuconv.ops.rearrange import sliding

__all__ = ["EXPORTERS"]

EXPORTERS: dict[str, Callable[..., Any]] = {}

_NOT_THERE = 2**63 - 1  # as an end: all that there is


def exporter(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: what writes Functions of these names."""

    def register(write: Callable[..., Any]) -> Callable[..., Any]:
        EXPORTERS.update({name: write for name in names})
        return write

    return register


def _number(to: Any, value: Any, call: Any, position: int = 0) -> str:
    """A number as a constant of the type of an input."""
    return str(to.constant(value, call.inputs[position].dtype))


# -- element by element ------------------------------------------------------------------------------------------------

for _name, _op in {
    "ReLU": "Relu",
    "Sigmoid": "Sigmoid",
    "Tanh": "Tanh",
    "Exp": "Exp",
    "Log": "Log",
    "Abs": "Abs",
    "Sqrt": "Sqrt",
    "Reciprocal": "Reciprocal",
    "Sin": "Sin",
    "Cos": "Cos",
    "Tan": "Tan",
    "Asin": "Asin",
    "Acos": "Acos",
    "Atan": "Atan",
    "Erf": "Erf",
    "Mish": "Mish",
    "Softsign": "Softsign",
    "Hardswish": "HardSwish",
    "Clone": "Identity",
    "Add": "Add",
    "Sub": "Sub",
    "Mul": "Mul",
    "Div": "Div",
    "MatMul": "MatMul",
    "Where": "Where",
    "PReLU": "PRelu",
}.items():
    # The operator is bound where the function is made: the loop's variable changes.
    exporter(_name)(lambda to, call, *inputs, _op=_op, **options: to.node(_op, *inputs))


def _compared(to: Any, call: Any, op: str, *inputs: str) -> Any:
    """A comparison, whose operands need one type."""
    types = [operand.dtype for operand in call.inputs]
    wanted = np.result_type(*types)
    return to.node(op, *[x if t == wanted else _as_type(to, x, wanted) for x, t in zip(inputs, types, strict=True)])


for _name, _op in {
    "eq": "Equal",
    "lt": "Less",
    "le": "LessOrEqual",
    "gt": "Greater",
    "ge": "GreaterOrEqual",
}.items():
    exporter(_name)(lambda to, call, *inputs, _op=_op: _compared(to, call, _op, *inputs))


@exporter("ne")
def _ne(to: Any, call: Any, a: str, b: str) -> Any:
    return to.node("Not", _compared(to, call, "Equal", a, b))


@exporter("Bitwise")
def _bitwise(to: Any, call: Any, a: str, b: str, *, name: str) -> Any:
    kind = "" if call.inputs[0].dtype == bool else "Bitwise"
    return to.node(kind + {"and_": "And", "or_": "Or", "xor": "Xor"}[name], a, b)


@exporter("Cast")
def _cast(to: Any, call: Any, x: str, *, dtype: Any) -> Any:
    return _as_type(to, x, dtype)


def _as_type(to: Any, x: str, dtype: Any) -> Any:
    from onnx import helper

    return to.node("Cast", x, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


@exporter("Pow")
def _pow(to: Any, call: Any, x: str, *, exponent: Any) -> Any:
    return to.node("Pow", x, _number(to, exponent, call))


@exporter("Power")
def _power(to: Any, call: Any, a: str, b: str) -> Any:
    return to.node("Pow", a, b)


@exporter("Modulo")
def _modulo(to: Any, call: Any, a: str, b: str, *, name: str) -> Any:
    if name == "fmod" or kind_of(call.inputs[0].dtype) != "f":
        return to.node("Mod", a, b, fmod=int(name == "fmod"))
    rest, apart = _rest(to, call, a, b)
    return to.node("Where", apart, to.node("Add", rest, b), rest)


def _rest(to: Any, call: Any, a: str, b: str) -> tuple[Any, Any]:
    """Of floats, what is left of a division with the sign of a, and where that is not the sign of b."""
    rest, zero = to.node("Mod", a, b, fmod=1), _number(to, 0, call)
    differ = to.node("Xor", to.node("Less", b, zero), to.node("Less", rest, zero))
    return rest, to.node("And", to.node("Not", to.node("Equal", rest, zero)), differ)


@exporter("Quotient")
def _quotient(to: Any, call: Any, a: str, b: str, *, down: bool) -> Any:
    ratio = to.node("Div", a, b)  # which of integers is rounded towards 0
    if kind_of(call.inputs[0].dtype) != "f":
        return to.node("Div", to.node("Sub", a, to.node("Mod", a, b)), b) if down else ratio
    if not down:
        return _step(to, call, ratio, name="trunc")
    rest, apart = _rest(to, call, a, b)
    whole = to.node("Sub", to.node("Div", to.node("Sub", a, rest), b), _as_type(to, apart, call.inputs[0].dtype))
    return to.node("Where", to.node("Equal", b, _number(to, 0, call)), ratio, to.node("Round", whole))


@exporter("Square")
def _square(to: Any, call: Any, x: str) -> Any:
    return to.node("Mul", x, x)


@exporter("Rsqrt")
def _rsqrt(to: Any, call: Any, x: str) -> Any:
    return to.node("Reciprocal", to.node("Sqrt", x))


@exporter("Expm1")
def _expm1(to: Any, call: Any, x: str) -> Any:
    return to.node("Sub", to.node("Exp", x), _number(to, 1, call))


@exporter("LogOf")
def _log_of(to: Any, call: Any, x: str, *, base: int, offset: int) -> Any:
    y = to.node("Log", to.node("Add", x, _number(to, offset, call)) if offset else x)
    return to.node("Mul", y, _number(to, 1 / math.log(base), call)) if base else y


@exporter("Step")
def _step(to: Any, call: Any, x: str, *, name: str) -> Any:
    if name == "trunc":
        return to.node("Mul", to.node("Sign", x), to.node("Floor", to.node("Abs", x)))
    return to.node(name.capitalize(), x)


@exporter("Round")
def _round(to: Any, call: Any, x: str, *, decimals: int) -> Any:
    if not decimals:
        return to.node("Round", x)
    scale = _number(to, 10.0**decimals, call)
    return to.node("Div", to.node("Round", to.node("Mul", x, scale)), scale)


@exporter("Test")
def _test(to: Any, call: Any, x: str, *, name: str) -> Any:
    x = x if kind_of(call.inputs[0].dtype) == "f" else _as_type(to, x, np.float32)
    if name == "isfinite":
        return to.node("Not", to.node("Or", to.node("IsNaN", x), to.node("IsInf", x)))
    return to.node({"isnan": "IsNaN", "isinf": "IsInf"}[name], x)


@exporter("Clamp", "Hardtanh")
def _clamp(to: Any, call: Any, x: str, *, low: Any, high: Any) -> Any:
    return to.node("Clip", x, *["" if bound is None else _number(to, bound, call) for bound in (low, high)])


@exporter("ClampBetween")
def _clamp_between(to: Any, call: Any, x: str, low: str, high: str) -> Any:
    x = to.node("Max", x, low) if low else x
    return to.node("Min", x, high) if high else x


@exporter("Extremum")
def _extremum(to: Any, call: Any, a: str, b: str, *, largest: bool) -> Any:
    if call.inputs[0].dtype == bool:
        return to.node("Or" if largest else "And", a, b)
    return to.node("Max" if largest else "Min", a, b)


# -- activations ------------------------------------------------------------------------------------------------------


@exporter("LeakyReLU")
def _leaky_relu(to: Any, call: Any, x: str, *, negative_slope: float) -> Any:
    return to.node("LeakyRelu", x, alpha=negative_slope)


@exporter("ELU")
def _elu(to: Any, call: Any, x: str, *, alpha: float, scale: float, rate: float) -> Any:
    if rate == 1 and scale == 1:
        return to.node("Elu", x, alpha=alpha)
    if rate == 1:
        return to.node("Selu", x, alpha=alpha, gamma=scale)
    return to.node("Celu", x, alpha=alpha)


@exporter("Threshold")
def _threshold(to: Any, call: Any, x: str, *, at: float, other: float) -> Any:
    return to.node("Where", to.node("LessOrEqual", x, _number(to, at, call)), _number(to, other, call), x)


@exporter("GELU")
def _gelu(to: Any, call: Any, x: str, *, approximate: str) -> Any:
    if approximate == "tanh":
        cube = to.node("Mul", to.node("Mul", to.node("Mul", x, x), x), _number(to, 0.044715, call))
        inner = to.node("Tanh", to.node("Mul", to.node("Add", x, cube), _number(to, math.sqrt(2 / math.pi), call)))
    else:
        inner = to.node("Erf", to.node("Mul", x, _number(to, math.sqrt(0.5), call)))
    return to.node("Mul", to.node("Mul", x, _number(to, 0.5, call)), to.node("Add", inner, _number(to, 1, call)))


@exporter("SiLU")
def _silu(to: Any, call: Any, x: str) -> Any:
    return to.node("Mul", x, to.node("Sigmoid", x))


@exporter("Softplus")
def _softplus(to: Any, call: Any, x: str, *, beta: float, threshold: float) -> Any:
    # Where the input is above the threshold, 20 by default, the two differ by less than a float32 can tell.
    if threshold < 15:
        raise ValueError(f"softplus with a threshold of {threshold}, at which it jumps")
    if beta == 1:
        return to.node("Softplus", x)
    return to.node("Div", to.node("Softplus", to.node("Mul", x, _number(to, beta, call))), _number(to, beta, call))


@exporter("LogSigmoid")
def _log_sigmoid(to: Any, call: Any, x: str) -> Any:
    return to.node("Neg", to.node("Softplus", to.node("Neg", x)))


@exporter("Hardsigmoid")
def _hardsigmoid(to: Any, call: Any, x: str) -> Any:
    return to.node("HardSigmoid", x, alpha=1 / 6, beta=0.5)


@exporter("Hardshrink")
def _hardshrink(to: Any, call: Any, x: str, *, lambd: float) -> Any:
    return to.node("Shrink", x, lambd=lambd, bias=0.0)


@exporter("Softshrink")
def _softshrink(to: Any, call: Any, x: str, *, lambd: float) -> Any:
    return to.node("Shrink", x, lambd=lambd, bias=lambd)


@exporter("Tanhshrink")
def _tanhshrink(to: Any, call: Any, x: str) -> Any:
    return to.node("Sub", x, to.node("Tanh", x))


@exporter("GLU")
def _glu(to: Any, call: Any, x: str, *, dim: int) -> Any:
    a, b = to.node("Split", x, outputs=2, axis=dim, num_outputs=2)
    return to.node("Mul", a, to.node("Sigmoid", b))


@exporter("Softmax")
def _softmax(to: Any, call: Any, x: str, *, dim: int) -> Any:
    return to.node("Softmax", x, axis=dim)


@exporter("LogSoftmax")
def _log_softmax(to: Any, call: Any, x: str, *, dim: int) -> Any:
    return to.node("LogSoftmax", x, axis=dim)


# -- layers -----------------------------------------------------------------------------------------------------------


def _pads(sides: Any) -> list[int]:
    return [before for before, _ in sides] + [after for _, after in sides]


def _windows(geometry: Any) -> dict[str, Any]:
    """What a node says of a convolution's geometry."""
    return {
        "strides": geometry.stride,
        "pads": _pads(geometry.padding),
        "dilations": geometry.dilation,
        "group": geometry.groups,
    }


@exporter("Conv2d", "Conv3d")
def _conv(to: Any, call: Any, x: str, weight: str, bias: str, *, geometry: Any) -> Any:
    return to.node("Conv", x, weight, bias, **_windows(geometry))


@exporter("ConvTranspose2d", "ConvTranspose3d")
def _conv_transpose(to: Any, call: Any, x: str, weight: str, bias: str, *, geometry: Any) -> Any:
    inside, kernel, outside = call.inputs[0].shape[2:], call.inputs[1].shape[2:], call.outputs[0].shape[2:]
    extra = [
        want - ((have - 1) * stride - sum(side) + dilation * (size - 1) + 1)
        for want, have, stride, side, dilation, size in zip(
            outside, inside, geometry.stride, geometry.padding, geometry.dilation, kernel, strict=True
        )
    ]
    output_padding = extra if any(extra) else None
    return to.node("ConvTranspose", x, weight, bias, **_windows(geometry), output_padding=output_padding)


def _pool_options(geometry: Any, kernel: Any) -> dict[str, Any]:
    return {
        "kernel_shape": kernel,
        "strides": geometry.stride,
        "pads": _pads(geometry.padding),
        "ceil_mode": int(geometry.ceil_mode),
    }


def _kernel(geometry: Any) -> list[int]:
    return [geometry.r, geometry.s] if not hasattr(geometry, "kernel") else list(geometry.kernel)


@exporter("MaxPool2d", "MaxPool3d")
def _max_pool(to: Any, call: Any, x: str, *, geometry: Any, return_indices: bool = False) -> Any:
    options = {**_pool_options(geometry, _kernel(geometry)), "dilations": geometry.dilation}
    if not return_indices:
        return to.node("MaxPool", x, **options)
    values, indices = to.node("MaxPool", x, outputs=2, **options)
    # ONNX's count through the whole tensor, ours through a plane.
    return values, to.node("Mod", indices, to.constant(math.prod(call.inputs[0].shape[2:])))


@exporter("AvgPool2d", "AvgPool3d")
def _avg_pool(to: Any, call: Any, x: str, *, geometry: Any, count_include_pad: bool, divisor_override: Any) -> Any:
    kernel = _kernel(geometry)
    options = _pool_options(geometry, kernel)
    if divisor_override is None:
        return to.node("AveragePool", x, count_include_pad=int(count_include_pad), **options)
    if geometry.ceil_mode:
        raise ValueError("a divisor_override with ceil_mode")
    mean = to.node("AveragePool", x, count_include_pad=1, **options)
    return to.node("Mul", mean, _number(to, math.prod(kernel) / divisor_override, call))


@exporter("AdaptiveAvgPool2d", "AdaptiveAvgPool")
def _adaptive_avg_pool(to: Any, call: Any, x: str, *, output_size: tuple[int, ...]) -> Any:
    have = call.inputs[0].shape[2:]
    if set(output_size) == {1}:
        return to.node("GlobalAveragePool", x)
    if _divide(have, output_size):
        window = [size // want for size, want in zip(have, output_size, strict=True)]
        return to.node("AveragePool", x, kernel_shape=window, strides=window)
    for axis, (size, want) in enumerate(zip(have, output_size, strict=True), start=2):
        if size != want:
            x = _product_along(to, x, _averages(size, want), axis, call)
    return x


def _divide(have: Any, output_size: Any) -> bool:
    return all([size % want == 0 for size, want in zip(have, output_size, strict=True)])


def _averages(length: int, size: int) -> np.ndarray:
    """The share of each element in each average."""
    matrix = np.zeros((size, length))
    for i in range(size):
        start, end = i * length // size, -(-(i + 1) * length // size)
        matrix[i, start:end] = 1 / (end - start)
    return matrix


@exporter("AdaptiveMaxPool")
def _adaptive_max_pool(to: Any, call: Any, x: str, *, output_size: tuple[int, ...]) -> Any:
    have = call.inputs[0].shape[2:]
    if not _divide(have, output_size):
        return _largest_of_windows(to, x, have, output_size)
    window = [size // want for size, want in zip(have, output_size, strict=True)]
    values, indices = to.node("MaxPool", x, outputs=2, kernel_shape=window, strides=window)
    return values, to.node("Mod", indices, to.constant(math.prod(have)))


def _largest_of_windows(to: Any, x: str, have: Any, output_size: Any) -> Any:
    """The largest element of each window, axis by axis: of the first elements of all windows, the second ones..."""
    for axis, (size, want) in enumerate(zip(have, output_size, strict=True), start=2):
        starts, ends = np.arange(want) * size // want, -(-np.arange(1, want + 1) * size // want)
        taps = [np.minimum(starts + tap, ends - 1) for tap in range(int((ends - starts).max()))]
        parts = [to.node("Gather", x, to.constant(places), axis=axis) for places in taps]
        x = to.node("Max", *parts) if len(parts) > 1 else parts[0]
    return x


@exporter("Linear")
def _linear(to: Any, call: Any, x: str, weight: str, bias: str) -> Any:
    if len(call.inputs[0].shape) == 2:
        return to.node("Gemm", x, weight, bias, transB=1)
    y = to.node("MatMul", x, to.node("Transpose", weight, perm=[1, 0]))
    return to.node("Add", y, bias) if bias else y


# What runs as one is written as its parts.


@exporter("Conv2dReLU")
def _conv_relu(to: Any, call: Any, x: str, weight: str, bias: str, *, geometry: Any) -> Any:
    return to.node("Relu", _conv(to, call, x, weight, bias, geometry=geometry))


@exporter("Conv2dReLUMaxPool2d")
def _block(to: Any, call: Any, x: str, weight: str, bias: str, *, geometry: Any, pool: Any) -> Any:
    return _max_pool(to, call, _conv_relu(to, call, x, weight, bias, geometry=geometry), geometry=pool)


@exporter("Conv2dReLUMaxPool2dPair")
def _block_pair(to: Any, call: Any, x: str, *parameters: str, geometry: Any) -> Any:
    for block, weight, bias in zip(geometry, parameters[::2], parameters[1::2], strict=True):
        x = _block(to, call, x, weight, bias, geometry=block.conv, pool=block.pool)
    return x


@exporter("LinearReLU")
def _linear_relu(to: Any, call: Any, x: str, weight: str, bias: str) -> Any:
    return to.node("Relu", _linear(to, call, x, weight, bias))


@exporter("LinearChain")
def _linear_chain(to: Any, call: Any, x: str, *parameters: str, relu: tuple[bool, ...]) -> Any:
    for weight, bias, rectified in zip(parameters[::2], parameters[1::2], relu, strict=True):
        x = (_linear_relu if rectified else _linear)(to, call, x, weight, bias)
    return x


# -- normalisation ----------------------------------------------------------------------------------------------------


@exporter("BatchNorm")
def _batch_norm(
    to: Any,
    call: Any,
    x: str,
    weight: str,
    bias: str,
    residual: str,
    mean: str,
    var: str,
    *,
    eps: float,
    relu: bool,
) -> Any:
    (_, channels, *others), dtype = call.inputs[0].shape, call.inputs[0].dtype
    if mean:
        weight, bias = (name or to.constant(np.full(channels, fill), dtype) for name, fill in ((weight, 1), (bias, 0)))
        y = to.node("BatchNormalization", x, weight, bias, mean, var, epsilon=eps)
    else:  # the statistics of x itself
        axes, wide = to.constant([0, *range(2, 2 + len(others))]), to.constant([1, channels, *[1] * len(others)])
        centered = to.node("Sub", x, to.node("ReduceMean", x, axes))
        spread = to.node("ReduceMean", to.node("Mul", centered, centered), axes)
        y = to.node("Div", centered, to.node("Sqrt", to.node("Add", spread, _number(to, eps, call))))
        y = to.node("Mul", y, to.node("Reshape", weight, wide)) if weight else y
        y = to.node("Add", y, to.node("Reshape", bias, wide)) if bias else y
    y = to.node("Add", y, residual) if residual else y
    return to.node("Relu", y) if relu else y


@exporter("Normalize")
def _normalize(
    to: Any,
    call: Any,
    x: str,
    weight: str,
    bias: str,
    *,
    inside: tuple[int, ...],
    axes: tuple[int, ...],
    eps: float,
    centered: bool,
) -> Any:
    shape = call.inputs[0].shape
    exact = call.exact.inputs[0].shape
    ndim = len(shape)
    if tuple(inside) == exact and centered and axes == tuple(range(axes[0], ndim)) and weight:
        fits = all([p is None or p.shape == shape[axes[0] :] for p in call.inputs[1:]])
        if fits and None not in shape[axes[0] :]:
            return to.node("LayerNormalization", x, weight, bias, axis=axes[0], epsilon=eps)
    grouped = x if tuple(inside) == exact else to.node("Reshape", x, to.constant([0, *inside[1:]]))
    named = to.constant(list(axes))
    if centered:
        grouped = to.node("Sub", grouped, to.node("ReduceMean", grouped, named))
    var = to.node("ReduceMean", to.node("Mul", grouped, grouped), named)
    y = to.node("Div", grouped, to.node("Sqrt", to.node("Add", var, _number(to, eps, call))))
    y = y if tuple(inside) == exact else _reshaped(to, call, y, shape, shape)
    y = to.node("Mul", y, weight) if weight else y
    return to.node("Add", y, bias) if bias else y


# -- shapes -----------------------------------------------------------------------------------------------------------


@exporter("Reshape")
def _reshape(to: Any, call: Any, x: str, *, shape: Any) -> Any:
    return _reshaped(to, call, x, call.inputs[0].shape, call.outputs[0].shape)


def _reshaped(to: Any, call: Any, x: str, have: Any, wanted: Any) -> Any:
    """A Reshape that says the sizes that depend on the batch without numbers."""
    # A copied size (0) only where the input's own size there is the batch's; one other may be what is left (-1).
    sizes = []
    for axis, size in enumerate(wanted):
        if size is not None:
            sizes.append(size)
        elif (
            axis < len(have)
            and have[axis] is None
            and call.exact.inputs[0].shape[axis] == call.exact.outputs[0].shape[axis]
        ):
            sizes.append(0)
        else:
            sizes.append(-1)
    if sizes.count(-1) > 1:
        raise ValueError("several sizes of a shape that depend on the batch")
    if 0 in wanted:  # then a 0 is none that is copied, and nothing is left for a -1
        if None in wanted:
            raise ValueError("an array without elements, of a shape that depends on the batch")
        return to.node("Reshape", x, to.constant(sizes), allowzero=1)
    return to.node("Reshape", x, to.constant(sizes))


@exporter("Permute")
def _permute(to: Any, call: Any, x: str, *, dims: tuple[int, ...]) -> Any:
    return to.node("Transpose", x, perm=list(dims)) if dims else to.node("Identity", x)


@exporter("Expand")
def _expand(to: Any, call: Any, x: str, *, shape: Any) -> Any:
    have, wanted = call.inputs[0].shape, call.outputs[0].shape
    sizes = []
    for axis, size in enumerate(wanted):
        own = axis - (len(wanted) - len(have))
        if size is None and (own < 0 or have[own] is not None):
            raise ValueError("elements repeated as often as the batch is large")
        sizes.append(1 if size is None else size)
    return to.node("Expand", x, to.constant(sizes))


@exporter("Repeat")
def _repeat(to: Any, call: Any, x: str, *, repeats: tuple[int, ...]) -> Any:
    return to.node("Tile", x, to.constant(list(repeats)))


@exporter("Cat")
def _cat(to: Any, call: Any, *values: str, axis: int) -> Any:
    return to.node("Concat", *values, axis=axis)


def _sliced(to: Any, x: str, parts: list[tuple[int, int, int, int]]) -> Any:
    """A Slice by (axis, start, end, step)."""
    axes, starts, ends, steps = (to.constant(list(values)) for values in zip(*parts, strict=True))
    return to.node("Slice", x, starts, ends, axes, steps)


@exporter("Narrow")
def _narrow(to: Any, call: Any, x: str, *, axis: int, start: int, length: int) -> Any:
    if call.exact.inputs[0].shape == call.exact.outputs[0].shape:
        return to.node("Identity", x)
    return _sliced(to, x, [(axis, start, start + length, 1)])


@exporter("Flip")
def _flip(to: Any, call: Any, x: str, *, axes: tuple[int, ...]) -> Any:
    return _sliced(to, x, [(axis, -1, -_NOT_THERE, -1) for axis in axes]) if axes else to.node("Identity", x)


@exporter("GetItem")
def _get_item(to: Any, call: Any, x: str, *, index: Any) -> Any:
    parts = list(index) if isinstance(index, tuple) else [index]
    ndim = len(call.inputs[0].shape)
    named = sum([part is not None and part is not Ellipsis for part in parts])
    if Ellipsis not in [part if part is Ellipsis else 0 for part in parts]:
        parts.append(Ellipsis)
    where = next(i for i, part in enumerate(parts) if part is Ellipsis)
    parts[where : where + 1] = [slice(None)] * (ndim - named)
    slices: list[tuple[int, int, int, int]] = []
    gone: list[int] = []
    new: list[int] = []
    axis = 0
    for part in parts:
        if part is None:
            new.append(axis - len(gone) + len(new))
            continue
        if isinstance(part, slice):
            if part != slice(None):
                step = 1 if part.step is None else part.step
                start = (0 if step > 0 else -1) if part.start is None else part.start
                end = (_NOT_THERE if step > 0 else -_NOT_THERE) if part.stop is None else part.stop
                slices.append((axis, start, end, step))
        elif isinstance(part, (int, np.integer)) and not isinstance(part, bool):
            slices.append((axis, int(part), int(part) + 1 if part != -1 else _NOT_THERE, 1))
            gone.append(axis)
        else:
            raise ValueError("an index that is an array; index_select and gather can be written")
        axis += 1
    x = _sliced(to, x, slices) if slices else x
    x = to.node("Squeeze", x, to.constant(gone)) if gone else x
    return to.node("Unsqueeze", x, to.constant(new)) if new else x if slices else to.node("Identity", x)


@exporter("PadConstant")
def _pad_constant(to: Any, call: Any, x: str, *, sides: Any, value: Any) -> Any:
    return to.node("Pad", x, to.constant(_pads(sides)), _number(to, value, call))


@exporter("PadAlong")
def _pad_along(to: Any, call: Any, x: str, *, where: tuple[int, ...], first: Any, axis: int) -> Any:
    return to.node("Gather", x, to.constant(list(where)), axis=axis)


@exporter("Slide")
def _slide(to: Any, call: Any, x: str, *, axis: int, size: int, step: int) -> Any:
    shape = call.inputs[0].shape
    windows = to.node("Gather", x, to.constant(sliding(shape[axis], size, step)), axis=axis)
    return to.node("Transpose", windows, perm=[*[i for i in range(len(shape) + 1) if i != axis + 1], axis + 1])


@exporter("Triangle")
def _triangle(to: Any, call: Any, x: str, *, diagonal: int, upper: bool) -> Any:
    return to.node("Trilu", x, to.constant(diagonal), upper=int(upper))


@exporter("ArgSort")
def _arg_sort(to: Any, call: Any, x: str, *, axis: int, descending: bool) -> Any:
    count = to.constant([call.inputs[0].shape[axis]])
    return to.node("TopK", x, count, outputs=2, axis=axis, largest=int(descending))[1]


@exporter("IndexSelect")
def _index_select(to: Any, call: Any, x: str, index: str, *, axis: int) -> Any:
    return to.node("Gather", x, index, axis=axis)


@exporter("Gather")
def _gather(to: Any, call: Any, x: str, index: str, *, axis: int) -> Any:
    return to.node("GatherElements", x, index, axis=axis)


@exporter("Scatter")
def _scatter(to: Any, call: Any, x: str, index: str, values: str = "", *, axis: int, number: Any, how: Any) -> Any:
    if number is not None:
        values = to.node("Expand", to.constant(number, call.inputs[0].dtype), to.node("Shape", index))
    else:
        long, wanted = call.inputs[2].shape, call.inputs[1].shape
        longer = [(i, 0, n, 1) for i, n in enumerate(wanted) if n < long[i]]
        values = _sliced(to, values, longer) if longer else values
    return to.node("ScatterElements", x, index, values, axis=axis, reduction=how)


@exporter("AffineGrid")
def _affine_grid(to: Any, call: Any, theta: str, *, base: np.ndarray) -> Any:
    return to.node("MatMul", to.constant(base, base.dtype), to.node("Transpose", theta, perm=[0, 2, 1]))


@exporter("OneHot")
def _one_hot(to: Any, call: Any, labels: str, *, classes: int) -> Any:
    return to.node("OneHot", labels, to.constant(classes), to.constant([0, 1]))


@exporter("ResizeAlong")
def _resize_along(to: Any, call: Any, x: str, *, low: Any, high: Any, weights: Any, axis: int) -> Any:
    first = to.node("Gather", x, to.constant(low), axis=axis)
    if weights is None:
        return first
    dtype, tail = call.inputs[0].dtype, [1] * (len(call.inputs[0].shape) - axis - 1)
    along = np.asarray(weights, dtype).reshape(-1, *tail)
    second = to.node("Gather", x, to.constant(high), axis=axis)
    return to.node(
        "Add",
        to.node("Mul", first, to.constant(1 - along, dtype)),
        to.node("Mul", second, to.constant(along, dtype)),
    )


@exporter("ResizeBy")
def _resize_by(to: Any, call: Any, x: str, *, matrix: np.ndarray, axis: int) -> Any:
    return _product_along(to, x, matrix, axis, call)


def _product_along(to: Any, x: str, matrix: np.ndarray, axis: int, call: Any) -> Any:
    """The product of a matrix, (new, old), with the elements along an axis."""
    ndim, factor = len(call.inputs[0].shape), to.constant(matrix.T, call.inputs[0].dtype)
    if axis == ndim - 1:
        return to.node("MatMul", x, factor)
    order = [*[i for i in range(ndim) if i != axis], axis]
    last = to.node("MatMul", to.node("Transpose", x, perm=order), factor)
    return to.node("Transpose", last, perm=[order.index(i) for i in range(ndim)])


@exporter("CutDepths")
def _cut_depths(to: Any, call: Any, x: str, *, pieces: Any) -> Any:
    channels = call.inputs[0].shape[1]
    # The places' first planes, and from them on the filter's; past the last one are zeros.
    planes = np.arange(pieces.places)[:, None] * pieces.stride + np.arange(pieces.taps) * pieces.dilation
    behind = max(0, int(planes.max()) + 1 - pieces.front - pieces.length)
    sides = [(0, 0), (0, 0), (pieces.front, behind), (0, 0), (0, 0)]
    padded = to.node("Pad", x, to.constant(_pads(sides)), _number(to, 0, call))
    parts = to.node("Transpose", to.node("Gather", padded, to.constant(planes), axis=2), perm=[0, 2, 1, 3, 4, 5])
    return to.node("Reshape", parts, to.constant([-1, channels * pieces.taps, *call.inputs[0].shape[3:]]))


@exporter("AddDepths")
def _add_depths(to: Any, call: Any, x: str, *, pieces: Any) -> Any:
    # As a transposed convolution along the depth, with filters that put one plane each where it belongs.
    _, rows, height, width = call.inputs[0].shape
    taps, channels = pieces.taps, rows // pieces.taps
    filters = np.tile(np.eye(taps).reshape(taps, 1, taps, 1), (channels, 1, 1, 1))
    behind = (pieces.places - 1) * pieces.stride + pieces.dilation * (taps - 1) + 1 - pieces.front - pieces.length
    parts = to.node("Reshape", x, to.constant([-1, pieces.places, rows, height * width]))
    y = to.node(
        "ConvTranspose",
        to.node("Transpose", parts, perm=[0, 2, 1, 3]),
        to.constant(filters, call.inputs[0].dtype),
        strides=[pieces.stride, 1],
        dilations=[pieces.dilation, 1],
        pads=[0, 0, 0, 0],
        group=channels,
    )
    sides = [(0, 0), (0, 0), (-pieces.front, -behind), (0, 0)]
    y = to.node("Pad", y, to.constant(_pads(sides)), _number(to, 0, call))
    return to.node("Reshape", y, to.constant([-1, channels, pieces.length, height, width]))


@exporter("Unfold")
def _unfold(to: Any, call: Any, x: str, *, pieces: Any) -> Any:
    # As a convolution, channel by channel, with filters that pick one element each.
    channels, taps = call.inputs[0].shape[1], math.prod(pieces.kernel)
    filters = np.tile(np.eye(taps).reshape(taps, 1, *pieces.kernel), (channels, 1, 1, 1))
    y = to.node(
        "Conv",
        x,
        to.constant(filters, call.inputs[0].dtype),
        strides=pieces.stride,
        pads=[*pieces.padding, *pieces.padding],
        dilations=pieces.dilation,
        group=channels,
    )
    return to.node("Reshape", y, to.constant([0, channels * taps, math.prod(pieces.counts)]))


@exporter("Fold")
def _fold(to: Any, call: Any, x: str, *, pieces: Any) -> Any:
    return to.node(
        "Col2Im",
        x,
        to.constant(list(pieces.image)),
        to.constant(list(pieces.kernel)),
        strides=pieces.stride,
        pads=[*pieces.padding, *pieces.padding],
        dilations=pieces.dilation,
    )


# -- over axes --------------------------------------------------------------------------------------------------------


def _reduce(to: Any, op: str, x: str, axes: Any, keepdims: bool) -> Any:
    return to.node(op, x, "" if axes is None else to.constant(list(axes)), keepdims=int(keepdims))


@exporter("Sum")
def _sum(to: Any, call: Any, x: str, *, axes: Any, keepdims: bool) -> Any:
    return _reduce(to, "ReduceSum", x, axes, keepdims)


@exporter("Prod")
def _prod(to: Any, call: Any, x: str, *, axes: Any, keepdims: bool) -> Any:
    return _reduce(to, "ReduceProd", x, axes, keepdims)


@exporter("LogSumExp")
def _log_sum_exp(to: Any, call: Any, x: str, *, axes: Any, keepdims: bool) -> Any:
    return _reduce(to, "ReduceLogSumExp", x, axes, keepdims)


@exporter("AMax")
def _amax(to: Any, call: Any, x: str, *, axes: Any, keepdims: bool, largest: bool) -> Any:
    return _reduce(to, "ReduceMax" if largest else "ReduceMin", x, axes, keepdims)


@exporter("MaxAlong")
def _max_along(to: Any, call: Any, x: str, *, axis: int, keepdims: bool, largest: bool) -> Any:
    where = to.node("ArgMax" if largest else "ArgMin", x, axis=axis, keepdims=int(keepdims))
    return _reduce(to, "ReduceMax" if largest else "ReduceMin", x, [axis], keepdims), where


@exporter("ArgMax")
def _arg_max(to: Any, call: Any, x: str, *, axis: Any, keepdims: bool, largest: bool) -> Any:
    if axis is None:
        if keepdims:
            raise ValueError("the place of the largest of all elements, with keepdim")
        x, axis = to.node("Reshape", x, to.constant([-1])), 0
    return to.node("ArgMax" if largest else "ArgMin", x, axis=axis, keepdims=int(keepdims))


@exporter("CumSum")
def _cum_sum(to: Any, call: Any, x: str, *, axis: int) -> Any:
    return to.node("CumSum", x, to.constant(axis))


@exporter("Var")
def _var(to: Any, call: Any, x: str, *, axes: Any, keepdims: bool, correction: float, root: bool) -> Any:
    centred = to.node("Sub", x, _reduce(to, "ReduceMean", x, axes, True))
    y = _reduce(to, "ReduceMean", to.node("Mul", centred, centred), axes, keepdims)
    if correction:
        sizes = [call.exact.inputs[0].shape[axis] for axis in axes]
        count = math.prod(sizes)
        if count <= correction:
            raise ValueError("a variance of too few elements")
        y = to.node("Mul", y, _number(to, count / (count - correction), call))
    return to.node("Sqrt", y) if root else y, _reduce(to, "ReduceMean", x, axes, keepdims)


@exporter("Norm")
def _norm(to: Any, call: Any, x: str, *, axes: Any, keepdims: bool, p: float) -> Any:
    if p in (1, 2):
        return _reduce(to, f"ReduceL{int(p)}", x, axes, keepdims)
    if p == 0:
        return _reduce(to, "ReduceSum", to.node("Abs", to.node("Sign", x)), axes, keepdims)
    powers = to.node("Pow", to.node("Abs", x), _number(to, p, call))
    return to.node("Pow", _reduce(to, "ReduceSum", powers, axes, keepdims), _number(to, 1 / p, call))


@exporter("Question")
def _question(to: Any, call: Any, x: str, *, name: str, axes: Any, keepdims: bool = False) -> Any:
    if call.inputs[0].dtype != bool:
        x = to.node("Not", to.node("Equal", x, _number(to, 0, call)))
    x = to.node("Not", x) if name == "all" else x
    count = _reduce(to, "ReduceSum", _as_type(to, x, np.int64), axes, keepdims)
    if name == "count_nonzero":
        return count
    return to.node("Equal" if name == "all" else "Greater", count, to.constant(0))


# -- losses -----------------------------------------------------------------------------------------------------------


@exporter("CrossEntropy")
def _cross_entropy(
    to: Any,
    call: Any,
    logits: str,
    labels: str,
    weight: str,
    *,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
) -> Any:
    if label_smoothing:
        raise ValueError("label smoothing")
    return to.node("SoftmaxCrossEntropyLoss", logits, labels, weight, ignore_index=ignore_index, reduction=reduction)


@exporter("SquaredError")
def _squared_error(to: Any, call: Any, x: str, target: str, *, scale: float, summed: bool) -> Any:
    difference = to.node("Sub", x, target)
    squares = to.node("Mul", difference, difference)
    if summed:
        squares = to.node("ReduceSum", squares, keepdims=0)
    return to.node("Mul", squares, _number(to, scale, call))


@exporter("L1")
def _l1(to: Any, call: Any, x: str, target: str) -> Any:
    return to.node("Abs", to.node("Sub", x, target))


@exporter("Huber")
def _huber(to: Any, call: Any, x: str, target: str, *, width: float, scale: float) -> Any:
    size = _l1(to, call, x, target)
    near = to.node("Mul", to.node("Mul", size, size), _number(to, 0.5 * scale, call))
    far = to.node("Mul", to.node("Sub", size, _number(to, 0.5 * width, call)), _number(to, width * scale, call))
    return to.node("Where", to.node("Less", size, _number(to, width, call)), near, far)


@exporter("NLL")
def _nll(to: Any, call: Any, x: str, labels: str, weight: str, *, ignore_index: int, reduction: str) -> Any:
    return to.node("NegativeLogLikelihoodLoss", x, labels, weight, ignore_index=ignore_index, reduction=reduction)


@exporter("BinaryCrossEntropy")
def _binary_cross_entropy(to: Any, call: Any, x: str, target: str) -> Any:
    one, low = _number(to, 1, call), _number(to, -100, call)
    yes = to.node("Max", to.node("Log", x), low)
    no = to.node("Max", to.node("Log", to.node("Sub", one, x)), low)
    return to.node("Neg", to.node("Add", to.node("Mul", target, yes), to.node("Mul", to.node("Sub", one, target), no)))


@exporter("BinaryCrossEntropyWithLogits")
def _with_logits(to: Any, call: Any, x: str, target: str, pos_weight: str) -> Any:
    one = _number(to, 1, call)
    cost = to.node("Softplus", to.node("Neg", x))
    if pos_weight:
        factor = to.node("Add", to.node("Mul", to.node("Sub", pos_weight, one), target), one)
        cost = to.node("Mul", cost, factor)
    return to.node("Add", to.node("Mul", to.node("Sub", one, target), x), cost)


@exporter("KLDivergence")
def _kl_divergence(to: Any, call: Any, x: str, target: str, *, log_target: bool) -> Any:
    if log_target:
        return to.node("Mul", to.node("Exp", target), to.node("Sub", target, x))
    logarithm = to.node(
        "Log", to.node("Where", to.node("Equal", target, _number(to, 0, call)), _number(to, 1, call), target)
    )
    return to.node("Mul", target, to.node("Sub", logarithm, x))
