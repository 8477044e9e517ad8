"""How far the rule of tuning is from the best that was measured: ``python -m bench.rules RESULTS.json...``.

``RESULTS.json`` is what ``bench.gpu`` writes. For each operation and layer the table has what the rule took when it was
measured, and what it takes now, each as its time over that of the fastest kernel that is right. A tiling that was not
measured (``--quick`` measures the first three of each variant) has no time, and shows as such. Below stands the worst
ratio. Several files of one GPU are one table: of a kernel that was timed more than once, the run with the fastest
sample counts.

A second table is of the variants that estimate how long they take (``estimate(geometry, tiling)``): how far that is
from what was measured.

A kernel's time is that of its fastest sample: whatever disturbs a sample only adds to it (``--median`` takes the
median). Where the median is more than a tenth longer, the layer is marked ``~``: somebody else was at work.

``--winners`` prints instead, as JSON, the kernels of convolutions that beat what the rule takes now by more than 3 %:
what ships as ``gpuconv/tuning/defaults.json``. There the last file that speaks of a layer counts.
"""

from __future__ import annotations

import ast
import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench import command, report
from bench.command import Parser, Refused, say, start
from gpuconv import geometry as geometries
from gpuconv import kernels, tuning
from gpuconv.tuning import measure, store

#: Median over fastest sample, from which on a kernel counts as disturbed.
_DISTURBED = 1.1
_GEOMETRIES = {name: kind for name, kind in vars(geometries).items() if name.endswith("Geometry")}


def parsed(text: str) -> Any:
    """A geometry from its ``repr``: dataclasses and tuples of ``gpuconv.geometry``, numbers, tuples of them.

    Raises:
        Refused: anything else.
    """

    def value(node: ast.expr) -> Any:
        if isinstance(node, ast.Tuple):
            return tuple(map(value, node.elts))
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _GEOMETRIES:
            return _GEOMETRIES[node.func.id](**{str(word.arg): value(word.value) for word in node.keywords})
        raise Refused(f"not a geometry: {text}")

    try:
        return value(ast.parse(text, mode="eval").body)
    except (SyntaxError, TypeError) as error:
        raise Refused(f"not a geometry: {text} ({error})") from None


def read(path: Path) -> dict[str, Any]:
    """The results in a file, but for those of operations that have no kernels any more, which one line names.

    Raises:
        Refused: it cannot be read, or holds something else.
    """
    document = command.read(path, "gpu")
    known = [result for result in document["results"] if result["operation"] in kernels.VARIANTS]
    if gone := {result["operation"] for result in document["results"]} - {result["operation"] for result in known}:
        say(f"{path}: passed over, as there are no kernels for them any more: {', '.join(sorted(gone))}")
    return {**document, "results": known}


def timed(result: dict[str, Any], statistic: Any = min) -> dict[tuple[str, str], float]:
    """Microseconds of each kernel that is right and was timed, by variant and tiling; a statistic of its samples."""
    found = [kernel for kernel in result["kernels"] if kernel["us"] and kernel["fault"] is None]
    return {(kernel["variant"], kernel["tiling"]): statistic(kernel["us"]) for kernel in found}


def disturbed(kernel: dict[str, Any]) -> bool:
    """Whether many samples of a kernel took longer than the fastest one."""
    return bool(kernel["us"]) and statistics.median(kernel["us"]) > _DISTURBED * min(kernel["us"])


def _label(name: tuple[str, str]) -> str:
    return f"{name[0]} {name[1].removeprefix('Tiling(').removesuffix(')')}"


def rule_of(result: dict[str, Any]) -> tuple[str, str]:
    """Variant and tiling that the rule takes now."""
    choice = tuning.choose(result["operation"], parsed(result["geometry"]))
    if choice.source != "rule":
        raise Refused(f"{tuning.ENVIRONMENT_VARIABLE} is set: it would decide instead of the rule; unset it")
    return choice.variant, repr(choice.tiling)


def _over(times: dict[tuple[str, str], float], name: tuple[str, str] | None) -> str:
    return f"{times[name] / min(times.values()):.2f}" if name in times else "not measured"


