"""ONNX files: read, checked, and made into a Module."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gpuconv.onnx import elementwise, layers, reductions, shaping  # noqa: F401 - they fill the table of operators
from gpuconv.onnx.network import Graph, OnnxModule, Value
from gpuconv.onnx.node import OPERATORS, Node, library
from gpuconv.storage import FileError

__all__ = ["OLDEST_OPSET", "load"]

#: The first one that broadcasts by shapes is 7; what 6 had instead is understood, too.
OLDEST_OPSET = 6
_LARGEST_CHECKED = 2**31 - 1  # the checker takes no more bytes than protobuf does


def load(source: str | os.PathLike[str] | Any) -> OnnxModule:
    """A network from an ONNX file, as a Module in evaluation mode that runs and trains.

    Float initializers are its Parameters, under their names; those that a graph only reads as a setting (the bounds of
    a Clip, say), single numbers and running statistics are not learned. Integers, and what follows from them alone, are
    computed on the host, once where it can be. It computes in the types of the file.

    Args:
        source: path of a file of opset 6 or newer, or an ``onnx.ModelProto``. Weights outside of the file are read from
            its folder, and from nowhere else.

    Raises:
        FileError: the file is missing, cut short, or no ONNX file; it has operators that gpuconv does not (all of them
            are named), or weights outside of its folder.
        ImportError: the ``onnx`` package is missing.
    """
    onnx = library()
    if isinstance(source, onnx.ModelProto):
        model, name, folder = onnx.ModelProto(), "the model", None
        model.CopyFrom(source)
    else:
        path = Path(source)
        model, name, folder = _read(path), os.fspath(path), path.parent
    try:
        return _network(model, name, folder)
    except FileError:
        raise
    except onnx.checker.ValidationError as error:
        raise FileError(f"{name}: not a valid ONNX model: {_line(str(error).strip().splitlines()[0])}") from None
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError, ArithmeticError, MemoryError) as error:
        # Names that are no text, sizes below nothing, attributes of another type: any of a damaged file's bytes.
        raise FileError(f"{name}: cannot be made into a network: {_line(error)}") from error


def _network(model: Any, name: str, folder: Path | None) -> OnnxModule:
    import onnx

    if model.functions:
        from onnx import inliner

        model = inliner.inline_local_functions(model)
    _refuse_unknown(model, name)
    opset = _opset(model, name)
    _fetch_external(model, name, folder)
    if model.ByteSize() <= _LARGEST_CHECKED:
        onnx.checker.check_model(model)
    return OnnxModule(_graph(model.graph, opset, name)).eval()


def _line(text: Any) -> str:
    """Text from a file or about one, on one line."""
    return " ".join(str(text).split())


def _read(path: Path) -> Any:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise FileError(f"{path}: no such file") from None
    except OSError as error:
        raise FileError(f"{path}: cannot be read: {error.strerror}") from None
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        raise FileError(f"{path}: not an ONNX file, or one that is cut short, at {len(data):,} bytes") from None
    if not model.HasField("graph") or not model.ir_version:
        raise FileError(f"{path}: not an ONNX file: it holds no graph")
    return model


def _opset(model: Any, name: str) -> int:
    import onnx

    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    newest = onnx.defs.onnx_opset_version()
    if not versions:
        raise FileError(
            f"{name}: not a valid ONNX model: it does not say the version of its operators, or is cut short"
        )
    if not OLDEST_OPSET <= versions[0] <= newest:
        raise FileError(
            f"{name}: its operators are those of opset {versions[0]}; gpuconv, with onnx {onnx.__version__}, knows "
            f"{OLDEST_OPSET} to {newest}"
        )
    return int(versions[0])


def _refuse_unknown(model: Any, name: str) -> None:
    versions = {entry.domain: entry.version for entry in model.opset_import}
    unknown: dict[str, list[str]] = {}
    for node in model.graph.node:
        ours = node.domain in ("", "ai.onnx")
        if not (ours and node.op_type in OPERATORS):
            op = _line(node.op_type if ours else f"{node.domain}.{node.op_type}")
            unknown.setdefault(f"{op} of opset {versions.get(node.domain, '?')}", []).append(_name_of(node))
    if unknown:
        listed = "; ".join(
            f"{op} (node {nodes[0]}{f' and {len(nodes) - 1} more' if len(nodes) > 1 else ''})"
            for op, nodes in unknown.items()
        )
        raise FileError(f"{name}: operators that gpuconv does not have: {listed}")


def _name_of(node: Any) -> str:
    return _line(node.name or (node.output[0] if node.output else node.op_type))


# -- weights outside of the file --------------------------------------------------------------------------------------


def _tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _fetch_external(model: Any, name: str, folder: Path | None) -> None:
    """Put the values that lie in other files into the model.

    Raises:
        FileError: another file is missing, too short, or outside of the model's folder.
    """
    import onnx

    for tensor in _tensors(model.graph):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        what = f"{name}: {_line(tensor.name)} lies in another file, {location!r},"
        if folder is None:
            raise FileError(f"{what} and a model that is no file has no folder to look in")
        other, inside = (folder / location).resolve(), folder.resolve()
        if not location or Path(location).is_absolute() or inside not in other.parents:
            raise FileError(f"{what} outside of the model's folder, which is not read")
        try:
            offset = int(entries.get("offset", 0))
            length = int(entries["length"]) if "length" in entries else -1
            with open(other, "rb") as file:
                file.seek(offset)
                data = file.read(length)
        except (OSError, ValueError) as error:
            raise FileError(f"{what} which cannot be read: {error}") from None
        needed = _bytes_of(tensor)
        if len(data) != needed:
            raise FileError(f"{what} which holds {len(data):,} of its {needed:,} bytes")
        tensor.raw_data = data
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]


def _bytes_of(tensor: Any) -> int:
    import onnx

    count = int(np.prod(tensor.dims, dtype=np.int64))
    if tensor.data_type == onnx.TensorProto.BFLOAT16:
        return 2 * count
    return count * int(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize)


# -- the graph --------------------------------------------------------------------------------------------------------


def _array(tensor: Any, name: str) -> np.ndarray:
    """A tensor's values, in the type in which they are computed with."""
    from onnx import numpy_helper

    try:
        wanted = elementwise.element_type(tensor.data_type)
        return np.array(numpy_helper.to_array(tensor), dtype=wanted)  # a copy, which can be written
    except (ValueError, TypeError, KeyError) as error:
        raise FileError(f"{name}: {_line(tensor.name) or 'a constant'} cannot be read: {_line(error)}") from None


