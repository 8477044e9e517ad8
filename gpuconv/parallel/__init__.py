"""Data-parallel training: processes that each compute on a share of every batch, and average their gradients.

::

    # mpirun -n 4 python train.py
    from gpuconv import parallel

    model = parallel.DataParallel(LeNet5())
    images, labels = (part[parallel.share(len(part))] for part in batch)
    F.cross_entropy(model(images), labels).backward()  # gradients are those of the whole batch's mean
    optimizer.step()

The messages are those of an engine: MPI (``pip install 'gpuconv[parallel]'``), or NCCL between GPUs.
"""

from __future__ import annotations

from gpuconv.parallel.batch_norm import sync_batch_norm
from gpuconv.parallel.data_parallel import DataParallel
from gpuconv.parallel.world import TIMEOUT_VARIABLE, World, WorldError, current, joined, wait_for_first

__all__ = [
    "TIMEOUT_VARIABLE",
    "DataParallel",
    "World",
    "WorldError",
    "current",
    "joined",
    "rank",
    "share",
    "sync_batch_norm",
    "wait_for_first",
    "world_size",
]


def rank() -> int:
    """This process's number among those that train together, from 0; 0 if it is alone."""
    return current().rank


def world_size() -> int:
    """Number of processes that train together; 1 if this one is alone."""
    return current().size


def share(count: int) -> slice:
    """Which of ``count`` samples of a batch are this process's: a part that continues that of the rank before.

    The parts differ by one sample at most. With fewer samples than processes some are empty:
    :meth:`DataParallel.skip`.
    """
    return current().share(count)
