"""Normalisation as modules, with PyTorch's names, arguments, defaults and states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from gpuconv import functional as F
from gpuconv.autograd import Tensor, overwrite
from gpuconv.backends import capturing
from gpuconv.dtypes import element_type
from gpuconv.geometry import integer
from gpuconv.nn.module import Module, Parameter

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "LocalResponseNorm",
    "RMSNorm",
]


def _reshaped(values: Any, shape: tuple[int, ...]) -> Any:
    return values.reshape(shape)


def _ones(shape: Any, dtype: Any) -> Parameter:
    return Parameter(np.ones(shape, element_type(dtype)))


def _zeros(shape: Any, dtype: Any) -> Parameter:
    return Parameter(np.zeros(shape, element_type(dtype)))


class _RunningNorm(Module):
    """Parameters and running statistics, one value a channel.

    Attributes:
        weight, bias: (C,), or None unless ``affine``.
        running_mean, running_var: (C,), and ``num_batches_tracked``, or None unless ``track_running_stats``.
    """

    weight: Parameter | None
    bias: Parameter | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None
    #: Numbers of dimensions of an input.
    ranks: ClassVar[tuple[int, ...]]

    def __init__(
        self, num_features: int, eps: float, momentum: float | None, affine: bool, track_running_stats: bool, dtype: Any
    ):
        super().__init__()
        self.num_features = integer(num_features, "num_features", minimum=1, op=type(self).__name__)
        self.eps, self.momentum = eps, momentum
        self.affine, self.track_running_stats = bool(affine), bool(track_running_stats)
        self.weight = _ones(num_features, dtype) if affine else None
        self.bias = _zeros(num_features, dtype) if affine else None
        tracked = self.track_running_stats
        self.register_buffer("running_mean", Tensor(np.zeros(num_features, element_type(dtype))) if tracked else None)
        self.register_buffer("running_var", Tensor(np.ones(num_features, element_type(dtype))) if tracked else None)
        self.register_buffer("num_batches_tracked", Tensor(np.zeros((), np.int64)) if tracked else None)

    def _check(self, input: Any) -> None:
        shape = tuple(input.shape)
        if len(shape) not in self.ranks:
            ranks = " or ".join(map(str, self.ranks))
            raise ValueError(f"{type(self).__name__}: input must have {ranks} dimensions, got shape {shape}")

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"track_running_stats={self.track_running_stats}"
        )


class _BatchNorm(_RunningNorm):
    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        dtype: Any = np.float32,
    ):
        super().__init__(num_features, eps, momentum, affine, track_running_stats, dtype)

    def forward(self, input: Any) -> Any:
        return F.batch_norm(input, **self._arguments(input))

    def with_relu(self, input: Any, residual: Any = None) -> Any:
        """``relu(self(input) + residual)`` in one pass over memory; see :func:`gpuconv.functional.batch_norm_relu`."""
        return F.batch_norm_relu(input, residual=residual, **self._arguments(input))

    def _arguments(self, input: Any) -> dict[str, Any]:
        """What the functions take beside the input; a batch is counted."""
        self._check(input)
        # Without running statistics, the batch's are used in evaluation, too.
        own = self.training or self.running_mean is None
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.training and self.num_batches_tracked is not None:
            count = self.num_batches_tracked.data
            overwrite(count, capturing.repeated(lambda: count + 1, count), "a count of batches")
            if self.momentum is None:  # the mean over all batches
                momentum = 1 / self.num_batches_tracked.item()
        return {
            "running_mean": self.running_mean,
            "running_var": self.running_var,
            "weight": self.weight,
            "bias": self.bias,
            "training": own,
            "momentum": momentum,
            "eps": self.eps,
        }


class BatchNorm1d(_BatchNorm):
    """Batch normalisation of (N, C) or (N, C, L); see :func:`gpuconv.functional.batch_norm`.

    Args:
        num_features: C.
        eps: see there.
        momentum: of the running statistics; None for the mean over all batches.
        affine: whether weight and bias are learned.
        track_running_stats: whether there are running statistics; without, the batch's are always used.
    """

    ranks = (2, 3)


class BatchNorm2d(_BatchNorm):
    """Batch normalisation of (N, C, H, W); arguments of :class:`BatchNorm1d`."""

    ranks = (4,)


class BatchNorm3d(_BatchNorm):
    """Batch normalisation of (N, C, D, H, W); arguments of :class:`BatchNorm1d`."""

    ranks = (5,)


class _InstanceNorm(_RunningNorm):
    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        *,
        dtype: Any = np.float32,
    ):
        super().__init__(num_features, eps, momentum, affine, track_running_stats, dtype)

    def forward(self, input: Any) -> Any:
        self._check(input)
        alone = len(input.shape) == self.ranks[0]
        batch = _reshaped(input, (1, *input.shape)) if alone else input
        own = self.training or not self.track_running_stats
        momentum = 0.0 if self.momentum is None else self.momentum
        result = F.instance_norm(
            batch, self.running_mean, self.running_var, self.weight, self.bias, own, momentum, self.eps
        )
        return _reshaped(result, tuple(input.shape)) if alone else result


class InstanceNorm1d(_InstanceNorm):
    """Instance normalisation of (N, C, L) or (C, L); see :func:`gpuconv.functional.instance_norm`."""

    ranks = (2, 3)


class InstanceNorm2d(_InstanceNorm):
    """Instance normalisation of (N, C, H, W) or (C, H, W); see :func:`gpuconv.functional.instance_norm`."""

    ranks = (3, 4)


class InstanceNorm3d(_InstanceNorm):
    """Instance normalisation of (N, C, D, H, W) or (C, D, H, W); see :func:`gpuconv.functional.instance_norm`."""

    ranks = (4, 5)


class LayerNorm(Module):
    """Normalisation over the last dimensions; see :func:`gpuconv.functional.layer_norm`.

    Attributes:
        weight, bias: of ``normalized_shape``, or None.
    """

    weight: Parameter | None
    bias: Parameter | None

    def __init__(
        self,
        normalized_shape: Any,
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        *,
        dtype: Any = np.float32,
    ):
        super().__init__()
        several = normalized_shape if isinstance(normalized_shape, Sequence) else (normalized_shape,)
        self.normalized_shape = tuple(integer(size, "normalized_shape", minimum=1, op="LayerNorm") for size in several)
        self.eps, self.elementwise_affine = eps, bool(elementwise_affine)
        self.weight = _ones(self.normalized_shape, dtype) if elementwise_affine else None
        self.bias = _zeros(self.normalized_shape, dtype) if elementwise_affine and bias else None

    def forward(self, input: Any) -> Any:
        return F.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"


class RMSNorm(Module):
    """Division by the root mean square of the last dimensions; see :func:`gpuconv.functional.rms_norm`."""

    weight: Parameter | None

    def __init__(
        self,
        normalized_shape: Any,
        eps: float | None = None,
        elementwise_affine: bool = True,
        *,
        dtype: Any = np.float32,
    ):
        super().__init__()
        several = normalized_shape if isinstance(normalized_shape, Sequence) else (normalized_shape,)
        self.normalized_shape = tuple(integer(size, "normalized_shape", minimum=1, op="RMSNorm") for size in several)
        self.eps, self.elementwise_affine = eps, bool(elementwise_affine)
        self.weight = _ones(self.normalized_shape, dtype) if elementwise_affine else None

    def forward(self, input: Any) -> Any:
        return F.rms_norm(input, self.normalized_shape, self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"


class GroupNorm(Module):
    """Normalisation by groups of channels; see :func:`gpuconv.functional.group_norm`.

    Attributes:
        weight, bias: (num_channels,), or None unless ``affine``.
    """

    weight: Parameter | None
    bias: Parameter | None

    def __init__(
        self, num_groups: int, num_channels: int, eps: float = 1e-5, affine: bool = True, *, dtype: Any = np.float32
    ):
        super().__init__()
        self.num_groups = integer(num_groups, "num_groups", minimum=1, op="GroupNorm")
        self.num_channels = integer(num_channels, "num_channels", minimum=1, op="GroupNorm")
        if num_channels % num_groups:
            raise ValueError(f"GroupNorm: num_groups={num_groups} does not divide num_channels={num_channels}")
        self.eps, self.affine = eps, bool(affine)
        self.weight = _ones(num_channels, dtype) if affine else None
        self.bias = _zeros(num_channels, dtype) if affine else None

    def forward(self, input: Any) -> Any:
        return F.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.affine}"


class LocalResponseNorm(Module):
    """Division by the activity of neighbouring channels; see :func:`gpuconv.functional.local_response_norm`."""

    def __init__(self, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0):
        super().__init__()
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k

    def forward(self, input: Any) -> Any:
        return F.local_response_norm(input, self.size, self.alpha, self.beta, self.k)

    def extra_repr(self) -> str:
        return f"{self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}"
