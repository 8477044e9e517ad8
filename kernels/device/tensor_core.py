"""Tensor cores: products of small matrices that the 32 lanes of a warp hold together, from compute capability 8.0 on.

===================  ===================================================================================================
``mma_tf32``         ``c + a · b``, a of 16 x 8, b of 8 x 8 (``mma.sync.m16n8k8``); a lane has 4, 2 and 4 of a, b, c
``load_matrices``    four matrices of 8 x 4 float32 from shared memory, one element of each a lane (``ldmatrix.x4``)
``round_tf32``       to the nearest TF32 number, halves away from zero (``cvt.rna.tf32``): 11 bits instead of 24
``split``            finite ``x`` as ``high + low``, each of which loses nothing, or next to nothing, in a tensor core
``split_safely``     of what may be infinite or NaN: high for ``high · high``; high and low for the cross products,
                     which are zero where it is not finite
``product``          a device function for the product of two tiles of shared memory, in float32 or TF32
===================  ===================================================================================================

**Which lane holds what** (PTX ISA, "Matrix fragments for mma.m16n8k8"). With ``g = lane // 4`` and ``t = lane % 4``: of
a the elements ``(g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4)``, of b ``(t, g), (t + 4, g)``, of the sums ``(g, 2t),
(g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1)``. Of a matrix that ``load_matrices`` reads, a lane gets element t of row g.

**Float32 of TF32** (3xTF32). A tensor core looks at the upper 19 bits of a number. ``split`` takes these as ``high``;
the rest, exact in float32, has 13 significant bits, of which ``low`` keeps 11, rounded. Then ``a · b`` is ``high · high
+ high · low + low · high`` but for 2^-19 of it at most, and 2^-23 on average. High is cut, not rounded: it takes one
instruction less, and the largest number stays finite. A low part below 2^-126 is right to 2^-137.

**Sums.** A tensor core cuts its sums off where float32 rounds them. In a long sum that adds up: to 2.9e-5 after 4,096
terms on an H100. So ``product`` adds to float32 registers after every eight terms.

**Infinity** times a ``low`` of zero would be NaN where float32 has infinity. ``product`` is told of tiles that are not
all finite, and takes cross products of finite numbers alone: NaN comes where float32 has it, and nowhere else.

In the simulator a warp's lanes meet, and each gets what the instruction gives it of what the others hold.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import cuda, types
from numba.core.errors import TypingError

from gpuconv.kernels.device.intrinsic import SIMULATED, intrinsic
from gpuconv.kernels.device.launch import device_function
from gpuconv.kernels.device.memory import _checked_array, _element_pointer, _packed, st4
from gpuconv.kernels.device.registers import fma, unrolled

#: The first GPUs that have these instructions.
COMPUTE_CAPABILITY = (8, 0)
#: Columns of a tile in shared memory: two steps of eight.
DEPTH = 16

_FLOAT, _BITS, _BITS64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_TWO, _THREE, _FOUR = (types.UniTuple(types.float32, count) for count in (2, 3, 4))
#: Sign, exponent and 10 bits of the mantissa; the exponent; half of the last bit that is kept; NaN.
_UPPER, _EXPONENT, _HALF, _NAN = 0xFFFFE000, 0x7F800000, 0x1000, 0x7FFFFFFF

# -- for the compiler ------------------------------------------------------------------------------------


def _assembly(
    builder: Any, text: str, result: Any, constraints: str, values: list[Any], *, memory: bool = False
) -> Any:
    kind = ir.FunctionType(result, [value.type for value in values])
    clobbers = ",~{memory}" if memory else ""
    # With a side effect, so that the compiler leaves it where it is, which is where all lanes of the warp are.
    return builder.call(ir.InlineAsm(kind, text, constraints + clobbers, side_effect=True), values)


def _mma_tf32(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    if (a, b, c) != (_FOUR, _TWO, _FOUR):
        raise TypingError(f"mma_tf32 takes four, two and four float32, got {a}, {b}, {c}")

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values = [
            builder.extract_value(value, i) for value, count in zip(args, (4, 2, 4), strict=True) for i in range(count)
        ]
        values = [builder.bitcast(value, _BITS) for value in values[:6]] + values[6:]
        text = (
            "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
            "{$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};"
        )
        result = ir.LiteralStructType([_FLOAT] * 4)
        found = _assembly(builder, text, result, "=f,=f,=f,=f,r,r,r,r,r,r,f,f,f,f", values)
        return _packed(builder, [builder.extract_value(found, i) for i in range(4)])

    return _FOUR(a, b, c), code


def _load_matrices(typingctx: Any, array: Any, offset: Any) -> Any:
    _checked_array(array, offset, 4)
    if array.dtype != types.float32:
        raise TypingError(f"load_matrices reads float32, got {array}")

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _element_pointer(context, builder, signature, args)
        shared = builder.addrspacecast(pointer, pointer.type.pointee.as_pointer(3))
        address = builder.trunc(builder.ptrtoint(shared, _BITS64), _BITS)
        text = "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {$0, $1, $2, $3}, [$4];"
        result = ir.LiteralStructType([_BITS] * 4)
        found = _assembly(builder, text, result, "=r,=r,=r,=r,r", [address], memory=True)
        return _packed(builder, [builder.bitcast(builder.extract_value(found, i), _FLOAT) for i in range(4)])

    return _FOUR(array, offset), code


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
    """``c + a @ b`` as a tensor core adds; a [..., 16, 8], b [..., 8, 8], c [..., 16, 8].

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
#: Of each lane, where its elements stand in a, b and c: rows and columns.
_AT_A = np.stack([_G, _G + 8, _G, _G + 8], 1), np.stack([_T, _T, _T + 4, _T + 4], 1)
_AT_B = np.stack([_T, _T + 4], 1), np.stack([_G, _G], 1)
_AT_C = np.stack([_G, _G, _G + 8, _G + 8], 1), np.stack([2 * _T, 2 * _T + 1] * 2, 1)


