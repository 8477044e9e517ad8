"""Every kernel variant in every tiling on one layer, right first and then ranked: ``python -m bench.tilings``.

    python -m bench.tilings --layer lenet.conv2                        # on a GPU: times. Without one: static analysis
    python -m bench.tilings --layer resnet50.conv2-3x3 --variants tiled --direction grad_input
    python -m bench.tilings --layer lenet.conv2 --backend numba        # the CPU's variants, by real time
    python -m bench.tilings --layer lenet.conv2 --kernel my_conv.py    # with a kernel of one's own

1. **Right.** Each is run in the simulator on a small layer of the kind, threads in random order, every access traced,
   and compared with float64 (``bench/diagnosis.py``); on a GPU at its real size, too. What is wrong is not ranked.
2. **Ranked.** On a GPU by time (``bench/device.py``). Without one nothing is timed: the table comes from the machine
   code, is headed so, and ranks by a bound. On the backends for the CPU by time, beside PyTorch and ONNX Runtime.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import command, report, roofline, sass
from bench.command import Parser, Refused, check_writable, fitting, progress, say, start, write
from bench.inspection import (
    Failure,
    Job,
    access_cells,
    choose_target,
    compiled,
    figure,
    geometry_text,
    in_processes,
    jobs_of,
    launch_cells,
    machine_code,
    tiling_lines,
    tiling_text,
    work_by,
    work_figures,
    work_of,
)
from bench.layers import CONVOLUTIONS
from gpuconv import kernels, tuner
from gpuconv.geometry import Conv2dGeometry
from gpuconv.kernels.operations import OPERATIONS
from gpuconv.tuning import measure

_DIRECTIONS = {"forward": "conv2d", "grad_input": "conv2d_grad_input", "grad_weight": "conv2d_grad_weight"}
_BACKENDS = ("cuda", "numba", "numpy")
_ARCHITECTURE = "sm_90a"
#: Of a kernel without machine code.
_UNKNOWN: dict[str, Any] = {"floor_us": None, "bound": "", "multiply_add_share": 0.0, "launches": []}


# -- what is asked for ---------------------------------------------------------------------------------------


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("tilings", "Every kernel variant in every tiling on one layer: right first, then ranked.")
    add = parser.add_argument
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--layer", metavar="NAME", help="a layer of bench/layers.py, as lenet.conv2")
    which.add_argument("--geometry", metavar=tuner.SIZES, help="a layer in numbers")
    which.add_argument("--list", action="store_true", help="print the layers and variants")
    which.add_argument("--template", action="store_true", help="print a kernel file to begin with")
    add("--variants", type=command.names, default=[], metavar="NAME,...", help="variants, or patterns; default: all")
    parser.count_option("--batch", "N", "images; default: the layer's")
    add("--direction", choices=tuple(_DIRECTIONS), default="forward")
    add("--backend", choices=_BACKENDS, default="cuda", help="default: cuda")
    add("--kernel", type=Path, action="append", default=[], metavar="FILE", help="a kernel of one's own; repeatable")
    parser.count_option("--limit", "SECONDS", "for one run of such a kernel", 20)
    parser.count_option("--rounds", "N", "samples on a CPU", 10)
    add("--seconds", type=command.seconds, default=2.0, metavar="S", help="for all samples of one; default: 2")
    parser.jobs_option()
    parser.json_option()
    add("--png", type=Path, metavar="FILE|DIR", help="draw the roofline and tiles; in a folder, named after the layer")
    arguments = parser.parse_args(argv)
    if not (arguments.layer or arguments.geometry or arguments.list or arguments.template):
        raise Refused("say which layer: --layer lenet.conv2, or --list for the names")
    return arguments


@dataclasses.dataclass(frozen=True)
class _Task:
    """What is to be ranked."""

    operation: str
    layer: str
    geometry: Conv2dGeometry
    variants: tuple[str, ...]

    @property
    def work(self) -> roofline.Work:
        return work_of(self.operation, self.geometry)


def _task(arguments: argparse.Namespace) -> _Task:
    from gpuconv.kernels import VARIANTS

    operation = _DIRECTIONS[arguments.direction]
    if arguments.layer:
        layer = command.the_one("--layer", arguments.layer, CONVOLUTIONS)
        geometry = CONVOLUTIONS[layer]
    else:
        try:
            layer, geometry = arguments.geometry, tuner.geometry_of(arguments.geometry)
        except (TypeError, ValueError) as error:
            raise Refused(str(error)) from None
    if arguments.batch:
        geometry = dataclasses.replace(geometry, n=arguments.batch)
    on_gpu = arguments.backend == "cuda"
    variants = fitting("--variants", arguments.variants, VARIANTS[operation]) if on_gpu else ()
    return _Task(operation, layer, geometry, tuple(variants))


def _check_outputs(arguments: argparse.Namespace, task: _Task) -> None:
    check_writable("--json", arguments.json)
    if (path := arguments.png) is None:
        return
    try:
        from gpuconv.plots import require_matplotlib

        require_matplotlib()
    except ImportError as error:
        raise Refused(f"--png: {error}") from None
    if path.suffix != ".png":
        arguments.png = path / f"{task.operation}-{task.layer.replace(',', '-')}.png"
    check_writable("--png", arguments.png)


def _print_names() -> None:
    from gpuconv.kernels import VARIANTS

    for direction, operation in _DIRECTIONS.items():
        print(f"--direction {direction}: {', '.join(VARIANTS[operation])}")
    for layer, geometry in CONVOLUTIONS.items():
        print(f"  {layer:32} {geometry_text(geometry)}")


# -- kernels for a GPU ---------------------------------------------------------------------------------------


def _jobs(task: _Task) -> list[Job]:
    """Each variant and tiling that supports the geometry.

    Raises:
        Refused: none does; it says why.
    """
    refusals: list[str] = []
    arguments = task.operation, task.layer, task.geometry, task.variants, (_ARCHITECTURE,)
    if not (jobs := list(jobs_of(*arguments, refusals=refusals))):
        raise Refused(f"no variant supports {geometry_text(task.geometry)}: {'; '.join(refusals)}")
    return jobs


class _CudaRun:
    """Kernels for a GPU: checked, compiled, and timed where there is one."""

    def __init__(self, task: _Task, arguments: argparse.Namespace, document: dict[str, Any]) -> None:
        self.task, self.arguments, self.document = task, arguments, document
        self.results: list[dict[str, Any]] = document["results"]
        #: Lines about what is wrong.
        self.faults: list[str] = []

    def run(self) -> None:
        """Fill the document; what was done so far is in it when this is interrupted."""
        jobs = self._supported()
        for path in self.arguments.kernel:
            self._verify(path)
        from bench.diagnosis import examined

        rows: dict[Job, dict[str, Any]] = {}
        workers = self.arguments.jobs
        try:
            for job, outcome in in_processes(examined, jobs, simulate=True, workers=workers):
                faults = [outcome.message] if isinstance(outcome, Failure) else outcome.get("faults", [])
                if faults:
                    self.faults += [f"{job.name}: {fault}" for fault in faults]
                    self._add(job.variant, dataclasses.asdict(job.tiling), None, None, faults)
                else:
                    rows[job] = outcome
            for job, made in in_processes(compiled, list(rows), simulate=False, workers=workers):
                failed, found = isinstance(made, Failure), rows.pop(job)
                self.faults += [f"{job.name}: {made.message}"] if failed else []
                tiling, faults = dataclasses.asdict(job.tiling), [made.message] if failed else []
                self._add(job.variant, tiling, found, None if failed else made, faults)
        finally:  # after Ctrl-C, what was right until then, without its machine code
            for job, found in rows.items():
                self._add(job.variant, dataclasses.asdict(job.tiling), found, None, [])
        if self.document["settings"]["timed"]:
            from bench import device

            self.faults += device.rank(self.task.operation, self.task.geometry, self.document)

    def _supported(self) -> list[Job]:
        try:
            return _jobs(self.task)
        except Refused as refusal:
            if not self.arguments.kernel:
                raise
            say(str(refusal))  # a kernel of one's own may be the first that does
            return []

    def _verify(self, path: Path) -> None:
        from bench import own_kernel

        task = self.task
        verdict = own_kernel.verify(path, task.operation, task.geometry, task.layer, limit=self.arguments.limit)
        progress("")
        print(verdict.text() + "\n", flush=True)
        if not verdict.clean:
            self.faults.append(f"{path.name}: {', '.join(verdict.kinds())}; the report is above")
        findings = [
            {"tiling": tiling, "on": where, "kind": finding.kind, "text": finding.text}
            for tiling, where, finding in verdict.findings
        ]
        self.document["own_kernels"].append({"file": str(path), "right": verdict.right, "findings": findings})
        for row in verdict.rows if verdict.right else ():
            self._add(path.name, row["tiling"], row["simulated"], row.get("launches"), [], path)

    def _add(
        self,
        variant: str,
        tiling: dict[str, Any],
        simulated: dict[str, Any] | None,
        launches: list[dict[str, Any]] | None,
        faults: list[str],
        file: Path | None = None,
    ) -> None:
        work = self.task.work
        if file is None:
            work = work_by(kernels.load(self.task.operation, variant), work, self.task.geometry)
        found = {
            "variant": variant,
            "tiling": tiling,
            "file": None if file is None else str(file),
            "faults": faults,
            "simulated": simulated,
            "us": [],
            **(machine_code(self.task.operation, work, launches) if launches else _UNKNOWN),
        }
        self.results.append(found)


_LAST = float("inf")


def _rank(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The right ones, the fastest first: by time, else by bound and then by occupancy."""

    def key(found: dict[str, Any]) -> tuple[float, float, float]:
        floor = found.get("floor_us") or _LAST
        occupancy = max((launch["occupancy"]["share"] for launch in found.get("launches", ())), default=0.0)
        return found.get("median_us") or _LAST, round(floor, 4), -occupancy

    return sorted((found for found in results if not found["faults"]), key=key)


