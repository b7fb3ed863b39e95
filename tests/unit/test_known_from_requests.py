"""What a request gives away about its person is known, however the client spells it."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Any

import pytest
from making import shipped

from scrubbers import KnownValues, redact_text
from scrubbers.engine import scrub

ADDRESS = "198.51.100.77"


def message(text: str, request: dict[str, Any]) -> str:
    raw = json.dumps({"message": text, "request": request}).encode()
    outcome = scrub(raw, shipped()[1].rules_for("error_event", raw))
    return str(json.loads(outcome.event)["message"])


@pytest.mark.parametrize(
    "name",
    [
        *("X-Forwarded-For", "x-forwarded-for", "X-FORWARDED-FOR", "X_Forwarded_For"),
        *("x_forwarded_for", "X_FORWARDED_FOR", "HTTP_X_FORWARDED_FOR"),
        *("X-Real-Ip", "X-Real-IP", "X-REAL-IP", "HTTP_X_REAL_IP"),
        *("Remote-Addr", "remote-addr", "REMOTE_ADDR", "remote_addr"),
    ],
)
@pytest.mark.parametrize("form", ["map", "pairs", "list"])
def test_the_header_of_an_address_is_known_in_each_spelling(name: str, form: str) -> None:
    headers: Any = {"map": {name: ADDRESS}, "pairs": [[name, ADDRESS]], "list": {name: [ADDRESS]}}
    said = message("from 198-51-100-77", {"headers": headers[form]})
    assert said == "from <ip>"


@pytest.mark.parametrize("name", ["Authorization", "AUTHORIZATION", "HTTP_AUTHORIZATION"])
@pytest.mark.parametrize(
    ("value", "text", "wanted"),
    [
        (
            'Digest username="mareike.x", realm="r"',
            "no such login mareike.x",
            "no such login <user>",
        ),
        ("Digest realm=r, username=mareike.x, uri=/", "login mareike.x", "login <user>"),
        (
            f"Basic {b64encode(b'mareikex:s3cret pass').decode()}",
            "mareikex gave s3cret pass",
            "<user> gave <id>",
        ),
        ("Bearer abcdef0123", "saw abcdef0123 of mareikex", "saw <id> of mareikex"),
        ("Basic ???", "of mareikex", "of mareikex"),
        ("Basic bm9ib2R5", "nobody", "nobody"),
    ],
)
def test_who_logs_in_by_a_header_is_known(name: str, value: str, text: str, wanted: str) -> None:
    assert message(text, {"headers": {name: value}}) == wanted


@pytest.mark.parametrize(
    ("url", "text", "wanted"),
    [
        ("https://mareikex:pw12345@example.com/x", "mareikex: pw12345", "<user>: <id>"),
        ("https://mareike%2Ex@example.com/x", "of mareike.x", "of <user>"),
        ("https://git:@example.com/x", "git failed", "git failed"),
        ("https://postgres:pw12345@example.com/x", "postgres failed", "postgres failed"),
        ("https://example.com/@mareikex", "of mareikex", "of mareikex"),
        ("https://[mareikex@", "of mareikex", "of mareikex"),
    ],
)
def test_who_stands_in_a_url_is_known(url: str, text: str, wanted: str) -> None:
    assert message(text, {"url": url}) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("SELECT 1 WHERE name = 'planted'", "SELECT 1 WHERE name = '<name>'"),
        ("name LIKE '%planted%'", "name LIKE '%<name>%'"),
        ('{"last": "planted"}', '{"last": "<name>"}'),
        ("n=planted&x=1", "n=<name>&x=1"),
        ("GET /users/planted/edit", "GET /users/<name>/edit"),
        ("GET /users/MAREIKE", "GET /users/<name>"),
        ("a tree was planted here", "a tree was planted here"),
        ("def planted(self): ...", "def planted(self): ..."),
        ("app/planted/views.py", "app/planted/views.py"),
        ("'implanted' 'planted_at'", "'implanted' 'planted_at'"),
        ("KeyError: 'ray'", "KeyError: 'ray'"),
        ("a 'wood' cut", "a 'wood' cut"),
    ],
)
def test_a_part_of_a_name_in_lower_case_goes_where_a_value_stands(text: str, wanted: str) -> None:
    known = KnownValues([("name", "Mareike Planted"), ("name", "Ray Wood")])
    assert redact_text(text, known=known)[0] == wanted
