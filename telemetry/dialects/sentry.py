"""Sentry's wire format → items: envelopes, the older ``/store/``, and reports of browsers.

Owns the grammar of an envelope, its item types, and the ways in which a client says who it is.
Source: develop.sentry.dev, "Envelopes", "Envelope Items", "Authentication", and what
``@sentry/node`` 10 and 11, ``@sentry/browser``, ``sentry-sdk`` and ``raven`` really send: items
without ``length``, empty envelope headers, no content type, keys in header, query or envelope.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Container, Sequence
from typing import Final, NamedTuple, TypeVar
from urllib.parse import parse_qsl, urlsplit

import msgspec

from telemetry.dialects import EVENTS, Refusal, decode_json, decompress, fitting, guard
from telemetry.edge import Item

__all__ = [
    "KINDS",
    "Credentials",
    "Discarded",
    "Envelope",
    "credentials",
    "dsn_credentials",
    "parse_envelope",
    "parse_security",
    "parse_store",
]

_T = TypeVar("_T")

_ITEMS: Final = 500

_KINDS: Final = {
    "event": "error_event",
    "transaction": "transaction",
    "feedback": "feedback",
    "user_report": "user_report",
    "session": "session",
    "sessions": "sessions",
    "check_in": "check_in",
    "raw_security": "security_report",
    "log": "log",
    "span": "span",
    "trace_metric": "trace_metric",
}
"""Record that describes an item of this type. Whether it goes on is the policy's business."""

KINDS: Final = frozenset(_KINDS.values())
"""Records that items of an envelope are events of."""
_CONTAINERS: Final = frozenset(("log", "span", "trace_metric"))
"""Items that hold many: ``{"version": 2, "items": […]}``."""

_NAMED: Final = frozenset(("event", "transaction", "feedback", "check_in", "raw_security"))
"""Items that the id in the envelope's header may belong to; the first of them has it."""

_REFUSED: Final = frozenset(
    (
        "attachment",
        "form_data",
        "metric_buckets",
        "minidump",
        "nel",
        "otel_span",
        "profile",
        "profile_chunk",
        "profile_chunk_ui",
        "replay_event",
        "replay_recording",
        "replay_video",
        "security",
        "statsd",
        "unreal_report",
    )
)
"""Item types that never go on, whatever a policy says: dropped, counted by this name.

docs/limitations.md gives the reason of each.
"""

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


def credentials(
    x_sentry_auth: str, authorization: str, query: str, path_key: str = ""
) -> Credentials | None:
    """Read the key from headers and query string.

    Args:
        x_sentry_auth: ``Sentry sentry_key=…, sentry_version=7, …``; empty if absent.
        authorization: The same, or ``Basic`` with the key as user; other schemes are not ours.
        query: Query string without ``?``.
        path_key: A key that stands in the path; empty if absent.

    Returns:
        The key, or None if none of them holds one: the envelope's own header may then.

    Raises:
        Refusal: ``no_credentials``: one cannot be read, or two do not agree.
    """
    keys = {path_key} if path_key else set()
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


class _Container(msgspec.Struct, gc=False):
    items: list[msgspec.Raw]


class _Aggregates(msgspec.Struct, gc=False):
    aggregates: list[msgspec.Raw]
    attrs: msgspec.Raw = msgspec.Raw(b"{}")


class _Bucket(msgspec.Struct, gc=False):
    did: str | int | None = None


class _BrowserReport(msgspec.Struct, gc=False, rename={"csp_report": "csp-report"}):
    csp_report: msgspec.Raw = msgspec.Raw()
    type: str | None = None


_report: Final = msgspec.json.Decoder(_Report)
_container: Final = msgspec.json.Decoder(_Container)
_aggregates: Final = msgspec.json.Decoder(_Aggregates)
_bucket: Final = msgspec.json.Decoder(_Bucket)
_browser_report: Final = msgspec.json.Decoder(_BrowserReport)
_list: Final = msgspec.json.Decoder(list[msgspec.Raw])


def parse_envelope(body: bytes, kinds: Container[str]) -> Envelope:
    r"""Take an envelope apart.

    Its grammar: a line of JSON headers, then for each item a line of JSON headers and a payload,
    which is ``length`` bytes long or ends at the next ``\n``. Empty lines between items and a
    missing last line end are allowed.

    Of the envelope's headers only ``event_id`` and ``dsn`` are read: ``trace`` (whose transaction
    may be an address), ``sdk`` and what a proxy may have added are never decoded.

    A container of logs, spans or metrics becomes one item for each of its elements.

    Args:
        body: The envelope.
        kinds: Records that the policy has a purpose for. Of other items not a byte is copied;
            each, also a container, counts once, as ``kind_`` and its type.

    Raises:
        Refusal: ``bad_envelope``, ``bad_event_id``, ``too_many_items``, ``too_many_events``,
            ``too_many_values``.
    """
    head, at = _line(body, 0)
    header = _decode_header(head, _header)
    event_id = _plain_id(header.event_id) if header.event_id else ""
    items: list[Item] = []
    discarded: list[Discarded] = []
    free_id = event_id
    count = 0
    while at < len(body):
        line, at = _line(body, at)
        if not line:
            continue
        if count == _ITEMS:
            raise Refusal("too_many_items")
        count += 1
        item = _decode_header(line, _item_header)
        start, end, at = _extent(body, at, item.length)
        kind = _KINDS.get(item.type, "")
        if kind in kinds:
            own_id = free_id if item.type in _NAMED else ""
            free_id = "" if own_id else free_id
            items += _opened(item.type, kind, body[start:end], own_id)
            if len(items) > _ITEMS + EVENTS:
                raise Refusal("too_many_events")
        elif item.type == "client_report":
            items.append(Item("client_report", refused="client_report"))
            discarded += _losses(body[start:end])
        else:
            known = kind or item.type in _REFUSED
            items.append(_dropped(item.type if known else "unknown"))
    return Envelope(items, event_id, header.dsn or "", discarded)


