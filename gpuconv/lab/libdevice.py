"""``numba.cuda.libdevice`` in the simulator: its functions in Python, with libdevice's types and NumPy's accuracy.

Functions of float32 are computed in float64 and rounded once, those named ``fast_`` as well: on a GPU these differ in
the last bits. The four ways to round are exact.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import importlib
import math
import statistics
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

from gpuconv.lab.integers import cut_off, typed

_NORMAL = statistics.NormalDist()


def patch() -> None:
    """Give the module functions that compute, in place of its stubs."""
    vars(importlib.import_module("numba.cuda.libdevice")).update(functions())


@functools.cache
def functions() -> dict[str, Callable[..., Any]]:
    """All functions by their names in the module."""
    known = importlib.import_module("numba.cuda.libdevicefuncs")
    made = {}
    for name, (kind, arguments) in known.functions.items():
        signature = known.create_signature(kind, arguments)
        parts = getattr(signature.return_type, "types", [signature.return_type])
        given = [getattr(np, str(each)) for each in signature.args]
        made[name[5:]] = _typed(name[5:], given, [getattr(np, str(each)) for each in parts])
    return made


def _typed(name: str, given: list[Any], results: list[Any]) -> Callable[..., Any]:
    """A function that converts its arguments and results as libdevice's does."""
    function = _function(name, results[0])

    def call(*args: Any) -> Any:
        if len(args) != len(given):
            raise TypeError(f"libdevice.{name} takes {len(given)} arguments, not {len(args)}")
        values = [_cast(arg, kind) for arg, kind in zip(args, given, strict=True)]
        with np.errstate(all="ignore"):
            made = function(*values)
            if len(results) > 1:
                return tuple(map(typed, map(_cast, made, results)))
            return typed(_cast(made, results[0]))

    call.__name__ = name
    return call


def _cast(value: Any, kind: Any) -> Any:
    if issubclass(kind, np.integer):
        return cut_off(int(value), np.dtype(kind))[()]
    return kind(value)


def _function(name: str, kind: Any) -> Callable[..., Any]:
    """The Python function of a name, its type and its way to round aside."""
    if name in _PLAIN:
        return _PLAIN[name]
    base, _, way = name.rpartition("_")
    if way in _ROUNDED and base:
        number = np.float64 if base[0] == "d" or base == "fma" or kind is np.float64 else np.float32
        if "2" in base:
            return functools.partial(_converted, way, kind)
        operation = base.removesuffix("f") if base.startswith("fma") else base[1:]
        if operation == "rsqrt":
            return lambda x: 1 / np.sqrt(np.float64(x))
        return functools.partial(_arithmetic, operation, way, number)
    base = name.removeprefix("fast_")
    for short in (base, base.removesuffix("f"), base.removesuffix("d")):
        if short in _FLOAT:
            return functools.partial(_in_double, _FLOAT[short])
    raise NotImplementedError(f"libdevice.{name} is not in the laboratory")


def _in_double(function: Callable[..., Any], *values: Any) -> Any:
    wide = [np.float64(value) if isinstance(value, np.floating) else int(value) for value in values]
    try:
        return function(*wide)
    except ValueError:
        return math.nan
    except OverflowError:
        return math.inf


# -- rounding --------------------------------------------------------------------------------------------

_ROUNDED = {"rn", "rd", "ru", "rz"}
_EXACT: dict[str, Callable[..., Any]] = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "div": lambda x, y: x / y,
    "rcp": lambda x: 1 / x,
    "fma": lambda x, y, z: x * y + z,
}


def _arithmetic(operation: str, way: str, kind: Any, *values: Any) -> Any:
    """An operation, rounded to nearest (rn), down (rd), up (ru) or towards zero (rz)."""
    if operation == "sqrt":
        near = kind(np.sqrt(np.float64(values[0])))
        if not (np.isfinite(near) and near):
            return near
        exact, square = Fraction(float(values[0])), Fraction(float(near)) ** 2
        return _directed(near, way, above=square > exact, below=square < exact)
    with np.errstate(all="ignore"):
        rough = _EXACT[operation](*map(np.float64, values))
    if not np.isfinite(rough) or not all(map(np.isfinite, values)):
        return kind(rough)
    exact = _EXACT[operation](*(Fraction(float(value)) for value in values))
    near = _nearest(exact, kind)
    if not np.isfinite(near):
        return kind(rough) if way == "rn" else _directed(near, way, above=near > 0, below=near < 0)
    if exact == 0:
        return kind(-0.0) if way == "rd" and rough == 0 and operation in ("add", "sub") else kind(rough)
    return _directed(near, way, above=Fraction(float(near)) > exact, below=Fraction(float(near)) < exact)


