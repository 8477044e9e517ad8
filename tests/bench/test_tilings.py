"""bench.tilings: what it ranks and refuses; kernels of one's own, and the faults planted in one of them."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="kernels are written for numba-cuda")
pytest.importorskip("greenlet", reason="the simulator needs it")

ROOT = Path(__file__).resolve().parents[2]
KERNEL = (ROOT / "tests" / "support" / "tiled_kernel.py").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def _bench_can_be_imported(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


def tilings(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command as its users do, on a machine where kernels can be compiled."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("NUMBA_ENABLE_CUDASIM", None)
    done = subprocess.run(
        [sys.executable, "-m", "bench.tilings", *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode == 2 and "pip install" in done.stderr:
        pytest.skip(done.stderr.strip())
    return done


def planted(folder: Path, right: str, wrong: str) -> Path:
    """A file with a fault: a piece of the right kernel, which has it once, replaced."""
    assert KERNEL.count(right) == 1
    path = folder / "my_conv.py"
    path.write_text(KERNEL.replace(right, wrong), encoding="utf-8")
    return path


def line_of(path: Path, text: str) -> int:
    return next(n for n, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1) if text in line)


def verified(path: Path, limit: float = 120):
    """The verdict on a file, for LeNet's second convolution."""
    from bench import own_kernel
    from bench.layers import CONVOLUTIONS

    layer = "lenet5.conv2"
    return own_kernel.verify(path, "conv2d", CONVOLUTIONS[layer], layer, limit=limit, tell=lambda text: None)


@pytest.fixture
def in_this_process(monkeypatch):
    """What simulates a file does so here: a process begins, and loads Numba, for as long as it then simulates."""
    pytest.importorskip("support.simulation")
    from bench import own_kernel

    def messages(task, *_):
        assert task["stage"] == "simulate"
        said = []
        own_kernel._Child(task, said.append).simulate()
        return [*said, {"done": True}]

    monkeypatch.setattr(own_kernel, "_messages", messages)
    # Nothing hangs, and what would end this process is not to be set up.
    monkeypatch.setattr(own_kernel._Child, "step", lambda self, words: contextlib.nullcontext())


# -- faults ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
def test_a_missing_barrier(tmp_path):
    """A race is named, with both lines: the one that fetches the next channel, the one that reads this one."""
    path = planted(tmp_path, "            cuda.syncthreads()\n        row, column", "        row, column")
    verdict = verified(path)
    assert verdict.kinds()[0] == "race"
    race = next(finding for _, _, finding in verdict.findings if finding.kind == "race")
    fetch, read = line_of(path, "tile[jr, jc] = x["), line_of(path, "total += tile[")
    assert set(race.where) == {f"my_conv.py:{fetch}", f"my_conv.py:{read}"}
    assert "cuda.syncthreads" in race.text
    assert "total += tile[thread_row + dr, thread_column + ds]" in race.text


