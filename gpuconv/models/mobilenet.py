"""MobileNetV2 (Sandler et al., "MobileNetV2: Inverted residuals and linear bottlenecks", 2018)."""

from __future__ import annotations

from typing import Any

from gpuconv import nn
from gpuconv.geometry import integer
from gpuconv.models.classifier import Classifier, global_average
from gpuconv.models.initial import for_relu

#: Of each group: expansion, maps, blocks, stride of the first one.
_GROUPS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def _convolution(channels: int, maps: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, maps, size, stride, padding=size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(maps),
        nn.ReLU6(inplace=True),
    )


class InvertedResidual(nn.Module):
    """1×1 to more maps, 3×3 map by map, 1×1 to fewer; the input is added where it has the result's shape."""

    def __init__(self, channels: int, maps: int, stride: int, expansion: int):
        super().__init__()
        hidden = channels * expansion
        layers = [_convolution(channels, hidden, 1)] if expansion > 1 else []
        self.conv = nn.Sequential(
            *layers,
            _convolution(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, maps, 1, bias=False),
            nn.BatchNorm2d(maps),
        )
        self.use_res_connect = stride == 1 and channels == maps

    def forward(self, x: Any) -> Any:
        return x + self.conv(x) if self.use_res_connect else self.conv(x)


class MobileNetV2(Classifier):
    """17 inverted residuals: 3,504,872 parameters for 1,000 classes.

    Args:
        num_classes: outputs.
        dropout: probability, before the fully connected layer.
    """

    def __init__(self, num_classes: int = 1000, dropout: float = 0.2):
        integer(num_classes, "num_classes", minimum=1, op=type(self).__name__)
        layers: list[nn.Module] = [_convolution(3, 32, 3, stride=2)]
        channels = 32
        for expansion, maps, blocks, stride in _GROUPS:
            for number in range(blocks):
                layers.append(InvertedResidual(channels, maps, 1 if number else stride, expansion))
                channels = maps
        super().__init__(
            {
                "features": nn.Sequential(*layers, _convolution(channels, 1280, 1)),
                **global_average(),
                "classifier": nn.Sequential(nn.Dropout(dropout), nn.Linear(1280, num_classes)),
            },
            config={"num_classes": num_classes, "dropout": dropout},
            input_shape=(3, 224, 224),
            num_classes=num_classes,
        )
        for_relu(self)
