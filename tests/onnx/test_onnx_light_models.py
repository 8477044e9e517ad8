"""The networks of the ONNX backend suite, with random weights, as ONNX Runtime computes them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx", reason="pip install onnx: its wheel carries the networks")

import onnx
import onnx.backend.test
from onnx import numpy_helper
from support import onnx_running

import gpuconv
import gpuconv.functional as F

FOLDER = Path(onnx.backend.test.__file__).parent / "data" / "light"
#: AlexNet, ZF Net, GoogLeNet and its second version, VGG-19, ResNet-50, DenseNet-121, SqueezeNet, ShuffleNet.
MODELS = (
    "bvlc_alexnet",
    "zfnet512",
    "inception_v1",
    "inception_v2",
    "vgg19",
    "resnet50",
    "densenet121",
    "squeezenet",
    "shufflenet",
)
#: Those that run on the compiled backend, too: its kernels for nine networks take minutes to compile.
COMPILED = ("bvlc_alexnet", "inception_v1", "squeezenet")


def _weights(model: Any, rng: np.random.Generator) -> None:
    """Random weights for a network whose file says their shapes alone: activations keep their size."""
    uses = {name: (node.op_type, place) for node in reversed(model.graph.node) for place, name in enumerate(node.input)}
    shapes = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    left = []
    for node in model.graph.node:
        if node.op_type != "ConstantOfShape":
            left.append(node)
            continue
        shape = tuple(int(size) for size in shapes[node.input[0]])
        model.graph.initializer.append(
            numpy_helper.from_array(_drawn(rng, shape, uses[node.output[0]]), node.output[0])
        )
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and tensor.name in uses and tensor.name in shapes:
            drawn = _drawn(rng, tuple(tensor.dims), uses[tensor.name])
            tensor.CopyFrom(numpy_helper.from_array(drawn, tensor.name))
    del model.graph.node[:]
    model.graph.node.extend(left)
    known = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in known]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.ir_version = 8  # from 4 on an initializer need not be an input


def _drawn(rng: np.random.Generator, shape: tuple[int, ...], use: tuple[str, int]) -> np.ndarray:
    if use in (("BatchNormalization", 1), ("BatchNormalization", 4), ("Unsqueeze", 0)):  # factors, variances
        values = rng.uniform(0.6, 1.2, shape)
    elif len(shape) > 1:
        values = rng.standard_normal(shape) * math.sqrt(2 / math.prod(shape[1:]))
    else:
        values = rng.standard_normal(shape) * 0.1
    return values.astype(np.float32)


def _prepared(name: str, folder: Path) -> tuple[Path, np.ndarray]:
    rng, model = np.random.default_rng(0), onnx.load(FOLDER / f"light_{name}.onnx")
    _weights(model, rng)
    # Caffe2 left names of its own among them, which no node reads.
    read = {name for node in model.graph.node for name in node.input}
    inputs = [value for value in model.graph.input if value.name in read]
    assert len(inputs) == 1
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    onnx.save(model, folder / "net.onnx")
    shape = [dim.dim_value for dim in inputs[0].type.tensor_type.shape.dim]
    return folder / "net.onnx", rng.standard_normal(shape).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "backend"),
    [
        pytest.param(name, backend, marks=[pytest.mark.thorough] * ((name, backend) != ("squeezenet", "numpy")))
        for backend, names in (("numpy", MODELS), ("numba", COMPILED))
        for name in names
    ],
)
def test_light_model(name: str, backend: str, tmp_path: Path) -> None:
    """Forward as in ONNX Runtime, to 1e-4 of the largest output; and every parameter gets a finite gradient."""
    with gpuconv.use_backend(backend):
        _as_in_the_runtime(*_prepared(name, tmp_path))


def _as_in_the_runtime(path: Path, images: np.ndarray) -> None:
    (expected,) = onnx_running.run(path, images)
    network = gpuconv.onnx.load(path)
    with gpuconv.no_grad():
        output = network(images).numpy()
    assert output.shape == expected.shape
    assert np.ptp(expected) > 0
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-4 * float(np.abs(expected).max()))
    scores = network(images)
    F.mse_loss(scores.reshape(1, -1), np.ones((1, scores.numel()), np.float32)).backward()
    for parameter in network.parameters():
        assert np.isfinite(parameter.grad.numpy()).all()
