"""The documentation is true: its code runs, its links lead somewhere, its make targets exist."""

import importlib
import inspect
import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from website import drawings, reference, running

import gpuconv
from gpuconv import tuning, use_backend

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
CONCEPTS = sorted((DOCS / "concepts").glob("*.md"))
#: Pages that show what their code prints; any backend prints the same, and NumPy's has nothing to compile.
TAUGHT = [*CONCEPTS, *(DOCS / name for name in ("README.md", "from-keras.md", "from-pytorch.md"))]
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md"), *(ROOT / "examples").glob("*.md")]) + CONCEPTS
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
TUTORIAL = DOCS / "tutorial.md"


def path_of(page):
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", TAUGHT, ids=path_of)
def test_a_page_shows_what_its_code_prints(page, tmp_path, monkeypatch):
    """The code runs without error or warning, and prints what stands below it; the page of a concept has a picture."""
    monkeypatch.chdir(tmp_path)
    with use_backend("numpy"):
        running.run(page)
    assert any(cell.shown for cell in running.cells(page))
    assert page not in CONCEPTS or page.name == "README.md" or f"../images/{page.stem}.svg" in page.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if page not in (TUTORIAL, *TAUGHT)], ids=path_of)
def test_python_code_of_a_page_runs(page, tmp_path, monkeypatch):
    """The blocks of a page run without error or warning, and print what the page says; nothing that they set stays."""
    monkeypatch.chdir(tmp_path)
    wish = tuning.wish("conv2d")
    if "lab.interpret(" in page.read_text():  # needs the compiler, which this process may not have
        # And the compiler reads the source again, for its lines.
        (tmp_path / "page.py").write_text("\n".join(cell.code for cell in running.cells(page)))
        environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "0", "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-W", "error", "page.py"], env=environment, check=True)
    else:
        running.run(page)
        assert tuning.wish("conv2d") == wish


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=path_of)
def test_a_notebook_runs(notebook, tmp_path):
    """On a machine without a GPU: its cells run one after the other, without a warning, and show something."""
    command = [sys.executable, "-W", "error", str(DOCS / "website" / "running.py"), str(notebook)]
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_ENABLE_CUDASIM"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"9\d\.\d% of 2,000 new digits are right", done.stdout)
    assert done.stdout.count("sectors, conflict degree") == 3 + 1  # the cell's text, and three tilings
    assert done.stdout.count("data:image/png") == 2


def test_wrong_output_of_a_page_is_noticed(tmp_path):
    """A page that shows another result than its code prints fails; dots stand for anything."""
    page = tmp_path / "page.md"
    text = "```python\nx = 1\nprint(x)\n```\ntext\n```python\nprint(x + 1)\n```\n```output\n{}\n```\n"
    for shown in ("1\n2", "...\n2", "1\n..."):
        page.write_text(text.format(shown))
        assert running.run(page)["x"] == 1
    for shown in ("1\n3", "2", "1\n2\n3"):
        page.write_text(text.format(shown))
        with pytest.raises(running.WrongOutput, match=r"page.md shows"):
            running.run(page)


@pytest.mark.slow
def test_the_tutorial_quotes_what_its_kernels_report(tmp_path, monkeypatch):
    """Its code runs; each message and each figure that it shows is what its code gives, word by word, line by line."""
    monkeypatch.chdir(tmp_path)
    page = TUTORIAL
    names = running.run(page)
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
        rows.append(f"| {name}, batch {key[1]} | Intel Xeon, 2 cores | {figures} |")
    gpu = results["lenet-gpu-h100-2026-11-28"]
    (step,) = (one for one in gpu["results"] if one["batch"] == 64)
    for name, one in ("training step, batch 64", step), ("logits of one image", gpu["inference"]):
        ours, peer = (statistics.median(one["seconds"][label]) * 1e6 for label in ("gpuconv", "torch graph"))
        figures = f"{ours:.1f} µs | {peer:.1f} µs | {one['speedup']['torch graph']['median']:.1f} ×"
        rows.append(f"| {name} | NVIDIA H100 | {figures} |")
    readme = (ROOT / "README.md").read_text()
    assert [row for row in rows if row not in readme] == []


def anchors_of(page):
    """The anchors that GitHub makes of a page's headings, and MkDocs by its settings."""
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    found = []
    for heading in re.findall(r"^#+ (.*)$", prose, re.MULTILINE):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        name = re.sub(r"[^\w\- ]", "", text.replace("`", "")).replace(" ", "-")
        found.append(name)
    return found


