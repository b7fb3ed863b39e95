"""The edge: raw input → scrubbed event. SDK and gateway run the same code; it holds no secret.

Owns the words `Item` and `Connection`. Knows no wire format (``telemetry.dialects``), no key, no
recipient. The gateway goes on from here in `telemetry.intake`.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from scrubbers.detectors import finder
from scrubbers.engine import RULES, Outcome, scrub
from scrubbers.model import Remark
from telemetry.errors import DecodeError, EventError, ScrubError
from telemetry.rules import CompiledRules, Schemas
from telemetry.schema import Record

__all__ = [
    "EVENT_BYTES",
    "EVENT_VALUES",
    "REMARKS",
    "Connection",
    "Edge",
    "Item",
    "uuid7_hex",
    "values",
]

EVENT_BYTES: Final = 1024 * 1024
"""Most bytes of one event, decompressed; Sentry's own limit."""

EVENT_VALUES: Final = 150_000
"""Most values of one event; a mebibyte of empty lists, 350,000, would take a fifth of a second."""

_FEW_BYTES: Final = 64 * 1024

REMARKS: Final = "_remarks"
"""Key under which an edge tells the next one, beside the event's own fields, what it changed."""

_may_carry: Final = finder(b'_remarks"')
_CARRIED_REMARKS: Final = 500
_PATH_PARTS: Final = 32
_LIST_ITEMS: Final = 10_000
_SAMPLE_EVERY: Final = 1000
_UNKNOWN_PATHS: Final = 1000


class Connection(NamedTuple):
    """What is known of whoever sent a request, besides its body.

    Attributes:
        address: The client's address, from a declared trusted proxy or the socket; or None.
        known: (kind, value) pairs that may appear in no event of this request.
    """

    address: str | None = None
    known: Sequence[tuple[str, str]] = ()


_NOBODY: Final = Connection()


class Item(NamedTuple):
    """One unit of the books as a dialect found it: a Sentry item, a Heap event, a native event.

    Attributes:
        kind: Name of a record; or any word if `refused`.
        raw: JSON of the event.
        event_id: What the wire format says outside the event, 32 hex digits; empty if nothing.
        refused: Why it goes no further (a word of a closed set); empty if it may.
    """

    kind: str
    raw: bytes = b""
    event_id: str = ""
    refused: str = ""


class Edge:
    """Scrubs items by their schema. One instance a process; threads may share it.

    Args:
        schemas: Compiled under the policy.

    Attributes:
        unknown: How often a sampled event of a kind held a path that no schema declares.
    """

    def __init__(self, schemas: Schemas) -> None:
        self._schemas = schemas
        self._seen: Counter[str] = Counter()
        self.unknown: Counter[tuple[str, str]] = Counter()

    def scrub(self, item: Item, connection: Connection = _NOBODY) -> Outcome:
        """Scrub one item.

        Raises:
            EventError: It cannot be read, is too large, or is not declared.
        """
        if len(item.raw) > EVENT_BYTES:
            raise DecodeError("too_large")
        if values(item.raw) > EVENT_VALUES:
            raise DecodeError("too_many_values")
        rules = self._schemas.rules_for(item.kind, item.raw)
        try:
            outcome = scrub(
                item.raw,
                rules,
                known=connection.known,
                client_address=connection.address,
                event_id=item.event_id,
            )
        except OverflowError:
            raise ScrubError("too_many_identifiers") from None
        self._sample(item, rules)
        if _may_carry(item.raw) and (earlier := _carried(item.raw, rules)):
            return outcome._replace(remarks=[*earlier, *outcome.remarks])
        return outcome

    def unknown_paths(self, item: Item) -> list[str]:
        """List what an item holds and no schema declares.

        Raises:
            EventError: It cannot be read, or is not declared.
        """
        return self._schemas.rules_for(item.kind, item.raw).unknown_paths(item.raw)

    def _sample(self, item: Item, rules: CompiledRules) -> None:
        """List what no schema declares: the first event of a kind and one in a thousand.

        The fast path never sees an undeclared field, so this is how one learns that there are any.
        """
        seen = self._seen[item.kind]
        self._seen[item.kind] = seen + 1
        if seen % _SAMPLE_EVERY:
            return
        try:
            paths = rules.unknown_paths(item.raw)
        except EventError:
            return  # the event itself was fit; this only looks for what nobody asked for
        for path in paths:
            key = (item.kind, path)
            if key in self.unknown or len(self.unknown) < _UNKNOWN_PATHS:
                self.unknown[key] += 1


def values(body: bytes) -> int:
    """Give at least the number of values in a large body; 0 for a small one, which holds few."""
    if len(body) <= _FEW_BYTES:
        return 0
    return sum(map(body.count, (b",", b"[", b"{")))


class _Carried(msgspec.Struct):
    remarks: list[Remark] = msgspec.field(name=REMARKS, default_factory=list)


_read_carried = msgspec.json.Decoder(_Carried).decode


def _carried(raw: bytes, rules: CompiledRules) -> list[Remark]:
    """Read what an edge before this one (the SDK's) says it changed.

    It is a client's word, so nothing of it is shown but what we could have said ourselves: rules
    that exist, declared names and list indexes.
    """
    try:
        remarks = _read_carried(raw).remarks[:_CARRIED_REMARKS]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return []
    known = {row.detector.id for row in rules.treatments.detectors.rows} | RULES
    return [
        msgspec.structs.replace(remark, path=declared)
        for remark in remarks
        if remark.rule in known
        and 0 <= remark.start <= remark.end <= EVENT_BYTES
        and (declared := _declared(rules.record, remark.path))
    ]


def _declared(record: Record, path: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """Follow a path through declared names; what lies below an open map stands as ``<key>``.

    Gives nothing if the path is none: a client could write anything into one.
    """
    if len(path) > _PATH_PARTS:
        return ()
    followed: list[str | int] = []
    current: Record | None = record
    listed = False
    for part in path:
        if isinstance(part, int):
            if not listed or not 0 <= part < _LIST_ITEMS:
                return ()
            followed.append(part)
            listed = False
        elif current is None:
            followed.append("<key>")
            return tuple(followed)
        elif (entry := next((e for e in current.fields if e.wire == part), None)) is not None:
            followed.append(part)
            current, listed = entry.record, entry.shape in ("list", "records")
        else:
            return ()
    return tuple(followed)


def uuid7_hex() -> str:
    """Make an event id: UUID version 7 (RFC 9562, 5.7) as 32 hex digits, sortable by time.

    It carries the millisecond, so a second recipient gets a derived id instead (DESIGN 5).
    """
    value = (int(time.time() * 1000) << 80) | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | (0x7 << 76)
    value = value & ~(0x3 << 62) | (0x2 << 62)
    return f"{value:032x}"
