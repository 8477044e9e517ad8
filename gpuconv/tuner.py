"""Measures which variant of a convolution is the fastest on this machine: the work of ``gpuconv tune``.

Every candidate has to agree with the rule's choice before it is timed; then they take turns, and each is judged by its
median (``gpuconv/tuning/measure.py``). On a CPU they have as many threads as gpuconv uses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from gpuconv.backends.base import Backend, Candidate
from gpuconv.explanation import explain
from gpuconv.geometry import Conv2dGeometry, Pair, Pool2dGeometry
from gpuconv.kernels import operations
from gpuconv.models import build
from gpuconv.tuning import measure, store
from gpuconv.tuning.store import Key, Platform, Winner

__all__ = ["OPERATIONS", "SIZES", "Outcome", "Task", "geometry_of", "nothing_to_tune", "tasks_of", "tune"]

OPERATIONS = ("conv2d", "conv2d_grad_input", "conv2d_grad_weight")

#: A convolution in numbers, as commands take it.
SIZES = "n,c,h,w,k,r,s[,stride[,pad[,groups]]]"

_ROUNDS = 15
#: Of each candidate in a round, on a CPU.
_SAMPLE_S = 0.01


@dataclass(frozen=True)
class Task:
    """A convolution to tune; see :class:`gpuconv.tuning.store.Key` for the fields."""

    operation: str
    geometry: Conv2dGeometry
    dtype: str = "float32"
    window: Pair = (1, 1)

    def __str__(self) -> str:
        g = self.geometry
        text = f"{self.operation} {g.n}x{g.c}x{g.h}x{g.w} * {g.k}x{g.c // g.groups}x{g.r}x{g.s}"
        (top, bottom), (left, right) = g.padding
        for name, sizes, usual in (
            ("stride", g.stride, 1),
            ("pad", (top, bottom, left, right), 0),
            ("dilation", g.dilation, 1),
            ("groups", (g.groups,), 1),
        ):
            if set(sizes) != {usual}:
                text += f" {name} {sizes[0] if len(set(sizes)) == 1 else 'x'.join(map(str, sizes))}"
        if self.window != (1, 1):
            text += f" relu, pool {self.window[0]}x{self.window[1]}"
        return text if self.dtype == "float32" else f"{text} {self.dtype}"


@dataclass(frozen=True)
class Outcome:
    """The result of tuning one task.

    Attributes:
        task: which.
        winner: label of the fastest candidate; None if nothing was measured.
        rule: label of the rule's choice.
        microseconds: label of each candidate -> its median time, the fastest first.
        wrong: label of each candidate that was not timed -> what was wrong with it.
        skipped: why nothing was measured; empty if it was.
        not_kept: why the fastest could not be written to the store; it is used in this process only, then.
    """

    task: Task
    winner: str | None = None
    rule: str = ""
    microseconds: tuple[tuple[str, float], ...] = ()
    wrong: tuple[tuple[str, str], ...] = ()
    skipped: str = ""
    not_kept: str = ""


def geometry_of(text: str) -> Conv2dGeometry:
    """The convolution that :data:`SIZES` spell, as ``64,6,14,14,16,5,5,1,0``.

    Raises:
        ValueError: they do not, or are those of no convolution; the message begins with ``--geometry``.
    """
    try:
        sizes = [int(part) for part in text.replace("x", ",").split(",")]
        if not 7 <= len(sizes) <= 10:
            raise ValueError
    except ValueError:
        example = "64,6,14,14,16,5,5,1,0"
        raise ValueError(f"--geometry takes 7 to 10 integers, {SIZES}, as {example}; got {text!r}") from None
    n, c, h, w, k, r, s, stride, padding, groups = sizes + [1, 0, 1][len(sizes) - 7 :]
    if min(n, c, h, w, k, r, s, groups) < 1 or c % groups or k % groups:
        raise ValueError(f"--geometry: sizes must be at least 1, and groups must divide c and k; got {text!r}")
    return Conv2dGeometry.of(
        (n, c, h, w), (k, c // groups, r, s), stride=stride, padding=padding, groups=groups, op="--geometry"
    )


def tasks_of(model: str, batch: int, backend: Backend) -> list[Task]:
    """The convolutions of a training step of a model, as the backend computes them, without repetitions.

    Args:
        model: a name of ``gpuconv.models``.
        batch: images a step.
        backend: runs the step.

    Raises:
        ValueError: no such model; the nearest name is suggested.
    """
    network = build(model)
    steps = explain(network, (batch, *network.input_shape), backend=backend.name, training=True).steps
    found: dict[Task, None] = {}
    for step in steps:
        operation = "conv2d" if step.primitive in ("conv2d_relu", "conv2d_relu_max_pool2d") else step.primitive
        if operation in OPERATIONS and isinstance(step.geometry, Conv2dGeometry):
            pool, window = step.pool, (1, 1)
            # A pooling of another kind runs by itself, after the plain convolution.
            if pool is not None and pool == Pool2dGeometry.of(step.geometry.output_shape, (pool.r, pool.s)):
                window = (pool.r, pool.s)
            found[Task(operation, step.geometry, window=window)] = None
    return list(found)


def nothing_to_tune(backend: Backend) -> str:
    """Why a backend without a tuning platform is not tuned."""
    if getattr(backend, "simulated", False):
        return "tune: the cuda backend runs in the simulator (NUMBA_ENABLE_CUDASIM=1), whose times mean nothing"
    return f"tune: the {backend.name} backend has one way to compute a convolution: there is nothing to tune"


def tune(tasks: Sequence[Task], backend: Backend) -> Iterator[Outcome]:
    """Measure the tasks one after the other, and store each result as soon as it is known.

    Raises:
        ValueError: the backend has only one way, or is a simulator, whose times mean nothing.
    """
    platform = backend.tuning_platform()
    if platform is None:
        raise ValueError(nothing_to_tune(backend))
    clock = _device_clock(backend.xp) if backend.name == "cuda" else measure.HostClock(_SAMPLE_S)
    for task in tasks:
        try:
            candidates = backend.candidates(task.operation, task.geometry, task.dtype, task.window)
        except ValueError as error:
            yield Outcome(task, skipped=str(error))
            continue
        yield _tuned(task, candidates, backend, platform, clock)


def _tuned(
    task: Task, candidates: list[Candidate], backend: Backend, platform: Platform, clock: measure.Clock
) -> Outcome:
    arrays = _arrays(task, backend)
    rule = candidates[0]
    expected = np.array(backend.to_numpy(rule.run(*arrays)))
    wrong, right = [], []
    for candidate in candidates:
        if fault := _fault(candidate, arrays, expected, task, backend):
            wrong.append((candidate.label, fault))
        else:
            right.append(candidate)
    if rule not in right:
        return Outcome(task, rule=rule.label, wrong=tuple(wrong), skipped="what the rule takes is wrong itself")
    steps = {candidate.label: [partial(candidate.run, *arrays)] for candidate in right}
    samples = measure.measure_us(steps, clock, _ROUNDS)
    times = {label: measure.spread(values).median for label, values in samples.items()}
    fastest = min(right, key=lambda candidate: times[candidate.label])
    winner = fastest if measure.clearly_faster(samples[fastest.label], samples[rule.label]) else rule
    ranked = tuple(sorted(times.items(), key=lambda item: item[1]))
    tiling = None if winner.tiling is None else asdict(winner.tiling)
    not_kept = ""
    try:
        key = Key(platform, task.operation, task.geometry, task.dtype, task.window)
        store.record(key, Winner(winner.variant, tiling, {label: round(t, 3) for label, t in ranked}))
    except OSError as error:
        not_kept = f"{error.filename or store.folder()}: {error.strerror or error}"
    return Outcome(task, winner.label, rule.label, ranked, tuple(wrong), not_kept=not_kept)


def _arrays(task: Task, backend: Backend) -> tuple[Any, ...]:
    """Random inputs of the operation, on the backend."""
    rng, arrays = np.random.default_rng(0), operations.OPERATIONS[task.operation].arrays
    shapes = [array.shape(task.geometry) for array in arrays if array.role != operations.OUT]
    return tuple(backend.asarray(rng.standard_normal(shape, np.float32).astype(task.dtype)) for shape in shapes)


def _fault(candidate: Candidate, arrays: Any, expected: np.ndarray, task: Task, backend: Backend) -> str:
    """What is wrong with a candidate's result; empty if nothing is."""
    try:
        result = np.array(backend.to_numpy(candidate.run(*arrays)))
    except (RuntimeError, ValueError, MemoryError) as error:
        return " ".join(f"{type(error).__name__}: {error}".split())
    if not np.isfinite(result).all():
        return "gives values that are not finite"
    fault = measure.compare(result.astype(np.float64), expected, task.dtype).fault
    return "" if fault is None else f"{fault}, from the rule's result"


def _device_clock(xp: Any) -> measure.Clock:
    """Of CuPy's device, or what stands in for it."""
    filler = xp.zeros(4 * xp.cuda.Device().attributes["L2CacheSize"], np.uint8)
    events = [xp.cuda.Event(), xp.cuda.Event()]
    return measure.DeviceClock(events, lambda event: event.done, xp.cuda.get_elapsed_time, lambda: filler.fill(0))
