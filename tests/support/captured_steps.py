"""Captured steps, and what users do to them: on the stand-in for CuPy, and by `make gpu-test` on a GPU.

Each check takes CuPy, or what stands in for it, and fails by an assertion.
"""

import copy
import gc
import threading

import numpy as np
import pytest
from support.lenet_training import step_of

import gpuconv
from gpuconv import Tensor, nn, optim, tuning
from gpuconv import functional as F


def small_step(device, captured=True, dtype=np.float32, **options):
    """A training step of a small network, captured or not, its model and its optimizer."""
    gpuconv.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)).to(device, dtype)
    if dtype != np.float32:
        model.register_forward_pre_hook(lambda _, inputs: tuple(x.to(dtype) for x in inputs))
    optimizer = optim.SGD(model.parameters(), **{"lr": 0.1, "momentum": 0.9, **options})
    step = step_of(model, optimizer)
    with gpuconv.use_backend(device):
        return gpuconv.capture(step, warmup=1) if captured else step, model, optimizer


def losses_of(step, device, count=6, wish=lambda number: None):
    """Losses of some steps, each on other digits; `wish` is called before each."""
    rng, found = np.random.default_rng(0), []
    with gpuconv.use_backend(device):
        for number in range(count):
            wish(number)
            x = rng.standard_normal((5, 2, 3)).astype(np.float32)
            found.append(step(Tensor(x), rng.integers(0, 3, 5)).item())
    return found


def expected_losses(count=6, **options):
    return losses_of(small_step("numpy", captured=False, **options)[0], "numpy", count)


def litter(cupy):
    """Memory that is allocated, written and let go of: what was freed before is no longer what it was."""
    for size in (1, 100, 1000, 10000):
        cupy.zeros(size, np.float32)


def on_several_streams(cupy, first, second):
    """It is launched on the current stream, behind a launch on another one."""
    step, _, _ = small_step("cuda")
    streams = [first, first, second, second, first, first]

    def on_next(x, labels):
        with streams.pop(0):
            return step(x, labels)

    np.testing.assert_allclose(losses_of(on_next, "cuda"), expected_losses(), rtol=1e-5)


def several_streams(cupy):
    """One after the other, and by a stream that is gone."""
    on_several_streams(cupy, cupy.cuda.Stream(non_blocking=True), cupy.cuda.Stream())
    gc.collect()


def outlives_its_model(cupy):
    """Parameters, momentum and numbers are kept for the graph."""
    step, model, optimizer = small_step("cuda")
    losses = losses_of(step, "cuda", 3)
    del model, optimizer
    gc.collect()
    litter(cupy)
    step._step = None  # nor does it need the step's code
    rest = iter(expected_losses(6)[3:])
    rng = np.random.default_rng(0)
    for number in range(6):
        x, labels = rng.standard_normal((5, 2, 3)).astype(np.float32), rng.integers(0, 3, 5)
        if number >= 3:
            np.testing.assert_allclose(step(Tensor(x), labels).item(), next(rest), rtol=1e-5)
    np.testing.assert_allclose(losses, expected_losses(3), rtol=1e-5)


def parameter_replaced(cupy):
    """By moving the model, or by hand: one line, and no step is counted."""
    for replace in (
        lambda model: model.to("cpu"),
        lambda model: setattr(model[1].weight, "data", model[1].weight.data.copy()),
        lambda model: setattr(model[3].bias, "data", cupy.zeros(3, np.float32)),
    ):
        step, model, optimizer = small_step("cuda")
        losses_of(step, "cuda", 3)
        replace(model)
        with pytest.raises(RuntimeError, match=r"of shape \(.*\) that the step reads was given another array after"):
            losses_of(step, "cuda", 1)
        assert optimizer.steps == 3


def state_loaded(cupy):
    """Parameters and momentum are written in place; the count of the steps and the numbers follow."""
    step, model, optimizer = small_step("cuda", dampening=0.5)
    state, memory = model.state_dict(), optimizer.state_dict()
    before = losses_of(step, "cuda")
    model.load_state_dict(state)
    optimizer.load_state_dict(memory)
    np.testing.assert_array_equal(losses_of(step, "cuda"), before)
    np.testing.assert_allclose(before, expected_losses(dampening=0.5), rtol=1e-5)


