"""Pictures of digits as they come from forms, exercise books and phones: in boxes, on lines, in shadow.

``picture(digit, kind, rng)`` draws one. What differs from picture to picture (size, place, slant, gray levels, width of
lines, noise, blur, JPEG, polarity) is drawn from `rng`; a `Ranges` says from which ranges, so that other ones can be
held out.

    python -m tests.pictures MODEL [COUNT]

measures how many of the bundled test digits a model reads right of each kind, beside the plain ones; with a folder as a
third argument it writes some of them there.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Gray = NDArray[np.float32]


@dataclass(frozen=True)
class Ranges:
    """Least and greatest values of what is drawn at random."""

    side: tuple[int, int] = (60, 400)  # of the box or cell, in pixels
    filling: tuple[float, float] = (0.5, 0.75)  # the digit's longer side, as a part of the box's
    slant: float = 4  # of the digit, in degrees, to each side
    turn: float = 0  # of box and lines
    paper: tuple[float, float] = (170, 255)
    contrast: tuple[float, float] = (0.5, 0.95)  # of the ink, as a part of the paper's brightness
    line: tuple[float, float] = (0.5, 1)  # contrast of the lines, as a part of that of the ink
    noise: float = 6
    blur: float = 0.8
    quality: tuple[int, int] = (60, 95)  # of JPEG, which half of the pictures go through


TUNED = Ranges()
HELD_OUT = Ranges((75, 330), (0.45, 0.82), 7, 0, (150, 240), (0.4, 0.9), (0.35, 1.1), 8, 1.0, (50, 90))


def of_size(digit: NDArray[np.uint8], longest: float, angle: float) -> Gray:
    """The digit's ink, 0 to 1, cropped, turned by an angle, its longer side `longest`."""
    large = Image.fromarray(np.pad(digit, 8)).resize((44 * 8, 44 * 8), Image.Resampling.BICUBIC)
    turned = np.asarray(large.rotate(angle, Image.Resampling.BICUBIC), dtype=np.float32) / 255
    rows, columns = np.flatnonzero(turned.max(1) > 0.3), np.flatnonzero(turned.max(0) > 0.3)
    crop = turned[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = longest / max(crop.shape)
    size = max(1, round(crop.shape[1] * scale)), max(1, round(crop.shape[0] * scale))
    # A pen's stroke has an edge: where MNIST's gray falls through a half.
    sharp = np.clip((crop - 0.5) * 4 + 0.5, 0, 1)
    return np.asarray(Image.fromarray(sharp).resize(size, Image.Resampling.BOX))


class Sheet:
    """Ink and lines on a sheet of paper, 0 to 1, drawn apart; a margin around the box or cell of side `side`."""

    def __init__(self, digit: NDArray[np.uint8], rng: np.random.Generator, ranges: Ranges, margin: float | None = None):
        self.rng, self.ranges = rng, ranges
        self.side = int(rng.integers(*ranges.side))
        margin = rng.uniform(0.05, 0.4) if margin is None else margin
        self.margin = round(margin * self.side)
        self.size = self.side + 2 * self.margin
        filling = rng.uniform(*ranges.filling)
        self.ink = np.zeros((self.size, self.size), np.float32)
        self.lines = Image.new("L", (4 * self.size, 4 * self.size))
        self.turn = float(rng.uniform(-ranges.turn, ranges.turn)) if ranges.turn else 0.0
        shape = of_size(digit, filling * self.side, rng.uniform(-ranges.slant, ranges.slant))
        # Somewhere in the box, not in its middle: by at most four fifths of the room that there is.
        top, left = (
            self.margin + (self.side - n) / 2 + rng.uniform(-0.4, 0.4) * (self.side - n) * self.loose
            for n in shape.shape
        )
        self.place(shape, round(top), round(left))

    loose = 0.6

    def place(self, shape: Gray, top: int, left: int) -> None:
        height, width = shape.shape
        part = self.ink[top : top + height, left : left + width]
        np.maximum(part, shape[: part.shape[0], : part.shape[1]], out=part)

    def line(self, x0: float, y0: float, x1: float, y1: float, width: float, wobble: float = 0) -> None:
        """From point to point, turned with the sheet; the middles of pixels are at .5."""
        points = np.linspace([x0, y0], [x1, y1], 12)
        if wobble:
            points += self.rng.normal(0, wobble, points.shape)
        angle, middle = np.radians(self.turn), self.size / 2
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        points = (points - middle) @ turn.T + middle
        draw = ImageDraw.Draw(self.lines)
        if not self.turn and not wobble:  # sharp, as printed: rows and columns of pixels
            (x0, y0), (x1, y1) = np.round(points[[0, -1]] - width / 2).astype(int) * 4
            w = 4 * round(width)
            draw.rectangle([min(x0, x1), min(y0, y1), max(x0, x1) + w - 1, max(y0, y1) + w - 1], fill=255)
            return
        draw.line([tuple(point) for point in 4 * points], fill=255, width=max(1, round(4 * width)), joint="curve")

    def box(self, width: float, wobble: float = 0, sides: str = "tblr", overshoot: float = 0) -> None:
        a, b = self.margin, self.margin + self.side
        o = overshoot * self.side
        for side in sides:
            ends = {
                "t": (a - o, a, b + o, a),
                "b": (a - o, b, b + o, b),
                "l": (a, a - o, a, b + o),
                "r": (b, a - o, b, b + o),
            }
            self.line(*ends[side], width, wobble)

    def finish(self, light: Gray | float = 1.0) -> Image.Image:
        """Paper, lines and ink in their gray levels, in a light; then what a camera or scanner does to it."""
        rng, ranges = self.rng, self.ranges
        paper = rng.uniform(*ranges.paper)
        contrast = rng.uniform(*ranges.contrast)
        lines = np.asarray(self.lines.resize((self.size, self.size), Image.Resampling.BOX), np.float32) / 255
        lines *= min(1, contrast * rng.uniform(*ranges.line)) / contrast
        values = paper * (1 - contrast * np.maximum(self.ink, lines)) * light
        values = values + rng.normal(0, rng.uniform(0, ranges.noise), values.shape)
        if rng.random() < 0.5:
            values = 255 - values
        image = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, ranges.blur)))
        if rng.random() < 0.5:
            file = io.BytesIO()
            image.save(file, "JPEG", quality=int(rng.integers(*ranges.quality)))
            image = Image.open(file)
        return image


