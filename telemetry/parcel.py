"""`Parcel` and the bytes of a batch. Knows Avro; does not know what a body means.

Bytes of a batch: Avro single-object encoding (``C3 01``, eight bytes CRC-64-AVRO of the writer's
schema in Parsing Canonical Form, data). Only fingerprints in `SCHEMAS` are read, all bytes must be
consumed, no schema is recursive and no item has zero size: the three ways in which Avro data can
exhaust or crash a reader (docs/reliability.md, rows 64-68).

Source:
    Apache Avro specification, "Single-object encoding".
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import fastavro
from fastavro.schema import fingerprint, to_parsing_canonical_form

from telemetry.errors import DecodeError, SchemaError

__all__ = [
    "BATCH_BYTES",
    "BATCH_PARCELS",
    "Parcel",
    "decode_batch",
    "encode_batches",
    "schemas_dir",
]

BATCH_PARCELS: Final = 64
BATCH_BYTES: Final = 256 * 1024

_EVENT_ID = re.compile(r"[0-9a-f]{32}")
_MARKER = b"\xc3\x01"
_HEADER = (
    "kind",
    "purpose",
    "tenant",
    "retention_class",
    "legal_basis",
    "notice_version",
    "policy_digest",
)
_OWN = (
    "event_id",
    "occurred_at",
    "received_at",
    "retain_until",
    "capsule",
    "body",
    "remarks",
    "reason",
)


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
        for name in _HEADER:
            if not getattr(self, name):
                raise DecodeError("untagged", name)
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
        return tuple(getattr(self, name) for name in _HEADER)


def schemas_dir() -> Path:
    """Folder of the schemas: beside the package in a checkout, inside it in a wheel."""
    inside = Path(__file__).with_name("_schemas")
    return inside if inside.is_dir() else Path(__file__).parent.parent / "schemas"


def _load_schemas() -> tuple[Any, bytes, dict[bytes, Any]]:
    """Parse the batch schemas this version reads. The first is the one it writes."""
    path = schemas_dir() / "batch.avsc"
    try:
        raw = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        raise SchemaError(
            "cannot be read as JSON.", path=path, remedy="Install the package again."
        ) from None
    # The canonical form drops our annotations, so a change of them does not change the bytes.
    mark = bytes.fromhex(fingerprint(to_parsing_canonical_form(raw), "CRC-64-AVRO"))
    parsed = fastavro.parse_schema(raw)
    return parsed, mark, {mark: parsed}


_WRITES, FINGERPRINT, SCHEMAS = _load_schemas()


def encode_batches(parcels: Iterable[Parcel]) -> list[bytes]:
    """Pack parcels, in their order, into as few batches as the limits allow.

    A batch holds at most 64 parcels, and at most 256 KiB unless a single parcel is larger.

    Args:
        parcels: Any parcels; runs with the same header share a batch.

    Returns:
        The bytes of each batch.
    """
    batches: list[bytes] = []
    for header, run in groupby(parcels, key=lambda parcel: parcel.header):
        chunk: list[Parcel] = []
        size = 0
        for parcel in run:
            weight = len(parcel.body) + len(parcel.capsule) + len(parcel.remarks) + 128
            if chunk and (len(chunk) == BATCH_PARCELS or size + weight > BATCH_BYTES):
                batches.append(_encode(header, chunk))
                chunk, size = [], 0
            chunk.append(parcel)
            size += weight
        batches.append(_encode(header, chunk))
    return batches


def _encode(header: tuple[str, ...], parcels: Sequence[Parcel]) -> bytes:
    out = BytesIO()
    out.write(_MARKER)
    out.write(FINGERPRINT)
    record = dict(zip(_HEADER, header, strict=True))
    items = [{name: getattr(parcel, name) for name in _OWN} for parcel in parcels]
    fastavro.schemaless_writer(out, _WRITES, record | {"parcels": items})
    return out.getvalue()


def decode_batch(raw: bytes) -> list[Parcel]:
    """Read the bytes of one batch.

    Raises:
        DecodeError: Unknown fingerprint, data cut off or left over, or a parcel without tags.
    """
    schema = SCHEMAS.get(raw[2:10])
    if raw[:2] != _MARKER or schema is None:
        raise DecodeError("unknown_schema")
    source = BytesIO(raw)
    source.seek(10)
    try:
        record: Any = fastavro.schemaless_reader(source, schema, None)
    except Exception:  # noqa: BLE001 - fastavro raises whatever its decoder meets, quoting data
        raise DecodeError("batch") from None
    if source.tell() != len(raw):
        raise DecodeError("batch")
    items = record.pop("parcels")
    return [Parcel(**record, **item) for item in items]
