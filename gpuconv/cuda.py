"""What scripts ask of ``torch.cuda``: whether there is a GPU, how many, to wait for it; and whether TF32 will do."""

from __future__ import annotations

from gpuconv import backends
from gpuconv.tuning import allow_tf32

__all__ = ["allow_tf32", "device_count", "is_available", "synchronize"]


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
