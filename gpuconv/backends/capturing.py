"""Bookkeeping while a step is captured, so that its graph can be launched again.

A graph works on fixed addresses, so everything that it reads or writes has to stay where it is for as long as the graph
is used. Arrays outside the graph's own memory are recorded here as the step uses them, and kept alive.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np

__all__ = [
    "MOST_UPDATES",
    "Capture",
    "Captured",
    "LeftSum",
    "Update",
    "ahead",
    "capturing",
    "current",
    "drawn",
    "is_left",
    "leave",
    "made",
    "may_leave",
    "noting_results",
    "outside",
    "repeated",
    "settle",
    "sums_may_wait",
    "take",
    "warming_up",
]

T = TypeVar("T")

#: The most updates of a parameter that a launch takes: so many are prepared at once.
MOST_UPDATES = 512

_current: ContextVar[Capture | None] = ContextVar("gpuconv_capture", default=None)


#: How many threads or tasks capture a step or record results. Usually none, which each operation can check fast.
active = 0
_counting = threading.Lock()


def _after_fork() -> None:
    """In a forked child, the threads that were capturing do not exist."""
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
    """The capture under way in this thread or task, or None."""
    return _current.get() if active else None


class Update(NamedTuple):
    """A step of an optimizer inside a captured step.

    Attributes:
        optimizer: of ``gpuconv.optim``.
        missing: the indices of parameters without a gradient.
        launches: for each launch the parameters, a ``gpuconv.optim.Together``, and the numbers that its kernel reads.
    """

    optimizer: Any
    missing: list[int]
    launches: list[tuple[Any, Any]]


#: Which terms the formula of an update has: name of each option, and whether it is on.
Terms: TypeAlias = tuple[tuple[str, bool], ...]


def terms_of(options: dict[str, Any], names: Iterable[str]) -> Terms:
    """The terms that the options of an update give its formula."""
    return tuple([(name, bool(options[name])) for name in names])


def check_terms(options: dict[str, Any], terms: Terms) -> None:
    """Check that the formula of a captured update still has its terms.

    Raises:
        RuntimeError: it has others.
    """
    found = terms_of(options, [name for name, _ in terms])
    if found != terms:
        now, then = (", ".join(f"{name} {'on' if on else 'off'}" for name, on in one) for one in (found, terms))
        raise RuntimeError(
            f"capture: the captured update has {then}, and the optimizer now {now}: capture the step again"
        )


class Capture:
    """The arrays, leaves and updates of a step that is being captured.

    Args:
        graph: a graph of ``gpuconv.backends.cuda.graph``, which knows what lies in its own memory.
        made_before: ids of arrays that the previous call made, with weak references to them.

    Attributes:
        updates: the steps of optimizers.
    """

    def __init__(self, graph: Any, made_before: dict[int, Any] | None = None):
        self._graph, self._made_before = graph, made_before or {}
        #: By id, so that each is recorded once. Weak, so that recording an array does not keep it alive.
        self._arrays: dict[int, Callable[[], Any]] = {}
        self._found: list[Callable[[], Any]] = []
        self._kept: list[Any] = []
        #: Leaves, with the array and gradient that they had at first; an entry is removed with its leaf.
        self._leaves: dict[int, tuple[weakref.ref[Any], Any, Any]] = {}
        #: Gradients of leaves from before that the step adds to or reads; and those that it writes.
        self._old_grads: dict[int, tuple[weakref.ref[Any], Any]] = {}
        self._new_grads: dict[int, weakref.ref[Any]] = {}
        self.updates: list[Update] = []
        #: On a CPU, what is written in place, with its elements before.
        self._before: dict[int, tuple[Any, Any]] = {}
        #: What else puts back the state before, if the capture fails.
        self.undoing: list[Callable[[], None]] = []

    @property
    def branches(self) -> Any:
        """What decides which launches wait for which; None if each waits for the one before."""
        return self._graph.branches

    @property
    def on_host(self) -> bool:
        """Whether the step runs while it is captured, on a CPU: each operation has to say what it does."""
        return self._graph.on_host

    def repeat(self, compute: Callable[[], T], inputs: Iterable[Any], *, own: bool = False) -> T:
        """Run ``compute``, which reads ``inputs``, arrays or None, so that the graph repeats it; returns its results.

        A device's graph notes what is queued. On a CPU see :meth:`gpuconv.backends.host_graph.HostGraph.repeat`.
        """
        return self._graph.repeat(self, compute, inputs, own=own) if self.on_host else compute()

    @property
    def by_launches(self) -> bool:
        """Whether the last operation is repeated by its launches alone."""
        return bool(self._graph.by_launches)

    def reads_on_host(self, tensor: Any) -> None:
        """Refuse that Python reads what a repetition would change. On a GPU the driver does.

        Raises:
            RuntimeError: the values are the step's, or those of a leaf that is trained.
        """
        if self.on_host and self._graph.at_rest() and (tensor.requires_grad or self._graph.owns(tensor.data)):
            raise RuntimeError("it reads a Tensor's values on the host")

    def draws(self, generator: Any) -> None:
        """Record a generator that the step is about to draw from."""
        if all(generator is not one for one in self._graph.generators):
            self._graph.generators.append(generator)
            self.undoing.append(partial(setattr, generator.bit_generator, "state", generator.bit_generator.state))

    def steps(self, optimizer: Any) -> None:
        """Record an optimizer that is about to take a step."""
        if all(optimizer is not one for one in self._graph.optimizers):
            self._graph.optimizers.append(optimizer)
            self.undoing.append(partial(optimizer.back, optimizer.counts()))

    def writes(self, array: Any) -> None:
        """Record that the step is about to write an array that was there before, in place."""
        if self.on_host and not self._graph.owns(array):
            self.touches(array)
            self._before.setdefault(id(array), (array, array.copy()))

    def wrote(self, array: Any) -> bool:
        """Whether the step writes an array that was there before, in place, as an update writes a parameter."""
        return any(np.may_share_memory(array, one) for one, _ in self._before.values())

    def outside(self) -> contextlib.AbstractContextManager[None]:
        """Work inside the ``with`` block is not part of the graph: it runs now."""
        manager: contextlib.AbstractContextManager[None] = self._graph.outside()
        return manager

    def touches(self, array: Any) -> None:
        """Record an array that an operation reads or writes."""
        root = _root(array)
        known = self._arrays.get(id(root))
        if (known is not None and known() is root) or self._graph.owns(array):
            return
        if self._graph.borrowed(array):  # memory of another library: the view that was made of it keeps it alive
            self._kept.append(array)
        else:
            self._arrays[id(root)] = weakref.ref(root)
            self._found.append(self._arrays[id(root)])

    def keeps(self, array: Any) -> None:
        """Keep alive an array that was made for the graph, such as a constant."""
        self._kept.append(array)

    def reads_leaf(self, leaf: Any) -> None:
        """Record a leaf Tensor, such as a parameter, before its array or gradient is changed."""
        key = id(leaf)
        if key not in self._leaves:
            self._leaves[key] = weakref.ref(leaf, lambda _: self._leaves.pop(key, None)), leaf.data, leaf._grad

    def writes_grad(self, leaf: Any) -> None:
        """Record a leaf whose gradient is about to be set."""
        self.reads_leaf(leaf)
        self._new_grads.setdefault(id(leaf), weakref.ref(leaf))

    def reads_grad(self, leaf: Any) -> None:
        """Record a leaf whose gradient is added to or used in an update: its array must not change later."""
        self.reads_leaf(leaf)
        data = leaf._grad.data
        self.touches(data)
        if not self._graph.owns(data):
            self._old_grads.setdefault(id(leaf), (weakref.ref(leaf), data))

    def undo(self) -> None:
        """Restore the leaves after a capture that failed."""
        for find, data, grad in list(self._leaves.values()):
            if (leaf := find()) is not None:
                leaf.data, leaf._grad = data, grad
        for array, elements in reversed(self._before.values()):  # views may lie in one another
            array[...] = elements
        for undo in reversed(self.undoing):
            undo()

    def finished(self) -> Captured:
        """What has to be kept alive and checked before each launch.

        Raises:
            RuntimeError: an array that the graph would read was freed or replaced.
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
    """What a graph needs beside its own memory.

    Attributes:
        kept: arrays that it reads and writes.
        leaves: weak references to Tensors, with the array that each must still have.
        old_grads: leaves with the array that their gradient must still have.
        new_grads: leaves with the gradient that they have after each launch.
    """

    kept: list[Any]
    leaves: list[tuple[weakref.ref[Any], Any]]
    old_grads: list[tuple[weakref.ref[Any], Any]]
    new_grads: list[tuple[weakref.ref[Any], Any]]