def _dropped(word: str) -> Item:
    return Item("dropped", refused=f"kind_{word}")


def _line(body: bytes, start: int) -> tuple[bytes, int]:
    end = body.find(b"\n", start)
    return (body[start:], len(body)) if end < 0 else (body[start:end], end + 1)


def _extent(body: bytes, start: int, length: int | None) -> tuple[int, int, int]:
    """Say where a payload begins and ends and where the next line begins, without copying it."""
    if length is None:
        end = body.find(b"\n", start)
        return (start, len(body), len(body)) if end < 0 else (start, end, end + 1)
    end = start + length
    if length < 0 or end > len(body) or body[end : end + 1] not in (b"", b"\n"):
        raise Refusal("bad_envelope")
    return start, end, end + 1


def _opened(word: str, kind: str, payload: bytes, event_id: str) -> list[Item]:
    """Make the items that one item of an envelope stands for."""
    if word in _CONTAINERS:
        return _elements(kind, payload)
    if word == "sessions":
        return _buckets(kind, payload)
    if word == "raw_security":
        return [_security_item(payload, event_id)]
    return [fitting(kind, payload, event_id)]


def _elements(kind: str, payload: bytes) -> list[Item]:
    guard(payload)
    try:
        container = decode_json(payload, _container)
    except Refusal:
        # Also a span that stands alone, as browsers sent it before version 2: another record.
        return [Item(kind, refused="unknown_form")]
    if len(container.items) > EVENTS:
        raise Refusal("too_many_events")
    if not container.items:
        return [Item(kind, refused="empty_container")]
    return [fitting(kind, bytes(raw)) for raw in container.items]


def _buckets(kind: str, payload: bytes) -> list[Item]:
    """Give each bucket that names somebody an item of its own: one event, one account.

    SDKs of today count sessions without naming anybody; then all buckets stay together.
    """
    whole = [fitting(kind, payload)]
    if b'"did"' not in payload or whole[0].refused:
        return whole
    try:
        found = decode_json(payload, _aggregates)
        named = [bool(decode_json(bytes(raw), _bucket).did) for raw in found.aggregates]
    except Refusal:
        return whole
    if not any(named):
        return whole
    if len(named) > EVENTS:
        raise Refusal("too_many_events")
    attributes = bytes(found.attrs)
    others = [raw for raw, one in zip(found.aggregates, named, strict=True) if not one]
    groups = [[raw] for raw, one in zip(found.aggregates, named, strict=True) if one]
    if others:
        groups.append(others)
    return [
        fitting(
            kind, b'{"aggregates":[%b],"attrs":%b}' % (b",".join(map(bytes, group)), attributes)
        )
        for group in groups
    ]


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


def parse_security(body: bytes, kinds: Container[str]) -> Envelope:
    """Read what a browser reports: a ``report-uri`` body, or a list of the Reporting API.

    Args:
        body: JSON.
        kinds: Records that the policy has a purpose for.

    Raises:
        Refusal: ``not_json``, ``too_many_events``, ``too_many_values``.

    Source:
        W3C, Content Security Policy Level 3, 5.3; Reporting API, 2.4.
    """
    if "security_report" not in kinds:
        return Envelope([_dropped("raw_security")])
    guard(body)
    if not body.lstrip().startswith(b"["):
        return Envelope([_security_item(body, "")])
    found = decode_json(body, _list)
    if len(found) > EVENTS:
        raise Refusal("too_many_events")
    items = [_security_item(bytes(raw), "") for raw in found]
    return Envelope(items or [_dropped("security_other")])


def _security_item(raw: bytes, event_id: str) -> Item:
    """Take violations of a Content-Security-Policy; count what else browsers report."""
    try:
        report = decode_json(raw, _browser_report)
    except Refusal:
        return _dropped("security_other")
    if len(report.csp_report) or report.type == "csp-violation":
        return fitting("security_report", raw, event_id)
    return _dropped("nel" if report.type == "network-error" else "security_other")


def parse_store(body: bytes, kinds: Container[str]) -> Envelope:
    """Read the body of ``/store/``: one JSON event, or base64 of it, or of its zlib form.

    Raises:
        Refusal: ``not_json``, ``bad_encoding``, ``too_large``.
    """
    if "error_event" not in kinds:
        return Envelope([_dropped("event")])
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
