"""A report as a page of HTML, which Jupyter shows where a cell ends with one."""

from __future__ import annotations

import html
import linecache
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpuconv.lab.report import Fault, Report

_STYLE = (
    ".gpuconv-lab table{border-collapse:collapse;margin:.3em 0 .8em}"
    ".gpuconv-lab td,.gpuconv-lab th{text-align:left;padding:.15em .7em;vertical-align:top}"
    ".gpuconv-lab td.n{text-align:right}"
    ".gpuconv-lab .fault{border-left:.25em solid #c0392b;padding-left:.6em;margin:.5em 0}"
    ".gpuconv-lab .remark{border-left:.25em solid #b7950b;padding-left:.6em;margin:.5em 0}"
    ".gpuconv-lab code{white-space:pre-wrap}"
)


def page(report: Report) -> str:
    """The faults with their lines, the remarks, and what memory cost, the dearest first."""
    return f'<div class="gpuconv-lab"><style>{_STYLE}</style>{"".join(_parts(report))}</div>'


def _parts(report: Report) -> Iterator[str]:
    yield f"<b>{html.escape(str(report).splitlines()[0])}</b>"
    for fault in report.faults:
        yield _told(fault, "fault")
    for remark in report.remarks:
        yield _told(remark, "remark")
    shared = sorted(report.bank_conflicts, key=lambda each: each.passes, reverse=True)
    if shared:
        rows = [(each.site, each.what_of, each.requests, f"{each.degree:.2f}", f"{each.worst:.0f}") for each in shared]
        yield _table("shared memory", ("", "requests", "conflict degree", "worst"), rows)
    touched = sorted(report.sectors, key=lambda each: each.sectors, reverse=True)
    if touched:
        rows = [
            (each.site, each.what_of, each.requests, f"{each.per_request:.1f}", f"{each.efficiency:.0%}")
            for each in touched
        ]
        yield _table("global memory", ("", "requests", "sectors a request", "needed"), rows)
    for code in report.code:
        yield f"<pre>{html.escape(str(code))}</pre>"


def _told(fault: Fault, kind: str) -> str:
    lines = "<br>".join(_source(site) for site in dict.fromkeys(fault.sites))
    return f'<div class="{kind}">{html.escape(str(fault))}<br>{lines}</div>'


def _source(site: str) -> str:
    path, _, line = site.rpartition(":")
    return f"<code>{html.escape(site)}: {html.escape(linecache.getline(path, int(line)).strip())}</code>"


def _table(title: str, headings: Sequence[str], rows: Iterable[tuple[Any, ...]]) -> str:
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in (title, *headings))
    body = "".join(
        f"<tr><td>{_source(site)}</td><td>{html.escape(what)}</td>"
        + "".join(f'<td class="n">{html.escape(str(each))}</td>' for each in numbers)
        + "</tr>"
        for site, what, *numbers in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"
