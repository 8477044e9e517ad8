"""Memory: the arrays of a launch at their own addresses, shared memory of each block, local memory of each thread.

Every access has to lie in one of them, and to be aligned to its size. Generic addresses tell the spaces apart by
windows that no array of the host lies in.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuconv.lab.ptx.program import Instruction
from gpuconv.lab.ptx.values import Array, Lanes

if TYPE_CHECKING:
    from gpuconv.lab.ptx.machine import Machine

#: First generic address of shared and of local memory, and how far each window reaches.
SHARED, LOCAL = 1 << 56, 1 << 57
WINDOW = 1 << 32
#: Of a cluster: shared memory of its block number ``rank`` begins at address ``(rank + 1) * BLOCK``, that of a thread's
#: own block at 0, too.
BLOCK = 1 << 20


class Global:
    """The arrays that a launch was given, and variables of the module."""

    def __init__(self, arrays: Sequence[Array] = ()) -> None:
        self._kept: dict[int, tuple[Array, Array]] = {}
        self._bytes: list[Array] = []
        self._starts = self._ends = np.zeros(0, np.uint64)
        #: For each of them whether the launch has written, or has read through the read-only cache.
        self.written = self.read_only = np.zeros(0, bool)
        for array in arrays:
            self.add(array)

    def add(self, array: Array) -> int:
        """Let the code access an array; gives its address. Of a view with strides all bytes between its ends count."""
        start, end = np.lib.array_utils.byte_bounds(array) if array.nbytes else (_address(array),) * 2
        if start == end:
            return start
        known = self._kept.get(start)
        if known is None or known[1].size < end - start:
            held: Any = (ctypes.c_uint8 * (end - start)).from_address(start)
            raw = np.frombuffer(held, np.uint8)
            self._kept[start] = array, raw
            self._sort()
        return start

    def _sort(self) -> None:
        before = {id(one): (a, b) for one, a, b in zip(self._bytes, self.written, self.read_only, strict=True)}
        starts = sorted(self._kept)
        self._bytes = [self._kept[start][1] for start in starts]
        self._starts = np.array(starts, np.uint64)
        self._ends = self._starts + np.array([one.nbytes for one in self._bytes], np.uint64)
        marks = [before.get(id(one), (False, False)) for one in self._bytes]
        self.written = np.array([mark[0] for mark in marks], bool)
        self.read_only = np.array([mark[1] for mark in marks], bool)

    def remove(self, start: int) -> None:
        """Forget an array: ``free``."""
        del self._kept[start]
        self._sort()

    def at(self, address: Array, size: int) -> Iterator[tuple[int, Array, Array | slice, Array]] | Array:
        """For each array that is meant: its number, its bytes, which of the addresses, and offsets in it.

        If some are in no array: which.
        """
        if not self._bytes:
            return np.zeros(address.size, bool)
        which = np.searchsorted(self._starts, address, "right") - 1
        inside = (which >= 0) & (address + np.uint64(size) <= self._ends[which])
        return self._split(which, address) if inside.all() else inside

    def _split(self, which: Array, address: Array) -> Iterator[tuple[int, Array, Array | slice, Array]]:
        first = int(which[0])
        if (which == first).all():
            yield first, self._bytes[first], slice(None), (address - self._starts[first]).astype(np.int64)
            return
        for number in np.unique(which):
            chosen = np.flatnonzero(which == number)
            offsets = (address[chosen] - self._starts[number]).astype(np.int64)
            yield int(number), self._bytes[number], chosen, offsets


def _address(array: Array) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def elements(memory: Array, offsets: Array, dtype: np.dtype[Any], count: int) -> tuple[Array, Array]:
    """A view of memory as elements, and where in it ``count`` of them lie, a row for each offset."""
    view = memory[: memory.size // dtype.itemsize * dtype.itemsize].view(dtype)
    return view, (offsets // dtype.itemsize)[:, None] + np.arange(count)


@dataclass
class Piece:
    """The part of an access that lies in one memory."""

    memory: Array
    #: Which of the threads that access, and where in the memory.
    chosen: Array | slice
    offsets: Array
    #: Which space, and of global memory the array's number.
    space: str
    number: int = 0


def put(
    machine: Machine,
    one: Instruction,
    memory: Array,
    offsets: Array,
    given: Array,
    lanes: Lanes,
    chosen: Any,
    space: str,
) -> None:
    """Store a row of elements at each offset; writes of what is there already are no race."""
    view, index = elements(memory, offsets, given.dtype, given.shape[1])
    if space == "shared" and machine.shadow is not None:
        bits, numbers = np.dtype(f"u{given.dtype.itemsize}"), machine.lanes(lanes)[chosen]
        raw = np.ascontiguousarray(given).view(bits)
        changed = (view[index].view(bits) != raw).any(1)
        view[index] = given
        changed |= (view[index].view(bits) != raw).any(1)  # what another thread of these writes there
        machine.shadow.write(one, offsets, given.dtype.itemsize * given.shape[1], numbers, changed)
        other = (view[index].view(bits) != raw).any(1)
        if other.any():
            who = machine.name(int(numbers[int(other.argmax())]))
            one.fails(f"race in shared memory: {who} and another write different values to the same place")
    else:
        view[index] = given


class Shadow:
    """Who wrote and read each word of shared memory, since when nothing ordered it before what comes now.

    Two accesses are ordered by a barrier of the block between them; in a warp, by ``bar.warp.sync``; and whatever the
    first thread did before a fence, an atomic operation or an arrival at a barrier is not followed any further.
    """

    def __init__(self, nbytes: int, grain: int, threads: int, block: Array, warp: Array) -> None:
        self.grain = grain
        words = -(-nbytes // grain)
        self.known = np.zeros(words, bool)
        self.writer, self.first, self.last = (np.full(words, -1, np.int32) for _ in range(3))
        self.wrote, self.first_read, self.last_read = (np.zeros(words, np.int64) for _ in range(3))
        #: Of each thread: how often its accesses were ordered before those of others; of its warp likewise.
        self.clock = np.zeros(threads, np.int64)
        self.warp_clock = np.zeros(threads, np.int64)
        #: Numbers of writes: of each word's last one, and of the last before each thread's ``fence.proxy.async``.
        self.writes = 0
        self.write_of = np.zeros(words, np.int64)
        self.fenced = np.zeros(threads, np.int64)
        #: Of each thread, how many barriers of its cluster it has passed, and how many each word's writer had.
        self.cluster_clock = np.zeros(threads, np.int64)
        self.wrote_in_cluster = np.zeros(words, np.int64)
        self.warp = warp
        self.block = block

    def order(self, lanes: Any) -> None:
        """These threads' accesses come before those of all who follow."""
        self.clock[lanes] += 1

    def order_warp(self, lanes: Any) -> None:
        """Likewise, for the threads of their warp."""
        self.warp_clock[lanes] += 1

    def order_cluster(self, lanes: Any) -> None:
        """Likewise, for the threads of other blocks."""
        self.cluster_clock[lanes] += 1

    def fence_proxy(self, lanes: Any) -> None:
        """What these threads have written may be read by asynchronous units."""
        self.fenced[lanes] = self.writes

    def unfenced(self, words: Array) -> int:
        """A thread that wrote one of these words and has not said so to the asynchronous units; -1 for none."""
        writer = self.writer[words]
        late = (writer >= 0) & (self.write_of[words] > self.fenced[writer])
        return int(writer[late.argmax()]) if late.any() else -1

    def _stamp(self, lanes: Array) -> Array:
        return (self.clock[lanes] << 32) + self.warp_clock[lanes]

    def _unordered(self, who: Array, when: Array, lanes: Array) -> Array:
        """Whether the accesses of threads may happen at the same time as those of ``lanes`` now."""
        other = (who >= 0) & (who != lanes)
        alive = when >> 32 == self.clock[who]
        same_warp = (self.warp[who] == self.warp[lanes]) & (when & 0xFFFFFFFF != self.warp_clock[who])
        return other & alive & ~same_warp

    def words(self, offsets: Array, size: int, lanes: Array) -> tuple[Array, Array]:
        """The words of accesses, and their threads."""
        count = max(1, size // self.grain)
        where = ((offsets // self.grain)[:, None] + np.arange(count)).ravel()
        return where, np.repeat(lanes, count)

    def read(self, one: Instruction, offsets: Array, size: int, lanes: Array) -> None:
        """Note reads.

        Raises:
            PtxError: of what nobody wrote, or of what another thread writes at any time.
        """
        where, who = self.words(offsets, size, lanes)
        if not self.known[where].all():
            missing = int(np.count_nonzero(~self.known[where].reshape(len(offsets), -1).all(1)))
            one.fails(f"{missing} of {len(offsets)} threads read shared memory that nobody has written")
        writer = self.writer[where]
        races = self._unordered(writer, self.wrote[where], who)
        # What other blocks of a cluster wrote is ordered by a barrier of the cluster alone.
        elsewhere = (writer >= 0) & (self.block[writer] != self.block[who])
        races |= elsewhere & (self.wrote_in_cluster[where] == self.cluster_clock[writer])
        if races.any():
            at = int(races.argmax())
            one.fails(self._race("reads", who[at], "wrote", self.writer[where][at], races))
        stale = ~self._unordered(self.first[where], self.first_read[where], who)
        self.first[where[stale]], self.first_read[where[stale]] = who[stale], self._stamp(who[stale])
        self.last[where], self.last_read[where] = who, self._stamp(who)

    def write(self, one: Instruction, offsets: Array, size: int, lanes: Array, changed: Array | None) -> None:
        """Note writes; ``changed`` says which accesses change what is there, None of those that may.

        Raises:
            PtxError: another thread accesses the same at any time, and would see the difference.
        """
        where, who = self.words(offsets, size, lanes)
        matters = np.ones(len(where), bool) if changed is None else np.repeat(changed, len(where) // len(offsets))
        for name, other, when in (
            ("wrote", self.writer, self.wrote),
            ("read", self.first, self.first_read),
            ("read", self.last, self.last_read),
        ):
            races = self._unordered(other[where], when[where], who) & matters
            if races.any():
                at = int(races.argmax())
                one.fails(self._race("writes", who[at], name, other[where][at], races))
        self.known[where] = True
        self.writer[where], self.wrote[where] = who, self._stamp(who)
        self.writes += 1
        self.write_of[where] = self.writes
        self.wrote_in_cluster[where] = self.cluster_clock[who]

    def _race(self, does: str, who: int, did: str, other: int, races: Array) -> str:
        names = [f"thread {self.number(lane)}" for lane in (who, other)]
        of, barrier = (
            ("", "barrier") if self.block[who] == self.block[other] else (" of another block", "cluster barrier")
        )
        return f"race in shared memory: {names[0]} {does} what {names[1]}{of} {did}, with no {barrier} between the two"

    def number(self, lane: int) -> int:
        """Of a thread in its block."""
        return int(lane) - int(np.searchsorted(self.block, self.block[lane]))
