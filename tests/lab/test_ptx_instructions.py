"""What single PTX instructions compute, against Python's integers and fractions, and loops that follow the manual."""

from __future__ import annotations

import math
import random
import struct
from fractions import Fraction

import numpy as np
import pytest

from gpuconv.lab import ptx
from gpuconv.lab.ptx import PtxError

HEAD = ".version 8.5\n.target sm_90a\n.address_size 64\n"


def kernel(body, registers="", parameters=4, more=""):
    """A module with a kernel: %rd0, %rd1... are its parameters, %r0 the thread, %a0... the addresses of its words."""
    names = [f".param .u64 p{n}" for n in range(parameters)]
    loads = "".join(
        f"ld.param.u64 %rd{n}, [p{n}]; mul.wide.u32 %a{n}, %r0, 4; add.s64 %a{n}, %a{n}, %rd{n};\n"
        for n in range(parameters)
    )
    return f"""{HEAD}{more}
.visible .entry kernel({", ".join(names)}) {{
.reg .pred %p<9>; .reg .b16 %h<9>; .reg .b32 %r<40>; .reg .b64 %rd<20>; .reg .b64 %a<9>;
.reg .f32 %f<40>; .reg .f64 %d<9>;
{registers}
mov.u32 %r0, %tid.x;
{loads}
{body}
ret;
}}"""


def launch(body, *arrays, threads=64, blocks=1, registers="", more="", **options):
    """Run it on arrays."""
    ptx.run_text(kernel(body, registers, len(arrays), more), blocks, threads, arrays, **options)


def applied(code, *operands, kind="u32"):
    """What an instruction gives for each thread's operands: %x, %y, %z into %o, all of one kind of register."""
    bits = int(kind[1:])
    bits = max(bits, 16)
    count = len(operands[0])
    arrays = [np.array([x & (1 << bits) - 1 for x in column], f"u{bits // 8}") for column in operands]
    arrays += [np.zeros(count, np.uint32)] * (3 - len(arrays))
    out = np.zeros(count, f"u{bits // 8}")
    step, names = bits // 8, "xyz"[: len(operands)]
    loads = "".join(
        f"mul.wide.u32 %a{n}, %r0, {step}; add.s64 %a{n}, %a{n}, %rd{n}; ld.global.b{bits} %{name}, [%a{n}];"
        for n, name in enumerate(names)
    )
    registers = f".reg .b{bits} %x; .reg .b{bits} %y; .reg .b{bits} %z; .reg .b{bits} %o;"
    store = f"mul.wide.u32 %a3, %r0, {step}; add.s64 %a3, %a3, %rd3; st.global.b{bits} [%a3], %o;"
    launch(loads + code + store, *arrays, out, threads=count, registers=registers)
    return out.tolist()


def signed(value, bits):
    """Bits as a number with a sign."""
    return value - (1 << bits) if value >> bits - 1 else value


EDGES = [0, 1, 2, 7, 31, 32, 33, 0x7FFFFFFF, 0x80000000, 0x80000001, 0xFFFFFFFE, 0xFFFFFFFF]
_random = random.Random(1)


def words(bits, count=60):
    """Numbers of so many bits, with those at the ends of the range."""
    edges = EDGES + ([edge << 32 | 5 for edge in EDGES] if bits == 64 else [])
    return [*edges, *(_random.getrandbits(_random.randrange(1, bits + 1)) for _ in range(count))][: count + len(edges)]


M32, M64 = 2**32 - 1, 2**64 - 1


def _bfe(a, b, c, sign):
    position, length = b & 255, c & 255
    found = [(a >> min(i + position, 31) & 1) if i + position < 32 else None for i in range(min(length, 32))]
    last = a >> min(position + length - 1, 31) & 1 if sign and length else 0
    bits = [last if bit is None else bit for bit in found] + [last] * (32 - len(found))
    return sum(bit << i for i, bit in enumerate(bits))


