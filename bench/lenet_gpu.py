"""LeNet-5 on a GPU beside PyTorch's, training and inference: what ``python -m bench.lenet --backend cuda`` runs.

1. **Right.** All kernels are compiled first, by several processes (``bench/compiling.py``). Then, batch by batch, this
   library's steps come first: the losses of its eager step are compared with the NumPy backend's, those of its captured
   step with the eager one's. If one is wrong, or raises, that is recorded, nothing of PyTorch's is made at this batch,
   and the next batch follows.
2. **Kernels.** The launches of our step, one by one: each is captured many times in a row as a CUDA graph, whose time
   is taken by the device's events (``bench/device.py``) and divided. So the second-level cache is warm for all but the
   first, and the time from one kernel of a graph to the next is included, as in the step. Beside it stands the kernel's
   own floor: its bytes at the rate of a copy that is measured in the same run, or its arithmetic at the peak of the
   device, whichever takes longer. What comes from the cache can be faster than a copy.
3. **Steps.** This library's step, captured and eager, first by itself; then beside PyTorch's, eager, as a CUDA graph,
   and on request by ``torch.compile``: the same weights and digits, on the device, float32 without TF32, SGD with
   momentum. PyTorch's first losses have to be ours; then all take turns (``gpuconv/tuning/measure.py``). A sample
   repeats the step and then waits for the device: wall time, the host's part included.
4. **Inference of one image**, likewise first checked, then timed: from the call until the device has the logits, the
   host waiting for each. This library's captured, which is a graph of three kernels, and eager; PyTorch's eager and as
   a graph. The image is on the device already.

What was found is kept after each part, see :func:`run`.

What cuBLAS and CuPy launch, where this project's kernels are not made for a batch, is in the steps but not among the
kernels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from functools import partial
from itertools import cycle
from typing import TYPE_CHECKING, Any

from bench.command import progress, say
from bench.contenders import OURS, SGD, digit_batches, initial_weights, torch_model, training_step
from gpuconv.tuning import measure

if TYPE_CHECKING:
    from bench.contenders import Batches, Weights

EAGER, CHAIN = f"{OURS} eager", f"{OURS} chain"
PEERS = ("torch eager", "torch compile", "torch graph")
#: Losses that must agree: two steps warm a captured one up, the others are replays of its graph.
_CHECKED_STEPS = 8
_WARMUP = 3
#: Among what failed, what ended a batch, whichever contender it was that raised.
_ENDED = "ended by"
#: Times that a kernel stands in the graph that is timed, and samples, of which the median counts.
_REPEATS, _SAMPLES = 50, 15
_COPIED_BYTES = 2**30
#: cudaDevAttrClockRate, kHz; and float32 multiply-adds that a multiprocessor starts in a cycle: 128, where not here.
_CLOCK_RATE, _LANES = 13, {"8.0": 64, "7.0": 64, "7.5": 64}


# -- steps -----------------------------------------------------------------------------------------------------------


def _ours(weights: Weights, batches: Batches, captured: bool, side_by_side: bool = True) -> measure.Step:
    import gpuconv

    backend = gpuconv.backends.current()
    ready = [(backend.asarray(images), backend.asarray(labels)) for images, labels in batches]

    model = gpuconv.models.LeNet5()
    model.load_state_dict(weights)
    model.to(backend)
    optimizer = gpuconv.optim.SGD(model.parameters(), **SGD)

    step = training_step(model, optimizer)
    run = gpuconv.capture(step, side_by_side=side_by_side) if captured else step
    turn = cycle(ready)
    return lambda: run(*next(turn))


def ours_inference(weights: Weights, images: list[Any], *, captured: bool) -> measure.Step:
    """The logits of an image by this library, eager or captured."""
    import gpuconv

    backend = gpuconv.backends.current()
    model = gpuconv.models.LeNet5()
    model.load_state_dict(weights)
    model.to(backend).eval()

    def forward(image: Any) -> Any:
        with gpuconv.no_grad():
            return model(image)

    run, turn = gpuconv.capture(forward) if captured else forward, cycle(map(backend.asarray, images))
    return lambda: run(next(turn))


def torch_inference(torch: Any, device: str, weights: Weights, images: list[Any], *, captured: bool) -> measure.Step:
    """The logits of an image by PyTorch, eager or as a CUDA graph."""
    model, ready = torch_model(torch, weights).to(device).eval(), [torch.tensor(x, device=device) for x in images]
    turn = cycle(ready)

    def forward(image: Any) -> Any:
        with torch.inference_mode():
            return model(image)

    if not captured:
        return lambda: forward(next(turn))
    static = ready[0].clone()
    graph = TorchGraph(torch, lambda: forward(static))

    def replay() -> Any:
        static.copy_(next(turn))
        return graph()

    return replay


class TorchGraph:
    """A step of PyTorch's as a CUDA graph, by the recipe of its documentation: a call replays it.

    A graph reads and writes where its tensors were when it was captured. So it holds the step, and with it the tensors:
    PyTorch would give the memory of those that nobody holds to others.
    """

    def __init__(self, torch: Any, step: Callable[[], Any]):
        self._step = step
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARMUP):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._result = step()

    def __call__(self) -> Any:
        self._graph.replay()
        return self._result


def _torch_parts(torch: Any, device: str, weights: Weights, batches: Batches) -> tuple[Any, Any, list[Any]]:
    model = torch_model(torch, weights).to(device)
    optimizer = torch.optim.SGD(model.parameters(), **SGD, fused=True)
    return model, optimizer, [tuple(torch.tensor(array, device=device) for array in batch) for batch in batches]


def torch_eager(
    torch: Any, device: str, weights: Weights, batches: Batches, *, compiled: str | None = None
) -> measure.Step:
    """PyTorch's step as its users write it; ``compiled``: forward and loss, and with them their backward, in a mode."""
    model, optimizer, ready = _torch_parts(torch, device, weights, batches)

    def loss_of(images: Any, labels: Any) -> Any:
        return torch.nn.functional.cross_entropy(model(images), labels)

    compute = torch.compile(loss_of, mode=compiled, dynamic=False) if compiled else loss_of
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


