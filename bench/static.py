"""What can be told of every kernel without a GPU: ``python -m bench.static [--op NAME] [--layers NAME,...] [--full]``.

Compiled (``bench/sass.py``): registers, shared memory, occupancy, the share of multiply-adds in the main loop. Computed
(``bench/roofline.py``): waves, and how fast it could be at best. Simulated, on a smaller layer of the same kind: bank
conflicts, and sectors of global memory a request. Nothing here is a measurement of time.

By default the first tiling of each variant, which is its good guess, on LeNet's layers and some larger ones; ``--full``
takes all tilings. ``--model lenet --step`` shows instead what a captured training step launches (``bench/step.py``),
and with ``--path`` its longest path (``bench/longest_path.py``).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from bench import command, report, roofline, sass, step
from bench import longest_path as path
from bench.command import Parser, Refused, check_writable, fitting, progress, say, start, write
from bench.inspection import (
    Failure,
    Job,
    access_cells,
    choose_target,
    compiled,
    executed,
    figure,
    geometry_text,
    in_processes,
    jobs_of,
    launch_cells,
    result,
    simulated,
    tiling_lines,
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
    "resnet50.norm2",
    "resnet50.conv2-3x3",
    "resnet50.conv3-reduce",
    "mobilenet2.depthwise-14",
)


# -- which kernels on which layers -------------------------------------------------------------------------------------


def _jobs(arguments: argparse.Namespace) -> list[Job]:
    """Those that are asked for.

    Raises:
        Refused: a name that fits nothing; nothing is left.
    """
    from gpuconv.kernels import VARIANTS

    variants = fitting("--variants", arguments.variants, (name for found in VARIANTS.values() for name in found))
    every = [name for named in LAYERS.values() for name in named]
    layers = fitting("--layers", arguments.layers or _DEFAULT_LAYERS, every)
    found: list[Job] = []
    for operation in fitting("--op", arguments.op, VARIANTS):
        if operation not in LAYERS:
            raise Refused(f"operation {operation} has no layers: give it an entry in LAYERS of bench/layers.py")
        for layer, geometry in LAYERS[operation].items():
            own = [name for name in VARIANTS[operation] if name in variants and layer in layers]
            options = {"dtype": arguments.dtype, "every_tiling": arguments.full}
            found += jobs_of(operation, layer, geometry, own, tuple(arguments.cc), **options)
    if not found:
        raise Refused("no kernel supports any of these layers; --list prints all names")
    return found


# -- tables -----------------------------------------------------------------------------------------------------------


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
    """A table with headings between its rows."""
    rows = []
    for name, members in groups.items():
        rows += [[name] + [""] * (len(header) - 1), *members]
    return report.Table(title, header, rows, left=True)


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
    beside = [figure(found["floor_us"]), *access_cells(found["simulated"])]
    for launch in found["launches"]:
        if launch["architecture"] != architecture:
            continue
        loop, counts = launch["main_loop"], launch["main_loop"]["counts"]
        registers, shared, occupancy = launch_cells(launch)
        waves, share = launch["h200_waves"], loop["multiply_add_share"]
        loads = sum(count for kind, count in counts.items() if kind.startswith("LDG."))
        yield [
            label,
            registers,
            shared,
            str(launch["threads"]),
            occupancy,
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


_LEGEND = """\
Layers: ≥ µs with arithmetic and memory at their peaks, of which "bound" is the slower one; copy µs: the traffic at the
rate that a copy in memory reaches. Kernels:
variant, tiling  the tiling's numbers are named below; "then" is a further launch
regs  registers a thread (! with spills or local memory)      smem  bytes of shared memory a block
thr   threads a block        occ  theoretical occupancy       waves on an H200's 132 multiprocessors
FMA   share of multiply-adds in the main loop (beyond 100 %   loop  its instructions (* no loop: the whole kernel)
      tensor cores: multiply-adds a thread and cycle)
LDS128, LDG  its 128-bit loads of shared memory, its loads of global memory
≥ µs  no kernel of this machine code can be faster on an H200: other instructions of the main loop than multiply-adds,
      idle multiprocessors and schedulers, and warps that are not full count (bench/roofline.py)
