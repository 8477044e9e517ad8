"""``gpuconv predict``: classify pictures."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.cells import cell_len
from rich.console import Console

from gpuconv import backends
from gpuconv.cli.common import complain, load_model, new_console, on_backend, printable
from gpuconv.data import DataError, ImageForm, read_picture
from gpuconv.data.decode import PICTURE_ENDINGS
from gpuconv.data.form import MNIST_FORM

_MANY = 3  # above this number of pictures, one line each instead of a bar for each class
_MOST_BARS = 20
_WIDEST = 64  # columns of a picture that is drawn


def predict(
    images: Annotated[
        list[Path],
        typer.Argument(help="Pictures (PNG, JPEG, ...), or folders of pictures.", metavar="IMAGE..."),
    ],
    model: Annotated[
        Path | None,
        typer.Option(help="Run directory or model file. [default: the newest run in runs/]", metavar="PATH"),
    ] = None,
    backend: Annotated[str, typer.Option(help="As for train.", metavar="NAME")] = backends.AUTO,
    show: Annotated[
        bool, typer.Option("--show", help="Draw what the network saw: the picture after preprocessing.")
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print JSON: a list with an object for each picture; with --show its pixels too."),
    ] = False,
) -> None:
    """Classify pictures, with the probability of each class; of more than three pictures, one line each.

    A picture is brought into the form of the images that the model was trained on. If these are digits like MNIST's,
    the picture may show a digit of any size, dark on light or light on dark, on paper, in a box or in a photograph;
    otherwise the whole picture is used. If a picture cannot be read, or shows no digit or two, a line on stderr says
    so, and the exit status is 2.
    """
    console = new_console()
    answers: list[dict[str, Any]] = []
    with on_backend(backend):
        network, path = load_model(model)
        form = network.form or MNIST_FORM
        files = [file for path in images for file in _pictures(path)]
        many = len(files) > _MANY
        if not as_json:
            console.print(f"model {printable(path)}", style="dim", soft_wrap=True)
            widths = _widths(files, network.classes)
        for file in files:
            try:
                picture = _read(file, form)
            except DataError as error:
                complain(str(error))
                answers.append({"image": str(file), "error": str(error)})
                continue
            grey_for_colours = picture.ndim == 2 and network.input_shape[0] == 3
            probabilities = network.predict(np.stack([picture] * 3) if grey_for_colours else picture)
            answer = network.classes[int(probabilities.argmax())]
            of_classes = dict(zip(network.classes, map(float, probabilities), strict=True))
            answers.append({"image": str(file), "class": answer, "probabilities": of_classes})
            if as_json:
                if show:
                    answers[-1]["pixels"] = picture.tolist()
                continue
            if many:
                console.print(_row(widths, file, answer, of_classes[answer]), soft_wrap=True)
            else:
                _show_prediction(console, file, answer, of_classes)
            if show:
                for line in _drawing(picture, ascii_only=console.options.ascii_only):
                    console.print(f"  {line}", no_wrap=True, crop=False)
    if as_json:
        print(json.dumps(answers, indent=2))
    if any("error" in answer for answer in answers):
        raise typer.Exit(2)


# -- which pictures ----------------------------------------------------------------------------------------------------


def _pictures(path: Path) -> list[Path]:
    """The file itself; for a folder its pictures in natural order, or the folder itself if it has none."""
    if not path.is_dir():
        return [path]
    inside = sorted((entry for entry in path.iterdir() if not entry.name.startswith(".")), key=_natural)
    pictures = [entry for entry in inside if entry.suffix.lower() in PICTURE_ENDINGS and not entry.is_dir()]
    if pictures and len(pictures) < len(inside):
        complain(f"{path}: skipped what is no picture: {_named(inside, pictures)}")
    return pictures or [path]


def _read(path: Path, form: ImageForm) -> NDArray[np.uint8]:
    """A picture in the form that the network knows; DataError, if there is none."""
    if path.is_dir():
        inside = sorted(path.iterdir(), key=_natural)
        raise DataError(
            f"{path}: no picture in this folder" + (f", only {_named(inside)}" if inside else ", it is empty")
        )
    return read_picture(path, form)


def _named(entries: Sequence[Path], without: Sequence[Path] = ()) -> str:
    """The first few entries of a folder, and the number of the others."""
    names = [f"{entry.name}{'/' * entry.is_dir()}" for entry in entries if entry not in set(without)]
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")


def _natural(path: Path) -> tuple[Any, ...]:
    """Sort key that puts 2 before 10."""
    parts = re.split(r"([0-9]+)", path.name.casefold())
    return (*((int(part), "") if part.isdecimal() else (-1, part) for part in parts), path.name)


# -- what is printed ---------------------------------------------------------------------------------------------------


def _widths(files: Sequence[Path], classes: Sequence[str]) -> tuple[int, int]:
    """Widths of the columns for the file and the class."""
    longest = max(cell_len(printable(file)) for file in files)
    return min(longest, 60), max(cell_len(printable(name)) for name in classes)


def _row(widths: tuple[int, int], file: Path, answer: str, probability: float) -> str:
    cells = (printable(file), printable(answer))
    padded = (cell + " " * (width - cell_len(cell)) for cell, width in zip(cells, widths, strict=True))
    return f"{'  '.join(padded)}  {probability:6.1%}"


def _show_prediction(console: Console, image: Path, answer: str, probabilities: Mapping[str, float]) -> None:
    console.print(f"{printable(image)}: {printable(answer)}", style="bold", soft_wrap=True)
    most = list(probabilities.items())
    if len(most) > _MOST_BARS:
        most = sorted(most, key=lambda item: -item[1])[:_MOST_BARS]
    widest = max(cell_len(printable(name)) for name, _ in most)
    room = max(1, min(40, console.width - widest - 12))
    for name, probability in most:
        bar = _bar(probability, room, ascii_only=console.options.ascii_only)
        indent = " " * (widest - cell_len(printable(name)))
        console.print(
            f"  {indent}{printable(name)} {probability:6.1%} {bar}".rstrip(),
            style="green" if name == answer else None,
            no_wrap=True,
            crop=False,
        )


def _bar(share: float, width: int, *, ascii_only: bool) -> str:
    if ascii_only:
        return "#" * round(share * width)
    eighths = round(share * width * 8)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def _drawing(picture: NDArray[np.uint8], *, ascii_only: bool) -> list[str]:
    """A picture, (H, W) or (3, H, W), as lines of characters: brighter pixels are fuller, as on a dark screen.

    A character is about twice as high as wide, so it stands for two pixels, one above the other. In pictures of at most
    16 rows, two characters stand for one pixel.
    """
    shades = np.array(list(" .:-=+*#%@" if ascii_only else " ░▒▓█"))
    values = picture.astype(np.float64)
    if values.ndim == 3:
        values = np.tensordot((0.299, 0.587, 0.114), values, 1)  # brightness, by ITU-R BT.601
    if values.shape[1] > _WIDEST:
        step = -(-values.shape[1] // _WIDEST)
        values = values[::step, ::step]
    if len(values) <= 16:
        values = values.repeat(2, axis=1)
    else:
        values = np.pad(values, ((0, len(values) % 2), (0, 0)), mode="edge")
        values = (values[::2] + values[1::2]) / 2
    return ["".join(row).rstrip() for row in shades[np.round(values / 255 * (len(shades) - 1)).astype(int)]]
