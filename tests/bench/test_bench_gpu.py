"""The benchmark of kernels on a GPU, all but the GPU: what is right, how samples are taken, files, tables, refusals.

Kernels run in the simulator on small layers; a clock stands in for the device's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import json
import math
import types

import numpy as np
import pytest
from support import sampling

pytest.importorskip("numba_cuda", reason="kernels are written for numba-cuda")
torch = pytest.importorskip("torch", reason="the reference is PyTorch's")
simulator = pytest.importorskip("gpuconv.lab.simulator", reason="needs greenlet", exc_type=ImportError)
try:
    simulator.activate()
except RuntimeError as refusal:
    pytest.skip(str(refusal), allow_module_level=True)

from bench import compiling, device, gpu, layers, lenet, lenet_gpu, report, step, torch_ops, verify  # noqa: E402 - after the simulator
from gpuconv import backends, kernels  # noqa: E402
from gpuconv.backends.cuda.graph import SimulatedGraph  # noqa: E402
from gpuconv.geometry import Conv2dGeometry, Pool2dGeometry  # noqa: E402
from gpuconv.kernels.operations import OPERATIONS  # noqa: E402
from gpuconv.tuning import measure  # noqa: E402

PLACE = verify.Place(torch, np, "cpu")
CONV = Conv2dGeometry.of((2, 3, 7, 6), (4, 3, 3, 3), padding=1)
POOL = Pool2dGeometry.of((2, 3, 7, 6), 3, stride=2, padding=1)


def simulated_threads(module, geometry, tiling):
    """How many threads the simulator would run."""
    return sum(math.prod(launch.grid + launch.block) for launch in module.launches(geometry, tiling, "float32"))


def no_workspace(geometry, tiling):
    return 0


class Clock:
    """Calls, and times by the order of calls."""

    def __init__(self, place=None):
        self.calls = []

    def host_us(self, step):
        return 7.0

    def sample_us(self, step, host_us):
        assert host_us == 7.0
        step()
        self.calls.append(step)
        return float(len(self.calls))


# -- right or wrong --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.grid(4)
@pytest.mark.parametrize("operation", torch_ops.OPERATIONS)
def test_every_variant_is_right_on_small_layers(operation):
    """References and arguments fit: each variant of each operation passes as it is."""
    described = OPERATIONS[operation]
    for name, geometry in list(layers.LAYERS[operation].items())[: 2 if sampling.wanted() == "all" else 1]:
        geometry = described.small(geometry, 8)
        for variant in kernels.VARIANTS[operation]:
            module = kernels.load(operation, variant)
            if module.supports(geometry):
                tiling = min(module.tilings(geometry), key=functools.partial(simulated_threads, module, geometry))
                (verdict,) = verify.verify(PLACE, operation, variant, geometry, [tiling]).values()
                assert verdict.fault is None, (name, variant, verdict)


def test_references_with_padding_dilation_and_groups():
    """PyTorch gets every part of a geometry: the NumPy backend, which shares no code with it here, agrees."""
    numpy_backend = backends.get("numpy")
    geometry = Conv2dGeometry.of((2, 4, 9, 8), (6, 2, 3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 3), groups=2)
    tensors = verify.operands(PLACE, "conv2d_grad_weight", geometry, "float64", 0)
    grad, x = (tensor.numpy() for tensor in tensors[:2])
    (ours,) = verify.reference(PLACE, "conv2d_grad_weight", geometry, tensors)
    np.testing.assert_allclose(ours, numpy_backend.conv2d_grad_weight(grad, x, geometry), rtol=1e-10, atol=1e-10)
    pool = Pool2dGeometry.of((2, 3, 8, 9), (3, 2), stride=2, padding=1, dilation=(2, 1), ceil_mode=True)
    x, y, winners = verify.operands(PLACE, "max_pool2d", pool, "float64", 0)
    maxima, indices = verify.reference(PLACE, "max_pool2d", pool, [x, y, winners])
    theirs, offsets = numpy_backend.max_pool2d(x.numpy(), pool)
    np.testing.assert_array_equal(maxima, theirs)
    np.testing.assert_array_equal(torch_ops.offsets_of(torch, indices, pool), offsets)
    np.testing.assert_array_equal(torch_ops.indices_of(torch, torch.from_numpy(offsets), pool), indices)
    with pytest.raises(ValueError, match="not the same on both sides"):
        torch_ops.indices_of(torch, winners, Pool2dGeometry.of((1, 1, 4, 4), 2, padding=((0, 1), (0, 0))))


def unwritten(out):
    out[-1, -1, -1, -1] = np.nan


def one_wrong(out):
    out[0, 0, 0, 0] += 1


def reduced_precision(out):
    out *= 1 + 3e-4 * np.random.default_rng(0).standard_normal(out.shape, np.float32)


def beside(out):
    np.lib.stride_tricks.as_strided(out, (out.size + 1,), (out.itemsize,))[out.size] = 0


def race(out, runs=iter(range(9))):  # noqa: B008 - counts the calls
    out.reshape(-1)[0] *= 1 + 1e-6 * next(runs)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (unwritten, "1 are NaN"),
        (one_wrong, "result 0 differs by"),
        (reduced_precision, "result 0 differs by"),
        (beside, "out-of-bounds write: the memory beside a result was written to"),
        (race, "two runs on the same inputs differ: a race"),
    ],
)
def test_planted_faults_are_found(monkeypatch, spoil, words):
    """Not right: an element is left out or wrong, TF32, a write beside the result, not twice the same."""
    real = kernels.load("conv2d", "direct")

    def launch(x, weight, bias, out, *rest):
        real.launch(x, weight, bias, out, *rest)
        spoil(out)

    monkeypatch.setattr(kernels, "load", lambda *_: types.SimpleNamespace(launch=launch, workspace_size=no_workspace))
    (verdict,) = verify.verify(PLACE, "conv2d", "direct", CONV, real.tilings(CONV)[:1]).values()
    assert words in verdict.fault


def test_one_wrong_element_among_a_million_is_found():
    """Its share of the norm is below what rounding may take; the largest difference shows it."""
    wanted = torch.ones(1000, 1000, dtype=torch.float64)
    got = wanted.float()
    got[999, 999] = 1.05
    verdict = verify.judge("relu", None, "float32", torch, [got], [wanted])
    assert verdict.norm < measure.TOLERANCE["float32"][0]
    assert "an element by 0.05" in verdict.fault


def test_another_winner_is_found(monkeypatch):
    """The maxima are right, but a winner is another element."""
    real = kernels.load("max_pool2d", "direct")

    def launch(x, y, winners, *rest):
        real.launch(x, y, winners, *rest)
        winners[1, 2, 0, 0] ^= 1

    monkeypatch.setattr(kernels, "load", lambda *_: types.SimpleNamespace(launch=launch, workspace_size=no_workspace))
    (verdict,) = verify.verify(PLACE, "max_pool2d", "direct", POOL, real.tilings(POOL)[:1]).values()
    assert verdict.fault == "1 of 72 winners are other elements"


def test_another_winner_of_a_block_is_found(monkeypatch):
    """Winners of a fused block are judged by what they are worth: rounding may choose among equals, and no other."""
    described = OPERATIONS["conv2d_relu_max_pool2d"]
    geometry = described.small(layers.BLOCKS["lenet5.block2"], 8)
    real = kernels.load("conv2d_relu_max_pool2d", "fused")

    def launch(x, weight, bias, y, winners, *rest):
        real.launch(x, weight, bias, y, winners, *rest)
        winners[np.unravel_index(y.argmax(), y.shape)] ^= 1

    monkeypatch.setattr(kernels, "load", lambda *_: types.SimpleNamespace(launch=launch, workspace_size=no_workspace))
    arguments = PLACE, "conv2d_relu_max_pool2d", "fused", geometry, real.tilings(geometry)[:1]
    (verdict,) = verify.verify(*arguments).values()
    assert "result 1 differs by" in verdict.fault


@pytest.mark.parametrize("operation", ["sgd_update_all", "adam_update_all"])
def test_references_change_nothing(operation):
    """What an update changes in place is the kernel's: in float64 too, where nothing is converted."""
    described = OPERATIONS[operation]
    geometry = described.small(next(iter(layers.LAYERS[operation].values())), 8)
    tensors, untouched = (verify.operands(PLACE, operation, geometry, "float64", 0) for _ in range(2))
    verify.reference(PLACE, operation, geometry, tensors)
    verify.peer(PLACE, operation, geometry, tensors)()
    for ours, before in zip(tensors, untouched, strict=True):
        for one, other in zip(ours, before, strict=True) if isinstance(ours, tuple) else [(ours, before)]:
            assert torch.equal(one, other)


