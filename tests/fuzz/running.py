"""Run a program on both CPU backends and on the judge, statement by statement, and compare after each.

The judge is PyTorch; without it, the NumPy backend in float64, which tells values apart but not element types.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import json
import linecache
import math
import os
import re
import select
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import dialect, guard
from .programs import VARIABLE, Program, generate, has_effect, targets, uses

BACKENDS = ("numpy", "numba")

#: An operation refuses what it cannot do with one of these, and a message of its own.
_REFUSALS = (TypeError, ValueError, RuntimeError, IndexError, NotImplementedError)


@dataclass
class Fault:
    """What was found in a program.

    Attributes:
        kind: the same for what is most likely the same fault; what a reduction keeps.
        statement: its number.
        detail: for people.
    """

    kind: str
    statement: int
    detail: str


@dataclass
class Report:
    """What came of a program; counts by message."""

    fault: Fault | None = None
    refused: Counter[str] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)
    known: Counter[str] = field(default_factory=Counter)
    both: int = 0  # refused by all
    ran: int = 0
    skipped: list[int] = field(default_factory=list)


def judge() -> str:
    """Who says what is right."""
    return "numpy" if _without_torch or dialect.torch_or_none() is None else "torch"


_without_torch = False


def run(program: Program, offset: int = 0) -> Report:
    """Run a program everywhere; stops at the first fault."""
    guard.turn(program.seed)
    compile_everything(program.eager)
    report = Report()
    referee = judge()
    spaces = {name: dialect.names(name, offset) for name in BACKENDS}
    spaces["judge"] = dialect.names(referee, offset, referee != "torch")
    defined: set[str] = set()
    for number, statement in enumerate(program.statements):
        if statement.startswith("del "):
            for name in targets_of_del(statement):
                defined.discard(name)
                for space in spaces.values():
                    space.pop(name, None)
            continue
        if not uses(statement) <= defined | set(targets(statement)):
            report.skipped.append(number)
            continue
        errors = {name: _attempt(statement, space, name, referee) for name, space in spaces.items()}
        names = [name for name in _assigned(statement) if name in spaces["judge"] or name in spaces["numpy"]]
        stop = has_effect(statement)
        if any(errors.values()):
            report.fault = _judged(errors, number, statement, report)
            for name in names:
                for space in spaces.values():
                    space.pop(name, None)
                defined.discard(name)
            # What all refuse may have left gradients or loaded parameters in PyTorch; here it changes nothing.
            half_done = ".backward(" in statement or "load_state_dict(" in statement
            if report.fault or (stop and not all(errors.values())) or half_done:
                return report
            continue
        report.ran += 1
        defined.update(names)
        compared = names
        if stop:  # results that were compared once do not change
            compared = sorted(n for n in defined if n in names or _is_leaf(spaces["judge"][n]))
        tolerance = 2e-5 if "float32" in str(program.statements) else 1e-10
        expected = {name: dict(_parts(name, spaces["judge"][name])) for name in compared}
        for backend in BACKENDS:
            difference = _difference(expected, spaces[backend], referee, tolerance)
            if difference and difference[0] == "values":
                difference = _rounded(program, number, offset, difference, spaces, backend, referee)
            if difference:
                what, name, detail = difference
                text = f"{backend}: {what} of {name} after `{statement}`: {detail}"
                if what == "values":
                    variable = VARIABLE.match(name)[0]
                    for library in (backend, "judge"):
                        text += f"\n{library}: {dict(_parts(variable, spaces[library][variable]))[name]}"[:700]
                report.fault = Fault(f"{backend}: {what}: {_operation(statement)}", number, text)
                return report
    return report


def targets_of_del(statement: str) -> list[str]:
    """What a ``del`` names."""
    return statement.removeprefix("del ").split(", ")


def _assigned(statement: str) -> list[str]:
    return targets(statement) or (
        targets(statement.split("\n    ", 1)[1]) if statement.startswith("with no_grad():\n") else []
    )


def _operation(statement: str) -> str:
    """A statement without its names and numbers."""
    found = re.findall(r"[A-Za-z_]\w*\(|[-+*/@<>=!]=?", re.sub(r"array\([^)]*\)[^)]*\)", "", statement))
    return " ".join(found)[:60]


def _attempt(statement: str, space: dict[str, Any], library: str, referee: str) -> BaseException | None:
    where = referee if library == "judge" else library
    try:
        with dialect.running(where, library == "judge" and referee != "torch"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(_code(statement), space)
    except Exception as error:
        return error
    return None


_codes: dict[str, Any] = {}


def _code(statement: str) -> Any:
    if len(_codes) > 2000:
        _codes.clear()
    if statement not in _codes:
        _codes[statement] = compile(statement, "<statement>", "exec")
    return _codes[statement]


def _judged(errors: dict[str, Any], number: int, statement: str, report: Report) -> Fault | None:
    """Count a refusal, or find that it is a fault."""
    ours = {name: errors[name] for name in BACKENDS}
    for name, error in ours.items():
        if error is not None and not isinstance(error, _REFUSALS):
            return Fault(f"{name}: {_message(error)}", number, f"{name}: `{statement}`: {_trace(error)}")
    raised = [name for name, error in ours.items() if error]
    if len(raised) == 1:
        error = ours[raised[0]]
        return Fault(f"only {raised[0]} refuses: {_message(error)}", number, f"`{statement}`: {_trace(error)}")
    if errors["judge"] is None:
        error = ours[BACKENDS[0]]
        report.refused[("" if _deliberate(error) else "(not ours) ") + _message(error)] += 1
    elif not raised:
        report.accepted[_message(errors["judge"])] += 1
    else:
        report.both += 1
    return None


def _message(error: BaseException) -> str:
    """Kind and first line, without what is of one program only."""
    text = (str(error).strip() or "(no message)").splitlines()[0]
    text = re.sub(r"\((?:-?\d+(?:, ?|\)))*\)?|\[[\d, -]*\]", "(#)", text)
    text = re.sub(r"\b(?:u?int\d+|float\d+|bool)\b|[<>]f[48]", "T", text)
    text = re.sub(r"-?\b\d+(?:\.\d+)?(?:e[-+]?\d+)?\b", "#", text)
    return f"{type(error).__name__}: {text[:110]}"


def _deliberate(error: BaseException) -> bool:
    """Whether a statement ``raise`` of gpuconv is where it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    line = linecache.getline(frames[-1].filename, frames[-1].lineno or 0).strip()
    return "gpuconv" in frames[-1].filename and line.startswith("raise")


