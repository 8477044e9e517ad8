"""GPUs that the laboratory can stand for: what limits a launch, and what a program may ask a device for.

Limits by compute capability: CUDA C++ programming guide, "Technical specifications per compute capability".
Multiprocessors, clocks, caches and memory: NVIDIA's white papers on Volta, Turing, Ampere (GA100 and GA102), Ada,
Hopper and Blackwell, and the cards' data sheets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

#: Limits of every one of them.
MAX_THREADS = 1024
WARP = 32


@dataclass(frozen=True)
class Card:
    """A GPU.

    Attributes:
        name: as it calls itself.
        compute_capability: which instructions it has.
        multiprocessors: how many.
        shared_kib: shared memory that a block can have, static and dynamic together; of it 48 KiB static.
        shared_per_multiprocessor_kib: that of all blocks on a multiprocessor.
        threads: that a multiprocessor can hold.
        blocks: that a multiprocessor can hold.
        l2_mib: second level cache.
        memory_gib: device memory.
        clock_mhz: the highest.
        memory_clock_mhz: half the rate of transfers.
        bus_bits: width of the memory bus.
    """

    name: str
    compute_capability: tuple[int, int]
    multiprocessors: int
    shared_kib: int
    shared_per_multiprocessor_kib: int
    threads: int
    blocks: int
    l2_mib: int
    memory_gib: int
    clock_mhz: int
    memory_clock_mhz: int
    bus_bits: int

    def attributes(self) -> dict[str, Any]:
        """What ``cuda.get_current_device()`` answers, by name."""
        major, minor = self.compute_capability
        return {
            "name": f"SIMULATOR (as an {self.name})".encode(),
            "id": 0,
            "compute_capability": self.compute_capability,
            "COMPUTE_CAPABILITY_MAJOR": major,
            "COMPUTE_CAPABILITY_MINOR": minor,
            "MAX_THREADS_PER_BLOCK": MAX_THREADS,
            "MAX_BLOCK_DIM_X": 1024,
            "MAX_BLOCK_DIM_Y": 1024,
            "MAX_BLOCK_DIM_Z": 64,
            "MAX_GRID_DIM_X": 2**31 - 1,
            "MAX_GRID_DIM_Y": 65_535,
            "MAX_GRID_DIM_Z": 65_535,
            "MAX_SHARED_MEMORY_PER_BLOCK": 48 * 1024,
            "MAX_SHARED_MEMORY_PER_BLOCK_OPTIN": self.shared_kib * 1024,
            "MAX_SHARED_MEMORY_PER_MULTIPROCESSOR": self.shared_per_multiprocessor_kib * 1024,
            "MAX_REGISTERS_PER_BLOCK": 65_536,
            "MAX_REGISTERS_PER_MULTIPROCESSOR": 65_536,
            "MAX_THREADS_PER_MULTI_PROCESSOR": self.threads,
            "MAX_BLOCKS_PER_MULTIPROCESSOR": self.blocks,
            "MULTIPROCESSOR_COUNT": self.multiprocessors,
            "WARP_SIZE": WARP,
            "TOTAL_CONSTANT_MEMORY": 65_536,
            "CLOCK_RATE": self.clock_mhz * 1000,
            "MEMORY_CLOCK_RATE": self.memory_clock_mhz * 1000,
            "GLOBAL_MEMORY_BUS_WIDTH": self.bus_bits,
            "L2_CACHE_SIZE": self.l2_mib * 1024**2,
            "ASYNC_ENGINE_COUNT": 3,
            "CONCURRENT_KERNELS": 1,
            "COOPERATIVE_LAUNCH": 1,
            "UNIFIED_ADDRESSING": 1,
            "MANAGED_MEMORY": 1,
            "CONCURRENT_MANAGED_ACCESS": 1,
            "CAN_MAP_HOST_MEMORY": 1,
            "INTEGRATED": 0,
            "KERNEL_EXEC_TIMEOUT": 0,
            "ECC_ENABLED": 0 if "RTX" in self.name else 1,
            "TCC_DRIVER": 0,
            "supports_float16": True,
            "supports_bfloat16": major >= 8,
            "PCI_BUS_ID": 0,
            "PCI_DEVICE_ID": 0,
            "PCI_DOMAIN_ID": 0,
        }

    def blocks_at_once(self, threads: int, shared_bytes: int) -> int:
        """Blocks that it can hold at once, as far as threads and shared memory limit them."""
        warps = -(-threads // WARP)
        # The driver takes 1 KiB of shared memory a block, from compute capability 8.0 on.
        reserved = shared_bytes + (1024 if self.compute_capability >= (8, 0) else 0)
        by_memory = self.shared_per_multiprocessor_kib * 1024 // reserved if reserved else self.blocks
        return self.multiprocessors * min(self.blocks, self.threads // WARP // warps, by_memory)


#: By short name.
CARDS = {
    "v100": Card("V100-SXM2", (7, 0), 80, 96, 96, 2048, 32, 6, 16, 1530, 877, 4096),
    "t4": Card("T4", (7, 5), 40, 64, 64, 1024, 16, 4, 16, 1590, 5001, 256),
    "a100": Card("A100-SXM4-80GB", (8, 0), 108, 163, 164, 2048, 32, 40, 80, 1410, 1593, 5120),
    "rtx3090": Card("RTX 3090", (8, 6), 82, 99, 100, 1536, 16, 6, 24, 1695, 9751, 384),
    "l4": Card("L4", (8, 9), 58, 99, 100, 1536, 24, 48, 24, 2040, 6251, 192),
    "rtx4090": Card("RTX 4090", (8, 9), 128, 99, 100, 1536, 24, 72, 24, 2520, 10501, 384),
    "h100": Card("H100-SXM5", (9, 0), 132, 227, 228, 2048, 32, 50, 80, 1980, 2619, 5120),
    "h200": Card("H200-SXM5", (9, 0), 132, 227, 228, 2048, 32, 50, 141, 1980, 3201, 6144),
    "rtx5090": Card("RTX 5090", (12, 0), 170, 99, 100, 1536, 24, 96, 32, 2407, 14001, 512),
}
DEFAULT = "h100"


def card(device: str | Card) -> Card:
    """One of :data:`CARDS` by its name; a card of one's own is that.

    Raises:
        ValueError: it is not among them.
    """
    if isinstance(device, Card):
        return device
    name = device.lower().replace(" ", "").replace("-", "")
    if name not in CARDS:
        raise ValueError(f"device: {device!r} is not known; known are {', '.join(CARDS)}, or a gpuconv.lab.Card")
    return CARDS[name]


class Chosen:
    """The card that the laboratory stands for now."""

    card = CARDS[DEFAULT]
