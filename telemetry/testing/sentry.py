"""A stand-in for Sentry: reads envelopes as Relay does and notes every broken rule.

Source:
    develop.sentry.dev: transport/envelopes, data-model/envelope-items, transport/authentication,
    transport/rate-limiting, event-payloads; the limits are Relay's defaults.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import urlsplit
from uuid import UUID

from telemetry.testing.stand_in import Reply, Request, StandIn

__all__ = ["Item", "SentryStandIn"]

_MIB: Final = 1024 * 1024
_ENVELOPE_BYTES, _EVENT_BYTES = 200 * _MIB, _MIB
_ITEM_BYTES: Final = {
    "event": _EVENT_BYTES,
    "transaction": _EVENT_BYTES,
    "feedback": _EVENT_BYTES,
    "check_in": 100 * 1024,
    "client_report": 100 * 1024,
    "log": _MIB,
    "trace_metric": _MIB,
    "span": 10 * _MIB,
    "profile": 50 * _MIB,
    "attachment": 200 * _MIB,
}
_ITEMS: Final = 500
_ONCE: Final = frozenset({"event", "transaction", "check_in", "feedback"})
_MOST: Final = {"session": 100, "attachment": 30, "log": 1, "trace_metric": 1, "span": 1}
_NEED_ID: Final = frozenset({"event", "transaction", "attachment", "feedback", "raw_security"})
_CONTAINERS: Final = {
    "log": "application/vnd.sentry.items.log+json",
    "trace_metric": "application/vnd.sentry.items.trace-metric+json",
    "span": "application/vnd.sentry.items.span.v2+json",
}
_ELEMENTS: Final = {
    "log": {"timestamp": float, "trace_id": str, "level": str, "body": str},
    "trace_metric": {
        "timestamp": float,
        "trace_id": str,
        "name": str,
        "type": str,
        "value": float,
    },
    "span": {
        "trace_id": str,
        "span_id": str,
        "name": str,
        "status": str,
        "start_timestamp": float,
        "end_timestamp": float,
    },
}
_ATTRIBUTE_TYPES: Final[Mapping[str, type | tuple[type, ...]]] = {
    "string": str,
    "boolean": bool,
    "integer": int,
    "double": (int, float),
    "array": list,
}
_LOG_LEVELS: Final = frozenset({"trace", "debug", "info", "warn", "error", "fatal"})
_METRIC_TYPES: Final = frozenset({"counter", "gauge", "distribution"})
_EVENTLIKE: Final = frozenset({"event", "transaction", "feedback"})
_CATEGORIES: Final = {
    "event": "error",
    "transaction": "transaction",
    "session": "session",
    "sessions": "session",
    "check_in": "monitor",
    "attachment": "attachment",
    "log": "log_item",
    "span": "span",
    "trace_metric": "trace_metric",
    "feedback": "feedback",
    "user_report": "feedback",
    "client_report": "internal",
    "profile": "profile",
    "raw_security": "security",
    "replay_event": "replay",
    "replay_recording": "replay",
}
_LEVELS: Final = frozenset({"fatal", "error", "warning", "info", "debug", "log"})
_SESSION_STATES: Final = frozenset({"ok", "exited", "crashed", "abnormal", "errored", "unhandled"})
_CHECK_IN_STATES: Final = frozenset({"ok", "error", "in_progress"})
_ENCODINGS: Final = frozenset({"", "identity", "gzip", "deflate", "br", "zstd"})
_CONTENT_TYPES: Final = frozenset(
    {
        "",
        "application/x-sentry-envelope",
        "text/plain",
        "multipart/form-data",
        "application/x-www-form-urlencoded",
    }
)
_FRESH_S: Final = 60.0
_FEEDBACK_CHARS: Final = 4096
_TAG_KEY_CHARS, _TAG_VALUE_CHARS = 32, 200

_EVENT_ID = re.compile(r"[0-9a-f]{32}")
_TAG_KEY = re.compile(r"[a-zA-Z0-9_.:-]+")
_PATH = re.compile(r"(?P<prefix>.*)/api/(?P<project>[^/]+)/(?P<endpoint>envelope|store)/?")
_REASON = {400: "bad envelope", 401: "missing authorization", 403: "event submission rejected"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One item that was taken.

    Attributes:
        type: ``event``, ``session``…
        headers: The item's headers.
        envelope: The envelope's headers.
        payload: The bytes.
        project: Which project took it.
    """

    type: str
    headers: Mapping[str, Any]
    envelope: Mapping[str, Any]
    payload: bytes = field(repr=False)
    project: str

    def json(self) -> Any:
        """Decode the payload."""
        return json.loads(self.payload)


