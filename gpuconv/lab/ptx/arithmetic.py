"""Arithmetic: what an instruction computes of its operands, for all threads at once.

:func:`decode` gives the function of an instruction, and the types of its operands. Source: PTX ISA, chapters 9.7.1
(integers), 9.7.3 (floats), 9.7.4 (half floats), 9.7.6 (comparisons), 9.7.8 (logic and shifts), 9.7.9 (prmt, shf).

Additions, products, quotients, roots and fused multiply-adds are rounded once, in the direction that the instruction
names; of ``fma`` except for rare sums that do not fit into float64. Where the manual leaves the rounding open
(``ex2.approx``, ``rcp.approx``), results are those of NumPy.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from gpuconv.lab.ptx.program import Instruction
from gpuconv.lab.ptx.values import F64, NARROW, PREDICATE, S32, TYPES, U32, packed, unpacked, wide

#: Parts of an opcode that change no result here.
_IGNORED = {"approx", "full", "uni", "sync", "rni", "noftz"}
_ROUNDINGS = {"rn", "rz", "rm", "rp"}


# -- rounding ----------------------------------------------------------------------------------------------------------


def two_sum(a: Any, b: Any) -> tuple[Any, Any]:
    """A sum in float64, and what rounding took from it."""
    total = a + b
    part = total - a
    return total, np.where(np.isfinite(total), (a - (total - part)) + (b - part), 0.0)


def two_product(a: Any, b: Any) -> tuple[Any, Any]:
    """A product in float64, and what rounding took from it (Dekker)."""
    product = a * b

    def split(value: Any) -> tuple[Any, Any]:
        high = value * 134217729.0
        high = high - (high - value)
        return high, value - high

    (a_high, a_low), (b_high, b_low) = split(a), split(b)
    error = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    return product, np.where(np.isfinite(error), error, 0.0)


def rounded(high: Any, low: Any, dtype: np.dtype[Any], mode: str) -> Any:
    """The sum of a float64 and a smaller rest, in one step, rounded in a direction."""
    found = np.asarray(high).astype(dtype)
    if mode == "rn":
        return found
    excess = (found.astype(np.float64) - high) - low
    down = {"rm": True, "rp": False}.get(mode, high > 0)
    towards = np.where(down, -np.inf, np.inf).astype(dtype)
    wrong = np.where(down, excess > 0, excess < 0) & np.isfinite(high)
    return np.where(wrong, np.nextafter(found, towards), found)


def fma(a: Any, b: Any, c: Any, mode: str = "rn") -> Any:
    """Fused multiply-add."""
    if a.dtype == F64:
        product, error = two_product(a, b)
        total, rest = two_sum(product, c)
        return (
            rounded(total + (error + rest), 0.0, F64, "rn") if mode == "rn" else rounded(total, error + rest, F64, mode)
        )
    # The product of two float32 is exact in float64.
    product, addend = a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)
    if mode == "rn":
        return (product + addend).astype(a.dtype)
    return rounded(*two_sum(product, addend), a.dtype, mode)


def _add(a: Any, b: Any, mode: str = "rn") -> Any:
    return a + b if mode == "rn" else rounded(*two_sum(a.astype(np.float64), b.astype(np.float64)), a.dtype, mode)


def _multiply(a: Any, b: Any, mode: str = "rn") -> Any:
    return a * b if mode == "rn" else rounded(*two_product(a.astype(np.float64), b.astype(np.float64)), a.dtype, mode)


def _divide(a: Any, b: Any, mode: str = "rn") -> Any:
    if a.dtype.kind != "f":
        quotient = (a - np.fmod(a, b)) // b
        return np.where(b == 0, a.dtype.type(-1 if a.dtype.kind == "i" else 256**a.dtype.itemsize - 1), quotient)
    if mode == "rn":
        return a / b
    high, divisor = a.astype(np.float64) / b.astype(np.float64), b.astype(np.float64)
    product, error = two_product(high, divisor)
    rest = ((a.astype(np.float64) - product) - error) / divisor
    return rounded(high, np.where(np.isfinite(rest), rest, 0.0), a.dtype, mode)


def _root(a: Any, mode: str = "rn") -> Any:
    if mode == "rn":
        return np.sqrt(a)
    exact = a.astype(np.float64)
    high = np.sqrt(exact)
    product, error = two_product(high, high)
    rest = ((exact - product) - error) / (2 * high)
    return rounded(high, np.where(np.isfinite(rest), rest, 0.0), a.dtype, mode)


def _reciprocal(a: Any, mode: str = "rn") -> Any:
    return _divide(np.ones_like(a), a, mode)


#: What takes a direction of rounding.
_DIRECTED: dict[str, Callable[..., Any]] = {
    "add": _add,
    "sub": lambda a, b, mode="rn": _add(a, -b, mode),
    "mul": _multiply,
    "fma": fma,
    "mad": fma,
    "div": _divide,
    "sqrt": _root,
    "rcp": _reciprocal,
}


# -- integers ----------------------------------------------------------------------------------------------------------


def _high(a: Any, b: Any) -> Any:
    """The upper half of a product."""
    if a.dtype.itemsize < 8:
        double = wide(a.dtype)
        return (a.astype(double) * b.astype(double) >> double.type(8 * a.dtype.itemsize)).astype(a.dtype)
    x, y, half, low = a.astype(np.uint64), b.astype(np.uint64), np.uint64(32), np.uint64(0xFFFFFFFF)
    cross = (x >> half) * (y & low) + ((x & low) * (y & low) >> half)
    other = (x & low) * (y >> half) + (cross & low)
    found = (x >> half) * (y >> half) + (cross >> half) + (other >> half)
    if a.dtype.kind == "i":
        found = found - np.where(a < 0, y, np.uint64(0)) - np.where(b < 0, x, np.uint64(0))
    return found.astype(a.dtype)


def _shift(a: Any, count: Any, *, left: bool) -> Any:
    bits = 8 * a.dtype.itemsize
    beyond = count >= bits
    count = np.minimum(count, bits - 1).astype(a.dtype)
    if left:
        return np.where(beyond, a.dtype.type(0), a << count)
    return np.where(beyond, a.dtype.type(0), a >> count) if a.dtype.kind == "u" else a >> count


def _funnel(low: Any, high: Any, count: Any, *, left: bool, wrap: bool) -> Any:
    """``shf``: 32 bits of a pair of registers."""
    count = (count & np.uint32(31) if wrap else np.minimum(count, np.uint32(32))).astype(np.uint64)
    both = low.astype(np.uint64) | high.astype(np.uint64) << np.uint64(32)
    if left:
        shifted = np.where(count == 32, low, (both << count) >> np.uint64(32))
        return shifted.astype(np.uint32)
    return (both >> count).astype(np.uint32)


def _insert(a: Any, b: Any, position: Any, length: Any) -> Any:
    """``bfi``: the lower bits of ``a`` in ``b``."""
    mask = _field(position, length, b.dtype)
    start = np.minimum(position & np.uint32(255), np.uint32(8 * b.dtype.itemsize - 1)).astype(b.dtype)
    return (b & ~mask) | ((a << start) & mask)


def _field(position: Any, length: Any, dtype: np.dtype[Any]) -> Any:
    """``length`` bits from a position on."""
    low = _shift(~np.zeros_like(position, dtype), position & np.uint32(255), left=True)
    end = (position & np.uint32(255)) + (length & np.uint32(255))
    return low & ~_shift(~np.zeros_like(position, dtype), end, left=True)


def _extract(a: Any, position: Any, length: Any) -> Any:
    """``bfe``: bits of ``a``, with the sign if it has one."""
    bits = 8 * a.dtype.itemsize
    position, length = position & np.uint32(255), np.minimum(length & np.uint32(255), np.uint32(bits))
    plain = a.view(f"u{a.dtype.itemsize}") if a.ndim else np.asarray(a).view(f"u{a.dtype.itemsize}")
    field = _shift(plain, position, left=False) & _field(np.zeros_like(length), length, plain.dtype)
    if a.dtype.kind == "u":
        return field
    last = np.minimum(position + length - np.uint32(1), np.uint32(bits - 1))
    negative = (_shift(plain, last, left=False) & plain.dtype.type(1)).astype(bool) & (length > 0)
    inside = _field(np.zeros_like(length), length, plain.dtype) & _shift(~plain.dtype.type(0), position, left=False)
    fill = ~inside
    return np.where(negative, field | fill, field).astype(plain.dtype).view(a.dtype)


def _permute(a: Any, b: Any, selector: Any, mode: str = "") -> Any:
    """``prmt``: bytes of ``b`` and ``a``, 7 to 0, that digits pick; a digit's high bit takes the byte's sign only."""
    both = a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32)
    found: Any = np.uint32(0)
    for number in range(4):
        digit = (selector >> np.uint32(4 * number) & np.uint32(15)) if not mode else _digit(mode, number, selector)
        byte = (both >> (np.uint64(8) * (digit & np.uint32(7)).astype(np.uint64)) & np.uint64(255)).astype(np.uint32)
        sign = np.where(byte & np.uint32(128), np.uint32(255), np.uint32(0))
        found = found | np.where(digit & np.uint32(8), sign, byte) << np.uint32(8 * number)
    return found


def _digit(mode: str, number: int, selector: Any) -> Any:
    """Of the named modes of ``prmt``, which pick by the selector's lowest two bits."""
    start = selector & np.uint32(3)
    n = np.uint32(number)
    if mode == "f4e":
        return start + n
    if mode == "b4e":
        return (start - n) & np.uint32(7)
    if mode == "rc8":
        return start
    if mode == "rc16":
        return (start & np.uint32(1)) * np.uint32(2) + (n & np.uint32(1))
    return np.maximum(start, n) if mode == "ecl" else np.minimum(start, n)


