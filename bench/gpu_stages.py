"""The stages of ``python -m bench.gpu_report``, each in a process of its own.

A stage writes ``DIR/STAGE.json`` anew with every result, so that one that is stopped keeps what it has. Exit code 0
says that nothing was wrong, 1 that something was, 2 that this machine cannot do it, in one line, 3 that the stage does
not apply here; why stands under ``not_run``.

Nothing here needs more than gpuconv, PyTorch for a GPU and, for the tests, pytest; with pytest-xdist these are spread
over the cores.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import faulthandler
import functools
import importlib.util
import logging
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bench import command, compiling
from bench.command import Parser, Refused, say, start, whole_numbers, write

FAILED, NOT_RUN = command.WRONG, 3
#: Seconds that the parts of the first contact may take together, compiling and references aside.
_CONTACT_LIMIT = 30
#: Batches and steps of the captured LeNet there; the learning rate changes half way.
_BATCHES, _STEPS, _LR = (32, 64, 512), 20, 0.02
#: How far from the CPU's the accuracy of a training run may be.
_ACCURACY_MARGIN = 0.01
_TESTS = Path(__file__).resolve().parent.parent / "tests"


class Results:
    """What a stage has found; on disk as soon as it is there."""

    def __init__(self, path: Path):
        self._path = path
        self.document: dict[str, Any] = {}

    def put(self, **found: Any) -> None:
        self.document.update(found)
        write(self.document, self._path)


# -- environment -----------------------------------------------------------------------------------------------------


def refuse_versions() -> None:
    """Refuse what is known not to work together, before any of it is imported.

    Raises:
        Refused: a package or this one is missing, or NumPy is too new for numba-cuda; one line.
    """
    found = command.versions("numpy", "numba-cuda", "torch")
    for package in ("numpy", "numba-cuda", "torch"):
        if package not in found:
            raise Refused(f"{package} is not installed")
    if _numbers(found["numba-cuda"]) <= (0, 30, 4) and _numbers(found["numpy"]) >= (2, 5):
        raise Refused(
            f"NumPy {found['numpy']} with numba-cuda {found['numba-cuda']}: nothing compiles (it calls np.row_stack, "
            "which NumPy 2.5 has no more); pip install 'numpy<2.5'"
        )
    if importlib.util.find_spec("gpuconv.kernels") is None:
        raise Refused(
            "gpuconv is not installed for this Python: python3 -m pip install --no-deps --no-build-isolation -e ."
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def environment(results: Results, arguments: argparse.Namespace) -> int:
    """Versions, device and driver; refused in one line where the others could not run."""
    refuse_versions()
    results.put(machine=command.describe())
    from bench import device

    place = device.device_place()
    results.put(machine={**command.describe(), "gpu": device.gpu_facts(place)})
    return 0


# -- first contact ---------------------------------------------------------------------------------------------------


def contact(results: Results, arguments: argparse.Namespace) -> int:
    """A convolution, groups in float64, pooling, LeNet eager and captured, torch arrays: each beside NumPy."""
    import gpuconv

    backend = arguments.backend
    if (why := gpuconv.backends.available()[backend]) is not None:
        raise Refused(f"the {backend} backend is not available: {why}")
    batches, steps = arguments.batches or list(_BATCHES), arguments.steps
    # What takes long and needs no GPU comes before the clock runs; and beside the processes that compile.
    start = time.perf_counter()
    # Drawn before there is a thread: the generator of initial weights is everybody's.
    _weights()
    thread = concurrent.futures.ThreadPoolExecutor(1)
    eagerly = thread.submit(_losses, "numpy", batches[0], 6, "float32")
    losses = {batch: thread.submit(_losses, "numpy", batch, steps, "float64") for batch in batches}
    work = [(compiling.compile_chosen, *one) for one in _contact_layers()]
    recorded = [(kind, batch) for kind in ("step", "float64") for batch in batches]
    work += [(compiling.compile_recorded, *one) for one in compiling.recorded_work(recorded)]
    count = compiling.compile_all(compiling.call, work, arguments.jobs)
    eager, references = eagerly.result(), {batch: future.result() for batch, future in losses.items()}
    results.put(compiled=count, compile_seconds=time.perf_counter() - start, parts=[])

    faulthandler.dump_traceback_later(arguments.seconds or _CONTACT_LIMIT, exit=True)

    def captured(batch: int) -> Callable[[], str]:
        return lambda: _compare_captured(backend, batch, steps, references[batch])

    parts: list[tuple[str, Callable[[], str]]] = [
        ("available", lambda: gpuconv.backends.get(backend).describe()),
        ("convolution", lambda: _convolution(backend, _SMALL, "float32", 1e-4)),
        ("groups in float64", lambda: _convolution(backend, _GROUPED, "float64", 1e-10)),
        ("pooling and ReLU", lambda: _pooling(backend)),
        ("LeNet, eager", lambda: _compare_eager(backend, batches[0], eager)),
        *(
            (
                f"LeNet captured, batch {batch}",
                functools.partial(_compare_captured, backend, batch, steps, references[batch]),
            )
            for batch in batches
        ),
        ("torch in and out", _torch_arrays),
    ]
    for name, part in parts:
        entry: dict[str, Any] = {"part": name, "right": None, "found": "did not come to its end"}
        results.document["parts"].append(entry)
        results.put()
        began = time.perf_counter()
        try:
            entry |= {"found": part(), "right": True}
        except Exception as error:  # of many kinds: each part has its own answer
            traceback.print_exc()
            entry |= {"found": " ".join(f"{type(error).__name__}: {error}".split())[:600], "right": False}
        results.put(parts=results.document["parts"][:-1] + [{**entry, "seconds": time.perf_counter() - began}])
        say(f"{'right' if entry['right'] else 'WRONG'}: {name}: {entry['found']}")
    faulthandler.cancel_dump_traceback_later()
    return 0 if all(entry["right"] for entry in results.document["parts"]) else FAILED


#: Shapes of image and weight, and options, of the convolutions of the first contact.
_SMALL: tuple[Any, ...] = ((4, 3, 16, 16), (8, 3, 3, 3), {"padding": 1})
_GROUPED: tuple[Any, ...] = ((2, 4, 9, 17), (6, 2, 5, 5), {"padding": 2, "groups": 2, "stride": 2})
_TORCH: tuple[Any, ...] = ((2, 3, 8, 8), (4, 3, 3, 3), {})
_POOLED = (4, 6, 28, 28)


def _contact_layers() -> list[tuple[Any, ...]]:
    """Arguments of ``compiling.compile_chosen``."""
    from gpuconv.geometry import Conv2dGeometry, Pool2dGeometry

    found: list[tuple[Any, ...]] = [
        ("conv2d", Conv2dGeometry.of(x, weight, **options), dtype, {"absent": ("bias",)})
        for (x, weight, options), dtype in ((_SMALL, "float32"), (_GROUPED, "float64"), (_TORCH, "float32"))
    ]
    return [*found, ("relu", _POOLED, "float32"), ("max_pool2d", Pool2dGeometry.of(_POOLED, 2), "float32")]


def _on_both(backend_name: str, function: Callable[..., Any], arrays: Sequence[Any], rtol: float) -> str:
    """Call a function with the backend's arrays, and on the NumPy backend; the results have to agree."""
    import numpy as np

    import gpuconv

    with gpuconv.use_backend("numpy"):
        wanted = function(*arrays)
    with gpuconv.use_backend(backend_name):
        backend = gpuconv.backends.current()
        found = backend.to_numpy(function(*map(backend.asarray, arrays)))
    np.testing.assert_allclose(found, wanted, rtol=rtol, atol=rtol)
    return f"{found.shape}, {found.dtype}"


