"""Steps that a GPU repeats by itself: captured once as a CUDA graph, then launched as a whole.

A step of LeNet is a dozen kernels of a microsecond or two, and the host takes several times as long to launch each::

    def step(images, labels):
        loss = F.cross_entropy(model(Tensor(images)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    step = gpuconv.capture(step)
    for images, labels in batches:
        loss = step(images, labels)  # now and then: float(loss)

On the backends for the CPU there is nothing to gain, and the step is returned as it is.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

from gpuconv import backends
from gpuconv.autograd import Tensor, to_array
from gpuconv.backends import capturing
from gpuconv.geometry import integer

__all__ = ["CapturedStep", "capture"]


def capture(step: Callable[..., Any], *, warmup: int = 2) -> Callable[..., Any]:
    """Make of a step, of training or inference, one that a GPU repeats without the host.

    The first ``warmup`` calls run the step as it is, which compiles its kernels; the next one captures it. From then on
    a call copies its inputs to where the captured step reads them, and launches the graph on the current stream: **the
    step's Python code is not run again**. What it decides, prints or draws at random stays as it was, but for the
    optimizers of ``gpuconv.optim``, which go on counting their steps and take a new learning rate as always. Labels are
    not checked: one that is no class makes the loss NaN.

    The graph reads and writes at fixed addresses. The arrays there are kept for it, also if the model is deleted; a
    parameter that is given another array is noticed at the next call. Gradients of calls add up, if the step does not
    forget them. What the step keeps from one call to the next it has to write in place.

    Args:
        step: takes Tensors or arrays, and returns Tensors or arrays on the device (or a tuple, list or dict of them, or
            None). It must not wait for the device (``float(loss)``, ``.numpy()``) or take arrays of the host from
            elsewhere than its arguments. Arrays that it uses by other means than gpuconv's are the caller's to keep.
        warmup: calls before it is captured; at least 1.

    Returns:
        On a GPU a :class:`CapturedStep`; what it returns is overwritten by its next call. On other backends ``step``.

    Raises:
        ValueError: ``warmup`` is not positive.
        TypeError: ``warmup`` is not an integer.
    """
    warmup = integer(warmup, "warmup", minimum=1, op="capture")
    backend = backends.current()
    graph = backend.new_graph()
    return step if graph is None else CapturedStep(step, backend, graph, warmup)


class CapturedStep:
    """What :func:`capture` makes of a step on a GPU. It may be called from several threads, one after the other.

    Attributes:
        captured: whether the warm-up is over.
    """

    def __init__(self, step: Callable[..., Any], backend: Any, graph: Any, warmup: int):
        self._step, self._backend, self._graph, self._warmup = step, backend, graph, warmup
        self._expected: list[tuple[tuple[int, ...], Any]] | None = None
        self._inputs: list[Any] = []
        self._result: Any = None
        #: What the graph reads and writes outside of its own memory; and leaves, with the arrays that they must have.
        self._kept: list[Any] = []
        self._leaves: list[tuple[weakref.ref[Any], Any]] = []
        self._updates: list[tuple[Any, Any]] = []
        self._lock = threading.RLock()
        self.captured = False

    def __call__(self, *inputs: Any) -> Any:
        """Run the step, or launch its graph on the current stream.

        Raises:
            ValueError: an input has another shape or element type than in the first call.
            RuntimeError: the step does what cannot be captured, or a Tensor that it reads has another array since then;
                the message says what.
        """
        with self._lock:
            arrays = [to_array(x) for x in inputs]
            self._check(arrays)
            if self._warmup:
                result = self._step(*inputs)
                self._warmup -= 1
                return result
            if not self.captured:
                self.capture(*inputs)
            for find, array in self._leaves:
                leaf = find()
                if leaf is not None and leaf.data is not array:
                    raise RuntimeError(
                        f"capture: a Tensor of shape {leaf.shape} that the step reads was given another array after it "
                        "was captured (by model.to, or tensor.data = ...), and the graph still has the old one; "
                        "capture the step again"
                    )
            self._graph.take_turn()
            for optimizer, numbers in self._updates:
                optimizer.repeated(numbers)
            for target, array in zip(self._inputs, arrays, strict=True):
                target.fill(array)
            self._graph.launch()
            return self._result

    def _check(self, arrays: list[Any]) -> None:
        given = [(array.shape, array.dtype) for array in arrays]
        if given == self._expected:
            return
        if self._expected is None:
            self._expected = given
        if len(given) != len(self._expected):
            raise ValueError(f"capture: the step was first called with {len(self._expected)} inputs, now {len(given)}")
        for number, (now, first) in enumerate(zip(given, self._expected, strict=True)):
            if now != first:
                raise ValueError(
                    f"capture: input {number} was {first[1]} of shape {first[0]} in the first call, and is {now[1]} of "
                    f"shape {now[0]} now; a graph has fixed shapes: capture another one, or call the step itself"
                )

    def capture(self, *inputs: Any) -> None:
        """Capture the step for inputs like these; it is not run.

        Raises:
            RuntimeError: the step does what cannot be captured; the message says what. Nothing is changed, and the next
                call tries again.
        """
        # Made here, and not while the step is captured: they are written between two repetitions.
        self._inputs = [self._backend.new_input(to_array(x)) for x in inputs]
        static = [
            Tensor(target.array, x.requires_grad) if isinstance(x, Tensor) else target.array
            for x, target in zip(inputs, self._inputs, strict=True)
        ]
        noted = capturing.Capture(self._graph)
        try:
            with capturing.capturing(noted), self._graph.recording():
                result = self._step(*static)
                self._check_result(result)
            self._kept, self._leaves = noted.finished()
        except Exception as error:
            noted.undo()
            raise RuntimeError(
                f"capture: the step cannot be captured: {error} (a captured step may not wait for the device, as "
                "float(loss) or .numpy() do, and gets its data by its arguments)"
            ) from error
        except BaseException:  # Ctrl-C
            noted.undo()
            raise
        self._result, self._updates, self.captured = result, noted.updates, True

    def _check_result(self, result: Any) -> None:
        if result is None:
            return
        if isinstance(result, (tuple, list)):
            for part in result:
                self._check_result(part)
        elif isinstance(result, dict):
            self._check_result(list(result.values()))
        elif not isinstance(result.data if isinstance(result, Tensor) else result, self._backend.xp.ndarray):
            what = f"a {type(result).__name__}" if not isinstance(result, Tensor) else "a Tensor"
            raise TypeError(f"it returns {what} of the host, which would stay as it is; return Tensors on the device")
