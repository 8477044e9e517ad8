"""The numbers of optimizer updates in device memory: learning rate, momentum, and what depends on the step number.

The kernel reads them there, and itself advances to the numbers of the next step (``kernels/update/all_at_once.py``). So
neither an eager step nor a launch of a captured one has to copy anything, until a setting changes or the uploaded steps
are used up.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

from gpuconv.backends import capturing

__all__ = ["UpdateNumbers"]

#: Largest number of steps that are uploaded at once.
ROWS = capturing.MOST_UPDATES


class UpdateNumbers:
    """The numbers of the coming steps for one kernel.

    Args:
        backend: the CUDA backend.
        variant: the kernel's.
        geometry, dtype: of the update: number of elements of each parameter, or an ``UpdateGeometry``; and their dtype.
        terms: the update's options that determine which terms its formula has.

    Attributes:
        array: what the kernel reads and writes.
    """

    def __init__(self, backend: Any, variant: Any, geometry: Any, dtype: Any, terms: Any):
        self._backend, self._variant, self._layout, self._terms = backend, variant, (geometry, dtype), terms
        self._taken = inspect.signature(variant.numbers_of).parameters
        # Not in the memory of a step that is being captured, because it is written between two launches of the graph.
        with capturing.outside():
            self.array = backend.xp.empty((variant.numbers_size(geometry, variant.WIDTH, ROWS),), dtype)
        self._settings: Any = None
        self._step, self._rows, self._left = -1, 0, 0.0

    def prepare(self, together: Any, count: int = 1) -> None:
        """Upload the numbers of the steps from ``together.steps`` on, if necessary; see ``gpuconv.optim.Together``.

        So many steps are about to be launched, and nothing can be uploaded between them.

        Raises:
            RuntimeError: its formula has other terms now.
        """
        settings, step = together.settings(), together.steps
        known = settings == self._settings and step == self._step
        self._step = -1  # nothing, if an error occurs below
        if not known:
            self._upload(together, count if together.optimizer.schedule is None else ROWS, count)
            self._settings = settings
        elif self._left < count:
            # If settings change at each step, one row is uploaded each time; if they never do, there are few uploads.
            self._upload(together, min(ROWS, max(count, 2 * self._rows)), count)
        self._step = step + count
        self._left -= count

    def forget(self) -> None:
        """Discard what was prepared, because it was not launched."""
        self._step = -1

    def _upload(self, together: Any, count: int, needed: int) -> None:
        coming = together.coming(count, needed)
        capturing.check_terms(coming[0], self._terms)
        rows = [self._variant.numbers_of(**{name: one[name] for name in self._taken}) for one in coming]
        self._backend.write(self.array, self._variant.numbers_array(rows, *self._layout))
        self._rows = len(rows)
        self._left = math.inf if len(rows) == 1 and together.stays() else float(len(rows))
