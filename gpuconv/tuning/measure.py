"""How contenders for the same work are compared: first whether they are right, then by time, in turns.

What ``gpuconv tune`` and all benchmarks measure by, so that their figures can be trusted in the same way:

1. **Right.** :func:`compare` holds a result against another one; what differs by more than rounding is not timed.
2. **In turns.** :func:`rounds_us` takes a sample of each contender a round, and each round begins with another one: a
   machine that slows down for a while slows all of them, and the order favours none.
3. **Medians, of ratios.** A contender's time is the median of its samples. :func:`speedup` compares samples of the same
   round: the ratio of two medians may compare a quiet minute of one with a busy minute of the other.
4. **By a clock that leaves the rest of the machine out.** :class:`HostClock`: long samples, warm, the threads of other
   libraries asleep. :class:`DeviceClock`: the device's events, a cold cache, the host ahead.

Nothing here knows what is timed. Only the standard library is imported; arrays may be NumPy's, CuPy's or PyTorch's.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

__all__ = [
    "MARGIN",
    "TOLERANCE",
    "Clock",
    "DeviceClock",
    "HostClock",
    "Spread",
    "Step",
    "Verdict",
    "clearly_faster",
    "compare",
    "differing",
    "measure",
    "measure_us",
    "rounds_us",
    "settle",
    "speedup",
    "spread",
]

#: One call of what is timed, and what it computed.
Step: TypeAlias = Callable[[], Any]

# -- right -----------------------------------------------------------------------------------------------------------

#: By how much a result may differ, by element type. First the norm of the difference, relative to that of the result:
#: half precision on the way (TF32 and its like: 3e-4) shows. Then an element, relative to the root mean square of all:
#: a single wrong one shows among millions. The right kernels on an H100 differ from float64 by at most 6e-6 and 6e-5
#: (``bench/results``), both in the gradient of a weight, the longest of all sums. Of half types results are rounded
#: once, by 2.1e-4 in norm, bfloat16 by 1.7e-3.
TOLERANCE: Mapping[str, tuple[float, float]] = {
    "float32": (1e-4, 1e-3),
    "float64": (1e-12, 1e-11),
    "float16": (3e-4, 5e-3),
    "bfloat16": (2.4e-3, 4e-2),
}


@dataclass(frozen=True)
class Verdict:
    """How far a result is from what it has to be; NaN where it is not a number.

    Attributes:
        norm: norm of the difference, relative to that of what it has to be.
        worst: largest difference of an element, relative to the root mean square of what they have to be.
        fault: why it is wrong, or None.
    """

    norm: float
    worst: float
    fault: str | None


def _root_mean_square(array: Any) -> float:
    return float((array * array).mean()) ** 0.5


def compare(got: Any, wanted: Any, dtype: str) -> Verdict:
    """Compare a result with what it has to be.

    Args:
        got, wanted: arrays of one shape, which are subtracted as they are: in float64, where the memory allows.
        dtype: the element type that the result was computed in, of :data:`TOLERANCE`.
    """
    if not math.prod(wanted.shape):
        return Verdict(0.0, 0.0, None)
    difference, scale = got - wanted, _root_mean_square(wanted) or 1.0
    norm, worst = _root_mean_square(difference) / scale, float(abs(difference).max()) / scale
    most_norm, most_worst = TOLERANCE[dtype]
    # Written so that a NaN fails.
    if norm <= most_norm and worst <= most_worst:
        return Verdict(norm, worst, None)
    fault = f"differs by {norm:.2g} of its norm, an element by {worst:.2g} of the mean"
    missing = int((got != got).sum())
    return Verdict(norm, worst, f"{fault}, {missing} are NaN" if missing else fault)


def differing(got: Any, wanted: Any, dtype: str) -> Any:
    """Which elements differ by more than :func:`compare` allows one; a NaN always does."""
    return ~(abs(got - wanted) <= TOLERANCE[dtype][1] * _root_mean_square(wanted))


# -- by time ---------------------------------------------------------------------------------------------------------

#: By what share of its time a contender has to beat another one to count as faster. Two measurements of the same kernel
#: differ by as much.
MARGIN = 0.03


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
        ours: time a call, one for each round.
        theirs: the same rounds of the other contender.
    """
    return spread([their / our for our, their in zip(ours, theirs, strict=True)])


def clearly_faster(samples: Sequence[float], than: Sequence[float]) -> bool:
    """Whether a contender beats another one: by :data:`MARGIN` in the median, and not by luck.

    Three quarters of its samples have to be faster than three quarters of the other's: on a busy machine medians alone
    are luck.
    """
    ours, theirs = spread(samples), spread(than)
    return ours.high < theirs.low and ours.median < (1 - MARGIN) * theirs.median


class Clock(Protocol):
    """What takes a sample."""

    def host_us(self, step: Step) -> float:
        """Microseconds that the host needs for a call, as :meth:`sample_us` wants them."""

    def sample_us(self, step: Step, host_us: float) -> float:
        """Microseconds that a call takes."""


def rounds_us(steps: Mapping[str, Sequence[Step]], clock: Clock, rounds: int) -> Iterator[dict[str, float]]:
    """Microseconds a call of each contender, round by round. Who stops early keeps the rounds until then.

    Args:
        steps: by label, the calls on each set of inputs; they take turns.
        clock: takes the samples.
        rounds: samples of each contender.
    """
    labels, host = list(steps), {}
    for label, calls in steps.items():  # warm: compiled, algorithms chosen, memory allocated
        for call in calls:
            call()
            call()
        host[label] = clock.host_us(calls[0])
    for number in range(rounds):
        first, times = number % len(labels), {}
        for label in labels[first:] + labels[:first]:
            calls = steps[label]
            times[label] = clock.sample_us(calls[number % len(calls)], host[label])
        yield times


