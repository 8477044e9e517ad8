"""Runs the threads of some blocks side by side: a register is an array with one element for each thread.

At each point, the threads that are furthest behind in the code run next; this brings threads that took different
branches together again after the branch. Those that loop while others wait get no more than their share of the turns.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from gpuconv.lab.ptx import barriers
from gpuconv.lab.ptx.memory import BLOCK, LOCAL, SHARED, WINDOW, Global, Piece, Shadow
from gpuconv.lab.ptx.program import SPECIAL, Function, Instruction, Program, initial_bytes
from gpuconv.lab.ptx.values import (
    ALL,
    ENDED,
    PARKED,
    RUNNING,
    U64,
    WAITING,
    WARP,
    Array,
    Lanes,
    PtxError,
    as_type,
    constant,
)
from gpuconv.lab.ptx.warps import Park

#: What an instruction does; gives True if the threads it was given have to be looked at anew.
Step: TypeAlias = "Callable[[Machine, Lanes], bool | None]"

#: Groups of threads that wait for their turn get one after so many turns of others, or, while others ask again and
#: again for what may change (a lock, a barrier in memory), after so many questions.
_TURNS, _QUESTIONS = 1024, 2
#: Calls within calls, of which a thread may have so many open.
_DEPTH = 32
#: First address of the functions, for calls by address.
_CODE = 1 << 58


class _Registers(dict[str, Array]):
    def __missing__(self, name: str) -> Array:
        raise PtxError(f"{name} is read before it is written")


class Loaded:
    """A program whose instructions are decoded when they are first run, with its variables in memory."""

    def __init__(self, program: Program, decode: Callable[[Program, Instruction], Step]) -> None:
        self.program = program
        self._decode = decode
        self.steps: list[Step | None] = [None] * len(program.instructions)
        starts = {function.start for function in program.functions.values() if function.start is not None}
        self.starts = {*program.labels.values(), *starts}
        names = [name for name, function in program.functions.items() if function.start is not None]
        self.code = {name: _CODE + 16 * number for number, name in enumerate(names)}
        sizes = [
            int(part[1:]) // 8
            for one in program.instructions
            if one.parts[0] in ("ld", "st", "atom", "red") and one.parts[-1][1:].isdigit()
            for part in [one.parts[-1]]
        ]
        #: The smallest access: what race detection tells apart.
        self.grain = min([size for size in sizes if size], default=4)
        self.local_bytes = sum(-(-function.local_bytes // 16) * 16 for function in program.functions.values())
        self.has_grid_barrier = "cudaCGSynchronize" in program.functions

    def step(self, at: int) -> Step:
        """What an instruction does."""
        step = self.steps[at]
        if step is None:
            step = self.steps[at] = self._decode(self.program, self.program.instructions[at])
        return step


class Variables:
    """The module's variables, of one launch."""

    def __init__(self, program: Program, memory: Global, code: dict[str, int]) -> None:
        self.addresses: dict[str, int] = dict(code)
        waiting: list[tuple[str, Array]] = []
        for name, variable in program.variables.items():
            if variable.space in ("global", "const"):
                room = np.zeros(max(variable.nbytes, variable.itemsize) + 256, np.uint8)
                begin = -room.ctypes.data % 256
                array = room[begin : begin + max(variable.nbytes, variable.itemsize)]
                self.addresses[name] = memory.add(array)
                waiting.append((name, array))
        for name, array in waiting:
            array[:] = initial_bytes(program.variables[name], self._address)

    def _address(self, name: str) -> int:
        if name not in self.addresses:
            raise PtxError(f"the variable {name} is defined in no module that is known here")
        return self.addresses[name]


