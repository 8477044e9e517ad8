"""The rule of tuning against what was measured: ``bench.rules``, and the winners that ship with the package."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, replace

import pytest

from bench import command, rules
from gpuconv import kernels, tuning
from gpuconv.geometry import BlockGeometry, Conv2dGeometry, Pool2dGeometry
from gpuconv.tuning import store
from gpuconv.tuning.store import Default, Key, Platform, Winner

pytest.importorskip("numba_cuda", reason="the variants are kernels for numba-cuda")

CONV = Conv2dGeometry.of((4, 6, 14, 14), (16, 6, 5, 5))
H100 = Platform("cuda", "NVIDIA H100 80GB HBM3, compute capability 9.0", "driver 1", "0.1.0", "0123")
DEFAULT = Default("NVIDIA H100 80GB HBM3", "2026-11-27", "direct", {"threads": 64})
MEASURED = "measured on NVIDIA H100 80GB HBM3, 2026-11-27"


@pytest.fixture(autouse=True)
def own_store(tmp_path, monkeypatch):
    """A tuning store of its own for each test, and nothing chosen from outside."""
    monkeypatch.setenv("GPUCONV_TUNING", str(tmp_path / "store"))
    monkeypatch.delenv("GPUCONV_VARIANTS", raising=False)
    store.forget()
    tuning.choice._from_defaults.cache_clear()
    yield
    monkeypatch.undo()
    store.forget()
    tuning.choice._from_defaults.cache_clear()


def ship(monkeypatch, default, *, operation="conv2d", geometry=CONV, window=(1, 1)):
    """Ship one winner, for float32 and compute capability 9.0."""
    monkeypatch.setattr(store, "defaults", lambda: {("9.0", operation, geometry, "float32", window): default})


# -- what ships ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", store.defaults(), ids=lambda key: f"{key[1]} {key[2]}")
def test_every_winner_that_ships_can_run(key):
    """It names a variant that supports the geometry and has the tiling, and is not what the rule takes anyway."""
    capability, tuned, geometry, dtype, window = key
    default = store.defaults()[key]
    operation, what = tuned, geometry
    if window != (1, 1):
        operation = "conv2d_relu_max_pool2d"
        what = BlockGeometry(geometry, Pool2dGeometry.of(geometry.output_shape, window))
    module = kernels.load(operation, default.variant)
    assert module.supports(what)
    assert dict(default.tiling) in [asdict(tiling) for tiling in module.tilings(what)]
    rule = tuning.choose(operation, what, dtype)
    assert (rule.variant, asdict(rule.tiling)) != (default.variant, dict(default.tiling))
    gpu = replace(H100, device=f"a GPU, compute capability {capability}")
    assert tuning.choose(operation, what, dtype, platform=gpu).source == "default"


def test_the_users_word_and_store_come_before_what_ships(monkeypatch):
    """It holds for its compute capability, whatever the card, and its element type; without a GPU the rule decides."""
    rule = tuning.choose("conv2d", CONV, platform=H100)
    assert rule.source == "rule"
    ship(monkeypatch, DEFAULT)
    tuning.choice._from_defaults.cache_clear()
    choice = tuning.choose("conv2d", CONV, platform=H100)
    assert (choice.source, choice.variant, choice.tiling.threads) == ("default", "direct", 64)
    other_card = replace(H100, device="NVIDIA GH200 480GB, compute capability 9.0", sources="4567")
    assert tuning.choose("conv2d", CONV, platform=other_card) == choice
    for elsewhere in (
        {},
        {"platform": replace(H100, device="NVIDIA B200, compute capability 10.0")},
        {"platform": replace(H100, device="a CPU")},
        {"platform": H100, "dtype": "float64"},
    ):
        assert tuning.choose("conv2d", CONV, **elsewhere) == rule, elsewhere
    with tuning.use_variant("conv2d", "implicit_gemm"):
        assert tuning.choose("conv2d", CONV, platform=H100).source == "use_variant"
    store.record(Key(H100, "conv2d", CONV, "float32"), Winner("direct", {"threads": 128}, {}))
    choice = tuning.choose("conv2d", CONV, platform=H100)
    assert (choice.source, choice.tiling.threads) == ("store", 128)


def test_explain_says_where_it_was_measured(monkeypatch):
    """The one that is taken, and those that were slower."""
    ship(monkeypatch, DEFAULT)
    rows = dict(tuning.candidates("conv2d", CONV, platform=H100))
    assert rows["direct"] == f"taken: default {MEASURED}; Tiling(threads=64)"
    assert rows["tiled"] == f"was slower when it was {MEASURED}"


def test_a_fused_block_has_a_winner_of_its_own(monkeypatch):
    """It is found by the window of its pooling, as in the user's store; the plain convolution does not look at it."""
    block = BlockGeometry(CONV, Pool2dGeometry.of(CONV.output_shape, 2))
    fused = kernels.load("conv2d_relu_max_pool2d", "fused").tilings(block)
    last = Default(DEFAULT.device, DEFAULT.date, "fused", asdict(fused[-1]))
    ship(monkeypatch, last, window=(2, 2))
    assert tuning.choose("conv2d_relu_max_pool2d", block, platform=H100).tiling == fused[-1]
    assert tuning.choose("conv2d", CONV, platform=H100).source == "rule"