def test_a_launch_that_raises_is_named(monkeypatch):
    """What the device reports names no kernel: the check does."""

    def launch(*_):
        raise RuntimeError("illegal address\nmore")

    monkeypatch.setattr(kernels, "load", lambda *_: types.SimpleNamespace(launch=launch, workspace_size=no_workspace))
    with pytest.raises(
        verify.KernelFailed, match=r"^conv2d tiled T on Conv2dGeometry.*: RuntimeError: illegal address$"
    ):
        verify.verify(PLACE, "conv2d", "tiled", CONV, ["T"])


# -- times -----------------------------------------------------------------------------------------------------------


def test_samples_take_turns():
    """Each round begins with another contender, each call with another set of inputs; as many as asked for."""
    clock, calls = Clock(), []
    steps = {label: [lambda label=label, n=n: calls.append(label + n) for n in "01"] for label in "abc"}
    times = measure.measure_us(steps, clock, 4)
    warm = len("abc") * 2 * 2
    assert calls[warm:] == ["a0", "b0", "c0", "b1", "c1", "a1", "c0", "a0", "b0", "a1", "b1", "c1"]
    assert times == {"a": [1, 6, 8, 10], "b": [2, 4, 9, 11], "c": [3, 5, 7, 12]}


def test_the_device_is_busy_until_a_call_is_queued():
    """The cache is overwritten before every sample, often enough to last for the host's part of the call."""
    queue = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            queue.append("event")

        def synchronize(self):
            queue.append("wait")

        def query(self):
            return False

        def elapsed_time(self, end):
            return 0.02  # ms

    filler = types.SimpleNamespace(zero_=lambda: queue.append("flush"))
    cuda = types.SimpleNamespace(Event=Event, get_device_properties=lambda _: types.SimpleNamespace(L2_cache_size=50))
    stand_in = types.SimpleNamespace(cuda=cuda, uint8="uint8", empty=lambda size, **_: [filler][size != 200])
    clock = device.EventClock(types.SimpleNamespace(torch=stand_in))
    queue.clear()
    assert clock.sample_us(lambda: queue.append("call"), 55.0) == 20
    assert queue == ["flush"] * 6 + ["event", "call", "event", "wait"]


