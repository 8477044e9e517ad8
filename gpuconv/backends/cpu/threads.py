"""Threads for kernels: they work on the chunks of one job at a time, and a late thread is not waited for.

Numba's own threads, of ``@njit(parallel=True)``, do not suit the kernels of a small network, which take 10 to 500 µs:

- Its default layer, GNU OpenMP, lets idle threads spin for milliseconds at the cost of others that need the core (two
  matrix products of NumPy between two kernels took 55 ms instead of 0.4). It waits for every thread of the team even if
  the work is done, and aborts a forked child.
- The layer that is always available takes 40 µs for a job, and aborts the process if two threads start one together.

Here the calling thread works too. Threads take chunks as they become free, and at the end the caller waits only for
chunks that a thread has started: on a busy machine it simply does more of them itself. Idle threads spin for some µs to
catch the next kernel of a network, then sleep. A forked child starts threads of its own. If two callers overlap, the
second one computes alone.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from gpuconv.backends import host_graph
from gpuconv.backends.cpu.compile import Kernel, jit

#: Variable that sets the number of threads. Without it, that of Numba: ``NUMBA_NUM_THREADS``, or the number of cores.
ENVIRONMENT_VARIABLE = "GPUCONV_NUM_THREADS"

#: Multiply-adds (or as much other work) that justify waking one more thread: some 10 µs.
_WORK_A_THREAD = 1_000_000
#: Multiply-adds that justify sharing the work with threads that are awake.
_WORK_TO_SHARE = 200_000

#: Launches of a kernel from which it is called by code that is compiled for its arguments, in a µs instead of 7. That
#: code takes a quarter of a second to compile, which few programs win back: a captured step needs none.
_OFTEN = 1000

#: How often an idle thread looks for work before it sleeps: some 200 µs, more than passes between two kernels of a
#: network.
_PATIENCE = 10000

# What the threads share: 64-bit integers, each in a cache line of its own (8 of them), so that no write disturbs
# another.
_JOB = 0  # number of the latest job
_FUNCTION = 8  # of the latest job: what to call with a chunk's number and ...
_ARGUMENTS = 16  # ... where its arguments are
_CHUNKS = 24
_NEXT = 32  # chunk to be taken next
_OPEN = 40  # 1 while a job's chunks may be taken
_INSIDE = 48  # how many threads look at the job
_ASLEEP = 56  # from here on: 1 for each thread that sleeps

_INT64 = ir.IntType(64)

# -- memory that several threads write -------------------------------------------------------------------------------


def _element(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
    return builder.gep(context.make_array(signature.args[0])(context, builder, value=values[0]).data, [values[1]])


@intrinsic
def _read(typing: Any, shared: Any, index: Any) -> Any:
    """``shared[index]``, as last written by any thread."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
        return builder.load_atomic(_element(context, builder, signature, values), "seq_cst", 8)

    return types.int64(shared, types.int64), generate


@intrinsic
def _write(typing: Any, shared: Any, index: Any, value: Any) -> Any:
    """``shared[index] = value``, for all threads to see, after all that was written before."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
        builder.store_atomic(values[2], _element(context, builder, signature, values), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(shared, types.int64, types.int64), generate


@intrinsic
def _add(typing: Any, shared: Any, index: Any, value: Any) -> Any:
    """``shared[index] += value``; returns what was there before."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
        address = _element(context, builder, signature, values)
        return builder.atomic_rmw("add", address, values[2], "seq_cst")

    return types.int64(shared, types.int64, types.int64), generate


@intrinsic
def _pause(typing: Any) -> Any:
    """Tell the CPU that this is a loop that waits."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
        if builder.module.triple.startswith(("x86", "i686")):
            function = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, function, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def _yield_core(typing: Any) -> Any:
    """Let another thread have the core, if one waits for it."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
        if sys.platform != "win32":  # POSIX
            function = ir.FunctionType(ir.IntType(32), [])
            builder.call(cgutils.get_or_insert_function(builder.module, function, "sched_yield"), [])
        return context.get_dummy_value()

    return types.void(), generate


