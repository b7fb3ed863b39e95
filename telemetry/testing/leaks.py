"""The search for planted values: every value, in every encoding, in everything that was recorded.

Owns the encodings and a search that is fast enough to be run over all of it. A finding says which
value, in which encoding and where; never the value.
"""

from __future__ import annotations

import hashlib
import hmac
import html
import json
import re
import unicodedata
import zlib
from base64 import (
    a85encode,
    b32encode,
    b64decode,
    b64encode,
    b85encode,
    urlsafe_b64decode,
    urlsafe_b64encode,
)
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
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

    With `thorough` also: backwards, in halves, one character per item of a list, without dashes
    and characters that show nothing; percent-encoded three times or in each character, HTML's
    numeric entities, Python's and octal escapes, quoted-printable, UTF-7, punycode; NFC, NFD,
    full-width and Cyrillic look-alikes; base 32, 58 and 85, decimal bytes; plain digests and HMAC
    under an empty key, whole or cut to 16 digits; and all of it inside gzip, zlib, bare deflate,
    Zstandard and Base64, four layers deep. What Avro, pickle, LZ4 and the segments of a JWT do
    with a short text is among these. A digest under a secret or a salt cannot be recognized.

    Args:
        planted: Value by name; the name is what a finding shows.
        thorough: Look in every encoding there is. Ten times slower, and only for values whose
            halves occur nowhere else, such as random ones.

    Raises:
        ValueError: A value is shorter than `SHORTEST` bytes.

    >>> leaks = Leaks({"Jane's address": "jane.doe@example.com"})
    >>> leaks.search([("a file", b"to=jane.doe%40example.com")])
    [Finding(name="Jane's address", form='url', place='a file')]
    """

    def __init__(self, planted: Mapping[str, str], *, thorough: bool = False) -> None:
        folded: dict[bytes, _Needle] = {}
        exact: dict[bytes, _Needle] = {}
        for name, value in planted.items():
            if len(value.replace(" ", "").encode()) < SHORTEST:
                raise ValueError(f"the planted value {name!r} is too short to be searched for")
            for form, text in _folded_forms(value):
                folded.setdefault(text, _Needle(text, name, form))
            for text in _base64_forms(value):
                exact.setdefault(text, _Needle(text, name, "base64"))
            if thorough:
                for form, text in _rare_folded_forms(value):
                    folded.setdefault(text, _Needle(text, name, form))
                for form, text in _rare_exact_forms(value):
                    exact.setdefault(text, _Needle(text, name, form))
        self._thorough = thorough
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
        for place, whole in places:
            for data in _opened(whole, _LAYERS) if self._thorough else (whole,):
                haystacks = [(self._folded, data.lower()), (self._exact, data)]
                if self._thorough:
                    haystacks.append((self._folded, _SHOWS_NOTHING.sub(b"", data.lower())))
                for index, haystack in haystacks:
                    for needle in index.hits(haystack):
                        found[Finding(needle.name, needle.form, place)] = None
        return list(found)


_LAYERS: Final = 4
_MOST_OPENED: Final = 4 * 1024 * 1024
_SHOWS_NOTHING: Final = re.compile(
    rb"[\s-]|\xc2\xad|\xe2\x80[\x8b-\x8f\xaa-\xae]|\xe2\x81[\xa0-\xaf]|\xef\xbb\xbf"
    rb"|\\u(?:00ad|200[b-f]|202[a-e]|206[0-9a-f]|feff)"
)
_BASE64: Final = re.compile(rb"[A-Za-z0-9+/_-]{16,}")
_HEADS: Final = re.compile(rb"\x1f\x8b\x08|x[\x01\x5e\x9c\xda]|\x28\xb5\x2f\xfd")


def _opened(data: bytes, layers: int) -> Iterator[bytes]:
    """Give what lies in `data`, and what lies packed in that, and so on."""
    yield data
    if not layers:
        return
    inner: list[bytes] = []
    if b"\\" in data:
        inner.append(_ESCAPED.sub(_unescaped, data))
    for head in _HEADS.finditer(data):
        inner += _unpacked(data[head.start() :])
    if len(data) < _MOST_OPENED:  # a bare stream has no head: only a whole one can be tried
        inner += _inflated(data, -zlib.MAX_WBITS)
    for run in _BASE64.findall(data):
        padding = b"=" * (-len(run) % 4)
        decode: Callable[[bytes], bytes] = (
            urlsafe_b64decode if b"-" in run or b"_" in run else b64decode
        )
        try:
            inner.append(decode(run + padding))
        except ValueError:
            continue
    for one in inner:
        yield from _opened(one, layers - 1)


_ESCAPED: Final = re.compile(rb"\\(?:u00([0-9a-fA-F]{2})|([\\\"/]))")


def _unescaped(match: re.Match[bytes]) -> bytes:
    """Undo one layer of JSON."""
    return bytes((int(match[1], 16),)) if match[1] else match[2]


def _unpacked(data: bytes) -> list[bytes]:
    if data[:1] == b"\x28":
        try:
            import zstandard  # noqa: PLC0415 - part of the extra `pipeline`
        except ImportError:
            return []
        try:
            engine = zstandard.ZstdDecompressor(max_window_size=8 * 1024 * 1024).decompressobj()
            return [engine.decompress(data[:_MOST_OPENED])]
        except zstandard.ZstdError:
            return []
    return _inflated(data, zlib.MAX_WBITS | 32)


def _inflated(data: bytes, window_bits: int) -> list[bytes]:
    try:
        opened = zlib.decompressobj(window_bits).decompress(data, _MOST_OPENED)
    except zlib.error:
        return []
    return [opened] if len(opened) >= SHORTEST else []


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


_FULL_WIDTH: Final = {code: code + 0xFEE0 for code in range(0x21, 0x7F)}
_CYRILLIC: Final = str.maketrans("aceopxyABCEHKMOPTX", "асеорхуАВСЕНКМОРТХ")  # noqa: RUF001
_BASE58: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


def _rare_folded_forms(value: str) -> Iterator[tuple[str, bytes]]:
    """Give further encodings whose letters' case means nothing, in lower case."""
    raw = value.encode()
    squeezed = _SHOWS_NOTHING.sub(b"", raw.lower())
    if len(squeezed) >= SHORTEST:
        yield "squeezed", squeezed
    yield "backwards", value[::-1].encode().lower()
    middle = len(value) // 2
    for part in (value[:middle], value[middle:], value[:12], value[-12:]):
        if len(part.encode()) >= SHORTEST:
            yield "part", part.encode().lower()
    for spelling in {
        unicodedata.normalize("NFC", value), unicodedata.normalize("NFD", value),
        value.translate(_FULL_WIDTH), value.translate(_CYRILLIC),
    } - {value}:  # fmt: skip
        yield "look-alike", spelling.encode().lower()
        yield "look-alike", json.dumps(spelling)[1:-1].encode().lower()
    for mark in ('","', '", "', "', '", "\n", ",", " "):
        yield "one by one", mark.join(value).encode().lower()
    thrice = quote(quote(quote(value, safe=""), safe=""), safe="")
    yield "url three times", thrice.encode().lower()
    everywhere = "".join(f"%{byte:02x}" for byte in raw)
    yield "url", everywhere.encode()
    yield "url twice", everywhere.replace("%", "%25").encode()
    yield "html", "".join(f"&#{ord(char)};" for char in value).encode()
    yield "html", "".join(f"&#x{ord(char):x};" for char in value).encode()
    yield "html", html.escape(value).replace("@", "&#64;").encode().lower()
    escaped = "".join(f"\\x{byte:02x}" for byte in raw)
    octal = "".join(f"\\{byte:03o}" for byte in raw)
    for form, text in (("escaped", escaped), ("octal", octal)):
        yield form, text.encode()
        yield form, text.replace("\\", "\\\\").encode()
    yield "quoted-printable", "".join(f"={byte:02x}" for byte in raw).encode()
    plain = re.sub(r"[^ -<>-~]", lambda m: "".join(f"={b:02x}" for b in m[0].encode()), value)
    yield "quoted-printable", plain.encode().lower()
    yield "quoted-printable", plain.replace("@", "=40").encode().lower()
    yield "utf-7", value.encode("utf-7").lower()
    yield "utf-7", value.replace("@", "+AEA-").encode("utf-7").replace(b"+-", b"+").lower()
    if not value.isascii():
        yield "punycode", value.encode("punycode").lower()
    for mark in (", ", ",", " "):
        yield "decimal", mark.join(map(str, raw)).encode()
    for lead in range(5):
        first, last = (lead * 8 + 4) // 5, (lead + len(raw)) * 8 // 5
        core = b32encode(bytes(lead) + raw)[first:last]
        if len(core) >= SHORTEST:
            yield "base32", core.lower()
    for digest in _digests(raw):
        yield "digest", digest.hex()[:16].encode()
    yield "digest", f"{zlib.crc32(raw):08x}".encode()


