"""What MkDocs is told beyond its settings: pages that are made, and links to files outside of docs/.

A page of the repository links to sources, examples and benchmarks by relative paths. On the site each of these is a
page, too: the Markdown files of other folders in the menu, all other files with their text, highlighted.
"""

from __future__ import annotations

import os
import posixpath
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "docs"))

from website import reference  # noqa: E402

#: Where ``mkdocs.yml`` lets mkdocstrings read.
SOURCES = ROOT / "build" / "site"
#: Markdown files outside of docs/, and the pages that they become.
PAGES = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "README.md": "readme.md",
    "bench/README.md": "benchmarks.md",
    "examples/README.md": "examples.md",
}
#: The notebook, and the page that shows it.
NOTEBOOK, NOTEBOOK_PAGE = "examples/first_steps.ipynb", "notebook.md"
#: Where the pages come from that do not stand in docs/ themselves.
ORIGINS = {page: path for path, page in {**PAGES, NOTEBOOK: NOTEBOOK_PAGE}.items()}

#: What the site adds to the explorer's page.
EXPLORER = "\n\n<a class='md-button md-button--primary' href='explorer.html'>Open one: LeNet-5, eight epochs</a>\n\n"

_LINK = re.compile(r"(\]\(|<img src=\")([^)#\s\"]*)(#[^)\s]*)?(\)|\")")
_FENCE = re.compile(r"^(```+).*?^\1", re.MULTILINE | re.DOTALL)
_LANGUAGES = {".py": "python", ".md": "markdown"}
#: Files that are no text to read: a link leads to the file.
_DATA = (".json",)


def on_startup(**_: Any) -> None:
    """Put the package together as it is installed, ``kernels`` in ``gpuconv``, for those who read its sources."""
    shutil.rmtree(SOURCES, ignore_errors=True)
    for folder, place in (("gpuconv", "gpuconv"), ("kernels", "gpuconv/kernels")):
        shutil.copytree(ROOT / folder, SOURCES / place, ignore=shutil.ignore_patterns("__pycache__"))
    # `gpuconv.int` and others are NumPy's types. Readers of sources would take each annotation `int` for them.
    top = SOURCES / "gpuconv" / "__init__.py"
    text = top.read_text(encoding="utf-8")
    top.write_text(
        re.sub(r"^from numpy import \w+ as (bool|float|int)\b", "# \\g<0>", text, flags=re.M), encoding="utf-8"
    )


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made."""

    def add(path: str, text: str) -> None:
        files.append(File.generated(config, path, content=text))

    for path, place in PAGES.items():
        add(place, (ROOT / path).read_text(encoding="utf-8"))
    for page in reference.pages():
        add(page.path, page.text)
    add(NOTEBOOK_PAGE, _notebook())
    for path in sorted(_linked_sources()):
        is_data = path.endswith(_DATA)
        add(_page_of_source(path), (ROOT / path).read_text(encoding="utf-8") if is_data else _source(path))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Let links lead to pages of the site."""
    here = page.file.src_uri
    if here.startswith("source/"):
        return markdown
    origin = ORIGINS.get(here, f"docs/{here}")
    if here == "explore.md":
        markdown = markdown.replace("\n\n", EXPLORER, 1)

    def replaced(match: re.Match[str]) -> str:
        before, target, anchor, after = match[1], match[2], match[3] or "", match[4]
        goal = _goal(origin, target)
        if goal is None:
            return match[0]
        return f"{before}{posixpath.relpath(goal, posixpath.dirname(here) or '.')}{anchor}{after}"

    return _outside_code(markdown, lambda text: _LINK.sub(replaced, text))


def on_page_content(content: str, page: Any, config: Any, files: Files) -> str:
    """Docstrings are written for ``help()``: their roles and literal blocks become what they stand for."""
    if not page.file.src_uri.startswith("reference/"):
        return content
    content = re.sub(r":(?:func|class|meth|mod|data|attr|exc):<code>~?([^<]*)</code>", r"<code>\1</code>", content)
    return re.sub(r"\s*::</p>", ":</p>", content)


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Name the theme's search for screen readers, which has no name, and let keys scroll code (see site.css)."""
    output = output.replace("<pre><", '<pre tabindex="0"><')
    return output.replace('role="dialog">', 'role="dialog" aria-label="Search">', 1)


