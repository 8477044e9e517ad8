"""Loads and stores at flat offsets: of several elements at once, through the read-only cache, or with a predicate."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.errors import TypingError

from gpuconv.kernels.device.intrinsic import intrinsic
from gpuconv.kernels.device.words import is_integer

_I32, _I64 = ir.IntType(32), ir.IntType(64)

# -- for the compiler ------------------------------------------------------------------------------------


def _checked_array(array: Any, offset: Any, count: int) -> None:
    if not isinstance(array, types.Array) or array.ndim != 1 or array.layout != "C":
        raise TypingError(f"loads and stores need a one-dimensional contiguous array, got {array}")
    if not isinstance(array.dtype, (types.Integer, types.Float)) or count * array.dtype.bitwidth > 128:
        raise TypingError(f"{count} elements of {array.dtype} are not numbers of at most 128 bits together")
    if count == 8 and array.dtype.bitwidth != 16:
        raise TypingError(f"eight elements are of 16 bits, got {array.dtype}")
    if not is_integer(offset):
        raise TypingError(f"an offset is a word or an integer, got {offset}")


def _element_pointer(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    array, offset = signature.args[:2]
    pointer = context.make_array(array)(context, builder, value=args[0]).data
    position = args[1]
    if offset.bitwidth < 64:
        position = (builder.sext if offset.signed else builder.zext)(position, _I64)
    return builder.gep(pointer, [position], inbounds=True)


def _packed(builder: Any, elements: list[Any]) -> Any:
    """A tuple as Numba represents it; one element stands for itself."""
    if len(elements) == 1:
        return elements[0]
    packed = ir.Constant(ir.ArrayType(elements[0].type, len(elements)), ir.Undefined)
    for i, element in enumerate(elements):
        packed = builder.insert_value(packed, element, i)
    return packed


def _loaded(dtype: Any, count: int) -> Any:
    return dtype if count == 1 else types.UniTuple(dtype, count)


def _load(count: int, *, read_only: bool = False) -> Callable[..., Any]:
    def body(typingctx: Any, array: Any, offset: Any) -> Any:
        _checked_array(array, offset, count)

        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            pointer = _element_pointer(context, builder, signature, args)
            vector = ir.VectorType(pointer.type.pointee, count)
            value = builder.load(builder.bitcast(pointer, vector.as_pointer()))
            value.align = count * array.dtype.bitwidth // 8
            if read_only:
                value.set_metadata("invariant.load", builder.module.add_metadata([]))
            return _packed(builder, [builder.extract_element(value, _I32(i)) for i in range(count)])

        return _loaded(array.dtype, count)(array, offset), code

    return body


def _store(count: int) -> Callable[..., Any]:
    def body(typingctx: Any, array: Any, offset: Any, value: Any) -> Any:
        _checked_array(array, offset, count)
        wanted = _loaded(array.dtype, count)
        # Numba would convert float64 silently, after the kernel has computed in double precision.
        if types.unliteral(value) != wanted:
            raise TypingError(f"a store to {array} takes {wanted}, got {value}: convert it")

        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            pointer = _element_pointer(context, builder, signature, args)
            elements = [args[2] if count == 1 else builder.extract_value(args[2], i) for i in range(count)]
            if count == 8:
                lower, upper = ([builder.zext(one, _I32) for one in elements[first::2]] for first in (0, 1))
                words = zip(lower, upper, strict=True)
                elements = [builder.or_(low, builder.shl(high, _I32(16))) for low, high in words]
            vector = ir.Constant(ir.VectorType(elements[0].type, len(elements)), ir.Undefined)
            for i, element in enumerate(elements):
                vector = builder.insert_element(vector, element, _I32(i))
            store = builder.store(vector, builder.bitcast(pointer, vector.type.as_pointer()))
            store.align = count * array.dtype.bitwidth // 8
            return context.get_dummy_value()

        return types.void(array, offset, wanted), code

    return body


#: By bits: PTX type and register class of integers; of floats. There are no 8-bit registers.
_REGISTERS = {8: ("b8", "h"), 16: ("b16", "h"), 32: ("b32", "r"), 64: ("b64", "l")}
_FLOAT_REGISTERS = {32: ("f32", "f"), 64: ("f64", "d")}


def _predicated_load(count: int) -> Callable[..., Any]:
    def body(typingctx: Any, array: Any, offset: Any, predicate: Any) -> Any:
        _checked_array(array, offset, count)
        # Eight elements of 16 bits are loaded as four words: PTX has no longer vectors.
        joined = 2 if count == 8 else 1
        bits, loads = joined * array.dtype.bitwidth, count // joined
        name, register = (_FLOAT_REGISTERS if isinstance(array.dtype, types.Float) else _REGISTERS)[bits]

        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            pointer = _element_pointer(context, builder, signature, args)
            element = pointer.type.pointee
            address = builder.ptrtoint(builder.addrspacecast(pointer, element.as_pointer(1)), _I64)
            slot = _I32 if joined == 2 else ir.IntType(16) if bits == 8 else element
            result = slot if loads == 1 else ir.LiteralStructType([slot] * loads)
            outputs = [f"${i}" for i in range(loads)]
            zeros = " ".join(f"mov.b{max(bits, 16)} {output}, 0;" for output in outputs)
            vector, destination = (f".v{loads}", "{" + ", ".join(outputs) + "}") if loads > 1 else ("", outputs[0])
            assembly = (
                f"{{ .reg .pred on; setp.ne.b32 on, ${loads + 1}, 0; {zeros} "
                f"@on ld.global.nc{vector}.{name} {destination}, [${loads}]; }}"
            )
            constraints = ",".join([f"=&{register}"] * loads + ["l", "r"])
            function = ir.FunctionType(result, [_I64, _I32])
            # The compiler may move this load: it has no side effects, and what it reads does not change.
            load = ir.InlineAsm(function, assembly, constraints, side_effect=False)
            value = builder.call(load, [address, builder.zext(args[2], _I32)])
            elements = [value] if loads == 1 else [builder.extract_value(value, i) for i in range(loads)]
            if bits == 8:
                elements = [builder.trunc(part, element) for part in elements]
            if joined == 2:
                both = [(word, builder.lshr(word, _I32(16))) for word in elements]
                elements = [builder.trunc(part, element) for parts in both for part in parts]
            return _packed(builder, elements)

        return _loaded(array.dtype, count)(array, offset, types.boolean), code

    return body


# -- for the simulator -----------------------------------------------------------------------------------
#
# In a trace a twin is given a `gpuconv.lab.traced_arrays.TracedArray`, which makes the same checks and more. Its
# methods take an access to be that of their caller's caller, the kernel: the twin itself has to call them.


def _first(array: Any, offset: Any, count: int) -> int:
    """Where an access to a NumPy array begins, if it is allowed."""
    start = operator.index(offset).real  # of a word the plain int
    if array.ndim != 1 or not array.flags.c_contiguous:
        raise TypeError(f"loads and stores need a one-dimensional contiguous array, got shape {array.shape}")
    if count * array.itemsize > 16:
        raise TypeError(f"{count} elements of {array.dtype} are more than 128 bits")
    if not 0 <= start <= array.size - count:
        raise IndexError(f"elements {start} to {start + count - 1} of an array of {array.size}")
    if start % count:
        raise ValueError(f"{count} elements at offset {start}, which is not a multiple of {count}: misaligned")
    return start


def _taken(array: Any, start: int, count: int) -> Any:
    """Elements as loads give them: indexing one by one is far faster than iterating over a slice."""
    return array[start] if count == 1 else tuple([array[start + i] for i in range(count)])


def _load_twin(count: int, *, read_only: bool = False) -> Callable[[Any, Any], Any]:
    def twin(array: Any, offset: Any) -> Any:
        if not isinstance(array, np.ndarray):
            return array.load(operator.index(offset).real, count, read_only=read_only)
        return _taken(array, _first(array, offset, count), count)

    return twin


def _predicated_load_twin(count: int) -> Callable[[Any, Any, Any], Any]:
    def twin(array: Any, offset: Any, predicate: Any) -> Any:
        if not predicate:
            if not isinstance(array, np.ndarray):
                array.skip()
            zero = array.dtype.type(0)
            return zero if count == 1 else (zero,) * count
        if not isinstance(array, np.ndarray):
            return array.load(operator.index(offset).real, count, read_only=True)
        return _taken(array, _first(array, offset, count), count)

    return twin


def _store_twin(count: int) -> Callable[[Any, Any, Any], None]:
    def twin(array: Any, offset: Any, value: Any) -> None:
        values = (value,) if count == 1 else value
        if len(values) != count or any(type(element) is not array.dtype.type for element in values):
            # An integer that the simulator has loaded computes in 64 bits, and says what type it stands for.
            given = [getattr(element, "stands_for", type(element)) for element in values]
            if given != count * [array.dtype.type]:
                names = ", ".join(kind.__name__ for kind in given)
                raise TypeError(f"a store of {count} elements of {array.dtype} got {names}: convert it")
        if isinstance(array, np.ndarray):
            start = _first(array, offset, count)
            array[start : start + count] = values
        else:
            array.store(operator.index(offset).real, values)

    return twin


# -- the intrinsics --------------------------------------------------------------------------------------

ld = intrinsic("ld", _load(1), _load_twin(1))
ld2 = intrinsic("ld2", _load(2), _load_twin(2))
ld4 = intrinsic("ld4", _load(4), _load_twin(4))
ldg = intrinsic("ldg", _load(1, read_only=True), _load_twin(1, read_only=True))
ldg2 = intrinsic("ldg2", _load(2, read_only=True), _load_twin(2, read_only=True))
ldg4 = intrinsic("ldg4", _load(4, read_only=True), _load_twin(4, read_only=True))
ldg_if = intrinsic("ldg_if", _predicated_load(1), _predicated_load_twin(1))
ldg2_if = intrinsic("ldg2_if", _predicated_load(2), _predicated_load_twin(2))
ldg4_if = intrinsic("ldg4_if", _predicated_load(4), _predicated_load_twin(4))
ldg8_if = intrinsic("ldg8_if", _predicated_load(8), _predicated_load_twin(8))
st = intrinsic("st", _store(1), _store_twin(1))
st2 = intrinsic("st2", _store(2), _store_twin(2))
st4 = intrinsic("st4", _store(4), _store_twin(4))
st8 = intrinsic("st8", _store(8), _store_twin(8))
