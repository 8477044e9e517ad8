"""Element-wise arithmetic with broadcasting, sums, and the matrix product: what Tensor's operators do."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np

from gpuconv.autograd import Context, Function, Tensor, tensor_method, to_array
from gpuconv.backends import Array, capturing
from gpuconv.dtypes import computed, float_type, is_half, kind_of, number_type, promoted
from gpuconv.geometry import one_of
from gpuconv.ops.pointwise import Pointwise
from gpuconv.ops.shape import dimension

#: Of element types: a float beside an integer is a float, whatever their sizes.
_CATEGORIES = {"b": 0, "u": 1, "i": 1, "f": 2}
#: What a number becomes beside arrays of a lower category.
_DEFAULTS = (np.dtype(np.bool_), np.dtype(np.int64), np.dtype(np.float32))
_NUMBERS = (bool, int, float, np.generic)


def _operands(a: Any, b: Any, *, floats: bool = False) -> tuple[Any, Any]:
    """Convert both operands to the dtype that PyTorch's promotion gives (``torch.result_type``).

    The higher category decides: bool, integers, floats. Within it the largest dtype decides, first of arrays with
    dimensions, then of arrays without, then of numbers (Python's and NumPy's): a number does not turn a float32 into a
    float64.

    Args:
        a, b: Tensors, arrays, numbers.
        floats: convert integers to float32, as a division does.
    """
    if isinstance(b, _NUMBERS) or isinstance(a, _NUMBERS):
        a, b = (x if isinstance(x, _NUMBERS) else _array_like(x) for x in (a, b))
    else:
        a, b = _array_like(a), _array_like(b)
        if a.dtype == b.dtype and (not floats or kind_of(to_array(a).dtype) == "f"):
            return a, b
    ranks: list[list[np.dtype]] = [[], [], []]
    for x in (a, b):
        number = isinstance(x, _NUMBERS)
        dtype = _DEFAULTS[_CATEGORIES.get(kind_of(np.asarray(x).dtype), 1)] if number else to_array(x).dtype
        ranks[2 if number else 0 if x.ndim else 1].append(dtype)
    wanted: np.dtype | None = None
    for dtypes in ranks:
        for dtype in dtypes:
            if wanted is None or _CATEGORIES[kind_of(dtype)] > _CATEGORIES[kind_of(wanted)]:
                wanted = dtype
            elif dtypes[0] is not dtype and _CATEGORIES[kind_of(dtype)] == _CATEGORIES[kind_of(wanted)]:
                wanted = promoted(wanted, dtype)
    assert wanted is not None
    if floats and kind_of(wanted) != "f":
        wanted = _DEFAULTS[2]
    return _as_type(a, wanted), _as_type(b, wanted)


def _array_like(x: Any) -> Any:
    return x if isinstance(x, Tensor) or (hasattr(x, "dtype") and hasattr(x, "ndim")) else to_array(x)


def _as_type(x: Any, dtype: np.dtype) -> Any:
    if isinstance(x, _NUMBERS):
        # Beside uint8, -1 is 255, as in PyTorch; what no integer type holds is an OverflowError. Beside half types,
        # which compute in float32, a number is not rounded.
        return np.asarray(x, computed(dtype)) if kind_of(dtype) == "f" else np.asarray(x).astype(dtype)
    return cast(x, dtype)


def cast(x: Any, dtype: Any) -> Any:
    """``x`` in another element type; itself if it has it. Integers have no gradient."""
    if to_array(x).dtype == dtype:
        return x
    if isinstance(x, Tensor) and kind_of(np.dtype(dtype)) != "f":
        x = x.detach()
    return Cast.apply(x, dtype=dtype)


@tensor_method
def type_as(a: Any, other: Any) -> Any:
    """``a`` in the element type of ``other``; itself if it has it."""
    return cast(a, to_array(other).dtype)


def _floating(x: Any) -> Any:
    """``x``; integers as float32."""
    return x if kind_of(to_array(x).dtype) == "f" else cast(x, _DEFAULTS[2])


_F = TypeVar("_F", bound=Callable[..., Any])


def rounded_once(function: _F) -> _F:
    """Decorator of a function of several operations: on half types all of them compute in float32.

    Its results get the half type. Arguments of mixed float types are left as they are: it may refuse them.
    """

    @functools.wraps(function)
    def in_float32(*arguments: Any, **options: Any) -> Any:
        for value in (*arguments, *options.values()) if options else arguments:
            if getattr(value.data if isinstance(value, Tensor) else value, "itemsize", 0) == 2:
                break  # perhaps of a half type
        else:
            return function(*arguments, **options)
        given = {id(value): to_array(value).dtype for value in (*arguments, *options.values()) if _is_array(value)}
        types = {dtype for dtype in given.values() if kind_of(dtype) == "f"}
        if len(types) != 1 or not is_half(half := next(iter(types))):
            return function(*arguments, **options)

        def widened(value: Any) -> Any:
            return cast(value, _DEFAULTS[2]) if given.get(id(value)) == half else value

        result = function(*map(widened, arguments), **{name: widened(value) for name, value in options.items()})
        return cast(result, half) if to_array(result).dtype == _DEFAULTS[2] else result

    return in_float32  # type: ignore[return-value]


def _is_array(value: Any) -> bool:
    return isinstance(value, Tensor) or (hasattr(value, "dtype") and hasattr(value, "ndim"))


class Cast(Function):
    """The same values in another dtype; the gradient is converted back."""

    takes_half: ClassVar[tuple[str, ...]] = ("forward", "backward")

    @staticmethod
    def forward(ctx: Context, a: Array, *, dtype: Any) -> Array:
        return a.astype(dtype)

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Array:
        return grad  # the engine gives it the type of its value


def _size(a: Any) -> int:
    return math.prod(a.shape) if hasattr(a, "shape") else int(np.size(a))


def _sum_to(grad: Array, shape: tuple[int, ...]) -> Array:
    """Undo broadcasting: sum over the dimensions along which an operand of ``shape`` was repeated."""
    extra = grad.ndim - len(shape)
    if extra:
        grad = grad.sum(axis=tuple(range(extra)))
    repeated = tuple(i for i, size in enumerate(shape) if size == 1 and grad.shape[i] != 1)
    return grad.sum(axis=repeated, keepdims=True) if repeated else grad


class Add(Function):
    """``a + b``."""

    @staticmethod
    def forward(ctx: Context, a: Array, b: Array) -> Array:
        ctx.save(a.shape, b.shape)
        return a + b

    @staticmethod
    def backward(ctx: Context, grad: Array) -> tuple[Array, Array]:
        a_shape, b_shape = ctx.saved
        return _sum_to(grad, a_shape), _sum_to(grad, b_shape)


class Sub(Function):
    """``a - b``."""

    @staticmethod
    def forward(ctx: Context, a: Array, b: Array) -> Array:
        ctx.save(a.shape, b.shape)
        return a - b

    @staticmethod
    def backward(ctx: Context, grad: Array) -> tuple[Array, Array]:
        a_shape, b_shape = ctx.saved
        return _sum_to(grad, a_shape), _sum_to(-grad, b_shape)


class Mul(Function):
    """``a · b``, element by element."""

    @staticmethod
    def forward(ctx: Context, a: Array, b: Array) -> Array:
        need_a, need_b = ctx.needs_input_grad
        ctx.save(a if need_b else None, b if need_a else None, a.shape, b.shape)
        return a * b

    @staticmethod
    def backward(ctx: Context, grad: Array) -> tuple[Array | None, Array | None]:
        a, b, a_shape, b_shape = ctx.saved
        return (
            None if b is None else _sum_to(grad * b, a_shape),
            None if a is None else _sum_to(grad * a, b_shape),
        )


class Div(Function):
    """``a / b``, element by element."""

    @staticmethod
    def forward(ctx: Context, a: Array, b: Array) -> Array:
        result = a / b
        ctx.save(result if ctx.needs_input_grad[1] else None, b, a.shape)
        return result

    @staticmethod
    def backward(ctx: Context, grad: Array) -> tuple[Array | None, Array | None]:
        result, b, a_shape = ctx.saved
        need_a, need_b = ctx.needs_input_grad
        grad_a = grad / b
        return (
            _sum_to(grad_a, a_shape) if need_a else None,
            _sum_to(-grad_a * result, b.shape) if need_b else None,
        )


class Pow(Function):
    """``a ** exponent`` with a constant exponent."""

    @staticmethod
    def forward(ctx: Context, a: Array, *, exponent: float) -> Array:
        ctx.save(a, exponent)
        return a**exponent

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Array:
        a, exponent = ctx.saved
        if exponent == 0:  # where a is 0, 0 / 0
            return grad * 0
        return grad * (exponent * a ** (exponent - 1))


class Power(Function):
    """``a ** b``, element by element; shapes broadcast. Of integers to a negative power the whole part is left."""

    @staticmethod
    def forward(ctx: Context, a: Array, b: Array) -> Array:
        xp = ctx.backend.xp
        if kind_of(a.dtype) != "f":
            power = xp.power(a, xp.where(b < 0, b & 1, b))  # which is right of 1 and -1; of others 0 is left
            return xp.where((b < 0) & (xp.abs(a) != 1), a.dtype.type(0), power)
        result = xp.power(a, b)
        ctx.save(a, b, result)
        return result

    @staticmethod
    def backward(ctx: Context, grad: Array) -> tuple[Array | None, ...]:
        a, b, result = ctx.saved
        xp, (need_a, need_b) = ctx.backend.xp, ctx.needs_input_grad
        zero = grad.dtype.type(0)
        slope_a = xp.where(b == 0, zero, b * xp.power(a, b - 1)) if need_a else None
        slope_b = xp.where((a == 0) & (b >= 0), zero, result * xp.log(a)) if need_b else None
        return (
            None if slope_a is None else _sum_to(grad * slope_a, a.shape),
            None if slope_b is None else _sum_to(grad * slope_b, b.shape),
        )


def _floored(xp: Any, a: Array, b: Array) -> tuple[Array, Array]:
    """The quotient, rounded down, and the rest, which has the sign of b: as Python's ``divmod``."""
    if kind_of(a.dtype) != "f":
        return xp.floor_divide(a, b), xp.remainder(a, b)
    # By way of the exact rest: the quotient of 1 and 0.1 is 9, and not the floor of 10.0.
    rest = xp.fmod(a, b)
    apart = (rest != 0) & ((b < 0) != (rest < 0))
    return xp.where(b == 0, a / b, xp.rint((a - rest) / b - apart)), xp.where(apart, rest + b, rest)