class LeftSum(NamedTuple):
    """Gradients that are not computed yet: their sums over parts of a batch are there, in rows.

    Whoever reads them adds them up first. That is mostly an optimizer's update, whose kernel can do it on the way.

    Attributes:
        results: what will hold the gradients, in the order in which a row has them.
        rows: the sums over each part.
        parts: how many there are.
        add_up: queues the kernel that adds the rows up.
    """

    results: list[Any]
    rows: Any
    parts: int
    add_up: Callable[[], None]


class _Left:
    """Sums that are left in a step that is captured, or warms up for it.

    Attributes:
        sums: which there are.
        open: whether the results of what is computed now go to the graph of gradients as they are.
    """

    def __init__(self) -> None:
        self.sums: list[LeftSum] = []
        self.open = False


_left: ContextVar[_Left | None] = ContextVar("gpuconv_left_sums", default=None)


@contextlib.contextmanager
def sums_may_wait() -> Iterator[None]:
    """Inside the ``with`` block a backend may leave gradients as sums over parts, if a step is captured.

    For the backward of an operation that returns what the backend gives, and looks at nothing.
    """
    left = _left.get() if active else None
    if left is None:
        yield
        return
    left.open = True
    try:
        yield
    finally:
        left.open = False


def may_leave() -> bool:
    """Whether a backend may :func:`leave` a sum."""
    return bool(active) and (left := _left.get()) is not None and left.open