def measure_us(steps: Mapping[str, Sequence[Step]], clock: Clock, rounds: int) -> dict[str, list[float]]:
    """As :func:`rounds_us`, all rounds of each contender together."""
    times: dict[str, list[float]] = {label: [] for label in steps}
    for one in rounds_us(steps, clock, rounds):
        for label, us in one.items():
            times[label].append(us)
    return times


def measure(
    steps: Mapping[str, Step],
    *,
    seconds: float,
    rounds: int,
    wait: Callable[[Any], Any],
    tell: Callable[[str], None] = lambda text: None,
) -> dict[str, list[float]]:
    """Seconds that one call of each contender takes by a :class:`HostClock`, one figure for each round.

    Args:
        steps: what to call, by label.
        seconds: time for the samples of each contender, all rounds together; more if one call takes longer.
        rounds: samples of each contender.
        wait: as that of :class:`HostClock`.
        tell: is told how far it is.
    """
    times: dict[str, list[float]] = {label: [] for label in steps}
    clock = HostClock(seconds / rounds, wait)
    tell("warming up")
    for number, one in enumerate(rounds_us({label: [step] for label, step in steps.items()}, clock, rounds), 1):
        for label, us in one.items():
            times[label].append(us / 1e6)
        tell(f"round {number} of {rounds}")
    return times


# -- clocks ----------------------------------------------------------------------------------------------------------

_SETTLE_LIMIT_S = 1.0
_SETTLE_LOOK_S = 0.005


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


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    # What the sample before has left is young. To look at everything else, too, takes longer than the sample.
    gc.collect(1)
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class HostClock:
    """Real time of calls that follow each other, on average over a sample.

    A sample begins when the idle threads of this process are asleep (:func:`settle`), and after a tenth of its time
    untimed, so that caches and thread pools are as in a program that does nothing else. The garbage collector has run
    before, and is off.

    Args:
        sample_s: seconds of a sample, so long that one interruption does not count; longer if one call takes longer.
        wait: is given the last result of a sample, within its time, so that work that a device still has is counted.
    """

    def __init__(self, sample_s: float, wait: Callable[[Any], Any] = lambda result: None):
        self._sample_s, self._wait = sample_s, wait

    def host_us(self, step: Step) -> float:
        """Nothing that a sample needs to know."""
        return 0.0

    def sample_us(self, step: Step, host_us: float) -> float:
        """Microseconds a call."""
        if not settle():
            warnings.warn(
                "idle threads of this process never sleep (OMP_WAIT_POLICY=active?): contenders disturb each other",
                RuntimeWarning,
                stacklevel=2,
            )
        with _no_garbage_collection():
            self._sample(step, self._sample_s / 10)
            return 1e6 * self._sample(step, self._sample_s)

    def _sample(self, step: Step, seconds: float) -> float:
        """Call ``step`` until the time is over; returns the seconds that one call took on average."""
        clock, calls, now = time.perf_counter, 0, 0.0
        start = clock()
        while now < seconds:  # looking at the clock costs 50 ns, a thousandth of the shortest steps there are
            result = step()
            calls += 1
            now = clock() - start
        self._wait(result)
        return (clock() - start) / calls


class DeviceClock:
    """Time between two events on a GPU, with a cold second-level cache and without the host's share.

    Before a sample the cache is overwritten, as often as keeps the device busy until the call is queued. If the device
    was at the first event before the host had queued the second, it may have waited for the host: the sample is taken
    again, behind twice as many overwrites.

    Args:
        events: the first and the second; they have ``record`` and ``synchronize``.
        passed: whether the device has passed an event.
        elapsed_ms: of the two, milliseconds between them.
        overwrite: queues the overwriting of the cache.
    """

    #: How often a sample is taken at most; of a host that is never ahead, the last one counts.
    _TRIES = 6

    def __init__(
        self,
        events: Sequence[Any],
        passed: Callable[[Any], bool],
        elapsed_ms: Callable[[Any, Any], float],
        overwrite: Step,
    ):
        self._start, self._end = events
        self._passed, self._elapsed_ms, self._overwrite = passed, elapsed_ms, overwrite
        overwrite()
        self._overwrite_us = min(self._between(overwrite)[0] for _ in range(5))

    def _between(self, step: Step) -> tuple[float, bool]:
        """Microseconds between the events, and whether the host was late."""
        self._start.record()
        step()
        self._end.record()
        late = self._passed(self._start)
        self._end.synchronize()
        return 1000 * float(self._elapsed_ms(self._start, self._end)), late

    def host_us(self, step: Step) -> float:
        """Microseconds that the host needs to queue a call: the median of some."""
        times = []
        for _ in range(5):
            self._wait()
            start = time.perf_counter()
            step()
            times.append(1e6 * (time.perf_counter() - start))
        self._wait()
        return spread(times).median

    def _wait(self) -> None:
        self._end.record()
        self._end.synchronize()

    def sample_us(self, step: Step, host_us: float) -> float:
        """Microseconds that the device needs for a call."""
        times = 1 + math.ceil(1.5 * host_us / self._overwrite_us)
        for _ in range(self._TRIES):
            for _ in range(times):
                self._overwrite()
            us, late = self._between(step)
            if not late:
                break
            times *= 2
        return us
