"""Values that a request is known to hold: found wherever they show up, in the usual encodings.

Owns the encodings and when a short value counts. A detector knows what an e-mail address looks
like; this module knows what *this* person's address is, and so finds what has no shape: a name.
"""

from __future__ import annotations

import binascii
import html
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple
from urllib.parse import quote, quote_plus

from scrubbers.detectors import searchable

__all__ = ["KINDS", "KnownValues"]

KINDS = {
    "account": "account", "organization": "organization", "email": "email", "name": "name",
    "user": "user", "username": "user", "ip": "ip", "session": "session", "phone": "phone",
    "address": "address", "device": "device", "id": "id",
}  # fmt: skip
"""Word of a known value → word of its placeholder. Any other word becomes ``<id>``."""

_MIN_ANYWHERE = 4
_MIN_ENCODED = 6
_MAX_VALUE = 512
_MAX_VALUES = 512
_MAX_OTHERS = 48
_MANY = frozenset(("ip", "id"))
_MAX_LINE_DIGITS = 6
_MAX_OCCURRENCES = 300
# What stands before a short id: user 42, id=42, /users/42, "account_id": 42, #42.
_CONTEXT = (
    rb"(?:\b(?:user|account|customer|member|client|tenant|org|organi[sz]ation|person|subject"
    rb"|owner|author|kunde|konto|benutzer|mitglied)s?|(?:\b|_|[a-z])u?id|\bnr|\bno)"
    rb"[\"'\]]{0,2}(?:\s{0,2}(?:[=:/#(]|is|%2F|%3D|\x5b)|\s|#)\s{0,2}[\"'(\[]{0,2}"
)
_ID_CONTEXT = re.compile(rb"(?i)" + _CONTEXT + rb"\Z")
_EACH_ID_CONTEXT = re.compile(rb"(?i)(?=(" + _CONTEXT + rb"))")
_MANY_SHORT = 64
_LINE_CONTEXT = re.compile(
    rb"(?i)(?:\blines?|\bzeile|\bln|\blineno|\.[a-z]{1,5}:|\bport)[ =:]{0,2}\Z"
)
_BASE64_BYTE = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=_-")


class _Needle(NamedTuple):
    text: bytes
    kind: str
    # plain: bounded by other characters; short: needs an id context; exact: as it stands;
    # base64: takes the run around it along.
    mode: str


