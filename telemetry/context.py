"""The request that is being served: what events need of it, and what must appear in no event.

Owns the current `Request` of a task or thread. Which headers carry an address, a secret or the
browser stands in the schema of an error's request headers, not here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar, Token
from functools import cache
from itertools import islice
from typing import Any, Final, NamedTuple, Self
from uuid import UUID

__all__ = ["Request", "bounded_text", "current", "identifier"]

_HEADERS: Final = 128
_HEADER_CHARS: Final = 4096
_PIECES: Final = 32
"""Most addresses of one header and most cookies that are remembered."""

_SECRET_CHARS: Final = 10
"""A shorter value of a cookie is a setting ("theme=dark"), and a word that texts may hold."""

_INT: Final = (-(2**63), 2**63)


class Request:
    """One request of the application. A context manager; while it is entered, events refer to it.

    Attributes may be set while it is entered, for example once the account has been authenticated.
    Nothing of it is sent as it stands: the address is cut, route and URL are reduced, and of the
    headers only browser and system stay.

    Attributes:
        method: HTTP method.
        url: The URL as requested; reduced before it leaves.
        route: Template of the path, for example ``/boards/{board}``. Preferred to `url`.
        client_ip: The client's address, as the application trusts it.
        account: Id of the account, or None.
        organization: Id of the organization, or None.
        session: Id of the session, or None.
        route_source: Asked for the route while `route` is None; for frameworks that know it late.
    """

    __slots__ = (
        "_headers",
        "_tokens",
        "account",
        "client_ip",
        "method",
        "organization",
        "route",
        "route_source",
        "session",
        "url",
    )

    def __init__(
        self,
        *,
        method: Any = None,
        url: Any = None,
        route: Any = None,
        headers: Any = None,
        client_ip: Any = None,
        account: Any = None,
        organization: Any = None,
        session: Any = None,
    ) -> None:
        self.method, self.url, self.route = method, url, route
        self.client_ip = client_ip
        self.account, self.organization, self.session = account, organization, session
        self._headers = _header_pairs(headers)
        self.route_source: Callable[[], str | None] | None = None
        self._tokens: list[Token[Request | None]] = []

    def __enter__(self) -> Self:
        self._tokens.append(_current.set(self))
        return self

    def __exit__(self, *_: object) -> None:
        try:
            _current.reset(self._tokens.pop())
        except (ValueError, IndexError, RuntimeError):
            # Left in another context than it was entered in: some frameworks close generators so.
            _current.set(None)

    def __repr__(self) -> str:
        """Name what it is, never what it holds."""
        return "Request()"

    @property
    def template(self) -> str | None:
        """The route, as far as it is known by now."""
        route = self.route
        if route is None and self.route_source is not None:
            route = self.route_source()
        return bounded_text(route)

    @property
    def page(self) -> str | None:
        """The route, else the URL; both are reduced before they leave."""
        return self.template or bounded_text(self.url)

    @property
    def address(self) -> str | None:
        """The client's address."""
        return bounded_text(self.client_ip)

    @property
    def user_agent(self) -> str | None:
        """The browser, as it calls itself."""
        names = _header_table().user_agents
        return next((value for name, value in self._headers if name in names), None)

    def known(self) -> tuple[tuple[str, str], ...]:
        """(kind, value) pairs that must appear in no event of this request."""
        table = _header_table().known
        found: dict[tuple[str, str], None] = {}
        for kind, value in (
            ("account", identifier(self.account)),
            ("organization", identifier(self.organization)),
            ("session", identifier(self.session)),
            ("ip", self.address),
        ):
            if value is not None:
                found[kind, str(value)] = None
        for name, value in self._headers:
            if (kind := table.get(name, "")) == "ip":
                for part in value.split(",", _PIECES)[:_PIECES]:
                    found[kind, part.strip()] = None
            elif kind:
                # "Bearer x", "a=x; b=y": it is the x that must not appear anywhere.
                for part in value.split(";", _PIECES)[:_PIECES]:
                    secret = part.strip().rpartition(" ")[2]
                    secret = secret.partition("=")[2] or secret
                    if len(secret) >= _SECRET_CHARS:
                        found[kind, secret] = None
        found = {pair: None for pair in found if pair[1]}
        return tuple(found)


_current: ContextVar[Request | None] = ContextVar("telemetry_request", default=None)


def current() -> Request | None:
    """Give the request that is being served here, if any."""
    return _current.get()


def bounded_text(value: Any, longest: int = _HEADER_CHARS) -> str | None:
    """Give a plain, bounded copy of a text; None if it is no text. Calls no method of `value`."""
    kind = type(value)
    if kind is not str:
        if not issubclass(kind, str):
            return None
        value = str.__str__(value)
    return str(value[:longest]) or None


def identifier(value: Any) -> str | int | None:
    """Give an id as text or whole number; None if it is neither (also for True and False)."""
    kind = type(value)
    if kind is bool:
        return None
    if issubclass(kind, int):
        number = int.__add__(value, 0)
        return number if _INT[0] <= number < _INT[1] else None
    if kind is UUID:
        return str(value)
    return bounded_text(value)


def _header_pairs(headers: Any) -> tuple[tuple[str, str], ...]:
    """Copy headers: a mapping, or pairs of text or bytes as in WSGI and ASGI. Bounded."""
    pairs = []
    try:
        source: Iterable[Any] = headers.items() if isinstance(headers, Mapping) else headers or ()
        for name, value in islice(iter(source), _HEADERS):
            pair = (_header_text(name).lower(), _header_text(value))
            if all(pair):
                pairs.append(pair)
    except Exception:  # noqa: BLE001, S110 - foreign classes: a request without headers
        pass
    return tuple(pairs)


def _header_text(value: Any) -> str:
    if type(value) is bytes:
        return value[:_HEADER_CHARS].decode("latin-1")
    return bounded_text(value) or ""


class _HeaderTable(NamedTuple):
    known: Mapping[str, str]
    user_agents: frozenset[str]


@cache
def _header_table() -> _HeaderTable:
    """Read from the schema which headers carry what.

    A header that the schema strips as an identifier is a known value: of the kind it says, else a
    secret (cookies).
    """
    from telemetry.policy import schemas_dir  # noqa: PLC0415 - more than `import telemetry` may load

    record = json.loads((schemas_dir() / "error_event.avsc").read_text("utf-8"))
    known, user_agents = {}, set()
    for entry in _fields_of(record, "RequestHeaders"):
        name, note = entry.get("json", entry["name"]).lower(), entry["privacy"]
        if note["treatment"] == "reduce_user_agent":
            user_agents.add(name)
        elif note["class"] == "identifier":
            known[name] = note.get("known", "secret")
    return _HeaderTable(known, frozenset(user_agents))


def _fields_of(node: Any, name: str) -> list[dict[str, Any]]:
    """Find the fields of the record `name`, wherever it is nested."""
    if isinstance(node, dict):
        if node.get("name") == name and "fields" in node:
            return list(node["fields"])
        node = list(node.values())
    if isinstance(node, list):
        for item in node:
            if found := _fields_of(item, name):
                return found
    return []
