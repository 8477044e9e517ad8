"""Digits are found in what people write them on: boxes, cells, lines, shadow; and nothing is taken for a digit."""

import io
from contextlib import suppress

import numpy as np
import pytest
from pictures import HELD_OUT, KINDS, as_file, picture
from PIL import Image, ImageDraw
from test_data import resembles

from gpuconv.data import DataError, load_dataset, read_digit
from gpuconv.data.lines import without_lines
from gpuconv.data.raster import components, correlation, is_noise, windowed
from gpuconv.training import TrainConfig, fit


@pytest.fixture(scope="module")
def digits():
    return load_dataset("mnist-sample")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """LeNet after two epochs on the bundled digits."""
    return fit(TrainConfig(epochs=2, backend="numba"), tmp_path_factory.mktemp("found")).model


def read(image, **options):
    return read_digit(as_file(image), **options)


# -- digits ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_digits_are_found_wherever_they_are_written(digits, model):
    """Of each kind of picture, with parameters that nothing was tuned on, nine tenths of what is right of plain ones.

    A few of each kind: ``python -m tests.pictures RUN 300`` measures as many as one likes.
    """
    count, right = 5, {}
    for kind in KINDS:
        rng = np.random.default_rng(len(kind))
        right[kind] = 0
        for number in range(1000, 1000 + count):
            image = picture(digits.test_images[number], kind, rng, HELD_OUT)
            with suppress(DataError):
                right[kind] += bool(model.predict(read(image)).argmax() == digits.test_labels[number])
    plain = right.pop("plain")
    assert plain >= count - 1
    assert min(right.values()) >= 0.7 * plain, right
    assert sum(right.values()) >= 0.9 * plain * len(right), right


#: Digits of straight strokes, in a square of 10: what might be taken for lines or boxes.
STRAIGHT = {
    "1": [[(5, 0), (5, 10)]],
    "1 with a foot": [[(3, 2), (5, 0), (5, 10)], [(2, 10), (8, 10)]],
    "7": [[(1, 0), (8, 0), (4, 10)]],
    "7 with a bar": [[(1, 0), (8, 0), (4, 10)], [(3, 5), (8, 5)]],
    "4": [[(6, 10), (6, 0), (1, 7), (9, 7)]],
    "4, open": [[(2, 1), (1, 6), (8, 6)], [(6, 0), (6, 10)]],
    "0, square": [[(2, 0), (8, 0), (8, 10), (2, 10), (2, 0)]],
    "8, square": [[(2, 0), (8, 0), (8, 10), (2, 10), (2, 0)], [(2, 5), (8, 5)]],
    "2": [[(1, 0), (9, 0), (1, 10), (9, 10)]],
    "5": [[(8, 0), (2, 0), (2, 5), (8, 5), (8, 10), (2, 10)]],
}


def drawn(strokes, side, width, margin):
    image = Image.new("L", (side + 2 * margin, side + 2 * margin), 250)
    for stroke in strokes:
        points = [(margin + x * (side - 1) / 10, margin + y * (side - 1) / 10) for x, y in stroke]
        ImageDraw.Draw(image).line(points, fill=20, width=width, joint="curve")
    return image


def without_margins(image):
    ink = np.asarray(image) < 128
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    return image.crop((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))


