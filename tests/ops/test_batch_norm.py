"""Batch normalisation with what stands behind it, against its parts one after the other, in sizes that are compiled."""

from __future__ import annotations

import numpy as np
import pytest

import gpuconv
from gpuconv import Tensor, models, nn, no_grad
from gpuconv import functional as F
from gpuconv.backends import get, use_backend

RNG = np.random.default_rng(5)
SHAPES = [(4, 3, 5, 7), (6, 32, 13, 17), (33, 700, 1), (2, 40, 4096), (40, 600)]
EVERYTHING = (True, True, True, True)


def operands(shape, dtype="float64"):
    """Values far from zero: what is computed from sums of squares has no digit left there."""
    c = shape[1]
    made = {
        "x": RNG.normal(50, 2, shape), "weight": RNG.normal(1, 0.3, c), "bias": RNG.normal(0, 1, c),
        "residual": RNG.normal(0, 1, shape), "mean": RNG.normal(50, 1, c), "var": RNG.uniform(1, 5, c),
    }  # fmt: skip
    return {name: value.astype(dtype) for name, value in made.items()}


def gradients(function, arrays, grad, needs):
    """The result, and the gradients for x, weight, bias and residual."""
    names = ("x", "weight", "bias", "residual")
    tensors = {name: Tensor(arrays[name].copy(), requires_grad=need) for name, need in zip(names, needs, strict=True)}
    y = function(*tensors.values())
    y.backward(grad)
    return y.numpy(), [None if tensor.grad is None else tensor.grad.numpy() for tensor in tensors.values()]


@pytest.mark.parametrize(
    "needs", [EVERYTHING, (True, False, False, False), (False, True, True, False), (False, False, False, True)]
)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_the_parts_one_after_the_other(backend, shape, training, needs):
    """relu(batch_norm(x) + residual): result, gradients and running statistics, with and without each part."""
    arrays, grad = operands(shape), RNG.normal(size=shape)
    # The judge: NumPy's composition, and a ReLU and an addition of their own.
    fused_statistics, parts_statistics = ([arrays["mean"].copy(), arrays["var"].copy()] for _ in range(2))
    found, ours = gradients(
        lambda x, w, b, r: F.batch_norm_relu(x, *fused_statistics, w, b, r, training=training), arrays, grad, needs
    )
    with gpuconv.use_backend("numpy"):
        expected, theirs = gradients(
            lambda x, w, b, r: F.relu(F.batch_norm(x, *parts_statistics, w, b, training=training) + r),
            arrays, grad, needs,
        )  # fmt: skip
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(fused_statistics, parts_statistics, rtol=1e-12)
    assert [one is None for one in ours] == [one is None for one in theirs] == [not need for need in needs]
    for one, other in zip(ours, theirs, strict=True):
        if one is not None:
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float32_keeps_its_digits(backend, shape):
    """Mean 50, deviation 2, float32: as near to float64 as the input's own rounding lets it be."""
    arrays = operands(shape, "float32")
    exact = {name: value.astype(np.float64) for name, value in arrays.items()}
    y = F.batch_norm(arrays["x"], None, None, arrays["weight"], arrays["bias"], training=True)
    with gpuconv.use_backend("numpy"):
        wanted = F.batch_norm(exact["x"], None, None, exact["weight"], exact["bias"], training=True)
    np.testing.assert_allclose(y, wanted, rtol=2e-5, atol=2e-5)


def test_nan_and_infinity_go_through(backend):
    """NaN stays in its channel, and ReLU lets it through; so does an infinite residual."""
    x = RNG.normal(size=(8, 6, 30, 31)).astype(np.float32)
    residual = np.zeros_like(x)
    x[3, 2, 5, 5], residual[1, 4, 0, 0], residual[1, 5, 0, 0] = np.nan, np.inf, -np.inf
    y = F.batch_norm_relu(x, None, None, None, None, residual, training=True)
    assert np.isnan(y[:, 2]).all()
    assert np.isfinite(np.delete(y, (2, 4), 1)).all()
    assert y[1, 4, 0, 0] == np.inf
    assert y[1, 5, 0, 0] == 0


