"""What stands in kernels/device/: each equals its twin, refuses what it cannot do, and becomes its instruction."""

import functools
import json
import os
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from support.simulated import simulator

SCRIPT = Path(__file__).parents[1] / "support" / "compile_offline.py"

device = pytest.importorskip("gpuconv.kernels.device")
words = pytest.importorskip("gpuconv.kernels.device.words")

# -- twins -----------------------------------------------------------------------------------------------

EDGES = [0, 1, 2, 3, 5, 31, 127, 46_341, 2**16, 2**31 - 2, 2**31 - 1]
SIGNED = [sign * value for value in EDGES for sign in (1, -1)] + [-(2**31)]
UNSIGNED = [*EDGES, 2**31, 2**32 - 2, 2**32 - 1]

#: What a kernel may do with two words, or with a word and an integer.
ARITHMETIC = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "//": lambda a, b: a // b,
    "%": lambda a, b: a % b,
    "divmod, quotient": lambda a, b: divmod(a, b)[0],
    "divmod, remainder": lambda a, b: divmod(a, b)[1],
    "&": lambda a, b: a & b,
    "minimum": lambda a, b: device.minimum(a, b),
    "maximum": lambda a, b: device.maximum(a, b),
}
SHIFTS = {"<<": lambda a, b: a << b, ">>": lambda a, b: a >> b}
COMPARISONS = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
}


@functools.cache
def on_the_cpu(*names):
    """The intrinsics themselves, compiled for the processor of this machine: their LLVM code is not bound to a GPU."""
    import numba.core.typing.templates
    import numba.extending

    if "u32" not in _made:
        words.register(numba.core.typing.templates, numba.extending, "cpu")
    for name in names:
        if name not in _made:
            _made[name] = numba.extending.intrinsic(device.BODIES[name])
    return [_made[name] for name in names]


_made: dict[str, object] = {}


def compiled(name, left, right):
    """An operation on two integers; ``left`` and ``right`` say what makes words of them, if anything does."""
    import numba

    u32, i32, minimum, maximum = on_the_cpu("u32", "i32", "minimum", "maximum")
    convert = {"u32": u32, "i32": i32, "": numba.njit(lambda value: value)}
    to_left, to_right, int64 = convert[left], convert[right], numba.types.int64
    operate = {
        "minimum": numba.njit(lambda a, b: minimum(a, b)),
        "maximum": numba.njit(lambda a, b: maximum(a, b)),
    }.get(name) or numba.njit((ARITHMETIC | SHIFTS | COMPARISONS)[name])
    return numba.njit(lambda x, y: int64(operate(to_left(x), to_right(y))))


def twin(name, left, right):
    """The same in the simulator."""
    convert = {"u32": device.u32, "i32": device.i32, "": int}
    operate = (ARITHMETIC | SHIFTS | COMPARISONS)[name]
    return lambda x, y: operate(convert[left](x), convert[right](y))


@pytest.mark.slow
@pytest.mark.grid(2)
@pytest.mark.parametrize("sides", ["both", "left", "right"])
@pytest.mark.parametrize(("word", "values"), [("i32", SIGNED), ("u32", UNSIGNED)], ids=["i32", "u32"])
def test_arithmetic_of_words_equals_its_twins(word, values, sides):
    """On the edges of the range: truncated division, wrapping; a signed overflow, undefined there, is an error here.

    Of two words, and of a word and an integer on either side of it.
    """
    overflows, kinds = 0, (word if sides != "right" else "", word if sides != "left" else "")
    for name in ARITHMETIC:
        machine, simulated = compiled(name, *kinds), twin(name, *kinds)
        for x in values:
            for y in values:
                if name.startswith(("//", "%", "divmod")) and (y == 0 or (x, y) == (-(2**31), -1)):
                    continue
                try:
                    result = simulated(x, y)
                    assert result == machine(x, y), f"{x} {name} {y}"
                    assert type(result) is type(device.TWINS[word](0)), f"{x} {name} {y}"
                except OverflowError:
                    exact = {"+": x + y, "-": x - y, "*": x * y}[name]
                    assert not -(2**31) <= exact < 2**31, f"{x} {name} {y}"
                    overflows += 1
    assert (overflows > 0) == (word == "i32")


