"""Whether kernels compile at all: asked once for a set of versions, and where they do not, told in one line.

Each test asks in processes of its own, with Numba's real compiler: the others have the simulator's. No GPU is needed;
the driver is said to be there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

ASK = """
import json, sys
import numpy as np
from gpuconv.backends.cuda import backend as cuda_backend
cuda_backend._driver = lambda: (13000, 1)
for change in json.loads(sys.argv[1]):
    exec(change)
answer = cuda_backend._compiler()
# What numba-cuda loads when it compiles for the first time.
print(json.dumps([answer, "numba.cuda.np.arrayobj" in sys.modules]))
"""
#: What NumPy 2.5 is to numba-cuda.
NUMPY_2_5 = "del np.row_stack; np.__version__ = '2.5.0'"
BROKEN = """
from numba import cuda
def fails(*arguments, **options):
    raise RuntimeError("out of luck; more follows".replace("; ", chr(10)))
cuda.compile_ptx = fails
"""


def ask(folder, *changes):
    """What a process says of the compiler, and whether it compiled something to find out."""
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "0", "GPUCONV_CACHE": str(folder)}
    command = [sys.executable, "-W", "ignore", "-c", ASK, json.dumps(changes)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    answer, compiled = json.loads(done.stdout)
    return answer, compiled


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """A folder in which one process has asked: its answer was yes, and took a compilation."""
    folder = tmp_path_factory.mktemp("cache") / "not" / "there"
    answer, compiled = ask(folder)
    if isinstance(answer, str):
        pytest.skip(f"numba-cuda cannot compile here: {answer}")
    assert compiled
    return folder


def test_success_is_kept_for_the_next_process(asked):
    """The next one compiles nothing; other versions, or a file that says something else, are no proof."""
    assert ask(asked)[1] is False
    assert ask(asked, "np.__version__ = '2.4.999'")[1] is True
    for file in asked.iterdir():
        file.write_bytes(file.read_bytes()[:-1])
    assert ask(asked)[1] is True
    assert ask(asked)[1] is False


def test_numpy_that_numba_cuda_cannot_compile_with_is_named(asked):
    """One line: both versions, what is missing, and what to install. It is not kept: the next process tries again."""
    before = sorted(asked.iterdir())
    answer, _ = ask(asked, NUMPY_2_5)
    assert answer.startswith("numba-cuda ")
    assert "cannot compile with NumPy 2.5.0 (module 'numpy' has no attribute 'row_stack')" in answer
    assert answer.endswith("pip install 'numpy<2.5'")
    assert "\n" not in answer
    assert sorted(asked.iterdir()) == before
    assert not isinstance(ask(asked)[0], str)


def test_any_other_failure_is_told_by_its_first_line(asked, tmp_path):
    """Its kind and its first line, and what installs the compiler."""
    answer, _ = ask(tmp_path, BROKEN)
    assert answer.startswith("numba-cuda cannot compile (RuntimeError: out of luck): pip install 'gpuconv[cuda12]'")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_does_not_matter(asked, tmp_path):
    """A process compiles, then, and says yes."""
    (tmp_path / "file").touch()
    answer, compiled = ask(tmp_path / "file" / "cache")
    assert not isinstance(answer, str)
    assert compiled


def test_without_a_driver_nothing_is_compiled(tmp_path):
    """`available` ends at the driver: neither Numba nor CuPy is imported."""
    code = (
        "import sys\nfrom gpuconv import backends\nfrom gpuconv.backends.cuda import backend as cuda_backend\n"
        "cuda_backend._driver = lambda: 'no driver'\n"
        "assert backends._load('cuda') in ('no driver',) or 'not installed' in backends._load('cuda')\n"
        "assert not {'numba', 'cupy'} & sys.modules.keys()"
    )
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "0", "GPUCONV_CACHE": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)
    assert not list(tmp_path.iterdir())
