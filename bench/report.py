"""Tables from results: ``python -m bench.report`` writes those of docs/performance.md and docs/gpu.md.

``--check`` compares them.

A table stands between ``<!-- bench:NAME -->`` and ``<!-- /bench:NAME -->`` and is made from every file in
``bench/results`` whose ``benchmark`` is NAME, so that no figure in the text is typed by hand. The scripts print their
results through the same tables.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import command
from bench.command import MUCH, ROOT, Parser, Refused, start
from gpuconv.tuning.measure import speedup, spread

_MARKER = re.compile(r"^<!-- /?bench:[\w-]+ -->$", re.MULTILINE)
# No marker may stand inside a block: a forgotten end must not let the text up to the next one be replaced.
_BLOCK = re.compile(
    r"^<!-- bench:(?P<name>[\w-]+) -->\n(?:(?!<!-- /?bench:).*\n)*?<!-- /bench:(?P=name) -->$", re.MULTILINE
)


@dataclass(frozen=True)
class Table:
    """Cells as they are shown, the first column left-aligned and the others right-aligned."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    #: Whether the first column begins at the same place in each row of :meth:`plain`.
    left: bool = False

    def markdown(self) -> str:
        rule = ["---"] + ["---:"] * (len(self.header) - 1)
        lines = ["| " + " | ".join(cells) + " |" for cells in (self.header, rule, *self.rows)]
        return "\n".join([f"*{self.title}*", "", *lines])

    def plain(self) -> str:
        columns = list(zip(self.header, *self.rows, strict=True))
        widths = [max(map(len, column)) for column in columns]
        first = str.ljust if self.left else str.rjust
        lines = [
            "  ".join((str.rjust if at else first)(cell, widths[at]) for at, cell in enumerate(cells)).rstrip()
            for cells in (self.header, ["-" * width for width in widths], *self.rows)
        ]
        return "\n".join([self.title, *lines])

    def listed(self) -> str:
        """A cell a line, for terminals that are too narrow for the table; without the title."""
        width = max(map(len, self.header))
        blocks = ("\n".join(f"{n:>{width}}  {c}" for n, c in zip(self.header, row, strict=True)) for row in self.rows)
        return "\n\n".join(blocks)


# -- LeNet ------------------------------------------------------------------------------------------------------------


def lenet_heading(document: dict[str, Any]) -> str:
    """The circumstances under which the figures were measured, in one line."""
    machine, settings = document["machine"], document["settings"]
    versions = machine["versions"]
    peers = [f"{peer} {versions[peer]}" for peer in settings["peers"]]
    commit = machine["commit"] or "not committed"
    facts = [
        f"{machine['cpu']}, {machine['cores']} cores",
        f"{settings['threads']} thread{'s' * (settings['threads'] > 1)} each",
        f"gpuconv {versions.get('gpuconv', 'not installed')} ({settings['backend']} backend)",
        *peers,
        f"numpy {versions['numpy']}",
        f"Python {versions['python']}",
        f"commit {commit}{' with changes' if machine['dirty'] else ''}",
        document["date"][:10],
    ]
    if (machine["others_busy"] or 0) > MUCH:
        facts.append(f"other processes took {machine['others_busy']:.0%} of the processors: not to be relied upon")
    return " · ".join(facts)


def lenet_tables(document: dict[str, Any]) -> list[Table]:
    """One table for each task that was timed, and one of the memory if that was measured."""
    titles = {
        "training": "LeNet-5, training step, float32, images/s",
        "inference": "LeNet-5, inference, float32, images/s",
    }
    tables = [
        _rates_table(title, [result for result in document["results"] if result["task"] == task])
        for task, title in titles.items()
    ]
    tables.append(_memory_table(document["memory"]))
    return [table for table in tables if table.rows]


def _rates_table(title: str, results: list[dict[str, Any]]) -> Table:
    if not results:
        return Table(title, [], [])
    labels, peers = list(results[0]["images_per_second"]), list(results[0]["speedup"])
    header = ["batch", "gpuconv ms", *labels, *(f"× {peer}" for peer in peers)]
    rows = [
        [
            f"{result['batch']:,}",
            _milliseconds(result),
            *(f"{result['images_per_second'][label]['median']:,.0f}" for label in labels),
            *(_ratio(result["speedup"][peer]) for peer in peers),
        ]
        for result in results
    ]
    return Table(title, header, rows)


