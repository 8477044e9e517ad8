"""Makes intrinsics: LLVM code for the compiler, and a Python function (the *twin*) for the simulator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import config
from numba.cuda import extending

#: Whether kernels run in the simulator; this is decided when ``numba.cuda`` is imported.
SIMULATED = bool(config.ENABLE_CUDASIM)

#: By name, what Numba makes an intrinsic from, and the function that takes its place in the simulator.
BODIES: dict[str, Callable[..., Any]] = {}
TWINS: dict[str, Callable[..., Any]] = {}


def intrinsic(name: str, body: Callable[..., Any], twin: Callable[..., Any]) -> Any:
    """Make an intrinsic; ``body`` maps the types of its arguments to a signature and LLVM code."""
    body.__name__ = name  # for Numba's messages
    BODIES[name], TWINS[name] = body, twin
    return twin if SIMULATED else extending.intrinsic(body)
