"""What becomes of one parcel: `decide`, case by case (DESIGN 5; privacy.md e)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from making import NOW, World

from scrubbers.detectors import Detectors
from telemetry.batch import encode_batches
from telemetry.brokers import DEAD, HELD, SEALED, Entry, Polled, clean
from telemetry.dead_letter import Brake
from telemetry.edge import Item
from telemetry.errors import CapsuleError, DecodeError, PolicyError, TooManyDead, VaultError
from telemetry.identity import Identifier
from telemetry.identity.vault import SuppressionState
from telemetry.parcel import HEADER, Parcel
from telemetry.pipeline import Deliver, Drop, Hold, Park, Pseudonymizer, Terms, decide
from telemetry.policy import load_policy
from telemetry.rules import Schemas
from telemetry.schema import Record

ACCOUNT = 7_744_556_123
EVENT: dict[str, Any] = {
    "event": "task created",
    "time": "2026-11-22T10:14:31.5Z",
    "account": ACCOUNT,
    "organization": 7_744_556_900,
    "session": "sess-7744",
    "ip": "203.0.113.77",
    "properties": {"project": "proj-7744", "priority": "low"},
}
ERROR: dict[str, Any] = {
    "timestamp": "2026-11-22T10:14:31Z",
    "message": "login of jane@example.com failed",
    "user": {"id": str(ACCOUNT)},
}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    one = World(tmp_path)
    yield one
    one.close()


def delivered(world: World, parcel: Parcel, recipient: str) -> Parcel:
    decision = world.decide(parcel)
    assert isinstance(decision, dict)
    assert list(decision) == [recipient]
    outcome = decision[recipient]
    assert isinstance(outcome, Deliver)
    return outcome.parcel


def test_an_analytics_event_goes_to_heap_under_a_derived_id(world: World) -> None:
    parcel = world.parcel("analytics_event", EVENT, "ab" * 16)
    out = delivered(world, parcel, "heap")
    assert out.event_id != parcel.event_id
    assert out.event_id == delivered(world, parcel, "heap").event_id
    body = json.loads(out.body)
    assert body["idempotency_key"] == out.event_id
    assert body["identity"].startswith("ps1_heap_u_")
    assert body["properties"]["project"].startswith("ps1_heap_x_")
    assert body["properties"]["ip_prefix"] == "203.0.113.0/24"
    assert b"ab" * 16 not in out.body


def test_an_error_goes_to_sentry_under_its_own_id(world: World) -> None:
    parcel = world.parcel("error_event", ERROR, "cd" * 16)
    out = delivered(world, parcel, "sentry")
    assert out.event_id == parcel.event_id == "cd" * 16
    assert b"<email:1>" in out.body


@pytest.mark.parametrize(("kind", "event"), [("analytics_event", EVENT), ("error_event", ERROR)])
def test_what_leaves_is_tagged_and_carries_neither_capsule_nor_remarks(
    world: World, kind: str, event: dict[str, Any]
) -> None:
    parcel = world.parcel(kind, event)
    assert parcel.capsule
    assert parcel.remarks
    (outcome,) = world.decide(parcel).values()  # type: ignore[union-attr]
    out = outcome.parcel
    assert (out.capsule, out.remarks, out.reason) == (b"", b"", "")
    assert (out.retain_until, out.occurred_at) == (parcel.retain_until, parcel.occurred_at)
    # 2027-11-22T10:14 rounded down to a day that is over before it.
    for tag in (b"2027-11-2", b"12m", world.policy.digest[:12].encode()):
        assert tag in out.body
    assert str(ACCOUNT).encode() not in out.body


def test_the_same_account_has_another_token_at_each_recipient(world: World) -> None:
    heap = delivered(world, world.parcel("analytics_event", EVENT), "heap")
    sentry = delivered(world, world.parcel("error_event", ERROR), "sentry")
    token = json.loads(heap.body)["identity"]
    assert token.startswith("ps1_heap_u_")
    assert b"ps1_sentry_u_" in sentry.body
    assert token.rpartition("_")[2].encode() not in sentry.body


def test_what_expired_is_dropped_to_the_microsecond(world: World) -> None:
    parcel = world.parcel("analytics_event", EVENT)
    world.now = parcel.retain_until
    assert world.decide(parcel) == Drop("expired")
    world.now = parcel.retain_until - timedelta(microseconds=1)
    world.identity._now = lambda: NOW
    assert isinstance(world.decide(parcel), dict)


def test_an_unknown_or_revoked_policy_is_parked(world: World) -> None:
    parcel = world.parcel("analytics_event", EVENT)
    assert world.decide(replace(parcel, policy_digest="f" * 64)) == Park("unknown_policy")
    world.register.enter("a" * 64, "live", NOW)
    assert isinstance(world.decide(parcel), dict)  # superseded
    world.register.enter(world.policy.digest, "revoked", NOW)
    assert world.decide(parcel) == Park("unknown_policy")


@pytest.mark.parametrize(
    "change",
    [
        {"event_id": "0" * 32},
        {"tenant": "other"},
        {"occurred_at": NOW - timedelta(hours=1)},
        {"capsule": b"\x00" * 200},
        {"capsule": b"x"},
    ],
    ids=["event id", "tenant", "time", "zeros", "short"],
)
def test_a_capsule_that_does_not_open_is_parked(world: World, change: dict[str, Any]) -> None:
    parcel = replace(world.parcel("analytics_event", EVENT), **change)
    decision = world.decide(parcel)
    assert isinstance(decision, Park)
    assert isinstance(world.resolve(parcel), CapsuleError)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("OBJECTED", Drop("objected")),
        ("WITHDRAWN", Drop("no_consent")),
        ("RESTRICTED", Hold("restricted")),
    ],
)
def test_a_subjects_state_stops_its_events_and_no_others(
    world: World, state: SuppressionState, expected: Drop | Hold
) -> None:
    subject = Identifier("account", world.policy.pseudonyms["account"].namespace, str(ACCOUNT))
    world.identity.set_state(subject, purpose="product-analytics", state=state)
    assert world.decide(world.parcel("analytics_event", EVENT)) == expected
    other = world.parcel("analytics_event", EVENT | {"account": ACCOUNT + 1})
    assert isinstance(world.decide(other), dict)
    # Another purpose is another matter.
    assert isinstance(world.decide(world.parcel("error_event", ERROR)), dict)
    world.identity.set_state(subject, purpose="product-analytics", state="ACTIVE")
    assert isinstance(world.decide(world.parcel("analytics_event", EVENT)), dict)


@pytest.mark.parametrize("kind", ["account", "organization"])
def test_an_erased_subject_is_dropped_for_every_purpose(world: World, kind: str) -> None:
    namespace = world.policy.pseudonyms[kind].namespace
    subject = Identifier(kind, namespace, str(EVENT[kind]))
    waiting = world.parcel("analytics_event", EVENT)
    world.identity.erase(subject, purposes=world.policy.purposes)
    assert world.decide(waiting) == Drop("erased")
    assert world.decide(world.parcel("analytics_event", EVENT)) == Drop("erased")


def test_a_secret_that_is_gone_drops_even_where_no_state_was_noted(world: World) -> None:
    namespace = world.policy.pseudonyms["account"].namespace
    world.identity.erase(Identifier("account", namespace, str(ACCOUNT)), purposes=())
    assert world.decide(world.parcel("error_event", ERROR)) == Drop("erased")


def test_a_purpose_without_recipient_is_dropped(world: World) -> None:
    parcel = world.parcel("analytics_event", EVENT)
    policy = load_policy(world.policy.folder)
    policy.recipients = {"sentry": policy.recipients["sentry"]}
    terms = replace(world.terms, policy=policy)
    assert decide(parcel, world.resolve(parcel), terms, NOW) == Drop("no_recipient")


def test_a_kind_that_the_policy_no_longer_covers_is_dropped(world: World) -> None:
    parcel = world.parcel("analytics_event", EVENT)
    assert world.decide(replace(parcel, purpose="marketing")) == Drop("kind_off")
    assert world.decide(replace(parcel, kind="feedback")) == Drop("kind_off")


def test_a_purpose_that_needs_consent_gets_no_event_without(world: World) -> None:
    parcel = world.parcel("analytics_event", EVENT)
    policy = load_policy(world.policy.folder)
    name = "product-analytics"
    policy.purposes = {**policy.purposes, name: msgspec.structs.replace(
        policy.purposes[name], consent=True)}  # fmt: skip
    terms = replace(world.terms, policy=policy)
    assert decide(parcel, world.resolve(parcel), terms, NOW) == Drop("no_consent")
    subject = Identifier("account", policy.pseudonyms["account"].namespace, str(ACCOUNT))
    world.identity.set_state(subject, purpose=name, state="GRANTED")
    assert isinstance(decide(parcel, world.resolve(parcel), terms, NOW), dict)
    world.identity.set_state(subject, purpose=name, state="WITHDRAWN")
    assert decide(parcel, world.resolve(parcel), terms, NOW) == Drop("no_consent")


def test_a_recipient_that_needs_an_identity_gets_no_event_without(world: World) -> None:
    parcel = world.parcel("analytics_event", {"event": "page viewed"})
    assert parcel.capsule == b""
    assert world.decide(parcel) == {"heap": Drop("no_identity")}
    assert isinstance(world.decide(world.parcel("session", {"status": "ok"})), dict)


@pytest.mark.parametrize(
    "change",
    [
        {"body": b'{"event":"task created","undeclared":"jane"}'},
        {"body": b"jane"},
        {"body": b""},
        {"remarks": b'["jane"]'},
        {"kind": "user_properties"},
    ],
    ids=["undeclared", "no json", "empty", "remarks", "kind"],
)
def test_a_body_that_is_not_of_its_contract_is_parked_without_a_word_of_it(
    world: World, change: dict[str, Any]
) -> None:
    parcel = replace(world.parcel("analytics_event", {"event": "page viewed"}), **change)
    decision = world.decide(parcel)
    assert isinstance(decision, Park)
    assert "jane" not in repr(decision)


@pytest.fixture
def stricter(world: World, tmp_path: Path) -> Terms:
    """Give the terms of a later policy: a property less, an event less, coarser, shorter."""
    folder = tmp_path / "policy"
    shutil.copytree(world.policy.folder, folder)
    for file, old, new in (
        ("events.toml", 'priority = { type = "enum", values = ["low", "normal", "high"] }', ""),
        ("events.toml", '["page viewed"]', '["page seen"]'),
        ("treatments.toml", '"default"', '"strict"'),
        ("retention.toml", '[class.12m]\nperiod = "P12M"', '[class.12m]\nperiod = "P6M"'),
        ("recipients.toml", 'retention = "P12M"', 'retention = "P6M"'),
        ("recipients.toml", 'retention = "P12M"', 'retention = "P6M"'),
    ):
        text = (folder / file).read_text("utf-8")
        assert old in text
        (folder / file).write_text(text.replace(old, new, 1), "utf-8")
    policy = load_policy(folder)
    world.register.enter(policy.digest, "live", NOW)
    detectors = Detectors.compile(policy.detector_table)
    return replace(world.terms, policy=policy, schemas=Schemas(policy, detectors))


def test_what_an_older_policy_let_through_leaves_by_the_one_of_today(
    world: World, stricter: Terms
) -> None:
    parcel = world.parcel("analytics_event", EVENT)
    assert b'"priority":"low"' in parcel.body
    assert b"203.0.113.0/24" in parcel.body
    found = world.resolve(parcel)
    decision = decide(parcel, found, stricter, NOW)
    assert isinstance(decision, dict)
    outcome = decision["heap"]
    assert isinstance(outcome, Deliver)
    assert b"priority" not in outcome.parcel.body
    assert b'"ip_prefix":"203.0.0.0/16"' in outcome.parcel.body
    assert outcome.parcel.retain_until < NOW + timedelta(days=184)
    assert outcome.parcel.policy_digest == stricter.policy.digest
    late = outcome.parcel.retain_until
    assert decide(parcel, found, stricter, late) == Drop("expired")
    assert late < parcel.retain_until


def test_an_event_that_is_no_longer_declared_is_dropped(world: World, stricter: Terms) -> None:
    parcel = world.parcel("analytics_event", {"event": "page viewed"})
    found = world.resolve(parcel)
    assert decide(parcel, found, stricter, NOW) == Drop("undeclared_event")


@pytest.mark.parametrize("name", HEADER)
def test_a_parcel_without_its_tags_cannot_be_made(world: World, name: str) -> None:
    parcel = world.parcel("analytics_event", EVENT)
    with pytest.raises(DecodeError, match=f"untagged at {name}"):
        replace(parcel, **{name: ""})


def test_a_parcel_without_times_or_id_cannot_be_made(world: World) -> None:
    parcel = world.parcel("analytics_event", EVENT)
    naive = parcel.occurred_at.replace(tzinfo=None)
    for change in (
        {"retain_until": parcel.occurred_at},
        {"occurred_at": naive},
        {"event_id": "jane@example.com"},
        {"event_id": "A" * 32},
    ):
        with pytest.raises(DecodeError) as caught:
            replace(parcel, **change)
        assert "jane" not in repr(caught.value)
    assert "jane" not in repr(replace(parcel, body=b"jane"))


class Log:
    """A log that remembers what it was told to make durable."""

    def __init__(self, parcels: list[Parcel]) -> None:
        self.parcels, self.finished = parcels, list[tuple[Any, Any]]()

    def poll(self, stream: str, group: str, max_events: int) -> Polled:
        assert stream == SEALED
        given = self.parcels[:max_events]
        return Polled(stream=stream, group=group, position=len(given) or None, parcels=given)

    def finish(self, polled: Polled, outputs: Any, counts: Any) -> None:
        self.parcels = self.parcels[len(polled.parcels) :]
        self.finished.append((outputs, counts))


async def _here(function: Any, *args: Any) -> Any:
    return function(*args)


def stage(world: World, log: Log, identity: Any = None) -> Pseudonymizer:
    return Pseudonymizer(
        log,  # type: ignore[arg-type]
        identity or world.identity,
        world.terms,
        on_storage=_here,
        on_scrub=_here,
        now=lambda: world.now,
    )


async def test_a_stage_that_would_park_nearly_everything_takes_nothing_until_it_is_told_to(
    world: World,
) -> None:
    good = world.parcel("analytics_event", EVENT)
    log = Log([replace(good, event_id=f"{number:032x}") for number in range(20)])
    one = stage(world, log)
    one.brake = Brake(run_length=10)
    for _ in range(2):
        with pytest.raises(TooManyDead, match="telemetry dead list"):
            await one.step()
    assert not log.finished
    one.brake = Brake(run_length=20)  # an operator says that these are to be parked
    assert await one.step()
    assert len(log.finished) == 1


async def test_under_a_revoked_policy_nothing_is_taken(world: World) -> None:
    log = Log([world.parcel("analytics_event", EVENT)])
    one = stage(world, log)
    world.register.enter(world.policy.digest, "revoked", NOW)
    with pytest.raises(PolicyError, match="revoked"):
        await one.step()
    assert not log.finished


async def test_outputs_and_counts_of_a_batch_are_finished_in_one_step(world: World) -> None:
    subject = Identifier("account", world.policy.pseudonyms["account"].namespace, str(ACCOUNT))
    world.identity.set_state(subject, purpose="error-logging", state="RESTRICTED")
    good = world.parcel("analytics_event", EVENT)
    parcels = [
        good,
        replace(good, event_id="0" * 32),  # its capsule belongs to another event
        world.parcel("error_event", ERROR),
        world.parcel("analytics_event", {"event": "page viewed"}),
        replace(good, retain_until=NOW, occurred_at=NOW - timedelta(days=1)),
    ]
    log = Log(parcels)
    one = stage(world, log)
    assert await one.step()
    assert not await one.step()
    ((outputs, counts),) = log.finished
    assert [parcel.reason for parcel in outputs[DEAD]] == ["capsule_mismatch"]
    assert [parcel.reason for parcel in outputs[HELD]] == ["restricted"]
    assert outputs[HELD][0].capsule == parcels[2].capsule
    assert len(outputs[clean("heap")]) == 1
    assert dict(counts) == {
        Entry("pseudonymizer", "scrubbed"): 2,
        Entry("pseudonymizer", "dead", "capsule_mismatch"): 1,
        Entry("pseudonymizer", "held", "restricted"): 1,
        Entry("pseudonymizer", "dropped", "expired"): 1,
        Entry("heap", "routed"): 2,
        Entry("heap", "dropped", "no_identity"): 1,
    }


async def test_nothing_is_finished_while_the_vault_cannot_be_asked(world: World) -> None:
    def refuse(*_args: Any, **_more: Any) -> Any:
        raise VaultError("It cannot be asked.")

    log = Log([world.parcel("analytics_event", EVENT)])
    one = stage(world, log, SimpleNamespace(resolve=refuse))
    with pytest.raises(VaultError):
        await one.step()
    assert log.finished == []
    assert len(log.parcels) == 1


def places(record: Record, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for entry in record.fields:
        here = (*path, entry.wire)
        if entry.record is None:
            yield here
        else:
            yield from places(entry.record, (*here, "[]") if entry.shape == "records" else here)


def planted(path: tuple[str, ...], value: Any) -> Any:
    for name in reversed(path):
        value = [value] if name == "[]" else {name: value}
    return value


@pytest.mark.parametrize(
    "kind", ["analytics_event", "error_event", "session", "sessions", "check_in", "user_properties"]
)
def test_an_address_planted_anywhere_is_in_no_parcel_and_no_recipients_shape(
    world: World, kind: str
) -> None:
    mail = "kq7canary.vk@mail.example.org"
    events: list[dict[str, Any]] = []
    for path in places(world.schemas.records[kind]):
        forms = (mail, f"no {mail} here", {mail: mail}, [mail, f"a {mail}"], [[mail, mail]])
        events += [planted(path, form) for form in forms]
    events += [{mail: mail}, {"undeclared": {"deep": [mail]}}]
    shapes = 0
    for event in events:
        named = {"event": "page viewed"} if kind == "analytics_event" else {}
        whole = {"account": ACCOUNT, **named, **event}
        taken = world.take(Item(kind, json.dumps(whole).encode()))
        for parcel in taken.parcels:
            assert b"canary" not in b"".join(encode_batches([parcel])), event
            decision = world.decide(parcel)
            assert isinstance(decision, dict), (event, decision)
            for outcome in decision.values():
                if isinstance(outcome, Deliver):
                    shapes += 1
                    assert b"canary" not in b"".join(encode_batches([outcome.parcel])), event
        for letter in taken.dead:
            assert b"canary" not in b"".join(encode_batches([letter])), event
    assert shapes >= len(events) // 2
    assert not any("canary" in path for _, path in world.edge.unknown)
