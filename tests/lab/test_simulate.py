"""simulate(kernel): in a process in which numba.cuda is for a real GPU, on the process's own arrays."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba_cuda", reason="kernels are written for numba-cuda")
pytest.importorskip("greenlet", reason="the simulator needs it")

ROOT = Path(__file__).resolve().parents[2]

HELPERS = """
from numba import cuda

SCALE = 3

@cuda.jit(device=True)
def scaled(value):
    return SCALE * value + cuda.blockIdx.x * 0

def offset(i):
    return cuda.threadIdx.x - i
"""

KERNELS = """
import math
import numba
import numpy as np
import helpers
from helpers import scaled
from numba import cuda, float32
from numba.cuda import libdevice, syncthreads

@cuda.jit
def by_module(x, y):
    i, t = cuda.grid(1), cuda.threadIdx.x
    tile = cuda.shared.array(32, float32)
    tile[cuda.threadIdx.x] = x[i]
    syncthreads()
    if i < y.size:
        y[i] = scaled(tile[31 - t]) + helpers.scaled(1) + helpers.offset(numba.cuda.threadIdx.x) + math.sqrt(4)

def factory(times):
    @cuda.jit
    def inner(x):
        x[cuda.grid(1)] *= times
    return inner

def plain(x):
    x[cuda.grid(1)] = cuda.laneid

@cuda.jit
def of_libdevice(x):
    x[0] = libdevice.fsqrt_ru(2.0) - libdevice.fsqrt_rd(2.0)

@cuda.jit
def race(x):
    x[0] = cuda.grid(1)

x, y = np.arange(64, dtype=np.float32), np.zeros(64, np.float32)
"""


def run(code, tmp_path):
    """Output of code that finds the modules above, with numba.cuda as it is for a GPU."""
    (tmp_path / "helpers.py").write_text(HELPERS)
    (tmp_path / "kernels.py").write_text(KERNELS)
    (tmp_path / "main.py").write_text(code)
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "0", "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, "main.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_kernels_of_a_process_for_a_gpu(tmp_path):
    """Names from the module and imported singly, device functions here and there, closures, plain functions, traces."""
    out = run(
        """
import numpy as np
from kernels import *
from gpuconv import lab

lab.simulate(by_module)[2, 32](x, y)
expected = 3 * x.reshape(2, 32)[:, ::-1].ravel() + 3 + 2
np.testing.assert_array_equal(y, expected)
assert lab.simulate(by_module, trace=True)[2, 32](x, y).clean
lab.simulate(factory(5))[1, 64](x)
np.testing.assert_array_equal(x, 5.0 * np.arange(64))
lab.simulate(factory(2))[1, 64](x)
np.testing.assert_array_equal(x, 10.0 * np.arange(64))
lab.simulate(plain)[1, 64](x)
np.testing.assert_array_equal(x, np.arange(64) % 32)
lab.simulate(of_libdevice)[1, 1](x)
assert x[0] == np.spacing(np.float32(1))
report = lab.simulate(race, trace=True)[2, 32](x)
print(report.races[0].sites)

# The process itself is as it was: kernels compile for a GPU.
from numba import types
ptx, _ = cuda.compile_ptx(race.py_func, (types.float32[::1],), cc=(8, 0))
assert ".entry" in ptx
for wrong in (3, "kernel"):
    try:
        lab.simulate(wrong)
    except TypeError as error:
        print(error)
try:
    by_module(x, y)
except ValueError:
    print("not outside of a kernel")
""".replace("", ""),
        tmp_path,
    )
    assert "kernels.py:" in out
    assert "simulate: a kernel or a Python function is wanted, not int" in out
    assert out.endswith("not outside of a kernel\n")


def test_kernels_of_this_project(tmp_path):
    """Their intrinsics have Python versions, which the laboratory takes."""
    run(
        """
import numpy as np
from numba import cuda
from gpuconv import lab
from gpuconv.kernels.device import ld4

@cuda.jit
def kernel(x, y):
    a, b, c, d = ld4(x, 4 * cuda.threadIdx.x)
    y[cuda.threadIdx.x] = a + b + c + d

x, y = np.arange(16, dtype=np.float32), np.zeros(4, np.float32)
lab.simulate(kernel)[1, 4](x, y)
np.testing.assert_array_equal(y, x.reshape(4, 4).sum(1))
""",
        tmp_path,
    )


@pytest.mark.slow
def test_kernels_of_numba_cuda_mlir(tmp_path):
    """Its types, names imported singly, device functions, libdevice; faults have their lines. Nothing is compiled."""
    pytest.importorskip("numba_cuda_mlir", reason="numba-cuda's successor, which this project does not need")
    out = run(
        """
import numpy as np
from numba_cuda_mlir import cuda, types
from numba_cuda_mlir.cuda import libdevice, syncthreads
from numba_cuda_mlir.types import float32
from gpuconv import lab

@cuda.jit(device=True)
def twice(value):
    return 2 * value

@cuda.jit
def kernel(x, y):
    tile, own = cuda.shared.array(32, float32), cuda.local.array(1, types.int32)
    i, t = cuda.grid(1), cuda.threadIdx.x
    own[0], tile[t] = 1, x[i]
    syncthreads()
    if i < y.size:
        y[i] = twice(tile[31 - t]) + own[0] + float32(0.5) + libdevice.floorf(1.5)

@cuda.jit
def race(x):
    x[0] = cuda.grid(1)

x, y = np.arange(64, dtype=np.float32), np.zeros(60, np.float32)
assert lab.simulate(kernel, trace=True)[2, 32](x, y).clean
np.testing.assert_array_equal(y, (2 * x.reshape(2, 32)[:, ::-1].ravel() + 2.5)[:60])
print(lab.simulate(race, trace=True)[2, 32](x).races[0].sites[0])
""",
        tmp_path,
    )
    assert out == "main.py:23\n"