def _logic(a: Any, b: Any, c: Any, table: Any) -> Any:
    """``lop3``: any function of three bits, as a table."""
    found, ones = np.zeros_like(a | b | c), a.dtype.type(0xFFFFFFFF)
    for number in range(8):
        if int(table) >> number & 1:
            found |= (a if number & 4 else a ^ ones) & (b if number & 2 else b ^ ones) & (c if number & 1 else c ^ ones)
    return found


def _bits(a: Any) -> Any:
    """Bits of numbers, the highest first, along a new last axis."""
    a = np.asarray(a)
    big = np.ascontiguousarray(a).astype(a.dtype.newbyteorder(">"))
    return np.unpackbits(big.reshape(-1).view(np.uint8)).reshape(*a.shape, 8 * a.dtype.itemsize)


def _population(a: Any) -> Any:
    return _bits(a).sum(-1).astype(np.uint32)


def _leading(a: Any) -> Any:
    """``clz``: zeros before the highest bit."""
    bits = _bits(a)
    return np.where(bits.any(-1), bits.argmax(-1), bits.shape[-1]).astype(np.uint32)


def _find(a: Any, shift_amount: bool = False) -> Any:
    """``bfind``: place of the highest bit, of a negative number of the highest zero; all bits set if there is none."""
    value = np.where(a < 0, ~a, a).astype(f"u{a.dtype.itemsize}") if a.dtype.kind == "i" else a
    zeros, bits = _leading(value), np.uint32(8 * a.dtype.itemsize)
    place = zeros if shift_amount else bits - np.uint32(1) - zeros
    return np.where(zeros == bits, np.uint32(0xFFFFFFFF), place)


