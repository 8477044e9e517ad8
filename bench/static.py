"""What can be told of every kernel without a GPU: ``python -m bench.static [--op NAME] [--layers NAME,...] [--full]``.

Compiled (``bench/sass.py``): registers, shared memory, occupancy, the share of multiply-adds in the main loop. Computed
(``bench/roofline.py``): waves, and how fast it could be at best. Simulated, on a smaller layer of the same kind: bank
conflicts, and sectors of global memory a request. Nothing here is a measurement of time.

By default the first tiling of each variant, which is its good guess, on LeNet's layers and some larger ones; ``--full``
takes all tilings. ``--model lenet --step`` shows instead what a captured training step launches (``bench/step.py``).
"""

from __future__ import annotations

import argparse
import difflib
import fnmatch
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from bench import machine, report, roofline, sass, step
from bench.console import start, whole_number
from bench.inspection import (
    Failure,
    Job,
    choose_target,
    compiled,
    executed,
    geometry_text,
    in_processes,
    result,
    simulated,
    tiling_text,
)
from bench.layers import LAYERS

_DEFAULT_LAYERS = (
    "lenet5.conv?",
    "lenet5.block?",
    "lenet5.classifier",
    "lenet5.parameters",
    "lenet5.pool1",
    "lenet5.relu1",
    "lenet5.loss",
    "lenet5.images*",
    "lenet5.fc1-weight",
    "resnet50.conv2-3x3",
    "resnet50.conv3-reduce",
    "mobilenet2.depthwise-14",
)


class Refused(Exception):
    """What was asked for cannot be shown; one line that says why and what would do."""


# -- which kernels on which layers -------------------------------------------------------------------------------------


def _jobs(arguments: argparse.Namespace) -> list[Job]:
    from gpuconv.kernels import VARIANTS, load

    architectures = tuple(arguments.cc)
    found = []
    for operation, variants in VARIANTS.items():
        if arguments.op and operation not in arguments.op:
            continue
        if operation not in LAYERS:
            raise Refused(f"operation {operation} has no layers: give it an entry in LAYERS of bench/layers.py")
        layers = {
            name: geometry
            for name, geometry in LAYERS[operation].items()
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in arguments.layers)
        }
        for layer, geometry in layers.items():
            for variant in variants:
                if arguments.variant and variant not in arguments.variant:
                    continue
                module = load(operation, variant)
                if not module.supports(geometry):
                    continue
                tilings = module.tilings(geometry)
                for tiling in tilings if arguments.full else tilings[:1]:
                    job = Job(operation, variant, layer, geometry, tiling, arguments.dtype, architectures)
                    found.append(job)
    return found


# -- tables -----------------------------------------------------------------------------------------------------------


def main_sites(sites: Sequence[dict[str, Any]], measure: str) -> list[dict[str, Any]]:
    """The instructions of a simulated kernel that make a twentieth of its accesses or more: those of its main loop."""
    total = sum(site[measure] for site in sites)
    return [site for site in sites if 20 * site[measure] >= total]


def _tables(document: dict[str, Any]) -> Iterator[report.Table]:
    yield _layers_table(document["results"])
    for operation in dict.fromkeys(found["operation"] for found in document["results"]):
        results = [found for found in document["results"] if found["operation"] == operation]
        for architecture in document["architectures"]:
            yield _kernels_table(operation, results, architecture)
    if counted := [found for found in document["results"] if found.get("executed")]:
        yield _executed_table(counted)


def _layers_table(results: list[dict[str, Any]]) -> report.Table:
    header = ["layer", "", "FLOP", "bytes", "FLOP/B", "bound", "≥ µs", "copy µs"]
    groups: dict[str, list[list[str]]] = {}
    for (operation, layer), found in {(found["operation"], found["layer"]): found for found in results}.items():
        work = found["work"]
        row = [
            f"  {layer}",
            found["geometry"],
            _amount(work["flop"]),
            _amount(work["traffic_bytes"]),
            f"{work['intensity']:.1f}",
            work["bound"],
            figure(work["h200_floor_us"]),
            figure(work["h200_copy_us"]),
        ]
        groups.setdefault(operation, []).append(row)
    return _grouped("Layers, and the roofline's bound on an H200", header, groups)


def _grouped(title: str, header: list[str], groups: dict[str, list[list[str]]]) -> report.Table:
    """A table with headings between its rows; the first cells are padded, so that they begin at the same place."""
    rows = [header]
    for name, members in groups.items():
        rows += [[name] + [""] * (len(header) - 1), *members]
    width = max(len(row[0]) for row in rows)
    header, *rows = [[row[0].ljust(width), *row[1:]] for row in rows]
    return report.Table(title, header, rows)


