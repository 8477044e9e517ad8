"""Words: 32-bit integers with operators, signed (``i32``) and unsigned (``u32``), for the indices of a kernel.

Numba computes with 64-bit integers, which take a GPU two to four instructions each. A word stays a word::

    thread = u32(cuda.threadIdx.x)
    row, column = divmod(thread, columns)
    inside = row * stride - padding < height        # unsigned: tests both borders

``u32(x)`` and ``i32(x)`` convert an integer or a word. Words have ``+ - * // % << >> &``, also in place, comparisons,
:func:`minimum` and :func:`maximum`; they are offsets of loads and stores, indices of arrays, and ``real(word)`` is a
float. ``divmod`` gives quotient and remainder for the price of one; :func:`settled` hides an offset's origin from the
compiler. All else is an error.

**The other operand** is a word of the same sign, or an integer of Numba's own: a number in the source, a constant of
the closure, a loop's counter, an argument. Arithmetic cuts it to 32 bits and gives a word; a comparison is exact. A
signed and an unsigned word do not mix: convert one of them.

**Overflow.** ``u32`` wraps, so that ``row - padding < height`` tests both borders. ``i32`` must not overflow (LLVM's
``nsw``), so that the compiler may fold constants added to an offset into the address of a load. Division truncates, as
on the machine; by a constant it becomes a multiplication, shorter if unsigned.

**In the simulator** a word is a Python ``int`` of a class of its own. There an overflow of ``i32`` is an error.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.errors import TypingError
from numba.core.typeconv import Conversion
from numba.cuda import extending

from gpuconv.kernels.device.intrinsic import SIMULATED, intrinsic

#: Said of all other operators.
_OPERATORS = "words have + - * // % << >> & and comparisons"

_BITS32, _BITS64 = ir.IntType(32), ir.IntType(64)

# -- for the compiler ------------------------------------------------------------------------------------


class Word(types.Integer):  # type: ignore[misc]
    """Numba's type of a word. It is an integer, so arrays take it as an index."""

    def __init__(self, name: str, *, signed: bool) -> None:
        super().__init__(name, bitwidth=32, signed=signed)

    def can_convert_to(self, typingctx: Any, other: Any) -> Any:
        """To Numba's integer of the same bits and sign, as an argument or an element of an array."""
        # "Unsafe" keeps a variable from becoming one by itself.
        return Conversion.unsafe if other == (types.int32 if self.signed else types.uint32) else None

    def unify(self, typingctx: Any, other: Any) -> Any:
        """A variable that is a word in one branch and something else in another one is an error."""

    def cast_python_value(self, value: Any) -> Any:
        """Numba's name for a conversion on the host, where there are no words."""
        raise NotImplementedError(f"{self.name} is a type of kernels")


U32, I32 = Word("u32", signed=False), Word("i32", signed=True)


def is_integer(kind: Any) -> bool:
    """Whether a Numba type is a word or an integer."""
    return isinstance(kind, types.Integer)


def common(a: Any, b: Any) -> Any:
    """The word that an operation on two Numba types is made with; None if neither is a word.

    Raises:
        TypeError: a word beside something that is no integer, or a signed one beside an unsigned one. No TypingError:
            after that Numba would look on, and find that every integer can become a 16-bit float.
    """
    words = {kind for kind in (a, b) if isinstance(kind, Word)}
    if not words:
        return None
    if len(words) > 1:
        raise TypeError("u32 and i32 do not mix: convert one of them")
    if not (is_integer(a) and is_integer(b)):
        raise TypeError(f"words go with integers, got {a} and {b}")
    return words.pop()


def as_word(builder: Any, value: Any, kind: Any) -> Any:
    """An integer's 32 bits."""
    if kind.bitwidth == 32:
        return value
    if kind.bitwidth > 32:
        return builder.trunc(value, _BITS32)
    return (builder.sext if kind.signed else builder.zext)(value, _BITS32)