def _milliseconds(result: dict[str, Any]) -> str:
    value = 1000 * result["batch"] / result["images_per_second"]["gpuconv"]["median"]
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def _ratio(speedup: dict[str, Any]) -> str:
    return f"{speedup['median']:.2f} ({speedup['low']:.2f}–{speedup['high']:.2f})"


def _memory_table(results: list[dict[str, Any]]) -> Table:
    title = "LeNet-5, training, peak memory of the process in MB (in brackets what the steps added)"
    if not results:
        return Table(title, [], [])
    labels = list(results[0]["processes"])
    rows = []
    for result in results:
        processes = [result["processes"][label] for label in labels]
        cells = (f"{mb['peak_mb']:.0f} (+{mb['peak_mb'] - mb['ready_mb']:.0f})" for mb in processes)
        rows.append([f"{result['batch']:,}", *cells])
    return Table(title, ["batch", *labels], rows)


def _lenet_markdown(document: dict[str, Any]) -> str:
    note = "× PEER: how many times faster gpuconv is, median and quartiles of the ratios of samples taken in turns"
    if "torch" in document["settings"]["peers"]:
        note += "; for torch, against the better of its two layouts"
    parts = [lenet_heading(document), *(table.markdown() for table in lenet_tables(document)), note + "."]
    return "\n\n".join(parts if document["settings"]["peers"] else parts[:-1])


# -- GPU --------------------------------------------------------------------------------------------------------------


def gpu_heading(document: dict[str, Any]) -> str:
    """The circumstances under which the figures were measured, in one line."""
    machine = document["machine"]
    gpu, versions = machine["gpu"], {**machine["versions"], **machine["gpu"]["versions"]}
    facts = [
        f"{gpu['name']}, compute capability {gpu['compute_capability']}, {gpu['multiprocessors']} multiprocessors",
        f"driver {gpu['driver'] or 'unknown'} (CUDA {gpu['driver_cuda']})",
        *(f"{name} {version}" for name, version in gpu["versions"].items()),
        f"cuDNN {gpu['cudnn']}, TF32 {'ON' if any(gpu['tf32'].values()) else 'off'}",
        f"gpuconv {versions.get('gpuconv', 'not installed')}, commit {machine['commit'] or 'not committed'}"
        f"{' with changes' if machine['dirty'] else ''}",
        document["date"][:10],
    ]
    return " · ".join(facts) + ("" if document["complete"] else " · not complete")


def gpu_tables(document: dict[str, Any]) -> list[Table]:
    """A row for each operation and layer: the fastest kernel, the one that the rule takes, and PyTorch."""
    header = ["operation", "layer", "right", "best", "µs", "TFLOP/s", "GB/s", "the rule's", "µs", "torch µs", "× torch"]
    dtype = document["settings"].get("dtype", "float32")
    return [Table(f"Kernels beside PyTorch, {dtype}", header, [_gpu_row(result) for result in document["results"]])]


def _gpu_row(result: dict[str, Any]) -> list[str]:
    right = sum(kernel["fault"] is None for kernel in result["kernels"])
    row = [result["operation"], result["layer"], f"{right} of {len(result['kernels'])}"]
    timed = [kernel for kernel in result["kernels"] if kernel["us"]]
    if not timed:
        return row + ["-"] * 8
    best = min(timed, key=lambda kernel: spread(kernel["us"]).median)
    seconds = spread(best["us"]).median / 1e6
    rule = next((kernel for kernel in timed if kernel["chosen"]), None)
    peer = result["peer_us"]
    return [
        *row,
        _tiling(best),
        _us(best["us"]),
        f"{result['flop'] / seconds / 1e12:.2f}",
        f"{result['bytes'] / seconds / 1e9:,.0f}",
        "-" if rule is None else "the same" if rule is best else _tiling(rule),
        _us(rule["us"]) if rule else "-",
        _us(peer) if peer else "-",
        _ratio(vars(speedup(best["us"], peer))) if peer else "-",
    ]