INTEGERS = {
    "mul.hi.u32 %o, %x, %y;": lambda x, y: x * y >> 32,
    "mul.hi.s32 %o, %x, %y;": lambda x, y: signed(x, 32) * signed(y, 32) >> 32,
    "mad.hi.u32 %o, %x, %y, %z;": lambda x, y, z: (x * y >> 32) + z,
    "add.sat.s32 %o, %x, %y;": lambda x, y: max(-(2**31), min(2**31 - 1, signed(x, 32) + signed(y, 32))),
    "sub.s32 %o, %x, %y;": lambda x, y: x - y,
    "popc.b32 %o, %x;": lambda x: x.bit_count(),
    "clz.b32 %o, %x;": lambda x: 32 - x.bit_length(),
    "brev.b32 %o, %x;": lambda x: int(f"{x:032b}"[::-1], 2),
    "bfind.u32 %o, %x;": lambda x: x.bit_length() - 1,
    "bfind.s32 %o, %x;": lambda x: (x ^ (M32 if x >> 31 else 0)).bit_length() - 1,
    "bfind.shiftamt.u32 %o, %x;": lambda x: 32 - x.bit_length() if x else -1,
    "bfe.u32 %o, %x, %y, %z;": lambda x, y, z: _bfe(x, y, z, False),
    "bfe.s32 %o, %x, %y, %z;": lambda x, y, z: _bfe(x, y, z, True),
    "lop3.b32 %o, %x, %y, %z, 0x96;": lambda x, y, z: x ^ y ^ z,
    "lop3.b32 %o, %x, %y, %z, 0xE8;": lambda x, y, z: x & y | x & z | y & z,
    "shf.l.wrap.b32 %o, %x, %y, %z;": lambda x, y, z: (y << 32 | x) << (z & 31) >> 32,
    "shf.r.clamp.b32 %o, %x, %y, %z;": lambda x, y, z: (y << 32 | x) >> min(z, 32),
    "shf.l.clamp.b32 %o, %x, %y, %z;": lambda x, y, z: (y << 32 | x) << min(z, 32) >> 32,
    "dp4a.u32.u32 %o, %x, %y, %z;": lambda x, y, z: z + sum((x >> i & 255) * (y >> i & 255) for i in (0, 8, 16, 24)),
    "dp4a.s32.u32 %o, %x, %y, %z;": lambda x, y, z: (
        z + sum(signed(x >> i & 255, 8) * (y >> i & 255) for i in (0, 8, 16, 24))
    ),
    "prmt.b32 %o, %x, %y, %z;": lambda x, y, z: sum(
        (255 * (byte >> 7) if z >> 4 * i & 8 else byte) << 8 * i
        for i in range(4)
        for byte in [(y << 32 | x) >> 8 * (z >> 4 * i & 7) & 255]
    ),
    "sad.u32 %o, %x, %y, %z;": lambda x, y, z: abs(x - y) + z,
    "slct.b32.s32 %o, %x, %y, %z;": lambda x, y, z: y if z >> 31 else x,
    "cnot.b32 %o, %x;": lambda x: int(x == 0),
    "mul24.lo.u32 %o, %x, %y;": lambda x, y: (x & 0xFFFFFF) * (y & 0xFFFFFF),
    "setp.gt.and.s32 %p1|%p2, %x, %y, 1; selp.b32 %o, 5, 6, %p2;": lambda x, y: (
        6 if signed(x, 32) > signed(y, 32) else 5
    ),
    "set.lt.u32.u32 %o, %x, %y;": lambda x, y: M32 if x < y else 0,
    "add.cc.u32 %o, %x, %y; addc.u32 %o, 0, 0;": lambda x, y: x + y >> 32,
    "sub.cc.u32 %o, %x, %y; subc.u32 %o, %z, 0;": lambda x, y, z: z - (x < y),
    "mad.lo.cc.u32 %o, %x, %y, %z; madc.hi.u32 %o, %x, %y, 0;": lambda x, y, z: x * y + z >> 32,
    "cvt.sat.s8.s32 %h1, %x; cvt.s32.s8 %o, %h1;": lambda x: max(-128, min(127, signed(x, 32))),
    "cvt.u32.s16 %o, %x;": lambda x: signed(x & 0xFFFF, 16),
    "cvt.pack.sat.u8.s32.b32 %o, %x, %y, %z;": lambda x, y, z: (
        (z << 16) | max(0, min(255, signed(x, 32))) << 8 | max(0, min(255, signed(y, 32)))
    ),
}
LONG = {
    "mul.hi.u64 %o, %x, %y;": lambda x, y: x * y >> 64,
    "mul.hi.s64 %o, %x, %y;": lambda x, y: signed(x, 64) * signed(y, 64) >> 64,
    "mad.lo.s64 %o, %x, %y, %z;": lambda x, y, z: x * y + z,
    "clz.b64 %r1, %x; cvt.u64.u32 %o, %r1;": lambda x: 64 - x.bit_length(),
    "brev.b64 %o, %x;": lambda x: int(f"{x:064b}"[::-1], 2),
    "abs.s64 %o, %x;": lambda x: abs(signed(x, 64)),
    "div.s64 %o, %x, 7;": lambda x: int(Fraction(signed(x, 64), 7)),
    "rem.u64 %o, %x, 10;": lambda x: x % 10,
    "cvt.rn.f64.u64 %d1, %x; mov.b64 %o, %d1;": lambda x: struct.unpack("Q", struct.pack("d", float(x)))[0],
    "cvt.rz.f32.u64 %f1, %x; mov.b32 %r1, %f1; cvt.u64.u32 %o, %r1;": lambda x: _bits(_exact(Fraction(x), 24, "rz")),
}


