"""Tensor cores as the interpreter runs them: layouts are the manual's, element by element; products are NumPy's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gpuconv.lab import ptx
from gpuconv.lab.ptx import PtxError

HERE = Path(__file__).parent
HEAD = ".version 8.5\n.target sm_90a\n.address_size 64\n"


def bfloat(values):
    """float32 values rounded to bfloat16: their bits."""
    raw = np.asarray(values, np.float32).view(np.uint32).astype(np.uint64)
    return (raw + 0x7FFF + (raw >> 16 & 1) >> 16).astype(np.uint16)


def widened(bits):
    """The other way round."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def matrix(rows, columns, kind, seed):
    """A random matrix: its elements as they are stored, and in float64 what they mean."""
    generator = np.random.default_rng(seed)
    if kind in ("s8", "u8"):
        low, high = (-128, 128) if kind == "s8" else (0, 256)
        whole = generator.integers(low, high, (rows, columns))
        return whole.astype("i1" if kind == "s8" else "u1"), whole.astype(float)
    values = generator.standard_normal((rows, columns))
    if kind == "bf16":
        bits = bfloat(values)
        return bits, widened(bits).astype(float)
    if kind == "tf32":
        raw = values.astype(np.float32).view(np.uint32)
        return raw, (raw & 0xFFFFE000).view(np.float32).astype(float)
    if kind == "e4m3":
        bits = generator.integers(0, 0x60, (rows, columns)).astype(np.uint8)
        exponent, mantissa = bits >> 3, bits & 7
        return bits, np.where(exponent, 2.0 ** (exponent - 7.0) * (1 + mantissa / 8), 2.0**-6 * mantissa / 8)
    stored = values.astype(kind.replace("f", "float"))
    return stored, stored.astype(float)


