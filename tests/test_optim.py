"""Optimizers: PyTorch's formulas, state that can be saved, refusals."""

import numpy as np
import pytest

from gpuconv import Tensor, optim

OPTIMIZERS = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.05}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.05}),
    ("SGD", {"lr": 0.1, "weight_decay": 0.05}),
    ("Adam", {"lr": 0.1}),
    ("Adam", {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.05}),
    ("AdamW", {"lr": 0.1, "weight_decay": 0.05}),
]


def run(optimizer, param, gradients):
    for gradient in gradients:
        param.grad = Tensor(gradient)
        optimizer.step()


@pytest.mark.parametrize(("name", "options"), OPTIMIZERS, ids=lambda v: v if isinstance(v, str) else "-".join(v))
def test_steps_equal_torch(name, options):
    """Five steps with the same gradients end at torch's parameters, every option included."""
    torch = pytest.importorskip("torch", reason="pip install torch to compare with PyTorch")
    rng = np.random.default_rng(0)
    start, gradients = rng.standard_normal((3, 4)), rng.standard_normal((5, 3, 4))
    ours = Tensor(start.copy(), requires_grad=True)
    run(getattr(optim, name)([ours], **options), ours, gradients)
    theirs = torch.tensor(start, requires_grad=True)
    optimizer = getattr(torch.optim, name)([theirs], **options)
    for gradient in gradients:
        theirs.grad = torch.tensor(gradient)
        optimizer.step()
    np.testing.assert_allclose(ours.numpy(), theirs.detach().numpy(), rtol=1e-12, atol=1e-14)


def test_formulas_by_hand():
    """One parameter, two steps, worked out on paper: momentum 0.5, then Adam's first step of size lr."""
    w = Tensor(np.array([1.0]), requires_grad=True)
    run(optim.SGD([w], lr=0.1, momentum=0.5), w, np.array([[2.0], [2.0]]))
    assert w.item() == pytest.approx(1 - 0.1 * 2 - 0.1 * (0.5 * 2 + 2))
    w = Tensor(np.array([1.0]), requires_grad=True)
    run(optim.Adam([w], lr=0.1, eps=0.0), w, np.array([[123.0]]))
    assert w.item() == pytest.approx(0.9)


@pytest.mark.parametrize(("name", "options"), OPTIMIZERS, ids=lambda v: v if isinstance(v, str) else "-".join(v))
def test_state_restores_the_very_next_step(name, options):
    """An optimizer that takes over another's state goes on bit for bit as that one does."""
    rng = np.random.default_rng(0)
    gradients = rng.standard_normal((6, 3)).astype(np.float32)
    a = Tensor(np.ones(3, np.float32), requires_grad=True)
    first = getattr(optim, name)([a], **options)
    run(first, a, gradients[:3])
    b = Tensor(a.numpy().copy(), requires_grad=True)
    second = getattr(optim, name)([b], **options)
    second.load_state_dict(first.state_dict())
    run(first, a, gradients[3:])
    run(second, b, gradients[3:])
    np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_parameters_without_gradient_stay():
    """A parameter that took no part in the loss is not moved, not even by weight decay."""
    used, unused = (Tensor(np.ones(2), requires_grad=True) for _ in range(2))
    optimizer = optim.SGD([used, unused], lr=0.1, momentum=0.9, weight_decay=0.5)
    used.grad = Tensor(np.ones(2))
    optimizer.step()
    np.testing.assert_array_equal(unused.numpy(), 1)
    assert (used.numpy() < 1).all()
    optimizer.zero_grad()
    assert used.grad is None


def test_refusals():
    """Empty or used-up params, a lone Tensor, results instead of leaves, rates below zero or NaN: each is named."""
    w = Tensor(np.ones(2), requires_grad=True)
    with pytest.raises(ValueError, match="params is empty"):
        optim.SGD(iter(()))
    with pytest.raises(TypeError, match="put it in a list"):
        optim.SGD(w)
    with pytest.raises(TypeError, match="leaf Tensors"):
        optim.SGD([w * 2])
    for rate in (-1, float("nan")):
        with pytest.raises(ValueError, match="lr must be at least 0"):
            optim.Adam([w], lr=rate)
    with pytest.raises(ValueError, match="betas"):
        optim.Adam([w], betas=(0.9, 1.0))
    with pytest.raises(ValueError, match="nesterov"):
        optim.SGD([w], nesterov=True)
    with pytest.raises(ValueError, match=r"not that of a SGD of 1 parameters"):
        optim.SGD([w]).load_state_dict(optim.Adam([w]).state_dict())


# -- what users hand in ----------------------------------------------------------------------------------------------

