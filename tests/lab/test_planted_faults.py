"""Faults planted in public kernels: each is named with its line of source, and the kernels as they are have none."""

import linecache
import re
import traceback
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from support.simulated import simulator

SOURCE = Path(__file__).with_name("public_kernels.py")
KERNELS = re.findall(r"^# -- (\w+):", SOURCE.read_text(), re.MULTILINE)


class Fault(NamedTuple):
    """A fault: a change of a kernel's section, and how the laboratory is to name it."""

    kernel: str
    #: Of what kind it is, in the words of the field.
    kind: str
    old: str
    new: str
    #: How it is named: the beginning of a finding, or words of an error that ends the launch.
    named: str
    #: Part of the line that is named.
    at: str


BARRIER = "cuda.syncthreads()\n"
PLANTED = [
    Fault("array_sum", "missing barrier before a read", f"data[i]\n        {BARRIER}", "data[i]\n", "race", "tid + s"),
    Fault("array_sum", "missing barrier in a loop", f"s *= 2\n            {BARRIER}", "s *= 2\n", "race", "tid + s"),
    Fault("array_sum", "barrier in divergent code", f"s *= 2\n            {BARRIER}",
            f"    {BARRIER}            s *= 2\n", "divergent barrier", "                cuda.syncthreads"),
    Fault("array_sum", "off by one", "shr[tid + s]", "shr[tid + s + 1]", "out-of-bounds read", "tid + s + 1"),
    Fault("array_sum", "shared array too small", "array(N, int32)", "array(N // 2, int32)", "out-of-bounds write",
            "shr[tid] = data"),
    Fault("array_sum", "wrong launch", "array_sum[1, N]", "array_sum[2, N]", "out-of-bounds read", "= data[i]"),
    Fault("fast_matmul", "missing barrier behind a read", f"tx]\n        {BARRIER}", "tx]\n", "race", "tmp +="),
    Fault("fast_matmul", "missing guard", "if y < C.shape[0] and x < C.shape[1]:", "if True:", "out-of-bounds write",
            "C[y, x] ="),
    Fault("fast_matmul", "uninitialized shared memory", "        sB[ty, tx] = 0\n", "", "uninitialized read", "tmp +="),
    Fault("fast_matmul", "wrong launch", "(3, 2), (TPB, TPB)", "(3, 2), (TPB, 2 * TPB)", "out-of-bounds write",
            "sA[ty, tx] = 0"),
    Fault("solve_heat", "missing barrier of the grid", "        grid.sync()\n", "", "race", "data[i - 1] - (2"),
    Fault("solve_heat", "stencil in place", "next_data = buf_1", "next_data = buf_0", "race", "next_data[i] ="),
    Fault("solve_heat", "off by one", "elif i == len(data) - 1", "elif i == len(data)", "out-of-bounds read",
            "data[i - 1] - (2 * curr_temp) + data[i + 1]"),
    Fault("solve_heat", "negative index", "if i == 0:", "if i < 0:", "negative index", "+ data[i + 1])"),
    Fault("solve_heat", "block that leaves before others wait", "if i >= len(buf_0):",
            "if i >= len(buf_0) or cuda.blockIdx.x == 2:", "deadlock", "grid.sync()"),
    Fault("solve_heat", "uninitialized device memory", "(buf_0, buf_1, 6", "(buf_1, buf_0, 6", "uninitialized read",
            "curr_temp = data"),
    Fault("transpose", "bank conflicts", "TILE + 1)", "TILE)", "bank conflict", "= tile[tx, ty]"),
    Fault("transpose", "missing barrier before a read", f"    {BARRIER}", "", "race", "= tile[tx, ty]"),
    Fault("transpose", "uncoalesced access", "output[y, x] = tile[tx, ty]", "output[bx + tx, by + ty] = tile[ty, tx]",
            "sectors", "= tile[ty, tx]"),
    Fault("transpose", "guard of the wrong axis", "by + ty < input.shape[0] and bx + tx < input.shape[1]",
            "by + ty < input.shape[1] and bx + tx < input.shape[0]", "out-of-bounds read", "tile[ty, tx] ="),
    Fault("transpose", "result not computed", "transpose[(2, 2)", "transpose[(1, 2)", "unwritten result",
            "b.copy_to_host()"),
    Fault("transpose", "wrong launch", "(TILE, TILE)](", "(TILE, 2 * TILE)](", "more than 1024 threads",
            "transpose[(2"),
    Fault("transpose", "too much shared memory", "(TILE, TILE + 1)", "(TILE, 16 * TILE)", "bytes of static",
            "cuda.shared.array"),
    Fault("reduce", "missing syncwarp", "        cuda.syncwarp()\n        width", "        width", "race",
            "sm_this[laneid] = old"),
    Fault("reduce", "missing barrier before a read", f"tmp)\n    {BARRIER}", "tmp)\n", "race", "sm_partials[tid + 2"),
    Fault("reduce", "shared array too small", "(WARPS, 33)", "(WARPS - 1, 33)", "out of bounds", "sm_partials[warpid"),
    Fault("reduce", "array smaller than the launch", "reduce[2, 32 * WARPS](numbers(700)",
            "reduce[2, 32 * WARPS](numbers(200)", "out-of-bounds read", "tmp = arr[start]"),
    Fault("reduce", "race between blocks", "partials[blkid] =", "partials[0] =", "race", "partials[0] ="),
    Fault("reduce", "result not computed", "device_array(2", "device_array(4", "unwritten result", "copy_to_host"),
    Fault("find_rgb_value", "plain access beside atomics", "pos = cuda.atomic.add(lastindex, 0, 1)",
            "cuda.atomic.add(lastindex, 0, 1)\n                pos = lastindex[0] - 1", "race", "pos = lastindex"),
    Fault("find_rgb_value", "update that is not atomic", "pos = cuda.atomic.add(lastindex, 0, 1)",
            "pos = lastindex[0]\n                lastindex[0] += 1", "race", "lastindex[0] += 1"),
    Fault("find_rgb_value", "missing guard", " and y < image.shape[1]", "", "out-of-bounds read", "image[x, y, 0]"),
    Fault("find_rgb_value", "output too small", "in (90, 90, 1)", "in (5, 5, 1)", "out-of-bounds write",
            "matches1[pos] +="),
    Fault("find_rgb_value", "negative index", "matches2[pos]", "matches2[pos - 1]", "negative index", "matches2[pos"),
    Fault("convolve_2d", "index of the wrong axis", "data[i_k, j_h]", "data[j_h, i_k]", "out-of-bounds read", "s +="),
    Fault("convolve_2d", "stencil in place", "(data, kernel, out)\n    expected", "(data, kernel, data)\n    expected",
            "race", "out[i, j] = s"),
    Fault("convolve_2d", "missing return", "        return\n    s = 0", "        pass\n    s = 0",
            "out-of-bounds write", "out[i, j] = s"),
    Fault("step_free", "local array too small", "local.array(3, float64)", "local.array(2, float64)",
            "out-of-bounds write", "step[i] = xoro"),
    Fault("step_free", "uninitialized local memory", "for i in range(3):\n        step[i]",
            "for i in range(2):\n        step[i]", "uninitialized read", "length = math.sqrt"),
    Fault("step_free", "state that threads share", "random_step(step, rng_states, thread_id)\n    for",
            "random_step(step, rng_states, thread_id // 2)\n    for", "race", "step[i] = xoro"),
    Fault("step_free", "missing return", "        return\n    step =", "        pass\n    step =",
            "out-of-bounds write", "positions[thread_id, i] ="),
    Fault("step_free", "argument out of range", "states, 4, 0.5", "states, 5, 0.5", "out-of-bounds read", "g_x[m, t]"),
    Fault("dot", "lock without a fence", "        pass\n    cuda.threadfence()\n", "        pass\n",
            "race.*without cuda.threadfence", "c[0] += cache"),
    Fault("dot", "unlock without a fence", "    cuda.threadfence()\n    cuda.atomic.exch", "    cuda.atomic.exch",
            "race.*without cuda.threadfence", "c[0] += cache"),
    Fault("dot", "unlock that is not atomic", "cuda.atomic.exch(mutex, 0, 0)", "mutex[0] = 0",
            "race: mutex", "cas(mutex"),
    Fault("dot", "missing unlock", "        unlock(mutex)\n", "", "wait for ever", "while cuda.atomic.cas"),
    Fault("dot", "missing lock", "        lock(mutex)\n", "", "race", "c[0] += cache"),
    Fault("dot", "loop without end", "        i //= 2\n", "", "ended after", "cuda.syncthreads"),
    Fault("dot", "barrier in divergent code", f"index + i]\n        {BARRIER}", f"index + i]\n            {BARRIER}",
            "divergent barrier", "            cuda.syncthreads"),
    Fault("histogram", "dynamic shared memory too small", "4 * 40", "2 * 40", "out-of-bounds write", "counts[i] = 0"),
    Fault("histogram", "uninitialized shared memory", "        counts[i] = 0", "        pass", "uninitialized read",
            "counts, values[i]"),
    Fault("histogram", "missing barrier behind a write", f"= 0\n    {BARRIER}", "= 0\n", "race", "counts, values[i]"),
    Fault("histogram", "update that is not atomic", "cuda.atomic.add(counts, values[i], 1)",
            "counts[values[i]] += 1", "race", "counts[values[i]]"),
    Fault("histogram", "race between blocks", "cuda.atomic.add(bins, i, counts[i])", "bins[i] += counts[i]", "race",
            "bins[i] += counts"),
    Fault("histogram", "index that overflows", "counts, values[i], 1", "counts, np.int8(values[i] * 20), 1",
            "out-of-bounds atomic", "np.int8(values"),
    Fault("shuffle_sum", "shuffle in divergent code", "        total = x[i]\n    total = warp_sum(total)",
            "        total = warp_sum(x[i])", "does not take part", "shfl_down_sync"),
    Fault("shuffle_sum", "mask without the caller", "0xFFFFFFFF", "0x0000FFFF", "does not name it", "shfl_down_sync"),
    Fault("shuffle_sum", "update that is not atomic", "cuda.atomic.add(out, 0, total)", "out[0] += total", "race",
            "out[0] += total"),
    Fault("shuffle_sum", "missing guard", "if i < x.size:", "if True:", "out-of-bounds read", "total = x[i]"),
]  # fmt: skip


