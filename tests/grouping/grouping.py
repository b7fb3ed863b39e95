"""What Sentry documents that it groups errors by, as a hash. Owns nothing of Sentry's own code.

In order: a fingerprint that the client set; else the stack traces of the exceptions, of a crashed
thread or of the event; else type and value of the exceptions; else the message, without its
parameters if the client gave it so. Of a stack trace count the frames of the application, or all
where no frame is: module, else file name; function; source line. Where a mechanism says that an
exception is synthetic, its type says nothing.

Sentry goes on to put ``<email>``, ``<int>`` and the like into messages before it hashes them. This
does not: what has one hash here has one there, and not the other way round.

Source:
    docs.sentry.io, "Issue Grouping" (concepts/data-management/event-grouping);
    develop.sentry.dev, "Grouping" (backend/application-domains/grouping) and "Exception Interface".
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["grouping_hash", "grouping_inputs"]

_DEFAULT = re.compile(r"\{\{\s*default\s*\}\}")
# Revisions and versions in a file's name, such as app.4f3a2b1c.js.
_REVISION = re.compile(r"(?<=[-._])(?:[0-9a-f]{7,40}|v?[0-9]+(?:\.[0-9]+){1,3})(?=[-._/])")


def grouping_hash(event: Mapping[str, Any]) -> str:
    """Hash what an event is grouped by: SHA-256 in hex."""
    return hashlib.sha256(json.dumps(grouping_inputs(event)).encode()).hexdigest()


def grouping_inputs(event: Mapping[str, Any]) -> list[Any]:
    """List what an event is grouped by."""
    given = event.get("fingerprint")
    if isinstance(given, list) and given:
        return [
            "fingerprint",
            *(_by_content(event) if _DEFAULT.fullmatch(str(one)) else one for one in given),
        ]
    return _by_content(event)


def _by_content(event: Mapping[str, Any]) -> list[Any]:
    exceptions = _values(event, "exception")
    if exceptions:
        return ["exception", *map(_exception, exceptions)]
    for thread in _values(event, "threads"):
        if (thread.get("crashed") or thread.get("current")) and (trace := _trace(thread)):
            return ["thread", trace]
    if trace := _trace(event):
        return ["stacktrace", trace]
    entry = event.get("logentry") or {}
    return ["message", entry.get("message") or entry.get("formatted") or event.get("message")]


def _values(event: Mapping[str, Any], name: str) -> Sequence[Mapping[str, Any]]:
    given = event.get(name) or []
    return [one for one in (given.get("values") or [] if isinstance(given, dict) else given) if one]


def _exception(one: Mapping[str, Any]) -> list[Any]:
    mechanism = one.get("mechanism") or {}
    # How exceptions of a group hang together; and a synthetic one is a type that nobody raised.
    shape = [mechanism.get(name) for name in ("is_exception_group", "exception_id", "parent_id")]
    kind = None if mechanism.get("synthetic") else one.get("type")
    if trace := _trace(one):
        return [kind, shape, trace]
    return [kind, shape, one.get("value")]


def _trace(owner: Mapping[str, Any]) -> list[list[Any]]:
    frames = (owner.get("stacktrace") or {}).get("frames") or []
    ours = [frame for frame in frames if frame.get("in_app")]
    return list(map(list, map(_frame, ours or frames)))


def _frame(frame: Mapping[str, Any]) -> Iterator[Any]:
    name = frame.get("filename") or frame.get("abs_path") or ""
    yield frame.get("module") or _REVISION.sub("", name)
    yield frame.get("function")
    yield " ".join((frame.get("context_line") or "").split())