_CUDA_HEADER = ["variant, tiling", "µs", "spread", "GFLOP/s", "GB/s", "% roof", "% cuDNN", "≥ µs", "bound"]
_CUDA_HEADER += ["regs", "smem", "occ", "FMA", "bank", "used"]


def _cuda_table(document: dict[str, Any]) -> report.Table:
    settings, work = document["settings"], document["work"]
    rows = []
    for place, found in enumerate(_rank(document["results"]), 1):
        launches = found["launches"]
        main = max(launches, key=lambda launch: launch["main_loop"]["multiply_add_share"], default=None)
        double = any(launch["float64_instructions"] for launch in launches)
        times = ["", "", "", "", "", ""]
        if found["us"]:
            median, peer = found["median_us"], document.get("peer_median_us")
            times = [
                figure(median),
                f"{(found['high_us'] - found['low_us']) / median:.0%}",
                f"{work['flop'] / median / 1e3:,.0f}",
                f"{work['traffic_bytes'] / median / 1e3:,.0f}",
                f"{work['h200_floor_us'] / median:.0%}" if "H200" in settings["device"] else "",
                f"{peer / median:.0%}" if peer else "",
            ]
        rows.append(
            [
                f"{place:3}. {found['variant']} {tiling_text(found['tiling'])}",
                *times,
                figure(found["floor_us"]) if found["floor_us"] else "",
                found["bound"],
                *launch_cells(main),
                "f64!" if double else f"{found['multiply_add_share']:.0%}" if main else "",
                *[cell for number, cell in enumerate(access_cells(found["simulated"])) if number != 1],
            ]
        )
    what = f"{settings['operation']} on {settings['layer']}, {settings['geometry']}"
    if settings["timed"]:
        title = f"{what}: timed on {settings['device']}"
    else:
        title = f"{what}\nSTATIC ANALYSIS, nothing was timed: ranked by the bound ≥ µs of an H200\n{settings['device']}"
    return report.Table(title, _CUDA_HEADER, rows, left=True)


