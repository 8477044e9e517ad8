"""The interpreter of compiled kernels, and by it: kernels and LeNet's training as NVVM compiles them.

Programs here are written by hand; what is expected of them is the PTX manual's. Kernels need Numba's real CUDA target,
so they run in processes of their own.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import compiler

pytest.importorskip("numba", reason="signatures are Numba's")
from numba import types

from gpuconv.kernels import VARIANTS
from gpuconv.lab import ptx
from gpuconv.lab.ptx import PtxError

TESTS = Path(__file__).parents[1]

HEAD = """
.version 8.0
.target sm_90
.address_size 64
.visible .entry kernel(.param .u64 a0, .param .u64 a1, .param .u64 a2, .param .u64 a3, .param .u64 a4,
    .param .u64 a5, .param .u64 a6)
.maxntid 64, 1, 1
{
	.reg .pred %p<9>; .reg .b32 %r<9>; .reg .b64 %rd<9>; .reg .f32 %f<9>;
	.shared .align 16 .b8 tile[256];
	ld.param.u64 %rd1, [a4];
	cvta.to.global.u64 %rd2, %rd1;
	mov.u32 %r1, %tid.x;
	mul.wide.u32 %rd3, %r1, 4;
	add.s64 %rd4, %rd2, %rd3;
"""


@dataclass(frozen=True)
class Handwritten:
    """What `ptx.run` asks of a launch: a program that is given an array of 32-bit elements, whose address is in %rd2.

    %r1 is the thread, %rd4 the address of its element.
    """

    body: str
    threads: int = 64
    blocks: int = 1
    dtype: str = "uint32"
    shared_bytes: int = 0

    @property
    def kernel(self) -> str:
        return self.body

    @property
    def signature(self) -> tuple[Any, ...]:
        return (types.Array(getattr(types, self.dtype), 1, "C"),)

    @property
    def grid(self) -> tuple[int, int, int]:
        return self.blocks, 1, 1

    @property
    def block(self) -> tuple[int, int, int]:
        return self.threads, 1, 1

    def ptx(self, cc: Any) -> str:
        return HEAD + self.body + "\n}"


def outcome(body: str, dtype: str = "uint32", **options: Any) -> np.ndarray:
    """The array, 64 elements for each block, after a program has run on it; it begins as 0, 1, 2..."""
    launch = Handwritten(body, dtype=dtype, **options)
    array = np.arange(64 * launch.blocks, dtype=dtype)
    ptx.run(launch, (array,))
    return array


F32 = {math.nan: "0f7FC00000", math.inf: "0f7F800000", 1.5: "0f3FC00000", -0.25: "0fBE800000", 0.1: "0f3DCCCCCD"}


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("add.s32 %r5, -1, 3;", 2),
        ("sub.s32 %r5, 3, 5;", 2**32 - 2),
        ("mad.lo.s32 %r5, 65536, 65537, 7;", 65536 + 7),
        ("mul.hi.u32 %r5, 0x80000000, 6;", 3),
        ("mul.wide.s32 %rd5, -2, 3; cvt.u32.u64 %r5, %rd5;", 2**32 - 6),
        ("mul.wide.u32 %rd5, -1, -1; shr.u64 %rd6, %rd5, 32; cvt.u32.u64 %r5, %rd6;", 2**32 - 2),
        ("shl.b32 %r5, 1, 31;", 2**31),
        ("shl.b32 %r5, 1, 32;", 0),  # counts above the width are clamped, not taken modulo
        ("shr.u32 %r5, -1, 40;", 0),
        ("shr.s32 %r5, -8, 40;", 2**32 - 1),
        ("shr.s32 %r5, -8, 1;", 2**32 - 4),
        ("bfi.b32 %r5, 0xFF, 0x12345678, 8, 4;", 0x12345F78),
        ("div.s32 %r5, -7, 2;", 2**32 - 3),
        ("rem.s32 %r5, -7, 2;", 2**32 - 1),
        ("div.u32 %r5, -1, 2;", 2**31 - 1),
        ("prmt.b32 %r5, 0x33221100, 0x77665544, 0x2104;", 0x22110044),
        ("not.b32 %r5, 0xF0F0F0F0;", 0x0F0F0F0F),
        ("min.u32 %r5, -1, 3;", 3),
        ("min.s32 %r5, -1, 3;", 2**32 - 1),
        ("setp.lt.u32 %p1, -1, 3; selp.u32 %r5, 1, 0, %p1;", 0),
        ("setp.lt.s32 %p1, -1, 3; selp.u32 %r5, 1, 0, %p1;", 1),
        ("cvt.s64.s32 %rd5, -1; shr.u64 %rd6, %rd5, 60; cvt.u32.u64 %r5, %rd6;", 15),
        ("cvt.u64.u32 %rd5, -1; shr.u64 %rd6, %rd5, 32; cvt.u32.u64 %r5, %rd6;", 0),
        ("mov.b64 %rd5, {7, 9}; mov.b64 {%temp, %r5}, %rd5;", 9),
        ("{ .reg .pred on; setp.ne.b32 on, %r1, 999; mov.b32 %r5, 4; @!on mov.b32 %r5, 5; }", 4),
    ],
)
def test_integers(code, expected):
    """Results are the manual's, at the ends of the range too."""
    assert set(outcome(f"{code} st.global.u32 [%rd4], %r5; ret;")) == {expected}


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("fma.rn.f32 %f5, {0.1}, {0.1}, {-0.25};", np.float32(float(np.float32(0.1)) ** 2 - 0.25)),
        ("fma.rm.f32 %f5, {0.1}, {0.1}, {-0.25};", np.nextafter(np.float32(-0.24), np.float32(-1))),
        ("min.f32 %f5, {nan}, {1.5};", 1.5),
        ("max.f32 %f5, {-0.25}, {nan};", -0.25),
        ("cvt.sat.f32.f32 %f5, {1.5};", 1),
        ("cvt.sat.f32.f32 %f5, {nan};", 0),
        ("cvt.rn.f32.s32 %f5, -3;", -3),
        ("ex2.approx.ftz.f32 %f5, {-0.25};", 2**-0.25),
        ("div.rn.f32 %f5, {1.5}, {inf};", 0),
        ("neg.f32 %f5, {inf};", -math.inf),
        ("mov.b32 %r5, {1.5}; shl.b32 %r6, %r5, 1; shr.u32 %r7, %r6, 1; mov.b32 %f5, %r7;", 1.5),
        *(
            (f"setp.{name}.f32 %p1, {{{a}}}, {{{b}}}; selp.f32 %f5, {{1.5}}, {{-0.25}}, %p1;", 1.5 if true else -0.25)
            for name, a, b, true in (
                ("lt", -0.25, 1.5, True),
                ("lt", math.nan, 1.5, False),
                ("ltu", math.nan, 1.5, True),
                ("gtu", -0.25, 1.5, False),
                ("ne", math.nan, 1.5, False),
                ("neu", math.nan, math.nan, True),
                ("equ", math.nan, 1.5, True),
                ("nan", math.nan, 1.5, True),
                ("num", 1.5, 1.5, True),
            )
        ),
    ],
)
def test_floats(code, expected):
    """Results are the manual's, of NaN and infinity too."""
    written = re.sub(r"\{(-?[\w.]+)\}", lambda found: F32[next(x for x in F32 if str(x) == found[1])], code)
    found = outcome(f"{written} st.global.f32 [%rd4], %f5; ret;", "float32")
    np.testing.assert_array_max_ulp(found, np.full(64, expected, np.float32), maxulp=1)


