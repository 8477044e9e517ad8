"""A graph as a Module: its initializers as parameters, its nodes run one after the other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from gpuconv.autograd import Tensor, no_grad
from gpuconv.backends import use_backend
from gpuconv.dtypes import kind_of
from gpuconv.nn.module import Module, Parameter, evaluating
from gpuconv.nn.summary import LayerSummary, Summary
from gpuconv.onnx.node import OPERATORS, Node

__all__ = ["Graph", "OnnxModule", "Value"]


class Value(NamedTuple):
    """What a graph says of an input.

    Attributes:
        name: of the input.
        dtype: its element type.
        shape: for each dimension its size, a name for one that is the same elsewhere, or None; None if nothing is said.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int | str | None, ...] | None


@dataclass(frozen=True)
class Graph:
    """What a file says: nodes in the order in which they run, named values, inputs and outputs."""

    nodes: list[Node]
    initializers: dict[str, np.ndarray]
    inputs: list[Value]
    outputs: list[str]


class _Step(NamedTuple):
    """A node, and the values that nobody needs behind it."""

    node: Node
    done: tuple[str, ...]


class _Scope(Module):
    """What holds the parameters whose names begin alike."""


class OnnxModule(Module):
    """A network that was read from an ONNX file; :func:`gpuconv.onnx.load` makes it.

    It takes the graph's inputs in their order, and returns its output, or a tuple of several, as Tensors. The first
    dimension of an input may be of any size, whatever the file says: if the graph depends on it, a node will say so.
    In training mode BatchNormalization takes the batch's statistics, and Dropout drops.

    Attributes:
        inputs: what the graph says of its inputs: names, element types, shapes.
        outputs: the outputs' names.
    """

    def __init__(self, graph: Graph):
        super().__init__()
        self.inputs: list[Value] = graph.inputs
        self.outputs: list[str] = graph.outputs
        self._nodes: list[Node] = []
        self._steps: list[_Step] = []
        self._constants: dict[str, np.ndarray] = {}
        self._places: dict[str, tuple[Module, str]] = {}
        used = {name for node in graph.nodes for name in node.inputs} | set(graph.outputs)
        for name, array in graph.initializers.items():
            if name not in used:
                continue
            kind = _kind(name, array, graph.nodes)
            if kind == "constant":
                self._constants[name] = array
            else:
                value = Parameter(array) if kind == "parameter" else Tensor(array)
                self._places[name] = _placed(self, name, value)
        self._nodes = self._left(graph)
        self._steps = self._planned(_fused(self._nodes, graph.outputs))

    def _left(self, graph: Graph) -> list[Node]:
        """The nodes that have to run each time; what follows from constants alone is computed here, once."""
        left = []
        for node in graph.nodes:
            if all([not name or name in self._constants for name in node.inputs]) and not OPERATORS[node.op].modal:
                self._constants.update(_named(node, _computed(node, self._constants, False)))
            else:
                left.append(node)
        needed = {name for node in left for name in node.inputs} | set(graph.outputs)
        self._constants = {name: value for name, value in self._constants.items() if name in needed}
        return left

    def _planned(self, nodes: list[Node]) -> list[_Step]:
        """The nodes as they run, and what each one is the last to need."""
        steps: list[_Step] = []
        kept = {*self.outputs, *self._constants, *self._places}
        for node in reversed(nodes):
            done = {name for name in (*node.inputs, *node.outputs) if name and name not in kept}
            kept |= done
            steps.append(_Step(node, tuple(sorted(done))))
        return steps[::-1]

    def forward(self, *inputs: Any) -> Any:
        values: dict[str, Any] = dict(zip([value.name for value in self.inputs], self._checked(inputs), strict=True))
        for _ in self._run(values, self._steps):
            pass
        outputs = [v if isinstance(v := values[name], Tensor) else Tensor(v) for name in self.outputs]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def summary(self, input_shape: Sequence[int] | None = None) -> Summary:
        """The nodes that run, their outputs' shapes, parameters and connections; of a batch of one.

        Args:
            input_shape: of the first input, the batch left out; None is what the graph says.

        Raises:
            ValueError: the graph does not say the size of an input.
        """
        inputs = []
        for number, value in enumerate(self.inputs):
            shape = (value.shape or ())[1:] if number or input_shape is None else tuple(input_shape)
            if value.shape is None or not all([isinstance(size, int) for size in shape]):
                raise ValueError(f"summary: the graph does not say how large input {value.name} is; pass input_shape")
            whole = (1, *shape) if value.shape else ()
            inputs.append(Tensor(np.zeros(whole, value.dtype)))
        return Summary(tuple([_counted(node, found) for node, found in self.observe(*inputs)]))

    def observe(self, *inputs: Any) -> Iterator[tuple[Node, dict[str, Any]]]:
        """Run in evaluation mode, node by node; after each, it and the values that there are then, by name."""
        with evaluating(self), no_grad():
            values = dict(zip([value.name for value in self.inputs], self._checked(inputs), strict=True))
            yield from self._run(values, self._planned(self._nodes))

    def _run(self, values: dict[str, Any], steps: list[_Step]) -> Iterator[tuple[Node, dict[str, Any]]]:
        """Run the nodes; after each one it and all values that there are then."""
        values |= self._constants
        values |= {name: getattr(scope, attribute) for name, (scope, attribute) in self._places.items()}
        for node, done in steps:
            values |= _named(node, _computed(node, values, self.training))
            yield node, values
            for name in done:
                values.pop(name, None)

    def _checked(self, inputs: tuple[Any, ...]) -> list[Tensor]:
        """The inputs as Tensors.

        Raises:
            TypeError: another number of inputs, or a kind of element that the graph does not take.
            ValueError: a shape that it does not take.
        """
        if len(inputs) != len(self.inputs):
            names = ", ".join(value.name for value in self.inputs)
            raise TypeError(f"this graph takes {len(self.inputs)} inputs ({names}), got {len(inputs)}")
        tensors = [x if isinstance(x, Tensor) else Tensor(x) for x in inputs]
        named: dict[str, tuple[int, str]] = {}
        for value, tensor in zip(self.inputs, tensors, strict=True):
            if _family(tensor.dtype) != _family(value.dtype):
                raise TypeError(f"input {value.name} must hold {value.dtype}, got {tensor.dtype}")
            if value.shape is None:
                continue
            wanted = f"({', '.join('?' if size is None else str(size) for size in value.shape)})"
            for axis, size in enumerate(value.shape):
                if tensor.ndim != len(value.shape) or (isinstance(size, int) and axis and size != tensor.shape[axis]):
                    raise ValueError(f"input {value.name} must have shape {wanted}, got {tensor.shape}")
                if isinstance(size, str):
                    known, by = named.setdefault(size, (tensor.shape[axis], value.name))
                    if known != tensor.shape[axis]:
                        what = f"input {value.name} must have shape {wanted}, got {tensor.shape}"
                        raise ValueError(f"{what}; {size} is {known} in {by}")
            if tensor.ndim != len(value.shape):
                raise ValueError(f"input {value.name} must be one number, got shape {tensor.shape}")
        return tensors


