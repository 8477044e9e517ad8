"""On a GPU: every kernel at real sizes, training, arrays of other libraries, memory, the cache, compute-sanitizer.

`make gpu-test` runs these: without `conftest.py`, so that they need nothing but PyTorch, numba-cuda, CuPy and pytest,
and with NUMBA_ENABLE_CUDASIM=0, which decides that kernels go to the GPU. Everywhere else they are skipped.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.gpu


def _why_not() -> str | None:
    if os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0"):
        return "kernels run in the simulator here; `make gpu-test` runs these on a GPU"
    from gpuconv import backends

    if (why := backends.available()["cuda"]) is not None:
        return why
    torch = pytest.importorskip("torch", reason="the reference is PyTorch's")
    return None if torch.cuda.is_available() else f"PyTorch {torch.__version__} sees no GPU"


if (_reason := _why_not()) is not None:
    pytest.skip(_reason, allow_module_level=True)

import cupy  # noqa: E402
import torch  # noqa: E402
from support import captured_steps, device_functions, operation_cases  # noqa: E402
from support.lenet_training import trained  # noqa: E402

import gpuconv  # noqa: E402
from bench import contenders, layers, network, torch_ops, verify  # noqa: E402
from gpuconv import Tensor, backends, kernels, training, tuning  # noqa: E402
from gpuconv import functional as F  # noqa: E402

PLACE = verify.Place(torch, cupy, "cuda")
CHILD = Path(__file__).parent / "support" / "run_on_gpu.py"
#: Real sizes: LeNet at 128 images, the others at 32.
LAYERS = ("lenet5.*", "resnet50.*", "vgg16.*", "mobilenet2.depthwise-14")


def cases():
    for operation in torch_ops.OPERATIONS:
        for name, geometry in layers.LAYERS[operation].items():
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in LAYERS):
                for variant in kernels.VARIANTS[operation]:
                    yield pytest.param(operation, variant, geometry, id=f"{operation}-{name}-{variant}")


@pytest.mark.parametrize(("operation", "variant", "geometry"), list(cases()))
def test_every_tiling_at_real_size(operation, variant, geometry):
    """Within 1e-4 of float64 in norm, no element off by 1 %, each element written, twice the same bits."""
    module = kernels.load(operation, variant)
    if not (answer := module.supports(geometry)):
        pytest.skip(str(answer))
    verdicts = verify.verify(PLACE, operation, variant, geometry, module.tilings(geometry))
    wrong = {tiling: verdict.fault for tiling, verdict in verdicts.items() if verdict.fault}
    assert not wrong
    torch.cuda.empty_cache()


def float64_cases():
    for operation in torch_ops.OPERATIONS:
        for variant in kernels.VARIANTS[operation]:
            yield pytest.param(operation, variant, id=f"{operation}-{variant}")


@pytest.mark.parametrize(("operation", "variant"), list(float64_cases()))
def test_float64(operation, variant):
    """Each variant in double precision on LeNet's layers, to 1e-12."""
    module = kernels.load(operation, variant)
    geometries = [
        geometry
        for name, geometry in layers.LAYERS[operation].items()
        if fnmatch.fnmatchcase(name, "lenet5.*") and module.supports(geometry)
    ]
    if not geometries:
        pytest.skip("supports none of LeNet's layers")
    for geometry in geometries:
        tilings = module.tilings(geometry)[:1]
        (verdict,) = verify.verify(PLACE, operation, variant, geometry, tilings, dtype="float64").values()
        assert verdict.fault is None, geometry


@pytest.mark.parametrize("number", range(len(device_functions.FUNCTIONS)))
def test_every_operation_on_cupy_arrays(number):
    """Values and gradients equal the NumPy backend's; nothing on the way calls NumPy on a device array."""
    device_functions.compare(cupy, number)


@pytest.mark.parametrize("family", operation_cases.FAMILIES)
def test_every_call_on_cupy_arrays(family):
    """Values and gradients of each call that PyTorch judges on the host equal the NumPy backend's."""
    device_functions.compare_family(cupy, family)


