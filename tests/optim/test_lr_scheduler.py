"""Schedules of the learning rate: PyTorch's numbers, by themselves, together, and resumed."""

import math

import numpy as np
import pytest

import gpuconv
from gpuconv import Tensor, nn, optim
from gpuconv.optim import lr_scheduler

#: Name of the class, its arguments, how often it can be stepped.
SCHEDULES = [
    ("StepLR", {"step_size": 3, "gamma": 0.5}),
    ("StepLR", {"step_size": 1}),
    ("MultiStepLR", {"milestones": [2, 5, 5, 9], "gamma": 0.3}),
    ("ConstantLR", {"factor": 0.25, "total_iters": 4}),
    ("LinearLR", {"start_factor": 0.1, "total_iters": 6}),
    ("LinearLR", {"start_factor": 1.0, "end_factor": 0.0, "total_iters": 30}),
    ("ExponentialLR", {"gamma": 0.9}),
    ("PolynomialLR", {"total_iters": 7, "power": 2.0}),
    ("CosineAnnealingLR", {"T_max": 5, "eta_min": 0.01}),
    ("CosineAnnealingLR", {"T_max": 20}),
    ("CosineAnnealingWarmRestarts", {"T_0": 3, "T_mult": 2, "eta_min": 0.001}),
    ("CosineAnnealingWarmRestarts", {"T_0": 4}),
    ("LambdaLR", {"lr_lambda": lambda step: 1 / (1 + step)}),
    ("LambdaLR", {"lr_lambda": [lambda step: 0.9**step, lambda step: 1 + step]}),
    ("MultiplicativeLR", {"lr_lambda": lambda step: 0.95}),
    ("OneCycleLR", {"max_lr": 1.0, "total_steps": 20}),
    ("OneCycleLR", {"max_lr": [1.0, 2.0], "epochs": 5, "steps_per_epoch": 4, "anneal_strategy": "linear"}),
    ("OneCycleLR", {"max_lr": 1.0, "total_steps": 20, "three_phase": True, "pct_start": 0.4, "div_factor": 10}),
]
STEPS = 19


def optimizers(kind="SGD", **options):
    """One of ours and one of PyTorch's, of two groups."""
    torch = pytest.importorskip("torch", reason="PyTorch's schedulers are the judge")
    options = {"lr": 0.1, **({"momentum": 0.9} if kind == "SGD" else {}), **options}
    ours = [Tensor(np.ones(2), True), Tensor(np.ones(3), True)]
    theirs = [torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)]
    return [
        getattr(library, kind)([{"params": [a]}, {"params": [b], "lr": 0.4}], **options)
        for library, (a, b) in ((optim, ours), (torch.optim, theirs))
    ], torch.optim.lr_scheduler


def settings(optimizer):
    return [
        [group["lr"], group["momentum"] if "momentum" in group else group["betas"][0]]
        for group in optimizer.param_groups
    ]


def assert_same(ours, theirs, **tolerance):
    np.testing.assert_allclose(settings(ours), settings(theirs), **{"rtol": 1e-9, "atol": 1e-15, **tolerance})


@pytest.mark.filterwarnings("ignore:Detected call of")  # without steps of the optimizer
@pytest.mark.parametrize("kind", ["SGD", "Adam"])
@pytest.mark.parametrize(("name", "options"), SCHEDULES, ids=lambda v: v if isinstance(v, str) else "-".join(v))
def test_rates_are_pytorchs(kind, name, options):
    """Of each group after each step, momentum included; taken up again from its state in the middle."""
    (ours, theirs), library = optimizers(kind)
    scheduler, other = getattr(lr_scheduler, name)(ours, **options), getattr(library, name)(theirs, **options)
    assert_same(ours, theirs)
    for step in range(STEPS):
        if step == 7:
            rates, state = [group["lr"] for group in ours.param_groups], scheduler.state_dict()
            scheduler = getattr(lr_scheduler, name)(ours, **options)
            scheduler.load_state_dict(state)
            for group, lr in zip(ours.param_groups, rates, strict=True):
                group["lr"] = lr
        scheduler.step()
        other.step()
        assert_same(ours, theirs)
        np.testing.assert_allclose(scheduler.get_last_lr(), other.get_last_lr(), rtol=1e-9, atol=1e-15)


