"""The demo without its pictures: a real pipeline, real clients, stand-ins, and what they all saw.

The pipeline is ``telemetry run`` in a process of its own. The recipients are stand-ins in this
process, so that every byte they received is at hand; what the clients sent is recorded on its way.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from dataclasses import fields as dataclass_fields
from pathlib import Path
from secrets import token_hex
from types import TracebackType
from typing import Any, Final, Self
from urllib.error import URLError
from urllib.request import urlopen

import msgspec

from telemetry.admin import NoAnswerError, NotRunningError, ask
from telemetry.brokers import DEAD, HELD, SEALED, clean
from telemetry.config import Settings
from telemetry.demo.clients import Driven, drive
from telemetry.demo.people import World
from telemetry.demo.recorder import Recorder
from telemetry.errors import BrokerError, ConfigError
from telemetry.policy import load_policy, policy_dir
from telemetry.run import open_broker
from telemetry.testing.heap import HeapStandIn
from telemetry.testing.leaks import Finding, Leaks, files_under, received_by
from telemetry.testing.sentry import SentryStandIn

__all__ = ["Evidence", "Pipeline", "Verdict", "judge", "perform"]

_START_S: Final = 30.0
_STOP_S: Final = 30.0
_DRAIN_S: Final = 40.0
_POLL_S: Final = 0.1
_POLL_EVENTS: Final = 500
_KAFKA: Final = "kafka"
_URL = re.compile(rb"http://<any-key>@(127\.0\.0\.1:\d+)/")
_ADMIN = re.compile(rb"http://(127\.0\.0\.1:\d+)/metrics")
_RUN: Final = "import sys; from telemetry.cli import main; sys.argv[0] = 'telemetry'; main()"


class Pipeline:
    """``telemetry run`` as a child process, on free ports, sending to two stand-ins.

    Args:
        state: Its state directory.
        scratch: Folder for its settings and for what it prints.
        heap: Receives what is meant for Heap. sentry: What is meant for Sentry.
        settings: Which broker to use.

    Raises:
        ConfigError: It does not start; the message is what it said itself.
    """

    def __init__(
        self,
        state: Path,
        scratch: Path,
        *,
        heap: HeapStandIn,
        sentry: SentryStandIn,
        settings: Settings,
    ) -> None:
        self.state, self._output = state, scratch / "output.txt"
        config = scratch / "telemetry.toml"
        config.write_text(_config(settings), "utf-8")
        environ = {k: v for k, v in os.environ.items() if not k.startswith("TELEMETRY_")}
        environ |= {
            "TELEMETRY_SENTRY_DSN": sentry.dsn,
            "TELEMETRY_HEAP_URL": heap.url,
            "TELEMETRY_HEAP_APP_ID": heap.settings["app_id"],
            "TELEMETRY_BIND": "127.0.0.1:0",
            "TELEMETRY_ADMIN_BIND": "127.0.0.1:0",
            "NO_COLOR": "1",
        }
        self._command = [sys.executable, "-c", _RUN, "run", "--config", str(config)]
        self._command += ["--state", str(state)]
        self._environ = environ
        self._process: subprocess.Popen[bytes] | None = None
        self.url = self.admin_url = ""

    def __enter__(self) -> Self:
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(  # noqa: S603 - our own command
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environ,
            )
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline and self._process.poll() is None:
            said = self.output()
            taking, admin = _URL.search(said), _ADMIN.search(said)
            if taking and admin:
                self.url = f"http://{taking[1].decode()}"
                self.admin_url = f"http://{admin[1].decode()}"
                return self
            time.sleep(_POLL_S)
        self._end()
        last_words = self.output().decode("utf-8", "replace").strip()
        raise ConfigError(f"the pipeline of the demo does not start. It said:\n{last_words}")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def _end(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def output(self) -> bytes:
        """Give all it has printed."""
        return self._output.read_bytes()

    def books(self) -> dict[str, Any]:
        """Ask for its books.

        Raises:
            ConfigError: It is not there any more.
        """
        try:
            books: dict[str, Any] = ask(self.state, "GET", "/books")
        except (NoAnswerError, NotRunningError):
            raise ConfigError("the pipeline of the demo has ended too early") from None
        return books

    def metrics(self) -> bytes:
        """Give what its metrics endpoint shows to everybody."""
        try:
            with urlopen(f"{self.admin_url}/metrics", timeout=10) as answer:  # noqa: S310 - loopback
                shown: bytes = answer.read()
        except URLError:
            raise ConfigError("the pipeline of the demo shows no metrics") from None
        return shown


def _config(settings: Settings) -> str:
    """Write the settings of the child: its broker."""
    # What TOML calls a basic string or an integer, JSON writes alike.
    section = msgspec.to_builtins(settings.broker)
    lines = [f"{key} = {json.dumps(value)}" for key, value in section.items()]
    return "\n".join(["[broker]", *lines, ""])


def _with_own_topics(settings: Settings) -> Settings:
    """Give the demo topics and groups that nobody else has."""
    prefix = f"{settings.broker.topic_prefix}-demo-{token_hex(4)}"
    own = {"topic_prefix": prefix, "group_prefix": prefix, "partitions": 2, "replication": 1}
    return msgspec.structs.replace(settings, broker=msgspec.structs.replace(settings.broker, **own))


@contextmanager
def _topics(settings: Settings) -> Iterator[None]:
    """Lend the demo its topics, where a broker does not make what is asked for."""
    if settings.broker.kind != _KAFKA:
        yield
        return
    topics = importlib.import_module("telemetry.brokers.kafka.topics")
    wanted = topics.topics_for(settings.broker, load_policy(policy_dir(settings.policy.path)))
    # A broker that refuses makes topics by itself, or the pipeline says which one is missing.
    with suppress(BrokerError):
        topics.apply(settings.broker, wanted)
    try:
        yield
    finally:
        with suppress(BrokerError):
            topics.remove(settings.broker, wanted)


def _stored(settings: Settings) -> Iterator[tuple[str, bytes]]:
    """Read what lies on Kafka, as its administrator could."""
    broker = open_broker(settings)
    try:
        for stream in (SEALED, DEAD, HELD, clean("heap"), clean("sentry")):
            while (polled := broker.poll(stream, "search", _POLL_EVENTS)).parcels:
                for parcel in polled.parcels:
                    fields = [getattr(parcel, entry.name) for entry in dataclass_fields(parcel)]
                    raw = [f if isinstance(f, bytes) else str(f).encode() for f in fields]
                    yield f"topic {stream}", b"\n".join(raw)
                broker.finish(polled, {}, {})
    finally:
        broker.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All there is to be judged and shown, after the pipeline has stopped.

    Attributes:
        books: As ``telemetry books --json`` gives them.
        seconds: From the first request until the last delivery.
        published: What the pipeline printed and showed, its files while it ran, and what it left
            on Kafka.
    """

    world: World
    driven: Driven
    books: Mapping[str, Any]
    heap: HeapStandIn
    sentry: SentryStandIn
    recorder: Recorder
    state: Path
    published: tuple[tuple[str, bytes], ...]
    seconds: float

    @property
    def sent(self) -> Iterator[tuple[str, bytes]]:
        """What clients sent."""
        for number, request in enumerate(self.recorder.requests, 1):
            yield f"client request {number}", request.as_bytes()

    @property
    def let_out(self) -> Iterator[tuple[str, bytes]]:
        """Everything in which no planted value may be."""
        yield from received_by({"heap": self.heap, "sentry": self.sentry})
        yield from files_under(self.state)
        yield from self.published

    @property
    def events_per_second(self) -> int:
        """Events taken, over the whole time until all were delivered."""
        return round(int(self.books["events_in"]) / self.seconds)


