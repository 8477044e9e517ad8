"""``gpuconv train``: train a network, show progress, and draw what it has learned."""

from __future__ import annotations

import importlib.util
import io
import logging
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from gpuconv import backends, parallel, storage
from gpuconv.cli.common import (
    RUNS,
    SAMPLES,
    Failure,
    complete_backend,
    complete_data,
    completing,
    new_console,
    newest_run,
    option,
    os_error,
    printable,
    say,
)
from gpuconv.data import AUGMENTATIONS, Dataset
from gpuconv.data.errors import missing_extra
from gpuconv.models import MODELS
from gpuconv.training import (
    CHECKPOINT,
    LOSSES,
    METRICS,
    MODEL,
    OPTIMIZERS,
    SCHEDULES,
    TrainConfig,
    events,
    fit,
    saved_config,
)

_PICTURES = {
    "curves.png": "loss and accuracy by epoch",
    "confusion.png": "true and predicted classes",
    "filters.png": "the learned filters",
    "activations.png": "one image's activations, layer by layer",
}


def _setting(text: str, name: str, metavar: str | None = None, complete: Callable[[str], Any] | None = None) -> Any:
    """An option for a field of TrainConfig. The default is shown but not set, because a resumed run has its own."""
    default = getattr(TrainConfig, name)
    shown = "" if default is None else f" [default: {default}]"
    return typer.Option(help=text + shown, metavar=metavar, autocompletion=complete)


def train(
    data: Annotated[
        str | None,
        _setting(
            "Data set: mnist-sample (comes with gpuconv); mnist, fashion-mnist, cifar10, cifar100 (downloaded); or a "
            "folder: of pictures, a folder a class, or of IDX files.",
            "data",
            complete=complete_data,
        ),
    ] = None,
    model: Annotated[
        str | None, _setting(f"Network: {', '.join(MODELS)}.", "model", "NAME", completing(*MODELS))
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Run directory. [default: a new one in runs/]", metavar="DIR"),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue an interrupted run, or a finished one to more --epochs: the run in --out, or the newest "
            "in runs/.",
        ),
    ] = False,
    epochs: Annotated[int | None, _setting("Passes through the training images.", "epochs")] = None,
    batch_size: Annotated[int | None, _setting("Images in a step.", "batch_size")] = None,
    optimizer: Annotated[str | None, _setting("sgd or adam.", "optimizer", "NAME", completing(*OPTIMIZERS))] = None,
    lr: Annotated[float | None, _setting("Learning rate. [default: 0.02 for sgd, 0.002 for adam]", "lr")] = None,
    momentum: Annotated[float | None, _setting("Momentum of sgd.", "momentum")] = None,
    weight_decay: Annotated[
        float | None, _setting("Factor of the weights added to their gradient.", "weight_decay")
    ] = None,
    schedule: Annotated[
        str | None,
        _setting("Learning rate over time: cosine or constant.", "schedule", "NAME", completing(*SCHEDULES)),
    ] = None,
    loss: Annotated[
        str | None, _setting("cross_entropy or half_squared_error.", "loss", "NAME", completing(*LOSSES))
    ] = None,
    seed: Annotated[int | None, _setting("Of all that is random.", "seed")] = None,
    validation_fraction: Annotated[
        float | None, _setting("Share of the training images held out for validation.", "validation_fraction")
    ] = None,
    image_size: Annotated[
        int | None,
        _setting(
            "Height and width that pictures are brought to. [default: what the network is made for]", "image_size"
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        _setting(
            "Weights to start from (.safetensors, .pt, .pth, or a run); a last layer for another number of classes is "
            "left out.",
            "weights",
            "FILE",
        ),
    ] = None,
    augment: Annotated[
        bool | None,
        _setting(
            "Change the training images at random, differently in each epoch: digits are rotated, scaled and shifted, "
            "pictures cropped and mirrored, large ones changed in colour, too.",
            "augment",
        ),
    ] = None,
    augment_with: Annotated[
        str | None,
        typer.Option(
            help=f"--augment by these changes alone: some of {', '.join(AUGMENTATIONS)}, with commas between.",
            metavar="NAMES",
            autocompletion=completing(*AUGMENTATIONS),
        ),
    ] = None,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Refuse a folder in which files are no pictures or cannot be read."),
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(help="Threads that read pictures. [default: one a core, at most 4]", min=0, metavar="N"),
    ] = None,
    patience: Annotated[
        int | None, _setting("Stop after this many epochs without a lower validation loss.", "patience")
    ] = None,
    checkpoint_every: Annotated[
        int | None, _setting("Steps between two checkpoints within an epoch.", "checkpoint_every")
    ] = None,
    keep_epochs: Annotated[
        bool | None,
        _setting("Keep the model of each epoch, for the slider of 'gpuconv explore'.", "keep_epochs"),
    ] = None,
    backend: Annotated[
        str | None,
        _setting(f"{', '.join([*backends.names(), backends.AUTO])}.", "backend", "NAME", complete_backend),
    ] = None,
) -> None:
    """Train a network, and draw what it has learned.

    The run directory will hold the model, its metrics and pictures, and ten test images to try it on. Ctrl-C saves the
    run; --resume continues it as if it had never stopped.

    With --resume, you may change --epochs, --patience, --checkpoint-every, --keep-epochs and --backend; all other
    settings are those of the run, and need not be given again. The learning rate follows the schedule of the new number
    of epochs: if a finished run with the cosine schedule is continued, it rises again, to where the longer curve is.

    Started by 'mpirun -n 4 gpuconv train ...', four processes share each batch.
    """
    options: dict[str, Any] = {
        "data": data, "model": model, "epochs": epochs, "batch_size": batch_size, "optimizer": optimizer, "lr": lr,
        "momentum": momentum, "weight_decay": weight_decay, "schedule": schedule, "loss": loss, "seed": seed,
        "validation_fraction": validation_fraction, "augment": augment, "patience": patience,
        "checkpoint_every": checkpoint_every, "keep_epochs": keep_epochs, "backend": backend, "image_size": image_size,
        "weights": None if weights is None else str(weights),
    }  # fmt: skip
    if augment_with is not None:
        if augment is False:
            raise Failure("--no-augment and --augment-with contradict each other")
        options["augment"] = augment_with
    given = {name: value for name, value in options.items() if value is not None}
    world = parallel.current()

    def planned() -> tuple[Path, TrainConfig]:
        if not resume:
            config = TrainConfig(**given)
            return out or _new_run_folder(config), config
        folder = out or newest_run(CHECKPOINT, "nothing to resume; give --out DIR")
        saved = saved_config(folder)
        return folder, TrainConfig(**{**(asdict(saved) if saved else {}), **given})

    world.check_same({option(name): value for name, value in options.items()})
    folder, config = world.from_first(planned)
    if folder.exists() and not folder.is_dir():
        raise Failure(f"--out must be a folder, {folder} is a file")
    _check_extras()

    from threadpoolctl import threadpool_limits

    # A small network's matrices gain nothing from a second BLAS thread. On a busy machine it costs a factor of ten, as
    # the threads spin while they wait for each other; and sums rounded in one order make a run the same anywhere.
    view = _TrainingView(new_console(), config, folder)
    with threadpool_limits(1, user_api="blas"), view if world.first else nullcontext():
        try:
            result = fit(config, folder, resume=resume, on_event=view, strict=strict, workers=workers)
        except events.Interrupted as interrupted:
            command = shlex.join(["gpuconv", "train", "--resume", "--out", str(folder)])
            raise Failure(f"{interrupted}; continue with: {command}", 128 + interrupted.signal) from interrupted
        except FileExistsError as error:
            raise Failure(f"{os_error(error)} (--resume, or another --out)") from error
    if not world.first:
        return
    _write_pictures(result, folder)
    view.show_files(_write_samples(result.dataset, folder))


