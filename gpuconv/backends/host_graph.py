"""The graph of a step that is captured on a CPU: a list of calls, with the arrays that they write.

A step runs once while it is recorded, and each operation adds what repeats it:

- **its kernels**, if nothing else happened in it: each argument lies in an input of the operation, in memory that
  :func:`gpuconv.backends.cpu.memory.empty` gave it, or is a constant. Kernels in a row become one compiled call.
- otherwise **the whole operation**: it runs again, and its results are copied into the arrays of the first time. So an
  operation that draws random numbers draws new ones, and one that checks its arguments checks them again.

What Python does between operations is not repeated. :class:`gpuconv.captured_step.CapturedStep` compares the first
repetition with the step itself, to the last bit, so that a step that computes with NumPy alone is found out.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any

import numpy as np

from gpuconv.backends import capturing

__all__ = ["HostGraph", "HostInput", "Scope", "call", "constant", "scope"]


class Scope:
    """What an operation does while it is recorded.

    Attributes:
        memory: of the step, where :func:`~gpuconv.backends.cpu.memory.empty` allocates.
        whole: whether launches and calls are all that the operation does, as far as is known.
        calls: these, in order.
        kept: arrays that they need.
    """

    def __init__(self, memory: Any, inputs: Iterable[np.ndarray]):
        self.memory, self.whole = memory, True
        self.calls: list[Any] = []
        self.kept: list[np.ndarray] = []
        self._known = [_span(array) for array in inputs]

    def allocated(self, array: np.ndarray) -> None:
        """Memory of the step was given to the operation."""
        self._known.append(_span(array))

    def keeps(self, array: np.ndarray) -> None:
        """The operation made an array for its launches, which nobody else writes."""
        self.kept.append(array)
        self.allocated(array)

    def updates(self, together: Any, numbers: Any) -> None:
        """The last launch updates parameters, with numbers that change from step to step; see `capturing.Update`.

        A second update by the same optimizer in one step is not repeated by its launches: its numbers would have to
        change in between.
        """
        capture = capturing.current()
        assert capture is not None
        *before, update = capture.updates
        self.whole = self.whole and all(one.optimizer is not update.optimizer for one in before)
        update.launches.append((together, numbers))

    def knows(self, array: np.ndarray) -> bool:
        """Whether an array lies in an input or in allocated memory, or is a constant."""
        first, end = _span(array)
        return (
            first == end
            or first in _constants
            or any(start <= first and end <= behind for start, behind in self._known)
        )

    def takes(self, arguments: Iterable[Any]) -> bool:
        """Whether a call with these arguments can be repeated; if not, the whole operation will be."""
        self.whole = self.whole and all(self.knows(one) for one in arguments if isinstance(one, np.ndarray))
        return self.whole


_scope: ContextVar[Scope | None] = ContextVar("gpuconv_scope", default=None)


def scope() -> Scope | None:
    """The operation that is being recorded in this thread or task, or None."""
    return _scope.get() if capturing.active else None


def call(function: Callable[..., Any], *arguments: Any) -> None:
    """Call a function that writes its result into one of its arguments; a captured step repeats the call."""
    function(*arguments)
    if (recorded := scope()) is not None and recorded.takes(arguments):
        again = functools.partial(
            function, *(_Place.of(one) if isinstance(one, np.ndarray) else one for one in arguments)
        )
        recorded.calls.append(again)


class _Place:
    """An array's memory by its address, through NumPy's array interface: does not keep it from being used again."""

    def __init__(self, array: np.ndarray):
        interface = array.__array_interface__
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}

    @classmethod
    def of(cls, array: np.ndarray) -> np.ndarray:
        """An array in the same place."""
        return np.asarray(cls(array))


#: Arrays that operations read and nobody writes, by their address.
_constants: dict[int, np.ndarray] = {}


def constant(array: np.ndarray) -> np.ndarray:
    """Keep an array that nobody will write: operations may read it in a captured step."""
    return _constants.setdefault(array.ctypes.data, array)


def _span(array: np.ndarray) -> tuple[int, int]:
    """First and end address of an array's elements."""
    if not array.size:
        return 0, 0
    if array.flags.c_contiguous:  # as mostly
        first = array.__array_interface__["data"][0]
        return first, first + array.nbytes
    steps = [(size - 1) * stride for size, stride in zip(array.shape, array.strides, strict=True)]
    first = array.__array_interface__["data"][0]
    return first + sum(min(step, 0) for step in steps), first + sum(max(step, 0) for step in steps) + array.itemsize


