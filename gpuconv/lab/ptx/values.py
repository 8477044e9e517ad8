"""What registers hold: the types of PTX in NumPy's, constants, and floats that NumPy does not have.

A narrow float is kept as its bits. :func:`unpacked` gives its value in a wider type, :func:`packed` rounds to it.
"""

from __future__ import annotations

import re
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, Any]
#: Which threads take part: all, or the numbers of some.
Lanes: TypeAlias = "slice | Array"
ALL = slice(None)
WARP = 32
#: States of a thread. One that waits is at a barrier; a parked one has come to an operation of its warp before others.
RUNNING, WAITING, ENDED, PARKED = range(4)


class PtxError(RuntimeError):
    """The code does something that is undefined on a GPU, or has an instruction that the interpreter does not know."""


#: Type suffix -> NumPy's type. Bits are taken for unsigned numbers.
TYPES = {
    f"{kind}{bits}": np.dtype(f"{numpy}{bits // 8}")
    for kind, numpy in (("u", "u"), ("s", "i"), ("b", "u"), ("f", "f"))
    for bits in (8, 16, 32, 64)
    if bits > 8 or kind != "f"
}
PREDICATE = np.dtype(bool)
U16, U32, U64 = (TYPES[f"u{bits}"] for bits in (16, 32, 64))
S32, F32, F64 = TYPES["s32"], TYPES["f32"], TYPES["f64"]
TYPES["pred"] = PREDICATE

#: Floats whose arithmetic is not NumPy's, and pairs: bits of the register that holds one.
NARROW = {
    "f16": 16,
    "bf16": 16,
    "f16x2": 32,
    "bf16x2": 32,
    "tf32": 32,
    "u16x2": 32,
    "s16x2": 32,
    "f32x2": 64,
    "e4m3": 8,
    "e5m2": 8,
    "e4m3x2": 16,
    "e5m2x2": 16,
}
#: Of the floats of 8 bits: exponent bits, mantissa bits, bias, largest number.
_EIGHT = {"e4m3": (4, 3, 7, 448.0), "e5m2": (5, 2, 15, 57344.0)}


def register_type(kind: str) -> np.dtype[Any]:
    """The type of a register's array, from its declaration or an instruction's suffix."""
    if kind in TYPES:
        return TYPES[kind]
    if kind in NARROW:
        return np.dtype(f"u{NARROW[kind] // 8}")
    raise PtxError(f"the type .{kind}: not known here")


_FLOAT = re.compile(r"0[fF][0-9a-fA-F]{8}|0[dD][0-9a-fA-F]{16}")
_DECIMAL = re.compile(r"-?(\d+\.\d*|\.\d+|\d+)([eE][-+]?\d+)?$")


def constant(text: str, dtype: np.dtype[Any]) -> Any:
    """A number as it stands in the code, as a NumPy scalar of that type."""
    negative, digits = text.startswith("-"), text.lstrip("-")
    if _FLOAT.fullmatch(digits):
        bits = 32 if digits[1] in "fF" else 64
        value = np.array(int(digits[2:], 16), f"u{bits // 8}").view(f"f{bits // 8}")[()]
        value = -value if negative else value
        return value.astype(dtype) if dtype.kind == "f" else as_type(value, dtype)
    try:
        number = int(digits.rstrip("U"), 8 if re.fullmatch("0[0-7]+", digits) else 0)
    except ValueError:
        if _DECIMAL.match(text) and dtype.kind == "f":
            return dtype.type(text)
        raise PtxError(f"{text}: neither a register nor a number") from None
    number = -number if negative else number
    if dtype.kind == "f":  # bits, as of mov.b32 %f1, 0
        return np.array(number, f"u{dtype.itemsize}").view(dtype)[()]
    if dtype == PREDICATE:
        return np.bool_(number)
    return np.array(number & (256**dtype.itemsize - 1), f"u{dtype.itemsize}").view(dtype)[()]


def as_type(value: Any, dtype: np.dtype[Any]) -> Any:
    """The same bits as another type; a narrower type takes the lower end of its register."""
    if value.dtype == dtype:
        return value
    if value.dtype == PREDICATE or dtype == PREDICATE:
        return value.astype(dtype)
    if value.dtype.itemsize != dtype.itemsize:
        bits = value.view(f"u{value.dtype.itemsize}") if value.dtype.kind == "f" else value
        value = bits.astype(f"{'i' if value.dtype.kind == 'i' else 'u'}{dtype.itemsize}")
    return value.view(dtype)


