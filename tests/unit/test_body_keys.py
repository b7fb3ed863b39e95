"""Of a request's body leaves what the policy lists: the classes of these keys, never a value."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scrubbers.detectors import Detectors
from scrubbers.engine import Outcome, rescrub, scrub
from telemetry import notice
from telemetry.errors import PolicyError, SchemaError
from telemetry.policy import Policy, load_policy, policy_dir, schemas_dir
from telemetry.rules import CompiledRules, Schemas
from telemetry.schema import load_records

KEYS = ("amount", "items", "comment")
SHAPES = {"null", "bool", "number", "text", "list", "map", "object", "empty"}


def listing(folder: Path, keys: str, name: str = "body") -> Policy:
    shutil.copytree(policy_dir(), folder, dirs_exist_ok=True)
    path = folder / "treatments.toml"
    text = path.read_text("utf-8")
    assert "body = []" in text
    path.write_text(text.replace("body = []", f"{name} = {keys}"), "utf-8")
    return load_policy(folder)


def rules_of(policy: Policy) -> CompiledRules:
    detectors = Detectors.compile(policy.detector_table)
    return Schemas(policy, detectors).rules_for("error_event", b"{}")


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> CompiledRules:
    return rules_of(listing(tmp_path_factory.mktemp("policy"), json.dumps(KEYS)))


def left(rules: CompiledRules, body: Any, **more: Any) -> tuple[Any, Outcome]:
    raw = json.dumps({"request": {"method": "POST", "data": body}, **more}).encode()
    outcome = scrub(raw, rules)
    return json.loads(outcome.event)["request"].get("data"), outcome


BODY = {
    "amount": "1,200.50",
    "items": [{"name": "Erika Mustermann"}],
    "comment": "call erika@example.org",
    "email": "erika@example.org",
    "erika@example.org": 1,
}


def test_the_shipped_policy_lists_none_and_nothing_stays() -> None:
    shipped = rules_of(load_policy())
    value, outcome = left(shipped, BODY)
    assert value is None
    assert [(one.path, one.rule) for one in outcome.remarks] == [(("request", "data"), "strip")]
    assert "among" not in shipped.source


def test_of_listed_keys_the_class_stays_and_of_others_nothing(rules: CompiledRules) -> None:
    value, outcome = left(rules, BODY)
    assert value == {"amount": "number", "items": "list", "comment": "text"}
    assert b"rika" not in outcome.event
    assert [(one.path, one.rule) for one in outcome.remarks] == [(("request", "data"), "shape")]
    assert rescrub(outcome.event, rules).event == outcome.event
    assert left(rules, value)[0] == value  # a later hop scrubs what an earlier one left


def test_a_body_that_is_json_as_text_is_read_too(rules: CompiledRules) -> None:
    assert left(rules, json.dumps(BODY))[0] == left(rules, BODY)[0]


@pytest.mark.parametrize(
    "body",
    ["amount=12&email=erika@example.org", [BODY], 7, True, {"email": 1}, '{"amount": ', '"amount"'],
)
def test_any_other_body_goes_whole_and_the_event_stays(rules: CompiledRules, body: Any) -> None:
    value, outcome = left(rules, body)
    assert value is None
    assert [(one.path, one.rule) for one in outcome.remarks] == [(("request", "data"), "strip")]


@pytest.mark.parametrize("body", [None, {}, "", []])
def test_an_empty_body_is_no_remark(rules: CompiledRules, body: Any) -> None:
    assert left(rules, body) == (None, left(rules, None)[1])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200)
@given(
    body=st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=12), JSON, max_size=6) | JSON,
    slow=st.booleans(),
)
def test_whatever_comes_only_listed_names_and_classes_leave(
    rules: CompiledRules, body: Any, slow: bool
) -> None:
    # A leaf of a wrong type elsewhere sends the event by the slow path.
    value, outcome = left(rules, body, **({"level": {"no": "text"}} if slow else {}))
    assert set(value or {}) <= set(KEYS)
    assert set((value or {}).values()) <= SHAPES
    assert rescrub(outcome.event, rules).event == outcome.event
    expected = set(body) & set(KEYS) if isinstance(body, dict) else set()
    if not isinstance(body, str):
        assert set(value or {}) == expected


def test_the_data_dictionary_names_the_keys(tmp_path: Path) -> None:
    batch = json.loads((schemas_dir() / "batch.avsc").read_text("utf-8"))
    policy = listing(tmp_path, '["amount", "items"]')
    written = notice.data_dictionary(policy, load_records(), batch)
    rows = [line for line in written.splitlines() if line.startswith("| `request.data` |")]
    named = [row for row in rows if "removed, but for the type classes of `amount`, `items`" in row]
    assert len(named) == 1 < len(rows)  # of errors, not of transactions and feedback


@pytest.mark.parametrize(
    ("keys", "name", "error"),
    [
        ('["erika@example.org"]', "body", PolicyError),
        ('["a b"]', "body", PolicyError),
        ('"amount"', "body", PolicyError),
        ('["amount"]', "boddy", SchemaError),
    ],
)
def test_a_list_that_cannot_be_meant_stops_the_start(
    tmp_path: Path, keys: str, name: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        rules_of(listing(tmp_path, keys, name))


@pytest.fixture
def annotated(tmp_path: Path) -> Callable[[str], Path]:
    def write(note: str) -> Path:
        folder = tmp_path / "schemas"
        shutil.copytree(schemas_dir(), folder)
        path = folder / "error_event.avsc"
        text = path.read_text("utf-8")
        path.write_text(text.replace('"treatment": "strip", "keys": "body"', note), "utf-8")
        return folder

    return write


def test_only_what_is_stripped_may_have_a_list(annotated: Callable[[str], Path]) -> None:
    with pytest.raises(SchemaError, match="list of keys"):
        load_records(annotated('"treatment": "strip", "known": "id", "keys": "body"'))
