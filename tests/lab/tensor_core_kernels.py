"""Matrix products on tensor cores, written in Numba; prints the errors of what the interpreter makes of their PTX.

C[m, n] = A[m, k] B[n, k].T. A block of 128 threads has 64 x 64 elements of C, a warp 32 x 32. Slices of 64 bytes along
k come by cp.async in three stages, in an order without bank conflicts; ldmatrix takes them to registers.
"""

from __future__ import annotations

import json

import numpy as np
from llvmlite import ir
from numba import cuda, int32, types, uint32, uint64
from numba.cuda.extending import intrinsic

from gpuconv import lab

F32, I32, I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
ROWS, COLUMNS, STAGES = 2, 4, 3  # of a warp: pieces of 16 x 8


def assembly(text, result, kinds, constraints, numba_result, numba_kinds):
    """An intrinsic that is one piece of inline PTX; several results come as a tuple."""

    def impl(typingctx, *given):
        def codegen(context, builder, signature, args):
            flat = []
            for value, kind in zip(args, signature.args, strict=True):
                count = getattr(kind, "count", None)
                flat += [builder.extract_value(value, i) for i in range(count)] if count else [value]
            inline = ir.InlineAsm(ir.FunctionType(result, kinds), text, f"{constraints},~{{memory}}".lstrip(","), True)
            found = builder.call(inline, flat)
            if isinstance(result, ir.VoidType):
                return context.get_dummy_value()
            if not isinstance(result, ir.LiteralStructType):
                return found
            packed = ir.Constant(ir.ArrayType(result.elements[0], len(result.elements)), ir.Undefined)
            for i in range(len(result.elements)):
                packed = builder.insert_value(packed, builder.extract_value(found, i), i)
            return packed

        return numba_result(*numba_kinds), codegen

    names = ", ".join(f"a{i}" for i in range(len(numba_kinds)))
    scope = {"impl": impl}
    exec(
        f"def face(typingctx{', ' if names else ''}{names}): return impl(typingctx{', ' if names else ''}{names})",
        scope,
    )
    return intrinsic(scope["face"])


def command(text):
    return assembly(text, ir.VoidType(), [], "", types.void, [])


commit = command("cp.async.commit_group;")
wait_1, wait_0 = command("cp.async.wait_group 1;"), command("cp.async.wait_group 0;")
fence_proxy = command("fence.proxy.async.shared::cta;")
wg_fence, wg_commit = command("wgmma.fence.sync.aligned;"), command("wgmma.commit_group.sync.aligned;")
wg_wait = command("wgmma.wait_group.sync.aligned 0;")
copy_16 = assembly(
    "cp.async.cg.shared.global [$0], [$1], 16;",
    ir.VoidType(),
    [I32, I64],
    "r,l",
    types.void,
    [types.uint32, types.uint64],
)
FOUR = types.UniTuple(types.uint32, 4)
load_matrices = assembly(
    "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {$0,$1,$2,$3}, [$4];",
    ir.LiteralStructType([I32] * 4),
    [I32],
    "=r,=r,=r,=r,r",
    FOUR,
    [types.uint32],
)
SUMS = types.UniTuple(types.float32, 4)


def mma(shape, kind):
    """The product of 16 x 8 elements."""
    return assembly(
        f"mma.sync.aligned.{shape}.row.col.f32.{kind}.{kind}.f32 "
        "{$0,$1,$2,$3}, {$4,$5,$6,$7}, {$8,$9}, {$10,$11,$12,$13};",
        ir.LiteralStructType([F32] * 4),
        [I32] * 6 + [F32] * 4,
        "=f,=f,=f,=f,r,r,r,r,r,r,f,f,f,f",
        SUMS,
        [types.uint32] * 6 + [SUMS],
    )


@intrinsic
def shared_address(typingctx, array):
    """The address of shared memory as the instructions above take it."""

    def codegen(context, builder, signature, args):
        pointer = context.make_array(signature.args[0])(context, builder, value=args[0]).data
        shared = builder.addrspacecast(pointer, ir.PointerType(pointer.type.pointee, 3))
        return builder.trunc(builder.ptrtoint(shared, I64), I32)

    return types.uint32(array), codegen


@intrinsic
def global_address(typingctx, array, offset):
    """The address of an element."""

    def codegen(context, builder, signature, args):
        pointer = context.make_array(signature.args[0])(context, builder, value=args[0]).data
        return builder.ptrtoint(builder.gep(pointer, [args[1]]), I64)

    return types.uint64(array, types.int64), codegen


