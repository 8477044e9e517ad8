"""Runs the threads of a launch: blocks one after another, the threads of a block as greenlets that take turns.

A thread runs until it comes to a barrier, to an operation of its warp, or to its end; then the launch picks another. A
block is left before its end only where it waits for others: at a barrier of the whole grid, or when all its threads
spin, which is when atomics change nothing many times in a row.
"""

from __future__ import annotations

import contextvars
import gc
import math
import random
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, ClassVar, NamedTuple, TypeAlias

import numpy as np

from gpuconv.lab import fresh_memory, mathematics, records
from gpuconv.lab.cards import MAX_THREADS, Chosen
from gpuconv.lab.integers import typed
from gpuconv.lab.machine_code import Launched
from gpuconv.lab.places import WARP, Dim3, Site, site, site_name
from gpuconv.lab.report import Report
from gpuconv.lab.tracing import Tracer
from gpuconv.lab.watchdog import TimeUp, Watchdog

try:
    from greenlet import getcurrent, greenlet
except ImportError as error:
    raise ImportError("gpuconv.lab.simulator runs CUDA threads as greenlets: pip install 'gpuconv[lab]'") from error

#: Limits of every GPU of compute capability 7.0 to 12.0 (CUDA programming guide, technical specifications).
MAX_BLOCK = Dim3(1024, 1024, 64)
MAX_GRID = Dim3(2**31 - 1, 65_535, 65_535)
MAX_STATIC_SHARED = 48 * 1024


class SimulationError(RuntimeError):
    """A kernel cannot continue: it raised, waits for threads that never come, or asks for more than a GPU has.

    What a kernel raises comes out as an error that is of its own type and of this one.
    """


#: What the launch under way belongs to, if there is one; it is in one operating system thread at a time.
launch: Launch | None = None
one_at_a_time = threading.RLock()
#: The names of the module numba.cuda, in which kernels find what they call; empty until the simulator is activated.
names: dict[str, Any] = {}


class Trace(NamedTuple):
    """A trace that is under way."""

    report: Report
    #: Of the order of threads in its launches, if it has one of its own.
    seed: int | None
    #: The thread of the process that began it, and whether launches of others are none of its business.
    thread: int
    private: bool


class Settings:
    """What holds for all launches."""

    #: Of the order of threads and blocks; every launch starts from it.
    seed = 0
    #: Under way, the innermost last.
    traces: ClassVar[list[Trace]] = []
    #: Seconds after which a launch is ended.
    limit: float | None = None
    #: Where kernels are noted that are to be compiled as well.
    launched: Launched | None = None
    #: Launches by the name of the kernel, of the whole process.
    launches: ClassVar[Counter[str]] = Counter()

    @classmethod
    def trace(cls) -> Trace | None:
        """What a launch of this thread is recorded in: its innermost trace, else the one of who traced first."""
        mine = threading.get_ident()
        own = [trace for trace in cls.traces if trace.thread == mine]
        if not own:
            shared = [trace for trace in cls.traces if not trace.private]
            own = [trace for trace in shared if trace.thread == shared[0].thread]
        return own[-1] if own else None


def in_kernel() -> bool:
    """Whether the caller runs inside a launch."""
    return launch is not None and launch.system_thread == threading.get_ident()


def here() -> Launch:
    """The launch that a device function is called in."""
    if launch is None:
        raise SimulationError("numba.cuda's device functions can be called in a kernel only")
    return launch


