"""Whether kernels can be compiled here, to machine code, by numba-cuda: found out once for all tests."""

import os
import subprocess
import sys

import pytest
from support.shared import made_once

_CODE = "from numba import cuda; cuda.compile_ptx(lambda: None, (), cc=(9, 0)); import cuda.bindings.nvjitlink"


def needed(folders: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process that compiles; skips the test where none can."""
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "0"}

    def why_not() -> str:
        done = subprocess.run([sys.executable, "-c", _CODE], env=environment, capture_output=True, text=True)
        return done.stderr.splitlines()[-1] if done.returncode else ""

    if why := made_once(folders, "compiler.txt", why_not):
        pytest.skip(f"numba-cuda cannot compile here: {why}")
    return environment
