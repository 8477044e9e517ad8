"""What a captured training step of LeNet-5 launches, for ``python -m bench.static --model lenet --step``.

The step is recorded, as ``gpuconv.capture`` records it, but not run: no GPU is needed. For each kernel: blocks and
threads, launch arguments, and the bytes of the arrays that it is given, each counted once. Below, what the step cannot
do without. What cuBLAS and CuPy launch, for batches for which this project's kernels are not made, is not seen. Nothing
here is a measurement of time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bench import layers
from bench.roofline import H200
from gpuconv.geometry import BlockGeometry, BlockPairGeometry
from gpuconv.kernels.operations import OPERATIONS

#: Multiply-adds for an image: forward; and backward, twice as many but for the gradient of the image.
FORWARD_MACS = 6 * 784 * 25 + 16 * 100 * 150 + 400 * 120 + 120 * 84 + 84 * 10
BACKWARD_MACS = 2 * FORWARD_MACS - 6 * 784 * 25
#: Bytes for an image, forward and fused: each result is written once and read once by the layer behind it; the pooled
#: maps have a byte for each winner.
FORWARD_BYTES = 4 * 1024 + (5 + 4) * 1176 + (5 + 4) * 400 + 8 * (120 + 84 + 10)


def noted_graph() -> Any:
    """A graph that keeps the arrays of its launches, which are looked at, and made again one by one."""
    from gpuconv.backends.cuda.graph import SimulatedGraph
    from gpuconv.kernels import device

    class Noted(SimulatedGraph):
        @contextlib.contextmanager
        def recording(self) -> Iterator[None]:
            with device.recording() as self.launches:
                yield

        def outside(self) -> contextlib.AbstractContextManager[None]:
            return contextlib.nullcontext()

        def owns(self, array: Any) -> bool:
            return False

        def borrowed(self, array: Any) -> bool:
            return True

        def computes(self, array: Any) -> bool:
            return True

    return Noted()


@dataclass(frozen=True)
class Recorded:
    """A launch of the step.

    Attributes:
        kernel: its name.
        blocks, threads: of the grid, and of a block.
        arguments: arrays and numbers.
        bytes: of its arrays, each counted once; also those that it reads and writes.
        flop: of its operation, see ``bench/layers.py``; 0 for a second stage, and for a part of a composed operation.
    """

    kernel: str
    blocks: int
    threads: int
    arguments: int
    bytes: int
    flop: int


def _flat(arguments: Any) -> list[Any]:
    """Arguments, those in tuples one by one."""
    return [one for part in arguments for one in (_flat(part) if isinstance(part, tuple) else [part])]


def record(batch: int, optimizer: str = "sgd") -> list[Recorded]:
    """What is known of the launches of a training step of LeNet-5, in their order.

    Args, Raises: as :func:`launches`.
    """
    made = launches(batch, optimizer)
    names = {kernel_name(launch) for launch, _ in made}
    return recorded(made, _work(batch, names))


def around(batch: int, *, augment: bool = False) -> list[Recorded]:
    """Likewise, what ``gpuconv train`` captures before such a step and behind it.

    Args:
        batch: images. The set, of which images are read by their numbers, is here no larger.
        augment: whether images are moved.

    Raises:
        BackendUnavailable: as :func:`launches`.
    """
    images, logits = _around(batch, augment)
    work = [("image_batch", images), ("count_correct", logits)]
    found = [(one, OPERATIONS[one].flop(geometry)) for one, geometry in work]
    return recorded(around_launches(batch, augment=augment), found)


def _around(batch: int, augment: bool) -> tuple[Any, tuple[int, int]]:
    """Geometries: of the images that are gathered, of the logits whose right answers are counted."""
    name = f"lenet5.images{'-warped' if augment else ''}"
    return layers.IMAGES[name]._replace(n=batch, total=batch), (batch, layers.LOGITS["lenet5.loss"][1])


def around_launches(batch: int, *, augment: bool = False) -> list[tuple[Any, tuple[Any, ...]]]:
    """The launches of :func:`around` with their arguments; noted, not made.

    Args, Raises: as :func:`around`.
    """
    import numpy as np

    from gpuconv import backends

    images, logits = _around(batch, augment)
    backend, graph = backends.get("cuda"), noted_graph()
    operands = OPERATIONS["image_batch"].operands(images, "float32")
    table, pixels, labels, order, transforms = (backend.asarray(np.zeros(one.shape, one.dtype)) for one in operands[:5])
    scores, loss, losses = (backend.asarray(np.zeros(shape, np.float32)) for shape in (logits, 1, 1))
    counts, step = (backend.asarray(np.zeros(1, np.int32)) for _ in range(2))
    with graph.recording():
        moved = transforms if augment else None
        backend.next_image_batch(table, pixels, labels, order, moved, (images.p, images.q), step, batch)
        backend.log_step(scores, labels, loss, losses, counts, step)
    return graph.launches


def inference_launches(batch: int) -> list[tuple[Any, tuple[Any, ...]]]:
    """The launches of LeNet's logits with their arguments; noted, not made.

    Args:
        batch: images.

    Raises:
        BackendUnavailable: as :func:`launches`.
    """
    import numpy as np

    import gpuconv
    from gpuconv import Tensor, backends, models

    backend, graph = backends.get("cuda"), noted_graph()
    with gpuconv.use_backend(backend), gpuconv.no_grad():
        model = models.LeNet5().to(backend).eval()
        images = Tensor(backend.asarray(np.zeros((batch, 1, 32, 32), np.float32)))
        with graph.recording():
            model(images)
    return graph.launches


def recorded(made: list[tuple[Any, tuple[Any, ...]]], work: Sequence[tuple[str, int]] = ()) -> list[Recorded]:
    """What is known of some launches; their FLOP from ``work``, operations in their order."""
    found, left = [], list(work)
    for launch, given in made:
        arguments = _flat(given)
        arrays = {id(one): one.nbytes for one in arguments if hasattr(one, "nbytes") and one.ndim}
        name, sizes = kernel_name(launch), (math.prod(launch.grid), math.prod(launch.block))
        if name.endswith("_update_all"):
            # Of the table of the coming steps' numbers it reads one row, and of the counts of all blocks their own.
            numbers, width = arguments[-1], 8 if name.startswith("adam") else 4
            arrays[id(numbers)] = (width + sizes[0]) * numbers.dtype.itemsize
        flop = next((left.pop(at)[1] for at, (operation, _) in enumerate(left) if operation == name), 0)
        found.append(Recorded(name, *sizes, len(arguments), sum(arrays.values()), flop))
    return found


def kernel_name(launch: Any) -> str:
    """The name of a launch's kernel, compiled or simulated."""
    kernel = launch.kernel
    return str((kernel.py_func if hasattr(kernel, "py_func") else kernel.fn).__name__)


