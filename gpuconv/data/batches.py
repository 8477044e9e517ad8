"""Index arrays for mini-batches and for a validation split, reproducible from a seed alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

__all__ = ["batch_count", "batch_indices", "split"]

# Different spawn keys keep the order of an epoch, the split, and the transforms of an epoch independent under one seed.
EPOCH_STREAM, SPLIT_STREAM, AUGMENT_STREAM = 0, 1, 2


def batch_count(count: int, batch_size: int, *, drop_last: bool = False) -> int:
    """Number of batches in an epoch over `count` samples.

    Args:
        count: samples, at least 0.
        batch_size: samples in a batch, at least 1.
        drop_last: whether a shorter last batch is left out.

    Raises:
        ValueError: an argument is out of its range.
    """
    require(count >= 0, "count", count, "at least 0")
    require(batch_size >= 1, "batch_size", batch_size, "at least 1")
    return count // batch_size if drop_last else -(-count // batch_size)


def batch_indices(
    count: int,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    shuffle: bool = True,
    start: int = 0,
    drop_last: bool = False,
) -> Iterator[NDArray[np.int64]]:
    """The samples of each mini-batch of one epoch.

    The order is a function of `seed`, `epoch` and `count` alone, the same on every platform and with every
    version of NumPy. So an interrupted epoch continues exactly where it stopped: pass the number of batches
    already taken as `start`.

    Args:
        count: samples in the set, at least 0 (no batches then).
        batch_size: samples in a batch, at least 1; the last batch may be shorter.
        seed: of the order, at least 0.
        epoch: number of the epoch, at least 0; each epoch has another order.
        shuffle: False gives 0, 1, ..., count - 1 in every epoch.
        start: number of the first batch to yield, from 0 to `batch_count(...)`.
        drop_last: whether a shorter last batch is left out.

    Returns:
        An iterator over int64 arrays of shape (batch,).

    Raises:
        ValueError: an argument is out of its range; raised at the call, not at the first batch.
    """
    batches = batch_count(count, batch_size, drop_last=drop_last)
    require(seed >= 0, "seed", seed, "at least 0")
    require(epoch >= 0, "epoch", epoch, "at least 0")
    require(0 <= start <= batches, "start", start, f"between 0 and {batches}, the number of batches")
    order = _permutation(count, seed, EPOCH_STREAM, epoch) if shuffle else np.arange(count, dtype=np.int64)
    return (order[i * batch_size : (i + 1) * batch_size] for i in range(start, batches))


def split(count: int, fraction: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Divide `count` samples at random into a training part and a validation part.

    Args:
        count: samples, at least 0.
        fraction: share of the validation part, in [0, 1). A fraction above 0 gives at least one sample.
        seed: of the choice, at least 0.

    Returns:
        The indices of the two parts, (training, validation): int64, ascending, disjoint, together all `count`.

    Raises:
        ValueError: an argument is out of its range, or `count` is too small to give both parts a sample.
    """
    require(count >= 0, "count", count, "at least 0")
    require(0 <= fraction < 1, "fraction", fraction, "at least 0 and below 1")
    require(seed >= 0, "seed", seed, "at least 0")
    held_out = 0
    if fraction > 0:
        if count < 2:
            raise ValueError(f"split: count is {count}; a validation part (fraction {fraction}) takes at least 2")
        held_out = min(max(round(count * fraction), 1), count - 1)
    order = _permutation(count, seed, SPLIT_STREAM)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def random_bits(count: int, seed: int, *stream: int) -> NDArray[np.uint64]:
    """`count` random integers of 64 bits; other ones for each `seed` and `stream`."""
    # Raw generator output, not Generator's methods: NumPy promises that SeedSequence and a bit generator's raw stream
    # never change, but not what those make of it (NEP 19), and a resumed training must see the same after an upgrade.
    return np.random.PCG64(np.random.SeedSequence(seed, spawn_key=stream)).random_raw(count)


def _permutation(count: int, seed: int, *stream: int) -> NDArray[np.int64]:
    # By sorting, not by Generator.permutation: see above. Two equal keys among 64-bit values stay in index order.
    keys = random_bits(count, seed, *stream, count)
    return np.argsort(keys, kind="stable").astype(np.int64, copy=False)


def require(condition: bool, name: str, given: object, wanted: str) -> None:
    """ValueError that says what an argument must be, unless the condition holds."""
    if not condition:
        raise ValueError(f"{name} is {given}; it must be {wanted}")
