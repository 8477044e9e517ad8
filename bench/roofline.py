"""How fast a kernel could be at best, from what is known without running it: occupancy, roofline, instruction slots.

Sources: NVIDIA, *CUDA C++ Programming Guide*, "Technical Specifications per Compute Capability", for the limits;
``cuda_occupancy.h`` of the CUDA toolkit for how registers and shared memory are allotted; NVIDIA, *H100 Tensor Core GPU
Architecture* (128 float32 lanes and four schedulers, of one warp instruction a cycle each, a multiprocessor) and *H200
Tensor Core GPU* data sheets for the peaks; Williams, Waterman and Patterson, "Roofline", CACM 52(4), 2009, of whose
"ceilings" below the roof those of :func:`kernel_bound` are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any


@dataclass(frozen=True)
class Architecture:
    """What a multiprocessor has to give to the blocks that it runs at the same time."""

    threads: int
    blocks: int
    #: Bytes of shared memory, and the most that one block may have.
    shared_bytes: int
    block_shared_bytes: int


#: The same on all of them: 32-bit registers a multiprocessor, in four parts, each with a scheduler of its own; they are
#: given out to warps, 256 at a time.
REGISTERS = 64 * 1024
PARTS = 4
REGISTER_UNIT = 256
#: Shared memory is given out in units of so many bytes, and the driver takes so many of each block.
SHARED_UNIT = 128
SHARED_RESERVED = 1024
WARP = 32
#: Float32 multiply-adds that a multiprocessor begins a cycle: a warp's, in each part.
LANES = PARTS * WARP

ARCHITECTURES = {
    "sm_80": Architecture(threads=2048, blocks=32, shared_bytes=164 * 1024, block_shared_bytes=163 * 1024),
    "sm_86": Architecture(threads=1536, blocks=16, shared_bytes=100 * 1024, block_shared_bytes=99 * 1024),
    "sm_89": Architecture(threads=1536, blocks=24, shared_bytes=100 * 1024, block_shared_bytes=99 * 1024),
    "sm_90": Architecture(threads=2048, blocks=32, shared_bytes=228 * 1024, block_shared_bytes=227 * 1024),
    "sm_100": Architecture(threads=2048, blocks=32, shared_bytes=228 * 1024, block_shared_bytes=227 * 1024),
}


def architecture(name: str) -> Architecture:
    """The limits of ``"sm_90"``, and of ``"sm_90a"``, which differs in its instructions alone.

    Raises:
        ValueError: its limits are not known here.
    """
    found = ARCHITECTURES.get(name.rstrip("af"))
    if found is None:
        raise ValueError(f"architecture {name!r} is not known; there are {', '.join(ARCHITECTURES)}")
    return found


@dataclass(frozen=True)
class Occupancy:
    """How many blocks and warps of a kernel a multiprocessor can hold."""

    blocks: int
    #: Warps held, of those that it could hold at most: from 0 to 1.
    share: float
    #: What there is too little of for another block: "threads", "blocks", "registers", "shared memory".
    limit: str


def occupancy(threads: int, registers: int, shared_bytes: int, name: str) -> Occupancy:
    """The theoretical occupancy of a kernel.

    A block of ``threads`` threads is ``⌈threads / 32⌉`` warps. A warp takes its registers from one of the four parts
    of the register file, in units of 256; a block takes its shared memory, and 1 KB for the driver, in units of 128
    bytes.

    Args:
        threads: threads a block.
        registers: registers a thread.
        shared_bytes: static and dynamic shared memory of a block.
        name: architecture, as ``"sm_90a"``.

    Raises:
        ValueError: the architecture is not known.
    """
    limits = architecture(name)
    warps = math.ceil(threads / WARP)
    warp_registers = math.ceil(max(registers, 1) * WARP / REGISTER_UNIT) * REGISTER_UNIT
    warps_by_registers = REGISTERS // PARTS // warp_registers * PARTS
    # A block spreads over the parts evenly: one of 5 warps has to find room for 8.
    fits = warp_registers * math.ceil(warps / PARTS) * PARTS <= REGISTERS
    block_shared = math.ceil((shared_bytes + SHARED_RESERVED) / SHARED_UNIT) * SHARED_UNIT
    blocks = {
        "threads": limits.threads // WARP // warps,
        "blocks": limits.blocks,
        "registers": warps_by_registers // warps if fits else 0,
        "shared memory": limits.shared_bytes // block_shared if shared_bytes <= limits.block_shared_bytes else 0,
    }
    limit = min(blocks, key=lambda what: blocks[what])
    return Occupancy(blocks[limit], blocks[limit] * warps * WARP / limits.threads, limit)


# -- roofline ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gpu:
    """The peaks of a GPU."""

    name: str
    multiprocessors: int
    #: Operations a second by element type, a multiply-add being two; without tensor cores, but for half types.
    flops: Mapping[str, float]
    #: Bytes a second: of the data sheet, and those that a copy within its memory reaches.
    bandwidth: float
    copy_bandwidth: float


_FLOPS = {"float32": 67e12, "float64": 34e12, "float16": 989e12, "bfloat16": 989e12}
H200 = Gpu("H200", 132, _FLOPS, bandwidth=4.8e12, copy_bandwidth=4.3e12)


#: A tensor core's product of 16 x 8 x 8 TF32 numbers: multiply-adds for each thread of a warp; and cycles of the core,
#: of which each part of a multiprocessor has one, at an H200's peak of 495 TFLOP/s.
TENSOR_MULTIPLY_ADDS, TENSOR_CYCLES = 16 * 8 * 8 // WARP, 4


def tensor_share(matrices: int, instructions: int, products: float) -> float:
    """What stands for the share of multiply-adds where tensor cores do them: multiply-adds a thread and cycle.

    Args:
        matrices: instructions of the main loop for tensor cores.
        instructions: all of the main loop, of which a scheduler begins one a cycle.
        products: how many products of TF32 numbers stand for one of the operation; half of one for half types, of which
            an instruction has twice as many.
    """
    return TENSOR_MULTIPLY_ADDS / products * matrices / max(instructions, TENSOR_CYCLES * matrices)


def issue_seconds(blocks: int, block: float, thread: float, gpu: Gpu = H200) -> float:
    """How long a kernel takes at least for its instructions to begin.

    ``max(⌈blocks / multiprocessors⌉ · block / 4, thread) / clock``: the busiest multiprocessor has whole blocks, its
    four schedulers begin an instruction of a warp each a cycle, and a warp not more than one a cycle.

    Args:
        blocks: of the grid.
        block: instructions of the warps of a block.
        thread: instructions of the warp that executes most.
        gpu: whose clock is the one at which its float32 lanes reach their peak.
    """
    clock = gpu.flops["float32"] / (2 * LANES * gpu.multiprocessors)
    return max(-(-blocks // gpu.multiprocessors) * block / PARTS, thread) / clock


@dataclass(frozen=True)
class Work:
    """What an operation has to do, however it does it.

    Attributes:
        flop: floating point operations; a multiply-add is two.
        traffic: bytes of all inputs and outputs, each moved once. (What a kernel before left in the second-level cache,
            50 MB, does not have to come from memory: small layers can be faster than by their traffic.)
        dtype: element type.
    """

    flop: int
    traffic: int
    dtype: str = "float32"

    @property
    def intensity(self) -> float:
        """Arithmetic intensity: operations a byte."""
        return self.flop / self.traffic

    def compute_seconds(self, gpu: Gpu) -> float:
        """The least time for the arithmetic."""
        return self.flop / gpu.flops[self.dtype]

    def memory_seconds(self, gpu: Gpu, *, copy: bool = False) -> float:
        """The least time for the traffic, at the peak bandwidth or at that of a copy."""
        return self.traffic / (gpu.copy_bandwidth if copy else gpu.bandwidth)

    def floor_seconds(self, gpu: Gpu) -> float:
        """The roofline's bound: arithmetic and traffic at their peaks, at the same time."""
        return max(self.compute_seconds(gpu), self.memory_seconds(gpu))

    def bound(self, gpu: Gpu) -> str:
        """Which of the two it is: "FLOP" or "bytes"."""
        return "FLOP" if self.compute_seconds(gpu) > self.memory_seconds(gpu) else "bytes"


