"""What ``pytest --cuda-lab`` does: kernels run in the simulator, and a fault fails the test that launched it."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from gpuconv.lab import simulator
from gpuconv.lab.launching import Settings
from gpuconv.lab.machine_code import Launched
from gpuconv.lab.report import Fault, Report


class Laboratory:
    """The plugin, once it is switched on.

    Args:
        seed: of the order of threads and blocks.
        limit: seconds that a launch may take.
        device: the GPU to stand for.
        trace: whether accesses are recorded.
        code: whether the kernels are compiled at the end.
    """

    def __init__(self, *, seed: int, limit: float, device: str, trace: bool, code: bool) -> None:
        self._seed, self._limit, self._trace = seed, limit, trace
        self._faults: Counter[str] = Counter()
        #: Launches by kernel: of this process, and of those that ran tests for it.
        self._launches: Counter[str] = Counter()
        self._code: dict[str, None] = {}
        Settings.launched = Launched() if code else None
        try:
            simulator.activate(seed, limit=limit, device=device)
        except (RuntimeError, ImportError, ValueError) as error:
            raise pytest.UsageError(f"--cuda-lab: {error}") from error

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        """A test with the launches that it makes."""
        if not self._trace:
            return (yield)
        try:
            with simulator.trace(seed=self._seed) as report:
                result = yield
        except (Exception, pytest.fail.Exception):
            found = self._found(item, report)
            if found:  # it may say why
                item.add_report_section("call", "cuda lab", "\n".join(found))
            raise
        found = self._found(item, report)
        if found:
            pytest.fail("\n".join(found), pytrace=False)
        return result

    def _found(self, item: pytest.Item, report: Report) -> list[str]:
        """The faults of a test that its marks do not allow, in words."""
        marks = [kind for mark in item.iter_markers("cuda_lab") for kind in mark.kwargs.get("allow", ())]
        faults = [fault for fault in report.faults if not fault.kind.startswith(tuple(marks))]
        self._faults.update(fault.kind for fault in faults)
        return list(map(_told, faults))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_makereport(self) -> None:
        """Tracebacks are shown without the frames of the laboratory (with them: ``--full-trace``)."""
        for name, module in list(sys.modules.items()):
            if name.startswith(("gpuconv.lab.", "numba.cuda.errors")) and name != __name__:
                vars(module)["__tracebackhide__"] = True

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """A process that ran tests for another one hands its counts over."""
        self._launches.update(Settings.launches)
        if Settings.launched is not None:
            self._code |= dict.fromkeys(map(str, Settings.launched.compiled()))
        output = getattr(session.config, "workeroutput", None)
        if output is not None:
            output["cuda_lab"] = [dict(self._launches), dict(self._faults), list(self._code)]

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Take them over."""
        launches, faults, code = getattr(node, "workeroutput", {}).get("cuda_lab", ({}, {}, ()))
        self._code |= dict.fromkeys(code)
        self._launches.update(launches)
        self._faults.update(faults)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """What was launched, and what was found."""
        terminalreporter.section("cuda lab")
        what = f"{_several(self._launches.total(), 'launch')} of {_several(len(self._launches), 'kernel')}"
        found = ", ".join(f"{kind} ({count})" for kind, count in self._faults.most_common())
        if not self._launches:
            found = "no kernel of numba.cuda ran"
        elif not self._trace:
            found = "accesses were not recorded (--cuda-lab-trace)"
        terminalreporter.write_line(f"{what} simulated: {found or 'no fault'}")
        for text in self._code:
            terminalreporter.write_line(text)


def _told(fault: Fault) -> str:
    """A fault, the lines of source that it is about, and the launch."""
    lines = [f"cuda lab: {fault}", f"    in {fault.launch}"]
    for site in dict.fromkeys(fault.sites):
        lines.append(f"    {site}: {simulator.source_line(site)}")
    return "\n".join(lines)


def _several(count: int, what: str) -> str:
    return f"{count:,} {what}{'es' * (what == 'launch') or 's' if count != 1 else ''}"
