"""A data-parallel training step of LeNet-5 beside its parts: ``mpiexec -n 2 python -m bench.parallel``.

Each process computes on its share of a batch. Printed are the times of the step; of the same without communication; of
that, until all processes have done it; of the sum of gradients alone, with nothing to hide it behind.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np

from bench import command
from bench.command import Parser, Refused, start
from gpuconv import functional as F
from gpuconv import manual_seed, models, optim, parallel
from gpuconv.autograd import Tensor
from gpuconv.parallel import World


def step_of(world: World, images: np.ndarray, labels: np.ndarray) -> tuple[Callable[[], None], models.LeNet5]:
    """A training step on this process's images, and its network."""
    manual_seed(0)
    model = models.LeNet5()
    together = parallel.DataParallel(model, world=world)
    optimizer = optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(together(Tensor(images)), labels).backward()
        optimizer.step()

    return step, model


def times_of(function: Callable[[], object], world: World, repeats: int) -> tuple[float, float]:
    """Milliseconds, median and least, of the slowest process; all begin together."""
    times = []
    for _ in range(repeats):
        world.sum(0)
        begun = time.perf_counter()
        function()
        times.append(1e3 * (time.perf_counter() - begun))
    kept = times[3:] or times
    medians, least = zip(*world.gathered((statistics.median(kept), min(kept))), strict=True)
    return max(medians), max(least)


def _run(argv: Sequence[str] | None) -> int:
    parser = Parser("parallel", "A data-parallel training step beside its parts.")
    parser.add_argument("--batch", type=int, default=256, help="images of a whole batch")
    parser.add_argument("--repeats", type=int, default=100, help="steps that are timed")
    given = parser.parse_args(argv)
    if given.batch < parallel.world_size() or given.repeats < 1:
        raise Refused("--batch must be at least the number of processes, and --repeats at least 1")
    world = parallel.current()
    own = world.share(given.batch)
    count = own.stop - own.start
    numbers = np.random.default_rng(world.rank)
    images = numbers.standard_normal((count, 1, 32, 32)).astype(np.float32)
    labels = numbers.integers(0, 10, count)
    step, model = step_of(world, images, labels)
    alone, _ = step_of(World(), images, labels)
    gradients = np.zeros(sum(parameter.numel() for parameter in model.parameters()), np.float32)
    parts: dict[str, Callable[[], object]] = {
        "step": step,
        "without communication": alone,
        "the slowest of them": lambda: (alone(), world.sum(0)),
        f"sum of {gradients.nbytes:,} bytes": lambda: world.start_sum(gradients)(),
    }
    times = {name: times_of(part, world, given.repeats) for name, part in parts.items()}
    if world.first:
        print(f"LeNet-5, batch {given.batch}, {world.size} processes, {world.cores()} cores each")
        print(f"{'':28} {'median':>8}    {'least':>8}")
        for name, (median, least) in times.items():
            print(f"{name:28} {median:8.3f} ms {least:8.3f} ms")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Measure. See :func:`bench.command.answer`."""
    return command.answer("bench.parallel", _run, argv)


if __name__ == "__main__":
    start(main)
