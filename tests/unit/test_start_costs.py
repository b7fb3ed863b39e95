"""What a start does not spend: what it measured before, and kinds that are off."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scrubbers import RuleError
from scrubbers.detectors import Detectors
from scrubbers.shipped import detector_table
from telemetry import start
from telemetry.errors import DecodeError
from telemetry.policy import load_policy
from telemetry.rules import CompiledRules, Schemas

TABLE = detector_table()


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Detectors]:
    """Give the tables that were measured, without spending the time on it."""
    measured: list[Detectors] = []
    monkeypatch.setattr(Detectors, "check_speed", lambda table, _clock: measured.append(table))
    return measured


def changed() -> Detectors:
    rows = {**TABLE["detector"]}
    name = next(iter(rows))
    rows["again"] = {**rows[name], "anchor": f"(?:{rows[name]['anchor']})"}
    return Detectors.compile({**TABLE, "detector": rows})


def begin(table: Detectors, memo: Path) -> None:
    start.check_speed(table, memo)
    start.remember_speed(table, memo)


def test_a_table_is_measured_once_and_again_when_it_changes(
    tmp_path: Path, seen: list[Detectors]
) -> None:
    memo, table, other = tmp_path / "memo", Detectors.compile(TABLE), changed()
    begin(table, memo)
    begin(Detectors.compile(TABLE), memo)
    assert seen == [table]
    begin(other, memo)
    assert seen == [table, other]


def test_another_version_of_re2_is_measured_again(
    tmp_path: Path, seen: list[Detectors], monkeypatch: pytest.MonkeyPatch
) -> None:
    memo, table = tmp_path / "memo", Detectors.compile(TABLE)
    begin(table, memo)
    monkeypatch.setattr("importlib.metadata.version", lambda _name: "another")
    begin(table, memo)
    assert len(seen) == 2


@pytest.mark.parametrize("content", [b"", b"f" * 64, b"\xff\xfe", b"yes\n" * 9])
def test_a_memo_that_somebody_wrote_to_is_worth_nothing(
    tmp_path: Path, seen: list[Detectors], content: bytes
) -> None:
    memo, table = tmp_path / "memo", Detectors.compile(TABLE)
    memo.write_bytes(content)
    begin(table, memo)
    assert seen == [table]


def test_what_is_too_slow_leaves_no_memo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(_table: Detectors, _clock: Callable[[], float]) -> None:
        raise RuleError("too slow")

    monkeypatch.setattr(Detectors, "check_speed", slow)
    memo, table = tmp_path / "memo", Detectors.compile(TABLE)
    for _ in range(2):
        with pytest.raises(RuleError, match="too slow"):
            begin(table, memo)
    assert not memo.exists()


def test_where_nothing_can_be_written_the_start_goes_on(
    tmp_path: Path, seen: list[Detectors]
) -> None:
    begin(Detectors.compile(TABLE), tmp_path / "none" / "memo")
    assert len(seen) == 1


def test_kinds_that_are_off_are_compiled_when_somebody_asks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled: list[str] = []
    compile_one = CompiledRules.__init__

    def noted(self: CompiledRules, record: Any, treatments: Any) -> None:
        compiled.append(record.name)
        compile_one(self, record, treatments)

    monkeypatch.setattr(CompiledRules, "__init__", noted)
    policy = load_policy()
    schemas = Schemas(policy, policy.detectors)
    off = schemas.records.keys() - policy.purpose_of_kind.keys()
    assert off
    names = {kind: schemas.records[kind].name for kind in schemas.records}
    assert set(compiled) == {names[kind] for kind in policy.purpose_of_kind}
    for kind in off:
        rules = schemas.rules_for(kind, b"{}")
        assert schemas.rules_for(kind, b"{}") is rules
        assert rules.record == schemas.records[kind]
    assert {rules.record.name for rules in schemas.all_rules} == set(names.values())
    with pytest.raises(DecodeError, match="unknown_kind"):
        schemas.rules_for("nothing_like_it", b"{}")