@pytest.mark.parametrize(("table", "bits"), [(INTEGERS, 32), (LONG, 64)], ids=["32", "64"])
def test_integers(table, bits):
    """At the ends of the range, and in between."""
    for code, expected in table.items():
        count = sum(f"%{name}" in code for name in "xyz")
        columns = [words(bits) for _ in range(count)]
        for column in columns[1:]:
            _random.shuffle(column)
        if "%z" in code and code.startswith(("bfe", "shf", "prmt")):
            columns[2] = [value % 70 if not code.startswith("prmt") else value for value in columns[2]]
            columns[1] = [value % 50 if code.startswith("bfe") else value for value in columns[1]]
        found = applied(code, *columns, kind=f"b{bits}")
        wanted = [expected(*values) & (1 << bits) - 1 for values in zip(*columns, strict=True)]
        assert found == wanted, (code, next(v for v in zip(*columns, found, wanted, strict=True) if v[-2] != v[-1]))


# -- floats ------------------------------------------------------------------------------------------------------------


def _exact(value, digits, mode, least=-149):
    """A fraction rounded to so many binary digits."""
    if value == 0:
        return Fraction(0)
    exponent = math.floor(math.log2(abs(value))) if abs(value) > 2**-1000 else -1000
    while Fraction(2) ** exponent > abs(value):
        exponent -= 1
    while Fraction(2) ** (exponent + 1) <= abs(value):
        exponent += 1
    unit = Fraction(2) ** max(exponent - digits + 1, least)
    steps = value / unit
    towards = {"rn": round, "rz": math.trunc, "rm": math.floor, "rp": math.ceil}[mode]
    return towards(steps) * unit


def _bits(value):
    return struct.unpack("I", struct.pack("f", float(value)))[0]


FLOATS = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "div": lambda x, y: x / y,
    "fma": lambda x, y: x * y + x,
}