def torch_graph(torch: Any, device: str, weights: Weights, batches: Batches) -> measure.Step:
    """PyTorch's whole step as one CUDA graph."""
    model, optimizer, ready = _torch_parts(torch, device, weights, batches)
    inputs = [tensor.clone() for tensor in ready[0]]

    def step() -> Any:
        optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(model(inputs[0]), inputs[1])
        loss.backward()
        optimizer.step()
        return loss.detach()

    graph = TorchGraph(torch, step)
    # The warm-up has trained; a momentum of zero is that of a first step.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.tensor(weights[name]))
            optimizer.state[parameter]["momentum_buffer"].zero_()
    turn = cycle(ready)

    def replay() -> Any:
        for target, source in zip(inputs, next(turn), strict=True):
            target.copy_(source)
        return graph()

    return replay


Makers = Mapping[str, Callable[[], measure.Step]]


def peers(torch: Any, device: str, weights: Weights, batches: Batches, compiled: str | None) -> Makers:
    """By label, what makes a step of PyTorch's; which may fail: a graph that cannot be captured, no compiler.

    Args:
        torch, device, weights, batches: as of the functions above.
        compiled: the mode of ``torch.compile``; None leaves it out.
    """
    arguments = (torch, device, weights, batches)
    makers = {"torch eager": partial(torch_eager, *arguments), "torch graph": partial(torch_graph, *arguments)}
    if compiled is not None:
        makers["torch compile"] = partial(torch_eager, *arguments, compiled=compiled)
    return makers


def inference_peers(torch: Any, device: str, weights: Weights, images: list[Any]) -> Makers:
    """As :func:`peers`, for the logits of an image."""
    return {
        label: partial(torch_inference, torch, device, weights, images, captured=captured)
        for label, captured in (("torch eager", False), ("torch graph", True))
    }


