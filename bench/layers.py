"""The layers that kernels are judged and timed on; what an operation has to do on one says ``kernels/operations.py``.

``LAYERS`` is the table: an operation that is not in it is judged and timed on no layer. Sizes are those of the
networks' papers, float32, and those of torchvision where it differs from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpuconv.geometry import (
    BlockGeometry,
    BlockPairGeometry,
    ChainGeometry,
    Conv2dGeometry,
    ImageBatchGeometry,
    PartialSums,
    Pool2dGeometry,
    UpdateGeometry,
)

#: Images a batch: LeNet is so small that a useful batch is larger.
_LENET, _LARGE = 128, 32


def _conv(n: int, c: int, size: int, k: int, window: int, **options: Any) -> Conv2dGeometry:
    groups = options.get("groups", 1)
    return Conv2dGeometry.of((n, c, size, size), (k, c // groups, window, window), **options)


def _bottleneck(stage: str, size: int, wide: int, narrow: int) -> dict[str, Conv2dGeometry]:
    return {
        f"resnet50.{stage}-reduce": _conv(_LARGE, wide, size, narrow, 1),
        f"resnet50.{stage}-3x3": _conv(_LARGE, narrow, size, narrow, 3, padding=1),
        f"resnet50.{stage}-expand": _conv(_LARGE, narrow, size, wide, 1),
    }


def _depthwise(size: int, channels: int, stride: int = 1) -> Conv2dGeometry:
    return _conv(_LARGE, channels, size, channels, 3, stride=stride, padding=1, groups=channels)


CONVOLUTIONS: dict[str, Conv2dGeometry] = {
    "lenet5.conv1": _conv(_LENET, 1, 32, 6, 5),
    "lenet5.conv2": _conv(_LENET, 6, 14, 16, 5),
    "alexnet.conv1": _conv(_LARGE, 3, 224, 64, 11, stride=4, padding=2),
    "alexnet.conv2": _conv(_LARGE, 64, 27, 192, 5, padding=2),
    "alexnet.conv3": _conv(_LARGE, 192, 13, 384, 3, padding=1),
    "alexnet.conv4": _conv(_LARGE, 384, 13, 256, 3, padding=1),
    "alexnet.conv5": _conv(_LARGE, 256, 13, 256, 3, padding=1),
    "vgg16.conv1_1": _conv(_LARGE, 3, 224, 64, 3, padding=1),
    "vgg16.conv1_2": _conv(_LARGE, 64, 224, 64, 3, padding=1),
    "vgg16.conv2_2": _conv(_LARGE, 128, 112, 128, 3, padding=1),
    "vgg16.conv3_2": _conv(_LARGE, 256, 56, 256, 3, padding=1),
    "vgg16.conv4_2": _conv(_LARGE, 512, 28, 512, 3, padding=1),
    "vgg16.conv5_1": _conv(_LARGE, 512, 14, 512, 3, padding=1),
    "resnet50.conv1": _conv(_LARGE, 3, 224, 64, 7, stride=2, padding=3),
    **_bottleneck("conv2", 56, 256, 64),
    **_bottleneck("conv3", 28, 512, 128),
    **_bottleneck("conv4", 14, 1024, 256),
    **_bottleneck("conv5", 7, 2048, 512),
    # The first block of a stage halves the image: in its 3x3, and in the 1x1 beside it.
    "resnet50.conv3-3x3-stride2": _conv(_LARGE, 128, 56, 128, 3, stride=2, padding=1),
    "resnet50.conv3-shortcut": _conv(_LARGE, 256, 56, 512, 1, stride=2),
    "mobilenet2.depthwise-112": _depthwise(112, 32),
    "mobilenet2.depthwise-56-stride2": _depthwise(56, 144, stride=2),
    "mobilenet2.depthwise-14": _depthwise(14, 576),
    "mobilenet2.depthwise-7": _depthwise(7, 960),
}

#: Images, channels, size and window of GPU MODE's conv2d, which has as many filters as channels.
_GPU_MODE = (4, 64, 128, 3), (4, 64, 128, 5), (2, 128, 256, 3), (2, 128, 256, 5), (1, 256, 512, 3)
#: Convolutions of public tasks for kernels: of KernelBench (levels 1 to 3: AlexNet's first layer, 3x3 on large maps,
#: the one before a ReLU and a bias, LeNet-5 on 4096 images) and of GPU MODE, whose windows stay inside. Forward only.
TASKS: dict[str, Conv2dGeometry] = {
    "kernelbench.alexnet-conv1": _conv(256, 3, 224, 96, 11, stride=4, padding=2),
    "kernelbench.conv-1024": _conv(16, 16, 1024, 128, 3),
    "kernelbench.conv-relu-bias": _conv(128, 64, 128, 128, 3),
    "kernelbench.lenet5-conv1": _conv(4096, 1, 32, 6, 5),
    "kernelbench.lenet5-conv2": _conv(4096, 6, 14, 16, 5),
    **{f"gpumode.conv2d-{size}-{window}x{window}": _conv(n, c, size, c, window) for n, c, size, window in _GPU_MODE},
}

MAX_POOLINGS: dict[str, Pool2dGeometry] = {
    "lenet5.pool1": Pool2dGeometry.of((_LENET, 6, 28, 28), 2),
    "lenet5.pool2": Pool2dGeometry.of((_LENET, 16, 10, 10), 2),
    "alexnet.pool1": Pool2dGeometry.of((_LARGE, 64, 55, 55), 3, stride=2),
    "vgg16.pool1": Pool2dGeometry.of((_LARGE, 64, 224, 224), 2),
    "resnet50.pool1": Pool2dGeometry.of((_LARGE, 64, 112, 112), 3, stride=2, padding=1),
}

BLOCKS: dict[str, BlockGeometry] = {
    "lenet5.block1": BlockGeometry(CONVOLUTIONS["lenet5.conv1"], MAX_POOLINGS["lenet5.pool1"]),
    "lenet5.block2": BlockGeometry(CONVOLUTIONS["lenet5.conv2"], MAX_POOLINGS["lenet5.pool2"]),
}

BLOCK_PAIRS: dict[str, BlockPairGeometry] = {"lenet5.blocks": BlockPairGeometry(*BLOCKS.values())}

#: LeNet-5's blocks on KernelBench's 4096 images. Forward only.
TASK_BLOCKS: dict[str, BlockGeometry] = {
    f"kernelbench.lenet5-block{i}": BlockGeometry(
        TASKS[f"kernelbench.lenet5-conv{i}"], Pool2dGeometry.of(TASKS[f"kernelbench.lenet5-conv{i}"].output_shape, 2)
    )
    for i in (1, 2)
}

#: The fully connected layers behind LeNet's maps.
CLASSIFIERS: dict[str, ChainGeometry] = {
    "lenet5.classifier": ChainGeometry(_LENET, (400, 120, 84, 10), (True, True, False))
}

#: Those of KernelBench's LeNet-5, which has 20 classes. Forward only.
TASK_CLASSIFIERS: dict[str, ChainGeometry] = {
    "kernelbench.lenet5-classifier": ChainGeometry(4096, (400, 120, 84, 20), (True, True, False))
}

AVERAGE_POOLINGS: dict[str, Pool2dGeometry] = {
    "lenet5.pool1": MAX_POOLINGS["lenet5.pool1"],
    "resnet50.pool2": Pool2dGeometry.of((_LARGE, 2048, 7, 7), 7, op="avg_pool2d"),
}

#: Results of convolutions, which go through a ReLU.
MAPS: dict[str, tuple[int, ...]] = {
    "lenet5.relu1": CONVOLUTIONS["lenet5.conv1"].output_shape,
    "lenet5.relu2": CONVOLUTIONS["lenet5.conv2"].output_shape,
    "resnet50.relu2": CONVOLUTIONS["resnet50.conv2-expand"].output_shape,
}

#: Maps that batch normalisation goes through: images, channels, positions.
NORMS: dict[str, tuple[int, int, int]] = {
    "resnet50.norm2": (_LARGE, 64, 56 * 56),
    "resnet50.norm5": (_LARGE, 2048, 7 * 7),
}

#: Logits: rows and classes.
LOGITS: dict[str, tuple[int, int]] = {"lenet5.loss": (_LENET, 10), "resnet50.loss": (_LARGE, 1000)}

#: Elements of all parameters of a network.
PARAMETERS: dict[str, tuple[int, ...]] = {"lenet5.parameters": (150, 6, 2400, 16, 48000, 120, 10080, 84, 840, 10)}
#: The same, with the gradients of the convolutions as they are after a batch of 64.
PARAMETERS_OF_PARTS: dict[str, UpdateGeometry] = {
    name: UpdateGeometry(sizes, (PartialSums((0, 1), 128), PartialSums((2, 3), 64)))
    for name, sizes in PARAMETERS.items()
}

#: Digits, and the inputs made of them. The set is no larger than the batch, so that its bytes are those that move.
IMAGES: dict[str, ImageBatchGeometry] = {
    "lenet5.images": ImageBatchGeometry(_LENET, _LENET, 28, 28, 32, 32, warps=False),
    "lenet5.images-warped": ImageBatchGeometry(_LENET, _LENET, 28, 28, 32, 32, warps=True),
}


#: Layers by name for each operation of ``gpuconv.kernels.operations``: geometries, as its kernels take them.
LAYERS: dict[str, Mapping[str, Any]] = {
    "conv2d": {**CONVOLUTIONS, **TASKS},
    "conv2d_grad_input": CONVOLUTIONS,
    "conv2d_grad_weight": CONVOLUTIONS,
    "conv2d_grad_bias": MAPS,
    "conv2d_relu_max_pool2d": {**BLOCKS, **TASK_BLOCKS},
    "conv2d_relu_max_pool2d_grad_input": BLOCKS,
    "conv2d_relu_max_pool2d_grad_weight": BLOCKS,
    "conv2d_relu_max_pool2d_pair": BLOCK_PAIRS,
    "linear_chain": {**CLASSIFIERS, **TASK_CLASSIFIERS},
    "linear_chain_grad_input": CLASSIFIERS,
    "linear_chain_loss_grad_input": CLASSIFIERS,
    "linear_chain_grad_weight": CLASSIFIERS,
    "max_pool2d": MAX_POOLINGS,
    "max_pool2d_grad": MAX_POOLINGS,
    "avg_pool2d": AVERAGE_POOLINGS,
    "avg_pool2d_grad": AVERAGE_POOLINGS,
    "softmax_cross_entropy": LOGITS,
    "softmax_cross_entropy_grad": LOGITS,
    "softmax_cross_entropy_mean": LOGITS,
    "batch_norm_stats": NORMS,
    "batch_norm": NORMS,
    "batch_norm_grad_stats": NORMS,
    "batch_norm_grad_input": NORMS,
    "sgd_update_all": PARAMETERS,
    "sgd_update_all_of_parts": PARAMETERS_OF_PARTS,
    "adam_update_all": PARAMETERS,
    "adam_update_all_of_parts": PARAMETERS_OF_PARTS,
    "image_batch": IMAGES,
    "count_correct": LOGITS,
    "relu": MAPS,
    "relu_grad": MAPS,
}
