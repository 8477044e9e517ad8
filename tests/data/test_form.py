"""A model carries the form of the data that it learned from: pictures are brought into it, and nothing else."""

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

import gpuconv
from gpuconv import storage
from gpuconv.cli import main
from gpuconv.data import DataError, Dataset, ImageForm, load_dataset, read_digit, read_picture, write_idx
from gpuconv.data.form import MNIST_FORM, polarities
from gpuconv.training import CHECKPOINT, TrainConfig, fit

DIGITS = tuple("0123456789")


def saved(pixels, format="PNG", **options):
    file = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.asarray(pixels, np.uint8))
    image.save(file, format, **options)
    file.seek(0)
    return file


def enlarged(image, factor):
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def scaled(images, height, width):
    return np.stack([np.asarray(Image.fromarray(i).resize((width, height), Image.Resampling.BOX)) for i in images])


def shapes(count, height, width, rng):
    """Bars, crosses and circles, light on dark with a little noise: images and labels."""
    images = []
    for number in range(count):
        image = Image.new("L", (4 * width, 4 * height))
        draw = ImageDraw.Draw(image)
        x, y = rng.uniform(0.4, 0.6, 2) * (4 * width, 4 * height)
        r, line = rng.uniform(0.2, 0.3) * 4 * min(height, width), int(rng.integers(5, 11))
        if number % 3 == 2:
            draw.ellipse([x - r, y - r, x + r, y + r], outline=255, width=line)
        else:
            draw.line([x, y - r, x, y + r], fill=255, width=line)
        if number % 3 == 1:
            draw.line([x - r, y, x + r, y], fill=255, width=line)
        small = np.asarray(image.resize((width, height), Image.Resampling.BOX))
        images.append(np.clip(small + rng.normal(0, 5, small.shape), 0, 255).astype(np.uint8))
    return np.stack(images), np.arange(count) % 3


