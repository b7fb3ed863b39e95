"""``/v1/events``: one object, an array, or a line each."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from telemetry.dialects import Refusal
from telemetry.dialects.native import parse_events
from telemetry.edge import Item

KINDS = {"analytics_event", "error_event"}
A, B = b'{"event":"a"}', b'{"kind":"error_event","level":"error"}'
ITEMS = [Item("analytics_event", A), Item("error_event", B)]


@pytest.mark.parametrize(
    ("body", "lines"),
    [
        (b"[" + A + b"," + B + b"]", False),
        (A + b"\n" + B, False),
        (A + b"\n" + B + b"\n", True),
        (A + b"\r\n\r\n" + B + b"\r\n", True),
        (b"\xef\xbb\xbf" + A + b"\n" + B, False),
    ],
)
def test_arrays_and_lines_give_the_same_events(body: bytes, lines: bool) -> None:
    found = parse_events(body, KINDS, lines=lines)
    assert [item._replace(raw=item.raw.strip()) for item in found] == ITEMS


def test_one_object_may_stand_on_several_lines() -> None:
    pretty = json.dumps({"event": "a", "properties": {"b": 1}}, indent=2).encode()
    assert parse_events(pretty, KINDS) == [Item("analytics_event", pretty)]


@pytest.mark.parametrize("kind", [b'"alice@example.org"', b"7", b'"session"', b"{}", b'"\\ud800"'])
def test_a_kind_without_purpose_is_refused_without_its_word(kind: bytes) -> None:
    found = parse_events(b'{"kind":' + kind + b"}", KINDS)
    assert found == [Item("analytics_event", refused="unknown_kind")]


@pytest.mark.parametrize("kind", [b"null", b'""'])
def test_no_kind_is_an_analytics_event(kind: bytes) -> None:
    assert parse_events(b'{"kind":' + kind + b"}", KINDS)[0].kind == "analytics_event"


def test_a_bad_line_is_parked_and_the_ones_around_it_go_on() -> None:
    found = parse_events(A + b"\nalice@example.org\n" + B, KINDS)
    assert found == [ITEMS[0], Item("analytics_event", b"alice@example.org"), ITEMS[1]]


def test_a_lone_surrogate_or_nan_costs_no_event() -> None:
    body = b'{"kind":"error_event","message":"\\ud83d","extra":NaN}'
    assert parse_events(body, KINDS) == [Item("error_event", body)]


def test_a_thousand_events_pass_and_one_more_does_not() -> None:
    assert len(parse_events(b"\n".join([A] * 1000), KINDS)) == 1000
    for body in (b"\n".join([A] * 1001), b"[" + b",".join([A] * 1001) + b"]"):
        with pytest.raises(Refusal, match="too_many_events"):
            parse_events(body, KINDS)


@pytest.mark.parametrize(
    "body", [b"alice@example.org", b"7", b"[1,2]", b"[", b"null", b"a\nb\nc", b"[" * 100_000]
)
def test_a_body_without_any_object_is_refused(body: bytes) -> None:
    with pytest.raises(Refusal, match="not_json"):
        parse_events(body, KINDS)


def test_an_empty_array_is_nothing() -> None:
    assert parse_events(b"[]", KINDS) == []


@given(st.binary(max_size=300), st.booleans())
@settings(max_examples=150, deadline=None)
def test_no_bytes_make_the_parser_fail_otherwise(body: bytes, lines: bool) -> None:
    try:
        parse_events(body, KINDS, lines=lines)
    except Refusal as error:
        assert error.status in (400, 413)  # noqa: PT017 - either outcome is fine
