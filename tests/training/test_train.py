"""Training: it learns, it can be stopped at any moment without losing a bit, and it refuses what cannot go well."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
from dataclasses import asdict, replace

import numpy as np
import pytest
from support.digits import idx_folder
from support.parallel_training import WithDropout

import gpuconv
from gpuconv import backends, models, nn, storage, training
from gpuconv.backends.numpy_backend import NumpyBackend
from gpuconv.data import batch_indices, load_dataset
from gpuconv.models import Classifier
from gpuconv.random import default_generator
from gpuconv.training import (
    CHECKPOINT,
    METRICS,
    MODEL,
    BatchEnd,
    CheckpointSaved,
    EarlyStop,
    EpochEnd,
    Finished,
    Interrupted,
    Started,
    TrainConfig,
    TrainingDiverged,
    evaluate,
    feed,
    fit,
)


@pytest.fixture(autouse=True)
def _with_dropout(monkeypatch):
    monkeypatch.setitem(models.MODELS, "with-dropout", WithDropout)


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """A folder of IDX files: the first 200 training and 50 test digits of the bundled set."""
    return idx_folder(tmp_path_factory.mktemp("digits"), 200)


def small(digits, **changes):
    """A run of 3 epochs of 12 steps, a checkpoint every 5 steps."""
    settings = {
        "data": str(digits),
        "model_arguments": {"hidden": (9, 8)},
        "epochs": 3,
        "batch_size": 16,
        "lr": 0.05,
        "checkpoint_every": 5,
        "backend": "numpy",
    }
    return TrainConfig(**{**settings, **changes})


def dropout(digits, **changes):
    return small(digits, model="with-dropout", model_arguments={}, **changes)


def metrics(out):
    """The lines of metrics.jsonl without their times, each of them strict JSON."""

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    text = (out / METRICS).read_text()
    assert text.endswith("\n") or not text
    lines = [json.loads(line, parse_constant=refuse) for line in text.splitlines()]
    assert all(line.pop("seconds") >= 0 for line in lines)
    return lines


def contents(out):
    return {path.name: path.read_bytes() for path in out.iterdir()}


def assert_same_run(out, expected):
    """The weights are equal to the last byte, and the metrics in all but the time."""
    assert (out / MODEL).read_bytes() == (expected / MODEL).read_bytes()
    assert metrics(out) == metrics(expected)
    assert sorted(os.listdir(out)) == sorted([CHECKPOINT, METRICS, MODEL])


class Crash(BaseException):
    """Stands for the end of the process."""


class At:
    """A listener that does something at the n-th event of a kind, and keeps all events."""

    def __init__(self, kind=None, number=0, action=None):
        self.kind, self.number, self.action = kind, number, action
        self.events = []

    def of(self, kind):
        return [event for event in self.events if isinstance(event, kind)]

    def __call__(self, event):
        self.events.append(event)
        if self.kind and isinstance(event, self.kind) and len(self.of(self.kind)) == self.number:
            self.action()


def crash():
    raise Crash


# -- what a run gives ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_defaults_reach_the_promised_accuracy(tmp_path):
    """The bundled digits, without any setting: at least 97.5 % of the test digits, from raw images, after a reload."""
    result = fit(TrainConfig(), tmp_path / "run")
    assert result.test_accuracy >= 0.975
    data = load_dataset("mnist-sample")
    loaded = gpuconv.load(tmp_path / "run")
    predicted = loaded.predict(data.test_images).argmax(1)
    assert np.mean(predicted == data.test_labels) == result.test_accuracy
    assert loaded.classes == data.classes


def test_events_metrics_and_result_tell_one_story(tmp_path, digits):
    """The counts, the running means, the lines of metrics.jsonl, the confusion matrix and the model agree."""
    listener = At()
    result = fit(small(digits), tmp_path, on_event=listener)
    (started,), epochs, batches = listener.of(Started), listener.of(EpochEnd), listener.of(BatchEnd)
    assert isinstance(listener.events[0], Started)
    assert (started.train_images, started.validation_images, started.test_images) == (180, 20, 50)
    assert (started.epochs, started.steps, started.resumed, started.finished) == (3, 12, False, False)
    assert started.parameters == sum(array.size for array in result.model.state_dict().values())
    assert (started.model, started.backend, result.backend) == ("lenet5", "numpy", "numpy")
    assert [(batch.epoch, batch.step) for batch in batches] == [(e, s) for e in (1, 2, 3) for s in range(1, 13)]
    assert all(batch.images_per_second > 0 for batch in batches)
    for batch, epoch in zip(batches[11::12], epochs, strict=True):
        assert (batch.loss, batch.accuracy) == (epoch.train_loss, epoch.train_accuracy)
    assert epochs[-1].train_loss < epochs[0].train_loss
    assert epochs[0].lr > epochs[1].lr > epochs[2].lr > 0
    assert result.history == epochs
    assert metrics(tmp_path) == [{k: v for k, v in asdict(epoch).items() if k != "seconds"} for epoch in epochs]
    saved = [(event.epochs_done, event.steps_done) for event in listener.of(CheckpointSaved)]
    assert saved == [(0, 0), (0, 5), (0, 10), (1, 0), (1, 3), (1, 8), (2, 0), (2, 1), (2, 6), (2, 11), (3, 0)]
    (finished,) = listener.of(Finished)
    assert listener.events[-1] is finished
    assert (finished.test_accuracy, finished.path) == (result.test_accuracy, tmp_path / MODEL)
    assert result.kept_epoch == result.epochs == 3
    assert result.best_epoch == 1 + np.argmin([epoch.validation_loss for epoch in epochs])
    data = load_dataset(digits)
    np.testing.assert_array_equal(result.confusion.sum(1), np.bincount(data.test_labels, minlength=10))
    assert np.trace(result.confusion) / 50 == result.test_accuracy
    np.testing.assert_array_equal(
        gpuconv.load(tmp_path).predict(data.test_images), result.model.predict(data.test_images)
    )


def test_each_epoch_has_its_own_order(tmp_path, digits, monkeypatch):
    """The images are shuffled anew in each epoch, by the seed and the number of the epoch."""
    orders = []

    def recorded(count, batch_size, **options):
        batches = list(batch_indices(count, batch_size, **options))
        orders.append(np.concatenate(batches))
        return iter(batches)

    monkeypatch.setattr(feed, "batch_indices", recorded)
    fit(dropout(digits), tmp_path)
    assert len({order.tobytes() for order in orders}) == 3
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(180))


def test_only_training_images_are_augmented(tmp_path, digits, monkeypatch):
    """In each epoch in another way; those that are judged stay as they are, and a transform that moves nothing, too."""
    judged, epochs = {}, []

    def recorded(model, images, labels, **options):
        judged.setdefault(out, []).append(np.array(images))
        return evaluate(model, images, labels, **options)

    def still(count, *, seed, epoch):
        epochs.append((seed, epoch))
        return np.tile(np.array([[1, 0, 0], [0, 1, 0]], np.float32), (count, 1, 1))

    monkeypatch.setattr(training.run, "evaluate", recorded)
    for out, augment in (("plain", False), ("moved", True), ("still", True)):
        if out == "still":
            monkeypatch.setattr(feed, "random_transforms", still)
        fit(dropout(digits, augment=augment, seed=3), tmp_path / out)
    assert epochs == [(3, 0), (3, 1), (3, 2)]
    for other in ("moved", "still"):
        for ours, theirs in zip(judged[other], judged["plain"], strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert (tmp_path / "moved" / MODEL).read_bytes() != (tmp_path / "plain" / MODEL).read_bytes()
    assert_same_run(tmp_path / "still", tmp_path / "plain")


def test_a_seed_decides_everything(tmp_path, digits):
    """The same seed gives the same bytes, whatever was drawn before; another seed does not. The caller's random numbers
    go on as if nothing had been trained.
    """
    states = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        gpuconv.manual_seed(len(states))
        before = default_generator().bit_generator.state
        fit(dropout(digits, seed=seed, epochs=1), tmp_path / name)
        assert default_generator().bit_generator.state == before
        states.append((tmp_path / name / MODEL).read_bytes())
    assert states[0] == states[1] != states[2]


@pytest.mark.parametrize("settings", [{"optimizer": "adam", "lr": None}, {"loss": "half_squared_error", "lr": 0.02}])
def test_every_optimizer_and_loss_learns(tmp_path, digits, settings):
    """Adam at its default learning rate, and the textbooks' total error, bring the training loss down, too."""
    result = fit(dropout(digits, epochs=5, schedule="constant", **settings), tmp_path)
    assert result.history[-1].train_loss < 0.8 * result.history[0].train_loss
    assert result.history[-1].lr == (settings["lr"] or 0.002)


