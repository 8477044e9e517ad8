"""The ``gpuconv`` command: train, evaluate, predict, tune, summary, info.

What goes wrong is one line on stderr that begins with ``gpuconv:``, and exit status 2; ``--debug`` adds the traceback.
Ctrl-C ends with 130, after a training run has been saved.

Typer and Rich, part of ``gpuconv[cli]``, may be missing: the library is used without them. So nothing here needs them
before :func:`main` has looked. Annotations are text until Typer, in :func:`_app`, makes options of them.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import io
import json
import logging
import os
import platform
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

import gpuconv
from gpuconv import backends, storage, tuning_store
from gpuconv.data import DataError, Dataset, load_dataset, read_digit
from gpuconv.data.errors import missing_extra
from gpuconv.geometry import Conv2dGeometry
from gpuconv.models import MODELS, Classifier, build
from gpuconv.train import (
    CHECKPOINT,
    METRICS,
    MODEL,
    BatchEnd,
    EarlyStop,
    EpochEnd,
    Event,
    Finished,
    Interrupted,
    Result,
    Started,
    TrainConfig,
    TrainingDiverged,
    fit,
    saved_config,
)
from gpuconv.train import (
    evaluate as evaluate_model,
)

try:
    import rich  # noqa: F401
    import typer
except ImportError as error:
    _missing = error.name
else:
    _missing = None

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

__all__ = ["main"]

_RUNS = Path("runs")
_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
_PICTURES = {
    "curves.png": "loss and accuracy by epoch",
    "confusion.png": "which class was taken for which",
    "filters.png": "the learned filters",
    "activations.png": "one image's way through the layers",
}
_SAMPLES = "samples"
_SIZES = "n,c,h,w,k,r,s[,stride[,pad[,groups]]]"
_SHOWN_CANDIDATES = 5


class _Failure(Exception):
    """Ends the command with one line on stderr."""

    def __init__(self, message: str, status: int = 2):
        super().__init__(message)
        self.status = status


# -- entry -----------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Args:
        argv: the arguments, without the program's name; by default those of the process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    # Understood in any place: who needs it has just seen a command fail, and puts it at the end.
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    if _missing is not None:
        return _complain(str(missing_extra("the command line", _missing)))
    for stream in (sys.stdout, sys.stderr):
        # Terminals need not be UTF-8.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        status = _app()(arguments, prog_name="gpuconv", standalone_mode=False) or 0
        sys.stdout.flush()
    except typer.Abort:
        status = _INTERRUPTED
    except BrokenPipeError:
        return _stop_writing()
    except Exception as error:
        if debug:
            traceback.print_exc()
        return _complain(_in_one_line(error), error.status if isinstance(error, _Failure) else 2)
    if status == _INTERRUPTED:
        return _complain("interrupted", _INTERRUPTED)
    return int(status)


def _complain(message: str, status: int = 2) -> int:
    print(f"gpuconv: {_printable(' '.join(message.splitlines()))}", file=sys.stderr)
    return status


def _printable(text: object) -> str:
    """Text with escapes for what would move the cursor, or is no character at all: names of files may hold anything."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def _stop_writing() -> int:
    """Whoever read the output has gone (``gpuconv summary lenet5 | head -1``); that is no fault."""
    # Python flushes stdout once more at its end, and would complain.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1  # as Rich does


def _in_one_line(error: Exception) -> str:
    # Typer keeps the class of all usage errors to itself; its place changed, its descendant is public.
    if isinstance(error, typer.BadParameter.__mro__[1]):
        context = getattr(error, "ctx", None)
        where = context.command_path if context else "gpuconv"
        message = error.format_message()  # type: ignore[attr-defined]
        return f"{message.rstrip('.')} (see '{where} --help')"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, (_Failure, ValueError, OSError, ImportError, TrainingDiverged, backends.BackendUnavailable)):
        return str(error)
    if isinstance(error, MemoryError):
        return "out of memory"
    return f"unexpected {type(error).__name__}: {error} (--debug shows where)"


