"""Every kernel variant and tiling on a GPU: right first, then timed beside PyTorch: ``python -m bench.gpu --out DIR``.

1. **Right.** Every variant × tiling on every layer of ``bench/layers.py`` is compared with a float64 reference; see
   ``bench/verify.py``. What is wrong is reported and not timed.
2. **Timed** by the device's own events, one call a sample. Before each sample the L2 cache is overwritten, which also
   keeps the device busy until the call is queued, so that no launch overhead of the host is in it. Inputs rotate among
   several sets. All tilings and PyTorch (cuDNN; TF32 off) take turns in rounds, each round beginning with another one;
   ratios compare samples of one round.

``DIR/gpu.json`` is written after each layer, so that a run that is stopped keeps what it has; ``bench/README.md`` says
what it holds.
"""

from __future__ import annotations

import argparse
import datetime
import fnmatch
import importlib
import importlib.util
import itertools
import math
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench import compiling, machine, report, timing
from bench.console import Parser, Refused, check_writable, say, start, whole_number, write

PEER = "torch"
_INPUT_SETS = 3
_QUICK_TILINGS = 3
_QUICK_LAYERS = (
    *("lenet5.*", "resnet50.conv2-3x3", "resnet50.conv4-3x3", "resnet50.conv3-reduce", "vgg16.conv3_2"),
    *("mobilenet2.depthwise-14", "resnet50.pool1", "resnet50.pool2", "resnet50.relu2", "resnet50.loss"),
)

Step = Callable[[], Any]


# -- what is asked for -----------------------------------------------------------------------------------------------


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m bench.gpu",
        description="Every kernel variant and tiling on a GPU: right, then timed.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="the folder for gpu.json; made if it is not there")
    add("--quick", action="store_true", help=f"fewer layers, and the first {_QUICK_TILINGS} tilings of each variant")
    add(
        "--only",
        action="append",
        metavar="PATTERN",
        help="operations and layers, as in 'conv2d/resnet50.*' or '*/lenet5.*'; repeatable; default: all",
    )
    cores = machine.available_cores()
    add("--jobs", type=whole_number, default=cores, metavar="N", help="processes that compile; default: a core each")
    add("--rounds", type=whole_number, default=20, metavar="N", help="samples of each kernel; default: 20")
    return parser.parse_args(argv)


def cases(only: Sequence[str] | None, quick: bool) -> list[tuple[str, str, Any]]:
    """Operation, layer and geometry of what is to be run.

    Raises:
        Refused: a pattern that fits nothing.
    """
    from bench import layers

    found = []
    for pattern in only or ["*"]:
        fitting = [
            (operation, name, geometry)
            for operation, named in layers.LAYERS.items()
            for name, geometry in named.items()
            if fnmatch.fnmatchcase(f"{operation}/{name}", pattern)
        ]
        if not fitting:
            raise Refused(f"--only: {pattern!r} fits none of the layers, as 'conv2d/lenet5.conv1'")
        found += [case for case in fitting if case not in found]
    if quick:
        found = [case for case in found if any(fnmatch.fnmatchcase(case[1], pattern) for pattern in _QUICK_LAYERS)]
    if not found:
        raise Refused("--quick leaves none of the layers that --only asks for")
    return found


def device_place() -> Any:
    """Where to run: on the GPU, with TF32 off in PyTorch.

    Raises:
        Refused: the simulator, no GPU, no PyTorch for it; one line.
    """
    if os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0"):
        raise Refused("NUMBA_ENABLE_CUDASIM is set: kernels would run in the simulator, which has no speed; unset it")
    # Kernels and arrays share one stream here: Numba need not wait for it before each launch, as some versions do.
    os.environ.setdefault("NUMBA_CUDA_ARRAY_INTERFACE_SYNC", "0")
    import gpuconv

    if (why := gpuconv.backends.available()["cuda"]) is not None:
        raise Refused(f"the cuda backend is not available: {why}")
    if importlib.util.find_spec("torch") is None:
        raise Refused("the reference and the peer need PyTorch: pip install torch")
    import torch

    if not torch.cuda.is_available():
        raise Refused(f"PyTorch {torch.__version__} sees no GPU: install a build for CUDA")
    from bench.verify import Place

    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True  # the fastest of cuDNN's algorithms, found while warming up
    return Place(torch, importlib.import_module("cupy"), "cuda")


# -- where it runs ---------------------------------------------------------------------------------------------------


