"""What clients sent: an HTTP relay on 127.0.0.1 in front of the gateway that keeps a copy.

It changes nothing. Without it one could not tell an empty search from a client that sent nothing.
"""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Final, Self

import aiohttp
from aiohttp import web

from telemetry.testing.stand_in import Request, inflate

__all__ = ["Recorder"]

_BODY_BYTES: Final = 256 * 1024 * 1024
_TOTAL_S: Final = 30.0
_NOT_PASSED_ON: Final = frozenset(
    ("connection", "content-length", "host", "keep-alive", "transfer-encoding")
)
"""Headers between two neighbours only (RFC 9110, 7.6.1)."""


class Recorder:
    """A relay to `target`, a base URL, in its own thread."""

    def __init__(self, target: str) -> None:
        self._target = target.rstrip("/")
        self.requests: list[Request] = []
        self.refused = 0
        """Answers other than 200."""
        self.url = ""
        self._ready, self._stop = threading.Event(), asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve()), name="recorder", daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._ready.wait(10):
            raise RuntimeError("The recorder cannot listen.")
        return self

    def __exit__(self, *_: object) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        timeout = aiohttp.ClientTimeout(total=_TOTAL_S)
        async with aiohttp.ClientSession(
            timeout=timeout, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()
        ) as self._session:
            server = web.Server(self._relay, auto_decompress=False, access_log=None)
            runner = web.ServerRunner(server, shutdown_timeout=0.1)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            self._ready.set()
            await self._stop.wait()
            await runner.cleanup()

    async def _relay(self, incoming: web.BaseRequest) -> web.Response:
        raw = await incoming.read()
        encoding = incoming.headers.get("Content-Encoding", "").strip().lower()
        decoded = inflate(raw, encoding, _BODY_BYTES)
        self.requests.append(
            Request(
                method=incoming.method,
                target=incoming.raw_path,
                headers=tuple(incoming.headers.items()),
                raw=raw,
                body=raw if decoded is None else decoded,
                at=time.time(),
            )
        )
        headers = [(k, v) for k, v in incoming.headers.items() if k.lower() not in _NOT_PASSED_ON]
        try:
            async with self._session.request(
                incoming.method, self._target + incoming.raw_path, data=raw, headers=headers
            ) as answer:
                body = await answer.read()
                self.refused += answer.status != 200  # noqa: PLR2004 - OK
                back = [
                    (k, v) for k, v in answer.headers.items() if k.lower() not in _NOT_PASSED_ON
                ]
                return web.Response(status=answer.status, body=body, headers=dict(back))
        except (aiohttp.ClientError, TimeoutError):
            self.refused += 1
            return web.Response(status=502)