# -- the run ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch):
    """`bench.gpu` with the simulator in the GPU's place, and small layers."""
    facts = {
        "name": "stand-in",
        "compute_capability": "9.0",
        "multiprocessors": 1,
        "driver": None,
        "driver_cuda": "13.0",
        "cudnn": 9,
        "tf32": {"matmul": False, "cudnn": False},
        "versions": {"torch": "2"},
    }
    monkeypatch.setattr(device, "device_place", lambda: PLACE)
    monkeypatch.setattr(device, "EventClock", Clock)
    monkeypatch.setattr(device, "gpu_facts", lambda place: facts)
    monkeypatch.setattr(gpu, "_precompile", lambda *_: None)  # the simulator does not compile
    # Two variants stand for all: whether each is right, another test says.
    every = kernels.VARIANTS["conv2d"]
    monkeypatch.setitem(kernels.VARIANTS, "conv2d", {name: every[name] for name in ("direct", "tiled")})
    for operation, geometry in (("conv2d", CONV), ("max_pool2d", POOL)):
        monkeypatch.setitem(layers.LAYERS, operation, {"lenet5.small": geometry})


@pytest.mark.slow
def test_a_run(machine, capsys, tmp_path):
    """Every variant and tiling that supports the layer is checked and timed; the rule's choice is marked; one file."""
    out = str(tmp_path / "new" / "gpu.json")
    assert gpu.main(["--json", out, "--op", "conv2d,max_pool2d", "--rounds", "2"]) == 0
    document = json.loads((tmp_path / "new" / "gpu.json").read_text())
    assert document["complete"]
    assert [result["operation"] for result in document["results"]] == ["conv2d", "max_pool2d"]
    supporting = [kernels.load("conv2d", variant) for variant in kernels.VARIANTS["conv2d"]]
    count = sum(len(module.tilings(CONV)) for module in supporting if module.supports(CONV))
    entries = document["results"][0]["kernels"]
    assert len(entries) == count
    assert sum(entry["chosen"] for entry in entries) == 1
    assert all(entry["fault"] is None and len(entry["us"]) == 2 for entry in entries)
    assert len(document["results"][0]["peer_us"]) == 2
    output = capsys.readouterr()
    assert "Kernels beside PyTorch, float32" in output.out
    assert "lenet5.small" in output.out
    assert "TF32 of torch: matmul False, cuDNN False" in output.err


