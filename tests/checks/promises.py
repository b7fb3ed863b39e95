"""What a policy makes true, seen from outside: what goes where, as what, for how long.

Each check takes an `Installation` and fails if it breaks a promise of
``tests/vectors/promised.toml``. `Changed` makes another policy of the shipped one in memory.
"""

from __future__ import annotations

import copy
import json
import re
import tempfile
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, Final, cast

from scrubbers import truncate_ip
from telemetry.edge import Connection, Edge, Item
from telemetry.errors import ConfigError, PolicyError
from telemetry.forward import Forwarder, _Task
from telemetry.identity import Domain, Identifier, SuppressionState
from telemetry.identity.pseudonym import epoch_label, token
from telemetry.intake import Intake
from telemetry.notice import data_dictionary
from telemetry.parcel import Parcel
from telemetry.pipeline import Deliver, Terms, decide
from telemetry.policy import Policy, load_policy, schemas_dir
from telemetry.retention import Period
from telemetry.rules import Schemas
from telemetry.run import check_host, rates_of
from telemetry.schema import Record, load_records
from telemetry.sinks import Delivery, Sink
from telemetry.sinks.heap import HeapSink
from telemetry.sinks.sentry import SentrySink
from tests.checks import shipped

__all__ = [
    "PROMISED",
    "Installation",
    "Tables",
    "check_addresses",
    "check_consent",
    "check_destinations",
    "check_dictionary",
    "check_event_ids",
    "check_hosts",
    "check_ids",
    "check_lies",
    "check_periods",
    "check_profiles",
    "check_properties",
    "check_rates",
    "check_refusals",
    "check_subjects",
    "check_tokens",
    "check_ways_back",
    "loaded",
    "shipped_tables",
    "written",
]

_VECTORS: Final = Path(__file__).parents[1] / "vectors"
PROMISED: Final[Mapping[str, Any]] = tomllib.loads((_VECTORS / "promised.toml").read_text("utf-8"))
_KEYS: Final[Mapping[str, Any]] = json.loads((_VECTORS / "identity.json").read_text("utf-8"))[
    "keys"
]
_SECRET: Final = bytes.fromhex(_KEYS["S"])
# Which key a domain and epoch have; another domain is another key, which nobody has made.
_KEY_OF: Final = {
    ("analytics@heap", "rel"): "heap_rel",
    ("errors@sentry", "2026q4"): "sentry_2026q4",
    ("errors@sentry", "2027q1"): "sentry_2027q1",
}
NOW: Final = datetime(2026, 11, 22, 10, 15, 42, tzinfo=UTC)
_LATER: Final = datetime(2027, 2, 1, 8, tzinfo=UTC)
_OWN_ID: Final = "ab" * 16
_TWELVE_MONTHS_AGO: Final = datetime(2025, 11, 22, 10, 15, tzinfo=UTC)
_LANGUAGES: Final = ("de", "en")

Tables = Mapping[str, Any]
"""The files of ``schemas/policy`` by name, as they are read."""


@cache
def shipped_tables() -> Tables:
    """Read the shipped policy's files."""
    folder = schemas_dir() / "policy"
    return {p.name: tomllib.loads(p.read_text("utf-8")) for p in sorted(folder.glob("*.toml"))}


@cache
def _shipped_texts() -> Mapping[str, str]:
    folder = schemas_dir() / "policy"
    return {path.name: path.read_text("utf-8") for path in sorted(folder.glob("*.toml"))}


def written(table: Mapping[str, Any]) -> str:
    """Write a table as TOML: each entry of the root on a line of its own."""
    return "".join(f"{_key(name)} = {_inline(value)}\n" for name, value in table.items())


def _key(name: str) -> str:
    return json.dumps(name, ensure_ascii=False)


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_key(name)} = {_inline(one)}' for name, one in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_inline, value))}]"
    return json.dumps(value, ensure_ascii=False)