def test_threads_part_and_meet():
    """Each runs its own number of rounds and takes its own branch; all come through the barrier behind."""
    found = outcome(
        """
        mov.u32 %r2, 0; mov.u32 %r3, 0;
        setp.eq.s32 %p1, %r1, 0;
        @%p1 bra AFTER;
        LOOP:
        add.s32 %r3, %r3, 1; add.s32 %r2, %r2, %r3;
        setp.lt.u32 %p2, %r3, %r1;
        @%p2 bra LOOP;
        AFTER:
        mov.u32 %r6, tile; shl.b32 %r7, %r1, 2; add.s32 %r6, %r6, %r7;
        st.shared.u32 [%r6], %r2;
        bar.sync 0;
        xor.b32 %r7, %r7, 252; mov.u32 %r6, tile; add.s32 %r6, %r6, %r7;
        ld.shared.u32 %r5, [%r6];
        mov.u32 %r4, %ctaid.x; mul.wide.u32 %rd5, %r4, 256; add.s64 %rd4, %rd4, %rd5;
        st.global.u32 [%rd4], %r5;
        ret;
        """,
        blocks=300,  # more than run side by side
    )
    rounds = np.arange(64)[::-1]
    np.testing.assert_array_equal(found.reshape(300, 64), np.tile(rounds * (rounds + 1) // 2, (300, 1)))


def test_a_barrier_counts_and_scopes_have_their_own_registers():
    """Each block counts its own threads; what is declared between braces hides what is declared outside."""
    found = outcome(
        """
        mov.u32 %r4, %ctaid.x; mul.wide.u32 %rd5, %r4, 256; add.s64 %rd4, %rd4, %rd5;
        setp.lt.u32 %p1, %r1, 7;
        { .reg .pred %p1; .reg .b32 %r2;
        add.s32 %r2, %r4, 20; setp.lt.u32 %p1, %r1, %r2;
        bar.red.popc.u32 %r5, 0, %p1; }
        selp.u32 %r5, %r5, 0, %p1;
        st.global.u32 [%rd4], %r5;
        ret;
        """,
        blocks=3,
    )
    expected = np.zeros((3, 64), np.uint32)
    expected[:, :7] = [[20], [21], [22]]
    np.testing.assert_array_equal(found.reshape(3, 64), expected)


def test_shuffles_vectors_and_atomics():
    """Lanes trade values; an access may move several elements; each thread's atomic update counts."""
    found = outcome(
        """
        mov.u32 %r2, 31; mov.u32 %r3, 5; mov.u32 %r4, -1;
        shfl.sync.bfly.b32 %r5|%p1, %r1, %r3, %r2, %r4;
        st.global.u32 [%rd4], %r5;
        setp.ne.s32 %p2, %r1, 0;
        @%p2 bra END;
        ld.global.v4.u32 {%r5, %r6, %r7, %r8}, [%rd2];
        st.global.v2.u32 [%rd2+248], {%r8, %r5};
        END:
        atom.global.add.u32 %r5, [%rd2+4], %r1;
        ret;
        """
    )
    expected = np.arange(64) ^ 5
    expected[62:] = expected[3], expected[0]
    expected[1] += sum(range(64))
    np.testing.assert_array_equal(found, expected)


FAULTS = {
    "behind the array": ("st.global.u32 [%rd4+4], %r1; ret;", "1 of 64 accesses are in no array"),
    "before it": ("ld.global.u32 %r5, [%rd4+-4]; ret;", "in no array"),
    "misaligned": ("ld.global.v2.u32 {%r5, %r6}, [%rd2+4]; ret;", "misaligned"),
    "outside of shared memory": ("mov.u32 %r5, tile; ld.shared.u32 %r6, [%r5+256]; ret;", "outside of shared memory"),
    "written, and read as constant": (
        "ld.global.nc.u32 %r5, [%rd4]; st.global.u32 [%rd4], %r5; ret;",
        "read through the read-only cache",
    ),
    "a barrier that some miss": ("setp.lt.u32 %p1, %r1, 9; @%p1 bra E; bar.sync 0; E: ret;", "do not reach"),
    "two barriers": (
        "setp.lt.u32 %p1, %r1, 9; @%p1 bra A; bar.sync 0; bra.uni B; A: bar.sync 0; B: ret;",
        "do not reach",
    ),
    "a shuffle that some miss": (
        "setp.lt.u32 %p1, %r1, 9; @%p1 bra E; mov.u32 %r2, 31; mov.u32 %r3, -1;"
        " shfl.sync.bfly.b32 %r5, %r1, 1, %r2, %r3; E: ret;",
        "a lane is asked for its value that does not take part",
    ),
    "a shuffle in a branch": (
        "setp.lt.u32 %p1, %r1, 9; @%p1 bra E; shfl.sync.bfly.b32 %r5, %r1, 1, 31, -1; E: bar.sync 0; ret;",
        "not in its mask",
    ),
    "a register without a value": ("st.global.u32 [%rd4], %r5; ret;", "%r5 is read before it is written"),
    "an unknown instruction": (
        "tex.1d.v4.s32.s32 {%r5, %r6, %r7, %r8}, [%rd2, {%r1}]; ret;",
        "[%rd2, {%r1}]: not known here (PTX line",
    ),
    "a call": ("call.uni (retval), f, (p); ret;", "f is defined in no module that is known here"),
    "no end": ("mov.u32 %r5, 1;", "ends without a return"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_no_gpu_may_be_asked_to_do(fault):
    """Named, with the instruction where there is one."""
    body, words = FAULTS[fault]
    with pytest.raises(PtxError, match=re.escape(words)):
        outcome(body)


def test_arguments_that_do_not_fit():
    """An array of another type than the code was compiled for, and a number of parameters that the code has not."""
    with pytest.raises(TypeError, match=r"an array of float32, shape \(64,\), is given for array\(uint32"):
        ptx.run(Handwritten("ret;"), (np.zeros(64, np.float32),))
    with pytest.raises(TypeError, match=r"shape \(32,\)"):
        ptx.run(Handwritten("ret;"), (np.zeros(64, np.uint32)[::2],))


# -- the project's kernels ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compiling(tmp_path_factory):
    """The environment of a process that compiles; skips where none can."""
    return compiler.needed(tmp_path_factory)


@pytest.mark.slow
def test_public_kernels_are_right_as_compiled(compiling):
    """Results as NumPy has them; of the one that Numba refuses to compile, in words."""
    command = [sys.executable, TESTS / "support" / "interpret_public_kernels.py"]
    done = subprocess.run(command, env=compiling, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    # Its tile's width is TILE + 1, which the real compiler takes for a variable.
    assert said.pop("transpose").startswith("TypingError")
    assert len(said) == 10
    assert set(said.values()) == {"right"}, said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("files", "operations"),
    [("test_kernels.py", ["conv2d"]), pytest.param("test_*kernels.py", list(VARIANTS), marks=pytest.mark.thorough)],
    ids=["conv2d", "all"],
)
def test_kernels_are_right_as_compiled(compiling, files, operations):
    """Of the simulator's grids one case in 40, every kernel among them; `make compiled-test` runs all tests."""
    files = sorted(map(str, TESTS.glob(f"kernels/{files}")))
    command = [sys.executable, "-m", "pytest", "-q", "--cases=few", "-m", "grid", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, env=compiling, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:]
    line = next(line for line in done.stdout.splitlines() if "compiled and interpreted" in line)
    print(line)
    kernels = {module for operation in operations for module in VARIANTS[operation].values()}
    assert line.endswith(f"of {len(kernels)} kernels"), line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "dtype", "kernels"),
    [
        ("small", "float32", 7),
        pytest.param("LeNet5", "float32", 8, marks=pytest.mark.thorough),
        pytest.param("LeNet5", "float64", 8, marks=pytest.mark.thorough),
    ],
)
def test_a_network_trains_as_compiled(compiling, network, dtype, kernels):
    """The losses of captured steps, by the variants and tilings that are chosen for them, are the NumPy backend's.

    The small one lacks a block in front of its block, and so the block's gradient with respect to its input.
    """
    command = [sys.executable, TESTS / "support" / "train_compiled.py", "4", dtype, "8", network]
    done = subprocess.run(command, env=compiling, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    np.testing.assert_allclose(found["cuda"], found["numpy"], rtol={"float32": 1e-5, "float64": 1e-12}[dtype])
    assert len(found["kernels"]) == kernels, found["kernels"]