class Quotient(Function):
    """``a / b`` rounded down, or towards 0; integers stay integers. The gradient is 0."""

    @staticmethod
    def forward(ctx: Context, a: Array, b: Array, *, down: bool) -> Array:
        ctx.save(a.shape, b.shape)
        xp = ctx.backend.xp
        if down:
            return _floored(xp, a, b)[0]
        if kind_of(a.dtype) == "f":
            return xp.trunc(a / b)
        quotient, rest = _floored(xp, a, b)
        return quotient + ((rest != 0) & ((a < 0) != (b < 0)))

    @staticmethod
    def backward(ctx: Context, grad: Array) -> tuple[Array, ...]:
        return tuple(ctx.backend.xp.zeros(shape, grad.dtype) for shape in ctx.saved)


class Modulo(Function):
    """What is left of a division; ``name`` is ``fmod``, with the sign of a, or ``mod``, with that of b."""

    @staticmethod
    def forward(ctx: Context, a: Array, b: Array, *, name: str) -> Array:
        ctx.save(a, b, name)
        return ctx.backend.xp.fmod(a, b) if name == "fmod" else _floored(ctx.backend.xp, a, b)[1]

    @staticmethod
    def backward(ctx: Context, grad: Array) -> tuple[Array | None, ...]:
        a, b, name = ctx.saved
        xp, (need_a, need_b) = ctx.backend.xp, ctx.needs_input_grad
        quotient = None
        if need_b:
            quotient = xp.trunc(a / b) if name == "fmod" else _floored(xp, a, b)[0]
        return (
            _sum_to(grad, a.shape) if need_a else None,
            None if quotient is None else _sum_to(-grad * quotient, b.shape),
        )


