"""ResNet (He, Zhang, Ren & Sun, "Deep residual learning for image recognition", 2015)."""

from __future__ import annotations

from typing import Any, ClassVar

from gpuconv import nn
from gpuconv.geometry import integer
from gpuconv.models.classifier import Classifier, global_average
from gpuconv.models.initial import for_relu
from gpuconv.nn.conv_norm import conv_norm


def _downsample(channels: int, maps: int, stride: int) -> nn.Sequential | None:
    """What brings a block's input into the shape of its result; None where it has it."""
    if stride == 1 and channels == maps:
        return None
    return nn.Sequential(nn.Conv2d(channels, maps, 1, stride, bias=False), nn.BatchNorm2d(maps))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions, and the input added: (N, channels, H, W) → (N, width, H / stride, W / stride)."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _downsample(channels, width, stride)

    def forward(self, x: Any) -> Any:
        y = conv_norm(x, self.conv1, self.bn1, self.relu)
        return conv_norm(y, self.conv2, self.bn2, self.relu, x if self.downsample is None else self.downsample(x))


class Bottleneck(nn.Module):
    """A 3×3 convolution between two of 1×1, and the input added; the result has ``4 · width`` maps.

    The stride is that of the 3×3 convolution (ResNet v1.5), not of the first 1×1 as in the paper.
    """

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int = 1):
        super().__init__()
        maps = width * self.expansion
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, maps, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(maps)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _downsample(channels, maps, stride)

    def forward(self, x: Any) -> Any:
        y = conv_norm(x, self.conv1, self.bn1, self.relu)
        y = conv_norm(y, self.conv2, self.bn2, self.relu)
        return conv_norm(y, self.conv3, self.bn3, self.relu, x if self.downsample is None else self.downsample(x))


class ResNet(Classifier):
    """A 7×7 convolution, four groups of residual blocks, global average pooling, one fully connected layer.

    Args:
        num_classes: outputs.
    """

    block: ClassVar[type[BasicBlock] | type[Bottleneck]]
    #: Blocks of each group.
    depths: ClassVar[tuple[int, int, int, int]]

    def __init__(self, num_classes: int = 1000):
        integer(num_classes, "num_classes", minimum=1, op=type(self).__name__)
        layers: dict[str, nn.Module] = {
            "conv1": nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False),
            "bn1": nn.BatchNorm2d(64),
            "relu": nn.ReLU(inplace=True),
            "maxpool": nn.MaxPool2d(3, 2, padding=1),
        }
        channels = 64
        for number, depth in enumerate(self.depths):
            width, group = 64 * 2**number, []
            for position in range(depth):
                group.append(self.block(channels, width, 2 if number and not position else 1))
                channels = width * self.block.expansion
            layers[f"layer{number + 1}"] = nn.Sequential(*group)
        layers |= {**global_average(), "fc": nn.Linear(channels, num_classes)}
        config = {"num_classes": num_classes}
        super().__init__(layers, config=config, input_shape=(3, 224, 224), num_classes=num_classes)
        for_relu(self, linear=False)


class ResNet20(Classifier):
    """For images of 32x32, as of CIFAR-10 (section 4.2 of the paper): 272,474 parameters for 10 classes.

    A 3×3 convolution, three groups of three basic blocks with 16, 32 and 64 maps, global average pooling, one fully
    connected layer. Where the number of maps grows, the input comes through a 1×1 convolution; the paper fills up with
    zeros there. Images of other sizes are taken, too.

    Args:
        num_classes: outputs.
    """

    def __init__(self, num_classes: int = 10):
        integer(num_classes, "num_classes", minimum=1, op="ResNet20")
        layers: dict[str, nn.Module] = {
            "conv1": nn.Conv2d(3, 16, 3, padding=1, bias=False),
            "bn1": nn.BatchNorm2d(16),
            "relu": nn.ReLU(inplace=True),
        }
        channels = 16
        for number, width in enumerate((16, 32, 64)):
            first = BasicBlock(channels, width, 2 if number else 1)
            layers[f"layer{number + 1}"] = nn.Sequential(first, BasicBlock(width, width), BasicBlock(width, width))
            channels = width
        layers |= {**global_average(), "fc": nn.Linear(channels, num_classes)}
        config = {"num_classes": num_classes}
        super().__init__(layers, config=config, input_shape=(3, 32, 32), num_classes=num_classes)
        for_relu(self, linear=False)


class ResNet18(ResNet):
    """11,689,512 parameters."""

    block, depths = BasicBlock, (2, 2, 2, 2)


class ResNet34(ResNet):
    """21,797,672 parameters."""

    block, depths = BasicBlock, (3, 4, 6, 3)


class ResNet50(ResNet):
    """25,557,032 parameters."""

    block, depths = Bottleneck, (3, 4, 6, 3)


class ResNet101(ResNet):
    """44,549,160 parameters."""

    block, depths = Bottleneck, (3, 4, 23, 3)
