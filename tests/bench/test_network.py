"""bench.network: a network beside the same one in PyTorch, its times and its memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from bench import command

pytest.importorskip("torch", reason="the peer is PyTorch: pip install torch")


@pytest.mark.slow
def test_times_and_memory_of_a_small_network(tmp_path):
    """Each contender has samples and a peak of memory, its own: PyTorch's processes are larger than this library's."""
    out = tmp_path / "out.json"
    options = ["--model=lenet5", "--batch=2", "--backend=numpy", "--task=training", "--rounds=2", "--seconds=0.02"]
    process = [sys.executable, "-m", "bench.network", *options, f"--json={out}"]
    paths = os.pathsep.join(map(str, [command.ROOT, command.ROOT / "tests" / "support" / "without_compiler"]))
    environment = {**os.environ, "PYTHONPATH": paths}
    ended = subprocess.run(process, cwd=command.ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    document = json.loads(out.read_text(encoding="utf-8"))
    labels = {"gpuconv", "torch", "torch channels_last"}
    assert document["complete"]
    assert set(document["memory"]) == set(document["results"][0]["seconds"]) == labels
    for found in document["memory"].values():
        assert 10 < found["ready_mb"] <= found["peak_mb"] < 10_000
    assert document["memory"]["torch"]["peak_mb"] > document["memory"]["gpuconv"]["peak_mb"] + 50
    assert all(f"memory: {label}" in ended.stderr + ended.stdout for label in labels)
