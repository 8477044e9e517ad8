"""Reads PTX: functions, variables, instructions with their lines. Names are made unique, whatever scope they are in."""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NoReturn

import numpy as np

from gpuconv.lab.ptx.values import NARROW, TYPES, Array, PtxError, register_type

#: Spaces of variables, and where an access may go.
SPACES = ("global", "const", "shared", "local", "param")


@dataclass(frozen=True)
class Instruction:
    """One instruction, with its operands as text; those in braces are a tuple."""

    opcode: str
    operands: tuple[Any, ...]
    #: Register that decides which threads take part, and which value of it does.
    predicate: str | None
    wanted: bool
    text: str
    #: Its line in the PTX, and the line of source that the compiler noted.
    line: int = 0
    source: str = ""
    #: The scopes it stands in, for labels.
    scopes: tuple[int, ...] = ()

    @cached_property
    def parts(self) -> list[str]:
        """The opcode's, without a scope of memory behind colons: ``ld``, ``shared``, ``u32``."""
        return self.opcode.replace("shared::cta", "shared").replace("param::entry", "param").split(".")

    @property
    def space(self) -> str:
        """The space that an access names, or ``generic``."""
        return "shared" if "shared::cluster" in self.parts else next((p for p in self.parts if p in SPACES), "generic")

    @property
    def place(self) -> str:
        """Where it stands."""
        return f"PTX line {self.line}" + (f", {self.source}" if self.source else "")

    def fails(self, words: str) -> NoReturn:
        """Raise a :class:`PtxError` that names the instruction and its lines."""
        raise PtxError(f"{self.text}: {words} ({self.place})")

    def unknown(self) -> NoReturn:
        """Raise the error for what the interpreter lacks."""
        self.fails("not known here")


@dataclass
class Variable:
    """A variable of the module or of a function."""

    space: str
    align: int
    nbytes: int
    #: Of ``.global`` and ``.const``: the first bytes; names in it are resolved when the module is loaded.
    initial: list[Any] = field(default_factory=list)
    itemsize: int = 1
    #: Offset in its space: of shared memory from the block's, of local memory from the function's.
    offset: int = 0


@dataclass
class Function:
    """A kernel, or a function that it calls.

    Attributes:
        name: as in the code.
        start: number of its first instruction; None for one that is defined elsewhere.
        parameters, results: names, unique in the program, and types (``u64``...) or sizes in bytes.
        local_bytes: of one call, for each thread.
    """

    name: str
    start: int | None = None
    parameters: dict[str, str] = field(default_factory=dict)
    results: dict[str, str] = field(default_factory=dict)
    local_bytes: int = 0
    is_entry: bool = False
    #: Blocks of a cluster in each direction.
    cluster: tuple[int, int, int] = (1, 1, 1)


