"""Runs any Numba CUDA kernel without a GPU: its Python code thread by thread, or its compiled PTX."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpuconv.lab.cards import CARDS, Card
    from gpuconv.lab.machine_code import Compiled, compiled
    from gpuconv.lab.ptx import PtxError, interpret
    from gpuconv.lab.simulator import Report, SimulationError, activate, simulate, trace

__all__ = [
    "CARDS",
    "Card",
    "Compiled",
    "PtxError",
    "Report",
    "SimulationError",
    "activate",
    "compiled",
    "interpret",
    "simulate",
    "trace",
]


_MODULES = {"compiled": "machine_code", "cards": "cards", "card": "cards", "ptxerror": "ptx", "interpret": "ptx"}


def __getattr__(name: str) -> Any:
    # The simulator needs greenlet, which other parts of this package do without.
    if name in __all__:
        module = _MODULES.get(name.lower(), "simulator")
        return getattr(importlib.import_module(f"gpuconv.lab.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
