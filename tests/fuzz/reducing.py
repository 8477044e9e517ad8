"""Make a program that fails short: drop statements, then make what is left plain and small, as long as it fails alike.

This is delta debugging (Zeller & Hildebrandt, 2002) one statement at a time, as programs are short; a statement whose
variables are gone is skipped when the program runs, and so need not be dropped together with what it depends on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace

from .programs import Program, targets, uses

#: Text for which something plainer will perhaps do.
_PLAINER = (
    (r"'(?:F|reversed|sliced|inner|broadcast|swapped|unaligned|readonly|empty neighbour)'", "'C'"),
    (r", (?:retain_graph|keepdim)=True", ""),
    (r"F\.tanh\(([xo]\d+)\)", r"\1"),
    (r"\(([x]\d+) \* \1 \+ (?:1|0\.5)\)", r"\1"),
    (r"'float64'", "'float32'"),
    (r"'float32'", "'float64'"),
    (r"nn\.\w+\(\), ", ""),
    (r"bias=True", "bias=False"),
    (r"\((\d+), \1\)", r"\1"),
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
    if at is not None:
        shorter = replace(program, statements=program.statements[: at + 1])
        program = shorter if fails(shorter) else program
    tried = 0
    again = True
    while again:
        again = False
        for candidate in _smaller(program):
            tried += 1
            if tried > most:
                return program
            if fails(candidate):
                program, again = candidate, True
                break
    return program


def _smaller(program: Program) -> Iterator[Program]:
    statements = program.statements

    def others(changed: list[str]) -> Program:
        return replace(program, statements=changed)

    if len(statements) > 6:
        for half in range(2):
            middle = len(statements) // 2
            yield others(statements[:middle] if half else statements[middle:])
    for number in reversed(range(len(statements))):
        yield others(_without(statements, number))
    if program.eager:
        yield replace(program, eager=False)
    for pattern, plainer in _PLAINER:
        # float32 and float64 may each be what it takes: only in one direction, from the rarer of the two.
        if pattern == "'float32'" and "'float64'" not in str(statements):
            continue
        if pattern == "'float64'" and "'float32'" not in str(statements):
            continue
        changed = [re.sub(pattern, plainer, statement) for statement in statements]
        if changed != statements:
            yield others(changed)
        for number, statement in enumerate(statements):
            if (one := re.sub(pattern, plainer, statement, count=1)) != statement:
                yield others([*statements[:number], one, *statements[number + 1 :]])
    # A size has to become smaller everywhere at once, in shapes and in layers.
    sizes = {int(size) for statement in statements for size in re.findall(r"(?<![\w.])\d+(?![\w.])", statement)}
    for size in sorted(sizes, reverse=True):
        for less in {1, 2, size // 2, size - 1}:
            if 0 < less < size:
                changed = [re.sub(rf"(?<![\w.]){size}(?![\w.])", str(less), statement) for statement in statements]
                yield others(changed)


def _without(statements: list[str], number: int) -> list[str]:
    """Without a statement, and without those that need what it defined."""
    gone: set[str] = set(targets(statements[number]))
    left = statements[:number]
    for statement in statements[number + 1 :]:
        if statement.startswith("del "):
            kept = [name for name in statement[4:].split(", ") if name not in gone]
            if kept:
                left.append(f"del {', '.join(kept)}")
        elif uses(statement) & gone:
            gone |= set(targets(statement))
        else:
            left.append(statement)
    return left