def write_data(folder, train, test, names=()):
    folder.mkdir()
    for stem, (images, labels) in (("train", train), ("t10k", test)):
        write_idx(folder / f"{stem}-images-idx3-ubyte", images)
        write_idx(folder / f"{stem}-labels-idx1-ubyte", labels.astype(np.uint8))
    if names:
        (folder / "classes.txt").write_text("\n".join(names) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def digits():
    return load_dataset("mnist-sample")


def own_data(kind, digits):
    """Training part, test part and names of the classes of a data set of one's own."""
    parts = [
        (digits.train_images[:800], digits.train_labels[:800]),
        (digits.test_images[:150], digits.test_labels[:150]),
    ]
    change = {
        "8x8": lambda images: scaled(images, 8, 8),
        "24x24": lambda images: images[:, 2:26, 2:26],
        "20x28, dark on light": lambda images: 255 - images[:, 4:24],
    }
    if kind in change:
        return [(change[kind](images), labels) for images, labels in parts], ()
    if kind == "three digits":
        return [(images[labels < 3], labels[labels < 3]) for images, labels in parts], ("zero", "one", "two")
    rng = np.random.default_rng(0)
    return [shapes(600, 18, 30, rng), shapes(90, 18, 30, rng)], ("a bar", "cross/plus", "circle ○")


KINDS = ("8x8", "24x24", "20x28, dark on light", "three digits", "shapes, 18x30")


def outcome(capsys, *arguments):
    capsys.readouterr()
    status = main(list(map(str, arguments)))
    out, err = capsys.readouterr()
    return status, out, err


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPUCONV_BACKEND", "numpy")
    return tmp_path


# -- the form of a data set --------------------------------------------------------------------------------------------


def test_the_form_is_found_in_the_data(digits):
    """Size, polarity, MNIST's way or not, blank images or none; the same after JSON."""
    assert ImageForm.of(digits, "mnist-sample") == replace(MNIST_FORM, source="mnist-sample")

    def form(images):
        labels = np.zeros(len(images), int)
        return ImageForm.of(Dataset("own", images, labels, images[:7], labels[:7], ("a",)))

    some = digits.test_images[:300]
    assert form(some) == MNIST_FORM
    assert form(255 - some) == ImageForm((28, 28), "dark on light", digits=True)
    assert form(some[:, 2:26, 2:26]) == ImageForm((24, 24), "light on dark")
    assert form(255 - some[:, 4:24]) == ImageForm((20, 28), "dark on light")
    assert form(np.roll(some, 4, axis=2)) == ImageForm((28, 28), "light on dark")  # not centred
    mixed = some[:, 2:26, 2:26].copy()
    mixed[5] = 255 - mixed[5]
    assert form(mixed).polarity is None
    mixed[6] = 9
    assert form(mixed).blank
    noise = np.random.default_rng(0).integers(0, 256, (50, 9, 9), np.uint8)
    assert form(noise) == ImageForm((9, 9))
    for one in (form(some), form(noise), replace(form(mixed), source="/x/é")):
        assert ImageForm.from_dict(json.loads(json.dumps(one.to_dict()))) == one


def test_polarity_is_told_only_where_it_is_sure():
    """Three quarters of a flat border, clearly dark or light, and something that stands out."""
    image = np.zeros((4, 6, 6), np.uint8)
    image[:, 2:4, 2:4] = 200
    image[1] = 255 - image[1]
    image[2] += 30  # still dark
    image[3, :, :2] = 255  # a third of the border is light
    assert polarities(image).tolist() == [1, -1, 1, 0]
    assert polarities(np.full((1, 5, 5), 9, np.uint8)).tolist() == [0]
    faint = np.full((1, 5, 5), 100, np.uint8)
    faint[0, 2, 2] = 250
    assert polarities(faint).tolist() == [0]


@pytest.mark.parametrize(
    ("values", "error", "says"),
    [
        ({"size": 28}, TypeError, "size is 28"),
        ({"size": (28, 0)}, ValueError, "at least 1"),
        ({"polarity": "dark"}, ValueError, "polarity is 'dark'"),
        ({"digits": 1}, TypeError, "digits is 1"),
        ({"size": (20, 28), "digits": True}, ValueError, "28x28"),
        ({"polarity": None, "digits": True}, ValueError, "of one polarity"),
        ({"source": 3}, TypeError, "source is 3"),
    ],
)
def test_what_is_no_form_is_refused(values, error, says):
    """The message names the attribute and what was given."""
    with pytest.raises(error, match=says):
        ImageForm.from_dict({**MNIST_FORM.to_dict(), **values})
    with pytest.raises(ValueError, match="keys are"):
        ImageForm.from_dict({"size": [1, 2]})


def test_names_of_classes(tmp_path, digits):
    """classes.txt beside the IDX files names the classes; a broken one is named."""
    (train, test), names = own_data("three digits", digits)
    write_data(tmp_path / "own", train, test, names)
    assert load_dataset(tmp_path / "own").classes == names
    file = tmp_path / "own" / "classes.txt"
    file.write_bytes("\ufeffnull\r\n\r\n eins \r\nzwei\r\nmore\r\n".encode())
    assert load_dataset(tmp_path / "own").classes == ("null", "eins", "zwei", "more")
    for content, says in ((b"a\nb\n", "names 2 classes"), (b"a\nb\na\n", "'a' is there twice"), (b"\xff", "UTF-8")):
        file.write_bytes(content)
        with pytest.raises(DataError, match=says) as caught:
            load_dataset(tmp_path / "own")
        assert str(caught.value).startswith(str(file))
    file.unlink()
    assert load_dataset(tmp_path / "own").classes == ("0", "1", "2")


# -- pictures in that form ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_images_come_back_exactly(kind, digits):
    """As they are, enlarged in squares, in colour, as a palette or as BMP: the very pixels; so if they are turned."""
    (train, test), _ = own_data(kind, digits)
    form = ImageForm.of(Dataset("own", *train, *test, DIGITS))
    for image in test[0][:25]:
        large = Image.fromarray(enlarged(image, 10))
        for file in (image, enlarged(image, 2), enlarged(image, 7), large, large.convert("RGB"), large.convert("P")):
            np.testing.assert_array_equal(read_picture(saved(file), form), image)
        np.testing.assert_array_equal(read_picture(saved(image, "BMP"), form), image)
        if form.polarity is not None and polarities(image[None])[0]:
            for file in (255 - image, enlarged(255 - image, 10)):
                np.testing.assert_array_equal(read_picture(saved(file), form), image)


def test_other_pictures_are_taken_whole():
    """Scaled by means, continued at the edges where the proportions are others, turned where that is sure."""
    form = ImageForm((6, 9), "light on dark")
    cross = np.zeros((6, 9), np.uint8)
    cross[1:5, 4] = cross[3, 2:7] = 240
    smooth = Image.fromarray(enlarged(cross, 8)).transform(
        (72, 48), Image.Transform.AFFINE, (1, 0, 0.5, 0, 1, 0), Image.Resampling.BILINEAR
    )
    assert np.abs(read_picture(saved(smooth), form).astype(int) - cross).max() <= 20
    # Turned; of 8 columns, with one more for the proportions.
    np.testing.assert_array_equal(read_picture(saved(255 - enlarged(cross, 4)[:, :32]), form), cross)
    wide = np.pad(enlarged(cross, 4), ((0, 0), (18, 18)))  # 24x72, of which 6x9 takes 3x9
    read = read_picture(saved(wide), form)
    assert read[0].max() == read[5].max() == 0
    assert np.argmax(read.sum(axis=1)) in (2, 3)
    for unsure in (ImageForm((6, 9)), form):
        gray = enlarged(cross // 4 + 100, 5)[:-1]  # neither light nor dark around
        read = read_picture(saved(gray), unsure)
        assert read[0, 0] == 100 <= read.min()


def test_a_blank_picture_needs_blank_data():
    """A page with nothing on it is refused, unless such were among the images; noise in a large picture always is."""
    page = np.full((60, 90), 255, np.uint8)
    for form in (ImageForm((6, 9)), ImageForm((6, 9), "light on dark"), MNIST_FORM):
        with pytest.raises(DataError, match=r"picture: blank"):
            read_picture(saved(page), form)
        noise = np.random.default_rng(0).integers(0, 256, (150, 200))
        with pytest.raises(DataError, match="nothing but noise"):
            read_picture(saved(noise), form)
    assert (read_picture(saved(page), ImageForm((6, 9), blank=True)) == 255).all()


def test_digits_dark_on_light(digits):
    """A model of inverted MNIST digits gets inverted pictures, from whatever polarity."""
    form = ImageForm((28, 28), "dark on light", digits=True)
    digit = digits.test_images[3]
    photo = np.pad(enlarged(digit, 5), 30)
    for picture in (photo, 255 - photo):
        np.testing.assert_array_equal(read_picture(saved(picture), form), 255 - read_digit(saved(photo)))


# -- models and runs ---------------------------------------------------------------------------------------------------


def test_a_model_file_holds_the_form(tmp_path, digits):
    """It comes back with the model; a file from before there was a form means MNIST's, if its images had that size."""
    model = gpuconv.models.LeNet5()
    for form in (None, ImageForm((6, 9), "dark on light", source="/x")):
        model.form = form
        gpuconv.save(model, tmp_path / "m")
        assert gpuconv.load(tmp_path / "m").form == form

    model.input_transform = gpuconv.data.InputTransform.fit(digits.test_images[:20])
    for size, form in (((32, 32), MNIST_FORM), ((40, 32), None)):
        model.input_transform = replace(model.input_transform, size=size)
        gpuconv.save(model, tmp_path / "m")
        tensors, content = storage.load_tensors(tmp_path / "m", "gpuconv-model")
        del content["form"]
        storage.save_tensors(tmp_path / "m", tensors, "gpuconv-model", content)
        assert gpuconv.load(tmp_path / "m").form == form
    content["form"] = {"size": [28]}
    storage.save_tensors(tmp_path / "m", tensors, "gpuconv-model", content)
    with pytest.raises(storage.FileError, match="does not describe a model"):
        gpuconv.load(tmp_path / "m")


def test_a_checkpoint_holds_the_form(in_folder, digits):
    """Where the data are is kept on resume, unless they are gone from there; a checkpoint without a form resumes."""
    (train, test), _ = own_data("8x8", digits)
    write_data(in_folder / "own", [part[:60] for part in train], [part[:20] for part in test])
    config = TrainConfig(data="own", epochs=1, backend="numpy")
    assert fit(config, "run").model.form == ImageForm((8, 8), "light on dark", source=str(in_folder / "own"))
    tensors, content = storage.load_tensors("run/checkpoint.safetensors", "gpuconv-checkpoint")
    assert content["form"]["source"] == str(in_folder / "own")
    Path("own").rename("moved")
    moved = replace(config, data="moved")
    assert fit(moved, "run", resume=True).model.form.source == str(in_folder / "moved")
    del content["form"]
    storage.save_tensors(Path("run") / CHECKPOINT, tensors, "gpuconv-checkpoint", content)
    assert fit(moved, "run", resume=True).model.form.size == (8, 8)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pytest.param(k, marks=[pytest.mark.thorough] * ("dark" not in k)) for k in KINDS])