def _arithmetic(instructions: tuple[str, str], flags: tuple[str, ...]) -> Callable[..., Any]:
    """LLVM code of an operation; its instruction for unsigned and for signed words, and the flags of the latter."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        signed = signature.return_type.signed
        operands = [as_word(builder, *one) for one in zip(args, signature.args, strict=True)]
        if instructions[signed] == "urem":
            # By way of the quotient, which is mostly there already: in a remainder the compiler does not find it.
            quotient = builder.udiv(*operands)
            return builder.sub(operands[0], builder.mul(quotient, operands[1]))
        return getattr(builder, instructions[signed])(*operands, flags=flags if signed else ())

    return code


def _quotient_and_remainder(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    x, y = (as_word(builder, *one) for one in zip(args, signature.args, strict=True))
    signed = signature.return_type.dtype.signed
    quotient = (builder.sdiv if signed else builder.udiv)(x, y)
    # Not as a remainder: the compiler would compute that for itself, in 16 bits where these are enough.
    flags = ("nsw",) if signed else ()
    remainder = builder.sub(x, builder.mul(quotient, y, flags=flags), flags=flags)
    return context.make_tuple(builder, signature.return_type, (quotient, remainder))


def _comparison(symbol: str) -> Callable[..., Any]:
    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        a, b = signature.args
        if a == b:
            compare = builder.icmp_signed if a.signed else builder.icmp_unsigned
            return compare(symbol, *args)
        # Exact, as in Python: both in 64 bits. Of a constant the compiler makes 32 again.
        exact = [
            value if kind.bitwidth == 64 else (builder.sext if kind.signed else builder.zext)(value, _BITS64)
            for value, kind in zip(args, (a, b), strict=True)
        ]
        return builder.icmp_signed(symbol, *exact)

    return code


#: By Python's function, instructions for unsigned and signed words, and flags of the signed one.
_ARITHMETIC: dict[Any, tuple[tuple[str, str], tuple[str, ...]]] = {
    operator.add: (("add", "add"), ("nsw",)),
    operator.sub: (("sub", "sub"), ("nsw",)),
    operator.mul: (("mul", "mul"), ("nsw",)),
    operator.floordiv: (("udiv", "sdiv"), ()),
    operator.mod: (("urem", "srem"), ()),
    operator.lshift: (("shl", "shl"), ("nsw",)),
    operator.rshift: (("lshr", "ashr"), ()),
    operator.and_: (("and_", "and_"), ()),
}
_COMPARISONS = {
    operator.lt: "<",
    operator.le: "<=",
    operator.gt: ">",
    operator.ge: ">=",
    operator.eq: "==",
    operator.ne: "!=",
}


_REFUSED = ("truediv", "pow", "or_", "xor", "itruediv", "ipow", "ior", "ixor", "neg", "pos", "invert")


def register(templates: Any, extending: Any, target: str) -> None:
    """Teach a compiler of Numba's the words.

    Args:
        templates: its module ``typing.templates``.
        extending: its module ``extending``.
        target: its name; what is registered for it goes before what is for all of them.
    """

    class WordModel(extending.models.PrimitiveModel):  # type: ignore[misc]
        def __init__(self, manager: Any, kind: Any) -> None:
            super().__init__(manager, kind, _BITS32)

    extending.register_model(Word)(WordModel)

    def declare(function: Any, resolve: Callable[..., Any]) -> None:
        class Declared(templates.AbstractTemplate):  # type: ignore[misc]
            metadata = {"target": target}  # noqa: RUF012

            def generic(self, args: Any, kws: Any) -> Any:
                result = resolve(*args)
                return None if result is None else templates.signature(result, *args)

        templates.infer_global(function)(Declared)

    def define(function: Any, code: Callable[..., Any]) -> None:
        for pair in ((Word, Word), (Word, types.Integer), (types.Integer, Word)):
            extending.lower_builtin(function, *pair)(code)

    for function, (instructions, flags) in _ARITHMETIC.items():
        for form in (function, getattr(operator, f"i{function.__name__.strip('_')}")):
            declare(form, common)
            define(form, _arithmetic(instructions, flags))
    for function, symbol in _COMPARISONS.items():
        declare(function, lambda a, b: common(a, b) and types.boolean)
        define(function, _comparison(symbol))
    declare(divmod, lambda a, b: None if (kind := common(a, b)) is None else types.UniTuple(kind, 2))
    define(divmod, _quotient_and_remainder)
    for name in _REFUSED:
        declare(getattr(operator, name), _refused)


def _refused(*operands: Any) -> None:
    if any(isinstance(kind, Word) for kind in operands):
        raise TypeError(_OPERATORS)


if not SIMULATED:
    from numba.cuda.typing import templates as _templates

    register(_templates, extending, "cuda")


def _conversion(kind: Any) -> Callable[..., Any]:
    def body(typingctx: Any, a: Any) -> Any:
        if not is_integer(a):
            raise TypingError(f"{kind}() converts integers, got {a}")
        return kind(a), lambda context, builder, signature, args: as_word(builder, args[0], signature.args[0])

    return body


def _choice(symbol: str) -> Callable[..., Any]:
    def body(typingctx: Any, a: Any, b: Any) -> Any:
        kind = common(a, b)
        if kind is None:
            raise TypingError(f"one of the two has to be a word, got {a} and {b}")

        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            x, y = (as_word(builder, *one) for one in zip(args, signature.args, strict=True))
            compare = builder.icmp_signed if kind.signed else builder.icmp_unsigned
            return builder.select(compare(symbol, x, y), x, y)

        return kind(a, b), code

    return body


def _settled(typingctx: Any, a: Any) -> Any:
    if not isinstance(a, Word):
        raise TypingError(f"settled() takes a word, got {a}")

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        move = ir.InlineAsm(ir.FunctionType(_BITS32, [_BITS32]), "mov.b32 $0, $1;", "=r,r", side_effect=False)
        return builder.call(move, args)

    return a(a), code


# -- for the simulator -----------------------------------------------------------------------------------
#
# A kernel's indices are most of what the simulator computes. So these are written to be fast: `real` is the plain int
# of a word, without a call; the small words exist already; comparisons are those of int, which are exact.

#: Words up to this one are made once.
_READY = 1 << 16 if SIMULATED else 0
_MASK, _LIMIT = 0xFFFFFFFF, 1 << 31
_make = int.__new__


class _Word(int):
    """A word in the simulator."""

    __slots__ = ()


class _U32(_Word):
    __slots__ = ()


class _I32(_Word):
    __slots__ = ()


_READY_U32 = [_make(_U32, value) for value in range(_READY)]
_READY_I32 = [_make(_I32, value) for value in range(_READY)]


def _u32(value: Any) -> Any:
    """The twin of ``u32``."""
    value = (value if type(value) is int else operator.index(value).real) & _MASK
    return _READY_U32[value] if value < _READY else _make(_U32, value)


def _fitting(value: int) -> int:
    if not -_LIMIT <= value < _LIMIT:
        raise OverflowError(f"{value} does not fit into int32")
    return value


def _i32(value: Any) -> Any:
    """The twin of ``i32``."""
    value = value if type(value) is int else operator.index(value).real
    return _READY_I32[value] if 0 <= value < _READY else _make(_I32, _fitting(value))


def _refuse(other: Any, kind: type) -> int:
    """The number of an operand beside a word that is no plain int: of NumPy's integers, or an error."""
    if isinstance(other, _Word):
        raise TypeError("u32 and i32 do not mix: convert one of them")
    if isinstance(other, (bool, np.bool_)) or not hasattr(other, "__index__"):
        raise TypeError(f"words go with integers, got {type(other).__name__}")
    return int((_u32 if kind is _U32 else _i32)(other))


