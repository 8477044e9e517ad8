"""Integers in the simulator have the types that Numba infers: what kernels compute with them is what they compute as
compiled, with values at the limits of their types."""

import os
import subprocess
import sys

import integer_kernels
import numpy as np
import pytest
from support.sampling import sampled
from support.simulated import simulator

cuda = pytest.importorskip("numba.cuda")


def test_a_number_that_an_int64_cannot_hold():
    """Numba takes it as a uint64. In the simulator it has to be one: the error says so, and that helps."""

    @cuda.jit
    def kernel(x, out):
        out[0] = x[0] * 3 & (0xFFFFFFFFFFFFFFF0 if x.size == 1 else np.uint64(0xFFFFFFFFFFFFFFF0))

    out = np.zeros(1, np.int64)
    with pytest.raises(OverflowError, match=r"kernel: tid=.* beside an int64, write a number of 2\*\*63 or more as np"):
        kernel[1, 1](np.full(1, -7, np.int32), out)
    kernel[1, 1](np.full(2, -7, np.int32), out)
    assert out[0] == -21 & -16


@pytest.mark.slow
def test_kernels_of_integers_are_as_compiled(tmp_path):
    """All pairs of types, and whole kernels: in this process, and in one in which numba.cuda is for a real GPU."""
    pytest.importorskip("numba_cuda", reason="its compiler")
    kinds = [kind.__name__ for kind in integer_kernels.TYPES]
    pairs = sampled([f"{left},{right}" for left in kinds for right in kinds], 4, "integers")
    names = [*pairs, *integer_kernels.WHOLE]
    command = [sys.executable, integer_kernels.__file__, tmp_path / "results.npz", *names]
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    def traced(kernel, grid, block, arguments):
        with simulator.trace() as report:
            kernel[grid, block](*arguments)
        assert report.clean, report

    compiled = np.load(tmp_path / "results.npz")
    for name in names:
        wanted = [compiled[key] for key in compiled.files if key.startswith(f"{name} ")]
        for launch in (lambda kernel, grid, block, arguments: kernel[grid, block](*arguments)), traced:
            integer_kernels.assert_same(integer_kernels.run(name, launch), wanted, name)
