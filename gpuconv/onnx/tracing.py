"""What a model does with an input, noted operation by operation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from gpuconv import versions
from gpuconv.autograd import Tensor, no_grad, recording, to_array, to_numpy
from gpuconv.nn.module import Module, evaluating

__all__ = ["Call", "Operand", "Trace", "trace"]


class Operand(NamedTuple):
    """What goes into an operation, or comes out.

    Attributes:
        kind: 'input' of the model, 'state' (a parameter or buffer), 'value' (a result), or 'constant'.
        key: number of an input or a result, name of a state, array of a constant.
        shape, dtype: of the array.
    """

    kind: str
    key: Any
    shape: tuple[int, ...]
    dtype: np.dtype


@dataclass(frozen=True)
class Call:
    """One operation: a Function, or for a comparison the one of :mod:`operator`."""

    function: Any
    inputs: tuple[Operand | None, ...]
    options: dict[str, Any]
    outputs: tuple[Operand, ...]

    @property
    def name(self) -> str:
        """How it is called."""
        return str(self.function.__name__)


@dataclass(frozen=True)
class Trace:
    """All operations of a run, and the operands that are the model's inputs and outputs."""

    calls: list[Call]
    inputs: list[Operand]
    outputs: list[Operand]
    state: dict[str, np.ndarray]


class _Recorder:
    """Knows arrays by their identity, which holds as long as they are kept."""

    def __init__(self, model: Module, inputs: Sequence[Tensor]):
        self.calls: list[Call] = []
        self.state: dict[str, np.ndarray] = {}
        self._known: dict[int, Operand] = {}
        self._kept: list[Any] = []
        self._values = 0
        named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
        for name, tensor in named:
            if id(tensor.data) not in self._known:
                self._know(tensor.data, "state", name)
                self.state[name] = to_numpy(tensor.data)
        self.inputs = [self._know(tensor.data, "input", number) for number, tensor in enumerate(inputs)]

    def _know(self, array: Any, kind: str, key: Any) -> Operand:
        operand = Operand(kind, key, tuple(array.shape), array.dtype)
        self._known[id(array)] = operand
        self._kept.append(array)
        return operand

    def operand(self, value: Any) -> Operand | None:
        """What is known of a Tensor, array or number; one that no operation made is a constant."""
        if value is None:
            return None
        array = value.data if isinstance(value, Tensor) else to_array(value)
        found = self._known.get(id(array))
        return found or Operand("constant", to_numpy(array).copy(), tuple(array.shape), array.dtype)

    def note(self, function: Callable[..., Any], inputs: Sequence[Any], options: Any, results: Sequence[Any]) -> None:
        """Take down an operation."""
        operands = tuple([self.operand(value) for value in inputs])
        outputs = []
        for result in results:
            outputs.append(self._know(result.data if isinstance(result, Tensor) else result, "value", self._values))
            self._values += 1
        self.calls.append(Call(function, operands, dict(options), tuple(outputs)))


def trace(model: Module, inputs: Sequence[Tensor]) -> Trace:
    """Run a model in evaluation mode and without a graph, and note what it does.

    Raises:
        TypeError: its output is neither a Tensor nor several.
        ValueError: it changes arrays in place, which no graph of values can say.
    """
    recorder, before = _Recorder(model, inputs), versions.latest
    with evaluating(model), no_grad(), recording(recorder.note):
        result = model(*inputs)
    if versions.latest != before:
        raise ValueError("save: the model changes arrays in place while it runs, which an ONNX graph cannot say")
    outputs = list(result) if isinstance(result, (tuple, list)) else [result]
    for output in outputs:
        if not isinstance(output, Tensor):
            raise TypeError(f"save: the model returns {type(output).__name__}; it must return a Tensor or several")
    found = [recorder.operand(output) for output in outputs]
    return Trace(recorder.calls, recorder.inputs, [operand for operand in found if operand], recorder.state)
