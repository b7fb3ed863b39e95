"""Heap: product analytics. Owns the wire format of its server-side API and nothing else.

Source:
    developers.heap.io/reference: track-1, bulk-track, add-user-properties, user-deletion.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC
from itertools import islice
from typing import Any, Final

import aiohttp
import msgspec

from scrubbers.model import Scrubbed
from telemetry.errors import ConfigError, EventError, SinkError
from telemetry.sinks import Delivery, Erasure, NotErasable, Outcome, Shaping, Sink
from telemetry.sinks.wire import Answer, Wire, base_url, outcome_of

__all__ = ["HeapSink"]

_NAME_CHARS: Final = 1024  # "at most 1024 characters": event names
_TEXT_CHARS: Final = 1023  # "under 1024 characters": keys and values of event properties
_USER_TEXT_CHARS: Final = 255
_IDENTITY_CHARS: Final = 255
_ERASED_AT_ONCE: Final = 10_000

_TRACK, _USERS = "analytics_event", "user_properties"

# Path, name of the list, and whether it takes updates of users (else events).
_CALLS: Final = (("track", "events", False), ("add_user_properties", "users", True))

# `id` in any casing clashes with a name of Heap's own; `email` would fill the built-in Email.
_RESERVED: Final = frozenset({"id", "email"})

_PROMISE: Final = ("retain_until", "retention_class", "policy", "organization")
_PLACES: Final[Mapping[tuple[str | int, ...], Sequence[tuple[str, ...]]]] = {
    ("account",): (("identity",),),
    ("event",): (("event",),),
    ("event_id",): (("idempotency_key",),),
    ("time",): (("timestamp",),),
    ("session",): (("session_id",),),
    ("organization",): (("properties", "organization"),),
    ("page",): (("properties", "page"),),
    ("referrer",): (("properties", "referrer"),),
    ("ip",): (("properties", "ip_prefix"),),
    ("user_agent",): tuple(("properties", name) for name in ("browser", "os", "device")),
}
"""Field of the record → where `HeapSink.shape` puts it."""


class HeapSink(Sink):
    """Heap's bulk API.

    At least once. Events carry `Delivery.delivery_id` as ``idempotency_key``, of which Heap makes
    the event's own id: a repeat changes nothing. User properties have no such key; the last value
    wins, so a repeat of the same values changes nothing either.

    Args:
        url: ``https://heapanalytics.com``, or ``https://c.eu.heap-api.com`` for EU data.
        app_id: Environment id, a numeric string.
        session: Shared client session; its owner closes it.
        api_key: Key of the deletion API; without it nothing can be erased.
        deletion_url: Host of the deletion API, if it is another one.
        connect_s: Longest time for a connection to stand, seconds.
        total_s: Longest time for a whole request, seconds.
        plaintext: Allow ``http`` to another machine.
        networks: Where it may be besides the public Internet, as ``10.20.0.0/16``.

    Raises:
        ConfigError: The address is no URL, or `app_id` is empty.

    Source:
        developers.heap.io/reference/track-1 ("idempotency_key").
    """

    # Heap takes 1000. Half of it keeps the search for one bad event at 11 further requests.
    max_deliveries = 500
    stand_in = "telemetry.testing.heap:HeapStandIn"

    def __init__(  # noqa: PLR0913 - keywords only
        self,
        *,
        url: str,
        app_id: str,
        session: aiohttp.ClientSession | None = None,
        api_key: str = "",
        deletion_url: str = "",
        connect_s: float = 5.0,
        total_s: float = 30.0,
        plaintext: bool = False,
        networks: Collection[str] = (),
    ) -> None:
        if not app_id:
            raise ConfigError("Heap needs an app_id.", remedy="Name the environment's id.")
        self._url = base_url(url, plaintext=plaintext)
        self._deletion = base_url(deletion_url or url, plaintext=plaintext) + "/api/public/v0"
        self._app_id, self._api_key = app_id, api_key
        self._wire = Wire(session=session, networks=networks, connect_s=connect_s, total_s=total_s)

    def shape(self, event: Scrubbed, shaping: Shaping) -> bytes:
        """Make one element of a bulk request.

        Raises:
            EventError: ``no_identity`` without an account token; ``unsupported_kind``;
                ``unshapeable`` where the event does not fit Heap's limits or types.
        """
        if shaping.kind not in {_TRACK, _USERS}:
            raise EventError("unsupported_kind")
        identity = shaping.tokens.get("account", "")
        if not identity:
            raise EventError("no_identity")
        if len(identity) > _IDENTITY_CHARS:
            raise EventError("unshapeable", "identity")
        try:
            given: Any = msgspec.json.decode(event)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise EventError("unshapeable") from None
        if not isinstance(given, dict):
            raise EventError("unshapeable")
        body: dict[str, object]
        if shaping.kind == _USERS:
            properties = _flat(given.get("properties"), _USER_TEXT_CHARS)
            if any(name.casefold() in _RESERVED for name in properties):
                raise EventError("reserved_name", "properties")
            body = {"identity": identity, "properties": properties | _tags(shaping)}
        else:
            name = given.get("event")
            if not isinstance(name, str) or not 0 < len(name) <= _NAME_CHARS:
                raise EventError("unshapeable", "event")
            properties = _flat(given.get("properties"), _TEXT_CHARS)
            body = {
                "identity": identity,
                "event": name,
                "timestamp": shaping.occurred_at.astimezone(UTC).isoformat(timespec="milliseconds"),
                "idempotency_key": shaping.delivery_id,
                "properties": properties | _flat(_observed(given), _TEXT_CHARS) | _tags(shaping),
            }
            if session := shaping.tokens.get("session"):
                body["session_id"] = session
        return msgspec.json.encode(body, order="deterministic")

    def places(self, kind: str, path: tuple[str | int, ...]) -> Sequence[tuple[str | int, ...]]:
        """Say under which of Heap's names a field stands."""
        if path[:1] == ("properties",):
            return () if path[1:2] and path[1] in _PROMISE else (path,)
        return _PLACES.get(path, ()) if kind == _TRACK or path == ("account",) else ()

    def identity(self, delivery: Delivery) -> str:
        """Name the token under which Heap counts a delivery against its per-identity limits."""
        try:
            return msgspec.json.decode(delivery.body, type=_Identified).identity
        except (msgspec.DecodeError, UnicodeDecodeError):
            return ""

    async def send(self, deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
        """Send events in one bulk request and user properties in another."""
        outcomes: dict[int, Outcome] = {}
        updates = [one.kind == _USERS for one in deliveries]
        for path, field, is_update in _CALLS:
            places = [i for i, update in enumerate(updates) if update is is_update]
            if not places:
                continue
            # Bodies are JSON already; joining them saves decoding a thousand objects again.
            body = b'{"app_id":%s,"%s":[%s]}' % (
                msgspec.json.encode(self._app_id),
                field.encode(),
                b",".join(deliveries[i].body for i in places),
            )
            answer = await self._wire.call(
                "POST",
                f"{self._url}/api/{path}",
                body=body,
                headers={"Content-Type": "application/json"},
            )
            outcome = outcome_of(answer, several=len(places) > 1)
            outcomes.update(dict.fromkeys(places, outcome))
        return [outcomes[i] for i in range(len(deliveries))]

    async def erase(self, tokens: Collection[str]) -> Erasure:
        """Ask Heap to delete these identities in all environments of the account.

        Whether a deleted identity may come back is not documented: stop sending first, ask second.

        Returns:
            Heap's number of the request (several, joined by commas, above 10 000 tokens).

        Raises:
            NotErasable: No `api_key` is configured.
            SinkError: Heap could not be reached or answered otherwise than documented.

        Source:
            developers.heap.io/reference/user-deletion.
        """
        bearer = await self._bearer()
        references: list[str] = []
        left = iter(sorted(set(tokens)))
        while chunk := list(islice(left, _ERASED_AT_ONCE)):
            said = _said(
                await self._wire.call(
                    "POST",
                    f"{self._deletion}/user_deletion",
                    body=msgspec.json.encode({"users": [{"identity": token} for token in chunk]}),
                    headers={"Content-Type": "application/json", **bearer},
                ),
                "deletion",
            )
            reference = said.get("deletion_request_id")
            if not isinstance(reference, str | int) or not str(reference):
                raise SinkError("Heap's answer to a deletion names no request.")
            references.append(str(reference))
        return await self._progress(references, bearer)

    async def erasure(self, reference: str) -> Erasure:
        """Ask how far an earlier deletion is.

        Raises:
            NotErasable: No `api_key` is configured.
            SinkError: Heap could not be reached or answered otherwise than documented.
        """
        return await self._progress(
            [part for part in reference.split(",") if part], await self._bearer()
        )

    async def _bearer(self) -> Mapping[str, str]:
        """Fetch an access token. It lives five minutes, so each errand fetches its own."""
        if not self._api_key:
            raise NotErasable("Heap deletes only with an api_key, and none is configured.")
        basic = b64encode(f"{self._app_id}:{self._api_key}".encode()).decode("ascii")
        said = _said(
            await self._wire.call(
                "POST",
                f"{self._deletion}/auth_token",
                headers={"Authorization": f"Basic {basic}"},
            ),
            "token",
        )
        bearer = said.get("access_token")
        if not isinstance(bearer, str) or not bearer or not bearer.isprintable():
            raise SinkError("Heap gave no access token.")
        return {"Authorization": f"Bearer {bearer}"}

    async def _progress(self, references: Sequence[str], bearer: Mapping[str, str]) -> Erasure:
        complete = True
        for reference in references:
            if not reference.replace("-", "").replace("_", "").isalnum():
                raise SinkError("Heap's number of a deletion is not one that fits a URL.")
            said = _said(
                await self._wire.call(
                    "GET", f"{self._deletion}/deletion_status/{reference}", headers=bearer
                ),
                "status",
            )
            complete = complete and said.get("status") == "complete"
        return Erasure(reference=",".join(references), complete=complete)

    async def close(self) -> None:
        """Close the connections, if they are our own."""
        await self._wire.close()


class _Identified(msgspec.Struct):
    identity: str


def _observed(given: Mapping[str, Any]) -> dict[str, object]:
    """Name what the pipeline has seen of page, address and browser the way Heap will show it."""
    seen: dict[str, object] = {
        name: given[name] for name in ("page", "referrer") if given.get(name)
    }
    if given.get("ip"):
        seen["ip_prefix"] = given["ip"]
    agent = given.get("user_agent")
    if isinstance(agent, str):
        parts = [part.strip() for part in agent.split(";")]
        pairs = zip(("browser", "os", "device"), parts, strict=False)
        seen |= {name: part for name, part in pairs if part}
    return seen


def _tags(shaping: Shaping) -> dict[str, str | int | float]:
    """Give the promise. Set last, so that no property of an application can stand in its place."""
    tags: dict[str, str | int | float] = {
        "retain_until": shaping.tags.retain_until.isoformat(),
        "retention_class": shaping.tags.retention_class,
        "policy": shaping.tags.policy,
    }
    if organization := shaping.tokens.get("organization"):
        tags["organization"] = organization
    for kind, token in shaping.tokens.items():
        if kind.startswith("object:"):
            tags[kind.removeprefix("object:")] = token
    return tags


def _flat(properties: object, longest: int) -> dict[str, str | int | float]:
    """Bring properties to what Heap documents: flat, strings and numbers, of bounded length."""
    if properties is None:
        return {}
    if not isinstance(properties, dict):
        raise EventError("unshapeable", "properties")
    flat: dict[str, str | int | float] = {}
    for name, value in properties.items():
        if not 0 < len(name) <= longest:
            raise EventError("unshapeable", "properties")
        if value is None:
            continue
        if isinstance(value, bool):  # not documented as allowed
            flat[name] = "true" if value else "false"
        elif isinstance(value, str):
            flat[name] = value[:longest]
        elif isinstance(value, int | float):
            flat[name] = value
        else:
            raise EventError("unshapeable", "properties")
    return flat


def _said(answer: Answer, what: str) -> dict[str, Any]:
    """Read the JSON object of a deletion API's answer."""
    if answer.status not in {200, 201, 202}:
        raise SinkError(f"Heap answered {answer.status} to a {what} request.")
    try:
        said: Any = msgspec.json.decode(answer.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise SinkError(f"Heap's answer to a {what} request is no JSON.") from None
    if not isinstance(said, dict) or said.get("err"):
        raise SinkError(f"Heap refused a {what} request.")
    return said
