"""Work in several processes, a core each; and what of it compiles kernels into the cache on disk, before timing.

A kernel takes one to three seconds to compile, and a benchmark has dozens to hundreds of them. Processes are spawned,
not forked: one that has a device cannot be. None outlives the one that started it, however that ends.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from bench.command import progress, say


def in_processes(
    function: Callable[..., Any],
    work: Sequence[tuple[Any, ...]],
    jobs: int,
    *,
    limit_s: float | None = None,
    environment: Mapping[str, str] | None = None,
    tell: Callable[[int, int], str] | None = None,
) -> Iterator[tuple[int, concurrent.futures.Future[Any]]]:
    """Call a function with each tuple of arguments, each call in one of so many processes.

    Args:
        function: of a module, so that another process finds it.
        work: arguments of each call; calls begin in this order.
        jobs: processes, at least 1.
        limit_s: seconds after which what is not done is left.
        environment: variables of these processes, which they have before they import anything.
        tell: what to say of progress, from how many calls are done and the number of the first that is not.

    Yields:
        The number of a call, and what became of it, as soon as it is done.
    """
    if not work:
        return
    others, begin = set(multiprocessing.active_children()), time.monotonic()
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(
        min(jobs, len(work)), context, initializer=_begin, initargs=(dict(environment or {}),)
    )
    try:
        numbers = {pool.submit(function, *arguments): number for number, arguments in enumerate(work)}
        pending = set(numbers)
        while pending and (limit_s is None or time.monotonic() - begin < limit_s):
            if tell is not None:
                first = min(numbers[future] for future in pending)
                progress(f"{tell(len(work) - len(pending), first)}, {time.monotonic() - begin:.0f} s")
            left = 1.0 if limit_s is None else min(1.0, max(0.0, begin + limit_s - time.monotonic()))
            done, pending = concurrent.futures.wait(pending, left, concurrent.futures.FIRST_COMPLETED)
            yield from ((numbers[future], future) for future in sorted(done, key=numbers.__getitem__))
    finally:
        # Ctrl-C, too: what is being done is nobody's any more, and would be waited for.
        for process in set(multiprocessing.active_children()) - others:
            process.kill()
        pool.shutdown(cancel_futures=True)
        progress("")


def _begin(environment: dict[str, str]) -> None:
    """In a process of the pool: leave Ctrl-C to the parent, and end when that is gone, killed for instance."""
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


# -- what is compiled ------------------------------------------------------------------------------------------------


def compile_kernels(operation: str, variant: str, geometry: Any, dtype: str, first: int | None) -> int:
    """Compile a variant in its first tilings, or in all (None), for a geometry and element type; returns how many."""
    from gpuconv import kernels

    module = kernels.load(operation, variant)
    if not module.supports(geometry, dtype):
        return 0
    return sum(
        _compiled(launch)
        for tiling in list(module.tilings(geometry))[:first]
        for launch in module.launches(geometry, tiling, dtype)
    )


def compile_chosen(operation: str, geometry: Any, dtype: str, options: Mapping[str, Any] | None = None) -> int:
    """Compile what the rule takes for an operation, with options of its ``launches``; returns how many kernels."""
    from gpuconv import kernels, tuning

    choice = tuning.choose(operation, geometry, dtype)
    if choice.variant == tuning.COMPOSED:
        return 0
    module: Any = kernels.load(operation, choice.variant)
    return sum(map(_compiled, module.launches(geometry, choice.tiling, dtype, **(options or {}))))


def compile_recorded(kind: str, arguments: tuple[Any, ...], number: int) -> int:
    """Compile one launch of those that :func:`recorded` gives."""
    return _compiled(recorded(kind, *arguments)[number])


def _compiled(launch: Any) -> int:
    with contextlib.suppress(Exception):  # what fails here fails again, with its name, when it is launched
        launch.kernel.compile(launch.signature)
        return 1
    return 0


@functools.cache
def recorded(kind: str, *arguments: Any) -> list[Any]:
    """Launches of a network, noted and not made.

    Args:
        kind: of LeNet, 'step', a training step as it is captured; 'eager', as it runs without, with weight decay and
            without; 'float64', one in double precision; 'decayed', one with weight decay; 'around', what
            ``gpuconv train`` captures besides; 'moved', that with augmentation; 'inference', logits. 'network': a
            training step and the logits of any.
        arguments: of the function of ``bench/step.py``: the batch; of ``bench/network.py``: name, batch, size.
    """
    from bench import network, step
    from gpuconv import tuning

    def eager(*arguments: Any) -> Any:
        with tuning.use_variant("sgd_update_all_of_parts", tuning.COMPOSED):
            return [*step.launches(*arguments, weight_decay=0.1), *step.launches(*arguments)]

    functions: dict[str, Callable[..., Any]] = {
        "step": step.launches,
        "eager": eager,
        "float64": functools.partial(step.launches, dtype="float64"),
        "decayed": functools.partial(step.launches, weight_decay=0.1),
        "around": step.around_launches,
        "moved": functools.partial(step.around_launches, augment=True),
        "inference": step.inference_launches,
        "network": network.launches,
    }
    return [launch for launch, _ in functions[kind](*arguments)]


def recorded_work(wanted: Iterable[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Arguments of :func:`compile_recorded` for the kernels of networks, none of them twice.

    Args:
        wanted: arguments of :func:`recorded`.
    """
    work, seen = [], set()
    for kind, *arguments in wanted:
        try:
            launches = recorded(kind, *arguments)
        except Exception as error:  # its kernels are compiled where they are launched, or it fails there with its name
            say(f"compiling: {kind} {arguments}: {type(error).__name__}: {error}".partition("\n")[0])
            continue
        for number, launch in enumerate(launches):
            # Equal kernels are one object: their factories remember what they have made.
            if (key := (id(launch.kernel), str(launch.signature))) not in seen:
                seen.add(key)
                work.append((kind, tuple(arguments), number))
    return work


def step_work(batches: Iterable[int]) -> list[tuple[Any, ...]]:
    """As :func:`recorded_work`: training steps, captured and not, and the logits of one image."""
    return recorded_work([*((kind, batch) for batch in batches for kind in ("step", "eager")), ("inference", 1)])


def call(function: Callable[..., int], *arguments: Any) -> int:
    """For :func:`compile_all`, work of several kinds: the function of each stands before its arguments."""
    return function(*arguments)


def compile_all(
    function: Callable[..., int], work: Sequence[tuple[Any, ...]], jobs: int, limit_s: float | None = None
) -> int:
    """Call functions that compile in several processes; says how many kernels there are and how long it took.

    A call that raises counts nothing: what cannot be compiled fails again, with its name, where it is used.

    Args:
        function: returns how many kernels it has compiled.
        work, jobs, limit_s: as those of :func:`in_processes`.

    Returns:
        The sum of what the calls return.
    """
    start, count = time.perf_counter(), 0
    what = f"of {len(work)} pieces of work compiled"
    for _, future in in_processes(function, work, jobs, limit_s=limit_s, tell=lambda done, first: f"{done} {what}"):
        with contextlib.suppress(Exception):
            count += future.result()
    say(f"{count} kernels compiled, or found in the cache, by {jobs} processes in {time.perf_counter() - start:.0f} s")
    return count
