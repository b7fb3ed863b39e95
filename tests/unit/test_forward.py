"""The forwarder against a broker in memory and a sink that answers by script."""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Never

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from scrubbers.model import Scrubbed
from telemetry.brokers import DEAD, Broker, Entry, Polled, clean
from telemetry.dead_letter import Brake
from telemetry.errors import BrokerError, TooManyDead
from telemetry.forward import Forwarder, Rate
from telemetry.parcel import Parcel
from telemetry.sinks import Delivered, Delivery, Outcome, Refused, Retry, Shaping, Sink

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


def parcel(number: int, *, days_left: int = 30, kind: str = "analytics_event") -> Parcel:
    return Parcel(
        event_id=f"{number:032x}",
        kind=kind,
        purpose="product-analytics",
        tenant="app",
        retention_class="12m",
        legal_basis="6(1)(f)",
        notice_version="2026-03",
        policy_digest="c0ffee",
        occurred_at=NOW - timedelta(days=300),
        received_at=NOW,
        retain_until=NOW + timedelta(days=days_left),
        body=b'{"n":%d}' % number,
    )


class Memory(Broker):
    """The interface's promises and nothing else."""

    def __init__(self) -> None:
        self.streams: dict[str, list[Parcel]] = {}
        self.positions: Counter[tuple[str, str]] = Counter()
        self.counts: Counter[Entry] = Counter()
        self.failing = 0

    def append(
        self, stream: str, parcels: Sequence[Parcel], counts: Mapping[Entry, int] | None = None
    ) -> None:
        self.streams.setdefault(stream, []).extend(parcels)
        self.counts.update(counts or {})

    def poll(self, stream: str, group: str, max_events: int) -> Polled:
        start = self.positions[stream, group]
        parcels = self.streams.get(stream, [])[start : start + max_events]
        return Polled(stream=stream, group=group, position=start + len(parcels), parcels=parcels)

    def finish(
        self, polled: Polled, outputs: Mapping[str, Sequence[Parcel]], counts: Mapping[Entry, int]
    ) -> None:
        if self.failing:
            self.failing -= 1
            raise BrokerError
        assert isinstance(polled.position, int)
        for stream, parcels in outputs.items():
            self.append(stream, parcels)
        self.counts.update(counts)
        self.positions[polled.stream, polled.group] = polled.position

    def books(self) -> dict[Entry, int]:
        return dict(self.counts)

    def pending(self) -> dict[str, int]:
        return {
            stream: len(parcels) - self.positions[stream, stream.removeprefix("clean.")]
            for stream, parcels in self.streams.items()
        }

    def close(self) -> None:
        pass


