"""Processes that MPI started, by mpi4py."""

from __future__ import annotations

import math
import os
import pickle
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from gpuconv.autograd import moved, to_numpy
from gpuconv.parallel.world import TIMEOUT_VARIABLE, World, WorldError, _own_cores

__all__ = ["MpiWorld"]

#: A process that waits looks all the time for so many seconds, then with pauses: others may need its core.
_SPIN, _PAUSE = 2e-4, 1e-4


class MpiWorld(World):
    """The processes of ``MPI.COMM_WORLD``.

    Args:
        expected: their number, as the program says that started them.
        engine: its name.
        timeout: seconds that a process waits for the others.

    Raises:
        WorldError: mpi4py has found another number, or no MPI.
    """

    def __init__(self, expected: int, engine: str, timeout: float):
        if engine == "Open MPI":  # one wheel of mpi4py serves both; whose processes they are decides
            os.environ.setdefault("MPI4PY_MPIABI", "openmpi")
        try:
            from mpi4py import MPI
        except (ImportError, RuntimeError) as error:
            raise WorldError(
                f"{engine} started {expected} processes, but mpi4py cannot load an MPI library ({error}); install that "
                "of the mpirun that started them"
            ) from None

        self._comm = MPI.COMM_WORLD.Dup()
        self._all, self._mpi, self._timeout = MPI.COMM_WORLD, MPI, timeout
        self.rank, self.size = self._comm.rank, self._comm.size
        if self.size != expected:
            library = MPI.Get_library_version().split(",")[0].split("\n")[0].rstrip("\0")
            raise WorldError(
                f"{engine} started {expected} processes, but mpi4py uses {library}, which sees {self.size}: start them "
                "with the mpirun of that library, or install mpi4py for the one that started them"
            )
        host: Any = self._comm.Split_type(MPI.COMM_TYPE_SHARED)
        self.local_rank, self.local_size = host.rank, host.size
        affinities = host.allgather(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None)
        self._cores = _cores(affinities, host.rank)
        # How many collective calls each process of this host has come to: who waits in vain can say for whom.
        self._window = MPI.Win.Allocate_shared(8, 8, comm=host)
        self._calls = [_numbers(self._window.Shared_query(number)[0]) for number in range(host.size)]
        self._calls[host.rank][0] = 0
        self._ranks = host.allgather(self.rank)
        self._open: list[Any] = []

    def cores(self) -> int:
        return self._cores

    def start_sum(self, buffer: Any) -> Callable[[], None]:
        host = to_numpy(buffer)  # a GPU's travels through the host
        wait = self._started(self._comm.Iallreduce(self._mpi.IN_PLACE, host), "a sum")

        def finish() -> None:
            wait()
            if host is not buffer:
                buffer.set(host)

        return finish

    def broadcast(self, array: Any) -> None:
        host = np.ascontiguousarray(to_numpy(array))
        self._started(self._comm.Ibcast(host.reshape(-1).view(np.uint8)), "values of rank 0")()
        if host is not array:
            array[...] = moved(host, "cuda")

    def gathered(self, value: Any, *, patient: bool = False) -> list[Any]:
        data = np.frombuffer(pickle.dumps(value), np.uint8)
        sizes = np.zeros(self.size, np.int64)
        what, limit = "what the others have", math.inf if patient else None
        self._started(self._comm.Iallgather(np.array([data.size]), sizes), what, limit)()
        parts = np.empty(int(sizes.sum()), np.uint8)
        self._started(self._comm.Iallgatherv(data, (parts, sizes)), what)()
        return [pickle.loads(part.tobytes()) for part in np.split(parts, np.cumsum(sizes)[:-1])]

    def progress(self) -> None:
        self._open = [request for request in self._open if not request.Test()]

    def abort(self, status: int) -> None:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        time.sleep(0.5)  # mpiexec passes on what was said, and drops it once it ends the processes
        self._all.Abort(status)

    def _started(self, request: Any, what: str, limit: float | None = None) -> Callable[[], None]:
        self._calls[self.local_rank][0] += 1
        self._open.append(request)
        return lambda: self._wait(request, what, self._timeout if limit is None else limit)

    def _wait(self, request: Any, what: str, limit: float) -> None:
        """Wait with a limit, which MPI's own functions do not have.

        Raises:
            WorldError: another process has not come in time.
        """
        begun = time.monotonic()
        while not request.Test():
            waited = time.monotonic() - begun
            if waited > limit:
                raise WorldError(self._missing(what))
            if waited > _SPIN:
                time.sleep(_PAUSE)
        self._open = [other for other in self._open if other is not request]

    def _missing(self, what: str) -> str:
        own = self._calls[self.local_rank][0]
        late = [str(rank) for rank, calls in zip(self._ranks, self._calls, strict=True) if calls[0] < own]
        whom = f"rank {' and '.join(late)}, which hangs, is slower, or does something else" if late else "another host"
        return (
            f"rank {self.rank} has waited {self._timeout:g} s for {what}, in vain for {whom}; all processes end "
            f"({TIMEOUT_VARIABLE} sets how long they wait)"
        )


def _numbers(memory: Any) -> np.ndarray:
    return np.frombuffer(memory, np.int64)


def _cores(affinities: list[set[int] | None], own: int) -> int:
    """Cores for one process of a host, from those on which each may run: some engines bind them, others do not."""
    mine = affinities[own]
    if mine is None:
        return max(1, _own_cores() // len(affinities))
    return max(1, math.floor(len(mine) / sum(1 for theirs in affinities if theirs is not None and theirs & mine)))
