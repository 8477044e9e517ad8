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
    "geometry": set(),
    "random": set(),
    "terminal": set(),
    "versions": set(),
    "data": set(),
    "kernels": {"geometry"},
    "tracing": set(),
    "simulator": {"tracing"},
    "ptx": {"kernels"},
    "files": set(),
    "tuning_store": {"files", "geometry"},
    "tuning": {"geometry", "kernels", "tuning_store"},
    "backends": {"files", "geometry", "kernels", "simulator", "tuning", "tuning_store"},
    "autograd": {"backends", "versions"},
    "ops": {"autograd", "backends", "geometry", "random"},
    "functional": {"autograd", "backends", "geometry", "ops", "random"},
    "creation": {"autograd", "random"},
    "optim": {"autograd", "backends", "geometry", "versions"},
    "nn": {"autograd", "functional", "geometry", "random"},
    "models": {"nn", "functional", "geometry", "data", "autograd"},
    "explanation": {"autograd", "backends", "geometry"},
    "graph": {"autograd", "backends", "geometry", "versions"},
    "tuner": {"autograd", "backends", "explanation", "geometry", "models", "tuning_store"},
    "storage": {"files", "models", "data"},
    "plots": {"nn", "models", "storage", "data", "autograd", "functional"},
    "feed": {"autograd", "backends", "data"},
    "train": {
        "models",
        "nn",
        "optim",
        "functional",
        "autograd",
        "backends",
        "feed",
        "graph",
        "random",
        "data",
        "storage",
    },
    "cli": {
        "geometry",
        "train",
        "plots",
        "models",
        "nn",
        "backends",
        "data",
        "storage",
        "autograd",
        "random",
        "terminal",
        "tuner",
        "tuning_store",
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
    return rooms - {"__version__"}


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
    shared = {"all_at_once", "compiled", "driver", "elementwise", "partial_sums", "pooling", "rowwise"}
    helpers = {"__init__", *shared}
    files = {p.stem for p in (ROOT / "kernels").glob("*.py")} - helpers
    listed = {module for variants in gpuconv.kernels.VARIANTS.values() for module in variants.values()}
    assert {module.rsplit(".", 1)[-1] for module in listed} == files


def test_kernels_cannot_be_imported_under_a_second_name():
    """From the repository root `import kernels` would make a second copy of every module; it is refused."""
    result = subprocess.run([sys.executable, "-c", "import kernels"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1
    assert "import this package as gpuconv.kernels" in result.stderr


def test_import_loads_no_heavy_library():
    """`import gpuconv` loads neither numba nor CuPy, nor what only the command line needs."""
    code = "import sys, gpuconv; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not set(loaded) & {"numba", "cupy", "torch", "typer", "rich", "matplotlib", "PIL", "pooch", "safetensors"}


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
