"""`Parcel`: an event with all we know of it besides its content.

Knows neither the bytes of a batch (`telemetry.batch`) nor what a body means.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import attrgetter

from telemetry.errors import DecodeError

__all__ = ["HEADER", "Parcel"]

HEADER = (
    "kind",
    "purpose",
    "tenant",
    "retention_class",
    "legal_basis",
    "notice_version",
    "policy_digest",
)
"""What the parcels of one batch have in common."""

_header_of: Callable[[Parcel], tuple[str, ...]] = attrgetter(*HEADER)
_EVENT_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """One event with all we know of it besides its content.

    It cannot be made without its tags: purpose, retention and policy.

    Attributes:
        event_id: 32 lower-case hex digits. On a clean log the recipient's own id for the event.
        kind: Name of the record that describes `body`.
        purpose: A name from ``purposes.toml``.
        tenant: Which application sent it.
        retention_class: A name from ``retention.toml``.
        legal_basis: As the purpose states it, for example ``6(1)(f)``.
        notice_version: Version of the privacy notice in force at receipt.
        policy_digest: SHA-256 of the policy that scrubbed it, in hex.
        occurred_at: Aware UTC time of the event.
        received_at: Aware UTC time of receipt.
        retain_until: Latest moment at which the event may exist anywhere; nobody may extend it.
        capsule: Sealed identifiers; empty if there are none, and on clean logs.
        body: JSON of the closed record; the recipient's shape on a clean log; sealed original in a
            dead letter.
        remarks: JSON of what was changed at the edge; empty if nothing.
        reason: Why a dead letter is one; else empty.
    """

    event_id: str
    kind: str
    purpose: str
    tenant: str
    retention_class: str
    legal_basis: str
    notice_version: str
    policy_digest: str
    occurred_at: datetime
    received_at: datetime
    retain_until: datetime
    capsule: bytes = b""
    body: bytes = b""
    remarks: bytes = b""
    reason: str = ""

    def __post_init__(self) -> None:
        if not _EVENT_ID.fullmatch(self.event_id):
            raise DecodeError("event_id", "event_id")
        if not all(_header_of(self)):
            raise DecodeError("untagged", next(n for n in HEADER if not getattr(self, n)))
        for at in (self.occurred_at, self.received_at, self.retain_until):
            if at.tzinfo is not UTC:
                raise DecodeError("time_without_zone")
        if self.retain_until <= self.occurred_at:
            raise DecodeError("untagged", "retain_until")

    def __repr__(self) -> str:
        """Name what it is, never what it holds."""
        return f"Parcel({self.kind} {self.event_id} {len(self.body)} bytes)"

    @property
    def header(self) -> tuple[str, ...]:
        """What parcels of one batch have in common."""
        return _header_of(self)
