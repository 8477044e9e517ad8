"""Training on folders of pictures and on colours: the same bytes however they are read, weights, limits."""

from __future__ import annotations

import json
import signal
import threading
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import gpuconv
from gpuconv import models, nn, storage
from gpuconv.cli import main
from gpuconv.data import DataError, Dataset, ImageForm, InputTransform, augmented, batch_indices, load_image_folder
from gpuconv.models import Classifier
from gpuconv.storage import FileError
from gpuconv.training import (
    BatchEnd,
    FolderRead,
    Interrupted,
    TrainConfig,
    WeightsLoaded,
    evaluate,
    fit,
    network,
)
from gpuconv.training.feed import HostFeed

COLOURS = {"blue": (40, 60, 200), "green": (60, 180, 40), "red": (200, 40, 60)}


class Tiny(Classifier):
    """A convolution, batch normalisation, dropout and a mean, for colours."""

    def __init__(self, num_classes: int = 10):
        super().__init__(
            {
                "conv": nn.Conv2d(3, 8, 3, padding=1),
                "bn": nn.BatchNorm2d(8),
                "relu": nn.ReLU(),
                "drop": nn.Dropout(0.2),
                "pool": nn.AdaptiveAvgPool2d(1),
                "flatten": nn.Flatten(),
                "fc": nn.Linear(8, num_classes),
            },
            config={"num_classes": num_classes},
            input_shape=(3, 12, 12),
            num_classes=num_classes,
        )


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    monkeypatch.setitem(models.MODELS, "tiny", Tiny)
    monkeypatch.setenv("GPUCONV_BACKEND", "numpy")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three colours, thirteen noisy pictures of each, of several sizes, and one that is cut short."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (root / name).mkdir()
        for number in range(13):
            pixels = np.clip(rng.normal(colour, 50, (14 + number % 3, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    content = (root / "red" / "0.png").read_bytes()
    (root / "red" / "cut.png").write_bytes(content[:100])
    return root


def config(folder, **changes):
    settings = {"data": folder, "model": "tiny", "epochs": 3, "batch_size": 8, "lr": 0.1, "augment": True}
    return TrainConfig(**{**settings, **changes})


def events(kind, *arguments, **options):
    seen = []
    result = fit(*arguments, **options, on_event=seen.append)
    return result, [event for event in seen if isinstance(event, kind)]


# -- a run -----------------------------------------------------------------------------------------------------------


def test_it_learns_and_says_what_it_saw(tmp_path, folder):
    """Colours are told apart; what is cut short is reported; the model knows how its pictures were prepared."""
    result, (read,) = events(FolderRead, config(folder, epochs=12), tmp_path / "run")
    assert result.test_accuracy > 0.8
    assert (read.classes, read.size, read.in_memory) == (tuple(COLOURS), (12, 12), True)
    assert [line.partition(": ")[0] for line in read.skipped] == [str(folder / "red" / "cut.png")]
    loaded = gpuconv.load(tmp_path / "run")
    assert loaded.form == ImageForm((12, 12), blank=True, source=str(folder), channels=3, cut=True)
    assert loaded.input_transform.channels == 3
    data = load_image_folder(folder, image_size=12)
    np.testing.assert_array_equal(loaded.predict(data.test_images), result.model.predict(data.test_images))
    assert loaded.predict(data.test_images[0]).shape == (3,)
    with pytest.raises(DataError, match=r"cut\.png"):
        fit(config(folder), tmp_path / "strict", strict=True)


def test_the_same_bytes_however_they_are_read(tmp_path, folder):
    """From memory, from the files again and again, by any number of threads, in pieces: not a bit differs."""
    fit(config(folder), tmp_path / "whole")
    expected = (tmp_path / "whole" / "model.safetensors").read_bytes()
    held = load_image_folder(folder, image_size=12)
    read = load_image_folder(folder, image_size=12, memory=0)
    before = threading.active_count()
    for name, options in {
        "no threads": {"workers": 0},
        "five threads": {"workers": 5},
        "given": {"dataset": replace(held, name=str(folder))},
        "from files": {"dataset": read},
        "from files, no threads": {"dataset": read, "workers": 0},
    }.items():
        fit(config(folder), tmp_path / name, **options)
        assert (tmp_path / name / "model.safetensors").read_bytes() == expected, name

    def stop(event):
        if isinstance(event, BatchEnd) and (event.epoch, event.step) == (2, 2):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted):
        fit(config(folder), tmp_path / "pieces", dataset=read, on_event=stop)
    fit(config(folder), tmp_path / "pieces", resume=True, workers=1)
    assert (tmp_path / "pieces" / "model.safetensors").read_bytes() == expected
    assert threading.active_count() == before


def test_a_picture_that_vanishes_is_named(tmp_path, folder):
    """An error of a thread reaches the user, with the file's name; the run resumes when the file is back."""
    data = load_image_folder(folder, image_size=12, memory=0)
    lost = data.train_images.files[5]
    content = lost.read_bytes()

    def lose(event):
        if isinstance(event, BatchEnd) and event.epoch == 2:
            lost.unlink(missing_ok=True)

    try:
        with pytest.raises(DataError, match=f"{lost.name}: cannot be read"):
            fit(config(folder), tmp_path / "run", dataset=data, on_event=lose)
    finally:
        lost.write_bytes(content)
    fit(config(folder), tmp_path / "run", dataset=data, resume=True)
    fit(config(folder), tmp_path / "whole", dataset=data)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "model.safetensors"
    ).read_bytes()


def test_validation_pictures_of_their_own(tmp_path, folder):
    """Where a data set has them, nothing is split off."""
    data = load_image_folder(folder, image_size=12)
    own = replace(data, validation_images=data.test_images[:4], validation_labels=data.test_labels[:4])
    result = fit(config(folder, epochs=1), tmp_path / "run", dataset=own)
    model, epoch = result.model, result.history[-1]
    judged = evaluate(model, data.test_images[:4], data.test_labels[:4])
    assert (epoch.validation_loss, epoch.validation_accuracy) == (judged.loss, judged.accuracy)


def test_other_changes_are_another_run(tmp_path, folder):
    """The size and the changes of images are settings of the run, spelled as they are given."""
    fit(config(folder, epochs=1, augment="crop, flip"), tmp_path / "run")
    for change in ({"augment": "crop"}, {"image_size": 16}):
        with pytest.raises(FileError, match=f"of another run: .*{next(iter(change))}"):
            fit(config(folder, **{"augment": "crop,flip", **change}), tmp_path / "run", resume=True)
    for wrong, says in (("crop,flop", "did you mean 'flip'"), ("crop,resized-crop", "not both"), (3, "must be True")):
        with pytest.raises((ValueError, TypeError), match=says):
            config(folder, augment=wrong)
    assert TrainConfig(**json.loads(json.dumps(asdict(config(folder, augment="flip"))))).augment == "flip"


@pytest.mark.parametrize("kinds", [(), ("crop", "flip", "jitter")])
def test_an_epoch_of_batches(backend, kinds):
    """Each image once, in the order of the epoch, changed by seed, epoch and step; none alone in a last batch."""
    rng = np.random.default_rng(1)
    images, labels = rng.integers(0, 256, (13, 3, 8, 8), dtype=np.uint8), rng.integers(0, 3, 13)
    transform = InputTransform.fit(images, (10, 8))
    feed = HostFeed(images, labels, transform, backend, batch_size=4, seed=2, augmentations=kinds, workers=2)
    assert len(feed) == 12
    for epoch, first in ((0, 0), (1, 0), (1, 2)):
        feed.begin(epoch, first)
        (order,) = batch_indices(13, 13, seed=2, epoch=epoch)
        for step in range(first, 3):
            x, y = feed.batch(*feed.inputs(step)) if step % 2 else feed.next_batch(*feed.next_inputs(step))
            index = order[4 * step : 4 * step + 4]
            wanted = transform(augmented(images[index], kinds, seed=2, epoch=epoch, step=step))
            np.testing.assert_array_equal(backend.to_numpy(x), wanted)
            assert feed.next_inputs(step)[0] is feed.next_inputs(step)[0]
            np.testing.assert_array_equal(backend.to_numpy(y), labels[index])
    feed.close()
    assert len(HostFeed(images[:1], labels[:1], transform, backend, batch_size=4, seed=2)) == 1


# -- grey and colours ------------------------------------------------------------------------------------------------


def test_grey_digits_for_a_network_of_colours(tmp_path):
    """They are given three channels; the model still asks for digits, of their own size."""
    result = fit(config("mnist-sample", epochs=1, batch_size=256, augment=False), tmp_path / "run")
    assert result.model.input_shape == (3, 28, 28)
    assert result.model.form.digits
    images = result.dataset.test_images[:3]
    np.testing.assert_array_equal(images[:, 0], images[:, 2])
    model = gpuconv.load(tmp_path / "run")
    assert model.input_shape == (3, 28, 28)
    np.testing.assert_array_equal(model.predict(images), result.model.predict(images))


def test_colours_for_a_network_of_grey(tmp_path):
    """Their brightness is taken, padded to the size that LeNet needs; a folder is read in grey at once."""
    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, (20, 3, 30, 30), dtype=np.uint8)
    data = Dataset("x", images, np.arange(20) % 2, images[:4], np.arange(4) % 2, ("a", "b"))
    result = fit(config("x", model="lenet5", epochs=1, augment="crop"), tmp_path / "run", dataset=data)
    assert (result.model.form.channels, result.model.input_shape) == (1, (1, 32, 32))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": "lenet5", "image_size": 40}, "model 'lenet5' does not take images of 40x40; it is made for 32x32"),
        ({"model": "squeezenet1_1", "image_size": 8}, "'squeezenet1_1' does not take images of 8x8"),
        ({"model": "unet", "image_size": 16}, "'unet' gives 3x16x16 values for an image, not one a class"),
        ({"image_size": 0}, "image_size must be at least 1"),
        ({"data": "mnist-sample", "image_size": 20}, "image_size is 20, but the images of data .* are 28x28"),
    ],
)
def test_sizes_that_a_network_does_not_take(tmp_path, folder, changes, says):
    """Before anything is trained, and with the size that would do."""
    with pytest.raises(ValueError, match=says):
        fit(config(folder, **changes), tmp_path / "run")


