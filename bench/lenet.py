"""LeNet-5 training steps and inference, images/s: ``python -m bench.lenet [--peer torch] [--peer onnxruntime] ...``.

How it is timed: ``gpuconv/tuning/measure.py``. What is timed: ``bench/contenders.py``. What the JSON holds:
``bench/README.md``.
``--backend cuda`` times training steps on a GPU, beside PyTorch's there: ``bench/lenet_gpu.py``.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from bench import command
from bench.command import Parser, Refused, check_writable, progress, say, start, write
from bench.contenders import OURS, PEERS, Contender, Gpuconv, digit_batches, initial_weights, peak_memory

# Nothing here may import NumPy, and so gpuconv, before the threads have been bounded: other modules are imported late.
if TYPE_CHECKING:
    from bench.contenders import Batches, Weights
    from gpuconv.tuning.measure import Step

_BATCHES, _GPU_BATCHES = (1, 64, 256, 1024), (64, 128, 512, 4096)
_TASKS = ("training", "inference")
_CHECKED_STEPS = 3


def _joined(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("lenet", "LeNet-5 training steps and inference, images/s.")
    add = parser.add_argument
    add("--backend", default="auto", metavar="NAME", help="gpuconv's backend; default: what gpuconv takes by itself")
    add("--peer", action="append", default=[], metavar="NAME", help=f"also: {', '.join(PEERS)}; repeatable")
    add(
        "--batches",
        type=command.whole_numbers,
        metavar="N,N,...",
        help=f"default: {_joined(_BATCHES)}; on a GPU {_joined(_GPU_BATCHES)}",
    )
    add(
        "--seconds",
        type=command.seconds,
        default=3.0,
        metavar="S",
        help="for each library, task and batch size; default: 3",
    )
    parser.count_option("--rounds", "N", "samples that these are divided into", 15)
    cores = command.available_cores()
    add("--threads", type=command.whole_number, default=cores, metavar="N", help="default: all cores")
    add(
        "--compile",
        nargs="?",
        const="reduce-overhead",
        metavar="MODE",
        help="on a GPU: also PyTorch's step by torch.compile in this mode; default: reduce-overhead",
    )
    parser.jobs_option()
    add("--memory", action="store_true", help="also the peak memory of training, each library in its own process")
    parser.json_option()
    arguments = parser.parse_args(argv)
    arguments.peer = command.fitting("--peer", arguments.peer, PEERS) if arguments.peer else []
    return arguments


def _check_before(arguments: argparse.Namespace) -> None:
    """Find out before minutes of measuring what would make them useless."""
    for name in arguments.peer:
        if missing := PEERS[name].missing():
            raise Refused(f"peer {name} needs {', '.join(missing)}, not installed: {PEERS[name].install}")
    check_writable("--json", arguments.json)
    if arguments.compile is not None:
        raise Refused("--compile is of PyTorch on a GPU: add --backend cuda")
    if arguments.memory and sys.platform == "win32":
        raise Refused("--memory reads the peak from the operating system, which Windows does not offer this way")


def _measure_memory(document: dict[str, Any], arguments: argparse.Namespace) -> None:
    contenders: list[type[Contender]] = [Gpuconv, *(PEERS[name] for name in arguments.peer)]
    labels = [label for contender in contenders for label in contender.training_labels]
    for batch in arguments.batches or _BATCHES:
        say(f"memory, batch {batch:,}")
        processes = {}
        for label in labels:
            try:
                with progress.during(f"memory, batch {batch:,}: {label}"):
                    processes[label] = peak_memory(
                        label, batch=batch, threads=arguments.threads, backend=arguments.backend
                    )
            except subprocess.CalledProcessError:
                raise Refused(f"--memory: {label} failed at batch {batch}; its message stands above") from None
        document["memory"].append({"batch": batch, "processes": processes})


def _measure_speed(document: dict[str, Any], arguments: argparse.Namespace) -> None:
    kinds: dict[str, type[Contender]] = {OURS: Gpuconv} | {name: PEERS[name] for name in arguments.peer}
    contenders = {name: kind(arguments.threads) for name, kind in kinds.items()}
    weights = initial_weights()
    for task in _TASKS:
        for batch in arguments.batches or _BATCHES:
            document["machine"]["thread_pools"] = command.thread_pools(arguments.threads)

            def tell(text: str, task: str = task, batch: int = batch) -> None:
                progress(f"{task}, batch {batch:,}: {text}")

            result = _compare(contenders, task, weights, digit_batches(batch), arguments, tell)
            document["results"].append({"task": task, "batch": batch, **result})
            ratios = (f", {ratio['median']:.2f} × {peer}" for peer, ratio in result["speedup"].items())
            say(
                f"{task}, batch {batch:,}: {result['images_per_second'][OURS]['median']:,.0f} images/s{''.join(ratios)}"
            )


def _compare(
    contenders: dict[str, Contender],
    task: str,
    weights: Weights,
    batches: Batches,
    arguments: argparse.Namespace,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Time one task at one batch size, after all contenders have computed the same."""
    import numpy as np

    from gpuconv.tuning.measure import measure, speedup, spread

    steps: dict[str, Step] = {}
    labels_of = {}
    for name, contender in contenders.items():
        own = getattr(contender, task)(weights, batches)
        labels_of[name] = list(own)
        steps |= own
    tell("do all compute the same?")
    _check_equal(steps, task)
    times = measure(steps, seconds=arguments.seconds, rounds=arguments.rounds, wait=np.asarray, tell=tell)

    batch = len(batches[0][0])
    result: dict[str, Any] = {"images_per_second": {}, "speedup": {}, "seconds": times}
    for label, seconds in times.items():
        rates = spread([batch / value for value in seconds])
        result["images_per_second"][label] = vars(rates)
    for peer, labels in labels_of.items():
        if peer == OURS or not labels:
            continue
        best = min(labels, key=lambda label: spread(times[label]).median)
        result["speedup"][peer] = {"against": best, **vars(speedup(times[OURS], times[best]))}
    return result


