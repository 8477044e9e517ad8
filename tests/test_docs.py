"""The documentation is true: its code runs, its links lead somewhere, its make targets exist."""

import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("*.md")])
TUTORIAL = ROOT / "docs" / "tutorial.md"


def code_of(page):
    """The Python blocks of a page, one after the other as a reader would type them."""
    return "\n".join(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL))


def names_of(page):
    """What they define."""
    names = {"__name__": "__main__"}
    exec(compile(code_of(page), f"{page.stem}.py", "exec"), names)
    return names


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if page != TUTORIAL], ids=lambda p: str(p.relative_to(ROOT)))
def test_python_code_of_a_page_runs(page, tmp_path, monkeypatch, capsys):
    """The blocks of a page run without error or warning."""
    monkeypatch.chdir(tmp_path)
    if "lab.interpret(" in code_of(page):  # needs the compiler, which this process may not have
        (tmp_path / "page.py").write_text(code_of(page))
        environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "0", "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-W", "error", "page.py"], env=environment, check=True)
    else:
        names_of(page)


@pytest.mark.slow
def test_the_tutorial_quotes_what_its_kernels_report(tmp_path, monkeypatch):
    """Its code runs; each message and each figure that it shows is what its code gives, word by word, line by line."""
    monkeypatch.chdir(tmp_path)
    page = TUTORIAL
    names = names_of(page)
    kernels = ("no_barrier", 32), ("short_halo", 32), ("ragged", 20), ("early_return", 20)
    reported = [str(names[report]) for report in ("coalesced", "strided", "halo", "product")]
    reported += [str(names["first_fault"](names[kernel], outputs)) for kernel, outputs in kernels]
    reported = re.sub(r"tutorial\.py:(\d+)", r"line \1", "\n".join(reported))
    quotes = re.findall(
        r"^```\n((?:1 launch|  shared|  global|race|uninit|out-of|divergent).*?)^```", page.read_text(), re.M | re.S
    )
    assert len(quotes) == 7
    for quote in quotes:
        for line in [" ".join(quote.split())] if not quote.startswith(("1", " ")) else quote.splitlines():
            assert line in reported, line
    first = names["sectors_read"](names["coalesced"])
    for kernel, report in (
        ("naive", "coalesced"),
        ("swapped", "strided"),
        ("tiled", "halo"),
        ("implicit_gemm", "product"),
    ):
        requests = sum(entry.requests for entry in names[report].sectors if entry.access == "read")
        sectors = names["sectors_read"](names[report])
        assert (
            f"| `{kernel}` | {requests:,} | {sectors:,} | {sectors / first:.0%} |".replace("%", " %")
            in page.read_text()
        )


def test_the_tutorial_finds_float64_in_machine_code():
    """Its script for the real compiler counts float64 instructions for a literal 0.0, and none for float32(0)."""
    page = TUTORIAL.read_text()
    (script,) = re.findall(r"^```\n(from numba import cuda.*?)^```", page, re.MULTILINE | re.DOTALL)
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "0"}
    command = [sys.executable, "-c", script]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert re.fullmatch(r"literal [1-9]\d*\ntyped 0\n", said)


def test_the_first_table_of_the_readme_is_what_was_measured():
    """Its figures are those of bench/results: medians, and the speedup over the faster of PyTorch's layouts."""
    results = {
        name: json.loads((ROOT / "bench" / "results" / f"{name}.json").read_text())
        for name in ("lenet", "lenet-gpu-h100-2026-11-28")
    }
    rows = []
    cpu = {(one["task"], one["batch"]): one for one in results["lenet"]["results"]}
    for name, key in ("training", ("training", 64)), ("inference", ("inference", 256)):
        rate, speedup = cpu[key]["images_per_second"], cpu[key]["speedup"]["torch"]
        ours, peer = rate["gpuconv"]["median"], rate[speedup["against"]]["median"]
        figures = f"{ours:,.0f} images/s | {peer:,.0f} images/s | {speedup['median']:.1f} ×"
        rows.append(f"| {name}, batch {key[1]} | AMD EPYC, 2 cores | {figures} |")
    gpu = results["lenet-gpu-h100-2026-11-28"]
    (step,) = (one for one in gpu["results"] if one["batch"] == 64)
    for name, one in ("training step, batch 64", step), ("logits of one image", gpu["inference"]):
        ours, peer = (statistics.median(one["seconds"][label]) * 1e6 for label in ("gpuconv", "torch graph"))
        figures = f"{ours:.1f} µs | {peer:.1f} µs | {one['speedup']['torch graph']['median']:.1f} ×"
        rows.append(f"| {name} | NVIDIA H100 | {figures} |")
    readme = (ROOT / "README.md").read_text()
    assert [row for row in rows if row not in readme] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_of_a_page_lead_somewhere(page):
    """Every relative link and picture of a page is a file of the repository."""
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)|<img src=\"([^\"]+)\"", prose):
        target = "".join(target)
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), target


def test_make_targets_that_pages_name_exist():
    """A page never names a make target that the Makefile does not have."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        named = set(re.findall(r"`make ([a-z-]+)`|^make ([a-z-]+)", page.read_text(), re.MULTILINE))
        assert {a or b for a, b in named} <= targets, page.name