_CUDA_LEGEND = """\
µs, spread  median, and quartiles' distance by it     % roof  of the H200's roofline     % cuDNN  of cuDNN's speed
≥ µs   no kernel of this machine code can be faster on an H200 (132 multiprocessors, 67 TFLOP/s, 4.8 TB/s)
bound  why: FLOP; issue (instructions beside the multiply-adds); blocks (they do not share out evenly); warps (of
       which the last one is not full); schedulers (some have no warp); bytes
regs   registers a thread (! spilled)     smem  bytes of shared memory a block     occ   theoretical occupancy
FMA    share of multiply-adds in the main loop (f64! it computes in float64); of tensor cores those a thread and cycle
bank   passes an access to shared memory takes, 1 is free of conflicts     used  part of the loaded sectors needed"""


# -- the CPU's backends --------------------------------------------------------------------------------------


def _host_run(task: _Task, arguments: argparse.Namespace, document: dict[str, Any]) -> list[str]:
    """Check and time the variants of a backend for the CPU; returns lines about what is wrong."""
    import numpy as np

    from bench import contenders, reference
    from gpuconv import BackendUnavailable

    threads = document["settings"]["threads"]
    generator = np.random.default_rng(0)
    operands = OPERATIONS[task.operation].operands(task.geometry, "float32")[:-1]
    inputs = [generator.standard_normal(operand.shape, np.float32) for operand in operands]
    try:
        steps = contenders.convolutions(arguments.backend, task.operation, task.geometry, inputs, threads)
    except BackendUnavailable as error:
        raise Refused(f"--backend: {error}") from None
    # "numba dense" is also "dense": the backend is the only one.
    ours = {label.partition(" ")[2]: label for label in steps if label not in contenders.PEERS}
    wanted = {ours[name] for name in fitting("--variants", arguments.variants, ours)}
    steps = {label: step for label, step in steps.items() if label in contenders.PEERS or label in wanted}
    with progress.during("the reference in float64"):
        expected = reference.expected(task.operation, inputs, task.geometry)
    faults: list[str] = []
    entries: dict[str, dict[str, Any]] = {}
    for label, step in steps.items():
        progress(f"checking {label}")
        verdict = measure.compare(np.asarray(step(), np.float64), expected, "float32")
        entries[label] = {
            "variant": label,
            "tiling": {},
            "peer": label in contenders.PEERS,
            "faults": [verdict.fault] if verdict.fault else [],
            "error": verdict.worst,
            "us": [],
        }
        document["results"].append(entries[label])
        faults += [f"{label}: {verdict.fault}"] if verdict.fault else []
    del expected
    right = {label: [step] for label, step in steps.items() if not entries[label]["faults"]}
    command.thread_pools(threads)
    progress("warming up")
    clock = measure.HostClock(arguments.seconds / arguments.rounds)
    for number, one in enumerate(measure.rounds_us(right, clock, arguments.rounds), 1):
        for label, us in one.items():
            entries[label]["us"].append(us)
        progress(f"round {number} of {arguments.rounds}")
    return faults