def settings_changed(cupy):
    """The learning rate, by hand or by a schedule, and momentum; a term that comes or goes is refused."""

    def run(device, captured):
        step, _, optimizer = small_step(device, captured, weight_decay=0.1)

        def wish(number):
            if number < 4:
                optimizer.lr, optimizer.momentum = 0.1 / (1 + number), 0.9 - 0.1 * number
            optimizer.schedule = None if number < 6 else lambda done: 0.01 * done

        found = losses_of(step, device, 9, wish)
        assert optimizer.lr == 0.08
        return found, step, optimizer

    ours, step, optimizer = run("cuda", True)
    np.testing.assert_allclose(ours, run("numpy", False)[0], rtol=1e-5)
    optimizer.weight_decay = 0.0
    with pytest.raises(RuntimeError, match="captured update has weight_decay on, nesterov off, and the optimizer now"):
        losses_of(step, "cuda", 1)
    assert optimizer.steps == 9


def schedule_of_many_steps(cupy):
    """More than are uploaded at once."""
    step, _, optimizer = small_step("cuda")
    optimizer.schedule = lambda done: 0.1 / (1 + done)
    host_step, _, host = small_step("numpy", captured=False)
    host.schedule = optimizer.schedule
    ours, theirs = losses_of(step, "cuda", 600), losses_of(host_step, "numpy", 600)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def half_types(cupy):
    """Forward, backward and update of parameters of 16 bits are in the graph; it rounds as an eager step does."""
    for dtype, allowed in (("float16", 2e-3), ("bfloat16", 1.6e-2)):
        step, model, optimizer = small_step("cuda", dtype=dtype)
        losses = losses_of(step, "cuda")
        np.testing.assert_allclose(losses, expected_losses(dtype=dtype), rtol=allowed)
        assert len(set(losses)) > 1
        assert {str(p.data.dtype) for p in model.parameters()} == {str(p.grad.data.dtype) for p in model.parameters()}
        assert {str(array.dtype) for slots in optimizer._arrays for array in slots.values()} == {dtype}
        assert all(isinstance(p.data, cupy.ndarray) for p in model.parameters())


def gradients_add_up(cupy):
    """A step that does not forget them: they are added in place."""
    leaf = Tensor(cupy.asarray(np.ones(3, np.float32)), requires_grad=True)

    def step(x):
        (leaf * x).sum().backward()

    with gpuconv.use_backend("cuda"):
        captured = gpuconv.capture(step, warmup=1)
        for number in range(5):
            captured(Tensor(np.full(3, number, np.float32)))
            litter(cupy)
        np.testing.assert_array_equal(leaf.grad.numpy(), np.full(3, 0 + 1 + 2 + 3 + 4))


def kept_between_calls(cupy):
    """In place it is right; by another array each time, which the graph would not see, it is refused."""
    with gpuconv.use_backend("cuda") as backend:
        kept = {"sum": backend.asarray(np.zeros(4, np.float32))}

        def rebinding(x):
            kept["sum"] = (Tensor(kept["sum"]) + x).data
            return Tensor(kept["sum"])

        captured = gpuconv.capture(rebinding, warmup=1)
        captured(Tensor(np.ones(4, np.float32)))
        with pytest.raises(RuntimeError, match=r"it reads 1 array that the call before has made.*in place"):
            captured(Tensor(np.ones(4, np.float32)))
        leaf = Tensor(backend.asarray(np.zeros(4, np.float32)))

        def replacing(x):
            leaf.data = (leaf + x).data

        captured = gpuconv.capture(replacing, warmup=1)
        captured(Tensor(np.ones(4, np.float32)))
        held = leaf.data
        with pytest.raises(RuntimeError, match=r"gives a Tensor of shape \(4,\) another array.*write in place"):
            captured(Tensor(np.ones(4, np.float32)))
        del held
        total = backend.asarray(np.zeros(4, np.float32))

        def in_place(x):
            total[...] = (Tensor(total) + x).data

        captured = gpuconv.capture(in_place, warmup=1)
        for number in range(5):
            captured(Tensor(np.full(4, number, np.float32)))
            litter(cupy)
        np.testing.assert_array_equal(total.get(), 10)


