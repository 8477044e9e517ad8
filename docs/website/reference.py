"""The pages of the API reference, made from what each module exports: no name is listed by hand, none is left out."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

#: The pages: title, and their modules. What several modules export is described where it stands first in this list.
PAGES = {
    "Functions": ("gpuconv.functional",),
    "Layers": ("gpuconv.nn", "gpuconv.nn.init", "gpuconv.nn.utils"),
    "Tensors": ("gpuconv", "gpuconv.autograd"),
    "Optimizers": ("gpuconv.optim", "gpuconv.optim.lr_scheduler"),
    "Models": ("gpuconv.models",),
    "Data": ("gpuconv.data",),
    "Training": ("gpuconv.training", "gpuconv.parallel", "gpuconv.plots"),
    "Files": ("gpuconv.storage", "gpuconv.onnx"),
    "Explorer": ("gpuconv.explorer",),
    "Backends": ("gpuconv.backends", "gpuconv.cuda", "gpuconv.geometry"),
    "Tuning": ("gpuconv.tuning", "gpuconv.explanation", "gpuconv.captured_step"),
    "Laboratory": ("gpuconv.lab", "gpuconv.lab.report", "gpuconv.lab.simulator", "gpuconv.lab.ptx"),
    "Kernels": ("gpuconv.kernels", "gpuconv.kernels.variant", "gpuconv.kernels.device"),
}


@dataclass
class Page:
    """A page of the reference.

    Attributes:
        path: its place among the documents.
        text: Markdown, with a directive of mkdocstrings for each name.
        names: the dotted names that it describes.
    """

    title: str
    path: str
    text: str = ""
    names: list[str] = field(default_factory=list)


def public_names(module: ModuleType) -> list[str]:
    """What a module exports: its ``__all__``, or what is defined in it and has no underscore in front."""
    names = getattr(module, "__all__", None)
    if names is None:
        own = (name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__)
        names = [name for name in own if not name.startswith("_")]
    return sorted(set(names), key=str.lower)


def place_of(value: Any) -> tuple[str, str] | None:
    """The module and name under which a function or class is defined; None for a module or a plain value."""
    if not (inspect.isroutine(value) or inspect.isclass(value)) or value.__qualname__.startswith("_"):
        return None  # or what is made by a function that is not public, under another name
    if "<locals>" in value.__qualname__ or type(value).__name__ == "CUDADispatcher":
        return None
    return value.__module__, value.__qualname__


def pages() -> list[Page]:
    """All pages, the first of which lists the others."""
    described: dict[tuple[str, str], str] = {}
    made = []
    for title, modules in PAGES.items():
        page = Page(title, f"reference/{title.lower()}.md")
        page.text = f"# {title}\n\n" + "\n".join(
            _section(importlib.import_module(name), page, described, alone=len(modules) == 1) for name in modules
        )
        if "gpuconv.autograd" in modules:
            page.text += _methods(page, described)
        made.append(page)
    command = Page("Command line", "reference/command-line.md", _command_line())
    rows = [
        f"| [{title}]({title.lower()}.md) | {', '.join(f'`{name}`' for name in modules)} | {_summary(modules[0])} |"
        for title, modules in PAGES.items()
    ]
    index = Page("Reference", "reference/README.md")
    index.text = "\n".join(
        [
            "# Reference",
            "",
            "Every public name, from its docstring. In `functional`, `nn` and `optim` names, arguments and semantics "
            "are PyTorch's.",
            "",
            "| page | modules | |",
            "|---|---|---|",
            *rows,
            "| [Command line](command-line.md) | `gpuconv` | every command and option |",
            "",
        ]
    )
    return [index, *made, command]


def _section(module: ModuleType, page: Page, described: dict[tuple[str, str], str], *, alone: bool) -> str:
    """A module's part of a page."""
    lines = [] if alone else [f"## {module.__name__}", ""]
    lines += [_markdown(inspect.getdoc(module) or ""), ""]
    elsewhere, values = [], []
    # Another name of a class or function comes after its own.
    for name in sorted(public_names(module), key=lambda name: _is_alias(module, name)):
        value, dotted = getattr(module, name), f"{module.__name__}.{name}"
        place = place_of(value)
        if inspect.ismodule(value):
            continue
        if place and place[0].split(".")[0] == "gpuconv":
            if place in described:
                elsewhere.append(f"[`{name}`][{described[place]}]")
                continue
            described[place] = dotted
            lines += [f"::: {dotted}", *(["    options: { heading_level: 2 }"] if alone else []), ""]
        elif place:
            values.append(f"| `{name}` | `{place[0]}.{place[1]}` |")
        else:
            values.append(f"| `{name}` | {_markdown(description(module, name))} |")
        page.names.append(dotted)
    if values:
        lines += [f"**Values of `{module.__name__}`**", "", "| name | what it is |", "|---|---|", *values, ""]
    if elsewhere:
        lines += [f"**Also in `{module.__name__}`:** {', '.join(elsewhere)}.", ""]
    return "\n".join(lines)


