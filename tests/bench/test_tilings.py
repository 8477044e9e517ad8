"""bench.tilings: what it ranks and refuses; kernels of one's own, and the faults planted in one of them."""

from __future__ import annotations

import dataclasses
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


# -- faults ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
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
def test_an_edge_that_is_not_written(tmp_path):
    """A grid that is rounded down: how many elements are not written, and which."""
    verdict = verified(planted(tmp_path, "-(-geometry.p // tiling.rows)", "max(1, geometry.p // tiling.rows)"))
    assert verdict.kinds() == ["unwritten"]
    assert "190 of 2470 elements of the result were not written: all of [:, :, 12, :]" in verdict.text()


@pytest.mark.slow
def test_a_float64_accumulator(tmp_path):
    """It is right, and over its budget: the line that makes a sum float64 is shown, and it is ranked all the same."""
    path = planted(tmp_path, "total = bias[filter_]", "total = 0.0 + bias[filter_]")
    verdict = verified(path)
    if "not compiled" in verdict.kinds():
        pytest.skip(verdict.text())
    assert "float64" in verdict.kinds()
    assert (verdict.right, verdict.clean) == (True, False)
    (where,) = {f.where for _, _, f in verdict.findings if f.kind == "float64"}
    assert where == (f"my_conv.py:{line_of(path, '0.0 + bias')}",)
    assert len(verdict.rows) == 2


@pytest.mark.slow
def test_a_write_out_of_bounds(tmp_path):
    """The element, the array's shape, the line and the thread."""
    path = planted(tmp_path, "if row < p and column < q", "if row <= p and column < q")
    verdict = verified(path)
    assert verdict.kinds() == ["out-of-bounds write"]
    assert f"of shape (2, 5, 13, 19) at my_conv.py:{line_of(path, '= total')} by thread" in verdict.text()


@pytest.mark.slow
def test_a_write_beside_an_array(tmp_path):
    """What the trace cannot see, a write by the function that launches, changes a guard zone."""
    beside = "    np.lib.stride_tricks.as_strided(out, (out.size + 1,), (out.itemsize,))[out.size] = 0\n    for one in"
    verdict = verified(planted(tmp_path, "    for one in", beside))
    assert verdict.kinds() == ["guard zone"]
    assert "the memory after out was written to" in verdict.text()


@pytest.mark.grid(2)
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
        ("return Tiling(4, 8), Tiling(8, 16)", "return ()", "contract", "tilings returned ()"),
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
        *("--layer", "lenet.conv2", "--batch", 3, "--variants", "direct", "--json", out, "--png", picture),
        *("--kernel", wrong, "--kernel", tmp_path / "template.py", "--kernel", tmp_path / "missing.py"),
    )
    assert done.returncode == 1, done.stderr
    assert "STATIC ANALYSIS, nothing was timed" in done.stdout
    assert "my_conv.py: wrong" in done.stdout
    assert "template.py: right; " in done.stdout
    assert "missing.py: No such file" in done.stdout
    document = json.loads(out.read_text(encoding="utf-8"))
    ranked = [(found["variant"], *found["tiling"].values()) for found in document["results"]]
    assert sorted(ranked) == [
        ("direct", 64),
        ("direct", 128),
        ("direct", 256),
        ("template.py", 128),
        ("template.py", 256),
    ]
    assert document["settings"]["geometry"] == "3x6x14x14 * 16x6x5x5"
    bounds = [found["floor_us"] for found in document["results"]]
    assert bounds == sorted(bounds)
    assert all(found["us"] == [] for found in document["results"])
    assert [path.name for path in picture.iterdir()] == ["conv2d-lenet5.conv2.png"]


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
    (line,) = device.measure(place, Clock(), "conv2d", geometry, document, lambda text: None)
    assert line.startswith("mine Tiling(rows=4, columns=8): result 0 differs")
    assert [found["us"] for found in document["results"]] == [[25.0] * 5, [25.0] * 5, []]
    assert document["peer_median_us"] == 25.0


# -- what is asked for -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--layer", "lenet.conv3"], "there is no 'lenet.conv3'; did you mean 'lenet5.conv2'?"),
        (["--layer", "lenet.conv2", "--variants", "tild"], "conv2d has no 'tild'; did you mean 'tiled'?"),
        (["--layer", "lenet.conv2", "--variants", "depthwise"], "supports 128x6x14x14 * 16x6x5x5: depthwise:"),
        (["--geometry", "1,2,3"], "not nine whole numbers, n,c,h,w,k,r,s,stride,pad"),
        (["--geometry", "1,1,4,4,1,9,9,1,0"], "larger than the padded input, 4x4"),
        (["--geometry", "70000,64,32,32,64,3,3,1,1", "--variants", "direct"], "64-bit offsets"),
        (["--layer", "lenet.conv2", "--backend", "numpy", "--kernel", "x.py"], "a kernel for a GPU cannot run on"),
        (["--layer", "lenet.conv2", "--json", "/nowhere/x.json"], "is a folder, or is in one that does not exist"),
        (["--layer", "lenet.conv2", "--png", "/nowhere/x.png"], "is in a folder that does not exist"),
        ([], "say which layer"),
    ],
)
def test_what_cannot_be_ranked(arguments, words):
    """One line and status 2."""
    done = tilings(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("direction", ["forward", "grad_input", "grad_weight"])
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
    assert {f"numba {way}" for way in ways} <= labels <= {f"numba {way}" for way in ways} | {"torch", "onnxruntime"}
    assert all(len(found["us"]) == 2 and found["error"] < 1e-5 for found in results)
    medians = [found["median_us"] for found in results]
    assert medians == sorted(medians)
    assert (tmp_path / "bars.png").stat().st_size > 5000


def test_ctrl_c_keeps_what_was_measured(tmp_path, monkeypatch, capsys):
    """The rounds until then are in the table and in the file, which says that it is not complete."""
    from bench import tilings as command
    from bench import timing

    rounds = timing.each_round

    def interrupted(*arguments, **options):
        yield next(rounds(*arguments, **options))
        raise KeyboardInterrupt

    monkeypatch.setattr(timing, "each_round", interrupted)
    out = tmp_path / "out.json"
    arguments = ["--geometry", "2,3,9,8,4,3,3,1,1", "--backend", "numpy", "--seconds", "0.05", "--json", str(out)]
    assert command.main(arguments) == 130
    document = json.loads(out.read_text(encoding="utf-8"))
    assert document["complete"] is False
    assert all(len(found["us"]) == 1 for found in document["results"])
    assert "numpy im2col" in capsys.readouterr().out
