"""Functions that kernels call and that no module defines: printing, assertions, memory, cooperative groups."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuconv.lab.ptx import barriers
from gpuconv.lab.ptx.program import Instruction, Program
from gpuconv.lab.ptx.values import Array, Lanes, PtxError

if TYPE_CHECKING:
    from gpuconv.lab.ptx.machine import Machine, Step

_BYTE = np.dtype("u1")


def call(program: Program, one: Instruction, name: str, arguments: tuple[str, ...], results: tuple[str, ...]) -> Step:
    """What the call of such a function does."""
    function = FUNCTIONS[name]

    def step(machine: Machine, lanes: Lanes) -> None:
        values = []
        for argument in arguments:
            raw = np.ascontiguousarray(machine.parameters[argument][lanes])
            values.append(
                raw[:, : program.variables[argument].itemsize]
                .copy()
                .view(f"u{program.variables[argument].itemsize}")[:, 0]
            )
        found = function(machine, one, lanes, values)
        for result in results:
            size = program.variables[result].itemsize
            column = np.broadcast_to(np.asarray(0 if found is None else found), (machine.size(lanes),)).astype(
                f"u{size}"
            )
            machine.set_parameter(result, np.ascontiguousarray(column).view(_BYTE).reshape(-1, size), lanes)

    # A barrier of the grid stops threads; the instruction that follows is then looked up anew.
    if name == "cudaCGSynchronize":
        step.is_control = True  # type: ignore[attr-defined]
    return step


def _text(machine: Machine, one: Instruction, address: int, lane: int) -> str:
    """A string that ends with a zero byte."""
    found = bytearray()
    while True:
        byte = _bytes(machine, one, address + len(found), 1, lane)[0]
        if byte == 0:
            return found.decode(errors="replace")
        found.append(byte)


def _bytes(machine: Machine, one: Instruction, address: int, size: int, lane: int) -> bytes:
    where = np.array([address], np.uint64)
    (piece,) = machine.pieces(one, "generic", where, np.array([lane]), 1)
    offset = int(piece.offsets[0])
    return bytes(piece.memory[offset : offset + size])


_FORMAT = re.compile(r"%%|%([-+ #0]*)(\d*)(\.\d+)?(hh|h|ll|l|z|t|j|L)?([diouxXeEfFgGaAcsp])")


def _printf(machine: Machine, one: Instruction, lanes: Lanes, values: list[Array]) -> int:
    """``vprintf``: thread after thread. The arguments lie one behind the other, each aligned to its size."""
    written = []
    for lane, form, place in zip(machine.lanes(lanes), *(value.tolist() for value in values), strict=True):
        offset = 0

        def argument(found: re.Match[str], lane: int = int(lane), place: int = place) -> str:
            nonlocal offset
            if found[0] == "%%":
                return "%"
            flags, width, precision, length, kind = found.groups()
            size = 8 if kind in "eEfFgGaAsp" or length in ("l", "ll", "z", "t", "j") else 4
            offset = -(-offset // size) * size
            raw = _bytes(machine, one, place + offset, size, lane)
            offset += size
            form = f"%{flags}{width}{precision or ''}"
            if kind == "s":
                return f"{form}s" % _text(machine, one, int.from_bytes(raw, "little"), lane)
            if kind in "eEfFgGaA":
                return f"{form}{kind}" % float(np.frombuffer(raw, np.float64)[0])
            number = int.from_bytes(raw, "little", signed=kind in "di")
            return f"{form}{'#x' if kind == 'p' else 'd' if kind == 'u' else kind}" % number

        written.append(_FORMAT.sub(argument, _text(machine, one, form, int(lane))))
    sys.stdout.write("".join(written))
    return 1


def _assertion(machine: Machine, one: Instruction, lanes: Lanes, values: list[Array]) -> None:
    lane = int(machine.lanes(lanes)[0])
    message, file = (_text(machine, one, int(values[number][0]), lane) for number in (0, 1))
    raise PtxError(f"{machine.name(lane)}: {file}:{int(values[2][0])}: {message}")


def _malloc(machine: Machine, one: Instruction, lanes: Lanes, values: list[Array]) -> Array:
    kept = machine.kept.setdefault("allocated", [])
    found = np.zeros(machine.size(lanes), np.uint64)
    for number, nbytes in enumerate(values[0].tolist()):
        room = np.full(max(int(nbytes), 1) + 16, 255, np.uint8)
        begin = -room.ctypes.data % 16
        array = room[begin : begin + max(int(nbytes), 1)]
        found[number] = machine.memory.add(array)
        kept.append(room)
    return found


def _free(machine: Machine, one: Instruction, lanes: Lanes, values: list[Array]) -> None:
    for address in values[0].tolist():
        if address:
            machine.memory.remove(int(address))


def _grid_handle(machine: Machine, one: Instruction, lanes: Lanes, values: list[Array]) -> int:
    return 1


def _grid_barrier(machine: Machine, one: Instruction, lanes: Lanes, values: list[Array]) -> int:
    barriers.grid_barrier(machine, lanes)
    return 0


#: Each gets the machine, the instruction, the threads and the arguments; what it gives is the result.
FUNCTIONS: dict[str, Callable[[Machine, Instruction, Lanes, list[Array]], Any]] = {
    "vprintf": _printf,
    "__assertfail": _assertion,
    "malloc": _malloc,
    "free": _free,
    "cudaCGGetIntrinsicHandle": _grid_handle,
    "cudaCGSynchronize": _grid_barrier,
}
