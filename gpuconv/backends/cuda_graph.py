"""What a captured step becomes: a CUDA graph, or in the simulator a list of launches; by ``CudaBackend.new_graph``.

Both do the same three things: run a step without capturing it, record one, and launch what was recorded, in order with
what the caller has queued on their current stream.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from gpuconv.backends import simulated_memory


class CudaGraph:
    """A graph of CuPy's, on a stream and in memory of its own. Written from CuPy's documentation; not yet run on a GPU.

    The memory comes from a pool that nobody else takes from: what the step frees may only be used by the step again,
    because every replay writes there.
    """

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self._pool = cupy.cuda.MemoryPool()
        self._graph: Any = None

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """What is queued inside of the ``with`` block runs behind what the caller has queued, before what follows."""
        caller = self._cupy.cuda.get_current_stream()
        self._stream.wait_event(caller.record())
        with self._stream, self._cupy.cuda.using_allocator(self._pool.malloc):
            yield
        caller.wait_event(self._stream.record())

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """What is queued inside of the ``with`` block becomes the graph, and does not run."""
        with self.running():
            # Relaxed: cudaMalloc is allowed, and to wait for the captured stream is not, in any mode.
            self._stream.begin_capture(self._cupy.cuda.runtime.streamCaptureModeRelaxed)
            try:
                yield
            except BaseException:
                with contextlib.suppress(Exception):  # a capture that has gone wrong has to be ended all the same
                    self._stream.end_capture()
                raise
            self._graph = self._stream.end_capture()

    def launch(self) -> None:
        """Run the graph; inside of :meth:`running`."""
        self._graph.launch(self._stream)


class SimulatedGraph:
    """A list of launches. What the step computes by NumPy, between its launches, is not in it, and not repeated.

    As a graph it knows addresses: no array is kept alive by it. Its memory is a pool of its own, as of
    :class:`CudaGraph`.
    """

    def __init__(self) -> None:
        self._device: Any = importlib.import_module("gpuconv.kernels.device")
        self._pool = simulated_memory.Pool()
        #: Each launch with its arguments, of which arrays are views that own nothing.
        self.launches: list[tuple[Any, tuple[Any, ...]]] = []

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """As of :class:`CudaGraph`."""
        with simulated_memory.allocating(self._pool):
            yield

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """As of :class:`CudaGraph`."""
        with self.running(), self._device.recording(_without_owner) as self.launches:
            yield

    def launch(self) -> None:
        """As of :class:`CudaGraph`."""
        for launch, arguments in self.launches:
            launch(None, *arguments)


def _without_owner(argument: Any) -> Any:
    """An argument of a launch as the driver gets it: of an array the address."""
    if isinstance(argument, tuple):
        return tuple(map(_without_owner, argument))
    if not isinstance(argument, np.ndarray):
        return argument
    return simulated_memory.array_at(argument.ctypes.data, argument.size, argument.dtype)
