"""Tuning: what is measured, how it is kept, and who decides which variant runs."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pooch
import pytest

import gpuconv
from gpuconv import backends, files, kernels, tuner, tuning
from gpuconv.backends.base import Candidate
from gpuconv.backends.cpu import backend as cpu_backend
from gpuconv.backends.cpu import threads as cpu_threads
from gpuconv.cli import main
from gpuconv.geometry import Conv2dGeometry
from gpuconv.tuning import measure
from gpuconv.tuning import store as tuning_store
from gpuconv.tuning.store import Key, Platform, Winner

COMPILED = backends.get("numba")
GEOMETRY = Conv2dGeometry.of((4, 6, 14, 14), (16, 6, 5, 5))
GPU = Platform("cuda", "a GPU", "driver 1", "0.1.0", "0123")
KEY = Key(GPU, "conv2d", GEOMETRY, "float32")
WINNER = Winner("direct", {"threads": 64}, {"direct 64": 1.5, "tiled": 2.0})


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    """A folder of its own for each test, which need not exist yet."""
    monkeypatch.setenv("GPUCONV_TUNING", str(tmp_path / "store"))
    monkeypatch.delenv("GPUCONV_VARIANTS", raising=False)
    tuning_store.forget()
    yield tmp_path / "store"
    monkeypatch.undo()
    tuning_store.forget()


def file_of(store):
    (path,) = store.iterdir()
    return path


# -- the store -------------------------------------------------------------------------------------------------------

WRITER = """
import os, sys, time
from gpuconv.tuning import store as tuning_store
from gpuconv.geometry import Conv2dGeometry
from gpuconv.tuning.store import Key, Platform, Winner
me, meeting = int(sys.argv[1]), sys.argv[2]
open(f"{meeting}/{me}", "w").close()
while len(os.listdir(meeting)) < 8:
    time.sleep(0.001)
for n in range(1, 26):
    for owner in (me, 99):  # keys of its own, and keys that all of them write
        gpu, geometry = Platform("cuda", f"GPU {owner}", "", "", ""), Conv2dGeometry(n, 1, 9, 9, 1, 3, 3)
        key = Key(gpu, "conv2d", geometry, "float32")
        tuning_store.record(key, Winner(f"of {owner}", {"threads": n}, {"direct": float(n)}))
