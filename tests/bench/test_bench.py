"""The benchmarks: what they print and write can be relied upon. How fast anything is, is not tested."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
TINY = ("--backend=numpy", "--threads=1", "--batches=1,3", "--seconds=0.01", "--rounds=3")
PEERS = [
    name
    for name, packages in {"torch": ["torch"], "onnxruntime": ["onnx", "onnxruntime"]}.items()
    if all(map(importlib.util.find_spec, packages))
]


def bench(*command: object, python: tuple[str, ...] = ("-m",)) -> subprocess.CompletedProcess[str]:
    """Run a benchmark as its users do, from the repository root; PyTorch comes without its compiler."""
    arguments = [sys.executable, *python, *map(str, command)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests" / "support" / "without_compiler")}
    return subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One tiny run beside all peers that are installed: the finished process and its document."""
    out = tmp_path_factory.mktemp("bench") / "new folder" / "lenet.json"
    process = bench("bench.lenet", *TINY, *(f"--peer={name}" for name in PEERS), f"--json={out}")
    assert process.returncode == 0, process.stderr
    assert [path.name for path in out.parent.iterdir()] == ["lenet.json"]
    return process, json.loads(out.read_text())


@pytest.fixture
def timing(monkeypatch):
    """The measuring core, as a module."""
    monkeypatch.syspath_prepend(str(ROOT))
    from gpuconv.tuning import measure

    return measure


@pytest.mark.slow
def test_results_follow_the_schema(run):
    """The JSON holds what bench/README.md says: every task and batch, every contender, and where it was measured."""
    _, document = run
    fields = ["schema", "benchmark", "date", "complete", "machine", "settings", "results", "memory"]
    assert list(document) == fields
    assert (document["schema"], document["benchmark"], document["complete"]) == (1, "lenet", True)
    assert document["settings"] == {"backend": "numpy", "threads": 1, "peers": PEERS, "seconds": 0.01, "rounds": 3}
    where = ["cpu", "cores", "system", "versions", "commit", "dirty", "thread_pools", "others_busy"]
    assert list(document["machine"]) == where
    assert {"python", "numpy", "gpuconv", *PEERS} <= set(document["machine"]["versions"])
    assert {pool["threads"] for pool in document["machine"]["thread_pools"]} == {1}
    cells = [(result["task"], result["batch"]) for result in document["results"]]
    assert cells == [("training", 1), ("training", 3), ("inference", 1), ("inference", 3)]
    assert document["memory"] == []

    training = ["gpuconv", "gpuconv eager", *(["torch eager", "torch channels_last"] if "torch" in PEERS else [])]
    inference = training + (["onnxruntime"] if "onnxruntime" in PEERS else [])
    for result in document["results"]:
        labels = training if result["task"] == "training" else inference
        assert list(result["images_per_second"]) == list(result["seconds"]) == labels
        assert list(result["speedup"]) == [name for name in PEERS if any(name in label for label in labels)]
        assert all(len(seconds) == 3 and min(seconds) > 0 for seconds in result["seconds"].values())


@pytest.mark.slow
def test_derived_figures_follow_from_the_samples(run):
    """Rates and speedups are NumPy's of the seconds: medians of ratios, against the better variant of a peer."""
    _, document = run
    for result in document["results"]:
        seconds = {label: np.array(values) for label, values in result["seconds"].items()}
        for label, rates in result["images_per_second"].items():
            expected = np.quantile(result["batch"] / seconds[label], [0.25, 0.5, 0.75])
            np.testing.assert_allclose([rates["low"], rates["median"], rates["high"]], expected)
        for peer, ratio in result["speedup"].items():
            variants = [label for label in seconds if label.startswith(peer)]
            assert ratio["against"] == min(variants, key=lambda label: np.median(seconds[label]))
            expected = np.quantile(seconds[ratio["against"]] / seconds["gpuconv"], [0.25, 0.5, 0.75])
            np.testing.assert_allclose([ratio["low"], ratio["median"], ratio["high"]], expected)


@pytest.mark.slow
def test_screen_shows_every_figure(run):
    """What is printed without --out says where, on how many threads, and holds each rate of the JSON."""
    process, document = run
    assert document["machine"]["cpu"] in process.stdout
    assert "1 thread each" in process.stdout
    for result in document["results"]:
        for rates in result["images_per_second"].values():
            assert f"{rates['median']:,.0f}" in process.stdout


def test_a_table_that_is_too_wide_is_listed(monkeypatch):
    """A cell a line, under each other, rows apart: no figure is cut by a narrow terminal."""
    monkeypatch.syspath_prepend(str(ROOT))
    from bench.report import Table

    table = Table("title", ["batch", "gpuconv ms"], [["1", "1,234.5"], ["64", "2"]])
    assert table.listed().splitlines() == [
        "     batch  1",
        "gpuconv ms  1,234.5",
        "",
        "     batch  64",
        "gpuconv ms  2",
    ]


