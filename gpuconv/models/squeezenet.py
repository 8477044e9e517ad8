"""SqueezeNet (Iandola et al., "AlexNet-level accuracy with 50x fewer parameters", 2016)."""

from __future__ import annotations

from typing import Any, ClassVar

from gpuconv import nn
from gpuconv.geometry import integer
from gpuconv.models.classifier import Classifier
from gpuconv.nn import init
from gpuconv.ops.rearrange import cat


class Fire(nn.Module):
    """A 1×1 convolution to few maps, and from those 1×1 and 3×3 ones side by side."""

    def __init__(self, channels: int, squeezed: int, expanded: int):
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.squeeze_activation = nn.ReLU(inplace=True)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand1x1_activation = nn.ReLU(inplace=True)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)
        self.expand3x3_activation = nn.ReLU(inplace=True)

    def forward(self, x: Any) -> Any:
        x = self.squeeze_activation(self.squeeze(x))
        return cat([self.expand1x1_activation(self.expand1x1(x)), self.expand3x3_activation(self.expand3x3(x))], 1)


class SqueezeNet(Classifier):
    """A convolution, eight fire modules, and a 1×1 convolution whose maps are averaged: one a class.

    Args:
        num_classes: outputs.
        dropout: probability, before the last convolution.
    """

    #: Maps and filter size of the first convolution.
    first: ClassVar[tuple[int, int]]
    #: Numbers of the fire modules behind which a max pooling stands.
    pooled: ClassVar[tuple[int, int]]

    def __init__(self, num_classes: int = 1000, dropout: float = 0.5):
        integer(num_classes, "num_classes", minimum=1, op=type(self).__name__)
        channels, size = self.first
        layers: list[nn.Module] = [nn.Conv2d(3, channels, size, stride=2), nn.ReLU(inplace=True)]
        layers.append(nn.MaxPool2d(3, 2, ceil_mode=True))
        for number, squeezed in enumerate((16, 16, 32, 32, 48, 48, 64, 64), start=1):
            layers.append(Fire(channels, squeezed, 4 * squeezed))
            channels = 8 * squeezed
            if number in self.pooled:
                layers.append(nn.MaxPool2d(3, 2, ceil_mode=True))
        last = nn.Conv2d(512, num_classes, 1)
        super().__init__(
            {
                "features": nn.Sequential(*layers),
                "classifier": nn.Sequential(
                    nn.Dropout(dropout), last, nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d((1, 1))
                ),
                "flatten": nn.Flatten(),
            },
            config={"num_classes": num_classes, "dropout": dropout},
            input_shape=(3, 224, 224),
            num_classes=num_classes,
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                if module is last:
                    init.normal_(module.weight, 0.0, 0.01)
                else:
                    init.kaiming_uniform_(module.weight)
                if module.bias is not None:
                    init.zeros_(module.bias)


class SqueezeNet10(SqueezeNet):
    """Version 1.0: 1,248,424 parameters."""

    first, pooled = (96, 7), (3, 7)


class SqueezeNet11(SqueezeNet):
    """Version 1.1, less than half the arithmetic: 1,235,496 parameters."""

    first, pooled = (64, 3), (2, 4)