def _markdown(text: str) -> str:
    """A docstring as Markdown: its tables as text, its cross-references as code."""
    text = re.sub(r"^(=[= ]+\n.*^=[= ]+$)", r"```text\n\1\n```", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^::\n|(?<=\w) ?::$", lambda found: ":" if found[0].endswith("::") else "", text, flags=re.MULTILINE)
    return re.sub(r":(?:func|class|meth|mod|data|attr|exc):(`+)~?", r"\1", text)


def _is_alias(module: ModuleType, name: str) -> bool:
    return (place_of(getattr(module, name)) or ("", name))[1] != name


def description(module: ModuleType, name: str) -> str:
    """What is said of a name that is no function or class: the comment ``#: ...`` above it, or a word of its module."""
    value = getattr(module, name)
    for other in [module, *(m for n, m in sorted(sys.modules.items()) if n.startswith("gpuconv."))]:
        if vars(other).get(name) is value and getattr(other, "__file__", None):
            found = re.search(
                rf"((?:^#: .*\n)+)(?:^\w.* = .*\n)*(?:\w+, )*{name}\b.*=",
                Path(other.__file__ or "").read_text("utf-8"),
                re.MULTILINE,
            )
            if found:
                return " ".join(line.removeprefix("#: ") for line in found[1].splitlines())
    if isinstance(value, type):
        return f"`{value.__module__}.{value.__qualname__}`"
    if re.search(rf"\b{name}\b[^\n]*``", inspect.getdoc(module) or ""):
        return "a device function: see above"
    return ""


def _methods(page: Page, described: dict[tuple[str, str], str]) -> str:
    """The methods of Tensor that modules of operations add to the class: links, or what is found nowhere else."""
    from gpuconv import Tensor

    own, links, rows = [], [], []
    for name in sorted(n for n in dir(Tensor) if not n.startswith("_")):
        value = inspect.getattr_static(Tensor, name)
        place = place_of(value)
        if place and place[1].startswith("Tensor."):
            continue
        if place in described:
            links.append(f"[`{name}`][{described[place]}]")
            continue
        page.names.append(f"gpuconv.Tensor.{name}")
        if place is None:  # made by a function: there is no text for mkdocstrings to read
            rows.append(f"| `{name}` | {(inspect.getdoc(value) or '').splitlines()[0]} |")
        else:
            described[place] = f"{place[0]}.{place[1]}"
            own += [f"::: {place[0]}.{place[1]}", ""]
    return "\n".join(
        ["", "## Further methods of Tensor", "", "The first argument is the Tensor. Described elsewhere: "]
        + [", ".join(links) + ".", "", *own, "| in place | |", "|---|---|", *rows, ""]
    )


def _summary(name: str) -> str:
    """The first sentence of a module's docstring."""
    return (inspect.getdoc(importlib.import_module(name)) or "").split("\n\n")[0].replace("\n", " ").split(". ")[0]


def commands() -> Iterator[tuple[str, Any]]:
    """The commands of ``gpuconv`` with their parameters, as Click has them."""
    import typer.main

    from gpuconv.cli.app import program

    group: Any = typer.main.get_command(program())
    yield from sorted(group.commands.items())


def _command_line() -> str:
    lines = ["# Command line", "", "`gpuconv COMMAND --help` prints the same.", ""]
    for name, command in commands():
        lines += [f"## gpuconv {name}", "", inspect.cleandoc(command.help or ""), ""]
        rows = []
        for option in command.params:
            words = ", ".join(f"`{word}`" for word in (*option.opts, *option.secondary_opts))
            if option.param_type_name == "argument":
                words = f"`{option.name.upper()}`"
            text = " ".join((getattr(option, "help", "") or "").split()).replace("|", "\\|")
            rows.append(f"| {words} | {text} |")
        if rows:
            lines += ["| option | |", "|---|---|", *rows, ""]
    return "\n".join(lines)
