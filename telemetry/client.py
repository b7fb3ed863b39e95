"""What stands behind the public calls: an event is copied, queued, and scrubbed in the background.

Scrubbing happens on the hand-over's background thread, by the same code and the same policy as in
the gateway (`telemetry.edge`). What is sent holds identifiers only where they belong: the gateway
seals them. Whatever fails here is caught and counted: an application must not notice that its
telemetry has a problem, except by `stats`.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from datetime import date, datetime, timezone
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar
from uuid import UUID, uuid4

import msgspec

from telemetry.context import Request, bounded_text, current, identifier
from telemetry.errors import ConfigError, EventError
from telemetry.transport import DEFAULT_URL, Destination, Entry, Handover

if TYPE_CHECKING:
    from scrubbers.engine import Outcome
    from scrubbers.model import Scrubbed
    from telemetry.edge import Edge

__all__ = ["EXIT_S", "Client", "activate", "active", "count", "lost", "never_raising"]

log = logging.getLogger("telemetry")

_P = ParamSpec("_P")
_T = TypeVar("_T")

EXIT_S: Final = 2.0
"""Longest time that the end of a process waits for the gateway."""

_DEVELOPMENT: Final = "development"
_NAMES_EXPLAINED: Final = 100
_SHOWABLE: Final = re.compile(r"[A-Za-z][A-Za-z _.-]{0,63}")


class Client:
    """A connection of one service to one gateway.

    Args:
        service: Name of the service; a tag of its errors.
        environment: ``development`` turns mistakes in calling us into errors and log lines.
        release: Version of the application.
        url: The gateway (`Destination.parse`); else ``TELEMETRY_URL``, else loopback.
        policy: Folder of the policy; else ``TELEMETRY_POLICY``, else the shipped one.
        allow_plain_http: Send identifiers over plain HTTP to another host. Without it, and outside
            development, nothing is sent there.
        max_events: Most events that wait for the gateway.
        max_bytes: Most bytes that wait for the gateway.
        scrub: Takes the place of the policy's own edge, in tests.

    Raises:
        ConfigError: `url` is no address of a gateway.
    """

    def __init__(  # noqa: PLR0913 - as init
        self,
        *,
        service: str,
        environment: str,
        release: str | None = None,
        url: str | None = None,
        policy: str | None = None,
        allow_plain_http: bool = False,
        max_events: int = 10_000,
        max_bytes: int = 16 * 1024 * 1024,
        scrub: Callable[[Entry], Outcome] | None = None,
    ) -> None:
        self.service, self.environment, self.release = service, environment, release
        self.development = environment == _DEVELOPMENT
        destination = Destination.parse(url or os.environ.get("TELEMETRY_URL") or DEFAULT_URL)
        self._refuses = not (destination.private or allow_plain_http or self.development)
        self._policy = policy
        self._scrub = scrub
        self._edge: Edge | None = None
        self._unavailable = ""
        self._said: set[str] = set()
        self.handover = Handover(
            destination,
            self._prepare,
            warm=self._warm,
            away=self._tell_away,
            name=service,
            max_events=max_events,
            max_bytes=max_bytes,
        )

    # On the application's thread ------------------------------------------------------------------

    def track(
        self,
        event: Any,
        *,
        account: Any = None,
        organization: Any = None,
        session: Any = None,
        page: Any = None,
        properties: Any = None,
    ) -> bool:
        """Queue an analytics event; tell whether there was room."""
        name = bounded_text(event)
        if name is None:
            return self._reject("event_is_no_text", "track() needs the name of an event, as text.")
        request = current()
        data: dict[str, Any] = {"event": name, "time": time.time()}
        if request is not None:
            data["ip"], data["user_agent"] = request.address, request.user_agent
            account = request.account if account is None else account
            organization = request.organization if organization is None else organization
            session = request.session if session is None else session
            page = request.page if page is None else page
        data["account"] = self._identifier(account)
        data["organization"] = self._identifier(organization)
        data["session"] = self._identifier(session)
        data["page"] = bounded_text(page)
        data["properties"] = self._properties(properties)
        return self._put("analytics_event", data, request)

    def identify(self, account: Any, *, organization: Any = None, properties: Any = None) -> bool:
        """Queue facts about an account; tell whether there was room."""
        request = current()
        if organization is None and request is not None:
            organization = request.organization
        data: dict[str, Any] = {
            "time": time.time(),
            "account": self._identifier(account),
            "organization": self._identifier(organization),
            "properties": self._properties(properties),
        }
        if data["account"] is None:
            return self._reject("no_account", "identify() needs the account's id.")
        return self._put("user_properties", data, request)

    def put_error(self, kind: str, data: Any) -> bool:
        """Queue what Sentry's SDK captured: an item of its wire format, as JSON values."""
        request = current()
        entry = Entry("envelope", kind, data if type(data) is bytes else _encoded(data))
        if request is not None:
            entry = entry._replace(address=request.address, known=request.known())
        return self.handover.put(entry)

    def _put(self, kind: str, data: dict[str, Any], request: Request | None) -> bool:
        raw = _encoded({key: value for key, value in data.items() if value is not None})
        if request is None:
            return self.handover.put(Entry("events", kind, raw))
        entry = Entry("events", kind, raw, address=request.address, known=request.known())
        return self.handover.put(entry)

    def _identifier(self, value: Any) -> str | int | None:
        if value is None:
            return None
        plain = identifier(value)
        if plain is None:
            self._reject("bad_identifier", "An id must be a text, a whole number or a UUID.")
        return plain

    def _properties(self, value: Any) -> dict[str, Any] | None:
        if value is None:
            return None
        if not issubclass(type(value), dict):
            self._reject("properties_are_no_dict", "Properties must be a dict.")
            return None
        copied: dict[str, Any] = _Copying().copy(value)
        return copied

    def _reject(self, reason: str, advice: str) -> bool:
        self.handover.count(f"rejected:{reason}")
        if self.development:
            self._say(reason, advice)
        return False

    def _say(self, topic: str, advice: str) -> None:
        """Say something once. Never anything of an event."""
        if topic not in self._said and len(self._said) < _NAMES_EXPLAINED:
            self._said.add(topic)
            log.warning(advice)

    # On the background thread ---------------------------------------------------------------------

    def _prepare(self, entry: Entry) -> bytes | str:
        """Scrub an entry and write it for the wire; or say in one word why it is not sent."""
        if self._refuses:
            self._say(
                "plain_http",
                "The gateway's url is plain HTTP to another host: nothing is sent. Use https, or a "
                "gateway on this host, or allow_plain_http=True on an encrypted network.",
            )
            return "plain_http"
        if entry.kind == "client_report":  # numbers and words of Sentry's own
            return _envelope("client_report", entry.raw, "")
        try:
            outcome = self._outcome(entry)
        except EventError as error:
            self._explain(error, entry)
            return error.reason
        if isinstance(outcome, str):
            return outcome
        if outcome is None:
            event, event_id, data = entry.raw, "", None
        else:
            data = _opened(outcome.event)
            _restore(entry.kind, data, outcome.identifiers)
            if outcome.remarks:
                data["_remarks"] = outcome.remarks
            if not self.handover.destination.private:
                _drop_user_agent(data)
            event, event_id = b"", outcome.event_id
        if entry.lane == "envelope":
            raw = event if data is None else msgspec.json.encode(data)
            return _envelope(_ITEM_TYPES[entry.kind], raw, event_id)
        data = msgspec.json.decode(event) if data is None else data
        data["kind"] = entry.kind
        # Given here, so that it stays the same however often the event is sent.
        data.setdefault("event_id", uuid4().hex)
        return msgspec.json.encode(data)

    def _tell_away(self, status: int) -> None:
        """Say why nothing arrives: of a refused key everywhere, once until it is taken again.

        Somebody who tries this for the first time must not wonder where the events went either.
        """
        if 200 <= status < 300:  # noqa: PLR2004 - HTTP, 15.3
            self._said -= {"refused", "away"}
        elif status in (401, 403):
            self._say(
                "refused",
                f"The gateway refuses our key ({status}): events wait in memory. Compare key and "
                "project of `url` or TELEMETRY_URL with the [project.…] of the gateway's settings.",
            )
        elif self.development:
            self._say(
                "away",
                "The gateway does not take events: they wait in memory. Start one: telemetry run",
            )

    def _warm(self) -> None:
        if self._scrub is None and self._edge is None and not self._refuses:
            self._load()

    def _outcome(self, entry: Entry) -> Outcome | str | None:
        """Scrub; None if that is impossible here and the gateway may be trusted to do it."""
        if self._scrub is not None:
            return self._scrub(entry)
        edge = self._edge or self._load()
        if edge is None:
            return self._unavailable or None
        from telemetry.edge import Connection, Item  # noqa: PLC0415 - loaded by now

        return edge.scrub(Item(entry.kind, entry.raw), Connection(entry.address, entry.known))

    def _load(self) -> Edge | None:
        """Load policy and scrubbers: a fifth of a second that no caller waits for.

        Without RE2 (musl, the newest CPython) events go unscanned, and only to a gateway to which
        nobody can listen on the way; it scrubs them anyway (DESIGN 8).
        """
        if self._unavailable or "unscanned" in self._said:
            return None
        try:
            import re2  # noqa: F401, PLC0415 - asked first: whatever else fails is no reason to go on
        except ImportError:
            if self.handover.destination.private:
                self._say("unscanned", "re2 cannot be imported: the gateway scrubs alone.")
            else:
                self._unavailable = "unscanned"
                self._say("unscannable", "re2 cannot be imported: nothing is sent to this gateway.")
            return None
        from telemetry.edge import Edge  # noqa: PLC0415
        from telemetry.policy import load_policy  # noqa: PLC0415
        from telemetry.rules import Schemas  # noqa: PLC0415

        try:
            policy = load_policy(Path(self._policy) if self._policy else None)
            detectors = policy.detectors
            self._edge = Edge(Schemas(policy, detectors, user_agents=False))
        except (ConfigError, ValueError) as error:
            self._unavailable = "policy"
            self._say("policy", f"Nothing is sent, because the policy cannot be used: {error}")
        return self._edge

    def _explain(self, error: EventError, entry: Entry) -> None:
        """Tell a developer once for each name that an event is not declared."""
        if not self.development or error.reason != "undeclared_event":
            return
        name = msgspec.json.decode(entry.raw, type=dict[str, Any]).get("event")
        shown = name if type(name) is str and _SHOWABLE.fullmatch(name) else "with this name"
        self._say(
            f"event {shown}",
            f"The event {shown!r} is not declared, so it is dropped. Declare it, with what it may "
            f"say, in events.toml of the policy.",
        )


