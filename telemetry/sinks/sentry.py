"""Sentry: error logs, and whatever else of Sentry's kinds a policy switches on.

Owns the envelope, the protocol's names and the rate-limit header.

Source:
    develop.sentry.dev: transport/envelopes, transport/authentication, transport/rate-limiting,
    event-payloads; getsentry/relay for `_meta` (`relay-protocol/src/meta.rs`).
"""

from __future__ import annotations

import asyncio
import gzip
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final, Literal, NamedTuple, NoReturn
from urllib.parse import urlsplit

import aiohttp
import msgspec
import zstandard

from scrubbers.model import Remark, Scrubbed
from telemetry.errors import ConfigError, EventError
from telemetry.sinks import (
    Delivered,
    Delivery,
    NotErasable,
    Outcome,
    Retry,
    Shaping,
    Sink,
    Tags,
)
from telemetry.sinks.wire import USER_AGENT, Answer, Wire, base_url, outcome_of, retry_after_s

__all__ = ["Dsn", "SentrySink", "parse_dsn", "rate_limits"]


class _Form(NamedTuple):
    """How a kind travels.

    Attributes:
        item: Type of its envelope item.
        category: Under which Sentry limits its rate.
        container: Content type of the container that many of a kind share; empty: an item each.
        named: The envelope's header carries its id.
        shared: Its items share envelopes.
    """

    item: str
    category: str
    container: str = ""
    named: bool = False
    shared: bool = False


_FORMS: Final = {
    "error_event": _Form("event", "error", named=True),
    "transaction": _Form("transaction", "transaction", named=True),
    "feedback": _Form("feedback", "feedback", named=True),
    "user_report": _Form("user_report", "feedback"),
    "security_report": _Form("raw_security", "security", named=True),
    "session": _Form("session", "session", shared=True),
    "sessions": _Form("sessions", "session", shared=True),
    "check_in": _Form("check_in", "monitor"),
    "log": _Form("log", "log_item", "application/vnd.sentry.items.log+json", shared=True),
    "span": _Form("span", "span", "application/vnd.sentry.items.span.v2+json", shared=True),
    "trace_metric": _Form(
        "trace_metric",
        "trace_metric",
        "application/vnd.sentry.items.trace-metric+json",
        shared=True,
    ),
}
_EVENTS: Final = frozenset(("error_event", "transaction", "feedback"))
"""Kinds in the form of Sentry's event payload."""
_ALIASES: Final = {"log_byte": "log_item", "trace_metric_byte": "trace_metric"}
_KNOWN_CATEGORIES: Final = frozenset(form.category for form in _FORMS.values())
_SHARED_ITEMS: Final = 100
_SHARED_BYTES: Final = 900 * 1024  # documented limits of containers differ; all are 1 MiB or more
_REPORT_CHARS: Final = 4096
_IN_FLIGHT: Final = 8
_DEFAULT_LIMIT_S: Final = 60.0  # 429 without headers
_TAG_KEY_CHARS, _TAG_VALUE_CHARS = 32, 200
_ROWS: Final = 20

_NO_TAG_KEY_CHAR = re.compile(r"[^a-zA-Z0-9_.:-]")
_KEY = re.compile(r"[0-9A-Za-z_-]{1,128}")
_PROJECT = re.compile(r"[0-9]{1,20}")


_Path = tuple[str | int, ...]
KEY: Final = "<key>"
"""In a path: a name that is not shown, because nobody declared it (`scrubbers.model.Remark`)."""