@pytest.mark.filterwarnings("ignore:Detected call of", "ignore:.*epoch parameter:UserWarning")
def test_schedulers_together():
    """One behind the other after a warm-up, two at once, and chained."""
    (ours, theirs), library = optimizers()

    def warm_up(schedulers, optimizer):
        return schedulers.SequentialLR(
            optimizer,
            [
                schedulers.LinearLR(optimizer, 0.1, total_iters=4),
                schedulers.CosineAnnealingLR(optimizer, 8),
                schedulers.ExponentialLR(optimizer, 0.5),
            ],
            milestones=[4, 10],
        )

    def several(schedulers, optimizer):
        return [schedulers.ExponentialLR(optimizer, 0.9), schedulers.MultiStepLR(optimizer, [3, 6])]

    one, other = warm_up(lr_scheduler, ours), warm_up(library, theirs)
    for _ in range(16):
        assert_same(ours, theirs)
        one.step()
        other.step()
    (ours, theirs), library = optimizers()
    chained, others = lr_scheduler.ChainedScheduler(several(lr_scheduler, ours)), several(library, theirs)
    for _ in range(8):
        assert_same(ours, theirs)
        chained.step()
        for one in others:
            one.step()


@pytest.mark.parametrize("options", [{}, {"mode": "max", "threshold": 0.1, "cooldown": 1}, {"threshold_mode": "abs"}])
def test_plateau(options):
    """Rates fall where the quantity has not become better for long enough, and where PyTorch's do."""
    (ours, theirs), library = optimizers()
    options = {"patience": 1, "factor": 0.5, "min_lr": 0.02, **options}
    one, other = lr_scheduler.ReduceLROnPlateau(ours, **options), library.ReduceLROnPlateau(theirs, **options)
    for value in [1.0, 0.9, 0.95, 0.96, 0.97, 0.8, math.nan, 0.81, 0.82, 0.9, 2.0, 3.0, 0.1, 0.2, 0.3]:
        one.step(Tensor(value))
        other.step(value)
        assert_same(ours, theirs)


def test_a_schedule_in_training(every_backend):
    """The parameters move by the rates that it sets, a step or an epoch at a time."""
    gpuconv.manual_seed(0)
    layer = nn.Linear(3, 2)
    values = layer.weight.numpy().copy()
    optimizer = optim.SGD(layer.parameters(), lr=1.0)
    scheduler = lr_scheduler.StepLR(optimizer, 2, gamma=0.5)
    moved = 0.0
    for rate in (1.0, 1.0, 0.5, 0.5, 0.25):
        assert scheduler.get_last_lr() == [rate]
        optimizer.zero_grad()
        layer.weight.sum().backward()
        optimizer.step()
        scheduler.step()
        moved += rate
    np.testing.assert_allclose(layer.weight.numpy(), values - moved, rtol=1e-5)


def test_what_cannot_be_scheduled():
    """No optimizer, another scheduler's, arguments that mean nothing, steps behind the end: told by name."""
    optimizer = optim.Adagrad([Tensor(np.ones(2), True)])
    for make, error, words in (
        (lambda: lr_scheduler.StepLR(3, 1), TypeError, "optimizer must be one of gpuconv.optim, got int"),
        (lambda: lr_scheduler.OneCycleLR(optimizer, 1.0), ValueError, "total_steps must be given, or epochs"),
        (lambda: lr_scheduler.OneCycleLR(optimizer, 1.0, 5), ValueError, "cycle_momentum needs an optimizer with"),
        (lambda: lr_scheduler.LambdaLR(optimizer, [abs, abs]), ValueError, "one for each of the 1 groups, got 2"),
        (lambda: lr_scheduler.LinearLR(optimizer, 0.0), ValueError, "start_factor must be above 0 and at most 1"),
        (lambda: lr_scheduler.ReduceLROnPlateau(optimizer, "least"), ValueError, "mode must be 'min' or 'max'"),
        (lambda: lr_scheduler.StepLR(optimizer, 1, last_epoch=3), KeyError, "group 0 has no initial_lr"),
        (lambda: lr_scheduler.SequentialLR(optimizer, [], []), ValueError, "there must be -1 milestones"),
    ):
        with pytest.raises(error, match=words):
            make()
    scheduler = lr_scheduler.OneCycleLR(optimizer, 1.0, 2, cycle_momentum=False, pct_start=0.5)
    scheduler.step()
    scheduler.step()
    with pytest.raises(ValueError, match="made for 2 steps, and this is step 3"):
        scheduler.step()
    optimizer = optim.SGD([Tensor(np.ones(2), True)])
    optimizer.schedule = lambda step: 0.1
    with pytest.raises(ValueError, match="has a schedule already"):
        lr_scheduler.StepLR(optimizer, 1)