def _new_run_folder(config: TrainConfig) -> Path:
    data = re.sub(r"[^\w.-]+", "-", Path(config.data).resolve().name) or "data"
    first = RUNS / f"{config.model}-{data}"
    folder, number = first, 2
    # A folder that is empty was left by a run that could not begin.
    while folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        folder, number = first.with_name(f"{first.name}-{number}"), number + 1
    return folder


def _check_extras() -> None:
    """Check at the start for packages that are needed only at the end of training; loading them takes time."""
    for package, purpose in (("matplotlib", "drawing"), ("PIL", "writing test images")):
        try:
            found = importlib.util.find_spec(package)
        except ValueError:  # somebody keeps it from being imported
            found = None
        if found is None:
            raise missing_extra(purpose, package)


#: The logger with which backends announce what takes long.
_BACKENDS = logging.getLogger("gpuconv.backends")


class _First(logging.Handler):
    """Passes on the first message that begins with a word."""

    def __init__(self, word: str, tell: Callable[[str], None]):
        super().__init__(logging.INFO)
        self._word, self._tell, self._told = word, tell, False

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if not self._told and message.startswith(self._word):
            self._told = True
            self._tell(message)


class _TrainingView:
    """Shows a training run: a line for each epoch, and on a terminal a progress bar."""

    def __init__(self, console: Console, config: TrainConfig, folder: Path):
        self.console, self.config, self.folder = console, config, folder
        self.test_images, self.validates, self.finished, self.reading = 0, True, False, False
        # Not console.is_terminal, which FORCE_COLOR sets too: colours may go into a file, a bar may not.
        interactive = sys.stdout.isatty() and not console.is_dumb_terminal
        self.progress = self._progress() if interactive else None
        self._compiling = _First("compiling", self._say_compiling)

    def _say_compiling(self, message: str) -> None:
        why_not_kept = message.partition("for this process only: ")[2]
        how_often = f"for this run only: {why_not_kept}" if why_not_kept else "kept for later runs"
        self.print(f"compiling for this CPU, which takes some seconds; {how_often}")

    def _progress(self) -> Progress:
        columns = [TextColumn("{task.description}"), BarColumn(bar_width=None), TextColumn("loss {task.fields[loss]}")]
        if self.console.width >= 72:
            columns += [TextColumn("{task.fields[accuracy]} right"), TextColumn("{task.fields[speed]} images/s")]
        if self.console.width >= 36:
            columns.append(TimeRemainingColumn())
        return Progress(*columns, console=self.console, transient=True, expand=True)

    def __enter__(self) -> _TrainingView:
        if self.progress:
            self.progress.start()
        _BACKENDS.addHandler(self._compiling)
        self._level = _BACKENDS.level
        _BACKENDS.setLevel(logging.INFO)
        return self

    def __exit__(self, *exc_info: object) -> None:
        _BACKENDS.setLevel(self._level)
        _BACKENDS.removeHandler(self._compiling)
        if self.progress:
            self.progress.stop()

    def print(self, text: str, style: str | None = None) -> None:
        """Print prose."""
        say(self.console, text, style)

    def print_line(self, text: str, style: str | None = None) -> None:
        """Print a line that stays one, so that a command in it can be copied."""
        self.console.print(text, style=style, soft_wrap=True)

    def __call__(self, event: events.Event) -> None:
        if isinstance(event, events.Started):
            self._start(event)
        elif isinstance(event, events.Reading):
            if not self.reading:
                self.reading = True
                self.print(f"reading {event.total:,} pictures")
        elif isinstance(event, events.FolderRead):
            self._show_folder(event)
        elif isinstance(event, events.WeightsLoaded):
            left_out = f"; not those of another last layer: {', '.join(event.left_out)}" if event.left_out else ""
            self.print(f"starting from the weights in {printable(event.path)}{left_out}")
        elif isinstance(event, events.BatchEnd) and self.progress:
            done = (event.epoch - 1) * event.steps + event.step
            self.progress.update(
                self.progress.task_ids[0],
                completed=done,
                description=f"epoch {event.epoch}/{self.config.epochs}",
                loss=f"{event.loss:.3f}",
                accuracy=f"{event.accuracy:.1%}",
                speed=f"{event.images_per_second:,.0f}",
            )
        elif isinstance(event, events.EpochEnd):
            self.print_line(self._row_of(event))
        elif isinstance(event, events.EarlyStop):
            # Every epoch after the best one had a higher loss; a resume with a smaller --patience finds more.
            number = event.epoch - event.best_epoch
            goes_on = f"; to continue: --resume --patience {number + 1}" if self.finished else ""
            self.print(
                f"stopped: the validation loss has not fallen for {number} {'epoch' if number == 1 else 'epochs'}; "
                f"epoch {event.best_epoch}'s weights are kept{goes_on}"
            )
        elif isinstance(event, events.Finished):
            self.print(
                f"test accuracy {event.test_accuracy:.2%} of {self.test_images:,} images, "
                f"after {event.seconds:.0f} s of training",
                style="bold",
            )

    def _show_folder(self, event: events.FolderRead) -> None:
        """What was found, and what was not taken."""
        if event.skipped:
            number = len(event.skipped)
            self.print(f"skipped {number:,} {'file' if number == 1 else 'files'} (--strict refuses them):")
            for line in event.skipped[:_MOST_SKIPPED]:
                self.print_line(f"  {printable(line)}")
            if number > _MOST_SKIPPED:
                self.print(f"  and {number - _MOST_SKIPPED:,} more, in {self.folder / SKIPPED}")
                self.folder.mkdir(parents=True, exist_ok=True)
                text = "".join(f"{printable(line)}\n" for line in event.skipped)
                storage.write_atomically(self.folder / SKIPPED, text.encode())
        if not event.in_memory:
            self.print("they do not fit into memory, and are read again when they are needed")

    def _start(self, event: events.Started) -> None:
        self.test_images, self.validates = event.test_images, event.validation_images > 0
        self.finished = event.finished
        held_out = f", {event.validation_images:,} held out" if event.validation_images else ""
        self.print(
            f"{event.model}, {event.parameters:,} parameters; {self.config.data}, {event.train_images:,} images"
            f"{held_out}; backend {event.backend}"
        )
        if event.finished:
            done = f" after epoch {event.epochs}/{event.epochs}; to continue: --resume --epochs {event.epochs + 1}"
            self.print(f"nothing is left to train{done if event.epochs_done == event.epochs else ''}")
            return
        if event.resumed:
            step = f", step {event.steps_done} of the next" if event.steps_done else ""
            self.print(f"resuming after epoch {event.epochs_done}{step}")
        self.print_line(self._row("epoch", "loss", "right", "validation", "right", "time"), style="bold")
        if self.progress:
            self.progress.add_task(
                f"epoch {event.epochs_done + 1}/{event.epochs}",
                total=event.epochs * event.steps,
                completed=event.epochs_done * event.steps + event.steps_done,
                loss="-", accuracy="-", speed="-",
            )  # fmt: skip

    def _row(self, *cells: str) -> str:
        """The cells under each other, as many of them as the terminal takes."""
        left_out: set[int] = set()
        for column in _LEFT_OUT if self.validates else _LEFT_OUT_WITHOUT_VALIDATION:
            if sum(_WIDTHS[i] for i in range(len(cells)) if i not in left_out) <= self.console.width:
                break
            left_out.add(column)
        return "".join(f"{cell:>{_WIDTHS[i]}}" for i, cell in enumerate(cells) if i not in left_out)

    def _row_of(self, epoch: events.EpochEnd) -> str:
        validated = epoch.validation_loss is not None and epoch.validation_accuracy is not None
        return self._row(
            f"{epoch.epoch}/{self.config.epochs}",
            f"{epoch.train_loss:.4f}",
            f"{epoch.train_accuracy:.2%}",
            f"{epoch.validation_loss:.4f}" if validated else "",
            f"{epoch.validation_accuracy:.2%}" if validated else "",
            f"{epoch.seconds:.1f} s",
        )

    def show_files(self, samples: Sequence[Path]) -> None:
        """Say what is where, and what to do next."""
        self.print(f"in {self.folder}:")
        texts = {MODEL: "the model, for gpuconv.load", METRICS: "one JSON line for each epoch", **_PICTURES}
        texts[f"{SAMPLES}/"] = "test images, named by their class"
        for name, text in texts.items():
            say(self.console, f"  {name:17}  {text}", indent=4)
        image = samples[min(7, len(samples) - 1)]
        self.print_line("next: " + shlex.join(["gpuconv", "predict", str(image), "--model", str(self.folder)]))