def _rare_exact_forms(value: str) -> Iterator[tuple[str, bytes]]:
    """Give further encodings in which the case of letters means something."""
    raw = value.encode()
    for lead in range(4):
        # A group of four bytes is written as five characters; those at the edges are cut off.
        inner = raw[(4 - lead) % 4 :]
        inner = inner[: len(inner) // 4 * 4]
        for encode in (a85encode, b85encode):
            if len(coded := encode(inner)) >= SHORTEST:
                yield "base85", coded
    number, digits = int.from_bytes(raw, "big"), ""
    while number:
        number, digit = divmod(number, 58)
        digits = _BASE58[digit] + digits
    yield "base58", digits.encode()
    for digest in _digests(raw):
        yield "digest", digest[:16]
        yield "digest", b64encode(digest)[:16]
        yield "digest", urlsafe_b64encode(digest)[:16]


def _digests(raw: bytes) -> Iterator[bytes]:
    """Give what somebody might take for a pseudonym (Relay: HMAC-SHA-1 under an empty key)."""
    for data in dict.fromkeys((raw, raw.lower())):
        for name in ("md5", "sha1", "sha224", "sha256", "sha384", "sha512", "sha3_256"):
            yield hashlib.new(name, data, usedforsecurity=False).digest()
            if name in ("md5", "sha1", "sha256", "sha512"):
                yield hmac.new(b"", data, name).digest()
        yield hashlib.blake2b(data).digest()
        yield hashlib.blake2s(data).digest()


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
