"""Where figures come from: processor, threads, versions, commit. And the one place that bounds the threads."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

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
        "dirty": bool(_git("status", "--porcelain", "--", ".", ":!bench/results", ":!README.md")),
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