class Exp(Pointwise):
    """``e ** a``."""

    of_result = True
    value = staticmethod(lambda xp, a: xp.exp(a))
    slope = staticmethod(lambda xp, result: result)


class Log(Function):
    """Natural logarithm."""

    @staticmethod
    def forward(ctx: Context, a: Array) -> Array:
        ctx.save(a)
        return ctx.backend.xp.log(a)

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Array:
        (a,) = ctx.saved
        return grad / a


class Sum(Function):
    """Sum over ``axes`` (None: all)."""

    @staticmethod
    def forward(ctx: Context, a: Array, *, axes: tuple[int, ...] | None, keepdims: bool) -> Array:
        ctx.save(a.shape, axes, keepdims)
        return ctx.backend.xp.asarray(a.sum(axis=axes, keepdims=keepdims))

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Array:
        shape, axes, keepdims = ctx.saved
        xp = ctx.backend.xp
        if axes is not None and not keepdims:
            grad = xp.expand_dims(grad, tuple(axis % len(shape) for axis in axes))
        return xp.broadcast_to(grad, shape).copy()


class MatMul(Function):
    """Matrix product over the last two dimensions; leading ones broadcast, as in ``numpy.matmul``."""

    @staticmethod
    def forward(ctx: Context, a: Array, b: Array) -> Array:
        need_a, need_b = ctx.needs_input_grad
        ctx.save(a if need_b else None, b if need_a else None, a.shape, b.shape)
        return ctx.backend.xp.asarray(ctx.backend.matmul(a, b))

    @staticmethod
    def backward(ctx: Context, grad: Array) -> tuple[Array | None, Array | None]:
        a, b, a_shape, b_shape = ctx.saved
        product = ctx.backend.matmul
        # A vector is a row (left) or a column (right): add that dimension, and remove it from the result.
        a2_shape = a_shape if len(a_shape) > 1 else (1, *a_shape)
        b2_shape = b_shape if len(b_shape) > 1 else (*b_shape, 1)
        if len(a_shape) == 1 and len(b_shape) == 1:
            grad = grad.reshape(1, 1)
        elif len(a_shape) == 1:
            grad = grad[..., None, :]
        elif len(b_shape) == 1:
            grad = grad[..., None]
        return (
            None
            if b is None
            else _sum_to(product(grad, b.reshape(b2_shape).swapaxes(-1, -2)), a2_shape).reshape(a_shape),
            None
            if a is None
            else _sum_to(product(a.reshape(a2_shape).swapaxes(-1, -2), grad), b2_shape).reshape(b_shape),
        )