@contextmanager
def _folder(tables: Tables) -> Iterator[Path]:
    """Put a policy into a folder of its own; files that are not changed as they stand."""
    with tempfile.TemporaryDirectory() as name:
        for file, table in tables.items():
            same = table is shipped_tables()[file]
            (Path(name) / file).write_text(
                _shipped_texts()[file] if same else written(table), "utf-8"
            )
        yield Path(name)


def loaded(tables: Tables) -> Policy:
    """Load a policy from tables.

    Raises:
        PolicyError: It is refused.
    """
    with _folder(tables) as folder:
        policy = load_policy(folder)
        assert policy.digest  # is kept: the folder goes
    return policy


@dataclass(frozen=True)
class Installation:
    """A policy and what is compiled from it.

    Attributes:
        tables: What it was read from.
        policy: As loaded. schemas: Compiled under it.
    """

    tables: Tables
    policy: Policy
    schemas: Schemas

    @classmethod
    def shipped(cls) -> Installation:
        """Give the one that is shipped."""
        return cls(shipped_tables(), shipped.policy(), shipped.schemas())


class _Kept:
    """Takes the place of a sealer: keeps what would be sealed."""

    def __init__(self) -> None:
        self.identifiers: Sequence[Identifier] = ()

    def seal(self, identifiers: Sequence[Identifier], **_: Any) -> bytes:
        self.identifiers = identifiers
        return b""


class _Discards:
    def seal(self, original: bytes, *, event_id: str) -> bytes:
        return b""


class _Tokens:
    """Takes the place of opened identifiers: real tokens, under the published test keys."""

    def __init__(self, identifiers: Sequence[Identifier]) -> None:
        self._identifiers = identifiers

    def state(self, purpose: str) -> SuppressionState:
        return "ACTIVE"

    def tokens(self, domain: Domain, at: datetime) -> dict[str, str]:
        epoch = epoch_label(domain.epoch, at)
        key = _KEY_OF.get((domain.name, epoch))
        assert key is not None, f"no key was ever made for {domain.name}, {epoch}"
        return {
            f"object:{one.namespace}" if one.kind == "object" else one.kind: token(
                bytes.fromhex(_KEYS[key]),
                domain=domain.name,
                epoch=epoch,
                kind=one.kind,
                namespace=one.namespace,
                canonical_id=one.canonical_id,
                secret=_SECRET,
                label=domain.label,
            )
            for one in self._identifiers
        }

    def delivery_id(self, domain: Domain) -> str:
        return "de" * 16


class _Live:
    def accepts(self, digest: str) -> bool:
        return True


_SINKS: Final[Mapping[str, Sink]] = {
    "telemetry.sinks.heap:HeapSink": HeapSink(url="http://127.0.0.1:1", app_id="11"),
    "telemetry.sinks.sentry:SentrySink": SentrySink(dsn="http://" + "5e17" * 8 + "@127.0.0.1:1/1"),
}
_EVENTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "analytics_event": {
        "event_id": _OWN_ID, "event": "task created", "time": "2026-11-20T10:15:42Z",
        "account": "4711", "organization": "12", "session": "s-77",
        "properties": {"project": "p-77"},
    },
    "user_properties": {"event_id": _OWN_ID, "account": "4711", "properties": {"plan": "team"}},
    "error_event": {
        "event_id": _OWN_ID, "timestamp": "2026-11-20T10:15:42Z", "message": "row not found",
        "user": {"id": "4711"},
    },
    "session": {
        "sid": "cd" * 16, "did": "4711", "started": "2026-11-20T10:15:42Z", "status": "ok",
        "attrs": {"release": "1.0.0"},
    },
    "sessions": {
        "aggregates": [{"started": "2026-11-20T10:15:00Z", "exited": 1}],
        "attrs": {"release": "1.0.0"},
    },
    "check_in": {"check_in_id": _OWN_ID, "monitor_slug": "nightly", "status": "ok"},
}  # fmt: skip