#: What CuPy would do by cuBLAS, and what takes numbers from the host.
CAPTURED = ("mm", "bmm", "einsum(nchw,kc->nkhw)", "interpolate(bicubic, {'size': 7}, {})", "pad(reflect, (1, 2))")


@pytest.mark.parametrize("name", CAPTURED)
def test_calls_in_a_captured_step(name):
    """Values and gradients equal the NumPy backend's, of the values of a later call."""
    cases = [case for family in operation_cases.FAMILIES.values() for case in family if case.name == name]
    assert cases
    device_functions.compare_captured(cupy, cases[:1])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types(dtype):
    """A network in a half type: logits and gradients as on the host."""
    device_functions.compare_half(cupy, getattr(gpuconv, dtype))


@pytest.mark.parametrize("name", ["resnet18"])
def test_networks_train_as_on_the_host(name):
    """Logits and the losses of captured steps in float32, running statistics among what they change."""
    found = {}
    for backend in ("numpy", "cuda"):
        with gpuconv.use_backend(backend):
            model, images, labels = network.network(name, 4, 64)
            model.to(backend).eval()
            x = Tensor(backends.get(backend).asarray(images))
            with gpuconv.no_grad():
                logits = model(x).numpy()
            model.train()
            step = contenders.training_step(model, gpuconv.optim.SGD(model.parameters(), lr=1e-5, momentum=0.9))
            run = gpuconv.capture(step) if backend == "cuda" else step
            losses = [run(x, labels).item() for _ in range(5)]
            statistics = {key: value.numpy() for key, value in model.named_buffers()}
        found[backend] = logits, losses, statistics
    ours, theirs = found["cuda"], found["numpy"]
    np.testing.assert_allclose(ours[0], theirs[0], rtol=0, atol=1e-3 * np.abs(theirs[0]).max())
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-2)
    for key, value in theirs[2].items():
        np.testing.assert_allclose(ours[2][key], value, rtol=0, atol=1e-2 * max(1, np.abs(value).max()), err_msg=key)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("captured", [False, True])
def test_lenet_trains_as_on_the_host(captured, dtype):
    """The losses of 100 steps, step by step and by a CUDA graph; the first gradients to 1e-4 of the largest.

    In float64 to 1e-6, by themselves. In float32 each step begins with the host's weights: a unit so near to zero that
    it is positive on one backend and not on the other parts them, see docs/questions.md.
    """
    train_steps = functools.partial(trained, steps=100, dtype=dtype, batch=32, captured=captured)
    theirs, their_gradients, weights, _ = train_steps("numpy")
    ours, our_gradients, _, model = train_steps("cuda", weights=weights if dtype == "float32" else ())
    assert all(type(parameter.data) is cupy.ndarray for parameter in model.parameters())
    np.testing.assert_allclose(ours, theirs, rtol={"float32": 1e-4, "float64": 1e-6}[dtype])
    for a, b in zip(our_gradients, their_gradients, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())


def test_captured_steps():
    """What users do to them, see each check: as on the stand-in for CuPy. In one test, as they compile the same."""
    for check in captured_steps.CHECKS:
        try:
            check(cupy)
        except Exception as error:
            raise AssertionError(f"{check.__name__}: {error}") from error


