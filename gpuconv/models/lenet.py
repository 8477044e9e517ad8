"""LeNet-5 (LeCun, Bottou, Bengio & Haffner, 1998), with ReLU, max pooling and full connections between the maps."""

from __future__ import annotations

from collections.abc import Sequence

from gpuconv import nn
from gpuconv.geometry import integer
from gpuconv.models.classifier import Classifier


class LeNet5(Classifier):
    """32x32 → 6 maps of 5x5 → 2x2 max pool → 16 maps of 5x5 → 2x2 max pool → 120 → 84 → 10: 61,706 parameters.

    Differences from the paper: ReLU instead of a scaled tanh, max pooling instead of a trained average, every
    second-layer filter sees all six maps (the paper's table left some out, to save work and break symmetry), logits
    instead of radial basis functions.

    Args:
        num_classes: outputs.
        hidden: widths of the two hidden fully connected layers; (120, 84) in the paper, (120, 100) in some tutorials.
    """

    def __init__(self, num_classes: int = 10, hidden: Sequence[int] = (120, 84)):
        integer(num_classes, "num_classes", minimum=1, op="LeNet5")
        if len(hidden) != 2:
            raise ValueError(f"LeNet5: hidden must be the widths of two layers, got {tuple(hidden)}")
        first, second = (integer(width, "hidden", minimum=1, op="LeNet5") for width in hidden)
        super().__init__(
            {
                "conv1": nn.Conv2d(1, 6, 5),
                "relu1": nn.ReLU(),
                "pool1": nn.MaxPool2d(2),
                "conv2": nn.Conv2d(6, 16, 5),
                "relu2": nn.ReLU(),
                "pool2": nn.MaxPool2d(2),
                "flatten": nn.Flatten(),
                "fc1": nn.Linear(16 * 5 * 5, first),
                "relu3": nn.ReLU(),
                "fc2": nn.Linear(first, second),
                "relu4": nn.ReLU(),
                "fc3": nn.Linear(second, num_classes),
            },
            config={"num_classes": num_classes, "hidden": [first, second]},
            input_shape=(1, 32, 32),
            num_classes=num_classes,
        )
