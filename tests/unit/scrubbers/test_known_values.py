from __future__ import annotations

import base64
import copy
import json
from urllib.parse import quote

import pytest

from scrubbers import KnownValues, known_values, redact_text
from scrubbers.detectors import searchable

_MAIL = "jane.doe@example.com"
_KNOWN = KnownValues(
    [
        ("account", "4711"),
        ("account", "42"),
        ("name", "Jane Doe"),
        ("name", "Jürgen Müller"),
        ("email", _MAIL),
        ("ip", "203.0.113.9"),
        ("session", "s3ss10n-abcdef"),
        ("hobby", "pole vaulting"),
        ("user", ""),
    ]
)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("row 4711 is gone", "row <account> is gone"),
        ("acct=4711&x=1", "acct=<account>&x=1"),
        ("user4711", "user<account>"),
        ("user 42, 42 items", "user <account>, 42 items"),
        ("GET /users/42 and id=42", "GET /users/<account> and id=<account>"),
        ('{"account_id": 42}', '{"account_id": <account>}'),
        ("Hello JANE DOE", "Hello <name>"),
        ("Hello Jane", "Hello <name>"),
        ("doe, jane", "<name>"),
        ("jane.doe/x", "<name>/x"),
        ("jane%20doe", "<name>"),
        ("JÜRGEN MÜLLER", "<name>"),
        (json.dumps({"n": "Jürgen Müller"}), '{"n": "<name>"}'),
        (quote(_MAIL, safe=""), "<email:1>"),
        (quote(quote(_MAIL, safe=""), safe=""), "<email:1>"),
        (_MAIL.encode().hex(), "<email:1>"),
        (_MAIL.encode().hex().upper(), "<email:1>"),
        ("host 203-0-113-9 and 9.113.0.203.in-addr.arpa", "host <ip> and <ip>.in-addr.arpa"),
        ("S3SS10N-ABCDEF", "<session>"),
        ("likes Pole Vaulting", "likes <id>"),
    ],
)
def test_a_known_value_goes_in_whatever_form(text: str, wanted: str) -> None:
    assert _KNOWN.found_in(text)
    assert redact_text(text, known=_KNOWN)[0] == wanted


@pytest.mark.parametrize("lead", range(4))
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_base64_hides_no_value_at_any_alignment(lead: int, encode: object) -> None:
    blob = encode(b"?" * lead + _MAIL.encode() + b"tail")  # type: ignore[operator]
    assert redact_text(f"x {blob.decode()} y", known=_KNOWN)[0] == "x <email:1> y"


@pytest.mark.parametrize(
    "text",
    [
        "14711 47110 3.14",
        "views.py:4711",
        "line 4711",
        "42 items in 42 ms",
        "janeway",
        "<account> <name>",
        "item 142",
    ],
)
def test_a_longer_number_or_a_line_is_no_known_value(text: str) -> None:
    assert redact_text(text, known=_KNOWN) == (text, ())


def test_known_values_show_and_lend_themselves_to_nobody() -> None:
    assert "Jane" not in repr(_KNOWN)
    assert "4711" not in repr(_KNOWN)
    with pytest.raises(TypeError):
        copy.copy(_KNOWN)


def test_no_values_are_found_nowhere() -> None:
    assert not KnownValues([]).found_in("anything")
    assert not KnownValues([("name", "  ")])


def test_values_that_begin_alike_are_all_found() -> None:
    """In hexadecimal and Base64 they share the outline that is looked for first."""
    first, second = "kd7fjw-0001-left", "kd7fjw-0002-right"
    known = KnownValues([("session", first), ("account", second)])
    for value, word in ((first, "<session>"), (second, "<account>")):
        for text in (value, value.encode().hex(), base64.b64encode(value.encode()).decode()):
            assert redact_text(f"lost {text} again", known=known)[0] == f"lost {word} again"


def test_what_follows_a_value_too_long_to_be_kept_goes_with_it() -> None:
    token = "kd7fjw0q2x" * 90
    known = KnownValues([("secret", token)])
    assert redact_text(f"upstream refused {token} sorry", known=known)[0] == (
        "upstream refused <id> sorry"
    )
    assert redact_text(f"cookie='{token}'; next", known=known)[0].endswith("'; next")
    assert "fjw0" not in redact_text(f"cookie='{token}'; next", known=known)[0]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("row customers.id: 471199", "row customers.id: <account>"),
        ("t.uid:471199", "t.uid:<account>"),
        ("bad port 471199", "bad port <account>"),
        ("bill.nr: 471199", "bill.nr: <account>"),
        ("app.py:471199", "app.py:471199"),
        ("app.min.js:1:471199", "app.min.js:1:471199"),
        ("line 471199", "line 471199"),
    ],
)
def test_an_id_is_no_line_for_the_word_before_it(text: str, wanted: str) -> None:
    assert redact_text(text, known=KnownValues([("account", "471199")]))[0] == wanted