@pytest.mark.parametrize("name", STRAIGHT)
def test_straight_strokes_are_no_lines(name):
    """A digit of straight strokes keeps all of them, thin or bold, in the middle of a picture or cropped to its box."""
    expected = read(drawn(STRAIGHT[name], 200, 22, 60)).astype(float)
    assert np.ptp(np.flatnonzero(expected.max(axis=1) > 128)) >= 17  # as high as it was drawn
    for side, width in ((40, 3), (120, 2), (120, 7), (300, 4), (300, 30)):
        for image in (
            drawn(STRAIGHT[name], side, width, side // 3),
            without_margins(drawn(STRAIGHT[name], side, width, side)),
        ):
            # Cropped to their boxes, an upright line is a picture of one color, and a square one of a frame.
            if image.width > 1.5 * side or (name != "1" and "square" not in name):
                assert resembles(read(image), expected) > 0.6, (side, width, image.size)


def test_a_circle_around_a_digit(digits):
    """What goes around a digit need not be straight, and a zero with a spot in it is a zero."""
    digit = digits.test_images[1]
    plain = Image.new("L", (300, 300), 240)
    plain.paste(
        Image.eval(Image.fromarray(digit).resize((140, 140), Image.Resampling.BICUBIC), lambda v: 240 - v * 7 // 8),
        (80, 80),
    )
    circled = plain.copy()
    ImageDraw.Draw(circled).ellipse((40, 40, 260, 260), outline=20, width=3)
    assert np.corrcoef(read(circled).ravel(), read(plain).ravel())[0, 1] > 0.95
    zero = Image.new("L", (300, 300), 240)
    ImageDraw.Draw(zero).ellipse((80, 50, 220, 250), outline=20, width=16)
    spotted = zero.copy()
    ImageDraw.Draw(spotted).ellipse((145, 145, 157, 157), fill=20)
    assert np.corrcoef(read(zero).ravel(), read(spotted).ravel())[0, 1] > 0.95


# -- what is no digit --------------------------------------------------------------------------------------------------


def beside(left, right, gap):
    height = 140
    sheet = Image.new("L", (2 * height + gap + 80, height + 80), 235)
    for number, digit in enumerate((left, right)):
        large = Image.fromarray(digit).resize((height, height), Image.Resampling.BICUBIC)
        sheet.paste(20, (40 + number * (height + gap), 40), large)
    return sheet


def test_two_digits_are_said_to_be_two(digits):
    """Of ten pairs of digits beside each other, near or far, light or dark, none is read as one."""
    for number in range(10):
        for gap in (-30, 20, 150):
            image = beside(*digits.test_images[2 * number : 2 * number + 2], gap)
            for either in (image, Image.eval(image, lambda v: 255 - v)):
                with pytest.raises(DataError, match="shapes stand out alike, where one digit was expected"):
                    read(either)


@pytest.mark.parametrize("blur", [0, 1])
def test_noise_is_said_to_be_noise(blur):
    """Of any distribution and size, in a file of any kind."""
    rng = np.random.default_rng(0)
    for height, width in ((60, 60), (200, 150), (500, 500)):
        for values in (rng.integers(0, 256, (height, width)), rng.normal(128, 30, (height, width))):
            image = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
            if blur:
                image = image.resize((width * 2, height * 2), Image.Resampling.BICUBIC)
            file = io.BytesIO()
            image.save(file, "JPEG", quality=85)
            for source in (as_file(image), file):
                source.seek(0)
                with pytest.raises(DataError, match="nothing but noise"):
                    read_digit(source)


# -- tools -------------------------------------------------------------------------------------------------------------


def test_components_are_those_of_a_flood():
    """Numbered in the order of their first pixels, diagonals included."""
    rng = np.random.default_rng(0)
    for share in (0.1, 0.3, 0.5, 0.9):
        mask = rng.random((23, 31)) < share
        expected, count = np.zeros(mask.shape, int), 0
        for start in zip(*np.nonzero(mask), strict=True):
            if expected[start]:
                continue
            count += 1
            waiting = [start]
            while waiting:
                y, x = waiting.pop()
                if 0 <= y < 23 and 0 <= x < 31 and mask[y, x] and not expected[y, x]:
                    expected[y, x] = count
                    waiting += [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        np.testing.assert_array_equal(components(mask), expected)
    assert components(np.zeros((3, 0), bool)).shape == (3, 0)


def test_windows():
    """The least and greatest of each window, by the definition."""
    values = np.random.default_rng(0).random((9, 14)).astype(np.float32)
    for radius in (1, 2, 5):
        padded = np.pad(values, radius, constant_values=0.5)
        windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * radius + 1,) * 2)
        np.testing.assert_array_equal(windowed(values, radius, np.minimum, 0.5), windows.min(axis=(2, 3)))
        np.testing.assert_array_equal(windowed(values, radius, np.maximum, 0.5), windows.max(axis=(2, 3)))


def test_correlation_of_neighbours():
    """1 for a gradient nearly, 0 for noise, below 0 for a chequerboard."""
    ramp = np.add.outer(np.arange(50.0), np.arange(50.0)).astype(np.float32)
    assert correlation(ramp) > 0.9
    assert correlation(np.full((5, 5), 3, np.float32)) == 1
    assert correlation((np.indices((8, 8)).sum(axis=0) % 2).astype(np.float32)) < -0.8
    noise = np.random.default_rng(0).normal(size=(100, 100)).astype(np.float32)
    assert abs(correlation(noise)) < 0.05
    assert is_noise(noise)
    assert not is_noise(ramp)


def test_lines_are_taken_out_and_strokes_are_left_where_they_cross():
    """A ruled line through a stroke: the line goes, the stroke keeps every pixel, also where they cross."""
    stroke = np.zeros((60, 80), bool)
    stroke[10:50, 35:41] = True
    lines = np.zeros_like(stroke)
    lines[20:22] = lines[40:42] = True
    left = without_lines(stroke | lines)
    np.testing.assert_array_equal(left & stroke, stroke)
    assert not (left & ~stroke).any()
    np.testing.assert_array_equal(without_lines(stroke), stroke)
