"""LeNet-5 on a GPU beside PyTorch's, training and inference: what ``python -m bench.lenet --backend cuda`` runs.

1. **Steps.** This library's step, eager and captured; PyTorch's, eager, by ``torch.compile(mode="max-autotune")`` and
   as a CUDA graph: the same weights and digits, on the device, float32 without TF32, SGD with momentum. After their
   first losses have been compared, all take turns (``bench/timing.py``). A sample repeats the step and then waits for
   the device: wall time, the host's part included.
2. **Kernels.** The launches of our step, one by one: each is captured many times in a row as a CUDA graph, whose time
   is taken by the device's events (``bench/gpu.py``) and divided. So the second-level cache is warm for all but the
   first, and the time from one kernel of a graph to the next is included, as in the step. Beside it stands the kernel's
   own floor: its bytes at the rate of a copy that is measured in the same run, or its arithmetic at the peak of the
   device, whichever takes longer. What comes from the cache can be faster than a copy.
3. **Inference of one image**: from the call until the device has the logits, the host waiting for each. This library's
   captured as a graph of three kernels, as a graph of the one kernel that takes an image through the whole network
   (``kernels/conv_net.py``), and eager; PyTorch's eager and as a graph. The image is on the device already.

What cuBLAS and CuPy launch, where this project's kernels are not made for a batch, is in the steps but not among the
kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import cycle
from typing import TYPE_CHECKING, Any

from bench import timing
from bench.console import Refused, say
from bench.contenders import OURS, SGD, digit_batches, initial_weights, torch_model

if TYPE_CHECKING:
    from bench.contenders import Batches, Weights

BATCHES = (64, 128, 512, 4096)
EAGER, PEERS = f"{OURS} eager", ("torch eager", "torch compile", "torch graph")
ONE_KERNEL = f"{OURS} one kernel"
#: Losses that must agree: with them the warm-up of a captured step is over, and its graph has run.
_CHECKED_STEPS = 5
_WARMUP = 3
#: Times that a kernel stands in the graph that is timed, and samples, of which the median counts.
_REPEATS, _SAMPLES = 50, 15
_COPIED_BYTES = 2**30
#: cudaDevAttrClockRate, kHz; and float32 multiply-adds that a multiprocessor starts in a cycle: 128, where not here.
_CLOCK_RATE, _LANES = 13, {"8.0": 64, "7.0": 64, "7.5": 64}


# -- steps -----------------------------------------------------------------------------------------------------------


def _ours(weights: Weights, batches: Batches, captured: bool) -> timing.Step:
    import gpuconv
    from gpuconv import functional as F

    backend = gpuconv.backends.current()
    ready = [(backend.asarray(images), backend.asarray(labels)) for images, labels in batches]

    model = gpuconv.models.LeNet5()
    model.load_state_dict(weights)
    model.to(backend)
    optimizer = gpuconv.optim.SGD(model.parameters(), **SGD)

    def step(images: Any, labels: Any) -> Any:
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    run, turn = gpuconv.capture(step) if captured else step, cycle(ready)
    return lambda: run(*next(turn))


def ours_inference(weights: Weights, images: list[Any], variant: str, *, captured: bool) -> timing.Step:
    """The logits of an image by this library; ``variant`` is that of ``conv_net``."""
    import gpuconv
    from gpuconv import tuning

    backend = gpuconv.backends.current()
    model = gpuconv.models.LeNet5()
    model.load_state_dict(weights)
    model.to(backend).eval()

    def forward(image: Any) -> Any:
        with gpuconv.no_grad(), tuning.use_variant("conv_net", variant):
            return model(image)

    run, turn = gpuconv.capture(forward) if captured else forward, cycle(map(backend.asarray, images))
    return lambda: run(next(turn))


def torch_inference(torch: Any, device: str, weights: Weights, images: list[Any], *, captured: bool) -> timing.Step:
    """The logits of an image by PyTorch, eager or as a CUDA graph."""
    model, ready = torch_model(torch, weights).to(device).eval(), [torch.tensor(x, device=device) for x in images]
    turn = cycle(ready)

    def forward(image: Any) -> Any:
        with torch.inference_mode():
            return model(image)

    if not captured:
        return lambda: forward(next(turn))
    static = ready[0].clone()
    graph, logits = _torch_captured(torch, lambda: forward(static))

    def replay() -> Any:
        static.copy_(next(turn))
        graph.replay()
        return logits

    return replay


def _torch_captured(torch: Any, step: Callable[[], Any]) -> tuple[Any, Any]:
    """The graph of a step, and what it returns; by the recipe of PyTorch's documentation."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARMUP):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()
    return graph, result


def _torch_parts(torch: Any, device: str, weights: Weights, batches: Batches) -> tuple[Any, Any, list[Any]]:
    model = torch_model(torch, weights).to(device)
    optimizer = torch.optim.SGD(model.parameters(), **SGD, fused=True)
    return model, optimizer, [tuple(torch.tensor(array, device=device) for array in batch) for batch in batches]


