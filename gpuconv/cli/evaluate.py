"""``gpuconv evaluate``: a trained network's accuracy, and what it takes for what."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.table import Table

from gpuconv import backends
from gpuconv.cli.common import load_model, new_console, on_backend
from gpuconv.data import load_dataset
from gpuconv.train import TrainConfig
from gpuconv.train import evaluate as evaluate_model


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
    with on_backend(backend):
        network, path = load_model(model)
        dataset = load_dataset(data)
        result = evaluate_model(network, dataset.test_images, dataset.test_labels)

    console = new_console()
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


def _confusion_table(confusion: np.ndarray, classes: Sequence[str]) -> Table:
    table = Table("", box=None, header_style="bold", pad_edge=False)
    for name in classes:
        table.add_column(name, justify="right", no_wrap=True)
    for name, row in zip(classes, confusion, strict=True):
        table.add_row(name, *(f"{count:,}" if count else "·" for count in row))
    return table
