"""A stand-in for Heap: takes what the vendor documents, refuses and notes everything else.

Source:
    developers.heap.io/reference: track-1, bulk-track, add-user-properties, add-account-properties,
    bulk-add-account-properties, identify-1, user-deletion. Where Heap documents no rule, the
    strictest reading that its own clients meet is taken.
"""

from __future__ import annotations

import binascii
import json
import math
import re
import time
from base64 import b64decode
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from secrets import token_hex
from typing import Any, Final, Literal

from telemetry.testing.stand_in import Reply, Request, StandIn

__all__ = ["HeapStandIn"]

_BULK: Final = 1000
_EVENT_CHARS, _TEXT_CHARS, _USER_CHARS, _IDENTITY_CHARS = 1024, 1023, 255, 255
_SAFE_INTEGER: Final = 2**53 - 1
_TOKEN_S: Final = 300.0
_ERASED_AT_ONCE: Final = 10_000
_DECIMAL = re.compile(r"[0-9]{1,16}")
_DELETION = "/api/public/v0"

_EVENT_FIELDS = frozenset(
    {"event", "identity", "user_id", "session_id", "timestamp", "idempotency_key", "properties"}
)

_Charge = tuple[tuple[str, ...], int, int, float]
_KINDS: Final[dict[type, str]] = {str: "a string", dict: "an object", list: "a list"}


_SHOWN: Final = 20


class _BrokenError(Exception):
    """A rule that a request breaks, and the status that Heap gives for it."""

    def __init__(self, rule: str, status: int = 400) -> None:
        self.rule, self.status = rule, status
        super().__init__(rule)


