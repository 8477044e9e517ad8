"""A kernel in a file of one's own: does it keep the contract, is it right, what does it cost?

The file is imported and run in a process of its own, so that whatever it does, an endless loop or a crash, ends in a
report::

    verdict = verify(Path("my_conv.py"), "conv2d", geometry, "lenet5.conv2", limit=60)
    print(verdict.text())

That process (``python -m bench.own_kernel``) is given its task in JSON, and prints a line of JSON for each step that it
begins and ends. A watchdog ends it when a step takes too long, and prints where it was.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import dataclasses
import faulthandler
import importlib.util
import inspect
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from bench import sass
from bench.command import ROOT, Refused, progress, start
from bench.diagnosis import COSTS, Finding, budgets, examine, examine_like, relabelled, source_lines
from bench.inspection import choose_target, geometry_text, judged, tiling_text
from gpuconv import kernels
from gpuconv.geometry import Conv2dGeometry
from gpuconv.kernels.operations import OPERATIONS
from gpuconv.lab import compiling

TEMPLATE = Path(__file__).with_name("kernel_template.py")
ARCHITECTURE = "sm_90a"

#: What a file has to define, and how it is called; see ``kernels/__init__.py`` for what it may define.
_CONTRACT = {"tilings": "tilings(geometry)", "calls": "calls(a, geometry, tiling)"}
#: In place of ``calls``: what :class:`gpuconv.kernels.variant.Variant` makes of it.
_BY_HAND = {
    "launches": "launches(geometry, tiling, dtype)",
    "launch": "launch(*arrays, geometry, tiling, stream)",
}
_TEMPLATE_HINT = "--template prints a file that has all"
_PYTHON_SITE = re.compile(r'File "(?P<path>[^"]+)", line (?P<line>\d+)')


def _conv(n: int, c: int, h: int, w: int, k: int, r: int, s: int, **options: Any) -> Conv2dGeometry:
    groups = options.get("groups", 1)
    return Conv2dGeometry.of((n, c, h, w), (k, c // groups, r, s), **options)


#: Small geometries, each for a way in which a kernel goes wrong; those are taken that it supports.
_CASES = {
    "no tile divides it": _conv(2, 3, 13, 19, 5, 3, 3, padding=1),
    "a window of 5x5, without padding": _conv(1, 2, 15, 12, 6, 5, 5),
    "a window higher than wide": _conv(1, 2, 9, 7, 3, 3, 2, padding=1),
    "stride 2": _conv(2, 2, 12, 11, 3, 3, 3, stride=2, padding=1),
    "padded on two sides only": _conv(1, 2, 6, 9, 3, 3, 3, padding=((0, 2), (1, 0))),
    "a window of 1x1": _conv(3, 9, 5, 7, 10, 1, 1),
    "a single output": _conv(1, 1, 3, 3, 1, 3, 3),
    "dilation 2": _conv(1, 2, 11, 10, 3, 3, 3, dilation=2),
    "an empty batch": _conv(0, 2, 5, 6, 3, 3, 3),
    "a group for each channel": _conv(1, 4, 8, 9, 4, 3, 3, padding=1, groups=4),
}

#: Bytes that the process may have: the trace of an endless loop grows by a hundred bytes an access.
_MOST_MEMORY = 8 << 30
#: Tilings that are run on each of them.
_MOST_TILINGS = 3


# -- the verdict ---------------------------------------------------------------------------------------------


@dataclass
class Verdict:
    """What became of a file.

    Attributes:
        name: of the file, as the user gave it.
        findings: for each tiling (its text) and where: what was found there; both are empty for what concerns all.
        rows: for each tiling that was run on the layer: its fields, what it compiles to (missing where that was not
            tried), and how it accesses memory.
        runs: how often a tiling was run on a geometry.
    """

    name: str
    findings: list[tuple[str, str, Finding]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    runs: int = 0

    def add(self, kind: str, text: str) -> None:
        """Something that concerns all tilings."""
        self.findings.append(("", "", Finding(kind, text)))

    @property
    def right(self) -> bool:
        """Whether nothing is wrong; budgets and costs do not count."""
        return not any(finding.wrong for _, _, finding in self.findings)

    @property
    def clean(self) -> bool:
        """Whether it is right, and within its budgets."""
        return all(finding.kind in COSTS for _, _, finding in self.findings)

    def kinds(self) -> list[str]:
        """Kinds of what was found, in the order of the report."""
        return list(dict.fromkeys(finding.kind for _, _, finding in self._distinct()))

    def _distinct(self) -> dict[tuple[str, str, Finding], list[str]]:
        """The first finding of each kind and place, with the tilings that have one like it."""
        found: dict[tuple[str, tuple[str, ...]], tuple[tuple[str, str, Finding], list[str]]] = {}
        for tiling, where, finding in self.findings:
            _, tilings = found.setdefault((finding.kind, finding.where), ((tiling, where, finding), []))
            tilings.append(tiling)
        wrong_first = sorted(found.values(), key=lambda entry: not entry[0][2].wrong)
        return {entry: list(dict.fromkeys(tilings)) for entry, tilings in wrong_first}

    def text(self) -> str:
        """The report."""
        state = "wrong" if not self.right else "right" if self.clean else "right, but over its budget"
        runs = f"; {self.runs} runs in the simulator, threads in random order" if self.runs else ""
        lines = [f"{self.name}: {state}{runs}"]
        for (tiling, where, finding), tilings in self._distinct().items():
            others = f"; {len(tilings)} tilings in all" if len(tilings) > 1 else ""
            place = f" (tiling {tiling} on {where}{others})" if tiling else ""
            lines.append(f"  {finding.kind}{place}:\n    {finding.text}")
        return "\n".join(lines)


# -- this side: a process that is watched ----------------------------------------------------------------------


def check(path: Path, operation: str, geometry: Conv2dGeometry, layer: str, *, limit: float) -> None:
    """See to it, before anything is measured or compiled, that a file keeps the contract; args as of :func:`verify`.

    Raises:
        Refused: it is missing or no Python, fails when it is imported, lacks a function, does not support the layer.
    """
    verdict = verify(path, operation, geometry, layer, limit=limit, stages=("imported",))
    progress("")
    for _, _, finding in verdict.findings:
        raise Refused(f"--kernel: {path.name}: {finding.kind}: {' '.join(finding.text.split())}")


def verify(
    path: Path,
    operation: str,
    geometry: Conv2dGeometry,
    layer: str,
    *,
    limit: float,
    tell: Callable[[str], None] = progress,
    stages: Sequence[str] = ("simulate", "compile"),
) -> Verdict:
    """Find out what is wrong with a file, and what its tilings compile to.

    Args:
        path: the file.
        operation: what it computes, a name of ``gpuconv.kernels.VARIANTS``.
        geometry, layer: what it will be ranked on, and its name.
        limit: seconds that one run of a tiling, or the compilation of one, may take.
        tell: is told what is being done.
        stages: methods of the other process; each runs if nothing was wrong before.
    """
    verdict = Verdict(path.name)
    if fault := _unreadable(path):
        verdict.add(*fault)
        return verdict
    task = {
        "path": str(path.resolve()),
        "operation": operation,
        "geometry": base64.b64encode(pickle.dumps(geometry)).decode(),
        "layer": layer,
        "limit": limit,
    }
    for stage in stages:
        step, done = "it was imported", False
        for message in _messages({**task, "stage": stage}, str(path.resolve()), path.name):
            if "step" in message:
                step = message["step"]
                tell(f"{path.name}: {step}")
                verdict.runs += step.startswith("tiling") and stage == "simulate"
            elif "row" in message:
                _add_row(verdict, message["row"])
            elif "finding" in message:
                finding = relabelled(Finding(**message["finding"]), str(path.resolve()), path.name)
                verdict.findings.append((message["tiling"], message["where"], finding))
            elif "refusal" in message:
                verdict.add(*message["refusal"])
            elif "done" in message:
                done = True
            elif "ended" in message:
                done = True
                kind, text = message["ended"]
                verdict.add(kind, f"{text}, while {step}")
        if not done:
            verdict.add("crash", f"it ended the process, while {step}")
        if not verdict.right:
            break
    return verdict


def _add_row(verdict: Verdict, row: dict[str, Any]) -> None:
    for known in verdict.rows:
        if known["tiling"] == row["tiling"]:
            known.update(row)
            return
    verdict.rows.append(row)


def _unreadable(path: Path) -> tuple[str, str] | None:
    """Kind and text of what is wrong with a file, as far as can be seen without running it."""
    try:
        source = path.read_bytes()
    except OSError as error:
        return "unreadable", f"{path}: {error.strerror or error}"
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        shown = f"\n    {error.text.strip()}" if error.text else ""
        return "syntax error", f"line {error.lineno} is not Python: {error.msg}{shown}"
    except ValueError as error:  # null bytes
        return "syntax error", f"it is not Python: {error}"
    if not any(isinstance(node, ast.FunctionDef) for node in ast.walk(tree)):
        return "contract", f"it defines no function, and lacks {', '.join(_CONTRACT.values())}: {_TEMPLATE_HINT}"
    return None


def _messages(task: dict[str, Any], path: str, name: str) -> Iterator[dict[str, Any]]:
    """What the other process says; the last message tells how it ended, if that was not by its own will."""
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": str(int(task["stage"] != "compile"))}
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.own_kernel", json.dumps(task)],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        assert process.stdout is not None
        try:
            for line in process.stdout:
                yield json.loads(line)
            code = process.wait()
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        errors.seek(0)
        if code:
            yield {"ended": _end(code, errors.read(), path, name, task["limit"])}


def _end(code: int, errors: str, path: str, name: str, limit: float) -> tuple[str, str]:
    """Kind and text of how a process ended that was not done, from what it and the watchdog printed."""
    lines = [int(match["line"]) for match in _PYTHON_SITE.finditer(errors) if match["path"] == path]
    if "Timeout (" in errors:
        return _endless(limit, lines, name)
    place = f" at line {lines[0]} of {name}" if lines else ""
    if code < 0:
        return "crash", f"it crashed by {signal.Signals(-code).name}{place}"
    last = next((line for line in reversed(errors.splitlines()) if line.strip()), "")
    return "crash", f"it ended with status {code}{place}: {last.strip()}"


def _endless(limit: float, lines: list[int], name: str) -> tuple[str, str]:
    place = f" at line {lines[0]} of {name}" if lines else ""
    return "endless loop", f"it was stopped after {limit:g} s{place}"


# -- the other side ------------------------------------------------------------------------------------------


def load(path: Path) -> Any:
    """The module in a file.

    Raises:
        Exception: whatever the file raises.
    """
    specification = importlib.util.spec_from_file_location(f"own_kernel_{path.stem}", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[module.__name__] = module  # where dataclasses look for it
    specification.loader.exec_module(module)
    return module


class _Child:
    """The process that runs the file."""

    def __init__(self, task: dict[str, Any], say: Callable[[dict[str, Any]], None]) -> None:
        self.task, self.say = task, say
        self.path, self.operation, self.layer = Path(task["path"]), task["operation"], task["layer"]
        self.geometry: Conv2dGeometry = pickle.loads(base64.b64decode(task["geometry"]))

    @contextlib.contextmanager
    def step(self, words: str) -> Iterator[None]:
        """Say what is done; the process is ended if it takes too long."""
        self.say({"step": words})
        limit = self.task["limit"]
        # A signal knows the line of a loop in Python. The watchdog also ends what never returns to Python.
        if hasattr(signal, "setitimer"):
            signal.signal(signal.SIGALRM, self.expired)
            signal.setitimer(signal.ITIMER_REAL, limit)
        faulthandler.dump_traceback_later(limit + 1, exit=True)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
            if hasattr(signal, "setitimer"):
                signal.setitimer(signal.ITIMER_REAL, 0)

    def expired(self, number: int, frame: FrameType | None) -> None:
        """End the process, and say which line of the file it was in."""
        while frame is not None and frame.f_code.co_filename != str(self.path):
            frame = frame.f_back
        lines = [] if frame is None else [frame.f_lineno]
        self.say({"ended": _endless(self.task["limit"], lines, self.path.name)})
        os._exit(0)

    def imported(self) -> tuple[Any, tuple[Any, ...]]:
        """The variant, and its tilings of the layer; all that can be said of it without running a kernel is checked."""
        with self.step("it was imported"):
            module = self.called("it cannot be imported", load, self.path)
        wanted = _CONTRACT
        if any(hasattr(module, name) for name in _BY_HAND):
            wanted = {"tilings": _CONTRACT["tilings"], **_BY_HAND}
        if missing := [call for name, call in wanted.items() if not callable(getattr(module, name, None))]:
            raise Refused(f"it lacks {', '.join(missing)}: {_TEMPLATE_HINT}")
        self.check_launch(module)
        module = kernels.of(self.operation, module)
        with self.step("supports and tilings were called"):
            answer = self.called("supports failed", module.supports, self.geometry)
            if not isinstance(answer, (bool, str)):
                raise Refused(f"supports returned {answer!r}, and not True, False or a Refusal")
            if not answer:
                why = "supports returned False" if answer is False else str(answer)
                raise Refused(f"it does not support {self.layer}: {why}")
            tilings = self.called("tilings failed", module.tilings, self.geometry)
        if not isinstance(tilings, (tuple, list)) or not tilings:
            raise Refused(f"tilings returned {tilings!r}, and not a tuple of one or more tilings")
        for tiling in tilings:
            if not dataclasses.is_dataclass(tiling) or type(tiling).__hash__ is None:
                raise Refused(f"the tiling {tiling!r} is not a frozen dataclass")
        return module, tuple(tilings)

    def check_launch(self, module: Any) -> None:
        """See to it that ``launch`` takes the arrays of this operation: that of another one has more or fewer."""
        if not hasattr(module, "launch"):
            return
        names = [array.name for array in OPERATIONS[self.operation].arrays]
        given = [*inspect.signature(module.launch).parameters]
        if "geometry" in given and given.index("geometry") != len(names):
            raise Refused(
                f"its launch({', '.join(given)}) is not one of {self.operation}, which is called as "
                f"launch({', '.join(names)}, geometry, tiling, stream)"
            )

    def called(self, words: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """What a function of the file returns; what it raises becomes a refusal."""
        try:
            return function(*arguments)
        except (Exception, SystemExit) as error:
            import traceback

            frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(self.path)]
            place = f" (line {frames[-1].lineno}: {frames[-1].line})" if frames else ""
            text = str(error).strip().partition("\n")[0]
            raise Refused(f"{words}: {type(error).__name__}: {text}{place}") from error

    def report(self, tiling: Any, where: str, findings: Iterable[Finding]) -> None:
        for finding in findings:
            self.say({"finding": dataclasses.asdict(finding), "tiling": _text(tiling), "where": where})

    def simulate(self) -> None:
        from gpuconv.lab import simulator

        simulator.activate()
        module, tilings = self.imported()
        runs = [
            (f"{geometry_text(case)} ({why})", case, tiling)
            for why, case in _CASES.items()
            if self.called("supports failed", module.supports, case)
            for tiling in self.called("tilings failed", module.tilings, case)[:_MOST_TILINGS]
        ]
        wrong = set()
        for number, (where, case, tiling) in enumerate(runs):
            if tiling not in wrong:
                with self.step(f"tiling {_text(tiling)} ran on {where}"):
                    found = examine(module, self.operation, case, tiling, "float32", seed=number, bias=number % 2 == 0)
                wrong |= {tiling for finding in found.findings if finding.wrong}
                self.report(tiling, where, [finding for finding in found.findings if finding.wrong])
        # The layer itself last: it takes longest, and findings on a small geometry are easier to understand.
        for tiling in tilings:
            if tiling not in wrong:
                with self.step(f"tiling {_text(tiling)} ran on a small layer like {self.layer}"):
                    found = examine_like(module, self.operation, self.geometry, tiling, "float32")
                self.report(tiling, f"{geometry_text(found.geometry)} (like {self.layer})", found.findings)
                self.say({"row": {"tiling": dataclasses.asdict(tiling), "simulated": found.simulated()}})

    def compile(self) -> None:
        sass.check()
        module, tilings = self.imported()
        for tiling in tilings:
            with self.step(f"tiling {_text(tiling)} was compiled"):
                made = self.compiled(module, tiling)
                if made is None:
                    continue
                self.say({"row": {"tiling": dataclasses.asdict(tiling), "launches": made}})
                doubles = []
                for launch in module.launches(self.geometry, tiling, "float32"):
                    target = sass.compute_capability(ARCHITECTURE)[:2]
                    doubles += compiling.float64(launch.kernel.py_func, launch.signature, target)
            self.report(tiling, self.layer, budgets(made, doubles))

    def compiled(self, module: Any, tiling: Any) -> list[dict[str, Any]] | None:
        """What a tiling compiles to; None, and a report, where it does not."""
        try:
            return judged(module, self.geometry, tiling, "float32", (ARCHITECTURE,))
        except Exception as error:  # Numba's are of many kinds
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            # Numba begins with the step that failed; the call that it cannot type follows further below.
            first = 1 if len(lines) > 1 and lines[0].startswith("Failed in") else 0
            words = " ".join([*lines[first : first + 1], *[line for line in lines if line.startswith(">>>")][:1]])
            found = [match for line in lines if (match := _PYTHON_SITE.search(line))]
            numbers = [match["line"] for match in found if Path(match["path"]).resolve() == self.path]
            sites = [f"{self.path}:{number}" for number in numbers[:1]]
            text = f"{type(error).__name__}: {words}{source_lines(sites)}"
            self.report(tiling, self.layer, [Finding("compiler", text, tuple(sites))])
            return None


def _text(tiling: Any) -> str:
    return tiling_text(dataclasses.asdict(tiling))


def main() -> int:
    """Do the task in the command line; for :func:`verify`."""
    faulthandler.enable()
    with contextlib.suppress(ImportError):  # on Windows
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    # What the file prints shall not get between the messages.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as channel:
        os.dup2(2, 1)

        def say(message: dict[str, Any]) -> None:
            print(json.dumps(message), file=channel, flush=True)

        task = json.loads(sys.argv[1])
        choose_target(simulate=task["stage"] != "compile")
        child = _Child(task, say)
        try:
            getattr(child, task["stage"])()
        except Refused as refusal:
            kind = "not compiled" if isinstance(refusal, sass.ToolMissing) else "contract"
            say({"refusal": (kind, str(refusal))})
        say({"done": True})
    return 0


if __name__ == "__main__":
    start(main)
