"""Why one event leaves as it does: field by field, by which rule, from which sentence.

Runs the event through the pipeline's own functions (`Intake`, `decide`, the sink's ``shape``), and
compares both ends. It needs no key: in place of tokens stand symbols such as ``ps1_heap_u_…``,
which show whose token would stand there and not which. Decides nothing itself.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Final, Literal, NamedTuple

import msgspec

from scrubbers.detectors import Detectors
from scrubbers.engine import Ledger
from scrubbers.known_values import KnownValues
from scrubbers.model import Remark
from scrubbers.text import redact_text
from telemetry.dialects.sample import Sample
from telemetry.edge import REMARKS, Edge
from telemetry.errors import ConfigError, EventError
from telemetry.identity import Domain, Identifier, SuppressionState
from telemetry.intake import Intake
from telemetry.parcel import Parcel
from telemetry.pipeline import Deliver, Drop, Hold, Park, Terms, decide
from telemetry.policy import Policy
from telemetry.rules import CompiledRules, Schemas
from telemetry.schema import Field, Record
from telemetry.sinks import Sink, shaping_only

__all__ = ["Explainer", "Explanation", "Row", "Verdict"]

Path = tuple[str | int, ...]
Verdict = Literal["kept", "changed", "removed", "added"]

_NOTHING: Final = object()
_EMPTY: Final[tuple[object, ...]] = (None, "", {}, [])
_HIDDEN: Final = "<key>"
_DERIVED: Final = "0" * 32
"""Stands where a recipient gets an id that is made at random, or derived with a key."""
_LETTERS: Final = {
    "account": "u", "organization": "o", "membership": "m",
    "session": "s", "device": "d", "object": "x",
}  # fmt: skip
_NAME = re.compile(r"[A-Za-z_$][A-Za-z0-9_$.-]{0,63}")
_DIGITS = re.compile(r"[0-9]{4}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What became of one field.

    Attributes:
        path: Where it stands in the event, in its sender's names, joined by dots; for what is
            added, where it stands at the recipient. A name that nobody declared and that may be
            personal stands as ``<key>``.
        verdict: ``kept`` as it was, ``changed``, ``removed``, or ``added`` by the pipeline.
        privacy: Class of the data as the schema says, or ``undeclared``.
        shape: Class of the value: text, number, bool, list, map. Never its length.
        at: Where it stands at the recipient; empty if it is gone.
        after: What leaves, JSON; None if nothing does.
        rules: Detectors and treatments that changed it.
        why: Where that is written: file and entry.
        source: What the rule itself refers to: a sentence of the notice, an RFC; may be empty.
        before: The original, and only where the explanation was asked to reveal it; else None.
    """

    path: str
    verdict: Verdict
    privacy: str
    shape: str
    at: str = ""
    after: Any = None
    rules: tuple[str, ...] = ()
    why: str = ""
    source: str = ""
    before: Any = field(default=None, repr=False)

    @property
    def because(self) -> str:
        """Say in one line by which rule, where that stands, and what it refers to."""
        unsaid = ", ".join(rule for rule in self.rules if rule not in self.why)
        source = f" ({self.source})" if self.source else ""
        return f"{unsaid}: {self.why}{source}" if unsaid else f"{self.why}{source}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What one recipient gets of one event.

    Attributes:
        kind: Name of the record. purpose: Why it is processed; empty if no purpose has the kind.
        notice: The sentence of the notice that allows it. basis: Article of the GDPR.
        recipient, entity: Who gets it; empty if nobody does. epoch: Life of its tokens.
        policy: First 12 digits of the digest of the policy.
        outcome: ``delivered``, or ``dropped`` or ``parked``.
        reason: Why not, a word of a closed set. ``expired`` beside ``delivered`` means that it
            left in time, and would not any more.
        rows: In the order of the event, then what was added.
        unknown: Paths of what no schema declares.
        payload: What leaves; None if nothing does.
        reveals: Whether `Row.before` holds the original: personal data.
    """

    kind: str
    purpose: str = ""
    notice: str = ""
    basis: str = ""
    recipient: str = ""
    entity: str = ""
    epoch: str = ""
    policy: str = ""
    outcome: str = "delivered"
    reason: str = ""
    rows: Sequence[Row] = ()
    unknown: Sequence[str] = ()
    payload: Mapping[str, Any] | None = None
    reveals: bool = False

    def counts(self) -> dict[str, int]:
        """Count the rows by verdict."""
        return dict(Counter(row.verdict for row in self.rows))


class _Kept:
    """Takes the place of a sealer: keeps the identifiers in memory, for their kinds."""

    def __init__(self) -> None:
        self.identifiers: Sequence[Identifier] = ()

    def seal(
        self,
        identifiers: Sequence[Identifier],
        *,
        event_id: str,
        schema: str,
        occurred_ms: int,
        tenant: str,
    ) -> bytes:
        self.identifiers = identifiers
        return b""


class _Discards:
    """Takes the place of the sealer of dead letters."""

    def seal(self, original: bytes, *, event_id: str) -> bytes:
        return b""


class _Symbols:
    """Takes the place of opened identifiers: everybody is active, and tokens are symbols."""

    def __init__(self, identifiers: Sequence[Identifier]) -> None:
        self._identifiers = identifiers

    def state(self, purpose: str) -> SuppressionState:
        return "ACTIVE"

    def tokens(self, domain: Domain, at: datetime) -> dict[str, str]:
        return {
            f"object:{one.namespace}" if one.kind == "object" else one.kind: (
                f"ps1_{domain.label}_{_LETTERS.get(one.kind, 'x')}_…"
            )
            for one in reversed(self._identifiers)  # the first of a kind has the last word
        }

    def delivery_id(self, domain: Domain) -> str:
        return _DERIVED


class _Live:
    """Accepts any policy: the one that is explained counts as live."""

    def accepts(self, digest: str) -> bool:
        return True


class Explainer:
    """Explains events under one policy, which need not be live.

    Raises:
        ConfigError: The policy's sinks or detectors cannot be used.
    """

    def __init__(self, policy: Policy, schemas: Schemas | None = None) -> None:
        self.policy = policy
        self._schemas = schemas or Schemas(policy, policy.detectors)
        self._edge = Edge(self._schemas)
        self._terms = Terms(
            policy=policy,
            schemas=self._schemas,
            register=_Live(),
            sinks={
                name: shaping_only(recipient.sink)
                for name, recipient in policy.recipients.items()
                if recipient.sink
            },
        )
        self._sources = {
            name: str(row.get("source", ""))
            for name, row in policy.detector_table.get("detector", {}).items()
        }

    def explain(
        self, sample: Sample, *, now: datetime, recipient: str = "", reveal: bool = False
    ) -> list[Explanation]:
        """Explain one event.

        Args:
            sample: As its sender wrote it.
            now: Aware UTC time: what is older than its retention is dropped.
            recipient: Only this one; else one explanation for each.
            reveal: Let rows hold what stood there before: personal data.

        Returns:
            An explanation for each recipient of its purpose, or one without a recipient.

        Raises:
            ConfigError: The policy has no recipient of that name.
        """
        if recipient and recipient not in self.policy.recipients:
            raise ConfigError(
                "there is no such recipient.",
                remedy=f"Use one of: {', '.join(self.policy.recipients)}.",
            )
        parcel, names, reason, note = self._take(sample, now)
        if parcel is None:
            return [self._nobody(sample, reason, reveal)]
        if not sample.item.event_id and not self._edge.scrub(sample.item).event_id:
            parcel = replace(parcel, event_id=_DERIVED)  # else explained twice it would differ
        decision = decide(parcel, names, self._terms, parcel.received_at)
        if isinstance(decision, (Drop, Hold, Park)):
            return [self._nobody(sample, decision.reason, reveal)]
        rules = self._schemas.rules_for(sample.item.kind, sample.item.raw)
        remarks = msgspec.json.decode(parcel.remarks, type=list[Remark]) if parcel.remarks else []
        found = []
        for name, outcome in decision.items():
            if recipient and name != recipient:
                continue
            if isinstance(outcome, Deliver):
                payload = msgspec.json.decode(outcome.parcel.body)
                walk = self._walk(sample, rules, remarks, name, payload, reveal)
                found.append(self._told(sample, name, walk, payload, reason=note, reveal=reveal))
            else:
                found.append(self._nobody(sample, outcome.reason, reveal, name))
        return found or [self._nobody(sample, "other_purpose", reveal)]

    def explain_delivery(
        self, sample: Sample, payload: Mapping[str, Any], recipient: str, *, reveal: bool = False
    ) -> Explanation:
        """Explain what a recipient really got of an event, with its real tokens.

        Raises:
            EventError: The event would not have left at all.
        """
        rules = self._schemas.rules_for(sample.item.kind, sample.item.raw)
        remarks = self._edge.scrub(sample.item).remarks
        walk = self._walk(sample, rules, remarks, recipient, payload, reveal)
        return self._told(sample, recipient, walk, payload, reveal=reveal)

    def _take(self, sample: Sample, now: datetime) -> tuple[Parcel | None, _Symbols, str, str]:
        """Take the event as a gateway would; again in its own time if it is too old for today."""
        note = reason = ""
        for _ in range(2):
            kept = _Kept()
            at = now
            intake = Intake(self.policy, self._edge, kept, _Discards(), lambda: at)  # noqa: B023
            taken = intake.take([sample.item], tenant="explain")
            if taken.parcels:
                return taken.parcels[0], _Symbols(kept.identifiers), "", note
            reason = next(
                (entry.reason for entry in taken.counts if entry.outcome in ("dropped", "dead")), ""
            )
            occurred_at = None if reason != "expired" else self._edge.scrub(sample.item).event_time
            if occurred_at is None:
                break
            now, note = occurred_at + timedelta(seconds=1), "expired"
        return None, _Symbols(()), reason, ""

    def _walk(
        self,
        sample: Sample,
        rules: CompiledRules,
        remarks: Sequence[Remark],
        recipient: str,
        payload: Mapping[str, Any],
        reveal: bool,  # noqa: FBT001 - passed on
    ) -> _Walk:
        ledger = Ledger(rules.treatments)
        rules.rewrite(rules.decode(sample.item.raw, ledger), (), ledger)
        return _Walk(
            explainer=self,
            kind=sample.item.kind,
            record=rules.record,
            names=_Names(rules.treatments.detectors, KnownValues(ledger.known), reveal=reveal),
            remarks=remarks,
            recipient=recipient,
            sink=self._terms.sinks[recipient],
            payload=payload,
            reveal=reveal,
        )

    def _told(
        self,
        sample: Sample,
        recipient: str,
        walk: _Walk,
        payload: Mapping[str, Any],
        *,
        reason: str = "",
        reveal: bool,
    ) -> Explanation:
        rows = [*walk.rows(sample), *walk.added()]
        return replace(
            self._head(sample.item.kind, recipient),
            reason=reason,
            rows=rows,
            unknown=[row.path for row in rows if row.privacy == "undeclared"],
            payload=payload,
            reveals=reveal,
        )

    def _nobody(
        self,
        sample: Sample,
        reason: str,
        reveal: bool,  # noqa: FBT001 - passed on
        recipient: str = "",
    ) -> Explanation:
        """Explain an event of which nothing leaves: each of its fields is gone for one reason."""
        kind = sample.item.kind
        try:
            record = self._schemas.rules_for(kind, sample.item.raw).record
        except EventError:
            record = self._schemas.records.get(kind, Record(name=kind, fields=()))
        detectors = self.policy.detectors
        names = _Names(detectors, KnownValues(()), reveal=reveal, closed=True)
        why = _REASONS.get(reason, reason)
        rows = [
            Row(
                path=names.dotted(path, declared),
                verdict="removed",
                privacy=privacy,
                shape=_shape_of(value),
                rules=(reason,),
                why=why,
                before=value if reveal else None,
            )
            for path, declared, privacy, value in _leaves(record, sample)
        ]
        parked = reason in _PARKED
        return replace(
            self._head(kind, recipient),
            outcome="parked" if parked else "dropped",
            reason=reason,
            rows=rows,
            unknown=[row.path for row in rows if row.privacy == "undeclared"],
            reveals=reveal,
        )

    def _head(self, kind: str, recipient: str) -> Explanation:
        policy = self.policy
        purpose = policy.purpose_of_kind.get(kind, "")
        head = Explanation(kind=kind, policy=policy.digest[:12], purpose=purpose)
        if purpose:
            told = policy.purposes[purpose]
            head = replace(head, notice=told.source, basis=told.basis)
        if recipient:
            entry = policy.recipients[recipient]
            head = replace(head, recipient=recipient, entity=entry.entity, epoch=entry.epoch)
        return head

    def why(self, kind: str, entry: Field, rules: Sequence[str], path: Path) -> tuple[str, str]:
        """Say where it is written that a field is treated so, and what that refers to."""
        if entry.treatment == "truncate_ip":
            name = self.policy.address_profile.name
            return f"addresses.toml, profile {name}", self.policy.address_source
        if entry.treatment == "pseudonymize":
            sort = entry.kind.partition(":")[0]
            return f"pseudonyms.toml, [{sort}]", entry.doc
        if entry.treatment == "coarsen_time":
            return (
                f"treatments.toml, [coarsen_time]: {self.policy.time_grain_s(kind):g} s",
                entry.doc,
            )
        named = [rule for rule in rules if rule in self._sources]
        given = ["known_value: the event gives it away elsewhere"] if "known_value" in rules else []
        if named:
            sources = "; ".join(dict.fromkeys(filter(None, map(self._sources.__getitem__, named))))
            return "; ".join([*given, f"detectors.toml: {', '.join(named)}"]), sources
        if given:
            return given[0], entry.doc
        if path[:1] == ("properties",):
            table = "user_properties.toml" if kind == "user_properties" else "events.toml"
            said = "enum" if entry.values else entry.shape
            return f"{table}: {'text' if entry.treatment == 'redact_text' else said}", entry.doc
        known = "; looked for in all other fields" if entry.known else ""
        return f"{kind}.avsc: {entry.treatment}{known}", entry.doc


_REASONS: Final = {
    "kind_off": "purposes.toml: no purpose has this kind",
    "no_consent": "purposes.toml: its purpose needs a consent, and none is kept",
    "no_recipient": "recipients.toml: nobody receives this purpose",
    "undeclared_event": "events.toml does not list this event",
    "unknown_kind": "no schema describes this kind",
    "unknown_policy": "its policy was never live",
    "expired": "retention.toml: it is older than its retention",
    "no_identity": "this recipient takes nothing without an account",
    "unsupported_kind": "this recipient does not take this kind",
    "other_purpose": "recipients.toml: this recipient does not receive its purpose",
}
_PARKED: Final = frozenset(
    ("undecodable", "not_an_object", "too_large", "scrub_failed", "contract", "event", "capsule")
)


class _Names:
    """Which names of an event may be shown: declared ones, and what looks like a field's name."""

    def __init__(
        self, detectors: Detectors, known: KnownValues, *, reveal: bool, closed: bool = False
    ) -> None:
        self._detectors, self._known, self._reveal = detectors, known, reveal
        self._closed = closed

    def shown(self, name: str) -> str:
        """Give a name that nobody declared, or ``<key>``."""
        if self._reveal:
            return name
        if self._closed or not _NAME.fullmatch(name) or _DIGITS.search(name):
            return _HIDDEN
        _, remarks = redact_text(name, self._detectors, known=self._known)
        return _HIDDEN if remarks else name

    def dotted(self, path: Path, declared: int) -> str:
        """Join a path; what stands behind its `declared` first parts nobody declared."""
        return ".".join(
            str(part) if n < declared or isinstance(part, int) else self.shown(part)
            for n, part in enumerate(path)
        )


