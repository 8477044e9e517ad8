"""Shared by the commands: errors, output, and finding models and backends."""

from __future__ import annotations

import shlex
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from gpuconv import backends, storage
from gpuconv.data import DATASETS
from gpuconv.models import Classifier
from gpuconv.training import CHECKPOINT, MODEL

#: Where runs are kept, in the folder that the command is called from.
RUNS = Path("runs")
INTERRUPTED = 130  # 128 + SIGINT, as shells have it
#: Test images of a run, beside its model.
SAMPLES = "samples"


class Failure(Exception):
    """Ends the command with one line on stderr."""

    def __init__(self, message: str, status: int = 2):
        super().__init__(message)
        self.status = status


def complain(message: str, status: int = 2) -> int:
    """Print one line on stderr that says what went wrong, and return the exit status."""
    print(f"gpuconv: {printable(' '.join(message.splitlines()))}", file=sys.stderr)
    return status


def printable(text: object) -> str:
    """Text with escapes for control and non-printing characters, which file names may contain."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def completing(*values: str) -> Callable[[str], list[str]]:
    """Completion of an option's values in a shell; for other options the shell offers files."""

    def matching(incomplete: str) -> list[str]:  # Typer goes by the argument's name
        return [value for value in values if value.startswith(incomplete)]

    return matching


#: For options that name a backend, and those that name a data set.
complete_backend = completing(*backends.names(), backends.AUTO)
complete_data = completing(*DATASETS)


def option(setting: str) -> str:
    """What a field of TrainConfig is called on the command line."""
    # Those of a model's constructor have none.
    return setting if setting == "model_arguments" else f"--{setting.replace('_', '-')}"


def os_error(error: OSError) -> str:
    """What happened to which file."""
    if not error.strerror:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


#: Columns of what is no terminal: a file or a pipe takes lines of any length.
_UNBOUNDED = 10_000


def new_console() -> Console:
    """The console that a command prints to: as wide as the terminal, without limit in a file or a pipe."""
    # File names may look like markup, and coloured numbers help nobody.
    console = Console(markup=False, highlight=False, emoji=False)
    # Not console.is_terminal, which FORCE_COLOR sets too.
    if not console.file.isatty():
        console.width = _UNBOUNDED
    elif console.is_dumb_terminal:
        console.size = shutil.get_terminal_size()  # Rich assumes 80 columns
    return console


def say(console: Console, text: str, style: str | None = None, *, indent: int = 0) -> None:
    """Print prose, wrapped between words at the width of the terminal, so that no number or file name is broken.

    Args:
        console: where.
        text: one line; its leading spaces are kept.
        style: Rich's.
        indent: of the second and later lines.
    """
    lines = textwrap.wrap(
        text, max(1, console.width), subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
    )
    console.print("\n".join(lines), style=style, soft_wrap=True)


def show_table(
    console: Console,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numbers: Sequence[str],
    expendable: Sequence[str] = (),
    total: bool = False,
) -> None:
    """Print a table without cutting cells. If the terminal is too narrow, expendable columns are left out.

    Args:
        console: where.
        headings: names of the columns, all different.
        rows: one cell for each column.
        numbers: columns that are aligned right.
        expendable: columns to leave out, in this order.
        total: whether the last row is a total, to be emphasised.
    """
    left_out: list[str] = []
    for name in [None, *expendable]:
        if name is not None:
            left_out.append(name)
        shown = [column for column, heading in enumerate(headings) if heading not in left_out]
        table = Table(box=None, header_style="bold", pad_edge=False)
        for column in shown:
            justify: Literal["left", "right"] = "right" if headings[column] in numbers else "left"
            table.add_column(headings[column], justify=justify, no_wrap=True)
        for number, row in enumerate(rows):
            last = total and number == len(rows) - 1
            table.add_row(*(row[column] for column in shown), style="bold" if last else None)
        needed = console.measure(table, options=console.options.update(max_width=_UNBOUNDED)).maximum
        if needed <= console.width:
            break
    else:
        # The terminal breaks the lines.
        console.width = needed
    console.print(table)
    if left_out:
        say(console, f"({', '.join(left_out)}: in a wider terminal)", style="dim")


def newest_run(holding: str, otherwise: str) -> Path:
    """The folder in ``runs/`` whose file ``holding`` is the newest."""
    files = sorted(RUNS.glob(f"*/{holding}"), key=lambda path: path.stat().st_mtime)
    if not files:
        raise Failure(f"there is no {holding} in {RUNS}/*/: {otherwise}")
    return files[-1].parent


def load_model(path: Path | None) -> tuple[Classifier, Path]:
    """The model in a file or run directory, by default in the newest run, and its path."""
    if path is None:
        path = newest_run(MODEL, "train a model with 'gpuconv train', or give --model PATH")
    if (path / CHECKPOINT).exists() and not (path / MODEL).exists():
        command = shlex.join(["gpuconv", "train", "--resume", "--out", str(path)])
        raise Failure(f"{path}: the training has not finished; continue with: {command}")
    return storage.load_model(path), path


def on_backend(name: str) -> AbstractContextManager[object]:
    """The backend of the option ``--backend``, as a context."""
    # auto is the default anyway, unless GPUCONV_BACKEND says otherwise.
    return nullcontext() if name == backends.AUTO else backends.use_backend(name)
