"""Where training images are kept, and how batches are made of them: the same on every backend, by a graph too."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import reference

import gpuconv
from gpuconv import Tensor, backends, models, nn, optim, training
from gpuconv import functional as F
from gpuconv.backends.numpy_backend import NumpyBackend
from gpuconv.data import Dataset, InputTransform, batch_indices, load_dataset, random_transforms
from gpuconv.training.feed import Feed, HostFeed

SIZE = (9, 8)


def image_set(count=23, height=6, width=7):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, height, width), np.uint8)
    return images, rng.integers(0, 3, count), InputTransform.fit(images, SIZE)


def made(backend, *, augment, batch_size=5, count=23):
    images, labels, transform = image_set(count)
    return Feed(images, labels, transform, backend, batch_size=batch_size, seed=4, augment=augment)


def expected(epoch, augment, count=23):
    """Inputs and labels of all images in the epoch's order."""
    images, labels, transform = image_set(count)
    order = np.concatenate(list(batch_indices(count, 5, seed=4, epoch=epoch)))
    if not augment:
        return transform(images[order]), labels[order]
    transforms = random_transforms(count, seed=4, epoch=epoch)
    return reference.image_batch(transform.table(), images, order, transforms, SIZE), labels[order]


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("resident", [True, False])
def test_an_epoch(backend, resident, augment, monkeypatch):
    """Each image once, in the order of the epoch, as the transform makes it, bit for bit; the last batch is shorter."""
    if not resident:
        monkeypatch.setattr(type(backend), "free_memory", lambda self: 0)
    feed = made(backend, augment=augment)
    assert (len(feed), feed.resident) == (23, resident)
    for epoch in (0, 1):
        feed.begin(epoch)
        batches = [feed.batch(*feed.inputs(step)) for step in range(5)]
        assert [x.shape for x, _ in batches] == [(5, 1, *SIZE)] * 4 + [(3, 1, *SIZE)]
        x, labels = (np.concatenate([backend.to_numpy(part) for part in parts]) for parts in zip(*batches, strict=True))
        wanted, wanted_labels = expected(epoch, augment)
        assert x.dtype == np.float32
        # Moved images are interpolated at points that are rounded.
        np.testing.assert_allclose(x, wanted, rtol=0, atol=1e-4 if augment else 0)
        np.testing.assert_array_equal(labels, wanted_labels)


def test_a_batch_larger_than_the_set(backend):
    """It is all of the set, and takes no memory for more."""
    feed = made(backend, augment=False, batch_size=10**15)
    feed.begin(0)
    x, labels = feed.batch(*feed.inputs(0))
    np.testing.assert_array_equal(backend.to_numpy(x), expected(0, False)[0])
    assert len(labels) == 23


def test_all_backends_move_images_alike(backend):
    """As the NumPy backend, to the last bits of float32: by any rotation and shift, and by what is no number."""
    rng = np.random.default_rng(1)
    images, labels, transform = image_set(40, 9, 8)
    transforms = rng.standard_normal((40, 2, 3)).astype(np.float32) * np.float32([1, 1, 5])
    transforms[3], transforms[4, 1, 2], transforms[5, 0, 0] = np.nan, 1e38, np.inf
    index = rng.integers(0, 40, 64)
    arrays = (transform.table(), images, labels, index, transforms)
    with np.errstate(all="ignore"):
        wanted, _ = NumpyBackend().image_batch(*arrays, SIZE)
        ours, found = backend.image_batch(*map(backend.asarray, arrays), SIZE)
    np.testing.assert_allclose(backend.to_numpy(ours), wanted, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(backend.to_numpy(found), labels[index])


@pytest.mark.parametrize("wrong", [-1, 23, 2**40])
def test_images_that_there_are_not(wrong):
    """On the host a number that is no image's is an error, which says which."""
    images, labels, transform = image_set()
    for name in ("numpy", "numba"):
        if backends.available()[name] is None:
            with pytest.raises(IndexError, match=rf"image_batch: index\[2\] is {wrong}, but there are 23 images"):
                backends.get(name).image_batch(transform.table(), images, labels, np.array([0, 22, wrong]), None, SIZE)


# -- by a graph --------------------------------------------------------------------------------------------------------


def trained(backend, *, augment, captured, host=False):
    """Losses and numbers of right answers of two epochs of three steps, and the parameters after them."""
    with gpuconv.use_backend(backend) as chosen:
        feed = made(chosen, augment=augment, batch_size=4, count=12)
        if host:
            images, labels, transform = image_set(12)
            feed = HostFeed(images, labels, transform, chosen, batch_size=4, seed=4, augmentations=("crop", "flip"))
        gpuconv.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 6), nn.ReLU(), nn.Linear(6, 3)
        )
        optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

        def step(*inputs):
            images, labels = feed.next_batch(*inputs)
            logits = model(Tensor(images))
            loss = F.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            feed.log(logits.data, labels, loss.data)

        run = gpuconv.capture(step, warmup=1) if captured else step
        losses, counts = [], []
        for epoch in (0, 1):
            feed.begin(epoch)
            for number in range(3):
                run(*feed.next_inputs(number))
            for found, logged in zip((losses, counts), feed.logged(0, 3), strict=True):
                found += logged.tolist()
        return losses, counts, [parameter.numpy() for parameter in model.parameters()], run


