"""Optimizers and learning rate schedules, with PyTorch's names, arguments and formulas.

``SGD``, ``Adam`` and ``AdamW`` update all parameters in one kernel launch; the other optimizers use operations of the
array library.
"""

from gpuconv.optim import lr_scheduler
from gpuconv.optim.adam import Adam, AdamW
from gpuconv.optim.adaptive import Adadelta, Adagrad, Adamax, NAdam, RAdam, RMSprop
from gpuconv.optim.optimizer import Optimizer, Together
from gpuconv.optim.sgd import SGD

__all__ = [
    "SGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "Optimizer", "RAdam", "RMSprop", "Together",
    "lr_scheduler",
]  # fmt: skip
