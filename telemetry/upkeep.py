"""What a vault needs beside the pipeline, unasked: rotation, rewrapping, forgetting, backups.

Owns when it happens and how little of it at a time. What is done stands in `telemetry.identity`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from telemetry import logs
from telemetry.errors import TelemetryError
from telemetry.identity import Identity

__all__ = ["Upkeep", "Work"]

_log: structlog.stdlib.BoundLogger = structlog.get_logger("telemetry.upkeep")
_EVERY_S: Final = 3600.0
_REST: Final = 4.0
"""After each piece, a pause of so many times its length: a fifth of one thread at most."""


@dataclass(slots=True)
class Work:
    """One piece of work on the vault and how far it is.

    Attributes:
        name: ``upkeep``, ``rewrap`` or ``backup``.
        done: From 0 to 1.
        running: Whether it goes on.
        error: What ended it; empty if nothing did.
    """

    name: str
    done: float = 0.0
    running: bool = True
    error: str = ""

    def as_json(self) -> dict[str, Any]:
        """Give it as the admin socket tells it."""
        return {
            "work": self.name,
            "done": round(self.done, 4),
            "running": self.running,
            "error": self.error,
        }


class Upkeep:
    """Works on the vault in small pieces, one work at a time, while events are processed.

    Args:
        identity: Whose vault.
        every_s: Seconds between two looks at what is due.
    """

    def __init__(self, identity: Identity, *, every_s: float = _EVERY_S) -> None:
        self._identity, self._every_s = identity, every_s
        self._turn = asyncio.Lock()
        self._stop = asyncio.Event()
        self.asked: Work | None = None
        """What somebody asked for last; not what is done each hour."""

    async def run(self, stop: asyncio.Event) -> None:
        """Do what is due, now and then each hour, until `stop` is set."""
        self._stop = stop
        while not stop.is_set():
            await self._do(Work("upkeep"), self._identity.upkeep)
            try:
                await asyncio.wait_for(stop.wait(), self._every_s)
            except TimeoutError:
                continue

    def rewrap(self, *, now: bool, keep: int) -> Coroutine[Any, Any, None]:
        """Do what is due at once; `now` rotates the wrap key whatever its age."""
        after = {"rotate_after": timedelta(0)} if now else {}
        self.asked = Work("rewrap")
        return self._do(self.asked, lambda: self._identity.upkeep(keep=keep, **after))

    def backup(self, path: Path) -> Coroutine[Any, Any, None]:
        """Copy the vault into a new file."""
        self.asked = Work("backup")
        return self._do(self.asked, lambda: self._identity.backup(path))

    async def stats(self) -> dict[str, Any]:
        """Count what is in the vault."""
        counted = await asyncio.get_running_loop().run_in_executor(None, self._identity.stats)
        answer: dict[str, Any] = msgspec.to_builtins(counted, str_keys=True)
        return answer

    async def _do(self, work: Work, begin: Callable[[], Iterator[float]]) -> None:
        """Do a work to its end, piece by piece, or until the pipeline stops."""
        loop = asyncio.get_running_loop()
        async with self._turn:
            with ThreadPoolExecutor(1, thread_name_prefix="upkeep") as thread:
                steps, over = begin(), False
                try:
                    while not (over or self._stop.is_set()):
                        began = time.monotonic()
                        done = await loop.run_in_executor(thread, next, steps, None)
                        over = done is None
                        if done is not None:
                            work.done = done
                            await asyncio.sleep(_REST * (time.monotonic() - began))
                except TelemetryError as error:
                    # Nothing is lost by it: what is due is due again within the hour.
                    work.error = str(error)
                    _log.warning("upkeep_failed", work=work.name, **logs.place(error))
                except Exception as error:  # noqa: BLE001 - whoever asked must be told; not its text
                    work.error = f"An error of ours ended it: {type(error).__name__}."
                    _log.error("upkeep_failed", work=work.name, **logs.place(error))
                finally:
                    if not (over or work.error):
                        work.error = "The pipeline stopped before it was through."
                    work.running = False
                    # What it ends with may wait for a disk.
                    await loop.run_in_executor(thread, _end, steps)


def _end(steps: Iterator[float]) -> None:
    close = getattr(steps, "close", None)
    if close is not None:
        close()
