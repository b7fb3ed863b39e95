"""What an operator ordered: which recipients wait, which policies were revoked. Outlives a process.

With the embedded log there is one process, and a file beside the log keeps what was ordered. On
Kafka an order must reach every process on every host: it is a record of a small topic that all
read (`telemetry.brokers.Board`), and each acts on it within two seconds.

Fails closed: a forwarder that could not ask the board for half a minute sends nothing until it can.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec
import structlog

from telemetry.brokers import Board, Order
from telemetry.errors import BrokerError, ConfigError, PolicyError
from telemetry.forward import Forwarder
from telemetry.policy import PolicyRegister

__all__ = ["Orders", "Paused"]

_log: structlog.stdlib.BoundLogger = structlog.get_logger("telemetry.orders")

_LOOK_S: Final = 1.0
_STALE_S: Final = 30.0


class Paused:
    """Which recipients were ordered to wait: a restart must not undo what an operator ordered."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> list[str]:
        """Name them.

        Raises:
            ConfigError: The file cannot be read.
        """
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=list[str])
        except FileNotFoundError:
            return []
        except (OSError, msgspec.MsgspecError):
            raise ConfigError(
                "cannot be read, so nobody knows which recipients were paused.",
                path=self._path,
                remedy="Remove it if none is to be.",
            ) from None

    def write(self, names: Iterable[str]) -> None:
        """Keep them, durably."""
        beside = self._path.with_suffix(".new")
        with beside.open("wb") as file:
            file.write(msgspec.json.encode(sorted(names)))
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self._path)


class Orders:
    """Keeps what was ordered, and sees that the forwarders of this process obey.

    Args:
        path: The file for the embedded log.
        board: What all processes share; None with the embedded log, and for roles that obey none.
        register: Which policies were revoked.
        recipients: To which orders may be given.
        release: Lets a stage of this process go on that its brake has stopped.
        monotonic: Seconds.
    """

    def __init__(
        self,
        path: Path,
        *,
        board: Board | None,
        register: PolicyRegister,
        recipients: Collection[str],
        release: Callable[[str], None] = lambda _stage: None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kept, self._board, self._register = Paused(path), board, register
        self.recipients, self._release = tuple(recipients), release
        self._monotonic = monotonic
        self.forwarders: Mapping[str, Forwarder] = {}
        self._here: set[str] = set()
        self._paused = set() if board is not None else set(self._kept.read())
        self._asked_at = float("-inf")
        self._lost = False
        self._first = True
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="orders")

    def govern(self, forwarders: Mapping[str, Forwarder]) -> list[str]:
        """Take these under orders; give the names of those that are to wait from the start."""
        self.forwarders = forwarders
        self._obey()
        return [name for name, forwarder in forwarders.items() if forwarder.paused]

    @property
    def shared(self) -> bool:
        """Whether an order reaches other processes, too."""
        return self._board is not None

    @property
    def known(self) -> bool:
        """Whether it is known what was ordered: as of half a minute ago at most."""
        return self._board is None or self._monotonic() - self._asked_at < _STALE_S

    async def pause(self, names: Collection[str]) -> None:
        """Let recipients wait: those of this process at once, others within seconds.

        Raises:
            BrokerError: Others were not told. Those of this process wait until it ends.
        """
        self._here.update(names)
        self._obey()
        await self._give(Order("recipient", name, "pause") for name in names)

    async def resume(self, names: Collection[str]) -> None:
        """Let recipients go on, also where the brake has stopped a forwarder.

        Raises:
            BrokerError: Not all of them were told; those that were go on.
        """
        if self._board is None:
            for name in names:
                self.forwarders[name].brake.release()
        await self._give(Order("recipient", name, "resume") for name in names)

    async def release(self, stage: str) -> None:
        """Let a stage go on that its brake has stopped, in whatever process it is.

        Raises:
            BrokerError: Others were not told.
        """
        if self._board is None:
            self._release(stage)
        else:
            await self._give([Order("stage", stage, "resume")])

    async def revoke(self, digest: str) -> None:
        """Tell others that a policy was revoked.

        Raises:
            BrokerError: They were not told.
        """
        if self._board is not None:
            await self._give([Order("policy", digest, "revoke")])

    async def run(self, stop: asyncio.Event) -> None:
        """Ask the board each second, until `stop` is set."""
        while not stop.is_set():
            await self._look()
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), _LOOK_S)

    def close(self) -> None:
        """Let go of the board."""
        self._thread.shutdown(wait=True)
        if self._board is not None:
            self._board.close()

    async def _give(self, orders: Iterable[Order]) -> None:
        if self._board is None:
            self._paused = (self._paused | self._here) & set(self.forwarders)
            for order in orders:
                if order.word == "resume":
                    self._paused.discard(order.name)
            self._here.clear()
            self._kept.write(self._paused)
            self._obey()
            return
        loop = asyncio.get_running_loop()
        for order in orders:
            await loop.run_in_executor(self._thread, self._board.give, order)
        await self._look()

    async def _look(self) -> None:
        if self._board is None:
            return
        at = self._monotonic()
        try:
            new = await asyncio.get_running_loop().run_in_executor(self._thread, self._board.look)
        except BrokerError as error:
            if not self._lost:
                _log.warning("orders_unknown", reason=str(error))
            self._lost = True
            return
        if self._lost:
            _log.info("orders_known")
        self._lost, self._asked_at = False, at
        for order in new:
            self._take(order)
        self._first = False
        self._obey()

    def _take(self, order: Order) -> None:
        """Obey one order of the board."""
        if order.sort == "policy":
            # What was revoked before is revoked already; that is no error.
            with suppress(PolicyError):
                self._register.enter(order.name, "revoked", datetime.now(UTC), by="role:orders")
            return
        if order.sort == "recipient":
            self._here.discard(order.name)
            (self._paused.add if order.word == "pause" else self._paused.discard)(order.name)
        # One that stands there since long ago was for a brake of that time.
        if order.word == "resume" and not self._first:
            if order.sort == "stage":
                self._release(order.name)
            elif order.name in self.forwarders:
                self.forwarders[order.name].brake.release()

    def _obey(self) -> None:
        for name, forwarder in self.forwarders.items():
            paused = name in self._paused or name in self._here
            if paused != forwarder.paused and self._board is not None:
                _log.warning("recipient_paused" if paused else "recipient_resumed", recipient=name)
            forwarder.paused = paused

    # ------------------------------------------------------------------ beside the embedded log
