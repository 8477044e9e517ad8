"""What a kernel became: registers, spills, and the instructions of its main loop. Needs no GPU.

    launch, *_ = gpuconv.kernels.load("conv2d", "direct").launches(geometry, tiling, "float32")
    code = compile_launch(launch, "sm_90a")
    code.registers, code.spill_bytes, code.shared_bytes
    loop = main_loop(disassemble(code.cubin))
    loop.share("FFMA"), loop.counts["LDS.128"]

The code is made as ``numba.cuda.jit`` makes it: Numba writes LTO-IR (PTX if the kernel says ``lto=False``), and
nvJitLink makes the rest. The way matters: the same kernel can take 48 registers from PTX, and 32 from LTO-IR.

nvJitLink comes with ``numba-cuda[cu13]`` (or ``[cu12]``), beside the compiler whose output it has to read. nvdisasm is
the package ``nvidia-cuda-nvdisasm``, or that of an installed CUDA toolkit.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from bench import command
from bench.command import Refused

#: A compute capability as Numba has it: ``(8, 0)``, ``(9, 0, "a")``.
ComputeCapability: TypeAlias = "tuple[int, int] | tuple[int, int, str]"

_INSTALL = "pip install 'gpuconv[lab]', or numba-cuda[cu13] and nvidia-cuda-nvdisasm"


class ToolMissing(Refused):
    """A tool is not installed, or cannot run here; says which, and what to install."""


class AssemblyError(RuntimeError):
    """nvJitLink refused the code; its log is the message."""


def versions() -> dict[str, str]:
    """Those of what machine code depends on, by package; without those that are not installed."""
    return command.versions(
        "numba-cuda", "nvidia-nvvm", "nvidia-cuda-nvcc-cu12", "nvidia-nvjitlink", "nvidia-nvjitlink-cu12"
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def compute_capability(architecture: str) -> ComputeCapability:
    """``(9, 0, "a")`` for ``"sm_90a"``.

    Raises:
        ValueError: not the name of an architecture.
    """
    match = re.fullmatch(r"sm_(\d{1,2})(\d)([af]?)", architecture)
    if match is None:
        raise ValueError(f"{architecture!r} is no architecture: write it like sm_80, sm_90a or sm_100")
    major, minor = int(match[1]), int(match[2])
    return (major, minor, match[3]) if match[3] else (major, minor)


# -- from a launch to machine code ---------------------------------------------------------------------------


@dataclass(frozen=True)
class MachineCode:
    """A kernel's machine code, and what a thread or block of it needs."""

    cubin: bytes
    #: 32-bit registers a thread.
    registers: int
    #: Bytes a thread that the compiler moved to memory for want of registers: stores and loads together.
    spill_bytes: int
    #: Bytes a thread of local memory, be it for spills or for arrays that are indexed at run time.
    local_bytes: int
    #: Bytes a block of static shared memory, without what the driver reserves.
    shared_bytes: int


def check() -> None:
    """See to it that a kernel can be compiled and disassembled here.

    Raises:
        ToolMissing: which one, and what to install.
    """
    if importlib.util.find_spec("numba_cuda") is None:
        raise ToolMissing(f"numba-cuda is not installed: {_INSTALL}")
    disassemble(assemble(b".version 7.0\n.target sm_80\n.entry kernel() { ret; }", "sm_80").cubin)
    try:
        cuda: Any = importlib.import_module("numba.cuda")
        cuda.compile(lambda: None, (), device=False, cc=(8, 0), abi="numba", output="ltoir")
    except Exception as error:  # of many kinds: NVVM or NVRTC missing, too old, of another CUDA
        raise ToolMissing(f"numba-cuda cannot compile ({_first_line(error)}): {_INSTALL}") from error


def compile_launch(launch: Any, architecture: str) -> MachineCode:
    """The machine code that a :class:`gpuconv.kernels.device.Launch` would run on an architecture.

    Raises:
        AssemblyError: nvJitLink refused the code.
        ToolMissing: nvJitLink is not installed.
    """
    # The machine code does not depend on the grid.
    return _compiled(dataclasses.replace(launch, grid=(1, 1, 1), block=(1, 1, 1), shared_bytes=0), architecture)


@functools.cache
def _compiled(launch: Any, architecture: str) -> MachineCode:
    options, cc = launch.kernel.targetoptions, compute_capability(architecture)
    code = launch.lto_ir(cc) if options.get("lto") else launch.ptx(cc).encode()
    return assemble(code, architecture, max_registers=options.get("max_registers"))