def _check_equal(steps: dict[str, Step], task: str) -> None:
    """Refuse to time contenders that do not compute the same: the losses of some steps, or the logits of a batch."""
    import numpy as np

    expected = None
    for label, step in steps.items():
        got = np.stack([np.asarray(step()) for _ in range(_CHECKED_STEPS)])
        if got.dtype != np.float32:
            raise Refused(f"{task}: {label} computes in {got.dtype} instead of float32")
        expected = got if expected is None else expected
        try:
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
        except AssertionError:
            difference = np.max(np.abs(got - expected))
            raise Refused(f"{task}: {label} differs from {OURS} by {difference:.2g}; it is not timed") from None


def _show(document: dict[str, Any]) -> None:
    from bench import report

    heading, tables = report.lenet_heading(document), report.lenet_tables(document)
    # Rich fits tables into the terminal; in a file or a pipe it would fit them into 80 columns.
    if not sys.stdout.isatty() or importlib.util.find_spec("rich") is None:
        print("\n" + heading, *(table.plain() for table in tables), sep="\n\n", flush=True)
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print("\n" + heading, highlight=False)
    for table in tables:
        console.print("\n" + table.title, style="bold", highlight=False)
        drawn = Table(box=box.SIMPLE_HEAD)
        for name in table.header:
            drawn.add_column(name, justify="right", style="bold" if name == OURS else None)
        for row in table.rows:
            drawn.add_row(*row)
        if console.measure(drawn, options=console.options.update(max_width=10_000)).maximum <= console.width:
            console.print(drawn)
        else:
            # Columns that are too narrow would cut figures.
            console.print(table.listed(), highlight=False)


def _run_on_gpu(arguments: argparse.Namespace) -> int:
    if arguments.peer:
        raise Refused("the peers run on the CPU; on a GPU PyTorch is always beside: leave --peer out")
    if arguments.memory:
        raise Refused("--memory is of processes on the CPU: choose --backend numba or numpy")
    check_writable("--json", arguments.json)
    if arguments.compile is not None:
        # Its pool of compilers would outlive a process that is killed.
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    import gpuconv
    from bench import compiling, device, lenet_gpu, report

    place = device.device_place()
    backend = gpuconv.backends.get("cuda")
    settings = {
        "batches": list(arguments.batches or _GPU_BATCHES),
        "seconds": arguments.seconds,
        "rounds": arguments.rounds,
        "compile": arguments.compile,
    }
    document = command.document("lenet-gpu", settings, results=[])
    document["machine"]["gpu"] = device.gpu_facts(place)

    def keep() -> None:
        if arguments.json is not None:
            write(document, arguments.json)

    say(report.gpu_heading(document))
    right = False
    try:
        with gpuconv.use_backend(backend):
            work = compiling.step_work(document["settings"]["batches"])
            compiling.compile_all(compiling.compile_recorded, work, arguments.jobs)
            right = lenet_gpu.run(document, place, device.EventClock(place), backend.new_graph, keep)
        document["complete"] = True
    except KeyboardInterrupt:
        say("\nstopped; what was measured until then is kept")
    finally:  # also if the device fails, after which nothing can be measured any more
        for table in report.lenet_gpu_tables(document):
            print("\n" + table.plain(), flush=True)
        keep()
        if arguments.json is not None:
            say(f"\nwritten: {arguments.json}")
    if not document["complete"]:
        return command.INTERRUPTED
    return 0 if right else command.WRONG


def _run(argv: Sequence[str] | None) -> int:
    arguments = _arguments(argv)
    if arguments.backend == "cuda":
        return _run_on_gpu(arguments)
    _check_before(arguments)
    command.limit_threads(arguments.threads)
    settings = {
        "backend": arguments.backend,
        "threads": arguments.threads,
        "peers": arguments.peer,
        "seconds": arguments.seconds,
        "rounds": arguments.rounds,
    }
    document = command.document("lenet", settings, results=[], memory=[])
    others = command.OtherProcesses()
    try:
        # First, while this process is small: see contenders.peak_memory.
        if arguments.memory:
            _measure_memory(document, arguments)
        import gpuconv

        try:
            backend = gpuconv.backends.get(arguments.backend).name
        except (ValueError, gpuconv.BackendUnavailable) as error:
            raise Refused(str(error)) from None
        if backend == "cuda":  # chosen by 'auto'
            return _run_on_gpu(arguments)
        document["settings"]["backend"] = backend
        with gpuconv.use_backend(backend):
            _measure_speed(document, arguments)
        document["complete"] = True
    except KeyboardInterrupt:
        say("\nstopped; what was measured until then is kept")
    document["machine"]["others_busy"] = others.share()
    if document["results"] or document["memory"]:
        _show(document)
        if arguments.json is not None:
            write(document, arguments.json)
            say(f"\nwritten: {arguments.json}")
    return 0 if document["complete"] else command.INTERRUPTED


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 when this library is wrong on a GPU. See :func:`bench.command.answer`."""
    return command.answer("bench.lenet", _run, argv)


if __name__ == "__main__":
    start(main)