def test_without_validation_images_all_are_trained_on(tmp_path, digits):
    """validation_fraction=0: no validation metrics (null, not NaN), no best epoch, the last one is kept."""
    result = fit(small(digits, validation_fraction=0, epochs=1), tmp_path)
    assert [line["validation_loss"] for line in metrics(tmp_path)] == [None]
    assert (result.best_epoch, result.kept_epoch) == (None, 1)
    correct = result.history[0].train_accuracy * 200
    assert correct == pytest.approx(round(correct))


def scripted_validation(monkeypatch, losses):
    """Let the n-th epoch's validation loss be the n-th of these."""
    script = iter(losses)

    def scripted(model, images, labels, **options):
        result = evaluate(model, images, labels, **options)
        return replace(result, loss=next(script)) if len(labels) == 20 else result

    monkeypatch.setattr(training.run, "evaluate", scripted)


def test_patience_stops_and_keeps_the_best_epoch(tmp_path, digits, monkeypatch):
    """After so many epochs without a lower validation loss the run ends with the best epoch's weights, also when it was
    interrupted between that epoch and the end.
    """
    config = dropout(digits, epochs=9, patience=2)
    losses = [1.0, 0.5, 0.7, 0.6, 0.1]
    best = {}

    def keep_second_epoch():
        tensors, _ = storage.load_tensors(tmp_path / "whole" / CHECKPOINT, "gpuconv-checkpoint")
        best.update({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})

    scripted_validation(monkeypatch, losses)
    listener = At(EpochEnd, 2, keep_second_epoch)
    result = fit(config, tmp_path / "whole", on_event=listener)
    assert listener.of(EarlyStop) == [EarlyStop(epoch=4, best_epoch=2, patience=2)]
    assert result.stopped_early
    assert (result.epochs, result.best_epoch, result.kept_epoch) == (4, 2, 2)
    assert [line["validation_loss"] for line in metrics(tmp_path / "whole")] == losses[:4]
    for name, array in gpuconv.load(tmp_path / "whole").state_dict().items():
        np.testing.assert_array_equal(array, best[name])

    scripted_validation(monkeypatch, losses)
    with pytest.raises(Crash):
        fit(config, tmp_path / "parts", on_event=At(EpochEnd, 3, crash))
    fit(config, tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "parts", tmp_path / "whole")
    assert fit(config, tmp_path / "parts", resume=True).was_finished