@pytest.mark.parametrize("augment", [False, True])
def test_fit_resume_evaluate_predict(tmp_path, caplog, augment):
    """The training loop from end to end; a resumed run has the losses of one that was not stopped, bit for bit.

    By a CUDA graph: nothing is said of one that could not be captured. On the host it learns the same images.
    """
    pytest.importorskip("safetensors", reason="checkpoints are safetensors files")
    config = training.TrainConfig(epochs=2, backend="cuda", batch_size=64, augment=augment)

    class Stop(Exception):
        pass

    def stop(event):
        if isinstance(event, training.EpochEnd):
            raise Stop

    with pytest.raises(Stop):
        training.fit(config, tmp_path / "stopped", on_event=stop)
    resumed = training.fit(config, tmp_path / "stopped", resume=True)
    straight = training.fit(config, tmp_path / "straight")
    assert not [record.getMessage() for record in caplog.records if record.name == "gpuconv.training"]
    assert [epoch.train_loss for epoch in resumed.history] == [epoch.train_loss for epoch in straight.history]
    for ours, theirs in zip(resumed.model.get_weights(), straight.model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert resumed.test_accuracy > 0.9
    host = training.fit(dataclasses.replace(config, backend="numpy"), tmp_path / "host")
    np.testing.assert_allclose(straight.history[0].train_loss, host.history[0].train_loss, rtol=1e-2)
    digits = gpuconv.data.load_dataset("mnist-sample").test_images[:50]
    on_device = gpuconv.load(tmp_path / "straight").to("cuda").predict(cupy.asarray(digits))
    np.testing.assert_allclose(on_device, straight.model.to("cpu").predict(digits), rtol=1e-3, atol=1e-5)


# -- arrays ----------------------------------------------------------------------------------------------------------


def test_arrays_of_each_library_in_and_out():
    """CuPy, torch and Numba: the result is of the caller's kind, on the same memory as the Tensor in between."""
    from numba import cuda

    host = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    w = np.ones((4, 3, 3, 3), np.float32)
    expected = gpuconv.backends.get("numpy").conv2d(
        host, w, None, gpuconv.geometry.Conv2dGeometry.of(host.shape, w.shape)
    )
    for given, kind in (
        (cupy.asarray(host), cupy.ndarray),
        (torch.from_numpy(host).cuda(), torch.Tensor),
        (cuda.to_device(host), type(cuda.to_device(host))),
    ):
        shared = Tensor(given)
        assert type(shared.data) is cupy.ndarray
        assert shared.data.data.ptr == cupy.asarray(given).data.ptr
        y = F.conv2d(given, w)
        assert isinstance(y, kind)
        np.testing.assert_allclose(Tensor(y).numpy(), expected, rtol=1e-4, atol=1e-5)
    tensor = Tensor(cupy.asarray(host))
    assert torch.from_dlpack(tensor).data_ptr() == tensor.data.data.ptr
    odd = cupy.asarray(host).transpose(0, 1, 3, 2)
    np.testing.assert_allclose(
        F.conv2d(odd, w).get(), F.conv2d(np.ascontiguousarray(host.transpose(0, 1, 3, 2)), w), rtol=1e-5, atol=1e-6
    )


def test_work_is_queued_on_the_callers_stream():
    """Input that CuPy or torch is still computing on a stream is waited for, and so is the result."""
    size, w = 2**13, np.full((1, 1, 1, 1), 2, np.float32)
    for _ in range(5):
        with cupy.cuda.Stream(non_blocking=True) as stream:
            a = cupy.ones((size, size), np.float32)
            late = (a @ a)[:64, :64].reshape(1, 1, 64, 64)
            y = F.conv2d(late, w)
            stream.synchronize()
            assert (y.get() == 2 * size).all()
        with torch.cuda.stream(torch.cuda.Stream()):
            a = torch.ones((size, size), device="cuda")
            late = (a @ a)[:64, :64].reshape(1, 1, 64, 64)
            z = F.conv2d(late, w) + 1
            assert (z.cpu().numpy() == 2 * size + 1).all()


def test_out_of_memory_and_on():
    """The error says how much was asked for and what is free; after it, smaller work runs."""
    pool = cupy.get_default_memory_pool()
    x = cupy.zeros((8, 16, 64, 64), np.float32)
    pool.free_all_blocks()
    pool.set_limit(size=pool.total_bytes() + 2**20)
    try:
        with pytest.raises(MemoryError, match=r"the GPU is out of memory: .* [\d,]+ bytes .* MiB are free"):
            F.conv2d(x, np.ones((512, 16, 1, 1), np.float32))
    finally:
        pool.set_limit(size=0)
    assert F.conv2d(x[:1], np.ones((1, 16, 1, 1), np.float32)).shape == (1, 1, 64, 64)


def test_nan_and_infinity_go_through():
    """As on the host."""
    x = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
    x[0, 0, 1, 1], x[0, 0, 3, 3] = np.nan, np.inf
    w = np.ones((2, 1, 2, 2), np.float32)
    for function in (F.relu, lambda x: F.max_pool2d(x, 2), lambda x: F.conv2d(x, w)):
        with gpuconv.use_backend("numpy"):
            expected = function(x)
        np.testing.assert_array_equal(function(cupy.asarray(x)).get(), expected)


@pytest.mark.parametrize("layer", layers.CONVOLUTIONS)
def test_the_rules_choice_runs(layer):
    """What tuning takes for a convolution, with its workspace, through the backend; and `explain` names the device."""
    backend, geometry = backends.get("cuda"), layers.CONVOLUTIONS[layer]
    x, w = (torch.randn(shape, device="cuda") for shape in (geometry.input_shape, geometry.weight_shape))
    y = torch.from_dlpack(backend.conv2d(cupy.from_dlpack(x), cupy.from_dlpack(w), None, geometry))
    (wanted,) = verify.reference(PLACE, "conv2d", geometry, [x, w, torch.zeros(geometry.k, device="cuda"), y])
    verdict = verify.judge("conv2d", geometry, "float32", torch, [y], [wanted])
    assert verdict.fault is None, tuning.choose("conv2d", geometry)
    assert "compute capability" in backend.describe()
    del x, w, y, wanted
    torch.cuda.empty_cache()


# -- in processes of their own ---------------------------------------------------------------------------------------


def child(*arguments, prefix=(), **environment):
    command = [*prefix, sys.executable, str(CHILD), *arguments]
    paths = os.pathsep.join(filter(None, (str(CHILD.parents[2]), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, **environment, "PYTHONPATH": paths}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=540)


def test_the_next_process_loads_what_this_one_compiled(tmp_path):
    """A GPU runs what the cache kept: nothing is compiled, and the result is the same."""
    first = child("compiled", GPUCONV_CACHE=str(tmp_path))
    second = child("compiled", GPUCONV_CACHE=str(tmp_path))
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    (compiled, result), (nothing, same) = first.stdout.splitlines(), second.stdout.splitlines()
    assert int(compiled) > 0
    assert int(nothing) == 0
    assert result == same


@pytest.fixture(scope="module")
def sanitizer():
    """compute-sanitizer, which comes with the CUDA toolkit; what it is to watch has been compiled."""
    found = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if found is None:
        pytest.skip("compute-sanitizer is not installed; it comes with the CUDA toolkit")
    compiled = child("compile_variants")
    assert compiled.returncode == 0, compiled.stderr
    return found


@pytest.mark.parametrize(("tool", "fault"), [("memcheck", "write_out_of_bounds"), ("racecheck", "race")])
def test_compute_sanitizer(sanitizer, tool, fault):
    """No access out of bounds, no race in shared memory, in any variant on small layers; a planted one is found."""
    # Of kernels, not of the driver: to ask that for a function which it lacks is an error to memcheck.
    kernels_alone = ("--report-api-errors", "no") if tool == "memcheck" else ()
    prefix = (sanitizer, "--tool", tool, "--error-exitcode", "9", *kernels_alone)
    planted = child(fault, prefix=prefix)
    if planted.returncode != 9:
        pytest.skip(f"{tool} does not find a planted fault on this machine: {planted.stdout[-300:]}")
    # Each array is an allocation of its own, so that what lies beside it belongs to nobody.
    clean = child("variants", prefix=prefix, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    assert clean.returncode == 0, clean.stdout[-3000:] + clean.stderr[-1000:]
