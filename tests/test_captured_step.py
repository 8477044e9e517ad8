"""Captured steps in the simulator, where a list of launches stands for the graph; test_device_arrays has the others."""

from __future__ import annotations

import numpy as np
import pytest
from support.lenet_training import step_of

import gpuconv
from gpuconv import Tensor, backends, models, nn, optim, tuning
from gpuconv import functional as F

simulated = pytest.mark.skipif(
    backends.available()["cuda"] is not None or backends.get("cuda").automatic(),
    reason=f"needs the simulator: {backends.available()['cuda']}",
)


def small_network():
    gpuconv.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(2, 4, 2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3),
    )  # fmt: skip


OPTIMIZERS = {
    "momentum": lambda parameters: optim.SGD(parameters, lr=0.1, momentum=0.9, dampening=0.5),
    "plain": lambda parameters: optim.SGD(parameters, lr=0.1),
    "adam": lambda parameters: optim.AdamW(parameters, lr=0.1),
}


def trained(backend, make_optimizer, *, steps, captured, make_model=small_network, shape=(5, 1, 8, 8)):
    """Losses and parameters after some steps with a learning rate that changes; and the step, if it was captured."""
    rng = np.random.default_rng(0)
    with gpuconv.use_backend(backend):
        model = make_model()
        optimizer = make_optimizer(model.parameters())
        step = step_of(model, optimizer)
        run = gpuconv.capture(step, warmup=captured) if captured else step
        losses = []
        for number in range(steps):
            optimizer.lr = 0.1 / (1 + number)
            images = rng.standard_normal(shape).astype(np.float32)
            losses.append(run(Tensor(images), rng.integers(0, 3, shape[0])).item())
        assert optimizer.steps == steps
        return losses, [parameter.numpy() for parameter in model.parameters()], run


@pytest.mark.slow
@simulated
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_captured_steps_are_steps(optimizer):
    """A step of warm-up, the one that is captured, and two repetitions: as four steps on the NumPy backend.

    Only launches are repeated, so this also shows that the step consists of nothing else.
    """
    ours, parameters, step = trained("cuda", OPTIMIZERS[optimizer], steps=4, captured=1)
    theirs, expected, _ = trained("numpy", OPTIMIZERS[optimizer], steps=4, captured=0)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    for one, other in zip(parameters, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)
    names = [launch.kernel.fn.__name__ for launch, _ in step._graph.launches]
    assert len(names) <= 10
    assert names[-1] == ("adam_update_all" if optimizer == "adam" else "sgd_update_all")


def lenet():
    gpuconv.manual_seed(0)
    return models.LeNet5()


def lenet_of_16():
    """LeNet for images of 16x16: of its second block, one window of each filter is left."""
    gpuconv.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(16, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


@simulated
@pytest.mark.slow
@pytest.mark.parametrize(
    ("make_model", "size"), [(lenet_of_16, 16), pytest.param(lenet, 32, marks=pytest.mark.thorough)]
)
def test_steps_of_lenet(make_model, size):
    """A step of warm-up, the one that is captured, and a repetition: losses to 1e-5, as on the NumPy backend.

    One image goes through the kernel for both blocks, as 16 would.
    """
    options = {"steps": 3, "make_model": make_model, "shape": (1, 1, size, size)}
    with tuning.use_variant("conv2d_relu_max_pool2d_pair", "image"):
        ours, parameters, step = trained("cuda", OPTIMIZERS["momentum"], captured=1, **options)
    assert step._graph.launches[0][0].kernel.fn.__name__ == "conv2d_relu_max_pool2d_pair"
    theirs, expected, _ = trained("numpy", OPTIMIZERS["momentum"], captured=0, **options)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    for one, other in zip(parameters, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def classifier():
    """Layers behind a convolution, for which the gradient of the loss can be computed from the first one's results."""
    gpuconv.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 2, stride=2), nn.Flatten(),
        nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4),
    )  # fmt: skip


#: Of logits and labels: what is differentiated, and whether one kernel computes the gradient from the first layer on.
LOSSES = {
    "mean": (F.cross_entropy, True),
    "ignored labels": (lambda logits, labels: F.cross_entropy(logits, labels, ignore_index=2), True),
    "smoothed": (lambda logits, labels: F.cross_entropy(logits, labels, label_smoothing=0.1), False),
    "weighted": (lambda logits, labels: F.cross_entropy(logits, labels, Tensor(np.ones(4, np.float32))), False),
    "scaled": (lambda logits, labels: F.cross_entropy(logits, labels) * 2.0, False),
    "with another use": (lambda logits, labels: F.cross_entropy(logits, labels) + logits.mean(), False),
    "of other logits": (lambda logits, labels: F.cross_entropy(logits * 0.5, labels), False),
}


