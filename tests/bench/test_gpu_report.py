"""`bench.gpu_report`: stages that pass, fail, hang, flood; what is killed, written and shown. And its real stages, as
far as they run without a GPU."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from support import sampling
from support.processes import alive, wait_until

from bench import command, gpu_report, gpu_stages
from bench.gpu_report import Stage
from gpuconv import backends

ROOT = Path(__file__).resolve().parents[2]
#: What the fake stages are: scripts, given the file that they may write.
PASSES = "write({'figure': 1}); print('fine')"
FAILS = "write({'figure': 2}); print('a line', 'the last line', sep='\\n'); sys.exit(1)"
SAYS_WHY = "write({'wrong': 'kernel seven'}); sys.exit(1)"
NOT_HERE = "write({'not_run': 'no tool'}); sys.exit(3)"
REFUSES = "write({'refused': 'no GPU'}); sys.exit(2)"
PARTIAL = "write({'figure': 3}); Path(target).write_text('{\"figure\": 3, \"mo'); sys.exit(0)"
HANGS = """
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])
write({'figure': 4, 'pids': [os.getpid(), child.pid]})
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.SIG_IGN)
time.sleep(600)
"""
LEAVES_A_CHILD = """
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])
write({'pids': [child.pid]})
"""
FLOODS = """
sys.stdout.write('the first line\\n')
for _ in range(300):
    sys.stdout.write('x' * 99_999 + '\\n')
print('the last line')
write({'figure': 5})
"""
HEAD = "import json, os, signal, subprocess, sys, time\nfrom pathlib import Path\ntarget = sys.argv[1]\n"
HEAD += "def write(found): Path(target).write_text(json.dumps(found))\n"


def digest(path):
    figures = json.loads(path.read_text())
    return figures, [f"figure {figures.get('figure')}"]


def fake(name, code, limit=30.0, **options):
    def command(job):
        return [sys.executable, "-c", HEAD + textwrap.dedent(code), str(job.out / f"{name}.json")]

    return Stage(name, f"about {name}", limit, command, f"{name}.json", digest, **options)


@pytest.fixture
def report(tmp_path, capfd):
    """Makes a report of fake stages: exit code, document, what was printed, what was said."""

    def make(*stages, arguments=()):
        code = gpu_report.main(["--out", str(tmp_path / "r"), *arguments], stages)
        output = capfd.readouterr()
        return code, json.loads((tmp_path / "r" / "report.json").read_text()), output.out, output.err

    return make


# -- the driver --------------------------------------------------------------------------------------------------------


def test_each_outcome(report, tmp_path):
    """Passed, failed, not run: status, seconds, figures and why; logs; exit code 1 because one failed."""
    stages = [
        fake("one", PASSES),
        fake("two", FAILS),
        fake("three", SAYS_WHY),
        fake("four", NOT_HERE),
        fake("five", PARTIAL),
        dataclasses.replace(fake("six", PASSES), command=lambda job: "no such module"),
    ]
    code, document, shown, said = report(*stages)
    assert code == 1
    assert document["complete"]
    assert document["benchmark"] == "gpu-report"
    assert document["machine"]["commit"] == command.describe()["commit"]
    found = document["stages"]
    assert {name: entry["status"] for name, entry in found.items()} == {
        "one": "passed",
        "two": "failed",
        "three": "failed",
        "four": "not run",
        "five": "passed",
        "six": "not run",
    }
    assert found["one"]["figures"] == {"figure": 1}
    assert 0 <= found["one"]["seconds"] < 30  # rounded
    assert found["two"]["why"] == "exit code 1: the last line"
    assert found["two"]["figures"] == {"figure": 2}
    assert found["three"]["why"] == "kernel seven"
    assert found["four"]["why"] == "no tool"
    assert found["five"]["figures"]["unreadable"].startswith("JSONDecodeError")
    assert found["six"]["why"] == "no such module"
    assert (tmp_path / "r" / "logs" / "two.log").read_text() == "a line\nthe last line\n"
    assert said.splitlines()[0] == "one: about one; at most 30 s"
    assert "two         failed" in shown
    assert shown.splitlines()[-1].startswith("failed: two, three; ")


def test_nothing_failed(report):
    """Exit code 0, also if a stage does not apply here."""
    code, document, shown, _ = report(fake("one", PASSES), fake("two", NOT_HERE))
    assert code == 0
    assert shown.splitlines()[-1].startswith("nothing failed; ")
    assert [entry["status"] for entry in document["stages"].values()] == ["passed", "not run"]


@pytest.mark.slow
def test_a_stage_that_hangs_is_killed_with_its_children(report, tmp_path):
    """When its time is over, though it ignores signals; what it had written is in the report, and the next one runs."""
    start = time.monotonic()
    code, document, _, _ = report(fake("one", HANGS, limit=1.5), fake("two", PASSES))
    assert time.monotonic() - start < 20
    assert code == 1
    entry = document["stages"]["one"]
    assert (entry["status"], entry["why"]) == ("timed out", "killed after 2 s")  # rounded
    assert entry["figures"]["figure"] == 4
    assert len(entry["figures"]["pids"]) == 2
    wait_until(lambda: not any(map(alive, entry["figures"]["pids"])))
    assert document["stages"]["two"]["status"] == "passed"


@pytest.mark.slow
def test_the_rest_of_the_time_may_run_out(report):
    """Of the stage that is there for it: passed with what it has found, unless something was wrong."""
    wrong = HANGS.replace("'figure': 4", "'figure': 4, 'wrong': 'kernel seven'")
    stages = [fake("one", HANGS, limit=1.0, rest=True), fake("two", wrong, limit=1.0, rest=True)]
    _, document, _, _ = report(*stages, fake("three", "time.sleep(600)", limit=0.2, rest=True))
    assert [entry["status"] for entry in document["stages"].values()] == ["passed", "failed", "failed"]
    assert document["stages"]["two"]["why"] == "kernel seven"


def test_what_a_stage_leaves_is_killed(report):
    """A child that holds the stage's output open, when the stage itself has ended."""
    start = time.monotonic()
    code, document, _, _ = report(fake("one", LEAVES_A_CHILD))
    assert (code, document["stages"]["one"]["status"]) == (0, "passed")
    assert time.monotonic() - start < 20
    wait_until(lambda: not any(map(alive, document["stages"]["one"]["figures"]["pids"])))