def _matrix(fragments: Any, at: tuple[Any, Any], rows: int) -> Any:
    """Matrices [..., rows, 8] of what the lanes hold: [32, ..., elements]."""
    held = np.moveaxis(np.asarray(fragments, np.float32), 0, -2)
    found = np.empty((*held.shape[:-2], rows, 8), np.float32)
    found[..., at[0], at[1]] = held
    return found


def _multiplied(a: Any, b: Any, c: Any) -> Any:
    """What an ``mma`` gives each lane, of what each holds: [32, ..., 4 or 2]."""
    matrices = _matrix(a, _AT_A, 16), _matrix(b, _AT_B, 8), _matrix(c, _AT_C, 16)
    found = _added(_cut_to_tf32(matrices[0]), _cut_to_tf32(matrices[1]), matrices[2])
    return np.moveaxis(found[..., _AT_C[0], _AT_C[1]], -2, 0)


def _met(values: Any, compute: Callable[[list[Any]], Any]) -> Any:
    """The warp meets with a value of each lane; give this lane its element of what ``compute`` makes of them all."""
    lane, offered, computed = cuda._exchange_sync(values)
    if not computed:
        computed.append(compute(offered))
    return computed[0][lane]


def _mma_tf32_twin(a: Any, b: Any, c: Any) -> Any:
    return tuple(_met((a, b, c), lambda offered: _multiplied(*zip(*offered, strict=True))))


def _load_matrices_twin(array: Any, offset: Any) -> Any:
    offset = operator.index(offset)
    if offset % 4 or array.dtype != np.float32:
        raise ValueError(f"load_matrices reads rows of four float32 at multiples of four, got {array.dtype} {offset}")

    def places(offsets: list[Any]) -> Any:
        return np.reshape(offsets, (4, 8))[:, _G].T + _T[:, None]

    return tuple(_elements_at(array, _met(offset, places).tolist()))


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

mma_tf32 = intrinsic("mma_tf32", _mma_tf32, _mma_tf32_twin)
load_matrices = intrinsic("load_matrices", _load_matrices, _load_matrices_twin)
round_tf32 = intrinsic("round_tf32", _round_tf32, _round_tf32_twin)
split = intrinsic("split", _split, _split_twin)
split_safely = intrinsic("split_safely", _split_safely, _split_safely_twin)

# -- tiles -----------------------------------------------------------------------------------------------
#
# A tile in shared memory has rows of 16 elements, four vectors of 128 bits. Row r has its vector v in the place
# v ^ (r // 2 % 4): eight lanes that store neighbouring rows, or read eight rows of a matrix, meet in no bank.


@device_function
def tile_place(row: Any, vector: Any) -> Any:
    """The offset of a vector of four elements in a tile; of words."""
    turn = (row >> 1) & 3
    # `vector ^ turn`, which words have not.
    return row * DEPTH + (vector + turn - ((vector & turn) << 1)) * 4


@device_function
def row_places(lane: Any) -> Any:
    """Where a lane's row of a first factor of ``mma``, 16 rows, begins in both halves of a tile's columns: offsets."""
    return tile_place(lane & 15, lane >> 4), tile_place(lane & 15, (lane >> 4) + 2)


@device_function
def column_places(lane: Any) -> Any:
    """Likewise of two second factors, which lie one after the other, and transposed: a column of each is a row."""
    column, vector = (lane & 7) + (lane >> 4) * 8, (lane >> 3) & 1
    return tile_place(column, vector), tile_place(column, vector + 2)


@device_function
def sum_place(lane: Any) -> Any:
    """Row and column of a lane's first sum of four: the second stands to its right, the others eight rows below."""
    return lane >> 2, (lane & 3) * 2


def staging_into(vectors: int, products: int) -> Any:
    """A device function ``store(tiles, places, staged, first)`` of ``vectors`` vectors of four staged elements.

    Each goes to its place, counted from ``first`` on; where there is one product of TF32 numbers, rounded to these.
    """

    @device_function
    def element(value: Any) -> Any:
        return round_tf32(value) if products == 1 else value

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

    return store