class Contest:
    """Steps that compute the same: each is checked as it comes, and only those that are right are kept.

    Args:
        value: of what a step returns, the number or numbers to compare.
        what: these are, for messages.

    Attributes:
        steps: by label, what is right.
        failed: by label, why another is not.
    """

    def __init__(self, value: Callable[[Any], Any] = float, what: str = "losses"):
        self._value, self._what = value, what
        self._values: dict[str, list[Any]] = {}
        self.steps: dict[str, measure.Step] = {}
        self.failed: dict[str, str] = {}

    def reference(self, label: str, step: measure.Step) -> None:
        """What others are compared with; it is not timed."""
        self._values[label] = self._first(step)

    def enter(self, label: str, make: Callable[[], measure.Step], against: str) -> bool:
        """Make a step and compare its first values with those of another label; whether it is right."""
        import numpy as np

        if against not in self._values:
            self.failed[label] = f"there is nothing to compare it with: {against} failed"
            return False
        try:
            step = make()
            found = self._first(step)
            np.testing.assert_allclose(found, self._values[against], rtol=1e-4, atol=1e-5)
        except AssertionError:
            self.failed[label] = f"its {self._what} are {found}, those of {against} {self._values[against]}"
        except Exception as error:  # of many kinds: it is a contender less, and said
            self.failed[label] = one_line(error)
        else:
            self._values[label], self.steps[label] = found, step
        return label in self.steps

    def _first(self, step: measure.Step) -> list[Any]:
        return [self._value(step()) for _ in range(_CHECKED_STEPS)]


def one_line(error: BaseException) -> str:
    """Kind and first line of an error."""
    return f"{type(error).__name__}: {error}".strip().partition("\n")[0]


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
    graph.launch()


def _median_us(clock: Any, step: measure.Step) -> float:
    step()
    host_us = clock.host_us(step)
    return measure.spread([clock.sample_us(step, host_us) for _ in range(_SAMPLES)]).median


def _stream() -> Any:
    """The current stream, as the backend's kernels are given it: inside of a capture, the one that is captured."""
    import gpuconv

    backend: Any = gpuconv.backends.get("cuda")
    return backend.current_stream()


# -- the run ---------------------------------------------------------------------------------------------------------


def run(
    document: dict[str, Any], place: Any, clock: Any, new_graph: Callable[[], Any], keep: Callable[[], None]
) -> bool:
    """Check and time all batches, and inference; ``document`` is filled as it goes.

    Args:
        document: with ``settings`` and ``machine.gpu``; gets ``peaks``, ``results`` and ``inference``. Its settings say
            batches, seconds, rounds and the mode of ``torch.compile``.
        place: PyTorch, the array library, and the device.
        clock: a ``bench.device.EventClock``.
        new_graph: makes what records launches and repeats them.
        keep: called when the document has got something new.

    Returns:
        Whether this library was right everywhere. What was not is in ``failed`` of its result.
    """
    settings, facts = document["settings"], document["machine"]["gpu"]
    document["peaks"] = peaks(place, clock, facts["compute_capability"], facts["multiprocessors"])
    weights = initial_weights()
    for batch in settings["batches"]:
        result: dict[str, Any] = {"batch": batch, "seconds": {}, "failed": {}, "speedup": {}, "kernels": []}
        document["results"].append(result)
        with _recorded_failure(result, f"batch {batch:,}", keep):
            _batch(result, document, place, clock, new_graph, weights, keep)
    result = document["inference"] = {"seconds": {}, "failed": {}, "speedup": {}}
    with _recorded_failure(result, "inference", keep):
        _inference(result, place, settings, weights, keep)
    results = [*document["results"], document["inference"]]
    return not any({OURS, CHAIN, EAGER, _ENDED} & set(result["failed"]) for result in results)


@contextlib.contextmanager
def _recorded_failure(result: dict[str, Any], where: str, keep: Callable[[], None]) -> Any:
    """What goes wrong inside of the ``with`` block is of this result, and of no other."""
    try:
        yield
    except Exception as error:  # of many kinds; the device may be lost, which the next result will say, too
        result["failed"][_ENDED] = one_line(error)
    for label, why in result["failed"].items():
        say(f"{where}: {label}{'' if label == _ENDED else ' is not timed'}: {why}")
    keep()


