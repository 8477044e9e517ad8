"""Activations and dropout as modules, with PyTorch's names, arguments and defaults.

``inplace=True`` is accepted where PyTorch accepts it, and gives the same result. But the input keeps its values, and
its memory is not reused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from gpuconv import functional as F
from gpuconv.dtypes import element_type
from gpuconv.geometry import integer
from gpuconv.nn.module import Module, Parameter

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


class _Function(Module):
    """Calls a function with the module's options, which are its attributes."""

    function: ClassVar[Callable[..., Any]]

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


class LeakyReLU(_Function):
    """See :func:`gpuconv.functional.leaky_relu`."""

    function = staticmethod(F.leaky_relu)

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


class ELU(_Function):
    """See :func:`gpuconv.functional.elu`."""

    function = staticmethod(F.elu)

    def __init__(self, alpha: float = 1.0, inplace: bool = False):
        super().__init__(inplace, alpha=alpha)


class CELU(_Function):
    """See :func:`gpuconv.functional.celu`."""

    function = staticmethod(F.celu)

    def __init__(self, alpha: float = 1.0, inplace: bool = False):
        super().__init__(inplace, alpha=alpha)


class SELU(_Inplace):
    """See :func:`gpuconv.functional.selu`."""

    function = staticmethod(F.selu)


class GELU(_Function):
    """See :func:`gpuconv.functional.gelu`."""

    function = staticmethod(F.gelu)

    def __init__(self, approximate: str = "none"):
        super().__init__(approximate=approximate)


class SiLU(_Inplace):
    """See :func:`gpuconv.functional.silu`."""

    function = staticmethod(F.silu)


class Mish(_Inplace):
    """See :func:`gpuconv.functional.mish`."""

    function = staticmethod(F.mish)


class ReLU6(_Inplace):
    """See :func:`gpuconv.functional.relu6`."""

    function = staticmethod(F.relu6)


class Hardtanh(_Function):
    """See :func:`gpuconv.functional.hardtanh`."""

    function = staticmethod(F.hardtanh)

    def __init__(self, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False):
        super().__init__(inplace, min_val=min_val, max_val=max_val)


class Hardsigmoid(_Inplace):
    """See :func:`gpuconv.functional.hardsigmoid`."""

    function = staticmethod(F.hardsigmoid)


class Hardswish(_Inplace):
    """See :func:`gpuconv.functional.hardswish`."""

    function = staticmethod(F.hardswish)


class Hardshrink(_Function):
    """See :func:`gpuconv.functional.hardshrink`."""

    function = staticmethod(F.hardshrink)

    def __init__(self, lambd: float = 0.5):
        super().__init__(lambd=lambd)


class Softshrink(_Function):
    """See :func:`gpuconv.functional.softshrink`."""

    function = staticmethod(F.softshrink)

    def __init__(self, lambd: float = 0.5):
        super().__init__(lambd=lambd)


class Tanhshrink(_Plain):
    """See :func:`gpuconv.functional.tanhshrink`."""

    function = staticmethod(F.tanhshrink)


class Threshold(_Function):
    """See :func:`gpuconv.functional.threshold`."""

    function = staticmethod(F.threshold)

    def __init__(self, threshold: float, value: float, inplace: bool = False):
        super().__init__(inplace, threshold=threshold, value=value)


class Softplus(_Function):
    """See :func:`gpuconv.functional.softplus`."""

    function = staticmethod(F.softplus)

    def __init__(self, beta: float = 1.0, threshold: float = 20.0):
        super().__init__(beta=beta, threshold=threshold)


class Softsign(_Plain):
    """See :func:`gpuconv.functional.softsign`."""

    function = staticmethod(F.softsign)


class LogSigmoid(_Plain):
    """See :func:`gpuconv.functional.logsigmoid`."""

    function = staticmethod(F.logsigmoid)


class Softmin(_Function):
    """See :func:`gpuconv.functional.softmin`."""

    function = staticmethod(F.softmin)

    def __init__(self, dim: int = -1):
        super().__init__(dim=dim)


class Softmax2d(Module):
    """Softmax over the channels of (N, C, H, W) or (C, H, W). ValueError: other shapes."""

    def forward(self, input: Any) -> Any:
        if len(input.shape) not in (3, 4):
            raise ValueError(f"Softmax2d: input must have 3 or 4 dimensions, got shape {tuple(input.shape)}")
        return F.softmax(input, -3)


class GLU(_Function):
    """See :func:`gpuconv.functional.glu`."""

    function = staticmethod(F.glu)

    def __init__(self, dim: int = -1):
        super().__init__(dim=dim)


class _Dropout(Module):
    function: ClassVar[Callable[..., Any]]
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


class Dropout1d(_Dropout):
    """See :func:`gpuconv.functional.dropout1d`; only while training."""

    function = staticmethod(F.dropout1d)


class Dropout2d(_Dropout):
    """See :func:`gpuconv.functional.dropout2d`; only while training."""

    function = staticmethod(F.dropout2d)


class Dropout3d(_Dropout):
    """See :func:`gpuconv.functional.dropout3d`; only while training."""

    function = staticmethod(F.dropout3d)


class AlphaDropout(_Dropout):
    """See :func:`gpuconv.functional.alpha_dropout`; only while training."""

    function = staticmethod(F.alpha_dropout)


class FeatureAlphaDropout(_Dropout):
    """See :func:`gpuconv.functional.feature_alpha_dropout`; only while training."""

    function = staticmethod(F.feature_alpha_dropout)
