"""A network of ``gpuconv.models`` beside the same network in PyTorch: ``python -m bench.network --model resnet18``.

Forward (evaluation, no gradients) and a training step (cross-entropy, backward, SGD with momentum), from the same
weights on the same images, float32 without TF32. Logits and losses are compared first; what differs is not timed. How
it is timed: ``gpuconv/tuning/measure.py``. On the CPU the peak memory of a training step is measured first, of each
library in a process of its own, and PyTorch runs in both of its memory layouts; on a GPU, where
kernels are compiled first, gpuconv runs eagerly and captured, and PyTorch eagerly and as a CUDA graph.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from bench import command
from bench.command import Parser, Refused, check_writable, progress, say, start, write
from bench.contenders import OURS, SGD, peak_mb, training_step

FORWARD, TRAINING = "forward", "training"
#: By how much results may differ, relative to the largest value: training makes more of a rounding error in each step.
#: As many calls are compared, since a captured step is captured in its third.
_TOLERANCES = {FORWARD: (1e-3, 1e-3, 1e-3, 1e-3), TRAINING: (1e-3, 4e-3, 2e-2, 1e-1)}

#: Training steps after which the memory has had its peak: momentum is there from the first one on.
_MEMORY_STEPS = 3
_CPU_LABELS = (OURS, "torch", "torch channels_last")

Step = Callable[[], Any]


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("network", "A network beside the same network in PyTorch: forward, and a training step.")
    add = parser.add_argument
    add("--model", default="resnet18", metavar="NAME", help="of gpuconv.models; default: resnet18")
    parser.count_option("--batch", "N", "images", 32)
    parser.count_option("--size", "N", "pixels of a side of an image; default: the model's own")
    add("--backend", default="auto", metavar="NAME", help="gpuconv's backend; default: what gpuconv takes by itself")
    add("--task", choices=(FORWARD, TRAINING), help="one of the two; default: both")
    parser.count_option("--rounds", "N", "samples of each contender", 5)
    add("--seconds", type=command.seconds, default=5.0, metavar="S", help="for all samples of one; default: 5")
    cores = command.available_cores()
    add("--threads", type=command.whole_number, default=cores, metavar="N", help="default: all cores")
    # Used by this file itself: train by that contender alone, and print the memory that it took.
    add("--peak", choices=_CPU_LABELS, help=argparse.SUPPRESS)
    parser.jobs_option()
    parser.json_option()
    return parser.parse_args(argv)


def launches(name: str, batch: int, size: int) -> list[tuple[Any, tuple[Any, ...]]]:
    """The launches of a training step and of a forward pass with their arguments; noted, not made.

    Args:
        name: of the model.
        batch, size: images, and pixels of a side.
    """
    import gpuconv
    from bench.step import noted_graph
    from gpuconv import Tensor, backends, no_grad, optim
    from gpuconv.captured_step import CapturedStep

    backend, (training, forward) = backends.get("cuda"), (noted_graph(), noted_graph())
    with gpuconv.use_backend(backend):
        model, images, labels = network(name, batch, size)
        step = training_step(model.to(backend), optim.SGD(model.parameters(), **SGD))
        CapturedStep(step, backend, training, 0).capture(Tensor(images), labels)
        x = Tensor(backend.asarray(images))
        with forward.recording(), no_grad():
            model.eval()(x)
    return [*training.launches, *forward.launches]


def network(name: str, batch: int, size: int | None = None) -> tuple[Any, Any, Any]:
    """The model without dropout, whose choices would be each library's own; images (batch, C, size, size) and labels.

    Raises:
        Refused: there is no such model.
    """
    import numpy as np

    import gpuconv
    from gpuconv import models, nn

    gpuconv.manual_seed(0)
    try:
        model = models.build(name)
    except ValueError as error:
        raise Refused(f"--model: {error}") from None
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    channels, *own = model.input_shape
    generator = np.random.default_rng(0)
    images = generator.standard_normal((batch, channels, *([size, size] if size else own)), np.float32)
    # A label an image; of a network that segments, a label a pixel.
    of_an_image = images.shape[2:] if isinstance(model, models.UNet) else ()
    return model, images, generator.integers(0, len(model.classes), (batch, *of_an_image))


def _ours(model: Any, images: Any, labels: Any, captured: bool) -> dict[str, Callable[[], Step]]:
    """Steps of this library, by task; each on a copy of the model."""
    import copy

    import gpuconv

    backend = gpuconv.backends.current()
    x, y = gpuconv.Tensor(backend.asarray(images)), backend.asarray(labels)

    def forward() -> Step:
        own = copy.deepcopy(model).to(backend).eval()

        def run(x: Any) -> Any:
            with gpuconv.no_grad():
                return own(x)

        step = gpuconv.capture(run) if captured else run
        return lambda: step(x)

    def training() -> Step:
        own = copy.deepcopy(model).to(backend).train()
        update = training_step(own, gpuconv.optim.SGD(own.parameters(), **SGD))
        step = gpuconv.capture(update) if captured else update
        return lambda: step(x, y)

    return {FORWARD: forward, TRAINING: training}


def _theirs(model: Any, images: Any, labels: Any, device: str, layout: str, captured: bool) -> dict[str, Any]:
    """PyTorch's steps, by task."""
    import torch

    from bench.lenet_gpu import TorchGraph
    from bench.torch_twin import twin

    memory_format = getattr(torch, layout)

    def ready() -> tuple[Any, Any, Any]:
        own = twin(model)
        own.load_state_dict({key: torch.tensor(value) for key, value in model.state_dict().items()})
        x = torch.tensor(images).contiguous(memory_format=memory_format).to(device)
        return own.to(device, memory_format=memory_format), x, torch.tensor(labels).to(device)

    def forward() -> Step:
        own, x, _ = ready()
        own.eval()

        def step() -> Any:
            with torch.no_grad():
                return own(x)

        return TorchGraph(torch, step) if captured else step

    def training() -> Step:
        own, x, y = ready()
        optimizer = torch.optim.SGD(own.parameters(), **SGD, fused=True)

        def step() -> Any:
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(own(x), y)
            loss.backward()
            optimizer.step()
            return loss.detach()

        return TorchGraph(torch, step) if captured else step

    return {FORWARD: forward, TRAINING: training}


