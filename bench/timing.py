"""The measuring core: several ways to do the same work, timed so that their ratio can be trusted.

1. **Interleaved.** All contenders run in one process, in rounds of one sample each, and every round begins with another
   one. A machine that slows down for a while slows all of them, and the order favours none.
2. **Medians of ratios.** Samples of the same round are compared, and the median over the rounds is reported together
   with the quartiles. (The ratio of two medians may compare a quiet minute of one with a busy minute of the other.)
3. **Long samples.** A sample repeats the call for its share of the time asked for, 0.2 s by default, so that a single
   interruption does not count, and is the mean of these calls.
4. **Warm.** What happens once (compilation, first allocations) is over before the first sample, and before every sample
   the call is repeated untimed for a tenth of its time: caches and thread pools are as in a program that does nothing
   else.
5. **Quiet.** Before every sample the process waits until its idle threads are asleep; see :func:`settle`. The garbage
   collector has run before a sample and is off during it.

Nothing here knows what is timed, and only the standard library is imported.
"""

from __future__ import annotations

import gc
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

#: One call of what is timed, and what it computed.
Step = Callable[[], Any]

_SETTLE_LIMIT_S = 1.0
_SETTLE_LOOK_S = 0.005


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of measured values."""

    low: float
    median: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles; of a single value, three times that value."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    return Spread(*statistics.quantiles(values, n=4, method="inclusive"))


def speedup(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """How many times faster ``ours`` is than ``theirs``: of the ratios round by round, the median and quartiles.

    Args:
        ours: seconds a call, one for each round.
        theirs: the same rounds of the other contender.
    """
    return spread([their / our for our, their in zip(ours, theirs, strict=True)])


def settle() -> bool:
    """Wait until the threads of this process that have nothing to do are asleep; False if they never are.

    Thread pools spin for a while after their work, in the hope of more: libgomp (PyTorch) for about 10 ms, ONNX
    Runtime's and OpenBLAS's for up to 100 ms. The pool of the library that ran last would thus take a core from the one
    that runs next, which no program that uses one of them would suffer. Forbidding it (OMP_WAIT_POLICY=PASSIVE and the
    like) would slow down the libraries themselves: at batch 1, waking up threads is what PyTorch's time goes into. So
    each keeps its own policy inside its samples, and between them we look at the CPU time of the whole process until it
    stands still.
    """
    deadline = time.perf_counter() + _SETTLE_LIMIT_S
    quiet_looks = 0
    while quiet_looks < 2:
        cpu = time.process_time()
        time.sleep(_SETTLE_LOOK_S)
        quiet_looks = quiet_looks + 1 if time.process_time() - cpu < 0.1 * _SETTLE_LOOK_S else 0
        if time.perf_counter() > deadline:
            return False
    return True


def measure(
    steps: Mapping[str, Step], *, seconds: float, rounds: int, wait: Callable[[Any], Any]
) -> dict[str, list[float]]:
    """Seconds that one call of each contender takes, one figure for each round.

    Args:
        steps: what to call, by label.
        seconds: time for the samples of each contender, all rounds together; more if one call takes longer.
        rounds: samples of each contender.
        wait: is given the last result of a sample, within its time, so that work that a device still has is counted.
    """
    times: dict[str, list[float]] = {label: [] for label in steps}
    for one in each_round(steps, seconds=seconds, rounds=rounds, wait=wait):
        for label, time_ in one.items():
            times[label].append(time_)
    return times


def each_round(
    steps: Mapping[str, Step], *, seconds: float, rounds: int, wait: Callable[[Any], Any]
) -> Iterator[dict[str, float]]:
    """As :func:`measure`, round by round: seconds a call by label. Who stops early keeps the rounds until then."""
    labels, share = list(steps), seconds / rounds
    for step in steps.values():
        _sample(step, share, wait)
    for number in range(rounds):
        times = {}
        first = number % len(labels)
        for label in labels[first:] + labels[:first]:
            if not settle():
                warnings.warn(
                    "idle threads of this process never sleep (OMP_WAIT_POLICY=active?): contenders disturb each other",
                    RuntimeWarning,
                    stacklevel=2,
                )
            with _no_garbage_collection():
                _sample(steps[label], share / 10, wait)
                times[label] = _sample(steps[label], share, wait)
        yield times


def _sample(step: Step, seconds: float, wait: Callable[[Any], Any]) -> float:
    """Call ``step`` until the time is over; returns the seconds that one call took on average."""
    clock, calls, now = time.perf_counter, 0, 0.0
    start = clock()
    while now < seconds:  # looking at the clock costs 50 ns, a thousandth of the shortest steps there are
        result = step()
        calls += 1
        now = clock() - start
    wait(result)
    return (clock() - start) / calls


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
