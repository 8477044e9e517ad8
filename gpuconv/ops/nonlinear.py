"""Activations composed of the array library's functions: rectifiers, sigmoid-like functions, shrinkages, gates.

Each public function takes floats of any shape and returns the same shape. All raise ``TypeError`` for input that is not
float and for an argument of the wrong kind, and ``ValueError`` for a value out of range. At a kink the gradient is
PyTorch's.
"""

from __future__ import annotations

import math
from typing import Any

from gpuconv.autograd import Context, Function, tensor_method
from gpuconv.backends import Array
from gpuconv.dtypes import float_type
from gpuconv.ops.activation import Softmax
from gpuconv.ops.arithmetic import _sum_to as sum_to
from gpuconv.ops.arithmetic import cast, mul
from gpuconv.ops.checks import floats, number, numbers, one_of, operand, shape_of
from gpuconv.ops.pointwise import Pointwise, erf, expit
from gpuconv.ops.pointwise import softplus as _softplus
from gpuconv.ops.shape import dimension, reshape

__all__ = [
    "celu",
    "elu",
    "gelu",
    "glu",
    "hardshrink",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "leaky_relu",
    "logsigmoid",
    "mish",
    "prelu",
    "relu6",
    "selu",
    "silu",
    "softmin",
    "softplus",
    "softshrink",
    "softsign",
    "tanhshrink",
    "threshold",
]

_SELU_ALPHA = 1.6732632423543772848170429916717
_SELU_SCALE = 1.0507009873554804934193349852946


# -- rectifiers ------------------------------------------------------------------------------------------------------


class LeakyReLU(Pointwise):
    """x where it is positive, else ``negative_slope · x``."""

    @staticmethod
    def value(xp: Any, x: Array, *, negative_slope: float) -> Array:
        return xp.where(x > 0, x, x * negative_slope)

    @staticmethod
    def slope(xp: Any, kept: Array, *, negative_slope: float) -> Array:
        return xp.where(kept > 0, kept.dtype.type(1), kept.dtype.type(negative_slope))


class PReLU(Function):
    """x where it is positive, else ``weight · x``; the weight has a shape that broadcasts to x."""

    @staticmethod
    def forward(ctx: Context, x: Array, weight: Array) -> Array:
        ctx.save(x, weight)
        return ctx.backend.xp.where(x > 0, x, x * weight)

    @staticmethod
    def backward(ctx: Context, grad: Array) -> tuple[Array | None, Array | None]:
        x, weight = ctx.saved
        xp, (need_x, need_weight) = ctx.backend.xp, ctx.needs_input_grad
        return (
            xp.where(x > 0, grad, grad * weight) if need_x else None,
            sum_to(xp.where(x > 0, x.dtype.type(0), grad * x), weight.shape) if need_weight else None,
        )


class ELU(Pointwise):
    """``scale · x`` where x is positive, else ``scale · alpha · (e^(x · rate) - 1)``."""

    @staticmethod
    def value(xp: Any, x: Array, *, alpha: float, scale: float, rate: float) -> Array:
        return xp.where(x <= 0, xp.expm1(x * rate) * (alpha * scale), x * scale)

    @staticmethod
    def slope(xp: Any, kept: Array, *, alpha: float, scale: float, rate: float) -> Array:
        return xp.where(kept <= 0, xp.exp(kept * rate) * (alpha * scale * rate), kept.dtype.type(scale))


class Hardtanh(Pointwise):
    """x between ``low`` and ``high``."""

    @staticmethod
    def value(xp: Any, x: Array, *, low: float, high: float) -> Array:
        return xp.minimum(xp.maximum(x, x.dtype.type(low)), x.dtype.type(high))

    @staticmethod
    def slope(xp: Any, kept: Array, *, low: float, high: float) -> Array:
        return ~((kept <= low) | (kept >= high))


class Threshold(Pointwise):
    """x where it is above ``at``, else ``other``."""

    @staticmethod
    def value(xp: Any, x: Array, *, at: float, other: float) -> Array:
        return xp.where(x <= at, x.dtype.type(other), x)

    @staticmethod
    def slope(xp: Any, kept: Array, *, at: float, other: float) -> Array:
        return ~(kept <= at)


@tensor_method
def leaky_relu(input: Any, negative_slope: float = 0.01) -> Any:
    """x where it is positive, else ``negative_slope · x`` (Maas et al., 2013)."""
    slope = number("leaky_relu", "negative_slope", negative_slope)
    return LeakyReLU.apply(*floats("leaky_relu", input=input), negative_slope=slope)


