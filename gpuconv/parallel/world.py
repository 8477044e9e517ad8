"""The processes that train together, and how this process finds them."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

__all__ = ["TIMEOUT_VARIABLE", "World", "WorldError", "current", "joined", "wait_for_first"]

#: Seconds that a process waits for the others before all end; 60 unless it is set.
TIMEOUT_VARIABLE = "GPUCONV_PARALLEL_TIMEOUT"

#: What engines tell the processes that they start: how many there are.
_SIZES = {
    "OMPI_COMM_WORLD_SIZE": "Open MPI",
    "PMI_SIZE": "MPICH or Intel MPI",
    "MV2_COMM_WORLD_SIZE": "MVAPICH",
}


class WorldError(RuntimeError):
    """The processes cannot work together: one has not come, or they differ; the message says which and in what."""


class World:
    """The processes that train together; this class is that of a process alone, the base of the others.

    Every process calls the same methods in the same order.

    Attributes:
        rank: the number of this process, from 0.
        size: how many there are.
        local_rank, local_size: the same among those of this host.
    """

    rank, size, local_rank, local_size = 0, 1, 0, 1

    def start_sum(self, buffer: Any) -> Callable[[], None]:
        """Begin to replace an array by its sum over all processes, in an order that is the same in every run.

        Returns what waits for the end; until then nobody may touch the array.
        """
        return lambda: None

    def progress(self) -> None:
        """Give the engine time to go on with what was started."""

    def broadcast(self, array: Any) -> None:
        """Replace an array by that of rank 0."""

    def gathered(self, value: Any, *, patient: bool = False) -> list[Any]:
        """The objects of all processes, by rank. ``patient``: wait without a limit, for one that has much to do."""
        return [value]

    def cores(self) -> int:
        """CPU cores for each process of this host."""
        return _own_cores()

    def abort(self, status: int) -> None:
        """End all processes with an exit status."""

    # -- in terms of these -------------------------------------------------------------------------------------------

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which alone prints and writes."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """This process's part of ``count`` things."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def sum(self, *values: float) -> list[float]:
        """Sums of numbers over all processes, in float64."""
        buffer = np.array(values, np.float64)
        self.start_sum(buffer)()
        return buffer.tolist()

    def from_first(self, make: Callable[[], Any]) -> Any:
        """What ``make()`` returns on rank 0, where alone it is called; it must be picklable."""
        return self.gathered(make() if self.first else None, patient=True)[0]

    def first_then_others(self, make: Callable[[], Any]) -> Any:
        """``make()``, called by the other processes once rank 0 has finished it: it may leave files for them."""
        if self.size == 1:
            return make()
        made = make() if self.first else None
        self.gathered(None, patient=True)
        return made if self.first else make()

    def check_same(self, what: Mapping[str, Any]) -> None:
        """Check that all processes have the same values.

        Raises:
            WorldError: on all of them; it says what differs, and between whom.
        """
        everywhere = self.gathered(dict(what))
        for number, theirs in enumerate(everywhere):
            for name in {**everywhere[0], **theirs}:
                first, other = everywhere[0].get(name), theirs.get(name)
                if first != other and repr(first) != repr(other):  # a NaN is no NaN's equal
                    raise WorldError(
                        f"the processes differ: {name} is {_short(first)} on rank 0 and {_short(other)} on rank "
                        f"{number}; they must be started with the same settings, data and versions"
                    )

    def bound_threads(self) -> None:
        """Share this host's cores among its processes, unless the user has set the number of threads."""
        if self.size > 1 and not any(name in os.environ for name in ("GPUCONV_NUM_THREADS", "NUMBA_NUM_THREADS")):
            os.environ["GPUCONV_NUM_THREADS"] = str(self.cores())


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _own_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_current: World | None = None


def current() -> World:
    """The processes that this one was started with, found once: by mpirun, mpiexec or torchrun; or it alone.

    Among several, an exception that nobody catches ends all of them, after a message that names the rank.

    Raises:
        ImportError: mpirun started it, but mpi4py is not installed.
        WorldError: the processes cannot be reached, or there is no engine for them.
        ValueError: ``GPUCONV_PARALLEL_TIMEOUT`` is not a positive number.
    """
    global _current
    if _current is None:
        world = _found()
        if world.size > 1:
            _end_together(world)
            world.bound_threads()
        _current = world
    return _current


def joined() -> World:
    """The processes that :func:`current` has found; before it is called, this one alone."""
    return _current or World()


def started_as() -> tuple[int, str] | None:
    """How many processes were started together, and by what; None: nobody says so."""
    for name, engine in _SIZES.items():
        if os.environ.get(name, "").isdecimal():
            return int(os.environ[name]), engine
    return None


def timeout() -> float:
    """Seconds that a process waits for the others."""
    given = os.environ.get(TIMEOUT_VARIABLE, "60")
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ValueError(f"{TIMEOUT_VARIABLE} must be a number of seconds above 0, got {given!r}")
    return seconds


def _found() -> World:
    started = started_as()
    if started is not None and started[0] > 1:
        if importlib.util.find_spec("mpi4py") is None:
            raise ImportError(
                f"this is one of {started[0]} processes that {started[1]} started; to train together they need mpi4py, "
                "which is not installed: pip install 'gpuconv[parallel]'",
                name="mpi4py",
            )
        from gpuconv.parallel.mpi import MpiWorld

        return MpiWorld(*started, timeout())
    several = os.environ.get("WORLD_SIZE", "1")
    if started is None and "RANK" in os.environ and several.isdecimal() and int(several) > 1:
        from gpuconv.parallel.nccl import NcclWorld

        return NcclWorld.from_environment(int(several))
    return World()


def _end_together(world: World) -> None:
    before = sys.excepthook

    def hook(kind: Any, error: Any, trace: Any) -> None:
        wait_for_first(world)
        print(f"rank {world.rank} of {world.size}:", file=sys.stderr)
        before(kind, error, trace)
        sys.stderr.flush()
        world.abort(1)

    sys.excepthook = hook


def wait_for_first(world: World) -> None:
    """Before a process says why it ends: what has gone wrong on all of them is said once, by rank 0."""
    if not world.first:
        time.sleep(1)
