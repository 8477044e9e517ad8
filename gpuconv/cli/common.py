"""What the commands share: how they fail, where they print, which model and backend they take."""

from __future__ import annotations

import shlex
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from rich.console import Console

from gpuconv import backends, storage
from gpuconv.models import Classifier
from gpuconv.train import CHECKPOINT, MODEL

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
    """Say in one line on stderr what went wrong, and return the exit status."""
    print(f"gpuconv: {printable(' '.join(message.splitlines()))}", file=sys.stderr)
    return status


def printable(text: object) -> str:
    """Text with escapes for what would move the cursor, or is no character at all: names of files may hold anything."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def option(setting: str) -> str:
    """What a field of TrainConfig is called on the command line."""
    # Those of a model's constructor have no option.
    return setting if setting == "model_arguments" else f"--{setting.replace('_', '-')}"


def os_error(error: OSError) -> str:
    """What happened to which file."""
    if not error.strerror:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


def new_console() -> Console:
    """Where a command prints."""
    # Names of files may look like markup, and numbers in colours help nobody.
    return Console(markup=False, highlight=False, emoji=False)


def newest_run(holding: str, otherwise: str) -> Path:
    """The folder in ``runs/`` in which the file ``holding`` is newest."""
    files = sorted(RUNS.glob(f"*/{holding}"), key=lambda path: path.stat().st_mtime)
    if not files:
        raise Failure(f"there is no {holding} in {RUNS}/*/: {otherwise}")
    return files[-1].parent


def load_model(path: Path | None) -> tuple[Classifier, Path]:
    """The model in a file or run directory, and where that is; by default that of the newest run."""
    if path is None:
        path = newest_run(MODEL, "train a model with 'gpuconv train', or give --model PATH")
    if (path / CHECKPOINT).exists() and not (path / MODEL).exists():
        command = shlex.join(["gpuconv", "train", "--resume", "--out", str(path)])
        raise Failure(f"{path}: the training has not come to its end; go on with: {command}")
    return storage.load(path), path


def on_backend(name: str) -> AbstractContextManager[object]:
    """The backend of the option ``--backend``, as a context."""
    # auto is what is taken anyway, unless GPUCONV_BACKEND says something else.
    return nullcontext() if name == backends.AUTO else backends.use_backend(name)