def prelu(input: Any, weight: Any) -> Any:
    """x where it is positive, else ``weight · x``, with a learned weight (He et al., 2015).

    Args:
        input: floats, (N, C, ...), or of fewer dimensions.
        weight: one value, or one a channel, (C,); same type.

    Raises:
        ValueError: a weight of another shape.
        TypeError: no floats, or types that differ.
    """
    input, weight = floats("prelu", input=input, weight=weight)
    shape, given = shape_of(input), shape_of(weight)
    channels = shape[1] if len(shape) > 1 else 1
    if len(given) > 1 or (math.prod(given) != 1 and given != (channels,)):
        raise ValueError(f"prelu: weight must have 1 element or one a channel, ({channels},), got shape {given}")
    if len(shape) > 2 and given == (channels,):
        weight = reshape(weight, (channels, *[1] * (len(shape) - 2)))
    elif len(shape) < 2 and given:
        weight = reshape(weight, (1,) * len(shape))
    return PReLU.apply(input, weight)


def elu(input: Any, alpha: float = 1.0) -> Any:
    """x where it is positive, else ``alpha · (e^x - 1)`` (Clevert et al., 2016)."""
    return ELU.apply(*floats("elu", input=input), alpha=number("elu", "alpha", alpha), scale=1.0, rate=1.0)


def celu(input: Any, alpha: float = 1.0) -> Any:
    """x where it is positive, else ``alpha · (e^(x / alpha) - 1)`` (Barron, 2017). ``alpha`` may not be 0."""
    alpha = number("celu", "alpha", alpha)
    if alpha == 0:
        raise ValueError("celu: alpha must not be 0")
    return ELU.apply(*floats("celu", input=input), alpha=alpha, scale=1.0, rate=1 / alpha)


def selu(input: Any) -> Any:
    """:func:`elu` with alpha 1.6733, times 1.0507: mean and variance settle (Klambauer et al., 2017)."""
    return ELU.apply(*floats("selu", input=input), alpha=_SELU_ALPHA, scale=_SELU_SCALE, rate=1.0)


def hardtanh(input: Any, min_val: float = -1.0, max_val: float = 1.0) -> Any:
    """x between ``min_val`` and ``max_val``; no gradient where it is at or past one of them."""
    low, high = numbers("hardtanh", min_val=min_val, max_val=max_val).values()
    if low > high:
        raise ValueError(f"hardtanh: min_val must be at most max_val, got {low} and {high}")
    return Hardtanh.apply(*floats("hardtanh", input=input), low=low, high=high)


def relu6(input: Any) -> Any:
    """``min(max(x, 0), 6)`` (Krizhevsky, 2010)."""
    return Hardtanh.apply(*floats("relu6", input=input), low=0.0, high=6.0)


def threshold(input: Any, threshold: float, value: float) -> Any:
    """x where it is above ``threshold``, else ``value``."""
    at, other = numbers("threshold", threshold=threshold, value=value).values()
    return Threshold.apply(*floats("threshold", input=input), at=at, other=other)


# -- sigmoid and softplus ---------------------------------------------------------------------------------------------


class GELU(Pointwise):
    """``x · Φ(x)``, Φ the normal distribution: by the error function, or approximated with a tanh."""

    @staticmethod
    def value(xp: Any, x: Array, *, approximate: str) -> Array:
        if approximate == "tanh":
            return 0.5 * x * (1 + xp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        return 0.5 * x * (1 + erf(xp, x * math.sqrt(0.5)))

    @staticmethod
    def slope(xp: Any, kept: Array, *, approximate: str) -> Array:
        if approximate == "tanh":
            t = xp.tanh(math.sqrt(2 / math.pi) * (kept + 0.044715 * kept**3))
            inner = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * kept * kept)
            return 0.5 * (1 + t) + 0.5 * kept * (1 - t * t) * inner
        density = xp.exp(-0.5 * kept * kept) * (1 / math.sqrt(2 * math.pi))
        return 0.5 * (1 + erf(xp, kept * math.sqrt(0.5))) + kept * density


class SiLU(Pointwise):
    """``x · sigmoid(x)``."""

    @staticmethod
    def value(xp: Any, x: Array) -> Array:
        return x * expit(xp, x)

    @staticmethod
    def slope(xp: Any, kept: Array) -> Array:
        s = expit(xp, kept)
        return s * (1 + kept * (1 - s))


