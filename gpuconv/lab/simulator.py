"""Runs CUDA kernels on the CPU, with threads in shuffled order, and records every access to memory.

    from gpuconv.lab import simulator

    simulator.activate()                  # before anything imports numba.cuda
    with simulator.trace() as report:
        kernel[grid, block](x, y)         # NumPy arrays, used in place
    assert report.clean, str(report)

A kernel that gives right results here, on ragged shapes and in several thread orders, with a clean report, is most
likely right on a GPU. The simulator cannot tell time or registers, nor whether the instructions behind an intrinsic do
the same as its Python version.

**How it works.** Numba's own simulator starts an operating system thread for every CUDA thread. Here a CUDA thread is a
greenlet. It runs until it reaches a barrier, a shuffle or its end, then switches back to a loop that picks another
thread. Threads and blocks run in a random order, which changes after each barrier and is the same in each run, so that
a missing barrier shows as a wrong result. Lanes of a warp wait for each other at shuffles, votes and ``syncwarp``.
Shared and local memory starts as NaN (integers: all bits set). One launch runs at a time, in one thread of the process.

**The trace** finds races, reads of uninitialised shared memory, accesses out of bounds and divergent barriers. It
counts bank conflicts, 32-byte sectors and writes: see :class:`gpuconv.lab.tracing.Report`. Conflicts and sectors are
counted for whole warps. For that, accesses of different lanes are matched by their number: a lane's n-th execution of
an instruction since the last barrier goes with the n-th execution of the other lanes. An ``if`` in a loop that only
some lanes take shifts this. The predicated loads of ``gpuconv.kernels.device`` are counted whether they are on or off.

**Internals it relies on**: ``FakeCUDAKernel`` of ``numba.cuda.simulator.kernel`` (its ``__call__`` is replaced;
``fn``, ``_device``, ``grid_dim``, ``block_dim``, ``dynshared_size`` are read) and ``FakeCUDAModule`` of ``kernelapi``
(arithmetic that needs no thread). What a kernel calls (``threadIdx``, ``shared``...) is put into the module
``numba.cuda`` itself, so that kernels and helpers may be in several modules. Checked with numba-cuda 0.20.0 and
0.30.4, and with the ``cuda`` inside numba 0.68.1; :func:`activate` raises an error for an unknown layout.
"""

from __future__ import annotations

import contextlib
import contextvars
import gc
import importlib
import math
import operator
import os
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from types import FrameType, ModuleType
from typing import Any, TypeAlias

import numpy as np

from gpuconv.lab.tracing import WARP, Array, Dim3, Report, Site, Tracer, poison, site, site_name, thread_name

try:
    from greenlet import getcurrent, greenlet
except ImportError as error:
    raise ImportError("gpuconv.lab.simulator runs CUDA threads as greenlets: pip install 'gpuconv[test]'") from error

__all__ = ["Report", "SimulationError", "activate", "trace"]

#: Limits of every GPU of compute capability 7.5 to 10.0 (CUDA programming guide, technical specifications).
MAX_THREADS = 1024
MAX_BLOCK = Dim3(1024, 1024, 64)
MAX_GRID = Dim3(2**31 - 1, 65_535, 65_535)
MAX_STATIC_SHARED = 48 * 1024
#: Static and dynamic together, at 9.0 and 10.0; 8.0 has 163 KB, 8.6 and 8.9 have 99 KB.
MAX_SHARED = 227 * 1024

ALL_LANES = 0xFFFFFFFF


class SimulationError(RuntimeError):
    """A kernel cannot continue: it raised, waits for threads that never come, or asks for more than a GPU has."""


# -- switching it on -------------------------------------------------------------------------------------

_seed = 0
_report: Report | None = None
_launch: _Launch | None = None
#: The names of the module numba.cuda, in which kernels find what they call; empty until activated.
_names: dict[str, Any] = {}


