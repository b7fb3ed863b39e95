"""A recipient on 127.0.0.1: a real HTTP server in its own thread, with faults on demand.

Owns connections, recording, decompression and faults; a subclass owns one vendor's rules. What is
recorded stays in memory: a stand-in is for tests and the demo, never for a service.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import parse_qs, urlsplit

from aiohttp import web

__all__ = ["Reply", "Request", "StandIn", "inflate"]

_BODY_BYTES: Final = 256 * 1024 * 1024
_CHUNK = b"\0" * 65536


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request as it came.

    Attributes:
        method: ``POST``…
        target: Path and query as on the request line.
        headers: In order, as received.
        raw: The body as received.
        body: The body after its ``Content-Encoding``; equal to `raw` if that is not understood.
        at: Unix time of receipt.
    """

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    raw: bytes = field(repr=False)
    body: bytes = field(repr=False)
    at: float

    @property
    def path(self) -> str:
        """The target without its query."""
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, list[str]]:
        """The query's values by name."""
        return parse_qs(urlsplit(self.target).query, keep_blank_values=True)

    def header(self, name: str) -> str:
        """Give the value of a header, ``""`` without one, joined by commas if it came twice."""
        return ", ".join(value for key, value in self.headers if key.lower() == name.lower())

    def as_bytes(self) -> bytes:
        """Give all that was received, for a search for leaks."""
        head = "".join(f"{name}: {value}\r\n" for name, value in self.headers)
        return b"%s %s HTTP/1.1\r\n%s\r\n%s\r\n%s" % (
            self.method.encode(),
            self.target.encode("utf-8", "surrogateescape"),
            head.encode("utf-8", "surrogateescape"),
            self.raw,
            self.body if self.body != self.raw else b"",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a vendor's rules answer."""

    status: int = 200
    body: bytes = b"{}"
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class _Fault:
    """What goes wrong instead of, or after, an answer."""

    reply: Reply | None
    stored: bool = False
    delay_s: float = 0.0
    drop: bool = False
    size: int = 0
    byte_s: float = 0.0
    left: int | None = None
    until: float | None = None
    where: Callable[[Request], bool] | None = None

    def strikes(self, request: Request, now: float) -> bool:
        if self.over(now) or (self.where is not None and not self.where(request)):
            return False
        if self.left is not None:
            self.left -= 1
        return True

    def over(self, now: float) -> bool:
        return (self.left is not None and self.left <= 0) or (
            self.until is not None and now >= self.until
        )


class StandIn(ABC):
    """A vendor's HTTP interface, as strict as its documentation.

    Use it with ``with`` or ``async with``, from any thread. What a request breaks is listed in
    `violations`; tests assert that it is empty.

    Args:
        port: 0 takes a free one.
    """

    def __init__(self, *, port: int = 0) -> None:
        self.port = port
        self.violations: list[str] = []
        self.requests: list[Request] = []
        self.answered_bytes = 0
        """How much of long bodies (`fail(size=...)`) a client has let us write."""
        self._faults: list[_Fault] = []
        self._announced: list[tuple[dict[str, str], int | None]] = []
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None

    @property
    def url(self) -> str:
        """Base address, without a trailing slash."""
        return f"http://127.0.0.1:{self.port}"

    @property
    @abstractmethod
    def settings(self) -> Mapping[str, str]:
        """What a sink must be given to reach this server: its keyword arguments."""

    @abstractmethod
    def latest(self) -> dict[str, list[Any]]:
        """What came last, for ``GET /``: a person who tries this wants to look at it."""

    @abstractmethod
    def answer(self, request: Request) -> Reply:
        """Apply the vendor's rules to one request and keep what it delivers."""

    # Life

    def start(self) -> Self:
        """Listen. Returns when connections are taken."""
        up: list[BaseException | None] = []
        ready = threading.Event()
        self._thread = threading.Thread(
            target=self._serve, args=(up, ready), name=type(self).__name__, daemon=True
        )
        self._thread.start()
        ready.wait(10)
        if not up or up[0] is not None:
            raise RuntimeError("The stand-in cannot listen.") from (up[0] if up else None)
        return self

    def stop(self) -> None:
        """Close the port and all connections. What was recorded stays."""
        if self._thread is not None and self._loop is not None and self._stop is not None:
            with contextlib.suppress(RuntimeError):  # the loop ended by itself
                self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(10)
            self._thread = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.start)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await asyncio.to_thread(self.stop)

    # Faults

    def fail(  # noqa: PLR0913 - all by keyword
        self,
        *,
        status: int = 503,
        count: int | None = None,
        seconds: float | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        size: int = 0,
        byte_s: float = 0.0,
        stored: bool = False,
        where: Callable[[Request], bool] | None = None,
    ) -> None:
        """Answer with `status`, without storing, until `count` or `seconds` are over or `heal`.

        Args:
            status: HTTP status.
            count: How many requests.
            seconds: For how long.
            headers: Headers of the answer, for example ``Retry-After``.
            body: Body of the answer.
            size: Send a body of this many zero bytes instead.
            byte_s: Pause before each byte of the body, seconds.
            stored: Apply the vendor's rules first: what is delivered counts, the answer is lost.
            where: Only requests of which this says so.
        """
        self._break(
            _Fault(
                reply=Reply(status=status, body=body, headers=dict(headers or {})),
                size=size,
                byte_s=byte_s,
                stored=stored,
                left=count,
                where=where,
            ),
            seconds,
        )

    def slow(self, delay_s: float, *, count: int | None = None, stored: bool = True) -> None:
        """Wait before each answer. The default is a server that stores, then answers too late."""
        self._break(_Fault(reply=None, delay_s=delay_s, left=count, stored=stored), None)

    def drop(
        self, *, count: int | None = None, seconds: float | None = None, stored: bool = False
    ) -> None:
        """Reset the connection instead of answering; with `stored`, after storing."""
        self._break(_Fault(reply=None, drop=True, left=count, stored=stored), seconds)

    def announce(self, headers: Mapping[str, str], *, count: int | None = None) -> None:
        """Add headers to ordinary answers, for example ``X-Sentry-Rate-Limits`` on a 200."""
        with self._lock:
            self._announced.append((dict(headers), count))

    def heal(self) -> None:
        """End all faults and announcements."""
        with self._lock:
            self._faults.clear()
            self._announced.clear()

    def _break(self, fault: _Fault, seconds: float | None) -> None:
        fault.until = None if seconds is None else time.monotonic() + seconds
        with self._lock:
            self._faults.append(fault)

    # Views

    def received_bytes(self) -> bytes:
        """Give everything ever received: request lines, headers, raw and decoded bodies."""
        with self._lock:
            return b"\n".join(request.as_bytes() for request in self.requests)

    def wait(self, until: Callable[[Self], bool], timeout_s: float = 10.0) -> bool:
        """Block until a condition on this stand-in holds; tell whether it does."""
        with self._changed:
            return self._changed.wait_for(lambda: until(self), timeout_s)

    def violate(self, rule: str) -> None:
        """Note a broken rule."""
        with self._lock:
            self.violations.append(rule)

    # The server's own thread

    def _serve(self, up: list[BaseException | None], ready: threading.Event) -> None:
        async def main() -> None:
            self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
            server = web.Server(self._handle, auto_decompress=False, access_log=None)
            runner = web.ServerRunner(server, shutdown_timeout=0.1)
            try:
                await runner.setup()
                site = web.TCPSite(runner, "127.0.0.1", self.port)
                await site.start()
                self.port = runner.addresses[0][1]
            except OSError as error:
                up.append(error)
                ready.set()
                return
            up.append(None)
            ready.set()
            await self._stop.wait()
            await runner.cleanup()

        asyncio.run(main())

    async def _handle(self, incoming: web.BaseRequest) -> web.StreamResponse:
        raw = bytearray()
        async for chunk in incoming.content.iter_any():
            raw += chunk
            if len(raw) > _BODY_BYTES:
                return web.Response(status=413)
        encoding = incoming.headers.get("Content-Encoding", "").strip().lower()
        decoded = inflate(bytes(raw), encoding, _BODY_BYTES)
        if incoming.method == "GET" and incoming.rel_url.path == "/":
            return web.json_response(self.latest(), dumps=lambda seen: json.dumps(seen, indent=1))
        request = Request(
            method=incoming.method,
            target=incoming.raw_path,
            headers=tuple(incoming.headers.items()),
            raw=bytes(raw),
            body=bytes(raw) if decoded is None else decoded,
            at=time.time(),
        )
        reply, fault = self._decide(request, readable=decoded is not None)
        if fault is not None and fault.delay_s:
            await asyncio.sleep(fault.delay_s)
        if fault is not None and fault.drop and incoming.transport is not None:
            incoming.transport.abort()
        if fault is not None and (fault.size or fault.byte_s):
            return await self._trickle(incoming, reply, fault)
        return web.Response(status=reply.status, body=reply.body, headers=_typed(reply))

    async def _trickle(
        self, incoming: web.BaseRequest, reply: Reply, fault: _Fault
    ) -> web.StreamResponse:
        response = web.StreamResponse(status=reply.status, headers=_typed(reply))
        await response.prepare(incoming)
        left = fault.size
        with contextlib.suppress(ConnectionError):
            while left > 0:
                await response.write(_CHUNK[:left])
                left -= len(_CHUNK)
                self.answered_bytes += len(_CHUNK)
            for byte in reply.body:
                await asyncio.sleep(fault.byte_s)
                await response.write(bytes((byte,)))
            await response.write_eof()
        return response

    def _decide(self, request: Request, *, readable: bool) -> tuple[Reply, _Fault | None]:
        """Record, look for a fault, apply the rules: one request at a time, so counts are exact."""
        with self._changed:
            self.requests.append(request)
            now = time.monotonic()
            self._faults = [fault for fault in self._faults if not fault.over(now)]
            fault = next((one for one in self._faults if one.strikes(request, now)), None)
            reply = Reply()
            if fault is None or fault.stored:
                if readable:
                    reply = self.answer(request)
                else:
                    self.violations.append("body: unreadable content encoding")
                    reply = Reply(status=415, body=b"")
            if fault is not None and fault.reply is not None:
                reply = fault.reply
            extra = dict[str, str]()
            for i, (headers, left) in reversed(list(enumerate(self._announced))):
                extra |= headers
                if left is not None:
                    self._announced[i] = (headers, left - 1)
                    if left <= 1:
                        del self._announced[i]
            if extra and fault is None:
                reply = Reply(
                    status=reply.status, body=reply.body, headers={**reply.headers, **extra}
                )
            self._changed.notify_all()
        return reply, fault


