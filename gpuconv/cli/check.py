"""``gpuconv check``: a script whose Numba CUDA kernels run in the laboratory."""

from __future__ import annotations

import os
import runpy
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from gpuconv.cli.common import Failure


def check(
    script: Annotated[Path, typer.Argument(help="A Python file that launches kernels of numba.cuda.")],
    arguments: Annotated[list[str] | None, typer.Argument(help="What the script finds in sys.argv.")] = None,
    seed: Annotated[int, typer.Option(help="Of the order of threads and blocks.")] = 0,
    limit: Annotated[float, typer.Option(help="Seconds that a launch may take.")] = 60.0,
    device: Annotated[str, typer.Option(help="The GPU to stand for: t4, a100, rtx4090, h100 and others.")] = "h100",
    code: Annotated[bool, typer.Option(help="Compile the kernels for a GPU as well, and report float64.")] = True,
) -> int:
    """Run a script with its Numba CUDA kernels on the CPU, and report races and other faults.

    Every access to memory is recorded. Then the kernels are compiled, and what became of them is told: arithmetic in
    float64 in kernels without such arrays, and what outweighs arithmetic. Exits with 1 if there is a fault, or a kernel
    that does not compile. Needs no GPU.
    """
    if not script.is_file():
        raise Failure(f"check: {script} is not a file")
    try:
        from gpuconv.lab import simulator
        from gpuconv.lab.launching import Settings
        from gpuconv.lab.machine_code import Launched

        simulator.activate(seed, limit=limit, device=device)
    except (ImportError, RuntimeError, ValueError) as error:
        raise Failure(f"check: {error}") from error
    before = sys.argv, sys.path[:]
    sys.argv, sys.path[0:0] = [str(script), *(arguments or [])], [os.fspath(script.parent.resolve())]
    status = 0
    Settings.launched = launched = Launched() if code else None
    try:
        with simulator.trace() as report:
            try:
                runpy.run_path(str(script), run_name="__main__")
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else int(end.code is not None)
            except Exception as error:
                status = 1
                _tell(error)
    finally:
        Settings.launched = None
        if launched is not None:
            report.code = launched.compiled()
        sys.argv, sys.path[:] = before
    sys.stderr.flush()
    print(report)
    refused = any(code.error.startswith("does not compile") for code in report.code)
    return status or int(bool(report.faults) or refused)


def _tell(error: Exception) -> None:
    """A script's error with the lines of the script and of its kernels, without those of the laboratory between."""
    hidden = str(Path(__file__).parents[1]), "<frozen runpy>", runpy.__file__
    lines = [line for line in traceback.extract_tb(error.__traceback__) if not line.filename.startswith(hidden)]
    if len(lines) > _LINES:
        lines = lines[: _LINES // 2] + lines[-_LINES // 2 :]
    for line in traceback.format_list(lines):
        print(line, end="", file=sys.stderr)
    print(*traceback.format_exception_only(error), sep="", end="", file=sys.stderr)


#: Calls that are shown: of a recursion, the first and the last ones.
_LINES = 12
