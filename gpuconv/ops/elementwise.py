"""Element-wise functions other than activations: roots, angles, rounding, bounds, choices by a mask.

Integers are converted to float32 where the result need not be a whole number. All raise ``TypeError`` for input that is
not numeric and for an argument of the wrong kind.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np

from gpuconv.autograd import Context, Function, Tensor, _like, no_grad, tensor_method, to_array
from gpuconv.backends import Array
from gpuconv.dtypes import kind_of
from gpuconv.geometry import integer
from gpuconv.ops.arithmetic import _NUMBERS as NUMBERS
from gpuconv.ops.arithmetic import _floating as floating
from gpuconv.ops.arithmetic import _operands as promoted
from gpuconv.ops.arithmetic import _sum_to as sum_to
from gpuconv.ops.arithmetic import add, cast, div, mul, rounded_once, sub
from gpuconv.ops.checks import element_type, operand, shape_of
from gpuconv.ops.pointwise import Pointwise
from gpuconv.ops.pointwise import erf as _erf

__all__ = [
    "abs",
    "acos",
    "addcdiv",
    "addcmul",
    "allclose",
    "asin",
    "atan",
    "bitwise_and",
    "bitwise_not",
    "bitwise_or",
    "bitwise_xor",
    "ceil",
    "clamp",
    "clamp_max",
    "clamp_min",
    "clip",
    "cos",
    "eq",
    "equal",
    "erf",
    "expm1",
    "floor",
    "ge",
    "gt",
    "isclose",
    "isfinite",
    "isinf",
    "isnan",
    "le",
    "lerp",
    "log1p",
    "log2",
    "log10",
    "logical_and",
    "logical_not",
    "logical_or",
    "logical_xor",
    "lt",
    "masked_fill",
    "maximum",
    "minimum",
    "nan_to_num",
    "ne",
    "neg",
    "reciprocal",
    "round",
    "rsqrt",
    "sign",
    "sin",
    "sqrt",
    "square",
    "tan",
    "trunc",
    "where",
    "without_graph",
]


def without_graph(function: type[Function], *inputs: Any, **options: Any) -> Any:
    """Apply a Function whose results are not floats, and so have no gradient."""
    with no_grad():
        return function.apply(*inputs, **options)


# -- of one input ----------------------------------------------------------------------------------------------------


class Abs(Pointwise):
    """``|x|``; its gradient at 0 is 0."""

    value = staticmethod(lambda xp, x: xp.abs(x))
    slope = staticmethod(lambda xp, kept: xp.sign(kept))


class Square(Pointwise):
    """``x²``."""

    value = staticmethod(lambda xp, x: x * x)
    slope = staticmethod(lambda xp, kept: kept * 2)


class Sqrt(Pointwise):
    """Square root."""

    of_result = True
    value = staticmethod(lambda xp, x: xp.sqrt(x))
    slope = staticmethod(lambda xp, kept: 0.5 / kept)


class Rsqrt(Pointwise):
    """``1 / √x``."""

    of_result = True
    value = staticmethod(lambda xp, x: 1 / xp.sqrt(x))
    slope = staticmethod(lambda xp, kept: -0.5 * kept**3)


class Reciprocal(Pointwise):
    """``1 / x``."""

    of_result = True
    value = staticmethod(lambda xp, x: 1 / x)
    slope = staticmethod(lambda xp, kept: -kept * kept)


class Sin(Pointwise):
    """Sine."""

    value = staticmethod(lambda xp, x: xp.sin(x))
    slope = staticmethod(lambda xp, kept: xp.cos(kept))


class Cos(Pointwise):
    """Cosine."""

    value = staticmethod(lambda xp, x: xp.cos(x))
    slope = staticmethod(lambda xp, kept: -xp.sin(kept))


class Tan(Pointwise):
    """Tangent."""

    of_result = True
    value = staticmethod(lambda xp, x: xp.tan(x))
    slope = staticmethod(lambda xp, kept: 1 + kept * kept)


class Asin(Pointwise):
    """Inverse of the sine."""

    value = staticmethod(lambda xp, x: xp.arcsin(x))
    slope = staticmethod(lambda xp, kept: 1 / xp.sqrt(1 - kept * kept))


class Acos(Pointwise):
    """Inverse of the cosine."""

    value = staticmethod(lambda xp, x: xp.arccos(x))
    slope = staticmethod(lambda xp, kept: -1 / xp.sqrt(1 - kept * kept))


class Atan(Pointwise):
    """Inverse of the tangent."""

    value = staticmethod(lambda xp, x: xp.arctan(x))
    slope = staticmethod(lambda xp, kept: 1 / (1 + kept * kept))


class Erf(Pointwise):
    """Error function."""

    value = staticmethod(_erf)
    slope = staticmethod(lambda xp, kept: xp.exp(-kept * kept) * (2 / math.sqrt(math.pi)))


class Expm1(Pointwise):
    """``e^x - 1``, with all digits near 0."""

    of_result = True
    value = staticmethod(lambda xp, x: xp.expm1(x))
    slope = staticmethod(lambda xp, kept: kept + 1)


class LogOf(Pointwise):
    """Logarithm of ``x + offset`` to the base ``base``; e where that is 0."""

    @staticmethod
    def value(xp: Any, x: Array, *, base: int, offset: int) -> Array:
        if offset:
            return xp.log1p(x)
        return xp.log2(x) if base == 2 else xp.log10(x)

    @staticmethod
    def slope(xp: Any, kept: Array, *, base: int, offset: int) -> Array:
        return 1 / (1 + kept) if offset else 1 / (kept * math.log(base))


def _flat(xp: Any, kept: Array, **options: Any) -> Array:
    """The slope of a function that is piecewise constant."""
    return xp.zeros(kept.shape, bool)


class Step(Pointwise):
    """A function of the array library that is piecewise constant: its gradient is 0."""

    slope = staticmethod(_flat)

    @staticmethod
    def value(xp: Any, x: Array, *, name: str) -> Array:
        return getattr(xp, name)(x)


class Round(Pointwise):
    """x rounded to so many decimals, halves to the even neighbour."""

    slope = staticmethod(_flat)

    @staticmethod
    def value(xp: Any, x: Array, *, decimals: int) -> Array:
        return xp.around(x, decimals) if decimals else xp.rint(x)


class Test(Function):
    """A test of the array library on each element, such as ``isnan``: bools."""

    @staticmethod
    def forward(ctx: Context, x: Array, *, name: str) -> Array:
        return getattr(ctx.backend.xp, name)(x)


@tensor_method
def abs(input: Any) -> Any:
    """``|x|``; the gradient at 0 is 0."""
    return Abs.apply(operand("abs", "input", input))


@tensor_method
def neg(input: Any) -> Any:
    """``-x``. TypeError: bools, which have ``logical_not``."""
    input = operand("neg", "input", input)
    if kind_of(element_type(input)) == "b":
        raise TypeError("neg: input must hold numbers, got bool; write input == 0")
    return mul(input, -1)


@tensor_method
def square(input: Any) -> Any:
    """``x²``."""
    input = operand("square", "input", input)
    return Square.apply(cast(input, np.int64) if kind_of(element_type(input)) == "b" else input)


@tensor_method
def sqrt(input: Any) -> Any:
    """Square root; NaN of negative numbers."""
    return Sqrt.apply(floating(operand("sqrt", "input", input)))


@tensor_method
def rsqrt(input: Any) -> Any:
    """``1 / √x``."""
    return Rsqrt.apply(floating(operand("rsqrt", "input", input)))


@tensor_method
def reciprocal(input: Any) -> Any:
    """``1 / x``."""
    return Reciprocal.apply(floating(operand("reciprocal", "input", input)))


@tensor_method
def sin(input: Any) -> Any:
    """Sine."""
    return Sin.apply(floating(operand("sin", "input", input)))


@tensor_method
def cos(input: Any) -> Any:
    """Cosine."""
    return Cos.apply(floating(operand("cos", "input", input)))


@tensor_method
def tan(input: Any) -> Any:
    """Tangent."""
    return Tan.apply(floating(operand("tan", "input", input)))


@tensor_method
def asin(input: Any) -> Any:
    """Inverse of the sine, from -π/2 to π/2."""
    return Asin.apply(floating(operand("asin", "input", input)))


@tensor_method
def acos(input: Any) -> Any:
    """Inverse of the cosine, from 0 to π."""
    return Acos.apply(floating(operand("acos", "input", input)))


@tensor_method
def atan(input: Any) -> Any:
    """Inverse of the tangent, from -π/2 to π/2."""
    return Atan.apply(floating(operand("atan", "input", input)))


@tensor_method
def erf(input: Any) -> Any:
    """Error function, ``2/√π · ∫ e^-t² dt`` from 0 to x."""
    return Erf.apply(floating(operand("erf", "input", input)))


@tensor_method
def expm1(input: Any) -> Any:
    """``e^x - 1``, with all digits near 0."""
    return Expm1.apply(floating(operand("expm1", "input", input)))


@tensor_method
def log1p(input: Any) -> Any:
    """``log(1 + x)``, with all digits near 0."""
    return LogOf.apply(floating(operand("log1p", "input", input)), base=0, offset=1)


@tensor_method
def log2(input: Any) -> Any:
    """Logarithm to the base 2."""
    return LogOf.apply(floating(operand("log2", "input", input)), base=2, offset=0)


@tensor_method
def log10(input: Any) -> Any:
    """Logarithm to the base 10."""
    return LogOf.apply(floating(operand("log10", "input", input)), base=10, offset=0)


def _step(op: str, name: str, input: Any) -> Any:
    input = operand(op, "input", input)
    if kind_of(element_type(input)) != "f" and name != "sign":
        return input  # whole numbers already
    return Step.apply(input, name=name)


@tensor_method
def sign(input: Any) -> Any:
    """-1, 0 or 1; the gradient is 0. Of NaN 0, as in PyTorch."""
    input = operand("sign", "input", input)
    if kind_of(element_type(input)) == "b":
        return input
    result = _step("sign", "sign", input)
    return where(isnan(input), 0, result) if kind_of(element_type(input)) == "f" else result


@tensor_method
def floor(input: Any) -> Any:
    """The largest whole number that is at most the input; the gradient is 0."""
    return _step("floor", "floor", input)


@tensor_method
def ceil(input: Any) -> Any:
    """The smallest whole number that is at least the input; the gradient is 0."""
    return _step("ceil", "ceil", input)


@tensor_method
def trunc(input: Any) -> Any:
    """The input without its decimals; the gradient is 0."""
    return _step("trunc", "trunc", input)


@tensor_method
def round(input: Any, *, decimals: int = 0) -> Any:
    """Round to ``decimals`` decimal places, halves to even; the gradient is 0."""
    input = operand("round", "input", input)
    decimals = integer(decimals, "decimals", minimum=-300, op="round")
    return Round.apply(input, decimals=decimals) if kind_of(element_type(input)) == "f" else input


@tensor_method
def isnan(input: Any) -> Any:
    """Whether each element is NaN."""
    return without_graph(Test, operand("isnan", "input", input), name="isnan")


@tensor_method
def isinf(input: Any) -> Any:
    """Whether each element is infinite."""
    return without_graph(Test, operand("isinf", "input", input), name="isinf")


@tensor_method
def isfinite(input: Any) -> Any:
    """Whether each element is neither NaN nor infinite."""
    return without_graph(Test, operand("isfinite", "input", input), name="isfinite")


# -- bounds ----------------------------------------------------------------------------------------------------------


class Clamp(Pointwise):
    """x between two numbers, each of which may be None."""

    @staticmethod
    def value(xp: Any, x: Array, *, low: Any, high: Any) -> Array:
        x = x if low is None else xp.maximum(x, x.dtype.type(low))
        return x if high is None else xp.minimum(x, x.dtype.type(high))

    @staticmethod
    def slope(xp: Any, kept: Array, *, low: Any, high: Any) -> Array:
        inside = kept == kept if low is None else kept >= low
        return inside if high is None else inside & (kept <= high)


class Extremum(Function):
    """The larger, or the smaller, of two elements; equal ones share the gradient."""

    @staticmethod
    def forward(ctx: Context, a: Array, b: Array, *, largest: bool) -> Array:
        ctx.save(a, b, largest)
        return (ctx.backend.xp.maximum if largest else ctx.backend.xp.minimum)(a, b)

    @staticmethod
    def backward(ctx: Context, grad: Array) -> tuple[Array | None, ...]:
        a, b, largest = ctx.saved
        xp, zero = ctx.backend.xp, grad.dtype.type(0)
        shared = xp.where(a == b, grad / 2, grad)
        lost = [a < b, b < a] if largest else [a > b, b > a]
        return tuple(
            sum_to(xp.where(is_lost, zero, shared), x.shape) if need else None
            for is_lost, x, need in zip(lost, (a, b), ctx.needs_input_grad, strict=True)
        )


class ClampBetween(Function):
    """x between two arrays, which broadcast to it; each may be None."""

    @staticmethod
    def forward(ctx: Context, a: Array, low: Array | None, high: Array | None) -> Array:
        xp = ctx.backend.xp
        ctx.save(a, low, high)
        a = a if low is None else xp.maximum(a, low)
        return a if high is None else xp.minimum(a, high)

    @staticmethod
    def backward(ctx: Context, grad: Array) -> tuple[Array | None, ...]:
        a, low, high = ctx.saved
        xp, zero = ctx.backend.xp, grad.dtype.type(0)
        inside = (a == a) if low is None else a >= low
        inside = inside if high is None else inside & (a <= high)
        ordered = True if low is None or high is None else low < high
        parts = (
            inside,
            None if low is None else (a < low) & ordered,
            None if high is None else (a > high) | (not ordered if ordered is True else high < low),
        )
        return tuple(
            sum_to(xp.where(part, grad, zero), x.shape) if need else None
            for part, x, need in zip(parts, (a, low, high), ctx.needs_input_grad, strict=True)
        )


@tensor_method
def clamp(input: Any, min: Any = None, max: Any = None) -> Any:
    """``input`` limited to the range ``min`` to ``max``; where min is above max, the result is max. NaN stays NaN.

    Args:
        input: numbers of any shape.
        min, max: numbers, or Tensors or arrays that broadcast with the input; None for no bound.

    Returns:
        The broadcast shape, in the dtype that PyTorch's promotion gives. The gradient goes to the input where it is in
            the
        range, bounds included; elsewhere to the bound, if that is a Tensor.

    Raises:
        ValueError: neither bound is given.
        TypeError: a bound that is not a number.
    """
    op = "clamp"
    if min is None and max is None:
        raise ValueError("clamp: min or max must be given")
    input = operand(op, "input", input)
    bounds = [b if b is None or isinstance(b, NUMBERS) else operand(op, n, b) for n, b in (("min", min), ("max", max))]
    for bound in bounds:
        if bound is not None:
            input, _ = promoted(input, bound)
    dtype = element_type(input)
    if all(bound is None or isinstance(bound, NUMBERS) for bound in bounds):
        return Clamp.apply(input, low=bounds[0], high=bounds[1])
    arrays = [b if b is None else np.asarray(b, dtype) if isinstance(b, NUMBERS) else cast(b, dtype) for b in bounds]
    return ClampBetween.apply(input, *arrays)


@tensor_method
def clip(input: Any, min: Any = None, max: Any = None) -> Any:
    """:func:`clamp` by another name."""
    return clamp(input, min, max)


@tensor_method
def maximum(input: Any, other: Any) -> Any:
    """The larger of two elements; shapes broadcast. NaN if one is NaN. Equal elements share the gradient."""
    return Extremum.apply(*_two("maximum", input, other), largest=True)


@tensor_method
def minimum(input: Any, other: Any) -> Any:
    """The smaller of two elements; otherwise as :func:`maximum`."""
    return Extremum.apply(*_two("minimum", input, other), largest=False)


def _two(op: str, input: Any, other: Any) -> tuple[Any, Any]:
    return promoted(operand(op, "input", input), other if isinstance(other, NUMBERS) else operand(op, "other", other))


@tensor_method
def clamp_min(input: Any, min: Any) -> Any:
    """:func:`clamp` with a lower bound."""
    return clamp(input, min)


@tensor_method
def clamp_max(input: Any, max: Any) -> Any:
    """:func:`clamp` with an upper bound."""
    return clamp(input, max=max)


# -- of several: arithmetic in one step -------------------------------------------------------------------------------


@tensor_method
@rounded_once
def addcmul(input: Any, tensor1: Any, tensor2: Any, *, value: float = 1) -> Any:
    """``input + value · tensor1 · tensor2``; shapes broadcast."""
    return add(input, mul(tensor1, tensor2), alpha=value)


@tensor_method
@rounded_once
def addcdiv(input: Any, tensor1: Any, tensor2: Any, *, value: float = 1) -> Any:
    """``input + value · tensor1 / tensor2``; shapes broadcast."""
    return add(input, div(tensor1, tensor2), alpha=value)


@tensor_method
@rounded_once
def lerp(input: Any, end: Any, weight: Any) -> Any:
    """``input + weight · (end - input)``; the weight is a number, or a Tensor that broadcasts."""
    return add(input, mul(sub(end, input), weight))


# -- comparison and logic ---------------------------------------------------------------------------------------------


def _compared(op: str, input: Any, other: Any) -> Any:
    input, other = operand(op, "input", input), _choice(op, "other", other)
    result = getattr(operator, op)(input if isinstance(input, Tensor) else Tensor(input), other)
    return result if isinstance(input, Tensor) or isinstance(other, Tensor) else _like(result.data, input)


@tensor_method
def eq(input: Any, other: Any) -> Any:
    """``input == other``, element by element: bools; shapes broadcast."""
    return _compared("eq", input, other)


@tensor_method
def ne(input: Any, other: Any) -> Any:
    """``input != other``, element by element: bools; shapes broadcast."""
    return _compared("ne", input, other)


@tensor_method
def lt(input: Any, other: Any) -> Any:
    """``input < other``, element by element: bools; shapes broadcast."""
    return _compared("lt", input, other)


@tensor_method
def le(input: Any, other: Any) -> Any:
    """``input <= other``, element by element: bools; shapes broadcast."""
    return _compared("le", input, other)


@tensor_method
def gt(input: Any, other: Any) -> Any:
    """``input > other``, element by element: bools; shapes broadcast."""
    return _compared("gt", input, other)


@tensor_method
def ge(input: Any, other: Any) -> Any:
    """``input >= other``, element by element: bools; shapes broadcast."""
    return _compared("ge", input, other)


class Bitwise(Function):
    """The function ``name`` of :mod:`operator`, of bools or of the bits of integers."""

    @staticmethod
    def forward(ctx: Context, a: Array, b: Array, *, name: str) -> Array:
        result: Array = getattr(operator, name)(a, b)
        return result


def _bitwise(op: str, name: str, input: Any, other: Any) -> Any:
    a, b = _two(op, input, other)
    if kind_of(element_type(a)) == "f":
        raise TypeError(f"{op}: input and other must hold bools or integers, got floats; compare them first")
    return without_graph(Bitwise, a, b, name=name)


@tensor_method
def bitwise_and(input: Any, other: Any) -> Any:
    """``input & other``, of bools or of integers' bits; shapes broadcast. TypeError: floats."""
    return _bitwise("bitwise_and", "and_", input, other)


