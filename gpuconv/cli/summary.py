"""``gpuconv summary``: a network's layers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gpuconv import onnx, storage
from gpuconv.cli.common import Failure, completing, new_console, say, show_table
from gpuconv.models import MODELS, build
from gpuconv.nn.summary import Summary


def summary(
    model: Annotated[
        str,
        typer.Argument(
            help=f"{', '.join(MODELS)}, or a run directory, model file or ONNX file.",
            autocompletion=completing(*MODELS),
        ),
    ],
) -> None:
    """Show a network's layers: output shapes, parameters, connections."""
    if model.endswith(".onnx"):
        title, counted = _of_onnx(model)
    else:
        title, counted = _of_model(model)
    header, *rows = counted.rows()
    console = new_console()
    say(console, title)
    show_table(
        console, header, rows, numbers=("parameters", "connections"), expendable=("kind", "connections"), total=True
    )


def _of_model(model: str) -> tuple[str, Summary]:
    """What is said of a network that gpuconv knows, and its layers."""
    if model in MODELS or not Path(model).exists():
        try:
            network = build(model)
        except ValueError as error:
            raise Failure(f"{model}: no such file, and {error}") from error
    else:
        network = storage.load_model(model)
    size = "x".join(map(str, network.input_shape))
    title = f"{type(network).__name__}, input {size}, {len(network.classes)} classes"
    return title, network.summary(network.input_shape)


def _of_onnx(path: str) -> tuple[str, Summary]:
    """What is said of a network in an ONNX file, and its nodes."""
    try:
        network = onnx.load(path)
    except ImportError as error:
        raise Failure(str(error)) from error
    sizes = ["x".join(map(str, value.shape[1:])) if value.shape else "?" for value in network.inputs]
    try:
        return f"{Path(path).name}, input {', '.join(sizes)}", network.summary()
    except ValueError as error:
        raise Failure(f"{path}: {error}") from error