def waiting(first_count: int, second_count: int, products: int) -> Any:
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

    return only_waited if products == 1 else waited_twin if SIMULATED else waited


def product(down: int, across: int, products: int) -> Any:
    """A device function that adds to a warp's sums the product of two tiles, of which each has 16 columns.

    The warp has ``down`` times 16 rows and ``across`` times 8 columns of the product; across is even. The function's
    arguments are ``(total, tiles, row, row_half, column, column_half, special)``:

    - ``total``, a local array of ``down · across · 4`` sums: those of 16 x 8 elements after one another;
    - ``tiles``, in shared memory, and in it the lane's :func:`row_places` and :func:`column_places`;
    - ``special``: whether one of the tiles may have elements that are not finite; the same in all lanes.

    Args:
        down, across: of a warp.
        products: 3 for float32, as the module's text has it; 1 for TF32: sums stay in the tensor cores.
    """
    if not SIMULATED:
        return _compiled_product(down, across, products)

    # Of a lane's places of rows and columns, with the other lanes' as the instructions take them: all that it reads.
    steps = np.arange(max(down, across // 2)) * 16 * DEPTH

    def read(offered: list[Any]) -> Any:
        """For each lane the places of its elements of a, then of b, in the first half and in the second."""
        places = np.array(offered).T.reshape(2, 2, 4, 8)[..., _G] + _T
        of_a = places[0][:, None] + steps[None, :down, None, None]
        of_b = places[1][:, None] + steps[None, : across // 2, None, None]
        parts = [np.moveaxis(part, -1, 0).reshape(32, 2, -1) for part in (of_a, of_b)]
        return np.concatenate(parts, -1).reshape(32, -1).tolist()

    def multiplied(offered: list[Any]) -> Any:
        """The sums of all lanes."""
        fragments = np.array([one[0] for one in offered], np.float32).reshape(32, 2, -1)
        sums = np.array([one[1] for one in offered], np.float32).reshape(32, down, across, 4)
        for half in range(2):
            a = fragments[:, half, : 4 * down].reshape(32, down, 1, 4)
            b = fragments[:, half, 4 * down :].reshape(32, 1, across, 2)
            if products == 1:
                sums = _multiplied(*_spread(a, b), sums)
                continue
            if offered[0][2]:
                (a, a_high, a_low), (b, b_high, b_low) = _safe_parts(a), _safe_parts(b)
            else:
                (a, a_low), (b, b_low) = _parts(a), _parts(b)
                a_high, b_high = a, b
            found = np.zeros_like(sums)
            for left, right in ((a_low, b_high), (a_high, b_low), (a, b)):
                found = _multiplied(*_spread(left, right), found)
            sums = sums + found
        return sums.reshape(32, -1)

    def multiply(total: Any, tiles: Any, row: Any, row_half: Any, column: Any, column_half: Any, special: Any) -> None:
        places = _met((int(row), int(row_half), int(column), int(column_half)), read)
        total[:] = _met((_elements_at(tiles, places), np.array(total), special), multiplied)

    return multiply


def _spread(a: Any, b: Any) -> tuple[Any, Any]:
    down, across = a.shape[1], b.shape[2]
    return np.broadcast_to(a, (32, down, across, 4)), np.broadcast_to(b, (32, down, across, 2))


def _compiled_product(down: int, across: int, products: int) -> Any:
    """:func:`product` in instructions."""
    real, size, other_size = types.float32, 4 * down, 2 * across

    @device_function
    def load(tiles: Any, row: Any, column: Any, a: Any, b: Any) -> None:
        for i in range(down):
            a[4 * i], a[4 * i + 1], a[4 * i + 2], a[4 * i + 3] = load_matrices(tiles, row + i * 16 * DEPTH)
        for j in range(across // 2):
            found = load_matrices(tiles, column + j * 16 * DEPTH)
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
    def add_tf32(n: int, total: Any, a: Any, b: Any) -> None:
        found = mma_tf32(four(a, n // across), two(b, n % across), four(total, n))
        for e in range(4):
            total[4 * n + e] = found[e]

    quickly, safely, in_tf32 = (unrolled(body, down * across) for body in (add_one, add_safely, add_tf32))

    @device_function
    def multiply(total: Any, tiles: Any, row: Any, column: Any) -> None:
        a, b = cuda.local.array(size, real), cuda.local.array(other_size, real)
        load(tiles, row, column, a, b)
        if products == 1:
            in_tf32(total, a, b)
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
    def both_halves_in_tf32(
        total: Any, tiles: Any, row: Any, row_half: Any, column: Any, column_half: Any, special: Any
    ) -> None:
        multiply(total, tiles, row, column)
        multiply(total, tiles, row_half, column_half)

    return both_halves_in_tf32 if products == 1 else both_halves