def result_of_the_host(cupy):
    """It would never change: one line says so."""
    for result in (np.ones(3), 1.5, {"loss": Tensor(np.ones(2))}, "done"):
        with gpuconv.use_backend("cuda"):
            captured = gpuconv.capture(lambda x, result=result: (F.relu(x), result), warmup=1)
            captured(Tensor(np.ones(3, np.float32)))
            with pytest.raises(RuntimeError, match=r"cannot be captured: it returns a \w+ on the host"):
                captured(Tensor(np.ones(3, np.float32)))


def failed_capture(cupy, fail, kind, words, repair=lambda: None):
    """`fail` in the step: told, nothing is changed, and the next call captures."""
    plain, model, optimizer = small_step("cuda", captured=False)
    now = {"fault": False}

    def step(x, labels):
        loss = plain(x, labels)
        if now["fault"]:
            fail()
        return loss

    with gpuconv.use_backend("cuda"):
        captured = gpuconv.capture(step, warmup=1)
        rng = np.random.default_rng(0)
        batches = [(rng.standard_normal((5, 2, 3)).astype(np.float32), rng.integers(0, 3, 5)) for _ in range(5)]
        losses = [captured(Tensor(batches[0][0]), batches[0][1]).item()]
        grads = [parameter.grad for parameter in model.parameters()]
        now["fault"] = True
        with pytest.raises(kind, match=words):
            captured(Tensor(batches[1][0]), batches[1][1])
        repair()
        now["fault"] = False
        assert not captured.captured
        assert optimizer.steps == 1
        assert all(p.grad is grad for p, grad in zip(model.parameters(), grads, strict=True))
        assert np.isfinite(model(Tensor(batches[1][0])).numpy()).all()  # the backend goes on
        losses += [captured(Tensor(x), labels).item() for x, labels in batches[1:]]
    np.testing.assert_allclose(losses, expected_losses(5), rtol=1e-5)


def captures_that_fail(cupy):
    """An error in the step, Ctrl-C, a wait for the device."""

    def error():
        raise OSError("disk full")

    def interrupt():
        raise KeyboardInterrupt

    failed_capture(cupy, error, RuntimeError, "disk full")
    failed_capture(cupy, interrupt, KeyboardInterrupt, None)
    here = cupy.zeros(1, np.float32)
    failed_capture(cupy, lambda: float(here[0]), RuntimeError, "apturing|apture")


def shared_parameter(cupy):
    """Training by one, and looking at the result by the other."""
    step, model, _ = small_step("cuda")
    x = np.random.default_rng(1).standard_normal((2, 2, 3)).astype(np.float32)
    with gpuconv.use_backend("cuda"), gpuconv.no_grad():
        predict = gpuconv.capture(lambda images: model(images), warmup=1)
    host_step, host_model, _ = small_step("numpy", captured=False)
    for number in range(5):
        losses_of(step, "cuda", number + 1)
        losses_of(host_step, "numpy", number + 1)
        with gpuconv.use_backend("cuda"), gpuconv.no_grad():
            ours = predict(Tensor(x)).numpy()
        with gpuconv.use_backend("numpy"):
            np.testing.assert_allclose(ours, host_model(Tensor(x)).numpy(), rtol=1e-4, atol=1e-6)


