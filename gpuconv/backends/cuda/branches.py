"""The edges of a CUDA graph: a captured launch waits for those whose memory it shares, not for all before it.

A stream that is captured makes a chain: each node waits for the one before. But the gradient of a layer's weights and
that of its input need nothing of each other, and small kernels leave most of a GPU idle. So before each launch the
stream is told which nodes the next one has to wait for: those that wrote what it reads, and those that read or wrote
what it writes. Memory is compared by addresses. What the step has freed and uses again for something else is thus
another reason to wait, and results are those of the chain, bit for bit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

__all__ = ["TOO_OLD", "Access", "Branches", "possible"]

#: What is raised where the driver, or its Python bindings, cannot do something that others can.
TOO_OLD = (AttributeError, RuntimeError, TypeError, ValueError)


class Access(NamedTuple):
    """What a launch does with a stretch of memory.

    Attributes:
        start, end: addresses of its first byte, and of the one behind it.
        writes: whether the launch may write there; if not, it reads.
    """

    start: int
    end: int
    writes: bool

    def conflicts(self, other: Access) -> bool:
        """Whether the order of two launches with these accesses matters."""
        return (self.writes or other.writes) and self.start < other.end and other.start < self.end


class Branches:
    """The dependencies of the launches on a stream that is being captured.

    Between two calls of :meth:`add` the stream waits for all that was added. Whatever else is queued there, of which
    nothing is known, thus comes behind all before it and before all behind it, as in a chain.

    Args:
        driver: of ``gpuconv.kernels.driver``, or what stands in for it.
        stream: its handle.
    """

    def __init__(self, driver: Any, stream: int):
        self._driver, self.stream = driver, stream
        self._begin(driver.capture_dependencies(stream))

    def _begin(self, nodes: list[int]) -> None:
        """All that comes now waits for these nodes."""
        #: What a launch waits for that has to wait for no other; and nodes that nothing waits for yet.
        self._base, self._last = nodes, nodes
        self._nodes: list[int] = []
        #: For each node, as bits, all that it waits for, directly or not.
        self._before: list[int] = []
        #: By node, the accesses that a later one may have to wait for.
        self._accesses: list[tuple[Access, int]] = []

    def add(self, queue: Callable[[], None], accesses: Iterable[Access]) -> None:
        """Capture a launch.

        Args:
            queue: queues it on the stream.
            accesses: to the memory that it may touch.
        """
        accesses = list(accesses)
        there = self._driver.capture_dependencies(self.stream)
        if set(there) != set(self._last):
            self._begin(there)
        conflicts = {node for before, node in self._accesses for one in accesses if one.conflicts(before)}
        direct, reached = [], 0
        for number in sorted(conflicts, reverse=True):  # later ones wait for earlier ones
            if not reached >> number & 1:
                direct.append(self._nodes[number])
                reached |= self._before[number] | 1 << number
        waits_for = direct or self._base
        if set(waits_for) != set(self._last):
            self._driver.set_capture_dependencies(self.stream, waits_for)
        queue()
        (node,) = self._driver.capture_dependencies(self.stream)
        self._note(node, reached, accesses)
        self._base = self._base or [node]  # a graph has one beginning
        self._last = [one for one in self._last if one not in waits_for] + [node]
        if len(self._last) > 1:
            self._driver.set_capture_dependencies(self.stream, self._last)

    def _note(self, node: int, before: int, accesses: list[Access]) -> None:
        written = [one for one in accesses if one.writes]
        # Who conflicts with what was overwritten waits for the one that overwrote it.
        self._accesses = [
            (old, number)
            for old, number in self._accesses
            if not any(one.start <= old.start and old.end <= one.end for one in written)
        ]
        self._accesses += [(one, len(self._nodes)) for one in accesses]
        self._nodes.append(node)
        self._before.append(before)


@functools.lru_cache(maxsize=8)
def possible(driver: Any, cupy: Any) -> bool:
    """Whether the driver lets a captured stream wait for the nodes that it is told: tried once, and nothing runs.

    Args:
        driver: as of :class:`Branches`.
        cupy: the package.
    """
    memory, stream = cupy.cuda.alloc(8), cupy.cuda.Stream(non_blocking=True)
    stream.begin_capture(cupy.cuda.runtime.streamCaptureModeRelaxed)
    try:
        memory.memset_async(0, 8, stream)
        first = driver.capture_dependencies(stream.ptr)
        memory.memset_async(0, 8, stream)
        second = driver.capture_dependencies(stream.ptr)
        driver.set_capture_dependencies(stream.ptr, first)
        moved = driver.capture_dependencies(stream.ptr)
        driver.set_capture_dependencies(stream.ptr, first + second)
        both = driver.capture_dependencies(stream.ptr)
    except TOO_OLD:
        return False
    finally:
        stream.end_capture()
    return len(first) == len(second) == 1 and first != second and moved == first and set(both) == {*first, *second}
