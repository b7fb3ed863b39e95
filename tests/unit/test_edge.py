"""The edge: which rules an item gets, what is sampled, what an id looks like."""

from __future__ import annotations

import json
import time
from typing import Any

import msgspec
import pytest
from making import shipped

from telemetry.edge import EVENT_BYTES, Connection, Edge, Item, uuid7_hex
from telemetry.errors import DecodeError, ScrubError


@pytest.fixture
def edge() -> Edge:
    return Edge(shipped()[1])


def item(event: Any, kind: str = "analytics_event") -> Item:
    return Item(kind, json.dumps(event).encode())


def test_each_declared_event_has_rules_of_its_own(edge: Edge) -> None:
    given = {"priority": "low", "columns": 7, "project": "p1"}
    created = edge.scrub(item({"event": "task created", "properties": given}))
    assert json.loads(created.event)["properties"] == {"priority": "low"}
    opened = edge.scrub(item({"event": "board opened", "properties": given}))
    assert json.loads(opened.event)["properties"] == {"columns": 7}
    assert opened.identifiers == [("object:project", "p1")]


def test_a_property_outside_its_declared_values_goes(edge: Edge) -> None:
    given = {"priority": "jane@example.com", "assignees": 1001, "recurring": "maybe"}
    outcome = edge.scrub(item({"event": "task created", "properties": given}))
    assert json.loads(outcome.event) == {"event": "task created", "properties": {}}
    assert [(remark.path[1], remark.action) for remark in outcome.remarks] == [
        ("priority", "invalid"),
        ("assignees", "invalid"),
        ("recurring", "invalid"),
    ]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (item({"event": "jane@example.com"}), "undeclared_event"),
        (item({"event": ["task created"]}), "undeclared_event"),
        (item({"event": "Task Created"}), "undeclared_event"),
        (item({}, "jane"), "unknown_kind"),
        (Item("session", b"x" * (EVENT_BYTES + 1)), "too_large"),
        (Item("session", b""), "undecodable"),
    ],
)
def test_what_is_not_declared_is_refused(edge: Edge, given: Item, reason: str) -> None:
    with pytest.raises(DecodeError) as caught:
        edge.scrub(given)
    assert caught.value.reason == reason
    assert "jane" not in repr(caught.value)


