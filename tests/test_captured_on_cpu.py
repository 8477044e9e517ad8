"""Captured steps on the CPU backends: the same numbers as the step itself, to the last bit, and what is refused."""

import copy
import cProfile
import pstats

import numpy as np
import pytest
from support.device_functions import NOT_CAPTURED
from support.lenet_training import step_of
from support.operation_cases import FAMILIES

import gpuconv
from gpuconv import Tensor, autograd, models, nn, optim
from gpuconv import functional as F
from gpuconv.random import default_generator


def lenet():
    return models.LeNet5(), (1, 32, 32)


def block_with_state():
    """Batch normalisation changes running statistics, dropout draws random numbers, the addition joins two branches."""

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3))

        def forward(self, x):
            return F.relu(x + self.inner(x))

    layers = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), Residual(), nn.MaxPool2d(2), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(8 * 36, 10)), (3, 12, 12)


OPTIMIZERS = {
    "adam": lambda parameters: optim.Adam(parameters, lr=1e-3),
    "momentum": lambda parameters: optim.SGD(parameters, lr=0.02, momentum=0.9, dampening=0.1, weight_decay=1e-4),
    "rmsprop": lambda parameters: optim.RMSprop(parameters, lr=1e-3),
}


def trained(make, optimizer, captured, *, steps, batch=4):
    """Losses, parameters, running statistics and optimizer's state after some steps with a schedule."""
    gpuconv.manual_seed(0)
    model, shape = make()
    update = OPTIMIZERS[optimizer](model.parameters())
    update.schedule = lambda done: 1e-2 / (1 + done)
    step = step_of(model, update)
    run = gpuconv.capture(step) if captured else step
    rng, losses = np.random.default_rng(0), []
    for _ in range(steps):
        images = rng.standard_normal((batch, *shape)).astype(np.float32)
        losses.append(run(Tensor(images), rng.integers(0, 10, batch)).item())
    assert not captured or run.captured
    state = {**model.state_dict(), **update.state_dict()}
    return losses, {name: value for name, value in state.items() if name != "groups"}, default_generator().random(3)


@pytest.mark.parametrize(
    ("make", "optimizer", "steps"),
    [
        (lenet, "adam", 20),
        (block_with_state, "momentum", 20),
        (block_with_state, "rmsprop", 6),
        pytest.param(lenet, "momentum", 200, marks=pytest.mark.thorough),
        pytest.param(block_with_state, "adam", 200, marks=pytest.mark.thorough),
    ],
)
def test_captured_training_is_training(backend, make, optimizer, steps):
    """To the last bit: losses, parameters, statistics, moments, and the random numbers that come next."""
    losses, state, numbers = trained(make, optimizer, True, steps=steps)
    expected, their_state, their_numbers = trained(make, optimizer, False, steps=steps)
    assert losses == expected
    assert state.keys() == their_state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(value, their_state[name], err_msg=name)
    np.testing.assert_array_equal(numbers, their_numbers)


