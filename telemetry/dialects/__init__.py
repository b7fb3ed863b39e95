"""Wire formats → items. One module a format, and here what all of them need.

Nothing below this package knows HTTP: bytes and strings in, `telemetry.edge.Item` out. The events
themselves are never interpreted here; they are cut out and handed on as they came.
"""

from __future__ import annotations

import zlib
from typing import Final, NamedTuple, TypeVar

import brotli
import msgspec
import zstandard

from telemetry.edge import EVENT_BYTES, EVENT_VALUES, Item, values
from telemetry.errors import DecodeError, TelemetryError
from telemetry.tolerant import strict_json

__all__ = [
    "BODY_BYTES",
    "EVENTS",
    "REFUSALS",
    "Refusal",
    "decode_json",
    "decompress",
    "fitting",
    "guard",
]

BODY_BYTES: Final = 10 * 1024 * 1024
"""Most bytes of a request's body, compressed or not."""

EVENTS: Final = 1000
"""Most events of one request in the Heap and native dialects; Heap's own limit."""

_RATIO: Final = 100
_RATIO_FROM: Final = EVENT_BYTES
"""Below this size no ratio is too high: a thousand equal events do compress well."""

_GUARD_FROM: Final = 64 * 1024
_VALUES: Final = 300_000
"""A mebibyte of a real event holds some 60,000; one of empty lists 700,000."""

_T = TypeVar("_T")


class _Answer(NamedTuple):
    status: int
    detail: str


REFUSALS: Final = {
    "empty_body": _Answer(400, "The request has no body."),
    "not_http": _Answer(400, "The request is no HTTP that can be read."),
    "not_json": _Answer(400, "The body is no JSON of the documented form."),
    "bad_envelope": _Answer(400, "The body is no Sentry envelope."),
    "bad_event_id": _Answer(400, "The event id is not 32 hexadecimal digits."),
    "bad_encoding": _Answer(400, "The body is not what its Content-Encoding says."),
    "too_many_items": _Answer(400, "The envelope holds more than 500 items."),
    "no_credentials": _Answer(401, "Credentials are missing, unreadable or contradict each other."),
    "unknown_project": _Answer(403, "No project has this key."),
    "no_such_path": _Answer(404, "There is nothing at this path."),
    "wrong_method": _Answer(405, "This path takes POST only."),
    "too_slow": _Answer(408, "The request did not arrive in time."),
    "too_large": _Answer(
        413, "The body is larger than 10 MiB, or expands more than a hundredfold."
    ),
    "too_many_events": _Answer(413, "The request holds more than 1000 events."),
    "too_many_values": _Answer(413, "The body holds too many values."),
    "wrong_type": _Answer(415, "This Content-Type is not supported."),
    "wrong_encoding": _Answer(415, "This Content-Encoding is not supported."),
    "over_quota": _Answer(429, "This key has sent more events than it may; try again later."),
    "log_full": _Answer(429, "The log has no room; try again later."),
    "no_room": _Answer(429, "A recipient's log is nearly full; try again later."),
    "shed": _Answer(429, "Room is short and errors come first; try again later."),
    "internal": _Answer(500, "The request could not be processed."),
    "log_unavailable": _Answer(503, "The log cannot take events now; try again later."),
    "busy": _Answer(503, "Too many requests are under way; try again later."),
}
"""Every refusal there is: its word, its HTTP status, and all that its sender is told."""


class Refusal(TelemetryError):  # noqa: N818 - an answer, not a fault
    """A request is refused as a whole: nothing of it was taken.

    Args:
        code: A word of `REFUSALS`; it becomes a metric label.
        retry_after_s: When to try again, for 429 and 503.
    """

    def __init__(self, code: str, *, retry_after_s: int = 0) -> None:
        self.code, self.retry_after_s = code, retry_after_s
        self.status, self.detail = REFUSALS[code]
        super().__init__(code)