def threads_take_turns(cupy):
    """Each call of several threads is a whole one; a thread that captures does not disturb another's steps."""
    (step, _, optimizer), (other, _, others) = small_step("cuda"), small_step("cuda")
    failures = []

    def work(run):
        try:
            for _ in range(10):
                assert all(np.isfinite(losses_of(run, "cuda", 2)))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(run,)) for run in (step, step, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert (optimizer.steps, others.steps) == (40, 20)


def several_updates_in_a_step(cupy):
    """Each has its own numbers: the count of Adam's corrections, the rates of a schedule, over many launches."""

    def run(device, make):
        weight = np.linspace(0.5, 1.5, 4, dtype=np.float32)
        parameter = Tensor(weight.copy(), requires_grad=True)
        if device == "cuda":
            parameter.data = cupy.asarray(weight)
        optimizer = make(parameter)

        def step(x):
            for _ in range(3):
                optimizer.zero_grad()
                (parameter * x).sum().backward()
                optimizer.step()
            return parameter

        with gpuconv.use_backend(device):
            run = gpuconv.capture(step, warmup=1)
            found = [run(Tensor(np.full(4, 1 + number % 3, np.float32))).numpy().copy() for number in range(180)]
        assert optimizer.steps == 540
        return found

    def adam(parameter):
        return optim.Adam([parameter], 0.1)

    def scheduled(parameter):
        optimizer = optim.SGD([parameter], momentum=0.9)
        optimizer.schedule = lambda done: 1e-3 / (1 + done)
        return optimizer

    for make in (adam, scheduled):
        np.testing.assert_allclose(run("cuda", make), run("numpy", make), rtol=1e-4, atol=1e-5)


def gradients_are_there(cupy):
    """After each repetition, for an optimizer outside of the step, and of an input that requires one."""
    with gpuconv.use_backend("cuda"):
        parameter = Tensor(cupy.asarray(np.ones(3, np.float32)), requires_grad=True)
        optimizer = optim.SGD([parameter], 0.1)

        def backward(x):
            parameter.zero_grad()
            (parameter * x).sum().backward()

        captured = gpuconv.capture(backward, warmup=1)
        for _ in range(5):
            optimizer.zero_grad()
            x = Tensor(np.full(3, 2, np.float32), requires_grad=True)
            captured(x)
            before = parameter.numpy().copy()
            optimizer.step()
            np.testing.assert_allclose(x.grad.numpy(), before, rtol=1e-6)
        np.testing.assert_allclose(parameter.numpy(), 0, atol=1e-6)


def forgotten_gradients(cupy):
    """What a step adds to, or takes for an update, and is not there any more: refused, and nothing is counted."""
    with gpuconv.use_backend("cuda"):
        parameter = Tensor(cupy.asarray(np.ones(3, np.float32)), requires_grad=True)
        optimizer = optim.SGD([parameter], 0.1)
        adding = gpuconv.capture(lambda x: (parameter * x).sum().backward(), warmup=1)
        one = Tensor(np.ones(3, np.float32))
        adding(one), adding(one)
        parameter.zero_grad()
        with pytest.raises(RuntimeError, match="adds to, or takes, a gradient of shape"):
            adding(one)
        parameter.grad = Tensor(cupy.asarray(np.ones(3, np.float32)))
        update = gpuconv.capture(optimizer.step, warmup=1)
        update(), update()
        parameter.grad = Tensor(cupy.asarray(np.ones(3, np.float32)))
        with pytest.raises(RuntimeError, match="adds to, or takes, a gradient of shape"):
            update()
        assert optimizer.steps == 2


def results_that_are_kept(cupy):
    """A step that goes on from its last result is refused, though the caller keeps all results."""
    with gpuconv.use_backend("cuda") as backend:
        state = {"h": Tensor(backend.asarray(np.zeros(2, np.float32)))}

        def step(x):
            state["h"] = state["h"] + x
            return state["h"]

        captured, one = gpuconv.capture(step), Tensor(np.ones(2, np.float32))
        kept = [captured(one), captured(one)]
        with pytest.raises(RuntimeError, match="that the call before has made"):
            captured(one)
        assert [float(h.numpy()[0]) for h in kept] == [1, 2]


def replaced_data_is_restored(cupy):
    """By a capture that is refused: the Tensor has its array, and its gradient."""
    with gpuconv.use_backend("cuda"):
        leaf = Tensor(cupy.asarray(np.ones(2, np.float32)), requires_grad=True)

        def step(x):
            loss = (leaf * x).sum()
            leaf.grad = None
            loss.backward()
            with gpuconv.no_grad():
                leaf.data = (leaf + x).data

        captured, one = gpuconv.capture(step, warmup=1), Tensor(np.ones(2, np.float32))
        captured(one)
        grad = leaf.grad
        with pytest.raises(RuntimeError, match="write in place"):
            captured(one)
        litter(cupy)
        np.testing.assert_array_equal(leaf.numpy(), 2)
        assert leaf.grad is grad


def numbers_in_the_code(cupy):
    """Python's and NumPy's, in forward and backward."""
    with gpuconv.use_backend("cuda"):
        leaf = Tensor(cupy.asarray(np.array([1, 2], np.float32)), requires_grad=True)

        def step(x):
            leaf.zero_grad()
            loss = (((leaf - x) ** 2).mean() * 0.5 + np.float64(1)) / 2
            loss.backward()
            return -loss

        captured = gpuconv.capture(step, warmup=1)
        for number in range(4):
            found = captured(Tensor(np.full(2, number, np.float32))).item()
            litter(cupy)
            assert found == pytest.approx(-(((1 - number) ** 2 + (2 - number) ** 2) / 4 + 1) / 2)
            np.testing.assert_allclose(leaf.grad.numpy(), (np.array([1, 2]) - number) / 4)


def step_in_a_step(cupy):
    """A captured step that another one calls is part of that."""
    inner, model, optimizer = small_step("cuda")
    losses_of(inner, "cuda", 3)
    with gpuconv.use_backend("cuda"):
        outer = gpuconv.capture(lambda x, labels: inner(x, labels), warmup=1)
    found = losses_of(outer, "cuda", 5)
    step, _, _ = small_step("numpy", captured=False)
    losses_of(step, "numpy", 3)
    np.testing.assert_allclose(found, losses_of(step, "numpy", 5), rtol=1e-5)
    assert optimizer.steps == 8
    del model


def schedules_that_end(cupy):
    """One that knows the steps of the run alone; behind them its error comes, and nothing is counted."""
    rates = [0.1, 0.05, 0.02, 0.01]
    step, _, optimizer = small_step("cuda")
    optimizer.schedule = rates.__getitem__
    host_step, _, host = small_step("numpy", captured=False)
    host.schedule = rates.__getitem__
    np.testing.assert_allclose(losses_of(step, "cuda", 4), losses_of(host_step, "numpy", 4), rtol=1e-5)
    for _ in range(2):
        with pytest.raises(IndexError):
            losses_of(step, "cuda", 1)
        assert (optimizer.steps, optimizer.lr) == (4, 0.01)


def first_call_that_fails(cupy):
    """It fixes no shapes."""
    step, _, _ = small_step("cuda")
    with gpuconv.use_backend("cuda"), pytest.raises(ValueError, match="linear"):
        step(Tensor(np.ones((5, 9), np.float32)), np.zeros(5, np.int64))
    np.testing.assert_allclose(losses_of(step, "cuda"), expected_losses(), rtol=1e-5)


def copied_optimizer(cupy):
    """A copy of an optimizer that has stepped goes on by itself."""
    step, model, optimizer = small_step("cuda")
    losses_of(step, "cuda", 3)
    other = copy.deepcopy(optimizer)
    for parameter in other.params:
        parameter.grad = Tensor(cupy.ones(parameter.shape, np.float32))
    other.step()
    assert (optimizer.steps, other.steps) == (3, 4)
    del model


def late_parameters(cupy):
    """Each counts its own steps; two captured steps of one optimizer, in turn, update different ones."""

    def run(device):
        # Of equal sizes, and Adam's numbers change with each step.
        first, second = (Tensor(np.ones(4, np.float32), True) for _ in range(2))
        with gpuconv.use_backend(device) as backend:
            first.data, second.data = backend.asarray(first.data), backend.asarray(second.data)
            optimizer, found = optim.Adam([first, second], lr=0.1), []

            def step_of(*leaves):
                def step(x):
                    optimizer.zero_grad()
                    sum(((leaf - x) * (leaf - x)).sum() for leaf in leaves).backward()
                    optimizer.step()

                return gpuconv.capture(step, warmup=1)

            of_first, of_second, of_both = step_of(first), step_of(second), step_of(first, second)
            for number, step in enumerate([of_first] * 3 + [of_both] * 4 + [of_second] * 3 + [of_first] * 2):
                step(Tensor(np.full(4, number, np.float32)))
                litter(cupy)
                found += [first.numpy().copy(), second.numpy().copy()]
            assert optimizer.steps == 12
            return found

    np.testing.assert_allclose(run("cuda"), run("numpy"), rtol=1e-5)
    step, model, optimizer = small_step("cuda")
    losses_of(step, "cuda", 3)
    optimizer.zero_grad()
    with gpuconv.use_backend("cuda"):
        model[1].weight.sum().backward()
        optimizer.step()
    with pytest.raises(RuntimeError, match="have taken steps without the others since; capture the step again"):
        losses_of(step, "cuda", 1)
    assert optimizer.steps == 4


def changed_before_backward(cupy):
    """A graph that has saved parameters, or a captured step's results, refuses its backward after the next call."""
    step, model, _ = small_step("cuda")
    losses_of(step, "cuda", 3)
    with gpuconv.use_backend("cuda"):
        loss = model(Tensor(cupy.ones((5, 2, 3), np.float32))).sum()
        losses_of(step, "cuda", 1)
        with pytest.raises(RuntimeError, match="which a captured step changed in place since"):
            loss.backward()
        doubled = gpuconv.capture(lambda x: x * 2, warmup=1)
        for _ in range(2):
            result = doubled(Tensor(cupy.ones(3, np.float32)))
        leaf = Tensor(cupy.ones(3, np.float32), True)
        loss = (leaf * result).sum()
        doubled(Tensor(cupy.ones(3, np.float32)))
        with pytest.raises(RuntimeError, match="which the next call of a captured step changed in place since"):
            loss.backward()


def reading_gradients(model, loss, given):
    """Backwards with somebody who reads gradients, or changes them, before the update; each takes a step."""
    first, second = model[0], model[3]

    def plain():
        loss().backward()

    def clipped():
        loss().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)

    def scaled():
        loss().backward()
        second.weight.grad.data *= 2
        with gpuconv.no_grad():
            first.bias.grad.mul_(0.5)

    def twice():
        loss().backward()
        loss().backward()

    def twice_of_one_loss():
        (loss() + loss()).backward()

    def hooked():
        hooks = [second.weight.register_hook(lambda grad: grad * 0.5), first.bias.register_hook(lambda grad: None)]
        loss().backward()
        for hook in hooks:
            hook.remove()

    def frozen():
        first.bias.requires_grad = False
        loss().backward()
        first.bias.requires_grad = True

    def frozen_late():
        value = loss()
        second.bias.requires_grad = False
        value.backward()
        second.bias.requires_grad = True

    def forgotten():
        loss().backward()
        second.weight.grad = None
        first.zero_grad()

    def replaced():
        loss().backward()
        second.weight.grad = second.weight.grad * 3

    def computed():
        maps = F.conv2d_relu_max_pool2d(given["x"], first.weight * 2, first.bias, kernel_size=2)
        (maps.mean() + loss()).backward()

    def mixed():
        loss().backward()
        second.bias.grad = second.bias.grad + first.weight.grad.sum()

    def kept():
        maps = F.conv2d_relu_max_pool2d(given["x"], first.weight, first.bias, kernel_size=2)
        maps.retain_grad()
        ((maps * maps).mean() + loss()).backward()
        first.bias.grad = first.bias.grad + maps.grad.sum()

    return [
        plain, clipped, scaled, twice, twice_of_one_loss, hooked, frozen, frozen_late, forgotten, replaced, computed,
        mixed, kept,
    ]  # fmt: skip