def _convolution(backend: str, case: tuple[Any, ...], dtype: str, rtol: float) -> str:
    import numpy as np

    from gpuconv import functional as F

    generator, (x, weight, options) = np.random.default_rng(0), case
    arrays = [generator.standard_normal(shape).astype(dtype) for shape in (x, weight)]
    return _on_both(backend, lambda *given: F.conv2d(*given, **options), arrays, rtol)


def _pooling(backend: str) -> str:
    import numpy as np

    from gpuconv import functional as F

    x = np.random.default_rng(0).standard_normal(_POOLED).astype(np.float32)
    return _on_both(backend, lambda x: F.max_pool2d(F.relu(x), 2), [x], 1e-6)


@functools.cache
def _weights() -> Any:
    from bench.contenders import initial_weights

    return initial_weights()


@functools.cache
def _batches(batch: int) -> Any:
    from bench.contenders import digit_batches

    return digit_batches(batch)


def _losses(backend_name: str, batch: int, steps: int, dtype: str, *, captured: bool = False) -> list[float]:
    """Losses of LeNet's first training steps on the bundled digits; half way the learning rate is halved."""
    import gpuconv
    from bench.contenders import training_step
    from gpuconv import Tensor, models, optim

    with gpuconv.use_backend(backend_name):
        backend = gpuconv.backends.current()
        model = models.LeNet5()
        model.load_state_dict(_weights())
        for parameter in model.parameters():
            parameter.data = parameter.data.astype(dtype)
        model.to(backend)
        optimizer = optim.SGD(model.parameters(), lr=_LR, momentum=0.9)

        step = training_step(model, optimizer)
        run, batches, losses = gpuconv.capture(step) if captured else step, _batches(batch), []
        for number in range(steps):
            if number == steps // 2:
                optimizer.lr = _LR / 2
            images, labels = batches[number % len(batches)]
            losses.append(float(run(Tensor(images.astype(dtype)), labels)))
    return losses