def _reversed(a: Any) -> Any:
    return np.packbits(_bits(a)[..., ::-1], -1).view(np.asarray(a).dtype.newbyteorder(">"))[..., 0].astype(a.dtype)


def _dot(a: Any, b: Any, c: Any, kinds: tuple[str, str], halves: int | None = None) -> Any:
    """``dp4a``, and ``dp2a`` with the half of ``b`` that it takes: c plus a sum of products of parts."""
    count = 4 if halves is None else 2
    found = c.astype(np.int64)
    for n in range(count):
        size = 8 if halves is None else 16
        x = (a >> np.uint32(size * n)).astype(f"u{size // 8}")
        y = (b >> np.uint32(8 * (n + (halves or 0)))).astype("u1")
        x = x.view(f"i{size // 8}") if kinds[0] == "s32" else x
        y = y.view("i1") if kinds[1] == "s32" else y
        found = found + x.astype(np.int64) * y.astype(np.int64)
    return found.astype(np.int32 if "s32" in kinds else np.uint32)


def _video(a: Any, b: Any, c: Any) -> Any:
    """``sad``: c plus the difference of a and b."""
    return c + (np.maximum(a, b) - np.minimum(a, b)).astype(c.dtype)


def _saturated(a: Any, b: Any) -> Any:
    total = a.astype(np.int64) + b.astype(np.int64)
    return np.clip(total, -(2**31), 2**31 - 1).astype(np.int32)


