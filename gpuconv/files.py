"""Writing a file so that a crash loses nothing that was there, and the user's cache folder."""

from __future__ import annotations

import glob
import os
import secrets
from contextlib import suppress
from pathlib import Path

__all__ = ["cache_folder", "remove_leftovers", "write_atomically"]

_TEMPORARY = ".tmp"


def cache_folder() -> Path:
    """Where programs of this system keep what can be made again."""
    from platformdirs import user_cache_path

    return user_cache_path("gpuconv")


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Replace ``path`` by ``data``: whoever reads it, whenever the machine stops, finds the old content or the new.

    A process that is killed meanwhile may leave a temporary file beside it; see :func:`remove_leftovers`.

    Raises:
        OSError: it cannot be written (no such folder, no permission, disk full); the old content is still there, and
            the exception's ``filename`` is ``path``.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_TEMPORARY}")
    try:
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if path.exists():
                os.chmod(temporary, path.stat().st_mode & 0o777)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        _sync_folder(path.parent)
    except OSError as error:
        # A full disk is reported without a name, other faults with the temporary file's, which means nothing to a user.
        raise OSError(error.errno, error.strerror or str(error), os.fspath(path)) from None


def remove_leftovers(path: str | os.PathLike[str]) -> None:
    """Delete what processes that were killed inside :func:`write_atomically` left beside ``path``.

    Only for whoever knows that nobody is writing ``path`` now.
    """
    path = Path(path)
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*{_TEMPORARY}"):
        with suppress(OSError):  # they take room, and do no other harm
            leftover.unlink()


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut; a no-op where folders cannot be opened (Windows)."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
