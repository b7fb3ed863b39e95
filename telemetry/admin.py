"""The admin side: health and metrics on a TCP port, orders on a Unix socket of the owner's.

The port tells nothing but states and counts. Orders (pause, resume) go only through
``STATE/admin.sock``, which the file system guards (0600). Neither ever shows an event.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from datetime import UTC, datetime
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import structlog
from aiohttp import web

from telemetry.errors import PolicyError, TelemetryError
from telemetry.letters import Chosen, Opened, page, purge
from telemetry.metrics import exposition
from telemetry.status import ages, as_json, times_to_loss

if TYPE_CHECKING:
    from telemetry.run import Runner

__all__ = ["ELSEWHERE", "Admin", "NotRunningError", "ask"]

ELSEWHERE: Final = (
    "On Kafka, dead letters lie in the topic of the dead stream until its retention ends; this "
    "version looks only into the embedded log."
)
_REPLAY_BYTES: Final = 64 * 1024 * 1024

_log: structlog.stdlib.BoundLogger = structlog.get_logger("telemetry.admin")


class NotRunningError(TelemetryError):
    """No pipeline is running on this state directory."""


class Admin:
    """Serves the admin port and socket of one process."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._sites: list[web.AppRunner] = []
        self._socket: Path | None = None

    async def start(self, host: str, port: int, path: Path) -> tuple[str, int]:
        """Listen on the port and the socket; give the address really taken."""
        public = web.Application()
        public.add_routes(
            [
                web.get("/health/live", self._live),
                web.get("/health/ready", self._ready),
                web.get("/metrics", self._metrics),
            ]
        )
        private = web.Application(client_max_size=_REPLAY_BYTES)
        private.add_routes(
            [
                web.get("/books", self._books),
                web.post("/{order:pause|resume}/{name}", self._order),
                web.post("/policy/revoke/{digest}", self._revoke),
                web.get("/status", self._status),
                web.get("/dead", self._dead),
                web.post("/dead/purge", self._purge),
                web.post("/dead/replay", self._replay),
            ]
        )
        for app in (public, private):
            runner = web.AppRunner(app, access_log=None)
            await runner.setup()
            self._sites.append(runner)
        site = web.TCPSite(self._sites[0], host, port)
        await site.start()
        # A socket left by a process that was killed: the log's lock tells that nobody owns it.
        path.unlink(missing_ok=True)  # noqa: ASYNC240 - at start, nobody waits
        self._socket = path
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            # A path longer than 107 bytes cannot be bound, so it is bound through its folder.
            await web.UnixSite(self._sites[1], f"/proc/self/fd/{folder}/{path.name}").start()
        finally:
            os.close(folder)
        path.chmod(0o600)  # noqa: ASYNC240
        address: tuple[str, int] = site._server.sockets[0].getsockname()[:2]  # type: ignore[union-attr]  # noqa: SLF001
        return address

    async def stop(self) -> None:
        """Stop listening."""
        for runner in self._sites:
            await runner.cleanup()
        if self._socket is not None:
            self._socket.unlink(missing_ok=True)

    async def _live(self, _request: web.Request) -> web.Response:
        return web.json_response({"live": True})

    async def _ready(self, _request: web.Request) -> web.Response:
        holding = self._runner.pseudonymizer.holding
        return web.json_response(
            {"ready": not holding, "holding": holding}, status=503 if holding else 200
        )

    async def _metrics(self, _request: web.Request) -> web.Response:
        runner = self._runner
        found = await runner.snapshot()
        gauges: dict[str, dict[str, float]] = {
            "invalid_identifiers": dict(runner.intake.invalid_identifiers),
            "undeclared_paths": _by_kind(runner.edge.unknown),
            "paused": {name: float(f.paused) for name, f in runner.forwarders.items()},
            "stopped": {
                "pseudonymizer": float(bool(found.holding)),
                **{n: float(s in ("blocked", "braked")) for n, s in found.forwarders.items()},
            },
            "oldest_age_seconds": ages(found),
            "time_to_loss_seconds": times_to_loss(found),
            "room_used_ratio": {
                stream or "log": used / most for stream, (used, most) in found.room.items()
            },
        }
        return web.Response(
            body=exposition(found.books, gauges, dict(runner.seen)),
            headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
        )

    async def _books(self, _request: web.Request) -> web.Response:
        paused = [n for n, forwarder in self._runner.forwarders.items() if forwarder.paused]
        return web.json_response((await self._runner.books()).as_json() | {"paused": paused})

    async def _order(self, request: web.Request) -> web.Response:
        order, name = request.match_info["order"], request.match_info["name"]
        forwarders = self._runner.forwarders
        if order == "resume" and name in ("pseudonymizer", "all"):
            self._runner.pseudonymizer.brake.release()
            if name == "pseudonymizer":
                _log.warning("pseudonymizer_resumed", by=_asker(request))
                return web.json_response({"resumed": [name]})
        chosen = list(forwarders) if name == "all" else [name]
        if any(recipient not in forwarders for recipient in chosen):
            return web.json_response({"detail": "no such recipient"}, status=404)
        self._runner.order(chosen, paused=order == "pause")
        _log.warning(f"recipients_{order}d", recipients=chosen, by=_asker(request))
        return web.json_response({order + "d": chosen})

    async def _revoke(self, request: web.Request) -> web.Response:
        by = _asker(request)
        try:
            digest = self._runner.register.revoke(
                request.match_info["digest"], datetime.now(UTC), by=by
            )
        except PolicyError as error:
            return web.json_response({"detail": str(error)}, status=404)
        _log.warning("policy_revoked", digest=digest, by=by)
        return web.json_response({"revoked": digest})

    async def _status(self, _request: web.Request) -> web.Response:
        return web.json_response(as_json(await self._runner.snapshot()))

    async def _dead(self, request: web.Request) -> web.Response:
        """Give a page of dead letters; the originals only sealed, and that is logged."""
        runner, sealed = self._runner, "sealed" in request.query
        if runner.redrive is None:
            return _elsewhere()
        shelf = runner.redrive.shelf
        found, after = await runner.storage.call(
            partial(page, shelf, sealed=sealed, **_asked(request))
        )
        if sealed and found:
            _log.warning("sealed_originals_given", letters=len(found), by=_asker(request))
        return _encoded({"letters": found, "next": after})

    async def _purge(self, request: web.Request) -> web.Response:
        runner = self._runner
        if runner.redrive is None:
            return _elsewhere()
        count, after = await runner.storage.call(
            partial(purge, runner.redrive.shelf, **_asked(request))
        )
        if count:
            _log.warning("dead_letters_purged", letters=count, by=_asker(request))
        return _encoded({"purged": count, "next": after})

    async def _replay(self, request: web.Request) -> web.Response:
        if self._runner.redrive is None:
            return _elsewhere()
        try:
            opened = msgspec.json.decode(await request.read(), type=list[Opened])
        except msgspec.MsgspecError:
            return web.json_response({"detail": "This is no list of letters."}, status=400)
        outcomes = await self._runner.redrive.replay(opened)
        _log.warning("dead_letters_replayed", by=_asker(request), **outcomes)
        return _encoded(outcomes)