simulated = pytest.mark.skipif(
    backends.available()["cuda"] is not None or backends.get("cuda").automatic(),
    reason=f"needs the simulator: {backends.available()['cuda']}",
)


@pytest.mark.slow
@simulated
@pytest.mark.parametrize(
    ("resident", "augment"),
    [(True, True), (False, False), *(pytest.param(*one, marks=pytest.mark.thorough) for one in ((0, 1), (1, 0)))],
)
def test_a_captured_step_gathers_and_counts(augment, resident, monkeypatch):
    """One step of warm-up, the one that is captured, four repetitions, of another epoch too: as on the NumPy backend.

    Only launches are repeated: so the batch is made, and the right answers are counted, by nothing else.
    """
    if not resident:
        monkeypatch.setattr(type(backends.get("cuda")), "free_memory", lambda self: 0)
    losses, counts, parameters, step = trained("cuda", augment=augment, captured=True)
    theirs, their_counts, expected_parameters, _ = trained("numpy", augment=augment, captured=False)
    np.testing.assert_allclose(losses, theirs, rtol=1e-4)
    assert counts == their_counts
    for one, other in zip(parameters, expected_parameters, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)
    names = [launch.kernel.fn.__name__ for launch, _ in step._graph.launches]
    assert names[0] == "image_batch"
    assert names[-1] == "count_correct"


@pytest.mark.slow
@simulated
def test_a_captured_step_takes_batches_of_the_host():
    """What threads have prepared is copied to where the graph reads it."""
    losses, counts, parameters, step = trained("cuda", augment=False, captured=True, host=True)
    theirs, their_counts, expected_parameters, _ = trained("numpy", augment=False, captured=False, host=True)
    np.testing.assert_allclose(losses, theirs, rtol=1e-4)
    assert counts == their_counts
    for one, other in zip(parameters, expected_parameters, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)
    assert "image_batch" not in {launch.kernel.fn.__name__ for launch, _ in step._graph.launches}


class Small(models.Classifier):
    """A network that takes a moment in the simulator."""

    def __init__(self, num_classes=10):
        layers = {"conv": nn.Conv2d(1, 2, 3), "relu1": nn.ReLU(), "pool": nn.MaxPool2d(2), "flatten": nn.Flatten()}
        layers |= {"linear1": nn.Linear(32, 6), "relu2": nn.ReLU(), "linear2": nn.Linear(6, num_classes)}
        config = {"num_classes": num_classes}
        super().__init__(layers, config=config, input_shape=(1, 10, 10), num_classes=num_classes)


@simulated
@pytest.mark.slow
def test_training_in_the_simulator(tmp_path, monkeypatch):
    """Augmented, by a graph, with a shorter last batch: losses and right answers of each epoch are the host's."""
    digits = load_dataset("mnist-sample")
    images = [each[:, 6:24:2, 5:23:2].copy() for each in (digits.train_images[:17], digits.test_images[:5])]
    few = Dataset("few", images[0], digits.train_labels[:17], images[1], digits.test_labels[:5], digits.classes)
    monkeypatch.setattr(training.fitting, "load_dataset", lambda *_, **__: few)
    monkeypatch.setitem(models.MODELS, "small", Small)
    config = training.TrainConfig(model="small", epochs=3, batch_size=5, augment=True, lr=0.1, backend="cuda")
    ours = training.fit(config, tmp_path / "cuda").history
    theirs = training.fit(replace(config, backend="numpy"), tmp_path / "numpy").history
    np.testing.assert_allclose([e.train_loss for e in ours], [e.train_loss for e in theirs], rtol=1e-5)
    assert [epoch.train_accuracy for epoch in ours] == [epoch.train_accuracy for epoch in theirs]
    assert len({epoch.train_accuracy for epoch in ours}) > 1
