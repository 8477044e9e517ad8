"""Tensor cores: products of small matrices that the 32 lanes of a warp hold together, from compute capability 8.0 on.

===================  ===================================================================================================
``mma_tf32``         ``c + a · b``, a of 16 x 8, b of 8 x 8 (``mma.sync.m16n8k8``); a lane has 4, 2 and 4 of a, b, c
``mma_float16``      likewise of float16, a of 16 x 16, b of 16 x 8 (``m16n8k16``), two elements in a word; c is float32
``mma_bfloat16``     of bfloat16
``load_matrices``    four matrices of 8 x 4 words from shared memory, one word of each a lane (``ldmatrix.x4``)
``round_tf32``       to the nearest TF32 number, halves away from zero (``cvt.rna.tf32``): 11 bits instead of 24
``split``            finite ``x`` as ``high + low``, each of which loses nothing, or next to nothing, in a tensor core
``split_safely``     of what may be infinite or NaN: high for ``high · high``; high and low for the cross products,
                     which are zero where it is not finite
``Arithmetic``       what is multiplied, float32, TF32 or a half type, and how it lies in tiles
``product``          a device function for the product of two tiles of shared memory, in one of these
===================  ===================================================================================================

**Which lane holds what** (PTX ISA, "Matrix fragments for mma.m16n8k8"). With ``g = lane // 4`` and ``t = lane % 4``: of
a the elements ``(g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4)``, of b ``(t, g), (t + 4, g)``, of the sums ``(g, 2t),
(g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1)``. Of a matrix that ``load_matrices`` reads, a lane gets element t of row g.
Two half floats are a word, a neighbour of the other in the direction that is summed over; words lie as TF32 numbers do.

**Float32 of TF32** (3xTF32). A tensor core looks at the upper 19 bits of a number. ``split`` takes these as ``high``;
the rest, exact in float32, has 13 significant bits, of which ``low`` keeps 11, rounded. Then ``a · b`` is ``high · high
+ high · low + low · high`` but for 2^-19 of it at most, and 2^-23 on average. High is cut, not rounded: it takes one
instruction less, and the largest number stays finite. A low part below 2^-126 is right to 2^-137.

**Sums.** A tensor core cuts its sums off where float32 rounds them. In a long sum that adds up: to 2.9e-5 after 4,096
terms on an H100. So for float32 ``product`` adds to float32 registers after every eight terms. Of TF32 and half floats
sums stay in the tensor core: elements are rounded to 11 bits or 8, and products of half floats are exact.

**Infinity** times a ``low`` of zero would be NaN where float32 has infinity. ``product`` is told of tiles that are not
all finite, and takes cross products of finite numbers alone: NaN comes where float32 has it, and nowhere else.

In the simulator a warp's lanes meet, and each gets what the instruction gives it of what the others hold.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import ir
from numba import cuda, types
from numba.core.errors import TypingError

from gpuconv.kernels.device.halves import values_of
from gpuconv.kernels.device.intrinsic import SIMULATED, intrinsic
from gpuconv.kernels.device.launch import device_function
from gpuconv.kernels.device.memory import _checked_array, _element_pointer, _packed, st4, st8
from gpuconv.kernels.device.registers import fma, unrolled

#: The first GPUs that have these instructions.
COMPUTE_CAPABILITY = (8, 0)
#: Words of a tile's row in shared memory: two steps of eight.
DEPTH = 16
#: Types of arrays that can be multiplied.
DTYPES = ("float32", "float16", "bfloat16")

_FLOAT, _BITS, _BITS64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_TWO, _THREE, _FOUR = (types.UniTuple(types.float32, count) for count in (2, 3, 4))
_TWO_WORDS, _FOUR_WORDS = (types.UniTuple(types.uint32, count) for count in (2, 4))
#: Sign, exponent and 10 bits of the mantissa; the exponent; half of the last bit that is kept; NaN.
_UPPER, _EXPONENT, _HALF, _NAN = 0xFFFFE000, 0x7F800000, 0x1000, 0x7FFFFFFF


@dataclass(frozen=True)
class Arithmetic:
    """In what tensor cores multiply, and how it lies in shared memory.

    Attributes:
        name: 'float32' (3xTF32), 'tf32', 'float16' or 'bfloat16'.
    """

    name: str

    @classmethod
    def of(cls, dtype: str, products: int) -> Arithmetic:
        """That for arrays of a type; of float32, with so many products of TF32 numbers for one: 3 or 1."""
        return cls("tf32" if dtype == "float32" and products == 1 else dtype)

    @property
    def each(self) -> int:
        """Elements of a word, 32 bits."""
        return 2 if self.name in ("float16", "bfloat16") else 1

    @property
    def depth(self) -> int:
        """Elements of a tile's row, all of which are of one sum."""
        return DEPTH * self.each

    @property
    def vector(self) -> int:
        """Elements of 128 bits."""
        return 4 * self.each

    @property
    def element(self) -> Any:
        """Numba's type of an element, in arrays and tiles."""
        return types.uint16 if self.each == 2 else types.float32


