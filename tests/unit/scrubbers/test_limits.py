"""Lints and caps, at their edge: the last that is taken and the first that is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scrubbers import Detectors, RuleError, detectors, shipped
from scrubbers.detectors import _lint
from scrubbers.known_values import KnownValues
from scrubbers.text import MAX_HITS, redact_text

# What stands at a limit and is taken; what stands behind it and is not, with what is said of it.
ANCHORS = [
    ("[0-9]{16}", "[0-9]{17}", "17 repeated positions"),
    ("(?:[0-9]{8}){2}", "(?:[0-9]{8}){3}", "24 repeated positions"),
    ("(?:[0-9]{16}|[a-z]{3})", "(?:[0-9]{16}|[a-z]{3})[a-z]{1}", "17 repeated positions"),
    ("abc[0-9]{1}", "abc[0-9]*", "open loop"),
    ("abc[0-9]?", "abc[0-9]+", "open loop"),
    ("abc[0-9]{1,3}", "abc[0-9]{3,}", "open loop"),
]
PATTERNS = [
    ("abc[0-9]+", "ab[0-9]+", "open loop"),
    ("abc[0-9]{2,}", "a[bc][0-9]{2,}", "open loop"),
    ("abc(?:[0-9]+)", "(?:ab|cd)[0-9]*", "open loop"),
    ("[0-9]{1000}", "[0-9]{1001}", "1000 times"),
    ("(?:[0-9]{10}){100}", "(?:[0-9]{10}){101}", "1000 times"),
    ("(?:(?:[0-9]{10}){10}){10}", "(?:(?:[0-9]{10}){10}){11}", "1000 times"),
    (r"abc[^0\x1e]", "abc[^0]", "negated class"),
    (r"abc[^\]\x1e]{2}", r"abc[^\]]{2}", "negated class"),
    (r"abc[.]", "abc.", r"uses \."),
    (r"abc\s", r"abc\S", r"uses \\S"),
    (r"abc\w", r"abc\W", r"uses \\W"),
    (r"abc\d", r"abc\D", r"uses \\D"),
    (r"abc\.", r"abc\C", r"uses \\C"),
    (r"abc\b", r"ü\b", r"\\b beside"),
    (r"abc\B", r"[a-z\x{80}-\x{ff}]\B", r"\\b beside"),
    ("(?:abc)", "abc)", "parenthesis too many"),
]


@pytest.mark.parametrize(("taken", "refused", "says"), ANCHORS)
def test_an_anchor_may_go_up_to_its_limit(taken: str, refused: str, says: str) -> None:
    _lint(taken, is_anchor=True)
    with pytest.raises(ValueError, match=says):
        _lint(refused, is_anchor=True)


@pytest.mark.parametrize(("taken", "refused", "says"), PATTERNS)
def test_a_pattern_may_go_up_to_its_limit(taken: str, refused: str, says: str) -> None:
    _lint(taken, is_anchor=False)
    with pytest.raises(ValueError, match=says):
        _lint(refused, is_anchor=False)


def test_a_pattern_has_no_limit_of_positions() -> None:
    _lint("[0-9]{17}", is_anchor=False)


def _badge(**changes: Any) -> dict[str, Any]:
    row = {
        "class": "person",
        "anchor": "badge ",
        "pattern": "badge ([0-9]{4})",
        "replacement": "<badge>",
        "match": [["badge 1234", "badge <badge>"]],
        "source": "a test",
    }
    return {"detector": {"badge": {**row, **changes}}}


@pytest.mark.parametrize("key", ["class", "anchor", "pattern", "replacement", "match", "source"])
def test_a_row_that_lacks_a_key_is_refused(key: str) -> None:
    table = _badge()
    del table["detector"]["badge"][key]
    with pytest.raises(RuleError, match=f"detector badge: lacks {key}"):
        Detectors.compile(table)


@pytest.mark.parametrize("word", ["<Badge>", "badge", "<>", "<badge:1>", f"<{'a' * 21}>", "<a b>"])
def test_a_replacement_is_one_of_our_placeholders(word: str) -> None:
    with pytest.raises(RuleError, match="no placeholder"):
        Detectors.compile(_badge(replacement=word))


def test_a_pattern_that_takes_the_empty_text_is_refused_beside_an_anchor_that_does_not() -> None:
    with pytest.raises(RuleError, match="matches the empty text"):
        Detectors.compile(_badge(pattern="(?:badge ([0-9]{4}))?"))


def test_without_re2_no_table_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detectors, "re2", None)
    with pytest.raises(RuleError, match="RE2 is not available"):
        Detectors.compile({})


def test_a_shipped_table_that_is_gone_or_broken_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(shipped, "__file__", str(tmp_path / "scrubbers" / "shipped.py"))
    with pytest.raises(RuleError, match="not part of this installation"):
        shipped._read("detectors")
    (tmp_path / "scrubbers").mkdir()
    (tmp_path / "scrubbers" / "_detectors.toml").write_text("[let", "utf-8")
    with pytest.raises(RuleError, match="not valid TOML"):
        shipped._read("detectors")


def test_more_candidates_than_any_text_has_leave_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detectors, "_MAX_CANDIDATES", 3)
    table = Detectors.compile(_badge())
    assert redact_text("badge 1234, badge 1235", table)[0] == "badge <badge>, badge <badge>"
    redacted, remarks = redact_text("badge 1234, badge 1235, badge 1236", table)
    assert redacted == "<redacted>"
    assert [remark.rule for remark in remarks] == ["unsettled"]


def test_a_text_may_hold_so_many_findings_and_not_one_more() -> None:
    table = Detectors.compile(_badge())
    one = "badge 1234 "
    assert redact_text(one * MAX_HITS, table)[0] == "badge <badge> " * MAX_HITS
    assert redact_text(one * (MAX_HITS + 1), table)[0] == "<redacted>"


def test_a_request_may_name_so_many_people_and_not_one_more() -> None:
    people = [("account", f"{number:05}") for number in range(512)]
    assert KnownValues(people).found_in("no row for 00511")
    with pytest.raises(OverflowError):
        KnownValues([*people, ("account", "99999")])


def test_of_addresses_and_cookies_that_a_client_can_send_any_number_of_the_first_are_taken() -> (
    None
):
    many = [("ip", f"value-{number:03}-x") for number in range(49)]
    known = KnownValues([*many, ("name", "Erika Mustermann")])
    assert known.found_in("at value-047-x")
    assert not known.found_in("at value-048-x")
    assert known.found_in("for Mustermann")


def test_a_known_value_that_stands_more_often_than_in_any_message_leaves_nothing() -> None:
    table = Detectors.compile({})
    known = KnownValues([("session", "k7fjw0q2xz")])
    assert redact_text("k7fjw0q2xz " * 200, table, known=known)[0] == "<session> " * 200
    assert redact_text("k7fjw0q2xz " * 301, table, known=known)[0] == "<redacted>"