def run(
    kernel: Callable[..., None],
    grid: Any,
    block: Any,
    args: tuple[Any, ...],
    *,
    dynamic: int = 0,
    debug: bool = False,
    linked: tuple[Any, ...] = (),
    bounds: Any = None,
) -> None:
    """Launch a Python function as a kernel.

    Args:
        kernel: what each thread runs.
        grid, block: sizes, a number or up to three, x first.
        args: of the kernel: arrays, which are used in place, numbers, tuples of such.
        dynamic: bytes of dynamic shared memory.
        debug: whether a division by zero raises.
        linked: files with functions that are not Python.
        bounds: the kernel's ``launch_bounds``: threads of a block that it is compiled for, perhaps with more numbers.
    """
    global launch
    if Settings.launched is not None:
        Settings.launched.note(kernel, args)
    with one_at_a_time:
        mine = Launch(kernel, grid, block, args, dynamic, debug=debug)
        mine.linked = linked
        most = bounds[0] if isinstance(bounds, (tuple, list)) else bounds
        if most is not None and mine.threads > most:
            words = f"block {tuple(mine.block)} has {mine.threads} threads, and its launch_bounds are {bounds}"
            raise SimulationError(f"{mine.name}: {words}")
        # The log is millions of tuples without cycles; garbage collection would take most of the time.
        collecting = gc.isenabled()
        gc.disable()
        launch = mine
        try:
            with np.errstate(all="ignore"):  # arithmetic on a GPU gives no warnings
                mine.run()
        except BaseException:
            _teams.clear()  # their threads are suspended somewhere in the kernel
            raise
        finally:
            launch = None
            if collecting:
                gc.enable()


# -- threads ---------------------------------------------------------------------------------------------


class _Thread(greenlet):
    """Runs one thread of each block. Switching to it passes a kernel and its arguments, later the results of calls."""

    def __init__(self, number: int) -> None:
        super().__init__(self._work)
        # A greenlet would start in an empty context, which would lose NumPy's setting not to warn.
        self.gr_context = contextvars.copy_context()
        self.number = number
        self.warp, self.lane = divmod(number, WARP)
        self.index = Dim3(0, 0, 0)
        self.resume: tuple[Any, ...] = ()
        #: For each lane of the warp, how many of its syncwarps are known to have happened: a vector clock.
        self.clock: tuple[int, ...] | None = None
        self.switch()

    def _work(self) -> None:
        while True:
            _run_on(*self.parent.switch(_DONE))  # keeps no argument alive while it waits for the next

    def swap(self, other: _Thread) -> None:
        """Trade places: this one has run what the other should have."""
        for name in ("number", "warp", "lane", "index"):
            mine, theirs = getattr(self, name), getattr(other, name)
            setattr(self, name, theirs)
            setattr(other, name, mine)


class _Team(list[_Thread]):
    """The threads of a block, by number."""

    #: Size of the block that their indices are for.
    block: Dim3 | None = None


def _run_on(block: _Block, queue: list[_Thread]) -> None:
    """Run a thread of a block, then those of a list that have not begun, as long as they end without waiting.

    Few calls deep: a greenlet's stack is copied at each switch.
    """
    work, args, alive = block.launch.work, block.launch.args, block.alive
    thread = block.acting
    while True:
        if work(*args) is not None:
            raise TypeError("CUDA kernel must have void return type: it returns something")
        if not queue or block.meetings:
            return  # that it has ended is noted where it was begun
        block.left += 1
        alive[thread.warp] &= ~(1 << thread.lane)
        block.acting = thread = queue.pop()
        names["threadIdx"] = thread.index
        names["laneid"] = thread.lane


# What a thread switches to the hub with: it leaves the kernel; waits for the whole grid; lets others go first.
_DONE, GRID, SPIN = object(), object(), object()
#: Threads of earlier blocks, for reuse: starting a greenlet takes ten times as long as switching to one.
_teams: list[_Team] = []

#: By lane, the value and the second argument with which it came to an operation of its warp.
Requests: TypeAlias = "dict[int, tuple[Any, Any]]"


def syncwarp(requests: Requests) -> dict[int, Any]:
    """The operation that also orders the lanes' accesses to memory."""
    return dict.fromkeys(requests)


class _Meeting:
    """Lanes of a warp that have reached the same collective operation with the same mask."""

    def __init__(self) -> None:
        self.threads: list[_Thread] = []
        self.requests: Requests = {}
        self.arrived = 0


# -- blocks ----------------------------------------------------------------------------------------------


