"""Recipients with an oracle: stand-ins that know what has arrived and refuse marked events.

Faults come from a script drawn from the seed.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict, deque
from random import Random
from typing import Any, Final

from telemetry.testing import HeapStandIn, SentryStandIn
from telemetry.testing.stand_in import Reply, Request, StandIn
from tests.soak.events import Events

__all__ = ["Heap", "Sentry", "strain"]

_GARBAGE: Final = (b"", b"\xff\xfe\x00", b"<html>fine</html>", b"[" * 2000, b"{")


class _Oracle(StandIn):
    """What both recipients remember.

    Attributes:
        arrived: How often each number was stored, repeats included.
        first_at: Unix time of its first arrival.
        ids: Under which ids each number was ever sent, refused attempts included.
        garbage: Bodies to answer instead of the ordinary one when everything was stored.
    """

    def __init__(self) -> None:
        super().__init__()
        self.arrived: Counter[int] = Counter()
        self.first_at: dict[int, float] = {}
        self.ids: defaultdict[int, set[str]] = defaultdict(set)
        self.garbage: deque[bytes] = deque()
        self.refused_for_good = 0

    def _found(self, request: Request) -> list[tuple[int, str]]:
        raise NotImplementedError

    def answer(self, request: Request) -> Reply:
        found = self._found(request)
        for number, known_as in found:
            self.ids[number].add(known_as)
        if any(Events.marked(number) for number, _ in found):
            self.refused_for_good += 1
            return Reply(status=self.refusal, body=b"no")
        reply = super().answer(request)  # type: ignore[safe-super]
        if reply.status == 200:
            for number, _ in found:
                self.arrived[number] += 1
                self.first_at.setdefault(number, request.at)
            if self.garbage:
                return Reply(body=self.garbage.popleft())
        return reply

    refusal = 400


class Heap(_Oracle, HeapStandIn):
    """Heap, which answers 400 to marked events."""

    refusal = 400

    def _found(self, request: Request) -> list[tuple[int, str]]:
        body = json.loads(request.body)
        events: list[dict[str, Any]] = body.get("events", [body])
        return [(int(e["properties"]["results"]), e["idempotency_key"]) for e in events]

    def stored(self) -> Counter[int]:
        """Count the numbers that it keeps."""
        return Counter(int(event["properties"]["results"]) for event in self.events)


class Sentry(_Oracle, SentryStandIn):
    """Sentry, which answers 413 to marked events. Sessions have no id by which to know a repeat."""

    refusal = 413

    def _found(self, request: Request) -> list[tuple[int, str]]:
        found: list[tuple[int, str]] = []
        for line in request.body.split(b"\n")[1:]:
            record = json.loads(line) if line else {}
            known_as = record.get("event_id") or record.get("sid")
            if known_as:
                found.append((Events.error_number(known_as), known_as))
        return found

    def stored(self) -> Counter[int]:
        """Count the numbers that it keeps; of sessions every copy."""
        kept = [event["event_id"] for event in self.events]
        kept += [session["sid"] for session in self.payloads("session")]
        return Counter(map(Events.error_number, kept))


def strain(heap: Heap, sentry: Sentry, draw: Random, *, credentials: bool) -> str:
    """Draw what goes wrong at the recipients next; say what.

    Args:
        heap: One of them.
        sentry: The other.
        draw: The seed's.
        credentials: Whether they may refuse ours: after that they are asked only twice a minute.
    """
    said: list[str] = []
    for there, name in ((heap, "heap"), (sentry, "sentry")):
        choice = draw.choice(_SCRIPT + ("401",) * credentials)
        match choice:
            case "trickles":
                there.fail(status=503, count=2, stored=True)
                there.slow(draw.uniform(0.2, 0.5))
            case "503":
                there.fail(status=503, seconds=draw.uniform(0.5, 2.0))
            case "500 page":
                there.fail(status=500, count=draw.randrange(1, 4), body=b"<html>oops</html>")
            case "429":
                wait = draw.choice(("1", "2", "-1", "nan", "Sun, 06 Nov 1994 08:49:37 GMT"))
                there.fail(status=429, count=draw.randrange(1, 3), headers={"Retry-After": wait})
            case "limits":
                if isinstance(there, SentryStandIn):
                    there.limit(draw.sample(("error", "session"), 1), draw.uniform(0.5, 1.5))
                else:
                    there.fail(status=429, count=1)
            case "slow":
                there.slow(draw.uniform(0.05, 0.4))
            case "forgets to answer":
                there.drop(count=draw.randrange(1, 4), stored=True)
            case "cuts":
                there.drop(count=draw.randrange(1, 4))
            case "garbage":
                there.garbage.extend(draw.choices(_GARBAGE, k=3))
            case "401":
                there.fail(status=draw.choice((401, 403, 302)), seconds=2.0)
        said.append(f"{name} {choice}")
    return ", ".join(said)


_SCRIPT: Final = (
    *("fine", "trickles", "trickles", "503", "503", "500 page", "429", "limits", "slow"),
    *("forgets to answer", "cuts", "garbage"),
)