@pytest.mark.slow
def test_a_run_in_half_precision(machine, capsys, tmp_path, monkeypatch):
    """What has kernels for float16 is judged and timed in it, beside PyTorch's float16; the rest is left out."""
    found = kernels.VARIANTS["conv2d"] | {"tensor_core": "gpuconv.kernels.conv.conv2d_tensor_core"}
    monkeypatch.setitem(kernels.VARIANTS, "conv2d", found)
    out, more = tmp_path / "gpu.json", ["--op", "conv2d,max_pool2d", "--rounds", "1", "--dtype", "float16"]
    assert gpu.main(["--json", str(out), *more]) == 0
    (result,) = json.loads(out.read_text())["results"]
    assert {entry["variant"] for entry in result["kernels"]} == {"tensor_core"}
    assert all(entry["fault"] is None and 1e-4 < entry["norm"] < 3e-4 and entry["us"] for entry in result["kernels"])
    assert result["peer_us"]
    assert "Kernels beside PyTorch, float16" in capsys.readouterr().out


def test_variants_for_newer_gpus_are_left_out(monkeypatch):
    """On a T4 nothing is compiled for tensor cores that round to TF32, and so nothing is called wrong."""
    geometry = layers.LAYERS["conv2d"]["resnet50.conv3-3x3"]
    platform = types.SimpleNamespace(compute_capability="8.0")
    monkeypatch.setattr(backends.get("cuda"), "tuning_platform", lambda: platform)
    newer = {variant for variant, _, _ in gpu._kernels("conv2d", geometry, quick=True)}
    platform.compute_capability = "7.5"
    assert newer - {variant for variant, _, _ in gpu._kernels("conv2d", geometry, quick=True)} == {"tensor_core"}


@pytest.mark.slow
def test_bench_tilings_times_at_the_same_place(machine, monkeypatch):
    """It asks where to run, and with what clock; the document names the device."""
    monkeypatch.setattr(device, "_MOST", 1)
    tiling, other = kernels.load("conv2d", "direct").tilings(CONV)[:2]
    results = [
        {"variant": "direct", "tiling": dataclasses.asdict(one), "file": None, "faults": faults, "us": []}
        for one, faults in ((tiling, []), (other, ["wrong in the simulator"]))
    ]
    document = {"machine": {}, "settings": {}, "results": results}
    assert device.rank("conv2d", CONV, document) == []
    assert document["machine"]["gpu"]["name"] == "stand-in"
    assert document["settings"]["device"] == "stand-in (PyTorch's TF32: matmul off, cudnn off)"
    assert [bool(one["us"]) for one in results] == [True, False]
    assert document["peer_median_us"] > 0


def test_kernels_are_compiled_before(monkeypatch):
    """Every launch of every tiling, for the types of its arguments; one that cannot be compiled stops nothing."""
    real, compiled = kernels.load("conv2d", "direct"), []

    def compile_one(signature):
        compiled.append(signature)
        if len(compiled) == 1:
            raise RuntimeError("no")

    def launches(geometry, tiling, dtype):
        assert dtype == "float32"
        assert tiling in real.tilings(CONV)
        return [types.SimpleNamespace(kernel=types.SimpleNamespace(compile=compile_one), signature=tiling)]

    stand_in = types.SimpleNamespace(supports=real.supports, tilings=real.tilings, launches=launches)
    monkeypatch.setattr(kernels, "load", lambda *_: stand_in)
    work = gpu.compile_work([("conv2d", "small", CONV)], quick=False)
    assert ("conv2d", "direct", CONV, "float32", None) in work
    assert compiling.compile_kernels("conv2d", "direct", CONV, "float32", None) == len(real.tilings(CONV)) - 1
    assert compiled == list(real.tilings(CONV))
    compiled.clear()
    assert compiling.compile_kernels("conv2d", "direct", CONV, "float32", 2) == 1


@pytest.mark.slow
def test_a_wrong_kernel_is_reported_and_not_timed(machine, monkeypatch, capsys, tmp_path):
    """Exit code 1, a line that says which; the others have their times."""
    load = kernels.load

    def broken(operation, variant):
        real = load(operation, variant)
        if variant != "direct":
            return real

        def launch(x, weight, bias, out, *rest):
            real.launch(x, weight, bias, out, *rest)
            one_wrong(out)

        names = ("supports", "tilings", "workspace_size")
        return types.SimpleNamespace(launch=launch, **{name: getattr(real, name) for name in names})

    monkeypatch.setattr(kernels, "load", broken)
    assert gpu.main(["--json", str(tmp_path / "gpu.json"), "--op", "conv2d", "--rounds", "1", "--quick"]) == 1
    (result,) = json.loads((tmp_path / "gpu.json").read_text())["results"]
    assert {entry["variant"]: bool(entry["us"]) for entry in result["kernels"]}["direct"] is False
    assert any(entry["us"] for entry in result["kernels"])
    assert "WRONG: conv2d lenet5.small direct Tiling" in capsys.readouterr().err