def _app() -> typer.Typer:
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.callback(invoke_without_command=True)(_top)
    for command in (train, evaluate, predict, tune, summary, info):
        app.command()(command)
    return app


def _top(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of what goes wrong.")] = False,
) -> None:
    """Train small convolutional networks, look inside them, and use them.

    Begin with: gpuconv train
    """
    if version:
        print(f"gpuconv {gpuconv.__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


def _setting(text: str, name: str, metavar: str | None = None) -> Any:
    """An option for a field of TrainConfig. The default is shown, but not set: a run that is resumed has its own."""
    default = getattr(TrainConfig, name)
    shown = "" if default is None else f" [default: {default}]"
    return typer.Option(help=text + shown, metavar=metavar)


def _console() -> Console:
    from rich.console import Console

    # Names of files may look like markup, and numbers in colours help nobody.
    return Console(markup=False, highlight=False, emoji=False)


# -- train -----------------------------------------------------------------------------------------------------------


def train(
    data: Annotated[
        str | None,
        _setting("Data set: mnist-sample (comes with gpuconv), mnist (downloaded), or a folder of IDX files.", "data"),
    ] = None,
    model: Annotated[str | None, _setting(f"Network: {', '.join(MODELS)}.", "model", "NAME")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Run directory. [default: a new one in runs/]", metavar="DIR"),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with an interrupted run: that in --out, or the newest in runs/."),
    ] = False,
    epochs: Annotated[int | None, _setting("Passes through the training images.", "epochs")] = None,
    batch_size: Annotated[int | None, _setting("Images in a step.", "batch_size")] = None,
    optimizer: Annotated[str | None, _setting("sgd or adam.", "optimizer", "NAME")] = None,
    lr: Annotated[float | None, _setting("Learning rate; if not given, that of the optimizer.", "lr")] = None,
    momentum: Annotated[float | None, _setting("Momentum of sgd.", "momentum")] = None,
    weight_decay: Annotated[float | None, _setting("Pull of the weights towards 0.", "weight_decay")] = None,
    schedule: Annotated[
        str | None, _setting("Learning rate over time: cosine or constant.", "schedule", "NAME")
    ] = None,
    loss: Annotated[str | None, _setting("cross_entropy or half_squared_error.", "loss", "NAME")] = None,
    seed: Annotated[int | None, _setting("Of all that is random.", "seed")] = None,
    validation_fraction: Annotated[
        float | None, _setting("Share of the training images that is held out.", "validation_fraction")
    ] = None,
    augment: Annotated[
        bool | None,
        _setting("Turn, scale and shift the training images a little at random, in each epoch anew.", "augment"),
    ] = None,
    patience: Annotated[
        int | None, _setting("Stop after so many epochs without a lower validation loss.", "patience")
    ] = None,
    checkpoint_every: Annotated[
        int | None, _setting("Steps between two checkpoints within an epoch.", "checkpoint_every")
    ] = None,
    backend: Annotated[
        str | None, _setting(f"{', '.join([*backends.names(), backends.AUTO])}.", "backend", "NAME")
    ] = None,
) -> None:
    """Train a network, and draw what it has learned.

    The run directory will hold the model, its metrics and pictures, and ten test images to try it on. Ctrl-C saves the
    run; --resume goes on with it as if nothing had happened.
    """
    given = {
        "data": data, "model": model, "epochs": epochs, "batch_size": batch_size, "optimizer": optimizer, "lr": lr,
        "momentum": momentum, "weight_decay": weight_decay, "schedule": schedule, "loss": loss, "seed": seed,
        "validation_fraction": validation_fraction, "augment": augment, "patience": patience,
        "checkpoint_every": checkpoint_every, "backend": backend,
    }  # fmt: skip
    given = {name: value for name, value in given.items() if value is not None}
    if resume:
        folder = out or _newest_run(CHECKPOINT, "nothing to resume; give --out DIR")
        saved = saved_config(folder)
        given = {**(asdict(saved) if saved else {}), **given}
    config = _config(given)
    folder = folder if resume else out or _new_run_folder(config)
    if folder.exists() and not folder.is_dir():
        raise _Failure(f"--out must be a folder, {folder} is a file")
    _check_extras()

    from threadpoolctl import threadpool_limits

    # A small network's matrices gain nothing from a second BLAS thread. On a busy machine it costs a factor of ten, as
    # the threads spin while they wait for each other; and sums rounded in one order make a run the same anywhere.
    with threadpool_limits(1, user_api="blas"), _TrainingView(_console(), config, folder) as view:
        try:
            result = fit(config, folder, resume=resume, on_event=view)
        except Interrupted as interrupted:
            command = shlex.join(["gpuconv", "train", "--resume", "--out", str(folder)])
            raise _Failure(f"{interrupted}; go on with: {command}", 128 + interrupted.signal) from interrupted
        except FileExistsError as error:
            raise _Failure(f"{_in_one_line(error)} (--resume, or another --out)") from error
    dataset = load_dataset(config.data)
    _write_pictures(result, dataset, folder)
    view.show_files(_write_samples(dataset, folder))


