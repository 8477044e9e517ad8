"""The geometries that every backend and every kernel variant is run on: one list, so that none gets an easier
one.

Each case is there for a way in which a kernel can go wrong: sizes that no tile divides, windows that hang
over a border, rows that no window reaches, kernels as large as the image, batches of nothing. Sizes stay
small enough for the loops of `reference.py`; those marked `tiny` are also quick in a CUDA simulator.

    @pytest.mark.parametrize("case", CONV_CASES, ids=str)
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import pytest
import reference

#: Multiply-adds (for a pooling: elements read) up to which a case counts as tiny.
TINY = 20_000


def generator(name: str) -> np.random.Generator:
    """A generator that depends on the name alone: a case has the same data whatever runs before it."""
    return np.random.default_rng(zlib.crc32(name.encode()))


def distinct(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
    """Values in random order of which any two differ by 1/16 or more.

    A maximum and a ReLU are not differentiable where values tie or vanish; a finite difference with a step
    below 1/32 never crosses such a point here. Half-integer multiples keep zero out and are exact in float32.
    """
    count = prod(shape)
    values = (np.arange(count) - count // 2 + 0.5) / 16
    return rng.permutation(values).reshape(shape).astype(dtype)


class _Padded:
    """A case of a name, whose input is padded."""

    name: str
    padding: Any

    def __str__(self) -> str:
        return self.name

    @property
    def by_side(self) -> bool:
        """Whether the two sides of a dimension are padded differently."""
        return isinstance(self.padding, tuple) and isinstance(self.padding[0], tuple)


@dataclass(frozen=True)
class ConvCase(_Padded):
    """A 2-D convolution: input (N, C, H, W), weight (K, C / groups, R, S), the rest as a user writes it."""

    name: str
    input: tuple[int, int, int, int]
    weight: tuple[int, int, int, int]
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1
    bias: bool = True

    @property
    def keywords(self) -> dict[str, Any]:
        """Keywords of `conv2d` after input, weight and bias."""
        return {name: getattr(self, name) for name in ("stride", "padding", "dilation", "groups")}

    @property
    def output(self) -> tuple[int, ...]:
        """(N, K, P, Q)."""
        return reference.conv2d_shape(self.input, self.weight, self.stride, self.padding, self.dilation)

    @property
    def tiny(self) -> bool:
        """Whether a CUDA simulator can run the case in a moment."""
        return prod(self.output) * prod(self.weight[1:]) <= TINY

    def arrays(self, dtype: Any) -> tuple[Any, Any, Any, Any]:
        """Input, weight, bias (None without one) and a gradient of the output."""
        rng = generator(self.name)
        x, w, b, grad = (
            rng.standard_normal(shape).astype(dtype)
            for shape in (self.input, self.weight, self.weight[:1], self.output)
        )
        return x, w, (b if self.bias else None), grad


@dataclass(frozen=True)
class PoolCase(_Padded):
    """A 2-D pooling of any kind (those that average have no dilation); arguments as a user writes them."""

    name: str
    input: tuple[int, int, int, int]
    kernel: Any
    stride: Any = None
    padding: Any = 0
    dilation: Any = 1
    ceil_mode: bool = False

    @property
    def keywords(self) -> dict[str, Any]:
        """Keywords of `max_pool2d` after input and kernel size."""
        return {name: getattr(self, name) for name in ("stride", "padding", "dilation", "ceil_mode")}

    @property
    def dilated(self) -> bool:
        """Whether the case is one for max pooling alone."""
        return self.dilation not in (1, (1, 1))

    @property
    def tiny(self) -> bool:
        """Whether a CUDA simulator can run the case in a moment."""
        return prod(self.input) * prod(reference.pair(self.kernel)) <= TINY

    def array(self, dtype: Any) -> Any:
        """An input without ties."""
        return distinct(generator(self.name), self.input, dtype)

    def tied(self, dtype: Any) -> Any:
        """An input of few different values, in which nearly every window has its maximum more than once."""
        return generator(self.name).integers(-1, 2, self.input).astype(dtype)


@dataclass(frozen=True)
class AdaptiveCase:
    """An adaptive pooling from the sizes of the input to those of the output."""

    name: str
    input: tuple[int, int, int, int]
    output: Any

    def __str__(self) -> str:
        return self.name

    def array(self, dtype: Any) -> Any:
        """A random input."""
        return generator(self.name).standard_normal(self.input).astype(dtype)


CONV_CASES = [
    # The layers of LeNet.
    ConvCase("lenet-conv1", (1, 1, 32, 32), (6, 1, 5, 5)),
    ConvCase("lenet-conv2", (1, 6, 14, 14), (16, 6, 5, 5)),
    # The plain case, and one image, channel or filter at a time.
    ConvCase("plain", (2, 3, 8, 7), (4, 3, 3, 3)),
    ConvCase("no-bias", (2, 3, 6, 7), (4, 3, 3, 3), padding=1, bias=False),
    ConvCase("one-image", (1, 2, 7, 8), (3, 2, 3, 3), padding=1),
    ConvCase("one-filter", (3, 4, 6, 5), (1, 4, 3, 3)),
    ConvCase("single-pixel", (1, 1, 1, 1), (1, 1, 1, 1)),
    ConvCase("single-pixel-padded", (2, 3, 1, 1), (4, 3, 3, 3), padding=1),
    ConvCase("empty-batch", (0, 3, 6, 6), (4, 3, 3, 3), padding=1),
    # Sizes that no tile divides.
    ConvCase("primes", (3, 5, 13, 11), (7, 5, 3, 3)),
    ConvCase("primes-tiny", (1, 3, 7, 11), (5, 3, 3, 3), padding=1),
    ConvCase("past-one-tile", (1, 2, 19, 35), (3, 2, 3, 3), padding=1),
    ConvCase("many-channels", (1, 37, 5, 5), (3, 37, 3, 3)),
    ConvCase("many-filters", (1, 2, 6, 5), (67, 2, 3, 3)),
    ConvCase("wide", (1, 1, 3, 131), (2, 1, 3, 3)),
    ConvCase("tall", (1, 1, 131, 3), (2, 1, 3, 3)),
    ConvCase("many-images", (17, 1, 5, 5), (2, 1, 3, 3)),
    # Kernel shapes.
    ConvCase("1x1", (2, 6, 5, 7), (5, 6, 1, 1)),
    ConvCase("1x1-strided", (2, 3, 7, 6), (4, 3, 1, 1), stride=2),
    ConvCase("7x7", (1, 2, 12, 11), (3, 2, 7, 7), padding=3),
    ConvCase("1xS", (2, 3, 5, 9), (4, 3, 1, 5), padding=(0, 2)),
    ConvCase("Rx1", (2, 3, 9, 5), (4, 3, 5, 1), padding=(2, 0)),
    ConvCase("2x2-even", (2, 2, 6, 7), (3, 2, 2, 2)),
    ConvCase("4x3-strided", (1, 3, 11, 10), (4, 3, 4, 3), stride=2, padding=1),
    # One pixel of output.
    ConvCase("kernel-is-image", (2, 3, 5, 4), (4, 3, 5, 4)),
    ConvCase("kernel-is-padded-image", (1, 2, 3, 2), (3, 2, 5, 4), padding=1),
    ConvCase("one-output-pixel", (1, 2, 4, 4), (3, 2, 3, 3), stride=3),
    # Strides; in some the last rows and columns belong to no window.
    ConvCase("stride-2", (2, 2, 9, 9), (3, 2, 3, 3), stride=2, padding=1),
    ConvCase("stride-3-rows-left-over", (1, 2, 11, 10), (3, 2, 3, 3), stride=3),
    ConvCase("stride-not-square", (1, 2, 8, 11), (3, 2, 3, 3), stride=(1, 3)),
    ConvCase("stride-beyond-kernel", (2, 2, 10, 12), (3, 2, 2, 3), stride=(3, 4)),
    ConvCase("stride-beyond-image", (1, 2, 4, 5), (3, 2, 3, 3), stride=7),
    # Padding.
    ConvCase("padding-not-square", (1, 2, 6, 5), (3, 2, 3, 5), padding=(1, 2)),
    ConvCase("padding-beyond-kernel", (1, 2, 4, 3), (3, 2, 2, 2), padding=4),
    ConvCase("asymmetric", (2, 2, 6, 7), (3, 2, 3, 4), padding=((0, 1), (2, 0))),
    ConvCase("asymmetric-strided", (1, 2, 8, 7), (3, 2, 3, 3), stride=2, padding=((0, 1), (0, 1))),
    ConvCase("same", (1, 2, 6, 7), (3, 2, 3, 5), padding="same"),
    ConvCase("same-even", (1, 2, 6, 7), (3, 2, 4, 2), padding="same"),
    ConvCase("same-even-dilated", (1, 2, 9, 8), (3, 2, 2, 4), padding="same", dilation=(3, 1)),
    ConvCase("valid", (1, 2, 6, 7), (3, 2, 3, 3), padding="valid"),
    # Dilation.
    ConvCase("dilation-2", (1, 2, 9, 8), (3, 2, 3, 3), padding=2, dilation=2),
    ConvCase("dilation-not-square", (1, 2, 10, 9), (3, 2, 3, 2), padding=1, dilation=(2, 3)),
    ConvCase("dilation-beyond-image", (1, 1, 3, 3), (2, 1, 3, 3), padding=4, dilation=4),
    ConvCase("dilated-strided", (2, 2, 13, 12), (3, 2, 3, 3), stride=2, padding=2, dilation=2),
    # Groups.
    ConvCase("groups-2", (2, 4, 6, 7), (6, 2, 3, 3), padding=1, groups=2),
    ConvCase("groups-3-strided", (1, 6, 9, 8), (3, 2, 3, 3), stride=2, groups=3),
    ConvCase("depthwise", (2, 5, 7, 8), (5, 1, 3, 3), padding=1, groups=5),
    ConvCase("depthwise-multiplier", (1, 4, 7, 6), (12, 1, 3, 3), stride=2, padding=1, groups=4),
    ConvCase("depthwise-7x7", (1, 3, 9, 10), (3, 1, 7, 7), padding=3, groups=3),
    # All at once, nothing square.
    ConvCase("everything", (2, 6, 13, 12), (4, 3, 3, 2), (2, 3), ((2, 1), (0, 3)), (2, 3), 2),
]

POOL_CASES = [
    PoolCase("lenet-pool1", (2, 6, 28, 28), 2),
    PoolCase("lenet-pool2", (2, 16, 10, 10), 2),
    PoolCase("overlapping", (2, 3, 9, 9), 3, 2),
    PoolCase("stride-1", (1, 2, 6, 7), 3, 1),
    PoolCase("stride-beyond-kernel", (2, 2, 11, 12), 2, (3, 5)),
    PoolCase("rows-left-over", (1, 3, 7, 9), 2),
    PoolCase("not-square", (2, 2, 8, 11), (3, 2), (2, 3)),
    PoolCase("1x1", (2, 3, 4, 5), 1),
    PoolCase("1xS", (1, 2, 3, 9), (1, 4)),
    PoolCase("Rx1", (1, 2, 9, 3), (4, 1)),
    PoolCase("7x7", (1, 2, 15, 14), 7, 3, 3),
    PoolCase("kernel-is-image", (2, 3, 5, 4), (5, 4)),
    PoolCase("single-pixel", (1, 1, 1, 1), 1),
    PoolCase("single-pixel-padded", (1, 2, 1, 1), 3, 1, 1),
    PoolCase("empty-batch", (0, 3, 6, 6), 2),
    PoolCase("primes", (3, 5, 13, 11), 3, 2, 1),
    PoolCase("past-one-tile", (1, 2, 19, 35), 2),
    PoolCase("wide", (1, 1, 2, 131), 2),
    PoolCase("padding", (2, 2, 6, 7), 3, 2, 1),
    PoolCase("padding-even", (1, 2, 5, 5), 2, 2, 1),
    PoolCase("padding-not-square", (1, 2, 6, 9), (3, 5), 2, (1, 2)),
    PoolCase("asymmetric", (2, 2, 6, 7), 3, 2, ((0, 1), (1, 0))),
    PoolCase("dilation-2", (1, 2, 9, 8), 3, 1, 1, 2),
    PoolCase("dilation-not-square", (2, 2, 9, 10), (2, 3), (2, 1), (1, 0), (3, 2)),
    PoolCase("ceil", (2, 2, 6, 8), 3, 2, ceil_mode=True),
    PoolCase("ceil-exact", (1, 2, 7, 9), 3, 2, ceil_mode=True),
    PoolCase("ceil-padding", (2, 2, 7, 8), 3, 2, 1, ceil_mode=True),
    PoolCase("ceil-drops-window-in-padding", (1, 2, 4, 5), 2, 3, 1, ceil_mode=True),
    PoolCase("ceil-stride-beyond-kernel", (1, 2, 8, 7), 2, 3, ceil_mode=True),
    PoolCase("ceil-image-below-kernel", (1, 2, 2, 3), (3, 4), 2, ceil_mode=True),
    PoolCase("ceil-asymmetric", (1, 2, 7, 6), (3, 2), 2, ((1, 0), (0, 1)), ceil_mode=True),
    PoolCase("ceil-dilated", (1, 2, 10, 9), 3, 3, 1, 2, ceil_mode=True),
]

ADAPTIVE_CASES = [
    AdaptiveCase("global", (2, 3, 5, 7), 1),
    AdaptiveCase("divides", (1, 2, 6, 8), (3, 2)),
    AdaptiveCase("overlaps", (2, 2, 7, 10), (3, 4)),
    AdaptiveCase("as-it-is", (1, 2, 4, 5), (None, None)),
    AdaptiveCase("one-side-kept", (1, 2, 6, 5), (None, 2)),
    AdaptiveCase("enlarges", (1, 2, 3, 2), (5, 7)),
    AdaptiveCase("single-pixel", (1, 1, 1, 1), 3),
    AdaptiveCase("empty-batch", (0, 3, 6, 6), 2),
]


@dataclass(frozen=True)
class WorkedExample:
    """A convolution of one image with one filter, and its result, as introductory texts print them."""

    name: str
    image: list[list[int]]
    filter: list[list[int]]
    result: list[list[int]]

    def __str__(self) -> str:
        return self.name

    def arrays(self, dtype: Any) -> tuple[Any, Any, Any]:
        """Image and filter as (1, 1, height, width), and the result likewise."""
        image, kernel, result = (np.array(a, dtype)[None, None] for a in (self.image, self.filter, self.result))
        return image, kernel, result

    def check(self, functions: Any, dtype: Any) -> None:
        """Its result is what ``functions.conv2d`` gives; of height 1 that of ``functions.conv1d``, too."""
        image, kernel, result = self.arrays(dtype)
        np.testing.assert_array_equal(functions.conv2d(image, kernel), result)
        if len(self.image) == 1:
            np.testing.assert_array_equal(functions.conv1d(image[:, :, 0], kernel[:, :, 0]), result[:, :, 0])


_VERTICAL_LINE = [[0, 0, 0, 1, 1, 0, 0, 0]] * 8
_VERTICAL_LINE_FOUND = [[0, 0, 3, 3, 0, 0]] * 6

WORKED_EXAMPLES = [
    # In one dimension: the case of height 1.
    WorkedExample("bump", [[0, 0, 0, 1, 1, 0, 0, 0]], [[0, 1, 0]], [[0, 0, 1, 1, 0, 0]]),
    WorkedExample("vertical-line", _VERTICAL_LINE, [[0, 1, 0]] * 3, _VERTICAL_LINE_FOUND),
    WorkedExample(
        "horizontal-line",
        np.transpose(_VERTICAL_LINE).tolist(),
        np.transpose([[0, 1, 0]] * 3).tolist(),
        np.transpose(_VERTICAL_LINE_FOUND).tolist(),
    ),
    WorkedExample(
        "5x5-binary-image",
        [[1, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 1, 1, 1], [0, 0, 1, 1, 0], [0, 1, 1, 0, 0]],
        [[1, 0, 1], [0, 1, 0], [1, 0, 1]],
        [[4, 3, 4], [2, 4, 3], [2, 3, 4]],
    ),
]


def thorough(variant: str, case: ConvCase) -> list[pytest.MarkDecorator]:
    """Marks of a kernel variant on a case: blocks of Winograd's are slow to simulate, and a sample has few of them."""
    few = ("one-image", "single-pixel-padded")
    return [pytest.mark.thorough] if variant == "winograd" and case.name not in few else []


#: What max pooling makes of a row: row, kernel, padding, maxima, and where they are.
RANKED = [
    ([2, 2, 2, 2], 2, 0, [2, 2], [0, 2]),
    ([-np.inf] * 4, 2, 0, [-np.inf, -np.inf], [0, 2]),
    ([-np.inf, -np.inf, 1, -np.inf], 2, 1, [-np.inf, 1, -np.inf], [0, 2, 3]),
    ([np.nan, 3, np.nan, np.nan], 2, 0, [np.nan, np.nan], [0, 3]),
    ([1, np.nan, np.inf, 7], 4, 0, [np.nan], [1]),
]
