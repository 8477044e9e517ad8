"""The course as a Jupyter notebook, from the same texts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from gpuconv.lab.course import PUZZLES

_INTRODUCTION = """# CUDA kernels without a GPU

Fifteen puzzles, from the first kernel to a tiled convolution. Kernels are written with Numba, and run in gpuconv's
laboratory: on the CPU, thread by thread, with every access to memory recorded.

Complete each kernel, run its cell and the one behind it. What is wrong is told with its line, and a hint. In the
terminal, the same course is `gpuconv course`."""


def notebook() -> str:
    """The text of the .ipynb file."""
    document = {
        "cells": [{**cell, "id": f"cell-{number}"} for number, cell in enumerate(_cells())],
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _cells() -> Iterator[dict[str, Any]]:
    yield _text(_INTRODUCTION)
    yield _code("from gpuconv.lab import course")
    for puzzle in PUZZLES:
        # The texts have diagrams, which need letters of one width.
        yield _text(f"## {puzzle.number}. {puzzle.title}\n\n```text\n{puzzle.text.strip()}\n```")
        yield _code(puzzle.skeleton.strip())
        yield _code(f"course.check({puzzle.number}, {puzzle.name})")


def _text(source: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "metadata": {}, "source": source.splitlines(keepends=True)}


def _code(source: str) -> dict[str, Any]:
    return {
        "cell_type": "code",
        "execution_count": None,
        "metadata": {},
        "outputs": [],
        "source": source.splitlines(keepends=True),
    }
