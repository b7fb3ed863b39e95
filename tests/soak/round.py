"""``python -m tests.soak.round``: one round of the soak in a folder of its own, judged at its end.

A round is one life of a pipeline: it starts with an empty state folder, is killed, stopped and
starved as its schedule says, is drained, and has to account for every event that it ever
acknowledged. Seed and number of a round decide its schedule, its events and its faults; how the
processes meet them in time is the machine's.

Standard output: one JSON object a line, ``{"kills": n}`` while it goes on and ``{"report": …}``
last. Exit code 1 if anything is wrong; the folder is kept then.
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import shutil
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from random import Random
from typing import Any, Final

from telemetry.admin import NotRunningError, ask
from telemetry.testing import Leaks
from telemetry.testing.leaks import files_under, received_by
from tests.integration.running import free_port
from tests.soak.events import Events, Posted
from tests.soak.proxy import FAULTS, Proxy
from tests.soak.recipients import Heap, Sentry, strain
from tests.soak.starter import Process, Starter

__all__ = ["BACKLOG", "Report", "Round", "Sent", "judge"]

BACKLOG: Final = 10
"""A kill counts with at least so many events acknowledged that have not arrived."""
_DRAIN_S: Final = 100.0
_READY_S: Final = 60.0
_STOP_S: Final = 15.0
_RECOVERY_S: Final = 30.0
_QUOTA_MIB: Final = 16
_EVENTS_PER_S: Final = 150
_NO_ROOM: Final = "no_room"
_SCRATCH_EVERY: Final = 8
"""One start in so many is a new interpreter; the others are forked (`tests.soak.starter`)."""


@dataclass(slots=True)
class Sent:
    """What the client knows: it repeats some requests and gives up others, as clients do.

    Attributes:
        tried: Numbers, by how often they were in a request.
        acknowledged: Numbers, by how often they were in a request that was answered 200.
        refused: Numbers, by how often they were in a request that was answered 429.
        acknowledged_at: Unix time of the first such answer. sent_at: Of the first request.
        items: Items of acknowledged requests.
        unknown_items: Items of requests without an answer.
        dropped, dead: What acknowledged requests say was dropped or parked; `unknown_dropped`,
            `unknown_dead`: what those without an answer may have added.
        answers: Requests by status; 0: no answer.
        ack_s: How long answers took that were 200.
        wrong: Answers that are not what the request must get.
    """

    tried: Counter[int] = field(default_factory=Counter)
    acknowledged: Counter[int] = field(default_factory=Counter)
    refused: Counter[int] = field(default_factory=Counter)
    acknowledged_at: dict[int, float] = field(default_factory=dict)
    sent_at: dict[int, float] = field(default_factory=dict)
    items: int = 0
    unknown_items: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    dead: Counter[str] = field(default_factory=Counter)
    unknown_dropped: Counter[str] = field(default_factory=Counter)
    unknown_dead: Counter[str] = field(default_factory=Counter)
    answers: Counter[int] = field(default_factory=Counter)
    ack_s: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def note(self, posted: Posted, status: int, text: bytes, seconds: float) -> None:
        """Remember what became of a request."""
        self.answers[status] += 1
        self.tried.update(posted.numbers)
        now = time.time()
        for number in posted.numbers:
            self.sent_at.setdefault(number, now - seconds)
        if status == 200:
            self.acknowledged.update(posted.numbers)
            for number in posted.numbers:
                self.acknowledged_at.setdefault(number, now)
            self.items += posted.items
            self.dropped.update(posted.dropped)
            self.dead.update(posted.dead)
            self.ack_s.append(seconds)
            if json.loads(text) != posted.answer:
                self.wrong.append(f"{posted.path}: 200 with another answer than it must have")
        elif status in (429, 503):
            self.refused.update(posted.numbers)
        else:
            if status not in (0, 400, 408):
                self.wrong.append(f"{posted.path}: answered {status}")
            self.unknown_items += posted.items
            self.unknown_dropped.update(posted.dropped)
            self.unknown_dead.update(posted.dead)


class _Client(threading.Thread):
    """Sends events up to `allowed`, through the proxy; repeats about half of what was not taken."""

    def __init__(self, events: Events, port: int, draw: Random, *, single: bool) -> None:
        super().__init__(name="client", daemon=True)
        self.events, self.port, self._draw, self.single = events, port, draw, single
        self.sent = Sent()
        self.number = self.allowed = 0
        self.words = 0
        self.ending = False
        self.error: BaseException | None = None
        self._connection: HTTPConnection | None = None

    def run(self) -> None:
        try:
            while not self.ending:
                if self.number >= self.allowed:
                    time.sleep(0.003)
                    continue
                self._deliver(self._next())
        except BaseException as error:  # noqa: BLE001 - told by the round
            self.error = error

    def idle(self) -> bool:
        return self.number >= self.allowed

    def _next(self) -> Posted:
        draw, first = self._draw, self.number
        if self.single:
            self.number = first + 1
            return self.events.native((first,))
        if self.words:
            self.number = first + 40
            return self.events.native(range(first, self.number), words=self.words)
        choice = draw.random()
        if choice < 0.25 and self.events.kind(first) != "analytics":
            # An error and whatever session follows it.
            last = first + 1 + (self.events.kind(first + 1) == "session")
            self.number = last
            return self.events.envelope(range(first, last))
        self.number = first + draw.randrange(1, 30)
        if choice > 0.95:
            return self.events.hostile(range(first, self.number), draw)
        return self.events.native(range(first, self.number))

    def _deliver(self, posted: Posted) -> None:
        for attempt in range(6):
            status = self._post(posted)
            again = self._draw.random() < 0.5
            if status == 200 or not again:
                return
            end = time.monotonic() + min(0.02 * 2**attempt, 0.3)
            while time.monotonic() < end and not self.ending:
                time.sleep(0.01)

    def _post(self, posted: Posted) -> int:
        headers = {"Content-Type": "application/json", "X-Sentry-Auth": "Sentry sentry_key=soak"}
        begun = time.monotonic()
        try:
            if self._connection is None:
                self._connection = HTTPConnection("127.0.0.1", self.port, timeout=15)
            self._connection.request("POST", posted.path, posted.body, headers)
            answer = self._connection.getresponse()
            status, text = answer.status, answer.read()
        except (OSError, HTTPException):
            status, text = 0, b""
        if status != 200 and self._connection is not None:
            self._connection.close()
            self._connection = None
        self.sent.note(posted, status, text, time.monotonic() - begun)
        return status


@dataclass(slots=True, kw_only=True)
class Report:
    """What a round says of itself; `as_json` is what is printed."""

    seed: int
    number: int
    kills: int = 0
    kills_in_vain: int = 0
    kills_while_new: int = 0
    filled: bool = False
    starts: int = 0
    starts_from_nothing: int = 0
    steps: Counter[str] = field(default_factory=Counter)
    struck: Counter[str] = field(default_factory=Counter)
    timeline: list[str] = field(default_factory=list)
    backlogs: list[int] = field(default_factory=list)
    ready_s: list[float] = field(default_factory=list)
    first_delivery_s: list[float] = field(default_factory=list)
    first_delivery_from_nothing_s: list[float] = field(default_factory=list)
    stop_s: list[float] = field(default_factory=list)
    ack_s: list[float] = field(default_factory=list)
    delivery_s: list[float] = field(default_factory=list)
    acknowledged: int = 0
    unanswered: int = 0
    refused: int = 0
    arrived: int = 0
    dead: int = 0
    repeats: int = 0
    books: Mapping[str, Any] = field(default_factory=dict)
    rss_mib: list[int] = field(default_factory=list)
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)
    folder: str = ""

    def as_json(self) -> dict[str, Any]:
        """Give all of it in JSON's types."""
        return {
            name: dict(value) if isinstance(value, Counter) else value
            for name in self.__dataclass_fields__
            for value in (getattr(self, name),)
        }


