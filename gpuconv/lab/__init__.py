"""Runs any Numba CUDA kernel without a GPU: its Python code thread by thread, or its compiled PTX."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpuconv.lab.ptx import PtxError, interpret
    from gpuconv.lab.simulator import Report, SimulationError, activate, simulate, trace

__all__ = ["PtxError", "Report", "SimulationError", "activate", "interpret", "simulate", "trace"]


def __getattr__(name: str) -> Any:
    # The simulator needs greenlet, which other parts of this package do without.
    if name in __all__:
        module = "gpuconv.lab.ptx" if name in ("PtxError", "interpret") else "gpuconv.lab.simulator"
        return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