def test_a_stopped_run_keeps_what_it_has(machine, monkeypatch, capsys, tmp_path):
    """Ctrl-C while timing: exit code 130, and a file that says that it is not complete; a dead device likewise, 1."""

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu, "time_layer", stopped)
    arguments = ["--json", str(tmp_path / "gpu.json"), "--op", "max_pool2d"]
    assert gpu.main(arguments) == 130
    document = json.loads((tmp_path / "gpu.json").read_text())
    assert not document["complete"]
    assert document["results"][0]["kernels"]
    assert report.gpu_tables(document)[0].rows[0][3] == "-"
    monkeypatch.setattr(gpu, "check", lambda *_: (_ for _ in ()).throw(verify.KernelFailed("max_pool2d: dead")))
    assert gpu.main(arguments) == 1
    assert "WRONG: max_pool2d: dead" in capsys.readouterr().err


def test_quick_and_names_choose_layers():
    """--quick has LeNet's layers and some of each other network; patterns choose, in the table's order."""
    everything, quick = gpu.cases(quick=False), gpu.cases(quick=True)
    assert {operation for operation, _, _ in everything} == set(torch_ops.OPERATIONS) == set(kernels.VARIANTS)
    assert 20 < len(quick) < len(everything) / 2
    assert {operation for operation, _, _ in quick} == set(torch_ops.OPERATIONS)
    names = [case[:2] for case in gpu.cases(["relu*", "conv2d_grad_bias"], ["lenet.relu1"], quick=False)]
    assert names == [("conv2d_grad_bias", "lenet5.relu1"), ("relu", "lenet5.relu1"), ("relu_grad", "lenet5.relu1")]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--json", "{folder}/gpu.json"], "NUMBA_ENABLE_CUDASIM is set: .* unset it"),
        (["--json", "{folder}/gpu.json", "--op", "conv5*"], "--op: there is no 'conv5\\*'; did you mean 'conv2d"),
        (["--json", "{folder}/gpu.json", "--layers", "conv5*"], "--layers: there is no 'conv5\\*'"),
        (["--json", "{folder}/gpu.json", "--quick", "--layers", "alexnet*"], "--quick leaves none"),
        ([], "required: --json"),
        (["--json", "{folder}/gpu.json", "--rounds", "0"], "not a whole number"),
        (["--json", "{folder}"], "is a folder"),
        (["--json", "{file}/x"], "cannot make the folder"),
    ],
)
def test_refusals_take_one_line(arguments, words, capsys, tmp_path, monkeypatch):
    """Exit code 2 before anything is run; nothing is written."""
    monkeypatch.setenv("NUMBA_ENABLE_CUDASIM", "1")
    (tmp_path / "file").touch()
    given = [argument.format(folder=tmp_path, file=tmp_path / "file") for argument in arguments]
    assert gpu.main(given) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert pytest.importorskip("re").search(f"^bench.gpu: .*{words}", line)
    assert not (tmp_path / "gpu.json").exists()


def test_no_gpu_and_no_torch_are_refused(monkeypatch, capsys, tmp_path):
    """The backend's own reason; a PyTorch without CUDA; no PyTorch at all."""
    monkeypatch.setenv("NUMBA_ENABLE_CUDASIM", "0")
    arguments = ["--json", str(tmp_path / "gpu.json")]
    monkeypatch.setattr(backends, "available", lambda: {"cuda": "no NVIDIA driver was found"})
    assert gpu.main(arguments) == 2
    monkeypatch.setattr(backends, "available", lambda: {"cuda": None})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(arguments) == 2
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert gpu.main(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [
        words in line
        for words, line in zip(("no NVIDIA driver", "sees no GPU", "pip install torch"), lines, strict=True)
    ]


# -- LeNet -----------------------------------------------------------------------------------------------------------


def launch_of(name, log):
    def kernel():
        pass

    kernel.__name__ = name

    class Launch:
        grid, block = (2, 3), (32,)

        def __call__(self, stream, *arguments):
            log.append(name)

    Launch.kernel = types.SimpleNamespace(py_func=kernel)
    return Launch()


@pytest.fixture
def lenet_machine(monkeypatch):
    """`bench.lenet_gpu` with the host in the GPU's place: nothing is compiled there, and PyTorch's graph fails."""
    runtime = types.SimpleNamespace(deviceGetAttribute=lambda number, device: {13: 1_500_000}[number])
    xp = types.SimpleNamespace(cuda=types.SimpleNamespace(runtime=runtime))
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: None)
    log = []
    arrays = [np.zeros(1000, np.float32), np.zeros((), np.float32)]
    launches = [(launch_of(name, log), (arrays[0], (arrays[0], 7), arrays[1])) for name in ("linear_chain", "other")]
    monkeypatch.setattr(step, "launches", lambda *_: launches)
    monkeypatch.setattr(lenet_gpu, "_COPIED_BYTES", 10**6)
    monkeypatch.setattr(lenet_gpu, "_stream", lambda: None)
    return types.SimpleNamespace(torch=torch, device="cpu", xp=xp, synchronize=lambda: None, log=log)