class _Place(NamedTuple):
    """One field on both ways: in the record's names, and in the sender's, as it may be shown."""

    path: Path
    said: tuple[str, ...]

    def below(self, part: str | int, said: str | None = None) -> _Place:
        return _Place((*self.path, part), (*self.said, str(part) if said is None else said))

    @property
    def dotted(self) -> str:
        return ".".join(self.said)


@dataclass(slots=True, kw_only=True)
class _Walk:
    """Goes through an event by its record, beside what its recipient gets."""

    explainer: Explainer
    kind: str
    record: Record
    names: _Names
    remarks: Sequence[Remark]
    recipient: str
    sink: Sink
    payload: Mapping[str, Any]
    reveal: bool
    claimed: set[Path] = field(default_factory=set)

    def rows(self, sample: Sample) -> Iterator[Row]:
        """Give a row for each field of the event that holds anything."""
        for name, value in sample.original.items():
            if value in _EMPTY:
                continue
            if name == REMARKS:
                why = "what an edge before this one changed; told of with the rest"
                yield self._gone(_Place((), (name,)), value, "technical", ("format",), why)
            elif said := sample.framing.get(name):
                yield self._gone(_Place((), (name,)), value, "technical", ("format",), said)
            elif sample.names is None:
                yield from self._one(self.record, name, value, _Place((), ()), name)
            elif (wire := sample.names.get(name)) is None:
                shown = self.names.shown(name)
                yield self._unknown(_Place((), (shown,)), value)
            else:
                yield from self._one(self.record, wire, value, _Place((), ()), name)

    def _one(
        self, record: Record, wire: str, value: Any, above: _Place, said: str
    ) -> Iterator[Row]:
        entry = next((one for one in record.fields if one.wire == wire), None)
        if entry is None:
            yield self._unknown(above.below(wire, self.names.shown(said)), value)
            return
        here = above.below(wire, said)
        if entry.record is not None:
            yield from self._nested(entry, entry.record, value, here)
        elif entry.shape == "map" and entry.treatment == "redact_text":
            yield from self._entries(entry, value, here)
        else:
            yield self._leaf(entry, value, here)

    def _nested(self, entry: Field, record: Record, value: Any, here: _Place) -> Iterator[Row]:
        if isinstance(value, list) and "list" in entry.accept:
            value = {record.fields[0].wire: value}
        value = _paired(entry, value)
        if entry.shape == "records" and isinstance(value, list):
            for number, item in enumerate(value):
                below = here.below(number)
                if isinstance(item, dict):
                    for name, inner in item.items():
                        if inner not in _EMPTY:
                            yield from self._one(record, name, inner, below, name)
                elif item is not None:
                    yield self._misfit(entry, item, below)
        elif entry.shape == "record" and isinstance(value, dict):
            for name, inner in value.items():
                if inner not in _EMPTY:
                    yield from self._one(record, name, inner, here, name)
        else:
            yield self._misfit(entry, value, here)

    def _entries(self, entry: Field, value: Any, here: _Place) -> Iterator[Row]:
        """Go through an open map. Its names are free text too: one that went is not shown."""
        value = _paired(entry, value)
        if not isinstance(value, dict):
            yield self._misfit(entry, value, here)
            return
        lost = [one.rule for one in self.remarks if one.path == (*here.path, _HIDDEN)]
        for name, inner in value.items():
            if inner in _EMPTY:
                continue
            below = here.below(name)
            if any(_look_up(self.payload, at) is not _NOTHING for at in self._places(below.path)):
                yield self._leaf(entry, inner, below)
                continue
            if not self._places(below.path):
                why = f"{self.recipient} gets something of ours under this name"
                yield self._gone(below, inner, entry.privacy, ("recipient",), why)
                continue
            shown = name if self.reveal else _HIDDEN
            rules = tuple(dict.fromkeys(lost)) or ("recipient",)
            why = "its name is personal" if lost else f"{self.recipient} gets no such entry"
            yield self._gone(here.below(name, shown), inner, entry.privacy, rules, why)

    def _leaf(self, entry: Field, value: Any, here: _Place) -> Row:
        depth = len(here.path)
        # A rejected identifier is told of by its sort, not by where it stood.
        sort = entry.kind.partition(":")[0] if entry.treatment == "pseudonymize" else _HIDDEN
        hits = [one for one in self.remarks if one.path[:depth] == here.path or one.path == (sort,)]
        rules = tuple(dict.fromkeys(one.rule for one in hits))
        places = self._places(here.path)
        if entry.treatment == "strip":
            places = ()
        self.claimed.update(places)
        there = {at: _look_up(self.payload, at) for at in places}
        there = {at: found for at, found in there.items() if found not in (_NOTHING, None)}
        why, source = self.explainer.why(self.kind, entry, rules, here.path)
        if not there:
            if not rules:
                if entry.treatment in ("strip", "pseudonymize", "truncate_ip"):
                    rules = (entry.treatment,)
                else:
                    rules, why = ("recipient",), f"{self.recipient} gets no such field"
            if "type" in rules:
                why = f"it is not what {self._declared_in(here.path)} declares"
            elif "identifier" in rules:
                why = f"{why}: it does not fit the profile, so there is no token"
            return self._gone(here, value, entry.privacy, rules, why, source)
        if len(there) == 1:
            ((at, after),) = there.items()
        else:
            at = _common(list(there))
            after = {str(place[-1]): found for place, found in there.items()}
        same = after == value and type(after) is type(value)
        if not same and not rules:
            rules = (entry.treatment,) if entry.treatment != "keep" else ("format",)
            if entry.treatment in ("keep", "redact_text"):
                rules, why = ("format",), "the same, as this recipient writes it"
            recipient = self.explainer.policy.recipients[self.recipient]
            if entry.role == "event_id" and recipient.event_ids == "derived":
                rules, why = ("derive",), "recipients.toml: event_ids = derived"
                why += "; zeros stand for it" if after == _DERIVED else ""
        return Row(
            path=here.dotted,
            verdict="kept" if same else "changed",
            privacy=entry.privacy,
            shape=_shape_of(value),
            at=".".join(map(str, at)),
            after=after,
            rules=() if same else rules,
            why=why,
            source=source,
            before=value if self.reveal else None,
        )

    def _declared_in(self, path: Path) -> str:
        return "events.toml" if path[:1] == ("properties",) else f"{self.kind}.avsc"

    def _places(self, path: Path) -> Sequence[Path]:
        return self.sink.places(self.kind, path)

    def _unknown(self, here: _Place, value: Any) -> Row:
        where = "events.toml does not declare it for this event"
        why = where if here.path[:1] == ("properties",) else "no schema declares it"
        return self._gone(here, value, "undeclared", ("undeclared",), f"{why}: never decoded")

    def _misfit(self, entry: Field, value: Any, here: _Place) -> Row:
        why = f"it is not what {self._declared_in(here.path)} declares"
        return self._gone(here, value, entry.privacy, ("type",), why)

    def _gone(
        self,
        here: _Place,
        value: Any,
        privacy: str,
        rules: tuple[str, ...],
        why: str,
        source: str = "",
    ) -> Row:
        return Row(
            path=here.dotted,
            verdict="removed",
            privacy=privacy,
            shape=_shape_of(value),
            rules=rules,
            why=why,
            source=source,
            before=value if self.reveal else None,
        )

    def added(self) -> Iterator[Row]:
        """Give a row for each value that the recipient gets and the event did not hold."""
        told = {tuple(path) for path in self.sink.remarks_at}
        for path, value in _flat(self.payload, (), told):
            if any(path[: len(one)] == one for one in self.claimed):
                continue
            why = (
                "what was changed, for whoever looks at it" if path in told else self._promise(path)
            )
            yield Row(
                path=".".join(map(str, path)),
                verdict="added",
                privacy="technical",
                shape=_shape_of(value),
                at=".".join(map(str, path)),
                after=value,
                rules=("remarks",) if path in told else ("tag",),
                why=why,
            )

    def _promise(self, path: Path) -> str:
        policy = self.explainer.policy
        purpose = policy.purposes[policy.purpose_of_kind[self.kind]]
        return {
            "retain_until": f"retention.toml, class {purpose.retention}: how long it may stay",
            "retention_class": f"purposes.toml, [{policy.purpose_of_kind[self.kind]}]",
            "policy": "under which policy it left",
        }.get(str(path[-1]), f"set by the sink of {self.recipient}")


