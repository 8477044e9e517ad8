"""``gpuconv course``: fifteen puzzles in writing CUDA kernels, without a GPU."""

from __future__ import annotations

import json
import os
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpuconv.cli.common import Failure
from gpuconv.files import write_atomically

if TYPE_CHECKING:
    from gpuconv.lab.course import Puzzle

FOLDER = Path("course")
#: In the folder: names of the puzzles that are solved.
_PROGRESS = "progress.json"

app = typer.Typer(rich_markup_mode=None)
_Folder = Annotated[Path, typer.Option("--folder", help="Where the files are.")]
_Which = Annotated[str | None, typer.Argument(help="Number or name of a puzzle; without it, the first unsolved.")]


@app.callback(invoke_without_command=True)
def course(context: typer.Context, folder: _Folder = FOLDER) -> None:
    """Learn to write CUDA kernels, without a GPU: fifteen puzzles, each judged in a second.

    Begin with: gpuconv course start
    """
    if context.invoked_subcommand is not None:
        return
    puzzles = _puzzles()
    solved = _solved(folder)
    print(f"{len(puzzles)} puzzles in writing CUDA kernels. They run on the CPU, and need no GPU.\n")
    for puzzle in puzzles:
        print(f"  {'[x]' if puzzle.name in solved else '[ ]'} {puzzle.number:2}. {puzzle.title}")
    print()
    print(_next(puzzles, solved, folder))


@app.command()
def start(folder: _Folder = FOLDER) -> int:
    """Write a file for each puzzle. Files that are there already stay as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    puzzles = _puzzles()
    new = [puzzle for puzzle in puzzles if not (folder / puzzle.file_name).exists()]
    for puzzle in new:
        write_atomically(folder / puzzle.file_name, puzzle.file().encode())
    kept = len(puzzles) - len(new)
    print(f"{len(new)} files written to {folder}" + (f", {kept} kept as they are" if kept else ""))
    print(_next(puzzles, _solved(folder), folder))
    return 0


@app.command()
def check(which: _Which = None, folder: _Folder = FOLDER) -> int:
    """Judge your answer to a puzzle. Exits with 1 if it is not solved yet."""
    puzzles = _puzzles()
    solved = _solved(folder)
    puzzle = _puzzle(which) if which else _first(puzzles, solved)
    if puzzle is None:
        print("All puzzles are solved.")
        return 0
    path = folder / puzzle.file_name
    if not path.is_file():
        raise Failure(f"course: {path} is not there; 'gpuconv course start' writes the files")
    passed, words = _judged(puzzle, path)
    print(words)
    if not passed:
        solved.discard(puzzle.name)
        _keep(folder, solved)
        return 1
    solved.add(puzzle.name)
    _keep(folder, solved)
    print(_next(puzzles, solved, folder))
    return 0


@app.command()
def solution(which: Annotated[str, typer.Argument(help="Number or name of a puzzle.")]) -> int:
    """Print how a puzzle can be solved. Try it first."""
    print(_puzzle(which).solution.strip())
    return 0


@app.command()
def notebook(path: Annotated[Path, typer.Argument(help="The file to write.")] = Path("course.ipynb")) -> int:
    """Write the course as a Jupyter notebook."""
    if path.exists():
        raise Failure(f"course: {path} exists, and may have your answers: choose another name")
    from gpuconv.lab.course.notebook import notebook as document

    write_atomically(path, document().encode())
    print(f"wrote {path}")
    return 0


# -- puzzles and progress --------------------------------------------------------------------------------


def _puzzles() -> tuple[Puzzle, ...]:
    from gpuconv.lab.course import PUZZLES

    return PUZZLES


def _puzzle(which: str) -> Puzzle:
    from gpuconv.lab.course import puzzle

    return puzzle(which)


def _solved(folder: Path) -> set[str]:
    try:
        return set(json.loads((folder / _PROGRESS).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return set()


def _keep(folder: Path, solved: set[str]) -> None:
    write_atomically(folder / _PROGRESS, json.dumps(sorted(solved)).encode())


def _first(puzzles: tuple[Puzzle, ...], solved: set[str]) -> Puzzle | None:
    return next((puzzle for puzzle in puzzles if puzzle.name not in solved), None)


def _next(puzzles: tuple[Puzzle, ...], solved: set[str], folder: Path) -> str:
    """What to do now."""
    if not all((folder / puzzle.file_name).exists() for puzzle in puzzles):
        return "Begin with: gpuconv course start"
    puzzle = _first(puzzles, solved)
    if puzzle is None:
        return "All puzzles are solved. docs/kernels.md shows how gpuconv's own kernels go on from here."
    option = "" if folder == FOLDER else f" --folder {folder}"
    return f"Next: complete {folder / puzzle.file_name}, then: gpuconv course check{option}"


def _judged(puzzle: Puzzle, path: Path) -> tuple[bool, str]:
    """Whether a file solves a puzzle, and what to say."""
    from gpuconv.lab.course import judge

    try:
        from gpuconv.lab import simulator

        simulator.activate()  # before the file imports numba.cuda
    except (ImportError, RuntimeError) as error:
        raise Failure(f"course: {error}") from error
    title = f"{puzzle.number}. {puzzle.title}: not yet\n\n"
    names: dict[str, Any] = {"__name__": puzzle.name, "__file__": os.fspath(path)}
    try:
        exec(compile(path.read_text(encoding="utf-8"), os.fspath(path), "exec"), names)
    except SyntaxError as error:
        return False, f"{title}{path}:{error.lineno}: {error.msg}\n  {(error.text or '').strip()}"
    except Exception as error:  # whatever the file does
        places = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == os.fspath(path)]
        where = f"{path}:{places[-1].lineno}: " if places else ""
        return False, f"{title}{where}{type(error).__name__}: {error}"
    if puzzle.name not in names:
        return False, f"{title}{path} has no function {puzzle.name}: the kernel has to keep its name"
    verdict = judge(puzzle, names[puzzle.name])
    return verdict.passed, str(verdict)
