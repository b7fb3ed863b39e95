"""The edge behind HTTP: takes what any client sends, answers 200 when it is durable.

Owns HTTP: paths, credentials, bodies, deadlines, quotas and answers. Knows no wire format beyond
its entry point (`telemetry.dialects`) and nothing of what an event holds.

====================================== =========================================================
``POST``                               takes
====================================== =========================================================
``/api/PROJECT/envelope/``             Sentry envelopes
``/tunnel``                            the same; their ``dsn`` says whose they are
``/api/PROJECT/store/``                one Sentry event; also ``/api/store/``
``/api/PROJECT/security/``             what browsers report; also ``csp-report/``
``/api/PROJECT/minidump/``             counted and gone, read without being held; also ``nel/``,
                                       ``unreal/KEY/``, ``events/ID/attachments/``
``/api/track``                         Heap events, one or up to 1000
``/api/add_user_properties``           Heap users, one or up to 1000
``/api/add_account_properties``        counted and gone: no purpose covers them
``/api/v1/identify``                   counted and gone: no purpose covers it
``/v1/events``                         our own: JSON object, array, or NDJSON
====================================== =========================================================

``GET /health/ready`` is 200 or 503. Sentry's paths may have a prefix. Repeated slashes and a
missing last slash do not matter. Content types: none, JSON, NDJSON, envelope, plain text, form
types, octets; encodings: gzip, deflate, br, zstd, one at a time.

Whatever is not 200 is answered with JSON, ``{"detail": …, "causes": []}``, in fixed words
(`telemetry.dialects.REFUSALS`), which repeat nothing of the request:

====== =========================================================================================
status
====== =========================================================================================
400    No HTTP, no body, wrong encoding, no JSON, no envelope, over 500 items
401    No credentials, or several that do not agree
403    No such project or key
404    No such path; 405: not POST
408    Head not complete within 10 s, or body within 30 s
413    Body over 10 MiB or 100:1; over 1000 events
415    Content type or encoding we do not know
429    Quota of the key used up, the log or a recipient's share of it full, or room so short that
       only errors are taken; with ``Retry-After``. Nothing was taken
500    Our fault. Nothing was taken
503    The log cannot be reached, or too much is under way; with ``Retry-After``. Nothing was taken
====== =========================================================================================

Room is of two sorts, memory and log. When one gets short, analytics are refused first, so that
errors still find some: of the memory a part is only for Sentry's dialect; of the log, requests that
hold nothing but kinds that yield are refused.

aiohttp serves as parser and connection keeper only. Its error pages and log lines quote header
lines and addresses, so neither exists here; bodies are read and decompressed by this module, with
limits.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import math
import re
import resource
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Container, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import structlog
from aiohttp import web
from multidict import CIMultiDict

from telemetry.config import Bind, Project
from telemetry.dialects import BODY_BYTES, Refusal, decompress, heap, native, sentry
from telemetry.edge import Connection, Item
from telemetry.errors import BrokerError, ConfigError, SpoolFull
from telemetry.intake import Intake, Taken

__all__ = ["Count", "Gateway", "Limits", "Projects"]

_log: structlog.stdlib.BoundLogger = structlog.get_logger("telemetry.gateway")

Count = Callable[[str, tuple[str, ...], int], None]
"""Metric hook: name, labels, number. The labels are words of closed sets.