@pytest.mark.parametrize("page", [*PAGES, ROOT / "bench" / "README.md", *NOTEBOOKS], ids=path_of)
def test_links_of_a_page_lead_somewhere(page):
    """Every relative link and picture of a page is a file of the repository, and every anchor a heading of it."""
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for found in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)|<img src=\\?\"([^\"\\]+)", prose):
        target, anchor = found[0] or found[2], found[1]
        if not target.startswith(("http://", "https://")):
            file = page.parent / target if target else page
            assert file.exists(), target
            assert not anchor or anchor in anchors_of(file), f"{target}#{anchor}"


def test_every_public_name_is_in_the_reference():
    """Each name of each public module has a docstring and its place on a page, and no place is there twice."""
    pages = reference.pages()
    directives = re.findall(r"^::: (\S+)", "\n".join(page.text for page in pages), re.MULTILINE)
    assert len(directives) == len(set(directives)) > 500
    places = {reference.place_of(named(directive)) for directive in directives}
    text = "\n".join(page.text for page in pages)
    undocumented, missing = [], []
    for module in public_modules():
        for name in reference.public_names(module):
            value = getattr(module, name)
            place = reference.place_of(value)
            if inspect.ismodule(value):
                continue
            said = reference.description(module, name) if place is None else inspect.getdoc(value)
            there = place in places if place and place[0].startswith("gpuconv") else f"| `{name}` |" in text
            missing += [f"{module.__name__}.{name}"] * (not there)
            undocumented += [f"{module.__name__}.{name}"] * (not said)
    for name in (name for name in dir(gpuconv.Tensor) if not name.startswith("_")):
        undocumented += [f"Tensor.{name}"] * (not inspect.getdoc(getattr(gpuconv.Tensor, name)))
    assert (missing, undocumented) == ([], [])


def named(dotted):
    """What a dotted name stands for."""
    module, _, name = dotted.rpartition(".")
    return getattr(importlib.import_module(module), name)


def public_modules():
    """The modules that users import names from: the package, its packages, and what these export."""
    names = ["gpuconv", "gpuconv.autograd", "gpuconv.functional", "gpuconv.plots", "gpuconv.captured_step"]
    for package in ("nn", "optim", "models", "data", "training", "storage", "onnx", "explorer", "backends", "tuning"):
        names.append(f"gpuconv.{package}")
    names += ["gpuconv.parallel", "gpuconv.cuda", "gpuconv.geometry"]
    names += ["gpuconv.lab", "gpuconv.lab.simulator", "gpuconv.lab.ptx"]
    names += ["gpuconv.nn.init", "gpuconv.nn.utils", "gpuconv.nn.functional", "gpuconv.optim.lr_scheduler"]
    names += ["gpuconv.kernels", "gpuconv.kernels.device", "gpuconv.kernels.variant"]
    modules = [importlib.import_module(name) for name in names]
    exported = [value for module in modules for value in vars(module).values() if inspect.ismodule(value)]
    known = {module.__name__ for module in modules}
    listed = {f"{m.__name__}.{n}" for m in modules for n in getattr(m, "__all__", ())}
    assert [m.__name__ for m in exported if m.__name__ in listed and m.__name__ not in known] == []
    return modules


def test_every_command_is_in_the_reference():
    """Each command of `gpuconv` has its section, and each of its options a row."""
    page = reference.pages()[-1].text
    commands = dict(reference.commands())
    assert {"train", "predict", "explore", "check"} <= set(commands)
    for name, command in commands.items():
        assert f"## gpuconv {name}" in page
        for option in command.params:
            assert option.param_type_name == "argument" or f"`{option.opts[0]}`" in page


def test_commands_that_pages_show_exist():
    """A page never shows a command of `gpuconv`, or an option of one, that there is not."""
    commands = {name: {o for p in c.params for o in (*p.opts, *p.secondary_opts)} for name, c in reference.commands()}
    for page in PAGES:
        blocks = "".join(re.findall(r"^```\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL))
        for name, rest in re.findall(r"^(?:\$ )?gpuconv ([a-z]\w*)([^#\n]*)", blocks, re.MULTILINE):
            assert name in commands, f"{page.name}: gpuconv {name}"
            unknown = {word.split("=")[0] for word in rest.split() if word.startswith("--")} - commands[name]
            assert unknown <= {"--help", "--debug"}, f"{page.name}: gpuconv {name} {unknown}"


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "filters")) for n in drawings.PICTURES]
)
def test_pictures_are_what_the_script_draws(name):
    """`python docs/website/drawings.py` would change nothing."""
    assert (drawings.FOLDER / f"{name}.svg").read_text() == drawings.source(name)


def test_make_targets_that_pages_name_exist():
    """A page never names a make target that the Makefile does not have."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        named = set(re.findall(r"`make ([a-z-]+)`|^make ([a-z-]+)", page.read_text(), re.MULTILINE))
        assert {a or b for a, b in named} <= targets, page.name
