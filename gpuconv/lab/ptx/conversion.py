"""``cvt``: from any type to any other, with each rounding. Source: PTX ISA, chapter 9.7.9.21."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpuconv.lab.ptx.arithmetic import flushed, rounded, saturated
from gpuconv.lab.ptx.program import Instruction
from gpuconv.lab.ptx.values import F32, NARROW, TYPES, packed, register_type, unpacked

_TO_WHOLE: dict[str, Callable[[Any], Any]] = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
_MODES = ("rn", "rz", "rm", "rp", "rna")


def decode(one: Instruction) -> tuple[Callable[..., Any], list[np.dtype[Any]], np.dtype[Any]]:
    """The function of a conversion, the types of its operands, and that of its result."""
    parts = one.parts
    target, source = parts[-2], parts[-1]
    if parts[1] == "pack":
        return _pack(one)
    whole = next((part for part in parts[1:-2] if part in _TO_WHOLE), "")
    mode = next((part for part in parts[1:-2] if part in _MODES), "rn")
    rest = [part for part in parts[1:-2] if part not in (*_TO_WHOLE, *_MODES)]
    if set(rest) - {"sat", "ftz", "satfinite", "relu"}:
        one.unknown()
    source_type, target_type = register_type(source), register_type(target)
    pair = len(one.operands) == 3

    def convert(*values: Any) -> Any:
        if pair:  # the first operand becomes the upper half
            value = np.stack([np.broadcast_to(v, np.broadcast(*values).shape) for v in reversed(values)])
        else:
            value = unpacked(np.asarray(values[0]), source) if source in NARROW else values[0]
        value = np.asarray(value)
        if "ftz" in rest and value.dtype == F32:
            value = flushed(value)
        if whole and value.dtype.kind == "f":
            value = _TO_WHOLE[whole](value)
        if "relu" in rest:
            value = np.where(value < 0, value.dtype.type(0), value)
        if "sat" in rest and value.dtype.kind == "f" and (target in NARROW or TYPES[target].kind == "f"):
            value = saturated(value)
        if target in NARROW:
            finite = "satfinite" in rest
            wide = value if value.dtype.kind == "f" else _to_float(value, np.dtype(np.float64), "rn")
            return packed(wide, target, mode, finite)
        if target_type.kind == "f":
            return _to_float(value, target_type, mode)
        return _to_integer(value, target_type, "sat" in rest)

    return convert, [source_type] * (2 if pair else 1), target_type


def _to_float(value: Any, dtype: np.dtype[Any], mode: str) -> Any:
    if mode == "rn" or (value.dtype.kind == "f" and value.dtype.itemsize <= dtype.itemsize):
        return value.astype(dtype)
    if value.dtype.kind == "f":
        return rounded(value, 0.0, dtype, mode)
    high = value.astype(np.float64)
    # What float64 cannot hold of 64 bits: the difference is small, and exact in int64.
    back = np.where(abs(high) >= 2.0**63, value, high.astype(value.dtype))
    low = (value - back).astype(f"i{value.dtype.itemsize}").astype(np.float64)
    return rounded(high, low, dtype, mode)


def _to_integer(value: Any, dtype: np.dtype[Any], saturate: bool) -> Any:
    limits = np.iinfo(dtype)
    if value.dtype.kind == "f":  # what does not fit becomes the nearest that does; NaN 0, of 64 bits the highest bit
        exact = np.trunc(value).astype(np.float64)
        inside = (exact > float(limits.min) - 1) & (exact < float(limits.max) + (0 if limits.bits == 64 else 1))
        found = np.where(inside, exact, 0).astype(dtype)
        beyond = np.where(exact > 0, limits.max, limits.min).astype(dtype)
        nan = dtype.type(limits.min if limits.bits == 64 and dtype.kind == "i" else limits.max * (limits.bits == 64))
        return np.where(np.isnan(value), nan, np.where(inside, found, beyond))
    if saturate:
        kept = np.iinfo(value.dtype)
        low, high = max(limits.min, kept.min), min(limits.max, kept.max)
        return np.clip(value, value.dtype.type(low), value.dtype.type(high)).astype(dtype)
    return value.astype(dtype)


def _pack(one: Instruction) -> tuple[Callable[..., Any], list[np.dtype[Any]], np.dtype[Any]]:
    """``cvt.pack.sat``: two integers in the lower bits, above them what was there."""
    _, _, _, target, source, *more = one.parts
    bits = int(target[1:])
    kind = np.dtype(f"{'i' if target[0] == 's' else 'u'}{bits // 8}")

    def convert(a: Any, b: Any, c: Any = None) -> Any:
        high, low = (_to_integer(np.asarray(v), kind, True).view(f"u{bits // 8}").astype(np.uint32) for v in (a, b))
        both = low | high << np.uint32(bits)
        return both if bits == 16 else both | c << np.uint32(2 * bits)

    types = [TYPES[source]] * 2 + [TYPES["u32"]] * len(more)
    return convert, types, TYPES["u32"]
