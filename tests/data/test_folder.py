"""Folders of pictures: what is found, how it is decoded, what is refused; batches ahead; changes of images."""

from __future__ import annotations

import io
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from gpuconv import memory
from gpuconv.data import (
    AUGMENTATIONS,
    Ahead,
    DataError,
    Dataset,
    ImageForm,
    InputTransform,
    Pictures,
    augmented,
    default_augmentations,
    load_dataset,
    load_image_folder,
    read_picture,
)
from gpuconv.data.decode import decode_pixels

RED, BLUE = (200, 30, 10), (0, 60, 220)


def saved(path, colour=RED, size=(8, 8), **options):
    """A picture of one colour in a file; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)
    return path


def two_classes(root, count=5, parts=("",)):
    for part, name, number in itertools.product(parts, ("blue", "red"), range(count)):
        saved(root / part / name / f"{number}.png", (number, 0, 255) if name == "blue" else (255, 0, number))


# -- what is found ---------------------------------------------------------------------------------------------------


def test_a_folder_a_class(tmp_path):
    """Classes by their names, pictures at any depth; a fifth of each class is for testing, by its name alone."""
    two_classes(tmp_path, 10)
    saved(tmp_path / "red" / "more" / os.fsdecode(b"\xff x.JPG"))  # a name that is no text
    saved(tmp_path / ".hidden" / "x.png")
    (tmp_path / "red" / ".DS_Store").touch()
    (tmp_path / "list.csv").touch()
    data = load_image_folder(tmp_path, image_size=8)
    assert data.classes == ("blue", "red")
    assert (data.channels, data.size, data.pictures, data.skipped) == (3, (8, 8), True, ())
    assert data.train_images.shape == (17, 3, 8, 8)
    np.testing.assert_array_equal(np.bincount(data.train_labels), [8, 9])
    np.testing.assert_array_equal(np.bincount(data.test_labels), [2, 2])
    for images, labels in ((data.train_images, data.train_labels), (data.test_images, data.test_labels)):
        np.testing.assert_array_equal(images[:, 0, 0, 0] > images[:, 2, 0, 0], labels == 1)
    tested = {image.tobytes() for image in data.test_images}
    assert not tested & {image.tobytes() for image in data.train_images}
    again = load_image_folder(tmp_path, image_size=8, workers=0)
    np.testing.assert_array_equal(again.test_images, data.test_images)
    other = load_image_folder(tmp_path, image_size=8, seed=1)
    assert {image.tobytes() for image in other.test_images} != tested
    (tmp_path / "red" / "0.png").unlink()
    kept = {image.tobytes() for image in load_image_folder(tmp_path, image_size=8, test_fraction=0.25).test_images}
    assert len(kept & tested) >= 3
    assert load_dataset(tmp_path, image_size=4, channels=1).test_images.shape == (4, 4, 4)


def test_parts_that_are_there(tmp_path):
    """`train` beside `test` or `val`, or both; a class that was not trained is named."""
    two_classes(tmp_path, 3, ("train", "val"))
    data = load_image_folder(tmp_path, image_size=8)
    assert (len(data.train_images), len(data.test_images), data.validation_images) == (6, 6, None)
    two_classes(tmp_path, 4, ("test",))
    data = load_image_folder(tmp_path, image_size=8)
    assert (len(data.train_images), len(data.test_images), len(data.validation_images)) == (6, 8, 6)
    np.testing.assert_array_equal(data.validation_labels, data.train_labels)
    saved(tmp_path / "test" / "green" / "1.png")
    with pytest.raises(DataError, match=r"test.green: no class of the training set has this name; there are blue, red"):
        load_image_folder(tmp_path, image_size=8)


def break_png(path):
    content = saved(path).read_bytes()
    path.write_bytes(content[: len(content) // 2])


def test_what_is_skipped_or_refused(tmp_path):
    """Files that are no pictures, cut short or empty are left out and listed by name, or refused with `strict`."""
    two_classes(tmp_path, 6)
    break_png(tmp_path / "red" / "cut.png")
    (tmp_path / "red" / "empty.jpg").touch()
    (tmp_path / "blue" / "text.png").write_text("hello")
    (tmp_path / "blue" / "notes.txt").write_text("hello")
    (tmp_path / "blue" / "gone.png").symlink_to("nowhere")
    os.mkfifo(tmp_path / "blue" / "pipe.png")
    data = load_image_folder(tmp_path, image_size=8)
    assert len(data.train_images) + len(data.test_images) == 12
    named = {Path(line.partition(": ")[0]).name for line in data.skipped}
    assert named == {"cut.png", "empty.jpg", "text.png", "notes.txt", "gone.png", "pipe.png"}
    assert all("\n" not in line for line in data.skipped)
    with pytest.raises(DataError, match=r"gone\.png: no file \(and 2 more\)"):
        load_image_folder(tmp_path, image_size=8, strict=True)
    for name in ("notes.txt", "gone.png", "pipe.png"):
        (tmp_path / "blue" / name).unlink()
    with pytest.raises(DataError, match=r"(cut\.png|empty\.jpg|text\.png): (cannot be read|no picture|damaged)"):
        load_image_folder(tmp_path, image_size=8, strict=True)


def only_broken(root):
    two_classes(root)
    for path in (root / "red").iterdir():
        path.write_bytes(b"")


def one_each(root):
    two_classes(root, 1)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda root: None, "neither folders of pictures nor IDX files"),
        (lambda root: saved(root / "a.png"), "pictures, but no folders; put the pictures of each class into a folder"),
        (lambda root: saved(root / "red" / "a.png"), "one class alone, 'red'"),
        (lambda root: [saved(root / "red" / "a.png"), (root / "blue").mkdir()], "blue: a class without pictures"),
        (only_broken, "red: a class without pictures to train on; of what is in it 5 cannot be used, the first: "),
        (one_each, "one picture a class; none can be held out"),
        (lambda root: (root / "train").mkdir(), "train: neither folders of pictures"),
        (lambda root: [two_classes(root, 2, ("train",)), (root / "val").mkdir()], "val: no pictures in folders of the"),
    ],
)
def test_folders_that_cannot_be_learned_from(make, says, tmp_path):
    """One line that begins with the folder and says what would do."""
    make(tmp_path)
    with pytest.raises(DataError) as caught:
        load_image_folder(tmp_path, image_size=8)
    assert says in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_link_that_leads_in_a_circle(tmp_path):
    """Links are followed, a picture is found once."""
    two_classes(tmp_path)
    (tmp_path / "red" / "again").symlink_to(tmp_path / "red", target_is_directory=True)
    assert sum(np.bincount(load_image_folder(tmp_path, image_size=8).train_labels)) == 8


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_that_do_not_fit_into_memory(channels, tmp_path):
    """They are the same pictures, read when asked for; a file that has gone since is named."""
    two_classes(tmp_path)
    break_png(tmp_path / "red" / "cut.png")
    held, read = (load_image_folder(tmp_path, image_size=6, channels=channels, memory=m) for m in (None, 10))
    images = read.train_images
    assert isinstance(images, Pictures)
    assert images.shape == held.train_images.shape
    np.testing.assert_array_equal(images[:], held.train_images)
    np.testing.assert_array_equal(images[3], held.train_images[3])
    np.testing.assert_array_equal(images[np.array([4, 0, 4])], held.train_images[[4, 0, 4]])
    np.testing.assert_array_equal(images.subset(np.array([5, 1]))[1:], held.train_images[[1]])
    np.testing.assert_array_equal(read.train_labels, held.train_labels)
    assert ImageForm.of(read) == ImageForm.of(held)
    images.files[2].unlink()
    with pytest.raises(DataError, match=f"{images.files[2].name}: cannot be read"):
        images[np.array([1, 2])]


# -- how it is decoded -----------------------------------------------------------------------------------------------


def test_every_kind_of_picture():
    """Palette, grey, alpha, 16 bits, CMYK, one bit, animations: the colours that a viewer shows."""
    plain = Image.new("RGB", (6, 4), RED)
    clear = Image.new("RGBA", (6, 4), (*BLUE, 0))
    half = Image.new("RGBA", (6, 4), (*RED, 128))
    deep = Image.fromarray(np.array([[0, 4095], [2048, 1024]], np.uint16))
    floats = Image.fromarray(np.array([[-1, 3], [1, 0]], np.float32))
    on_white = [round(c * 128 / 255 + 127) for c in RED]
    cases = [
        (plain, "PNG", RED),
        (plain.convert("P", palette=Image.Palette.ADAPTIVE), "PNG", RED),
        (plain.convert("P", palette=Image.Palette.ADAPTIVE), "GIF", RED),
        (plain.convert("CMYK"), "JPEG", RED),
        (plain.convert("CMYK"), "TIFF", RED),
        (plain.convert("YCbCr"), "JPEG", RED),
        (plain.convert("L"), "PNG", [81] * 3),
        (plain.convert("LA"), "PNG", [81] * 3),
        (clear, "PNG", (255, 255, 255)),
        (half, "PNG", on_white),
        (Image.new("1", (6, 4), 1), "PNG", (255, 255, 255)),
        *([(plain, "WEBP", RED)] if features.check("webp") else []),
    ]
    for image, form, colour in cases:
        file = io.BytesIO()
        image.save(file, form)
        pixels = decode_pixels(file, form, (4, 4), 3)
        assert (pixels.shape, pixels.dtype) == ((3, 4, 4), np.uint8)
        near = 6 if form in ("JPEG", "WEBP") else 2
        np.testing.assert_allclose(pixels.astype(int), np.reshape(colour, (3, 1, 1)) * np.ones((3, 4, 4)), atol=near)
        brightness = np.dot((0.299, 0.587, 0.114), np.asarray(colour))
        np.testing.assert_allclose(decode_pixels(file, form, (4, 4), 1).astype(int), brightness, atol=near)
    for image, expected in ((deep, [[0, 255], [128, 64]]), (floats, [[0, 255], [128, 64]])):
        file = io.BytesIO()
        image.save(file, "TIFF")
        np.testing.assert_array_equal(decode_pixels(file, "x", (2, 2), 1), expected)


def test_the_middle_is_taken():
    """The shorter side fits, the longer is cut at both ends; a picture of the right size keeps its pixels."""
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = RED
    for pixels, size in ((wide, (5, 5)), (wide.transpose(1, 0, 2), (7, 7))):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        inner = decode_pixels(file, "x", size, 3)[:, 1:-1, 1:-1]
        np.testing.assert_array_equal(inner, np.broadcast_to(np.reshape(RED, (3, 1, 1)), inner.shape))
    exact = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(exact).save(file, "PNG")
    np.testing.assert_array_equal(decode_pixels(file, "x", (9, 12), 3), exact.transpose(2, 0, 1))


@pytest.mark.parametrize("turn", range(1, 9))
def test_orientation(turn):
    """What EXIF says about how the camera was held is undone: each corner is where a viewer shows it."""
    upright = np.zeros((16, 16, 3), np.uint8)
    upright[:8, :8], upright[:8, 8:], upright[8:, :8] = RED, BLUE, (0, 255, 0)
    # How the camera stored it, by the definition of the tag: row 0 and column 0 of the stored picture are ...
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.transpose(1, 0, 2),
        6: upright[:, ::-1].transpose(1, 0, 2)[::-1][::-1], 7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[turn]  # fmt: skip
    if turn == 6:  # turned by 90 degrees to the right to be upright: stored, it was turned to the left
        stored = np.rot90(upright, 1)
    if turn == 8:
        stored = np.rot90(upright, -1)
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = turn
    Image.fromarray(np.ascontiguousarray(stored)).save(file, "PNG", exif=exif)
    np.testing.assert_array_equal(decode_pixels(file, "x", (16, 16), 3), upright.transpose(2, 0, 1))


def test_a_picture_for_a_model(tmp_path):
    """`read_picture` does with a picture what was done with those of the folder."""
    rng = np.random.default_rng(1)
    for name, number in itertools.product("ab", range(2)):
        (tmp_path / name).mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (20 + number, 33, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    for channels in (1, 3):
        data = load_image_folder(tmp_path, image_size=12, channels=channels, memory=0)
        form = ImageForm.of(data)
        assert ImageForm.from_dict(form.to_dict()) == form
        for file, pixels in zip(data.train_images.files, data.train_images[:], strict=True):
            np.testing.assert_array_equal(read_picture(file, form), pixels)


def test_grey_and_colours():
    """A set in grey is given three equal channels, one in colours its brightness, as Pillow computes it."""
    rng = np.random.default_rng(2)
    colours = rng.integers(0, 256, (3, 3, 5, 4), dtype=np.uint8)
    data = Dataset("x", colours, [0, 1, 0], colours[:1], [1], ("a", "b"))
    grey = data.with_channels(1)
    wanted = [np.asarray(Image.fromarray(image.transpose(1, 2, 0)).convert("L")) for image in colours]
    np.testing.assert_array_equal(grey.train_images, wanted)
    back = grey.with_channels(3)
    np.testing.assert_array_equal(back.train_images, np.stack([wanted] * 3, axis=1))
    assert data.with_channels(3) is data


def test_colours_standardised():
    """Each channel has mean 0 and deviation 1; it survives JSON; padding is black before."""
    images = np.random.default_rng(3).integers(0, 256, (7, 3, 6, 5), dtype=np.uint8)
    images[:, 1] //= 4
    transform = InputTransform.fit(images, (6, 5))
    x = transform(images)
    np.testing.assert_allclose(x.mean((0, 2, 3)), 0, atol=1e-6)
    np.testing.assert_allclose(x.std((0, 2, 3)), 1, atol=1e-6)
    assert InputTransform.from_dict(transform.to_dict()) == transform
    padded = InputTransform((8, 8), transform.mean, transform.std)(images[0])
    black = [-m / s for m, s in zip(transform.mean, transform.std, strict=True)]
    np.testing.assert_allclose(padded[0, :, 0, 0], black, rtol=1e-6)
    np.testing.assert_array_equal(padded[0, :, 1:7, 1:6], x[0])
    for wrong in (images[:, :2], images[0, 0]):
        with pytest.raises(ValueError, match=r"channels|shape"):
            transform(wrong)


# -- batches ahead ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_ahead_is_in_order(workers):
    """Whatever takes long, results come in order, and no more than asked for are made ahead."""
    rng, most, made = np.random.default_rng(4), [0], []
    pauses = rng.random(30) / 200

    def make(number):
        time.sleep(pauses[number])
        made.append(number)
        return number * number

    results = Ahead(make, range(30), workers, ahead=4)
    for position, result in enumerate(results):
        most.append(len(made) - position)
        assert result == position * position
    assert max(most) <= 5
    assert sorted(made) == list(range(30))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("error", [DataError("x.png: cannot be read"), SystemExit(3)])
def test_ahead_passes_on_what_goes_wrong(workers, error):
    """At its place in the order, whatever it is; the threads end."""

    def make(number):
        if number == 3:
            raise error
        return number

    before, seen = threading.active_count(), []
    with pytest.raises(type(error)) as caught:
        seen.extend(iter(Ahead(make, range(10), workers)))
    assert caught.value is error
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_a_dead_worker_is_noticed(monkeypatch):
    """Threads that vanish, as after a fork, end in an error instead of a wait for ever."""
    monkeypatch.setattr("gpuconv.data.ahead._Work.run", lambda self: None)
    with pytest.raises(RuntimeError, match="have died"):
        next(Ahead(abs, range(3), 2))


def test_threads_end_with_who_uses_them():
    """Dropped in the middle, they do not stay behind."""
    before = threading.active_count()
    results = Ahead(abs, range(100), 2)
    assert next(results) == 0
    del results
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


@pytest.mark.slow
def test_ctrl_c_ends_at_once():
    """A worker that hangs, as on a disk that does not answer, holds nobody up."""
    script = (
        "import time\nfrom gpuconv.data import Ahead\n"
        "a = Ahead(lambda n: time.sleep(60), range(9), 2)\nprint('waiting', flush=True)\nnext(a)"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == b"waiting\n"
    process.send_signal(signal.SIGINT)
    begun = time.monotonic()
    _, err = process.communicate(timeout=20)
    assert b"KeyboardInterrupt" in err
    assert time.monotonic() - begun < 10


# -- changes of images -----------------------------------------------------------------------------------------------


def batch(channels=3, count=64, side=16):
    rng = np.random.default_rng(5)
    shape = (count, side, side) if channels == 1 else (count, channels, side, side)
    return rng.integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kinds", [(), *((kind,) for kind in AUGMENTATIONS), ("crop", "flip", "jitter")])
def test_changes_depend_on_their_numbers_alone(kinds, channels):
    """The same for a seed, an epoch and a step; others for others; nothing of the original is written."""
    images = batch(channels)
    original = images.copy()
    where = {"seed": 3, "epoch": 2, "step": 1}
    changed = augmented(images, kinds, **where)
    assert (changed.shape, changed.dtype) == (images.shape, np.uint8)
    np.testing.assert_array_equal(augmented(images, kinds[::-1], **where), changed)
    np.testing.assert_array_equal(images, original)
    assert not np.shares_memory(images, changed)
    for name in where:
        other = augmented(images, kinds, **{**where, name: 7})
        assert np.array_equal(other, changed) == (not kinds)


def test_crops_and_mirror_images():
    """A crop is the image, moved by up to an eighth in each direction, with black behind; each move as often."""
    images = np.maximum(batch(count=600, side=8), 1)
    changed = augmented(images, ("crop", "flip"), seed=0, epoch=0, step=0)
    seen = np.zeros((2, 3, 3), int)
    for old, new in zip(images, changed, strict=True):
        padded = np.pad(old, ((0, 0), (1, 1), (1, 1)))
        found = [
            (flip, top, left)
            for flip, top, left in np.ndindex(2, 3, 3)
            if np.array_equal(padded[:, top : top + 8, left : left + 8][..., :: 1 - 2 * flip], new)
        ]
        assert len(found) == 1
        seen[found[0]] += 1
    assert seen.min() > 15
    assert seen.max() < 60


def test_resized_crops():
    """A picture whose pixels are their own coordinates shows where the part was: inside, and of the promised size."""
    side = 32
    ramp = (np.arange(side, dtype=np.float64) * 8).astype(np.uint8)
    image = np.stack(
        [np.repeat(ramp[:, None], side, 1), np.repeat(ramp[None], side, 0), np.zeros((side, side), np.uint8)]
    )
    changed = augmented(np.repeat(image[None], 400, 0), ("resized-crop",), seed=1, epoch=0, step=0) / 8
    high = (changed[:, 0, -2, 5] - changed[:, 0, 1, 5]) / (side - 3)
    wide = (changed[:, 1, 5, -2] - changed[:, 1, 5, 1]) / (side - 3)
    area, ratio = high * wide, high / wide
    assert 0.22 < area.min() < 0.35
    assert 0.9 < area.max() <= 1.05
    assert 0.7 < ratio.min() < 0.85
    assert 1.2 < ratio.max() < 1.45
    lines = np.diff(changed[:, 0, 1:-1, 5], axis=1)
    np.testing.assert_allclose(lines, np.repeat(high[:, None], side - 3, 1), atol=0.26)  # even steps, within rounding
    assert changed[:, 0].std(axis=2).max() == 0


def test_jitter():
    """As Pillow's brightness, contrast and colour with the factors that were drawn, within rounding."""
    from PIL import ImageEnhance

    from gpuconv.data.batches import AUGMENT_STREAM, random_bits

    images = batch(count=12)
    changed = augmented(images, ("jitter",), seed=4, epoch=5, step=6)
    draws = (random_bits(12 * 8, 4, AUGMENT_STREAM, 5, 6).reshape(12, 8) >> np.uint64(11)) * 2.0**-53
    for old, new, (brightness, contrast, colour) in zip(images, changed, 0.6 + 0.8 * draws[:, 5:], strict=True):
        picture = Image.fromarray(old.transpose(1, 2, 0))
        for enhance, factor in zip(("Brightness", "Contrast", "Color"), (brightness, contrast, colour), strict=True):
            picture = getattr(ImageEnhance, enhance)(picture).enhance(factor)
        np.testing.assert_allclose(new.transpose(1, 2, 0).astype(int), np.asarray(picture).astype(int), atol=3)


def test_names_of_changes():
    """An unknown one gets the nearest; the two crops exclude each other; the usual ones are known."""
    for kinds, says in ((("flop",), "did you mean 'flip'"), (("crop", "resized-crop"), "not both")):
        with pytest.raises(ValueError, match=says):
            augmented(batch(), kinds, seed=0, epoch=0, step=0)
    for side in (32, 224):
        augmented(batch(), default_augmentations((side, side)), seed=0, epoch=0, step=0)


# -- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="a system that does not say what is free")
def test_the_limit_of_a_container_counts(tmp_path, monkeypatch):
    """What is free is no more than the container has left, of which files that are cached may fill a half."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    monkeypatch.setattr(memory, "_CGROUPS", ())
    assert 10**6 < memory.available_memory() <= whole
    monkeypatch.setattr(memory, "_CGROUPS", ((tmp_path / "max", tmp_path / "used"), ("no/such", "file")))
    for limit, used, free in (("1000000", "300000", 700000), ("1000000", "900000", 500000), ("max", "0", None)):
        (tmp_path / "max").write_text(f"{limit}\n")
        (tmp_path / "used").write_text(f"{used}\n")
        found = memory.available_memory()
        assert found == free if free else found > 10**6
