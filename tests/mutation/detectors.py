"""Mutants of ``schemas/policy/detectors.toml``: a row gone, a key gone or another, a part gone.

``match`` and ``clean`` are not taken apart: examples are checks themselves, and what they check is
what the mutants change.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, Final

from scrubbers.detectors import Detectors
from tests.checks import shipped
from tests.checks.found import check_classes, check_found, check_stays
from tests.checks.promises import shipped_tables
from tests.mutation.mutant import Killed, Mutant, judged

__all__ = ["judge", "mutants"]

_FILE: Final = "detectors.toml"
_EXAMPLES: Final = ("match", "clean")


def mutants() -> Iterator[Mutant]:
    """Give the mutants of each row and of each part that rows share."""
    table = shipped_tables()[_FILE]
    for name in table["let"]:
        yield Mutant(_FILE, f"let.{name}", "gone")
    for name, row in table["detector"].items():
        yield Mutant(_FILE, f"detector.{name}", "gone")
        for key in row:
            if key not in _EXAMPLES:
                yield Mutant(_FILE, f"detector.{name}.{key}", "gone")
        numbered = row["replacement"].endswith(":#>")
        yield Mutant(
            _FILE, f"detector.{name}.replacement", "not numbered" if numbered else "numbered"
        )
        secret = row["class"] == "secret"
        yield Mutant(_FILE, f"detector.{name}.class", "person" if secret else "secret")


def judge(mutant: Mutant) -> Killed | None:
    """Load a mutant, as far as its change reaches, and run the checks until one fails."""
    part, _, rest = mutant.place.partition(".")
    name, _, key = rest.partition(".")
    one = _Changed(name)
    checks: list[tuple[str, Callable[[], object]]]
    if part == "let":
        checks = [("refused at the start", lambda: one.without_part(name))]
    elif not key:
        checks = [("does not find", lambda: check_found(one.without_row(), [name]))]
    else:
        checks = [
            ("refused at the start", lambda: one.with_row(_row(mutant, name, key))),
            ("does not find", lambda: check_found(one.detectors, [name])),
            ("finds what may stay", lambda: check_stays(one.detectors, [name])),
            ("lets what may stay", lambda: check_classes(one.table, [name])),
        ]
    return judged(checks)


def _row(mutant: Mutant, name: str, key: str) -> dict[str, Any]:
    row = dict(shipped_tables()[_FILE]["detector"][name])
    if mutant.change == "gone":
        del row[key]
    elif key == "replacement":
        row[key] = re.sub(r"(:#)?>", ":#>" if mutant.change == "numbered" else ">", row[key])
    else:
        row[key] = mutant.change
    return row


class _Changed:
    """The shipped detectors with one change; only rows that it concerns are compiled again."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.table: dict[str, Any] = dict(shipped_tables()[_FILE])
        self.detectors = shipped.detectors()

    def without_row(self) -> Detectors:
        kept = [row for row in self.detectors.rows if row.detector.id != self._name]
        return Detectors(kept)

    def with_row(self, row: dict[str, Any]) -> None:
        self.table["detector"] = {self._name: row}
        (new,) = Detectors.compile(self.table).rows
        rows = self.detectors.rows
        self.detectors = Detectors([new if one.detector.id == self._name else one for one in rows])

    def without_part(self, part: str) -> None:
        """Compile what names a part, by itself or by another, without it."""
        let = {name: text for name, text in self.table["let"].items() if name != part}
        marks = {f"{{{{{part}}}}}"}
        for _ in range(4):
            marks |= {f"{{{{{n}}}}}" for n, text in let.items() if any(m in text for m in marks)}
        rows = {
            name: row
            for name, row in self.table["detector"].items()
            if any(mark in str(row) for mark in marks)
        }
        Detectors.compile({"let": let, "detector": rows})