class _Scope:
    """Names declared between two braces: -> unique name. ``%r<9>`` declares all names that begin with ``%r``."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.names: dict[str, str] = {}
        self.families: dict[str, np.dtype[Any]] = {}


@dataclass
class Program:
    """A kernel in PTX, with the functions that it calls.

    Attributes:
        entry: the kernel.
        functions: by name, the kernel among them.
        variables: by unique name.
        shared_bytes: of all shared arrays of known size.
        instructions: of all functions, in order.
        labels: (scope, label) -> number of the instruction after it.
        registers: unique name -> type of its array.
        tables: label -> the targets that ``brx.idx`` chooses from.
    """

    functions: dict[str, Function] = field(default_factory=dict)
    variables: dict[str, Variable] = field(default_factory=dict)
    shared_bytes: int = 0
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[tuple[int, str], int] = field(default_factory=dict)
    registers: dict[str, np.dtype[Any]] = field(default_factory=dict)
    tables: dict[str, list[str]] = field(default_factory=dict)
    entry: Function = field(default_factory=lambda: Function(""))

    @classmethod
    def parse(cls, text: str | Sequence[str], entry: str | None = None) -> Program:
        """Read the PTX of a module, or of several that are linked.

        Args:
            text: the module, or the one with the kernel and others whose functions it calls.
            entry: name of the kernel, or of another function to begin with; None for the kernel, if there is one only.

        Raises:
            PtxError: it has no such kernel, or something that is not PTX.
        """
        program = cls()
        scopes = 0
        for number, module in enumerate([text] if isinstance(text, str) else text):
            reader = _Reader(program, module, scopes)
            reader.read()
            scopes = reader.count
            if number == 0 and entry is None:
                entry = next((name for name, function in program.functions.items() if function.is_entry), None)
        defined = [function for function in program.functions.values() if function.start is not None]
        wanted = [one for one in defined if (one.is_entry if entry is None else one.name == entry)]
        if len(wanted) != 1:
            have = [one.name for one in (wanted or defined)] or "none"
            raise PtxError(f"one kernel{'' if entry is None else ' ' + entry} is wanted, the module has {have}")
        program.entry = wanted[0]
        return program

    @property
    def parameters(self) -> dict[str, str]:
        """Name of each parameter of the kernel -> its type, in order."""
        return self.entry.parameters

    @cached_property
    def read(self) -> set[str]:
        """The registers that some instruction may read."""
        found: set[str] = set()
        for one in self.instructions:
            first = one.operands[:1] if one.opcode.startswith(("st", "red", "bar", "call")) else ()
            for operand in (*first, *one.operands[1:]):
                found.update(operand if isinstance(operand, tuple) else re.findall(r"[%\w.$]+", operand))
        return found

    @cached_property
    def is_recursive(self) -> bool:
        """Whether a function may be called while it runs."""
        names = sorted((f.start, name) for name, f in self.functions.items() if f.start is not None)
        starts = [start for start, _ in names]
        calls: dict[str, set[str]] = {name: set() for _, name in names}
        for number, one in enumerate(self.instructions):
            if one.opcode.partition(".")[0] == "call":
                caller = names[bisect.bisect_right(starts, number) - 1][1]
                target = next((part for part in one.operands if isinstance(part, str) and part in calls), None)
                calls[caller].update(calls if target is None else [target])
        reached = {name: set(called) for name, called in calls.items()}
        for _ in calls:
            for called in reached.values():
                called.update(*(reached[name] for name in list(called)))
        return any(name in called for name, called in reached.items())

    def target(self, one: Instruction, label: str) -> int:
        """Number of the instruction after a label that an instruction names."""
        for scope in reversed(one.scopes):
            if (scope, label) in self.labels:
                return self.labels[scope, label]
        raise PtxError(f"{one.text}: there is no label {label} ({one.place})")


#: Registers that each thread has without declaring them.
SPECIAL = re.compile(
    r"%(n?tid|n?ctaid|clusterid|nclusterid|cluster_n?ctaid)\.[xyz]|%(laneid|n?warpid|n?smid|gridid|lanemask_\w\w"
    r"|clock\w*|globaltimer\w*|cluster_n?ctarank|is_explicit_cluster|dynamic_smem_size|total_smem_size|envreg\d+|pm\d+)"
)
_NAME = re.compile(r"[%$A-Za-z_][\w$.]*")
_DECLARED = re.compile(
    r"\.(global|const|shared|local|param)\b(?:\s*\.align\s+(\d+)|\s*\.attribute\([^)]*\)|\s*\.ptr(?:\s*\.\w+)?)*\s*"
    r"(?:\.align\s+(\d+)\s*)?(?:\.v(\d)\s+)?\.(\w+)\s+([%$\w]+)((?:\s*\[[^\]]*\])*)\s*(?:=\s*(.*))?$",
    re.DOTALL,
)


class _Reader:
    """Goes through a module once."""

    def __init__(self, program: Program, text: str, first_scope: int = 0) -> None:
        self.program = program
        text = re.sub(r"/\*.*?\*/", lambda found: "\n" * found[0].count("\n"), text, flags=re.DOTALL)
        self.text = re.sub(r'"[^"\n]*"|//[^\n]*', lambda found: "" if found[0].startswith("/") else found[0], text)
        self.ends = [found.end() for found in re.finditer("\n", self.text)]
        self.files = {
            number: path.rsplit("/", 1)[-1] for number, path in re.findall(r'\.file\s+(\d+)\s+"([^"]*)"', self.text)
        }
        self.scopes = [_Scope(first_scope)]
        self.count = first_scope + 1

    def read(self) -> None:
        """Each variable and function of the module."""
        at, text = 0, self.text
        while found := re.compile(r"[;{]|\.(version|target|address_size|file)\b[^\n]*").search(text, at):
            head = text[at : found.start()].strip()
            if found[0] == "{" and re.search(r"\.(entry|func)\b", head):
                at = self._function(head, found.end())
            elif found[0] == "{" and "=" not in head:  # a section of debug information
                at = self._end_of_braces(found.end())
            elif found[0] == "{":
                end = text.index(";", found.end())
                self._declare(text[at:end])
                at = end + 1
            else:
                if re.search(r"\.(entry|func)\b", head):
                    self._head(head)
                elif head.startswith("."):
                    self._declare(head)
                at = found.end()

    def _end_of_braces(self, at: int) -> int:
        depth = 1
        while depth:
            found = re.compile(r"[{}]").search(self.text, at)
            if found is None:
                raise PtxError("a brace is not closed")
            depth += 1 if found[0] == "{" else -1
            at = found.end()
        return at

    def _line(self, at: int) -> int:
        return bisect.bisect_right(self.ends, at) + 1

    # -- names --

    def _unique(self, name: str) -> str | None:
        """The unique name of what a scope declares."""
        for scope in reversed(self.scopes):
            if name in scope.names:
                return scope.names[name]
            family = name.rstrip("0123456789")
            if family in scope.families and family != name:
                return self._register(name, scope, scope.families[family])
        return None

    def _register(self, name: str, scope: _Scope, dtype: np.dtype[Any]) -> str:
        unique = name if scope.number <= 1 else f"{name}.{scope.number}"
        scope.names[name] = unique
        self.program.registers[unique] = dtype
        return unique

    def _renamed(self, operands: str) -> str:
        return _NAME.sub(lambda found: self._unique(found[0]) or found[0], operands)

    # -- declarations --

    def _declare(self, text: str) -> str | None:
        """A variable; gives its unique name."""
        found = _DECLARED.search(" ".join(text.split()))
        if found is None:
            return None
        space, align, again, vector, kind, name, extents, initial = found.groups()
        if kind not in TYPES and kind not in NARROW and kind != "b128":
            return None  # textures, samplers
        itemsize = 16 if kind == "b128" else register_type(kind).itemsize
        itemsize *= int(vector or 1)
        sizes = [int(size or "0", 0) for size in re.findall(r"\[\s*(\w*)\s*\]", extents)]
        elements: list[Any] = []
        if initial:
            whole = initial.strip()
            elements = re.findall(r"[\w.$-]+(?:\([^)]*\)+)?(?:\+\d+)?", whole)
            if sizes and sizes[0] == 0:
                sizes[0] = len(elements)
        nbytes = int(np.prod(sizes, dtype=int)) * itemsize
        variable = Variable(space, int(align or again or itemsize), nbytes, elements, itemsize)
        # What begins at no brace is the module's.
        scope = self.scopes[-1]
        unique = name if space != "param" and scope.number <= 1 else f"{name}.{scope.number}"
        scope.names[name] = unique
        if space == "shared":
            dynamic = sizes and nbytes == 0
            start = -(-self.program.shared_bytes // variable.align) * variable.align
            variable.offset = -1 if dynamic else start
            if not dynamic:
                self.program.shared_bytes = start + nbytes
        elif space == "local":
            function = self.function
            variable.offset = -(-function.local_bytes // variable.align) * variable.align
            function.local_bytes = variable.offset + nbytes
        self.program.variables[unique] = variable
        return unique

    def _head(self, head: str) -> Function:
        """Of a function: its name, results and parameters."""
        found = re.search(r"\.(entry|func)\b\s*(?:\.noreturn\s*)?(\([^)]*\))?\s*([%$\w]+)\s*(\([^)]*\))?", head)
        if found is None:
            raise PtxError(f"not a function: {head}")
        kind, results, name, parameters = found.groups()
        function = self.program.functions.setdefault(name, Function(name))
        if function.start is not None:  # declared again, behind its definition
            return Function(name)
        function.results = dict(self._listed(results or ""))
        function.parameters = dict(self._listed(parameters or ""))
        function.is_entry = kind == "entry"
        cluster = re.search(r"\.reqnctapercluster\s+([\d\s,]+)", head)
        if cluster:
            x, y, z = (*map(int, re.findall(r"\d+", cluster[1])), 1, 1)[:3]
            function.cluster = x, y, z
        return function

    def _listed(self, text: str) -> Iterator[tuple[str, str]]:
        for one in text.strip("() \n").split(","):
            declared = " ".join(one.split())
            if declared:
                if declared.startswith(".reg"):
                    raise PtxError("a function whose parameters are registers: not known here")
                unique = self._declare(declared)
                kinds = re.findall(r"\.(\w+)", declared)
                kind = next(kind for kind in reversed(kinds) if kind in TYPES or kind in NARROW or kind == "b128")
                yield str(unique), f"b8[{self.program.variables[str(unique)].nbytes}]" if "[" in declared else kind

    # -- functions --

    def _open(self) -> None:
        self.scopes.append(_Scope(self.count))
        self.count += 1

    def _function(self, head: str, at: int) -> int:
        """A function with its instructions; gives where the text goes on."""
        self._open()
        function = self.function = self._head(head)
        function.start = len(self.program.instructions)
        source, text, depth = "", self.text, len(self.scopes)
        while True:
            at = re.compile(r"\s*").match(text, at).end()  # type: ignore[union-attr]
            if text[at : at + 1] == "{":
                self._open()
                at += 1
            elif text[at : at + 1] == "}":
                self.scopes.pop()
                at += 1
                if len(self.scopes) < depth:
                    return at
            elif found := re.compile(r"\.loc\s+(\d+)\s+(\d+)[^\n]*").match(text, at):
                if found[2] != "0":
                    source = f"{self.files.get(found[1], '?')}:{found[2]}"
                at = found.end()
            elif found := re.compile(r"([%$\w]+):(?!:)").match(text, at):
                at = found.end()
                listed = re.compile(r"\s*\.branchtargets\s+([^;]*);").match(text, at)
                prototype = re.compile(r"\s*\.callprototype[^;]*;").match(text, at)
                if listed:
                    self.program.tables[found[1]] = re.findall(r"[$%\w]+", listed[1])
                elif not prototype:
                    self.program.labels[self.scopes[-1].number, found[1]] = len(self.program.instructions)
                at = (listed or prototype or found).end()
            else:
                end = text.find(";", at)
                if end < 0 or re.match(r"\s*\}?\s*$", text[at:]):
                    raise PtxError("the text ends within a function")
                self._statement(" ".join(text[at:end].split()), self._line(at), source)
                at = end + 1

    def _statement(self, text: str, line: int, source: str) -> None:
        if text.startswith(".reg"):
            found = re.match(r"\.reg\s*\.(\w+)\s+(.*)", text)
            if found is None:
                raise PtxError(f"not a declaration: {text}")
            for name in re.findall(r"[%$\w]+(?:<\d+>)?", found[2]):
                family, _, many = name.partition("<")
                if many:
                    self.scopes[-1].families[family] = register_type(found[1])
                else:
                    self._register(name, self.scopes[-1], register_type(found[1]))
        elif text.startswith("."):
            self._declare(text)
        elif text:
            self._instruction(text, line, source)

    def _instruction(self, text: str, line: int, source: str) -> None:
        found = re.fullmatch(r"(?:@\s*(!?)\s*([%$\w.]+)\s+)?([a-z][\w.:]*)\s*(.*)", text)
        if found is None:
            raise PtxError(f"not an instruction: {text} (PTX line {line})")
        negated, predicate, opcode, operands = found.groups()
        operands = self._renamed(operands)
        parts = re.findall(r"\{[^}]*\}|\[[^\]]*\]|\([^)]*\)|[^,\s]+", operands)
        split = tuple(
            tuple(re.findall(r"[^,\s{}()]+", part)) if part[0] in "{(" else re.sub(r"\s", "", part) for part in parts
        )
        unique = self._unique(predicate) or predicate if predicate else None
        scopes = tuple(scope.number for scope in self.scopes)
        one = Instruction(opcode, split, unique, negated != "!", text, line, source, scopes)
        self.program.instructions.append(one)


def initial_bytes(variable: Variable, address_of: Any) -> Array:
    """The first content of a variable; ``address_of`` gives the address of a name."""
    found = np.zeros(max(variable.nbytes, variable.itemsize), np.uint8)
    for number, text in enumerate(variable.initial):
        name = re.search(r"[A-Za-z_$][\w$]*(?=\)|\+|$)", text)
        if re.match(r"0[fFdD]", text):
            digits = text[2:]
            value = int(digits, 16)
        elif name and not re.match(r"-?\d", text):
            offset = re.search(r"\+(\d+)", text)
            value = address_of(name[0]) + int(offset[1] if offset else 0)
        else:
            value = int(text.rstrip("U"), 0)
        start = number * variable.itemsize
        raw = (value & (256**variable.itemsize - 1)).to_bytes(variable.itemsize, "little")
        found[start : start + variable.itemsize] = np.frombuffer(raw, np.uint8)
    return found
