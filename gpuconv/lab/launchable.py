"""What is launched as kernels are, in the simulator or as compiled code."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")


class Launchable(ABC, Generic[Result]):
    """``this[grid, block](x, y)``; behind the block may stand a stream, and bytes of dynamic shared memory."""

    @abstractmethod
    def _launch(self, grid: Any, block: Any, shared_bytes: int, *args: Any) -> Result:
        """Run it: grid and block are a number each, or up to three, x first."""

    def __getitem__(self, configuration: Any) -> Callable[..., Result]:
        if not isinstance(configuration, tuple) or not 2 <= len(configuration) <= 4:
            raise ValueError(f"[{configuration}] is no grid and block: a launch is kernel[grid, block](x, y)")
        grid, block, *rest = configuration
        return functools.partial(self._launch, grid, block, rest[1] if len(rest) > 1 else 0)

    def __call__(self, *args: Any) -> Result:
        """Refused, as by a kernel."""
        raise ValueError("no grid and block given: a launch is kernel[grid, block](x, y)")

    def forall(self, ntasks: int, tpb: int = 128, stream: Any = 0, sharedmem: int = 0) -> Callable[..., Result]:
        """As a kernel's: blocks of ``tpb`` threads, of which there are at least ``ntasks``."""
        return self[max(1, -(-ntasks // (tpb or 128))), tpb or 128, stream, sharedmem]
