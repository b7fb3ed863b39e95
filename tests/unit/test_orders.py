"""An order holds over restarts, in every process; where nobody knows of any, nothing leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from telemetry.brokers import Order
from telemetry.errors import BrokerError, ConfigError
from telemetry.orders import Orders
from telemetry.policy import PolicyRegister

DIGEST = "c0ffee" * 10 + "c0ff"


class Log:
    """What all boards share."""

    def __init__(self) -> None:
        self.orders: list[Order] = []
        self.away = False


class MemoryBoard:
    """A board in memory, with the promises of the one on Kafka."""

    def __init__(self, log: Log) -> None:
        self._log, self._next = log, 0

    def look(self) -> list[Order]:
        if self._log.away:
            raise BrokerError("Kafka failed.")
        new, self._next = self._log.orders[self._next :], len(self._log.orders)
        return new

    def give(self, order: Order) -> None:
        if self._log.away:
            raise BrokerError("Kafka failed.")
        self._log.orders.append(order)

    def close(self) -> None:
        pass


class Process:
    """One process with forwarders, on a clock of its own."""

    def __init__(self, folder: Path, log: Log | None, *names: str) -> None:
        folder.mkdir(exist_ok=True)
        self.now = 100.0
        self.released: list[str] = []
        self.register = PolicyRegister(folder / "policies.ndjson")
        self.orders = Orders(
            folder / "paused.json",
            board=None if log is None else MemoryBoard(log),
            register=self.register,
            recipients=("heap", "sentry"),
            release=self.released.append,
            monotonic=lambda: self.now,
        )
        self.forwarders: dict[str, Any] = {name: self._forwarder(name) for name in names}
        self.waiting = self.orders.govern(self.forwarders)

    def _forwarder(self, name: str) -> Any:
        brake = SimpleNamespace(release=lambda: self.released.append(name))
        return SimpleNamespace(paused=False, brake=brake)

    async def look(self) -> None:
        """Go on for a moment, as `Orders.run` does each second."""
        stop = asyncio.Event()
        task = asyncio.create_task(self.orders.run(stop))
        await asyncio.sleep(0.05)
        stop.set()
        await task

    def paused(self) -> list[str]:
        return [name for name, forwarder in self.forwarders.items() if forwarder.paused]


@pytest.fixture
def process(tmp_path: Path) -> Any:
    made: list[Process] = []

    def make(folder: str, log: Log | None, *names: str) -> Process:
        made.append(Process(tmp_path / folder, log, *names))
        return made[-1]

    yield make
    for one in made:
        one.orders.close()


Make = Callable[..., Process]


async def test_beside_the_embedded_log_a_file_keeps_what_was_ordered(process: Make) -> None:
    one = process("a", None, "heap", "sentry")
    assert one.orders.known
    await one.orders.pause(["heap"])
    assert one.paused() == ["heap"]
    again = process("a", None, "heap", "sentry")
    assert again.waiting == again.paused() == ["heap"]
    await again.orders.resume(["heap"])
    assert (again.paused(), again.released) == ([], ["heap"])
    assert process("a", None, "heap", "sentry").waiting == []


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, process: Make) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "paused.json").write_text("[", "utf-8")
    with pytest.raises(ConfigError, match="nobody knows which recipients"):
        process("a", None, "heap")


async def test_an_order_reaches_every_process_and_one_that_comes_later(process: Make) -> None:
    log = Log()
    keys, one, two = process("k", log), process("a", log, "heap"), process("b", log, "heap")
    other = process("c", log, "sentry")
    for each in (one, two, other):
        assert not each.orders.known, "before it has asked"
        await each.look()
        assert each.orders.known
    await keys.orders.pause(["heap"])
    for each in (one, two, other):
        await each.look()
    assert (one.paused(), two.paused(), other.paused()) == (["heap"], ["heap"], [])
    late = process("d", log, "heap", "sentry")
    await late.look()
    assert late.paused() == ["heap"]
    await other.orders.resume(["heap"])
    for each in (one, two, late):
        await each.look()
        assert each.paused() == []
        assert each.released == ["heap"], "to go on is to go on past the brake"
    newest = process("e", log, "heap")
    await newest.look()
    assert newest.released == [], "it was for a brake of that time"


async def test_who_cannot_ask_for_half_a_minute_knows_nothing(process: Make) -> None:
    log = Log()
    one = process("a", log, "heap")
    await one.look()
    log.away = True
    one.now += 29
    await one.look()
    assert one.orders.known
    one.now += 2
    await one.look()
    assert not one.orders.known
    log.away = False
    await one.look()
    assert one.orders.known


async def test_an_order_that_kafka_does_not_take_holds_here_and_is_told(process: Make) -> None:
    log = Log()
    one, two = process("a", log, "heap"), process("b", log, "heap")
    await one.look()
    log.away = True
    with pytest.raises(BrokerError):
        await one.orders.pause(["heap"])
    assert one.paused() == ["heap"], "it protects"
    with pytest.raises(BrokerError):
        await one.orders.resume(["heap"])
    assert one.paused() == ["heap"], "nobody was told to go on"
    log.away = False
    await one.look()
    await two.look()
    assert (one.paused(), two.paused()) == (["heap"], [])
    await one.orders.resume(["heap"])
    assert one.paused() == []


async def test_a_stage_and_a_policy_are_told_of_wherever_they_are(process: Make) -> None:
    log = Log()
    keys, one = process("k", log), process("a", log, "heap")
    for each in (keys, one):
        each.register.enter(DIGEST, "live", datetime.now(UTC))
        await each.look()
    await one.orders.release("pseudonymizer")
    await keys.look()
    assert keys.released == ["pseudonymizer"]
    await keys.orders.revoke(DIGEST)
    await one.look()
    assert not one.register.accepts(DIGEST)
    await one.orders.revoke(DIGEST)
    await one.look()  # twice is no error
