"""Every kernel keeps within its budgets on every architecture; and what reads machine code reads it right."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import sampling
from support.shared import made_once

from gpuconv.geometry import Conv2dGeometry, Pool2dGeometry
from gpuconv.kernels import VARIANTS, load

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURES = ["sm_80", "sm_90a", "sm_100"]
PAIRS = [(operation, variant) for operation in VARIANTS for variant in VARIANTS[operation]]


@dataclasses.dataclass(frozen=True)
class Budget:
    """What a kernel may need in any tiling, and what its main loop must reach, in float32 on every architecture."""

    #: Registers a thread.
    registers: int
    #: By the sums that a thread has in registers: the least share of multiply-adds among the main loop's instructions.
    multiply_adds: dict[int, float] = dataclasses.field(default_factory=dict)
    #: The share that the best tiling reaches.
    best: float = 0.0
    #: 128-bit loads of shared memory in the main loop, if a thread has 8x8 sums.
    wide_loads: int = 0
    #: Of a kernel for tensor cores: multiply-adds a thread and cycle, by the 16 x 8 matrices that a warp has.
    tensor: dict[int, float] = dataclasses.field(default_factory=dict)
    #: The same in half types.
    half: dict[int, float] = dataclasses.field(default_factory=dict)


#: By the name of the kernel's function. A kernel that is not here may use what its launch bounds leave it.
BUDGETS = {
    "conv2d_direct": Budget(40),
    # A segment of a row of inputs serves all taps of the row: the fewest loads for each multiply-add.
    "conv2d_tiled": Budget(128, {64: 0.90, 32: 0.83, 16: 0.75, 4: 0.57}, best=0.90),
    # A k-tile of 8: 4 loads a step for 8x8 sums, two more for the table of offsets. 64x64x8 with its 64 threads has
    # twice as much to fetch a thread, and 148 registers. With 4x4 sums loads and fetches weigh four times as much.
    "conv2d_implicit_gemm": Budget(152, {64: 0.80, 32: 0.72, 16: 0.60}, best=0.85, wide_loads=32),
    "conv2d_depthwise": Budget(64),
    # 128 sums a thread, or 64: one block of 256 threads fills a multiprocessor.
    "conv2d_winograd": Budget(255, {1: 0.64}, best=0.77),
    "conv2d_winograd_filters": Budget(40),
    "conv2d_grad_input_direct": Budget(64),
    "conv2d_turned_filters": Budget(32),
    "conv2d_grad_input_zeros": Budget(32),
    "conv2d_grad_input_tiled": Budget(128, {64: 0.89, 32: 0.83, 16: 0.75, 4: 0.57}, best=0.90),
    # The sum runs over positions: of both matrices no 128 bits lie together, and each value fetched takes a predicate
    # of its own. So it stays below the product of the forward pass.
    "conv2d_grad_weight_implicit_gemm": Budget(152, {64: 0.74, 32: 0.64, 16: 0.49, 8: 0.33}, best=0.81, wide_loads=32),
    # Three products of TF32 numbers for one multiply-add. With fewer matrices a warp, loads and splits weigh more. Half
    # types take one product, of twice as many elements.
    "conv2d_tensor_core": Budget(255, tensor={16: 1.5, 8: 1.05, 4: 0.65}, half={16: 7.3, 8: 4.0, 4: 2.0}),
    "conv2d_grad_weight_tensor_core": Budget(255, tensor={16: 1.4, 8: 0.9, 4: 0.5}, half={16: 4.4, 8: 2.2, 4: 1.2}),
    "conv2d_grad_weight_direct": Budget(64),
    "conv2d_grad_weight_depthwise": Budget(64),
    "conv2d_grad_weight_winograd": Budget(255, {1: 0.50}, best=0.68),
    "conv2d_grad_bias": Budget(32),
    "sum_parts": Budget(32),
    "conv2d_relu_max_pool2d": Budget(128),
    # Two blocks of 416 threads share a multiprocessor.
    "conv2d_relu_max_pool2d_pair": Budget(72),
    "conv2d_relu_max_pool2d_grad_input": Budget(128),
    "conv2d_relu_max_pool2d_grad_weight": Budget(80),
    "sum_parts_of_two": Budget(32),
    # Weights that are fetched ahead fill what 512 threads leave each other, 128, and most of that with 256.
    "linear_chain": Budget(64),
    "linear_chain_first": Budget(80),
    "linear_chain_grad_input": Budget(128),
    "linear_chain_loss_grad_input": Budget(160),
    "linear_chain_grad_weight": Budget(64),
    "max_pool2d": Budget(32),
    "max_pool2d_grad": Budget(40),
    "avg_pool2d": Budget(32),
    "avg_pool2d_grad": Budget(32),
    "relu": Budget(32),
    "relu_grad": Budget(32),
    "softmax_cross_entropy": Budget(32),
    "softmax_cross_entropy_grad": Budget(32),
    "softmax_cross_entropy_mean": Budget(64),
    "batch_norm_stats": Budget(40),
    "batch_norm_stats_join": Budget(40),
    "batch_norm": Budget(32),
    "batch_norm_grad_stats": Budget(48),
    "batch_norm_grad_input": Budget(40),
    "sgd_update_all": Budget(40),
    "adam_update_all": Budget(64),
    "image_batch": Budget(32),
    "count_correct": Budget(40),
}


@pytest.fixture(autouse=True)
def _bench_can_be_imported(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


def run(*command: object) -> subprocess.CompletedProcess[str]:
    """Run Python on something in the repository, as its users do; numba.cuda compiles there, and simulates here."""
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "0", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True
    )


def static(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run bench.static, if its tools are here."""
    done = run("-m", "bench.static", *arguments)
    if done.returncode == 2 and "pip install" in done.stderr:
        pytest.skip(done.stderr.strip())
    return done


