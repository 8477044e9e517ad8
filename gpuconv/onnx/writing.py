"""A model as an ONNX file: what it does with an example, as a graph."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from gpuconv.autograd import Tensor, moved, to_numpy
from gpuconv.dtypes import is_half, kind_of
from gpuconv.files import write_atomically
from gpuconv.nn.module import Module
from gpuconv.onnx.exporters import EXPORTERS
from gpuconv.onnx.network import Graph, Value
from gpuconv.onnx.node import Node, library
from gpuconv.onnx.tracing import Call, Operand, Trace, trace
from gpuconv.version import __version__

__all__ = ["OPSET", "graph_of", "save"]

#: Of the files that are written, and the IR version that goes with it. The second pair is for bfloat16, which
#: convolutions and pooling have from opset 22 on.
OPSET = 18
_IR_VERSION = 8
_OF_BFLOAT16 = 22, 10


def save(model: Module, path: str | os.PathLike[str], example: Any, *, dynamic_batch: bool = True) -> None:
    """Write a model as an ONNX file of opset 18, which other runtimes execute and :func:`load` reads.

    With bfloat16 in it the opset is 22.

    The model runs in evaluation mode, on the example and on another input, and what both runs do is written. So a loop
    or a branch of Python is written as it went. Parameters and buffers keep the names of ``state_dict``; fused
    operations are written as their parts. The same model and example give the same bytes.

    Args:
        model: a Module that takes Tensors and returns one, or several.
        path: of the file, which is replaced at once or not at all.
        example: an input, Tensor or array, or a tuple of several; the first dimension is the batch.
        dynamic_batch: write the batch as a size that may change, called N, unless something in the model depends on it.

    Raises:
        TypeError: not a Module, or an output that is no Tensor.
        ValueError: an operation that ONNX cannot say, named; arrays that are changed in place; a constant that another
            input would change, as where Python computes something from the values; more than 2 GiB.
        OSError: the file cannot be written.
        ImportError: the ``onnx`` package is missing.
    """
    if not isinstance(model, Module):
        raise TypeError(f"save: model must be a Module, got {type(model).__name__}")
    library()
    several = example if isinstance(example, (tuple, list)) else (example,)
    inputs = [value if isinstance(value, Tensor) else Tensor(value) for value in several]
    first = trace(model, inputs)
    written = _dynamic(model, inputs, first) if dynamic_batch else None
    if written is None:
        other = trace(model, [_another(value, 1) for value in inputs])
        written = _Writer(first, first).model()
        again = _Writer(other, other).model()
        if again != written:
            raise ValueError(f"save: {_difference(first, other)}")
    write_atomically(path, written)


def graph_of(model: Module, example: Any) -> Graph:
    """What a model does with one input, as a graph of ONNX's operators; needs no ``onnx`` package.

    The model runs in evaluation mode, on the example and on another input of its shape; sizes are the example's.
    Initializers have the names of ``state_dict``.

    Args:
        model: a Module that takes a Tensor and returns one.
        example: an input, Tensor or array.

    Raises:
        TypeError, ValueError: as of :func:`save`.
    """
    inputs = [example if isinstance(example, Tensor) else Tensor(example)]
    first, other = trace(model, inputs), trace(model, [_another(value, 1) for value in inputs])
    graph, again = _Writer(first, first).graph(), _Writer(other, other).graph()
    alike = graph.nodes == again.nodes and graph.initializers.keys() == again.initializers.keys()
    if not alike or not all([_same(a, again.initializers[name]) for name, a in graph.initializers.items()]):
        raise ValueError(f"save: {_difference(first, other)}")
    return graph


def _dynamic(model: Module, inputs: list[Tensor], first: Trace) -> bytes | None:
    """The file's bytes with a batch of any size; None if the model does something else with a larger one."""
    if not all([value.ndim and value.shape[0] for value in inputs]):
        return None
    try:
        larger = trace(model, [_another(value, 2) for value in inputs])
        both = _Writer(first, larger).model(), _Writer(larger, first).model()
    except (ValueError, TypeError, IndexError):
        return None  # what is wrong, if anything is, a batch of the same size will tell
    return both[0] if both[0] == both[1] else None


def _another(value: Tensor, times: int) -> Tensor:
    """An input of the same kind with other values, and so many times the batch."""
    rng, array = np.random.default_rng(0), to_numpy(value.data)
    parts = [_varied(array, rng) for _ in range(times)]
    other = np.concatenate(parts) if times > 1 else parts[0]
    return Tensor(moved(other, "cpu" if isinstance(value.data, np.ndarray) else "cuda"))


