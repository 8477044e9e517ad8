"""The layers that kernels are judged and timed on, and what an operation has to do on one.

``OPERATIONS`` is the table: a new operation of ``gpuconv.kernels.VARIANTS`` needs an entry here; a new variant of one
does not. Sizes are those of the networks' papers, float32, and those of torchvision where it differs from them.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

from gpuconv.geometry import (
    BlockGeometry,
    ChainGeometry,
    Conv2dGeometry,
    ImageBatchGeometry,
    Pool2dGeometry,
    effective,
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

#: The fully connected layers behind LeNet's maps.
CLASSIFIERS: dict[str, ChainGeometry] = {
    "lenet5.classifier": ChainGeometry(_LENET, (400, 120, 84, 10), (True, True, False))
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

#: Logits: rows and classes.
LOGITS: dict[str, tuple[int, int]] = {"lenet5.loss": (_LENET, 10), "resnet50.loss": (_LARGE, 1000)}

#: Weights, which an optimizer updates.
WEIGHTS: dict[str, tuple[int, ...]] = {
    "lenet5.conv2-weight": CONVOLUTIONS["lenet5.conv2"].weight_shape,
    "lenet5.fc1-weight": (120, 400),
    "resnet50.conv5-3x3-weight": CONVOLUTIONS["resnet50.conv5-3x3"].weight_shape,
}


#: Elements of all parameters of a network.
PARAMETERS: dict[str, tuple[int, ...]] = {"lenet5.parameters": (150, 6, 2400, 16, 48000, 120, 10080, 84, 840, 10)}

#: Digits, and the inputs made of them. The set is no larger than the batch, so that its bytes are those that move.
IMAGES: dict[str, ImageBatchGeometry] = {
    "lenet5.images": ImageBatchGeometry(_LENET, _LENET, 28, 28, 32, 32, warps=False),
    "lenet5.images-warped": ImageBatchGeometry(_LENET, _LENET, 28, 28, 32, 32, warps=True),
}


# -- what an operation has to do -----------------------------------------------------------------------------


class Operand(NamedTuple):
    """An array that an operation reads or writes; ``passes`` is 2 for one that it changes in place."""

    shape: tuple[int, ...]
    dtype: str
    passes: int = 1

    @property
    def traffic(self) -> int:
        """Bytes that have to move."""
        return self.passes * math.prod(self.shape) * _BYTES[self.dtype]


#: One, or several that belong together.
Operands: TypeAlias = "Operand | tuple[Operand, ...]"


def _each(operands: Operands) -> tuple[Operand, ...]:
    return (operands,) if isinstance(operands, Operand) else operands


_BYTES = {"float32": 4, "float64": 8, "uint8": 1, "int32": 4, "int64": 8}


@dataclass(frozen=True)
class Operation:
    """What is known of an operation, whichever kernel does it. A geometry is what its kernels take for one.

    Attributes:
        layers: geometries by name.
        operands: of a geometry and element type, in the order in which a variant's ``launch`` takes them; a tuple of
            them where it takes several as one.
        flop: floating point operations of a geometry, a multiply-add being two.
        small: of a geometry, one that is alike but takes a moment in the simulator. The second argument is about how
            many terms a sum may have, where there are sums.
        keywords: further arguments of ``launch``.
        multiply_adds: whether all of ``flop`` are multiply-adds, as in a convolution.
    """

    layers: Mapping[str, Any]
    operands: Callable[[Any, str], tuple[Operands, ...]]
    flop: Callable[[Any], int]
    small: Callable[[Any, int], Any]
    keywords: Mapping[str, Any] = field(default_factory=dict)
    multiply_adds: bool = False

    def traffic(self, geometry: Any, dtype: str) -> int:
        """Bytes of all operands, moved once."""
        return sum(one.traffic for operand in self.operands(geometry, dtype) for one in _each(operand))


def _shorter(size: int, most: int, length: int, kernel: int, stride: int, pads: tuple[int, int]) -> int:
    """The input length for an output of ``most`` positions, or as it is if there are no more."""
    return length if size <= most else (most - 1) * stride + kernel - sum(pads)


def _small_image(g: Any) -> dict[str, Any]:
    """Height and width for at most 8 rows of 64 outputs, and as many images as make up for small maps."""
    spans = [effective(size, dilation) for size, dilation in zip((g.r, g.s), g.dilation, strict=True)]
    h = _shorter(g.p, 8, g.h, spans[0], g.stride[0], g.padding[0])
    w = _shorter(g.q, 64, g.w, spans[1], g.stride[1], g.padding[1])
    return {"n": min(g.n, -(-128 // (min(g.p, 8) * min(g.q, 64)))), "h": h, "w": w}


def _small_conv(g: Conv2dGeometry, terms: int) -> Conv2dGeometry:
    groups = min(g.groups, 4)
    channels = min(g.c // g.groups, -(-terms // (g.r * g.s)))
    filters = min(g.k // g.groups, 64)
    return dataclasses.replace(g, **_small_image(g), c=groups * channels, k=groups * filters, groups=groups)


def _small_pool(g: Pool2dGeometry, terms: int) -> Pool2dGeometry:
    return dataclasses.replace(g, **_small_image(g), c=min(g.c, 4))


def _small_block(g: BlockGeometry, terms: int) -> BlockGeometry:
    n, k = min(g.conv.n, 2), min(g.conv.k, 8)
    return BlockGeometry(dataclasses.replace(g.conv, n=n, k=k), dataclasses.replace(g.pool, n=n, c=k))


def _small_chain(g: ChainGeometry, terms: int) -> ChainGeometry:
    return g._replace(n=min(g.n, 4), sizes=tuple(min(size, 64) for size in g.sizes))


def _small_shape(shape: tuple[int, ...], terms: int) -> tuple[int, ...]:
    return (min(math.prod(shape), 4096),)


def _small_rows(shape: tuple[int, ...], terms: int) -> tuple[int, ...]:
    return min(shape[0], 32), shape[1]


def _elementwise(layers: Mapping[str, Any], passes: tuple[int, ...], flop: int, **keywords: Any) -> Operation:
    """An operation on arrays of one shape, moved so many times each, with so many operations an element."""
    return Operation(
        layers,
        lambda shape, dtype: tuple(Operand(shape, dtype, times) for times in passes),
        lambda shape: flop * math.prod(shape),
        _small_shape,
        keywords,
    )


def _winners(g: Pool2dGeometry) -> Operand:
    return Operand(g.output_shape, "uint8" if g.r * g.s <= 256 else "int32")


def _loss(g: tuple[int, int], dtype: str) -> tuple[Operand, ...]:
    (rows, classes) = g
    labels, weight, wrong = Operand((rows,), "int64"), Operand((classes,), dtype), Operand((1,), "int32", passes=2)
    return Operand(g, dtype), labels, weight, Operand((rows,), dtype), Operand(g, dtype), wrong


def _loss_grad(g: tuple[int, int], dtype: str) -> tuple[Operand, ...]:
    (rows, classes) = g
    labels, weight = Operand((rows,), "int64"), Operand((classes,), dtype)
    return Operand((rows,), dtype), Operand(g, dtype), labels, weight, Operand(g, dtype)


def _loss_mean(g: tuple[int, int], dtype: str) -> tuple[Operand, ...]:
    (rows, classes), loss = g, Operand((1,), dtype)
    weight = Operand((classes,), dtype)
    return Operand(g, dtype), Operand((rows,), "int64"), weight, loss, Operand(g, dtype), Operand((1,), "int32")


def _block_flop(g: BlockGeometry) -> int:
    """A multiply-add for each tap of each winner: what a gradient cannot do without."""
    return 2 * math.prod(g.pool.output_shape) * g.conv.c * g.conv.r * g.conv.s


def _pooled(g: BlockGeometry, dtype: str) -> Operand:
    return Operand(g.pool.output_shape, dtype)


def _block(g: BlockGeometry, dtype: str) -> tuple[Operands, ...]:
    shapes = g.conv.input_shape, g.conv.weight_shape, (g.conv.k,)
    return (*(Operand(shape, dtype) for shape in shapes), _pooled(g, dtype), _winners(g.pool))


def _block_grad_input(g: BlockGeometry, dtype: str) -> tuple[Operands, ...]:
    pooled, weight, x = _pooled(g, dtype), Operand(g.conv.weight_shape, dtype), Operand(g.conv.input_shape, dtype)
    return pooled, weight, pooled, _winners(g.pool), x


def _block_grad_weight(g: BlockGeometry, dtype: str) -> tuple[Operands, ...]:
    pooled, weight, x = _pooled(g, dtype), Operand(g.conv.weight_shape, dtype), Operand(g.conv.input_shape, dtype)
    return pooled, x, pooled, _winners(g.pool), weight, Operand((g.conv.k,), dtype)


def _chain_parts(g: ChainGeometry, dtype: str) -> tuple[tuple[Operand, ...], ...]:
    """Of each layer the weight, the bias, the input, and the result."""
    weights = tuple(Operand((second, first), dtype) for first, second in pairwise(g.sizes))
    biases = tuple(Operand((size,), dtype) for size in g.sizes[1:])
    rows = tuple(Operand((g.n, size), dtype) for size in g.sizes)
    return weights, biases, rows[:-1], rows[1:]


def _chain(g: ChainGeometry, dtype: str) -> tuple[Operands, ...]:
    weights, biases, xs, ys = _chain_parts(g, dtype)
    return xs[0], weights, biases, ys


def _chain_grad_input(g: ChainGeometry, dtype: str) -> tuple[Operands, ...]:
    weights, _, xs, ys = _chain_parts(g, dtype)
    return ys[-1], weights, ys, ys, xs[0]


def _chain_grad_weight(g: ChainGeometry, dtype: str) -> tuple[Operands, ...]:
    weights, biases, xs, ys = _chain_parts(g, dtype)
    return xs, ys, weights, biases


def _chain_flop(g: ChainGeometry) -> int:
    return 2 * g.n * sum(first * second for first, second in pairwise(g.sizes))


def _image_batch(g: ImageBatchGeometry, dtype: str) -> tuple[Operand, ...]:
    images, labels, index = (
        Operand((g.total, g.h, g.w), "uint8"),
        Operand((g.total,), "int64"),
        Operand((g.n,), "int64"),
    )
    transforms = Operand((g.total if g.warps else 0, 2, 3), dtype)
    return (
        *(Operand((256,), dtype), images, labels, index, transforms),
        *(Operand((g.n, 1, g.p, g.q), dtype), Operand((g.n,), "int64")),
    )


def _image_batch_flop(g: ImageBatchGeometry) -> int:
    """A look into the table counts as one operation; warped, there are four, a point, and three interpolations."""
    return g.n * g.p * g.q * (4 + 4 + 3 * 3 if g.warps else 1)


def _count_correct(g: tuple[int, int], dtype: str) -> tuple[Operand, ...]:
    return Operand(g, dtype), Operand(g[:1], "int64"), Operand((1,), "int32")


def _numbers_size(sizes: tuple[int, ...], numbers: int) -> int:
    return importlib.import_module("gpuconv.kernels.update.all_at_once").numbers_size(sizes, numbers, 1)


def _all_parameters(passes: tuple[int, ...], numbers: int, flop: int, **keywords: Any) -> Operation:
    """The update of all parameters: lists of arrays, each moved so many times, and the numbers of the formula."""
    return Operation(
        PARAMETERS,
        lambda sizes, dtype: (
            *(tuple(Operand((size,), dtype, times) for size in sizes) for times in passes),
            Operand((_numbers_size(sizes, numbers),), dtype),
        ),
        lambda sizes: flop * sum(sizes),
        lambda sizes, terms: tuple(min(size, 500) for size in sizes),
        keywords,
    )


_LABELS = {"ignore_index": -100, "label_smoothing": 0.0}
_AVERAGE = {"count_include_pad": True, "divisor_override": None}

OPERATIONS: dict[str, Operation] = {
    "conv2d": Operation(
        CONVOLUTIONS,
        lambda g, dtype: tuple(
            Operand(shape, dtype) for shape in (g.input_shape, g.weight_shape, (g.k,), g.output_shape)
        ),
        lambda g: 2 * g.macs,
        _small_conv,
        multiply_adds=True,
    ),
    "conv2d_grad_input": Operation(
        CONVOLUTIONS,
        lambda g, dtype: tuple(Operand(shape, dtype) for shape in (g.output_shape, g.weight_shape, g.input_shape)),
        lambda g: 2 * g.macs,
        _small_conv,
        multiply_adds=True,
    ),
    "conv2d_grad_weight": Operation(
        CONVOLUTIONS,
        lambda g, dtype: tuple(Operand(shape, dtype) for shape in (g.output_shape, g.input_shape, g.weight_shape)),
        lambda g: 2 * g.macs,
        _small_conv,
        multiply_adds=True,
    ),
    "conv2d_grad_bias": Operation(
        MAPS,
        lambda shape, dtype: (Operand(shape, dtype), Operand(shape[1:2], dtype)),
        math.prod,
        lambda shape, terms: (min(shape[0], 4), min(shape[1], 8), *shape[2:]),
    ),
    "conv2d_relu_max_pool2d": Operation(BLOCKS, _block, lambda g: 2 * g.conv.macs, _small_block, multiply_adds=True),
    "conv2d_relu_max_pool2d_grad_input": Operation(BLOCKS, _block_grad_input, _block_flop, _small_block),
    "conv2d_relu_max_pool2d_grad_weight": Operation(
        BLOCKS, _block_grad_weight, _block_flop, _small_block, multiply_adds=True
    ),
    # A smaller one takes no less: it would have other stages.
    "linear_chain": Operation(CLASSIFIERS, _chain, _chain_flop, _small_chain, multiply_adds=True),
    "linear_chain_grad_input": Operation(CLASSIFIERS, _chain_grad_input, _chain_flop, _small_chain, multiply_adds=True),
    "linear_chain_grad_weight": Operation(
        CLASSIFIERS, _chain_grad_weight, _chain_flop, _small_chain, multiply_adds=True
    ),
    "max_pool2d": Operation(
        MAX_POOLINGS,
        lambda g, dtype: (Operand(g.input_shape, dtype), Operand(g.output_shape, dtype), _winners(g)),
        lambda g: math.prod(g.output_shape) * g.r * g.s,
        _small_pool,
    ),
    "max_pool2d_grad": Operation(
        MAX_POOLINGS,
        lambda g, dtype: (Operand(g.output_shape, dtype), _winners(g), Operand(g.input_shape, dtype)),
        lambda g: math.prod(g.output_shape),
        _small_pool,
    ),
    "avg_pool2d": Operation(
        AVERAGE_POOLINGS,
        lambda g, dtype: (Operand(g.input_shape, dtype), Operand(g.output_shape, dtype)),
        lambda g: math.prod(g.output_shape) * g.r * g.s,
        _small_pool,
        _AVERAGE,
    ),
    "avg_pool2d_grad": Operation(
        AVERAGE_POOLINGS,
        lambda g, dtype: (Operand(g.output_shape, dtype), Operand(g.input_shape, dtype)),
        lambda g: math.prod(g.output_shape) * g.r * g.s,
        _small_pool,
        _AVERAGE,
    ),
    # An exponential counts as one operation.
    "softmax_cross_entropy": Operation(LOGITS, _loss, lambda g: 5 * math.prod(g), _small_rows, _LABELS),
    "softmax_cross_entropy_grad": Operation(LOGITS, _loss_grad, lambda g: 2 * math.prod(g), _small_rows, _LABELS),
    "softmax_cross_entropy_mean": Operation(LOGITS, _loss_mean, lambda g: 7 * math.prod(g), _small_rows, _LABELS),
    "sgd_update_all": _all_parameters((2, 1, 2), 4, 5, weight_decay=0.0, nesterov=False),
    "adam_update_all": _all_parameters((2, 1, 2, 2), 8, 13, weight_decay=0.0, decoupled=False),
    "image_batch": Operation(
        IMAGES, _image_batch, _image_batch_flop, lambda g, terms: g._replace(n=min(g.n, 3), total=min(g.total, 3))
    ),
    # A comparison counts as one operation.
    "count_correct": Operation(LOGITS, _count_correct, math.prod, _small_rows),
    "relu": _elementwise(MAPS, (1, 1), flop=1),
    "relu_grad": _elementwise(MAPS, (1, 1, 1), flop=1),
    "sgd_update": _elementwise(
        WEIGHTS, (2, 1, 2), flop=5, lr=0.1, momentum=0.9, dampening=0.0, weight_decay=0.0, nesterov=False
    ),
    "adam_update": _elementwise(
        WEIGHTS,
        (2, 1, 2, 2),
        flop=13,
        step=1,
        lr=1e-3,
        beta1=0.9,
        beta2=0.999,
        eps=1e-8,
        weight_decay=0.0,
        decoupled=False,
    ),
}