def _compare_eager(backend: str, batch: int, wanted: list[float]) -> str:
    import numpy as np

    found = _losses(backend, batch, len(wanted), "float32")
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    return f"losses of batch {batch} from {found[0]:.4f} to {found[-1]:.4f}, as by NumPy"


def _compare_captured(backend: str, batch: int, steps: int, wanted: list[float]) -> str:
    """In float64 beside NumPy's and the eager step's; in float32 beside the eager step's."""
    import numpy as np

    eager = _losses(backend, batch, steps, "float64")
    np.testing.assert_allclose(eager, wanted, rtol=1e-9, err_msg="eager, float64, beside NumPy")
    found = _losses(backend, batch, steps, "float64", captured=True)
    np.testing.assert_allclose(found, eager, rtol=1e-9, err_msg="captured, float64, beside eager")
    single = _losses(backend, batch, steps, "float32")
    captured = _losses(backend, batch, steps, "float32", captured=True)
    np.testing.assert_allclose(captured, single, rtol=1e-5, err_msg="captured, float32, beside eager")
    furthest = float(np.max(np.abs(np.array(found) / np.array(wanted) - 1)))
    return f"{steps} losses within {furthest:.0e} of NumPy's, float64"


def _torch_arrays() -> str:
    import torch

    from gpuconv import functional as F

    if not torch.cuda.is_available():
        return "left out: PyTorch sees no GPU"  # in the simulator; on a GPU the environment was refused
    torch.backends.cudnn.allow_tf32 = False
    x, weight = (torch.randn(shape, device="cuda") for shape in _TORCH[:2])
    y = F.conv2d(x, weight)
    if not (isinstance(y, torch.Tensor) and y.is_cuda):
        raise TypeError(f"a {type(y).__name__} came out")
    torch.testing.assert_close(y, torch.nn.functional.conv2d(x, weight), rtol=1e-3, atol=1e-3)
    return f"{tuple(y.shape)} on {y.device}"


# -- compiling -------------------------------------------------------------------------------------------------------


