"""What there is to know of a GPU, by one command of at most eight minutes: ``python -m bench.gpu_report --out DIR``.

Stages run one after the other, what matters most first; ``--list`` shows them. Each is a process group of its own with
a time limit, or what is left of the limit of all; when it runs out, the whole group is killed. What a stage prints goes
to ``DIR/logs/STAGE.log``, its results to files of its own in ``DIR``, as soon as they are there. ``DIR/report.json`` is
written after each stage: device, versions, commit, and for each stage its status and figures (``bench/README.md``).

If this machine cannot run the kernels, or the first contact finds a wrong one, the stages behind do not run.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from bench import command
from bench.command import INTERRUPTED, ROOT, Parser, Refused, check_writable, progress, say, start, write
from bench.gpu_stages import NOT_RUN, refuse_versions

#: Seconds for all stages; below so many there is no use in beginning one.
_LIMIT, _LEAST = 480, 5.0
#: Seconds by which a stage that can end by itself is to do so before it is killed.
_MARGIN = 10.0
#: Of a log, the bytes that are kept of its beginning and of its end.
_HEAD, _TAIL = 1_000_000, 100_000
#: The size of a summary.
_COLUMNS, _LINES = 80, 24
PASSED, FAILED, TIMED_OUT, SKIPPED, STOPPED = "passed", "failed", "timed out", "not run", "interrupted"


@dataclass(frozen=True)
class Job:
    """What a stage's command is made from.

    Attributes:
        out: the folder of the report.
        jobs: processes for what can be spread.
        seconds: that the stage has.
    """

    out: Path
    jobs: int
    seconds: float


#: Figures for the report, and lines for the summary, from the file that a stage has written.
Digest = Callable[[Path], "tuple[dict[str, Any], list[str]]"]


@dataclass(frozen=True)
class Stage:
    """A part of the report.

    Attributes:
        name: as ``--only`` takes it.
        about: a line about it.
        limit: seconds that it may take at most.
        command: what is run; or, as a text, why it cannot be.
        file: what it writes, in the folder of the report.
        digest: of that file, whole or in part.
        needed: whether the stages behind do not run if it fails.
        rest: whether it is there for the time that is left: to be stopped is no failure then.
    """

    name: str
    about: str
    limit: float
    command: Callable[[Job], list[str] | str]
    file: str
    digest: Digest
    needed: bool = False
    rest: bool = False


# -- running one ------------------------------------------------------------------------------------------------------


class Log:
    """Copies a stream to a file, of much output the beginning and the end; in a thread of its own."""

    def __init__(self, stream: IO[bytes], path: Path):
        self._stream, self._path = stream, path
        self._tail: collections.deque[bytes] = collections.deque()
        self._size, self._left_out = 0, 0
        self._thread = threading.Thread(target=self._copy, daemon=True)
        self._thread.start()

    def _copy(self) -> None:
        with open(self._path, "wb") as file:
            written = 0
            while chunk := self._read():
                if written < _HEAD:
                    file.write(chunk)
                    file.flush()
                    written += len(chunk)
                    continue
                self._tail.append(chunk)
                self._size += len(chunk)
                while self._size - len(self._tail[0]) > _TAIL:
                    self._left_out += len(self._tail[0])
                    self._size -= len(self._tail.popleft())
            if self._left_out:
                file.write(f"\n... {self._left_out:,} bytes left out ...\n".encode())
            file.write(b"".join(self._tail))

    def _read(self) -> bytes:
        try:
            return os.read(self._stream.fileno(), 65536)
        except (OSError, ValueError):
            return b""

    def finish(self) -> None:
        """Wait until all is written; not for ever, if somebody still holds the other end."""
        self._thread.join(2)
        if not self._thread.is_alive():
            self._stream.close()


@contextlib.contextmanager
def _group(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A command in a process group of its own, of which nothing is left behind the ``with`` block."""
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    # Kernels go to the GPU, whatever a test before has set.
    environment = {"NUMBA_ENABLE_CUDASIM": "0", **os.environ, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None
    copied = Log(process.stdout, log)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        # One that waits for the device inside of the driver may take a while to go, and is not waited for longer.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        copied.finish()


def run_stage(stage: Stage, out: Path, jobs: int, seconds: float) -> dict[str, Any]:
    """Run a stage; its entry in the report. Its lines for the summary are under ``lines``.

    Raises:
        KeyboardInterrupt: with the entry as its argument.
    """
    command = stage.command(Job(out, jobs, seconds))
    entry = _entry(seconds)
    if isinstance(command, str):
        return {**entry, "why": command}
    log, start = out / "logs" / f"{stage.name}.log", time.monotonic()
    log.parent.mkdir(exist_ok=True)
    interrupted = False
    try:
        with _group(command, log) as process:
            try:
                with progress.during(stage.name):
                    code = process.wait(seconds)
                entry["status"] = {0: PASSED, NOT_RUN: SKIPPED}.get(code, FAILED)
                entry["exit_code"] = code
            except subprocess.TimeoutExpired:
                entry["status"], entry["why"] = TIMED_OUT, f"killed after {seconds:.0f} s"
    except KeyboardInterrupt:
        interrupted, entry["status"] = True, STOPPED
    entry["seconds"] = round(time.monotonic() - start, 1)
    try:
        figures, lines = stage.digest(out / stage.file)
    except Exception as error:  # of many kinds: a file that is not there, or that is not what it should be
        figures, lines = {"unreadable": f"{type(error).__name__}: {error}"}, []
    entry |= {"figures": figures, "lines": lines}
    if stage.rest and entry["status"] == TIMED_OUT:
        entry["status"] = FAILED if "wrong" in figures or "unreadable" in figures else PASSED
    why = figures.get("refused") or figures.get("not_run") or figures.get("wrong")
    if entry["status"] == FAILED and why:
        entry["why"] = why
    if entry["why"] is None and entry["status"] in (FAILED, SKIPPED):
        entry["why"] = why or f"exit code {entry['exit_code']}: {_last_line(log)}"
    if interrupted:
        raise KeyboardInterrupt(entry)
    return entry


def _entry(limit_s: float) -> dict[str, Any]:
    """Of a stage that has not run."""
    limit_s = round(limit_s, 1)
    return {"status": SKIPPED, "why": None, "seconds": 0.0, "limit_s": limit_s, "figures": {}, "lines": []}


def _last_line(log: Path) -> str:
    with contextlib.suppress(OSError):
        with open(log, "rb") as file:
            file.seek(max(0, log.stat().st_size - 4096))
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
        return next((line for line in reversed(lines) if line), "no output")[:300]
    return "no output"


# -- the stages -------------------------------------------------------------------------------------------------------


def _read(path: Path) -> dict[str, Any]:
    document = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(document, dict):
        raise ValueError(f"{path.name} holds no object")
    return document


def _own(name: str, *arguments: str, ends_by_itself: bool = False) -> Callable[[Job], list[str] | str]:
    """The command of a stage of ``bench/gpu_stages.py``."""

    def command(job: Job) -> list[str] | str:
        own = [*_module("gpu_stages"), name, "--out", str(job.out), "--jobs", str(job.jobs), *arguments]
        return [*own, "--seconds", f"{max(1.0, job.seconds - _MARGIN):.1f}"] if ends_by_itself else own

    return command


def _module(name: str) -> list[str]:
    return [sys.executable, "-m", f"bench.{name}"]


def _environment(path: Path) -> tuple[dict[str, Any], list[str]]:
    return _read(path), []


def _contact(path: Path) -> tuple[dict[str, Any], list[str]]:
    figures = _read(path)
    parts = figures.get("parts", [])
    if wrong := [f"{part['part']}: {part['found']}" for part in parts if not part["right"]]:
        figures["wrong"] = "; ".join(wrong)
    right = sum(bool(part["right"]) for part in parts)
    return figures, [f"{right} of {len(parts)} right; compiled in {figures.get('compile_seconds', 0):.0f} s"]


def _compile(path: Path) -> tuple[dict[str, Any], list[str]]:
    figures = _read(path)
    if "kernels" not in figures:
        return figures, []
    late = "" if figures["in_time"] else ", not all in time"
    return figures, [f"{figures['kernels']} kernels, {figures['jobs']} processes{late}"]


def _training(path: Path) -> tuple[dict[str, Any], list[str]]:
    figures = _read(path)
    gpu, cpu = figures.get("gpu", {}), figures.get("cpu", {})
    if "test_accuracy" not in gpu:
        return figures, [f"{len(gpu.get('epochs', []))} epochs on the GPU"]
    line = f"{gpu['test_accuracy']:.2%} in {gpu['seconds']:.1f} s, {gpu['images_per_second']:,.0f} images/s"
    if "test_accuracy" in cpu:
        line += f"; CPU {cpu['test_accuracy']:.2%}"
        if not figures["right"]:
            figures["wrong"] = gpu["said"][0] if gpu["said"] else line
    return figures, [line]


def _lenet(path: Path) -> tuple[dict[str, Any], list[str]]:
    from bench.lenet_gpu import EAGER, OURS
    from gpuconv.tuning.measure import spread

    document = _read(path)
    figures: dict[str, Any] = {"batches": {}, "complete": document["complete"]}
    lines, wrong = [], []
    results = [(f"{result['batch']}", result) for result in document["results"]]
    for batch, result in [*results, ("inference", document.get("inference", {"seconds": {}, "failed": {}}))]:
        us = {label: 1e6 * spread(seconds).median for label, seconds in result["seconds"].items()}
        kernels = sum(kernel["us"] for kernel in result.get("kernels", []))
        ratios = {label: ratio["median"] for label, ratio in result.get("speedup", {}).items()}
        entry = {"us": us, "kernels_us": kernels, "times": ratios, "failed": result["failed"]}
        figures["batches"][batch] = entry
        wrong += [f"{batch}: {label}: {why}" for label, why in result["failed"].items() if "torch" not in label]
        if us and batch != "inference":
            ours = f"{us[OURS]:.0f} us" if OURS in us else "-"
            peers = ", ".join(f"{label} {us[label]:.0f}" for label in us if label.startswith("torch"))
            eager = f"eager {us[EAGER]:.0f}" if EAGER in us else "eager -"
            lines.append(f"batch {batch}: {ours} (kernels {kernels:.0f}, {eager}); {peers or 'no torch'}")
    if wrong:
        figures["wrong"] = "; ".join(wrong)
    return figures, ["captured, kernels alone, eager; torch", *lines]


def _layers(path: Path) -> tuple[dict[str, Any], list[str]]:
    from gpuconv.tuning.measure import spread

    document = _read(path)
    kernels = [kernel for result in document["results"] for kernel in result["kernels"]]
    right = sum(kernel["fault"] is None for kernel in kernels)
    ratios = {}
    for result in document["results"]:
        times = [spread(kernel["us"]).median for kernel in result["kernels"] if kernel["us"]]
        if times and result["peer_us"]:
            ratios[f"{result['operation']} {result['layer']}"] = spread(result["peer_us"]).median / min(times)
    faster = sum(ratio > 1 for ratio in ratios.values())
    figures = {"kernels": len(kernels), "right": right, "times_torch": ratios, "complete": document["complete"]}
    faults = [
        f"{result['operation']} {result['layer']} {kernel['variant']} {kernel['tiling']}: {kernel['fault']}"
        for result in document["results"]
        for kernel in result["kernels"]
        if kernel["fault"]
    ]
    if faults:
        figures["wrong"] = f"{len(faults)} wrong: {faults[0]}"
    line = f"{right} of {len(kernels)} right"
    return figures, [f"{line}; faster than torch on {faster} of {len(ratios)} layers" if ratios else line]


def _network(path: Path) -> tuple[dict[str, Any], list[str]]:
    from gpuconv.tuning.measure import spread

    document, figures, lines = _read(path), {}, []
    wrong = []
    for result in document["results"]:
        ms = {label: 1e3 * spread(seconds).median for label, seconds in result["seconds"].items()}
        figures[result["task"]] = {"ms": ms, "times": result["speedup"], "failed": result["failed"]}
        lines.append(f"{result['task']}, ms: " + ", ".join(f"{label} {value:.2f}" for label, value in ms.items()))
        if not result["right"]:
            wrong += [f"{result['task']}: {label}: {why}" for label, why in result["failed"].items()]
    if wrong:
        figures["wrong"] = "; ".join(wrong)
    settings = document["settings"]
    return figures, [f"{settings['model']}, {settings['batch']} images", *lines]


def _overhead(path: Path) -> tuple[dict[str, Any], list[str]]:
    figures = _read(path)
    wanted = ("launch_us", "eager_step_us", "captured_call_us")
    numbers = {name: figures[name] for name in wanted if isinstance(figures.get(name), (int, float))}
    return figures, [", ".join(f"{name} {value:.1f}" for name, value in numbers.items())] if numbers else []


def _tests(path: Path) -> tuple[dict[str, Any], list[str]]:
    figures = _read(path)
    failures, skipped = figures["failed"], figures["skipped"]
    if failures:
        test, message = next(iter(failures.items()))
        figures["wrong"] = f"{len(failures)} failed: {test}: {message}"
    done = figures["passed"] + len(failures) + len(skipped)
    line = f"{figures['passed']} passed, {len(failures)} failed, {len(skipped)} skipped"
    return figures, [f"{line} of {figures['wanted']}" if figures.get("wanted", done) > done else line]


def _sanitizer(path: Path) -> tuple[dict[str, Any], list[str]]:
    figures = _read(path)
    found = {name: text for name, text in figures.items() if name != "not_run"}
    if wrong := [f"{one}: {text}" for one, text in found.items() if text != "clean" and "planted fault" not in text]:
        figures["wrong"] = "; ".join(wrong)
    return figures, ["; ".join(f"{name} {text}" for name, text in found.items())]


def _lenet_command(job: Job) -> list[str] | str:
    given = ["--backend", "cuda", "--batches", "64,512", "--seconds", "0.6", "--rounds", "9", "--jobs", str(job.jobs)]
    return [*_module("lenet"), *given, "--json", str(job.out / "lenet_gpu.json")]


def _layers_command(job: Job) -> list[str] | str:
    given = ["--quick", "--rounds", "11", "--jobs", str(job.jobs), "--json", str(job.out / "gpu.json")]
    return [*_module("gpu"), *given]


def _halves_command(job: Job) -> list[str] | str:
    given = ["--quick", "--dtype", "float16", "--rounds", "11", "--jobs", str(job.jobs)]
    return [*_module("gpu"), *given, "--json", str(job.out / "gpu_float16.json")]


def _network_command(job: Job) -> list[str] | str:
    given = ["--backend", "cuda", "--rounds", "3", "--seconds", "0.5", "--jobs", str(job.jobs)]
    return [*_module("network"), *given, "--json", str(job.out / "network.json")]


def _overhead_command(job: Job) -> list[str] | str:
    if importlib.util.find_spec("bench.overhead") is None:
        return "there is no bench.overhead"
    return [*_module("overhead"), "--json", str(job.out / "overhead.json")]


def _stage(name: str, about: str, limit: float, digest: Digest, *, ends: bool = False, **options: bool) -> Stage:
    return Stage(name, about, limit, _own(name, ends_by_itself=ends), f"{name}.json", digest, **options)


#: What matters most comes first.
STAGES = (
    _stage("environment", "versions, device, driver", 40, _environment, needed=True),
    _stage("contact", "a first kernel of each kind, LeNet captured", 150, _contact, needed=True),
    _stage("compile", "kernels of all stages, a process a core", 140, _compile, ends=True),
    _stage("training", "gpuconv train with its defaults, beside the CPU", 60, _training),
    Stage("lenet", "LeNet's step beside PyTorch's, batches 64, 512", 80, _lenet_command, "lenet_gpu.json", _lenet),
    Stage("layers", "bench.gpu --quick: right, then beside cuDNN", 110, _layers_command, "gpu.json", _layers),
    Stage("halves", "bench.gpu --quick in float16, beside cuDNN's", 60, _halves_command, "gpu_float16.json", _layers),
    Stage("network", "ResNet-18 beside PyTorch's", 120, _network_command, "network.json", _network),
    Stage("overhead", "the host's part of launches and steps", 30, _overhead_command, "overhead.json", _overhead),
    _stage("tests", "tests/test_gpu.py", 140, _tests, ends=True),
    _stage("sanitizer", "memcheck and racecheck on small layers", 70, _sanitizer),
    _stage("real-sizes", "every tiling, for the rest of the time", 480, _tests, ends=True, rest=True),
)


# -- the report -------------------------------------------------------------------------------------------------------


def run(stages: Sequence[Stage], out: Path, jobs: int, limit: float, document: dict[str, Any]) -> None:
    """Run the stages, as long as there is time; the document is filled and written after each.

    Raises:
        KeyboardInterrupt: Ctrl-C, or SIGTERM; what was running is killed, and in the document.
    """
    end, stopped_by = time.monotonic() + limit, ""
    for stage in stages:
        left = end - time.monotonic()
        if stopped_by or left < min(_LEAST, stage.limit):
            why = f"{stopped_by} failed" if stopped_by else "no time was left"
            entry = {**_entry(0.0), "why": why}
        else:
            seconds = min(stage.limit, left)
            say(f"{stage.name}: {stage.about}; at most {seconds:.0f} s")
            try:
                entry = run_stage(stage, out, jobs, seconds)
            except KeyboardInterrupt as interrupt:
                stopped = {**_entry(seconds), "status": STOPPED}
                document["stages"][stage.name] = interrupt.args[0] if interrupt.args else stopped
                raise
        document["stages"][stage.name] = entry
        if stage.name == "environment" and "machine" in entry["figures"]:
            document["machine"] = entry["figures"].pop("machine")
        if stage.needed and entry["status"] != PASSED:
            stopped_by = stage.name
        write(document, out / "report.json")


def failed(document: dict[str, Any]) -> list[str]:
    """Stages that failed or ran out of time."""
    return [name for name, entry in document["stages"].items() if entry["status"] in (FAILED, TIMED_OUT)]


def summary(document: dict[str, Any], where: Path, columns: int = _COLUMNS, lines: int = _LINES) -> str:
    """The report, which is at ``where``, on one screen."""
    described = document["machine"]
    gpu, versions = described.get("gpu", {}), {**described["versions"], **described.get("gpu", {}).get("versions", {})}
    dirty = " with changes" if described["dirty"] else ""
    device = f"{gpu['name']}, driver {gpu['driver']}" if gpu else "the GPU was not asked for its name"
    names = ("python", "numpy", "numba-cuda", "torch")
    found = [
        f"{device}, commit {described['commit']}{dirty}",
        ", ".join(f"{name} {versions[name]}" for name in names if name in versions),
    ]
    for name, entry in document["stages"].items():
        first, *more = entry["lines"] or [""]
        if entry["status"] != PASSED:
            # What failed says why, on two lines if need be; how far it came is less important.
            why = " ".join(str(entry["why"]).split())
            first = textwrap.shorten(why, columns - 30, placeholder="")
            more = textwrap.wrap(why[len(first) :].strip(), columns - 5)[:1]
        found.append(f"{name:<12}{entry['status']:<10}{entry['seconds']:>4.0f} s  {first}")
        found += [f"    {one}" for one in more]
    bad = failed(document)
    last = f"failed: {', '.join(bad)}" if bad else "nothing failed" if document["complete"] else "interrupted"
    room = lines - 2  # the last line, and the prompt
    if len(found) > room:
        found = [*found[: room - 1], "..."]
    return "\n".join(_cut(line, columns - 1) for line in [*found, f"{last}; {where}"])


def _cut(line: str, columns: int) -> str:
    line = " ".join(line.splitlines())
    return line if len(line) <= columns else line[: columns - 3] + "..."


def _arguments(argv: Sequence[str] | None, stages: Sequence[Stage]) -> argparse.Namespace:
    parser = Parser("gpu_report", "What there is to know of a GPU.")
    add = parser.add_argument
    names = [stage.name for stage in stages]
    add("--out", type=Path, metavar="DIR", help="the folder for report.json and logs; made if it is not there")
    parser.count_option("--limit", "S", "seconds for all", _LIMIT)
    add("--only", action="append", choices=names, metavar="STAGE", help="this stage alone; repeatable")
    parser.jobs_option()
    add("--list", action="store_true", help="show the stages")
    arguments = parser.parse_args(argv)
    if arguments.out is None and not arguments.list:
        raise Refused("the following arguments are required: --out; --help lists the options")
    return arguments


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _run(argv: Sequence[str] | None, stages: Sequence[Stage]) -> int:
    arguments = _arguments(argv, stages)
    if arguments.list:
        for stage in stages:
            print(f"{stage.name:<12}{stage.limit:>5.0f} s  {stage.about}")
        return 0
    chosen = [stage for stage in stages if not arguments.only or stage.name in arguments.only]
    check_writable("--out", arguments.out / "report.json")
    if stages is STAGES:
        refuse_versions()
    out = arguments.out.resolve()
    # What an earlier run has left would be taken for this one's.
    for stage in chosen:
        (out / stage.file).unlink(missing_ok=True)
        (out / "logs" / f"{stage.name}.log").unlink(missing_ok=True)
    settings = {name: vars(arguments)[name] for name in ("limit", "jobs", "only")}
    document = command.document("gpu-report", settings, stages={})
    # A time limit from outside ends it as Ctrl-C does: with what there is, and no process left.
    before = {number: signal.signal(number, _interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        run(chosen, out, arguments.jobs, arguments.limit, document)
        document["complete"] = True
    except KeyboardInterrupt:
        say(f"bench.gpu_report: interrupted; what there was is in {arguments.out}/report.json")
    finally:
        write(document, out / "report.json")
        for number, handler in before.items():
            signal.signal(number, handler)
    if not document["complete"]:
        return INTERRUPTED
    environment = document["stages"].get("environment", {})
    if refused := environment.get("figures", {}).get("refused"):
        raise Refused(refused)
    print(summary(document, arguments.out / "report.json"))
    return command.WRONG if failed(document) else 0


def main(argv: Sequence[str] | None = None, stages: Sequence[Stage] = STAGES) -> int:
    """Make the report; 1 if a stage failed. See :func:`bench.command.answer`."""
    return command.answer("bench.gpu_report", lambda given: _run(given, stages), argv)


if __name__ == "__main__":
    start(main)