def _taken(
    made: Installation, kind: str, event: Mapping[str, Any], now: datetime = NOW
) -> tuple[Parcel | None, _Tokens, str]:
    """Take one event as a gateway does; give its parcel, whom it names, or why it was dropped."""
    kept = _Kept()
    intake = Intake(made.policy, Edge(made.schemas), kept, _Discards(), lambda: now)
    taken = intake.take([Item(kind, json.dumps(event).encode())], tenant="app")
    reason = next((e.reason for e in taken.counts if e.outcome in ("dropped", "dead")), "")
    return (taken.parcels[0] if taken.parcels else None), _Tokens(kept.identifiers), reason


def _delivered(
    made: Installation, kind: str, event: Mapping[str, Any], now: datetime = NOW
) -> dict[str, Parcel]:
    """Take one event all the way; give what each recipient gets."""
    parcel, names, _ = _taken(made, kind, event, now)
    if parcel is None:
        return {}
    sinks = {name: _SINKS[one.sink] for name, one in made.policy.recipients.items() if one.sink}
    terms = Terms(policy=made.policy, schemas=made.schemas, register=_Live(), sinks=sinks)
    decision = decide(parcel, names, terms, now)
    assert isinstance(decision, Mapping), f"{kind} is not delivered: {decision}"
    return {name: one.parcel for name, one in decision.items() if isinstance(one, Deliver)}


def check_destinations(made: Installation) -> None:
    """Require that each kind reaches whom it is promised to, and no other kind anybody."""
    for kind, recipient in PROMISED["goes_to"].items():
        got = _delivered(made, kind, _EVENTS[kind])
        assert set(got) == {recipient}, f"{kind} goes to {sorted(got)}"
        assert got[recipient].legal_basis == "6(1)(f)"
        assert got[recipient].retention_class == "12m"
        assert got[recipient].notice_version == "2023-09"
    for kind in made.schemas.records.keys() - PROMISED["goes_to"].keys():
        assert _taken(made, kind, {})[2] == "kind_off", f"{kind} is on"


def tokens_of(made: Installation) -> dict[str, str]:
    """Give the tokens of account 4711 and what belongs to it, at each recipient and epoch."""
    found: dict[str, str] = {}
    for kind in ("analytics_event", "error_event"):
        for now in (NOW, _LATER):
            key = "time" if kind == "analytics_event" else "timestamp"
            event = {**_EVENTS[kind], key: now.isoformat()}
            for name, parcel in _delivered(made, kind, event, now).items():
                for one in sorted(set(re.findall(rb"ps1_[a-z0-9_]+", parcel.body))):
                    text = one.decode()
                    found[f"{name} {text.split('_')[2]} {epoch_label('quarter', now)}"] = text
    return found


def check_tokens(made: Installation) -> None:
    """Require the tokens that recipients hold already, for good or for their quarter."""
    assert tokens_of(made) == PROMISED["tokens"]


def check_event_ids(made: Installation) -> None:
    """Require that Sentry sees the event's own id (DESIGN 4, error reference) and Heap does not."""
    for kind, own in (("analytics_event", False), ("error_event", True)):
        for name, parcel in _delivered(made, kind, _EVENTS[kind]).items():
            assert (parcel.event_id == _OWN_ID) is own, name
            assert (_OWN_ID.encode() in parcel.body) is own, name


def check_ids(made: Installation) -> None:
    """Require that what is an id gets a token, what only looks like one does not."""
    for sort, ids in PROMISED["ids"].items():
        for valid in (True, False):
            for value in ids["valid" if valid else "invalid"]:
                assert bool(_canonical(made, sort, value)) is valid, f"{sort}: {value!r}"
        distinct = {_canonical(made, sort, value) for value in ids.get("distinct", ())}
        assert len(distinct) == len(ids.get("distinct", ())), f"{sort}: two ids became one"


