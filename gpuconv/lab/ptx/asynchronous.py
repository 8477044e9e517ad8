"""Copies that go on beside the threads: their bytes appear as late as they may, which is at the wait for them.

A kernel that reads before it waits finds what was there before. Source: PTX ISA, chapter 9.7.9.25.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuconv.lab.ptx import mbarriers
from gpuconv.lab.ptx.mbarriers import Bulk
from gpuconv.lab.ptx.memory import elements
from gpuconv.lab.ptx.program import Instruction, Program
from gpuconv.lab.ptx.values import PREDICATE, U32, Array, Lanes, PtxError

if TYPE_CHECKING:
    from gpuconv.lab.ptx.machine import Machine, Step

_BYTE = np.dtype("u1")
_ALL_GROUPS = 1 << 40


@dataclass
class _Copy:
    """Copies that threads have issued with one instruction."""

    one: Instruction
    #: The threads, their groups, and a row of bytes for each.
    lanes: Array
    groups: Array
    memory: Array
    offsets: Array
    data: Array
    space: str = "shared"


class _UnderWay:
    def __init__(self, machine: Machine) -> None:
        self.copies: list[_Copy] = []
        self.groups = np.zeros(machine.count, np.int64)


def _under_way(machine: Machine, kind: str = "copies") -> _UnderWay:
    if kind not in machine.kept:
        machine.kept[kind] = _UnderWay(machine)
    found: _UnderWay = machine.kept[kind]
    return found


def _copy(program: Program, one: Instruction) -> Step:
    """``cp.async.ca.shared.global [to], [from], 16, bytes``."""
    to, source, size, *rest = one.operands
    nbytes = int(size, 0)
    if rest and rest[0].startswith("%") and program.registers.get(rest[0]) == PREDICATE:
        one.unknown()
    if len(rest) > 1 or nbytes not in (4, 8, 16):
        one.unknown()

    def step(machine: Machine, lanes: Lanes) -> None:
        numbers = machine.lanes(lanes)
        (target,) = machine.pieces(one, "shared", machine.address(to, lanes), lanes, nbytes)
        data = np.zeros((len(numbers), nbytes), _BYTE)
        taken = machine.column(rest[0], U32, lanes) if rest else np.full(len(numbers), nbytes, np.uint32)
        for count in np.unique(taken):
            chosen = np.flatnonzero(taken == count)
            if count == 0:
                continue
            if count > nbytes:
                raise PtxError(f"more bytes than the copy has: {count} of {nbytes}")
            address = machine.address(source, lanes)[chosen]
            if count == nbytes:
                pieces = machine.pieces(one, "global", address, numbers[chosen], nbytes)
            else:  # fewer bytes need no more than to be there
                found = machine.memory.at(address, int(count))
                if isinstance(found, np.ndarray):
                    one.fails(f"{np.count_nonzero(~found)} of {found.size} accesses are in no array")
                for _, memory, which, offsets in found:
                    view, index = elements(memory, offsets, _BYTE, int(count))
                    data[chosen[which], : int(count)] = view[index]
                continue
            for piece in pieces:
                view, index = elements(piece.memory, piece.offsets, _BYTE, nbytes)
                data[chosen[piece.chosen]] = view[index]
        if machine.shadow is not None:
            machine.shadow.write(one, target.offsets, nbytes, numbers, None)
            where, _ = machine.shadow.words(target.offsets, nbytes, numbers)
            machine.shadow.known[where] = False
        state = _under_way(machine)
        state.copies.append(_Copy(one, numbers, state.groups[numbers], target.memory, target.offsets, data))

    return step


def _deliver(machine: Machine, state: _UnderWay, lanes: Lanes, before: Any) -> None:
    """Let the bytes of these threads' groups appear, of those with a lower number."""
    limit = np.full(machine.count, -1, np.int64)
    limit[lanes] = before
    left = []
    for copy in state.copies:
        done = copy.groups < limit[copy.lanes]
        if done.all():
            _arrive(machine, copy)
            continue
        if done.any():
            parts = (copy.lanes, copy.groups, copy.offsets, copy.data)
            mine, rest = ([part[which] for part in parts] for which in (done, ~done))
            _arrive(machine, _Copy(copy.one, mine[0], mine[1], copy.memory, mine[2], mine[3], copy.space))
            copy = _Copy(copy.one, rest[0], rest[1], copy.memory, rest[2], rest[3], copy.space)
        left.append(copy)
    state.copies = left


