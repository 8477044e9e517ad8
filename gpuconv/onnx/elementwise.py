"""Element by element: arithmetic, comparisons, activations, choices, types."""

from __future__ import annotations

import math
import operator as python
from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import numpy as np

from gpuconv import dtypes
from gpuconv import functional as F
from gpuconv.dtypes import kind_of
from gpuconv.onnx.node import Node, constant, host, operator, scalar, shape_of
from gpuconv.ops import arithmetic, elementwise, nonlinear
from gpuconv.ops.shape import reshape

# -- of one input ----------------------------------------------------------------------------------------------------


def _unary(name: str, function: Callable[[Any], Any]) -> None:
    operator(name)(lambda node, x: function(x))


def _sinh(x: Any) -> Any:
    e = elementwise.expm1(x)  # keeps the digits near 0
    return _half(x, e + arithmetic.div(e, e + constant(1, x)))


def _half(x: Any, value: Any) -> Any:
    return arithmetic.mul(value, constant(0.5, x))


def _asinh(x: Any) -> Any:
    size = elementwise.abs(x)
    root = elementwise.sqrt(x * x + constant(1, x)) + constant(1, x)
    return elementwise.sign(x) * elementwise.log1p(size + arithmetic.div(size * size, root))


_UNARY: dict[str, Callable[[Any], Any]] = {
    "Abs": elementwise.abs,
    "Acos": elementwise.acos,
    "Acosh": lambda x: arithmetic.log(x + elementwise.sqrt(x * x - constant(1, x))),
    "Asin": elementwise.asin,
    "Asinh": _asinh,
    "Atan": elementwise.atan,
    "Atanh": lambda x: _half(x, elementwise.log1p(x) - elementwise.log1p(elementwise.neg(x))),
    "Ceil": elementwise.ceil,
    "Cos": elementwise.cos,
    "Cosh": lambda x: _half(x, arithmetic.exp(x) + arithmetic.exp(elementwise.neg(x))),
    "Erf": elementwise.erf,
    "Exp": arithmetic.exp,
    "Floor": elementwise.floor,
    "HardSwish": F.hardswish,
    "Identity": lambda x: x,
    "IsNaN": elementwise.isnan,
    "Log": arithmetic.log,
    "Mish": F.mish,
    "Neg": elementwise.neg,
    "Not": lambda x: x == np.asarray(False),
    "Reciprocal": elementwise.reciprocal,
    "Relu": F.relu,
    "Round": elementwise.round,
    "Sigmoid": F.sigmoid,
    "Sign": elementwise.sign,
    "Sin": elementwise.sin,
    "Sinh": _sinh,
    "Softplus": lambda x: F.softplus(x, 1.0, math.inf),
    "Softsign": F.softsign,
    "Sqrt": elementwise.sqrt,
    "Tan": elementwise.tan,
    "Tanh": F.tanh,
}
for _name, _function in _UNARY.items():
    _unary(_name, _function)


@operator("LeakyRelu")
def _leaky_relu(node: Node, x: Any) -> Any:
    return F.leaky_relu(x, node.get("alpha", 0.01))


@operator("Elu")
def _elu(node: Node, x: Any) -> Any:
    return F.elu(x, node.get("alpha", 1.0))


@operator("Celu")
def _celu(node: Node, x: Any) -> Any:
    return F.celu(x, node.get("alpha", 1.0))


@operator("Selu")
def _selu(node: Node, x: Any) -> Any:
    alpha, gamma = node.get("alpha", 1.6732632423543772), node.get("gamma", 1.0507009873554805)
    return nonlinear.ELU.apply(x, alpha=alpha, scale=gamma, rate=1.0)


@operator("HardSigmoid")
def _hard_sigmoid(node: Node, x: Any) -> Any:
    alpha, beta = node.get("alpha", 0.2), node.get("beta", 0.5)
    if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        return F.hardsigmoid(x)
    return F.hardtanh(arithmetic.add(arithmetic.mul(x, alpha), beta), 0.0, 1.0)


@operator("ThresholdedRelu")
def _thresholded_relu(node: Node, x: Any) -> Any:
    return F.threshold(x, node.get("alpha", 1.0), 0.0)