LAYOUTS = {
    "by columns": np.asfortranarray,
    "strided": lambda array: np.repeat(array, 2, axis=1)[:, ::2],
    "other byte order": lambda array: array.astype(array.dtype.newbyteorder()),
}
MAKERS = {"sgd": lambda p: optim.SGD(p, 0.1, momentum=0.9), "adam": lambda p: optim.Adam(p, 0.1)}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", MAKERS)
def test_parameters_of_any_layout(backend, layout, kind):
    """Updated in place, to what a plain array becomes."""
    values = np.arange(1, 7, dtype=np.float32).reshape(2, 3)
    odd, plain = Tensor(LAYOUTS[layout](values.copy()), True), Tensor(values.copy(), True)
    memory = odd.data
    for parameter in (odd, plain):
        optimizer = MAKERS[kind]([parameter])
        for _ in range(3):
            optimizer.zero_grad()
            (parameter * parameter).sum().backward()
            optimizer.step()
    assert odd.data is memory
    np.testing.assert_allclose(memory, plain.data, rtol=1e-6)


def test_a_gradient_that_is_set(backend):
    """A Tensor of the same shape and type; an array, another shape, another type are refused."""
    parameter = Tensor(np.ones(3, np.float32), True)
    for value, error, words in (
        (np.ones(3, np.float32), TypeError, "grad must be a Tensor or None, got ndarray"),
        (Tensor(np.ones(2, np.float32)), ValueError, r"grad must have the Tensor's shape \(3,\), got \(2,\)"),
        (Tensor(np.ones(3)), TypeError, "grad must have the Tensor's element type float32, got float64"),
    ):
        with pytest.raises(error, match=words):
            parameter.grad = value
    parameter.grad = Tensor(np.full(3, 2, np.float32))
    optim.SGD([parameter], 0.5).step()
    np.testing.assert_array_equal(parameter.numpy(), 0)


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("exchange", ["larger", "smaller", "wider", "gradient"])
def test_exchanged_arrays_are_refused(backend, kind, exchange):
    """By the next step, before anything is written: no count, no other parameter, no byte beyond an array."""
    first, second = (Tensor(np.ones((2, 3), np.float32), True) for _ in range(2))
    optimizer = MAKERS[kind]([first, second])
    for parameter in (first, second):
        parameter.grad = Tensor(np.ones((2, 3), np.float32))
    optimizer.step()
    before = first.numpy().copy()
    if exchange == "gradient":
        second.grad.data = np.ones((2, 1), np.float32)
    else:
        second.data = {
            "larger": np.ones((5, 7), np.float32),
            "smaller": np.ones(1, np.float32),
            "wider": np.ones((2, 3)),
        }[exchange]
    with pytest.raises(ValueError, match=r"parameter 1 is .*: an optimizer keeps to the arrays that it was made for"):
        optimizer.step()
    assert optimizer.steps == 1
    np.testing.assert_array_equal(first.numpy(), before)


def test_a_parameter_that_cannot_be_written_is_named(backend):
    """And no other one is updated, nor the step counted."""
    params = [Tensor(np.ones(2, np.float32), True), Tensor(np.broadcast_to(np.float32(1), 3), True)]
    optimizer = optim.SGD(params, lr=0.1, momentum=0.9)
    for param in params:
        param.grad = Tensor(np.ones(param.shape, np.float32))
    with pytest.raises(ValueError, match="SGD: the array of parameter 1 is read-only"):
        optimizer.step()
    np.testing.assert_array_equal(params[0].numpy(), np.ones(2))
    assert optimizer.steps == 0


def test_numbers_that_are_none():
    """A learning rate in quotes is told as such."""
    parameter = Tensor(np.ones(3, np.float32), True)
    for options, words in (
        ({"lr": "0.1"}, "lr must be a number, got '0.1'"),
        ({"momentum": None}, "momentum must be a"),
    ):
        with pytest.raises(TypeError, match=f"SGD: {words}"):
            optim.SGD([parameter], **options)


def test_frozen_parameters_stay(backend):
    """An optimizer of all parameters of a network takes those that require no grad, too, and leaves them alone."""
    frozen, learned = Tensor(np.ones(2, np.float32)), Tensor(np.ones(2, np.float32), True)
    optimizer = optim.SGD([frozen, learned], 0.5, momentum=0.9)
    (frozen * learned).sum().backward()
    optimizer.step()
    np.testing.assert_array_equal(frozen.numpy(), 1)
    np.testing.assert_array_equal(learned.numpy(), 0.5)
    with pytest.raises(TypeError, match="params must be leaf Tensors of floats"):
        optim.SGD([learned * 2])