def _canonical(made: Installation, sort: str, value: str) -> str:
    base = {"event": "task created", "properties": {}}
    event = (
        {**base, "properties": {"project": value}} if sort == "object" else {**base, sort: value}
    )
    names = _taken(made, "analytics_event", event)[1]._identifiers
    return next((one.canonical_id for one in names if one.kind == sort), "")


def check_periods(made: Installation) -> None:
    """Require that everything is kept for twelve calendar months and not a moment longer."""
    for kind in ("analytics_event", "error_event"):
        key = "time" if kind == "analytics_event" else "timestamp"
        event = {**_EVENTS[kind], key: _TWELVE_MONTHS_AGO.isoformat()}
        last = datetime(2026, 11, 22, 10, 14, 59, tzinfo=UTC)
        parcel, _, reason = _taken(made, kind, event, last)
        assert parcel is not None, f"{kind} is gone too early: {reason}"
        assert parcel.retain_until == last + timedelta(seconds=1)
        assert _taken(made, kind, event, last + timedelta(seconds=1))[2] == "expired"


def check_lies(made: Installation) -> None:
    """Require that what is on its way lies nowhere longer than promised, nor goes too early."""
    found = {"dead_letters": made.policy.dead_letters, **made.policy.log_retention}
    assert found == {name: Period.parse(text) for name, text in PROMISED["lies"].items()}


def check_subjects(made: Installation) -> None:
    """Require that nobody keeps a secret longer than promised, and that trace ids stay or go."""
    assert made.policy.max_age == Period(months=PROMISED["subjects"]["months"])
    assert made.policy.trace == PROMISED["subjects"]["trace"]


def check_ways_back(made: Installation) -> None:
    """Require that nobody goes back further, or more often, than promised; each rule says why."""
    rules = made.policy.ways_back
    assert {
        "audit_keep_years": rules.audit.keep_years,
        "token_per_person_and_day": rules.token.per_person_and_day,
        "join_enabled": rules.join.enabled,
        "join_per_person_and_day": rules.join.per_person_and_day,
        "reidentify_enabled": rules.reidentify.enabled,
        "reidentify_per_person_and_day": rules.reidentify.per_person_and_day,
        "reidentify_valid_hours": rules.reidentify.valid_hours,
    } == PROMISED["ways_back"]
    assert rules.audit.source
    assert not rules.reason
    assert not rules.person


def check_consent(made: Installation) -> None:
    """Require that nothing of marketing leaves without consent, whatever kinds it gets one day."""
    policy = copy.copy(made.policy)
    policy.purpose_of_kind = {**policy.purpose_of_kind, "feedback": "marketing"}
    asked = Installation(made.tables, policy, made.schemas)
    assert _taken(asked, "feedback", {"event_id": _OWN_ID})[2] == "no_consent"


def check_properties(made: Installation) -> None:
    """Require that analytics can say what is declared, value by value, and nothing else."""
    assert _taken(made, "analytics_event", {"event": "never declared"})[2] == "undeclared_event"
    assert set(made.policy.events) == set(PROMISED["analytics"])
    for event, properties in PROMISED["analytics"].items():
        assert _taken(made, "analytics_event", {"event": event})[0] is not None, event
        base = {**_EVENTS["analytics_event"], "event": event}
        _check_values(made, "analytics_event", base, properties)
    _check_values(made, "user_properties", _EVENTS["user_properties"], PROMISED["properties"])


