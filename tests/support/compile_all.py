"""Compiles every kernel variant in every tiling for every architecture, and prints what became of it as JSON.

A script, because it needs Numba's real CUDA target, and the tests run with the simulator's. Where nothing can be
compiled, it prints why, under the key "unavailable".
"""

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from bench import sass
from bench.inspection import Job, compiled, in_processes, result
from bench.layers import LAYERS
from gpuconv.kernels import VARIANTS, load

sys.path.insert(0, str(Path(__file__).parents[1]))
from support import sampling

ARCHITECTURES = ("sm_80", "sm_90a", "sm_100")

#: Layer on which convolutions are bound by arithmetic.
ARITHMETIC = "resnet50.conv3-3x3"
#: Of the convolutions: plain, depthwise, small, strided, 1x1. Of the other operations all layers are taken.
CONVOLUTIONS = (
    ARITHMETIC,
    "mobilenet2.depthwise-112",
    "lenet5.conv1",
    "lenet5.conv2",
    "resnet50.conv3-3x3-stride2",
    "resnet50.conv3-reduce",
)


def jobs() -> Iterator[Job]:
    """Each variant's first layer in all tilings for all architectures, the others in the first tiling for one.

    In a sample: the first layer in two tilings for an architecture each, by turns; the first tiling of kernels that are
    bound by arithmetic for all.
    """
    everything = sampling.wanted() == "all"
    turns = itertools.cycle((architecture,) for architecture in ARCHITECTURES)
    for operation, variants in VARIANTS.items():
        layers = LAYERS[operation]
        names = [name for name in CONVOLUTIONS if name in layers] or list(layers)
        for variant in variants:
            module = load(operation, variant)
            first, *others = (name for name in names if module.supports(layers[name]))
            geometry = layers[first]
            tilings = module.tilings(geometry)
            yield Job(operation, variant, first, geometry, tilings[0], "float64", ("sm_90a",))
            for tiling in [tilings[0], *sampling.sampled(tilings[1:], 1, variant)]:
                whole = everything or (tiling is tilings[0] and first == ARITHMETIC and variant != "direct")
                architectures = ARCHITECTURES if whole else next(turns)
                yield Job(operation, variant, first, geometry, tiling, "float32", architectures)
            for name in others if everything else ():
                tiling = module.tilings(layers[name])[0]
                yield Job(operation, variant, name, layers[name], tiling, "float32", ("sm_90a",))


def main() -> None:
    """Print a list of results as in the JSON of bench.static."""
    try:
        sass.check()
    except sass.ToolMissing as missing:
        print(json.dumps({"unavailable": str(missing)}))
        return
    outcomes = in_processes(compiled, list(jobs()), simulate=False)
    print(json.dumps([result(job, outcome, None) for job, outcome in outcomes]))


if __name__ == "__main__":
    main()