def torch_eager(torch: Any, device: str, weights: Weights, batches: Batches, *, compiled: bool = False) -> timing.Step:
    """PyTorch's step as its users write it; compiled: forward and loss, and with them their backward."""
    model, optimizer, ready = _torch_parts(torch, device, weights, batches)

    def loss_of(images: Any, labels: Any) -> Any:
        return torch.nn.functional.cross_entropy(model(images), labels)

    compute = torch.compile(loss_of, mode="max-autotune", dynamic=False) if compiled else loss_of
    turn = cycle(ready)

    def step() -> Any:
        if compiled:
            torch.compiler.cudagraph_mark_step_begin()  # what the step before has returned may be overwritten
        optimizer.zero_grad()
        loss = compute(*next(turn))
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def torch_graph(torch: Any, device: str, weights: Weights, batches: Batches) -> timing.Step:
    """PyTorch's whole step as one CUDA graph."""
    model, optimizer, ready = _torch_parts(torch, device, weights, batches)
    inputs = [tensor.clone() for tensor in ready[0]]

    def step() -> Any:
        optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(model(inputs[0]), inputs[1])
        loss.backward()
        optimizer.step()
        return loss.detach()

    graph, loss = _torch_captured(torch, step)
    # The warm-up has trained; a momentum of zero is that of a first step.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.tensor(weights[name]))
            optimizer.state[parameter]["momentum_buffer"].zero_()
    turn = cycle(ready)

    def replay() -> Any:
        for target, source in zip(inputs, next(turn), strict=True):
            target.copy_(source)
        graph.replay()
        return loss

    return replay


def contenders(torch: Any, device: str, weights: Weights, batches: Batches) -> dict[str, Callable[[], timing.Step]]:
    """By label, what makes a step; which may fail: a graph that cannot be captured, a compiler that is not there."""
    ours, arguments = (weights, batches), (torch, device, weights, batches)
    return {
        OURS: partial(_ours, *ours, captured=True),
        EAGER: partial(_ours, *ours, captured=False),
        "torch eager": partial(torch_eager, *arguments),
        "torch compile": partial(torch_eager, *arguments, compiled=True),
        "torch graph": partial(torch_graph, *arguments),
    }


def inference_contenders(
    torch: Any, device: str, weights: Weights, images: list[Any]
) -> dict[str, Callable[[], timing.Step]]:
    """As :func:`contenders`, for the logits of an image."""
    from gpuconv.tuning import COMPOSED

    return {
        OURS: partial(ours_inference, weights, images, COMPOSED, captured=True),
        ONE_KERNEL: partial(ours_inference, weights, images, "one_image_a_block", captured=True),
        EAGER: partial(ours_inference, weights, images, COMPOSED, captured=False),
        "torch eager": partial(torch_inference, torch, device, weights, images, captured=False),
        "torch graph": partial(torch_inference, torch, device, weights, images, captured=True),
    }


def checked(
    makers: dict[str, Callable[[], timing.Step]], value: Callable[[Any], Any] = float, what: str = "losses"
) -> tuple[dict[str, timing.Step], dict[str, str]]:
    """Steps whose first losses are those of this library's eager step, and by label why another cannot be timed.

    Args:
        makers: as :func:`contenders` gives them.
        value: of what a step returns, the number or numbers to compare.
        what: these are, for messages.

    Raises:
        Refused: this library's captured step gives others.
    """
    import numpy as np

    losses: dict[str, list[Any]] = {}
    steps: dict[str, timing.Step] = {}
    failed: dict[str, str] = {}
    for label, make in makers.items():
        try:
            step = make()
            losses[label] = [value(step()) for _ in range(_CHECKED_STEPS)]
            steps[label] = step
        except Exception as error:  # of many kinds: it is a contender less, and said
            failed[label] = f"{type(error).__name__}: {error}".strip().partition("\n")[0]
    if EAGER not in steps:
        raise Refused(f"{EAGER}: {failed[EAGER]}")
    for label in list(steps):
        try:
            np.testing.assert_allclose(losses[label], losses[EAGER], rtol=1e-4, atol=1e-5)
        except AssertionError:
            wrong = f"its {what} are {losses[label]}, those of {EAGER} {losses[EAGER]}"
            if label == OURS:
                raise Refused(f"{OURS}: {wrong}") from None
            failed[label] = wrong
            del steps[label]
    return steps, failed


# -- kernels ---------------------------------------------------------------------------------------------------------


def peaks(place: Any, clock: Any, capability: str, multiprocessors: int) -> dict[str, float]:
    """Bytes a second of a copy, each byte read and written; float32 operations a second, a multiply-add being two."""
    source, target = (place.torch.empty(_COPIED_BYTES, dtype=place.torch.uint8, device=place.device) for _ in range(2))
    target.copy_(source)
    copy_us = _median_us(clock, lambda: target.copy_(source))
    hertz = 1e3 * place.xp.cuda.runtime.deviceGetAttribute(_CLOCK_RATE, 0)
    lanes = _LANES.get(capability, 128)
    return {"bytes_per_s": 2e6 * _COPIED_BYTES / copy_us, "flop_per_s": 2.0 * lanes * multiprocessors * hertz}