def gpu_facts(place: Any) -> dict[str, Any]:
    """Device, driver, libraries and precision, as they go into the results."""
    torch, runtime = place.torch, place.xp.cuda.runtime
    properties = torch.cuda.get_device_properties(0)
    driver = runtime.driverGetVersion()
    return {
        "name": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        "driver": _nvidia_smi("driver_version"),
        "driver_cuda": f"{driver // 1000}.{driver % 1000 // 10}",
        "clocks_mhz": _nvidia_smi("clocks.sm,clocks.mem"),
        "cudnn": torch.backends.cudnn.version(),
        "torch_cuda": torch.version.cuda,
        "tf32": {"matmul": torch.backends.cuda.matmul.allow_tf32, "cudnn": torch.backends.cudnn.allow_tf32},
        "versions": machine.versions("cupy-cuda13x", "cupy-cuda12x", "numba-cuda", "torch"),
    }


def _nvidia_smi(field: str) -> str | None:
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader", "--id=0"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


class EventClock:
    """Times calls by the device's events, with a cold L2 cache and without the host's share."""

    def __init__(self, place: Any):
        self._place = place
        self._events = [place.torch.cuda.Event(enable_timing=True) for _ in range(2)]
        l2 = place.torch.cuda.get_device_properties(0).L2_cache_size
        self._cache_filler = place.torch.empty(4 * l2, dtype=place.torch.uint8, device="cuda")
        self._cache_filler.zero_()
        self._flush_us = min(self._between(self._cache_filler.zero_) for _ in range(5))

    def _between(self, step: Step) -> float:
        start, end = self._events
        start.record()
        step()
        end.record()
        end.synchronize()
        return 1000 * float(start.elapsed_time(end))

    def host_us(self, step: Step) -> float:
        """Microseconds that the host needs to queue a call: the median of some."""
        times = []
        for _ in range(5):
            self._place.synchronize()
            start = time.perf_counter()
            step()
            times.append(1e6 * (time.perf_counter() - start))
        self._place.synchronize()
        return timing.spread(times).median

    def sample_us(self, step: Step, host_us: float) -> float:
        """Microseconds that the device needs for a call."""
        for _ in range(1 + math.ceil(1.5 * host_us / self._flush_us)):
            self._cache_filler.zero_()
        return self._between(step)


# -- measuring -------------------------------------------------------------------------------------------------------


def measure_us(steps: Mapping[str, Sequence[Step]], clock: Any, rounds: int) -> dict[str, list[float]]:
    """Microseconds a call of each contender, one figure for each round.

    Args:
        steps: by label, the call on each set of inputs; they take turns.
        clock: see :class:`EventClock`.
        rounds: samples of each contender.
    """
    labels = list(steps)
    for label in labels:  # warm: compiled, algorithms chosen, memory allocated
        for step in steps[label]:
            step()
            step()
    host = {label: clock.host_us(steps[label][0]) for label in labels}
    times: dict[str, list[float]] = {label: [] for label in labels}
    for number in range(rounds):
        first = number % len(labels)
        for label in labels[first:] + labels[:first]:
            calls = steps[label]
            times[label].append(clock.sample_us(calls[number % len(calls)], host[label]))
    return times


def _kernels(operation: str, geometry: Any, quick: bool) -> Iterator[tuple[str, Any, list[Any]]]:
    """Variants that support a geometry: name, module, tilings."""
    from gpuconv import kernels

    for variant in kernels.VARIANTS[operation]:
        module = kernels.load(operation, variant)
        if module.supports(geometry):
            yield variant, module, list(module.tilings(geometry))[: _QUICK_TILINGS if quick else None]


def compile_work(chosen: Sequence[tuple[str, str, Any]], quick: bool) -> list[tuple[Any, ...]]:
    """Arguments of ``compiling.compile_kernels`` for what :func:`run` checks and times."""
    from gpuconv import kernels

    return [
        (operation, variant, geometry, "float32", _QUICK_TILINGS if quick else None)
        for operation, _, geometry in chosen
        for variant in kernels.VARIANTS[operation]
    ]


def _precompile(chosen: Sequence[tuple[str, str, Any]], quick: bool, jobs: int) -> None:
    """Compile in several processes, each on a core; this one then loads what they kept."""
    compiling.compile_all(compiling.compile_kernels, compile_work(chosen, quick), jobs)


