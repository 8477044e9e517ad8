"""float16 and bfloat16 in kernels: 16 bits, held as uint16, which are converted where arithmetic begins and ends.

Numba's own half types call functions that only a GPU's compiler can find. Kernels are given arrays of half types as
uint16 (``gpuconv.kernels.variant``); ``converting`` gives the two conversions for the name of an element type.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.errors import TypingError

from gpuconv.kernels.device.intrinsic import intrinsic
from gpuconv.kernels.device.launch import device_function

_FLOAT, _BITS, _HALF = ir.FloatType(), ir.IntType(32), ir.IntType(16)


def _converted(name: str, text: str, given: Any, result: Any) -> Any:
    """An intrinsic's body: one instruction of PTX."""
    constraints = "=h,f" if given == types.float32 else "=f,h"
    kinds = {types.float32: _FLOAT, types.uint16: _HALF}

    def body(typingctx: Any, x: Any) -> Any:
        if x != given:
            raise TypingError(f"{name} takes a {given}, got {x}")
        function = ir.FunctionType(kinds[result], [kinds[given]])
        assembly = ir.InlineAsm(function, text, constraints, side_effect=False)
        return result(x), lambda context, builder, signature, args: builder.call(assembly, args)

    return body


def _from_bfloat16(typingctx: Any, x: Any) -> Any:
    if x != types.uint16:
        raise TypingError(f"from_bfloat16 takes a uint16, got {x}")

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(builder.shl(builder.zext(args[0], _BITS), _BITS(16)), _FLOAT)

    return types.float32(x), code


def values_of(halves: Any, name: str) -> Any:
    """The float32 numbers that an array of uint16 stands for; for the host."""
    halves = np.ascontiguousarray(halves, np.uint16)
    if name == "float16":
        return halves.view(np.float16).astype(np.float32)
    return (halves.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _to_half(x: Any, name: str) -> Any:
    """The nearest number, of two equally near ones the even one; all NaNs are one, as in PTX."""
    if np.isnan(x):
        return np.uint16(0x7FFF)
    if name == "float16":
        with np.errstate(over="ignore"):
            return np.float16(x).view(np.uint16)
    bits = int(np.float32(x).view(np.uint32))
    return np.uint16((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)


_names = ("float16", "bfloat16")
to_float16, to_bfloat16 = (
    intrinsic(
        f"to_{name}",
        _converted(f"to_{name}", f"cvt.rn.{kind}.f32 $0, $1;", types.float32, types.uint16),
        lambda x, name=name: _to_half(x, name),
    )
    for name, kind in zip(_names, ("f16", "bf16"), strict=True)
)
from_float16 = intrinsic(
    "from_float16",
    _converted("from_float16", "cvt.f32.f16 $0, $1;", types.uint16, types.float32),
    lambda x: values_of([x], "float16")[0],
)
from_bfloat16 = intrinsic("from_bfloat16", _from_bfloat16, lambda x: values_of([x], "bfloat16")[0])


@device_function
def _same(x: Any) -> Any:
    return x


def converting(dtype: str) -> tuple[Any, Any]:
    """Device functions from an array's element to the number that is computed with, and back.

    For types other than the halves both give what they are given.
    """
    return {"float16": (from_float16, to_float16), "bfloat16": (from_bfloat16, to_bfloat16)}.get(dtype, (_same, _same))