def on_post_build(config: Any) -> None:
    """Add the explorer's page of a network that is trained here; see that no page loads anything from elsewhere."""
    for page in Path(config.site_dir).rglob("*.html"):
        loaded = re.findall(r"<(?:script|img|link)[^>]+(?:src|href)=\"?https?:[^>]+", page.read_text(encoding="utf-8"))
        if any("canonical" not in tag and 'rel="' not in tag for tag in loaded):
            raise PluginError(f"{page.name} loads something from elsewhere: {loaded}")
    run = Path(config.site_dir).parent / "runs" / "site"
    if not os.environ.get("GPUCONV_SITE_WITHOUT_EXPLORER"):
        shutil.rmtree(run, ignore_errors=True)
        for arguments in (("train", "--epochs", "8", "--keep-epochs", "--out", str(run)), ("explore", str(run))):
            subprocess.run([sys.executable, "-m", "gpuconv", *arguments], check=True, stdout=subprocess.DEVNULL)
        shutil.copy(run / "explore.html", Path(config.site_dir) / "explorer.html")


def _notebook() -> str:
    """The notebook with its results, run in a process of its own: this one has loaded CUDA's compiler already."""
    command = [sys.executable, str(ROOT / "docs" / "website" / "running.py"), str(ROOT / NOTEBOOK)]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise PluginError(f"{NOTEBOOK} fails:\n{done.stderr}")
    return done.stdout


# -- files outside of docs/ ------------------------------------------------------------------------------------------


def _outside_code(markdown: str, change: Any) -> str:
    """Markdown with its text changed, but not its blocks of code."""
    parts, at = [], 0
    for fence in _FENCE.finditer(markdown):
        parts += [change(markdown[at : fence.start()]), fence[0]]
        at = fence.end()
    return "".join([*parts, change(markdown[at:])])


def _goal(origin: str, target: str) -> str | None:
    """The page of the site that a link means, or None where MkDocs finds it itself.

    Args:
        origin: the page that has the link, from the repository's root.
        target: the link, without its anchor.
    """
    if not target or re.match(r"[a-z]+:", target):
        return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))
    if path in PAGES:
        return PAGES[path]
    if path == NOTEBOOK:
        return NOTEBOOK_PAGE
    if path.startswith("docs/") and not path.startswith("docs/website/"):
        return path.removeprefix("docs/")
    return _page_of_source(path)


def _page_of_source(path: str) -> str:
    if path.endswith(_DATA):
        return f"source/{path}"
    return f"source/{path}/README.md" if (ROOT / path).is_dir() else f"source/{path}.md"


def _linked_sources() -> set[str]:
    """The files and folders outside of docs/ that any page links to, from the root."""
    found = set()
    origins = [*PAGES, *(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))]
    for origin in origins:
        prose = _FENCE.sub("", (ROOT / origin).read_text(encoding="utf-8"))
        for match in _LINK.finditer(prose):
            goal = _goal(origin, match[2])
            if goal and goal.startswith("source/"):
                found.add(posixpath.normpath(posixpath.join(posixpath.dirname(origin), match[2])))
    return found


def _source(path: str) -> str:
    """A page that shows a file, or lists a folder."""
    place, head = ROOT / path, f"---\nsearch:\n  exclude: true\n---\n\n# {path}\n\n"
    if place.is_dir():
        names = sorted(one.name for one in place.iterdir() if not one.name.startswith(("_", ".")))
        return head + "\n".join(f"- `{name}`" for name in names)
    text = place.read_text(encoding="utf-8")
    fence = "`" * (3 + max((len(run) for run in re.findall(r"^`{3,}", text, re.M)), default=0))
    return f"{head}{fence}{_LANGUAGES.get(place.suffix, 'text')}\n{text.rstrip()}\n{fence}\n"
