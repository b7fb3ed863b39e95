"""A file somebody saved → the events in it, whatever wire format it has.

Owns how the formats are told apart when no request says which it is. The cutting itself is done by
the dialects, so that what is explained is what the gateway would have taken.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from telemetry.dialects import BODY_BYTES, EVENTS, Refusal, decompress, fitting, heap, sentry
from telemetry.edge import Item
from telemetry.errors import DecodeError
from telemetry.schema import load_records
from telemetry.tolerant import strict_json

__all__ = ["Sample", "Unrecognized", "is_envelope", "read_samples"]


class Unrecognized(DecodeError):  # noqa: N818 - a statement about a file
    """The bytes are no event in a format we know, or one of several kinds."""

    reason = "unrecognized"


class Sample(NamedTuple):
    """One event as it was saved.

    Attributes:
        item: What the dialect made of it: the event in the names of its record.
        original: The event in its sender's names.
        names: Sender's name → name in the record; None if they are the same.
        framing: Names that belong to the format and not to the event, and what becomes of them.
    """

    item: Item
    original: Mapping[str, Any]
    names: Mapping[str, str] | None = None
    framing: Mapping[str, str] = {}


_ENVELOPE_HEADERS: Final = frozenset(("event_id", "dsn", "sdk", "sent_at", "trace"))
_HEAP_NAMES: Final = {
    "event": "event",
    "identity": "account",
    "timestamp": "time",
    "session_id": "session",
    "idempotency_key": "event_id",
    "properties": "properties",
}
_HEAP_FRAMING: Final = {"app_id": "names the sender's project; each recipient gets its own"}
_NATIVE_FRAMING: Final = {"kind": "names the record"}
_SENTRY_MARKS: Final = frozenset(
    ("exception", "logentry", "platform", "breadcrumbs", "contexts", "sdk", "stacktrace", "message")
)
_BOM: Final = b"\xef\xbb\xbf"


def read_samples(data: bytes, kind: str = "") -> list[Sample]:
    """Read the events of a file: an envelope, JSON, a JSON array, or JSON a line; also gzipped.

    Args:
        data: The file.
        kind: Name of the record, where the event itself does not tell. Then each JSON object is
            one event in the names of that record.

    Raises:
        Refusal: It is an envelope or a Heap body, and broken or too large.
        Unrecognized: It is no JSON, or nothing tells which kind of event.
    """
    if data[:2] == b"\x1f\x8b":
        data = _unzipped(data)
    if len(data) > BODY_BYTES:
        raise Refusal("too_large")
    data = data.removeprefix(_BOM)
    if not kind and is_envelope(data):
        return [
            Sample(item, _object(item.raw) if item.raw else {})
            for item in sentry.parse_envelope(data, load_records()).items
        ]
    found: list[Sample] = []
    for raw in _objects(data):
        found += [Sample(fitting(kind, raw), _object(raw))] if kind else _recognize(raw)
        if len(found) > EVENTS:
            raise Refusal("too_many_events")
    if not found:
        raise Unrecognized
    return found


def _unzipped(data: bytes) -> bytes:
    try:
        return decompress(data, "gzip")
    except zlib.error:
        raise Refusal("bad_encoding") from None


def is_envelope(data: bytes) -> bool:
    """Tell a Sentry envelope from JSON a line: by its first two lines."""
    head, _, rest = data.partition(b"\n")
    try:
        first = strict_json(head)
        second = strict_json(rest.lstrip(b"\n").partition(b"\n")[0]) if rest.strip() else None
    except DecodeError:
        return False
    if not isinstance(first, dict) or set(first) - _ENVELOPE_HEADERS:
        return False
    if second is None:
        return bool(first)
    return isinstance(second, dict) and isinstance(second.get("type"), str)


def _objects(data: bytes) -> Iterator[bytes]:
    """Cut a file into JSON objects."""
    data = data.strip()
    try:
        whole = strict_json(data)
    except DecodeError:
        if b"\n" not in data:
            raise Unrecognized from None
        yield from (line for line in data.split(b"\n") if line.strip())
        return
    if isinstance(whole, list):
        import msgspec  # noqa: PLC0415 - only here

        for one in whole:
            yield msgspec.json.encode(one)
    else:
        yield data


def _object(raw: bytes) -> dict[str, Any]:
    data = strict_json(raw)
    if not isinstance(data, dict):
        raise Unrecognized("not_an_object")
    return data


def _recognize(raw: bytes) -> list[Sample]:
    data = _object(raw)
    if "app_id" in data:
        return _of_heap(raw, data)
    kind = data.get("kind")
    if isinstance(kind, str):
        return [Sample(fitting(kind, raw), data, framing=_NATIVE_FRAMING)]
    if isinstance(data.get("event"), str) and data.keys() & {"identity", "idempotency_key"}:
        return _of_heap(raw, data)  # one element of a bulk request
    for mark, found in (
        ("event", "analytics_event"),
        ("sid", "session"),
        ("aggregates", "sessions"),
        ("monitor_slug", "check_in"),
        ("csp-report", "security_report"),
    ):
        if mark in data:
            return [Sample(fitting(found, raw), data)]
    if data.keys() & _SENTRY_MARKS:
        # Transactions and feedback are events that say so; an error may say "error", or nothing.
        said = data.get("type")
        found = said if said in ("transaction", "feedback") else "error_event"
        return [Sample(fitting(found, raw), data)]
    raise Unrecognized


def _of_heap(raw: bytes, data: Mapping[str, Any]) -> list[Sample]:
    is_user = "users" in data or not data.keys() & {"event", "events"}
    items = (heap.parse_users(raw) if is_user else heap.parse_track(raw)).items
    listed = data.get("users" if is_user else "events")
    originals = listed if isinstance(listed, list) else [data]
    return [
        Sample(item, original, _HEAP_NAMES, _HEAP_FRAMING)
        for item, original in zip(items, originals, strict=True)
    ]
