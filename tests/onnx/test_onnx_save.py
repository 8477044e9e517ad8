"""What gpuconv.onnx.save writes is what the model does: other runtimes and gpuconv itself compute the same from it."""

from __future__ import annotations

import importlib
import itertools
import pkgutil
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx", reason="pip install onnx: files are written with it")

import onnx
from support import onnx_running
from support.operation_cases import FAMILIES, Case

import gpuconv
import gpuconv.functional as F
import gpuconv.ops
from gpuconv import Function, Tensor, models, nn
from gpuconv.data import load_dataset
from gpuconv.onnx.exporters import EXPORTERS

#: Calls of `operation_cases.py` that are not compared, by patterns of their names, and why.
NOT_COMPARED = {
    r"softplus\(beta=2.0, threshold=1.0": "it jumps at its threshold; Softplus of ONNX does not",
    r"cross_entropy\(\w+, \{'label_smoothing'": "ONNX has no label smoothing",
    r"poisson_nll_loss\(\w+, \{'full'": "it compares values outside of operations",
    r"hinge_embedding_loss|cosine_embedding_loss": "it compares values outside of operations",
    r"(max|min)(\(0\))? with NaN|max_pool2d of (ties|infinities)": "runtimes pass over NaN",
    r"max_unpool|max_pool3d.*(return_indices|ties|NaN)": "places of maxima in volumes, and scattering, are not written",
    r"adaptive_max_pool.*(return_indices|ties|infinities|NaN)": "where windows overlap, places are not written",
    r"avg_pool.*divisor_override.*ceil_mode": "ONNX counts the elements of windows that hang over otherwise",
}

#: Functions that cannot be written, and why.
NOT_WRITTEN = {
    "Dropout": "evaluation mode drops nothing",
    "AlphaDropout": "evaluation mode drops nothing",
    "SetItem": "a graph of values has no item assignment",
    "Move": "copies between devices are not part of a graph",
    "MaxUnpool": "it scatters, for which ONNX needs the batch's size",
    "PlaneOf": "the places of maxima in volumes are not written",
    "Pointwise": "what others derive from",
    "Cutting": "what others derive from",
    "Adding": "what others derive from",
    "Difference": "what others derive from",
}


class Calling(nn.Module):
    """A module of one call."""

    def __init__(self, call: Callable[..., Any]):
        super().__init__()
        self.call = call

    def forward(self, *inputs: Any) -> Any:
        return self.call(*inputs)


def _compared(model: nn.Module, path: Path, inputs: list[Any], fresh: list[Any] | None = None, **options: Any) -> Any:
    """Save with inputs, and compare what a runtime and gpuconv compute from the file with the model, on fresh ones."""
    gpuconv.onnx.save(model, path, tuple(inputs), **options)
    fresh = inputs if fresh is None else fresh
    with nn.module.evaluating(model), gpuconv.no_grad():
        expected = model(*map(Tensor, fresh))
    expected = list(expected) if isinstance(expected, (tuple, list)) else [expected]
    loaded = gpuconv.onnx.load(path)(*fresh)
    loaded = list(loaded) if isinstance(loaded, tuple) else [loaded]
    for got in (onnx_running.run(path, *fresh), [value.numpy() for value in loaded]):
        for one, wanted in zip(got, expected, strict=True):
            assert one.shape == wanted.shape
            assert one.dtype == wanted.dtype
            np.testing.assert_allclose(one, wanted.numpy(), rtol=1e-5, atol=1e-5)
    return onnx.load(path)


