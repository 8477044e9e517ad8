"""A network as one HTML file: draw a picture, see all of its layers, and where each value comes from.

``explore`` makes the page; ``program.py`` brings a network into the few operations that the page's script computes
(``page/operations.mjs``), by way of its graph of ONNX operators (``lowering.py``).
"""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpuconv.data import InputTransform
from gpuconv.explorer.opening import Epoch, Subject, opened, subject_of
from gpuconv.explorer.page import packed, page_of, program_json
from gpuconv.explorer.program import Program, program_of
from gpuconv.files import write_atomically
from gpuconv.nn import Module

__all__ = ["Explorer", "explore"]

#: Networks with more parameters are stored in half precision, and of more multiplications fewer maps are shown.
_HALF_ABOVE, _THIN_ABOVE = 2_000_000, 50_000_000
_MOST_MAPS, _FEW_MAPS = 64, 16
#: Epochs in a page, and the bytes that they may take.
_MOST_EPOCHS, _EPOCHS_BYTES = 12, 20_000_000
_FRAME_HEIGHT = 900  # pixels, in a notebook


class Explorer:
    """A page that shows a network. In Jupyter it is shown below the cell, in a frame that reaches nothing outside.

    Attributes:
        html: the page.
    """

    def __init__(self, page: str):
        self.html = page

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the page to a file, which is replaced at once or not at all; returns its path.

        Raises:
            OSError: it cannot be written.
        """
        write_atomically(path, self.html.encode())
        return Path(path)

    def _repr_html_(self) -> str:
        frame = f'sandbox="allow-scripts" style="width:100%;height:{_FRAME_HEIGHT}px;border:0"'
        return f'<iframe title="gpuconv explorer" {frame} srcdoc="{html.escape(self.html)}"></iframe>'


def explore(
    model: Module | str | os.PathLike[str],
    *,
    network: str | None = None,
    input_shape: Sequence[int] | None = None,
    transform: InputTransform | None = None,
    classes: Sequence[str] | None = None,
    name: str | None = None,
) -> Explorer:
    """One HTML file in which the network computes what is drawn, and shows how; it needs no server and no network.

    The model runs once here, on noise, to see which operations it is made of; the page computes them in float32. Batch
    normalisation becomes part of the convolution before it.

    Args:
        model: a classifier of pictures: a Module that takes (N, C, H, W) and returns (N, classes); or the path of a run
            directory of ``gpuconv train``, a model's file, an ONNX file, a file of weights; or a name of
            ``gpuconv.models``. With a run that kept its epochs (``--keep-epochs``) the page has a slider over them.
        network: the name of the model for which a file of another library holds weights.
        input_shape: (channels, height, width) of a picture, where the model does not say it.
        transform: how bytes become the network's input, where the model does not say it.
        classes: their names, otherwise the model's or numbers.
        name: title of the page.

    Raises:
        ValueError: the page cannot compute a layer, or the network is too large for a page; the message says which and
            why.
        FileError: a file is missing or broken.
        ImportError: an ONNX file, and the ``onnx`` package is missing.
        TypeError: neither a Module nor a path.
    """
    if isinstance(model, Module):
        subject = subject_of(model, name=name, input_shape=input_shape, transform=transform, classes=classes)
    elif isinstance(model, (str, os.PathLike)):
        subject = opened(model, network)
        if input_shape is not None:
            subject.input_shape = (int(input_shape[0]), int(input_shape[1]), int(input_shape[2]))
        subject.name = name or subject.name
        subject.classes = tuple(classes) if classes is not None else subject.classes
        subject.transform = transform or subject.transform
    else:
        raise TypeError(f"explore: model must be a Module or a path, got {type(model).__name__}")
    return Explorer(_page(subject))


def _page(subject: Subject) -> str:
    program = program_of(subject.model, subject.input_shape)
    half, thin = _count(program) > _HALF_ABOVE, program.products > _THIN_ABOVE
    epochs, of = _epochs(subject, program)
    data = {
        "name": subject.name,
        "facts": _facts(subject, program),
        "notes": [*subject.notes, *_notes(program, half, thin, len(epochs), of)],
        "program": program_json(program),
        "mostMaps": _FEW_MAPS if thin else _MOST_MAPS,
        "form": _form(subject),
        "classes": _classes(subject, program),
        "weights": packed(program.tensors, half=half),
        "half": half,
        "epochs": epochs,
        "samples": _samples(subject),
    }
    return page_of(f"{subject.name} – gpuconv explorer", data)


def _count(program: Program) -> int:
    return sum(array.size for array in program.tensors.values())


def _facts(subject: Subject, program: Program) -> str:
    channels, height, width = subject.input_shape
    parameters = sum(parameter.numel() for parameter in subject.model.parameters())
    colours = "grey" if channels == 1 else "colour"
    size = f"a picture of {height} × {width} in {colours}"
    return f"{parameters:,} parameters, {program.products:,} multiplications for {size}"


def _notes(program: Program, half: bool, thin: bool, epochs: int, of: int) -> list[str]:
    notes = []
    if program.folded:
        notes.append("Batch normalisation is part of the convolutions before it.")
    if half:
        notes.append("The weights are in half precision (float16), to keep this file small.")
    if thin:
        notes.append(f"Of each layer at most {_FEW_MAPS} maps are shown; all are computed.")
    if epochs:
        notes.append("Earlier epochs are in half precision (float16).")
    if epochs < of:
        notes.append(f"It has {epochs} of the {of} epochs that were kept.")
    if program.ends_in_probabilities:
        notes.append("The softmax at its end is the page's answer, and no layer here.")
    return notes


def _epochs(subject: Subject, program: Program) -> tuple[list[dict[str, Any]], int]:
    """The weights of some epochs, the first and the last among them, and how many there are."""
    kept = subject.epochs
    most = min(_MOST_EPOCHS, max(2, _EPOCHS_BYTES // (_count(program) * 8 // 3 + 1)))
    if len(kept) > most:
        kept = [kept[round(i * (len(kept) - 1) / (most - 1))] for i in range(most)]
    own = subject.model.state_dict()
    final = packed(program.tensors, half=True)
    try:
        found = [_epoch(subject, epoch) for epoch in kept]
        for epoch in found:
            # The page has the final weights already, in full precision.
            epoch["weights"] = None if epoch["weights"] == final else epoch["weights"]
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(f"explore: an epoch holds the weights of another network: {error}") from None
    finally:
        subject.model.load_state_dict(own)
    return found, len(subject.epochs)


def _epoch(subject: Subject, epoch: Epoch) -> dict[str, Any]:
    subject.model.load_state_dict(epoch.state)
    label = f"epoch {epoch.number}" if epoch.number else "before training"
    tensors = program_of(subject.model, subject.input_shape).tensors
    detail = "" if epoch.accuracy is None else f"{100 * epoch.accuracy:.1f} % right"
    return {"label": label, "detail": detail, "weights": packed(tensors, half=True)}


def _form(subject: Subject) -> dict[str, Any]:
    form, (channels, height, width) = subject.form, subject.input_shape
    # A picture may be smaller than the input, which has a border then, but not larger.
    rows, columns = min(form.size[0], height), min(form.size[1], width)
    # One number for each channel, where there is one for all.
    mean, std = (
        np.broadcast_to(np.asarray(values, float), channels).tolist()
        for values in (subject.transform.mean, subject.transform.std)
    )
    inverted = form.polarity == "dark on light"
    return {
        "input": [channels, height, width],
        "channels": form.channels if channels == 3 else 1,
        "height": rows,
        "width": columns,
        "mean": mean,
        "std": std,
        "digits": form.digits,
        "inverted": inverted,
        # Where nothing is said: colours are put on white paper, grey is drawn in chalk.
        "darkOnLight": inverted or (form.polarity is None and form.channels == 3),
    }


def _classes(subject: Subject, program: Program) -> list[str]:
    count = program.shapes[program.logits][1]
    return [str(name) for name in subject.classes] if len(subject.classes) == count else [str(i) for i in range(count)]


def _samples(subject: Subject) -> dict[str, Any]:
    wanted = (subject.form.channels, *subject.form.size) if subject.form.channels == 3 else subject.form.size
    fitting = [(image, label) for image, label in subject.samples if image.shape == wanted]
    raw = b"".join(np.ascontiguousarray(image).tobytes() for image, _ in fitting)
    return {"bytes": base64.b64encode(raw).decode(), "labels": [label for _, label in fitting]}
