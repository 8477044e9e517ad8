"""What kernels share: how they are compiled and launched, and the instructions that Numba does not emit by itself.

A kernel imports from here and from ``numba.cuda``::

    from numba import cuda

    from gpuconv.kernels.device import jit, ldg4, st4, u32, uadd, umul

    @jit(launch_bounds=256)
    def double(x, y):
        i = umul(uadd(umul(u32(cuda.blockIdx.x), 256), u32(cuda.threadIdx.x)), 4)
        a, b, c, d = ldg4(x, i)
        st4(y, i, (a + a, b + b, c + c, d + d))

**Why intrinsics.** Numba widens integer operations to 64 bits, checks each index for wrapping around, and never joins
loads. On a GPU 64-bit integers take two to four instructions, and a 128-bit load replaces four. So indices are
computed by ``i...`` (int32) and ``u...`` (uint32) functions, and memory is reached by flat offsets:

==================  ====================================================================================================
``iadd``, ``uadd``  likewise ``sub mul div mod min max and shl shr``. int32 must not overflow (LLVM's ``nsw``); uint32
                    wraps, so that ``usub(row, padding) < height`` tests both borders. Division by a constant becomes
                    a multiplication, shorter if unsigned; constants added to a signed offset fold into the address.
``i32``, ``u32``    conversions; what does not fit is an error in the simulator, or wraps
``ld ld2 ld4``      1, 2 or 4 elements (a tuple) of a global or shared array, in one access of up to 128 bits
``st st2 st4``      stores likewise; the values are of the array's type
``ldg ldg2 ldg4``   loads through the read-only cache (``ld.global.nc``): global memory that the launch does not write
``ldg_if`` ...      likewise ``ldg2_if ldg4_if``: with a predicate, but no branch; where it is false they give zeros and
                    read nothing, whatever the offset
``ldg_early`` ...   likewise ``ldg2_early ldg4_early``: as ``ldg_if``, but the load is made where it stands; others the
                    compiler may delay until the value is needed, to save registers
``fma``             ``a * b + c`` rounded once
==================  ====================================================================================================

Arrays are one-dimensional and contiguous. An access to several elements has to be aligned to its size: allocations
are, a shared array is if it is made with ``alignment=16``, and the offset must be a multiple of the count.

**Twins.** In the simulator each of these is a Python function, its twin, which also checks what the machine would not
tell: alignment, types, overflow. A twin proves the kernel, not the intrinsic; ``tests/test_device.py`` compares the two
where the LLVM code can run on a CPU.
"""

from __future__ import annotations

import contextlib
import importlib
import operator
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, TypeAlias

import numpy as np
from llvmlite import ir
from numba import config, cuda, types
from numba.core.errors import TypingError
from numba.cuda import extending

from gpuconv.kernels import driver

#: Whether kernels run in the simulator: decided when ``numba.cuda`` is imported.
SIMULATED = bool(config.ENABLE_CUDASIM)

#: The most elements that an array may have: offsets are 32-bit numbers, signed in some kernels.
MAX_ELEMENTS = 2**31 - 1


# -- compiling and launching -----------------------------------------------------------------------------


def jit(function: Callable[..., None] | None = None, /, **options: Any) -> Any:
    """``numba.cuda.jit``, which in the simulator takes no options: all of them are about machine code.

    Options used here: ``launch_bounds`` (threads a block, or also the blocks that a multiprocessor should hold),
    ``max_registers``. Leave ``fastmath`` alone: it lets the compiler assume that there are no NaNs.
    """
    if function is None:
        return lambda function: jit(function, **options)
    return cuda.jit(function) if SIMULATED else cuda.jit(**options)(function)


def device_function(function: Callable[..., Any], /) -> Any:
    """A function that kernels call. It becomes part of them: the local arrays that it is given stay in registers."""
    return function if SIMULATED else extending.register_jitable(forceinline=True)(function)


