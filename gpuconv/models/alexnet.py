"""AlexNet (Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014) and ZF Net."""

from __future__ import annotations

from itertools import pairwise

from gpuconv import nn
from gpuconv.geometry import integer
from gpuconv.models.classifier import Classifier


def _deep_features(*maps: int) -> list[nn.Module]:
    """Convolutions of 3x3 from each of these numbers of maps to the next, with ReLU."""
    layers: list[nn.Module] = []
    for before, after in pairwise(maps):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
    return layers


class AlexNet(Classifier):
    """Five convolutions and three fully connected layers: 61,100,840 parameters for 1,000 classes.

    Args:
        num_classes: outputs.
        dropout: probability, before each hidden fully connected layer.
    """

    def __init__(self, num_classes: int = 1000, dropout: float = 0.5):
        integer(num_classes, "num_classes", minimum=1, op=type(self).__name__)
        super().__init__(
            {
                "features": self._features(),
                "avgpool": nn.AdaptiveAvgPool2d((6, 6)),
                "flatten": nn.Flatten(),
                "classifier": nn.Sequential(
                    nn.Dropout(dropout),
                    nn.Linear(256 * 6 * 6, 4096),
                    nn.ReLU(),
                    nn.Dropout(dropout),
                    nn.Linear(4096, 4096),
                    nn.ReLU(),
                    nn.Linear(4096, num_classes),
                ),
            },
            config={"num_classes": num_classes, "dropout": dropout},
            input_shape=(3, 224, 224),
            num_classes=num_classes,
        )

    @staticmethod
    def _features() -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(3, 64, 11, stride=4, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            *_deep_features(192, 384, 256, 256),
            nn.MaxPool2d(3, 2),
        )


class ZFNet(AlexNet):
    """AlexNet with smaller filters and steps in the first layers (Zeiler & Fergus, 2013): 62,357,608 parameters.

    Args:
        num_classes: outputs.
        dropout: probability, before each hidden fully connected layer.
    """

    @staticmethod
    def _features() -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(3, 96, 7, stride=2, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, padding=1),
            nn.LocalResponseNorm(5),
            nn.Conv2d(96, 256, 5, stride=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, padding=1),
            nn.LocalResponseNorm(5),
            *_deep_features(256, 384, 384, 256),
            nn.MaxPool2d(3, 2),
        )