def perform(
    state: Path,
    scratch: Path,
    settings: Settings,
    *,
    people: int = 40,
    progress: Callable[[str, int, int], None],
) -> Evidence:
    """Start the pipeline, let all clients send, wait for the last delivery, stop.

    Args:
        state: State directory of the pipeline; empty.
        scratch: Folder for what the demo itself needs.
        settings: Which broker.
        people: How many people there are.
        progress: Told what is going on, and how many of how many are done.

    Raises:
        ConfigError: Pipeline or applications do not start, or do not work any more.
    """
    world = World(people=people)
    settings = _with_own_topics(settings)
    with ExitStack() as stack:
        progress("starting the pipeline", 0, 1)
        stack.enter_context(_topics(settings))
        heap, sentry = stack.enter_context(HeapStandIn()), stack.enter_context(SentryStandIn())
        pipeline = stack.enter_context(
            Pipeline(state, scratch, heap=heap, sentry=sentry, settings=settings)
        )
        recorder = stack.enter_context(Recorder(pipeline.url))
        begun_at = time.monotonic()
        driven = drive(recorder.url, world, lambda n, of: progress("clients send", n, of))
        books = _delivered(pipeline, progress)
        seconds = time.monotonic() - begun_at
        published = [("metrics", pipeline.metrics())]
        # A file of the running log may hold what its orderly end would have tidied away.
        published += [(f"running, {name}", data) for name, data in files_under(state)]
        if settings.broker.kind == _KAFKA:
            published += _stored(settings)
    published.append(("output of the pipeline", pipeline.output()))
    return Evidence(
        world=world,
        driven=driven,
        books=books,
        heap=heap,
        sentry=sentry,
        recorder=recorder,
        state=state,
        published=tuple(published),
        seconds=seconds,
    )


