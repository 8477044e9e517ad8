"""The ``gpuconv`` command: train, evaluate, predict, explore, tune, summary, info, check. One file a command.

An error is one line on stderr that begins with ``gpuconv:``, with exit status 2; ``--debug`` adds the traceback. Ctrl-C
exits with 130; a training run is saved first.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from gpuconv.data.errors import missing_extra

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Args:
        argv: the arguments, without the program's name; by default those of the process.
    """
    # Typer and Rich, part of gpuconv[cli], may be missing: the library does not need them.
    try:
        import rich  # noqa: F401
        import typer  # noqa: F401
    except ImportError as error:
        print(f"gpuconv: {missing_extra('the command line', error.name or 'typer')}", file=sys.stderr)
        return 2
    from gpuconv.cli.app import run

    return run(sys.argv[1:] if argv is None else argv)
