"""What all tests share: the backends they run on, bounded threads, reproducible random examples."""

from __future__ import annotations

import gc
import importlib.metadata
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from support import sampling
from threadpoolctl import threadpool_limits

from gpuconv import backends

# Kernels run in the simulator unless a GPU is asked for (`make gpu-test` sets 0). Numba reads this when it is imported.
os.environ.setdefault("NUMBA_ENABLE_CUDASIM", "1")
# What was tuned on this machine must not decide what the tests run.
os.environ["GPUCONV_TUNING"] = "off"

# The tests start hundreds of processes. Where Python is told to write no bytecode, as in many containers, each would
# compile all sources anew, a tenth of the whole time; what is written, git ignores.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# A job in the background of a script, as a CI's may be, ignores Ctrl-C, and so would all that it starts: the tests of
# Ctrl-C need it as it is at a keyboard.
signal.signal(signal.SIGINT, signal.default_int_handler)

#: Packages that some tests compare gpuconv with, and that it does without.
ORACLES = ("torch", "onnx")

# The same examples on every machine and in every run: what fails for one fails for all.
hypothesis.settings.register_profile(
    "gpuconv",
    derandomize=True,
    deadline=None,
    max_examples=150,
    # The fixture `backend` may stay as it is from one example to the next.
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("gpuconv")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--cases`: which cases run, for this process and those that it starts."""
    words = "; ".join(f"{name}: {what}" for name, what in sampling.CHOICES.items())
    parser.addoption("--cases", choices=sampling.CHOICES, help=f"which cases of the tests run. {words}")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One process more than there are cores: for a tenth of their time tests wait, for processes and for limits."""
    return 1 + (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def pytest_configure(config: pytest.Config) -> None:
    """Tests of this process, and processes that they start, read the choice from the environment."""
    if chosen := config.getoption("cases"):
        os.environ[sampling.VARIABLE] = "all" if chosen == "rest" else chosen


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Say what this run covers: a backend or an oracle that is missing takes its tests with it."""
    states = (f"{name} ({why})" if why else name for name, why in backends.available().items())
    cases = config.getoption("cases") or sampling.wanted()
    return [
        "backends: " + ", ".join(states),
        "oracles: " + ", ".join(map(_version, ORACLES)),
        f"cases: {cases} ({sampling.CHOICES[cases]})",
    ]


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Among the few is no file that takes seconds before its first test: onnx computes cases when it is imported."""
    return True if sampling.wanted() == "few" and collection_path.name == "test_onnx_nodes.py" else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the cases that are wanted. Beside other processes, what is slow comes first: none waits for it then."""
    everything = len(items)
    chosen = sampling.select(items, config.getoption("cases") or sampling.wanted())
    if len(chosen) < everything:
        kept = set(chosen)
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    if hasattr(config, "workerinput"):
        chosen.sort(key=lambda item: item.get_closest_marker("slow") is None)
    items[:] = chosen
    _counts[:] = len(chosen), everything


def pytest_collection_finish() -> None:
    """What is there now stays to the end: garbage collection, which some tests ask for, need not look at it again."""
    gc.collect()
    gc.freeze()


#: Cases that run, and all that were collected: in this process, or in those that run the tests.
_counts: list[int] = []
#: The kernel, tiling and case of each simulated launch, as text: from this process, or from those that ran the tests.
_triples: set[tuple[str, ...]] = set()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Collect them; a process that ran tests for another one hands them over."""
    _triples.update(tuple(map(str, triple)) for triple in getattr(sys.modules.get("support.simulation"), "triples", ()))
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["triples"] = [list(triple) for triple in _triples]
        session.config.workeroutput["counts"] = _counts


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take them over."""
    output = getattr(node, "workeroutput", {})
    _triples.update(map(tuple, output.get("triples", ())))
    _counts[:] = output.get("counts", ()) or _counts


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many cases ran, and how many kernels were simulated, in tilings and on geometries that all differ."""
    if _counts and _counts[0] < _counts[1]:
        terminalreporter.write_line(f"{_counts[0]:,} of {_counts[1]:,} cases chosen; make test-all runs all")
    if _triples:
        kernels = len({module for module, _, _ in _triples})
        how = "compiled and interpreted" if os.environ["NUMBA_ENABLE_CUDASIM"] == "0" else "simulated and traced"
        terminalreporter.write_line(f"{len(_triples):,} (kernel, tiling, case) triples {how}, of {kernels} kernels")


def _version(package: str) -> str:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{package} (not installed: its comparisons are skipped)"


_AVAILABLE = [name for name, why in backends.available().items() if why is None]


# Not the simulator, which takes seconds where others take milliseconds.
@pytest.fixture(params=[name for name in _AVAILABLE if backends.get(name).automatic()])
def backend(request: pytest.FixtureRequest) -> Iterator[backends.Backend]:
    """Each backend that can run here; the test runs on it."""
    with backends.use_backend(request.param) as chosen:
        yield chosen


@pytest.fixture(params=_AVAILABLE)
def every_backend(request: pytest.FixtureRequest) -> Iterator[backends.Backend]:
    """As `backend`, and the simulator of kernels: for what is tiny."""
    with backends.use_backend(request.param) as chosen:
        yield chosen


# Of each module anew: benchmarks set threads, for the process, and libraries that are loaded later bring their own.
@pytest.fixture(scope="module", autouse=True)
def _one_blas_thread() -> Iterator[None]:
    """Matrices here are small: threads would cost more than they give, and other processes run beside."""
    with threadpool_limits(1):
        yield
