"""Steps recorded once, and then repeated as a whole: as a CUDA graph, or as a list of compiled calls on a CPU.

A step of LeNet is a dozen kernels of a few microseconds each, and Python needs longer to call one than it runs::

    def step(images, labels):
        loss = F.cross_entropy(model(Tensor(images)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    step = gpuconv.capture(step)
    for images, labels in batches:
        loss = step(images, labels)  # now and then: float(loss)

A step without inputs, which finds its data by itself, can be taken many times in one launch: ``step.repeat(100)``.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gpuconv import backends, versions
from gpuconv.autograd import Tensor, to_array
from gpuconv.backends import capturing
from gpuconv.geometry import integer

__all__ = ["CapturedStep", "capture"]

#: How many steps one launch takes: for each number a graph is made, whose nodes are those of so many steps.
_AT_ONCE = (256, 32, 4, 1)


def capture(step: Callable[..., Any], *, warmup: int = 2, side_by_side: bool = True) -> CapturedStep:
    """Record a step of training or inference, so that each further call repeats it without its Python code.

    On a GPU it becomes a CUDA graph, and a call is a single launch. On a CPU it becomes a list of compiled calls; what
    is not compiled runs again operation by operation.

    The first ``warmup`` calls run the step as usual, which compiles its kernels. The next call captures it. Every later
    call copies its inputs to the addresses that the graph reads, and launches the graph, on a GPU on the current
    stream. On a CPU the first of these calls also runs the step itself, and compares the two.

    **The Python code of the step does not run again.** What it decided or printed when it was captured stays the same.
    The optimizers of ``gpuconv.optim`` are an exception: they continue to count their steps and use a new learning rate
    as always. Random numbers stay the same on a GPU, and are drawn anew on a CPU. Labels are not checked on a GPU: an
    invalid one makes the loss NaN there.

    The graph has fixed addresses. It keeps the arrays that it uses, even if the model is deleted. If a parameter is
    given another array, the next call raises an error. Gradients accumulate over calls, unless the step clears them. A
    value that the step keeps from one call to the next must be written in place, on a CPU by gpuconv's operations.

    Args:
        step: takes Tensors or arrays, and returns Tensors or arrays (or a tuple, list or dict of them, or None), on a
            GPU those of the device. It must not read values, as ``float(loss)`` or ``.numpy()`` do, and all data that
            change must come as arguments. On a GPU, arrays that it uses without gpuconv's operations must be kept
            alive by the caller; on a CPU, only gpuconv's operations are repeated.
        warmup: number of calls before the capture; at least 1.
        side_by_side: on a GPU, launches that need nothing of each other may run at the same time, as the gradients of a
            layer's weights and of its input. False: each waits for the one before. Results are the same.

    Returns:
        A :class:`CapturedStep`. The next call overwrites its results.

    Raises:
        ValueError: ``warmup`` is not positive.
        TypeError: ``warmup`` is not an integer.
    """
    warmup = integer(warmup, "warmup", minimum=1, op="capture")
    backend = backends.current()
    return CapturedStep(step, backend, backend.new_graph(side_by_side=side_by_side), warmup)


class CapturedStep:
    """The result of :func:`capture`. Several threads may use it, one at a time.

    Attributes:
        captured: whether the graph has been captured.
    """

    def __init__(self, step: Callable[..., Any], backend: Any, graph: Any, warmup: int):
        self._step, self._backend, self._graph, self._warmup = step, backend, graph, warmup
        self._expected: list[tuple[tuple[int, ...], Any]] | None = None
        self._inputs: list[Any] = []
        self._static: list[Any] = []
        self._result: Any = None
        self._around = capturing.Captured([], [], [], [])
        #: The update of each optimizer, and how many of its steps one launch takes.
        self._updates: list[tuple[capturing.Update, int]] = []
        self._versions: list[Any] = []
        #: Arrays made in the last warm-up call, if there are several.
        self._made: dict[int, Any] = {}
        self._several = warmup > 1
        self._lock = threading.RLock()
        #: Whether a repetition has been compared with the step; on a GPU that is not done.
        self._compared = not graph.on_host
        self.captured = False

    @property
    def on_host(self) -> bool:
        """Whether it runs on a CPU."""
        return bool(self._graph.on_host)

    def __call__(self, *inputs: Any) -> Any:
        """Run the step, or launch its graph on the current stream; inside another capture it joins that graph.

        Raises:
            ValueError: an input has another shape or dtype than in the first call.
            RuntimeError: the step does something that cannot be captured, or a Tensor that it reads has been given
                another array since then; the message says what.
        """
        if capturing.current() is not None:
            return self._step(*inputs)
        with self._lock:
            arrays = [to_array(x) for x in inputs]
            self._check(arrays)
            if self._warmup:
                return self._warmed(arrays, inputs)
            run = self.captured or not self._graph.on_host
            if not self.captured:
                self.capture(*inputs)
            if run:
                self._check_leaves()
                if not self._compared:
                    self._compare(inputs, arrays)
                self._launch(arrays)
            self._show_grads()
            for x, static in zip(inputs, self._static, strict=True):
                if isinstance(x, Tensor) and x.requires_grad and static.grad is not None:
                    # As backward does: set, or added to what there is.
                    if x.grad is None or x.grad is static.grad:
                        x.grad = static.grad
                    else:
                        x.grad = Tensor(x.grad.data + static.grad.data)
            return self._result

    def repeat(self, count: int) -> Any:
        """Take the step ``count`` times, as so many calls without inputs; returns the result of the last one.

        On a GPU, once the step is captured, these are few launches: of 256, 32 and 4 steps, and single ones. The driver
        keeps a graph with the nodes of so many steps; the memory of the step is not needed again.

        Raises:
            ValueError: ``count`` is not positive, or the step takes inputs.
            TypeError: ``count`` is not an integer.
            RuntimeError: as of a call.
        """
        left = integer(count, "count", minimum=1, op="repeat")
        result = None
        with self._lock:
            while left:
                if not self.captured or self.on_host or capturing.current() is not None:
                    result, left = self(), left - 1
                    continue
                self._check([])
                self._check_leaves()
                most = capturing.MOST_UPDATES // max([taken for _, taken in self._updates], default=1)
                times = next((size for size in _AT_ONCE if size <= min(left, most)), 1)
                self._launch([], times)
                self._show_grads()
                result, left = self._result, left - times
        return result

    def _show_grads(self) -> None:
        """Give the leaves the gradients that a launch has written."""
        for find, grad in self._around.new_grads:
            if (leaf := find()) is not None:
                leaf._grad = grad

    def _warmed(self, arrays: list[Any], inputs: tuple[Any, ...]) -> Any:
        with capturing.warming_up(), contextlib.ExitStack() as stack:
            if self._warmup == 1 and self._several:
                self._made = stack.enter_context(capturing.noting_results())
            result = self._step(*inputs)
            capturing.settle()
        self._warmup -= 1
        self._expected = [(array.shape, array.dtype) for array in arrays]
        return result

    def _check_leaves(self) -> None:
        for find, array in self._around.leaves:
            leaf = find()
            if leaf is not None and leaf.data is not array:
                raise RuntimeError(
                    f"capture: a Tensor of shape {leaf.shape} that the step reads was given another array after it "
                    "was captured (by model.to, or tensor.data = ...), and the graph still has the old one; capture "
                    "the step again"
                )
        for find, array in self._around.old_grads:
            leaf = find()
            if leaf is not None and (leaf.grad is None or leaf.grad.data is not array):
                raise RuntimeError(
                    f"capture: the step adds to, or takes, a gradient of shape {leaf.shape} that was there when it was "
                    "captured, and was cleared or replaced since: clear gradients inside the step, or set them "
                    "to zero in place (x.grad *= 0)"
                )

    def _launch(self, arrays: list[Any], times: int = 1) -> None:
        before = [update.optimizer.counts() for update, _ in self._updates]
        try:
            self._graph.take_turn()
            for update, count in self._updates:
                update.optimizer.repeated(update, count * times)
            for target, array in zip(self._inputs, arrays, strict=True):
                target.fill(array)
            if times == 1:
                self._graph.launch()
            else:
                self._graph.launch(times)
        except BaseException:
            for (update, _), counts in zip(self._updates, before, strict=True):
                update.optimizer.back(counts)
                for _, numbers in update.launches:
                    numbers.forget()
            raise
        for version in self._versions:
            version.changes("the next call of a captured step")

    def _compare(self, inputs: tuple[Any, ...], arrays: list[Any]) -> None:
        """Compare the graph with the step itself, to the last bit, and leave everything as it was before.

        Raises:
            RuntimeError: the step computes or changes something that the graph does not.
        """
        ours = [id(x) for x in self._static]  # the step itself is given others
        # The graph adds to these in place, and the step by making others.
        added = [id(array) for _, array in self._around.old_grads]
        kept = [array for array in self._around.kept if id(array) not in added]
        grads = [
            (leaf, grad)
            for find, grad in self._around.new_grads
            if (leaf := find()) is not None and id(leaf) not in ours
        ]
        with self._undoing():
            result = self._step(*_like(inputs, arrays))
            values = [result, [leaf._grad for leaf, _ in grads], kept]
            expected = [np.array(_array(part)) for part in _parts(values)]
        with self._undoing():
            self._launch(arrays)
            found = [_array(part) for part in _parts([self._result, [grad for _, grad in grads], kept])]
            same = len(found) == len(expected) and all(map(_equal, found, expected))
        if not same:
            raise RuntimeError(
                "capture: a repetition of the captured step gives other values than the step: it computes or changes "
                "something without gpuconv's operations, such as by NumPy on a Tensor's data, or Python decides by "
                "something that has changed since"
            )
        self._compared = True

    @contextlib.contextmanager
    def _undoing(self) -> Iterator[None]:
        """Put back what a step changes, after the ``with`` block."""
        kept = [(array, array.copy()) for array in self._around.kept]
        leaves = [(leaf, leaf.data, leaf._grad) for find, _ in self._around.leaves if (leaf := find()) is not None]
        states = [(draws.bit_generator, draws.bit_generator.state) for draws in self._graph.generators]
        counts = [(optimizer, optimizer.counts()) for optimizer in self._graph.optimizers]
        try:
            yield
        finally:
            for leaf, data, grad in leaves:
                leaf.data, leaf._grad = data, grad
            for array, elements in kept:
                if array.flags.writeable:
                    array[...] = elements
            for generator, state in states:
                generator.state = state
            for optimizer, before in counts:
                optimizer.back(before)

    def _check(self, arrays: list[Any]) -> None:
        given = [(array.shape, array.dtype) for array in arrays]
        if self._expected is None or given == self._expected:
            return
        if len(given) != len(self._expected):
            raise ValueError(f"capture: the step was first called with {len(self._expected)} inputs, now {len(given)}")
        for number, (now, first) in enumerate(zip(given, self._expected, strict=True)):
            if now != first:
                raise ValueError(
                    f"capture: input {number} was {first[1]} of shape {first[0]} in the first call, and is {now[1]} of "
                    f"shape {now[0]} now; a graph has fixed shapes: capture another step, or call this one uncaptured"
                )

    def capture(self, *inputs: Any) -> None:
        """Capture the step for inputs of these shapes; on a GPU without running it, on a CPU the step is also taken.

        Raises:
            RuntimeError: the step does something that cannot be captured; the message says what. Nothing has changed
                then, and the next call tries again.
        """
        # Made before the capture begins, because they are written between two launches of the graph.
        with self._backend.computing():
            self._inputs = [self._backend.new_input(to_array(x)) for x in inputs]
        static = _like(inputs, [target.array for target in self._inputs])
        noted = capturing.Capture(self._graph, self._made)
        try:
            with capturing.capturing(noted), self._graph.recording():
                if self._graph.on_host:
                    for target in self._inputs:
                        self._graph.takes_input(target.array)
                result = self._step(*static)
                capturing.settle()
                self._check_result(result, noted)
                updates = _counted(noted.updates)
            around = noted.finished()
        except Exception as error:
            noted.undo()
            hint = ""
            if "captur" in str(error).lower() or "on the host" in str(error):
                hint = (
                    " (a captured step must not wait for the device or read values, as float(loss) or .numpy() do, and "
                    "its data must come as arguments)"
                )
            raise RuntimeError(f"capture: the step cannot be captured: {error}{hint}") from error
        except BaseException:  # Ctrl-C
            noted.undo()
            raise
        self._result, self._static, self._around, self._updates = result, static, around, updates
        self._versions = [versions.of(array) for array in map(_array, _parts(result))]
        self._made, self.captured, self._compared = {}, True, not self._graph.on_host

    def _check_result(self, result: Any, noted: capturing.Capture) -> None:
        for part in _parts(result):
            if not isinstance(_array(part), self._backend.xp.ndarray):
                what = f"a {type(part).__name__}" if not isinstance(part, Tensor) else "a Tensor"
                raise TypeError(
                    f"it returns {what} on the host, which a launch would not change; return Tensors"
                    + (" on the device" if not self._graph.on_host else "")
                )
            if _array(part).size and not self._graph.computes(_array(part)) and not noted.wrote(_array(part)):
                raise TypeError("it returns a result that no operation of gpuconv computed; only those are repeated")


def _like(inputs: tuple[Any, ...], arrays: list[Any]) -> list[Any]:
    """The arrays, as Tensors where the inputs are Tensors."""
    pairs = zip(inputs, arrays, strict=True)
    return [Tensor(array, x.requires_grad) if isinstance(x, Tensor) else array for x, array in pairs]


def _parts(result: Any) -> Iterator[Any]:
    """The results of a step one by one, from tuples, lists and dicts too; None is skipped."""
    if isinstance(result, (tuple, list, dict)):
        for part in result.values() if isinstance(result, dict) else result:
            yield from _parts(part)
    elif result is not None:
        yield result


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two arrays are the same to the last bit; any NaN is like any other."""
    return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=True)


def _array(part: Any) -> Any:
    return part.data if isinstance(part, Tensor) else part


def _counted(updates: list[capturing.Update]) -> list[tuple[capturing.Update, int]]:
    """Each optimizer's update in a step, and how many steps it takes.

    Raises:
        RuntimeError: an optimizer takes steps with different parameters, so that one count would not be right for all.
    """
    found: dict[int, tuple[capturing.Update, int]] = {}
    for update in updates:
        first, count = found.get(id(update.optimizer), (update, 0))
        if [numbers for _, numbers in first.launches] != [numbers for _, numbers in update.launches]:
            raise RuntimeError("an optimizer takes several steps, and not all of them with the same parameters")
        found[id(update.optimizer)] = first, count + 1
    return list(found.values())