def test_addresses_cannot_crowd_out_what_else_a_request_holds() -> None:
    hops = [("ip", f"198.51.100.{n}") for n in range(60)]
    known = KnownValues([*hops, ("secret", "janestokenvalue")])
    assert known.found_in("refused janestokenvalue now")
    assert not KnownValues([("ip", "10"), ("ip", "z8"), ("ip", "::")])


def test_places_of_many_texts_are_told_at_once() -> None:
    known = KnownValues([("account", "kd7fjw0q2x")])
    texts = ["plain", "kd7fjw0q2x", "KD7FJW0Q2X and kd7fjw0q2x", "k"]
    ends = [6, 17, 43, 45]
    assert known.texts_of("\x1e".join(texts), ends) == {1, 2}
    assert (
        known.texts_of("\x1e".join(["kd7fjw0q2x"] * 5_000), [11 * n for n in range(1, 5_001)])
        is None
    )


_CODED = {
    "plain": lambda text: text,
    "upper case": str.upper,
    "percent": lambda text: quote(text, safe=""),
    "hex": lambda text: text.encode().hex(),
    "HEX": lambda text: text.encode().hex().upper(),
    "base64": lambda text: base64.b64encode(text.encode()).decode(),
    "shifted by one": lambda text: base64.b64encode(b"x" + text.encode()).decode(),
    "shifted by two": lambda text: base64.b64encode(b"xy" + text.encode()).decode(),
    "for URLs": lambda text: base64.urlsafe_b64encode(text.encode()).decode().rstrip("="),
}


@pytest.mark.parametrize("encoding", _CODED)
@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("account", "471199"),
        ("account", "acct-4711"),
        ("session", "s-4ffe81498778232e"),
        ("ip", "203.0.113.9"),
        ("ip", "1.1.1.10"),
        ("email", _MAIL),
        ("email", "o'neil+a~b?c>d@example.com"),
        ("id", "???>>>~~~???>>>~~~"),
        ("name", "Jürgen Müller"),
        ("name", "Οδυσσέας Παπαδόπουλος"),
        ("id", "x" * 600),
        ("name", "é"),
        ("name", "Øy"),
        ("id", "日本"),
        ("user", "Zoë"),
        ("user", "Žižek"),
        ("user", "\U0001f600\U0001f600"),
        ("user", "ab"),
    ],
)
def test_the_short_look_passes_over_no_value_in_any_encoding(
    kind: str, value: str, encoding: str
) -> None:
    """What may be left out of a search is decided by less than the search itself looks for."""
    others = [("account", "98765"), ("ip", "198.51.100.23")]
    known = KnownValues([*others, (kind, value)])
    text = f"before \x1e{_CODED[encoding](value)}\x1e after"
    text = searchable(text)
    if known.found_in(text):
        near = known.near(text, text.encode())
        assert near is not None
        assert near.spans(text.encode()) == known.spans(text.encode())
    else:
        # Base64 hides a part at either end, and case folds in ASCII only.
        assert next(known._hits(text.encode()), None) is None


def test_only_values_that_can_stand_in_a_text_are_looked_for_in_it() -> None:
    known = KnownValues([("account", "98765"), ("session", "s-4ffe81498778232e"), ("email", _MAIL)])
    assert known.near("nothing of it", b"nothing of it") is None
    text = "row 98765 of 12"
    assert repr(known.near(text, text.encode())) == "KnownValues(1)"


def test_sober_values_are_letters_and_digits_in_base64() -> None:
    """The short look counts on it: a run of other characters could hide one of these."""
    sober = [chr(code) for code in range(128) if known_values._SOBER.fullmatch(chr(code))]
    assert set("?>~\x7f").isdisjoint(sober)
    for one in sober:
        for other in sober:
            value = (one + other) * 6
            for core in known_values._base64_cores(value.encode()):
                assert core.isalnum()
                assert len(core) >= len(value) * 4 // 3 - 1
