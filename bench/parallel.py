"""A data-parallel training step of LeNet-5 beside its parts: ``mpiexec -n 2 python -m bench.parallel``.

Each process computes on its share of a batch. Printed are the medians of: the step; the same without communication; the
sum of gradients alone, without anything to hide it behind. The numbers of the page docs/parallel.md are these.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

from gpuconv import functional as F
from gpuconv import manual_seed, models, optim, parallel
from gpuconv.autograd import Tensor
from gpuconv.parallel import World


def step_of(world: World, batch: int, images: np.ndarray, labels: np.ndarray):
    manual_seed(0)
    model = models.LeNet5()
    together = parallel.DataParallel(model, world=world)
    optimizer = optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def step():
        optimizer.zero_grad()
        F.cross_entropy(together(Tensor(images)), labels).backward()
        optimizer.step()

    return step, model


def median(function, world: World, repeats: int) -> float:
    """Milliseconds, of which the slowest process's count; all begin together."""
    times = []
    for _ in range(repeats):
        world.sum(0)
        begun = time.perf_counter()
        function()
        times.append(1e3 * (time.perf_counter() - begun))
    return max(world.gathered(statistics.median(times[3:])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=256, help="images of a whole batch")
    parser.add_argument("--repeats", type=int, default=100)
    given = parser.parse_args()
    world = parallel.current()
    own = world.share(given.batch)
    count = own.stop - own.start
    numbers = np.random.default_rng(world.rank)
    images = numbers.standard_normal((count, 1, 32, 32)).astype(np.float32)
    labels = numbers.integers(0, 10, count)
    step, model = step_of(world, given.batch, images, labels)
    alone, _ = step_of(World(), given.batch, images, labels)
    gradients = np.ones(sum(parameter.numel() for parameter in model.parameters()), np.float32)
    times = {
        "step": median(step, world, given.repeats),
        "without communication": median(alone, world, given.repeats),
        f"sum of {gradients.nbytes:,} bytes": median(lambda: world.start_sum(gradients)(), world, given.repeats),
    }
    if world.first:
        print(f"LeNet-5, batch {given.batch}, {world.size} processes, {world.cores()} cores each")
        for name, milliseconds in times.items():
            print(f"{name:28} {milliseconds:8.3f} ms")


if __name__ == "__main__":
    main()