def test_a_flood_is_cut(report, tmp_path):
    """30 MB of output: the stage does not wait, and the log has the beginning and the end."""
    code, document, _, _ = report(fake("one", FLOODS))
    assert (code, document["stages"]["one"]["figures"]) == (0, {"figure": 5})
    log = (tmp_path / "r" / "logs" / "one.log").read_text()
    assert len(log) < 2_000_000
    assert log.startswith("the first line\nxxx")
    assert log.endswith("x\nthe last line\n")
    assert " bytes left out ..." in log


@pytest.mark.slow
def test_all_have_a_limit_together(report, monkeypatch):
    """A stage gets its own or what is left; one for which nothing is left does not run, which is no failure."""
    monkeypatch.setattr(gpu_report, "_LEAST", 0.5)
    slow = "time.sleep(1.5); write({'figure': 1})"
    code, document, _, _ = report(
        fake("one", slow), fake("two", HANGS), fake("three", PASSES), arguments=["--limit", "4"]
    )
    assert code == 1
    one, two, three = document["stages"].values()
    assert (one["status"], one["limit_s"]) == ("passed", 4.0)
    assert two["status"] == "timed out"
    assert 0.5 < two["limit_s"] < 2.5
    assert (three["status"], three["why"]) == ("not run", "no time was left")


@pytest.mark.parametrize(("script", "status"), [(FAILS, "failed"), (HANGS, "timed out")])
def test_a_needed_stage_that_fails_ends_the_report(report, script, status):
    """What comes behind is not run, and says because of which; and what failed is named."""
    code, document, shown, _ = report(
        fake("one", PASSES, needed=True), fake("two", script, limit=1.5, needed=True), fake("three", PASSES)
    )
    assert code == 1
    assert document["stages"]["two"]["status"] == status
    assert document["stages"]["three"]["why"] == "two failed"
    assert shown.splitlines()[-1].startswith("failed: two; ")