def floor_us(kernel_bytes: int, flop: int, peak: dict[str, float]) -> float:
    """Microseconds that a kernel cannot do without: of its bytes or its arithmetic, whichever takes longer."""
    return 1e6 * max(kernel_bytes / peak["bytes_per_s"], flop / peak["flop_per_s"])


def kernels(batch: int, clock: Any, peak: dict[str, float], new_graph: Callable[[], Any]) -> list[dict[str, Any]]:
    """An entry for each launch of our step: microseconds, and the floor."""
    from bench import step

    launches = step.launches(batch)
    for launch, arguments in launches:  # in order: what one writes, the next one reads, positions of maxima among it
        launch(_stream(), *arguments)
    entries = []
    for known, (launch, arguments) in zip(step.record(batch), launches, strict=True):
        graph = new_graph()
        with graph.recording():
            for _ in range(_REPEATS):
                launch(_stream(), *arguments)
        us = _median_us(clock, partial(_replay, graph)) / _REPEATS
        entries.append({**vars(known), "us": us, "floor_us": floor_us(known.bytes, known.flop, peak)})
    return entries


def _replay(graph: Any) -> None:
    with graph.running():
        graph.launch()


def _median_us(clock: Any, step: timing.Step) -> float:
    step()
    host_us = clock.host_us(step)
    return timing.spread([clock.sample_us(step, host_us) for _ in range(_SAMPLES)]).median


def _stream() -> Any:
    """The current stream, as the backend's kernels are given it: inside of a capture, the one that is captured."""
    import gpuconv

    return gpuconv.backends.get("cuda").current_stream()


# -- the run ---------------------------------------------------------------------------------------------------------


def inference(place: Any, seconds: float, rounds: int, weights: Weights) -> dict[str, Any]:
    """Seconds until the logits of one image are there, by contender.

    Raises:
        Refused: this library computes wrong logits.
    """
    images = [images for images, _ in digit_batches(1)]
    makers = inference_contenders(place.torch, place.device, weights, images)
    # Both libraries' tensors; a copy, since a graph writes its next result to the same memory.
    steps, failed = checked(makers, lambda logits: _on_host(logits).tolist(), "logits")
    for label, why in failed.items():
        say(f"inference: {label} is not timed: {why}")

    def waiting(step: timing.Step) -> timing.Step:
        def one() -> None:
            step()
            place.synchronize()

        return one

    waited = {label: waiting(step) for label, step in steps.items()}
    times = timing.measure(waited, seconds=seconds, rounds=rounds, wait=lambda _: None)
    ours = times[OURS if OURS in times else EAGER]
    say(f"inference: {1e6 * timing.spread(ours).median:.1f} us an image")
    return {
        "seconds": times,
        "failed": failed,
        "speedup": {
            label: vars(timing.speedup(ours, theirs))
            for label, theirs in times.items()
            if label in (ONE_KERNEL, *PEERS)
        },
    }


def _on_host(tensor: Any) -> Any:
    return tensor.cpu().numpy() if hasattr(tensor, "cpu") else tensor.numpy()


def run(document: dict[str, Any], place: Any, clock: Any, new_graph: Callable[[], Any]) -> None:
    """Time all batches, and inference; ``document`` is filled as it goes. Its settings say batches, seconds and rounds.

    Args:
        document: with ``settings`` and ``machine.gpu``; gets ``peaks``, ``results`` and ``inference``.
        place: PyTorch, the array library, and the device.
        clock: a ``bench.gpu.EventClock``.
        new_graph: makes what records launches and repeats them.

    Raises:
        Refused: this library computes wrong losses or logits.
    """
    settings, facts = document["settings"], document["machine"]["gpu"]
    document["peaks"] = peaks(place, clock, facts["compute_capability"], facts["multiprocessors"])
    weights = initial_weights()
    for batch in settings["batches"]:
        steps, failed = checked(contenders(place.torch, place.device, weights, digit_batches(batch)))
        for label, why in failed.items():
            say(f"batch {batch:,}: {label} is not timed: {why}")
        times = timing.measure(
            steps, seconds=settings["seconds"], rounds=settings["rounds"], wait=lambda _: place.synchronize()
        )
        del steps
        result = {"batch": batch, "seconds": times, "failed": failed}
        ours = times[OURS if OURS in times else EAGER]
        result["speedup"] = {
            label: vars(timing.speedup(ours, theirs)) for label, theirs in times.items() if label in PEERS
        }
        result["kernels"] = kernels(batch, clock, document["peaks"], new_graph)
        document["results"].append(result)
        say(f"batch {batch:,}: {1e6 * timing.spread(ours).median:.1f} us a step")
    document["inference"] = inference(place, settings["seconds"], settings["rounds"], weights)