def test_too_large_for_memory(tmp_path, folder, monkeypatch):
    """Said before it is allocated: of parameters before the data are read, of a batch before the first step."""
    huge = {"model": "lenet5", "model_arguments": {"hidden": (10**9, 10**9)}}
    with pytest.raises(ValueError, match=r"'lenet5' has 1,000,000,4\d\d,[\d,]+ parameters, which .* take [\d,]+ GB"):
        fit(config("no/such/folder", **huge), tmp_path / "run")
    # No more than there are: as one batch, this is nothing.
    fit(config(folder, batch_size=10**9, epochs=1), tmp_path / "one batch")
    monkeypatch.setattr(network, "available_memory", lambda: 10**6)
    with pytest.raises(ValueError, match=r"outputs for 30 images of 32x32 take .* a smaller batch_size needs less"):
        fit(config(folder, batch_size=30, image_size=32), tmp_path / "run")
    monkeypatch.setattr(network, "available_memory", lambda: 10**8)
    with pytest.raises(
        ValueError, match=r"'vgg16' has 138,357,544 parameters, .* take 1\.7 GB, but 100\.0 MB of memory"
    ):
        fit(config(folder, model="vgg16"), tmp_path / "run")


# -- weights to start from -------------------------------------------------------------------------------------------


def state(classes):
    gpuconv.manual_seed(5)
    return Tiny(classes).state_dict()