def _scaled(a: Any, b: Any, alpha: float) -> tuple[Any, Any]:
    """``a`` and ``alpha · b``: multiplied in the type of the result, as -1 times a uint8 would be another number."""
    a, b = _operands(a, b)
    return _operands(a, mul(b, alpha))


@tensor_method
def add(a: Any, b: Any, *, alpha: float = 1) -> Any:
    """``a + alpha · b``; shapes broadcast."""
    return Add.apply(*_operands(a, b) if alpha == 1 else _scaled(a, b, alpha))


@tensor_method
def sub(a: Any, b: Any, *, alpha: float = 1) -> Any:
    """``a - alpha · b``; shapes broadcast."""
    return Sub.apply(*_operands(a, b) if alpha == 1 else _scaled(a, b, alpha))


@tensor_method
def mul(a: Any, b: Any) -> Any:
    """``a · b``, element by element; shapes broadcast."""
    return Mul.apply(*_operands(a, b))


@tensor_method
def div(a: Any, b: Any, *, rounding_mode: str | None = None) -> Any:
    """``a / b``, element by element; shapes broadcast.

    Args:
        a, b: Tensors, arrays or numbers.
        rounding_mode: None; or 'trunc', towards 0, or 'floor', down: integers stay integers, and the gradient is 0.

    Raises:
        ValueError: another rounding mode.
        TypeError: bools, if the result is rounded.
        ZeroDivisionError: integers on the host by 0, if the result is rounded.
    """
    if rounding_mode is None:
        return Div.apply(*_operands(a, b, floats=True))
    one_of(rounding_mode, "rounding_mode", ("trunc", "floor"), op="div", otherwise="None")
    return Quotient.apply(*_divided("div", a, b), down=rounding_mode == "floor")


def _divided(op: str, a: Any, b: Any) -> tuple[Any, Any]:
    """The operands of a division with a rest."""
    a, b = _operands(a, b)
    divisor = to_array(b)
    if kind_of(divisor.dtype) == "b":
        raise TypeError(f"{op}: a and b are bools; convert one of them to a type of numbers")

    def check() -> None:
        if not divisor.all():
            raise ZeroDivisionError(f"{op}: b must not be 0 for integers")

    if kind_of(divisor.dtype) != "f" and isinstance(divisor, np.ndarray):
        capturing.repeated(check, divisor)
    return a, b


