"""Networks of half types: converted, trained as PyTorch trains them, kept in files; and states that PyTorch takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpuconv
from gpuconv import Tensor, models, optim

torch = pytest.importorskip("torch", reason="pip install torch to compare with PyTorch")
pytest.importorskip("ml_dtypes", reason="NumPy has no bfloat16; pip install ml_dtypes")

HALVES = {"float16": 2e-3, "bfloat16": 1.6e-2}


def _network(L: Any) -> Any:
    nn = L.nn
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5),
    )  # fmt: skip


def test_conversions() -> None:
    """Floats get the type, gradients and buffers too; whole numbers keep theirs; it is the module itself."""
    model = _network(gpuconv)
    model(gpuconv.randn(2, 2, 8, 8)).sum().backward()
    for convert, dtype in [
        (lambda: model.half(), "float16"),
        (lambda: model.bfloat16(), "bfloat16"),
        (lambda: model.to(gpuconv.float64), "float64"),
        (lambda: model.to("cpu", gpuconv.half), "float16"),
        (lambda: model.to(dtype="bfloat16"), "bfloat16"),
        (lambda: model.to(gpuconv.zeros(1)), "float32"),
        (lambda: model.double(), "float64"),
        (lambda: model.float(), "float32"),
    ]:
        assert convert() is model
        assert {p.dtype for p in model.parameters()} == {p.grad.dtype for p in model.parameters()} == {np.dtype(dtype)}
        assert [str(buffer.dtype) for buffer in model.buffers()] == [dtype, dtype, "int64"]
    for call, words in [
        (lambda: model.to(np.int64), "to: dtype must be a float type, got int64"),
        (lambda: model.to(1.5), "to: device must be"),
        (lambda: model.to(dtype="cpu"), "to: dtype must be an element type"),
    ]:
        with pytest.raises(TypeError, match=words):
            call()


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("half", HALVES)
def test_training_is_pytorchs(half: str) -> None:
    """Losses, parameters and running statistics of five steps, from the same weights; then the evaluation."""
    torch.manual_seed(0)  # of one initialisation in fifty, roundings grow beyond the tolerance in these five steps
    theirs, ours = _network(torch), _network(gpuconv)
    ours.load_state_dict(theirs.state_dict())
    theirs.to(getattr(torch, half))
    ours.to(half)
    step_of_ours = optim.SGD(ours.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    step_of_theirs = torch.optim.SGD(theirs.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    rng = np.random.default_rng(0)
    for _ in range(5):
        x, labels = rng.standard_normal((8, 2, 10, 10)).astype(np.float32), rng.integers(0, 5, 8)
        losses = []
        for L, model, optimizer, given in [
            (torch, theirs, step_of_theirs, torch.tensor(x).to(getattr(torch, half))),
            (gpuconv, ours, step_of_ours, Tensor(x).to(half)),
        ]:
            optimizer.zero_grad()
            loss = L.nn.functional.cross_entropy(model(given), L.tensor(labels))
            assert str(loss.dtype).removeprefix("torch.") == half
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        np.testing.assert_allclose(*losses, rtol=4 * HALVES[half])
    for (name, got), expected in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        np.testing.assert_allclose(got.astype(np.float32), expected.float(), atol=4 * HALVES[half], err_msg=name)
    evaluated = ours.eval()(Tensor(x).to(half)).float().detach().numpy()
    expected = theirs.eval()(torch.tensor(x).to(getattr(torch, half))).float().detach().numpy()
    np.testing.assert_allclose(evaluated, expected, atol=8 * HALVES[half])


@pytest.mark.parametrize("dtype", ["float32", "float64", *HALVES])
def test_pytorch_takes_states(dtype: str) -> None:
    """A state dict as it is; and as tensors, on the same memory."""
    ours, theirs = _network(gpuconv).to(dtype), _network(torch).to(getattr(torch, dtype))
    state = ours.state_dict()
    theirs.load_state_dict(state)
    tensors = gpuconv.to_torch(state)
    for name, found in theirs.state_dict().items():
        assert found.dtype == tensors[name].dtype
        assert torch.equal(found, tensors[name]), name
    tensors["8.bias"][0] = 3
    assert state["8.bias"][0] == 3
    theirs.load_state_dict(tensors, assign=True)
    ours.load_state_dict(theirs.state_dict())
    assert ours[8].bias[0].item() == 3
    assert gpuconv.to_torch(ours[8].bias).tolist() == ours[8].bias.tolist()


@pytest.mark.parametrize("half", HALVES)
def test_files(half: str, tmp_path: Path) -> None:
    """A model is read as it was written; states go to and from PyTorch's readers."""
    from safetensors.torch import load_file, save_file

    model, path = models.LeNet5().to(half).eval(), tmp_path / "model.safetensors"
    gpuconv.save(model, path)
    again = gpuconv.load(path)
    image = gpuconv.randn(1, 1, 32, 32, dtype=half)
    assert again(image).dtype == half
    np.testing.assert_array_equal(again(image).numpy(), model(image).numpy())
    assert again.predict(np.zeros((2, 1, 32, 32), np.float32)).dtype == half
    assert again.summary((1, 32, 32)).parameters == 61_706
    assert "conv2d" in str(gpuconv.explain(again, (1, 1, 32, 32), training=True))
    state = model.state_dict()
    gpuconv.save(state, path)
    tensors = load_file(path)
    save_file(tensors, tmp_path / "theirs.safetensors")
    torch.save(tensors, tmp_path / "theirs.pt")
    gpuconv.save(tensors, tmp_path / "ours.safetensors")
    for file in (path, *(tmp_path / name for name in ("theirs.safetensors", "theirs.pt", "ours.safetensors"))):
        found = gpuconv.load(file)
        for name, array in state.items():
            np.testing.assert_array_equal(found[name], array, strict=True)
        models.LeNet5().load_state_dict(found)  # of float32: converted


@pytest.mark.parametrize("half", HALVES)
def test_norms_of_gradients(half: str) -> None:
    """Norms whose squares float16 could not hold are clipped as PyTorch clips them."""
    gradients = [np.full(n, 200.0, np.float32) for n in (4, 100)]
    ours = [gpuconv.zeros(len(g), dtype=half, requires_grad=True) for g in gradients]
    theirs = [torch.zeros(len(g), dtype=getattr(torch, half), requires_grad=True) for g in gradients]
    for mine, yours, gradient in zip(ours, theirs, gradients, strict=True):
        mine.grad, yours.grad = Tensor(gradient).to(half), torch.tensor(gradient).to(yours.dtype)
    total = gpuconv.nn.utils.clip_grad_norm_(ours, 10.0)
    expected = torch.nn.utils.clip_grad_norm_(theirs, 10.0)
    assert total.dtype == half
    np.testing.assert_allclose(total.item(), expected.item(), rtol=HALVES[half])
    for mine, yours in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine.grad.float().numpy(), yours.grad.float(), rtol=2 * HALVES[half])


def test_dropout_of_half_types() -> None:
    """The scale is float32's; what is kept is rounded once."""
    x = gpuconv.full((1000,), 3.0, dtype="bfloat16")
    for function in (gpuconv.functional.dropout, lambda x, p: gpuconv.functional.dropout1d(x.view(1, -1, 1), p)):
        y = function(x, 0.3)
        assert y.dtype == x.dtype
        assert {*y.float().flatten().tolist()} == {0.0, Tensor(np.float32(3 / 0.7)).bfloat16().item()}
