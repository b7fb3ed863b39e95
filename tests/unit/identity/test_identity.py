"""From capsules to tokens: whose they are, what erasure reaches, what is held and what parked."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from telemetry.errors import (
    CapsuleError,
    EventError,
    IdentifierError,
    KeyringError,
    PolicyError,
    VaultError,
)
from telemetry.identity import (
    Domain,
    Identifier,
    Identity,
    Resolved,
    Sealed,
    Sealer,
    check,
    epoch_ms,
    initialise_development,
    load_dead_letter_sealer,
)
from telemetry.identity.keyring import Secret
from telemetry.identity.vault import CACHE_S

ANALYTICS = Domain(name="analytics@heap", label="heap", epoch="rel")
ERRORS = Domain(name="errors@sentry", label="sentry", epoch="quarter")
NOW = datetime.now(UTC)

ACCOUNT = Identifier("account", "app:user", "4711-planted")
OTHER = Identifier("account", "app:user", "4712-planted")
ORGANIZATION = Identifier("organization", "app:org", "17-planted")
SESSION = Identifier("session", "app:session", "s1-planted")
DEVICE = Identifier("device", "app:device", "d1-planted")
MEMBERSHIP = Identifier("membership", "app:member", "4711\x1f17-planted")
PROJECT = Identifier("object", "app:project", "p1-planted")
PLAN = Identifier("object", "app:plan", "q1-planted")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    initialise_development(tmp_path)
    return tmp_path


@pytest.fixture
def identity(state: Path) -> Iterator[Identity]:
    one = Identity.open(state, environment="development")
    yield one
    one.close()


@pytest.fixture
def sealer(state: Path) -> Sealer:
    return Identity.sealer(state)


def sealed(sealer: Sealer, *people: Identifier, event: int = 1, at: datetime = NOW) -> Sealed:
    bound: dict[str, Any] = {"event_id": f"{event:032x}", "schema": "event", "tenant": "web"}
    capsule = sealer.seal(people, occurred_ms=epoch_ms(at), **bound)
    return Sealed(capsule=capsule, occurred_at=at, **bound)


def resolved(identity: Identity, one: Sealed) -> Resolved:
    (result,) = identity.resolve([one])
    assert isinstance(result, Resolved)
    return result


def test_the_same_account_has_one_token_per_recipient_that_outlives_a_restart(
    identity: Identity, sealer: Sealer, state: Path
) -> None:
    first = resolved(identity, sealed(sealer, ACCOUNT))
    heap, sentry = first.tokens(ANALYTICS, NOW), first.tokens(ERRORS, NOW)
    assert set(heap) == set(sentry) == {"account"}
    assert check(heap["account"])
    assert heap["account"].startswith("ps1_heap_u_")
    assert heap["account"][11:] != sentry["account"][13:]
    identity.close()
    again = Identity.open(state, environment="development")
    event = resolved(again, sealed(Identity.sealer(state), ACCOUNT, event=2))
    assert event.tokens(ANALYTICS, NOW) == heap
    assert event.tokens(ERRORS, NOW) == sentry
    again.close()


def test_results_stand_in_the_order_of_the_capsules_and_bad_ones_hurt_no_other(
    identity: Identity, sealer: Sealer
) -> None:
    good = sealed(sealer, ACCOUNT)
    moved = Sealed(
        capsule=good.capsule,
        event_id=f"{9:032x}",
        schema="event",
        occurred_at=NOW,
        tenant="web",
    )
    nobody = sealed(sealer, event=3)
    alone = sealed(sealer, MEMBERSHIP, event=4)
    results = identity.resolve([moved, good, nobody, alone, good])
    assert [type(result) for result in results] == [
        CapsuleError,
        Resolved,
        Resolved,
        IdentifierError,
        Resolved,
    ]
    assert isinstance(results[2], Resolved)
    assert results[2].kinds == ()
    assert results[2].tokens(ANALYTICS, NOW) == {}
    assert results[2].state("product-analytics") == "ACTIVE"


def test_each_kind_has_a_token_and_objects_are_told_apart_by_namespace(
    identity: Identity, sealer: Sealer
) -> None:
    people = [ACCOUNT, ORGANIZATION, SESSION, DEVICE, MEMBERSHIP, PROJECT, PLAN]
    event = resolved(identity, sealed(sealer, *people))
    tokens = event.tokens(ANALYTICS, NOW)
    assert list(tokens) == [*event.kinds[:5], "object:app:project", "object:app:plan"]
    assert [token[9] for token in tokens.values()] == list("uosdmxx")
    assert event.token_list(ANALYTICS, NOW) == tuple(tokens.values())
    assert len({token[11:] for token in tokens.values()}) == len(people)


def test_a_quarter_ends_a_token_and_the_relationship_does_not(
    identity: Identity, sealer: Sealer
) -> None:
    event = resolved(identity, sealed(sealer, ACCOUNT))
    later = NOW + timedelta(days=100)
    first = event.tokens(ANALYTICS, NOW), event.tokens(ERRORS, NOW)
    identity._now = lambda: later
    identity._forget()
    assert event.tokens(ANALYTICS, later) == first[0]
    assert event.tokens(ERRORS, later) != first[1]


QUARTER = datetime(2027, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("occurred", "now", "epoch"),
    [
        (timedelta(seconds=-1), timedelta(0), "2026q4"),
        (timedelta(0), timedelta(0), "2027q1"),
        # late: the old quarter still, for a week
        (timedelta(days=-1), timedelta(days=6), "2026q4"),
        (timedelta(seconds=-1), timedelta(days=7), "2027q1"),
        (timedelta(days=-300), timedelta(days=7, seconds=-1), "2026q4"),
        (timedelta(days=-300), timedelta(days=8), "2027q1"),
        # ahead: the next quarter only within five minutes of it
        (timedelta(minutes=3), timedelta(minutes=-4), "2027q1"),
        (timedelta(minutes=3), timedelta(minutes=-6), "2026q4"),
        (timedelta(hours=20), timedelta(hours=-1), "2026q4"),
    ],
)
def test_an_epoch_is_that_of_the_event_within_a_week_and_five_minutes(
    identity: Identity, occurred: timedelta, now: timedelta, epoch: str
) -> None:
    identity._now = lambda: QUARTER + now
    identity._forget()
    assert identity.epoch_of(ERRORS, QUARTER + occurred) == epoch
    assert identity.epoch_of(ANALYTICS, QUARTER + occurred) == "rel"


@pytest.mark.parametrize("days", [-401, 2, -10_000])
def test_a_forged_time_makes_no_key(
    identity: Identity, sealer: Sealer, state: Path, days: int
) -> None:
    event = resolved(identity, sealed(sealer, ACCOUNT))
    before = (state / "keys" / "keyset.json").read_bytes()
    with pytest.raises(IdentifierError, match="invalid_time"):
        event.tokens(ERRORS, NOW + timedelta(days=days))
    assert (state / "keys" / "keyset.json").read_bytes() == before


def test_an_erased_account_takes_its_sessions_devices_and_memberships_with_it(
    identity: Identity, sealer: Sealer
) -> None:
    event = sealed(sealer, ACCOUNT, SESSION, DEVICE, MEMBERSHIP)
    before = resolved(identity, event).tokens(ANALYTICS, NOW)
    identity.erase(ACCOUNT, purposes=["product-analytics", "error-logging"])
    after = resolved(identity, event)
    assert after.state("product-analytics") == after.state("never-heard-of") == "ERASED"
    with pytest.raises(IdentifierError, match="erased"):
        after.tokens(ANALYTICS, NOW)
    # Under any other secret the same ids give other tokens: nothing left gives the old ones.
    other = resolved(identity, sealed(sealer, OTHER, SESSION, DEVICE))
    assert not set(before.values()) & set(other.tokens(ANALYTICS, NOW).values())
    alone = resolved(identity, sealed(sealer, SESSION))
    assert not set(before.values()) & set(alone.tokens(ANALYTICS, NOW).values())


def test_a_session_cannot_be_joined_across_its_log_in(identity: Identity, sealer: Sealer) -> None:
    events = [sealed(sealer, SESSION), sealed(sealer, ACCOUNT, SESSION), sealed(sealer, SESSION)]
    before, during, after = (
        resolved(identity, event).tokens(ANALYTICS, NOW)["session"] for event in events
    )
    assert before == after != during


def test_an_object_belongs_to_the_organization_that_is_named_with_it(
    identity: Identity, sealer: Sealer
) -> None:
    both = resolved(identity, sealed(sealer, ACCOUNT, ORGANIZATION, PROJECT))
    colleague = resolved(identity, sealed(sealer, OTHER, ORGANIZATION, PROJECT))
    key = "object:app:project"
    token = both.tokens(ANALYTICS, NOW)[key]
    assert colleague.tokens(ANALYTICS, NOW)[key] == token
    assert resolved(identity, sealed(sealer, ACCOUNT, PROJECT)).tokens(ANALYTICS, NOW)[key] != token
    identity.erase(ORGANIZATION, purposes=[])
    assert resolved(identity, sealed(sealer, ORGANIZATION, PROJECT)).state("any") == "ERASED"


def test_the_strictest_state_of_account_and_organization_holds(
    identity: Identity, sealer: Sealer
) -> None:
    event = sealed(sealer, ACCOUNT, ORGANIZATION)

    def state(purpose: str = "product-analytics") -> str:
        (result,) = identity.resolve([event], purposes=["product-analytics"])
        assert isinstance(result, Resolved)
        return result.state(purpose)

    assert state() == "ACTIVE"
    identity.set_state(ORGANIZATION, purpose="product-analytics", state="GRANTED")
    assert state() == "ACTIVE"
    identity.set_state(ACCOUNT, purpose="product-analytics", state="GRANTED")
    assert state() == "GRANTED"
    identity.set_state(ORGANIZATION, purpose="product-analytics", state="RESTRICTED")
    assert state() == "RESTRICTED"
    identity.set_state(ORGANIZATION, purpose="product-analytics", state="ACTIVE")
    identity.set_state(ACCOUNT, purpose="product-analytics", state="OBJECTED")
    assert state() == "OBJECTED"
    assert state("error-logging") == "ACTIVE"
    with pytest.raises(IdentifierError):
        identity.set_state(SESSION, purpose="product-analytics", state="OBJECTED")


def test_an_event_has_another_delivery_id_at_each_recipient_and_the_same_at_each_repeat(
    identity: Identity, sealer: Sealer, state: Path
) -> None:
    one = resolved(identity, sealed(sealer, ACCOUNT))
    two = resolved(identity, sealed(sealer, ACCOUNT, event=2))
    ids = [event.delivery_id(domain) for event in (one, two) for domain in (ANALYTICS, ERRORS)]
    assert len({*ids, f"{1:032x}"}) == 5
    again = Identity.open(state, environment="development")
    assert resolved(again, sealed(sealer)).delivery_id(ANALYTICS) == ids[0]
    again.close()


def test_an_erasure_in_another_process_is_obeyed_within_a_minute(
    state: Path, sealer: Sealer
) -> None:
    now = [0.0]
    one = Identity.open(state, environment="development")
    running = Identity(one._keyring, one._vault, clock=lambda: now[0])
    one._vault._subjects._clock = one._vault._clock = lambda: now[0]
    event = sealed(sealer, ACCOUNT)
    resolved(running, event).tokens(ANALYTICS, NOW)
    other = Identity.open(state, environment="development")
    other.erase(ACCOUNT, purposes=["product-analytics"])
    now[0] = CACHE_S
    assert resolved(running, event).state("product-analytics") == "ERASED"
    one.close()
    other.close()


def test_a_vault_or_keyset_that_cannot_be_used_holds_the_batch(
    identity: Identity, sealer: Sealer, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = sealed(sealer, ACCOUNT)
    with identity._vault.engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE subjects")
    with pytest.raises(VaultError):
        identity.resolve([event])
    (state / "keys" / "keyset.json").unlink()
    monkeypatch.setattr(identity, "_fresh_until", 0.0)
    with pytest.raises(KeyringError):
        identity.resolve([event])


def test_a_secret_that_cannot_be_read_parks_its_events_only(
    identity: Identity, sealer: Sealer
) -> None:
    identity.resolve([sealed(sealer, ACCOUNT), sealed(sealer, OTHER)])
    with identity._vault.engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE subjects SET wrapped=zeroblob(60) WHERE locator=?",
            (identity._locator(ACCOUNT),),
        )
    identity._vault._subjects.clear()
    bad, good = identity.resolve([sealed(sealer, ACCOUNT), sealed(sealer, OTHER)])
    assert isinstance(bad, EventError)
    assert bad.reason == "secret_unreadable"
    assert isinstance(good, Resolved)


def test_production_refuses_a_development_state(state: Path) -> None:
    with pytest.raises(KeyringError):
        Identity.open(state, environment="production")


def test_nothing_starts_where_hpke_fails_its_self_test(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> None:
        raise KeyringError("HPKE")

    monkeypatch.setattr("telemetry.identity.self_test", fails)
    for start in (
        lambda: Identity.open(state, environment="development"),
        lambda: Identity.sealer(state),
        lambda: load_dead_letter_sealer(state / "keys" / "public.json"),
    ):
        with pytest.raises(KeyringError, match="HPKE"):
            start()


def test_a_gateway_seals_with_nothing_but_the_public_file(state: Path, tmp_path: Path) -> None:
    public = (state / "keys" / "public.json").read_bytes()
    gateway = tmp_path / "gateway"
    (gateway / "keys").mkdir(parents=True)
    (gateway / "keys" / "public.json").write_bytes(public)
    event = sealed(Identity.sealer(gateway), ACCOUNT)
    with pytest.raises(KeyringError):
        Identity.open(gateway, environment="development")
    one = Identity.open(state, environment="development")
    assert resolved(one, event).kinds == ("account",)
    one.close()


@pytest.mark.parametrize(
    ("name", "label", "epoch"),
    [
        ("heap", "heap", "rel"),
        ("analytics@heap", "h", "rel"),
        ("analytics@heap", "Heap", "rel"),
        ("analytics@heap", "heap", "month"),
    ],
)
def test_a_domain_that_is_none_is_an_error_of_the_policy(name: str, label: str, epoch: Any) -> None:
    with pytest.raises(PolicyError):
        Domain(name=name, label=label, epoch=epoch)


def test_nothing_shows_an_identifier_or_a_secret(
    identity: Identity, sealer: Sealer, state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    people = [ACCOUNT, ORGANIZATION, SESSION, PROJECT]
    one = sealed(sealer, *people)
    event = resolved(identity, one)
    event.tokens(ANALYTICS, NOW)
    (error,) = identity.resolve(
        [Sealed(capsule=one.capsule, event_id="0", schema="x", occurred_at=NOW, tenant="y")]
    )
    identity.erase(OTHER, purposes=["product-analytics"])
    identity.close()
    shown = f"{event!r} {error!r} {one!r} {people!r} {identity!r} {sealer!r} {caplog.text}"
    assert "planted" not in shown
    holders = [holder for holder in event._holders if isinstance(holder, Secret)]
    assert len(holders) == 4
    secrets = {
        entry[name]
        for file in (state / "keys").rglob("*.json")
        for entry in json.loads(file.read_bytes())["keys"]
        for name in ("k", "d")
        if name in entry
    }
    assert secrets
    assert not [secret for secret in secrets if secret in shown]
    for folder, _, files in os.walk(state):
        for file in files:
            assert b"planted" not in (Path(folder) / file).read_bytes()
