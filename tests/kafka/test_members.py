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
from typing import Any

import pytest

from telemetry.books import Books
from telemetry.brokers import SEALED, Entry
from telemetry.brokers.kafka import KafkaBroker
from telemetry.errors import BrokerError
from tests.kafka.server import ROOT, KafkaServer
from tests.kafka.topics import grow_topics
from tests.kafka.worker import GATEWAY, RECIPIENTS

SEAL = Entry("edge", "sealed")
ROLES = (SEALED, *RECIPIENTS)
FIRST, SECOND = "0", "100000"


class Crew:
    """Processes of all roles on the topics of one test."""

    def __init__(self, folder: Path, bootstrap: str, opener: Callable[..., Any]) -> None:
        self.folder, self.bootstrap = folder, bootstrap
        self.open = opener(partitions=4)
        self.prefix: str = self.open.prefix
        self.members: dict[tuple[str, str], subprocess.Popen[bytes]] = {}

    @property
    def acknowledged(self) -> set[int]:
        return set(self.delivered(GATEWAY))

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
        """Wait until an event that is acknowledged from now on has reached both recipients."""
        before = self.acknowledged
        self.until(lambda: bool(self.acknowledged - before), timeout_s, "nothing is taken")
        new = self.acknowledged - before
        for role in RECIPIENTS:
            self.until(
                lambda role=role: bool(new & set(self.delivered(role))),
                timeout_s,
                f"nothing new reaches {role}",
            )

    def errors(self) -> str:
        path = self.folder / "errors.txt"
        return path.read_text("utf-8") if path.exists() else ""

    def settle(self) -> Books:
        """Stop the gateways, wait until nothing is under way, and give the books."""
        for role, member in list(self.members):
            if role == GATEWAY:
                self.end(role, member, signal.SIGTERM)
        broker = self.open(timeout_s=10.0)

        def idle() -> bool:
            return not broker.pending()

        self.until(idle, 60.0, f"{broker.pending()} waits for ever")
        books = Books(*broker.snapshot(), RECIPIENTS)
        broker.close()
        return books

    def close(self) -> None:
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
    acknowledged = crew.acknowledged
    assert appended >= len(acknowledged) > 0
    for role in RECIPIENTS:
        arrived = crew.delivered(role)
        assert not acknowledged - set(arrived), f"{role} lost some"
        assert books.entries[Entry(role, "delivered")] == appended == len(arrived)
        assert sum(arrived.values()) - len(arrived) <= most_resent


def test_members_come_go_and_die_topics_grow_the_broker_restarts_and_the_books_are_exact(
    crew: Crew, server: KafkaServer
) -> None:
    chance = random.Random(11)  # noqa: S311 - moments of death, no secret
    reader: KafkaBroker = crew.open(timeout_s=10.0)

    def exact_after(what: str) -> None:
        """The sums agree at every moment, while everybody works."""
        crew.flows(60.0)
        looked = 0
        while looked < 3:
            try:
                books = Books(*reader.snapshot(), RECIPIENTS)
            except BrokerError:  # its connections died with the broker; the next call has others
                time.sleep(0.2)
                continue
            looked += 1
            assert books.exact, (what, [(b.name, b.difference) for b in books.balances])
        assert "Traceback" not in crew.errors(), what

    for role in ROLES:
        crew.start(role, "one")
    crew.start(GATEWAY, FIRST)
    exact_after("the start")
    for role in ROLES:  # two of each share the partitions
        crew.start(role, "two")
    crew.start(GATEWAY, SECOND)
    crew.until(
        lambda: all(crew.delivered(role, "two") for role in RECIPIENTS),
        30,
        "the second of a role gets nothing to do",
    )
    exact_after("others have joined")
    kills = 0
    for role in ROLES:  # each of them dies wherever it is, and comes back under its name
        for member in ("one", "two"):
            assert crew.end(role, member, signal.SIGKILL) == -signal.SIGKILL
            kills += 1
            crew.start(role, member)
            time.sleep(chance.uniform(0.1, 0.4))
    assert crew.end(GATEWAY, FIRST, signal.SIGKILL) == -signal.SIGKILL
    crew.start(GATEWAY, FIRST)
    exact_after("everybody was killed")
    for stream in ("clean.heap", "clean.sentry", "dead", "held", SEALED):
        # Clean ones first: the order of `telemetry topics apply`.
        grow_topics(crew.bootstrap, crew.prefix, 6, [stream])
    crew.until(lambda: reads_all_of(reader, 6), 60, "nobody reads the new partitions")
    exact_after("topics have grown")
    if crew.bootstrap == server.bootstrap:  # one that is not ours is not restarted
        before = crew.acknowledged
        server.kill()
        server.start()
        crew.until(lambda: len(crew.acknowledged) > len(before), 60, "no event is taken any more")
        exact_after("the broker was killed")
    for role in ROLES:  # one of each leaves for good; the other takes over
        assert crew.end(role, "one", signal.SIGTERM) == 0, crew.errors()[-1500:]
    exact_after("some have left")
    # A forwarder that is killed has delivered at most one batch that it did not finish; a batch
    # that was on its way when a partition moved may be delivered by both.
    check(crew, most_resent=200 * (kills + 12))


def reads_all_of(reader: KafkaBroker, partitions: int) -> bool:
    """Tell whether the pseudonymizers have finished something in every partition."""
    commits = reader._commits(SEALED, "pseudonymizer")
    return len(commits) == partitions


def test_a_second_process_of_one_name_takes_over_and_the_first_ends_with_an_error(
    crew: Crew,
) -> None:
    crew.start("heap", "one")
    crew.start(SEALED, "one")
    crew.start(GATEWAY, FIRST)
    crew.until(lambda: bool(crew.delivered("heap")), 30, "nothing arrives")
    first = crew.members.pop(("heap", "one"))
    crew.start("heap", "one")
    assert first.wait(30) == 1
    crew.start("sentry", "one")
    crew.flows()
    check(crew, most_resent=400)
