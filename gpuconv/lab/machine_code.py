"""What the compiler makes of the kernels that ran: float64 that nobody asked for, and the instructions of each line.

    print(lab.compiled(kernel, x, y, 0.5))

Types and PTX come from numba-cuda's compiler, which needs no GPU. A process whose ``numba.cuda`` is simulated has none
and lets another process compile.
"""

from __future__ import annotations

import importlib
import io
import linecache
import os
import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np

from gpuconv.lab.cards import Chosen


class Option(NamedTuple):
    """A boolean that is known when a kernel is compiled, and the value that it was given."""

    name: str
    value: bool


class Cause(NamedTuple):
    """Something at which numbers become float64, in a kernel whose arrays are not."""

    #: File and line.
    site: str
    #: What stands there, and why it is float64, in words.
    what: str
    #: What to write there.
    instead: str
    #: Where the instructions are that compute in float64 because of it, and how many.
    lines: tuple[str, ...]
    instructions: int
    #: Values of booleans with which this is so, if it is not so as the kernel was launched.
    options: tuple[Option, ...] = ()

    @property
    def key(self) -> tuple[str, str]:
        """The same for the same cause, whichever the options."""
        return self.site, self.what

    def __str__(self) -> str:
        numbers = ", ".join(dict.fromkeys(line.rpartition(":")[2] for line in self.lines))
        also = " with " + ", ".join(f"{name}={value}" for name, value in self.options) if self.options else ""
        how_many = f"{self.instructions} instruction{'s' * (self.instructions != 1)}"
        where = f"line{'s' * (',' in numbers)} {numbers}"
        return f"float64 at {self.site}{also}: {self.what}: {how_many} in float64, of {where}. Write {self.instead}"


class Instructions(NamedTuple):
    """Those of one line of source."""

    path: str
    line: int
    #: Loops around the innermost of them.
    loops: int
    kinds: Counter[str]

    @property
    def site(self) -> str:
        """File and line."""
        return f"{self.path}:{self.line}"


class Task(NamedTuple):
    """A kernel to compile."""

    name: str
    function: Any
    #: Of a launch, described.
    arguments: tuple[Any, ...]
    #: The compute capability of the GPU.
    cc: tuple[int, int]


#: What to say of a kind of instruction that outweighs the arithmetic.
_ADVICE = {
    "64-bit integers": "Numba computes indices in 64 bits. Compute what stays the same outside of the loop; "
    "gpuconv.kernels.device.u32 has indices of 32 bits",
    "conversions": "numbers of two types meet there: give both the same",
    "division, roots, exponentials": "several instructions each: multiply by what is computed once",
    "32-bit integers": "compute what stays the same outside of the loop",
}


