"""What is noted of a step while it is captured, so that its graph can be repeated.

A graph knows addresses. What it reads and writes therefore has to stay where it is, for as long as it is repeated: what
is not of its own memory is noted here as the step touches it, and kept.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple

__all__ = ["Capture", "Captured", "Update", "capturing", "current", "made", "noting_results", "outside"]

_current: ContextVar[Capture | None] = ContextVar("gpuconv_capture", default=None)


#: How many threads or tasks capture a step, or note results: mostly none, which each operation wants to know at once.
active = 0
_counting = threading.Lock()


def _after_fork() -> None:
    """In a child: whatever other threads were at, they are not here."""
    global active, _counting
    active, _counting = (_current.get() is not None) + (_made.get() is not None), threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@contextlib.contextmanager
def _active() -> Iterator[None]:
    global active
    with _counting:
        active += 1
    try:
        yield
    finally:
        with _counting:
            active -= 1


def current() -> Capture | None:
    """The capture under way in this thread or task; None where steps run as they are."""
    return _current.get() if active else None


class Update(NamedTuple):
    """An optimizer's step that a captured step takes.

    Attributes:
        optimizer: of ``gpuconv.optim``.
        missing: the places of parameters that have no gradient in it.
        launches: of each launch the parameters, a ``gpuconv.optim.Together``, and the numbers that its kernel reads.
    """

    optimizer: Any
    missing: list[int]
    launches: list[tuple[Any, Any]]


class Capture:
    """The arrays, leaves and updates of a step that is being captured.

    Args:
        graph: a graph of ``gpuconv.backends.cuda.graph``, which tells what lies in its own memory.
        made_before: ids of arrays that the call before made, with weak references to them.

    Attributes:
        updates: the optimizers' steps.
    """

    def __init__(self, graph: Any, made_before: dict[int, Any] | None = None):
        self._graph, self._made_before = graph, made_before or {}
        #: By id, so that each is noted once. Weakly: an array that nobody else keeps must not live through us.
        self._arrays: dict[int, Callable[[], Any]] = {}
        self._found: list[Callable[[], Any]] = []
        self._kept: list[Any] = []
        #: Leaves, with the array and gradient that they had at first; forgotten with the leaf.
        self._leaves: dict[int, tuple[weakref.ref[Any], Any, Any]] = {}
        #: Of leaves, gradients from before that the step adds to or reads; and those that are written.
        self._old_grads: dict[int, tuple[weakref.ref[Any], Any]] = {}
        self._new_grads: dict[int, weakref.ref[Any]] = {}
        self.updates: list[Update] = []

    def outside(self) -> contextlib.AbstractContextManager[None]:
        """What is made and queued inside of the ``with`` block is no part of the graph, and runs now."""
        manager: contextlib.AbstractContextManager[None] = self._graph.outside()
        return manager

    def touches(self, array: Any) -> None:
        """Note an array that an operation reads or writes."""
        root = _root(array)
        known = self._arrays.get(id(root))
        if (known is not None and known() is root) or self._graph.owns(array):
            return
        if self._graph.borrowed(array):  # another library's memory: it is kept by keeping the view that was made of it
            self._kept.append(array)
        else:
            self._arrays[id(root)] = weakref.ref(root)
            self._found.append(self._arrays[id(root)])

    def keeps(self, array: Any) -> None:
        """Keep an array that was made for the graph, a constant say."""
        self._kept.append(array)

    def reads_leaf(self, leaf: Any) -> None:
        """Note a Tensor that no operation made, a parameter say: before its array or gradient is changed."""
        key = id(leaf)
        if key not in self._leaves:
            self._leaves[key] = weakref.ref(leaf, lambda _: self._leaves.pop(key, None)), leaf.data, leaf.grad

    def writes_grad(self, leaf: Any) -> None:
        """Note a leaf whose gradient is about to be set."""
        self.reads_leaf(leaf)
        self._new_grads.setdefault(id(leaf), weakref.ref(leaf))

    def reads_grad(self, leaf: Any) -> None:
        """Note a leaf whose gradient is added to, or taken for an update: one from before has to stay the same."""
        self.reads_leaf(leaf)
        data = leaf.grad.data
        self.touches(data)
        if not self._graph.owns(data):
            self._old_grads.setdefault(id(leaf), (weakref.ref(leaf), data))

    def undo(self) -> None:
        """The capture has failed: leaves are again what they were."""
        for find, data, grad in list(self._leaves.values()):
            if (leaf := find()) is not None:
                leaf.data, leaf._grad = data, grad

    def finished(self) -> Captured:
        """What has to be kept and looked after.

        Raises:
            RuntimeError: an array was let go of, or replaced, that the graph would go on reading.
        """
        leaves = []
        for find, data, _ in list(self._leaves.values()):
            if (leaf := find()) is not None:
                if leaf.data is not data:
                    raise RuntimeError(
                        f"it gives a Tensor of shape {tuple(leaf.shape)} another array (tensor.data = ...), where each "
                        "repetition would find the old one: write in place (tensor.data[...] = ...)"
                    )
                leaves.append((find, data))
        self._leaves.clear()
        arrays = [find() for find in self._found]
        lost = sum(array is None for array in arrays)
        lost += sum(
            (made := self._made_before.get(id(array))) is not None and made() is array
            for array in arrays
            if array is not None
        )
        if lost:
            raise RuntimeError(
                f"it reads {lost} array{'s' * (lost > 1)} that the call before has made, and that no repetition makes: "
                "what a step keeps from one call to the next it has to write in place (x[...] = y), as each repetition "
                "finds it at the same address"
            )
        grads = [(find, leaf.grad) for find in self._new_grads.values() if (leaf := find()) is not None]
        return Captured([*arrays, *self._kept], leaves, list(self._old_grads.values()), grads)


class Captured(NamedTuple):
    """What a graph needs around it.

    Attributes:
        kept: arrays that it reads and writes.
        leaves: Tensors, weakly, with the array that each must still have.
        old_grads: leaves with the array that their gradient must still have.
        new_grads: leaves with the gradient that they have after each launch.
    """

    kept: list[Any]
    leaves: list[tuple[weakref.ref[Any], Any]]
    old_grads: list[tuple[weakref.ref[Any], Any]]
    new_grads: list[tuple[weakref.ref[Any], Any]]


def _root(array: Any) -> Any:
    return array if array.base is None else array.base


_made: ContextVar[dict[int, Any] | None] = ContextVar("gpuconv_made", default=None)


@contextlib.contextmanager
def noting_results() -> Iterator[dict[int, Any]]:
    """Inside of the ``with`` block the results of operations are noted: by id, weak references to their arrays."""
    made: dict[int, Any] = {}
    token = _made.set(made)
    try:
        with _active():
            yield made
    finally:
        _made.reset(token)


def made(array: Any) -> None:
    """Note a result, if results are noted."""
    if active and (noted := _made.get()) is not None:
        with contextlib.suppress(TypeError):  # a kind of array that cannot be referred to weakly
            noted[id(_root(array))] = weakref.ref(_root(array))


@contextlib.contextmanager
def capturing(capture: Capture) -> Iterator[None]:
    """Inside of the ``with`` block a step is captured, in this thread or task."""
    token = _current.set(capture)
    try:
        with _active():
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
