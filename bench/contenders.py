"""LeNet-5, and a convolution by itself, in gpuconv and in the libraries beside it: the same work on the same data.

Each contender gives, for a task, one or more steps by label. What a library needs in its own form (tensors, memory
layout, a session) is made ready before; a step then does what a user's loop would do, and nothing else. Libraries are
imported when a contender is constructed. :func:`convolutions` are the ways in which a CPU can convolve.

``python -m bench.contenders LABEL`` trains LeNet-5 by one of them in a process of its own, and prints its peak memory
as a line of JSON: ``ready_mb``, the peak until the library was loaded, the network built and a batch prepared, and
``peak_mb``, after a few training steps.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import subprocess
import sys
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import cycle
from typing import TYPE_CHECKING, Any, ClassVar

from bench import command
from bench.command import Parser, Refused, start

# Neither NumPy nor gpuconv is imported before the threads have been bounded.
if TYPE_CHECKING:
    import numpy as np

    from gpuconv.geometry import Conv2dGeometry
    from gpuconv.tuning.measure import Step

    Batches = list[tuple[np.ndarray, np.ndarray]]
    Weights = dict[str, np.ndarray]

OURS, EAGER = "gpuconv", "gpuconv eager"
# Small, so that a network that sees the same digits thousands of times still has something to learn: gradients that
# vanish, or a network that died of a large step, would not be the work of a training.
SGD: dict[str, Any] = {"lr": 1e-3, "momentum": 0.9}
_MOST_BATCHES = 8


def training_step(model: Any, optimizer: Any) -> Callable[[Any, Any], Any]:
    """This library's step as its users write it: of images and labels, gives the loss."""
    from gpuconv import functional as F

    def step(images: Any, labels: Any) -> Any:
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step


class Contender(ABC):
    """A library that can run LeNet-5.

    Attributes:
        packages: what must be installed.
        install: how to get it.
        training_labels: labels of the steps that :meth:`training` gives; known without importing the library.
    """

    packages: ClassVar[tuple[str, ...]]
    install: ClassVar[str]
    training_labels: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def __init__(self, threads: int):
        """Import the library and let it use ``threads`` threads."""

    @classmethod
    def missing(cls) -> list[str]:
        """Packages that are not installed; looks for them without importing any."""
        return [package for package in cls.packages if importlib.util.find_spec(package) is None]

    def training(self, weights: Weights, batches: Batches) -> dict[str, Step]:
        """Steps of forward, cross-entropy, backward and SGD with momentum; each returns the loss."""
        return {}

    @abstractmethod
    def inference(self, weights: Weights, batches: Batches) -> dict[str, Step]:
        """Steps of forward alone; each returns the logits (N, 10)."""


class Gpuconv(Contender):
    """This library on the backend that is chosen when a step runs: captured, and operation by operation."""

    packages = ("gpuconv",)
    install = "pip install --editable ."
    training_labels = (OURS,)

    def __init__(self, threads: int):
        import gpuconv.models

        self._gpuconv = gpuconv

    def _model(self, weights: Weights) -> Any:
        model = self._gpuconv.models.LeNet5()
        model.load_state_dict(weights)
        return model.to(self._gpuconv.backends.current())

    def _ready(self, batches: Batches) -> list[tuple[Any, Any]]:
        backend = self._gpuconv.backends.current()
        return [(backend.asarray(images), backend.asarray(labels)) for images, labels in batches]

    def training(self, weights: Weights, batches: Batches) -> dict[str, Step]:
        steps = {}
        for label, capture in self._ways:
            model = self._model(weights)
            step = capture(training_step(model, self._gpuconv.optim.SGD(model.parameters(), **SGD)))
            steps[label] = partial(_take_turn, step, cycle(self._ready(batches)))
        return steps

    def inference(self, weights: Weights, batches: Batches) -> dict[str, Step]:
        no_grad, model = self._gpuconv.no_grad, self._model(weights).eval()

        def step(images: Any, labels: Any) -> Any:
            with no_grad():
                return model(images)

        return {label: partial(_take_turn, way(step), cycle(self._ready(batches))) for label, way in self._ways}

    @property
    def _ways(self) -> tuple[tuple[str, Callable[..., Any]], ...]:
        return (OURS, self._gpuconv.capture), (EAGER, lambda step: step)


