"""Every kernel variant and tiling on a GPU: right first, then timed beside PyTorch: ``python -m bench.gpu``.

1. **Right.** Every variant × tiling on every layer of ``bench/layers.py`` is compared with a float64 reference; see
   ``bench/verify.py``. What is wrong is reported and not timed.
2. **Timed** (``bench/device.py``) by the device's own events, a cold L2 cache, inputs that rotate; all tilings and
   PyTorch (cuDNN; TF32 off) take turns.

The file is written after each layer, so that a run that is stopped keeps what it has; ``bench/README.md`` says
what it holds.
"""

from __future__ import annotations

import argparse
import fnmatch
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench import command, compiling, device, report
from bench.command import Parser, Refused, check_writable, progress, say, start, write
from gpuconv.tuning import measure

_QUICK_TILINGS = 3
_QUICK_LAYERS = (
    *("lenet5.*", "resnet50.conv2-3x3", "resnet50.conv4-3x3", "resnet50.conv3-reduce", "vgg16.conv3_2"),
    *(
        "mobilenet2.depthwise-14",
        "resnet50.pool1",
        "resnet50.pool2",
        "resnet50.relu2",
        "resnet50.norm2",
        "resnet50.loss",
    ),
)

# -- what is asked for -----------------------------------------------------------------------------------------------


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("gpu", "Every kernel variant and tiling on a GPU: right, then timed.")
    add = parser.add_argument
    parser.json_option(required=True)
    add("--quick", action="store_true", help=f"fewer layers, and the first {_QUICK_TILINGS} tilings of each variant")
    add("--op", type=command.names, default=[], metavar="NAME,...", help="operations, or patterns; default: all")
    add("--layers", type=command.names, default=[], metavar="NAME,...", help="layers, or patterns; default: all")
    add("--dtype", choices=("float32", "float16", "bfloat16"), default="float32", help="default: float32")
    parser.jobs_option()
    parser.count_option("--rounds", "N", "samples of each kernel", 20)
    return parser.parse_args(argv)


def cases(operations: Sequence[str] = (), names: Sequence[str] = (), *, quick: bool) -> list[tuple[str, str, Any]]:
    """Operation, layer and geometry of what is to be run; see :func:`bench.command.fitting`.

    Raises:
        Refused: a name that fits nothing, or none is left.
    """
    from bench import layers

    chosen = command.fitting("--op", operations, layers.LAYERS)
    known = [name for operation in chosen for name in layers.LAYERS[operation]]
    fits = set(command.fitting("--layers", names, known))
    if quick:
        fits = {name for name in fits if any(fnmatch.fnmatchcase(name, pattern) for pattern in _QUICK_LAYERS)}
    if not fits:
        raise Refused("--quick leaves none of the layers that were asked for")
    return [
        (operation, name, geometry)
        for operation in chosen
        for name, geometry in layers.LAYERS[operation].items()
        if name in fits
    ]


# -- checking and timing ---------------------------------------------------------------------------------------------


def _kernels(
    operation: str, geometry: Any, quick: bool, dtype: str = "float32"
) -> Iterator[tuple[str, Any, list[Any]]]:
    """Variants that support a geometry, a type and the GPU: name, module, tilings."""
    from gpuconv import backends, kernels

    platform = backends.get("cuda").tuning_platform()
    capability = None if platform is None else platform.compute_capability
    for variant in kernels.VARIANTS[operation]:
        module = kernels.load(operation, variant)
        if module.supports(geometry, dtype, capability):
            yield variant, module, list(module.tilings(geometry))[: _QUICK_TILINGS if quick else None]


def compile_work(chosen: Sequence[tuple[str, str, Any]], quick: bool, dtype: str = "float32") -> list[tuple[Any, ...]]:
    """Arguments of ``compiling.compile_kernels`` for what :func:`run` checks and times."""
    from gpuconv import kernels

    return [
        (operation, variant, geometry, dtype, _QUICK_TILINGS if quick else None)
        for operation, _, geometry in chosen
        for variant in kernels.VARIANTS[operation]
    ]


def _precompile(chosen: Sequence[tuple[str, str, Any]], quick: bool, dtype: str, jobs: int) -> None:
    """Compile in several processes, each on a core; this one then loads what they kept."""
    compiling.compile_all(compiling.compile_kernels, compile_work(chosen, quick, dtype), jobs)