_IDENTIFIERS: Final[Mapping[_Path, _Path]] = {
    ("account",): ("user", "id"),
    ("organization",): ("tags", "organization"),
    ("session",): ("tags", "session"),
}
"""A rejected identifier is told of by its sort: here, where its token would have stood."""
_OURS: Final = frozenset(
    {("user", "id")}
    | {
        ("tags", name)
        for name in ("organization", "session", "retain_until", "retention_class", "policy")
    }
)
"""What stands there is the sink's, whatever the event had: no remark is about it."""
_PLACEHOLDER = re.compile(rb"<[a-z_]{1,32}(?::[1-9][0-9]{0,2})?>")
_PLACES: Final[Mapping[_Path, Sequence[_Path]]] = {
    ("user", "ip_address"): (("tags", "ip_prefix"),),
    ("user", "organization"): (("tags", "organization"),),
    ("user", "session"): (("tags", "session"),),
}
"""What `SentrySink.shape` puts elsewhere, besides tags and user agents."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dsn:
    """Where a project takes envelopes, and as whom.

    Attributes:
        endpoint: URL of the envelope endpoint.
        public_key: The project's key. It lets events in and nothing out.
        project: Number of the project.
    """

    endpoint: str
    public_key: str
    project: str


def parse_dsn(dsn: str, *, plaintext: bool = False) -> Dsn:
    """Read ``{proto}://{public_key}[:{secret}]@{host}{/path}/{project_id}``.

    The obsolete secret is tolerated and dropped.

    Raises:
        ConfigError: It is no DSN. The message does not repeat it.

    >>> parse_dsn("https://abc@sentry.example/prefix/9").endpoint
    'https://sentry.example/prefix/api/9/envelope/'
    """
    try:
        parts = urlsplit(dsn)
        key, host, port = parts.username or "", parts.hostname or "", parts.port
    except ValueError:
        raise ConfigError("a DSN is malformed.", remedy="Copy it from the project.") from None
    prefix, _, project = parts.path.rpartition("/")
    if not _KEY.fullmatch(key) or not host or not _PROJECT.fullmatch(project):
        raise ConfigError("a DSN is malformed.", remedy="Copy it from the project.")
    place = f"[{host}]" if ":" in host else host
    base = base_url(
        f"{parts.scheme}://{place}{'' if port is None else f':{port}'}{prefix}",
        plaintext=plaintext,
    )
    return Dsn(endpoint=f"{base}/api/{project}/envelope/", public_key=key, project=project)


def rate_limits(answer: Answer) -> dict[str, float]:
    """Read what an answer says of limits: seconds by category; ``""`` stands for all.

    Source:
        develop.sentry.dev, "Rate Limiting": on any status; empty categories mean all; spaces may
        occur; of two limits the longer holds; unknown categories are ignored; 429 without headers
        means 60 s for all.

    >>> rate_limits(Answer(status=200, headers={"x-sentry-rate-limits": "60:error;x:key, 9::key"}))
    {'error': 60.0, '': 9.0}
    """
    limits: dict[str, float] = {}
    header = answer.headers.get("x-sentry-rate-limits", "")
    for part in header.split(","):
        seconds, _, rest = part.strip().partition(":")
        after_s = retry_after_s(seconds)
        if not after_s or not seconds.strip()[:1].isdigit():
            continue
        named = rest.partition(":")[0].strip()
        for category in named.split(";"):
            name = _ALIASES.get(category.strip(), category.strip())
            if not named or name in _KNOWN_CATEGORIES:
                limits[name] = max(limits.get(name, 0.0), after_s)
    if answer.status == 429 and not header:  # noqa: PLR2004 - RFC 6585, 4
        limits[""] = retry_after_s(answer.headers.get("retry-after", "")) or _DEFAULT_LIMIT_S
    return limits


class SentrySink(Sink):
    """Sentry's envelope endpoint.

    At least once. Events carry `Delivery.delivery_id` as ``event_id``: Sentry stores the first
    event of an id and drops later ones as duplicates. What is no event has no such key and may
    count twice (docs/limitations.md).

    Args:
        dsn: Of the project.
        session: Shared client session; its owner closes it.
        encoding: How envelopes are compressed. Every Sentry-compatible server takes gzip.
        connect_s: Longest time for a connection to stand, seconds.
        total_s: Longest time for a whole request, seconds.
        plaintext: Allow ``http`` to another machine.
        networks: Where it may be besides the public Internet, as ``10.20.0.0/16``.
        monotonic: Clock of the remembered rate limits, seconds.
        wall: Clock of ``sent_at``, aware UTC.

    Raises:
        ConfigError: The DSN is malformed.

    Source:
        sentry-docs PR 12009 ("Duplicate").
    """

    max_deliveries = 50
    stand_in = "telemetry.testing.sentry:SentryStandIn"
    remarks_at = (("_meta",), ("contexts", "privacy"))

    def __init__(  # noqa: PLR0913 - keywords only
        self,
        *,
        dsn: str,
        session: aiohttp.ClientSession | None = None,
        encoding: Literal["gzip", "zstd", "identity"] = "gzip",
        connect_s: float = 5.0,
        total_s: float = 30.0,
        plaintext: bool = False,
        networks: Collection[str] = (),
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._dsn = parse_dsn(dsn, plaintext=plaintext)
        self._encoding, self._monotonic, self._wall = encoding, monotonic, wall
        self._wire = Wire(session=session, networks=networks, connect_s=connect_s, total_s=total_s)
        self._limited_until: dict[str, float] = {}

    def shape(self, event: Scrubbed, shaping: Shaping) -> bytes:
        """Make the payload of one envelope item.

        Raises:
            EventError: ``unsupported_kind``, or ``unshapeable`` if the event is no object or lacks
                what Sentry requires of its kind.
        """
        if shaping.kind not in _FORMS:
            raise EventError("unsupported_kind")
        try:
            payload: Any = msgspec.json.decode(event)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise EventError("unshapeable") from None
        if not isinstance(payload, dict):
            raise EventError("unshapeable")
        payload = _SHAPES[shaping.kind](payload, shaping)
        return msgspec.json.encode(payload, order="deterministic")

    def places(self, kind: str, path: _Path) -> Sequence[_Path]:
        """Say where Sentry finds a field."""
        if kind == "security_report" and path[:1] != ("csp-report",):
            name = _CSP_NAMES.get(str(path[1])) if path[0] == "body" and len(path) > 1 else None
            return (("csp-report", name),) if name else ()
        if path[-1:] and path[-1] in _ADDRESSES and "data" in path:
            return (("tags", "ip_prefix"),)
        if path[:1] == ("attributes",) and len(path) > 1 and path[1] in _ADDRESSES:
            return (("attributes", "ip_prefix", *path[2:]),)
        if kind == "sessions" and path == ("did",):
            return (("aggregates", 0, "did"),)
        if kind not in _EVENTS:
            return (path,)
        if path[:1] == ("tags",) and len(path) > 1:
            place = ("tags", tag_key(str(path[1])))
            return () if place in _OURS else (place,)
        agent = path[:2] == ("request", "headers") and str(path[-1]).lower() == "user-agent"
        if agent or path == ("user_agent",):
            return (("contexts", "browser"), ("contexts", "client_os"))
        return _PLACES.get(path, (path,))

    def scope(self, delivery: Delivery) -> str:
        """Name the Sentry category of a delivery: ``error``, ``session``, ``monitor``."""
        form = _FORMS.get(delivery.kind)
        return form.category if form is not None else ""

    async def send(self, deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
        """Send an envelope for each event; sessions share some, elements of a kind a container."""
        outcomes: dict[int, Outcome] = {}
        envelopes = _together(deliveries)
        left = iter(envelopes)
        unreachable: list[Retry] = []

        async def work() -> None:
            for places in left:
                held = self._limit([deliveries[i] for i in places])
                if held is None and unreachable:
                    # One envelope met no answer, or a closed door: the others would only wait
                    # for the same deadline, one after another.
                    held = unreachable[0]
                outcome = held or await self._post([deliveries[i] for i in places])
                if held is None and isinstance(outcome, Retry) and self._is_door(outcome):
                    unreachable.append(outcome)
                outcomes.update(dict.fromkeys(places, outcome))

        await asyncio.gather(*(work() for _ in range(min(_IN_FLIGHT, len(envelopes)))))
        return [outcomes[i] for i in range(len(deliveries))]

    @staticmethod
    def _is_door(outcome: Retry) -> bool:
        """Tell whether the outcome is about the recipient, not about what was sent."""
        return outcome.blocked or outcome is _NO_ANSWER

    def _limit(self, group: Sequence[Delivery]) -> Retry | None:
        """Give the remembered limit that a group still falls under."""
        now = self._monotonic()
        for scope in ("", self.scope(group[0])):
            left_s = self._limited_until.get(scope, now) - now
            if left_s > 0:
                return Retry(after_s=left_s, scope=scope)
        return None

    async def _post(self, group: Sequence[Delivery]) -> Outcome:
        answer = await self._wire.call(
            "POST",
            self._dsn.endpoint,
            body=self._compress(self._envelope(group)),
            headers={
                "Content-Type": "application/x-sentry-envelope",
                "X-Sentry-Auth": (
                    f"Sentry sentry_key={self._dsn.public_key}, sentry_version=7, "
                    f"sentry_client={USER_AGENT}"
                ),
                **({} if self._encoding == "identity" else {"Content-Encoding": self._encoding}),
            },
        )
        limits = rate_limits(answer)
        now = self._monotonic()
        for scope, after_s in limits.items():
            until = max(now + after_s, self._limited_until.get(scope, 0.0))
            self._limited_until[scope] = until
        if answer.status == 0:
            return _NO_ANSWER
        outcome = outcome_of(answer, several=len(group) > 1)
        if isinstance(outcome, Delivered) or not isinstance(outcome, Retry) or outcome.split:
            return outcome
        return self._limit(group) or outcome

    def _envelope(self, group: Sequence[Delivery]) -> bytes:
        """Frame item payloads. ``sent_at`` is fresh: a stale one would shift the event's time."""
        head: dict[str, str] = {}
        form = _FORMS[group[0].kind]
        if form.named:
            head["event_id"] = group[0].delivery_id
        head["sent_at"] = _rfc3339(self._wall())
        lines = [msgspec.json.encode(head)]
        if form.container:
            lines += framed(group[0].kind, [delivery.body for delivery in group])
        else:
            for delivery in group:
                lines += framed(delivery.kind, [delivery.body])
        return b"\n".join(lines) + b"\n"

    def _compress(self, envelope: bytes) -> bytes:
        if self._encoding == "gzip":
            return gzip.compress(envelope, compresslevel=5, mtime=0)
        if self._encoding == "zstd":
            return zstandard.ZstdCompressor(level=3).compress(envelope)
        return envelope

    async def erase(self, tokens: Collection[str]) -> NoReturn:
        """Say that Sentry cannot do it.

        Raises:
            NotErasable: Always.

        Source:
            docs.sentry.io, permissions: events "can only be deleted by deleting the whole issue".
        """
        raise NotErasable(
            "Sentry deletes no single person's events, only whole issues. Destroy the secret that "
            "links the pseudonym; the events go with the plan's retention."
        )

    async def close(self) -> None:
        """Close the connections, if they are our own."""
        await self._wire.close()