def _fused(nodes: list[Node], outputs: Sequence[str]) -> list[Node]:
    """The nodes; Conv, Relu and MaxPool in a row, or the first two, are one if nobody else needs what is between."""
    users: dict[str, list[int]] = {name: [-1] for name in outputs}
    for number, node in enumerate(nodes):
        for name in node.inputs:
            users.setdefault(name, []).append(number)

    def next_one(node: Node, op: str) -> int | None:
        """The only user of a node's only output, if it is of a type."""
        using = users.get(node.outputs[0], [])
        alone = len(using) == 1 and using[0] >= 0 and not any(node.outputs[1:])
        return using[0] if alone and nodes[using[0]].op == op else None

    gone: set[int] = set()
    result: dict[int, Node] = {}
    for number, node in enumerate(nodes):
        if number in gone:
            continue
        parts, last = [node], number
        for op in ("Relu", "MaxPool") if node.op == "Conv" else ():
            following = next_one(parts[-1], op)
            if following is None or (op == "MaxPool" and any(nodes[following].outputs[1:])):
                break
            parts.append(nodes[following])
            gone.add(following)
            last = following
        if len(parts) > 1:
            op = "+".join(part.op for part in parts)
            node = Node(op, node.name, node.inputs, parts[-1].outputs[:1], {"parts": parts}, node.opset)
        result[last] = node  # where its last part stood, so that all that it needs is there
    return [result[number] for number in sorted(result)]


