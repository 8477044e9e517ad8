"""A whole run: the data, the directory, the checkpoint to go on from, and the loop."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from gpuconv import backends, storage
from gpuconv.data import load_dataset
from gpuconv.random import default_generator
from gpuconv.training.checkpoint import CHECKPOINT, METRICS, MODEL, Checkpoint, locked, refuse_existing
from gpuconv.training.config import TrainConfig
from gpuconv.training.events import Event, Result
from gpuconv.training.run import Run
from gpuconv.training.signals import Signals


def fit(
    config: TrainConfig,
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    on_event: Callable[[Event], None] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
) -> Result:
    """Train a model, or go on training it, and write it into the run directory ``out``.

    The first SIGINT (Ctrl-C) or SIGTERM lets the current step end, saves a checkpoint and raises :class:`Interrupted`;
    the second has its usual effect. That is so in the main thread only; Python allows no handlers in others.

    On a GPU the training images are uploaded once, if they take no more than half of the memory that is free; in each
    epoch, the order in which they come (and how they are augmented). With ``loss='cross_entropy'`` a full batch is a
    launch of one CUDA graph (:func:`gpuconv.capture`), which gathers the batch and counts the right answers, too; the
    shorter last one of an epoch is not. Losses are read back ten times a second, and before a checkpoint. If the step
    cannot be captured, a line of the logger ``gpuconv.training`` says why, and each step is run launch by launch.

    Args:
        config: what to train, and how.
        out: the run directory; made if it is not there.
        resume: go on from the checkpoint in ``out``; start from the beginning if there is none yet. With the settings
            of the run, whose data may have moved, this gives bit for bit what the run would have given without the
            interruption; if nothing is left to train, only the model is written again. Those in :data:`MAY_CHANGE`
            may be others:

            - ``epochs``, at least those that have begun. Steps that are still to come have the learning rate that they
              have in a run of so many epochs. Metrics are continued; the model of a finished run stays until the run
              ends again.
            - ``patience``: a run that it has stopped goes on if it is larger. Epochs before count, too.
            - ``checkpoint_every``.
            - ``backend``: 'auto' is the one that the run is on. Another one goes on from the same numbers, and rounds
              otherwise.
        on_event: is called with each :class:`Event`, in this thread.
        data_dir: where downloaded data are kept, see :func:`gpuconv.data.load_dataset`.

    Raises:
        FileExistsError: ``out`` holds a run, and ``resume`` is not set.
        FileError: ``out`` holds a checkpoint that is broken or, :class:`OtherRun`, has other settings; it is left as it
            is.
        Interrupted, TrainingDiverged: see there.
        OSError: a file cannot be written (disk full, no permission), or another process is training in ``out``. What
            was saved before is still there.
        ValueError, DataError, ConnectionError, BackendUnavailable: the model, the data or the backend is not to be had,
            or more epochs than ``epochs`` have begun.
    """
    out = Path(out)
    if not resume:
        refuse_existing(out)
    dataset = load_dataset(config.data, cache_dir=data_dir)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out), Signals() as signals, _kept_generator(), np.errstate(over="ignore", invalid="ignore"):
        for name in (CHECKPOINT, METRICS, MODEL):
            storage.remove_leftovers(out / name)
        checkpoint = None
        if resume and (out / CHECKPOINT).exists():
            checkpoint = Checkpoint.read(out / CHECKPOINT)
            checkpoint.check_goes_on_with(config, dataset)
        else:
            # Also on resume: without a checkpoint, what else is there would be lost.
            refuse_existing(out)
        name = config.backend
        if name == backends.AUTO:
            name = checkpoint.backend if checkpoint else backends.current().name
        with backends.use_backend(name) as backend:
            run = Run(config, out, dataset, backend, signals, on_event or (lambda event: None))
            if checkpoint:
                run.restore(checkpoint)
            return run.train()


@contextmanager
def _kept_generator() -> Iterator[None]:
    """Give the default generator back as it was: a training run seeds its own numbers."""
    generator = default_generator().bit_generator
    state = generator.state
    try:
        yield
    finally:
        generator.state = state
