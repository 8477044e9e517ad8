"""pytest --cuda-lab and gpuconv check, as somebody meets them who has kernels of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba_cuda", reason="kernels are written for numba-cuda")
pytest.importorskip("greenlet", reason="the simulator needs it")

ROOT = Path(__file__).resolve().parents[2]

KERNELS = """
import numpy as np
from numba import cuda

@cuda.jit
def shift(x):
    i = cuda.grid(1)
    if i + 1 < x.size:
        x[i] = x[i + 1]

@cuda.jit
def double(x):
    x[cuda.grid(1)] *= 2

@cuda.jit
def forever(x):
    while x[0] == 0:
        pass
"""

TESTS = """
import numpy as np
import pytest
from kernels import double, forever, shift

def test_right():
    x = np.ones(64)
    double[2, 32](x)
    assert (x == 2).all()

def test_race():
    shift[4, 32](np.ones(128))
    shift[1, 32](np.ones(32))

@pytest.mark.cuda_lab(allow=["race"])
def test_allowed():
    shift[1, 32](np.ones(32))

def test_out_of_bounds():
    double[1, 32](np.ones(30))

def test_wrong():
    x = np.arange(64.0)
    shift[2, 32](x)
    assert x[0] == 5
"""


@pytest.fixture
def project(tmp_path):
    """A project of two files."""
    (tmp_path / "kernels.py").write_text(KERNELS)
    (tmp_path / "test_kernels.py").write_text(TESTS)
    return tmp_path


def run(folder, *command):
    """A command in a folder, without the settings of this process: exit status and output."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("NUMBA_", "PYTEST"))}
    environment = {**kept, "PYTHONPATH": str(ROOT), "COLUMNS": "300"}
    command = [sys.executable, "-m", *command]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout + done.stderr


PYTEST = ("pytest", "-q", "-p", "gpuconv_pytest", "-p", "no:cacheprovider", "--strict-markers")


@pytest.mark.slow
@pytest.mark.parametrize("beside", [("-p", "no:xdist"), ("-n", "2")], ids=["alone", "xdist"])
def test_a_fault_fails_its_test(project, beside):
    """With the words, the lines, and the smallest launch; what a mark allows passes; the summary counts all."""
    status, out = run(project, *PYTEST, *beside, "--cuda-lab-trace")
    assert status == 1
    assert "3 failed, 2 passed" in out, out
    assert "cuda lab: race: x[" in out
    assert "in shift[(2, 1, 1), (32, 1, 1)]" in out.split("Captured cuda lab call")[1], (
        out
    )  # of a test that failed itself
    assert "in shift[(1, 1, 1), (32, 1, 1)]" in out
    assert "kernels.py:9: x[i] = x[i + 1]" in out
    assert "out-of-bounds read: x[30] of shape (30,) at kernels.py:13 by thread (30, 0, 0)" in out
    assert "6 launches of 2 kernels simulated: " in out


@pytest.mark.slow
def test_what_kernels_compile_to(project):
    """Kernels that tests launched are compiled at the end, by a process that has numba.cuda as it is for a GPU."""
    with (project / "kernels.py").open("a") as file:
        file.write("\n@cuda.jit\ndef creeping(x):\n    x[cuda.grid(1)] *= 0.3\n")
    (project / "test_kernels.py").write_text(
        "import numpy as np\nfrom kernels import creeping\ndef test():\n    creeping[1, 4](np.ones(4, np.float32))\n"
    )
    status, out = run(project, *PYTEST, "-p", "no:xdist", "--cuda-lab-code")
    assert status == 0, out
    assert "float64 at kernels.py:22: `0.3` is float64: " in out or "creeping was not compiled: " in out, out


@pytest.mark.slow
def test_without_a_trace(project):
    """Kernels run, and what they compute is judged by the tests alone; a loop without end is ended."""
    with (project / "test_kernels.py").open("a") as file:
        file.write("\ndef test_forever():\n    forever[1, 1](np.zeros(1))\n")
    status, out = run(
        project, *PYTEST, "-p", "no:xdist", "--cuda-lab", "--cuda-lab-limit=0.5", "--deselect",
        "test_kernels.py::test_out_of_bounds", "--deselect", "test_kernels.py::test_wrong",
    )  # fmt: skip
    assert status == 1
    assert "1 failed, 3 passed" in out, out
    assert "forever: ended after 0.5 s; its threads stand at kernels.py:" in out
    assert "launching.py" not in out, out  # the laboratory's own frames


def test_without_the_options_nothing_is_imported(project):
    """The plugin costs a pytest that does not use it nothing: neither NumPy nor this package."""
    (project / "test_kernels.py").write_text(
        "import sys\ndef test():\n    assert not {'numpy', 'numba', 'gpuconv'} & set(sys.modules)\n"
    )
    status, out = run(project, *PYTEST, "-p", "no:xdist", "-p", "no:hypothesispytest")
    assert status == 0, out


@pytest.mark.slow
def test_check_a_script(project):
    """The report of a script's launches; the exit status tells whether there is a fault."""
    (project / "script.py").write_text(
        "import sys\nfrom kernels import *\nkernel = shift if sys.argv[1] == 'wrong' else double\n"
        "if __name__ == '__main__':\n    kernel[1, 32](np.ones(32))\n"
    )
    status, out = run(project, "gpuconv", "check", "script.py", "right")
    assert (status, "1 launch traced: clean" in out) == (0, True), out
    assert "double compiled: " in out or "double was not compiled: " in out, out
    status, out = run(project, "gpuconv", "check", "--no-code", "script.py", "wrong")
    assert (status, "race: x[" in out, "compiled: " in out) == (1, True, False), out
    (project / "typo.py").write_text(
        "from kernels import *\n@cuda.jit\ndef typo(x):\n    x[0] = cuda.gird(1)\ntypo[1, 1](np.ones(1))\n"
    )
    status, out = run(project, "gpuconv", "check", "--no-code", "typo.py")
    assert (status, 'typo.py", line 4, in typo' in out, "launching.py" in out) == (1, True, False), out
    assert "AttributeError: typo: tid=[0, 0, 0] ctaid=[0, 0, 0]: module 'numba.cuda' has no attribute 'gird'" in out
    status, out = run(project, "gpuconv", "check", "nothing.py")
    assert (status, out) == (2, "gpuconv: check: nothing.py is not a file\n")