@pytest.mark.parametrize("ending", ["safetensors", "pt", "pth"])
def test_weights_of_other_libraries(tmp_path, folder, ending):
    """A state_dict, also inside what a script saves; a last layer of other classes is left out, and named."""
    path, other = tmp_path / f"w.{ending}", state(5)
    if ending == "safetensors":
        gpuconv.save(other, path)
    else:
        torch = pytest.importorskip("torch", reason="pip install torch to write its files")
        tensors = {name: torch.tensor(array) for name, array in other.items()}
        if ending == "pth":
            tensors = {f"module.{name}": tensor for name, tensor in tensors.items() if "tracked" not in name}
            tensors = {"epoch": 3, "state_dict": tensors}
        torch.save(tensors, path)
    still = config(folder, weights=path, lr=1e-30, weight_decay=0, epochs=1)
    result, (event,) = events(WeightsLoaded, still, tmp_path / "run")
    assert event.left_out == ("fc.weight", "fc.bias")
    now = result.model.state_dict()
    for name in ("conv.weight", "conv.bias", "bn.weight"):
        np.testing.assert_array_equal(now[name], other[name])
    assert now["fc.weight"].shape == (3, 8)
    assert result.model.input_transform == InputTransform((12, 12), *network.IMAGENET)
    # What has begun needs the file no more.
    path.unlink()
    fit(replace(still, epochs=2), tmp_path / "run", resume=True)
    assert gpuconv.load(tmp_path / "run").input_transform == result.model.input_transform


def test_weights_of_a_run(tmp_path, folder):
    """A run directory gives its weights, its last layer for as many classes, and its standardisation."""
    first = fit(config(folder, epochs=1), tmp_path / "first").model
    still = config(folder, weights=tmp_path / "first", lr=1e-30, weight_decay=0, epochs=1, image_size=16)
    result, (event,) = events(WeightsLoaded, still, tmp_path / "second")
    assert event.left_out == ()
    np.testing.assert_array_equal(result.model.state_dict()["fc.weight"], first.state_dict()["fc.weight"])
    assert result.model.input_transform == replace(first.input_transform, size=(16, 16))


