"""Processes that train together: as one alone, the same in every run, and ended together when one of them fails.

Two processes are started by the ``mpiexec`` of this environment (wheel ``mpich``), or by that of the machine.
"""

import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support import parallel_steps
from support.digits import idx_folder

from gpuconv import parallel, storage
from gpuconv.backends import get
from gpuconv.data import InputTransform
from gpuconv.data.augment import augmented
from gpuconv.parallel import mpi, world
from gpuconv.training.feed import Feed, HostFeed

SUPPORT = Path(parallel_steps.__file__).parent
_beside = Path(sys.executable).with_name("mpiexec")
MPIEXEC = str(_beside) if _beside.exists() else shutil.which("mpiexec")


def _why_not():
    if importlib.util.find_spec("mpi4py") is None:
        return "mpi4py is not installed: pip install 'gpuconv[parallel]'"
    return None if MPIEXEC else "there is no mpiexec: pip install mpich"


needs_mpi = pytest.mark.skipif(_why_not() is not None, reason=str(_why_not()))


def environment(**variables):
    quiet = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMP_NUM_THREADS": "1"}
    quiet |= {"OMPI_MCA_rmaps_base_oversubscribe": "1", "OPENBLAS_NUM_THREADS": "1", "GPUCONV_BACKEND": "numpy"}
    return {**os.environ, **quiet, **variables}


def launch(*arguments, processes=2, **variables):
    """A file of tests/support on several processes."""
    command = [MPIEXEC, "-n", str(processes), sys.executable, str(SUPPORT / arguments[0]), *map(str, arguments[1:])]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment(**variables))


# -- the library ------------------------------------------------------------------------------------------------------


@needs_mpi
@pytest.mark.slow
def test_two_processes_compute_what_one_computes():
    """Losses of fifty steps agree with those of one process, with batches of uneven size and of one image, with
    gradients that accumulate, unused and frozen parameters; two runs give the same bits.
    """
    ended = launch("parallel_steps.py")
    assert ended.returncode == 0, ended.stderr
    together = json.loads(ended.stdout)
    for dtype, tolerance in (("float32", 1e-6), ("float64", 1e-12)):
        (losses, digest), (again, same_digest) = together[dtype]
        assert (again, same_digest) == (losses, digest)
        alone, _ = parallel_steps.run(np.dtype(dtype))
        assert losses[-2] < losses[0]
        np.testing.assert_allclose(losses, alone, rtol=tolerance, atol=0)
    # With batch normalisation over all processes, too, running statistics included.
    np.testing.assert_allclose(together["normalised"], parallel_steps.normalised(np.dtype(np.float64)), rtol=1e-11)


