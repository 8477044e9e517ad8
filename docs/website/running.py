"""The code of a page is run as a reader would type it, and what the page says that it prints is compared.

A page is a Markdown file, whose blocks marked ``python`` are run one after the other, or a notebook. A block marked
``output`` is what the blocks between it and the one before print; ``...`` in it stands for anything.

    python docs/website/running.py NOTEBOOK         runs it, and prints it as Markdown
"""

from __future__ import annotations

import ast
import base64
import contextlib
import contextvars
import doctest
import io
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_BLOCK = re.compile(r"^```(python|output)\n(.*?)^```", re.MULTILINE | re.DOTALL)


class WrongOutput(AssertionError):
    """A page shows something else than what its code prints."""


@dataclass
class Cell:
    """Code, and what the page says that it prints; None where the page does not say."""

    code: str
    shown: str | None = None


def cells(page: Path) -> list[Cell]:
    """The code of a page, in its order."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        sources = ("".join(one["source"]) for one in json.loads(text)["cells"] if one["cell_type"] == "code")
        # Lines for the notebook itself install packages, which are here.
        return [Cell(re.sub(r"^%.*$", "", source, flags=re.MULTILINE)) for source in sources]
    found: list[Cell] = []
    for kind, body in _BLOCK.findall(text):
        if kind == "python":
            found.append(Cell(body))
        else:
            found[-1].shown = body
    return found


def run(page: Path) -> dict[str, Any]:
    """Run a page and return the names that it defines. What it sets from now on, such as a backend, ends with it.

    Raises:
        WrongOutput: it prints something else than it shows.
    """
    return contextvars.copy_context().run(_run, page)


def _run(page: Path) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "__main__"}
    printed = ""
    for cell, (text, _) in steps(page, names):
        printed += text
        if cell.shown is not None:
            if not doctest.OutputChecker().check_output(cell.shown, printed, doctest.ELLIPSIS):
                raise WrongOutput(f"{page.name} shows\n{cell.shown}but prints\n{printed}")
            printed = ""
    return names


def steps(page: Path, names: dict[str, Any]) -> Iterator[tuple[Cell, tuple[str, Any]]]:
    """Run a page cell by cell; yields each with what it printed, and the value of a notebook's last line."""
    line = 0
    for cell in cells(page):
        code = "\n" * line + cell.code
        # Lines are counted over all blocks, as if the reader had typed them into one file.
        line = code.count("\n") + (not cell.code.endswith("\n")) + (page.suffix != ".ipynb")
        tree = ast.parse(code, f"{page.stem}.py")
        last: Any = None
        if page.suffix == ".ipynb" and tree.body and isinstance(tree.body[-1], ast.Expr):
            last = ast.Expression(tree.body.pop().value)  # type: ignore[attr-defined]
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(tree, f"{page.stem}.py", "exec"), names)
            value = eval(compile(last, f"{page.stem}.py", "eval"), names) if last else None
        yield cell, (out.getvalue(), value)


def notebook_as_markdown(page: Path) -> str:
    """A notebook with what it prints and shows here, as Markdown."""
    results = steps(page, {"__name__": "__main__"})
    parts = []
    for one in json.loads(page.read_text(encoding="utf-8"))["cells"]:
        source = "".join(one["source"])
        if one["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        _, (printed, value) = next(results)
        if printed:
            parts.append(f"```text\n{printed.rstrip()}\n```")
        if value is not None:
            parts.append(_shown(value))
    return "\n\n".join(parts) + "\n"


def _shown(value: Any) -> str:
    """A value as a notebook shows it: a picture, or its text."""
    if hasattr(value, "_repr_png_"):
        picture = base64.b64encode(value._repr_png_()).decode()
        return f'<img alt="the picture that this cell draws" src="data:image/png;base64,{picture}">'
    if hasattr(value, "_repr_html_"):
        return "<a href='explorer.html'>The page that this cell shows</a>"
    return f"```text\n{value!r}\n```"


if __name__ == "__main__":
    print(notebook_as_markdown(Path(sys.argv[1])))
