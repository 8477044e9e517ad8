"""``gpuconv info``: what is installed, and what can run here."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
from pathlib import Path

import numpy as np

import gpuconv
from gpuconv import backends
from gpuconv.cli.common import new_console, say
from gpuconv.data.errors import missing_extra
from gpuconv.files import cache_folder


def info() -> None:
    """Show versions, backends (and why one cannot run here), extras."""
    console = new_console()

    def line(name: str, text: str) -> None:
        say(console, f"{name:15} {text}", indent=16 if console.width >= 60 else 4)

    line("gpuconv", gpuconv.__version__)
    line("Python", f"{platform.python_version()}, {platform.platform()}, {os.cpu_count()} CPUs")
    line("NumPy", np.__version__)
    console.print("\nbackends", style="bold")
    for name, why_not in backends.available().items():
        line(f"  {name}", why_not or f"available: {backends.get(name).describe()}")
    try:
        taken = backends.current().name
    except (ValueError, backends.BackendUnavailable) as error:
        taken = f"none: {error}"
    chosen = os.environ.get(backends.ENVIRONMENT_VARIABLE)
    source = f"{backends.ENVIRONMENT_VARIABLE}={chosen}" if chosen else "chosen automatically"
    line("  taken", f"{taken} ({source})")
    console.print("\nextras", style="bold")
    for name in ("cli", "lab", "cuda12", "cuda13", "bench"):
        line(f"  {name}", _state_of_extra(name))
    console.print("\ndata", style="bold")
    line("  mnist-sample", "comes with gpuconv")
    line("  mnist", _state_of_mnist())


def _state_of_extra(extra: str) -> str:
    """Whether the packages of an extra are there, by the requirements that gpuconv was installed with."""
    try:
        requirements = importlib.metadata.requires("gpuconv") or []
    except importlib.metadata.PackageNotFoundError:
        return "unknown: gpuconv runs from its source folder and is not installed"
    missing = []
    for requirement in requirements:
        name = re.match(r"[\w.-]+", requirement)
        if name is None or not re.search(rf"extra == ['\"]{extra}['\"]", requirement) or name[0] == "gpuconv":
            continue
        try:
            importlib.metadata.version(name[0])
        except importlib.metadata.PackageNotFoundError:
            missing.append(name[0])
    return f"not installed: {', '.join(missing)} (pip install 'gpuconv[{extra}]')" if missing else "installed"


def _state_of_mnist() -> str:
    if importlib.util.find_spec("pooch") is None:
        return str(missing_extra("downloading", "pooch"))
    folder = Path(os.environ.get("GPUCONV_DATA") or cache_folder()).expanduser() / "mnist"
    return f"in {folder}" if folder.is_dir() else f"not downloaded yet; will be kept in {folder}"