class SharedMemory:
    """The shared arrays of a block. Blocks that run one after the other use the same."""

    def __init__(self, dynamic: int) -> None:
        self.dynamic = np.empty(dynamic, np.uint8)
        self.memories = [self.dynamic]
        #: By the instruction that makes them: a line of source may make several.
        self.arrays: dict[Site, Any] = {}
        #: Of linked code: by its program.
        self.linked: dict[Any, Any] = {}


class _Block:
    """A block that has begun, and who in it waits for whom."""

    def __init__(self, launch: Launch, number: int, team: _Team, shared: SharedMemory) -> None:
        self.launch, self.number, self.team, self.shared = launch, number, team, shared
        self.index = launch.grid.at(number)
        self.epoch = 0
        self.ready: list[_Thread] = team[: launch.threads]
        #: The thread that runs, while the others begin.
        self.acting = team[0]
        self.has_begun = self.has_swapped = False
        count = launch.threads
        #: For each warp the lanes that have not left the kernel, as bits.
        self.alive = [(1 << min(WARP, count - first)) - 1 for first in range(0, count, WARP)]
        self.meetings: dict[Any, _Meeting] = {}
        #: At ``syncthreads``, and at one that also counts, with what they offer.
        self.at_barrier: list[_Thread] = []
        self.waiting: list[tuple[_Thread, tuple[Any, ...]]] = []
        self.at_grid: list[_Thread] = []
        self.left = 0

    def advance(self) -> object:
        """Let its threads run until all have left, wait for the grid, or spin; says which."""
        launch, tracer, rounds = self.launch, self.launch.tracer, 0
        names["blockIdx"], launch.block_now = self.index, self
        while self.ready:
            spinning: list[_Thread] = []
            launch.random.shuffle(self.ready)
            if self.has_begun or tracer is not None:
                moved = self.run_ready(spinning)
            else:
                moved = self.begin(spinning)
            rounds = 0 if moved else rounds + 1
            self.ready = spinning
            if spinning:
                if rounds > _PATIENCE:
                    return SPIN
                continue
            if self.meetings:
                raise SimulationError(f"{launch.name}: deadlock in block {tuple(self.index)}: {_stuck(self.meetings)}")
            if self.at_grid:
                launch.check_cooperative(sum(memory.size for memory in self.shared.memories))
                if self.waiting or self.at_barrier:
                    raise SimulationError(
                        f"{launch.name}: deadlock in block {tuple(self.index)}: some threads wait for the block, "
                        "others for the grid"
                    )
                return GRID
            if tracer is not None and (self.waiting or self.at_barrier):
                threads = [*self.at_barrier, *(thread for thread, _ in self.waiting)]
                tracer.barrier(self, {_waits_at(thread) for thread in threads}, left=self.left > 0)
            self.ready = self.release()
        return _DONE

    def begin(self, spinning: list[_Thread]) -> bool:
        """Let each thread run until it waits, for the first time; one greenlet runs all that end without waiting."""
        self.has_begun = True
        queue, self.ready = self.ready[::-1], []
        while queue:
            thread = self.acting = queue.pop()
            names["threadIdx"] = thread.index
            names["laneid"] = thread.lane
            try:
                request = thread.switch(self, queue)
            except Exception as error:
                raise _named(error, self.launch.name, self.acting.index, self.index) from None
            if self.acting is not thread:
                thread.swap(self.acting)
                self.has_swapped = True
            if request:
                self.answer(thread, request, self.ready, spinning)
            else:
                self.at_barrier.append(thread)
                thread.resume = request
        return self.run_ready(spinning) or len(spinning) < self.launch.threads

    def run_ready(self, spinning: list[_Thread]) -> bool:
        """Let each thread that can run do so until it waits; whether one did more than to spin."""
        launch, tracer, ready, at_barrier = self.launch, self.launch.tracer, self.ready, self.at_barrier
        already = len(spinning)
        for thread in ready:  # which grows when a meeting is complete
            names["threadIdx"] = thread.index
            names["laneid"] = thread.lane
            if tracer is not None:
                tracer.enter(thread.number, thread.clock, self)
            try:
                request = thread.switch(*thread.resume)
            except Exception as error:
                raise _named(error, launch.name, thread.index, self.index) from None
            if request:
                self.answer(thread, request, ready, spinning)
            else:
                at_barrier.append(thread)
                thread.resume = request
        return len(spinning) - already < len(ready)

    def answer(self, thread: _Thread, request: Any, ready: list[_Thread], spinning: list[_Thread]) -> None:
        """Note what a thread waits for; ``ready`` grows when a meeting is complete."""
        meetings = self.meetings
        if request is _DONE:
            self.left += 1
            self.alive[thread.warp] &= ~(1 << thread.lane)
            if meetings:
                for key in [key for key in meetings if key[0] == thread.warp]:
                    self.meet(key, ready)
        elif request is SPIN:
            thread.resume = ()
            spinning.append(thread)
        elif request is GRID:
            self.at_grid.append(thread)
        elif len(request) == 2:
            self.waiting.append((thread, request))
        else:
            combine, mask, value, operand = request
            key = (thread.warp, combine, mask)
            meeting = meetings.setdefault(key, _Meeting())
            meeting.threads.append(thread)
            meeting.requests[thread.lane] = (value, operand)
            meeting.arrived |= 1 << thread.lane
            self.meet(key, ready)

    def release(self) -> list[_Thread]:
        """All threads that have not left the kernel are at a barrier: answer them."""
        released, self.at_barrier = self.at_barrier, []
        if self.waiting:
            kinds = {reduce for _, (reduce, _) in self.waiting}
            if len(kinds) > 1 or released:
                raise SimulationError(f"{self.launch.name}: threads of a block wait at different kinds of barrier")
            answer = tuple(reduce([offered for _, (_, offered) in self.waiting]) for reduce in kinds)
            released = [thread for thread, _ in self.waiting]
            for thread in released:
                thread.resume = answer
            self.waiting = []
        return released

    def meet(self, key: Any, ready: list[_Thread]) -> None:
        """Answer the lanes of a meeting, if all have come that its mask names and that have not left the kernel."""
        warp, combine, mask = key
        meeting = self.meetings[key]
        if meeting.arrived != mask & self.alive[warp]:
            return
        del self.meetings[key]
        try:
            answers = combine(meeting.requests)
        except SimulationError as error:
            places = ", ".join(sorted({site_name(_waits_at(thread)) for thread in meeting.threads}))
            words = f"{self.launch.name}: block {tuple(self.index)}, warp {warp}, at {places}: {error}"
            raise SimulationError(words) from None
        if combine is syncwarp and self.launch.tracer is not None:
            _merge_clocks(meeting.threads)
            self.launch.tracer.syncwarp(self, [thread.number for thread in meeting.threads])
        self.launch.random.shuffle(meeting.threads)
        for thread in meeting.threads:
            thread.resume = (answers[thread.lane],)
        ready += meeting.threads

    def pass_grid_barrier(self) -> None:
        """All blocks have come to it."""
        for thread in self.at_grid:
            thread.resume = ()
        self.ready, self.at_grid = self.at_grid, []


