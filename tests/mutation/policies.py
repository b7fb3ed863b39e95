"""Mutants of ``schemas/policy/*.toml``, but for detectors: a key gone, an item gone, another value.

Words that only people read (a name, an address, a source) have no other value: whoever writes them
decides. That they are there is what the data dictionary is checked for.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, cast

import msgspec

from telemetry.explain import Explainer
from telemetry.policy import Policy
from telemetry.rules import CompiledRules, Schemas
from telemetry.schema import load_records
from tests.checks import promises, shipped
from tests.checks.explained import check_explained
from tests.checks.promises import Installation, loaded, shipped_tables
from tests.checks.whole import check_kept, check_people
from tests.mutation.mutant import Killed, Mutant, judged

__all__ = ["judge", "mutants"]

_WORDS: Final[Mapping[tuple[str, str], tuple[str, ...]]] = {
    ("controller.toml", "version"): ("2023-10",),
    ("purposes.toml", "basis"): ("6(1)(a)",),
    ("recipients.toml", "sink"): (
        "telemetry.sinks.heap:HeapSink", "telemetry.sinks.sentry:SentrySink",
    ),
    ("recipients.toml", "label"): ("other",),
    ("recipients.toml", "domain"): ("other@other", "analytics@heap", "errors@sentry"),
    ("recipients.toml", "epoch"): ("rel", "quarter"),
    ("recipients.toml", "event_ids"): ("original", "derived"),
    ("recipients.toml", "retention"): ("P13M",),
    ("recipients.toml", "erasure"): ("api", "compensated"),
    ("recipients.toml", "kept"): ("P1D", "P13M", "unknown"),
    ("retention.toml", "ceiling"): ("P11M", "P13M"),
    ("retention.toml", "period"): ("P11M", "P13M"),
    ("retention.toml", "sealed"): ("P1D", "P12M"),
    ("retention.toml", "clean"): ("P1D", "P12M"),
    ("retention.toml", "dead"): ("P1D", "P12M"),
    ("retention.toml", "held"): ("P11M", "P13M"),
    ("pseudonyms.toml", "mode"): ("drop",),
    ("pseudonyms.toml", "max_age"): ("P35M", "P37M"),
    ("pseudonyms.toml", "namespace"): ("app:other",),
    ("pseudonyms.toml", "profile"): ("integer", "uuid", "opaque", "nocase", "email"),
    ("treatments.toml", "profile"): ("ga", "strict", "drop"),
    ("events.toml", "type"): ("enum", "integer", "number", "boolean", "object", "text"),
    ("user_properties.toml", "type"): ("enum", "integer", "number", "boolean", "object", "text"),
}  # fmt: skip
"""Other values of keys whose value decides something."""
_COMPILED: Final[Mapping[str, tuple[str, ...]]] = {
    "events.toml": ("analytics_event",),
    "user_properties.toml": ("user_properties",),
    "treatments.toml": tuple(load_records()),
    "addresses.toml": tuple(load_records()),
}
"""Which records are compiled from a file; the others stay as they are."""

_Way = tuple[str | int, ...]


def mutants() -> Iterator[Mutant]:
    """Give the mutants of each key of each file."""
    for file, table in shipped_tables().items():
        if file != "detectors.toml":
            for way, value in _entries(table):
                for change in _changes(file, way, value):
                    yield Mutant(file, _place(way), change)


def _entries(value: Any, way: _Way = ()) -> Iterator[tuple[_Way, Any]]:
    if way:
        yield way, value
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, below in items:
        yield from _entries(below, (*way, key))


def _place(way: _Way) -> str:
    return ".".join(map(str, way))


def _changes(file: str, way: _Way, value: Any) -> Iterator[str]:
    yield "gone"
    if isinstance(value, bool):
        yield str(not value).lower()
    elif isinstance(value, int):
        yield from (str(value - 1), str(value + 1))
    elif isinstance(value, float):
        yield from (str(value / 2), str(value * 2))
    elif isinstance(value, str):
        names = {key for key in way[-2:] if isinstance(key, str)}
        for (of, name), words in _WORDS.items():
            # Periods of kinds stand one level below their key.
            if of == file and name in names and (way[-1] == name or name == "kept"):
                yield from (word for word in words if word != value)


def _mutated(mutant: Mutant) -> dict[str, Any]:
    tables = dict(shipped_tables())
    table = tables[mutant.table] = copy.deepcopy(tables[mutant.table])
    way = next(way for way, _ in _entries(table) if _place(way) == mutant.place)
    holder = table
    for key in way[:-1]:
        holder = holder[cast("str", key)]
    last = cast("str", way[-1])
    if mutant.change == "gone":
        del holder[last]
    elif isinstance(holder[last], str):
        holder[last] = mutant.change
    else:
        kind = type(holder[last])
        holder[last] = mutant.change == "true" if kind is bool else kind(mutant.change)
    return tables


class _Subject:
    """One mutant, loaded as far as its file reaches."""

    def __init__(self, mutant: Mutant) -> None:
        self.file = mutant.table
        self.tables = _mutated(mutant)
        self.made = Installation.shipped()

    def load(self) -> None:
        policy = loaded(self.tables)
        self.made = Installation(self.tables, policy, _schemas(policy, self.file))

    def rules(self, kind: str) -> CompiledRules:
        return self.made.schemas.rules_for(kind, b'{"event":"page viewed"}')


def _schemas(policy: Policy, file: str) -> Schemas:
    """Compile the records that a file can change, and take over the others."""
    kinds = _COMPILED.get(file, ())
    if not kinds:
        return shipped.schemas()
    records = load_records()
    if len(kinds) == len(records):
        return Schemas(policy, shipped.detectors(), records=records)
    slim, merged = copy.copy(policy), copy.copy(shipped.schemas())
    slim.purposes = {}
    slim.treatments = msgspec.structs.replace(policy.treatments, shape={})
    few = Schemas(slim, shipped.detectors(), records={kind: records[kind] for kind in kinds})
    merged.policy = policy
    merged._by_event = {**merged._by_event, **few._by_event}
    kept = {kind: rules for kind, rules in merged._plain.items() if kind not in few._off}
    merged._plain = {**kept, **few._plain}
    merged._off = {**merged._off, **few._off}
    return merged


def judge(mutant: Mutant) -> Killed | None:
    """Load a mutant and run the checks that can see it, until one fails."""
    one = _Subject(mutant)

    def each_kind(check: Callable[[Any, str], None]) -> Callable[[], None]:
        return lambda: [check(one.rules(kind), kind) for kind in one.made.schemas.records] and None

    checks: list[tuple[str, Callable[[], object]]] = [("refused at the start", one.load)]
    by_file: Mapping[str, tuple[str, ...]] = {
        "controller.toml": ("dictionary", "destinations"),
        "purposes.toml": ("destinations", "dictionary", "consent", "refusals"),
        "recipients.toml": (
            "destinations", "tokens", "event_ids", "hosts", "rates", "dictionary", "refusals",
        ),
        "retention.toml": ("periods", "lies", "dictionary"),
        "pseudonyms.toml": ("ids", "tokens", "subjects", "destinations"),
        "events.toml": ("properties", "destinations"),
        "user_properties.toml": ("properties",),
        "treatments.toml": ("addresses",),
        "addresses.toml": ("addresses", "profiles"),
        "ways_back.toml": ("ways_back",),
    }  # fmt: skip
    for name in by_file[mutant.table]:
        check: Callable[[Installation], None] = getattr(promises, f"check_{name}")
        checks.append((name.replace("_", " "), lambda check=check: check(one.made)))  # type: ignore[misc]
    if mutant.table in ("treatments.toml", "addresses.toml"):
        checks.append(("tells people apart", each_kind(check_people)))
        checks.append(("keeps something else", each_kind(check_kept)))
    checks.append(
        ("explained", lambda: check_explained(Explainer(one.made.policy, one.made.schemas)))
    )
    return judged(checks)