@dataclass(frozen=True)
class Launch:
    """A launch of a kernel, all but its arguments: what can be compiled, counted and checked without a GPU."""

    kernel: Any
    #: Numba types of the arguments.
    signature: tuple[Any, ...] = field(repr=False)
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    #: Bytes of dynamic shared memory.
    shared_bytes: int = 0

    def __call__(self, stream: Any, *arguments: Any) -> None:
        """Queue it on a stream (None: the default one), or note it inside of :func:`recording`.

        The stream is a handle, or what has ``__cuda_stream__``; arrays are flat, and on the device. Without a GPU the
        launch is run at once, on NumPy arrays.
        """
        if (recorder := _recorder.get()) is not None:
            recorder(self, arguments)
        elif _on_host is not None:
            _on_host(self, arguments)
        else:
            driver.launch(self, stream, arguments)

    def ptx(self, cc: tuple[int, int] | tuple[int, int, str]) -> str:
        """Compile for a compute capability such as ``(8, 0)`` or ``(9, 0, "a")``; needs NVVM, but no GPU."""
        code: str = self._compiled(cc, "ptx")
        return code

    def lto_ir(self, cc: tuple[int, int] | tuple[int, int, str]) -> bytes:
        """Likewise, but what ``numba.cuda.jit`` gives to nvJitLink to make machine code of."""
        return bytes(self._compiled(cc, "ltoir"))

    def _compiled(self, cc: tuple[Any, ...], output: str) -> Any:
        options = self.kernel.targetoptions
        taken = {name: options[name] for name in ("fastmath", "launch_bounds") if options.get(name) is not None}
        kernel, signature = self.kernel.py_func, self.signature
        with _pretended_device(cc):
            return cuda.compile(kernel, signature, device=False, cc=cc, abi="numba", output=output, **taken)[0]


def _simulate(launch: Launch, arguments: tuple[Any, ...]) -> None:
    launch.kernel[launch.grid, launch.block, None, launch.shared_bytes](*arguments)


#: What runs launches in place of a GPU, if anything: the simulator, or the interpreter of PTX.
_on_host: Callable[[Launch, tuple[Any, ...]], None] | None = _simulate if SIMULATED else None


@contextlib.contextmanager
def running_on_host(run: Callable[[Launch, tuple[Any, ...]], None]) -> Iterator[None]:
    """Inside of the ``with`` block ``run`` is called with a launch and its arguments, NumPy arrays and numbers."""
    global _on_host
    before, _on_host = _on_host, run
    try:
        yield
    finally:
        _on_host = before


_recorder: ContextVar[Callable[[Launch, tuple[Any, ...]], None] | None] = ContextVar("gpuconv_recorder", default=None)


def is_recording() -> bool:
    """Whether launches are noted instead of made."""
    return _recorder.get() is not None


@contextlib.contextmanager
def recording(noted: Callable[[Any], Any] | None = None) -> Iterator[list[tuple[Launch, tuple[Any, ...]]]]:
    """Inside of the ``with`` block launches are noted instead of made: a list of them, each with its arguments.

    ``noted`` makes of an argument what is put into the list; None takes it as it is. Other threads are not affected.
    """
    recorded: list[tuple[Launch, tuple[Any, ...]]] = []

    def note(launch: Launch, arguments: tuple[Any, ...]) -> None:
        recorded.append((launch, arguments if noted is None else tuple(map(noted, arguments))))

    token = _recorder.set(note)
    try:
        yield recorded
    finally:
        _recorder.reset(token)


@contextlib.contextmanager
def _pretended_device(cc: tuple[Any, ...]) -> Iterator[None]:
    """Numba compiles a device function for the GPU at hand, even where the kernel is compiled for another one."""
    dispatcher: Any = importlib.import_module("numba.cuda.dispatcher")
    real = dispatcher.get_current_device
    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=cc)
    try:
        yield
    finally:
        dispatcher.get_current_device = real


def array_type(dtype: Any) -> Any:
    """Numba's type of a flat array of ``dtype``, for signatures."""
    return types.Array(getattr(types, np.dtype(dtype).name), 1, "C")


class Refusal(str):
    """Why a variant does not support a geometry; false, so that ``if supports(geometry)`` says what it seems to."""

    __slots__ = ()

    def __bool__(self) -> bool:
        return False


Answer: TypeAlias = "bool | Refusal"


def fits_offsets(**sizes: int) -> Answer:
    """Whether arrays of so many elements can be indexed with 32 bits; the names are for the message."""
    for name, size in sizes.items():
        if size > MAX_ELEMENTS:
            return Refusal(
                f"{name} has {size} elements, which needs 64-bit offsets: the kernels use 32 bits, up to "
                f"{MAX_ELEMENTS}. Split the batch"
            )
    return True


# -- how an intrinsic is made ----------------------------------------------------------------------------