class Mish(Pointwise):
    """``x · tanh(log(1 + e^x))``."""

    @staticmethod
    def value(xp: Any, x: Array) -> Array:
        return x * xp.tanh(_softplus(xp, x))

    @staticmethod
    def slope(xp: Any, kept: Array) -> Array:
        t = xp.tanh(_softplus(xp, kept))
        return t + kept * (1 - t * t) * expit(xp, kept)


class Softplus(Pointwise):
    """``log(1 + e^(beta · x)) / beta``, and x itself where ``beta · x`` is above ``threshold``."""

    @staticmethod
    def value(xp: Any, x: Array, *, beta: float, threshold: float) -> Array:
        return xp.where(x * beta > threshold, x, _softplus(xp, x * beta) / beta)

    @staticmethod
    def slope(xp: Any, kept: Array, *, beta: float, threshold: float) -> Array:
        return xp.where(kept * beta > threshold, kept.dtype.type(1), expit(xp, kept * beta))


class LogSigmoid(Pointwise):
    """``log(1 / (1 + e^-x))``."""

    @staticmethod
    def value(xp: Any, x: Array) -> Array:
        return -_softplus(xp, -x)

    @staticmethod
    def slope(xp: Any, kept: Array) -> Array:
        return expit(xp, -kept)


class Softsign(Pointwise):
    """``x / (1 + |x|)``."""

    @staticmethod
    def value(xp: Any, x: Array) -> Array:
        return x / (1 + xp.abs(x))

    @staticmethod
    def slope(xp: Any, kept: Array) -> Array:
        return 1 / (1 + xp.abs(kept)) ** 2


def gelu(input: Any, approximate: str = "none") -> Any:
    """``x · Φ(x)`` with the normal distribution Φ (Hendrycks & Gimpel, 2016).

    ``approximate``: 'none', by the error function, or 'tanh', ``x/2 · (1 + tanh(√(2/π) · (x + 0.044715 · x³)))``.
    """
    one_of("gelu", "approximate", approximate, ("none", "tanh"))
    return GELU.apply(*floats("gelu", input=input), approximate=approximate)


def silu(input: Any) -> Any:
    """``x · sigmoid(x)``, also called swish (Elfwing et al., 2018)."""
    return SiLU.apply(*floats("silu", input=input))


def mish(input: Any) -> Any:
    """``x · tanh(log(1 + e^x))`` (Misra, 2019)."""
    return Mish.apply(*floats("mish", input=input))


def softplus(input: Any, beta: float = 1.0, threshold: float = 20.0) -> Any:
    """``log(1 + e^(beta · x)) / beta``; x itself where ``beta · x`` is above ``threshold``. ``beta`` may not be 0."""
    beta, above = numbers("softplus", beta=beta, threshold=threshold).values()
    if beta == 0:
        raise ValueError("softplus: beta must not be 0")
    return Softplus.apply(*floats("softplus", input=input), beta=beta, threshold=above)


def logsigmoid(input: Any) -> Any:
    """``log(1 / (1 + e^-x))``, without overflow."""
    return LogSigmoid.apply(*floats("logsigmoid", input=input))


def softsign(input: Any) -> Any:
    """``x / (1 + |x|)``."""
    return Softsign.apply(*floats("softsign", input=input))


# -- piecewise linear, shrinkages -------------------------------------------------------------------------------------


class Hardsigmoid(Pointwise):
    """``relu6(x + 3) / 6``."""

    @staticmethod
    def value(xp: Any, x: Array) -> Array:
        return xp.clip(x + 3, 0, 6) / 6

    @staticmethod
    def slope(xp: Any, kept: Array) -> Array:
        return xp.where((kept > -3) & (kept < 3), kept.dtype.type(1 / 6), kept.dtype.type(0))


class Hardswish(Pointwise):
    """``x · relu6(x + 3) / 6``."""

    @staticmethod
    def value(xp: Any, x: Array) -> Array:
        return x * xp.clip(x + 3, 0, 6) / 6

    @staticmethod
    def slope(xp: Any, kept: Array) -> Array:
        middle = xp.where(kept < 3, kept / 3 + 0.5, kept.dtype.type(1))
        return xp.where(kept <= -3, kept.dtype.type(0), middle)


