"""Open maps: a name may say of its value what the value alone does not show."""

from __future__ import annotations

import json
from typing import Any

import pytest
from making import shipped

from scrubbers.engine import rescrub, scrub
from telemetry.edge import Edge, Item
from telemetry.rules import Schemas


@pytest.fixture(scope="module")
def schemas() -> Schemas:
    return shipped()[1]


def _tags(schemas: Schemas, tags: dict[str, Any]) -> tuple[dict[str, str], list[tuple[Any, ...]]]:
    raw = json.dumps({"tags": tags}).encode()
    rules = schemas.rules_for("error_event", raw)
    outcome = scrub(raw, rules)
    again = rescrub(outcome.event, rules)
    assert (again.event, again.remarks) == (outcome.event, [])
    remarks = [(r.path, r.rule, r.action, r.start, r.end) for r in outcome.remarks]
    return json.loads(outcome.event)["tags"], remarks


@pytest.mark.parametrize(
    ("name", "value", "stays"),
    [
        ("user_id", "4711", "<account>"),
        ("user_id", 4711, "<account>"),
        ("username", "jdoe-canary", "<name>"),
        ("user.id", "4711", "<account>"),
        ("phone", "5551234567", "<phone:1>"),
        ("password", "hunter2-canary", "<secret>"),
        ("api_key", "canary0123", "<secret>"),
        ("sid", "canary0123456789", "<session>"),
        ("email", "jane@example.com", "<email:1>"),
        ("password", "jane@example.com", "<email:1>"),
    ],
)
def test_a_name_gives_its_value_away(
    schemas: Schemas, name: str, value: str | int, stays: str
) -> None:
    tags, remarks = _tags(schemas, {"region": "eu", name: value})
    assert tags == {"region": "eu", name: stays}
    ((path, _, action, start, end),) = remarks
    assert (path, action) == (("tags", name), "replace")
    assert (start, end) == (0, len(stays))


def test_names_and_values_of_no_person_stay(schemas: Schemas) -> None:
    plain = {
        "region": "eu-central",
        "release": "1.2.3",
        "runtime.name": "CPython",
        "level": "error",
        "handled": "no",
        "user": "<account>",
        "status": "404",
        "transaction": "GET /orders/{id}",
        "trace": "4c79f60c11214eb38604f4ae0781bfb2",
    }
    assert _tags(schemas, plain) == (plain, [])


def test_equal_values_get_equal_numbers_wherever_they_stand(schemas: Schemas) -> None:
    tags, _ = _tags(schemas, {"phone": "5551234567", "telephone": "5551234568", "a": "x"})
    assert tags == {"phone": "<phone:1>", "telephone": "<phone:2>", "a": "x"}


def test_nothing_of_it_reaches_a_recipient(schemas: Schemas) -> None:
    raw = json.dumps({"tags": {"username": "jdoe-canary"}, "message": "it failed"}).encode()
    outcome = Edge(schemas).scrub(Item("error_event", raw))
    assert b"canary" not in outcome.event
    assert "canary" not in repr(outcome.remarks)


def test_of_very_many_the_first_stay(schemas: Schemas) -> None:
    tags, remarks = _tags(schemas, {f"k{number}": number for number in range(1_500)})
    assert tags == {f"k{number}": str(number) for number in range(1_000)}
    assert remarks == [(("tags",), "type", "invalid", 0, 0)]
