"""What a field keeps for its form is compared with what the request is known to hold."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from making import shipped

from scrubbers.engine import Outcome, rescrub, scrub
from scrubbers.known_values import PADDING, KnownValues

UUID = "8f14e45f-ceea-467a-9a36-dedd4bea2543"
HEX = UUID.replace("-", "")


def scrubbed(event: dict[str, Any], kind: str = "error_event", **known: str) -> Outcome:
    raw = json.dumps(event).encode()
    return scrub(raw, shipped()[1].rules_for(kind, raw), known=list(known.items()))


@pytest.mark.parametrize(
    ("path", "value", "known"),
    [
        (("release",), "4711", {"account": "4711"}),
        (("release",), "flow@4711", {"account": "4711"}),
        (("release",), "flow@1.2.3+4711", {"account": "4711"}),
        (("release",), "mareike@1.2.3", {"name": "mareike"}),
        (("release",), "10.20.30.40", {"ip": "10.20.30.40"}),
        (("contexts", "trace", "op"), "mareike", {"username": "mareike"}),
        (("contexts", "trace", "op"), "task.mareike", {"username": "mareike"}),
        (("contexts", "trace", "op"), "users/42", {"account": "42"}),
        (("contexts", "trace", "op"), "bWFyZWlrZTEy", {"username": "mareike12"}),
        (("contexts", "trace", "trace_id"), HEX, {"account": UUID}),
        (("contexts", "trace", "trace_id"), HEX.upper(), {"account": UUID}),
        (("contexts", "trace", "trace_id"), UUID, {"account": HEX}),
        (("contexts", "trace", "trace_id"), "4711".zfill(32), {"account": "4711"}),
        (("contexts", "trace", "trace_id"), f"{4711:032x}", {"account": "4711"}),
        (("contexts", "trace", "trace_id"), b"4711".hex().zfill(32), {"account": "4711"}),
        (("contexts", "trace", "trace_id"), "ab" * 12 + "deadbeef", {"account": "deadbeef"}),
        (("contexts", "trace", "trace_id"), "ab" * 9 + b"Mareike".hex(), {"name": "Mareike"}),
        (("event_id",), HEX, {"account": HEX}),
        (("request", "method"), "mareike", {"username": "mareike"}),
        (("platform",), "mareike", {"username": "mareike"}),
    ],
)
def test_a_known_value_leaves_in_no_form(
    path: tuple[str, ...], value: str, known: dict[str, str]
) -> None:
    event: dict[str, Any] = {"environment": "live"}
    at = event
    for part in path[:-1]:
        at = at.setdefault(part, {})
    at[path[-1]] = value
    outcome = scrubbed(event, **known)
    assert value.lower() not in outcome.event.decode().lower()
    assert (path, "known_value", "remove") in [(r.path, r.rule, r.action) for r in outcome.remarks]
    assert outcome.event_id == ""
    assert json.loads(outcome.event)["environment"] == "live"


@pytest.mark.parametrize(
    ("path", "value", "known"),
    [
        (("release",), "1.2.3", {"account": "1.2"}),
        (("release",), "10.2.3", {"username": "10.2"}),
        (("release",), "2026.11.1", {"account": "2026"}),
        (("release",), "flow@2026.11.1", {"account": "2026"}),
        (("release",), "flow@5.4711.0", {"account": "4711"}),
        (("release",), "14711", {"account": "4711"}),
        (("release",), "3beef4" + "0" * 34, {"account": "beef"}),
        (("contexts", "trace", "trace_id"), "ab4711cd" * 4, {"account": "4711"}),
        (("contexts", "trace", "op"), "http.server", {"username": "serv"}),
        (("contexts", "trace", "op"), "db42", {"account": "42"}),
        (("request", "method"), "POST", {"name": "Post"}),
        (("platform",), "ruby", {"name": "ruby"}),
        (("level",), "error", {"username": "error"}),
        (("event_id",), "0123456789abcdef" * 2, {"account": "4567"}),
    ],
)
def test_what_only_looks_like_a_known_value_stays(
    path: tuple[str, ...], value: str, known: dict[str, str]
) -> None:
    event: dict[str, Any] = {}
    at = event
    for part in path[:-1]:
        at = at.setdefault(part, {})
    at[path[-1]] = value
    outcome = scrubbed(event, **known)
    assert json.loads(outcome.event) == event
    assert outcome.remarks == []


def test_a_field_of_a_list_and_a_second_hop_are_compared_too() -> None:
    frames = [{"function": "f"}, {"platform": "mareike", "function": "g"}]
    event = {"exception": {"values": [{"type": "E", "stacktrace": {"frames": frames}}]}}
    outcome = scrubbed(event)
    assert b"mareike" in outcome.event
    rules = shipped()[1].rules_for("error_event", outcome.event)
    again = rescrub(outcome.event, rules, known=[("username", "mareike")])
    assert b"mareike" not in again.event
    path = ("exception", "values", 0, "stacktrace", "frames", 1, "platform")
    assert [(r.path, r.rule) for r in again.remarks] == [(path, "known_value")]


def test_the_key_of_an_open_map_may_be_no_known_value() -> None:
    outcome = scrubbed({"tags": {"mareike": "x", "plan": "gold"}}, username="mareike")
    assert json.loads(outcome.event)["tags"] == {"plan": "gold"}
    assert [(r.path, r.rule, r.action) for r in outcome.remarks] == [
        (("tags", "<key>"), "known_value", "remove")
    ]


def test_an_id_that_stands_beside_the_event_is_compared_as_well() -> None:
    raw = b'{"level": "error"}'
    rules = shipped()[1].rules_for("error_event", raw)
    assert scrub(raw, rules, event_id=HEX).event_id == HEX
    assert scrub(raw, rules, event_id=HEX, known=[("account", UUID)]).event_id == ""


def test_a_uuid_is_known_with_and_without_its_hyphens() -> None:
    for value, other in ((UUID, HEX), (HEX, UUID)):
        known = KnownValues([("account", value)])
        assert known.found_in(f"no board of {other}"), value
        assert known.found_in(f"no board of {other.upper()}"), value


DIGITS = st.text("0123456789abcdef", min_size=1, max_size=32)
VALUES = st.one_of(
    st.integers(0, 10**12).map(str),
    st.integers(0, 2**64).map(lambda n: f"{n:016x}"),
    st.uuids().map(str),
    st.text("abcdef0123456789-ghxyz.@", min_size=4, max_size=20),
)


@given(value=VALUES, before=DIGITS, behind=DIGITS, how=st.integers(0, 4))
def test_an_id_that_holds_a_value_is_never_passed_over(
    value: str, before: str, behind: str, how: int
) -> None:
    """The quick look at ids says yes wherever the thorough one finds something."""
    forms = (
        value.replace("-", ""),
        value.encode().hex(),
        f"{int(value):x}" if value.isdigit() else value,
        value.upper(),
        value,
    )
    known = KnownValues([("account", value)])
    for text in (forms[how], before + forms[how] + behind, "0" * 8 + forms[how]):
        sure = PADDING in text or known.may_fill(text)
        hexadecimal = set(text) <= set("0123456789abcdefABCDEF-")
        if known.in_forms({text}):
            assert sure or (not hexadecimal and known.may_stand_in(text))