class Round:
    """One life of a pipeline.

    Args:
        seed: The soak's. number: The round's; both decide what happens.
        folder: For state and logs.
        kills: How many kills must count. 0: a calm round, `seconds` long, of everything else.
        single: Send each event in a request of its own.
        say: Told of each step.
    """

    def __init__(
        self,
        seed: int,
        number: int,
        folder: Path,
        *,
        kills: int,
        seconds: float = 60.0,
        single: bool = False,
        say: Callable[[str], None] = lambda _line: None,
    ) -> None:
        folder = folder.resolve()  # the process has a working folder of its own
        self.draw = Random(f"{seed}:{number}")  # noqa: S311 - reproducible, no secret
        self.report = Report(seed=seed, number=number, folder=str(folder))
        self.folder, self.state, self.kills, self.seconds = folder, folder / "state", kills, seconds
        self.events = Events(self.draw.randrange(2**32))
        self.heap, self.sentry = Heap(), Sentry()
        self._say, self._single = say, single
        self._begun = time.monotonic()
        self._open = ExitStack()
        self._written_off: set[int] = set()
        # Recipients of ours are cut off in the middle on purpose.
        logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)

    # ------------------------------------------------------------------ the way through

    def run(self) -> Report:
        """Do all of it. What is wrong stands in the report; nothing is raised."""
        self._begun = time.monotonic()
        try:
            with self._open:
                self._set_up()
                self._fault()
                self._end()
        except Exception as error:  # noqa: BLE001 - a round that breaks is a finding too
            where = traceback.extract_tb(error.__traceback__)[-1]
            self.wrong(f"{type(error).__name__} in {where.name}:{where.lineno}: {error}")
        self.report.seconds = round(time.monotonic() - self._begun, 1)
        return self.report

    def wrong(self, what: str) -> None:
        self.report.wrong.append(what)
        self.tell(f"WRONG: {what}")

    def tell(self, line: str) -> None:
        stamped = f"{time.monotonic() - self._begun:7.2f} {line}"
        self.report.timeline.append(stamped)
        self._say(stamped)

    def _set_up(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "telemetry.toml").write_text(
            f"[broker]\nquota_mib = {_QUOTA_MIB}\n", "utf-8"
        )
        enter = self._open.enter_context
        enter(self.heap)
        enter(self.sentry)
        self.port, self.admin_port = free_port(), free_port()
        self.to_gateway, self.to_heap, self.to_sentry = (
            enter(Proxy(port)) for port in (self.port, self.heap.port, self.sentry.port)
        )
        self.starter = enter(Starter())
        self.environment = {
            "TELEMETRY_SENTRY_DSN": self.sentry.dsn.replace(
                f":{self.sentry.port}/", f":{self.to_sentry.port}/"
            ),
            "TELEMETRY_HEAP_URL": f"http://127.0.0.1:{self.to_heap.port}",
            "TELEMETRY_HEAP_APP_ID": self.heap.settings["app_id"],
            "TELEMETRY_STATE": str(self.state),
            "TELEMETRY_BIND": f"127.0.0.1:{self.port}",
            "TELEMETRY_ADMIN_BIND": f"127.0.0.1:{self.admin_port}",
        }
        for _ in range(self.draw.randrange(0, 4)):
            self._kill_while_it_is_new()
        self._start()
        self.client = _Client(
            self.events,
            self.to_gateway.port,
            Random(self.draw.random()),  # noqa: S311 - reproducible, no secret
            single=self._single,
        )
        self._open.callback(self.client.join, 30)
        self._open.callback(setattr, self.client, "ending", True)
        self.client.start()

    def _fault(self) -> None:
        steps = _KILLING if self.kills else _CALM
        names = list(steps)
        while not self.report.wrong and (
            self.report.kills < self.kills
            or (not self.kills and time.monotonic() - self._begun < self.seconds)
        ):
            name = self.draw.choices(names, [steps[n] for n in names])[0]
            self.report.steps[name] += 1
            getattr(self, f"_{name}")()
            self._check()
            self._rss()
            if self.report.kills_in_vain > 20 + self.kills:
                self.wrong("too many kills found no backlog")

    def _end(self) -> None:
        """Drain, ask for the books, stop, judge."""
        self._heal()
        self._go_on()
        end = time.monotonic() + 60
        while not self.client.idle() and time.monotonic() < end:
            time.sleep(0.01)
        self.client.allowed = 0
        books = self._drained()
        metrics = self._get("/metrics", self.admin_port)[1] if books else b""
        if books:
            begun = time.monotonic()
            self._stop()
            self.tell(f"drained and stopped in {time.monotonic() - begun:.1f} s")
        self._check()
        report, sent = self.report, self.client.sent
        report.books = books
        for proxy in (self.to_gateway, self.to_heap, self.to_sentry):
            report.struck.update(proxy.struck)
        report.ack_s = [round(s, 4) for s in sent.ack_s]
        both = self.heap.first_at | self.sentry.first_at
        report.delivery_s = [
            round(max(both[n] - at, 0.0), 3) for n, at in sent.acknowledged_at.items() if n in both
        ]
        report.acknowledged = len(sent.acknowledged)
        report.unanswered, report.refused = sent.answers[0], sent.answers[429] + sent.answers[503]
        report.arrived = len(self.heap.arrived) + len(self.sentry.arrived)
        report.repeats = sum((self.heap.arrived + self.sentry.arrived).values()) - report.arrived
        for what in judge(sent, books, self.heap, self.sentry, filled=report.filled):
            self.wrong(what)
        leaks = Leaks({name: v for name, v in self.events.planted.items() if len(v) >= 8})
        found = leaks.search(
            [
                *files_under(self.folder),
                *received_by({"heap": self.heap, "sentry": self.sentry}),
                ("metrics", metrics),
                ("books", json.dumps(dict(books)).encode()),
            ]
        )
        for finding in found[:20]:
            self.wrong(f"leak: {finding.name} as {finding.form} in {finding.place}")
        report.dead = sum(books["dead"].values()) if books else 0

    # ------------------------------------------------------------------ steps

    def _kill(self) -> None:
        """Kill -9 at a random moment with work under way, and sometimes again while it starts."""
        said = self._strain(credentials=True)
        reached = self._load(self.draw.randrange(BACKLOG, 80), 5.0)
        time.sleep(self.draw.uniform(0, 0.05))
        self._end_process(signal.SIGKILL)
        under_way = self._backlog()
        self._count_kill(under_way)
        self.tell(f"kill -9 with {under_way} under way ({reached} before; {said})")
        again = self.draw.random() < 0.12
        if healed := self.draw.random() < 0.8:
            self._heal()
        if again:
            self._launch()
            time.sleep(self.draw.uniform(0.0, 1.0))
            self._end_process(signal.SIGKILL)
            under_way = self._backlog()
            self._count_kill(under_way)
            self.tell(f"kill -9 while it starts, with {under_way} under way")
        self._start(measured=healed and under_way > 0)
        self._heal()

    def _kill_while_it_is_new(self) -> None:
        """Kill it while keys, vault and log are made: half of them must not stop the next start."""
        before = self._files()
        self._launch()
        end = time.monotonic() + 20
        while self._files() == before and time.monotonic() < end:
            time.sleep(0.001)
        time.sleep(self.draw.choice((0.005, 0.05, 0.2)) * self.draw.random())
        self._end_process(signal.SIGKILL)
        made = sorted({name for name, _ in self._files()})
        self.report.kills_while_new += 1
        self.tell(f"kill -9 of a first start, which had made {', '.join(made) or 'nothing'}")

    def _files(self) -> list[tuple[str, int]]:
        found: list[tuple[str, int]] = []
        for path in self.state.rglob("*"):
            with suppress(OSError):
                found.append((path.name, path.stat().st_mtime_ns))
        return found

    def _count_kill(self, under_way: int) -> None:
        if under_way >= BACKLOG:
            self.report.kills += 1
            self.report.backlogs.append(under_way)
        else:
            self.report.kills_in_vain += 1

    def _terminate(self) -> None:
        """SIGTERM with work under way: exit code 0 in time, and the rest waits."""
        said = self._strain()
        reached = self._load(self.draw.randrange(5, 60), 3.0)
        begun = time.monotonic()
        self._stop()
        self.tell(f"SIGTERM with {reached} under way, {time.monotonic() - begun:.1f} s ({said})")
        self._heal()
        self._start()

    def _freeze(self) -> None:
        """SIGSTOP, then go on: connections and deadlines pass meanwhile."""
        said = self._strain()
        self._load(20, 2.0)
        seconds = self.draw.uniform(0.1, 1.5)
        self.process.signal(signal.SIGSTOP)
        self.client.allowed += 30
        time.sleep(seconds)
        self.process.signal(signal.SIGCONT)
        self.tell(f"stood still for {seconds:.1f} s ({said})")
        self._flow(0.5)
        self._heal()

    def _pause(self) -> None:
        """Pause Heap, sometimes over a kill; nothing may leave meanwhile; go on."""
        self._order("pause")
        self._flow(1.0)
        reached, over_a_kill = 0, bool(self.kills) and self.draw.random() < 0.5
        before = len(self.heap.requests)
        if over_a_kill:
            reached = self._load(BACKLOG, 3.0)
            self._end_process(signal.SIGKILL)
            self._count_kill(self._backlog())
            self._start()
        self._flow(self.draw.uniform(0.3, 1.0))
        if len(self.heap.requests) != before:
            self.wrong("Heap was sent to while it was paused")
        self._order("resume")
        self.tell("paused heap" + (f", killed with {reached} under way" if over_a_kill else ""))

    def _no_room(self) -> None:
        """Let no file grow any more (EFBIG), as on a disk that is nearly full; then again."""
        sizes = [path.stat().st_size for path in self.state.rglob("*") if path.is_file()]
        most = max(sizes) if self.draw.random() < 0.3 else self.draw.randrange(2**18, 2**22)
        before = resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (most, before[1]))
        self._flow(self.draw.uniform(0.5, 2.5))
        if self.kills and self.draw.random() < 0.4:
            self._end_process(signal.SIGKILL)
            self._count_kill(self._backlog())
            self._start()
        else:
            resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, before)
        self.tell(f"no file above {most // 1024} KiB")
        self._flow(0.5)

    def _fill(self) -> None:
        """Let no recipient take anything until a share of the log or its quota is used up.

        Above its share a recipient's events are dropped and counted (decision 14): the only loss
        of what was acknowledged that a schedule can explain.
        """
        for there in (self.heap, self.sentry):
            there.fail(status=503)
        before, end = self.client.sent.answers[429], time.monotonic() + 25
        self.client.words = 1500
        full = False
        while not full and time.monotonic() < end:
            self.client.allowed = self.client.number + 1000
            time.sleep(0.2)
            self._check()
            full = self.client.sent.answers[429] > before or self._without_room() > 0
        self.report.filled |= full
        self.client.allowed = self.client.words = 0
        waiting = self._backlog()
        if full and self.kills:
            self._end_process(signal.SIGKILL)
            self._count_kill(self._backlog())
        self._heal()
        if full and self.kills:
            self._start(measured=waiting > 0)
        self.tell(f"the log {'is' if full else 'is not'} full with {waiting} under way")
        books = self._drained()
        if books.get("dropped", {}).get(_NO_ROOM):
            # They never arrive: no later kill may count them as under way.
            self._written_off = self._waiting()

    def _without_room(self) -> int:
        with suppress(NotRunningError):
            books = ask(self.state, "GET", "/books")
            return int(books["dropped"].get(_NO_ROOM, 0))
        return 0

    def _storm(self) -> None:
        """Only the network, on all three ways."""
        said = self._strain(network=0.9)
        self._flow(self.draw.uniform(0.5, 2.0))
        self._heal()
        self.tell(f"network: {said}")

    # ------------------------------------------------------------------ pieces of steps

    def _strain(self, *, credentials: bool = False, network: float = 0.35) -> str:
        draw = self.draw
        said = [strain(self.heap, self.sentry, draw, credentials=credentials)]
        proxies = {"gateway": self.to_gateway, "heap": self.to_heap, "sentry": self.to_sentry}
        for name, proxy in proxies.items():
            if draw.random() < network:
                fault = draw.choice(FAULTS)
                if fault in ("delay", "half_open"):
                    proxy.spoil(
                        fault, seconds=draw.uniform(0.2, 1.2), delay_s=draw.uniform(0.02, 0.3)
                    )
                else:
                    proxy.spoil(fault, count=draw.randrange(1, 5))
                said.append(f"{fault} to {name}")
        return ", ".join(said)

    def _heal(self) -> None:
        for proxy in (self.to_gateway, self.to_heap, self.to_sentry):
            proxy.heal()
        for there in (self.heap, self.sentry):
            there.heal()
            there.garbage.clear()

    def _waiting(self) -> set[int]:
        there = self.heap.arrived.keys() | self.sentry.arrived.keys()
        waiting = self.client.sent.acknowledged_at.keys() - there
        return {number for number in waiting if not Events.marked(number)}

    def _backlog(self) -> int:
        return len(self._waiting() - self._written_off)

    def _load(self, wanted: int, seconds: float) -> int:
        """Send until so many are under way, or for so long."""
        end = time.monotonic() + seconds
        while (reached := self._backlog()) < wanted and time.monotonic() < end:
            self.client.allowed = self.client.number + 60
            time.sleep(0.004)
        return reached

    def _flow(self, seconds: float) -> None:
        """Send at a steady rate for a while."""
        begun, first = time.monotonic(), self.client.number
        while (passed := time.monotonic() - begun) < seconds:
            self.client.allowed = first + int(passed * _EVENTS_PER_S)
            time.sleep(0.02)

    def _wait(self, condition: Callable[[], bool], seconds: float) -> bool:
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        return True

    def _check(self) -> None:
        """Stop the round at once when something is wrong that no later step explains."""
        client = self.client
        if client.error is not None:
            self.wrong(f"the client failed: {type(client.error).__name__}: {client.error}")
        for what in client.sent.wrong:
            self.wrong(what)
        client.sent.wrong.clear()
        for there in (self.heap, self.sentry):
            for rule in there.violations:
                self.wrong(f"{type(there).__name__}: {rule}")
            there.violations.clear()

    def _rss(self) -> None:
        with suppress(OSError, IndexError, ValueError):
            pages = int(Path(f"/proc/{self.process.pid}/statm").read_text("ascii").split()[1])
            self.report.rss_mib.append(pages * resource.getpagesize() // 2**20)

    # ------------------------------------------------------------------ the process

    def _launch(self) -> bool:
        """Start it; tell whether as a new interpreter."""
        scratch = self.report.starts % _SCRATCH_EVERY == 0
        self.report.starts += 1
        self.report.starts_from_nothing += scratch
        self.process: Process = self.starter.start(
            self.environment, self.folder, self.folder / "stderr.log", scratch=scratch
        )
        return scratch

    def _start(self, *, measured: bool = False) -> None:
        """Start it and wait until it takes events; with work waiting, measure the way back."""
        begun = time.monotonic()
        scratch = self._launch()
        while not self._is_ready():
            if (code := self.process.poll()) is not None:
                raise RuntimeError(f"it does not start again: exit code {code}")
            if time.monotonic() - begun > _READY_S:
                raise RuntimeError("it does not become ready")
            time.sleep(0.01)
        self.report.ready_s.append(round(time.monotonic() - begun, 3))
        if measured:
            # From when it is ready: what its predecessor left in a proxy must not count.
            ready, ready_at = time.monotonic() - begun, time.time() - 0.02
            self._wait(lambda: self._first_after(ready_at) is not None, _RECOVERY_S)
            if (first := self._first_after(ready_at)) is None:
                self.wrong(f"nothing was delivered within {_RECOVERY_S:.0f} s of a restart")
                return
            there = self.report
            kept = there.first_delivery_from_nothing_s if scratch else there.first_delivery_s
            kept.append(round(ready + max(first - ready_at, 0.0), 3))

    def _first_after(self, moment: float) -> float | None:
        found = [
            request.at
            for there in (self.heap, self.sentry)
            for request in there.requests[-50:]
            if request.at > moment
        ]
        return min(found, default=None)

    def _is_ready(self) -> bool:
        try:
            return self._get("/health/ready", self.port)[0] == 200
        except (OSError, HTTPException):
            return False

    def _get(self, path: str, port: int) -> tuple[int, bytes]:
        connection = HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def _end_process(self, number: signal.Signals) -> None:
        self.process.signal(number)
        code = self.process.wait(_STOP_S + 5)
        if code != -number:
            self.wrong(f"it had ended by itself with code {code}")

    def _stop(self) -> None:
        begun = time.monotonic()
        self.process.signal(signal.SIGTERM)
        try:
            code = self.process.wait(_STOP_S)
        except TimeoutError:
            self.wrong(f"SIGTERM did not end it in {_STOP_S:.0f} s")
            self._end_process(signal.SIGKILL)
            return
        self.report.stop_s.append(round(time.monotonic() - begun, 2))
        if code != 0:
            self.wrong(f"SIGTERM ended it with code {code}")

    def _order(self, order: str) -> None:
        answer = ask(self.state, "POST", f"/{order}/heap")
        if "detail" in answer:
            raise RuntimeError(f"{order} was refused")

    def _go_on(self) -> None:
        with suppress(NotRunningError):
            self._order("resume")

    def _drained(self) -> Mapping[str, Any]:
        """Wait until nothing is under way; give the books."""
        books: dict[str, Any] = {}

        def drained() -> bool:
            with suppress(NotRunningError):
                books.update(ask(self.state, "GET", "/books"))
            return bool(books) and not any(books["pending"].values())

        if not self._wait(drained, _DRAIN_S):
            self.wrong(f"not drained in {_DRAIN_S:.0f} s: {books.get('pending')}")
        return books


_KILLING: Final = {
    "kill": 78,
    "terminate": 5,
    "freeze": 4,
    "pause": 5,
    "no_room": 3,
    "fill": 1,
    "storm": 4,
}
_CALM: Final = {"terminate": 1, "freeze": 2, "pause": 2, "no_room": 2, "fill": 1, "storm": 4}


def judge(
    sent: Sent, books: Mapping[str, Any], heap: Heap, sentry: Sentry, *, filled: bool = False
) -> list[str]:
    """Compare what clients were promised with what recipients hold and what the books say.

    Args:
        sent: What the client knows.
        books: After the drain; empty if they could not be read.
        heap: The recipient of analytics.
        sentry: The recipient of errors and sessions.
        filled: Whether the schedule filled the log: then as many may be missing as it had no room
            for, by its books.

    Returns:
        Everything that does not fit, in words. Empty: nothing was lost, nothing came from nowhere,
        nothing was stored twice under different ids, and the sums agree.
    """
    found: list[str] = []
    stored = {"heap": heap.stored(), "sentry": sentry.stored()}
    everything = stored["heap"] + stored["sentry"]
    good = {number for number in sent.acknowledged if not Events.marked(number)}

    def tell(what: str, numbers: Sequence[int]) -> None:
        if numbers:
            shown = ", ".join(f"{n} ({Events.kind(n)})" for n in numbers[:10])
            found.append(f"{what}: {len(numbers)}, such as {shown}")

    for name in stored:
        room = books.get("dropped_at", {}).get(name, {}).get(_NO_ROOM, 0) if filled else 0
        missing = [n for n in good - everything.keys() if _recipient(n) == name]
        if len(missing) > room:
            tell(f"LOST, acknowledged and not at {name}", sorted(missing))
    tell("stored though never sent", sorted(everything.keys() - sent.tried.keys()))
    tell("stored though refused for good", sorted(n for n in everything if Events.marked(n)))
    only_refused = {n for n, count in sent.refused.items() if count == sent.tried[n]}
    tell("stored though every request was refused", sorted(only_refused & everything.keys()))
    once = {n: c for n, c in everything.items() if Events.kind(n) != "session"}
    tell("stored twice", sorted(n for n, count in once.items() if count != 1))
    wrong_place = [n for name, kept in stored.items() for n in kept if _recipient(n) != name]
    tell("stored at the wrong recipient", sorted(wrong_place))
    for there in (heap, sentry):
        several = [number for number, known_as in there.ids.items() if len(known_as) != 1]
        tell("sent under several ids", sorted(several))
    if not books:
        return [*found, "the books cannot be read"]
    return found + _about_books(sent, books, filled=filled)


def _recipient(number: int) -> str:
    return "heap" if Events.kind(number) == "analytics" else "sentry"


def _about_books(sent: Sent, books: Mapping[str, Any], *, filled: bool) -> list[str]:
    """Say which sums do not follow from what the client knows."""
    found: list[str] = []
    if not books["exact"]:
        found.append("the books are not exact")
    if any(books["pending"].values()) or books["held"]:
        found.append(f"under way or held: {books['pending']}, {books['held']}")

    def between(what: str, count: int, least: int, more: int) -> None:
        if not least <= count <= least + more:
            found.append(f"{what}: {count} in the books, {least} to {least + more} by the client")

    def of(counted: Mapping[int, int], name: str, *, marked: bool) -> int:
        return sum(
            count
            for n, count in counted.items()
            if _recipient(n) == name and Events.marked(n) is marked
        )

    unknown = sent.tried - sent.acknowledged - sent.refused
    between("items in", books["events_in"], sent.items, sent.unknown_items)
    dead_at, dropped_at = books["dead_at"], books["dropped_at"]
    for stage, reason in (("heap", "rejected"), ("sentry", "too_large")):
        room = dropped_at.get(stage, {}).get(_NO_ROOM, 0) if filled else 0
        delivered, refused = books["delivered"][stage], dead_at.get(stage, {}).get(reason, 0)
        for what, count, marked in (
            (f"delivered to {stage}", delivered, False),
            (f"refused by {stage} for good", refused, True),
        ):
            least = of(sent.acknowledged, stage, marked=marked)
            between(what, count, least - room, of(unknown, stage, marked=marked) + room)
        least, more = (
            sum(of(counted, stage, marked=marked) for marked in (False, True))
            for counted in (sent.acknowledged, unknown)
        )
        between(f"what {stage} was to get", delivered + refused + room, least, more)
    explained = {"heap": {"rejected"}, "sentry": {"too_large"}, "edge": {"undecodable"}}
    for stage, reasons in dead_at.items():
        if unexplained := set(reasons) - explained.get(stage, set()):
            found.append(
                f"dead at {stage} for a reason that nothing explains: {sorted(unexplained)}"
            )
    for stage, reasons in dropped_at.items():
        known = set(sent.dropped | sent.unknown_dropped) if stage == "edge" else set()
        if filled and stage in books["delivered"]:
            known.add(_NO_ROOM)
        if unexplained := set(reasons) - known:
            found.append(
                f"dropped at {stage} for a reason that nothing explains: {sorted(unexplained)}"
            )
    for reason in sorted(sent.dropped | sent.unknown_dropped):
        count = dropped_at.get("edge", {}).get(reason, 0)
        between(f"dropped, {reason}", count, sent.dropped[reason], sent.unknown_dropped[reason])
    for reason in sorted(sent.dead | sent.unknown_dead):
        count = dead_at.get("edge", {}).get(reason, 0)
        between(f"dead, {reason}", count, sent.dead[reason], sent.unknown_dead[reason])
    return found


def main() -> int:
    """Run one round."""
    read = argparse.ArgumentParser(prog="tests.soak.round", description=__doc__)
    read.add_argument("--seed", type=int, required=True)
    read.add_argument("--round", type=int, required=True)
    read.add_argument("--kills", type=int, default=25, help="0: a calm round")
    read.add_argument("--seconds", type=float, default=60.0, help="length of a calm round")
    read.add_argument("--folder", type=Path, required=True)
    read.add_argument("--verbose", action="store_true", help="print each step as it happens")
    given = read.parse_args()

    def say(line: str) -> None:
        if given.verbose:
            print(line, file=sys.stderr, flush=True)  # noqa: T201 - what a person asked for
        print(json.dumps({"kills": here.report.kills}), flush=True)  # noqa: T201 - for our caller

    here = Round(
        given.seed, given.round, given.folder, kills=given.kills, seconds=given.seconds, say=say
    )
    report = here.run()
    if not report.wrong:
        shutil.rmtree(given.folder, ignore_errors=True)
    else:
        (given.folder / "report.json").write_text(json.dumps(report.as_json(), indent=1), "utf-8")
    print(json.dumps({"report": report.as_json()}), flush=True)  # noqa: T201
    return bool(report.wrong)


if __name__ == "__main__":
    sys.exit(main())