# -- stopping and going on -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"model": "lenet5", "model_arguments": {"hidden": (9, 8)}},
        {"model": "with-dropout"},
        {"model": "with-dropout", "optimizer": "adam", "lr": 0.01, "schedule": "constant", "patience": 3},
        {"model": "with-dropout", "momentum": 0, "loss": "half_squared_error", "validation_fraction": 0},
        {"model": "with-dropout", "augment": True},
    ],
    ids=["lenet5", "dropout", "adam", "plain-sgd", "augmented"],
)
def test_a_run_in_pieces_equals_a_whole_one(tmp_path, digits, settings):
    """Whatever state a run has (momentum, Adam's moments, dropout's generator, running means, best weights), it is all
    in the checkpoint: crashes anywhere in an epoch leave no trace in the result.
    """
    config = small(digits, **{"model_arguments": {}, **settings})
    fit(config, tmp_path / "whole")
    for step in (1, 5, 7, 8, 1, 9):  # of each life; the first one ends before there is more than a first checkpoint
        with pytest.raises(Crash):
            fit(config, tmp_path / "parts", resume=True, on_event=At(BatchEnd, step, crash))
    listener = At()
    result = fit(config, tmp_path / "parts", resume=True, on_event=listener)
    (started,) = listener.of(Started)
    assert started.resumed
    assert (started.epochs_done, started.steps_done) > (1, 0)
    assert_same_run(tmp_path / "parts", tmp_path / "whole")
    assert [epoch.epoch for epoch in result.history] == [1, 2, 3]


PROGRAM = """
import json, os, signal, sys
from gpuconv.training import TrainConfig, fit
config, out, function, number = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
if function:
    real, calls = getattr(os, function), []
    def deadly(*arguments):
        calls.append(arguments)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)
    setattr(os, function, deadly)
fit(TrainConfig(**config), out, resume=True, on_event=lambda event: print(type(event).__name__, flush=True))
"""


def start(config, out, function="", number=0):
    """Train in a process of its own, which can be told to kill itself at the n-th call of a function of ``os``."""
    arguments = [sys.executable, "-c", PROGRAM, json.dumps(asdict(config)), str(out), function, str(number)]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment)


def run_to_its_end(*arguments):
    with start(*arguments) as process:
        process.communicate()
    return process.returncode


