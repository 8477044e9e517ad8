"""The functions of :mod:`gpuconv.functional` under PyTorch's path, for ``import gpuconv.nn.functional as F``."""

from gpuconv.functional import *  # noqa: F403
from gpuconv.functional import __all__ as __all__
