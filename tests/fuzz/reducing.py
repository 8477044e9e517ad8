"""Make a program that fails short: drop statements, then make what is left plain and small, as long as it fails alike.

This is delta debugging (Zeller & Hildebrandt, 2002). Statements go together with those that need what they defined.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from .programs import Program, targets, uses

#: Text for which something plainer will perhaps do.
_PLAINER = (
    (r"'(?:F|reversed|sliced|inner|broadcast|swapped|unaligned|readonly|empty neighbour)'", "'C'"),
    (r", (?:retain_graph|keepdim)=True", ""),
    (r"F\.tanh\(([xo]\d+)\)", r"\1"),
    (r"\(([x]\d+) \* \1 \+ (?:1|0\.5)\)", r"\1"),
    (r"'float64'", "'float32'"),
    (r"nn\.\w+\((?:\([^)]*\)|[^()])*\), ", ""),  # a layer
    (r"bias=True", "bias=False"),
    (r"Tensor\((x\d+)\)", r"\1"),
)


def reduced(program: Program, fails: Callable[[Program], bool], at: int | None = None, most: int = 400) -> Program:
    """The shortest program found that still fails.

    Args:
        program: fails.
        fails: whether a program fails in the same way.
        at: number of the statement that does, if known: what is behind it is dropped.
        most: how many programs to try.
    """
    tried = 0

    def attempt(statements: list[str], eager: bool | None = None) -> bool:
        """Take other statements if the program fails with them, too."""
        nonlocal program, tried
        eager = program.eager if eager is None else eager
        if (statements, eager) == (program.statements, program.eager) or tried >= most:
            return False
        tried += 1
        candidate = replace(program, statements=statements, eager=eager)
        if fails(candidate):
            program = candidate
            return True
        return False

    if at is not None:
        attempt(program.statements[: at + 1])
    if program.eager:
        attempt(program.statements, False)
    before = None
    while before != program.statements:
        before = program.statements
        size = len(before) // 2
        while size:  # first half of them at once, in the end one
            for first in reversed(range(0, len(program.statements), size)):
                attempt(_without(program.statements, first, size))
            size //= 2
        for pattern, plainer in _PLAINER:
            if not attempt([re.sub(pattern, plainer, statement) for statement in program.statements]):
                for number, statement in enumerate(program.statements):
                    one = re.sub(pattern, plainer, statement, count=1)
                    attempt([*program.statements[:number], one, *program.statements[number + 1 :]])
        # A size has to become smaller everywhere at once, in shapes and in layers.
        sizes = {int(size) for statement in program.statements for size in re.findall(_INTEGER, statement)}
        for size in sorted(sizes, reverse=True):
            for less in sorted({1, 2, size // 2, size - 1} - {0}):
                if less < size and attempt(
                    [re.sub(rf"{_BEFORE}{size}{_BEHIND}", str(less), s) for s in program.statements]
                ):
                    break
    return program


_BEFORE, _BEHIND = r"(?<![\w.'])", r"(?![\w.'])"
_INTEGER = rf"{_BEFORE}\d+{_BEHIND}"


def _without(statements: list[str], first: int, count: int) -> list[str]:
    """Without some statements, and without those that need what they defined."""
    gone: set[str] = set().union(*map(targets, statements[first : first + count]))
    left = statements[:first]
    for statement in statements[first + count :]:
        if statement.startswith("del "):
            kept = [name for name in statement[4:].split(", ") if name not in gone]
            if kept:
                left.append(f"del {', '.join(kept)}")
        elif uses(statement) & gone:
            gone |= set(targets(statement))
        else:
            left.append(statement)
    return left