@pytest.mark.slow
def test_kill_9_at_ten_random_moments(tmp_path, digits):
    """A process that is killed ten times, anywhere in a step or in a write, and resumed each time, ends with the
    weights and metrics of one that was never disturbed.
    """
    config = small(digits, epochs=6, checkpoint_every=1)
    assert run_to_its_end(config, tmp_path / "whole") == 0
    rng = random.Random(0)
    for _ in range(10):
        with start(config, tmp_path / "parts") as process:
            for _ in range(rng.randint(1, 14)):  # events; a step and its checkpoint are two
                process.stdout.readline()
            threading.Event().wait(rng.uniform(0, 0.006))  # up to about a step
            process.kill()
        assert process.returncode == -signal.SIGKILL
    assert run_to_its_end(config, tmp_path / "parts") == 0
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.slow
def test_kill_9_inside_a_write(tmp_path, digits):
    """The same at the worst moments: a checkpoint, the metrics or the model is written, but not in place, or just in
    place.
    """
    config = small(digits, epochs=2)
    assert run_to_its_end(config, tmp_path / "whole") == 0
    # A write calls fsync for its file, then replace, then fsync for its folder. First comes the checkpoint, where there
    # is none, then the metrics, then a checkpoint every 5 steps.
    for function, number in [("fsync", 1), ("fsync", 2), ("replace", 1), ("fsync", 5), ("replace", 4), ("fsync", 9)]:
        assert run_to_its_end(config, tmp_path / "parts", function, number) == -signal.SIGKILL
    assert run_to_its_end(config, tmp_path / "parts") == 0
    assert_same_run(tmp_path / "parts", tmp_path / "whole")
    # With nothing left to train, the metrics are written and then the model.
    (tmp_path / "parts" / MODEL).unlink()
    assert run_to_its_end(config, tmp_path / "parts", "replace", 2) == -signal.SIGKILL
    assert not (tmp_path / "parts" / MODEL).exists()
    assert run_to_its_end(config, tmp_path / "parts") == 0
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_a_resumed_run_goes_on(tmp_path, digits, number):
    """The step ends, a checkpoint of just that step is written, Interrupted says where; a resumed run gives the same
    bytes as one that was not interrupted.
    """
    config = small(digits)
    fit(config, tmp_path / "whole")
    before = signal.getsignal(number)
    listener = At(BatchEnd, 3, lambda: signal.raise_signal(number))
    with pytest.raises(Interrupted, match="in epoch 1 of 3, after step 3 of 12; saved in") as caught:
        fit(config, tmp_path / "parts", on_event=listener)
    assert (caught.value.signal, caught.value.checkpoint) == (number, tmp_path / "parts" / CHECKPOINT)
    assert signal.getsignal(number) is before
    last = listener.events[-1]
    assert isinstance(last, CheckpointSaved)
    assert (last.epochs_done, last.steps_done) == (0, 3)
    # At the last step of an epoch, between it and its validation.
    with pytest.raises(Interrupted, match="after step 12 of 12"):
        fit(config, tmp_path / "parts", resume=True, on_event=At(BatchEnd, 9, lambda: signal.raise_signal(number)))
    # When the epoch has just ended.
    with pytest.raises(Interrupted, match="after epoch 2 of 3"):
        fit(config, tmp_path / "parts", resume=True, on_event=At(EpochEnd, 2, lambda: signal.raise_signal(number)))
    fit(config, tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_a_second_ctrl_c_stops_at_once(tmp_path, digits):
    """It is an ordinary KeyboardInterrupt, out of the middle of the step; the earlier checkpoint is still good."""

    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    listener = At(BatchEnd, 7, twice)
    with pytest.raises(KeyboardInterrupt) as caught:
        fit(small(digits), tmp_path, on_event=listener)
    assert caught.type is KeyboardInterrupt
    assert listener.of(CheckpointSaved)[-1].steps_done == 5
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert fit(small(digits), tmp_path, resume=True).epochs == 3


def test_signals_that_are_ignored_stay_so_and_threads_leave_them_alone(tmp_path, digits):
    """Under nohup, or in a shell's background, SIGINT is ignored; outside the main thread Python allows no handlers."""
    config = dropout(digits, epochs=1)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        fit(config, tmp_path / "a", on_event=At(BatchEnd, 2, lambda: signal.raise_signal(signal.SIGINT)))
    finally:
        signal.signal(signal.SIGINT, before)
    thread = threading.Thread(target=fit, args=(config, tmp_path / "b"))
    thread.start()
    thread.join()
    assert_same_run(tmp_path / "b", tmp_path / "a")


def test_a_finished_run_is_left_as_it_is(tmp_path, digits):
    """Resuming it trains nothing, says so, gives the same result and the same files."""
    first = fit(dropout(digits), tmp_path)
    before = contents(tmp_path)
    listener = At()
    second = fit(dropout(digits), tmp_path, resume=True, on_event=listener)
    assert second.was_finished
    assert not first.was_finished
    assert listener.of(Started)[0].finished
    assert not listener.of(BatchEnd)
    assert (second.test_loss, second.history, second.seconds) == (first.test_loss, first.history, first.seconds)
    np.testing.assert_array_equal(second.confusion, first.confusion)
    assert contents(tmp_path) == before


class OtherBackend(NumpyBackend):
    """NumPy's, under another name."""

    name = "other"


def test_a_run_stays_on_the_backend_that_it_began_on(tmp_path, digits, monkeypatch):
    """'auto' is the current backend at the start and the checkpoint's afterwards, because others round otherwise; one
    that is named takes the run over, and keeps it.
    """
    monkeypatch.setitem(backends._TABLE, "other", (__name__, "OtherBackend"))
    config = dropout(digits, backend="auto")
    fit(replace(config, backend="numpy"), tmp_path / "whole")
    with backends.use_backend("other"), pytest.raises(Crash):
        fit(config, tmp_path / "parts", on_event=At(BatchEnd, 6, crash))
    for given, taken in (("auto", "other"), ("numpy", "numpy"), ("auto", "numpy"), ("other", "other")):
        listener = At(BatchEnd, 6, crash)
        with pytest.raises(Crash):
            fit(replace(config, backend=given), tmp_path / "parts", resume=True, on_event=listener)
        assert listener.of(Started)[0].backend == taken
    assert fit(config, tmp_path / "parts", resume=True).backend == "other"
    # They round alike.
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


# -- refusals --------------------------------------------------------------------------------------------------------


def test_an_existing_run_is_never_overwritten(tmp_path, digits):
    """Without resume, and with it where there is no checkpoint to go on from: refused with a hint, nothing touched."""
    config = dropout(digits, epochs=1)
    fit(config, tmp_path)
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match=r"already holds a run .*; resume it or give another folder"):
        fit(config, tmp_path)
    assert contents(tmp_path) == before
    (tmp_path / CHECKPOINT).unlink()
    with pytest.raises(FileExistsError, match=r"already holds a run \(model.safetensors\); give another folder"):
        fit(config, tmp_path, resume=True)
    assert contents(tmp_path) == {name: before[name] for name in (MODEL, METRICS)}


