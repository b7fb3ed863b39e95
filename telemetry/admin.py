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
from collections.abc import Coroutine, Mapping
from datetime import UTC, datetime
from functools import partial
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec
import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from telemetry import logs
from telemetry.errors import (
    AuditError,
    BrokerError,
    ConfigError,
    PolicyError,
    TelemetryError,
    TransportError,
    VaultError,
)
from telemetry.letters import Chosen, Opened, page, purge
from telemetry.metrics import exposition
from telemetry.status import ages, as_json, times_to_loss

if TYPE_CHECKING:
    from telemetry.policy import Pseudonym
    from telemetry.run import Runner

__all__ = ["ELSEWHERE", "Admin", "NoAnswerError", "NotRunningError", "ask"]

_log: structlog.stdlib.BoundLogger = structlog.get_logger("telemetry.admin")

ELSEWHERE: Final = (
    "On Kafka, dead letters lie in the topic of the dead stream until its retention ends; this "
    "version looks only into the embedded log."
)
_REPLAY_BYTES: Final = 64 * 1024 * 1024


class NotRunningError(TelemetryError):
    """No pipeline is running on this state directory."""


class NoAnswerError(TransportError):
    """One is running and did not answer, or not as expected. What was ordered may have been done.

    Nobody takes it for one that is not running: the state directory is still that process's.
    """


