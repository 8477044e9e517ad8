"""The one table of operations: what each takes, gives and costs, whichever kernel does it.

An operation is described by its **arrays**, in the order in which they are handed over: what it reads, what it changes
in place, then its results. Each has a name, a shape that follows from the geometry, an element type and a role::

    "conv2d": Operation(
        (
            Array("x", lambda g: g.input_shape),
            Array("weight", lambda g: g.weight_shape),
            Array("bias", lambda g: (g.k,), optional=True),
            Array("out", lambda g: g.output_shape, OUT),
        ),
        flop=lambda g: 2 * g.macs,
        small=_small_conv,
    ),

Besides it has **numbers**, handed over by keyword; the **arithmetic** that it takes; and a **small case**: a geometry
alike that takes the simulator a moment. A geometry is a frozen dataclass of ``gpuconv.geometry``; where an operation
has none, it is the shape of the array that it works on, or the sizes of several.

Who reads it: ``kernels/variant.py`` (checks, absent arrays, types of a kernel's arguments), the CUDA backend (which
results to allocate), the tuner, benchmarks, diagnosis and tests (arrays for a geometry, bytes and arithmetic). What
only one of them needs is not here; nor is anything that would have to ask which operation it is.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from gpuconv.geometry import (
    BlockGeometry,
    BlockPairGeometry,
    ChainGeometry,
    Conv2dGeometry,
    ImageBatchGeometry,
    PartialSums,
    Pool2dGeometry,
    UpdateGeometry,
    effective,
)

__all__ = [
    "HALF_TYPES",
    "IN",
    "IN_PLACE",
    "OPERATIONS",
    "OUT",
    "Array",
    "Operand",
    "Operands",
    "Operation",
    "workspace_type",
]

#: What an operation does with an array. What it changes in place is read, too; a result is written in full.
IN, IN_PLACE, OUT = "in", "in place", "out"
#: The element type of the operation: float32 or float64; of few variants float16 or bfloat16.
REAL = "real"
#: Types that are stored in 16 bits and computed with in float32.
HALF_TYPES = ("float16", "bfloat16")

#: What an array holds, for those who have to make one: anything; nothing below zero; rows that are distributions;
#: which element of each window is the largest; the largest number of its type; the numbers of an update's formula.
#: Of integers also a function of the geometry that gives what they are below.
ANY, POSITIVE, DISTRIBUTIONS, WINNERS, LARGEST, FORMULA = (
    "any", "positive", "distributions", "winners", "largest", "formula",
)  # fmt: skip


@dataclass(frozen=True)
class Array:
    """An array of an operation, or several that are handed over as a list.

    Attributes:
        name: in kernels, messages and results.
        shape: a function of the geometry; where there are several, it gives a list of shapes.
        role: :data:`IN`, :data:`IN_PLACE` or :data:`OUT`.
        type: its element type, or a function of the geometry that gives it.
        optional: it may be None.
        keyword: it is rarely there, and handed over by keyword, behind the others.
        longer: it may have more elements.
        far: it may have more than 32-bit offsets reach: kernels compute in 64 bits where it is read.
        holds: what is in it, see above.
    """

    name: str
    shape: Callable[[Any], Any]
    role: str = IN
    type: str | Callable[[Any], str] = REAL
    optional: bool = False
    keyword: bool = False
    longer: bool = False
    far: bool = False
    holds: str | Callable[[Any], int] = ANY

    def operands(self, geometry: Any, dtype: str) -> Operands:
        """It, or each of several, for a geometry and the operation's element type."""
        kind = self.type(geometry) if callable(self.type) else self.type
        shape = self.shape(geometry)
        if isinstance(shape, list):
            return [Operand(self, one, dtype if kind == REAL else kind) for one in shape]
        return Operand(self, shape, dtype if kind == REAL else kind)


class Operand(NamedTuple):
    """One array for one geometry and element type."""

    array: Array
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def traffic(self) -> int:
        """Bytes that have to move: what is changed in place is read and written."""
        return (2 if self.array.role == IN_PLACE else 1) * self.size * _BYTES[self.dtype]


#: One, or several that are handed over as a list.
Operands: TypeAlias = "Operand | list[Operand]"

