"""``wmma``: matrices that a warp holds in a layout which the manual leaves open, of any shape and order in memory.

Here element ``e`` of a matrix, counted row by row, is element ``e`` of the warp's registers, lane by lane; where these
hold more, the matrix is in them several times. Source: PTX ISA, chapter 9.7.14.4; sums are rounded as in ``matrix``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuconv.lab.ptx.matrix import KINDS, SHAPE, accumulated, stacked, whole_warps
from gpuconv.lab.ptx.memory import elements, put
from gpuconv.lab.ptx.program import Instruction, Program
from gpuconv.lab.ptx.values import U32, WARP, Array, Lanes, packed, register_type, unpacked

if TYPE_CHECKING:
    from gpuconv.lab.ptx.machine import Machine, Step

_BITS = {**{name: kind.bits for name, kind in KINDS.items()}, "f32": 32, "s32": 32, "tf32": 32}


def _extent(one: Instruction, which: str) -> tuple[int, int]:
    """Rows and columns of a matrix."""
    found = next((match for part in one.parts if (match := SHAPE.fullmatch(part))), None)
    if found is None:
        one.unknown()
    m, n, k = map(int, found.groups())
    return {"a": (m, k), "b": (k, n)}.get(which, (m, n))


class _Access:
    """A matrix in memory, and the registers that hold it."""

    def __init__(self, program: Program, one: Instruction, place: str, names: tuple[str, ...], stride: str) -> None:
        self.one, self.place, self.names, self.stride = one, place, names, stride
        self.rows, self.columns = _extent(one, one.parts[2])
        bits = _BITS.get(one.parts[-1], 0)
        if bits < 8:
            one.unknown()
        self.dtype, self.register = np.dtype(f"u{bits // 8}"), np.dtype("u8") if bits == 64 else U32
        self.by_rows = "row" in one.parts
        #: Lines in memory, their elements, and how many of these are accessed at once.
        self.lines, self.length = (self.rows, self.columns) if self.by_rows else (self.columns, self.rows)
        self.chunk = min(16 // self.dtype.itemsize, self.length)

    def places(self, machine: Machine, lanes: Lanes, warps: Array) -> tuple[Array, Array]:
        """Addresses of the chunks of all warps, and a thread for each."""
        address = machine.address(self.place, lanes).reshape(warps.shape)
        if (address != address[:, :1]).any():
            self.one.fails("the lanes of a warp give different addresses")
        stride: Any = np.uint64(self.length)
        if self.stride:
            stride = machine.column(self.stride, U32, lanes).reshape(warps.shape)[:, :1, None].astype(np.uint64)
        line = np.arange(self.lines, dtype=np.uint64)[:, None] * stride
        within = np.arange(0, self.length, self.chunk, dtype=np.uint64)
        found = address[:, :1, None] + (line + within) * np.uint64(self.dtype.itemsize)
        flat = found.reshape(len(warps), -1)
        return flat.ravel(), warps[:, np.arange(flat.shape[1]) % WARP].ravel()

    @property
    def space(self) -> str:
        """The space that the instruction names."""
        return self.one.space

    def load(self, machine: Machine, lanes: Lanes) -> None:
        """From memory into registers."""
        one, warps = self.one, whole_warps(machine, lanes, self.one)
        address, givers = self.places(machine, lanes, warps)
        size = self.chunk * self.dtype.itemsize
        found = np.empty((len(address), self.chunk), self.dtype)
        for piece in machine.pieces(one, self.space, address, givers, size):
            view, index = elements(piece.memory, piece.offsets, self.dtype, self.chunk)
            found[piece.chosen] = view[index]
            if piece.space == "shared" and machine.shadow is not None:
                machine.shadow.read(one, piece.offsets, size, givers[piece.chosen])
        matrices = found.reshape(len(warps), self.lines, self.length)
        if not self.by_rows:
            matrices = matrices.swapaxes(1, 2)
        whole = len(self.names) * WARP * self.register.itemsize // self.dtype.itemsize
        flat = np.tile(matrices.reshape(len(warps), -1), whole // (self.rows * self.columns))
        registers = np.ascontiguousarray(flat).view(self.register).reshape(len(warps), WARP, len(self.names))
        for number, name in enumerate(self.names):
            machine.write(name, registers[:, :, number].reshape(-1), lanes)

    def store(self, machine: Machine, lanes: Lanes) -> None:
        """The other way round."""
        warps = whole_warps(machine, lanes, self.one)
        address, givers = self.places(machine, lanes, warps)
        registers = np.ascontiguousarray(stacked(machine, self.names, self.register, lanes, warps))
        flat = registers.reshape(len(warps), -1).view(self.dtype)[:, : self.rows * self.columns]
        matrices = flat.reshape(len(warps), self.rows, self.columns)
        given = np.ascontiguousarray(matrices if self.by_rows else matrices.swapaxes(1, 2)).reshape(-1, self.chunk)
        for piece in machine.pieces(self.one, self.space, address, givers, self.chunk * self.dtype.itemsize):
            put(machine, self.one, piece.memory, piece.offsets, given[piece.chosen], givers, piece.chosen, piece.space)
            if piece.space == "global":
                machine.memory.written[piece.number] = True


def _names(operand: Any) -> tuple[str, ...]:
    return operand if isinstance(operand, tuple) else (operand,)


def _load(program: Program, one: Instruction) -> Step:
    """``wmma.load.a.sync.aligned.row.m16n16k16.shared.f16 registers, [place], stride``."""
    names, place, *stride = one.operands
    return _Access(program, one, place, _names(names), stride[0] if stride else "").load


def _store(program: Program, one: Instruction) -> Step:
    """``wmma.store.d.sync.aligned.row.m16n16k16.f32 [place], registers, stride``."""
    place, names, *stride = one.operands
    return _Access(program, one, place, _names(names), stride[0] if stride else "").store


def _mma(program: Program, one: Instruction) -> Step:
    """``wmma.mma.sync.aligned.row.col.m16n16k16.f32.f32 d, a, b, c``; of other types than f16 all four are named."""
    parts = one.parts
    limits = "satfinite" in parts
    types = [part for part in parts[5:] if part in _BITS]
    if len(types) == 2:
        types = [types[0], "f16", "f16", types[1]]
    if len(types) != 4 or types[1] not in KINDS or KINDS[types[1]].bits < 8 or parts[2:4] != ["sync", "aligned"]:
        one.unknown()
    result, kind_a, kind_b, kind_c = types
    targets, *sources = (_names(operand) for operand in one.operands)
    register = np.dtype("u8") if kind_a == "f64" else U32
    extents = [_extent(one, which) for which in "abc"]
    dtype = register_type("f16x2" if kind_c == "f16" else kind_c)

    def step(machine: Machine, lanes: Lanes) -> None:
        warps = whole_warps(machine, lanes, one)

        def matrices(values: Array, which: int) -> Array:
            rows, columns = extents[which]
            return values.reshape(len(warps), -1)[:, : rows * columns].reshape(-1, rows, columns)

        left, right = (
            matrices(KINDS[kind].values(stacked(machine, names, register, lanes, warps)), which)
            for which, (kind, names) in enumerate(zip((kind_a, kind_b), sources[:2], strict=True))
        )
        held = stacked(machine, sources[2], dtype, lanes, warps)
        if kind_c == "f16":
            held = np.moveaxis(unpacked(held, "f16x2"), 0, -1)
        addend = matrices(held, 2)
        if kind_a == "f64":
            total = left @ right + addend
        else:
            total = accumulated(left, right.swapaxes(1, 2), addend)
        if result == "s32":
            total = np.clip(total, -(2**31), 2**31 - 1) if limits else total
            total = total.astype(np.int64).astype(np.int32)
        found = total.reshape(len(warps), WARP, -1)
        if result == "f16":
            found = packed(np.moveaxis(found.reshape(len(warps), WARP, -1, 2), -1, 0), "f16x2")
        for number, name in enumerate(targets):
            machine.write(name, np.ascontiguousarray(found[:, :, number]).reshape(-1), lanes)

    return step


MAKERS: dict[str, Callable[[Program, Instruction], Step]] = {
    "wmma.load": _load,
    "wmma.store": _store,
    "wmma.mma": _mma,
}
