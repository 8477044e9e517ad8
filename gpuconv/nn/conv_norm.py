"""A convolution and what stands behind it, batch normalisation, an addition, a ReLU, in few passes over memory.

While training, addition and ReLU are part of the normalisation's pass. In evaluation without a graph, the statistics
are constants: then normalisation and ReLU are part of the convolution, whose filters and bias are scaled beforehand.
"""

from __future__ import annotations

import math
from typing import Any

from gpuconv import functional as F
from gpuconv.autograd import is_grad_enabled, is_recording
from gpuconv.nn.layers import Conv2d, ReLU
from gpuconv.nn.module import Module
from gpuconv.nn.normalization import BatchNorm1d, BatchNorm2d, BatchNorm3d

__all__ = ["NORMS", "conv_norm", "folds", "norm_relu", "plain"]

NORMS = (BatchNorm1d, BatchNorm2d, BatchNorm3d)
#: The maps must have so many times the elements of the filters, and so many altogether, for scaling filters to be less
#: work than another pass over the maps.
_RATIO, _LEAST = 4, 2**16


def plain(module: Module, *kinds: type) -> bool:
    """Whether a module is of one of these very classes, and runs as the class says, without hooks.

    A subclass, or a module that was given a ``forward`` of its own, is called as it is.
    """
    return type(module) in kinds and "forward" not in module.__dict__ and "_hooked" not in module.__dict__


def norm_relu(input: Any, norm: Any, relu: Any, residual: Any = None) -> Any:
    """``relu(norm(input) + residual)``, in one pass where the modules are plain."""
    if plain(norm, *NORMS) and plain(relu, ReLU):
        return norm.with_relu(input, residual)
    y = norm(input)
    return relu(y if residual is None else y + residual)


def conv_norm(input: Any, conv: Any, norm: Any, relu: Any = None, residual: Any = None) -> Any:
    """``relu(norm(conv(input)) + residual)``; without ``relu``, ``norm(conv(input))``.

    Args:
        input: (N, C, H, W).
        conv, norm, relu: modules of any kind; of the plain ones (:func:`plain`) several run as one.
        residual: of the result's shape, or None; only with ``relu``.
    """
    if residual is None and folds(conv, norm, relu) and _pays(input, conv):
        return _folded(input, conv, norm, relu is not None)
    y = conv(input)
    return norm(y) if relu is None else norm_relu(y, norm, relu, residual)


def folds(conv: Any, norm: Any, relu: Any = None) -> bool:
    """Whether convolution, normalisation and ReLU (None for none) can run as one convolution now."""
    # What records operations, to write them to a file, wants the layers as they are.
    if is_grad_enabled() or is_recording() or not plain(conv, Conv2d) or conv.padding_mode != "zeros":
        return False
    if not plain(norm, BatchNorm2d) or norm.training or norm.running_mean is None:
        return False
    return conv.weight.dtype == norm.running_var.dtype and (relu is None or plain(relu, ReLU))


def _pays(input: Any, conv: Any) -> bool:
    """Whether the convolution's maps are much larger than its filters."""
    if len(input.shape) != 4:
        return False
    maps = math.prod(input.shape) // conv.in_channels // math.prod(conv.stride) * conv.out_channels
    return maps >= max(_LEAST, _RATIO * math.prod(conv.weight.shape))


def _folded(input: Any, conv: Any, norm: Any, relu: bool) -> Any:
    rate = (norm.running_var + norm.eps).rsqrt()
    if norm.weight is not None:
        rate = rate * norm.weight
    shift = -norm.running_mean if conv.bias is None else conv.bias - norm.running_mean
    bias = shift * rate if norm.bias is None else shift * rate + norm.bias
    weight, _, *options = conv.arguments()
    function = F.conv2d_relu if relu else F.conv2d
    return function(input, weight * rate.reshape(-1, 1, 1, 1), bias, *options)