def _take_turn(step: Callable[..., Any], turn: Iterator[tuple[Any, Any]]) -> Any:
    return step(*next(turn))


def torch_model(torch: Any, weights: Weights) -> Any:
    """LeNet-5 in PyTorch, on the CPU."""
    nn = torch.nn
    model = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 6, 5),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(6, 16, 5),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(400, 120),
            relu3=nn.ReLU(),
            fc2=nn.Linear(120, 84),
            relu4=nn.ReLU(),
            fc3=nn.Linear(84, 10),
        )
    )
    model.load_state_dict({name: torch.tensor(array) for name, array in weights.items()})
    return model


class Torch(Contender):
    """PyTorch on the CPU, in its default memory layout and in channels_last."""

    packages = ("torch",)
    install = "pip install torch"
    training_labels = ("torch eager", "torch channels_last")

    def __init__(self, threads: int):
        import torch

        self._torch = torch
        torch.set_num_threads(threads)

    def _variants(self, weights: Weights, batches: Batches) -> list[tuple[str, Any, list[tuple[Any, Any]]]]:
        torch = self._torch
        formats = (torch.contiguous_format, torch.channels_last)
        return [
            (
                label,
                torch_model(torch, weights).to(memory_format=memory_format),
                [
                    # A copy: torch.from_numpy would share memory with the other contenders.
                    (torch.tensor(images).contiguous(memory_format=memory_format), torch.tensor(labels))
                    for images, labels in batches
                ],
            )
            for label, memory_format in zip(self.training_labels, formats, strict=True)
        ]

    def training(self, weights: Weights, batches: Batches) -> dict[str, Step]:
        return {label: self._training_step(model, data) for label, model, data in self._variants(weights, batches)}

    def _training_step(self, model: Any, data: list[tuple[Any, Any]]) -> Step:
        torch, cross_entropy = self._torch, self._torch.nn.functional.cross_entropy
        # fused: the fastest of PyTorch's implementations of SGD; its default updates one parameter after the other.
        optimizer = torch.optim.SGD(model.parameters(), **SGD, fused=True)
        turn = cycle(data)

        def step() -> Any:
            images, labels = next(turn)
            loss = cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss.detach()

        return step

    def inference(self, weights: Weights, batches: Batches) -> dict[str, Step]:
        return {
            label: self._inference_step(model.eval(), data) for label, model, data in self._variants(weights, batches)
        }

    def _inference_step(self, model: Any, data: list[tuple[Any, Any]]) -> Step:
        inference_mode, turn = self._torch.inference_mode, cycle(data)

        def step() -> Any:
            images, _ = next(turn)
            with inference_mode():
                return model(images)

        return step


class OnnxRuntime(Contender):
    """ONNX Runtime on the CPU: inference alone."""

    packages = ("onnx", "onnxruntime")
    install = "pip install onnx onnxruntime"

    def __init__(self, threads: int):
        import onnxruntime

        self._options = onnxruntime.SessionOptions()
        self._options.intra_op_num_threads = threads
        self._options.inter_op_num_threads = 1
        self._options.log_severity_level = 3  # below errors, it reports on devices that it did not find
        self._onnxruntime = onnxruntime

    def inference(self, weights: Weights, batches: Batches) -> dict[str, Step]:
        session = self._onnxruntime.InferenceSession(
            _onnx_model(weights, batches[0][0].shape), self._options, providers=["CPUExecutionProvider"]
        )
        run, turn = session.run, cycle(batches)

        def step() -> Any:
            images, _ = next(turn)
            return run(None, {"images": images})[0]

        return {"onnxruntime": step}


