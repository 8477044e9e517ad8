"""What the benchmarks' command lines share: refusing in one line, checking before measuring, writing results."""

from __future__ import annotations

import argparse
import json
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from bench.machine import ROOT


def start(main: Callable[[], int | None]) -> NoReturn:
    """What each of the programs begins with: run it, on a terminal of any encoding, and exit with its status."""
    # By its path: ``import gpuconv`` would load NumPy, whose BLAS reads its number of threads then.
    runpy.run_path(str(ROOT / "gpuconv" / "terminal.py"))["write_anything"]()
    sys.exit(main())


class Refused(Exception):
    """What was asked for cannot be measured; one line that says why and what would do."""


class Parser(argparse.ArgumentParser):
    """Refuses in one line, and not with its usage and an exit."""

    def error(self, message: str) -> NoReturn:
        raise Refused(f"{message}; --help lists the options")


def whole_number(text: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def check_writable(out: Path) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(f"--out: cannot make the folder {out.parent} ({error.strerror})") from None
    if out.is_dir():
        raise Refused(f"--out: {out} is a folder; give the name of a file in it")
    if not os.access(out.parent, os.W_OK):
        raise Refused(f"--out: the folder {out.parent} cannot be written to")


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def write(document: dict[str, Any], path: Path) -> None:
    """Write in one step, so that neither an old file nor a new one is ever half there."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)