# -- calling a kernel ------------------------------------------------------------------------------------------------


def _call_kernel(builder: ir.IRBuilder, address: ir.Value, chunk: ir.Value, arguments: list[ir.Value]) -> None:
    function = ir.FunctionType(ir.VoidType(), [_INT64, *(argument.type for argument in arguments)])
    builder.call(builder.inttoptr(address, function.as_pointer()), [chunk, *arguments])


def _plain(context: Any, builder: ir.IRBuilder, kinds: Any, values: ir.Value) -> list[ir.Value]:
    """The arguments as a kernel takes them: of an array the pointer."""
    plain = []
    for index, kind in enumerate(kinds):
        value = builder.extract_value(values, index)
        if isinstance(kind, types.Array):
            value = context.make_array(kind)(context, builder, value=value).data
        plain.append(value)
    return plain


@intrinsic
def _call(typing: Any, address: Any, chunk: Any, arguments: Any) -> Any:
    """Call the kernel at an address."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
        _call_kernel(builder, values[0], values[1], _plain(context, builder, arguments, values[2]))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, arguments), generate


@intrinsic
def _place_for_record(typing: Any, arguments: Any) -> Any:
    """The address of room on the stack for a kernel's record."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
        return builder.ptrtoint(cgutils.alloca_once(builder, ir.ArrayType(_INT64, 1 + len(arguments))), _INT64)

    return types.int64(arguments), generate


@intrinsic
def _write_record(typing: Any, record: Any, address: Any, arguments: Any) -> Any:
    """Write a kernel's record (:attr:`Kernel.entry`) at an address."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
        words = builder.inttoptr(values[0], _INT64.as_pointer())
        for index, field in enumerate([values[1], *_plain(context, builder, arguments, values[2])]):
            place = builder.gep(words, [_INT64(index)])
            builder.store(field, builder.bitcast(place, field.type.as_pointer()))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, arguments), generate


@intrinsic
def _call_chunk(typing: Any, function: Any, chunk: Any, arguments: Any) -> Any:
    """Call a kernel's entry with a record."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
        _call_kernel(builder, values[0], values[1], [values[2]])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@intrinsic