def test_a_machine_that_cannot_is_refused_in_one_line(report):
    """By the environment stage: exit code 2; the report is written all the same."""
    code, document, shown, said = report(fake("environment", REFUSES, needed=True), fake("two", PASSES))
    assert code == 2
    assert shown == ""
    assert said.splitlines()[-1] == "bench.gpu_report: no GPU"
    assert document["stages"]["environment"]["why"] == "no GPU"


def test_the_environments_machine_is_the_reports(report):
    """Device and driver, and on the first line of the summary."""
    described = {**command.describe(), "gpu": {"name": "NVIDIA X", "driver": "1.2", "versions": {"torch": "2.9"}}}
    script = f"write({{'machine': json.loads({json.dumps(json.dumps(described))})}})"
    only_machine = dataclasses.replace(
        fake("environment", script), digest=lambda path: (json.loads(path.read_text()), [])
    )
    code, document, shown, _ = report(only_machine)
    assert code == 0
    assert document["machine"]["gpu"]["name"] == "NVIDIA X"
    assert document["stages"]["environment"]["figures"] == {}
    assert shown.startswith("NVIDIA X, driver 1.2, commit ")
    assert "torch 2.9" in shown


def test_the_report_is_there_after_each_stage(report, tmp_path):
    """The second stage finds the first in it."""
    copy = "write(json.loads((Path(target).parent / 'report.json').read_text())['stages'])"
    _, document, _, _ = report(fake("one", PASSES), fake("two", copy))
    assert list(document["stages"]["two"]["figures"]) == ["one"]
    assert document["stages"]["two"]["figures"]["one"]["figures"] == {"figure": 1}


def test_old_results_are_not_taken_for_new_ones(report, tmp_path):
    """A file that another run left in the folder; others are left alone."""
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "one.json").write_text('{"figure": 99}')
    (tmp_path / "r" / "other.json").write_text("{}")
    _, document, _, _ = report(fake("one", "sys.exit(1)"))
    assert "FileNotFoundError" in document["stages"]["one"]["figures"]["unreadable"]
    assert (tmp_path / "r" / "other.json").exists()


def test_only_and_list(report, capfd):
    """Some stages alone, in their order; the list names all; an unknown one is refused in one line."""
    stages = [fake("one", PASSES), fake("two", PASSES), fake("three", PASSES)]
    _, document, _, _ = report(*stages, arguments=["--only", "three", "--only", "one"])
    assert list(document["stages"]) == ["one", "three"]
    assert gpu_report.main(["--list"], stages) == 0
    assert [line.split()[0] for line in capfd.readouterr().out.splitlines()] == ["one", "two", "three"]
    for wrong in (["--only", "four", "--out", "x"], [], ["--out", "x", "--limit", "0"]):
        assert gpu_report.main(wrong, stages) == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert line.startswith("bench.gpu_report: ")