_ITEM_TYPES: Final = {
    "error_event": "event",
    "session": "session",
    "sessions": "sessions",
    "check_in": "check_in",
}
"""Record → type of a Sentry envelope's item."""


_read_parts: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_CHANGED_PARTS: Final = frozenset(("user", "properties", "aggregates", "request", "attrs"))
"""Of a scrubbed event, what holds a place that is written to here."""


def _opened(event: Scrubbed) -> dict[str, Any]:
    """Read a scrubbed event as far as it is changed here; its other parts go out as they are."""
    return {
        name: msgspec.json.decode(part) if name in _CHANGED_PARTS else part
        for name, part in _read_parts(event).items()
    }


def _restore(kind: str, data: dict[str, Any], identifiers: list[tuple[str, str | int]]) -> None:
    """Put the identifiers back where the gateway's schema looks for them, to be sealed there."""
    for sort, value in identifiers:
        sort_, _, name = sort.partition(":")
        if kind == "error_event":
            data.setdefault("user", {})["id" if sort_ == "account" else sort_] = value
        elif kind == "session":
            data["did"] = value
        elif kind == "sessions":
            buckets = data.get("aggregates") or []
            if len(buckets) == 1:  # of several nobody knows any more whose it was
                buckets[0]["did"] = value
        elif name:
            data.setdefault("properties", {})[name] = value
        else:
            data[sort_] = value


