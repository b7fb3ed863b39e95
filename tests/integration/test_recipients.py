"""Forwarder, real sinks and stand-ins over HTTP on 127.0.0.1 (docs/reliability.md, rows 22-34)."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from hashlib import sha256
from typing import Any

import pytest

from scrubbers.model import Remark, Scrubbed
from telemetry.brokers import DEAD, Entry, Polled, clean
from telemetry.forward import Forwarder, Rate
from telemetry.parcel import Parcel
from telemetry.policy import load_policy
from telemetry.run import rates_of
from telemetry.sinks import Delivery, Outcome, Shaping, Sink, Tags
from telemetry.sinks.heap import HeapSink
from telemetry.sinks.sentry import SentrySink
from telemetry.testing import Canaries, HeapStandIn, SentryStandIn

NOW = datetime.now(UTC)
KEEP = timedelta(days=300)


class Log:
    """A log in memory with the books of the interface."""

    def __init__(self) -> None:
        self.streams: dict[str, list[Parcel]] = {}
        self.positions: dict[str, int] = {}
        self.counts: dict[Entry, int] = {}

    def append(
        self, stream: str, parcels: Sequence[Parcel], counts: Mapping[Entry, int] | None = None
    ) -> None:
        self.streams.setdefault(stream, []).extend(parcels)

    def poll(self, stream: str, group: str, max_events: int) -> Polled:
        start = self.positions.get(stream, 0)
        parcels = self.streams.get(stream, [])[start : start + max_events]
        return Polled(stream=stream, group=group, position=start + len(parcels), parcels=parcels)

    def finish(
        self, polled: Polled, outputs: Mapping[str, Sequence[Parcel]], counts: Mapping[Entry, int]
    ) -> None:
        for stream, parcels in outputs.items():
            self.append(stream, parcels)
        for entry, count in counts.items():
            self.counts[entry] = self.counts.get(entry, 0) + count
        assert isinstance(polled.position, int)
        self.positions[polled.stream] = polled.position

    def books(self) -> dict[Entry, int]:
        return self.counts

    def pending(self) -> dict[str, int]:
        return {
            name: len(parcels) - self.positions.get(name, 0)
            for name, parcels in self.streams.items()
        }

    def close(self) -> None:
        pass


def parcels(sink: Sink, kind: str, count: int, *, people: int = 10, start: int = 0) -> list[Parcel]:
    """Shape events the way the pseudonymizer does."""
    made = []
    for number in range(start, start + count):
        delivery_id = sha256(f"{kind}{number}".encode()).hexdigest()[:32]
        event: dict[str, Any] = {
            "analytics_event": {"event": f"saved {number}", "ip": "203.0.113.0/24"},
            "user_properties": {"properties": {"plan": "pro"}},
            "error_event": {
                "platform": "python",
                "level": "error",
                "logentry": {"message": "<ip>"},
            },
            "session": {
                "sid": delivery_id,
                "started": "2026-01-01T00:00:00Z",
                "attrs": {"release": "web@1"},
            },
        }[kind]
        shaping = Shaping(
            kind=kind,
            delivery_id=delivery_id,
            occurred_at=NOW - timedelta(minutes=number % 60),
            tokens={"account": f"ps1_x_u_{number % people}"},
            remarks=[Remark(("logentry", "message"), "ip", "replace", 0, 4)],
            tags=Tags(
                retain_until=(NOW + KEEP).date(), retention_class="12m", policy="c0ffee", notice="1"
            ),
        )
        made.append(
            Parcel(
                event_id=delivery_id,
                kind=kind,
                purpose="p",
                tenant="app",
                retention_class="12m",
                legal_basis="6(1)(f)",
                notice_version="1",
                policy_digest="c0ffee",
                occurred_at=shaping.occurred_at,
                received_at=NOW,
                retain_until=NOW + KEEP,
                body=sink.shape(Scrubbed(json.dumps(event).encode()), shaping),
            )
        )
    return made


async def call(function: Callable[..., Any], *arguments: Any) -> Any:
    return await asyncio.to_thread(function, *arguments)


async def until(holds: Callable[[], bool], timeout_s: float = 30.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not holds():  # noqa: ASYNC110 - what is waited for is no event of ours
            await asyncio.sleep(0.01)


@asynccontextmanager
async def running(recipient: str, sink: Sink, log: Log, **options: Any) -> Any:
    worker = Forwarder(
        recipient, sink, log, call=call, **{"backoff_s": (0.05, 0.4), "idle_s": 0.02} | options
    )
    stop = asyncio.Event()
    run = asyncio.create_task(worker.run(stop))
    try:
        yield worker
    finally:
        stop.set()
        await asyncio.wait_for(run, 15)
        await sink.close()


def heap_sink(heap: HeapStandIn, **options: Any) -> HeapSink:
    return HeapSink(url=heap.url, app_id="11", **{"total_s": 1.0} | options)


def keys(heap: HeapStandIn) -> list[str]:
    return [event["idempotency_key"] for event in heap.events]


async def test_an_outage_delays_but_neither_loses_nor_doubles() -> None:
    async with HeapStandIn() as heap:
        sink, log = heap_sink(heap), Log()
        sent = parcels(sink, "analytics_event", 800)
        log.append(clean("heap"), sent)
        heap.fail(status=503, seconds=1.0)
        heap.drop(count=2)
        heap.fail(status=500, count=1, stored=True)  # taken, but the answer says otherwise
        async with running("heap", sink, log):
            await until(lambda: not log.pending()[clean("heap")])
        assert sorted(keys(heap)) == sorted(one.event_id for one in sent)
        assert heap.repeats > 0  # the lost answer made a repeat, and Heap knew it by its key
        assert log.counts[Entry("heap", "delivered")] == 800
        assert log.counts[Entry("heap", "resent")] > 0
        assert heap.violations == []


async def test_one_bad_event_in_a_thousand_is_dead_and_the_others_arrive() -> None:
    async with HeapStandIn() as heap:
        sink, log = heap_sink(heap), Log()
        sent = parcels(sink, "analytics_event", 1000)
        object.__setattr__(sent[371], "body", b'{"identity":"u","event":"","x":1}')
        log.append(clean("heap"), sent)
        async with running("heap", sink, log):
            await until(lambda: not log.pending()[clean("heap")])
        assert len(heap.events) == 999
        assert len(heap.requests) <= 2 + 11
        assert [(one.event_id, one.reason) for one in log.streams[DEAD]] == [
            (sent[371].event_id, "rejected")
        ]
        assert log.counts[Entry("heap", "delivered")] == 999
        assert log.counts[Entry("heap", "dead", "rejected")] == 1


async def test_a_retry_after_is_waited_for() -> None:
    async with HeapStandIn() as heap:
        sink, log = heap_sink(heap), Log()
        log.append(clean("heap"), parcels(sink, "analytics_event", 3))
        heap.fail(status=429, headers={"Retry-After": "1"}, count=1)
        async with running("heap", sink, log):
            await until(lambda: not log.pending()[clean("heap")])
        first, second = (request.at for request in heap.requests)
        assert second - first >= 0.99
        assert len(heap.events) == 3


async def test_a_request_that_is_too_large_is_cut_in_two() -> None:
    async with HeapStandIn() as heap:
        sink, log = heap_sink(heap), Log()
        log.append(clean("heap"), parcels(sink, "analytics_event", 64))
        heap.fail(status=413, where=lambda request: len(request.body) > 8000)
        async with running("heap", sink, log):
            await until(lambda: not log.pending()[clean("heap")])
        assert len(heap.events) == 64
        assert DEAD not in log.streams


async def test_refused_credentials_keep_everything_until_they_are_mended() -> None:
    async with HeapStandIn() as heap:
        sink, log = heap_sink(heap), Log()
        log.append(clean("heap"), parcels(sink, "analytics_event", 20))
        heap.fail(status=403)
        async with running("heap", sink, log, probe_s=0.2) as worker:
            await until(lambda: len(heap.requests) >= 3)
            assert worker.blocked
            assert log.counts == {}
            heap.heal()
            await until(lambda: not log.pending()[clean("heap")])
            assert not worker.blocked
        assert len(heap.events) == 20
        assert DEAD not in log.streams


async def test_a_timeout_after_the_recipient_stored_makes_no_second_event() -> None:
    async with HeapStandIn() as heap:
        sink, log = heap_sink(heap, total_s=0.3), Log()
        log.append(clean("heap"), parcels(sink, "analytics_event", 30))
        heap.slow(1.0, count=1)
        async with running("heap", sink, log):
            await until(lambda: not log.pending()[clean("heap")])
        assert len(heap.events) == 30
        assert heap.repeats == 30
        assert log.counts[Entry("heap", "resent")] == 30


async def test_a_stalled_recipient_does_not_delay_another() -> None:
    async with HeapStandIn() as heap, SentryStandIn() as sentry:
        analytics, errors = heap_sink(heap, total_s=20.0), SentrySink(dsn=sentry.dsn)
        log = Log()
        log.append(clean("heap"), parcels(analytics, "analytics_event", 50))
        log.append(clean("sentry"), parcels(errors, "error_event", 50))
        heap.slow(30.0)
        begun = time.monotonic()
        async with running("heap", analytics, log, drain_s=0.1), running("sentry", errors, log):
            await until(lambda: not log.pending()[clean("sentry")], 5)
            assert time.monotonic() - begun < 5
            assert log.pending()[clean("heap")] == 50
        assert len(sentry.events) == 50
        assert sentry.violations == []
        assert sentry.addresses() == set()


async def test_only_the_limited_category_waits() -> None:
    async with SentryStandIn() as sentry:
        sink, log = SentrySink(dsn=sentry.dsn), Log()
        errors, sessions = parcels(sink, "error_event", 120), parcels(sink, "session", 120)
        mixed = [one for pair in zip(sessions, errors, strict=True) for one in pair]
        log.append(clean("sentry"), mixed)
        sentry.limit(["session"], 3.0)
        begun = time.monotonic()
        async with running("sentry", sink, log, max_events=40):
            await until(lambda: len(sentry.events) == 120)
            assert time.monotonic() - begun < 2.9
            assert sentry.payloads("session") == []
            await until(lambda: not log.pending()[clean("sentry")])
        assert len(sentry.payloads("session")) == 120
        assert log.counts[Entry("sentry", "delivered")] == 240
        assert sentry.violations == []


async def test_the_limits_of_heap_are_never_met() -> None:
    """30 updates in 30 s for one identity: a bucket of 30 a second stands for it here."""
    fast = 30.0  # the stand-in's clock runs thirty times as fast, so 30 s are one
    async with HeapStandIn(clock=lambda: time.monotonic() * fast) as heap:
        sink, log = heap_sink(heap), Log()
        log.append(clean("heap"), parcels(sink, "user_properties", 70, people=1))
        rate = Rate(events=30, period_s=1.0, each=True, kinds=frozenset({"user_properties"}))
        async with running("heap", sink, log, rates=[rate]):
            await until(lambda: not log.pending()[clean("heap")])
        assert log.counts == {Entry("heap", "delivered"): 70}  # nothing resent: no 429 ever came
        assert heap.violations == []


async def test_the_figures_of_heap_stand_in_the_policy_and_are_kept_to_the_minute() -> None:
    """15,000 and 1,000 a minute in bulk and 30 updates in 30 s: time is ours, the rest is real."""
    now = 1000.0
    async with HeapStandIn(clock=lambda: now) as heap:
        sink, log = heap_sink(heap, total_s=20.0), Log()
        log.append(clean("heap"), parcels(sink, "analytics_event", 2500, people=1))
        log.append(clean("heap"), parcels(sink, "user_properties", 70, people=1))
        log.append(clean("heap"), parcels(sink, "analytics_event", 18_000, people=500, start=2500))
        rates = rates_of(load_policy().recipients["heap"])
        assert {(r.events, r.period_s, r.each) for r in rates} == {
            (15_000, 60, False),
            (1_000, 60, True),
            (30, 30, True),
        }
        worker = Forwarder("heap", sink, log, call=call, rates=rates, monotonic=lambda: now)
        asked: list[tuple[float, int]] = []
        send = sink.send

        async def timed(deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
            asked.append((now, sum(one.kind == "analytics_event" for one in deliveries)))
            return await send(deliveries)

        async def rest(seconds: float) -> None:
            nonlocal now
            now += seconds

        worker._rest, sink.send = rest, timed  # type: ignore[method-assign]
        while log.pending()[clean("heap")]:
            assert await worker.step()
        await sink.close()
        assert log.counts == {Entry("heap", "delivered"): 20_570}  # nothing resent: no 429 came
        assert heap.violations == []
        # Nor is it slower than it must be: 2,500 of one identity need two minutes to pass.
        assert now - 1000.0 < 300
        for begin, _ in asked:
            assert sum(n for at, n in asked if begin <= at < begin + 60) <= 15_000


async def test_a_kill_repeats_what_was_not_finished_under_the_same_ids() -> None:
    async with SentryStandIn() as sentry:
        sink, log = SentrySink(dsn=sentry.dsn), Log()
        log.append(clean("sentry"), parcels(sink, "error_event", 60))

        def torn(*_: object) -> None:
            raise SystemError  # as if the process had ended before the outcome was durable

        finish, log.finish = log.finish, torn  # type: ignore[method-assign, assignment]
        worker = Forwarder("sentry", sink, log, call=call)
        with pytest.raises(SystemError):
            await worker.step()
        assert len(sentry.events) == 60
        log.finish = finish  # type: ignore[method-assign]
        await Forwarder("sentry", sink, log, call=call).step()
        await sink.close()
        assert len(sentry.events) == sentry.duplicates == 60
        assert log.counts == {Entry("sentry", "delivered"): 60}


async def test_a_day_is_what_the_recipients_are_told_never_the_moment() -> None:
    async with HeapStandIn() as heap, SentryStandIn() as sentry:
        analytics, errors = heap_sink(heap), SentrySink(dsn=sentry.dsn)
        log = Log()
        log.append(clean("heap"), parcels(analytics, "analytics_event", 1))
        log.append(clean("sentry"), parcels(errors, "error_event", 1))
        for recipient, sink in (("heap", analytics), ("sentry", errors)):
            await Forwarder(recipient, sink, log, call=call).step()
            await sink.close()
        (event,), (error,) = heap.events, sentry.events
        assert date.fromisoformat(event["properties"]["retain_until"])
        assert event["properties"]["retain_until"] == error["tags"]["retain_until"]


async def test_canaries_are_found_in_whatever_reached_a_recipient(canaries: Canaries) -> None:
    async with HeapStandIn() as heap:
        sink, log = heap_sink(heap), Log()
        log.append(clean("heap"), parcels(sink, "analytics_event", 5))
        await Forwarder("heap", sink, log, call=call).step()
        await sink.close()
        assert canaries.found_in(heap.received_bytes()) == []
        assert b"ps1_x_u_3" in heap.received_bytes()