def _graph(graph: Any, opset: int, name: str) -> Graph:
    initializers = {tensor.name: _array(tensor, name) for tensor in graph.initializer}
    if graph.sparse_initializer:
        raise FileError(f"{name}: sparse initializers, which gpuconv does not have")
    return Graph(
        nodes=[_node(node, opset, name) for node in graph.node],
        initializers=initializers,
        inputs=[_value(value, name) for value in graph.input if value.name not in initializers],
        outputs=[value.name for value in graph.output],
    )


def _node(node: Any, opset: int, name: str) -> Node:
    attributes = {attribute.name: _attribute(attribute, name) for attribute in node.attribute}
    return Node(node.op_type, _name_of(node), tuple(node.input), tuple(node.output), attributes, opset)


def _attribute(attribute: Any, name: str) -> Any:
    import onnx

    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, onnx.TensorProto):
        return _array(value, name)
    return list(value) if isinstance(value, list) or attribute.ints or attribute.floats else value


def _value(value: Any, name: str) -> Value:
    if not value.type.HasField("tensor_type"):
        raise FileError(f"{name}: input {value.name} is no tensor, which gpuconv does not have")
    kind = value.type.tensor_type
    try:
        dtype = elementwise.element_type(kind.elem_type)
    except ValueError as error:
        raise FileError(f"{name}: input {value.name} has {error}") from None
    shape = None
    if kind.HasField("shape"):
        shape = tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in kind.shape.dim)
    return Value(value.name, dtype, shape)
