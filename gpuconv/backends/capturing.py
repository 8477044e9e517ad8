"""What is noted of a step while it is captured, so that its graph can be repeated.

A graph knows addresses. What it reads and writes therefore has to stay where it is, for as long as it is repeated: what
is not of its own memory is noted here as the step touches it, and kept.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

__all__ = ["Capture", "capturing", "current", "outside"]

_current: ContextVar[Capture | None] = ContextVar("gpuconv_capture", default=None)


def current() -> Capture | None:
    """The capture under way in this thread or task; None where steps run as they are."""
    return _current.get()


class Capture:
    """The arrays, leaves and updates of a step that is being captured.

    Args:
        graph: a graph of ``gpuconv.backends.cuda_graph``, which tells what lies in its own memory.

    Attributes:
        updates: of each optimizer that took a step: the optimizer, and the numbers that its kernel reads.
    """

    def __init__(self, graph: Any):
        self._graph = graph
        #: By id, so that each is noted once. Weakly: an array that nobody else keeps must not live through us.
        self._arrays: dict[int, Callable[[], Any]] = {}
        self._found: list[Callable[[], Any]] = []
        self._kept: list[Any] = []
        self._leaves: dict[int, tuple[weakref.ref[Any], int]] = {}
        self._grads: dict[int, tuple[Any, Any]] = {}
        self.updates: list[tuple[Any, Any]] = []

    def outside(self) -> contextlib.AbstractContextManager[None]:
        """What is made and queued inside of the ``with`` block is no part of the graph, and runs now."""
        manager: contextlib.AbstractContextManager[None] = self._graph.outside()
        return manager

    def touches(self, array: Any) -> None:
        """Note an array that an operation reads or writes."""
        root = array if array.base is None else array.base
        known = self._arrays.get(id(root))
        if (known is not None and known() is root) or self._graph.owns(array):
            return
        if self._graph.borrowed(array):  # another library's memory: it is kept by keeping the view that was made of it
            self._kept.append(array)
        else:
            self._arrays[id(root)] = weakref.ref(root)
            self._found.append(self._arrays[id(root)])

    def reads_leaf(self, leaf: Any) -> None:
        """Note a Tensor that no operation made, a parameter say."""
        if id(leaf) not in self._leaves:
            self._leaves[id(leaf)] = weakref.ref(leaf), id(leaf.data)

    def writes_grad(self, leaf: Any) -> None:
        """Note a Tensor whose gradient is about to be set."""
        self._grads.setdefault(id(leaf), (leaf, leaf.grad))

    def undo(self) -> None:
        """The capture has failed: gradients are again what they were, and no optimizer has taken a step."""
        for leaf, grad in self._grads.values():
            leaf.grad = grad

    def finished(self) -> tuple[list[Any], list[tuple[weakref.ref[Any], Any]]]:
        """Arrays to be kept, and leaves with the arrays that they must still have.

        Raises:
            RuntimeError: an array was let go of, or replaced, that the graph would go on reading.
        """
        arrays = [find() for find in self._found]
        if lost := sum(array is None for array in arrays):
            raise RuntimeError(
                f"it reads {lost} array{'s' * (lost > 1)} from before this call that nobody has kept: what a step "
                "keeps from one call to the next it has to write in place (x[...] = y), as each repetition finds it at "
                "the same address"
            )
        leaves = []
        for find, number in self._leaves.values():
            if (leaf := find()) is not None:
                if id(leaf.data) != number:
                    raise RuntimeError(
                        f"it gives a Tensor of shape {tuple(leaf.shape)} another array (tensor.data = ...), where each "
                        "repetition would find the old one: write in place (tensor.data[...] = ...)"
                    )
                leaves.append((find, leaf.data))
        return [*arrays, *self._kept], leaves


@contextlib.contextmanager
def capturing(capture: Capture) -> Iterator[None]:
    """Inside of the ``with`` block a step is captured, in this thread or task."""
    token = _current.set(capture)
    try:
        yield
    finally:
        _current.reset(token)


@contextlib.contextmanager
def outside() -> Iterator[None]:
    """What is made inside of the ``with`` block stays what it is, also if a step is being captured."""
    capture = _current.get()
    if capture is None:
        yield
        return
    token = _current.set(None)
    try:
        with capture.outside():
            yield
    finally:
        _current.reset(token)