"""


@pytest.mark.slow
def test_eight_processes_at_once_lose_nothing(store, tmp_path):
    """Of what 8 processes record at the same time, some of it the same, everything is there, whole, and no more."""
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(number), str(meeting)]) for number in range(8)]
    assert [writer.wait(60) for writer in writers] == [0] * 8
    found, broken = tuning_store.entries()
    assert broken == []
    devices = sorted((entry.key.platform.device, entry.key.geometry.n) for entry in found)
    assert devices == sorted((f"GPU {owner}", n) for owner in (*range(8), 99) for n in range(1, 26))
    assert all(entry.winner.tiling == {"threads": entry.key.geometry.n} for entry in found)
    assert len(os.listdir(store)) == len(found)


def test_a_file_cut_at_any_byte_is_passed_over_and_written_again(store, caplog):
    """No beginning of a file gives a winner, or an error, but one warning; the next tuning makes it whole again."""
    tuning_store.record(KEY, WINNER)
    path = file_of(store)
    whole = path.read_bytes()
    for cut in range(len(whole) - 1):  # the last byte is the end of the line
        path.write_bytes(whole[:cut])
        tuning_store.forget()
        caplog.clear()
        assert tuning_store.find(KEY) is None, cut
        assert tuning_store.find(replace(KEY, dtype="float64")) is None
        tuning.choose("conv2d", GEOMETRY, platform=GPU)
        assert [record.levelname for record in caplog.records] == ["WARNING"], cut
        assert str(path) in caplog.text
    assert len(tuning_store.entries()[1]) == 1
    tuning_store.record(KEY, WINNER)
    tuning_store.forget()
    assert tuning_store.find(KEY) == WINNER


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content | {"schema": 2},
        lambda content: [content],
        lambda content: content | {"winner": "direct"},
        lambda content: content | {"winner": content["winner"] | {"microseconds": {"direct": "fast"}}},
        lambda content: content | {"key": content["key"] | {"dtype": "float64"}},
        lambda content: content | {"key": content["key"] | {"geometry": {"n": 1}}},
        lambda content: content | {"key": content["key"] | {"geometry": content["key"]["geometry"] | {"n": {}}}},
    ],
    ids=["schema", "list", "winner", "times", "of another key", "geometry", "unhashable"],
)
def test_a_file_of_another_kind_is_passed_over(change, store, caplog):
    """JSON that is not an entry, or the entry of another key, decides nothing; of two such files one is enough said."""
    keys = KEY, replace(KEY, operation="conv2d_grad_weight")
    for key in keys:
        tuning_store.record(key, WINNER)
    for path in store.iterdir():
        path.write_text(json.dumps(change(json.loads(path.read_text()))))
    tuning_store.forget()
    for key in keys:
        assert tuning_store.find(key) is None
    assert len(caplog.records) == 1


def test_whatever_a_measurement_depends_on_makes_another_key(store):
    """Another device, driver, version, kernel source, operation, type, window or size finds nothing; the same does."""
    tuning_store.record(KEY, WINNER)
    tuning_store.forget()
    for field in asdict(GPU):
        assert tuning_store.find(replace(KEY, platform=replace(GPU, **{field: "other"}))) is None, field
    sizes = {"stride": (2, 1), "dilation": (1, 2), "padding": ((0, 0), (0, 1)), "groups": 2}
    for field in asdict(GEOMETRY):
        other = replace(GEOMETRY, **{field: sizes.get(field, 99)})
        assert tuning_store.find(replace(KEY, geometry=other)) is None, field
    others = ({"operation": "conv2d_grad_input"}, {"dtype": "float64"}, {"window": (2, 2)})
    for other in others:
        assert tuning_store.find(replace(KEY, **other)) is None, other
        tuning_store.record(replace(KEY, **other), replace(WINNER, variant=str(other)))
    tuning_store.forget()
    for other in others:
        assert tuning_store.find(replace(KEY, **other)).variant == str(other)
    assert tuning_store.find(KEY) == WINNER


def test_a_changed_source_changes_the_digest(tmp_path):
    """One character in one kernel makes all that was measured before stale; the order of the files does not count."""
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_text(name)
    before = tuning_store.digest(tmp_path.glob("*.py"))
    assert tuning_store.digest([tmp_path / "b.py", tmp_path / "a.py"]) == before
    (tmp_path / "b.py").write_text("b.pY")
    assert tuning_store.digest(tmp_path.glob("*.py")) != before


@pytest.mark.parametrize("fault", ["full", "a file is in the way", "the file is a folder"])
def test_a_folder_that_cannot_be_written_is_survived(fault, store, monkeypatch, caplog):
    """What cannot be written is an OSError with the file's name; this process goes by the measurement all the same."""
    if fault == "full":
        tuning_store.record(KEY, replace(WINNER, variant="tiled"))

        def fail(*arguments):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", fail)
    elif fault == "a file is in the way":
        store.write_text("")
    else:
        tuning_store.record(KEY, WINNER)
        path = file_of(store)
        path.unlink()
        path.mkdir()
    tuning_store.forget()
    with pytest.raises(OSError, match=r"No space left|exists|directory"):
        tuning_store.record(KEY, WINNER)
    assert tuning_store.find(KEY) == WINNER
    tuning_store.forget()
    before = tuning_store.find(KEY)  # of a new process
    assert before == (replace(WINNER, variant="tiled") if fault == "full" else None)
    assert len(caplog.records) == (fault != "full")