@simulated
@pytest.mark.parametrize("loss", LOSSES)
def test_the_gradient_of_a_loss_through_its_layers(loss, monkeypatch):
    """Steps as on the NumPy backend, whatever becomes of the logits before the backward.

    Where all of a step is launches, the second one is captured and repeated: it has the same bits as uncaptured.
    """
    of, fused = LOSSES[loss]
    queued = []

    def trained_by(backend, ways):
        rng = np.random.default_rng(0)
        with gpuconv.use_backend(backend):
            model = classifier()
            optimizer = optim.SGD(model.parameters(), lr=0.1)

            def step(images, labels):
                value = of(model(images), labels)
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
                return value

            run, labels = ways(step), rng.integers(0, 4, (2, 3))
            images = rng.standard_normal((2, 3, 1, 4, 4)).astype(np.float32)
            values = [run(Tensor(one), two).item() for one, two in zip(images, labels, strict=True)]
            return values, [parameter.numpy() for parameter in model.parameters()]

    theirs, expected = trained_by("numpy", lambda step: step)
    backend = backends.get("cuda")
    queue = backend._queue
    monkeypatch.setattr(
        backend, "_queue", lambda plan, *a, **o: (queued.append(plan.choice.operation), queue(plan, *a, **o))[1]
    )
    with (
        tuning.use_variant("linear_chain", "split"),
        tuning.use_variant("linear_chain_loss_grad_input", "recomputed"),
    ):
        ours, parameters = trained_by("cuda", lambda step: step)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
        for one, other in zip(parameters, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
        assert ("linear_chain_loss_grad_input" in queued) == fused
        assert ("linear_chain_grad_input" in queued) != fused
        if fused:
            again, same = trained_by("cuda", lambda step: gpuconv.capture(step, warmup=1))
            assert again == ours
            for one, other in zip(same, parameters, strict=True):
                np.testing.assert_array_equal(one, other)


@simulated
def test_inference():
    """A captured forward pass gives each input its own result, in the memory of the result before."""
    with gpuconv.use_backend("cuda"), gpuconv.no_grad():
        model = small_network()
        predict = gpuconv.capture(lambda images: model(images), warmup=1)
        inputs = [np.full((1, 1, 8, 8), value, np.float32) for value in range(4)]
        results = [predict(x) for x in inputs]
        assert results[3] is results[2]
        np.testing.assert_array_equal(results[3], model(inputs[3]))
        np.testing.assert_array_equal(results[0], model(inputs[0]))


@pytest.mark.slow
@simulated
def test_one_image_takes_three_launches():
    """LeNet's logits are those of the NumPy backend; a block is a kernel, and all fully connected layers are one."""
    images = np.random.default_rng(0).standard_normal((3, 1, 1, 32, 32)).astype(np.float32)
    with gpuconv.no_grad():
        with gpuconv.use_backend("cuda"):
            model = lenet().eval()
            predict = gpuconv.capture(lambda image: model(image), warmup=1)
            ours = [predict(Tensor(image)).numpy().copy() for image in images]
        with gpuconv.use_backend("numpy"):
            theirs = [lenet().eval()(image) for image in images]
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    names = [launch.kernel.fn.__name__ for launch, _ in predict._graph.launches]
    assert names == ["conv2d_relu_max_pool2d", "conv2d_relu_max_pool2d", "linear_chain"]


@simulated
def test_the_python_code_runs_for_the_warmup_and_once_more():
    """After that only the graph is launched; inputs that do not fit into it are refused, and nothing is launched."""
    calls = []

    def step(x):
        calls.append(x)
        return F.relu(x)

    with gpuconv.use_backend("cuda"):
        captured = gpuconv.capture(step, warmup=3)
        x = np.array([-1, 2], np.float32)
        for count in (1, 2, 3, 4, 4, 4):
            result = captured(x * count)
            assert len(calls) == count
            np.testing.assert_array_equal(result, [0, 2 * count])
        with pytest.raises(
            ValueError, match=r"input 0 was float32 of shape \(2,\) in the first call, and is .* \(3,\)"
        ):
            captured(np.zeros(3, np.float32))
        with pytest.raises(ValueError, match=r"float32 of shape .* is int64"):
            captured(np.zeros(2, np.int64))
        with pytest.raises(ValueError, match="called with 1 inputs, now 2"):
            captured(x, x)
        np.testing.assert_array_equal(captured(x), [0, 2])


@simulated
def test_what_cannot_be_captured_is_told():
    """An error in the captured call says that it is about capturing; the backend goes on working."""
    calls = []

    def step(x):
        calls.append(x)
        if len(calls) > 1:
            raise OSError("operation not permitted when stream is capturing")
        return F.relu(x)

    x = np.ones(2, np.float32)
    with gpuconv.use_backend("cuda"):
        captured = gpuconv.capture(step, warmup=1)
        captured(x)
        with pytest.raises(
            RuntimeError, match=r"cannot be captured: operation not permitted.*must not wait for the device"
        ):
            captured(x)
        np.testing.assert_array_equal(F.relu(-x), 0)
        parameter = Tensor(np.ones((2, 3), np.float32).T, requires_grad=True)
        parameter.grad = Tensor(np.ones((3, 2), np.float32))
        optimizer = optim.SGD([parameter], lr=1)
        step = gpuconv.capture(optimizer.step, warmup=1)
        step()
        with pytest.raises(RuntimeError, match="takes contiguous arrays"):
            step()


def test_wrong_arguments(backend):
    with pytest.raises(ValueError, match="capture: warmup must be at least 1, got 0"):
        gpuconv.capture(lambda: None, warmup=0)
