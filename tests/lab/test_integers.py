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


@pytest.mark.slow
def test_kernels_of_integers_are_as_compiled(tmp_path):
    """All pairs of types, and whole kernels: in this process, and in one in which numba.cuda is for a real GPU."""
    pytest.importorskip("numba_cuda", reason="its compiler")
    kinds = [kind.__name__ for kind in integer_kernels.TYPES]
    pairs = sampled([f"{left},{right}" for left in kinds for right in kinds], 5, "integers")
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