``requests`` (dialect; status, or ``gone`` if the client left), ``refusals`` (word of `REFUSALS`),
``client_discarded`` (reason, category: what Sentry clients say they threw away themselves).
"""

_KEEPALIVE_S: Final = 75.0
_LINGER_S: Final = 2.0
_INLINE_BYTES: Final = 64 * 1024
_INLINE_PACKED_BYTES: Final = 4 * 1024
_LINE_BYTES: Final = 16 * 1024
_CHUNK_BYTES: Final = 64 * 1024
_LOOPBACK: Final = frozenset(("127.0.0.1", "::1", "::ffff:127.0.0.1"))
_RETRY_AFTER_S: Final = 5
_FULL_RETRY_AFTER_S: Final = 60


_FILES_OF_OTHERS: Final = 256


def _files() -> int:
    """Give how many files this process may have open."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 65_536 if most == resource.RLIM_INFINITY else max(most, 2 * _FILES_OF_OTHERS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long and how much.

    Attributes:
        head_s: Until a request's head is complete. body_s: Until its body is.
        body_bytes: Most bytes of a body as it comes.
        forgotten_bytes: Most bytes of a body that is only counted; Sentry's own limit.
        held_bytes: Most bytes that all requests under way may hold, from a body's first byte until
            what was made of it is durable; beyond, requests are answered 503.
        yielding_bytes: Most of them that other dialects than Sentry's find; beyond, 429.
        connections: Most connections; beyond, those on which nothing is under way are closed. By
            default what the system's limit of open files leaves, so that log and recipients can
            still open theirs.
        stop_s: How long `Gateway.stop` waits for requests under way.
    """

    head_s: float = 10.0
    body_s: float = 30.0
    body_bytes: int = BODY_BYTES
    forgotten_bytes: int = 200 * 1024 * 1024
    held_bytes: int = 256 * 1024 * 1024
    yielding_bytes: int = 192 * 1024 * 1024
    connections: int = field(default_factory=lambda: _files() - _FILES_OF_OTHERS)
    stop_s: float = 10.0


class _Sender(NamedTuple):
    """Who sends: `quota` is the name of a project, so there are never more than declared."""

    tenant: str
    quota: str


_ANYONE: Final = _Sender("default", "")


class Projects:
    """Which key belongs to which tenant.

    Args:
        projects: By project id, as in ``[project.ID]``. A Heap client gives the key as ``app_id``.
        open_to_all: Accept unknown keys, and none, as tenant ``default``. For development.
    """

    def __init__(self, projects: Mapping[str, Project], *, open_to_all: bool) -> None:
        self.open_to_all = open_to_all
        self._by_id = dict(projects)
        self._id_by_digest = {_digest(p.key): name for name, p in self._by_id.items()}

    def __len__(self) -> int:
        return len(self._by_id)

    def quotas(self) -> dict[str, int]:
        """Give the events per minute of each project that has a figure of its own."""
        known = self._by_id.items()
        return {name: p.events_per_minute for name, p in known if p.events_per_minute}

    def find(self, key: str, project: str = "") -> _Sender:
        """Find who has this key; and this project id, if one is given.

        The key is looked up by its SHA-256, never compared byte by byte: how long it takes depends
        on a digest that nobody can steer, so it tells nothing of how close a guess is. A wrong
        project is told as little as a wrong key.

        Raises:
            Refusal: ``no_credentials``, ``unknown_project``.
        """
        name = self._id_by_digest.get(_digest(key), "")
        known = self._by_id.get(name)
        if known is not None and project in ("", name):
            return _Sender(known.tenant, name)
        if self.open_to_all:
            return _ANYONE
        raise Refusal("unknown_project" if key else "no_credentials")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "replace")).digest()


class _Quota:
    """A token bucket for each project: as many events as a minute allows, refilled steadily."""

    def __init__(self, events_per_minute: int, own: Mapping[str, int]) -> None:
        self._default, self._own = events_per_minute, own
        self._left: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def take(self, name: str, count: int) -> None:
        """Take `count` events from the quota of `name`.

        Raises:
            Refusal: ``over_quota``.
        """
        now = time.monotonic()
        most = float(self._own.get(name, self._default))
        per_s = most / 60
        with self._lock:
            left, since = self._left.get(name, (most, now))
            left = min(most, left + (now - since) * per_s)
            # A request larger than the whole quota passes once the bucket is full.
            need = min(float(count), most)
            if need > left:
                self._left[name] = (left, now)
                wait_s = max(1, math.ceil((need - left) / per_s))
                raise Refusal("over_quota", retry_after_s=wait_s)
            self._left[name] = (left - need, now)


class _Route(NamedTuple):
    dialect: str
    call: str
    project: str = ""
    key: str = ""


_FIXED: Final = {
    ("health", "ready"): _Route("health", "ready"),
    ("tunnel",): _Route("sentry", "envelope"),
    ("api", "store"): _Route("sentry", "store"),
    ("api", "track"): _Route("heap", "track"),
    ("api", "add_user_properties"): _Route("heap", "users"),
    ("api", "add_account_properties"): _Route("heap", "accounts"),
    ("api", "v1", "identify"): _Route("heap", "identify"),
    ("v1", "events"): _Route("native", "events"),
}
_PROJECT: Final = re.compile(r"[0-9A-Za-z_-]{1,64}")
_SENTRY_CALLS: Final = {
    "envelope": sentry.parse_envelope,
    "store": sentry.parse_store,
    "security": sentry.parse_security,
    "csp-report": sentry.parse_security,
}
_COUNTED: Final = {
    "attachments": "kind_attachment",
    "minidump": "kind_minidump",
    "nel": "kind_nel",
    "unreal": "kind_unreal_report",
}
"""What is counted under a word, answered 200, so that nobody sends it again, and never held."""


@lru_cache(maxsize=256)
def _route(path: str) -> _Route | None:
    """Find what a path means; paths are compared as sent, without decoding."""
    parts = tuple(filter(None, path.split("/")))
    if (fixed := _FIXED.get(parts)) is not None:
        return fixed
    match parts:
        case (*_, "api", project, call) if call in _SENTRY_CALLS or call in _COUNTED:
            key = ""
        case (*_, "api", project, "unreal" as call, key):
            pass
        case (*_, "api", project, "events", _, "attachments" as call):
            key = ""
        case _:
            return None
    return _Route("sentry", call, project, key) if _PROJECT.fullmatch(project) else None


_HEAP_CALLS: Final = {
    "track": heap.parse_track,
    "users": heap.parse_users,
    "accounts": heap.parse_accounts,
    "identify": heap.parse_identify,
}
_TYPES: Final = frozenset(
    (
        "",
        "application/csp-report",
        "application/json",
        "application/jsonl",
        "application/ndjson",
        "application/octet-stream",
        "application/reports+json",
        "application/x-ndjson",
        "application/x-sentry-envelope",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "text/plain",
    )
)
_LINES: Final = frozenset(("application/jsonl", "application/ndjson", "application/x-ndjson"))
_HEADERS: Final = {
    "Content-Type": "application/json",
    "Server": "telemetry",
    # Browser clients post across origins; they read these headers to slow down.
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Expose-Headers": "x-sentry-error, x-sentry-rate-limits, retry-after",
    "Cross-Origin-Resource-Policy": "cross-origin",
}
_PREFLIGHT: Final = {
    "Access-Control-Allow-Methods": "POST",
    "Access-Control-Allow-Headers": (
        "authorization, content-encoding, content-type, transfer-encoding, x-requested-with, "
        "x-sentry-auth"
    ),
    "Access-Control-Max-Age": "86400",
}


class _Asked(NamedTuple):
    """A request without its body, in plain values: what may be handed to another thread."""

    route: _Route
    encoding: str
    content_type: str
    sender: _Sender | None
    credentials: sentry.Credentials | None
    connection: Connection
    short: bool
    full: Collection[str]


class _Answer(NamedTuple):
    taken: Taken
    body: bytes
    discarded: tuple[sentry.Discarded, ...] = ()


Store = Callable[[Taken], Awaitable[None]]


def _uncounted(_name: str, _labels: tuple[str, ...], _number: int) -> None:
    pass


class Gateway:
    """An HTTP server in front of an `Intake`.

    Args:
        intake: Makes parcels of items.
        store: Returns when they are durable. `SpoolFull` is answered 429, other `BrokerError` 503.
        projects: Who may send.
        kinds: What the policy has a purpose for: ``policy.purpose_of_kind``.
        environment: Only ``development`` accepts open `projects` and plain HTTP from outside.
        limits: How long and how much.
        trusted_proxies: How many proxies before us append to ``X-Forwarded-For``. 0: the socket's
            peer is the client, whatever that header says.
        events_per_minute: Most events of a project that has no figure of its own.
        yields: Kinds that are refused first when the log's room gets short.
        short: Whether it is; asked on the event loop.
        full: Kinds that are refused because a recipient of theirs has no room left in the log.
        ready: Whether events can be taken now, for ``/health/ready``.
        count: Metric hook.
    """

    def __init__(  # noqa: PLR0913 - keywords but for two
        self,
        intake: Intake,
        store: Store,
        *,
        projects: Projects,
        kinds: Container[str],
        environment: str,
        limits: Limits = Limits(),
        trusted_proxies: int = 0,
        events_per_minute: int = 600_000,
        yields: Container[str] = (),
        short: Callable[[], bool] = lambda: False,
        full: Callable[[], Collection[str]] = frozenset,
        ready: Callable[[], bool] = lambda: True,
        count: Count = _uncounted,
    ) -> None:
        self._open = environment == "development"
        if not self._open and projects.open_to_all:
            raise ConfigError(
                "unknown keys are accepted in development only.",
                remedy="Declare each application as [project.ID] with key and tenant.",
            )
        self._intake, self._store = intake, store
        self._projects, self._kinds = projects, kinds
        self._limits, self._trusted_proxies = limits, trusted_proxies
        self._quota = _Quota(events_per_minute, projects.quotas())
        self._yields, self._short, self._full = yields, short, full
        self._ready, self._count = ready, count
        self._held = 0
        self._under_way = 0
        self._idle = asyncio.Event()
        self._stopping = False
        self._listening: list[asyncio.Server] = []
        self._server: _Server | None = None
        self._thread: ThreadPoolExecutor | None = None

    async def start(
        self, host: str, port: int, *, tls: ssl.SSLContext | None = None
    ) -> tuple[str, int]:
        """Listen.

        Returns:
            Host and port; the port that was found, if `port` is 0.

        Raises:
            ConfigError: In production, plain HTTP on an address that others can reach.
            OSError: The port is taken.
        """
        if not self._open and tls is None and not Bind(host, port).loopback:
            raise ConfigError(
                "plain HTTP outside this machine is refused but in development.",
                remedy="Bind to 127.0.0.1 behind a proxy that speaks TLS, or give a certificate.",
            )
        listening = await asyncio.get_running_loop().create_server(
            self._make_server(), host, port, backlog=1024, ssl=tls
        )
        self._listening.append(listening)
        at: tuple[str, int] = listening.sockets[0].getsockname()[:2]
        _log.info("gateway_listens", host=at[0], port=at[1], projects=len(self._projects))
        if self._projects.open_to_all:
            _log.warning(
                "gateway_open_to_all",
                remedy="Any key is accepted. For production set environment and [project.ID].",
            )
        return at

    async def start_unix(self, path: Path) -> None:
        """Listen on a Unix socket, for applications of this machine and group (mode 0660)."""
        listening = await asyncio.get_running_loop().create_unix_server(
            self._make_server(), path, backlog=1024
        )
        path.chmod(0o660)  # noqa: ASYNC240 - once, at start
        self._listening.append(listening)

    def _make_server(self) -> _Server:
        if self._server is None:
            _quiet_aiohttp()
            self._thread = ThreadPoolExecutor(1, "gateway")
            self._server = _Server(self._handle, self._refuse, self._limits)
        return self._server

    async def stop(self) -> None:
        """Accept no more, finish what is under way (at most `Limits.stop_s`), close."""
        self._stopping = True
        for listening in self._listening:
            listening.close()
        if self._server is not None:
            self._server.close_idle()
            if self._under_way:
                self._idle.clear()
                try:
                    await asyncio.wait_for(self._idle.wait(), self._limits.stop_s)
                except TimeoutError:
                    _log.warning("gateway_stopped_early", requests=self._under_way)
            self._server.pre_shutdown()
            await self._server.shutdown(timeout=1)
        if self._thread is not None:
            self._thread.shutdown(wait=False)
        self._listening.clear()
        self._server = self._thread = None

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request. What it does not foresee ends in `_Protocol.handle_error`."""
        self._under_way += 1
        path, _, query = request.raw_path.partition("?")
        route = _route(path)
        dialect = "none" if route is None else route.dialect
        try:
            response = await self._respond(request, route, query)
        except Refusal as refusal:
            response = self._refuse(refusal)
        except web.RequestPayloadError:
            response = self._refuse(Refusal("not_http"))
        except ConnectionError:
            self._count("requests", (dialect, "gone"), 1)
            raise
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()
        if self._stopping:
            response.force_close()
        self._count("requests", (dialect, str(response.status)), 1)
        return response

    def _refuse(self, refusal: Refusal) -> web.Response:
        self._count("refusals", (refusal.code,), 1)
        return _refusal_response(refusal)

    async def _respond(
        self, request: web.BaseRequest, route: _Route | None, query: str
    ) -> web.Response:
        if request.method == "OPTIONS":
            return web.Response(status=204, headers={**_HEADERS, **_PREFLIGHT})
        if route is None:
            raise Refusal("no_such_path")
        if route.dialect == "health":
            ready = self._ready() and not self._stopping
            body = b'{"ready":true}' if ready else b'{"ready":false}'
            return web.Response(status=200 if ready else 503, body=body, headers=_HEADERS)
        if request.method != "POST":
            raise Refusal("wrong_method")
        asked = self._asked(request, route, query)
        if route.call in _COUNTED:
            return await self._count_and_forget(request, asked)
        body = await self._body(request, self._room_of(route))
        held = len(body)
        try:
            answer = await self._process(asked, body)
            del body
            weighs = _weight(answer.taken)
            self._held += weighs - held
            held = weighs
            await self._keep(answer.taken)
        finally:
            self._held -= held
        for reason, category, quantity in answer.discarded:
            self._count("client_discarded", (reason, category), quantity)
        return web.Response(body=answer.body, headers=_HEADERS)

    def _room_of(self, route: _Route) -> int:
        most, yielding = self._limits.held_bytes, self._limits.yielding_bytes
        return most if route.dialect == "sentry" else min(most, yielding)

    def _no_room(self) -> Refusal:
        """Say that there is no memory: for nobody, or for errors only."""
        code = "busy" if self._held >= self._limits.held_bytes else "shed"
        return Refusal(code, retry_after_s=_RETRY_AFTER_S)

    async def _keep(self, taken: Taken) -> None:
        """Return when it is durable."""
        try:
            await self._store(taken)
        except SpoolFull:
            raise Refusal("log_full", retry_after_s=_FULL_RETRY_AFTER_S) from None
        except BrokerError:
            raise Refusal("log_unavailable", retry_after_s=_RETRY_AFTER_S) from None

    async def _count_and_forget(self, request: web.BaseRequest, asked: _Asked) -> web.Response:
        """Read a body piece by piece and let go of each: a crash dump is never held.

        Raises:
            Refusal: ``too_large``, ``too_slow``, ``empty_body``.
        """
        sender = asked.sender or self._projects.find("", asked.route.project)
        self._continue(request)
        total = 0
        try:
            async with asyncio.timeout(self._limits.body_s):
                while piece := await request.content.readany():
                    total += len(piece)
                    if total > self._limits.forgotten_bytes:
                        raise Refusal("too_large")
        except TimeoutError:
            raise Refusal("too_slow") from None
        if not total:
            raise Refusal("empty_body")
        item = Item("dropped", refused=_COUNTED[asked.route.call])
        await self._keep(self._take([item], sender, asked))
        return web.Response(body=b"{}", headers=_HEADERS)

    @staticmethod
    def _continue(request: web.BaseRequest) -> None:
        if request.headers.get("Expect", "").lower() == "100-continue" and request.transport:
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _asked(self, request: web.BaseRequest, route: _Route, query: str) -> _Asked:
        """Read the headers; refuse what can be refused before a byte of the body is read."""
        headers = request.headers
        content_type = headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if content_type not in _TYPES:
            raise Refusal("wrong_type")
        found: sentry.Credentials | None = None
        sender: _Sender | None = None
        authorization = headers.get("Authorization", "")
        if route.dialect == "sentry":
            found = sentry.credentials(
                headers.get("X-Sentry-Auth", ""), authorization, query, route.key
            )
            if found is not None:
                sender = self._projects.find(found.key, route.project)
            elif route.call != "envelope":
                sender = self._projects.find("", route.project)
        elif route.dialect == "native":
            sender = self._projects.find(_bearer(authorization))
        encodings = headers.getall("Content-Encoding", ())
        return _Asked(
            route,
            ",".join(encodings).strip().lower() if encodings else "",
            content_type,
            sender,
            found,
            self._connection(request),
            self._short(),
            self._full(),
        )

    def _connection(self, request: web.BaseRequest) -> Connection:
        """Say where the request comes from.

        Known values of the request are the full address of the client and of each hop, and the
        values of its cookies: a browser whose tunnel lies on the application's own domain sends
        the session's along.
        """
        headers = request.headers
        transport = request.transport
        peer = transport.get_extra_info("peername") if transport is not None else None
        address: str | None = peer[0] if isinstance(peer, tuple) else None
        known: list[tuple[str, str]] = []
        forwarded = headers.getall("X-Forwarded-For", ())
        if forwarded:
            hops = [_bare_address(hop) for hop in ",".join(forwarded).split(",")[-_HOPS:]]
            if 0 < self._trusted_proxies <= len(hops):
                address = hops[-self._trusted_proxies] or address
            known += [("ip", hop) for hop in hops if hop and hop not in _LOOPBACK]
        if address is not None and address not in _LOOPBACK:
            known.append(("ip", address))
        if "Cookie" in headers:
            pairs = [pair.partition("=")[2].strip() for pair in headers["Cookie"].split(";")]
            known += [
                ("secret", value)
                for value in pairs[:_COOKIES]
                if _COOKIE <= len(value) <= _COOKIE_MOST
            ]
        return Connection(address, known)

    async def _body(self, request: web.BaseRequest, room: int) -> bytes:
        """Read the body as it comes; `_held` counts it until its request is answered.

        Args:
            request: Whose body.
            room: How much all requests together may hold if this one is to be read.

        Raises:
            Refusal: ``too_large``, ``too_slow``, ``busy``, ``shed``, ``empty_body``.
            RequestPayloadError: Its chunks or its length are no HTTP.
        """
        content, most = request.content, self._limits.body_bytes
        if (request.content_length or 0) > most:
            raise Refusal("too_large")
        if self._held >= room:
            raise self._no_room()
        if content.is_eof():
            # The common case: head and body came together.
            body = content.read_nowait(-1)
        else:
            self._continue(request)
            body = await self._slow_body(content, most, room)
        if not body:
            raise Refusal("empty_body")
        if len(body) > most:
            raise Refusal("too_large")
        self._held += len(body)
        return body

    async def _slow_body(self, content: Any, most: int, room: int) -> bytes:
        pieces: list[bytes] = []
        total = 0
        try:
            async with asyncio.timeout(self._limits.body_s):
                while piece := await content.readany():
                    pieces.append(piece)
                    total += len(piece)
                    self._held += len(piece)
                    if total > most:
                        raise Refusal("too_large")
                    if self._held > room:
                        raise self._no_room()
        except TimeoutError:
            raise Refusal("too_slow") from None
        finally:
            self._held -= total
        return b"".join(pieces)

    async def _process(self, asked: _Asked, body: bytes) -> _Answer:
        """Do the work here if it is little, else in the thread, so that others are not kept."""
        small = _INLINE_PACKED_BYTES if asked.encoding else _INLINE_BYTES
        if len(asked.connection.known) > _INLINE_KNOWN:
            small = _INLINE_PACKED_BYTES  # each is looked for in each event
        if len(body) <= small or self._thread is None:
            return self._work(asked, body)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._work, asked, body)

    def _work(self, asked: _Asked, body: bytes) -> _Answer:
        """Body → parcels and the answer, in one go and without I/O."""
        body = decompress(body, asked.encoding)
        if not body:
            raise Refusal("empty_body")
        if asked.route.dialect == "sentry":
            return self._sentry(asked, body)
        if asked.route.dialect == "heap":
            call = _HEAP_CALLS[asked.route.call](body)
            sender = self._projects.find(call.app_id)
            return _Answer(self._take(call.items, sender, asked), b"{}")
        items = native.parse_events(body, self._kinds, lines=asked.content_type in _LINES)
        taken = self._take(items, asked.sender or _ANYONE, asked)
        return _Answer(taken, _native_answer(taken))

    def _sentry(self, asked: _Asked, body: bytes) -> _Answer:
        envelope = _SENTRY_CALLS[asked.route.call](body, self._kinds)
        sender = asked.sender
        if envelope.dsn:
            own = sentry.dsn_credentials(envelope.dsn)
            if asked.credentials is not None and asked.credentials.key != own.key:
                raise Refusal("no_credentials")
            if asked.route.project not in ("", own.project):
                raise Refusal("no_credentials")
            sender = self._projects.find(own.key, own.project)
        elif sender is None:
            sender = self._projects.find("", asked.route.project)
        taken = self._take(envelope.items, sender, asked)
        return _Answer(taken, _sentry_answer(envelope, taken), tuple(envelope.discarded))

    def _take(self, items: list[Item], sender: _Sender, asked: _Asked) -> Taken:
        if asked.short and items and all(item.kind in self._yields for item in items):
            raise Refusal("shed", retry_after_s=_FULL_RETRY_AFTER_S)
        if asked.full and any(item.kind in asked.full for item in items):
            # What is answered 200 must reach each of its recipients: there is no room for that.
            raise Refusal("no_room", retry_after_s=_FULL_RETRY_AFTER_S)
        self._quota.take(sender.quota, len(items))
        return self._intake.take(items, tenant=sender.tenant, connection=asked.connection)