class HostInput:
    """An input of a captured step.

    Attributes:
        array: where the step reads it.
    """

    def __init__(self, like: np.ndarray):
        self.array = like.copy(order="K")

    def fill(self, source: np.ndarray) -> None:
        """Copy an array of the same shape and type."""
        np.copyto(self.array, source)


class HostGraph:
    """See the module. A step that is recorded is also run."""

    #: Launches run in their order.
    branches = None
    on_host = True

    def __init__(self, backend: Any, memory: Any = None):
        self._backend, self._memory = backend, memory
        #: Whether the last operation is repeated by its launches alone.
        self.by_launches = False
        self._calls: list[Any] = []
        self._program: list[Callable[[], None]] = []
        #: Whether it is one compiled call.
        self._compiled = False
        #: Memory that the step computes: the object that owns it, by id.
        self._own: dict[int, Any] = {}
        #: Arrays from elsewhere that kernels read.
        self._kept: list[np.ndarray] = []
        #: Generators of random numbers that the step draws from.
        self.generators: list[np.random.Generator] = []
        #: Optimizers whose steps the step takes.
        self.optimizers: list[Any] = []

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """What runs inside the ``with`` block becomes the graph."""
        self._calls, self._program, self._own, self._kept = [], [], {}, []
        self.generators, self.optimizers = [], []
        yield
        self._program = list(_joined(self._calls))
        self._compiled = len(self._program) == 1 and hasattr(self._calls[0], "joined")

    def outside(self) -> contextlib.AbstractContextManager[None]:
        """During :meth:`recording`: work in this block is not repeated."""
        return contextlib.nullcontext()

    def computes(self, array: Any) -> bool:
        """Whether the graph computes an array, or copies an input there."""
        return id(_owner(array)) in self._own or (self._memory is not None and self._memory.owns(array))

    owns = computes

    def borrowed(self, array: Any) -> bool:
        """As of a CUDA graph; here arrays are kept like any others."""
        return False

    def take_turn(self) -> None:
        """As of a CUDA graph: calls run when they are made."""

    def at_rest(self) -> bool:
        """Whether no operation is running: what runs now will not be repeated."""
        return _scope.get() is None

    def takes_input(self, array: np.ndarray) -> None:
        """An input's array: its values are others in each call."""
        self._own[id(_owner(array))] = _owner(array)

    def repeat(
        self, capture: capturing.Capture, compute: Callable[[], Any], inputs: Iterable[Any], *, own: bool = False
    ) -> Any:
        """Run ``compute``, and record what repeats it.

        Args:
            capture: told of what is read.
            compute: returns arrays, also in tuples, lists and contexts; takes nothing.
            inputs: what it reads: arrays, also in tuples and lists; what is none is skipped.
            own: whether it is known to do nothing but compute its results: its launches stand for it, and of results
                that lie in the inputs there is nothing to repeat.
        """
        outer = _scope.get()
        if outer is not None:  # part of another operation, which repeats it
            outer.whole = False
            return compute()
        inputs = list(_arrays(list(inputs)))
        for array in inputs:
            capture.touches(array)
        noted = Scope(self._memory, inputs)
        token = _scope.set(noted)
        try:
            results = compute()
            if isinstance(results, np.generic):  # NumPy's form of an array without dimensions
                results = np.asarray(results)
        finally:
            _scope.reset(token)
        arrays = list(_arrays(results))
        found = all(noted.knows(array) for array in arrays) and not any(_numbers(results))
        self.by_launches = found and own and noted.whole and bool(noted.calls or arrays)
        if self.by_launches:
            self._calls += noted.calls
            self._kept += noted.kept
            self._kept += [array for array in inputs if not self.owns(array)]
            return results
        self._calls.append(_again(compute, results))
        for array in arrays:
            if not any(np.may_share_memory(array, one) for one in inputs):
                self._own[id(_owner(array))] = _owner(array)
        return results

    def launch(self) -> None:
        """Repeat the step."""
        if self._compiled:  # whose numbers raise no warnings
            self._program[0]()
            return
        with self._backend.computing():
            for function in self._program:
                function()