def _config(given: Mapping[str, Any]) -> TrainConfig:
    try:
        return TrainConfig(**given)
    except (TypeError, ValueError) as error:
        # The message begins with the field; here it is called as it was typed.
        name, space, rest = str(error).partition(" ")
        if name in {field.name for field in fields(TrainConfig)}:
            name = f"--{name.replace('_', '-')}"
        raise _Failure(f"{name}{space}{rest}") from error


def _new_run_folder(config: TrainConfig) -> Path:
    data = re.sub(r"[^\w.-]+", "-", Path(config.data).resolve().name) or "data"
    first = _RUNS / f"{config.model}-{data}"
    folder, number = first, 2
    # A folder that is empty was left by a run that could not begin.
    while folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        folder, number = first.with_name(f"{first.name}-{number}"), number + 1
    return folder


def _newest_run(holding: str, otherwise: str) -> Path:
    """The folder in ``runs/`` in which the file ``holding`` is newest."""
    files = sorted(_RUNS.glob(f"*/{holding}"), key=lambda path: path.stat().st_mtime)
    if not files:
        raise _Failure(f"there is no {holding} in {_RUNS}/*/: {otherwise}")
    return files[-1].parent


def _check_extras() -> None:
    """What is needed at the end of a training had better be missed at its beginning."""
    from gpuconv import plots

    plots.require_matplotlib()
    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        raise missing_extra("writing test images", "Pillow") from None