# -- floats ------------------------------------------------------------------------------------------------------------


def minimum(a: Any, b: Any) -> Any:
    """The minimum; of a NaN and a number, the number; -0 is below 0."""
    if a.dtype.kind != "f":
        return np.minimum(a, b)
    return np.where((a == 0) & (b == 0), np.where(np.signbit(a), a, b), np.fmin(a, b))


def maximum(a: Any, b: Any) -> Any:
    """The maximum; of a NaN and a number, the number; 0 is above -0."""
    if a.dtype.kind != "f":
        return np.maximum(a, b)
    return np.where((a == 0) & (b == 0), np.where(np.signbit(a), b, a), np.fmax(a, b))


def _classified(a: Any, kind: str) -> Any:
    """``testp``."""
    least = np.finfo(a.dtype).tiny
    return {
        "finite": lambda: np.isfinite(a),
        "infinite": lambda: np.isinf(a),
        "number": lambda: ~np.isnan(a),
        "notanumber": lambda: np.isnan(a),
        "normal": lambda: np.isfinite(a) & (abs(a) >= least),
        "subnormal": lambda: (abs(a) < least) & (a != 0),
    }[kind]()


def flushed(a: Any) -> Any:
    """Without denormal numbers."""
    return np.where(abs(a) < np.finfo(a.dtype).tiny, np.copysign(a.dtype.type(0), a), a)


def saturated(a: Any) -> Any:
    """Between 0 and 1; 0 for NaN."""
    return np.where(np.isnan(a), a.dtype.type(0), np.clip(a, a.dtype.type(0), a.dtype.type(1)))


COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: (a != b) & (a == a) & (b == b),  # false where one is a NaN
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "lo": lambda a, b: a < b,
    "ls": lambda a, b: a <= b,
    "hi": lambda a, b: a > b,
    "hs": lambda a, b: a >= b,
    "equ": lambda a, b: ~((a < b) | (a > b)),
    "neu": lambda a, b: a != b,
    "ltu": lambda a, b: ~(a >= b),
    "leu": lambda a, b: ~(a > b),
    "gtu": lambda a, b: ~(a <= b),
    "geu": lambda a, b: ~(a < b),
    "num": lambda a, b: (a == a) & (b == b),
    "nan": lambda a, b: (a != a) | (b != b),
}
#: How a comparison's result is combined with another predicate.
COMBINATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
}

