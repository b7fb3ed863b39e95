"""What Sentry is told of changes: one remark for each, pointing where the placeholder stands."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Any

import pytest
from foreign_json import events, leaves, planted, schemas
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scrubbers.engine import scrub
from scrubbers.model import Remark
from telemetry.rules import CompiledRules
from telemetry.schema import Field
from telemetry.sinks import Shaping, Tags
from telemetry.sinks.sentry import SentrySink

SINK = SentrySink(dsn="http://" + "5e17" * 8 + "@127.0.0.1:1/1")
PLACEHOLDER = re.compile(rb"<[a-z_]+(?::[1-9][0-9]{0,2})?>")
RULES = schemas().rules_for("error_event", b"")
STRIPPED = [(path, entry) for path, entry in leaves(RULES.record) if entry.treatment == "strip"]


def delivered(raw: bytes, rules: CompiledRules) -> tuple[dict[str, Any], list[Remark]]:
    outcome = scrub(raw, rules)
    shaping = Shaping(
        kind="error_event",
        delivery_id="ab" * 16,
        occurred_at=datetime(2026, 3, 31, 9, 15, tzinfo=UTC),
        tokens={"account": "ps1_sentry_u_x", "organization": "ps1_sentry_o_x"},
        remarks=outcome.remarks,
        tags=Tags(
            retain_until=date(2027, 3, 31), retention_class="12m", policy="c0ffee", notice="1"
        ),
    )
    return json.loads(SINK.shape(outcome.event, shaping)), outcome.remarks


def entries(tree: Any, value: Any) -> Iterator[tuple[dict[str, Any], Any]]:
    """Each entry of ``_meta`` and the value it is about; fails where there is none."""
    for name, child in tree.items():
        if name == "":
            yield child, value
        elif isinstance(value, list):
            yield from entries(child, value[int(name)])
        else:
            yield from entries(child, value[name])


def check(payload: dict[str, Any], remarks: list[Remark]) -> None:
    told = 0
    for entry, value in entries(payload.get("_meta", {}), payload):
        assert set(entry) == {"rem"}, "neither len nor val: they tell of the original"
        for note in entry["rem"]:
            told += 1
            assert note[0] == "!config"
            if value is None:
                assert note[1] == "x"
            if len(note) == 4:
                assert note[1] == "s"
                assert PLACEHOLDER.fullmatch(value.encode()[note[2] : note[3]])
            else:
                assert len(note) == 2
    assert told == len(remarks), "one entry for each change"


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(given_event=events("error_event"))
def test_each_change_has_one_remark_and_each_range_holds_a_placeholder(
    given_event: tuple[CompiledRules, bytes],
) -> None:
    rules, raw = given_event
    check(*delivered(raw, rules))


TEXT = st.lists(
    st.sampled_from(
        ["jane@example.com", "Jördis", "203.0.113.77", "password=hunter2", "ok\n", "x" * 150, "é"]
    ),
    min_size=1,
    max_size=6,
).map(" ".join)
TAG = st.sampled_from(
    ["queue name", "queue-name", "queue/name", "policy", "organization", "ü" * 40]
)


@settings(max_examples=200, deadline=None)
@given(
    tags=st.dictionaries(st.one_of(TAG, TEXT), TEXT, max_size=4),
    message=TEXT,
    user=st.dictionaries(
        st.sampled_from(["id", "email", "ip_address", "organization"]), TEXT, max_size=3
    ),
)
def test_ranges_stay_right_where_tags_are_renamed_cut_or_overwritten(
    tags: dict[str, str], message: str, user: dict[str, str]
) -> None:
    event = {"tags": tags, "message": message, "user": user}
    payload, remarks = delivered(json.dumps(event).encode(), RULES)
    check(payload, remarks)
    shown = payload.get("_meta", {}).get("message", {}).get("", {"rem": []})["rem"]
    changed = [one for one in remarks if one.path == ("message",)]
    assert [tuple(note[2:]) for note in shown] == [(one.start, one.end) for one in changed]


@pytest.mark.parametrize(("path", "entry"), STRIPPED, ids=[".".join(path) for path, _ in STRIPPED])
def test_each_stripped_section_leaves_one_remark_where_it_stood(
    path: tuple[str, ...], entry: Field
) -> None:
    value = "zqx-stripped" if entry.known else {"deep": ["zqx-stripped"]}
    payload, remarks = delivered(json.dumps(planted(path, value)).encode(), RULES)
    assert [one.action for one in remarks] == ["remove"]
    check(payload, remarks)
    node: Any = payload["_meta"]
    for part in path:
        node = node["0" if part == "[]" else part]
    assert node == {"": {"rem": [["!config", "x"]]}}
    assert "zqx" not in json.dumps(payload)


def test_an_identifier_that_is_rejected_is_told_of_where_its_token_would_stand() -> None:
    outcome = scrub(b"{}", RULES)
    shaping = Shaping(
        kind="error_event",
        delivery_id="ab" * 16,
        occurred_at=datetime(2026, 3, 31, 9, 15, tzinfo=UTC),
        tokens={},
        remarks=[Remark((sort,), "identifier", "invalid") for sort in ("account", "organization")],
        tags=Tags(
            retain_until=date(2027, 3, 31), retention_class="12m", policy="c0ffee", notice="1"
        ),
    )
    payload = json.loads(SINK.shape(outcome.event, shaping))
    assert "account" not in payload
    assert "organization" not in payload
    assert payload["_meta"] == {
        "user": {"id": {"": {"rem": [["!config", "x"]]}}},
        "tags": {"": {"rem": [["!config", "x"]]}},
    }


def test_of_two_tags_that_become_one_only_the_one_that_stands_is_told_of_there() -> None:
    event = {"tags": {"queue name": "for jane@example.com", "queue-name": "mail <email:1>"}}
    payload, remarks = delivered(json.dumps(event).encode(), RULES)
    assert payload["tags"]["queue-name"] == "mail <email:1>"
    assert len(remarks) == 1
    assert payload["_meta"] == {"tags": {"": {"rem": [["!config", "x"]]}}}
    event = {"tags": {"policy": "for jane@example.com"}}
    payload, _ = delivered(json.dumps(event).encode(), RULES)
    assert payload["tags"]["policy"] == "c0ffee"
    assert payload["_meta"]["tags"]["policy"] == {"": {"rem": [["!config", "x"]]}}
