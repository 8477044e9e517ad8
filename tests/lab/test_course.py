"""The course: its solutions pass, usual mistakes are refused in words that help, in the terminal and in a notebook."""

import json
import linecache
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from support.simulated import simulator

from gpuconv.cli import main
from gpuconv.lab import course
from gpuconv.lab.course.notebook import notebook

ROOT = Path(__file__).resolve().parents[2]
assert simulator


def answer(puzzle, code):
    """The kernel of an answer, as from a file."""
    path = f"<answer to {puzzle.name} {hash(code)}>"
    linecache.cache[path] = (len(code), None, code.splitlines(True), path)
    names = {"__name__": puzzle.name}
    exec(compile(code, path, "exec"), names)
    return names[puzzle.name]


class Mistake(NamedTuple):
    """A change of a solution that learners make, and what they are told: words of the finding, and of the hint."""

    puzzle: str
    old: str
    new: str
    says: str
    hint: str


BARRIER = "    cuda.syncthreads()\n"
TREE = "            tile[t] += tile[t + half]\n        cuda.syncthreads()\n"
MISTAKES = [
    Mistake("add_ten", "y[i] = x[i] + 10", "return x[i] + 10", "void return type", "cannot return values"),
    Mistake("add_ten", "y[i] = x[i] + 10", "y[0] = x[i] + 10", "race: y[0]: write at line", "thread i alone"),
    Mistake("add_ten", "y[i] = x[i] + 10", "y[i] += 10", "y[0] is 10, and should be", "adds 10, and writes the sum"),
    Mistake("add_ten", "y[i] = x[i] + 10", "y[i + 1] = x[i] + 10", "out-of-bounds write: y[8]",
            "Which index does the last"),
    Mistake("add_ten", "y[i] = x[i] + 10", "for k in range(8): y[k] = x[i] + 10", "race", "belongs to thread i alone"),
    Mistake("fahrenheit", "if i < out.size:", "if i <= out.size:", "out-of-bounds read: celsius[20]",
            "if i < out.size"),
    Mistake("fahrenheit", "if i < out.size:", "if i < out.size - 1:", "out[31] is 0, as before", "index size - 1"),
    Mistake("brighten", "cuda.blockIdx.x * cuda.blockDim.x + ", "", "race: pixels[",
            "blockIdx.x * blockDim.x threads"),
    Mistake("brighten", "blockIdx.x * cuda.blockDim.x", "blockIdx.x * cuda.gridDim.x", "race: pixels[", "same i"),
    Mistake("brighten", "if i < pixels.size:", "if True:", "out-of-bounds read: pixels[", "keep the guard"),
    Mistake("halve", "cuda.gridsize(1)", "cuda.blockDim.x", "race: x[", "the number of all threads"),
    Mistake("halve", "range(cuda.grid(1), x.size, ", "range(0, x.size, ", "race: x[", "same element"),
    Mistake("halve", "x.size, cuda", "x.size + 1, cuda", "out-of-bounds read: x[", "ends at the size of the array"),
    Mistake("halve", "for i in range(cuda.grid(1), x.size, cuda.gridsize(1)):",
            "i = cuda.grid(1)\n    while i < x.size:", "ended after", "does i grow"),
    Mistake("mirror", "if y < rows and x < columns", "if x < rows and y < columns", "out[0, 8] is 0", "x stand for"),
    Mistake("mirror", "columns - 1 - x", "columns - x", "out-of-bounds read: picture[", "columns - 1"),
    Mistake("mirror", "columns - 1 - x", "-x - 1", "negative index", "right by luck"),
    Mistake("mirror", "x, y = cuda.grid(2)", "y, x = cuda.grid(2)", "should be", "Does x stand for the column"),
    Mistake("mirror", "if y < rows and x < columns:", "if y < rows:", "negative index", "x < columns as well"),
    Mistake("four_each", "k * cuda.gridsize(1)", "k * cuda.blockDim.x", "as before the launch",
            "k times the number of all threads"),
    Mistake("four_each", "cuda.grid(1) + k * cuda.gridsize(1)", "cuda.grid(1) * 4 + k", "16.0 sectors a request",
            "thread 0 and thread 1 should take neighbours"),
    Mistake("histogram", "cuda.atomic.add(counts, digits[i], 1)", "cuda.atomic.add(counts, i, 1)", "out-of-bounds",
            ""),
    Mistake("histogram", "cuda.atomic.add(counts, digits[i], 1)", "counts[digits[i]] = counts[digits[i]] + 1", "race",
            "Let cuda.atomic.add do all three"),
    Mistake("histogram", "cuda.atomic.add(counts, digits[i], 1)", "cuda.atomic.add(counts[digits[i]], 1)", "TypeError",
            "takes the array, the index and the value"),
    Mistake("reverse", BARRIER, "", "race: tile[", "makes the reader wait"),
    Mistake("reverse", "tile[63 - t]", "tile[64 - t]", "out-of-bounds read: tile[64]", "0 to 63"),
    Mistake("reverse", BARRIER, "    if t < 32:\n        cuda.syncthreads()\n", "divergent barrier", "not in an `if`"),
    Mistake("blur", BARRIER, "", "race: tile[", "all threads have to wait"),
    Mistake("blur", "    if t == 0:\n        tile[0] = x[max(i - 1, 0)]\n", "", "uninitialized read: tile[0]",
            "who writes tile[0] and tile[33]"),
    Mistake("blur", "    cuda.syncthreads()\n    if i < x.size:\n", "    if i < x.size:\n        cuda.syncthreads()\n",
            "divergent barrier", "put the guard behind the barrier"),
    Mistake("blur", "x[min(i, last)]", "x[i]", "out-of-bounds read: x[", "stay inside"),
    Mistake("blur", "tile[t] + tile[t + 1] + tile[t + 2]", "tile[t + 1] * 3", "should be", "its neighbours are"),
    Mistake("block_sum", TREE, TREE.replace("        cuda.sync", "            cuda.sync"), "divergent barrier",
            "not in the `if`"),
    Mistake("block_sum", TREE, "            tile[t] += tile[t + half]\n", "race: tile[", "barrier between two steps"),
    Mistake("block_sum", "half = 64\n    while half > 0:\n        if t < half:\n            tile[t] += tile[t + half]",
            "half = 64\n    while half > 0:\n        s = 64 // half\n        if t < half:\n"
            "            tile[2 * s * t] += tile[2 * s * t + s]",
            "conflict degree", "threads t < half add"),
    Mistake("block_sum", "while half > 0:", "while half > 1:", "out[0] is", "is the last step among yours"),
    Mistake("block_sum", "half = 64\n", "half = 128\n", "out-of-bounds read: tile[", "only threads below 64"),
    Mistake("warp_max", "    if cuda.laneid == 0:\n        out", "    out", "race: out[", "It alone writes"),
    Mistake("warp_max", "delta = 16", "delta = 8", "should be", "16, 8, 4, 2 and 1"),
    Mistake("warp_max", "        value = max", "        if cuda.laneid < delta:\n            value = max",
            "SimulationError", "all lanes that the mask names"),
    Mistake("warp_max", "out[warp] = value", "out[t] = value", "out-of-bounds write: out[",
            "one element of out for each warp"),
    Mistake("total", "cuda.atomic.add(out, 0, tile[0])", "out[0] += tile[0]", "race: out[0]",
            "An atomic for the first"),
    Mistake("total", "x[i] if i < x.size else 0", "x[i]", "out-of-bounds read: x[", "must not read x"),
    Mistake("total", "tile[t] = x[i] if i < x.size else 0", "if i < x.size:\n        tile[t] = x[i]",
            "uninitialized read: tile[", "bring something, too: 0"),
    Mistake("total", "    if t == 0:\n        cuda.atomic", "    if True:\n        cuda.atomic", "out[0] is",
            "Only one thread of a block adds"),
    Mistake("transpose", "(32, 33)", "(32, 32)", "conflict degree 32", "has 33 columns"),
    Mistake("transpose", BARRIER, "", "race: tile[", "all have to wait in between"),
    Mistake("transpose", "out[left + ty, top + tx] = tile[tx, ty]", "out[left + tx, top + ty] = tile[ty, tx]",
            "sectors of out", "threadIdx.x is the last index"),
    Mistake("transpose", "if left + ty < columns and top + tx < rows", "if top + ty < rows and left + tx < columns",
            "out-of-bounds write: out[", "guards have to be turned"),
    Mistake("last_block", "        cuda.threadfence()\n        before", "        before", "race: sums[",
            "a cuda.threadfence() before the atomic and one behind it"),
    Mistake("last_block", "1)\n        cuda.threadfence()\n", "1)\n", "race: sums[", "and one behind it"),
    Mistake("last_block", "before == blocks - 1", "before == blocks", "out is as it was before",
            "the last one finds 3"),
    Mistake("last_block", "        cuda.threadfence()\n        if before == blocks - 1:",
            "        while ended[0] < blocks:\n            cuda.threadfence()\n        if True:", "race: ", ""),
    Mistake("convolve", BARRIER, "", "race: tile[", "a barrier stands in between"),
    Mistake("convolve", "range(32 * ty + tx, 340, 256)", "range(32 * ty + tx, 256, 256)", "uninitialized read: tile[",
            "who brings rows 8 and 9"),
    Mistake("convolve", "        if row < picture.shape[0] and column < picture.shape[1]:\n            tile",
            "        tile", "out-of-bounds read: picture[", "guard the reads by its shape"),
    Mistake("convolve", "tile[ty + r, tx + s]", "tile[ty + s, tx + r]", "should be", "begins at tile[ty, tx]"),
    Mistake("convolve", "tile[ty + r, tx + s]", "picture[y + r, x + s]", "pixels are read several times",
            "compute from the tile"),
]  # fmt: skip


