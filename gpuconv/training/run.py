"""The training loop: the state of a run between two steps, and a step."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from gpuconv import backends, storage
from gpuconv.autograd import Tensor, no_grad
from gpuconv.captured_step import CapturedStep, capture
from gpuconv.data import DATASETS, Dataset, ImageForm, InputTransform, batch_count, default_augmentations, split
from gpuconv.data.folder import sampled, subset
from gpuconv.parallel import DataParallel, World
from gpuconv.random import default_generator, manual_seed
from gpuconv.storage import FileError
from gpuconv.training import events
from gpuconv.training.checkpoint import CHECKPOINT, EPOCHS, KIND, METRICS, MODEL, Checkpoint, fingerprint
from gpuconv.training.config import LOSSES, OPTIMIZERS, SCHEDULES, Setting, SettingValueError, TrainConfig
from gpuconv.training.evaluation import Evaluation, evaluate
from gpuconv.training.feed import Feed, HostFeed
from gpuconv.training.network import build_network, load_weights, transform_of, weights_file
from gpuconv.training.signals import STOPPING, Signals
from gpuconv.version import __version__

#: Seconds between two reads of the losses of captured steps; each read waits for the device.
_READ_EVERY = 0.1
#: On a CPU, steps that take no longer, in seconds, are captured; so many full batches are timed to know.
_SHORT, _TIMED_STEPS = 0.02, 3
_logger = logging.getLogger("gpuconv.training")


class Run:
    """A training run between two steps. :meth:`save` saves all of its state that changes."""

    def __init__(
        self,
        config: TrainConfig,
        out: Path,
        dataset: Dataset,
        backend: backends.Backend,
        signals: Signals,
        report: Callable[[events.Event], None],
        *,
        world: World,
        checkpoint: Checkpoint | None = None,
        workers: int | None = None,
    ):
        self.world, self.config, self.out, self.dataset = world, config, out, dataset
        self.backend, self.signals, self.report = backend, signals, report
        self.fingerprint, self.workers = fingerprint(dataset), workers
        if config.batch_size < world.size:
            raise SettingValueError(
                Setting("batch_size"), f" is {config.batch_size}, and is divided among {world.size} processes; give at "
                f"least {world.size}, or start fewer"
            )  # fmt: skip
        world.check_same({**asdict(config), "data": self.fingerprint, "backend": backend.name, **versions()})

        manual_seed(config.seed)
        self.model = build_network(config, dataset, backend)
        loaded = None
        if config.weights is not None and checkpoint is None:
            loaded = load_weights(self.model, weights_file(config.weights))
            self.report(events.WeightsLoaded(config.weights, loaded.left_out))
        given, dataset = dataset, dataset.with_channels(self.model.input_shape[0])
        self.dataset = dataset
        self.model.to(backend)
        self.parallel = DataParallel(self.model, world=world)
        self.optimizer = OPTIMIZERS[config.optimizer](config, self.model)
        if not world.first:  # rank 0 draws what a process alone draws
            self._seed_generator(0)
        self.optimizer.schedule = self._lr

        images, labels = dataset.train_images, dataset.train_labels
        #: Raw, as in the data set.
        self.validation_images, self.validation_labels = dataset.validation_images, dataset.validation_labels
        if self.validation_images is None:
            training, validation = split(len(images), config.validation_fraction, config.seed)
            self.validation_images, self.validation_labels = subset(images, validation), labels[validation]
            images, labels = subset(images, training), labels[training]
        if checkpoint is not None and "input_transform" in checkpoint.content:
            transform = InputTransform.from_dict(checkpoint.content["input_transform"])
        else:
            transform = transform_of(self.model, sampled(images), loaded)
        self.model.input_transform = self.transform = transform
        # A network of colours that learned from grey digits is asked about digits.
        self.form = self.model.form = ImageForm.of(given if given.channels == 1 else dataset, _lasting(config.data))
        self.feed = self._new_feed(images, labels)
        self.steps = batch_count(len(self.feed), config.batch_size)

        self.step = 0  # steps done in the current epoch; all of them, while it has not been validated
        self.loss_sum, self.correct = 0.0, 0  # over the images of those steps
        self.seconds = 0.0  # spent on them
        self.history: list[events.EpochEnd] = []
        # Weights of the best epoch; also without patience, which may be set when the run is resumed.
        self.best: dict[str, np.ndarray] | None = None
        self.resumed = False
        self.changed = True  # whether the settings differ from those of the checkpoint

        #: On a GPU, the captured step that replaces _train_step for full batches; None elsewhere or if that failed.
        self.captured: CapturedStep | None = capture(self._whole_step) if config.loss == "cross_entropy" else None
        #: On a CPU, the captured part of _train_step; None until a few steps were short, or if that failed.
        self.captured_update: CapturedStep | None = None
        self.update_seconds: list[float] = []  # of the first full batches
        if self.captured is not None and (self.captured.on_host or world.size > 1):
            self.captured = None
        #: A signal that some process has been sent, as all have agreed; of a process alone, see `signals`.
        self.agreed_signal: int | None = None
        self.unread = 0  # captured steps whose loss and right answers have not been read back
        self.next_read = 0.0
        #: When the first of them was launched, if all of them are repetitions; and seconds a step, as far as known.
        self.launched: float | None = None
        self.pace: float | None = None

    def _new_feed(self, images: Any, labels: np.ndarray) -> Feed | HostFeed:
        config, dataset = self.config, self.dataset
        size, seed = config.batch_size, config.seed
        if isinstance(config.augment, bool) and not dataset.pictures and dataset.channels == 1:
            augment = config.augment
            return Feed(
                images, labels, self.transform, self.backend, batch_size=size, seed=seed, augment=augment,
                workers=self.workers, share=self.world.share,
            )  # fmt: skip
        kinds: tuple[str, ...] = ()
        if isinstance(config.augment, str):
            kinds = tuple(config.augment.split(","))
        elif config.augment:
            kinds = default_augmentations(dataset.size)
        return HostFeed(
            images, labels, self.transform, self.backend, batch_size=size, seed=seed, augmentations=kinds,
            workers=self.workers, share=self.world.share,
        )  # fmt: skip

    def _seed_generator(self, steps: int) -> None:
        """Random numbers of this process's own, for dropout, from some step on."""
        seed = np.random.SeedSequence(self.config.seed, spawn_key=(self.world.rank, steps))
        default_generator().bit_generator.state = np.random.default_rng(seed).bit_generator.state

    # -- state -------------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the checkpoint, on rank 0; all processes call it."""
        self._check_equal()
        generators = self.world.gathered(default_generator().bit_generator.state)
        if not self.world.first:
            return
        weights = self.model.state_dict()
        optimizer = self.optimizer.state_dict()
        scalars = {name: optimizer.pop(name) for name in ("steps", "groups")}
        parts = {"model.": weights, "optimizer.": optimizer, "best.": self.best or {}}
        storage.save_tensors(
            self.out / CHECKPOINT,
            {prefix + name: array for prefix, part in parts.items() for name, array in part.items()},
            KIND,
            {
                "config": asdict(self.config),
                "data": self.fingerprint,
                "form": self.form.to_dict(),
                "input_transform": self.transform.to_dict(),
                "backend": self.backend.name,
                "optimizer": scalars,
                "generator": generators[0],
                **({"generators": generators[1:]} if self.world.size > 1 else {}),
                "step": self.step,
                "loss_sum": self.loss_sum,
                "correct": self.correct,
                "seconds": self.seconds,
                "history": [asdict(epoch) for epoch in self.history],
            },
        )
        self.report(events.CheckpointSaved(self.out / CHECKPOINT, len(self.history), self.step))

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore the state that :meth:`save` saved."""
        content = checkpoint.content
        try:
            self._restore_source(content.get("form"))
            self.model.load_state_dict(checkpoint.part("model."))
            self.optimizer.load_state_dict({**checkpoint.part("optimizer."), **content["optimizer"]})
            generators = [content["generator"], *content.get("generators", ())]
            if len(generators) == self.world.size or self.world.first:
                default_generator().bit_generator.state = generators[self.world.rank]
            else:  # it was written by another number of processes
                self._seed_generator(self.optimizer.steps)
            self.best = checkpoint.part("best.") or None
            self.step, self.correct = int(content["step"]), int(content["correct"])
            self.loss_sum, self.seconds = float(content["loss_sum"]), float(content["seconds"])
            self.history = [events.EpochEnd(**epoch) for epoch in content["history"]]
            self.changed = (content["config"], content["backend"]) != (asdict(self.config), self.backend.name)
        except (KeyError, TypeError, ValueError) as error:
            raise FileError(f"{checkpoint.path}: not the checkpoint of such a run ({error})") from None
        self.resumed = True

    def _check_equal(self) -> None:
        """Check that the weights of all processes are the same, bit for bit."""
        if self.world.size > 1:
            digest = hashlib.sha256()
            for parameter in self.model.parameters():
                digest.update(np.ascontiguousarray(parameter.numpy()).data)
            self.world.check_same({"the digest of the weights": digest.hexdigest()})

    def _restore_source(self, form: Mapping[str, Any] | None) -> None:
        """The model's bytes are those of an uninterrupted run, unless the data are no longer where it began."""
        if form is None:
            return  # a checkpoint from before models had a form
        source = ImageForm.from_dict(form).source
        if source is not None and (source in DATASETS or os.path.isdir(source)):
            self.form = self.model.form = replace(self.form, source=source)

    def _write_metrics(self) -> None:
        if not self.world.first:
            return
        # As a whole, so that no line is ever missing, cut short or there twice; an epoch's line is a few dozen bytes.
        lines = [json.dumps(asdict(epoch), allow_nan=False) + "\n" for epoch in self.history]
        storage.write_atomically(self.out / METRICS, "".join(lines).encode())

    def _keep_epoch(self) -> None:
        if self.config.keep_epochs and self.world.first:
            (self.out / EPOCHS).mkdir(exist_ok=True)
            storage.save(self.model, self.out / EPOCHS / f"{len(self.history):04}.safetensors")

    @property
    def best_epoch(self) -> int | None:
        """The epoch with the lowest validation loss so far."""
        losses = [epoch.validation_loss for epoch in self.history if epoch.validation_loss is not None]
        return 1 + losses.index(min(losses)) if losses else None

    @property
    def stopped_early(self) -> bool:
        """Whether ``patience`` has run out."""
        if self.config.patience is None or self.best_epoch is None:
            return False
        return len(self.history) - self.best_epoch >= self.config.patience

    @property
    def finished(self) -> bool:
        """Whether no epoch is left."""
        return len(self.history) == self.config.epochs or self.stopped_early

    # -- the loop ----------------------------------------------------------------------------------------------------

    def train(self) -> events.Result:
        """Train to the end of the run."""
        with closing(self.feed):
            return self._train()

    def _train(self) -> events.Result:
        was_finished = self.finished
        self.report(
            events.Started(
                model=self.config.model,
                parameters=sum(parameter.numel() for parameter in self.model.parameters()),
                backend=self.backend.name,
                train_images=len(self.feed),
                validation_images=len(self.validation_images),
                test_images=len(self.dataset.test_images),
                epochs=self.config.epochs,
                steps=self.steps,
                resumed=self.resumed,
                epochs_done=len(self.history),
                steps_done=self.step,
                finished=was_finished,
            )
        )
        if self.changed:
            # A folder that cannot be written, or a full disk, shows before hours of training. And if the number of
            # epochs has been raised, later resumes find it in the checkpoint.
            self.save()
        self._write_metrics()
        if not self.history and not self.step:
            self._keep_epoch()
        with ExitStack() as first_epoch:
            if self.world.size == 1 and not self.finished:  # processes of MPI must not be copied
                first_epoch.enter_context(self.backend.compiling_ahead(self._rehearse, self._rehearse_evaluation))
            while not self.finished:
                self._train_epoch()
                self._end_epoch()
                first_epoch.close()
                self._stop_if_asked()
        if self.stopped_early:
            assert self.best_epoch is not None
            assert self.config.patience is not None
            self.report(events.EarlyStop(len(self.history), self.best_epoch, self.config.patience))
        return self._finish(was_finished)

    def _train_epoch(self) -> None:
        before, started, images = self.seconds, time.perf_counter(), 0
        self.feed.begin(len(self.history), self.step)
        while self.step < self.steps:
            step = self.step
            size = min(self.config.batch_size, len(self.feed) - step * self.config.batch_size)
            if self.captured is None or size < self.config.batch_size or not self._captured_steps():
                self._train_step(self.feed.inputs(step), size)
            images += size * (self.step - step)
            # There is another checkpoint at the end of the epoch anyway.
            due = self.optimizer.steps % self.config.checkpoint_every == 0 and self.step < self.steps
            if self.unread:
                last, now = self.step == self.steps, time.perf_counter()
                enough = now >= self.next_read or self.unread >= self._most_unread
                if not (due or last or self.signal is not None or enough):
                    continue
                self._read_back()
                self.next_read = now + _READ_EVERY
            spent = time.perf_counter() - started
            self.seconds = before + spent
            seen = min(self.step * self.config.batch_size, len(self.feed))
            self.report(
                events.BatchEnd(
                    epoch=len(self.history) + 1,
                    step=self.step,
                    steps=self.steps,
                    loss=self.loss_sum / seen,
                    accuracy=self.correct / seen,
                    images_per_second=images / max(spent, 1e-9),
                )
            )
            if due or self.signal is not None:
                self._check_weights()
                self.save()
                self._stop_if_asked()

    def _train_step(self, inputs: tuple[Any, ...], size: int) -> None:
        self._read_back()
        value, correct = self._parallel_step(inputs, size) if self.world.size > 1 else self._step(inputs)
        if not math.isfinite(value):
            raise self._diverged(self.step + 1, f"the loss is {value}")
        self.step += 1
        self.loss_sum += value * size
        self.correct += correct

    def _step(self, inputs: tuple[Any, ...]) -> tuple[float, int]:
        """Take a step; returns the loss, and how many answers were right."""
        images, labels = self.feed.batch(*inputs)
        logits, loss = self._updated(images, labels)
        return float(loss), int(self.backend.count_correct(logits.data, labels))

    def _parallel_step(self, inputs: tuple[Any, ...], size: int) -> tuple[float, int]:
        """As :meth:`_step`, of a batch that is divided among the processes."""
        loss_sum, right, count = 0.0, 0.0, len(inputs[0])
        if count:
            images, labels = self.feed.batch(*inputs)
            logits, loss = self._update(images, labels)
            loss_sum, right = float(loss) * count, float(self.backend.count_correct(logits.data, labels))
        else:
            self.optimizer.zero_grad()
            self.parallel.skip()
            self.optimizer.step()
        loss_sum, right = self._agreed(loss_sum, right)
        return loss_sum / size, int(right)

    def _agreed(self, *values: float) -> list[float]:
        """Sums over all processes; they also agree on whether they shall stop."""
        by_signal = [self.signals.received == number for number in STOPPING]
        *sums, interrupted, terminated = self.world.sum(*values, *by_signal)
        if interrupted or terminated:
            self.agreed_signal = STOPPING[0] if interrupted else STOPPING[1]
        return sums

    @property
    def signal(self) -> int | None:
        """The signal upon which the run stops after the present step."""
        return self.signals.received if self.world.size == 1 else self.agreed_signal

    def _updated(self, images: Any, labels: Any) -> tuple[Tensor, Tensor]:
        """Take a step; returns logits and loss. On a CPU, short steps are captured: Python is much of their time."""
        full = len(labels) == self.config.batch_size
        if full and self.captured_update is not None:
            try:
                logits, loss = self.captured_update(images, labels)
                return logits, loss
            except RuntimeError as error:  # nothing was done
                self.captured_update = None
                _logger.warning("training continues without a captured step: %s", error)
        started = time.perf_counter()
        logits, loss = self._update(images, labels)
        if full and len(self.update_seconds) < _TIMED_STEPS and isinstance(logits.data, np.ndarray):
            self.update_seconds.append(time.perf_counter() - started)
            if len(self.update_seconds) == _TIMED_STEPS and min(self.update_seconds) < _SHORT:
                self.captured_update = capture(self._update, warmup=1)
        return logits, loss

    def _update(self, images: Any, labels: Any) -> tuple[Tensor, Tensor]:
        logits = self.parallel(Tensor(images))
        loss = LOSSES[self.config.loss](logits, labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return logits, loss

    def _rehearse(self) -> None:
        size = min(self.config.batch_size, len(self.feed))
        self._update(self._zero_images(size), np.zeros(size, np.int64))

    def _rehearse_evaluation(self) -> None:
        self.model.eval()
        with no_grad():
            self.model(Tensor(self._zero_images(min(256, max(len(self.validation_labels), 1)))))

    def _zero_images(self, count: int) -> Any:
        return np.zeros((count, *self.model.input_shape), np.float32)

    def _whole_step(self, *inputs: Any) -> None:
        """The function to capture: nothing in it waits for the device."""
        images, labels = self.feed.next_batch(*inputs)
        logits = self.model(Tensor(images))
        loss = LOSSES[self.config.loss](logits, labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.feed.log(logits.data, labels, loss.data)

    @property
    def _most_unread(self) -> int:
        """Steps that may be under way: no more than the device takes between two reads, so that it soon answers.

        While the pace is not known, one; if Python launches them launch by launch, as many as it can.
        """
        if self.launched is None:
            return sys.maxsize
        return 1 if self.pace is None else max(1, int(_READ_EVERY / self.pace))

    def _captured_steps(self) -> bool:
        """Run steps whose losses are read back later; False if they cannot be captured, and nothing was done.

        Of images that are on the device these are all until the next read, the next checkpoint or the last full batch,
        in few launches. Of others it is one.
        """
        assert self.captured is not None
        inputs, count = self.feed.next_inputs(self.step), 1
        if self.captured.captured and self.pace is None:
            self._read_back()  # the next step is timed
        if not self.unread:
            self.launched = time.perf_counter() if self.captured.captured else None
        if self.captured.captured and not inputs:
            every = self.config.checkpoint_every
            full = len(self.feed) // self.config.batch_size - self.step
            count = min(full, every - self.optimizer.steps % every, self._most_unread - self.unread)
        try:
            if inputs:
                self.captured(*inputs)
            else:
                self.captured.repeat(count)
        except RuntimeError as error:
            if self.captured.captured:
                raise
            self.captured = None
            _logger.warning("training continues without a CUDA graph, step by step: %s", error)
            return False
        self.unread += count
        self.step += count
        return True

    def _read_back(self) -> None:
        """Add up what captured steps left on the device, in order, as a step on the host does."""
        unread, self.unread = self.unread, 0
        if not unread:
            return
        losses, correct = self.feed.logged(self.step - unread, self.step)
        if self.launched is not None:
            self.pace = min(self.pace or math.inf, (time.perf_counter() - self.launched) / unread)
        for number, value in enumerate(losses.tolist()):
            if not math.isfinite(value):
                raise self._diverged(self.step - unread + number + 1, f"the loss is {value}")
            self.loss_sum += value * self.config.batch_size
        self.correct += int(correct.sum())

    def _lr(self, done: int) -> float:
        """Learning rate of a step that comes after ``done`` others."""
        assert self.config.lr is not None
        return self.config.lr * SCHEDULES[self.config.schedule](done / (self.steps * self.config.epochs))

    def _end_epoch(self) -> None:
        self._check_weights()
        started = time.perf_counter()
        loss = accuracy = None
        if len(self.validation_labels):
            validation = self._evaluated(self.validation_images, self.validation_labels)
            loss, accuracy = validation.loss, validation.accuracy
            if not math.isfinite(loss):
                raise self._diverged(self.step, f"the validation loss is {loss}")
        epoch = events.EpochEnd(
            epoch=len(self.history) + 1,
            train_loss=self.loss_sum / len(self.feed),
            train_accuracy=self.correct / len(self.feed),
            validation_loss=loss,
            validation_accuracy=accuracy,
            lr=self.optimizer.lr,
            seconds=round(self.seconds + time.perf_counter() - started, 3),
        )
        self.history.append(epoch)
        self.parallel.broadcast()
        if self.best_epoch == epoch.epoch:
            self.best = self.model.state_dict()
        self.step, self.loss_sum, self.correct, self.seconds = 0, 0.0, 0, 0.0
        # Before the checkpoint, after which nobody comes back to this epoch.
        self._keep_epoch()
        self.save()
        # After the checkpoint, which holds these lines too: a resumed run writes those that are missing here.
        self._write_metrics()
        self.report(epoch)

    def _evaluated(self, images: Any, labels: np.ndarray) -> Evaluation:
        part = self.world.share(len(labels))
        if self.world.size > 1:
            images, labels = subset(images, np.arange(part.start, part.stop)), labels[part]
        found = evaluate(self.model, images, labels, loss=self.config.loss, workers=self.workers)
        if self.world.size == 1:
            return found
        loss = found.loss * len(labels) if len(labels) else 0.0
        loss, count, *confusion = self._agreed(loss, len(labels), *found.confusion.ravel().tolist())
        together = np.array(confusion, np.int64).reshape(found.confusion.shape)
        return Evaluation(loss / count, float(np.trace(together) / count), together)

    def _finish(self, was_finished: bool) -> events.Result:
        kept_epoch = len(self.history)
        if self.config.patience is not None and self.best is not None and self.best_epoch is not None:
            self.model.load_state_dict(self.best)
            kept_epoch = self.best_epoch
        self.model.eval()
        test = self._evaluated(self.dataset.test_images, self.dataset.test_labels)
        path = self.out / MODEL
        if self.world.first:
            storage.save(self.model, path)
        seconds = sum(epoch.seconds for epoch in self.history)
        self.report(events.Finished(test.loss, test.accuracy, seconds, self.best_epoch, kept_epoch, path))
        self._stop_if_asked()
        return events.Result(
            dataset=self.dataset,
            model=self.model,
            model_path=path,
            backend=self.backend.name,
            test_loss=test.loss,
            test_accuracy=test.accuracy,
            confusion=test.confusion,
            history=list(self.history),
            best_epoch=self.best_epoch,
            kept_epoch=kept_epoch,
            stopped_early=self.stopped_early,
            was_finished=was_finished,
            seconds=seconds,
        )

    def _stop_if_asked(self) -> None:
        number = self.signal
        if number is None:
            return
        where = f"after epoch {len(self.history)} of {self.config.epochs}"
        if self.step:
            where = f"in epoch {len(self.history) + 1} of {self.config.epochs}, after step {self.step} of {self.steps}"
        raise events.Interrupted(
            f"interrupted {where}; saved in {self.out / CHECKPOINT}", number, self.out / CHECKPOINT
        )

    def _check_weights(self) -> None:
        """Check the weights before saving: if the last step spoiled them, the loss shows it only in the next one."""
        for name, parameter in self.model.named_parameters():
            if not np.isfinite(parameter.numpy()).all():
                raise self._diverged(self.step, f"{name} holds values that are not finite")

    def _diverged(self, step: int, what: str) -> events.TrainingDiverged:
        largest = {
            name: float(abs(parameter.grad.data).max())
            for name, parameter in self.model.named_parameters()
            if parameter.grad is not None
        }
        gradient = "no gradient has been computed yet"
        if largest:
            # NaN counts as the largest: it shows where the problem is.
            name, value = max(largest.items(), key=lambda item: math.inf if math.isnan(item[1]) else item[1])
            gradient = f"the largest of the last gradients is that of {name}, {value:.3g}"
        return events.TrainingDiverged(
            f"training diverged in epoch {len(self.history) + 1}, step {step} of {self.steps}: {what}; {gradient}. A "
            "lower ",
            Setting("lr"),
            f" may help (it was {self.optimizer.lr:.3g}). The last good checkpoint is kept in {self.out}",
        )


def versions() -> dict[str, str]:
    """What the results depend on beside the settings."""
    return {"gpuconv's version": __version__, "NumPy's version": np.__version__}


def _lasting(data: str) -> str:
    """The data set's name, or the absolute path of its folder, so that any process can find it again."""
    return data if data in DATASETS else os.path.abspath(os.path.expanduser(data))