@tensor_method
def bitwise_or(input: Any, other: Any) -> Any:
    """``input | other``, of bools or of integers' bits; shapes broadcast. TypeError: floats."""
    return _bitwise("bitwise_or", "or_", input, other)


@tensor_method
def bitwise_xor(input: Any, other: Any) -> Any:
    """``input ^ other``, of bools or of integers' bits; shapes broadcast. TypeError: floats."""
    return _bitwise("bitwise_xor", "xor", input, other)


@tensor_method
def bitwise_not(input: Any) -> Any:
    """``~input``, of bools or of integers' bits. TypeError: floats."""
    input = operand("bitwise_not", "input", input)
    return _bitwise("bitwise_not", "xor", input, True if kind_of(element_type(input)) == "b" else -1)


def _truth(op: str, name: str, value: Any) -> Any:
    """Whether each element is not 0."""
    value = operand(op, name, value)
    dtype = element_type(value)
    return value if kind_of(dtype) == "b" else ne(value, np.zeros((), dtype))


@tensor_method
def logical_and(input: Any, other: Any) -> Any:
    """Whether both elements are not 0: bools; shapes broadcast."""
    return bitwise_and(_truth("logical_and", "input", input), _truth("logical_and", "other", other))


@tensor_method
def logical_or(input: Any, other: Any) -> Any:
    """Whether an element is not 0: bools; shapes broadcast."""
    return bitwise_or(_truth("logical_or", "input", input), _truth("logical_or", "other", other))


