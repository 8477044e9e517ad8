"""What is known of an array for as long as it lives: how it was computed.

A fused operation may need more than its arguments tell. The gradient of a loss, for instance, can be computed with that
of the layers before it, if it is known whose loss it is. So the operation that makes an array may leave word of that.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from gpuconv import versions
from gpuconv.backends.base import Array

__all__ = ["Known"]


class Known:
    """Facts about arrays, each valid while the array lives and nothing that it depends on was changed in place.

    Args:
        address: gives the address of an array's memory, by which a view of all of an array is recognised.
    """

    def __init__(self, address: Any):
        self._address = address
        self._facts: dict[int, tuple[Any, Any, list[versions.Version], int]] = {}

    def note(self, array: Array, fact: Any, depends_on: Iterable[Array] = ()) -> None:
        """Note a fact about an array that was just computed."""
        key = self._address(array)
        found = weakref.ref(array, lambda gone: self._forget(key, gone))
        self._facts[key] = found, fact, [versions.of(one) for one in (array, *depends_on)], versions.latest

    def of(self, array: Array) -> Any:
        """The fact about an array, or about the one that it is a view of; None if there is none."""
        found, fact, sources, latest = self._facts.get(self._address(array), (None, None, [], 0))
        known = None if found is None else found()
        if known is None or (known.dtype, known.nbytes) != (array.dtype, array.nbytes):
            return None
        return None if any(version.number > latest for version in sources) else fact

    def _forget(self, key: int, gone: Any) -> None:
        if (entry := self._facts.get(key)) is not None and entry[0] is gone:
            del self._facts[key]