_ARITHMETIC: dict[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,  # of floats
    "mul.lo": lambda a, b: a * b,
    "mul.wide": lambda a, b: a.astype(wide(a.dtype)) * b.astype(wide(a.dtype)),
    "mul.hi": _high,
    "mul24.lo": lambda a, b: _24(a) * _24(b),
    "mul24.hi": lambda a, b: (_24(a).astype(wide(a.dtype)) * _24(b) >> wide(a.dtype).type(16)).astype(a.dtype),
    "mad.lo": lambda a, b, c: a * b + c,
    "mad.hi": lambda a, b, c: _high(a, b) + c,
    "mad.wide": lambda a, b, c: a.astype(c.dtype) * b.astype(c.dtype) + c,
    "mad24.lo": lambda a, b, c: _24(a) * _24(b) + c,
    "sad": _video,
    "rem": lambda a, b: np.where(b == 0, a, np.fmod(a, b)),
    "neg": lambda a: -a,
    "abs": abs,
    "ex2": np.exp2,
    "lg2": np.log2,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
    "rsqrt": lambda a: 1 / np.sqrt(a),
    "min": minimum,
    "max": maximum,
    "copysign": lambda a, b: np.copysign(b, a),
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "not": lambda a: ~a,
    "cnot": lambda a: (a == 0).astype(a.dtype),
    "lop3": _logic,
    "shl": functools.partial(_shift, left=True),
    "shr": functools.partial(_shift, left=False),
    "bfi": _insert,
    "bfe": _extract,
    "prmt": _permute,
    "popc": _population,
    "clz": _leading,
    "brev": _reversed,
    "selp": lambda a, b, p: np.where(p, a, b),
    "slct": lambda a, b, c: np.where(c >= 0, a, b),
    "mov": lambda a: a,
}


def _24(a: Any) -> Any:
    """The lower 24 bits, with their sign if the type has one."""
    return a << a.dtype.type(8) >> a.dtype.type(8)


# -- decoding ----------------------------------------------------------------------------------------------------------


def decode(one: Instruction) -> tuple[Callable[..., Any], list[Any], Any]:
    """The function of an instruction; the types of its operands; the kind of its result."""
    parts = one.parts
    name, kind = parts[0], parts[-1]
    modifiers = [part for part in parts[1:-1] if part not in _IGNORED]
    count = len(one.operands) - 1
    if name in ("dp4a", "dp2a"):
        signs = (parts[-2], parts[-1])
        half = None if name == "dp4a" else 2 * (parts[1] == "hi")
        result = S32 if "s32" in signs else U32
        return functools.partial(_dot, kinds=signs, halves=half), [U32, U32, result], result
    if name == "shf":
        return functools.partial(_funnel, left=parts[1] == "l", wrap=parts[2] == "wrap"), [U32] * 3, U32
    if name == "prmt":
        return functools.partial(_permute, mode=parts[2] if len(parts) > 2 else ""), [U32] * 3, U32
    if name == "bfind":
        return functools.partial(_find, shift_amount="shiftamt" in parts), [TYPES[kind]], U32
    if name == "testp":
        return functools.partial(_classified, kind=parts[1]), [TYPES[kind]], PREDICATE
    if name == "slct":
        return _ARITHMETIC[name], [TYPES[parts[-2]]] * 2 + [TYPES[kind]], TYPES[parts[-2]]
    if name in ("set", "setp"):
        one.unknown()
    if name == "add" and modifiers == ["sat"] and kind == "s32":
        return _saturated, [S32, S32], S32
    if name == "sub" and modifiers == ["sat"] and kind == "s32":
        return lambda a, b: _saturated(a, (-b.astype(np.int64))), [S32, S32], S32
    dtype: Any = kind if kind in NARROW and name not in ("mov", "and", "or", "xor", "not") else TYPES.get(kind)
    if dtype is None:
        one.unknown()
    floating = (kind in NARROW and kind not in ("u16x2", "s16x2")) or (kind in TYPES and TYPES[kind].kind == "f")
    function = _function(one, name, kind, modifiers, floating)
    types = [dtype] * count
    if name in ("shl", "shr"):
        types[1] = U32
    elif name in ("bfi", "bfe"):
        types[-2:] = [U32] * 2
    elif name == "selp":
        types[2] = PREDICATE
    elif name == "lop3":
        types[3] = U32
    elif modifiers[:1] == ["wide"] and name == "mad":
        types[2] = wide(dtype)
    result = dtype
    if name in ("popc", "clz"):
        result = U32
    elif modifiers[:1] == ["wide"]:
        result = wide(dtype)
    return function, types, result