@pytest.mark.grid(2)
@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize(
    ("right", "wrong", "words"),
    [
        ("while i < halo_rows * halo_columns", "while i < (halo_rows - 1) * halo_columns", "bottom edge of their tile"),
        ("0 <= z < w else", "0 <= z < w and jc < halo_columns - 1 else", "right edge of their tile"),
        ("first_column + jc - left", "first_column + jc - left + 1", "the input is read one column off"),
        ("for ds in range(s):", "for ds in range(s - 1):", "the last column of the window is left out"),
    ],
    ids=["a row is not fetched", "a column is zero", "it begins one column too late", "one tap too few"],
)
def test_a_halo_off_by_one(tmp_path, right, wrong, words):
    """It is told from other mistakes by where in their tiles the wrong results lie, or by what would give them."""
    verdict = verified(planted(tmp_path, right, wrong))
    assert not verdict.right
    assert any(words in finding.text for _, _, finding in verdict.findings), verdict.text()
    assert "by block (0, 0, 0), whose tile is all of [0, 0, 0:4, 0:8]" in verdict.text()


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
def test_an_edge_that_is_not_written(tmp_path):
    """A grid that is rounded down: how many elements are not written, and which."""
    verdict = verified(planted(tmp_path, "-(-geometry.p // tiling.rows)", "max(1, geometry.p // tiling.rows)"))
    assert verdict.kinds() == ["unwritten"]
    assert "190 of 2470 elements of the result were not written: all of [:, :, 12, :]" in verdict.text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("total = bias[filter_]", "total = 0.0 + bias[filter_]", " compute in float64"),
        pytest.param(
            "if has_bias else real(0)", "if has_bias else 0.0", "with has_bias=False, ", marks=pytest.mark.thorough
        ),
    ],
)
def test_a_float64_accumulator(tmp_path, old, new, words):
    """It is right, and over its budget: the line that makes a sum float64 is shown, and it is ranked all the same.

    What the benchmark does not launch is compiled as well: the branch without a bias.
    """
    path = planted(tmp_path, old, new)
    verdict = verified(path)
    if "not compiled" in verdict.kinds():
        pytest.skip(verdict.text())
    assert "float64" in verdict.kinds()
    assert (verdict.right, verdict.clean) == (True, False)
    (finding,) = {f for _, _, f in verdict.findings if f.kind == "float64"}
    assert finding.where == (f"my_conv.py:{line_of(path, new)}",)
    assert words in finding.text
    assert "`0.0` is float64: write np.float32(0)" in finding.text
    assert len(verdict.rows) == 1


@pytest.mark.slow
def test_a_write_out_of_bounds(tmp_path):
    """The element, the array's shape, the line and the thread."""
    path = planted(tmp_path, "if row < p and column < q", "if row <= p and column < q")
    verdict = verified(path)
    assert verdict.kinds() == ["out-of-bounds write"]
    assert f"of shape (2, 5, 13, 19) at my_conv.py:{line_of(path, '= total')} by thread" in verdict.text()


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
def test_a_write_beside_an_array(tmp_path):
    """What the trace cannot see, a write by the function that launches, changes a guard zone."""
    beside = "    np.lib.stride_tricks.as_strided(out, (out.size + 1,), (out.itemsize,))[out.size] = 0\n    for one in"
    verdict = verified(planted(tmp_path, "    for one in", beside))
    assert verdict.kinds() == ["guard zone"]
    assert "the memory after out was written to" in verdict.text()


@pytest.mark.grid(4)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("right", "wrong", "kind", "words"),
    [
        ("i += rows * columns", "i += 0", "endless loop", "stopped after 2 s at line "),
        ("import functools", "import functools\nwhile True: pass", "endless loop", "while it was imported"),
        ("for dr in range(r):", "for dr in range(r)", "syntax error", "for dr in range(r)"),
        ("def tilings(geometry):", "def tiling(geometry):", "contract", "it lacks tilings(geometry)"),
        (
            "def launch(x, weight, bias, out,",
            "def launch(x, weight, out,",
            "contract",
            "launch(x, weight, bias, out, geometry",
        ),
        ("return (Tiling(4, 8),)", "return ()", "contract", "tilings returned ()"),
        ("import functools", "import functools, nowhere", "contract", "No module named 'nowhere' (line "),
        ("import functools", "import functools, os\nos.abort()", "crash", "SIGABRT"),
        (
            "    for one in",
            "    raise SystemExit\n    for one in",
            "crash",
            "it ended the process, while tiling 4x8 ran on",
        ),
        (
            "cuda.blockIdx.y, cuda.blockIdx.z",
            "cuda.blockIdx.y, cuda.blockIdx.z + len(str(1)) - 1",
            "compiler",
            ">>> str(",
        ),
        ("    return True if plain else", "    return", "contract", "lenet5.conv2: it is for stride 1"),
        ("= total\n", "= total / real(0) * real(0)\n", "NaN", "are NaN"),
    ],
)
def test_a_file_that_cannot_be_judged(tmp_path, right, wrong, kind, words):
    """One report each, whatever the file does to the process that runs it."""
    # Where nothing hangs, the limit is not to be reached on a busy machine either.
    verdict = verified(planted(tmp_path, right, wrong), limit=2 if kind == "endless loop" else 120)
    if "not compiled" in verdict.kinds():
        pytest.skip(verdict.text())
    assert [found for found in verdict.kinds() if found != "bank conflicts"] == [kind], verdict.text()
    assert words in verdict.text()


