"""A name that is not in a list, and the one in it that was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["did_you_mean", "nearest"]


def nearest(given: object, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name that is most like the given one, upper and lower case alike; None if none is."""
    by_lower = {name.lower(): name for name in known}
    found = difflib.get_close_matches(str(given).lower(), by_lower, n=1, cutoff=cutoff)
    return by_lower[found[0]] if found else None


def did_you_mean(given: object, known: Iterable[str]) -> str:
    """The end of a message that refuses a name: ``; did you mean 'relu'?``, or nothing."""
    name = nearest(given, known)
    return "" if name is None else f"; did you mean {name!r}?"
