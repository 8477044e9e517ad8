"""Stores the training images of a run, and makes the batches from them.

Images are stored as in the data set, one byte a pixel: 47 MB for all of MNIST, a fifth of the 246 MB that they take
when padded and standardised. The backend's ``image_batch`` turns them into inputs at each step.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpuconv.autograd import overwrite
from gpuconv.backends import Backend
from gpuconv.data import InputTransform, batch_count, batch_indices, random_transforms


class Feed:
    """Labelled images on a backend, in a new order in each epoch.

    On a GPU they are uploaded once, if they take no more than half of the free memory; the other half is left for
    training. A step then gets the numbers of its images, and the pixels never leave the device. Otherwise images are
    copied batch by batch.

    Args:
        images: (N, H, W), uint8; N is at least 1.
        labels: (N,), int64.
        transform: how they become inputs.
        backend: where the batches are needed.
        batch_size: images of a batch, at most.
        seed: of the order, and of the augmentation.
        augment: whether images are moved at random in each epoch, see :func:`gpuconv.data.random_transforms`.

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
    ):
        self._backend, self._size, self._batch_size = backend, transform.size, batch_size
        self._seed, self._augment = seed, augment
        order, transforms = np.empty(len(images), np.int64), np.empty((len(images), 2, 3), np.float32)
        kept = [order, images, labels, *([transforms] if augment else [])]
        free = backend.free_memory()
        self.resident = free is None or 2 * sum(array.nbytes for array in kept) <= free
        if self.resident:
            kept = [backend.asarray(array) for array in kept]
        #: Numbers of the images in the epoch's order; and what these numbers index.
        self._order, *self._set = kept
        self._table = backend.asarray(transform.table())
        # If images are copied batch by batch, each batch is a data set of its own, used as a whole.
        self._all_of_a_batch = backend.asarray(np.arange(min(batch_size, len(images))))
        #: Of the epoch: number of the next step; loss and number of correct answers of each step. They are on the
        #: device, where the kernels of a captured step advance the number themselves.
        self._step, steps = backend.asarray(np.zeros(1, np.int32)), batch_count(len(images), batch_size)
        self._log = backend.asarray(np.zeros(steps, np.float32)), backend.asarray(np.zeros(steps, np.int32))

    def __len__(self) -> int:
        """Number of images."""
        return len(self._order)

    def begin(self, epoch: int, step: int = 0) -> None:
        """Shuffle the images and draw their transforms; both depend only on the seed and the epoch's number.

        The epoch's next step is ``step``, counted from 0.
        """
        (order,) = batch_indices(len(self), len(self), seed=self._seed, epoch=epoch)
        # In place, where a captured step reads them.
        overwrite(self._order, order)
        if self._augment:
            overwrite(self._set[2], random_transforms(len(self), seed=self._seed, epoch=epoch))
        overwrite(self._step, np.array([step], np.int32))

    def inputs(self, step: int) -> tuple[Any, ...]:
        """The arguments of a step, counted from 0, as arrays of the backend; the last batch may be shorter."""
        index = self._order[step * self._batch_size : (step + 1) * self._batch_size]
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

    def log(self, logits: Any, labels: Any, loss: Any) -> None:
        """Record a step's loss and number of correct answers on the device, and advance to the next step."""
        self._backend.log_step(logits, labels, loss, *self._log, self._step)

    def logged(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """What :meth:`log` recorded in steps ``first`` to ``last - 1``; waits for the device."""
        losses, counts = (self._backend.to_numpy(log[first:last]) for log in self._log)
        return losses, counts
