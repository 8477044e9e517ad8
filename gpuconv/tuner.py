"""Measuring which variant of a convolution is the fastest here: what ``gpuconv tune`` does.

Every candidate has to agree with the rule's choice before it is timed. Candidates then take turns, so that a clock that
changes or a neighbour who wakes up meets all of them; each is judged by its median. On a GPU, device events bound the
time, the inputs are out of the cache, and the host is ahead of the device. On a CPU it is the real time of calls that
follow each other, with as many threads as gpuconv uses.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gpuconv.backends.base import Backend, Candidate
from gpuconv.explanation import explain
from gpuconv.geometry import Conv2dGeometry, Pair, Pool2dGeometry
from gpuconv.kernels import operations
from gpuconv.models import build
from gpuconv.tuning import store
from gpuconv.tuning.store import Key, Platform, Winner

__all__ = ["MARGIN", "OPERATIONS", "Outcome", "Task", "clearly_faster", "nothing_to_tune", "tasks_of", "tune"]

OPERATIONS = ("conv2d", "conv2d_grad_input", "conv2d_grad_weight")

#: By what share of its time another candidate has to beat the rule's choice to take its place. Two measurements of the
#: same kernel differ by as much. Besides, three quarters of its samples have to be faster than three quarters of the
#: rule's: on a busy machine medians alone are luck.
MARGIN = 0.03

_ROUNDS = 15
#: Of each candidate in a round, on a CPU: so long that looking at the clock and one late wake-up do not count.
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
    """What a task came to.

    Attributes:
        task: which.
        winner: the label of the fastest candidate; None if nothing was measured.
        rule: the label of what the rule takes.
        microseconds: median time of each candidate by its label, the fastest first.
        wrong: what each candidate that was not timed did wrong, by its label.
        skipped: why nothing was measured; empty if it was.
        not_kept: why the winner could not be written to the store; it holds for this process only, then.
    """

    task: Task
    winner: str | None = None
    rule: str = ""
    microseconds: tuple[tuple[str, float], ...] = ()
    wrong: tuple[tuple[str, str], ...] = ()
    skipped: str = ""
    not_kept: str = ""


def tasks_of(model: str, batch: int, backend: Backend) -> list[Task]:
    """The convolutions of a training step of a model, as the backend computes them; each once.

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
    """Why a backend without a platform is not tuned."""
    if getattr(backend, "simulated", False):
        return "tune: the cuda backend runs in the simulator (NUMBA_ENABLE_CUDASIM=1), whose times mean nothing"
    return f"tune: the {backend.name} backend has one way to compute a convolution: there is nothing to tune"


def tune(tasks: Sequence[Task], backend: Backend) -> Iterator[Outcome]:
    """Measure one task after the other, and keep each winner as soon as it is known.

    Raises:
        ValueError: the backend has nothing to choose from, or is a simulator, whose times mean nothing.
    """
    platform = backend.tuning_platform()
    if platform is None:
        raise ValueError(nothing_to_tune(backend))
    clock = _DeviceClock(backend.xp) if backend.name == "cuda" else _HostClock()
    for task in tasks:
        try:
            candidates = backend.candidates(task.operation, task.geometry, task.dtype, task.window)
        except ValueError as error:
            yield Outcome(task, skipped=str(error))
            continue
        yield _tuned(task, candidates, backend, platform, clock)


def _tuned(task: Task, candidates: list[Candidate], backend: Backend, platform: Platform, clock: Any) -> Outcome:
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
    samples: dict[str, list[float]] = {candidate.label: [] for candidate in right}
    for number in range(_ROUNDS):
        first = number % len(right)
        for candidate in right[first:] + right[:first]:
            samples[candidate.label].append(1e6 * clock.seconds(candidate.run, arrays))
    times = {label: statistics.median(values) for label, values in samples.items()}
    fastest = min(right, key=lambda candidate: times[candidate.label])
    winner = fastest if clearly_faster(samples[fastest.label], samples[rule.label]) else rule
    ranked = tuple(sorted(times.items(), key=lambda item: item[1]))
    tiling = None if winner.tiling is None else asdict(winner.tiling)
    not_kept = ""
    try:
        key = Key(platform, task.operation, task.geometry, task.dtype, task.window)
        store.record(key, Winner(winner.variant, tiling, {label: round(t, 3) for label, t in ranked}))
    except OSError as error:
        not_kept = f"{error.filename or store.folder()}: {error.strerror or error}"
    return Outcome(task, winner.label, rule.label, ranked, tuple(wrong), not_kept=not_kept)


def clearly_faster(samples: Sequence[float], than: Sequence[float]) -> bool:
    """Whether the samples pass the test of :data:`MARGIN`."""
    _, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    low, other, _ = statistics.quantiles(than, n=4, method="inclusive")
    return high < low and median < (1 - MARGIN) * other


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
    g = task.geometry
    terms = g.n * g.p * g.q if task.operation == "conv2d_grad_weight" else g.c // g.groups * g.r * g.s
    # Sums of n products of standard normal numbers have size sqrt(n), and so have the roundings of n of them at worst
    # in the same direction n · eps times that; a wrong index is off by sqrt(n) itself.
    allowed = 8 * np.finfo(task.dtype).eps * terms + 1e-6 * math.sqrt(terms)
    if not np.isfinite(result).all():
        return "gives values that are not finite"
    off = float(np.max(np.abs(result - expected), initial=0))
    return "" if off <= allowed else f"differs from the rule's result by {off:.3g}, where {allowed:.3g} is rounding"


class _HostClock:
    """Real time of calls that follow each other."""

    def seconds(self, run: Callable[..., Any], arrays: Sequence[Any]) -> float:
        """Seconds a call, on average over a sample."""
        run(*arrays)  # its code and arrays are in the cache again, after the others
        calls, start = 0, time.perf_counter()
        while (now := time.perf_counter() - start) < _SAMPLE_S:
            run(*arrays)
            calls += 1
        return now / calls


class _DeviceClock:
    """Time between two events on the device, with what the call reads out of the cache."""

    def __init__(self, xp: Any):
        self._events = [xp.cuda.Event(), xp.cuda.Event()]
        self._elapsed = xp.cuda.get_elapsed_time
        self._filler = xp.zeros(4 * xp.cuda.Device().attributes["L2CacheSize"], np.uint8)
        self._fill()
        self._fill_s = min(self._between(self._fill) for _ in range(5))

    def _fill(self) -> None:
        self._filler.fill(0)

    def _between(self, call: Callable[[], Any]) -> float:
        start, end = self._events
        start.record()
        call()
        end.record()
        end.synchronize()
        return 1e-3 * float(self._elapsed(start, end))

    def seconds(self, run: Callable[..., Any], arrays: Sequence[Any]) -> float:
        """Seconds a call."""
        start = time.perf_counter()
        run(*arrays)
        host_s = time.perf_counter() - start
        # The device fills its cache for as long as the host needs to queue the call: no gap is measured.
        for _ in range(1 + math.ceil(1.5 * host_s / self._fill_s)):
            self._fill()
        return self._between(lambda: run(*arrays))