class KnownValues:
    """The values of one request. Holds them in memory only, and shows them nowhere.

    Args:
        values: Pairs of a word of `KINDS` and a value. Empty values are skipped. A value of fewer
            than 4 characters counts only where an id is expected: ``user 42``, ``/users/42``.

    Raises:
        OverflowError: More identifiers than any request has (512). Of addresses, cookies and
            the like, of which a client can send any number, the first 48 are taken.

    Source:
        DESIGN 3, "known values"; found plain, in other case, percent-, JSON-, HTML-, hex- and
        Base64-encoded (at each of three alignments).

    >>> known = KnownValues([("account", "4711"), ("name", "Jane Doe")])
    >>> known.found_in("no such row for 4711"), known.found_in("order 14711")
    (True, False)
    >>> known
    KnownValues(2)
    """

    __slots__ = ("_cores", "_exact", "_exact_cores", "_folded", "_pairs")

    def __init__(self, values: Iterable[tuple[str, str]]) -> None:
        pairs: dict[str, str] = {}
        others = 0
        for kind, value in values:
            form = searchable(value).strip()[:_MAX_VALUE]
            if not form or pairs.get(form) == "name":  # a name is looked for in its parts too
                continue
            word = KINDS.get(kind, "id")
            # Headers can name any number of addresses and cookies; who it is about comes first.
            if form not in pairs and word in _MANY:
                others += 1
                if others > _MAX_OTHERS:
                    continue
            pairs[form] = word
        if len(pairs) > _MAX_VALUES:
            raise OverflowError
        # The longest first: a whole name goes before its part. Requests carry a handful.
        longest = sorted(pairs, key=len, reverse=True)
        self._pairs = tuple((pairs[form], form) for form in longest)
        self._folded: tuple[_Needle, ...] | None = None
        self._exact: tuple[_Needle, ...] = ()
        self._cores: tuple[bytes, ...] = ()
        self._exact_cores: tuple[bytes, ...] = ()

    def __repr__(self) -> str:
        return f"KnownValues({len(self._pairs)})"

    def __bool__(self) -> bool:
        return bool(self._pairs)

    def __reduce__(self) -> str:
        raise TypeError("known values are not copied out of their request")

    def found_in(self, text: str) -> bool:
        """Tell whether one of the values stands in a text."""
        if not self._pairs:
            return False
        if not self._cores:
            self._outline()
        data = (text if text.isascii() else searchable(text)).encode()
        folded = data.lower()
        # Most texts hold none, and a few searches tell so; the rest is worked out only on a hit.
        if not any(core in folded for core in self._cores) and not any(
            core in data for core in self._exact_cores
        ):
            return False
        return next(self._hits(data), None) is not None

    def spans(
        self, data: bytes, opaque: Sequence[tuple[int, int]] = ()
    ) -> list[tuple[int, int, str]]:
        """Return where the values stand, sorted and without overlap.

        Args:
            data: UTF-8 bytes of a text in its searchable form.
            opaque: Spans of placeholders; nothing inside them counts.

        Raises:
            OverflowError: There are more than a message has.
        """
        found: list[tuple[int, int, str]] = []
        for start, end, kind in self._hits(data):
            if not any(begin < end and start < stop for begin, stop in opaque):
                found.append((start, end, kind))
            if len(found) > _MAX_OCCURRENCES:
                raise OverflowError
        found.sort(key=lambda span: (span[0], -span[1]))
        merged: list[tuple[int, int, str]] = []
        for start, end, kind in found:
            if merged and start < merged[-1][1]:
                first, last, word = merged[-1]
                merged[-1] = (first, max(last, end), word)
            else:
                merged.append((start, end, kind))
        return merged

    def _hits(self, data: bytes) -> Iterator[tuple[int, int, str]]:
        if self._folded is None:
            self._prepare()
        folded = data.lower()
        for needle in self._folded or ():
            if needle.mode == "short" and folded.count(needle.text) > _MANY_SHORT:
                yield from _occurrences_in_context(needle, folded, data)
            else:
                yield from _occurrences(needle, folded, data)
        for needle in self._exact:
            yield from _occurrences(needle, data, data)

    def _prepare(self) -> None:
        folded: dict[bytes, _Needle] = {}
        exact: dict[bytes, _Needle] = {}
        for kind, value in self._pairs:
            if len(value) < _MIN_ANYWHERE:
                folded.setdefault(
                    value.encode().lower(), _Needle(value.encode().lower(), kind, "short")
                )
                continue
            for spelling in _spellings(kind, value):
                for text in _encodings(spelling):
                    folded.setdefault(text, _Needle(text, kind, "plain"))
            if kind == "name":
                for part in re.findall(r"[^\W\d_]{4,}", value):
                    exact.setdefault(part.encode(), _Needle(part.encode(), kind, "plain"))
            if len(value.encode()) >= _MIN_ENCODED:
                raw = value.encode()
                folded.setdefault(raw.hex().encode(), _Needle(raw.hex().encode(), kind, "exact"))
                for text in _base64_cores(raw):
                    exact.setdefault(text, _Needle(text, kind, "base64"))
        self._folded, self._exact = tuple(folded.values()), tuple(exact.values())

    def _outline(self) -> None:
        """Work out texts of which one stands wherever a value does, in whatever encoding."""
        folded: set[bytes] = set()
        exact: set[bytes] = set()
        for kind, value in self._pairs:
            folded.update(_cores(kind, value))
            raw = value.encode()
            if kind == "name":
                folded.update(p.encode().lower() for p in re.findall(r"[^\W\d_]{4,}", value))
            if len(value) >= _MIN_ANYWHERE and len(raw) >= _MIN_ENCODED:
                folded.add(raw.hex().encode())
                exact |= _base64_cores(raw)
        self._cores, self._exact_cores = tuple(folded), tuple(exact)


