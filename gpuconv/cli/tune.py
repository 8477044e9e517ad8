"""``gpuconv tune``: measure which variant of each convolution is the fastest here."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track

from gpuconv import backends
from gpuconv.cli.common import (
    INTERRUPTED,
    Failure,
    complain,
    complete_backend,
    completing,
    new_console,
    on_backend,
    say,
)
from gpuconv.models import MODELS
from gpuconv.names import did_you_mean
from gpuconv.training import TrainConfig
from gpuconv.tuning import store

#: That of tuner, without loading what measures.
_SIZES = "n,c,h,w,k,r,s[,stride[,pad[,groups]]]"
_SHOWN_CANDIDATES = 5
#: The names in tuner.OPERATIONS, without importing the tuner.
_OPERATIONS = ("conv2d", "conv2d_grad_input", "conv2d_grad_weight")


def tune(
    model: Annotated[
        str | None,
        typer.Argument(
            help=f"Network whose convolutions to tune: {', '.join(MODELS)}.",
            metavar="MODEL",
            autocompletion=completing(*MODELS),
        ),
    ] = None,
    geometry: Annotated[
        str | None,
        typer.Option(help="Or one convolution: its sizes; stride, pad and groups may be left out.", metavar=_SIZES),
    ] = None,
    op: Annotated[
        str | None,
        typer.Option(
            help=f"With --geometry: {', '.join(_OPERATIONS)}. [default: all]", autocompletion=completing(*_OPERATIONS)
        ),
    ] = None,
    batch: Annotated[int, typer.Option(help="Images a step of the network.", min=1)] = TrainConfig.batch_size,
    dtype: Annotated[
        str,
        typer.Option(help="With --geometry: float32 or float64.", autocompletion=completing("float32", "float64")),
    ] = "float32",
    backend: Annotated[
        str, typer.Option(help="As for train.", metavar="NAME", autocompletion=complete_backend)
    ] = backends.AUTO,
    show: Annotated[bool, typer.Option("--list", help="Show what is in the store, and measure nothing.")] = False,
    clear: Annotated[bool, typer.Option("--clear", help="Empty the store, and measure nothing.")] = False,
) -> None:
    """Measure which variant of each convolution is the fastest on this machine, and use it from now on.

    Each variant is checked before it is timed. The fastest are stored for this device, driver and version, in your
    cache folder or the folder that GPUCONV_TUNING names. Ctrl-C keeps what has been measured.
    """
    if sum([model is not None, geometry is not None, show, clear]) != 1:
        raise Failure("tune takes one of: a MODEL, --geometry, --list, --clear (see 'gpuconv tune --help')")
    if show or clear:
        _list_tuning() if show else _clear_tuning()
        return
    from gpuconv import tuner

    if geometry is None and (op is not None or dtype != "float32"):
        raise Failure("--op and --dtype go with --geometry")
    if op is not None and op not in tuner.OPERATIONS:
        hint = did_you_mean(op, tuner.OPERATIONS)
        raise Failure(f"--op must be one of {', '.join(tuner.OPERATIONS)}, got {op!r}{hint}")
    if dtype not in ("float32", "float64"):
        raise Failure(f"--dtype must be float32 or float64, got {dtype!r}")
    with on_backend(backend):
        chosen = backends.current()
    if chosen.tuning_platform() is None:
        raise Failure(tuner.nothing_to_tune(chosen))
    if geometry is not None:
        try:
            sizes = tuner.geometry_of(geometry)
        except (TypeError, ValueError) as error:
            raise Failure(str(error)) from error
        tasks = [tuner.Task(name, sizes, dtype) for name in ([op] if op else tuner.OPERATIONS)]
    else:
        tasks = tuner.tasks_of(str(model), batch, chosen)
    console = new_console()
    say(console, f"backend {chosen.name} ({chosen.describe()})")
    outcomes: list[tuner.Outcome] = []
    try:
        for outcome in _with_progress(console, tuner.tune(tasks, chosen), len(tasks)):
            outcomes.append(outcome)
            _show_outcome(console, outcome)
    except KeyboardInterrupt:
        measured = sum(not outcome.skipped for outcome in outcomes)
        said = "; ".join([f"{measured} of {len(tasks)} were measured", *filter(None, _what_is_kept(outcomes))])
        raise Failure(f"interrupted: {said}", INTERRUPTED) from None
    if all(outcome.skipped for outcome in outcomes):
        why_not = outcomes[-1].skipped if outcomes else "the network has no convolution"
        raise Failure(f"tune: nothing was measured; {why_not}")
    kept, lost = _what_is_kept(outcomes)
    if kept:
        say(console, kept)
    if lost:
        complain(lost)


def _with_progress(console: Console, outcomes: Iterable[Any], total: int) -> Iterator[Any]:
    """Pass outcomes on, with a progress bar on a terminal."""
    if not sys.stdout.isatty() or console.is_dumb_terminal:
        yield from outcomes
        return
    yield from track(outcomes, "tuning", total=total, console=console, transient=True)


def _what_is_kept(outcomes: Sequence[Any]) -> tuple[str, str]:
    """How many results were stored and where, and why the others were not; empty if there are no results."""
    measured = [outcome for outcome in outcomes if not outcome.skipped]
    place = store.folder()
    if not measured or place is None:
        return "not kept: GPUCONV_TUNING is off" if measured else "", ""
    reasons = [outcome.not_kept for outcome in measured if outcome.not_kept]
    lost = f"not kept: {reasons[0]}" if reasons else ""
    if len(reasons) == len(measured):
        return "", lost
    if not reasons:
        return f"kept in {place}", ""
    return f"{len(measured) - len(reasons)} of {len(measured)} kept in {place}", f"{len(reasons)} {lost}"


def _show_outcome(console: Console, outcome: Any) -> None:
    say(console, str(outcome.task), style="bold")
    for label, fault in outcome.wrong:
        say(console, f"  {label}: not timed: {fault}", indent=4)
    if outcome.skipped:
        say(console, f"  skipped: {outcome.skipped}", indent=4)
    # On a GPU there are dozens of tilings, of which only the fastest few are of interest.
    for position, (label, microseconds) in enumerate(outcome.microseconds):
        note = "taken" if label == outcome.winner else ""
        note += ("" if not note else ", ") + "the rule's" if label == outcome.rule else ""
        if position < _SHOWN_CANDIDATES or note:
            line = f"  {label:24} {microseconds:12,.1f} µs  {note}".rstrip()
            if len(line) > console.width:
                line = f"  {microseconds:,.1f} µs  {label}  {note}".rstrip()
            say(console, line, indent=4)
    if len(outcome.microseconds) > _SHOWN_CANDIDATES:
        say(console, f"  ({len(outcome.microseconds)} candidates)")


def _clear_tuning() -> None:
    number = store.clear()
    print(f"{number:,} {'entry' if number == 1 else 'entries'} deleted from {store.folder() or 'memory'}")


def _list_tuning() -> None:
    from gpuconv import tuner

    here = set()
    for name, why_not in backends.available().items():
        if why_not is None:
            here.add(backends.get(name).tuning_platform())
    found, broken = store.entries()
    console = new_console()
    place = store.folder()
    say(console, f"{len(found):,} in {place}" if place else "GPUCONV_TUNING is off: there is no store")
    for entry in sorted(found, key=lambda entry: (entry.key.platform.backend, entry.date)):
        key, winner = entry.key, entry.winner
        task = tuner.Task(key.operation, key.geometry, key.dtype, key.window)
        tiling = "" if winner.tiling is None else " " + "x".join(map(str, winner.tiling.values()))
        state = "" if key.platform in here else " (not for here: another device, version or source of the kernels)"
        say(console, f"{task}: {winner.variant}{tiling}, {key.platform.backend}, {entry.date}{state}")
    for line in broken:
        complain(line)