class HeapStandIn(StandIn):
    """Heap's server-side API and its deletion API.

    Args:
        app_ids: Environment ids that exist; empty: any.
        unknown_app_id: Heap answers 200 for an id that does not exist and stores nothing
            (``accept``); ``refuse`` answers 404, so that a test notices.
        api_key: What the deletion API's Basic authentication must hold; empty: anything.
        limits: Enforce 30 requests in 30 s and 1000 bulk events a minute for each identity and
            15 000 bulk events a minute for each environment.
        retry_after_s: Add this ``Retry-After`` to a 429 (Heap documents none).
        clock: Monotonic seconds, for the limits.
        port: 0 takes a free one.
    """

    def __init__(
        self,
        *,
        app_ids: Collection[str] = (),
        unknown_app_id: Literal["accept", "refuse"] = "accept",
        api_key: str = "",
        limits: bool = True,
        retry_after_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        port: int = 0,
    ) -> None:
        super().__init__(port=port)
        self._app_ids, self._unknown = frozenset(app_ids), unknown_app_id
        self._api_key, self._retry_after_s, self._clock = api_key, retry_after_s, clock
        self.limits = limits
        self._windows: dict[tuple[str, ...], deque[tuple[float, int]]] = defaultdict(deque)
        self._keys: set[tuple[str, str]] = set()
        self._bearers: dict[str, float] = {}
        self.events: list[dict[str, Any]] = []
        """Stored events, each once, with its ``app_id``."""
        self.users: dict[str, dict[str, Any]] = {}
        """User properties by identity; the last value won."""
        self.accounts: dict[str, dict[str, Any]] = {}
        """Account properties by account id."""
        self.merged: dict[str, str] = {}
        """Identity by anonymous ``user_id``, from identify."""
        self.repeats = 0
        """Events not stored because their idempotency key was known."""
        self.deletions: dict[str, set[str]] = {}
        """Identities by number of the deletion request."""
        self.completing = True
        """Whether deletion requests complete when their status is asked."""

    @property
    def settings(self) -> Mapping[str, str]:
        """URL and environment id."""
        return {"url": self.url, "app_id": next(iter(sorted(self._app_ids)), "11")}

    def latest(self) -> dict[str, list[Any]]:
        """The last events, and users with their properties."""
        return {
            "events": self.events[-_SHOWN:],
            "users": [{"identity": k, "properties": v} for k, v in [*self.users.items()][-_SHOWN:]],
        }

    def distinct_ids(self) -> set[str]:
        """Give everybody Heap would show as a user: identities and anonymous ids."""
        with self._lock:
            seen = {str(event.get("identity") or event.get("user_id")) for event in self.events}
            return seen | set(self.users)

    def answer(self, request: Request) -> Reply:
        """Apply Heap's rules to one request."""
        try:
            if request.path.startswith(_DELETION):
                return self._deletion(request)
            return self._ingest(request)
        except _BrokenError as broken:
            if broken.status != 429:  # noqa: PLR2004 - a limit met is no broken rule
                self.violations.append(f"{request.path}: {broken.rule}")
            headers = {}
            if broken.status == 429 and self._retry_after_s is not None:  # noqa: PLR2004
                headers["Retry-After"] = f"{self._retry_after_s:g}"
            return Reply(status=broken.status, body=b"Bad Request", headers=headers)

    # Ingest

    def _ingest(self, request: Request) -> Reply:
        if request.method != "POST":
            raise _BrokenError("method is not POST", 404)
        if not request.header("Content-Type").lower().startswith("application/json"):
            raise _BrokenError("Content-Type is not application/json")
        if request.header("Content-Encoding"):
            raise _BrokenError("Content-Encoding is not documented", 415)
        if request.header("Origin"):
            raise _BrokenError("calls from a browser are not supported")
        body = _json(request.body)
        app_id = _pop(body, "app_id", str)
        if not _DECIMAL.fullmatch(app_id):
            raise _BrokenError("app_id is not a numeric string")
        take = {
            "/api/track": self._track,
            "/api/add_user_properties": self._add_users,
            "/api/add_account_properties": self._add_accounts,
            "/api/v1/identify": self._identify,
        }.get(request.path)
        if take is None:
            raise _BrokenError("no such path", 404)
        if self._app_ids and app_id not in self._app_ids:
            self.violations.append(f"{request.path}: unknown app_id")
            return Reply(status=200 if self._unknown == "accept" else 404)
        take(app_id, body)
        return Reply()

    def _track(self, app_id: str, body: dict[str, Any]) -> None:
        bulk = "events" in body
        events = _many(body, "events", _EVENT_FIELDS)
        for event in events:
            _check_event(event)
        # All are checked and the limits are asked before any is stored: a refused request has
        # stored nothing, else a repeat of it would be no repeat.
        who = [str(event.get("identity") or event["user_id"]) for event in events]
        if bulk:
            charges: list[_Charge] = [(("bulk", app_id), len(events), 15_000, 60.0)]
            charges += [
                (("bulk", app_id, one), who.count(one), 1000, 60.0) for one in dict.fromkeys(who)
            ]
        else:
            charges = [(("single", app_id, who[0]), 1, 30, 30.0)]
        self._charge(charges)
        for event in events:
            key = event.get("idempotency_key")
            if key is not None and (app_id, key) in self._keys:
                self.repeats += 1
                continue
            if key is not None:
                self._keys.add((app_id, key))
            self.events.append({"app_id": app_id, **event})

    def _add_users(self, app_id: str, body: dict[str, Any]) -> None:
        users = _many(body, "users", frozenset({"identity", "properties"}))
        for user in users:
            _check_identity(_need(user, "identity", str))
            properties = _need(user, "properties", dict)
            _check_properties(properties, _USER_CHARS)
            if any(name.lower() == "id" for name in properties):
                raise _BrokenError("reserved user property name: id")
        names = [user["identity"] for user in users]
        self._charge(
            [(("users", app_id, one), names.count(one), 30, 30.0) for one in dict.fromkeys(names)]
        )
        for user in users:
            self.users.setdefault(user["identity"], {}).update(user["properties"])

    def _add_accounts(self, app_id: str, body: dict[str, Any]) -> None:
        accounts = _many(body, "accounts", frozenset({"account_id", "properties"}))
        for account in accounts:
            _check_identity(_need(account, "account_id", str))
            _check_properties(_need(account, "properties", dict), _USER_CHARS)
        for account in accounts:
            self.accounts.setdefault(account["account_id"], {}).update(account["properties"])

    def _identify(self, app_id: str, body: dict[str, Any]) -> None:
        if set(body) - {"user_id", "identity", "timestamp"}:
            raise _BrokenError("undocumented field")
        user_id, identity = _need(body, "user_id", str), _need(body, "identity", str)
        _check_user_id(user_id)
        _check_identity(identity)
        if "timestamp" in body:
            _check_time(body["timestamp"])
        self.merged.setdefault(user_id, identity)

    def _charge(self, charges: list[_Charge]) -> None:
        """Count against sliding windows; all or none."""
        if not self.limits:
            return
        now = self._clock()
        for key, count, most, period_s in charges:
            window = self._windows[key]
            while window and window[0][0] <= now - period_s:
                window.popleft()
            if sum(taken for _, taken in window) + count > most:
                raise _BrokenError("rate limit", 429)
        for key, count, _, _ in charges:
            self._windows[key].append((now, count))

    # Deletion

    def _deletion(self, request: Request) -> Reply:
        errand = request.path.removeprefix(_DELETION)
        if errand == "/auth_token" and request.method == "POST":
            return self._authorize(request)
        scheme, _, bearer = request.header("Authorization").partition(" ")
        if scheme != "Bearer" or self._bearers.get(bearer, 0.0) <= self._clock():
            raise _BrokenError("no valid access token", 401)
        if errand == "/user_deletion" and request.method == "POST":
            users = _need(_json(request.body), "users", list)
            if not 0 < len(users) <= _ERASED_AT_ONCE:
                raise _BrokenError("between 1 and 10000 users in a deletion")
            for user in users:
                if not isinstance(user, dict) or set(user) not in ({"identity"}, {"user_id"}):
                    raise _BrokenError("exactly one of identity and user_id")
            reference = token_hex(8)
            self.deletions[reference] = {str(next(iter(user.values()))) for user in users}
            said = {"deletion_request_id": reference, "status": "pending"}
            return Reply(status=201, body=json.dumps(said).encode())
        reference = errand.removeprefix("/deletion_status/")
        if request.method == "GET" and reference in self.deletions:
            if self.completing:
                self._forget(self.deletions[reference])
            status = "complete" if self.completing else "pending"
            said = {"deletion_request_id": reference, "status": status}
            return Reply(body=json.dumps(said).encode())
        raise _BrokenError("no such deletion", 404)

    def _authorize(self, request: Request) -> Reply:
        scheme, _, basic = request.header("Authorization").partition(" ")
        try:
            app_id, _, key = b64decode(basic, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            raise _BrokenError("Basic authentication is malformed", 401) from None
        known = not self._app_ids or app_id in self._app_ids
        if scheme != "Basic" or not key or not known or (self._api_key and key != self._api_key):
            raise _BrokenError("Basic authentication is refused", 401)
        bearer = token_hex(16)
        self._bearers[bearer] = self._clock() + _TOKEN_S
        return Reply(body=json.dumps({"access_token": bearer}).encode())

    def _forget(self, gone: set[str]) -> None:
        self.events = [
            event
            for event in self.events
            if str(event.get("identity") or event.get("user_id")) not in gone
        ]
        for identity in gone:
            self.users.pop(identity, None)


def _json(raw: bytes) -> dict[str, Any]:
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        raise _BrokenError("body is no JSON") from None
    if not isinstance(body, dict):
        raise _BrokenError("body is no object")
    return body


def _need(record: dict[str, Any], name: str, kind: type) -> Any:
    value = record.get(name)
    if not isinstance(value, kind):
        raise _BrokenError(f"{name} is not {_KINDS[kind]}")
    return value


def _pop(record: dict[str, Any], name: str, kind: type) -> Any:
    value = _need(record, name, kind)
    del record[name]
    return value


def _many(body: dict[str, Any], field: str, fields: frozenset[str]) -> list[dict[str, Any]]:
    """Give the records of a single or a bulk body; nothing but documented fields stands there."""
    if field not in body:
        records: list[Any] = [body]
    else:
        records = _pop(body, field, list)
        if body:
            raise _BrokenError("undocumented field")
        if not 0 < len(records) <= _BULK:
            raise _BrokenError(f"between 1 and {_BULK} {field} in a request")
    for record in records:
        if not isinstance(record, dict):
            raise _BrokenError(f"{field} holds something else than objects")
        if set(record) - fields:
            raise _BrokenError("undocumented field")
    return records


def _check_event(event: dict[str, Any]) -> None:
    if not 0 < len(_need(event, "event", str)) <= _EVENT_CHARS:
        raise _BrokenError(f"event name over {_EVENT_CHARS} characters")
    if ("identity" in event) == ("user_id" in event):
        raise _BrokenError("exactly one of identity and user_id")
    if "identity" in event:
        _check_identity(_need(event, "identity", str))
    else:
        _check_user_id(_need(event, "user_id", str))
    for name in ("session_id", "idempotency_key"):
        if name in event and not _need(event, name, str):
            raise _BrokenError(f"{name} is empty")
    if "timestamp" in event:
        _check_time(event["timestamp"])
    if "properties" in event:
        _check_properties(_need(event, "properties", dict), _TEXT_CHARS)


def _check_identity(identity: str) -> None:
    if not 0 < len(identity) <= _IDENTITY_CHARS:
        raise _BrokenError(f"identity over {_IDENTITY_CHARS} characters, or empty")


def _check_user_id(user_id: str) -> None:
    if not _DECIMAL.fullmatch(user_id) or int(user_id) > _SAFE_INTEGER:
        raise _BrokenError("user_id is no decimal string up to 2^53-1")


def _check_time(timestamp: object) -> None:
    try:
        at = datetime.fromisoformat(str(timestamp))
    except ValueError:
        raise _BrokenError("timestamp is not ISO 8601") from None
    if at.tzinfo is None or not isinstance(timestamp, str):
        raise _BrokenError("timestamp has no offset")


def _check_properties(properties: dict[str, Any], longest: int) -> None:
    for name, value in properties.items():
        if not 0 < len(name) <= _TEXT_CHARS:
            raise _BrokenError("property name of 1024 characters or more, or empty")
        if isinstance(value, list) and all(isinstance(part, str) for part in value):
            properties[name] = "||".join(value)[:longest]  # documented: joined and cut
        elif isinstance(value, bool) or not isinstance(value, str | int | float):
            raise _BrokenError("property value is neither string nor number")
        elif isinstance(value, str) and len(value) > longest:
            raise _BrokenError(f"property value over {longest} characters")
        elif isinstance(value, float) and not math.isfinite(value):
            raise _BrokenError("property value is no finite number")