def _paired(entry: Field, value: Any) -> Any:
    """Read pairs as a map, where clients may send either."""
    if isinstance(value, list) and "pairs" in entry.accept:
        return {
            pair[0]: pair[1]
            for pair in value
            if isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)  # noqa: PLR2004 - a pair
        }
    return value


def _leaves(record: Record, sample: Sample) -> Iterator[tuple[Path, int, str, Any]]:
    """Give each field of an event: path, how many parts of it are declared, class, value."""

    def visit(record: Record, value: Any, path: Path) -> Iterator[tuple[Path, int, str, Any]]:
        fields = {entry.wire: entry for entry in record.fields}
        for name, inner in value.items():
            if inner in _EMPTY:
                continue
            wire = name if path or sample.names is None else sample.names.get(name, "")
            entry, here = fields.get(wire), (*path, name)
            nested = None if entry is None else entry.record
            if entry is None:
                yield here, len(path), "undeclared", inner
            elif nested is not None and isinstance(inner, dict):
                yield from visit(nested, inner, here)
            elif nested is not None and isinstance(inner, list):
                for number, item in enumerate(inner):
                    if isinstance(item, dict):
                        yield from visit(nested, item, (*here, number))
            else:
                yield here, len(here), entry.privacy, inner

    yield from visit(record, sample.original, ())


def _look_up(tree: Any, path: Path) -> Any:
    for part in path:
        try:
            tree = tree[part]
        except (LookupError, TypeError):
            return _NOTHING
    return tree


def _flat(tree: Any, path: Path, whole: set[Path]) -> Iterator[tuple[Path, Any]]:
    """Give each value of a tree with its path; what is at a path of `whole` in one piece."""
    if path in whole or not isinstance(tree, (dict, list)):
        if tree not in _EMPTY:
            yield path, tree
    elif isinstance(tree, dict):
        for name, value in tree.items():
            yield from _flat(value, (*path, name), whole)
    else:
        for number, value in enumerate(tree):
            yield from _flat(value, (*path, number), whole)


def _common(paths: Sequence[Path]) -> Path:
    head = paths[0]
    for path in paths[1:]:
        head = head[
            : next(
                (n for n, pair in enumerate(zip(head, path, strict=False)) if pair[0] != pair[1]), 0
            )
        ]
    return head


_SHAPES: Final = {str: "text", list: "list", dict: "map", bool: "bool", type(None): "null"}


def _shape_of(value: Any) -> str:
    """Class of a value; never its length."""
    return _SHAPES.get(type(value), "number")
