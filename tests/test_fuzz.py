"""Random programs against PyTorch (``python -m tests.fuzz`` runs more of them), and that faults would be found."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest
from fuzz import guard, programs
from fuzz.parent import ROOT, Summary, fuzz
from fuzz.programs import Program
from fuzz.reducing import reduced
from support import operation_cases

from gpuconv import Tensor, functional, nn

guarded = pytest.mark.skipif(guard.unavailable() is not None, reason=str(guard.unavailable()))


@pytest.mark.slow
@pytest.mark.parametrize("programs", [15, pytest.param(150, marks=pytest.mark.thorough)])
def test_programs_agree_with_pytorch(programs: int) -> None:
    """Values, gradients, shapes and element types on both CPU backends; no crash, no hang. Without PyTorch, float64."""
    summary = fuzz(range(programs), convolutions=2, time_limit=60)
    assert not summary.faults, str(summary)
    assert summary.statements > 10 * programs


@pytest.mark.slow
def test_without_pytorch_values_are_compared() -> None:
    """The NumPy backend in float64 is the judge, then."""
    summary = fuzz(range(20), convolutions=0, time_limit=60, without_torch=True)
    assert not summary.faults, str(summary)
    assert summary.statements > 200


def test_every_operation_occurs() -> None:
    """All of ``functional`` and ``nn`` and all methods of a Tensor: in programs, or in a table that PyTorch judges."""
    text = str([programs.generate(seed).statements for seed in range(1500)])
    judged = {case.operation for cases in operation_cases.FAMILIES.values() for case in cases}
    judged |= {name for name, *_ in operation_cases.MODULES} | {name for name, *_ in operation_cases.LOSSES}
    # Random ones, whose numbers are not PyTorch's; what only holds others; and what tests of their own are about.
    random = {"alpha_dropout", "feature_alpha_dropout", "dropout1d", "dropout2d", "dropout3d"}
    random |= {"AlphaDropout", "FeatureAlphaDropout", "Dropout1d", "Dropout2d", "Dropout3d"}
    holding = {"ModuleDict", "ModuleList", "ParameterDict", "ParameterList", "Module", "Parameter"}
    own = {
        "batch_norm_relu",
        "conv2d_relu_max_pool2d_pair",
        "MaxUnpool1d",
        "MaxUnpool2d",
        "MaxUnpool3d",
        "MaxPool1d",
        "ChannelShuffle",
    }
    left_out = random | holding | own | {"Summary", "init", "utils", "functional"}
    for module, prefix in ((functional, "F."), (nn, "nn.")):
        assert {name for name in module.__all__ if f"{prefix}{name}(" not in text} - judged <= left_out
    methods = {name for name in vars(Tensor) if not name.startswith("_")}
    shown = {"data", "shape", "ndim", "dtype", "dim", "size", "numel", "numpy", "tolist", "is_floating_point"}
    shown |= {"is_cuda", "is_contiguous", "getitem", "pow", "zero_grad", "type_as", "reshape_as", "retains_grad"}
    # What is assigned in place, moved or hooked is in tests of its own.
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    elsewhere = {name for name in methods if f'"{name}"' in tests or f".{name}(" in tests}
    assert {name for name in methods - shown - elsewhere if f".{name}" not in text} - judged == set()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sabotage", "kind", "operation", "first", "time_limit"),
    [
        # On both backends alike, so that only PyTorch can tell.
        ("wrong_gradient", ".*values", "igmoid", 0, 30),
        # The process dies, its successor goes on, and the program is reduced to the operation and its backward.
        pytest.param("write_beyond", "crash", "(?i:relu)", 0, 30, marks=guarded),
        # One element of a compiled operation's result.
        pytest.param("wrong_on_one_backend", "numba: values", "elu", 0, 30, marks=pytest.mark.thorough),
        # Without the first seeds, of which one compiles for a second: on a busy machine that would pass for a hang.
        pytest.param("hang", "hang$", "anh", 7, 3, marks=pytest.mark.thorough),
        # A KeyError is nothing that an operation says on purpose.
        pytest.param("accident", ".*KeyError", "", 0, 30, marks=pytest.mark.thorough),
    ],
)
def test_a_planted_fault_is_found(sabotage: str, kind: str, operation: str, first: int, time_limit: float) -> None:
    """It is told by its kind, and the program is reduced to the operation."""
    with_torch = sabotage == "wrong_gradient"
    if with_torch:
        pytest.importorskip("torch")
    options = {"convolutions": 0, "stop_after": 1, "time_limit": time_limit, "without_torch": not with_torch}
    summary: Summary = fuzz(range(first, 200), sabotage=sabotage, **options)
    assert summary.faults, f"{sabotage} was not found"
    found = next(iter(summary.faults.values()))
    assert re.match(kind, found.kind)
    assert re.search(operation, str(found.program.statements))
    assert len(found.program.statements) <= 7, str(summary)
    if with_torch:
        assert "backward" in found.program.statements[-1]


def test_a_seed_is_a_program() -> None:
    """The same in each process; and other seeds give others."""
    code = "from fuzz.programs import generate; print([generate(seed) for seed in range(20)])"
    first, second = (
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT / "tests", capture_output=True, text=True, check=True, timeout=60
        ).stdout
        for _ in range(2)
    )
    assert first == second
    assert len({str(programs.generate(seed).statements) for seed in range(20)}) == 20


def test_statements_are_dropped_and_made_plain() -> None:
    """What is left fails alike; sizes shrink everywhere at once; what depends on a dropped statement goes too."""
    program = Program(
        0,
        [
            "x1 = Tensor(array((5, 7), 'float32', 'reversed', 1), True)",
            "x2 = Tensor(array((7,), 'float32', 'C', 2), True)",
            "x3 = x1 * x2",
            "x4 = F.relu(x1)",
            "del x2, x3",
            "x4.sum().backward()",
        ],
        eager=False,
    )

    def fails(candidate: Program) -> bool:
        text = "\n".join(candidate.statements)
        return "F.relu(x1)" in text and "x1 = " in text and "backward" in text

    assert reduced(program, fails).statements == [
        "x1 = Tensor(array((1, 1), 'float32', 'C', 1), True)",
        "x4 = F.relu(x1)",
        "x4.sum().backward()",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("library", ["numba", "numpy", "torch"])
def test_a_script_runs(tmp_path, library) -> None:
    """What is printed of a fault runs by itself, on each library."""
    if library == "torch":
        pytest.importorskip("torch")
    file = tmp_path / "found.py"
    file.write_text(programs.script(replace(programs.generate(3), eager=False), "Seed 3."))
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests" / "support" / "without_compiler")}
    printed = subprocess.run(
        [sys.executable, file, library], cwd=ROOT, env=environment, capture_output=True, text=True, check=True,
        timeout=120,
    ).stdout  # fmt: skip
    assert "x1 " in printed


_TOUCH = """
import ctypes, sys
import numpy as np
from fuzz import guard
guard.begin()
guard.turn({turn})
array = np.zeros(3, np.float32)
byte = ctypes.c_ubyte.from_address(array.ctypes.data + {offset})
{before}
{touch}
del array
print("alive")
"""


@guarded
@pytest.mark.parametrize(
    ("turn", "offset", "before", "touch", "alive"),
    [
        pytest.param(0, 11, "", "byte.value = 1", True, id="the last byte is written"),
        pytest.param(3, 0, "", "byte.value = 1", True, id="the first byte is written"),
        pytest.param(0, 12, "", "byte.value", False, id="the next byte is read"),
        pytest.param(0, 12, "", "byte.value = 1", False, id="the next byte is written"),
        pytest.param(3, -1, "", "byte.value", False, id="the byte before is read"),
        pytest.param(3, 12, "", "byte.value = 1", False, id="a byte behind is written, and the page goes on"),
        pytest.param(0, -1, "", "byte.value = 1", False, id="a byte before is written, and the page goes on"),
        pytest.param(0, 0, "array = None", "byte.value", False, id="freed memory is read"),
    ],
)
def test_guard_pages(turn: int, offset: int, before: str, touch: str, alive: bool) -> None:
    """A byte beyond an array ends the process: at once, or when the array is freed."""
    code = _TOUCH.format(turn=turn, offset=offset, before=before, touch=touch)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "tests", capture_output=True, text=True, timeout=60)
    assert (done.stdout == "alive\n") == alive, done.stderr
    assert (done.returncode == 0) == alive