def _nearest(exact: Fraction, kind: Any) -> Any:
    try:
        near = float(exact)
    except OverflowError:
        near = math.copysign(math.inf, exact)
    if kind is np.float64:
        return np.float64(near)
    rounded = np.float32(near)  # twice, which may be once too often: look at both neighbours
    if not np.isfinite(rounded):
        return rounded
    candidates = [rounded, np.nextafter(rounded, np.float32(np.inf)), np.nextafter(rounded, np.float32(-np.inf))]
    finite = [each for each in candidates if np.isfinite(each)]
    return min(finite, key=lambda each: (abs(Fraction(float(each)) - exact), int(each.view(np.int32)) & 1))


def _directed(near: Any, way: str, *, above: bool, below: bool) -> Any:
    if above and (way == "rd" or (way == "rz" and near > 0)):
        return np.nextafter(near, type(near)(-np.inf))
    if below and (way == "ru" or (way == "rz" and near < 0)):
        return np.nextafter(near, type(near)(np.inf))
    return near


_TO_INTEGER: dict[str, Callable[[Any], Any]] = {"rn": np.rint, "rd": np.floor, "ru": np.ceil, "rz": np.trunc}


def _converted(way: str, kind: Any, value: Any) -> Any:
    """A number in another type: integers saturate, and NaN becomes 0."""
    if issubclass(kind, np.integer):
        info, whole = np.iinfo(kind), _TO_INTEGER[way](np.float64(value))
        return (
            0 if np.isnan(whole) else max(int(info.min), min(int(info.max), int(np.clip(whole, -(2.0**65), 2.0**65))))
        )
    if isinstance(value, np.floating) and not np.isfinite(value):
        return kind(value)
    exact = Fraction(float(value)) if isinstance(value, np.floating) else Fraction(int(value))
    near = _nearest(exact, kind)
    if not np.isfinite(near):
        return near if way == "rn" else _directed(near, way, above=near > 0, below=near < 0)
    return _directed(near, way, above=Fraction(float(near)) > exact, below=Fraction(float(near)) < exact)


# -- integers, bits --------------------------------------------------------------------------------------


def _bits(value: Any) -> int:
    return int(value) % 2 ** (8 * value.itemsize)


def _reversed_bits(value: Any) -> int:
    width = 8 * value.itemsize
    return int(f"{_bits(value):0{width}b}"[::-1], 2)


def _signed24(value: Any) -> int:
    return (int(value) + 2**23) % 2**24 - 2**23


def _byte_perm(x: Any, y: Any, selector: Any) -> int:
    source = (_bits(x) | _bits(y) << 32).to_bytes(8, "little")
    result = 0
    for place in range(4):
        nibble = _bits(selector) >> 4 * place & 15
        byte = source[nibble & 7]
        result |= (0xFF * (byte >> 7) if nibble & 8 else byte) << 8 * place
    return result


def _view(kind: Any) -> Callable[[Any], Any]:
    return lambda value: value.view(kind)


def _high(width: int, *, unsigned: bool) -> Callable[..., Any]:
    of = _bits if unsigned else int
    return lambda x, y: of(x) * of(y) >> width