@tensor_method
def logical_xor(input: Any, other: Any) -> Any:
    """Whether one of two elements is not 0: bools; shapes broadcast."""
    return bitwise_xor(_truth("logical_xor", "input", input), _truth("logical_xor", "other", other))


@tensor_method
def logical_not(input: Any) -> Any:
    """Whether each element is 0: bools."""
    return bitwise_not(_truth("logical_not", "input", input))


@tensor_method
def isclose(input: Any, other: Any, rtol: float = 1e-05, atol: float = 1e-08, equal_nan: bool = False) -> Any:
    """Whether ``|input - other| <= atol + rtol · |other|``: bools. Infinities equal themselves.

    NaN does not equal NaN, unless ``equal_nan``.
    """
    a, b = _two("isclose", input, other)
    with no_grad():
        same = eq(a, b)
        if kind_of(element_type(a)) == "b":
            return same
        if equal_nan:
            same = bitwise_or(same, bitwise_and(isnan(a), isnan(b)))
        error, allowed = abs(sub(a, b)), add(mul(abs(b), rtol), atol)
        return bitwise_or(same, bitwise_and(isfinite(error), le(error, allowed)))


@tensor_method
def allclose(input: Any, other: Any, rtol: float = 1e-05, atol: float = 1e-08, equal_nan: bool = False) -> bool:
    """Whether all elements are close; see :func:`isclose`."""
    return bool(to_array(isclose(input, other, rtol, atol, equal_nan)).all())


