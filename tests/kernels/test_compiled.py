"""Compiled kernels are kept between processes, and a cache that is missing, damaged or stale costs time alone.

All but the driver is real: Numba, NVVM, the linker's machine code. That a GPU loads what was kept is `test_gpu.py`'s.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import compiler

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[1] / "support" / "compile_cached.py"
OWN_KERNEL = """
from numba import cuda
from gpuconv.kernels.compiled import specialised
from gpuconv.kernels.device import jit, ldg, st, u32

@specialised
def kernel(number):
    @jit(launch_bounds=256)
    def times(x, y):
        i = u32(cuda.threadIdx.x)
        st(y, i, ldg(x, i) * ldg(x, i + number))
    return times
"""


def start(folder, *arguments):
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "0", "GPUCONV_CACHE": str(folder)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, SCRIPT, *arguments], env=environment, **pipes)


def ended(process):
    """Names of the functions that were compiled, the kernels as they would go to the driver, and warnings."""
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    result = json.loads(output)
    return result["compiled"], result["kernels"], errors


def run(folder, *arguments):
    return ended(start(folder, *arguments))


@pytest.fixture(scope="module", autouse=True)
def _compiler(tmp_path_factory):
    """All of this needs numba-cuda's real compiler and linker."""
    compiler.needed(tmp_path_factory)


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A cache that two processes filled at the same time, and what they got."""
    folder = tmp_path_factory.mktemp("cache") / "not" / "there"
    both = [start(folder), start(folder)]
    (compiled, first, _), (by_the_other, second, _) = map(ended, both)
    assert {"conv2d_tiled", "relu", "softmax_cross_entropy"} <= {*compiled, *by_the_other}
    return folder, first, second


def test_the_next_process_compiles_nothing(filled):
    """The same machine code, under the same entry point, without compiling; no file is left half written."""
    folder, first, second = filled
    compiled, loaded, errors = run(folder)
    assert not compiled
    for name, kernel in loaded.items():
        assert kernel in (first[name], second[name])
    assert not errors
    assert len(list(folder.iterdir())) == len(first)


def test_damaged_files_are_replaced(filled, tmp_path):
    """Empty, cut short, one byte changed, not a cache at all: compiled again, kept again."""
    folder = tmp_path / "cache"
    shutil.copytree(filled[0], folder)
    files = sorted(folder.iterdir())
    files[0].write_bytes(files[0].read_bytes()[:-100])
    changed = bytearray(files[1].read_bytes())
    changed[len(changed) // 2] ^= 1
    files[1].write_bytes(changed)
    files[2].write_bytes(b"")
    compiled, _, errors = run(folder)
    assert {"conv2d_tiled", "relu", "softmax_cross_entropy"} <= set(compiled)
    assert not errors
    assert run(folder)[0] == []


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path):
    """The kernels are there all the same; the warning names folder, reason, and the variable that helps."""
    (tmp_path / "file").touch()
    own = tmp_path / "own.py"
    own.write_text(OWN_KERNEL)
    compiled, kernels, errors = run(tmp_path / "file" / "cache", str(own))
    assert len(compiled) == len(kernels) == 2
    assert "RuntimeWarning: compiled kernels cannot be kept in" in errors
    assert "NotADirectoryError" in errors
    assert "GPUCONV_CACHE" in errors


def test_arguments_and_source_are_part_of_the_key(tmp_path):
    """Each argument has its kernel; editing the file, a constant alone, makes new ones; undoing that makes none."""
    own, folder = tmp_path / "own.py", tmp_path / "cache"
    own.write_text(OWN_KERNEL)
    _, kernels, _ = run(folder, str(own))
    codes = [kernel[2] for kernel in kernels.values()]
    assert len(set(codes)) == 2
    own.write_text(OWN_KERNEL.replace("i + number", "i + number + 5"))
    compiled, changed, _ = run(folder, str(own))
    assert compiled == ["times", "times"]
    assert not {kernel[2] for kernel in changed.values()} & set(codes)
    own.write_text(OWN_KERNEL)
    compiled, again, _ = run(folder, str(own))
    assert not compiled
    assert again == kernels


def test_what_other_files_say_is_part_of_the_key(monkeypatch, tmp_path):
    """A change in a file that kernels share, or in the geometry, counts; code without a file is not kept."""
    compiled = pytest.importorskip("gpuconv.kernels.compiled")
    kernels = tmp_path / "kernels"
    shutil.copytree(Path(compiled.__file__).parent, kernels)
    monkeypatch.setattr(compiled, "__file__", str(kernels / "compiled.py"))
    before = compiled._digest(run)
    assert compiled._digest(run) == before
    with open(kernels / "elementwise.py", "a") as file:
        file.write("# changed\n")
    assert compiled._digest(run) != before
    names: dict = {}
    exec("def typed(): pass", names)
    assert compiled._digest(names["typed"]) is None


def test_arguments_that_could_change_unnoticed_are_refused():
    """An array or a function has no text to find a kernel by."""
    compiled = pytest.importorskip("gpuconv.kernels.compiled")
    make = compiled.specialised(lambda *arguments: arguments)
    assert make(1, "float32", (None, 2.5)) is make(1, "float32", (None, 2.5))
    with pytest.raises(TypeError, match=r"arguments must be numbers, strings, None, .* got function"):
        make(1, (2, run))
