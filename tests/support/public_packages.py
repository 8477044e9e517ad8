"""Packages from PyPI with Numba CUDA kernels, in Numba's simulator and in gpuconv's: results, CPU time, findings.

    pip install stumpy frbb disimpy gamdpy locate-pixelcolor-numbacuda xarray-spatial
    python tests/support/public_packages.py [NAME ...] [--report]

Exits with 1 if a result differs from the one of the CPU. A package that is not installed is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve()
RUNS = ("stock", "ours", "traced")

#: What to measure, and a function that compares what it gave with the result of the CPU; each is a package's own API.
Program = tuple[Callable[[], Any], Callable[[Any], None]]


def stumpy() -> Program:
    """Matrix profiles, normalized and not."""
    import stumpy

    stumpy.config.STUMPY_THREADS_PER_BLOCK = 32
    series = np.random.default_rng(0).standard_normal(60)

    def check(results: Any) -> None:
        for found, expected in zip(results, (stumpy.stump(series, m=8), stumpy.aamp(series, m=8)), strict=True):
            np.testing.assert_allclose(found[:, 0].astype(float), expected[:, 0].astype(float), atol=1e-6)
            np.testing.assert_array_equal(found[:, 1], expected[:, 1])

    return lambda: (stumpy.gpu_stump(series, m=8), stumpy.gpu_aamp(series, m=8)), check


def frbb() -> Program:
    """A boosted ensemble, fitted and asked for decisions."""
    import frbb

    x = np.random.default_rng(0).standard_normal((60, 6)).astype(np.float32)
    y = np.where(x[:, 1] + x[:, 2] ** 2 > 0.5, 1, -1)

    def fitted(mode: str) -> Any:
        model = frbb.FastRealBoostBins(T=6, B=8, fit_mode=mode, decision_function_mode=mode)
        return model.fit(x, y).decision_function(x), model.features_selected_

    def check(result: Any) -> None:
        decisions, features = fitted("numba_jit")
        np.testing.assert_array_equal(result[1], features)
        np.testing.assert_allclose(result[0], decisions, rtol=1e-4, atol=1e-5)

    return lambda: fitted("numba_cuda"), check


def disimpy() -> Program:
    """Diffusion of water in a sphere, and the signal of a scanner: it has no CPU version, but the signal follows from
    the paths of the molecules, which it writes to a file."""
    from disimpy import simulations, substrates

    gradient = np.zeros((2, 12, 3))
    gradient[0, :5, 0], gradient[0, 5:10, 0], gradient[1, :, 1] = 0.1, -0.1, 0.05
    sphere, step = substrates.sphere(5e-6), 1e-3
    paths = Path(tempfile.mkdtemp()) / "paths.txt"
    run = functools.partial(
        simulations.simulation, 40, 2e-9, gradient, step, sphere, traj=str(paths), quiet=True, cuda_bs=32
    )

    def check(signal: Any) -> None:
        positions = np.loadtxt(paths).reshape(13, 40, 3)
        assert (np.linalg.norm(positions, axis=2) <= 5e-6).all()
        phases = simulations.GAMMA * step * np.einsum("mta,tna->mn", gradient, positions[1:])
        np.testing.assert_allclose(signal, np.cos(phases).sum(axis=1), rtol=1e-6)

    return run, check


def gamdpy() -> Program:
    """Molecular dynamics of a Lennard-Jones crystal, whose last energy is compared with a sum over all pairs."""
    os.environ.setdefault("MPLBACKEND", "agg")
    import gamdpy as gp

    configuration = gp.Configuration(D=3)
    configuration.make_lattice(gp.unit_cells.FCC, cells=[2, 2, 2], rho=0.9)
    configuration["m"] = 1.0
    np.random.seed(0)  # noqa: NPY002 - what the package draws from
    configuration.randomize_velocities(temperature=0.7)
    potential = gp.PairPotential(
        gp.apply_shifted_potential_cutoff(gp.LJ_12_6_sigma_epsilon), params=[1.0, 1.0, 1.6], max_num_nbs=32
    )
    plan = {"pb": 8, "tp": 2, "skin": 0.3, "gridsync": True, "UtilizeNIII": False, "nblist": "N squared"}
    start = configuration["r"].copy()

    def run() -> Any:
        integrator = gp.integrators.NVE(dt=0.004)
        simulation = gp.Simulation(
            configuration, potential, integrator, [], num_timeblocks=1, steps_per_timeblock=10, storage="memory",
            compute_plan=plan,
        )  # fmt: skip
        simulation.run(verbose=False)
        evaluator = gp.Evaluator(configuration, potential, plan, verbose=False)
        evaluator.evaluate(configuration)
        return configuration["r"].copy(), configuration["U"].copy()

    def check(result: Any) -> None:
        r, energies = result
        lengths = configuration.simbox.get_lengths()
        moved = r - start
        assert 0 < np.abs(moved - np.round(moved / lengths) * lengths).max() < 0.3
        between = r[:, None] - r[None]
        between -= np.round(between / lengths) * lengths
        squared = (between**2).sum(-1)
        np.fill_diagonal(squared, np.inf)
        sixth = squared**-3.0
        cut = 1.6**-6
        pairs = np.where(squared < 1.6**2, 4 * (sixth**2 - sixth) - 4 * (cut**2 - cut), 0)
        np.testing.assert_allclose(energies.sum(), pairs.sum() / 2, rtol=1e-4)

    return run, check


def locate_pixelcolor_numbacuda() -> Program:
    """Where an image has a color."""
    import locate_pixelcolor_numbacuda as package

    image = np.random.default_rng(0).integers(0, 2, (24, 20, 3)).astype(np.uint8)
    colors = np.array([[1, 0, 1]])

    def check(found: Any) -> None:
        expected = np.argwhere((image == colors[0]).all(2))
        np.testing.assert_array_equal(np.unique(found[0], axis=0), expected)

    return lambda: package.search_colors(image, colors), check


def xarray_spatial() -> Program:
    """Slope, aspect, curvature and focal minima of a terrain, a convolution: its kernels take CuPy's arrays."""
    names = ("slope", "aspect", "curvature", "convolution", "focal")
    slope, aspect, curvature, convolution, focal = (importlib.import_module(f"xrspatial.{name}") for name in names)

    terrain = np.random.default_rng(0).standard_normal((30, 26)).astype(np.float32)
    size = np.ones(1, np.float32)
    weights = np.ones((3, 3), np.float32)
    grid, block = (4, 4), (8, 8)

    def run() -> Any:
        results = [np.full_like(terrain, np.nan) for _ in range(5)]
        slope._run_gpu[grid, block](terrain, size, size, results[0])
        aspect._run_gpu[grid, block](terrain, results[1])
        curvature._run_gpu[grid, block](terrain, size, results[2])
        convolution._convolve_2d_cuda[grid, block](terrain, weights, results[3])
        focal._focal_min_cuda[grid, block](terrain, weights, results[4])
        return results

    def check(results: Any) -> None:
        expected = [slope._run_numpy(terrain, 1, 1), aspect._run_numpy(terrain), curvature._run_numpy(terrain, 1)]
        windows = np.lib.stride_tricks.sliding_window_view(terrain, (3, 3))
        for function in (np.sum, np.min):
            result = np.full_like(terrain, np.nan)
            result[1:-1, 1:-1] = function(windows, axis=(2, 3))
            expected.append(result)
        inner = (slice(1, -1), slice(1, -1))  # at the edges, they do different things
        for mine, theirs in zip(results, expected, strict=True):
            np.testing.assert_allclose(mine[inner], theirs[inner], rtol=1e-4, atol=1e-4)

    return run, check