def _batch(
    result: dict[str, Any],
    document: dict[str, Any],
    place: Any,
    clock: Any,
    new_graph: Callable[[], Any],
    weights: Weights,
    keep: Callable[[], None],
) -> None:
    import gpuconv

    settings, batch = document["settings"], result["batch"]
    batches, contest = digit_batches(batch), Contest()
    result["failed"] = contest.failed
    with gpuconv.use_backend("numpy"):
        contest.reference("numpy", _ours(weights, batches, captured=False))
    contest.enter(EAGER, partial(_ours, weights, batches, captured=False), "numpy")
    contest.enter(OURS, partial(_ours, weights, batches, captured=True), EAGER)
    contest.enter(CHAIN, partial(_ours, weights, batches, captured=True, side_by_side=False), EAGER)
    right = not contest.failed
    say(f"batch {batch:,}: losses {'right' if right else 'WRONG'}, eager as by NumPy, captured as eager")
    keep()
    if not contest.steps:
        return
    measured = partial(
        measure.measure,
        seconds=settings["seconds"],
        rounds=settings["rounds"],
        wait=lambda _: place.synchronize(),
        tell=lambda text: progress(f"batch {batch:,}: {text}"),
    )
    result["seconds"] = measured(_ours_first(contest.steps))
    result["kernels"] = kernels(batch, clock, document["peaks"], new_graph)
    us = {label: 1e6 * measure.spread(seconds).median for label, seconds in result["seconds"].items()}
    say(f"batch {batch:,}: " + ", ".join(f"{label} {value:.1f} us a step" for label, value in us.items()))
    keep()
    if not right:
        return
    for label, make in peers(place.torch, place.device, weights, batches, settings["compile"]).items():
        contest.enter(label, make, EAGER)
    result["seconds"] = times = measured(_ours_first(contest.steps))
    result["speedup"] = {
        label: vars(measure.speedup(times[OURS], theirs)) for label, theirs in times.items() if label in PEERS
    }
    say(f"batch {batch:,}: " + ", ".join(f"{ratio['median']:.2f} x {one}" for one, ratio in result["speedup"].items()))


def _ours_first(steps: dict[str, measure.Step]) -> dict[str, measure.Step]:
    """The captured step first, as tables show them."""
    return dict(sorted(steps.items(), key=lambda item: item[0] != OURS))


def _inference(
    result: dict[str, Any], place: Any, settings: dict[str, Any], weights: Weights, keep: Callable[[], None]
) -> None:
    """Seconds until the logits of one image are there, by contender."""
    import gpuconv

    images = [images for images, _ in digit_batches(1)]
    # Both libraries' tensors; a copy, since a graph writes its next result to the same memory.
    contest = Contest(lambda logits: _on_host(logits).tolist(), "logits")
    result["failed"] = contest.failed
    with gpuconv.use_backend("numpy"):
        contest.reference("numpy", ours_inference(weights, images, captured=False))
    contest.enter(EAGER, partial(ours_inference, weights, images, captured=False), "numpy")
    contest.enter(OURS, partial(ours_inference, weights, images, captured=True), EAGER)
    keep()
    if OURS not in contest.steps:
        return
    for label, make in inference_peers(place.torch, place.device, weights, images).items():
        contest.enter(label, make, EAGER)

    def waiting(step: measure.Step) -> measure.Step:
        def one() -> None:
            step()
            place.synchronize()

        return one

    waited = {label: waiting(step) for label, step in _ours_first(contest.steps).items()}
    result["seconds"] = times = measure.measure(
        waited, seconds=settings["seconds"], rounds=settings["rounds"], wait=lambda _: None
    )
    result["speedup"] = {
        label: vars(measure.speedup(times[OURS], theirs)) for label, theirs in times.items() if label in PEERS
    }
    say(f"inference: {1e6 * measure.spread(times[OURS]).median:.1f} us an image")


def _on_host(tensor: Any) -> Any:
    return tensor.cpu().numpy() if hasattr(tensor, "cpu") else tensor.numpy()
