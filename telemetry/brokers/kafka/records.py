"""What a Kafka record holds: parcels, and how often what happened.

A record is a run of encoded batches (`telemetry.batch`), each behind its length in four bytes. One
append makes one record, or several that each account for themselves; one sealed record makes at
most one record on each clean stream. So whatever is cut off, is cut off between records, and no
record is without its counts.

Headers:

``events``  how many parcels it holds, for the case that it cannot be read.
``counts``  on sealed records: what the append that wrote it adds to the books.
``origin``  on clean records: offset of the sealed record that it was made from.
``total``   on clean records: parcels that this partition was given so far, with this record's.

Nothing here imports a Kafka client.
"""

from __future__ import annotations

import json
import zlib
from base64 import b85decode, b85encode
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

from telemetry.batch import decode_batch
from telemetry.brokers import Entry, pack
from telemetry.errors import BrokerError, DecodeError
from telemetry.parcel import Parcel

__all__ = [
    "FINISHED",
    "RECORD_BYTES",
    "STORED",
    "Record",
    "counts_of",
    "decode_counts",
    "decode_metadata",
    "encode_counts",
    "encode_metadata",
    "events_of",
    "frame",
    "header",
    "number_of",
    "runs",
    "unframe",
    "weight",
    "without_large",
]

RECORD_BYTES: Final = 8 * 1024**2
"""Most that a record of ours may hold; a topic takes a little more (`topics.MESSAGE_BYTES`)."""

_PARCEL_BYTES: Final = 2 * 1024**2
_RUN_BYTES: Final = 1024**2
_RUN_PARCELS: Final = 1024
_MARGIN_BYTES: Final = 256 * 1024
_METADATA_BYTES: Final = 4096
_PLAIN_METADATA_BYTES: Final = 1024
_NUMBER_DIGITS: Final = 19

# Stages of entries that are no part of the books: parcels stored in, and finished from, a stream.
STORED: Final = "+"
FINISHED: Final = "-"


class Record(NamedTuple):
    """One record to be sent."""

    topic: str
    partition: int
    value: bytes
    headers: list[tuple[str, bytes]]

    @property
    def size(self) -> int:
        """Upper bound of its bytes on the wire."""
        return len(self.value) + sum(len(k) + len(v) + 8 for k, v in self.headers) + 256


# ---------------------------------------------------------------------- parcels as bytes


def weight(parcel: Parcel) -> int:
    """Bytes that a parcel takes in a record, about."""
    return len(parcel.body) + len(parcel.capsule) + len(parcel.remarks) + 128


def without_large(
    parcels: Sequence[Parcel], *, together: bool
) -> tuple[Sequence[Parcel], list[Parcel]]:
    """Part what a record can hold from the largest, which it cannot.

    Args:
        parcels: What is to be stored.
        together: All in one record, not in as many as it takes.

    Returns:
        What fits, in order; and what does not, without its content: it can only be a dead letter.
    """
    weights = [weight(parcel) for parcel in parcels]
    total, largest = sum(weights), max(weights, default=0)
    if largest <= _PARCEL_BYTES and (not together or total <= RECORD_BYTES - _MARGIN_BYTES):
        return parcels, []
    fit: list[Parcel] = []
    large: list[Parcel] = []
    room = RECORD_BYTES - _MARGIN_BYTES
    for parcel, bytes_ in zip(parcels, weights, strict=True):
        if bytes_ > _PARCEL_BYTES or (together and bytes_ > room):
            large.append(replace(parcel, reason="too_large", body=b"", remarks=b"", capsule=b""))
        else:
            fit.append(parcel)
            room -= bytes_
    return fit, large


def runs(parcels: Sequence[Parcel]) -> Iterator[Sequence[Parcel]]:
    """Cut what is to be appended into runs of one record each, in order."""
    start = size = 0
    for number, parcel in enumerate(parcels):
        more = weight(parcel)
        if number > start and (size + more > _RUN_BYTES or number - start == _RUN_PARCELS):
            yield parcels[start:number]
            start, size = number, 0
        size += more
    if start < len(parcels):
        yield parcels[start:]


def frame(parcels: Sequence[Parcel]) -> bytes:
    """Encode parcels as the value of one record."""
    parts: list[bytes] = []
    for raw, _ in pack(parcels):
        parts += (len(raw).to_bytes(4), raw)
    return b"".join(parts)


def unframe(value: bytes) -> list[Parcel]:
    """Read the value of a record.

    Raises:
        DecodeError: It is none of ours, is cut off, or holds more than one record may.
    """
    if len(value) > RECORD_BYTES:
        raise DecodeError("batch")
    parcels: list[Parcel] = []
    at = 0
    while at < len(value):
        end = at + 4 + int.from_bytes(value[at : at + 4])
        if end > len(value) or end < at + 14:
            raise DecodeError("batch")
        parcels += decode_batch(value[at + 4 : end])
        at = end
    return parcels


# ---------------------------------------------------------------------- headers


def header(record: Any, name: str) -> bytes:
    """Read a header; empty if it is not there."""
    return next((bytes(value or b"") for key, value in record.headers or () if key == name), b"")


def number_of(record: Any, name: str) -> int | None:
    """Read a header that is a number; None if it is not there or no number."""
    text = header(record, name)
    return int(text) if text.isdigit() and len(text) <= _NUMBER_DIGITS else None


def events_of(record: Any) -> int:
    """Read how many parcels a record was said to hold that cannot be read; at least one."""
    said = number_of(record, "events")
    return said if said is not None and 1 <= said <= _RUN_PARCELS else 1


def counts_of(record: Any) -> Counter[Entry]:
    """Read what a sealed record adds to the books; nothing if it does not say so in our words."""
    raw = header(record, "counts")
    try:
        return decode_counts(raw) if raw else Counter()
    except BrokerError:
        return Counter()


# ---------------------------------------------------------------------- counts as text


def encode_counts(counts: Counter[Entry]) -> bytes:
    """Write counts as JSON; entries of zero are left out."""
    rows = [[*entry, n] for entry, n in sorted(counts.items()) if n]
    return json.dumps(rows, separators=(",", ":")).encode()


def decode_counts(raw: bytes) -> Counter[Entry]:
    """Read counts.

    Raises:
        BrokerError: They are none.
    """
    try:
        return Counter(
            {
                Entry(str(stage), str(outcome), str(why)): int(n)
                for stage, outcome, why, n in json.loads(raw)
            }
        )
    except (ValueError, TypeError):
        raise BrokerError("The books on Kafka cannot be read.") from None


def encode_metadata(counts: Counter[Entry], origin: int) -> str:
    """Write cumulative counts and the last origin as text for an offset commit.

    Plain JSON while it is short, so that an operator can read it; else compressed.

    Raises:
        BrokerError: It is longer than a broker takes (``offset.metadata.max.bytes``).
    """
    text = f"{origin} {encode_counts(counts).decode()}"
    if len(text) > _PLAIN_METADATA_BYTES:
        text = "z" + b85encode(zlib.compress(text.encode(), 6)).decode()
    if len(text) > _METADATA_BYTES:
        raise BrokerError("The counts do not fit into a commit.")
    return text


def decode_metadata(text: str) -> tuple[Counter[Entry], int]:
    """Read counts and the last origin.

    Raises:
        BrokerError: Somebody else wrote it.
    """
    try:
        if text.startswith("z"):
            text = zlib.decompress(b85decode(text[1:])).decode()
        origin, _, counts = text.partition(" ")
        return decode_counts(counts.encode()), int(origin)
    except (ValueError, zlib.error):
        raise BrokerError(
            "A commit of this group was not made by us; its books are gone."
        ) from None
