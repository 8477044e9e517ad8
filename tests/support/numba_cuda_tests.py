"""numba-cuda's own tests, from its wheel, in Numba's simulator and in gpuconv's: what passes, what does not, how long.

    python tests/support/numba_cuda_tests.py [-k EXPRESSION] [--only stock|ours|traced|skipped] [--limit SECONDS]

Exits with 1 if a test that the stock simulator passes fails in gpuconv's. They need the package filecheck.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve()

RUNS = {
    "stock": "Numba's simulator",
    "ours": "gpuconv's simulator",
    "traced": "gpuconv's simulator, all accesses recorded",
    "skipped": "gpuconv's simulator, and tests that are skipped because they run in one",
}
#: Tests of what the stock simulator cannot do, which it passes by not doing it.
LIMITATIONS = {
    "TestCudasimUnsupportedAlignment::test_local_unsupported": "that arrays with an alignment are refused",
    "TestCudasimUnsupportedAlignment::test_shared_unsupported": "that arrays with an alignment are refused",
}


# -- as a plugin of the pytest process that runs the tests -----------------------------------------------

_which = os.environ.get("SIMULATOR_UNDER_TEST", "stock")
_limit = int(os.environ.get("SECONDS_OF_A_TEST", "300"))
_outcomes: dict[str, str] = {}
_reasons: dict[str, str] = {}
_findings: dict[str, list[str]] = {}


@pytest.fixture(scope="class")
def initialize_from_pytest_config(request: pytest.FixtureRequest) -> None:
    """What a conftest.py of numba-cuda's repository sets, which its wheel lacks."""
    request.cls._dump_failed_filechecks = False
    request.cls._recompile_on_failed = False


def pytest_configure() -> None:
    """Run the tests that are skipped in any simulator, if that is wanted."""
    if _which == "skipped":
        import numba.cuda.testing

        numba.cuda.testing.skip_on_cudasim = lambda reason: lambda test: test


@pytest.fixture(autouse=True)
def _bounded(request: pytest.FixtureRequest) -> Iterator[None]:
    """End a test that takes too long, launches in a loop included."""

    def end(*args: Any) -> None:
        raise TimeoutError(f"the test takes more than {_limit} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(_limit)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True)
def _traced(request: pytest.FixtureRequest) -> Iterator[None]:
    """Record the accesses, if that is wanted, and keep what was found."""
    with contextlib.ExitStack() as stack:
        if _which == "traced":
            from gpuconv.lab import simulator

            report = stack.enter_context(simulator.trace())
        yield
        if _which == "traced" and report.faults:
            _findings[request.node.nodeid] = [str(fault) for fault in report.faults]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note how each test ended: the worst of its phases."""
    if report.when == "call" or report.outcome != "passed":
        expected = hasattr(report, "wasxfail")
        _outcomes[report.nodeid] = "xfailed" if expected and report.outcome == "skipped" else report.outcome
        if report.failed:
            lines = [line for line in report.longreprtext.splitlines() if line.startswith("E ")] or ["?"]
            _reasons[report.nodeid] = lines[0][1:].strip()
        elif report.skipped and isinstance(report.longrepr, tuple):
            _reasons[report.nodeid] = report.longrepr[2]


def pytest_sessionfinish() -> None:
    """Hand over to the process that compares."""
    result = {"outcomes": _outcomes, "reasons": _reasons, "findings": _findings, "own": time.process_time()}
    Path(os.environ["OUTCOMES_FILE"]).write_text(json.dumps(result))


# -- as a script -----------------------------------------------------------------------------------------

#: For all processes of a run, those that tests start included.
SITE = (
    "import os\nfrom gpuconv.lab import simulator\nsimulator.activate(limit=float(os.environ['SECONDS_OF_A_TEST']))\n"
)


def run(which: str, arguments: list[str], limit: int, tests: str = "numba.cuda.tests") -> dict[str, Any]:
    """Run the tests in one of the two simulators: outcome by test, reason of failures and skips, seconds."""
    with tempfile.TemporaryDirectory() as folder:
        outcomes = Path(folder) / "outcomes.json"
        if which != "stock":
            (Path(folder) / "sitecustomize.py").write_text(SITE)
        environment = {
            **os.environ,
            "NUMBA_ENABLE_CUDASIM": "1",
            "SIMULATOR_UNDER_TEST": which,
            "SECONDS_OF_A_TEST": str(limit),
            "OUTCOMES_FILE": str(outcomes),
            "PYTHONPATH": os.pathsep.join([folder, str(HERE.parent), str(HERE.parents[2])]),
        }
        # The wheel's folders of tests are packages inside a namespace, which pytest's other ways to import do not find.
        command = [sys.executable, "-m", "pytest", "-q", "--import-mode=importlib", "-p", HERE.stem]
        command += ["-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:hypothesispytest", "-W", "ignore"]
        command += ["--assert=plain", "--pyargs", tests]
        start = _seconds()
        done = subprocess.run([*command, *arguments], env=environment, cwd=folder, capture_output=True, text=True)
        seconds = _seconds() - start
        if not outcomes.exists():
            sys.exit(f"{which}: pytest did not run:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
        return {**json.loads(outcomes.read_text()), "seconds": seconds, "log": done.stdout}


def _seconds() -> float:
    """CPU time of all processes that this one has started and that have ended: others may run beside."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> int:
    """Run them and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-k", default="", help="pytest's expression that chooses tests")
    parser.add_argument("--only", choices=RUNS, action="append", help="; ".join(f"{a}: {b}" for a, b in RUNS.items()))
    parser.add_argument("--log", type=Path, help="write pytest's output of the last run to this file")
    parser.add_argument("--limit", type=int, default=300, help="seconds that a test may take (300)")
    options = parser.parse_args()
    arguments = ["-k", options.k] if options.k else []
    results = {which: run(which, arguments, options.limit) for which in options.only or RUNS}
    passed = {}
    for which, result in results.items():
        counts = ", ".join(f"{count} {how}" for how, count in sorted(Counter(result["outcomes"].values()).items()))
        print(f"{which}: {counts}; {result['own']:.1f} s of CPU time, and {result['seconds'] - result['own']:.1f} s in")
        print("    processes that tests start, most of which goes into importing Numba")
        passed[which] = {test for test, how in result["outcomes"].items() if how == "passed"}
    if options.log:
        options.log.write_text(result["log"])

    wanted = passed.get("stock") or {test for test, how in result["outcomes"].items() if how in ("passed", "failed")}
    lost = 0
    for which in [which for which in results if which != "stock"]:
        won, missing = passed[which] - wanted, sorted(wanted - passed[which])
        print(f"{which}: {len(won)} tests pass that do not in stock, and these do not that pass there:")
        for test in missing:
            known = next((why for name, why in LIMITATIONS.items() if test.endswith(name)), None)
            lost += known is None
            reason = f"asserts {known}" if known else results[which]["reasons"].get(test, "")
            print(f"  {test}: {reason}")
        for test, faults in results[which]["findings"].items():
            print(f"  {test}", *faults, sep="\n    ")
    return bool(lost)


if __name__ == "__main__":
    sys.exit(main())