_PARCEL_BYTES: Final = 1024
"""About what a parcel takes besides its bytes."""


def _weight(taken: Taken) -> int:
    """Say how much memory waits for the log."""
    parcels = (*taken.parcels, *taken.dead)
    own = sum(len(p.body) + len(p.capsule) + len(p.remarks) for p in parcels)
    return own + _PARCEL_BYTES * len(parcels)


_HOPS: Final = 16
_COOKIES: Final = 20
_COOKIE: Final = 8
_COOKIE_MOST: Final = 256
_INLINE_KNOWN: Final = 4


def _bare_address(hop: str) -> str:
    """Read one entry of ``X-Forwarded-For``, with or without port; empty if it is no address."""
    hop = hop.strip()
    if hop.startswith("["):
        hop = hop[1:].partition("]")[0]
    elif hop.count(":") == 1:
        hop = hop.partition(":")[0]
    try:
        ip_address(hop)
    except ValueError:
        return ""
    return hop


def _bearer(authorization: str) -> str:
    """Read the key of the native dialect: ``Bearer KEY``, or ``Basic`` with the key as user."""
    scheme, _, rest = authorization.partition(" ")
    rest = rest.strip()
    if scheme.lower() == "basic":
        try:
            rest = base64.b64decode(rest, validate=True).decode("ascii").partition(":")[0]
        except (ValueError, UnicodeDecodeError):
            raise Refusal("no_credentials") from None
    elif scheme.lower() != "bearer":
        return ""
    return rest