_NO_ANSWER: Final = Retry()
_JSON: Final = {"content_type": "application/json"}
# Without these Sentry may fill in the address and user agent of whoever connects: of this machine.
_CONTAINER: Final = (
    b'{"version":2,"ingest_settings":{"infer_ip":"never","infer_user_agent":"never"},"items":[%b]}'
)


def _item_header(item: str, body: bytes, about: Mapping[str, object]) -> bytes:
    return msgspec.json.encode({"type": item, **about, "length": len(body)})


def _together(deliveries: Sequence[Delivery]) -> list[list[int]]:
    """Say which deliveries share an envelope, by their places."""
    envelopes: list[list[int]] = []
    open_: dict[str, list[int]] = {}
    filled: Counter[str] = Counter()
    for i, delivery in enumerate(deliveries):
        form = _FORMS[delivery.kind]
        if not form.shared:
            envelopes.append([i])
            continue
        group, size = open_.get(form.category), len(delivery.body)
        full = filled[form.category] + size > _SHARED_BYTES
        if group is None or full or len(group) == _SHARED_ITEMS:
            group = open_[form.category] = []
            envelopes.append(group)
            filled[form.category] = 0
        group.append(i)
        filled[form.category] += size
    return envelopes


def framed(kind: str, bodies: Sequence[bytes]) -> list[bytes]:
    """Give the lines of an envelope that hold payloads of one kind: a container, or an item each.

    Raises:
        EventError: ``unsupported_kind``.
    """
    if kind not in _FORMS:
        raise EventError("unsupported_kind")
    form = _FORMS[kind]
    if not form.container:
        return [line for body in bodies for line in (_item_header(form.item, body, _JSON), body)]
    body = _CONTAINER % b",".join(bodies)
    about = {"item_count": len(bodies), "content_type": form.container}
    return [_item_header(form.item, body, about), body]