_HEADER = ["variant, tiling", "regs", "smem", "thr", "occ", "waves", "FMA", "loop", "LDS128", "LDG", "≥ µs"]
_HEADER += ["bank", "sect", "used"]


def _kernels_table(operation: str, results: list[dict[str, Any]], architecture: str) -> report.Table:
    groups: dict[str, list[list[str]]] = {}
    for found in results:
        groups.setdefault(found["layer"], []).extend(_kernel_rows(found, architecture))
    return _grouped(f"{operation}: kernels on {architecture}", _HEADER, groups)


def _kernel_rows(found: dict[str, Any], architecture: str) -> Iterator[list[str]]:
    label = f"  {found['variant']} {tiling_text(found['tiling'])}"
    if "error" in found:
        yield [label, "failed"] + [""] * (len(_HEADER) - 2)
        return
    # What concerns all launches together stands beside the first one.
    beside = [figure(found["h200_issue_floor_us"]), *access_cells(found["simulated"])]
    for launch in found["launches"]:
        if launch["architecture"] != architecture:
            continue
        loop, counts = launch["main_loop"], launch["main_loop"]["counts"]
        shared = launch["static_shared_bytes"] + launch["dynamic_shared_bytes"]
        waves, share = launch["h200_waves"], loop["multiply_add_share"]
        loads = sum(count for kind, count in counts.items() if kind.startswith("LDG."))
        yield [
            label,
            f"{launch['registers']}{'!' if launch['spill_bytes'] or launch['local_bytes'] else ''}",
            str(shared or ""),
            str(launch["threads"]),
            f"{launch['occupancy']['share']:.0%}",
            "" if waves is None else f"{waves:.1f}",
            f"{share:.0%}" if share else "",
            f"{loop['instructions']}{'' if loop['is_loop'] else '*'}",
            str(counts.get("LDS.128", "")),
            str(loads or ""),
            *beside,
        ]
        label, beside = "    then", [""] * len(beside)


def _executed_table(results: list[dict[str, Any]]) -> report.Table:
    header = ["variant, tiling", "blocks", "threads", "a thread", "a block", "a GPU", "issue ≥ µs"]
    groups: dict[str, list[list[str]]] = {}
    for found in results:
        rows = groups.setdefault(f"{found['operation']} for {found['layer']}", [])
        label = f"  {found['variant']} {tiling_text(found['tiling'])}"
        if "error" in found["executed"]:
            rows.append([label, "failed"] + [""] * (len(header) - 2))
            continue
        for one in found["executed"]["launches"]:
            blocks, block, thread = one["blocks"], one["block"], one["thread"]
            seconds = roofline.issue_seconds(blocks, block, thread)
            cells = [f"{blocks:,}", str(one["threads"]), f"{thread:,}", f"{block:,.0f}", _amount(blocks * block)]
            rows.append([label, *cells, figure(1e6 * seconds)])
            label = "    then"
    return _grouped("Instructions that are executed (PTX; of a block and a GPU, by their warps)", header, groups)


def access_cells(simulation: dict[str, Any] | None) -> list[str]:
    """Cells: degree of bank conflicts, sectors a request, and the part of these that is used."""
    if simulation is None or "refused" in simulation:
        return ["", "", ""]
    conflicts = max((site["degree"] for site in main_sites(simulation["shared"], "passes")), default=None)
    loads = [site for site in simulation["global"] if site["access"] == "read"]
    sectors, ideal, requests = (sum(site[name] for site in loads) for name in ("sectors", "ideal", "requests"))
    return [
        "" if conflicts is None else f"{conflicts:.2f}",
        f"{sectors / requests:.1f}" if requests else "",
        f"{ideal / sectors:.0%}" if sectors else "",
    ]


def _site_lines(document: dict[str, Any]) -> Iterator[str]:
    for found in document["results"]:
        simulation = found.get("simulated") or {"refused": "not compiled"}
        yield f"\n{found['operation']} {found['variant']} {found['tiling']} for {found['layer']}"
        if "refused" in simulation:
            yield f"  not simulated: {simulation['refused']}"
            continue
        yield f"  simulated on {simulation['layer']}"
        yield from (f"  {fault}" for fault in simulation["faults"])
        for site in simulation["shared"]:
            yield (
                f"  shared {site['access']} {site['bits']} bits of {site['array']}, {site['site']}: conflict degree "
                f"{site['degree']:.2f} (worst {site['worst']:.0f}), {site['requests']} requests"
            )
        for site in simulation["global"]:
            yield (
                f"  global {site['access']} {site['bits']} bits of {site['array']}, {site['site']}: "
                f"{site['per_request']:.1f} sectors a request, {site['efficiency']:.0%} used, "
                f"{site['requests']} requests"
            )