@pytest.mark.parametrize("bad", [False, True])
def test_the_summary_fits_a_screen(bad):
    """Eighty columns and twenty-four lines, with the prompt, however much the real stages have to say."""
    long = "a very long reason " * 40 + "\nand more"
    stages = {
        stage.name: {
            "status": "timed out" if bad else "passed",
            "why": long if bad else None,
            "seconds": 480.0,
            "lines": [long, long],
            "figures": {},
        }
        for stage in gpu_report.STAGES
    }
    gpu = {"name": "NVIDIA " + "X" * 90, "driver": "580.159.04", "versions": {"numba-cuda": "0.30.4"}}
    document = {"machine": {**command.describe(), "gpu": gpu}, "stages": stages, "complete": True}
    shown = gpu_report.summary(document, Path("results") / "report.json").splitlines()
    assert len(shown) <= 23
    assert max(map(len, shown)) <= 79
    # Every stage is on it, and the outcome.
    for name in stages:
        assert any(line.startswith(name) for line in shown) or shown[-2] == "..."
    assert shown[-1].startswith("failed: environment" if bad else "nothing failed")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c(number, tmp_path):
    """The stage's group is killed, what is there is written, one line is said; so when it is terminated."""
    script = tmp_path / "run.py"
    script.write_text(
        f"import sys\nsys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}, {str(ROOT / 'tests' / 'bench')!r}]\n"
        "from bench import gpu_report\nfrom test_gpu_report import HANGS, PASSES, fake\n"
        "stages = [fake('one', PASSES), fake('two', HANGS), fake('three', PASSES)]\n"
        f"sys.exit(gpu_report.main(['--out', {str(tmp_path / 'r')!r}], stages))\n"
    )
    process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    written = tmp_path / "r" / "two.json"
    wait_until(lambda: written.exists() and written.read_text().endswith("}"))
    pids = json.loads(written.read_text())["pids"]
    process.send_signal(number)
    shown, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert shown == ""
    assert said.splitlines()[2:] == [f"bench.gpu_report: interrupted; what there was is in {tmp_path}/r/report.json"]
    wait_until(lambda: not any(map(alive, pids)))
    document = json.loads((tmp_path / "r" / "report.json").read_text())
    assert not document["complete"]
    assert [entry["status"] for entry in document["stages"].values()] == ["passed", "interrupted"]
    assert document["stages"]["two"]["figures"]["figure"] == 4


