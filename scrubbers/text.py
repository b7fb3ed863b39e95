"""Free text: gate, locate, validate, rewrite, and the same once more.

Owns placeholders and the promise about what comes out: *the validated finder finds nothing in it
but placeholders*. What cannot be brought to that state becomes ``<redacted>`` as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache, lru_cache

from scrubbers import shipped
from scrubbers.detectors import Detectors, searchable
from scrubbers.known_values import KnownValues
from scrubbers.model import Remark

__all__ = [
    "MAX_FIELD_BYTES",
    "MAX_HITS",
    "Numbering",
    "redact_suspect",
    "redact_text",
    "shipped_detectors",
]

MAX_FIELD_BYTES = 8_192
"""What is behind this in a text that may hold something is cut, not searched."""
MAX_HITS = 256
"""A text with more findings is data, not a message; nothing of it stays."""

_REDACTED = "<redacted>"
_TRUNCATED = b"<truncated>"
# A value that begins before the cut is looked for this far behind it, so that no half of it stays.
_LOOK_AHEAD_BYTES = 1_024
_PLACEHOLDERS = 1_024
# One rewrites, one takes up what the first brought to light, one finds nothing.
_ROUNDS = 3


class Numbering:
    """Numbers of placeholders within one event: equal values get equal numbers, by kind.

    Holds the values it has seen: make one an event, and let it go with the event. A kind counts to
    999; values behind that share the number 999.
    """

    __slots__ = ("_next", "_seen")

    def __init__(self) -> None:
        self._seen: dict[tuple[str, bytes], int] = {}
        self._next: dict[str, int] = {}

    def __repr__(self) -> str:
        return "Numbering()"

    def number(self, kind: str, value: bytes) -> int:
        """Return the number of `value`, a new one if it has none. Case does not count."""
        key = (kind, value.lower())
        if key not in self._seen:
            self._next[kind] = number = min(self._next.get(kind, 0) + 1, 999)
            self._seen[key] = number
        return self._seen[key]

    def given(self) -> Mapping[str, int]:
        """Return the highest number of each kind, to go back to with `order`."""
        return dict(self._next)

    def order(self, since: Mapping[str, int], stand: Iterable[bytes]) -> dict[bytes, bytes]:
        """Give the numbers that were given since then anew, in the order of a text.

        Numbers are given as values are found: one finder after the other, and never taken back
        when a longer value swallows a shorter one. A message would read differently for each
        person; so what it says in the end is counted from left to right.

        Args:
            since: What `given` returned before the text.
            stand: The placeholders that stand in the text now, from left to right.

        Returns:
            Placeholder now → placeholder to be, for those that change.
        """
        anew: dict[tuple[str, int], int] = {}
        changed: dict[bytes, bytes] = {}
        before, self._next = self._next, dict(since)
        for placeholder in stand:
            kind, number = _read(placeholder)
            if number <= since.get(kind, 0) or (kind, number) in anew:
                continue
            self._next[kind] = anew[kind, number] = self._next.get(kind, 0) + 1
            if anew[kind, number] != number:
                changed[placeholder] = f"<{kind}:{anew[kind, number]}>".encode()
        if not changed and self._next == before:
            return changed  # all that were given stand, and in their order
        self._seen = {
            (kind, value): anew.get((kind, number), number)
            for (kind, value), number in self._seen.items()
            if number <= since.get(kind, 0) or (kind, number) in anew
        }
        return changed

    def reserve(self, placeholder: bytes) -> None:
        """Keep the number of a placeholder that is already in a text from being given again."""
        kind, number = _read(placeholder)
        if number:
            self._next[kind] = max(self._next.get(kind, 0), number)


@lru_cache(maxsize=_PLACEHOLDERS)
def _read(placeholder: bytes) -> tuple[str, int]:
    """Read kind and number of a placeholder; 0 if it has none."""
    kind, _, number = placeholder.strip(b"<>").decode("ascii").partition(":")
    return kind, int(number or 0)


@cache
def shipped_detectors() -> Detectors:
    """Compile the shipped table, once.

    Raises:
        RuleError: It cannot be used here; see `Detectors.compile`.
    """
    return Detectors.compile(shipped.detector_table())


def redact_text(
    text: str,
    detectors: Detectors | None = None,
    *,
    known: KnownValues | None = None,
    numbering: Numbering | None = None,
) -> tuple[str, tuple[Remark, ...]]:
    """Put placeholders where a text holds personal data or secrets.

    Args:
        text: One field. Clean text of any length stays as it is; of other text, what is behind
            `MAX_FIELD_BYTES` is cut.
        detectors: A compiled table; None takes the shipped one.
        known: Values of the request, removed wherever they show up, before any detector.
        numbering: Numbers shared by the fields of an event; None numbers within this text.

    Returns:
        The text, and a remark for each placeholder put in: rule id and UTF-8 byte offsets in the
        new text. Redacting what is returned changes nothing and leaves no remark.

    Raises:
        RuleError: `detectors` is None and the shipped table cannot be used here.

    >>> redact_text("login of jane@example.com failed, password=hunter2")[0]
    'login of <email:1> failed, password=<secret>'
    >>> redact_text("3 of 4 workers are ready")
    ('3 of 4 workers are ready', ())
    """
    if detectors is None:
        detectors = shipped_detectors()
    # Most texts are clean: one pass over their bytes, and nothing more.
    if known is None or not known.found_in(text):
        if not detectors.gate(text):
            return (text if text.isascii() else _encodable(text)), ()
        known = None
    return redact_suspect(text, detectors, known, numbering or Numbering())


def redact_suspect(
    text: str,
    detectors: Detectors,
    known: KnownValues | None,
    numbering: Numbering,
    path: tuple[str | int, ...] = (),
) -> tuple[str, tuple[Remark, ...]]:
    """As `redact_text`, for a text in which an anchor hits or a known value stands.

    `path` is where the text stands, for its remarks.
    """
    draft = _Draft(searchable(text).encode(), detectors, numbering)
    try:
        settled = draft.settle(known)
    except OverflowError:
        settled = False
    draft.count(settled=settled)
    if not settled:
        return (
            (text, ())
            if text == _REDACTED
            else (_REDACTED, (Remark(path, "unsettled", "replace", 0, len(_REDACTED)),))
        )
    if not draft.marks:
        # An anchor hit and nothing stood behind it: the original form, not the searched one.
        return _encodable(text), ()
    return draft.data.decode(), tuple(
        [Remark(path, rule, "replace", start, end) for start, end, rule in draft.marks]
    )


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text


class _Draft:
    """A text while it is rewritten: its bytes, and where placeholders were put into them."""

    __slots__ = ("_cut", "_detectors", "_given", "_numbering", "_opaque", "data", "marks")

    def __init__(self, data: bytes, detectors: Detectors, numbering: Numbering) -> None:
        self._detectors, self._numbering = detectors, numbering
        self.data = data
        self.marks: list[tuple[int, int, str]] = []
        self._cut = len(data) > MAX_FIELD_BYTES
        if self._cut:
            end = MAX_FIELD_BYTES + _LOOK_AHEAD_BYTES
            self.data = data[:end].decode("utf-8", "ignore").encode()
        self._opaque = detectors.placeholder_spans(self.data)
        for start, end in self._opaque:
            numbering.reserve(self.data[start:end])
        self._given = numbering.given()

    def settle(self, known: KnownValues | None) -> bool:
        """Rewrite until the finder finds nothing but placeholders. The post-condition.

        Returns:
            Whether it came to that.

        Raises:
            OverflowError: There is more to find than any message has.
        """
        for _ in range(_ROUNDS):
            changed = known is not None and self.apply_known(known)
            # What was put in is no finding: mostly nothing else is left, and the gate says so.
            if self.marks and not self._detectors.gate_bytes(self.data):
                if not changed:
                    break
            elif not self.apply() and not changed:
                break
        else:
            return False
        # Cutting and placeholders beside other scripts can change what the finder sees.
        if not self.trim() and self.data.isascii():
            return True
        self.data, seen = searchable(self.data.decode()).encode(), self.data
        self._opaque = self._detectors.placeholder_spans(self.data)
        return self.data == seen and not self.apply()

    def apply_known(self, known: KnownValues) -> bool:
        """Replace known values; tell whether there were any.

        The detectors look at the same text: a value that stands inside an address or a secret goes
        with the whole of it, for what is left would have no shape that anybody could find. And what
        a detector finds too gets that detector's placeholder: one error must not read differently,
        and be grouped apart, because the address in it is the requester's own.
        """
        spans = known.spans(self.data, self._opaque)
        if not spans:
            return False
        claims = [
            (start, end, row.detector)
            for row in self._detectors.candidates(self.data)
            for start, end in self._detectors.find(row, self.data, self._opaque)
        ]
        merged: list[tuple[int, int, str, str]] = []
        for span in spans:
            start, end, kind, rule = *span, "known_value"
            same = False
            for first, last, detector in claims:
                if (first, last) == span[:2]:
                    kind, same = kind if same else detector.kind, True
                elif first < end and start < last and not (start <= first and last <= end):
                    if rule == "known_value":  # of several, the first of the table gives its name
                        kind, rule = detector.kind, detector.id
                    start, end = min(start, first), max(end, last)
            while merged and start < merged[-1][1]:
                before = merged.pop()
                start, end = min(start, before[0]), max(end, before[1])
                kind, rule = before[2:]
            merged.append((start, end, kind, rule))
        self._replace(
            [
                (start, end, self._placeholder(kind, start, end), rule)
                for start, end, kind, rule in merged
            ]
        )
        return True

    def apply(self) -> bool:
        """Replace what the detectors find, one detector after the other; tell whether any did."""
        changed = False
        for row in self._detectors.candidates(self.data):
            kind, rule = row.detector.kind, row.detector.id
            spans = [
                (start, end, self._placeholder(kind, start, end), rule)
                for start, end in self._detectors.find(row, self.data, self._opaque)
            ]
            if spans:
                changed = True
                self._replace(spans)
        return changed

    def count(self, *, settled: bool) -> None:
        """Number what stands in the text from left to right; if nothing of it stays, take back."""
        if self._numbering.given() == self._given:
            return
        stand = [self.data[start:end] for start, end, _ in self.marks] if settled else []
        changed = self._numbering.order(self._given, (one for one in stand if b":" in one))
        if not changed:
            return
        pieces, marks, last, size = [], [], 0, 0
        for (start, end, rule), old in zip(self.marks, stand, strict=True):
            pieces += [self.data[last:start], changed.get(old, old)]
            size += start - last
            marks.append((size, size + len(pieces[-1]), rule))
            size, last = marks[-1][1], end
        self.data = b"".join([*pieces, self.data[last:]])
        self.marks = marks

    def _placeholder(self, kind: str, start: int, end: int) -> bytes:
        """Write the placeholder of what stands between two offsets."""
        number = ""
        if kind in self._detectors.numbered:
            number = f":{self._numbering.number(kind, self.data[start:end])}"
        return f"<{kind}{number}>".encode()

    def trim(self) -> bool:
        """Cut what is too long, before a placeholder rather than through it; tell whether so."""
        if not self._cut and len(self.data) <= MAX_FIELD_BYTES:
            return False
        limit = MAX_FIELD_BYTES - len(_TRUNCATED)
        for start, end in self._opaque:
            if start < limit < end:
                limit = start
        head = self.data[:limit].decode("utf-8", "ignore").encode()
        self.marks = [mark for mark in self.marks if mark[1] <= len(head)]
        self.marks.append((len(head), len(head) + len(_TRUNCATED), "truncated"))
        self.data = head + _TRUNCATED
        return True

    def _replace(self, spans: Sequence[tuple[int, int, bytes, str]]) -> None:
        """Put placeholders in place of spans, which are sorted and apart, and move the marks."""
        if len(spans) == 1 and not self.marks:
            ((start, end, placeholder, rule),) = spans
            self._take(
                self.data[:start] + placeholder + self.data[end:],
                [(start, start + len(placeholder), rule)],
            )
            return
        pieces, last, shift = [], 0, 0
        moved: list[tuple[int, int, str]] = []
        marks = iter([*self.marks, (len(self.data) + 1, len(self.data) + 1, "")])
        mark = next(marks)
        for start, end, placeholder, rule in spans:
            while mark[1] <= start:
                moved.append((mark[0] + shift, mark[1] + shift, mark[2]))
                mark = next(marks)
            while mark[0] < end:  # an earlier placeholder inside a longer value
                mark = next(marks)
            pieces += [self.data[last:start], placeholder]
            moved.append((start + shift, start + shift + len(placeholder), rule))
            shift += len(placeholder) - (end - start)
            last = end
        while mark[0] <= len(self.data):
            moved.append((mark[0] + shift, mark[1] + shift, mark[2]))
            mark = next(marks)
        self._take(b"".join([*pieces, self.data[last:]]), moved)
        if len(moved) > MAX_HITS:
            raise OverflowError

    def _take(self, data: bytes, marks: list[tuple[int, int, str]]) -> None:
        # What is put in reads as a placeholder wherever it stands, for none begins inside another.
        # If there was no other before, there are these and no more.
        if len(self._opaque) == len(self.marks):
            self._opaque = [(start, end) for start, end, _ in marks]
        else:
            self._opaque = self._detectors.placeholder_spans(data)
        self.data, self.marks = data, marks
