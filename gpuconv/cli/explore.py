"""``gpuconv explore``: a network as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gpuconv.cli.common import RUNS, completing, new_console, newest_run, printable
from gpuconv.explorer import explore as page_of
from gpuconv.models import MODELS
from gpuconv.training import MODEL


def explore(
    model: Annotated[
        str | None,
        typer.Argument(
            help="Run directory, model file, ONNX file, or file of weights (with --network); or a network with random "
            f"weights: {', '.join(MODELS)}. [default: the newest run in runs/]",
            autocompletion=completing(*MODELS),
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The page. [default: explore.html in the run, or NAME.html here]", metavar="FILE"),
    ] = None,
    network: Annotated[
        str | None,
        typer.Option(
            help="The network that a file of weights is for.", metavar="NAME", autocompletion=completing(*MODELS)
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(help="Names of the classes, with commas between, where the file has none.", metavar="NAMES"),
    ] = None,
) -> None:
    """Make a page that shows a network at work: one HTML file, which opens without a server and without a network.

    Draw a picture or drop one onto the page: it computes all layers as you draw. Point at a value to see what it is
    computed from. If the run was trained with --keep-epochs, a slider goes through its epochs.
    """
    source = Path(model) if model is not None else newest_run(MODEL, f"nothing in {RUNS} to explore; name a MODEL")
    names = None if classes is None else [name.strip() for name in classes.split(",")]
    page = page_of(source, network=network, classes=names)
    if out is None:
        out = source / "explore.html" if source.is_dir() else Path(f"{source.stem}.html")
    page.save(out)
    size = len(page.html.encode()) / 1e6
    new_console().print(f"{printable(out)}, {size:.1f} MB: open it in a browser", soft_wrap=True)