From the simulator, on a small layer of the kind:
bank  worst degree of bank conflicts in the main loop         sect  sectors a request of global loads
used  part of these sectors that is needed
"""


def _legend(document: dict[str, Any]) -> str:
    made_by = ", ".join(f"{package} {version}" for package, version in document["compilers"].items())
    return "\n".join([_LEGEND, *tiling_lines(document["results"]), "", f"Compiled by {made_by}"])


# -- the command -------------------------------------------------------------------------------------------------------


def _architectures(text: str) -> list[str]:
    found = command.names(text)
    for name in found:
        try:
            sass.compute_capability(name)
            roofline.architecture(name)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    return found


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("static", "What can be told of every kernel without a GPU.")
    add = parser.add_argument
    add("--op", type=command.names, default=[], metavar="NAME,...", help="operations, or patterns; default: all")
    add("--variants", type=command.names, default=[], metavar="NAME,...", help="variants, or patterns; default: all")
    add(
        "--layers",
        type=command.names,
        metavar="NAME,...",
        help="layers, or patterns as 'resnet50.*'; default: LeNet's and a few others",
    )
    add("--list", action="store_true", help="print operations with their variants and layers")
    add("--full", action="store_true", help="all tilings; default: the first one, a variant's good guess")
    add("--cc", type=_architectures, default=["sm_90a"], metavar="ARCH,...", help="architectures; default: sm_90a")
    add("--dtype", choices=("float32", "float64", "float16"), default="float32")
    add("--no-trace", action="store_true", help="do not simulate")
    add("--executed", action="store_true", help="also the instructions that are executed, counted by running the PTX")
    add("--sites", action="store_true", help="also each simulated instruction that accesses memory")
    parser.json_option()
    add("--step", action="store_true", help="instead: the kernels of a captured training step, their arguments, bytes")
    add("--path", action="store_true", help="of the step: its longest path, before and now, with estimated times")
    add("--model", choices=("lenet",), help="of the step; default: lenet")
    parser.count_option("--batch", "N", "images of the step; default: 64")
    add("--augment", action="store_true", help="of the step: its images are moved, as by gpuconv train --augment")
    add("--optimizer", choices=("sgd", "adam"), help="of the step; default: sgd, with momentum")
    arguments = parser.parse_args(argv)
    for name in ("path", "model", "batch", "augment", "optimizer"):
        if getattr(arguments, name) not in (None, False) and not arguments.step:
            parser.error(f"--{name} is of a training step: add --step")
    if arguments.path and arguments.augment:
        parser.error("--augment moves images before the step: they are not on its --path")
    return arguments


def _print_names() -> None:
    from gpuconv.kernels import VARIANTS

    for name, named in LAYERS.items():
        print(f"{name}: {', '.join(VARIANTS.get(name, {})) or 'no variant'}")
        for layer, geometry in named.items():
            print(f"  {layer:32} {geometry_text(geometry)}")


def _show_step(arguments: argparse.Namespace) -> None:
    choose_target(simulate=True)  # launches are noted, not made
    from gpuconv.backends import BackendUnavailable

    batch, optimizer = arguments.batch or 64, arguments.optimizer or "sgd"
    try:
        with progress.during("recording a step"):
            launches, others = step.record(batch, optimizer), step.around(batch, augment=arguments.augment)
    except BackendUnavailable as error:
        raise Refused(str(error)) from None
    print(step.table(launches, others, batch))
    settings = {"model": "lenet", "batch": batch, "optimizer": optimizer, "augment": arguments.augment}
    parts = {"launches": launches, "around": others}
    _write(
        command.document("step", settings, **{name: [asdict(one) for one in found] for name, found in parts.items()}),
        arguments,
        complete=True,
    )


def _show_path(arguments: argparse.Namespace) -> None:
    choose_target(simulate=True)
    from gpuconv.backends import BackendUnavailable

    batch, optimizer = arguments.batch or 64, arguments.optimizer or "sgd"
    try:
        with progress.during("recording a step"):
            steps = [(name, path.nodes(batch, optimizer, variants)) for name, variants in path.COMPOSITIONS.items()]
        counted = path.instructions([*dict.fromkeys(node.job for _, nodes in steps for node in nodes)])
    except (BackendUnavailable, RuntimeError) as error:
        raise Refused(str(error)) from None
    parts = []
    for name, nodes in steps:
        title = f"Longest path at batch {batch}, {name}"
        shown, part = path.table(title, nodes, counted, path.measured(batch))
        print(shown.plain() + "\n")
        parts.append(part)
    print(
        f"Estimates: {path.NODE} µs a node, {1000 * path.ARITHMETIC} ns an instruction of the longest thread (µs ≥),\n"
        f"{1000 * path.FROM_CACHE:g} ns where weights come from the second-level cache (µs ≤). Measured: the kernel\n"
        "in the graph of the latest run on a GPU in bench/results, where it had as many blocks and threads."
    )
    settings = {"model": "lenet", "batch": batch, "optimizer": optimizer}
    _write(command.document("path", settings, compositions=parts), arguments, complete=True)


def _write(document: dict[str, Any], arguments: argparse.Namespace, *, complete: bool) -> None:
    document["complete"] = complete
    if arguments.json is not None:
        write(document, arguments.json)
        say(f"written: {arguments.json}")


def _run(argv: Sequence[str] | None) -> int:
    arguments = _arguments(argv)
    if arguments.list:
        _print_names()
        return 0
    check_writable("--json", arguments.json)
    if arguments.step:
        (_show_path if arguments.path else _show_step)(arguments)
        return 0
    choose_target(simulate=False)
    jobs = _jobs(arguments)
    with progress.during("looking for the compilers"):
        sass.check()
    settings = {name: vars(arguments)[name] for name in ("op", "variants", "layers", "full", "dtype")}
    document = command.document("static", settings, compilers=sass.versions(), architectures=arguments.cc, results=[])
    interrupted = False
    found: dict[str, dict[Job, Any]] = {"compiled": {}, "simulated": {}, "executed": {}}
    try:
        found["compiled"].update(in_processes(compiled, jobs, simulate=False))
        if not arguments.no_trace:
            found["simulated"].update(in_processes(simulated, jobs, simulate=True))
        if arguments.executed:
            found["executed"].update(in_processes(executed, jobs, simulate=False))
    except KeyboardInterrupt:
        say("\nstopped; what was done until then follows")
        interrupted = True
    for job in jobs:
        if job in found["compiled"]:
            one = result(job, found["compiled"][job], found["simulated"].get(job))
            if (counts := found["executed"].get(job)) is not None:
                failed = isinstance(counts, Failure)
                one["executed"] = {"error": counts.message} if failed else {"launches": counts}
            document["results"].append(one)
    for table in _tables(document) if document["results"] else ():
        print(table.plain() + "\n")
    print(_legend(document))
    if arguments.sites:
        print(*_site_lines(document), sep="\n")
    _write(document, arguments, complete=not interrupted)
    wrong = _say_what_is_wrong(document["results"])
    return command.INTERRUPTED if interrupted else command.WRONG if wrong else 0


def _say_what_is_wrong(results: list[dict[str, Any]]) -> int:
    """Say on stderr what was not compiled, is wrong in the simulator, or was not simulated; count the first two."""
    errors = refused = 0
    for found in results:
        simulation = found.get("simulated") or {}
        refused += "refused" in simulation
        failures = found.get("error"), found.get("executed", {}).get("error")
        for message in (*filter(None, failures), *simulation.get("faults", ())):
            name = f"{found['operation']} {found['variant']} {tiling_text(found['tiling'])} on {found['layer']}"
            say(f"bench.static: {name}: {message}")
            errors += 1
    if refused:
        say(f"{refused} of {len(results)} not simulated; --sites says why")
    return errors


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables; 1 when a kernel is wrong or cannot be compiled. See :func:`bench.command.answer`."""
    return command.answer("bench.static", _run, argv)


if __name__ == "__main__":
    start(main)
