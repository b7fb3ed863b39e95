"""sentry-sdk through our gateway: the same calls, the same event id, no payload.

An application's ``sentry_sdk.capture_exception``, its logging and framework integrations go on as
they are; only the transport is ours. It takes each envelope apart, has its items scrubbed on the
hand-over's thread, and sends them in Sentry's own dialect. Values of local variables are never
read: frames get the names and classes of variables only.

Either ``telemetry.init`` initialises sentry-sdk, or the application does it itself with
``transport=TelemetryTransport``. An application whose sentry-sdk sends elsewhere is left alone;
what is reported by `telemetry.capture_exception` goes through the gateway even then.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from inspect import CO_OPTIMIZED
from itertools import islice
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

import sentry_sdk
from sentry_sdk.client import BaseClient
from sentry_sdk.integrations.atexit import AtexitIntegration
from sentry_sdk.scope import add_global_event_processor
from sentry_sdk.scrubber import EventScrubber
from sentry_sdk.transport import Transport

from telemetry.client import Client, active
from telemetry.context import bounded_text, current, identifier

if TYPE_CHECKING:
    from sentry_sdk._types import Event, EventDataCategory, Hint
    from sentry_sdk.envelope import Envelope, Item

__all__ = ["TelemetryTransport"]

_KINDS: Final = {
    "event": "error_event",
    "session": "session",
    "sessions": "sessions",
    "check_in": "check_in",
}
"""Items that are passed on, with the record that describes them. Others are dropped and counted."""

_LOCALS: Final = 100
_FRAMES: Final = 200
_CHAIN: Final = 20


class TelemetryTransport(Transport):
    """A transport of sentry-sdk that hands over to our gateway.

    ``sentry_sdk.init(dsn=…, transport=TelemetryTransport)`` uses the client that ``telemetry.init``
    made, or else makes one for the gateway that the DSN names.

    At least once: an envelope may be sent twice after a lost answer. Its event id makes that
    harmless.
    """

    def __init__(
        self, options: dict[str, Any] | None = None, *, client: Client | None = None
    ) -> None:
        super().__init__(options)
        options = options or {}
        self._given = client
        self._own: Client | None = None
        if client is None and active() is None and options.get("dsn"):
            self._own = Client(
                service=options.get("server_name") or "",
                environment=options.get("environment") or "production",
                release=options.get("release"),
                url=str(options["dsn"]),
            )
        self._lost: Counter[tuple[str, str]] = Counter()
        self._lost_lock = threading.Lock()
        _watch_events()

    @property
    def _client(self) -> Client | None:
        return self._given or active() or self._own

    def capture_envelope(self, envelope: Envelope) -> None:
        """Queue what is passed on of an envelope. Never raises, never waits."""
        client = self._client
        if client is None:
            return
        try:
            for item in envelope.items:
                kind = _KINDS.get(item.type or "")
                if kind is None:
                    client.handover.count(f"sentry_dropped:{item.data_category}")
                    self.record_lost_event("event_processor", item=item)
                elif not client.put_error(kind, _payload(item)):
                    self.record_lost_event("queue_overflow", item=item)
            self._report(client)
        except Exception:  # noqa: BLE001 - the host application must not notice
            client.handover.count("failed_calls")

    def record_lost_event(
        self,
        reason: str,
        data_category: EventDataCategory | None = None,
        item: Item | None = None,
        *,
        quantity: int = 1,
    ) -> None:
        """Count a loss for the next client report. Source: develop.sentry.dev, Client Reports."""
        category = item.data_category if item is not None else data_category
        if category is not None and category != "internal":
            with self._lost_lock:
                self._lost[str(category), reason] += quantity

    def flush(self, timeout: float, callback: Any = None) -> None:
        """Wait up to `timeout` seconds for what is queued."""
        client = self._client
        if client is not None and timeout > 0:
            self._report(client)
            client.handover.flush(timeout)

    def kill(self) -> None:
        """Stop, if this transport's client is its own."""
        if self._own is not None:
            self._own.handover.close(0)

    def _report(self, client: Client) -> None:
        with self._lost_lock:
            lost, self._lost = self._lost, Counter()
        if lost:
            report = {
                "discarded_events": [
                    {"reason": reason, "category": category, "quantity": number}
                    for (category, reason), number in lost.items()
                ]
            }
            client.put_error("client_report", report)


