"""Text for terminals that do not know all of its characters.

The one file of the package that loads nothing: the benchmarks run it by its path, before NumPy is there.
"""

from __future__ import annotations

import codecs
import io
import sys

__all__ = ["write_anything"]

#: What signs of the project's own output become where the terminal has none of them.
_SPELLED = {"µ": "u", "×": "x", "·": ".", "≥": ">=", "≤": "<=", "–": "-", "…": "...", "½": "1/2", "Σ": "sum", "→": "->"}
_HANDLER = "gpuconv.spelled"


def write_anything() -> None:
    """From now on let stdout and stderr take any text, whatever their encoding: no print fails after hours of work.

    Signs that the encoding lacks are spelled in ASCII; what else it lacks, in names of files for instance, becomes a
    backslash and its number. Streams that are no files, as tests put in their place, stay as they are.
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