def _drop_user_agent(data: dict[str, Any]) -> None:
    """Take out what only a private way may carry; the SDK has no user-agent parser to reduce it."""
    data.pop("user_agent", None)
    for part, name in (("request", "headers"), ("attrs", "user_agent")):
        if isinstance(inner := data.get(part), dict):
            inner.pop(name, None)


def _envelope(item_type: str, payload: bytes, event_id: str) -> bytes:
    """Write one item as a Sentry envelope. Source: develop.sentry.dev, Envelopes."""
    header = {"event_id": event_id} if event_id and item_type == "event" else {}
    item = {"type": item_type, "length": len(payload)}
    return b"\n".join((msgspec.json.encode(header), msgspec.json.encode(item), payload, b""))


# Copying foreign values ---------------------------------------------------------------------------


class _Copying:
    """Copies what an application hands over, within bounds, and never calls any of its methods.

    Not ``__repr__``, ``__str__``, ``__iter__``, ``__getattr__`` nor ``__class__``: an unknown
    object becomes the name of its type. So a copy takes bounded time, has no effect, and cannot
    raise.
    """

    NODES: Final = 512
    CHARS: Final = 32768
    TEXT: Final = 8192
    DEPTH: Final = 5

    __slots__ = ("_chars", "_nodes")

    def __init__(self) -> None:
        self._nodes, self._chars = self.NODES, self.CHARS

    def copy(self, value: Any, depth: int = 0) -> Any:  # noqa: PLR0911 - one case a type
        """Copy `value` into plain JSON values."""
        kind = type(value)
        if kind is str:
            return self._text(value)
        if value is None or kind is bool:
            return value
        if kind is int:
            return identifier(value)
        if kind is float:
            return value if value - value == 0 else None  # neither infinite nor NaN
        if depth < self.DEPTH:
            if issubclass(kind, dict):
                return self._entries(value, depth)
            for base in (list, tuple, set, frozenset):
                if issubclass(kind, base):
                    return self._items(base.__iter__(value), depth)
        if issubclass(kind, str):
            return self._text(str.__str__(value))
        if issubclass(kind, int):
            return identifier(value)
        if issubclass(kind, float):
            return self.copy(float.__add__(value, 0.0))
        if kind is UUID or kind is date or (kind is datetime and _has_plain_zone(value)):
            return str(value)
        if kind is Decimal:
            return float(value) if value.is_finite() else None
        return self._text(type.__getattribute__(kind, "__name__"))

    def _text(self, text: str) -> str:
        cut = text[: min(self.TEXT, self._chars)]
        self._chars -= len(cut)
        return cut

    def _entries(self, value: Any, depth: int) -> dict[str, Any]:
        copied: dict[str, Any] = {}
        try:
            for key, item in islice(dict.items(value), max(0, self._nodes)):
                self._nodes -= 1
                if self._nodes < 0:
                    break
                name = self.copy(key, self.DEPTH)
                copied[name if type(name) is str else str(name)] = self.copy(item, depth + 1)
        except RuntimeError:  # another thread changed it meanwhile: what was read is what there is
            pass
        return copied

    def _items(self, values: Any, depth: int) -> list[Any]:
        copied: list[Any] = []
        try:
            for item in islice(values, max(0, self._nodes)):
                self._nodes -= 1
                if self._nodes < 0:
                    break
                copied.append(self.copy(item, depth + 1))
        except RuntimeError:  # as above
            pass
        return copied