@intrinsic
def rest(typingctx, bits):
    """What is left of a float32 without its upper 19 bits: exact."""

    def codegen(context, builder, signature, args):
        upper = builder.and_(args[0], ir.Constant(I32, 0xFFFFE000))
        left = builder.fsub(builder.bitcast(args[0], F32), builder.bitcast(upper, F32))
        return builder.bitcast(left, I32)

    return types.uint32(types.uint32), codegen


def source(split):
    """The code of a kernel, unrolled."""
    lines = [
        "def kernel(a, b, c, n, k):",
        f"    tile = cuda.shared.array({STAGES * 2048}, int32, alignment=128)",
        "    base = shared_address(tile)",
        "    t = cuda.threadIdx.x; w = t >> 5; l = t & 31; wm = w & 1; wn = w >> 1",
        "    at_a = (cuda.blockIdx.y * 64 + (t >> 2)) * k + (t & 3) * 4",
        "    at_b = (cuda.blockIdx.x * 64 + (t >> 2)) * k + (t & 3) * 4",
        "    into = uint32((t >> 2) * 64 + ((t & 3) ^ (t >> 3 & 3)) * 16)",
        "    from_a = uint32((wm * 32 + (l & 15)) * 64 + ((l >> 4) ^ (l >> 1 & 3)) * 16)",
        "    from_b = uint32((wn * 32 + (l & 7) + (l >> 4) * 8) * 64 + ((l >> 3 & 1) ^ (l >> 1 & 3)) * 16)",
    ]
    zero = "(float32(0), float32(0), float32(0), float32(0))"
    tiles = [(i, j) for i in range(ROWS) for j in range(COLUMNS)]
    lines += [f"    c{i}{j} = {zero}" for i, j in tiles]

    def stage(where, indent):
        found = []
        for half in range(2):
            for name, start in (("a", 0), ("b", 4096)):
                to = f"uint32({where} + into + uint32({start + 2048 * half}))"
                found.append(f"{indent}copy_16({to}, global_address({name}, at_{name} + {32 * half} * k))")
        return [*found, f"{indent}at_a += 16; at_b += 16", f"{indent}commit()"]

    lines += stage("base", "    ") + stage("base + uint32(8192)", "    ")
    lines += [
        "    current = uint32(0); following = uint32(16384)",
        "    for step in range(k >> 4):",
        "        wait_1(); cuda.syncthreads()",
        "        here = base + current",
        "        if step < (k >> 4) - 2:",
        *stage("base + following", "            ")[:-1],
        "        commit()",
    ]
    for half in range(2):
        turn = f" ^ uint32({32 * half})"
        lines += [
            f"        a{i} = load_matrices(uint32((here + from_a + uint32({1024 * i})){turn}))" for i in range(ROWS)
        ]
        lines += [
            f"        b{j} = load_matrices(uint32((here + uint32(4096) + from_b + uint32({1024 * j})){turn}))"
            for j in range(COLUMNS // 2)
        ]
        passes = [("{}", "{}")]
        if split:
            passes = [("rest({})", "{}"), ("{}", "rest({})"), ("{}", "{}")]
        for left, right in passes:
            for i, j in tiles:
                ours = [left.format(f"a{i}[{r}]") for r in range(4)]
                theirs = [right.format(f"b{j // 2}[{2 * (j % 2) + r}]") for r in range(2)]
                lines.append(f"        c{i}{j} = multiply({', '.join([*ours, *theirs])}, c{i}{j})")
    lines += [
        "        current = uint32(current + uint32(8192))",
        "        if current == uint32(24576): current = uint32(0)",
        "        following = uint32(following + uint32(8192))",
        "        if following == uint32(24576): following = uint32(0)",
        "    o = (cuda.blockIdx.y * 64 + wm * 32 + (l >> 2)) * n + cuda.blockIdx.x * 64 + wn * 32 + (l & 3) * 2",
    ]
    lines += [
        f"    c[o + {16 * i + 8 * h} * n + {8 * j + e}] = c{i}{j}[{2 * h + e}]"
        for i, j in tiles
        for h in range(2)
        for e in range(2)
    ]
    return "\n".join(lines)


def made(multiply, split=False):
    """The kernel with an mma."""
    scope = {**globals(), "multiply": multiply, "float32": types.float32}
    exec(source(split), scope)
    return cuda.jit(launch_bounds=(128, 2))(scope["kernel"])


N = 64
HALF = types.UniTuple(types.float32, N // 2)
_names = ",".join(f"${i}" for i in range(N // 2))
warpgroup_product = assembly(
    "{ .reg .pred p; setp.ne.b32 p, 1, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
    f"{{{_names}}}, ${N}, ${N + 1}, p, 1, 1, 0, 0; }}",
    ir.LiteralStructType([F32] * (N // 2)),
    [F32] * (N // 2) + [I64, I64],
    ",".join(["=f"] * (N // 2) + [str(i) for i in range(N // 2)] + ["l", "l"]),
    HALF,
    [HALF, types.uint64, types.uint64],
)


@intrinsic
def zeros(typingctx):
    """Sums to begin with."""
    return HALF(), lambda context, builder, signature, args: ir.Constant(ir.ArrayType(F32, N // 2), [0.0] * (N // 2))


@cuda.jit(launch_bounds=(128, 1))
def warpgroup(a, b, c):
    """64 x 64 elements of C, 64 deep; a and b as bfloat16 pairs, [64, 32]."""
    tile = cuda.shared.array(4096, int32, alignment=1024)
    to_a = shared_address(tile)
    to_b = to_a + uint32(8192)
    t = cuda.threadIdx.x
    for first in range(0, 512, 128):  # pieces of 16 bytes: 64 rows of 8
        piece = first + t
        place = uint32((piece >> 3) * 128 + ((piece & 7) ^ (piece >> 3 & 7)) * 16)
        copy_16(uint32(to_a + place), global_address(a, piece * 4))
        copy_16(uint32(to_b + place), global_address(b, piece * 4))
    commit()
    wait_0()
    fence_proxy()
    cuda.syncthreads()
    swizzled = uint64(0x4000004000010000)  # 128 bytes, eight rows are 1024 bytes apart
    da, db = swizzled | uint64(to_a >> uint32(4)), swizzled | uint64(to_b >> uint32(4))
    sums = zeros()
    wg_fence()
    sums = warpgroup_product(sums, da, db)
    sums = warpgroup_product(sums, da + uint64(2), db + uint64(2))
    sums = warpgroup_product(sums, da + uint64(4), db + uint64(4))
    sums = warpgroup_product(sums, da + uint64(6), db + uint64(6))
    wg_commit()
    wg_wait()
    o = ((t >> 5) * 16 + (t >> 2 & 7)) * 64 + (t & 3) * 2
    for i in range(8):
        c[o + 8 * i], c[o + 8 * i + 1] = sums[4 * i], sums[4 * i + 1]
        c[o + 512 + 8 * i], c[o + 512 + 8 * i + 1] = sums[4 * i + 2], sums[4 * i + 3]


def bfloat(values):
    """Rounded to bfloat16: pairs as int32, and the values."""
    raw = values.view(np.uint32).astype(np.uint64)
    bits = (raw + 0x7FFF + (raw >> 16 & 1) >> 16).astype(np.uint16)
    return bits.view(np.int32).ravel(), (bits.astype(np.uint32) << 16).view(np.float32).astype(float)


def error(found, wanted):
    """The norm of the difference, of the norm of what is wanted."""
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def main():
    """Print the errors."""
    generator = np.random.default_rng(0)
    m, n, k = 64, 128, 128
    a, b = (generator.standard_normal((rows, k)).astype(np.float32) for rows in (m, n))
    wanted, errors = a.astype(float) @ b.T.astype(float), {}
    for name, kernel, halves in (
        ("bf16", made(mma("m16n8k16", "bf16")), True),
        ("tf32", made(mma("m16n8k8", "tf32")), False),
        ("3xtf32", made(mma("m16n8k8", "tf32"), split=True), False),
    ):
        left, right = (bfloat(one)[0] if halves else one.view(np.int32).ravel() for one in (a, b))
        c = np.full(m * n, np.nan, np.float32)
        lab.interpret(kernel)[(n // 64, m // 64), 128](left, right, c, n, k // 2 if halves else k)
        errors[name] = error(c.reshape(m, n), wanted)
    (left, left_values), (right, right_values) = (bfloat(one[:64, :64].copy()) for one in (a, b))
    c = np.full(64 * 64, np.nan, np.float32)
    lab.interpret(warpgroup)[1, 128](left, right, c)
    errors["wgmma"] = error(c.reshape(64, 64), left_values @ right_values.T)
    print(json.dumps(errors))


if __name__ == "__main__":
    main()