def assemble(code: bytes, architecture: str, *, max_registers: int | None = None) -> MachineCode:
    """Machine code for an architecture such as ``"sm_90a"``, from LTO-IR or from PTX with one kernel.

    Args:
        code: LTO-IR, or PTX as text in ASCII.
        architecture: what to compile for.
        max_registers: the option of the same name of ``numba.cuda.jit``.

    Raises:
        AssemblyError: nvJitLink refused the code.
        ToolMissing: nvJitLink is not installed.
    """
    try:
        nvjitlink: Any = importlib.import_module("cuda.bindings.nvjitlink")
        nvjitlink.version()
    except Exception as error:  # of many kinds: the bindings missing, the library missing, of another CUDA
        raise ToolMissing(f"nvJitLink cannot be loaded ({_first_line(error)}): {_INSTALL}") from error
    ptx = code.isascii()
    options = [f"-arch={architecture}", "-verbose"]
    if not ptx:
        options.append("-lto")
    if max_registers:
        options.append(f"-maxrregcount={max_registers}")
    try:
        handle = nvjitlink.create(len(options), options)
    except nvjitlink.nvJitLinkError as error:
        raise AssemblyError(f"{architecture}: {error}; options were {' '.join(options)}") from error
    try:
        kind = nvjitlink.InputType.PTX if ptx else nvjitlink.InputType.LTOIR
        nvjitlink.add_data(handle, kind, code, len(code), "kernel")
        nvjitlink.complete(handle)
        log = bytearray(nvjitlink.get_info_log_size(handle))
        nvjitlink.get_info_log(handle, log)
        cubin = bytearray(nvjitlink.get_linked_cubin_size(handle))
        nvjitlink.get_linked_cubin(handle, cubin)
    except nvjitlink.nvJitLinkError as error:
        log = bytearray(nvjitlink.get_error_log_size(handle))
        nvjitlink.get_error_log(handle, log)
        text = log.decode(errors="replace").strip("\0 \n")
        raise AssemblyError(f"{architecture}: {error}: {text}") from error
    finally:
        nvjitlink.destroy(handle)
    made = parse_log(log.decode(errors="replace"), bytes(cubin))
    if ptx:
        # The log tells of shared memory when it is linked, and then with or without what the driver reserves.
        made = dataclasses.replace(made, shared_bytes=_declared_shared_bytes(code.decode()))
    return made


def parse_log(log: str, cubin: bytes = b"") -> MachineCode:
    """The figures that nvJitLink, of which ptxas is a part, prints of a kernel.

    Raises:
        ValueError: the log tells of no kernel, or of several.
    """
    # From PTX, lines of the linker follow, which say some of it again.
    log = "\n".join(line for line in log.splitlines() if line.startswith("ptxas"))
    if log.count("Compiling entry function") != 1:
        raise ValueError(f"not the log of one kernel: {log}")

    def number(pattern: str) -> int:
        return sum(map(int, re.findall(pattern, log)))

    return MachineCode(
        cubin,
        registers=number(r"Used (\d+) registers"),
        spill_bytes=number(r"(\d+) bytes spill (?:stores|loads)"),
        local_bytes=number(r"(\d+) bytes (?:stack frame|lmem)"),
        shared_bytes=number(r"(\d+) bytes smem"),
    )


