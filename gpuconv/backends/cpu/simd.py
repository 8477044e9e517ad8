"""Explicit vectors inside Numba code for the CPU: what the compiled kernels are written in.

Numba leaves it to LLVM to vectorise a loop, and LLVM never keeps the accumulators of a convolution in registers: they
are array elements, so each multiply-add loads and stores one. Here a value may be a whole *tile*: ``count`` vectors
of ``lanes`` elements, which LLVM keeps in as many registers. A kernel is then the loops around a few of these::

    sums = broadcast(bias, 0, FILTERS, 1, COLUMNS, LANES)
    for tap in range(TAPS):
        pixels = load(image, tap, 1, 0, COLUMNS, LANES)
        sums = multiply_add(sums, weight, tap, FILTERS, TAPS, 1, 0, pixels)
    store(output, 0, FILTERS, WIDTH, sums)

In the descriptions ``tile[i, j]`` is vector ``i · columns + j``. Sizes of tiles (rows, columns, lanes, a window's
height and width) have to be constants when the kernel is compiled: globals or closure variables that hold an int, not
expressions of them. Offsets and steps count elements. Sources and targets are pointers (``types.CPointer``) or
contiguous arrays; nothing checks bounds. LLVM splits the vectors on a machine whose registers are narrower, so that
every tile is right everywhere and fast where :func:`registers` was asked for its sizes.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.core.imputils import impl_ret_new_ref
from numba.core.registry import cpu_target
from numba.extending import intrinsic, register_model
from numba.np.arrayobj import populate_array

_LLVM_TYPES = {types.float32: ir.FloatType(), types.float64: ir.DoubleType(), types.uint8: ir.IntType(8)}
_INT32 = ir.IntType(32)


@functools.cache
def registers() -> tuple[int, int]:
    """Width in bytes and number of the vector registers of the CPU for which Numba compiles."""
    triple, _, features = cpu_target.target_context.codegen().magic_tuple()
    if "+avx512f" in features:
        return 64, 32
    if "+avx" in features:
        return 32, 16
    return 16, 16 if triple.startswith(("x86", "i686")) else 32


@dataclass(frozen=True)
class InVectors:
    """What a kernel that works on vectors is compiled for.

    Attributes:
        dtype: name of the element type.
    """

    dtype: str

    @cached_property
    def lanes(self) -> int:
        """Elements in a vector register."""
        return registers()[0] // np.dtype(self.dtype).itemsize


def cpu_name() -> str:
    """LLVM's name of the CPU for which Numba compiles."""
    name: str = cpu_target.target_context.codegen().magic_tuple()[1]
    return name


class Tile(types.Type):
    """Type of a tile: ``count`` vectors of ``lanes`` elements of type ``dtype``."""

    def __init__(self, dtype: types.Type, count: int, lanes: int):
        self.dtype, self.count, self.lanes = dtype, count, lanes
        super().__init__(name=f"Tile({dtype}, {count} x {lanes})")

    @property
    def vector(self) -> ir.VectorType:
        """LLVM's type of one of the vectors."""
        return ir.VectorType(_LLVM_TYPES[self.dtype], self.lanes)

    @property
    def suffix(self) -> str:
        """What LLVM appends to the names of its functions of such vectors."""
        return f"v{self.lanes}{'i' if self.dtype is types.uint8 else 'f'}{self.dtype.bitwidth}"

    @property
    def alignment(self) -> int:
        """Of an element, in bytes: vectors may begin at any element."""
        return self.dtype.bitwidth // 8

    def pack(self, builder: ir.IRBuilder, vectors: Iterable[ir.Value]) -> ir.Value:
        """Make the value of a tile from its vectors."""
        tile = ir.Constant(ir.ArrayType(self.vector, self.count), ir.Undefined)
        for index, vector in enumerate(vectors):
            tile = builder.insert_value(tile, vector, index)
        return tile

    def unpack(self, builder: ir.IRBuilder, tile: ir.Value) -> list[ir.Value]:
        """The vectors of a tile's value."""
        return [builder.extract_value(tile, index) for index in range(self.count)]


@register_model(Tile)
class _TileModel(models.PrimitiveModel):
    def __init__(self, manager: Any, tile: Tile):
        super().__init__(manager, tile, ir.ArrayType(tile.vector, tile.count))


# -- what the intrinsics share ---------------------------------------------------------------------------------------