def _function(one: Instruction, name: str, kind: str, modifiers: list[str], floating: bool) -> Callable[..., Any]:
    """The function with its modifiers."""
    if not floating:
        found = _ARITHMETIC.get(".".join([name, *modifiers])) or (_divide if name == "div" else None)
        if found is None and name in ("min", "max") and modifiers == ["relu"]:
            plain = _ARITHMETIC[name]
            return lambda a, b: np.maximum(plain(a, b), a.dtype.type(0))
        return found or one.unknown()
    mode = next((part for part in modifiers if part in _ROUNDINGS), "rn")
    rest = [part for part in modifiers if part not in _ROUNDINGS]
    function = _DIRECTED.get(name)
    if function is None:
        function = _ARITHMETIC.get(name) or one.unknown()
    elif mode != "rn":
        function = functools.partial(function, mode=mode)
    elif name in ("add", "sub", "mul"):
        function = _ARITHMETIC[name]
    if name in ("rcp", "rsqrt", "div", "sqrt", "ex2", "lg2", "tanh", "sin", "cos") and kind in ("f16", "f16x2"):
        inner = function
        function = lambda *values: inner(*(v.astype(np.float32) for v in values)).astype(np.float16)  # noqa: E731
    if "xorsign" in rest:
        inner_sign = function
        function = lambda a, b: np.copysign(  # noqa: E731
            inner_sign(abs(a), abs(b)), np.where(np.signbit(a) ^ np.signbit(b), -1, 1).astype(a.dtype)
        )
    elif "abs" in rest:
        inner_abs = function
        function = lambda a, b: inner_abs(abs(a), abs(b))  # noqa: E731
    for part in rest:
        function = _modified(one, function, part, kind)
    return function


def _modified(one: Instruction, function: Callable[..., Any], part: str, kind: str) -> Callable[..., Any]:
    if part == "ftz":
        if kind not in ("f32", "f16", "f16x2"):
            return function
        return lambda *v: flushed(function(*(flushed(a) if a.dtype.kind == "f" else a for a in v)))
    if part == "sat":
        return lambda *v: saturated(function(*v))
    if part == "relu":
        return lambda *v: np.maximum(np.nan_to_num(function(*v), nan=math.nan), 0).astype(v[0].dtype)
    if part == "NaN":
        return lambda *v: np.where(
            np.logical_or.reduce([np.isnan(a) for a in v]), v[0].dtype.type(np.nan), function(*v)
        )
    if part not in ("xorsign", "abs"):
        one.unknown()
    return function


def narrow(function: Callable[..., Any], kind: str) -> Callable[..., Any]:
    """A function of values as one of the bits of narrow floats."""
    return lambda *bits: packed(function(*(unpacked(np.asarray(b), kind) for b in bits)), kind)


#: Types of the carry: it goes through as one more operand.
CARRIES = {"add", "sub", "mad", "addc", "subc", "madc"}


def carried(name: str, half: str, values: list[Any], carry: Any) -> tuple[Any, Any]:
    """``add.cc``, ``subc`` and their like: the result, and the carry (or borrow) out."""
    a, b, *rest = values
    bits, dtype = 8 * a.dtype.itemsize, a.dtype
    if name.startswith("mad"):
        a, b = (a * b if half == "lo" else _high(a, b)), rest[0]
    x, y = (np.asarray(v).astype(np.uint64) if bits == 64 else np.asarray(v).view(f"u{bits // 8}") for v in (a, b))
    one = carry.astype(x.dtype)
    if name.startswith("sub"):
        total = x - y - one
        out = (x < y) | ((x == y) & (one > 0))
    else:
        total = x + y + one
        out = (total < x) | ((total == x) & (one > 0))
    return total.view(dtype), out