def _trace(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)[-4:]).strip()


# -- comparing ---------------------------------------------------------------------------------------------------------


def _difference(
    expected: dict[str, Any], space: dict[str, Any], referee: str, tolerance: float
) -> tuple[str, str, str] | None:
    for name, parts in expected.items():
        got = dict(_parts(name, space[name]))
        if isinstance(space[name], np.ndarray):  # in PyTorch a tensor stands for it
            parts = {part: value for part, value in parts.items() if part == name}
        if parts.keys() != got.keys():
            return "parts", name, f"{sorted(got)} instead of {sorted(parts)}"
        for part, value in parts.items():
            mine = got[part]
            if value is None or mine is None or not isinstance(value, np.ndarray):
                if value is not None and mine is not None and isinstance(value, float) and isinstance(mine, float):
                    value, mine = np.asarray(value), np.asarray(mine)
                elif not (value is mine or (type(value) is type(mine) and value == mine)):
                    return "kind", part, f"{mine!r} instead of {value!r}"[:300]
                else:
                    continue
            if value.shape != mine.shape:
                return "shape", part, f"{mine.shape} instead of {value.shape}"
            if value.dtype != mine.dtype and referee == "torch":
                return "type", part, f"{mine.dtype} instead of {value.dtype}"
            error = _error(value, mine, tolerance)
            if error:
                return "values", part, error
    return None


def _error(expected: np.ndarray, got: np.ndarray, tolerance: float) -> str:
    """Empty where they are equal but for rounding, of the largest value."""
    if not expected.size:
        return ""
    if expected.dtype.kind != "f" or got.dtype.kind != "f":
        return "" if np.array_equal(expected, got) else "values differ"
    with np.errstate(all="ignore"):
        error = np.abs(expected - got).max()
        if error <= tolerance:  # not so of NaN
            return ""
        finite = np.isfinite(expected) & np.isfinite(got)
        if not (finite | (expected == got) | (np.isnan(expected) & np.isnan(got))).all():
            return "infinite or NaN on one side"
        error = np.abs(expected - got)[finite].max(initial=0)
    largest = max(1.0, np.abs(expected[finite]).max(initial=0))
    return "" if error <= tolerance * largest else f"off by {error:.3g} where the largest is {largest:.3g}"


def _parts(name: str, value: Any):
    """Everything in a value that can be compared: arrays and plain numbers, with names."""
    if name[0] == "o" or name[0] == "s":
        return
    if isinstance(value, (tuple, list)):
        for number, one in enumerate(value):
            yield from _parts(f"{name}[{number}]", one)
    elif hasattr(value, "named_parameters"):
        for part, parameter in value.named_parameters():
            yield from _parts(f"{name}.{part}", parameter)
    elif isinstance(value, (np.ndarray, np.generic)):
        yield name, _native(np.asarray(value))
    elif hasattr(value, "requires_grad"):
        of_torch = hasattr(value, "storage")
        if of_torch and value.requires_grad and _is_leaf(value) is None:
            return
        yield name, _array(value)
        if of_torch:
            yield f"{name}.grad", None if not value.is_leaf or value.grad is None else _array(value.grad)
        else:
            yield f"{name}.grad", None if value.grad is None else _array(value.grad)
        if of_torch and not value.requires_grad:
            yield f"{name}.requires_grad", False
        else:
            yield f"{name}.requires_grad", bool(value.requires_grad)
    elif value is None or isinstance(value, (bool, int, float, str)):
        yield name, value


def _array(value: Any) -> np.ndarray:
    return _native(np.asarray(value.detach().numpy() if hasattr(value, "detach") else value))


