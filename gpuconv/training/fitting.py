"""A whole run: data, directory, checkpoint, and the loop."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np

from gpuconv import backends, parallel, storage
from gpuconv.data import Dataset, load_dataset
from gpuconv.random import default_generator
from gpuconv.training.checkpoint import CHECKPOINT, METRICS, MODEL, Checkpoint, locked, refuse_existing
from gpuconv.training.config import TrainConfig
from gpuconv.training.events import Event, FolderRead, Reading, Result
from gpuconv.training.network import plan, weights_file
from gpuconv.training.run import Run
from gpuconv.training.signals import Signals


def fit(
    config: TrainConfig,
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    on_event: Callable[[Event], None] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    dataset: Dataset | None = None,
    strict: bool = False,
    workers: int | None = None,
) -> Result:
    """Train a model, or resume training it, and write it into the run directory ``out``.

    The first SIGINT (Ctrl-C) or SIGTERM lets the current step finish, saves a checkpoint and raises
    :class:`Interrupted`; the second has its usual effect. This works in the main thread only, as Python allows no
    signal handlers in others.

    Started several times at once, by ``mpirun``, the processes train together (:mod:`gpuconv.parallel`): each on its
    share of every batch, with the losses of one process but for rounding. Only rank 0 writes, and calls ``on_event``. A
    checkpoint resumes on any number of processes; with another number, dropout draws other numbers.

    On a GPU the training images are uploaded once, if they take no more than half of the free memory; their order (and
    how they are augmented) is uploaded in each epoch. With ``loss='cross_entropy'`` the step of a full batch is a CUDA
    graph (:func:`gpuconv.capture`), which also makes the batch and counts the correct answers; one launch takes up to
    256 steps, but no more than the device takes in a tenth of a second. A shorter last batch runs without the graph.
    Losses are read back ten times a second, and before a checkpoint. If the step cannot be captured, the logger
    ``gpuconv.training`` says why, and each step runs launch by launch.

    Args:
        config: what to train, and how.
        out: the run directory; created if it does not exist.
        resume: resume from the checkpoint in ``out``; start from the beginning if there is none. With the settings of
            the run, this gives bit for bit the result of an uninterrupted run; the data may have moved. If nothing is
            left to train, only the model is written again. The settings in :data:`MAY_CHANGE` may change:

            - ``epochs``: at least as many as have begun. Each remaining step has the learning rate that it has in a run
              of the new number of epochs. Metrics are continued; the model of a finished run stays until the run ends
              again.
            - ``patience``: a run that it stopped continues if it is larger. Earlier epochs count too.
            - ``checkpoint_every``.
            - ``keep_epochs``: from then on.
            - ``backend``: 'auto' keeps the backend of the run. Another one continues from the same numbers, but rounds
              differently.
        on_event: called with each :class:`Event`, in this thread.
        data_dir: where downloaded data are kept, see :func:`gpuconv.data.load_dataset`.
        dataset: the images, instead of those that ``config.data`` names. A model knows only this name of them.
        strict: refuse a folder of pictures in which some cannot be used, instead of leaving these out.
        workers: threads that read pictures and prepare batches; by default one a core, four at most. The result does
            not depend on their number. 0: no threads.

    Raises:
        FileExistsError: ``out`` holds a run, and ``resume`` is not set.
        FileError: the checkpoint in ``out`` is broken or, :class:`OtherRun`, has other settings; it is left unchanged.
        Interrupted, TrainingDiverged: see there.
        OSError: a file cannot be written (disk full, no permission), or another process is training in ``out``. What
            was saved before is still there.
        WorldError: the processes that train together have different settings, data or versions, or one of them has
            not come.
        ValueError, DataError, ConnectionError, BackendUnavailable: the model, the data or the backend is not available,
            or more epochs than ``epochs`` have begun.
    """
    out, world = Path(out), parallel.current()
    if not resume:
        world.from_first(lambda: refuse_existing(out))
    tell = on_event if on_event and world.first else lambda event: None
    if config.weights is not None and not (out / CHECKPOINT).exists():
        weights_file(config.weights)
    input_shape = plan(config).input_shape
    if dataset is None:
        # Rank 0 first: it downloads what is missing.
        dataset = world.first_then_others(lambda: _load(config, input_shape, data_dir, strict, workers, tell))
    if world.first:
        out.mkdir(parents=True, exist_ok=True)
    lock = locked(out) if world.first else nullcontext()
    with lock, Signals() as signals, _kept_generator(), np.errstate(over="ignore", invalid="ignore"):

        def read() -> Checkpoint | None:
            for name in (CHECKPOINT, METRICS, MODEL):
                storage.remove_leftovers(out / name)
            if resume and (out / CHECKPOINT).exists():
                return Checkpoint.read(out / CHECKPOINT)
            # Also when resuming: without a checkpoint, the other files in the folder would be lost.
            refuse_existing(out)
            return None

        checkpoint = world.from_first(read)
        if checkpoint:
            checkpoint.check_goes_on_with(config, dataset)
        name = config.backend
        if name == backends.AUTO:
            name = checkpoint.backend if checkpoint else backends.current().name
        with backends.use_backend(name) as backend:
            run = Run(config, out, dataset, backend, signals, tell, world=world, checkpoint=checkpoint, workers=workers)
            if checkpoint:
                run.restore(checkpoint)
            return run.train()


def _load(
    config: TrainConfig,
    input_shape: tuple[int, int, int],
    data_dir: str | os.PathLike[str] | None,
    strict: bool,
    workers: int | None,
    tell: Callable[[Event], None],
) -> Dataset:
    """The data of a run, for a network that is made for images of a shape."""
    channels, *size = input_shape
    if config.image_size is not None:
        size = [config.image_size] * 2
    dataset = load_dataset(
        config.data,
        cache_dir=data_dir,
        image_size=(size[0], size[1]),
        channels=channels,
        strict=strict,
        workers=workers,
        progress=lambda done, total: tell(Reading(done, total)),
    )
    if dataset.pictures:
        in_memory = isinstance(dataset.train_images, np.ndarray)
        tell(FolderRead(dataset.classes, dataset.size, dataset.skipped, in_memory))
    return dataset


@contextmanager
def _kept_generator() -> Iterator[None]:
    """Restore the state of the default generator afterwards: a training run seeds its own numbers."""
    generator = default_generator().bit_generator
    state = generator.state
    try:
        yield
    finally:
        generator.state = state