def _counted(node: Node, values: dict[str, Any]) -> LayerSummary:
    """A node's line in a summary; each output of a convolution or product has a use of each weight of its filter."""
    learned = [values[name] for name in node.inputs if name and isinstance(values[name], Parameter)]
    shape = tuple(values[node.outputs[0]].shape[1:])
    parameters = sum([value.numel() for value in learned])
    uses = 0
    if node.op in ("Conv", "Gemm", "MatMul") and learned:
        channels = shape[0] if node.op == "Conv" else shape[-1]
        uses = math.prod(shape) * parameters // channels
    return LayerSummary(node.name, node.op, shape, parameters, uses)


def _family(dtype: np.dtype) -> str:
    return "i" if kind_of(dtype) in "iu" else kind_of(dtype)


def _kind(name: str, array: np.ndarray, nodes: list[Node]) -> str:
    """What an initializer is: a 'constant' on the host, a 'buffer', or a 'parameter'."""
    uses = [
        (OPERATORS[node.op], position) for node in nodes for position, used in enumerate(node.inputs) if used == name
    ]
    if kind_of(array.dtype) != "f" or (uses and all([position in op.settings for op, position in uses])):
        return "constant"
    if array.ndim == 0 or any([position in op.buffers for op, position in uses]):
        return "buffer"
    return "parameter"


def _placed(root: Module, name: str, value: Tensor) -> tuple[Module, str]:
    """Put a parameter or buffer where its dotted name says; where that cannot be, dots become underscores."""
    *path, last = name.split(".")
    scope: Module = root
    parts = [*path, last]
    for part in path:
        inside = scope._modules.get(part)
        if inside is None and (not part or hasattr(scope, part)):
            break
        if inside is None:
            scope.add_module(part, inside := _Scope())
        scope = inside
    else:
        if last and not hasattr(scope, last):
            return scope, _assigned(scope, last, value)
    flat = "_".join(parts) or "_"
    while hasattr(root, flat):
        flat += "_"
    return root, _assigned(root, flat, value)


def _assigned(scope: Module, name: str, value: Tensor) -> str:
    if isinstance(value, Parameter):
        setattr(scope, name, value)
    else:
        scope.register_buffer(name, value)
    return name


def _computed(node: Node, values: dict[str, Any], training: bool) -> Any:
    """A node's result.

    Raises:
        ValueError, TypeError, IndexError: as of the operation; the message names the node.
    """
    op = OPERATORS[node.op]
    inputs = [values[name] if name else None for name in node.inputs]
    options = {"training": training} if op.modal else {}
    try:
        if any([isinstance(x, Tensor) for x in inputs]):
            return op.compute(node, *inputs, **options)
        # What hangs on no input of the graph and on no parameter: integers, mostly.
        with use_backend("numpy"), np.errstate(all="ignore"):
            return op.compute(node, *inputs, **options)
    except (ValueError, TypeError, IndexError) as error:
        raise type(error)(f"{node.op} {node.name!r}: {error}") from error


def _named(node: Node, result: Any) -> dict[str, Any]:
    """A node's outputs by name."""
    several = result if isinstance(result, tuple) else (result,)
    return {
        name: value if isinstance(value, Tensor) else np.asarray(value)
        for name, value in zip(node.outputs, several, strict=False)
        if name
    }
