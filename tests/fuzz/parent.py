"""The process that hands out programs, and lives on when one of them crashes or hangs."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from . import guard
from .programs import Program, generate, script
from .reducing import reduced

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"


class Worker:
    """A process that runs programs, begun anew when it dies.

    Args:
        time_limit: seconds for a program; the first one that a process runs gets a minute more, for imports.
        without_torch: the NumPy backend in float64 is the judge.
        sabotage: a fault to put in, see ``sabotage``.
    """

    def __init__(self, time_limit: float = 30.0, without_torch: bool = False, sabotage: str | None = None):
        self.time_limit = time_limit
        self._options = ["--without-torch"] if without_torch else []
        self._options += ["--sabotage", sabotage] if sabotage else []
        self._process: subprocess.Popen[bytes] | None = None
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `__exit__`)

    def _begin(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", __package__, "--worker", *self._options]
        environment = {
            **os.environ,
            "GPUCONV_TUNING": "off",
            "GPUCONV_NUM_THREADS": "2",
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(map(str, [ROOT, TESTS, TESTS / "support" / "without_compiler"])),
        }
        self._messages.truncate(0)
        self._process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=-1, stdout=-1, stderr=self._messages)
        return self._process

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The report of a program; of one that ends its process, a fault that says how."""
        limit = self.time_limit
        process = self._process
        if process is None or process.poll() is not None:
            process, limit = self._begin(), limit + 60
        assert process.stdin is not None
        assert process.stdout is not None
        said_before = self._messages.seek(0, os.SEEK_END)
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            end = time.monotonic() + limit
            answer = b""
            while not answer.endswith(b"\n"):
                ready, _, _ = select.select([process.stdout], [], [], max(0.0, end - time.monotonic()))
                if not ready:
                    self.close()
                    return {"fault": self._death("hang", said_before)}
                piece = os.read(process.stdout.fileno(), 1 << 16)
                if not piece:
                    break
                answer += piece
        except BrokenPipeError:
            answer = b""
        reply = json.loads(answer) if answer else {"status": process.wait()}
        if not answer:
            self.close()
        if "status" in reply:
            return {"fault": self._death(reply["status"], said_before)}
        return reply

    def _death(self, status: Any, said_before: int) -> dict[str, Any]:
        """What ended a process, by its exit status and last words."""
        if status == "hang":
            return {"kind": "hang", "statement": None, "detail": "no answer in time"}
        self._messages.seek(said_before)
        said = self._messages.read().decode(errors="replace")
        guarded = [line for line in said.splitlines() if line.startswith("guard: ")]
        kind = f"crash: {guarded[-1]}" if guarded else f"crash: exit status {status}"
        return {"kind": kind, "statement": None, "detail": said.split("Extension modules")[0][-3000:]}

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()
            self._process = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
        self._messages.close()


@dataclass
class Found:
    """A fault, the seeds of the programs that have it, and the first of them made short."""

    kind: str
    detail: str
    seeds: list[int]
    program: Program


@dataclass
class Summary:
    """What came of many programs."""

    programs: int = 0
    statements: int = 0
    both: int = 0
    seconds: float = 0.0
    refused: Counter[str] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)
    known: Counter[str] = field(default_factory=Counter)
    faults: dict[str, Found] = field(default_factory=dict)

    def add(self, report: dict[str, Any]) -> None:
        """Count a program."""
        self.programs += 1
        self.statements += report.get("ran", 0)
        self.both += report.get("both", 0)
        for name in ("refused", "accepted", "known"):
            getattr(self, name).update(report.get(name, {}))

    def __str__(self) -> str:
        lines = [
            f"{self.programs} programs, {self.statements} statements compared, {self.both} refused by all, in "
            f"{self.seconds:.0f} s ({self.programs / max(self.seconds, 1e-9):.1f} programs a second)"
        ]
        for title, counts in (
            ("refused here, not by PyTorch", self.refused),
            ("refused by PyTorch, not here", self.accepted),
            ("known", self.known),
        ):
            lines += [f"{title}: {sum(counts.values())}"] + [
                f"  {n:6} {message}" for message, n in counts.most_common()
            ]
        lines.append(f"faults: {len(self.faults)}")
        for found in self.faults.values():
            seeds = ", ".join(map(str, found.seeds[:8]))
            lines += [f"  {found.kind} ({len(found.seeds)} programs: {seeds})"]
            lines += [f"      {line}" for statement in found.program.statements for line in statement.splitlines()]
        return "\n".join(lines)


def fuzz(
    seeds: Iterable[int],
    *,
    convolutions: int = 24,
    time_limit: float = 30.0,
    without_torch: bool = False,
    sabotage: str | None = None,
    save: Path | None = None,
    stop_after: int | None = None,
    say: Any = lambda text: None,
) -> Summary:
    """Run the programs of some seeds.

    Args:
        seeds: one a program.
        convolutions: shapes of which eager programs compile convolutions.
        time_limit: seconds a program.
        without_torch: the NumPy backend in float64 is the judge.
        sabotage: a fault to put in.
        save: folder that gets a script for each kind of fault.
        stop_after: kinds of fault.
        say: told what happens.
    """
    summary, start = Summary(), time.monotonic()
    with Worker(time_limit, without_torch, sabotage) as worker, contextlib.suppress(KeyboardInterrupt):
        for seed in seeds:
            if summary.programs % 2000 == 1999:  # compiled code takes memory
                worker.close()
            request = {"seed": seed, "convolutions": convolutions}
            report = worker.ask(request)
            if report["fault"] and report["fault"]["kind"] == "hang" and sabotage is None:
                # Compiling on a busy machine takes as long: what hangs does so again, and longer.
                report = worker.ask({**request, "limit": 4 * time_limit})
            summary.add(report)
            if fault := report["fault"]:
                _note(summary, worker, seed, fault, convolutions, save, say)
            if summary.programs % 500 == 0:
                say(f"{summary.programs} programs, {time.monotonic() - start:.0f} s, {len(summary.faults)} faults")
            if stop_after and len(summary.faults) >= stop_after:
                break
    summary.seconds = time.monotonic() - start
    return summary


def _note(
    summary: Summary, worker: Worker, seed: int, fault: dict[str, Any], convolutions: int, save: Path | None, say: Any
) -> None:
    kind = fault["kind"]
    if kind in summary.faults:
        summary.faults[kind].seeds.append(seed)
        return

    def fails(candidate: Program) -> bool:
        request = {"program": asdict(candidate)} | ({"limit": limit} if dies else {})
        found = worker.ask(request)["fault"]
        # A crash may be a signal or an abortion, as the array happened to lie.
        return found is not None and (found["kind"] == kind or kind[:5] == found["kind"][:5] == "crash")

    say(f"seed {seed}: {kind}\n{fault['detail']}")
    dies = kind == "hang" or kind.startswith("crash")
    limit = max(1.0, min(worker.time_limit / 5, 5.0))
    program = reduced(generate(seed, convolutions), fails, fault["statement"], most=20 if kind == "hang" else 400)
    summary.faults[kind] = Found(kind, fault["detail"], [seed], program)
    say("reduced to:\n" + "\n".join("    " + line for s in program.statements for line in s.splitlines()))
    if save is not None:
        save.mkdir(parents=True, exist_ok=True)
        (save / f"seed_{seed}.py").write_text(script(program, f"Seed {seed}: {kind}."))


def guards() -> str:
    """One line about guard pages."""
    why = guard.unavailable()
    return "arrays lie between guard pages" if why is None else f"no guard pages: {why}"
