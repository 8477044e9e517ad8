"""Optimizers: PyTorch's formulas, state that can be saved, refusals."""

import json

import numpy as np
import pytest

import gpuconv
from gpuconv import Tensor, nn, optim

OPTIMIZERS = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.05}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.05}),
    ("SGD", {"lr": 0.1, "weight_decay": 0.05}),
    ("Adam", {"lr": 0.1}),
    ("Adam", {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.05}),
    ("AdamW", {"lr": 0.1, "weight_decay": 0.05}),
    ("AdamW", {"lr": 0.1, "amsgrad": True, "weight_decay": 0.05}),
    ("Adam", {"lr": 0.1, "amsgrad": True, "weight_decay": 0.05}),
    ("RMSprop", {"lr": 0.1}),
    ("RMSprop", {"lr": 0.1, "alpha": 0.9, "momentum": 0.9, "centered": True, "weight_decay": 0.05}),
    ("RMSprop", {"lr": 0.1, "centered": True}),
    ("Adagrad", {"lr": 0.1}),
    ("Adagrad", {"lr": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.5, "weight_decay": 0.05}),
    ("Adadelta", {"lr": 0.5}),
    ("Adadelta", {"lr": 0.5, "rho": 0.8, "weight_decay": 0.05}),
    ("Adamax", {"lr": 0.1, "weight_decay": 0.05}),
    ("NAdam", {"lr": 0.1, "weight_decay": 0.05}),
    ("NAdam", {"lr": 0.1, "weight_decay": 0.05, "momentum_decay": 0.1, "decoupled_weight_decay": True}),
    ("RAdam", {"lr": 0.1}),
    ("RAdam", {"lr": 0.1, "weight_decay": 0.05, "betas": (0.8, 0.9), "decoupled_weight_decay": True}),
]


def run(optimizer, param, gradients):
    for gradient in gradients:
        param.grad = Tensor(gradient)
        optimizer.step()


@pytest.mark.parametrize(("name", "options"), OPTIMIZERS, ids=lambda v: v if isinstance(v, str) else "-".join(v))
def test_steps_equal_torch(name, options):
    """Nine steps with the same gradients end at torch's parameters, every option included."""
    torch = pytest.importorskip("torch", reason="pip install torch to compare with PyTorch")
    rng = np.random.default_rng(0)
    start, gradients = rng.standard_normal((3, 4)), rng.standard_normal((9, 3, 4))
    ours = Tensor(start.copy(), requires_grad=True)
    run(getattr(optim, name)([ours], **options), ours, gradients)
    theirs = torch.tensor(start, requires_grad=True)
    optimizer = getattr(torch.optim, name)([theirs], **options)
    for gradient in gradients:
        theirs.grad = torch.tensor(gradient)
        optimizer.step()
    # PyTorch keeps NAdam's product of momenta in float32.
    rtol = 1e-6 if name == "NAdam" else 1e-12
    np.testing.assert_allclose(ours.numpy(), theirs.detach().numpy(), rtol=rtol, atol=1e-14)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(("half", "allowed"), [("float16", 2e-3), ("bfloat16", 1.6e-2)])
