"""What all benchmarks share: refusals and exit codes, options that mean the same everywhere, progress, results on disk.

Importing it loads neither NumPy nor gpuconv, so that a command can bound the threads of both before.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import difflib
import fnmatch
import importlib.metadata
import json
import math
import os
import platform
import runpy
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parent.parent
#: Of the JSON files.
SCHEMA = 1
#: How a command ends: something is wrong, or failed; it could not begin; Ctrl-C.
WRONG, REFUSED, INTERRUPTED = 1, 2, 130
#: Share of all cores that others may take; below it lie the services of an idle machine.
MUCH = 0.05

# -- beginning and end -----------------------------------------------------------------------------------------------


class Refused(Exception):
    """What was asked for cannot be done; one line that says why and what would do."""


def start(main: Callable[[], int | None]) -> NoReturn:
    """What each of the programs begins with: run it, on a terminal of any encoding, and exit with its status."""
    # By its path: ``import gpuconv`` would load NumPy, whose BLAS reads its number of threads then.
    runpy.run_path(str(ROOT / "gpuconv" / "terminal.py"))["write_anything"]()
    sys.exit(main())


def answer(name: str, run: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None) -> int:
    """Run a command, and return its exit code.

    Args:
        name: of the module, which begins the line of a refusal.
        run: returns 0, or 1 if something is wrong.
        argv: its arguments; None for those of the process.

    Returns:
        What it returns; 2 and a line on stderr if it was refused; 130 after Ctrl-C.
    """
    try:
        return run(argv)
    except Refused as error:
        say(f"{name}: {error}")
        return REFUSED
    except KeyboardInterrupt:
        progress("")
        return INTERRUPTED
    except BrokenPipeError:
        # `| head` has seen enough. What is left in the buffer goes nowhere, instead of failing at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


# -- options ---------------------------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """Of one of the commands; refuses in one line, and not with its usage and an exit."""

    def __init__(self, name: str, description: str):
        super().__init__(prog=f"python -m bench.{name}", description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise Refused(f"{message}; --help lists the options")

    def json_option(self, *, required: bool = False) -> None:
        """``--json FILE``: where the results go, see :func:`check_writable`."""
        self.add_argument("--json", type=Path, metavar="FILE", required=required, help="write the results there")

    def count_option(self, option: str, metavar: str, about: str, default: int | None = None) -> None:
        """A whole number of at least 1."""
        about = about if default is None else f"{about}; default: {default}"
        self.add_argument(option, type=whole_number, default=default, metavar=metavar, help=about)

    def jobs_option(self) -> None:
        """``--jobs N``: processes that compile."""
        cores = available_cores()
        self.add_argument(
            "--jobs", type=whole_number, default=cores, metavar="N", help="processes that compile; default: a core each"
        )


def whole_number(text: str) -> int:
    """A whole number of at least 1, as an argument."""
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def whole_numbers(text: str) -> list[int]:
    """Several, with commas between them."""
    return [whole_number(part) for part in text.split(",")]


def seconds(text: str) -> float:
    """A time, as an argument."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value


def names(text: str) -> list[str]:
    """Names or patterns with commas between them, as an argument; :func:`fitting` looks them up."""
    found = [name.strip() for name in text.split(",") if name.strip()]
    if not found:
        raise argparse.ArgumentTypeError("a name is needed")
    return found


def fitting(option: str, wanted: Sequence[str], known: Iterable[str]) -> list[str]:
    """The known names that are asked for, in their own order; all of them if nothing is.

    Args:
        option: for the message.
        wanted: names, or patterns such as ``resnet50.*``. The network of a layer may be shortened: ``lenet.conv2`` is
            ``lenet5.conv2``.
        known: all names.

    Raises:
        Refused: one fits none; the nearest name is suggested.
    """
    every, found = list(dict.fromkeys(known)), set()
    for pattern in wanted:
        network, dot, layer = pattern.partition(".")
        ways = [pattern, f"{network}*.{layer}"] if network and dot else [pattern]
        fits = next(filter(None, ([name for name in every if fnmatch.fnmatchcase(name, way)] for way in ways)), [])
        if not fits:
            siblings = [name for name in every if dot and network and name.startswith(network)]
            raise Refused(f"{option}: there is no {pattern!r}; {_nearest(pattern, siblings or every)}")
        found.update(fits)
    return [name for name in every if name in found or not wanted]


def the_one(option: str, wanted: str, known: Iterable[str]) -> str:
    """As :func:`fitting`, for an option that takes one name."""
    found = fitting(option, [wanted], known)
    if len(found) > 1:
        raise Refused(f"{option}: {wanted!r} fits several: {', '.join(found)}; name one of them")
    return found[0]


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"


def check_writable(option: str, path: Path | None) -> None:
    """See to it, before minutes of measuring, that a file can be written; its folder is made if it is not there.

    Raises:
        Refused: it cannot; one line that says why.
    """
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(f"{option}: cannot make the folder {path.parent} ({error.strerror})") from None
    if path.is_dir():
        raise Refused(f"{option}: {path} is a folder; give the name of a file in it")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise Refused(f"{option}: {path} cannot be written to")


# -- progress --------------------------------------------------------------------------------------------------------


