"""``ldmatrix``, ``stmatrix`` and ``mma.sync``: matrices that the lanes of a warp hold together.

Each lane has a row ``g = lane // 4`` and a column ``t = lane % 4`` of its own. A register of 32 bits holds ``e``
neighbouring elements. With that all shapes have one layout (PTX ISA, chapters 9.7.14.5.1 to 9.7.14.5.14):

    A, m x k: register r, element i is A[g + 8 * (r % 2), e * t + i + 4 * e * (r // 2)]     (m = 8: one row)
    B, k x n: register r, element i is B[e * t + i + 4 * e * r, g]
    C, m x n: element i is C[g + 8 * (i // 2), 2 * t + i % 2]

**How sums are rounded.** Products are exact. The products of an instruction and the element of C are aligned to the
largest of them, cut off (not rounded) after 24 bits and some more, and added; the sum is cut off to float32. That is
what measurements of tensor cores found (Fasi, Higham, Mikaitis, Pranesh 2021, "Numerical behavior of NVIDIA tensor
cores"), with two bits kept beyond on an H100: matrices of 4,096 terms have the errors here that they had there, also
where they come of the cut (3xTF32: 2.9e-5). Of float64 and integers the sum is exact but for its end.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuconv.lab.ptx.memory import elements
from gpuconv.lab.ptx.program import Instruction, Program
from gpuconv.lab.ptx.values import U32, WARP, Array, Lanes, PtxError, packed, register_type, unpacked

if TYPE_CHECKING:
    from gpuconv.lab.ptx.machine import Machine, Step

#: Bits that are kept below those of float32 when the terms of a sum are aligned.
_EXTRA_BITS = 2
_ROW, _COLUMN = np.divmod(np.arange(WARP), 4)


def whole_warps(machine: Machine, lanes: Lanes, one: Instruction) -> Array:
    """The threads that take part, a row for each warp."""
    numbers = machine.lanes(lanes)
    if len(numbers) % WARP or (machine.lane[numbers].reshape(-1, WARP) != np.arange(WARP)).any():
        one.fails("all lanes of a warp have to take part")
    return numbers.reshape(-1, WARP)


# -- elements ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """An element type of matrices.

    Attributes:
        bits: of an element.
        values: the elements of registers: an array with one more axis at its end.
    """

    name: str
    bits: int

    @property
    def each(self) -> int:
        """Elements of a register."""
        return max(1, 32 // self.bits)

    def values(self, registers: Array) -> Array:
        """The elements of registers, along a new last axis."""
        if self.name == "f64":
            return registers.view(np.float64)[..., None]
        if self.bits == 32:
            return unpacked(registers, "tf32").astype(np.float64)[..., None]
        parts = registers[..., None] >> np.arange(0, 32, self.bits, dtype=np.uint32) & np.uint32((1 << self.bits) - 1)
        if self.bits >= 8:
            raw = parts.astype(f"u{self.bits // 8}")
            if self.name[0] in "us":
                return raw.view(f"{'i' if self.name[0] == 's' else 'u'}{self.bits // 8}").astype(np.int64)
            return unpacked(raw, self.name).astype(np.float64)
        whole = parts.astype(np.int64)
        return np.where(whole >= 8, whole - 16, whole) if self.name == "s4" else whole


KINDS = {
    name: Kind(name, bits)
    for name, bits in (
        *(("f64", 64), ("tf32", 32), ("f16", 16), ("bf16", 16), ("e4m3", 8), ("e5m2", 8)),
        *(("s8", 8), ("u8", 8), ("s4", 4), ("u4", 4)),
    )
}


def accumulated(a: Array, b: Array, c: Array) -> Array:
    """``a @ b.T + c`` as the tensor cores add: a [..., m, k], b [..., n, k], both exact in float64; c [..., m, n]."""
    if a.dtype.kind == "i":
        return np.einsum("...mk,...nk->...mn", a, b) + c
    terms = a[..., :, None, :] * b[..., None, :, :]
    terms = np.concatenate([terms, c.astype(np.float64)[..., None]], -1)
    exact = terms.sum(-1)
    _, exponent = np.frexp(np.abs(np.where(np.isfinite(terms), terms, 0)).max(-1))
    unit = np.ldexp(1.0, np.maximum(exponent - 24, -149) - _EXTRA_BITS)
    total = (np.trunc(terms / unit[..., None]) * unit[..., None]).sum(-1)
    return np.where(np.isfinite(exact), _cut(total), exact.astype(np.float32))


def _cut(values: Array) -> Array:
    """float64 to float32, towards zero."""
    found = values.astype(np.float32)
    return np.where(np.abs(found) > np.abs(values), np.nextafter(found, np.float32(0)), found)


# -- fragments ---------------------------------------------------------------------------------------------------------


def gathered_a(registers: Array, kind: Kind, rows: int) -> Array:
    """Matrices A [warps, m, k] of registers [warps, lanes, registers]."""
    values = kind.values(registers)
    warps, _, count, each = values.shape
    tall = rows // 8
    found = np.empty((warps, rows, 4 * each * (count // tall)), values.dtype)
    for number in range(count):
        row, first = _ROW + 8 * (number % tall), each * _COLUMN + 4 * each * (number // tall)
        found[:, row[:, None], first[:, None] + np.arange(each)] = values[:, :, number]
    return found


def gathered_b(registers: Array, kind: Kind) -> Array:
    """Matrices B, transposed [warps, n, k]."""
    return gathered_a(registers, kind, 8)


def scattered_c(matrices: Array) -> Array:
    """The elements of C [warps, m, n] that each lane holds: [warps, lanes, elements]."""
    rows, columns = matrices.shape[1:]
    count = rows * columns // WARP
    at = np.arange(count)
    row = _ROW[:, None] + 8 * (at // 2 % (rows // 8))
    column = 2 * _COLUMN[:, None] + at % 2 + 8 * (at // (2 * (rows // 8)))
    return matrices[:, row, column]


def gathered_c(values: Array, rows: int, columns: int) -> Array:
    """The other way round."""
    count = rows * columns // WARP
    at = np.arange(count)
    row = _ROW[:, None] + 8 * (at // 2 % (rows // 8))
    column = 2 * _COLUMN[:, None] + at % 2 + 8 * (at // (2 * (rows // 8)))
    found = np.empty((len(values), rows, columns), values.dtype)
    found[:, row, column] = values
    return found


def stacked(machine: Machine, names: tuple[str, ...], dtype: np.dtype[Any], lanes: Lanes, warps: Array) -> Array:
    """Registers of warps: [warps, lanes, registers]."""
    columns = [machine.column(name, dtype, lanes) for name in names]
    return np.stack(columns, -1).reshape(*warps.shape, len(names))


SHAPE = re.compile(r"m(\d+)n(\d+)k(\d+)")


def _mma(program: Program, one: Instruction) -> Step:
    """``mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 d, a, b, c``."""
    parts = one.parts
    place = next(number for number, part in enumerate(parts) if SHAPE.fullmatch(part))
    rows, columns, depth = map(int, SHAPE.fullmatch(parts[place]).groups())  # type: ignore[union-attr]
    result, kind_a, kind_b, kind_c = parts[-4:]
    extra = set(parts[3:-4]) - {"row", "col", "satfinite", parts[place]}
    a, b = KINDS[kind_a], KINDS[kind_b]
    if extra or parts[1:3] != ["sync", "aligned"] or (rows, columns, depth, kind_a) == (8, 8, 4, "f16"):
        one.unknown()
    register = np.dtype("u8") if kind_a == "f64" else U32
    targets, names_a, names_b, names_c = (one if isinstance(one, tuple) else (one,) for one in one.operands)
    if len(names_a) * a.each * WARP != rows * depth or len(names_b) * b.each * WARP != columns * depth:
        one.unknown()
    dtype = register_type("f16x2" if kind_c == "f16" else kind_c)
    limits = "satfinite" in parts

    def step(machine: Machine, lanes: Lanes) -> None:
        warps = whole_warps(machine, lanes, one)
        left = gathered_a(stacked(machine, names_a, register, lanes, warps), a, rows)
        right = gathered_b(stacked(machine, names_b, register, lanes, warps), b)
        held = stacked(machine, names_c, dtype, lanes, warps)
        if kind_c == "f16":
            held = np.moveaxis(unpacked(held, "f16x2"), 0, -1).reshape(*warps.shape, -1)
        addend = gathered_c(held, rows, columns)
        if kind_a == "f64":
            total = np.einsum("wmk,wnk->wmn", left, right) + addend
        else:
            total = accumulated(left, right, addend)
        found = scattered_c(total)
        if result == "s32":
            found = np.clip(found, -(2**31), 2**31 - 1) if limits else found
            found = found.astype(np.int64).astype(np.int32)
        elif result == "f16":
            found = packed(np.moveaxis(found.reshape(*warps.shape, -1, 2), -1, 0), "f16x2")
        for number, name in enumerate(targets):
            machine.write(name, np.ascontiguousarray(found[:, :, number]).reshape(-1), lanes)

    return step


# -- in shared memory --------------------------------------------------------------------------------------------------


def _matrices(one: Instruction) -> int:
    return int(next(part for part in one.parts if part in ("x1", "x2", "x4"))[1:])


def _load(program: Program, one: Instruction) -> Step:
    """``ldmatrix``: up to four matrices of 8 rows of 16 bytes, whose addresses the lanes give."""
    count, transposed = _matrices(one), "trans" in one.parts
    if "m8n8" not in one.parts or one.parts[-1] != "b16":
        one.unknown()
    names = one.operands[0] if isinstance(one.operands[0], tuple) else (one.operands[0],)

    def step(machine: Machine, lanes: Lanes) -> None:
        rows = _rows(machine, one, one.operands[1], lanes, count)
        view, index = elements(machine.shared, rows.ravel(), np.dtype("u2"), 8)
        found = view[index].reshape(-1, count, 8, 8)
        if transposed:
            found = found.swapaxes(2, 3)
        pairs = np.ascontiguousarray(found).view(U32)  # [warps, matrices, rows, 4 pairs]
        for number, name in enumerate(names):
            machine.write(name, pairs[:, number].reshape(-1), lanes)

    return step


def _store(program: Program, one: Instruction) -> Step:
    """``stmatrix``: the other way round."""
    count, transposed = _matrices(one), "trans" in one.parts
    if "m8n8" not in one.parts or one.parts[-1] != "b16":
        one.unknown()
    place, values = one.operands
    names = values if isinstance(values, tuple) else (values,)

    def step(machine: Machine, lanes: Lanes) -> None:
        rows = _rows(machine, one, place, lanes, count, write=True)
        warps = whole_warps(machine, lanes, one)
        registers = stacked(machine, names, U32, lanes, warps).transpose(0, 2, 1)
        found = np.ascontiguousarray(registers).view(np.uint16).reshape(-1, count, 8, 8)
        if transposed:
            found = found.swapaxes(2, 3)
        view, index = elements(machine.shared, rows.ravel(), np.dtype("u2"), 8)
        view[index] = found.reshape(-1, 8)

    return step


def _rows(machine: Machine, one: Instruction, place: str, lanes: Lanes, count: int, *, write: bool = False) -> Array:
    """Offsets of the rows of matrices in shared memory, of each warp's first ``8 * count`` lanes."""
    warps = whole_warps(machine, lanes, one)
    givers = warps[:, : 8 * count].ravel()
    address = machine.address(place, lanes).reshape(warps.shape)[:, : 8 * count].ravel()
    (piece,) = machine.pieces(one, "shared" if "shared" in one.parts else "generic", address, givers, 16)
    if piece.space != "shared":
        raise PtxError("matrices are in shared memory")
    # A row is accessed by the four lanes that hold it, whoever gives its address.
    holders = np.tile(warps[:, ::4], count).ravel()
    if machine.shadow is not None and write:
        machine.shadow.write(one, piece.offsets, 16, holders, None)
    elif machine.shadow is not None:
        machine.shadow.read(one, piece.offsets, 16, holders)
    return piece.offsets


def _transpose(program: Program, one: Instruction) -> Step:
    """``movmatrix``: a matrix of 8 x 8 elements of 16 bits, transposed between the lanes."""
    target, source = one.operands

    def step(machine: Machine, lanes: Lanes) -> None:
        warps = whole_warps(machine, lanes, one)
        held = np.ascontiguousarray(machine.column(source, U32, lanes).reshape(warps.shape))
        turned = np.ascontiguousarray(held.view(np.uint16).reshape(-1, 8, 8).swapaxes(1, 2))
        machine.write(target, turned.view(U32).reshape(-1), lanes)

    return step


MAKERS: dict[str, Callable[[Program, Instruction], Step]] = {
    "mma": _mma,
    "ldmatrix": _load,
    "stmatrix": _store,
    "movmatrix": _transpose,
}