def _onnx_model(weights: Weights, input_shape: tuple[int, ...]) -> bytes:
    """LeNet-5 as an ONNX file, for one batch size: ONNX Runtime plans best for shapes that it knows."""
    from onnx import TensorProto, helper, numpy_helper

    pool = {"kernel_shape": [2, 2], "strides": [2, 2]}
    nodes: list[Any] = []

    def add(op: str, *parameters: str, **attributes: Any) -> None:
        source = nodes[-1].output[0] if nodes else "images"
        nodes.append(helper.make_node(op, [source, *parameters], [f"{op}{len(nodes)}"], **attributes))

    for name in ("conv1", "conv2"):
        add("Conv", f"{name}.weight", f"{name}.bias")
        add("Relu")
        add("MaxPool", **pool)
    add("Flatten")
    for name in ("fc1", "fc2"):
        add("Gemm", f"{name}.weight", f"{name}.bias", transB=1)
        add("Relu")
    add("Gemm", "fc3.weight", "fc3.bias", transB=1)

    graph = helper.make_graph(
        nodes,
        "LeNet-5",
        inputs=[helper.make_tensor_value_info("images", TensorProto.FLOAT, list(input_shape))],
        outputs=[helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, [input_shape[0], 10])],
        initializer=[numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    # A format that ONNX Runtime 1.19 reads too; onnx would write its own newest.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


#: Libraries that gpuconv can be compared with, by the name that --peer takes.
PEERS: dict[str, type[Contender]] = {"torch": Torch, "onnxruntime": OnnxRuntime}


def initial_weights() -> Weights:
    """The weights from which every contender starts, under PyTorch's names."""
    import gpuconv.models

    gpuconv.manual_seed(0)
    return gpuconv.models.LeNet5().state_dict()


def digit_batches(batch: int) -> Batches:
    """Batches of the bundled digits, prepared as for training: float32 (batch, 1, 32, 32) and int64 (batch,).

    Real digits, since their zeros are part of the work: ReLU and pooling leave what a kernel may skip. Several batches,
    taken in turns, but not more than the bundled digits fill.
    """
    import numpy as np

    from gpuconv.data import InputTransform, load_dataset

    data = load_dataset("mnist-sample")
    transform = InputTransform.fit(data.train_images)
    count = max(1, min(_MOST_BATCHES, len(data.train_images) // batch))
    generator = np.random.default_rng(0)
    chosen = generator.integers(0, len(data.train_images), (count, batch))
    return [(transform(data.train_images[index]), data.train_labels[index].astype(np.int64)) for index in chosen]


# -- a convolution by itself -----------------------------------------------------------------------------------------


def convolutions(
    backend: str, operation: str, geometry: Conv2dGeometry, inputs: Sequence[Any], threads: int
) -> dict[str, Step]:
    """By label: the variants of a backend, then the peers.

    Args:
        backend: "numpy" or "numba".
        operation: a convolution, or a gradient of one.
        geometry: its geometry.
        inputs: NumPy arrays in the primitive's order.
        threads: how many a peer may have.

    Raises:
        gpuconv.BackendUnavailable: the backend cannot run here.
    """
    from gpuconv import backends

    made: dict[str, Step] = {}
    # Of a few multiply-adds the compiled backend has NumPy's way alone.
    with contextlib.suppress(ValueError):
        for candidate in backends.get(backend).candidates(operation, geometry, str(inputs[0].dtype)):
            made[f"{backend} {candidate.label}"] = _bound(candidate.run, *inputs)
    if not made:
        made["numpy im2col"] = _bound(getattr(backends.get("numpy"), operation), *inputs, geometry)
    if importlib.util.find_spec("torch") is not None:
        made["torch"] = _torch_convolution(operation, geometry, inputs, threads)
    if operation == "conv2d" and all(map(importlib.util.find_spec, ("onnx", "onnxruntime"))):
        made["onnxruntime"] = _onnxruntime_convolution(geometry, inputs, threads)
    return made


def _bound(function: Callable[..., Any], *arguments: Any) -> Step:
    return lambda: function(*arguments)


def _torch_convolution(operation: str, g: Conv2dGeometry, inputs: Sequence[Any], threads: int) -> Step:
    import torch

    torch.set_num_threads(threads)
    tensors = [None if array is None else torch.tensor(array) for array in inputs]
    (top, _), (left, _) = g.padding  # layers are padded alike on both sides
    options = {"stride": g.stride, "padding": (top, left), "dilation": g.dilation, "groups": g.groups}
    if operation == "conv2d":
        x, weight, bias = tensors

        def run() -> Any:
            with torch.inference_mode():
                return torch.nn.functional.conv2d(x, weight, bias, **options).numpy()

        return run
    grad, other = tensors
    if operation == "conv2d_grad_input":
        return lambda: torch.nn.grad.conv2d_input(g.input_shape, other, grad, **options).numpy()
    return lambda: torch.nn.grad.conv2d_weight(other, g.weight_shape, grad, **options).numpy()


def _onnxruntime_convolution(g: Conv2dGeometry, inputs: Sequence[Any], threads: int) -> Step:
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    x, weight, bias = inputs
    (top, bottom), (left, right) = g.padding
    node = helper.make_node(
        "Conv",
        ["x", "weight", "bias"],
        ["y"],
        strides=g.stride,
        pads=(top, left, bottom, right),
        dilations=g.dilation,
        group=g.groups,
    )
    graph = helper.make_graph(
        [node],
        "conv2d",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, g.input_shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, g.output_shape)],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(bias, "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": x})[0]


# -- memory ----------------------------------------------------------------------------------------------------------

_MEMORY_STEPS = 5


def peak_memory(label: str, *, batch: int, threads: int, backend: str) -> dict[str, float]:
    """Run this file in a new process and return what it prints.

    Call it before anything large is imported: on Linux a new process starts with the peak of the one that made it.

    Raises:
        subprocess.CalledProcessError: it failed; its messages stand on stderr.
    """
    arguments = [label, f"--batch={batch}", f"--threads={threads}", f"--backend={backend}"]
    process = [sys.executable, "-m", "bench.contenders", *arguments]
    result = subprocess.run(process, cwd=command.ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return {name: float(value) for name, value in json.loads(result.stdout).items()}


def peak_mb() -> float:
    """The peak memory of this process until now."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes on macOS, KiB elsewhere


def _noise(batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels made up: to load and prepare digits takes more memory than small batches add to it."""
    import numpy as np

    generator = np.random.default_rng(0)
    images = generator.standard_normal((batch, 1, 32, 32), dtype=np.float32)
    return images, generator.integers(0, 10, batch)


def _run(argv: Sequence[str] | None) -> int:
    contenders: list[type[Contender]] = [Gpuconv, *PEERS.values()]
    labels = {label: contender for contender in contenders for label in contender.training_labels}
    parser = Parser("contenders", "Peak memory of a library training LeNet-5.")
    parser.add_argument("label", choices=labels)
    parser.count_option("--batch", "N", "images a step", 256)
    parser.count_option("--threads", "N", "of the library", command.available_cores())
    parser.add_argument("--backend", default="auto", metavar="NAME", help="of gpuconv")
    arguments = parser.parse_args(argv)

    command.limit_threads(arguments.threads)
    import gpuconv

    # Beside a peer, gpuconv only prepares weights and digits: the memory of its compiler is not the peer's.
    backend = arguments.backend if arguments.label == OURS else "numpy"
    try:
        gpuconv.backends.get(backend)
    except (ValueError, gpuconv.BackendUnavailable) as error:
        raise Refused(str(error)) from None
    with gpuconv.use_backend(backend):
        contender = labels[arguments.label](arguments.threads)
        steps = contender.training(initial_weights(), [_noise(arguments.batch)])
        ready = peak_mb()
        for _ in range(_MEMORY_STEPS):
            steps[arguments.label]()
    print(json.dumps({"ready_mb": round(ready, 1), "peak_mb": round(peak_mb(), 1)}))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the memory of one. See :func:`bench.command.answer`."""
    return command.answer("bench.contenders", _run, argv)


if __name__ == "__main__":
    start(main)
