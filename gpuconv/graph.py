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

from collections.abc import Callable
from typing import Any

from gpuconv import backends
from gpuconv.autograd import Tensor, overwrite, to_array
from gpuconv.geometry import integer

__all__ = ["CapturedStep", "capture"]


def capture(step: Callable[..., Any], *, warmup: int = 2) -> Callable[..., Any]:
    """Make of a step, of training or inference, one that a GPU repeats without the host.

    The first ``warmup`` calls run the step as it is, which compiles its kernels; the next one captures it. From then on
    a call copies its inputs to where the captured step reads them, and launches the graph: **the step's Python code is
    not run again**. What it decides, prints or draws at random stays as it was, but for the optimizers of
    ``gpuconv.optim``, which go on counting their steps and take a new learning rate as always. Labels are not checked:
    one that is no class makes the loss NaN.

    Args:
        step: takes Tensors or arrays, and returns Tensors (or a tuple of them, or None). It must not wait for the
            device (``float(loss)``, ``.numpy()``) or take arrays of the host from elsewhere than its arguments.
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
    """What :func:`capture` makes of a step on a GPU. **The CUDA graph has not been run on a GPU yet**, see the README.

    Attributes:
        captured: whether the warm-up is over.
    """

    def __init__(self, step: Callable[..., Any], backend: Any, graph: Any, warmup: int):
        self._step, self._backend, self._graph, self._warmup = step, backend, graph, warmup
        self._inputs: list[Any] = []
        self._expected: list[tuple[tuple[int, ...], Any]] | None = None
        self._again: list[Callable[[], None]] = []
        #: Device arrays with the numbers of an update, in the order of the updates; values yet to be copied there.
        self._numbers: list[Any] = []
        self._values: list[Any] = []
        self._result: Any = None
        self.captured = False

    def __call__(self, *inputs: Any) -> Any:
        """Run the step, or launch its graph.

        Raises:
            ValueError: an input has another shape or element type than in the first call.
            RuntimeError: the step does what cannot be captured; the message says what.
        """
        arrays = [to_array(x) for x in inputs]
        self._check(arrays)
        if self._warmup:
            self._warmup -= 1
            with self._graph.running():
                return self._step(*inputs)
        if not self.captured:
            self.capture(*inputs)
        else:
            # Optimizers count the step, and say their numbers anew; nothing is launched.
            with self._backend.capturing(self):
                for again in self._again:
                    again()
        with self._graph.running():
            for target, source in zip([*self._inputs, *self._numbers], [*arrays, *self._values], strict=True):
                overwrite(target, source)
            self._graph.launch()
        self._values = []
        return self._result

    def _check(self, arrays: list[Any]) -> None:
        given = [(tuple(array.shape), array.dtype) for array in arrays]
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
            RuntimeError: the step does what cannot be captured; the message says what.
        """
        with self._graph.running():
            self._inputs = [self._backend.asarray(to_array(x)).copy() for x in inputs]
        static = [
            Tensor(array, x.requires_grad) if isinstance(x, Tensor) else array
            for x, array in zip(inputs, self._inputs, strict=True)
        ]
        try:
            with self._backend.capturing(self), self._graph.recording():
                self._result = self._step(*static)
        except Exception as error:
            raise RuntimeError(
                f"capture: the step cannot be captured: {error} (a captured step may not wait for the device, as "
                "float(loss) or .numpy() do, and gets its data by its arguments)"
            ) from error
        self.captured = True

    # -- what the backend tells, while it is captured or repeated ------------------------------------------------------

    def repeat(self, again: Callable[[], None]) -> None:
        """Call ``again`` before each launch of the graph."""
        if not self.captured:
            self._again.append(again)

    def numbers(self, values: Any) -> Any | None:
        """Where on the device an update of the captured step finds its numbers; None if it is only to say them anew."""
        self._values.append(values)
        if self.captured:
            return None
        self._numbers.append(self._backend.xp.empty(values.shape, values.dtype))
        return self._numbers[-1]