def _work(batch: int, names: set[str]) -> list[tuple[str, int]]:
    """The operations of a step in their order, fused, and what each has to compute, given the names of its kernels."""
    block, chain, classes = "conv2d_relu_max_pool2d", layers.CLASSIFIERS["lenet5.classifier"], (batch, 10)
    first, second = (
        BlockGeometry(dataclasses.replace(g.conv, n=batch), dataclasses.replace(g.pool, n=batch))
        for g in (layers.BLOCKS["lenet5.block1"], layers.BLOCKS["lenet5.block2"])
    )
    chain = chain._replace(n=batch)
    pair = f"{block}_pair"
    order: list[tuple[str, Any]] = [(block, first), (block, second)]
    if pair in names:
        order = [(pair, BlockPairGeometry(first, second))]
    order += [("linear_chain", chain)]
    order += [("softmax_cross_entropy_mean", classes)]
    order += [(f"linear_chain_{part}", chain) for part in ("loss_grad_input", "grad_input", "grad_weight")]
    order += [(f"{block}_grad_input", second), (f"{block}_grad_weight", second), (f"{block}_grad_weight", first)]
    order += [(f"{name}_update_all", layers.PARAMETERS["lenet5.parameters"]) for name in ("sgd", "adam")]
    found = [(operation, OPERATIONS[operation].flop(geometry)) for operation, geometry in order]
    if "linear_chain_first" in names:
        at = next(at for at, (operation, _) in enumerate(found) if operation == "linear_chain")
        start = OPERATIONS["linear_chain"].flop(chain._replace(sizes=chain.sizes[:2], relu=chain.relu[:1]))
        found[at : at + 1] = [("linear_chain_first", start), ("linear_chain", found[at][1] - start)]
    return found


