"""Fetching data sets from their mirrors into a cache folder."""

from __future__ import annotations

import gzip
import logging
import os
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gpuconv.data.errors import missing_extra
from gpuconv.files import cache_folder

__all__ = ["download", "download_mnist"]

_log = logging.getLogger(__name__)

_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
# sha256 of the unpacked files: two gzip files of the same content need not be equal.
_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
_TIMEOUT_S = (4.0, 8.0)  # to connect, and between two pieces of data


@dataclass(frozen=True)
class _Remote:
    """Files of a data set that are kept as they are published, with the publisher's md5 of each."""

    mirrors: tuple[str, ...]
    md5: dict[str, str]


_REMOTES = {
    # The md5 are those of github.com/zalandoresearch/fashion-mnist.
    "fashion-mnist": _Remote(
        (
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        ),
        {
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
    ),
    # The binary archives: those "for Python" are pickles, which can run code. The md5 are those of the data's page,
    # www.cs.toronto.edu/~kriz/cifar.html.
    "cifar10": _Remote(
        ("https://www.cs.toronto.edu/~kriz/",), {"cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"}
    ),
    "cifar100": _Remote(
        ("https://www.cs.toronto.edu/~kriz/",), {"cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8"}
    ),
}


def download_mnist(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """The folder with the four unpacked files of MNIST, which are downloaded if they are not there yet.

    Each file, cached or new, is checked against its sha256. A new file is moved to its final path only when it is
    complete and correct. If a mirror fails or delivers other bytes, the next one is tried; each is tried once.

    Args:
        cache_dir: where to keep the files, in a subfolder ``mnist``. Default: the environment variable
            ``GPUCONV_DATA``, else the user's cache folder for gpuconv.

    Raises:
        ImportError: pooch is not installed.
        ConnectionError: no mirror delivered a file. One line that names the hosts and what each answered.
        OSError: the cache folder cannot be written.
    """
    hashes = {name: f"sha256:{sha256}" for name, sha256 in _SHA256.items()}
    return _download("mnist", _MIRRORS, hashes, cache_dir, unpack=True)


def download(name: str, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """The folder with the files of ``fashion-mnist``, ``cifar10`` or ``cifar100``, as they are published.

    They are downloaded if they are not there yet, and checked against their md5. For the rest see `download_mnist`.
    """
    remote = _REMOTES[name]
    hashes = {file: f"md5:{md5}" for file, md5 in remote.md5.items()}
    return _download(name, remote.mirrors, hashes, cache_dir, unpack=False)


def _download(
    data: str,
    tried_first: tuple[str, ...],
    hashes: dict[str, str],
    cache_dir: str | os.PathLike[str] | None,
    *,
    unpack: bool,
) -> Path:
    """The folder of a data set, with its files; hashes by the names of the files."""
    try:
        import pooch
        import requests
    except ImportError:
        raise missing_extra(f"downloading {data}", "pooch") from None

    folder = Path(cache_dir or os.environ.get("GPUCONV_DATA") or cache_folder()).expanduser() / data
    mirrors = list(tried_first)
    for name, known_hash in hashes.items():
        answers = {}
        for mirror in tuple(mirrors):
            try:
                with _pooch_silent():
                    pooch.retrieve(
                        mirror + name + ".gz" * unpack,
                        known_hash=known_hash,
                        fname=name,
                        path=folder,
                        downloader=_fetch_unpacked if unpack else _fetch,
                    )
                break
            except (requests.RequestException, gzip.BadGzipFile, zlib.error, EOFError, ValueError) as error:
                answers[urlsplit(mirror).netloc] = _in_few_words(error)
                mirrors.append(mirrors.pop(0))  # the files to come begin with a mirror that may work
            except OSError as error:
                raise OSError(f"{data}: cannot write to {folder} ({error.strerror or error})") from None
        else:
            tried = ", ".join(f"{host}: {answer}" for host, answer in answers.items())
            raise ConnectionError(
                f"{data}: {name} could not be downloaded ({tried}); "
                f"'mnist-sample' comes with gpuconv and needs no network"
            )
    return folder


def _fetch(url: str, output_file: str, pooch_instance: Any) -> None:
    """A downloader for `pooch.retrieve` that gives up in time."""
    import pooch

    _log.info("downloading %s", url)
    pooch.HTTPDownloader(chunk_size=1 << 16, timeout=_TIMEOUT_S)(url, output_file, pooch_instance)


def _fetch_unpacked(url: str, output_file: str, pooch_instance: Any) -> None:
    """A downloader for `pooch.retrieve`: so that the hash is taken of the unpacked file."""
    packed = output_file + ".gz"
    try:
        _fetch(url, packed, pooch_instance)
        with open(packed, "rb") as raw, open(output_file, "wb") as unpacked:
            # A server that declares the file's gzip as transfer encoding has it unpacked on the way.
            source = gzip.GzipFile(fileobj=raw) if raw.peek(2)[:2] == b"\x1f\x8b" else raw
            shutil.copyfileobj(source, unpacked)
    finally:
        Path(packed).unlink(missing_ok=True)


@contextmanager
def _pooch_silent() -> Iterator[None]:
    # Pooch announces each download on stderr. A library does not write there; our own log says the same.
    import pooch

    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _in_few_words(error: Exception) -> str:
    import requests

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"HTTP {error.response.status_code}"
    if isinstance(error, requests.Timeout):
        return "timed out"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "broken off"
    if isinstance(error, requests.ConnectionError):
        return "no connection"
    if isinstance(error, requests.RequestException):
        return type(error).__name__
    return "delivered other bytes than expected"