def run(kernel, path, text):
    """A launch of a kernel of a file: what its function gave, the report, and the error that ended it."""
    path.write_text(text)
    linecache.checkcache()
    names = {"__name__": path.stem}
    exec(compile(text, str(path), "exec"), names)
    with simulator.trace() as report:
        try:
            return names[f"launch_{kernel}"](), report, None
        except simulator.SimulationError as error:
            return None, report, error


def named(planted, path, report, error):
    """What the laboratory says that begins as it should: of each the numbers of the lines that it names in the file."""
    findings = [(f"{finding.kind}: {finding.details}", finding.sites) for finding in report.faults + report.remarks]
    findings += [("bank conflict", (entry.site,)) for entry in report.bank_conflicts if entry.degree > 4]
    findings += [("sectors", (entry.site,)) for entry in report.sectors if entry.efficiency < 0.3]
    for words, sites in findings:
        if re.match(planted.named, words):
            yield [
                int(line) for place, _, line in (site.rpartition(":") for site in sites) if place.endswith(path.name)
            ]
    if error is not None and planted.named in str(error):
        frames = traceback.extract_tb(error.__traceback__)
        said = re.findall(rf"{path.name}:(\d+)", str(error))
        yield [int(line) for line in said] + [frame.lineno for frame in frames if frame.filename == str(path)]


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_as_they_are(kernel, tmp_path):
    """Right results, and no alarm."""
    (got, expected), report, error = run(kernel, tmp_path / "as_it_is.py", SOURCE.read_text())
    assert error is None
    for one, other in zip(got, expected, strict=True) if isinstance(got, tuple) else [(got, expected)]:
        np.testing.assert_allclose(one, other, rtol=1e-6)
    assert report.clean, str(report)
    assert not report.remarks, str(report)


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: f"{planted.kernel}-{planted.kind.replace(' ', '_')}")
def test_a_planted_fault_is_named(planted, tmp_path):
    """In words, and with the line."""
    parts = re.split(r"^(?=# -- )", SOURCE.read_text(), flags=re.MULTILINE)
    mine = next(i for i, part in enumerate(parts) if part.startswith(f"# -- {planted.kernel}:"))
    assert parts[mine].count(planted.old) == 1
    parts[mine] = parts[mine].replace(planted.old, planted.new)
    path = tmp_path / "planted.py"
    simulator.activate(limit=0.5 if planted.named == "ended after" else 60)
    try:
        _, report, error = run(planted.kernel, path, "".join(parts))
    finally:
        simulator.activate()
    lines = "".join(parts).splitlines()
    found = [lines[number - 1] for numbers in named(planted, path, report, error) for number in numbers]
    assert any(planted.at in line for line in found), f"{found}\n{report}\n{error}"


def test_how_many_there_are():
    """Kinds, and kernels."""
    assert len(PLANTED) >= 40
    assert len({planted.kind for planted in PLANTED}) >= 20
    assert {planted.kernel for planted in PLANTED} == set(KERNELS)
