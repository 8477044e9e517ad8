"""Packages from PyPI with Numba CUDA kernels, in Numba's simulator and in gpuconv's: results, CPU time, findings.

    pip install stumpy frbb disimpy gamdpy locate-pixelcolor-numbacuda xarray-spatial
    pip install --no-deps sgkit pyxem fbpic abtem scipy
    python tests/support/public_packages.py [NAME ...] [--report]

Exits with 1 if a result differs from the one of the CPU. A package that is not installed is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import importlib.metadata
import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import types
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


def parts_of(*names: str) -> None:
    """Let modules of a package be imported without what the package itself imports, which kernels do not need."""
    for name in names:
        above, _, last = name.rpartition(".")
        module = types.ModuleType(name)
        if above:
            module.__path__ = [os.path.join(sys.modules[above].__path__[0], last)]
        else:
            module.__path__ = list(importlib.util.find_spec(name).submodule_search_locations)
        sys.modules[name] = module


def sgkit() -> Program:
    """Distances between the genomes of individuals, of which some calls are missing."""
    parts_of("sgkit", "sgkit.distance")
    sys.modules["sgkit.typing"] = types.SimpleNamespace(ArrayLike=Any)
    metrics = importlib.import_module("sgkit.distance.metrics")
    x = np.random.default_rng(0).integers(-1, 3, (9, 40)).astype(np.float32)
    here = (x[:, None] >= 0) & (x[None] >= 0)
    one, other = np.where(here, x[:, None], 0), np.where(here, x[None], 0)

    def run() -> Any:
        # Their launch has 147,456 threads, whatever the size.
        results = np.zeros((9, 9, 6), np.float32), np.zeros((9, 9, 1), np.float32)
        metrics.correlation_map_kernel[(1, 1), (32, 32)](x, x, results[0])
        metrics.euclidean_map_kernel[(1, 1), (32, 32)](x, x, results[1])
        return results

    def check(results: Any) -> None:
        sums = one, other, one**2, other**2, one * other, here
        np.testing.assert_allclose(results[0], np.stack([each.sum(-1) for each in sums], -1))
        np.testing.assert_allclose(results[1][..., 0], ((one - other) ** 2).sum(-1))

    return run, check


def pyxem() -> Program:
    """A diffraction pattern against templates at all angles: shared memory in turns, barriers."""
    parts_of("pyxem", "pyxem.utils")
    utils = importlib.import_module("pyxem.utils.cuda_utils")
    generator = np.random.default_rng(0)
    image = generator.random((36, 20), np.float32)
    r, t = generator.integers(1, 20, (3, 300)), generator.integers(0, 36, (3, 300))
    r[1, 200:] = t[1, 200:] = 0  # a template with fewer spots
    intensities = np.where(r > 0, generator.random((3, 300)), 0).astype(np.float32)

    def run() -> Any:
        results = np.zeros((3, 36), np.float32), np.zeros((3, 36), np.float32)
        kernel = utils._correlate_polar_image_to_library_gpu
        kernel[(3, 1), (1, utils.TPB)](image, r, t, intensities, *results)
        return results

    def check(results: Any) -> None:
        for found, sign in zip(results, (1, -1), strict=True):
            for shift in range(36):
                expected = (image[(sign * t + shift) % 36, r] * intensities).sum(1)
                np.testing.assert_allclose(found[:, shift], expected, rtol=1e-4)

    return run, check


def fbpic() -> Program:
    """A step of a plasma: particles pushed by fields, sorted into cells, and their charge put on a grid by atomics on
    the parts of complex numbers."""
    parts_of("fbpic", "fbpic.particles", *(f"fbpic.particles.{name}" for name in ("push", "utilities", "deposition")))
    from numba import cuda

    names = {"compile_cupy": cuda.jit, "cuda_installed": True, "catch_gpu_memory_error": lambda function: function}
    stand_in = types.SimpleNamespace(**names, thrust=None)
    for name in ("fbpic.utils", "fbpic.utils.cuda", "fbpic.utils.printing", "cupy", "cupy.cuda"):  # launches by CuPy
        sys.modules[name] = stand_in
    where = "fbpic.particles"
    push = importlib.import_module(f"{where}.push.cuda_methods")
    one_by_one = importlib.import_module(f"{where}.push.inline_functions").push_p_vay
    sorting = importlib.import_module(f"{where}.utilities.cuda_sorting")
    deposition = importlib.import_module(f"{where}.deposition.cuda_methods")
    count, nz, nr = 150, 6, 5
    generator = np.random.default_rng(0)
    position, momentum = generator.uniform(-2, 2, (3, count)), generator.standard_normal((3, count))
    fields = generator.standard_normal((6, count))
    gamma = 1 / np.sqrt(1 + (momentum**2).sum(0))
    weights = generator.random(count)
    c, charge, dt = push.c, 2.0, 1e-10

    def run() -> Any:
        p, u, inverse = position.copy(), momentum.copy(), gamma.copy()
        push.push_p_gpu[2, 128](*u, inverse, *fields, charge, 1.0, count, dt)
        push.push_x_gpu[2, 128](*p, *u, inverse, dt, 1.0, 1.0, 1.0)
        cells, order = np.zeros(count, np.int32), np.arange(count, dtype=np.int32)
        grid = 1.0, -3.0, nz, 1.0, 0.0, nr
        sorting.get_cell_idx_per_particle[2, 128](cells, order, *p, *grid)
        order = np.argsort(cells, kind="stable")
        cells, sorted_, heavy = cells[order], p[:, order].copy(), weights[order]
        sums = np.zeros(nz * (nr + 1), np.int32)
        sorting.prefill_prefix_sum[1, 128](cells, sums, count)
        sorting.incl_prefix_sum[2, 128](cells, sums)
        rho = np.zeros((2, nz, nr), complex)
        nothing = np.zeros(nr + 1), np.zeros(nr + 1)
        deposition.deposit_rho_gpu_linear[1, 64](*sorted_, heavy, charge, *grid, *rho, cells, sums, *nothing)
        return p, u, cells, sums, rho

    def check(result: Any) -> None:
        p, u, cells, sums, rho = result
        econst, bconst = charge * dt / c, 0.5 * charge * dt
        columns = zip(*momentum, gamma, *fields, strict=True)
        expected = np.array([one_by_one(*numbers, econst, bconst) for numbers in columns]).T
        np.testing.assert_allclose(u, expected[:3])
        np.testing.assert_allclose(p, position + c * dt * expected[3] * expected[:3])
        np.testing.assert_array_equal(sums, np.cumsum(np.bincount(cells, minlength=sums.size)))
        np.testing.assert_allclose(rho[0].sum(), charge * weights.sum())

    return run, check


def abtem() -> Program:
    """Parts of images cut out, sums of runs, potentials of atoms added up by atomics."""
    parts_of("abtem", "abtem.core")
    sys.modules["cupy"] = np
    kernels = importlib.import_module("abtem.core._cuda")
    generator = np.random.default_rng(0)
    images, corners = generator.random((3, 12, 11)), generator.integers(0, 6, (3, 2))
    values, ends = generator.random((2, 30)), np.array([0, 4, 4, 11, 30])
    atoms = generator.uniform(0, 16, (4, 2)).astype(np.float32)
    y, x = np.mgrid[-4:5, -4:5]
    disk = np.stack([y.ravel(), x.ravel()], 1)
    counts = np.array([81, 60, 81, 30])
    radii = np.geomspace(0.1, 8, 20)
    potentials = np.exp(-radii) * np.arange(1, 5)[:, None]
    slopes = np.diff(potentials) / np.diff(radii)

    def run() -> Any:
        sums, potential = np.zeros((2, 4)), np.zeros((16, 16))
        kernels.sum_run_length_encoded(values, sums, ends)
        kernels.interpolate_radial_functions(
            potential, atoms, disk, counts, np.ones(2), radii, potentials, slopes, max_disk_count=81
        )
        return kernels.batch_crop_2d(images, corners, (5, 4)), sums, potential

    def check(result: Any) -> None:
        crops, sums, potential = result
        for crop, image, (i, j) in zip(crops, images, corners, strict=True):
            np.testing.assert_array_equal(crop, image[i : i + 5, j : j + 4])
        parts = [values[:, a:b].sum(1) for a, b in itertools.pairwise(ends)]
        np.testing.assert_allclose(sums, np.stack(parts, 1))
        expected = np.zeros((16, 16))
        for atom, (place, many) in enumerate(zip(atoms, counts, strict=True)):
            for k, m in np.round(place).astype(int) + disk[:many]:
                distance = np.hypot(k - place[0], m - place[1])
                if 0 <= k < 16 and 0 <= m < 16 and distance < radii[-1]:
                    expected[k, m] += np.interp(distance, radii, potentials[atom])
        np.testing.assert_allclose(potential, expected, rtol=1e-4)

    return run, check


PROGRAMS = {
    "stumpy": stumpy,
    "frbb": frbb,
    "disimpy": disimpy,
    "gamdpy": gamdpy,
    "locate-pixelcolor-numbacuda": locate_pixelcolor_numbacuda,
    "xarray-spatial": xarray_spatial,
    "sgkit": sgkit,
    "pyxem": pyxem,
    "fbpic": fbpic,
    "abtem": abtem,
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
