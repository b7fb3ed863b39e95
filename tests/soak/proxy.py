"""A proxy on 127.0.0.1 that spoils what goes through it: bytes only, it knows no HTTP.

====================== =========================================================================
fault                  what the two sides see
====================== =========================================================================
``refuse``             a connection is reset as soon as it stands
``delay``              what is sent arrives `delay_s` later
``cut``                half of what is sent arrives, then the connection is reset
``reset``              nothing of what is sent arrives, the connection is reset
``half_open``          what is sent is swallowed, nothing comes back; reset when the fault is over
``mute``               all that is sent arrives; instead of the answer comes a reset
``cut_answer``         half of the answer arrives, then a reset
``garbage``            bytes that are no HTTP come instead of the answer, then the end
====================== =========================================================================
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Literal, Self, get_args

__all__ = ["FAULTS", "Fault", "Proxy"]

Fault = Literal["refuse", "delay", "cut", "reset", "half_open", "mute", "cut_answer", "garbage"]
FAULTS: Final[tuple[Fault, ...]] = get_args(Fault)
_WAY: Final = {
    **dict.fromkeys(("delay", "cut", "reset", "half_open"), "up"),
    **dict.fromkeys(("mute", "cut_answer", "garbage"), "down"),
    "refuse": "accept",
}
_CHUNK: Final = 65536
_GARBAGE: Final = b"\x16\x03\x01\x02\x00 HTTP/9.9 two hundred\r\n\r\r\n\0\xff"
_RESET: Final = struct.pack("ii", 1, 0)
_LOOK_S: Final = 0.02


@dataclass(slots=True)
class _Spoil:
    fault: Fault
    left: int | None
    until: float | None
    delay_s: float
    healed: bool = False

    def over(self) -> bool:
        return (self.left is not None and self.left <= 0) or (
            self.until is not None and time.monotonic() >= self.until
        )


class Proxy:
    """Listens on a port of its own, in a thread of its own, and connects to `target_port`.

    Attributes:
        struck: How often each fault met something.
    """

    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self.port = 0
        self.struck: Counter[str] = Counter()
        self._spoils: list[_Spoil] = []
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    def spoil(
        self,
        fault: Fault,
        *,
        count: int | None = None,
        seconds: float | None = None,
        delay_s: float = 0.0,
    ) -> None:
        """Spoil the next `count` chunks, or all for some `seconds`, or until `heal`."""
        until = None if seconds is None else time.monotonic() + seconds
        with self._lock:
            self._spoils.append(_Spoil(fault, count, until, delay_s))

    def heal(self) -> None:
        """End all faults; what was swallowed by a half-open connection is reset."""
        with self._lock:
            for spoil in self._spoils:
                spoil.healed = True
            self._spoils.clear()

    def __enter__(self) -> Self:
        self._thread.start()
        self.port = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.heal()
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _listen(self) -> int:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _end(self) -> None:
        self._server.close()
        running = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _met(self, way: str) -> _Spoil | None:
        with self._lock:
            self._spoils = [spoil for spoil in self._spoils if not spoil.over()]
            for spoil in self._spoils:
                if _WAY[spoil.fault] == way:
                    if spoil.left is not None:
                        spoil.left -= 1
                    self.struck[spoil.fault] += 1
                    return spoil
        return None

    async def _connected(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        if self._met("accept") is not None:
            _reset(client)
            return
        try:
            from_server, server = await asyncio.open_connection("127.0.0.1", self.target_port)
        except OSError:
            _reset(client)
            return
        pumps = [
            asyncio.ensure_future(self._pump(reader, server, "up")),
            asyncio.ensure_future(self._pump(from_server, client, "down")),
        ]
        try:
            # Whichever side ends first ends both: nobody here closes only one direction.
            done, _ = await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            if all(not pump.cancelled() and pump.exception() is None for pump in done):
                for writer in (client, server):
                    writer.close()
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            for writer in (client, server):
                if not writer.is_closing():
                    _reset(writer)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str
    ) -> None:
        """Carry one direction. Ends at the end of the stream; raises if it was spoilt."""
        while chunk := await reader.read(_CHUNK):
            spoil = self._met(way)
            if spoil is not None:
                chunk = await self._spoilt(spoil, chunk, writer)
            writer.write(chunk)
            await writer.drain()

    async def _spoilt(self, spoil: _Spoil, chunk: bytes, writer: asyncio.StreamWriter) -> bytes:
        if spoil.fault == "delay":
            await asyncio.sleep(spoil.delay_s)
            return chunk
        if spoil.fault == "half_open":
            end = time.monotonic() + 60.0 if spoil.until is None else spoil.until
            # Healed from another thread, which owns no event of this loop.
            while time.monotonic() < end and not spoil.healed:  # noqa: ASYNC110
                await asyncio.sleep(_LOOK_S)
        if spoil.fault in ("cut", "cut_answer", "garbage"):
            writer.write(_GARBAGE if spoil.fault == "garbage" else chunk[: len(chunk) // 2])
            with contextlib.suppress(ConnectionError):
                await writer.drain()
            await asyncio.sleep(_LOOK_S)  # let it out before the reset overtakes it
        raise ConnectionResetError


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection so that the other side is told of a reset."""
    found = writer.get_extra_info("socket")
    with contextlib.suppress(OSError, AttributeError):
        found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