def _joined(calls: Iterable[Any]) -> Iterator[Callable[[], None]]:
    """Calls, in which launches in a row are one."""
    row: list[Any] = []
    for one in calls:
        if hasattr(one, "joined"):
            row.append(one)
            continue
        if row:
            yield row[0].joined(row)
            row = []
        yield one
    if row:
        yield row[0].joined(row)


def _owner(array: Any) -> Any:
    """The object that keeps an array's memory."""
    while isinstance(array, np.ndarray) and array.base is not None:
        array = array.base
    return array


def _arrays(value: Any) -> Iterator[np.ndarray]:
    """All arrays in results, and in what contexts have saved."""
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, (tuple, list)):
        for one in value:
            yield from _arrays(one)
    elif isinstance(value, dict):
        yield from _arrays(list(value.values()))
    elif hasattr(value, "needs_input_grad"):
        yield from _arrays([value._saved, vars(value)])


def _numbers(value: Any) -> Iterator[bool]:
    """Whether results, or what contexts have saved, hold numbers that NumPy has computed, perhaps from other values."""
    if isinstance(value, (tuple, list)):
        for one in value:
            yield from _numbers(one)
    elif hasattr(value, "needs_input_grad"):
        yield from _numbers([value._saved, *vars(value).values()])
    else:
        yield isinstance(value, np.generic)


def _again(compute: Callable[[], Any], first: Any) -> Callable[[], None]:
    contexts = [(one, one._saved) for one in first if hasattr(one, "needs_input_grad")] if type(first) is tuple else []

    def again() -> None:
        for context, saved in contexts:
            context._saved = saved  # which backward may have released
        now = compute()
        _refill(first, np.asarray(now) if isinstance(now, np.generic) else now)

    return again


def _refill(first: Any, now: Any) -> Any:
    """Give the results of the first time the values of now; returns what stands for ``now``.

    Raises:
        RuntimeError: a result has another shape or type.
    """
    if isinstance(first, np.ndarray) and isinstance(now, np.ndarray):
        if first is not now:
            if first.shape != now.shape or first.dtype != now.dtype:
                raise RuntimeError(
                    f"capture: a result was {first.dtype} of shape {first.shape} when the step was captured, and is "
                    f"{now.dtype} of shape {now.shape} now; a captured step has fixed shapes: call it uncaptured"
                )
            if first.ctypes.data != now.ctypes.data or first.strides != now.strides:
                if first.flags.writeable:
                    np.copyto(first, now)
                else:  # a view by broadcasting, of which each element is to be written once
                    once = tuple(slice(0, 1) if stride == 0 else slice(None) for stride in first.strides)
                    np.copyto(_Place.of(first)[once], now[once])
        return first
    if isinstance(first, (tuple, list)) and isinstance(now, (tuple, list)) and len(first) == len(now):
        refilled = [_refill(one, other) for one, other in zip(first, now, strict=True)]
        return type(now)(refilled) if type(now) in (tuple, list) else now
    if isinstance(first, dict) and isinstance(now, dict):
        return {name: _refill(first.get(name), value) for name, value in now.items()}
    if hasattr(first, "needs_input_grad") and first is not now:
        first._saved = _refill(first._saved, now._saved)
        vars(first).update(_refill(vars(first), vars(now)))
        return first
    return now