def test_one_process_a_folder(tmp_path, digits):
    """A second training in the same folder is refused while the first runs; not when that has died."""
    config = dropout(digits, epochs=1)

    def train_too():
        with pytest.raises(OSError, match="another process is training in this folder"):
            fit(config, tmp_path, resume=True)

    listener = At(BatchEnd, 1, train_too)
    fit(config, tmp_path, on_event=listener)
    assert listener.of(Finished)


def test_other_settings_are_named(tmp_path, digits):
    """A checkpoint goes on under its own settings alone; the message lists those that differ, both values of each."""
    with pytest.raises(Crash):
        fit(small(digits), tmp_path, on_event=At(BatchEnd, 6, crash))
    before = contents(tmp_path)
    for changes, words in [
        ({"lr": 0.1, "batch_size": 9}, ["lr is 0.05 there and 0.1 here", "batch_size is 16 there and 9 here"]),
        ({"model": "with-dropout", "model_arguments": {}}, ["model is 'lenet5' there", "model_arguments is {'hidden'"]),
        ({"data": "mnist-sample"}, ["data 'mnist-sample' holds other images than"]),
        ({"optimizer": "adam"}, ["optimizer is 'sgd' there and 'adam' here"]),
        ({"augment": True}, ["augment is False there and True here"]),
    ]:
        with pytest.raises(storage.FileError) as caught:
            fit(small(digits, **changes), tmp_path, resume=True)
        message = str(caught.value)
        assert message.startswith(f"{tmp_path / CHECKPOINT}: of another run: ")
        assert "\n" not in message
        assert all(word in message for word in words), message
        assert "seed" not in message
    assert contents(tmp_path) == before


def test_what_changes_nothing_may_change(tmp_path, digits, tmp_path_factory):
    """The data may have moved, and checkpoints may become rarer: the run goes on, to the same bytes."""
    fit(dropout(digits), tmp_path / "whole")
    with pytest.raises(Crash):
        fit(dropout(digits), tmp_path / "parts", on_event=At(BatchEnd, 6, crash))
    moved = tmp_path_factory.mktemp("moved")
    for path in digits.iterdir():
        (moved / path.name).write_bytes(path.read_bytes())
    fit(dropout(moved, checkpoint_every=100), tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "parts", tmp_path / "whole")
    # But changed data are other data.
    labels = bytearray((moved / "train-labels-idx1-ubyte").read_bytes())
    labels[-1] = (labels[-1] + 1) % 10
    (moved / "train-labels-idx1-ubyte").write_bytes(labels)
    with pytest.raises(storage.FileError, match=r"data .* holds other images"):
        fit(dropout(moved), tmp_path / "parts", resume=True)


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "interrupted"])
def test_more_epochs_at_a_constant_rate(tmp_path, digits, finished):
    """With the schedule 'constant', 2 epochs of a run, or a part of them, and then 4 are a run of 4, bit for bit."""
    config = dropout(digits, schedule="constant", epochs=4, optimizer="adam", lr=0.01)
    fit(config, tmp_path / "whole")
    if finished:
        fit(replace(config, epochs=2), tmp_path / "parts")
        model = (tmp_path / "parts" / MODEL).read_bytes()
    else:
        with pytest.raises(Crash):
            fit(replace(config, epochs=2), tmp_path / "parts", on_event=At(BatchEnd, 19, crash))
    # The new number is kept from the first moment on, and the model of the finished run until there is a new one.
    with pytest.raises(Crash):
        fit(config, tmp_path / "parts", resume=True, on_event=At(BatchEnd, 3, crash))
    assert training.saved_config(tmp_path / "parts") == config
    if finished:
        assert (tmp_path / "parts" / MODEL).read_bytes() == model
    result = fit(config, tmp_path / "parts", resume=True)
    assert not result.was_finished
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_more_epochs_on_a_cosine(tmp_path, digits):
    """Each step that is still to come has the learning rate of a run of the new length: of 36 steps of a finished run,
    and 60 of the one that goes on; and of 24, if it ends sooner.
    """
    fit(dropout(digits), tmp_path / "longer")
    result = fit(dropout(digits, epochs=5), tmp_path / "longer", resume=True)
    with pytest.raises(Crash):
        fit(dropout(digits), tmp_path / "shorter", on_event=At(EpochEnd, 1, crash))
    sooner = fit(dropout(digits, epochs=2), tmp_path / "shorter", resume=True)
    for history, totals in ((result.history, [36, 36, 36, 60, 60]), (sooner.history, [36, 24])):
        expected = [0.05 * 0.5 * (1 + np.cos(np.pi * (12 * epoch + 11) / total)) for epoch, total in enumerate(totals)]
        np.testing.assert_allclose([epoch.lr for epoch in history], expected, rtol=1e-12)
    assert [line["epoch"] for line in metrics(tmp_path / "longer")] == [1, 2, 3, 4, 5]


def test_fewer_epochs_than_are_done(tmp_path, digits):
    """A run cannot have been shorter than it is; an epoch that has begun counts. What it may be at least, it can be."""
    with pytest.raises(Crash):
        fit(dropout(digits, epochs=4), tmp_path, on_event=At(BatchEnd, 31, crash))
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"^epochs is 2, but the run has done 2 and begun the next; give at least 3$"):
        fit(dropout(digits, epochs=2), tmp_path, resume=True)
    assert contents(tmp_path) == before
    assert fit(dropout(digits, epochs=3), tmp_path, resume=True).epochs == 3
    with pytest.raises(ValueError, match=r"^epochs is 2, but the run has done 3; give at least 3$"):
        fit(dropout(digits, epochs=2), tmp_path, resume=True)
    assert fit(dropout(digits, epochs=3), tmp_path, resume=True).was_finished