# -- budgets -------------------------------------------------------------------------------------------------


#: Kernels for tensor cores. They take seconds to compile, so that a sample has the first one only.
TENSOR_CORE = [
    pytest.param(name, marks=[pytest.mark.thorough] * (name != "conv2d_tensor_core"))
    for name, budget in BUDGETS.items()
    if budget.tensor
]


@pytest.fixture(scope="module")
def results(request, tmp_path_factory):
    """What bench.static finds of the variants that are tested, in every tiling."""
    wanted = set()
    for item in request.session.items:
        if item.path == request.path and "results" in item.fixturenames:
            wanted |= {f"{name}.{variant}" for name, variant in PAIRS if _is_of(item.callspec.params, name, variant)}

    def compiled() -> str:
        done = run(ROOT / "tests" / "support" / "compile_all.py", *sorted(wanted))
        assert done.returncode == 0, done.stderr
        return done.stdout

    found = json.loads(made_once(tmp_path_factory, "compiled.json", compiled))
    if "unavailable" in found:
        pytest.skip(f"machine code cannot be made or read here: {found['unavailable']}")
    return found


def _is_of(values, operation, variant) -> bool:
    """Whether a test with these parameters is of that variant's kernels."""
    kernel = values.get("kernel", f"{values.get('operation')}_{values.get('variant')}")
    return kernel == f"{operation}_{variant}"


def launches(results, **wanted) -> Iterator[tuple[str, dict]]:
    """A name and the figures of each launch in those results that have the wanted values."""
    for found in results:
        if all(found[name] == value for name, value in wanted.items()):
            assert "error" not in found, f"{found['operation']} {found['variant']} {found['tiling']}: {found['error']}"
            for launch in found["launches"]:
                name = f"{launch['kernel']} {found['tiling']} on {found['layer']} for {launch['architecture']}"
                yield name, launch