def _arrive(machine: Machine, copy: _Copy) -> None:
    view, index = elements(copy.memory, copy.offsets, _BYTE, copy.data.shape[1])
    view[index] = copy.data
    if machine.shadow is not None and copy.space == "shared":
        machine.shadow.write(copy.one, copy.offsets, copy.data.shape[1], copy.lanes, None)


def _commit(program: Program, one: Instruction) -> Step:
    kind = "bulk" if "bulk" in one.parts else "copies"

    def step(machine: Machine, lanes: Lanes) -> None:
        _under_way(machine, kind).groups[lanes] += 1

    return step


def _wait(program: Program, one: Instruction) -> Step:
    """``wait_group n``: all of the thread's groups but the last ``n``; ``wait_all``: everything."""
    kind = "bulk" if "bulk" in one.parts else "copies"
    count = int(one.operands[0], 0) if one.operands else None

    def step(machine: Machine, lanes: Lanes) -> None:
        state = _under_way(machine, kind)
        _deliver(machine, state, lanes, _ALL_GROUPS if count is None else state.groups[lanes] - count)

    return step


def _arrive_at_mbarrier(program: Program, one: Instruction) -> Step:
    """``cp.async.mbarrier.arrive``: an arrival when the thread's copies are there, which they are at once."""
    without_increase = "noinc" in one.parts

    def step(machine: Machine, lanes: Lanes) -> None:
        _deliver(machine, _under_way(machine), lanes, _ALL_GROUPS)
        view, index = mbarriers.words(machine, one, one.operands[0], lanes)
        for where in index:
            if without_increase:
                view[where] = mbarriers.arrived(int(view[where]))
        if machine.shadow is not None:
            machine.shadow.order(lanes)

    return step


# -- in bulk -----------------------------------------------------------------------------------------------------------


def _bulk(program: Program, one: Instruction) -> Step:
    """``cp.async.bulk``: from global to shared memory, or back."""
    parts = one.parts
    if "tensor" in parts or "reduce" in parts or "multicast::cluster" in parts:
        one.unknown()
    spaces = [part for part in parts if part in ("global", "shared", "shared::cluster")]
    to, source, size, *rest = one.operands
    inwards = spaces[0] != "global"
    if spaces[1] != ("global" if inwards else "shared"):
        one.unknown()

    def step(machine: Machine, lanes: Lanes) -> None:
        numbers = machine.lanes(lanes)
        sizes, targets, sources = (
            machine.column(size, U32, lanes),
            machine.address(to, lanes),
            machine.address(source, lanes),
        )
        for number, lane in enumerate(numbers):
            nbytes, mine = int(sizes[number]), numbers[number : number + 1]
            if nbytes % 16 or (targets[number] | sources[number]) % np.uint64(16):
                raise PtxError("the addresses and the size of a bulk copy are multiples of 16")
            if nbytes == 0:
                continue
            pieces = []
            for space, address in (
                ("global" if inwards else "shared", sources),
                ("shared" if inwards else "global", targets),
            ):
                here = address[number : number + 1]
                if space == "global":
                    found = machine.memory.at(here, nbytes)
                    if isinstance(found, np.ndarray):
                        one.fails(f"{nbytes} bytes from address {int(here[0]):#x} on are in no array")
                    ((which, memory, _, offsets),) = list(found)
                    if not inwards:
                        machine.memory.written[which] = True
                    pieces.append((memory, int(offsets[0])))
                else:
                    if int(here[0]) + nbytes > machine.shared_bytes:
                        one.fails(f"{nbytes} bytes from address {int(here[0]):#x} on: outside of shared memory")
                    pieces.append((machine.shared, int(here[0]) + int(machine.block[lane]) * machine.pitch))
            (memory, offset), (goal, place) = pieces
            data = memory[offset : offset + nbytes].copy()
            if inwards:
                _, index = mbarriers.words(machine, one, rest[0], mine, "shared")
                machine.kept.setdefault("inwards", []).append(Bulk(int(lane), goal, place, data, int(index[0])))
            else:
                state = _under_way(machine, "bulk")
                copy = _Copy(one, mine, state.groups[mine], goal, np.array([place]), data[None], "global")
                state.copies.append(copy)

    return step


MAKERS: dict[str, Callable[[Program, Instruction], Step]] = {
    "cp.async.commit_group": _commit,
    "cp.async.wait_group": _wait,
    "cp.async.wait_all": _wait,
    "cp.async.mbarrier": _arrive_at_mbarrier,
    "cp.async.bulk": _bulk,
    "cp.async.bulk.commit_group": _commit,
    "cp.async.bulk.wait_group": _wait,
    "cp.async": _copy,
}