def test_results_do_not_depend_on_the_number_of_threads(monkeypatch):
    """To the last bit, forward and backward."""
    from gpuconv.backends.cpu import threads

    numba = get("numba")
    monkeypatch.setattr(threads, "_WORK_A_THREAD", 1)
    monkeypatch.setattr(threads, "_WORK_TO_SHARE", 1)
    arrays = operands((6, 32, 13, 17), "float32")
    x, residual = (arrays[name].reshape(6, 32, -1) for name in ("x", "residual"))
    seen = []
    for size in (1, 2, 3):
        monkeypatch.setattr(threads, "_team", threads.Team(size))
        y, mean, var = numba.batch_norm(x, None, None, arrays["weight"], arrays["bias"], residual, eps=1e-5, relu=True)
        grads = numba.batch_norm_grad(residual, x, y, mean, var, arrays["weight"], eps=1e-5, own=True, needs=EVERYTHING)
        seen.append(b"".join(array.tobytes() for array in (y, mean, var, *grads)))
    assert seen[0] == seen[1] == seen[2]


def test_sequential_runs_both_as_one(backend):
    """A ReLU behind batch normalisation is part of it; hooks, subclasses and a summary see each by itself."""
    layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()
    fused, x = nn.Sequential(*layers), RNG.normal(size=(5, 1, 9, 9)).astype(np.float32)
    assert fused.blocks() == [("0",), ("1", "2"), ("3",)]
    alone = x
    for layer in layers:
        alone = layer(Tensor(alone)).numpy()
    before = [layers[1].running_mean.numpy().copy(), layers[1].num_batches_tracked.item()]
    np.testing.assert_allclose(fused(Tensor(x)).numpy(), alone, rtol=1e-5, atol=1e-5)
    assert layers[1].num_batches_tracked.item() == before[1] + 1
    assert [layer.kind for layer in fused.summary((1, 9, 9)).layers] == ["Conv2d", "BatchNorm2d", "ReLU", "Flatten"]
    handle = layers[1].register_forward_hook(lambda *_: None)
    assert fused.blocks() == [("0",), ("1",), ("2",), ("3",)]
    handle.remove()


def _evaluated(model):
    """The model in evaluation, with statistics that it could have learned."""
    rng = np.random.default_rng(0)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for one, low in ((norm.running_mean, -1), (norm.running_var, 0.5), (norm.weight, -1), (norm.bias, -1)):
                if one is not None:
                    one.data[...] = rng.uniform(low, 2, one.shape)
    return model.eval()


def test_in_evaluation_a_convolution_takes_it_in(backend):
    """Without a graph, with the same maps; not while training, nor where a layer is not just what its class says."""

    class Own(nn.BatchNorm2d):
        pass

    x = Tensor(RNG.normal(size=(2, 3, 64, 64)).astype(np.float32))
    for bias, kind, options, last, whole in (
        (True, nn.BatchNorm2d, {}, [nn.ReLU()], 1),
        (False, nn.BatchNorm2d, {"affine": False}, [nn.ReLU6()], 2),
        (False, Own, {}, [nn.ReLU()], 3),
        (False, nn.BatchNorm2d, {"track_running_stats": False}, [], 2),
    ):
        model = _evaluated(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=bias), kind(8, **options), *last))
        expected, blocks = model(x), model.blocks()
        assert expected.requires_grad
        assert blocks[0] == ("0",)
        with no_grad():
            np.testing.assert_allclose(model(x).numpy(), expected.numpy(), rtol=1e-4, atol=1e-5)
            assert len(model.blocks()) == whole
            assert model.train().blocks() == blocks
            model.eval()[1].register_forward_hook(lambda *_: None)
            assert model.blocks()[:2] == [("0",), ("1",)]


def test_in_evaluation_a_network_takes_its_norms_in():
    """A residual and a dense network have the same maps with and without a graph: what is joined is right at branches.

    On NumPy: which layers are joined does not depend on the backend, and each layer would be compiled.
    """
    x = Tensor(RNG.normal(size=(2, 3, 64, 64)).astype(np.float32))
    with use_backend("numpy"):
        for model in (models.build("resnet20"), models.build("densenet121", num_classes=3).features[:6]):
            expected = _evaluated(model)(x).numpy()
            with no_grad():
                np.testing.assert_allclose(model(x).numpy(), expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_what_does_not_fit_is_refused():
    """The message names the function, the argument and what it got."""
    x = np.ones((2, 3, 4), np.float32)
    with pytest.raises(ValueError, match=r"batch_norm_relu: residual must have shape \(2, 3, 4\), got \(2, 3, 1\)"):
        F.batch_norm_relu(x, None, None, residual=x[:, :, :1], training=True)
    with pytest.raises(TypeError, match=r"batch_norm_relu: .*float64"):
        F.batch_norm_relu(x, None, None, residual=x.astype(np.float64), training=True)
    with pytest.raises(ValueError, match="batch_norm_relu: running_mean and running_var must be given"):
        F.batch_norm_relu(x, None, None)