def check(place: Any, operation: str, geometry: Any, quick: bool) -> list[dict[str, Any]]:
    """An entry for each variant and tiling: how far from the reference, or what is wrong."""
    from bench import verify
    from gpuconv import tuning

    choice = tuning.choose(operation, geometry, "float32")
    entries = []
    for variant, _, tilings in _kernels(operation, geometry, quick):
        for tiling, verdict in verify.verify(place, operation, variant, geometry, tilings).items():
            entries.append(
                {
                    "variant": variant,
                    "tiling": repr(tiling),
                    "chosen": (variant, tiling) == (choice.variant, choice.tiling),
                    **{name: _json_number(value) for name, value in asdict(verdict).items()},
                    "us": [],
                }
            )
    return entries


def _json_number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def time_layer(
    place: Any, clock: Any, operation: str, geometry: Any, entries: Sequence[dict[str, Any]], quick: bool, rounds: int
) -> dict[str, list[float]]:
    """Times of the peer and of all entries that are right, by label: the peer's name, or the number of the entry."""
    from bench import verify

    sets = [verify.operands(place, operation, geometry, "float32", seed) for seed in range(_INPUT_SETS)]
    steps = {PEER: [verify.peer(place, operation, geometry, tensors) for tensors in sets]}
    numbers = itertools.count()
    for _, module, tilings in _kernels(operation, geometry, quick):
        for tiling in tilings:
            number = next(numbers)
            if entries[number]["fault"] is None:
                steps[str(number)] = [
                    verify.launch(place, module, operation, geometry, tiling, tensors) for tensors in sets
                ]
    return measure_us(steps, clock, rounds)


# -- the run ---------------------------------------------------------------------------------------------------------


def run(
    arguments: argparse.Namespace, place: Any, clock: Any, document: dict[str, Any], out: Path
) -> tuple[int, list[str]]:
    """Check all, then time all; the document is filled and written as it goes.

    Returns:
        How many kernels are wrong, and lines that say which.
    """
    from gpuconv.kernels.operations import OPERATIONS

    chosen = cases(arguments.only, arguments.quick)
    _precompile(chosen, arguments.quick, arguments.jobs)
    wrong = []
    for operation, name, geometry in chosen:
        entries = check(place, operation, geometry, arguments.quick)
        described = OPERATIONS[operation]
        document["results"].append(
            {
                "operation": operation,
                "layer": name,
                "geometry": repr(geometry),
                "flop": described.flop(geometry),
                "bytes": described.traffic(geometry, "float32"),
                "kernels": entries,
                "peer_us": [],
            }
        )
        faults = [f"{operation} {name} {e['variant']} {e['tiling']}: {e['fault']}" for e in entries if e["fault"]]
        wrong += faults
        say(f"{operation} {name}: {len(entries) - len(faults)} of {len(entries)} kernels right")
        write(document, out)
    for result, (operation, name, geometry) in zip(document["results"], chosen, strict=True):
        times = time_layer(place, clock, operation, geometry, result["kernels"], arguments.quick, arguments.rounds)
        result["peer_us"] = times.pop(PEER)
        for number, microseconds in times.items():
            result["kernels"][int(number)]["us"] = microseconds
        say(f"{operation} {name}: timed")
        write(document, out)
    return len(wrong), wrong


def _run(argv: list[str] | None) -> int:
    arguments = _arguments(argv)
    from bench.verify import KernelFailed

    cases(arguments.only, arguments.quick)
    out = arguments.out / "gpu.json"
    check_writable(out)
    place = device_place()
    document: dict[str, Any] = {
        "schema": report.SCHEMA,
        "benchmark": "gpu",
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "complete": False,
        "machine": {**machine.describe(), "gpu": gpu_facts(place)},
        "settings": {"quick": arguments.quick, "only": arguments.only, "rounds": arguments.rounds},
        "results": [],
    }
    tf32 = document["machine"]["gpu"]["tf32"]
    say(f"{document['machine']['gpu']['name']}; TF32 of torch: matmul {tf32['matmul']}, cuDNN {tf32['cudnn']}")
    wrong = 0
    lines: list[str] = []
    try:
        wrong, lines = run(arguments, place, EventClock(place), document, out)
        document["complete"] = True
    except KeyboardInterrupt:
        say("\nstopped; what was measured until then is kept")
    except KernelFailed as error:  # the device may be unusable until the process ends
        wrong, lines = 1, [str(error)]
    finally:
        write(document, out)
    for table in report.gpu_tables(document):
        print("\n" + table.plain())
    say(f"\nwritten: {out}")
    for line in lines:
        say(f"WRONG: {line}")
    return 1 if wrong else 0 if document["complete"] else 130


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; 0, 1 if a kernel is wrong, 2 when it was refused, 130 when it was interrupted."""
    try:
        return _run(argv)
    except Refused as error:
        say(f"bench.gpu: {error}")
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    start(main)
