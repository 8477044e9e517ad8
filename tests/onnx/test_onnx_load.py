"""ONNX files as Modules: names, modes, gradients, moving; and files that are not what they should be."""

from __future__ import annotations

import contextlib
import copy
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx", reason="pip install onnx: files are read with it")

import onnx
from onnx import TensorProto, helper, numpy_helper

import gpuconv
from gpuconv import Tensor, models
from gpuconv.autograd import gradcheck
from gpuconv.backends import Backend
from gpuconv.storage import FileError

F32, I64 = TensorProto.FLOAT, TensorProto.INT64


def _model(
    nodes: Sequence[Any],
    inputs: dict[str, Sequence[Any]],
    weights: dict[str, Any] | None = None,
    *,
    outputs: Sequence[str] = ("y",),
    opset: int = 18,
) -> Any:
    """A model of nodes; inputs by name and shape, floats."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info(name, F32, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, F32, []) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in (weights or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def _node(op: str, inputs: str, output: str = "y", **attributes: Any) -> Any:
    return helper.make_node(op, inputs.split(), output.split(), name=attributes.pop("name", ""), **attributes)


def _floats(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _linear(weight: str = "layer.weight") -> Any:
    return _model(
        [_node("Gemm", f"x {weight} layer.bias", transB=1)],
        {"x": ["N", 3]},
        {weight: _floats(2, 3), "layer.bias": _floats(2)},
    )


# -- what a Module is made of -----------------------------------------------------------------------------------------


def test_parameters_have_the_names_of_the_file() -> None:
    """Dots are levels, as in a state_dict; other signs stay."""
    network = gpuconv.onnx.load(_linear())
    assert list(network.state_dict()) == ["layer.weight", "layer.bias"]
    assert network.layer.weight.requires_grad
    assert list(gpuconv.onnx.load(_linear("gpu_0/conv:1")).state_dict()) == ["gpu_0/conv:1", "layer.bias"]


@pytest.mark.parametrize(
    "name", ["forward", "training", "layer", "layer.bias.x", "a..b", ".a", "a.", "inputs", "_steps"]
)
def test_names_that_cannot_be_attributes(name: str) -> None:
    """Such a parameter is there under a name like it, and the network computes with it."""
    network, x = gpuconv.onnx.load(_linear(name)), _floats(4, 3)
    assert len(network.state_dict()) == 2
    assert len(list(network.parameters())) == 2
    np.testing.assert_allclose(network(x).numpy(), gpuconv.onnx.load(_linear())(x).numpy())


def test_what_is_learned() -> None:
    """Weights are; running statistics are buffers; bounds, shapes and integers are neither."""
    network = gpuconv.onnx.load(
        _model(
            [
                _node("BatchNormalization", "x scale bias mean var", "a"),
                _node("Clip", "a low high", "b"),
                _node("Mul", "b temperature", "c"),
                _node("Reshape", "c shape", "y"),
            ],
            {"x": ["N", 2, 3]},
            {
                **{name: np.ones(2, np.float32) for name in ("scale", "bias", "mean", "var")},
                "low": np.float32(-1),
                "high": np.float32(1),
                "temperature": np.float32(2),
                "shape": np.array([0, -1]),
            },
        )
    )
    assert [name for name, _ in network.named_parameters()] == ["scale", "bias"]
    assert [name for name, _ in network.named_buffers()] == ["mean", "var", "temperature"]
    assert network(_floats(5, 2, 3)).shape == (5, 6)


def test_training_mode_moves_statistics_and_drops(backend: Backend) -> None:
    """BatchNormalization and Dropout do in training mode what layers do, and a new network is not in it."""
    model = _model(
        [_node("BatchNormalization", "x scale bias mean var", "a"), _node("Dropout", "a ratio", "y")],
        {"x": ["N", 2, 3]},
        {
            **{name: np.ones(2, np.float32) for name in ("scale", "bias", "mean", "var")},
            "ratio": np.float32(0.5),
        },
    )
    network, x = gpuconv.onnx.load(model), Tensor(_floats(8, 2, 3))
    assert not network.training
    np.testing.assert_allclose(network(x).numpy(), (x.numpy() - 1) / np.sqrt(1 + 1e-5) + 1, rtol=1e-5, atol=1e-6)
    before = network.mean.numpy().copy()
    dropped = network.train()(x).numpy()
    assert 0.2 < (dropped == 0).mean() < 0.8
    np.testing.assert_allclose(
        network.mean.numpy(), 0.9 * before + 0.1 * x.numpy().mean(axis=(0, 2)), rtol=1e-5, atol=1e-6
    )
    network.eval()
    assert not (network(x).numpy() == 0).any()


def test_gradients_reach_parameters_and_inputs(backend: Backend) -> None:
    """Through shapes that are computed while it runs, broadcasting and branches; finite differences judge."""
    nodes = [
        _node("Shape", "x", "shape"),
        _node("Gather", "shape zero", "batch", axis=0),
        _node("Concat", "batch rest", "target", axis=0),
        _node("Reshape", "x target", "flat"),
        _node("MatMul", "flat weight", "a"),
        _node("Sigmoid", "a", "b"),
        _node("Pow", "b exponents", "c"),
        _node("Mod", "a three", "d", fmod=1),
        _node("Add", "c d", "e"),
        _node("Split", "e", "f g", axis=1, num_outputs=2),
        _node("Mul", "f g", "y"),
    ]
    weights = {
        "zero": np.array([0]), "rest": np.array([-1]), "weight": _floats(6, 4),
        "exponents": np.array([1.5, 2.0, 0.5, 3.0], np.float32), "three": np.array([3.0], np.float32),
    }  # fmt: skip
    network = gpuconv.onnx.load(_model(nodes, {"x": ["N", 2, 3]}, weights)).double()
    for parameter in network.parameters():
        parameter.data = parameter.data.astype(np.float64)
    x = Tensor(np.random.default_rng(0).standard_normal((2, 2, 3)), requires_grad=True)
    network._constants = {
        name: value.astype(np.float64) if value.dtype.kind == "f" else value
        for name, value in network._constants.items()
    }
    assert gradcheck(lambda x, *_: network(x), [x, *network.parameters()])


def test_a_network_can_be_copied_and_pickled() -> None:
    """A copy has its own parameters."""
    network, x = gpuconv.onnx.load(_linear()), _floats(4, 3)
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        np.testing.assert_array_equal(twin(x).numpy(), network(x).numpy())
        twin.layer.weight.data[...] = 0
        assert network.layer.weight.numpy().any()


def test_a_network_runs_in_the_simulator(every_backend: Backend) -> None:
    """On every backend, kernels in the simulator included, forward and backward."""
    nodes = [
        _node("Conv", "x weight bias", "a", pads=[1, 1, 1, 1]),
        _node("Relu", "a", "b"),
        _node("MaxPool", "b", "c", kernel_shape=[2, 2], strides=[2, 2]),
        _node("Flatten", "c", "d"),
        _node("Gemm", "d fc fc_bias", "y", transB=1),
    ]
    weights = {"weight": _floats(2, 1, 3, 3), "bias": _floats(2), "fc": _floats(3, 8), "fc_bias": _floats(3)}
    network, x = gpuconv.onnx.load(_model(nodes, {"x": ["N", 1, 4, 4]}, weights)), _floats(2, 1, 4, 4)
    loss = network(x).sum()
    loss.backward()
    with gpuconv.use_backend("numpy"):
        again = gpuconv.onnx.load(_model(nodes, {"x": ["N", 1, 4, 4]}, weights))
        expected = again(x).sum()
        expected.backward()
    np.testing.assert_allclose(loss.numpy(), expected.numpy(), rtol=1e-4)
    for one, other in zip(network.parameters(), again.parameters(), strict=True):
        np.testing.assert_allclose(one.grad.numpy(), other.grad.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pads", [[1, 1, 1, 1], [2, 0, 1, 1]], ids=str)
def test_neighbours_run_as_one_unless_somebody_looks_between(pads: list[int], backend: Backend) -> None:
    """Convolution, ReLU and pooling are one step, of the same result; not if what is between them is wanted, too."""
    nodes = [
        _node("Conv", "x weight bias", "a", pads=pads, strides=[1, 2]),
        _node("Relu", "a", "b"),
        _node("MaxPool", "b", "y", kernel_shape=[2, 3], strides=[2, 2], pads=pads, ceil_mode=1),
    ]
    weights, x = {"weight": _floats(4, 2, 3, 3), "bias": _floats(4)}, _floats(2, 2, 9, 11)
    fused = gpuconv.onnx.load(_model(nodes, {"x": ["N", 2, 9, 11]}, weights))
    apart = gpuconv.onnx.load(_model(nodes, {"x": ["N", 2, 9, 11]}, weights, outputs=("y", "b", "a")))
    assert [len(fused._steps), len(apart._steps)] == [1, 3]
    whole, (expected, *_) = fused(x), apart(x)
    np.testing.assert_allclose(whole.numpy(), expected.numpy(), rtol=1e-5, atol=1e-5)
    for result in (whole, expected):
        (result * result).sum().backward()
    for one, other in zip(fused.parameters(), apart.parameters(), strict=True):
        np.testing.assert_allclose(one.grad.numpy(), other.grad.numpy(), rtol=1e-4, atol=1e-4)


def test_16_bit_weights_stay() -> None:
    """The network takes and gives float16, and trains; ``float()`` makes it one of float32."""
    model = _linear()
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    network, x = gpuconv.onnx.load(model), _floats(4, 3)
    expected = gpuconv.onnx.load(_linear())(x).numpy()
    y = network(x.astype(np.float16))
    assert y.dtype == np.float16
    np.testing.assert_allclose(y.numpy(), expected, atol=1e-2)
    y.sum().backward()
    assert {parameter.grad.dtype for parameter in network.parameters()} == {np.dtype(np.float16)}
    wide = network.float()(x)
    assert wide.dtype == np.float32
    np.testing.assert_allclose(wide.numpy(), expected, atol=1e-2)


def test_functions_of_a_model_are_taken_apart() -> None:
    """A function that a file defines by nodes runs as those."""
    model = _model([helper.make_node("Twice", ["x"], ["y"], domain="own")], {"x": ["N", 3]})
    twice = helper.make_function(
        "own", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 18)]
    )
    model.functions.append(twice)
    model.opset_import.append(helper.make_opsetid("own", 1))
    x = _floats(2, 3)
    np.testing.assert_array_equal(gpuconv.onnx.load(model)(x).numpy(), 2 * x)


def test_importing_gpuconv_does_not_load_onnx() -> None:
    """Nor does naming gpuconv.onnx; the first call does."""
    code = "import sys, gpuconv; gpuconv.onnx; print(sorted({m.split('.')[0] for m in sys.modules} & {'onnx'}))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# -- inputs that do not fit -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ((), TypeError, r"takes 2 inputs \(a, b\), got 0"),
        ((_floats(2, 3), _floats(2, 4)), ValueError, r"input b must have shape \(N, 3\), got \(2, 4\)"),
        ((_floats(2, 3), _floats(4, 3)), ValueError, r"input b must have shape \(N, 3\), got \(4, 3\); N is 2 in a"),
        ((_floats(3), _floats(2, 3)), ValueError, r"input a must have shape \(N, 3\), got \(3,\)"),
        ((np.zeros((2, 3), int), _floats(2, 3)), TypeError, r"input a must hold float32, got int64"),
    ],
    ids=["none", "shape", "batch", "dimensions", "integers"],
)
def test_inputs_that_do_not_fit(inputs: Any, error: type[Exception], message: str) -> None:
    """The message says which input, and what it should be."""
    network = gpuconv.onnx.load(_model([_node("Add", "a b")], {"a": ["N", 3], "b": ["N", 3]}))
    with pytest.raises(error, match=message):
        network(*inputs)


def test_another_batch_than_the_file_says_is_taken() -> None:
    """Files often fix a batch of 1 on which nothing depends; where something does, the node says so."""
    x = _floats(4, 6)
    assert gpuconv.onnx.load(_model([_node("Relu", "x")], {"x": [1, 6]}))(x).shape == (4, 6)
    fixed = _model([_node("Reshape", "x shape", name="head")], {"x": [1, 6]}, {"shape": np.array([1, 6])})
    with pytest.raises(ValueError, match=r"Reshape 'head': a value of shape \(4, 6\) cannot become .* \(1, 6\)"):
        gpuconv.onnx.load(fixed)(x)


# -- files that are not what they should be ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lenet(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("onnx") / "lenet.onnx"
    gpuconv.onnx.save(models.LeNet5(), path, _floats(1, 1, 32, 32))
    return path.read_bytes()


def _refused(path: Path, content: bytes | None = None) -> str:
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FileError) as caught:
        gpuconv.onnx.load(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


@pytest.mark.parametrize("share", [0.001, 0.01, 0.3, 0.9, 0.999, 1.0])
def test_a_file_that_is_cut_short(share: float, lenet: bytes, tmp_path: Path) -> None:
    """Wherever it ends, an error says so; nothing is loaded in part."""
    _refused(tmp_path / "short.onnx", lenet[: min(int(share * len(lenet)), len(lenet) - 1)])


def test_files_of_another_kind(tmp_path: Path) -> None:
    """No file, a folder, nothing, text, an array, a picture's first bytes, another protobuf message."""
    path = tmp_path / "a.onnx"
    assert "no such file" in _refused(path)
    assert "no ONNX file" in _refused(tmp_path) or "cannot be read" in _refused(tmp_path)
    for content in (b"", b"a text\n" * 20, b"\x93NUMPY\x01\x00v\x00", b"\x89PNG\r\n\x1a\n", b"PK\x03\x04" + bytes(40)):
        assert "not an ONNX file" in _refused(path, content)
    assert "not an ONNX file" in _refused(path, numpy_helper.from_array(_floats(3)).SerializeToString())


