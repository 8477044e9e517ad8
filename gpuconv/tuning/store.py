"""What ``gpuconv tune`` has measured, on disk: for each convolution the fastest variant.

A folder holds a small JSON file for each :class:`Key`, named by a digest of the key. Processes that write at the same
time write different files, or replace the same one atomically (``files.write_atomically``), so that nothing is lost and
no lock is needed. A damaged file affects no other: it is skipped, with one warning in a process, and written again when
its convolution is tuned again.

The key holds everything that a measurement depends on. When a driver changes, or a line of a kernel, the key changes
too, and nothing has been measured for it yet. The number of CPU threads is left out on purpose: otherwise results would
depend on it wherever two variants round differently.

The folder is ``tuning`` in the user's cache folder, or the one that the environment variable ``GPUCONV_TUNING`` names.
``GPUCONV_TUNING=off`` reads no files and keeps measurements in memory only. The variable is read at the first look-up.

For GPUs that nobody has tuned, the package contains ``defaults.json``: the tilings that were more than 3 % faster than
the rule's on another GPU of the same compute capability (``python -m bench.rules --winners``). They are independent of
the folder.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from gpuconv import files
from gpuconv.geometry import Conv2dGeometry, Pair

__all__ = [
    "DEFAULTS_SCHEMA", "ENVIRONMENT_VARIABLE", "Default", "Entry", "Key", "Platform", "Winner", "cached", "clear",
    "defaults", "digest", "entries", "find", "folder", "forget", "record", "unusable",
    "when_changed",
]  # fmt: skip

ENVIRONMENT_VARIABLE = "GPUCONV_TUNING"
OFF = "off"
_SCHEMA = 1
DEFAULTS_SCHEMA = 1
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Platform:
    """The device and code that a measurement was made with.

    Attributes:
        backend: its name.
        device: model of the GPU or CPU.
        driver: versions of driver and compiler.
        library: version of gpuconv.
        sources: digest of the source files of all variants, and of what they share.
    """

    backend: str
    device: str
    driver: str
    library: str
    sources: str

    @property
    def compute_capability(self) -> str | None:
        """Of the GPU, such as '9.0'; None on a CPU."""
        found = re.search(r"compute capability (\d+\.\d+)", self.device)
        return found[1] if found else None


@dataclass(frozen=True)
class Key:
    """What was measured.

    Attributes:
        platform: on what.
        operation: 'conv2d', 'conv2d_grad_input' or 'conv2d_grad_weight'.
        geometry: all of it, the batch too.
        dtype: 'float32' or 'float64'.
        window: height and width of the max pooling that conv2d takes in the same kernel; (1, 1) for none.
    """

    platform: Platform
    operation: str
    geometry: Conv2dGeometry
    dtype: str
    window: Pair = (1, 1)


@dataclass(frozen=True)
class Winner:
    """The result of a measurement.

    Attributes:
        variant: the fastest one.
        tiling: its fields; None for a variant without tilings.
        microseconds: label of each candidate -> its median time.
    """

    variant: str
    tiling: Mapping[str, Any] | None
    microseconds: Mapping[str, float]


@dataclass(frozen=True)
class Entry:
    """A file of the store: the date (UTC, ISO 8601) and what it holds."""

    key: Key
    winner: Winner
    date: str


@dataclass(frozen=True)
class Default:
    """An entry of ``defaults.json``, for a compute capability, operation, geometry, dtype and window.

    Attributes:
        device: the GPU model on which it was measured.
        date: when, ISO 8601.
        variant: the fastest one.
        tiling: its fields.
    """

    device: str
    date: str
    variant: str
    tiling: Mapping[str, Any]


def digest(paths: Iterable[Path]) -> str:
    """Of the content of source files: 16 hexadecimal digits."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(paths))).hexdigest()[:16]


# -- look-up ---------------------------------------------------------------------------------------------------------

_Function = TypeVar("_Function", bound=Callable[..., Any])
_caches: list[Callable[[], None]] = []
#: What this process has measured; it is used even if it cannot be written to disk.
_measured: dict[Key, Winner] = {}
_warned = False


def cached(function: _Function) -> _Function:
    """Decorator: cache the latest results of a function that looks something up here, until something is recorded."""
    remembering = functools.lru_cache(maxsize=1024)(function)
    _caches.append(remembering.cache_clear)
    return remembering  # type: ignore[return-value]


def when_changed(clear: Callable[[], None]) -> None:
    """Have ``clear`` called whenever something is recorded or forgotten, so that earlier choices are dropped."""
    _caches.append(clear)


