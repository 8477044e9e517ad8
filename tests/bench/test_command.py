"""What the benchmarks' commands share: names of layers, files, exit codes, progress, results."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time

import pytest

from bench import command
from bench.command import Refused

LAYERS = ["lenet5.conv1", "lenet5.conv2", "alexnet.conv2", "resnet50.conv2-3x3", "vgg16.conv2_2"]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ([], LAYERS),
        (["lenet5.conv2"], ["lenet5.conv2"]),
        (["lenet.conv2"], ["lenet5.conv2"]),
        (["resnet.conv2*", "lenet*"], ["lenet5.conv1", "lenet5.conv2", "resnet50.conv2-3x3"]),
        (["*.conv2"], ["lenet5.conv2", "alexnet.conv2"]),
        (["lenet5.conv?", "lenet5.conv1"], ["lenet5.conv1", "lenet5.conv2"]),
    ],
)
def test_names(wanted, found):
    """Names, shortened networks and patterns; in the order of the table, none of them twice."""
    assert command.fitting("--layers", wanted, LAYERS) == found


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ("lenet.conv3", "--layer: there is no 'lenet.conv3'; did you mean 'lenet5.conv"),
        ("vgg16.conv22", "did you mean 'vgg16.conv2_2'"),
        ("x", "there is no 'x'; there are lenet5.conv1, lenet5.conv2, "),
        ("*.conv2", "'*.conv2' fits several: lenet5.conv2, alexnet.conv2; name one of them"),
    ],
)
def test_names_that_fit_nothing(wanted, words):
    """The nearest one is suggested, of the same network if there is that."""
    with pytest.raises(Refused) as refusal:
        command.the_one("--layer", wanted, LAYERS)
    assert words in str(refusal.value)


def test_files_are_checked_before_anything_is_measured(tmp_path):
    """Folders are made; a folder, or one that cannot be made, is refused."""
    command.check_writable("--json", None)
    command.check_writable("--json", tmp_path / "new" / "folder" / "x.json")
    assert list(tmp_path.rglob("*")) == [tmp_path / "new", tmp_path / "new" / "folder"]
    (tmp_path / "file").touch()
    for path, words in ((tmp_path, "is a folder"), (tmp_path / "file" / "x.json", "cannot make the folder")):
        with pytest.raises(Refused, match=f"--png: .*{words}"):
            command.check_writable("--png", path)


@pytest.mark.parametrize(
    ("outcome", "code", "said"),
    [
        (0, 0, ""),
        (1, 1, ""),
        (Refused("no"), 2, "bench.some: no\n"),
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(), 0, ""),
    ],
)
def test_exit_codes(outcome, code, said, capfd, monkeypatch):
    """The same of every command; a refusal is one line."""

    def run(argv):
        assert argv == ["x"]
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr(command.os, "dup2", lambda *_: None)  # the test's own output goes on
    assert command.answer("bench.some", run, ["x"]) == code
    assert capfd.readouterr() == ("", said)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_on_a_terminal_is_one_line(monkeypatch):
    """It is rewritten, cut to the width of a narrow terminal, and gone before anything else is said."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    shown = command.Progress()
    shown("")
    shown("first")
    shown("x" * 500)
    shown("")
    assert stream.getvalue() == f"\r\033[Kfirst\r\033[K{'x' * 110}\r\033[K"
    with shown.during("long"):
        time.sleep(1.3)
    assert "long, 1 s" in stream.getvalue()


def test_progress_elsewhere_is_sparse(monkeypatch, capsys):
    """A line now and then, so that a log of nine minutes is neither empty nor long."""
    shown, now = command.Progress(), [time.monotonic()]
    monkeypatch.setattr(command.time, "monotonic", lambda: now[0])
    for second in range(60):
        now[0] += 1
        shown(f"second {second}")
    output = capsys.readouterr()
    assert output.out == ""
    assert 2 <= len(output.err.splitlines()) <= 4


def test_results_are_read_or_refused(tmp_path):
    """What is written can be read; another benchmark's, another schema's and no JSON are one line."""
    path = tmp_path / "x.json"
    document = command.document("some", {"a": 1}, results=[])
    command.write(document, path)
    assert command.read(path) == command.read(path, "some") == document
    assert list(document)[:6] == ["schema", "benchmark", "date", "complete", "machine", "settings"]
    assert [one.name for one in tmp_path.iterdir()] == ["x.json"]
    for content in (json.dumps(document), json.dumps({**document, "schema": 0}), "[", "[]"):
        path.write_text(content)
        with pytest.raises(Refused, match=r"^x\.json: "):
            command.read(path, "other")


@pytest.mark.parametrize(
    "path", sorted((command.ROOT / "bench" / "results").glob("*.json")), ids=lambda path: path.name
)
def test_measurements_on_disk_can_be_read(path):
    """Those of before are as good as those of today."""
    assert command.read(path)["benchmark"] in ("lenet", "gpu", "lenet-gpu", "gpu-report", "network", "overhead")


def test_threads_are_bounded_before_numpy_is_loaded():
    """What bounds them, or tells that NumPy is missing or too new, imports none of it."""
    code = "import sys, bench.lenet, bench.contenders, bench.gpu_report; sys.exit('numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=command.ROOT, check=True)
