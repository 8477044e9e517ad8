"""U-Net (Ronneberger, Fischer & Brox, "Convolutional networks for biomedical image segmentation", 2015)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpuconv import nn
from gpuconv.geometry import integer
from gpuconv.models.classifier import Classifier
from gpuconv.ops.rearrange import cat


def _double(channels: int, maps: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, maps, 3, padding=1, bias=False),
        nn.BatchNorm2d(maps),
        nn.ReLU(inplace=True),
        nn.Conv2d(maps, maps, 3, padding=1, bias=False),
        nn.BatchNorm2d(maps),
        nn.ReLU(inplace=True),
    )


class UNet(Classifier):
    """Logits for each pixel: down in levels by max pooling, up again by transposed convolutions, maps handed across.

    Differences from the paper: padding, so that the result is as large as the input, and batch normalisation. With the
    default arguments it has 31,037,698 parameters.

    Args:
        num_classes: maps of the result.
        in_channels: maps of the input.
        widths: maps of each level, from the top; the input's sizes must be at least ``2 ** (levels - 1)``.
    """

    def __init__(self, num_classes: int = 2, in_channels: int = 3, widths: Sequence[int] = (64, 128, 256, 512, 1024)):
        integer(num_classes, "num_classes", minimum=1, op="UNet")
        integer(in_channels, "in_channels", minimum=1, op="UNet")
        widths = [integer(width, "widths", minimum=1, op="UNet") for width in widths]
        if len(widths) < 2:
            raise ValueError(f"UNet: widths must have at least two levels, got {tuple(widths)}")
        above = widths[:-1]
        layers: dict[str, nn.Module] = {}
        for level, (channels, maps) in enumerate(zip([in_channels, *above], widths, strict=True), start=1):
            layers[f"down{level}"] = _double(channels, maps)
        layers["pool"] = nn.MaxPool2d(2)
        for level in range(len(above), 0, -1):
            layers[f"up{level}"] = nn.ConvTranspose2d(widths[level], widths[level - 1], 2, stride=2)
            layers[f"merge{level}"] = _double(2 * widths[level - 1], widths[level - 1])
        layers["last"] = nn.Conv2d(widths[0], num_classes, 1)
        super().__init__(
            layers,
            config={"num_classes": num_classes, "in_channels": in_channels, "widths": widths},
            input_shape=(in_channels, 128, 128),
            num_classes=num_classes,
        )

    def forward(self, input: Any) -> Any:
        levels = len(self.config["widths"])
        pool, last = self._modules["pool"], self._modules["last"]
        x = self._modules["down1"](input)
        across = [x]
        for level in range(2, levels + 1):
            x = self._modules[f"down{level}"](pool(x))
            across.append(x)
        for level in range(levels - 1, 0, -1):
            skipped = across[level - 1]
            # Of a size that two does not divide, pooling has lost a row, which comes back here.
            x = self._modules[f"up{level}"](x, output_size=skipped.shape[2:])
            x = self._modules[f"merge{level}"](cat([skipped, x], 1))
        return last(x)
