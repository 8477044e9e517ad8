"""The page: one HTML file with the network's weights, its style and its script in it, and nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping
from importlib import resources
from typing import Any

import numpy as np

from gpuconv.explorer.program import Program

__all__ = ["SCRIPTS", "packed", "page_of", "program_json", "script"]

#: In the order in which they are joined: each uses what stands before it.
SCRIPTS = (
    "product.mjs",
    "operations.mjs",
    "network.mjs",
    "picture.mjs",
    "colours.mjs",
    "pad.mjs",
    "layers.mjs",
    "inspector.mjs",
    "why.mjs",
    "main.mjs",
)


def program_json(program: Program) -> dict[str, Any]:
    """What the page's script reads of a program; the tensors' values are apart, see :func:`packed`."""
    return {
        "input": program.input,
        "logits": program.logits,
        "steps": [
            {"op": step.op, "inputs": step.inputs, "output": output, "options": step.options}
            for step, output in zip(program.steps, program.outputs, strict=True)
        ],
        "shapes": program.shapes,
        "tensors": [[name, array.shape] for name, array in program.tensors.items()],
        "layers": [{"label": layer.label, "kind": layer.kind, "steps": layer.steps} for layer in program.layers],
        "folded": program.folded,
    }


def packed(tensors: Mapping[str, np.ndarray], *, half: bool) -> str:
    """The values of tensors one after the other, in base64; float16 (little endian), else float32."""
    dtype = np.dtype("<f2" if half else "<f4")
    largest = np.finfo(dtype).max
    parts = [np.clip(array, -largest, largest).astype(dtype).reshape(-1) for array in tensors.values()]
    return base64.b64encode(np.concatenate(parts).tobytes() if parts else b"").decode()


def page_of(title: str, data: Mapping[str, Any]) -> str:
    """The page as text.

    Args:
        title: of the window; any text.
        data: what the script reads, JSON types. Names in it may be anything: they never become HTML.
    """
    files = resources.files("gpuconv.explorer").joinpath("page")
    code, style = script(), files.joinpath("page.css").read_text("utf-8")
    old = files.joinpath("old.js").read_text("utf-8")
    # The policy allows these two scripts by their digests and no others, and no connection: were a name to get into
    # the page as markup in spite of all, it could neither run nor send anything. WebAssembly has to be allowed by name.
    hashes = " ".join(f"'sha256-{_digest(text)}'" for text in (code, old))
    policy = (
        f"default-src 'none'; script-src {hashes} 'wasm-unsafe-eval'; style-src 'unsafe-inline'; img-src data: blob:"
    )
    parts = {
        "policy": policy,
        "title": html.escape(title),
        "style": style,
        "data": _embedded(data),
        "script": code,
        "old": old,
    }
    template = files.joinpath("page.html").read_text("utf-8")
    # In one pass: what is put in may itself hold something that looks like a place.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def script() -> str:
    """The modules as one: what they import from each other is there by its name already."""
    files = resources.files("gpuconv.explorer").joinpath("page")
    texts = [files.joinpath(name).read_text("utf-8") for name in SCRIPTS]
    joined = "\n".join(texts)
    joined = re.sub(r"^import\s[^;]*?;\n", "", joined, flags=re.MULTILINE)
    joined = re.sub(r"^export \{[^}]*\};\n", "", joined, flags=re.MULTILINE)
    return re.sub(r"^export ", "", joined, flags=re.MULTILINE)


def _embedded(data: Mapping[str, Any]) -> str:
    """JSON that no HTML parser takes for markup."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
