"""Every alternative inside a detector's pattern or anchor is needed by a text, or listed."""

from __future__ import annotations

import pytest

from tests.checks.promises import shipped_tables
from tests.mutation.alternatives import cuts, examples, groups, is_noticed, left, texts

ROWS = tuple(shipped_tables()["detectors.toml"]["detector"])


@pytest.mark.parametrize("row", ROWS)
def test_no_alternative_of_a_detector_can_go_unnoticed(row: str) -> None:
    unnoticed = {cut.name for cut in cuts(row) if not is_noticed(cut, examples(row))}
    known = {name for name in left() if name.startswith((f"{row}.anchor:", f"{row}.pattern:"))}
    assert unnoticed - known == set(), (
        "add an example, or run python -m tests.mutation.alternatives"
    )
    assert known - unnoticed == set(), "these are noticed now: take them off the list"


def test_the_list_names_alternatives_that_exist() -> None:
    assert set(texts()) <= set(ROWS)
    assert left() <= {cut.name for row in ROWS for cut in cuts(row)}


@pytest.mark.parametrize(
    ("expression", "alternatives"),
    [
        ("abc", []),
        ("a|b", [["a", "b"]]),
        ("(?:a|b(c|[|)]))d", [["c", "[|)]"], ["a", "b(c|[|)])"]]),
        (r"\(a\|b|[^]|]x|", [[r"\(a\|b", "[^]|]x", ""]]),
        ("(?i:a|{{k}}){2}|[\\]|]", [["a", "{{k}}"], ["(?i:a|{{k}}){2}", "[\\]|]"]]),
    ],
)
def test_alternatives_are_told_from_signs(expression: str, alternatives: list[list[str]]) -> None:
    found = [[expression[start:end] for start, end in spans] for spans in groups(expression)]
    assert found == alternatives


def test_an_alternative_without_its_text_is_a_survivor() -> None:
    (cut, *_) = [one for one in cuts("email_spelled") if one.key == "pattern"]
    assert not is_noticed(cut, ["nothing is here"])