def compile_everything(results: Results, arguments: argparse.Namespace) -> int:
    """The kernels of the stages that follow, in their order; what is left when the time is up is compiled there."""
    work = list(kernels_of_the_stages(arguments.batches or [64, 512]))
    results.put(wanted=len(work), jobs=arguments.jobs)
    start = time.perf_counter()
    count = compiling.compile_all(compiling.call, work, arguments.jobs, arguments.seconds)
    seconds = time.perf_counter() - start
    results.put(kernels=count, seconds=seconds, in_time=arguments.seconds is None or seconds < arguments.seconds)
    return 0 if count else FAILED


def kernels_of_the_stages(batches: Sequence[int]) -> Iterator[tuple[Any, ...]]:
    """Work for ``compiling.call``, what is needed first coming first."""
    from bench import gpu, layers
    from gpuconv import kernels
    from gpuconv.training import TrainConfig

    batch = TrainConfig().batch_size
    of_training: list[tuple[Any, ...]] = [(kind, batch) for kind in ("step", "decayed", "eager", "around")]
    of_training += [("inference", one) for one in (256, batch)]
    for one in compiling.recorded_work(of_training):
        yield (compiling.compile_recorded, *one)
    for one in compiling.step_work(batches):
        yield (compiling.compile_recorded, *one)
    for dtype in "float32", "float16":
        for one in gpu.compile_work(gpu.cases(quick=True), True, dtype):
            yield (compiling.compile_kernels, *one)
    # tests/test_gpu.py: training with augmentation, networks, every variant in float64, what the rule takes for each
    # convolution.
    for one in compiling.recorded_work([("decayed", 64), ("around", 64), ("moved", 64)]):
        yield (compiling.compile_recorded, *one)
    for one in compiling.recorded_work([("network", "resnet18", 4, 64)]):
        yield (compiling.compile_recorded, *one)
    for operation, named in layers.LAYERS.items():
        for name, geometry in named.items():
            for variant in kernels.VARIANTS.get(operation, ()) if name.startswith("lenet5.") else ():
                yield compiling.compile_kernels, operation, variant, geometry, "float64", 1
    for geometry in layers.CONVOLUTIONS.values():
        yield compiling.compile_chosen, "conv2d", geometry, "float32", {"absent": ("bias",)}
    for one in sanitized_kernels(layers_each=1, tilings_each=1):
        yield (compiling.compile_kernels, *one)


def sanitized_kernels(layers_each: int, tilings_each: int) -> Iterator[tuple[str, str, Any, str, int]]:
    """What runs under compute-sanitizer: every variant on small layers. Arguments of ``compiling.compile_kernels``."""
    from bench import layers
    from gpuconv import kernels
    from gpuconv.kernels.operations import OPERATIONS

    for operation, variants in kernels.VARIANTS.items():
        described, named = OPERATIONS[operation], layers.LAYERS[operation]
        for name in list(named)[:layers_each]:
            geometry = described.small(named[name], 16)
            for variant in variants:
                yield operation, variant, geometry, "float32", tilings_each


# -- training --------------------------------------------------------------------------------------------------------