def _host_table(document: dict[str, Any]) -> report.Table:
    settings, work = document["settings"], document["work"]
    ranked = [found for found in _rank(document["results"]) if found["us"]]
    peers = [found for found in ranked if found["peer"]]
    header = ["variant", "ms", "spread", "GFLOP/s", "GB/s", *(f"× {peer['variant']}" for peer in peers), "error"]
    rows = []
    for place, found in enumerate(ranked, 1):
        median = found["median_us"]
        rows.append(
            [
                f"{place:3}. {found['variant']}",
                f"{median / 1e3:.3f}",
                f"{(found['high_us'] - found['low_us']) / median:.0%}",
                f"{work['flop'] / median / 1e3:,.1f}",
                f"{work['traffic_bytes'] / median / 1e3:,.1f}",
                *(f"{measure.speedup(found['us'], peer['us']).median:.2f}" for peer in peers),
                f"{found['error']:.0e}",
            ]
        )
    title = f"{settings['operation']} on {settings['layer']}, {settings['geometry']}: timed on {settings['device']}"
    title += f", {settings['threads']} threads"
    if (busy := document["machine"]["others_busy"] or 0) > command.MUCH:
        title += f"\nother processes took {busy:.0%} of the processors: not to be relied upon"
    return report.Table(title, header, rows, left=True)