@pytest.mark.parametrize(("word", "values"), [("i32", SIGNED), ("u32", UNSIGNED)], ids=["i32", "u32"])
def test_comparisons_of_words_are_exact(word, values):
    """With another word, and with an integer of 64 bits that is no word's."""
    for name in COMPARISONS:
        for kinds, others in (((word, word), values), ((word, ""), [*values, -1, 2**32 + 1, -(2**40)])):
            machine, simulated = compiled(name, *kinds), twin(name, *kinds)
            for x in values:
                for y in others:
                    exact = COMPARISONS[name](x, y)
                    assert machine(x, y) == simulated(x, y) == exact, f"{x} {name} {y}"


def test_shifts_and_conversions_equal_their_twins():
    """Shifts by 0 to 31 bits, and 64-bit integers cut to 32."""
    left, right = compiled("<<", "i32", ""), compiled(">>", "i32", "")
    unsigned_left, unsigned_right = compiled("<<", "u32", ""), compiled(">>", "u32", "")
    for x in [sign * value for value in EDGES for sign in (1, -1)]:
        for bits in (0, 1, 4, 31):
            assert left(x >> bits, bits) == device.i32(x >> bits) << bits, f"{x}, {bits}"
            assert right(x, bits) == device.i32(x) >> bits, f"{x}, {bits}"
            assert unsigned_left(x, bits) == device.u32(x) << bits, f"{x}, {bits}"
            assert unsigned_right(x, bits) == device.u32(x) >> bits, f"{x}, {bits}"
    assert device.u32(-1) == 2**32 - 1
    with pytest.raises(OverflowError, match="2147483648 does not fit into int32"):
        device.i32(2**31)


def test_words_in_loops_and_branches_stay_words():
    """In place, as a loop's variable, in a conditional expression, in a tuple, as an index."""
    import numba

    (u32,) = on_the_cpu("u32")

    def walk(convert):
        def steps(values, first):
            i, total = convert(first), convert(0)
            while i < values.size:
                pair = (i * 3, i if i % 2 == 0 else i + 1)
                values[i] = pair[0] - pair[1]
                total += pair[1]
                total *= 3
                i += 2
            return total - 1 < 2**31, i >> 1

        return steps

    results = []
    for function in (numba.njit(walk(u32)), walk(device.u32)):
        values = np.zeros(9, np.uint32)
        results.append((function(values, 1)[0], values.tolist()))
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("operate", "message"),
    [
        (lambda u, i: u + i, "do not mix"),
        (lambda u, i: i * u, "do not mix"),
        (lambda u, i: u + 1.0, "words go with integers"),
        (lambda u, i: i - 0.5, "words go with integers"),
        (lambda u, i: u / 2, "words have"),
        (lambda u, i: u | 1, "words have"),
        (lambda u, i: -i, "words have"),
    ],
)
def test_what_words_refuse(operate, message):
    """Signed beside unsigned, floats, other operators: an error in the simulator, and when a kernel is compiled."""
    import numba

    with pytest.raises(TypeError, match=message):
        operate(device.u32(3), device.i32(4))
    u32, i32 = on_the_cpu("u32", "i32")
    mixed = numba.njit(operate)
    with pytest.raises((TypeError, numba.core.errors.NumbaError), match=message):
        numba.njit(lambda x: mixed(u32(x), i32(x)))(5)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "uint8"])