_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8, "uint8": 1, "int32": 4, "int64": 8}


@dataclass(frozen=True)
class Operation:
    """What is known of an operation.

    Attributes:
        arrays: in the order in which they are handed over. The first one is of the operation's element type.
        flop: floating point operations for a geometry, a multiply-add being two.
        small: of a geometry, one that is alike but takes a moment in the simulator. The second argument is about how
            many terms a sum may have, where there are sums.
        numbers: handed over by keyword, each with its usual value.
        multiply_adds: whether all of ``flop`` are multiply-adds, as in a convolution.
    """

    arrays: tuple[Array, ...]
    flop: Callable[[Any], int]
    small: Callable[[Any, int], Any]
    numbers: Mapping[str, Any] = field(default_factory=dict)
    multiply_adds: bool = False

    @property
    def positional(self) -> tuple[Array, ...]:
        """The arrays that are not handed over by keyword."""
        return tuple(array for array in self.arrays if not array.keyword)

    def operands(self, geometry: Any, dtype: str) -> tuple[Operands, ...]:
        """The positional arrays for a geometry and element type."""
        return tuple(array.operands(geometry, dtype) for array in self.positional)

    def traffic(self, geometry: Any, dtype: str) -> int:
        """Bytes of all positional arrays, moved once."""
        return sum(one.traffic for operands in self.operands(geometry, dtype) for one in each(operands))


def workspace_type(dtype: Any) -> np.dtype:
    """The element type of a variant's workspace, given that of the operation: of half types float32."""
    dtype = np.dtype(dtype)
    return np.dtype(np.float32) if dtype.name in HALF_TYPES else dtype


def each(operands: Operands) -> Sequence[Operand]:
    """One, or several, as a sequence."""
    return operands if isinstance(operands, list) else [operands]


# -- small cases -------------------------------------------------------------------------------------------------------


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


def _small_pair(g: BlockPairGeometry, terms: int) -> BlockPairGeometry:
    first, second = (_small_block(block, terms) for block in g)
    return BlockPairGeometry(first, second._replace(conv=dataclasses.replace(second.conv, c=first.conv.k)))


def _small_chain(g: ChainGeometry, terms: int) -> ChainGeometry:
    return g._replace(n=min(g.n, 4), sizes=tuple(min(size, 64) for size in g.sizes))


def _small_shape(shape: tuple[int, ...], terms: int) -> tuple[int, ...]:
    return (min(math.prod(shape), 4096),)


def _small_rows(shape: tuple[int, int], terms: int) -> tuple[int, int]:
    return min(shape[0], 32), shape[1]


def _small_channels(shape: tuple[int, int, int], terms: int) -> tuple[int, int, int]:
    return min(shape[0], 2), min(shape[1], 4), min(shape[2], 256)


def _small_sizes(sizes: tuple[int, ...], terms: int) -> tuple[int, ...]:
    return tuple(min(size, 500) for size in sizes)


def _small_update(g: UpdateGeometry, terms: int) -> UpdateGeometry:
    # At least two terms for a thread, and not as many for each.
    sums = tuple(one._replace(parts=min(one.parts, 70)) for one in g.sums)
    return UpdateGeometry(tuple(min(size, 300) for size in g.sizes), sums)


# -- shapes that several share -----------------------------------------------------------------------------------------


def _winners(pool: Callable[[Any], Pool2dGeometry], role: str) -> Array:
    """Which element of each window of a pooling is the largest; a byte where that is enough."""

    def kind(g: Any) -> str:
        return "uint8" if pool(g).r * pool(g).s <= 256 else "int32"

    return Array("winners", lambda g: pool(g).output_shape, role, kind, holds=WINNERS)


def _elementwise(*arrays: str) -> tuple[Array, ...]:
    """Arrays of one shape, the last of which is the result."""
    *inputs, out = arrays
    return (*(Array(name, tuple) for name in inputs), Array(out, tuple, OUT))


def _conv_flop(g: Conv2dGeometry) -> int:
    return 2 * g.macs


def _pooled(g: BlockGeometry) -> tuple[int, ...]:
    return g.pool.output_shape


