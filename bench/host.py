"""The ways in which a CPU can convolve: the backends' own, and those of the libraries beside it.

Each is a step without arguments on inputs that are ready in memory, in the form that its library wants, and returns the
result. A library is imported when its step is made.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

from bench.timing import Step
from gpuconv import backends
from gpuconv.geometry import Conv2dGeometry

#: What stands beside the backends, where it is installed and has the operation.
PEERS = ("torch", "onnxruntime")


def steps(
    backend: str, operation: str, geometry: Conv2dGeometry, inputs: Sequence[Any], threads: int
) -> dict[str, Step]:
    """By label: the variants of a backend, then the peers.

    Args:
        backend: "numpy" or "numba".
        operation: a convolution, or a gradient of one.
        geometry: its geometry.
        inputs: NumPy arrays in the primitive's order.
        threads: how many a peer may have.

    Raises:
        gpuconv.BackendUnavailable: the backend cannot run here.
    """
    made: dict[str, Step] = {}
    # Of a few multiply-adds the compiled backend has NumPy's way alone.
    with contextlib.suppress(ValueError):
        for candidate in backends.get(backend).candidates(operation, geometry, str(inputs[0].dtype)):
            made[f"{backend} {candidate.label}"] = _bound(candidate.run, *inputs)
    if not made:
        made["numpy im2col"] = _bound(getattr(backends.get("numpy"), operation), *inputs, geometry)
    if importlib.util.find_spec("torch") is not None:
        made["torch"] = _torch(operation, geometry, inputs, threads)
    if operation == "conv2d" and all(map(importlib.util.find_spec, ("onnx", "onnxruntime"))):
        made["onnxruntime"] = _onnxruntime(geometry, inputs, threads)
    return made


def _bound(function: Callable[..., Any], *arguments: Any) -> Step:
    return lambda: function(*arguments)


def _torch(operation: str, g: Conv2dGeometry, inputs: Sequence[Any], threads: int) -> Step:
    import torch

    torch.set_num_threads(threads)
    tensors = [None if array is None else torch.tensor(array) for array in inputs]
    (top, _), (left, _) = g.padding  # layers are padded alike on both sides
    options = {"stride": g.stride, "padding": (top, left), "dilation": g.dilation, "groups": g.groups}
    if operation == "conv2d":
        x, weight, bias = tensors

        def run() -> Any:
            with torch.inference_mode():
                return torch.nn.functional.conv2d(x, weight, bias, **options).numpy()

        return run
    grad, other = tensors
    if operation == "conv2d_grad_input":
        return lambda: torch.nn.grad.conv2d_input(g.input_shape, other, grad, **options).numpy()
    return lambda: torch.nn.grad.conv2d_weight(other, g.weight_shape, grad, **options).numpy()


def _onnxruntime(g: Conv2dGeometry, inputs: Sequence[Any], threads: int) -> Step:
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    x, weight, bias = inputs
    (top, bottom), (left, right) = g.padding
    node = helper.make_node(
        "Conv",
        ["x", "weight", "bias"],
        ["y"],
        strides=g.stride,
        pads=(top, left, bottom, right),
        dilations=g.dilation,
        group=g.groups,
    )
    graph = helper.make_graph(
        [node],
        "conv2d",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, g.input_shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, g.output_shape)],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(bias, "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": x})[0]
