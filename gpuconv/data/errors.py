"""The exception of broken data, and the message of an extra that is not installed."""

from __future__ import annotations

__all__ = ["DataError", "missing_extra"]


class DataError(ValueError):
    """A file that holds no usable data: missing, truncated, corrupt or of another kind.

    The message is one line that begins with the file's name.
    """


def missing_extra(purpose: str, package: str) -> ImportError:
    """The error to raise when `package`, part of the ``cli`` extra, is needed for `purpose` but not installed."""
    return ImportError(f"{purpose} needs {package}, which is not installed: pip install 'gpuconv[cli]'", name=package)