def test_steps_of_half_types(half, allowed):
    """State has the parameter's type; nine steps end where torch's and float32's do, but for some roundings."""
    torch = pytest.importorskip("torch", reason="pip install torch to compare with PyTorch")
    pytest.importorskip("ml_dtypes", reason="NumPy has no bfloat16; pip install ml_dtypes")
    dtype, rng = gpuconv.dtypes.element_type(half), np.random.default_rng(0)
    start, gradients = rng.standard_normal((3, 4)).astype(dtype), rng.standard_normal((9, 3, 4)).astype(dtype)
    for name, options in OPTIMIZERS:
        ended = []
        for kind in (dtype, np.float32):
            param = Tensor(start.astype(kind), requires_grad=True)
            optimizer = getattr(optim, name)([param], **options)
            run(optimizer, param, gradients.astype(kind))
            assert {array.dtype for slots in optimizer._arrays for array in slots.values()} <= {np.dtype(kind)}
            ended.append(param.numpy())
        assert ended[0].dtype == dtype
        theirs = torch.tensor(start.astype(np.float32)).to(getattr(torch, half)).requires_grad_()
        optimizer = getattr(torch.optim, name)([theirs], **options)
        for gradient in gradients:
            theirs.grad = torch.tensor(gradient.astype(np.float32)).to(theirs.dtype)
            optimizer.step()
        found = ended[0].astype(np.float32)
        np.testing.assert_allclose(found, ended[1], rtol=0, atol=2 * allowed, err_msg=f"{name} {options}")
        np.testing.assert_allclose(
            found, theirs.detach().float(), rtol=0, atol=4 * allowed, err_msg=f"{name} {options}"
        )


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


LATE = {
    "sgd": ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}),
    "nesterov": ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "adam": ("Adam", {"lr": 0.1}),
    "adamw": ("AdamW", {"lr": 0.1}),
}


@pytest.mark.parametrize("kind", LATE)
def test_a_late_parameter_counts_its_own_steps(every_backend, kind):
    """One whose first gradient comes late, or that has none now and then: as if it had an optimizer of its own."""
    name, options = LATE[kind]
    rng = np.random.default_rng(0)
    turns = [(0,), (0, 1), (1,), (0, 1, 2), (0, 1, 2), (2,), (0, 1, 2)]
    together, alone = ([Tensor(np.ones((2, 3), np.float32), True) for _ in range(3)] for _ in range(2))
    optimizer = getattr(optim, name)(together, **options)
    own = [getattr(optim, name)([parameter], **options) for parameter in alone]
    for step, turn in enumerate(turns):
        if step == 4:  # what counts is in the state
            state, optimizer = optimizer.state_dict(), getattr(optim, name)(together, **options)
            optimizer.load_state_dict(state)
        optimizer.zero_grad()
        for number in turn:
            grad = rng.standard_normal((2, 3)).astype(np.float32)
            together[number].grad, alone[number].grad = Tensor(grad), Tensor(grad.copy())
            own[number].step()
        optimizer.step()
        for one, other in zip(together, alone, strict=True):
            np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-6)
    assert optimizer.steps == len(turns)


@pytest.mark.parametrize("kind", LATE)
def test_late_parameters_are_pytorchs(backend, kind):
    """Those of PyTorch's optimizers, whose first step of a parameter is that of its first gradient."""
    torch = pytest.importorskip("torch", reason="PyTorch's optimizers are the judge")
    name, options = LATE[kind]
    rng = np.random.default_rng(0)
    ours, theirs = Tensor(np.ones((2, 3)), True), torch.ones((2, 3), dtype=torch.float64, requires_grad=True)
    first = Tensor(np.ones(1), True), torch.ones(1, dtype=torch.float64, requires_grad=True)
    own = getattr(optim, name)([first[0], ours], **options)
    other = getattr(torch.optim, name)([first[1], theirs], **options)
    for step in range(6):
        first[0].grad, first[1].grad = Tensor(np.ones(1)), torch.ones(1, dtype=torch.float64)
        if step >= 2:
            grad = rng.standard_normal((2, 3))
            ours.grad, theirs.grad = Tensor(grad), torch.tensor(grad)
        own.step()
        other.step()
    np.testing.assert_allclose(ours.numpy(), theirs.detach().numpy(), rtol=1e-12)