#: Where backends say what takes long.
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
    """Shows a training run: a progress bar where there is a terminal, and a line an epoch in any case."""

    def __init__(self, console: Console, config: TrainConfig, folder: Path):
        self.console, self.config, self.folder = console, config, folder
        self.test_images = 0
        # Not console.is_terminal, which FORCE_COLOR sets too: colours may go into a file, a bar may not.
        interactive = sys.stdout.isatty() and not console.is_dumb_terminal
        self.progress = self._progress() if interactive else None
        self._compiling = _First("compiling", self._say_compiling)

    def _say_compiling(self, message: str) -> None:
        why_not_kept = message.partition("for this process only: ")[2]
        how_often = f"for this run only: {why_not_kept}" if why_not_kept else "later runs find it done"
        self.print(f"compiling for this CPU, which takes some seconds; {how_often}")

    def _progress(self) -> Progress:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = [TextColumn("{task.description}"), BarColumn(bar_width=None), TextColumn("loss {task.fields[loss]}")]
        if self.console.width >= 72:
            columns += [TextColumn("{task.fields[accuracy]} right"), TextColumn("{task.fields[speed]} images/s")]
        return Progress(*columns, TimeRemainingColumn(), console=self.console, transient=True, expand=True)

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
        """Print a line; not wrapped, so that names of files can be copied."""
        self.console.print(text, style=style, soft_wrap=True)

    def __call__(self, event: Event) -> None:
        if isinstance(event, Started):
            self._start(event)
        elif isinstance(event, BatchEnd) and self.progress:
            done = (event.epoch - 1) * event.steps + event.step
            self.progress.update(
                self.progress.task_ids[0],
                completed=done,
                description=f"epoch {event.epoch}/{self.config.epochs}",
                loss=f"{event.loss:.3f}",
                accuracy=f"{event.accuracy:.1%}",
                speed=f"{event.images_per_second:,.0f}",
            )
        elif isinstance(event, EpochEnd):
            self.print(self._row(event))
        elif isinstance(event, EarlyStop):
            self.print(
                f"stopped: the validation loss has not fallen for {event.patience} epochs; epoch {event.best_epoch}'s "
                "weights are kept"
            )
        elif isinstance(event, Finished):
            self.print(
                f"test accuracy {event.test_accuracy:.2%} of {self.test_images:,} images, "
                f"after {event.seconds:.0f} s of training",
                style="bold",
            )

    def _start(self, event: Started) -> None:
        self.test_images = event.test_images
        held_out = f", {event.validation_images:,} held out" if event.validation_images else ""
        self.print(
            f"{event.model}, {event.parameters:,} parameters; {self.config.data}, {event.train_images:,} images"
            f"{held_out}; backend {event.backend}"
        )
        if event.finished:
            self.print("nothing is left to train")
            return
        if event.resumed:
            step = f", step {event.steps_done} of the next" if event.steps_done else ""
            self.print(f"going on after epoch {event.epochs_done}{step}")
        self.print(_ROW.format("epoch", "loss", "right", "validation", "right", "time"), style="bold")
        if self.progress:
            self.progress.add_task(
                f"epoch {event.epochs_done + 1}/{event.epochs}",
                total=event.epochs * event.steps,
                completed=event.epochs_done * event.steps + event.steps_done,
                loss="-", accuracy="-", speed="-",
            )  # fmt: skip

    def _row(self, epoch: EpochEnd) -> str:
        validated = epoch.validation_loss is not None and epoch.validation_accuracy is not None
        return _ROW.format(
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
        texts = {MODEL: "the model, for gpuconv.load", METRICS: "a line of JSON an epoch", **_PICTURES}
        texts[f"{_SAMPLES}/"] = "test images, named by what they show"
        for name, text in texts.items():
            self.print(f"  {name:17}  {text}")
        image = samples[min(7, len(samples) - 1)]
        self.print("next: " + shlex.join(["gpuconv", "predict", str(image), "--model", str(self.folder)]))


_ROW = "{:>7} {:>8} {:>8}   {:>10} {:>8} {:>9}"


def _write_pictures(result: Result, dataset: Dataset, folder: Path) -> None:
    from gpuconv import plots

    plots.save_curves([asdict(epoch) for epoch in result.history], folder / "curves.png")
    plots.save_confusion(result.confusion, result.model.classes, folder / "confusion.png")
    plots.save_filters(result.model, folder / "filters.png")
    plots.save_activations(result.model, dataset.test_images[0], folder / "activations.png")


def _write_samples(dataset: Dataset, folder: Path) -> list[Path]:
    """The first test image of each class, of ten at most, as PNG; large enough to look at."""
    from PIL import Image

    (folder / _SAMPLES).mkdir(exist_ok=True)
    labels, first = np.unique(dataset.test_labels, return_index=True)
    paths = []
    for label, number in zip(labels[:10], first, strict=False):
        buffer = io.BytesIO()
        Image.fromarray(dataset.test_images[number].repeat(10, axis=0).repeat(10, axis=1)).save(buffer, "PNG")
        paths.append(folder / _SAMPLES / f"{dataset.classes[label]}.png")
        storage.write_atomically(paths[-1], buffer.getvalue())
    return paths


# -- evaluate and predict --------------------------------------------------------------------------------------------


def _load_model(path: Path | None) -> tuple[Classifier, Path]:
    if path is None:
        path = _newest_run(MODEL, "train a model with 'gpuconv train', or give --model PATH")
    if (path / CHECKPOINT).exists() and not (path / MODEL).exists():
        command = shlex.join(["gpuconv", "train", "--resume", "--out", str(path)])
        raise _Failure(f"{path}: the training has not come to its end; go on with: {command}")
    return storage.load(path), path


def evaluate(
    model: Annotated[
        Path | None,
        typer.Option(help="Run directory or model file. [default: the newest run in runs/]", metavar="PATH"),
    ] = None,
    data: Annotated[
        str, typer.Option(help="Data set, as for train; its test images are taken.", metavar="NAME|DIR")
    ] = TrainConfig.data,
    backend: Annotated[str, typer.Option(help="As for train.", metavar="NAME")] = backends.AUTO,
) -> None:
    """Test a trained network: accuracy, loss, confusion."""
    from rich.table import Table

    with _on_backend(backend):
        network, path = _load_model(model)
        dataset = load_dataset(data)
        result = evaluate_model(network, dataset.test_images, dataset.test_labels)

    console = _console()
    console.print(f"{path} on the {len(dataset.test_labels):,} test images of {data}", soft_wrap=True)
    console.print(f"accuracy {result.accuracy:.2%}, loss {result.loss:.4f}", style="bold")
    table = Table("class", box=None, header_style="bold", pad_edge=False)
    for heading in ("images", "right", "accuracy"):
        table.add_column(heading, justify="right")
    table.add_column("most often taken for")
    for label, row in enumerate(result.confusion):
        images, right = int(row.sum()), int(row[label])
        others = row.copy()
        others[label] = 0
        worst = int(others.argmax())
        table.add_row(
            network.classes[label],
            f"{images:,}",
            f"{right:,}",
            f"{right / images:.1%}" if images else "-",
            f"{network.classes[worst]} ({others[worst]:,})" if others[worst] else "",
        )
    console.print(table)
    confusion = _confusion_table(result.confusion, network.classes)
    needed = console.measure(confusion, options=console.options.update(max_width=10_000)).maximum
    if needed <= console.width:
        console.print("\nconfusion: a row for each true class, a column for each predicted one")
        console.print(confusion)


def _confusion_table(confusion: np.ndarray, classes: Sequence[str]) -> Any:
    from rich.table import Table

    table = Table("", box=None, header_style="bold", pad_edge=False)
    for name in classes:
        table.add_column(name, justify="right", no_wrap=True)
    for name, row in zip(classes, confusion, strict=True):
        table.add_row(name, *(f"{count:,}" if count else "·" for count in row))
    return table


def predict(
    images: Annotated[
        list[Path], typer.Argument(help="Pictures of one digit each: PNG, JPEG, ...", metavar="IMAGE...")
    ],
    model: Annotated[
        Path | None,
        typer.Option(help="Run directory or model file. [default: the newest run in runs/]", metavar="PATH"),
    ] = None,
    backend: Annotated[str, typer.Option(help="As for train.", metavar="NAME")] = backends.AUTO,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: a list with an object for each image.")] = False,
) -> None:
    """Say what a picture shows, with the probability of each class.

    The digit may be of any size, dark on light or light on dark.
    """
    console = _console()
    answers: list[dict[str, Any]] = []
    with _on_backend(backend):
        network, path = _load_model(model)
        if not as_json:
            console.print(f"model {_printable(path)}", style="dim", soft_wrap=True)
        for image in images:
            try:
                probabilities = network.predict(read_digit(image))
            except DataError as error:
                _complain(str(error))
                answers.append({"image": str(image), "error": str(error)})
                continue
            answer = network.classes[int(probabilities.argmax())]
            of_classes = dict(zip(network.classes, map(float, probabilities), strict=True))
            answers.append({"image": str(image), "class": answer, "probabilities": of_classes})
            if not as_json:
                _show_prediction(console, image, answer, of_classes)
    if as_json:
        print(json.dumps(answers, indent=2))
    if any("error" in answer for answer in answers):
        raise typer.Exit(2)


def _show_prediction(console: Console, image: Path, answer: str, probabilities: Mapping[str, float]) -> None:
    console.print(f"{_printable(image)}: {answer}", style="bold", soft_wrap=True)
    most = (
        sorted(probabilities.items(), key=lambda item: -item[1])[:20]
        if len(probabilities) > 20
        else probabilities.items()
    )
    widest = max(len(name) for name, _ in most)
    room = max(1, min(40, console.width - widest - 12))
    for name, probability in most:
        bar = _bar(probability, room, ascii_only=console.options.ascii_only)
        console.print(
            f"  {name:>{widest}} {probability:6.1%} {bar}".rstrip(),
            style="green" if name == answer else None,
            no_wrap=True,
            crop=False,
        )


def _bar(share: float, width: int, *, ascii_only: bool) -> str:
    if ascii_only:
        return "#" * round(share * width)
    eighths = round(share * width * 8)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def _on_backend(name: str) -> AbstractContextManager[object]:
    # auto is what is taken anyway, unless GPUCONV_BACKEND says something else.
    return nullcontext() if name == backends.AUTO else backends.use_backend(name)


# -- tune ------------------------------------------------------------------------------------------------------------


def tune(
    model: Annotated[
        str | None, typer.Argument(help=f"Network whose convolutions to tune: {', '.join(MODELS)}.", metavar="MODEL")
    ] = None,
    geometry: Annotated[
        str | None,
        typer.Option(help="Or one convolution: its sizes; stride, pad and groups may be left out.", metavar=_SIZES),
    ] = None,
    op: Annotated[
        str | None,
        typer.Option(help="With --geometry: conv2d, conv2d_grad_input, conv2d_grad_weight. [default: all]"),
    ] = None,
    batch: Annotated[int, typer.Option(help="Images a step of the network.", min=1)] = TrainConfig.batch_size,
    dtype: Annotated[str, typer.Option(help="With --geometry: float32 or float64.")] = "float32",
    backend: Annotated[str, typer.Option(help="As for train.", metavar="NAME")] = backends.AUTO,
    show: Annotated[bool, typer.Option("--list", help="Show what is in the store, and measure nothing.")] = False,
    clear: Annotated[bool, typer.Option("--clear", help="Empty the store, and measure nothing.")] = False,
) -> None:
    """Measure which variant of each convolution is the fastest here, and use it from now on.

    Each variant is checked before it is timed. Winners are kept, for this device, driver and version, in a folder that
    GPUCONV_TUNING names. Ctrl-C keeps what has been measured.
    """
    if sum([model is not None, geometry is not None, show, clear]) != 1:
        raise _Failure("tune takes one of: a MODEL, --geometry, --list, --clear (see 'gpuconv tune --help')")
    if show or clear:
        _list_tuning() if show else _clear_tuning()
        return
    from gpuconv import tuner

    if geometry is None and (op is not None or dtype != "float32"):
        raise _Failure("--op and --dtype go with --geometry")
    if op is not None and op not in tuner.OPERATIONS:
        near = difflib.get_close_matches(op, tuner.OPERATIONS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise _Failure(f"--op must be one of {', '.join(tuner.OPERATIONS)}, got {op!r}{hint}")
    if dtype not in ("float32", "float64"):
        raise _Failure(f"--dtype must be float32 or float64, got {dtype!r}")
    with _on_backend(backend):
        chosen = backends.current()
    if chosen.tuning_platform() is None:
        raise _Failure(tuner.nothing_to_tune(chosen))
    if geometry is not None:
        sizes = _geometry(geometry)
        tasks = [tuner.Task(name, sizes, dtype) for name in ([op] if op else tuner.OPERATIONS)]
    else:
        tasks = tuner.tasks_of(str(model), batch, chosen)
    console = _console()
    console.print(f"backend {chosen.name} ({chosen.describe()})", soft_wrap=True)
    measured, why_not = 0, ""
    try:
        for outcome in _with_progress(console, tuner.tune(tasks, chosen), len(tasks)):
            measured += not outcome.skipped
            why_not = outcome.skipped
            _show_outcome(console, outcome)
    except KeyboardInterrupt:
        kept = f"{measured} of {len(tasks)} were measured and are kept"
        raise _Failure(f"interrupted: {kept}", _INTERRUPTED) from None
    if not measured:
        raise _Failure(f"tune: nothing was measured; {why_not or 'the network has no convolution'}")
    place = tuning_store.folder()
    console.print(f"kept in {place}" if place else "kept for this process only: GPUCONV_TUNING is off", soft_wrap=True)


def _geometry(text: str) -> Conv2dGeometry:
    """The geometry that --geometry spells."""
    try:
        sizes = [int(part) for part in text.replace("x", ",").split(",")]
        if not 7 <= len(sizes) <= 10:
            raise ValueError
    except ValueError:
        raise _Failure(f"--geometry takes 7 to 10 integers, {_SIZES}, as 64,6,14,14,16,5,5,1,0; got {text!r}") from None
    n, c, h, w, k, r, s, stride, padding, groups = sizes + [1, 0, 1][len(sizes) - 7 :]
    if min(n, c, h, w, k, r, s, groups) < 1 or c % groups or k % groups:
        raise _Failure(f"--geometry: sizes must be at least 1, and groups must divide c and k; got {text!r}")
    try:
        return Conv2dGeometry.of(
            (n, c, h, w), (k, c // groups, r, s), stride=stride, padding=padding, groups=groups, op="--geometry"
        )
    except (TypeError, ValueError) as error:
        raise _Failure(str(error)) from error


def _with_progress(console: Console, outcomes: Iterable[Any], total: int) -> Iterator[Any]:
    """Pass outcomes on, under a bar where there is a terminal."""
    if not sys.stdout.isatty() or console.is_dumb_terminal:
        yield from outcomes
        return
    from rich.progress import track

    yield from track(outcomes, "tuning", total=total, console=console, transient=True)


def _show_outcome(console: Console, outcome: Any) -> None:
    console.print(str(outcome.task), style="bold", soft_wrap=True)
    for label, fault in outcome.wrong:
        console.print(f"  {label}: not timed: {fault}", soft_wrap=True)
    if outcome.skipped:
        console.print(f"  skipped: {outcome.skipped}", soft_wrap=True)
    # On a GPU there are dozens of tilings; those after the first few are of interest to nobody.
    for position, (label, microseconds) in enumerate(outcome.microseconds):
        note = "taken" if label == outcome.winner else ""
        note += ("" if not note else ", ") + "the rule's" if label == outcome.rule else ""
        if position < _SHOWN_CANDIDATES or note:
            console.print(f"  {label:24} {microseconds:12,.1f} µs  {note}".rstrip(), soft_wrap=True)
    if len(outcome.microseconds) > _SHOWN_CANDIDATES:
        console.print(f"  ({len(outcome.microseconds)} candidates)")
    if outcome.not_kept:
        _complain(f"not kept for other processes: {outcome.not_kept}")


def _clear_tuning() -> None:
    number = tuning_store.clear()
    print(f"{number:,} {'entry' if number == 1 else 'entries'} deleted from {tuning_store.folder() or 'memory'}")


def _list_tuning() -> None:
    from gpuconv import tuner

    here = set()
    for name, why_not in backends.available().items():
        if why_not is None:
            here.add(backends.get(name).tuning_platform())
    found, broken = tuning_store.entries()
    console = _console()
    place = tuning_store.folder()
    console.print(f"{len(found):,} in {place}" if place else "GPUCONV_TUNING is off: there is no store", soft_wrap=True)
    for entry in sorted(found, key=lambda entry: (entry.key.platform.backend, entry.date)):
        key, winner = entry.key, entry.winner
        task = tuner.Task(key.operation, key.geometry, key.dtype, key.window)
        tiling = "" if winner.tiling is None else " " + "x".join(map(str, winner.tiling.values()))
        state = "" if key.platform in here else " (not for here: another device, version or source of the kernels)"
        console.print(f"{task}: {winner.variant}{tiling}, {key.platform.backend}, {entry.date}{state}", soft_wrap=True)
    for line in broken:
        _complain(line)


# -- summary and info ------------------------------------------------------------------------------------------------


def summary(
    model: Annotated[str, typer.Argument(help=f"{', '.join(MODELS)}, or a run directory or model file.")],
) -> None:
    """Show a network's layers: output shapes, parameters, connections."""
    from rich.table import Table

    if model in MODELS or not Path(model).exists():
        try:
            network = build(model)
        except ValueError as error:
            raise _Failure(f"{model}: no such file, and {error}") from error
    else:
        network = storage.load(model)
    header, *rows, total = network.summary(network.input_shape).rows()
    table = Table(box=None, header_style="bold", pad_edge=False)
    for position, heading in enumerate(header):
        table.add_column(heading, justify="right" if position > 2 else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    table.add_section()
    table.add_row(*total, style="bold")
    console = _console()
    size = "x".join(map(str, network.input_shape))
    console.print(f"{type(network).__name__}, input {size}, {len(network.classes)} classes", soft_wrap=True)
    console.print(table)


def info() -> None:
    """Show versions, backends (and why one cannot run here), extras."""
    console = _console()

    def line(name: str, text: str) -> None:
        console.print(f"{name:15} {text}", soft_wrap=True)

    line("gpuconv", gpuconv.__version__)
    line("Python", f"{platform.python_version()}, {platform.platform()}, {os.cpu_count()} CPUs")
    line("NumPy", np.__version__)
    console.print("\nbackends", style="bold")
    for name, why_not in backends.available().items():
        line(f"  {name}", why_not or f"available: {backends.get(name).describe()}")
    try:
        taken = backends.current().name
    except (ValueError, backends.BackendUnavailable) as error:
        taken = f"none: {error}"
    chosen = os.environ.get(backends.ENVIRONMENT_VARIABLE)
    source = f"{backends.ENVIRONMENT_VARIABLE}={chosen}" if chosen else "chosen by itself"
    line("  taken", f"{taken} ({source})")
    console.print("\nextras", style="bold")
    for name in ("cli", "cuda12", "cuda13", "bench"):
        line(f"  {name}", _state_of_extra(name))
    console.print("\ndata", style="bold")
    line("  mnist-sample", "comes with gpuconv")
    line("  mnist", _state_of_mnist())


def _state_of_extra(extra: str) -> str:
    """Whether the packages of an extra are there, by the requirements that gpuconv was installed with."""
    try:
        requirements = importlib.metadata.requires("gpuconv") or []
    except importlib.metadata.PackageNotFoundError:
        return "unknown: gpuconv runs from its source folder and is not installed"
    missing = []
    for requirement in requirements:
        name = re.match(r"[\w.-]+", requirement)
        if name is None or not re.search(rf"extra == ['\"]{extra}['\"]", requirement) or name[0] == "gpuconv":
            continue
        try:
            importlib.metadata.version(name[0])
        except importlib.metadata.PackageNotFoundError:
            missing.append(name[0])
    return f"not installed: {', '.join(missing)} (pip install 'gpuconv[{extra}]')" if missing else "installed"


def _state_of_mnist() -> str:
    try:
        import pooch
    except ImportError as error:
        return str(missing_extra("downloading", error.name or "pooch"))
    folder = Path(os.environ.get("GPUCONV_DATA") or pooch.os_cache("gpuconv")).expanduser() / "mnist"
    return f"in {folder}" if folder.is_dir() else f"not downloaded yet; will be kept in {folder}"