class Hardshrink(Pointwise):
    """0 from ``-lambd`` to ``lambd``, elsewhere x."""

    @staticmethod
    def value(xp: Any, x: Array, *, lambd: float) -> Array:
        return xp.where((x >= -lambd) & (x <= lambd), x.dtype.type(0), x)

    @staticmethod
    def slope(xp: Any, kept: Array, *, lambd: float) -> Array:
        return ~((kept >= -lambd) & (kept <= lambd))


class Softshrink(Hardshrink):
    """x moved towards 0 by ``lambd``, and 0 where it would cross it."""

    @staticmethod
    def value(xp: Any, x: Array, *, lambd: float) -> Array:
        # Times 0, so that NaN stays.
        return xp.where(x > lambd, x - lambd, xp.where(x < -lambd, x + lambd, x * 0))


class Tanhshrink(Pointwise):
    """``x - tanh(x)``."""

    @staticmethod
    def value(xp: Any, x: Array) -> Array:
        return x - xp.tanh(x)

    @staticmethod
    def slope(xp: Any, kept: Array) -> Array:
        return xp.tanh(kept) ** 2


def hardsigmoid(input: Any) -> Any:
    """``relu6(x + 3) / 6`` (Howard et al., 2019)."""
    return Hardsigmoid.apply(*floats("hardsigmoid", input=input))


def hardswish(input: Any) -> Any:
    """``x · relu6(x + 3) / 6`` (Howard et al., 2019)."""
    return Hardswish.apply(*floats("hardswish", input=input))


def hardshrink(input: Any, lambd: float = 0.5) -> Any:
    """0 from ``-lambd`` to ``lambd``, elsewhere x."""
    return Hardshrink.apply(*floats("hardshrink", input=input), lambd=number("hardshrink", "lambd", lambd))


def softshrink(input: Any, lambd: float = 0.5) -> Any:
    """x moved towards 0 by ``lambd``, at least 0; 0 where it would cross it."""
    lambd = number("softshrink", "lambd", lambd)
    if not lambd >= 0:
        raise ValueError(f"softshrink: lambd must be at least 0, got {lambd}")
    return Softshrink.apply(*floats("softshrink", input=input), lambd=lambd)


def tanhshrink(input: Any) -> Any:
    """``x - tanh(x)``."""
    return Tanhshrink.apply(*floats("tanhshrink", input=input))


# -- along a dimension ------------------------------------------------------------------------------------------------


class GLU(Function):
    """The first half along a dimension, times the sigmoid of the second."""

    @staticmethod
    def forward(ctx: Context, x: Array, *, dim: int) -> Array:
        a, b = _halves(x, dim)
        gate = expit(ctx.backend.xp, b)
        ctx.save(x, gate, dim)
        return a * gate

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Array:
        x, gate, dim = ctx.saved
        a, _ = _halves(x, dim)
        return ctx.backend.xp.concatenate([grad * gate, grad * a * (gate * (1 - gate))], axis=dim)


def _halves(x: Array, dim: int) -> tuple[Array, Array]:
    half, before = x.shape[dim] // 2, (slice(None),) * dim
    return x[(*before, slice(0, half))], x[(*before, slice(half, None))]


def glu(input: Any, dim: int = -1) -> Any:
    """The first half along ``dim``, times the sigmoid of the second (Dauphin et al., 2017).

    Returns:
        The input's shape, half as long along ``dim``.

    Raises:
        IndexError: no such dimension.
        ValueError: no dimensions, or an odd size.
    """
    (input,) = floats("glu", input=input)
    shape = shape_of(input)
    if not shape:
        raise ValueError("glu: input must have at least 1 dimension, got a single number")
    dim = dimension(dim, len(shape), "glu")
    if shape[dim] % 2:
        raise ValueError(f"glu: input must have an even size along dim {dim}, got shape {shape}")
    return GLU.apply(input, dim=dim)


def softmin(input: Any, dim: int, *, dtype: Any = None) -> Any:
    """Softmax of ``-input`` along ``dim``; arguments and errors as of ``softmax``."""
    if dtype is not None:
        input = cast(operand("softmin", "input", input), float_type(dtype, "softmin"))
    (input,) = floats("softmin", input=input)
    shape = shape_of(input)
    dim = dimension(dim, len(shape), "softmin")
    opposite = mul(input, -1)
    return Softmax.apply(opposite, dim=dim) if shape else reshape(Softmax.apply(reshape(opposite, 1), dim=0), ())
