"""A network of gpuconv as one of PyTorch: the same layers with the same arguments and names, run in the same order.

Layers come from a table. A module with a forward of its own runs that very code, with torch's functions in place of
gpuconv's: what is compared is the arithmetic. That the code is the network it is said to be, other tests hold:
published numbers of parameters and of multiply-adds, and torchvision's names.
"""

from __future__ import annotations

import types
from typing import Any

import torch

from gpuconv import nn
from gpuconv.nn.sequential import Sequential


def _norm_relu(x: Any, norm: Any, relu: Any, residual: Any = None) -> Any:
    return relu(norm(x) if residual is None else norm(x) + residual)


def _conv_norm(x: Any, conv: Any, norm: Any, relu: Any = None, residual: Any = None) -> Any:
    return norm(conv(x)) if relu is None else _norm_relu(conv(x), norm, relu, residual)


_FUNCTIONS = {
    "F": torch.nn.functional,
    "cat": torch.cat,
    "chunk": torch.chunk,
    "conv_norm": _conv_norm,
    "norm_relu": _norm_relu,
}


def _biased(module: Any) -> bool:
    return module.bias is not None


def _normalization(kind: Any) -> Any:
    return lambda m: kind(m.num_features, m.eps, m.momentum, m.affine, m.track_running_stats)


_LAYERS: dict[type, Any] = {
    nn.Conv2d: lambda m: torch.nn.Conv2d(
        m.in_channels, m.out_channels, m.kernel_size, m.stride, m.padding, m.dilation, m.groups, _biased(m)
    ),
    nn.ConvTranspose2d: lambda m: torch.nn.ConvTranspose2d(
        m.in_channels, m.out_channels, m.kernel_size, m.stride, m.padding, m.output_padding, m.groups, _biased(m),
        m.dilation,
    ),
    nn.Linear: lambda m: torch.nn.Linear(m.in_features, m.out_features, _biased(m)),
    nn.BatchNorm2d: _normalization(torch.nn.BatchNorm2d),
    nn.ReLU: lambda m: torch.nn.ReLU(),
    nn.ReLU6: lambda m: torch.nn.ReLU6(),
    nn.MaxPool2d: lambda m: torch.nn.MaxPool2d(m.kernel_size, m.stride, m.padding, **m.options),
    nn.AvgPool2d: lambda m: torch.nn.AvgPool2d(m.kernel_size, m.stride, m.padding, **m.options),
    nn.AdaptiveAvgPool2d: lambda m: torch.nn.AdaptiveAvgPool2d(m.output_size),
    nn.LocalResponseNorm: lambda m: torch.nn.LocalResponseNorm(m.size, m.alpha, m.beta, m.k),
    nn.Flatten: lambda m: torch.nn.Flatten(m.start_dim, m.end_dim),
    nn.Dropout: lambda m: torch.nn.Dropout(m.p),
}  # fmt: skip


class Twin(torch.nn.Module):
    """A module with others inside."""

    def __init__(self, original: Any):
        super().__init__()
        for name, child in original.named_children():
            self.add_module(name, twin(child))
        for name, value in vars(original).items():
            if not name.startswith("_") and name != "training" and not isinstance(value, nn.Module):
                setattr(self, name, value)
        forward = type(original).forward
        if forward is Sequential.forward:
            self._run = self._one_after_the_other
        else:
            names = {**forward.__globals__, **_FUNCTIONS}
            self._run = types.MethodType(types.FunctionType(forward.__code__, names, forward.__name__), self)

    def _one_after_the_other(self, x: Any) -> Any:
        for child in self.children():
            x = child(x)
        return x

    def forward(self, *inputs: Any) -> Any:
        return self._run(*inputs)


def twin(original: Any) -> Any:
    """The module in PyTorch, with first values of its own: load the state of the original."""
    make = _LAYERS.get(type(original))
    return Twin(original) if make is None else make(original)
