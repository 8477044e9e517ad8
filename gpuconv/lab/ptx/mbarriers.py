"""``mbarrier``: a barrier in shared memory that counts arrivals, and the bytes of copies. PTX ISA, chapter 9.7.13.15.

The 64 bits of an mbarrier are nobody's business; here they are: how many arrivals a phase takes (20 bits), how many
are missing (20 bits), bytes that are under way (23 bits, with a sign), and the phase (1 bit).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gpuconv.lab.ptx.memory import elements
from gpuconv.lab.ptx.program import Instruction, Program
from gpuconv.lab.ptx.values import U32, U64, Array, Lanes, PtxError

if TYPE_CHECKING:
    from gpuconv.lab.ptx.machine import Machine, Step

_COUNT, _PENDING, _BYTES, _PHASE = (0, 20), (20, 20), (40, 23), (63, 1)


def field(word: int, place: tuple[int, int]) -> int:
    """A part of an mbarrier's word."""
    return word >> place[0] & (1 << place[1]) - 1


def _with(word: int, place: tuple[int, int], value: int) -> int:
    mask = (1 << place[1]) - 1
    return word & ~(mask << place[0]) | (value & mask) << place[0]


def settled(word: int) -> int:
    """A word after its phase has ended, if nothing is missing any more."""
    if field(word, _PENDING) or field(word, _BYTES):
        return word
    return _with(_with(word, _PENDING, field(word, _COUNT)), _PHASE, 1 - field(word, _PHASE))


def arrived(word: int, count: int = 1, nbytes: int = 0, drop: bool = False) -> int:
    """A word after ``count`` arrivals, which expect so many bytes more."""
    if field(word, _PENDING) < count:
        raise PtxError(f"{count} arrivals at an mbarrier that misses {field(word, _PENDING)}")
    word = _with(word, _BYTES, field(word, _BYTES) + nbytes)
    if drop:
        word = _with(word, _COUNT, field(word, _COUNT) - count)
    return settled(_with(word, _PENDING, field(word, _PENDING) - count))


def completed(word: int, nbytes: int) -> int:
    """A word after so many bytes have come."""
    return settled(_with(word, _BYTES, field(word, _BYTES) - nbytes))


def words(machine: Machine, one: Instruction, place: str, lanes: Lanes, space: str = "") -> tuple[Array, Array]:
    """The memory of mbarriers as 64-bit words, and where in it they lie."""
    address = machine.address(place, lanes)
    space = space or ("shared" if "shared" in one.parts else "generic")
    (piece,) = machine.pieces(one, space, address, lanes, 8)
    if piece.space != "shared":
        raise PtxError("an mbarrier that is not in shared memory")
    view, index = elements(piece.memory, piece.offsets, U64, 1)
    if machine.shadow is not None:
        where, _ = machine.shadow.words(piece.offsets, 8, machine.lanes(lanes))
        machine.shadow.known[where] = True
    return view, index[:, 0]


def _init(program: Program, one: Instruction) -> Step:
    place, count = one.operands

    def step(machine: Machine, lanes: Lanes) -> None:
        view, index = words(machine, one, place, lanes)
        expected = machine.column(count, U32, lanes).astype(np.uint64)
        view[index] = expected | expected << np.uint64(_PENDING[0])

    return step


def _arrive(program: Program, one: Instruction) -> Step:
    """``mbarrier.arrive``: gives the word before, which tells the phase that the arrival counts for."""
    parts = one.parts
    operands = list(one.operands)
    target = operands.pop(0) if not operands[0].startswith("[") else "_"
    place, *rest = operands
    if any(part.startswith("shared::cluster") for part in parts):
        parts = [*parts, "shared"]
    expecting, drop = "expect_tx" in parts, parts[1] == "arrive_drop"

    def step(machine: Machine, lanes: Lanes) -> None:
        view, index = words(machine, one, place, lanes, "shared" if "shared" in parts else "")
        given = machine.column(rest[0], U32, lanes) if rest else np.zeros(len(index), np.uint32)
        before = np.empty(len(index), np.uint64)
        for number, where in enumerate(index):
            word = int(view[where])
            before[number] = word
            value = int(given[number])
            view[where] = arrived(word, 1 if expecting or not rest else value, value if expecting else 0, drop)
        if machine.shadow is not None:
            machine.shadow.order(lanes)
        machine.write(target, before, lanes)

    return step


def _expect(program: Program, one: Instruction) -> Step:
    """``mbarrier.expect_tx`` and ``complete_tx``."""
    place, count = one.operands
    sign = 1 if one.parts[1] == "expect_tx" else -1

    def step(machine: Machine, lanes: Lanes) -> None:
        view, index = words(machine, one, place, lanes)
        for where, nbytes in zip(index, machine.column(count, U32, lanes), strict=True):
            word = int(view[where])
            word = _with(word, _BYTES, field(word, _BYTES) + sign * int(nbytes))
            view[where] = word if sign > 0 else settled(word)

    return step


def _test(program: Program, one: Instruction) -> Step:
    """``test_wait`` and ``try_wait``: whether a phase has ended. What is under way for it arrives now, not before."""
    target, place, phase = one.operands[:3]
    parity = "parity" in one.parts

    def step(machine: Machine, lanes: Lanes) -> None:
        view, index = words(machine, one, place, lanes)
        _deliver(machine, set(index.tolist()))
        machine.questions += 1
        now = (view[index] >> np.uint64(_PHASE[0])).astype(bool)
        if parity:
            asked = machine.column(phase, U32, lanes).astype(bool)
        else:
            asked = (machine.column(phase, U64, lanes) >> np.uint64(_PHASE[0])).astype(bool)
        machine.write(target, now != asked, lanes)

    return step


def _pending(program: Program, one: Instruction) -> Step:
    target, word = one.operands

    def step(machine: Machine, lanes: Lanes) -> None:
        state = machine.column(word, U64, lanes)
        machine.write(target, (state >> np.uint64(_PENDING[0]) & np.uint64(2**20 - 1)).astype(np.uint32), lanes)

    return step


def _nothing(program: Program, one: Instruction) -> Step:
    return lambda machine, lanes: None


@dataclass
class Bulk:
    """A copy to shared memory that an mbarrier counts."""

    lane: int
    memory: Array
    offset: int
    data: Array
    barrier: int


def _deliver(machine: Machine, words: set[int]) -> None:
    """Let the bytes appear that these mbarriers wait for."""
    waiting = machine.kept.get("inwards", [])
    left = []
    for copy in waiting:
        if copy.barrier not in words:
            left.append(copy)
            continue
        copy.memory[copy.offset : copy.offset + copy.data.size] = copy.data
        if machine.shadow is not None:
            where, _ = machine.shadow.words(np.array([copy.offset]), copy.data.size, np.array([copy.lane]))
            machine.shadow.known[where] = True
            machine.shadow.writer[where] = -1
        view = machine.shared.view(U64)
        view[copy.barrier] = completed(int(view[copy.barrier]), copy.data.size)
    machine.kept["inwards"] = left


MAKERS: dict[str, Callable[[Program, Instruction], Step]] = {
    "mbarrier.init": _init,
    "mbarrier.inval": _nothing,
    "mbarrier.arrive": _arrive,
    "mbarrier.arrive_drop": _arrive,
    "mbarrier.expect_tx": _expect,
    "mbarrier.complete_tx": _expect,
    "mbarrier.test_wait": _test,
    "mbarrier.try_wait": _test,
    "mbarrier.pending_count": _pending,
}