# -- for the compiler ------------------------------------------------------------------------------------


def _assembly(
    builder: Any, text: str, result: Any, constraints: str, values: list[Any], *, memory: bool = False
) -> Any:
    kind = ir.FunctionType(result, [value.type for value in values])
    clobbers = ",~{memory}" if memory else ""
    # With a side effect, so that the compiler leaves it where it is, which is where all lanes of the warp are.
    return builder.call(ir.InlineAsm(kind, text, constraints + clobbers, side_effect=True), values)


def _mma(name: str, shape: str, kind: str, four: Any, two: Any) -> Any:
    def body(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
        if (a, b, c) != (four, two, _FOUR):
            raise TypingError(f"{name} takes four and two {four.dtype}, and four float32, got {a}, {b}, {c}")

        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            counted = zip(args, (4, 2, 4), strict=True)
            values = [builder.extract_value(value, i) for value, count in counted for i in range(count)]
            values = [builder.bitcast(value, _BITS) for value in values[:6]] + values[6:]
            text = (
                f"mma.sync.aligned.{shape}.row.col.f32.{kind}.{kind}.f32 "
                "{$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};"
            )
            result = ir.LiteralStructType([_FLOAT] * 4)
            found = _assembly(builder, text, result, "=f,=f,=f,=f,r,r,r,r,r,r,f,f,f,f", values)
            return _packed(builder, [builder.extract_value(found, i) for i in range(4)])

        return _FOUR(a, b, c), code

    return body


def _load_matrices(typingctx: Any, array: Any, offset: Any) -> Any:
    _checked_array(array, offset, 4)
    if array.dtype not in (types.float32, types.uint16):
        raise TypingError(f"load_matrices reads float32 or uint16, got {array}")
    found_type = _FOUR if array.dtype == types.float32 else _FOUR_WORDS

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _element_pointer(context, builder, signature, args)
        shared = builder.addrspacecast(pointer, pointer.type.pointee.as_pointer(3))
        address = builder.trunc(builder.ptrtoint(shared, _BITS64), _BITS)
        text = "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {$0, $1, $2, $3}, [$4];"
        result = ir.LiteralStructType([_BITS] * 4)
        found = _assembly(builder, text, result, "=r,=r,=r,=r,r", [address], memory=True)
        words = [builder.extract_value(found, i) for i in range(4)]
        return _packed(builder, [builder.bitcast(word, _FLOAT) for word in words] if found_type == _FOUR else words)

    return found_type(array, offset), code


def _needs_float32(name: str, x: Any) -> None:
    if x != types.float32:
        raise TypingError(f"{name} takes a float32, got {x}")


def _round_tf32(typingctx: Any, x: Any) -> Any:
    _needs_float32("round_tf32", x)

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(_BITS, [_FLOAT])
        found = builder.call(ir.InlineAsm(kind, "cvt.rna.tf32.f32 $0, $1;", "=r,f", side_effect=False), args)
        return builder.bitcast(found, _FLOAT)

    return types.float32(x), code


def _high_and_low(builder: Any, x: Any) -> tuple[Any, Any]:
    high = builder.bitcast(builder.and_(builder.bitcast(x, _BITS), _BITS(_UPPER)), _FLOAT)
    rest = builder.bitcast(builder.fsub(x, high), _BITS)
    # Half of the last bit that the tensor core looks at: what it cuts off is rounded then.
    return high, builder.bitcast(builder.add(rest, _BITS(_HALF)), _FLOAT)


def _split(typingctx: Any, x: Any) -> Any:
    _needs_float32("split", x)
    return _TWO(x), lambda context, builder, signature, args: _packed(builder, [*_high_and_low(builder, args[0])])


def _split_safely(typingctx: Any, x: Any) -> Any:
    _needs_float32("split_safely", x)

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        (x,), zero = args, ir.Constant(_FLOAT, 0.0)
        high, low = _high_and_low(builder, x)
        exponent = builder.and_(builder.bitcast(x, _BITS), _BITS(_EXPONENT))
        finite = builder.icmp_unsigned("!=", exponent, _BITS(_EXPONENT))
        nan = builder.bitcast(_BITS(_NAN), _FLOAT)
        whole = builder.select(builder.fcmp_unordered("uno", x, x), nan, high)
        return _packed(builder, [whole, builder.select(finite, high, zero), builder.select(finite, low, zero)])

    return _THREE(x), code


# -- for the simulator -----------------------------------------------------------------------------------


def _cut_to_tf32(values: Any) -> Any:
    """What a tensor core sees of float32 numbers."""
    return (np.ascontiguousarray(values, np.float32).view(np.uint32) & np.uint32(_UPPER)).view(np.float32)


def _added(a: Any, b: Any, c: Any) -> Any:
    """``c + a @ b`` as a tensor core adds; a [..., 16, k], b [..., k, 8], c [..., 16, 8].

    Products are exact. All terms are cut off at a quarter of the last bit that the largest of them has in float32, and
    the sum again where float32 ends; :mod:`gpuconv.lab.ptx.matrix` says how that is known.
    """
    products = a[..., :, :, None].astype(np.float64) * b[..., None, :, :]
    terms = np.concatenate([np.moveaxis(products, -2, -1), c[..., None].astype(np.float64)], -1)
    exact = terms.sum(-1)
    _, exponent = np.frexp(np.abs(np.where(np.isfinite(terms), terms, 0)).max(-1))
    unit = np.ldexp(1.0, np.maximum(exponent - 24, -149) - 2)[..., None]
    total = (np.trunc(terms / unit) * unit).sum(-1)
    found = total.astype(np.float32)
    found = np.where(np.abs(found) > np.abs(total), np.nextafter(found, np.float32(0)), found)
    return np.where(np.isfinite(exact), found, exact.astype(np.float32))


_G, _T = np.divmod(np.arange(32), 4)
#: Of each lane, where its words stand in a, in b transposed, and in c: rows and columns.
_AT_A = np.stack([_G, _G + 8, _G, _G + 8], 1), np.stack([_T, _T, _T + 4, _T + 4], 1)
_AT_B = np.stack([_G, _G], 1), np.stack([_T, _T + 4], 1)
_AT_C = np.stack([_G, _G, _G + 8, _G + 8], 1), np.stack([2 * _T, 2 * _T + 1] * 2, 1)


def _matrix(fragments: Any, at: tuple[Any, Any], rows: int) -> Any:
    """Matrices [..., rows, 8 words] of what the lanes hold: [32, ..., words, elements of a word]."""
    held = np.moveaxis(np.asarray(fragments), 0, -3)
    each = held.shape[-1]
    found = np.empty((*held.shape[:-3], rows, 8, each), held.dtype)
    found[..., at[0], at[1], :] = held
    return found.reshape(*found.shape[:-2], 8 * each)


def _seen(elements: Any, arithmetic: Arithmetic) -> Any:
    """What a tensor core sees of the elements of tiles, as float32."""
    return _cut_to_tf32(elements) if arithmetic.each == 1 else values_of(elements, arithmetic.name)


def _multiplied(a: Any, b: Any, c: Any, arithmetic: Arithmetic) -> Any:
    """What an ``mma`` gives each lane [32, ..., 4] of what each holds: of a and b [32, ..., 4 or 2, elements]."""
    left, right = (_seen(_matrix(one, *at), arithmetic) for one, at in ((a, (_AT_A, 16)), (b, (_AT_B, 8))))
    found = _added(left, np.swapaxes(right, -1, -2), _matrix(np.asarray(c, np.float32)[..., None], _AT_C, 16))
    return np.moveaxis(found[..., _AT_C[0], _AT_C[1]], -2, 0)


def _met(values: Any, compute: Callable[[list[Any]], Any]) -> Any:
    """The warp meets with a value of each lane; give this lane its element of what ``compute`` makes of them all."""
    lane, offered, computed = cuda._exchange_sync(values)
    if not computed:
        computed.append(compute(offered))
    return computed[0][lane]


def _mma_twin(arithmetic: Arithmetic) -> Any:
    def elements(words: Any) -> Any:
        """Of each lane's words the elements: [32, words, elements]."""
        if arithmetic.each == 1:
            return np.array(words, np.float32)[..., None]
        return np.array(words, np.uint32).view(np.uint16).reshape(32, -1, 2)

    def twin(a: Any, b: Any, c: Any) -> Any:
        def multiplied(offered: list[Any]) -> Any:
            left, right, sums = zip(*offered, strict=True)
            return _multiplied(elements(left), elements(right), sums, arithmetic)

        return tuple(_met((a, b, c), multiplied))

    return twin


def _load_matrices_twin(array: Any, offset: Any) -> Any:
    offset = operator.index(offset)
    each = 4 // array.dtype.itemsize
    if offset % (4 * each) or array.dtype not in (np.float32, np.uint16):
        raise ValueError(f"load_matrices reads rows of 128 bits, of float32 or uint16, got {array.dtype} {offset}")

    def places(offsets: list[Any]) -> Any:
        words = np.reshape(offsets, (4, 8))[:, _G].T + each * _T[:, None]
        return (words[..., None] + np.arange(each)).reshape(32, -1)

    found = _elements_at(array, _met(offset, places).tolist())
    return tuple(found if each == 1 else np.array(found, np.uint16).view(np.uint32))


def _elements_at(array: Any, places: list[int]) -> Any:
    """Elements of shared memory, each an access of its own."""
    if isinstance(array, np.ndarray):
        return array[places]
    return [array.load(place, 1) for place in places]


def _round_tf32_twin(x: Any) -> Any:
    if not np.isfinite(x):
        return np.float32(x)
    return _cut_to_tf32((np.float32(x).reshape(1).view(np.uint32) + np.uint32(_HALF)).view(np.float32))[0]


def _parts(x: Any) -> tuple[Any, Any]:
    """High and low of float32 numbers."""
    x = np.asarray(x, np.float32)
    high = _cut_to_tf32(x)
    rest = np.ascontiguousarray(x - high)
    return high, (rest.view(np.uint32) + np.uint32(_HALF)).view(np.float32)


def _safe_parts(x: Any) -> tuple[Any, Any, Any]:
    x = np.asarray(x, np.float32)
    (high, low), finite = _parts(x), np.isfinite(x)
    whole, zero = np.where(np.isnan(x), np.float32(np.nan), high), np.float32(0)
    return whole, np.where(finite, high, zero), np.where(finite, low, zero)


def _split_twin(x: Any) -> Any:
    return tuple(part[0] for part in _parts([x]))


def _split_safely_twin(x: Any) -> Any:
    return tuple(part[0] for part in _safe_parts([x]))


# -- the intrinsics --------------------------------------------------------------------------------------

mma_tf32 = intrinsic("mma_tf32", _mma("mma_tf32", "m16n8k8", "tf32", _FOUR, _TWO), _mma_twin(Arithmetic("tf32")))
mma_float16, mma_bfloat16 = (
    intrinsic(
        f"mma_{name}", _mma(f"mma_{name}", "m16n8k16", kind, _FOUR_WORDS, _TWO_WORDS), _mma_twin(Arithmetic(name))
    )
    for name, kind in (("float16", "f16"), ("bfloat16", "bf16"))
)
load_matrices = intrinsic("load_matrices", _load_matrices, _load_matrices_twin)
round_tf32 = intrinsic("round_tf32", _round_tf32, _round_tf32_twin)
split = intrinsic("split", _split, _split_twin)
split_safely = intrinsic("split_safely", _split_safely, _split_safely_twin)

# -- tiles -----------------------------------------------------------------------------------------------
#
# A tile in shared memory has rows of 16 words, four vectors of 128 bits. Row r has its vector v in the place
# v ^ (r // 2 % 4): eight lanes that store neighbouring rows, or read eight rows of a matrix, meet in no bank. Offsets
# count elements, of which a word has one, or two: `each`.


@device_function
def tile_place(row: Any, vector: Any, each: int) -> Any:
    """The offset of a vector of 128 bits in a tile; of words."""
    turn = (row >> 1) & 3
    # `vector ^ turn`, which words have not.
    return row * (DEPTH * each) + (vector + turn - ((vector & turn) << 1)) * (4 * each)


@device_function
def row_places(lane: Any, each: int) -> Any:
    """Where a lane's row of a first factor of ``mma``, 16 rows, begins in both halves of a tile's columns: offsets."""
    return tile_place(lane & 15, lane >> 4, each), tile_place(lane & 15, (lane >> 4) + 2, each)


@device_function
def column_places(lane: Any, each: int) -> Any:
    """Likewise of two second factors, which lie one after the other, and transposed: a column of each is a row."""
    column, vector = (lane & 7) + (lane >> 4) * 8, (lane >> 3) & 1
    return tile_place(column, vector, each), tile_place(column, vector + 2, each)


@device_function
def sum_place(lane: Any) -> Any:
    """Row and column of a lane's first sum of four: the second stands to its right, the others eight rows below."""
    return lane >> 2, (lane & 3) * 2


def staging(arithmetic: Arithmetic) -> Any:
    """A device function of a staged element: what is stored of it. Where TF32 is multiplied, it is rounded to that."""
    rounds = arithmetic.name == "tf32"

    @device_function
    def element(value: Any) -> Any:
        return round_tf32(value) if rounds else value

    return element


def staging_into(vectors: int, arithmetic: Arithmetic) -> Any:
    """A device function ``store(tiles, places, staged, first)`` of ``vectors`` vectors of staged elements, 128 bits.

    Each goes to its place, counted from ``first`` on.
    """
    element = staging(arithmetic)

    @device_function
    def store(tiles: Any, places: Any, staged: Any, first: Any) -> None:
        for i in range(vectors):
            found = (
                element(staged[4 * i]),
                element(staged[4 * i + 1]),
                element(staged[4 * i + 2]),
                element(staged[4 * i + 3]),
            )
            st4(tiles, places[i] + first, found)

    @device_function
    def store_halves(tiles: Any, places: Any, staged: Any, first: Any) -> None:
        for i in range(vectors):
            found = (
                staged[8 * i],
                staged[8 * i + 1],
                staged[8 * i + 2],
                staged[8 * i + 3],
                staged[8 * i + 4],
                staged[8 * i + 5],
                staged[8 * i + 6],
                staged[8 * i + 7],
            )
            st8(tiles, places[i] + first, found)

    return store if arithmetic.each == 1 else store_halves


def waiting(first_count: int, second_count: int, arithmetic: Arithmetic) -> Any:
    """A device function ``waited(first, second)``: a barrier; gives what :func:`product` is to know as ``special``.

    That is whether any thread has staged, in two local arrays of so many elements, one that is not finite.
    """
    real = types.float32

    @device_function
    def only_waited(first: Any, second: Any) -> Any:
        cuda.syncthreads()
        return types.int32(0)

    @device_function
    def waited(first: Any, second: Any) -> Any:
        # Infinity times zero is NaN: one instruction an element.
        found = real(0)
        for i in range(first_count):
            found = fma(first[i], real(0), found)
        for i in range(second_count):
            found = fma(second[i], real(0), found)
        return cuda.syncthreads_or(types.int32(1) if found != found else types.int32(0))

    def waited_twin(first: Any, second: Any) -> Any:
        finite = np.isfinite(np.array(first)).all() and np.isfinite(np.array(second)).all()
        return cuda.syncthreads_or(int(not finite))

    return only_waited if arithmetic.name != "float32" else waited_twin if SIMULATED else waited


def product(down: int, across: int, arithmetic: Arithmetic) -> Any:
    """A device function that adds to a warp's sums the product of two tiles, of which each has 16 words in a row.

    The warp has ``down`` times 16 rows and ``across`` times 8 columns of the product; across is even. The function's
    arguments are ``(total, tiles, row, row_half, column, column_half, special)``:

    - ``total``, a local array of ``down · across · 4`` sums: those of 16 x 8 elements after one another;
    - ``tiles``, in shared memory, and in it the lane's :func:`row_places` and :func:`column_places`;
    - ``special``: whether one of the tiles may have elements that are not finite; the same in all lanes.

    Args:
        down, across: of a warp.
        arithmetic: of the tiles' elements.
    """
    if not SIMULATED:
        return _compiled_product(down, across, arithmetic)

    # Of a lane's places of rows and columns, with the other lanes' as the instructions take them: all that it reads.
    each, sort = arithmetic.each, np.uint16 if arithmetic.each == 2 else np.float32
    steps = np.arange(max(down, across // 2)) * 16 * arithmetic.depth

    def read(offered: list[Any]) -> Any:
        """For each lane the places of its elements of a, then of b, in the first half and in the second."""
        places = np.array(offered).T.reshape(2, 2, 4, 8)[..., _G] + each * _T
        of_a = places[0][:, None] + steps[None, :down, None, None]
        of_b = places[1][:, None] + steps[None, : across // 2, None, None]
        parts = [np.moveaxis(part, -1, 0).reshape(32, 2, -1) for part in (of_a, of_b)]
        words = np.concatenate(parts, -1).reshape(32, -1, 1)
        return (words + np.arange(each)).reshape(32, -1).tolist()

    def multiplied(offered: list[Any]) -> Any:
        """The sums of all lanes."""
        fragments = np.array([one[0] for one in offered], sort).reshape(32, 2, -1, each)
        sums = np.array([one[1] for one in offered], np.float32).reshape(32, down, across, 4)
        for half in range(2):
            a = fragments[:, half, : 4 * down].reshape(32, down, 1, 4, each)
            b = fragments[:, half, 4 * down :].reshape(32, 1, across, 2, each)
            if arithmetic.name != "float32":
                sums = _multiplied(*_spread(a, b), sums, arithmetic)
                continue
            if offered[0][2]:
                (a, a_high, a_low), (b, b_high, b_low) = _safe_parts(a), _safe_parts(b)
            else:
                (a, a_low), (b, b_low) = _parts(a), _parts(b)
                a_high, b_high = a, b
            found = np.zeros_like(sums)
            for left, right in ((a_low, b_high), (a_high, b_low), (a, b)):
                found = _multiplied(*_spread(left, right), found, arithmetic)
            sums = sums + found
        return sums.reshape(32, -1)

    def multiply(total: Any, tiles: Any, row: Any, row_half: Any, column: Any, column_half: Any, special: Any) -> None:
        places = _met((int(row), int(row_half), int(column), int(column_half)), read)
        total[:] = _met((_elements_at(tiles, places), np.array(total), special), multiplied)

    return multiply


def _spread(a: Any, b: Any) -> tuple[Any, Any]:
    down, across = a.shape[1], b.shape[2]
    return tuple(np.broadcast_to(one, (32, down, across, *one.shape[3:])) for one in (a, b))  # type: ignore[return-value]


def _compiled_product(down: int, across: int, arithmetic: Arithmetic) -> Any:
    """:func:`product` in instructions."""
    real, size, other_size = types.float32, 4 * down, 2 * across
    word, step = types.uint32 if arithmetic.each == 2 else real, 16 * arithmetic.depth
    splits = arithmetic.name == "float32"
    mma = {"float16": mma_float16, "bfloat16": mma_bfloat16}.get(arithmetic.name, mma_tf32)

    @device_function
    def load(tiles: Any, row: Any, column: Any, a: Any, b: Any) -> None:
        for i in range(down):
            a[4 * i], a[4 * i + 1], a[4 * i + 2], a[4 * i + 3] = load_matrices(tiles, row + i * step)
        for j in range(across // 2):
            found = load_matrices(tiles, column + j * step)
            b[4 * j], b[4 * j + 1], b[4 * j + 2], b[4 * j + 3] = found

    @device_function
    def four(values: Any, i: int) -> Any:
        return values[4 * i], values[4 * i + 1], values[4 * i + 2], values[4 * i + 3]

    @device_function
    def two(values: Any, j: int) -> Any:
        return values[2 * j], values[2 * j + 1]

    @device_function
    def add(total: Any, at: int, found: Any) -> None:
        for e in range(4):
            total[at + e] += found[e]

    @device_function
    def add_one(n: int, total: Any, a: Any, a_low: Any, b: Any, b_low: Any) -> None:
        i, j = n // across, n % across
        found = (real(0), real(0), real(0), real(0))
        found = mma_tf32(four(a_low, i), two(b, j), found)
        found = mma_tf32(four(a, i), two(b_low, j), found)
        add(total, 4 * n, mma_tf32(four(a, i), two(b, j), found))

    @device_function
    def add_safely(n: int, total: Any, a: Any, b: Any) -> None:
        i, j = n // across, n % across
        whole, high, low = cuda.local.array(4, real), cuda.local.array(4, real), cuda.local.array(4, real)
        other, other_high = cuda.local.array(2, real), cuda.local.array(2, real)
        other_low = cuda.local.array(2, real)
        for e in range(4):
            whole[e], high[e], low[e] = split_safely(a[4 * i + e])
        for e in range(2):
            other[e], other_high[e], other_low[e] = split_safely(b[2 * j + e])
        found = (real(0), real(0), real(0), real(0))
        found = mma_tf32(four(low, 0), two(other_high, 0), found)
        found = mma_tf32(four(high, 0), two(other_low, 0), found)
        add(total, 4 * n, mma_tf32(four(whole, 0), two(other, 0), found))

    @device_function
    def add_whole(n: int, total: Any, a: Any, b: Any) -> None:
        found = mma(four(a, n // across), two(b, n % across), four(total, n))
        for e in range(4):
            total[4 * n + e] = found[e]

    quickly, safely, whole = (unrolled(body, down * across) for body in (add_one, add_safely, add_whole))

    @device_function
    def multiply(total: Any, tiles: Any, row: Any, column: Any) -> None:
        a, b = cuda.local.array(size, word), cuda.local.array(other_size, word)
        load(tiles, row, column, a, b)
        if not splits:
            whole(total, a, b)
        else:
            a_low, b_low = cuda.local.array(size, real), cuda.local.array(other_size, real)
            for e in range(size):
                a[e], a_low[e] = split(a[e])
            for e in range(other_size):
                b[e], b_low[e] = split(b[e])
            quickly(total, a, a_low, b, b_low)

    @device_function
    def multiply_safely(total: Any, tiles: Any, row: Any, row_half: Any, column: Any, column_half: Any) -> None:
        # A loop, of code that is seldom run. Besides, of two straight pieces the compiler would join the ends, and keep
        # all the results of `mma` to add them there.
        a, b = cuda.local.array(size, real), cuda.local.array(other_size, real)
        half = 0
        while half < 2:
            load(tiles, row, column, a, b)
            safely(total, a, b)
            row, column = row_half, column_half
            half += 1

    @device_function
    def both_halves(
        total: Any, tiles: Any, row: Any, row_half: Any, column: Any, column_half: Any, special: Any
    ) -> None:
        if special:
            multiply_safely(total, tiles, row, row_half, column, column_half)
        else:
            multiply(total, tiles, row, column)
            multiply(total, tiles, row_half, column_half)

    @device_function
    def both_halves_whole(
        total: Any, tiles: Any, row: Any, row_half: Any, column: Any, column_half: Any, special: Any
    ) -> None:
        multiply(total, tiles, row, column)
        multiply(total, tiles, row_half, column_half)

    return both_halves if splits else both_halves_whole
