"""``gpuconv summary``: a network's layers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gpuconv import storage
from gpuconv.cli.common import Failure, completing, new_console, say, show_table
from gpuconv.models import MODELS, build


def summary(
    model: Annotated[
        str,
        typer.Argument(
            help=f"{', '.join(MODELS)}, or a run directory or model file.", autocompletion=completing(*MODELS)
        ),
    ],
) -> None:
    """Show a network's layers: output shapes, parameters, connections."""
    if model in MODELS or not Path(model).exists():
        try:
            network = build(model)
        except ValueError as error:
            raise Failure(f"{model}: no such file, and {error}") from error
    else:
        network = storage.load_model(model)
    header, *rows = network.summary(network.input_shape).rows()
    console = new_console()
    size = "x".join(map(str, network.input_shape))
    say(console, f"{type(network).__name__}, input {size}, {len(network.classes)} classes")
    show_table(
        console, header, rows, numbers=("parameters", "connections"), expendable=("kind", "connections"), total=True
    )