@pytest.mark.slow
def test_memory_is_that_of_training(tmp_path):
    """--memory gives the peak of a process of its own, which holds at least what a step of that batch keeps."""
    out = tmp_path / "lenet.json"
    process = bench("bench.lenet", *TINY, "--batches=1,256", "--rounds=1", "--memory", f"--json={out}")
    assert process.returncode == 0, process.stderr
    one, many = (entry["processes"]["gpuconv"] for entry in json.loads(out.read_text())["memory"])
    assert 10 < one["ready_mb"] <= one["peak_mb"] < 1000
    # The pooled maps of both blocks stay until the backward, whatever the backend: (6 * 14 * 14 + 16 * 5 * 5) floats.
    assert many["peak_mb"] - many["ready_mb"] > 256 * (6 * 14 * 14 + 16 * 5 * 5) * 4 / 2**20
    assert f"{many['peak_mb']:.0f} (+" in process.stdout


@pytest.mark.slow
def test_memory_of_a_peer():
    """PyTorch's process runs the same steps, without gpuconv's compiled backend in it."""
    pytest.importorskip("torch", reason="measures PyTorch's memory")
    process = bench("bench.contenders", "torch channels_last", "--batch=64", "--threads=1", "--backend=no such backend")
    assert process.returncode == 0, process.stderr
    peaks = json.loads(process.stdout)
    assert 50 < peaks["ready_mb"] <= peaks["peak_mb"] < 4000


def test_speedup_is_the_median_of_ratios(timing):
    """Samples of one round are compared: a disturbance of one sample, or of both of a round, changes little.

    The ratio of the medians would be 10 here.
    """
    ours, theirs = [1.0, 2.0, 10.0], [2.0, 30.0, 20.0]
    assert timing.speedup(ours, theirs).median == 2


@pytest.mark.slow
def test_contenders_take_turns_without_the_garbage_collector(timing):
    """Every round has one sample of each contender, begins with another one, and runs with the collector off."""
    import gc

    order, collecting = [], set()

    def step(label):
        if not order or order[-1] != label:
            order.append(label)
        collecting.add((len(order) > 3, gc.isenabled()))

    steps = {label: (lambda label=label: step(label)) for label in "abc"}
    times = timing.measure(steps, seconds=0.006, rounds=3, wait=lambda result: None)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"
    assert collecting == {(False, True), (True, False)}
    assert gc.isenabled()
    assert {label: len(values) for label, values in times.items()} == {"a": 3, "b": 3, "c": 3}


def test_settle_waits_for_busy_threads(timing, monkeypatch):
    """A thread that keeps a core busy is waited for; one that never rests makes settle give up and say so."""
    import threading

    stop = threading.Event()

    def spin():
        while not stop.is_set():
            sum(range(1000))

    monkeypatch.setattr(timing, "_SETTLE_LIMIT_S", 0.2)
    thread = threading.Thread(target=spin)
    thread.start()
    try:
        assert not timing.settle()
    finally:
        stop.set()
        thread.join()
    assert timing.settle()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--peer=torhc"], "--peer: there is no 'torhc'; did you mean 'torch'?"),
        (["--peer=OnnxRuntime"], "did you mean 'onnxruntime'?"),
        (["--backend=nump"], "unknown backend 'nump'; there are cuda, numba, numpy, auto; did you mean 'numpy'?"),
        (["--batches=64,0"], "'0' is not a whole number of at least 1"),
        (["--seconds=nan"], "'nan' is not a number of seconds above 0"),
        (["--threads=two"], "'two' is not a whole number of at least 1"),
        ([f"--json={ROOT}"], "give the name of a file in it"),
        ([f"--json={ROOT / 'LICENSE' / 'lenet.json'}"], "cannot make the folder"),
        (["--fast"], "unrecognized arguments: --fast; --help lists the options"),
    ],
)
def test_bad_arguments_give_one_line(arguments, message):
    """What cannot be measured is refused before anything is, with one line that says what would do, and status 2."""
    process = bench("bench.lenet", *arguments)
    assert (process.returncode, process.stdout) == (2, "")
    assert message in process.stderr
    assert process.stderr.count("\n") == 1


@pytest.mark.parametrize(("peer", "package"), [("torch", "torch"), ("onnxruntime", "onnx")])
def test_missing_peer_says_what_to_install(peer, package):
    """A peer that is not installed is refused with the command that installs it, before anything is measured."""
    hidden = f"import runpy, sys; sys.modules[{package!r}] = None; runpy.run_module('bench.lenet', run_name='__main__')"
    process = bench(hidden, *TINY, f"--peer={peer}", python=("-c",))
    assert (process.returncode, process.stdout) == (2, "")
    assert f"peer {peer} needs {package}" in process.stderr
    assert "not installed: pip install" in process.stderr
    assert process.stderr.count("\n") == 1


