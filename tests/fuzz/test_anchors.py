"""The search for gaps between anchors and patterns finds one where there is one."""

from __future__ import annotations

import random
import sys
from typing import Any

import pytest
import re2

from scrubbers.detectors import Detectors
from scrubbers.text import shipped_detectors
from tests.fuzz import __main__ as fuzz
from tests.fuzz.anchors import from_pattern, search

_ROW = {
    "class": "person",
    "pattern": "(?i:badge)[ #:]{1,3}([A-Z]{2}[0-9]{6})",
    "replacement": "<badge>",
    "match": [["badge #AB123456", "badge #<badge>"]],
    "source": "none",
}


@pytest.mark.parametrize(
    ("anchor", "misses"),
    [("(?i:badge)[ #:]", []), ("(?i:badge) ", ["badge"]), ("badge[ #:]", ["badge"])],
)
def test_an_anchor_narrower_than_its_pattern_is_found_out(anchor: str, misses: list[str]) -> None:
    table = {"detector": {"badge": {**_ROW, "anchor": anchor}}}
    found, claimed = search(0, seed=1, detectors=Detectors.compile(table), least=60)
    assert [miss.detector for miss in found] == misses
    assert claimed > (0 if misses else 50)


@pytest.mark.parametrize("row", shipped_detectors().rows, ids=lambda row: row.detector.id)
def test_texts_made_from_a_pattern_match_it(row: Any) -> None:
    pattern = row.detector.pattern
    made = from_pattern(pattern, random.Random(7))  # noqa: S311 - reproducible
    texts = [next(made) for _ in range(20)]
    assert len(set(texts)) > 10
    assert sum(re2.search(pattern, text) is not None for text in texts) >= 10


def test_the_shipped_anchors_hit_what_their_patterns_match() -> None:
    assert search(0, seed=1, least=15)[0] == []


@pytest.mark.parametrize(("required", "code"), [("node,atheris", 1), ("node", 0)])
def test_a_missing_fuzzer_is_said_and_fails_where_it_is_promised(
    required: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fuzz, "install", lambda: "no wheel")
    monkeypatch.setattr(sys, "argv", ["fuzz", "text", "url"])
    monkeypatch.setenv("TELEMETRY_REQUIRE", required)
    assert fuzz.main() == code
    assert "NOT RUN: text, url: needs atheris: no wheel" in capsys.readouterr().err
