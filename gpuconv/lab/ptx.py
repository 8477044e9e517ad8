"""Runs compiled kernels on the CPU: an interpreter of the PTX that Numba and NVVM generate.

    from gpuconv.lab import ptx

    with ptx.interpreted():                  # NUMBA_ENABLE_CUDASIM=0, with numba-cuda's compiler; no driver, no GPU
        module.launch(x, weight, bias, out, geometry, tiling, None)     # NumPy arrays, used in place

``gpuconv.lab.simulator`` runs a kernel's Python code, with Python versions of its intrinsics, and finds races. This
module runs the code that the GPU's driver would get: types as Numba inferred them, the intrinsics' own code and inline
PTX, vector loads, shuffles, the order of arguments. Only a GPU can show whether ptxas and the hardware treat that code
as the PTX manual says, and how long it takes.

**How it works.** All threads of some blocks run side by side: a register is an array with one element for each thread.
At each point, the threads that are furthest behind in the code run next; this brings threads that took different
branches together again after the branch. A barrier holds a thread until all threads of its block have arrived. Every
access to memory must lie in an array that the launch was given, or in the block's shared memory, and must be aligned to
its size. A launch must not write what it reads with ``ld.global.nc``. Shared memory starts as NaN (all bits set). The
interpreter knows the instructions that NVVM generates for this project's kernels, and raises :class:`PtxError` for
others.

Where the manual leaves the rounding open (``ex2.approx``, ``rcp.approx``), results are rounded once. So is ``fma``,
except for rare sums that do not fit into float64.

Source of semantics: NVIDIA, Parallel Thread Execution ISA, chapters 9.7.1 (integers), 9.7.3 (floats), 9.7.9 (data
movement), 9.7.13 (barriers).
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

__all__ = ["Executed", "Program", "PtxError", "count", "interpreted", "run"]

Array: TypeAlias = np.ndarray[Any, Any]
#: Which threads take part: all, or the numbers of some.
Lanes: TypeAlias = "slice | Array"
_ALL = slice(None)
_WARP = 32
#: Threads that run side by side: as many as have their registers in a CPU's second-level cache.
_LANES = 8192


class PtxError(RuntimeError):
    """The code does something that is undefined on a GPU, or has an instruction that the interpreter does not know."""


# -- reading -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Instruction:
    """One instruction, with its operands as text; those in braces are a tuple."""

    opcode: str
    operands: tuple[Any, ...]
    #: Register that decides which threads take part, and which value of it does.
    predicate: str | None
    wanted: bool
    text: str


@dataclass
class Program:
    """A kernel in PTX.

    Attributes:
        parameters: name of each parameter -> its type (``u64``, ``f32``...), in order.
        shared: offset of each shared array in a block's memory.
        shared_bytes: bytes of all of them.
        instructions: in order.
        labels: label -> number of the instruction after it.
    """

    parameters: dict[str, str] = field(default_factory=dict)
    shared: dict[str, int] = field(default_factory=dict)
    shared_bytes: int = 0
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Program:
        """Read the PTX of a module with one kernel.

        Raises:
            PtxError: there is more than one kernel, or something unknown.
        """
        program = cls()
        text = re.sub(r"//[^\n]*", "", text)
        head, _, rest = text.partition(".entry")
        signature, _, body = rest.partition("{")
        if ".func" in text or ".entry" in rest or "call" in body:
            raise PtxError("a kernel that calls functions: only modules of one kernel are known here")
        for kind, name in re.findall(r"\.param\s+\.(\w+)\s+(\w+)", signature):
            program.parameters[name] = kind
        for align, name, size in re.findall(r"\.shared\s+\.align\s+(\d+)\s+\.b8\s+(\w+)\[(\d*)\]", head + body):
            if size:  # dynamic shared memory has none
                offset = -(-program.shared_bytes // int(align)) * int(align)
                program.shared[name], program.shared_bytes = offset, offset + int(size)
            else:
                program.shared[name] = -1
        #: For each open scope, the registers declared in it, under unique names.
        scopes: list[dict[str, str]] = []
        # Labels end with a colon, everything else with a semicolon; braces enclose scopes or operands.
        for statement in re.split(r"[;\n]|(?<=:)", body):
            text = " ".join(statement.split())
            while text.startswith(("{", "}")):
                if text[0] == "{":
                    scopes.append({})
                elif scopes:  # the last brace is the body's
                    scopes.pop()
                text = text[1:].strip()
            if scopes and (found := re.fullmatch(r"\.reg \.\w+ ([%\w]+)", text)):
                scopes[-1][found[1]] = f"{found[1]}.{len(program.instructions)}"
            elif text and not text.startswith("."):
                for scope in reversed(scopes):
                    text = _renamed(text, scope)
                program._add(text)
        return program

    def _add(self, text: str) -> None:
        if re.fullmatch(r"\$?\w+:", text):
            self.labels[text[:-1]] = len(self.instructions)
            return
        found = re.fullmatch(r"(?:@(!?)([%\w.]+)\s+)?([a-z][\w.]*)\s*(.*)", text)
        if found is None:
            raise PtxError(f"not an instruction: {text}")
        negated, predicate, opcode, operands = found.groups()
        parts = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+", operands)
        split = tuple(tuple(re.findall(r"[^,\s{}]+", part)) if part.startswith("{") else part for part in parts)
        self.instructions.append(Instruction(opcode, split, predicate, negated != "!", text))


def _renamed(text: str, names: dict[str, str]) -> str:
    return re.sub(r"[%\w.]+", lambda found: names.get(found[0], found[0]), text)


# -- values ------------------------------------------------------------------------------------------------------------

#: Type suffix -> NumPy's type. Bits are taken for unsigned numbers.
_TYPES = {
    f"{kind}{bits}": np.dtype(f"{numpy}{bits // 8}")
    for kind, numpy in (("u", "u"), ("s", "i"), ("b", "u"), ("f", "f"))
    for bits in (8, 16, 32, 64)
    if bits > 8 or kind != "f"
}
_PREDICATE = np.dtype(bool)
_TYPES["pred"] = _PREDICATE


def _register_type(name: str) -> np.dtype[Any]:
    """Of the register itself, by the names that NVVM gives."""
    if name.startswith("%temp"):
        return _TYPES["u32"]
    kind = re.match(r"%([a-z]+)", name)
    types = {"p": "pred", "rs": "u16", "r": "u32", "rd": "u64", "f": "f32", "fd": "f64"}
    return _TYPES[types[kind.group(1)]] if kind else _PREDICATE


def _constant(text: str, dtype: np.dtype[Any]) -> Any:
    if text.startswith(("0f", "0F")):
        return np.array(int(text[2:], 16), np.uint32).view(np.float32)[()]
    if text.startswith(("0d", "0D")):
        return np.array(int(text[2:], 16), np.uint64).view(np.float64)[()]
    number = int(text.rstrip("U"), 0)
    if dtype.kind == "f":  # bits, as of mov.b32 %f1, 0
        return np.array(number, f"u{dtype.itemsize}").view(dtype)[()]
    if dtype == _PREDICATE:
        return np.bool_(number)
    return np.array(number & (256**dtype.itemsize - 1), f"u{dtype.itemsize}").view(dtype)[()]


def _as(value: Any, dtype: np.dtype[Any]) -> Any:
    """The same bits as another type; a narrower type takes the lower end of its register."""
    if value.dtype == dtype:
        return value
    if value.dtype.itemsize > dtype.itemsize:
        value = value.astype(f"u{dtype.itemsize}")
    elif value.dtype.itemsize < dtype.itemsize:
        value = value.astype(dtype)
    return value.view(dtype)


# -- arithmetic --------------------------------------------------------------------------------------------------------


def _wide(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(f"{dtype.kind}{2 * dtype.itemsize}")


def _fma(a: Any, b: Any, c: Any) -> Any:
    if a.dtype == np.float64:
        return a * b + c
    # The product of two float32 is exact in float64.
    return (a.astype(np.float64) * b.astype(np.float64) + c.astype(np.float64)).astype(np.float32)


def _fma_down(a: Any, b: Any, c: Any) -> Any:
    exact = a.astype(np.float64) * b.astype(np.float64) + c.astype(np.float64)
    rounded = exact.astype(np.float32)
    return np.where(rounded > exact, np.nextafter(rounded, np.float32(-np.inf)), rounded)


def _shift(a: Any, count: Any, *, left: bool) -> Any:
    bits = 8 * a.dtype.itemsize
    beyond = count >= bits
    count = np.minimum(count, bits - 1).astype(a.dtype)
    if left:
        return np.where(beyond, a.dtype.type(0), a << count)
    return np.where(beyond, a.dtype.type(0), a >> count) if a.dtype.kind == "u" else a >> count


def _insert(a: Any, b: Any, position: Any, length: Any) -> Any:
    """Insert the lower bits of ``a`` into ``b``; position and length are constants."""
    mask = b.dtype.type(((1 << int(length)) - 1) << int(position) & (256**b.dtype.itemsize - 1))
    return (b & ~mask) | ((a << b.dtype.type(int(position))) & mask)


def _permute(a: Any, b: Any, selector: Any) -> Any:
    """Bytes of ``b`` and ``a``, 7 to 0, picked by the four digits of a constant, of which the highest bits are zero."""
    if int(selector) & 0x8888:
        raise PtxError(f"prmt with the selector {int(selector):#x}: not known here")
    both = a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32)
    digits = [int(selector) >> 4 * i & 7 for i in range(4)]
    parts = [(both >> np.uint64(8 * digit) & np.uint64(255)) << np.uint64(8 * i) for i, digit in enumerate(digits)]
    return (parts[0] | parts[1] | parts[2] | parts[3]).astype(np.uint32)


def _quotient(a: Any, b: Any) -> Any:
    """Quotient of integers, rounded towards zero."""
    if a.dtype.kind == "f":
        return a / b
    return (a - np.fmod(a, b)) // b


def _minimum(a: Any, b: Any) -> Any:
    """The minimum; of a NaN and a number, the number."""
    return np.fmin(a, b) if a.dtype.kind == "f" else np.minimum(a, b)


def _maximum(a: Any, b: Any) -> Any:
    return np.fmax(a, b) if a.dtype.kind == "f" else np.maximum(a, b)


_ARITHMETIC: dict[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,  # of floats
    "mul.lo": lambda a, b: a * b,
    "mul.wide": lambda a, b: a.astype(_wide(a.dtype)) * b.astype(_wide(a.dtype)),
    "mul.hi": lambda a, b: ((a.astype(_wide(a.dtype)) * b.astype(_wide(a.dtype))) >> (8 * a.dtype.itemsize)).astype(
        a.dtype
    ),
    "mad.lo": lambda a, b, c: a * b + c,
    "fma": _fma,
    "fma.rn": _fma,
    "fma.rm": _fma_down,
    "div": _quotient,
    "rem": lambda a, b: np.fmod(a, b),
    "neg": lambda a: -a,
    "abs": abs,
    "sqrt": np.sqrt,
    "ex2": np.exp2,
    "rcp": lambda a: 1 / a,
    "min": _minimum,
    "max": _maximum,
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "not": lambda a: ~a,
    "shl": functools.partial(_shift, left=True),
    "shr": functools.partial(_shift, left=False),
    "bfi": _insert,
    "prmt": _permute,
    "selp": lambda a, b, p: np.where(p, a, b),
    "mov": lambda a: a,
}
_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: (a != b) & (a == a) & (b == b),  # false where one is a NaN
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "equ": lambda a, b: ~((a < b) | (a > b)),
    "neu": lambda a, b: a != b,
    "ltu": lambda a, b: ~(a >= b),
    "leu": lambda a, b: ~(a > b),
    "gtu": lambda a, b: ~(a <= b),
    "geu": lambda a, b: ~(a < b),
    "num": lambda a, b: (a == a) & (b == b),
    "nan": lambda a, b: (a != a) | (b != b),
}
#: Parts of an opcode that change no result here: rounding to nearest, and whether denormal numbers are flushed.
_IGNORED = {"rn", "approx", "ftz", "full", "uni", "sync"}


# -- memory ------------------------------------------------------------------------------------------------------------


class _Global:
    """The arrays that a launch was given, at their own addresses."""

    def __init__(self, arrays: Sequence[Array]):
        found = {array.__array_interface__["data"][0]: array for array in arrays if array.nbytes}
        self._bytes = [found[start].reshape(-1).view(np.uint8) for start in sorted(found)]
        self._starts = np.array(sorted(found), np.uint64)
        self._ends = self._starts + np.array([one.nbytes for one in self._bytes], np.uint64)
        #: For each array whether the launch has written, or has read through the read-only cache.
        self.written = np.zeros(len(found), bool)
        self.read_only = np.zeros(len(found), bool)

    def at(self, address: Array, size: int, text: str) -> Iterator[tuple[int, Any, Array, Array]]:
        """For each array that is meant: its number, its bytes, which of the addresses, and offsets in it."""
        which = np.searchsorted(self._starts, address, "right") - 1
        inside = (which >= 0) & (address + np.uint64(size) <= self._ends[which])
        if not inside.all():
            raise PtxError(f"{text}: {np.count_nonzero(~inside)} of {inside.size} accesses are in no array")
        if (address % np.uint64(size)).any():
            raise PtxError(f"{text}: misaligned")
        first = int(which[0])
        if (which == first).all():
            yield first, self._bytes[first], np.arange(which.size), (address - self._starts[first]).astype(np.int64)
            return
        for number in np.unique(which):
            chosen = np.flatnonzero(which == number)
            yield (
                int(number),
                self._bytes[number],
                chosen,
                (address[chosen] - self._starts[number]).astype(np.int64),
            )


def _elements(memory: Array, offsets: Array, dtype: np.dtype[Any], count: int) -> tuple[Array, Array]:
    """A view of memory as elements, and where in it ``count`` of them lie, a row for each offset."""
    view = memory[: memory.size // dtype.itemsize * dtype.itemsize].view(dtype)
    return view, (offsets // dtype.itemsize)[:, None] + np.arange(count)


# -- running -----------------------------------------------------------------------------------------------------------

_RUNNING, _AT_BARRIER, _ENDED = 0, 1, 2
_SPECIAL = re.compile(r"%(tid|ntid|ctaid|nctaid)\.([xyz])|%laneid")


class _Blocks:
    """Some blocks of a launch, run from the first instruction to the last."""

    def __init__(
        self,
        program: Program,
        parameters: dict[str, Any],
        memory: _Global,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        numbers: range,
        dynamic_bytes: int,
    ):
        self.program, self.parameters, self.memory = program, parameters, memory
        self.threads = math.prod(block)
        self.count = len(numbers) * self.threads
        thread, number = np.arange(self.count) % self.threads, np.repeat(np.array(numbers), self.threads)
        self.block = np.arange(self.count) // self.threads
        self.warp = self.block * -(-self.threads // _WARP) + thread // _WARP
        self.lane = thread % _WARP
        self.special: dict[str, Array] = {"%laneid": self.lane.astype(np.uint32)}
        for name, extents, index in (("tid", block, thread), ("ctaid", grid, number)):
            for axis, extent in zip("xyz", extents, strict=True):
                self.special[f"%{name}.{axis}"] = (index % extent).astype(np.uint32)
                self.special[f"%n{name}.{axis}"] = np.full(self.count, extent, np.uint32)
                index = index // extent
        self.shared_pitch = -(-(program.shared_bytes + dynamic_bytes) // 16) * 16
        self.shared = np.full(len(numbers) * self.shared_pitch, 255, np.uint8)
        self.registers: dict[str, Array] = {}
        self.state = np.zeros(self.count, np.int8)
        self.at = np.zeros(self.count, np.int64)
        #: The predicates of threads that wait at a barrier, to be counted.
        self.offered = np.zeros(self.count, bool)
        #: Instructions that each thread has reached.
        self.executed = np.zeros(self.count, np.int64)

    # -- operands --

    def read(self, operand: str, dtype: np.dtype[Any], lanes: Lanes) -> Any:
        if operand in self.registers:
            return _as(self.registers[operand][lanes], dtype)
        if operand in self.special:
            return _as(self.special[operand][lanes], dtype)
        if operand.startswith("%"):
            raise PtxError(f"{operand} is read before it is written")
        if operand in self.program.shared:
            offset = self.program.shared[operand]
            return dtype.type(offset if offset >= 0 else self.program.shared_bytes)
        return _constant(operand, dtype)

    def write(self, name: str, value: Any, lanes: Lanes) -> None:
        if name == "_":
            return
        if name not in self.registers:
            self.registers[name] = np.zeros(self.count, _register_type(name))
        register = self.registers[name]
        register[lanes] = _as(np.asarray(value), register.dtype)

    def address(self, operand: str, lanes: Lanes) -> Array:
        base, _, offset = operand[1:-1].partition("+")
        start = self.read(base, _TYPES["u64"], lanes)
        address = start + np.uint64(int(offset or 0) & (2**64 - 1))
        return np.broadcast_to(address, (self.count if lanes is _ALL else len(lanes),))  # type: ignore[arg-type]

    # -- instructions --

    def run(self) -> None:
        """Run all blocks to their end.

        Raises:
            PtxError: an access out of bounds, threads that wait for others that do not come, an unknown instruction.
        """
        starts = {*self.program.labels.values(), 0}
        while (ready := self.state == _RUNNING).any():
            at = int(self.at[ready].min())
            chosen = np.flatnonzero(ready & (self.at == at))
            lanes: Lanes = _ALL if len(chosen) == self.count else chosen
            self.run_from(at, lanes, starts)
            if not (self.state == _RUNNING).any():
                self.release()

    def run_from(self, at: int, lanes: Lanes, starts: set[int]) -> None:
        """Run threads that are all at one instruction, until they diverge, wait, or others may join them."""
        instructions = self.program.instructions
        while at < len(instructions):
            one = instructions[at]
            self.executed[lanes] += 1
            acting = self.acting(one, lanes)
            name = one.opcode.partition(".")[0]
            if name == "bra":
                target = self.program.labels[one.operands[0]]
                self.at[lanes] = at + 1
                self.at[acting] = target
                return
            if name in ("ret", "exit"):
                self.at[lanes] = at + 1
                self.state[acting] = _ENDED
                return
            if name == "bar":
                self.at[lanes] = at + 1
                self.state[acting] = _AT_BARRIER
                if ".red." in one.opcode:
                    self.offered[acting] = self.registers[one.operands[2]][acting]
                return
            if acting is _ALL or len(acting):  # type: ignore[arg-type]
                try:
                    self.execute(one, acting)
                except PtxError:
                    raise
                except Exception as error:
                    raise PtxError(f"{one.text}: {type(error).__name__}: {error}") from error
            at += 1
            if at in starts:
                break
        self.at[lanes] = at
        if at == len(instructions):
            raise PtxError("the code ends without a return")

    def acting(self, one: Instruction, lanes: Lanes) -> Lanes:
        if one.predicate is None:
            return lanes
        taken = self.registers[one.predicate][lanes] == one.wanted
        if taken.all():
            return lanes
        return np.flatnonzero(taken) if lanes is _ALL else lanes[taken]  # type: ignore[index]

    def release(self) -> None:
        """Let the threads at a barrier continue; all threads of their block have to be there, at the same one."""
        waiting = np.flatnonzero(self.state == _AT_BARRIER)
        for number in np.unique(self.block[waiting]):
            mine = self.block == number
            places = np.unique(self.at[mine & (self.state == _AT_BARRIER)])
            if (self.state[mine] == _ENDED).any() or len(places) > 1:
                raise PtxError("threads wait at a barrier that other threads of their block do not reach")
            barrier = self.program.instructions[places[0] - 1]
            if barrier.opcode == "bar.red.popc.u32":
                total = np.count_nonzero(self.offered[mine])
                self.write(barrier.operands[0], np.uint32(total), np.flatnonzero(mine))
            elif barrier.opcode != "bar.sync":
                raise PtxError(f"{barrier.text}: not known here")
        self.state[waiting] = _RUNNING

    def execute(self, one: Instruction, lanes: Lanes) -> None:
        parts = one.opcode.split(".")
        name, operands = parts[0], one.operands
        if name in ("ld", "st"):
            self.move(one, parts, lanes)
        elif name == "setp":
            dtype = _TYPES[parts[-1]]
            a, b = (self.read(operand, dtype, lanes) for operand in operands[1:3])
            self.write(operands[0], _COMPARISONS[parts[1]](a, b), lanes)
        elif name == "shfl":
            self.shuffle(one, parts, lanes)
        elif name == "atom":
            self.atomic(one, parts, lanes)
        elif name == "cvt":
            self.convert(parts, operands, lanes)
        elif name == "cvta":
            self.write(operands[0], self.read(operands[1], _TYPES["u64"], lanes), lanes)
        elif name == "mov" and any(isinstance(operand, tuple) for operand in operands):
            self.repack(operands, lanes)
        else:
            dtype = _TYPES[parts[-1]]
            kinds = [part for part in parts[:-1] if part not in _IGNORED]
            function = _ARITHMETIC.get(".".join(kinds))
            if function is None:
                raise PtxError(f"{one.text}: not known here")
            types = [dtype] * (len(operands) - 1)
            if name in ("shl", "shr"):
                types[1] = _TYPES["u32"]
            elif name == "bfi":
                types[2:] = [_TYPES["u32"]] * 2
            elif name == "selp":
                types[2] = _PREDICATE
            elif name == "mad" and kinds[1] == "wide":
                types[2] = _wide(dtype)
            values = [self.read(operand, kind, lanes) for operand, kind in zip(operands[1:], types, strict=True)]
            self.write(operands[0], function(*values), lanes)

    def convert(self, parts: list[str], operands: tuple[Any, ...], lanes: Lanes) -> None:
        target, source = _TYPES[parts[-2]], _TYPES[parts[-1]]
        value = self.read(operands[1], source, lanes)
        roundings: dict[str, Callable[[Any], Any]] = {
            "rni": np.rint,
            "rzi": np.trunc,
            "rmi": np.floor,
            "rpi": np.ceil,
            "sat": lambda a: np.where(np.isnan(a), a.dtype.type(0), np.clip(a, 0, 1)),
        }
        for part in parts[1:-2]:
            if part in roundings:
                value = roundings[part](value)
            elif part not in (*_IGNORED, "rz"):
                raise PtxError(f"{'.'.join(parts)}: not known here")
        self.write(operands[0], np.asarray(value).astype(target), lanes)

    def repack(self, operands: tuple[Any, ...], lanes: Lanes) -> None:
        """``mov.b64 {low, high}, value`` or the other way round."""
        target, source = operands
        if isinstance(target, tuple):
            value = self.read(source, _TYPES["u64"], lanes)
            for part, shift in zip(target, (0, 32), strict=True):
                self.write(part, ((value >> np.uint64(shift)) & np.uint64(0xFFFFFFFF)).astype(np.uint32), lanes)
        else:
            low, high = (self.read(part, _TYPES["u32"], lanes).astype(np.uint64) for part in source)
            self.write(target, low | high << np.uint64(32), lanes)

    def move(self, one: Instruction, parts: list[str], lanes: Lanes) -> None:
        """Loads and stores."""
        space, dtype = parts[1], _TYPES[parts[-1]]
        load = parts[0] == "ld"
        place, values = (one.operands[1], one.operands[0]) if load else one.operands
        if space == "param":
            self.write(values, self.parameters[place[1:-1]], lanes)
            return
        names = values if isinstance(values, tuple) else (values,)
        size = dtype.itemsize * len(names)
        address = self.address(place, lanes)
        found = None if load else np.stack([self.column(name, dtype, lanes) for name in names], 1)
        if space == "shared":
            if (address + np.uint64(size) > self.shared_pitch).any():
                raise PtxError(f"{one.text}: outside of shared memory")
            if (address % np.uint64(size)).any():
                raise PtxError(f"{one.text}: misaligned")
            offsets = address.astype(np.int64) + self.block[lanes] * self.shared_pitch
            view, index = _elements(self.shared, offsets, dtype, len(names))
            if load:
                found = view[index]
            else:
                view[index] = found
        elif space == "global":
            if load:
                found = np.empty((len(address), len(names)), dtype)
            for number, memory, chosen, offsets in self.memory.at(address, size, one.text):
                view, index = _elements(memory, offsets, dtype, len(names))
                if load:
                    found[chosen] = view[index]  # type: ignore[index]
                    self.memory.read_only[number] |= "nc" in parts
                else:
                    view[index] = found[chosen]  # type: ignore[index]
                    self.memory.written[number] = True
        else:
            raise PtxError(f"{one.text}: not known here")
        if load:
            for name, column in zip(names, found.T, strict=True):  # type: ignore[union-attr]
                self.write(name, column, lanes)

    def column(self, name: str, dtype: np.dtype[Any], lanes: Lanes) -> Array:
        return np.broadcast_to(self.read(name, dtype, lanes), (self.count if lanes is _ALL else len(lanes),))  # type: ignore[arg-type]

    def shuffle(self, one: Instruction, parts: list[str], lanes: Lanes) -> None:
        """``shfl.sync.bfly``: the value of the lane whose number differs in the bits of a mask."""
        target, value, mask, limits, members = one.operands
        if parts[2] != "bfly" or (self.read(limits, _TYPES["u32"], lanes) != _WARP - 1).any():
            raise PtxError(f"{one.text}: not known here")
        numbers = np.arange(self.count)[lanes]
        wanted = np.broadcast_to(self.read(members, _TYPES["u32"], lanes), numbers.shape)
        warps = np.zeros((int(self.warp[-1]) + 1, _WARP), bool)
        warps[self.warp[numbers], self.lane[numbers]] = True
        present = (warps << np.arange(_WARP)).sum(1)[self.warp[numbers]]
        if (present != wanted).any():
            raise PtxError(f"{one.text}: lanes take part that are not in its mask, or the other way round")
        offset = np.broadcast_to(self.read(mask, _TYPES["u32"], lanes), wanted.shape).astype(np.int64)
        partner = numbers - self.lane[numbers] + (self.lane[numbers] ^ offset)
        whole = np.broadcast_to(self.read(value, _TYPES["u32"], _ALL), (self.count,))
        name, _, valid = target.partition("|")
        self.write(name, whole[partner], lanes)
        if valid:
            self.write(valid, np.ones(len(numbers), bool), lanes)

    def atomic(self, one: Instruction, parts: list[str], lanes: Lanes) -> None:
        """``atom.global.add`` and its like; what it gives back is the value before the instruction."""
        target, place, value = one.operands
        update = {"min": np.minimum, "max": np.maximum, "add": np.add}.get(parts[2])
        if update is None or parts[1] != "global":
            raise PtxError(f"{one.text}: not known here")
        dtype = _TYPES[parts[-1]]
        address, given = self.address(place, lanes), self.column(value, dtype, lanes)
        old = np.empty(len(address), dtype)
        for number, memory, chosen, offsets in self.memory.at(address, dtype.itemsize, one.text):
            view, index = _elements(memory, offsets, dtype, 1)
            old[chosen] = view[index[:, 0]]
            update.at(view, index[:, 0], given[chosen])
            self.memory.written[number] = True
        self.write(target, old, lanes)


def _flattened(arguments: Sequence[Any], signature: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """Each array and number with its Numba type; tuples are passed one by one."""
    for argument, kind in zip(arguments, signature, strict=True):
        if isinstance(argument, tuple):
            yield from _flattened(argument, list(kind))
        else:
            yield argument, kind


def _parameters(arguments: Sequence[Any], signature: Sequence[Any]) -> tuple[list[Any], list[Array]]:
    """The parameters that Numba passes for the arguments, and the arrays among these.

    An array is passed as seven numbers: two host pointers, its number of elements, their size, its address, its shape
    and its strides.
    """
    values: list[Any] = []
    arrays: list[Array] = []
    for argument, kind in _flattened(arguments, signature):
        if isinstance(argument, np.ndarray):
            if argument.dtype.name != str(kind.dtype) or argument.ndim != kind.ndim or not argument.flags.c_contiguous:
                raise TypeError(f"an array of {argument.dtype}, shape {argument.shape}, is given for {kind}")
            address = argument.__array_interface__["data"][0]
            values += [0, 0, argument.size, argument.itemsize, address, *argument.shape, *argument.strides]
            arrays.append(argument)
        else:
            values.append(argument)
    return values, arrays


#: By kernel, types of its arguments and compute capability: the grid changes nothing of the code.
_programs: dict[Any, Program] = {}


def _program(launch: Any, cc: tuple[Any, ...]) -> Program:
    key = launch.kernel, launch.signature, cc
    if key not in _programs:
        _programs[key] = Program.parse(launch.ptx(cc))
    return _programs[key]


def run(launch: Any, arguments: Sequence[Any], cc: tuple[int, int] | tuple[int, int, str] = (9, 0, "a")) -> None:
    """Run a launch on NumPy arrays, which are read and written in place.

    Args:
        launch: a :class:`gpuconv.kernels.device.Launch`.
        arguments: arrays, numbers, and tuples of arrays, as the launch takes them.
        cc: compute capability to compile for.

    Raises:
        PtxError: see :class:`PtxError`.
        TypeError: an argument is not what the launch takes.
    """
    blocks, memory = math.prod(launch.grid), None
    step = max(1, _LANES // math.prod(launch.block))
    for first in range(0, blocks, step):
        memory = _run(launch, arguments, cc, range(first, min(blocks, first + step)), memory)[0]
    if memory is not None and (memory.written & memory.read_only).any():
        raise PtxError("an array is written that is also read through the read-only cache (ldg, ldg_if)")


@dataclass(frozen=True)
class Executed:
    """Number of executed PTX instructions, including those that a predicate turns off.

    Attributes:
        thread: the most that one thread executes.
        block: the sum over the warps of a block, averaged over two blocks. A warp counts as its longest thread; where
            its lanes diverge, it executes more.
    """

    thread: int
    block: float


def count(launch: Any, arguments: Sequence[Any], cc: tuple[int, int] | tuple[int, int, str] = (9, 0, "a")) -> Executed:
    """Run two blocks from the middle of a launch, and count the instructions that they execute.

    Machine code has fewer instructions, because several may become one (for example an address computation and the
    access), and that ratio differs from kernel to kernel. But the count shows which code is executed often, and what a
    change saves.

    Args, Raises: as :func:`run`.
    """
    blocks = math.prod(launch.grid)
    middle = max(0, blocks // 2 - 1)
    ran = _run(launch, arguments, cc, range(middle, min(blocks, middle + 2)), None)[1]
    warps = np.zeros(int(ran.warp[-1]) + 1, np.int64)
    np.maximum.at(warps, ran.warp, ran.executed)
    return Executed(int(warps.max()), float(warps.sum()) * ran.threads / ran.count)


def _run(
    launch: Any, arguments: Sequence[Any], cc: tuple[Any, ...], blocks: range, memory: _Global | None
) -> tuple[_Global, _Blocks]:
    """Run some blocks on the memory that earlier blocks left."""
    program = _program(launch, cc)
    values, arrays = _parameters(arguments, launch.signature)
    if len(values) != len(program.parameters):
        raise PtxError(f"the code takes {len(program.parameters)} parameters, the arguments are {len(values)}")
    parameters = {
        name: np.array(value).astype(_TYPES[kind])[()]
        for (name, kind), value in zip(program.parameters.items(), values, strict=True)
    }
    memory = memory or _Global(arrays)
    with np.errstate(all="ignore"):
        ran = _Blocks(program, parameters, memory, launch.grid, launch.block, blocks, launch.shared_bytes)
        ran.run()
    return memory, ran


@contextlib.contextmanager
def interpreted() -> Iterator[None]:
    """Run the launches of ``gpuconv.kernels`` inside the ``with`` block with :func:`run`, on NumPy arrays.

    Raises:
        RuntimeError: Numba's own simulator is on (NUMBA_ENABLE_CUDASIM), with which nothing can be compiled.
    """
    device: Any = importlib.import_module("gpuconv.kernels.device")
    if device.SIMULATED:
        raise RuntimeError("compiled kernels need Numba's CUDA target: set NUMBA_ENABLE_CUDASIM=0 before Python starts")

    with device.running_on_host(run):
        yield
