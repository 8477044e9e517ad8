"""Training a classifier: the loop, and checkpoints from which a run resumes exactly where it stopped.

::

    from gpuconv.training import TrainConfig, fit

    result = fit(TrainConfig(epochs=5, seed=1), "runs/digits")
    print(result.test_accuracy)
    result.model.predict(images)

A run directory holds ``checkpoint.safetensors``, from which the run is resumed; ``metrics.jsonl``, one JSON object an
epoch; and, once the run has ended, ``model.safetensors`` for :func:`gpuconv.load`.

**Resuming.** ``fit(config, out, resume=True)`` finishes an interrupted run, and trains a finished one for longer::

    fit(replace(config, epochs=13), "runs/digits", resume=True)

``epochs``, ``patience``, ``checkpoint_every`` and ``backend`` may change; all other settings must stay the same. The
learning rate of each remaining step is the one it has in a run of the new number of epochs. With 'cosine', which falls
to 0 at the end of a run, it rises again when a finished run is resumed, to where the longer curve is at that step. With
'constant' the result is bit for bit that of a run that had the new number of epochs from the start.

**Which weights are kept.** Those of the last epoch. The learning rate has fallen to almost nothing by then, and
choosing an epoch by a few hundred validation images is choosing by chance: on the bundled digits it costs 0.1 to 0.3
points of test accuracy. With ``patience`` the last epochs were no better than an earlier one, so the weights of the
epoch with the lowest validation loss are kept. The test images are used only after that, once each time that a run
ends.

**What is reproducible.** The same configuration gives the same bytes, interrupted or not, on the same machine with the
same NumPy and the same number of BLAS threads: these determine the order in which sums are rounded.
"""

from __future__ import annotations

from gpuconv.training.checkpoint import CHECKPOINT, EPOCHS, METRICS, MODEL, OtherRun, saved_config
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
    FolderRead,
    Interrupted,
    Reading,
    Result,
    Started,
    TrainingDiverged,
    WeightsLoaded,
)
from gpuconv.training.fitting import fit

__all__ = [
    "CHECKPOINT",
    "EPOCHS",
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
    "FolderRead",
    "Interrupted",
    "NamesSettings",
    "OtherRun",
    "Reading",
    "Result",
    "Setting",
    "SettingTypeError",
    "SettingValueError",
    "Started",
    "TrainConfig",
    "TrainingDiverged",
    "WeightsLoaded",
    "evaluate",
    "fit",
    "saved_config",
]