@pytest.mark.slow
def test_the_others_are_ranked(tmp_path):
    """Of a wrong kernel and a right one on the command line, the right one is ranked; the wrong one has its report."""
    wrong = planted(tmp_path, "0 <= y < h and", "")
    out, picture = tmp_path / "out.json", tmp_path / "pictures"
    template = subprocess.run(
        [sys.executable, "-m", "bench.tilings", "--template"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    (tmp_path / "template.py").write_text(template, encoding="utf-8")
    done = tilings(
        *("--layer", "lenet.conv2", "--batch", 1, "--variants", "direct", "--json", out, "--png", picture, "--jobs", 1),
        *("--kernel", wrong, "--kernel", tmp_path / "template.py"),
    )
    assert done.returncode == 1, done.stderr
    assert "STATIC ANALYSIS, nothing was timed" in done.stdout
    assert "my_conv.py: wrong" in done.stdout
    assert "template.py: right; " in done.stdout
    document = json.loads(out.read_text(encoding="utf-8"))
    ranked = [(found["variant"], *found["tiling"].values()) for found in document["results"]]
    assert sorted(ranked) == [
        ("direct", 64),
        ("direct", 128),
        ("direct", 256),
        ("template.py", 128),
        ("template.py", 256),
    ]
    assert document["settings"]["geometry"] == "1x6x14x14 * 16x6x5x5"
    bounds = [found["floor_us"] for found in document["results"]]
    assert bounds == sorted(bounds)
    assert all(found["us"] == [] for found in document["results"])
    assert [path.name for path in picture.iterdir()] == ["conv2d-lenet5.conv2.png"]


@pytest.mark.slow
def test_times_of_a_device_are_filled_in(tmp_path):
    """With a stand-in for a GPU and its clock: what is right is timed beside PyTorch, what is not is named."""
    torch = pytest.importorskip("torch", reason="the reference and the peer are PyTorch's")
    simulation = pytest.importorskip("support.simulation")
    assert simulation.simulator
    from bench import device, own_kernel, verify
    from gpuconv import kernels
    from gpuconv.geometry import Conv2dGeometry

    class Clock:
        def host_us(self, step):
            return 1.0

        def sample_us(self, step, host_us):
            step()
            return 25.0

    geometry = Conv2dGeometry.of((2, 3, 7, 11), (4, 3, 3, 3), padding=1)
    wrong = planted(tmp_path, "0 <= z < w else", "0 <= z < w and jc < halo_columns - 1 else")
    files = {"direct": None, "template": own_kernel.TEMPLATE, "mine": wrong}
    modules = {name: own_kernel.load(path) if path else kernels.load("conv2d", name) for name, path in files.items()}
    document = {
        "results": [
            {
                "variant": name,
                "tiling": dataclasses.asdict(modules[name].tilings(geometry)[0]),
                "file": None if path is None else str(path),
                "faults": [],
                "us": [],
            }
            for name, path in files.items()
        ]
    }
    place = verify.Place(torch, np, "cpu")
    (line,) = device.rank_at(place, Clock(), "conv2d", geometry, document)
    assert line.startswith("mine Tiling(rows=4, columns=8): result 0 differs")
    assert [found["us"] for found in document["results"]] == [[25.0] * 5, [25.0] * 5, []]
    assert document["peer_median_us"] == 25.0


# -- the bound ---------------------------------------------------------------------------------------------------


def judged_by(job) -> list[dict]:
    """As of a compiled job, with grids and blocks that are real, and shares of multiply-adds that are not."""
    from bench.inspection import tiling_text
    from gpuconv import kernels

    share = 0.3 + len(tiling_text(dataclasses.asdict(job.tiling))) % 7 / 10
    module = kernels.load(job.operation, job.variant)
    return [
        {
            "kernel": "kernel",
            "architecture": "sm_90a",
            "grid": list(launch.grid),
            "threads": int(np.prod(launch.block)),
            "registers": 32,
            "spill_bytes": 0,
            "local_bytes": 0,
            "static_shared_bytes": 0,
            "dynamic_shared_bytes": 0,
            "occupancy": {"blocks": 1, "share": 0.5, "limit": "blocks"},
            "h200_waves": 1.0,
            "float64_instructions": 0,
            "main_loop": {"is_loop": True, "instructions": 1, "multiply_add_share": share / (1 + number), "counts": {}},
        }
        for number, launch in enumerate(module.launches(job.geometry, job.tiling, "float32"))
    ]


@pytest.mark.parametrize(
    ("direction", "layer"),
    [
        ("forward", "lenet5.conv2"),
        ("forward", "resnet50.conv3-reduce"),
        ("grad_input", "lenet5.conv2"),
        ("grad_input", "resnet50.conv2-3x3"),
        ("grad_weight", "lenet5.conv2"),
        ("grad_weight", "resnet50.conv4-3x3"),
    ],
)
def test_both_commands_give_one_bound(direction, layer, tmp_path, monkeypatch, capsys):
    """Of each variant in each tiling, bench.static and bench.tilings print the same least time."""
    from bench import command, sass, static
    from bench import tilings as ranking

    def in_processes(function, jobs, *, simulate, **_):
        nothing = {"layer": "small", "faults": [], "shared": [], "global": []}
        return [(job, nothing if simulate else judged_by(job)) for job in jobs]

    monkeypatch.setenv("NUMBA_ENABLE_CUDASIM", "1")
    monkeypatch.setattr(sass, "check", lambda: None)
    operation, found = ranking._DIRECTIONS[direction], []
    for module, arguments in (
        (static, ["--op", operation, "--layers", layer, "--full"]),
        (ranking, ["--layer", layer, "--direction", direction]),
    ):
        monkeypatch.setattr(module, "in_processes", in_processes)
        monkeypatch.setattr(module, "choose_target", lambda simulate: None)
        out = tmp_path / f"{module.__name__}.json"
        assert module.main([*arguments, "--json", str(out)]) == 0
        document = command.read(out)
        found.append(
            {
                (one["variant"], json.dumps(one["tiling"])): (one["floor_us"], one["bound"])
                for one in document["results"]
            }
        )
        assert document["complete"]
        work = (document if module is ranking else document["results"][0])["work"]
        assert document["results"][0]["floor_us"] >= work["h200_floor_us"]
    assert found[0] == found[1]
    assert len(set(found[0].values())) > 1
    assert "STATIC ANALYSIS" in capsys.readouterr().out


@pytest.mark.slow
def test_sectors_are_the_same_in_every_run(monkeypatch):
    """Wherever the memory of a process happens to lie: arrays begin as those of a device do."""
    pytest.importorskip("support.simulation")
    from bench import diagnosis, inspection
    from bench.layers import LAYERS
    from gpuconv import kernels

    geometry = LAYERS["conv2d"]["lenet5.conv2"]
    tiling = kernels.load("conv2d", "direct").tilings(geometry)[0]
    job = inspection.Job("conv2d", "direct", "lenet5.conv2", geometry, tiling, "float32", ())
    held, found = [], []
    for size in (0, 40):
        held.append(np.empty(size, np.uint8))  # what comes behind lies elsewhere
        found.append((inspection.simulated(job)["global"], diagnosis.examined(job)["global"]))
    assert found[0] == found[1]
    for nbytes in (1, 100, 5000):
        memory = inspection.aligned(nbytes)
        assert (memory.size, memory.ctypes.data % 512) == (nbytes, 0)


def test_a_heat_map_is_named_after_the_fields():
    """Those of a user's own Tiling, and of them the ones that differ; a tile's rows and columns where it has them."""
    from bench import pictures

    def row(us, **tiling):
        return {"variant": "mine", "tiling": tiling, "us": [], "floor_us": us}

    mine = [row(n, unroll=4, lanes=32 << n % 2, depth=n // 2, name="x", flag=True) for n in range(4)]
    _, fields, tiles = pictures._heat_maps(mine)["mine"]
    assert fields == ("lanes", "depth")
    assert tiles == {(32, 0): 0, (64, 0): 1, (32, 1): 2, (64, 1): 3}
    tile = [row(n, threads=n, rows=n % 3, columns=8) for n in range(6)]
    assert pictures._heat_maps(tile)["mine"][1:] == (("rows", "columns"), {(0, 8): 0, (1, 8): 1, (2, 8): 2})
    assert pictures._heat_maps([row(n, threads=n) for n in range(6)]) == {}


def test_points_of_the_roofline_stand_where_they_belong():
    """All at the operation's intensity; only the names beside them are moved apart, and keep their order."""
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    from bench import pictures

    axes = Figure().subplots()
    ranked = [{"variant": name, "tiling": {}, "us": [], "floor_us": 1.0 + n / 100} for n, name in enumerate("abcd")]
    document = {"work": {"flop": 10**6, "intensity": 20.0}, "settings": {"device": "none"}}
    pictures._roofline(axes, ranked, document)
    points = [tuple(point) for drawn in axes.collections for point in drawn.get_offsets()]
    assert points == [(20.0, pytest.approx(1e3 / one["floor_us"])) for one in ranked]
    heights = [text.get_position()[1] for text in axes.texts if ": 1 tiling, best" in text.get_text()]
    low, high = axes.get_ylim()
    assert len(heights) == 4
    assert low < heights[3] < heights[2] < heights[1] < heights[0] < high
    assert all(above / below > (high / low) ** 0.05 for above, below in itertools.pairwise(heights))


# -- what is asked for -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--layer", "lenet.conv3"], "there is no 'lenet.conv3'; did you mean 'lenet5.conv2'?"),
        (["--layer", "lenet.conv2", "--variants", "tild"], "--variants: there is no 'tild'; did you mean 'tiled'?"),
        (["--layer", "lenet.conv2", "--variants", "depthwise"], "supports 128x6x14x14 * 16x6x5x5: depthwise:"),
        (["--geometry", "1,2,3"], "--geometry takes 7 to 10 integers, n,c,h,w,k,r,s[,stride[,pad[,groups]]]"),
        (["--geometry", "1,1,4,4,1,9,9,1,0"], "larger than the padded input, 4x4"),
        (["--geometry", "70000,64,32,32,64,3,3,1,1", "--variants", "direct"], "64-bit offsets"),
        (["--layer", "lenet.conv2", "--backend", "numpy", "--kernel", "x.py"], "a kernel for a GPU cannot run on"),
        (["--layer", "*.conv2"], "'*.conv2' fits several: lenet5.conv2, alexnet.conv2; name one of them"),
        (["--layer", "lenet.conv2", "--json", ROOT], "--json: {ROOT} is a folder; give the name of a file in it"),
        (["--layer", "lenet.conv2", "--json", "LICENSE/x.json"], "--json: cannot make the folder LICENSE"),
        (["--layer", "lenet.conv2", "--png", "LICENSE/x.png"], "--png: cannot make the folder LICENSE"),
        (["--layer", "lenet.conv2", "--png", "LICENSE/pictures"], "--png: cannot make the folder LICENSE/pictures"),
        (["--layer", "lenet.conv2", "--kernel", "no.py"], "--kernel: no.py: unreadable: no.py: No such file"),
        (["--layer", "lenet.conv2", "--kernel", "LICENSE"], "--kernel: LICENSE: syntax error: line 1 is not Python"),
        (
            ["--layer", "lenet.conv2", "--kernel", "bench/command.py"],
            "it lacks tilings(geometry), calls(a, geometry",
        ),
        ([], "say which layer"),
    ],
)
def test_what_cannot_be_ranked(arguments, words, monkeypatch, capfd):
    """One line and status 2, behind those that say what takes long."""
    from bench import tilings as command

    if "--variants" in arguments:  # it is found out where kernels can be compiled, which is not this process
        done = tilings(*arguments)
        status, shown, said = done.returncode, done.stdout, done.stderr
    else:
        monkeypatch.chdir(ROOT)
        monkeypatch.delenv("NUMBA_ENABLE_CUDASIM", raising=False)
        status = command.main(list(map(str, arguments)))
        shown, said = capfd.readouterr()
    assert (status, shown) == (2, "")
    *progress, line = said.splitlines()
    assert words.format(ROOT=ROOT) in line
    assert all(one.startswith("command.py: ") for one in progress)


@pytest.mark.slow
@pytest.mark.parametrize(
    "direction",
    [
        pytest.param(one, marks=[pytest.mark.thorough] * (one != "grad_weight"))
        for one in ("forward", "grad_input", "grad_weight")
    ],
)
def test_a_cpu_is_timed(tmp_path, monkeypatch, capsys, direction):
    """The variants of the compiled backend and NumPy's, each compared with float64, by real time; peers are beside."""
    pytest.importorskip("numba")
    from bench import tilings as command

    out = tmp_path / "out.json"
    arguments = [
        "--geometry",
        "2,8,12,12,16,3,3,1,1",
        "--backend",
        "numba",
        "--direction",
        direction,
        "--json",
        str(out),
    ]
    status = command.main([*arguments, "--rounds", "2", "--seconds", "0.05", "--png", str(tmp_path / "bars.png")])
    assert status == 0, capsys.readouterr().err
    results = json.loads(out.read_text(encoding="utf-8"))["results"]
    labels = {found["variant"] for found in results}
    ways = ["dense", "im2col"] if direction == "grad_weight" else ["by_filters", "by_columns", "im2col"]
    ways.append("winograd")
    assert {f"numba {way}" for way in ways} <= labels <= {f"numba {way}" for way in ways} | {"torch", "onnxruntime"}
    assert all(len(found["us"]) == 2 and found["error"] < 1e-5 for found in results)
    medians = [found["median_us"] for found in results]
    assert medians == sorted(medians)
    assert (tmp_path / "bars.png").stat().st_size > 5000


def test_ctrl_c_keeps_what_was_measured(tmp_path, monkeypatch, capsys):
    """The rounds until then are in the table and in the file, which says that it is not complete."""
    from bench import tilings as command
    from gpuconv.tuning import measure

    rounds = measure.rounds_us

    def interrupted(*arguments, **options):
        yield next(rounds(*arguments, **options))
        raise KeyboardInterrupt

    monkeypatch.setattr(measure, "rounds_us", interrupted)
    out = tmp_path / "out.json"
    arguments = ["--geometry", "2,3,9,8,4,3,3,1,1", "--backend", "numpy", "--seconds", "0.05", "--json", str(out)]
    assert command.main(arguments) == 130
    document = json.loads(out.read_text(encoding="utf-8"))
    assert document["complete"] is False
    assert all(len(found["us"]) == 1 for found in document["results"])
    assert "numpy im2col" in capsys.readouterr().out