def _shape_event(payload: dict[str, Any], shaping: Shaping) -> dict[str, Any]:
    """Put identity, promise and explanation where Sentry looks for them.

    The address never stays in ``user.ip_address``: Sentry would geolocate it or count it as a
    user. ``infer_ip: never`` keeps Sentry from filling in the address of this machine.
    """
    moved: dict[_Path, _Path] = dict(_IDENTIFIERS)
    for name in ("_meta", "event_id", "message_id"):
        payload.pop(name, None)
    tags = _clean_tags(payload.get("tags"), moved)
    user = payload.pop("user", None)
    if isinstance(user, dict) and isinstance(user.get("ip_address"), str) and user["ip_address"]:
        tags["ip_prefix"] = _tag_value(user["ip_address"])
        moved["user", "ip_address"] = ("tags", "ip_prefix")
    payload["user"] = {"id": shaping.tokens.get("account"), "ip_address": None}
    if payload["user"]["id"] is None:
        del payload["user"]["id"]

    contexts = payload.get("contexts")
    contexts = dict(contexts) if isinstance(contexts, dict) else {}
    _move_agent(payload, contexts, moved)
    request = payload.get("request")
    if isinstance(request, dict) and isinstance(request.get("env"), dict):
        request["env"].pop("REMOTE_ADDR", None)  # the second place where Sentry finds an address

    for name in ("organization", "session"):
        if token := shaping.tokens.get(name):
            tags[name] = _tag_value(token)
    tags |= {
        "retain_until": shaping.tags.retain_until.isoformat(),
        "retention_class": _tag_value(shaping.tags.retention_class),
        "policy": _tag_value(shaping.tags.policy),
    }
    sdk = payload.get("sdk")
    sdk = dict(sdk) if isinstance(sdk, dict) else {"name": "milchglas", "version": "0"}
    sdk.pop("client_ip", None)
    payload |= {
        "event_id": shaping.delivery_id,
        "timestamp": _rfc3339(shaping.occurred_at),
        "platform": payload.get("platform") or "other",
        "tags": tags,
        "sdk": sdk | {"settings": {"infer_ip": "never"}},
        "contexts": contexts | {"privacy": _explain(shaping.remarks, shaping.tags)},
    }
    if meta := _meta(payload, shaping.remarks, moved):
        payload["_meta"] = meta
    return payload