def activate(seed: int = 0) -> None:
    """Run all launches of ``numba.cuda`` kernels in this simulator, in this process and its child processes.

    Sets ``NUMBA_ENABLE_CUDASIM=1``. Call it before anything imports ``numba.cuda`` (``numba`` itself may be imported
    before), or start Python with that variable set. Calling it again only sets the seed.

    Args:
        seed: of the order of threads and blocks; every launch starts from it.

    Raises:
        RuntimeError: ``numba.cuda`` was imported for a real GPU before, ``NUMBA_ENABLE_CUDASIM=0`` asks for one, or the
            simulator has an unknown layout.
        ImportError: numba is missing.
    """
    global _seed
    if "numba.cuda" not in sys.modules:
        if os.environ.get("NUMBA_ENABLE_CUDASIM") == "0":
            raise RuntimeError("NUMBA_ENABLE_CUDASIM=0 asks for a real GPU: unset it to use the simulator")
        os.environ["NUMBA_ENABLE_CUDASIM"] = "1"
        # Numba read the environment when it was first imported, which may have been long ago, for the CPU.
        importlib.import_module("numba").config.reload_config()
    cuda = importlib.import_module("numba.cuda")
    if not cuda.jit.__module__.startswith("numba.cuda.simulator"):
        raise RuntimeError(
            "numba.cuda was imported without its simulator: set NUMBA_ENABLE_CUDASIM=1 before Python starts, or call "
            "gpuconv.lab.simulator.activate() before anything imports numba.cuda"
        )
    _seed = seed
    if not _names:
        _patch(cuda)


def _patch(cuda: ModuleType) -> None:
    global _names
    try:
        kernel = importlib.import_module("numba.cuda.simulator.kernel")
        api = importlib.import_module("numba.cuda.simulator.kernelapi")
        probe = kernel.FakeCUDAKernel(lambda: None, device=False)
        for name in ("fn", "_device", "grid_dim", "block_dim", "dynshared_size"):
            getattr(probe, name)
        as_dtype = api.numpy_support.as_dtype
        arithmetic = api.FakeCUDAModule((1, 1, 1), (1, 1, 1), 0)
        names = {name: getattr(arithmetic, name) for name in _ARITHMETIC}
    except (ImportError, AttributeError, TypeError) as error:
        raise RuntimeError(
            f"gpuconv.lab.simulator does not know the layout of this numba.cuda simulator ({error}): it was written "
            "for numba-cuda 0.20.0 to 0.30.4"
        ) from error
    _names = vars(cuda)
    _names.update(names, **_NAMES, shared=_Shared(as_dtype), local=_Local(as_dtype))
    kernel.FakeCUDAKernel.__call__ = _call


@contextlib.contextmanager
def trace(*, seed: int | None = None) -> Iterator[Report]:
    """Record every access of the launches inside the ``with`` block; gives a :class:`~gpuconv.lab.tracing.Report`.

    Args:
        seed: of the order of threads in these launches, instead of the one given to :func:`activate`.

    Raises:
        RuntimeError: the simulator is not active, or another trace is under way.
    """
    global _report, _seed
    if not _names:
        raise RuntimeError("the simulator is not active: call gpuconv.lab.simulator.activate() first")
    if _report is not None:
        raise RuntimeError("a trace is under way, and traces cannot be nested")
    report, before = Report(), _seed
    _report, _seed = report, _seed if seed is None else seed
    try:
        yield report
    finally:
        _report, _seed = None, before


# -- launching: blocks one after another, the threads of a block as greenlets ----------------------------


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
            _run(*self.parent.switch(_DONE))  # keeps no argument alive while it waits for the next


def _run(kernel: Callable[..., None], args: tuple[Any, ...]) -> None:
    kernel(*args)


#: What a thread switches to the hub with when it leaves the kernel.
_DONE = object()
#: Threads of earlier launches, for reuse: starting a greenlet takes ten times as long as switching to one.
_threads: list[_Thread] = []


class _Meeting:
    """Lanes of a warp that have reached the same collective operation with the same mask."""

    def __init__(self) -> None:
        self.threads: list[_Thread] = []
        self.requests: _Requests = {}
        self.arrived = 0