KINDS = [name for name, one in vars(optim).items() if isinstance(one, type) and optim.Optimizer in one.__mro__[1:]]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_optimizer_is_repeated(backend, kind, dtype):
    """With a scheduler that is stepped between the calls."""

    def run(captured):
        gpuconv.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).to("cpu", dtype)
        update = getattr(optim, kind)(model.parameters())
        scheduler = optim.lr_scheduler.StepLR(update, 2, 0.5)
        step = step_of(model, update)
        step = gpuconv.capture(step, warmup=1) if captured else step
        rng, found = np.random.default_rng(0), []
        for _ in range(7):
            x = Tensor(rng.standard_normal((5, 6)).astype(np.float32)).to(dtype)
            found.append(step(x, rng.integers(0, 3, 5)).float().item())
            scheduler.step()
        return [*found, update.steps, *(parameter.float().numpy().tolist() for parameter in model.parameters())]

    assert run(True) == run(False)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_operation_is_repeated(backend, family):
    """Forward and backward of each call of `operation_cases.py` in a captured step that gets other values then."""
    wrong = []
    for case in FAMILIES[family]:
        if case.name not in NOT_CAPTURED:
            try:
                with np.errstate(all="ignore"):
                    _compare(case)
            except Exception as error:
                wrong.append(f"{case}: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
    assert not wrong, "\n".join(wrong)


def _compare(case):
    step, first, second, wanted = case.step()
    captured = gpuconv.capture(step, warmup=1)
    for values in (first, first, second, first, second):
        ours = captured(*map(Tensor, values, wanted))
    assert captured.captured
    theirs = step(*map(Tensor, second, wanted))
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        np.testing.assert_array_equal(one.numpy(), other.numpy())


# -- what a repetition costs -----------------------------------------------------------------------------------------


def test_steps_of_lenet_are_one_compiled_call():
    """Nothing of Python lies between its kernels: six of them for an image, 28 for a step with Adam."""
    rng = np.random.default_rng(0)
    images, labels = rng.standard_normal((1, 1, 32, 32)).astype(np.float32), np.array([3])
    with gpuconv.use_backend("numba"):
        model = models.LeNet5()
        train = gpuconv.capture(step_of(model, optim.Adam(model.parameters())))
        with gpuconv.no_grad():
            predict = gpuconv.capture(lambda x: model(x))
            for _ in range(4):
                predict(images)
        for _ in range(4):
            train(Tensor(images), labels)
        assert (len(predict._graph._program), len(predict._graph._calls)) == (1, 6)
        assert (len(train._graph._program), len(train._graph._calls)) == (1, 28)
        with cProfile.Profile() as profile:
            predict(images)
        assert pstats.Stats(profile).total_calls < 40


# -- what else is repeated -------------------------------------------------------------------------------------------


def run_both(step, inputs, warmup=1):
    """Results of a step and of its capture for the same inputs, each beginning with a copy of ``step``'s state."""
    captured = gpuconv.capture(copy.deepcopy(step), warmup=warmup)
    return [[np.array(Tensor(run(x)).numpy()) for x in inputs] for run in (copy.deepcopy(step), captured)]


class Accumulating:
    """Tensors made in the step, changed in place there; and one that is kept from call to call, written in place."""

    def __init__(self):
        self.kept = Tensor(np.zeros(3, np.float32))

    def __call__(self, x):
        x = Tensor(x) if not isinstance(x, Tensor) else x
        with gpuconv.no_grad():
            total = gpuconv.zeros(3)
            for _ in range(2):
                total += x
            total[0] = x[1]
            gpuconv.full_like(total, 2.0).add_(total)
            self.kept += total
            return self.kept + gpuconv.ones(3) * total


def test_in_place(backend):
    """What the step makes begins anew in each repetition; what it keeps goes on."""
    theirs, ours = run_both(Accumulating(), [np.full(3, n, np.float32) for n in range(1, 6)])
    np.testing.assert_array_equal(ours, theirs)


def test_random_numbers_are_drawn_anew(backend):
    def draws(captured):
        generator = np.random.default_rng(3)

        def step(x):
            noise = gpuconv.randn(4, generator=generator) + gpuconv.rand(4, generator=generator)
            return F.dropout(x, 0.5, generator=generator) + noise + F.alpha_dropout(x, 0.5, True, generator=generator)

        run = gpuconv.capture(step, warmup=1) if captured else step
        return [run(Tensor(np.ones(4, np.float32))).numpy().copy() for _ in range(6)]

    theirs, ours = draws(False), draws(True)
    np.testing.assert_array_equal(ours, theirs)
    assert len({one.tobytes() for one in ours}) == 6


def test_gradients_add_up_and_are_clipped(backend):
    def run(captured):
        leaf = Tensor(np.arange(1, 4, dtype=np.float32), requires_grad=True)

        def step(x):
            (leaf * leaf * x).sum().backward()
            nn.utils.clip_grad_norm_([leaf], 5.0)

        go = gpuconv.capture(step, warmup=1) if captured else step
        for number in range(6):
            go(Tensor(np.full(3, number, np.float32)))
        return leaf.grad.numpy()

    np.testing.assert_array_equal(run(True), run(False))


def test_a_wrong_label_is_refused_in_each_repetition(backend):
    """As in the step itself: before the update, with the label's name; the next call is a whole step."""
    gpuconv.manual_seed(0)
    model, shape = lenet()
    optimizer = optim.Adam(model.parameters())
    step = gpuconv.capture(step_of(model, optimizer))
    images = Tensor(np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32))
    for _ in range(5):
        step(images, np.array([1, 2]))
    before = [parameter.numpy().copy() for parameter in model.parameters()]
    with pytest.raises(ValueError, match=r"cross_entropy: target\[1\] is 10, but input has 10 classes"):
        step(images, np.array([1, 10]))
    assert optimizer.steps == 5
    for parameter, values in zip(model.parameters(), before, strict=True):
        np.testing.assert_array_equal(parameter.numpy(), values)
    step(images, np.array([1, 9]))
    assert optimizer.steps == 6


# -- what is refused -------------------------------------------------------------------------------------------------


def network():
    gpuconv.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    return model, optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