def training(results: Results, arguments: argparse.Namespace) -> int:
    """``gpuconv train`` with its defaults on the GPU, then on the CPU: the accuracies have to be alike."""
    from gpuconv import training

    said: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    logging.getLogger("gpuconv.training").addHandler(Handler())
    with tempfile.TemporaryDirectory() as folder:
        for label, backend in (("gpu", arguments.backend), ("cpu", "numba")):
            epochs: list[dict[str, Any]] = []
            images = 0

            def note(event: Any, label: str = label, epochs: list[dict[str, Any]] = epochs) -> None:
                nonlocal images
                if isinstance(event, training.Started):
                    images = event.train_images
                if isinstance(event, training.EpochEnd):
                    epochs.append(
                        {"loss": event.train_loss, "accuracy": event.train_accuracy, "seconds": event.seconds}
                    )
                    results.put(**{label: {"epochs": epochs}})

            config = training.TrainConfig(backend=backend, epochs=arguments.epochs or training.TrainConfig().epochs)
            result = training.fit(config, Path(folder) / label, on_event=note)
            found = {
                "backend": result.backend,
                "test_accuracy": result.test_accuracy,
                "seconds": result.seconds,
                "images_per_second": images / statistics.median(epoch["seconds"] for epoch in epochs),
                "said": list(said),  # what could not be captured, for instance
                "epochs": epochs,
            }
            results.put(**{label: found})
            said.clear()
    ours, cpu = results.document["gpu"], results.document["cpu"]
    if ours["said"]:
        say(f"training said: {ours['said'][0]}")
    # Written so that a NaN fails.
    right = ours["test_accuracy"] >= cpu["test_accuracy"] - _ACCURACY_MARGIN
    results.put(right=bool(right and not ours["said"]))
    return 0 if results.document["right"] else FAILED


# -- tests -----------------------------------------------------------------------------------------------------------


class Recorder:
    """A plugin of pytest: the outcome of each test as soon as it is known; ends the session when its time is over."""

    def __init__(self, results: Results, seconds: float | None):
        self._results = results
        self._end = None if seconds is None else time.monotonic() + seconds
        self._session: Any = None
        results.put(passed=0, skipped={}, failed={}, slowest={}, stopped=False)

    def pytest_sessionstart(self, session: Any) -> None:
        self._session = session

    def pytest_collection_finish(self, session: Any) -> None:
        if session.items:
            self._results.put(wanted=len(session.items))

    def node_collection_finished(self, node: Any, ids: Sequence[str]) -> None:
        """With pytest-xdist, whose hook :func:`_pytest` makes of it, of each process."""
        self._results.put(wanted=len(ids))

    def pytest_runtest_logreport(self, report: Any) -> None:
        found, name = self._results.document, report.nodeid.rpartition("::")[2]
        if report.failed:
            message = getattr(getattr(report.longrepr, "reprcrash", None), "message", str(report.longrepr))
            found["failed"][name] = " ".join(message.split())[:600]
        elif report.skipped:
            found["skipped"][name] = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
        elif report.when == "call":
            found["passed"] += 1
        if report.when == "call":
            slowest = sorted([*found["slowest"].items(), (name, round(report.duration, 1))], key=lambda one: -one[1])
            found["slowest"] = dict(slowest[:10])
        self._results.put()
        if self._end is not None and time.monotonic() > self._end:
            self._results.put(stopped=True)
            self._session.shouldstop = "the time is over"


def _pytest(results: Results, arguments: argparse.Namespace, keyword: str, most_processes: int) -> int:
    if importlib.util.find_spec("pytest") is None:
        results.put(not_run="pytest is not installed")
        return NOT_RUN
    import pytest

    if importlib.util.find_spec("xdist") is not None:
        optional = pytest.hookimpl(optionalhook=True)
        Recorder.pytest_xdist_node_collection_finished = optional(  # type: ignore[attr-defined]
            Recorder.node_collection_finished
        )
    jobs = min(arguments.jobs, most_processes)
    spread = ["-n", str(jobs)] if jobs > 1 and importlib.util.find_spec("xdist") is not None else []
    command = ["--noconftest", "-m", "gpu", "-W", "default", "-W", "error:::gpuconv", "-p", "no:cacheprovider", "-q"]
    given = [*command, *spread, "-k", keyword, str(arguments.tests)]
    code = pytest.main(given, plugins=[Recorder(results, arguments.seconds)])
    found = results.document
    if found["failed"]:
        return FAILED
    if not found["passed"]:
        reasons = list(found["skipped"].values()) or [f"pytest ended with {int(code)}, and no test was run"]
        results.put(not_run=reasons[0])
        return NOT_RUN if found["skipped"] or found["stopped"] else FAILED
    return 0 if found["stopped"] else int(code)


