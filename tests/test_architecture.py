"""What the project promises about itself: which room may import which, and what importing it costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import gpuconv
import gpuconv.kernels

ROOT = Path(__file__).resolve().parent.parent

# Who may import whom, inside gpuconv. What a room imports inside a function (lazily) counts as well.
ALLOWED = {
    "arrays": {"dtypes"},
    "dtypes": set(),
    "files": set(),
    "memory": set(),
    "names": set(),
    "geometry": {"names"},
    "random": set(),
    "terminal": set(),
    "version": set(),
    "versions": set(),
    "data": {"files", "memory", "names"},
    "kernels": {"geometry"},
    "lab": {"kernels"},
    "tuning": {"files", "geometry", "kernels", "names"},
    "backends": {"dtypes", "arrays", "files", "geometry", "kernels", "lab", "names", "tuning", "version", "versions"},
    "autograd": {"dtypes", "arrays", "backends", "versions"},
    "ops": {"dtypes", "autograd", "backends", "geometry", "random", "versions"},
    "functional": {"dtypes", "autograd", "backends", "geometry", "ops", "random"},
    "cuda": {"backends"},
    "creation": {"arrays", "dtypes", "autograd", "backends", "random"},
    "optim": {"dtypes", "autograd", "backends", "geometry", "versions"},
    "captured_step": {"autograd", "backends", "geometry", "versions"},
    "parallel": {"autograd", "backends", "geometry", "nn"},
    "explanation": {"autograd", "backends", "geometry"},
    "nn": {"arrays", "autograd", "backends", "dtypes", "functional", "geometry", "random"},
    "models": {"dtypes", "autograd", "data", "functional", "geometry", "names", "nn", "ops"},
    "tuner": {"autograd", "backends", "explanation", "geometry", "kernels", "models", "tuning"},
    "storage": {"autograd", "dtypes", "data", "files", "models"},
    "onnx": {"dtypes", "autograd", "backends", "files", "functional", "nn", "ops", "storage", "version", "versions"},
    "plot_style": {"data", "files"},
    "plots": {"autograd", "backends", "data", "functional", "models", "nn", "plot_style"},
    "training": {
        "autograd",
        "backends",
        "captured_step",
        "data",
        "functional",
        "memory",
        "models",
        "names",
        "nn",
        "optim",
        "parallel",
        "random",
        "storage",
        "version",
    },
    "explorer": {"autograd", "backends", "data", "files", "models", "names", "nn", "onnx", "storage", "training"},
    "cli": {
        "autograd",
        "backends",
        "data",
        "explorer",
        "files",
        "geometry",
        "lab",
        "models",
        "names",
        "nn",
        "onnx",
        "parallel",
        "plots",
        "random",
        "storage",
        "terminal",
        "training",
        "tuner",
        "tuning",
    },
    "__main__": {"cli"},
}


def room_of(path: Path) -> str:
    relative = path.relative_to(ROOT)
    return "kernels" if relative.parts[0] == "kernels" else relative.with_suffix("").parts[1]


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            # `from gpuconv import backends` names a room; `from gpuconv import __version__` the package itself.
            names = [f"{node.module}.{a.name}" if node.module == "gpuconv" else node.module for a in node.names]
        else:
            continue
        rooms |= {name.split(".")[1] for name in names if name.startswith("gpuconv.")}
    return rooms


SOURCES = sorted(p for folder in ("gpuconv", "kernels") for p in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path):
    """Every file imports only from the rooms below its own: the design's arrows hold in the source."""
    room = room_of(path)
    if room == "__init__":
        return  # the package's face names everything
    assert room in ALLOWED, f"{path.name}: a new room; say in ALLOWED what it may import"
    forbidden = imported_rooms(path) - ALLOWED[room] - {room}
    assert not forbidden, f"{room} imports {sorted(forbidden)}"


def test_the_reference_shares_no_code_with_the_library():
    """tests/reference.py judges the library, so it must not import it."""
    assert not imported_rooms(ROOT / "tests" / "reference.py")


def test_nothing_imports_bench():
    """The benchmarks use the library, never the other way round."""
    for path in SOURCES:
        assert "import bench" not in path.read_text(), path
        assert "from bench" not in path.read_text(), path


def test_variants_table_lists_the_folder():
    """Each kernel file is in VARIANTS, and each entry is a file: a variant can be neither forgotten nor left behind."""
    shared = {"all_at_once", "channels", "compiled", "driver", "elementwise", "partial_sums", "pooling", "rowwise"}
    shared |= {"operations", "variant", "weight_product", "windows"}
    files = {p for p in (ROOT / "kernels").rglob("*.py") if p.parent.name != "device" and p.stem != "__init__"}
    listed = {module for variants in gpuconv.kernels.VARIANTS.values() for module in variants.values()}
    assert {ROOT.joinpath(*module.split(".")[1:]).with_suffix(".py") for module in listed} == {
        p for p in files if p.stem not in shared
    }


def test_the_wheel_has_every_package():
    """Each folder with code is in pyproject's list of packages, which setuptools does not look for itself."""
    text = (ROOT / "pyproject.toml").read_text()
    for path in {p.parent.relative_to(ROOT) for p in SOURCES}:
        name = ".".join(path.parts if path.parts[0] == "gpuconv" else ("gpuconv", *path.parts))
        assert f'    "{name}",\n' in text, name


def test_kernels_cannot_be_imported_under_a_second_name():
    """From the repository root `import kernels` would make a second copy of every module; it is refused."""
    result = subprocess.run([sys.executable, "-c", "import kernels"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1
    assert "import this package as gpuconv.kernels" in result.stderr


def test_sources_that_are_not_installed_say_so():
    """In their folder, by a Python that has only their dependencies: one line that says what to do."""
    folders = [str(ROOT), str(Path(pytest.__file__).parents[1])]
    code = f"import sys; sys.path[:0] = {folders}; import gpuconv"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert "not installed for this Python: run pip install -e ." in done.stderr.splitlines()[-1]


def test_import_loads_no_heavy_library():
    """`import gpuconv` loads neither numba nor CuPy, nor what only the command line needs."""
    code = "import sys, gpuconv; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not set(loaded) & {
        "numba",
        "cupy",
        "torch",
        "typer",
        "rich",
        "matplotlib",
        "PIL",
        "pooch",
        "ml_dtypes",
        "safetensors",
        "onnx",
        "mpi4py",
    }


def test_public_names_exist():
    """Everything in __all__ can be had, lazily loaded names included."""
    for module in (gpuconv, gpuconv.functional, gpuconv.nn, gpuconv.optim, gpuconv.models, gpuconv.data):
        for name in module.__all__:
            assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = gpuconv.nonsense


def test_backends_have_the_same_signatures():
    """A primitive takes the same arguments on every backend, so that an op never has to know which one it runs on."""
    import inspect

    from gpuconv.backends.base import Backend

    for name, reason in gpuconv.backends.available().items():
        if reason is not None:
            continue
        backend = type(gpuconv.backends.get(name))
        for primitive in Backend.__abstractmethods__:
            ours = list(inspect.signature(getattr(backend, primitive)).parameters)
            assert ours == list(inspect.signature(getattr(Backend, primitive)).parameters), (name, primitive)
