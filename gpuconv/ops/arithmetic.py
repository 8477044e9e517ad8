"""Element-wise arithmetic with broadcasting, sums, and the matrix product: what Tensor's operators do."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np

from gpuconv.autograd import Context, Function, Tensor, tensor_method, to_array
from gpuconv.backends import Array
from gpuconv.dtypes import computed, float_type, is_half, kind_of, number_type, promoted
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
def div(a: Any, b: Any) -> Any:
    """``a / b``, element by element; shapes broadcast."""
    return Div.apply(*_operands(a, b, floats=True))


@tensor_method
def matmul(a: Any, b: Any) -> Any:
    """Matrix product, as ``numpy.matmul``."""
    return MatMul.apply(*_operands(a, b))


@tensor_method
def pow(a: Any, exponent: float) -> Any:
    """``a ** exponent``; the exponent is a number.

    Raises:
        TypeError: the exponent is not a number.
    """
    if not isinstance(exponent, _NUMBERS):
        raise TypeError(f"pow: exponent must be a number, got {type(exponent).__name__}")
    # A Python number, which leaves a float32 one: NumPy's would make it wider.
    exponent = exponent.item() if isinstance(exponent, np.generic) else exponent
    return Pow.apply(_floating(a) if isinstance(exponent, float) else a, exponent=exponent)


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