def lenet_document(batches=(2, 3), **settings):
    facts = {"compute_capability": "9.0", "multiprocessors": 100}
    settings = {"batches": list(batches), "seconds": 0.01, "rounds": 3, "compile": "reduce-overhead", **settings}
    return {"settings": settings, "machine": {"gpu": facts}, "results": []}


def lenet_run(document, machine, keep=lambda: None):
    with backends.use_backend("numba"):
        return lenet_gpu.run(document, machine, Clock(), SimulatedGraph, keep)


@pytest.mark.slow
def test_lenet_steps_agree_and_are_timed(lenet_machine, capsys, monkeypatch, tmp_path):
    """Ours and PyTorch's give the same losses, and take turns; a contender that fails is named."""
    document = lenet_document()
    assert lenet_run(document, lenet_machine)
    (first, second) = document["results"]
    ours = ["gpuconv", "gpuconv eager", "gpuconv chain"]
    assert list(first["seconds"]) == [*ours, "torch eager", "torch compile"]
    assert all(len(seconds) == 3 for seconds in first["seconds"].values())
    assert list(first["failed"]) == ["torch graph"]
    assert "batch 3: torch graph is not timed: " in capsys.readouterr().err
    assert list(second["speedup"]) == ["torch eager", "torch compile"]
    assert document["peaks"]["flop_per_s"] == 2 * 128 * 100 * 1.5e9
    steps, *tables = report.lenet_gpu_tables(document)
    assert [row[0] for row in steps.rows] == ["2", "3"]
    images, failed, kernels_of_first, _ = tables
    assert [row[:2] for row in failed.rows] == [[w, "torch graph"] for w in ("batch 2", "batch 3", "inference")]
    assert [row[0] for row in kernels_of_first.rows] == ["linear_chain", "other", "2 kernels"]
    assert steps.plain()
    inference = document["inference"]
    assert list(inference["seconds"]) == ["gpuconv", "gpuconv eager", "torch eager"]
    assert all(len(seconds) == 3 for seconds in inference["seconds"].values())
    assert list(inference["failed"]) == ["torch graph"]
    assert list(inference["speedup"]) == ["torch eager"]
    assert [row[0] for row in images.rows] == list(inference["seconds"])
    assert [row[2] == "-" for row in images.rows] == [True, True, False]
    monkeypatch.setattr(report, "gpu_heading", lambda document: "a GPU")
    (tmp_path / "lenet_gpu.json").write_text(json.dumps({"schema": 1, "benchmark": "lenet-gpu", **document}))
    readme = report.render("<!-- bench:lenet-gpu -->\n<!-- /bench:lenet-gpu -->\n", tmp_path)
    for table in (steps, *tables):
        assert table.markdown() in readme


@pytest.mark.slow
def test_torch_compile_is_asked_for(lenet_machine, monkeypatch):
    """Without a mode it is not among the peers; with one, it is compiled in that."""
    modes = []
    monkeypatch.setattr(torch, "compile", lambda function, mode, **_: modes.append(mode) or function)
    document = lenet_document(batches=[2], compile=None)
    lenet_run(document, lenet_machine)
    assert modes == []
    assert "torch compile" not in document["results"][0]["seconds"]
    document = lenet_document(batches=[2], compile="default")
    lenet_run(document, lenet_machine)
    assert modes == ["default"]