def test_off_keeps_nothing(store, monkeypatch):
    """With GPUCONV_TUNING=off nothing is written or read; by default it is the cache folder that downloads are in."""
    monkeypatch.setenv("GPUCONV_TUNING", "off")
    tuning_store.forget()
    tuning_store.record(KEY, WINNER)
    assert tuning_store.find(KEY) == WINNER
    tuning_store.forget()
    assert tuning_store.find(KEY) is None
    assert not store.exists()
    monkeypatch.delenv("GPUCONV_TUNING")
    tuning_store.forget()
    assert tuning_store.folder() == pooch.os_cache("gpuconv") / "tuning"
    assert files.cache_folder() == pooch.os_cache("gpuconv")


def test_clear_deletes_entries_and_nothing_else(store):
    """Damaged entries go, too; a file that somebody else put there stays."""
    tuning_store.record(KEY, WINNER)
    tuning_store.record(replace(KEY, dtype="float64"), WINNER)
    file = min(store.iterdir())
    file.write_text("{")
    (store / "notes.json").write_text("mine")
    assert tuning_store.clear() == 2
    assert os.listdir(store) == ["notes.json"]
    assert tuning_store.find(KEY) is None


# -- who decides -----------------------------------------------------------------------------------------------------


def test_the_users_word_then_the_store_then_the_rule(monkeypatch):
    """Each of them is asked in that order, and named; on another device, or on none, the rule stands."""
    rule = tuning.choose("conv2d", GEOMETRY, platform=GPU)
    assert (rule.source, rule.variant) == ("rule", "tiled")
    tuning_store.record(KEY, WINNER)
    measured = tuning.choose("conv2d", GEOMETRY, platform=GPU)
    assert (measured.source, measured.variant, measured.tiling.threads) == ("store", "direct", 64)
    rows = dict(tuning.candidates("conv2d", GEOMETRY, platform=GPU))
    assert rows["direct"].startswith("taken, by store: the fastest when it was measured here")
    assert rows["tiled"] == "was slower when it was measured here"
    for elsewhere in ({}, {"platform": replace(GPU, sources="4567")}, {"platform": GPU, "dtype": "float64"}):
        assert tuning.choose("conv2d", GEOMETRY, **elsewhere) == rule, elsewhere
    monkeypatch.setenv("GPUCONV_VARIANTS", "conv2d=tiled")
    assert tuning.choose("conv2d", GEOMETRY, platform=GPU).source == "environment"
    with tuning.use_variant("conv2d", "implicit_gemm"):
        assert tuning.choose("conv2d", GEOMETRY, platform=GPU).source == "use_variant"
        assert tuning.choose("conv2d", GEOMETRY, variant="direct", platform=GPU).source == "argument"


@pytest.mark.parametrize(
    "winner",
    [replace(WINNER, variant="gone"), replace(WINNER, tiling={"threads": 48}), replace(WINNER, variant="depthwise")],
    ids=["variant", "tiling", "refused"],
)
def test_a_winner_that_cannot_run_is_passed_over(winner, caplog):
    """A variant or tiling that there is not, or that refuses the geometry, is a warning, and the rule decides."""
    tuning_store.record(KEY, winner)
    assert tuning.choose("conv2d", GEOMETRY, platform=GPU).source == "rule"
    tuning.choose("conv2d", GEOMETRY, platform=GPU)
    assert len(caplog.records) == 1


def test_every_tiling_survives_the_file():
    """Whatever tiling of a convolution wins, it is found again in the file."""
    for operation in tuner.OPERATIONS:
        for variant in kernels.VARIANTS[operation]:
            module = kernels.load(operation, variant)
            for tiling in module.tilings(GEOMETRY) if module.supports(GEOMETRY) else ():
                key = replace(KEY, operation=operation)
                tuning_store.record(key, Winner(variant, asdict(tiling), {}))
                tuning_store.forget()
                choice = tuning.choose(operation, GEOMETRY, platform=GPU)
                assert (choice.source, choice.variant, choice.tiling) == ("store", variant, tiling)


CASES = [
    (operation, variant) for operation in tuner.OPERATIONS[:2] for variant in ("by_columns", "by_filters", "im2col")
]
CASES += [("conv2d_grad_weight", "dense"), ("conv2d_grad_weight", "im2col")]


