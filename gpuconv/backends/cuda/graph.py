"""The graph of a captured step, made by ``CudaBackend.new_graph``: a CUDA graph, or a simulated list of launches.

Both record a step, in memory of their own; tell which arrays lie in that memory; and queue what was recorded on the
caller's current stream.
"""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gpuconv.backends.cuda import branches
from gpuconv.lab import simulated_memory


class CudaGraph:
    """A CUDA graph, by CuPy.

    **Its memory** is a pool of its own. What the step frees during the capture may be reused by the same step, because
    each launch writes there in the same order. Nobody else may use that memory, and nothing that others write may lie
    in it. So everything that outlives the step, or is written between two launches, is allocated in :meth:`outside`.

    Attributes:
        branches: during :meth:`recording` the edges: launches that need nothing of each other run side by side. None
            where that is not wanted, or the driver cannot do it: then each waits for the one before.
    """

    on_host = False

    def __init__(self, cupy: Any, side_by_side: bool = True) -> None:
        self._cupy, self._side_by_side = cupy, side_by_side
        self.branches: branches.Branches | None = None
        self._graph: Any = None
        #: A copy of the graph, of which several at once are launched; None where the driver gives none.
        self._copy: Any = None
        self._addresses: set[int] = set()
        self._blocks: list[Any] = []
        self._done = cupy.cuda.Event(disable_timing=True)
        self._stream: Any = None
        self._pool: Any = None
        self._caller: Any = None
        self._last: Any = None

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Work queued inside the ``with`` block becomes the graph, and does not run."""
        cuda, driver = self._cupy.cuda, _driver().current()
        side_by_side = self._side_by_side and branches.possible(driver, self._cupy)
        # A new pool and stream for each attempt, so that nothing of a failed one is left.
        self._stream, self._addresses, self._blocks = cuda.Stream(non_blocking=True), set(), []
        self._copy = None
        self._pool = cuda.MemoryPool(_keeping(cuda, self._blocks))
        self._caller = cuda.get_current_stream(), cuda.get_allocator()
        try:
            with self._stream, cuda.using_allocator(self._allocate):
                # Relaxed mode allows cudaMalloc. Waiting for the captured stream is an error in any mode.
                self._stream.begin_capture(cuda.runtime.streamCaptureModeRelaxed)
                try:
                    self.branches = branches.Branches(driver, self._stream.ptr) if side_by_side else None
                    yield
                    with contextlib.suppress(*branches.TOO_OLD):
                        self._copy = driver.captured(self._stream.ptr)
                except BaseException:
                    with contextlib.suppress(Exception):  # a failed capture has to be ended too
                        self._stream.end_capture()
                    raise
                self._graph = self._stream.end_capture()
        finally:
            self._caller = self.branches = None

    def _allocate(self, size: int) -> Any:
        memory = self._pool.malloc(size)
        self._addresses.add(memory.ptr)
        return memory

    @contextlib.contextmanager
    def outside(self) -> Iterator[None]:
        """During :meth:`recording`: work in this block runs now, on the caller's stream and in its memory."""
        stream, allocator = self._caller
        with stream, self._cupy.cuda.using_allocator(allocator):
            yield

    def computes(self, array: Any) -> bool:
        """Whether the graph's launches compute an array; always true for device arrays."""
        return True

    def owns(self, array: Any) -> bool:
        """Whether an array lies in the graph's memory."""
        return array.data.mem.ptr in self._addresses

    def borrowed(self, array: Any) -> bool:
        """Whether an array's memory belongs to another library, so that keeping the array keeps it alive."""
        return not isinstance(array.data.mem, self._cupy.cuda.memory.PooledMemory)

    def take_turn(self) -> None:
        """Call before inputs are written: makes the current stream wait for a launch on another stream."""
        stream = self._cupy.cuda.get_current_stream()
        # A handle identifies a stream within its device; that of the per-thread default stream, within its thread.
        turn = stream.ptr, self._cupy.cuda.runtime.getDevice(), threading.get_ident() if 0 < stream.ptr < 3 else 0
        if self._last is not None and turn != self._last:
            stream.wait_event(self._done)
        self._last = turn

    def launch(self, times: int = 1) -> None:
        """Queue the graph on the current stream, so many times, if the driver can as a single launch."""
        stream = self._cupy.cuda.get_current_stream()
        if times > 1 and self._copy is not None:
            try:
                self._copy.launch(times, stream.ptr)
                times = 0
            except branches.TOO_OLD:
                self._copy = None
        for _ in range(times):
            self._graph.launch(stream)
        # Recorded now, because the stream may be gone when another one has to wait for it.
        self._done.record(stream)


