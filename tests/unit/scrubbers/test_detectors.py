from __future__ import annotations

import random
import time
import unicodedata
from typing import Any

import pytest

from scrubbers import Detectors, RuleError
from scrubbers.detectors import _INVISIBLE, SEPARATOR, _clean_texts, finder, searchable
from scrubbers.shipped import detector_table, extended
from scrubbers.text import redact_text, shipped_detectors

_ROWS = shipped_detectors().rows


def _table(**changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "class": "person",
        "anchor": "badge ",
        "pattern": "badge ([0-9]{4})",
        "replacement": "<badge>",
        "match": [["badge 1234", "badge <badge>"]],
        "clean": ["badge of honour"],
        "source": "a test",
    }
    return {"detector": {"badge": {**row, **changes}}}


def test_a_detector_is_added_by_data_alone() -> None:
    detectors = Detectors.compile(_table())
    assert redact_text("see badge 1234.", detectors)[0] == "see badge <badge>."


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pattern": "badge ([0-9]{4}"}, "compile"),
        ({"pattern": "badge (?=x)"}, "compile"),
        ({"anchor": "[0-9]{9}[a-z]{8}"}, "17 repeated positions"),
        ({"anchor": "badge [0-9]+"}, "open loop"),
        ({"pattern": "[a-z]+ ([0-9]{4})"}, "open loop"),
        ({"pattern": "badge (?:[0-9]{40}){30}"}, "1000 times"),
        ({"anchor": "badge [^0]"}, "negated class"),
        ({"pattern": "badge ([^ ]{4})"}, "negated class"),
        ({"pattern": "badge (.{4})"}, r"uses \."),
        ({"pattern": r"badge (\S{4})"}, r"uses \\S"),
        ({"pattern": r"badge ü\b([0-9]{4})"}, r"\\b beside"),
        ({"anchor": "bodge "}, "does not hit its anchor"),
        ({"match": [["badge 1234", "badge <id>"]]}, "becomes something else"),
        ({"clean": ["badge 1234"]}, "counter-example 1 is found"),
        ({"match": []}, "no example"),
        ({"match": ["badge 1234"]}, "no pair"),
        ({"validator": "astrology"}, "no validator"),
        ({"replacement": "[badge]"}, "no placeholder"),
        ({"colour": "red"}, "unknown fields colour"),
        ({"anchor": "{{nothing}}"}, "no macro nothing"),
        ({"pattern": "[0-9]{0,4}", "anchor": "[0-9]{0,4}"}, "matches the empty text"),
    ],
)
def test_a_bad_detector_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RuleError, match=rf"detector badge: .*{message}"):
        Detectors.compile(_table(**changes))


def test_a_detector_without_a_field_is_refused() -> None:
    table = _table()
    del table["detector"]["badge"]["source"]
    with pytest.raises(RuleError, match="lacks source"):
        Detectors.compile(table)


def test_no_detector_at_all_finds_nothing() -> None:
    assert not Detectors.compile({}).gate("jane@example.com")


@pytest.mark.parametrize("row", _ROWS, ids=lambda row: row.detector.id)
def test_the_shipped_examples_become_what_the_table_says(row: Any) -> None:
    for text, _ in row.detector.match:
        redacted, remarks = redact_text(text)
        assert redacted != text
        assert remarks
        assert redact_text(redacted) == (redacted, ())


@pytest.mark.parametrize("row", _ROWS, ids=lambda row: row.detector.id)
def test_an_anchor_hits_its_example_between_other_fields(row: Any) -> None:
    gate = shipped_detectors()
    for text, _ in row.detector.match:
        joined = SEPARATOR.join(["nothing here", text, "nor here"])
        assert gate.gate(joined)
        assert row.anchor.hits(searchable(joined).encode())


def test_no_match_crosses_from_one_field_into_the_next() -> None:
    for row in _ROWS:
        for text, _ in row.detector.match:
            data = SEPARATOR.join([text, text]).encode()
            for start, end in shipped_detectors().find(row, data):
                assert SEPARATOR.encode() not in data[start:end]


def test_each_class_is_one_that_the_policy_knows() -> None:
    known = {"secret", "contact", "network", "financial", "government", "device", "person"}
    assert {row["class"] for row in detector_table()["detector"].values()} <= known


def test_every_format_character_is_invisible_to_the_finder() -> None:
    formats = [chr(n) for n in range(0x110000) if unicodedata.category(chr(n)) == "Cf"]
    assert not _INVISIBLE.sub("", "".join(formats))