def test_refusals():
    """Empty or used-up params, a lone Tensor, results instead of leaves, rates below zero or NaN: each is named."""
    w = Tensor(np.ones(2), requires_grad=True)
    with pytest.raises(ValueError, match="params is empty"):
        optim.SGD(iter(()))
    with pytest.raises(TypeError, match="put it in a list"):
        optim.SGD(w)
    with pytest.raises(TypeError, match="leaf Tensors"):
        optim.SGD([w * 2])
    with pytest.raises(TypeError, match=r"an iterable of Tensors, got Linear; pass its .parameters\(\)"):
        optim.SGD(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="an iterable of Tensors, got None"):
        optim.SGD(None)
    with pytest.raises(TypeError, match="lr must be a number, got True"):
        optim.SGD([w], True)
    for rate in (-1, float("nan")):
        with pytest.raises(ValueError, match="lr must be at least 0"):
            optim.Adam([w], lr=rate)
    with pytest.raises(ValueError, match="betas"):
        optim.Adam([w], betas=(0.9, 1.0))
    with pytest.raises(ValueError, match="nesterov"):
        optim.SGD([w], nesterov=True)
    with pytest.raises(ValueError, match=r"not that of a SGD of 1 parameters"):
        optim.SGD([w]).load_state_dict(optim.Adam([w]).state_dict())


# -- groups of parameters --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["SGD", "Adam", "RMSprop"])
def test_groups_have_settings_of_their_own(every_backend, kind):
    """Each parameter moves as in an optimizer of its own with its group's settings, also when these are changed."""
    rng = np.random.default_rng(0)
    settings = [{"lr": 0.1}, {"lr": 0.2, "weight_decay": 0.1}, {}]
    together, alone = ([Tensor(np.ones((2, 3), np.float32), True) for _ in range(3)] for _ in range(2))
    groups = [{"params": [parameter], **own} for parameter, own in zip(together[:2], settings[:2], strict=True)]
    optimizer = getattr(optim, kind)(groups, lr=0.05)
    optimizer.add_param_group({"params": together[2]})
    own = [getattr(optim, kind)([parameter], **{"lr": 0.05, **s}) for parameter, s in zip(alone, settings, strict=True)]
    for step in range(6):
        if step == 3:
            for group in optimizer.param_groups:
                group["lr"] *= 0.1
            for one in own:
                one.lr *= 0.1
        if step == 4:
            state, optimizer = optimizer.state_dict(), getattr(optim, kind)(groups, lr=1.0)
            optimizer.add_param_group({"params": together[2]})
            optimizer.load_state_dict(
                json.loads(json.dumps(state, default=lambda array: array.tolist()), object_hook=_arrays)
            )
        for one, other in zip(together, alone, strict=True):
            grad = rng.standard_normal((2, 3)).astype(np.float32)
            one.grad, other.grad = Tensor(grad), Tensor(grad.copy())
        for one in (optimizer, *own):
            one.step()
        for one, other in zip(together, alone, strict=True):
            np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-6)
    assert optimizer.lr == optimizer.param_groups[0]["lr"]
    optimizer.lr = 3
    assert [group["lr"] for group in optimizer.param_groups] == [3, 3, 3]


def _arrays(state):
    return {name: np.array(value, np.float32) if "." in name else value for name, value in state.items()}


def test_a_setting_that_is_turned_on_later(every_backend):
    """Momentum after some steps without: as in an optimizer that begins there."""
    parameters = [Tensor(np.ones(3, np.float32), True) for _ in range(2)]
    optimizers = [optim.SGD([parameters[0]], 0.1), optim.SGD([parameters[1]], 0.1)]
    for step in range(5):
        if step == 2:
            optimizers[0].param_groups[0]["momentum"] = 0.9
            optimizers[1] = optim.SGD([parameters[1]], 0.1, momentum=0.9)
        for parameter, optimizer in zip(parameters, optimizers, strict=True):
            parameter.grad = Tensor(np.full(3, step, np.float32))
            optimizer.step()
        np.testing.assert_array_equal(parameters[0].numpy(), parameters[1].numpy())