#: By name, what Numba makes an intrinsic from, and the function that takes its place in the simulator.
BODIES: dict[str, Callable[..., Any]] = {}
TWINS: dict[str, Callable[..., Any]] = {}


def _intrinsic(name: str, body: Callable[..., Any], twin: Callable[..., Any]) -> Any:
    """Make an intrinsic; ``body`` maps the types of the arguments to a signature and the LLVM code."""
    body.__name__ = name  # for Numba's messages
    BODIES[name], TWINS[name] = body, twin
    return twin if SIMULATED else extending.intrinsic(body)


_I32, _I64 = ir.IntType(32), ir.IntType(64)


def _integers(*given: Any) -> None:
    for kind in given:
        if not isinstance(kind, types.Integer):
            raise TypingError(f"integer arithmetic needs integers, got {kind}")


def _binary(operation: str, kind: Any, *flags: str) -> Callable[..., Any]:
    def body(typingctx: Any, a: Any, b: Any) -> Any:
        _integers(a, b)

        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return getattr(builder, operation)(*args, flags=flags)

        return kind(kind, kind), code

    return body


def _choice(comparison: str, kind: Any) -> Callable[..., Any]:
    def body(typingctx: Any, a: Any, b: Any) -> Any:
        _integers(a, b)

        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            compare = builder.icmp_signed if kind.signed else builder.icmp_unsigned
            return builder.select(compare(comparison, *args), *args)

        return kind(kind, kind), code

    return body


def _conversion(kind: Any) -> Callable[..., Any]:
    def body(typingctx: Any, a: Any) -> Any:
        _integers(a)
        # Numba converts the argument to what the signature says.
        return kind(kind), lambda context, builder, signature, args: args[0]

    return body


def _checked_array(array: Any, offset: Any, count: int) -> None:
    if not isinstance(array, types.Array) or array.ndim != 1 or array.layout != "C":
        raise TypingError(f"loads and stores need a one-dimensional contiguous array, got {array}")
    if not isinstance(array.dtype, (types.Integer, types.Float)) or count * array.dtype.bitwidth > 128:
        raise TypingError(f"{count} elements of {array.dtype} are not numbers of at most 128 bits together")
    _integers(offset)


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
        # Numba would convert silently: from float64, and the kernel would have computed in double precision.
        if types.unliteral(value) != wanted:
            raise TypingError(f"a store to {array} takes {wanted}, got {value}: convert it")

        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            pointer = _element_pointer(context, builder, signature, args)
            vector = ir.Constant(ir.VectorType(pointer.type.pointee, count), ir.Undefined)
            for i in range(count):
                element = args[2] if count == 1 else builder.extract_value(args[2], i)
                vector = builder.insert_element(vector, element, _I32(i))
            store = builder.store(vector, builder.bitcast(pointer, vector.type.as_pointer()))
            store.align = count * array.dtype.bitwidth // 8
            return context.get_dummy_value()

        return types.void(array, offset, wanted), code

    return body


#: By bits: PTX type and register class of integers; of floats. There are no 8-bit registers.
_REGISTERS = {8: ("b8", "h"), 16: ("b16", "h"), 32: ("b32", "r"), 64: ("b64", "l")}
_FLOAT_REGISTERS = {32: ("f32", "f"), 64: ("f64", "d")}


def _predicated_load(count: int, *, early: bool = False) -> Callable[..., Any]:
    def body(typingctx: Any, array: Any, offset: Any, predicate: Any) -> Any:
        _checked_array(array, offset, count)
        bits = array.dtype.bitwidth
        name, register = (_FLOAT_REGISTERS if isinstance(array.dtype, types.Float) else _REGISTERS)[bits]

        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            pointer = _element_pointer(context, builder, signature, args)
            element = pointer.type.pointee
            address = builder.ptrtoint(builder.addrspacecast(pointer, element.as_pointer(1)), _I64)
            slot = ir.IntType(16) if bits == 8 else element
            result = slot if count == 1 else ir.LiteralStructType([slot] * count)
            outputs = [f"${i}" for i in range(count)]
            zeros = " ".join(f"mov.b{max(bits, 16)} {output}, 0;" for output in outputs)
            vector, destination = (f".v{count}", "{" + ", ".join(outputs) + "}") if count > 1 else ("", outputs[0])
            assembly = (
                f"{{ .reg .pred on; setp.ne.b32 on, ${count + 1}, 0; {zeros} "
                f"@on ld.global.nc{vector}.{name} {destination}, [${count}]; }}"
            )
            constraints = ",".join([f"=&{register}"] * count + ["l", "r"])
            function = ir.FunctionType(result, [_I64, _I32])
            # What has side effects stays where it is. This has none, as what it reads does not change: it may be moved.
            load = ir.InlineAsm(function, assembly, constraints, side_effect=early)
            value = builder.call(load, [address, builder.zext(args[2], _I32)])
            elements = [value] if count == 1 else [builder.extract_value(value, i) for i in range(count)]
            if bits == 8:
                elements = [builder.trunc(part, element) for part in elements]
            return _packed(builder, elements)

        return _loaded(array.dtype, count)(array, offset, types.boolean), code

    return body


