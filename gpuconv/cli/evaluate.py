"""``gpuconv evaluate``: a trained network's accuracy and confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.table import Table

from gpuconv import backends
from gpuconv.cli.common import Failure, load_model, new_console, on_backend, printable
from gpuconv.data import DATASETS, Dataset, load_dataset
from gpuconv.models import Classifier
from gpuconv.training import TrainConfig
from gpuconv.training import evaluate as evaluate_model


def evaluate(
    model: Annotated[
        Path | None,
        typer.Option(help="Run directory or model file. [default: the newest run in runs/]", metavar="PATH"),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Data set, as for train; its test images are used. [default: the one that the model was trained on]",
            metavar="NAME|DIR",
        ),
    ] = None,
    backend: Annotated[str, typer.Option(help="As for train.", metavar="NAME")] = backends.AUTO,
) -> None:
    """Test a trained network: accuracy, loss and confusion, on the data that it was trained on or on others."""
    with on_backend(backend):
        network, path = load_model(model)
        dataset, origin = _dataset(network, data)
        result = evaluate_model(network, dataset.test_images, dataset.test_labels)

    console = new_console()
    tested = f"{len(dataset.test_labels):,} test images of {printable(dataset.name)}"
    console.print(f"{printable(path)} on the {tested}{origin}", soft_wrap=True)
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


def _dataset(network: Classifier, given: str | None) -> tuple[Dataset, str]:
    """The data set to test on and, if it was not given, why this one."""
    form = network.form
    channels, *size = network.input_shape
    if form is not None:
        size = list(form.size)

    def load(name: str) -> Dataset:
        return load_dataset(name, image_size=(size[0], size[1]), channels=channels).with_channels(channels)

    if given is not None:
        dataset, origin = load(given), ""
    elif form is None or form.source is None:
        # A file from before models knew their data.
        dataset, origin = load(TrainConfig.data), " (the model does not say what it learned from)"
    else:
        if form.source not in DATASETS and not Path(form.source).is_dir():
            raise Failure(f"{form.source}, which the model learned from, is no longer there; say where with --data")
        dataset, origin = load(form.source), ", which it was trained with"
    if form is not None and dataset.size != form.size:
        theirs, ours = ("x".join(map(str, sizes)) for sizes in (dataset.size, form.size))
        raise Failure(f"the images of {dataset.name} are {theirs} pixels, but the model learned from {ours}")
    if len(dataset.classes) != len(network.classes):
        raise Failure(
            f"{dataset.name} has {len(dataset.classes)} classes, but the model knows {len(network.classes)} classes"
        )
    if dataset.pictures and dataset.classes != network.classes:
        name = next(name for name in dataset.classes if name not in network.classes)
        raise Failure(f"{dataset.name} has a class {name!r}, which the model does not know")
    return dataset, origin


def _confusion_table(confusion: np.ndarray, classes: Sequence[str]) -> Table:
    table = Table("", box=None, header_style="bold", pad_edge=False)
    for name in classes:
        table.add_column(name, justify="right", no_wrap=True)
    for name, row in zip(classes, confusion, strict=True):
        table.add_row(name, *(f"{count:,}" if count else "·" for count in row))
    return table
