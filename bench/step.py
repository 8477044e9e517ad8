"""What a captured training step of LeNet-5 launches, for ``python -m bench.static --model lenet --step``.

The step is recorded, as ``gpuconv.capture`` records it, but not run: no GPU is needed. For each kernel: blocks and
threads, launch arguments, and the bytes of the arrays that it is given, each counted once. Below, what the step cannot
do without. What cuBLAS and CuPy launch, for batches for which this project's kernels are not made, is not seen. Nothing
here is a measurement of time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

#: Multiply-adds for an image: forward; and backward, twice as many but for the gradient of the image.
FORWARD_MACS = 6 * 784 * 25 + 16 * 100 * 150 + 400 * 120 + 120 * 84 + 84 * 10
BACKWARD_MACS = 2 * FORWARD_MACS - 6 * 784 * 25
#: Bytes for an image, forward and fused: each result is written once and read once by the layer behind it; the pooled
#: maps have a byte for each winner.
FORWARD_BYTES = 4 * 1024 + (5 + 4) * 1176 + (5 + 4) * 400 + 8 * (120 + 84 + 10)
#: An H200: float32 multiply-adds count two operations; bytes a second of a copy, as measured.
FLOPS, COPY_BANDWIDTH = 67e12, 4.3e12


@dataclass(frozen=True)
class Recorded:
    """A launch of the step.

    Attributes:
        kernel: its name.
        blocks, threads: of the grid, and of a block.
        arguments: arrays and numbers.
        bytes: of its arrays, each counted once; also those that it reads and writes.
    """

    kernel: str
    blocks: int
    threads: int
    arguments: int
    bytes: int


def _flat(arguments: Any) -> list[Any]:
    """Arguments, those in tuples one by one."""
    return [one for part in arguments for one in (_flat(part) if isinstance(part, tuple) else [part])]


def record(batch: int, optimizer: str = "sgd") -> list[Recorded]:
    """The launches of a training step of LeNet-5, in their order; in the simulator.

    Args:
        batch: images.
        optimizer: 'sgd' (with momentum) or 'adam'.

    Raises:
        BackendUnavailable: the simulator cannot run here.
    """
    import numpy as np

    import gpuconv
    from gpuconv import Tensor, backends, models, optim
    from gpuconv import functional as F
    from gpuconv.graph import CapturedStep

    backend = backends.get("cuda")
    graph = backend.new_graph()
    with gpuconv.use_backend(backend):
        model = models.LeNet5()
        parameters = model.parameters()
        update = optim.SGD(parameters, lr=0.1, momentum=0.9) if optimizer == "sgd" else optim.Adam(parameters)

        def step(images: Tensor, labels: Any) -> Tensor:
            loss = F.cross_entropy(model(images), labels)
            update.zero_grad()
            loss.backward()
            update.step()
            return loss

        images = Tensor(np.zeros((batch, 1, 32, 32), np.float32))
        CapturedStep(step, backend, graph, 0).capture(images, np.zeros(batch, np.int64))
    found = []
    for launch, given in graph.launches:
        arguments = _flat(given)
        arrays = {id(one): one.nbytes for one in arguments if isinstance(one, np.ndarray)}
        sizes = math.prod(launch.grid), math.prod(launch.block)
        found.append(Recorded(launch.kernel.fn.__name__, *sizes, len(arguments), sum(arrays.values())))
    return found


def table(launches: list[Recorded], batch: int) -> str:
    """The launches, their sums, and the floor, as text."""
    rows = [("kernel", "blocks", "threads", "arguments", "bytes")]
    rows += [(one.kernel, *(f"{n:,}" for n in (one.blocks, one.threads, one.arguments, one.bytes))) for one in launches]
    total = sum(one.bytes for one in launches)
    rows.append((f"{len(launches)} kernels", "", "", f"{sum(one.arguments for one in launches):,}", f"{total:,}"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    flop = 2 * batch * (FORWARD_MACS + BACKWARD_MACS)
    lines += [
        "",
        f"Multiply-adds of the step on {batch:,} images: {flop / 2:,.0f}, {1e6 * flop / FLOPS:.2f} us at 67 TFLOP/s.",
        f"Bytes of the forward pass alone, fused: {batch * FORWARD_BYTES:,}. All bytes above take "
        f"{1e6 * total / COPY_BANDWIDTH:.2f} us at the 4.3 TB/s at which an H200 copies.",
    ]
    return "\n".join(lines)
