"""``wgmma``: products of matrices in shared memory by the four warps of a warpgroup. PTX ISA, chapter 9.7.15.

**Matrices in shared memory.** A descriptor of 64 bits has, each divided by 16: the start (bits 0 to 13), the leading
offset (16 to 29), the stride offset (32 to 45); and the swizzle (62 to 63: none, 128, 64, 32 bytes). With the bytes
``w`` of the swizzle (16 for none), of a matrix whose rows lie along k:

    byte b of row r:  start + r // 8 * stride + r % 8 * w + b                    (none: + b // 16 * leading + b % 16)

of one whose columns do (``imm-trans``; two-byte elements, ``v = w / 2`` of them in a row):

    element r, k:     start + r // v * leading + k // 8 * stride + k % 8 * w + r % v * 2      (none: offsets swapped)

The swizzle then exchanges pieces of 16 bytes: their number in the address, modulo w / 16, is xor-ed with the number of
the 128 bytes that they lie in.

**Asynchronous.** The sums are made at once, but their registers may not be touched before ``wgmma.wait_group``: only
moved, because the compiler moves them between instructions. What another instruction reads of them is a fault, and so
is a change of the matrices in shared memory before the wait, and a store to them without ``fence.proxy.async``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from gpuconv.lab.ptx import matrix
from gpuconv.lab.ptx.matrix import KINDS, Kind
from gpuconv.lab.ptx.program import Instruction, Program
from gpuconv.lab.ptx.values import PREDICATE, U32, U64, WARP, Array, Lanes, PtxError, packed, register_type, unpacked

if TYPE_CHECKING:
    from gpuconv.lab.ptx.machine import Machine, Step

_WARPGROUP = 4 * WARP
#: Bytes of a row for each value of the descriptor's swizzle.
_WIDTHS = (16, 128, 64, 32)


@dataclass
class _Product:
    """An instruction whose result its threads have not waited for."""

    one: Instruction
    lanes: Array
    groups: Array
    registers: tuple[str, ...]
    #: Where in shared memory it reads, and what it found there.
    reads: list[tuple[Array, Array]]


@dataclass
class _UnderWay:
    groups: Array
    products: list[_Product] = field(default_factory=list)


def _state(machine: Machine) -> _UnderWay:
    if "wgmma" not in machine.kept:
        machine.kept["wgmma"] = _UnderWay(np.zeros(machine.count, np.int64))
    found: _UnderWay = machine.kept["wgmma"]
    return found


def moved(machine: Machine, target: str, source: str) -> None:
    """A register is a copy of another one, on which a product may be under way."""
    if source in machine.pending:
        machine.pending[target] = machine.pending[source].copy()
    else:
        machine.pending.pop(target, None)


# -- matrices ----------------------------------------------------------------------------------------------------------


def offsets(descriptor: int, rows: int, depth: int, size: int, transposed: bool) -> Array:
    """Offsets in the block's shared memory of the elements of a matrix [rows, depth], each of ``size`` bytes."""
    start, leading, stride = (
        (descriptor & 0x3FFF) << 4,
        (descriptor >> 16 & 0x3FFF) << 4,
        (descriptor >> 32 & 0x3FFF) << 4,
    )
    if descriptor >> 49 & 7:
        raise PtxError("a descriptor with a base offset: not known here")
    swizzle = descriptor >> 62
    width = _WIDTHS[swizzle]
    row, k = np.arange(rows)[:, None], np.arange(depth)[None, :]
    if not transposed:
        byte = k * size
        place = row // 8 * stride + row % 8 * width + (byte if swizzle else byte // 16 * leading + byte % 16)
    else:
        each = width // size
        far, near = (leading, stride) if swizzle else (stride, leading)
        place = row // each * far + k // 8 * near + k % 8 * width + row % each * size
    address = start + place
    return address ^ (((address >> 7) & (width // 16 - 1)) << 4)


def _matrix(
    machine: Machine,
    one: Instruction,
    descriptors: Array,
    blocks: Array,
    shape: tuple[int, int],
    kind: Kind,
    trans: bool,
) -> tuple[Array, list[tuple[Array, Array]]]:
    """Matrices [warpgroups, rows, depth] that descriptors mean, and what was read."""
    size = kind.bits // 8
    found, reads = [], []
    for descriptor, block in zip(descriptors.tolist(), blocks.tolist(), strict=True):
        where = offsets(int(descriptor), *shape, size, trans)
        if int(where.max()) + size > machine.shared_bytes:
            one.fails(
                f"outside of shared memory: the descriptor {int(descriptor):#x} reaches {int(where.max()) + size:#x}"
            )
        where = where + block * machine.pitch
        view = machine.shared.view(f"u{size}")
        raw = view[where // size]
        reads.append((where // size, raw))
        found.append(raw)
    raw = np.stack(found)
    if kind.name == "tf32":
        return unpacked(raw, "tf32").astype(np.float64), reads
    if kind.name in ("s8", "u8"):
        return raw.view(f"{'i' if kind.name[0] == 's' else 'u'}1").astype(np.int64), reads
    return unpacked(raw, kind.name).astype(np.float64), reads


def _check_written(machine: Machine, one: Instruction, reads: list[tuple[Array, Array]], lanes: Array) -> None:
    """Whether what a product reads has been written, and made known to the asynchronous units."""
    shadow = machine.shadow
    if shadow is None:
        return
    for where, raw in reads:
        bytes_of = where.ravel() * raw.dtype.itemsize
        shadow.read(one, bytes_of, raw.dtype.itemsize, np.full(bytes_of.size, lanes[0]))
        words, _ = shadow.words(bytes_of, raw.dtype.itemsize, np.full(bytes_of.size, lanes[0]))
        late = shadow.unfenced(words)
        if late >= 0:
            one.fails(
                f"reads shared memory that {machine.name(late)} wrote, with no fence.proxy.async behind the store"
            )


# -- the instruction ---------------------------------------------------------------------------------------------------


def _product(program: Program, one: Instruction) -> Step:
    """``wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 d, a, b, p, 1, 1, 0, 0``."""
    parts = one.parts
    if parts[1:4] != ["mma_async", "sync", "aligned"]:
        one.unknown()
    _, columns, depth = map(int, matrix.SHAPE.fullmatch(parts[4]).groups())  # type: ignore[union-attr]
    result, kind_a, kind_b = parts[5:8] if parts[5] != "satfinite" else parts[6:9]
    if parts[-1] == "satfinite":
        one.unknown()
    a, b = KINDS[kind_a], KINDS[kind_b]
    targets, left, right, scale, *numbers = one.operands
    sign_a, sign_b, *turns = [int(number) for number in numbers] if numbers else [1, 1]
    in_registers = isinstance(left, tuple)
    turned = [bool(turn) for turn in turns]
    turn_b = turned[-1] if turned else False
    turn_a = turned[0] if len(turned) == 2 else False
    dtype = register_type("f16x2" if result == "f16" else result)

    def step(machine: Machine, lanes: Lanes) -> None:
        groups = matrix.whole_warps(machine, lanes, one).reshape(-1)
        if groups.size % _WARPGROUP or (groups[::_WARPGROUP] % machine.threads % _WARPGROUP).any():
            one.fails("all four warps of a warpgroup have to take part")
        teams = groups.reshape(-1, _WARPGROUP)
        warps = groups.reshape(-1, WARP)
        blocks = machine.block[teams[:, 0]]
        reads: list[tuple[Array, Array]] = []
        if in_registers:
            held = matrix.stacked(machine, left, U32, lanes, warps)
            first = matrix.gathered_a(held, a, 16).reshape(len(teams), 64, depth)
        else:
            described = machine.column(left, U64, lanes).reshape(teams.shape)[:, 0]
            first, reads = _matrix(machine, one, described, blocks, (64, depth), a, turn_a)
        described = machine.column(right, U64, lanes).reshape(teams.shape)[:, 0]
        second, more = _matrix(machine, one, described, blocks, (columns, depth), b, turn_b)
        for each, read in enumerate([*reads, *more]):
            _check_written(machine, one, [read], teams[each % len(teams)])
        old = matrix.stacked(machine, targets, dtype, lanes, warps) if _any(machine, scale, lanes) else None
        addend = np.zeros((len(teams), 64, columns), np.int64 if result == "s32" else np.float32)
        if old is not None:
            if result == "f16":
                old = np.moveaxis(unpacked(old, "f16x2"), 0, -1).reshape(*warps.shape, -1)
            keep = machine.column(scale, PREDICATE, lanes).reshape(teams.shape)[:, 0]
            addend = np.where(
                keep[:, None, None], matrix.gathered_c(old, 16, columns).reshape(len(teams), 64, columns), addend
            )
        total = matrix.accumulated(first * sign_a, second * sign_b, addend)
        found = matrix.scattered_c(total.reshape(-1, 16, columns))
        if result == "s32":
            found = found.astype(np.int32)
        elif result == "f16":
            found = packed(np.moveaxis(found.reshape(*warps.shape, -1, 2), -1, 0), "f16x2")
        state = _state(machine)
        for number, name in enumerate(targets):
            machine.write(name, np.ascontiguousarray(found[:, :, number]).reshape(-1), lanes)
            machine.pending.setdefault(name, np.zeros(machine.count, bool))[lanes] = True
        state.products.append(_Product(one, groups, state.groups[groups], targets, [*reads, *more]))

    return step


def _any(machine: Machine, scale: str, lanes: Lanes) -> bool:
    return bool(np.any(machine.read(scale, PREDICATE, lanes)))


def _commit(program: Program, one: Instruction) -> Step:
    def step(machine: Machine, lanes: Lanes) -> None:
        _state(machine).groups[lanes] += 1

    return step


def _wait(program: Program, one: Instruction) -> Step:
    """``wgmma.wait_group n``: all products but those of the last ``n`` groups have their results."""
    count = int(one.operands[0], 0)

    def step(machine: Machine, lanes: Lanes) -> None:
        state = _state(machine)
        numbers = machine.lanes(lanes)
        left = []
        for product in state.products:
            done = np.isin(product.lanes, numbers) & (product.groups < state.groups[product.lanes] - count)
            if not done.any():
                left.append(product)
                continue
            for where, raw in product.reads:
                if (machine.shared.view(raw.dtype)[where] != raw).any():
                    product.one.fails("the shared memory that it reads was changed before wgmma.wait_group")
        state.products = left
        still = {name for product in left for name in product.registers}
        for name in list(machine.pending):
            if name not in still:
                machine.pending[name][lanes] = False
                if not machine.pending[name].any():
                    del machine.pending[name]

    return step


def _fence(program: Program, one: Instruction) -> Step:
    return lambda machine, lanes: None


MAKERS: dict[str, Callable[[Program, Instruction], Step]] = {
    "wgmma.fence": _fence,
    "wgmma.commit_group": _commit,
    "wgmma.wait_group": _wait,
    "wgmma.mma_async": _product,
}
