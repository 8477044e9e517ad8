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
import datetime
import difflib
import math
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench import machine, report, roofline, sass, timing
from bench.console import Parser, Refused, say, start, whole_number, write
from bench.inspection import Failure, Job, choose_target, compiled, geometry_text, in_processes, tiling_text
from bench.layers import CONVOLUTIONS
from gpuconv.geometry import Conv2dGeometry
from gpuconv.kernels.operations import OPERATIONS

_DIRECTIONS = {"forward": "conv2d", "grad_input": "conv2d_grad_input", "grad_weight": "conv2d_grad_weight"}
_BACKENDS = ("cuda", "numba", "numpy")
_ARCHITECTURE = "sm_90a"
_GEOMETRY = "n,c,h,w,k,r,s,stride,pad"
#: A loss by this factor, and not the arithmetic itself, is what bounds a kernel.
_MUCH_LOST = 1.5


# -- what is asked for ---------------------------------------------------------------------------------------


def layer_named(name: str) -> tuple[str, Conv2dGeometry]:
    """A layer by its name, in which the network may be shortened: ``lenet.conv2`` is ``lenet5.conv2``.

    Raises:
        Refused: there is none; the nearest name is suggested.
    """
    network, dot, layer = name.partition(".")
    fitting = [full for full in CONVOLUTIONS if full.startswith(network) and full.partition(".")[2] == layer]
    if name in CONVOLUTIONS or (dot and network and len(fitting) == 1):
        full = name if name in CONVOLUTIONS else fitting[0]
        return full, CONVOLUTIONS[full]
    near = [full for full in CONVOLUTIONS if dot and network and full.startswith(network)]
    raise Refused(f"--layer: there is no {name!r}; {_nearest(name, near or CONVOLUTIONS)}")


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"


def geometry_given(text: str) -> Conv2dGeometry:
    """The geometry in ``n,c,h,w,k,r,s,stride,pad``.

    Raises:
        Refused: these are not nine whole numbers, or no convolution.
    """
    try:
        n, c, h, w, k, r, s, stride, pad = map(int, text.split(","))
    except ValueError:
        raise Refused(f"--geometry: {text!r} is not nine whole numbers, {_GEOMETRY}") from None
    if min(n, c, h, w, k, r, s) < 1:
        raise Refused(f"--geometry: {text!r}: sizes are at least 1")
    try:
        return Conv2dGeometry.of((n, c, h, w), (k, c, r, s), stride=stride, padding=pad, op="--geometry")
    except ValueError as error:
        raise Refused(str(error)) from None


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0 and below 3600")
    return value


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m bench.tilings",
        description="Every kernel variant in every tiling on one layer: right first, then ranked.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--layer", metavar="NAME", help="a layer of bench/layers.py, as lenet.conv2")
    which.add_argument("--geometry", metavar=_GEOMETRY, help="a layer in numbers")
    which.add_argument("--list", action="store_true", help="print the layers and variants")
    which.add_argument("--template", action="store_true", help="print a kernel file to begin with")
    add("--variants", metavar="NAME,...", help="variants; default: all")
    add("--batch", type=whole_number, metavar="N", help="images; default: the layer's")
    add("--direction", choices=tuple(_DIRECTIONS), default="forward")
    add("--backend", choices=_BACKENDS, default="cuda", help="default: cuda")
    add("--kernel", type=Path, action="append", default=[], metavar="FILE", help="a kernel of one's own; repeatable")
    add("--limit", type=whole_number, default=20, metavar="SECONDS", help="for one run of such a kernel; default: 20")
    add("--rounds", type=whole_number, default=10, metavar="N", help="samples on a CPU; default: 10")
    add("--seconds", type=_seconds, default=2, metavar="N", help="for all samples of one; default: 2")
    add("--json", type=Path, metavar="FILE", help="write all figures")
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
        described = OPERATIONS[self.operation]
        return roofline.Work(described.flop(self.geometry), described.traffic(self.geometry, "float32"))


def _task(arguments: argparse.Namespace) -> _Task:
    from gpuconv.kernels import VARIANTS

    operation = _DIRECTIONS[arguments.direction]
    if arguments.layer:
        layer, geometry = layer_named(arguments.layer)
    else:
        layer, geometry = arguments.geometry, geometry_given(arguments.geometry)
    if arguments.batch:
        geometry = dataclasses.replace(geometry, n=arguments.batch)
    known = tuple(VARIANTS[operation])
    wanted = tuple(filter(None, (name.strip() for name in (arguments.variants or "").split(",")))) or known
    for name in wanted if arguments.backend == "cuda" else ():
        if name not in known:
            raise Refused(f"--variants: {operation} has no {name!r}; {_nearest(name, known)}")
    return _Task(operation, layer, geometry, wanted)


