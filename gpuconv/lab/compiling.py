"""What the compiler makes of a kernel, line by line: where float64 comes from, and which instructions there are.

Needs ``numba.cuda`` as it is for a GPU, and its compiler, but no GPU. :mod:`gpuconv.lab.machine_code` uses it, in this
process or, where ``numba.cuda`` is simulated, in another one (``python -m gpuconv.lab.compiling``).
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import os
import pickle
import re
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from types import CellType, FunctionType
from typing import Any

import numpy as np

from gpuconv.lab.machine_code import Cause, Compiled, Instructions, Option, Task

#: Options of one kernel that are tried in every combination, at most.
_MOST_OPTIONS = 4


def compiled(task: Task) -> Compiled:
    """Compile a kernel for the arguments of a launch, with each combination of its options."""
    with _launch().compiling_for(task.cc):
        try:
            signature = tuple(_type_of(argument) for argument in task.arguments)
            first, causes, tried = _all(task.function, signature, task.cc)
        except Exception as error:  # of many kinds: NVVM missing, a type that it does not know, a kernel that is wrong
            return Compiled(task.name, error=_in_words(error))
    return Compiled(task.name, tuple(causes), first, variants=tried)


def float64(function: FunctionType, signature: tuple[Any, ...], cc: tuple[int, int]) -> list[Cause]:
    """What makes a kernel compute in float64, with any combination of its options, for types of Numba's."""
    with _launch().compiling_for(cc):
        return _all(function, signature, cc)[1]


def _all(
    function: FunctionType, signature: tuple[Any, ...], cc: tuple[int, int]
) -> tuple[tuple[Instructions, ...], list[Cause], int]:
    """Instructions as the kernel is, causes of float64 with each combination of its options, and how many there are."""
    first, found = _one(function, signature, cc)
    causes = {cause.key: cause for cause in found}
    tried = 1
    for variant, options in _variants(function):
        try:
            _, others = _one(variant, signature, cc)
        except Exception:  # an option that does not go with these arguments
            continue
        tried += 1
        for cause in others:
            causes.setdefault(cause.key, cause._replace(options=options))
    return first, list(causes.values()), tried


def _one(
    function: FunctionType, signature: tuple[Any, ...], cc: tuple[int, int]
) -> tuple[tuple[Instructions, ...], list[Cause]]:
    compiler = importlib.import_module("numba.cuda.compiler")
    with warnings.catch_warnings(), _annotations(compiler) as annotations:
        warnings.filterwarnings(
            "ignore", ".*Could not find source"
        )  # of a kernel that was made by exec; perhaps in colour
        ptx, _ = compiler.compile_ptx(function, signature, cc=cc, lineinfo=True)
    typed = annotations[-1]  # what the kernel calls was compiled before it
    mix = instructions(ptx)
    doubles = {(each.path, each.line): each.kinds["float64"] for each in mix if each.kinds["float64"]}
    wanted = any("float64" in str(kind) or "complex128" in str(kind) for kind in _arrays(signature, typed))
    return mix, [] if wanted else _causes(typed, doubles)


@contextlib.contextmanager
def _annotations(compiler: Any) -> Iterator[list[Any]]:
    """The types that the compiler finds for each function, noted while it compiles: it returns the code alone."""
    found, compile_cuda = [], compiler.compile_cuda

    def noting(*arguments: Any, **options: Any) -> Any:
        result = compile_cuda(*arguments, **options)
        found.append(result.type_annotation)
        return result

    compiler.compile_cuda = noting
    try:
        yield found
    finally:
        compiler.compile_cuda = compile_cuda


def _arrays(signature: tuple[Any, ...], typed: Any) -> Iterator[Any]:
    """The types of the arrays that a kernel is given or makes."""
    for kind in (*signature, *typed.typemap.values()):
        if hasattr(kind, "ndim") and hasattr(kind, "dtype"):
            yield kind.dtype


