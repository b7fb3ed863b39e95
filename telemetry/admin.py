"""The admin side: health and metrics on a TCP port, orders on a Unix socket of the owner's.

The port tells nothing but states and counts. Orders (pause, resume) go only through
``STATE/admin.sock``, which the file system guards (0600). Neither ever shows an event.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from telemetry.errors import AuditError, TelemetryError
from telemetry.metrics import exposition

if TYPE_CHECKING:
    from telemetry.run import Runner

__all__ = ["Admin", "NotRunningError", "ask"]


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
        private = web.Application()
        private.add_routes(
            [web.get("/books", self._books), web.post("/{order:pause|resume}/{name}", self._order)]
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
        holding = self._runner.holding
        return web.json_response(
            {"ready": not holding, "holding": holding}, status=503 if holding else 200
        )

    async def _metrics(self, _request: web.Request) -> web.Response:
        runner = self._runner
        gauges: dict[str, tuple[str, dict[str, float]]] = {}
        if runner.identity is not None:
            keys, overdue = runner.identity.keys()
            gauges["keys"] = (
                "Keys by use and state.",
                {f"{use} {state}": float(n) for (use, state), n in keys.items()},
            )
            gauges["keys_overdue"] = (
                "Keys that should be destroyed by now; anything but 0 for an hour is a fault.",
                {"": float(overdue)},
            )
        if runner.intake is not None:
            gauges["invalid_identifiers"] = (
                "Identifiers that did not fit their profile, by sort.",
                dict(runner.intake.invalid_identifiers),
            )
            gauges["undeclared_paths"] = (
                "Paths of sampled events that no schema declares, by kind.",
                _by_kind(runner.edge.unknown),
            )
        gauges |= {
            "paused": (
                "Recipients to which nothing is sent by order.",
                {name: float(f.paused) for name, f in runner.forwarders.items()},
            ),
        }
        return web.Response(
            body=exposition(await runner.books(), gauges, dict(runner.seen)),
            headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
        )

    async def _books(self, _request: web.Request) -> web.Response:
        paused = [n for n, forwarder in self._runner.forwarders.items() if forwarder.paused]
        return web.json_response((await self._runner.books()).as_json() | {"paused": paused})

    async def _order(self, request: web.Request) -> web.Response:
        order, name = request.match_info["order"], request.match_info["name"]
        forwarders = self._runner.forwarders
        chosen = list(forwarders) if name == "all" else [name]
        actor, action = _peer(request), f"recipient.{order}"
        try:
            if any(recipient not in forwarders for recipient in chosen):
                # Without the name: it is whatever somebody typed.
                refused = "refused:unknown"
                await asyncio.to_thread(self._runner.witness, actor, action, {}, refused)
                return web.json_response({"detail": "no such recipient"}, status=404)
            await self._runner.order(chosen, paused=order == "pause", actor=actor)
        except AuditError as error:
            return web.json_response({"error": str(error)}, status=503)
        return web.json_response({order + "d": chosen})


def _peer(request: web.Request) -> str:
    """Name who sent an order, as the kernel knows the socket's other end (unix(7), SO_PEERCRED)."""
    # Here, because every command imports this module and most need no vault and no cryptography.
    from telemetry.identity.audit import actor_of  # noqa: PLC0415

    connection: socket.socket = request.get_extra_info("socket")
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _ = struct.unpack("3i", raw)
    return actor_of(uid, pid)


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


def ask(state: Path, method: str, target: str) -> Any:
    """Ask the process that owns a state directory.

    Raises:
        NotRunningError: There is none.
    """
    connection = _UnixConnection(state / "admin.sock")
    try:
        connection.request(method, target)
        answer = connection.getresponse()
        return json.loads(answer.read())
    except (OSError, ValueError):
        raise NotRunningError(f"Nothing is running on {state}. Start it: telemetry run") from None
    finally:
        connection.close()