def _asked(request: web.Request) -> dict[str, Any]:
    """Read which letters are meant, and from where on."""
    query = dict(request.query)
    after = int(query.pop("after", "0"))
    query.pop("sealed", None)
    chosen = msgspec.convert(query, Chosen, strict=False)
    return {"chosen": chosen, "now": datetime.now(UTC), "after": after}


def _encoded(answer: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(answer), content_type="application/json")


def _elsewhere() -> web.Response:
    return web.json_response({"detail": ELSEWHERE}, status=404)


def _asker(request: web.Request) -> str:
    """Tell who is at the other end of the socket, as the kernel says."""
    peer = request.transport and request.transport.get_extra_info("socket")
    if not peer or not hasattr(socket, "SO_PEERCRED"):
        return "unknown"
    pid, uid, _gid = struct.unpack(
        "3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    )
    return f"uid {uid} pid {pid}"


def _by_kind(unknown: Any) -> dict[str, float]:
    kinds: dict[str, float] = {}
    for kind, _path in list(unknown):
        kinds[kind] = kinds.get(kind, 0.0) + 1
    return kinds


_TIMEOUT_S: Final = 10.0


class _UnixConnection(HTTPConnection):
    """HTTP over the admin socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        """Connect through the socket's folder: its path may be longer than a socket's may be."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(_TIMEOUT_S)
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            self.sock.connect(f"/proc/self/fd/{folder}/{self._path.name}")
        finally:
            os.close(folder)


def ask(state: Path, method: str, target: str, body: bytes | None = None) -> Any:
    """Ask the process that owns a state directory.

    Args:
        state: The directory.
        method: GET to look, POST to order.
        target: Path and query.
        body: JSON, where the order takes one.

    Raises:
        NotRunningError: There is none.
    """
    connection = _UnixConnection(state / "admin.sock")
    try:
        connection.request(method, target, body)
        answer = connection.getresponse()
        return json.loads(answer.read())
    except (OSError, ValueError):
        raise NotRunningError(f"Nothing is running on {state}. Start it: telemetry run") from None
    finally:
        connection.close()
