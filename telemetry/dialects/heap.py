"""Heap's server-side API → items, under our own names for the same things.

Owns which key of Heap's is which of ours. The values are cut out as `msgspec.Raw` and put together
again; none of them becomes an object here. Source: developers.heap.io, "Track", "Bulk Track", "Add
User Properties", "Add Account Properties", "Identify".
"""

from __future__ import annotations

import hashlib
import re
from typing import Final, NamedTuple

import msgspec

from telemetry.dialects import EVENTS, Refusal, decode_json, fitting, guard
from telemetry.edge import Item

__all__ = ["Call", "parse_accounts", "parse_identify", "parse_track", "parse_users"]

_NOTHING: Final = msgspec.Raw()
_NULL: Final = msgspec.Raw(b"null")


class Call(NamedTuple):
    """One call. `app_id` is all that says who calls: Heap's ingest knows no secret."""

    app_id: str
    items: list[Item]


class _Event(msgspec.Struct):
    event: msgspec.Raw = _NOTHING
    identity: msgspec.Raw = _NOTHING
    timestamp: msgspec.Raw = _NOTHING
    session_id: msgspec.Raw = _NOTHING
    idempotency_key: msgspec.Raw = _NOTHING
    properties: msgspec.Raw = _NOTHING


class _Track(_Event):
    app_id: str | int = ""
    events: list[_Event] | None = None


class _User(msgspec.Struct):
    identity: msgspec.Raw = _NOTHING
    properties: msgspec.Raw = _NOTHING


class _Users(_User):
    app_id: str | int = ""
    users: list[_User] | None = None


class _Nothing(msgspec.Struct):
    """An entry of which only the number matters."""


class _Accounts(msgspec.Struct):
    app_id: str | int = ""
    accounts: list[_Nothing] | None = None


_track: Final = msgspec.json.Decoder(_Track)
_users: Final = msgspec.json.Decoder(_Users)
_accounts: Final = msgspec.json.Decoder(_Accounts)


def parse_track(body: bytes) -> Call:
    """Read ``/api/track``: one event, or up to 1000 under ``events``.

    An event for an anonymous ``user_id`` alone is refused (``no_identity``): no record of ours has
    a place for it.

    Raises:
        Refusal: ``not_json``, ``too_many_events``, ``too_many_values``.
    """
    guard(body)
    call = decode_json(body, _track)
    app_id = str(call.app_id)
    events: list[_Event] = [call] if call.events is None else call.events
    _limit(len(events))
    return Call(app_id, [_event(event, app_id) for event in events])


def _event(event: _Event, app_id: str) -> Item:
    if _absent(event.identity):
        return Item("analytics_event", refused="no_identity")
    raw = _object(
        (b'"event":', event.event),
        (b'"time":', event.timestamp),
        (b'"account":', event.identity),
        (b'"session":', event.session_id),
        (b'"properties":', event.properties),
    )
    return fitting("analytics_event", raw, _event_id(event.idempotency_key, app_id))


def parse_users(body: bytes) -> Call:
    """Read ``/api/add_user_properties``: one user, or up to 1000 under ``users``.

    Raises:
        Refusal: ``not_json``, ``too_many_events``, ``too_many_values``.
    """
    guard(body)
    call = decode_json(body, _users)
    users: list[_User] = [call] if call.users is None else call.users
    _limit(len(users))
    return Call(str(call.app_id), [_user(user) for user in users])


def _user(user: _User) -> Item:
    if _absent(user.identity):
        return Item("user_properties", refused="no_identity")
    raw = _object((b'"account":', user.identity), (b'"properties":', user.properties))
    return fitting("user_properties", raw)


def parse_accounts(body: bytes) -> Call:
    """Read ``/api/add_account_properties``: no purpose covers it yet, so each is counted and gone.

    Raises:
        Refusal: ``not_json``, ``too_many_events``, ``too_many_values``.
    """
    guard(body)
    call = decode_json(body, _accounts)
    count = 1 if call.accounts is None else len(call.accounts)
    _limit(count)
    return Call(str(call.app_id), [Item("dropped", refused="kind_account_properties")] * count)


def parse_identify(body: bytes) -> Call:
    """Read ``/api/v1/identify``: no purpose covers binding a person for ever; counted and gone.

    Raises:
        Refusal: ``not_json``.
    """
    guard(body)
    call = decode_json(body, _accounts)
    return Call(str(call.app_id), [Item("dropped", refused="kind_identify")])


def _limit(count: int) -> None:
    if count > EVENTS:
        raise Refusal("too_many_events")


def _absent(raw: msgspec.Raw) -> bool:
    return not len(raw) or raw == _NULL


def _object(*pairs: tuple[bytes, msgspec.Raw]) -> bytes:
    return b"{" + b",".join([key + bytes(raw) for key, raw in pairs if len(raw)]) + b"}"


_HEX_ID: Final = re.compile(r"[0-9a-f]{32}")


def _event_id(key: msgspec.Raw, app_id: str) -> str:
    """Give the idempotency key as an event id: itself if it is a UUID, else a digest of it.

    The digest keeps repeats together. It is no pseudonym: no recipient sees it, each gets an id
    that is derived from it with a key.
    """
    if _absent(key):
        return ""
    try:
        text = msgspec.json.decode(key, type=str)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        text = bytes(key).decode("utf-8", "replace")
    plain = text.replace("-", "").lower()
    if _HEX_ID.fullmatch(plain):
        return plain
    return hashlib.sha256(f"{app_id}\0{text}".encode("utf-8", "replace")).hexdigest()[:32]