def _amount(value: float) -> str:
    prefixes = ["", " k", " M", " G", " T"]
    while value >= 1000 and len(prefixes) > 1:
        value /= 1000
        prefixes.pop(0)
    return f"{value:.3g}{prefixes[0]}"


def figure(value: float) -> str:
    """Three digits."""
    return f"{value:.2g}" if value < 1 else f"{value:.3g}" if value < 1000 else f"{value:.0f}"


_LEGEND = """\
Layers: ≥ µs with arithmetic and memory at their peaks, of which "bound" is the slower one; copy µs: the traffic at the
rate that a copy in memory reaches. Kernels:
variant, tiling  the tiling's numbers are named below; "then" is a further launch
regs  registers a thread (! with spills or local memory)      smem  bytes of shared memory a block
thr   threads a block        occ  theoretical occupancy       waves on an H200's 132 multiprocessors
FMA   share of multiply-adds in the main loop                 loop  its instructions (* no loop: the whole kernel)
LDS128, LDG  its 128-bit loads of shared memory, its loads of global memory
≥ µs  bound on an H200, where in a convolution each instruction of the main loop takes a multiply-add's time
From the simulator, on a small layer of the kind:
bank  worst degree of bank conflicts in the main loop         sect  sectors a request of global loads
used  part of these sectors that is needed
"""


def _legend(document: dict[str, Any]) -> str:
    results, compilers = document["results"], document["compilers"]
    tilings = {f"{found['operation']} {found['variant']}: {' x '.join(found['tiling'])}": None for found in results}
    made_by = ", ".join(f"{package} {version}" for package, version in compilers.items())
    return "\n".join([_LEGEND, "Tilings", *tilings, "", f"Compiled by {made_by}"])


# -- the command -------------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Refused(f"{message}; --help lists the options")


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise argparse.ArgumentTypeError("a name is needed")
    return names


def _architectures(text: str) -> list[str]:
    for name in _names(text):
        try:
            sass.compute_capability(name)
            roofline.architecture(name)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    return _names(text)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = _Parser(
        prog="python -m bench.static",
        description="What can be told of every kernel without a GPU.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--op", type=_names, default=[], metavar="NAME,...", help="operations; default: all")
    add("--variant", type=_names, default=[], metavar="NAME,...", help="variants; default: all")
    add(
        "--layers",
        type=_names,
        default=list(_DEFAULT_LAYERS),
        metavar="NAME,...",
        help="layers, or patterns as 'resnet50.*'; default: LeNet's and a few others",
    )
    add("--list", action="store_true", help="print operations with their variants and layers")
    add("--full", action="store_true", help="all tilings; default: the first one, a variant's good guess")
    add("--cc", type=_architectures, default=["sm_90a"], metavar="ARCH,...", help="architectures; default: sm_90a")
    add("--dtype", choices=("float32", "float64"), default="float32")
    add("--no-trace", action="store_true", help="do not simulate")
    add("--executed", action="store_true", help="also the instructions that are executed, counted by running the PTX")
    add("--sites", action="store_true", help="also each simulated instruction that accesses memory")
    add("--json", type=Path, metavar="FILE", help="write all figures")
    add("--step", action="store_true", help="instead: the kernels of a captured training step, their arguments, bytes")
    add("--model", choices=("lenet",), help="of the step; default: lenet")
    add("--batch", type=whole_number, metavar="N", help="images of the step; default: 64")
    add("--augment", action="store_true", help="of the step: its images are moved, as by gpuconv train --augment")
    add("--optimizer", choices=("sgd", "adam"), help="of the step; default: sgd, with momentum")
    arguments = parser.parse_args(argv)
    for name in ("model", "batch", "augment", "optimizer"):
        if getattr(arguments, name) not in (None, False) and not arguments.step:
            parser.error(f"--{name} is of a training step: add --step")
    return arguments


def _check(arguments: argparse.Namespace) -> None:
    from gpuconv.kernels import VARIANTS

    _known("--op", arguments.op, VARIANTS)
    _known("--variant", arguments.variant, {variant for variants in VARIANTS.values() for variant in variants})
    layers = {name for named in LAYERS.values() for name in named}
    for pattern in arguments.layers:
        if not fnmatch.filter(layers, pattern):
            _known("--layers", [pattern], layers)