def _native(array: np.ndarray) -> np.ndarray:
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _rounded(
    program: Program, number: int, offset: int, difference: Any, spaces: Any, backend: str, referee: str
) -> Any:
    """The difference, unless it is one of rounding: the judge in float64 says how far each is from the truth."""
    part = difference[1]
    name = VARIABLE.match(part)[0]  # type: ignore[index]
    truth = dialect.names(referee, offset, True)
    for statement in program.statements[: number + 1]:
        if statement.startswith("del "):
            continue
        with dialect.running(referee, True), contextlib.suppress(Exception), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(_code(statement), truth)
    try:
        exact = dict(_parts(name, truth[name]))[part]
        ours = dict(_parts(name, spaces[backend][name]))[part]
        theirs = dict(_parts(name, spaces["judge"][name]))[part]
        with np.errstate(all="ignore"):
            largest = max(
                1.0,
                *(
                    float(np.abs(value[np.isfinite(value)]).max(initial=0))
                    for each in truth
                    if VARIABLE.fullmatch(each)
                    for value in dict(_parts(each, truth[each])).values()
                    if isinstance(value, np.ndarray)
                ),
            )
            error, bound = np.abs(ours - exact), np.abs(theirs - exact)
    except (KeyError, TypeError, ValueError):
        return difference
    single = np.float32 in (ours.dtype, theirs.dtype) or "float32" in str(program.statements)
    allowed = (1e-5 if single else 1e-12) * largest + 50 * float(np.nanmax(bound, initial=0))
    if not math.isfinite(allowed):  # it overflows in float32 only: nothing can be told
        return None if single else difference
    return difference if not np.nanmax(error, initial=0) <= allowed else None


def _is_leaf(value: Any) -> bool | None:
    """Whether no operation made it, if it is a Tensor; None if PyTorch does not tell: of a view that became invalid."""
    try:
        return getattr(value, "is_leaf", True) is not False
    except RuntimeError:
        return None


# -- eager compilation -------------------------------------------------------------------------------------------------

_lazily: dict[str, Any] = {}


def compile_everything(eager: bool) -> None:
    """Whether compiled code runs at any size, in several chunks, or only where it pays."""
    from gpuconv.backends.cpu import backend as backend
    from gpuconv.backends.cpu import threads as threads

    if not _lazily:
        _lazily.update(COMPILE_FROM=backend.COMPILE_FROM, _SMALL_PRODUCT=backend._SMALL_PRODUCT)
        chunks = backend._chunks
        # The results of these are kept, and so they are the same in each program.
        backend._chunks = lambda work, most=64: max(chunks(work, most), min(most, 1 + work % 3))
        threads._WORK_TO_SHARE = 0
    for name, usual in _lazily.items():
        setattr(backend, name, 1 if eager else usual)  # of no work at all, none is compiled


# -- the process -------------------------------------------------------------------------------------------------------


def confirmed(program: Program) -> Report:
    """Run a program; values that differ count if they do so for other elements, too."""
    report = run(program)
    if report.fault and ": values: " in report.fault.kind:
        again = [run(program, offset).fault for offset in (1, 2, 3)]
        if sum(fault is not None and ": values: " in fault.kind for fault in again) < 2:
            report.known["values that differ for one choice of elements only"] += 1
            report.fault = None
    return report


def serve(guarded: bool, without_torch: bool = False, sabotage: str | None = None) -> None:
    """Answer requests, a JSON object a line: ``{"seed": ...}`` or ``{"program": ...}``."""
    global _without_torch
    faulthandler.enable()
    _without_torch = without_torch
    if judge() == "torch":
        dialect.torch_or_none().set_num_threads(1)
    if sabotage:
        from . import sabotage as ways

        getattr(ways, sabotage)()
    if guarded:
        guard.begin()
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        request = json.loads(line)
        if "seed" in request:
            program = generate(request["seed"], request["convolutions"])
        else:
            program = Program(**request["program"])
        answer = _in_a_child(program, request["limit"]) if "limit" in request else _answer(program)
        answers.write(answer + "\n")
        answers.flush()


def _answer(program: Program) -> str:
    report = confirmed(program)
    return json.dumps({**vars(report), "fault": report.fault and vars(report.fault)})


@functools.cache
def _warm_up() -> None:
    """Import, and load compiled code, what each child would have to."""
    run(
        Program(
            0, ["x1 = Tensor(array((2, 3)), True)", "x2 = F.cross_entropy(F.relu(x1), array((2,), 'int64'))"], False
        )
    )


def _in_a_child(program: Program, limit: float) -> str:
    """The answer of a forked process, which may crash or hang: one of those begins sooner than a new one."""
    _warm_up()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, _answer(program).encode())
        os._exit(0)
    os.close(write)
    answer, end = b"", time.monotonic() + limit
    while select.select([read], [], [], max(0.0, end - time.monotonic()))[0]:
        piece = os.read(read, 1 << 16)
        if not piece:
            break
        answer += piece
    else:
        os.kill(child, signal.SIGKILL)
        answer = json.dumps({"status": "hang"}).encode()
    os.close(read)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return answer.decode() or json.dumps({"status": status})