@pytest.mark.grid(8)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("operation", "variant"),
    # Adam's take seconds to compile, and a sample has others.
    [pytest.param(*pair, marks=[pytest.mark.thorough] * pair[0].startswith("adam")) for pair in PAIRS],
)
def test_budgets(results, operation, variant):
    """On each architecture: no spills, nothing in local memory, float64 nowhere else, registers as budgeted.

    And it can be launched: threads, registers and shared memory of a block are what a multiprocessor has.
    """
    compiled = set()
    for dtype in "float32", "float64", "float16":
        for name, launch in launches(results, operation=operation, variant=variant, dtype=dtype):
            compiled.add((dtype, launch["architecture"]))
            assert (launch["spill_bytes"], launch["local_bytes"]) == (0, 0), f"{dtype} {name}"
            assert launch["static_shared_bytes"] <= 48 * 1024, f"{dtype} {name}"
            assert launch["occupancy"]["blocks"] >= 1, f"{dtype} {name}: {launch['occupancy']}"
            bounds = launch["launch_bounds"]
            assert bounds is not None, f"{name}: without launch_bounds its registers are unbounded"
            most_threads = bounds[0] if isinstance(bounds, list) else bounds
            assert launch["threads"] <= most_threads, f"{dtype} {name}"
            if dtype != "float64":
                assert launch["float64_instructions"] == 0, name
                if budget := BUDGETS.get(launch["kernel"]):
                    assert launch["registers"] <= budget.registers, name
    wanted = {("float32", architecture) for architecture in ARCHITECTURES}
    if "float64" in getattr(load(operation, variant).module, "DTYPES", ["float64"]):
        wanted.add(("float64", "sm_90a"))
    if sampling.wanted() == "all":
        assert compiled >= wanted, "give tests/support/compile_all.py a layer that the variant supports"
    assert "float32" in {dtype for dtype, _ in compiled}


@pytest.mark.grid(2)
@pytest.mark.slow
@pytest.mark.parametrize("kernel", [name for name, budget in BUDGETS.items() if budget.multiply_adds])
def test_main_loops(results, kernel):
    """Kernels that are to be bound by arithmetic: the share of multiply-adds in every tiling, and in the best one.

    On a layer of ResNet that fills all tiles: of an empty part of a tile, the compiler removes the arithmetic.
    """
    budget, best = BUDGETS[kernel], {}
    for found in results:
        if (found["layer"], found["dtype"]) != ("resnet50.conv3-3x3", "float32"):
            continue
        sums = math.prod(size for name, size in found["tiling"].items() if name.startswith("thread_"))
        for launch in found["launches"]:
            if launch["kernel"] == kernel:
                loop, architecture = launch["main_loop"], launch["architecture"]
                share = loop["multiply_add_share"]
                assert share >= budget.multiply_adds[sums], f"{found['tiling']} for {architecture}: {share:.1%}"
                if sums == 64:
                    assert loop["counts"].get("LDS.128", 0) >= budget.wide_loads, f"{found['tiling']}: {loop}"
                best[architecture] = max(share, best.get(architecture, 0.0))
    assert best  # a sample is of one architecture, and need not hold the best tiling
    if sampling.wanted() == "all":
        assert best.keys() == set(ARCHITECTURES)
        assert min(best.values()) >= budget.best