def test_loads_and_stores_equal_their_twins(dtype):
    """One, two and, up to 128 bits, four elements: the same values from the same places, none beside them."""
    import numba

    wide = np.dtype(dtype).itemsize <= 4
    names = ("ld", "ldg", "st", "ld2", "ldg2", "st2") + (("ld4", "ldg4", "st4") if wide else ("ld2", "ldg2", "st2"))
    last = 4 if wide else 2

    def copies(ld, ldg, st, ld2, ldg2, st2, ld4, ldg4, st4):
        def copy(x, y):
            st(y, 0, ld(x, 7))
            st(y, 1, ldg(x, 3))
            st2(y, 2, ld2(x, 4))
            st2(y, 4, ldg2(x, 10))
            st4(y, 8, ld4(x, 12))
            st4(y, 12, ldg4(x, last))

        return copy

    x = np.arange(1, 17).astype(dtype)
    results = []
    for copy in (
        numba.njit(copies(*on_the_cpu(*names))),
        copies(*(device.TWINS[name] for name in names)),
    ):
        y = np.zeros(16, dtype)
        copy(x, y)
        results.append(y)
    np.testing.assert_array_equal(results[0], results[1])
    expected = [8, 4, 5, 6, 11, 12, 0, 0, *range(13, 17), *range(last + 1, last + 5)]
    if not wide:
        expected = [8, 4, 5, 6, 11, 12, 0, 0, 13, 14, 0, 0, 3, 4, 0, 0]
    np.testing.assert_array_equal(results[0], expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fma_rounds_once(dtype):
    """The instruction gives the exact result rounded once; the twin, which rounds twice, is within rounding of it."""
    import numba

    (fma,) = on_the_cpu("fma")
    compute = numba.njit(lambda a, b, c: fma(a, b, c))
    rng = np.random.default_rng(3)
    differ = 0
    for a, b in rng.standard_normal((200, 2)).astype(dtype):
        c = -a * b  # of the product, all that is left is what rounding took away
        exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
        assert compute(a, b, c) == dtype(exact)
        twin = device.TWINS["fma"](a, b, c)
        assert type(twin) is dtype
        assert abs(twin - compute(a, b, c)) <= np.finfo(dtype).eps * abs(a * b)
        differ += twin != compute(a, b, c)
    assert differ > 100


FLOATS = np.zeros(16, np.float32)


@pytest.mark.parametrize(
    ("name", "arguments", "error", "words"),
    [
        ("i32", (-(2**31) - 1,), OverflowError, "does not fit into int32"),
        ("u32", (1.0,), TypeError, "integer"),
        ("minimum", (1, 2), TypeError, "has to be a word"),
        ("ld4", (FLOATS, 6), ValueError, "offset 6, which is not a multiple of 4: misaligned"),
        ("ld4", (FLOATS, 16), IndexError, "elements 16 to 19 of an array of 16"),
        ("ld", (FLOATS, -1), IndexError, "elements -1 to -1"),
        ("ld", (FLOATS, 1.0), TypeError, "integer"),
        ("ldg", (FLOATS.reshape(4, 4), 0), TypeError, "one-dimensional contiguous"),
        ("ldg", (FLOATS[::2], 0), TypeError, "one-dimensional contiguous"),
        ("ld4", (FLOATS.astype(np.float64), 0), TypeError, "more than 128 bits"),
        ("ldg4_if", (FLOATS, 3, True), ValueError, "misaligned"),
        ("st", (FLOATS, 0, 1.0), TypeError, "a store of 1 elements of float32 got float: convert it"),
        ("st2", (FLOATS, 0, (np.float32(1), np.float64(2))), TypeError, "float32, float64: convert it"),
        ("st4", (FLOATS, 0, (np.float32(1),) * 3), TypeError, "a store of 4 elements"),
        ("fma", (np.float32(1), np.float32(1), 1.0), TypeError, "three floats of one type"),
    ],
)
def test_twins_refuse_what_the_machine_would_not(name, arguments, error, words):
    """Overflow, misalignment, wrong types: an error in the simulator, and no silence."""
    with pytest.raises(error, match=words):
        device.TWINS[name](*arguments)


def test_a_load_that_is_off_reads_nothing():
    """A false predicate gives zeros of the array's type for any offset."""
    twins = device.TWINS
    assert twins["ldg_if"](FLOATS + 1, -7, False) == 0
    assert twins["ldg2_if"](FLOATS + 1, 10**12, False) == (0, 0)
    assert twins["ldg4_if"](FLOATS + 1, 3, False) == (0,) * 4
    assert type(twins["ldg_if"](FLOATS, -7, False)) is np.float32
    assert twins["ldg4_if"](FLOATS + 1, 4, True) == (1,) * 4
    halves = np.arange(24, dtype=np.uint16)
    assert twins["ldg8_if"](halves, 8, False) == (0,) * 8
    assert twins["ldg8_if"](halves, 8, True) == tuple(range(8, 16))


def test_a_read_only_load_of_what_the_launch_writes_is_a_race():
    """The read-only cache may hold old values: `ldg` is for arrays that nobody writes meanwhile, never for shared."""
    from numba import cuda, float32

    @cuda.jit
    def in_place(x):
        device.st(x, cuda.threadIdx.x, device.ldg(x, cuda.threadIdx.x))

    with simulator.trace() as report:
        in_place[1, 16](FLOATS.copy())
    (race,) = report.races
    assert "x is written in the launch that reads it by a read-only load at tests/kernels/test_device.py" in str(race)

    @cuda.jit
    def shared():
        device.ldg(cuda.shared.array(4, float32), 0)

    with simulator.trace(), pytest.raises(simulator.SimulationError, match="in shared memory"):
        shared[1, 1]()


def test_a_refusal_is_false_and_says_why():
    """`supports` can be asked in an `if`, and its answer printed."""
    assert device.fits_offsets(input=2**31 - 1) is True
    answer = device.fits_offsets(input=5, weight=2**31)
    assert not answer
    assert "weight has 2147483648 elements" in answer
    assert "Split the batch" in answer


# -- machine code ----------------------------------------------------------------------------------------

ARCHITECTURES = ["sm_80", "sm_90a", "sm_100"]


@pytest.fixture(scope="module")
def ptx():
    """PTX by kernel and architecture, from a process of its own: this one has the simulator's numba.cuda."""
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "0"}
    done = subprocess.run([sys.executable, SCRIPT], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    code = json.loads(done.stdout)
    if "unavailable" in code:
        pytest.skip(f"numba-cuda cannot compile here, which needs its extra cu12 or cu13: {code['unavailable']}")
    return code


# The compiler may take four floats that are only copied for two integers of 64 bits.
TWO, FOUR = r"(\.v2\.[bfu]32|\.b64)", r"(\.v4\.[bfu]32|\.v2\.b64)"


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("kernel", "instructions"),
    [
        ("ld4", [r"ld\.global" + FOUR, r"st\.global" + FOUR]),
        ("ldg", [r"ld\.global\.nc\.[bfu]32"]),
        ("ldg4", [r"ld\.global\.nc" + FOUR, r"st\.global" + FOUR]),
        ("ldg2 of float64", [r"ld\.global\.nc\.v2\.[bfu]64", r"st\.global\.v2\.[bfu]64"]),
        ("ldg4 of uint8", [r"ld\.global\.nc(\.v4\.[bu]8|\.[bu]32)"]),
        ("ldg4_if", [r"@on ld\.global\.nc\.v4\.f32", r"st\.global" + FOUR]),
        ("ldg2_if of float64", [r"@on ld\.global\.nc\.v2\.f64"]),
        ("ldg_if of int32", [r"@on ld\.global\.nc\.b32"]),
        ("ldg_if of uint8", [r"@on ld\.global\.nc\.b8"]),
        ("shared ld2", [r"ld\.shared" + TWO, r"st\.shared" + TWO, r"bar\.sync"]),
        ("shared ld4", [r"ld\.shared" + FOUR, r"st\.shared" + FOUR, r"bar\.sync"]),
        ("arithmetic", [r"fma\.rn\.f32", r"mul\.(hi|wide)\.u32"]),
        ("direct", [r"@on ld\.global\.nc\.f32", r"fma\.rn\.f32", r"st\.global\.[bf]32", r"\.maxntid 256"]),
        ("direct in float64", [r"ld\.global\.nc\.[bf]64", r"fma\.rn\.f64"]),
    ],
)
def test_instructions(ptx, kernel, instructions, architecture):
    """Each intrinsic becomes the instruction that it is there for; float32 code has neither float64 nor divisions."""
    code = ptx[kernel][architecture]
    assert f".target {architecture}\n" in code
    for instruction in instructions:
        assert re.search(instruction, code), f"no {instruction}"
    for unwanted in r"\b(div|rem)\.", r"(ld|st)\.local", r"mul\.lo\.s64":
        assert not re.search(unwanted, code), unwanted
    assert "float64" in kernel or not re.search(r"\.f64", code)


@pytest.mark.slow
def test_only_loads_in_the_padding_are_predicated(ptx):
    """Without padding the direct convolution's loads need no predicate: its inner loop has none."""
    assert ptx["direct"]["sm_80"].count("@on ld.global.nc") == 9
    assert "@on" not in ptx["direct in float64"]["sm_80"]
