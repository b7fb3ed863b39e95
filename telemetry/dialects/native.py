"""Our own wire format → items: ``/v1/events``.

One JSON object, an array of them, or one a line (NDJSON). Each is an event in the names of its
record; ``"kind"`` names the record, ``analytics_event`` if it is missing.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Final

import msgspec

from telemetry.dialects import EVENTS, Refusal, decode_json, fitting, guard
from telemetry.edge import Item
from telemetry.errors import DecodeError
from telemetry.tolerant import strict_json

__all__ = ["parse_events"]

_DEFAULT: Final = "analytics_event"
_BOM: Final = b"\xef\xbb\xbf"


class _Head(msgspec.Struct, gc=False):
    kind: str | None = None


_head: Final = msgspec.json.Decoder(_Head)
_array: Final = msgspec.json.Decoder(list[msgspec.Raw])


def parse_events(body: bytes, kinds: Container[str], *, lines: bool = False) -> list[Item]:
    """Cut a body into events.

    Args:
        body: Decompressed.
        kinds: What the policy has a purpose for; other kinds are refused, ``unknown_kind``.
        lines: Whether its content type says NDJSON; else it is found out.

    Returns:
        An item each. A line that is no JSON object stays an item, so that it is parked and the
        ones around it go on.

    Raises:
        Refusal: ``not_json`` (not one object in it), ``too_many_events``, ``too_many_values``.
    """
    guard(body)
    body = body.removeprefix(_BOM).strip()
    if not lines and body.startswith(b"["):
        raws: list[bytes] = [bytes(raw) for raw in decode_json(body, _array)]
    elif b"\n" in body and (lines or not _is_object(body)):
        raws = [line for line in body.split(b"\n") if line.strip()]
    else:
        raws = [body]
    if len(raws) > EVENTS:
        raise Refusal("too_many_events")
    found = [_item(raw, kinds) for raw in raws]
    if raws and not any(readable for readable, _ in found):
        raise Refusal("not_json")
    return [item for _, item in found]


def _is_object(body: bytes) -> bool:
    """Tell one object over several lines from several objects, a line each."""
    try:
        _head.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return True


def _item(raw: bytes, kinds: Container[str]) -> tuple[bool, Item]:
    """Make an item; say whether it is an object at all."""
    try:
        kind = _head.decode(raw).kind or _DEFAULT
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        try:
            data = strict_json(raw)
        except DecodeError:
            return False, fitting(_DEFAULT, raw)
        if not isinstance(data, dict):
            return False, fitting(_DEFAULT, raw)
        word = data.get("kind")
        kind = _DEFAULT if word in (None, "") else word if isinstance(word, str) else ""
    if kind not in kinds:
        return True, Item(_DEFAULT, refused="unknown_kind")
    return True, fitting(kind, raw)