class ToErase(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whom to erase. Shows nobody who that is.

    Attributes:
        request: Number of the request in the audit log.
        kind: ``account`` or ``organization``.
        ids: As the application writes them.
    """

    request: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{8}$")]
    kind: Literal["account", "organization"]
    ids: Annotated[list[str], msgspec.Meta(min_length=1, max_length=100)]

    def __repr__(self) -> str:
        return f"ToErase({len(self.ids)} of {self.kind})"


class Admin:
    """Serves the admin port and socket of one process."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._sites: list[web.AppRunner] = []
        self._socket: Path | None = None
        self._tasks: set[asyncio.Task[object]] = set()

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
        private = web.Application(client_max_size=_REPLAY_BYTES, middlewares=[_answered])
        private.add_routes(
            [
                web.get("/books", self._books),
                web.post("/{order:pause|resume}/{name}", self._order),
                web.post("/policy/revoke/{digest}", self._revoke),
                web.get("/status", self._status),
                web.get("/dead", self._dead),
                web.post("/dead/purge", self._purge),
                web.post("/dead/replay", self._replay),
                web.get("/vault", self._vault),
                web.get("/vault/work", self._vault_work),
                web.post("/vault/{work:rewrap|backup}", self._vault_begin),
                web.post("/account/erase", self._erase),
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
        """Stop listening; what was begun ends at its next piece."""
        await asyncio.gather(*self._tasks, return_exceptions=True)
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
        found = await runner.snapshot()
        gauges: dict[str, dict[str, float]] = {}
        if runner.identity is not None:
            keys, overdue = runner.identity.keys()
            gauges["keys"] = {f"{use} {state}": float(n) for (use, state), n in keys.items()}
            gauges["keys_overdue"] = {"": float(overdue)}
        if runner.intake is not None:
            gauges["invalid_identifiers"] = dict(runner.intake.invalid_identifiers)
            gauges["undeclared_paths"] = _by_kind(runner.edge.unknown)
        gauges |= {
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
        chosen = list(forwarders) if name == "all" else [name]
        actor, action = _peer(request), f"recipient.{order}"
        stage = self._runner.pseudonymizer
        if stage is not None and order == "resume" and name in ("pseudonymizer", "all"):
            await self._witness(actor, "stage.resume", {"stage": "pseudonymizer"})
            stage.brake.release()
            if name == "pseudonymizer":
                return web.json_response({"resumed": [name]})
        if any(recipient not in forwarders for recipient in chosen):
            # Without the name: it is whatever somebody typed.
            await self._witness(actor, action, {}, "refused:unknown")
            return web.json_response({"detail": "no such recipient"}, status=404)
        await self._runner.order(chosen, paused=order == "pause", actor=actor)
        return web.json_response({order + "d": chosen})

    async def _witness(
        self, actor: str, action: str, what: Mapping[str, str | int], result: str = "done"
    ) -> None:
        await asyncio.to_thread(self._runner.witness, actor, action, what, result)

    async def _revoke(self, request: web.Request) -> web.Response:
        """Revoke a policy; it protects, so it is done before it is recorded."""
        actor = _peer(request)
        try:
            digest = self._runner.register.revoke(
                request.match_info["digest"], datetime.now(UTC), by=actor
            )
        except PolicyError as error:
            return web.json_response({"detail": str(error)}, status=404)
        try:
            await self._witness(actor, "policy.revoke", {"digest": digest})
        except AuditError as error:
            told = f"It is revoked, but nobody witnessed it. {error}"
            return web.json_response({"revoked": digest, "error": told}, status=503)
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
            await self._witness(_peer(request), "dead.open", {"count": len(found)})
        return _encoded({"letters": found, "next": after})

    async def _purge(self, request: web.Request) -> web.Response:
        runner = self._runner
        if runner.redrive is None:
            return _elsewhere()
        asked = _asked(request)
        await self._witness(_peer(request), "dead.purge", {}, "begun")
        count, after = await runner.storage.call(partial(purge, runner.redrive.shelf, **asked))
        return _encoded({"purged": count, "next": after})

    async def _replay(self, request: web.Request) -> web.Response:
        if self._runner.redrive is None:
            return _elsewhere()
        try:
            opened = msgspec.json.decode(await request.read(), type=list[Opened])
        except msgspec.MsgspecError:
            return web.json_response({"detail": "This is no list of letters."}, status=400)
        await self._witness(_peer(request), "dead.replay", {"count": len(opened)}, "begun")
        outcomes = await self._runner.redrive.replay(opened)
        return _encoded(outcomes)

    async def _vault(self, _request: web.Request) -> web.Response:
        upkeep = self._runner.upkeep
        return _no_vault() if upkeep is None else web.json_response(await upkeep.stats())

    async def _vault_work(self, _request: web.Request) -> web.Response:
        if self._runner.upkeep is None:
            return _no_vault()
        asked = self._runner.upkeep.asked
        return web.json_response({} if asked is None else asked.as_json())

    async def _vault_begin(self, request: web.Request) -> web.Response:
        """Begin work on the vault; `_vault_work` tells how it goes."""
        upkeep, asked = self._runner.upkeep, request.query
        work = request.match_info["work"]
        if upkeep is None:
            return _no_vault()
        await self._witness(_peer(request), f"vault.{work}", {}, "begun")
        if work == "backup":
            self._begin(upkeep.backup(Path(asked.get("path", ""))))
        else:
            keep = 0 if asked.get("keep") == "0" else 1
            self._begin(upkeep.rewrap(now=asked.get("now") == "1", keep=keep))
        return web.json_response({"begun": work})

    async def _erase(self, request: web.Request) -> web.Response:
        """Erase subjects in this process, which forgets them at once."""
        runner = self._runner
        if runner.identity is None:
            return _no_vault()
        try:
            asked = msgspec.json.decode(await request.read(), type=ToErase)
        except msgspec.MsgspecError:
            return web.json_response({"detail": "This names nobody to erase."}, status=400)
        source = runner.policy.pseudonyms.get(asked.kind)
        if source is None:
            return web.json_response({"detail": "There is no such kind."}, status=400)
        what: dict[str, str | int] = {"request": asked.request, "kind": asked.kind}
        await self._witness(_peer(request), "erasure", what | {"count": len(asked.ids)}, "begun")
        await asyncio.to_thread(self._erase_each, source, asked)
        return web.json_response({"erased": len(asked.ids)})

    def _erase_each(self, source: Pseudonym, asked: ToErase) -> None:
        from telemetry.identity import Identifier, canonicalize  # noqa: PLC0415 - as in `_peer`

        identity, purposes = self._runner.identity, list(self._runner.policy.purposes)
        ids = [canonicalize(source.profile, value) for value in asked.ids]
        for canonical in ids:
            if identity is not None:
                subject = Identifier(asked.kind, source.namespace, canonical)
                identity.erase(subject, purposes=purposes)

    def _begin(self, work: Coroutine[Any, Any, object]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


@web.middleware
async def _answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer JSON whatever happens; `ask` makes the same error of it at the other end."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        return web.json_response({"detail": f"{error.reason}."}, status=error.status)
    except ConfigError as error:
        return web.json_response({"detail": str(error)}, status=400)
    except TransportError as error:
        told = {"error": str(error), "kind": type(error).__name__}
        return web.json_response(told, status=503)
    except Exception as error:  # noqa: BLE001 - its text may quote a value
        where = logs.place(error)
        _log.error("order_failed", **where)
        return web.json_response({"error": f"An error of ours: {where['error']}."}, status=500)


def _asked(request: web.Request) -> dict[str, Any]:
    """Read which letters are meant, and from where on.

    Raises:
        ConfigError: It cannot be read.
    """
    query = dict(request.query)
    query.pop("sealed", None)
    try:
        after = int(query.pop("after", "0"))
        chosen = msgspec.convert(query, Chosen, strict=False)
    except ValueError:  # msgspec's, too
        raise ConfigError("This does not say which letters are meant.") from None
    return {"chosen": chosen, "now": datetime.now(UTC), "after": after}


def _encoded(answer: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(answer), content_type="application/json")


def _elsewhere() -> web.Response:
    return web.json_response({"detail": ELSEWHERE}, status=404)


def _no_vault() -> web.Response:
    return web.json_response({"detail": "This role has no vault."}, status=404)


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
_REFUSED, _FAILED, _UNAVAILABLE = 400, 500, 503
_KINDS: Final = {"BrokerError": BrokerError, "SpoolFull": BrokerError, "VaultError": VaultError}


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
        NoAnswerError: It did not answer within ten seconds, or not as expected.
        ConfigError: It refuses: what was asked for is not there or not allowed.
        AuditError, BrokerError, VaultError: It could not do it.
    """
    connection = _UnixConnection(state / "admin.sock")
    try:
        connection.request(method, target, body)
        response = connection.getresponse()
        status, answer = response.status, json.loads(response.read())
    except (FileNotFoundError, ConnectionRefusedError):
        raise NotRunningError(f"Nothing is running on {state}. Start it: telemetry run") from None
    except TimeoutError:
        raise NoAnswerError(
            f"What runs on {state} did not answer within {_TIMEOUT_S:.0f} s. It may still have "
            "done it: look before you try again."
        ) from None
    except PermissionError:
        raise NoAnswerError(f"Only the owner of {state} may ask what runs on it.") from None
    except (OSError, ValueError, HTTPException):
        raise NoAnswerError(
            f"What runs on {state} broke off its answer. See its log, and try again."
        ) from None
    finally:
        connection.close()
    if status < _REFUSED:
        return answer
    told = answer if isinstance(answer, dict) else {}
    if status < _FAILED:
        raise ConfigError(str(told.get("detail", "It refuses.")))
    if status == _UNAVAILABLE:
        raise _KINDS.get(str(told.get("kind")), AuditError)(str(told.get("error", "")))
    raise NoAnswerError(f"{told.get('error', 'It failed.')} See the log of what runs on {state}.")
