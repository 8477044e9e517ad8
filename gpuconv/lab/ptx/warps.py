"""What the lanes of a warp do together: shuffles, votes, matches. Source: PTX ISA, chapter 9.7.9.6 and 9.7.13.7 to 12.

Lanes that take part must be those of the mask. Here that means that they come to the instruction together, which
threads do that have parted and met again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuconv.lab.ptx.program import Instruction, Program
from gpuconv.lab.ptx.values import ENDED, PREDICATE, U32, WARP, Array, Lanes, register_type

if TYPE_CHECKING:
    from gpuconv.lab.ptx.machine import Machine, Step


class Park(Exception):
    """Raised by an operation of warps, before it does anything: these threads have to wait for others."""

    def __init__(self, numbers: Array) -> None:
        self.numbers = numbers


class Warps:
    """The warps of the threads that take part, as rows of 32 lanes."""

    def __init__(self, machine: Machine, lanes: Lanes) -> None:
        self.numbers = machine.lanes(lanes)
        self.which, self.row = np.unique(machine.warp[self.numbers], return_inverse=True)
        self.lane = machine.lane[self.numbers]
        self.present = self.spread(np.ones(len(self.numbers), bool), False)

    def spread(self, values: Any, fill: Any) -> Array:
        """The values of threads, a row for each warp."""
        values = np.broadcast_to(values, self.numbers.shape)
        rows = np.full((len(self.which), WARP), fill, values.dtype)
        rows[self.row, self.lane] = values
        return rows

    def gather(self, rows: Array) -> Array:
        """The other way round; one column stands for all lanes."""
        return rows[self.row, self.lane] if rows.ndim == 2 else rows[self.row]

    def mask(self, rows: Array) -> Array:
        """Truth values of lanes as bits."""
        return (rows.astype(np.uint64) << np.arange(WARP, dtype=np.uint64)).sum(1).astype(np.uint32)

    def check(self, one: Instruction, machine: Machine, members: str, lanes: Lanes) -> None:
        """Whether the mask that an instruction names is that of the lanes that take part.

        Lanes of the same warp with another mask take part in an operation of their own.
        """
        wanted = machine.column(members, U32, lanes)
        masks = self.spread(wanted, 0)
        bit = np.uint32(1) << np.arange(WARP, dtype=np.uint32)
        wrong = np.zeros(len(self.which), bool)
        # Those that have left the kernel, and those of a last warp that never were, are not waited for.
        gone = np.ones((len(self.which), WARP), bool)
        first: Any = np.searchsorted(machine.warp, self.which)
        for row, start in enumerate(first):
            stop = min(start + WARP, machine.count)
            here = machine.warp[start:stop] == self.which[row]
            gone[row, : stop - start] = ~here | (machine.state[start:stop] == ENDED)
        for column in np.unique(self.lane):
            mine = masks[:, column]
            same = self.mask((self.present & (masks == mine[:, None])) | gone)
            mine = mine | self.mask(gone)
            live = self.present[:, column]
            mismatched = live & ((same != mine) | (mine & bit[column] == 0))
            if mismatched.any() and machine.hopeless:
                at = int(mismatched.argmax())
                one.fails(
                    "lanes take part that are not in its mask, or the other way round: "
                    f"{int(same[at]):#x} of mask {int(mine[at]):#x}"
                )
            wrong |= mismatched
        if wrong.any():
            raise Park(self.numbers[wrong[self.row]])


def _checked(one: Instruction, machine: Machine, members: str, lanes: Lanes) -> Warps:
    warps = Warps(machine, lanes)
    if isinstance(lanes, slice) and machine.threads % WARP == 0 and members in ("-1", "0xffffffff", "0xFFFFFFFF"):
        return warps
    wanted = machine.read(members, U32, lanes)
    if not (warps.present.all() and np.all(wanted == np.uint32(0xFFFFFFFF))):
        warps.check(one, machine, members, lanes)
    return warps


def _shuffle(program: Program, one: Instruction) -> Step:
    """``shfl.sync``: the value of another lane; of the own one, where that is out of its segment."""
    mode, dtype = one.parts[2], register_type(one.parts[-1])
    target, value, moved, clamp, members = one.operands
    name, _, valid = target.partition("|")

    def step(machine: Machine, lanes: Lanes) -> None:
        warps = _checked(one, machine, members, lanes)
        lane = warps.lane.astype(np.int64)
        offset = machine.column(moved, U32, lanes).astype(np.int64) & 31
        limits = machine.column(clamp, U32, lanes).astype(np.int64)
        segment = limits >> 8 & 31
        last = (lane & segment) | (limits & 31 & ~segment)
        first = lane & segment
        if mode == "up":
            partner = lane - offset
            inside = partner >= last
        elif mode == "down":
            partner = lane + offset
            inside = partner <= last
        elif mode == "bfly":
            partner = lane ^ offset
            inside = partner <= last
        else:
            partner = first | (offset & ~segment & 31)
            inside = partner <= last
        partner = np.where(inside, partner, lane)
        if not warps.present[warps.row, partner].all():
            one.fails("a lane is asked for its value that does not take part")
        found = warps.spread(machine.read(value, dtype, lanes), 0)[warps.row, partner]
        machine.write(name, found, lanes)
        if valid:
            machine.write(valid, inside, lanes)

    return step


def _vote(program: Program, one: Instruction) -> Step:
    kind = one.parts[2]
    target, source, members = one.operands

    def step(machine: Machine, lanes: Lanes) -> None:
        warps = _checked(one, machine, members, lanes)
        masks = machine.column(members, U32, lanes)
        rows = warps.mask(warps.spread(machine.read(source, PREDICATE, lanes), False))
        ballot = rows[warps.row] & masks
        if kind == "ballot":
            machine.write(target, ballot, lanes)
        elif kind == "all":
            machine.write(target, ballot == masks, lanes)
        elif kind == "any":
            machine.write(target, ballot != 0, lanes)
        else:  # uni
            machine.write(target, (ballot == 0) | (ballot == masks), lanes)

    return step


def _match(program: Program, one: Instruction) -> Step:
    """``match.any``: the lanes with the same value; ``match.all``: all of them, if they have."""
    whole, dtype = one.parts[1] == "all", register_type(one.parts[-1])
    target, source, members = one.operands
    name, _, valid = target.partition("|")

    def step(machine: Machine, lanes: Lanes) -> None:
        warps = _checked(one, machine, members, lanes)
        masks = machine.column(members, U32, lanes)
        values = machine.column(source, dtype, lanes)
        same = warps.present[warps.row] & (warps.spread(values, 0)[warps.row] == values[:, None])
        found = warps.mask(same) & masks
        if whole:
            agreed = found == masks
            machine.write(name, np.where(agreed, masks, np.uint32(0)), lanes)
            if valid:
                machine.write(valid, agreed, lanes)
        else:
            machine.write(name, found, lanes)

    return step


_REDUCTIONS: dict[str, Callable[..., Any]] = {
    "add": np.add.reduce,
    "min": np.minimum.reduce,
    "max": np.maximum.reduce,
    "and": np.bitwise_and.reduce,
    "or": np.bitwise_or.reduce,
    "xor": np.bitwise_xor.reduce,
}


def _reduce(program: Program, one: Instruction) -> Step:
    """``redux.sync``: a sum, minimum... of the lanes of a mask."""
    dtype, reduce = register_type(one.parts[-1]), _REDUCTIONS[one.parts[2]]
    if dtype.kind == "f" or len(one.parts) != 4:
        one.unknown()
    target, source, members = one.operands

    def step(machine: Machine, lanes: Lanes) -> None:
        _checked(one, machine, members, lanes)
        numbers = machine.lanes(lanes)
        groups = machine.warp[numbers] << 32 | machine.column(members, U32, lanes).astype(np.int64)
        values, found = machine.column(source, dtype, lanes), np.empty(len(numbers), dtype)
        for group in np.unique(groups):
            chosen = groups == group
            found[chosen] = reduce(values[chosen]).astype(dtype)
        machine.write(target, found, lanes)

    return step


def _active(program: Program, one: Instruction) -> Step:
    """``activemask``: the lanes that are here now."""

    def step(machine: Machine, lanes: Lanes) -> None:
        warps = Warps(machine, lanes)
        machine.write(one.operands[0], warps.gather(warps.mask(warps.present)), lanes)

    return step


def _elect(program: Program, one: Instruction) -> Step:
    """``elect.sync``: one lane of the mask, here the first."""
    target, members = one.operands
    name, _, chosen = target.partition("|")

    def step(machine: Machine, lanes: Lanes) -> None:
        warps = _checked(one, machine, members, lanes)
        leader = warps.present.argmax(1)[warps.row]
        machine.write(name, leader.astype(np.uint32), lanes)
        if chosen:
            machine.write(chosen, warps.lane == leader, lanes)

    return step


def _sync(program: Program, one: Instruction) -> Step:
    """``bar.warp.sync``: orders the accesses of the lanes of its mask."""

    def step(machine: Machine, lanes: Lanes) -> None:
        _checked(one, machine, one.operands[0], lanes)
        if machine.shadow is not None:
            machine.shadow.order_warp(lanes)

    return step


MAKERS: dict[str, Callable[[Program, Instruction], Step]] = {
    "shfl.sync": _shuffle,
    "vote.sync": _vote,
    "match": _match,
    "redux.sync": _reduce,
    "activemask": _active,
    "elect.sync": _elect,
    "bar.warp.sync": _sync,
}
