"""What the clients send, and how it is known again at the recipients.

Every event has a number, from which alone follows what it is. Numbers arrive as: Heap, the property
``results``; Sentry, the ``event_id`` of an error and the ``sid`` of a session. Each event carries
the planted values of one invented person, in every place where applications put such things.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any, Final, Literal
from uuid import UUID

from telemetry.testing import Canaries

__all__ = ["Events", "Kind", "Posted"]

Kind = Literal["analytics", "error", "session"]
_KINDS: Final[tuple[tuple[Kind, int], ...]] = (("analytics", 5), ("error", 4), ("session", 1))
_OF_TEN: Final[tuple[Kind, ...]] = tuple(kind for kind, times in _KINDS for _ in range(times))
_MARKED_EVERY: Final = 89
"""One event in so many is refused by its recipient for good, and must become a dead letter."""
_ACCOUNTS: Final = 97
_HIGH: Final = 2**101
_UNDECODABLE, _UNKNOWN_KIND, _UNDECLARED = "undecodable", "unknown_kind", "undeclared_event"
_SENTENCE: Final = "the board could not be drawn while its owner moved a row of it"


@dataclass(frozen=True, slots=True)
class Posted:
    """One request.

    Attributes:
        path, body: What is sent.
        numbers: Events in it.
        answer: What a 200 must say.
        dropped, dead: What the edge must count besides, by reason.
    """

    path: str
    body: bytes
    numbers: tuple[int, ...]
    answer: Mapping[str, Any]
    dropped: Mapping[str, int]
    dead: Mapping[str, int]

    @property
    def items(self) -> int:
        """How many items the gateway counts."""
        return len(self.numbers) + sum(self.dropped.values()) + sum(self.dead.values())


class Events:
    """Makes the events of one round.

    Args:
        seed: Names the person whose values are planted.
    """

    def __init__(self, seed: int) -> None:
        draw = Random(seed)  # noqa: S311 - reproducible, no secret
        ids = {name: str(draw.randrange(10**11, 10**12)) for name in ("account", "organization")}
        self.planted = {**Canaries(seed).values, **ids}

    @staticmethod
    def kind(number: int) -> Kind:
        """Say what a number is."""
        return _OF_TEN[number % 10]

    @classmethod
    def marked(cls, number: int) -> bool:
        """Say whether the recipient refuses it for good."""
        return number % _MARKED_EVERY == 0 and cls.kind(number) != "session"

    @staticmethod
    def error_number(event_id: str) -> int:
        """Read the number of an error or a session from its id."""
        return UUID(event_id).int - _HIGH

    def _analytics(self, number: int) -> dict[str, Any]:
        who = self.planted
        return {
            "event_id": UUID(int=number + 2**100).hex,
            "event": "search used",
            "account": f"{who['account']}{number % _ACCOUNTS:02}",
            "organization": who["organization"],
            "session": who["session"],
            "ip": who["ipv4"],
            "page": f"https://app.example.com/u/{who['email']}?q={who['token']}",
            "properties": {"scope": "tasks", "results": number, "note": who["email"]},
            who["username"]: who["phone"],
        }

    def _error(self, number: int, words: int = 0) -> dict[str, Any]:
        who = self.planted
        filling = " ".join([_SENTENCE] * (number % 7 + words // 10))
        return {
            "event_id": UUID(int=number + _HIGH).hex,
            "message": f"{who['email']} from {who['ipv6']} failed, {who['iban']} {filling}",
            "user": {
                "id": f"{who['account']}{number % _ACCOUNTS:02}",
                "email": who["email"],
                "username": who["username"],
                "name": who["name"],
                "ip_address": who["ipv4"],
            },
            "request": {
                "url": f"https://app.example.com/u/{who['email']}?token={who['token']}",
                "cookies": f"session={who['session']}",
                "headers": {"Authorization": f"Bearer {who['token']}"},
            },
            "extra": {who["email"]: who["password"], "phone": who["phone"]},
            "tags": {"number": str(number)},
            "breadcrumbs": {
                "values": [{"category": "ui", "message": _SENTENCE} for _ in range(words // 10)]
            },
        }

    def _session(self, number: int) -> dict[str, Any]:
        return {
            "sid": UUID(int=number + _HIGH).hex,
            "did": f"{self.planted['account']}{number % _ACCOUNTS:02}",
            "started": "2026-11-20T10:15:42Z",
            "status": "ok",
            "attrs": {"release": "2.101.44", "ip_address": self.planted["ipv4"]},
        }

    def _native(self, number: int, words: int = 0) -> dict[str, Any]:
        match self.kind(number):
            case "analytics":
                return self._analytics(number)
            case "error":
                return {"kind": "error_event", **self._error(number, words)}
            case "session":
                return {"kind": "session", **self._session(number)}

    def native(self, numbers: Iterable[int], *, words: int = 0) -> Posted:
        """Put events into one array of our own format; `words` makes errors large."""
        sent = tuple(numbers)
        body = json.dumps([self._native(number, words) for number in sent]).encode()
        said = {"taken": len(sent), "dropped": {}, "dead": {}}
        return Posted("/v1/events", body, sent, said, {}, {})

    def hostile(self, numbers: Iterable[int], draw: Random) -> Posted:
        """Put events into lines, among lines that nobody can use."""
        sent = tuple(numbers)
        lines = [json.dumps(self._native(number)) for number in sent]
        mail = self.planted["email"]
        bad = {
            _UNDECODABLE: '{"mail": ' + mail,
            _UNKNOWN_KIND: json.dumps({"kind": mail}),
            _UNDECLARED: json.dumps({"event": mail, "account": "1"}),
        }
        chosen = draw.sample(sorted(bad), draw.randrange(1, 4))
        for reason in chosen:
            lines.insert(draw.randrange(len(lines) + 1), bad[reason])
        dropped = {reason: 1 for reason in chosen if reason != _UNDECODABLE}
        dead = {reason: 1 for reason in chosen if reason == _UNDECODABLE}
        said = {"taken": len(sent), "dropped": dropped, "dead": dead}
        return Posted("/v1/events", "\n".join(lines).encode(), sent, said, dropped, dead)

    def envelope(self, numbers: Iterable[int]) -> Posted:
        """Put one error and sessions into a Sentry envelope."""
        sent = tuple(numbers)
        head: dict[str, Any] = {}
        lines: list[dict[str, Any]] = []
        for number in sent:
            if self.kind(number) == "error":
                event = self._error(number)
                head = {"event_id": event["event_id"]}
                lines += [{"type": "event"}, event]
            else:
                lines += [{"type": "session"}, self._session(number)]
        said = {"id": head["event_id"]} if head else {}
        body = "\n".join(json.dumps(line) for line in (head, *lines)).encode()
        return Posted("/api/1/envelope/", body, sent, said, {}, {})