def _word(typing: Any, address: Any) -> Any:
    """The 64-bit integer at an address."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
        return builder.load(builder.inttoptr(values[0], _INT64.as_pointer()))

    return types.int64(types.int64), generate


# -- running the chunks -----------------------------------------------------------------------------------------------


@jit()
def _take_chunks(shared):
    function, arguments, chunks = shared[_FUNCTION], shared[_ARGUMENTS], shared[_CHUNKS]
    chunk = _add(shared, _NEXT, 1)
    while chunk < chunks:
        _call_chunk(function, chunk, arguments)
        chunk = _add(shared, _NEXT, 1)


@jit()
def _run_together(shared, record, function, chunks):
    """Run all chunks of a job on this thread and those that are awake."""
    shared[_FUNCTION] = function
    shared[_ARGUMENTS] = record
    _write(shared, _CHUNKS, chunks)
    _write(shared, _NEXT, 0)
    _write(shared, _OPEN, 1)
    _add(shared, _JOB, 1)
    _take_chunks(shared)
    # A thread first says that it is inside, then looks whether the job is open. So either it finds it closed, or is
    # seen here.
    _write(shared, _OPEN, 0)
    waited = 0
    while _read(shared, _INSIDE) != 0:
        _pause()
        waited += 1
        if waited % 256 == 0:  # with more threads than cores it may wait for this one
            _yield_core()


@jit()
def _run_alone(address, chunks, *arguments):
    """Run all chunks of a kernel on this thread."""
    for chunk in range(chunks):
        _call(address, chunk, arguments)


@jit()
def _run_shared(shared, entry, address, chunks, *arguments):
    """Run all chunks of a kernel on this thread and those that are awake."""
    record = _place_for_record(arguments)
    _write_record(record, address, arguments)
    _run_together(shared, record, entry, chunks)


@jit()
def _run_record(shared, entry, record, chunks):
    """Run all chunks of a kernel that is recorded already."""
    if len(shared) == 0:
        for chunk in range(chunks):
            _call_chunk(entry, chunk, record)
    else:
        _run_together(shared, record, entry, chunks)


@jit()
def _run_jobs(shared, jobs):
    """Run jobs one after the other, up to one that finds a fault, whose number is returned; -1 if there is none.

    A job is a row: function, record, chunks, whether threads may share it, where it counts faults, how many counts.
    """
    for job in range(len(jobs)):
        function, record, chunks = jobs[job, 0], jobs[job, 1], jobs[job, 2]
        if len(shared) == 0 or jobs[job, 3] == 0:
            for chunk in range(chunks):
                _call_chunk(function, chunk, record)
        else:
            _run_together(shared, record, function, chunks)
        for fault in range(jobs[job, 5]):
            if _word(jobs[job, 4] + 8 * fault) != 0:
                return job
    return -1


@jit()
def _attend(shared, number, seen, patience):
    """Help with jobs until there has been none for a while; returns the number of the last one."""
    _write(shared, _ASLEEP + 8 * number, 0)
    looks = 0
    while looks < patience:
        job = _read(shared, _JOB)
        if job == seen:
            looks += 1
            _pause()
            continue
        seen = job
        looks = 0
        _add(shared, _INSIDE, 1)
        if _read(shared, _OPEN) == 1:
            _take_chunks(shared)
        _add(shared, _INSIDE, -1)
    _write(shared, _ASLEEP + 8 * number, 1)
    return seen


class Team:
    """Threads that help the thread that calls :func:`launch`.

    Args:
        size: number of threads, the caller included.

    Attributes:
        size: number of threads; fewer than asked for if the system gave no more.
    """

    def __init__(self, size: int):
        self._shared = np.zeros(_ASLEEP + 8 * size, np.int64)
        self._busy = threading.Lock()
        self._alarms: list[threading.Lock] = []
        for number in range(size - 1):
            # Compiles at the first time, on this thread: a child forked meanwhile would inherit the compiler's lock.
            _attend(self._shared, number, 0, 0)
            alarm = threading.Lock()
            alarm.acquire()
            helper = threading.Thread(target=self._help, args=(number, alarm), name=f"gpuconv-{number}", daemon=True)
            try:
                helper.start()
            except RuntimeError:  # too many threads, or the interpreter is on its way out
                break
            self._alarms.append(alarm)
        self.size = len(self._alarms) + 1

    def _help(self, number: int, alarm: threading.Lock) -> None:
        seen = 0
        while True:
            alarm.acquire()
            seen = _attend(self._shared, number, seen, _PATIENCE)

    def take(self, helpers: int) -> np.ndarray:
        """What a job needs to run with the threads that are awake, up to so many of the others woken for it; nothing,
        if another caller keeps the team busy. It must be given to :meth:`leave` afterwards.
        """
        if not self._busy.acquire(blocking=False):
            return _NOBODY
        # A thread that falls asleep after this check misses the job, which does no harm.
        for number, alarm in enumerate(self._alarms[:helpers]):
            if self._shared[_ASLEEP + 8 * number] and alarm.locked():
                alarm.release()
        return self._shared

    def leave(self, taken: np.ndarray) -> None:
        """Let other callers take the team."""
        if taken is self._shared:
            self._busy.release()


#: What a job gets where nobody helps.
_NOBODY = np.zeros(0, np.int64)


def threads() -> int:
    """Number of threads that :func:`launch` uses.

    Raises:
        ValueError: ``GPUCONV_NUM_THREADS`` is not a positive integer.
    """
    given = os.environ.get(ENVIRONMENT_VARIABLE)
    if not given:
        return int(numba.config.NUMBA_NUM_THREADS)
    if not given.isdecimal() or int(given) < 1:
        raise ValueError(f"{ENVIRONMENT_VARIABLE} must be a positive integer, got {given!r}")
    return int(given)


_team: Team | None = None
_founding = threading.Lock()


def _the_team() -> Team:
    """The team of this process, started when it is first needed."""
    global _team
    if _team is None:
        with _founding:
            if _team is None:
                _team = Team(threads())
    return _team


def _after_fork() -> None:
    # Threads stay behind in the parent: a child that needs some starts its own.
    global _team, _founding
    _team, _founding = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _helpers(chunks: int, work: int) -> int | None:
    """How many threads to wake for a job; None if it is not shared."""
    if chunks > 1 and work >= _WORK_TO_SHARE and _the_team().size > 1:
        return max(0, min(chunks - 1, work // _WORK_A_THREAD - 1))
    return None


#: The kernels of a rehearsal under way in this process (:mod:`gpuconv.backends.cpu.rehearsal`).
rehearsal: list[Kernel] | None = None


class Check(NamedTuple):
    """What a kernel found that it cannot compute with.

    Attributes:
        faults: int64, which the kernel counts; all zero if there are none.
        refuse: called if there are some; raises.
    """

    faults: np.ndarray
    refuse: Callable[[], None]


def launch(kernel: Kernel, chunks: int, *arguments: Any, work: int, check: Check | None = None) -> None:
    """Run all chunks of a kernel, and return when they are done. Several threads may call this at the same time.

    In a rehearsal it is noted and does not run: what it would write stays as it is.

    Args:
        kernel: what to run.
        chunks: number of chunks.
        arguments: C-contiguous arrays and numbers of the types that the kernel was compiled for; this is not checked.
        work: multiply-adds in all, which determine how many threads are used.
        check: of what the kernel counts.
    """
    if rehearsal is not None:
        rehearsal.append(kernel)
        return
    helpers = _helpers(chunks, work)
    team = None if helpers is None else _the_team()
    shared = _NOBODY if helpers is None or team is None else team.take(helpers)
    kernel.launches += 1
    try:
        if kernel.launches < _OFTEN:
            record = kernel.record(arguments)
            _run_record(shared, kernel.entry, record.ctypes.data, chunks)
        elif shared is _NOBODY:
            _run_alone(kernel.address, chunks, *arguments)
        else:
            _run_shared(shared, kernel.entry, kernel.address, chunks, *arguments)
    finally:
        if team is not None:
            team.leave(shared)
    if check is not None and check.faults.any():
        check.refuse()
    if (scope := host_graph.scope()) is not None and scope.takes(arguments):
        scope.calls.append(Launch(kernel, chunks, arguments, helpers, check))


class Launch:
    """A launch of a captured step, to be repeated on the same arrays, which must stay where they are."""

    def __init__(
        self, kernel: Kernel, chunks: int, arguments: tuple[Any, ...], helpers: int | None, check: Check | None
    ):
        self._kernel = kernel  # keeps its code
        self._record = kernel.record(arguments)
        faults = (0, 0) if check is None else (check.faults.ctypes.data, check.faults.size)
        self._row = kernel.entry, self._record.ctypes.data, chunks, helpers is not None, *faults
        self._helpers = helpers
        self._refuse = None if check is None else check.refuse

    def numbers(self, first: int, count: int) -> np.ndarray:
        """Where ``count`` of its arguments are kept, from number ``first`` on, if they are float64: to be changed."""
        return self._record[1 + first : 1 + first + count].view(np.float64)

    @staticmethod
    def joined(launches: Sequence[Launch]) -> Callable[[], None]:
        """One call that runs launches one after the other, without Python between them."""
        jobs = np.array([one._row for one in launches], np.int64)
        helpers = max((one._helpers for one in launches if one._helpers is not None), default=None)

        def run() -> None:
            if helpers is None:
                fault = _run_jobs(_NOBODY, jobs)
            else:
                team = _the_team()
                shared = team.take(helpers)
                try:
                    fault = _run_jobs(shared, jobs)
                finally:
                    team.leave(shared)
            if fault >= 0:
                refuse = launches[fault]._refuse
                assert refuse is not None
                refuse()

        return run