# Each operation is written out in the text of a function: to call another one would take as long as all the rest.
_TEXT = """
def forward(a, b):
    x, y = a.real, b.real if type(b) is word else {cut_b} if type(b) is int else refuse(b, word)
    value = {operation}
    return ready[value] if 0 <= value < count else make(word, {cut_value})

def reflected(b, a):
    x, y = {cut_a} if type(a) is int else refuse(a, word), b.real
    value = {operation}
    return ready[value] if 0 <= value < count else make(word, {cut_value})
"""


def _quotient(a: int, b: int) -> int:
    """Rounded towards zero, as the machine has it."""
    return a // b if (a < 0) == (b < 0) else -(-a // b)


#: By the name of Python's method: what a word of two others is.
_OPERATIONS = {
    "add": "x + y",
    "sub": "x - y",
    "mul": "x * y",
    "floordiv": "x // y",
    "mod": "x % y",
    "lshift": "x << y",
    "rshift": "x >> y",
    "and": "x & y",
}
#: Where the machine's division is not Python's.
_OF_SIGNED = {"floordiv": "quotient(x, y)", "mod": "x - y * quotient(x, y)"}


def _add_operators(word: Any, ready: list[Any], operations: dict[str, str], cut: str) -> None:
    """Give a class of words its operators; ``cut`` is the text of what makes a number fit."""
    names = {"word": word, "ready": ready, "count": len(ready), "make": _make}
    names |= {"refuse": _refuse, "fit": _fitting, "quotient": _quotient}
    for name, operation in operations.items():
        cuts = {f"cut_{of}": cut.format(of) for of in ("a", "b", "value")}
        exec(_TEXT.format(operation=operation, **cuts), names)
        setattr(word, f"__{name}__", names["forward"])
        setattr(word, f"__r{name}__", names["reflected"])