def _forget_look_ups() -> None:
    for clear_cache in _caches:
        clear_cache()


def forget() -> None:
    """Forget what was read and measured, and the environment variable, as in a new process."""
    global _warned
    _measured.clear()
    _warned = False
    _forget_look_ups()


@cached
def folder() -> Path | None:
    """The folder of the files; None if there is to be none."""
    given = os.environ.get(ENVIRONMENT_VARIABLE)
    if given == OFF:
        return None
    return Path(given).expanduser() if given else files.cache_folder() / "tuning"


@cached
def find(key: Key) -> Winner | None:
    """What was measured for a key; None if nothing was, or if its file cannot be used."""
    if key in _measured or (place := folder()) is None:
        return _measured.get(key)
    path = place / _name(key)
    try:
        entry = _parsed(path.read_bytes())
        if entry.key != key:
            raise ValueError("it is another one's, renamed or edited")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        unusable(f"{path}: {_in_words(error)}")
        return None
    return entry.winner


@functools.cache
def defaults() -> Mapping[tuple[str, str, Conv2dGeometry, str, Pair], Default]:
    """The entries of ``defaults.json``, by compute capability, operation, geometry, dtype and window."""
    content = json.loads(Path(__file__).with_name("defaults.json").read_bytes())
    found = {}
    for one in content["defaults"]:
        geometry = Conv2dGeometry(**{name: _tuples(value) for name, value in one["geometry"].items()})
        key = one["compute_capability"], one["operation"], geometry, one["dtype"], _tuples(one["window"])
        found[key] = Default(one["device"], one["date"], one["variant"], one["tiling"])
    return found


def unusable(why: str) -> None:
    """Warn, once in a process, about an entry of the store that is skipped."""
    global _warned
    if not _warned:
        _warned = True
        _log.warning("%s; the rule decides instead (gpuconv tune measures again, gpuconv tune --clear tidies up)", why)


def _in_words(error: Exception) -> str:
    return f"cannot be read ({error.strerror or error})" if isinstance(error, OSError) else f"damaged ({error})"


# -- files -----------------------------------------------------------------------------------------------------------


def _name(key: Key) -> str:
    text = json.dumps(asdict(key), sort_keys=True)
    return f"{key.operation}-{hashlib.sha256(text.encode()).hexdigest()[:20]}.json"


def _parsed(data: bytes) -> Entry:
    """What a file holds.

    Raises:
        ValueError: not what :func:`record` writes.
    """
    try:
        content = json.loads(data)
        if content["schema"] != _SCHEMA:
            raise ValueError(f"its schema is {content['schema']!r}, not {_SCHEMA}")
        key, winner = content["key"], content["winner"]
        sizes = {name: _tuples(value) for name, value in key["geometry"].items()}
        key = Key(
            Platform(**key["platform"]), key["operation"], Conv2dGeometry(**sizes), key["dtype"], _tuples(key["window"])
        )
        tiling = winner["tiling"]
        times = {str(label): float(value) for label, value in winner["microseconds"].items()}
        result = Winner(str(winner["variant"]), None if tiling is None else dict(tiling), times)
        hash(key)
        return Entry(key, result, str(content["date"]))
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def record(key: Key, winner: Winner) -> None:
    """Keep a measurement: in this process at once, and on disk.

    Raises:
        OSError: it cannot be written (permission, disk full). The old file is still there, and this process uses the
            new measurement nevertheless.
    """
    _measured[key] = winner
    _forget_look_ups()
    if (place := folder()) is None:
        return
    date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    content = {"schema": _SCHEMA, "date": date, "key": asdict(key), "winner": asdict(winner)}
    place.mkdir(parents=True, exist_ok=True)
    files.write_atomically(place / _name(key), (json.dumps(content, indent=2) + "\n").encode())


def _paths() -> list[Path]:
    place = folder()
    return sorted(place.glob("conv2d*-*.json")) if place is not None else []


def entries() -> tuple[list[Entry], list[str]]:
    """All entries in the folder, and for each file that cannot be used a line that says why."""
    found, broken = [], []
    for path in _paths():
        try:
            found.append(_parsed(path.read_bytes()))
        except (OSError, ValueError) as error:
            broken.append(f"{path}: {_in_words(error)}")
    return found, broken


def clear() -> int:
    """Delete all entries, damaged ones too, and nothing else; returns how many there were.

    Raises:
        OSError: one cannot be deleted.
    """
    paths = _paths()
    for path in paths:
        path.unlink(missing_ok=True)
        files.remove_leftovers(path)
    forget()
    return len(paths)
