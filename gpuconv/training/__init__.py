"""Training a classifier: the loop, and checkpoints from which it goes on as if it had never stopped.

::

    from gpuconv.training import TrainConfig, fit

    result = fit(TrainConfig(epochs=5, seed=1), "runs/digits")
    print(result.test_accuracy)
    result.model.predict(images)

A run directory holds ``checkpoint.safetensors``, from which the run is resumed; ``metrics.jsonl``, one JSON object an
epoch; and, once the run has ended, ``model.safetensors`` for :func:`gpuconv.load`.

**Going on.** ``fit(config, out, resume=True)`` takes an interrupted run to its end, and a finished one further::

    fit(replace(config, epochs=13), "runs/digits", resume=True)

The number of epochs may change, and ``patience``, ``checkpoint_every`` and ``backend``; all else is what the run is.
The learning rate of a step is from then on the one that it has in a run of the new number of epochs: with 'cosine',
which comes down to 0 over all epochs, it rises again in a finished run that goes on, to where the longer curve is at
that step; with 'constant' the result is bit for bit that of a run which had the new number from the start.

**Which weights are kept.** Those of the last epoch: the learning rate has come down to nothing there, and to choose
among epochs by a few hundred validation images is to choose by chance (on the bundled digits it costs 0.1 to 0.3 points
of test accuracy). With ``patience`` the last epoch is one of those that were no better, and those of the epoch with the
lowest validation loss are kept instead. The test images are looked at after that, once each time that a run ends.

**What is reproducible.** The same configuration gives the same bytes, interrupted or not, on the same machine with the
same NumPy and the same number of BLAS threads: these decide the order in which sums are rounded.
"""

from __future__ import annotations

from gpuconv.training.checkpoint import CHECKPOINT, METRICS, MODEL, OtherRun, saved_config
from gpuconv.training.config import (
    LOSSES,
    MAY_CHANGE,
    OPTIMIZERS,
    SCHEDULES,
    NamesSettings,
    Setting,
    SettingTypeError,
    SettingValueError,
    TrainConfig,
)
from gpuconv.training.evaluation import Evaluation, evaluate
from gpuconv.training.events import (
    BatchEnd,
    CheckpointSaved,
    EarlyStop,
    EpochEnd,
    Event,
    Finished,
    Interrupted,
    Result,
    Started,
    TrainingDiverged,
)
from gpuconv.training.fitting import fit

__all__ = [
    "CHECKPOINT",
    "LOSSES",
    "MAY_CHANGE",
    "METRICS",
    "MODEL",
    "OPTIMIZERS",
    "SCHEDULES",
    "BatchEnd",
    "CheckpointSaved",
    "EarlyStop",
    "EpochEnd",
    "Evaluation",
    "Event",
    "Finished",
    "Interrupted",
    "NamesSettings",
    "OtherRun",
    "Result",
    "Setting",
    "SettingTypeError",
    "SettingValueError",
    "Started",
    "TrainConfig",
    "TrainingDiverged",
    "evaluate",
    "fit",
    "saved_config",
]