def _call(kernel: Any, *args: Any) -> Any:
    """Replaces ``FakeCUDAKernel.__call__``: a launch or, inside a launch, the call of a device function."""
    global _launch
    if kernel._device or _launch is not None:
        return kernel.fn(*args)
    _launch = _Launch(kernel, args)
    # The log is millions of tuples without cycles; garbage collection would take most of the time.
    collecting = gc.isenabled()
    gc.disable()
    try:
        with np.errstate(all="ignore"):  # arithmetic on a GPU gives no warnings
            _launch.run()
    except BaseException:
        _threads.clear()  # they are suspended somewhere in the kernel
        raise
    finally:
        _launch = None
        if collecting:
            gc.enable()
    return None


class _Launch:
    """One launch of a kernel."""

    def __init__(self, kernel: Any, args: tuple[Any, ...]) -> None:
        self.kernel, self.name = kernel.fn, kernel.fn.__name__
        self.grid = self._dimensions("grid", kernel.grid_dim, MAX_GRID)
        self.block = self._dimensions("block", kernel.block_dim, MAX_BLOCK)
        if math.prod(self.block) > MAX_THREADS:
            raise SimulationError(f"{self.name}: block {tuple(self.block)} has more than {MAX_THREADS} threads")
        self.random = random.Random(_seed)
        self.hub = getcurrent()
        self.args = tuple(self._argument(arg) for arg in args)
        self.tracer: Tracer | None = None
        if _report is not None:
            self.tracer = Tracer(_report, self.kernel, self.grid, self.block)
            self.args = self.tracer.wrap(self.args)
        #: Shared arrays by the instruction that makes them: a line of source may make several.
        self.shared: dict[Site, Any] = {}
        self.dynamic = np.empty(kernel.dynshared_size, np.uint8)
        self.shared_memory = [self.dynamic]

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

    def _argument(self, argument: Any) -> Any:
        if isinstance(argument, tuple):
            return tuple(self._argument(part) for part in argument)
        if hasattr(argument, "to_device") and hasattr(argument, "value"):  # cuda.In, cuda.Out, cuda.InOut
            value = argument.value
            return self._argument(value.copy() if type(argument).__name__ == "In" else value)
        array = getattr(argument, "_ary", argument)  # of cuda.to_device
        if isinstance(array, np.ndarray) and array.dtype.names is not None:
            raise SimulationError(f"{self.name}: arrays of records are not simulated")
        return array

    def run(self) -> None:
        if _threads and _threads[0].parent is not self.hub:
            _threads.clear()
        count = math.prod(self.block)
        _threads.extend(_Thread(number) for number in range(len(_threads), count))
        threads = _threads[:count]
        for thread in threads:
            thread.index = self.block.at(thread.number)
        blocks = list(range(math.prod(self.grid)))
        self.random.shuffle(blocks)
        _names.update(gridDim=self.grid, blockDim=self.block, syncthreads=self.hub.switch)
        for block in blocks:
            for memory in self.shared_memory:
                memory.fill(0xFF)
            for thread in threads:
                thread.resume, thread.clock = (self.kernel, self.args), None
            if self.tracer is not None:
                self.tracer.begin_block(block)
            self.run_block(self.grid.at(block), list(threads))
        if self.tracer is not None:
            self.tracer.finish()

    def run_block(self, block: Dim3, threads: list[_Thread]) -> None:
        """Let every thread run to its end."""
        tracer, names = self.tracer, _names
        names["blockIdx"] = block
        count = len(threads)
        #: For each warp the lanes that have not left the kernel, as bits.
        alive = [(1 << min(WARP, count - first)) - 1 for first in range(0, count, WARP)]
        meetings: dict[Any, _Meeting] = {}
        waiting: list[tuple[_Thread, tuple[Any, ...]]] = []
        ready, left = threads, 0
        while ready:
            self.random.shuffle(ready)
            for thread in ready:  # which grows when a meeting is complete
                names["threadIdx"] = thread.index
                names["laneid"] = thread.lane
                if tracer is not None:
                    tracer.enter(thread.number, thread.clock)
                try:
                    request = thread.switch(*thread.resume)
                except Exception as error:
                    who = thread_name(thread.index, block)
                    raise SimulationError(f"{self.name}: {who}: {type(error).__name__}: {error}") from error
                if request is _DONE:
                    left += 1
                    alive[thread.warp] &= ~(1 << thread.lane)
                    for key in [key for key in meetings if key[0] == thread.warp]:
                        self.meet(meetings, key, alive[thread.warp], ready)
                elif len(request) < 3:
                    waiting.append((thread, request))
                else:
                    combine, mask, value, operand = request
                    key = (thread.warp, combine, mask)
                    meeting = meetings.setdefault(key, _Meeting())
                    meeting.threads.append(thread)
                    meeting.requests[thread.lane] = (value, operand)
                    meeting.arrived |= 1 << thread.lane
                    self.meet(meetings, key, alive[thread.warp], ready)
            if meetings:
                raise SimulationError(f"{self.name}: deadlock in block {tuple(block)}: {_stuck(meetings)}")
            if tracer is not None and waiting:
                tracer.barrier({_waits_at(thread) for thread, _ in waiting}, left=left > 0)
            ready, waiting = self.release(waiting), []

    def release(self, waiting: list[tuple[_Thread, tuple[Any, ...]]]) -> list[_Thread]:
        """All threads that have not left the kernel are at a barrier: answer them."""
        kinds = {request[:1] for _, request in waiting}
        if len(kinds) > 1:
            raise SimulationError(f"{self.name}: threads of a block wait at different kinds of barrier")
        answer = tuple(reduce([request[1] for _, request in waiting]) for kind in kinds for reduce in kind)
        for thread, _ in waiting:
            thread.resume = answer
        return [thread for thread, _ in waiting]

    def meet(self, meetings: dict[Any, _Meeting], key: Any, alive: int, ready: list[_Thread]) -> None:
        """Answer the lanes of a meeting, if all have come that its mask names and that have not left the kernel."""
        _, combine, mask = key
        meeting = meetings[key]
        if meeting.arrived != mask & alive:
            return
        del meetings[key]
        answers = combine(meeting.requests)
        if combine is _syncwarp:
            _merge_clocks(meeting.threads)
        self.random.shuffle(meeting.threads)
        for thread in meeting.threads:
            thread.resume = (answers[thread.lane],)
        ready += meeting.threads


