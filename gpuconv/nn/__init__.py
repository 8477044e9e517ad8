"""Layers and networks with PyTorch's names. ``predict``, ``get_weights``, ``set_weights``, ``summary`` are Keras's."""

from gpuconv.nn import (
    activations,
    containers,
    functional,
    init,
    layers,
    losses,
    normalization,
    pooling,
    rearranging,
    transposed,
    utils,
)
from gpuconv.nn.activations import *
from gpuconv.nn.containers import *
from gpuconv.nn.layers import *
from gpuconv.nn.losses import *
from gpuconv.nn.module import Module, Parameter
from gpuconv.nn.normalization import *
from gpuconv.nn.pooling import *
from gpuconv.nn.rearranging import *
from gpuconv.nn.sequential import Sequential
from gpuconv.nn.summary import Summary
from gpuconv.nn.transposed import *

__all__ = ["Module", "Parameter", "Sequential", "Summary", "functional", "init", "utils"]
__all__ += activations.__all__
__all__ += containers.__all__
__all__ += layers.__all__
__all__ += losses.__all__
__all__ += normalization.__all__
__all__ += pooling.__all__
__all__ += rearranging.__all__
__all__ += transposed.__all__
