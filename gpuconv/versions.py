"""When arrays were last changed in place.

An operation saves arrays for its backward pass. If one of them is changed before backward has run, the gradients would
silently mix old and new values. So every operation that writes into a Tensor's array records it here, and backward
checks. As in PyTorch, a view counts as the array that it belongs to, and a write that bypasses the library, such as
``tensor.data[...] = x``, is not noticed.

Usually nothing has changed between forward and backward; comparing one number, ``latest``, shows that.
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
        number: of the change, larger than those of all earlier changes; 0 if there was none.
        by: name of the operation that changed it.
    """

    __slots__ = ("by", "number")

    def __init__(self) -> None:
        self.number, self.by = 0, ""

    def changes(self, by: str) -> None:
        """Record that the operation named ``by`` changes the array in place."""
        global latest
        latest = self.number = next(_numbers)
        self.by = by


#: id of an array -> the array (weakly) and its version. An entry is removed with its array.
_known: dict[int, tuple[weakref.ref[Any], Version]] = {}


def _root(array: Any) -> Any:
    """The array that owns the memory of a view. (Memory of a pool or another library has a base that is no array.)"""
    return array.base if hasattr(array.base, "dtype") else array


def of(array: Any) -> Version:
    """The version of an array; keep it to record frequent changes cheaply."""
    root = _root(array)
    key = id(root)
    found = _known.get(key)
    if found is None:
        found = _known[key] = weakref.ref(root, lambda _: _known.pop(key, None)), Version()
    return found[1]


def changed(array: Any, by: str) -> None:
    """Record that ``by`` changed an array, or the array that it is a view of, in place."""
    of(array).changes(by)


def changed_since(number: int, array: Any) -> Version | None:
    """The last change of an array if it came after change ``number``, else None."""
    found = _known.get(id(_root(array)))
    return found[1] if found is not None and found[1].number > number else None