def _driver() -> Any:
    """Imported late, because it loads Numba's CUDA target."""
    return importlib.import_module("gpuconv.kernels.driver")


def _keeping(cuda: Any, blocks: list[Any]) -> Callable[[int], Any]:
    """A pool's allocator that keeps all system allocations in a list.

    When memory runs out, a pool frees its unused blocks; but a graph would still write there.
    """

    def allocate(size: int) -> Any:
        blocks.append(cuda.MemoryPointer(cuda.Memory(size), 0))
        return blocks[-1]

    return allocate


class CudaInput:
    """An input of a captured step; data from the host pass through page-locked memory.

    Attributes:
        array: on the device.
    """

    #: Number of copies that may be in flight while the next one is written.
    _SLOTS = 2

    def __init__(self, cupy: Any, like: Any):
        self._cupy = cupy
        self.array = cupy.empty(like.shape, like.dtype)
        self._slots: list[tuple[Any, np.ndarray, Any]] = []
        self._turn = 0

    def fill(self, source: Any) -> None:
        """Copy an array, from the device or the host, in order on the current stream."""
        if not isinstance(source, np.ndarray):
            self._cupy.copyto(self.array, source)
        elif source.size:
            pinned, view, event = self._slot()
            view[...] = source
            stream = self._cupy.cuda.get_current_stream()
            self.array.data.copy_from_host_async(pinned.ptr, self.array.nbytes, stream)
            event.record(stream)

    def _slot(self) -> tuple[Any, np.ndarray, Any]:
        cuda = self._cupy.cuda
        if len(self._slots) < self._SLOTS:
            pinned = cuda.alloc_pinned_memory(self.array.nbytes)
            view = np.frombuffer(pinned, self.array.dtype, self.array.size).reshape(self.array.shape)
            self._slots.append((pinned, view, cuda.Event(disable_timing=True)))
            return self._slots[-1]
        self._turn = (self._turn + 1) % self._SLOTS
        slot = self._slots[self._turn]
        slot[2].synchronize()  # its last copy has been read
        return slot


class SimulatedGraph:
    """A list of launches. What the step computes with NumPy between its launches is not recorded, and not repeated.

    As a CUDA graph it only knows addresses, and keeps no array alive. Its memory is a pool of its own, as for
    :class:`CudaGraph`.
    """

    #: Launches run in their order.
    branches = None
    on_host = False

    def __init__(self) -> None:
        self._device: Any = importlib.import_module("gpuconv.kernels.device")
        self._pool = simulated_memory.Pool()
        #: Each launch with its arguments, of which arrays are views that own nothing.
        self.launches: list[tuple[Any, tuple[Any, ...]]] = []

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """As of :class:`CudaGraph`."""
        with simulated_memory.allocating(self._pool), self._device.recording(_without_owner) as self.launches:
            yield

    def outside(self) -> contextlib.AbstractContextManager[None]:
        """As of :class:`CudaGraph`."""
        return simulated_memory.allocating(simulated_memory.default_pool())

    def owns(self, array: Any) -> bool:
        """As of :class:`CudaGraph`."""
        return self._pool.owns(array.ctypes.data)

    def borrowed(self, array: Any) -> bool:
        """As of :class:`CudaGraph`."""
        return not simulated_memory.default_pool().owns(array.ctypes.data)

    def take_turn(self) -> None:
        """As of :class:`CudaGraph`."""

    def computes(self, array: Any) -> bool:
        """Whether a launch gets an array's memory; results of NumPy are not repeated."""
        places = [one for _, arguments in self.launches for one in _arrays(arguments)]
        start = array.ctypes.data
        return not array.size or any(one.ctypes.data <= start < one.ctypes.data + one.nbytes for one in places)

    def launch(self, times: int = 1) -> None:
        """As of :class:`CudaGraph`."""
        for _ in range(times):
            for launch, arguments in self.launches:
                launch(None, *arguments)


class SimulatedInput:
    """As :class:`CudaInput`."""

    def __init__(self, xp: Any, like: np.ndarray):
        self.array = xp.empty(like.shape, like.dtype)

    def fill(self, source: np.ndarray) -> None:
        """As of :class:`CudaInput`."""
        self.array[...] = source


def _arrays(arguments: Any) -> Iterator[np.ndarray]:
    for one in arguments:
        if isinstance(one, tuple):
            yield from _arrays(one)
        elif isinstance(one, np.ndarray):
            yield one


def _without_owner(argument: Any) -> Any:
    """An argument of a launch as the driver gets it: for an array, its address."""
    if isinstance(argument, tuple):
        return tuple(map(_without_owner, argument))
    if not isinstance(argument, np.ndarray):
        return argument
    return simulated_memory.array_at(argument.ctypes.data, argument.size, argument.dtype)