def test_an_event_may_be_as_large_as_sentry_allows(edge: Edge) -> None:
    frame = json.dumps({"function": "main", "lineno": 7}).encode()
    body = b'{"stacktrace":{"frames":[%b]}}' % b",".join([frame] * (EVENT_BYTES // 40))
    assert len(body) < EVENT_BYTES
    begun = time.monotonic()
    outcome = edge.scrub(Item("error_event", body))
    assert time.monotonic() - begun < 2
    assert outcome.event.count(b"main") == EVENT_BYTES // 40


def test_values_of_the_connection_are_removed_wherever_they_show_up(edge: Edge) -> None:
    connection = Connection("198.51.100.23", [("secret", "k7fjw0q2xz")])
    event = {
        "message": "cookie k7fjw0q2xz of someone",
        "user": {"ip_address": "{{auto}}"},
        "tags": {"k7fjw0q2xz": "x", "seen": "azdmancwcTJ4eg== K7FJW0Q2XZ"},
    }
    outcome = edge.scrub(item(event, "error_event"), connection)
    assert b"k7fjw0q2xz" not in outcome.event.lower()
    assert json.loads(outcome.event)["user"] == {"ip_address": "198.51.100.0/24"}


def test_the_first_event_of_a_kind_and_one_in_a_thousand_are_searched_for_new_fields(
    edge: Edge,
) -> None:
    plain = item({"event": "page viewed"})
    edge.scrub(item({"event": "page viewed", "vendor": 1, "jane@example.com": {"x": 1}}))
    assert edge.unknown == {
        ("analytics_event", "vendor"): 1,
        ("analytics_event", "<key>"): 1,
    }
    for _ in range(999):
        edge.scrub(plain)
    edge.scrub(item({"event": "page viewed", "vendor": 1}))
    edge.scrub(item({"event": "page viewed", "missed": 1}))
    assert edge.unknown["analytics_event", "vendor"] == 2
    assert ("analytics_event", "missed") not in edge.unknown


def test_a_flood_of_new_names_does_not_grow_without_end(edge: Edge) -> None:
    edge.scrub(item({f"field{n}": 1 for n in range(5000)}, "session"))
    assert len(edge.unknown) == 1000


def test_ids_are_of_version_seven_in_order_and_never_the_same() -> None:
    before = int(time.time() * 1000)
    made = [uuid7_hex() for _ in range(2000)]
    assert len(set(made)) == 2000
    for one in made:
        assert len(one) == 32
        assert one[12] == "7"
        assert one[16] in "89ab"
        assert before <= int(one[:12], 16) <= int(time.time() * 1000)
    assert [one[:12] for one in made] == sorted(one[:12] for one in made)


def test_an_entry_that_goes_with_its_name_does_not_shield_what_stands_behind_it(
    edge: Edge,
) -> None:
    # The places of texts are counted; an entry that is taken out must not shift the ones after it.
    tags = {
        "jane.doe@example.com": "max.mustermann@example.com",
        "plain": "x",
        "writer": "erika.beispiel@example.com",
        "reader": "john.smith@example.com",
    }
    event = {"message": "m", "tags": tags, "exception": {"values": [{"value": "a@example.com"}]}}
    outcome = edge.scrub(item(event, "error_event"))
    assert b"@example.com" not in outcome.event
    assert json.loads(outcome.event)["tags"].keys() == {"plain", "writer", "reader"}
    assert not any("@" in str(remark.path) for remark in outcome.remarks)


def test_remarks_of_an_earlier_edge_are_taken_over_as_far_as_we_could_have_made_them(
    edge: Edge,
) -> None:
    event = {
        "message": "no mail to <email:1>",
        "_remarks": [
            [["message"], "email", "replace", 11, 20],
            [["user", "email"], "strip", "remove", 0, 0],
            [["tags", "jane@example.com"], "email", "replace", 0, 9],
            [["jane@example.com"], "strip", "remove", 0, 0],
            [["message"], "jane@example.com", "replace", 0, 0],
            [["message"], "email", "replace", -1, 5],
        ],
    }
    outcome = edge.scrub(item(event, "error_event"))
    assert [msgspec.structs.astuple(remark) for remark in outcome.remarks] == [
        (("message",), "email", "replace", 11, 20),
        (("user", "email"), "strip", "remove", 0, 0),
        (("tags", "<key>"), "email", "replace", 0, 9),
    ]
    assert b"_remarks" not in outcome.event
    assert edge.unknown == {}


@pytest.mark.parametrize("remarks", [1, "x", [1], [[["message"], "email", "burn", 0, 0]], [[]]])
def test_remarks_that_are_none_change_nothing(edge: Edge, remarks: object) -> None:
    outcome = edge.scrub(item({"message": "hello", "_remarks": remarks}, "error_event"))
    assert outcome.remarks == []
    assert outcome.event == b'{"message":"hello"}'


def test_who_it_is_about_is_looked_for_however_many_addresses_a_client_names(edge: Edge) -> None:
    hops = ", ".join(f"198.51.{n // 250}.{n % 250 + 1}" for n in range(2000))
    event = {
        "message": "4711 ejane: no such board; token 4711",
        "user": {"id": "4711", "username": "ejane"},
        "request": {"headers": {"X-Forwarded-For": hops}},
    }
    outcome = edge.scrub(item(event, "error_event"))
    assert (
        json.loads(outcome.event)["message"] == "<account> <user>: no such board; token <account>"
    )


def test_a_name_is_found_in_parts_and_turned_round(edge: Edge) -> None:
    event = {
        "message": "Mustermann rief an; Mustermann, Erika; erika_mustermann",
        "user": {"name": "Erika Mustermann", "username": "Erika Mustermann"},
    }
    message = json.loads(edge.scrub(item(event, "error_event")).event)["message"]
    assert "ustermann" not in message
    assert "rief an" in message


def test_more_identifiers_than_any_event_has_are_no_reason_to_let_one_go(edge: Edge) -> None:
    known = [("account", f"person-{n:04}") for n in range(700)]
    with pytest.raises(ScrubError, match="too_many_identifiers"):
        edge.scrub(item({"message": "person-0001"}, "error_event"), Connection(None, known))


@pytest.mark.parametrize(
    "path",
    [[4929123412341234], ["user", 491701234567], [0] * 100_000, ["exception", "values", 99999]],
)
def test_a_carried_path_shows_nothing_but_declared_names_and_small_places(
    edge: Edge, path: list[Any]
) -> None:
    event = {"message": "hello", "_remarks": [[path, "strip", "remove", 0, 0]]}
    began = time.perf_counter()
    assert edge.scrub(item(event, "error_event")).remarks == []
    assert time.perf_counter() - began < 1


def test_looking_for_undeclared_fields_costs_no_event(edge: Edge) -> None:
    raw = b'{"message": "hello", "vendor": ' + b"9" * 5000 + b"}"
    for _ in range(2):
        assert edge.scrub(Item("error_event", raw)).event == b'{"message":"hello"}'


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("platform", "4111111111111111"),
        ("platform", "p49301234567"),
    ],
)
def test_a_technical_text_holds_no_long_number(edge: Edge, field: str, value: str) -> None:
    outcome = edge.scrub(item({"message": "hello", field: value}, "error_event"))
    assert outcome.event == b'{"message":"hello"}'


@pytest.mark.parametrize("trace", ["4111-1111-1111-1111", "4111111111111111", "+4930123"])
def test_a_technical_id_is_no_card(edge: Edge, trace: str) -> None:
    outcome = edge.scrub(item({"contexts": {"trace": {"trace_id": trace}}}, "error_event"))
    assert trace.encode() not in outcome.event