def _varied(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Other values in the same range, be it of labels or of probabilities; another mean, maximum, first element."""
    other = rng.permutation(array.reshape(-1)).reshape(array.shape)
    if kind_of(array.dtype) != "f" or not array.size:
        return other
    low, share = array.min(), rng.uniform(0.5, 1, array.shape)
    alike = np.array_equal(array, np.full_like(array, low), equal_nan=True)
    return np.asarray(low + (share if alike else (other - low) * share), array.dtype)


def _difference(first: Trace, other: Trace) -> str:
    """What two runs do differently."""
    for a, b in zip(first.calls, other.calls, strict=False):
        if a.function is not b.function:
            return f"the model runs {a.name} on one input and {b.name} on another; only one of them could be written"
        for x, y in zip(a.inputs, b.inputs, strict=False):
            if x is not None and y is not None and x.kind == y.kind == "constant" and not _same(x.key, y.key):
                return (
                    f"what {a.name} takes was computed from the input's values outside of gpuconv's operations (by "
                    "NumPy or Python), and would be written as a constant"
                )
    return "the model does different things with different inputs of one shape; only one of them could be written"


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and bool(np.array_equal(a, b, equal_nan=kind_of(a.dtype) == "f"))


class _Writer:
    """Makes a graph of a trace; another one of the same model tells which sizes are the batch's.

    Exporters call :meth:`node` and :meth:`constant`, which return names of values.
    """

    def __init__(self, of: Trace, beside: Trace):
        self._trace, self._beside = of, beside
        self._nodes: list[Node] = []
        self._made_by: dict[str, tuple[str, tuple[str, ...]]] = {}
        self._constants: dict[tuple[Any, ...], str] = {}
        self._arrays: dict[str, np.ndarray] = {}
        self._names: dict[tuple[str, Any], str] = {}
        self._taken = set(of.state)
        if len(of.calls) != len(beside.calls):
            raise ValueError(f"save: {_difference(of, beside)}")
        self._input_names = [self._free("input", number, len(of.inputs)) for number in range(len(of.inputs))]
        self._output_names = [self._free("output", number, len(of.outputs)) for number in range(len(of.outputs))]

    def _free(self, stem: str, number: int, of: int) -> str:
        return self._unused(stem if of == 1 else f"{stem}_{number}")

    def _unused(self, name: str) -> str:
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name

    # -- what exporters use ------------------------------------------------------------------------------------------

    def node(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Add a node; returns the name of its output, or the tuple of several. '' is an input that is left out."""
        number = len(self._nodes)
        names = [self._unused(f"{op}_{number}" + (f"_{i}" if i else "")) for i in range(outputs)]
        while inputs and not inputs[-1]:
            inputs = inputs[:-1]
        attributes = {key: value for key, value in attributes.items() if value is not None}
        self._nodes.append(Node(op, names[0], inputs, tuple(names), attributes, OPSET))
        for name in names:
            self._made_by[name] = op, inputs
        return names[0] if outputs == 1 else tuple(names)

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        """The name of an initializer with these values."""
        array = np.asarray(value, dtype)
        key = array.dtype.str, array.shape, array.tobytes()
        if key not in self._constants:
            name = self._constants[key] = self._unused(f"constant_{len(self._constants)}")
            self._arrays[name] = array
        return self._constants[key]

    def shape_of(self, name: str) -> tuple[int, ...] | None:
        """The shape of a parameter, buffer or constant; None for others."""
        array = self._trace.state.get(name, self._arrays.get(name))
        return None if array is None else array.shape

    # -- the graph ----------------------------------------------------------------------------------------------------

    def graph(self) -> Graph:
        """The nodes that the outputs need, in order, and what these nodes read."""
        for number, name in enumerate(self._input_names):
            self._names["input", number] = name
        for call, beside in zip(self._trace.calls, self._beside.calls, strict=True):
            if call.function is not beside.function:
                raise ValueError(f"save: {_difference(self._trace, self._beside)}")
            self._write(call, beside)
        for name, operand in zip(self._output_names, self._trace.outputs, strict=True):
            self._give_out(self._name(operand), name)
        nodes = self._needed()
        used = {name for node in nodes for name in node.inputs}
        arrays = {name: array for name, array in (self._trace.state | self._arrays).items() if name in used}
        inputs = [
            Value(name, operand.dtype, operand.shape)
            for name, operand in zip(self._input_names, self._trace.inputs, strict=True)
        ]
        return Graph(nodes, arrays, inputs, self._output_names)

    def model(self) -> bytes:
        """The file's bytes."""
        import onnx
        from onnx import helper

        written = self.graph()
        arrays = written.initializers
        graph = helper.make_graph(
            [
                helper.make_node(node.op, list(node.inputs), list(node.outputs), name=node.name, **node.attributes)
                for node in written.nodes
            ],
            "gpuconv",
            self._values(self._input_names, self._trace.inputs, self._beside.inputs),
            self._values(self._output_names, self._trace.outputs, self._beside.outputs),
            [
                onnx.numpy_helper.from_array(np.ascontiguousarray(a).reshape(a.shape), name)
                for name, a in arrays.items()
            ],
        )
        types = {array.dtype.name for array in arrays.values()}
        types |= {operand.dtype.name for operand in (*self._trace.inputs, *self._trace.outputs)}
        opset, ir_version = _OF_BFLOAT16 if "bfloat16" in types else (OPSET, _IR_VERSION)
        model = helper.make_model(
            graph,
            producer_name="gpuconv",
            producer_version=__version__,
            opset_imports=[helper.make_opsetid("", opset)],
            ir_version=ir_version,
        )
        if model.ByteSize() >= 2**31:
            raise ValueError("save: the model is larger than 2 GiB, more than an ONNX file holds")
        onnx.checker.check_model(model)
        data: bytes = model.SerializeToString(deterministic=True)
        return data

    def _give_out(self, value: str, name: str) -> None:
        """Make a value an output of that name: that of the node that makes it, if it is no output already."""
        if value not in self._made_by:  # an input or a parameter, or an output already
            self._nodes.append(Node("Identity", name, (value,), (name,), {}, OPSET))
            return
        del self._made_by[value]

        def renamed(names: tuple[str, ...]) -> tuple[str, ...]:
            return tuple([name if used == value else used for used in names])

        self._nodes = [
            replace(node, inputs=renamed(node.inputs), outputs=renamed(node.outputs)) for node in self._nodes
        ]
        self._names = {key: name if used == value else used for key, used in self._names.items()}

    def _write(self, call: Call, beside: Call) -> None:
        name = call.name
        ours = call.function.__module__.startswith(("gpuconv.", "_operator"))
        if not ours or name not in EXPORTERS:
            raise ValueError(f"save: the model uses {name}, which gpuconv cannot write as ONNX")
        half = next((operand.dtype for operand in call.inputs if operand is not None and is_half(operand.dtype)), None)
        inputs = ["" if operand is None else self._name(operand, half) for operand in call.inputs]
        try:
            results = EXPORTERS[name](self, Both(call, beside), *inputs, **call.options)
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"save: the model uses {name}, which gpuconv cannot write as ONNX here: {error}"
            ) from error
        for operand, result in zip(call.outputs, results if isinstance(results, tuple) else (results,), strict=False):
            self._names[operand.kind, operand.key] = result

    def _name(self, operand: Operand, half: Any = None) -> str:
        if operand.kind == "constant":
            # A number beside a half type is float32 in here, and of the half type in a file.
            number = half is not None and not operand.shape and operand.dtype == np.float32
            return self.constant(operand.key, half if number else operand.dtype)
        if operand.kind == "state":
            return str(operand.key)
        if (operand.kind, operand.key) not in self._names:
            raise ValueError("save: the model uses a result, the places of maxima say, that ONNX does not give here")
        return self._names[operand.kind, operand.key]

    def _symbol(self, axis: int, size: int) -> str | None:
        """What a size that is the batch's, or follows from it, is called."""
        return "N" if axis == 0 and size == self._trace.inputs[0].shape[0] else None

    def _needed(self) -> list[Node]:
        """The nodes on which the outputs depend."""
        wanted, kept = set(self._output_names), []
        for node in reversed(self._nodes):
            if wanted & set(node.outputs):
                kept.append(node)
                wanted |= set(node.inputs)
        return kept[::-1]

    def _values(self, names: Sequence[str], operands: Sequence[Operand], beside: Sequence[Operand]) -> list[Any]:
        from onnx import helper

        return [
            helper.make_tensor_value_info(
                name,
                helper.np_dtype_to_tensor_dtype(operand.dtype),
                [size if size == other else self._symbol(axis, size) for axis, size, other in _sizes(operand, twin)],
            )
            for name, operand, twin in zip(names, operands, beside, strict=True)
        ]


def _sizes(operand: Operand, beside: Operand) -> list[tuple[int, int, int]]:
    return [(axis, a, b) for axis, (a, b) in enumerate(zip(operand.shape, beside.shape, strict=True))]


class Both:
    """A call, in a batch of one size and in one of another.

    Attributes:
        inputs, outputs: operands, with shapes in which the sizes that depend on the batch are None.
    """

    def __init__(self, call: Call, beside: Call):
        self.inputs = [_merged(a, b) for a, b in zip(call.inputs, beside.inputs, strict=True)]
        self.outputs = [_merged(a, b) for a, b in zip(call.outputs, beside.outputs, strict=True)]
        self.exact = call


class Known(NamedTuple):
    """What holds for an operand in both: its shape, with None for what depends on the batch, and element type."""

    shape: tuple[int | None, ...]
    dtype: np.dtype


def _merged(a: Operand | None, b: Operand | None) -> Any:
    if a is None or b is None:
        return None
    if len(a.shape) != len(b.shape):
        raise ValueError("an array has another number of dimensions in another batch")
    return Known(tuple([x if x == y else None for x, y in zip(a.shape, b.shape, strict=True)]), a.dtype)