def _fused_multiply_add(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    if not isinstance(a, types.Float) or a != b or a != c:
        raise TypingError(f"fma needs three floats of one type, got {a}, {b}, {c}")
    return a(a, a, a), lambda context, builder, signature, args: builder.fma(*args)


# -- 32-bit integers -------------------------------------------------------------------------------------


def _signed(value: int) -> int:
    if not -(2**31) <= value < 2**31:
        raise OverflowError(f"{value} does not fit into int32")
    return value


def _unsigned(value: int) -> int:
    return value & 0xFFFFFFFF


def _arithmetic(operation: Callable[[int, int], int], wrapped: Callable[[int], int]) -> Callable[[Any, Any], int]:
    """The twin of an operation on two integers, of which neither is a float."""
    return lambda a, b: wrapped(operation(wrapped(operator.index(a)), wrapped(operator.index(b))))


def _quotient(a: int, b: int) -> int:
    """Rounded towards zero, as C and the machine have it."""
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def _int32(instruction: str, operation: Callable[[int, int], int], *flags: str) -> tuple[Any, Any]:
    return _binary(instruction, types.int32, *flags), _arithmetic(operation, _signed)


def _uint32(instruction: str, operation: Callable[[int, int], int]) -> tuple[Any, Any]:
    return _binary(instruction, types.uint32), _arithmetic(operation, _unsigned)


i32 = _intrinsic("i32", _conversion(types.int32), lambda a: _signed(operator.index(a)))
iadd = _intrinsic("iadd", *_int32("add", operator.add, "nsw"))
isub = _intrinsic("isub", *_int32("sub", operator.sub, "nsw"))
imul = _intrinsic("imul", *_int32("mul", operator.mul, "nsw"))
idiv = _intrinsic("idiv", *_int32("sdiv", _quotient))
imod = _intrinsic("imod", *_int32("srem", lambda a, b: a - b * _quotient(a, b)))
imin = _intrinsic("imin", _choice("<", types.int32), _arithmetic(min, _signed))
imax = _intrinsic("imax", _choice(">", types.int32), _arithmetic(max, _signed))
iand = _intrinsic("iand", *_int32("and_", operator.and_))
ishl = _intrinsic("ishl", *_int32("shl", operator.lshift, "nsw"))
ishr = _intrinsic("ishr", *_int32("ashr", operator.rshift))

u32 = _intrinsic("u32", _conversion(types.uint32), lambda a: _unsigned(operator.index(a)))
uadd = _intrinsic("uadd", *_uint32("add", operator.add))
usub = _intrinsic("usub", *_uint32("sub", operator.sub))
umul = _intrinsic("umul", *_uint32("mul", operator.mul))
udiv = _intrinsic("udiv", *_uint32("udiv", operator.floordiv))
umod = _intrinsic("umod", *_uint32("urem", operator.mod))
umin = _intrinsic("umin", _choice("<", types.uint32), _arithmetic(min, _unsigned))
umax = _intrinsic("umax", _choice(">", types.uint32), _arithmetic(max, _unsigned))
uand = _intrinsic("uand", *_uint32("and_", operator.and_))
ushl = _intrinsic("ushl", *_uint32("shl", operator.lshift))
ushr = _intrinsic("ushr", *_uint32("lshr", operator.rshift))


# -- memory and floats -----------------------------------------------------------------------------------
#
# In a trace a twin is given a `gpuconv.tracing.TracedArray`, which makes the same checks and more. Its methods take an
# access to be that of their caller's caller, the kernel: the twin itself has to call them.


def _elements(array: Any, offset: Any, count: int) -> slice:
    """Where an access goes in a NumPy array, if it is allowed."""
    start = operator.index(offset)
    if array.ndim != 1 or not array.flags.c_contiguous:
        raise TypeError(f"loads and stores need a one-dimensional contiguous array, got shape {array.shape}")
    if count * array.itemsize > 16:
        raise TypeError(f"{count} elements of {array.dtype} are more than 128 bits")
    if not 0 <= start <= array.size - count:
        raise IndexError(f"elements {start} to {start + count - 1} of an array of {array.size}")
    if start % count:
        raise ValueError(f"{count} elements at offset {start}, which is not a multiple of {count}: misaligned")
    return slice(start, start + count)


def _load_twin(count: int, *, read_only: bool = False) -> Callable[[Any, Any], Any]:
    def twin(array: Any, offset: Any) -> Any:
        if not isinstance(array, np.ndarray):
            return array.load(operator.index(offset), count, read_only=read_only)
        found = array[_elements(array, offset, count)]
        return found[0] if count == 1 else tuple(found)

    return twin


def _predicated_load_twin(count: int) -> Callable[[Any, Any, Any], Any]:
    def twin(array: Any, offset: Any, predicate: Any) -> Any:
        if not predicate:
            if not isinstance(array, np.ndarray):
                array.skip()
            zero = array.dtype.type(0)
            return zero if count == 1 else (zero,) * count
        if not isinstance(array, np.ndarray):
            return array.load(operator.index(offset), count, read_only=True)
        found = array[_elements(array, offset, count)]
        return found[0] if count == 1 else tuple(found)

    return twin


def _store_twin(count: int) -> Callable[[Any, Any, Any], None]:
    def twin(array: Any, offset: Any, value: Any) -> None:
        values = (value,) if count == 1 else value
        if len(values) != count or any(type(element) is not array.dtype.type for element in values):
            given = ", ".join(type(element).__name__ for element in values)
            raise TypeError(f"a store of {count} elements of {array.dtype} got {given}: convert it")
        if isinstance(array, np.ndarray):
            array[_elements(array, offset, count)] = values
        else:
            array.store(operator.index(offset), values)

    return twin


def _fma_twin(a: Any, b: Any, c: Any) -> Any:
    if not type(a) is type(b) is type(c) or not isinstance(a, np.floating):
        names = ", ".join(type(value).__name__ for value in (a, b, c))
        raise TypeError(f"fma needs three floats of one type, got {names}")
    return a * b + c  # rounds twice: as near to the kernel as another order of summation


ld = _intrinsic("ld", _load(1), _load_twin(1))
ld2 = _intrinsic("ld2", _load(2), _load_twin(2))
ld4 = _intrinsic("ld4", _load(4), _load_twin(4))
ldg = _intrinsic("ldg", _load(1, read_only=True), _load_twin(1, read_only=True))
ldg2 = _intrinsic("ldg2", _load(2, read_only=True), _load_twin(2, read_only=True))
ldg4 = _intrinsic("ldg4", _load(4, read_only=True), _load_twin(4, read_only=True))
ldg_if = _intrinsic("ldg_if", _predicated_load(1), _predicated_load_twin(1))
ldg2_if = _intrinsic("ldg2_if", _predicated_load(2), _predicated_load_twin(2))
ldg4_if = _intrinsic("ldg4_if", _predicated_load(4), _predicated_load_twin(4))
ldg_early = _intrinsic("ldg_early", _predicated_load(1, early=True), _predicated_load_twin(1))
ldg2_early = _intrinsic("ldg2_early", _predicated_load(2, early=True), _predicated_load_twin(2))
ldg4_early = _intrinsic("ldg4_early", _predicated_load(4, early=True), _predicated_load_twin(4))
st = _intrinsic("st", _store(1), _store_twin(1))
st2 = _intrinsic("st2", _store(2), _store_twin(2))
st4 = _intrinsic("st4", _store(4), _store_twin(4))
fma = _intrinsic("fma", _fused_multiply_add, _fma_twin)


# -- loops and blocks in registers -----------------------------------------------------------------------
#
# A local array stays in registers only if each of its indices is a constant when the machine code is made. LLVM unrolls
# a loop around a few dozen multiply-adds, but not around hundreds: then the array moves to memory.


def unrolled(body: Callable[..., None], count: int, /) -> Any:
    """A device function that calls ``body(i, *arguments)`` for i from 0 to ``count`` - 1, with i a constant in each.

    ``body`` is a device function too.
    """

    def calls(start: int, stop: int) -> Any:
        # Halved, so that the functions nest as deep as log2(count) and not as count.
        if stop - start == 1:
            return device_function(lambda *arguments: body(start, *arguments))
        first, second = calls(start, (start + stop) // 2), calls((start + stop) // 2, stop)

        def both(*arguments: Any) -> None:
            first(*arguments)
            second(*arguments)

        return device_function(both)

    return calls(0, count)


def _add_outer(total: Any, a: Any, b: Any, first: int) -> None:
    for i in range(total.shape[0]):
        for j in range(total.shape[1]):
            total[i, j] = fma(a[i], b[first + j], total[i, j])


def _add_outer_twin(total: Any, a: Any, b: Any, first: int) -> None:
    if not total.dtype == a.dtype == b.dtype:
        raise TypeError(f"add_outer needs three arrays of one type, got {total.dtype}, {a.dtype}, {b.dtype}")
    total += a[: len(total), None] * b[first : first + total.shape[1]]


#: ``total[i, j] += a[i] · b[first + j]``: local arrays of one type. The twin takes one step, not one a multiply-add.
add_outer = _add_outer_twin if SIMULATED else device_function(_add_outer)


def vector_access(count: int, /) -> tuple[Any, Any, Any]:
    """``load(values, array, i)``, ``load_read_only`` likewise, and ``store``: device functions.

    They move ``count`` elements, 1, 2 or 4, between a local array and another array from i on, in one access.
    """
    load, load_read_only, store = {1: (ld, ldg, st), 2: (ld2, ldg2, st2), 4: (ld4, ldg4, st4)}[count]

    def loading(instruction: Any) -> Any:
        def load_one(values: Any, array: Any, i: Any) -> None:
            values[0] = instruction(array, i)

        def load_two(values: Any, array: Any, i: Any) -> None:
            values[0], values[1] = instruction(array, i)

        def load_four(values: Any, array: Any, i: Any) -> None:
            values[0], values[1], values[2], values[3] = instruction(array, i)

        return device_function({1: load_one, 2: load_two, 4: load_four}[count])

    def store_one(values: Any, array: Any, i: Any) -> None:
        store(array, i, values[0])

    def store_two(values: Any, array: Any, i: Any) -> None:
        store(array, i, (values[0], values[1]))

    def store_four(values: Any, array: Any, i: Any) -> None:
        store(array, i, (values[0], values[1], values[2], values[3]))

    storing = {1: store_one, 2: store_two, 4: store_four}[count]
    return loading(load), loading(load_read_only), device_function(storing)


# -- on the host: alignment, and choosing tilings --------------------------------------------------------


def aligned(*arrays: Any) -> bool:
    """Whether all arrays begin at a multiple of 16 bytes, so that 128 bits at once may be accessed; for the host.

    Allocations do. What a view begins with may not, though it be contiguous.
    """
    interfaces = (getattr(array, "__cuda_array_interface__", None) or array.__array_interface__ for array in arrays)
    return all((interface["data"][0] or 0) % 16 == 0 for interface in interfaces)


#: Multiprocessors of a large GPU (H100, H200): estimates of how tilings compare assume so many.
MULTIPROCESSORS = 132


def fitted(size: int, tile: int, unit: int, /) -> int:
    """The smallest multiple of ``unit`` of which no more are needed to cover ``size`` than of ``tile``."""
    return -(-size // (-(-size // tile) * unit)) * unit


def widest_access(length: int, dtype: Any, /) -> int:
    """The most elements, 4, 2 or 1, that 128 bits hold and that divide ``length``, that of rows one after the other."""
    most = min(4, 16 // np.dtype(dtype).itemsize)
    return next(count for count in (4, 2, 1) if count <= most and length % count == 0)


def bank_conflicts(offsets: Iterable[int]) -> int:
    """How many passes the worst of some 128-bit accesses to shared memory takes: 1 is free of conflicts; for the host.

    Args:
        offsets: for each thread in turn, the first of the four float32 elements that it accesses; a multiple of 4.
    """
    words, worst = [offset // 4 for offset in offsets], 1
    # Eight lanes are served at once, by eight banks of that width, each of which has one address at a time.
    for first in range(0, len(words), 8):
        distinct = set(words[first : first + 8])
        worst = max(worst, *(sum(word % 8 == bank for word in distinct) for bank in range(8)))
    return worst
