"""A folder of IDX files, as people have them."""

from pathlib import Path

import numpy as np

from gpuconv.data import load_dataset, write_idx


def idx_folder(folder: Path, count: int) -> Path:
    """The first ``count`` training and 50 test digits of the bundled set."""
    data = load_dataset("mnist-sample")
    for stem, images, labels in [
        ("train", data.train_images[:count], data.train_labels[:count]),
        ("t10k", data.test_images[:50], data.test_labels[:50]),
    ]:
        write_idx(folder / f"{stem}-images-idx3-ubyte", images)
        write_idx(folder / f"{stem}-labels-idx1-ubyte", labels.astype(np.uint8))
    return folder