@dataclass(frozen=True)
class Compiled:
    """What became of one kernel; print it to read it.

    Attributes:
        name: of the kernel.
        float64: what makes it compute in float64, if none of its arrays is of that type.
        instructions: by line of source, as PTX has them: registers' moves and returns are left out.
        error: why there is no code, as "does not compile: ..." or "was not compiled: ..."; else empty.
        variants: combinations of options that were compiled.
    """

    name: str
    float64: tuple[Cause, ...] = ()
    instructions: tuple[Instructions, ...] = field(default=(), repr=False)
    error: str = ""
    variants: int = 1

    @property
    def mix(self) -> Counter[str]:
        """Instructions of each kind, those in loops once."""
        return sum((each.kinds for each in self.instructions), Counter())

    @property
    def heavy(self) -> tuple[tuple[Instructions, str], ...]:
        """What outweighs float arithmetic in the innermost loops: the line with most of it, and its kind."""
        deepest = max((each.loops for each in self.instructions), default=0)
        inner = [each for each in self.instructions if each.loops == deepest > 0]
        arithmetic = sum(each.kinds["float"] + each.kinds["float64"] for each in inner)
        found = []
        for kind in _ADVICE:
            if sum(each.kinds[kind] for each in inner) > max(arithmetic, 4):
                worst = max(inner, key=lambda each: each.kinds[kind])
                found.append((worst, kind))
        return tuple(found)

    def __str__(self) -> str:
        if self.error:
            return f"{self.name} {self.error}"
        total = self.mix
        shares = ", ".join(f"{count} {kind}" for kind, count in total.most_common())
        lines = [f"{self.name} compiled: {total.total()} instructions: {shares}"]
        lines += [f"  {cause}" for cause in self.float64]
        for line, kind in self.heavy:
            most = f"most at {line.site} ({line.kinds[kind]})"
            lines.append(f"  {kind} outweigh arithmetic in the innermost loop, {most}: {_ADVICE[kind]}")
        return "\n".join(lines)

    def table(self) -> str:
        """The instructions of each line of source, as a table to print."""
        kinds = [kind for kind, _ in self.mix.most_common()]
        lines = ["  ".join(["loops", *kinds, "line"])]
        for each in self.instructions:
            counts = [str(each.kinds[kind] or "").rjust(len(kind)) for kind in kinds]
            source = linecache.getline(each.path, each.line).strip()
            lines.append("  ".join([str(each.loops or "").rjust(5), *counts, f"{each.site}: {source}"]))
        return "\n".join(lines)

    def compared(self, other: Compiled) -> str:
        """How another version of the kernel differs: instructions of each kind, here and there."""
        mine, theirs = self.mix, other.mix
        kinds = [kind for kind, _ in (mine + theirs).most_common()]
        width = max(map(len, (*kinds, "instructions")))
        rows = [(kind, mine[kind], theirs[kind]) for kind in kinds]
        rows.append(("instructions", mine.total(), theirs.total()))
        lines = [f"{'':{width}}  {self.name} -> {other.name}"]
        lines += [f"{kind:{width}}  {before} -> {after}" for kind, before, after in rows]
        return "\n".join(lines)


# -- what to compile -------------------------------------------------------------------------------------


def described(argument: Any) -> tuple[Any, ...]:
    """What the compiler needs to know of an argument of a launch: types, not contents."""
    if hasattr(argument, "to_device") and hasattr(argument, "value"):  # cuda.In and its like
        argument = argument.value
    argument = getattr(argument, "_ary", argument)
    if isinstance(argument, tuple):
        return "tuple", tuple(map(described, argument)), type(argument)
    dtype, shape = getattr(argument, "dtype", None), getattr(argument, "shape", ())
    if dtype is not None and (shape or isinstance(argument, np.ndarray)):
        flags = getattr(argument, "flags", None)
        if flags is None:  # on a GPU
            layout = "C" if argument.is_c_contiguous() else "F" if argument.is_f_contiguous() else "A"
        else:
            layout = "C" if flags.c_contiguous else "F" if flags.f_contiguous else "A"
        return "array", dtype, len(shape), layout
    return "value", argument


def task(function: Any, kinds: tuple[Any, ...]) -> Task:
    """A function to compile for the card that the laboratory stands for, with arguments as described."""
    return Task(getattr(function, "__name__", "?"), function, kinds, Chosen.card.compute_capability)


class Launched:
    """The kernels of launches, each once for each kind of arguments."""

    def __init__(self) -> None:
        self._tasks: dict[Any, Task] = {}

    def note(self, function: Any, arguments: Iterable[Any]) -> None:
        """A launch."""
        kinds = tuple(map(described, arguments))
        # A number's value does not matter to the compiler, only its type; a factory makes many functions of one code.
        cells = tuple(map(_fixed, getattr(function, "__closure__", None) or ()))
        key = (
            getattr(function, "__code__", function),
            cells,
            tuple(type(kind[1]) if kind[0] == "value" else str(kind) for kind in kinds),
        )
        self._tasks.setdefault(key, task(function, kinds))

    def compiled(self) -> tuple[Compiled, ...]:
        """What becomes of them. Kernels of one name that compile alike are told once."""
        results = compile_all(list(self._tasks.values()))
        return tuple({str(result): result for result in results}.values())


def _fixed(cell: Any) -> Any:
    try:
        value = cell.cell_contents
    except ValueError:  # not filled yet
        return None
    return (type(value), value) if isinstance(value, (bool, int, float, str)) else id(value)