@pytest.mark.parametrize("count", [0, 1, 3, 10])
def test_shares_are_the_whole(count):
    """The processes' parts follow each other, cover everything once, and differ by one at most."""
    parts = []
    for rank in range(4):
        one = world.World()
        one.rank, one.size = rank, 4
        parts.append(range(count)[one.share(count)])
    assert [number for part in parts for number in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_cores_are_shared():
    """Where the engine binds no process, they divide the cores; a process that is bound has those it is bound to."""
    assert mpi._cores([{0, 1, 2, 3}] * 2, 1) == 2
    assert mpi._cores([{0, 1}, {2, 3}], 0) == 2
    assert mpi._cores([{0, 1}] * 4, 0) == 1


# -- what a process trains on -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["grey", "augmented"])
def test_a_feed_gives_parts_of_the_same_batches(kind):
    """The parts of two processes are together the batch that one process alone gets, the random changes included."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (23, 28, 28)).astype(np.uint8), np.arange(23)
    transform, backend = InputTransform((32, 32), (0.1,), (0.3,)), get("numpy")

    def batches(share):
        settings = {"batch_size": 10, "seed": 3, "share": share}
        if kind == "grey":
            feed = Feed(images, labels, transform, backend, augment=True, **settings)
        else:
            feed = HostFeed(images, labels, transform, backend, augmentations=("crop", "flip"), workers=0, **settings)
        feed.begin(1)
        return [feed.batch(*feed.inputs(step)) for step in range(3)]

    whole = batches(lambda count: slice(0, count))
    parts = [batches(lambda count: slice(0, count // 3)), batches(lambda count: slice(count // 3, count))]
    for (x, y), (first_x, first_y), (second_x, second_y) in zip(whole, *parts, strict=True):
        np.testing.assert_array_equal(np.concatenate([first_x, second_x]), x)
        np.testing.assert_array_equal(np.concatenate([first_y, second_y]), y)
    assert len(whole[2][1]) == 3
    assert len(augmented(images, (), seed=0, epoch=0, step=0, first=5)) == 23


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A folder of IDX files: the first 201 training and 50 test digits of the bundled set."""
    return idx_folder(tmp_path_factory.mktemp("digits"), 201)


def arguments(digits, out, **changes):
    settings = {"data": digits, "model": "with-dropout", "epochs": 6, "batch-size": 15, "checkpoint-every": 1}
    settings |= {"backend": "numpy", "out": out, **changes}
    return ["train", *[str(part) for name, value in settings.items() for part in (f"--{name}", value)]]


def _pid_of_rank_1(out):
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                ours = str(out).encode() in (entry / "cmdline").read_bytes()
                names = (entry / "environ").read_bytes().split(b"\0") if ours else []
            except OSError:  # it has ended, or is another user's
                continue
            if {b"PMI_RANK=1", b"OMPI_COMM_WORLD_RANK=1"} & {*names}:
                return int(entry.name)
    return None


@needs_mpi
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the process to kill in /proc")
def test_a_process_is_killed_and_the_run_resumed(digits, tmp_path):
    """All end within ten seconds; the checkpoint is whole. Resumed on two processes it gives the bytes of a run that
    was not interrupted, dropout included; on one process it goes on, too.
    """
    whole, killed, alone = (tmp_path / name for name in ("whole", "killed", "alone"))
    ended = launch("parallel_training.py", *arguments(digits, whole))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("6/6") == 1, "rank 0 alone prints"
    assert len((whole / "metrics.jsonl").read_text().splitlines()) == 6

    command = [MPIEXEC, "-n", "2", sys.executable, SUPPORT / "parallel_training.py", *arguments(digits, killed)]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not (killed / "checkpoint.safetensors").exists():
            assert process.poll() is None
            time.sleep(0.005)
        time.sleep(random.uniform(0, 0.1))
        os.kill(_pid_of_rank_1(killed), signal.SIGKILL)
        assert process.wait(10) != 0
    finally:
        process.kill()
        process.wait()
    assert not (killed / "model.safetensors").exists()
    shutil.copytree(killed, alone)

    for folder, processes in ((killed, 2), (alone, 1)):
        ended = launch("parallel_training.py", "train", "--resume", "--out", folder, processes=processes)
        assert ended.returncode == 0, ended.stderr
        assert len((folder / "metrics.jsonl").read_text().splitlines()) == 6
    assert (killed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    _, content = storage.load_tensors(killed / "checkpoint.safetensors", "gpuconv-checkpoint")
    assert len(content["generators"]) == 1


# -- what goes wrong --------------------------------------------------------------------------------------------------


@needs_mpi
@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("raise", "rank 1 of 2:"),
        ("hang", "rank 0 has waited 2 s for a sum, in vain for rank 1"),
        pytest.param("die", "", marks=pytest.mark.thorough),
    ],
)
def test_all_end_when_one_fails(what, message):
    """A process that raises, hangs or dies ends all of them within seconds; who can, says which rank and why."""
    begun = time.monotonic()
    ended = launch("parallel_failing.py", what, GPUCONV_PARALLEL_TIMEOUT="2")
    assert time.monotonic() - begun < 30
    assert ended.returncode != 0
    assert message in ended.stderr
    assert ("no such picture" in ended.stderr) == (what == "raise")


@needs_mpi
@pytest.mark.slow
def test_processes_that_differ_are_refused(digits, tmp_path):
    """Other settings on a rank: one line that says which, before anything is written; so for too small a batch."""
    script = [sys.executable, SUPPORT / "parallel_training.py"]
    one, other = (arguments(digits, tmp_path / "run", seed=seed) for seed in (0, 1))
    command = [MPIEXEC, "-n", "1", *script, *one, ":", "-n", "1", *script, *other]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment())
    assert ended.returncode == 2
    assert "gpuconv: the processes differ: --seed is 0 on rank 0 and 1 on rank 1" in ended.stderr
    ended = launch("parallel_training.py", *arguments(digits, tmp_path / "run", **{"batch-size": 1}))
    assert ended.returncode == 2
    assert ended.stderr.count("gpuconv: --batch-size is 1, and is divided among 2 processes") == 1
    assert not (tmp_path / "run" / "checkpoint.safetensors").exists()


@pytest.fixture
def unknown(monkeypatch):
    """No process group has been found yet."""
    monkeypatch.setattr(world, "_current", None)
    for name in [*world._SIZES, "RANK", "WORLD_SIZE", world.TIMEOUT_VARIABLE]:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_without_an_engine_it_says_what_to_do(unknown):
    """mpirun without mpi4py, torchrun without a GPU, and a time limit that is none."""
    unknown.setenv("PMI_SIZE", "4")
    unknown.setenv(world.TIMEOUT_VARIABLE, "soon")
    with pytest.raises(ValueError, match="GPUCONV_PARALLEL_TIMEOUT must be a number of seconds above 0, got 'soon'"):
        world.timeout()
    unknown.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"one of 4 processes .* pip install 'gpuconv\[parallel\]'"):
        parallel.rank()
    unknown.delenv("PMI_SIZE")
    unknown.setenv("RANK", "1")
    unknown.setenv("WORLD_SIZE", "4")
    unknown.setenv("NUMBA_ENABLE_CUDASIM", "0")
    with pytest.raises(parallel.WorldError, match=r"needs a GPU: .* then mpirun -n 4"):
        parallel.world_size()
    unknown.setenv("WORLD_SIZE", "1")
    assert (parallel.rank(), parallel.world_size(), parallel.share(5)) == (0, 1, slice(0, 5))