# -- the real stages ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("versions", "words"),
    [
        ({"numpy": "2.5.0"}, "NumPy 2.5.0 with numba-cuda 0.30.4: nothing compiles .*pip install 'numpy<2.5'"),
        ({"numpy": "2.10.1"}, "NumPy 2.10.1 with numba-cuda 0.30.4"),
        ({"torch": None}, "torch is not installed"),
    ],
)
def test_versions_are_refused_in_one_line(versions, words, monkeypatch, capfd, tmp_path):
    """Before anything is imported or written: NumPy 2.5 with that numba-cuda, a missing package."""
    real, given = importlib.metadata.version, {"numpy": "2.4.6", "numba-cuda": "0.30.4", "torch": "2.11.0", **versions}

    def version(package):
        if given.get(package, "") is None:
            raise importlib.metadata.PackageNotFoundError(package)
        return given.get(package) or real(package)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert gpu_report.main(["--out", str(tmp_path / "r")]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert pytest.importorskip("re").search(f"^bench.gpu_report: {words}", line)
    assert not (tmp_path / "r" / "report.json").exists()
    given |= {"numpy": "2.5.0", "numba-cuda": "0.31.0", "torch": "2.11.0"}
    gpu_stages.refuse_versions()
    given |= {"numpy": "2.4.6", "numba-cuda": "0.30.4"}
    gpu_stages.refuse_versions()
    monkeypatch.setattr(gpu_stages.importlib.util, "find_spec", lambda name: None)
    assert gpu_report.main(["--out", str(tmp_path / "r")]) == 2
    assert capfd.readouterr().err.startswith("bench.gpu_report: gpuconv is not installed for this Python: ")


def stage(name, out, *arguments):
    """A real stage as the report runs it, in a process of its own: exit code, and what it wrote."""
    command = [sys.executable, "-m", "bench.gpu_stages", name, "--out", str(out), "--jobs", "2", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    path = out / f"{name}.json"
    return done, path if path.exists() else None


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_first_contact_finds_a_wrong_captured_step(monkeypatch, dtype):
    """One that is right in its first call, and a millionth off behind it: in either precision."""
    import gpuconv

    def capture(step):
        losses, calls = [], iter(range(100))

        def run(images, labels):
            losses.append(float(step(images, labels)))
            wrong = next(calls) > 2 and images.dtype == dtype
            return losses[-1] * (1 + 1e-4 * wrong)

        return run

    wanted = gpu_stages._losses("numpy", 2, 5, "float64")
    assert gpu_stages._compare_captured("numpy", 2, 5, wanted).startswith("5 losses within 0e+00")
    monkeypatch.setattr(gpuconv, "capture", capture)
    with pytest.raises(AssertionError, match=f"captured, {dtype}, beside eager"):
        gpu_stages._compare_captured("numpy", 2, 5, wanted)
    with pytest.raises(AssertionError, match="eager, float64, beside NumPy"):
        gpu_stages._compare_captured("numpy", 2, 5, [1.001 * loss for loss in wanted])


def test_first_contact_that_fails_names_what(monkeypatch, tmp_path):
    """A part that raises is wrong, and the others go on; the report's reason has its name."""
    monkeypatch.setattr(gpu_stages, "_pooling", lambda backend: 1 / 0)
    monkeypatch.setattr(gpu_stages, "_compare_captured", lambda *_: "fine")
    monkeypatch.setattr(gpu_stages, "_compare_eager", lambda *_: "fine")
    monkeypatch.setattr(gpu_stages, "_torch_arrays", lambda: "fine")
    monkeypatch.setattr(gpu_stages.compiling, "recorded_work", lambda wanted: [])
    monkeypatch.setattr(gpu_stages.compiling, "compile_all", lambda *_: 0)
    arguments = ["contact", "--out", str(tmp_path), "--backend", "numpy", "--batches", "2", "--steps", "2"]
    assert gpu_stages.main(arguments) == 1
    figures, lines = gpu_report._contact(tmp_path / "contact.json")
    assert figures["wrong"] == "pooling and ReLU: ZeroDivisionError: division by zero"
    assert lines[0].startswith("6 of 7 right")


@pytest.mark.slow
def test_first_contact_that_hangs_says_where(tmp_path):
    """When its seconds are over it ends itself; the part that it was in is not right."""
    script = (
        "import sys, time; from bench import gpu_stages as g\n"
        "g._pooling = lambda backend: time.sleep(100); g.compiling.recorded_work = lambda wanted: []\n"
        "g.compiling.compile_all = lambda *_: 0\n"
        f"sys.exit(g.main(['contact', '--out', {str(tmp_path)!r}, '--backend', 'numpy', '--batches', '2', "
        "'--steps', '2', '--seconds', '1.5']))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "Timeout" in done.stderr
    figures, _ = gpu_report._contact(tmp_path / "contact.json")
    assert figures["wrong"] == "pooling and ReLU: did not come to its end"


@pytest.mark.slow
def test_training_beside_the_cpu(tmp_path, monkeypatch):
    """One epoch on two backends of the CPU: accuracies, seconds, images a second; a worse one, or a word of what could
    not be captured, fails."""
    from gpuconv import training

    real, done = training.fit, {}

    def once(config, out, *, on_event):
        """Both runs are trained once, and told again."""
        if out.name not in done:
            events = []
            done[out.name] = real(config, out, on_event=events.append), events
        result, events = done[out.name]
        for event in events:
            on_event(event)
        return result

    monkeypatch.setattr(training, "fit", once)
    arguments = ["training", "--out", str(tmp_path), "--backend", "numba", "--epochs", "1"]
    assert gpu_stages.main(arguments) == 0
    figures, (line,) = gpu_report._training(tmp_path / "training.json")
    assert figures["gpu"]["test_accuracy"] == figures["cpu"]["test_accuracy"] > 0.8
    assert figures["gpu"]["images_per_second"] > 0
    assert len(figures["gpu"]["epochs"]) == 1
    assert f"; CPU {figures['cpu']['test_accuracy']:.2%}" in line
    assert "wrong" not in figures

    def worse(config, out, **options):
        result = once(config, out, **options)
        return dataclasses.replace(result, test_accuracy=0.12) if out.name == "gpu" else result

    monkeypatch.setattr(training, "fit", worse)
    assert gpu_stages.main(arguments) == 1
    figures, (line,) = gpu_report._training(tmp_path / "training.json")
    assert figures["wrong"] == line
    assert line.startswith("12.00% in ")

    def speaks(config, out, **options):
        logging.getLogger("gpuconv.training").warning("could not be captured")
        return once(config, out, **options)

    monkeypatch.setattr(training, "fit", speaks)
    assert gpu_stages.main(arguments) == 1
    assert gpu_report._training(tmp_path / "training.json")[0]["wrong"] == "could not be captured"


TESTS = """
import time
import pytest

pytestmark = pytest.mark.gpu

@pytest.mark.parametrize("n", range(6))
def test_real_size(n):
    time.sleep(0.5)

def test_one(): pass
def test_two(): assert 1 == 2, "one is not two"
def test_three(): pytest.skip("not here")
def test_compute_sanitizer(): assert False
"""


@pytest.fixture
def tests_file(tmp_path):
    path = tmp_path / "test_of_a_gpu.py"
    path.write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu: one\n")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_tests_without_real_sizes(tests_file, jobs):
    """Neither those nor compute-sanitizer's are chosen; one that fails is named, with what it says."""
    done, path = stage("tests", tests_file.parent, "--tests", str(tests_file), "--jobs", jobs)
    assert done.returncode == 1, done.stdout + done.stderr
    figures, lines = gpu_report._tests(path)
    assert (figures["wanted"], figures["passed"]) == (3, 1)
    assert figures["wrong"].startswith("1 failed: test_two: AssertionError: one is not two")
    assert list(figures["skipped"]) == ["test_three"]
    assert lines == ["1 passed, 1 failed, 1 skipped"]
    assert set(figures["slowest"]) >= {"test_one", "test_two"}


@pytest.mark.slow
def test_real_sizes_for_the_time_that_there_is(tests_file):
    """Ended by itself when that is over, and passed if nothing was wrong until then."""
    done, path = stage("real-sizes", tests_file.parent, "--tests", str(tests_file), "--jobs", "1", "--seconds", "1.2")
    assert done.returncode == 0, done.stdout + done.stderr
    figures, (line,) = gpu_report._tests(path)
    assert figures["stopped"]
    assert 1 <= figures["passed"] < 6
    assert line == f"{figures['passed']} passed, 0 failed, 0 skipped of 6"


@pytest.mark.slow
def test_tests_that_do_not_run_say_why(tmp_path):
    """Without a GPU tests/test_gpu.py is skipped as a whole, which is no success."""
    done, path = stage("tests", tmp_path, "--jobs", "1")
    assert done.returncode == 1, done.stdout + done.stderr
    assert gpu_report._tests(path)[0]["passed"] == 0


def test_a_missing_sanitizer_is_no_failure(monkeypatch, tmp_path):
    """The stage says that it is missing."""
    monkeypatch.setattr(gpu_stages.shutil, "which", lambda name: None)
    assert gpu_stages.main(["sanitizer", "--out", str(tmp_path)]) == 3
    figures, _ = gpu_report._sanitizer(tmp_path / "sanitizer.json")
    assert figures["not_run"].startswith("compute-sanitizer is not installed")


@pytest.mark.parametrize(("clean", "outcome"), [(0, 0), (9, 1), (1, 1)])
def test_the_sanitizer_finds_a_planted_fault_first(monkeypatch, tmp_path, clean, outcome):
    """With a stand-in: a planted fault is found, then all variants are clean, or not. One that finds nothing: left."""
    tool = tmp_path / "compute-sanitizer"
    cases = f'*"variants 1 1") echo ERRORS; exit {clean};;\n*racecheck*) exit 0;;\n*) exit 9;;'
    tool.write_text(f'#!/bin/sh\ncase "$*" in\n{cases}\nesac\n')
    tool.chmod(0o755)
    monkeypatch.setattr(gpu_stages.shutil, "which", lambda name: str(tool))
    assert gpu_stages.main(["sanitizer", "--out", str(tmp_path)]) == outcome
    figures, _ = gpu_report._sanitizer(tmp_path / "sanitizer.json")
    assert figures["memcheck"] == ("clean" if clean == 0 else "ERRORS")
    assert figures["racecheck"].startswith("does not find a planted fault here")


def test_kernels_of_the_stages(monkeypatch):
    """Training's come first; each kind of work names a function and arguments that it takes."""
    monkeypatch.setattr(gpu_stages.compiling, "recorded_work", lambda wanted: [(kind, (), 0) for kind, *_ in wanted])
    work = list(gpu_stages.kernels_of_the_stages([64]))
    assert work[0][1] == "step"
    functions = [one[0].__name__ for one in work]
    assert set(functions) == {"compile_recorded", "compile_kernels", "compile_chosen"}
    assert {one[4] for one in work if one[0].__name__ == "compile_kernels"} == {"float32", "float16", "float64"}


@pytest.mark.slow
@pytest.mark.skipif(backends.available()["cuda"] is None and backends.get("cuda").automatic(), reason="there is a GPU")
def test_the_real_commands_without_a_gpu(monkeypatch, capfd, tmp_path):
    """Each takes its arguments, and says why it cannot be run; the whole report is refused in one line."""
    monkeypatch.setenv("NUMBA_ENABLE_CUDASIM", "0")
    names = ["contact", "compile", "training", "lenet", "layers", "tests"]
    if sampling.wanted() != "all":  # the others run elsewhere in this file, too
        names = ["contact", "training", "layers"]
    only = [argument for name in names for argument in ("--only", name)]
    stages = [dataclasses.replace(stage, needed=False) for stage in gpu_report.STAGES]
    assert gpu_report.main(["--out", str(tmp_path), "--jobs", "1", *only], stages) == 1
    found = json.loads((tmp_path / "report.json").read_text())["stages"]
    assert {name: entry["status"] for name, entry in found.items()} == dict.fromkeys(names, "failed")
    for name in {"contact", "training", "lenet", "layers"} & set(names):
        assert "the cuda backend is not available: " in found[name]["why"], name
    assert "compile" not in names or found["compile"]["figures"]["kernels"] == 0
    capfd.readouterr()
    assert gpu_report.main(["--out", str(tmp_path)]) == 2
    said, *_, refused = capfd.readouterr().err.splitlines()  # between them progress, on a busy machine
    assert said.startswith("environment: ")
    assert refused.startswith("bench.gpu_report: the cuda backend is not available: ")


@pytest.mark.slow
def test_the_whole_report_with_the_cpu_in_the_gpus_place(tmp_path):
    """From its command to its summary: what each stage writes is what the report reads; nothing fails."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support" / "stand_in_gpu")])
    # One thread each: those of several libraries would wait for one another.
    threads = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    environment = {**os.environ, **threads, "NUMBA_ENABLE_CUDASIM": "0", "PYTHONPATH": paths}
    # "halves" is "layers" with another type; the other two have tests of their own.
    left_out = set() if sampling.wanted() == "all" else {"halves", "network", "overhead"}
    names = [stage.name for stage in gpu_report.STAGES if stage.name not in left_out]
    only = [argument for name in names for argument in ("--only", name)]
    command = [sys.executable, "-m", "bench.gpu_report", "--out", str(tmp_path), "--jobs", "1", *only]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads((tmp_path / "report.json").read_text())
    assert document["complete"]
    assert document["machine"]["gpu"]["name"] == "stand-in"
    stages = document["stages"]
    assert list(stages) == names
    assert not [name for name, entry in stages.items() if "unreadable" in entry["figures"]]
    may_be_missing = {"overhead", "sanitizer"}
    assert {entry["status"] for name, entry in stages.items() if name not in may_be_missing} == {"passed"}
    parts = stages["contact"]["figures"]["parts"]
    assert [part["part"] for part in parts][4:-1] == [
        "LeNet, eager",
        "LeNet captured, batch 4",
        "LeNet captured, batch 8",
    ]
    assert all(part["right"] for part in parts)
    assert stages["contact"]["lines"][0].startswith("8 of 8 right; compiled in ")
    assert stages["training"]["figures"]["gpu"]["test_accuracy"] > 0.9
    assert list(stages["lenet"]["figures"]["batches"]) == ["4", "8", "inference"]
    assert {"gpuconv", "gpuconv eager", "torch eager"} <= set(stages["lenet"]["figures"]["batches"]["4"]["us"])
    layers = stages["layers"]["figures"]
    assert layers["right"] == layers["kernels"] > 100
    assert stages["real-sizes"]["figures"]["passed"] == 3
    assert len(done.stdout.splitlines()) < 24


def test_every_stage_of_the_report_is_there():
    """Those that are functions here exist; limits are at most eight minutes; what is needed comes first."""
    job = gpu_report.Job(Path("out"), 2, 100.0)
    for one in gpu_report.STAGES:
        command = one.command(job)
        assert isinstance(command, str) or command[1] == "-m"
        if command[2:3] == ["bench.gpu_stages"]:
            assert command[3] in gpu_stages.STAGES
            assert one.file == f"{command[3]}.json"
        assert one.limit <= 480
    assert [one.needed for one in gpu_report.STAGES[:3]] == [True, True, False]
    assert os.fspath(job.out / "gpu.json") == "out/gpu.json"


# -- figures -----------------------------------------------------------------------------------------------------------


def test_figures_of_layers(tmp_path):
    """Of committed results: all kernels right, the ratio of each layer; a wrong kernel is named."""
    path = ROOT / "bench" / "results" / "first-run" / "gpu-lenet5-h100-2026-11-27.json"
    document = json.loads(path.read_text())
    figures, (line,) = gpu_report._layers(path)
    count = sum(len(result["kernels"]) for result in document["results"])
    assert (figures["kernels"], figures["right"]) == (count, count)
    assert line.startswith(f"{count} of {count} right; faster than torch on ")
    assert len(figures["times_torch"]) == len(document["results"])
    assert "wrong" not in figures
    first = document["results"][0]
    times = sorted(sorted(kernel["us"])[len(kernel["us"]) // 2] for kernel in first["kernels"])
    peer = sorted(first["peer_us"])[len(first["peer_us"]) // 2]
    assert figures["times_torch"]["conv2d lenet5.conv1"] == pytest.approx(peer / times[0], rel=0.1)
    first["kernels"][3]["fault"] = "result 0 differs"
    (tmp_path / "gpu.json").write_text(json.dumps(document))
    figures, (line,) = gpu_report._layers(tmp_path / "gpu.json")
    assert line.startswith(f"{count - 1} of {count} right")
    assert figures["wrong"].startswith("1 wrong: conv2d lenet5.conv1 tiled Tiling(")


def test_figures_of_lenet(tmp_path):
    """A line a batch; what failed of ours is why the stage did, what failed of PyTorch's is not."""
    ours, eager = {"gpuconv": [1e-4, 2e-4, 3e-4]}, {"gpuconv eager": [4e-4]}
    ratio = {"torch graph": {"median": 1.5, "low": 1.4, "high": 1.6}}
    results = [
        {
            "batch": 64,
            "seconds": {**ours, **eager, "torch graph": [3e-4]},
            "failed": {"torch compile": "no compiler"},
            "speedup": ratio,
            "kernels": [{"us": 20.0}, {"us": 34.4}],
        },
        {"batch": 512, "seconds": eager, "failed": {"gpuconv": "its losses are"}, "speedup": {}, "kernels": []},
    ]
    (tmp_path / "l.json").write_text(json.dumps({"complete": False, "results": results}))
    figures, lines = gpu_report._lenet(tmp_path / "l.json")
    assert lines[1:] == [
        "batch 64: 200 us (kernels 54, eager 400); torch graph 300",
        "batch 512: - (kernels 0, eager 400); no torch",
    ]
    assert figures["batches"]["64"]["times"] == {"torch graph": 1.5}
    assert figures["wrong"] == "512: gpuconv: its losses are"


def test_figures_of_overhead(tmp_path):
    """The three that are asked for, of what that module writes."""
    (tmp_path / "o.json").write_text(
        json.dumps({"launch_us": 4, "eager_step_us": 400.5, "captured_call_us": 12.25, "more": {"a": 1}})
    )
    figures, (line,) = gpu_report._overhead(tmp_path / "o.json")
    assert line == "launch_us 4.0, eager_step_us 400.5, captured_call_us 12.2"
    assert figures["more"] == {"a": 1}
