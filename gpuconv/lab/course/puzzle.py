"""What a puzzle is, and how an answer to it is judged."""

from __future__ import annotations

import linecache
import re
import textwrap
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gpuconv.lab.places import site_name
from gpuconv.lab.report import Report

#: Seconds that a launch may take: each takes a small part of one.
LIMIT = 2.0
#: Orders of the threads and blocks in which each case is run.
SEEDS = (0, 1)


@dataclass(frozen=True)
class Case:
    """A launch of the kernel, and what has to come out.

    Attributes:
        what: in words, for the learner.
        arguments: of the kernel, in order, by the names that it gives them.
        expected: what arrays have to hold afterwards, by name.
        grid, block: of the launch.
    """

    what: str
    arguments: Mapping[str, Any]
    expected: Mapping[str, Any]
    grid: Any
    block: Any


#: Says in words what a launch that was right should do better, None if nothing.
Condition = Callable[[Report, Case], "str | None"]


@dataclass(frozen=True)
class Puzzle:
    """A task.

    Attributes:
        name: of the kernel, and of the file.
        title: a line.
        text: what there is to learn, and what to do.
        skeleton: code to complete.
        solution: the same, completed.
        cases: makes the launches; a new one each time, as kernels change their arguments.
        hints: what to think of, by kind of what went wrong: a kind of fault, or "error", "unwritten", "wrong",
            "condition". The longest key that the kind begins with counts.
        conditions: on launches with right results.
        number: its place in the course.
    """

    name: str
    title: str
    text: str
    skeleton: str
    solution: str
    cases: Callable[[], Iterator[Case]]
    hints: Mapping[str, str]
    conditions: tuple[Condition, ...] = ()
    number: int = field(default=0)

    @property
    def file_name(self) -> str:
        """Of the file that a learner completes."""
        return f"{self.number:02}_{self.name}.py"

    def file(self, code: str | None = None) -> str:
        """The text of that file: the task, and the skeleton or other code."""
        task = f'"""{self.number}. {self.title}\n\n{self.text.strip()}\n"""\n\n'
        return task + (self.skeleton if code is None else code).strip() + "\n"

    def hint(self, kind: str) -> str | None:
        """What to say of something that went wrong."""
        keys = [key for key in self.hints if kind.startswith(key)]
        return self.hints[max(keys, key=len)] if keys else _GENERAL.get(kind.partition(" ")[0])


@dataclass(frozen=True, repr=False)
class Verdict:
    """What became of an answer; print it to read it."""

    puzzle: Puzzle
    #: What went wrong, empty if nothing, and the case in which it did.
    words: tuple[str, ...] = ()
    case: str = ""
    hint: str | None = None

    @property
    def passed(self) -> bool:
        """Whether the puzzle is solved."""
        return not self.words

    def __repr__(self) -> str:
        return str(self)  # a notebook shows it

    def __str__(self) -> str:
        title = f"{self.puzzle.number}. {self.puzzle.title}"
        if self.passed:
            return f"{title}: solved"
        lines = [f"{title}: not yet", ""]
        if self.case:
            lines += [f"With {self.case}:"]
        lines += [textwrap.indent(words, "  ") for words in self.words]
        if self.hint:
            lines += ["", *textwrap.wrap(f"Hint: {self.hint}", 88, break_on_hyphens=False)]
        return "\n".join(lines)


_GENERAL = {
    "race": "two threads touch one element, one of them writes, and nothing says which comes first.",
    "out-of-bounds": "print the index of the last thread: is it smaller than the size of the array?",
    "uninitialized": "something is read before anybody has written it.",
    "negative": "which thread computes an index below zero, and what should it do instead?",
    "divergent": "every thread of a block has to come to the same barrier: no barrier belongs in an `if`.",
    "unwritten": "the array is as it was: write the result into it, as y[i] = ...",
}


def judge(puzzle: Puzzle, kernel: Any) -> Verdict:
    """Launch an answer in each case of a puzzle, and in several orders of its threads.

    Args:
        puzzle: what it answers.
        kernel: of ``numba.cuda``, or the Python function.
    """
    from gpuconv.lab.simulator import simulate

    if not hasattr(_function(kernel), "__code__"):
        return Verdict(puzzle, (f"{puzzle.name} is of type {type(kernel).__name__}, and should be a kernel",))
    path, full_path = _path(kernel), _function(kernel).__code__.co_filename
    for case in puzzle.cases():
        for seed in SEEDS:
            arguments = {name: _aligned(value) for name, value in case.arguments.items()}
            try:
                report = simulate(kernel, trace=True, seed=seed, limit=LIMIT)[case.grid, case.block](
                    *arguments.values()
                )
            except Exception as error:  # of whatever kind the kernel raises
                told = _short(_error(error), path).replace(f"{full_path}:", "line ")
                return Verdict(puzzle, (told,), case.what, puzzle.hint("error"))
            assert report is not None
            words, kind = _faults(report)
            found = _difference(case, arguments)
            if kind.startswith("race") and found is None:
                words.append("The result came out right, in this order of the threads. In another, it need not.")
            if found is not None:
                words.append(found[1])
                kind = kind or found[0]
            if not words:
                asked = [better for condition in puzzle.conditions if (better := condition(report, case)) is not None]
                words, kind = asked[:1], "condition"
            if words:
                return Verdict(puzzle, tuple(_short(each, path) for each in words), case.what, puzzle.hint(kind))
    return Verdict(puzzle)