@pytest.mark.parametrize(
    "default",
    [
        replace(DEFAULT, variant="gone"),
        replace(DEFAULT, tiling={"threads": 48}),
        replace(DEFAULT, variant="depthwise", tiling={}),
    ],
    ids=["variant", "tiling", "refused"],
)
def test_a_winner_that_cannot_run_is_passed_over_silently(default, monkeypatch, caplog):
    """The user cannot mend what ships: the rule decides, without a warning."""
    ship(monkeypatch, default)
    assert tuning.choose("conv2d", CONV, platform=H100).source == "rule"
    assert not caplog.records


# -- the command -----------------------------------------------------------------------------------------------------


def document_of(*results, capability="9.0", date="2026-11-27T04:09:35+00:00"):
    gpu = {"name": "NVIDIA H100 80GB HBM3", "compute_capability": capability}
    return {"schema": 1, "benchmark": "gpu", "date": date, "machine": {"gpu": gpu}, "results": list(results)}


def kernel(variant, tiling, us, *, chosen=False, fault=None):
    return {"variant": variant, "tiling": repr(tiling), "us": us, "chosen": chosen, "fault": fault}


def result(*timed, operation="conv2d", geometry=CONV):
    return {"operation": operation, "layer": "a layer", "geometry": repr(geometry), "kernels": list(timed)}


def of(variant, number):
    return variant, kernels.load("conv2d", variant).tilings(CONV)[number]


RULE = tuning.choose("conv2d", CONV)
TAKEN = RULE.variant, RULE.tiling


