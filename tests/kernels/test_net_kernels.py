"""The kernel for a whole network: right in every tiling, and clean under the trace.

Judged by the loops of `reference.py`, one operation after the other.
"""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import Any

import cases
import numpy as np
import pytest
import reference
from support.simulation import TOLERANCE, run

from gpuconv.geometry import BlockGeometry, ChainGeometry, Conv2dGeometry, NetGeometry, Pool2dGeometry
from gpuconv.kernels import VARIANTS, load

OPERATIONS = ("conv_net",)
MODULES = [load(operation, variant) for operation in OPERATIONS for variant in VARIANTS[operation]]


@dataclasses.dataclass(frozen=True)
class Block:
    """A convolution with so many filters of a window, and its pooling, as a user writes them."""

    filters: int
    window: tuple[int, int]
    pool: Any = 2
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    pooling: dict[str, Any] = dataclasses.field(default_factory=dict)
    bias: bool = True


@dataclasses.dataclass(frozen=True)
class Net:
    """Images (N, C, H, W), blocks, and the sizes of the layers behind them."""

    name: str
    images: tuple[int, int, int, int]
    blocks: tuple[Block, ...]
    sizes: tuple[int, ...]
    relu: tuple[bool, ...]
    #: Layers without a bias.
    bare: tuple[int, ...] = ()

    def __str__(self) -> str:
        return self.name

    @property
    def geometry(self) -> NetGeometry:
        shape, blocks = self.images, []
        for block in self.blocks:
            conv = Conv2dGeometry.of(shape, (block.filters, shape[1], *block.window), **block.options)
            blocks.append(BlockGeometry(conv, Pool2dGeometry.of(conv.output_shape, block.pool, **block.pooling)))
            shape = blocks[-1].pool.output_shape
        return NetGeometry(tuple(blocks), ChainGeometry(shape[0], (np.prod(shape[1:]).item(), *self.sizes), self.relu))

    def arrays(self, dtype):
        """Images, weights and biases; scaled, so that results neither vanish nor grow."""
        geometry, rng = self.geometry, cases.generator(self.name)
        shapes = [block.conv.weight_shape for block in geometry.blocks]
        shapes += [(after, before) for before, after in pairwise(geometry.chain.sizes)]
        weights = [(rng.standard_normal(s) * (2 / np.prod(s[1:])) ** 0.5).astype(dtype) for s in shapes]
        biases = [rng.standard_normal(s[0]).astype(dtype) for s in shapes]
        biased = [block.bias for block in self.blocks] + [i not in self.bare for i in range(len(self.sizes))]
        x = rng.standard_normal(self.images).astype(dtype)
        return x, weights, [b if given else None for b, given in zip(biases, biased, strict=True)]

    def expected(self, x, weights, biases):
        y, count = x, len(self.blocks)
        for block, w, b in zip(self.blocks, weights[:count], biases[:count], strict=True):
            maps = reference.relu(reference.conv2d(y, w, b, **block.options))
            y, _ = reference.max_pool2d(maps, block.pool, **block.pooling)
        y = y.reshape(len(y), -1)
        for w, b, active in zip(weights[count:], biases[count:], self.relu, strict=True):
            y = reference.linear(y, w, b)
            y = reference.relu(y) if active else y
        return y


NETS = [
    Net("small-lenet", (2, 1, 16, 16), (Block(3, (5, 5)), Block(4, (3, 3))), (7, 5, 3), (True, True, False)),
    # One block and one layer; sizes that nothing divides, windows that are not square, no biases, a ReLU at the end.
    Net("one-block", (3, 2, 9, 7), (Block(5, (3, 2), pool=(2, 3), bias=False),), (3,), (True,), bare=(0,)),
    # Padding inside of the network, whose zeros no stage before has written; windows that overlap.
    Net(
        "padded",
        (1, 1, 11, 9),
        (
            Block(3, (3, 3), 3, {"padding": 1}, {"stride": 2, "padding": 1}),
            Block(4, (5, 3), 2, {"padding": (2, 1)}, {"ceil_mode": True}),
            Block(2, (2, 2), 1, {"padding": ((0, 1), (1, 0))}),
        ),
        (6, 2),
        (True, False),
        bare=(1,),
    ),
    Net(
        "strides-and-dilation",
        (1, 3, 17, 19),
        (
            Block(4, (3, 3), 2, {"stride": 2, "padding": 1}, {"stride": 1}),
            Block(3, (2, 3), 2, {"dilation": (2, 1)}, {"dilation": 2, "stride": 1}),
        ),
        (5,),
        (False,),
    ),
    # Rows and columns that no window reaches: they are there, and read by nobody.
    Net("unreached", (1, 1, 14, 12), (Block(2, (2, 2)), Block(3, (3, 3))), (4,), (False,)),
    Net("single-pixel", (2, 1, 1, 1), (Block(1, (1, 1), 1),), (1, 1), (True, False)),
    # More pooled outputs and results than threads; sums of several batches of loads, and what is left of them.
    Net("many-outputs", (1, 2, 12, 11), (Block(37, (1, 2), 2),), (3,), (False,)),
    Net("many-results", (1, 1, 6, 6), (Block(2, (3, 3), 2),), (1100, 3), (True, False)),
    Net("long-sums", (1, 1, 24, 24), (Block(8, (1, 1), 2),), (90, 130), (True, True)),
]
LENET = Net("lenet", (2, 1, 32, 32), (Block(6, (5, 5)), Block(16, (5, 5))), (120, 84, 10), (True, True, False))


