"""structlog processor: no line names both a trace and an account.

The trace id of an error stands at Sentry. Where the application's own log writes the same id beside
an account id, anybody who reads both has a way back from Sentry's event to the person, which nobody
asked for and nobody audits. So a line that carries a trace loses the account; a line without one is
left alone.

Source:
    Art. 4(5) GDPR: the additional information is kept separately; privacy.md b5.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any, Final

from scrubbers.detectors import searchable
from scrubbers.known_values import KnownValues
from telemetry.context import bounded_text, current, identifier

__all__ = ["ACCOUNT_KEYS", "TRACE_KEYS", "AccountsApart"]

TRACE_KEYS: Final = frozenset(
    {
        "trace",
        "traceid",
        "tracecontext",
        "traceparent",
        "ddtraceid",
        "oteltraceid",
        "sentrytrace",
        "sentrytraceid",
        "xb3traceid",
        "xamzntraceid",
        "b3",
    }
)
"""Keys that carry a trace, without their case and punctuation: ``trace.id``, ``traceId``, …"""

ACCOUNT_KEYS: Final = frozenset(
    {
        "account",
        "accountid",
        "user",
        "userid",
        "username",
        "useremail",
        "email",
        "uid",
        "login",
        "enduserid",
        "usrid",
        "customer",
        "customerid",
        "member",
        "memberid",
        "principal",
        "subject",
        "sub",
        "owner",
        "ownerid",
        "actor",
        "actorid",
        "createdby",
        "updatedby",
    }
)
"""Keys that name an account, in the same form. An organization is not taken out."""

_MARKER: Final = "<account>"
_DEPTH: Final = 6
_CHARS: Final = 65_536
_PUNCTUATION = re.compile(r"[^a-z0-9]")


class AccountsApart:
    """Takes accounts out of log lines that carry a trace id. Stands before the renderer.

    Removed are the values of keys that name an account, at any depth, and wherever a text of the
    line repeats such a value or the account of the current request. What is too deep or too long to
    look through is replaced as a whole.

    Args:
        accounts: Further keys that name accounts; letter case and punctuation do not count.
        traces: Further keys that carry traces.

    >>> line = {"event": "saved by 4711", "user_id": 4711, "trace_id": "4bf92f35"}
    >>> AccountsApart()(None, "info", line)
    {'event': 'saved by <account>', 'user_id': '<account>', 'trace_id': '4bf92f35'}
    """

    def __init__(self, *, accounts: Iterable[str] = (), traces: Iterable[str] = ()) -> None:
        self._accounts = ACCOUNT_KEYS | {_plain(name) for name in accounts}
        self._traces = TRACE_KEYS | {_plain(name) for name in traces}

    def __call__(
        self, _logger: Any, _method: str, line: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        """Give the line, without accounts if it carries a trace."""
        if not self._traced(line, _DEPTH):
            return line
        values: set[str] = set()
        self._collect(line, _DEPTH, values)
        request = current()
        if request is not None and (account := identifier(request.account)) is not None:
            values.add(str(account))
        known = KnownValues(("account", value) for value in sorted(values)[:256])
        for key in list(line):
            line[key] = self._without(key, line[key], known, _DEPTH)
        return line

    def _traced(self, value: Any, depth: int) -> bool:
        if isinstance(value, Mapping):
            return any(
                (_plain(key) in self._traces and bool(inner))
                or (depth > 0 and self._traced(inner, depth - 1))
                for key, inner in value.items()
            )
        if isinstance(value, (list, tuple)) and depth > 0:
            return any(self._traced(inner, depth - 1) for inner in value)
        return False

    def _collect(self, value: Any, depth: int, values: set[str]) -> None:
        """Find what the line itself says an account is."""
        if isinstance(value, Mapping):
            for key, inner in value.items():
                if _plain(key) in self._accounts:
                    values.update(_leaves(inner, depth))
                elif depth > 0:
                    self._collect(inner, depth - 1, values)
        elif isinstance(value, (list, tuple)) and depth > 0:
            for inner in value:
                self._collect(inner, depth - 1, values)

    def _without(self, key: str, value: Any, known: KnownValues, depth: int) -> Any:
        if value is None or isinstance(value, bool):
            return value
        if _plain(key) in self._accounts:
            return _MARKER
        if isinstance(value, Mapping):
            if depth == 0:
                return _MARKER
            return {
                _rewritten(str(name), known): self._without(str(name), inner, known, depth - 1)
                for name, inner in value.items()
            }
        if isinstance(value, (list, tuple)):
            if depth == 0:
                return _MARKER
            return [self._without("", inner, known, depth - 1) for inner in value]
        if isinstance(value, (int, float)):
            return _MARKER if known.found_in(f"id {value}") else value
        if isinstance(value, str):
            return _rewritten(value, known)
        if isinstance(value, BaseException):
            return value  # not text yet: format exceptions before this processor
        # Anything else is shown by its repr at the end: shown here, so that it can be looked at.
        return _rewritten(repr(value), known)


def _plain(key: object) -> str:
    return _PUNCTUATION.sub("", str(key).lower())


def _leaves(value: Any, depth: int) -> Iterable[str]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for inner in value if depth > 0 else ():
            yield from _leaves(inner, depth - 1)
    elif (found := identifier(value)) is not None:
        yield str(found)


def _rewritten(text: str, known: KnownValues) -> str:
    """Put the marker wherever one of the values stands."""
    if not known:
        return text
    if len(text) > _CHARS:
        return _MARKER
    form = searchable(bounded_text(text, _CHARS) or "")
    data = form.encode("utf-8", "replace")
    try:
        spans = known.spans(data)
    except OverflowError:
        return _MARKER
    if not spans:
        return text
    pieces, at = [], 0
    for start, end, _kind in spans:
        pieces += [data[at:start], _MARKER.encode()]
        at = end
    return b"".join([*pieces, data[at:]]).decode("utf-8", "replace")