@dataclass
class Scripted(Sink):
    """Answers each request as `answer` says; remembers what it was asked."""

    answer: Callable[[Sequence[Delivery]], Sequence[Outcome]]
    max_deliveries: int = 100
    requests: list[list[str]] = field(default_factory=list)
    at: list[float] = field(default_factory=list)

    def shape(self, event: Scrubbed, shaping: Shaping) -> Never:
        raise NotImplementedError

    def scope(self, delivery: Delivery) -> str:
        return delivery.kind

    def identity(self, delivery: Delivery) -> str:
        return delivery.delivery_id[-1]

    async def send(self, deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
        self.requests.append([one.delivery_id for one in deliveries])
        self.at.append(asyncio.get_running_loop().time())
        return self.answer(deliveries)

    async def erase(self, tokens: Collection[str]) -> Never:
        raise NotImplementedError


async def call(function: Callable[..., Any], *arguments: Any) -> Any:
    return await asyncio.to_thread(function, *arguments)


async def inline(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


async def until(holds: Callable[[], bool], timeout_s: float = 10.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not holds():  # noqa: ASYNC110 - what is waited for is no event of ours
            await asyncio.sleep(0.005)


def forwarder(sink: Sink, broker: Memory, **options: Any) -> Forwarder:
    options = {"clock": lambda: NOW, "jitter": lambda most: most / 2, "call": inline} | options
    return Forwarder("heap", sink, broker, **{"backoff_s": (0.02, 0.1), **options})


def filled(count: int, **options: Any) -> Memory:
    broker = Memory()
    broker.append(clean("heap"), [parcel(number, **options) for number in range(count)])
    return broker


def all_delivered(deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
    return [Delivered()] * len(deliveries)


def refusing(bad: Collection[str]) -> Callable[[Sequence[Delivery]], Sequence[Outcome]]:
    """Behave like a bulk API: one bad event, and nothing of the request is taken."""

    def answer(deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
        if not any(one.delivery_id in bad for one in deliveries):
            return [Delivered()] * len(deliveries)
        if len(deliveries) == 1:
            return [Refused(reason="rejected")]
        return [Retry(split=True)] * len(deliveries)

    return answer


def balanced(broker: Memory, recipient: str = "heap") -> bool:
    """Check that routed = delivered + dropped + dead + pending."""
    routed = len(broker.streams.get(clean(recipient), []))
    done = sum(
        count
        for entry, count in broker.counts.items()
        if entry.stage == recipient and entry.outcome in {"delivered", "dropped", "dead"}
    )
    return routed == done + broker.pending().get(clean(recipient), 0)


async def test_what_is_delivered_is_counted_and_not_polled_again() -> None:
    broker, sink = filled(250), Scripted(all_delivered)
    worker = forwarder(sink, broker, call=call)
    while await worker.step():
        assert balanced(broker)
    assert broker.books() == {Entry("heap", "delivered"): 250}
    assert [one for request in sink.requests for one in request] == [
        f"{number:032x}" for number in range(250)
    ]
    assert max(len(request) for request in sink.requests) <= sink.max_deliveries


async def test_what_is_past_its_retention_is_dropped_and_never_sent() -> None:
    broker, sink = Memory(), Scripted(all_delivered)
    broker.append(clean("heap"), [parcel(1), parcel(2, days_left=0), parcel(3, days_left=-1)])
    assert await forwarder(sink, broker).step()
    assert sink.requests == [[f"{1:032x}"]]
    assert broker.books() == {
        Entry("heap", "delivered"): 1,
        Entry("heap", "dropped", "expired"): 2,
    }


async def test_retention_ends_while_a_recipient_is_down() -> None:
    broker, now = filled(2, days_left=1), NOW
    sink = Scripted(lambda deliveries: [Retry()] * len(deliveries))

    def clock() -> datetime:
        return now

    worker = forwarder(sink, broker, clock=clock)
    step = asyncio.create_task(worker.step())
    await until(lambda: len(sink.requests) >= 2)
    now += timedelta(days=1)
    assert await step
    assert broker.books()[Entry("heap", "dropped", "expired")] == 2
    assert DEAD not in broker.streams
    assert balanced(broker)


async def test_a_parcel_whose_tags_were_taken_off_is_dropped() -> None:
    broker, sink = filled(2), Scripted(all_delivered)
    object.__setattr__(broker.streams[clean("heap")][0], "retention_class", "")
    await forwarder(sink, broker).step()
    assert sink.requests == [[f"{1:032x}"]]
    assert broker.books()[Entry("heap", "dropped", "untagged")] == 1


async def test_repeats_carry_the_same_ids_and_are_counted() -> None:
    left = 3

    def answer(deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
        nonlocal left
        left -= 1
        return [Delivered() if left < 0 else Retry()] * len(deliveries)

    broker, sink = filled(5), Scripted(answer)
    assert await forwarder(sink, broker).step()
    assert len(sink.requests) == 4
    assert all(request == sink.requests[0] for request in sink.requests)
    assert broker.books() == {Entry("heap", "delivered"): 5, Entry("heap", "resent"): 15}


async def test_waits_grow_with_each_failure_up_to_a_bound() -> None:
    asked: list[float] = []

    def jitter(most: float) -> float:
        asked.append(most)
        return 0.0

    def answer(deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
        return [Delivered() if len(asked) == 9 else Retry()] * len(deliveries)

    broker, sink = filled(1), Scripted(answer)
    await forwarder(sink, broker, jitter=jitter, backoff_s=(0.5, 60.0)).step()
    assert asked == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]


async def test_a_wait_that_the_recipient_asks_for_is_kept() -> None:
    asked = False

    def answer(deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
        nonlocal asked
        first, asked = not asked, True
        return [Retry(after_s=0.3) if first else Delivered()] * len(deliveries)

    broker, sink = filled(1), Scripted(answer)
    await forwarder(sink, broker).step()
    assert sink.at[1] - sink.at[0] >= 0.3


async def test_an_absurd_wait_is_cut() -> None:
    answers = iter([Retry(after_s=1e9), Delivered()])
    sink = Scripted(lambda deliveries: [next(answers)] * len(deliveries))
    await asyncio.wait_for(forwarder(sink, filled(1), longest_wait_s=0.05).step(), 5)
    assert len(sink.requests) == 2


@settings(max_examples=60, deadline=None)
@given(bad=st.integers(0, 999))
def test_one_bad_event_in_a_thousand_costs_at_most_eleven_requests(bad: int) -> None:
    broker = filled(1000)
    sink = Scripted(refusing({f"{bad:032x}"}), max_deliveries=500)
    assert asyncio.run(forwarder(sink, broker).step())
    assert len(sink.requests) <= 2 + 11
    assert broker.books()[Entry("heap", "delivered")] == 999
    assert broker.books()[Entry("heap", "dead", "rejected")] == 1
    assert [one.event_id for one in broker.streams[DEAD]] == [f"{bad:032x}"]
    assert broker.streams[DEAD][0].reason == "rejected"


@settings(max_examples=80, deadline=None)
@given(count=st.integers(1, 120), bad=st.sets(st.integers(0, 119), max_size=120))
def test_however_many_are_bad_each_gets_its_own_outcome(count: int, bad: set[int]) -> None:
    broker = filled(count)
    guilty = {f"{number:032x}" for number in bad if number < count}
    sink = Scripted(refusing(guilty), max_deliveries=64)
    assert asyncio.run(forwarder(sink, broker).step())
    assert {one.event_id for one in broker.streams.get(DEAD, [])} == guilty
    assert broker.books().get(Entry("heap", "delivered"), 0) == count - len(guilty)
    assert balanced(broker)
    most = 2 + min(2 * len(guilty) * (math.ceil(math.log2(64)) + 2), 4 * count)
    assert len(sink.requests) <= most
    taken = Counter(
        one for request in sink.requests if not guilty & set(request) for one in request
    )
    assert all(times == 1 for times in taken.values())


async def test_a_recipient_that_fails_during_the_search_loses_nothing() -> None:
    count = 0
    search = refusing({f"{7:032x}"})

    def answer(deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
        nonlocal count
        count += 1
        return [Retry()] * len(deliveries) if count % 2 == 0 else search(deliveries)

    broker, sink = filled(20), Scripted(answer)
    await asyncio.wait_for(forwarder(sink, broker, backoff_s=(0.001, 0.001)).step(), 20)
    assert broker.books()[Entry("heap", "delivered")] == 19
    assert broker.books()[Entry("heap", "dead", "rejected")] == 1


async def test_refused_credentials_stop_all_but_a_probe_and_raise_an_alarm() -> None:
    right = False

    def answer(deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
        return [Delivered() if right else Retry(blocked=True)] * len(deliveries)

    broker, sink = filled(50), Scripted(answer)
    worker = forwarder(sink, broker, probe_s=0.1)
    with structlog.testing.capture_logs() as logs:
        step = asyncio.create_task(worker.step())
        await until(lambda: len(sink.requests) >= 4)
        assert worker.blocked
        assert worker.state() == "blocked"
        assert [len(request) for request in sink.requests[:4]] == [50, 1, 1, 1]
        assert sink.at[2] - sink.at[1] >= 0.1
        assert broker.books() == {}
        right = True
        await step
    assert not worker.blocked
    assert broker.books()[Entry("heap", "delivered")] == 50
    alarms = [line for line in logs if line["event"] == "recipient_blocked"]
    assert [line["log_level"] for line in alarms] == ["error"]


async def test_a_limited_scope_waits_while_others_go_on_even_behind_it() -> None:
    open_ = False

    def answer(deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
        return [
            Retry(after_s=2.0, scope="session")
            if one.kind == "session" and not open_
            else Delivered()
            for one in deliveries
        ]

    broker, sink = Memory(), Scripted(answer)
    mixed = [
        parcel(number, kind="session" if number % 2 else "error_event") for number in range(600)
    ]
    broker.append(clean("heap"), mixed)
    worker = forwarder(sink, broker, max_events=20)
    step = asyncio.create_task(worker.step())
    begun = asyncio.get_running_loop().time()
    errors = {one.event_id for one in mixed if one.kind == "error_event"}
    await until(lambda: errors <= {one for request in sink.requests for one in request})
    assert asyncio.get_running_loop().time() - begun < 1.5
    open_ = True
    assert await step
    assert broker.books()[Entry("heap", "delivered")] == 600
    assert balanced(broker)


@pytest.mark.parametrize("events", [9, 1])
async def test_forwarders_of_one_recipient_keep_its_limit_together(events: int) -> None:
    """One works alone, a second joins, the first dies: in no period more than the limit is sent."""
    period_s, now = 30.0, 1000.0
    sent: list[float] = []
    shares = {"one": 1.0, "two": 0.0}

    def take(deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
        sent.extend([now] * len(deliveries))
        return [Delivered()] * len(deliveries)

    def member(name: str) -> Forwarder:
        worker = forwarder(
            Scripted(take, max_deliveries=7),
            filled(120),
            rates=(Rate(events=events, period_s=period_s),),
            share=lambda: shares[name],
            monotonic=lambda: now,
            max_events=120,
        )

        async def rest(_seconds: float) -> None:
            await asyncio.sleep(0)

        worker._rest = rest  # type: ignore[method-assign] # its clock is the test's
        return worker

    members = {name: member(name) for name in shares}
    tasks = {name: asyncio.ensure_future(one.step()) for name, one in members.items()}
    members["two"].paused = True  # it is not there yet
    try:
        for tick in range(300):
            if tick == 60:
                shares.update(one=0.75, two=0.25)
                members["two"].paused = False
            if tick == 180:
                members["one"].paused = True
                shares.update(one=0.0, two=1.0)
            for _ in range(8):
                await asyncio.sleep(0)
            now += 1.0
        if events == 1:  # less than one each: in the mean only
            assert len(sent) <= 300 / period_s + len(members)
        else:
            for at in set(sent):
                assert sum(at <= other < at + period_s for other in sent) <= events
            assert sum(at < 1060 for at in sent) == 2 * events, "alone it has the whole"
            assert sum(1090 <= at < 1180 for at in sent) >= 2 * events, "together nearly so"
        assert sum(at >= 1240 for at in sent) >= events, "what a dead one had comes to the others"
    finally:
        for task in tasks.values():
            task.cancel()


async def test_rates_hold_for_each_identity_and_for_all() -> None:
    broker, sink = filled(60), Scripted(all_delivered)
    worker = forwarder(
        sink,
        broker,
        rates=(
            Rate(events=2, period_s=0.3, each=True),
            Rate(events=25, period_s=0.3),
            Rate(events=1, period_s=60.0, kinds=frozenset({"another"})),
        ),
    )
    await asyncio.wait_for(worker.step(), 20)
    sent = [
        (at, one) for at, request in zip(sink.at, sink.requests, strict=True) for one in request
    ]
    assert len(sent) == 60
    for begin, _ in sent:
        stretch = [one for at, one in sent if begin <= at < begin + 0.3]
        assert len(stretch) <= 25
        assert max(Counter(one[-1] for one in stretch).values()) <= 2


async def test_a_pause_holds_within_a_second_and_loses_nothing() -> None:
    broker = filled(30)
    sink = Scripted(all_delivered, max_deliveries=1)
    worker = forwarder(sink, broker, rates=(Rate(events=1, period_s=0.02),))
    stop = asyncio.Event()
    run = asyncio.create_task(worker.run(stop))
    await until(lambda: len(sink.requests) >= 5)
    worker.paused = True
    assert worker.state() == "paused"
    await asyncio.sleep(0.05)
    held = len(sink.requests)
    await asyncio.sleep(0.5)
    assert len(sink.requests) == held < 30
    worker.paused = False
    await until(lambda: not broker.pending()[clean("heap")])
    stop.set()
    await asyncio.wait_for(run, 5)
    assert broker.books() == {Entry("heap", "delivered"): 30}


async def test_a_pause_breaks_off_what_takes_too_long_and_sends_it_again_under_the_same_ids() -> (
    None
):
    broker, sink = filled(10), Scripted(all_delivered)
    at_once, broken_off = sink.send, 0

    async def dozens_of_slow_requests(deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
        nonlocal broken_off
        outcomes = await at_once(deliveries)
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            broken_off += 1
            raise
        return outcomes

    sink.send = dozens_of_slow_requests  # type: ignore[method-assign]
    worker, stop = forwarder(sink, broker), asyncio.Event()
    run = asyncio.create_task(worker.run(stop))
    await until(lambda: bool(sink.requests))
    worker.paused = True
    begun = asyncio.get_running_loop().time()
    await until(lambda: bool(broken_off))
    assert 1.5 < asyncio.get_running_loop().time() - begun < 4
    sink.send = at_once  # type: ignore[method-assign]
    await asyncio.sleep(0.3)
    assert len(sink.requests) == 1
    worker.paused = False
    await until(lambda: not broker.pending()[clean("heap")])
    stop.set()
    await asyncio.wait_for(run, 5)
    assert sink.requests[1] == sink.requests[0]
    assert broker.books() == {Entry("heap", "delivered"): 10, Entry("heap", "resent"): 10}


async def test_a_stop_leaves_what_is_unfinished_for_the_next_one() -> None:
    broker = filled(10)
    down = Scripted(lambda deliveries: [Retry()] * len(deliveries))
    stop = asyncio.Event()
    run = asyncio.create_task(forwarder(down, broker).run(stop))
    await until(lambda: bool(down.requests))
    stop.set()
    await asyncio.wait_for(run, 2)
    assert broker.books() == {}
    assert broker.pending() == {"clean.heap": 10}
    up = Scripted(all_delivered)
    await forwarder(up, broker).step()
    assert up.requests[0] == down.requests[0]


async def test_a_cancelled_forwarder_has_finished_all_or_nothing() -> None:
    broker = filled(10)

    async def forever(_: Sequence[Delivery]) -> Sequence[Outcome]:
        await asyncio.sleep(3600)
        return []

    sink = Scripted(all_delivered)
    sink.send = forever  # type: ignore[method-assign]
    run = asyncio.create_task(forwarder(sink, broker).run(asyncio.Event()))
    await asyncio.sleep(0.05)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert broker.books() == {}
    assert broker.pending() == {"clean.heap": 10}


async def test_a_log_that_does_not_take_the_outcome_causes_no_second_delivery() -> None:
    broker, sink = filled(10), Scripted(all_delivered)
    broker.failing = 3
    stop = asyncio.Event()
    run = asyncio.create_task(forwarder(sink, broker).run(stop))
    await until(lambda: not broker.pending()[clean("heap")])
    stop.set()
    await asyncio.wait_for(run, 5)
    assert len(sink.requests) == 1
    assert broker.books() == {Entry("heap", "delivered"): 10}


@pytest.mark.parametrize("odd", ["raises", "too few"])
async def test_a_sink_that_breaks_its_promise_is_asked_again_and_told_of_without_values(
    odd: str,
) -> None:
    first = True

    def answer(deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
        nonlocal first
        if not first:
            return [Delivered()] * len(deliveries)
        first = False
        if odd == "raises":
            raise ValueError(deliveries[0].body.decode())
        return [Delivered()]

    broker, sink = filled(3), Scripted(answer)
    with structlog.testing.capture_logs() as logs:
        await forwarder(sink, broker).step()
    assert broker.books()[Entry("heap", "delivered")] == 3
    assert "sink_failed" in {line["event"] for line in logs}
    assert '"n"' not in repr(logs)


async def test_an_event_that_only_ever_fails_is_given_up_when_the_policy_says_so() -> None:
    poison = f"{3:032x}"

    def answer(deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
        return [Retry() if one.delivery_id == poison else Delivered() for one in deliveries]

    broker, sink = filled(6), Scripted(answer)
    await asyncio.wait_for(forwarder(sink, broker, give_up_s=0.3).step(), 10)
    assert broker.books()[Entry("heap", "delivered")] == 5
    assert broker.books()[Entry("heap", "dead", "undeliverable")] == 1
    assert all(request == [poison] for request in sink.requests[1:])  # others are not held up


async def test_no_log_line_holds_a_value() -> None:
    answers = iter([Retry(), Retry(blocked=True), Refused(reason="rejected")])
    broker = filled(1)
    sink = Scripted(lambda deliveries: [next(answers)] * len(deliveries))
    with structlog.testing.capture_logs() as logs:
        await forwarder(sink, broker, probe_s=0.02).step()
    assert {line["event"] for line in logs} == {
        "recipient_unavailable", "recipient_blocked", "recipient_available", "parcels_finished",
    }  # fmt: skip
    allowed = {
        "event", "log_level", "recipient", "parcels", "probe_s", "delivered", "dead", "dropped",
    }  # fmt: skip
    assert all(set(line) <= allowed for line in logs)


async def test_what_a_revoked_policy_scrubbed_never_leaves_and_is_counted() -> None:
    broker, sink = Memory(), Scripted(all_delivered)
    revoked = replace(parcel(2), policy_digest="bad0")
    broker.append(clean("heap"), [parcel(1), revoked, parcel(3)])
    worker = forwarder(sink, broker, accepts=lambda digest: digest != "bad0")
    assert await worker.step()
    assert sink.requests == [[f"{1:032x}", f"{3:032x}"]]
    assert broker.books() == {
        Entry("heap", "delivered"): 2,
        Entry("heap", "dropped", "revoked_policy"): 1,
    }
    assert balanced(broker)


async def test_a_policy_that_is_revoked_while_its_parcels_wait_stops_them_too() -> None:
    broker, accepted = filled(3), True
    sink = Scripted(lambda deliveries: [Retry()] * len(deliveries))
    worker = forwarder(sink, broker, accepts=lambda _digest: accepted)
    step = asyncio.create_task(worker.step())
    await until(lambda: len(sink.requests) >= 2)
    accepted = False
    assert await step
    assert broker.books()[Entry("heap", "dropped", "revoked_policy")] == 3
    assert balanced(broker)


def choking(bad: Collection[str]) -> Callable[[Sequence[Delivery]], Sequence[Outcome]]:
    """Behave like a recipient that one event brings down: 5xx for whatever request holds it."""

    def answer(deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
        if any(one.delivery_id in bad for one in deliveries):
            return [Retry()] * len(deliveries)
        return [Delivered()] * len(deliveries)

    return answer


@pytest.mark.parametrize("bad", [{0}, {57}, {99}, {3, 4, 88}, set(range(0, 100, 25))])
async def test_an_event_that_fails_alone_holds_up_nobody_and_is_given_up_after_others_passed(
    bad: set[int],
) -> None:
    broker = filled(100)
    sink = Scripted(choking({f"{number:032x}" for number in bad}))
    worker = forwarder(sink, broker, backoff_s=(0.001, 0.004))
    step = asyncio.create_task(worker.step())
    good = {f"{number:032x}" for number in range(100)} - {f"{number:032x}" for number in bad}

    def delivered() -> set[str]:
        return {one for request in sink.requests for one in request}

    await until(lambda: good <= delivered() and not step.done())
    # Others pass as they come in, and each time the one that fails alone has its chance.
    number = 1000
    while not step.done():
        broker.append(clean("heap"), [parcel(number)])
        number += 1
        await asyncio.sleep(0.002)
        assert number < 4000
    await step
    while await worker.step():
        pass
    books = broker.books()
    assert books[Entry("heap", "dead", "fails_alone")] == len(bad)
    assert books[Entry("heap", "delivered")] == 100 - len(bad) + number - 1000
    assert {int(letter.event_id, 16) for letter in broker.streams[DEAD]} == bad
    assert balanced(broker)


async def test_a_recipient_that_is_down_is_not_bisected_and_loses_nothing() -> None:
    broker, up = filled(100), False
    sink = Scripted(
        lambda deliveries: [Delivered() if up else Retry()] * len(deliveries),
    )
    worker = forwarder(sink, broker, backoff_s=(0.001, 0.002))
    step = asyncio.create_task(worker.step())
    await until(lambda: len(sink.requests) >= 60)
    sizes = [len(request) for request in sink.requests]
    assert sizes[:5] == [100] * 5
    assert set(sizes[5:]) == {1}  # asked for less, one wait for each
    assert len({request[0] for request in sink.requests[5:60]}) > 40  # another one each time
    up = True
    assert await step
    assert broker.books()[Entry("heap", "delivered")] == 100
    assert DEAD not in broker.streams
    assert sum(len(request) for request in sink.requests[-3:]) >= 99


async def test_a_recipient_that_fails_every_other_time_loses_nothing() -> None:
    broker = filled(120)
    chance = random.Random(7)  # noqa: S311 - which requests fail, no secret
    sink = Scripted(
        lambda deliveries: [Delivered() if chance.random() < 0.5 else Retry()] * len(deliveries)
    )
    worker = forwarder(sink, broker, backoff_s=(0.0001, 0.001))
    while await worker.step():
        pass
    assert broker.books()[Entry("heap", "delivered")] == 120
    assert balanced(broker)


async def test_a_recipient_that_refuses_everything_is_not_fed_into_the_dead_letters() -> None:
    broker, refuse = filled(1000), True
    sink = Scripted(
        lambda deliveries: [Refused(reason="rejected") if refuse else Delivered()] * len(deliveries)
    )
    worker = forwarder(sink, broker, brake=Brake(run_length=300))
    assert await worker.step()
    with pytest.raises(TooManyDead):
        await worker.step()
    assert worker.state() == "braked"
    assert len(broker.streams[DEAD]) == 200
    with pytest.raises(TooManyDead):
        await worker.step()
    assert len(broker.streams[DEAD]) == 200
    refuse = False  # mended at the recipient: nothing further was lost
    while await worker.step():
        pass
    assert worker.state() == "running"
    assert broker.books() == {
        Entry("heap", "dead", "rejected"): 200,
        Entry("heap", "delivered"): 800,
    }
    assert balanced(broker)


async def test_an_outage_that_begins_during_a_search_ends_it() -> None:
    """A search whose tests may only go one by one waited for the others, and for ever."""
    broker, requests, down = filled(8), 0, 12

    def answer(deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
        nonlocal requests
        requests += 1
        if requests == 1:
            return [Retry(split=True)] * len(deliveries)  # too large together
        return [Retry() if requests < down else Delivered()] * len(deliveries)

    sender = forwarder(Scripted(answer), broker)
    async with asyncio.timeout(20):
        assert await sender.step()
    assert requests > down
    assert broker.counts[Entry("heap", "delivered")] == 8
