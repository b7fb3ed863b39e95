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

from scrubbers.engine import Outcome, scrub
from telemetry.errors import DecodeError
from telemetry.rules import CompiledRules, Schemas

__all__ = ["EVENT_BYTES", "Connection", "Edge", "Item", "uuid7_hex"]

EVENT_BYTES: Final = 1024 * 1024
"""Most bytes of one event, decompressed; Sentry's own limit."""

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
        rules = self._schemas.rules_for(item.kind, item.raw)
        self._sample(item, rules)
        return scrub(item.raw, rules, known=connection.known, client_address=connection.address)

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
        for path in rules.unknown_paths(item.raw):
            key = (item.kind, path)
            if key in self.unknown or len(self.unknown) < _UNKNOWN_PATHS:
                self.unknown[key] += 1


def uuid7_hex() -> str:
    """Make an event id: UUID version 7 (RFC 9562, 5.7) as 32 hex digits, sortable by time.

    It carries the millisecond, so a second recipient gets a derived id instead (DESIGN 5).
    """
    value = (int(time.time() * 1000) << 80) | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | (0x7 << 76)
    value = value & ~(0x3 << 62) | (0x2 << 62)
    return f"{value:032x}"