Kind = Callable[[NDArray[np.uint8], np.random.Generator, Ranges], Image.Image]


def _plain(digit: NDArray[np.uint8], rng: np.random.Generator, ranges: Ranges) -> Image.Image:
    return Sheet(digit, rng, ranges).finish()


def _boxed(width: int, **options: float) -> Kind:
    def draw(digit: NDArray[np.uint8], rng: np.random.Generator, ranges: Ranges) -> Image.Image:
        sheet = Sheet(digit, rng, ranges, options.get("margin"))
        sheet.turn = rng.uniform(-options.get("turn", 0), options.get("turn", 0))
        sheet.box(width, options.get("wobble", 0) * sheet.side, overshoot=options.get("overshoot", 0))
        return sheet.finish()

    return draw


def _touching(digit: NDArray[np.uint8], rng: np.random.Generator, ranges: Ranges) -> Image.Image:
    """The digit runs into one side of the box, or over it."""
    sheet = Sheet(digit, rng, ranges, 0.3)
    rows, columns = np.flatnonzero(sheet.ink.max(1)), np.flatnonzero(sheet.ink.max(0))
    move = int(rng.integers(0, max(1, sheet.side // 25) + 1))
    a, b = sheet.margin, sheet.margin + sheet.side
    shift, axis = [
        (a - rows[0] - move, 0), (b - rows[-1] + move, 0), (a - columns[0] - move, 1), (b - columns[-1] + move, 1),
    ][rng.integers(4)]  # fmt: skip
    sheet.ink = np.roll(sheet.ink, shift, axis)
    sheet.box(int(rng.integers(1, 5)))
    return sheet.finish()


def _cell(digit: NDArray[np.uint8], rng: np.random.Generator, ranges: Ranges) -> Image.Image:
    """A cell of a grid whose lines run on, out of the picture; parts of the neighbouring cells are seen."""
    sheet = Sheet(digit, rng, ranges, rng.uniform(0.08, 0.45))
    width, end = int(rng.integers(1, 5)), sheet.size
    for at in (sheet.margin, sheet.margin + sheet.side):
        sheet.line(0, at, end, at, width)
        sheet.line(at, 0, at, end, width)
    return sheet.finish()


def _part_of_cell(digit: NDArray[np.uint8], rng: np.random.Generator, ranges: Ranges) -> Image.Image:
    """Of a cell's four lines two or three are in the picture, one of them perhaps in part."""
    sheet = Sheet(digit, rng, ranges, 0.06)
    width, end = int(rng.integers(1, 5)), sheet.size
    lines = rng.permutation(4)[: rng.integers(2, 4)]
    for number in lines:
        at = (sheet.margin, sheet.margin + sheet.side)[number % 2]
        start = rng.choice([0, 0, 0.4]) * end
        sheet.line(*((start, at, end, at) if number < 2 else (at, start, at, end)), width)
    return sheet.finish()


def _comb(digit: NDArray[np.uint8], rng: np.random.Generator, ranges: Ranges) -> Image.Image:
    """A line below, with short strokes up between the fields."""
    sheet = Sheet(digit, rng, ranges, rng.uniform(0.1, 0.3))
    width, a, b = int(rng.integers(1, 5)), sheet.margin, sheet.margin + sheet.side
    whole = rng.random() < 0.5
    sheet.line(0 if whole else a, b, sheet.size if whole else b, b, width)
    for at in (a, b):
        sheet.line(at, b - rng.uniform(0.2, 0.5) * sheet.side, at, b, width)
    return sheet.finish()


def _lined(digit: NDArray[np.uint8], rng: np.random.Generator, ranges: Ranges) -> Image.Image:
    """Ruled paper: lines through the whole picture, at any distance, also through the digit."""
    sheet = Sheet(digit, rng, ranges)
    sheet.turn = rng.uniform(-1.5, 1.5) if rng.random() < 0.5 else 0
    distance, width = rng.uniform(0.25, 0.9) * sheet.side, int(rng.integers(1, 3))
    for at in np.arange(rng.uniform(0, distance), sheet.size, distance):
        sheet.line(-sheet.size / 4, at, 1.25 * sheet.size, at, width)
    return sheet.finish()


def _squared(digit: NDArray[np.uint8], rng: np.random.Generator, ranges: Ranges) -> Image.Image:
    """Squared paper, with squares smaller than the digit."""
    sheet = Sheet(digit, rng, ranges)
    distance = rng.uniform(0.25, 0.5) * sheet.side
    for at in np.arange(rng.uniform(0, distance), sheet.size, distance):
        sheet.line(0, at, sheet.size, at, 1)
        sheet.line(at, 0, at, sheet.size, 1)
    return sheet.finish()


def _shadow(soft: bool) -> Kind:
    def draw(digit: NDArray[np.uint8], rng: np.random.Generator, ranges: Ranges) -> Image.Image:
        sheet = Sheet(digit, rng, ranges)
        angle = rng.uniform(0, 2 * np.pi)
        y, x = np.mgrid[0 : sheet.size, 0 : sheet.size] - sheet.size / 2
        across = (x * np.cos(angle) + y * np.sin(angle)) / sheet.size + rng.uniform(-0.12, 0.12)
        width = rng.uniform(0.05, 0.3) if soft else 1 / sheet.size
        dark = rng.uniform(0.35, 0.75)
        return sheet.finish((1 - (1 - dark) * np.clip(across / width + 0.5, 0, 1)).astype(np.float32))

    return draw


KINDS: dict[str, Kind] = {
    "plain": _plain,
    "box, 1 pixel": _boxed(1),
    "box, 2 pixels": _boxed(2),
    "box, 3 pixels": _boxed(3),
    "box, 4 pixels": _boxed(4),
    "box at the edges": _boxed(3, margin=0.0),
    "box, turned": _boxed(2, turn=5),
    "box by hand": _boxed(3, turn=3, wobble=0.008, overshoot=0.03),
    "box, touching": _touching,
    "cell of a grid": _cell,
    "part of a cell": _part_of_cell,
    "comb": _comb,
    "lined paper": _lined,
    "squared paper": _squared,
    "hard shadow": _shadow(False),
    "soft shadow": _shadow(True),
}


def picture(digit: NDArray[np.uint8], kind: str, rng: np.random.Generator, ranges: Ranges = TUNED) -> Image.Image:
    """A picture of a digit, (28, 28) uint8 in MNIST's form."""
    return KINDS[kind](digit, rng, ranges)


def as_file(image: Image.Image) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, "PNG")
    file.seek(0)
    return file


if __name__ == "__main__":
    import sys
    import time

    import gpuconv
    from gpuconv.data import DataError, load_dataset, read_digit

    model, data = gpuconv.load(sys.argv[1]), load_dataset("mnist-sample")
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 300
    for name, ranges in (("tuned", TUNED), ("held out", HELD_OUT)):
        first = 0 if name == "tuned" else 1000
        images, labels = data.test_images[first : first + count], data.test_labels[first : first + count]
        plain = 0
        for kind in [
            k for k in KINDS if not os.environ.get("ONLY") or any(o in k for o in os.environ["ONLY"].split(","))
        ]:
            rng = np.random.default_rng([len(name), *kind.encode()])
            read, errors, seconds = [], 0, 0.0
            for number, digit in enumerate(images):
                drawn = picture(digit, kind, rng, ranges)
                file = as_file(drawn)
                started = time.process_time()
                try:
                    read.append(read_digit(file))
                except DataError:
                    errors += 1
                    read.append(np.zeros((28, 28), np.uint8))
                seconds += time.process_time() - started
                if len(sys.argv) > 3 and number < 12:
                    Path(sys.argv[3]).mkdir(exist_ok=True)
                    both = Image.new("L", (drawn.width + 120, max(drawn.height, 112)), 128)
                    both.paste(drawn, (0, 0))
                    both.paste(
                        Image.fromarray(read[-1]).resize((112, 112), Image.Resampling.NEAREST), (drawn.width + 4, 0)
                    )
                    both.save(Path(sys.argv[3]) / f"{name}-{kind}-{number}-{labels[number]}.png".replace(" ", "-"))
            right = int((model.predict(np.stack(read)).argmax(1) == labels).sum())
            plain = plain or right
            print(
                f"{name:9} {kind:17} {right:4} of {count}  {right / plain:6.1%} of plain  {errors:3} errors  "
                f"{1000 * seconds / count:5.1f} ms",
                flush=True,
            )
