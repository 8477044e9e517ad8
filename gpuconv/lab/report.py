"""What a trace found and counted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpuconv.lab import html
from gpuconv.lab.machine_code import Compiled
from gpuconv.lab.places import Array
from gpuconv.lab.traced_arrays import Buffer, address_of, bounds_of


@dataclass(frozen=True)
class Fault:
    """An error of a kernel at one place in its source; the details are those of the smallest launch that shows it."""

    #: "race", "uninitialized read", "out-of-bounds read" (or write, or atomic), "negative index", "divergent barrier".
    kind: str
    #: File and line of the instructions concerned.
    sites: tuple[str, ...]
    #: Which element of which array (for a barrier: which block), and which threads.
    details: str
    #: How many elements, accesses or barriers it concerns. In memory with several dtypes, elements of the smallest.
    count: int
    #: The smallest launch in which it occurred, as ``kernel[grid, block]``; the details are of that one.
    launch: str = ""

    def __str__(self) -> str:
        times = f" ({self.count} times)" if self.count > 1 else ""
        return f"{self.kind}: {self.details}{times}"


@dataclass(frozen=True)
class _Requests:
    """Those of one instruction to one array."""

    site: str
    array: str
    #: "read", "write" or "atomic".
    access: str
    #: Bits a lane.
    bits: int
    requests: int

    @property
    def what(self) -> str:
        """Where the instruction stands, and what it does, in words."""
        return f"{self.site}: {self.what_of}"

    @property
    def what_of(self) -> str:
        """What it does, in words."""
        return f"{self.access} {self.bits} bits of {self.array}"


@dataclass(frozen=True)
class BankConflicts(_Requests):
    """How the requests of one instruction to shared memory spread over its 32 banks of 4 bytes.

    A warp's request is served at once for 4 bytes a lane, by half warps for 8 bytes, and by quarter warps for 16 bytes.
    Each of these phases takes as many passes as the busiest bank has distinct words to serve.
    """

    #: Passes of all requests, and the number without conflicts.
    passes: int
    ideal: int
    #: Passes of the worst request, divided by the ideal.
    worst: float

    @property
    def degree(self) -> float:
        """Passes divided by the ideal: 1.0 is free of conflicts."""
        return self.passes / self.ideal

    def __str__(self) -> str:
        return f"{self.what}: conflict degree {self.degree:.2f} (worst {self.worst:.0f}) over {self.requests} requests"


@dataclass(frozen=True)
class Sectors(_Requests):
    """How many 32-byte sectors of global memory the requests of one instruction touched."""

    sectors: int
    #: The fewest that could have held the bytes asked for.
    ideal: int

    @property
    def per_request(self) -> float:
        """Sectors divided by requests: 4 for 32 neighbouring float32 values."""
        return self.sectors / self.requests

    @property
    def efficiency(self) -> float:
        """Ideal divided by actual sectors: at 1.0 every byte that moves is needed."""
        return self.ideal / self.sectors

    def __str__(self) -> str:
        return (
            f"{self.what}: {self.per_request:.1f} sectors a request, {self.efficiency:.0%} needed, "
            f"over {self.requests} requests"
        )


class Report:
    """The result of a trace; complete when the launches have returned.

    Attributes:
        launches: number of launches.
    """

    def __init__(self) -> None:
        self.launches = 0
        #: What the kernels compile to, where that was asked for.
        self.code: tuple[Compiled, ...] = ()
        #: Threads of the launch under way, and what it is called.
        self.now: tuple[int, str] = (0, "")
        #: By kind and key: sites and details of the first one, and the count.
        self._faults: dict[tuple[str, Any], _Seen] = {}
        self._remarks: dict[tuple[str, Any], _Seen] = {}
        self._shared: dict[tuple[Any, ...], list[Any]] = {}
        self._global: dict[tuple[Any, ...], list[Any]] = {}
        self._buffers: list[Buffer] = []

    def _of(self, kind: str) -> tuple[Fault, ...]:
        return tuple(fault for fault in self.faults if fault.kind.startswith(kind))

    @property
    def faults(self) -> tuple[Fault, ...]:
        """All errors of the kernels, one entry for each place and array."""
        return tuple(seen.fault(kind) for (kind, _), seen in self._faults.items())

    @property
    def remarks(self) -> tuple[Fault, ...]:
        """What is right on today's GPUs, but may be meant otherwise: the report is clean all the same.

        "same-value write": threads that nothing orders write one value to an element, and none reads it. "negative
        index": a number in the source that counts from the end of an array. "unwritten result": elements of a
        ``device_array`` that nobody has written are copied to the host.
        """
        return tuple(seen.fault(kind) for (kind, _), seen in self._remarks.items())

    @property
    def races(self) -> tuple[Fault, ...]:
        """Two threads access an element, at least one writes it, and nothing orders the accesses.

        A barrier orders the threads of a block, ``syncwarp`` the lanes of a warp. A shuffle does not: it gives no
        guarantee about memory. Nothing orders the blocks of a launch. Atomics do not race with each other.
        """
        return self._of("race")

    @property
    def uninitialized(self) -> tuple[Fault, ...]:
        """Reads of shared memory that no thread of the block has written, and of a ``device_array`` that nobody has."""
        return self._of("uninitialized")

    @property
    def out_of_bounds(self) -> tuple[Fault, ...]:
        """Accesses outside an array: a read returned NaN (integers: all bits set), a write was dropped.

        An index that is negative by computation is a fault of the kind "negative index", though Numba takes the element
        from the end, and so does the simulator.
        """
        return self._of("out-of-bounds")

    @property
    def divergence(self) -> tuple[Fault, ...]:
        """Threads of a block waited at different barriers, or had left the kernel while others waited."""
        return self._of("divergent")

    @property
    def bank_conflicts(self) -> tuple[BankConflicts, ...]:
        """One entry for each instruction that touched shared memory, those free of conflicts included."""
        return tuple(BankConflicts(*key, *counts) for key, counts in sorted(self._shared.items()))

    @property
    def sectors(self) -> tuple[Sectors, ...]:
        """One entry for each instruction that touched global memory."""
        return tuple(Sectors(*key, *counts) for key, counts in sorted(self._global.items()))

    @property
    def clean(self) -> bool:
        """Whether something was launched without an error. Conflicts and sectors only cost time."""
        return self.launches > 0 and not self._faults

    def writes(self, array: Array) -> Array:
        """How often each element of ``array`` was written (int64, its shape), summed over the launches.

        ``array`` must be an argument of a traced launch, or a view of one.

        Raises:
            ValueError: no traced launch was given this array's memory.
        """
        counts = [
            np.max([buffer.written[first + part] for part in range(max(1, array.itemsize // buffer.granule))], axis=0)
            for buffer, first in self._granules(array)
        ]
        if array.size and not counts:
            raise ValueError("writes: this array's memory was not an argument of a traced launch")
        return sum(counts, np.zeros(array.shape, np.int64))

    def writers(self, array: Array) -> Array:
        """The block that wrote each element of ``array`` last: its index (x, y, z) on a last axis, -1 where none did.

        ``array`` must be an argument of a traced launch, or a view of one; the latest launch that wrote to it counts.
        """
        blocks = np.full((*array.shape, 3), -1, np.int64)
        for buffer, first in self._granules(array):
            number = buffer.writer[first]
            plane, x = np.divmod(number, buffer.grid.x)
            z, y = np.divmod(plane, buffer.grid.y)
            blocks = np.where(number[..., None] < 0, blocks, np.stack((x, y, z), axis=-1))
        return blocks

    def _granules(self, array: Array) -> Iterator[tuple[Buffer, Array]]:
        """Each buffer that holds the memory of ``array``, one a launch, and the first granule of each element in it."""
        low, high = bounds_of(array)
        offsets = np.zeros(array.shape, np.int64)
        for axis, (size, stride) in enumerate(zip(array.shape, array.strides, strict=True)):
            offsets += (np.arange(size) * stride).reshape([-1 if a == axis else 1 for a in range(array.ndim)])
        for buffer in self._buffers:
            if buffer.real <= low and high <= buffer.real + buffer.nbytes:
                yield buffer, (offsets + (address_of(array) - buffer.real)) // buffer.granule

    def __str__(self) -> str:
        number = len(self._faults)
        nothing = f"{self.now[1]} did not come to its end" if self.now[0] else "nothing ran"
        verdict = f"{number} fault{'s' * (number > 1)}" if number else "clean" if self.clean else nothing
        lines = [f"{self.launches} launch{'es' * (self.launches != 1)} traced: {verdict}"]
        lines += [f"  {fault}" for fault in self.faults]
        lines += [f"  remark: {remark}" for remark in self.remarks]
        lines += [f"  shared, {entry}" for entry in self.bank_conflicts]
        lines += [f"  global, {entry}" for entry in self.sectors]
        lines += [str(code) for code in self.code]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return html.page(self)

    def add(self, kind: str, key: Any, sites: tuple[str, ...], details: str, count: int = 1) -> None:
        """Count a fault; the first of its kind and key gives the details."""
        self._count(self._faults, kind, key, sites, details, count)

    def remark(self, kind: str, key: Any, sites: tuple[str, ...], details: str, count: int = 1) -> None:
        """Count what is no fault."""
        self._count(self._remarks, kind, key, sites, details, count)

    def _count(
        self, found: dict[Any, _Seen], kind: str, key: Any, sites: tuple[str, ...], details: str, count: int
    ) -> None:
        seen = found.get((kind, key))
        before = 0 if seen is None else seen.count
        if seen is None or self.now[0] < seen.threads:
            found[kind, key] = seen = _Seen(sites, details, 0, *self.now)
        seen.count = before + count


@dataclass
class _Seen:
    """A fault of one kind and place: the details are those in the smallest launch."""

    sites: tuple[str, ...]
    details: str
    count: int
    threads: int
    launch: str

    def fault(self, kind: str) -> Fault:
        return Fault(kind, self.sites, self.details, self.count, self.launch)