def test_patience_may_change(tmp_path, digits, monkeypatch):
    """A run that was begun without it, or stopped by it, goes on as one that had the new patience from its start: the
    epochs before count, and the best one's weights are there.
    """
    losses = [1.0, 0.5, 0.7, 0.6, 0.65, 0.8, 0.1, 0.2]
    config = dropout(digits, epochs=8, schedule="constant")
    scripted_validation(monkeypatch, losses)
    fit(replace(config, patience=4), tmp_path / "whole")
    for name, first, epochs in (("stopped", replace(config, patience=2), 4), ("begun", replace(config, epochs=3), 3)):
        scripted_validation(monkeypatch, losses)
        assert fit(first, tmp_path / name).epochs == epochs
        listener = At()
        result = fit(replace(config, patience=4), tmp_path / name, resume=True, on_event=listener)
        assert listener.of(EarlyStop) == [EarlyStop(epoch=6, best_epoch=2, patience=4)]
        assert (result.epochs, result.kept_epoch) == (6, 2)
        assert_same_run(tmp_path / name, tmp_path / "whole")
    # Without patience it goes to its end, whose weights are kept.
    scripted_validation(monkeypatch, losses[6:])
    result = fit(config, tmp_path / "begun", resume=True)
    assert (result.epochs, result.best_epoch, result.kept_epoch, result.stopped_early) == (8, 7, 8, False)
    # Less of it stops a run at once, in the middle of an epoch, too.
    scripted_validation(monkeypatch, losses)
    with pytest.raises(Crash):
        fit(config, tmp_path / "less", on_event=At(BatchEnd, 12 * 4 + 6, crash))
    result = fit(replace(config, patience=1), tmp_path / "less", resume=True)
    assert (result.epochs, result.kept_epoch, result.was_finished) == (4, 2, True)
    assert (tmp_path / "less" / MODEL).read_bytes() == (tmp_path / "whole" / MODEL).read_bytes()


def test_patience_of_a_run_whose_best_weights_were_not_kept(tmp_path, digits):
    """A checkpoint of an older version, which kept them with patience alone, says why it cannot be set."""
    fit(dropout(digits, epochs=1), tmp_path)
    tensors, content = storage.load_tensors(tmp_path / CHECKPOINT, "gpuconv-checkpoint")
    older = {name: array for name, array in tensors.items() if not name.startswith("best.")}
    storage.save_tensors(tmp_path / CHECKPOINT, older, "gpuconv-checkpoint", content)
    with pytest.raises(storage.FileError, match="patience cannot be set any more"):
        fit(dropout(digits, epochs=2, patience=1), tmp_path, resume=True)
    assert fit(dropout(digits, epochs=2), tmp_path, resume=True).epochs == 2


def test_messages_tell_which_words_are_settings():
    """Whoever shows a message may spell them otherwise; the second one, too, and no other word that looks like one."""
    for changes, spelled in [
        (
            {"patience": 2, "validation_fraction": 0},
            "<patience> needs validation images; set <validation_fraction> abo",
        ),
        ({"data": 5}, "<data> must be a name or a path, got 5"),
        ({"model": "epochs"}, f"<model> must be one of {', '.join(models.MODELS)}, got 'epochs'"),
    ]:
        with pytest.raises(training.NamesSettings) as caught:
            TrainConfig(**changes)
        assert caught.value.spelled(lambda name: f"<{name}>").startswith(spelled)
        assert caught.value.spelled(str) == str(caught.value)