@tensor_method
def equal(input: Any, other: Any) -> bool:
    """Whether both have one shape and the same elements."""
    input, other = operand("equal", "input", input), operand("equal", "other", other)
    return shape_of(input) == shape_of(other) and bool(to_array(eq(input, other)).all())


# -- choices ---------------------------------------------------------------------------------------------------------


class Where(Function):
    """a where a condition holds, else b."""

    @staticmethod
    def forward(ctx: Context, condition: Array, a: Array, b: Array) -> Array:
        ctx.save(condition, a.shape, b.shape)
        return ctx.backend.xp.where(condition, a, b)

    @staticmethod
    def backward(ctx: Context, grad: Array) -> tuple[Array | None, ...]:
        condition, *shapes = ctx.saved
        xp, zero = ctx.backend.xp, grad.dtype.type(0)
        _, need_a, need_b = ctx.needs_input_grad
        return (
            None,
            sum_to(xp.where(condition, grad, zero), shapes[0]) if need_a else None,
            sum_to(xp.where(condition, zero, grad), shapes[1]) if need_b else None,
        )


def _mask(op: str, name: str, value: Any) -> Any:
    value = operand(op, name, value)
    if kind_of(element_type(value)) != "b":
        raise TypeError(f"{op}: {name} must hold bools, got {element_type(value)}; write {name} != 0")
    return value


