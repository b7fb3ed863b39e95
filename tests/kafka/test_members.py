"""Several of each role share the work, come, go and die, and the books stay exact."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from telemetry.books import Books
from telemetry.brokers import SEALED, Entry
from telemetry.brokers.kafka import KafkaBroker
from telemetry.errors import BrokerError
from telemetry.testing.brokers import make_parcel
from tests.kafka.server import ROOT, KafkaServer
from tests.kafka.topics import grow_topics

IN, SEAL = Entry("edge", "items_in"), Entry("edge", "sealed")
ROLES = (SEALED, "heap", "sentry")
BATCH = 5


class Crew:
    """Processes of all roles on the topics of one test, and a gateway that never stops."""

    def __init__(self, folder: Path, bootstrap: str, opener: Callable[..., Any]) -> None:
        self.folder, self.bootstrap = folder, bootstrap
        self.open = opener(partitions=4)
        self.prefix: str = self.open.prefix
        self.members: dict[tuple[str, str], subprocess.Popen[bytes]] = {}
        self.acknowledged: list[int] = []
        self._stop = Event()
        self._thread = Thread(target=self._append_all, daemon=True)
        self._next = 0

    def _append_all(self) -> None:
        broker = self.open(timeout_s=3.0)
        while not self._stop.is_set():
            numbers = range(self._next, self._next + BATCH)
            self._next += BATCH
            try:
                broker.append(SEALED, [make_parcel(n) for n in numbers], {IN: BATCH, SEAL: BATCH})
            except BrokerError:
                time.sleep(0.1)
            else:
                self.acknowledged += numbers
            self._stop.wait(0.004)
        broker.close()

    def load(self) -> None:
        self._thread.start()

    def unload(self) -> None:
        self._stop.set()
        self._thread.join(20)

    def delivered(self, role: str, member: str = "*") -> Counter[int]:
        found: Counter[int] = Counter()
        for path in self.folder.glob(f"{role}-{member}.delivered"):
            found.update(int(line, 16) for line in path.read_text("utf-8").split())
        return found

    def start(self, role: str, member: str) -> None:
        command = [sys.executable, "-m", "tests.kafka.worker", role, self.bootstrap, self.prefix]
        command += [member, str(self.folder / f"{role}-{member}.delivered")]
        with (self.folder / "errors.txt").open("ab") as errors:
            self.members[role, member] = subprocess.Popen(  # noqa: S603 - our own command
                command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors
            )

    def end(self, role: str, member: str, how: signal.Signals) -> int:
        process = self.members.pop((role, member))
        process.send_signal(how)
        return process.wait(20)

    def until(self, condition: Callable[[], bool], timeout_s: float, what: str) -> None:
        end = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < end, f"{what}: {self.errors()[-1500:]}"
            time.sleep(0.05)

    def flows(self, timeout_s: float = 30.0) -> None:
        """Wait until an event that is appended from now on has reached both recipients."""
        start = self._next + BATCH
        for role in ROLES[1:]:
            self.until(
                lambda role=role: any(n >= start for n in self.delivered(role)),
                timeout_s,
                f"nothing new reaches {role}",
            )

    def errors(self) -> str:
        path = self.folder / "errors.txt"
        return path.read_text("utf-8") if path.exists() else ""

    def settle(self) -> Books:
        """Stop appending, wait until nothing is under way, and give the books."""
        self.unload()
        broker = self.open(timeout_s=10.0)

        def idle() -> bool:
            return not broker.pending()

        self.until(idle, 40.0, f"{broker.pending()} waits for ever")
        books = Books(broker.books(), broker.pending(), ROLES[1:])
        broker.close()
        return books

    def close(self) -> None:
        self._stop.set()
        for process in self.members.values():
            process.kill()
            process.wait()


@pytest.fixture
def crew(tmp_path: Path, bootstrap: str, opener: Callable[..., Any]) -> Iterator[Crew]:
    crew = Crew(tmp_path, bootstrap, opener)
    yield crew
    crew.close()


def check(crew: Crew, *, most_resent: int) -> None:
    """Nothing acknowledged is lost; the books agree, with themselves and with what arrived."""
    books = crew.settle()
    assert books.exact, [(b.name, b.difference) for b in books.balances]
    appended = books.entries[SEAL]
    assert appended >= len(crew.acknowledged) > 0
    for role in ROLES[1:]:
        arrived = crew.delivered(role)
        assert not set(crew.acknowledged) - set(arrived), f"{role} lost some"
        assert books.entries[Entry(role, "delivered")] == appended == len(arrived)
        assert sum(arrived.values()) - len(arrived) <= most_resent


def test_members_come_go_and_die_under_load_and_the_books_are_exact(crew: Crew) -> None:
    chance = random.Random(11)  # noqa: S311 - moments of death, no secret
    for role in ROLES:
        crew.start(role, "one")
    crew.load()
    crew.flows()
    for role in ROLES:  # two of each share the partitions
        crew.start(role, "two")
    crew.until(
        lambda: all(crew.delivered(role, "two") for role in ROLES[1:]),
        30,
        "the second of a role gets nothing to do",
    )
    kills = 0
    for _ in range(2):  # each of them dies wherever it is, and comes back under its name
        for role in ROLES:
            for member in ("one", "two"):
                assert crew.end(role, member, signal.SIGKILL) == -signal.SIGKILL
                kills += 1
                crew.start(role, member)
                time.sleep(chance.uniform(0.1, 0.5))
    crew.flows()
    for role in ROLES:  # one of each leaves for good; the other takes over
        assert crew.end(role, "one", signal.SIGTERM) == 0, crew.errors()[-1500:]
    crew.flows()
    # A forwarder that is killed has delivered at most one batch that it did not finish; a batch
    # that was on its way when a partition moved may be delivered by both.
    check(crew, most_resent=200 * (kills + 6))
    assert "Traceback" not in crew.errors()


def test_topics_that_grow_together_lose_nothing(crew: Crew) -> None:
    for role in ROLES:
        crew.start(role, "one")
    crew.load()
    crew.flows()
    streams = ("clean.heap", "clean.sentry", "dead", "held", SEALED)
    for stream in streams:  # clean ones first: the order of `telemetry topics apply`
        grow_topics(crew.bootstrap, crew.prefix, 6, [stream])
    time.sleep(2.5)  # clients look at the topics anew each second here
    crew.flows()
    check(crew, most_resent=200 * 6)
    broker: KafkaBroker = crew.open()
    used = {
        partition.partition
        for partition, (offset, _) in broker._commits(SEALED, "pseudonymizer").items()
        if offset > 0
    }
    assert used == set(range(6))


def test_a_restart_of_the_broker_loses_nothing(crew: Crew, server: KafkaServer) -> None:
    if crew.bootstrap != server.bootstrap:
        pytest.skip("a broker that is not ours is not restarted (kafka of our own is)")
    for role in ROLES:
        crew.start(role, "one")
    crew.load()
    crew.flows()
    server.kill()
    time.sleep(1.0)
    before = len(crew.acknowledged)
    server.start()
    crew.flows(60.0)
    assert len(crew.acknowledged) > before
    check(crew, most_resent=200 * 6)


def test_a_second_process_of_one_name_takes_over_and_the_first_ends_with_an_error(
    crew: Crew,
) -> None:
    crew.start("heap", "one")
    crew.start(SEALED, "one")
    crew.load()
    crew.until(lambda: bool(crew.delivered("heap")), 30, "nothing arrives")
    first = crew.members.pop(("heap", "one"))
    crew.start("heap", "one")
    assert first.wait(30) == 1
    crew.start("sentry", "one")
    crew.flows()
    check(crew, most_resent=400)