def _contenders(model: Any, images: Any, labels: Any, device: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """By label, what makes their steps; this library first."""
    inputs = (model, images, labels)
    if device is None:
        yield OURS, _ours(*inputs, captured=False)
        for label, layout in zip(_CPU_LABELS[1:], ("contiguous_format", "channels_last"), strict=True):
            yield label, _theirs(*inputs, "cpu", layout, captured=False)
        return
    yield f"{OURS} eager", _ours(*inputs, captured=False)
    yield OURS, _ours(*inputs, captured=True)
    yield "torch eager", _theirs(*inputs, device, "contiguous_format", captured=False)
    yield "torch channels_last", _theirs(*inputs, device, "channels_last", captured=False)
    yield "torch graph", _theirs(*inputs, device, "contiguous_format", captured=True)


def _print_peak(arguments: argparse.Namespace, backend: Any) -> None:
    """Train by one contender on the CPU; print a line of JSON, the memory in MB before the first step and at most."""
    import gpuconv

    if arguments.peak != OURS:  # gpuconv only makes the weights: its compiler's memory is not the peer's
        import torch

        torch.set_num_threads(arguments.threads)
        backend = gpuconv.backends.get("numpy")
    with gpuconv.use_backend(backend):
        inputs = network(arguments.model, arguments.batch, arguments.size)
        # Only as far as this one: those behind it import PyTorch.
        makers = next(makers for label, makers in _contenders(*inputs, None) if label == arguments.peak)
        step = makers[TRAINING]()
        ready = peak_mb()
        for _ in range(_MEMORY_STEPS):
            step()
    print(json.dumps({"ready_mb": round(ready, 1), "peak_mb": round(peak_mb(), 1)}))


def _memory(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The peak memory of a training step by each contender, in a process of its own.

    Call it before anything large is imported: on Linux a new process starts with the peak of the one that made it. This
    library runs twice, if it compiles, and the second time counts: the first one leaves its kernels on disk.

    Raises:
        subprocess.CalledProcessError: one failed; its messages stand on stderr.
    """
    same = [f"--{name}={vars(arguments)[name]}" for name in ("model", "batch", "backend", "threads")]
    if arguments.size:
        same.append(f"--size={arguments.size}")
    result = {}
    compiles = arguments.backend != "numpy"
    for label in ((OURS,) if compiles else ()) + _CPU_LABELS:
        process = [sys.executable, "-m", "bench.network", *same, f"--peak={label}"]
        with progress.during(f"memory: {label}"):
            made = subprocess.run(process, cwd=command.ROOT, stdout=subprocess.PIPE, text=True, check=True)
        result[label] = {name: float(value) for name, value in json.loads(made.stdout).items()}
    for label, found in result.items():
        ratio = f"   {found['peak_mb'] / result[OURS]['peak_mb']:.2f} x as much as {OURS}" if label != OURS else ""
        say(f"memory: {label:<22}{found['peak_mb']:10.0f} MB{ratio}")
    return result


def _number(value: Any) -> Any:
    """What a step has returned, as a NumPy array."""
    import numpy as np

    return np.array(value.numpy() if hasattr(value, "numpy") and not hasattr(value, "cpu") else value.cpu().numpy())


def _wrong(step: Step, task: str, wanted: list[Any], label: str) -> str | None:
    """What is wrong with a step, in a line; the first one says what is wanted."""
    import numpy as np

    found = [_number(step()) for _ in _TOLERANCES[task]]
    if not wanted:
        wanted += found
        return None if all(np.isfinite(one).all() for one in found) else f"{label} is not finite"
    if label == "torch graph" and task == TRAINING:
        return None  # it has trained while it warmed up
    largest = max(float(np.abs(one).max()) for one in wanted)
    for call, (one, other, tolerance) in enumerate(zip(found, wanted, _TOLERANCES[task], strict=True), 1):
        difference = float(np.abs(one - other).max()) / largest
        if not difference <= tolerance:
            return f"{label} differs in call {call} by {difference:.1e} of the largest value"
    return None


def _compare(task: str, arguments: argparse.Namespace, inputs: Any, device: str | None, wait: Any) -> dict[str, Any]:
    """Check and time the contenders for a task."""
    from gpuconv.tuning.measure import measure, speedup, spread

    result: dict[str, Any] = {"task": task, "right": True, "seconds": {}, "speedup": {}, "failed": {}}
    steps: dict[str, Step] = {}
    wanted: list[Any] = []
    for label, makers in _contenders(*inputs, device):
        with progress.during(f"{task}: {label}, the first step"):
            try:
                step = makers[task]()
                wrong = _wrong(step, task, wanted, label)
                result["right"] &= wrong is None
            except Exception as error:  # of many kinds: a contender less, and said
                wrong = f"{type(error).__name__}: {error}".partition("\n")[0]
                result["right"] &= not label.startswith(OURS)
        if wrong is None:
            steps[label] = step
        else:
            result["failed"][label] = wrong
            say(f"{task}: {label} is not timed: {wrong}")
    result["seconds"] = measure(
        steps,
        seconds=arguments.seconds,
        rounds=arguments.rounds,
        wait=wait,
        tell=lambda text: progress(f"{task}: {text}"),
    )
    ours = next((label for label in (OURS, f"{OURS} eager") if label in steps), None)
    for label, times in result["seconds"].items():
        if ours is not None and not label.startswith(OURS):
            result["speedup"][label] = vars(speedup(result["seconds"][ours], times))
        say(f"{task}: {label:<22}{1e3 * spread(times).median:10.2f} ms{_ratio(result['speedup'].get(label))}")
    return result


def _ratio(ratio: dict[str, float] | None) -> str:
    return f"   {ratio['median']:.2f} x as long as {OURS}" if ratio else ""


def _run(argv: Sequence[str] | None) -> int:
    arguments = _arguments(argv)
    check_writable("--json", arguments.json)
    if importlib.util.find_spec("torch") is None:
        raise Refused("the peer is PyTorch: pip install torch")
    if arguments.backend != "cuda":
        command.limit_threads(arguments.threads)
    import gpuconv

    settings = {
        name: vars(arguments)[name] for name in ("model", "batch", "size", "backend", "threads", "rounds", "seconds")
    }
    document = command.document("network", settings, results=[])
    others = command.OtherProcesses()
    try:
        backend = gpuconv.backends.get(arguments.backend)
    except (ValueError, gpuconv.BackendUnavailable) as error:
        raise Refused(str(error)) from None
    if arguments.peak:
        _print_peak(arguments, backend)
        return 0
    on_gpu = "cuda" in (arguments.backend, backend.name)  # which `auto` may have chosen
    if not on_gpu and arguments.task != FORWARD:
        document["memory"] = _memory(arguments)
    inputs = network(arguments.model, arguments.batch, arguments.size)
    device, wait = None, lambda result: result
    if on_gpu:
        from bench import compiling
        from bench.device import device_place, gpu_facts

        place = device_place()
        document["machine"]["gpu"] = gpu_facts(place)
        work = compiling.recorded_work([("network", arguments.model, arguments.batch, inputs[1].shape[-1])])
        compiling.compile_all(compiling.compile_recorded, work, arguments.jobs)
        device, wait = "cuda", lambda result: place.synchronize()
    else:
        import torch

        torch.set_num_threads(arguments.threads)
    try:
        with gpuconv.use_backend(backend):
            for task in [arguments.task] if arguments.task else (FORWARD, TRAINING):
                document["results"].append(_compare(task, arguments, inputs, device, wait))
                if arguments.json is not None:
                    write(document, arguments.json)
        document["complete"] = True
    except KeyboardInterrupt:
        say("\nstopped; what was measured until then is kept")
    document["machine"]["others_busy"] = others.share()
    if arguments.json is not None:
        write(document, arguments.json)
        say(f"written: {arguments.json}")
    if not document["complete"]:
        return command.INTERRUPTED
    return 0 if all(one["right"] for one in document["results"]) else command.WRONG


def main(argv: Sequence[str] | None = None) -> int:
    """Compare; 1 when this library fails, or a peer differs from it. See :func:`bench.command.answer`."""
    return command.answer("bench.network", _run, argv)


if __name__ == "__main__":
    start(main)