# -- arguments -------------------------------------------------------------------------------------------


def _type_of(argument: Any) -> Any:
    kind, *what = argument
    if kind == "array":
        dtype, ndim, layout = what
        types = importlib.import_module("numba.core.types")
        return types.Array(importlib.import_module("numba.cuda.np.numpy_support").from_dtype(dtype), ndim, layout)
    if kind == "tuple":
        types = importlib.import_module("numba.core.types")
        return types.BaseTuple.from_types([_type_of(part) for part in what[0]], what[1])
    return importlib.import_module("numba.cuda.typing.typeof").typeof(what[0])


# -- options ---------------------------------------------------------------------------------------------


def _variants(function: FunctionType) -> Iterator[tuple[FunctionType, tuple[Option, ...]]]:
    """Copies of a kernel with other values of what decides at compile time: booleans of its closure or its module."""
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    given = {name: cell.cell_contents for name, cell in cells.items() if isinstance(_content(cell), (bool, np.bool_))}
    names = set(function.__code__.co_names) & set(function.__globals__)
    given |= {name: value for name in sorted(names) if isinstance(value := function.__globals__[name], bool)}
    given = dict(list(given.items())[:_MOST_OPTIONS])
    for values in itertools.product((False, True), repeat=len(given)):
        chosen = dict(zip(given, values, strict=True))
        if chosen == {name: bool(value) for name, value in given.items()}:
            continue
        closure = tuple(CellType(chosen[name]) if name in chosen else cell for name, cell in cells.items())
        copy = FunctionType(
            function.__code__, {**function.__globals__, **chosen}, function.__name__, function.__defaults__, closure
        )
        copy.__qualname__ = function.__qualname__
        yield copy, tuple(Option(name, value) for name, value in chosen.items() if bool(given[name]) != value)


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


# -- float64 ---------------------------------------------------------------------------------------------


def _causes(typed: Any, doubles: dict[tuple[str, int], int]) -> list[Cause]:
    """What makes arithmetic float64 in a kernel none of whose arrays are, with the instructions that come of it."""
    flow = _Flow(typed)
    found: dict[tuple[str, str], Cause] = {}
    for (path, line), count in sorted(doubles.items()):
        for at, what, instead in flow.behind(path, line):
            known = found.get((at, what))
            if known is None:
                found[at, what] = Cause(at, what, instead, (f"{path}:{line}",), count)
            else:
                found[at, what] = known._replace(
                    lines=(*known.lines, f"{path}:{line}"), instructions=known.instructions + count
                )
    return list(found.values())


#: Calls of device functions that are followed: they may call themselves.
_DEEPEST = 8


