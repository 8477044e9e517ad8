"""``gpuconv predict``: what a picture shows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from gpuconv import backends
from gpuconv.cli.common import complain, load_model, new_console, on_backend, printable
from gpuconv.data import DataError, read_digit


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
    console = new_console()
    answers: list[dict[str, Any]] = []
    with on_backend(backend):
        network, path = load_model(model)
        if not as_json:
            console.print(f"model {printable(path)}", style="dim", soft_wrap=True)
        for image in images:
            try:
                probabilities = network.predict(read_digit(image))
            except DataError as error:
                complain(str(error))
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
    console.print(f"{printable(image)}: {answer}", style="bold", soft_wrap=True)
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
