"""What kernels compile to: float64 that nobody asked for, kinds of instructions, what the compiler refuses."""

import math
from pathlib import Path

import numpy as np
import pytest
from numba import njit
from support.simulated import simulator

from gpuconv import lab
from gpuconv.kernels.device import ld4, u32
from gpuconv.lab import machine_code

cuda = pytest.importorskip("numba.cuda")
THIS = Path(__file__).read_text().splitlines()
SCALE_UP = True


@cuda.jit(device=True)
def half(value):
    return value / 2  # half


def with_options(has_bias):
    @cuda.jit
    def kernel(x, bias, y):
        i = cuda.grid(1)
        if i < y.size:
            total = bias[i] if has_bias else 0.0  # branch
            for k in range(x.shape[1]):
                total += x[i, k]  # sum
            y[i] = total

    return kernel


@cuda.jit
def literals(x, y):
    i = cuda.grid(1)
    if x[i] > 0.3:  # literal
        y[i] = math.sqrt(i)  # root
    y[i] += x[i] / i  # quotient


@njit
def third(value):
    return value * 0.3  # third


@cuda.jit(device=True)
def through(value):
    return third(value) + value


@cuda.jit
def calls(x, y):
    y[0] = half(x[0]) + x[1]  # call
    y[1] = through(x[0])


@cuda.jit
def of_this_project(x, y):
    i = u32(cuda.threadIdx.x)
    a, b, _, _ = ld4(x, i * 4)
    y[i] = a * 0.7 + b  # own


@cuda.jit
def scaled(x, alpha):
    if SCALE_UP:
        x[0] *= alpha  # argument
    else:
        x[0] = x[0] * 0.1 + 0.3  # global option


@cuda.jit
def meant(x, y):
    total = np.float64(0)
    for k in range(x.size):
        total += x[k]
    y[0] = total


@cuda.jit
def right(x, y):
    i = cuda.grid(1)
    total = np.float32(0)
    for k in range(x.size):
        total += x[k] * np.float32(0.5)
    y[i] = total if x[i] > 0 else np.float32(2)


@cuda.jit
def sized(x, n):
    m = n + 1
    own = cuda.local.array(m, np.float32)  # sized
    x[0] = own[0]


@cuda.jit
def indices(x, y, rows, columns):
    i = cuda.grid(1)
    for k in range(rows):
        y[i] += x[(k * 3 + i) % rows * columns + i // columns]  # indices


A, M = np.zeros(4, np.float32), np.zeros((4, 4), np.float32)
LAUNCHES = {
    "with bias": (with_options(True), M, A, A),
    "without bias": (with_options(False), M, A, A),
    "literals": (literals, A, A),
    "of float64": (literals, A, A.astype(np.float64)),
    "calls": (calls, A, A),
    "of this project": (of_this_project, A, A),
    "a float": (scaled, A, 0.5),
    "a float32": (scaled, A, np.float32(0.5)),
    "meant": (meant, A, A),
    "right": (right, A, A),
    "sized": (sized, A, 3),
    "indices": (indices, A, A, 3, 4),
}


@pytest.fixture(scope="module")
def codes():
    """All kernels above, compiled in one process beside this one, whose numba.cuda is simulated."""
    tasks = [
        machine_code.task(kernel.fn, tuple(map(machine_code.described, args))) for kernel, *args in LAUNCHES.values()
    ]
    results = dict(zip(LAUNCHES, machine_code.compile_all(tasks), strict=True))
    if results["right"].error.startswith("was not compiled"):
        pytest.skip(results["right"].error)
    return results


def line(mark):
    """The place of a line of this file, by the comment at its end."""
    (found,) = (number for number, text in enumerate(THIS, 1) if text.endswith(f"  # {mark}"))
    return f"{Path(__file__).name}:{found}"


def told(code):
    return [(cause.site.rpartition("/")[2], cause.instead, dict(cause.options)) for cause in code.float64]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launch", "causes"),
    [
        ("with bias", [("branch", "np.float32(0)", {"has_bias": False})]),
        ("without bias", [("branch", "np.float32(0)", {})]),
        ("literals", [("literal", "np.float32(0.3)", {}), ("root", "math.sqrt(np.float32(i))", {}),
                      ("quotient", "x[i] / np.float32(i)", {})]),
        ("calls", [("half", "value / np.float32(2)", {}), ("third", "np.float32(0.3)", {})]),
        ("of this project", [("own", "np.float32(0.7)", {})]),
        ("a float32", [("global option", "np.float32(0.1)", {"SCALE_UP": False}),
                       ("global option", "np.float32(0.3)", {"SCALE_UP": False})]),
    ],
)  # fmt: skip
def test_float64_is_named(codes, launch, causes):
    """With its line, what to write instead, and the options with which it is so; in device functions as well."""
    assert told(codes[launch]) == [(line(mark), instead, options) for mark, instead, options in causes]


@pytest.mark.slow
def test_a_python_float_is_float64(codes):
    """It is named where it is passed, and passing a float32 mends it."""
    (cause, *_) = codes["a float"].float64
    assert "the argument `alpha` is a Python float" in cause.what
    assert cause.instead == "kernel[...](..., np.float32(alpha))"
    assert [at.rpartition("/")[2] for at in cause.lines] == [line("argument")]


@pytest.mark.parametrize("launch", ["of float64", "meant", "right"])
def test_no_alarm(codes, launch):
    """Kernels with arrays of float64, sums that are float64 on purpose, float32 throughout."""
    assert codes[launch].error == ""
    assert codes[launch].float64 == ()
    if launch == "right":
        assert codes[launch].mix["float64"] == 0
        assert codes[launch].mix["float"] > 0


def test_the_size_of_a_local_array(codes):
    """The line is named, and that a constant is wanted."""
    error = codes["sized"].error
    assert line("sized") in error
    assert "cuda.local.array: its size must be a constant" in error


def test_indices_that_outweigh_arithmetic(codes):
    """The kind of instruction and the line, from the loop; the table has both."""
    code = codes["indices"]
    found = {kind: each.site.rpartition("/")[2] for each, kind in code.heavy}
    assert found["64-bit integers"] == line("indices")
    assert "64-bit integers outweigh arithmetic in the innermost loop, most at" in str(code)
    assert any("y[i] += x[(k * 3" in row and row.lstrip().startswith("1") for row in code.table().splitlines())
    assert "instructions" in codes["right"].compared(code).splitlines()[-1]


@pytest.mark.slow
def test_in_the_report_of_a_launch():
    """`code=True` compiles what was launched."""
    report = lab.simulate(with_options(False), code=True)[1, 4](M.copy(), A.copy(), A.copy())
    assert report.clean
    (code,) = report.code
    if code.error.startswith("was not compiled"):
        pytest.skip(code.error)
    assert "`0.0` is float64" in str(report)
    assert "Write np.float32(0)" in str(report)


def test_only_kernels_compile():
    """Anything else is refused."""
    with pytest.raises(TypeError, match="compiled: a kernel or a Python function is wanted, not int"):
        lab.compiled(3)
    assert simulator.is_simulated(cuda)