def launches(
    batch: int, optimizer: str = "sgd", *, weight_decay: float = 0.0, dtype: str = "float32", graph: Any = None
) -> list[tuple[Any, tuple[Any, ...]]]:
    """The launches of a training step of LeNet-5 with their arguments, in their order; noted, not made.

    Args:
        batch: images.
        optimizer: 'sgd' (with momentum) or 'adam'.
        weight_decay: of the optimizer; with any, its kernel is another one.
        dtype: element type of images and parameters.
        graph: what records the step; by default one that keeps the arrays.

    Raises:
        BackendUnavailable: neither a GPU nor the simulator can be used here.
    """
    import numpy as np

    import gpuconv
    from bench.contenders import training_step
    from gpuconv import Tensor, backends, models, optim
    from gpuconv.captured_step import CapturedStep

    backend, graph = backends.get("cuda"), graph or noted_graph()
    with gpuconv.use_backend(backend):
        model = models.LeNet5()
        for parameter in model.parameters():
            parameter.data = parameter.data.astype(dtype)
        parameters = model.to(backend).parameters()
        if optimizer == "sgd":
            update: Any = optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=weight_decay)
        else:
            update = optim.Adam(parameters, weight_decay=weight_decay)

        # Not zeros: who makes the launches later, to time them, finds work as in training.
        images = Tensor(np.random.default_rng(0).standard_normal((batch, 1, 32, 32), np.float32).astype(dtype))
        CapturedStep(training_step(model, update), backend, graph, 0).capture(images, np.zeros(batch, np.int64))
    found: list[tuple[Any, tuple[Any, ...]]] = graph.launches
    return found


def table(recorded: list[Recorded], others: list[Recorded], batch: int) -> str:
    """The launches of :func:`record`, their sums, those of :func:`around`, and the floor, as text."""

    def row(one: Recorded) -> tuple[str, ...]:
        return one.kernel, *(f"{n:,}" for n in (one.blocks, one.threads, one.arguments, one.bytes, one.flop))

    rows: list[tuple[str, ...]] = [("kernel", "blocks", "threads", "arguments", "bytes", "FLOP"), *map(row, recorded)]
    total = sum(one.bytes for one in recorded)
    sums = sum(one.arguments for one in recorded), total, sum(one.flop for one in recorded)
    rows.append((f"{len(recorded)} kernels", "", "", *(f"{n:,}" for n in sums)))
    empty = ("",) * 5
    rows += [("", *empty), ("in gpuconv train also", *empty), *map(row, others)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()
        for cells in rows
    ]
    flop = 2 * batch * (FORWARD_MACS + BACKWARD_MACS)
    arithmetic_us, copy_us = 1e6 * flop / H200.flops["float32"], 1e6 * total / H200.copy_bandwidth
    lines += [
        "",
        f"Multiply-adds of the step on {batch:,} images: {flop / 2:,.0f}, {arithmetic_us:.2f} us at 67 TFLOP/s.",
        f"Bytes of the forward pass alone, fused: {batch * FORWARD_BYTES:,}. All bytes of the step take "
        f"{copy_us:.2f} us at the 4.3 TB/s at which an H200 copies.",
    ]
    return "\n".join(lines)
