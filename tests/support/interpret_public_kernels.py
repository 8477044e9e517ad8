"""Runs the kernels of tests/lab/public_kernels.py as PTX, on arrays of the host; prints what came of each."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numba import cuda
from numba.cuda.dispatcher import CUDADispatcher

from gpuconv import lab


class Held:
    """An array that stands for one of the device."""

    def __init__(self, array: Any) -> None:
        self._array = np.array(array)
        self.shape, self.dtype, self.size = self._array.shape, self._array.dtype, self._array.size

    def copy_to_host(self) -> Any:
        """What it holds."""
        return self._array.copy()

    def copy_to_device(self, array: Any, stream: Any = 0) -> None:
        """Hold something else."""
        self._array[...] = array.copy_to_host() if isinstance(array, Held) else array


def configured(kernel: Any, configuration: Any) -> Any:
    """Replaces ``kernel[grid, block]``."""
    return lab.interpret(kernel, limit=60)[configuration]


def for_all(kernel: Any, *sizes: Any, **options: Any) -> Any:
    """Replaces ``kernel.forall``."""
    return lab.interpret(kernel, limit=60).forall(*sizes, **options)


def main() -> None:
    """Run them."""
    CUDADispatcher.__getitem__, CUDADispatcher.forall = configured, for_all
    cuda.to_device = lambda array, stream=0: Held(array)
    cuda.device_array = lambda shape, dtype=float, stream=0: Held(np.zeros(shape, dtype))
    cuda.device_array_like = lambda array, stream=0: Held(np.zeros(array.shape, array.dtype))
    sys.path.insert(0, str(Path(__file__).parents[1] / "lab"))
    import public_kernels

    said = {}
    for name in [name for name in dir(public_kernels) if name.startswith("launch_")]:
        try:
            found, wanted = getattr(public_kernels, name)()
            pairs = zip(found, wanted, strict=True) if isinstance(found, tuple) else [(found, wanted)]
            for one, other in pairs:
                np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
            said[name.removeprefix("launch_")] = "right"
        except Exception as error:
            said[name.removeprefix("launch_")] = f"{type(error).__name__}: {error}"
    print(json.dumps(said))


if __name__ == "__main__":
    main()