def test_a_run_on_data_of_ones_own(capsys, in_folder, kind, digits):
    """predict answers for the samples and for each test picture as the model does for the arrays, evaluate likewise."""
    (train, test), names = own_data(kind, digits)
    write_data(in_folder / "own", train, test, names)
    assert outcome(capsys, "train", "--data", "own", "--epochs", 5, "--lr", 0.03, "--out", "run")[0] == 0
    model = gpuconv.load("run")
    of_arrays = model.predict(test[0]).argmax(1)
    accuracy = np.mean(of_arrays == test[1])
    assert accuracy > 0.6
    assert model.classes == (names or DIGITS)

    samples = sorted(Path("run/samples").iterdir())
    assert len(samples) == len(model.classes)
    _, first = np.unique(test[1], return_index=True)
    stored = {test[0][number].tobytes(): of_arrays[number] for number in first}
    status, out, err = outcome(capsys, "predict", "run/samples", "--model", "run", "--json", "--show")
    assert (status, err) == (0, "")
    answers = json.loads(out)
    for answer in answers:
        pixels = np.array(answer["pixels"], np.uint8)
        assert answer["class"] == model.classes[stored.pop(pixels.tobytes())]
    assert not stored

    Path("pictures").mkdir()
    for number, image in enumerate(test[0]):
        Image.fromarray(image).save(f"pictures/{number}.png")
    status, out, err = outcome(capsys, "predict", "pictures", "--model", "run", "--json")
    assert (status, err) == (0, "")
    answers = json.loads(out)
    assert [int(Path(answer["image"]).stem) for answer in answers] == list(range(len(test[0])))  # in natural order
    right = [answer["class"] == model.classes[label] for answer, label in zip(answers, test[1], strict=True)]
    status, out, _ = outcome(capsys, "evaluate", "--model", "run")
    assert status == 0
    assert f"run on the {len(right)} test images of {in_folder / 'own'}, which it was trained with\n" in out
    assert f"accuracy {np.mean(right):.2%}," in out
    assert np.mean(right) == accuracy


