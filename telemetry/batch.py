"""The bytes of a batch: up to 64 parcels that share purpose, tenant and policy.

Bytes of a batch: Avro single-object encoding (``C3 01``, eight bytes CRC-64-AVRO of the writer's
schema in Parsing Canonical Form, data). Only fingerprints in `SCHEMAS` are read, all bytes must be
consumed, no schema is recursive and no item has zero size: the three ways in which Avro data can
exhaust or crash a reader (docs/reliability.md, rows 64-68).

Source:
    Apache Avro specification, "Single-object encoding".
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from io import BytesIO
from itertools import groupby
from operator import attrgetter
from typing import Any, Final

import fastavro
from fastavro.schema import fingerprint, to_parsing_canonical_form

from telemetry.errors import DecodeError, SchemaError
from telemetry.parcel import HEADER, Parcel
from telemetry.policy import schemas_dir

__all__ = ["BATCH_BYTES", "BATCH_PARCELS", "decode_batch", "encode_batches"]

BATCH_PARCELS: Final = 64
BATCH_BYTES: Final = 256 * 1024

_MARKER: Final = b"\xc3\x01"
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
_own_of: Callable[[Parcel], tuple[Any, ...]] = attrgetter(*_OWN)


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
    for header, run in groupby(parcels, key=attrgetter("header")):
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
    record = dict(zip(HEADER, header, strict=True))
    items = [dict(zip(_OWN, _own_of(parcel), strict=True)) for parcel in parcels]
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
