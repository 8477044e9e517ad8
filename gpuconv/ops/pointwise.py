"""The base of element-wise functions of one input, and the error function, which NumPy lacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from gpuconv.autograd import Context, Function
from gpuconv.backends import Array
from gpuconv.dtypes import kind_of

__all__ = ["Pointwise", "erf", "expit", "softplus"]


class Pointwise(Function):
    """An element-wise function of one float input.

    A subclass defines ``value(xp, x, **options)`` and ``slope(xp, kept, **options)``, its derivative. A slope of bools
    says where the gradient passes: elsewhere it is 0, whatever the gradient is.
    """

    #: Whether the slope is computed from the result, and not from the input: only that is kept then.
    of_result: ClassVar[bool] = False

    value: ClassVar[Callable[..., Array]]
    slope: ClassVar[Callable[..., Array]]

    @classmethod
    def forward(cls, ctx: Context, x: Array, **options: Any) -> Array:
        # In NumPy 1, a number combined with an array without dimensions gives float64.
        y = ctx.backend.xp.asarray(cls.value(ctx.backend.xp, x, **options), dtype=x.dtype)
        ctx.save(y if cls.of_result else x, options)
        return y

    @classmethod
    def backward(cls, ctx: Context, grad: Array) -> Array:
        kept, options = ctx.saved
        slope = cls.slope(ctx.backend.xp, kept, **options)
        return ctx.backend.xp.where(slope, grad, grad.dtype.type(0)) if kind_of(slope.dtype) == "b" else grad * slope


def expit(xp: Any, x: Array) -> Array:
    """``1 / (1 + e^-x)``, without overflow."""
    e = xp.exp(-xp.abs(x))
    return xp.where(x >= 0, x.dtype.type(1), e) / (1 + e)


def softplus(xp: Any, x: Array) -> Array:
    """``log(1 + e^x)``, without overflow."""
    return xp.maximum(x, 0) + xp.log1p(xp.exp(-xp.abs(x)))


# Coefficients of the rational approximations of fdlibm's s_erf.c (Sun Microsystems, 1993), by powers of the variable.
_NEAR = (
    (
        1.28379167095512558561e-01,
        -3.25042107247001499370e-01,
        -2.84817495755985104766e-02,
        -5.77027029648944159157e-03,
        -2.37630166566501626084e-05,
    ),
    (
        1.0,
        3.97917223959155352819e-01,
        6.50222499887672944485e-02,
        5.08130628187576562776e-03,
        1.32494738004321644526e-04,
        -3.96022827877536812320e-06,
    ),
)
_AT_ONE = 8.45062911510467529297e-01
_AROUND_ONE = (
    (
        -2.36211856075265944077e-03,
        4.14856118683748331666e-01,
        -3.72207876035701323847e-01,
        3.18346619901161753674e-01,
        -1.10894694282396677476e-01,
        3.54783043256182359371e-02,
        -2.16637559486879084300e-03,
    ),
    (
        1.0,
        1.06420880400844228286e-01,
        5.40397917702171048937e-01,
        7.18286544141962662868e-02,
        1.26171219808761642112e-01,
        1.36370839120290507362e-02,
        1.19844998467991074170e-02,
    ),
)
_TAIL = (
    (
        -9.86494403484714822705e-03,
        -6.93858572707181764372e-01,
        -1.05586262253232909814e01,
        -6.23753324503260060396e01,
        -1.62396669462573470355e02,
        -1.84605092906711035994e02,
        -8.12874355063065934246e01,
        -9.81432934416914548592e00,
    ),
    (
        1.0,
        1.96512716674392571292e01,
        1.37657754143519042600e02,
        4.34565877475229228821e02,
        6.45387271733267880336e02,
        4.29008140027567833386e02,
        1.08635005541779435134e02,
        6.57024977031928170135e00,
        -6.04244152148580987438e-02,
    ),
)
_FAR_TAIL = (
    (
        -9.86494292470009928597e-03,
        -7.99283237680523006574e-01,
        -1.77579549177547519889e01,
        -1.60636384855821916062e02,
        -6.37566443368389627722e02,
        -1.02509513161107724954e03,
        -4.83519191608651397019e02,
    ),
    (
        1.0,
        3.03380607434824582924e01,
        3.25792512996573918826e02,
        1.53672958608443695994e03,
        3.19985821950859553908e03,
        2.55305040643316442583e03,
        4.74528541206955367215e02,
        -2.24409524465858183362e01,
    ),
)


def _ratio(x: Array, coefficients: tuple[tuple[float, ...], tuple[float, ...]]) -> Array:
    numerator, denominator = (_polynomial(x, terms) for terms in coefficients)
    return numerator / denominator


def _polynomial(x: Array, terms: tuple[float, ...]) -> Array:
    total = x * 0 + terms[-1]
    for term in terms[-2::-1]:
        total = total * x + term
    return total


def erf(xp: Any, x: Array) -> Array:
    """Error function, to about a rounding of the result; NaN stays NaN."""
    size = xp.abs(x)
    near = x + x * _ratio(xp.minimum(size, 0.84375) ** 2, _NEAR)
    around = _AT_ONE + _ratio(xp.clip(size, 0.84375, 1.25) - 1, _AROUND_ONE)
    outer = xp.clip(size, 1.25, 6.0)
    inverse = 1 / (outer * outer)
    exponent = xp.where(size < 1 / 0.35, _ratio(inverse, _TAIL), _ratio(inverse, _FAR_TAIL))
    tail = 1 - xp.exp(-outer * outer - 0.5625 + exponent) / outer
    return xp.where(size < 0.84375, near, xp.sign(x) * xp.where(size < 1.25, around, tail))