def joined(documents: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One document for each GPU, of all that was measured on it.

    A kernel that several files have is taken as the one with the fastest sample has it, of those that were not
    disturbed if there are any. What the last file took is what was taken.
    """
    found: dict[str, dict[str, Any]] = {}
    for document in documents:
        whole = found.setdefault(document["machine"]["gpu"]["name"], {"results": {}})
        results = whole["results"]
        whole.update({**document, "results": results})
        for result in document["results"]:
            place = result["operation"], result["layer"], result["geometry"]
            known = {_name(one): one for one in results.get(place, {}).get("kernels", ())}
            if any(kernel["chosen"] for kernel in result["kernels"]):
                known = {name: {**one, "chosen": False} for name, one in known.items()}
            for kernel in result["kernels"]:
                if (old := known.get(_name(kernel))) and _reliability(old) > _reliability(kernel):
                    kernel = {**old, "chosen": kernel["chosen"]}
                known[_name(kernel)] = kernel
            results[place] = {**result, "kernels": [*known.values()]}
    return [{**whole, "results": [*whole["results"].values()]} for whole in found.values()]


def _name(kernel: dict[str, Any]) -> tuple[str, str]:
    return kernel["variant"], kernel["tiling"]


def _reliability(kernel: dict[str, Any]) -> tuple[bool, bool, float]:
    """What is larger tells more: right and timed, not disturbed, fast."""
    right = bool(kernel["us"]) and kernel["fault"] is None
    return right, not disturbed(kernel), -min(kernel["us"]) if right else 0.0


def ratios(document: dict[str, Any], statistic: Any = min) -> dict[str, float | None]:
    """What the rule takes now, over the best that was measured in peace; None where it was not measured.

    By operation and layer.
    """
    found: dict[str, float | None] = {}
    for result in document["results"]:
        quiet = {**result, "kernels": [one for one in result["kernels"] if not disturbed(one)]}
        if times := timed(quiet, statistic):
            taken = times.get(rule_of(result))
            found[f"{result['operation']} {result['layer']}"] = taken and taken / min(times.values())
    return found


def worst(document: dict[str, Any], statistic: Any = min) -> str:
    """The rule's worst ratio, in words."""
    found = ratios(document, statistic)
    known = {name: ratio for name, ratio in found.items() if ratio is not None}
    if not known:
        return "worst: nothing that the rule takes now was measured in peace"
    name = max(known, key=known.__getitem__)
    silent = [name for name in found if name not in known]
    rest = f"; not measured: {', '.join(silent)}" if silent else ""
    return f"worst: {known[name]:.2f}, {name}, of {len(known)} layers{rest}"


def estimates(document: dict[str, Any], statistic: Any = min) -> report.Table | None:
    """A row for each variant that estimates its time: by how much it misses what was measured in peace."""
    misses: dict[tuple[str, str], dict[str, float]] = {}
    for result in document["results"]:
        geometry = parsed(result["geometry"])
        for kernel in result["kernels"]:
            operation, variant = result["operation"], kernel["variant"]
            if variant not in kernels.VARIANTS[operation] or disturbed(kernel):
                continue
            module = kernels.load(operation, variant)
            if not hasattr(module, "estimate") or not (times := timed({"kernels": [kernel]}, statistic)):
                continue
            tiling = next((one for one in module.tilings(geometry) if repr(one) == kernel["tiling"]), None)
            if tiling is not None:
                miss = module.estimate(geometry, tiling) / times[_name(kernel)]
                misses.setdefault((operation, variant), {})[f"{result['layer']} {_label(_name(kernel))}"] = miss
    rows = []
    for (operation, variant), found in misses.items():
        far = {name: abs(math.log(miss)) for name, miss in found.items()}
        name = max(far, key=far.__getitem__)
        mean = math.sqrt(statistics.fmean(value**2 for value in far.values()))
        rows.append([f"{operation} {variant}", str(len(found)), f"{mean:.0%}", f"{found[name]:.2f}", name])
    header = ["variant", "kernels", "mean miss", "worst", "of"]
    title = f"{document['machine']['gpu']['name']}: estimated over measured time"
    return report.Table(title, header, rows, left=True) if rows else None


def table(document: dict[str, Any], statistic: Any = min) -> report.Table:
    """A row for each operation and layer that was timed."""
    rows = []
    for result in document["results"]:
        if not (times := timed(result, statistic)):
            continue
        before = next(((one["variant"], one["tiling"]) for one in result["kernels"] if one["chosen"]), None)
        fastest = min(times, key=times.__getitem__)
        mark = "~ " if any(map(disturbed, result["kernels"])) else ""
        name = f"{mark}{result['operation']} {result['layer']}"
        now = rule_of(result)
        rows.append([name, _over(times, before), _over(times, now), f"{times[fastest]:.2f}", _label(fastest)])
    gpu = document["machine"]["gpu"]
    header = ["operation, layer", "then", "now", "best µs", "the fastest"]
    title = f"{gpu['name']}, {document['date'][:10]}: time of the rule's over the best"
    return report.Table(title, header, rows, left=True)


def winners(documents: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """What beats the rule, as ``gpuconv.tuning.store.Default`` has it."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for document in documents:
        gpu = document["machine"]["gpu"]
        for result in document["results"]:
            geometry, times = parsed(result["geometry"]), timed(result)
            place, rule = tuning.place_of(result["operation"], geometry), rule_of(result)
            if place is None or rule not in times:
                continue
            fastest = min(times, key=times.__getitem__)
            if any(disturbed(one) for one in result["kernels"] if (one["variant"], one["tiling"]) in (fastest, rule)):
                say(f"{result['operation']} {result['layer']}: passed over, as its samples differ too much")
                continue
            key = (gpu["compute_capability"], *place)
            found.pop(key, None)
            samples = {(one["variant"], one["tiling"]): one["us"] for one in result["kernels"]}
            # By its fastest sample, and as surely as gpuconv tune wants it.
            sure = times[fastest] < (1 - measure.MARGIN) * times[rule]
            if not sure or not measure.clearly_faster(samples[fastest], samples[rule]):
                continue
            tilings = kernels.load(result["operation"], fastest[0]).tilings(geometry)
            tiling = next((one for one in tilings if repr(one) == fastest[1]), None)
            if tiling is None:
                say(f"{result['operation']} {result['layer']}: the fastest is no longer there: {_label(fastest)}")
                continue
            operation, convolution, window = place
            found[key] = {
                "device": gpu["name"],
                "compute_capability": gpu["compute_capability"],
                "date": document["date"][:10],
                "operation": operation,
                "geometry": asdict(convolution),
                "dtype": "float32",
                "window": window,
                "variant": fastest[0],
                "tiling": asdict(tiling),
                "microseconds": {"this": round(times[fastest], 2), "rule": round(times[rule], 2)},
            }
    return list(found.values())


def _run(argv: Sequence[str] | None) -> int:
    parser = Parser("rules", "How far the rule of tuning is from the best that was measured.")
    add = parser.add_argument
    add("results", nargs="+", type=Path, metavar="RESULTS.json", help="what bench.gpu wrote")
    add("--median", action="store_true", help="of each kernel the median sample, and not the fastest")
    add("--winners", action="store_true", help="print instead what beats the rule, as gpuconv ships it")
    arguments = parser.parse_args(argv)
    documents = [read(path) for path in arguments.results]
    if arguments.winners:
        content = {"schema": store.DEFAULTS_SCHEMA, "defaults": winners(documents)}
        print(json.dumps(content, indent=1))
        return 0
    statistic = statistics.median if arguments.median else min
    for document in joined(documents):
        print(f"{table(document, statistic).plain()}\n{worst(document, statistic)}\n")
        if (missed := estimates(document, statistic)) is not None:
            print(missed.plain() + "\n")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables or the winners. See :func:`bench.command.answer`."""
    return command.answer("bench.rules", _run, argv)


if __name__ == "__main__":
    start(main)