def _shape_transaction(payload: dict[str, Any], shaping: Shaping) -> dict[str, Any]:
    contexts = payload.get("contexts")
    trace = contexts.get("trace") if isinstance(contexts, dict) else None
    if not isinstance(trace, dict) or not trace.get("trace_id") or not trace.get("span_id"):
        raise EventError("unshapeable", "contexts.trace")
    given = payload.get("spans")
    given = given if isinstance(given, list) else []
    payload["spans"] = [
        span
        for span in given
        if isinstance(span, dict)
        and all(span.get(name) for name in ("trace_id", "span_id", "start_timestamp", "timestamp"))
    ]
    if len(payload["spans"]) < len(given):
        # Remarks name spans by their places, and these are others now.
        left = [remark for remark in shaping.remarks if remark.path[:1] != ("spans",)]
        shaping = replace(shaping, remarks=left)
    prefix = ""
    for part in (trace, *payload["spans"]):
        if isinstance(part.get("data"), dict):
            prefix = _take_addresses(part["data"]) or prefix
    payload = _shape_event(payload, shaping)
    if prefix:
        payload["tags"].setdefault("ip_prefix", _tag_value(prefix))
    if not payload.get("start_timestamp"):
        payload["start_timestamp"] = payload["timestamp"]
    return payload | {"type": "transaction"}


_ADDRESSES: Final = ("client.address", "http.client_ip", "user.ip_address")