#: A loss by this factor, and not the arithmetic itself, is what bounds a kernel.
_MUCH_LOST = 1.5


def kernel_bound(work: Work, launches: Sequence[Mapping[str, Any]], *, counted: bool = True) -> dict[str, Any]:
    """The least time of a variant on an H200, from its machine code, and what it comes from.

    A launch of ``blocks`` blocks of ``threads`` threads, in ``warps = ⌈threads / 32⌉`` warps, of whose main loop a
    ``share`` are multiply-adds, needs for ``m`` of them ::

        thread = m / (blocks · threads) / share                                  instructions of a thread, and its warp
        max(⌈blocks / multiprocessors⌉ · warps · thread / 4, thread) / clock      see :func:`issue_seconds`

    at least: all threads do equal parts, each other instruction of the loop takes a multiply-add's time, and a warp
    takes one cycle an instruction, be it full or not. Of several launches the one that does a multiply-add in the least
    time is taken to do all. The result is that time, or the traffic's at the peak of the memory if that is longer.

    Not in it: latencies, and so what a low occupancy costs; what a tile computes beyond the edge of the output;
    instructions outside of the main loop. So no kernel can be faster, and most are slower.

    Args:
        work: what there is to do.
        launches: of the variant, as ``bench.static.judged`` describes them; those for an H200's architecture count, if
            there are any.
        counted: whether ``work.flop`` are multiply-adds; the roofline alone bounds other work, and float64, of which a
            scheduler begins a multiply-add every other cycle, and other instructions between.

    Returns:
        ``floor_us``; ``bound``: "bytes", "FLOP", or what more than anything else keeps a kernel from the peak ("issue":
        other instructions; "blocks": they do not share out evenly; "warps": the last one is not full; "schedulers":
        some have no warp); ``multiply_add_share``.
    """
    own = [launch for launch in launches if launch["architecture"].startswith("sm_90")] or launches
    seconds, memory, bound, share = work.compute_seconds(H200), work.memory_seconds(H200), work.bound(H200), 0.0
    arithmetic = [launch for launch in own if launch["main_loop"]["multiply_add_share"]]
    if arithmetic and counted and work.dtype != "float64":
        seconds, main = min(((_arithmetic_seconds(work, launch), launch) for launch in arithmetic), key=itemgetter(0))
        share, losses = main["main_loop"]["multiply_add_share"], _losses(main)
        worst = max(losses, key=losses.__getitem__)
        bound = "bytes" if memory > seconds else worst if losses[worst] >= _MUCH_LOST else "FLOP"
    return {"floor_us": 1e6 * max(seconds, memory), "bound": bound, "multiply_add_share": share}


def _arithmetic_seconds(work: Work, launch: Mapping[str, Any]) -> float:
    """The least time for all multiply-adds, if a launch does them."""
    blocks, threads = math.prod(launch["grid"]), launch["threads"]
    thread = work.flop / 2 / (blocks * threads) / launch["main_loop"]["multiply_add_share"]
    return issue_seconds(blocks, math.ceil(threads / WARP) * thread, thread)


def _losses(launch: Mapping[str, Any]) -> dict[str, float]:
    """What keeps a launch from the peak, by factors whose product is the distance to it."""
    blocks, threads = math.prod(launch["grid"]), launch["threads"]
    most, warps = math.ceil(blocks / H200.multiprocessors), math.ceil(threads / WARP)
    return {
        "blocks": most * H200.multiprocessors / blocks,
        "warps": warps * WARP / threads,
        "schedulers": max(1.0, PARTS / (most * warps)),
        "issue": 1 / launch["main_loop"]["multiply_add_share"],
    }
