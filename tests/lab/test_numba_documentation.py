"""The examples of numba-cuda's documentation, which its wheel has as tests: each runs in the laboratory."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from support import numba_cuda_tests

pytest.importorskip("numba_cuda", reason="they are numba-cuda's")
pytest.importorskip("greenlet", reason="the simulator needs it")
pytest.importorskip("filecheck", reason="pip install filecheck, which numba-cuda's tests import")

FOLDER = Path(find_spec("numba_cuda").submodule_search_locations[0]) / "numba" / "cuda" / "tests" / "doc_examples"
if not FOLDER.is_dir():
    pytest.skip("this version has its tests elsewhere", allow_module_level=True)

#: Ten million waits for the grid, four million random numbers: half a minute each.
LONG = "laplace or montecarlo"


@pytest.mark.slow
@pytest.mark.parametrize("which", ["not", pytest.param("", marks=pytest.mark.thorough)], ids=["short", "long"])
def test_examples_in_the_simulator(which):
    """None fails. Those with C++ are left out where cffi is missing, of which they take pointers."""
    chosen = f"({which} ({LONG})) and not test_ex_3d_grid"
    found = numba_cuda_tests.run("skipped", ["-k", chosen], 600, "numba.cuda.tests.doc_examples")
    skipped = [name for name, how in found["outcomes"].items() if how == "skipped"]
    assert [name for name in skipped if "TestFFI" not in name] == []
    assert len(found["outcomes"]) == (2 if which == "" else 13)
    assert {how for name, how in found["outcomes"].items() if name not in skipped} == {"passed"}, found["reasons"]


RUNNING = """
import numpy as np
from gpuconv import lab
from gpuconv.lab import random_numbers
from numba import cuda
from numba.cuda.random import xoroshiro128p_dtype


def create_xoroshiro128p_states(count, seed):
    states = np.zeros(count, xoroshiro128p_dtype)
    random_numbers.states(states, seed, 0)
    return states


cuda.device_array = np.empty
{example}
assert 0.49 < arr.mean() < 0.51 and arr.min() >= 0 and arr.max() <= 1, (arr.mean(), arr.min(), arr.max())
"""


@pytest.mark.slow
@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.thorough)], ids=["part", "whole"])
def test_the_example_of_random_numbers_in_a_grid_of_three_dimensions(tmp_path, whole):
    """The simulator would draw its 453 million numbers in two hours. Its compiled code is interpreted, thousands of
    threads side by side, in two minutes. A part: a grid of 4,096 threads, and an array of 350,000 elements."""
    text = (FOLDER / "test_random.py").read_text()
    example = re.search(r"ex_3d_grid.begin\n(.*?)# magictoken.ex_3d_grid.end", text, re.DOTALL)[1]
    example = re.sub(r"(?m)^ {8}", "", example)
    imports = r"from numba.cuda.random import \(\s*create_xoroshiro128p_states,"
    assert re.search(imports, example)
    example = re.sub(imports, "from numba.cuda.random import (", example)
    example = example.replace("random_3d[", "lab.interpret(random_3d)[")
    if not whole:
        assert example.count("701, 900, 719") == example.count("16, 16, 16") == 1
        example = example.replace("701, 900, 719", "61, 90, 71").replace("16, 16, 16", "2, 2, 2")
    (tmp_path / "example.py").write_text(RUNNING.format(example=example))
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "0"}
    done = subprocess.run([sys.executable, "example.py"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