def wide(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Of twice the size."""
    return np.dtype(f"{dtype.kind}{2 * dtype.itemsize}")


# -- narrow floats -----------------------------------------------------------------------------------------------------


def unpacked(bits: Array, kind: str) -> Array:
    """The values of narrow floats; of pairs, with the low halves in the first row, the high ones in the second."""
    if kind.endswith("x2"):
        half = np.dtype(f"u{bits.dtype.itemsize // 2}")
        shift = bits.dtype.type(8 * half.itemsize)
        return unpacked(np.stack([bits.astype(half), (bits >> shift).astype(half)]), kind[:-2])
    if kind in ("u16", "s16"):
        return bits.view(TYPES[kind])
    if kind == "f32":
        return bits.view(np.float32)
    if kind == "f16":
        return bits.view(np.float16)
    if kind == "bf16":
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if kind == "tf32":  # 10 bits of mantissa; the hardware does not look at the others
        return (bits & np.uint32(0xFFFFE000)).view(np.float32)
    return _EIGHT_VALUES[kind][bits]


def packed(values: Array, kind: str, mode: str = "rn", finite: bool = False) -> Array:
    """The bits of values rounded to narrow floats: to the nearest, or (``rz``, ``rm``, ``rp``, ``rna``) another way.

    With ``finite``, what is too large becomes the largest number.
    """
    if kind.endswith("x2"):
        low, high = packed(values[0], kind[:-2], mode, finite), packed(values[1], kind[:-2], mode, finite)
        double = np.dtype(f"u{2 * low.dtype.itemsize}")
        return low.astype(double) | high.astype(double) << double.type(8 * low.dtype.itemsize)
    if kind in ("u16", "s16"):
        return values.view(np.uint16)
    if kind == "f32":
        return values.astype(np.float32).view(np.uint32)
    if kind == "f16":
        found = _narrowed(values, 11, -14, 65504.0, mode, finite).astype(np.float16).view(np.uint16)
        return np.where(np.isnan(values), np.uint16(0x7FFF), found)
    if kind == "bf16":
        found = (_narrowed(values, 8, -126, 3.3895313892515355e38, mode, finite).view(np.uint32) >> 16).astype(
            np.uint16
        )
        return np.where(np.isnan(values), np.uint16(0x7FFF), found)
    if kind == "tf32":
        found = _narrowed(values, 11, -126, 3.4011621342146535e38, mode, finite).view(np.uint32)
        return np.where(np.isnan(values), np.uint32(0x7FFFFFFF), found)
    _, mantissa, bias, largest = _EIGHT[kind]
    rounded = _narrowed(values, mantissa + 1, 1 - bias, largest, mode, finite)
    table = _EIGHT_VALUES[kind][:128]
    known = np.nan_to_num(table, nan=np.inf, posinf=np.inf)
    found = np.searchsorted(known, np.abs(np.nan_to_num(rounded, nan=0.0, posinf=np.inf, neginf=-np.inf)))
    found = np.where(np.isnan(rounded), 0x7F, np.minimum(found, 0x7F))
    return (found | np.where(np.signbit(rounded) & ~np.isnan(rounded), 0x80, 0)).astype(np.uint8)


def _narrowed(values: Array, digits: int, least: int, largest: float, mode: str, finite: bool) -> Array:
    """float32 values (float64 ones are taken exactly) that have ``digits`` significant bits."""
    exact = values.astype(np.float64)
    _, exponent = np.frexp(exact)
    unit = np.ldexp(1.0, np.maximum(exponent - digits, least + 1 - digits))
    steps = exact / unit
    towards: Any = {"rn": np.rint, "rz": np.trunc, "rm": np.floor, "rp": np.ceil, "rna": _half_away}[mode]
    found = np.where(np.isfinite(exact), np.copysign(towards(steps) * unit, exact), exact)
    beyond = np.abs(found) > largest
    if finite:
        found = np.where(beyond, np.copysign(largest, found), found)
    elif mode in ("rz", "rm", "rp"):
        stays = beyond & np.isfinite(exact)
        if mode != "rz":
            stays &= (found > 0) == (mode == "rm")
        found = np.where(stays, np.copysign(largest, found), np.where(beyond, np.copysign(np.inf, found), found))
    else:
        found = np.where(beyond, np.copysign(np.inf, found), found)
    return found.astype(np.float32)


def _half_away(steps: Array) -> Array:
    return np.copysign(np.floor(np.abs(steps) + 0.5), steps)


def _eight(kind: str) -> Array:
    """The 256 values of a float of 8 bits."""
    exponents, mantissas, bias, _ = _EIGHT[kind]
    codes = np.arange(256)
    exponent, mantissa = codes >> mantissas & (1 << exponents) - 1, codes & (1 << mantissas) - 1
    normal = np.ldexp(1 + mantissa / (1 << mantissas), exponent - bias)
    values = np.where(exponent == 0, np.ldexp(mantissa / (1 << mantissas), 1 - bias), normal)
    if kind == "e4m3":
        values[codes & 127 == 127] = np.nan
    else:
        values[codes & 127 == 124] = np.inf
        values[codes & 127 > 124] = np.nan
    return np.where(codes > 127, -values, values).astype(np.float32)


_EIGHT_VALUES = {kind: _eight(kind) for kind in _EIGHT}
