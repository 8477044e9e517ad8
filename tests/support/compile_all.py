"""Compiles kernel variants in every tiling for every architecture, and prints what became of them as JSON.

The arguments name them: `conv2d.tiled`. A script, because it needs Numba's real CUDA target, and the tests run with the
simulator's. Where nothing can be compiled, it prints why, under the key "unavailable".
"""

import dataclasses
import itertools
import json
import sys
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from bench import sass
from bench.inspection import Job, compiled, in_processes, result
from bench.layers import LAYERS
from gpuconv.kernels import VARIANTS, load

sys.path.insert(0, str(Path(__file__).parents[1]))
from support import sampling

ARCHITECTURES = ("sm_80", "sm_90a", "sm_100")

#: Of the convolutions: plain, depthwise, small, strided, 1x1. Of the other operations all layers are taken.
CONVOLUTIONS = (
    "resnet50.conv3-3x3",
    "mobilenet2.depthwise-112",
    "lenet5.conv1",
    "lenet5.conv2",
    "resnet50.conv3-3x3-stride2",
    "resnet50.conv3-reduce",
)

#: Variants that launch another operation's kernel, which that operation compiles in all tilings: here in the first.
BORROWED = {("conv2d_grad_input", "tensor_core"), ("conv2d_grad_input", "winograd")}


def jobs(names: Collection[str]) -> Iterator[Job]:
    """Each named variant's first layer in all tilings for all architectures, the others in the first tiling for one.

    The first layer also in float64, and in all tilings in float16, where the variant has these, for one architecture.
    """
    for operation, variants in VARIANTS.items():
        layers = LAYERS[operation]
        candidates = [name for name in CONVOLUTIONS if name in layers] or list(layers)
        for variant in variants:
            if f"{operation}.{variant}" not in names:
                continue
            module = load(operation, variant)
            supported = [name for name in candidates if module.supports(layers[name])]
            for name in supported:
                geometry, first = layers[name], name == supported[0]
                tilings = module.tilings(geometry)
                architectures = ARCHITECTURES if first else ("sm_90a",)
                every = first and (operation, variant) not in BORROWED
                for tiling in tilings if every else tilings[:1]:
                    yield Job(operation, variant, name, geometry, tiling, "float32", architectures)
                if first and module.supports(geometry, "float64"):
                    yield Job(operation, variant, name, geometry, tilings[0], "float64", ("sm_90a",))
                if first and module.supports(geometry, "float16"):  # bfloat16 has the same instructions
                    for tiling in tilings if every else tilings[:1]:
                        yield Job(operation, variant, name, geometry, tiling, "float16", ("sm_90a",))


def sample(every: Iterable[Job]) -> Iterator[Job]:
    """Of each variant a tiling of the first layer, for one architecture by turns; of every eighth one float64, too.

    Of what is bound by arithmetic, the first tiling, which is the one with a mark to reach.
    """
    turns, doubles = itertools.cycle(ARCHITECTURES), itertools.cycle((True, *[False] * 7))
    groups: dict[tuple[str, str, str], list[Job]] = {}
    for job in every:
        groups.setdefault((job.operation, job.variant, job.dtype), []).append(job)
    for first, *others in groups.values():
        if first.dtype != "float32":
            if first.dtype == "float16" or next(doubles):
                yield dataclasses.replace(first, architectures=first.architectures[-1:])
            continue
        tilings = [first, *(job for job in others if job.layer == first.layer)]
        if first.layer == CONVOLUTIONS[0] and first.variant != "direct":
            tilings = [first]
        for job in sampling.sampled(tilings, 1, first.variant):
            yield dataclasses.replace(job, architectures=(next(turns),))


def main() -> None:
    """Print a list of results as in the JSON of bench.static."""
    try:
        sass.check()
    except sass.ToolMissing as missing:
        print(json.dumps({"unavailable": str(missing)}))
        return
    every = jobs(sys.argv[1:])
    wanted = list(every if sampling.wanted() == "all" else sample(every))
    outcomes = in_processes(compiled, wanted, simulate=False)
    print(json.dumps([result(job, outcome, None) for job, outcome in outcomes]))


if __name__ == "__main__":
    main()