def _sizes(*arguments: types.Type) -> list[int] | None:
    """The values of constants; None, by which an intrinsic declines to be typed, if one of them is not constant."""
    if all(isinstance(argument, types.IntegerLiteral) for argument in arguments):
        return [argument.literal_value for argument in arguments]
    return None


def _address(context: Any, builder: ir.IRBuilder, kind: types.Type, memory: ir.Value, offset: ir.Value) -> ir.Value:
    """Address of an element of a pointer or array."""
    if isinstance(kind, types.Array):
        memory = context.make_array(kind)(context, builder, value=memory).data
    return builder.gep(memory, [offset])


def _grid(builder: ir.IRBuilder, start: ir.Value, *axes: tuple[int, ir.Value]) -> list[ir.Value]:
    """Addresses ``start + i · step + j · step' + ...`` in row-major order, given (count, step) of each axis."""
    addresses = [start]
    for count, step in axes:
        offsets = [builder.mul(step, ir.Constant(step.type, index)) for index in range(count)]
        addresses = [builder.gep(address, [offset]) for address in addresses for offset in offsets]
    return addresses


def _splat(builder: ir.IRBuilder, scalar: ir.Value, lanes: int) -> ir.Value:
    """A vector that holds the scalar in every lane."""
    undefined = ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined)
    return _shuffle(builder, builder.insert_element(undefined, scalar, _INT32(0)), undefined, [0] * lanes)


def _shuffle(builder: ir.IRBuilder, first: ir.Value, second: ir.Value, lanes: Sequence[int]) -> ir.Value:
    """A vector of chosen lanes, which count through both operands."""
    return builder.shuffle_vector(first, second, ir.Constant(ir.VectorType(_INT32, len(lanes)), list(lanes)))


def _load_vector(builder: ir.IRBuilder, address: ir.Value, tile: Tile) -> ir.Value:
    vector = builder.load(builder.bitcast(address, tile.vector.as_pointer()))
    vector.align = tile.alignment
    return vector


def _fused_multiply_add(builder: ir.IRBuilder, tile: Tile) -> ir.Function:
    """LLVM's ``a · b + c`` for vectors of the tile: one instruction where the CPU has it, else two."""
    kind = ir.FunctionType(tile.vector, [tile.vector] * 3)
    return cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.{tile.suffix}")


# -- memory of a chunk's own -----------------------------------------------------------------------------------------