@tensor_method
def floor_divide(a: Any, b: Any) -> Any:
    """:func:`div` rounded down: what ``//`` does."""
    return Quotient.apply(*_divided("floor_divide", a, b), down=True)


@tensor_method
def remainder(a: Any, b: Any) -> Any:
    """What is left of :func:`floor_divide`, with the sign of b: what ``%`` does. Errors as there."""
    return Modulo.apply(*_divided("remainder", a, b), name="mod")


@tensor_method
def fmod(a: Any, b: Any) -> Any:
    """What is left of a division that is rounded towards 0, with the sign of a. Errors as of :func:`floor_divide`."""
    return Modulo.apply(*_divided("fmod", a, b), name="fmod")


@tensor_method
def matmul(a: Any, b: Any) -> Any:
    """Matrix product, as ``numpy.matmul``."""
    return MatMul.apply(*_operands(a, b))


@tensor_method
def pow(a: Any, exponent: Any) -> Any:
    """``a ** exponent``, element by element; each may be a number, and shapes broadcast.

    The gradient for a is 0 where the exponent is 0; for the exponent, where a is 0 and the exponent is not negative.

    Raises:
        ValueError: integers, and an exponent that is a negative integer.
        TypeError: bools to a power that is bool.
    """
    number = isinstance(exponent, _NUMBERS)
    # A Python number, which leaves a float32 one: NumPy's would make it wider.
    exponent = exponent.item() if isinstance(exponent, np.generic) else exponent
    kind = kind_of(to_array(a).dtype)
    if not number or kind != "f":
        a, power = _operands(a, exponent)
        kind = kind_of(to_array(a).dtype)
        if kind == "b":
            raise TypeError("pow: a and exponent are bools; convert one of them to a type of numbers")
        if not number:
            return Power.apply(a, power)
        if kind != "f" and exponent < 0:
            raise ValueError(f"pow: exponent must be at least 0 for integers, got {exponent}; convert a to floats")
    return Pow.apply(a, exponent=exponent)


@tensor_method
def exp(a: Any) -> Any:
    """``e ** a``."""
    return Exp.apply(_floating(a))


@tensor_method
def log(a: Any) -> Any:
    """Natural logarithm."""
    return Log.apply(_floating(a))


def accumulated(op: str, input: Any, dtype: Any, function: Callable[[Any], Any]) -> Any:
    """What ``function`` makes of the input converted to ``dtype``, in that; without it integers become int64."""
    if dtype is not None:  # smaller integers are accumulated as int64, and then cut off
        dtype = number_type(dtype, op)
        return cast(accumulated(op, cast(input, dtype), None, function), dtype)
    return function(input if kind_of(to_array(input).dtype) == "f" else cast(input, _DEFAULTS[1]))


@tensor_method
def sum(a: Any, dim: int | Sequence[int] | None = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    """Sum over ``dim``: an int, several ints, or None (or an empty sequence, as in PyTorch) for all.

    The input is converted to ``dtype`` first, and the sum is of that type. Without it, sums of integers are int64.

    Raises:
        IndexError: no such dimension.
        TypeError: ``dim`` is neither an integer nor a sequence of integers, or ``dtype`` no type of numbers.
        ValueError: a dimension is named twice.
    """
    a, axes = _array_like(a), None
    if dim is not None:
        ndim = len(a.shape)
        several = dim if isinstance(dim, Sequence) else (dim,)
        axes = tuple(dimension(one, ndim, "sum") for one in several)
        if len({*axes}) < len(axes):
            raise ValueError(f"sum: dim {tuple(several)} names a dimension twice")
        axes = axes if axes and ndim else None
    return accumulated("sum", a, dtype, functools.partial(Sum.apply, axes=axes, keepdims=keepdim))


@tensor_method
def mean(a: Any, dim: int | Sequence[int] | None = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    """Mean over ``dim`` (an int, several, or None for all).

    The input is converted to ``dtype``, a float type, first, if that is given. Errors as of :func:`sum`.
    """
    return _mean(a if dtype is None else cast(_array_like(a), float_type(dtype, "mean")), dim, keepdim)


@rounded_once
def _mean(a: Any, dim: int | Sequence[int] | None, keepdim: bool) -> Any:
    total = sum(a, dim, keepdim)
    count = _size(a) / max(1, _size(total))
    return mul(total, 1.0 / count) if count else div(total, 0.0)