def _divmod(a: Any, b: Any) -> Any:
    return a // b, a % b


_Word.__divmod__ = _divmod  # type: ignore[assignment]
_Word.__rdivmod__ = lambda b, a: _divmod(a, b)  # type: ignore[assignment]
_add_operators(_U32, _READY_U32, _OPERATIONS, f"{{}} & {_MASK}")
_add_operators(_I32, _READY_I32, _OPERATIONS | _OF_SIGNED, "fit({})")


def _missing(*operands: Any) -> Any:
    raise TypeError(_OPERATORS)


# What int has, and words have not: the result would be an int, unnoticed.
for _name in ("truediv", "pow", "or", "xor"):
    setattr(_Word, f"__{_name}__", _missing)
    setattr(_Word, f"__r{_name}__", _missing)
for _name in ("neg", "pos", "abs", "invert"):
    setattr(_Word, f"__{_name}__", _missing)


def _chosen(choose: Callable[[int, int], int]) -> Callable[[Any, Any], Any]:
    def twin(a: Any, b: Any) -> Any:
        kinds = {type(value) for value in (a, b) if isinstance(value, _Word)}
        if len(kinds) != 1:
            raise TypeError("one of the two has to be a word, and both not of different signs")
        convert = _u32 if kinds == {_U32} else _i32
        return convert(choose(convert(a).real, convert(b).real))

    return twin


u32 = intrinsic("u32", _conversion(U32), _u32)
i32 = intrinsic("i32", _conversion(I32), _i32)
#: Of two words of the same sign, or a word and an integer, which is cut to 32 bits.
minimum = intrinsic("minimum", _choice("<"), _chosen(min))
maximum = intrinsic("maximum", _choice(">"), _chosen(max))
#: The word itself, of whose origin the compiler knows nothing from here on. An offset in a loop is best settled: else
#: the compiler may take its sum apart, and add constants to a part of it that wraps, in an instruction for each load.
settled = intrinsic("settled", _settled, lambda a: a)
