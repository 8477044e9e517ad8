"""Networks, a file a family, and the table by which ``gpuconv.load`` and the command line know them.

Where torchvision has a network, modules have its names: a ``state_dict`` of one loads into the other.
"""

from __future__ import annotations

from typing import Any

from gpuconv.models.alexnet import AlexNet, ZFNet
from gpuconv.models.classifier import Classifier
from gpuconv.models.densenet import DenseNet121, DenseNet161
from gpuconv.models.googlenet import GoogLeNet
from gpuconv.models.lenet import LeNet5
from gpuconv.models.mobilenet import MobileNetV2
from gpuconv.models.resnet import ResNet18, ResNet20, ResNet34, ResNet50, ResNet101
from gpuconv.models.shufflenet import ShuffleNetV2x10
from gpuconv.models.squeezenet import SqueezeNet10, SqueezeNet11
from gpuconv.models.unet import UNet
from gpuconv.models.vgg import VGG11, VGG11BN, VGG13, VGG13BN, VGG16, VGG16BN, VGG19, VGG19BN
from gpuconv.names import did_you_mean

__all__ = [
    "MODELS",
    "VGG11",
    "VGG11BN",
    "VGG13",
    "VGG13BN",
    "VGG16",
    "VGG16BN",
    "VGG19",
    "VGG19BN",
    "AlexNet",
    "Classifier",
    "DenseNet121",
    "DenseNet161",
    "GoogLeNet",
    "LeNet5",
    "MobileNetV2",
    "ResNet18",
    "ResNet20",
    "ResNet34",
    "ResNet50",
    "ResNet101",
    "ShuffleNetV2x10",
    "SqueezeNet10",
    "SqueezeNet11",
    "UNet",
    "ZFNet",
    "alexnet",
    "build",
    "densenet121",
    "densenet161",
    "googlenet",
    "lenet5",
    "mobilenet_v2",
    "resnet18",
    "resnet20",
    "resnet34",
    "resnet50",
    "resnet101",
    "shufflenet_v2_x1_0",
    "squeezenet1_0",
    "squeezenet1_1",
    "unet",
    "vgg11",
    "vgg11_bn",
    "vgg13",
    "vgg13_bn",
    "vgg16",
    "vgg16_bn",
    "vgg19",
    "vgg19_bn",
    "zfnet",
]

#: name on the command line and in files -> class
MODELS: dict[str, type[Classifier]] = {
    "lenet5": LeNet5,
    "alexnet": AlexNet,
    "zfnet": ZFNet,
    "vgg11": VGG11,
    "vgg13": VGG13,
    "vgg16": VGG16,
    "vgg19": VGG19,
    "vgg11_bn": VGG11BN,
    "vgg13_bn": VGG13BN,
    "vgg16_bn": VGG16BN,
    "vgg19_bn": VGG19BN,
    "resnet20": ResNet20,
    "resnet18": ResNet18,
    "resnet34": ResNet34,
    "resnet50": ResNet50,
    "resnet101": ResNet101,
    "googlenet": GoogLeNet,
    "densenet121": DenseNet121,
    "densenet161": DenseNet161,
    "squeezenet1_0": SqueezeNet10,
    "squeezenet1_1": SqueezeNet11,
    "mobilenet_v2": MobileNetV2,
    "shufflenet_v2_x1_0": ShuffleNetV2x10,
    "unet": UNet,
}

# By torchvision's names, too: models.resnet18(num_classes=10).
alexnet, zfnet, googlenet, mobilenet_v2, unet, lenet5 = AlexNet, ZFNet, GoogLeNet, MobileNetV2, UNet, LeNet5
vgg11, vgg13, vgg16, vgg19 = VGG11, VGG13, VGG16, VGG19
vgg11_bn, vgg13_bn, vgg16_bn, vgg19_bn = VGG11BN, VGG13BN, VGG16BN, VGG19BN
resnet18, resnet20, resnet34, resnet50, resnet101 = ResNet18, ResNet20, ResNet34, ResNet50, ResNet101
densenet121, densenet161 = DenseNet121, DenseNet161
squeezenet1_0, squeezenet1_1, shufflenet_v2_x1_0 = SqueezeNet10, SqueezeNet11, ShuffleNetV2x10


def build(name: str, **arguments: Any) -> Classifier:
    """Return a new model of the table by its name.

    Raises:
        ValueError: no such model; the nearest name is suggested.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; there are {', '.join(MODELS)}{did_you_mean(name, MODELS)}")
    return MODELS[name](**arguments)