def _small(rng: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(rng).standard_normal(shape).astype(np.float32)


# -- operations -------------------------------------------------------------------------------------------------------

_CASES = [case for case in itertools.chain(*FAMILIES.values()) if not re.search("|".join(NOT_COMPARED), case.name)]


@pytest.mark.grid(3)
@pytest.mark.parametrize("case", _CASES, ids=str)
def test_operation(case: Case, tmp_path: Path) -> None:
    """Each call that is compared with PyTorch elsewhere is the same in a runtime of ONNX graphs."""
    with gpuconv.use_backend("numpy"):
        model, inputs = Calling(lambda *tensors: case.call(gpuconv, *tensors)), case.draw(case.samples[0], np.float32)
        _compared(model, tmp_path / "call.onnx", inputs)


def test_every_function_is_written_or_listed() -> None:
    """No operation of gpuconv is forgotten."""
    names = set()
    for module in pkgutil.iter_modules(gpuconv.ops.__path__):
        for value in vars(importlib.import_module(f"gpuconv.ops.{module.name}")).values():
            if isinstance(value, type) and issubclass(value, Function) and value is not Function:
                names.add(value.__name__)
    assert names - set(EXPORTERS) <= set(NOT_WRITTEN)


def test_comparisons_are_written(tmp_path: Path) -> None:
    """A mask that a model computes from its input is computed in the file, too."""
    model = Calling(lambda x: gpuconv.where(x > 0.5, x, gpuconv.where(x != x, 0.0, x * 2)))
    _compared(model, tmp_path / "mask.onnx", [_small(0, 3, 4)], [_small(1, 7, 4)])


@pytest.mark.parametrize(
    "index",
    [1, -1, slice(1, None), slice(None, None, -1), (slice(None), 2), (..., -1), (0, None, slice(1, 3)), (None, ...)],
    ids=str,
)
def test_indices_are_written(index: Any, tmp_path: Path) -> None:
    """Integers, slices, new dimensions and ellipses."""
    _compared(Calling(lambda x: x[index]), tmp_path / "index.onnx", [_small(0, 4, 5, 6)])


# -- networks ---------------------------------------------------------------------------------------------------------


class _Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.BatchNorm2d(4)

    def forward(self, x: Any) -> Any:
        inside = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(inside)) + x)


