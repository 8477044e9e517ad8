"""A variant takes one file and one line, an operation as few: docs/kernels.md, added to a copy of the project."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba_cuda", reason="kernels are written for numba-cuda")
pytest.importorskip("greenlet", reason="the simulator needs it")

ROOT = Path(__file__).resolve().parents[2]
LINE = '        "pointwise": "gpuconv.kernels.conv.conv2d_pointwise",\n'


@pytest.fixture(scope="module")
def page():
    return (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")


def copy_project(tmp_path):
    """What of the project runs, as if it were installed."""
    ignored = shutil.ignore_patterns("__pycache__", "results")
    for folder in "gpuconv", "kernels", "bench", "tests":
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    # An installed package has the kernels inside.
    (tmp_path / "gpuconv" / "kernels").symlink_to(tmp_path / "kernels", target_is_directory=True)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)


@pytest.fixture
def project(page, tmp_path):
    """A copy of the project with the file and the line that the page gives."""
    copy_project(tmp_path)
    (code,) = re.findall(r'^```python\n("""Pointwise.*?)^```', page, re.MULTILINE | re.DOTALL)
    (tmp_path / "kernels" / "conv" / "conv2d_pointwise.py").write_text(code, encoding="utf-8")
    assert f'    "conv2d": {{\n{LINE}' in page
    table = tmp_path / "kernels" / "__init__.py"
    text = table.read_text(encoding="utf-8")
    assert text.count('    "conv2d": {\n') == 1
    table.write_text(text.replace('    "conv2d": {\n', f'    "conv2d": {{\n{LINE}'), encoding="utf-8")
    return tmp_path


def run(project, *arguments, simulate=True):
    """Run Python in the copy, and nothing of the original."""
    environment = {**os.environ, "PYTHONPATH": str(project), "NUMBA_ENABLE_CUDASIM": str(int(simulate))}
    return subprocess.run(
        [sys.executable, *arguments], cwd=project, env=environment, capture_output=True, text=True, encoding="utf-8"
    )


def printed(project, code):
    """What code prints there."""
    done = run(project, "-c", code)
    assert done.returncode == 0, done.stderr
    return done.stdout


def verify(project):
    """Run the tests that concern it, on the cases of 1x1."""
    files = "kernels/test_kernels", "kernels/test_conv2d_kernels", "test_architecture"
    tests = [f"tests/{name}.py" for name in files]
    chosen = "(pointwise and (1x1 or larger or 64 or number or anywhere)) or table_lists"
    return run(project, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--cases=all", *tests, "-k", chosen)


@pytest.mark.slow
def test_it_is_verified(project):
    """The tests run it, in each tiling, against the reference; and they fail if it leaves out a channel."""
    done = verify(project)
    assert done.returncode == 0, done.stdout
    (count,) = re.findall(r"^(\d+) \(kernel, tiling, case\) triples simulated", done.stdout, re.MULTILINE)
    assert int(count) >= 2

    path = project / "kernels" / "conv" / "conv2d_pointwise.py"
    right = path.read_text(encoding="utf-8")
    path.write_text(right.replace("range(c)", "range(c - 1)"), encoding="utf-8")
    done = verify(project)
    assert done.returncode == 1
    assert "Mismatched elements" in done.stdout


@pytest.mark.slow
def test_it_is_listed_and_runs(project):
    """Tuning lists it with the others, says why it is not taken, and takes it on request."""
    code = (
        "import numpy as np, gpuconv\n"
        "from gpuconv import functional as F, nn, tuning\n"
        "from gpuconv.geometry import Conv2dGeometry\n"
        "x, w = np.ones((1, 3, 4, 4), np.float32), np.ones((2, 3, 1, 1), np.float32)\n"
        "print(dict(tuning.candidates('conv2d', Conv2dGeometry.of(x.shape, w.shape)))['pointwise'])\n"
        "with gpuconv.use_backend('cuda'), tuning.use_variant('conv2d', 'pointwise'):\n"
        "    print(F.conv2d(x, w).sum())\n"
        "    print(gpuconv.explain(nn.Conv2d(3, 2, 1), x.shape))\n"
    )
    text = printed(project, code)
    listed, ran, *_ = text.splitlines()
    assert listed == "comes after direct in the rule"
    assert ran == "96.0"
    assert "pointwise: taken, by use_variant: asked for; Tiling(threads=256)" in text


@pytest.mark.slow
def test_it_is_judged(project):
    """bench.static compiles it, simulates it and gives its bounds."""
    out = project / "static.json"
    options = ["--variants=pointwise", "--layers=resnet50.conv3-reduce", "--full", f"--json={out}"]
    done = run(project, "-m", "bench.static", *options, simulate=False)
    if done.returncode == 2 and "pip install" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    assert "conv2d pointwise: threads" in done.stdout
    results = json.loads(out.read_text(encoding="utf-8"))["results"]
    assert [found["tiling"] for found in results] == [{"threads": 256}, {"threads": 64}]
    for found in results:
        (launch,) = found["launches"]
        assert (launch["kernel"], launch["spill_bytes"], launch["float64_instructions"]) == ("conv2d_pointwise", 0, 0)
        assert found["simulated"]["faults"] == []


@pytest.mark.slow
def test_an_operation_is_added(page, tmp_path):
    """An entry, a variant and its line, a method in each backend: the kernel gives what NumPy gives, odd sizes too."""
    copy_project(tmp_path)
    (code,) = re.findall(r'^```python\n("""Leaky.*?)^```', page, re.MULTILINE | re.DOTALL)
    (tmp_path / "kernels" / "pointwise" / "leaky_relu.py").write_text(code, encoding="utf-8")
    places = dict(re.findall(r"^```\n# (\S+)\n(.*?)^```", page, re.MULTILINE | re.DOTALL))
    before = {
        "kernels/operations.py": '    "relu": Operation(',
        "kernels/__init__.py": '    "relu": {',
        "gpuconv/backends/base.py": "    @abstractmethod\n    def relu(self",
        "gpuconv/backends/numpy_backend.py": "    def relu(self",
        "gpuconv/backends/cuda/backend.py": "    def relu(self",
    }
    assert places.keys() == before.keys()
    for name, added in places.items():
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert text.count(before[name]) == 1, name
        (tmp_path / name).write_text(text.replace(before[name], f"{added}\n{before[name]}"), encoding="utf-8")
    code = (
        "import numpy as np\n"
        "from gpuconv import backends, kernels\n"
        "assert kernels.load('leaky_relu', 'elementwise').launches((0,), None, 'float32') == ()\n"
        "for size in 0, 1, 7, 1024, 1031:\n"
        "    for dtype in 'float32', 'float64':\n"
        "        x = np.random.default_rng(0).standard_normal(size).astype(dtype)\n"
        "        x[:1] = np.nan\n"
        "        found = [backends.get(name).leaky_relu(x, 0.25) for name in ('numpy', 'numba', 'cuda')]\n"
        "        for one in found:\n"
        "            np.testing.assert_array_equal(one, np.where(x > 0, x, x / 4))\n"
        "print('equal')\n"
    )
    assert printed(tmp_path, code) == "equal\n"