@pytest.mark.slow
def test_ours_is_right_before_a_peer_is_made(lenet_machine, monkeypatch):
    """A captured step whose third call is wrong: no peer is made, eager is timed; the next batch goes on."""
    order, real = [], lenet_gpu._ours

    def ours(weights, batches, captured, **options):
        step, size = real(weights, batches, captured, **options), len(batches[0][0])
        current = backends.current().name
        order.append((size, current if current == "numpy" else "captured" if captured else "eager"))
        calls = iter(range(10**9))
        return lambda: float(step()) + (captured and size == 2 and next(calls) > 2)

    def peers(torch, device, weights, batches, compiled):
        order.append((len(batches[0][0]), "peers"))
        return {}

    monkeypatch.setattr(lenet_gpu, "_ours", ours)
    monkeypatch.setattr(lenet_gpu, "peers", peers)
    document, kept = lenet_document(), []
    assert not lenet_run(document, lenet_machine, lambda: kept.append(json.dumps(document)))
    assert order == [
        (2, "numpy"),
        (2, "eager"),
        (2, "captured"),
        (2, "captured"),
        *((3, n) for n in order_of_a_right_batch),
    ]
    wrong, right = document["results"]
    assert list(wrong["seconds"]) == ["gpuconv eager"]
    assert wrong["failed"]["gpuconv"].startswith("its losses are [")
    assert "those of gpuconv eager [" in wrong["failed"]["gpuconv"]
    assert right["failed"] == {}
    assert list(right["seconds"]) == ["gpuconv", "gpuconv eager", "gpuconv chain"]
    # Each batch's results are kept as soon as they are there.
    assert any(len(json.loads(one)["results"]) == 1 and json.loads(one)["results"][0]["kernels"] for one in kept)


order_of_a_right_batch = ("numpy", "eager", "captured", "captured", "peers")


@pytest.mark.slow
def test_eager_is_compared_with_numpy(lenet_machine, monkeypatch):
    """Where eager is wrong as captured is, both are: nothing is timed."""
    real = lenet_gpu._ours

    def ours(weights, batches, captured, **options):
        step = real(weights, batches, captured, **options)
        return step if backends.current().name == "numpy" else lambda: float(step()) + 1

    monkeypatch.setattr(lenet_gpu, "_ours", ours)
    document = lenet_document(batches=[2])
    assert not lenet_run(document, lenet_machine)
    (result,) = document["results"]
    assert "those of numpy" in result["failed"]["gpuconv eager"]
    assert result["failed"]["gpuconv"] == "there is nothing to compare it with: gpuconv eager failed"
    assert result["seconds"] == {}
    assert [table.title for table in report.lenet_gpu_tables(document)][-1] == "What failed"