def _merge_clocks(threads: list[_Thread]) -> None:
    """After a syncwarp, each of its lanes knows what any of them knew, and that all of them have passed it."""
    clocks = np.array([thread.clock or (0,) * WARP for thread in threads])
    clocks[np.arange(len(threads)), [thread.lane for thread in threads]] += 1
    merged = tuple(clocks.max(axis=0).tolist())
    for thread in threads:
        thread.clock = merged


def _waits_at(thread: _Thread) -> Site:
    """The instruction of the kernel at which a suspended thread waits."""
    frame: FrameType | None = thread.gr_frame
    while frame is not None and frame.f_globals is globals():
        frame = frame.f_back
    assert frame is not None
    return site(frame.f_code, frame.f_lasti)


def _stuck(meetings: dict[Any, _Meeting]) -> str:
    return "; ".join(
        f"lanes {meeting.arrived:#010x} of warp {warp} wait at {site_name(_waits_at(meeting.threads[0]))} for those "
        f"of mask {mask:#010x}, some of which wait elsewhere"
        for (warp, _, mask), meeting in meetings.items()
    )


# -- what kernels find in numba.cuda ---------------------------------------------------------------------

#: What is taken from numba's own simulator.
_ARITHMETIC = ("popc", "brev", "clz", "ffs", "cbrt", "selp", "fma", "fp16")


def _here() -> _Launch:
    if _launch is None:
        raise SimulationError("numba.cuda's device functions can be called in a kernel only")
    return _launch


def _grid(ndim: int) -> Any:
    block, size, thread = _names["blockIdx"], _names["blockDim"], _names["threadIdx"]
    position = tuple(b * s + t for b, s, t in zip(block, size, thread, strict=True))
    return position[0] if ndim == 1 else position[:ndim]


def _gridsize(ndim: int) -> Any:
    extent = tuple(g * b for g, b in zip(_names["gridDim"], _names["blockDim"], strict=True))
    return extent[0] if ndim == 1 else extent[:ndim]