_SHOWN: Final = 20


class _RefusedError(Exception):
    """Why a request is not taken, with its status."""

    def __init__(self, rule: str, status: int = 400) -> None:
        self.rule, self.status = rule, status
        super().__init__(rule)


class SentryStandIn(StandIn):
    """Sentry's ingest endpoints ``/api/<project>/envelope/`` and ``/store/``.

    Args:
        projects: Public key by project number.
        prefix: Path before ``/api``.
        port: 0 takes a free one.
    """

    def __init__(
        self, *, projects: Mapping[str, str] | None = None, prefix: str = "", port: int = 0
    ) -> None:
        super().__init__(port=port)
        self._projects = dict(projects or {"1": "5e17" * 8})
        self._prefix = prefix.rstrip("/")
        self._limits: dict[str, float] = {}
        self._known: set[tuple[str, str]] = set()
        self.items: list[Item] = []
        """Every item taken, repeats included."""
        self.events: list[dict[str, Any]] = []
        """Payloads of ``event`` items; of equal ids only the first, as Sentry stores them."""
        self.duplicates = 0
        """Events dropped because their id was known."""

    def latest(self) -> dict[str, list[Any]]:
        """The last events."""
        return {"events": self.events[-_SHOWN:]}

    @property
    def settings(self) -> Mapping[str, str]:
        """DSN of the first project."""
        return {"dsn": self.dsn}

    @property
    def dsn(self) -> str:
        """DSN of the first project."""
        project = next(iter(self._projects))
        return self.dsn_of(project)

    def dsn_of(self, project: str) -> str:
        """Give the DSN of a project."""
        key = self._projects[project]
        return f"http://{key}@127.0.0.1:{self.port}{self._prefix}/{project}"

    def limit(self, categories: Iterable[str], seconds: float) -> None:
        """Refuse items of these categories (none: all) for a while, with Sentry's headers."""
        with self._lock:
            for category in tuple(categories) or ("",):
                self._limits[category] = time.monotonic() + seconds

    def payloads(self, kind: str) -> list[Any]:
        """Give the decoded payloads of all items of one type."""
        with self._lock:
            return [item.json() for item in self.items if item.type == kind]

    def addresses(self) -> set[str]:
        """Give the addresses Sentry would keep: those sent, and those it would fill in itself.

        ``connection`` stands for the address of whoever connected.
        """
        with self._lock:
            eventlike = [*self.events, *self.payloads("transaction"), *self.payloads("feedback")]
            found = {one for event in eventlike for one in _addresses(event)}
            for kind in _CONTAINERS:
                for container in self.payloads(kind):
                    found.update(_addresses_within(container))
            for kind in ("session", "sessions"):
                for session in self.payloads(kind):
                    attributes = session.get("attrs") or {}
                    if address := attributes.get("ip_address") or session.get("ip_address"):
                        found.add("connection" if address == "{{auto}}" else address)
        return found

    def answer(self, request: Request) -> Reply:
        """Apply Sentry's rules to one request."""
        try:
            return self._take(request)
        except _RefusedError as refused:
            self.violations.append(refused.rule)
            said = {"detail": _REASON.get(refused.status, "refused")}
            return Reply(status=refused.status, body=json.dumps(said).encode())

    def _take(self, request: Request) -> Reply:
        project, endpoint = self._route(request)
        if endpoint == "store":
            self._authorize(request, project, "")
            head, items = _store(request.body)
        else:
            media = request.header("Content-Type").partition(";")[0].strip().lower()
            if media not in _CONTENT_TYPES:
                raise _RefusedError("unknown Content-Type", 415)
            head, items = _parse(request.body)
            self._authorize(request, project, str(head.get("dsn", "")))
            for rule in _check_sent_at(head, items):
                self.violate(rule)
        for kind, headers, payload in items:
            for rule in _check_item(kind, headers, payload, head):
                self.violate(rule)
        return self._keep(project, head, items)

    def _route(self, request: Request) -> tuple[str, str]:
        match = _PATH.fullmatch(request.path)
        if match is None or match["prefix"] != self._prefix:
            raise _RefusedError("no such path", 404)
        if request.method != "POST":
            raise _RefusedError("method is not POST", 405)
        if not match["project"].isdigit():
            raise _RefusedError("project is no number")
        if request.header("Content-Encoding").lower() not in _ENCODINGS:
            raise _RefusedError("unknown Content-Encoding", 415)
        if not request.body:
            raise _RefusedError("empty body")
        if len(request.body) > _ENVELOPE_BYTES:
            raise _RefusedError("envelope over 200 MiB", 413)
        return match["project"], match["endpoint"]

    def _authorize(self, request: Request, project: str, dsn: str) -> None:
        """Find the key: header, query or envelope; all that are given must agree."""
        given: set[str] = set()
        header = request.header("X-Sentry-Auth")
        if header:
            scheme, _, rest = header.partition(" ")
            parts = dict(part.strip().partition("=")[::2] for part in rest.split(","))
            if scheme != "Sentry" or "sentry_key" not in parts:
                raise _RefusedError("X-Sentry-Auth is malformed", 401)
            if parts.get("sentry_version") not in {"7", "6", "5"}:
                raise _RefusedError("sentry_version is unknown")
            given.add(parts["sentry_key"])
        given.update(request.query.get("sentry_key", []))
        if dsn:
            parsed = urlsplit(dsn)
            given.add(parsed.username or "")
            if parsed.path.rpartition("/")[2] != project:
                raise _RefusedError("dsn names another project", 403)
        if not given:
            raise _RefusedError("no authentication", 401)
        if len(given) > 1:
            raise _RefusedError("authentications differ", 403)
        if self._projects.get(project) not in given:
            raise _RefusedError("unknown project or key", 403)

    def _keep(
        self, project: str, head: dict[str, Any], items: list[tuple[str, dict[str, Any], bytes]]
    ) -> Reply:
        now = time.monotonic()
        limits = {name: until - now for name, until in self._limits.items() if until > now}
        refused: dict[str, float] = {}
        for kind, headers, payload in items:
            category = _CATEGORIES.get(kind, "default")
            left_s = max(limits.get("", 0.0), limits.get(category, 0.0))
            if left_s > 0:
                refused[category] = left_s
                continue
            self.items.append(
                Item(type=kind, headers=headers, envelope=head, payload=payload, project=project)
            )
            if kind == "event":
                event = json.loads(payload)
                event_id = str(head.get("event_id") or event.get("event_id")).replace("-", "")
                if (project, event_id) in self._known:
                    self.duplicates += 1
                else:
                    self._known.add((project, event_id))
                    self.events.append(event)
        identity = str(head.get("event_id", ""))
        body = json.dumps({"id": identity} if identity else {}).encode()
        if not refused:
            return Reply(body=body)
        parts = [f"{left_s:.0f}:{name}:organization" for name, left_s in refused.items()]
        return Reply(
            status=429,
            body=json.dumps({"detail": "rate limited"}).encode(),
            headers={
                "X-Sentry-Rate-Limits": ", ".join(parts),
                "Retry-After": f"{max(refused.values()):.0f}",
            },
        )


