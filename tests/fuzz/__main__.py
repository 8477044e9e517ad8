"""``python -m tests.fuzz``."""

import argparse
import sys
from pathlib import Path

from . import guard


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Random programs against PyTorch.")
    parser.add_argument("--programs", type=int, default=1000, help="how many (1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the first one; the next has the next (0)")
    parser.add_argument("--convolutions", type=int, default=24, help="shapes that eager programs compile (24)")
    parser.add_argument("--time-limit", type=float, default=30.0, help="seconds a program (30)")
    parser.add_argument("--save", type=Path, default=Path("runs/fuzz"), help="folder for scripts of faults (runs/fuzz)")
    parser.add_argument("--without-torch", action="store_true", help="the NumPy backend in float64 is the judge")
    parser.add_argument("--show", action="store_true", help="print the programs, run none")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--sabotage", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        from .running import serve

        serve(guard.unavailable() is None, arguments.without_torch, arguments.sabotage)
        return 0
    from .parent import fuzz, guards
    from .programs import generate

    seeds = range(arguments.seed, arguments.seed + arguments.programs)
    if arguments.show:
        for seed in seeds:
            print(f"# seed {seed}", *generate(seed, arguments.convolutions).statements, "", sep="\n")
        return 0
    print(guards(), flush=True)
    summary = fuzz(
        seeds,
        convolutions=arguments.convolutions,
        time_limit=arguments.time_limit,
        without_torch=arguments.without_torch,
        sabotage=arguments.sabotage,
        save=arguments.save,
        say=lambda text: print(text, flush=True),
    )
    print(summary)
    return 1 if summary.faults else 0


if __name__ == "__main__":
    sys.exit(main())