def test_evaluate_on_other_data(capsys, in_folder, digits):
    """Data of another size or number of classes, or that are gone: one line that says so."""
    for kind, name in (("8x8", "own"), ("24x24", "large"), ("three digits", "three")):
        (train, test), names = own_data(kind, digits)
        write_data(in_folder / name, [part[:60] for part in train], [part[:60] for part in test], names)
    fit(TrainConfig(data="own", epochs=1, backend="numpy"), "run")
    model = gpuconv.models.LeNet5()
    model.input_transform = gpuconv.data.InputTransform.fit(digits.test_images)
    model.form = replace(MNIST_FORM, source="mnist-sample")
    Path("runs/mnist").mkdir(parents=True)
    gpuconv.save(model, "runs/mnist/model.safetensors")
    for options, says in (
        ("--model run --data large", "the images of large are 24x24 pixels, but the model learned from 8x8"),
        (
            "--model run --data mnist-sample",
            "the images of mnist-sample are 28x28 pixels, but the model learned from 8x8",
        ),
        ("--data three", "three has 3 classes, but the model knows 10 classes"),
    ):
        status, out, err = outcome(capsys, "evaluate", *options.split())
        assert (status, out, err) == (2, "", f"gpuconv: {says}\n")
    Path("own").rename("moved")
    gone = f"gpuconv: {in_folder / 'own'}, which the model learned from, is no longer there; say where with --data\n"
    assert outcome(capsys, "evaluate", "--model", "run") == (2, "", gone)
    status, out, _ = outcome(capsys, "evaluate", "--model", "run", "--data", "moved")
    assert status == 0
    assert "run on the 60 test images of moved\n" in out
    _, out, _ = outcome(capsys, "evaluate")
    assert "runs/mnist on the 2,000 test images of mnist-sample, which it was trained with\n" in out