def _declared_shared_bytes(ptx: str) -> int:
    """Bytes of the shared arrays that a kernel in PTX declares, each where its alignment allows."""
    total = 0
    for align, bits, count in re.findall(r"\.shared\s+(?:\.align\s+(\d+)\s+)?\.[bfsu](\d+)\s+[\w$]+\[(\d+)\]", ptx):
        unit = int(align or int(bits) // 8)
        total = -(-total // unit) * unit + int(bits) // 8 * int(count)
    return total


# -- from machine code to a listing --------------------------------------------------------------------------


@dataclass(frozen=True)
class Instruction:
    """One machine instruction.

    Attributes:
        address: bytes from the beginning of its function.
        opcode: with all its parts, as ``LDG.E.128.CONSTANT``.
        target: address that it branches to, if it does and the listing tells.
    """

    address: int
    opcode: str
    target: int | None = None

    @property
    def kind(self) -> str:
        """What to count it as: the first part of the opcode, and for a memory access the bits: ``LDS.128``."""
        name, *parts = self.opcode.split(".")
        if name not in _MEMORY:
            return name
        widths = [part.lstrip("US") for part in parts if part.lstrip("US") in ("8", "16", "64", "128", "256")]
        return f"{name}.{widths[0] if widths else 32}"

    @property
    def double(self) -> bool:
        """Whether it computes in float64 or converts to or from it."""
        name, *parts = self.opcode.split(".")
        return name in _DOUBLE or any(part in ("F64", "RCP64H", "RSQ64H") for part in parts)


_MEMORY = frozenset(("LD", "LDG", "LDS", "LDL", "ST", "STG", "STS", "STL", "LDGSTS"))
_DOUBLE = frozenset(("DFMA", "DADD", "DMUL", "DSETP", "DMNMX", "DMMA"))
_LABEL = re.compile(r"^(\.L_x?_?\w+):")
_INSTRUCTION = re.compile(
    r"^\s+/\*(?P<address>[0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?(?P<opcode>[A-Z][\w.]*)(?P<operands>[^;]*);"
)


@functools.cache
def _nvdisasm() -> str:
    # It comes with numba-cuda, as nvJitLink's bindings do.
    found = importlib.import_module("cuda.pathfinder").find_nvidia_binary_utility("nvdisasm")
    if found is None:
        raise ToolMissing(f"nvdisasm is not installed: {_INSTALL}")
    return str(found)


@functools.cache
def disassemble(cubin: bytes) -> tuple[Instruction, ...]:
    """The instructions of a kernel.

    Raises:
        ToolMissing: nvdisasm is not installed, or is older than the machine code.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        # Its analysis of the control flow takes half of its time, and adds nothing to these listings.
        arguments = [_nvdisasm(), "--print-code", "--no-dataflow", str(path)]
        done = subprocess.run(arguments, capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise ToolMissing(f"nvdisasm cannot read the machine code ({done.stderr.strip()}): {_INSTALL}")
    return parse_listing(done.stdout)


def parse_listing(text: str) -> tuple[Instruction, ...]:
    """The instructions in what ``nvdisasm --print-code`` prints of one kernel.

    What fills the last cache line behind it (a branch to itself and NOPs) is left out.

    Raises:
        ValueError: there is no code, or that of several functions.
    """
    if (sections := len(re.findall(r"^\s*\.section\s+\.text\.", text, re.MULTILINE))) != 1:
        raise ValueError(f"not the listing of one kernel: it has {sections} sections of code")
    labels: dict[str, int] = {}
    pending: list[str] = []
    found = []
    for line in text.splitlines():
        if label := _LABEL.match(line):
            pending.append(label[1])
        elif match := _INSTRUCTION.match(line):
            address = int(match["address"], 16)
            labels.update(dict.fromkeys(pending, address))
            pending.clear()
            found.append((address, match["opcode"], match["operands"]))
    instructions = []
    for address, opcode, operands in found:
        target = None
        if opcode.partition(".")[0] == "BRA" and (label := re.search(r"\.L\w+", operands)):
            target = labels.get(label[0])
        if opcode != "NOP" and target != address:
            instructions.append(Instruction(address, opcode, target))
    return tuple(instructions)


# -- loops ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Body:
    """Instructions that are executed together: those of a loop, without the loops inside it, or of a whole kernel."""

    instructions: tuple[Instruction, ...]
    is_loop: bool

    @functools.cached_property
    def counts(self) -> Counter[str]:
        """How many there are of each :attr:`Instruction.kind`."""
        return Counter(instruction.kind for instruction in self.instructions)

    def share(self, kind: str) -> float:
        """The part of the instructions that are of a kind, from 0 to 1."""
        return self.counts[kind] / len(self.instructions) if self.instructions else 0.0


def loops(instructions: tuple[Instruction, ...]) -> tuple[Body, ...]:
    """The loops of a kernel, in order of their addresses.

    A loop is what lies between a branch backwards and its target. Code that the compiler has moved elsewhere, because
    it is rarely executed, does not count.
    """
    ends: dict[int, int] = {}
    for instruction in instructions:
        if instruction.target is not None and instruction.target <= instruction.address:
            ends[instruction.target] = max(instruction.address, ends.get(instruction.target, 0))
    own: dict[int, list[Instruction]] = {start: [] for start in sorted(ends)}
    for instruction in instructions:
        around = [start for start, end in ends.items() if start <= instruction.address <= end]
        if around:
            own[min(around, key=lambda start: ends[start] - start)].append(instruction)
    return tuple(Body(tuple(body), is_loop=True) for body in own.values())


def main_loop(instructions: tuple[Instruction, ...], kind: str = "FFMA") -> Body:
    """The loop with the most multiply-adds; the whole kernel where none has any, everything being unrolled."""
    best = max(loops(instructions), key=lambda body: body.counts[kind], default=None)
    if best is None or not best.counts[kind]:
        return Body(instructions, is_loop=False)
    return best
