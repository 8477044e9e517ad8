"""``gpuconv summary``: a network's layers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from gpuconv import storage
from gpuconv.cli.common import Failure, new_console
from gpuconv.models import MODELS, build


def summary(
    model: Annotated[str, typer.Argument(help=f"{', '.join(MODELS)}, or a run directory or model file.")],
) -> None:
    """Show a network's layers: output shapes, parameters, connections."""
    if model in MODELS or not Path(model).exists():
        try:
            network = build(model)
        except ValueError as error:
            raise Failure(f"{model}: no such file, and {error}") from error
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
    console = new_console()
    size = "x".join(map(str, network.input_shape))
    console.print(f"{type(network).__name__}, input {size}, {len(network.classes)} classes", soft_wrap=True)
    console.print(table)