def _barrier(reduce: Callable[[list[bool]], int]) -> Callable[[Any], Any]:
    def barrier(predicate: Any) -> Any:
        if isinstance(predicate, (bool, np.bool_)):
            raise TypeError(
                "syncthreads_count, _and and _or take an integer: numba-cuda does not compile them with a bool; "
                "types.int32(1) if ... else types.int32(0) will do"
            )
        return _here().hub.switch(reduce, bool(predicate))

    return barrier


#: By lane, the value and the second argument with which it came to a collective operation.
_Requests: TypeAlias = "dict[int, tuple[Any, Any]]"


def _shuffle(source: Callable[[int, int], int]) -> Callable[[_Requests], dict[int, Any]]:
    """A lane gets the value of the lane ``source(lane, operand)``, or its own if that is outside the warp."""

    def combine(requests: _Requests) -> dict[int, Any]:
        answers = {}
        for lane, (own, operand) in requests.items():
            other = source(lane, operand)
            if 0 <= other < WARP and other not in requests:
                raise SimulationError(f"shuffle: lane {lane} reads from lane {other}, which does not take part")
            answers[lane] = requests[other][0] if 0 <= other < WARP else own
        return answers

    return combine


def _vote(judge: Callable[[dict[int, bool]], Any]) -> Callable[[_Requests], dict[int, Any]]:
    def combine(requests: _Requests) -> dict[int, Any]:
        return dict.fromkeys(requests, judge({lane: bool(value) for lane, (value, _) in requests.items()}))

    return combine


def _match_any(requests: _Requests) -> dict[int, Any]:
    return {
        lane: sum(1 << other for other, (theirs, _) in requests.items() if theirs == value)
        for lane, (value, _) in requests.items()
    }


def _match_all(requests: _Requests) -> dict[int, Any]:
    lanes = sum(1 << lane for lane in requests)
    same = set(_match_any(requests).values()) == {lanes}
    return dict.fromkeys(requests, (lanes, True) if same else (0, False))


def _syncwarp(requests: _Requests) -> dict[int, Any]:
    return dict.fromkeys(requests)


def _collective(combine: Callable[[_Requests], dict[int, Any]]) -> Callable[..., Any]:
    """What a kernel calls: the result depends on all lanes that the mask names."""

    def operation(mask: int = ALL_LANES, value: Any = None, operand: Any = None) -> Any:
        lanes, lane = operator.index(mask) & ALL_LANES, _names["laneid"]  # -1 is a usual spelling of all lanes
        if not lanes >> lane & 1:
            raise SimulationError(f"lane {lane} calls with mask {lanes:#010x}, which does not name it")
        return _here().hub.switch(combine, lanes, value, operand)

    return operation


class _CooperativeGrid:
    """``cuda.cg.this_grid()``."""

    def sync(self) -> None:
        launch = _here()
        if math.prod(launch.grid) > 1:
            raise SimulationError(
                f"{launch.name}: blocks run one after another; only a grid of one can be synchronised"
            )
        launch.hub.switch()


class _CooperativeGroups:
    this_grid = _CooperativeGrid


class _Constant:
    @staticmethod
    def array_like(array: Array) -> Array:
        return array


class _Local:
    """``cuda.local``."""

    def __init__(self, as_dtype: Callable[[Any], Any]) -> None:
        self._as_dtype = as_dtype

    def array(self, shape: Any, dtype: Any, alignment: int | None = None) -> Array:
        dtype = np.dtype(self._as_dtype(dtype) if not isinstance(dtype, (type, np.dtype)) else dtype)
        return np.full(shape, poison(dtype), dtype)


