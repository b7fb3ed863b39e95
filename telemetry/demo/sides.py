"""One event before and after, side by side: what happened to each field, and why.

The left side is what a client sent, the right side what the recipient received. The reason is read
from where the pipeline read it: schemas and policy; and from the remarks that scrubbing leaves.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple, TypeVar

from scrubbers.detectors import Detectors
from scrubbers.model import Remark
from telemetry.demo.clients import FEEDBACK
from telemetry.demo.stage import Evidence
from telemetry.dialects import heap, sentry
from telemetry.edge import Edge, Item
from telemetry.policy import Policy, load_policy
from telemetry.rules import Schemas
from telemetry.schema import Field, Record, load_records

__all__ = ["Row", "Sides", "Tokens"]

_SHOWN_CHARS: Final = 160
_JOINED_CHARS: Final = 160
_NOTHING: Final = object()
_ADDED: Final = ("retain_until", "retention_class", "policy", "organization", "session")
_OURS: Final = {"identity": "account", "timestamp": "time", "session_id": "session"}
"""Heap's names of what our record of an analytics event calls otherwise."""


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
        self._records = load_records()
        detectors = Detectors.compile(self._policy.detector_table)
        self._edge = Edge(Schemas(self._policy, detectors))
        self._shown_event: Mapping[str, Any] = {}
        self._kept: list[str] = []
        self._sources = {
            name: str(row.get("source", ""))
            for name, row in self._policy.detector_table.get("detector", {}).items()
        }

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
            for item in sentry.parse_envelope(request.body, self._records).items
            if item.event_id == after["event_id"] and item.raw
        )
        before, self._shown_event, self._kept = json.loads(item.raw), after, []
        rows = _together(
            self._rows(self._records["error_event"], before, after, (), self._remarks(item))
        )
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
        raw, item = _first(
            (request.body, items[0])
            for request in self._evidence.recorder.requests
            if request.path == "/api/track"
            and FEEDBACK.encode() in request.body
            and (items := heap.parse_track(request.body).items)
        )
        before = json.loads(raw)
        remarks = self._remarks(item)
        rows: list[Row] = []
        for name, value in before.items():
            if name == "properties":
                declared = self._policy.events[before["event"]]
                for key, inner in value.items():
                    path = f"properties.{key}"
                    outcome = after["properties"].get(key, _NOTHING)
                    why = (
                        "events.toml does not declare it for this event: never decoded"
                        if key not in declared
                        else self._why_text(remarks, ("properties", key))
                        or f"events.toml: {declared[key].type}"
                    )
                    rows.append(Row(path, _shown(inner), _shown(outcome), why))
            else:
                rows.append(
                    Row(
                        name, _shown(value), _shown(after.get(name, _NOTHING)), self._heap_why(name)
                    )
                )
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

    def _remarks(self, item: Item) -> list[Remark]:
        """Scrub once more, to learn of all changes: the event itself tells of the first twenty."""
        return self._edge.scrub(item).remarks

    def _rows(
        self,
        record: Record,
        before: Mapping[str, Any],
        after: Any,
        path: tuple[str | int, ...],
        remarks: list[Remark],
    ) -> Iterator[Row]:
        """Compare field by field; what stays as it is gives no row."""
        fields = {entry.wire: entry for entry in record.fields}
        for name, value in before.items():
            if value in (None, "", {}, []):
                continue
            entry, here = fields.get(name), (*path, name)
            other = after.get(name, _NOTHING) if isinstance(after, dict) else _NOTHING
            if entry is None:
                yield Row(_dotted(here), _shown(value), "", "no schema names it: never decoded")
            elif entry.shape == "record" and isinstance(value, dict) and entry.record:
                yield from self._rows(entry.record, value, other, here, remarks)
            elif entry.shape == "records" and isinstance(value, list) and entry.record:
                # One of a kind is enough: the last frame is where it happened.
                number = len(value) - 1
                last = other[number] if isinstance(other, list) and len(other) > number else {}
                yield from self._rows(entry.record, value[number], last, (*here, number), remarks)
            elif entry.shape == "map" and entry.treatment == "redact_text":
                yield from self._entries(value, other, here, remarks)
            else:
                other = self._moved(here, other)
                if other == value:
                    self._kept.append(_dotted(here))
                else:
                    why = self._why(entry, here, remarks)
                    yield Row(_dotted(here), _shown(value), _shown(other), why)

    def _entries(
        self, before: Any, after: Any, path: tuple[str | int, ...], remarks: list[Remark]
    ) -> Iterator[Row]:
        """Compare an open map of texts, for example tags; what only the right side has is ours."""
        after = after if isinstance(after, dict) else {}
        for name, value in before.items() if isinstance(before, dict) else before:
            here = (*path, name)
            if after.get(name) == value:
                self._kept.append(_dotted(here))
            else:
                why = self._why_text(remarks, here) or "free text, redacted"
                yield Row(_dotted(here), _shown(value), _shown(after.get(name, _NOTHING)), why)

    def _moved(self, path: tuple[str | int, ...], other: Any) -> Any:
        """Find what the sink put elsewhere (`telemetry.sinks.sentry`)."""
        event = self._shown_event
        if path == ("user", "ip_address"):
            return event["tags"].get("ip_prefix", _NOTHING)
        if path[:2] == ("request", "headers") and str(path[-1]).lower() == "user-agent":
            contexts = event["contexts"]
            names = [contexts.get(part, {}).get("name", "") for part in ("browser", "client_os")]
            return " / ".join(filter(None, names))
        return other

    def _why(self, entry: Field, path: tuple[str | int, ...], remarks: list[Remark]) -> str:
        if entry.treatment == "redact_text":
            return self._why_text(remarks, path) or "free text, redacted"
        said = entry.doc or entry.privacy.replace("_", " ")
        if entry.treatment == "truncate_ip":
            said = f"addresses.toml, profile {self._policy.address_profile.name}"
        elif entry.treatment == "pseudonymize":
            said = f"pseudonyms.toml, [{entry.kind}]"
        elif entry.treatment == "coarsen_time":
            said = f"treatments.toml; {entry.doc}" if entry.doc else "treatments.toml"
        elif entry.known:
            said = "and looked for in all other fields"
        return f"{entry.treatment}: {said}"

    def _why_text(self, remarks: list[Remark], path: tuple[str | int, ...]) -> str:
        """Name the rules that replaced something in a text, each with its source."""
        rules = dict.fromkeys(remark.rule for remark in remarks if remark.path == path)
        named = [
            "known value of the request"
            if rule == "known_value"
            else f"{rule} ({source})"
            if (source := self._sources.get(rule, ""))
            else rule
            for rule in rules
        ]
        return f"redact_text: {'; '.join(named)}" if named else ""

    def _heap_why(self, name: str) -> str:
        """Say what becomes of a field of Heap's own."""
        if name == "app_id":
            return "names the sender's project; each recipient gets its own"
        if name == "idempotency_key":
            return "recipients.toml: event_ids = derived, so that no id joins two recipients"
        fields = {entry.wire: entry for entry in self._records["analytics_event"].fields}
        entry = fields[_OURS.get(name, name)]
        if entry.treatment == "keep":
            return "listed in events.toml"
        return self._why(entry, (), [])


_T = TypeVar("_T")
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


def _dotted(path: tuple[str | int, ...]) -> str:
    words = ".".join(str(part) for part in path if part != "values")
    return words.replace(".stacktrace.frames.", " frame ")


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
    if value is _NOTHING or value is None:
        return ""
    if isinstance(value, dict):
        lines = [f"{name}: {_plain(inner, 44)}" for name, inner in value.items()]
        return "\n".join([*lines[:6], *([f"… {len(lines) - 6} more"] if len(lines) > 6 else [])])  # noqa: PLR2004
    return _plain(value, _SHOWN_CHARS)


def _plain(value: Any, longest: int) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