def _object(line: bytes, what: str) -> dict[str, Any]:
    """Decode a header line; a name that stands twice is an error, as Relay's parser has it."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({name for name, _ in pairs}) != len(pairs):
            raise _RefusedError(f"{what}: a name stands twice")
        return dict(pairs)

    try:
        value = json.loads(line, object_pairs_hook=unique)
    except (ValueError, RecursionError):
        raise _RefusedError(f"{what}: no JSON") from None
    if not isinstance(value, dict):
        raise _RefusedError(f"{what}: no object")
    return value


def _parse(raw: bytes) -> tuple[dict[str, Any], list[tuple[str, dict[str, Any], bytes]]]:
    """Read an envelope."""
    line, _, rest = raw.partition(b"\n")
    head = _object(line, "envelope header")
    items: list[tuple[str, dict[str, Any], bytes]] = []
    while rest:
        line, _, rest = rest.partition(b"\n")
        if not line and not rest:
            break  # the optional last newline
        headers = _object(line, "item header")
        kind, payload, rest = _cut(headers, rest)
        if len(payload) > _ITEM_BYTES.get(kind, _ENVELOPE_BYTES):
            raise _RefusedError(f"{kind}: too large", 413)
        items.append((kind, headers, payload))
    _check_together([kind for kind, _, _ in items])
    event_id = head.get("event_id")
    if event_id is None:
        if any(kind in _NEED_ID for kind, _, _ in items):
            raise _RefusedError("envelope header: no event_id")
    elif not _is_id(event_id):
        raise _RefusedError("envelope header: event_id is no id")
    return head, items


def _cut(headers: dict[str, Any], rest: bytes) -> tuple[str, bytes, bytes]:
    """Take one payload off the front: by its length if that is given, else up to the newline."""
    kind, length = headers.get("type"), headers.get("length")
    if not isinstance(kind, str) or not kind:
        raise _RefusedError("item header: no type")
    if length is None:
        payload, _, rest = rest.partition(b"\n")
        return kind, payload, rest
    if isinstance(length, bool) or not isinstance(length, int) or length < 0:
        raise _RefusedError("item header: length is no size")
    payload, rest = rest[:length], rest[length:]
    if len(payload) != length or (rest and rest[:1] != b"\n"):
        raise _RefusedError("item: length does not fit the payload")
    return kind, payload, rest[1:]


def _store(raw: bytes) -> tuple[dict[str, Any], list[tuple[str, dict[str, Any], bytes]]]:
    event = _object(raw, "store")
    if len(raw) > _EVENT_BYTES:
        raise _RefusedError("event: too large", 413)
    return {"event_id": event.get("event_id")}, [("event", {"type": "event"}, raw)]


def _check_together(kinds: list[str]) -> None:
    if len(kinds) > _ITEMS:
        raise _RefusedError(f"over {_ITEMS} items")
    for kind in set(kinds):
        most = 1 if kind in _ONCE else _MOST.get(kind, _ITEMS)
        if kinds.count(kind) > most:
            raise _RefusedError(f"{kind}: over {most} in one envelope")
    if "transaction" in kinds and ("event" in kinds or "feedback" in kinds):
        raise _RefusedError("transaction: not together with event or feedback")


def _check_sent_at(
    head: dict[str, Any], items: list[tuple[str, dict[str, Any], bytes]]
) -> Iterable[str]:
    sent_at = head.get("sent_at")
    if sent_at is None:
        if any(kind in _EVENTLIKE for kind, _, _ in items):
            yield "envelope header: no sent_at"
        return
    at = _moment(sent_at)
    if at is None or not isinstance(sent_at, str):
        yield "envelope header: sent_at is no RFC 3339 time in UTC"
    elif abs(time.time() - at) > _FRESH_S:
        yield "envelope header: sent_at is stale"


def _check_item(
    kind: str, headers: dict[str, Any], payload: bytes, head: dict[str, Any]
) -> Iterable[str]:
    if kind == "attachment" and not headers.get("filename"):
        raise _RefusedError("attachment: no filename")
    if kind in _EVENTLIKE:
        event = _payload(kind, payload)
        yield from _check_event(kind, event, head)
        if kind == "transaction":
            yield from _check_trace(event)
        said = (event.get("contexts") or {}).get("feedback") or {}
        if kind == "feedback" and not said.get("message"):
            raise _RefusedError("feedback: no message")
        if len(str(said.get("message", ""))) > _FEEDBACK_CHARS:
            yield "feedback: message over 4096 characters"
    elif kind in _CONTAINERS:
        container = _payload(kind, payload)
        _check_container(kind, headers, container)
        for element in container["items"]:
            yield from _check_element(kind, element)
    elif kind == "user_report":
        if not _is_id(_payload(kind, payload).get("event_id")):
            raise _RefusedError("user_report: no event_id")
    elif kind == "raw_security":
        report = _payload(kind, payload).get("csp-report")
        if not isinstance(report, dict) or not report.get("violated-directive"):
            raise _RefusedError("raw_security: no violated-directive")
    elif kind in {"session", "sessions"}:
        yield from _check_session(kind, _payload(kind, payload))
    elif kind == "check_in":
        record = _payload(kind, payload)
        if not record.get("monitor_slug") or record.get("status") not in _CHECK_IN_STATES:
            raise _RefusedError("check_in: monitor_slug or status is missing")


def _check_container(kind: str, headers: dict[str, Any], record: dict[str, Any]) -> None:
    if headers.get("content_type") != _CONTAINERS[kind]:
        raise _RefusedError(f"{kind}: content_type is not the container's")
    if headers.get("item_count") != len(record.get("items", [])):
        raise _RefusedError(f"{kind}: item_count does not fit")


def _check_element(kind: str, element: object) -> Iterable[str]:
    """Check one log line, span or metric. Source: develop.sentry.dev, Logs, Spans, Metrics."""
    if not isinstance(element, dict):
        raise _RefusedError(f"{kind}: an element is no object")
    for name, wanted in _ELEMENTS[kind].items():
        value = element.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, wanted)):
            raise _RefusedError(f"{kind}: {name} is missing or of another type")
    for name, size in (("trace_id", 32), ("span_id", 16), ("parent_span_id", 16)):
        value = element.get(name)
        if value is not None and not re.fullmatch(rf"[0-9a-f]{{{size}}}", str(value)):
            yield f"{kind}: {name} is no id"
    if kind == "log" and element["level"] not in _LOG_LEVELS:
        yield "log: unknown level"
    if kind == "trace_metric" and element["type"] not in _METRIC_TYPES:
        yield "trace_metric: unknown type"
    if kind == "span" and element["end_timestamp"] < element["start_timestamp"]:
        yield "span: ends before it begins"
    for name, entry in element.get("attributes", {}).items():
        said = entry if isinstance(entry, dict) else {}
        wanted_type = _ATTRIBUTE_TYPES.get(str(said.get("type")))
        if wanted_type is None or not isinstance(said.get("value"), wanted_type):
            yield f"{kind}: an attribute has no value of its type"
        elif name in _ADDRESS_ATTRIBUTES:
            try:
                ip_address(str(said["value"]))
            except ValueError:
                yield f"{kind}: {name} is no address"


_ADDRESS_ATTRIBUTES: Final = ("user.ip_address", "client.address", "http.client_ip")


def _addresses_within(container: Mapping[str, Any]) -> Iterable[str]:
    """Say which addresses Sentry would keep of a container: those sent, and those it fills in."""
    if (container.get("ingest_settings") or {}).get("infer_ip") == "auto":
        yield "connection"
    for element in container["items"]:
        for name in _ADDRESS_ATTRIBUTES:
            if entry := element.get("attributes", {}).get(name):
                yield str(entry["value"])


def _check_trace(event: Mapping[str, Any]) -> Iterable[str]:
    """Check what makes a transaction one. Source: develop.sentry.dev, Transaction Payloads."""
    trace = (event.get("contexts") or {}).get("trace") or {}
    if not trace.get("trace_id") or not trace.get("span_id"):
        raise _RefusedError("transaction: no trace context")
    if event.get("type") != "transaction" or not isinstance(event.get("spans"), list):
        raise _RefusedError("transaction: no type or no spans")
    for part in (event, *event["spans"]):
        start, end = _moment(part.get("start_timestamp")), _moment(part.get("timestamp"))
        if start is None or end is None:
            raise _RefusedError("transaction: start_timestamp or timestamp is missing")
        if end < start:
            yield "transaction: ends before it begins"
    for part in event["spans"]:
        if not part.get("trace_id") or not part.get("span_id"):
            raise _RefusedError("transaction: a span without ids")


def _check_session(kind: str, record: dict[str, Any]) -> Iterable[str]:
    if kind == "session":
        if not isinstance(record.get("sid"), str) or _moment(record.get("started")) is None:
            raise _RefusedError("session: sid or started is missing")
        if record.get("status", "ok") not in _SESSION_STATES:
            yield "session: unknown status"
    else:
        buckets = record.get("aggregates")
        if not isinstance(buckets, list) or len(buckets) > _MOST["session"]:
            raise _RefusedError("sessions: no buckets, or over 100")
    attributes = record.get("attrs")
    if not isinstance(attributes, dict) or not attributes.get("release"):
        yield f"{kind}: attrs.release is missing"


def _payload(kind: str, payload: bytes) -> dict[str, Any]:
    try:
        record = json.loads(payload)
    except (ValueError, RecursionError):
        raise _RefusedError(f"{kind}: no JSON") from None
    if not isinstance(record, dict):
        raise _RefusedError(f"{kind}: no object")
    return record


def _check_event(kind: str, event: dict[str, Any], head: dict[str, Any]) -> Iterable[str]:
    if "event_id" in event and not _is_id(event["event_id"]):
        raise _RefusedError(f"{kind}: event_id is no id")
    if not event.get("event_id"):
        yield f"{kind}: no event_id"
    elif str(event["event_id"]).replace("-", "") != str(head.get("event_id")).replace("-", ""):
        yield f"{kind}: event_id differs from the envelope's"
    if _moment(event.get("timestamp")) is None:
        yield f"{kind}: timestamp is missing or no time"
    if not isinstance(event.get("platform"), str) or not event["platform"]:
        yield f"{kind}: no platform"
    if str(event.get("level", "error")) not in _LEVELS:
        yield f"{kind}: unknown level"
    yield from _check_tags(kind, event.get("tags"))
    yield from _check_user(kind, event.get("user"))
    for name in ("contexts", "extra", "request", "sdk", "exception", "logentry"):
        if event.get(name) is not None and not isinstance(event[name], dict | list):
            yield f"{kind}: {name} is no object"
    if "_meta" in event:
        yield from _check_meta(event["_meta"], event)


def _check_user(kind: str, user: object) -> Iterable[str]:
    if user is not None and not isinstance(user, dict):
        yield f"{kind}: user is no object"
    elif user and user.get("ip_address") not in {None, "{{auto}}"}:
        try:
            ip_address(str(user["ip_address"]))
        except ValueError:
            yield f"{kind}: user.ip_address is no address"


def _check_tags(kind: str, tags: object) -> Iterable[str]:
    pairs: list[Any] = list(tags.items()) if isinstance(tags, dict) else []
    if isinstance(tags, list):
        pairs = [pair for pair in tags if isinstance(pair, list) and len(pair) == 2]  # noqa: PLR2004
        if len(pairs) != len(tags):
            yield f"{kind}: tags are no pairs"
    for name, value in pairs:
        if not isinstance(name, str) or not _TAG_KEY.fullmatch(name):
            yield f"{kind}: tag key has other characters than a-zA-Z0-9_.:-"
        elif len(name) > _TAG_KEY_CHARS:
            yield f"{kind}: tag key over {_TAG_KEY_CHARS} characters"
        if value is not None and (len(str(value)) > _TAG_VALUE_CHARS or "\n" in str(value)):
            yield f"{kind}: tag value over {_TAG_VALUE_CHARS} characters or with a newline"


def _check_meta(tree: object, value: object) -> Iterable[str]:
    """Check that remarks are well formed and stand where a value stands, unless it was removed."""
    if not isinstance(tree, dict):
        yield "_meta: a node is no object"
        return
    for name, child in tree.items():
        if name == "":
            yield from _check_remarks(child, value)
        elif isinstance(value, dict):
            yield from _check_meta(child, value.get(name))
        elif isinstance(value, list) and name.isdigit() and int(name) < len(value):
            yield from _check_meta(child, value[int(name)])
        else:
            yield from _check_meta(child, None)


def _check_remarks(entry: object, value: object) -> Iterable[str]:
    if not isinstance(entry, dict) or set(entry) - {"rem", "err", "len", "val"}:
        yield "_meta: an entry has other keys than rem, err, len, val"
        return
    for remark in entry.get("rem", []):
        if not isinstance(remark, list) or len(remark) not in {2, 4} or remark[1] not in "axsmpe":
            yield "_meta: a remark is malformed"
        elif value is None and remark[1] != "x":
            yield "_meta: a remark stands where no value is"
        elif len(remark) == 4:  # noqa: PLR2004 - rule, letter, start, end
            start, end = remark[2:]
            if not isinstance(value, str) or not 0 <= start <= end <= len(value.encode()):
                yield "_meta: a range lies outside of its value"


def _addresses(event: dict[str, Any]) -> Iterable[str]:
    """Say which addresses Sentry would keep of an event.

    Source:
        develop.sentry.dev, user interface; getsentry/relay ``clientsdk.rs``: a missing setting is
        ``legacy``, which fills in the connection's address for these platforms.
    """
    user = event.get("user") or {}
    settings = (event.get("sdk") or {}).get("settings") or {}
    infer = settings.get("infer_ip", "legacy")
    environment = (event.get("request") or {}).get("env") or {}
    given = user.get("ip_address")
    if given and given != "{{auto}}":
        yield str(given)
    elif environment.get("REMOTE_ADDR"):
        yield str(environment["REMOTE_ADDR"])
    elif (
        (given == "{{auto}}" and infer != "never")
        or infer == "auto"
        or (infer == "legacy" and event.get("platform") in {"javascript", "cocoa", "objc"})
    ):
        yield "connection"


def _is_id(text: object) -> bool:
    if not isinstance(text, str):
        return False
    try:
        return bool(_EVENT_ID.fullmatch(UUID(text).hex)) and len(text) in {32, 36}
    except ValueError:
        return False


def _moment(value: object) -> float | None:
    """Read an RFC 3339 string or seconds."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value)
    try:
        at = datetime.fromisoformat(str(value))
    except ValueError:
        return None
    return at.replace(tzinfo=at.tzinfo or UTC).timestamp()