def _typed(reply: Reply) -> dict[str, str]:
    given = {name.lower() for name in reply.headers}
    plain = {} if "content-type" in given else {"Content-Type": "application/json"}
    return {**plain, **reply.headers}


def inflate(raw: bytes, encoding: str, limit: int) -> bytes | None:
    """Undo a ``Content-Encoding``.

    Returns:
        The bytes; None if the encoding is unknown, the data is damaged, or there are more than
        `limit` of them.
    """
    if encoding in {"", "identity"}:
        return raw if len(raw) <= limit else None
    unpack = {
        "gzip": _zlib,
        "x-gzip": _zlib,
        "deflate": _zlib,
        "br": _brotli,
        "zstd": _zstd,
    }.get(encoding)
    body = bytearray()
    try:
        for chunk in () if unpack is None else unpack(raw):
            body += chunk
            if len(body) > limit:
                return None
    except ValueError:
        return None
    return None if unpack is None else bytes(body)


def _zlib(raw: bytes) -> Iterator[bytes]:
    # 47: gzip or zlib, whichever it is. Some clients mean the bare format by "deflate".
    for bits in (47, -15):
        with contextlib.suppress(zlib.error):
            unpack = zlib.decompressobj(bits)
            chunks = [unpack.decompress(raw, _BODY_BYTES + 1)]
            if unpack.eof:
                yield from chunks
                return
    raise ValueError


def _brotli(raw: bytes) -> Iterator[bytes]:
    import brotli  # noqa: PLC0415 - only who receives it needs it

    unpack = brotli.Decompressor()
    try:
        for start in range(0, len(raw), 1024):
            yield unpack.process(raw[start : start + 1024])
    except brotli.error:
        raise ValueError from None
    if not unpack.is_finished():
        raise ValueError


def _zstd(raw: bytes) -> Iterator[bytes]:
    import zstandard  # noqa: PLC0415 - only who receives it needs it

    try:
        yield from zstandard.ZstdDecompressor().read_to_iter(raw)
    except zstandard.ZstdError:
        raise ValueError from None