@operator("Gelu")
def _gelu(node: Node, x: Any) -> Any:
    return F.gelu(x, node.get("approximate", "none"))


@operator("Swish")
def _swish(node: Node, x: Any) -> Any:
    alpha = node.get("alpha", 1.0)
    return F.silu(x) if alpha == 1 else x * F.sigmoid(arithmetic.mul(x, alpha))


@operator("Shrink")
def _shrink(node: Node, x: Any) -> Any:
    lambd, bias = node.get("lambd", 0.5), node.get("bias", 0.0)
    if kind_of(host(x).dtype) == "f" and bias == 0:
        return F.hardshrink(x, lambd)
    if kind_of(host(x).dtype) == "f" and bias == lambd:
        return F.softshrink(x, lambd)
    low, high = x + constant(bias, x), x - constant(bias, x)
    zero = constant(0, x)
    return elementwise.where(x < -lambd, low, elementwise.where(x > lambd, high, zero))


@operator("PRelu")
def _prelu(node: Node, x: Any, slope: Any) -> Any:
    if node.opset < 7 and slope.ndim == 1:  # until then one value a channel
        return F.prelu(x, slope)
    return nonlinear.PReLU.apply(x, slope)


@operator("IsInf")
def _is_inf(node: Node, x: Any) -> Any:
    negative, positive = node.get("detect_negative", 1), node.get("detect_positive", 1)
    if negative and positive:
        return elementwise.isinf(x)
    wanted = math.inf if positive else -math.inf
    return x == constant(wanted if positive or negative else math.nan, x)


@operator("Clip", settings=(1, 2))
def _clip(node: Node, x: Any, low: Any = None, high: Any = None) -> Any:
    low, high = (node.get(name) if bound is None else bound for name, bound in (("min", low), ("max", high)))
    low, high = (bound.item() if isinstance(bound, np.ndarray) and bound.size == 1 else bound for bound in (low, high))
    if low is None and high is None:
        return x
    if low == 0 and high == 6 and kind_of(x.dtype) == "f":
        return F.relu6(x)
    return elementwise.clamp(x, low, high)


# -- of two, or several ----------------------------------------------------------------------------------------------


def _aligned(node: Node, a: Any, b: Any) -> Any:
    """The second operand in a shape that broadcasts as its node means it: until opset 6 an attribute says how."""
    axis = node.get("axis")
    if node.opset >= 7 or axis is None or not node.get("broadcast", 0):
        return b
    shape = shape_of(b)
    return reshape(b, (*shape, *[1] * (len(shape_of(a)) - axis % len(shape_of(a)) - len(shape))))


def _binary(name: str, function: Callable[[Any, Any], Any]) -> None:
    operator(name)(lambda node, a, b: function(a, _aligned(node, a, b)))


def _div(a: Any, b: Any) -> Any:
    if kind_of(a.dtype) == "f":
        return arithmetic.div(a, b)
    a, b = host(a), host(b)
    quotient = np.abs(a) // np.abs(b) if kind_of(a.dtype) == "i" else a // b
    return (quotient * (np.sign(a) * np.sign(b)) if kind_of(a.dtype) == "i" else quotient).astype(a.dtype)


for _name, _two in {
    "Add": arithmetic.add,
    "Sub": arithmetic.sub,
    "Mul": arithmetic.mul,
    "Div": _div,
    "And": elementwise.minimum,
    "Or": elementwise.maximum,
    "Xor": python.ne,
    "Equal": python.eq,
    "Greater": python.gt,
    "GreaterOrEqual": python.ge,
    "Less": python.lt,
    "LessOrEqual": python.le,
    "BitwiseAnd": lambda a, b: host(a) & host(b),
    "BitwiseOr": lambda a, b: host(a) | host(b),
    "BitwiseXor": lambda a, b: host(a) ^ host(b),
}.items():
    _binary(_name, _two)


@operator("BitwiseNot")
def _bitwise_not(node: Node, x: Any) -> Any:
    return ~host(x)


@operator("BitShift")
def _bit_shift(node: Node, x: Any, by: Any) -> Any:
    shift = np.left_shift if node.get("direction") == "LEFT" else np.right_shift
    return shift(host(x), host(by))


