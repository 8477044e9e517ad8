"""``atom`` and ``red``: updates of memory, thread after thread. Source: PTX ISA, chapters 9.7.13.5 and 9.7.13.6."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuconv.lab.ptx.arithmetic import maximum, minimum
from gpuconv.lab.ptx.memory import elements
from gpuconv.lab.ptx.program import Instruction, Program
from gpuconv.lab.ptx.values import NARROW, Array, Lanes, packed, register_type, unpacked

if TYPE_CHECKING:
    from gpuconv.lab.ptx.machine import Machine, Step

#: The new value, from the old one and what is given.
_UPDATES: dict[str, Callable[..., Any]] = {
    "add": lambda old, given: old + given,
    "min": minimum,
    "max": maximum,
    "and": lambda old, given: old & given,
    "or": lambda old, given: old | given,
    "xor": lambda old, given: old ^ given,
    "exch": lambda old, given: given,
    "inc": lambda old, given: np.where(old >= given, old.dtype.type(0), old + old.dtype.type(1)),
    "dec": lambda old, given: np.where((old == 0) | (old > given), given, old - old.dtype.type(1)),
    "cas": lambda old, expected, given: np.where(old == expected, given, old),
}
#: Those of which only the last value counts, if no thread asks for the others.
_TOTALS: dict[str, Any] = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}


def _atomic(program: Program, one: Instruction) -> Step:
    parts = one.parts
    space = one.space
    name = next(part for part in parts[1:] if part in _UPDATES)
    kind = parts[-1]
    dtype = register_type(kind)
    operands = list(one.operands)
    targets = operands.pop(0) if parts[0] == "atom" else "_"
    place, *given = operands
    names = targets if isinstance(targets, tuple) else (targets,)
    wanted = any(name != "_" and name in program.read for name in names)
    columns = [one if isinstance(one, tuple) else (one,) for one in given]
    update = _UPDATES[name]
    if kind in NARROW:
        plain = update
        update = lambda old, *v: packed(plain(unpacked(old, kind), *(unpacked(x, kind) for x in v)), kind)  # noqa: E731
    total = None if kind in NARROW or (dtype.kind == "f" and name in ("min", "max")) else _TOTALS.get(name)

    def step(machine: Machine, lanes: Lanes) -> None:
        address = machine.address(place, lanes)
        values = [np.stack([machine.column(name, dtype, lanes) for name in column], 1) for column in columns]
        size = dtype.itemsize * values[0].shape[1]
        old = np.empty(values[0].shape, dtype)
        for piece in machine.pieces(one, space, address, lanes, size):
            view, index = elements(piece.memory, piece.offsets, dtype, values[0].shape[1])
            mine = [value[piece.chosen] for value in values]
            if not wanted and total is not None:
                total.at(view, index, mine[0])
            elif name == "cas" and index.shape[1] == 1 and kind not in NARROW:
                old[piece.chosen] = exchanged(view, index[:, 0], *(value[:, 0] for value in mine))[:, None]
            else:
                old[piece.chosen] = in_turn(view, index, update, mine)
            if piece.space == "global":
                machine.memory.written[piece.number] = True
            elif piece.space == "shared" and machine.shadow is not None:
                where, _ = machine.shadow.words(piece.offsets, size, machine.lanes(lanes)[piece.chosen])
                machine.shadow.known[where] = True
                machine.shadow.writer[where] = -1
        if machine.shadow is not None:
            machine.shadow.order(lanes)
        if wanted:
            machine.questions += 1
            for number, target in enumerate(names):
                machine.write(target, old[:, number], lanes)

    return step


def exchanged(view: Array, index: Array, expected: Array, given: Array) -> Array:
    """Compare and swap, thread after thread; gives what each found. Most find another value than they expect."""
    old = np.empty(len(index), view.dtype)
    left, (places, place) = np.arange(len(index)), np.unique(index, return_inverse=True)
    while len(left):
        old[left] = view[index[left]]
        takes = left[old[left] == expected[left]]
        _, first = np.unique(place[takes], return_index=True)
        winners = takes[first]
        view[index[winners]] = given[winners]
        # All behind the winner of their element look again.
        winner = np.full(len(places), len(index))
        winner[place[winners]] = winners
        left = left[left > winner[place[left]]]
    return old


def in_turn(view: Array, index: Array, update: Callable[..., Any], values: list[Array]) -> Array:
    """Update elements, of each the first thread that means it, then the second...; gives what each found."""
    first = index[:, 0]
    order = np.argsort(first, kind="stable")
    ranked = first[order]
    starts = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]]))
    round_of = np.empty(len(first), np.int64)
    round_of[order] = np.arange(len(first)) - np.repeat(starts, np.diff([*starts, len(first)]))
    old = np.empty(index.shape, view.dtype)
    by_round = np.argsort(round_of, kind="stable")
    ends = np.cumsum(np.bincount(round_of))
    for begin, end in zip([0, *ends[:-1]], ends, strict=True):
        chosen = by_round[begin:end]
        old[chosen] = view[index[chosen]]
        view[index[chosen]] = update(old[chosen], *(value[chosen] for value in values))
    return old


MAKERS: dict[str, Callable[[Program, Instruction], Step]] = {"atom": _atomic, "red": _atomic}
