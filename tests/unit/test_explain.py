"""Explanations: complete in both directions, true to what is delivered, silent about originals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from making import NOW, World, shipped

from scrubbers.detectors import Detectors
from telemetry.cli.explain import _as_json
from telemetry.cli.page import page
from telemetry.compare import _reveals_no_more, compare
from telemetry.dialects.sample import Sample, Unrecognized, read_samples
from telemetry.errors import ConfigError
from telemetry.explain import Explainer, Explanation
from telemetry.pipeline import Deliver
from telemetry.policy import load_policy, schemas_dir
from telemetry.rules import Schemas
from tests.checks.explained import ERROR, TRACK, check_explained

PLANTED = ("jane", "Jane", "4711", "hunter2", "203.0.113.77", "zqx", "900719925")


@cache
def explainer() -> Explainer:
    return Explainer(*shipped())


def sample(event: dict[str, Any], kind: str = "") -> Sample:
    (found,) = read_samples(json.dumps(event).encode(), kind)
    return found


def explained(event: dict[str, Any], **options: Any) -> Explanation:
    (found,) = explainer().explain(sample(event), now=options.pop("now", NOW), **options)
    return found


def leaves(tree: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    if isinstance(tree, dict) and tree:
        for name, value in tree.items():
            yield from leaves(value, (*path, str(name)))
    elif isinstance(tree, list) and tree:
        for number, value in enumerate(tree):
            yield from leaves(value, (*path, str(number)))
    elif tree not in (None, "", {}, []):
        yield ".".join(path)


def test_an_explanation_is_what_it_was() -> None:
    check_explained(explainer())


def test_each_field_of_an_event_has_a_row() -> None:
    for event in (ERROR, TRACK):
        paths = [row.path for row in explained(event, reveal=True).rows]
        tags = {f"tags.{name}": value for name, value in event.get("tags", [])}
        whole = {name: value for name, value in event.items() if name != "tags"} | tags
        for leaf in leaves(whole):
            assert any(leaf == path or leaf.startswith(f"{path}.") for path in paths), leaf


def test_each_value_that_leaves_has_a_row() -> None:
    for event in (ERROR, TRACK):
        told = explained(event)
        there = [row for row in told.rows if row.after is not None]
        for leaf in leaves(told.payload):
            assert any(leaf == row.at or leaf.startswith(f"{row.at}.") for row in there), leaf


def test_what_a_row_says_leaves_is_what_stands_there() -> None:
    told = explained(ERROR)
    for row in told.rows:
        if row.after is None or row.at == "contexts":
            continue
        node: Any = told.payload
        for part in row.at.split("."):
            node = node[int(part)] if isinstance(node, list) else node[part]
        assert node == row.after, row.path


@pytest.mark.parametrize("event", [ERROR, TRACK], ids=["error", "track"])
def test_nothing_that_was_planted_is_told_unless_it_is_asked_for(event: dict[str, Any]) -> None:
    told = explained(event)
    for text in (json.dumps(_as_json(told)), page([told]), repr(told)):
        assert not [value for value in PLANTED if value in text]
    revealed = explained(event, reveal=True)
    assert "4711" in json.dumps(_as_json(revealed))
    assert "This page holds personal data" in page([revealed])
    assert "This page holds personal data" not in page([told])
    assert "4711" not in repr(revealed)


def test_tokens_are_symbols_and_need_no_key() -> None:
    rows = {row.path: row for row in explained(TRACK).rows}
    assert rows["identity"].after == "ps1_heap_u_…"
    assert rows["session_id"].after == "ps1_heap_s_…"
    assert rows["properties.project"].after == "ps1_heap_x_…"
    assert rows["idempotency_key"].after == "0" * 32


def test_unknown_fields_are_listed_and_names_that_tell_something_are_not() -> None:
    assert explained(ERROR).unknown == ["surprise", "<key>"]
    assert explained(ERROR, reveal=True).unknown == ["surprise", "jane@example.com"]
    assert explained({**TRACK, "4711": 1}).unknown == ["user_id", "properties.title", "<key>"]


def test_what_an_earlier_edge_changed_is_no_unknown_field() -> None:
    told = explained({"message": "x", "_remarks": [["message"], "email", "replace", 0, 0]})
    assert told.unknown == []
    assert "_remarks" in [row.path for row in told.rows]


def test_an_event_that_is_too_old_says_so_and_is_explained_all_the_same() -> None:
    told = explained(TRACK, now=NOW + timedelta(days=800))
    assert (told.outcome, told.reason) == ("delivered", "expired")
    assert told.counts() == explained(TRACK).counts()


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        ({"event": "never declared", "identity": "4711", "app_id": "1"}, "undeclared_event"),
        ({"event": "page viewed", "app_id": "1", "user_id": "4711"}, "no_identity"),
        ({"event": "page viewed", "account": "zqx"}, "no_identity"),
        ({"kind": "no such", "email": "jane@example.com"}, "kind_off"),
    ],
)
def test_an_event_that_does_not_leave_has_all_its_fields_removed(
    event: dict[str, Any], reason: str
) -> None:
    told = explained(event)
    assert (told.outcome, told.reason, told.payload) == ("dropped", reason, None)
    assert set(told.counts()) == {"removed"}
    assert not [value for value in PLANTED if value in json.dumps(_as_json(told))]


def test_items_that_sentry_does_not_take_are_told_of() -> None:
    head = json.dumps({"event_id": "ab" * 16}).encode()
    body = head + b'\n{"type":"attachment","length":3}\nabc\n{"type":"event"}\n'
    body += json.dumps(ERROR).encode()
    found = [
        (told.outcome, told.reason)
        for one in read_samples(body)
        for told in explainer().explain(one, now=NOW)
    ]
    assert found == [("dropped", "kind_attachment"), ("delivered", "")]


def test_a_recipient_that_gets_nothing_of_an_event_is_told_so() -> None:
    assert explained(TRACK, recipient="sentry").reason == "other_purpose"
    with pytest.raises(ConfigError, match="no such recipient"):
        explained(TRACK, recipient="nobody")


def test_what_is_explained_is_what_the_pipeline_delivers(tmp_path: Path) -> None:
    """The same event through the real intake, keys and all: only tokens differ from symbols."""
    world = World(tmp_path)
    try:
        for event in (ERROR, TRACK):
            one = sample(event)
            (parcel,) = world.take(one.item).parcels
            decision = world.decide(parcel)
            assert isinstance(decision, dict)
            ((name, outcome),) = decision.items()
            assert isinstance(outcome, Deliver)
            told = explained(event)
            assert told.recipient == name
            assert told.payload is not None
            real = json.loads(outcome.parcel.body)
            assert set(leaves(real)) == set(leaves(told.payload))
            rows = explainer().explain_delivery(one, real, name).rows
            assert [(row.path, row.verdict, row.rules) for row in rows] == [
                (row.path, row.verdict, row.rules) for row in told.rows
            ]
    finally:
        world.close()


# --- Reading files --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "kind"),
    [
        (ERROR, "error_event"),
        (TRACK, "analytics_event"),
        ({"app_id": "1", "events": [{"event": "page viewed", "identity": "1"}]}, "analytics_event"),
        ({"app_id": "1", "identity": "1", "properties": {}}, "user_properties"),
        ({"kind": "session", "sid": "ab"}, "session"),
        ({"sid": "ab", "status": "ok"}, "session"),
        ({"aggregates": []}, "sessions"),
        ({"type": "transaction", "contexts": {}}, "transaction"),
        ({"type": "error", "platform": "go"}, "error_event"),
        ({"csp-report": {"disposition": "enforce"}}, "security_report"),
        ({"monitor_slug": "x", "status": "ok"}, "check_in"),
        ({"event": "page viewed", "account": 1}, "analytics_event"),
    ],
)
def test_formats_are_told_apart(event: dict[str, Any], kind: str) -> None:
    assert sample(event).item.kind == kind


def test_lines_arrays_and_gzip_are_read() -> None:
    import gzip

    lines = b"\n".join(json.dumps(one).encode() for one in (ERROR, TRACK))
    kinds = ["error_event", "analytics_event"]
    assert [one.item.kind for one in read_samples(lines)] == kinds
    assert [one.item.kind for one in read_samples(gzip.compress(lines))] == kinds
    array = json.dumps([ERROR, TRACK]).encode()
    assert [one.item.kind for one in read_samples(array)] == kinds


@pytest.mark.parametrize("data", [b"", b"jane@example.com", b"{}", b'{"jane":1}', b"[1]", b"\xff"])
def test_what_is_no_event_is_refused_without_repeating_it(data: bytes) -> None:
    with pytest.raises(Unrecognized) as caught:
        read_samples(data)
    assert "jane" not in str(caught.value)


# --- Two policies ---------------------------------------------------------------------------------


def changed(tmp_path: Path, file: str, old: str, new: str) -> Explainer:
    folder = tmp_path / "policy"
    shutil.copytree(schemas_dir() / "policy", folder)
    text = (folder / file).read_text("utf-8")
    assert old in text
    (folder / file).write_text(text.replace(old, new), "utf-8")
    policy = load_policy(folder)
    return Explainer(policy, Schemas(policy, Detectors.compile(policy.detector_table)))


@pytest.mark.parametrize(
    ("file", "old", "new", "event", "path"),
    [
        ("treatments.toml", '"default"', '"strict"', ERROR, "user.ip_address"),
        ("treatments.toml", '"default"', '"drop"', ERROR, "user.ip_address"),
        ("treatments.toml", "default = 1\n", "default = 3600\n", ERROR, "timestamp"),
        ("events.toml", "recurring = {", "recurrent = {", TRACK, "properties.recurring"),
        ("recipients.toml", 'epoch = "rel"', 'epoch = "quarter"', TRACK, "identity"),
    ],
)
def test_a_stricter_policy_narrows_and_its_reverse_widens(
    tmp_path: Path, file: str, old: str, new: str, event: dict[str, Any], path: str
) -> None:
    other = changed(tmp_path, file, old, new)
    (first,) = explainer().explain(sample(event), now=NOW)
    (second,) = other.explain(sample(event), now=NOW)
    there = {change.path: change.direction for change in compare(first, second)}
    back = {change.path: change.direction for change in compare(second, first)}
    assert there[path] == "NARROWS"
    assert back[path] == "WIDENS"
    assert not [one for one, direction in there.items() if direction in ("WIDENS", "UNDECIDED")]


def test_a_policy_is_equal_to_itself_and_to_one_with_another_comment(tmp_path: Path) -> None:
    other = changed(tmp_path, "events.toml", '["page viewed"]', '# why\n["page viewed"]\n')
    for event in (ERROR, TRACK):
        (first,) = explainer().explain(sample(event), now=NOW)
        (second,) = other.explain(sample(event), now=NOW)
        assert {change.direction for change in compare(first, second)} == {"EQUAL"}


@pytest.mark.parametrize(
    ("less", "more", "decided"),
    [
        ("login of <email:1>", "login of jane@example.com", True),
        ("login of jane@example.com", "login of <email:1>", False),
        ("<a> and <b>", "x and y", True),
        ("<a> and <b>", "x or y", False),
        ("<ip> at <email>", "at", False),
        ("203.0.0.0/16", "203.0.113.0/24", True),
        ("203.0.113.0/24", "203.0.0.0/16", False),
        ("2026-11-20T10:00:00Z", "2026-11-20T10:15:42.000Z", True),
        ("2026-11-20T10:15:42Z", "2026-11-20T10:00:00Z", False),
        ("2027-10-20", "2027-11-20", True),
        ("2027-11-20", "2027-10-20", False),
        ({"a": 1}, {"a": 1, "b": 2}, True),
        ({"a": 2}, {"a": 1, "b": 2}, False),
        (3, 4, False),
    ],
)
def test_less_is_what_can_be_made_from_more(less: Any, more: Any, decided: bool) -> None:
    assert _reveals_no_more(less, more) is decided


def test_an_event_without_id_or_time_is_explained_the_same_twice() -> None:
    assert explained({"message": "x"}) == explained({"message": "x"})
