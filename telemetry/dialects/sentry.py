"""Sentry's wire format → items: envelopes and the older ``/store/``.

Owns the grammar of an envelope, its item types, and the ways in which a client says who it is.
Source: develop.sentry.dev, "Envelopes", "Envelope Items", "Authentication", and what
``@sentry/node`` 10 and 11, ``@sentry/browser``, ``sentry-sdk`` and ``raven`` really send: items
without ``length``, empty envelope headers, no content type, keys in header, query or envelope.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from typing import Final, NamedTuple, TypeVar
from urllib.parse import parse_qsl, urlsplit

import msgspec

from telemetry.dialects import Refusal, decode_json, decompress, fitting
from telemetry.edge import Item

__all__ = [
    "Credentials",
    "Discarded",
    "Envelope",
    "credentials",
    "dsn_credentials",
    "parse_envelope",
    "parse_store",
]

_T = TypeVar("_T")

_ITEMS: Final = 500

_KINDS: Final = {
    "event": "error_event",
    "session": "session",
    "sessions": "sessions",
    "check_in": "check_in",
}
_DROPPED: Final = frozenset(
    (
        "attachment",
        "feedback",
        "form_data",
        "log",
        "metric_buckets",
        "minidump",
        "otel_span",
        "profile",
        "profile_chunk",
        "profile_chunk_ui",
        "raw_security",
        "replay_event",
        "replay_recording",
        "replay_video",
        "security",
        "span",
        "statsd",
        "trace_metric",
        "transaction",
        "unreal_report",
        "user_report",
    )
)
"""Documented item types that no record describes: dropped, counted by this name."""

_REASONS: Final = frozenset(
    (
        "backpressure",
        "before_send",
        "buffer_overflow",
        "cache_overflow",
        "event_processor",
        "ignored",
        "insufficient_data",
        "internal_sdk_error",
        "invalid",
        "network_error",
        "no_parent_span",
        "queue_overflow",
        "ratelimit_backoff",
        "sample_rate",
        "send_error",
    )
)
_CATEGORIES: Final = frozenset(
    (
        "attachment",
        "default",
        "error",
        "feedback",
        "internal",
        "log_byte",
        "log_item",
        "monitor",
        "profile",
        "profile_chunk",
        "replay",
        "security",
        "session",
        "span",
        "trace_metric",
        "trace_metric_byte",
        "transaction",
    )
)
_REPORT_BYTES: Final = 100 * 1024
_REPORT_LINES: Final = 100
_LONGEST_COUNT: Final = 10**9


class Discarded(NamedTuple):
    """How much a client says it threw away, and why: words of closed sets, else ``other``."""

    reason: str
    category: str
    quantity: int


class Envelope(NamedTuple):
    """What an envelope, or a request to ``/store/``, holds.

    Attributes:
        items: In their order.
        event_id: From the envelope's header, 32 lower-case hex digits; empty if there is none.
        dsn: From the envelope's header: how a tunnelled request says who it is.
        discarded: What its client reports say.
    """

    items: list[Item]
    event_id: str = ""
    dsn: str = ""
    discarded: Sequence[Discarded] = ()


class Credentials(NamedTuple):
    """Who a client says it is. `project` is empty where only the key is given."""

    key: str
    project: str = ""


_KEY: Final = re.compile(r"[0-9A-Za-z_-]{1,64}")


def credentials(x_sentry_auth: str, authorization: str, query: str) -> Credentials | None:
    """Read the key from headers and query string.

    Args:
        x_sentry_auth: ``Sentry sentry_key=…, sentry_version=7, …``; empty if absent.
        authorization: The same, or ``Basic`` with the key as user; other schemes are not ours.
        query: Query string without ``?``.

    Returns:
        The key, or None if none of them holds one: the envelope's own header may then.

    Raises:
        Refusal: ``no_credentials``: one cannot be read, or two do not agree.
    """
    keys = set()
    if x_sentry_auth:
        keys.add(_header_key(x_sentry_auth))
    if authorization[:7].lower() == "sentry ":
        keys.add(_header_key(authorization))
    elif authorization[:6].lower() == "basic ":
        try:
            user = base64.b64decode(authorization[6:].strip(), validate=True).decode("ascii")
        except (ValueError, UnicodeDecodeError):
            raise Refusal("no_credentials") from None
        keys.add(user.partition(":")[0])
    if "sentry_key" in query:
        keys.update(value for name, value in parse_qsl(query) if name == "sentry_key")
    if not keys:
        return None
    key = keys.pop()
    if keys or not _KEY.fullmatch(key):
        raise Refusal("no_credentials")
    return Credentials(key)


def _header_key(header: str) -> str:
    scheme, _, rest = header.strip().partition(" ")
    if scheme.lower() != "sentry":
        raise Refusal("no_credentials")
    for pair in rest.split(","):
        name, _, value = pair.partition("=")
        if name.strip() == "sentry_key":
            return value.strip()
    raise Refusal("no_credentials")


def dsn_credentials(dsn: str) -> Credentials:
    """Read key and project from a DSN (``https://KEY@host/prefix/PROJECT``).

    Raises:
        Refusal: ``no_credentials``: it is no DSN.
    """
    try:
        parts = urlsplit(dsn)
        key = parts.username or ""
    except ValueError:
        raise Refusal("no_credentials") from None
    project = parts.path.rstrip("/").rpartition("/")[2]
    if not _KEY.fullmatch(key) or not _KEY.fullmatch(project):
        raise Refusal("no_credentials")
    return Credentials(key, project)


class _Header(msgspec.Struct, gc=False):
    event_id: str | None = None
    dsn: str | None = None


class _ItemHeader(msgspec.Struct, gc=False):
    type: str
    length: int | None = None


class _Loss(msgspec.Struct, gc=False):
    reason: str = ""
    category: str = ""
    quantity: int = 0


class _Report(msgspec.Struct, gc=False):
    discarded_events: list[_Loss] = []


_header: Final = msgspec.json.Decoder(_Header)
_item_header: Final = msgspec.json.Decoder(_ItemHeader)
_report: Final = msgspec.json.Decoder(_Report)


def parse_envelope(body: bytes) -> Envelope:
    r"""Take an envelope apart.

    Its grammar: a line of JSON headers, then for each item a line of JSON headers and a payload,
    which is ``length`` bytes long or ends at the next ``\n``. Empty lines between items and a
    missing last line end are allowed.

    Raises:
        Refusal: ``bad_envelope``, ``bad_event_id``, ``too_many_items``.
    """
    head, at = _line(body, 0)
    header = _decode_header(head, _header)
    event_id = _plain_id(header.event_id) if header.event_id else ""
    items: list[Item] = []
    discarded: list[Discarded] = []
    # The id in the envelope belongs to one item: the event, else the check-in.
    free_id = event_id
    while at < len(body):
        line, at = _line(body, at)
        if not line:
            continue
        if len(items) == _ITEMS:
            raise Refusal("too_many_items")
        item = _decode_header(line, _item_header)
        payload, at = _payload(body, at, item.length)
        kind = _KINDS.get(item.type)
        if kind is not None:
            own_id = free_id if item.type in ("event", "check_in") else ""
            free_id = "" if own_id else free_id
            items.append(fitting(kind, payload, own_id))
        elif item.type == "client_report":
            items.append(Item("client_report", refused="client_report"))
            discarded += _losses(payload)
        else:
            word = f"kind_{item.type}" if item.type in _DROPPED else "kind_unknown"
            items.append(Item("dropped", refused=word))
    return Envelope(items, event_id, header.dsn or "", discarded)


def _line(body: bytes, start: int) -> tuple[bytes, int]:
    end = body.find(b"\n", start)
    return (body[start:], len(body)) if end < 0 else (body[start:end], end + 1)


def _payload(body: bytes, start: int, length: int | None) -> tuple[bytes, int]:
    if length is None:
        return _line(body, start)
    end = start + length
    if length < 0 or end > len(body) or body[end : end + 1] not in (b"", b"\n"):
        raise Refusal("bad_envelope")
    return body[start:end], end + 1


def _decode_header(line: bytes, decoder: msgspec.json.Decoder[_T]) -> _T:
    try:
        return decode_json(line, decoder)
    except Refusal:
        raise Refusal("bad_envelope") from None


_HEX_ID: Final = re.compile(r"[0-9a-f]{32}")


def _plain_id(text: str) -> str:
    plain = text.replace("-", "").lower()
    if not _HEX_ID.fullmatch(plain):
        raise Refusal("bad_event_id")
    return plain


def _losses(payload: bytes) -> list[Discarded]:
    """Read a client report; one that cannot be read says nothing."""
    if len(payload) > _REPORT_BYTES:
        return []
    try:
        report = decode_json(payload, _report)
    except Refusal:
        return []
    return [
        Discarded(
            loss.reason if loss.reason in _REASONS else "other",
            loss.category if loss.category in _CATEGORIES else "other",
            min(loss.quantity, _LONGEST_COUNT),
        )
        for loss in report.discarded_events[:_REPORT_LINES]
        if loss.quantity > 0
    ]


def parse_store(body: bytes) -> Envelope:
    """Read the body of ``/store/``: one JSON event, or base64 of it, or of its zlib form.

    Raises:
        Refusal: ``not_json``, ``bad_encoding``, ``too_large``.
    """
    body = body.strip()
    if not body.startswith(b"{"):
        try:
            body = base64.b64decode(body, validate=True)
        except (binascii.Error, ValueError):
            raise Refusal("not_json") from None
        if not body.startswith(b"{"):
            body = decompress(body, "deflate")
    if not body.startswith(b"{"):
        raise Refusal("not_json")
    return Envelope([fitting("error_event", body)])