class _Flow:
    """Which numbers of a kernel are float64, and from what."""

    def __init__(self, typed: Any, depth: int = 0) -> None:
        #: Calls around it: 0 for the kernel.
        self.typed, self.depth = typed, depth
        self.ir = importlib.import_module("numba.cuda.core.ir")
        self.assignments: dict[str, list[Any]] = {}
        self.lines: dict[tuple[str, int], list[Any]] = {}
        for block in typed.blocks.values():
            for statement in block.body:
                self.lines.setdefault((_path(statement.loc.filename), statement.loc.line), []).append(statement)
                if hasattr(statement, "target") and hasattr(statement.target, "name") and hasattr(statement, "value"):
                    self.assignments.setdefault(statement.target.name, []).append(statement)

    def is_double(self, name: str) -> bool:
        return str(self.typed.typemap.get(name)) in ("float64", "complex128")

    def behind(self, path: str, line: int) -> list[tuple[str, str, str]]:
        """Where the float64 of a line comes from: place, what stands there, and what to write instead."""
        found: dict[tuple[str, str, str], None] = {}
        for statement in self.lines.get((path, line), ()):
            for variable in statement.list_vars():
                if self.is_double(variable.name):
                    found |= dict.fromkeys(self.births(variable.name, set()))
            callee = self.callee(getattr(statement, "value", None))
            if callee is not None:
                found |= dict.fromkeys(callee.all_births())
        for flow in [] if found else self.callees():  # a line of a device function
            found |= dict.fromkeys(flow.behind(path, line))
        return list(found)

    def births(self, name: str, seen: set[str]) -> Iterator[tuple[str, str, str]]:
        """The statements at which a float64 number is made of others."""
        if name in seen:
            return
        seen.add(name)
        for statement in self.assignments.get(name, ()):
            value = statement.value
            operands = [each.name for each in statement.list_vars() if each.name != statement.target.name]
            doubles = [each for each in operands if self.is_double(each)]
            for each in doubles:
                yield from self.births(each, seen)
            if not doubles:
                callee = self.callee(value)
                if callee is not None:
                    yield from callee.all_births()
                told = None if callee is not None else self.told(statement, value, operands)
                if told is not None:
                    yield f"{_path(statement.loc.filename)}:{statement.loc.line}", *told

    def all_births(self) -> list[tuple[str, str, str]]:
        seen: set[str] = set()
        return [each for name in self.assignments if self.is_double(name) for each in self.births(name, seen)]

    def told(self, statement: Any, value: Any, operands: list[str]) -> tuple[str, str] | None:
        """A statement that makes float64 of what is not: in words, and what to write. None if it is meant."""
        ir = self.ir
        if isinstance(value, (ir.Const, ir.FreeVar, ir.Global)):
            number = getattr(value, "value", None)
            name = getattr(value, "name", None)
            what = f"`{name}`, which is {number!r}," if name else f"`{number!r}`"
            return f"{what} is float64", f"np.float32({name or f'{number:g}'})"
        if isinstance(value, ir.Arg):
            return (
                None
                if self.depth
                else (
                    f"the argument `{value.name}` is a Python float, which is float64",
                    f"kernel[...](..., np.float32({value.name}))",
                )
            )
        if not isinstance(value, ir.Expr):
            return None
        kinds = [str(self.typed.typemap.get(each)) for each in operands]
        if value.op in ("binop", "inplace_binop"):
            sign = _SIGNS.get(value.fn.__name__.lstrip("i") if value.op == "inplace_binop" else value.fn.__name__)
            left, right = (_plain(self.typed.typemap[side.name]) for side in (value.lhs, value.rhs))
            sides = [self.named(side.name) for side in (value.lhs, value.rhs)]
            instead = [
                f"np.float32({side})" if "int" in kind or "bool" in kind else side
                for side, kind in zip(sides, (left, right), strict=True)
            ]
            sign = sign or value.fn.__name__
            return f"`{sides[0]} {sign} {sides[1]}` of {left} and {right} is float64", f" {sign} ".join(instead)
        if value.op == "call":
            function = self.typed.typemap.get(value.func.name)
            name = self.named(value.func.name)
            if "float64" in name or "float64" in str(function).partition("(")[2].partition(")")[0]:
                return None  # asked for
            given = ", ".join(_plain(kind) for kind in kinds[1:] or kinds)
            inside = ", ".join(f"np.float32({self.named(each.name)})" for each in value.args)
            if name == "float":
                return "`float(...)` is float64", "np.float32(...)"
            return f"`{name}(...)` of {given} is float64", f"{name}({inside})"
        return None

    def named(self, name: str) -> str:
        """A variable as the source has it; what it stands for, if the compiler made it up."""
        if not name.startswith("$"):
            return name.partition(".")[0]
        for statement in self.assignments.get(name, ()):
            value, ir = statement.value, self.ir
            if isinstance(value, ir.Var):
                return self.named(value.name)
            if isinstance(value, ir.Const):
                return f"{value.value!r}"
            if isinstance(value, (ir.Global, ir.FreeVar)):
                return str(value.name)
            op = getattr(value, "op", "")
            if op in ("getitem", "static_getitem"):
                index = self.named(value.index.name) if op == "getitem" else repr(value.index)
                return f"{self.named(value.value.name)}[{index}]"
            if op == "getattr":
                return f"{self.named(value.value.name)}.{value.attr}"
            if op == "call":
                return f"{self.named(value.func.name)}({', '.join(self.named(each.name) for each in value.args)})"
            if op == "binop":
                sign = _SIGNS.get(value.fn.__name__, "?")
                return f"({self.named(value.lhs.name)} {sign} {self.named(value.rhs.name)})"
        return "..."

    def callee(self, value: Any) -> _Flow | None:
        """The device function that an expression calls."""
        if getattr(value, "op", None) != "call":
            return None
        dispatcher = getattr(self.typed.typemap.get(value.func.name), "dispatcher", None)
        signature = self.typed.calltypes.get(value)
        overloads = getattr(dispatcher, "overloads", {})
        made = overloads.get(tuple(signature.args)) if signature is not None else None
        typed = getattr(made, "type_annotation", None)
        return None if typed is None or self.depth > _DEEPEST else _Flow(typed, self.depth + 1)

    def callees(self) -> Iterator[_Flow]:
        for statements in self.assignments.values():
            for statement in statements:
                callee = self.callee(statement.value)
                if callee is not None:
                    yield callee


