"""A network as the page computes it: steps, the tensors that they read, and the layers that are shown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gpuconv.autograd import Tensor, moved, to_numpy
from gpuconv.backends import use_backend
from gpuconv.explorer.lowering import LOWERINGS, Known, Step
from gpuconv.nn import Module
from gpuconv.onnx.network import Graph, OnnxModule
from gpuconv.onnx.node import Node
from gpuconv.onnx.writing import graph_of

__all__ = ["Program", "ShownLayer", "program_of"]

#: A browser has to hold them, and compute them for each stroke.
MOST_PARAMETERS, MOST_PRODUCTS = 30_000_000, 5_000_000_000


@dataclass(frozen=True)
class ShownLayer:
    """A layer of the page: one step or several in a row that are shown as one, a convolution and its ReLU say.

    Attributes:
        label: what it is called: by the model's names where it has parameters.
        kind: 'convolution', 'pooling', 'units' ...
        steps: numbers of its steps; the result of the last one is shown.
    """

    label: str
    kind: str
    steps: tuple[int, ...]


@dataclass(frozen=True)
class Program:
    """What the page computes for one picture.

    Attributes:
        input, logits: names of the values that go in, (1, C, H, W), and come out, (1, classes).
        steps: in the order in which they run; ``outputs[i]`` is the name of step i's result.
        shapes: of all values.
        tensors: what the steps read besides, float32.
        layers: what is shown of it.
        folded: layers whose batch normalisation is part of their weights.
        ends_in_probabilities: whether the network itself ends in a softmax.
    """

    input: str
    logits: str
    steps: tuple[Step, ...]
    outputs: tuple[str, ...]
    shapes: dict[str, tuple[int, ...]]
    tensors: dict[str, np.ndarray]
    layers: tuple[ShownLayer, ...]
    folded: tuple[str, ...]
    ends_in_probabilities: bool

    @property
    def products(self) -> int:
        """Multiplications in convolutions and fully connected layers."""
        return sum(
            math.prod(self.shapes[output]) * math.prod(self.tensors[step.inputs[1]].shape[1:])
            for step, output in zip(self.steps, self.outputs, strict=True)
            if step.op in ("conv", "linear")
        )


def program_of(model: Module, input_shape: Sequence[int]) -> Program:
    """What a classifier of images does with one picture.

    Args:
        model: takes (1, *input_shape) and returns (1, classes).
        input_shape: (channels, height, width).

    Raises:
        ValueError: the page cannot compute an operation of it, or it is too large; the message says which layer, and
            why.
    """
    _refuse_large(model)
    first = next(model.parameters(), None)
    on_cpu = first is None or isinstance(first.data, np.ndarray)
    # Zeros alone would say the same of both runs that are compared.
    example = np.random.default_rng(0).standard_normal((1, *input_shape))
    example = example.astype(np.float32 if first is None else first.dtype)
    # Three runs are not worth a compilation.
    with use_backend("numpy") if on_cpu else nullcontext():
        try:
            graph = graph_of(model, Tensor(moved(example, "cpu" if on_cpu else "cuda")))
        except ValueError as error:
            raise ValueError(f"explore: {str(error).removeprefix('save: ')}") from error
        return _checked(_Lowerer(graph).program(example))


def _refuse_large(model: Module) -> None:
    count = sum(parameter.numel() for parameter in model.parameters())
    if count > MOST_PARAMETERS:
        raise ValueError(
            f"explore: the network has {count:,} parameters, too many for a page, which takes {MOST_PARAMETERS:,}"
        )


def _checked(program: Program) -> Program:
    if program.products > MOST_PRODUCTS:
        raise ValueError(
            f"explore: the network takes {program.products:,} multiplications for a picture, too many for a page, "
            f"which takes {MOST_PRODUCTS:,}"
        )
    shape = program.shapes[program.logits]
    if len(shape) != 2 or shape[0] != 1:
        raise ValueError(
            f"explore: the network returns an array of shape {shape} for a picture; the page shows networks that "
            "return one number a class, (1, classes)"
        )
    return program


class _Lowerer:
    """Goes through a graph once, node by node."""

    def __init__(self, graph: Graph):
        self._graph, self._module = graph, OnnxModule(graph).eval()
        self._state = set(graph.initializers)
        self._used = {name for node in graph.nodes for name in node.inputs}
        self._steps: list[Step] = []
        self._outputs: list[str] = []
        self._names: list[str] = []
        self._last = ""  # name of the newest layer that has one
        self._fixed: dict[str, np.ndarray] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._tensors: dict[str, np.ndarray] = {}

    def program(self, example: np.ndarray) -> Program:
        """The whole of it."""
        source = self._graph.inputs[0].name
        self._shapes[source] = example.shape
        for node, values in self._module.observe(example):
            self._note(node, values, source)
        folded = self._fold_scales()
        target = self._graph.outputs[0]
        logits, ends = self._logits(target)
        steps = self._without_softmax(ends)
        tensors = {name: self._tensors[name] for step in steps for name in step.inputs if name in self._tensors}
        shapes = {name: self._shapes[name] for name in (source, *self._outputs) if name in self._shapes}
        outputs = tuple(self._outputs)
        layers = _layers(steps, outputs, self._names, shapes, source)
        return Program(source, logits, steps, outputs, shapes, tensors, layers, folded, ends)

    def _note(self, node: Node, values: Mapping[str, Any], source: str) -> None:
        for name in node.inputs:
            if name and name not in self._shapes:
                self._fixed[name] = to_numpy(getattr(values[name], "data", values[name]))
                self._shapes[name] = self._fixed[name].shape
        for name in node.outputs:
            if name:
                self._shapes[name] = tuple(values[name].shape)
        if all([not name or name in self._fixed for name in node.inputs]):
            for name in node.outputs:
                self._fixed[name] = to_numpy(getattr(values[name], "data", values[name]))
            return
        layer = self._layer(node)
        label = layer or node.op + (f" after {self._last}" if self._last else "")
        if node.op not in LOWERINGS:
            raise ValueError(f"explore: {label}: the page cannot compute {node.op}")
        try:
            step = LOWERINGS[node.op](node, Known(self._fixed, self._shapes, self._used))
        except ValueError as error:
            raise ValueError(f"explore: {label}: the page cannot compute this {node.op}: {error}") from error
        step = replace(step, inputs=tuple([name for name in step.inputs if name]))
        for name in step.inputs:
            if name in step.made or name in self._fixed:
                array = step.made.get(name, self._fixed.get(name))
                self._tensors[name] = np.asarray(array, np.float32)
        self._steps.append(step)
        self._outputs.append(node.outputs[0])
        self._names.append(layer)
        self._last = layer or self._last

    def _layer(self, node: Node) -> str:
        """What the layer of a node's parameters is called; empty if it has none."""
        found = (name.rpartition(".")[0] for name in node.inputs[1:] if name in self._state)
        return next(filter(None, found), "")

    def _fold_scales(self) -> tuple[str, ...]:
        """Make each scale that follows a convolution, which nobody else uses, a part of its weights."""
        folded = []
        for number in reversed(range(len(self._steps))):
            step = self._steps[number]
            if step.op != "scale" or step.inputs[0] not in self._outputs:
                continue
            before = self._outputs.index(step.inputs[0])
            conv, users = self._steps[before], sum(step.inputs[0] in other.inputs for other in self._steps)
            if conv.op != "conv" or users != 1:
                continue
            weight, factor, offset = (
                self._tensors[name].astype(np.float64) for name in (conv.inputs[1], *step.inputs[1:])
            )
            bias = self._tensors[conv.inputs[2]] if len(conv.inputs) > 2 else 0.0
            # Names of their own: another layer may share the weights as they were.
            names = f"{conv.inputs[1]}, folded", f"{conv.inputs[1]}, folded bias"
            self._tensors[names[0]] = (weight * factor[:, None, None, None]).astype(np.float32)
            self._tensors[names[1]] = (bias * factor + offset).astype(np.float32)
            self._steps[before] = replace(conv, inputs=(conv.inputs[0], *names))
            self._outputs[before] = self._outputs[number]
            folded.append(self._names[before])
            for what in (self._steps, self._outputs, self._names):
                del what[number]
        return tuple(folded[::-1])

    def _logits(self, target: str) -> tuple[str, bool]:
        """What goes into the softmax at the end, and whether there is one."""
        if target in self._outputs and self._outputs[-1] == target and self._steps[-1].op == "softmax":
            return self._steps[-1].inputs[0], True
        return target, False

    def _without_softmax(self, ends: bool) -> tuple[Step, ...]:
        if ends:
            for what in (self._steps, self._outputs, self._names):
                del what[-1]
        return tuple(self._steps)