def _lived(model: nn.Module, *shape: int) -> nn.Module:
    """A model whose running statistics are no longer those at the start."""
    for seed in range(3):
        model(Tensor(_small(seed, *shape) * 2 + 1))
    return model


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(3, 2, 1), _Residual(), _Residual(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(4, 5),
        ),
        (3, 16, 16),
    ),
    "vgg": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3, padding="same"), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2, ceil_mode=True),
            nn.AdaptiveAvgPool2d((3, 2)), nn.Flatten(), nn.Linear(24, 8), nn.ReLU(), nn.Linear(8, 5), nn.Softmax(1),
        ),
        (3, 9, 9),
    ),
    "norms": (
        lambda: nn.Sequential(
            nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True), nn.LayerNorm([4, 6, 6]), nn.LocalResponseNorm(2),
            nn.BatchNorm2d(4, affine=False), nn.BatchNorm2d(4, track_running_stats=False),
        ),
        (4, 6, 6),
    ),
    "in one dimension": (
        lambda: nn.Sequential(
            nn.Conv1d(2, 4, 3, padding=1), nn.BatchNorm1d(4), nn.GELU(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(16, 3)
        ),
        (2, 8),
    ),
    "up": (
        lambda: nn.Sequential(
            nn.Upsample(scale_factor=2), nn.Conv2d(2, 8, 1), nn.PixelShuffle(2), nn.PReLU(2),
            nn.Upsample(size=(9, 10), mode="bilinear"), nn.ReLU6(),
        ),
        (2, 3, 4),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_network(name: str, tmp_path: Path, backend: Any) -> None:
    """Networks of the usual layers, on another batch than the one that they were written with."""
    build, shape = NETWORKS[name]
    model = _lived(build(), 3, *shape)
    written = _compared(model, tmp_path / "net.onnx", [_small(7, 2, *shape)], [_small(8, 5, *shape)])
    state = model.state_dict()
    kept = {tensor.name for tensor in written.graph.initializer}
    assert {name for name, _ in model.named_parameters()} <= kept <= {*state, *[n for n in kept if "constant" in n]}
    assert model.training  # as it was


@pytest.mark.slow
def test_lenet_gives_the_same_classes_on_all_bundled_digits(tmp_path: Path) -> None:
    """From gpuconv to a file to a runtime: the class of no digit changes."""
    digits = load_dataset("mnist-sample")
    gpuconv.manual_seed(0)
    model = models.LeNet5()
    model.input_transform = gpuconv.data.InputTransform.fit(digits.train_images)
    optimizer = gpuconv.optim.Adam(model.parameters(), lr=0.002)
    prepared = model.prepare(digits.train_images[:4000])
    for start in range(0, 4000, 100):
        loss = F.cross_entropy(model(Tensor(prepared[start : start + 100])), digits.train_labels[start : start + 100])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    test = model.prepare(digits.test_images)
    path = tmp_path / "lenet.onnx"
    gpuconv.onnx.save(model, path, test[:1])
    (logits,) = onnx_running.run(path, test)
    classes = model.predict(test).argmax(1)
    assert (logits.argmax(1) == classes).all()
    assert len(set(classes.tolist())) == 10
    assert (gpuconv.onnx.load(path).predict(test).argmax(1) == classes).all()


def test_a_loaded_network_trains_as_the_original(tmp_path: Path, backend: Any) -> None:
    """Its gradients are the original's, and its loss falls."""
    gpuconv.manual_seed(0)
    model = models.LeNet5()
    images = _small(0, 8, 1, 32, 32)
    labels = np.arange(8)
    gpuconv.onnx.save(model, tmp_path / "lenet.onnx", images)
    loaded = gpuconv.onnx.load(tmp_path / "lenet.onnx").train()
    losses = []
    for network in (model, loaded):
        loss = F.cross_entropy(network(Tensor(images)), labels)
        loss.backward()
    own = dict(loaded.named_parameters())
    assert own.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        largest = float(np.abs(parameter.grad.numpy()).max())
        np.testing.assert_allclose(own[name].grad.numpy(), parameter.grad.numpy(), rtol=1e-4, atol=1e-5 * largest)
    optimizer = gpuconv.optim.Adam(loaded.parameters(), lr=0.001)
    for _ in range(30):
        loss = F.cross_entropy(loaded(Tensor(images)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


# -- the file ---------------------------------------------------------------------------------------------------------


def _dimensions(path: Path) -> list[Any]:
    (value,) = onnx.load(path).graph.input
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_half_types(half: str, tmp_path: Path) -> None:
    """Inputs, outputs, parameters and numbers in the code are of the half type; runtimes, and load, give the same."""
    pytest.importorskip("ml_dtypes", reason="NumPy has no bfloat16; pip install ml_dtypes")
    layers = [
        nn.Conv2d(2, 3, 3, padding=1),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(48, 4),
    ]
    network = nn.Sequential(*layers, Calling(lambda x: F.softmax(x * 1.7 - 0.1, 1) / 3)).to(half)
    x, path = gpuconv.randn(2, 2, 8, 8, dtype=half), tmp_path / "half.onnx"
    network(x)  # which moves the running statistics
    expected = network.eval()(x)
    gpuconv.onnx.save(network, path, x)
    file = onnx.load(path)
    onnx.checker.check_model(file, full_check=True)
    number = {"float16": onnx.TensorProto.FLOAT16, "bfloat16": onnx.TensorProto.BFLOAT16}[half]
    assert {value.type.tensor_type.elem_type for value in (*file.graph.input, *file.graph.output)} == {number}
    assert {t.data_type for t in file.graph.initializer} <= {number, onnx.TensorProto.INT64}
    assert file.opset_import[0].version == (18 if half == "float16" else 22)
    again = gpuconv.onnx.load(path)(x)
    assert again.dtype == expected.dtype
    np.testing.assert_allclose(again.float().numpy(), expected.float().numpy(), rtol=2e-2)
    if half == "float16":  # ONNX Runtime has no convolution of bfloat16 on a CPU
        (got,) = onnx_running.run(path, x.numpy())
        np.testing.assert_allclose(got, expected.numpy(), rtol=4e-3)


def test_the_batch_is_of_any_size_unless_it_is_not(tmp_path: Path) -> None:
    """Its size is N in the file; where the caller or the model fixes it, it is a number."""
    path, x = tmp_path / "a.onnx", _small(0, 2, 1, 32, 32)
    gpuconv.onnx.save(models.LeNet5(), path, x)
    assert _dimensions(path) == ["N", 1, 32, 32]
    gpuconv.onnx.save(models.LeNet5(), path, x, dynamic_batch=False)
    assert _dimensions(path) == [2, 1, 32, 32]
    gpuconv.onnx.save(Calling(lambda x: x / x.shape[0]), path, x)
    assert _dimensions(path) == [2, 1, 32, 32]
    gpuconv.onnx.save(Calling(lambda x: gpuconv.reshape(x, (2, 1024))), path, x)
    assert _dimensions(path) == [2, 1, 32, 32]


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    """Nothing of the process or the time is in the file; what was there is replaced."""
    model, x = models.LeNet5(), _small(0, 1, 1, 32, 32)
    contents = []
    for _ in range(2):
        gpuconv.onnx.save(model, tmp_path / "a.onnx", x)
        contents.append((tmp_path / "a.onnx").read_bytes())
    assert contents[0] == contents[1]
    assert [file.name for file in tmp_path.iterdir()] == ["a.onnx"]


def test_several_inputs_and_outputs(tmp_path: Path) -> None:
    """They keep their order."""
    model = Calling(lambda a, b: (a + b, a * 2, b))
    file = _compared(model, tmp_path / "a.onnx", [_small(0, 2, 3), _small(1, 2, 3)], [_small(2, 4, 3), _small(3, 4, 3)])
    assert [value.name for value in file.graph.input] == ["input_0", "input_1"]
    assert [value.name for value in file.graph.output] == ["output_0", "output_1", "output_2"]


def test_shared_parameters_are_written_once(tmp_path: Path) -> None:
    """A parameter of two names is one initializer."""
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    file = _compared(nn.Sequential(first, nn.Tanh(), second), tmp_path / "a.onnx", [_small(0, 2, 4)])
    assert sorted(tensor.name for tensor in file.graph.initializer) == ["0.bias", "0.weight", "2.bias"]


# -- what is refused --------------------------------------------------------------------------------------------------


class _Own(Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return grad * 2


def _adding_in_place(x: Any) -> Any:
    y = x * 2
    y += 1
    return y


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: _Own.apply(x), "uses _Own, which gpuconv cannot write"),
        (lambda x: x * float(x.numpy().max()), "Mul takes was computed from the input's values"),
        (lambda x: x * 2 if x.numpy()[0, 0] > 0.3 else F.relu(x), "runs Mul on one input and ReLU on another"),
        (_adding_in_place, "changes arrays in place"),
        (lambda x: F.softplus(x, threshold=1.0), "Softplus, which gpuconv cannot write as ONNX here"),
    ],
    ids=["own function", "NumPy", "branch", "in place", "option"],
)
def test_what_a_file_cannot_say_is_refused(call: Callable[..., Any], message: str, tmp_path: Path) -> None:
    """It says which operation; and nothing is written."""
    x = np.linspace(0.5, -3, 12, dtype=np.float32).reshape(3, 4)
    with pytest.raises(ValueError, match=message):
        gpuconv.onnx.save(Calling(call), tmp_path / "a.onnx", x)
    assert not list(tmp_path.iterdir())


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    """Arguments of the wrong kind."""
    x = _small(0, 2, 3)
    with pytest.raises(TypeError, match="model must be a Module, got function"):
        gpuconv.onnx.save(lambda x: x, tmp_path / "a.onnx", x)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="the model returns float"):
        gpuconv.onnx.save(Calling(lambda x: 1.0), tmp_path / "a.onnx", x)
    with pytest.raises(OSError, match="No such file"):
        gpuconv.onnx.save(nn.ReLU(), tmp_path / "nowhere" / "a.onnx", x)