def test_a_run_from_before_there_was_augmentation(tmp_path, digits):
    """A checkpoint that has no word of it goes on without it, and only so."""
    fit(dropout(digits), tmp_path / "whole")
    with pytest.raises(Crash):
        fit(dropout(digits), tmp_path / "parts", on_event=At(BatchEnd, 6, crash))
    path = tmp_path / "parts" / CHECKPOINT
    tensors, content = storage.load_tensors(path, "gpuconv-checkpoint")
    assert content["config"].pop("augment") is False
    storage.save_tensors(path, tensors, "gpuconv-checkpoint", content)
    assert training.saved_config(tmp_path / "parts") == dropout(digits)
    with pytest.raises(storage.FileError, match="augment is False there and True here"):
        fit(dropout(digits, augment=True), tmp_path / "parts", resume=True)
    fit(dropout(digits), tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_a_broken_checkpoint_is_refused_and_kept(tmp_path, digits):
    """Cut anywhere, changed anywhere, or another file under its name: one line that names it, and it stays as it is."""
    config = dropout(digits, epochs=1)
    fit(config, tmp_path)
    path = tmp_path / CHECKPOINT
    whole = path.read_bytes()
    rng = random.Random(0)
    broken = [whole[: rng.randrange(len(whole))] for _ in range(20)] + [b"", whole[:8], whole[:-1], whole + b"\0"]
    for position in [0, 3, 9, 200, *rng.sample(range(len(whole)), 20)]:
        broken.append(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
    broken.append((tmp_path / MODEL).read_bytes())
    for content in broken:
        path.write_bytes(content)
        before = contents(tmp_path)
        with pytest.raises(storage.FileError) as caught:
            fit(config, tmp_path, resume=True)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)
        assert contents(tmp_path) == before


@pytest.mark.parametrize("call", [1, 3, 5, 6, 9, 12])
def test_a_full_disk_loses_nothing(tmp_path, digits, monkeypatch, call):
    """Whichever write finds the disk full, the first checkpoint or the model: an OSError that names the file; once
    there is room, the run goes on to the same bytes.
    """
    config = dropout(digits, epochs=2)
    fit(config, tmp_path / "whole")
    calls = []
    real = os.fsync

    def fsync(descriptor):
        calls.append(descriptor)
        if len(calls) == call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(OSError, match="No space left on device") as caught:
            fit(config, tmp_path / "parts")
    assert os.path.basename(caught.value.filename) in (CHECKPOINT, METRICS, MODEL)
    fit(config, tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_a_folder_that_cannot_be_written_shows_before_training(tmp_path, digits):
    """The first checkpoint is written before the first step."""
    (tmp_path / "file").touch()
    listener = At()
    with pytest.raises(OSError, match="file"):
        fit(small(digits), tmp_path / "file" / "run", on_event=listener)
    with pytest.raises(OSError, match="file"):
        fit(small(digits), tmp_path / "file", on_event=listener)
    assert not listener.of(BatchEnd)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"lr": 1e4}, r"the loss is (inf|nan)"),
        ({"lr": 1e40, "checkpoint_every": 1}, r"holds values that are not finite"),
        ({"lr": 1e40, "batch_size": 200, "validation_fraction": 0}, r"holds values that are not finite"),
        ({"lr": 1e15, "batch_size": 200}, r"the validation loss is (inf|nan)"),
    ],
    ids=["loss", "weights", "weights-at-the-end", "validation"],
)
def test_divergence_stops_and_keeps_the_last_good_checkpoint(tmp_path, digits, changes, what):
    """The message names the step, what is not finite, and the parameter with the largest gradient and its value; no
    checkpoint or line of metrics holds a value that is not finite.
    """
    config = small(digits, **{"checkpoint_every": 10**9, **changes})
    with pytest.raises(TrainingDiverged, match=rf"epoch 1, step \d+ of \d+: .*{what}; the largest of the last") as e:
        fit(config, tmp_path)
    assert any(f"gradients is that of {name}, " in str(e.value) for name in models.build("lenet5").state_dict())
    tensors, content = storage.load_tensors(tmp_path / CHECKPOINT, "gpuconv-checkpoint")
    assert all(np.isfinite(array).all() for array in tensors.values())
    assert content["step"] == 0
    assert metrics(tmp_path) == []
    assert not (tmp_path / MODEL).exists()
    # It diverges again, in the same way: nothing of the bad step was kept.
    with pytest.raises(TrainingDiverged) as again:
        fit(config, tmp_path, resume=True)
    assert str(again.value) == str(e.value)


