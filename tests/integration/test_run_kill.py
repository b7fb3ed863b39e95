"""Kill -9 at any moment: whatever was acknowledged arrives, under one id (reliability.md, 36)."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from running import Running

from telemetry.testing import HeapStandIn, SentryStandIn

EVENTS = 5000
KILLS = 10
BACKLOG = 100
ACCOUNTS = 7_744_556_000
MAIL = "kq7{}canary@mail.example.org"


def analytics(number: int) -> dict[str, Any]:
    return {
        "event_id": UUID(int=number + 2**100).hex,
        "event": "search used",
        "account": ACCOUNTS + number % 97,
        "organization": ACCOUNTS + 500 + number % 7,
        "ip": f"203.0.113.{number % 200}",
        "properties": {"scope": "tasks", "results": number, "note": MAIL.format(number)},
    }


def failure(number: int) -> dict[str, Any]:
    return {
        "kind": "error_event",
        "event_id": UUID(int=number + 2**101).hex,
        "message": f"login of {MAIL.format(number)} failed for user {ACCOUNTS + number % 97}",
        "user": {"id": str(ACCOUNTS + number % 97), "email": MAIL.format(number)},
    }


class Client(threading.Thread):
    """Sends all events, waits while the process is away, repeats nothing."""

    def __init__(self, pipeline: Running) -> None:
        super().__init__(name="client", daemon=True)
        self.pipeline = pipeline
        self.up, self.allowed = threading.Event(), 0
        self.acknowledged: set[int] = set()
        self.lost_answers = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            number = 0
            while number < EVENTS:
                self.up.wait()
                if number >= self.allowed:
                    time.sleep(0.005)
                    continue
                number = self._send(number)
        except BaseException as error:  # noqa: BLE001 - told in the test's own thread
            self.error = error

    def _send(self, number: int) -> int:
        if number % 50 == 49:  # one in fifty is a Sentry envelope of its own
            event = {k: v for k, v in failure(number).items() if k != "kind"}
            numbers, taken = [number], self.pipeline.envelope(event)
        else:
            numbers = list(range(number, min(number + 7, number - number % 50 + 49, EVENTS)))
            taken = self.pipeline.events(
                analytics(n) if n % 2 == 0 else failure(n) for n in numbers
            )
        if taken:
            self.acknowledged.update(numbers)
        else:
            self.lost_answers += 1
            time.sleep(0.02)
        return numbers[-1] + 1


def deliveries(heap: HeapStandIn, sentry: SentryStandIn) -> dict[int, set[str]]:
    """Every id under which each event was ever sent out, repeats and refused attempts included."""
    found: dict[int, set[str]] = defaultdict(set)
    for request in list(heap.requests):
        body = json.loads(request.body)
        for event in body.get("events", [body]):
            found[int(event["properties"]["results"])].add(event["idempotency_key"])
    for event in list(sentry.events):
        number = UUID(event["event_id"]).int - 2**101
        found[number].add(event["event_id"])
    return found


def arrived(heap: HeapStandIn, sentry: SentryStandIn) -> set[int]:
    numbers = {int(event["properties"]["results"]) for event in list(heap.events)}
    return numbers | {UUID(event["event_id"]).int - 2**101 for event in list(sentry.events)}


@pytest.mark.timeout(180)
def test_nothing_acknowledged_is_lost_in_ten_kills(tmp_path: Path) -> None:
    draw = random.Random(20261122)  # noqa: S311 - a reproducible order of faults
    begun = time.monotonic()
    with HeapStandIn() as heap, SentryStandIn() as sentry:
        pipeline = Running(tmp_path, heap, sentry)
        with pipeline:
            client = Client(pipeline)
            client.up.set()
            client.start()
            kills = tries = 0
            while kills < KILLS:
                tries += 1
                if tries % 2:
                    # Trickling: killed while deliveries are in flight, some answers lost.
                    for there in (heap, sentry):
                        there.fail(status=503, count=2, stored=True)
                        there.slow(draw.uniform(0.3, 0.6))
                else:
                    for there in (heap, sentry):
                        there.fail(status=503)
                client.allowed = min(client.allowed + EVENTS // 15, EVENTS)
                wanted, deadline = draw.randrange(120, 250), time.monotonic() + 20
                while len(client.acknowledged - arrived(heap, sentry)) < wanted:
                    assert client.error is None
                    assert time.monotonic() < deadline, "no backlog"
                    time.sleep(0.002)
                time.sleep(draw.uniform(0, 0.05))
                pipeline.kill()
                client.up.clear()
                # A kill with less under way does not count.
                kills += len(client.acknowledged - arrived(heap, sentry)) >= BACKLOG
                for there in (heap, sentry):
                    there.heal()
                pipeline.start()
                client.up.set()
                time.sleep(draw.uniform(0, 0.3))
            client.allowed = EVENTS
            client.join(30)
            assert client.error is None
            assert not client.is_alive()
            for there in (heap, sentry):
                there.heal()
            books = pipeline.drain()
            metrics = pipeline.get("/metrics")[1]
            assert pipeline.stop() == 0
        assert client.acknowledged <= arrived(heap, sentry)
        assert len(client.acknowledged) >= EVENTS - 10 * tries
        ids = deliveries(heap, sentry)
        assert all(len(under) == 1 for under in ids.values())
        assert books["exact"]
        assert books["dead"] == {}
        assert books["dropped"] == {}
        assert (
            books["events_in"] == books["sealed"] == books["scrubbed"] >= len(client.acknowledged)
        )
        assert books["delivered"] == books["routed"]
        assert sum(books["delivered"].values()) == books["scrubbed"]
        assert len(arrived(heap, sentry)) == books["scrubbed"]
        assert heap.violations == sentry.violations == []
        written = pipeline.everything_written() + metrics
        outside = heap.received_bytes() + sentry.received_bytes()
        for secret in (b"canary", b"mail.example.org", str(ACCOUNTS).encode()[:7]):
            assert secret not in written
            assert secret not in outside
    assert time.monotonic() - begun < 90
