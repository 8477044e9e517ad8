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


class Held(np.ndarray):  # type: ignore[type-arg]
    """An array that stands for one of the device."""

    def copy_to_host(self) -> Any:
        """What it holds."""
        return np.array(self)

    def copy_to_device(self, array: Any, stream: Any = 0) -> None:
        """Hold something else."""
        self[...] = np.asarray(array)


def plain(argument: Any) -> Any:
    """A plain array."""
    return argument.view(np.ndarray) if isinstance(argument, Held) else argument


def configured(kernel: Any, configuration: Any) -> Any:
    """Replaces ``kernel[grid, block]``."""
    launch = lab.interpret(kernel, limit=60)[configuration]
    return lambda *arguments: launch(*map(plain, arguments))


def for_all(kernel: Any, ntasks: int, tpb: int = 128, stream: Any = 0, sharedmem: int = 0) -> Any:
    """Replaces ``kernel.forall``."""
    return configured(kernel, (-(-ntasks // (tpb or 128)), tpb or 128))


def main() -> None:
    """Run them."""
    CUDADispatcher.__getitem__, CUDADispatcher.forall = configured, for_all
    cuda.to_device = lambda array, stream=0: np.array(array).view(Held)
    cuda.device_array = lambda shape, dtype=float, stream=0: np.zeros(shape, dtype).view(Held)
    cuda.device_array_like = lambda array, stream=0: np.zeros_like(array).view(Held)
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
