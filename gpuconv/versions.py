"""When arrays were last changed in place.

An operation saves arrays for its backward. If one is changed before backward has run, its gradients would be a mixture
of old and new values: nothing of the result tells. So whoever writes into a Tensor's array notes it here, and backward
asks. As in PyTorch, views count as the array that they are of, and what a user writes past the library, by
``tensor.data[...] = x``, is not seen.

Mostly nothing has changed between forward and backward. One number, ``latest``, says so.
"""

from __future__ import annotations

import itertools
import weakref
from typing import Any

__all__ = ["Version", "changed", "changed_since", "of"]

#: The number of the last change of any array; 0 before the first.
latest = 0
_numbers = itertools.count(1)


class Version:
    """The last change of one array.

    Attributes:
        number: of the change, larger than those of all changes before; 0 if there was none.
        by: what changed it.
    """

    __slots__ = ("by", "number")

    def __init__(self) -> None:
        self.number, self.by = 0, ""

    def changes(self, by: str) -> None:
        """Note that the array is changed in place by ``by``, the name of an operation."""
        global latest
        latest = self.number = next(_numbers)
        self.by = by


#: By the id of an array, that with its version. An entry ends with its array.
_known: dict[int, tuple[weakref.ref[Any], Version]] = {}


def _root(array: Any) -> Any:
    """The array whose memory a view shows. (What a pool or another library lends has a base that is no array.)"""
    return array.base if hasattr(array.base, "dtype") else array


def of(array: Any) -> Version:
    """The version of an array, to be kept by who changes it often."""
    root = _root(array)
    key = id(root)
    found = _known.get(key)
    if found is None:
        found = _known[key] = weakref.ref(root, lambda _: _known.pop(key, None)), Version()
    return found[1]


def changed(array: Any, by: str) -> None:
    """Note that an array, or what it is a view of, is changed in place by ``by``."""
    of(array).changes(by)


def changed_since(number: int, array: Any) -> Version | None:
    """The last change of an array if it came after change ``number``, else None."""
    found = _known.get(id(_root(array)))
    return found[1] if found is not None and found[1].number > number else None