def functional_tests(results: Results, arguments: argparse.Namespace) -> int:
    """``tests/test_gpu.py`` without real sizes and compute-sanitizer."""
    return _pytest(results, arguments, "not real_size and not sanitizer", 12)


def real_sizes(results: Results, arguments: argparse.Namespace) -> int:
    """Every tiling at real sizes, for the time that there is."""
    # Each holds references in float64 on the device, of some gigabytes.
    return _pytest(results, arguments, "real_size", 6)


def sanitizer(results: Results, arguments: argparse.Namespace) -> int:
    """Memcheck and racecheck of every variant on a small layer, side by side; each first on a planted fault."""
    tool = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if tool is None:
        results.put(not_run="compute-sanitizer is not installed; it comes with the CUDA toolkit")
        return NOT_RUN
    # Each array an allocation of its own: what lies beside it belongs to nobody.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(_TESTS.parent), os.environ.get("PYTHONPATH"))))

    def begin(name: str, *job: str) -> subprocess.Popen[str]:
        # Of kernels, not of the driver: to ask that for a function which it lacks is an error to memcheck.
        options = ["--error-exitcode", "9", *(["--report-api-errors", "no"] if name == "memcheck" else [])]
        command = [tool, "--tool", name, *options, sys.executable, str(_TESTS / "support" / "run_on_gpu.py"), *job]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=environment
        )

    faults = {"memcheck": "write_out_of_bounds", "racecheck": "race"}
    planted = {name: begin(name, fault) for name, fault in faults.items()}
    clean = {name: begin(name, "variants", "1", "1") for name in faults}
    code = 0
    for name in faults:
        output = planted[name].communicate()[0]
        if planted[name].returncode != 9:
            clean[name].kill()
            clean[name].communicate()
            results.put(**{name: "does not find a planted fault here: " + " ".join(output.split())[-300:]})
            continue
        output = clean[name].communicate()[0]
        print(output)
        if clean[name].returncode:
            code = FAILED
        results.put(**{name: "clean" if clean[name].returncode == 0 else " ".join(output.split())[-600:]})
    if all(text.startswith("does not") for text in results.document.values()):
        results.put(not_run=next(iter(results.document.values())))
        return NOT_RUN
    return code


STAGES: dict[str, Callable[[Results, argparse.Namespace], int]] = {
    "environment": environment,
    "contact": contact,
    "compile": compile_everything,
    "training": training,
    "tests": functional_tests,
    "sanitizer": sanitizer,
    "real-sizes": real_sizes,
}


def _run(argv: Sequence[str] | None) -> int:
    parser = Parser("gpu_stages", "One stage of bench.gpu_report.")
    add = parser.add_argument
    add("stage", choices=STAGES)
    add("--out", type=Path, required=True, metavar="DIR", help="the folder for STAGE.json")
    parser.jobs_option()
    add("--seconds", type=command.seconds, metavar="S", help="the stage ends by itself after so many, if it can")
    add("--batches", type=whole_numbers, metavar="N,N", help="of LeNet")
    parser.count_option("--steps", "N", "of the captured LeNet", _STEPS)
    parser.count_option("--epochs", "N", "of training; default: gpuconv train's")
    add("--backend", default="cuda", metavar="NAME", help="of contact and training; default: cuda")
    add("--tests", type=Path, default=_TESTS / "test_gpu.py", metavar="FILE", help="default: tests/test_gpu.py")
    arguments = parser.parse_args(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = Results(arguments.out / f"{arguments.stage}.json")
    try:
        return STAGES[arguments.stage](results, arguments)
    except Refused as error:
        results.put(refused=str(error))
        raise


def main(argv: Sequence[str] | None = None) -> int:
    """Run a stage; see the module for the exit codes."""
    return command.answer("bench.gpu_stages", _run, argv)


if __name__ == "__main__":
    start(main)