def _take_addresses(data: dict[str, Any]) -> str:
    """Take the prefixes of addresses out of where Sentry looks for whole ones; give one."""
    found = [data.pop(name, None) for name in _ADDRESSES]
    return next((one for one in found if isinstance(one, str)), "")


def _shape_feedback(payload: dict[str, Any], shaping: Shaping) -> dict[str, Any]:
    contexts = payload.get("contexts")
    said = contexts.get("feedback") if isinstance(contexts, dict) else None
    if not isinstance(said, dict) or not isinstance(said.get("message"), str):
        raise EventError("unshapeable", "contexts.feedback")
    said["message"] = said["message"][:_REPORT_CHARS]
    return _shape_event(payload, shaping) | {"type": "feedback"}


def _shape_user_report(payload: dict[str, Any], shaping: Shaping) -> dict[str, Any]:  # noqa: ARG001 - one signature for all
    about, comments = payload.get("event_id"), payload.get("comments")
    if not isinstance(about, str) or not isinstance(comments, str):
        raise EventError("unshapeable", "event_id")
    return {"event_id": about, "comments": comments[:_REPORT_CHARS]}


_CSP_NAMES: Final = {
    "documentURL": "document-uri",
    "blockedURL": "blocked-uri",
    "effectiveDirective": "effective-directive",
    "disposition": "disposition",
    "statusCode": "status-code",
    "sourceFile": "source-file",
    "lineNumber": "line-number",
    "columnNumber": "column-number",
}


def _shape_security_report(payload: dict[str, Any], shaping: Shaping) -> dict[str, Any]:  # noqa: ARG001 - one signature for all
    """Give the form of ``report-uri``, which every Sentry takes."""
    report, body = payload.get("csp-report"), payload.get("body")
    if not isinstance(report, dict) and isinstance(body, dict):
        report = {name: body[own] for own, name in _CSP_NAMES.items() if own in body}
    if not isinstance(report, dict):
        raise EventError("unshapeable", "csp-report")
    if directive := report.get("effective-directive"):
        report.setdefault("violated-directive", directive)
    if not report.get("violated-directive"):
        raise EventError("unshapeable", "csp-report")
    return {"csp-report": report}


def _shape_span(payload: dict[str, Any], shaping: Shaping) -> dict[str, Any]:
    payload = _shape_element(payload, shaping, ("trace_id", "span_id", "name"))
    start = payload.pop("timestamp")
    end = payload.get("end_timestamp")
    return payload | {
        "start_timestamp": start,
        "end_timestamp": max(start, _seconds(end)) if isinstance(end, str) else start,
        "status": payload.get("status") or "ok",
    }


def _shape_log(payload: dict[str, Any], shaping: Shaping) -> dict[str, Any]:
    return _shape_element(payload, shaping, ("trace_id", "level", "body"))


def _shape_metric(payload: dict[str, Any], shaping: Shaping) -> dict[str, Any]:
    return _shape_element(payload, shaping, ("trace_id", "name", "type", "value"))


def _shape_element(
    payload: dict[str, Any], shaping: Shaping, required: Sequence[str]
) -> dict[str, Any]:
    """Make one element of a container: attributes with their types, identity, promise."""
    for name in required:
        if payload.get(name) is None:
            raise EventError("unshapeable", name)
    given = payload.get("attributes")
    values = {
        name: holder.get("value")
        for name, holder in (given.items() if isinstance(given, dict) else ())
        if isinstance(holder, dict)
    }
    prefix = _take_addresses(values)
    counts = Counter(remark.rule for remark in shaping.remarks)
    values |= {
        "user.id": shaping.tokens.get("account"),
        "organization": shaping.tokens.get("organization"),
        "session": shaping.tokens.get("session"),
        "ip_prefix": prefix or None,
        "retain_until": shaping.tags.retain_until.isoformat(),
        "retention_class": shaping.tags.retention_class,
        "policy": shaping.tags.policy,
        "privacy.changes": ", ".join(f"{rule} {n}" for rule, n in sorted(counts.items())) or None,
    }
    payload["attributes"] = {
        name: {"value": value, "type": kind}
        for name, value in values.items()
        if (kind := _ATTRIBUTE_TYPES.get(type(value)))
    }
    payload["timestamp"] = shaping.occurred_at.timestamp()
    return payload