@operator("Pow", settings=(1,))
def _pow(node: Node, a: Any, b: Any) -> Any:
    if isinstance(b, np.ndarray) and b.size == 1 and b.ndim <= a.ndim and kind_of(a.dtype) == "f":
        return arithmetic.pow(a, scalar(b))
    if kind_of(a.dtype) != "f":
        return np.power(host(a), host(b)).astype(a.dtype)
    return arithmetic.Power.apply(a, arithmetic.cast(_aligned(node, a, b), a.dtype))


@operator("Mod")
def _mod(node: Node, a: Any, b: Any) -> Any:
    return arithmetic.Modulo.apply(a, b, name="fmod" if node.get("fmod", 0) else "mod")


def _several(name: str, function: Callable[[Any, Any], Any]) -> None:
    operator(name)(lambda node, *values: reduce(function, values))


_several("Max", elementwise.maximum)
_several("Min", elementwise.minimum)
_several("Sum", arithmetic.add)


@operator("Mean")
def _mean(node: Node, *values: Any) -> Any:
    return arithmetic.mul(reduce(arithmetic.add, values), 1 / len(values))


@operator("Where")
def _where(node: Node, condition: Any, a: Any, b: Any) -> Any:
    return elementwise.where(condition, a, b)


# -- types -----------------------------------------------------------------------------------------------------------


def element_type(number: int) -> np.dtype:
    """The element type of ONNX's number.

    Raises:
        ValueError: text, complex numbers, and what has fewer bits.
        ModuleNotFoundError: bfloat16, and ``ml_dtypes`` is not installed.
    """
    import onnx

    name = onnx.TensorProto.DataType.Name(number)
    if name not in _TYPES:
        raise ValueError(f"elements of type {name}, which gpuconv does not have")
    return dtypes.element_type(_TYPES[name])


_TYPES = {
    "FLOAT16": np.float16,
    "BFLOAT16": "bfloat16",
    "FLOAT": np.float32,
    "DOUBLE": np.float64,
    "BOOL": np.bool_,
} | {f"{sign}{bits}": f"{sign.lower()}{bits}" for sign in ("INT", "UINT") for bits in (8, 16, 32, 64)}


def _cast(x: Any, dtype: np.dtype) -> Any:
    return arithmetic.cast(x, dtype)


@operator("Cast")
def _cast_to(node: Node, x: Any) -> Any:
    return _cast(x, element_type(node.get("to")))


@operator("CastLike")
def _cast_like(node: Node, x: Any, like: Any) -> Any:
    return _cast(x, like.dtype)


# -- softmax, dropout -------------------------------------------------------------------------------------------------


def _along(function: Callable[[Any, int], Any], node: Node, x: Any) -> Any:
    if node.opset >= 13:
        return function(x, node.get("axis", -1))
    # Until then the input counted as a matrix, cut in two at the axis.
    shape, axis = shape_of(x), node.get("axis", 1)
    axis = axis % len(shape) if axis < 0 else axis
    return reshape(function(reshape(x, (math.prod(shape[:axis]), math.prod(shape[axis:]))), 1), shape)


operator("Softmax")(partial(_along, F.softmax))
operator("LogSoftmax")(partial(_along, F.log_softmax))


def _hard(x: Any, axis: int) -> Any:
    axis = axis % x.ndim
    places = np.arange(shape_of(x)[axis]).reshape(-1, *[1] * (x.ndim - axis - 1))
    from gpuconv.ops.reduce import argmax

    return _cast(argmax(x, axis, True) == places, x.dtype)


operator("Hardmax")(partial(_along, _hard))


@operator("Dropout", settings=(1, 2), modal=True)
def _dropout(node: Node, x: Any, ratio: Any = None, mode: Any = None, *, training: bool) -> Any:
    training = training or bool(scalar(mode, False))
    p = scalar(ratio, node.get("ratio", 0.5))
    if not node.wants(1):
        return F.dropout(x, p, training)
    # The mask is the gradient's; a dropped one of ones tells it.
    kept = F.dropout(np.ones(shape_of(x), x.dtype), p, training)
    return (x * kept if training else x), kept != 0
