"""Activations and dropout as modules, with PyTorch's names, arguments and defaults.

``inplace=True`` is accepted where PyTorch accepts it, and gives the same result. But the input keeps its values, and
its memory is not reused.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpuconv import functional as F
from gpuconv.dtypes import element_type
from gpuconv.geometry import integer
from gpuconv.nn.module import Calling, Module, Parameter

__all__ = [
    "CELU",
    "ELU",
    "GELU",
    "GLU",
    "SELU",
    "AlphaDropout",
    "Dropout1d",
    "Dropout2d",
    "Dropout3d",
    "FeatureAlphaDropout",
    "Hardshrink",
    "Hardsigmoid",
    "Hardswish",
    "Hardtanh",
    "LeakyReLU",
    "LogSigmoid",
    "Mish",
    "PReLU",
    "ReLU6",
    "SiLU",
    "Softmax2d",
    "Softmin",
    "Softplus",
    "Softshrink",
    "Softsign",
    "Tanhshrink",
    "Threshold",
]


class _Function(Calling):
    """Calls a function with the module's options, which are its attributes."""

    def __init__(self, inplace: bool = False, **options: Any):
        super().__init__()
        self.inplace = bool(inplace)
        self._names = tuple(options)
        for name, value in options.items():
            setattr(self, name, value)

    def forward(self, input: Any) -> Any:
        return type(self).function(input, **{name: getattr(self, name) for name in self._names})

    def extra_repr(self) -> str:
        shown = [f"{name}={getattr(self, name)!r}" for name in self._names]
        return ", ".join([*shown, *["inplace=True"] * self.inplace])


class _Inplace(_Function):
    """A function with no option but ``inplace``."""

    def __init__(self, inplace: bool = False):
        super().__init__(inplace)


class _Plain(_Function):
    """A function without options."""

    def __init__(self) -> None:
        super().__init__()


class LeakyReLU(_Function, function=F.leaky_relu):
    """See :func:`gpuconv.functional.leaky_relu`."""

    def __init__(self, negative_slope: float = 0.01, inplace: bool = False):
        super().__init__(inplace, negative_slope=negative_slope)


class PReLU(Module):
    """``max(x, 0) + weight · min(x, 0)`` with a learned weight; see :func:`gpuconv.functional.prelu`.

    Args:
        num_parameters: 1, or the number of channels.
        init: the weight's first value.

    Attributes:
        weight: (num_parameters,).
    """

    weight: Parameter
    _in_repr = ("num_parameters",)

    def __init__(self, num_parameters: int = 1, init: float = 0.25, *, dtype: Any = np.float32):
        super().__init__()
        self.num_parameters = integer(num_parameters, "num_parameters", minimum=1, op="PReLU")
        self.init = init
        self.weight = Parameter(np.full(self.num_parameters, init, element_type(dtype)))

    def forward(self, input: Any) -> Any:
        return F.prelu(input, self.weight)


class ELU(_Function, function=F.elu):
    """See :func:`gpuconv.functional.elu`."""

    def __init__(self, alpha: float = 1.0, inplace: bool = False):
        super().__init__(inplace, alpha=alpha)


class CELU(_Function, function=F.celu):
    """See :func:`gpuconv.functional.celu`."""

    def __init__(self, alpha: float = 1.0, inplace: bool = False):
        super().__init__(inplace, alpha=alpha)


class SELU(_Inplace, function=F.selu):
    """See :func:`gpuconv.functional.selu`."""


class GELU(_Function, function=F.gelu):
    """See :func:`gpuconv.functional.gelu`."""

    def __init__(self, approximate: str = "none"):
        super().__init__(approximate=approximate)


class SiLU(_Inplace, function=F.silu):
    """See :func:`gpuconv.functional.silu`."""


class Mish(_Inplace, function=F.mish):
    """See :func:`gpuconv.functional.mish`."""