def _check_values(
    made: Installation, kind: str, base: Mapping[str, Any], properties: Mapping[str, Any]
) -> None:
    for name, values in properties.items():
        for group, sent in values.items():
            for value in sent:
                event = {**base, "properties": {name: value, "undeclared": "p-77"}}
                parcel, names, reason = _taken(made, kind, event)
                assert parcel is not None, f"{base.get('event', kind)}: {reason}"
                left = json.loads(parcel.body).get("properties", {})
                objects = [one for one in names._identifiers if one.kind == "object"]
                where = f"{base.get('event', kind)}, {name}: {value!r}"
                assert left.keys() <= {name}, where
                assert (left.get(name) == value) is (group == "fit"), where
                assert type(left.get(name)) is type(value) or group != "fit", where
                assert bool(objects) is (group == "object"), where


def check_addresses(made: Installation) -> None:
    """Require that of an address that much leaves as the notice says, wherever one is told."""
    for address, prefix in PROMISED["addresses"].items():
        event = {**_EVENTS["analytics_event"], "ip": address}
        parcel, _, _ = _taken(made, "analytics_event", event)
        assert parcel is not None
        assert json.loads(parcel.body).get("ip") == prefix
        outcome = Edge(made.schemas).scrub(
            Item("error_event", b'{"user":{"ip_address":"{{auto}}"}}'), Connection(address)
        )
        assert json.loads(outcome.event)["user"].get("ip_address") == prefix


def check_profiles(made: Installation) -> None:
    """Require of each profile of addresses what the vectors say, once a policy chooses it."""
    vectors = tomllib.loads((_VECTORS / "addresses.toml").read_text("utf-8"))["vectors"]
    for place, name in enumerate(("default", "ga", "strict", "drop"), 1):
        tables = {**made.tables, "treatments.toml": copy.deepcopy(made.tables["treatments.toml"])}
        tables["treatments.toml"]["truncate_ip"]["profile"] = name
        profile = loaded(tables).address_profile
        for row in vectors:
            wanted = "" if place > 3 else row[place]
            if row[1] != "!":
                assert truncate_ip(row[0], profile=profile) == wanted, name


def check_hosts(made: Installation) -> None:
    """Require that each recipient can be reached where its documents say, and nowhere else."""
    for name, recipient in made.policy.recipients.items():
        for where in PROMISED["hosts"][name]:
            check_host(name, recipient.hosts, {"dsn" if "@" in where else "url": where})
        others = [url for who, urls in PROMISED["hosts"].items() if who != name for url in urls]
        for where in others:
            try:
                check_host(name, recipient.hosts, {"url": where})
            except ConfigError:
                continue
            raise AssertionError(f"{name} may be reached at another's host")


def check_rates(made: Installation) -> None:
    """Require that no more is sent to Heap than it documents, and no less.

    developers.heap.io, "Bulk Track" and "Add User Properties": 15,000 events a minute and 1,000 for
    an identity; 30 updates of an identity in 30 seconds.
    """
    clock = [0.0]
    rates = rates_of(made.policy.recipients["heap"])
    sink = _SINKS["telemetry.sinks.heap:HeapSink"]
    forwarder = Forwarder(
        "heap", sink, cast("Any", None), call=cast("Any", None), rates=rates,
        monotonic=lambda: clock[0],
    )  # fmt: skip

    for window in forwarder._windows:
        window.heed(1.0, clock[0])

    def burst(kind: str, identity: str, tries: int) -> int:
        """Send what may go at this moment; say how many that are."""
        one = Delivery(delivery_id="", kind=kind, body=b"", occurred_at=NOW)
        task = _Task(cast("Any", None), one, "", identity)
        taken: Counter[tuple[int, str]] = Counter()
        allows = forwarder._rate_allows
        gone = [task for _ in range(tries) if allows(task, taken, clock[0]) <= clock[0]]
        forwarder._charge(gone)
        return len(gone)

    assert burst("user_properties", "a", 40) == 30
    assert burst("analytics_event", "a", 1100) == 1000
    assert burst("user_properties", "b", 1)
    clock[0] = 29.9
    assert not burst("user_properties", "a", 1)
    clock[0] = 30.1
    assert burst("user_properties", "a", 40) == 30
    clock[0] = 59.9
    assert not burst("analytics_event", "a", 1)
    clock[0] = 60.1
    assert burst("analytics_event", "a", 1100) == 1000
    assert sum(burst("analytics_event", f"o{n}", 1000) for n in range(15)) == 14000
    assert burst("user_properties", "c", 1)
    clock[0] = 120.0
    assert not burst("analytics_event", "z", 1)
    clock[0] = 120.2
    assert burst("analytics_event", "a", 1)


