"""Terminals of any encoding: nothing that is printed ends a program."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gpuconv import terminal

ROOT = Path(__file__).resolve().parents[2]

TEXT = "12.5 µs ≥ 3 × 4 · é\udcff\N{SNOWMAN}"


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("utf-8", "12.5 µs ≥ 3 × 4 · é\\udcff\N{SNOWMAN}"),
        ("ascii", "12.5 us >= 3 x 4 . \\xe9\\udcff\\u2603"),
        ("latin-1", "12.5 µs >= 3 × 4 · é\\udcff\\u2603"),
        ("cp1252", "12.5 µs >= 3 × 4 · é\\udcff\\u2603"),
        ("cp437", "12.5 µs ≥ 3 x 4 · é\\udcff\\u2603"),
    ],
)
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_what_an_encoding_lacks_is_spelled(encoding, expected, stream):
    """Signs in ASCII, other characters by their number; what the encoding has stays as it is."""
    code = (
        f"import sys; from gpuconv.terminal import write_anything; write_anything(); print({TEXT!r}, file=sys.{stream})"
    )
    environment = {**os.environ, "PYTHONIOENCODING": f"{encoding}:strict"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert run.returncode == 0, run.stderr
    assert getattr(run, stream).decode(encoding) == expected + os.linesep


def test_only_what_cannot_be_written_is_spelled():
    """The handler is one of encoding; a file that cannot be read is not made readable by it."""
    terminal.write_anything()
    with pytest.raises(UnicodeDecodeError):
        b"\xff".decode("ascii", errors=terminal._HANDLER)


def printed_texts(path):
    """The strings of a source file that are no docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documents = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documents:
            yield node.value


def test_every_sign_of_the_output_has_a_spelling():
    """A sign in a string of the command line, the benchmarks or the examples reads well in ASCII, too."""
    # Of bars and pictures, which the command line draws of other signs where these are missing.
    drawn = set("█▏▎▍▌▋▊▉░▒▓")
    for folder in ("gpuconv/cli", "bench", "examples"):
        for path in (ROOT / folder).glob("*.py"):
            signs = {c for text in printed_texts(path) for c in text if not c.isascii()}
            assert not signs - drawn - set(terminal._SPELLED), path


def test_every_benchmark_begins_with_it():
    """A benchmark that is run as a program sets its terminal up before it does anything."""
    programs = [p for p in (ROOT / "bench").glob("*.py") if '__name__ == "__main__"' in p.read_text(encoding="utf-8")]
    assert len(programs) > 8
    for path in programs:
        assert re.search(
            r'if __name__ == "__main__":\n(    try:\n    )?    start\(main\)\n', path.read_text("utf-8")
        ), path


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_benchmarks_in_other_encodings(encoding):
    """In the C locale, without Python's UTF-8 mode, tables with µs and × come to their end."""
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment["PYTHONIOENCODING"] = f"{encoding}:strict"
    results = sorted((ROOT / "bench" / "results").glob("gpu-h100-*.json"))[0]
    lenet = ["bench.lenet", "--backend=numpy", "--threads=1", "--batches=1", "--seconds=0.01", "--rounds=1"]
    for command in (lenet, ["bench.rules", str(results)], ["bench.report", "--check"], ["bench.gpu_report", "--list"]):
        run = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, env=environment, capture_output=True)
        assert run.returncode == 0, run.stderr
        assert run.stdout.decode(encoding).isascii() == (
            encoding == "ascii" or command[0] not in (lenet[0], "bench.rules")
        )
