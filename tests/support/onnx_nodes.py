"""The ONNX backend tests as an oracle: which of them apply to gpuconv, and how an ONNX node is said in its
API.

The `onnx` wheel carries, for every operator, small models with inputs and expected outputs (a model of one
node each), and a second set that PyTorch exported. :func:`collect` lists all of either set whose one node,
before or after expansion, is an operator of :data:`OPERATORS`. :func:`why_not` is the whole rule by which one
does not apply; everything else has to pass.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.backend.test.case.node import collect_testcases
from onnx.backend.test.loader import load_model_tests

import gpuconv.functional as F

Array = np.ndarray[Any, Any]

OPERATORS = (
    "Conv",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "Relu",
    "Sigmoid",
    "Tanh",
    "Softmax",
    "LogSoftmax",
    "Gemm",
    "Flatten",
    "SoftmaxCrossEntropyLoss",
)
#: Sets of models that lie in the wheel as files; those of kind "node" it generates.
STORED_KINDS = ("pytorch-converted", "pytorch-operator", "simple")

PADDED_BEYOND_HALF = "padding of more than half the window, which gpuconv refuses, as PyTorch does"


@dataclass(frozen=True)
class NodeCase:
    """One test: a node, its attributes, what goes in (None for an input left out) and what comes out."""

    name: str
    operator: str
    attributes: dict[str, Any]
    inputs: tuple[Array | None, ...]
    outputs: tuple[Array, ...]
    opset: int
    nodes: int
    rtol: float
    atol: float

    def __str__(self) -> str:
        return self.name

    @property
    def spatial(self) -> int:
        """Spatial dimensions of the first input."""
        assert self.inputs[0] is not None
        return self.inputs[0].ndim - 2


def collect() -> list[NodeCase]:
    """All tests of the installed onnx wheel whose node is one of :data:`OPERATORS`, applicable or not.

    ``python tests/support/onnx_nodes.py`` prints the list and the table.
    """
    return [*_generated(), *_stored()]


def _generated() -> Iterable[NodeCase]:
    with warnings.catch_warnings():
        # Building the cases of other operators overflows casts on purpose.
        warnings.simplefilter("ignore")
        np.random.seed(0)  # noqa: NPY002 - the wheel draws its inputs from the global generator
        tests = collect_testcases(None)
    single = {test.name: test for test in tests if len(test.model.graph.node) == 1}
    for test in tests:
        # An expanded model computes what its one node does, by the operator's definition out of smaller ones.
        original = single.get(test.name.partition("_expanded")[0])
        if original is None or original.model.graph.node[0].op_type not in OPERATORS:
            continue
        for inputs, outputs in test.data_sets:
            node = original.model.graph.node[0]
            yield _case(test, f"node/{test.name}", test.model, node, inputs, outputs)


def _stored() -> Iterable[NodeCase]:
    for kind in STORED_KINDS:
        for test in sorted(load_model_tests(kind=kind), key=lambda test: test.name):
            folder = Path(test.model_dir)
            model = onnx.load(folder / "model.onnx")
            operators = [node.op_type for node in model.graph.node if node.op_type in OPERATORS]
            if len(operators) != 1:
                continue
            node = next(node for node in model.graph.node if node.op_type in OPERATORS)
            constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
            fed = [value.name for value in model.graph.input if value.name not in constants]
            for data in sorted(folder.glob("test_data_set_*")):
                values = constants | dict(zip(fed, _tensors(data, "input"), strict=True))
                # With several nodes some inputs are results of others; such a case does not apply anyway.
                inputs = [values.get(name) for name in node.input if name]
                yield _case(test, f"{kind}/{test.name}", model, node, inputs, _tensors(data, "output"))


def _tensors(folder: Path, prefix: str) -> list[Array]:
    count = len(list(folder.glob(f"{prefix}_*.pb")))
    return [numpy_helper.to_array(onnx.load_tensor(folder / f"{prefix}_{i}.pb")) for i in range(count)]


def _case(test: Any, name: str, model: Any, node: Any, inputs: Any, outputs: Any) -> NodeCase:
    given = iter(inputs)
    return NodeCase(
        name=name,
        operator=node.op_type,
        attributes={a.name: helper.get_attribute_value(a) for a in node.attribute},
        inputs=tuple(next(given) if present else None for present in node.input),
        outputs=tuple(outputs),
        opset=max(o.version for o in model.opset_import if o.domain in ("", "ai.onnx")),
        nodes=len(model.graph.node),
        rtol=test.rtol,
        atol=test.atol,
    )


# Which apply


def why_not(case: NodeCase) -> str | None:
    """Why a test does not apply to gpuconv; None if it does. The first reason that fits is the one given."""
    if case.nodes != 1:
        return "a graph of several nodes, which an executor of graphs would run"
    first = case.inputs[0]
    assert first is not None
    if first.dtype not in (np.float32, np.float64):
        return f"element type {first.dtype}: gpuconv computes in float32 and float64"
    geometric = case.operator in ("Conv", "MaxPool", "AveragePool", "GlobalAveragePool")
    if geometric and case.spatial not in (1, 2):
        return f"{case.spatial} spatial dimensions: gpuconv has one and two"
    if case.operator == "AveragePool" and set(case.attributes.get("dilations", ())) - {1}:
        return "average pooling with dilation, which PyTorch does not have either"
    if _padded_beyond_half(case):
        return PADDED_BEYOND_HALF
    return None


def _padded_beyond_half(case: NodeCase) -> bool:
    """Whether a pooling is padded so far that a window could lie in the padding alone."""
    if case.operator not in ("MaxPool", "AveragePool"):
        return False
    kernel = case.attributes["kernel_shape"]
    return any(2 * max(side) > size for side, size in zip(_sides(case), kernel, strict=True))


def summary(cases: Iterable[NodeCase]) -> dict[str, tuple[int, dict[str, int]]]:
    """For each operator the number of tests that apply, and for each reason the number that do not."""
    counts: dict[str, tuple[int, dict[str, int]]] = {}
    for case in cases:
        applicable, reasons = counts.get(case.operator, (0, {}))
        if (reason := why_not(case)) is None:
            applicable += 1
        else:
            reasons[reason] = reasons.get(reason, 0) + 1
        counts[case.operator] = applicable, reasons
    return counts


def table(cases: Iterable[NodeCase]) -> str:
    """:func:`summary` as lines of text."""
    lines = [f"{'operator':<25}apply  do not, because"]
    for operator, (applicable, reasons) in summary(cases).items():
        first, *more = [f"{n:>3}  {reason}" for reason, n in reasons.items()] or ["  0"]
        lines.append(f"{operator:<25}{applicable:>5}  {first}")
        lines += [f"{'':<32}{line}" for line in more]
    return "\n".join(lines)


# How a node is said in gpuconv's API


def run(case: NodeCase) -> tuple[Array, ...]:
    """The node's outputs, computed by gpuconv."""
    result = _ADAPTERS[case.operator](case)
    return result if isinstance(result, tuple) else (result,)