def check(net, dtype, tilings, arrays=None):
    x, weights, biases = arrays or net.arrays(dtype)
    expected = net.expected(x, weights, biases)
    for module in MODULES:
        for tiling in module.tilings(net.geometry)[tilings]:
            out = np.full(expected.shape, np.nan, dtype)
            run(module, (x, weights, biases), (out,), net.geometry, tiling)
            np.testing.assert_allclose(out, expected, **TOLERANCE[dtype], err_msg=str(tiling))


@pytest.mark.grid(2)
@pytest.mark.parametrize("net", NETS, ids=str)
def test_kernel(net):
    """The last layer's results are the reference's in every tiling; each is written once, and nothing else is."""
    check(net, "float32", slice(None))
    check(net, "float64", slice(1))


def test_lenet():
    """The network that it is for."""
    check(LENET, "float32", slice(1))


def test_weights_that_are_not_aligned():
    """Weights of layers are read 128 bits at a time only where they all begin at a multiple of 16 bytes."""
    net = NETS[-1]
    x, weights, biases = net.arrays("float32")
    moved = np.empty(weights[1].size + 1, np.float32)[1:].reshape(weights[1].shape)
    moved[...] = weights[1]
    check(net, "float32", slice(1), (x, [weights[0], moved, weights[2]], biases))


def test_what_is_not_finite():
    """A NaN reaches the results of its image, through ReLU and pooling, and no other; infinity is none."""
    net = Net("not-finite", (3, 1, 9, 9), (Block(2, (3, 3)), Block(3, (2, 2))), (4, 3), (True, False))
    x, weights, biases = net.arrays("float32")
    x[1, 0, 4, 4] = np.nan
    x[2, 0, 4, 4] = np.inf
    with np.errstate(invalid="ignore"):
        expected = net.expected(x, weights, biases)
        assert np.isnan(expected).any(axis=1).tolist()[:2] == [False, True]
        for module in MODULES:
            for tiling in module.tilings(net.geometry):
                out = np.zeros(expected.shape, np.float32)
                run(module, (x, weights, biases), (out,), net.geometry, tiling)
                np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5, err_msg=str(tiling))


def test_the_order_of_summation_is_fixed():
    """The same bits whatever the order in which threads run."""
    net = NETS[0]
    x, weights, biases = net.arrays("float32")
    for module in MODULES:
        results = [np.full((2, 3), np.nan, np.float32) for _ in range(3)]
        for out in results:
            run(module, (x, weights, biases), (out,), net.geometry, module.tilings(net.geometry)[0])
            np.testing.assert_array_equal(out, results[0])


def test_no_images():
    """Nothing is launched."""
    geometry = dataclasses.replace(LENET, images=(0, 1, 32, 32)).geometry
    for module in MODULES:
        assert module.launches(geometry, module.tilings(geometry)[0], np.float32) == ()


def test_what_is_refused():
    """What does not fit into a thread or a block, or is not made: each with the reason."""
    filters = Block(4, (3, 3))
    conv = Conv2dGeometry.of((1, 4, 8, 8), (4, 2, 3, 3), groups=2)
    groups = NetGeometry(
        (BlockGeometry(conv, Pool2dGeometry.of(conv.output_shape, 2)),), ChainGeometry(1, (36, 2), (False,))
    )
    lenet = LENET.geometry
    refused = [
        (lenet._replace(blocks=()), "no convolution"),
        (groups, "convolution 1 has 2 groups"),
        (Net("", (1, 1, 40, 40), (filters, Block(2, (9, 9))), (2,), (False,)).geometry, "convolution 2: .*registers"),
        (Net("", (1, 8, 40, 40), (filters,), (2,), (False,)).geometry, "float32 .*shared memory"),
        (Net("", (1, 1, 8, 8), (filters,), (1,) * 9, (True,) * 9).geometry, "9 layers"),
        (Net("", (1, 1, 10, 10), (Block(1, (1, 1), 1),) * 9, (1,), (True,)).geometry, "9 convolutions"),
        (dataclasses.replace(LENET, images=(2**21 + 1, 1, 32, 32)).geometry, "64-bit offsets"),
    ]
    for geometry, reason in refused:
        for module in MODULES:
            assert not module.supports(geometry)
            with pytest.raises(ValueError, match=f"conv_net: .*{reason}"):
                module.launches(geometry, None, np.float32)
    colours = dataclasses.replace(LENET, images=(1, 3, 32, 32)).geometry
    for module in MODULES:
        assert module.supports(colours)
        assert len(module.launches(colours, module.tilings(colours)[0], np.float32)) == 1
        with pytest.raises(ValueError, match=r"conv_net: .*float64 .*shared memory"):
            module.launches(colours, module.tilings(colours)[0], np.float64)
