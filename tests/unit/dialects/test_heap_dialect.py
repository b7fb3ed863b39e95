"""Heap's server-side calls, as ``heap-api`` and ``heapapi`` send them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from telemetry.dialects import Refusal
from telemetry.dialects.heap import parse_accounts, parse_identify, parse_track, parse_users
from telemetry.edge import EVENT_BYTES, Item

ID = "3be4a1c07d9f4a5b8c6d7e8f90a1b2c3"


def track(**body: Any) -> list[Item]:
    return parse_track(json.dumps(body).encode()).items


def test_a_single_event_gets_our_names_and_keeps_its_bytes() -> None:
    body = (
        b'{"app_id":"11","event":"project_opened","identity":"alice@example.org",'
        b'"timestamp":"2026-11-22T09:15:03+00:00","session_id":"42",'
        b'"properties":{"count": 1.50, "page":"/a"}}'
    )
    call = parse_track(body)
    assert call.app_id == "11"
    assert call.items == [
        Item(
            "analytics_event",
            b'{"event":"project_opened","time":"2026-11-22T09:15:03+00:00",'
            b'"account":"alice@example.org","session":"42",'
            b'"properties":{"count": 1.50, "page":"/a"}}',
        )
    ]


def test_the_official_node_client_sends_neither_time_nor_key() -> None:
    items = track(app_id="11", event="e", identity="7", properties={"a": "b"})
    assert items[0].raw == b'{"event":"e","account":"7","properties":{"a": "b"}}'
    assert items[0].event_id == ""


def test_a_bulk_request_is_an_item_for_each_event() -> None:
    call = parse_track(
        b'{"app_id":11,"events":[{"event":"a","identity":"1"},{"event":"b","identity":"2"}]}'
    )
    assert call.app_id == "11"
    assert [item.raw for item in call.items] == [
        b'{"event":"a","account":"1"}',
        b'{"event":"b","account":"2"}',
    ]


def test_an_idempotency_key_that_is_a_uuid_is_the_event_id() -> None:
    written = "3BE4A1C0-7D9F-4A5B-8C6D-7E8F90A1B2C3"
    assert track(app_id="1", event="e", identity="7", idempotency_key=written)[0].event_id == ID


def test_any_other_idempotency_key_gives_the_same_id_again_for_the_same_app_only() -> None:
    first, again = (track(app_id="1", event="e", identity="7", idempotency_key="k") for _ in "ab")
    assert first[0].event_id == again[0].event_id
    assert len(first[0].event_id) == 32
    other = track(app_id="2", event="e", identity="7", idempotency_key="k")
    number = track(app_id="1", event="e", identity="7", idempotency_key=5)
    assert len({first[0].event_id, other[0].event_id, number[0].event_id}) == 3


@pytest.mark.parametrize("who", [{}, {"user_id": "123"}, {"identity": None, "user_id": "123"}])
def test_an_event_of_nobody_we_could_name_is_refused_by_itself(who: dict[str, Any]) -> None:
    items = track(app_id="1", events=[{"event": "e", **who}, {"event": "e", "identity": "7"}])
    assert items[0] == Item("analytics_event", refused="no_identity")
    assert items[1].raw == b'{"event":"e","account":"7"}'


def test_user_properties_come_single_and_in_bulk() -> None:
    single = parse_users(b'{"app_id":"1","identity":"7","properties":{"plan":"team"}}')
    expected = Item("user_properties", b'{"account":"7","properties":{"plan":"team"}}')
    assert single.items == [expected]
    bulk = parse_users(
        b'{"app_id":"1","users":[{"identity":"7","properties":{"plan":"team"}},{"properties":{}}]}'
    )
    assert bulk.items == [expected, Item("user_properties", refused="no_identity")]


def test_account_properties_and_identify_are_counted_and_gone() -> None:
    accounts = parse_accounts(b'{"app_id":"1","accounts":[{"account_id":"a"},{"account_id":"b"}]}')
    assert accounts.items == [Item("dropped", refused="kind_account_properties")] * 2
    single = parse_accounts(b'{"app_id":"1","account_id":"a","properties":{}}')
    assert len(single.items) == 1
    identify = parse_identify(b'{"app_id":"1","user_id":"5","identity":"alice@example.org"}')
    assert identify.items == [Item("dropped", refused="kind_identify")]


def test_a_thousand_events_pass_and_one_more_does_not() -> None:
    events = [{"event": "e", "identity": "7"}] * 1000
    assert len(track(app_id="1", events=events)) == 1000
    with pytest.raises(Refusal, match="too_many_events"):
        track(app_id="1", events=[*events, events[0]])


def test_an_event_larger_than_a_mebibyte_is_dropped_alone() -> None:
    large = {"event": "e", "identity": "7", "properties": {"a": "x" * EVENT_BYTES}}
    items = track(app_id="1", events=[large, {"event": "e", "identity": "7"}])
    assert [item.refused for item in items] == ["too_large", ""]


def test_what_a_client_sends_although_it_is_no_json_costs_no_event() -> None:
    body = b'{"app_id":"1","event":"e","identity":"7","properties":{"a":NaN,"b":"\\ud83d"}}'
    assert json.loads(parse_track(body).items[0].raw) == {
        "event": "e",
        "account": "7",
        "properties": {"a": None, "b": "\ufffd"},
    }


@pytest.mark.parametrize("parse", [parse_track, parse_users, parse_accounts, parse_identify])
@pytest.mark.parametrize(
    "body", [b"alice@example.org", b"[]", b'{"app_id":[]}', b'"x"', b"{", b"[" * 100_000]
)
def test_what_is_no_call_is_refused(parse: Any, body: bytes) -> None:
    with pytest.raises(Refusal, match="not_json"):
        parse(body)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.text(min_size=1, max_size=20), st.text(max_size=20), JSON)
@settings(max_examples=100, deadline=None)
def test_no_value_is_changed_on_the_way(identity: str, event: str, properties: Any) -> None:
    [item] = track(app_id="1", event=event, identity=identity, properties=properties)
    assert json.loads(item.raw) == {
        "event": event,
        "account": identity,
        "properties": properties,
    } | ({} if properties is not None else {"properties": None})


@given(st.binary(max_size=300))
@settings(max_examples=150, deadline=None)
def test_no_bytes_make_the_parsers_fail_otherwise(body: bytes) -> None:
    for parse in (parse_track, parse_users, parse_accounts, parse_identify):
        for shaped in (body, b'{"events":' + body + b"}", b'{"users":[' + body + b"]}"):
            try:
                parse(shaped)
            except Refusal as error:
                assert error.status in (400, 413)  # noqa: PT017 - either outcome is fine
