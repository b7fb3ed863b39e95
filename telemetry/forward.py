"""One recipient's loop: poll, send, retry, finish. Knows no wire format, key or identifier.

Each recipient has its own `Forwarder` with its own consumer group, so one that stalls delays no
other. A batch is finished when every parcel of it has its final outcome; until then outcomes stay
in memory, and a crash polls the batch again. Repeats carry the same id, which each sink makes
harmless.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import SystemRandom
from typing import Any, Final, Literal

import structlog

from telemetry.brokers import DEAD, Broker, Entry, Polled, clean
from telemetry.dead_letter import Brake, Bury, forgetting
from telemetry.errors import BrokerError, TooManyDead
from telemetry.parcel import Parcel
from telemetry.sinks import Delivered, Delivery, Outcome, Refused, Retry, Sink

__all__ = ["Forwarder", "Rate"]

_log: Any = structlog.get_logger(__name__)

_PAUSE_LOOK_S: Final = 0.2
# How long a pause lets what is being sent end by itself. `send` may be dozens of requests.
_PAUSE_GRACE_S: Final = 2.0
_LOOK_AHEAD_S: Final = 1.0
_SEARCH_WAIT_S: Final = 5.0
# After so many failures in a row a single parcel is tried instead of the whole request; and a
# parcel that failed alone so often, each time with others delivered in between, is given up.
_SUSPECT_AFTER: Final = 5
_STRIKES: Final = 8
_TAGS: Final = ("purpose", "retention_class", "legal_basis", "notice_version", "policy_digest")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """A limit that a recipient sets, from its policy.

    Attributes:
        events: How many deliveries…
        period_s: …in any stretch of so many seconds.
        each: Whether every identity has the limit to itself (`Sink.identity`).
        kinds: Which kinds count; empty: all.
    """

    events: int
    period_s: float
    each: bool = False
    kinds: frozenset[str] = frozenset()

    def key(self, delivery: Delivery, identity: str) -> str | None:
        """Say on whose account a delivery goes; None if it does not count."""
        if self.kinds and delivery.kind not in self.kinds:
            return None
        return identity if self.each else ""


@dataclass(slots=True, eq=False)
class _Task:
    """One parcel on its way.

    `final` is its account in the books: outcome and reason; empty while there is none. `alone`: it
    failed by itself while others passed, and is sent only by itself; `strikes`: how often, with
    other deliveries since the one before (`passes`). `probes`: how often it was tried for others.
    """

    parcel: Parcel
    delivery: Delivery
    scope: str
    identity: str
    attempts: int = 0
    not_before: float = 0.0
    final: tuple[str, str] = ("", "")
    alone: bool = False
    strikes: int = 0
    passes: int = -1
    probes: int = 0


@dataclass(slots=True)
class _Window:
    """A sliding window over what was sent: exact, so that no burst exceeds the limit.

    Several forwarders of one recipient have one limit together: each takes the part that its
    partitions are of all. Less of it counts at once, more only after one period, in which what
    others sent before goes out of the recipient's window. So the sum never passes the limit.
    """

    rate: Rate
    sent: dict[str, deque[tuple[float, int]]] = field(default_factory=lambda: defaultdict(deque))
    share: float = 0.0
    seen: float = 0.0
    since: float = 0.0
    events: int = 0
    period_s: float = 0.0

    def heed(self, share: float, now: float) -> None:
        """Take the part of the limit that is ours, 0 to 1, as of now."""
        if not share:
            return  # between two deals of the partitions; there is nothing to send either
        if share != self.seen:
            # Who begins alone has nobody whose window to wait for.
            alone = share == 1.0 and not self.seen
            self.seen, self.since = share, now
            if share < self.share or alone:
                self._take(share)
        if share > self.share and now - self.since >= self.rate.period_s:
            self._take(share)

    def _take(self, share: float) -> None:
        exact = self.rate.events * share
        self.share, self.events = share, max(1, int(exact))
        # Less than one in a period is one in a longer one.
        self.period_s = self.rate.period_s * max(1.0, 1.0 / exact)

    def room(self, key: str, now: float) -> int:
        entries = self.sent.get(key)
        if entries is None:
            return self.events
        while entries and entries[0][0] <= now - self.period_s:
            entries.popleft()
        if not entries:
            del self.sent[key]  # identities come and go; their windows do not pile up
        return self.events - sum(count for _, count in entries)

    def frees_at(self, key: str) -> float:
        if not self.events:
            return self.since + self.rate.period_s
        entries = self.sent.get(key)
        return entries[0][0] + self.period_s if entries else 0.0

    def charge(self, key: str, count: int, now: float) -> None:
        self.sent[key].append((now, count))


class Forwarder:
    """Carries the parcels of one recipient's clean stream to its sink.

    Outcomes: *delivered*; *dropped* as ``expired`` (`retain_until` is reached), ``untagged`` or
    ``revoked_policy``; *dead* with the sink's reason. A parcel that the recipient does not take for
    now is kept until its retention ends, or until `give_up_s`; one that it does not take while it
    takes others, until it has failed alone often enough (``fails_alone``, see
    docs/decisions/0011-the-event-that-fails-alone.md).

    Args:
        recipient: Name from ``recipients.toml``; names the stream, the group and the books.
        sink: What reaches the recipient.
        broker: The log. Used through `call` only.
        call: Runs a function of the broker on the one storage thread.
        clock: Aware UTC time, for retention.
        monotonic: Seconds, for waits and rates.
        jitter: Draws a wait between 0 and its argument, seconds.
        rates: Limits of the recipient.
        max_events: Most parcels polled at once; 0 takes twice what the sink sends at once.
        look_ahead: Most parcels held at once while one scope waits and others go on.
        backoff_s: First and longest upper bound of a wait between attempts, seconds.
        longest_wait_s: Upper bound of a wait that a recipient may ask for, seconds.
        probe_s: Wait between probes while the recipient refuses our credentials, seconds.
        idle_s: Wait after an empty poll, seconds.
        drain_s: How long a stop waits for the request in flight, seconds.
        give_up_s: Age, from the first attempt of this process, at which a parcel becomes a dead
            letter ``undeliverable``; None: never, its retention ends it.
        bury: Makes a dead letter; without a key to seal it to, its original is forgotten.
        accepts: Tells of a policy's digest whether its parcels may still leave.
        brake: Stops this rather than have it park nearly everything.
        share: Part of the recipient's limits that this one may use, 0 to 1: others forward to it.
        guided: Tells whether it is known what was ordered. Else nothing is sent, as if paused.

    Attributes:
        paused: Set it to stop sending. What is being sent may end within two seconds; then it is
            broken off, and sent again under the same ids when the pause is over. Loses nothing.
    """

    def __init__(  # noqa: PLR0913 - all but three by keyword
        self,
        recipient: str,
        sink: Sink,
        broker: Broker,
        *,
        call: Callable[..., Awaitable[Any]],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
        jitter: Callable[[float], float] = lambda most: SystemRandom().uniform(0.0, most),
        rates: Sequence[Rate] = (),
        max_events: int = 0,
        look_ahead: int = 2000,
        backoff_s: tuple[float, float] = (0.5, 60.0),
        longest_wait_s: float = 3600.0,
        probe_s: float = 30.0,
        idle_s: float = 0.2,
        drain_s: float = 10.0,
        give_up_s: float | None = None,
        bury: Bury = forgetting,
        accepts: Callable[[str], bool] = lambda _digest: True,
        brake: Brake | None = None,
        guided: Callable[[], bool] = lambda: True,
        share: Callable[[], float] = lambda: 1.0,
    ) -> None:
        self.recipient, self.sink = recipient, sink
        self.paused = False
        self._broker, self._call = broker, call
        self._clock, self._monotonic, self._jitter = clock, monotonic, jitter
        self._windows, self._share = [_Window(rate) for rate in rates], share
        self._max_events = max_events or 2 * sink.max_deliveries
        self._look_ahead = max(look_ahead, self._max_events)
        self._backoff_s, self._longest_wait_s = backoff_s, longest_wait_s
        self._probe_s, self._idle_s, self._drain_s = probe_s, idle_s, drain_s
        self._give_up_s = give_up_s
        self._bury, self._accepts, self._guided = bury, accepts, guided
        self.brake = brake or Brake()
        self.braked = False
        """Whether the brake has stopped this."""
        self._stop = asyncio.Event()
        self._waits: dict[str, float] = {}  # scope -> monotonic time; "" is the whole recipient
        self._failures = 0
        self._passes = 0  # requests in which something was delivered
        self._searched_at = 0
        self._suspicious = False
        self._searching = False
        self._blocked = False
        self._first_try: dict[str, float] = {}
        self._settled: dict[str, tuple[tuple[str, str], int]] = {}

    @property
    def blocked(self) -> bool:
        """Whether the recipient refuses us: credentials, address or protocol are wrong."""
        return self._blocked

    @property
    def halted(self) -> bool:
        """Whether nothing may be sent: by order, or because nobody knows what was ordered."""
        return self.paused or not self._guided()

    def state(
        self,
    ) -> Literal["paused", "without orders", "braked", "blocked", "waiting", "running"]:
        """Say in a word or two what goes on, for `telemetry status`."""
        if self.paused:
            return "paused"
        if not self._guided():
            return "without orders"
        if self.braked:
            return "braked"
        if self._blocked:
            return "blocked"
        return "waiting" if self._waits.get("", 0.0) > self._monotonic() else "running"

    async def run(self, stop: asyncio.Event) -> None:
        """Forward until `stop` is set; then let the request in flight end, and leave.

        What is unfinished then is polled again by whoever comes next.
        """
        self._stop = stop
        failures = 0
        while not stop.is_set():
            step = asyncio.ensure_future(self.step())
            stopping = asyncio.ensure_future(stop.wait())
            try:
                await asyncio.wait({step, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if not step.done():
                    await asyncio.wait({step}, timeout=self._drain_s)
            finally:
                stopping.cancel()
                if not step.done():
                    step.cancel()
                    await asyncio.wait({step})
            if step.cancelled():
                return
            error = step.exception()
            if error is None:
                failures = 0
                if not step.result():
                    await self._rest(self._idle_s)
            else:
                # The edge of the loop: whatever went wrong, nothing of it was finished, and the
                # same parcels are polled again. Only the error's class is told: texts quote values.
                failures += 1
                _log.error("forwarder_failed", recipient=self.recipient, error=type(error).__name__)
                await self._rest(self._wait_after(failures))

    async def step(self) -> bool:
        """Poll once and see everything polled to its end.

        Returns:
            Whether there was anything. False also if a stop left it unfinished.

        Raises:
            BrokerError: The log cannot take or give; nothing was finished.
            TooManyDead: Nearly everything would be parked; nothing was finished.
        """
        self._suspicious = False
        polled = await self._poll(self._max_events)
        if not polled.parcels:
            return False
        tasks = [self._admit(parcel) for parcel in polled.parcels]
        while True:
            pending = self._pending(tasks)
            if not pending:
                break
            if self._stop.is_set():
                return False
            if self.halted:
                await self._rest(_PAUSE_LOOK_S)
                continue
            ready, until = self._choose(pending)
            if ready:
                await self._attempt(ready)
                continue
            wait_s = until - self._monotonic()
            if self._may_look_ahead(pending, wait_s):
                polled, more = await self._extend(polled, tasks)
                if more:
                    tasks += more
                    continue
            # Short waits, so that a pause, a stop or an end of retention is seen.
            await self._rest(min(max(wait_s, 0.01), 1.0))
        await self._finish(polled, tasks)
        return True

    # Poll

    async def _poll(self, most: int) -> Polled:
        polled: Polled = await self._call(
            self._broker.poll, clean(self.recipient), self.recipient, most
        )
        return polled

    def _admit(self, parcel: Parcel) -> _Task:
        delivery = Delivery(
            delivery_id=parcel.event_id,
            kind=parcel.kind,
            body=parcel.body,
            occurred_at=parcel.occurred_at,
        )
        task = _Task(parcel, delivery, self.sink.scope(delivery), self.sink.identity(delivery))
        # A parcel cannot be made without its tags; this is the second lock on that door.
        if not parcel.body or not all(getattr(parcel, name) for name in _TAGS):
            task.final = ("dropped", "untagged")
        if parcel.event_id in self._settled:
            task.final, task.attempts = self._settled[parcel.event_id]
        return task

    async def _extend(self, polled: Polled, tasks: Sequence[_Task]) -> tuple[Polled, list[_Task]]:
        """Look further ahead: one scope waits for long, but others may have work behind it."""
        most = min(2 * len(tasks), self._look_ahead)
        if most <= len(tasks):
            return polled, []
        wider = await self._poll(most)
        known = [task.parcel.event_id for task in tasks]
        if [parcel.event_id for parcel in wider.parcels[: len(known)]] != known:
            return polled, []  # the log gave something else: finish what we have first
        return wider, [self._admit(parcel) for parcel in wider.parcels[len(known) :]]

    # Choose

    def _pending(self, tasks: Sequence[_Task]) -> list[_Task]:
        """Drop what may not leave any more; give what has no outcome yet.

        Asked before each request: a policy may be revoked, and a retention end, while parcels wait.
        """
        now, at = self._clock(), self._monotonic()
        for task in tasks:
            if task.final[0]:
                continue
            begun = self._first_try.get(task.parcel.event_id, at)
            if now >= task.parcel.retain_until:
                task.final = ("dropped", "expired")
            elif not self._accepts(task.parcel.policy_digest):
                task.final = ("dropped", "revoked_policy")
            elif self._give_up_s is not None and at - begun > self._give_up_s:
                task.final = ("dead", "undeliverable")
        return [task for task in tasks if not task.final[0]]

    def _choose(self, pending: Sequence[_Task]) -> tuple[list[_Task], float]:
        """Pick what may go now, in order; else say when to look again (monotonic seconds)."""
        now = self._monotonic()
        for window in self._windows:
            window.heed(self._share(), now)
        if self._waits.get("", 0.0) > now:
            return [], self._waits[""]
        if self._suspects:
            # It may be down, or one parcel of the request may bring it down: try another one each
            # time. Nothing is lost by asking a recipient that is down for less.
            pending = sorted(pending, key=lambda task: task.probes)
        most = 1 if self._blocked or self._suspects else self.sink.max_deliveries
        ready: list[_Task] = []
        taken: Counter[tuple[int, str]] = Counter()
        soonest = float("inf")
        for task in pending:
            if task.alone and ready:
                continue  # behind the others, by itself
            after = max(self._waits.get(task.scope, 0.0), task.not_before)
            if after <= now:
                after = self._rate_allows(task, taken, now)
            if after > now:
                soonest = min(soonest, after)
                continue
            ready.append(task)
            if len(ready) == most or task.alone:
                break
        return ready, soonest

    def _rate_allows(self, task: _Task, taken: Counter[tuple[int, str]], now: float) -> float:
        """Take room in every window a task counts in; else say when there may be some."""
        keys: list[tuple[int, str]] = []
        for i, window in enumerate(self._windows):
            key = window.rate.key(task.delivery, task.identity)
            if key is None:
                continue
            if window.room(key, now) <= taken[i, key]:
                return max(window.frees_at(key), now + 0.01)
            keys.append((i, key))
        taken.update(keys)
        return 0.0

    def _may_look_ahead(self, pending: Sequence[_Task], wait_s: float) -> bool:
        """Whether others behind these need not wait for them."""
        if all(task.alone for task in pending):
            return self._only_scopes_wait()
        return wait_s > _LOOK_AHEAD_S and (self._only_scopes_wait() or self._suspects)

    @property
    def _suspects(self) -> bool:
        return self._failures >= _SUSPECT_AFTER

    def _only_scopes_wait(self) -> bool:
        return not self._blocked and self._waits.get("", 0.0) <= self._monotonic()

    # Send

    async def _attempt(self, tasks: Sequence[_Task]) -> None:
        """Send once; look for the bad one if the recipient refused several together."""
        if self._suspects:
            for task in tasks:
                task.probes += 1
        split = await self._send(tasks)
        if len(split) < 2:  # noqa: PLR2004 - nothing to halve
            return
        try:
            await self._bisect(split)
        finally:
            self._searching = False

    async def _bisect(self, suspects: list[_Task]) -> None:
        """Find what a recipient refuses among deliveries that it refused together.

        One request per halving: what a passing test leaves over is known to hold the bad one, and
        the half beside a failing test is set aside and sent in one piece at the end. One bad
        delivery among n costs at most log2(n) + 2 further requests. If a test has no verdict,
        everything not settled goes back to the ordinary loop.
        """
        aside: list[list[_Task]] = []
        while len(suspects) > 1:
            half = len(suspects) // 2
            test, beside = suspects[:half], suspects[half:]
            verdict = await self._test(test)
            if verdict is None:
                return
            if verdict and not any(task.final[0] == "dead" for task in test):
                suspects = beside
            else:
                aside.append(beside)
                suspects = self._pending(test)
        if suspects and await self._test(suspects) is None:
            return
        rest = [task for part in aside for task in part]
        if not rest or await self._test(rest) is not False:
            return
        if len(aside) == 1:
            await self._bisect(self._pending(rest))
            return
        for part in reversed(aside):  # more than one was bad
            verdict = await self._test(part)
            if verdict is None:
                return
            if not verdict:
                await self._bisect(self._pending(part))

    async def _test(self, tasks: Sequence[_Task]) -> bool | None:
        """Send until there is a verdict. True: all are settled; False: refused together.

        None: no verdict soon. A search that started anew after each hiccup would never end at a
        flaky recipient, so short waits are waited for here; long ones are the loop's, which has
        other scopes to serve.
        """
        while left := self._pending(tasks):
            if self.halted or self._blocked or self._stop.is_set():
                return None
            ready, until = self._choose(left)
            if len(ready) == len(left):
                if await self._send(left):
                    return False
                if left[0].alone:
                    return None  # found; it is tried again later, by itself
                continue
            wait_s = until - self._monotonic()
            if wait_s > _SEARCH_WAIT_S and (not ready or until == float("inf")):
                # Nothing soon; or these may not go together at all any more, as in an outage, and
                # there is nothing to wait for.
                return None
            await self._rest(min(max(wait_s, 0.01), _PAUSE_LOOK_S))
        return True

    async def _send(self, tasks: Sequence[_Task]) -> list[_Task]:
        """Send once and note the outcomes; give those that were refused together."""
        for task in tasks:
            task.attempts += 1
            self._first_try.setdefault(task.parcel.event_id, self._monotonic())
        try:
            outcomes = await self._deliver([task.delivery for task in tasks])
        except Exception as error:  # noqa: BLE001 - the edge of the loop; a sink must not raise
            _log.error("sink_failed", recipient=self.recipient, error=type(error).__name__)
            outcomes = [Retry()] * len(tasks)
        if outcomes is None:
            self._charge(tasks)  # the recipient may have counted them
            return []
        if len(outcomes) != len(tasks):
            _log.error("sink_failed", recipient=self.recipient, error="outcomes")
            outcomes = [Retry()] * len(tasks)
        self._charge(tasks)
        return self._note(tasks, outcomes)

    async def _deliver(self, deliveries: Sequence[Delivery]) -> Sequence[Outcome] | None:
        """Let the sink send; None if a pause broke it off, so that nobody knows what arrived."""
        sending = asyncio.ensure_future(self.sink.send(deliveries))
        left_s = _PAUSE_GRACE_S
        try:
            while not sending.done() and left_s > 0:
                await asyncio.wait({sending}, timeout=_PAUSE_LOOK_S)
                left_s = left_s - _PAUSE_LOOK_S if self.halted else _PAUSE_GRACE_S
            return sending.result() if sending.done() else None
        finally:
            if not sending.done():
                sending.cancel()
                await asyncio.wait({sending})

    def _charge(self, tasks: Sequence[_Task]) -> None:
        # After the answer: the recipient has counted at the latest now, so its window ends first.
        now = self._monotonic()
        for window in self._windows:
            keys = (window.rate.key(task.delivery, task.identity) for task in tasks)
            for key, count in Counter(key for key in keys if key is not None).items():
                window.charge(key, count, now)

    def _note(self, tasks: Sequence[_Task], outcomes: Sequence[Outcome]) -> list[_Task]:
        now = self._monotonic()
        split: list[_Task] = []
        again: list[_Task] = []
        answered = refused_us = passed = False
        for task, outcome in zip(tasks, outcomes, strict=True):
            if isinstance(outcome, Delivered):
                passed = True
                task.final, answered = ("delivered", ""), True
            elif isinstance(outcome, Refused):
                task.final, answered = ("dead", outcome.reason), True
            elif outcome.blocked:
                refused_us = True
            elif outcome.split and len(tasks) > 1:
                split.append(task)
            elif outcome.after_s > 0:
                until = now + min(outcome.after_s, self._longest_wait_s)
                self._waits[outcome.scope] = max(until, self._waits.get(outcome.scope, 0.0))
            else:
                again.append(task)
        self._passes += passed
        if refused_us:
            self._block(now)
        elif answered or split:
            # It takes this and did not take that, again and again: one of them may be the reason.
            self._suspicious = self._suspicious or self._suspects
            self._unblock()
        if again and not refused_us:
            if not answered and not split and self._may_search(again):
                return again
            known = self._searching or tasks[0].alone or (self._suspicious and not self._suspects)
            lone = len(tasks) == 1 and known
            if lone:
                self._strike(tasks[0])
            again = [task for task in again if not task.final[0]]
            self._back_off(again, now, alone=lone or answered or bool(split))
        return split

    def _may_search(self, failed: Sequence[_Task]) -> bool:
        """Whether what failed together is searched for the one that fails alone.

        Only where the recipient took something since the last search: one that is down is not
        bisected, or each of its parcels would look like the bad one.
        """
        if len(failed) == 1:
            return False
        if self._searching:
            return True
        if not self._suspicious or self._passes <= self._searched_at:
            return False
        self._searching, self._searched_at = True, self._passes
        return True

    def _strike(self, task: _Task) -> None:
        """Count a failure of one parcel by itself, if others were delivered since the last one."""
        task.alone = True
        if self._passes > task.passes:
            task.strikes, task.passes = task.strikes + 1, self._passes
        if task.strikes >= _STRIKES:
            task.final = ("dead", "fails_alone")

    def _back_off(self, tasks: Sequence[_Task], now: float, *, alone: bool) -> None:
        """Wait with full jitter: these parcels only if others passed, else the whole recipient."""
        if alone:
            for task in tasks:
                task.not_before = now + self._wait_after(task.attempts)
            return
        self._failures += 1
        if self._failures == 1:
            _log.warning("recipient_unavailable", recipient=self.recipient, parcels=len(tasks))
        self._waits[""] = now + self._wait_after(self._failures)

    def _wait_after(self, failures: int) -> float:
        first, longest = self._backoff_s
        return self._jitter(min(longest, first * 2.0 ** min(failures - 1, 30)))

    def _block(self, now: float) -> None:
        if not self._blocked:
            # An alarm: nothing is lost, but nothing leaves until somebody mends the credentials.
            _log.error("recipient_blocked", recipient=self.recipient, probe_s=self._probe_s)
        self._blocked = True
        self._waits[""] = now + self._probe_s

    def _unblock(self) -> None:
        if self._blocked or self._failures:
            _log.info("recipient_available", recipient=self.recipient)
        self._blocked, self._failures = False, 0

    # Finish

    async def _finish(self, polled: Polled, tasks: Sequence[_Task]) -> None:
        """Make all outcomes durable together.

        If the log does not take them they are kept for the next poll of the same parcels: what
        was delivered is not sent again because a disk was full.
        """
        self._brake(tasks)
        dead = [self._bury(task.parcel, task.final[1]) for task in tasks if task.final[0] == "dead"]
        outputs: Mapping[str, Sequence[Parcel]] = {DEAD: dead} if dead else {}
        counts = Counter(Entry(self.recipient, *task.final) for task in tasks)
        if repeats := sum(max(0, task.attempts - 1) for task in tasks):
            counts[Entry(self.recipient, "resent")] = repeats
        try:
            await self._call(self._broker.finish, polled, outputs, dict(counts))
        except BrokerError:
            self._settle(tasks)
            raise
        self.brake.note([task.final[0] == "dead" for task in tasks])
        self._settled.clear()
        self._first_try.clear()
        _log.debug(
            "parcels_finished",
            recipient=self.recipient,
            **Counter(task.final[0] for task in tasks),
        )

    def _brake(self, tasks: Sequence[_Task]) -> None:
        """Refuse to park nearly everything: keep what was delivered, and ask again for the rest."""
        try:
            self.brake.check([task.final[0] == "dead" for task in tasks])
        except TooManyDead:
            if not self.braked:
                _log.error("too_many_dead", recipient=self.recipient, parcels=len(tasks))
            self.braked = True
            self._settle([task for task in tasks if task.final[0] != "dead"])
            raise
        self.braked = False

    def _settle(self, tasks: Sequence[_Task]) -> None:
        self._settled = {task.parcel.event_id: (task.final, task.attempts) for task in tasks}

    async def _rest(self, seconds: float) -> None:
        """Wait, but not beyond a stop."""
        try:
            await asyncio.wait_for(self._stop.wait(), timeout=seconds)
        except TimeoutError:
            return