def _sides(case: NodeCase) -> list[tuple[int, int]]:
    """Padding (before, after) along each spatial dimension, from `pads` or worked out from `auto_pad`.

    SAME_* makes the output ``ceil(length / stride)`` long; the odd element goes where the name says.
    """
    kernel, mode = case.attributes["kernel_shape"], case.attributes.get("auto_pad", b"NOTSET").decode()
    rank = len(kernel)
    if mode == "VALID":
        return [(0, 0)] * rank
    if mode == "NOTSET":
        pads = case.attributes.get("pads", [0] * 2 * rank)
        return list(zip(pads[:rank], pads[rank:], strict=True))
    assert case.inputs[0] is not None
    result = []
    for length, size, stride, dilation in zip(
        case.inputs[0].shape[2:], kernel, _strides(case), _dilations(case), strict=True
    ):
        total = max(0, (-(-length // stride) - 1) * stride + dilation * (size - 1) + 1 - length)
        small, large = total // 2, total - total // 2
        result.append((small, large) if mode == "SAME_UPPER" else (large, small))
    return result


def _strides(case: NodeCase) -> tuple[int, ...]:
    return tuple(case.attributes.get("strides", [1] * len(case.attributes["kernel_shape"])))


def _dilations(case: NodeCase) -> tuple[int, ...]:
    return tuple(case.attributes.get("dilations", [1] * len(case.attributes["kernel_shape"])))


def _padding(case: NodeCase) -> Any:
    """Padding as gpuconv's functions of the case's rank take it."""
    before_after = _sides(case)
    if all(before == after for before, after in before_after):
        return tuple(before for before, _ in before_after)
    return tuple(before_after)


def _conv(case: NodeCase) -> Array:
    x, weight, *bias = case.inputs
    convolve = F.conv1d if case.spatial == 1 else F.conv2d
    return convolve(
        x,
        weight,
        bias[0] if bias else None,
        stride=_strides(case),
        padding=_padding(case),
        dilation=_dilations(case),
        groups=case.attributes.get("group", 1),
    )


def _max_pool(case: NodeCase) -> Array | tuple[Array, ...]:
    x = case.inputs[0]
    assert x is not None
    pool = F.max_pool1d if case.spatial == 1 else F.max_pool2d
    values, indices = pool(
        x,
        tuple(case.attributes["kernel_shape"]),
        stride=_strides(case),
        padding=_padding(case),
        dilation=_dilations(case),
        ceil_mode=bool(case.attributes.get("ceil_mode", 0)),
        return_indices=True,
    )
    if len(case.outputs) == 1:
        return values
    # ONNX counts positions through the whole tensor, and column by column if storage_order is 1.
    if case.attributes.get("storage_order", 0):
        height, width = x.shape[2:]
        indices = indices % width * height + indices // width
    plane = np.arange(x.shape[0] * x.shape[1]).reshape(*x.shape[:2], *[1] * case.spatial)
    return values, indices + plane * np.prod(x.shape[2:], dtype=np.int64)


def _average_pool(case: NodeCase) -> Array:
    pool = F.avg_pool1d if case.spatial == 1 else F.avg_pool2d
    return pool(
        case.inputs[0],
        tuple(case.attributes["kernel_shape"]),
        stride=_strides(case),
        padding=_padding(case),
        ceil_mode=bool(case.attributes.get("ceil_mode", 0)),
        count_include_pad=bool(case.attributes.get("count_include_pad", 0)),
    )


def _softmax(case: NodeCase) -> Array:
    function = F.softmax if case.operator == "Softmax" else F.log_softmax
    x = case.inputs[0]
    assert x is not None
    if case.opset >= 13:
        return function(x, case.attributes.get("axis", -1))
    # Until opset 13 the operator took its input for a matrix, cut in two at the axis.
    axis = case.attributes.get("axis", 1)
    return function(x.reshape(int(np.prod(x.shape[:axis])), -1), 1).reshape(x.shape)


def _gemm(case: NodeCase) -> Array:
    """``alpha * A' B' + beta * C``; linear takes its weight as (output, input)."""
    a, b, *c = case.inputs
    assert a is not None
    assert b is not None
    a = a.T if case.attributes.get("transA", 0) else a
    b = b if case.attributes.get("transB", 0) else b.T
    product = F.linear(a * np.float32(case.attributes.get("alpha", 1.0)), b)
    if not c:
        return product
    return product + np.float32(case.attributes.get("beta", 1.0)) * c[0]


def _flatten(case: NodeCase) -> Array:
    """ONNX flattens to a matrix, cut in two at the axis; before axis 0 there is nothing to flatten."""
    x = case.inputs[0]
    assert x is not None
    axis = case.attributes.get("axis", 1) % x.ndim
    if axis == 0:
        return F.flatten(x)[None]
    return F.flatten(F.flatten(x, axis), 0, axis - 1)


def _cross_entropy(case: NodeCase) -> tuple[Array, ...]:
    scores, labels, *weight = case.inputs
    options = {k: case.attributes[k] for k in ("ignore_index",) if k in case.attributes}
    reduction = case.attributes.get("reduction", b"mean").decode()
    loss = F.cross_entropy(scores, labels, weight[0] if weight else None, reduction=reduction, **options)
    return (loss, F.log_softmax(scores, 1))[: len(case.outputs)]


_ADAPTERS: dict[str, Callable[[NodeCase], Any]] = {
    "Conv": _conv,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": lambda case: F.adaptive_avg_pool2d(case.inputs[0], 1),
    "Relu": lambda case: F.relu(case.inputs[0]),
    "Sigmoid": lambda case: F.sigmoid(case.inputs[0]),
    "Tanh": lambda case: F.tanh(case.inputs[0]),
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
    "Gemm": _gemm,
    "Flatten": _flatten,
    "SoftmaxCrossEntropyLoss": _cross_entropy,
}


if __name__ == "__main__":
    for each in sorted(collect(), key=lambda case: case.operator):
        print(f"{each.operator:<25}{each.name:<75}{why_not(each) or 'applies'}")
    print(table(collect()))