def _declare_array(count: Any, dtype: Any, cleared: bool) -> Any:
    array_type = types.Array(dtype.dtype, 1, "C")

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
        element = context.get_data_type(array_type.dtype)
        item_size = ir.Constant(values[0].type, array_type.dtype.bitwidth // 8)
        size = builder.mul(values[0], item_size)
        info = context.nrt.meminfo_alloc_aligned(builder, size, _LINE)
        data = builder.bitcast(context.nrt.meminfo_data(builder, info), element.as_pointer())
        if cleared:
            cgutils.memset(builder, data, size, 0)
        array = context.make_array(array_type)(context, builder)
        populate_array(array, data, shape=values[:1], strides=[item_size], itemsize=item_size, meminfo=info)
        return impl_ret_new_ref(context, builder, array_type, array._getvalue())

    return array_type(types.int64, dtype), generate


#: Bytes in a line of the cache: arrays begin with one.
_LINE = 64


@intrinsic
def scratch(typing: Any, count: Any, dtype: Any) -> Any:
    """An array that is not initialised: ``np.empty(count, dtype)``, for which Numba would compile four functions."""
    return _declare_array(count, dtype, cleared=False)


@intrinsic
def scratch_zeros(typing: Any, count: Any, dtype: Any) -> Any:
    """``np.zeros(count, dtype)``; see :func:`scratch`."""
    return _declare_array(count, dtype, cleared=True)


# -- memory to tile and back -----------------------------------------------------------------------------------------


@intrinsic(prefer_literal=True)
def load(typing: Any, source: Any, offset: Any, rows: Any, row_step: Any, columns: Any, lanes: Any) -> Any:
    """``tile[i, j] = source[offset + i · row_step + j · lanes :][:lanes]``."""
    sizes = _sizes(rows, columns, lanes)
    if sizes is None:
        return None
    tile = Tile(source.dtype, sizes[0] * sizes[1], sizes[2])

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
        start = _address(context, builder, signature.args[0], values[0], values[1])
        lanes_step = ir.Constant(values[3].type, tile.lanes)
        addresses = _grid(builder, start, (sizes[0], values[3]), (sizes[1], lanes_step))
        return tile.pack(builder, (_load_vector(builder, address, tile) for address in addresses))

    return tile(source, types.int64, rows, types.int64, columns, lanes), generate


@intrinsic(prefer_literal=True)
def zeros(typing: Any, source: Any, count: Any, lanes: Any) -> Any:
    """A tile of zeros, of the source's element type."""
    sizes = _sizes(count, lanes)
    if sizes is None:
        return None
    tile = Tile(source.dtype, *sizes)

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
        return tile.pack(builder, [ir.Constant(tile.vector, [0.0] * tile.lanes)] * tile.count)

    return tile(source, count, lanes), generate


@intrinsic(prefer_literal=True)
def broadcast(typing: Any, source: Any, offset: Any, rows: Any, row_step: Any, columns: Any, lanes: Any) -> Any:
    """``tile[i, j]`` holds ``source[offset + i · row_step]`` in every lane."""
    sizes = _sizes(rows, columns, lanes)
    if sizes is None:
        return None
    tile = Tile(source.dtype, sizes[0] * sizes[1], sizes[2])

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
        start = _address(context, builder, signature.args[0], values[0], values[1])
        addresses = _grid(builder, start, (sizes[0], values[3]))
        vectors = [_splat(builder, builder.load(address), tile.lanes) for address in addresses]
        return tile.pack(builder, (vector for vector in vectors for _ in range(sizes[1])))

    return tile(source, types.int64, rows, types.int64, columns, lanes), generate


def _declare_store(rows: Any, target: Any, tile: Any, masked: bool) -> Any:
    sizes = _sizes(rows)
    if sizes is None:
        return None
    columns = tile.count // sizes[0]

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
        start = _address(context, builder, signature.args[0], values[0], values[1])
        lanes_step = ir.Constant(values[3].type, tile.lanes)
        addresses = _grid(builder, start, (sizes[0], values[3]), (columns, lanes_step))
        pointer = tile.vector.as_pointer()
        if masked:
            limit = _splat(builder, builder.trunc(values[5], _INT32), tile.lanes)
            positions = [list(range(j * tile.lanes, (j + 1) * tile.lanes)) for j in range(columns)]
            masks = [builder.icmp_signed("<", ir.Constant(limit.type, lanes), limit) for lanes in positions]
            store_masked = cgutils.get_or_insert_function(
                builder.module,
                ir.FunctionType(ir.VoidType(), [tile.vector, pointer, _INT32, masks[0].type]),
                f"llvm.masked.store.{tile.suffix}.p0",
            )
        for index, (address, vector) in enumerate(zip(addresses, tile.unpack(builder, values[4]), strict=True)):
            address = builder.bitcast(address, pointer)
            if masked:
                builder.call(store_masked, [vector, address, _INT32(tile.alignment), masks[index % columns]])
            else:
                builder.store(vector, address).align = tile.alignment
        return context.get_dummy_value()

    return generate


@intrinsic(prefer_literal=True)
def store(typing: Any, target: Any, offset: Any, rows: Any, row_step: Any, tile: Any) -> Any:
    """``target[offset + i · row_step + j · lanes :][:lanes] = tile[i, j]``."""
    generate = _declare_store(rows, target, tile, masked=False)
    return generate and (types.void(target, types.int64, rows, types.int64, tile), generate)


@intrinsic(prefer_literal=True)
def store_part(typing: Any, target: Any, offset: Any, rows: Any, row_step: Any, tile: Any, limit: Any) -> Any:
    """:func:`store`, but of each row only the first ``limit`` elements; a run-time value, which may exceed the row."""
    generate = _declare_store(rows, target, tile, masked=True)
    return generate and (types.void(target, types.int64, rows, types.int64, tile, types.int64), generate)


@intrinsic(prefer_literal=True)
def store_grid(
    typing: Any, target: Any, offset: Any, rows: Any, row_step: Any, columns: Any, column_step: Any, tile: Any
) -> Any:
    """``target[offset + i · row_step + j · column_step :][:lanes] = tile[i, j]``, in row-major order."""
    sizes = _sizes(rows, columns)
    if sizes is None:
        return None
    assert tile.count == sizes[0] * sizes[1], f"{tile} is not {sizes}"

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
        start = _address(context, builder, signature.args[0], values[0], values[1])
        addresses = _grid(builder, start, (sizes[0], values[3]), (sizes[1], values[5]))
        for address, vector in zip(addresses, tile.unpack(builder, values[6]), strict=True):
            builder.store(vector, builder.bitcast(address, tile.vector.as_pointer())).align = tile.alignment
        return context.get_dummy_value()

    return types.void(target, types.int64, rows, types.int64, columns, types.int64, tile), generate


@intrinsic
def copy(typing: Any, target: Any, target_offset: Any, source: Any, source_offset: Any, count: Any) -> Any:
    """``target[target_offset :][:count] = source[source_offset :][:count]``, which must not overlap.

    LLVM does not vectorise the loop, because it cannot know that.
    """

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
        to = _address(context, builder, signature.args[0], values[0], values[1])
        of = _address(context, builder, signature.args[2], values[2], values[3])
        cgutils.raw_memcpy(builder, to, of, values[4], source.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(target, types.int64, source, types.int64, types.int64), generate


@intrinsic
def prefetch(typing: Any, source: Any, offset: Any) -> Any:
    """Have the line of ``source[offset]`` fetched to the first-level cache; any address will do, and none is read.

    The CPU fetches ahead by itself, but not beyond a page, of 4 KiB: a stream from the last-level cache stops at each.
    """

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
        byte = ir.IntType(8).as_pointer()
        function = ir.FunctionType(ir.VoidType(), [byte, _INT32, _INT32, _INT32])
        address = _address(context, builder, signature.args[0], values[0], values[1])
        called = cgutils.get_or_insert_function(builder.module, function, "llvm.prefetch.p0")
        builder.call(called, [builder.bitcast(address, byte), _INT32(0), _INT32(3), _INT32(1)])
        return context.get_dummy_value()

    return types.void(source, types.int64), generate


@intrinsic
def forget_loads(typing: Any) -> Any:
    """Have what follows load anew what it needs. Costs nothing: it is no instruction.

    The taps of a filter overlap. When LLVM unrolls the loop over them, it notices that it has loaded most pixels
    before and keeps them, in more registers than there are: each goes to the stack and comes back, where loading it
    again as an operand of the multiply-add is free. (Measured: 6x on the second layer of LeNet.)
    """

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
        builder.fence("acquire", "singlethread")
        return context.get_dummy_value()

    return types.void(), generate


# -- arithmetic ------------------------------------------------------------------------------------------------------


@intrinsic(prefer_literal=True)
def multiply_add(
    typing: Any,
    tile: Any,
    source: Any,
    offset: Any,
    rows: Any,
    row_step: Any,
    columns: Any,
    column_step: Any,
    vectors: Any,
) -> Any:
    """Return the tile plus the outer product of scalars from memory and the vectors of another tile.

    ``tile[i, j, v] += source[offset + i · row_step + j · column_step] · vectors[v]``, fused where the CPU can.
    """
    sizes = _sizes(rows, columns)
    if sizes is None:
        return None
    assert tile.count == sizes[0] * sizes[1] * vectors.count, f"{sizes} scalars x {vectors} do not make {tile}"

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
        start = _address(context, builder, signature.args[1], values[1], values[2])
        addresses = _grid(builder, start, (sizes[0], values[4]), (sizes[1], values[6]))
        fused = _fused_multiply_add(builder, tile)
        sums = tile.unpack(builder, values[0])
        factors = vectors.unpack(builder, values[7])
        for i, address in enumerate(addresses):
            scalar = _splat(builder, builder.load(address), tile.lanes)
            for v, factor in enumerate(factors, start=i * len(factors)):
                sums[v] = builder.call(fused, [scalar, factor, sums[v]])
        return tile.pack(builder, sums)

    signature = tile(tile, source, types.int64, rows, types.int64, columns, types.int64, vectors)
    return signature, generate


@intrinsic
def multiply_add_lanes(typing: Any, tile: Any, vectors: Any, vector: Any) -> Any:
    """Return the tile plus the products of vectors, lane by lane: ``tile[v] += vectors[v] · vector``, a tile of one."""
    assert (vectors.count, vector.count) == (tile.count, 1), f"{vectors} x {vector} do not make {tile}"

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
        fused = _fused_multiply_add(builder, tile)
        (factor,) = vector.unpack(builder, values[2])
        parts = zip(vectors.unpack(builder, values[1]), tile.unpack(builder, values[0]), strict=True)
        return tile.pack(builder, (builder.call(fused, [other, factor, total]) for other, total in parts))

    return tile(tile, vectors, vector), generate


Matrix: TypeAlias = Sequence[Sequence[float]]


def transform(*stages: Matrix) -> Any:
    """Make an intrinsic that loads a square of vectors and multiplies it by a constant matrix from both sides.

    The matrix is the product of the stages, the first one to be applied first: ``M = ... · stages[1] · stages[0]``. A
    stage costs a fused multiply-add for each of its elements that is neither a 0 nor its row's first 1.

    The intrinsic is ``(source, offset, row_step, column_step, lanes)``. Of ``d[i, j] = source[offset + i · row_step +
    j · column_step :][:lanes]`` it returns the tile ``M · d · Mᵀ``, lane by lane.
    """
    size = len(stages[0][0])

    @intrinsic(prefer_literal=True)
    def load_transformed(typing: Any, source: Any, offset: Any, row_step: Any, column_step: Any, lanes: Any) -> Any:
        sizes = _sizes(lanes)
        if sizes is None:
            return None
        tile = Tile(source.dtype, len(stages[-1]) ** 2, sizes[0])

        def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
            start = _address(context, builder, signature.args[0], values[0], values[1])
            addresses = _grid(builder, start, (size, values[3]), (size, values[2]))
            columns = []
            for j in range(size):
                vectors = [_load_vector(builder, address, tile) for address in addresses[j * size :][:size]]
                columns.append(_multiplied(builder, tile, stages, vectors))
            rows = [_multiplied(builder, tile, stages, list(row)) for row in zip(*columns, strict=True)]
            return tile.pack(builder, itertools.chain.from_iterable(rows))

        return tile(source, types.int64, types.int64, types.int64, lanes), generate

    return load_transformed


def _multiplied(builder: ir.IRBuilder, tile: Tile, stages: Iterable[Matrix], vectors: list[ir.Value]) -> list[ir.Value]:
    """Constant matrices times a column of vectors."""
    fused = _fused_multiply_add(builder, tile)
    for matrix in stages:
        products = []
        for row in matrix:
            # A 1 first: of that the product is there already.
            terms = sorted(((f, v) for f, v in zip(row, vectors, strict=True) if f), key=lambda term: term[0] != 1)
            factors = [ir.Constant(tile.vector, [factor] * tile.lanes) for factor, _ in terms]
            total = terms[0][1] if terms[0][0] == 1 else builder.fmul(factors[0], terms[0][1])
            for factor, (_, vector) in zip(factors[1:], terms[1:], strict=True):
                total = builder.call(fused, [factor, vector, total])
            products.append(total)
        vectors = products
    return vectors


@intrinsic
def store_totals(typing: Any, target: Any, offset: Any, tile: Any) -> Any:
    """``target[offset + v] = Σ of the lanes of tile[v]``: halves are added, then quarters, and so on."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
        start = _address(context, builder, signature.args[0], values[0], values[1])
        for index, vector in enumerate(tile.unpack(builder, values[2])):
            half = tile.lanes // 2
            while half:
                lower = _shuffle(builder, vector, vector, range(half))
                upper = _shuffle(builder, vector, vector, range(half, 2 * half))
                vector = builder.fadd(lower, upper)
                half //= 2
            total = builder.extract_element(vector, _INT32(0))
            builder.store(total, builder.gep(start, [ir.Constant(values[1].type, index)]))
        return context.get_dummy_value()

    return types.void(target, types.int64, tile), generate


@intrinsic
def relu(typing: Any, tile: Any) -> Any:
    """``max(tile, 0)``; NaN stays NaN."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
        zero = ir.Constant(tile.vector, [0.0] * tile.lanes)
        return tile.pack(
            builder,
            (
                builder.select(builder.fcmp_ordered("<=", vector, zero), zero, vector)
                for vector in tile.unpack(builder, values[0])
            ),
        )

    return tile(tile), generate


@intrinsic
def transpose(typing: Any, tile: Any) -> Any:
    """Exchange vectors and lanes of a tile that has as many of the one as of the other, a power of two."""
    assert tile.count == tile.lanes, f"{tile} is not square"

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
        # Eklundh's algorithm: exchange the off-diagonal halves of the matrix, then those of each quarter, and so on.
        vectors = tile.unpack(builder, values[0])
        lanes, half = range(tile.lanes), tile.lanes // 2
        while half:
            upper = [lane if not lane & half else lane - half + tile.lanes for lane in lanes]
            lower = [lane + half if not lane & half else lane + tile.lanes for lane in lanes]
            for index in lanes:
                if not index & half:
                    pair = vectors[index], vectors[index + half]
                    vectors[index] = _shuffle(builder, *pair, upper)
                    vectors[index + half] = _shuffle(builder, *pair, lower)
            half //= 2
        return tile.pack(builder, vectors)

    return tile(tile), generate


# -- max pooling -----------------------------------------------------------------------------------------------------

_Candidate: TypeAlias = tuple[ir.Value, ir.Value]  # vectors of values and of their offsets inside the window


def _larger(builder: ir.IRBuilder, best: _Candidate, other: _Candidate) -> _Candidate:
    """Lane by lane the larger candidate: of equal ones the first, of NaNs the last, which beat all else."""
    is_nan = builder.fcmp_unordered("uno", other[0], other[0])
    wins = builder.or_(builder.fcmp_ordered(">", other[0], best[0]), is_nan)
    return builder.select(wins, other[0], best[0]), builder.select(wins, other[1], best[1])


def _pooling(
    tile: Tile, count: int, windows: Callable[[ir.IRBuilder, list[ir.Value]], Iterable[list[ir.Value]]]
) -> tuple[Any, Any]:
    """Return type and code generator of a pooling, given what lists the windows: vectors, row by row."""
    maxima, winners = Tile(tile.dtype, count, tile.lanes), Tile(types.uint8, count, tile.lanes)

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
        found = []
        for window in windows(builder, tile.unpack(builder, values[0])):
            offsets = (ir.Constant(winners.vector, [offset] * tile.lanes) for offset in range(len(window)))
            found.append(functools.reduce(functools.partial(_larger, builder), zip(window, offsets, strict=True)))
        results = (
            maxima.pack(builder, (value for value, _ in found)),
            winners.pack(builder, (offset for _, offset in found)),
        )
        return context.make_tuple(builder, signature.return_type, results)

    return types.Tuple((maxima, winners)), generate


@intrinsic(prefer_literal=True)
def pool_vectors(typing: Any, tile: Any, rows: Any, columns: Any, height: Any, width: Any) -> Any:
    """Max pooling of a tile in which each position is a vector: ``tile[row, column, v]``, rows and columns of an image.

    Returns the maxima ``[row / height, column / width, v]`` and the winners, uint8 offsets ``i · width + j`` in the
    window.
    """
    sizes = _sizes(rows, columns, height, width)
    if sizes is None:
        return None
    n_rows, n_columns, h, w = sizes
    depth = tile.count // (n_rows * n_columns)

    def windows(builder: ir.IRBuilder, vectors: list[ir.Value]) -> Iterable[list[ir.Value]]:
        for p, q, v in itertools.product(range(0, n_rows, h), range(0, n_columns, w), range(depth)):
            yield [vectors[((p + i) * n_columns + q + j) * depth + v] for i in range(h) for j in range(w)]

    returned, generate = _pooling(tile, tile.count // (h * w), windows)
    return returned(tile, rows, columns, height, width), generate


@intrinsic(prefer_literal=True)
def pool_lanes(typing: Any, tile: Any, rows: Any, columns: Any, width: Any) -> Any:
    """Max pooling of a tile whose lanes are the columns of an image: ``tile[filter, row, v]``.

    Windows are ``rows`` high, all that the tile has, and ``width`` wide; ``width`` divides ``columns``, the number of
    vectors in a row. Returns the maxima ``[filter, v / width]`` and the winners, uint8 offsets ``i · width + j`` in
    the window.
    """
    sizes = _sizes(rows, columns, width)
    if sizes is None:
        return None
    h, n_columns, w = sizes

    def every_wth(builder: ir.IRBuilder, vectors: list[ir.Value], first: int) -> ir.Value:
        """Lanes first, first + w, first + 2w, ... of w vectors laid end to end."""
        joined = vectors[0]
        for vector in vectors[1:]:
            # A shuffle wants operands of one length; the lanes added here are not asked for.
            same_length = [*range(tile.lanes), *[0] * (joined.type.count - tile.lanes)]
            vector = _shuffle(builder, vector, vector, same_length)
            joined = _shuffle(builder, joined, vector, range(joined.type.count + tile.lanes))
        return _shuffle(builder, joined, joined, range(first, w * tile.lanes, w))

    def windows(builder: ir.IRBuilder, vectors: list[ir.Value]) -> Iterable[list[ir.Value]]:
        for start, v in itertools.product(range(0, len(vectors), h * n_columns), range(0, n_columns, w)):
            rows = [vectors[start + i * n_columns + v :][:w] for i in range(h)]
            yield [every_wth(builder, row, j) for row in rows for j in range(w)]

    returned, generate = _pooling(tile, tile.count // (h * w), windows)
    return returned(tile, rows, columns, width), generate
