"""bench.simulator: its kernels are right in the laboratory, and its table and its file say what was measured."""

import json

import pytest

from bench import simulator


@pytest.mark.slow
def test_its_kernels_are_right_here():
    """Each checks its own result; of each a time comes back."""
    pytest.importorskip("numba_cuda", reason="the kernels are written for numba-cuda")
    pytest.importorskip("greenlet", reason="the simulator needs it")
    times = simulator.child("ours")
    assert len(times) == 9
    assert all(seconds > 0 for seconds in times.values())


def test_the_least_of_the_rounds_is_told(monkeypatch, capsys, tmp_path):
    """Of each simulator by itself."""
    told = iter([{"a": 3.0}, {"a": 0.2}, {"a": 2.0}, {"a": 0.5}])
    monkeypatch.setattr(simulator, "child", lambda which: next(told))
    assert simulator.run(["--rounds", "2", "--json", str(tmp_path / "s.json")]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["a", "2000.0", "200.00", "10.0"]
    found = json.loads((tmp_path / "s.json").read_text())
    assert found["kernels"] == [{"kernel": "a", "stock_s": 2.0, "ours_s": 0.2}]
    assert found["complete"]