def gradients_of_convolutions(cupy):
    """Left to the update to add up, they are what an eager step has, whoever reads them before it; so are parameters.

    Of two optimizers, one of which has a part of a layer; and where the update is not captured.
    """

    def momentum(parameters):
        return [optim.SGD(parameters, lr=0.1, momentum=0.9)]

    def trained(captured, which, make=momentum, update=True, dtype=np.float32):
        gpuconv.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(2, 4, 2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(4, 3),
        ).to("cuda", dtype)  # fmt: skip
        optimizers, given = make(list(model.parameters())), {}
        backward = reading_gradients(model, lambda: F.cross_entropy(model(given["x"]), given["labels"]), given)

        def step(x, labels):
            given.update(x=x.to(dtype), labels=labels)
            for one in optimizers:
                one.zero_grad()
            backward[which]()
            if update:
                for one in optimizers:
                    one.step()

        rng, found = np.random.default_rng(0), []
        with gpuconv.use_backend("cuda"):
            run = gpuconv.capture(step, warmup=1) if captured else step
            for _ in range(3):
                run(Tensor(rng.standard_normal((5, 1, 8, 8)).astype(np.float32)), rng.integers(0, 3, 5))
                litter(cupy)
                found.append([None if p.grad is None else p.grad.numpy().copy() for p in model.parameters()])
                if not update:
                    for one in optimizers:
                        one.step()
                found.append([p.numpy().copy() for p in model.parameters()])
        return found

    def equal(one, other):
        for ours, theirs in zip(one, other, strict=True):
            for mine, yours in zip(ours, theirs, strict=True):
                assert (mine is None) == (yours is None)
                if mine is not None:
                    np.testing.assert_array_equal(mine, yours)

    for which in range(len(reading_gradients([None] * 4, None, None))):
        equal(trained(True, which), trained(False, which))
    equal(trained(True, 0, update=False), trained(False, 0))
    equal(trained(True, 0, dtype=np.float16), trained(False, 0, dtype=np.float16))
    with tuning.use_variant("sgd_update_all_of_parts", "composed"):
        equal(trained(True, 0), trained(False, 0))
    for make in (
        lambda parameters: [optim.AdamW(parameters, lr=0.1)],
        lambda parameters: [optim.SGD(parameters[:1], 0.1), optim.SGD(parameters[1:], 0.1, weight_decay=0.1)],
    ):
        equal(trained(True, 0, make), trained(False, 0, make))


