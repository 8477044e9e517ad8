"""Output for terminals whose encoding lacks some characters.

This file imports nothing else of the package: the benchmarks run it by its path, before NumPy is loaded.
"""

from __future__ import annotations

import codecs
import io
import sys

__all__ = ["write_anything"]

#: Replacements for signs in the project's own output, for terminals that lack them.
_SPELLED = {"µ": "u", "×": "x", "·": ".", "≥": ">=", "≤": "<=", "–": "-", "…": "...", "½": "1/2", "Σ": "sum", "→": "->"}
_HANDLER = "gpuconv.spelled"


def write_anything() -> None:
    """Make stdout and stderr accept any text, whatever their encoding, so that no print fails after hours of work.

    Signs that the encoding lacks are replaced by ASCII; other characters, for example in file names, by a backslash and
    their number. Streams that are not files, such as those that tests install, are left alone.
    """
    codecs.register_error(_HANDLER, _spelled)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_HANDLER)


def _spelled(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end]
    spelled = (_SPELLED.get(c) or c.encode("ascii", "backslashreplace").decode() for c in characters)
    return "".join(spelled), error.end