# -- what is shown ----------------------------------------------------------------------------------------------------

#: Operations of which the page shows nothing of their own.
_HIDDEN = ("view", "take", "transpose")


def _layers(
    steps: Sequence[Step],
    outputs: Sequence[str],
    names: Sequence[str],
    shapes: Mapping[str, tuple[int, ...]],
    source: str,
) -> tuple[ShownLayer, ...]:
    users: dict[str, int] = {}
    for step in steps:
        for name in step.inputs:
            users[name] = users.get(name, 0) + 1
    layers: list[ShownLayer] = []
    counts: dict[str, int] = {}
    for number, (step, output) in enumerate(zip(steps, outputs, strict=True)):
        shape = shapes[output]
        if step.op in _HIDDEN or len(shape) not in (2, 4):
            continue
        follows = bool(layers) and step.inputs[0] == outputs[layers[-1].steps[-1]] and users[step.inputs[0]] == 1
        if step.op == "unary" and follows:
            layers[-1] = replace(layers[-1], steps=(*layers[-1].steps, number))
            continue
        kind = _kind(step, shape)
        label = names[number] or kind
        counts[label] = counts.get(label, 0) + 1
        label = label if counts[label] == 1 else f"{label} {counts[label]}"
        layers.append(ShownLayer(label, kind, (number,)))
    return tuple(layers)


def _kind(step: Step, shape: tuple[int, ...]) -> str:
    kinds = {
        "conv": "convolution",
        "linear": "fully connected",
        "scale": "batch normalisation",
        "maxPool": "max pooling",
        "averagePool": "average pooling",
        "concat": "concatenation",
        "lrn": "response normalisation",
        "reduce": "reduction",
        "softmax": "softmax",
        "logSoftmax": "log softmax",
    }
    if step.op == "binary":
        return {"Add": "sum", "Mul": "product", "Sub": "difference"}.get(step.options["name"], step.options["name"])
    return step.options["name"] if step.op == "unary" else kinds[step.op]