@pytest.mark.parametrize(("kind", "digits", "least"), [("f32", 24, -149), ("f64", 53, -1074)])
def test_floats_are_rounded_once_in_every_direction(kind, digits, least):
    """Sums, products, quotients, fused multiply-adds; of numbers that are far apart, too."""
    generator = np.random.default_rng(5)
    size = {"f32": np.float32, "f64": np.float64}[kind]
    x, y = ((generator.standard_normal(60) * 2.0 ** generator.integers(-30, 30, 60)).astype(size) for _ in range(2))
    y[:12] = -x[:12] * (1 + np.arange(12) * np.finfo(size).eps).astype(size)  # sums that almost vanish
    bits = np.dtype(f"u{x.itemsize}")
    for name, exact in FLOATS.items():
        for mode in ("rn", "rz", "rm", "rp"):
            third = ", %x" if name == "fma" else ""
            code = f"{name}.{mode}.{kind} %o, %x, %y{third};"
            found = np.array(
                applied(code, x.view(bits).tolist(), y.view(bits).tolist(), kind=f"b{8 * x.itemsize}"), bits
            )
            for a, b, c in zip(x, y, found.view(size), strict=True):
                wanted = _exact(exact(Fraction(float(a)), Fraction(float(b))), digits, mode, least)
                assert float(c) == float(wanted), (code, a, b, c, float(wanted))


HALVES = {"f16": (11, -24, 65504), "bf16": (8, -133, float(np.array(0x7F7F0000, np.uint32).view(np.float32)))}


@pytest.mark.parametrize("kind", HALVES)
def test_half_floats(kind):
    """Conversions round once in each direction, large numbers become infinite; pairs add, multiply and compare."""
    digits, least, largest = HALVES[kind]
    generator = np.random.default_rng(6)
    x = (generator.standard_normal(60) * 2.0 ** generator.integers(-20, 14, 60)).astype(np.float32)
    x[:3] = 0, 1e-7, 3e38
    bits = x.view(np.uint32).tolist()
    back = f"cvt.f32.{kind} %f1, %h1; mov.b32 %o, %f1;"
    for mode in ("rn", "rz"):
        found = np.array(applied(f"mov.b32 %f1, %x; cvt.{mode}.{kind}.f32 %h1, %f1; {back}", bits), np.uint32)
        for value, got in zip(x, found.view(np.float32), strict=True):
            wanted = float(_exact(Fraction(float(value)), digits, mode, least))
            if abs(wanted) > largest:
                wanted = math.copysign(math.inf if mode == "rn" else largest, wanted)
            assert got == wanted, (mode, value, got, wanted)
    pair = f"mov.b32 %f1, %x; mov.b32 %f2, %y; cvt.rn.{kind}x2.f32 %o, %f1, %f2;"
    y = np.roll(x, 1)
    both = applied(pair, bits, y.view(np.uint32).tolist())
    product = applied(f"{pair} mul.rn.{kind}x2 %o, %o, %o;", bits, y.view(np.uint32).tolist())
    for packed, squared in zip(both, product, strict=True):
        for half in (0, 16):
            raw = [packed >> half & 0xFFFF, squared >> half & 0xFFFF]
            a, b = (
                np.array(raw, np.uint16).view(np.float16).astype(np.float64)
                if kind == "f16"
                else (np.array(raw, np.uint32) << 16).view(np.float32).astype(np.float64)
            )
            if math.isfinite(a) and a**2 <= largest:
                assert b == float(_exact(Fraction(a) ** 2, digits, "rn", least)), (a, b)


def test_floats_of_eight_bits():
    """e4m3 and e5m2: each of the finite values comes back, halfway goes to even, beyond the largest it saturates."""
    for kind, top in (("e4m3", 448), ("e5m2", 57344)):
        values = np.array([0.0, 1.0, -1.5, 1.0625, 1.1875, top, 1e6, -1e6, 2**-9, 0.3], np.float32)
        code = (
            f"mov.b32 %f1, %x; cvt.rn.satfinite.{kind}x2.f32 %h1, %f1, %f1; cvt.rn.f16x2.{kind}x2 %r1, %h1;"
            "mov.b32 {%h2, %h3}, %r1; cvt.f32.f16 %f2, %h3; mov.b32 %o, %f2;"
        )
        found = np.array(applied(code, values.view(np.uint32).tolist()), np.uint32).view(np.float32)
        digits, least = (4, -9) if kind == "e4m3" else (3, -16)
        wanted = [float(_exact(Fraction(float(v)), digits, "rn", least)) for v in values]
        np.testing.assert_array_equal(found, np.clip(wanted, -top, top))