_SIGNS = {
    "add": "+", "sub": "-", "mul": "*", "truediv": "/", "floordiv": "//", "mod": "%", "pow": "**",
    "gt": ">", "lt": "<", "ge": ">=", "le": "<=", "eq": "==", "ne": "!=",
}  # fmt: skip


def _plain(kind: Any) -> str:
    """A type's name, without the value that it stands for."""
    text = str(kind)
    return "int64" if text.startswith("Literal[int]") else text


# -- instructions ----------------------------------------------------------------------------------------

_FILE = re.compile(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', re.MULTILINE)
_LOC = re.compile(r"^\s*\.loc\s+(\d+)\s+(\d+)")
_LABEL = re.compile(r"^\s*([$\w]+):")
_OPCODE = re.compile(r"^\s*(?:@!?%\w+\s+)?([a-z]\w*(?:\.[\w:]+)*)\s*(.*)")
_SPECIAL = {"ex2", "lg2", "sin", "cos", "tanh", "rsqrt", "rcp", "sqrt", "div", "rem"}
_FREE = {"mov", "cvta", "ret"}


def instructions(ptx: str) -> tuple[Instructions, ...]:
    """The instructions of PTX with its lines of source: by line, how many of each kind, and in how many loops."""
    files = {number: _path(name) for number, name in _FILE.findall(ptx)}
    lines = ptx.splitlines()
    labels = {match[1]: number for number, line in enumerate(lines) if (match := _LABEL.match(line))}
    depth = [0] * len(lines)
    for number, line in enumerate(lines):
        match = _OPCODE.match(line)
        target = labels.get(match[2].rstrip("; ").split()[-1]) if match and match[1].startswith("bra") else None
        if target is not None and target <= number:
            for inside in range(target, number + 1):
                depth[inside] += 1
    counts: dict[tuple[str, int], Counter[str]] = {}
    deepest: dict[tuple[str, int], int] = {}
    place: tuple[str, int] | None = None
    for number, line in enumerate(lines):
        if match := _LOC.match(line):
            place = (files.get(match[1], "?"), int(match[2])) if match[2] != "0" else place
            continue
        match = _OPCODE.match(line)
        kind = None if match is None or not line.rstrip().endswith(";") else _kind(match[1])
        if place is not None and kind is not None:
            counts.setdefault(place, Counter())[kind] += 1
            deepest[place] = max(deepest.get(place, 0), depth[number])
    return tuple(Instructions(*place, deepest[place], kinds) for place, kinds in sorted(counts.items()))


def _kind(opcode: str) -> str | None:
    """Which kind of work an instruction is; None for what costs nothing or belongs to no kind."""
    name, *parts = opcode.split(".")
    if name in _FREE or (name in ("ld", "st") and "param" in parts):
        return None
    if name in ("ld", "ldu", "st", "atom", "red", "prefetch"):
        return "memory"
    if any(part in ("f64", "b64x2") for part in parts):
        return "float64"
    if name == "cvt":
        return "conversions"
    if name in ("bra", "bar", "barrier", "call", "exit", "trap"):
        return "control"
    if name in _SPECIAL:
        return "division, roots, exponentials"
    if any(part in ("f32", "f16", "f16x2", "bf16", "bf16x2", "tf32") for part in parts):
        return "float"
    if name == "mul" and "wide" in parts and "16" not in parts[-1]:
        return "64-bit integers"
    if any(part in ("s64", "u64", "b64") for part in parts):
        return "64-bit integers"
    if any(part in ("s32", "u32", "b32", "s16", "u16", "b16") for part in parts):
        return "32-bit integers"
    return "control" if name == "setp" or "pred" in parts else None


# -- errors ----------------------------------------------------------------------------------------------

_SIZED = re.compile(r"(local|shared)\.array")


def _in_words(error: Exception) -> str:
    """What the compiler refuses, in one line, with its place where that is known."""
    text = re.sub(r"\x1b\[\d*m", "", str(error)).strip()  # Numba's colours
    if isinstance(error, ImportError) or type(error).__name__.endswith("SupportError"):
        return f"was not compiled: {(text.splitlines() or ['the compiler is missing'])[0]}"
    place = "does not compile: "
    for frame, _ in traceback.walk_tb(error.__traceback__):
        found: Any = frame.f_locals.get("loc")
        if hasattr(found, "filename") and hasattr(found, "line"):
            place = f"does not compile: {_path(found.filename)}:{found.line}: "
    memory = _SIZED.search(text)
    if memory is not None and "signature" in text:
        return (
            f"{place}cuda.{memory[1]}.array: its size must be a constant that is known when the kernel is compiled: a "
            "number, a global, or a name of the function around the kernel, not an argument or what is computed of one"
        )
    if "insert_unresolved_ref" in text:
        return f"{place}a device function calls itself, which numba-cuda does not compile"
    lines = [
        line.strip()
        for line in text.splitlines()
        if line.strip() and not line.strip().startswith(("There are", "Failed in"))
    ]
    first = " ".join(lines[:2]) if lines and lines[0].endswith(":") else lines[0] if lines else type(error).__name__
    return f"{place}{type(error).__name__}: {first}"


def _path(name: str) -> str:
    """A file, from here if it is below this folder."""
    try:
        path = os.path.relpath(name)
    except ValueError:  # another drive
        return name
    return name if path.startswith("..") else path


def _launch() -> Any:
    """Imported late, because it loads Numba's CUDA target."""
    return importlib.import_module("gpuconv.kernels.device.launch")


# -- in a process of its own -----------------------------------------------------------------------------


def device_function(function: FunctionType) -> Any:
    """A function that a simulated kernel calls, for the compiler."""
    return importlib.import_module("numba.cuda").jit(device=True)(function)


def named(module: str, name: str) -> Any:
    """What a module has under a name, where it is not simulated."""
    return getattr(importlib.import_module(module), name)


def main() -> None:
    """Read tasks, pickled, and write what became of each."""
    sys.path[:0], tasks = pickle.load(sys.stdin.buffer)
    output, sys.stdout = sys.stdout, sys.stderr  # modules that a kernel needs may print
    results = []
    for task in tasks:
        try:
            results.append(compiled(pickle.loads(task)))
        except Exception as error:
            results.append(Compiled("?", error=f"was not compiled: {type(error).__name__}: {error}"))
    output.buffer.write(pickle.dumps(results))


if __name__ == "__main__":
    main()