_HOSTILE = {
    "letters": "a",
    "digits": "4",
    "groups": "4111 ",
    "dots": "1.2.3.",
    "at": "a@",
    "colons": "ab:",
    "secrets": "password=",
    "quotes": 'password="',
    "bearers": "bearer xxxx ",
    "cookies": "cookie: a=b ",
    "ibans": "DE89 ",
    "phones": "+49 30 ",
    "cues": "tel 123 ",
    "keys": "-----BEGIN PRIVATE KEY",
    "tokens": "eyJ",
    "urls": "://a:b@",
    "percent": "%40",
    "placeholders": "<email:1>",
    "brackets": "<",
    "escapes": '\\"secret\\":\\"',
    "umlauts": "ü@",
    "users": "/Users/",
    "ids": "user_id ",
    "flags": " -p mysql",
    "hex": "0x1.",
    "hyphens": "1-2-",
}


@pytest.mark.parametrize("unit", _HOSTILE.values(), ids=_HOSTILE)
def test_64_kb_made_to_be_slow_takes_less_than_100_ms(unit: str) -> None:
    text = (unit * (65_536 // len(unit) + 1))[:65_536]
    best = float("inf")
    for _ in range(3):  # other work on the machine is not what is measured
        start = time.process_time()
        redacted, _ = redact_text(text)
        best = min(best, time.process_time() - start)
    assert best < 0.1
    assert redact_text(redacted) == (redacted, ())


_OFFICE = {
    "detectors": ["badge"],
    "values": ["1234"],
    "reason": "the front door",
}


def _allowing(**changes: Any) -> dict[str, Any]:
    entry = {key: value for key, value in {**_OFFICE, **changes}.items() if value is not None}
    row = {"match": [["badge 5678", "badge <badge>"]]}
    return {**_table(**row), "allow": {"office": entry}}


def test_an_allowed_value_stays_and_its_neighbour_goes() -> None:
    detectors = Detectors.compile(_allowing())
    wanted = "badge 1234, badge <badge>"
    redacted, remarks = redact_text("badge 1234, badge 1235", detectors)
    assert redacted == wanted
    assert len(remarks) == 1
    assert redact_text(wanted, detectors) == (wanted, ())


def test_an_allowed_shape_is_the_shape_of_the_whole_value() -> None:
    shape = {"values": None, "pattern": "9[0-9]{2}0", "match": ["9000"]}
    detectors = Detectors.compile(_allowing(**shape))
    assert redact_text("badge 9120", detectors)[0] == "badge 9120"
    assert redact_text("badge 9121", detectors)[0] == "badge <badge>"


def test_allowed_addresses_count_in_any_case_and_width() -> None:
    allow = {"office": {"detectors": ["email"], "values": ["Help@example.com"], "reason": "ours"}}
    detectors = Detectors.compile(extended({"extends": "shipped", "allow": allow}))
    assert redact_text("to HELP@example.com", detectors)[0] == "to HELP@example.com"
    assert redact_text("to xhelp@example.com", detectors)[0] == "to <email:1>"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"detectors": ["bodge"]}, "no detector bodge"),
        ({"detectors": []}, "is not clear"),
        ({"values": None}, "is not clear"),
        ({"pattern": "9[0-9]{3}", "match": ["9000"]}, "is not clear"),
        ({"reason": ""}, "has no reason"),
        ({"colour": "red"}, "unknown fields colour"),
        ({"values": ["5678"]}, "takes its own example"),
        ({"values": None, "pattern": "[0-9]{4}", "match": ["9000"]}, "takes its own example"),
        ({"values": None, "pattern": "9[0-9]{3}"}, "does not take its examples"),
        ({"values": None, "pattern": "9[0-9]{3}", "match": ["8000"]}, "does not take its examples"),
        ({"values": None, "pattern": "9[0-9", "match": ["9"]}, "does not compile"),
        ({"values": None, "pattern": "[0-9]+", "match": ["9"]}, "open loop"),
        ({"values": None, "pattern": "{{none}}", "match": ["9"]}, "no macro none"),
    ],
)
def test_a_bad_allow_list_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RuleError, match=rf"(?:allow-list office|detector badge): .*{message}"):
        Detectors.compile(_allowing(**changes))