def decompress(data: bytes, encoding: str) -> bytes:
    """Undo a ``Content-Encoding``, with at most `BODY_BYTES` and 100:1 (from 1 MiB up).

    Args:
        data: The body as it came.
        encoding: ``gzip``, ``deflate``, ``br`` or ``zstd``; empty, ``identity`` and ``utf-8``
            (which old clients send) stand for none. Anything else, also two of them, is refused.

    Raises:
        Refusal: ``wrong_encoding``, ``bad_encoding`` (corrupt, cut off, data behind the end) or
            ``too_large``.
    """
    if encoding in ("", "identity", "utf-8"):
        return data
    most = min(BODY_BYTES, max(_RATIO_FROM, _RATIO * len(data)))
    if encoding in ("gzip", "x-gzip"):
        return _inflate(data, most, zlib.MAX_WBITS | 16)
    if encoding == "deflate":
        # RFC 9110, 8.4.1.2 says zlib; some clients send the bare stream.
        zlib_head = len(data) > 1 and data[0] & 15 == 8 and not (data[0] << 8 | data[1]) % 31  # noqa: PLR2004 - RFC 1950, 2.2
        return _inflate(data, most, zlib.MAX_WBITS if zlib_head else -zlib.MAX_WBITS)
    if encoding == "br":
        return _unbrotli(data, most)
    if encoding == "zstd":
        return _unzstd(data, most)
    raise Refusal("wrong_encoding")


def _inflate(data: bytes, most: int, window_bits: int) -> bytes:
    engine = zlib.decompressobj(window_bits)
    try:
        result = engine.decompress(data, most + 1)
    except zlib.error:
        raise Refusal("bad_encoding") from None
    if len(result) > most:
        raise Refusal("too_large")
    if not engine.eof or engine.unused_data:
        raise Refusal("bad_encoding")
    return result


def _unbrotli(data: bytes, most: int) -> bytes:
    engine, pieces, total = brotli.Decompressor(), [], 0
    try:
        piece = engine.process(data, output_buffer_limit=_GUARD_FROM)
        while piece:
            pieces.append(piece)
            total += len(piece)
            if total > most:
                raise Refusal("too_large")
            if engine.is_finished():
                break
            piece = engine.process(b"", output_buffer_limit=_GUARD_FROM)
    except brotli.error:
        raise Refusal("bad_encoding") from None
    if not engine.is_finished():
        raise Refusal("bad_encoding")
    return b"".join(pieces)


_ZSTD_STEP: Final = 256
"""A block of 4 bytes can stand for 128 KiB, so a step makes at most 8 MiB."""


def _unzstd(data: bytes, most: int) -> bytes:
    engine = zstandard.ZstdDecompressor(max_window_size=8 * 1024 * 1024).decompressobj()
    pieces, total = [], 0
    try:
        for start in range(0, len(data), _ZSTD_STEP):
            if engine.eof:
                raise Refusal("bad_encoding")
            pieces.append(engine.decompress(data[start : start + _ZSTD_STEP]))
            total += len(pieces[-1])
            if total > most:
                raise Refusal("too_large")
    except zstandard.ZstdError:
        raise Refusal("bad_encoding") from None
    if not engine.eof or engine.unused_data:
        raise Refusal("bad_encoding")
    return b"".join(pieces)


def guard(body: bytes) -> None:
    """Refuse JSON that would become very many objects, before it becomes any.

    Raises:
        Refusal: ``too_many_values``.
    """
    if values(body) > _VALUES:
        raise Refusal("too_many_values")


def decode_json(body: bytes, decoder: msgspec.json.Decoder[_T]) -> _T:
    """Read JSON by type; what real clients send although it is none, by way of `strict_json`.

    Raises:
        Refusal: ``not_json``. The message repeats nothing of it.
    """
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass
    try:
        return decoder.decode(msgspec.json.encode(strict_json(body.removeprefix(b"\xef\xbb\xbf"))))
    except (DecodeError, msgspec.MsgspecError, UnicodeError, RecursionError):
        raise Refusal("not_json") from None


def fitting(kind: str, raw: bytes, event_id: str = "") -> Item:
    """Make an item, refused if it is larger than any event may be or holds more values."""
    if len(raw) > EVENT_BYTES:
        return Item(kind, refused="too_large")
    if values(raw) > EVENT_VALUES:
        return Item(kind, refused="too_many_values")
    return Item(kind, raw, event_id)