def test_changed_bytes_never_crash(lenet: bytes, tmp_path: Path) -> None:
    """A file with some bytes changed loads, or is refused as a file."""
    rng, path = np.random.default_rng(0), tmp_path / "a.onnx"
    structure = np.flatnonzero(np.frombuffer(lenet, np.uint8) == 0x0A)  # where fields of messages may begin
    for _ in range(60):
        changed = bytearray(lenet)
        for place in rng.choice(structure, 3):
            changed[place + int(rng.integers(0, 3))] = int(rng.integers(0, 256))
        path.write_bytes(changed)
        with contextlib.suppress(FileError):
            gpuconv.onnx.load(path)


def test_unsupported_operators_are_all_listed() -> None:
    """Type, opset and node of each, at once."""
    nodes = [
        _node("NonMaxSuppression", "x x", "a", name="boxes"),
        _node("LSTM", "x x x", "b", name="lstm0"),
        _node("LSTM", "x x x", "c"),
        helper.make_node("FusedConv", ["x"], ["y"], domain="com.microsoft"),
    ]
    with pytest.raises(FileError) as caught:
        gpuconv.onnx.load(_model(nodes, {"x": [1]}))
    assert str(caught.value) == (
        "the model: operators that gpuconv does not have: NonMaxSuppression of opset 18 (node boxes); "
        "LSTM of opset 18 (node lstm0 and 1 more); com.microsoft.FusedConv of opset ? (node y)"
    )