def test_divergence_where_no_step_has_been_taken(tmp_path, digits, monkeypatch):
    """At the first step the gradient of the loss itself is named; where there is none, the message says so."""
    real = training.run.build_network

    def huge(*arguments, **options):
        model = real(*arguments, **options)
        model.linear.weight.data[...] = np.linspace(-3e38, 3e38, 10, dtype=np.float32)[:, None]
        return model

    # It diverges when the restored step 12 is validated: nothing has been differentiated in this process.
    config = dropout(digits)
    with pytest.raises(Interrupted):
        fit(config, tmp_path / "a", on_event=At(BatchEnd, 12, lambda: signal.raise_signal(signal.SIGINT)))
    scripted_validation(monkeypatch, [np.inf])
    with pytest.raises(TrainingDiverged, match=r"step 12 of 12: the validation loss is inf; no gradient has been"):
        fit(config, tmp_path / "a", resume=True)
    monkeypatch.setattr(training.run, "build_network", huge)
    with pytest.raises(TrainingDiverged, match=r"step 1 of 12: the loss is (inf|nan); .* (conv|linear)\.\w+, nan"):
        fit(config, tmp_path / "b")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"epochs": 0}, ValueError, "epochs must be at least 1, got 0"),
        ({"epochs": 2.5}, TypeError, "epochs must be an integer, got 2.5"),
        ({"epochs": True}, TypeError, "epochs must be an integer, got True"),
        ({"batch_size": -1}, ValueError, "batch_size must be at least 1, got -1"),
        ({"checkpoint_every": 0}, ValueError, "checkpoint_every must be at least 1"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
        ({"patience": 0}, ValueError, "patience must be at least 1"),
        ({"patience": 2, "validation_fraction": 0}, ValueError, "patience needs validation images"),
        ({"lr": 0}, ValueError, "lr must be above 0, got 0"),
        ({"lr": float("nan")}, ValueError, "lr must be above 0, got nan"),
        ({"lr": float("inf")}, ValueError, "lr must be above 0, got inf"),
        ({"lr": "0.1"}, TypeError, "lr must be a number, got '0.1'"),
        ({"momentum": 1}, ValueError, "momentum must be at least 0 and below 1, got 1"),
        ({"weight_decay": -0.1}, ValueError, "weight_decay must be at least 0, got -0.1"),
        ({"validation_fraction": 1}, ValueError, "validation_fraction must be at least 0 and below 1, got 1"),
        ({"optimizer": "adm"}, ValueError, "optimizer must be one of sgd, adam, got 'adm'; did you mean 'adam'?"),
        ({"schedule": "Cosin"}, ValueError, "did you mean 'cosine'?"),
        ({"loss": "crossentropy"}, ValueError, "did you mean 'cross_entropy'?"),
        ({"model": "LeNet"}, ValueError, "did you mean 'lenet5'?"),
        ({"backend": "numpi"}, ValueError, "did you mean 'numpy'?"),
        ({"model": None}, TypeError, "model must be one of lenet5"),
        ({"augment": "yes"}, ValueError, "augment must be some of crop, resized-crop, flip, jitter, got 'yes'"),
        ({"data": 5}, TypeError, "data must be a name or a path, got 5"),
        ({"model_arguments": {"depth": 3}}, ValueError, "model_arguments do not fit lenet5: .*'depth'"),
        ({"model_arguments": {"hidden": {1, 2}}}, TypeError, "model_arguments must be a dict of JSON types"),
        ({"model_arguments": 5}, TypeError, "model_arguments must be a dict of JSON types"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(changes, error, message):
    """Each field says what it takes and what it got, before anything is loaded."""
    with pytest.raises(error, match=message.replace("?", r"\?")):
        TrainConfig(**changes)


def test_settings_are_normalised(digits):
    """NumPy's numbers, paths and tuples become what JSON reads back; a learning rate comes with the optimizer."""
    config = TrainConfig(data=digits, epochs=np.int64(2), lr=np.float32(0.5), model_arguments={"hidden": (9, 8)})
    assert TrainConfig(**json.loads(json.dumps(asdict(config)))) == config
    assert TrainConfig(optimizer="adam").lr < TrainConfig().lr


def test_data_and_model_have_to_fit(tmp_path, digits):
    """Another number of classes, an unknown data set: refused, and the folder is not spoiled for a later run."""
    with pytest.raises(ValueError, match=r"num_classes is 7, but data .* have 10 classes"):
        fit(small(digits, model_arguments={"num_classes": 7}), tmp_path / "run")
    with pytest.raises(ValueError, match="did you mean 'mnist-sample'"):
        fit(TrainConfig(data="mnist-sampel"), tmp_path / "run")
    fit(dropout(digits, epochs=1), tmp_path / "run")


# -- evaluation ------------------------------------------------------------------------------------------------------


class Fixed(Classifier):
    """Takes an image of one row for its own logits."""

    def __init__(self):
        super().__init__({"flatten": nn.Flatten()}, config={}, input_shape=(1, 1, 3), num_classes=3)


def test_evaluation_counts_what_it_says():
    """Loss, accuracy and confusion (rows: labels, columns: answers) of logits worked out by hand, in any batch size."""
    logits = np.log(np.array([[1, 2, 1], [6, 1, 1], [1, 1, 2], [2, 1, 1]], np.float32)).reshape(4, 1, 1, 3)
    labels = np.array([1, 0, 0, 2], np.uint8)
    for batch_size in (1, 3, 100):
        result = evaluate(Fixed(), logits, labels, batch_size=batch_size)
        assert result.loss == pytest.approx(-np.log([1 / 2, 6 / 8, 1 / 4, 1 / 4]).mean())
        assert result.accuracy == 0.5
        np.testing.assert_array_equal(result.confusion, [[1, 0, 1], [0, 1, 0], [1, 0, 0]])
        squares = [[1 / 4, 1 / 2, 1 / 4], [1 / 4, 1 / 8, 1 / 8], [3 / 4, 1 / 4, 1 / 2], [1 / 2, 1 / 4, 3 / 4]]
        half = evaluate(Fixed(), logits, labels, batch_size=batch_size, loss="half_squared_error")
        assert half.loss == pytest.approx(np.square(squares).sum() / 2 / 4)
    nothing = evaluate(Fixed(), logits[:0], [])
    assert np.isnan(nothing.loss)
    assert nothing.confusion.sum() == 0


@pytest.mark.parametrize(
    ("labels", "options", "error", "message"),
    [
        ([0, 3], {}, ValueError, r"labels\[1\] is 3, but the model has 3 classes"),
        ([-1, 0], {}, ValueError, r"labels\[0\] is -1"),
        ([0], {}, ValueError, r"labels must have shape \(2,\)"),
        ([0.0, 1.0], {}, TypeError, "labels must be integers, got float32"),
        ([0, 1], {"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ([0, 1], {"loss": "mse"}, ValueError, "loss must be one of cross_entropy, half_squared_error, got 'mse'"),
    ],
)
def test_evaluation_refuses_what_does_not_fit(labels, options, error, message):
    """Labels of another number, kind or range, and unknown options."""
    with pytest.raises(error, match=message):
        evaluate(Fixed(), np.zeros((2, 1, 1, 3), np.float32), labels, **options)