def _payload(item: Item) -> Any:
    """Give an item's JSON values, or its bytes if it has no others."""
    data: Any = item.payload.json
    if data is None:
        return item.get_bytes()
    user = data.get("user") if item.type == "event" else None
    if type(user) is dict:
        # An application's own EventScrubber takes these for secrets; a token of "[Filtered]" would
        # be everybody's.
        for name in ("session", "organization"):
            if user.get(name) == _FILTERED:
                del user[name]
    return data


_FILTERED: Final = "[Filtered]"


def connect(client: Client) -> None:
    """Initialise sentry-sdk with our transport, unless the application has done so."""
    dsn = client.handover.destination.dsn
    options: dict[str, Any] = {
        "dsn": dsn,
        "transport": TelemetryTransport({"dsn": dsn}, client=client),
        "environment": client.environment,
        "release": client.release,
        # What would never be sent is not even collected.
        "include_local_variables": False,
        "max_request_body_size": "never",
        "enable_backpressure_handling": False,
        # Its list of forbidden names would filter our ids ("session") and the shapes of variables.
        "event_scrubber": EventScrubber(denylist=[], pii_denylist=[]),
        # telemetry.shutdown is called at exit and flushes both within one deadline.
        "disabled_integrations": [AtexitIntegration],
    }
    there = sentry_sdk.get_client()
    if there.is_active() and there not in _ours:
        # The application's own: left as it is. What is reported through us has a client of its own.
        made: BaseClient = sentry_sdk.Client(
            **options, default_integrations=False, auto_enabling_integrations=False
        )
    else:
        sentry_sdk.init(**options)
        made = sentry_sdk.get_client()
    _ours.add(made)
    _clients[client] = made


def disconnect(client: Client) -> None:
    """Let sentry-sdk hand over what it still holds; the caller waits for the gateway."""
    own = _clients.pop(client, None)
    if own is not None:
        own.close(timeout=0)


def capture_exception(client: Client, error: BaseException | None) -> str | None:
    """Report an exception, or the one being handled; give its event id."""
    if error is None:
        error = sys.exc_info()[1]
    if not issubclass(type(error), BaseException):
        client.handover.count("rejected:no_exception")
        return None
    with _through(client) as scope:
        return None if scope is None else scope.capture_exception(error)


def capture_message(client: Client, text: str, level: str) -> str | None:
    """Report a message; give its event id."""
    known: Any = level if level in _LEVELS else "info"
    with _through(client) as scope:
        return None if scope is None else scope.capture_message(text, known)


def last_event_id() -> str | None:
    """Give the id of the last error that was reported in this context."""
    return sentry_sdk.last_event_id()


_LEVELS: Final = frozenset(("debug", "info", "warning", "error", "fatal", "critical"))
_clients: dict[Client, BaseClient] = {}
_ours: WeakSet[BaseClient] = WeakSet()


@contextmanager
def _through(client: Client) -> Iterator[sentry_sdk.Scope | None]:
    """Give a scope whose events go through our gateway, or None if errors are switched off.

    Usually that is sentry-sdk's own. Where the application's sentry-sdk sends elsewhere, what was
    reported through us must not follow it there.
    """
    if isinstance(sentry_sdk.get_client().transport, TelemetryTransport):
        yield sentry_sdk.get_current_scope()
        return
    own = _clients.get(client)
    if own is None:
        client.handover.count("rejected:errors_off")
        yield None
        return
    with sentry_sdk.new_scope() as scope:
        scope.set_client(own)
        yield scope


# Completing events --------------------------------------------------------------------------------

_watching = False


def _watch_events() -> None:
    global _watching  # noqa: PLW0603 - a global processor can be added but not removed
    if not _watching:
        _watching = True
        add_global_event_processor(_complete)


def _complete(event: Event, hint: Hint) -> Event:
    """Add what the current request and the traceback tell. Only where our transport sends."""
    transport = sentry_sdk.get_client().transport
    if not isinstance(transport, TelemetryTransport):
        return event
    try:
        data: Any = event
        _bound(data)
        _add_request(data)
        client = transport._client  # noqa: SLF001 - same module
        tags = data.setdefault("tags", {})
        if client is not None and client.service and type(tags) is dict:
            tags.setdefault("service", client.service)
        exc_info = hint.get("exc_info")
        if exc_info is not None:
            _add_shapes(data, exc_info[1])
    except Exception:  # noqa: BLE001 - an event without these is still an event
        client = active()
        if client is not None:
            client.handover.count("incomplete_errors")
    return event


