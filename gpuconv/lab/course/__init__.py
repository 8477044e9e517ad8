"""A course in writing CUDA kernels, without a GPU: fifteen puzzles, each judged by the laboratory.

from gpuconv.lab import course

print(course.task(1))
print(course.check(1, my_kernel))
"""

from __future__ import annotations

import dataclasses
from typing import Any

from gpuconv.lab.course import basics, sharing, tiles
from gpuconv.lab.course.puzzle import Puzzle, Verdict, judge

__all__ = ["PUZZLES", "Puzzle", "Verdict", "check", "judge", "puzzle", "task"]

#: In order.
PUZZLES = tuple(
    dataclasses.replace(each, number=number)
    for number, each in enumerate((*basics.PUZZLES, *sharing.PUZZLES, *tiles.PUZZLES), 1)
)


def puzzle(which: int | str) -> Puzzle:
    """A puzzle by its number or name.

    Raises:
        ValueError: there is none.
    """
    for each in PUZZLES:
        if str(which) in (str(each.number), each.name):
            return each
    raise ValueError(f"course: there is no puzzle {which!r}: they have the numbers 1 to {len(PUZZLES)}")


def task(which: int | str) -> str:
    """What a puzzle asks for."""
    return puzzle(which).file("").strip().strip('"')


def check(which: int | str, kernel: Any) -> Verdict:
    """Judge an answer to a puzzle: a kernel of ``numba.cuda``."""
    return judge(puzzle(which), kernel)