def _choice(op: str, name: str, value: Any) -> Any:
    return value if isinstance(value, NUMBERS) else operand(op, name, value)


def where(condition: Any, input: Any, other: Any) -> Any:
    """``input`` where ``condition`` holds, else ``other``; shapes broadcast.

    Args:
        condition: bools.
        input, other: Tensors, arrays or numbers; the result has the type of PyTorch's promotion.

    Raises:
        TypeError: a condition that does not hold bools.
    """
    condition = _mask("where", "condition", condition)
    a, b = promoted(_choice("where", "input", input), _choice("where", "other", other))
    return Where.apply(condition, a, b)


def _tensor_where(self: Tensor, condition: Any, other: Any) -> Any:
    """This Tensor where ``condition`` holds, else ``other``; see :func:`where`."""
    return where(condition, self, other)


_tensor_where.__name__ = "where"
tensor_method(_tensor_where)


@tensor_method
def masked_fill(input: Any, mask: Any, value: Any) -> Any:
    """``input``, with ``value`` where ``mask`` is true; shapes broadcast.

    Args:
        input: Tensor or array; the result has its dtype.
        mask: bools.
        value: a number, or a Tensor or array without dimensions.

    Raises:
        TypeError: a mask that does not hold bools, or a value that the input's dtype cannot hold.
        ValueError: a value with dimensions.
    """
    op = "masked_fill"
    input, mask = operand(op, "input", input), _mask(op, "mask", mask)
    value = value if isinstance(value, NUMBERS) else operand(op, "value", value)
    if len(getattr(value, "shape", ())):
        raise ValueError(f"{op}: value must be one number, got shape {tuple(value.shape)}")
    dtype = element_type(input)
    kind = kind_of(np.asarray(value).dtype) if isinstance(value, NUMBERS) else kind_of(element_type(value))
    if kind == "f" and kind_of(dtype) != "f":
        raise TypeError(f"{op}: value {value!r} is no {dtype}, which is what input holds")
    value = np.asarray(value, dtype) if isinstance(value, NUMBERS) else cast(value, dtype)
    return Where.apply(mask, value, input)


@tensor_method
def nan_to_num(input: Any, nan: float = 0.0, posinf: float | None = None, neginf: float | None = None) -> Any:
    """``nan`` in place of NaN, and ``posinf`` and ``neginf`` of infinities: unless given, the largest numbers."""
    input = operand("nan_to_num", "input", input)
    dtype = element_type(input)
    if kind_of(dtype) != "f":
        return input
    largest = float(np.nextafter(dtype.type(math.inf), dtype.type(0)))
    result = where(eq(input, math.inf), largest if posinf is None else posinf, input)
    result = where(eq(input, -math.inf), -largest if neginf is None else neginf, result)
    return where(isnan(input), nan, result)


Tensor.__abs__ = abs  # type: ignore[attr-defined]
