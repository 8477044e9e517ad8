"""Layers and networks, with PyTorch's names; ``predict``, ``get_weights``, ``set_weights``, ``summary`` are Keras's."""

from gpuconv.nn import init
from gpuconv.nn.layers import (
    AdaptiveAvgPool2d,
    AvgPool2d,
    Conv1d,
    Conv2d,
    CrossEntropyLoss,
    Dropout,
    Flatten,
    Linear,
    LogSoftmax,
    MaxPool1d,
    MaxPool2d,
    MSELoss,
    ReLU,
    Sigmoid,
    Softmax,
    SumPool2d,
    Tanh,
)
from gpuconv.nn.module import Module, Parameter
from gpuconv.nn.sequential import Sequential
from gpuconv.nn.summary import Summary

__all__ = [
    "AdaptiveAvgPool2d",
    "AvgPool2d",
    "Conv1d",
    "Conv2d",
    "CrossEntropyLoss",
    "Dropout",
    "Flatten",
    "Linear",
    "LogSoftmax",
    "MSELoss",
    "MaxPool1d",
    "MaxPool2d",
    "Module",
    "Parameter",
    "ReLU",
    "Sequential",
    "Sigmoid",
    "Softmax",
    "SumPool2d",
    "Summary",
    "Tanh",
    "init",
]