@pytest.mark.parametrize("puzzle", course.PUZZLES, ids=lambda each: each.name)
def test_a_puzzle(puzzle):
    """Its solution passes, its skeleton does not, and gets words and a hint; so does each usual mistake."""
    assert course.judge(puzzle, answer(puzzle, puzzle.solution)).passed
    verdict = course.judge(puzzle, answer(puzzle, puzzle.skeleton))
    assert not verdict.passed
    assert verdict.hint
    mistakes = [mistake for mistake in MISTAKES if mistake.puzzle == puzzle.name]
    assert len(mistakes) >= 2
    for mistake in mistakes:
        assert puzzle.solution.count(mistake.old) == 1, mistake
        verdict = course.judge(puzzle, answer(puzzle, puzzle.solution.replace(mistake.old, mistake.new)))
        assert not verdict.passed, mistake
        text = re.sub(r"\s+", " ", str(verdict))
        assert mistake.says in text, (mistake, text)
        assert verdict.hint, (mistake, text)
        assert mistake.hint in verdict.hint, (mistake, text)
        assert "<answer" not in text, text


# -- where learners meet it ------------------------------------------------------------------------------


def said(capsys, *arguments):
    """Exit status and output of ``gpuconv course``."""
    status = main(["course", *arguments])
    output = capsys.readouterr()
    return status, output.out + output.err


