"""Where the training images of a run are kept, and how a step takes its batch from there.

They stay what they were in the data set, a byte a pixel: a fifth of what digits take when they are padded and
standardised, 47 MB for all of MNIST and not 246. The backend's ``image_batch`` makes inputs of them, step by
step.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpuconv.autograd import overwrite
from gpuconv.backends import Backend
from gpuconv.data import InputTransform, batch_count, batch_indices, random_transforms


class Feed:
    """Labelled images on a backend, which are gone through in another order in each epoch.

    On a GPU they are uploaded once, if they take no more than half of the memory that is free: the other half is left
    for training. A batch is then given to a step as the numbers of its images, and its pixels never leave the device.
    Images that do not fit are copied there batch by batch.

    Args:
        images: (N, H, W), uint8; N is at least 1.
        labels: (N,), int64.
        transform: how they become inputs.
        backend: where the batches are wanted.
        batch_size: images of a batch, at most.
        seed: of the order, and of the augmentation.
        augment: whether an image is moved at random in each epoch, see :func:`gpuconv.data.random_transforms`.

    Attributes:
        resident: whether the images are where the batches are wanted.
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
        #: Numbers of images as they come; and what is found by such a number.
        self._order, *self._set = kept
        self._table = backend.asarray(transform.table())
        # Of images that are copied, a batch is a set of its own, and takes all of it.
        self._all_of_a_batch = backend.asarray(np.arange(min(batch_size, len(images))))
        #: Of the epoch: the step whose turn it is, and loss and right answers of each step. On the device, where the
        #: kernels of a captured step move on from one step to the next.
        self._step, steps = backend.asarray(np.zeros(1, np.int32)), batch_count(len(images), batch_size)
        self._log = backend.asarray(np.zeros(steps, np.float32)), backend.asarray(np.zeros(steps, np.int32))

    def __len__(self) -> int:
        """Number of images."""
        return len(self._order)

    def begin(self, epoch: int, step: int = 0) -> None:
        """Shuffle the images, and draw how they are moved, as a function of the seed and the epoch's number alone.

        The epoch's next step is ``step``, counted from 0.
        """
        (order,) = batch_indices(len(self), len(self), seed=self._seed, epoch=epoch)
        # In their places, where a captured step looks for them.
        overwrite(self._order, order)
        if self._augment:
            overwrite(self._set[2], random_transforms(len(self), seed=self._seed, epoch=epoch))
        overwrite(self._step, np.array([step], np.int32))

    def inputs(self, step: int) -> tuple[Any, ...]:
        """What a step, counted from 0, is to be called with, arrays of the backend; the last batch may be shorter."""
        index = self._order[step * self._batch_size : (step + 1) * self._batch_size]
        return (index,) if self.resident else tuple(self._backend.asarray(array[index]) for array in self._set)

    def batch(self, *inputs: Any) -> tuple[Any, Any]:
        """Inputs of the network, (n, 1, *size) float32, and labels, (n,) int64, of what :meth:`inputs` gave."""
        if self.resident:
            (index,), found = inputs, self._set
        else:
            index, found = self._all_of_a_batch[: len(inputs[0])], list(inputs)
        images, labels, transforms = [*found, None][:3]
        return self._backend.image_batch(self._table, images, labels, index, transforms, self._size)

    # -- for a step that is captured: nothing here waits for the device, nor for the host -----------------------------

    def next_inputs(self, step: int) -> tuple[Any, ...]:
        """What a captured step is to be called with: nothing, if the images are on the device; else its batch."""
        if self.resident:
            return ()
        index = self._order[step * self._batch_size : (step + 1) * self._batch_size]
        return tuple(array[index] for array in self._set)

    def next_batch(self, *inputs: Any) -> tuple[Any, Any]:
        """As :meth:`batch`, of the full batch whose turn it is."""
        if not self.resident:
            return self.batch(*map(self._backend.asarray, inputs))
        images, labels, transforms = [*self._set, None][:3]
        return self._backend.next_image_batch(
            self._table, images, labels, self._order, transforms, self._size, self._step, self._batch_size
        )

    def log(self, logits: Any, labels: Any, loss: Any) -> None:
        """Leave a step's loss and number of right answers on the device; the next step is then the one behind it."""
        self._backend.log_step(logits, labels, loss, *self._log, self._step)

    def logged(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Losses and right answers that :meth:`log` has left in the steps from ``first`` to ``last - 1``; it waits."""
        losses, counts = (self._backend.to_numpy(log[first:last]) for log in self._log)
        return losses, counts