PROGRAMS = {
    "stumpy": stumpy,
    "frbb": frbb,
    "disimpy": disimpy,
    "gamdpy": gamdpy,
    "locate-pixelcolor-numbacuda": locate_pixelcolor_numbacuda,
    "xarray-spatial": xarray_spatial,
}


def measure(name: str, which: str) -> None:
    """In a process of its own: run one program in one simulator, and print what came of it."""
    warnings.simplefilter("ignore")
    os.environ["NUMBA_ENABLE_CUDASIM"] = "1"
    report = contextlib.nullcontext()
    if which != "stock":
        from gpuconv.lab import simulator

        simulator.activate(limit=300)
        report = simulator.trace() if which == "traced" else report
    with contextlib.redirect_stdout(sys.stderr):
        run, check = PROGRAMS[name]()
        run()  # compiles what runs on the host
        with report as found:
            start = time.process_time()
            result = run()
            seconds = time.process_time() - start
        check(result)
    faults = [] if found is None else [str(fault) for fault in found.faults]
    print(json.dumps({"seconds": seconds, "faults": faults, "report": str(found)}))


def main() -> int:
    """Run all, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="*", choices=[[], *PROGRAMS], help="packages (all that are installed)")
    parser.add_argument("--only", choices=RUNS, action="append")
    parser.add_argument("--report", action="store_true", help="print the whole report of the trace")
    parser.add_argument("--measure", choices=RUNS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.name[0], options.measure)
        return 0
    wrong = False
    for name in options.name or PROGRAMS:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            print(f"{name}: not installed")
            continue
        results = {}
        for which in options.only or RUNS:
            environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1"}
            command = [sys.executable, str(HERE), name, "--measure", which]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode:
                lines = re.findall(r"^[\w.]*(?:Error|Exception): .*", done.stderr, re.MULTILINE) or ["?"]
                print(f"{name} {version}, {which}: {lines[-1]}")
                wrong |= which != "stock"
            else:
                results[which] = json.loads(done.stdout.splitlines()[-1])
        times = ", ".join(f"{which} {result['seconds']:.2f} s" for which, result in results.items())
        print(f"{name} {version}: {times}")
        for fault in results.get("traced", {}).get("faults", ()):
            print(f"    {fault}")
        if options.report and "traced" in results:
            print(results["traced"]["report"])
    return wrong


if __name__ == "__main__":
    sys.exit(main())
