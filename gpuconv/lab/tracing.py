"""Records the memory accesses of a simulated launch: ``gpuconv.lab.simulator`` wraps a kernel's arrays with it.

While the kernel runs, a traced array only checks the bounds of an access and appends one tuple to a log. The log is
evaluated after each block, in bulk, by NumPy: see :class:`gpuconv.lab.report.Report` for the results.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import CodeType
from typing import Any, Protocol

import numpy as np

from gpuconv.lab import fresh_memory, tables
from gpuconv.lab.integers import seen
from gpuconv.lab.ordering import Ordering, Orders
from gpuconv.lab.places import WARP, Array, Dim3, Site, is_written_negative, site, site_name, thread_name
from gpuconv.lab.records import dtype_of
from gpuconv.lab.report import Report
from gpuconv.lab.tables import Events
from gpuconv.lab.traced_arrays import (
    ATOMIC,
    IDLE,
    KINDS,
    READ,
    WRITE,
    Buffer,
    Traced1,
    Traced2,
    TracedArray,
    TracedRecords,
    address_of,
    arrays_of,
    bounds_of,
)
from gpuconv.lab.traced_arrays import granule as granule_of
from gpuconv.lab.traced_local import TracedLocal

#: Number of accesses after which the log is evaluated, at the end of a block: its tables still fit into a cache.
_BATCH = 1 << 14
#: Number of accesses of a launch that failed which are still looked at: it takes a second or two.
_LAST_WORDS = 1 << 20
#: Simulated address of dynamic shared memory: behind all that static shared memory can take.
_DYNAMIC = 1 << 17


class BlockOnTheWay(Protocol):
    """What the tracer has to know of a block."""

    number: int
    #: Counts its barriers, among those of all blocks: the tracer sets it.
    epoch: int


class Tracer:
    """Collects the accesses of one launch, and adds what they mean to a report.

    Args:
        report: what to add to.
        kernel: the Python function.
        grid, block: sizes of the launch.
    """

    def __init__(self, report: Report, kernel: Callable[..., None], grid: Dim3, block: Dim3) -> None:
        self.report, self.kernel, self.grid, self.block_dim = report, kernel, grid, block
        report.now = math.prod(grid) * math.prod(block), f"{kernel.__name__}[{grid}, {block}]"
        self.log: list[tuple[int, int, CodeType, int]] = []
        #: The value of each write in the log, in its order.
        self.written: list[Any] = []
        #: Numbers for values, for comparison.
        self._values: dict[Any, int] = {}
        #: For each time that a thread ran: where in the log it began, thread, clock, epoch, block.
        self._runs: list[tuple[int, int, Any, int, int]] = []
        #: Counts barriers and blocks: accesses of a block in different epochs are in order.
        self._epoch = self._block = 0
        self._thread = 0
        self._buffers: list[Buffer] = []
        self._arrays: list[TracedArray] = []
        self._views: dict[Any, TracedArray] = {}
        #: By access code: number of the array, kind, bytes.
        self._accesses: list[tuple[int, int, int]] = []
        self._sites: dict[Site, int] = {}
        self._global_accesses: list[Array] = []
        #: How many accesses are no longer in the log, because they are evaluated.
        self._evaluated = 0
        self._orders = Orders(math.prod(block))
        #: By the shared memory of a block: the buffer of its dynamic part, and where its static part ends.
        self._dynamic: dict[Any, Buffer] = {}
        self._static_end: dict[Any, int] = {}

    # Arrays.

    dtype_of = staticmethod(dtype_of)

    def wrap(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments of the kernel, with traced arrays in the place of arrays."""
        for array in sorted(arrays_of(args), key=bounds_of):
            self._watch(array)
        for buffer in self._buffers:
            buffer.unwritten = fresh_memory.unwritten(buffer.real, buffer.nbytes, buffer.granule)
        code = self.kernel.__code__
        names = code.co_varnames[: code.co_argcount] + ("?",) * len(args)
        return tuple(self._wrap(arg, name) for arg, name in zip(args, names, strict=False))

    def _watch(self, array: Array) -> None:
        """Note the memory under an array; arrays that overlap share a buffer. Called in order of addresses."""
        low, high = bounds_of(array)
        granule, end = granule_of(array.dtype), 0
        if self._buffers:
            last = self._buffers[-1]
            end = last.address + last.nbytes
            if low < last.real + last.nbytes:
                granule = math.gcd(granule, last.granule, low - last.real)
                low, high = last.real, max(high, last.real + last.nbytes)
                end = last.address
                self._buffers.pop()
        # Keeps the alignment of the address in this process, on which the number of sectors depends.
        address = -(-end // 512) * 512 + low % 512
        buffer = Buffer(high - low, granule, shared=False, address=address, real=low, owner=array)
        self._buffers.append(buffer)

    def _wrap(self, arg: Any, name: str) -> Any:
        if isinstance(arg, tuple):
            if hasattr(arg, "_fields"):
                return type(arg)(
                    *(self._wrap(part, f"{name}.{field}") for field, part in zip(arg._fields, arg, strict=True))
                )
            return tuple(self._wrap(part, f"{name}[{i}]") for i, part in enumerate(arg))
        if not isinstance(arg, np.ndarray) or arg.ndim == 0:
            return arg
        real = address_of(arg)
        for buffer in self._buffers:
            if arg.size and buffer.real <= real < buffer.real + buffer.nbytes:
                return self._make(arg, buffer, buffer.address + real - buffer.real, name)
        empty = Buffer(0, granule_of(arg.dtype), shared=False, address=0, real=0, owner=arg)
        return self._make(arg, empty, 0, name)

    def _make(
        self, values: Array, buffer: Buffer, address: int, name: str, root: TracedArray | None = None
    ) -> TracedArray:
        kind: type[TracedArray] = {1: Traced1, 2: Traced2}.get(values.ndim, TracedArray)
        if values.dtype.names is not None:
            kind, values = TracedRecords, values.view(np.ndarray)
        return kind(self, seen(values), buffer, address, name, root)

    def view(self, array: TracedArray, values: Array, name: str = "") -> TracedArray:
        """A traced array for a view of another one's values; of a field, with its name."""
        real = address_of(values)
        key = (real, values.shape, values.strides, values.dtype)
        if key not in self._views:
            # Elements of another type than the buffer was made for, or in between: it is looked at in smaller units.
            unit = math.gcd(granule_of(values.dtype), real - address_of(array.values), *values.strides)
            self._refine(array.buffer, unit)
            address = array.address + real - address_of(array.values)
            name = name or f"view of {array.name.removeprefix('view of ')}"
            self._views[key] = self._make(values, array.buffer, address, name, array.root)
        return self._views[key]

    def _refine(self, buffer: Buffer, unit: int) -> None:
        smaller = math.gcd(buffer.granule, unit)
        if smaller != buffer.granule:
            if not buffer.shared and self._global_accesses:  # whose units are the old ones
                self._races_between_blocks()
                self._global_accesses.clear()
            buffer.refine(smaller)

    def shared(self, values: Array, where: Site, alignment: int, memory: object, *, dynamic: bool) -> TracedArray:
        """A traced array for a shared array that the instruction ``where`` made, or for dynamic shared memory.

        ``memory`` is that of the block: blocks that are on their way at the same time have several.
        """
        if dynamic:
            # All such arrays are views of the same memory, maybe of different types.
            buffer = self._dynamic.get(memory)
            if buffer is None:
                buffer = Buffer(
                    values.nbytes, granule_of(values.dtype), shared=True, address=_DYNAMIC, real=0, owner=values
                )
                self._dynamic[memory] = buffer
                self._buffers.append(buffer)
            buffer.granule = math.gcd(buffer.granule, granule_of(values.dtype))
            buffer.nbytes = max(buffer.nbytes, values.nbytes)
        else:
            # No more aligned than the kernel asks for: more would be luck.
            alignment = max(alignment, values.itemsize)
            address = (-(-self._static_end.get(memory, 0) // alignment) | 1) * alignment
            buffer = Buffer(values.nbytes, granule_of(values.dtype), shared=True, address=address, real=0, owner=values)
            self._static_end[memory] = address + values.nbytes
            self._buffers.append(buffer)
        return self._make(values, buffer, buffer.address, f"shared array of {site_name(where)}")

    def add(self, array: TracedArray) -> int:
        """A number for an array."""
        self._arrays.append(array)
        return len(self._arrays) - 1

    def register(self, array: TracedArray, kind: int, count: int) -> int:
        """A code for accesses to ``count`` elements of an array."""
        self._accesses.append((array.number, kind, count * array.values.itemsize))
        return len(self._accesses) - 1

    # Called while the kernel runs.

    def begin_block(self, block: BlockOnTheWay, *, alone: bool) -> None:
        """A block begins; ``alone`` if all others have ended or have not begun."""
        if alone and len(self.log) > _BATCH:
            self._flush()
        self._epoch += 1
        block.epoch = self._epoch

    def enter(self, thread: int, clock: tuple[int, ...] | None, block: BlockOnTheWay) -> None:
        """A thread begins or goes on; ``clock`` says which syncwarps lie behind it."""
        self._thread, self._block = thread, block.number
        self._runs.append((len(self.log), thread, clock, block.epoch, block.number))

    def barrier(self, block: BlockOnTheWay, sites: set[Site], *, left: bool) -> None:
        """A block passes a barrier, at which its threads wait at ``sites``; some may have ``left`` the kernel."""
        self._epoch += 1
        block.epoch = self._epoch
        self._orders.meet(self._now(), block.number, range(math.prod(self.block_dim)), None)
        if len(sites) > 1 or left:
            names = tuple(sorted(map(site_name, sites)))
            gone = ", when others have left the kernel" if left else ""
            details = f"threads of block {tuple(self.grid.at(block.number))} wait at {' and '.join(names)}{gone}"
            self.report.add("divergent barrier", (names, left), names, details)

    def syncwarp(self, block: BlockOnTheWay, threads: list[int]) -> None:
        """Threads of a warp have waited for each other."""
        self._orders.meet(self._now(), block.number, threads, threads[0] // WARP)

    def fence(self, *, block: bool) -> None:
        """The current thread passes a fence: for its ``block``, or for the whole device."""
        self._orders.fence(self._now(), self._block, self._thread, for_block=block)

    def atomic(self, buffer: Buffer, address: int, *, changes: bool) -> None:
        """The current thread's atomic comes to an element."""
        element = (id(buffer), address, self._block if buffer.shared else None)
        self._orders.atomic(self._now(), self._block, self._thread, element, changes=changes)

    def _now(self) -> int:
        return self._evaluated + len(self.log)

    def grid_barrier(self, blocks: Sequence[BlockOnTheWay]) -> None:
        """All blocks have waited for each other."""
        self._flush()
        self._races_between_blocks()
        self._global_accesses.clear()
        self._orders = Orders(math.prod(self.block_dim))  # all that was before is in order with all that follows
        for block in blocks:
            self._epoch += 1
            block.epoch = self._epoch

    def out_of_bounds(self, array: TracedArray | TracedLocal, kind: int, index: Any, where: Site) -> None:
        """The current thread accesses an element that does not exist."""
        subscript = ", ".join(str(i) for i in (index if isinstance(index, tuple) else (index,)))
        name, what = site_name(where), f"out-of-bounds {KINDS[kind]}"
        details = f"{array.name}[{subscript}] of shape {array.shape} at {name} by {self._who()}"
        self.report.add(what, (array.name, name), (name,), details)

    def negative_index(self, array: TracedArray | TracedLocal, kind: int, index: Any, where: Site) -> None:
        """The current thread counts from the end: on purpose, where the source says so with a number."""
        subscript = ", ".join(str(i) for i in (index if isinstance(index, tuple) else (index,)))
        name = site_name(where)
        details = (
            f"{KINDS[kind]} of {array.name}[{subscript}] of shape {array.shape} at {name} by {self._who()}: "
            "Numba takes the element from the end"
        )
        add = self.report.remark if is_written_negative(where) else self.report.add
        add("negative index", (array.name, name, kind), (name,), details)

    def unwritten_local(self, array: TracedLocal, index: Any, where: Site) -> None:
        """The current thread reads an element of a local array that it has not written."""
        subscript = ", ".join(str(i) for i in (index if isinstance(index, tuple) else (index,)))
        name = site_name(where)
        details = f"{array.name}[{subscript}] at {name} by {self._who()}"
        self.report.add("uninitialized read", (array.name, name), (name,), details)

    def _who(self, thread: int | None = None, block: int | None = None) -> str:
        thread, block = self._thread if thread is None else thread, self._block if block is None else block
        return thread_name(self.block_dim.at(thread), self.grid.at(block))

    # Evaluating the log.

    def finish(self) -> None:
        """The launch is over."""
        self._flush()
        self._races_between_blocks()
        buffers = [buffer for buffer in self._buffers if not buffer.shared]
        for buffer in buffers:
            if buffer.unwritten is not None:
                fresh_memory.wrote(buffer.real, buffer.written > 0, buffer.granule)
            if buffer.read_only is not None and buffer.written.any():
                reader = site_name(buffer.read_only)
                name = next(array.name for array in self._arrays if array.buffer is buffer)
                details = f"{name} is written in the launch that reads it by a read-only load at {reader}"
                self.report.add("race", (name, reader), (reader,), details)
        self.report._buffers += buffers
        self.report.launches += 1

    def give_up(self) -> None:
        """The launch has failed: what was recorded until then may say why."""
        if len(self.log) > _LAST_WORDS:
            return
        writes = sum(self._accesses[code][1] == WRITE for code, *_ in self.log)
        if writes > len(self.written):  # it was interrupted between the two
            self.log.pop()
        self._flush()
        self._races_between_blocks()

    def _flush(self) -> None:
        log, runs = self.log, self._runs
        if log:
            codes, positions, code_objects, offsets = zip(*log, strict=True)
            where = self._number_sites(code_objects, np.fromiter(offsets, np.int64, len(log)))
            array, kind, nbytes = np.array(self._accesses)[np.fromiter(codes, np.int64, len(log))].T
            address = self._columns(array, lambda traced: traced.address)
            address += np.fromiter(positions, np.int64, len(log)) * self._columns(array, lambda traced: traced.scale)
            run = np.repeat(np.arange(len(runs)), np.diff([run[0] for run in runs], append=len(log)))
            thread, epoch, block = (np.array([run[i] for run in runs])[run] for i in (1, 3, 4))
            epoch -= epoch[0]
            value = np.full(len(log), -1)
            value[kind == WRITE] = self._number_values()
            time = self._evaluated + np.arange(len(log))
            e = Events(array, kind, nbytes, address, where, run, thread, epoch, block, value, time)
            self._count_requests(e)
            self._check_elements(e)
        self._evaluated += len(log)
        log.clear()
        runs.clear()

    def _number_values(self) -> list[int]:
        """A number for the value of each write: equal values have the same."""
        numbers, written = self._values, self.written
        try:
            result = [numbers.setdefault(value, len(numbers)) for value in written]
        except TypeError:  # one of them is an array
            result = [numbers.setdefault(id(value), len(numbers)) for value in written]
        written.clear()
        return result

    def _number_sites(self, code_objects: tuple[CodeType, ...], offsets: Array) -> Array:
        """A small number for each access's instruction."""
        # A code object takes more memory than it has instructions, so no two pairs have the same sum.
        keys = (np.fromiter(map(id, code_objects), np.int64, offsets.size) << 16) + offsets
        _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        sites = [site(code_objects[i], int(offsets[i])) for i in first.tolist()]
        return np.array([self._sites.setdefault(where, len(self._sites)) for where in sites])[inverse]

    def _site_name(self, number: int) -> str:
        return site_name(list(self._sites)[number])

    def _columns(self, array: Array, attribute: Callable[[TracedArray], int]) -> Array:
        """An attribute of each access's array."""
        return np.array([attribute(traced) for traced in self._arrays])[array]

    def _count_requests(self, e: Events) -> None:
        """Group the lanes' accesses into the requests of their warps; count bank conflicts and sectors.

        Lanes are matched by counting: the n-th time that a lane came to an instruction since the last barrier belongs
        with the other lanes' n-th time.
        """
        modifies = (e.kind & (WRITE | ATOMIC) > 0).astype(np.int64)  # x[i] += y is a read and a write at one place
        e = e.take(tables.sorting(e.epoch, e.thread // WARP, e.site, modifies, e.thread % WARP))
        warp, lane = np.divmod(e.thread, WARP)
        instruction = tables.changes(e.epoch, warp, e.site, e.kind & (WRITE | ATOMIC) > 0)
        where = np.arange(warp.size)
        turn = where - np.maximum.accumulate(np.where(instruction | tables.changes(lane), where, 0))
        request = (np.cumsum(instruction) - 1) * (turn.max() + 1) + turn
        shared = self._columns(e.array, lambda traced: traced.buffer.shared)
        for measure, totals, chosen in (
            (tables.bank_passes, self.report._shared, shared),
            (tables.sectors, self.report._global, ~shared),
        ):
            chosen = np.flatnonzero(chosen & (e.kind != IDLE))
            chosen = chosen[tables.sorting(request[chosen])]
            first = chosen[tables.changes(request[chosen])]
            actual, ideal = measure(request[chosen], lane[chosen], e.address[chosen], e.nbytes[chosen])
            for key, mine in tables.groups(e.site[first], e.array[first], e.kind[first], e.nbytes[first]):
                number, array, kind, nbytes = key
                name = (self._site_name(number), self._arrays[array].name, KINDS[kind], 8 * nbytes)
                total = totals.setdefault(name, [0, 0, 0, 0.0] if measure is tables.bank_passes else [0, 0, 0])
                total[0] += mine.size
                total[1] += int(actual[mine].sum())
                total[2] += int(ideal[mine].sum())
                if measure is tables.bank_passes:
                    total[3] = max(total[3], float((actual[mine] / ideal[mine]).max()))

    def _check_elements(self, e: Events) -> None:
        """Find races within blocks and reads of what nobody wrote; count writes; keep what blocks may race on."""
        units = 0
        # Buffers of global memory come first, so that their granules have the same numbers each time.
        for buffer in self._buffers:
            buffer.first = units
            units += -(-buffer.nbytes // buffer.granule)
        e = e.take(np.flatnonzero(e.kind != IDLE))
        granule = self._columns(e.array, lambda traced: traced.buffer.granule)
        row, part = tables.expand(e.nbytes // granule)
        e = e.take(row)
        e = e._replace(address=e.address + part * granule[row])
        unit = self._columns(e.array, lambda traced: traced.buffer.first)
        unit += (e.address - self._columns(e.array, lambda traced: traced.buffer.address)) // granule[row]
        shared = self._columns(e.array, lambda traced: traced.buffer.shared)

        written, counts = np.unique(unit[e.kind != READ], return_counts=True)
        for buffer in self._buffers:
            span = slice(*np.searchsorted(written, (buffer.first, buffer.first + buffer.written.size)))
            buffer.written[written[span] - buffer.first] += counts[span]
        for buffer in self._buffers:
            if buffer.unwritten is not None:
                mine = np.flatnonzero(
                    (e.kind == READ) & (unit >= buffer.first) & (unit < buffer.first + buffer.written.size)
                )
                never = buffer.unwritten & (buffer.written == 0)
                self._add_uninitialized(e.take(mine[never[unit[mine] - buffer.first]]))
        columns = (unit, e.block, e.kind, e.site, e.array, e.value, e.thread, e.time)
        self._global_accesses.append(np.stack([column[~shared] for column in columns]).astype(np.int32))

        chosen = np.flatnonzero(np.isin(unit, written))
        order = chosen[tables.sorting(e.epoch[chosen], unit[chosen])]
        place = tables.changes(e.epoch[order], unit[order])
        table = e.take(order)
        ordered = self._ordered if any(run[2] is not None for run in self._runs) else None
        found = tables.conflicts(place, table, table.thread, ordered)
        if found[0].size and self._orders.matter:
            self._orders.catch_up()
            order_within = self._in_order(self._orders.within)
            found = tables.conflicts(
                place,
                table,
                table.thread,
                lambda e, one, other: order_within(e, one, other) or (ordered is not None and ordered(e, one, other)),
            )
        self._add_races(table, found, between_blocks=False)

        chosen = np.flatnonzero(shared)
        order = chosen[tables.sorting(e.block[chosen], unit[chosen])]
        place = tables.changes(e.block[order], unit[order])
        table, where = e.take(order), np.arange(order.size)
        writing = np.where(table.kind != READ, where, order.size)
        first = np.minimum.reduceat(writing, np.flatnonzero(place)) if order.size else writing
        # An atomic reads before it writes.
        early = where < first[np.cumsum(place) - 1] + (table.kind == ATOMIC)
        self._add_uninitialized(table.take(np.flatnonzero(early & (table.kind != WRITE))))

    def _ordered(self, e: Events, one: int, other: int) -> bool:
        """Whether a syncwarp lies between two accesses of threads of a block, in the same epoch."""
        if e.thread[one] // WARP != e.thread[other] // WARP:
            return False
        clocks = [self._runs[e.run[i]][2] or (0,) * WARP for i in (one, other)]
        lanes = [int(e.thread[i]) % WARP for i in (one, other)]
        return any(clocks[1 - i][lanes[i]] > clocks[i][lanes[i]] for i in (0, 1))

    def _in_order(self, ordering: Ordering) -> Callable[[Events, int, int], bool]:
        """Whether threads synchronised between two accesses, of which the first is earlier in the log."""
        threads = math.prod(self.block_dim)

        def ordered(e: Events, one: int, other: int) -> bool:
            who = [int(e.block[i]) * threads + int(e.thread[i]) for i in (one, other)]
            return ordering.ordered(who[0], int(e.time[one]), who[1], int(e.time[other]))

        return ordered

    def _races_between_blocks(self) -> None:
        if not self._global_accesses:
            return
        unit, block, kind, where, array, value, thread, time = np.concatenate(self._global_accesses, axis=1).astype(
            np.int64
        )
        written = np.concatenate([buffer.written for buffer in self._buffers])
        last = np.full_like(written, -1)
        last[unit[kind != READ]] = block[kind != READ]
        for buffer in self._buffers:
            buffer.writer, buffer.grid = last[buffer.first : buffer.first + buffer.written.size], self.grid
        chosen = np.flatnonzero(written[unit]) if written.size else np.zeros(0, np.int64)
        chosen = chosen[tables.sorting(unit[chosen])]
        granule = self._columns(array, lambda traced: traced.buffer.granule)
        address = self._columns(array, lambda traced: traced.buffer.address)
        address += (unit - self._columns(array, lambda traced: traced.buffer.first)) * granule
        unknown = np.zeros_like(unit)
        e = Events(array, kind, granule, address, where, unknown, thread, unknown, block, value, time).take(chosen)
        place = tables.changes(unit[chosen])
        found = tables.conflicts(place, e, e.block, None)
        if found[0].size and self._orders.matter:
            self._orders.catch_up()
            found = tables.conflicts(place, e, e.block, self._in_order(self._orders.between))
        self._add_races(e, found, between_blocks=True)

    def _add_races(self, e: Events, found: tuple[Array, Array, Array], *, between_blocks: bool) -> None:
        one, other = (e.take(rows) for rows in found[:2])
        for key, mine in tables.groups(
            one.array, one.site, one.kind, other.site, other.kind, found[2].astype(np.int64)
        ):
            i, harmless = int(mine[0]), bool(key[5])
            array = self._arrays[key[0]]
            sites, deeds = [], []
            for side in (one, other):
                block = int(side.block[i])
                who = f"block {tuple(self.grid.at(block))}"
                if not between_blocks:
                    who = self._who(int(side.thread[i]), block)
                sites.append(self._site_name(int(side.site[i])))
                deeds.append(f"{KINDS[int(side.kind[i])]} at {sites[-1]} by {who}")
            details = f"{array.element(int(one.address[i]))}: {deeds[0]}, {deeds[1]}"
            if self._orders.matter:
                early, late = sorted((one.take(mine[:1]), other.take(mine[:1])), key=lambda access: int(access.time[0]))
                both = Events(*(np.concatenate(columns) for columns in zip(early, late, strict=True)))
                if self._in_order(self._orders.meant)(both, 0, 1):
                    details += "; atomics lie between, but without cuda.threadfence() they order nothing else"
            add, kind = (self.report.remark, "same-value write") if harmless else (self.report.add, "race")
            add(kind, (array.name, between_blocks, *sites), tuple(sites), details, mine.size)

    def _add_uninitialized(self, e: Events) -> None:
        for (array, number), mine in tables.groups(e.array, e.site):
            i = int(mine[0])
            name, traced = self._site_name(number), self._arrays[array]
            who = self._who(int(e.thread[i]), int(e.block[i]))
            details = f"{traced.element(int(e.address[i]))} at {name} by {who}"
            self.report.add("uninitialized read", (traced.name, name), (name,), details, mine.size)