_HOST_LEGEND = """\
ms, spread  median, and quartiles' distance by it     × PEER  how many times faster than it, median of the rounds
error       the largest difference from float64, by the root mean square of the result"""


# -- the command ---------------------------------------------------------------------------------------------


def _document(task: _Task, arguments: argparse.Namespace, missing: str | None) -> dict[str, Any]:
    settings = {
        "operation": task.operation,
        "layer": task.layer,
        "geometry": geometry_text(task.geometry),
        "backend": arguments.backend,
        "timed": missing is None,
        "device": "",
        "threads": command.available_cores(),
    }
    parts = {"compilers": sass.versions(), "work": work_figures(task.work), "own_kernels": [], "results": []}
    document = command.document("tilings", settings, **parts)
    cpu = document["machine"]["cpu"]
    settings["device"] = cpu if arguments.backend != "cuda" else f"no GPU: {missing}" if missing else "GPU"
    return document


def _summarize(document: dict[str, Any]) -> None:
    """Median and quartiles of what was timed."""
    for found in document["results"]:
        if found["us"]:
            spread = measure.spread(found["us"])
            found.update(low_us=spread.low, median_us=spread.median, high_us=spread.high)
    document["results"] = _rank(document["results"]) + [found for found in document["results"] if found["faults"]]


def _run(argv: Sequence[str] | None) -> int:
    arguments = _arguments(argv)
    from bench import device, own_kernel

    if arguments.template:
        print(own_kernel.TEMPLATE.read_text(encoding="utf-8"), end="")
        return 0
    if arguments.list:
        _print_names()
        return 0
    on_host = arguments.backend != "cuda"
    if on_host and arguments.kernel:
        raise Refused(
            f"--kernel: a kernel for a GPU cannot run on the {arguments.backend} backend; leave --backend out"
        )
    missing = None if on_host else device.missing()
    if missing:
        choose_target(simulate=False)  # compile all the same
    task = _task(arguments)
    _check_outputs(arguments, task)
    document = _document(task, arguments, missing)
    for path in arguments.kernel:
        own_kernel.check(path, task.operation, task.geometry, task.layer, limit=arguments.limit)
    if not on_host:
        with progress.during("looking for the compilers"):
            sass.check()
    run = _CudaRun(task, arguments, document)
    others = command.OtherProcesses()
    try:
        if on_host:
            run.faults = _host_run(task, arguments, document)
        else:
            run.run()
        document["complete"] = True
    except KeyboardInterrupt:
        say("\nstopped; what was done until then follows")
    progress("")
    document["machine"]["others_busy"] = others.share()
    _summarize(document)
    _write(document, arguments)
    _show(document)
    for fault in run.faults:
        say(f"WRONG: {fault}")
    return command.INTERRUPTED if not document["complete"] else command.WRONG if run.faults else 0


def _show(document: dict[str, Any]) -> None:
    on_host = document["settings"]["backend"] != "cuda"
    table = _host_table(document) if on_host else _cuda_table(document)
    if not table.rows:
        print("nothing to rank")
        return
    print(f"{table.plain()}\n\n{_HOST_LEGEND if on_host else _CUDA_LEGEND}")
    if not on_host:
        print("", *tiling_lines(document["results"]), sep="\n")


def _write(document: dict[str, Any], arguments: argparse.Namespace) -> None:
    if arguments.json is not None:
        write(document, arguments.json)
        say(f"written: {arguments.json}")
    if arguments.png is not None:
        from bench import pictures

        try:
            pictures.save(document, arguments.png)
        except ValueError as error:
            say(f"--png: {error}")
        else:
            say(f"written: {arguments.png}")


def main(argv: Sequence[str] | None = None) -> int:
    """Rank; 1 when a kernel is wrong or over its budget. See :func:`bench.command.answer`."""
    return command.answer("bench.tilings", _run, argv)


if __name__ == "__main__":
    start(main)