def _block_flop(g: BlockGeometry) -> int:
    """A multiply-add for each tap of each winner: what a gradient cannot do without."""
    return 2 * math.prod(g.pool.output_shape) * g.conv.c * g.conv.r * g.conv.s


def _layer_weights(g: ChainGeometry) -> list[tuple[int, ...]]:
    return [(second, first) for first, second in pairwise(g.sizes)]


def _layer_biases(g: ChainGeometry) -> list[tuple[int, ...]]:
    return [(size,) for size in g.sizes[1:]]


def _layer_inputs(g: ChainGeometry) -> list[tuple[int, ...]]:
    return [(g.n, size) for size in g.sizes[:-1]]


def _layer_results(g: ChainGeometry) -> list[tuple[int, ...]]:
    return [(g.n, size) for size in g.sizes[1:]]


def _chain_flop(g: ChainGeometry) -> int:
    return 2 * g.n * sum(first * second for first, second in pairwise(g.sizes))


def _windows(g: Pool2dGeometry) -> int:
    """An operation for each element of each window."""
    return math.prod(g.output_shape) * g.r * g.s


def _rows(shape: tuple[int, int]) -> tuple[int, ...]:
    return shape[:1]


def _channels(shape: tuple[int, int, int]) -> tuple[int, ...]:
    return shape[1:2]


def _classes(shape: tuple[int, int]) -> tuple[int, ...]:
    return shape[1:]


def _one(geometry: Any) -> tuple[int, ...]:
    return (1,)


def _image_batch_flop(g: ImageBatchGeometry) -> int:
    """A look into the table counts as one operation; warped, there are four, a point, and three interpolations."""
    return g.n * g.p * g.q * (4 + 4 + 3 * 3 if g.warps else 1)


_LABELS = Array("labels", _rows, type="int64", holds=lambda shape: shape[1])
_CLASS_WEIGHTS = Array("weight", _classes, optional=True, holds=POSITIVE)
_LABEL_NUMBERS = {"ignore_index": -100, "label_smoothing": 0.0}
_AVERAGE_NUMBERS = {"count_include_pad": True, "divisor_override": None}

#: Threads of the smallest blocks that update all parameters: each block has a place of its own among the numbers. And
#: the elements of such a block where gradients have to be added up first.
UPDATE_THREADS, UPDATE_COLUMNS = 128, 4