def leave(one: LeftSum) -> None:
    """Leave a sum to whoever reads its results first."""
    left = _left.get()
    assert left is not None
    left.sums.append(one)


def is_left(array: Any) -> bool:
    """Whether an array is the result of a sum that is left, which refers to it once."""
    left = _left.get()
    return left is not None and any(array is one for each in left.sums for one in each.results)


def settle(array: Any = None) -> None:
    """Before an array is read, or by default any: add up the sum that is left to compute it, if there is one."""
    left = _left.get() if active else None
    if left is None:
        return
    wanted = [one for one in left.sums if array is None or any(array is result for result in one.results)]
    left.sums = [one for one in left.sums if all(one is not other for other in wanted)]
    for one in wanted:
        one.add_up()


def take(arrays: list[Any]) -> list[LeftSum]:
    """The sums that are left of which all results are among ``arrays``: the caller adds them up, as it reads all.

    Those of which only some are among them are added up now.
    """
    left = _left.get() if active else None
    if left is None:
        return []
    ids = {id(array) for array in arrays}
    taken = [one for one in left.sums if ids.issuperset(map(id, one.results))]
    left.sums = [one for one in left.sums if all(one is not other for other in taken)]
    for array in arrays:
        settle(array)
    return taken


_warming: ContextVar[bool] = ContextVar("gpuconv_warming_up", default=False)


@contextlib.contextmanager
def _holding(variable: ContextVar[T], value: T) -> Iterator[T]:
    """Inside the ``with`` block the variable has the value, and this module's bookkeeping is active."""
    token = variable.set(value)
    try:
        with _active():
            yield value
    finally:
        variable.reset(token)


@contextlib.contextmanager
def warming_up() -> Iterator[None]:
    """Inside the ``with`` block a step runs that is to be captured."""
    # It leaves sums, too, so that the kernels are compiled that are captured then.
    with _holding(_warming, True), _holding(_left, _Left()):
        yield


def ahead() -> bool:
    """Whether a step is being captured, or warms up for it: what no graph can hold has to be done in another way."""
    return bool(active) and (_warming.get() or _current.get() is not None)


def _root(array: Any) -> Any:
    return array.base if hasattr(array.base, "dtype") else array  # memory of a pool has a base that is no array


_made: ContextVar[dict[int, Any] | None] = ContextVar("gpuconv_made", default=None)


def noting_results() -> contextlib.AbstractContextManager[Any]:
    """Record the results of operations inside the ``with`` block: by id, weak references to their arrays."""
    return _holding(_made, {})


def made(array: Any) -> None:
    """Record a result, if results are being recorded."""
    if active and (noted := _made.get()) is not None:
        with contextlib.suppress(TypeError):  # a kind of array that cannot be referred to weakly
            noted[id(_root(array))] = weakref.ref(_root(array))


def repeated(compute: Callable[[], T], *inputs: Any) -> T:
    """Return ``compute()``; a step that is being captured on a CPU repeats it: see :meth:`Capture.repeat`."""
    capture = current()
    return compute() if capture is None else capture.repeat(compute, inputs)


def drawn(generator: Any, draw: Callable[[], T]) -> T:
    """Return ``draw()``, which takes random numbers from a ``numpy.random.Generator``.

    A step that is captured on a CPU draws anew in each repetition. On a GPU it keeps the numbers.
    """
    if (capture := current()) is not None and capture.on_host:
        capture.draws(generator)
    return repeated(draw)


@contextlib.contextmanager
def capturing(capture: Capture) -> Iterator[None]:
    """Capture a step inside the ``with`` block, in this thread or task."""
    with _holding(_current, capture), _holding(_left, _Left()):
        yield


@contextlib.contextmanager
def outside() -> Iterator[None]:
    """Keep what is made inside the ``with`` block out of any capture."""
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