#: Seconds that a thread takes if it does next to nothing, without and with a trace, and seconds that are worth a word.
_LEAST, _LEAST_TRACED, _LONG = 1e-6, 3e-6, 60.0
#: Accesses that are recorded of a block, at most, if a launch has a limit: 2 GB.
_MOST_RECORDED = 20_000_000
#: Rounds in which all threads of a block spin, until another block gets a turn.
_PATIENCE = 4
#: Turns of a block, all of them spinning, until it is said that they wait for ever.
_HOPE = 100


# -- launches --------------------------------------------------------------------------------------------


class Launch:
    """One launch of a kernel."""

    def __init__(
        self, kernel: Callable[..., None], grid: Any, block: Any, args: tuple[Any, ...], dynamic: int, *, debug: bool
    ) -> None:
        self.kernel, self.name = kernel, kernel.__name__
        self.system_thread = threading.get_ident()
        self.grid = self._dimensions("grid", grid, MAX_GRID)
        self.block = self._dimensions("block", block, MAX_BLOCK)
        self.threads = math.prod(self.block)
        if self.threads > MAX_THREADS:
            raise SimulationError(f"{self.name}: block {tuple(self.block)} has more than {MAX_THREADS} threads")
        trace = Settings.trace()
        self.random = random.Random(Settings.seed if trace is None or trace.seed is None else trace.seed)
        self.hub = getcurrent()
        self.after: list[Callable[[], None]] = []
        self.args = tuple(self._argument(arg) for arg in args)
        self.tracer: Tracer | None = None
        if trace is not None:
            self.tracer = Tracer(trace.report, kernel, self.grid, self.block)
            self.args = self.tracer.wrap(self.args)
        #: Files with functions that are not Python, and those that were called.
        self.linked: tuple[Any, ...] = ()
        self.foreign: dict[Any, Callable[..., Any]] = {}
        self.dynamic = dynamic
        if dynamic > Chosen.card.shared_kib * 1024:
            raise SimulationError(
                f"{self.name}: {dynamic} bytes of dynamic shared memory; a block on a {Chosen.card.name} can have "
                f"{Chosen.card.shared_kib * 1024}"
            )
        self.block_now: _Block | None = None
        self._free_memory: list[SharedMemory] = []
        self._begun: list[_Block] = []
        #: Atomics in a row that changed nothing.
        self.idle = 0
        #: By function: as it runs in a kernel.
        self._bound: dict[Any, Any] = {}
        self.work = _strict(self.bound(kernel)) if debug else self.bound(kernel)

    def bound(self, function: Any) -> Any:
        """A function as it runs in a kernel."""
        known = self._bound.get(function)
        if known is None:
            known = self._bound[function] = mathematics.bound(function)
        return known

    def _dimensions(self, what: str, given: Any, limits: Dim3) -> Dim3:
        if given is None:
            raise SimulationError(f"{self.name}: no {what} given; a launch is kernel[grid, block](...)")
        sizes = tuple(int(size) for size in (given if isinstance(given, Sequence) else (given,)))
        dimensions = Dim3(*(*sizes, 1, 1)[:3])
        if any(not 1 <= size <= limit for size, limit in zip(dimensions, limits, strict=True)):
            raise SimulationError(
                f"{self.name}: {what} {tuple(dimensions)} must be from 1 to {tuple(limits)} in each direction"
            )
        return dimensions

    def link(self, files: tuple[Any, ...]) -> None:
        """Find functions that are not Python in more files, which a device function names."""
        added = tuple(file for file in files if file not in self.linked)
        if added:
            self.linked += added
            self.foreign.clear()

    def check_cooperative(self, shared_bytes: int) -> None:
        """All blocks wait for each other: a GPU has to hold them at once."""
        blocks, most = math.prod(self.grid), Chosen.card.blocks_at_once(self.threads, shared_bytes)
        if blocks > most:
            card = f"a {Chosen.card.name} holds {most} of them at once"
            raise SimulationError(f"{self.name}: its {blocks} blocks wait for each other, and {card}")

    def _argument(self, argument: Any) -> Any:
        if isinstance(argument, tuple):
            parts = [self._argument(part) for part in argument]
            return type(argument)(*parts) if hasattr(argument, "_fields") else tuple(parts)
        if hasattr(argument, "to_device") and hasattr(argument, "value"):  # cuda.In, cuda.Out, cuda.InOut
            value = argument.value
            copied = type(argument).__name__ == "In" and not hasattr(value, "_ary")  # what is on the device stays there
            return self._argument(value.copy() if copied else value)
        if hasattr(argument, "copy_to_host") and not hasattr(argument, "_ary"):  # memory of a GPU
            host = argument.copy_to_host()
            self.after.append(lambda: argument.copy_to_device(host))
            return self._argument(host)
        if isinstance(argument, (list, dict, set)):
            kind = type(argument).__name__
            raise TypeError(f"{self.name}: a {kind} cannot be on a GPU: kernels take arrays, numbers, tuples of such")
        array = getattr(argument, "_ary", argument)  # of cuda.to_device
        if isinstance(array, np.void) and array.dtype.names is not None:
            record, give_back = records.as_argument(array)
            self.after.append(give_back)
            return record
        if isinstance(array, np.ndarray):
            if array.dtype.hasobject:
                raise TypeError(f"{self.name}: an array of Python objects cannot be on a GPU")
            if Settings.trace() is None:
                fresh_memory.written(array)
            return records.as_seen(array)
        return typed(array)

    def run(self) -> None:
        """Run it to its end, or to the end of its time."""
        self._estimate()
        names.update(gridDim=self.grid, blockDim=self.block, syncthreads=self.hub.switch)
        if _teams and _teams[0][0].parent is not self.hub:
            _teams.clear()
        self._indices = [self.block.at(number) for number in range(self.threads)]
        try:
            with Watchdog(Settings.limit, lambda: self._recorded() > _MOST_RECORDED):
                self._run_blocks()
        except (TimeUp, Exception) as error:
            recorded = self._recorded()
            if self.tracer is not None:
                self.tracer.give_up()
            if not isinstance(error, TimeUp):
                raise
            places, ended = self._places(error), f"after {Settings.limit:g} s"
            if recorded > _MOST_RECORDED:
                ended = f"after {recorded:,} accesses of a block, all recorded, which take gigabytes"
            raise SimulationError(f"{self.name}: ended {ended}; its threads stand at {places}") from None
        Settings.launches[self.name] += 1
        for give_back in self.after:
            give_back()
        if self.tracer is not None:
            self.tracer.finish()

    def _recorded(self) -> int:
        """Accesses that are kept until their block ends."""
        return 0 if self.tracer is None else len(self.tracer.log)

    def _estimate(self) -> None:
        """Say how long a very large launch takes, before it starts; refuse it, if that is longer than it may take."""
        threads = math.prod(self.grid) * self.threads
        seconds = threads * (_LEAST if self.tracer is None else _LEAST_TRACED)
        words = f"{self.name}: {threads:,} threads take at least {seconds:,.0f} s here"
        if Settings.limit is not None and seconds > Settings.limit:
            raise SimulationError(f"{words}, and a launch may take {Settings.limit:g} s: launch fewer blocks")
        if seconds > _LONG:
            print(f"gpuconv.lab: {words}; a few blocks show the same faults", file=sys.stderr)

    def _run_blocks(self) -> None:
        order = list(range(math.prod(self.grid)))
        self.random.shuffle(order)
        queue: deque[_Block | int] = deque(order)
        at_grid: list[_Block] = []
        spins = ended = 0
        while queue:
            first = queue.popleft()
            block = self._begin(first) if isinstance(first, int) else first
            state = block.advance()
            if state is SPIN:
                queue.append(block)
                spins += 1
                if spins > _HOPE * len(queue):
                    raise SimulationError(
                        f"{self.name}: threads wait for ever, at {self._places()}: nobody changes what they wait for"
                    )
                continue
            spins = 0
            if state is _DONE:
                ended += 1
                self._end(block)
            else:
                at_grid.append(block)
            if not queue and at_grid:
                if ended:
                    raise SimulationError(
                        f"{self.name}: deadlock: {len(at_grid)} blocks wait for the grid at {self._places()}, and "
                        f"{ended} have left the kernel"
                    )
                if self.tracer is not None:
                    self.tracer.grid_barrier(at_grid)
                for block in at_grid:
                    block.pass_grid_barrier()
                self.random.shuffle(at_grid)
                queue.extend(at_grid)
                at_grid = []

    def _begin(self, number: int) -> _Block:
        team = _teams.pop() if _teams else _Team()
        if team.block != self.block:
            team.extend(_Thread(n) for n in range(len(team), self.threads))
            for thread, index in zip(team, self._indices, strict=False):
                thread.index = index
            team.block = self.block
        shared = self._free_memory.pop() if self._free_memory else SharedMemory(self.dynamic)
        for memory in shared.memories:
            memory.fill(0xFF)
        block = _Block(self, number, team, shared)
        if self.tracer is not None:
            for thread in block.ready:
                thread.resume, thread.clock = (block, []), None
        self._begun.append(block)
        if self.tracer is not None:
            self.tracer.begin_block(block, alone=len(self._begun) == 1)
        return block

    def _end(self, block: _Block) -> None:
        self._begun.remove(block)
        if block.has_swapped:
            block.team.sort(key=lambda thread: thread.number)
        _teams.append(block.team)
        self._free_memory.append(block.shared)

    def _places(self, error: BaseException | None = None) -> str:
        """Where the threads that have not ended stand, and how many at each place."""
        counts: dict[str, int] = {}
        for thread in (thread for block in self._begun for thread in block.team[: self.threads]):
            place = next(_kernel_frames(thread.gr_frame), None)
            if place is not None:
                counts[site_name(place)] = counts.get(site_name(place), 0) + 1
        inner, running = error.__traceback__ if error else None, None
        while inner is not None and inner.tb_frame.f_globals.get("__name__") != "gpuconv.lab.linked":
            if not _is_ours(inner.tb_frame):
                running = site_name(site(inner.tb_frame.f_code, inner.tb_lasti))
            inner = inner.tb_next
        if running is not None:
            counts[running] = counts.get(running, 0) + 1
        ranked = sorted(counts.items(), key=lambda item: -item[1])
        return ", ".join(f"{name} ({count} thread{'s' * (count > 1)})" for name, count in ranked[:8]) or "their start"


