"""Where PyTorch has them: the functions of :mod:`gpuconv.functional`, for ``import gpuconv.nn.functional as F``."""

from gpuconv.functional import *  # noqa: F403
from gpuconv.functional import __all__ as __all__
