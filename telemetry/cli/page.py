"""An explanation as one HTML page that needs nothing besides itself.

Everything that comes from an event is escaped. The page loads nothing and sends nothing: its policy
(``Content-Security-Policy``) allows its own style and its own few lines of script only.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from html import escape
from typing import Any, Final

from telemetry.cli.explain import before
from telemetry.explain import Explanation, Row

__all__ = ["page"]

_STYLE: Final = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --soft: #59636e; --line: #d1d9e0;
  --panel: #f6f8fa; --kept: #1a7f37; --changed: #9a6700; --removed: #cf222e; --added: #0969da; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --paper: #0d1117; --soft: #9198a1;
  --line: #3d444d; --panel: #151b23; --kept: #3fb950; --changed: #d29922; --removed: #f85149;
  --added: #4493f8; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem; max-width: 90rem; background: var(--paper);
  color: var(--ink); font: 15px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.4rem; margin: 0 0 .5rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .25rem; }
p { margin: .25rem 0; } .soft { color: var(--soft); }
.loud { border: 3px solid var(--removed); color: var(--removed); font-weight: 700;
  padding: .75rem 1rem; margin: 1rem 0; font-size: 1.1rem; }
.filters { position: sticky; top: 0; background: var(--paper); padding: .6rem 0; z-index: 1;
  display: flex; flex-wrap: wrap; gap: .4rem 1.2rem; border-bottom: 1px solid var(--line); }
.filters label { cursor: pointer; }
table { border-collapse: collapse; width: 100%; table-layout: fixed; margin: .75rem 0; }
th, td { text-align: left; vertical-align: top; padding: .4rem .6rem;
  border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
th { background: var(--panel); font-weight: 600; }
col.field { width: 22%; } col.verdict { width: 7rem; } col.before, col.after { width: 24%; }
td pre { margin: 0; font: 13px/1.4 ui-monospace, monospace; white-space: pre-wrap; }
td.field { font: 13px/1.4 ui-monospace, monospace; }
td.why { color: var(--soft); font-size: .9em; }
.kept .verdict, label.kept { color: var(--kept); }
.changed .verdict, label.changed { color: var(--changed); }
.removed .verdict, label.removed { color: var(--removed); }
.added .verdict, label.added { color: var(--added); }
.verdict { font-weight: 600; }
@media (max-width: 45rem) { body { padding: .75rem; } col.verdict { width: 5.5rem; }
  th, td { padding: .3rem; } }
body.no-kept tr.kept, body.no-changed tr.changed, body.no-removed tr.removed,
body.no-added tr.added { display: none; }
@media print { .filters { display: none; } }
"""
_SCRIPT: Final = """
for (const box of document.querySelectorAll(".filters input"))
  box.addEventListener("change", () =>
    document.body.classList.toggle("no-" + box.value, !box.checked));
"""
_VERDICTS: Final = ("kept", "changed", "removed", "added")


def page(explanations: Sequence[Explanation]) -> str:
    """Write explanations as a page.

    Args:
        explanations: Of one or more events. Originals are shown where they were revealed, and the
            page then says so at its head.
    """
    policy = (
        f"default-src 'none'; style-src '{_hash(_STYLE)}'; script-src '{_hash(_SCRIPT)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    loud = (
        '<p class="loud" role="alert">This page holds personal data: it shows the original event. '
        "Do not pass it on; delete it when you are done.</p>"
        if any(one.reveals for one in explanations)
        else '<p class="soft">Shows what leaves; of what does not leave, its class only. '
        "Tokens stand as symbols.</p>"
    )
    counts = {
        word: sum(row.verdict == word for one in explanations for row in one.rows)
        for word in _VERDICTS
    }
    boxes = "".join(
        f'<label class="{word}"><input type="checkbox" value="{word}" checked> '
        f"{word} ({counts[word]})</label>"
        for word in _VERDICTS
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="robots" content="noindex"><title>What leaves, and why</title>'
        f"<style>{_STYLE}</style></head><body><h1>What leaves, and why</h1>{loud}"
        f'<div class="filters" role="group" aria-label="Show">{boxes}</div>'
        f"{''.join(map(_section, explanations))}<script>{_SCRIPT}</script></body></html>"
    )


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _section(one: Explanation) -> str:
    to = f" to {one.entity}" if one.recipient else ""
    outcome = "leaves" if one.outcome == "delivered" else f"{one.outcome}: {one.reason}"
    lines = [f"<h2>{escape(one.kind)}{escape(to)}: {escape(outcome)}</h2>"]
    if one.purpose:
        lines.append(
            f'<p class="soft">{escape(one.notice)}: for {escape(one.purpose)}, '
            f"Art. {escape(one.basis)} GDPR. Policy <code>{escape(one.policy)}</code>.</p>"
        )
    if one.outcome == "delivered" and one.reason:
        lines.append("<p>It left in time; today it would be dropped, because it is too old.</p>")
    if one.unknown:
        names = ", ".join(f"<code>{escape(path)}</code>" for path in one.unknown)
        lines.append(f"<p>No schema declares: {names}.</p>")
    rows = "".join(_row(row, reveals=one.reveals) for row in one.rows)
    head = "".join(f"<th>{name}</th>" for name in ("Field", "Verdict", "Before", "After", "Why"))
    lines.append(
        '<table><colgroup><col class="field"><col class="verdict"><col class="before">'
        f'<col class="after"><col></colgroup><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )
    return f"<section>{''.join(lines)}</section>"


def _row(row: Row, *, reveals: bool) -> str:
    was = (
        f"<pre>{escape(_text(row.before))}</pre>"
        if reveals and row.before is not None
        else (f'<span class="soft">{escape(before(row, reveals=False))}</span>')
    )
    moved = row.at if row.at != row.path and row.verdict != "added" else ""
    there = (
        '<span class="soft">-</span>'
        if row.after is None
        else f"<pre>{escape(_text(row.after))}</pre>"
        + (f'<span class="soft">at {escape(moved)}</span>' if moved else "")
    )
    return (
        f'<tr class="{row.verdict}"><td class="field">{_path(row.path)}</td>'
        f'<td class="verdict">{row.verdict}</td><td>{was}</td><td>{there}</td>'
        f'<td class="why">{escape(row.because)}</td></tr>'
    )


def _path(path: str) -> str:
    """Let a long path break behind its dots."""
    return escape(path).replace(".", ".<wbr>")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1)