def _bound(event: dict[str, Any]) -> None:
    """Cut what would make the event larger than any may be: chains, stacks and messages.

    sentry-sdk lists ten thousand causes with a stack each, and no longer cuts a message. Of a stack
    stays what Sentry itself would keep, so that it groups as before.

    Source:
        getsentry/relay, `enforce_frame_hard_limit`: 200 recent and 50 old frames.
    """
    errors: Any = (event.get("exception") or {}).get("values") or ()
    if len(errors) > _ERRORS:
        # The cause of all stands first, what was caught last; their groups are numbered from there.
        del errors[_ERRORS // 2 : -_ERRORS // 2]
    for error in errors:
        frames: Any = (error.get("stacktrace") or {}).get("frames") or ()
        if len(frames) > _OLD_FRAMES + _RECENT_FRAMES:
            del frames[_OLD_FRAMES:-_RECENT_FRAMES]
    for holder, name in (
        (event, "message"),
        (event.get("logentry"), "message"),
        (event.get("logentry"), "formatted"),
        *((error, "value") for error in errors),
    ):
        text = holder.get(name) if type(holder) is dict else None
        if type(text) is str and len(text) > _MESSAGE:
            holder[name] = text[:_MESSAGE]


_ERRORS: Final = 50
_OLD_FRAMES: Final = 50
_RECENT_FRAMES: Final = 200
_MESSAGE: Final = 8192


def _add_request(event: dict[str, Any]) -> None:
    request = current()
    if request is None:
        return
    user = event.setdefault("user", {})
    for name, value in (
        ("id", identifier(request.account)),
        ("organization", identifier(request.organization)),
        ("session", identifier(request.session)),
        ("ip_address", request.address),
    ):
        if value is not None:
            user.setdefault(name, value)
    details = event.setdefault("request", {})
    for name, text in (
        ("method", bounded_text(request.method)),
        ("url", bounded_text(request.url) or request.page),
    ):
        if text is not None:
            details.setdefault(name, text)
    if (user_agent := request.user_agent) is not None:
        details.setdefault("headers", {}).setdefault("User-Agent", user_agent)
    if (route := request.template) is not None:
        event["transaction"] = route
        event["transaction_info"] = {"source": "route"}


def _add_shapes(event: dict[str, Any], error: BaseException | None) -> None:
    """Give each frame the names and classes of its variables. Reads no value, calls no method.

    Frames that run the same line at once (recursion) show the shapes of the innermost.
    """
    shapes = {
        # As sentry-sdk writes it: without resolving links.
        (os.path.abspath(frame.f_code.co_filename), line): _locals_of(frame)  # noqa: PTH100
        for frame, line in islice(_frames(error), _FRAMES)
    }
    for value in event.get("exception", {}).get("values", ()):
        for frame in (value.get("stacktrace") or {}).get("frames", ()):
            found = shapes.get((frame.get("abs_path"), frame.get("lineno")))
            if found:
                frame["vars"] = found


def _frames(error: BaseException | None) -> Iterator[tuple[FrameType, int]]:
    """Walk the frames of an exception, of what it came from, and of what it groups."""
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting and len(seen) < _CHAIN:
        current_error = waiting.pop(0)
        if current_error is None or id(current_error) in seen:
            continue
        seen.add(id(current_error))
        trace: TracebackType | None = current_error.__traceback__
        while trace is not None:
            yield trace.tb_frame, trace.tb_lineno
            trace = trace.tb_next
        waiting += [current_error.__cause__, current_error.__context__]
        if isinstance(current_error, BaseExceptionGroup):
            waiting += current_error.exceptions


def _locals_of(frame: FrameType) -> dict[str, str]:
    if not frame.f_code.co_flags & CO_OPTIMIZED:
        return {}  # a module or class body: its names are its attributes, not variables
    variables: Mapping[str, Any] = frame.f_locals
    return {name: _shape(value) for name, value in islice(variables.items(), _LOCALS)}


_SHAPES: Final[tuple[tuple[type, str], ...]] = (
    (bool, "bool"),
    (int, "number"),
    (float, "number"),
    (complex, "number"),
    (str, "text"),
    (bytes, "text"),
    (dict, "map"),
    (list, "list"),
    (tuple, "list"),
    (set, "list"),
    (frozenset, "list"),
)


def _shape(value: Any) -> str:
    """Name the class of a value as the schema's treatment ``shape`` does."""
    kind = type(value)
    if value is None:
        return "null"
    for base, word in _SHAPES:
        if kind is base:
            return word if word in ("bool", "number") or len(value) else "empty"
        if issubclass(kind, base):
            return word
    return "object"
