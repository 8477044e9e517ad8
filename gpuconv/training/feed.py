"""Stores the training images of a run, and makes the batches from them.

:class:`Feed` is for grey images in memory. They are stored as in the data set, one byte a pixel: 47 MB for all of
MNIST, a fifth of the 246 MB that they take when padded and standardised. The backend's ``image_batch`` turns them into
inputs at each step. :class:`HostFeed` is for images in colours, and for those that are read from files: threads of the
host prepare the batches ahead.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gpuconv.autograd import overwrite
from gpuconv.backends import Backend
from gpuconv.data import Ahead, InputTransform, augmented, batch_count, batch_indices, random_transforms


def _whole(count: int) -> slice:
    return slice(0, count)


class _Log:
    """Loss and number of correct answers of the steps of an epoch, and the number of the next step, on the device.

    The kernels of a captured step advance the number themselves.
    """

    def __init__(self, backend: Backend, steps: int):
        self._backend = backend
        self._step = backend.asarray(np.zeros(1, np.int32))
        self._log = backend.asarray(np.zeros(steps, np.float32)), backend.asarray(np.zeros(steps, np.int32))

    def log(self, logits: Any, labels: Any, loss: Any) -> None:
        """Record a step's loss and number of correct answers on the device, and advance to the next step."""
        self._backend.log_step(logits, labels, loss, *self._log, self._step)

    def logged(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """What :meth:`log` recorded in steps ``first`` to ``last - 1``; waits for the device."""
        losses, counts = (self._backend.to_numpy(log[first:last]) for log in self._log)
        return losses, counts

    def close(self) -> None:
        """Let go of what prepares batches."""


class HostFeed(_Log):
    """Labelled images on the host or in files; threads read, augment and standardise the batches ahead, in order.

    What a batch holds depends on the seed and the numbers of its epoch and step alone. If an epoch would end with a
    batch of one image, of which batch normalisation can make nothing, that image is left out of this epoch.

    Args:
        images: (N, H, W) or (N, 3, H, W), uint8: an array, or pictures in files.
        labels: (N,), int64.
        transform: how they become inputs.
        backend: where the batches are needed.
        batch_size: images of a batch, at most.
        seed: of the order, and of the augmentation.
        augmentations: names of :data:`gpuconv.data.AUGMENTATIONS`.
        workers: threads; by default one a core, four at most.
        share: which part of a batch of so many images is wanted; by default all.
    """

    def __init__(
        self,
        images: Any,
        labels: np.ndarray,
        transform: InputTransform,
        backend: Backend,
        *,
        batch_size: int,
        seed: int,
        augmentations: Sequence[str] = (),
        workers: int | None = None,
        share: Callable[[int], slice] = _whole,
    ):
        self._images, self._labels, self._transform, self._share = images, labels, transform, share
        self._batch_size, self._seed, self._augmentations = batch_size, seed, augmentations
        self._workers = workers
        self._count = len(labels) - (len(labels) > batch_size > 1 and len(labels) % batch_size == 1)
        super().__init__(backend, batch_count(self._count, batch_size))
        self._batches: Ahead[tuple[np.ndarray, np.ndarray]] | None = None
        self._current: tuple[int, tuple[np.ndarray, np.ndarray]] | None = None

    def __len__(self) -> int:
        """Number of images of an epoch."""
        return self._count

    def begin(self, epoch: int, step: int = 0) -> None:
        """Shuffle the images, and have batches prepared from ``step`` on, counted from 0."""
        self.close()
        (order,) = batch_indices(len(self._labels), len(self._labels), seed=self._seed, epoch=epoch)
        images, labels, size, kinds = self._images, self._labels, self._batch_size, self._augmentations
        order, seed, transform, share = order[: self._count], self._seed, self._transform, self._share

        # Refers to no self: who drops the feed ends the threads.
        def prepared(step: int) -> tuple[np.ndarray, np.ndarray]:
            index = order[step * size : (step + 1) * size]
            part = share(len(index))
            index = index[part]
            batch = images[index]
            if kinds:
                batch = augmented(batch, kinds, seed=seed, epoch=epoch, step=step, first=part.start)
            return transform(batch), labels[index]

        steps = batch_count(self._count, size)
        self._batches = Ahead(prepared, range(step, steps), self._workers)
        overwrite(self._step, np.array([step], np.int32))

    def inputs(self, step: int) -> tuple[Any, ...]:
        """The arguments of a step, as arrays of the backend; steps are asked for in order, beginning with that of
        :meth:`begin`.
        """
        return tuple(map(self._backend.asarray, self.next_inputs(step)))

    def batch(self, *inputs: Any) -> tuple[Any, Any]:
        """Network inputs, (n, C, *size) float32, and labels, (n,) int64, from what :meth:`inputs` returned."""
        images, labels = inputs
        return images, labels

    def next_inputs(self, step: int) -> tuple[Any, ...]:
        """As :meth:`inputs`, on the host."""
        # A step that could not be captured is asked for again.
        if self._current is None or self._current[0] != step:
            assert self._batches is not None
            self._current = step, next(self._batches)
        return self._current[1]

    def next_batch(self, *inputs: Any) -> tuple[Any, Any]:
        """As :meth:`batch`, of a step that is captured."""
        images, labels = map(self._backend.asarray, inputs)
        return images, labels

    def close(self) -> None:
        """End the threads."""
        if self._batches is not None:
            self._batches.close()
        self._batches = self._current = None


class Feed(_Log):
    """Labelled images on a backend, in a new order in each epoch.

    On a GPU they are uploaded once, if they take no more than half of the free memory; the other half is left for
    training. A step then gets the numbers of its images, and the pixels never leave the device. Otherwise images are
    copied batch by batch. While the device is busy with an epoch, a thread of the host draws the order and the
    transforms of the next one.

    Args:
        images: (N, H, W), uint8; N is at least 1.
        labels: (N,), int64.
        transform: how they become inputs.
        backend: where the batches are needed.
        batch_size: images of a batch, at most.
        seed: of the order, and of the augmentation.
        augment: whether images are moved at random in each epoch, see :func:`gpuconv.data.random_transforms`.
        workers: 0 for no thread.
        share: which part of a batch of so many images is wanted; by default all.

    Attributes:
        resident: whether the images are stored where the batches are needed.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        transform: InputTransform,
        backend: Backend,
        *,
        batch_size: int,
        seed: int,
        augment: bool,
        workers: int | None = None,
        share: Callable[[int], slice] = _whole,
    ):
        super().__init__(backend, batch_count(len(images), batch_size))
        self._share = share
        self._size, self._batch_size = transform.size, batch_size
        self._seed, self._augment = seed, augment
        order, transforms = np.empty(len(images), np.int64), np.empty((len(images), 2, 3), np.float32)
        kept = [order, images, labels, *([transforms] if augment else [])]
        free = backend.free_memory()
        self._workers = 0 if free is None or workers == 0 else 1
        #: Orders and transforms of the epochs from `_next` on.
        self._epochs: Ahead[tuple[np.ndarray, np.ndarray | None]] | None = None
        self._next = -1
        self.resident = free is None or 2 * sum(array.nbytes for array in kept) <= free
        if self.resident:
            kept = [backend.asarray(array) for array in kept]
        #: Numbers of the images in the epoch's order; and what these numbers index.
        self._order, *self._set = kept
        self._table = backend.asarray(transform.table())
        # If images are copied batch by batch, each batch is a data set of its own, used as a whole.
        self._all_of_a_batch = backend.asarray(np.arange(min(batch_size, len(images))))

    def __len__(self) -> int:
        """Number of images."""
        return len(self._order)

    def begin(self, epoch: int, step: int = 0) -> None:
        """Shuffle the images and draw their transforms; both depend only on the seed and the epoch's number.

        The epoch's next step is ``step``, counted from 0.
        """
        if self._epochs is None or epoch != self._next:
            self.close()
            count, seed, augment = len(self), self._seed, self._augment

            # Refers to no self: who drops the feed ends the thread.
            def drawn(epoch: int) -> tuple[np.ndarray, np.ndarray | None]:
                (order,) = batch_indices(count, count, seed=seed, epoch=epoch)
                return order, random_transforms(count, seed=seed, epoch=epoch) if augment else None

            self._epochs = Ahead(drawn, range(epoch, sys.maxsize), self._workers, ahead=1)
        order, transforms = next(self._epochs)
        self._next = epoch + 1
        # In place, where a captured step reads them.
        overwrite(self._order, order)
        if transforms is not None:
            overwrite(self._set[2], transforms)
        overwrite(self._step, np.array([step], np.int32))

    def close(self) -> None:
        """End the thread."""
        if self._epochs is not None:
            self._epochs.close()
        self._epochs = None

    def inputs(self, step: int) -> tuple[Any, ...]:
        """The arguments of a step, counted from 0, as arrays of the backend; the last batch may be shorter."""
        index = self._order[step * self._batch_size : (step + 1) * self._batch_size]
        index = index[self._share(len(index))]
        return (index,) if self.resident else tuple(self._backend.asarray(array[index]) for array in self._set)

    def batch(self, *inputs: Any) -> tuple[Any, Any]:
        """Network inputs, (n, 1, *size) float32, and labels, (n,) int64, from what :meth:`inputs` returned."""
        if self.resident:
            (index,), found = inputs, self._set
        else:
            index, found = self._all_of_a_batch[: len(inputs[0])], list(inputs)
        images, labels, transforms = [*found, None][:3]
        return self._backend.image_batch(self._table, images, labels, index, transforms, self._size)

    # -- for a step that is captured: nothing here waits for the device, nor for the host -----------------------------

    def next_inputs(self, step: int) -> tuple[Any, ...]:
        """The arguments of a captured step: nothing, if the images are on the device; else its batch."""
        if self.resident:
            return ()
        index = self._order[step * self._batch_size : (step + 1) * self._batch_size]
        return tuple(array[index] for array in self._set)

    def next_batch(self, *inputs: Any) -> tuple[Any, Any]:
        """As :meth:`batch`, for the next full batch."""
        if not self.resident:
            return self.batch(*map(self._backend.asarray, inputs))
        images, labels, transforms = [*self._set, None][:3]
        return self._backend.next_image_batch(
            self._table, images, labels, self._order, transforms, self._size, self._step, self._batch_size
        )