def _us(times: Sequence[float]) -> str:
    return f"{spread(times).median:,.1f}"


def _tiling(kernel: dict[str, Any]) -> str:
    """Variant and the numbers of its tiling."""
    numbers = re.findall(r"=([\w.]+)", kernel["tiling"])
    return " ".join([kernel["variant"], "·".join(numbers)]).strip()


def _gpu_markdown(document: dict[str, Any]) -> str:
    note = (
        "right: kernels (variant × tiling) that agree with a float64 reference; best, the rule's: variant, and the "
        "numbers of its tiling in their order; µs: medians of the device's times, cold L2 cache; × torch: how many "
        "times faster the best is, median and quartiles of the ratios of samples taken in turns."
    )
    if document["settings"]["quick"]:
        note += " Of each variant its first three tilings, and no others, were run."
    return "\n\n".join([gpu_heading(document), *(table.markdown() for table in gpu_tables(document)), note])


def lenet_gpu_tables(document: dict[str, Any]) -> list[Table]:
    """The steps of all batches, inference, and for each batch the kernels of our step beside their floors."""
    results = document["results"]
    labels = list(dict.fromkeys(label for result in results for label in result["seconds"]))
    peers = list(dict.fromkeys(label for result in results for label in result["speedup"]))
    rows = [
        [
            f"{result['batch']:,}",
            *(f"{1e6 * spread(us).median:.1f}" if (us := result["seconds"].get(label)) else "-" for label in labels),
            *(_ratio(result["speedup"][peer]) if peer in result["speedup"] else "-" for peer in peers),
        ]
        for result in results
    ]
    header = ["batch", *labels, *(f"× {peer}" for peer in peers)]
    tables = [Table("LeNet-5, training step, float32, µs", header, rows)]
    inference = document.get("inference", {"seconds": {}, "failed": {}})
    if inference["seconds"]:
        tables.append(_inference_table(inference))
    failures = [(f"batch {result['batch']:,}", result) for result in results] + [("inference", inference)]
    if failed := [[where, label, why] for where, result in failures for label, why in result["failed"].items()]:
        tables.append(Table("What failed", ["", "which", "why"], failed))
    return [*tables, *(_step_table(result) for result in results if result["kernels"])]


def _inference_table(inference: dict[str, Any]) -> Table:
    rows = [
        [label, f"{1e6 * spread(us).median:.1f}", _ratio(ratio) if (ratio := inference["speedup"].get(label)) else "-"]
        for label, us in inference["seconds"].items()
    ]
    return Table("LeNet-5, logits of one image, float32", ["", "µs", "× as long as gpuconv"], rows)


def _step_table(result: dict[str, Any]) -> Table:
    rows = [
        [
            one["kernel"],
            *(f"{one[name]:,}" for name in ("blocks", "threads", "bytes", "flop")),
            f"{one['us']:.2f}",
            f"{one['floor_us']:.2f}",
            f"{one['floor_us'] / one['us']:.0%}",
        ]
        for one in result["kernels"]
    ]
    us, floor = (sum(one[name] for one in result["kernels"]) for name in ("us", "floor_us"))
    rows.append([f"{len(rows)} kernels", "", "", "", "", f"{us:.2f}", f"{floor:.2f}", f"{floor / us:.0%}"])
    header = ["kernel", "blocks", "threads", "bytes", "FLOP", "µs", "floor µs", "share"]
    return Table(f"Kernels of the step at batch {result['batch']:,}", header, rows)


def _lenet_gpu_markdown(document: dict[str, Any]) -> str:
    note = (
        "µs of a step: medians, the host ahead of the device; of one image: until its logits are there. × PEER: how "
        "many times faster gpuconv is, median and quartiles of the ratios of samples taken in turns."
    )
    return "\n\n".join([gpu_heading(document), *(table.markdown() for table in lenet_gpu_tables(document)), note])


#: What bench.overhead measures, by the names in its files.
_OVERHEAD = {
    "launch_us": "a launch, by its plan",
    "primitive_us": "ReLU, by the backend's primitive",
    "eager_step_us": "a step of LeNet, eager",
    "captured_call_us": "a captured step, inputs on the device",
    "captured_call_from_host_us": "a captured step, inputs from the host",
}