@pytest.mark.parametrize("opset", [5, 10_000])
def test_opsets_that_are_not_known(opset: int) -> None:
    """It says which are."""
    with pytest.raises(
        FileError, match=f"opset {opset}; gpuconv, with onnx .*, knows 6 to {onnx.defs.onnx_opset_version()}"
    ):
        gpuconv.onnx.load(_model([_node("Relu", "x")], {"x": [1]}, opset=opset))


def test_an_invalid_graph_is_refused() -> None:
    """A node with an input that nothing makes, and types that do not exist here."""
    with pytest.raises(FileError, match="not a valid ONNX model: Nodes in a graph must be topologically sorted"):
        gpuconv.onnx.load(_model([_node("Add", "x nothing")], {"x": [1]}))
    model = _model([_node("Relu", "x")], {"x": [1]})
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.COMPLEX64
    with pytest.raises(FileError, match="input x has elements of type COMPLEX64"):
        gpuconv.onnx.load(model)


# -- weights in another file ------------------------------------------------------------------------------------------


def _outside(path: Path, location: str, length: int = 24) -> Path:
    """A file whose first weight lies in another one, of 6 floats."""
    model = _linear()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "8"), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())
    return path


def test_weights_in_another_file_of_the_folder(tmp_path: Path) -> None:
    """They are read, from where the file says."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "weights.bin").write_bytes(bytes(8) + _floats(2, 3).tobytes() + bytes(5))
    network, x = gpuconv.onnx.load(_outside(tmp_path / "a.onnx", "data/weights.bin")), _floats(4, 3)
    np.testing.assert_array_equal(network(x).numpy(), gpuconv.onnx.load(_linear())(x).numpy())


def test_weights_outside_of_the_folder_are_not_read(tmp_path: Path) -> None:
    """Not by '..', an absolute path or a link; nor from a file that is missing or too short."""
    folder, secret = tmp_path / "folder", tmp_path / "secret.bin"
    folder.mkdir()
    secret.write_bytes(bytes(100))
    os.symlink(secret, folder / "link.bin")
    for location in ("../secret.bin", "a/../../secret.bin", str(secret), "link.bin", "", "."):
        assert "outside of the model's folder" in _refused(_outside(folder / "a.onnx", location))
    assert "cannot be read" in _refused(_outside(folder / "a.onnx", "missing.bin"))
    (folder / "short.bin").write_bytes(bytes(20))
    assert "holds 12 of its 24 bytes" in _refused(_outside(folder / "a.onnx", "short.bin"))
    with pytest.raises(FileError, match="no folder to look in"):
        gpuconv.onnx.load(onnx.load(folder / "a.onnx", load_external_data=False))


# -- files that PyTorch exports ---------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::Warning:torch", "ignore:.*legacy TorchScript")
@pytest.mark.parametrize("opset", [11, 13, 17])
def test_a_network_that_pytorch_exports(opset: int, tmp_path: Path) -> None:
    """Outputs and gradients are PyTorch's, the weights have its names."""
    torch = pytest.importorskip("torch", reason="pip install torch: its exporter writes the file")

    class Network(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 3, stride=2, padding=1)
            self.up = torch.nn.Upsample(scale_factor=2, mode="bilinear")
            self.norm = torch.nn.GroupNorm(2, 4)
            self.heads = torch.nn.ModuleList([torch.nn.Linear(4, 4), torch.nn.Linear(4, 5)])

        def forward(self, x: Any) -> Any:
            x = torch.nn.functional.max_pool2d(self.up(torch.relu(self.conv(x))), 3, 2, ceil_mode=True)
            x = torch.nn.functional.hardswish(self.norm(x))[:, :, 1:].mean((2, 3))
            return self.heads[1](torch.nn.functional.gelu(self.heads[0](x.view(x.size(0), -1))))

    torch.manual_seed(0)
    network, path = Network(), tmp_path / "net.onnx"
    images = torch.randn(2, 3, 15, 13)
    torch.onnx.export(
        network, (images,), path, opset_version=opset, dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "n"}}
    )
    loaded, images = gpuconv.onnx.load(path), torch.randn(5, 3, 15, 13)
    expected = network(images)
    expected.square().sum().backward()
    output = loaded(images.numpy())
    np.testing.assert_allclose(output.numpy(), expected.detach().numpy(), rtol=1e-4, atol=1e-5)
    (output * output).sum().backward()
    own = dict(loaded.named_parameters())
    compared = 0
    for name, parameter in network.named_parameters():
        if not name.startswith("norm"):  # which it writes in another shape, under another name
            compared += 1
            np.testing.assert_allclose(own[name].grad.numpy(), parameter.grad.numpy(), rtol=1e-3, atol=1e-4)
    assert compared == 6