# The manual's tables, for lane (g, t) and element number i of the fragment: row and column.
FRAGMENTS = {
    "m16n8k16 f16": (
        lambda g, t, i: (g + 8 * (i in (2, 3, 6, 7)), 2 * t + (i & 1) + 8 * (i >= 4)),
        lambda g, t, i: (2 * t + (i & 1) + 8 * (i >= 2), g),
    ),
    "m16n8k8 f16": (lambda g, t, i: (g + 8 * (i >= 2), 2 * t + (i & 1)), lambda g, t, i: (2 * t + i, g)),
    "m16n8k8 tf32": (lambda g, t, i: (g + 8 * (i in (1, 3)), t + 4 * (i >= 2)), lambda g, t, i: (t + 4 * i, g)),
    "m16n8k4 tf32": (lambda g, t, i: (g + 8 * i, t), lambda g, t, i: (t, g)),
    "m16n8k16 s8": (lambda g, t, i: (g + 8 * (i >= 4), 4 * t + i % 4), lambda g, t, i: (4 * t + i, g)),
    "m16n8k32 s8": (
        lambda g, t, i: (g + 8 * (i // 4 % 2), 4 * t + i % 4 + 16 * (i >= 8)),
        lambda g, t, i: (4 * t + i % 4 + 16 * (i >= 4), g),
    ),
    "m8n8k4 f64": (lambda g, t, i: (g, t), lambda g, t, i: (t, g)),
}
CASES = [
    ("m16n8k16 f16", "f16", "f16", "f32"),
    ("m16n8k16 f16", "bf16", "bf16", "f32"),
    ("m16n8k16 f16", "f16", "f16", "f16"),
    ("m16n8k8 f16", "bf16", "bf16", "f32"),
    ("m16n8k8 tf32", "tf32", "tf32", "f32"),
    ("m16n8k4 tf32", "tf32", "tf32", "f32"),
    ("m16n8k16 s8", "s8", "u8", "s32"),
    ("m16n8k32 s8", "s8", "s8", "s32"),
    ("m16n8k32 s8", "e4m3", "e4m3", "f32"),
    ("m8n8k4 f64", "f64", "f64", "f64"),
]


def fragments(stored, place, count):
    """What each lane's registers hold, 32 bits after 32 bits."""
    lanes = [[stored[place(lane // 4, lane % 4, i)] for i in range(count)] for lane in range(32)]
    return np.ascontiguousarray(np.array(lanes, stored.dtype)).view(np.uint32).reshape(32, -1)


@pytest.mark.parametrize(("layout", "left", "right", "total"), CASES)
def test_mma(layout, left, right, total):
    """D = A B + C; two warps have matrices of their own."""
    shape = layout.split()[0]
    m, n, k = (int(part) for part in shape.replace("m", "").replace("n", " ").replace("k", " ").split())
    place_a, place_b = FRAGMENTS[layout]
    (a, a64), (b, b64) = matrix(m, k, left, 1), matrix(k, n, right, 2)
    kind_c = {"f32": "float32", "f16": "float16", "f64": "float64", "s32": "int32"}[total]
    c = (np.random.default_rng(3).standard_normal((m, n)) * 4).astype(kind_c)
    ins = [
        fragments(a, place_a, m * k // 32),
        fragments(b, place_b, k * n // 32),
        fragments(c, lambda g, t, i: (g + 8 * (i // 2), 2 * t + i % 2), m * n // 32),
    ]
    counts = [one.shape[1] for one in ins]
    wide = total == "f64"
    registers, code, names = "", "", []
    for which, count in enumerate(counts):
        names.append([f"%v{which}_{i}" for i in range(count // (2 if wide else 1))])
        kind = {"f32": "f32", "f64": "f64"}.get(total, "b32") if which == 2 or wide else "b32"
        registers += "".join(f".reg .{kind} {name};" for name in names[-1])
        step = 8 if wide else 4
        code += f"mul.wide.u32 %rd4, %r0, {4 * count}; add.s64 %rd4, %rd4, %rd{which};"
        code += "".join(f"ld.global.{kind} {name}, [%rd4+{step * i}];" for i, name in enumerate(names[-1]))
    braces = ["{" + ",".join(one) + "}" for one in names]
    operands = f"{braces[2]}, {braces[0]}, {braces[1]}, {braces[2]}"
    code += f"mma.sync.aligned.{shape}.row.col.{total}.{left}.{right}.{total} {operands};"
    code += f"mul.wide.u32 %rd4, %r0, {4 * counts[2]}; add.s64 %rd4, %rd4, %rd3;"
    code += "".join(f"st.global.{kind} [%rd4+{step * i}], {name};" for i, name in enumerate(names[2]))
    out = np.zeros_like(np.concatenate([ins[2]] * 2))
    doubled = [np.ascontiguousarray(np.concatenate([one, one ^ 0])) for one in ins]
    doubled[2][32:] = 0  # the second warp adds to zero
    ptx.run_text(module(registers, code), 1, 64, [*doubled, out])
    found = out.view(kind_c).reshape(64, -1)
    for warp, addend in enumerate((c.astype(float), np.zeros((m, n)))):
        wanted = a64 @ b64 + addend
        for lane in range(32):
            for i in range(m * n // 32):
                at = lane // 4 + 8 * (i // 2), 2 * (lane % 4) + i % 2
                error = abs(float(found[32 * warp + lane, i]) - wanted[at])
                scale = np.abs(a64)[at[0]] @ np.abs(b64)[:, at[1]] + abs(addend[at])
                assert error <= scale * {"f32": 2**-22, "f16": 2**-10, "f64": 2**-50, "s32": 0}[total], (warp, at)


def module(registers, code, threads=""):
    """A kernel with four arrays, %rd0 to %rd3; %r0 is the thread."""
    loads = "".join(f"ld.param.u64 %rd{n}, [p{n}];" for n in range(4))
    return f"""{HEAD}
.visible .entry kernel(.param .u64 p0, .param .u64 p1, .param .u64 p2, .param .u64 p3) {threads} {{
.reg .b64 %rd<9>; .reg .b32 %r<20>; .reg .pred %p<4>; {registers}
mov.u32 %r0, %tid.x; {loads}
{code}
ret; }}"""


@pytest.mark.parametrize(
    ("shape", "orders", "left", "right", "total", "counts"),
    [
        ((16, 16, 16), ("row", "col", "row"), "f16", "f16", "f32", (8, 8, 8)),
        ((16, 16, 16), ("col", "row", "col"), "f16", "f16", "f16", (8, 8, 4)),
        ((32, 8, 16), ("row", "row", "row"), "bf16", "bf16", "f32", (8, 2, 8)),
        ((16, 16, 8), ("row", "col", "row"), "tf32", "tf32", "f32", (4, 4, 8)),
        ((8, 32, 16), ("row", "col", "col"), "u8", "u8", "s32", (1, 4, 8)),
        ((8, 8, 4), ("row", "col", "row"), "f64", "f64", "f64", (1, 1, 2)),
    ],
    ids=lambda value: "" if isinstance(value, tuple) else value,
)
def test_wmma(shape, orders, left, right, total, counts):
    """D = A B + C of matrices in every order, with room between their lines; D passes through shared memory."""
    m, n, k = shape
    name = f"m{m}n{n}k{k}"
    (a, a64), (b, b64) = matrix(m, k, left, 1), matrix(k, n, right, 2)
    kind_c = {"f32": "float32", "f16": "float16", "f64": "float64", "s32": "int32"}[total]
    c = (np.random.default_rng(3).standard_normal((m, n)) * 4).astype(kind_c)
    room = 16

    def lines(stored, order):
        stored = stored if order == "row" else stored.T
        wide = np.zeros((len(stored), stored.shape[1] + room), stored.dtype)
        wide[:, : stored.shape[1]] = stored
        return wide

    ins = [lines(one, order) for one, order in zip((a, b, c), orders, strict=True)]
    wide, kind = total == "f64", {"f32": "f32", "f64": "f64", "s32": "b32"}.get(total, "b32")
    kinds = ["f64" if wide else "b32"] * 2 + [kind]
    names = [[f"%v{which}_{i}" for i in range(count)] for which, count in enumerate(counts)]
    registers = (
        "".join(f".reg .{kind} {one};" for kind, group in zip(kinds, names, strict=True) for one in group)
        + f".shared .align 32 .b8 tile[{2 * ins[2].nbytes}];"
    )
    braces = ["{" + ",".join(one) + "}" for one in names]
    code = ""
    for which, (one, order, type_) in enumerate(zip(ins, orders, (left, right, total), strict=True)):
        place = f"[%rd{which}], {one.shape[1]}"
        code += f"wmma.load.{'abc'[which]}.sync.aligned.{order}.{name}.global.{type_} {braces[which]}, {place};"
    types = f"{total}.{total}" if left == "f16" else f"{total}.{left}.{right}.{total}"
    operands = ", ".join(braces[which] for which in (2, 0, 1, 2))
    code += f"wmma.mma.sync.aligned.{orders[0]}.{orders[1]}.{name}.{types} {operands};"
    code += f"mov.u32 %r1, tile; wmma.store.d.sync.aligned.{orders[2]}.{name}.shared.{total} [%r1], {braces[2]};"
    code += f"bar.warp.sync -1; wmma.load.c.sync.aligned.{orders[2]}.{name}.shared.{total} {braces[2]}, [%r1];"
    code += f"wmma.store.d.sync.aligned.{orders[2]}.{name}.{total} [%rd3], {braces[2]}, {ins[2].shape[1]};"
    out = np.zeros_like(ins[2])
    ptx.run_text(module(registers, code), 1, 32, [*ins, out])
    found = out[:, : out.shape[1] - room]
    found = (found if orders[2] == "row" else found.T).astype(float)
    scale = np.abs(a64) @ np.abs(b64) + np.abs(c.astype(float))
    assert (
        np.abs(found - a64 @ b64 - c) <= scale * {"f32": 2**-22, "f16": 2**-10, "f64": 2**-50, "s32": 0}[total]
    ).all()
    assert (out[:, out.shape[1] - room :] == 0).all()


def test_sums_are_cut_off_as_tensor_cores_do():
    """A term far below the largest vanishes; a sum that needs more bits than float32 has goes towards zero."""
    a, b, c = np.zeros((16, 8), np.uint16), np.zeros((8, 8), np.uint16), np.zeros((16, 8), np.float32)
    a[0, :3] = bfloat([1, -1, 2**-20])
    b[:3, 0] = bfloat([2**10, 2**10, 2**-10])  # 2**10 - 2**10 + 2**-30
    a[1, :2] = bfloat([1, 2**-12])
    b[:2, 1] = bfloat([1, 1.9375 * 2**-12])  # 1 + 2**-24 + ..., the nearest float32 is 1 + 2**-23
    a[2, :2], c[2, 1] = bfloat([0, 2**-12]), -1
    ins = [
        fragments(a, FRAGMENTS["m16n8k8 f16"][0], 4),
        fragments(b, FRAGMENTS["m16n8k8 f16"][1], 2),
        fragments(c, lambda g, t, i: (g + 8 * (i // 2), 2 * t + i % 2), 4),
    ]
    code = """
    mul.wide.u32 %rd4, %r0, 8; add.s64 %rd4, %rd4, %rd0; ld.global.v2.u32 {%r1, %r2}, [%rd4];
    mul.wide.u32 %rd4, %r0, 4; add.s64 %rd4, %rd4, %rd1; ld.global.u32 %r3, [%rd4];
    mul.wide.u32 %rd5, %r0, 16; add.s64 %rd4, %rd5, %rd2; ld.global.v4.f32 {%f1, %f2, %f3, %f4}, [%rd4];
    mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%f1,%f2,%f3,%f4}, {%r1,%r2}, {%r3}, {%f1,%f2,%f3,%f4};
    add.s64 %rd4, %rd5, %rd3; st.global.v4.f32 [%rd4], {%f1, %f2, %f3, %f4};
    """
    out = np.zeros((32, 4), np.float32)
    ptx.run_text(module(".reg .f32 %f<5>;", code), 1, 32, [*ins, out])
    assert out[0, 0] == 0  # row 0, column 0
    assert out[4, 1] == 1  # row 1, column 1
    assert -1 < out[8, 1] < 0  # row 2: cut off towards zero


def test_matrices_are_loaded_and_stored():
    """ldmatrix x4, plain and transposed, gives each lane the pairs that the manual says; stmatrix puts them back."""
    tile = np.arange(32 * 8, dtype=np.uint16)
    code = """
    .shared .align 16 .b8 tile[512];
    mul.wide.u32 %rd4, %r0, 16; add.s64 %rd5, %rd0, %rd4; ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%rd5];
    mov.u32 %r5, tile; shl.b32 %r6, %r0, 4; add.s32 %r6, %r6, %r5; st.shared.v4.u32 [%r6], {%r1, %r2, %r3, %r4};
    bar.warp.sync -1;
    ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r1, %r2, %r3, %r4}, [%r6];
    add.s64 %rd5, %rd1, %rd4; st.global.v4.u32 [%rd5], {%r1, %r2, %r3, %r4};
    ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%r1, %r2, %r3, %r4}, [%r6];
    add.s64 %rd5, %rd2, %rd4; st.global.v4.u32 [%rd5], {%r1, %r2, %r3, %r4};
    bar.warp.sync -1;
    stmatrix.sync.aligned.m8n8.x4.shared.b16 [%r6], {%r1, %r2, %r3, %r4};
    bar.warp.sync -1;
    ld.shared.v4.u32 {%r1, %r2, %r3, %r4}, [%r6];
    add.s64 %rd5, %rd3, %rd4; st.global.v4.u32 [%rd5], {%r1, %r2, %r3, %r4};
    """
    plain, turned, back = (np.zeros((32, 8), np.uint16) for _ in range(3))
    ptx.run_text(module("", code), 1, 32, [tile, plain, turned, back])
    four = tile.reshape(4, 8, 8)
    for lane in range(32):
        row, column = lane // 4, 2 * (lane % 4)
        for number in range(4):
            assert plain[lane, 2 * number : 2 * number + 2].tolist() == four[number, row, column : column + 2].tolist()
            assert turned[lane, 2 * number : 2 * number + 2].tolist() == four[number, column : column + 2, row].tolist()
    np.testing.assert_array_equal(back.reshape(4, 8, 8), four.swapaxes(1, 2))
    with pytest.raises(PtxError, match="race in shared memory"):
        ptx.run_text(module("", code.replace("bar.warp.sync -1;", "")), 1, 32, [tile, plain, turned, back])


# -- wgmma -------------------------------------------------------------------------------------------------------------


def placed(stored, width, along_k):
    """The bytes of a matrix [rows, k] in shared memory, with leading and stride offsets: atoms of 8 lines of ``width``.

    A line is a row's elements along k, or (not ``along_k``) a column's along the rows. Pieces of 16 bytes of a line are
    exchanged as the swizzle of that width has it.
    """
    lines = stored if along_k else stored.T
    raw = np.ascontiguousarray(lines).view(np.uint8)
    count, length = raw.shape
    across = length // width  # atoms along a line
    memory = np.zeros(raw.size, np.uint8)
    pieces = width // 16
    for line in range(count):
        for piece in range(length // 16):
            atom, inside = piece // pieces, piece % pieces
            inside ^= line % 8 * width // 128 % pieces
            # The atoms of eight lines lie one behind the other, then those of the next eight.
            start = (line // 8 * across + atom) * 8 * width + line % 8 * width + 16 * inside
            memory[start : start + 16] = raw[line, 16 * piece : 16 * piece + 16]
    return memory, 8 * width, 8 * width * across


WGMMA = [
    (width, along_a, along_b)
    for width in (16, 32, 64, 128)
    for along_a, along_b in ((True, True), (False, True), (True, False))
]


def descriptor(width, along_k, across, down):
    """Without its start: the leading and the stride offset, the swizzle."""
    swizzle = {16: 0, 128: 1, 64: 2, 32: 3}[width]
    leading, stride = (across, down) if along_k or width > 16 else (down, across)
    if along_k and width > 16:
        leading = 16  # is not looked at
    return (leading >> 4) << 16 | (stride >> 4) << 32 | swizzle << 62


PRODUCT = """
.shared .align 1024 .b8 a[8192]; .shared .align 1024 .b8 b[16384];
shl.b32 %r1, %r0, 4; mov.u32 %r2, a; mov.u32 %r3, b; mov.u32 %r4, 0;
COPY: add.s32 %r5, %r1, %r4; cvt.u64.u32 %rd4, %r5; setp.ge.u32 %p1, %r5, {size_a}; @%p1 bra SECOND;
add.s64 %rd5, %rd0, %rd4; ld.global.v4.u32 {{%r6, %r7, %r8, %r9}}, [%rd5]; add.s32 %r10, %r2, %r5;
st.shared.v4.u32 [%r10], {{%r6, %r7, %r8, %r9}};
SECOND: setp.ge.u32 %p1, %r5, {size_b}; @%p1 bra NEXT;
add.s64 %rd5, %rd1, %rd4; ld.global.v4.u32 {{%r6, %r7, %r8, %r9}}, [%rd5]; add.s32 %r10, %r3, %r5;
st.shared.v4.u32 [%r10], {{%r6, %r7, %r8, %r9}};
NEXT: add.s32 %r4, %r4, 2048; setp.lt.u32 %p1, %r4, 16384; @%p1 bra COPY;
fence.proxy.async.shared::cta;
bar.sync 0;
cvt.u64.u32 %rd6, %r2; shr.u64 %rd6, %rd6, 4; or.b64 %rd6, %rd6, {descriptor_a};
cvt.u64.u32 %rd7, %r3; shr.u64 %rd7, %rd7, 4; or.b64 %rd7, %rd7, {descriptor_b};
setp.ne.b32 %p2, 1, 1;
wgmma.fence.sync.aligned;
wgmma.mma_async.sync.aligned.m64n{n}k16.f32.bf16.bf16 {{{sums}}}, %rd6, %rd7, %p2, 1, 1, {turn_a}, {turn_b};
add.s64 %rd6, %rd6, 0;
wgmma.commit_group.sync.aligned;
wgmma.wait_group.sync.aligned 0;
mul.wide.u32 %rd4, %r0, {row}; add.s64 %rd4, %rd4, %rd2;
{stores}
"""


def product(width, along_a, along_b, n=64, change=("", ""), **options):
    """A wgmma of random matrices: its error and what float64 gives."""
    (a, a64), (b, b64) = matrix(64, 16, "bf16", 1), matrix(n, 16, "bf16", 2)
    # A line has to be as long as the swizzle is wide: what is beyond 16 along k is not looked at.
    wide = max(16, width // 2)
    a_whole, b_whole = (np.zeros((rows, wide), np.uint16) for rows in (64, n))
    a_whole[:, :16], b_whole[:, :16] = a, b
    memory_a, across_a, down_a = placed(a_whole if along_a else a, width, along_a)
    memory_b, across_b, down_b = placed(b_whole if along_b else b, width, along_b)
    out = np.zeros((128, n // 2), np.float32)
    code = PRODUCT.format(
        size_a=memory_a.size,
        size_b=memory_b.size,
        descriptor_a=descriptor(width, along_a, across_a, down_a),
        descriptor_b=descriptor(width, along_b, across_b, down_b),
        n=n,
        sums=",".join(f"%f{i}" for i in range(n // 2)),
        turn_a=int(not along_a),
        turn_b=int(not along_b),
        row=2 * n,
        stores="".join(f"st.global.f32 [%rd4+{4 * i}], %f{i};" for i in range(n // 2)),
    )
    assert change[0] in code
    text = module(f".reg .f32 %f<{n // 2}>;", code.replace(*change) if change[0] else code)
    ptx.run_text(text, 1, 128, [memory_a, memory_b, out, out], **options)
    found = np.zeros((64, n))
    for thread in range(128):
        warp, lane = divmod(thread, 32)
        for i in range(n // 2):  # the manual's layout of D
            found[16 * warp + lane // 4 + 8 * (i // 2 % 2), 8 * (i // 4) + 2 * (lane % 4) + i % 2] = out[thread, i]
    return found, a64 @ b64.T


@pytest.mark.parametrize(("width", "along_a", "along_b"), WGMMA)
def test_wgmma(width, along_a, along_b):
    """All swizzles, matrices that lie along k and across it."""
    found, wanted = product(width, along_a, along_b)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


PLANTED = {
    "no wait": ("wgmma.wait_group.sync.aligned 0;", "", "that no wgmma.wait_group has waited for"),
    "no commit": ("wgmma.commit_group.sync.aligned;", "", "that no wgmma.wait_group has waited for"),
    "no fence": ("fence.proxy.async.shared::cta;", "", "wrote, with no fence.proxy.async behind the store"),
    "no barrier": ("bar.sync 0;", "", "race in shared memory"),
    "a store before the wait": ("add.s64 %rd6, %rd6, 0;", "st.shared.u32 [a], 7;", "race in shared memory"),
    "three warps": ("wgmma.fence", "setp.ge.u32 %p3, %r0, 96; @%p3 exit; wgmma.fence", "all four warps of a warpgroup"),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_planted_faults_of_wgmma(fault):
    """A missing wait, commit, fence or barrier; a store into what is being read; a warp that is missing."""
    code, instead, words = PLANTED[fault]
    with pytest.raises(PtxError, match=words):
        product(128, True, True, change=(code, instead))
    if fault == "a store before the wait":
        with pytest.raises(PtxError, match=r"was changed before wgmma\.wait_group"):
            product(128, True, True, change=(code, instead), check=False)


# -- written in Numba --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_tensor_cores_of_a_kernel_in_numba():
    """Compiled for an H100: the errors of its products are those that the GPU had, or smaller."""
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "0"}
    command = [sys.executable, "-W", "error", str(HERE / "tensor_core_kernels.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    errors = json.loads(done.stdout)
    assert errors["bf16"] < 2.4e-3
    assert errors["tf32"] < 7.8e-4
    assert errors["3xtf32"] < 2e-6  # over 4,096 terms 2.9e-5, there as here
    assert errors["wgmma"] < 1e-7