def test_a_policy_never_holds_a_secret_in_order_to_let_it_pass() -> None:
    allow = {"ours": {"detectors": ["jwt"], "values": ["x"], "reason": "a test"}}
    with pytest.raises(RuleError, match="would keep a secret in the policy"):
        Detectors.compile(extended({"extends": "shipped", "allow": allow}))


def test_a_table_extends_the_shipped_one_or_stands_alone() -> None:
    own = _table()
    assert extended(own) == own
    both = Detectors.compile(extended({"extends": "shipped", **own}))
    assert redact_text("badge 1234 of jane@example.com", both)[0] == "badge <badge> of <email:1>"
    assert len(both.rows) == len(_ROWS) + 1
    with pytest.raises(RuleError, match="names no table"):
        extended({"extends": "somebody"})


def test_an_unknown_table_is_refused() -> None:
    with pytest.raises(RuleError, match="unknown tables detectors"):
        Detectors.compile({"detectors": {}})


def test_the_shipped_table_is_fast_enough_for_any_clock() -> None:
    shipped_detectors().check_speed(time.thread_time)


def test_a_table_that_falls_out_of_the_automaton_is_refused() -> None:
    # Each of these has to remember at which of the last fifteen characters it may have begun.
    rows = {
        f"row{number}": {
            **_table()["detector"]["badge"],
            "anchor": f"[{first}-z][a-z .]{{14}}{number}",
            "pattern": f"[{first}-z][a-z .]{{14}}{number}",
            "match": [[f"zzzzzzzzzzzzzzz{number}", "<badge>"]],
            "clean": [],
        }
        for number, first in enumerate("bdfhjlnprt")
    }
    slow = Detectors.compile({"detector": rows})
    with pytest.raises(RuleError, match="times slower than a plain search"):
        slow.check_speed(time.thread_time)


def test_where_the_set_of_anchors_names_none_each_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of memory, RE2's Set says that nothing matches; the gate knows better."""
    detectors = Detectors.compile(detector_table())
    monkeypatch.setattr(detectors, "_which", lambda _: [])
    text = "mail jane@example.com, password=hunter2"
    assert redact_text(text, detectors) == redact_text(text)
    assert redact_text(text, detectors)[0] == "mail <email:1>, password=<secret>"


def test_an_anchor_that_hits_nearly_everywhere_is_refused() -> None:
    everywhere = Detectors.compile(_table(anchor="[a-z]"))
    with pytest.raises(RuleError, match=r"detector badge: its anchor hits [0-9]+ of 500"):
        everywhere.check_speed(time.thread_time)


def test_two_hundred_detectors_search_clean_text_at_200_mb_s() -> None:
    rows = dict(detector_table()["detector"])
    for number in range(200 - len(rows)):
        word = "".join("bdfgklmnprst"[number // 12**at % 12] + "aeo"[at] for at in range(3))
        anchor = f"(?i:{word}q)[ _-]?(?:id|nr|no)?[ =:#]{{1,3}}[0-9A-Z]"
        rows[f"row{number}"] = {
            "class": "person",
            "anchor": anchor,
            "pattern": anchor[:-8] + "([A-Z]{0,2}[0-9]{4,10})",
            "replacement": "<badge>",
            "match": [[f"{word}q AB1234", f"{word}q <badge>"]],
            "source": "a test",
        }
    many = Detectors.compile({**detector_table(), "detector": rows})
    data = SEPARATOR.encode().join(_clean_texts(["session", "passenger"]))
    least = float("inf")
    for _ in range(9):  # other work on the machine is not what is measured
        began = time.thread_time()
        many.suspects(data, [len(data) + 1])
        least = min(least, time.thread_time() - began)
    assert len(many.rows) == 200
    assert len(data) / least > 200e6


@pytest.mark.parametrize("size", [20, 1_499, 1_500, 20_000])
def test_a_finder_finds_what_is_there_in_whatever_bytes(size: int) -> None:
    has_nul, chance = finder(b"\\u0000"), random.Random(size)  # noqa: S311 - the same each time
    for _ in range(200):
        data = bytes(chance.choice(b'\\u01"\xff\x80\x00') for _ in range(size))
        at = chance.randrange(size)
        assert has_nul(data) == (b"\\u0000" in data)
        assert has_nul(data[:at] + b"\\u0000" + data[at:])
    assert not has_nul(b"\\u000" * (size // 5))


def test_a_finder_works_without_re2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scrubbers.detectors.re2", None)
    assert finder(b"_remarks")(b"x" * 2_000 + b"_remarks")
    assert not finder(b"_remarks")(b"x" * 2_000)