#: Skipped files that are shown, and the file in the run directory that lists more of them.
_MOST_SKIPPED, SKIPPED = 5, "skipped.txt"

#: Of the columns of an epoch's row, with the space before each; and which are left out first in a narrow terminal.
_WIDTHS = (7, 9, 9, 13, 9, 10)
_LEFT_OUT, _LEFT_OUT_WITHOUT_VALIDATION = (5, 2, 1, 3), (4, 3, 5, 1)


def _write_pictures(result: events.Result, folder: Path) -> None:
    from gpuconv import plots

    plots.save_curves([asdict(epoch) for epoch in result.history], folder / "curves.png")
    plots.save_confusion(result.confusion, result.model.classes, folder / "confusion.png")
    plots.save_filters(result.model, folder / "filters.png")
    plots.save_activations(result.model, result.dataset.test_images[0], folder / "activations.png")


def _file_names(classes: Sequence[str]) -> list[str]:
    """A name for a file of each class: its own, if these can be names of files and no two are alike."""
    names = [re.sub(r"[^\w+-]+", "-", name).strip("-")[:50] for name in classes]
    if "" in names or len({name.lower() for name in names}) < len(names):
        return [f"{label}-{name}".strip("-") for label, name in enumerate(names)]
    return names


def _write_samples(dataset: Dataset, folder: Path) -> list[Path]:
    """The first test image of each class, of ten at most, as PNG; small ones large enough to look at."""
    from PIL import Image

    (folder / SAMPLES).mkdir(exist_ok=True)
    names = _file_names(dataset.classes)
    labels, first = np.unique(dataset.test_labels, return_index=True)
    paths = []
    times = 1 if dataset.pictures else 10
    for label, number in zip(labels[:10], first, strict=False):
        buffer = io.BytesIO()
        pixels = dataset.test_images[number]
        if pixels.ndim == 3:
            pixels = pixels.transpose(1, 2, 0)
        Image.fromarray(pixels.repeat(times, axis=0).repeat(times, axis=1)).save(buffer, "PNG")
        paths.append(folder / SAMPLES / f"{names[label]}.png")
        storage.write_atomically(paths[-1], buffer.getvalue())
    return paths
