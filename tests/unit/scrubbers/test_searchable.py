"""The searched form of a text costs little, whatever its characters stand for."""

from __future__ import annotations

import time
import unicodedata

import pytest

from scrubbers.detectors import searchable

_CHARACTERS = 1024 * 1024 // 3


@pytest.mark.parametrize(
    "unit", ["\u3316", "\u330c\u332b", "\u3300a", "\u337f", "\ufdfa", "\ufdfb", "\u33af", "\u2480"]
)
def test_a_mebibyte_of_signs_for_whole_words_costs_a_tenth_of_a_second(unit: str) -> None:
    text = unit * (_CHARACTERS // len(unit))
    spent_s = []
    for _ in range(3):
        began = time.process_time()
        form = searchable(text)
        spent_s.append(time.process_time() - began)
    assert min(spent_s) <= 0.1
    assert searchable(form) == form


def test_signs_for_whole_words_are_no_letters_to_search() -> None:
    assert searchable("a\u3316\u3316b\u337f") == "a?b?"


def test_signs_for_a_few_letters_are_searched_as_those() -> None:
    text = "\u2100 \u33c7 \u2026 \ufb03 \u33a8"
    assert searchable(text) == unicodedata.normalize("NFKC", text)