def test_in_the_terminal(tmp_path, monkeypatch, capsys):
    """From the list to the second puzzle: files, verdicts, progress; what is there already is kept."""
    monkeypatch.chdir(tmp_path)
    status, text = said(capsys)
    assert (status, text.count("[ ]"), "Begin with: gpuconv course start" in text) == (0, 15, True)
    status, text = said(capsys, "check", "2")
    assert (status, "02_fahrenheit.py is not there; 'gpuconv course start' writes the files" in text) == (2, True)
    status, text = said(capsys, "start")
    assert (status, len(list(Path("course").glob("*.py")))) == (0, 15)
    assert text.splitlines()[-1] == "Next: complete course/01_add_ten.py, then: gpuconv course check".replace(
        "/", os.sep
    )

    status, text = said(capsys, "check")
    assert (status, "1. Add ten: a thread for each element: not yet" in text) == (1, True)
    path = Path("course/01_add_ten.py")
    for wrong, words in [
        ("def add_ten(x y)", "01_add_ten.py:1: invalid syntax"),
        ("import nothing_like_it", "01_add_ten.py:1: ModuleNotFoundError"),
        ("def add_eleven(x, y): pass", "has no function add_ten: the kernel has to keep its name"),
        ("def add_ten(x): pass", "TypeError: "),
        ("add_ten = 3", "add_ten is of type int, and should be a kernel"),
    ]:
        path.write_text(wrong)
        status, text = said(capsys, "check", "1")
        assert (status, words in text) == (1, True), text
    path.write_text(course.puzzle(1).file(course.puzzle(1).solution))
    status, text = said(capsys, "check")
    assert (status, "solved" in text, "Next: complete" in text) == (0, True, True)
    assert said(capsys, "start")[1].startswith("0 files written to course, 15 kept as they are")
    assert path.read_text().endswith("y[i] = x[i] + 10\n")
    status, text = said(capsys)
    assert "[x]  1." in text
    assert "Next: complete" in text
    assert said(capsys, "solution", "add_ten")[1].strip() == course.puzzle(1).solution.strip()
    assert said(capsys, "check", "16") == (
        2, "gpuconv: course: there is no puzzle '16': they have the numbers 1 to 15\n"
    )  # fmt: skip


def test_all_solved(tmp_path, monkeypatch, capsys):
    """The course ends."""
    monkeypatch.chdir(tmp_path)
    said(capsys, "start")
    for puzzle in course.PUZZLES[-2:]:
        Path("course", puzzle.file_name).write_text(puzzle.file(puzzle.solution))
    Path("course/progress.json").write_text(json.dumps([puzzle.name for puzzle in course.PUZZLES[:-1]]))
    assert "15. A convolution with a tile: solved\nAll puzzles are solved." in said(capsys, "check")[1]
    assert said(capsys, "check") == (0, "All puzzles are solved.\n")


def test_the_notebook(tmp_path):
    """Its cells run one after the other, where numba.cuda is for a real GPU; with solutions in them all are solved."""
    cells = json.loads(notebook())["cells"]
    assert len({cell["id"] for cell in cells}) == len(cells) == 2 + 3 * 15
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    for puzzle in course.PUZZLES[::4]:
        code[code.index(puzzle.skeleton.strip())] = puzzle.solution
    (tmp_path / "cells.json").write_text(json.dumps(code))
    (tmp_path / "run.py").write_text(
        "import json, linecache\n"
        "names = {}\n"
        "for number, cell in enumerate(json.load(open('cells.json'))):\n"
        "    path = f'<cell {number}>'\n"
        "    linecache.cache[path] = len(cell), None, cell.splitlines(True), path\n"
        "    if cell.startswith('course.check'):\n"
        "        print(repr(eval(compile(cell, path, 'eval'), names)).splitlines()[0])\n"
        "    else:\n"
        "        exec(compile(cell, path, 'exec'), names)\n"
    )
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "run.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for number, line in enumerate(done.stdout.splitlines()):
        assert line.endswith(": solved" if number % 4 == 0 else ": not yet"), line
