"""Runs any Numba CUDA kernel without a GPU: its Python code thread by thread, or its compiled PTX."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpuconv.lab.simulator import Report, SimulationError, activate, simulate, trace

__all__ = ["Report", "SimulationError", "activate", "simulate", "trace"]


def __getattr__(name: str) -> Any:
    # The simulator needs greenlet, which other parts of this package do without.
    if name in __all__:
        return getattr(importlib.import_module("gpuconv.lab.simulator"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