_ATTRIBUTE_TYPES: Final[Mapping[type, str]] = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "double",
}


def _seconds(at: str) -> float:
    try:
        return datetime.fromisoformat(at).timestamp()
    except ValueError:
        return 0.0


def _shape_check_in(payload: dict[str, Any], shaping: Shaping) -> dict[str, Any]:  # noqa: ARG001 - one signature for all
    return payload


def _shape_sessions(payload: dict[str, Any], shaping: Shaping) -> dict[str, Any]:
    """Put the token where the id was, if there is one bucket: of several nobody knows whose."""
    payload = _shape_session(payload, shaping)
    account = payload.pop("did", None)
    buckets = payload.get("aggregates")
    if account and isinstance(buckets, list) and len(buckets) == 1 and isinstance(buckets[0], dict):
        buckets[0]["did"] = account
    return payload


def _shape_session(payload: dict[str, Any], shaping: Shaping) -> dict[str, Any]:
    payload.pop("did", None)
    if account := shaping.tokens.get("account"):
        payload["did"] = account
    payload.pop("ip_address", None)
    attributes = payload.get("attrs")
    if isinstance(attributes, dict):
        attributes.pop("ip_address", None)
    return payload


_SHAPES: Final[Mapping[str, Callable[[dict[str, Any], Shaping], dict[str, Any]]]] = {
    "error_event": _shape_event,
    "transaction": _shape_transaction,
    "feedback": _shape_feedback,
    "user_report": _shape_user_report,
    "security_report": _shape_security_report,
    "session": _shape_session,
    "sessions": _shape_sessions,
    "check_in": _shape_check_in,
    "log": _shape_log,
    "span": _shape_span,
    "trace_metric": _shape_metric,
}


def _clean_tags(given: object, moved: dict[_Path, _Path]) -> dict[str, str]:
    """Bring tags to what Sentry takes without cutting them itself."""
    pairs: list[tuple[object, object, _Path]] = []
    if isinstance(given, dict):
        pairs = [(name, value, ("tags", name)) for name, value in given.items()]
    elif isinstance(given, list):
        pairs = [
            (pair[0], pair[1], ("tags", i, 1))
            for i, pair in enumerate(given)
            if isinstance(pair, list) and len(pair) == 2  # noqa: PLR2004 - name and value
        ]
    tags: dict[str, str] = {}
    origins: dict[str, _Path] = {}
    for name, value, path in pairs:
        moved[path] = ("tags", KEY)  # unless it stays, below
        if not isinstance(name, str) or not name or value is None or isinstance(value, dict | list):
            continue
        text = value if isinstance(value, str) else str(value).lower()
        key = tag_key(name)
        if text:
            if key in origins:
                moved[origins[key]] = ("tags", KEY)  # two names became one; the later value stands
            tags[key], origins[key] = _tag_value(text), path
            moved[path] = ("tags", key)
    return tags


def tag_key(name: str) -> str:
    """Give the name under which Sentry takes a tag.

    >>> tag_key("queue name")
    'queue-name'
    """
    return _NO_TAG_KEY_CHAR.sub("-", name)[:_TAG_KEY_CHARS]


def _tag_value(text: str) -> str:
    return " ".join(text[: _TAG_VALUE_CHARS * 2].split("\n"))[:_TAG_VALUE_CHARS]