@pytest.mark.slow
@pytest.mark.parametrize("kernel", TENSOR_CORE)
def test_tensor_cores(results, kernel):
    """As many instructions for tensor cores as there are matrices, each operand loaded once, and little beside them."""
    met = set()
    for name, launch in launches(results, variant="tensor_core", layer="resnet50.conv3-3x3"):
        if launch["kernel"] != kernel:
            continue
        found = next(found for found in results if launch in found["launches"])
        tiling, half = found["tiling"], found["dtype"] == "float16"
        down, across = tiling["warp_filters"] // 16, tiling.get("warp_positions", tiling.get("warp_columns")) // 8
        budget = BUDGETS[kernel].half if half else BUDGETS[kernel].tensor
        counts, each = launch["main_loop"]["counts"], budget[down * across]
        # Two steps of eight words in a k-tile of 16.
        assert counts["HMMA"] == 2 * (1 if half else tiling["products"]) * down * across, name
        assert counts["LDSM"] == 2 * (down + across // 2), name
        assert launch["main_loop"]["multiply_add_share"] >= each, f"{name}: {launch['main_loop']}"
        if kernel == "conv2d_tensor_core":
            assert counts["LDG.128"] * 4 * launch["threads"] == 16 * tiling["filters"], name
            assert counts["STS.128"] * 4 * launch["threads"] == 16 * (tiling["filters"] + tiling["positions"]), name
        met.add(found["dtype"])
    assert met == {"float32", "float16"}


@pytest.mark.slow
def test_each_budget_is_of_a_kernel():
    """None is left behind when a kernel gets another name."""
    from bench.layers import LAYERS

    names = set()
    for operation, variants in VARIANTS.items():
        modules = [load(operation, variant) for variant in variants]
        for module, geometry in itertools.product(modules, LAYERS[operation].values()):
            for tiling in module.tilings(geometry) if module.supports(geometry) else ():
                names |= {launch.kernel.fn.__name__ for launch in module.launches(geometry, tiling, "float32")}
    assert set(BUDGETS) <= names


# -- known faults in PTX -------------------------------------------------------------------------------------

HEAD = ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry kernel(.param .u64 x, .param .u32 n)\n"
POINTER = "ld.param.u64 %a0, [x]; cvta.to.global.u64 %a0, %a0;\n"
FMAS = "".join(f"fma.rn.f32 %f9, %f{i}, %f8, %f9;\n" for i in range(8))

#: Eight multiply-adds and two 128-bit loads of shared memory an iteration.
LOOP = f"""{HEAD} {{
.reg .f32 %f<10>; .reg .b32 %r<6>; .reg .b64 %a<2>; .reg .pred %p;
.shared .align 16 .b8 tile[1024];
{POINTER} ld.param.u32 %r0, [n];
mov.u32 %r1, %tid.x; mul.wide.u32 %a1, %r1, 4; add.s64 %a1, %a0, %a1; ld.global.f32 %f8, [%a1];
mov.u32 %r2, tile; shl.b32 %r3, %r1, 2; add.s32 %r4, %r2, %r3; st.shared.f32 [%r4], %f8; bar.sync 0;
mov.f32 %f9, 0f00000000; mov.u32 %r5, 0;
AGAIN: .pragma "nounroll";
ld.shared.v4.f32 {{%f0, %f1, %f2, %f3}}, [%r2]; ld.shared.v4.f32 {{%f4, %f5, %f6, %f7}}, [%r2+16];
{FMAS} add.s32 %r2, %r2, 32; add.s32 %r5, %r5, 1; setp.lt.u32 %p, %r5, %r0; @%p bra AGAIN;
st.global.f32 [%a1], %f9; ret; }}
"""

#: Sixty values alive at once.
MANY_VALUES = f"""{HEAD} {{
.reg .f32 %f<60>; .reg .b64 %a<1>; {POINTER}
{"".join(f"ld.volatile.global.f32 %f{i}, [%a0+{4 * i}];" for i in range(60))} bar.sync 0;
{"".join(f"st.volatile.global.f32 [%a0+{4 * i}], %f{59 - i};" for i in range(60))} ret; }}
"""

DOUBLE = f"""{HEAD} {{
.reg .f32 %f<1>; .reg .f64 %d<1>; .reg .b64 %a<1>; {POINTER}
ld.global.f32 %f0, [%a0]; cvt.f64.f32 %d0, %f0; add.f64 %d0, %d0, 0d3FF8000000000000; cvt.rn.f32.f64 %f0, %d0;
st.global.f32 [%a0], %f0; ret; }}
"""

#: An array of 256 bytes, indexed by an argument.
LOCAL = f"""{HEAD} {{
.local .align 4 .b8 values[256]; .reg .b32 %r<3>; .reg .b64 %a<3>; {POINTER} ld.param.u32 %r0, [n];
mov.u64 %a1, values; mul.wide.u32 %a2, %r0, 4; add.s64 %a1, %a1, %a2; ld.global.u32 %r1, [%a0];
st.local.u32 [%a1], %r1; st.local.u32 [values], %r0; ld.local.u32 %r2, [%a1]; st.global.u32 [%a0], %r2; ret; }}
"""


@pytest.fixture
def made():
    """A function that assembles and disassembles PTX."""
    from bench import sass

    def make(ptx: str, architecture: str, **options: int):
        try:
            code = sass.assemble(ptx.encode(), architecture, **options)
            return code, sass.disassemble(code.cubin)
        except sass.ToolMissing as missing:
            pytest.skip(str(missing))

    return make


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_main_loop_of_a_known_kernel(made, architecture):
    """Eight multiply-adds, two wide loads, a branch, and 1024 bytes of shared memory are found as they were written."""
    from bench import sass

    code, instructions = made(LOOP, architecture)
    assert (code.spill_bytes, code.local_bytes, code.shared_bytes) == (0, 0, 1024)
    assert 8 < code.registers <= 24
    loop = sass.main_loop(instructions)
    assert loop.is_loop
    assert {kind: loop.counts[kind] for kind in ("FFMA", "LDS.128", "BRA")} == {"FFMA": 8, "LDS.128": 2, "BRA": 1}
    assert loop.counts["LDG.32"] == loop.counts["STS.32"] == 0
    assert 8 / 16 <= loop.share("FFMA") < 8 / 11
    assert not any(instruction.double for instruction in instructions)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_known_faults_are_found(made, architecture):
    """Spills for want of registers, float64, an array in local memory: each shows, and only where it is."""
    free, _ = made(MANY_VALUES, architecture)
    tight, instructions = made(MANY_VALUES, architecture, max_registers=32)
    assert free.registers > 60
    assert free.spill_bytes == 0
    assert tight.registers == 32
    assert tight.spill_bytes >= 2 * 4 * 28  # at least as many as there are registers too few, out and in
    assert tight.local_bytes >= 4 * 28
    assert {"STL", "LDL"} <= {instruction.kind.split(".")[0] for instruction in instructions}

    _, instructions = made(DOUBLE, architecture)
    assert [i.opcode for i in instructions if i.double] == ["F2F.F64.F32", "DADD", "F2F.F32.F64"]

    local, _ = made(LOCAL, architecture)
    assert (local.local_bytes, local.spill_bytes) == (256, 0)


def test_code_that_cannot_be_assembled(made):
    """The error says what nvJitLink says: line and word, or that it does not know the architecture."""
    from bench import sass

    made(LOOP, "sm_80")
    with pytest.raises(sass.AssemblyError, match=r"sm_80: (?s:.)*line 5.*'nonsense'"):
        sass.assemble(f"{HEAD}nonsense".encode(), "sm_80")
    with pytest.raises(sass.AssemblyError, match=r"sm_81: .*UNRECOGNIZED_ARCH"):
        sass.assemble(LOOP.encode(), "sm_81")
    with pytest.raises(ValueError, match="'hopper' is no architecture: write it like sm_80"):
        sass.compute_capability("hopper")
    assert [sass.compute_capability(name) for name in ARCHITECTURES] == [(8, 0), (9, 0, "a"), (10, 0)]


# -- known listings and logs ---------------------------------------------------------------------------------

LISTING = """
	.section	.text.kernel,"ax",@progbits
.text.kernel:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/               @P1 LDG.E.128.CONSTANT R4, desc[UR4][R2.64+0x10] ;
        /*0020*/                   STS.64 [R0], R4 ;
        /*0030*/                   LDG.E.U8 R5, [R2.64] ;
.L_x_1:
        /*0040*/                   LDS.U.128 R8, [R0] ;
        /*0050*/                   FFMA R10, R8.reuse, R9, R10 ;
        /*0060*/                   FFMA R11, R8, R9, R11 ;
        /*0070*/              @!P0 BRA `(.L_x_2) ;
        /*0080*/                   MUFU.RCP64H R3, R7 ;
.L_x_2:
        /*0090*/                   BRA.U UP0, `(.L_x_1) ;
        /*00a0*/               @P0 BRA `(.L_x_0) ;
        /*00b0*/                   STG.E desc[UR4][R2.64], R10 ;
        /*00c0*/                   EXIT ;
.L_x_3:
        /*00d0*/                   BRA `(.L_x_3);
        /*00e0*/                   NOP;
"""


def test_listing_with_nested_loops():
    """Widths and predicates are read; a loop's instructions are its own, without those of the loop inside it."""
    from bench import sass

    instructions = sass.parse_listing(LISTING)
    assert len(instructions) == 13  # without the branch to itself and the NOP
    assert [i.opcode for i in instructions if i.double] == ["MUFU.RCP64H"]
    outer, inner = sass.loops(instructions)
    assert outer.counts == {"LDG.128": 1, "STS.64": 1, "LDG.8": 1, "BRA": 1}
    assert inner.counts == {"LDS.128": 1, "FFMA": 2, "BRA": 2, "MUFU": 1}
    assert sass.main_loop(instructions) == inner
    assert inner.share("FFMA") == pytest.approx(1 / 3)

    unrolled = sass.parse_listing(LISTING.replace("UP0, `(.L_x_1)", "UP0, `(.L_x_3)"))
    assert sass.main_loop(unrolled).counts["FFMA"] == 2
    without = sass.parse_listing(LISTING.replace("FFMA", "FADD"))
    assert not sass.main_loop(without).is_loop
    assert len(sass.main_loop(without).instructions) == 13
    for text in "", LISTING + LISTING:
        with pytest.raises(ValueError, match="not the listing of one kernel"):
            sass.parse_listing(text)


def test_log_of_the_assembler():
    """Registers, spills, stack and shared memory are where ptxas prints them, and 0 where it prints none."""
    from bench import sass

    log = (
        "INFO: NVVM70 LTOIR Container created (47252 bytes)\n"
        "ptxas info    : 0 bytes gmem\n"
        "ptxas info    : Compiling entry function '_Z1k' for 'sm_80'\n"
        "ptxas info    : Function properties for _Z1k\n"
        "ptxas         .     152 bytes stack frame, 148 bytes spill stores, 152 bytes spill loads\n"
        "ptxas info    : Used 107 registers, used 1 barriers, 152 bytes cumulative stack size, 15552 bytes smem, "
        "520 bytes cmem[0]\n"
    )
    assert sass.parse_log(log) == sass.MachineCode(b"", 107, 300, 152, 15552)
    assert sass.parse_log(log.replace("15552 bytes smem, ", "")).shared_bytes == 0
    for text in "", log + log:
        with pytest.raises(ValueError, match="not the log of one kernel"):
            sass.parse_log(text)


# -- occupancy and roofline ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("threads", "registers", "shared_bytes", "blocks", "limit"),
    [
        (256, 32, 0, (8, 8, 8), "threads"),
        (32, 16, 0, (32, 32, 32), "blocks"),
        (160, 64, 0, (6, 6, 6), "registers"),
        (224, 99, 14_784, (2, 2, 2), "registers"),
        (64, 255, 8_192, (4, 4, 4), "registers"),
        (1024, 72, 0, (0, 0, 0), "registers"),
        (128, 37, 33_000, (4, 6, 6), "shared memory"),
        (512, 40, 100_000, (1, 2, 2), "shared memory"),
        (128, 32, 166_912, (1, 1, 1), "shared memory"),
        (64, 32, 230_000, (0, 1, 1), "shared memory"),
    ],
)
def test_occupancy(threads, registers, shared_bytes, blocks, limit):
    """Blocks a multiprocessor, as cudaOccMaxActiveBlocksPerMultiprocessor of NVIDIA's cuda_occupancy.h counts them."""
    from bench import roofline

    for architecture, expected in zip(ARCHITECTURES, blocks, strict=True):
        found = roofline.occupancy(threads, registers, shared_bytes, architecture)
        assert (found.blocks, found.limit) == (expected, limit), architecture
        assert found.share == pytest.approx(expected * -(-threads // 32) * 32 / 2048)
    with pytest.raises(ValueError, match="architecture 'sm_70' is not known; there are sm_80"):
        roofline.occupancy(threads, registers, shared_bytes, "sm_70")


def test_roofline():
    """The figures that can be worked out by hand: ResNet's 3x3 layers, a ReLU, instructions of a few blocks."""
    from bench import roofline
    from bench.layers import CONVOLUTIONS
    from gpuconv.kernels.operations import OPERATIONS

    conv, gpu = OPERATIONS["conv2d"], roofline.H200
    for stage in "conv2", "conv3", "conv4", "conv5":
        geometry = CONVOLUTIONS[f"resnet50.{stage}-3x3"]
        assert conv.flop(geometry) == 2 * 32 * 56**2 * 64 * 64 * 9
    geometry = CONVOLUTIONS["resnet50.conv2-3x3"]
    assert conv.traffic(geometry, "float32") == 4 * (2 * 32 * 64 * 56**2 + 64 * 64 * 9 + 64)
    work = roofline.Work(conv.flop(geometry), conv.traffic(geometry, "float32"))
    assert work.bound(gpu) == "FLOP"
    assert work.floor_seconds(gpu) == pytest.approx(110.4e-6, rel=1e-3)
    assert work.intensity == pytest.approx(143.6, rel=1e-3)
    lenet = [CONVOLUTIONS[f"lenet5.{name}"] for name in ("conv1", "conv2")]
    assert [conv.flop(g) // g.n for g in lenet] == [2 * 117_600, 2 * 240_000]

    relu = OPERATIONS["relu"]
    work = roofline.Work(relu.flop((10, 12)), relu.traffic((10, 12), "float32"))
    assert (work.flop, work.traffic, work.bound(gpu)) == (120, 960, "bytes")
    assert work.floor_seconds(gpu) == pytest.approx(960 / 4.8e12)
    assert work.memory_seconds(gpu, copy=True) == pytest.approx(960 / 4.3e12)
    # A cycle is 1/1.98 ns: two blocks on some multiprocessors take twice as long; one long warp is not shared out.
    assert roofline.issue_seconds(132, 4000, 500) == pytest.approx(1000 / 1.983e9, rel=1e-3)
    assert roofline.issue_seconds(133, 4000, 500) == pytest.approx(2000 / 1.983e9, rel=1e-3)
    assert roofline.issue_seconds(1, 4000, 3000) == pytest.approx(3000 / 1.983e9, rel=1e-3)


def launch(blocks: int, threads: int, share: float, architecture: str = "sm_90a") -> dict:
    return {
        "architecture": architecture,
        "grid": [blocks, 1, 1],
        "threads": threads,
        "main_loop": {"multiply_add_share": share},
    }


@pytest.mark.parametrize(
    ("launches", "factor", "why"),
    [
        ([launch(264, 128, 1.0)], 1, "FLOP"),
        ([launch(264, 128, 0.5)], 2, "issue"),
        ([launch(528, 16, 1.0)], 2, "warps"),
        ([launch(133, 128, 1.0)], 264 / 133, "blocks"),
        # One warp a multiprocessor keeps one of four schedulers busy.
        ([launch(132, 32, 1.0)], 4, "schedulers"),
        ([launch(132, 8, 0.8)], 4 * 4 / 0.8, "warps"),
        # Of LeNet's second convolution, ten blocks of four threads for each image.
        ([launch(1280, 4, 319 / 343)], 8 * 1320 / 1280 * 343 / 319, "warps"),
        # A second stage without multiply-adds costs nothing here, nor what was compiled for another GPU.
        ([launch(264, 128, 0.8), launch(1, 1, 0.0), launch(264, 128, 0.9, "sm_80")], 1 / 0.8, "FLOP"),
        ([launch(264, 128, 0.4), launch(264, 128, 0.5)], 2, "issue"),
    ],
)
def test_the_bound_of_a_kernel(launches, factor, why):
    """How much longer than its multiply-adds at the peak, and what is the most of it."""
    from bench import roofline

    work = roofline.Work(2 * 10**9, 1000)
    found = roofline.kernel_bound(work, launches)
    assert found["floor_us"] == pytest.approx(1e6 * factor * work.compute_seconds(roofline.H200))
    assert found["bound"] == why


def test_a_bound_is_never_below_the_roofline():
    """Traffic counts, too; of what are no multiply-adds, and in float64, the machine code tells nothing."""
    from bench import roofline

    generator = random.Random(0)
    for _ in range(200):
        work = roofline.Work(generator.randint(1, 10**9), generator.randint(1, 10**8))
        found = roofline.kernel_bound(
            work, [launch(generator.randint(1, 5000), generator.randint(1, 1024), generator.uniform(0.1, 1))]
        )
        assert found["floor_us"] >= 1e6 * work.floor_seconds(roofline.H200) * (1 - 1e-9)
        assert (found["bound"] == "bytes") == (
            found["floor_us"] == pytest.approx(1e6 * work.memory_seconds(roofline.H200))
        )
    for dtype, counted in (("float64", True), ("float32", False)):
        work = roofline.Work(10**9, 10**6, dtype)
        found = roofline.kernel_bound(work, [launch(1, 1, 0.1)], counted=counted)
        assert found["floor_us"] == 1e6 * work.floor_seconds(roofline.H200)


def test_layers():
    """Each operation has layers; each of them, and its small form for the simulator, is a valid geometry."""
    from bench.layers import LAYERS
    from gpuconv.kernels.operations import OPERATIONS

    assert set(VARIANTS) <= set(LAYERS), "give the operation an entry in bench/layers.py"
    for name, layers in LAYERS.items():
        operation = OPERATIONS[name]
        assert layers, name
        for layer, geometry in layers.items():
            for terms in 8, 512:
                small = operation.small(geometry, terms)
                assert operation.flop(small) <= min(operation.flop(geometry), 10**8), layer
                for one in geometry, small:
                    if isinstance(one, Conv2dGeometry):
                        options = {key: getattr(one, key) for key in ("stride", "padding", "dilation", "groups")}
                        assert Conv2dGeometry.of(one.input_shape, one.weight_shape, **options) == one, layer
                    elif isinstance(one, Pool2dGeometry):
                        options = {key: getattr(one, key) for key in ("stride", "padding", "dilation", "ceil_mode")}
                        assert Pool2dGeometry.of(one.input_shape, (one.r, one.s), **options) == one, layer


# -- the command ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_command(tmp_path):
    """Tables of at most 120 columns, and the same figures in the JSON; a GPU is needed for neither half of them."""
    variant, out = next(iter(VARIANTS["conv2d"])), tmp_path / "static.json"
    arguments = [
        "--op=conv2d",
        f"--variants={variant}",
        "--layers=lenet5.conv2",
        "--cc=sm_80,sm_90a",
        "--executed",
        f"--json={out}",
    ]
    done = static(*arguments)
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 120
    (found,) = json.loads(out.read_text())["results"]
    assert (found["operation"], found["variant"], found["layer"]) == ("conv2d", variant, "lenet5.conv2")
    assert found["work"]["flop"] == 2 * 128 * 240_000
    assert [launch["architecture"] for launch in found["launches"]] == ["sm_80", "sm_90a"]
    simulated = found["simulated"]
    assert simulated["faults"] == []
    assert {site["array"] for site in simulated["global"]} == {"x", "weight", "bias", "out"}
    assert all(site["sectors"] >= site["ideal"] > 0 for site in simulated["global"])
    rows = [line for line in done.stdout.splitlines() if line.startswith(f"  {variant} ")]
    assert [row.split()[2] for row in rows[:2]] == [str(launch["registers"]) for launch in found["launches"]]
    (executed,) = found["executed"]["launches"]
    assert executed["blocks"] == math.prod(found["launches"][1]["grid"])
    # At least its multiply-adds, and no more for all warps than if each executed as much as the longest one.
    assert executed["blocks"] * executed["block"] * 32 > 128 * 240_000
    assert executed["block"] <= executed["thread"] * -(-executed["threads"] // 32)
    assert f"{executed['thread']:,}" in rows[2].split()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--op=conv2"], "--op: there is no 'conv2'; did you mean 'conv2d'?"),
        (["--variants=tilde"], "--variants: there is no 'tilde'; did you mean 'tiled'?"),
        (["--layers=lenet5.conv3"], "--layers: there is no 'lenet5.conv3'; did you mean 'lenet5.conv"),
        (["--op=relu", "--layers=lenet5.conv1"], "no kernel supports any of these layers"),
        (["--cc="], "argument --cc: a name is needed"),
        (["--cc=90"], "'90' is no architecture"),
        (["--cc=sm_70"], "architecture 'sm_70' is not known; there are sm_80"),
        ([f"--json={ROOT}"], "is a folder"),
        (["--fast"], "unrecognized arguments: --fast; --help lists the options"),
    ],
)
def test_bad_arguments_give_one_line(arguments, message, capsys, monkeypatch):
    """What cannot be shown is refused with one line that says what would do, and status 2."""
    from bench.static import main

    # The command sets it for its own process, and here there come other tests.
    monkeypatch.setenv("NUMBA_ENABLE_CUDASIM", os.environ["NUMBA_ENABLE_CUDASIM"])
    status = main(arguments)
    out, err = capsys.readouterr()
    if "pip install" in err:
        pytest.skip(err.strip())
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
