"""The search for planted values misses none of its encodings, whatever stands around them."""

from __future__ import annotations

import html
import json
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scrubbers.validators import VALIDATORS
from telemetry.demo.people import World
from telemetry.testing.leaks import SHORTEST, Finding, Leaks, files_under

values = st.text(
    st.characters(codec="utf-8", categories=("L", "N", "P", "Zs")), min_size=SHORTEST, max_size=60
).filter(lambda text: len(text.replace(" ", "").encode()) >= SHORTEST)

ENCODINGS: dict[str, Callable[[str], bytes]] = {
    "plain": str.encode,
    "upper case": lambda text: text.upper().encode(),
    "lower case": lambda text: text.lower().encode(),
    "percent": lambda text: quote(text).encode(),
    "percent, everything": lambda text: quote(text, safe="").encode(),
    "percent twice": lambda text: quote(quote(text, safe=""), safe="").encode(),
    "form": lambda text: quote_plus(text).encode(),
    "json": lambda text: json.dumps(text)[1:-1].encode(),
    "json, as UTF-8": lambda text: json.dumps(text, ensure_ascii=False)[1:-1].encode(),
    "json in json": lambda text: json.dumps(json.dumps(text))[3:-3].encode(),
    "html": lambda text: html.escape(text).encode(),
    "hex": lambda text: text.encode().hex().encode(),
    "HEX": lambda text: text.encode().hex().upper().encode(),
    "utf-16": lambda text: text.encode("utf-16-le"),
}


@pytest.mark.parametrize("encode", ENCODINGS.values(), ids=ENCODINGS)
@settings(max_examples=60, deadline=None)
@given(value=values, before=st.binary(max_size=20), after=st.binary(max_size=20))
def test_a_value_is_found_in_each_encoding_wherever_it_stands(
    encode: Callable[[str], bytes], value: str, before: bytes, after: bytes
) -> None:
    found = Leaks({"it": value}).search([("here", before + encode(value) + after)])
    assert "it" in {finding.name for finding in found}


@settings(max_examples=60, deadline=None)
@given(value=values, before=st.binary(max_size=20), after=st.binary(max_size=20))
def test_a_value_is_found_inside_longer_text_in_base64(
    value: str, before: bytes, after: bytes
) -> None:
    whole = before + value.encode() + after
    for coded in (b64encode(whole), urlsafe_b64encode(whole)):
        found = Leaks({"it": value}).search([("here", coded)])
        assert "base64" in {finding.form for finding in found}


@settings(max_examples=60, deadline=None)
@given(value=values, cut=st.integers(min_value=0))
def test_a_value_with_one_character_less_is_not_that_value(value: str, cut: int) -> None:
    plain = value.encode()
    at = cut % len(plain)
    rest = plain[:at] + plain[at + 1 :]
    if value.replace(" ", "").encode().lower() not in rest.replace(b" ", b"").lower():
        forms = {finding.form for finding in Leaks({"it": value}).search([("here", rest)])}
        assert "plain" not in forms


def test_a_finding_names_value_form_and_place_and_shows_no_value() -> None:
    leaks = Leaks({"person 1: email": "jane.doe@mail.example.org"})
    found = leaks.search([("a file", b"x" * 7 + b"JANE.DOE%40mail.example.org")])
    assert found == [Finding("person 1: email", "url", "a file")]
    assert "jane" not in repr(found)


def test_a_value_too_short_to_be_searched_for_is_refused() -> None:
    with pytest.raises(ValueError, match="too short") as refused:
        Leaks({"pin": "4711"})
    assert "4711" not in str(refused.value)


def test_every_file_below_a_folder_is_searched_and_its_name_too(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "log").write_bytes(b64encode(b"for jane.doe@mail.example.org"))
    (tmp_path / "jane.doe@mail.example.org").touch()
    found = Leaks({"it": "jane.doe@mail.example.org"}).search(files_under(tmp_path))
    assert {finding.form for finding in found} == {"plain", "base64"}


def test_planted_values_are_each_its_own_and_none_is_part_of_another() -> None:
    planted = list(World(people=200).planted.values())
    assert len(planted) == len(set(planted))
    text = "\n".join(planted)
    assert all(text.count(value) == 1 for value in planted)


def test_planted_numbers_are_what_they_look_like() -> None:
    for person in World(people=40).people:
        for kind in ("iban", "card"):
            value = getattr(person, kind).encode()
            assert VALIDATORS[kind](value, 0, len(value)) == (0, len(value)), kind