def _move_agent(
    payload: dict[str, Any], contexts: dict[str, Any], moved: dict[_Path, _Path]
) -> None:
    """Turn a reduced user agent into the contexts that Sentry would have parsed out of a full one.

    It may stand at the top or under the request's headers. It does not stay there: Sentry would
    parse it again, and find nothing.
    """
    agent: object = payload.pop("user_agent", None)
    moved["user_agent",] = ("contexts", "browser", "name")
    request = payload.get("request")
    request = request if isinstance(request, dict) else {}
    headers = request.get("headers")
    if isinstance(headers, list):  # pairs instead of a map
        pairs = [pair for pair in headers if isinstance(pair, list) and len(pair) == 2]  # noqa: PLR2004
        headers = request["headers"] = {str(name): value for name, value in pairs}
    if isinstance(headers, dict):
        for name in [name for name in headers if name.lower() == "user-agent"]:
            agent = headers.pop(name) or agent
            moved["request", "headers", name] = ("contexts", "browser", "name")
    if not isinstance(agent, str):
        return
    browser, _, rest = agent.partition(";")
    system = rest.partition(";")[0].strip()
    name, _, version = browser.strip().rpartition(" ")
    if not name or not version[:1].isdigit():
        name, version = browser.strip(), ""
    if name:
        named = {"name": name} | ({"version": version} if version else {})
        contexts.setdefault("browser", named)
    if system:
        contexts.setdefault("client_os", {"name": system})


def _explain(remarks: Sequence[Remark], tags: Tags) -> dict[str, object]:
    """Say in plain words what was changed, for whoever looks at the event."""
    counts = Counter(remark.rule for remark in remarks)
    rows = [f"{_dotted(one.path)}: {one.rule} {one.action}" for one in remarks[:_ROWS]]
    if len(remarks) > _ROWS:
        rows.append(f"and {len(remarks) - _ROWS} more")
    return {
        "policy": tags.policy,
        "notice": tags.notice,
        "counts": dict(sorted(counts.items())),
        "changes": rows,
    }


def _dotted(path: _Path) -> str:
    return ".".join(str(part) for part in path)


def _meta(
    payload: dict[str, Any],
    remarks: Sequence[Remark],
    moved: Mapping[_Path, _Path],
) -> dict[str, Any]:
    """Record changes as Sentry shows them: ``{"<path>": {"": {"rem": [["!config", letter]]}}}``.

    Rule id ``!config`` is how Sentry shows redactions made before it; any other id would be shown
    as a rule of the Sentry project. Never ``len`` or ``val``: they tell of the original.

    There is one entry for each remark. What has no place of its own in the payload, such as an
    entry whose name was personal, is told of where the nearest part of it stands.

    Args:
        payload: Complete but for ``_meta``; null is put where a removed value stood.
        remarks: What was changed.
        moved: Where the sink has put a value that stood elsewhere.
    """
    tree: dict[str, Any] = {}
    for remark in remarks:
        path = _follow(remark.path, moved)
        hidden = next((n for n, part in enumerate(path) if part in (KEY, "")), len(path))
        whole = hidden == len(path) and path not in _OURS
        path = path[:hidden]
        reached, value = _reserve(payload, path)
        whole, path = whole and reached == len(path), path[:reached]
        if not path:
            continue
        note: list[str | int] = ["!config", "s" if whole and value is not None else "x"]
        # A tag may have been cut since, a text redacted again: then only the fact is told.
        if whole and remark.action == "replace" and isinstance(value, str):
            there = value.encode()[remark.start : remark.end]
            if remark.start >= 0 and _PLACEHOLDER.fullmatch(there):
                note += [remark.start, remark.end]
        node = tree
        for part in path:
            node = node.setdefault(str(part), {})
        node.setdefault("", {"rem": []})["rem"].append(note)
    return tree


def _follow(path: _Path, moved: Mapping[_Path, _Path]) -> _Path:
    """Say where the value of a path ended up."""
    for cut in range(len(path), 0, -1):
        if path[:cut] in moved:
            return moved[path[:cut]] + path[cut:]
    return path


def _reserve(payload: dict[str, Any], path: _Path) -> tuple[int, object]:
    """Look up a value; where a removed one stood, leave null, else Sentry drops its remark.

    Returns:
        How many parts of the path lead to something in the payload, and what stands there.
    """
    node: Any = payload
    for depth, part in enumerate(path):
        if isinstance(node, dict) and isinstance(part, str):
            if part not in node:
                # Nothing is made up around it: an empty request would look like one without data.
                if depth < len(path) - 1 or path[0] == "tags":
                    return depth, node
                node[part] = None
            node = node[part]
        elif isinstance(node, list) and isinstance(part, int) and 0 <= part < len(node):
            node = node[part]
        else:
            return depth, node
    return len(path), node


def _rfc3339(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