def test_the_table_compares_then_and_now(tmp_path, capsys):
    """Ratios are of fastest samples, or of medians; what is wrong has no time; a disturbed layer is marked."""
    timed = result(
        kernel(*of("direct", 0), [30.0, 30.0, 30.0], chosen=True),
        kernel(*of("direct", 1), [1.0, 1.0, 1.0], fault="a race"),
        kernel(*of("direct", 2), [10.0, 16.0, 16.0]),
        kernel(*TAKEN, [15.0, 15.0, 15.0]),
    )
    path = tmp_path / "gpu.json"
    path.write_text(json.dumps(document_of(timed, result())))
    assert rules.main([str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "NVIDIA H100 80GB HBM3, 2026-11-27: time of the rule's over the best"
    (row,) = [line.split() for line in lines if "~ conv2d a layer" in line]
    assert row == ["~", "conv2d", "a", "layer", "3.00", "1.50", "10.00", "direct", "threads=64"]
    assert "worst: 1.00, conv2d a layer, of 1 layers" in lines  # of what was measured in peace
    assert rules.main(["--median", str(path)]) == 0
    (row,) = [line.split() for line in capsys.readouterr().out.splitlines() if "~ conv2d a layer" in line]
    assert row[4:7] == ["2.00", "1.00", "15.00"]
    timed["kernels"].pop()
    path.write_text(json.dumps(document_of(timed)))
    assert rules.main([str(path)]) == 0
    shown = capsys.readouterr().out
    assert "3.00  not measured    10.00" in shown
    assert "worst: nothing that the rule takes now was measured in peace" in shown


def test_several_files_of_a_gpu_are_one_table(tmp_path, capsys):
    """Of a kernel the run counts that was not disturbed, of several the fastest; another GPU has a table of its own."""
    first = result(kernel(*TAKEN, [5.0, 9.0, 9.0], chosen=True), kernel(*of("direct", 2), [10.0] * 3))
    second = result(kernel(*TAKEN, [12.0] * 3), kernel(*of("direct", 2), [8.0] * 3, fault="a race"))
    other = document_of(result(kernel(*TAKEN, [99.0] * 3)))
    other["machine"]["gpu"]["name"] = "another"
    paths = [tmp_path / name for name in ("1.json", "2.json", "3.json")]
    for path, document in zip(paths, (document_of(first), document_of(second), other), strict=True):
        path.write_text(json.dumps(document))
    assert rules.main([*map(str, paths)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("worst")] == [
        "worst: 1.20, conv2d a layer, of 1 layers",
        "worst: 1.00, conv2d a layer, of 1 layers",
    ]


def test_estimates_stand_beside_what_was_measured(tmp_path, capsys):
    """The mean of how far they miss, and the worst."""
    module = kernels.load("conv2d", "implicit_gemm")
    one, two = module.tilings(CONV)[:2]
    timed = result(
        kernel("implicit_gemm", one, [module.estimate(CONV, one)] * 3),
        kernel("implicit_gemm", two, [module.estimate(CONV, two) / 1.5] * 3),
    )
    path = tmp_path / "gpu.json"
    path.write_text(json.dumps(document_of(timed)))
    assert rules.main([str(path)]) == 0
    (row,) = [line.split() for line in capsys.readouterr().out.splitlines() if "conv2d implicit_gemm" in line]
    assert row[:5] == ["conv2d", "implicit_gemm", "2", "29%", "1.50"]


def test_winners_beat_the_rule_clearly(tmp_path, capsys, monkeypatch):
    """By more than 3 %, by the fastest sample and reliably; the last file counts; what is printed can ship."""
    rule = kernel(*TAKEN, [100.0, 100.0, 101.0])

    def winners(*documents):
        return [(one["variant"], one["tiling"], one["microseconds"]) for one in rules.winners(documents)]

    for us in ([98.0] * 3, [90.0, 102.0, 103.0]):  # hardly faster, and only once
        assert not winners(document_of(result(rule, kernel(*of("direct", 2), us))))
    lucky = kernel(*of("direct", 2), [99.0, 99.0, 99.0])
    disturbed = kernel(*TAKEN, [97.0, 150.0, 160.0])
    assert not winners(document_of(result(disturbed, lucky)))
    faster = document_of(result(rule, kernel(*of("direct", 2), [90.0] * 3)))
    assert winners(faster) == [("direct", {"threads": 64}, {"this": 90.0, "rule": 100.0})]
    slower = document_of(result(rule, kernel(*of("direct", 2), [110.0] * 3)))
    assert winners(faster, slower) == []
    assert len(winners(slower, faster, document_of(*faster["results"], capability="10.0"))) == 2
    # What is not tuned, has no tiling that there still is, or no time of the rule's, does not ship.
    gone = copy.deepcopy(faster)
    gone["results"][0]["kernels"][1]["tiling"] = "Tiling(threads=48)"
    unmeasured = document_of(result(kernel(*of("direct", 2), [1.0])))
    pooling = repr(Pool2dGeometry.of((2, 3, 8, 8), 2))
    other = document_of({**faster["results"][0], "operation": "max_pool2d", "geometry": pooling})
    assert winners(gone, unmeasured, other) == []
    assert "the fastest is no longer there: direct threads=48" in capsys.readouterr().err

    path = tmp_path / "gpu.json"
    path.write_text(json.dumps(faster))
    assert rules.main(["--winners", str(path)]) == 0
    shipped = tmp_path / "defaults.json"
    shipped.write_text(capsys.readouterr().out)
    monkeypatch.setattr(store, "__file__", str(tmp_path / "store.py"))
    found = store.defaults.__wrapped__()
    assert found == {("9.0", "conv2d", CONV, "float32", (1, 1)): DEFAULT}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "cannot be read"),
        ("[]", "not results of bench.gpu, schema 1"),
        ('{"benchmark": "lenet", "schema": 1}', "not results of bench.gpu, schema 1"),
        (json.dumps(document_of({**result(kernel(*TAKEN, [1.0])), "geometry": "print(1)"})), "not a geometry: print"),
        (json.dumps(document_of({**result(kernel(*TAKEN, [1.0])), "geometry": "1 +"})), "not a geometry: 1 +"),
    ],
)
def test_other_files_are_refused(content, words, tmp_path, capsys):
    """In one line, with an exit status of 2."""
    path = tmp_path / "results.json"
    path.write_text(content)
    assert rules.main([str(path)]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_operations_that_are_gone_are_passed_over(tmp_path, capsys):
    """Old results name operations that have no kernels any more: one line says which, the others are shown."""
    path, known = tmp_path / "results.json", result(kernel(*TAKEN, [1.0]))
    path.write_text(json.dumps(document_of(known, {**known, "operation": "conv_net", "geometry": "NetGeometry()"})))
    assert rules.main([str(path)]) == 0
    shown = capsys.readouterr()
    assert shown.err == f"{path}: passed over, as there are no kernels for them any more: conv_net\n"
    assert "conv2d" in shown.out
    assert "conv_net" not in shown.out


def test_a_variant_asked_for_is_not_the_rule(tmp_path, capsys, monkeypatch):
    """With GPUCONV_VARIANTS set, the table would show something else."""
    monkeypatch.setenv("GPUCONV_VARIANTS", "conv2d=direct")
    path = tmp_path / "gpu.json"
    path.write_text(json.dumps(document_of(result(kernel(*TAKEN, [1.0])))))
    assert rules.main([str(path)]) == 2
    assert "GPUCONV_VARIANTS is set" in capsys.readouterr().err


# -- the measurements ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured():
    """All that is committed of an H100, as one document."""
    paths = sorted((command.ROOT / "bench" / "results").rglob("*.json"))
    found = [json.loads(path.read_text()) for path in paths]
    documents = [rules.read(path) for path, one in zip(paths, found, strict=True) if one["benchmark"] == "gpu"]
    (document,) = rules.joined(sorted(documents, key=lambda one: one["date"]))
    return document


#: What no GPU has timed since it was written anew, or was first taken: sums in parts.
UNTIMED = {
    "conv2d_grad_input resnet50.conv4-3x3",
    *(f"max_pool2d_grad {layer}" for layer in ("resnet50.pool1", "lenet5.pool1", "lenet5.pool2")),
    "softmax_cross_entropy_mean resnet50.loss",
    *(f"count_correct {layer}" for layer in ("lenet5.loss", "resnet50.loss")),
}


def test_the_rule_is_near_the_best_that_was_measured(measured):
    """Within a tenth, by itself; and all that it takes has been measured, but for what is new."""
    ratios = rules.ratios(measured)
    assert {name: ratio for name, ratio in ratios.items() if ratio is not None and ratio > 1.1} == {}
    assert {name for name, ratio in ratios.items() if ratio is None} == UNTIMED
    assert len(ratios) > 55


def test_estimates_are_near_what_was_measured(measured):
    """The constants of the estimates are from these measurements: they miss none by a fifth, and a tenth in the mean.

    But for depthwise layers, for which nearly all of a product's tile is empty: the rule takes none there.
    """
    results = [one for one in measured["results"] if "depthwise" not in one["layer"]]
    rows = {row[0]: row for row in rules.estimates({**measured, "results": results}).rows}
    assert {"conv2d implicit_gemm", "conv2d_grad_weight implicit_gemm"} <= set(rows)
    for name, (_, count, mean, worst, _) in rows.items():
        assert int(count) >= 10, name
        assert float(mean.rstrip("%")) <= 10, name
        assert 0.8 < float(worst) < 1.2, name
