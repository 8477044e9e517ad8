"""Each ONNX operator in terms of the few operations that the page computes.

A function an operator. It takes the node and what is known of its values (:class:`Known`), and returns a
:class:`Step`; what the page cannot compute is a ValueError. The operations themselves are in ``page/operations.mjs``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gpuconv.onnx.node import Node

__all__ = ["LOWERINGS", "Known", "Step"]


@dataclass(frozen=True)
class Step:
    """One operation of the page.

    Attributes:
        op: its name in ``page/operations.mjs``.
        inputs: names of values and tensors, in the order that it takes.
        options: numbers, lists of integers and strings.
        made: tensors that it needs and that no file holds, by name: folded weights, say.
    """

    op: str
    inputs: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)
    made: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Known:
    """What is known where a node stands.

    Attributes:
        fixed: values that no input changes, by name.
        shapes: of all values.
        used: names of the values that some node reads.
    """

    fixed: Mapping[str, np.ndarray]
    shapes: Mapping[str, tuple[int, ...]]
    used: Collection[str]

    def array(self, node: Node, position: int, default: Any = None) -> Any:
        """An input that must not depend on the picture; the default where it is left out."""
        name = node.inputs[position] if position < len(node.inputs) else ""
        if not name:
            return default
        if name not in self.fixed:
            raise ValueError(f"its input {position} is computed from the picture, and has to be fixed")
        return self.fixed[name]


LOWERINGS: dict[str, Callable[[Node, Known], Step]] = {}

Lowering = Callable[[Node, Known], Step]


def lowering(*ops: str) -> Callable[[Lowering], Lowering]:
    """Decorator: what lowers nodes of these types."""

    def register(lower: Lowering) -> Lowering:
        LOWERINGS.update(dict.fromkeys(ops, lower))
        return lower

    return register


# -- layers -----------------------------------------------------------------------------------------------------------


def _pair(values: Any, default: int) -> list[int]:
    return [int(value) for value in values or (default, default)]


def _in_two_dimensions(node: Node, known: Known) -> tuple[int, ...]:
    shape = known.shapes[node.inputs[0]]
    if len(shape) != 4:
        raise ValueError(f"its input has shape {shape}, and the page has two-dimensional layers alone")
    return shape


def _pads(node: Node, known: Known, kernel: list[int], stride: list[int], dilation: list[int]) -> list[int]:
    """Rows above and below, columns to the left and right."""
    auto = node.get("auto_pad", "NOTSET")
    if auto in ("NOTSET", "VALID"):
        top, left, bottom, right = [int(n) for n in node.get("pads") or (0, 0, 0, 0)]
        return [top, bottom, left, right]
    sides: list[int] = []
    sizes = zip(known.shapes[node.inputs[0]][2:], kernel, stride, dilation, strict=True)
    for size, window, step, spread in sizes:
        total = max(0, (-(-size // step) - 1) * step + spread * (window - 1) + 1 - size)
        less, more = total // 2, total - total // 2
        sides += [more, less] if auto == "SAME_LOWER" else [less, more]
    return sides


def _windows(node: Node, known: Known, kernel: list[int]) -> dict[str, Any]:
    """Size, stride, dilation and padding of the windows of a convolution or a pooling."""
    stride, dilation = _pair(node.get("strides"), 1), _pair(node.get("dilations"), 1)
    pads = _pads(node, known, kernel, stride, dilation)
    return {"kernel": kernel, "stride": stride, "dilation": dilation, "pads": pads}


@lowering("Conv")
def _conv(node: Node, known: Known) -> Step:
    _in_two_dimensions(node, known)
    weight = known.array(node, 1)
    known.array(node, 2)
    kernel = [int(size) for size in weight.shape[2:]]
    return Step("conv", node.inputs, {**_windows(node, known, kernel), "groups": int(node.get("group", 1))})


@lowering("MaxPool", "AveragePool")
def _pool(node: Node, known: Known) -> Step:
    _in_two_dimensions(node, known)
    if node.wants(1) and node.outputs[1] in known.used:
        raise ValueError("the places of its maxima are used")
    options = _windows(node, known, _pair(node.get("kernel_shape"), 1))
    options["countPadding"] = int(node.get("count_include_pad", 0))
    return Step("maxPool" if node.op == "MaxPool" else "averagePool", node.inputs[:1], options)


@lowering("GlobalAveragePool", "GlobalMaxPool")
def _global_pool(node: Node, known: Known) -> Step:
    kernel = list(_in_two_dimensions(node, known)[2:])
    options = {"kernel": kernel, "stride": kernel, "dilation": [1, 1], "pads": [0, 0, 0, 0], "countPadding": 0}
    return Step("maxPool" if node.op == "GlobalMaxPool" else "averagePool", node.inputs, options)


@lowering("Gemm")
def _gemm(node: Node, known: Known) -> Step:
    weight, bias = known.array(node, 1), known.array(node, 2)
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    x = node.inputs[0]
    if node.get("transA", 0):
        raise ValueError("it transposes its input")
    if node.get("transB", 0) and alpha == beta == 1 and (bias is None or bias.ndim == 1):
        return Step("linear", node.inputs)
    weight = np.asarray(weight if node.get("transB", 0) else weight.T) * np.float32(alpha)
    made = {f"{node.name}.weight": weight}
    if bias is not None:
        made[f"{node.name}.bias"] = np.broadcast_to(bias * np.float32(beta), (1, len(weight)))[0]
    return Step("linear", (x, *made), made=made)


@lowering("MatMul")
def _matmul(node: Node, known: Known) -> Step:
    weight = known.array(node, 1)
    if weight.ndim != 2:
        raise ValueError(f"its second factor has shape {weight.shape}, and has to be a matrix")
    name = f"{node.name}.weight"
    return Step("linear", (node.inputs[0], name), made={name: weight.T})


@lowering("BatchNormalization")
def _batch_normalization(node: Node, known: Known) -> Step:
    scale, bias, mean, var = (known.array(node, position).astype(np.float64) for position in (1, 2, 3, 4))
    factor = scale / np.sqrt(var + node.get("epsilon", 1e-5))
    made = {f"{node.name}.factor": factor, f"{node.name}.offset": bias - mean * factor}
    return Step("scale", (node.inputs[0], *made), made=made)


@lowering("LRN")
def _lrn(node: Node, known: Known) -> Step:
    options = {name: node.get(name, default) for name, default in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0))}
    return Step("lrn", node.inputs, {"size": int(node.get("size")), **options})


@lowering("Softmax", "LogSoftmax")
def _softmax(node: Node, known: Known) -> Step:
    rank = len(known.shapes[node.inputs[0]])
    axis = node.get("axis", -1 if node.opset >= 13 else 1) % rank
    if node.opset < 13 and axis != rank - 1:
        raise ValueError("it is taken over several axes, as before opset 13")
    return Step("softmax" if node.op == "Softmax" else "logSoftmax", node.inputs, {"axis": axis})


# -- element by element ------------------------------------------------------------------------------------------------

#: ONNX's name -> attributes with their defaults, in the order in which the page's function takes them.
_UNARY: dict[str, tuple[tuple[str, float], ...]] = {
    "Relu": (),
    "LeakyRelu": (("alpha", 0.01),),
    "Elu": (("alpha", 1.0),),
    "Selu": (("alpha", 1.67326319217681884765625), ("gamma", 1.05070102214813232421875)),
    "Celu": (("alpha", 1.0),),
    "HardSigmoid": (("alpha", 0.2), ("beta", 0.5)),
    "Shrink": (("lambd", 0.5), ("bias", 0.0)),
    **dict.fromkeys(("Sigmoid", "Tanh", "Softplus", "Softsign", "Mish", "HardSwish", "Erf"), ()),
    **dict.fromkeys(("Exp", "Log", "Abs", "Neg", "Sqrt", "Reciprocal", "Sin", "Cos", "Atan"), ()),
}


@lowering(*_UNARY)
def _unary(node: Node, known: Known) -> Step:
    numbers = [float(node.get(name, default)) for name, default in _UNARY[node.op]]
    return Step("unary", node.inputs, {"name": node.op, "numbers": numbers})


@lowering("Clip")
def _clip(node: Node, known: Known) -> Step:
    bounds = []
    for position, (name, none) in enumerate((("min", -math.inf), ("max", math.inf)), start=1):
        array = known.array(node, position)
        value = float(node.get(name, none) if array is None else array.reshape(-1)[0])
        bounds.append(max(-3.5e38, min(3.5e38, value)))  # JSON has no infinity
    return Step("unary", node.inputs[:1], {"name": "Clip", "numbers": bounds})


@lowering("Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "PRelu")
def _binary(node: Node, known: Known) -> Step:
    if len(node.inputs) != 2:
        raise ValueError(f"it has {len(node.inputs)} inputs, and the page takes two")
    return Step("binary", node.inputs, {"name": node.op})


# -- shapes -----------------------------------------------------------------------------------------------------------


@lowering("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout")
def _view(node: Node, known: Known) -> Step:
    return Step("view", node.inputs[:1])


@lowering("Concat")
def _concat(node: Node, known: Known) -> Step:
    return Step("concat", node.inputs, {"axis": node.get("axis") % len(known.shapes[node.outputs[0]])})


@lowering("Transpose")
def _transpose(node: Node, known: Known) -> Step:
    rank = len(known.shapes[node.inputs[0]])
    return Step("transpose", node.inputs, {"order": [int(n) for n in node.get("perm") or range(rank)[::-1]]})


@lowering("ReduceMean", "ReduceSum")
def _reduce(node: Node, known: Known) -> Step:
    rank, axes = len(known.shapes[node.inputs[0]]), known.array(node, 1, node.get("axes"))
    chosen = range(rank) if axes is None or not len(axes) else sorted(int(axis) % rank for axis in axes)
    return Step("reduce", node.inputs[:1], {"axes": list(chosen), "mean": int(node.op == "ReduceMean")})


def _taken(x: str, along: dict[int, list[int]], fill: float = 0.0) -> Step:
    """The elements at these places along axes; -1 is one of value ``fill``."""
    return Step("take", (x,), {"along": [[axis, places] for axis, places in along.items()], "fill": fill})


@lowering("Slice")
def _slice(node: Node, known: Known) -> Step:
    shape = known.shapes[node.inputs[0]]
    starts, ends = (known.array(node, i, node.get(name)) for i, name in ((1, "starts"), (2, "ends")))
    axes, steps = known.array(node, 3, node.get("axes")), known.array(node, 4)
    axes = range(len(starts)) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    along = {}
    for axis, *part in zip(axes, starts, ends, steps, strict=True):
        along[int(axis) % len(shape)] = list(range(shape[int(axis)])[slice(*map(int, part))])
    return _taken(node.inputs[0], along)


@lowering("Gather")
def _gather(node: Node, known: Known) -> Step:
    places, shape = known.array(node, 1), known.shapes[node.inputs[0]]
    axis = node.get("axis", 0) % len(shape)
    return _taken(node.inputs[0], {axis: [int(place) % shape[axis] for place in places.reshape(-1)]})


@lowering("Pad")
def _pad(node: Node, known: Known) -> Step:
    shape, value = known.shapes[node.inputs[0]], known.array(node, 2)
    if node.get("mode", "constant") != "constant" or known.array(node, 3) is not None:
        raise ValueError("it pads with something else than a constant, or along some axes")
    pads = [int(n) for n in known.array(node, 1, node.get("pads"))]
    fill = node.get("value", 0.0) if value is None else value.reshape(-1)[0]
    along = {}
    for axis, (size, before, after) in enumerate(zip(shape, pads, pads[len(shape) :], strict=False)):
        if before or after:
            inside = [place if 0 <= place < size else -1 for place in range(-before, size + after)]
            along[axis] = inside
    return _taken(node.inputs[0], along, float(fill))