def rows_at(sizes: Sequence[int], sums: Sequence[PartialSums] = ()) -> int:
    """Where the numbers of an update's steps begin: behind the last step's number, and one for each block."""
    summed = {number for one in sums for number in one.members}
    blocks = sum(
        -(-size // (UPDATE_COLUMNS if number in summed else UPDATE_THREADS)) for number, size in enumerate(sizes)
    )
    return -(-(1 + blocks) // 4) * 4


def _update(*states: Array, width: int, flop: int, **numbers: Any) -> Operation:
    """The update of all parameters: lists of them, of gradients, of each state; ``width`` numbers a step."""

    def lists(sizes: tuple[int, ...]) -> list[tuple[int, ...]]:
        return [(size,) for size in sizes]

    return Operation(
        (
            Array("params", lists, IN_PLACE),
            Array("grads", lists),
            *(dataclasses.replace(state, shape=lists, role=IN_PLACE) for state in states),
            Array("numbers", lambda sizes: (rows_at(sizes) + width,), IN_PLACE, longer=True, holds=FORMULA),
        ),
        flop=lambda sizes: flop * sum(sizes),
        small=_small_sizes,
        numbers=numbers,
    )


def _of_parts(update: Operation) -> Operation:
    """An update that first adds up gradients that are still sums over parts, and writes them; it reads the others."""

    def rows(g: UpdateGeometry) -> list[tuple[int, ...]]:
        return [(one.parts, g.row(one)) for one in g.sums]

    def on_sizes(array: Array) -> Array:
        shape = array.shape
        return dataclasses.replace(array, shape=lambda g: shape(g.sizes))

    params, grads, *states, numbers = update.arrays
    return dataclasses.replace(
        update,
        arrays=(
            on_sizes(params),
            dataclasses.replace(on_sizes(grads), role=IN_PLACE),
            Array("rows", rows),
            *map(on_sizes, states),
            dataclasses.replace(numbers, shape=lambda g: (rows_at(*g) + numbers.shape(())[0] - rows_at(()),)),
        ),
        flop=lambda g: update.flop(g.sizes) + sum(one.parts * g.row(one) for one in g.sums),
        small=_small_update,
    )


# -- the table ---------------------------------------------------------------------------------------------------------


def _convolution(*arrays: Array) -> Operation:
    return Operation(arrays, flop=_conv_flop, small=_small_conv, multiply_adds=True)


# Their numbers say which terms the formula has; what they are in each step is in the array ``numbers``.
_SGD = _update(Array("velocities", tuple, optional=True), width=4, flop=5, weight_decay=0.0, nesterov=False)
_ADAM = _update(
    Array("means", tuple), Array("squares", tuple, holds=POSITIVE), width=8, flop=13, weight_decay=0.0, decoupled=False
)

OPERATIONS: dict[str, Operation] = {
    "conv2d": _convolution(
        Array("x", lambda g: g.input_shape),
        Array("weight", lambda g: g.weight_shape),
        Array("bias", lambda g: (g.k,), optional=True),
        Array("out", lambda g: g.output_shape, OUT),
    ),
    "conv2d_grad_input": _convolution(
        Array("grad", lambda g: g.output_shape),
        Array("weight", lambda g: g.weight_shape),
        Array("out", lambda g: g.input_shape, OUT),
    ),
    "conv2d_grad_weight": _convolution(
        Array("grad", lambda g: g.output_shape),
        Array("x", lambda g: g.input_shape),
        Array("out", lambda g: g.weight_shape, OUT),
    ),
    "conv2d_grad_bias": Operation(
        (Array("grad", tuple), Array("out", lambda shape: shape[1:2], OUT)),
        flop=math.prod,
        small=lambda shape, terms: (min(shape[0], 4), min(shape[1], 8), *shape[2:]),
    ),
    "conv2d_relu_max_pool2d": Operation(
        (
            Array("x", lambda g: g.conv.input_shape),
            Array("weight", lambda g: g.conv.weight_shape),
            Array("bias", lambda g: (g.conv.k,), optional=True),
            Array("out", _pooled, OUT),
            _winners(lambda g: g.pool, OUT),
        ),
        flop=lambda g: 2 * g.conv.macs,
        small=_small_block,
        multiply_adds=True,
    ),
    "conv2d_relu_max_pool2d_grad_input": Operation(
        (
            Array("grad", _pooled),
            Array("weight", lambda g: g.conv.weight_shape),
            Array("y", _pooled),
            _winners(lambda g: g.pool, IN),
            Array("out", lambda g: g.conv.input_shape, OUT),
        ),
        flop=_block_flop,
        small=_small_block,
    ),
    "conv2d_relu_max_pool2d_grad_weight": Operation(
        (
            Array("grad", _pooled),
            Array("x", lambda g: g.conv.input_shape),
            Array("y", _pooled),
            _winners(lambda g: g.pool, IN),
            # Both are None where the sums over parts of the batch, in the workspace, are not to be added up.
            Array("out", lambda g: g.conv.weight_shape, OUT, optional=True),
            Array("bias_out", lambda g: (g.conv.k,), OUT, optional=True),
        ),
        flop=_block_flop,
        small=_small_block,
        multiply_adds=True,
    ),
    # Windows with more elements than a byte can tell apart are not for it.
    "conv2d_relu_max_pool2d_pair": Operation(
        (
            Array("x", lambda g: g.first.conv.input_shape),
            Array("weights", lambda g: [block.conv.weight_shape for block in g]),
            Array("biases", lambda g: [(block.conv.k,) for block in g], optional=True),
            Array("outs", lambda g: [block.pool.output_shape for block in g], OUT),
            Array("winners", lambda g: [block.pool.output_shape for block in g], OUT, "uint8", holds=WINNERS),
        ),
        flop=lambda g: 2 * sum(block.conv.macs for block in g),
        small=_small_pair,
        multiply_adds=True,
    ),
    "linear_chain": Operation(
        (
            Array("x", lambda g: (g.n, g.sizes[0])),
            Array("weights", _layer_weights),
            Array("biases", _layer_biases, optional=True),
            Array("outs", _layer_results, OUT),
        ),
        flop=_chain_flop,
        small=_small_chain,
        multiply_adds=True,
    ),
    "linear_chain_grad_input": Operation(
        (
            Array("grad", lambda g: (g.n, g.sizes[-1])),
            Array("weights", _layer_weights),
            Array("ys", _layer_results),
            # The last one is not written, but is ``grad``, if no ReLU follows the last layer.
            Array("grads", _layer_results, OUT),
            Array("out", lambda g: (g.n, g.sizes[0]), OUT, optional=True),
        ),
        flop=_chain_flop,
        small=_small_chain,
        multiply_adds=True,
    ),
    # The gradient of the mean cross-entropy of a chain's results. ``y`` are the results of its first layer.
    "linear_chain_loss_grad_input": Operation(
        (
            Array("y", lambda g: (g.n, g.sizes[1])),
            Array("labels", lambda g: (g.n,), type="int64", holds=lambda g: g.sizes[-1]),
            Array("weights", _layer_weights),
            Array("biases", _layer_biases, optional=True),
            Array("grads", _layer_results, OUT),
            Array("out", lambda g: (g.n, g.sizes[0]), OUT),
        ),
        # Forward through all layers but the first, and back through all.
        flop=lambda g: 2 * _chain_flop(g) - 2 * g.n * g.sizes[0] * g.sizes[1],
        small=_small_chain,
        numbers={"ignore_index": -100},
    ),
    "linear_chain_grad_weight": Operation(
        (
            Array("xs", _layer_inputs),
            Array("grads", _layer_results),
            Array("weights_out", _layer_weights, OUT),
            Array("biases_out", _layer_biases, OUT),
        ),
        flop=_chain_flop,
        small=_small_chain,
        multiply_adds=True,
    ),
    "relu": Operation(_elementwise("x", "out"), flop=math.prod, small=_small_shape),
    "relu_grad": Operation(_elementwise("grad", "y", "out"), flop=math.prod, small=_small_shape),
    "max_pool2d": Operation(
        (
            Array("x", lambda g: g.input_shape),
            Array("out", lambda g: g.output_shape, OUT),
            _winners(lambda g: g, OUT),
        ),
        flop=_windows,
        small=_small_pool,
    ),
    "max_pool2d_grad": Operation(
        (
            Array("grad", lambda g: g.output_shape),
            _winners(lambda g: g, IN),
            Array("out", lambda g: g.input_shape, OUT),
        ),
        flop=lambda g: math.prod(g.output_shape),
        small=_small_pool,
    ),
    "avg_pool2d": Operation(
        (Array("x", lambda g: g.input_shape), Array("out", lambda g: g.output_shape, OUT)),
        flop=_windows,
        small=_small_pool,
        numbers=_AVERAGE_NUMBERS,
    ),
    "avg_pool2d_grad": Operation(
        (Array("grad", lambda g: g.output_shape), Array("out", lambda g: g.input_shape, OUT)),
        flop=_windows,
        small=_small_pool,
        numbers=_AVERAGE_NUMBERS,
    ),
    # An exponential counts as one operation. ``wrong`` holds the largest int32, or the first row with a wrong label.
    "softmax_cross_entropy": Operation(
        (
            Array("logits", tuple),
            _LABELS,
            _CLASS_WEIGHTS,
            Array("wrong", _one, IN_PLACE, "int32", holds=LARGEST),
            Array("losses", _rows, OUT),
            Array("probabilities", tuple, OUT),
        ),
        flop=lambda shape: 5 * math.prod(shape),
        small=_small_rows,
        numbers=_LABEL_NUMBERS,
    ),
    "softmax_cross_entropy_grad": Operation(
        (
            Array("grad", _rows),
            Array("probabilities", tuple, holds=DISTRIBUTIONS),
            _LABELS,
            _CLASS_WEIGHTS,
            Array("out", tuple, OUT),
        ),
        flop=lambda shape: 2 * math.prod(shape),
        small=_small_rows,
        numbers=_LABEL_NUMBERS,
    ),
    "softmax_cross_entropy_mean": Operation(
        (
            Array("logits", tuple),
            _LABELS,
            _CLASS_WEIGHTS,
            Array("loss", _one, OUT),
            Array("out", tuple, OUT),
            Array("wrong", _one, OUT, "int32"),
        ),
        flop=lambda shape: 7 * math.prod(shape),
        small=_small_rows,
        numbers=_LABEL_NUMBERS,
    ),
    # A comparison counts as one operation. With a log, ``step`` counts from 0, and ``out[step]``, ``losses[step]`` are
    # written; then it is one more.
    "count_correct": Operation(
        (
            Array("logits", tuple),
            _LABELS,
            Array("out", _one, OUT, "int32", longer=True),
            Array("loss", _one, optional=True, keyword=True),
            Array("losses", _one, IN_PLACE, optional=True, keyword=True, longer=True),
            Array("step", _one, IN_PLACE, "int32", optional=True, keyword=True),
        ),
        flop=math.prod,
        small=_small_rows,
    ),
    # Shapes are (n, c, length): a batch of images as rows of a channel each. ``y`` is there where a ReLU is behind.
    "batch_norm_stats": Operation(
        (Array("x", tuple), Array("mean", _channels, OUT), Array("var", _channels, OUT)),
        flop=lambda shape: 4 * math.prod(shape),
        small=_small_channels,
    ),
    "batch_norm": Operation(
        (
            Array("x", tuple),
            Array("mean", _channels),
            Array("var", _channels, holds=POSITIVE),
            Array("weight", _channels, optional=True),
            Array("bias", _channels, optional=True),
            Array("residual", tuple, optional=True),
            Array("out", tuple, OUT),
        ),
        flop=lambda shape: 4 * math.prod(shape),
        small=_small_channels,
        numbers={"eps": 1e-5, "relu": False},
    ),
    "batch_norm_grad_stats": Operation(
        (
            Array("grad", tuple),
            Array("x", tuple),
            Array("y", tuple, optional=True),
            Array("mean", _channels),
            Array("var", _channels, holds=POSITIVE),
            Array("dweight", _channels, OUT),
            Array("dbias", _channels, OUT),
        ),
        flop=lambda shape: 4 * math.prod(shape),
        small=_small_channels,
        numbers={"eps": 1e-5},
    ),
    # Without ``dweight`` and ``dbias`` mean and variance do not depend on x.
    "batch_norm_grad_input": Operation(
        (
            Array("grad", tuple),
            Array("x", tuple),
            Array("y", tuple, optional=True),
            Array("mean", _channels),
            Array("var", _channels, holds=POSITIVE),
            Array("weight", _channels, optional=True),
            Array("dweight", _channels, optional=True),
            Array("dbias", _channels, optional=True),
            Array("out", tuple, OUT),
            Array("residual_out", tuple, OUT, optional=True),
        ),
        flop=lambda shape: 5 * math.prod(shape),
        small=_small_channels,
        numbers={"eps": 1e-5},
    ),
    "sgd_update_all": _SGD,
    "sgd_update_all_of_parts": _of_parts(_SGD),
    "adam_update_all": _ADAM,
    "adam_update_all_of_parts": _of_parts(_ADAM),
    # With ``step`` the images are those of ``index[step · n:][:n]``, of an index that is longer.
    "image_batch": Operation(
        (
            Array("table", lambda g: (256,)),
            Array("images", lambda g: (g.total, g.h, g.w), type="uint8", far=True, holds=lambda g: 256),
            Array("labels", lambda g: (g.total,), type="int64", far=True, holds=lambda g: 10),
            Array("index", lambda g: (g.n,), type="int64", longer=True, holds=lambda g: g.total),
            Array("transforms", lambda g: (g.total if g.warps else 0, 2, 3), optional=True, longer=True, far=True),
            Array("out", lambda g: (g.n, 1, g.p, g.q), OUT),
            Array("out_labels", lambda g: (g.n,), OUT, "int64"),
            Array("step", _one, IN, "int32", optional=True, keyword=True),
        ),
        flop=_image_batch_flop,
        small=lambda g, terms: g._replace(n=min(g.n, 3), total=min(g.total, 3)),
    ),
}  # fmt: skip