def _delivered(pipeline: Pipeline, progress: Callable[[str, int, int], None]) -> dict[str, Any]:
    """Wait until nothing is under way; give the books."""
    deadline = time.monotonic() + _DRAIN_S
    while True:
        books = pipeline.books()
        waiting = sum(books["pending"].values())
        routed = sum(books["routed"].values())
        progress("recipients receive", sum(books["delivered"].values()), max(routed, 1))
        if not waiting or time.monotonic() > deadline:
            return books
        time.sleep(_POLL_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the evidence shows.

    Attributes:
        leaks: Planted values where they must not be.
        unsent: Planted values that no client sent: the search would have proved nothing.
        received: By recipient, what its stand-in counts: distinct events, users, sessions.
        complaints: What is wrong besides leaks, in sentences.
        searched_bytes: How much was searched for leaks.
    """

    leaks: tuple[Finding, ...]
    unsent: tuple[str, ...]
    received: Mapping[str, int]
    complaints: tuple[str, ...]
    searched_bytes: int

    @property
    def good(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.leaks or self.complaints)


def judge(evidence: Evidence) -> Verdict:
    """Search everything that came out for every value that went in, and compare all counts."""
    planted = evidence.world.planted
    leaks = Leaks(planted)
    searched = 0

    def counted() -> Iterator[tuple[str, bytes]]:
        nonlocal searched
        for place, data in evidence.let_out:
            searched += len(data)
            yield place, data

    found = leaks.search(counted())
    sent = {finding.name for finding in leaks.search(evidence.sent)}
    unsent = tuple(name for name in planted if name not in sent)
    received = {"heap": heap_count(evidence.heap), "sentry": sentry_count(evidence.sentry)}
    return Verdict(
        leaks=tuple(found),
        unsent=unsent,
        received=received,
        complaints=tuple(_complaints(evidence, unsent, received)),
        searched_bytes=searched,
    )


def heap_count(heap: HeapStandIn) -> int:
    """Count what Heap keeps: events by distinct id, and users; each is described once here."""
    return len(heap.events) + len(heap.users)


def sentry_count(sentry: SentryStandIn) -> int:
    """Count what Sentry keeps: events by distinct id, and items that have none."""
    return len(sentry.events) + sum(item.type != "event" for item in sentry.items)


def _complaints(
    evidence: Evidence, unsent: tuple[str, ...], received: Mapping[str, int]
) -> Iterator[str]:
    books = evidence.books
    if unsent:
        yield f"{len(unsent)} planted values were never sent, first {unsent[0]}."
    if not books["exact"]:
        yield "The sums of the books do not agree."
    if any(books["pending"].values()):
        yield "Not everything was delivered in time."
    for name, count in received.items():
        if books["delivered"][name] != count:
            yield f"The books say {books['delivered'][name]} went to {name}, which has {count}."
    if evidence.recorder.refused:
        yield f"{evidence.recorder.refused} requests of clients were not answered 200."
    for failure in dict.fromkeys(evidence.driven.failures):
        yield f"A client failed ({failure})."
    for name, stand_in in (("heap", evidence.heap), ("sentry", evidence.sentry)):
        for rule in dict.fromkeys(stand_in.violations):
            yield f"A rule of {name} was broken: {rule}"
