"""Build the wheel, install it in an environment of its own, and use it from another directory.

An editable install hides what a wheel would lack: the kernels' folder, the bundled digits, py.typed. The new
environment borrows the installed dependencies (a .pth file), so that only gpuconv itself comes from the wheel.
"""

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

SMOKE = """
import sys, pathlib
import numpy as np
import gpuconv, gpuconv.kernels
from gpuconv import functional as F, models
from gpuconv.data import load_dataset

root = pathlib.Path(sys.argv[1])
for module in (gpuconv, gpuconv.kernels):
    assert root not in pathlib.Path(module.__file__).parents, f"{module.__file__} comes from the checkout"
assert (pathlib.Path(gpuconv.__file__).parent / "py.typed").exists()
try:
    import kernels
except ImportError:
    pass
else:
    raise AssertionError(f"a top-level package 'kernels' was installed: {kernels.__file__}")
assert F.conv2d(np.ones((1, 1, 4, 4)), np.ones((2, 1, 3, 3))).shape == (1, 2, 2, 2)
digits = load_dataset("mnist-sample")
assert len(digits.train_images) == 8000
model = models.LeNet5()
from gpuconv.data import InputTransform
model.input_transform = InputTransform.fit(digits.train_images)
gpuconv.save(model, "model.safetensors")
probabilities = gpuconv.load("model.safetensors").predict(digits.test_images[:3])
np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
assert "<canvas" in gpuconv.explore(model).html
print("the wheel works:", gpuconv.__version__)
"""


def run(*command: object, cwd: Path) -> None:
    subprocess.run([str(part) for part in command], cwd=cwd, check=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        pip = ("-m", "pip", "--quiet", "--disable-pip-version-check")
        # Built from a copy: setuptools leaves build/ in the source tree, and a stale one puts deleted files in wheels.
        files = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
            cwd=ROOT, check=True, capture_output=True, text=True,
        ).stdout.split("\0")  # fmt: skip
        for name in filter(None, files):
            if (ROOT / name).is_file():
                (work / "source" / name).parent.mkdir(parents=True, exist_ok=True)
                (work / "source" / name).write_bytes((ROOT / name).read_bytes())
        run(sys.executable, *pip, "wheel", "--no-deps", "--wheel-dir", work, work / "source", cwd=work)
        (wheel,) = work.glob("gpuconv-*.whl")
        venv.create(work / "venv", with_pip=True)
        python = work / "venv" / "bin" / "python"
        run(python, *pip, "install", "--no-deps", wheel, cwd=work)
        site = next((work / "venv" / "lib").glob("python3*/site-packages"))
        borrowed = [path for path in sys.path if path.endswith("site-packages")]
        # Plain .pth lines only add folders; they do not run the editable install's own .pth, which names the checkout.
        (site / "dependencies.pth").write_text("\n".join(borrowed) + "\n")
        (work / "elsewhere").mkdir()
        (work / "smoke.py").write_text(SMOKE)
        run(python, work / "smoke.py", ROOT, cwd=work / "elsewhere")
        run(work / "venv" / "bin" / "gpuconv", "--version", cwd=work / "elsewhere")


if __name__ == "__main__":
    main()