def test_special_functions():
    """Near enough to NumPy's; NaN and infinity as the manual has them."""
    x = np.array([0.5, 2.0, 3.75, -1.0, 0.0, np.inf, np.nan], np.float32)
    with np.errstate(all="ignore"):
        for name, expected in (
            ("ex2", np.exp2(x)),
            ("lg2", np.log2(x)),
            ("sin", np.sin(x)),
            ("cos", np.cos(x)),
            ("rsqrt", 1 / np.sqrt(x)),
            ("tanh", np.tanh(x)),
        ):
            code = f"mov.b32 %f1, %x; {name}.approx.f32 %f2, %f1; mov.b32 %o, %f2;"
            found = np.array(applied(code, x.view(np.uint32).tolist()), np.uint32).view(np.float32)
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_float_to_integer_saturates():
    """What does not fit becomes the nearest number that does; NaN is zero."""
    x = np.array([1.5, 2.5, -0.7, 3e9, -3e9, np.nan, np.inf, 1e10], np.float32)
    found = applied("mov.b32 %f1, %x; cvt.rni.s32.f32 %o, %f1;", x.view(np.uint32).tolist())
    low, high = 2**31, 2**31 - 1
    assert found == [2, 2, M32, high, low, 0, high, high]
    found = applied("mov.b32 %f1, %x; cvt.rzi.u32.f32 %o, %f1;", x.view(np.uint32).tolist())
    assert found == [1, 2, 0, 3 * 10**9, 0, 0, M32, M32]


# -- threads together --------------------------------------------------------------------------------------------------


def test_atomics():
    """Each thread gets a ticket of its own; a lock lets one thread in at a time; results are those of a loop."""
    counter, tickets = np.zeros(4, np.uint32), np.zeros(1024, np.uint32)
    launch("atom.global.add.u32 %r1, [%rd0], 1; st.global.u32 [%a1], %r1;", counter, tickets, threads=1024)
    assert sorted(tickets.tolist()) == list(range(1024))
    launch("atom.global.inc.u32 %r1, [%rd0+4], 6; st.global.u32 [%a1], %r1;", counter, tickets, threads=64)
    assert counter[1] == 64 % 7
    assert np.bincount(tickets[:64]).tolist() == [10] + [9] * 6
    lock = """
    TRY: atom.relaxed.gpu.global.cas.b32 %r1, [%rd0], 0, 1; setp.ne.u32 %p1, %r1, 0; @%p1 bra TRY;
    fence.acq_rel.gpu; ld.volatile.global.u32 %r2, [%rd0+4]; add.s32 %r2, %r2, %r0;
    st.volatile.global.u32 [%rd0+4], %r2;
    fence.acq_rel.gpu; atom.global.exch.b32 %r1, [%rd0], 0;
    """
    memory = np.zeros(2, np.uint32)
    launch(lock, memory, threads=96, blocks=3, limit=30)
    assert memory.tolist() == [0, 3 * sum(range(96))]
    shared = """
    .shared .align 8 .b8 cells[16];
    setp.ne.u32 %p1, %r0, 0; @%p1 bra GO; mov.u32 %r1, 0; st.shared.u32 [cells], %r1; st.shared.u32 [cells+4], %r1;
    st.shared.u32 [cells+8], %r1;
    GO: bar.sync 0;
    cvt.rn.f32.u32 %f1, %r0; red.shared.add.f32 [cells], %f1; atom.shared.max.s32 %r9, [cells+4], %r0;
    red.relaxed.cta.shared.or.b32 [cells+8], %r0;
    bar.sync 0; ld.shared.f32 %f2, [cells]; ld.shared.u32 %r2, [cells+4]; ld.shared.u32 %r3, [cells+8];
    cvt.rzi.u32.f32 %r4, %f2; add.s32 %r4, %r4, %r2; add.s32 %r4, %r4, %r3; st.global.u32 [%a0], %r4;
    """
    out = np.zeros(64, np.uint32)
    launch(shared, out)
    assert set(out.tolist()) == {sum(range(64)) + 63 + 63}