@pytest.mark.slow
def test_each_image_is_waited_for(lenet_machine, monkeypatch):
    """Inference: from a call until the device is done, for each of them; wrong logits are not timed."""
    calls = []
    monkeypatch.setattr(lenet_machine, "synchronize", lambda: calls.append("wait"))

    def ours(weights, images, *, captured):
        logits = torch.zeros((1, 10))
        return lambda: calls.append("step") or logits

    monkeypatch.setattr(lenet_gpu, "ours_inference", ours)
    wrong = {"torch eager": lambda: lambda: torch.ones((1, 10))}
    monkeypatch.setattr(lenet_gpu, "inference_peers", lambda *_: wrong)
    found = {"seconds": {}, "failed": {}, "speedup": {}}
    lenet_gpu._inference(found, lenet_machine, {"seconds": 0.01, "rounds": 2}, {}, lambda: None)
    assert list(found["seconds"]) == [lenet_gpu.OURS, lenet_gpu.EAGER]
    assert found["failed"]["torch eager"].startswith("its logits are [[[1.0")
    timed = calls[3 * lenet_gpu._CHECKED_STEPS :]
    assert timed == ["step", "wait"] * (len(timed) // 2)
    assert len(timed) > 2 * 2 * 2


def test_kernels_beside_their_floors(lenet_machine):
    """All are launched in their order first; then each many times in a row, divided; bytes counted once."""
    log = lenet_machine.log

    class Graph(SimulatedGraph):
        def recording(self):
            log.append("begin")
            return contextlib.nullcontext()

        def launch(self):
            log.append("launch")

    peak = {"bytes_per_s": 4e9, "flop_per_s": 1e15}
    chain, other = lenet_gpu.kernels(2, Clock(), peak, Graph)
    assert log[:2] == ["linear_chain", "other"]
    assert log[2:53] == ["begin"] + ["linear_chain"] * 50
    assert (chain["blocks"], chain["threads"], chain["arguments"], chain["bytes"]) == (6, 32, 4, 4000)
    assert chain["flop"] == 2 * 2 * (400 * 120 + 120 * 84 + 84 * 10)
    assert other["flop"] == 0
    assert chain["floor_us"] == other["floor_us"] == 1.0
    assert chain["us"] == 8 / 50  # the median of the clock's 1 to 15
    assert lenet_gpu.floor_us(4000, 10**10, peak) == pytest.approx(10)


def test_wrong_losses_are_not_timed():
    """Others, none, and what is not a number: left out, with a reason."""
    right, wrong, nothing = (lambda value=value: lambda: value for value in (1.0, 1.1, float("nan")))

    def broken():
        raise RuntimeError("no compiler\nand more")

    contest = lenet_gpu.Contest()
    contest.reference("numpy", right())
    made = {"a": right, "b": wrong, "c": nothing, "d": broken}
    assert [contest.enter(label, make, "numpy") for label, make in made.items()] == [True, False, False, False]
    assert list(contest.steps) == ["a"]
    assert contest.failed["b"].startswith("its losses are [1.1")
    assert "nan" in contest.failed["c"]
    assert contest.failed["d"] == "RuntimeError: no compiler"
    assert not contest.enter("e", right, "b")
    assert contest.failed["e"] == "there is nothing to compare it with: b failed"


@pytest.mark.slow
def test_a_lenet_run_keeps_what_it_has(lenet_machine, machine, monkeypatch, capsys, tmp_path):
    """A device that fails at the second batch: exit code 1, the others go on. Ctrl-C: 130, and the first is kept."""
    monkeypatch.setattr(device, "device_place", lambda: lenet_machine)
    monkeypatch.setattr(backends, "get", lambda name: backends._instance("numpy" if name == "numpy" else "numba"))
    monkeypatch.setattr(backends._instance("numba"), "new_graph", lambda **_: SimulatedGraph())
    monkeypatch.setattr("gpuconv.capture", lambda step, **_: step)
    compiled = []
    monkeypatch.setattr(compiling, "compile_all", lambda function, work, jobs: compiled.extend(work))
    monkeypatch.setattr(compiling, "step_work", lambda batches: list(batches))
    for error, outcome in ((RuntimeError("dead"), 1), (KeyboardInterrupt(), 130)):

        def kernels_of(batch, *_, error=error):
            if batch == 3:
                raise error
            return [{"kernel": "one", "blocks": 1, "threads": 1, "bytes": 1, "flop": 1, "us": 2.0, "floor_us": 1.0}]

        monkeypatch.setattr(lenet_gpu, "kernels", kernels_of)
        arguments = ["--backend=cuda", "--batches=2,3,4", "--seconds=0.01", "--rounds=2", f"--json={tmp_path}/l.json"]
        assert lenet.main(arguments) == outcome
        document = json.loads((tmp_path / "l.json").read_text())
        assert document["benchmark"] == "lenet-gpu"
        assert document["settings"]["compile"] is None
        assert document["complete"] is (outcome == 1)
        assert [result["batch"] for result in document["results"]] == ([2, 3, 4] if outcome == 1 else [2, 3])
        assert ["kernels" if result["kernels"] else "" for result in document["results"]][:2] == ["kernels", ""]
        output = capsys.readouterr()
        assert "Kernels of the step at batch 2" in output.out
        assert "50%" in output.out
        assert "TF32 off" in output.err
        if outcome == 1:
            assert document["results"][1]["failed"]["ended by"] == "RuntimeError: dead"
            assert document["results"][2]["seconds"]["torch eager"]
    assert compiled == [2, 3, 4] * 2


def test_lenet_on_a_gpu_refuses_in_one_line(capsys, monkeypatch):
    """No GPU, a simulated one, peers and memory of the CPU: exit code 2."""
    monkeypatch.setenv("NUMBA_ENABLE_CUDASIM", "1")
    for arguments, words in (
        ([], "NUMBA_ENABLE_CUDASIM is set"),
        (["--peer", "torch"], "leave --peer out"),
        (["--memory"], "--memory is of processes on the CPU"),
        (["--backend", "numba", "--compile"], "--compile is of PyTorch on a GPU"),
    ):
        assert lenet.main(["--backend", "cuda", *arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line
    monkeypatch.setenv("NUMBA_ENABLE_CUDASIM", "0")
    monkeypatch.setattr(backends, "available", lambda: {"cuda": "no NVIDIA driver was found"})
    assert lenet.main(["--backend", "cuda"]) == 2
    assert capsys.readouterr().err == "bench.lenet: the cuda backend is not available: no NVIDIA driver was found\n"