class _Shared:
    """``cuda.shared``."""

    def __init__(self, as_dtype: Callable[[Any], Any]) -> None:
        self._as_dtype = as_dtype

    def array(self, shape: Any, dtype: Any, alignment: int | None = None) -> Any:
        launch, frame = _here(), sys._getframe(1)
        where = site(frame.f_code, frame.f_lasti)
        if where not in launch.shared:
            dtype = np.dtype(self._as_dtype(dtype) if not isinstance(dtype, (type, np.dtype)) else dtype)
            launch.shared[where] = self._make(launch, where, shape, dtype, alignment or 0)
        return launch.shared[where]

    @staticmethod
    def _make(launch: _Launch, where: Site, shape: Any, dtype: np.dtype[Any], alignment: int) -> Any:
        memory = launch.dynamic[: launch.dynamic.size // dtype.itemsize * dtype.itemsize]
        dynamic = isinstance(shape, int) and shape == 0
        if not dynamic:
            memory = np.full(math.prod(np.atleast_1d(shape).tolist()) * dtype.itemsize, 0xFF, np.uint8)
            launch.shared_memory.append(memory)
        total = sum(memory.size for memory in launch.shared_memory)
        static = total - launch.dynamic.size
        if static > MAX_STATIC_SHARED or total > MAX_SHARED:
            raise SimulationError(
                f"{launch.name}: {static} bytes of static and {launch.dynamic.size} of dynamic shared memory; a block "
                f"can have {MAX_STATIC_SHARED} static and {MAX_SHARED} in all"
            )
        array = memory.view(dtype)
        if not dynamic:
            array = array.reshape(shape)
        return array if launch.tracer is None else launch.tracer.shared(array, where, alignment, dynamic=dynamic)


def _atomic(update: Callable[[Any, Any], Any]) -> Any:
    def operation(array: Any, index: Any, value: Any) -> Any:
        if not isinstance(array, np.ndarray):
            return array.exchange(index, lambda old: update(old, value))
        old = array[index]
        array[index] = update(old, value)
        return old

    return staticmethod(operation)


class _Atomic:
    """``cuda.atomic``: functions of (array, index, value) that return what the element was."""

    add = _atomic(operator.add)
    sub = _atomic(operator.sub)
    and_ = _atomic(operator.and_)
    or_ = _atomic(operator.or_)
    xor = _atomic(operator.xor)
    inc = _atomic(lambda old, limit: 0 if old >= limit else old + 1)
    dec = _atomic(lambda old, limit: limit if old == 0 or old > limit else old - 1)
    exch = _atomic(lambda old, value: value)
    max = _atomic(max)
    min = _atomic(min)
    nanmax = _atomic(np.fmax)
    nanmin = _atomic(np.fmin)
    _cas = _atomic(lambda old, change: change[1] if old == change[0] else old)

    @staticmethod
    def cas(array: Any, index: Any, old: Any, value: Any) -> Any:
        return _Atomic._cas(array, index, (old, value))

    @staticmethod
    def compare_and_swap(array: Any, old: Any, value: Any) -> Any:
        return _Atomic._cas(array, (0,) * array.ndim, (old, value))


def _nothing(*args: Any) -> None:
    """Fences and sleeps do nothing: other threads see a write at once."""


_NAMES: dict[str, Any] = {
    "warpsize": WARP,
    "grid": _grid,
    "gridsize": _gridsize,
    "syncthreads_count": _barrier(sum),
    "syncthreads_and": _barrier(lambda votes: int(all(votes))),
    "syncthreads_or": _barrier(lambda votes: int(any(votes))),
    "syncwarp": _collective(_syncwarp),
    "shfl_sync": _collective(_shuffle(lambda lane, source: source % WARP)),
    "shfl_up_sync": _collective(_shuffle(lambda lane, delta: lane - delta)),
    "shfl_down_sync": _collective(_shuffle(lambda lane, delta: lane + delta)),
    "shfl_xor_sync": _collective(_shuffle(lambda lane, bits: lane ^ bits)),
    "all_sync": _collective(_vote(lambda votes: all(votes.values()))),
    "any_sync": _collective(_vote(lambda votes: any(votes.values()))),
    "eq_sync": _collective(_vote(lambda votes: len(set(votes.values())) == 1)),
    "ballot_sync": _collective(_vote(lambda votes: sum(1 << lane for lane, vote in votes.items() if vote))),
    "match_any_sync": _collective(_match_any),
    "match_all_sync": _collective(_match_all),
    "lanemask_lt": lambda: (1 << _names["laneid"]) - 1,
    "threadfence": _nothing,
    "threadfence_block": _nothing,
    "threadfence_system": _nothing,
    "nanosleep": _nothing,
    "const": _Constant,
    "atomic": _Atomic,
    "cg": _CooperativeGroups,
}