def test_votes_matches_and_shuffles():
    """As loops over the lanes of a warp compute them; with masks of half a warp, in branches."""
    values = np.random.default_rng(2).integers(0, 5, 64).astype(np.uint32)
    out = [np.zeros(64, np.uint32) for _ in range(3)]
    code = """
    ld.global.u32 %r1, [%a0]; setp.gt.u32 %p1, %r1, 2;
    vote.sync.ballot.b32 %r2, %p1, -1; match.any.sync.b32 %r3, %r1, -1;
    st.global.u32 [%a1], %r2; st.global.u32 [%a2], %r3;
    and.b32 %r4, %r0, 16; setp.ne.u32 %p2, %r4, 0; mov.u32 %r7, 0;
    @%p2 bra HIGH;
    shfl.sync.down.b32 %r5|%p3, %r1, 3, 0x181f, 0x0000ffff; redux.sync.add.u32 %r6, %r1, 0x0000ffff;
    bra.uni END;
    HIGH: shfl.sync.up.b32 %r5|%p3, %r1, 3, 0x1800, 0xffff0000; vote.sync.any.pred %p4, %p1, 0xffff0000;
    selp.u32 %r6, 100, 200, %p4;
    END: selp.u32 %r8, 1000, 0, %p3; add.s32 %r5, %r5, %r8; mad.lo.s32 %r5, %r6, 10000, %r5; st.global.u32 [%a3], %r5;
    """
    launch(code, values, *out)
    for lane in range(64):
        warp = values[lane // 32 * 32 :][:32]
        assert out[0][lane] == sum(1 << i for i in range(32) if warp[i] > 2)
        assert out[1][lane] == sum(1 << i for i in range(32) if warp[i] == values[lane])
        at, half = lane % 32, lane % 32 // 16
        partner = at - 3 if half else at + 3
        inside = partner // 8 == at // 8  # 0x18: segments of eight lanes
        found = warp[partner if inside else at] + 1000 * inside
        found += 10000 * (warp[:16].sum() if not half else (100 if (warp[16:] > 2).any() else 200))
        assert out[2][lane] == found, lane


def test_named_barriers():
    """A warp that produces arrives without waiting; the one that consumes waits for both warps, not for the third."""
    code = """
    .shared .align 4 .b8 cells[128];
    shr.u32 %r1, %r0, 5; and.b32 %r2, %r0, 31; shl.b32 %r3, %r2, 2; mov.u32 %r4, cells; add.s32 %r4, %r4, %r3;
    setp.eq.u32 %p1, %r1, 1; @%p1 bra CONSUME; setp.eq.u32 %p2, %r1, 2; @%p2 bra END;
    mul.lo.u32 %r5, %r2, 7; st.shared.u32 [%r4], %r5; bar.arrive 3, 64; bra.uni END;
    CONSUME: bar.sync 3, 64; xor.b32 %r6, %r3, 124; mov.u32 %r4, cells; add.s32 %r4, %r4, %r6;
    ld.shared.u32 %r5, [%r4]; st.global.u32 [%a0], %r5;
    END:
    """
    out = np.zeros(96, np.uint32)
    launch(code, out, threads=96)
    assert out[32:64].tolist() == [7 * (31 - lane) for lane in range(32)]
    with pytest.raises(PtxError, match=r"race in shared memory: thread \d+ reads what thread \d+ wrote"):
        launch(code.replace("bar.sync 3, 64;", "").replace("bar.arrive 3, 64;", ""), out, threads=96)


MBARRIER = """
.shared .align 128 .b8 tile[512]; .shared .align 8 .b8 full[8];
setp.ne.u32 %p1, %r0, 0; @%p1 bra READY;
mov.u32 %r1, full; mbarrier.init.shared::cta.b64 [%r1], 1; fence.proxy.async;
READY: bar.sync 0; @%p1 bra WAIT;
mbarrier.arrive.expect_tx.shared::cta.b64 _, [full], 256;
mov.u32 %r2, tile;
cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r2], [%rd0], 256, [full];
WAIT: mbarrier.try_wait.parity.shared::cta.b64 %p2, [full], 0; @!%p2 bra WAIT;
shl.b32 %r3, %r0, 2; mov.u32 %r4, tile; add.s32 %r4, %r4, %r3; ld.shared.u32 %r5, [%r4]; st.global.u32 [%a1], %r5;
"""


def test_bulk_copies_arrive_at_an_mbarrier():
    """Not before a thread waits for them: without the wait, nobody has written what is read."""
    data, out = np.arange(64, dtype=np.uint32) * 3, np.zeros(64, np.uint32)
    launch(MBARRIER, data, out, limit=20)
    np.testing.assert_array_equal(out, data)
    with pytest.raises(PtxError, match="that nobody has written"):
        launch(
            MBARRIER.replace("@!%p2 bra WAIT;", "").replace(
                "mbarrier.try_wait.parity.shared::cta.b64 %p2, [full], 0;", ""
            ),
            data,
            out,
        )
    with pytest.raises(PtxError, match=r"ended after 1 s; its threads stand at mbarrier\.try_wait"):
        launch(MBARRIER.replace("_, [full], 256", "_, [full], 512"), data, out, limit=1)


RING = """
.shared .align 16 .b8 tile[1024];
mov.u32 %r9, tile; shl.b32 %r1, %r0, 4; add.s32 %r2, %r9, %r1;
mul.wide.u32 %rd8, %r0, 16; add.s64 %rd9, %rd0, %rd8;
cp.async.cg.shared.global [%r2], [%rd9], 16; cp.async.commit_group; cp.async.commit_group;
cp.async.wait_group 1; bar.sync 0;
xor.b32 %r3, %r1, 1008; add.s32 %r4, %r9, %r3; ld.shared.v4.u32 {%r5, %r6, %r7, %r8}, [%r4];
mul.wide.u32 %rd8, %r0, 16; add.s64 %rd9, %rd1, %rd8; st.global.v4.u32 [%rd9], {%r5, %r6, %r7, %r8};
"""


def test_asynchronous_copies_appear_at_the_wait():
    """A missing wait reads what was there before; a missing barrier is a race."""
    data, out = np.arange(256, dtype=np.uint32), np.zeros(256, np.uint32)
    launch(RING, data, out)
    np.testing.assert_array_equal(out.reshape(64, 4), data.reshape(64, 4)[::-1])
    for planted in ("cp.async.wait_group 1;", "cp.async.commit_group; cp.async.commit_group;"):
        with pytest.raises(PtxError, match="that nobody has written"):
            launch(RING.replace(planted, "cp.async.commit_group;" * ("commit" in planted)), data, out)
        launch(RING.replace(planted, "cp.async.commit_group;" * ("commit" in planted)), data, out, check=False)
        assert (out == M32).all()  # shared memory begins so
    with pytest.raises(PtxError, match=r"race in shared memory: thread \d+ reads what thread \d+ wrote"):
        launch(RING.replace("bar.sync 0;", ""), data, out)


CALLS = """
.extern .func (.param .b32 r) vprintf (.param .b64 a, .param .b64 b);
.global .align 1 .b8 form[16] = {37, 100, 33, 37, 46, 49, 102, 10};
.func (.param .b32 back) factorial (.param .b32 n) {
.reg .b32 %r<9>; .reg .pred %p<3>;
ld.param.u32 %r1, [n]; setp.gt.u32 %p1, %r1, 1; @%p1 bra MORE; mov.u32 %r2, 1; bra.uni END;
MORE: sub.s32 %r3, %r1, 1;
{ .param .b32 p0; .param .b32 q0; st.param.b32 [p0], %r3; call.uni (q0), factorial, (p0); ld.param.b32 %r4, [q0]; }
mul.lo.s32 %r2, %r1, %r4;
END: st.param.b32 [back], %r2; ret; }
"""


def test_calls_recursion_and_printing(capsys):
    """Each thread at a depth of its own; printing formats what lies in local memory."""
    out = np.zeros(64, np.uint32)
    code = """
    .local .align 8 .b8 room[16]; .reg .b64 %SP;
    and.b32 %r1, %r0, 7; { .param .b32 p; .param .b32 q; st.param.b32 [p], %r1; call.uni (q), factorial, (p);
    ld.param.b32 %r2, [q]; } st.global.u32 [%a0], %r2;
    setp.ne.u32 %p1, %r0, 5; @%p1 bra DONE;
    mov.u64 %rd5, room; cvta.local.u64 %SP, %rd5; st.local.u32 [%rd5], %r2; mov.f64 %d1, 0d3FF8000000000000;
    st.f64 [%SP+8], %d1; mov.u64 %rd6, form; cvta.global.u64 %rd6, %rd6;
    { .param .b64 a; .param .b64 b; .param .b32 c; st.param.b64 [a], %rd6; st.param.b64 [b], %SP;
    call.uni (c), vprintf, (a, b); }
    DONE:
    """
    launch(code, out, more=CALLS)
    assert out.tolist() == [math.factorial(lane & 7) for lane in range(64)]
    assert capsys.readouterr().out == "120!1.5\n"


def test_branches_by_number():
    """`brx.idx` sends each thread its way."""
    out = np.zeros(64, np.uint32)
    code = """
    ts: .branchtargets A, B, C;
    rem.u32 %r1, %r0, 3; brx.idx %r1, ts;
    A: mov.u32 %r2, 10; bra.uni END;
    B: mov.u32 %r2, 20; bra.uni END;
    C: mov.u32 %r2, 30;
    END: st.global.u32 [%a0], %r2;
    """
    launch(code, out)
    assert out.tolist() == [10 * (1 + lane % 3) for lane in range(64)]


FAULTS = {
    "a race of two writes": (
        ".shared .align 4 .b8 s[4]; st.shared.u32 [s], %r0;",
        "race in shared memory: thread",
    ),
    "a race of a read and a write": (
        ".shared .align 4 .b8 s[256]; shl.b32 %r1, %r0, 2; mov.u32 %r2, s; add.s32 %r2, %r2, %r1;"
        "st.shared.u32 [%r2], %r0; ld.shared.u32 %r3, [s];",
        "reads what thread 0 wrote",
    ),
    "shared memory that nobody wrote": (
        ".shared .align 4 .b8 s[256]; ld.shared.u32 %r3, [s];",
        "64 of 64 threads read shared memory that nobody has written",
    ),
    "behind local memory": (
        ".local .align 4 .b8 s[16]; mov.u64 %rd5, s; st.local.u32 [%rd5+16], %r0;",
        "outside of local memory, of 16 bytes",
    ),
    "a trap": ("setp.eq.u32 %p1, %r0, 7; @%p1 trap;", "trap: reached by thread (7, 0, 0) of block (0, 0, 0)"),
    "a barrier with too many": ("bar.sync 0, 96;", "bar.sync 0, 96"),
    "an unknown matrix shape": (
        "mma.sync.aligned.m16n8k16.row.col.f32.b1.b1.f32 {%f1}, {%r1}, {%r2}, {%f1};",
        "not known here",
    ),
    "a loop without end": ("L: bra.uni L;", "ended after 0.3 s; its threads stand at bra.uni L"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named(fault):
    """With the instruction, its line, and the thread where there is one."""
    body, text = FAULTS[fault]
    with pytest.raises(PtxError) as raised:
        launch(body, np.zeros(64, np.uint32), limit=0.3)
    assert text in str(raised.value)
    assert "PTX line" in str(raised.value)


@pytest.mark.parametrize("sizes", [(1, 1025), (1, (32, 33)), (0, 32), (1, (32, 0))])
def test_launches_that_a_gpu_refuses(sizes):
    """Blocks that are too large, and nothing at all."""
    with pytest.raises(PtxError, match="no size may be below 1, and a block has up to 1024 threads"):
        ptx.run_text(f"{HEAD}\n.visible .entry kernel() {{ ret; }}", *sizes, [])
