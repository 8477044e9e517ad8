"""Data: sets by name, IDX files, folders of pictures, and what turns them into batches.

From a data set to the network's input::

    data = load_dataset("mnist-sample")                     # or "cifar10", or a folder of pictures or IDX files
    transform = InputTransform.fit(data.train_images)       # pads 28x28 to 32x32 and standardises
    for index in batch_indices(len(data.train_images), 64, seed=0, epoch=0):
        x, target = transform(data.train_images[index]), data.train_labels[index]

From a picture: ``transform(read_digit("seven.png"))``.

Only NumPy is imported here. Downloading needs pooch and pictures need Pillow, both in ``gpuconv[cli]``.
"""

from gpuconv.data.ahead import Ahead
from gpuconv.data.augment import AUGMENTATIONS, augmented, default_augmentations, random_transforms
from gpuconv.data.batches import batch_count, batch_indices, split
from gpuconv.data.datasets import DATASETS, Dataset, load_dataset, load_image_folder
from gpuconv.data.errors import DataError
from gpuconv.data.folder import Pictures
from gpuconv.data.form import ImageForm
from gpuconv.data.idx import read_idx, write_idx
from gpuconv.data.images import read_digit, read_picture
from gpuconv.data.preprocess import InputTransform

__all__ = [
    "AUGMENTATIONS",
    "DATASETS",
    "Ahead",
    "DataError",
    "Dataset",
    "ImageForm",
    "InputTransform",
    "Pictures",
    "augmented",
    "batch_count",
    "batch_indices",
    "default_augmentations",
    "load_dataset",
    "load_image_folder",
    "random_transforms",
    "read_digit",
    "read_idx",
    "read_picture",
    "split",
    "write_idx",
]