def check_refusals(made: Installation) -> None:
    """Require that a kind or a period that breaks the promise stops the start."""
    for group, kinds in PROMISED["switched_on"].items():
        for kind in kinds:
            tables = _with(made, "purposes.toml")
            tables["purposes.toml"]["error-logging"]["kinds"].append(kind)
            why = _refusal(tables)
            assert (f"sentry.kept.{kind}" in why) is (group == "refused"), kind
            assert bool(why) is (group == "refused"), why
    for name in made.policy.recipients:
        tables = _with(made, "recipients.toml")
        tables["recipients.toml"][name]["retention"] = "P13M"
        assert f"{name}.retention" in _refusal(tables), f"{name} may keep longer than promised"


def _with(made: Installation, file: str) -> dict[str, Any]:
    return {**made.tables, file: copy.deepcopy(made.tables[file])}


def _refusal(tables: Tables) -> str:
    """Say why a policy is refused; empty if it is not."""
    try:
        loaded(tables)
    except PolicyError as error:
        return str(error)
    return ""


@cache
def _papers() -> tuple[Mapping[str, Record], Mapping[str, Any]]:
    batch = json.loads((schemas_dir() / "batch.avsc").read_text("utf-8"))
    return load_records(), batch


def check_dictionary(made: Installation) -> None:
    """Require that the data dictionary tells what Art. 13 and 30 GDPR ask for."""
    policy = made.policy
    text = data_dictionary(policy, *_papers())
    rows = [line for line in text.split("\n") if line.startswith("| ")]

    def row(key: str) -> str:
        found = [line for line in rows if line.startswith(f"| {key} | ")]
        assert found, f"the dictionary has no row {key}"
        return found[0]

    # Art. 13(1)(a), (b) and 13(2)(d): controller, data protection officer, supervisory authority.
    for key, told in (
        ("Controller", "Düsseldorf"),
        ("Data protection officer", "Düsseldorf"),
        ("Supervisory authority", "Nordrhein-Westfalen"),
        ("Notice", policy.notice.version),
        ("Kept at most", "12 calendar months"),
    ):
        assert told in row(key), key
    for name, purpose in policy.purposes.items():
        line = row(f"`{name}`")
        told = [purpose.name] + [purpose.interest] * (purpose.basis == "6(1)(f)")
        for words in told:  # Art. 13(1)(c) and (d)
            for language in _LANGUAGES:
                assert words.get(language), f"{name} is not told in {language}"
                assert f"{language}: {words[language]}" in line, name
        assert f"Art. {purpose.basis} GDPR" in line
        assert ("only with consent" in line) is (name == "marketing")
        assert "12 calendar months" in line
    assert {*policy.recipients, "nobody"} == set(PROMISED["hosts"])
    for name, recipient in policy.recipients.items():
        line = row(f"`{name}`")  # Art. 13(1)(e) and (f), 30(1)(d) and (e)
        for said in (
            recipient.entity,
            recipient.address,
            recipient.safeguard.tool,
            recipient.source,
        ):
            assert said, f"{name} is not described"
            assert said in line, name
        for kind, period in PROMISED["keeps"].get(name, {}).items():
            assert f"`{kind}`: `{period}`" in line, f"{name} does not say how long it keeps {kind}"
        by_interface = "by its interface" in line
        assert by_interface is (name != "sentry"), f"{name} is said to erase otherwise than it does"
        assert ("for a quarter" in line) is (name == "sentry")