def _has_plain_zone(value: datetime) -> bool:
    """Tell whether asking for the offset runs only code of the standard library."""
    kind = type(value.tzinfo)
    # Importing zoneinfo costs as much as the rest of this package; who has one has imported it.
    zoneinfo = sys.modules.get("zoneinfo")
    return kind in (type(None), timezone, zoneinfo.ZoneInfo if zoneinfo else timezone)


def _encoded(data: Any) -> bytes:
    """Write JSON; lone surrogates, which JSON cannot hold as UTF-8, as escapes."""
    try:
        return msgspec.json.encode(data)
    except (UnicodeEncodeError, TypeError, ValueError, msgspec.MsgspecError):
        return json.dumps(data, default=lambda _: None, skipkeys=True).encode("ascii")


# The client of this process ----------------------------------------------------------------------

_active: Client | None = None
_switching = threading.Lock()
_lost: dict[str, int] = {}
"""Calls that failed while there was no client to count them."""


def active() -> Client | None:
    """Give the client of this process, if there is one."""
    return _active


def activate(client: Client | None) -> Client | None:
    """Make `client` the one of this process; give the one before it."""
    global _active
    with _switching:
        former, _active = _active, client
    return former


def lost() -> dict[str, int]:
    """Count what happened to calls while there was no client."""
    return dict(_lost)


def count(what: str) -> None:
    """Count something that happened to a call, with or without a client."""
    client = _active
    if client is not None:
        client.handover.count(what)
    else:
        _lost[what] = _lost.get(what, 0) + 1


def never_raising(
    default: Callable[[], Any],
) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
    """Make a function safe to call from any application, with any arguments.

    A wrong keyword raises `ConfigError` in development. Elsewhere it is left out and counted.
    """

    def decorate(function: Callable[_P, _T]) -> Callable[_P, _T]:
        code = function.__code__
        accepted = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]

        @functools.wraps(function)
        def safe(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            try:
                return function(*args, **kwargs)
            except Exception:  # noqa: BLE001 - the edge of the SDK
                count("failed_calls")
                wrong = [name for name in kwargs if name not in accepted]
                if wrong:
                    count("wrong_keywords")
                    if _in_development(kwargs):
                        raise ConfigError(
                            f"{function.__name__}() has no argument {wrong[0]!r}.",
                            remedy=f"It takes: {', '.join(accepted)}.",
                        ) from None
                    right: Any = {k: v for k, v in kwargs.items() if k in accepted}
                    return safe(*args, **right)
                result: _T = default()
                return result

        return safe

    return decorate


def _in_development(kwargs: Mapping[str, Any]) -> bool:
    if _active is not None:
        return _active.development
    environment = kwargs.get("environment")  # of a call to init
    return type(environment) is str and environment == _DEVELOPMENT