def test_weights_that_do_not_fit(tmp_path, folder):
    """No such file, known before the data are read; another network's; no weights at all: one line."""
    with pytest.raises(FileError, match=r"w\.pt: no such file"):
        fit(config("no/such/folder", weights=tmp_path / "w.pt"), tmp_path / "run")
    gpuconv.save({"a.weight": np.zeros(3), **{k: v for k, v in state(3).items() if k != "bn.bias"}}, tmp_path / "w")
    with pytest.raises(FileError, match=r"w: not the weights of tiny: .*missing bn\.bias; unexpected a\.weight"):
        fit(config(folder, weights=tmp_path / "w"), tmp_path / "run")
    wrong = {**state(3), "conv.weight": np.zeros((8, 3, 5, 5), np.float32)}
    gpuconv.save(wrong, tmp_path / "w")
    with pytest.raises(FileError, match=r"conv\.weight has shape \(8, 3, 5, 5\) instead of \(8, 3, 3, 3\)"):
        fit(config(folder, weights=tmp_path / "w"), tmp_path / "run")


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "densenet121", "googlenet"])
def test_the_last_layer_is_found(name, tmp_path):
    """Of 1000 classes to 7: only what depends on their number is left out, be it a convolution."""
    model = models.build(name, num_classes=7)
    whole = models.build(name, num_classes=9).state_dict()
    if name == "googlenet":
        whole["aux1.fc2.weight"] = np.zeros((9, 1024), np.float32)
    gpuconv.save(whole, tmp_path / "w")
    last = {"resnet18": "fc", "squeezenet1_1": "classifier.1", "densenet121": "classifier", "googlenet": "fc"}[name]
    extra = ("aux1.fc2.weight",) if name == "googlenet" else ()
    loaded = network.load_weights(model, tmp_path / "w")
    assert {*loaded.left_out} == {f"{last}.weight", f"{last}.bias", *extra}
    for key, value in model.state_dict().items():
        if key not in loaded.left_out:
            np.testing.assert_array_equal(value, whole[key])


# -- the command line ------------------------------------------------------------------------------------------------


def run_cli(capsys, *arguments):
    capsys.readouterr()
    status = main(list(map(str, arguments)))
    out, err = capsys.readouterr()
    return status, " ".join(out.split()), err


@pytest.mark.slow
def test_the_commands(tmp_path, folder, capsys, monkeypatch):
    """train on a folder, evaluate and predict afterwards: the answers agree, and what was skipped is listed."""
    monkeypatch.chdir(tmp_path)
    gpuconv.save(state(5), "start.safetensors")
    train = ("train", "--data", folder, "--model", "tiny", "--epochs", 8, "--lr", 0.1, "--batch-size", 8)
    train += ("--augment-with", "crop,flip", "--image-size", 16, "--weights", "start.safetensors", "--out", "run")
    status, out, err = run_cli(capsys, *train, "--workers", 1)
    assert (status, err) == (0, "")
    assert f"reading 40 pictures skipped 1 file (--strict refuses them): {folder / 'red' / 'cut.png'}: " in out
    assert "starting from the weights in start.safetensors; not those of another last layer: fc.weight, fc.bias" in out
    assert "27 images, 3 held out" in out or "28 images, 3 held out" in out
    model = gpuconv.load("run")
    assert model.input_shape == (3, 16, 16)
    assert {path.name for path in Path("run", "samples").iterdir()} == {f"{name}.png" for name in COLOURS}
    data = load_image_folder(folder, image_size=16, memory=0)
    right = np.mean(model.predict(data.test_images[:]).argmax(1) == data.test_labels)
    status, out, err = run_cli(capsys, "evaluate", "--model", "run")
    assert (status, err) == (0, "")
    assert f"run on the 9 test images of {folder}, which it was trained with accuracy {right:.2%}" in out
    status, out, err = run_cli(capsys, "predict", *data.test_images.files, "--model", "run", "--json", "--show")
    assert (status, err) == (0, "")
    for answer, image in zip(json.loads(out), data.test_images[:], strict=True):
        np.testing.assert_array_equal(answer["pixels"], image)
        assert answer["class"] == model.classes[int(model.predict(image).argmax())]
    status, out, err = run_cli(capsys, "predict", data.test_images.files[0], "--model", "run", "--show")
    assert (status, err) == (0, "")
    for arguments, says in (
        (("--strict",), f"gpuconv: {folder / 'red' / 'cut.png'}: "),
        (("--augment-with", "spin"), "--augment must be some of crop, resized-crop, flip, jitter, got 'spin'"),
        (("--weights", "nowhere.pt"), "nowhere.pt: no such file"),
        (("--image-size", 0), "--image-size must be at least 1"),
    ):
        status, _, err = run_cli(capsys, *train[:-2], *arguments, "--out", "other")
        assert (status, err.count("\n")) == (2, 1), err
        assert says in err
    two = tmp_path / "two"
    for name in ("blue", "violet", "red"):
        (two / name).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (16, 16), COLOURS["red"]).save(two / name / f"{number}.png")
    status, _, err = run_cli(capsys, "evaluate", "--model", "run", "--data", two)
    assert "two has a class 'violet', which the model does not know" in err
    assert (
        storage.load_tensors("run/checkpoint.safetensors", "gpuconv-checkpoint")[1]["config"]["augment"] == "crop,flip"
    )
