"""The gateway's half of the edge: each item becomes a parcel, a dead letter or a counted drop."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from making import NOW, TENANT, World

from telemetry.batch import encode_batches
from telemetry.brokers import Entry
from telemetry.edge import EVENT_BYTES, Connection, Item
from telemetry.errors import DecodeError
from telemetry.identity import Resolved

VIEW = {"event": "page viewed", "account": 7_744_556_123, "time": "2026-11-22T10:14:31.5Z"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    one = World(tmp_path_factory.mktemp("state"))
    yield one
    one.close()


def item(event: Any, kind: str = "analytics_event", **more: str) -> Item:
    raw = event if isinstance(event, bytes) else json.dumps(event).encode()
    return Item(kind, raw, **more)


def years_ago(years: int) -> str:
    return NOW.replace(year=NOW.year - years).isoformat()


@pytest.mark.parametrize(
    ("given_item", "reason"),
    [
        (item(VIEW | {"event": "never declared"}), "undeclared_event"),
        (item({}), "undeclared_event"),
        (item(VIEW, kind="feedback"), "kind_off"),
        (item(VIEW, kind="jane@example.com"), "kind_off"),
        (item(VIEW | {"time": years_ago(1)}), "expired"),
        (item({"timestamp": years_ago(30)}, kind="error_event"), "expired"),
        (Item("dropped", refused="too_many"), "too_many"),
    ],
)
def test_what_may_not_go_on_is_dropped_and_counted(
    world: World, given_item: Item, reason: str
) -> None:
    taken = world.take(given_item)
    assert taken.parcels == taken.dead == []
    assert taken.counts == {Entry("edge", "items_in"): 1, Entry("edge", "dropped", reason): 1}


def test_an_event_expires_at_the_moment_its_calendar_year_is_over(world: World) -> None:
    at = datetime(2025, 11, 22, 10, 15, tzinfo=UTC)
    world.now = at.replace(year=2026) - timedelta(seconds=1)
    try:
        assert len(world.take(item(VIEW | {"time": at.isoformat()})).parcels) == 1
        world.now += timedelta(seconds=1)
        taken = world.take(item(VIEW | {"time": at.isoformat()}))
        assert taken.counts[Entry("edge", "dropped", "expired")] == 1
    finally:
        world.now = NOW


MAIL = b"kq7canary@mail.example.org"


@pytest.mark.parametrize(
    ("given_item", "reason"),
    [
        (item(b'{"message": "' + MAIL, kind="error_event"), "undecodable"),
        (item(b'["' + MAIL + b'"]', kind="error_event"), "not_an_object"),
        (item(MAIL * (EVENT_BYTES // len(MAIL) + 1), kind="error_event"), "too_large"),
        (item(b"[" * 10**5 + MAIL, kind="session", event_id="ab" * 16), "undecodable"),
    ],
)
def test_what_cannot_be_read_is_a_dead_letter_that_only_its_own_key_opens(
    world: World, given_item: Item, reason: str
) -> None:
    taken = world.take(given_item)
    (letter,) = taken.dead
    assert taken.parcels == []
    assert taken.counts == {Entry("edge", "items_in"): 1, Entry("edge", "dead", reason): 1}
    assert letter.reason == reason
    assert MAIL not in b"".join(encode_batches([letter]))
    assert world.dead_opener().open(letter.body, event_id=letter.event_id) == given_item.raw
    with pytest.raises(Exception, match=r"^[a-z_ .A-Z]+$"):
        world.dead_opener().open(letter.body, event_id="0" * 32)
    assert not isinstance(world.resolve(letter), Resolved) or world.resolve(letter).kinds == ()


@pytest.mark.parametrize(
    "account", ["jane@example.com", "07", "--1", "4" * 40, " 7", 1.5, True, []]
)
def test_an_identifier_that_does_not_fit_costs_itself_and_not_the_event(
    world: World, account: Any
) -> None:
    before = world.intake.invalid_identifiers["account"]
    taken = world.take(item(VIEW | {"account": account, "organization": 7_744_556_900}))
    (parcel,) = taken.parcels
    found = world.resolve(parcel)
    assert isinstance(found, Resolved)
    assert found.kinds == ("organization",)
    assert b"account" in parcel.remarks
    assert b"invalid" in parcel.remarks
    assert b"jane" not in parcel.remarks
    if isinstance(account, str):
        assert world.intake.invalid_identifiers["account"] == before + 1


def test_a_time_to_come_and_no_time_at_all_are_the_time_of_receipt_made_coarse(
    world: World,
) -> None:
    for time in (None, "soon", (NOW + timedelta(days=400)).isoformat(), 10**15):
        (parcel,) = world.take(item(VIEW | {"time": time})).parcels
        assert parcel.received_at == NOW
        assert parcel.occurred_at == NOW.replace(second=0, microsecond=0), time
        assert parcel.retain_until == parcel.occurred_at.replace(year=NOW.year + 1)
    (parcel,) = world.take(item({"message": "x"}, kind="error_event")).parcels
    assert parcel.occurred_at == NOW.replace(microsecond=0)


def test_a_clock_that_is_minutes_ahead_is_believed(world: World) -> None:
    at = NOW + timedelta(minutes=4)
    (parcel,) = world.take(item(VIEW | {"time": at.isoformat()})).parcels
    assert parcel.occurred_at == at.replace(second=0, microsecond=0)


def test_an_event_id_comes_from_the_wire_else_the_event_else_is_made(world: World) -> None:
    inside = VIEW | {"event_id": "CDCDCDCD-cdcd-cdcd-cdcd-cdcdcdcdcdcd"}
    (parcel,) = world.take(item(inside, event_id="ab" * 16)).parcels
    assert parcel.event_id == "ab" * 16
    (parcel,) = world.take(item(inside)).parcels
    assert parcel.event_id == "cd" * 16
    (one,), (other,) = world.take(item(VIEW)).parcels, world.take(item(VIEW)).parcels
    assert one.event_id != other.event_id
    assert one.event_id[12] == "7"


def test_no_raw_identifier_is_outside_the_capsule(world: World) -> None:
    event = VIEW | {
        "organization": 7_744_556_900,
        "session": "kq7canary-session",
        "page": "/people/kq7canary@mail.example.org?x=7744556123",
        "ip": "203.0.113.77",
    }
    known = [("ip", "203.0.113.77"), ("secret", "kq7canary-cookie")]
    taken = world.take(item(event), connection=Connection("203.0.113.77", known))
    (batch,) = encode_batches(taken.parcels)
    for secret in (b"canary", b"7744556", b"203.0.113.77", b"mail.example"):
        assert secret not in batch
    found = world.resolve(taken.parcels[0])
    assert isinstance(found, Resolved)
    assert set(found.kinds) == {"account", "organization", "session"}


def test_the_tags_say_what_the_policy_says(world: World) -> None:
    (parcel,) = world.take(item({"message": "x"}, kind="error_event")).parcels
    assert (parcel.purpose, parcel.tenant, parcel.retention_class) == (
        "error-logging",
        TENANT,
        "12m",
    )
    assert (parcel.legal_basis, parcel.notice_version) == ("6(1)(f)", world.policy.notice.version)
    assert parcel.policy_digest == world.policy.digest


KINDS = st.sampled_from(
    ["analytics_event", "error_event", "session", "sessions", "check_in", "user_properties", "log"]
)
ITEMS = st.builds(
    Item,
    kind=KINDS,
    raw=st.one_of(
        st.binary(max_size=40),
        st.sampled_from(
            [b"{}", b"[]", b'{"event":"page viewed"}', b'{"event":1}', b'{"errors":1e999}']
        ),
        st.dictionaries(
            st.sampled_from(
                ["event", "time", "timestamp", "account", "event_id", "user", "started"]
            ),
            st.one_of(
                st.sampled_from(["page viewed", "search used", years_ago(2), 42, "42", 1e300]),
                st.integers(),
                st.text(max_size=20),
                st.none(),
            ),
        ).map(lambda event: json.dumps(event).encode()),
    ),
    event_id=st.sampled_from(["", "", "ab" * 16]),
    refused=st.sampled_from(["", "", "", "kind_span"]),
)


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
@given(items=st.lists(ITEMS, max_size=12))
def test_items_in_are_dropped_dead_or_sealed(world: World, items: list[Item]) -> None:
    taken = world.take(*items)

    def total(outcome: str) -> int:
        return sum(count for entry, count in taken.counts.items() if entry.outcome == outcome)

    assert total("items_in") == len(items)
    assert total("items_in") == total("dropped") + total("dead") + total("sealed")
    assert total("sealed") == len(taken.parcels)
    assert total("dead") == len(taken.dead)
    assert all(entry.stage == "edge" for entry in taken.counts)
    for parcel in taken.parcels:
        grain = timedelta(seconds=world.policy.time_grain_s(parcel.kind))
        assert (parcel.occurred_at - datetime(1970, 1, 1, tzinfo=UTC)) % grain == timedelta(0)
        assert parcel.occurred_at < parcel.retain_until
        assert NOW < parcel.retain_until <= (NOW + timedelta(minutes=5)).replace(year=NOW.year + 1)


def test_an_id_that_is_none_is_never_taken_from_a_dialect(world: World) -> None:
    with pytest.raises(DecodeError, match="event_id"):
        world.take(item(VIEW, event_id="jane@example.com"))
