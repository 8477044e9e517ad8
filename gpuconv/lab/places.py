"""Where things are: an index in a grid, an instruction in the source."""

from __future__ import annotations

import ast
import linecache
import os
import sys
from types import CodeType
from typing import Any, NamedTuple, TypeAlias

import numpy as np

Array: TypeAlias = "np.ndarray[Any, Any]"
#: An instruction of a kernel: its code, and where in the source it stands.
Site: TypeAlias = "tuple[CodeType, tuple[Any, ...]]"

WARP = 32


class Dim3(NamedTuple):
    """Sizes of a grid or block, or an index in one."""

    x: int
    y: int
    z: int

    def __str__(self) -> str:
        return f"({self.x}, {self.y}, {self.z})"  # as a kernel prints it

    def at(self, number: int) -> Dim3:
        """The index of the thread or block ``number``; x runs fastest."""
        plane, x = divmod(number, self.x)
        z, y = divmod(plane, self.y)
        return Dim3(x, y, z)

    def number(self, sizes: Dim3) -> int:
        """The inverse of ``at``: the number of the thread or block with this index."""
        return self.x + sizes.x * (self.y + sizes.y * self.z)


# -- instructions ----------------------------------------------------------------------------------------

_sites: dict[tuple[int, int], Site] = {}


def site(code: CodeType, offset: int) -> Site:
    """The instruction at a bytecode offset (``f_lasti``) of a function.

    From Python 3.11 on the interpreter rewrites bytecode while it runs, and one instruction is reported at several
    offsets: its position in the source, line and column, is the same at all of them.
    """
    key = (id(code), offset)
    found = _sites.get(key)
    if found is None:
        position: tuple[Any, ...] = (_line(code, offset), offset)
        if sys.version_info >= (3, 11):
            position = list(code.co_positions())[offset // 2]
        # The code object is kept, so that its id stays its own.
        found = _sites[key] = (code, position)
    return found


def _line(code: CodeType, offset: int) -> int:
    lines = (line for start, end, line in code.co_lines() if start <= offset < end and line is not None)
    return next(lines, code.co_firstlineno)


def site_name(where: Site) -> str:
    """File and line, in the form that editors and terminals turn into a link."""
    code, position = where
    path = os.path.relpath(code.co_filename)
    return f"{code.co_filename if path.startswith('..') else path}:{position[0] or code.co_firstlineno}"


def thread_name(thread: Dim3, block: Dim3) -> str:
    """For messages."""
    return f"thread {tuple(thread)} of block {tuple(block)}"


def is_written_negative(where: Site) -> bool:
    """Whether the instruction is a subscript with a negative number in the source, as in ``x[-1]``."""
    code, position = where
    if len(position) != 4 or position[0] != position[1]:
        return False  # Python 3.10 knows no columns
    line = linecache.getline(code.co_filename, position[0]).encode()
    try:
        node = ast.parse(line[position[2] : position[3]].decode(), mode="eval").body
    except (SyntaxError, UnicodeDecodeError):
        return False
    if not isinstance(node, ast.Subscript):
        return False
    parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    return any(
        isinstance(part, ast.UnaryOp) and isinstance(part.op, ast.USub) and isinstance(part.operand, ast.Constant)
        for part in parts
    )