def test_what_a_group_cannot_be():
    """A setting that there is not, one with a wrong value, a parameter twice, no dict: nothing is taken in."""
    first, second = (Tensor(np.ones(2), True) for _ in range(2))
    optimizer = optim.SGD([first], 0.1)
    for group, error, words in (
        ({"params": [second], "momentun": 0.9}, TypeError, "'momentun' is no setting; there are lr, momentum,"),
        ({"params": [second], "lr": -1}, ValueError, "lr must be at least 0, got -1"),
        ({"params": [second, first]}, ValueError, r"a parameter of shape \(2,\) is there twice"),
        ([second], TypeError, "a group of parameters must be a dict with params, got list"),
        ({"lr": 1}, TypeError, "must be a dict with params"),
    ):
        with pytest.raises(error, match=words):
            optimizer.add_param_group(group)
    assert (len(optimizer.params), len(optimizer.param_groups)) == (1, 1)
    assert optim.SGD([("weight", first), ("bias", second)]).params == [first, second]
    with pytest.raises(TypeError, match=r"betas must be two numbers, got 0\.9"):
        optim.Adam([first], betas=0.9)


def test_a_closure_and_zero_grad_in_place():
    """step() takes what computes the loss, and gives it back; gradients may be set to 0 where they are."""
    w = Tensor(np.array([3.0]), True)
    optimizer = optim.SGD([w], 0.1)

    def loss():
        optimizer.zero_grad()
        result = (w * w).sum()
        result.backward()
        return result

    assert optimizer.step(loss).item() == 9
    assert w.item() == pytest.approx(3 - 0.1 * 6)
    held = w.grad
    optimizer.zero_grad(set_to_none=False)
    assert w.grad is held
    assert held.item() == 0


# -- what users hand in ----------------------------------------------------------------------------------------------

LAYOUTS = {
    "by columns": np.asfortranarray,
    "strided": lambda array: np.repeat(array, 2, axis=1)[:, ::2],
    "other byte order": lambda array: array.astype(array.dtype.newbyteorder()),
}
MAKERS = {"sgd": lambda p: optim.SGD(p, 0.1, momentum=0.9), "adam": lambda p: optim.Adam(p, 0.1)}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", MAKERS)
def test_parameters_of_any_layout(every_backend, layout, kind):
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


def test_a_gradient_that_is_set(every_backend):
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
def test_exchanged_arrays_are_refused(every_backend, kind, exchange):
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


@pytest.mark.parametrize("kind", MAKERS)
def test_all_parameters_in_one_launch(backend, kind):
    """Sizes from 0 to more than a thread takes: each element once, to the bit as if the parameter were alone."""
    rng, sizes = np.random.default_rng(0), [1, 70_001, 0, 3, 500_000, 5]
    arrays = [rng.standard_normal(size).astype(np.float32) for size in sizes]
    together, alone = ([Tensor(array.copy(), True) for array in arrays] for _ in range(2))
    optimizers = [MAKERS[kind](together), *(MAKERS[kind]([parameter]) for parameter in alone)]
    for step in range(3):
        if step == 2:  # an array is exchanged, and the state with it
            together[1].data, together[3].data = together[1].data.copy(), together[3].data.copy()
        for one, other in zip(together, alone, strict=True):
            grad = rng.standard_normal(one.shape).astype(np.float32)
            one.grad, other.grad = Tensor(grad), Tensor(grad)
        for optimizer in optimizers:
            optimizer.step()
        for one, other in zip(together, alone, strict=True):
            np.testing.assert_array_equal(one.numpy(), other.numpy())


def test_frozen_parameters_stay(every_backend):
    """An optimizer of all parameters of a network takes those that require no grad, too, and leaves them alone."""
    frozen, learned = Tensor(np.ones(2, np.float32)), Tensor(np.ones(2, np.float32), True)
    optimizer = optim.SGD([frozen, learned], 0.5, momentum=0.9)
    (frozen * learned).sum().backward()
    optimizer.step()
    np.testing.assert_array_equal(frozen.numpy(), 1)
    np.testing.assert_array_equal(learned.numpy(), 0.5)
    with pytest.raises(TypeError, match="params must be leaf Tensors of floats"):
        optim.SGD([learned * 2])
