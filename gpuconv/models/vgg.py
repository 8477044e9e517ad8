"""VGG (Simonyan & Zisserman, "Very deep convolutional networks for large-scale image recognition", 2014)."""

from __future__ import annotations

from typing import ClassVar

from gpuconv import nn
from gpuconv.geometry import integer
from gpuconv.models.classifier import Classifier
from gpuconv.models.initial import for_relu


class VGG(Classifier):
    """Blocks of 3×3 convolutions, a 2×2 max pooling behind each, and three fully connected layers.

    Args:
        num_classes: outputs.
        dropout: probability, behind each hidden fully connected layer.
    """

    #: Convolutions of each block.
    blocks_of: ClassVar[tuple[int, ...]]
    batch_norm: ClassVar[bool] = False

    def __init__(self, num_classes: int = 1000, dropout: float = 0.5):
        integer(num_classes, "num_classes", minimum=1, op=type(self).__name__)
        layers: list[nn.Module] = []
        channels = 3
        for maps, convolutions in zip((64, 128, 256, 512, 512), self.blocks_of, strict=True):
            for _ in range(convolutions):
                layers.append(nn.Conv2d(channels, maps, 3, padding=1))
                layers += [nn.BatchNorm2d(maps)] * self.batch_norm
                layers.append(nn.ReLU())
                channels = maps
            layers.append(nn.MaxPool2d(2))
        super().__init__(
            {
                "features": nn.Sequential(*layers),
                "avgpool": nn.AdaptiveAvgPool2d((7, 7)),
                "flatten": nn.Flatten(),
                "classifier": nn.Sequential(
                    nn.Linear(512 * 7 * 7, 4096),
                    nn.ReLU(),
                    nn.Dropout(dropout),
                    nn.Linear(4096, 4096),
                    nn.ReLU(),
                    nn.Dropout(dropout),
                    nn.Linear(4096, num_classes),
                ),
            },
            config={"num_classes": num_classes, "dropout": dropout},
            input_shape=(3, 224, 224),
            num_classes=num_classes,
        )
        for_relu(self)


class VGG11(VGG):
    """8 convolutions: 132,863,336 parameters."""

    blocks_of = (1, 1, 2, 2, 2)


class VGG13(VGG):
    """10 convolutions: 133,047,848 parameters."""

    blocks_of = (2, 2, 2, 2, 2)


class VGG16(VGG):
    """13 convolutions: 138,357,544 parameters."""

    blocks_of = (2, 2, 3, 3, 3)


class VGG19(VGG):
    """16 convolutions: 143,667,240 parameters."""

    blocks_of = (2, 2, 4, 4, 4)


class VGG11BN(VGG11):
    """VGG-11 with batch normalisation: 132,868,840 parameters."""

    batch_norm = True


class VGG13BN(VGG13):
    """VGG-13 with batch normalisation: 133,053,736 parameters."""

    batch_norm = True


class VGG16BN(VGG16):
    """VGG-16 with batch normalisation: 138,365,992 parameters."""

    batch_norm = True


class VGG19BN(VGG19):
    """VGG-19 with batch normalisation: 143,678,248 parameters."""

    batch_norm = True
