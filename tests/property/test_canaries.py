"""A planted value comes out of no place in no encoding, but where the limitations page says so.

Each leaf of each record holds the same random address, written down in each way that anybody might
(docs: privacy.md g2). What comes out is searched for it in every encoding, digests and archives
included. Closed fields show nothing at all, whatever is put there.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
from encodings_of_values import ENCODINGS
from foreign_json import KINDS, leaves, planted, variants

from scrubbers.engine import scrub
from telemetry.errors import EventError
from telemetry.rules import CompiledRules
from telemetry.schema import Field
from telemetry.testing.leaks import Leaks

CANARY: Final = "q7z9f3k1m8b2c4d6h0@h0d6c4b2m8k1f3z9q7.example"
LIMITATIONS: Final = Path(__file__).parents[2] / "docs" / "limitations.md"

CUT: Final = frozenset(("first half", "last half", "first twelve", "last twelve"))
DIGESTS: Final = frozenset(
    ("md5", "sha1", "sha256", "sha512, in base64", "blake2", "crc32", "hmac under an empty key")
)
UNREADABLE: Final = frozenset(
    (
        *("with dashes", "with spaces", "one by one", "backwards", "decimal"),
        *("base32", "base58", "base85", "ascii85"),
        *("percent, each character", "html, each character", "html, each character in hex"),
        *("escaped, each character", "octal, each character", "quoted-printable, each character"),
        *("json, each character", "gzip", "zlib", "gzip in zlib in base64"),
    )
)
CODED: Final = frozenset(
    (
        *("base64", "base64, shifted by one", "base64, shifted by two"),
        *("base64, for URLs, unpadded", "hex", "HEX"),
    )
)
"""Found if the request is known to hold the value; without that, any long id looks like this."""
LIKE_A_NAME: Final = frozenset(
    (
        *("first twelve", "last twelve", "base64", "base64, for URLs, unpadded"),
        *("md5", "sha1", "sha256", "crc32", "hmac under an empty key"),
    )
)
"""Fits a name of an operation, or an id of a trace."""
EITHER: Final = frozenset(("zstd",))
"""Its bytes are not the same in each version of the library."""

_TEXT: Final = UNREADABLE | DIGESTS | CUT
STAYS: Final[dict[tuple[str, bool], frozenset[str]]] = {
    ("closed", False): frozenset(),
    ("closed", True): frozenset(),
    ("form", False): LIKE_A_NAME,
    ("form", True): LIKE_A_NAME - CODED,
    ("text", False): _TEXT | CODED,
    ("text", True): _TEXT,
    ("program", False): _TEXT | CODED,
    ("program", True): _TEXT | CODED,
}
"""Sort of field, whether the value is known → encodings in which it stays. All on LIMITATIONS."""


@cache
def searched() -> Leaks:
    return Leaks({"it": CANARY}, thorough=True)


def sort(entry: Field) -> str:
    """Tell how much a field's declaration leaves to be found."""
    if entry.static or entry.keep_path or entry.treatment == "shape":
        return "program"
    if entry.treatment in ("redact_text", "reduce_url"):
        return "text"
    return "form" if entry.treatment == "keep" and entry.form else "closed"


def places(kind: str) -> Iterator[tuple[str, CompiledRules, tuple[str, ...], Field]]:
    """Give every leaf of a kind; of events that differ in their properties only, these."""
    for number, (name, rules) in enumerate(variants(kind).items()):
        for path, entry in leaves(rules.record):
            if entry.role != "event_name" and (number == 0 or path[0] == "properties"):
                yield name, rules, path, entry


def event(name: str, path: tuple[str, ...], entry: Field, text: str) -> bytes:
    value: Any = text
    if entry.shape == "map" or entry.treatment == "shape":
        value = {text: "x", "a": text}
    elif entry.shape == "list":
        value = [text]
    whole = planted(path, value)
    return json.dumps({**whole, "event": name} if name else whole).encode()


@pytest.mark.parametrize("name", ENCODINGS)
def test_the_search_knows_each_encoding_wherever_it_stands(name: str) -> None:
    for data in (ENCODINGS[name](CANARY).encode(), f'"x {ENCODINGS[name](CANARY)} y"'.encode()):
        assert searched().search([("here", data)]), name
        assert searched().search([("here", json.dumps(data.decode()).encode())]), name


def test_the_search_finds_no_value_where_there_is_none() -> None:
    other = CANARY.translate(str.maketrans("q7z9f3k1", "w4x5v2j6"))
    for name, encode in ENCODINGS.items():
        if name not in CUT:
            assert searched().search([("here", encode(other).encode())]) == [], name


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_value_comes_out_nowhere_in_no_encoding(kind: str) -> None:
    out: dict[tuple[str, bool, str], list[bytes]] = defaultdict(list)
    count = 0
    for name, rules, path, entry in places(kind):
        for encoding, encode in ENCODINGS.items():
            raw = event(name, path, entry, encode(CANARY))
            for known in (False, True):
                try:
                    outcome = scrub(raw, rules, known=[("email", CANARY)] if known else ())
                except EventError as error:
                    shown = repr(error).encode()
                else:
                    shown = outcome.event + repr(outcome.remarks).encode()
                    shown += f" {outcome.event_id}".encode()
                out[sort(entry), known, encoding].append(shown)
                count += 1
    stayed: dict[tuple[str, bool], set[str]] = defaultdict(set)
    for (field, known, encoding), shown in out.items():
        if searched().search([("here", b"\n".join(shown))]):
            stayed[field, known].add(encoding)
    assert count >= 4 * len(ENCODINGS)
    for case, found in stayed.items():
        assert found <= STAYS[case] | (EITHER if case[0] in ("text", "program") else set()), case
    if kind == "error_event":  # it has fields of every sort: what is said to stay does
        assert {case: frozenset(stayed[case]) - EITHER for case in STAYS} == STAYS


@pytest.mark.parametrize(
    "said",
    [
        "backwards", "base 32, 58 or 85", "spaces or hyphens between its characters", "compressed",
        "each character escaped", "half of it", "digest", "decimal bytes", "one by one",
    ],
)  # fmt: skip
def test_what_stays_is_on_the_page_of_limitations(said: str) -> None:
    assert said in " ".join(LIMITATIONS.read_text("utf-8").split())