# -- what predict takes and shows --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The run directory of LeNet after three epochs on 2,000 of the bundled digits, with samples."""
    folder, data = tmp_path_factory.mktemp("form"), load_dataset("mnist-sample")
    train, test = (data.train_images[:2000], data.train_labels[:2000]), (data.test_images[:100], data.test_labels[:100])
    write_data(folder / "digits", train, test)
    with gpuconv.use_backend("numba"):
        options = ["--data", str(folder / "digits"), "--epochs", "3", "--out", str(folder / "run")]
        assert main(["train", *options]) == 0
    return folder / "run"


@pytest.mark.slow
def test_a_folder_of_pictures(capsys, in_folder, run, digits):
    """All pictures in natural order, a line each whose columns stand below each other; what else there is, is named."""
    Path("in").mkdir()
    for name in ("10.png", "9.PNG", "a\x1b[31m\n.png", "中文.png"):
        (Path("in") / name).write_bytes((run / "samples/7.png").read_bytes())
    for name in ("notes.txt", "b.csv", "c.csv", "d.csv", ".hidden"):
        (Path("in") / name).write_text("no picture")
    Path("in/sub.png").mkdir()
    status, out, err = outcome(capsys, "predict", "in", "--model", run)
    assert status == 0
    assert err == "gpuconv: in: skipped what is no picture: b.csv, c.csv, d.csv and 2 more\n"
    header, *lines = out.splitlines()
    assert header == f"model {run}"
    assert [line.split("  ")[0] for line in lines] == ["in/9.PNG", "in/10.png", r"in/a\x1b[31m\n.png", "in/中文.png"]
    rows = [re.fullmatch(r"(.+?) +(\d)  ( *[\d.]+%)", line) for line in lines]
    assert {row[2] for row in rows} == {"7"}
    assert len({row.start(2) + ("中" in row[0]) * 2 for row in rows}) == 1  # these characters are two wide

    Path("empty").mkdir()
    status, _, err = outcome(capsys, "predict", "empty", "--model", run)
    assert (status, err) == (2, "gpuconv: empty: no picture in this folder, it is empty\n")
    Path("empty/x.txt").touch()
    assert "no picture in this folder, only x.txt\n" in outcome(capsys, "predict", "empty", "--model", run)[2]


@pytest.mark.slow
def test_what_the_network_saw(capsys, in_folder, run, digits):
    """--show draws the picture under its answer: fuller characters where it is brighter; in ASCII where need be."""
    status, out, _ = outcome(capsys, "predict", run / "samples/0.png", "--model", run, "--show")
    assert status == 0
    drawn = out.splitlines()[-14:]
    image = digits.test_images[np.flatnonzero(digits.test_labels == 0)[0]].astype(float)
    pairs = (image[::2] + image[1::2]) / 2
    for line, row in zip(drawn, pairs, strict=True):
        line = line[2:].ljust(28)
        for character, value in zip(line, row, strict=True):
            assert abs(" ░▒▓█".index(character) * 255 / 4 - value) <= 33


def test_a_picture_that_is_no_digit(capsys, in_folder, run, digits):
    """Two digits, noise, a blank page: each has a line that says so, and an error in the JSON; the exit status is 2."""
    one, two = (255 - enlarged(digits.test_images[number], 5) for number in (0, 1))
    Image.fromarray(np.hstack([one, two])).save("two.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 300)).astype(np.uint8)).save("noise.png")
    Image.new("L", (600, 800), 250).save("blank.png")
    names = ("two.png", "noise.png", "blank.png")
    status, out, err = outcome(capsys, "predict", *names, "--model", run, "--json")
    assert status == 2
    errors = [answer["error"] for answer in json.loads(out)]
    assert err.splitlines() == [f"gpuconv: {error}" for error in errors]
    for name, error, says in zip(names, errors, ("two shapes", "nothing but noise", "blank"), strict=True):
        assert error.startswith(f"{name}: {says}")