def _unsigned(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *values: function(*map(_bits, values))


_PLAIN: dict[str, Callable[..., Any]] = {
    "abs": lambda x: abs(int(x)),
    "llabs": lambda x: abs(int(x)),
    **dict.fromkeys(("max", "llmax"), max),
    **dict.fromkeys(("min", "llmin"), min),
    **dict.fromkeys(("umax", "ullmax"), _unsigned(max)),
    **dict.fromkeys(("umin", "ullmin"), _unsigned(min)),
    **dict.fromkeys(("brev", "brevll"), _reversed_bits),
    **dict.fromkeys(("popc", "popcll"), lambda x: _bits(x).bit_count()),
    **dict.fromkeys(("clz", "clzll"), lambda x: 8 * x.itemsize - _bits(x).bit_length()),
    **dict.fromkeys(("ffs", "ffsll"), lambda x: (_bits(x) & -_bits(x)).bit_length()),
    "byte_perm": _byte_perm,
    "hadd": lambda x, y: int(x) + int(y) >> 1,
    "rhadd": lambda x, y: int(x) + int(y) + 1 >> 1,
    "uhadd": _unsigned(lambda x, y: x + y >> 1),
    "urhadd": _unsigned(lambda x, y: x + y + 1 >> 1),
    "mul24": lambda x, y: _signed24(x) * _signed24(y),
    "umul24": _unsigned(lambda x, y: (x & 0xFFFFFF) * (y & 0xFFFFFF)),
    "mulhi": _high(32, unsigned=False),
    "umulhi": _high(32, unsigned=True),
    "mul64hi": _high(64, unsigned=False),
    "umul64hi": _high(64, unsigned=True),
    "sad": lambda x, y, z: abs(int(x) - int(y)) + int(z),
    "usad": _unsigned(lambda x, y, z: abs(x - y) + z),
    "double_as_longlong": _view(np.int64),
    "longlong_as_double": _view(np.float64),
    "float_as_int": _view(np.int32),
    "int_as_float": _view(np.float32),
    "double2hiint": lambda x: int(x.view(np.int64)) >> 32,
    "double2loint": lambda x: int(x.view(np.int64)) & 0xFFFFFFFF,
    "hiloint2double": lambda high, low: np.array(_bits(high) << 32 | _bits(low), np.uint64).view(np.float64)[()],
    "float2half_rn": lambda x: np.float16(x).view(np.int16),
    "half2float": lambda x: np.int16(x).view(np.float16),
    "int2double_rn": float,
    "uint2double_rn": _unsigned(float),
    **{
        f"u{name}2{kind}_{way}": _unsigned(lambda x, way=way, kind=kind: _converted(way, getattr(np, kind), x))
        for name, kind in (("int", "float32"), ("ll", "float32"), ("ll", "float64"))
        for way in _ROUNDED
    },
}
_PLAIN |= {name.replace("float32", "float").replace("float64", "double"): each for name, each in _PLAIN.items()}
_PLAIN |= {
    f"{source}2u{kind}_{way}": lambda x, way=way, number=number: _converted(way, number, x)
    for source in ("float", "double")
    for kind, number in (("int", np.uint32), ("ll", np.uint64))
    for way in _ROUNDED
}

# -- functions of floats ---------------------------------------------------------------------------------


def _c(name: str, *kinds: Any) -> Callable[..., Any]:
    """A function of the C library."""

    @functools.cache
    def found() -> Any:
        function: Any = getattr(ctypes.CDLL(ctypes.util.find_library("m")), name)
        function.argtypes, function.restype = kinds, ctypes.c_double
        return function

    return lambda *values: found()(*values)


def _exp10(x: Any) -> Any:
    return np.power(np.float64(10), x)


def _half_away(x: Any) -> Any:
    whole = np.trunc(x)
    return whole + np.copysign(np.float64(abs(x - whole) >= 0.5), x) if np.isfinite(x) else x


def _erfinv(y: Any) -> Any:
    if not -1 < y < 1:
        return math.copysign(math.inf, y) if abs(y) == 1 else math.nan
    x = _NORMAL.inv_cdf((y + 1) / 2) / math.sqrt(2) if abs(y) > 1e-8 else y * math.sqrt(math.pi) / 2
    for _ in range(2):  # Newton's steps
        x -= (math.erf(x) - y) * math.sqrt(math.pi) / 2 * math.exp(x * x)
    return x


def _erfcinv(y: Any) -> Any:
    if not 0 < y < 2:
        return math.inf if y == 0 else -math.inf if y == 2 else math.nan
    x = -_NORMAL.inv_cdf(y / 2) / math.sqrt(2)
    for _ in range(2):
        x += (math.erfc(x) - y) * math.sqrt(math.pi) / 2 * math.exp(x * x)
    return x


def _erfcx(x: Any) -> Any:
    if x < 25:
        return np.exp(x * x) * math.erfc(x)
    series, term = 1.0, 1.0  # 1 - 1/(2x^2) + 1*3/(2x^2)^2 - ...
    for odd in range(1, 20, 2):
        term *= -odd / (2 * x * x)
        series += term
    return series / (x * math.sqrt(math.pi))


def _remquo(x: Any, y: Any) -> Any:
    if not math.isfinite(x) or y == 0 or math.isnan(y):
        return math.nan, 0
    rest = math.remainder(x, y)
    return rest, 0 if math.isinf(y) else round((Fraction(float(x)) - Fraction(rest)) / Fraction(float(y)))


def _pi(function: Callable[[float], float]) -> Callable[[Any], Any]:
    """``function(pi x)``, exact where x is a multiple of a half."""

    def of(x: Any) -> Any:
        if not math.isfinite(x):
            return math.nan
        rest = math.fmod(x, 2.0)
        return float(round(function(math.pi * rest))) if (2 * rest).is_integer() else function(math.pi * rest)

    return of


_sinpi, _cospi = _pi(math.sin), _pi(math.cos)


def _logb(x: Any) -> Any:
    if x == 0:
        return -math.inf
    return float(math.frexp(x)[1] - 1) if math.isfinite(x) else abs(x)


def _ilogb(x: Any) -> int:
    if x == 0 or math.isnan(x):
        return -(2**31)
    return 2**31 - 1 if math.isinf(x) else math.frexp(x)[1] - 1


def _to_long(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda x: _converted("rz", np.int64, function(x))


def _lgamma(x: Any) -> Any:
    return math.inf if x == -math.inf or (x <= 0 and float(x).is_integer()) else math.lgamma(x)


_D, _I = ctypes.c_double, ctypes.c_int
_FLOAT: dict[str, Callable[..., Any]] = {
    "acos": np.arccos, "acosh": np.arccosh, "asin": np.arcsin, "asinh": np.arcsinh, "atan": np.arctan,
    "atan2": np.arctan2, "atanh": np.arctanh, "cbrt": np.cbrt, "ceil": np.ceil, "copysign": np.copysign,
    "cos": np.cos, "cosh": np.cosh, "cospi": _cospi, "erf": math.erf, "erfc": math.erfc, "erfcinv": _erfcinv,
    "erfcx": _erfcx, "erfinv": _erfinv, "exp": np.exp, "exp10": _exp10, "exp2": np.exp2, "expm1": np.expm1,
    "fabs": np.fabs, "fdim": lambda x, y: np.maximum(x - y, 0.0) if x != y else 0.0, "fdivide": np.divide,
    "finite": np.isfinite, "floor": np.floor, "fma": lambda x, y, z: _arithmetic("fma", "rn", np.float64, x, y, z),
    "fmax": np.fmax, "fmin": np.fmin, "fmod": np.fmod, "frexp": np.frexp, "hypot": np.hypot, "ilogb": _ilogb,
    "isfinite": np.isfinite, "isinf": np.isinf, "isnan": np.isnan, "ldexp": np.ldexp, "lgamma": _lgamma,
    "j0": _c("j0", _D), "j1": _c("j1", _D), "jn": _c("jn", _I, _D),
    "y0": _c("y0", _D), "y1": _c("y1", _D), "yn": _c("yn", _I, _D),
    "llrint": _to_long(np.rint), "llround": _to_long(_half_away), "log": np.log, "log10": np.log10,
    "log1p": np.log1p, "log2": np.log2, "logb": _logb, "modf": np.modf, "nearbyint": np.rint,
    "normcdf": lambda x: math.erfc(-x / math.sqrt(2)) / 2, "normcdfinv": lambda y: -math.sqrt(2) * _erfcinv(2 * y),
    "pow": np.power, "powi": lambda x, n: np.power(x, np.float64(n)), "rcbrt": lambda x: 1 / np.cbrt(x),
    "remainder": math.remainder, "remquo": _remquo, "rint": np.rint, "round": _half_away,
    "rsqrt": lambda x: 1 / np.sqrt(x), "saturate": lambda x: 0.0 if math.isnan(x) else min(max(x, 0.0), 1.0),
    "scalbn": np.ldexp, "signbit": np.signbit, "sin": np.sin, "sincos": lambda x: (np.sin(x), np.cos(x)),
    "sincospi": lambda x: (_sinpi(x), _cospi(x)), "sinh": np.sinh, "sinpi": _sinpi, "sqrt": np.sqrt, "tan": np.tan,
    "tanh": np.tanh, "tgamma": math.gamma, "trunc": np.trunc,
}  # fmt: skip
_PLAIN |= {"nextafter": np.nextafter, "nextafterf": np.nextafter}
_PLAIN["fmaf"] = functools.partial(_arithmetic, "fma", "rn", np.float32)