def _aligned(value: Any) -> Any:
    """A copy of an array that begins where a GPU's memory would: the same sectors in each run."""
    if not isinstance(value, np.ndarray):
        return value
    memory = np.empty(value.nbytes + 256, np.uint8)
    begin = -memory.ctypes.data % 256
    array = memory[begin : begin + value.nbytes].view(value.dtype).reshape(value.shape)
    array[...] = value
    return array


def _error(error: Exception) -> str:
    """An error that ended a launch; of one in the kernel's code, also where."""
    place = ""
    for frame in traceback.extract_tb(error.__traceback__):
        if "gpuconv/lab/" not in frame.filename.replace("\\", "/") and frame.line:
            place = f"\n    {frame.filename}:{frame.lineno}: {frame.line}"
    return f"{type(error).__name__}: {error}{place}"


def _faults(report: Report) -> tuple[list[str], str]:
    """What the laboratory found, with the lines of source, and the kind of the first."""
    from gpuconv.lab.simulator import source_line

    words = []
    for fault in report.faults[:2]:
        lines = [f"\n    {site}: {source_line(site)}" for site in dict.fromkeys(fault.sites)]
        words.append(str(fault) + "".join(lines))
    return words, report.faults[0].kind if report.faults else ""


def _short(text: str, path: str) -> str:
    """The laboratory's words for an answer of a few lines: its arrays by their names, its lines by their numbers."""

    def named(match: re.Match[str]) -> str:
        name, equals, _ = linecache.getline(path, int(match[1])).partition("=")
        return name.strip() if equals else match[0]

    text = re.sub(rf"(?:shared|local) array of {re.escape(path)}:(\d+)", named, text)
    return text.replace(f"{path}:", "line ")


def _function(kernel: Any) -> Any:
    return getattr(kernel, "py_func", getattr(kernel, "fn", kernel))


def _path(kernel: Any) -> str:
    """The file of a kernel, as reports name it."""
    code = _function(kernel).__code__
    return site_name((code, (code.co_firstlineno,))).rpartition(":")[0]


def _difference(case: Case, arguments: Mapping[str, Any]) -> tuple[str, str] | None:
    """The first element that is not as it should be: a kind, and words."""
    for name, wanted in case.expected.items():
        got = arguments[name]
        wrong = ~np.isclose(got, wanted, rtol=1e-5, atol=1e-6)
        if not wrong.any():
            continue
        if np.array_equal(got, case.arguments[name], equal_nan=True):
            return "unwritten", f"{name} is as it was before the launch: nothing has been written to it"
        first = tuple(int(index[0]) for index in np.nonzero(wrong))
        place = f"{name}[{', '.join(map(str, first))}]"
        count = f" ({wrong.sum()} of {wrong.size} elements are wrong)" if wrong.size > 1 else ""
        if got[first] == case.arguments[name][first]:
            return "wrong", f"{place} is {got[first]:g}, as before the launch; it should be {wanted[first]:g}{count}"
        return "wrong", f"{place} is {got[first]:g}, and should be {wanted[first]:g}{count}"
    return None


# -- conditions ------------------------------------------------------------------------------------------


def at_most_sectors(array: str, most: Callable[[Case], int], words: str) -> Condition:
    """Sectors of 32 bytes that all requests to an array may touch together."""

    def condition(report: Report, case: Case) -> str | None:
        entries = [entry for entry in report.sectors if entry.array == array]
        total = sum(entry.sectors for entry in entries)
        if total <= most(case):
            return None
        worst = max(entries, key=lambda entry: entry.sectors)
        told = f"The result is right, but {words}: {total} sectors of {array}, and {most(case)} would do."
        return f"{told}\n{worst}"

    return condition


def no_bank_conflicts(report: Report, case: Case) -> str | None:
    """Lanes of a warp reach different banks of shared memory."""
    entries = [entry for entry in report.bank_conflicts if entry.degree > 1]
    if not entries:
        return None
    worst = max(entries, key=lambda entry: entry.degree)
    return f"The result is right, but threads wait for each other at a bank of shared memory.\n{worst}"


def at_most_atomics(array: str, most: Callable[[Case], int]) -> Condition:
    """Warps' requests for atomics on an array."""

    def condition(report: Report, case: Case) -> str | None:
        total = sum(each.requests for each in report.sectors if (each.array, each.access) == (array, "atomic"))
        if total <= most(case):
            return None
        return (
            f"The result is right, but warps come to the atomic on {array} {total} times, and {most(case)} would do: "
            "they queue there."
        )

    return condition