def test_contenders_that_disagree_are_not_timed(monkeypatch):
    """A ratio of two networks that do not compute the same means nothing; NaN and float64 do not pass either."""
    monkeypatch.syspath_prepend(str(ROOT))
    from bench import lenet

    def constant(value, dtype=np.float32):
        return lambda: np.full((2, 10), value, dtype)

    lenet._check_equal({"gpuconv": constant(1), "torch": constant(1 + 1e-6)}, "inference")
    for other, message in (
        (constant(1.001), "torch differs from gpuconv by 0.001; it is not timed"),
        (constant(np.nan), "torch differs from gpuconv by nan"),
        (constant(1, np.float64), "torch computes in float64 instead of float32"),
    ):
        with pytest.raises(lenet.Refused, match=message):
            lenet._check_equal({"gpuconv": constant(1), "torch": other}, "inference")


def test_interrupt_keeps_what_was_measured(tmp_path):
    """Ctrl-C after the first figure: status 130, the figure is shown and written, the file says it is not complete."""
    out = tmp_path / "lenet.json"
    # The second batch takes far longer than it takes to stop it.
    command = [sys.executable, "-m", "bench.lenet", *TINY, "--batches=1,4096", f"--json={out}"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert "training, batch 1:" in process.stderr.readline()
        os.kill(process.pid, signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    document = json.loads(out.read_text())
    assert not document["complete"]
    assert [(result["task"], result["batch"]) for result in document["results"]] == [("training", 1)]
    assert "LeNet-5, training step" in stdout
    assert "Traceback" not in stderr


@pytest.mark.slow
def test_report_round_trip(run, tmp_path):
    """The tables are written between the markers and nowhere else; --check tells old ones from current ones."""
    _, document = run
    results, readme = tmp_path / "results", tmp_path / "README.md"
    results.mkdir()
    (results / "lenet.json").write_text(json.dumps(document))
    before, after = "# Title\n\n`<!-- bench:lenet -->` in the text is no marker\n\n", "\n\nthe rest\n"
    readme.write_text(f"{before}<!-- bench:lenet -->\nold\n<!-- /bench:lenet -->{after}")
    command = ("bench.report", f"--readme={readme}", f"--results={results}")

    assert bench(*command, "--check").returncode == 1
    assert "old" in readme.read_text()
    assert bench(*command).returncode == 0
    text = readme.read_text()
    assert text.startswith(before)
    assert text.endswith(after)
    for result in document["results"]:
        for rates in result["images_per_second"].values():
            assert f"| {rates['median']:,.0f} |" in text
    assert bench(*command, "--check").returncode == 0

    other = copy.deepcopy(document)
    other["results"][0]["images_per_second"]["gpuconv"]["median"] *= 2
    (results / "lenet.json").write_text(json.dumps(other))
    outdated = bench(*command, "--check")
    assert outdated.returncode == 1
    assert "run python -m bench.report" in outdated.stdout
    assert readme.read_text() == text


@pytest.mark.parametrize(
    ("text", "results", "message"),
    [
        ("<!-- bench:lenet -->\ntext\n<!-- bench:lenet -->\n<!-- /bench:lenet -->\n", {}, "without counterpart"),
        ("<!-- bench:lennet -->\n<!-- /bench:lennet -->\n", {}, "bench:lennet: no such benchmark; there are lenet"),
        ("<!-- bench:lenet -->\n<!-- /bench:lenet -->\n", {}, "no results in"),
        ("<!-- bench:lenet -->\n<!-- /bench:lenet -->\n", {"a.json": "{"}, "a.json: cannot be read"),
        ("<!-- bench:lenet -->\n<!-- /bench:lenet -->\n", {"a.json": "{}"}, "a.json: not results of schema 1"),
    ],
)
def test_report_refuses_what_it_cannot_render(text, results, message, tmp_path):
    """A broken README or file of results changes nothing: one line that names the marker or file, and status 2."""
    (tmp_path / "README.md").write_text(text)
    for name, content in results.items():
        (tmp_path / name).write_text(content)
    process = bench("bench.report", f"--readme={tmp_path / 'README.md'}", f"--results={tmp_path}")
    assert process.returncode == 2
    assert message in process.stderr
    assert process.stderr.count("\n") == 1
    assert (tmp_path / "README.md").read_text() == text


def test_tables_of_the_documentation_are_current():
    """The figures in docs/performance.md and docs/gpu.md are those of bench/results."""
    process = bench("bench.report", "--check")
    assert process.returncode == 0, process.stdout + process.stderr
