"""Build the packages, install them in environments of their own, and use them from another directory.

An editable install hides what a wheel would lack: the kernels' folder, the bundled digits, py.typed. As it is called by
`make test`, the wheel alone is built, and the new environment borrows the installed dependencies (a .pth file), so that
only gpuconv itself comes from the wheel. With `--dist DIR`, as by `make dist`, sdist and wheel are made into a folder;
each is installed with its dependencies from the registry, by each `--python`, and trains a network.
"""

import argparse
import email
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PIP = ("-m", "pip", "--quiet", "--disable-pip-version-check")

#: What a wheel must hold beside modules: data, what a page is made of, the marker for type checkers.
FILES = {
    "gpuconv/py.typed",
    "gpuconv/data/mnist-sample.npz",
    "gpuconv/tuning/defaults.json",
    "gpuconv/kernels/__init__.py",
    *(f"gpuconv/explorer/page/{path.name}" for path in (ROOT / "gpuconv" / "explorer" / "page").iterdir()),
    *(str(Path("gpuconv") / path.relative_to(ROOT)) for path in (ROOT / "kernels").rglob("*.py")),
    *(str(path.relative_to(ROOT)) for path in (ROOT / "gpuconv").rglob("*.py")),
}
LICENCES = {"LICENSE", "gpuconv/data/mnist-sample.LICENSE.md"}

SMOKE = """
import sys, pathlib
import numpy as np
import gpuconv, gpuconv.kernels
from gpuconv import functional as F, models
from gpuconv.data import load_dataset

root = pathlib.Path(sys.argv[1])
for module in (gpuconv, gpuconv.kernels):
    assert root not in pathlib.Path(module.__file__).parents, f"{module.__file__} comes from the checkout"
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
"""


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}exit status {done.returncode}")
    return done.stdout


def copy_sources(target: Path) -> None:
    """Builds start from a copy: setuptools leaves build/ in the source tree; of a stale one deleted files come back."""
    listed = ("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z")
    for name in filter(None, run(*listed, cwd=ROOT).split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes((ROOT / name).read_bytes())


def check_files(package: Path) -> None:
    """A package holds all of its modules and data, licences, and a README as its description."""
    if package.suffix == ".whl":
        with zipfile.ZipFile(package) as archive:
            names = set(archive.namelist())
            (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
            described = email.message_from_bytes(archive.read(metadata))
        wanted = FILES | {metadata.replace("METADATA", f"licenses/{name}") for name in LICENCES}
    else:
        with tarfile.open(package) as archive:
            names = {member.name.partition("/")[2] for member in archive.getmembers()}
            (metadata,) = (name for name in archive.getnames() if name.count("/") == 1 and name.endswith("PKG-INFO"))
            described = email.message_from_binary_file(archive.extractfile(metadata))  # type: ignore[arg-type]
        inside = {name.replace("gpuconv/kernels/", "kernels/") for name in FILES}
        wanted = inside | LICENCES | {"README.md", "pyproject.toml"}
    if missing := wanted - names:
        sys.exit(f"{package.name} lacks {', '.join(sorted(missing)[:5])}" + (" ..." if len(missing) > 5 else ""))
    assert described["Description-Content-Type"] == "text/markdown"
    assert described.get_payload().startswith("# gpuconv"), described.get_payload()[:80]


def check_installed(folder: Path, work: Path, train: bool) -> None:
    """The library and the command of an environment, in an empty directory."""
    elsewhere = work / "elsewhere" / folder.name
    elsewhere.mkdir(parents=True)
    (work / "smoke.py").write_text(SMOKE)
    run(folder / "bin" / "python", work / "smoke.py", ROOT, cwd=elsewhere)
    command = folder / "bin" / "gpuconv"
    version = run(command, "--version", cwd=elsewhere).strip()
    if train:
        assert "numba         available" in (told := run(command, "info", cwd=elsewhere)), told
        run(command, "train", "--epochs", "1", "--batch-size", "256", "--out", "run", cwd=elsewhere)
        assert "accuracy" in run(command, "evaluate", "--model", "run", cwd=elsewhere)
    print(f"{folder.name}: {version} works", flush=True)


def make_all(work: Path, out: Path, pythons: list[str]) -> None:
    """Sdist and wheel into a folder, each installed and used."""
    run(sys.executable, "-m", "build", "--outdir", out, work / "source", cwd=work)
    packages = sorted([*out.glob("gpuconv-*.whl"), *out.glob("gpuconv-*.tar.gz")])
    assert len(packages) == 2, f"remove what {out} had before: {[path.name for path in packages]}"
    for package in packages:
        check_files(package)
    for python in pythons:
        for package in packages:
            folder = work / f"{Path(python).name}-{'wheel' if package.suffix == '.whl' else 'sdist'}"
            run(python, "-m", "venv", folder, cwd=work)
            run(folder / "bin" / "python", *PIP, "install", f"gpuconv[cli] @ {package.resolve().as_uri()}", cwd=work)
            check_installed(folder, work, train=True)


def make_wheel(work: Path) -> None:
    """The wheel alone, in an environment that borrows this one's packages."""
    run(sys.executable, *PIP, "wheel", "--no-deps", "--wheel-dir", work, work / "source", cwd=work)
    (wheel,) = work.glob("gpuconv-*.whl")
    check_files(wheel)
    folder = work / "wheel"
    venv.create(folder)  # without a pip of its own, which takes seconds
    run(sys.executable, *PIP, "--python", folder / "bin" / "python", "install", "--no-deps", wheel, cwd=work)
    site = next((folder / "lib").glob("python3*/site-packages"))
    borrowed = [path for path in sys.path if path.endswith("site-packages")]
    # Plain .pth lines only add folders; they do not run the editable install's own .pth, which names the checkout.
    (site / "dependencies.pth").write_text("\n".join(borrowed) + "\n")
    check_installed(folder, work, train=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dist", type=Path, metavar="DIR", help="make sdist and wheel there, and check both")
    parser.add_argument("--python", action="append", metavar="PYTHON", help="to install for; by default this one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        copy_sources(work / "source")
        if arguments.dist is None:
            make_wheel(work)
        else:
            make_all(work, arguments.dist.resolve(), arguments.python or [sys.executable])


if __name__ == "__main__":
    main()