def compiled(kernel: Any, *arguments: Any) -> Compiled:
    """Compile a kernel for the arguments of a launch, and say what became of it. Runs nothing; needs no GPU.

    Args:
        kernel: of ``numba.cuda``, or a Python function that is written like one.
        arguments: as a launch has them; of arrays, only the types count.

    A boolean that the kernel takes from its module or from the function around it is compiled with both values.
    """
    function = getattr(kernel, "py_func", getattr(kernel, "fn", kernel))
    if not isinstance(function, FunctionType):
        raise TypeError(f"compiled: a kernel or a Python function is wanted, not {type(kernel).__name__}")
    if type(kernel).__module__.startswith("numba_cuda_mlir."):
        return Compiled(
            function.__name__, error="was not compiled: it is of numba_cuda_mlir, which has its own compiler"
        )
    return compile_all([task(function, tuple(map(described, arguments)))])[0]


def compile_all(tasks: Sequence[Task]) -> list[Compiled]:
    """What becomes of kernels."""
    if not tasks:
        return []
    jit: Callable[..., Any] = importlib.import_module("numba.cuda").jit
    if not jit.__module__.startswith("numba.cuda.simulator") and not hasattr(jit, "__wrapped__"):
        from gpuconv.lab import compiling

        return [compiling.compiled(task) for task in tasks]
    pickled, results, where = [], {}, []
    for number, task in enumerate(tasks):
        try:
            pickled.append(_pickled(task))
            where.append(number)
        except Exception as error:  # of many kinds: a kernel holds what cannot leave this process
            words = f"was not compiled: it cannot be handed to another process: {type(error).__name__}: {error}"
            results[number] = Compiled(task.name, error=words)
    for number, result in zip(where, _elsewhere(pickled), strict=True):
        results[number] = result if result.name != "?" else Compiled(tasks[number].name, error=result.error)
    return [results[number] for number in range(len(tasks))]


def _elsewhere(tasks: list[bytes]) -> list[Compiled]:
    """Compile in a process whose ``numba.cuda`` is for a GPU."""
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "gpuconv.lab.compiling"],
        input=pickle.dumps((sys.path, tasks)),
        env=environment,
        capture_output=True,
    )
    try:
        results: list[Compiled] = pickle.loads(done.stdout)
        return results
    except (EOFError, pickle.UnpicklingError):
        words = (done.stderr.decode(errors="replace").strip().splitlines() or ["no answer"])[-1]
        return [Compiled("?", error=f"was not compiled: the compiler's process ended: {words}") for _ in tasks]


def _pickled(task: Task) -> bytes:
    """A kernel as another process can read it: functions by value, what is simulated by its name."""
    cloudpickle: Any = importlib.import_module("numba.cloudpickle")
    cuda = importlib.import_module("numba.cuda")
    simulated = {id(value): name for name, value in vars(cuda).items() if callable(value)}
    kernel_type = importlib.import_module("numba.cuda.simulator.kernel").FakeCUDAKernel

    class Pickler(cloudpickle.Pickler):
        def reducer_override(self, value: Any) -> Any:
            compiling = "gpuconv.lab.compiling"
            if isinstance(value, kernel_type):
                return _Named(compiling, "device_function"), (value.fn,)
            if not isinstance(value, type) and id(value) in simulated:
                return _Named(compiling, "named"), ("numba.cuda", simulated[id(value)])
            if isinstance(value, FunctionType) and (value.__module__ or "").startswith("gpuconv.kernels."):
                place = _place(value)  # of an intrinsic, which is a Python function here
                if place is not None:
                    return _Named(compiling, "named"), place
            return super().reducer_override(value)

    memory = io.BytesIO()
    Pickler(memory).dump(task)
    return memory.getvalue()


def _place(function: FunctionType) -> tuple[str, str] | None:
    """A module of this project's device functions that has a function, and the name that it has there."""
    for module in [name for name in sys.modules if name.startswith("gpuconv.kernels.")]:
        for name, value in vars(sys.modules[module]).items():
            if value is function and not name.startswith("_"):
                return module, name
    return None


class _Named:
    """A function of a module that must not be imported here."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name

    def __call__(self, *args: Any) -> Any:
        return getattr(importlib.import_module(self.module), self.name)(*args)