def _cores(kind: str, value: str) -> Iterator[bytes]:
    """Yield texts of which one stands in each spelling and encoding but hex and Base64.

    No encoding changes an ASCII letter or digit, and no spelling divides a run of them.
    """
    # Bytes fold ASCII only: folding text can make a letter of what was none.
    raw = value.encode().lower()
    if raw.isalnum():  # most ids are one run
        yield raw
        return
    # Of an address the part before the @: `example` and `com` stand in many texts.
    if runs := _RUNS.findall(raw.partition(b"@")[0]) or _RUNS.findall(raw):
        yield max(runs, key=len)
        return
    for spelling in _spellings(kind, value):
        yield from _encodings(spelling)


_RUNS = re.compile(rb"[a-z0-9]+")


def _spellings(kind: str, value: str) -> Iterator[str]:
    """Yield a value as people and software write it, all in lower case but for other scripts."""
    yield value
    if not value.isascii():  # bytes fold ASCII only
        yield from (value.lower(), value.upper(), value.title())
    if kind == "name" and " " in value:
        words = value.split()
        for mark in ("", ".", "_", "-", " "):
            yield mark.join(words)
            yield mark.join(reversed(words))
        yield f"{words[-1]}, {' '.join(words[:-1])}"
    if kind == "ip" and value.count(".") == 3:  # noqa: PLR2004 -- dotted quad
        parts = value.split(".")
        for mark in ("-", "_"):
            yield mark.join(parts)
        yield ".".join(reversed(parts))


def _encodings(value: str) -> set[bytes]:
    forms = {
        value, quote(value, safe=""), quote_plus(value), quote(quote(value, safe=""), safe=""),
        json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1],
        html.escape(value), value.replace("@", "&#64;"), value.replace("@", "\\u0040"),
    }  # fmt: skip
    return {form.encode().lower() for form in forms}


def _base64_cores(raw: bytes) -> set[bytes]:
    """Return the characters that `raw` alone decides, at each of three alignments."""
    cores = set()
    for lead in range(3):
        whole = binascii.b2a_base64(bytes(lead) + raw, newline=False)
        first = (lead * 8 + 5) // 6
        last = (lead + len(raw)) * 8 // 6
        core = whole[first:last]
        cores.add(core)
        if b"+" in core or b"/" in core:
            cores.add(core.replace(b"+", b"-").replace(b"/", b"_"))
    return cores


def _occurrences(needle: _Needle, haystack: bytes, data: bytes) -> Iterator[tuple[int, int, str]]:
    text, kind, mode = needle
    start = haystack.find(text)
    while start >= 0:
        end = start + len(text)
        if mode == "base64":
            while start > 0 and data[start - 1] in _BASE64_BYTE:
                start -= 1
            while end < len(data) and data[end] in _BASE64_BYTE:
                end += 1
            yield start, end, kind
        elif mode == "exact" or (
            _stands_alone(data, start, end, text)
            and (mode != "short" or _ID_CONTEXT.search(data[max(0, start - 48) : start]))
        ):
            yield start, end, kind
        start = haystack.find(text, max(end, start + 1))


def _occurrences_in_context(
    needle: _Needle, haystack: bytes, data: bytes
) -> Iterator[tuple[int, int, str]]:
    """As `_occurrences` of a short value, in time that does not depend on how often it stands."""
    text, kind, _ = needle
    for context in _EACH_ID_CONTEXT.finditer(data):
        start = context.end(1)
        end = start + len(text)
        if haystack.startswith(text, start) and _stands_alone(data, start, end, text):
            yield start, end, kind


def _stands_alone(data: bytes, start: int, end: int, text: bytes) -> bool:
    """Tell whether a value is not just part of a longer number or word, nor a line's number."""
    before, after = data[start - 1 : start] if start else b"", data[end : end + 1]
    if text.isdigit():
        if before.isdigit() or after.isdigit():
            return False
        is_line = len(text) <= _MAX_LINE_DIGITS and _LINE_CONTEXT.search(
            data[max(0, start - 24) : start]
        )
        return not is_line
    if len(text) >= 2 * _MIN_ANYWHERE and not text.isalpha():
        return True
    return not (
        (_is_letter(before) and _is_letter(text[:1]))
        or (_is_letter(after) and _is_letter(text[-1:]))
    )


def _is_letter(character: bytes) -> bool:
    return character.isalpha() or character > b"\x7f"
