"""`bench.compiling`: work in several processes, none of which outlives the one that started it."""

from __future__ import annotations

import multiprocessing
import operator
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.processes import alive, wait_until

from bench import compiling, step
from gpuconv import backends

#: Two jobs, each of which says that it has begun.
SLEEPERS = """
from bench import compiling
list(compiling.in_processes(exec, [("import os, time; os.write(1, b'.'); time.sleep(60)",)] * 2, 2))
"""


def test_what_calls_return_is_added():
    """In any number of processes; a call that raises counts nothing, and no process is left."""
    work = [(n, 1) for n in range(5)] + [(1, "one")]
    assert compiling.compile_all(operator.add, work, 2) == 0 + 1 + 2 + 3 + 4 + 5
    assert compiling.compile_all(operator.add, [], 2) == 0
    assert multiprocessing.active_children() == []


def children(pid):
    return [int(one) for task in Path(f"/proc/{pid}/task").glob("*/children") for one in task.read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for children in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_is_left(number):
    """Ctrl-C, a time limit, or killed: what was compiling ends, too."""
    parent = subprocess.Popen([sys.executable, "-c", SLEEPERS], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    with parent.stdout as said:
        assert said.read(2) == b".."
    # Two that work, and the one that multiprocessing has for semaphores.
    wait_until(lambda: len(children(parent.pid)) == 3)
    started = children(parent.pid)
    parent.send_signal(number)
    assert parent.wait(20) != 0
    wait_until(lambda: not any(map(alive, started)))


def test_lenets_kernels_are_found_once():
    """Those of the steps that are recorded, in their order; a batch whose step cannot be recorded stops nothing."""
    if backends.available()["cuda"] is not None or backends.get("cuda").automatic():
        pytest.skip("needs the simulator")
    one, two = compiling.step_work([2]), compiling.step_work([2, 2, 512])
    assert {kind for kind, *_ in one} == {"step", "eager", "inference"}
    steps = [number for kind, _, number in one if kind == "step"]
    assert steps == sorted(steps)
    names = {step.kernel_name(compiling.recorded("step", 2)[number]) for number in steps}
    assert names == {step.kernel_name(launch) for launch in compiling.recorded("step", 2)}
    # An eager step adds gradients up by a kernel of its own, and updates without and with weight decay.
    eager = [step.kernel_name(compiling.recorded("eager", 2)[number]) for kind, _, number in one if kind == "eager"]
    assert sorted(eager) == ["sgd_update_all", "sgd_update_all", "sum_parts_of_two"]
    assert one == [work for work in two if work[1] != (512,)]
    # What does not depend on the batch is not compiled again.
    assert 0 < len(two) - len(one) < len(steps)
    decayed = compiling.recorded_work([("step", 2), ("decayed", 2), ("around", 2)])
    assert [work for work in decayed if work[0] == "decayed"] == [("decayed", (2,), 9)]
    assert [work[0] for work in decayed[-2:]] == ["around", "around"]
    assert compiling.recorded_work([("step", -1), ("step", 2)]) == one[: len(steps)]
    launch = compiling.recorded("step", 2)[9]
    assert launch.kernel is not None
    assert compiling.recorded("decayed", 2)[9].kernel is not launch.kernel


def test_what_the_rule_takes_is_compiled(monkeypatch):
    """In its tiling, with the options of the launch; a composed operation has nothing to compile."""
    from types import SimpleNamespace

    from gpuconv import kernels, tuning
    from gpuconv.geometry import Conv2dGeometry

    asked, compiled = [], []
    launch = SimpleNamespace(kernel=SimpleNamespace(compile=compiled.append), signature="types")
    geometry = Conv2dGeometry.of((1, 1, 4, 4), (1, 1, 3, 3))
    choice = tuning.choose("conv2d", geometry, "float32")

    def launches(*arguments, **options):
        asked.append((arguments, options))
        return [launch]

    monkeypatch.setattr(kernels.load("conv2d", choice.variant), "launches", launches)
    assert compiling.compile_chosen("conv2d", geometry, "float32", {"absent": ("bias",)}) == 1
    assert asked == [((geometry, choice.tiling, "float32"), {"absent": ("bias",)})]
    assert compiled == ["types"]
    monkeypatch.setattr(tuning, "choose", lambda *_: SimpleNamespace(variant=tuning.COMPOSED))
    assert compiling.compile_chosen("conv2d", geometry, "float32") == 0
