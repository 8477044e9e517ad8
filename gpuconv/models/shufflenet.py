"""ShuffleNet V2 (Ma, Zhang, Zheng & Sun, "Practical guidelines for efficient CNN architecture design", 2018)."""

from __future__ import annotations

from typing import Any, ClassVar

from gpuconv import functional as F
from gpuconv import nn
from gpuconv.geometry import integer
from gpuconv.models.classifier import Classifier, global_average
from gpuconv.ops.rearrange import cat, chunk


def _pointwise(channels: int, maps: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, maps, 1, bias=False), nn.BatchNorm2d(maps), nn.ReLU(inplace=True)]


def _depthwise(channels: int, stride: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False),
        nn.BatchNorm2d(channels),
    ]


class InvertedResidual(nn.Module):
    """Half of the maps pass, the others are convolved, all are shuffled; with stride 2 all are convolved, twice."""

    def __init__(self, channels: int, maps: int, stride: int):
        super().__init__()
        half = maps // 2
        self.stride = stride
        self.branch1 = nn.Sequential(
            *([*_depthwise(channels, stride), *_pointwise(channels, half)] if stride > 1 else [])
        )
        self.branch2 = nn.Sequential(
            *_pointwise(channels if stride > 1 else half, half), *_depthwise(half, stride), *_pointwise(half, half)
        )

    def forward(self, x: Any) -> Any:
        if self.stride == 1:
            kept, changed = chunk(x, 2, 1)
            return F.channel_shuffle(cat([kept, self.branch2(changed)], 1), 2)
        return F.channel_shuffle(cat([self.branch1(x), self.branch2(x)], 1), 2)


class ShuffleNetV2(Classifier):
    """Three stages of shuffled blocks, global average pooling, one fully connected layer.

    Args:
        num_classes: outputs.
    """

    #: Maps of the first convolution, the stages, and the last convolution.
    maps: ClassVar[tuple[int, int, int, int, int]]

    def __init__(self, num_classes: int = 1000):
        integer(num_classes, "num_classes", minimum=1, op=type(self).__name__)
        first, *stages, last = self.maps
        layers: dict[str, nn.Module] = {
            "conv1": nn.Sequential(
                nn.Conv2d(3, first, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(first), nn.ReLU(inplace=True)
            ),
            "maxpool": nn.MaxPool2d(3, 2, padding=1),
        }
        channels = first
        for number, (maps, blocks) in enumerate(zip(stages, (4, 8, 4), strict=True), start=2):
            rest = [InvertedResidual(maps, maps, 1) for _ in range(blocks - 1)]
            layers[f"stage{number}"] = nn.Sequential(InvertedResidual(channels, maps, 2), *rest)
            channels = maps
        super().__init__(
            {
                **layers,
                "conv5": nn.Sequential(*_pointwise(channels, last)),
                **global_average(),
                "fc": nn.Linear(last, num_classes),
            },
            config={"num_classes": num_classes},
            input_shape=(3, 224, 224),
            num_classes=num_classes,
        )


class ShuffleNetV2x10(ShuffleNetV2):
    """2,278,604 parameters."""

    maps = (24, 116, 232, 464, 1024)
