"""All commands as one program: options by Typer, errors as one line on stderr."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

import gpuconv
from gpuconv import backends, parallel
from gpuconv.cli import course
from gpuconv.cli.check import check
from gpuconv.cli.common import INTERRUPTED, Failure, complain, option, os_error
from gpuconv.cli.evaluate import evaluate
from gpuconv.cli.explore import explore
from gpuconv.cli.info import info
from gpuconv.cli.predict import predict
from gpuconv.cli.summary import summary
from gpuconv.cli.train import train
from gpuconv.cli.tune import tune
from gpuconv.terminal import write_anything
from gpuconv.training import NamesSettings


def run(argv: Sequence[str]) -> int:
    """Run the command that the arguments name, and return the exit status."""
    # Accepted in any position: a user who has just seen a command fail adds it at the end.
    debug = "--debug" in argv
    arguments = [argument for argument in argv if argument != "--debug"]
    write_anything()
    try:
        status = program()(arguments, prog_name="gpuconv", standalone_mode=False) or 0
        sys.stdout.flush()
    except SystemExit as end:  # of shell completion
        status = end.code or 0
    except typer.Abort:
        status = INTERRUPTED
    except BrokenPipeError:
        return _stop_writing()
    except Exception as error:
        if debug:
            traceback.print_exc()
        return _fail(_in_one_line(error), error.status if isinstance(error, Failure) else 2)
    if status == INTERRUPTED:
        return _fail("interrupted", INTERRUPTED)
    return int(status)


def _fail(message: str, status: int) -> int:
    """Say what went wrong; if several processes train together, end all of them."""
    world = parallel.joined()
    if world.size == 1:
        return complain(message, status)
    parallel.wait_for_first(world)
    complain(message if world.first else f"rank {world.rank}: {message}", status)
    sys.stderr.flush()
    world.abort(status)
    return status


def _stop_writing() -> int:
    """Exit quietly if the reader of the output has gone (``gpuconv summary lenet5 | head -1``)."""
    # Python flushes stdout once more when it exits, and would report an error.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1  # as Rich does


def _in_one_line(error: Exception) -> str:
    # Typer's base class of usage errors is private and has moved; a public subclass leads to it.
    if isinstance(error, typer.BadParameter.__mro__[1]):
        context = getattr(error, "ctx", None)
        where = context.command_path if context else "gpuconv"
        message = error.format_message()  # type: ignore[attr-defined]
        return f"{message.rstrip('.')} (see '{where} --help')"
    if isinstance(error, OSError):
        return os_error(error)
    if isinstance(error, NamesSettings):
        return error.spelled(option)
    if isinstance(error, (Failure, ValueError, ImportError, backends.BackendUnavailable, parallel.WorldError)):
        return str(error)
    if isinstance(error, MemoryError):
        return "out of memory"
    return f"unexpected {type(error).__name__}: {error} (--debug shows where)"


def program() -> typer.Typer:
    """The commands, as one Typer program."""
    app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
    app.callback(invoke_without_command=True)(_top)
    for command in (train, evaluate, predict, explore, tune, summary, info, check):
        app.command()(command)
    app.add_typer(course.app, name="course")
    return app


def _top(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of what goes wrong.")] = False,
) -> None:
    """Train small convolutional networks, look inside them, and use them.

    Begin with: gpuconv train
    """
    if version:
        print(f"gpuconv {gpuconv.__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())
