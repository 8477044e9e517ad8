"""DenseNet (Huang, Liu, van der Maaten & Weinberger, "Densely connected convolutional networks", 2016)."""

from __future__ import annotations

from typing import Any, ClassVar

from gpuconv import nn
from gpuconv.geometry import integer
from gpuconv.models.classifier import Classifier, global_average
from gpuconv.nn import init
from gpuconv.nn.conv_norm import conv_norm, norm_relu
from gpuconv.ops.rearrange import cat


class DenseLayer(nn.Module):
    """Normalisation, ReLU, 1×1 convolution to ``4 · growth`` maps, and again with 3×3 to ``growth``."""

    def __init__(self, channels: int, growth: int):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(channels, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Any) -> Any:
        y = norm_relu(x, self.norm1, self.relu1)
        return self.conv2(conv_norm(y, self.conv1, self.norm2, self.relu2))


class DenseBlock(nn.Module):
    """Layers, each of which takes the maps of all before it, and of the block's input."""

    def __init__(self, layers: int, channels: int, growth: int):
        super().__init__()
        for number in range(layers):
            self.add_module(f"denselayer{number + 1}", DenseLayer(channels + number * growth, growth))

    def forward(self, x: Any) -> Any:
        for layer in self.children():
            x = cat([x, layer(x)], 1)
        return x


class DenseNet(Classifier):
    """Four dense blocks, between which the maps are halved, in number, height and width.

    Args:
        num_classes: outputs.
    """

    growth: ClassVar[int]
    #: Layers of each block.
    depths: ClassVar[tuple[int, int, int, int]]

    def __init__(self, num_classes: int = 1000):
        integer(num_classes, "num_classes", minimum=1, op=type(self).__name__)
        channels = 2 * self.growth
        features: dict[str, nn.Module] = {
            "conv0": nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False),
            "norm0": nn.BatchNorm2d(channels),
            "relu0": nn.ReLU(inplace=True),
            "pool0": nn.MaxPool2d(3, 2, padding=1),
        }
        for number, depth in enumerate(self.depths, start=1):
            features[f"denseblock{number}"] = DenseBlock(depth, channels, self.growth)
            channels += depth * self.growth
            if number < len(self.depths):
                features[f"transition{number}"] = nn.Sequential(
                    {
                        "norm": nn.BatchNorm2d(channels),
                        "relu": nn.ReLU(inplace=True),
                        "conv": nn.Conv2d(channels, channels // 2, 1, bias=False),
                        "pool": nn.AvgPool2d(2),
                    }
                )
                channels //= 2
        features["norm5"] = nn.BatchNorm2d(channels)
        super().__init__(
            {
                "features": nn.Sequential(features),
                "relu": nn.ReLU(inplace=True),
                **global_average(),
                "classifier": nn.Linear(channels, num_classes),
            },
            config={"num_classes": num_classes},
            input_shape=(3, 224, 224),
            num_classes=num_classes,
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                init.kaiming_normal_(module.weight)
            elif isinstance(module, nn.Linear) and module.bias is not None:
                init.zeros_(module.bias)


class DenseNet121(DenseNet):
    """7,978,856 parameters."""

    growth, depths = 32, (6, 12, 24, 16)


class DenseNet161(DenseNet):
    """28,681,000 parameters."""

    growth, depths = 48, (6, 12, 36, 24)
