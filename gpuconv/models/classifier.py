"""The base of image classifiers: they know their classes, prepare images, and can be saved."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuconv import functional as F
from gpuconv.autograd import to_numpy
from gpuconv.data.form import ImageForm
from gpuconv.data.preprocess import InputTransform
from gpuconv.dtypes import kind_of
from gpuconv.nn.layers import Flatten
from gpuconv.nn.module import Module
from gpuconv.nn.pooling import AdaptiveAvgPool2d
from gpuconv.nn.sequential import Sequential


def global_average() -> dict[str, Module]:
    """What makes a vector of maps of any size: (N, C, H, W) to (N, C)."""
    return {"avgpool": AdaptiveAvgPool2d((1, 1)), "flatten": Flatten()}


class Classifier(Sequential):
    """A Sequential whose outputs are logits, one a class.

    Attributes:
        config: the constructor's arguments, JSON types only, from which a file rebuilds the model.
        input_shape: shape of one prepared image, ``(channels, height, width)``.
        classes: name of each class.
        input_transform: how raw images become inputs (padding, standardisation); None until the model is trained.
        form: the form of its training images, into which pictures are brought (:func:`gpuconv.data.read_picture`); None
            until the model is trained.
    """

    def __init__(
        self, modules: dict[str, Any], *, config: dict[str, Any], input_shape: tuple[int, int, int], num_classes: int
    ):
        super().__init__(modules)
        self.config = config
        self.input_shape = input_shape
        self.classes: tuple[str, ...] = tuple(str(i) for i in range(num_classes))
        self.input_transform: InputTransform | None = None
        self.form: ImageForm | None = None

    def predict(self, inputs: Any, batch_size: int = 256) -> np.ndarray:
        """Class probabilities of images.

        Args:
            inputs: raw images, integers 0 to 255, which the model prepares itself: (N, H, W), (N, 1, H, W) or (H, W)
                for one; of a model of colours (N, 3, H, W) or (3, H, W). Or floats (N, C, H, W) or (C, H, W), already
                prepared.
            batch_size: images at a time.

        Returns:
            (N, classes), or (classes,) for one image, in the model's type; each row positive, summing to 1.

        Raises:
            TypeError: neither integers nor floats.
            ValueError: another shape; or raw images, and the model was never trained or given an ``input_transform``.
        """
        images = to_numpy(inputs)
        one = images.ndim == (2 if kind_of(images.dtype) in "iu" and self.input_shape[0] == 1 else 3)
        prepared = self.prepare(images).astype(next(iter(self.parameters())).dtype, copy=False)
        probabilities = F.softmax(super().predict(prepared, batch_size), 1)
        return probabilities[0] if one else probabilities

    def prepare(self, images: Any) -> NDArray[np.float32]:
        """The network's input: raw images padded and standardised by ``input_transform``, prepared ones as they are.

        Args:
            images: raw or prepared, as :meth:`predict` takes them.

        Returns:
            (N, *input_shape), float32; N is 1 for a single image.

        Raises:
            TypeError, ValueError: as :meth:`predict`.
        """
        images = to_numpy(images)
        shape = ", ".join(map(str, self.input_shape))
        if kind_of(images.dtype) not in "iuf":
            raise TypeError(f"images must be integers from 0 to 255, or prepared floats, got {images.dtype}")
        raw = kind_of(images.dtype) != "f"
        channels = self.input_shape[0]
        if images.ndim not in ((2, 3, 4) if raw and channels == 1 else (3, 4)):
            of_raw = "(N, H, W) or (H, W)" if channels == 1 else f"(N, {channels}, H, W) or ({channels}, H, W)"
            raise ValueError(
                f"images must be integers {of_raw}, or prepared floats (N, {shape}), got {images.dtype} of "
                f"shape {images.shape}"
            )
        if raw:
            images = self._standardised(images)
        elif images.ndim == 3:
            images = images[None]
        if images.shape[1:] != self.input_shape:
            raise ValueError(f"prepared images must have shape (N, {shape}), got {images.shape}")
        return images.astype(np.float32, copy=False)

    def _standardised(self, images: np.ndarray) -> np.ndarray:
        if self.input_transform is None:
            raise ValueError(
                "this model has no input_transform, so it cannot prepare raw images; train it, load a trained one, or "
                "set model.input_transform = InputTransform.fit(images)"
            )
        channels = self.input_shape[0]
        if images.ndim == 4 or channels != 1:
            if images.shape[-3] != channels:
                have = "one channel" if channels == 1 else f"{channels} channels"
                raise ValueError(f"raw images must have {have}, got shape {images.shape}")
            images = images[:, 0] if channels == 1 else images
        if images.size and (images.min() < 0 or images.max() > 255):
            raise ValueError(f"raw images must lie between 0 and 255, got {images.min()} to {images.max()}")
        return self.input_transform(images.astype(np.uint8))
