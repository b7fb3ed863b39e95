"""Streams, scrubbed: text by line, JSON by leaf, JSON by record, envelopes by item.

Owns what becomes of a line that is too long, is no UTF-8 or no JSON. What counts as personal is the
policy's; how it is replaced, the scrubbers'. Memory is bounded by one line, or one envelope.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate, groupby
from typing import Any, Final, Literal, Protocol

from scrubbers.detectors import SEPARATOR
from scrubbers.text import Numbering, redact_text
from telemetry.dialects import BODY_BYTES, Refusal, sentry
from telemetry.dialects.sample import is_envelope
from telemetry.edge import Edge, Item
from telemetry.errors import DecodeError, EventError
from telemetry.policy import Policy
from telemetry.rules import Schemas
from telemetry.sinks.sentry import framed
from telemetry.tolerant import strict_json

__all__ = ["LINE_BYTES", "Filter", "Form"]

Form = Literal["auto", "text", "ndjson", "envelope"]

LINE_BYTES: Final = 1024 * 1024
"""Most bytes of a line that are looked at; what is behind them is cut."""

_BLOCK_BYTES: Final = 256 * 1024
_TRUNCATED: Final = b"<truncated>"
_KEY: Final = b"<key>"
_KEY_LINES: Final = 200
_WORD_BYTES: Final = 1024
_SEPARATOR: Final = SEPARATOR.encode()
_BEGIN = re.compile(rb"-----BEGIN (?:[A-Z0-9]{1,16} ){0,4}PRIVATE KEY(?: BLOCK)?-----")
_END = re.compile(rb"-----END (?:[A-Z0-9]{1,16} ){0,4}PRIVATE KEY")
_DEPTH: Final = 64


class Reads(Protocol):
    """A binary stream that gives what there is, such as ``sys.stdin.buffer``."""

    def read1(self, size: int, /) -> bytes:
        """Give at least a byte and at most `size`, or nothing at the end."""


class Writes(Protocol):
    """A binary stream, such as ``sys.stdout.buffer``."""

    def write(self, data: bytes, /) -> int:
        """Write all of it."""

    def flush(self) -> None:
        """Hand on what was written."""


class Filter:
    """Scrubs one stream. Makes no network request, needs no key: identifiers are removed.

    Args:
        policy: What counts as personal, and which records there are.
        kind: Record that each JSON line is an event of; empty redacts every text of every line.

    Attributes:
        removed: How often each rule removed or replaced something.
        dropped: Lines and items that are gone as a whole, by reason.
        read: Lines and items that came in.
    """

    def __init__(self, policy: Policy, *, kind: str = "") -> None:
        self._policy, self._kind = policy, kind
        self._detectors = policy.detectors
        self._edge: Edge | None = None
        self.removed: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.read = 0
        self._key_lines = 0

    def run(self, source: Reads, sink: Writes, form: Form = "auto") -> None:
        """Read `source` to its end and write what is left of it.

        Raises:
            Refusal: It is an envelope, and broken or too large.
        """
        first = source.read1(_BLOCK_BYTES)
        # A line that arrives in pieces must not be judged by the first of them.
        while form == "auto" and first.count(b"\n") < 2 and len(first) < _BLOCK_BYTES:  # noqa: PLR2004 - an envelope shows in its second line
            if first.count(b"\n") and not first.lstrip().startswith(b"{"):
                break
            more = source.read1(_BLOCK_BYTES)
            if not more:
                break
            first += more
        if form == "auto":
            form = _form_of(first, self._kind)
        if form == "envelope":
            sink.write(self._envelope(_rest(source, first)))
            sink.flush()
            return
        treat = self._text if form == "text" else self._ndjson
        for lines in self._lines(source, first):
            sink.write(treat(lines))
            sink.flush()

    def _lines(self, source: Reads, first: bytes) -> Iterator[bytes]:
        """Cut a stream into blocks of whole lines, as they come; cut lines that are too long."""
        left, skipping, block = b"", False, first
        while block:
            if skipping:
                end = block.find(b"\n")
                skipping = end < 0
                block = b"" if skipping else block[end:]
            whole = left + block
            # Only the first line was gathered from several blocks; a block is shorter than a line.
            if (end := whole.find(b"\n")) > LINE_BYTES:
                whole = self._cut(whole) + whole[end:]
            end = whole.rfind(b"\n") + 1
            left = whole[end:]
            if len(left) > LINE_BYTES:
                left, skipping = self._cut(left), True
            if end:
                yield whole[:end]
            block = source.read1(_BLOCK_BYTES)
        if left:
            yield left

    def _cut(self, line: bytes) -> bytes:
        """Cut a line, before a word rather than through it: half a value is not recognized."""
        self.removed["truncated"] += 1
        head = line[: LINE_BYTES - len(_TRUNCATED)]
        return head[: max(head.rfind(b" ") + 1, len(head) - _WORD_BYTES)] + _TRUNCATED

    def _text(self, block: bytes) -> bytes:
        """Redact whole lines of text. Most are clean: one pass over all of them tells which."""
        lines = block.split(b"\n")
        last = lines.pop()  # empty, unless the stream ends without a line end
        tail = [last] if last else []
        self.read += len(lines) + len(tail)
        lines += tail
        for number in self._suspects(lines, block):
            lines[number] = self._line(lines[number])
        return b"\n".join(lines) + (b"" if tail else b"\n") if lines else b""

    def _suspects(self, lines: list[bytes], block: bytes) -> Iterator[int]:
        """Give the places of the lines that must be looked at one by one."""
        if self._key_lines or not block.isascii() or _SEPARATOR in block or b"PRIVATE KEY" in block:
            yield from range(len(lines))
            return
        ends = list(accumulate(len(line) + 1 for line in lines))
        yield from sorted(self._detectors.suspects(_SEPARATOR.join(lines), ends))

    def _line(self, line: bytes) -> bytes:
        ending = b"\r" if line.endswith(b"\r") else b""
        line = line.removesuffix(b"\r")
        if self._key_lines and not _END.search(line):
            # The body of a private key, a line each: nothing in one of them says what it is.
            self._key_lines -= 1
            self.removed["private_key"] += 1
            return _KEY + ending
        begins = _BEGIN.search(line) is not None and not _END.search(line)
        self._key_lines = _KEY_LINES if begins else 0
        redacted, remarks = redact_text(line.decode("utf-8", "replace"), self._detectors)
        self.removed.update(remark.rule for remark in remarks)
        return redacted.encode() + ending

    def _ndjson(self, block: bytes) -> bytes:
        written = []
        for line in block.split(b"\n"):
            if not line.strip():
                continue
            self.read += 1
            if (treated := self._json_line(line)) is not None:
                written.append(treated + b"\n")
        return b"".join(written)

    def _json_line(self, line: bytes) -> bytes | None:
        if self._kind:
            return self._item(Item(self._kind, line))
        if line.endswith(_TRUNCATED):
            return self._line(line)
        try:
            data = strict_json(line)
        except DecodeError:
            return self._line(line)
        numbering = Numbering()
        # Written anew even where nothing was found: of a name that stands twice, one value is
        # looked at, and only that one may go on.
        treated = self._tree(data, "", numbering, 0)
        return json.dumps(treated, ensure_ascii=False, separators=(",", ":")).encode()

    def _tree(self, data: Any, name: str, numbering: Numbering, depth: int) -> Any:
        """Redact each text, number and name. A name that is personal takes its entry along."""
        if data is None or isinstance(data, bool):
            return data
        if depth == _DEPTH:
            self.removed["depth"] += 1
            return None
        if isinstance(data, list):
            return [self._tree(one, name, numbering, depth + 1) for one in data]
        if isinstance(data, dict):
            kept = {}
            for key, value in data.items():
                _, remarks = redact_text(key, self._detectors, numbering=numbering)
                if remarks:
                    self.removed[remarks[0].rule] += 1
                else:
                    kept[key] = self._tree(value, key, numbering, depth + 1)
            return kept
        return self._leaf(data, name, numbering)

    def _leaf(self, data: str | float, name: str, numbering: Numbering) -> Any:
        """Redact one value, read beside its name: ``"password": "…"`` says what it is."""
        text = data if isinstance(data, str) else json.dumps(data)
        head = f"{name}="
        beside, remarks = redact_text(f"{head}{text}", self._detectors, numbering=numbering)
        at = len(head.encode())
        if remarks and remarks[0].start == at:
            named = redact_text(text, self._detectors, numbering=Numbering())[1]
            if not named or named[0].start:
                # Its name gave it away, so all of it is that.
                self.removed[remarks[0].rule] += 1
                return beside.encode()[at : remarks[0].end].decode()
        redacted, remarks = redact_text(text, self._detectors, numbering=numbering)
        self.removed.update(remark.rule for remark in remarks)
        return redacted if remarks or isinstance(data, str) else data

    def _item(self, item: Item) -> bytes | None:
        """Scrub an event by its record; None drops it."""
        if item.refused or item.kind not in self._policy.purpose_of_kind:
            self.dropped[item.refused or "kind_off"] += 1
            return None
        if self._edge is None:
            self._edge = Edge(Schemas(self._policy, self._detectors))
        try:
            outcome = self._edge.scrub(item)
            unknown = self._edge.unknown_paths(item)
        except EventError as error:
            self.dropped[error.reason] += 1
            return None
        self.removed.update(remark.rule for remark in outcome.remarks)
        self.removed.update(["pseudonymize"] * len(outcome.identifiers))
        self.removed.update(["undeclared"] * len(unknown))
        return bytes(outcome.event)

    def _envelope(self, data: bytes) -> bytes:
        envelope = sentry.parse_envelope(data, self._policy.purpose_of_kind)
        head = {"event_id": envelope.event_id} if envelope.event_id else {}
        lines = [json.dumps(head, separators=(",", ":")).encode()]
        # What came in one container goes into one: neighbours of a kind are framed together.
        for kind, items in groupby(envelope.items, lambda item: item.kind):
            payloads = []
            for item in items:
                self.read += 1
                if (payload := self._item(item)) is not None:
                    payloads.append(payload)
            if payloads:
                lines += framed(kind, payloads)
        return b"\n".join(lines) + b"\n"


def _form_of(first: bytes, kind: str) -> Form:
    if kind:
        return "ndjson"
    if is_envelope(first):
        return "envelope"
    return "ndjson" if first.lstrip()[:1] in (b"{", b"[") else "text"


def _rest(source: Reads, first: bytes) -> bytes:
    pieces, total = [first], len(first)
    while total <= BODY_BYTES and (piece := source.read1(_BLOCK_BYTES)):
        pieces.append(piece)
        total += len(piece)
    if total > BODY_BYTES:
        raise Refusal("too_large")
    return b"".join(pieces)