def check(place: Any, operation: str, geometry: Any, quick: bool, dtype: str = "float32") -> list[dict[str, Any]]:
    """An entry for each variant and tiling: how far from the reference, or what is wrong."""
    from bench import verify
    from gpuconv import tuning

    choice = tuning.choose(operation, geometry, dtype)
    entries = []
    for variant, _, tilings in _kernels(operation, geometry, quick, dtype):
        progress(f"checking {operation} {variant}, {len(tilings)} tilings")
        for tiling, verdict in verify.verify(place, operation, variant, geometry, tilings, dtype=dtype).items():
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
    place: Any,
    clock: Any,
    operation: str,
    geometry: Any,
    entries: Sequence[dict[str, Any]],
    quick: bool,
    rounds: int,
    dtype: str = "float32",
) -> dict[str, list[float]]:
    """Times of the peer and of all entries that are right, by label: the peer's name, or the number of the entry."""
    numbers = itertools.count()
    kernels = [
        (str(number), module, tiling)
        for _, module, tilings in _kernels(operation, geometry, quick, dtype)
        for tiling in tilings
        if entries[number := next(numbers)]["fault"] is None
    ]
    progress(f"timing {operation}, {len(kernels)} kernels")
    return measure.measure_us(device.contenders(place, operation, geometry, kernels, dtype), clock, rounds)


# -- the run ---------------------------------------------------------------------------------------------------------


def run(
    arguments: argparse.Namespace, place: Any, clock: measure.Clock, document: dict[str, Any], out: Path
) -> list[str]:
    """Check all, then time all; the document is filled and written as it goes.

    Returns:
        Lines that say which kernels are wrong.
    """
    from gpuconv.kernels.operations import OPERATIONS

    dtype, quick = arguments.dtype, arguments.quick
    # Few operations have kernels for half types.
    every = cases(arguments.op, arguments.layers, quick=quick)
    chosen = [case for case in every if any(_kernels(case[0], case[2], quick, dtype))]
    _precompile(chosen, quick, dtype, arguments.jobs)
    wrong = []
    for operation, name, geometry in chosen:
        entries = check(place, operation, geometry, quick, dtype)
        described = OPERATIONS[operation]
        document["results"].append(
            {
                "operation": operation,
                "layer": name,
                "geometry": repr(geometry),
                "flop": described.flop(geometry),
                "bytes": described.traffic(geometry, dtype),
                "kernels": entries,
                "peer_us": [],
            }
        )
        faults = [f"{operation} {name} {e['variant']} {e['tiling']}: {e['fault']}" for e in entries if e["fault"]]
        wrong += faults
        say(f"{operation} {name}: {len(entries) - len(faults)} of {len(entries)} kernels right")
        write(document, out)
    for result, (operation, name, geometry) in zip(document["results"], chosen, strict=True):
        entries = result["kernels"]
        times = time_layer(place, clock, operation, geometry, entries, quick, arguments.rounds, dtype)
        result["peer_us"] = times.pop(device.PEER)
        for number, microseconds in times.items():
            result["kernels"][int(number)]["us"] = microseconds
        say(f"{operation} {name}: timed")
        write(document, out)
    return wrong


def _run(argv: Sequence[str] | None) -> int:
    arguments = _arguments(argv)
    from bench.verify import KernelFailed

    cases(arguments.op, arguments.layers, quick=arguments.quick)
    check_writable("--json", arguments.json)
    place = device.device_place()
    settings = {name: vars(arguments)[name] for name in ("quick", "op", "layers", "dtype", "rounds")}
    document = command.document("gpu", settings, results=[])
    document["machine"]["gpu"] = facts = device.gpu_facts(place)
    say(f"{facts['name']}; TF32 of torch: matmul {facts['tf32']['matmul']}, cuDNN {facts['tf32']['cudnn']}")
    wrong: list[str] = []
    try:
        wrong = run(arguments, place, device.EventClock(place), document, arguments.json)
        document["complete"] = True
    except KeyboardInterrupt:
        say("\nstopped; what was measured until then is kept")
    except KernelFailed as error:  # the device may be unusable until the process ends
        wrong = [str(error)]
    finally:
        write(document, arguments.json)
    for table in report.gpu_tables(document):
        print("\n" + table.plain())
    say(f"\nwritten: {arguments.json}")
    for line in wrong:
        say(f"WRONG: {line}")
    return command.WRONG if wrong else 0 if document["complete"] else command.INTERRUPTED


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 if a kernel is wrong. See :func:`bench.command.answer`."""
    return command.answer("bench.gpu", _run, argv)


if __name__ == "__main__":
    start(main)