def _strict(kernel: Callable[..., None]) -> Callable[..., None]:
    def work(*args: Any) -> None:
        with np.errstate(divide="raise"):
            return kernel(*args)

    return work


def _named(error: Exception, kernel: str, thread: Dim3, block: Dim3) -> Exception:
    """The error as the launch raises it: of its own type, with the thread in front, in the words of numba-cuda."""
    where = f"{kernel}: tid={list(thread)} ctaid={list(block)}"
    words = f"{where}: {error}" if str(error) else where
    if isinstance(error, OverflowError) and "too large to convert" in words:
        words += "; beside an int64, write a number of 2**63 or more as np.uint64(...)"
    kind: Any = type(error)
    bases = (kind,) if isinstance(error, SimulationError) else (kind, SimulationError)
    methods = {"__module__": kind.__module__, "__str__": lambda self: str(self.args[0])}
    try:
        combined = type(kind.__name__, bases, methods)
        named: Any = combined.__new__(combined, words)
        named.args = (words,)
        named.__dict__.update(error.__dict__)
    except TypeError:  # a type that cannot be inherited from like this
        named = SimulationError(f"{where}: {kind.__name__}: {error}")
    raised: Exception = named.with_traceback(error.__traceback__)
    return raised


def _merge_clocks(threads: list[_Thread]) -> None:
    """After a syncwarp, each of its lanes knows what any of them knew, and that all of them have passed it."""
    clocks = np.array([thread.clock or (0,) * WARP for thread in threads])
    clocks[np.arange(len(threads)), [thread.lane for thread in threads]] += 1
    merged = tuple(clocks.max(axis=0).tolist())
    for thread in threads:
        thread.clock = merged


def _kernel_frames(frame: FrameType | None) -> Iterator[Site]:
    """The instructions at which a suspended thread stands, the innermost first, without those of the laboratory."""
    while frame is not None:
        if not _is_ours(frame):
            yield site(frame.f_code, frame.f_lasti)
        frame = frame.f_back


def _is_ours(frame: FrameType) -> bool:
    return bool(frame.f_globals.get("__name__", "").startswith(("gpuconv.lab.", "greenlet", "numpy.")))


def _waits_at(thread: _Thread) -> Site:
    """The instruction of the kernel at which a suspended thread waits."""
    return next(_kernel_frames(thread.gr_frame))


def _stuck(meetings: dict[Any, _Meeting]) -> str:
    return "; ".join(
        f"lanes {meeting.arrived:#010x} of warp {warp} wait at {site_name(_waits_at(meeting.threads[0]))} for those "
        f"of mask {mask:#010x}, some of which wait elsewhere"
        for (warp, _, mask), meeting in meetings.items()
    )
