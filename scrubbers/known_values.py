"""Values that a request is known to hold: found wherever they show up, in the usual encodings.

Owns the encodings and when a short value counts. A detector knows what an e-mail address looks
like; this module knows what *this* person's address is, and so finds what has no shape: a name.
"""

from __future__ import annotations

import html
import json
import re
from binascii import b2a_base64
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple
from urllib.parse import quote, quote_plus

from scrubbers.detectors import searchable

__all__ = ["KINDS", "PADDING", "KnownValues"]

KINDS = {
    "account": "account", "organization": "organization", "email": "email", "name": "name",
    "user": "user", "username": "user", "ip": "ip", "session": "session", "phone": "phone",
    "address": "address", "device": "device", "id": "id",
}  # fmt: skip
"""Word of a known value → word of its placeholder. Any other word becomes ``<id>``."""

_MIN_ANYWHERE = 4
_MIN_ENCODED = 6
_OUTLINE = 14
# A value of nine characters is a run of eleven in Base64 at least: longer than nearly all words.
_MIN_RUN_OF = 9
_MAX_RUN_OF = 45
# Of these Base64 makes letters and digits only: for + and / it takes a byte whose last six bits are
# all set but one, as in ?, > and ~, or one that is no ASCII.
_SOBER = re.compile(r"[ -=@-}]*")
_MAX_VALUE = 512
_MAX_VALUES = 512
_MAX_OTHERS = 48
_MANY = frozenset(("ip", "id"))
# A part of a name that is no longer is a word of programs too often: 'wood', 'page', 'long'.
_MIN_LOWER_PART = 5
_QUOTES = frozenset((b"'", b'"', b"%"))
_VALUE_ENDS = _QUOTES | {b"", b"&", b";", b",", b" ", b")"}
_MAX_LINE_DIGITS = 6
_MAX_OCCURRENCES = 300
_MAX_HITS = 4_096
_UUID = re.compile(r"(?i)[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{32}")
_UUID_LENGTHS = (32, 36)
# Of random hexadecimal digits one in 10^8 ids holds eight given ones.
_MIN_IN_HEX = 8
PADDING = "000"
"""Zeros before a number that fills an id: with them `in_forms` may find what is said not to be."""
_MAX_NUMBER_DIGITS = 38  # 128 bits
_HEXADECIMAL = re.compile(r"(?i)(?:0x)?[0-9a-f]+(?:-[0-9a-f]+)*")
_VERSION_BEFORE = re.compile(rb"[0-9]\.?\Z")
_VERSION_BEHIND = re.compile(rb"\.?[0-9]")
# A shorter text is no address (1.1.1.1, ::1:2:3); headers of addresses can hold any number of them.
_MIN_ADDRESS = 7
# Text behind a value that was cut: it goes with it.
_REST = re.compile(rb"[^\s\"'<>,;&\x1e]{0,65536}")
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
    rb"(?i)(?:\b(?:lines?|zeile|ln|lineno)[ =:]{0,2}|\.(?:py|pyx|[cm]?[jt]sx?|rb|go|java|kt|php|rs"
    rb"|cc?|cpp|h|cs|swift|scala|vue|html?|sql|exs?|erl|lua|p[lm]|sh|dart):(?:[0-9]{1,6}:)?)\Z"
)
_PORT_CONTEXT = re.compile(rb"(?i)\bport[ =:]{0,2}\Z")
_MAX_PORT_DIGITS = 5
_BASE64_BYTE = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=_-")
_NO_DIGITS = bytes(byte for byte in range(256) if byte not in b"0123456789")
_IN_RUNS = bytes(ord("x") if byte in _BASE64_BYTE - {ord("=")} else ord(" ") for byte in range(256))
_RUN_OF = tuple(b"x" * (size * 4 // 3 - 1) for size in range(_MAX_RUN_OF + 1))
_IN_PLAIN_RUNS = bytes(byte if chr(at).isalnum() else ord(" ") for at, byte in enumerate(_IN_RUNS))

_Core = tuple[str, int]
"""A text that stands wherever a value does, and the place of that value."""


class _Needle(NamedTuple):
    text: bytes
    kind: str
    # plain: bounded by other characters; short: needs an id context; exact: as it stands;
    # base64: takes the run around it along; cut: takes along what follows without a space;
    # told: needs quotes or an assignment around it, or an id context.
    mode: str


class KnownValues:
    """The values of one request. Holds them in memory only, and shows them nowhere.

    Args:
        values: Pairs of a word of `KINDS` and a value. Empty values are skipped. A value of fewer
            than 4 characters counts only where an id is expected: ``user 42``, ``/users/42``.

    Raises:
        OverflowError: More identifiers than any request has (512). Of addresses, and of cookies
            and the like, of which a client can send any number, the first 48 each are taken.

    Source:
        DESIGN 3, "known values"; found plain, in other case, percent-, JSON-, HTML-, hex- and
        Base64-encoded (at each of three alignments).

    >>> known = KnownValues([("account", "4711"), ("name", "Jane Doe")])
    >>> known.found_in("no such row for 4711"), known.found_in("order 14711")
    (True, False)
    >>> known
    KnownValues(2)
    """

    __slots__ = ("_given", "_needles", "_outlined", "_settled")

    def __init__(self, values: Iterable[tuple[str, str]]) -> None:
        # Worked out when first needed, the needles value by value: most texts hold none.
        self._given = tuple(values)
        self._settled: tuple[tuple[str, str], ...] | None = None
        self._outlined: tuple[list[_Core], list[_Core]] | None = None
        self._needles: dict[int, tuple[list[_Needle], list[_Needle]]] = {}
        if len(self._given) > _MAX_OTHERS:
            _ = self._pairs

    def __repr__(self) -> str:
        return f"KnownValues({len(self._pairs)})"

    def __bool__(self) -> bool:
        return bool(self._pairs)

    def __reduce__(self) -> str:
        raise TypeError("known values are not copied out of their request")

    @property
    def _pairs(self) -> tuple[tuple[str, str], ...]:
        """Words and values, each value once."""
        if self._settled is not None:
            return self._settled
        pairs: dict[str, str] = {}
        taken = dict.fromkeys(_MANY, 0)
        for kind, value in self._given:
            form = _form(value)
            if not form or pairs.get(form) == "name":  # a name is looked for in its parts too
                continue
            word = KINDS.get(kind, "id")
            # Headers can name any number of addresses and cookies; who it is about comes first.
            if word in _MANY and form not in pairs:
                if word == "ip" and len(form) < _MIN_ADDRESS:
                    continue
                taken[word] += 1
                if taken[word] > _MAX_OTHERS:
                    continue
            pairs[form] = word
        if len(pairs) > _MAX_VALUES:
            raise OverflowError
        # The longest first: a whole name goes before its part. Requests carry a handful.
        self._settled = tuple((pairs[form], form) for form in sorted(pairs, key=len, reverse=True))
        return self._settled

    def found_in(self, text: str) -> bool:
        """Tell whether one of the values stands in a text."""
        form = searchable(text)
        data = form.encode()
        near = self.near(form, data)
        return near is not None and next(near._hits(data), None) is not None  # noqa: SLF001 - ours

    def near(self, text: str, data: bytes) -> KnownValues | None:
        """Leave out the values that cannot stand in a text; None if that is all, as in most texts.

        Args:
            text: In its searchable form; texts of one event with a character between each two.
            data: The same as UTF-8.

        Returns:
            Values that find in every part of the text what these find.
        """
        if text.isascii():
            folded, exact = text.lower(), text
        else:
            # One character a byte: bytes fold ASCII only, and a search in text takes half the time.
            folded, exact = data.lower().decode("latin-1"), data.decode("latin-1")
        if not self._may_stand_in(folded, exact, data):
            return None
        if not (near := self._near(folded, exact)):
            return None
        narrowed = KnownValues(())
        narrowed._settled = tuple(self._pairs[n] for n in near)
        return narrowed

    def _may_stand_in(self, folded: str, exact: str, data: bytes) -> bool:
        """Tell in few searches that a text holds none of the values.

        Each event passes here, so nothing is worked out that is not needed to say no.
        """
        # Many values are numbers, or numbers with marks between them, and few texts have many.
        digits = data.translate(None, _NO_DIGITS).decode("ascii")
        coded: list[str] = []
        for kind, value in self._given:
            form = value
            # No encoding changes letters and digits. Most ids are one run of them.
            if value.isascii() and value.isalnum() and kind != "name":
                core = value.lower()
                if len(value) in _UUID_LENGTHS and _UUID.fullmatch(value):
                    core = core[:8]  # with hyphens and without them
                if (not core.isdigit() or core in digits) and core in folded:
                    return True
            else:
                form = _form(value)
                # Loops in full: twice as fast as any(…), and each event passes here.
                for core in _hints(kind, form, digits):
                    if core in folded:
                        return True
            size = len(form)
            if size >= _MIN_ENCODED or (
                size >= _MIN_ANYWHERE and len(form.encode()) >= _MIN_ENCODED
            ):
                coded.append(form)
        if not coded:
            return False
        # In hex or Base64 a value is a run of characters, longer by a third or more. If it is not
        # very short, few texts that people write hold a run of so many.
        runs = data.translate(_IN_PLAIN_RUNS if _SOBER.fullmatch("".join(coded)) else _IN_RUNS)
        shortest = min(map(len, coded))
        if runs.find(_RUN_OF[min(max(shortest, _MIN_RUN_OF), _MAX_RUN_OF)]) >= 0:
            return True
        return shortest < _MIN_RUN_OF and any(
            core in (folded if folds else exact)
            for form in coded
            if len(form) < _MIN_RUN_OF
            for core, folds in _coded_cores(form.encode())
        )

    def _near(self, folded: str, exact: str) -> list[int]:
        """Give the places of the values of which an outline stands in a text."""
        if self._outlined is None:
            self._outlined = self._outline()
        in_folded, in_exact = self._outlined
        near = {n for core, n in in_folded if core in folded}
        near.update(n for core, n in in_exact if core in exact)
        return sorted(near)

    def texts_of(self, joined: str, ends: Sequence[int]) -> set[int] | None:
        """Tell in which of several texts a value stands.

        Args:
            joined: The texts in their searchable form, with a character between each two.
            ends: For each text the byte behind that character: the running sum of lengths + 1.

        Returns:
            Places of texts, counted from 0; None if there are more hits than any real event has.
        """
        found: set[int] = set()
        for number, (start, _, _) in enumerate(self._hits(joined.encode())):
            if number > _MAX_HITS:
                return None
            found.add(bisect_right(ends, start))
        return found

    def may_stand_in(self, text: str) -> bool:
        """Tell quickly whether any of the values can be in an ASCII text; most hold none."""
        return self._may_stand_in(text.lower(), text, text.encode())

    def may_fill(self, ids: str) -> bool:
        """As `may_stand_in`, for hexadecimal ids: what `in_forms` would find in one, or more.

        Ids are long runs of characters, as is what Base64 makes of a value; but they are not
        looked for in Base64, and so need not be asked for it.
        """
        folded = ids.lower().replace("-", "")
        for _, value in dict.fromkeys(self._given):
            form = _form(value)
            if len(form) < _MIN_ANYWHERE:
                continue
            if form.replace("-", "").lower().lstrip("0") in folded:
                return True
            if form.encode().hex() in folded:
                return True
            if form.isdecimal() and len(form) <= _MAX_NUMBER_DIGITS and f"{int(form):x}" in folded:
                return True
        return False

    def in_forms(self, texts: Collection[str]) -> set[str]:
        """Tell which of some technical texts hold a value, though they are of their field's form.

        Stricter than a search of free text where chance would else decide: of a hexadecimal id at
        least eight digits must be a value's, or all that are not leading zeros, as text or as
        number; and what is part of a longer version is no value: 2026.11.1 is not account 2026.

        Args:
            texts: Releases, operations, ids and the like; all ASCII.
        """
        whole: set[str] = set()
        parts: list[str] = []
        for _, value in self._pairs:
            plain = value.replace("-", "").lower()
            if len(value) < _MIN_ANYWHERE:
                continue
            code = value.encode().hex()
            whole.add(code)
            if len(value) >= _MIN_ENCODED:
                parts.append(code)
            if _HEXADECIMAL.fullmatch(plain):
                whole.add(plain.lstrip("0"))
                if len(plain) >= _MIN_IN_HEX:
                    parts.append(plain)
                if plain.isdigit() and len(plain) <= _MAX_NUMBER_DIGITS:
                    whole.add(f"{int(plain):x}")
        return {text for text in texts if self._in_form(text, whole, parts)}

    def _in_form(self, text: str, whole: Collection[str], parts: Iterable[str]) -> bool:
        if _HEXADECIMAL.fullmatch(text):
            plain = text.lower().removeprefix("0x").replace("-", "")
            return plain.lstrip("0") in whole or any(part in plain for part in parts)
        data = text.encode()
        return any(
            data[start:end].strip(b"0123456789.")
            or not (_VERSION_BEFORE.search(data[:start]) or _VERSION_BEHIND.match(data[end:]))
            for start, end, _ in self.spans(data)
        )

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
        folded = data.lower()
        for n in self._near(folded.decode("latin-1"), data.decode("latin-1")):
            for_folded, for_exact = self._needles.get(n) or self._prepare(n)
            for needle in for_folded:
                if needle.mode == "short" and folded.count(needle.text) > _MANY_SHORT:
                    yield from _occurrences_in_context(needle, folded, data)
                else:
                    yield from _occurrences(needle, folded, data)
            for needle in for_exact:
                yield from _occurrences(needle, data, data)

    def _outline(self) -> tuple[list[_Core], list[_Core]]:
        """Work out texts of which one stands wherever a value does, in whatever encoding.

        Returns:
            Those to look for in the text without case, and those with it.
        """
        in_folded: list[_Core] = []
        in_exact: list[_Core] = []
        for n, (kind, value) in enumerate(self._pairs):
            raw = value.encode()
            plain = [value.lower()] if raw.isalnum() and kind != "name" else _cores(kind, value)
            if len(value) in _UUID_LENGTHS and _UUID.fullmatch(value):
                plain = [value[:8].lower()]  # with its hyphens and without them
            in_folded += [(core, n) for core in plain]
            if len(value) >= _MIN_ANYWHERE and len(raw) >= _MIN_ENCODED:
                for core, folds in _coded_cores(raw):
                    (in_folded if folds else in_exact).append((core, n))
        return in_folded, in_exact

    def _prepare(self, n: int) -> tuple[list[_Needle], list[_Needle]]:
        """Write out one value in all spellings and encodings."""
        kind, value = self._pairs[n]
        folded: dict[bytes, _Needle] = {}
        exact: dict[bytes, _Needle] = {}
        raw = value.encode()
        plain = "cut" if len(value) == _MAX_VALUE else "plain"
        if len(value) < _MIN_ANYWHERE:
            folded[raw.lower()] = _Needle(raw.lower(), kind, "short")
        else:
            for spelling in _spellings(kind, value):
                for text in _encodings(spelling):
                    folded.setdefault(text, _Needle(text, kind, plain))
            if kind == "name":
                for part in re.findall(r"[^\W\d_]{4,}", value):
                    exact.setdefault(part.encode(), _Needle(part.encode(), kind, "plain"))
                    if len(part) >= _MIN_LOWER_PART:
                        lower = part.lower().encode()
                        folded.setdefault(lower, _Needle(lower, kind, "told"))
            if len(raw) >= _MIN_ENCODED:
                folded.setdefault(raw.hex().encode(), _Needle(raw.hex().encode(), kind, "exact"))
                for text in _base64_cores(raw):
                    exact.setdefault(text, _Needle(text, kind, "base64"))
        self._needles[n] = list(folded.values()), list(exact.values())
        return self._needles[n]


def _form(value: str) -> str:
    """Give a value as it is looked for."""
    return (value if value.isascii() else searchable(value)).strip()[:_MAX_VALUE]


def _hints(kind: str, form: str, digits: str) -> list[str]:
    """As `_cores`, without those that cannot stand in a text with these digits."""
    if not form:
        return []
    if len(form) in _UUID_LENGTHS and _UUID.fullmatch(form):
        return [form[:8].lower()]
    if kind == "ip" and form.count(".") == 3:  # noqa: PLR2004 - dotted quad
        parts = form.split(".")
        run, turned = "".join(parts), "".join(reversed(parts))
        if run.isascii() and run.isdecimal() and run not in digits and turned not in digits:
            return []
        return _cores(kind, form)
    head = form.partition("@")[0]
    return [head.lower()] if kind != "name" and _RUN.fullmatch(head) else _cores(kind, form)


def _coded_cores(raw: bytes) -> list[tuple[str, bool]]:
    """Give texts of which one stands wherever a value is written in hex or Base64.

    Returns:
        Texts, and whether case does not count.
    """
    # Base64 writes three bytes as four characters. Of each alignment some whole groups lie within
    # the value; the more of them are looked for, the faster it goes.
    size = (min(len(raw), _OUTLINE) - 2) // 3 * 3
    wide = size // 3 * 4
    shifted = raw[:size] + raw[2 : 2 + size] + raw[1 : 1 + size]
    groups = b2a_base64(shifted, newline=False).decode()
    if "+" in groups or "/" in groups:
        groups += groups.replace("+", "-").replace("/", "_")
    return [
        (raw[:_OUTLINE].hex(), True),
        *((groups[at : at + wide], False) for at in range(0, len(groups), wide)),
    ]


def _cores(kind: str, value: str) -> list[str]:
    """Give texts of which one stands in each spelling and encoding but hex and Base64.

    No encoding changes a character that URLs leave alone, and no spelling divides a run of them.
    What is not ASCII is written with a character a byte.
    """
    if kind == "ip" and value.count(".") == 3:  # noqa: PLR2004 - dotted quad
        return list(_spellings(kind, value))
    # Bytes fold ASCII only: folding text can make a letter of what was none.
    raw = value.encode().lower()
    # Of an address the part before the @: `example.com` stands in many texts.
    runs = _RUNS.findall(raw.partition(b"@")[0]) or _RUNS.findall(raw)
    if runs:
        cores = [max(runs, key=len)]
    else:
        cores = [form for spelling in _spellings(kind, value) for form in _encodings(spelling)]
    if kind == "name":
        cores += [part.encode().lower() for part in re.findall(r"[^\W\d_]{4,}", value)]
    return [core.decode("latin-1") for core in cores]


_RUNS = re.compile(rb"[a-z0-9._-]+")
_RUN = re.compile(r"[A-Za-z0-9._-]+")


def _spellings(kind: str, value: str) -> Iterator[str]:
    """Yield a value as people and software write it, all in lower case but for other scripts."""
    yield value
    if len(value) in _UUID_LENGTHS and _UUID.fullmatch(value):
        plain = value.replace("-", "")
        yield plain
        yield "-".join((plain[:8], plain[8:12], plain[12:16], plain[16:20], plain[20:]))
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
        whole = b2a_base64(bytes(lead) + raw, newline=False)
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
        elif mode == "cut":
            rest = _REST.match(data, end)
            end = rest.end() if rest else end
            yield start, end, kind
        elif mode == "exact" or (
            _stands_alone(data, start, end, text)
            and (mode != "short" or _ID_CONTEXT.search(data[max(0, start - 48) : start]))
            and (mode != "told" or _is_told(data, start, end))
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
        ahead = data[max(0, start - 48) : start]
        is_line = len(text) <= _MAX_LINE_DIGITS and _LINE_CONTEXT.search(ahead)
        is_port = len(text) <= _MAX_PORT_DIGITS and _PORT_CONTEXT.search(ahead)
        return not (is_line or is_port) or bool(_ID_CONTEXT.search(ahead))
    if len(text) >= 2 * _MIN_ANYWHERE and not text.isalpha():
        return True
    return not (
        (_is_letter(before) and _is_letter(text[:1]))
        or (_is_letter(after) and _is_letter(text[-1:]))
    )


def _is_told(data: bytes, start: int, end: int) -> bool:
    """Tell whether a word stands where a value does: ``'word'``, ``'%word%'``, ``=word``."""
    before, after = data[start - 1 : start], data[end : end + 1]
    if after in _VALUE_ENDS and (before == b"=" or (before in _QUOTES and after in _QUOTES)):
        return bool(before)
    return bool(_ID_CONTEXT.search(data[max(0, start - 48) : start]))


def _is_letter(character: bytes) -> bool:
    return character.isalpha() or character > b"\x7f"