@pytest.mark.grid(4)
@pytest.mark.parametrize(("operation", "variant"), CASES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_cpu_runs_what_the_store_names(operation, variant, dtype, monkeypatch):
    """The numba backend runs the winner and explain says so; any number of threads gives the same, right bits."""
    geometry = Conv2dGeometry.of((4, 6, 13, 15), (16, 3, 3, 4), padding=(1, 2), groups=2)
    owner, name = {"im2col": (cpu_backend, "product"), "dense": (cpu_backend, "_correlate")}.get(
        variant, (cpu_backend.conv, f"forward_{variant}")
    )
    real, ran = getattr(owner, name), []
    monkeypatch.setattr(owner, name, lambda *arguments, **options: ran.append(1) or real(*arguments, **options))
    key = Key(COMPILED.tuning_platform(), operation, geometry, dtype)
    tuning_store.record(key, Winner(variant, None, {}))
    tuning_store.forget()
    arrays = tuner._arrays(tuner.Task(operation, geometry, dtype), COMPILED)
    expected = getattr(backends.get("numpy"), operation)(*arrays, geometry)
    results = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(cpu_threads, "_team", cpu_threads.Team(threads))
        results.append(getattr(COMPILED, operation)(*arrays, geometry).copy())
    assert ran
    np.testing.assert_allclose(results[0], expected, rtol=1e-4, atol=1e-4 if dtype == "float32" else 1e-10)
    assert results[0].tobytes() == results[1].tobytes() == results[2].tobytes()
    lines = COMPILED.explain(operation, geometry, dtype)
    assert lines[0].startswith(f"{variant}: ")
    assert lines[0].endswith("taken, by store")


@pytest.mark.slow
def test_the_fused_block_is_tuned_by_its_window():
    """Conv2d → ReLU → MaxPool2d has an entry of its own, which the plain convolution does not look at."""
    block = gpuconv.nn.Sequential(gpuconv.nn.Conv2d(6, 16, 5), gpuconv.nn.ReLU(), gpuconv.nn.MaxPool2d(2))
    x = np.random.default_rng(0).standard_normal(GEOMETRY.input_shape, dtype=np.float32)
    with gpuconv.use_backend("numba"):
        expected = block(x)
        key = Key(COMPILED.tuning_platform(), "conv2d", GEOMETRY, "float32", (2, 2))
        tuning_store.record(key, Winner("by_columns", None, {}))
        (step,) = gpuconv.explain(block, GEOMETRY.input_shape).steps
        assert step.lines[1].startswith("by_columns")
        assert step.lines[1].endswith("taken, by store")
        np.testing.assert_allclose(block(x), expected, rtol=1e-4, atol=1e-5)
        (step,) = gpuconv.explain(block[0], GEOMETRY.input_shape).steps
        assert step.lines[0].endswith("taken, by rule")


# -- measuring -------------------------------------------------------------------------------------------------------


def test_only_what_is_right_is_timed_and_only_what_is_clearly_faster_replaces_the_rule(monkeypatch):
    """Wrong, non-finite and failing candidates never win; neither does one that leads by less than the margin."""
    task = tuner.Task("conv2d", GEOMETRY)
    right = COMPILED.candidates("conv2d", GEOMETRY, "float32")[0].run
    us = {}

    def candidate(name, microseconds, run):
        us[run] = microseconds
        return Candidate(name, None, run)

    def fails(*arrays):
        raise RuntimeError("out of\nresources")

    def one_off(*arrays):
        result = right(*arrays).copy()
        result.flat[-1] += 0.1
        return result

    def late(*arrays):
        return np.roll(right(*arrays), 1)

    candidates = [
        candidate("rule", 100, lambda *arrays: right(*arrays)),
        candidate("hardly faster", 98, lambda *arrays: right(*arrays)),
        candidate("one off", 1, one_off),
        candidate("shifted", 1, late),
        candidate("nan", 1, lambda *arrays: right(*arrays) * np.nan),
        candidate("fails", 1, fails),
    ]
    monkeypatch.setattr(type(COMPILED), "candidates", lambda *task: list(candidates))
    monkeypatch.setattr(measure.HostClock, "sample_us", lambda self, step, host_us: us[step.func])
    (outcome,) = tuner.tune([task], COMPILED)
    assert outcome.winner == outcome.rule == "rule"
    assert [label for label, _ in outcome.microseconds] == ["hardly faster", "rule"]
    assert [label for label, _ in outcome.wrong] == ["one off", "shifted", "nan", "fails"]
    assert dict(outcome.wrong)["nan"] == "gives values that are not finite"
    assert dict(outcome.wrong)["fails"] == "RuntimeError: out of resources"
    candidates.append(candidate("faster", 90, lambda *arrays: right(*arrays)))
    (outcome,) = tuner.tune([task], COMPILED)
    assert outcome.winner == "faster"
    key = Key(COMPILED.tuning_platform(), "conv2d", GEOMETRY, "float32")
    assert tuning_store.find(key).microseconds == {"faster": 90, "hardly faster": 98, "rule": 100}


def test_luck_on_a_busy_machine_does_not_win():
    """A candidate that is faster in the median, but not reliably, leaves the rule's choice in its place."""
    assert measure.clearly_faster([90, 91, 92, 93], [100, 101, 102, 200])
    assert not measure.clearly_faster([98, 98, 98, 98], [100, 100, 100, 100])
    assert not measure.clearly_faster([80, 90, 150, 160], [95, 140, 150, 160])


@pytest.mark.parametrize("late", [0, 2])
def test_the_device_clock_leaves_no_gap(late):
    """The cache is overwritten before each timed call, for longer than the host needs to queue the call.

    If the device was there before the call was queued, the sample is taken again behind twice as many overwrites.
    """
    log, passed = [], [False] * 5 + [True] * late + [False]

    class Event:
        done = property(lambda self: passed.pop(0))

        def record(self):
            log.append("event")

        def synchronize(self):
            log.append("wait")

    filler = SimpleNamespace(fill=lambda value: log.append("fill"))
    xp = SimpleNamespace(
        cuda=SimpleNamespace(
            Event=Event,
            get_elapsed_time=lambda start, end: 0.5,
            Device=lambda: SimpleNamespace(attributes={"L2CacheSize": 1000}),
        ),
        zeros=lambda size, dtype: log.append(size) or filler,
    )
    clock = tuner._device_clock(xp)
    assert log[0] == 4000
    log.clear()

    def call():
        log.append("call")
        time.sleep(0.002)

    host_us = clock.host_us(call)
    assert host_us >= 2000
    log.clear()
    assert clock.sample_us(call, host_us) == pytest.approx(500)
    fills = log.index("event")
    assert fills >= 1 + 1.5 * 2000 / 500
    sample = ["event", "call", "event", "wait"]
    assert log == [one for n in range(late + 1) for one in [*["fill"] * (fills << n), *sample]]


# -- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_tune_measures_keeps_and_lists(store, capsys, monkeypatch):
    """`gpuconv tune lenet5` tunes each convolution of a step once; --list shows it, --clear forgets it."""
    monkeypatch.setattr(tuner, "_ROUNDS", 2)
    assert main(["tune", "lenet5", "--backend", "numba", "--batch", "16"]) == 0
    out = capsys.readouterr().out
    assert out.count("conv2d 16x") == 2
    assert out.count("taken") == 2
    assert str(store) in out
    tuning_store.record(KEY, WINNER)
    (store / "conv2d-damaged.json").write_text("{")
    assert main(["tune", "--list"]) == 0
    out, err = capsys.readouterr()
    assert "conv2d 16x6x14x14 * 16x6x5x5 relu, pool 2x2: by_filters, numba" in out
    assert "conv2d 4x6x14x14 * 16x6x5x5: direct 64, cuda" in out
    assert out.count("not for here") == 1
    assert "conv2d-damaged.json: damaged" in err
    assert main(["tune", "--clear"]) == 0
    assert capsys.readouterr().out == f"4 entries deleted from {store}\n"
    assert os.listdir(store) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "tune takes one of: a MODEL, --geometry, --list, --clear"),
        (["lenet5", "--list"], "tune takes one of"),
        (["lenet"], "did you mean 'lenet5'"),
        (["lenet5", "--op", "conv2d"], "--op and --dtype go with --geometry"),
        (["--geometry", "1,2,3"], "--geometry takes 7 to 10 integers"),
        (["--geometry", "1,2,3,4,5,6,seven"], "got '1,2,3,4,5,6,seven'"),
        (["--geometry", "1,1,3,3,1,5,5"], "larger than the padded input"),
        (["--geometry", "0,1,9,9,1,5,5"], "sizes must be at least 1"),
        (["--geometry", "1,6,9,9,6,5,5,1,0,4"], "groups must divide c and k"),
        (["--geometry", "1,1,9,9,1,5,5,0"], "--geometry: stride must be at least 1, got 0"),
        (["--geometry", "1,1,9,9,1,5,5"], "nothing was measured; conv2d_grad_weight: NumPy computes it"),
        (["--geometry", "8,8,9,9,8,5,5", "--op", "conv2"], "did you mean 'conv2d'"),
        (["--geometry", "8,8,9,9,8,5,5", "--dtype", "half"], "--dtype must be float32 or float64, got 'half'"),
        (["lenet5", "--backend", "numpy"], "the numpy backend has one way to compute a convolution"),
        (["lenet5", "--backend", "cuda"], "the simulator (NUMBA_ENABLE_CUDASIM=1), whose times mean nothing"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line(arguments, says, capsys, store):
    """What cannot be tuned is one line on stderr and status 2, and nothing is kept."""
    backend = [] if "--backend" in arguments else ["--backend", "numba"]
    assert main(["tune", *arguments, *backend]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1
    assert not store.exists()


def test_ctrl_c_keeps_what_was_measured(capsys, monkeypatch, store):
    """Ctrl-C ends with 130; what was measured before is in the store."""
    monkeypatch.setattr(tuner, "_ROUNDS", 2)
    tuned = tuner._tuned

    def second_is_interrupted(task, *rest):
        if task.operation != "conv2d":
            raise KeyboardInterrupt
        return tuned(task, *rest)

    monkeypatch.setattr(tuner, "_tuned", second_is_interrupted)
    assert main(["tune", "--geometry", "4,6,14,14,16,5,5", "--backend", "numba"]) == 130
    assert capsys.readouterr().err == f"gpuconv: interrupted: 1 of 3 were measured; kept in {store}\n"
    assert len(tuning_store.entries()[0]) == 1


def test_a_store_that_cannot_be_written_is_said(capsys, monkeypatch, store):
    """The measurement counts, the status is 0, and one line says what could not be kept and why; none that it was."""
    monkeypatch.setattr(tuner, "_ROUNDS", 2)
    store.write_text("")
    for op in ([], ["--op", "conv2d"]):
        assert main(["tune", "--geometry", "4,6,14,14,16,5,5", *op, "--backend", "numba"]) == 0
        out, err = capsys.readouterr()
        assert err == f"gpuconv: not kept: {store}: {os.strerror(errno.EEXIST)}\n"
        assert "kept" not in out


def test_a_store_that_becomes_full_is_said(capsys, monkeypatch, store):
    """Of three winners the second one is not written: how many are kept, and how many are not, each once."""
    monkeypatch.setattr(tuner, "_ROUNDS", 2)
    record, calls = tuning_store.record, []

    def second_fails(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(store / "x"))
        record(*arguments)

    monkeypatch.setattr(tuning_store, "record", second_fails)
    command = ["tune", "--geometry", "4,6,14,14,16,5,5", "--backend", "numba"]
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == f"2 of 3 kept in {store}"
    assert err == f"gpuconv: 1 not kept: {store / 'x'}: No space left on device\n"
    monkeypatch.setenv("GPUCONV_TUNING", "off")
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert (out.splitlines()[-1], err) == ("not kept: GPUCONV_TUNING is off", "")
