"""What scripts ask of ``torch.cuda``: whether there is a GPU, how many, to wait for it; and whether TF32 will do."""

from __future__ import annotations

import importlib
from contextlib import AbstractContextManager
from typing import Any

from gpuconv import backends

__all__ = ["allow_tf32", "device_count", "is_available", "synchronize"]


def allow_tf32(mode: bool = True) -> AbstractContextManager[None]:
    """Let convolutions on a GPU round their inputs to TF32, 11 bits of 24, in this thread or task.

    ``allow_tf32()`` holds from now on, ``allow_tf32(False)`` ends it; ``with allow_tf32():`` inside of the block. It is
    about large convolutions of float32 and their gradients, on GPUs of compute capability 8.0 or more. Sums stay in
    float32; the error in norm is 3e-4 instead of about 1e-6.
    """
    tuning: Any = importlib.import_module("gpuconv.tuning")
    allowed: AbstractContextManager[None] = tuning.allow_tf32(mode)
    return allowed


def is_available() -> bool:
    """Whether kernels can run on a GPU here; the simulator of kernels is none."""
    return backends.available()["cuda"] is None and backends.get("cuda").automatic()


def device_count() -> int:
    """How many GPUs CUDA shows; 0 without one."""
    return int(backends.get("cuda").xp.cuda.runtime.getDeviceCount()) if is_available() else 0


def synchronize() -> None:
    """Wait until the current device has done all that was queued; nothing to wait for without one."""
    if is_available():
        backends.get("cuda").xp.cuda.runtime.deviceSynchronize()