def _overhead_markdown(document: dict[str, Any]) -> str:
    figures, before = document.get("with_driver", document), document.get("before", {})
    where = document.get("device", "no GPU: arrays are stand-ins, launches are counted, not made")
    described = document["machine"]
    commit = f"commit {described['commit']}" + (f", before: {before['commit']}" if before else "")
    rows = [
        [what, f"{figures[name]:.1f}", *([f"{before[name]:.1f}" if name in before else "-"] if before else [])]
        for name, what in _OVERHEAD.items()
    ]
    table = Table("Microseconds of the host, batch 64", ["", "µs", *(["before"] if before else [])], rows)
    return f"{where} · {described['cpu']}, Python {described['versions']['python']}, {commit}\n\n{table.markdown()}"


#: benchmark -> its part of a README, from one file of results
RENDERERS: dict[str, Callable[[dict[str, Any]], str]] = {
    "lenet": _lenet_markdown,
    "gpu": _gpu_markdown,
    "lenet-gpu": _lenet_gpu_markdown,
    "overhead": _overhead_markdown,
}
#: benchmark -> the command that measures it
_COMMANDS = {
    "lenet": "bench.lenet --json bench/results/lenet.json",
    "gpu": "bench.gpu --json bench/results/gpu.json",
    "lenet-gpu": "bench.lenet --backend cuda --json bench/results/lenet_gpu.json",
    "overhead": "bench.overhead --json bench/results/overhead.json",
}

# -- README -----------------------------------------------------------------------------------------------------------


def render(readme: str, results: Path) -> str:
    """The text of a README with every block between markers made anew from the files in the folder ``results``.

    Raises:
        Refused: a marker without its counterpart or of an unknown name, no results for it, or an unreadable file.
    """
    blocks = list(_BLOCK.finditer(readme))
    alone = _MARKER.findall(_BLOCK.sub("", readme))
    if alone:
        raise Refused(f"markers without counterpart: {', '.join(alone)}")
    documents = [command.read(path) for path in sorted(results.glob("*.json"))] if blocks else []

    def block(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in RENDERERS:
            raise Refused(f"marker bench:{name}: no such benchmark; there are {', '.join(RENDERERS)}")
        found = [document for document in documents if document["benchmark"] == name]
        if not found:
            raise Refused(f"marker bench:{name}: no results in {results.name}; run python -m {_COMMANDS[name]}")
        body = "\n\n".join(map(RENDERERS[name], found))
        return f"<!-- bench:{name} -->\n{body}\n<!-- /bench:{name} -->"

    return _BLOCK.sub(block, readme)


def _run(argv: Sequence[str] | None) -> int:
    parser = Parser("report", (__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a table is not current")
    pages = [ROOT / "docs" / "performance.md", ROOT / "docs" / "gpu.md"]
    parser.add_argument(
        "--readme", type=Path, action="append", help="a page; default: docs/performance.md and docs/gpu.md"
    )
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results", help="default: bench/results")
    arguments = parser.parse_args(argv)
    return max([_written(page, arguments.results, arguments.check) for page in arguments.readme or pages])


def _written(page: Path, results: Path, check: bool) -> int:
    """Write the tables of a page, or only tell; returns the exit code."""
    try:
        old = page.read_text(encoding="utf-8")
    except OSError as error:
        raise Refused(str(error)) from None
    new = render(old, results)
    if new == old:
        print(f"{page.name}: {'tables are current' if _BLOCK.search(old) else 'no markers, nothing to do'}")
        return 0
    if not check:
        page.write_text(new, encoding="utf-8")
        print(f"{page.name}: tables written")
        return 0
    difference = difflib.unified_diff(old.splitlines(), new.splitlines(), "is", "should be", lineterm="", n=0)
    print(f"{page.name}: tables differ from the results; run python -m bench.report", *difference, sep="\n")
    return command.WRONG


def main(argv: Sequence[str] | None = None) -> int:
    """Write the tables, or compare them; 1 if one is not current. See :func:`bench.command.answer`."""
    return command.answer("bench.report", _run, argv)


if __name__ == "__main__":
    start(main)