BATCH = np.random.default_rng(0).standard_normal((5, 2, 3)).astype(np.float32), np.array([0, 1, 2, 1, 0])


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        (lambda loss, model: float(loss), RuntimeError, "reads a Tensor's values on the host.*must not wait .*or read"),
        (lambda loss, model: model[1].weight.numpy(), RuntimeError, "reads a Tensor's values on the host"),
        (lambda loss, model: np.asarray(loss) + 1, RuntimeError, "reads a Tensor's values on the host"),
        (lambda loss, model: 1 / 0, RuntimeError, "division by zero"),
        (lambda loss, model: (_ for _ in ()).throw(KeyboardInterrupt), KeyboardInterrupt, None),
    ],
)
def test_a_capture_that_fails_changes_nothing(backend, fault, kind, words):
    """Though the step has run to its end: parameters, moments, gradients, counts are as before; the next call goes."""
    model, optimizer = network()
    plain, now = step_of(model, optimizer), {"fault": False}

    def step(x, labels):
        loss = plain(x, labels)
        if now["fault"]:
            fault(loss, model)
        return loss

    captured = gpuconv.capture(step, warmup=1)
    captured(Tensor(BATCH[0]), BATCH[1])
    state, memory = model.state_dict(), optimizer.state_dict()
    grads = [parameter.grad for parameter in model.parameters()]
    now["fault"] = True
    with pytest.raises(kind, match=words):
        captured(Tensor(BATCH[0]), BATCH[1])
    now["fault"] = False
    assert optimizer.steps == 1
    assert all(p.grad is grad for p, grad in zip(model.parameters(), grads, strict=True))
    for before, after in ((state, model.state_dict()), (memory, optimizer.state_dict())):
        for name in before:
            np.testing.assert_array_equal(before[name], after[name])
    losses = [captured(Tensor(BATCH[0]), BATCH[1]).item() for _ in range(4)]
    model, optimizer = network()
    plain = step_of(model, optimizer)
    assert losses == [plain(Tensor(BATCH[0]), BATCH[1]).item() for _ in range(5)][1:]


def test_what_numpy_computes_is_found_out(backend):
    """By the comparison of the first repetition with the step, which then leaves everything as it was."""
    model, optimizer = network()
    plain = step_of(model, optimizer)

    def step(x, labels):
        loss = plain(x, labels)
        model[1].bias.data[...] *= 0.5  # not an operation of gpuconv
        return loss

    captured = gpuconv.capture(step, warmup=1)
    captured(Tensor(BATCH[0]), BATCH[1])
    captured(Tensor(BATCH[0]), BATCH[1])
    state = model.state_dict()
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"gives other values than the step: .* without gpuconv's operations"):
            captured(Tensor(BATCH[0]), BATCH[1])
        assert optimizer.steps == 2
        for name, value in model.state_dict().items():
            np.testing.assert_array_equal(value, state[name])
    # Of a result, at once.
    for result in (np.ones(3), 1.5, {"loss": Tensor(np.ones(2))}):
        captured = gpuconv.capture(lambda x, result=result: (F.relu(x), result), warmup=1)
        captured(Tensor(BATCH[0]))
        with pytest.raises(RuntimeError, match=r"returns a"):
            captured(Tensor(BATCH[0]))


def test_shapes_that_depend_on_values(backend):
    captured = gpuconv.capture(lambda x: F.relu(x[x > 0]), warmup=1)
    for _ in range(3):
        captured(Tensor(np.array([1, -1, 2], np.float32)))
    with pytest.raises(RuntimeError, match=r"was float32 of shape \(2,\) when .* of shape \(3,\) now; .* fixed shapes"):
        captured(Tensor(np.array([1, 1, 2], np.float32)))


def test_a_function_with_side_effects_runs_again(backend):
    """A user's Function is repeated as a whole, with what it keeps in its context."""
    calls = []

    class Scale(autograd.Function):
        @staticmethod
        def forward(ctx, x):
            calls.append(1)
            ctx.largest = np.abs(x).max()
            return x / ctx.largest

        @staticmethod
        def backward(ctx, grad):
            return grad / ctx.largest

    leaf = Tensor(np.ones(3, np.float32), requires_grad=True)

    def step(x):
        leaf.grad = None
        y = Scale.apply(leaf * x)
        y.sum().backward()
        return y, leaf.grad

    captured = gpuconv.capture(step, warmup=1)
    for number in range(1, 7):
        x = np.array([number, 1, 2 * number], np.float32)
        y, grad = captured(Tensor(x))
        np.testing.assert_array_equal(y.numpy(), x / (2 * number))
        np.testing.assert_array_equal(grad.numpy(), np.float32(1) / np.float32(2 * number) * x)
    assert len(calls) == 8  # the comparison takes two more


@pytest.mark.parametrize("name", ["numba", "numpy"])
def test_repeated_steps(name):
    """As so many calls, of which the first two are the warm-up: a CPU takes them one by one."""
    found = []
    if (reason := gpuconv.backends.available()[name]) is not None:
        pytest.skip(reason)
    for repeats in (False, True):
        leaf = Tensor(np.arange(4, dtype=np.float32), requires_grad=True)
        optimizer = optim.Adam([leaf], lr=0.1)

        def step(leaf=leaf, optimizer=optimizer):
            optimizer.zero_grad()
            loss = (leaf * leaf).sum()
            loss.backward()
            optimizer.step()
            return loss

        with gpuconv.use_backend(name):
            captured = gpuconv.capture(step)
            last = captured.repeat(7) if repeats else [captured() for _ in range(7)][-1]
        assert captured.captured
        found.append((last.item(), leaf.numpy().tolist(), optimizer.steps))
    assert found[0] == found[1]
