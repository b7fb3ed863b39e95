"""Texts of programs that are known to hold nothing are not searched again; all others are."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from scrubbers.engine import Ledger, Quiet, Treatments, scrub
from telemetry.policy import load_policy, policy_dir
from telemetry.rules import CompiledRules, Schemas

_LINE = "    raise PaymentError(reason)"
_SECRET = 'CLIENT = connect("app", password="hunter2-hunter2")'


@pytest.fixture(scope="module")
def schemas() -> Schemas:
    policy = load_policy(policy_dir(""))
    return Schemas(policy, policy.detectors)


@pytest.fixture
def rules(schemas: Schemas) -> CompiledRules:
    """Rules that have seen nothing yet."""
    kind = "error_event"
    compiled = schemas.rules_for(kind, b"{}")
    return CompiledRules(compiled.record, replace(compiled.treatments, quiet=Quiet()))


def _event(line: str, *, message: str = "it failed", file: str = "/srv/shop/pay.py") -> bytes:
    frame = {"function": "pay", "abs_path": file, "context_line": line, "pre_context": [line]}
    values = [{"type": "Error", "value": message, "stacktrace": {"frames": [frame]}}]
    return json.dumps({"exception": {"values": values}}).encode()


def _searched(rules: CompiledRules, raw: bytes) -> Ledger:
    ledger = Ledger(rules.treatments)
    rules.rewrite(rules.decode(raw, ledger), (), ledger)
    return ledger


def test_a_line_is_searched_once(rules: CompiledRules) -> None:
    assert _LINE in _searched(rules, _event(_LINE)).statics
    first = scrub(_event(_LINE), rules)
    assert _searched(rules, _event(_LINE)).statics == []
    assert scrub(_event(_LINE), rules) == first


def test_a_line_that_holds_something_is_searched_and_changed_each_time(
    rules: CompiledRules,
) -> None:
    outcomes = [scrub(_event(_SECRET), rules) for _ in range(3)]
    assert outcomes[0] == outcomes[1] == outcomes[2]
    assert b"hunter2" not in outcomes[0].event
    assert _SECRET in _searched(rules, _event(_SECRET)).statics


def test_a_quiet_line_is_still_searched_where_it_is_a_message(rules: CompiledRules) -> None:
    """The request's own values are not looked for in lines, but they are in messages."""
    line = "order of account kd7fjw0q2x"
    scrub(_event(line), rules)
    outcome = scrub(_event(line, message=line), rules, known=[("account", "kd7fjw0q2x")])
    values: Any = json.loads(outcome.event)["exception"]["values"]
    assert values[0]["value"] == "order of account <account>"
    assert values[0]["stacktrace"]["frames"][0]["context_line"] == line


def test_a_line_that_is_quiet_as_a_text_is_still_reduced_as_a_file(rules: CompiledRules) -> None:
    home = "/home/jane/shop/pay.py"
    scrub(_event("/srv/shop/pay.py"), rules)
    rules.treatments.quiet.texts.add(home)
    assert b"jane" not in scrub(_event(_LINE, file=home), rules).event
    assert home not in rules.treatments.quiet.files


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scrubbers.engine._QUIET_TEXTS", 50)
    quiet = Quiet()
    for number in range(500):
        quiet.learn([f"line {number}", "x" * 201], [f"/srv/{number}.py"], ())
    assert len(quiet.texts) <= 52
    assert len(quiet.files) <= 52
    assert "x" * 201 not in quiet.texts
    assert "line 1" not in repr(quiet)


def test_each_table_of_detectors_has_its_own_memory(schemas: Schemas) -> None:
    one, other = (
        Treatments(detectors=rules.treatments.detectors, address_profile=None, grain_s=1)  # type: ignore[arg-type]
        for rules in (schemas.rules_for("error_event", b"{}"),) * 2
    )
    one.quiet.learn([_LINE], [], ())
    assert _LINE not in other.quiet.texts