_ANSWERED: Final = frozenset(("error_event", "transaction", "feedback"))


def _sentry_answer(envelope: sentry.Envelope, taken: Taken) -> bytes:
    """Give the id under which the event is found, as Sentry does."""
    event_id = envelope.event_id or next(
        (p.event_id for p in (*taken.parcels, *taken.dead) if p.kind in _ANSWERED), ""
    )
    return b'{"id":"%s"}' % event_id.encode() if event_id else b"{}"


def _native_answer(taken: Taken) -> bytes:
    """Say what became of the events, in words of the books."""
    reasons: dict[str, dict[str, int]] = {"dropped": {}, "dead": {}}
    for entry, number in taken.counts.items():
        if entry.outcome in reasons:
            reasons[entry.outcome][entry.reason] = number
    return msgspec.json.encode({"taken": len(taken.parcels), **reasons})


def _refusal_response(refusal: Refusal) -> web.Response:
    headers = CIMultiDict(_HEADERS)
    if refusal.retry_after_s:
        headers["Retry-After"] = str(refusal.retry_after_s)
    if refusal.status == 429:  # noqa: PLR2004 - Too Many Requests
        headers["X-Sentry-Rate-Limits"] = f"{refusal.retry_after_s}::key:{refusal.code}"
    if refusal.status == 405:  # noqa: PLR2004 - Method Not Allowed
        headers["Allow"] = "POST, OPTIONS"
    headers["X-Sentry-Error"] = refusal.detail
    body = msgspec.json.encode({"detail": refusal.detail, "causes": []})
    response = web.Response(status=refusal.status, body=body, headers=headers)
    if refusal.code in ("too_large", "too_slow", "not_http", "busy", "shed"):
        # The rest of the body is not waited for.
        response.force_close()
    return response