class Progress:
    """What is being done now, on stderr: one line that is rewritten on a terminal; elsewhere a line now and then."""

    #: Seconds between two lines where nothing can be rewritten.
    QUIET_S = 20.0
    _COLUMNS = 110

    def __init__(self) -> None:
        self._said, self._shown = time.monotonic(), False

    def __call__(self, text: str) -> None:
        """Show it; an empty text clears the line."""
        if sys.stderr.isatty():
            if text or self._shown:
                print(f"\r\033[K{text[: self._COLUMNS]}", end="", file=sys.stderr, flush=True)
            self._shown = bool(text)
        elif text and time.monotonic() - self._said >= self.QUIET_S:
            print(text, file=sys.stderr, flush=True)
            self._said = time.monotonic()

    @contextlib.contextmanager
    def during(self, text: str) -> Iterator[None]:
        """Show it with the seconds that it takes, for what cannot tell how far it is. Not beside what is timed."""
        over, begin = threading.Event(), time.monotonic()

        def tick() -> None:
            while not over.wait(1):
                self(f"{text}, {time.monotonic() - begin:.0f} s")

        self(text)
        thread = threading.Thread(target=tick, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


#: Of the process.
progress = Progress()


def say(line: str) -> None:
    """Print a line on stderr."""
    progress("")
    print(line, file=sys.stderr, flush=True)


# -- results ---------------------------------------------------------------------------------------------------------


def document(benchmark: str, settings: dict[str, Any], **parts: Any) -> dict[str, Any]:
    """What the results of every benchmark begin with; ``complete`` is for the command to set at its end."""
    return {
        "schema": SCHEMA,
        "benchmark": benchmark,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "complete": False,
        "machine": describe(),
        "settings": settings,
        **parts,
    }


def write(found: dict[str, Any], path: Path) -> None:
    """Write in one step, so that neither an old file nor a new one is ever half there."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def read(path: Path, benchmark: str = "") -> dict[str, Any]:
    """The results in a file.

    Raises:
        Refused: it cannot be read, or holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Refused(f"{path.name}: cannot be read ({error})") from None
    right = isinstance(found, dict) and found.get("schema") == SCHEMA and "benchmark" in found
    if not right or found["benchmark"] != (benchmark or found["benchmark"]):
        whose = f" of bench.{benchmark}," if benchmark else " of"
        raise Refused(f"{path.name}: not results{whose} schema {SCHEMA}; measure again")
    return dict(found)


# -- the machine -----------------------------------------------------------------------------------------------------

_PACKAGES = ("gpuconv", "numpy", "numba", "torch", "onnxruntime")
# Every pool that NumPy, Numba or PyTorch may start; each library reads its own when it is loaded.
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


def available_cores() -> int:
    """Cores that this process may use, which can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def limit_threads(threads: int) -> None:
    """Let every library that is loaded from now on use ``threads`` threads; call it before NumPy is imported."""
    if "numpy" in sys.modules:
        raise RuntimeError("limit_threads: NumPy is loaded already, and its BLAS has read its number of threads")
    for variable in _THREAD_VARIABLES:
        os.environ[variable] = str(threads)


def thread_pools(threads: int) -> list[dict[str, Any]]:
    """The thread pools that have been loaded, each bound to ``threads``.

    The environment has bound them already (:func:`limit_threads`). This catches a BLAS that reads another variable, and
    shows in the results that all contenders had the same number. OpenMP and BLAS need threadpoolctl for that.
    """
    pools = []
    if "numba" in sys.modules:
        import numba

        pools.append({"api": "numba", "library": numba.__name__, "threads": numba.get_num_threads()})
    try:
        import threadpoolctl  # type: ignore[import-untyped]
    except ImportError:
        return pools
    threadpoolctl.threadpool_limits(threads)
    return pools + [
        {"api": pool["user_api"], "library": pool["internal_api"], "threads": pool["num_threads"]}
        for pool in threadpoolctl.threadpool_info()
    ]


def describe() -> dict[str, Any]:
    """Processor, cores, versions and commit, as they go into the results."""
    return {
        "cpu": _cpu_model(),
        "cores": available_cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {"python": platform.python_version(), **versions(*_PACKAGES)},
        "commit": _git("rev-parse", "--short=10", "HEAD"),
        # Results and the tables made of them change with every run, the code that was timed does not.
        "dirty": bool(_git("status", "--porcelain", "--", ".", ":!bench/results", ":!README.md", ":!docs")),
    }


def versions(*packages: str) -> dict[str, str]:
    """The versions of those packages that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


class OtherProcesses:
    """How much of the machine's processors others use, from construction to :meth:`share`.

    A library that spreads its work over all cores waits for the slowest of them, so that one busy neighbour can cost
    it far more than its share. Figures that were taken beside one should say so.
    """

    def __init__(self) -> None:
        self._start = self._times()

    def share(self) -> float | None:
        """From 0 to 1; None where the system does not tell (it does on Linux)."""
        if self._start is None or (now := self._times()) is None:
            return None
        total, idle, own = (after - before for after, before in zip(now, self._start, strict=True))
        return round(min(1.0, max(0.0, (total - idle - own) / total)), 3) if total else 0.0

    @staticmethod
    def _times() -> tuple[float, float, float] | None:
        """CPU seconds of all cores: all, idle ones, those of this process and its children."""
        try:
            fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
        except OSError:
            return None
        ticks = [int(field) / os.sysconf("SC_CLK_TCK") for field in fields]
        return sum(ticks), ticks[3] + ticks[4], sum(os.times()[:4])


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _git(*arguments: str) -> str | None:
    """What git prints, or None where there is no git or no commit."""
    try:
        result = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()
