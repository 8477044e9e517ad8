"""GoogLeNet (Szegedy et al., "Going deeper with convolutions", 2014), with batch normalisation."""

from __future__ import annotations

from typing import Any, NamedTuple

from gpuconv import functional as F
from gpuconv import nn
from gpuconv.geometry import flag, integer
from gpuconv.models.classifier import Classifier, global_average
from gpuconv.nn import init
from gpuconv.nn.conv_norm import conv_norm
from gpuconv.ops.rearrange import cat


class GoogLeNetOutputs(NamedTuple):
    """Logits of the network and of its two auxiliary heads, while it trains."""

    logits: Any
    aux_logits2: Any
    aux_logits1: Any


class BasicConv2d(nn.Module):
    """Convolution without bias, batch normalisation, ReLU."""

    def __init__(self, channels: int, maps: int, kernel_size: int, stride: int = 1, padding: int = 0):
        super().__init__()
        self.conv = nn.Conv2d(channels, maps, kernel_size, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(maps, eps=0.001)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Any) -> Any:
        return conv_norm(x, self.conv, self.bn, self.relu)


class Inception(nn.Module):
    """Four branches side by side: 1×1; 1×1 and 3×3; 1×1 and 3×3 again; max pooling and 1×1.

    The third one has 5×5 filters in the paper. torchvision's weights, which are TensorFlow's, have 3×3.
    """

    def __init__(self, channels: int, one: int, three: tuple[int, int], five: tuple[int, int], pooled: int):
        super().__init__()
        self.branch1 = BasicConv2d(channels, one, 1)
        self.branch2 = nn.Sequential(BasicConv2d(channels, three[0], 1), BasicConv2d(*three, 3, padding=1))
        self.branch3 = nn.Sequential(BasicConv2d(channels, five[0], 1), BasicConv2d(*five, 3, padding=1))
        self.branch4 = nn.Sequential(
            nn.MaxPool2d(3, stride=1, padding=1, ceil_mode=True), BasicConv2d(channels, pooled, 1)
        )

    def forward(self, x: Any) -> Any:
        return cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class InceptionAux(nn.Module):
    """A classifier on maps from the middle of the network: gradients for the layers below, while it trains."""

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        self.conv = BasicConv2d(channels, 128, 1)
        self.fc1 = nn.Linear(2048, 1024)
        self.fc2 = nn.Linear(1024, num_classes)
        self.dropout = nn.Dropout(0.7)

    def forward(self, x: Any) -> Any:
        x = F.flatten(self.conv(F.adaptive_avg_pool2d(x, (4, 4))), 1)
        return self.fc2(self.dropout(F.relu(self.fc1(x))))


class GoogLeNet(Classifier):
    """Nine inception modules: 6,624,904 parameters for 1,000 classes, without the auxiliary heads.

    Args:
        num_classes: outputs.
        aux_logits: with the two auxiliary heads. While training, forward then returns :class:`GoogLeNetOutputs`; their
            losses count 0.3 in the paper.
        dropout: probability, before the fully connected layer.
    """

    def __init__(self, num_classes: int = 1000, aux_logits: bool = False, dropout: float = 0.2):
        integer(num_classes, "num_classes", minimum=1, op=type(self).__name__)
        aux_logits = flag(aux_logits, "aux_logits", op="GoogLeNet")
        heads = {"aux1": InceptionAux(512, num_classes), "aux2": InceptionAux(528, num_classes)} if aux_logits else {}
        super().__init__(
            {
                "conv1": BasicConv2d(3, 64, 7, stride=2, padding=3),
                "maxpool1": nn.MaxPool2d(3, 2, ceil_mode=True),
                "conv2": BasicConv2d(64, 64, 1),
                "conv3": BasicConv2d(64, 192, 3, padding=1),
                "maxpool2": nn.MaxPool2d(3, 2, ceil_mode=True),
                "inception3a": Inception(192, 64, (96, 128), (16, 32), 32),
                "inception3b": Inception(256, 128, (128, 192), (32, 96), 64),
                "maxpool3": nn.MaxPool2d(3, 2, ceil_mode=True),
                "inception4a": Inception(480, 192, (96, 208), (16, 48), 64),
                "inception4b": Inception(512, 160, (112, 224), (24, 64), 64),
                "inception4c": Inception(512, 128, (128, 256), (24, 64), 64),
                "inception4d": Inception(512, 112, (144, 288), (32, 64), 64),
                "inception4e": Inception(528, 256, (160, 320), (32, 128), 128),
                "maxpool4": nn.MaxPool2d(2, 2, ceil_mode=True),
                "inception5a": Inception(832, 256, (160, 320), (32, 128), 128),
                "inception5b": Inception(832, 384, (192, 384), (48, 128), 128),
                **heads,
                **global_average(),
                "dropout": nn.Dropout(dropout),
                "fc": nn.Linear(1024, num_classes),
            },
            config={"num_classes": num_classes, "aux_logits": aux_logits, "dropout": dropout},
            input_shape=(3, 224, 224),
            num_classes=num_classes,
        )
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                init.trunc_normal_(module.weight, 0.0, 0.01, -2.0, 2.0)

    def forward(self, input: Any) -> Any:
        x, logits = input, {}
        for name, module in self.named_children():
            if not name.startswith("aux"):
                x = module(x)
            head = {"inception4a": "aux1", "inception4d": "aux2"}.get(name)
            if head is not None and self.training and self.config["aux_logits"]:
                logits[head] = getattr(self, head)(x)
        return GoogLeNetOutputs(x, logits["aux2"], logits["aux1"]) if logits else x
