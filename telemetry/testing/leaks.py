"""The search for planted values: every value, in every encoding, in everything that was recorded.

Owns the encodings and a search that is fast enough to be run over all of it. A finding says which
value, in which encoding and where; never the value.
"""

from __future__ import annotations

import html
import json
from base64 import b64encode, urlsafe_b64encode
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import quote, quote_plus

from telemetry.testing.stand_in import StandIn

__all__ = ["SHORTEST", "Finding", "Leaks", "files_under", "received_by"]

SHORTEST: Final = 8
"""Fewest bytes of a planted value: shorter ones occur by chance."""

_GRAM: Final = 5
_STRIDE: Final = SHORTEST - _GRAM + 1
# What Base64 makes of eight bytes, without what their neighbours decide, has nine characters.
_ALIGNMENTS: Final = 3


class Finding(NamedTuple):
    """A planted value that is where it must not be.

    Attributes:
        name: Which value; never the value itself.
        form: How it was encoded: ``plain``, ``url``, ``base64``…
        place: Where it was found.
    """

    name: str
    form: str
    place: str


class _Needle(NamedTuple):
    text: bytes
    name: str
    form: str


class _Index:
    """Needles by their grams, so that a text is looked at only every `_STRIDE` bytes.

    Whatever holds a needle of at least `SHORTEST` bytes holds, at one of every `_STRIDE` successive
    places, a gram that lies in the needle's first `SHORTEST` bytes - or in any other window of that
    length. For each needle the window is chosen that it shares with the fewest others.
    """

    def __init__(self, needles: Iterable[_Needle]) -> None:
        needles = list(needles)
        common = Counter(
            needle.text[i : i + _GRAM]
            for needle in needles
            for i in range(len(needle.text) - _GRAM + 1)
        )
        self._by_gram: dict[bytes, list[tuple[int, _Needle]]] = defaultdict(list)
        for needle in needles:
            text = needle.text
            start = min(
                range(len(text) - SHORTEST + 1),
                key=lambda at: sum(common[text[i : i + _GRAM]] for i in range(at, at + _STRIDE)),
            )
            for i in range(start, start + _STRIDE):
                self._by_gram[text[i : i + _GRAM]].append((i, needle))

    def hits(self, data: bytes) -> Iterator[_Needle]:
        by_gram = self._by_gram
        for at in [at for at in range(0, len(data), _STRIDE) if data[at : at + _GRAM] in by_gram]:
            for offset, needle in by_gram[data[at : at + _GRAM]]:
                if at >= offset and data.startswith(needle.text, at - offset):
                    yield needle


class Leaks:
    """Searches bytes for planted values.

    Encodings: as it is and in any case of letters, without spaces, percent-encoded once and twice,
    form-encoded, JSON- and HTML-escaped, hexadecimal, Base64 at each of three alignments in both
    alphabets, and UTF-16.

    Args:
        planted: Value by name; the name is what a finding shows.

    Raises:
        ValueError: A value is shorter than `SHORTEST` bytes.

    >>> leaks = Leaks({"Jane's address": "jane.doe@example.com"})
    >>> leaks.search([("a file", b"to=jane.doe%40example.com")])
    [Finding(name="Jane's address", form='url', place='a file')]
    """

    def __init__(self, planted: Mapping[str, str]) -> None:
        folded: dict[bytes, _Needle] = {}
        exact: dict[bytes, _Needle] = {}
        for name, value in planted.items():
            if len(value.replace(" ", "").encode()) < SHORTEST:
                raise ValueError(f"the planted value {name!r} is too short to be searched for")
            for form, text in _folded_forms(value):
                folded.setdefault(text, _Needle(text, name, form))
            for text in _base64_forms(value):
                exact.setdefault(text, _Needle(text, name, "base64"))
        self.names = frozenset(planted)
        self.forms = len(folded) + len(exact)
        self._folded, self._exact = _Index(folded.values()), _Index(exact.values())

    def search(self, places: Iterable[tuple[str, bytes]]) -> list[Finding]:
        """Search what was recorded.

        Args:
            places: Name of a place and its bytes.

        Returns:
            Each value once for every encoding and place, in the order of places.
        """
        found: dict[Finding, None] = {}
        for place, data in places:
            for index, haystack in ((self._folded, data.lower()), (self._exact, data)):
                for needle in index.hits(haystack):
                    found[Finding(needle.name, needle.form, place)] = None
        return list(found)


def _folded_forms(value: str) -> Iterator[tuple[str, bytes]]:
    """Give encodings whose letters' case means nothing, in lower case."""
    spellings = {value.replace(" ", ""): "without spaces", value: "plain"}
    for text, form in spellings.items():
        for folded in dict.fromkeys((text, text.lower(), text.upper())):
            raw = folded.encode()
            yield form, raw.lower()
            for safe in ("", "/", "/:@!$'()*,;~"):
                # What a query, a path and RFC 3986 leave as it is.
                yield "url", quote(folded, safe=safe).encode().lower()
                yield "url", quote_plus(folded, safe=safe).encode().lower()
            yield "url twice", quote(quote(folded, safe=""), safe="").encode().lower()
            for ascii_only in (True, False):
                once = json.dumps(folded, ensure_ascii=ascii_only)[1:-1]
                yield "json", once.encode().lower()
                # A string of JSON inside JSON, as logs and breadcrumbs have it.
                twice = json.dumps(once, ensure_ascii=ascii_only)[1:-1]
                yield "json twice", twice.encode().lower()
            yield "json", "".join(f"\\u{ord(char):04x}" for char in folded).encode()
            yield "html", html.escape(folded).encode().lower()
            yield "hex", raw.hex().encode()
            yield "utf-16", folded.encode("utf-16-le").lower()
            yield "utf-16", folded.encode("utf-16-be").lower()


def _base64_forms(value: str) -> Iterator[bytes]:
    """Give what Base64 makes of a value at each alignment, without what its neighbours decide."""
    for text in dict.fromkeys((value, value.lower(), value.replace(" ", ""))):
        raw = text.encode()
        for lead in range(_ALIGNMENTS):
            first = (lead * 8 + 5) // 6
            last = (lead + len(raw)) * 8 // 6
            for coded in (b64encode(bytes(lead) + raw), urlsafe_b64encode(bytes(lead) + raw)):
                core = coded[first:last]
                if len(core) >= SHORTEST:
                    yield core


def received_by(recipients: Mapping[str, StandIn]) -> Iterator[tuple[str, bytes]]:
    """Give every request that stand-ins received: line, headers, body as sent and as decoded."""
    for name, stand_in in recipients.items():
        for number, request in enumerate(list(stand_in.requests), 1):
            yield f"{name}, request {number}", request.as_bytes()


def files_under(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Give every file below a folder, with its name; a file that is gone meanwhile is left out."""
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        name = path.relative_to(folder)
        yield f"name of file {name.suffix or name.name}", str(name).encode()
        try:
            yield f"file {name}", path.read_bytes()
        except OSError:
            continue
