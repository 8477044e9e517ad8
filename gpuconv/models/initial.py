"""First values of parameters that several networks share: those of torchvision's."""

from __future__ import annotations

from typing import Any

from gpuconv import nn
from gpuconv.nn import init

__all__ = ["for_relu"]


def for_relu(network: Any, *, linear: bool = True) -> None:
    """Filters normal with variance ``2 / fan_out`` (He et al., 2015), and ``linear`` weights with 0.01²; biases 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out")
        elif isinstance(module, nn.Linear) and linear:
            init.normal_(module.weight, 0.0, 0.01)
        else:
            continue
        if module.bias is not None:
            init.zeros_(module.bias)