class ReLU6(_Inplace, function=F.relu6):
    """See :func:`gpuconv.functional.relu6`."""


class Hardtanh(_Function, function=F.hardtanh):
    """See :func:`gpuconv.functional.hardtanh`."""

    def __init__(self, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False):
        super().__init__(inplace, min_val=min_val, max_val=max_val)


class Hardsigmoid(_Inplace, function=F.hardsigmoid):
    """See :func:`gpuconv.functional.hardsigmoid`."""


class Hardswish(_Inplace, function=F.hardswish):
    """See :func:`gpuconv.functional.hardswish`."""


class Hardshrink(_Function, function=F.hardshrink):
    """See :func:`gpuconv.functional.hardshrink`."""

    def __init__(self, lambd: float = 0.5):
        super().__init__(lambd=lambd)


class Softshrink(_Function, function=F.softshrink):
    """See :func:`gpuconv.functional.softshrink`."""

    def __init__(self, lambd: float = 0.5):
        super().__init__(lambd=lambd)


class Tanhshrink(_Plain, function=F.tanhshrink):
    """See :func:`gpuconv.functional.tanhshrink`."""


class Threshold(_Function, function=F.threshold):
    """See :func:`gpuconv.functional.threshold`."""

    def __init__(self, threshold: float, value: float, inplace: bool = False):
        super().__init__(inplace, threshold=threshold, value=value)


class Softplus(_Function, function=F.softplus):
    """See :func:`gpuconv.functional.softplus`."""

    def __init__(self, beta: float = 1.0, threshold: float = 20.0):
        super().__init__(beta=beta, threshold=threshold)


class Softsign(_Plain, function=F.softsign):
    """See :func:`gpuconv.functional.softsign`."""


class LogSigmoid(_Plain, function=F.logsigmoid):
    """See :func:`gpuconv.functional.logsigmoid`."""


class Softmin(_Function, function=F.softmin):
    """See :func:`gpuconv.functional.softmin`."""

    def __init__(self, dim: int = -1):
        super().__init__(dim=dim)


class Softmax2d(Module):
    """Softmax over the channels of (N, C, H, W) or (C, H, W). ValueError: other shapes."""

    def forward(self, input: Any) -> Any:
        if len(input.shape) not in (3, 4):
            raise ValueError(f"Softmax2d: input must have 3 or 4 dimensions, got shape {tuple(input.shape)}")
        return F.softmax(input, -3)


class GLU(_Function, function=F.glu):
    """See :func:`gpuconv.functional.glu`."""

    def __init__(self, dim: int = -1):
        super().__init__(dim=dim)


class _Dropout(Calling):
    _in_repr = ("p", "inplace")

    def __init__(self, p: float = 0.5, inplace: bool = False):
        super().__init__()
        if isinstance(p, bool) or not isinstance(p, (int, float)):
            raise TypeError(f"{type(self).__name__}: p must be a number, got {p!r}")
        if not 0 <= p <= 1:
            raise ValueError(f"{type(self).__name__}: p must be between 0 and 1, got {p}")
        self.p = p
        self.inplace = bool(inplace)

    def forward(self, input: Any) -> Any:
        return type(self).function(input, self.p, self.training)


class Dropout1d(_Dropout, function=F.dropout1d):
    """See :func:`gpuconv.functional.dropout1d`; only while training."""


class Dropout2d(_Dropout, function=F.dropout2d):
    """See :func:`gpuconv.functional.dropout2d`; only while training."""


class Dropout3d(_Dropout, function=F.dropout3d):
    """See :func:`gpuconv.functional.dropout3d`; only while training."""


class AlphaDropout(_Dropout, function=F.alpha_dropout):
    """See :func:`gpuconv.functional.alpha_dropout`; only while training."""


class FeatureAlphaDropout(_Dropout, function=F.feature_alpha_dropout):
    """See :func:`gpuconv.functional.feature_alpha_dropout`; only while training."""
