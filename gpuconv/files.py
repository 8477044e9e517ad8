"""Writing files that a crash cannot spoil, and the user's cache folder."""

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
    """Replace the content of ``path`` by ``data``. Whenever the machine stops, the file has the old content or the new.

    A process that is killed meanwhile may leave a temporary file beside it; see :func:`remove_leftovers`.

    Raises:
        OSError: it cannot be written (no such folder, no permission, disk full). The old content is still there, and
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
        # A full disk is reported without a file name, other errors with that of the temporary file.
        raise OSError(error.errno, error.strerror or str(error), os.fspath(path)) from None


def remove_leftovers(path: str | os.PathLike[str]) -> None:
    """Delete temporary files that killed processes left beside ``path`` inside :func:`write_atomically`.

    Call it only if no process is writing ``path`` now.
    """
    path = Path(path)
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*{_TEMPORARY}"):
        with suppress(OSError):  # harmless, but they take up space
            leftover.unlink()


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut; does nothing where folders cannot be opened (Windows)."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