class _Protocol(web.RequestHandler):
    """aiohttp's connection, with a deadline for heads and without its words.

    It leans on two attributes of aiohttp's class, ``_waiter`` and ``_messages``; the tests of the
    deadlines fail if a new version changes what they mean.
    """

    def __init__(
        self,
        manager: _Server,
        refuse: Callable[[Refusal], web.Response],
        head_s: float,
        **options: Any,
    ) -> None:
        super().__init__(manager, **options)
        self._server, self._kept = manager, False
        self._refuse, self._head_s = refuse, head_s
        self._head_timer: asyncio.TimerHandle | None = None

    @property
    def idle(self) -> bool:
        """Whether no request is under way."""
        return self._waiter is not None and not self._waiter.done() and not self._messages

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._kept = self._server.admit()
        if self._kept:
            self._start_head_timer()
        else:
            self._abort()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self.idle:
            self._stop_head_timer()
        elif self._head_timer is None:
            self._start_head_timer()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._stop_head_timer()
        self._leave()
        super().connection_lost(exc)

    def give_up(self) -> None:
        """Close at once, and count no more."""
        self._leave()
        self._abort()

    def _leave(self) -> None:
        self._server.kept -= self._kept
        self._kept = False

    def _abort(self) -> None:
        if isinstance(self.transport, asyncio.Transport):
            self.transport.abort()

    def _start_head_timer(self) -> None:
        loop = asyncio.get_running_loop()
        self._head_timer = loop.call_later(self._head_s, self._head_too_slow)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_too_slow(self) -> None:
        self._head_timer = None
        body = self._refuse(Refusal("too_slow")).body
        if self.transport is not None and isinstance(body, bytes):
            # There is no request yet that aiohttp could answer.
            self.transport.write(_TOO_SLOW % (len(body), body))
        self.force_close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is no HTTP, and what went wrong with us, in our words.

        aiohttp's own repeat the line that is wrong; a traceback would show what an error quotes.
        """
        if isinstance(exc, ConnectionError) or request.writer.output_size > 0:
            # Nobody is there any more, or they have half of another answer.
            raise ConnectionError
        if status < 500:  # noqa: PLR2004 - Internal Server Error
            response = self._refuse(Refusal("not_http"))
        else:
            _log.error("request_failed", **_named(exc))
            response = self._refuse(Refusal("internal"))
        response.force_close()
        return response

    def log_debug(self, *args: Any, **kw: Any) -> None:
        """Say nothing: what aiohttp says quotes the request."""

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """Name the error alone: what aiohttp says quotes the request."""
        _log.error("connection_failed", **_named(kw.get("exc_info")))


def _named(error: object) -> dict[str, str]:
    """Give the class of an error and the line that raised it: neither holds a value."""
    if not isinstance(error, BaseException):
        return {"error": "unknown"}
    place, trace = "", error.__traceback__
    while trace is not None:
        module = trace.tb_frame.f_globals.get("__name__", "")
        place, trace = f"{module}:{trace.tb_lineno}", trace.tb_next
    return {"error": type(error).__name__, "at": place}


_TOO_SLOW: Final = (
    b"HTTP/1.1 408 Request Timeout\r\nContent-Type: application/json\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%s"
)


class _Server(web.Server):
    """Makes our protocol for each connection."""

    def __init__(
        self,
        handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        refuse: Callable[[Refusal], web.Response],
        limits: Limits,
    ) -> None:
        super().__init__(handler)
        self._refuse, self._limits = refuse, limits
        self.kept = 0

    def __call__(self) -> web.RequestHandler:
        return _Protocol(
            self,
            self._refuse,
            self._limits.head_s,
            loop=self._loop,
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=_KEEPALIVE_S,
            lingering_time=_LINGER_S,
            max_line_size=_LINE_BYTES,
            max_field_size=_LINE_BYTES,
            read_bufsize=_CHUNK_BYTES,
        )

    def admit(self) -> bool:
        """Tell whether one more connection may stay; whoever asks nothing makes room for it."""
        most = self._limits.connections
        if self.kept >= most:
            for connection in self.connections:
                if isinstance(connection, _Protocol) and connection.idle:
                    connection.give_up()
        admitted = self.kept < most
        self.kept += admitted
        return admitted

    def close_idle(self) -> None:
        """Close the connections on which no request is under way."""
        for connection in self.connections:
            if isinstance(connection, _Protocol) and connection.idle:
                connection.close()


class _Bare(logging.Filter):
    """Takes from a record everything but who wrote it, at what level."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = "aiohttp", ()
        record.exc_info = record.exc_text = record.stack_info = None
        return True


_BARE: Final = _Bare()


def _quiet_aiohttp() -> None:
    """Make aiohttp's own loggers harmless, whatever logging is configured around us."""
    for name in ("access", "client", "internal", "server", "web", "websocket"):
        logging.getLogger(f"aiohttp.{name}").addFilter(_BARE)