def without_inputs(device, make=lambda parameters: optim.SGD(parameters, lr=0.1, momentum=0.9)):
    """A training step that finds its data by itself, by a number that it advances, and logs its losses; its optimizer.

    And what gives the losses and parameters.
    """
    gpuconv.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)).to(device)
    optimizer = make(model.parameters())
    optimizer.schedule = lambda done: 0.1 / (1 + done)
    with gpuconv.use_backend(device) as backend:
        rng = np.random.default_rng(0)
        images = backend.asarray(rng.standard_normal((7, 6)).astype(np.float32))
        labels, number = backend.asarray(rng.integers(0, 3, 7)), backend.asarray(np.zeros(1, np.int32))
        losses, counts = (backend.asarray(np.zeros(1000, kind)) for kind in (np.float32, np.int32))

    def step():
        logits = model(Tensor(images))
        loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        backend.log_step(logits.data, labels, loss.data, losses, counts, number)
        return loss

    def found():
        return [Tensor(losses).numpy().copy(), Tensor(counts).numpy().copy(), *(p.numpy() for p in model.parameters())]

    return step, optimizer, found


def many_at_once(cupy):
    """Repeated in few launches, or called as often: the same bits, the same count of steps, the last one's rate."""
    # The first two are the warm-up's, and the third is captured.
    for make, counts in ((optim.Adam, (1, 5, 2, 41, 1)), (lambda p: optim.SGD(p, momentum=0.9), (3, 256 + 32))):
        total = sum(counts)
        with gpuconv.use_backend("cuda"):
            step, optimizer, found = without_inputs("cuda", make)
            captured = gpuconv.capture(step)
            for _ in range(total):
                last = captured()
            last = last.item()
            repeated_step, other, of_other = without_inputs("cuda", make)
            repeated = gpuconv.capture(repeated_step)
            for count in counts:
                result = repeated.repeat(count)
                litter(cupy)
            assert result.item() == last
        assert (optimizer.steps, optimizer.lr) == (other.steps, other.lr) == (total, 0.1 / total)
        for ours, theirs in zip(of_other(), found(), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        for count, error in ((0, ValueError), (2.5, TypeError)):
            with pytest.raises(error, match="repeat: count"):
                repeated.repeat(count)
    step, _, _ = small_step("cuda")
    losses_of(step, "cuda", 2)
    with gpuconv.use_backend("cuda"), pytest.raises(ValueError, match="called with 2 inputs, now 0"):
        step.repeat(3)


CHECKS = [
    half_types, several_streams, outlives_its_model, parameter_replaced, state_loaded, settings_changed,
    schedule_of_many_steps,
    gradients_add_up, kept_between_calls, result_of_the_host, captures_that_fail, shared_parameter, threads_take_turns,
    several_updates_in_a_step, gradients_are_there, forgotten_gradients, results_that_are_kept,
    replaced_data_is_restored, numbers_in_the_code, step_in_a_step, schedules_that_end, first_call_that_fails,
    copied_optimizer, late_parameters, changed_before_backward, gradients_of_convolutions,
    many_at_once,
]  # fmt: skip
