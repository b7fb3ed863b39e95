r"""Detectors of personal data in text: a table of patterns, checked when it is loaded.

Owns the searchable form of a text, the gate, and where in a text a validated detector finds what.
Knows no field and no event. All text is UTF-8 bytes here, all offsets are bytes.

A detector has a short *anchor*, which hits whenever its *pattern* does. The gate is one RE2
automaton of all anchors: its speed depends neither on their number nor, RE2 being what it is, on
what an attacker sends. Patterns run only where their anchor hit.

RE2's ``Set`` is never the gate: out of memory it reports "no match" (google/re2 #136), while a
single expression falls back to a slower engine. Behind the gate the Set says which anchors hit;
where it then names none, each anchor is asked.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from scrubbers.model import RuleError
from scrubbers.validators import VALIDATORS, Span, Validator

try:
    import re2
except ImportError:  # musl and CPython 3.15 have no wheel; `compile` says so, nothing scans less
    re2 = None

__all__ = ["SEPARATOR", "Detector", "Detectors", "finder", "searchable"]

SEPARATOR = "\x1e"
_SEPARATOR_BYTE = SEPARATOR.encode()
"""Stands between the fields of an event when they are searched as one text."""

_MAX_MARKS = 30
_MAX_LIGATURES = 16
_WORD_SIGNS = re.compile("[\u3300-\u3357\u337f\u33ae\u33af]+")
_LIGATURES = ("\ufdfa", "\ufdfb")
_MAX_ANCHOR_POSITIONS = 16
_MAX_REPEAT = 1_000
_MAX_CANDIDATES = 4_096
_SHORT = 1_500
# For the states that RE2 keeps of an automaton. Random text visits so many that its default of 8 MB
# does not do: it would fall back to an engine a hundred times slower. Nothing is taken beforehand.
_AUTOMATON_BYTES = 32 * 1024 * 1024
_NOTHING = r"[^\x{0}-\x{10ffff}]"
_MAX_SLOWNESS = 30
_MAX_CLEAN_HITS = 150
_SYLLABLES = (
    "con", "fig", "ta", "ble", "in", "dex", "re", "quest", "ser", "ver", "mod", "ule", "er", "ror",
    "po", "ol", "la", "yer", "cu", "be", "mi", "ra", "ti", "on", "un", "der", "fe", "ld", "de",
)  # fmt: skip
_JOINTS = (" ", " ", " ", "_", ".", "(", ") ", ", ", ": ", "/", " - ", "[", "] ", ";", " 7 ", "")
# What known values, URLs and the text itself put in place of a value, whatever the table says.
_FIXED_KINDS = (
    "redacted", "truncated", "account", "organization", "email", "name", "user", "ip", "session",
    "phone", "address", "device", "id",
)  # fmt: skip
_REPLACEMENT = re.compile(r"<([a-z_]{1,20})(:#)?>")
_MACRO = re.compile(r"\{\{([a-z0-9_]{1,20})\}\}")
_FIELDS = frozenset(
    {"class", "anchor", "pattern", "validator", "replacement", "match", "clean", "source"}
)
# Unicode's format characters (Cf) and others that show nothing: they split a value without a trace.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u0600-\u0605\u061c\u06dd\u070f\u0890-\u0891\u08e2\u115f-\u1160\u17b4-\u17b5"
    "\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\u3164\ufe00-\ufe0f\ufeff"
    "\uffa0\ufff9-\ufffb\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0001\U000e0020-\U000e007f\U000e0100-\U000e01ef]"
)


def searchable(text: str) -> str:
    """Return the form of a text in which values are looked for.

    Args:
        text: Any text, also with lone surrogates.

    Returns:
        ASCII text as it is; other text in NFKC without characters that show nothing, and with
        ``?`` for lone surrogates. Twice is the same as once.

    Source:
        UAX 15; UTS 39: an address with a full-width @ or a zero-width space in it is an address.

    >>> searchable("jane\uff20example\u200b.com")
    'jane@example.com'
    """
    if text.isascii():
        return text
    form = _normalized(text.encode("utf-8", "replace").decode("utf-8"))
    shown = _INVISIBLE.sub("", form)
    return form if shown == form else _normalized(shown)


def _normalized(text: str) -> str:
    """Give the NFKC form of a text in linear time.

    Combining marks are put into an order, which takes the square of how many stand together; two
    ligatures stand for whole sentences, and squares for words, many of them put together
    from marks. A mebibyte of these would take minutes, seconds, a third of a second.
    Nobody's data is written in such squares: a question mark stands for any number of them.

    Source:
        UAX 15, 13: no language puts more than 30 marks together.
    """
    text = _WORD_SIGNS.sub("?", text)
    for ligature in _LIGATURES:
        if text.count(ligature) > _MAX_LIGATURES:
            text = text.replace(ligature, "?")
    form = unicodedata.normalize("NFKC", _without_piles(text))
    # A prefix of what is normalized is normalized, so that no third pass would change it.
    return _without_piles(form)


def _without_piles(text: str) -> str:
    """Take the marks behind the thirtieth of those that stand together."""
    # Whatever holds so many in a row holds one at a place that is looked at here.
    if len(text) <= _MAX_MARKS or not _marks()[0].search(text[::_MAX_MARKS]):
        return text
    return _marks()[1].sub(r"\1", text)


@cache
def _marks() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Compile what finds a combining mark, and too many of them."""
    # Those of all planes that have any; a new version of Unicode must not need a new one of this.
    found = (chr(code) for code in range(0x300, 0x20000) if unicodedata.combining(chr(code)))
    mark = f"[{''.join(found)}]"
    return re.compile(mark), re.compile(f"({mark}{{{_MAX_MARKS}}}){mark}+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Detector:
    """One row of ``detectors.toml``.

    Attributes:
        id: Its name in remarks and metrics.
        kind: The word in its placeholder.
        category: Class of data: secret, contact, network, financial, government, device, person.
        anchor: Short expression that hits wherever `pattern` does.
        pattern: Expression of the value. With groups, the one that takes part is the value.
        validator: Name in `scrubbers.validators.VALIDATORS`, or "".
        numbered: Equal values get equal numbers, so that a reader can tell them apart.
        match: Pairs of a text and what becomes of it.
        clean: Texts that look alike and stay.
        source: Where the format is defined.
    """

    id: str
    kind: str
    category: str
    anchor: str
    pattern: str
    validator: str
    numbered: bool
    match: tuple[tuple[str, str], ...]
    clean: tuple[str, ...]
    source: str


def _options() -> Any:
    options = re2.Options()
    options.log_errors = False
    options.max_mem = _AUTOMATON_BYTES
    return options


class _Expression:
    """A compiled RE2 expression over UTF-8 bytes, without the wrapper's match objects."""

    __slots__ = ("match",)

    def __init__(self, pattern: str, *, capture: bool) -> None:
        options = _options()
        options.never_capture = not capture
        # The wrapper decodes and builds objects at 3 µs a call, the call below it takes 0.3 µs; and
        # it keeps the last 128 expressions, each with all states that its automaton ever had.
        compiled = re2._re2.RE2(pattern.encode(), options)  # noqa: SLF001
        if not compiled.ok():
            raise re2.error
        self.match: Callable[[Any, bytes, int, int], Sequence[Span]] = compiled.Match

    def hits(self, data: bytes) -> bool:
        return self.match(_UNANCHORED, data, 0, len(data))[0][0] >= 0

    def spans(self, data: bytes, start: int) -> Sequence[Span]:
        return self.match(_UNANCHORED, data, start, len(data))


_UNANCHORED = None if re2 is None else re2._Anchor.UNANCHORED  # noqa: SLF001


def finder(needle: bytes) -> Callable[[bytes], bool]:
    """Give a search for ASCII bytes; fast where the first of them is rare, as a backslash is.

    RE2 goes from one to the next with ``memchr``: through 40 KB of JSON in 2 µs, ``in`` in 18.
    """
    if re2 is None:
        return lambda data: needle in data
    expression = _Expression(re2.escape(needle.decode("ascii")), capture=False)
    return lambda data: needle in data if len(data) < _SHORT else expression.hits(data)


@dataclass(frozen=True, slots=True)
class _Row:
    detector: Detector
    anchor: _Expression
    pattern: _Expression
    validate: Validator | None
    allowed: frozenset[bytes] = frozenset()
    allowed_shapes: tuple[_Expression, ...] = ()

    @property
    def is_lenient(self) -> bool:
        """Whether a policy lets any of its findings stay."""
        return bool(self.allowed or self.allowed_shapes)

    def allows(self, value: bytes) -> bool:
        """Tell whether a value that was found may stay."""
        return value.lower() in self.allowed or any(
            shape.hits(value) for shape in self.allowed_shapes
        )

    def anew(self) -> _Row:
        """Give the same row without what its automata remember of texts."""
        return replace(
            self,
            anchor=_Expression(self.detector.anchor, capture=False),
            pattern=_Expression(self.detector.pattern, capture=True),
        )


class Detectors:
    """A checked, compiled table. Immutable; shared between threads without harm.

    Attributes:
        numbered: Kinds whose placeholders carry a number.
    """

    __slots__ = ("_by_anchor", "_gate", "_placeholder", "_which", "numbered", "rows")

    def __init__(self, rows: Sequence[_Row]) -> None:
        """Take rows that `compile` has checked."""
        self.rows = tuple(rows)
        self.numbered = frozenset(row.detector.kind for row in rows if row.detector.numbered)
        kinds = sorted({*_FIXED_KINDS, *(row.detector.kind for row in rows)})
        self._placeholder = re.compile(rf"<(?:{'|'.join(kinds)})(?::[1-9][0-9]{{0,2}})?>".encode())
        # Detectors with the same anchor share one copy of it.
        self._by_anchor: tuple[tuple[int, ...], ...] = tuple(
            tuple(n for n, row in enumerate(rows) if row.detector.anchor == anchor)
            for anchor in dict.fromkeys(row.detector.anchor for row in rows)
        )
        anchors = [rows[places[0]].detector.anchor for places in self._by_anchor]
        self._gate = _Expression(_any_of(anchors) if anchors else _NOTHING, capture=False)
        anchor_set = re2._re2.Set(_UNANCHORED, _options())  # noqa: SLF001 - without its wrapper
        for anchor in anchors:
            anchor_set.Add(anchor.encode())
        anchor_set.Compile()
        self._which: Callable[[bytes], list[int]] = anchor_set.Match

    @classmethod
    def compile(cls, table: Mapping[str, Any]) -> Detectors:
        """Check and compile a table.

        Args:
            table: ``let``: name → text put in place of ``{{name}}``; ``detector``: id → row;
                ``allow``: name → what may stay (`_Allow`).

        Raises:
            RuleError: A row does not compile, breaks a lint or fails its examples. The message
                names its id and what to do.

        Source:
            gitleaks validates each rule against its examples whenever its table is built.
        """
        if re2 is None:
            raise RuleError("RE2 is not available. Install google-re2 on a platform with a wheel.")
        macros = table.get("let", {})
        detectors = [_read(name, row, macros) for name, row in table.get("detector", {}).items()]
        if unknown := set(table) - {"let", "detector", "allow"}:
            raise RuleError(f"detectors: unknown tables {', '.join(sorted(unknown))}. Remove them.")
        rows = [_compile(detector) for detector in detectors]
        cls(rows)._check_all_examples()  # noqa: SLF001 - of the same class
        # Anew: what the automata remember of the examples takes 12 MB, and no event is like them.
        rows = _with_allowances([row.anew() for row in rows], table.get("allow", {}), macros)
        compiled = cls(rows)
        for row in rows:
            # An allow-list that takes an example would switch its detector off.
            if row.is_lenient and any(
                compiled._result(row, text) != wanted for text, wanted in row.detector.match
            ):
                raise _wrong(
                    row.detector.id, "an allow-list takes its own example", "Narrow the allow-list."
                )
        return compiled

    def check_speed(self, clock: Callable[[], float]) -> None:
        """Refuse a table that would slow every event down.

        What is measured is a ratio within one process and a fraction of a second: the time that
        the gate needs for half a megabyte of clean text, over the time that RE2 needs for
        one short expression in the same text; the least of up to five turns of each. A
        table that works takes 2 to 8 times as long; one that RE2 cannot hold in memory takes 100
        to 600 times. The line is drawn at 30, where no load of the machine moves either across.

        Args:
            clock: Gives seconds; the processor time of this thread is best (`time.thread_time`).

        Raises:
            RuleError: The gate is too slow, or one anchor hits nearly everywhere.
        """
        own = Detectors([row.anew() for row in self.rows])  # whose memory goes when this ends
        anchors = " ".join(sorted({row.detector.anchor for row in own.rows}))
        texts = _clean_texts(sorted(set(re.findall(r"[A-Za-z]{4,}", anchors))))
        for row in own.rows:
            hits = sum(row.anchor.hits(text) for text in texts[:500])
            if hits > _MAX_CLEAN_HITS:
                raise _wrong(
                    row.detector.id,
                    f"its anchor hits {hits} of 500 clean texts",
                    "Begin it with a word or a longer shape.",
                )
        data = SEPARATOR.encode().join(texts)
        plain = _Expression(r"[a-z][0-9]\x07", capture=False)
        least = [float("inf"), float("inf")]
        for _ in range(5):
            for which, work in enumerate((plain.hits, own._hit_all)):
                began = clock()
                work(data)
                least[which] = min(least[which], clock() - began)
            if least[1] < _MAX_SLOWNESS * least[0]:
                return
        raise RuleError(
            f"detectors: the gate is more than {_MAX_SLOWNESS} times slower than a plain search."
            " Shorten the anchors of the rows that were added last."
        )

    def __repr__(self) -> str:
        return f"Detectors({len(self.rows)} rows)"

    def gate(self, text: str) -> bool:
        """Tell whether a text may hold something; False is certain.

        Args:
            text: Any text; fields of one event joined with `SEPARATOR`.
        """
        data = (text if text.isascii() else searchable(text)).encode()
        return self.gate_bytes(data)

    def gate_bytes(self, data: bytes) -> bool:
        """As `gate`, for the UTF-8 bytes of a text in its searchable form."""
        return self._gate.hits(data)

    def suspects(self, data: bytes, ends: Sequence[int]) -> set[int]:
        """Tell in which of several texts an anchor hits; in the others nothing can be found.

        Args:
            data: UTF-8 bytes of the texts in their searchable form, joined with `SEPARATOR`.
            ends: For each text the place behind its separator: the running sum of lengths + 1.

        Returns:
            Places of texts, counted from 0.
        """
        found: set[int] = set()
        position = 0
        while position >= 0:
            start, end = self._gate.spans(data, position)[0]
            if start < 0:
                break
            # An anchor may begin or end with the separator: then it is about both neighbours.
            first = bisect_right(ends, start)
            if end <= ends[first]:
                found.add(first)
            else:
                last = min(bisect_right(ends, max(start, end - 1), first), len(ends) - 1)
                found.update(range(first, last + 1))
            # Behind the end of the text: its other anchors would tell nothing new.
            position = data.find(_SEPARATOR_BYTE, end)
        return found

    def _hit_all(self, data: bytes) -> bool:
        return bool(self.suspects(data, [len(data) + 1]))

    def candidates(self, data: bytes) -> list[_Row]:
        """Give the rows whose anchor hits, in the order of the table."""
        rows, hit = self.rows, self._which(data)
        if len(hit) == 1:
            return [rows[n] for n in self._by_anchor[hit[0]]]
        if hit:
            return [rows[n] for n in sorted(n for anchor in hit for n in self._by_anchor[anchor])]
        # The Set names none also when its memory does not do, and then only the gate is right.
        return [row for row in rows if row.anchor.hits(data)] if self._gate.hits(data) else []

    def find(self, row: _Row, data: bytes, opaque: Sequence[Span] | None = None) -> Iterator[Span]:
        """Give the spans of `data` that a row claims, from left to right, without overlap.

        Placeholders are no findings, and no finding ends inside one.

        Args:
            row: One of `rows`.
            data: UTF-8 bytes of a text in its searchable form.
            opaque: What `placeholder_spans` gives of `data`, where the caller knows it.

        Raises:
            OverflowError: There are more candidates than any real text has.
        """
        search, validate, is_lenient, size = (
            row.pattern.match,
            row.validate,
            row.is_lenient,
            len(data),
        )
        position, floor = 0, 0
        claimed: list[Span] = []
        for _ in range(_MAX_CANDIDATES):
            spans = search(_UNANCHORED, data, position, size)
            begin, end = spans[0]
            if begin < 0:
                return iter(claimed)
            start = begin
            # With groups, the one that takes part is the value.
            for span in spans[1:]:
                if span[0] >= 0:
                    start, end = span
                    break
            position = max(end, begin + 1)
            if opaque is None:
                opaque = self.placeholder_spans(data)
            if opaque:
                widened = self._around_placeholders(data, start, end, opaque)
                if widened is None:
                    continue
                start, end = widened
            found = validate(data, start, end) if validate else (start, end)
            if found is None:
                continue
            first, last = found
            if is_lenient and row.allows(data[first:last]):
                continue
            if first >= floor and last > first:
                floor = last
                position = max(position if last >= end else last, begin + 1)
                claimed.append(found)
        raise OverflowError

    def placeholders(self, data: bytes) -> Iterator[bytes]:
        """Yield the placeholders that stand in `data`."""
        for match in self._placeholder.finditer(data):
            yield match[0]

    def placeholder_spans(self, data: bytes) -> list[Span]:
        """Return where placeholders stand in `data`."""
        if b"<" not in data:
            return []
        return [match.span() for match in self._placeholder.finditer(data)]

    def _around_placeholders(
        self, data: bytes, start: int, end: int, opaque: Sequence[Span]
    ) -> Span | None:
        """Widen a span to whole placeholders; None if nothing but placeholders is in it."""
        for begin, stop in opaque:
            if begin < end and start < stop:
                if begin <= start and end <= stop:
                    return None
                start, end = min(start, begin), max(end, stop)
        rest = self._placeholder.sub(b"", data[start:end])
        return (start, end) if any(byte > 127 or chr(byte).isalnum() for byte in rest) else None  # noqa: PLR2004

    def _result(self, row: _Row, text: str) -> str:
        data = searchable(text).encode()
        detector = row.detector
        placeholder = f"<{detector.kind}{':1' * detector.numbered}>".encode()
        pieces, last = [], 0
        for start, end in self.find(row, data):
            pieces += [data[last:start], placeholder]
            last = end
        return b"".join([*pieces, data[last:]]).decode()

    def _check_all_examples(self) -> None:
        for row in self.rows:
            detector = row.detector
            for number, (text, wanted) in enumerate(detector.match, 1):
                if not row.anchor.hits(searchable(text).encode()):
                    raise _wrong(
                        detector.id, f"example {number} does not hit its anchor", "Widen it."
                    )
                if self._result(row, text) != wanted:
                    raise _wrong(
                        detector.id,
                        f"example {number} becomes something else",
                        "Correct the pattern or the example.",
                    )
            for number, text in enumerate(detector.clean, 1):
                if next(self.find(row, searchable(text).encode()), None) is not None:
                    raise _wrong(
                        detector.id, f"counter-example {number} is found", "Narrow the pattern."
                    )


def _clean_texts(words: Sequence[str]) -> list[bytes]:
    """Make half a megabyte of lines as logs and source code have them, always the same ones.

    Between syllables stand the beginnings of a table's own words: they lead its automata into as
    many states as real text does, and nearly never to a hit.
    """
    pieces = (*_SYLLABLES, *(word[:size] for word in words for size in (2, 4, 6)))
    state, texts = 2_463_534_242, []
    for _ in range(6_000):
        line = []
        for _ in range(14):
            state = (state * 6_364_136_223_846_793_005 + 1_442_695_040_888_963_407) & (2**64 - 1)
            line += [
                pieces[(state >> 33) % len(pieces)],
                _SYLLABLES[(state >> 24) % len(_SYLLABLES)] if state & 2**60 else "",
                _JOINTS[(state >> 50) % len(_JOINTS)],
            ]
        texts.append("".join(line).encode())
    return texts


def _any_of(expressions: Sequence[str]) -> str:
    return "|".join(f"(?:{expression})" for expression in expressions)


def _wrong(name: str, what: str, remedy: str) -> RuleError:
    return RuleError(f"detector {name}: {what}. {remedy}")


def _read(name: str, row: Mapping[str, Any], macros: Mapping[str, str]) -> Detector:
    if unknown := set(row) - _FIELDS:
        raise _wrong(name, f"unknown fields {', '.join(sorted(unknown))}", "Remove them.")
    if missing := _FIELDS - {"validator", "clean"} - set(row):
        raise _wrong(name, f"lacks {', '.join(sorted(missing))}", "Add them.")
    if not row["match"]:
        raise _wrong(name, "has no example", "Add a text and what becomes of it.")
    replacement = _REPLACEMENT.fullmatch(row["replacement"])
    if replacement is None:
        raise _wrong(
            name, "its replacement is no placeholder", "Write <word>, or <word:#> to number."
        )
    if row.get("validator", "") not in {"", *VALIDATORS}:
        raise _wrong(name, "no validator has this name", f"Choose one of {', '.join(VALIDATORS)}.")

    def expand(text: str) -> str:
        for _ in range(4):  # macros may use macros
            text = _MACRO.sub(lambda match: macros[match[1]], text)
        return text

    try:
        return Detector(
            id=name,
            kind=replacement[1],
            category=row["class"],
            anchor=expand(row["anchor"]),
            pattern=expand(row["pattern"]),
            validator=row.get("validator", ""),
            numbered=replacement[2] is not None,
            match=tuple((expand(text), expand(wanted)) for text, wanted in row["match"]),
            clean=tuple(expand(text) for text in row.get("clean", ())),
            source=row["source"],
        )
    except KeyError as error:
        raise _wrong(name, f"no macro {error.args[0]}", "Define it under [let].") from None
    except (TypeError, ValueError):
        raise _wrong(name, "an example is no pair", "Write [text, result].") from None


def _with_allowances(
    rows: Sequence[_Row], allow: Mapping[str, Any], macros: Mapping[str, str]
) -> list[_Row]:
    """Give each row the values and shapes that a policy lets stay.

    An entry has ``detectors`` (ids), ``reason``, and ``values`` (whole values, in any case) or
    ``pattern`` (RE2, of the whole value) with ``match`` (values that it must let stay).
    """
    by_id = {row.detector.id: row for row in rows}
    for name, entry in allow.items():
        if unknown := set(entry) - {"detectors", "values", "pattern", "match", "reason"}:
            raise _refused(name, f"unknown fields {', '.join(sorted(unknown))}", "Remove them.")
        if not entry.get("reason"):
            raise _refused(name, "has no reason", "Say why these values may leave.")
        if strange := [one for one in entry.get("detectors", ()) if one not in by_id]:
            raise _refused(name, f"no detector {strange[0]}", "Correct the id.")
        if not entry.get("detectors") or ("values" in entry) == ("pattern" in entry):
            raise _refused(name, "is not clear", "Give `detectors`, and `values` or `pattern`.")
        chosen = [by_id[one] for one in entry["detectors"]]
        shapes: tuple[_Expression, ...] = ()
        values: frozenset[bytes] = frozenset()
        if "values" in entry:
            if any(row.detector.category == "secret" for row in chosen):
                raise _refused(
                    name, "would keep a secret in the policy", "Use a `pattern` for the harmless."
                )
            values = frozenset(searchable(one).lower().encode() for one in entry["values"])
        else:
            shapes = (_whole(name, entry, macros),)
        for row in chosen:
            by_id[row.detector.id] = replace(
                by_id[row.detector.id],
                allowed=by_id[row.detector.id].allowed | values,
                allowed_shapes=by_id[row.detector.id].allowed_shapes + shapes,
            )
    return list(by_id.values())


def _whole(name: str, entry: Mapping[str, Any], macros: Mapping[str, str]) -> _Expression:
    try:
        pattern = _MACRO.sub(lambda match: macros[match[1]], entry["pattern"])
        _lint(pattern, is_anchor=False)
        shape = _Expression(rf"\A(?:{pattern})\z", capture=False)
    except KeyError as error:
        raise _refused(name, f"no macro {error.args[0]}", "Define it under [let].") from None
    except ValueError as error:
        raise _refused(name, f"its pattern {error}", "Rewrite it.") from None
    except re2.error:
        raise _refused(name, "RE2 does not compile it", "Correct its syntax.") from None
    examples = entry.get("match", ())
    if not examples or not all(shape.hits(searchable(one).encode()) for one in examples):
        raise _refused(name, "does not take its examples", "Give `match`: values that it takes.")
    return shape


def _refused(name: str, what: str, remedy: str) -> RuleError:
    return RuleError(f"allow-list {name}: {what}. {remedy}")


def _compile(detector: Detector) -> _Row:
    for part, expression in (("anchor", detector.anchor), ("pattern", detector.pattern)):
        try:
            _lint(expression, is_anchor=part == "anchor")
        except ValueError as error:
            raise _wrong(detector.id, f"its {part} {error}", "Rewrite it.") from None
    try:
        row = _Row(
            detector,
            _Expression(detector.anchor, capture=False),
            _Expression(detector.pattern, capture=True),
            VALIDATORS.get(detector.validator),
        )
    except re2.error:
        raise _wrong(detector.id, "RE2 does not compile it", "Correct its syntax.") from None
    if row.anchor.hits(b"") or row.pattern.spans(b"", 0)[0][0] >= 0:
        raise _wrong(detector.id, "matches the empty text", "Require a character.")
    return row


_TOKEN = re.compile(
    r"(?P<cls>\[\^?\]?(?:\\x\{[0-9a-f]+\}|\\.|\[:[a-z]+:\]|[^\]\\])*\])"
    r"|(?P<esc>\\x\{[0-9A-Fa-f]+\}|\\x[0-9A-Fa-f]{2}|\\p\{[^}]*\}|\\.)"
    r"|(?P<open>\((?:\?(?:P<[A-Za-z_0-9]+>|[imsU-]*:))?)|(?P<flags>\(\?[imsU-]+\))|(?P<close>\))"
    r"|(?P<rep>\{[0-9]+(?:,[0-9]*)?\}\??|[*+?]\??)|(?P<alt>\|)|(?P<lit>.)",
    re.DOTALL,
)


def _lint(expression: str, *, is_anchor: bool) -> None:
    """Refuse what is slow, leaks over the separator, or fails beside other scripts.

    Raises:
        ValueError: What is wrong, as the end of a sentence.
    """
    # Per open group: repeated positions of this branch, greatest product, positions of the longest
    # branch. Of the last item: repeated positions and product.
    stack: list[list[int]] = [[0, 1, 0]]
    item, literal, had_literal = [0, 1], 0, False
    previous = ""
    for match in _TOKEN.finditer(expression):
        kind, piece = str(match.lastgroup), match[0]
        if kind == "rep":
            upper = {"?": 1, "*": -1, "+": -1}.get(piece[0])
            if upper is None:
                bounds = piece.strip("{}?").split(",")
                upper = int(bounds[-1]) if bounds[-1] else -1
            if upper < 0:
                if is_anchor or not had_literal:
                    raise ValueError("has an open loop without three fixed characters before it")
                upper = 1
            if item[1] * upper > _MAX_REPEAT:
                raise ValueError(f"repeats more than {_MAX_REPEAT} times, counted as product")
            positions = max(item[0], 1) * upper if piece[0] == "{" else item[0]
            stack[-1][0] += positions - item[0]
            stack[-1][1] = max(stack[-1][1], item[1] * max(upper, 1))
            item, literal = [positions, item[1] * upper], 0
            continue
        if kind == "open":
            stack.append([0, 1, 0])
            literal = 0
        elif kind == "close":
            if len(stack) == 1:
                raise ValueError("has a parenthesis too many")
            branch, product, longest = stack.pop()
            item = [max(branch, longest), product]
            stack[-1][0] += item[0]
            stack[-1][1] = max(stack[-1][1], product)
            literal = 0
        elif kind == "alt":
            stack[-1][2] = max(stack[-1][2], stack[-1][0])
            stack[-1][0] = literal = 0
        else:
            item = [0, 1]
            if kind == "cls" and piece.startswith("[^") and r"\x1e" not in piece:
                raise ValueError(r"has a negated class without \x1e, which stands between fields")
            if (kind == "lit" and piece == ".") or piece in {r"\S", r"\W", r"\D", r"\C"}:
                raise ValueError(f"uses {piece}, which also matches what stands between fields")
            if piece in {r"\b", r"\B"} and (not previous.isascii() or "x{" in previous):
                raise ValueError(r"has \b beside a letter that it does not know")
            fixed = kind == "lit" or (kind == "esc" and not piece[1:2].isalnum())
            literal = literal + 1 if fixed and piece not in "^$" else 0
            had_literal = had_literal or literal >= 3  # noqa: PLR2004
        previous = piece
    positions = max(stack[0][0], stack[0][2])
    if is_anchor and positions > _MAX_ANCHOR_POSITIONS:
        raise ValueError(f"has {positions} repeated positions; {_MAX_ANCHOR_POSITIONS} are fast")
