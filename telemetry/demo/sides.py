"""One event before and after, side by side: what happened to each field, and why.

The left side is what a client sent, the right side what the recipient received. `telemetry.explain`
says why they differ; this module finds the events and shows little enough to be read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple, TypeVar

from telemetry import explain
from telemetry.demo.clients import FEEDBACK
from telemetry.demo.stage import Evidence
from telemetry.dialects import sentry
from telemetry.dialects.sample import Sample, read_samples
from telemetry.explain import Explainer
from telemetry.policy import Policy, load_policy

__all__ = ["Row", "Sides", "Tokens"]

_SHOWN_CHARS: Final = 160
_JOINED_CHARS: Final = 160
_ADDED: Final = ("retain_until", "retention_class", "policy", "organization", "session")


class Row(NamedTuple):
    """One field: where it stands, its two sides, and why they differ."""

    path: str
    before: str
    after: str
    why: str


class Tokens(NamedTuple):
    """One account as two recipients know it, and how many of their records name it so."""

    account: str
    heap: str
    heap_records: int
    sentry: str
    sentry_records: int


class Sides:
    """Explains events of one run under the shipped policy, or the one that was run.

    Its methods raise `LookupError` where what they explain did not arrive.
    """

    def __init__(self, evidence: Evidence, policy: Policy | None = None) -> None:
        self._evidence = evidence
        self._policy = policy or load_policy(None)
        self._explainer = Explainer(self._policy)
        self._kept: list[str] = []

    def promise(self, kind: str) -> str:
        """Quote what allows a kind of event, and who receives it."""
        name = self._policy.purpose_of_kind[kind]
        purpose = self._policy.purposes[name]
        receives = ", ".join(
            self._policy.recipients[one].entity for one in self._policy.recipients_of(name)
        )
        return f"{purpose.source}: for {name}, to {receives}, Art. {purpose.basis} GDPR"

    def error(self) -> list[Row]:
        """Explain one error of the application that has nothing but sentry-sdk."""
        references = self._evidence.driven.references["sentry", 1]
        after = _first(
            event
            for event in self._evidence.sentry.events
            if event["event_id"] in references and "login failed" in _message(event)
        )
        item = _first(
            item
            for request in self._evidence.recorder.requests
            if request.path.endswith("/envelope/")
            for item in sentry.parse_envelope(request.body, self._policy.purpose_of_kind).items
            if item.event_id == after["event_id"] and item.raw
        )
        sample = Sample(item, json.loads(item.raw))
        told = self._explainer.explain_delivery(sample, after, "sentry", reveal=True)
        shown = _last_of_each(told.rows)
        self._kept = [_dotted(row.path) for row in shown if row.verdict == "kept"]
        rows = _together(_row(row) for row in shown if row.verdict in ("changed", "removed"))
        rows.append(Row("tags, added", "", _added(after["tags"]), _TAGGED))
        return rows

    @property
    def kept(self) -> str:
        """Name what stayed as it was of the error that was explained last."""
        groups: dict[str, list[str]] = {}
        for path in self._kept:
            parent, _, name = path.rpartition(".")
            groups.setdefault(parent, []).append(name)
        return "; ".join(
            f"{parent}: {', '.join(names)}" if parent else ", ".join(names)
            for parent, names in groups.items()
        )

    def analytics(self) -> list[Row]:
        """Explain one event that a job sent to Heap's interface itself."""
        after = _first(
            event
            for event in self._evidence.heap.events
            if str(event["properties"].get("remark", "")).startswith(FEEDBACK)
        )
        sample = _first(
            sample
            for request in self._evidence.recorder.requests
            if request.path == "/api/track" and FEEDBACK.encode() in request.body
            for sample in read_samples(request.body)
        )
        told = self._explainer.explain_delivery(sample, after, "heap", reveal=True)
        rows = [_row(row) for row in told.rows if row.verdict != "added"]
        rows.append(Row("properties, added", "", _added(after["properties"]), _TAGGED))
        return rows

    def tokens(self) -> Tokens:
        """Find the first account at both recipients: there, by the reference of one of its errors.

        Nothing at a recipient leads from a token to an account; the demo knows which error and
        which remark were that account's.
        """
        person = self._evidence.world.people[0]
        references = {
            reference
            for name in ("sdk", "sentry")
            for reference in self._evidence.driven.references[name, person.number]
        }
        errors = [e for e in self._evidence.sentry.events if e["event_id"] in references]
        at_sentry = {event["user"]["id"] for event in errors}
        at_heap = _first(
            str(event["identity"])
            for event in self._evidence.heap.events
            if str(event["properties"].get("remark", "")).startswith(FEEDBACK)
        )
        return Tokens(
            str(person.account),
            at_heap,
            sum(event["identity"] == at_heap for event in self._evidence.heap.events),
            " ".join(sorted(at_sentry)),
            sum(event["user"].get("id") in at_sentry for event in self._evidence.sentry.events),
        )


_T = TypeVar("_T")
_NUMBER: Final = re.compile(r"\.([0-9]+)(?=\.|$)")
_TAGGED: Final = "tags: how long it may stay (retention.toml), under which policy, whose"


def _first(found: Iterable[_T]) -> _T:
    """Give the first there is.

    Raises:
        LookupError: There is none.
    """
    for one in found:
        return one
    raise LookupError("it did not arrive")


def _message(event: Mapping[str, Any]) -> str:
    values = (event.get("exception") or {}).get("values") or [{}]
    return str(values[-1].get("value", ""))


def _added(tags: Mapping[str, Any]) -> str:
    return "\n".join(f"{name}: {tags[name]}" for name in _ADDED if name in tags)


def _row(row: explain.Row) -> Row:
    return Row(_dotted(row.path), _shown(row.before), _shown(row.after), row.because)


def _dotted(path: str) -> str:
    return path.replace(".values.", ".").replace(".stacktrace.frames.", " frame ")


def _last_of_each(rows: Iterable[explain.Row]) -> list[explain.Row]:
    """Keep of each list its last item: one of a kind is enough; the last frame is where it was."""
    rows = list(rows)
    last: dict[str, int] = {}
    for row in rows:
        for place in _NUMBER.finditer(row.path):
            head = row.path[: place.start()]
            last[head] = max(last.get(head, 0), int(place[1]))
    return [
        row
        for row in rows
        if all(
            last[row.path[: place.start()]] == int(place[1]) for place in _NUMBER.finditer(row.path)
        )
    ]


def _together(rows: Iterable[Row]) -> list[Row]:
    """Put neighbours that went for the same reason into one row."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        parent = row.path.rpartition(".")[0]
        alone = () if parent and not row.after else (row.path,)
        groups.setdefault((parent, row.why, *alone), []).append(row)
    joined = []
    for (parent, why, *_), group in groups.items():
        if len(group) == 1:
            joined += group
            continue
        names = ", ".join(row.path.removeprefix(f"{parent}.") for row in group)
        before = _plain(", ".join(row.before for row in group), _JOINED_CHARS)
        joined.append(Row(f"{parent}: {names}", before, "", why))
    return joined


def _shown(value: Any) -> str:
    """Show a value within bounds; a map a line an entry."""
    if value is None:
        return ""
    if isinstance(value, dict):
        lines = [f"{name}: {_plain(inner, 44)}" for name, inner in value.items()]
        return "\n".join([*lines[:6], *([f"… {len(lines) - 6} more"] if len(lines) > 6 else [])])  # noqa: PLR2004
    return _plain(value, _SHOWN_CHARS)


def _plain(value: Any, longest: int) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
