"""What each instruction does: branches and calls, loads and stores, arithmetic. Those of a family stand in its module.

:func:`decode` looks an instruction up once; what it gives is called each time that threads come to it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuconv.lab.ptx import (
    arithmetic,
    asynchronous,
    atomics,
    barriers,
    conversion,
    external,
    matrix,
    mbarriers,
    warps,
    wgmma,
    wmma,
)
from gpuconv.lab.ptx.memory import BLOCK, LOCAL, SHARED, elements, put
from gpuconv.lab.ptx.program import SPACES, Instruction, Program
from gpuconv.lab.ptx.values import (
    ENDED,
    NARROW,
    PREDICATE,
    TYPES,
    U32,
    U64,
    Lanes,
    PtxError,
    constant,
    register_type,
)

if TYPE_CHECKING:
    from gpuconv.lab.ptx.machine import Machine, Step


def decode(program: Program, one: Instruction) -> Step:
    """What an instruction does.

    Raises:
        PtxError: it is not known here.
    """
    try:
        for length in (4, 3, 2, 1):
            make = _MAKERS.get(".".join(one.parts[:length]))
            if make is not None:
                return make(program, one)
        return _arithmetic(program, one)
    except (KeyError, IndexError, ValueError, StopIteration) as error:
        raise PtxError(f"{one.text}: not known here ({one.place})") from error


def control(step: Step) -> Step:
    """Mark what changes where threads stand, or whether they run."""
    step.is_control = True  # type: ignore[attr-defined]
    return step


# -- operands ----------------------------------------------------------------------------------------------------------


def reader(program: Program, operand: str, dtype: np.dtype[Any]) -> Callable[[Machine, Lanes], Any]:
    """A function that reads an operand; of a constant it is computed once."""
    if operand[0].isdigit() or operand[0] in "-.":
        value = constant(operand, dtype)
        return lambda machine, lanes: value
    if operand in program.registers and program.registers[operand] == dtype:
        return lambda machine, lanes: machine.registers[operand][lanes]
    return lambda machine, lanes: machine.read(operand, dtype, lanes)


# -- arithmetic --------------------------------------------------------------------------------------------------------


def _arithmetic(program: Program, one: Instruction) -> Step:
    function, kinds, result = arithmetic.decode(one)
    if isinstance(result, str):
        function = arithmetic.narrow(function, result)
    types = [register_type(kind) if isinstance(kind, str) else kind for kind in kinds]
    readers = [reader(program, name, dtype) for name, dtype in zip(one.operands[1:], types, strict=True)]
    target = one.operands[0]
    if len(readers) == 1:
        (only,) = readers
        return lambda machine, lanes: machine.write(target, function(only(machine, lanes)), lanes)
    if len(readers) == 2:
        first, second = readers
        return lambda machine, lanes: machine.write(
            target, function(first(machine, lanes), second(machine, lanes)), lanes
        )
    return lambda machine, lanes: machine.write(target, function(*(read(machine, lanes) for read in readers)), lanes)


def _mov(program: Program, one: Instruction) -> Step:
    target, source = one.operands
    if isinstance(target, tuple) or isinstance(source, tuple):
        return _repack(program, one)
    dtype = register_type(one.parts[-1])
    read = reader(program, source, dtype)
    if program.registers.get(source) == dtype and program.registers.get(target) == dtype:

        def move(machine: Machine, lanes: Lanes) -> None:
            machine.write(target, read(machine, lanes), lanes)
            if machine.pending:
                wgmma.moved(machine, target, source)

        return move
    return lambda machine, lanes: machine.write(target, read(machine, lanes), lanes)


def _repack(program: Program, one: Instruction) -> Step:
    """``mov.b64 {low, high}, value`` or the other way round."""
    target, source = one.operands
    whole = register_type(one.parts[-1])
    parts = target if isinstance(target, tuple) else source
    part = np.dtype(f"u{whole.itemsize // len(parts)}")
    shifts = [whole.type(8 * part.itemsize * number) for number in range(len(parts))]
    if isinstance(target, tuple):

        def split(machine: Machine, lanes: Lanes) -> None:
            value = machine.read(source, whole, lanes)
            for name, shift in zip(target, shifts, strict=True):
                machine.write(name, (value >> shift).astype(part), lanes)

        return split

    def join(machine: Machine, lanes: Lanes) -> None:
        values = [
            machine.read(name, part, lanes).astype(whole) << shift for name, shift in zip(source, shifts, strict=True)
        ]
        machine.write(target, np.bitwise_or.reduce(np.broadcast_arrays(*values)), lanes)

    return join


def _setp(program: Program, one: Instruction) -> Step:
    parts = one.parts
    compare = arithmetic.COMPARISONS[parts[1]]
    combine = next((arithmetic.COMBINATIONS[part] for part in parts[2:-1] if part in arithmetic.COMBINATIONS), None)
    kind = parts[-1]
    dtype = register_type(kind)
    a, b = (reader(program, operand, dtype) for operand in one.operands[1:3])
    targets = one.operands[0].split("|")
    third = one.operands[3] if combine else None
    pair = kind.endswith("x2")

    def step(machine: Machine, lanes: Lanes) -> None:
        values = [a(machine, lanes), b(machine, lanes)]
        if kind in NARROW:
            values = [arithmetic.unpacked(np.asarray(value), kind) for value in values]
        elif "ftz" in parts:
            values = [arithmetic.flushed(value) for value in values]
        found = np.asarray(compare(*values))
        if pair:
            answers = [found[0], found[1]]
        else:
            answers = [found, ~found]
        if combine is not None:
            other = machine.read(str(third), PREDICATE, lanes)
            answers = [combine(answer, other) for answer in answers]
        for name, answer in zip(targets, answers, strict=False):
            machine.write(name, answer, lanes)

    return step


def _set(program: Program, one: Instruction) -> Step:
    """``set``: a comparison whose result is a number, -1 or 1.0."""
    parts = one.parts
    compare, target, kind = arithmetic.COMPARISONS[parts[1]], parts[-2], parts[-1]
    dtype, result = register_type(kind), register_type(target)
    if len(one.operands) > 3:
        one.unknown()

    def step(machine: Machine, lanes: Lanes) -> None:
        values: list[Any] = [machine.read(operand, dtype, lanes) for operand in one.operands[1:3]]
        if kind in NARROW:
            values = [arithmetic.unpacked(np.asarray(value), kind) for value in values]
        found = np.asarray(compare(*values))
        if target in NARROW and target not in ("u16x2", "s16x2"):
            machine.write(one.operands[0], arithmetic.packed(found.astype(np.float32), target), lanes)
        elif result.kind == "f":
            machine.write(one.operands[0], found.astype(result), lanes)
        elif kind.endswith("x2"):
            ones = np.where(found, np.uint32(0xFFFF), np.uint32(0))
            machine.write(one.operands[0], ones[0] | ones[1] << np.uint32(16), lanes)
        else:
            machine.write(one.operands[0], np.where(found, ~result.type(0), result.type(0)), lanes)

    return step


def _predicates(program: Program, one: Instruction) -> Step:
    """``and.pred`` and its like."""
    function = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor, "not": np.logical_not}[one.parts[0]]
    target, *sources = one.operands

    def step(machine: Machine, lanes: Lanes) -> None:
        machine.write(target, function(*(machine.read(name, PREDICATE, lanes) for name in sources)), lanes)

    return step


def _carried(program: Program, one: Instruction) -> Step:
    """``add.cc``, ``addc``, ``sub.cc``, ``subc``, ``mad.lo.cc``, ``madc.hi``."""
    parts = one.parts
    name, dtype = parts[0], TYPES[parts[-1]]
    half = next((part for part in parts if part in ("lo", "hi")), "")
    target, *sources = one.operands

    def step(machine: Machine, lanes: Lanes) -> None:
        values = [machine.read(operand, dtype, lanes) for operand in sources]
        carry = machine.carry[lanes] if name.endswith("c") else np.zeros(machine.size(lanes), bool)
        found, out = arithmetic.carried(name.removesuffix("c"), half, values, carry)
        machine.write(target, found, lanes)
        if "cc" in parts:
            machine.carry[lanes] = out

    return step


def _convert(program: Program, one: Instruction) -> Step:
    function, types, _ = conversion.decode(one)
    readers = [reader(program, name, dtype) for name, dtype in zip(one.operands[1:], types, strict=True)]
    target = one.operands[0]
    return lambda machine, lanes: machine.write(target, function(*(read(machine, lanes) for read in readers)), lanes)


# -- addresses ---------------------------------------------------------------------------------------------------------


def _cvta(program: Program, one: Instruction) -> Step:
    """From an address in a space to a generic one, or back."""
    space = next((part for part in one.parts if part in SPACES), "global")
    window = {"shared": SHARED, "local": LOCAL}.get(space, 0)
    shift = np.uint64(window if "to" not in one.parts else -window & (2**64 - 1))
    target, source = one.operands
    read = reader(program, source, U64)
    return lambda machine, lanes: machine.write(target, read(machine, lanes) + shift, lanes)


def _mapa(program: Program, one: Instruction) -> Step:
    """``mapa``: the address of the same place in the shared memory of another block of the cluster."""
    target, source, rank = one.operands
    start = 0 if "shared::cluster" in one.parts else SHARED
    dtype = TYPES[one.parts[-1]]
    read = reader(program, source, dtype)

    def step(machine: Machine, lanes: Lanes) -> None:
        number = machine.column(rank, U32, lanes).astype(np.uint64)
        if (number >= machine.cluster).any():
            one.fails(f"block {int(number.max())} of a cluster of {machine.cluster}")
        inside = (np.asarray(read(machine, lanes)).astype(np.uint64) - np.uint64(start)) % np.uint64(BLOCK)
        found = inside + (number + np.uint64(1)) * np.uint64(BLOCK) + np.uint64(start)
        machine.write(target, found.astype(dtype), lanes)

    return step


def _getctarank(program: Program, one: Instruction) -> Step:
    """``getctarank``: which block of the cluster an address is of."""
    target, source = one.operands
    start = 0 if "shared::cluster" in one.parts else SHARED
    read = reader(program, source, TYPES[one.parts[-1]] if one.parts[-1] in ("u32", "u64") else U64)

    def step(machine: Machine, lanes: Lanes) -> None:
        given = np.broadcast_to(np.asarray(read(machine, lanes)), (machine.size(lanes),)).astype(np.int64) - start
        own = machine.block[lanes] - machine.first_block[lanes]
        machine.write(target, np.where(given >= BLOCK, given // BLOCK - 1, own).astype(np.uint32), lanes)

    return step


def _isspacep(program: Program, one: Instruction) -> Step:
    """Whether a generic address is in a space."""
    space = one.parts[1]

    def step(machine: Machine, lanes: Lanes) -> None:
        address = machine.read(one.operands[1], U64, lanes)
        window = np.uint64({"shared": SHARED, "local": LOCAL}.get(space, 0))
        inside = (address >> np.uint64(56)) == (window >> np.uint64(56))
        machine.write(one.operands[0], inside if space != "const" else np.zeros_like(inside), lanes)

    return step


# -- loads and stores --------------------------------------------------------------------------------------------------


def _vector(one: Instruction) -> int:
    return next((int(part[1:]) for part in one.parts if re.fullmatch(r"v\d", part)), 1)


def _load(program: Program, one: Instruction) -> Step:
    space = one.space
    dtype = register_type(one.parts[-1])
    names = one.operands[0] if isinstance(one.operands[0], tuple) else (one.operands[0],)
    place, size = one.operands[1], dtype.itemsize * len(names)
    base, _, offset = place[1:-1].partition("+")
    if space == "param" and base in program.variables:
        return _load_parameter(one, names, dtype, base, int(offset or "0", 0))
    constant_cache = "nc" in one.parts
    asks = bool({"volatile", "relaxed", "acquire", "mmio"} & set(one.parts))

    def load(machine: Machine, lanes: Lanes) -> None:
        address = machine.address(place, lanes)
        pieces = machine.pieces(one, space, address, lanes, size)
        machine.questions += asks
        found = np.empty((len(names), len(address)), dtype)
        for piece in pieces:
            view, index = elements(piece.memory, piece.offsets, dtype, len(names))
            found[:, piece.chosen] = view[index].T
            if piece.space == "global" and constant_cache:
                machine.memory.read_only[piece.number] = True
            elif piece.space == "shared" and machine.shadow is not None:
                machine.shadow.read(one, piece.offsets, size, machine.lanes(lanes)[piece.chosen])
        for name, column in zip(names, found, strict=True):
            machine.write(name, column, lanes)

    return load


def _load_parameter(one: Instruction, names: tuple[str, ...], dtype: np.dtype[Any], base: str, offset: int) -> Step:
    def load(machine: Machine, lanes: Lanes) -> None:
        held = machine.parameters.get(base)
        if held is None:  # Numba reads the result of a function in C that has none, and does nothing with it
            held = np.full(offset + dtype.itemsize * len(names), 255, np.uint8)
        for number, name in enumerate(names):
            start = offset + number * dtype.itemsize
            if held.ndim == 1:
                value: Any = held[start : start + dtype.itemsize].view(dtype)[0]
            else:
                value = np.ascontiguousarray(held[lanes, start : start + dtype.itemsize]).view(dtype)[:, 0]
            machine.write(name, value, lanes)

    return load


def _store(program: Program, one: Instruction) -> Step:
    space = one.space
    dtype = register_type(one.parts[-1])
    place, values = one.operands
    names = values if isinstance(values, tuple) else (values,)
    size = dtype.itemsize * len(names)
    base, _, offset = place[1:-1].partition("+")
    readers = [reader(program, name, dtype) for name in names]
    if space == "param" and base in program.variables:
        start = int(offset or "0", 0)

        def keep(machine: Machine, lanes: Lanes) -> None:
            for number, read in enumerate(readers):
                column = np.ascontiguousarray(np.broadcast_to(read(machine, lanes), (machine.size(lanes),)))
                raw = column.view(np.uint8).reshape(len(column), dtype.itemsize)
                machine.set_parameter(base, raw, lanes, start + number * dtype.itemsize)

        return keep
    if space == "const":
        one.unknown()

    def store(machine: Machine, lanes: Lanes) -> None:
        address = machine.address(place, lanes)
        pieces = machine.pieces(one, space, address, lanes, size)
        given = np.empty((len(address), len(names)), dtype)
        for number, read in enumerate(readers):
            given[:, number] = read(machine, lanes)
        for piece in pieces:
            put(machine, one, piece.memory, piece.offsets, given[piece.chosen], lanes, piece.chosen, piece.space)
            if piece.space == "global":
                machine.memory.written[piece.number] = True

    return store


# -- control -----------------------------------------------------------------------------------------------------------


def _branch(program: Program, one: Instruction) -> Step:
    target = program.target(one, one.operands[0])

    def step(machine: Machine, lanes: Lanes) -> None:
        machine.at[lanes] = target

    return control(step)


def _branch_by_number(program: Program, one: Instruction) -> Step:
    """``brx.idx``: to one of the labels of a table."""
    index, table = one.operands
    targets = np.array([program.target(one, label) for label in program.tables[table]])

    def step(machine: Machine, lanes: Lanes) -> None:
        machine.at[lanes] = targets[machine.read(index, U32, lanes)]

    return control(step)


def _return(program: Program, one: Instruction) -> Step:
    return control(lambda machine, lanes: machine.leave(lanes))


def _exit(program: Program, one: Instruction) -> Step:
    def step(machine: Machine, lanes: Lanes) -> None:
        machine.state[lanes] = ENDED

    return control(step)


def _trap(program: Program, one: Instruction) -> Step:
    def step(machine: Machine, lanes: Lanes) -> None:
        one.fails(f"reached by {machine.name(int(machine.lanes(lanes)[0]))}")

    return step


def _call(program: Program, one: Instruction) -> Step:
    operands = list(one.operands)
    results = operands.pop(0) if isinstance(operands[0], tuple) and len(operands) > 1 else ()
    callee = operands.pop(0)
    arguments: tuple[str, ...] = operands.pop(0) if operands and isinstance(operands[0], tuple) else ()
    if callee in external.FUNCTIONS and program.functions[callee].start is None:
        return external.call(program, one, callee, arguments, results)

    def enter(machine: Machine, name: str, lanes: Lanes) -> None:
        function = program.functions[name]
        if function.start is None:
            raise PtxError(f"the function {name} is defined in no module that is known here")
        for source, target in zip(arguments, function.parameters, strict=True):
            machine.set_parameter(target, machine.parameters[source][lanes], lanes)
        machine.call(function, lanes)

    def step(machine: Machine, lanes: Lanes) -> None:
        if callee in program.functions:
            enter(machine, callee, lanes)
            return
        names = {address: name for name, address in machine.loaded.code.items()}
        address, numbers = machine.column(callee, U64, lanes), machine.lanes(lanes)
        for which in np.unique(address):
            enter(machine, names[int(which)], numbers[address == which])

    return control(step)


def _sleep(program: Program, one: Instruction) -> Step:
    """``nanosleep``: others get their turn."""

    def step(machine: Machine, lanes: Lanes) -> None:
        machine.questions += 2

    return step


def _nothing(program: Program, one: Instruction) -> Step:
    return lambda machine, lanes: None


def _by_type(program: Program, one: Instruction) -> Step:
    """Logic of predicates or of numbers."""
    return (_predicates if one.parts[-1] == "pred" else _arithmetic)(program, one)


def _maybe_carried(program: Program, one: Instruction) -> Step:
    return (_carried if "cc" in one.parts else _arithmetic)(program, one)


def _not_known(program: Program, one: Instruction) -> Step:
    one.unknown()


_MAKERS: dict[str, Callable[[Program, Instruction], Step]] = {
    "mov": _mov,
    "setp": _setp,
    "set": _set,
    **dict.fromkeys(("and", "or", "xor", "not"), _by_type),
    **dict.fromkeys(("add", "sub", "mad"), _maybe_carried),
    **dict.fromkeys(("addc", "subc", "madc"), _carried),
    "cvt": _convert,
    "cvta": _cvta,
    "isspacep": _isspacep,
    "mapa": _mapa,
    "getctarank": _getctarank,
    "ld": _load,
    "ldu": _load,
    "st": _store,
    "bra": _branch,
    "brx.idx": _branch_by_number,
    "ret": _return,
    "exit": _exit,
    "trap": _trap,
    "brkpt": _trap,
    "call": _call,
    **dict.fromkeys(("prefetch", "prefetchu", "discard", "applypriority", "pmevent"), _nothing),
    **dict.fromkeys(("griddepcontrol", "setmaxnreg"), _nothing),
    "nanosleep": _sleep,
    **atomics.MAKERS,
    **warps.MAKERS,
    **barriers.MAKERS,
    **mbarriers.MAKERS,
    **asynchronous.MAKERS,
    **matrix.MAKERS,
    **wgmma.MAKERS,
    **wmma.MAKERS,
    **dict.fromkeys(("tcgen05", "tex", "tld4", "suld", "sust"), _not_known),
}