class Machine:
    """Some blocks of a launch, run from the first instruction to the last."""

    def __init__(
        self,
        loaded: Loaded,
        parameters: dict[str, Array],
        memory: Global,
        variables: Variables,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        numbers: range,
        dynamic_bytes: int,
        *,
        check: bool = False,
        counting: bool = False,
        limit: float | None = None,
    ):
        self.loaded, self.program, self.memory, self.variables = loaded, loaded.program, memory, variables
        #: By name: bytes, of the kernel's for all threads, of a function's a row for each.
        self.parameters = dict(parameters)
        self.threads = math.prod(block)
        self.blocks = len(numbers)
        self.count = self.blocks * self.threads
        thread = np.arange(self.count) % self.threads
        self.block = np.arange(self.count) // self.threads
        self.warps = -(-self.threads // WARP)
        self.warp = self.block * self.warps + thread // WARP
        self.lane = thread % WARP
        self.numbers = numbers
        self.grid, self.extents = grid, block
        #: Blocks of a cluster, whose numbers follow each other; the first one of each thread's.
        self.cluster = math.prod(self.program.entry.cluster)
        self.first_block = self.block // self.cluster * self.cluster
        self._special: dict[str, Array] = {}
        self.dynamic_bytes = dynamic_bytes
        #: Dynamic shared memory begins behind the arrays of known size.
        self.dynamic_start = -(-self.program.shared_bytes // 16) * 16
        self.shared_bytes = self.dynamic_start + dynamic_bytes if dynamic_bytes else self.program.shared_bytes
        self.pitch = -(-self.shared_bytes // 1024) * 1024
        self.shared = _aligned(self.blocks * self.pitch, 255)
        self.shadow: Shadow | None = None
        if check and self.shared_bytes:
            self.shadow = Shadow(self.shared.size, loaded.grain, self.count, self.block, self.warp)
        self.local_pitch = loaded.local_bytes * (_DEPTH if self.program.is_recursive else 1)
        self.local = _aligned(self.count * self.local_pitch, 255)
        self.registers: dict[str, Array] = _Registers()
        self.carry = np.zeros(self.count, bool)
        self.state = np.zeros(self.count, np.int8)
        self.at = np.full(self.count, self.program.entry.start, np.int64)
        #: Calls that are open, and what they go back to: number of the instruction, start of the local variables.
        self.depth = np.zeros(self.count, np.int64)
        self.frame = np.zeros(self.count, np.int64)
        self.calls: list[dict[str, Any]] = []
        #: Turn in which each thread ran last.
        self.ran = np.zeros(self.count, np.int64)
        #: How often threads have asked for what others may change, since others ran.
        self.questions = 0
        #: Instructions that each thread has reached.
        self.executed = np.zeros(self.count, np.int64) if counting else None
        self.deadline = None if limit is None else time.monotonic() + limit
        self.limit = limit
        #: No thread runs that could join others at an operation of their warp.
        self.hopeless = False
        #: Registers that asynchronous products have not filled yet, and of which threads.
        self.pending: dict[str, Array] = {}
        #: What instructions keep between each other (copies under way, barriers), by the name of their module.
        self.kept: dict[str, Any] = {}

    # -- operands --

    def lanes(self, lanes: Lanes) -> Array:
        """Numbers of the threads."""
        return np.arange(self.count)[lanes]

    def size(self, lanes: Lanes) -> int:
        """How many they are."""
        return self.count if isinstance(lanes, slice) else len(lanes)

    def read(self, operand: str, dtype: np.dtype[Any], lanes: Lanes) -> Any:
        """An operand's value: an array of the threads, or a scalar if it is a constant."""
        if operand in self.registers:
            return as_type(self.registers[operand][lanes], dtype)
        if operand[0] == "%":
            if SPECIAL.fullmatch(operand):
                return as_type(self.special(operand)[lanes], dtype)
            return self.registers[operand]  # which raises
        if operand[0] == "!":
            return ~self.read(operand[1:], dtype, lanes)
        if operand in self.program.registers:
            return self.registers[operand]
        if operand[0].isdigit() or operand[0] in "-.":
            return constant(operand, dtype)
        return as_type(np.asarray(self.symbol(operand, lanes)).astype(np.uint64), dtype)

    def column(self, operand: str, dtype: np.dtype[Any], lanes: Lanes) -> Array:
        """An operand's value as an array."""
        return np.broadcast_to(self.read(operand, dtype, lanes), (self.size(lanes),))

    def write(self, name: str, value: Any, lanes: Lanes) -> None:
        """Give a register its value."""
        if name == "_":
            return
        value = np.asarray(value)
        register = self.registers.get(name)
        if register is None:
            register = np.zeros(self.count, self.program.registers.get(name, value.dtype))
            self.registers[name] = register
        register[lanes] = as_type(value, register.dtype)

    def symbol(self, name: str, lanes: Lanes) -> Any:
        """The address of a variable in its own space."""
        variable = self.program.variables.get(name)
        if variable is None or variable.space in ("global", "const"):
            if name in self.variables.addresses:
                return self.variables.addresses[name]
            raise PtxError(f"{name} is defined in no module that is known here")
        if variable.space == "shared":
            return variable.offset if variable.offset >= 0 else self.dynamic_start
        if variable.space == "local":
            return self.frame[lanes] + variable.offset
        return self.parameter_address(name)

    def parameter_address(self, name: str) -> int:
        """The address of a kernel's parameter."""
        kept = self.kept.setdefault("parameters", {})
        if name not in kept:
            array = kept[name] = _aligned(self.parameters[name].size, 0)
            array[:] = self.parameters[name]
            self.memory.add(array)
        address: int = kept[name].ctypes.data
        return address

    def address(self, operand: str, lanes: Lanes) -> Array:
        """Addresses of the operand of an access, ``[%rd1+8]``."""
        base, _, offset = operand[1:-1].partition("+")
        start = self.read(base, U64, lanes)
        address = start + np.uint64(int(offset or "0", 0) & (2**64 - 1))
        return np.broadcast_to(address, (self.size(lanes),))

    def special(self, name: str) -> Array:
        """A register that each thread has without declaring it."""
        if name not in self._special:
            self._special[name] = self._new_special(name)
        if name.startswith(("%clock", "%globaltimer")):
            return self._special.pop(name)
        return self._special[name]

    def _new_special(self, name: str) -> Array:
        kind, _, axis = name[1:].partition(".")
        whole = np.full(self.count, 0, np.uint32)
        if axis:
            place, wide = "xyz".index(axis), self.program.entry.cluster
            clusters = tuple(size // part for size, part in zip(self.grid, wide, strict=True))
            sizes = {"ntid": self.extents, "nctaid": self.grid, "nclusterid": clusters, "cluster_nctaid": wide}
            if kind in sizes:
                return whole + np.uint32(sizes[kind][place])

            def along(number: Array, extents: tuple[int, ...]) -> Array:
                return number // math.prod(extents[:place]) % extents[place]

            cluster, rank = np.divmod(np.repeat(np.array(self.numbers), self.threads), self.cluster)
            found = {
                "tid": lambda: along(np.arange(self.count) % self.threads, self.extents),
                "ctaid": lambda: along(cluster, clusters) * wide[place] + along(rank, wide),
                "clusterid": lambda: along(cluster, clusters),
                "cluster_ctaid": lambda: along(rank, wide),
            }[kind]()
            return found.astype(np.uint32)
        lane = self.lane.astype(np.uint32)
        bit = np.uint32(1) << lane
        masks = {"eq": bit, "lt": bit - 1, "le": bit | (bit - 1), "gt": ~(bit | (bit - 1)), "ge": ~(bit - 1)}
        if kind.startswith("lanemask"):
            return masks[kind[-2:]].astype(np.uint32)
        if kind.startswith(("clock", "globaltimer")):
            return np.full(self.count, time.perf_counter_ns(), np.uint64)
        known = {
            "laneid": lane,
            "warpid": (self.warp % self.warps).astype(np.uint32),
            "nwarpid": whole + np.uint32(self.warps),
            "nsmid": whole + np.uint32(1),
            "cluster_ctarank": (self.block - self.first_block).astype(np.uint32),
            "cluster_nctarank": whole + np.uint32(self.cluster),
            "is_explicit_cluster": np.full(self.count, self.cluster > 1),
            "dynamic_smem_size": whole + np.uint32(self.dynamic_bytes),
            "total_smem_size": whole + np.uint32(self.shared_bytes),
        }
        return known.get(kind, whole)

    # -- memory --

    def pieces(self, one: Instruction, space: str, address: Array, lanes: Lanes, size: int) -> list[Piece]:
        """Where the accesses of an instruction go, each of ``size`` bytes.

        Raises:
            PtxError: one is out of bounds, or not aligned.
        """
        if (address & np.uint64((size & -size) - 1)).any():
            one.fails(f"misaligned: {self._example(address % np.uint64(size) != 0, address, lanes)}")
        if space == "generic":
            low, high = int(address.min()), int(address.max())
            if high < SHARED:
                space = "global"
            elif low >= SHARED and high < SHARED + WINDOW:
                space, address = "shared", address - np.uint64(SHARED)
            elif low >= LOCAL and high < LOCAL + WINDOW:
                space, address = "local", address - np.uint64(LOCAL)
            else:
                return self._mixed(one, address, lanes, size)
        if space in ("global", "const", "param"):
            found = self.memory.at(address, size)
            if isinstance(found, np.ndarray):
                words = f"{np.count_nonzero(~found)} of {found.size} accesses are in no array"
                words = "it is in no array" if found.size == 1 else words
                one.fails(f"{words}: {self._example(~found, address, lanes)}")
            return [Piece(memory, chosen, offsets, "global", number) for number, memory, chosen, offsets in found]
        if space == "shared" and self.cluster > 1 and int(address.max()) >= BLOCK:
            return self._of_cluster(one, address, lanes, size)
        whole, limit, base = (
            (self.shared, self.shared_bytes, self.block[lanes] * self.pitch)
            if space == "shared"
            else (self.local, self.local_pitch, self.lanes(lanes) * self.local_pitch)
        )
        beyond = address + np.uint64(size) > np.uint64(limit)
        if beyond.any():
            one.fails(f"outside of {space} memory, of {limit} bytes: {self._example(beyond, address, lanes)}")
        return [Piece(whole, ALL, address.astype(np.int64) + base, space)]

    def _of_cluster(self, one: Instruction, address: Array, lanes: Lanes, size: int) -> list[Piece]:
        """Shared memory, some of it that of other blocks of the cluster."""
        rank, inside = (address // np.uint64(BLOCK)).astype(np.int64), address % np.uint64(BLOCK)
        beyond = (inside + np.uint64(size) > np.uint64(self.shared_bytes)) | (rank > self.cluster)
        if beyond.any():
            words = f"outside of shared memory, of {self.shared_bytes} bytes"
            one.fails(f"{words} in each of {self.cluster} blocks: {self._example(beyond, address, lanes)}")
        block = np.where(rank > 0, self.first_block[lanes] + rank - 1, self.block[lanes])
        return [Piece(self.shared, ALL, inside.astype(np.int64) + block * self.pitch, "shared")]

    def _mixed(self, one: Instruction, address: Array, lanes: Lanes, size: int) -> list[Piece]:
        """Generic addresses in several spaces."""
        numbers, found = self.lanes(lanes), []
        window = address >> np.uint64(56)
        for which in np.unique(window):
            chosen = np.flatnonzero(window == which)
            for piece in self.pieces(one, "generic", address[chosen], numbers[chosen], size):
                piece.chosen = chosen[piece.chosen]
                found.append(piece)
        return found

    def _example(self, wrong: Array, address: Array, lanes: Lanes) -> str:
        at = int(np.broadcast_to(wrong, address.shape).argmax())
        return f"address {int(address[at]):#x} of {self.name(int(self.lanes(lanes)[at]))}"

    def name(self, lane: int) -> str:
        """A thread, in words."""
        thread = [int(self.special(f"%tid.{axis}")[lane]) for axis in "xyz"]
        block = [int(self.special(f"%ctaid.{axis}")[lane]) for axis in "xyz"]
        return f"thread {tuple(thread)} of block {tuple(block)}"

    # -- control --

    def run(self) -> None:
        """Run all blocks to their end.

        Raises:
            PtxError: an access out of bounds, threads that wait for others that do not come, an unknown instruction.
        """
        turn = 0
        while True:
            running = self.state == RUNNING
            self.hopeless = False
            if not running.any():
                running = self.state == PARKED
                self.hopeless = True
            if not running.any():
                if (self.state == ENDED).all():
                    return
                if barriers.release_grid(self) or barriers.release_clusters(self):
                    continue
                raise PtxError(
                    f"threads wait at a barrier that other threads of their block do not reach: {self._places(WAITING)}"
                )
            turn += 1
            if self.deadline is not None and time.monotonic() > self.deadline:
                raise PtxError(f"ended after {self.limit:g} s; its threads stand at {self._places(RUNNING, WAITING)}")
            chosen = self._next(running, turn)
            lanes: Lanes = ALL if len(chosen) == self.count else chosen
            self.state[lanes] = RUNNING
            self.ran[lanes] = turn
            self._run_from(int(self.at[chosen[0]]), lanes)

    def _next(self, running: Array, turn: int) -> Array:
        """Threads at one instruction, of the deepest calls those that are furthest behind."""
        key = self.at - (self.depth << 32) if self.calls else self.at
        least = key[running].min()
        chosen = running & (key == least)
        if (turn % _TURNS == 0 or self.questions >= _QUESTIONS) and np.count_nonzero(chosen) < np.count_nonzero(
            running
        ):
            self.questions = 0
            longest = np.flatnonzero(running)[self.ran[running].argmin()]
            chosen = running & (key == key[longest])
        parked = self.state == PARKED
        if parked.any():
            parked &= (key == key[chosen.argmax()]) & np.isin(self.warp, self.warp[chosen])
            chosen |= parked
        return np.flatnonzero(chosen)

    def _run_from(self, at: int, lanes: Lanes) -> None:
        """Run threads that are all at one instruction, until they diverge, wait, or others may join them."""
        instructions, loaded, executed, starts = (
            self.program.instructions,
            self.loaded,
            self.executed,
            self.loaded.starts,
        )
        while at < len(instructions):
            one = instructions[at]
            if executed is not None:
                executed[lanes] += 1
            acting = lanes if one.predicate is None else self._acting(one, lanes)
            if isinstance(acting, slice) or len(acting):
                try:
                    step = loaded.step(at)
                    if self.pending and one.parts[0] not in ("mov", "wgmma"):
                        self._check_pending(one)
                    if getattr(step, "is_control", False):
                        self.at[lanes] = at + 1
                        step(self, acting)
                        return
                    step(self, acting)
                except Park as parked:
                    self.at[lanes] = at
                    self.state[parked.numbers] = PARKED
                    return
                except PtxError as error:
                    raise (
                        error if "(PTX line" in str(error) else PtxError(f"{one.text}: {error} ({one.place})")
                    ) from None
                except Exception as error:
                    raise PtxError(f"{one.text}: {type(error).__name__}: {error} ({one.place})") from error
            at += 1
            if at in starts:
                break
        self.at[lanes] = at
        if at == len(instructions):
            raise PtxError("the code ends without a return")

    def _acting(self, one: Instruction, lanes: Lanes) -> Lanes:
        """The threads that an instruction's predicate lets take part."""
        assert one.predicate is not None
        taken = self.read(one.predicate, np.dtype(bool), lanes) == one.wanted
        if np.all(taken):
            return lanes
        return self.lanes(lanes)[taken]

    def _check_pending(self, one: Instruction) -> None:
        for operand in one.operands:
            for name in operand if isinstance(operand, tuple) else (operand,):
                if name in self.pending:
                    one.fails(f"{name} is the result of a wgmma that no wgmma.wait_group has waited for")

    def _places(self, *states: int) -> str:
        """Where threads stand that are in one of some states."""
        chosen = np.isin(self.state, states)
        counts = Counter((self.at - (self.state == WAITING))[chosen].tolist())
        words = []
        for at, count in counts.most_common(4):
            one = self.program.instructions[min(at, len(self.program.instructions) - 1)]
            words.append(f"{one.text} ({one.place}; {count} thread{'s' * (count > 1)})")
        return ", ".join(words)

    # -- calls --

    def call(self, function: Function, lanes: Lanes) -> None:
        """Let threads that stand behind a call go to the function's start; its parameters have been set."""
        assert function.start is not None
        numbers = self.lanes(lanes)
        deepest = int(self.depth[numbers].max()) + 1
        if deepest > _DEPTH * 8:
            raise PtxError(f"calls within calls, more than {_DEPTH * 8}")
        while len(self.calls) < deepest:
            self.calls.append({"at": np.zeros(self.count, np.int64), "frame": np.zeros(self.count, np.int64)})
        for depth in np.unique(self.depth[numbers]):
            chosen = numbers[self.depth[numbers] == depth]
            record = self.calls[int(depth)]
            record["at"][chosen], record["frame"][chosen] = self.at[chosen], self.frame[chosen]
            if self.program.is_recursive:
                saved = record.setdefault("registers", {})
                for name, register in self.registers.items():
                    saved.setdefault(name, np.zeros_like(register))[chosen] = register[chosen]
                held = record.setdefault("parameters", {})
                for name, values in self.parameters.items():
                    if values.ndim == 2:
                        held.setdefault(name, np.zeros_like(values))[chosen] = values[chosen]
        caller = self._function_at(int(self.at[numbers[0]]) - 1)
        self.frame[numbers] += -(-caller.local_bytes // 16) * 16
        self.depth[numbers] += 1
        self.at[numbers] = function.start

    def leave(self, lanes: Lanes) -> None:
        """``ret``: back to the caller, or the end."""
        if not self.calls:
            self.state[lanes] = ENDED
            return
        numbers = self.lanes(lanes)
        self.state[numbers[self.depth[numbers] == 0]] = ENDED
        for depth in np.unique(self.depth[numbers]):
            if depth == 0:
                continue
            chosen = numbers[self.depth[numbers] == depth]
            function = self._function_at(int(self.at[chosen[0]]) - 1)
            results = {name: self.parameters[name][chosen] for name in function.results if name in self.parameters}
            record = self.calls[int(depth) - 1]
            self.at[chosen], self.frame[chosen] = record["at"][chosen], record["frame"][chosen]
            self.depth[chosen] -= 1
            for kind, values in (("registers", self.registers), ("parameters", self.parameters)):
                for name, saved in record.get(kind, {}).items():
                    values[name][chosen] = saved[chosen]
            for name, found in results.items():
                self.parameters[name][chosen] = found
            for number in np.unique(self.at[chosen]):
                back = chosen[self.at[chosen] == number]
                one = self.program.instructions[int(number) - 1]
                targets = one.operands[0] if function.results and isinstance(one.operands[0], tuple) else ()
                for name, source in zip(targets, function.results, strict=False):
                    self.set_parameter(name, self.parameters[source][back], back)

    def _function_at(self, at: int) -> Function:
        functions = [f for f in self.program.functions.values() if f.start is not None and f.start <= at]
        return max(functions, key=lambda function: function.start or 0)

    def set_parameter(self, name: str, values: Array, lanes: Lanes, offset: int = 0) -> None:
        """Bytes of a function's parameter or result, a row for each thread."""
        size = max(self.program.variables[name].nbytes, self.program.variables[name].itemsize)
        if name not in self.parameters:
            self.parameters[name] = np.zeros((self.count, max(size, offset + values.shape[1])), np.uint8)
        self.parameters[name][lanes, offset : offset + values.shape[1]] = values


def _aligned(nbytes: int, fill: int) -> Array:
    """Bytes that begin where every access may be aligned."""
    room = np.full(nbytes + 1024, fill, np.uint8)
    begin = -room.ctypes.data % 1024
    return room[begin : begin + nbytes]