def _known(option: str, names: Iterable[str], known: Iterable[str]) -> None:
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, list(known), n=1)
            hint = f"did you mean {near[0]!r}?" if near else "--list prints all names"
            raise Refused(f"{option}: there is no {name!r}; {hint}")


def _print_names() -> None:
    from gpuconv.kernels import VARIANTS

    for name, named in LAYERS.items():
        print(f"{name}: {', '.join(VARIANTS.get(name, {})) or 'no variant'}")
        for layer, geometry in named.items():
            print(f"  {layer:32} {geometry_text(geometry)}")


def _write(document: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(f"written: {path}", file=sys.stderr)


def _show_step(arguments: argparse.Namespace) -> None:
    choose_target(simulate=True)  # launches are noted, not made
    from gpuconv.backends import BackendUnavailable

    batch, optimizer = arguments.batch or 64, arguments.optimizer or "sgd"
    try:
        launches, others = step.record(batch, optimizer), step.around(batch, augment=arguments.augment)
    except BackendUnavailable as error:
        raise Refused(str(error)) from None
    print(step.table(launches, others, batch))
    if arguments.json is not None:
        settings = {"model": "lenet", "batch": batch, "optimizer": optimizer, "augment": arguments.augment}
        found = {"schema": report.SCHEMA, "benchmark": "step", "machine": machine.describe(), "settings": settings}
        both = {"launches": launches, "around": others}
        _write({**found, **{name: [asdict(one) for one in ones] for name, ones in both.items()}}, arguments.json)


def _run(argv: list[str] | None) -> int:
    arguments = _arguments(argv)
    if arguments.list:
        _print_names()
        return 0
    if (path := arguments.json) is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise Refused(f"--json: {path} is a folder, or is in one that does not exist")
    if arguments.step:
        _show_step(arguments)
        return 0
    choose_target(simulate=False)
    _check(arguments)
    sass.check()
    jobs = _jobs(arguments)
    if not jobs:
        raise Refused("no kernel supports any of these layers; --list prints all names")
    workers = min(machine.available_cores(), len(jobs))
    compilations: dict[Job, Any] = dict(in_processes(compiled, jobs, simulate=False, workers=workers))
    simulations: dict[Job, Any] = {}
    if not arguments.no_trace:
        simulations.update(in_processes(simulated, jobs, simulate=True, workers=workers))
    document = {
        "schema": report.SCHEMA,
        "benchmark": "static",
        "machine": machine.describe(),
        "compilers": sass.versions(),
        "architectures": arguments.cc,
        "results": [result(job, compilations[job], simulations.get(job)) for job in jobs],
    }
    if arguments.executed:
        counts = dict(in_processes(executed, jobs, simulate=False, workers=workers))
        for job, found in zip(jobs, document["results"], strict=True):
            outcome = counts[job]
            failed = isinstance(outcome, Failure)
            found["executed"] = {"error": outcome.message} if failed else {"launches": outcome}
    for table in _tables(document):
        print(table.plain() + "\n")
    print(_legend(document))
    if arguments.sites:
        print(*_site_lines(document), sep="\n")
    if arguments.json is not None:
        _write(document, arguments.json)
    return 1 if _say_what_is_wrong(document["results"]) else 0


def _say_what_is_wrong(results: list[dict[str, Any]]) -> int:
    """Say on stderr what was not compiled, is wrong in the simulator, or was not simulated; count the first two."""
    errors = refused = 0
    for found in results:
        simulation = found.get("simulated") or {}
        refused += "refused" in simulation
        failures = found.get("error"), found.get("executed", {}).get("error")
        for message in (*filter(None, failures), *simulation.get("faults", ())):
            name = f"{found['operation']} {found['variant']} {tiling_text(found['tiling'])} on {found['layer']}"
            print(f"bench.static: {name}: {message}", file=sys.stderr)
            errors += 1
    if refused:
        print(f"{refused} of {len(results)} not simulated; --sites says why", file=sys.stderr)
    return errors


def main(argv: list[str] | None = None) -> int:
    """Print the tables; 0, 1 when a kernel is wrong or cannot be compiled, 2 when nothing could be shown."""
    try:
        return _run(argv)
    except (Refused, sass.ToolMissing) as error:
        print(f"bench.static: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # `| head` has seen enough. What is left in the buffer goes nowhere, instead of failing at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    start(main)