def _check_outputs(arguments: argparse.Namespace, task: _Task) -> None:
    if (path := arguments.json) is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise Refused(f"--json: {path} is a folder, or is in one that does not exist")
    if (path := arguments.png) is None:
        return
    try:
        from gpuconv.plots import require_matplotlib

        require_matplotlib()
        if path.suffix != ".png":
            path.mkdir(parents=True, exist_ok=True)
            arguments.png = path / f"{task.operation}-{task.layer.replace(',', '-')}.png"
        elif not path.absolute().parent.is_dir():
            raise Refused(f"--png: {path} is in a folder that does not exist")
    except (ImportError, OSError) as error:
        raise Refused(f"--png: {error}") from None


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
    from gpuconv.kernels import load

    jobs, refusals = [], []
    for variant in task.variants:
        module = load(task.operation, variant)
        if not (answer := module.supports(task.geometry)):
            refusals.append(f"{variant}: {answer}")
            continue
        for tiling in module.tilings(task.geometry):
            jobs.append(Job(task.operation, variant, task.layer, task.geometry, tiling, "float32", (_ARCHITECTURE,)))
    if not jobs:
        raise Refused(f"no variant supports {geometry_text(task.geometry)}: {'; '.join(refusals)}")
    return jobs


def _bounds(work: roofline.Work, launches: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The least time on an H200, and what it comes from.

    The busiest multiprocessor has ``⌈blocks / multiprocessors⌉`` blocks of the launch that does the arithmetic, and
    each instruction of the main loop takes the time of a multiply-add, of a warp that is not full too.
    """
    gpu = roofline.H200
    main = max(launches, key=lambda launch: launch["main_loop"]["multiply_add_share"], default=None)
    if main is None or not (share := main["main_loop"]["multiply_add_share"]):
        return {"floor_us": None, "bound": "", "multiply_add_share": 0.0}
    blocks = math.prod(main["grid"])
    balance = math.ceil(blocks / gpu.multiprocessors) * gpu.multiprocessors / blocks
    lanes = math.ceil(main["threads"] / roofline.WARP) * roofline.WARP / main["threads"]
    arithmetic = work.compute_seconds(gpu, share) * balance * lanes
    losses = {"blocks": balance, "warps": lanes, "issue": 1 / share}
    worst = max(losses, key=lambda loss: losses[loss])
    bound = worst if losses[worst] >= _MUCH_LOST else "FLOP"
    if work.memory_seconds(gpu) > arithmetic:
        bound = "bytes"
    return {
        "floor_us": 1e6 * max(arithmetic, work.memory_seconds(gpu)),
        "bound": bound,
        "multiply_add_share": share,
    }


def _gpu_missing() -> str | None:
    """Why there is no GPU to time kernels on; None if there is one."""
    from gpuconv import backends

    if os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0"):
        return "NUMBA_ENABLE_CUDASIM is set"
    return backends.available()["cuda"]


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
        rows: dict[Job, dict[str, Any]] = {}
        workers = min(machine.available_cores(), max(1, len(jobs)))
        from bench.diagnosis import examined

        right = []
        for job, outcome in in_processes(examined, jobs, simulate=True, workers=workers) if jobs else ():
            faults = [outcome.message] if isinstance(outcome, Failure) else outcome.get("faults", [])
            name = f"{job.variant} {tiling_text(dataclasses.asdict(job.tiling))}"
            if faults:
                self.faults += [f"{name}: {fault}" for fault in faults]
                self._add(job.variant, dataclasses.asdict(job.tiling), None, None, faults)
            else:
                right.append(job)
                rows[job] = outcome
        for job, made in in_processes(compiled, right, simulate=False, workers=workers) if right else ():
            if isinstance(made, Failure):
                self.faults.append(f"{job.name}: {made.message}")
                self._add(job.variant, dataclasses.asdict(job.tiling), rows[job], None, [made.message])
            else:
                self._add(job.variant, dataclasses.asdict(job.tiling), rows[job], made, [])
        if self.document["settings"]["timed"]:
            self._time()

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
        verdict = own_kernel.verify(
            path, task.operation, task.geometry, task.layer, limit=self.arguments.limit, tell=_progress
        )
        _progress("")
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
        found = {
            "variant": variant,
            "tiling": tiling,
            "file": None if file is None else str(file),
            "faults": faults,
            "simulated": simulated,
            "launches": launches or [],
            "us": [],
            **_bounds(self.task.work, launches or []),
        }
        self.results.append(found)

    def _time(self) -> None:
        """Verify what is right at its real size, and time it."""
        from bench import device

        self.faults += device.time_all(self.task.operation, self.task.geometry, self.document, _progress)


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
    from bench.static import access_cells, figure

    settings, work = document["settings"], document["work"]
    rows = []
    for place, found in enumerate(_rank(document["results"]), 1):
        launches = found["launches"]
        main = max(launches, key=lambda launch: launch["main_loop"]["multiply_add_share"], default=None)
        spilled = any(launch["spill_bytes"] or launch["local_bytes"] for launch in launches)
        double = any(launch["float64_instructions"] for launch in launches)
        shared = main and main["static_shared_bytes"] + main["dynamic_shared_bytes"]
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
                f"{main['registers']}{'!' * spilled}" if main else "",
                str(shared or ""),
                f"{main['occupancy']['share']:.0%}" if main else "",
                "f64!" if double else f"{found['multiply_add_share']:.0%}" if main else "",
                *[cell for number, cell in enumerate(access_cells(found["simulated"])) if number != 1],
            ]
        )
    what = f"{settings['operation']} on {settings['layer']}, {settings['geometry']}"
    if settings["timed"]:
        title = f"{what}: timed on {settings['device']}"
    else:
        title = f"{what}\nSTATIC ANALYSIS, nothing was timed: ranked by the bound ≥ µs of an H200\n{settings['device']}"
    return _aligned(title, _CUDA_HEADER, rows)


def _aligned(title: str, header: list[str], rows: list[list[str]]) -> report.Table:
    """A table whose first column begins at the same place in each row."""
    width = max((len(row[0]) for row in rows), default=0)
    return report.Table(title, header, [[row[0].ljust(width), *row[1:]] for row in rows])


_CUDA_LEGEND = """\
µs, spread  median, and quartiles' distance by it     % roof  of the H200's roofline     % cuDNN  of cuDNN's speed
≥ µs   no kernel of this machine code can be faster on an H200 (132 multiprocessors, 67 TFLOP/s, 4.8 TB/s)
bound  why: FLOP; issue (instructions beside the multiply-adds); blocks (they do not share out evenly); warps (of
       which the last one is not full); bytes
regs   registers a thread (! spilled)     smem  bytes of shared memory a block     occ   theoretical occupancy
FMA    share of multiply-adds in the main loop (f64! it computes in float64)
bank   passes an access to shared memory takes, 1 is free of conflicts     used  part of the loaded sectors needed"""


# -- the CPU's backends --------------------------------------------------------------------------------------


def _host_run(task: _Task, arguments: argparse.Namespace, document: dict[str, Any]) -> list[str]:
    """Check and time the variants of a backend for the CPU; returns lines about what is wrong."""
    import numpy as np

    from bench import diagnosis, host, reference
    from gpuconv import BackendUnavailable

    threads = document["settings"]["threads"]
    generator = np.random.default_rng(0)
    operands = OPERATIONS[task.operation].operands(task.geometry, "float32")[:-1]
    inputs = [generator.standard_normal(operand.shape, np.float32) for operand in operands]
    try:
        steps = host.steps(arguments.backend, task.operation, task.geometry, inputs, threads)
    except BackendUnavailable as error:
        raise Refused(f"--backend: {error}") from None
    if arguments.variants:
        ours = [label for label in steps if label not in host.PEERS]
        for name in task.variants:
            if not any(name in label for label in ours):
                raise Refused(f"--variants: the {arguments.backend} backend has no {name!r}; {_nearest(name, ours)}")
        steps = {
            label: step
            for label, step in steps.items()
            if label in host.PEERS or any(name in label for name in task.variants)
        }
    _progress("the reference in float64")
    wanted = reference.expected(task.operation, inputs, task.geometry)
    scale = float(np.sqrt(np.mean(wanted**2)))
    faults, entries = [], {}
    for label, step in steps.items():
        _progress(f"checking {label}")
        result = step()
        wrong = diagnosis.differs(result, wanted, "float32")
        found = {
            "variant": label,
            "tiling": {},
            "peer": label in host.PEERS,
            "faults": [f"{int(wrong.sum())} of {wrong.size} elements are wrong"] if wrong.any() else [],
            "error": float(np.abs(result - wanted).max()) / scale,
            "us": [],
        }
        faults += [f"{label}: {fault}" for fault in found["faults"]]
        document["results"].append(found)
        entries[label] = found
    del wanted
    right = {label: step for label, step in steps.items() if not entries[label]["faults"]}
    machine.thread_pools(threads)
    samples = timing.each_round(right, seconds=arguments.seconds, rounds=arguments.rounds, wait=lambda result: None)
    _progress("warming up")
    for number, one in enumerate(samples, 1):
        for label, seconds in one.items():
            entries[label]["us"].append(1e6 * seconds)
        _progress(f"round {number}/{arguments.rounds}")
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
                *(f"{timing.speedup(found['us'], peer['us']).median:.2f}" for peer in peers),
                f"{found['error']:.0e}",
            ]
        )
    title = f"{settings['operation']} on {settings['layer']}, {settings['geometry']}: timed on {settings['device']}"
    title += f", {settings['threads']} threads"
    if (busy := document["machine"]["others_busy"] or 0) > report.MUCH:
        title += f"\nother processes took {busy:.0%} of the processors: not to be relied upon"
    return _aligned(title, header, rows)


_HOST_LEGEND = """\
ms, spread  median, and quartiles' distance by it     × PEER  how many times faster than it, median of the rounds
error       the largest difference from float64, by the root mean square of the result"""


# -- the command ---------------------------------------------------------------------------------------------


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text[:110]}", end="", file=sys.stderr, flush=True)


def _document(task: _Task, arguments: argparse.Namespace, missing: str | None) -> dict[str, Any]:
    work, gpu = task.work, roofline.H200
    described = machine.describe()
    device = described["cpu"] if arguments.backend != "cuda" else f"no GPU: {missing}" if missing else "GPU"
    return {
        "schema": report.SCHEMA,
        "benchmark": "tilings",
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "complete": False,
        "machine": described,
        "settings": {
            "operation": task.operation,
            "layer": task.layer,
            "geometry": geometry_text(task.geometry),
            "backend": arguments.backend,
            "timed": missing is None,
            "device": device,
            "threads": machine.available_cores(),
        },
        "compilers": sass.versions(),
        "work": {
            "flop": work.flop,
            "traffic_bytes": work.traffic,
            "intensity": work.intensity,
            "h200_floor_us": 1e6 * work.floor_seconds(gpu),
        },
        "own_kernels": [],
        "results": [],
    }


def _summarize(document: dict[str, Any]) -> None:
    """Median and quartiles of what was timed."""
    for found in document["results"]:
        if found["us"]:
            spread = timing.spread(found["us"])
            found.update(low_us=spread.low, median_us=spread.median, high_us=spread.high)
    document["results"] = _rank(document["results"]) + [found for found in document["results"] if found["faults"]]


def _run(argv: list[str] | None) -> int:
    arguments = _arguments(argv)
    if arguments.template:
        from bench.own_kernel import TEMPLATE

        print(TEMPLATE.read_text(encoding="utf-8"), end="")
        return 0
    if arguments.list:
        _print_names()
        return 0
    on_host = arguments.backend != "cuda"
    if on_host and arguments.kernel:
        raise Refused(
            f"--kernel: a kernel for a GPU cannot run on the {arguments.backend} backend; leave --backend out"
        )
    missing = None if on_host else _gpu_missing()
    if missing:
        choose_target(simulate=False)  # compile all the same
    task = _task(arguments)
    _check_outputs(arguments, task)
    document = _document(task, arguments, missing)
    if not on_host:
        sass.check()
    run = _CudaRun(task, arguments, document)
    others = machine.OtherProcesses()
    try:
        if on_host:
            run.faults = _host_run(task, arguments, document)
        else:
            run.run()
        document["complete"] = True
    except KeyboardInterrupt:
        say("\nstopped; what was done until then follows")
    _progress("")
    document["machine"]["others_busy"] = others.share()
    _summarize(document)
    _write(document, arguments)
    _show(document)
    for fault in run.faults:
        say(f"WRONG: {fault}")
    return 130 if not document["complete"] else 1 if run.faults else 0


def _show(document: dict[str, Any]) -> None:
    on_host = document["settings"]["backend"] != "cuda"
    table = _host_table(document) if on_host else _cuda_table(document)
    if not table.rows:
        print("nothing to rank")
        return
    print(f"{table.plain()}\n\n{_HOST_LEGEND if on_host else _CUDA_LEGEND}")
    if not on_host:
        tilings = {f"{found['variant']}: {' x '.join(found['tiling'])}": None for found in document["results"]}
        print("\nTilings", *tilings, sep="\n")


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


def main(argv: list[str] | None = None) -> int:
    """Rank; 0, 1 when a kernel is wrong or over its budget, 2 when it was refused, 130 when it was interrupted."""
    try:
        return _run(argv)
    except (Refused, sass.ToolMissing) as error:
        say(f"bench.tilings: {error}")
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # `| head` has seen enough. What is left in the buffer goes nowhere, instead of failing at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    start(main)
