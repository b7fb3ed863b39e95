"""The admin side: health and metrics on a TCP port, orders on a Unix socket of the owner's.

The port tells nothing but states and counts. Orders (pause, resume) go only through a socket in
the state folder, which the file system guards (0600): ``admin.sock`` of a whole pipeline, one of
its own for each role that shares the folder (`socket_name`). Neither ever shows an event.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import socket
import struct
from collections.abc import Coroutine, Mapping
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec
import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from telemetry import logs
from telemetry.brokers import HELD
from telemetry.errors import (
    AuditError,
    BrokerError,
    ConfigError,
    PolicyError,
    TelemetryError,
    TransportError,
    VaultError,
)
from telemetry.letters import Chosen, Meant, Opened, page, purge, release
from telemetry.metrics import exposition
from telemetry.status import ages, as_json, times_to_loss

if TYPE_CHECKING:
    from telemetry.policy import Pseudonym
    from telemetry.run import Runner

__all__ = [
    "ELSEWHERE",
    "Admin",
    "NoAnswerError",
    "NotHereError",
    "NotRunningError",
    "ask",
    "ask_each",
    "socket_name",
]

_log: structlog.stdlib.BoundLogger = structlog.get_logger("telemetry.admin")

ELSEWHERE: Final = (
    "This process keeps no dead letters and no held events: on Kafka they lie in topics, into "
    "which the command looks itself."
)
_STOPPED: Final = ("blocked", "braked", "without orders")
_REPLAY_BYTES: Final = 64 * 1024 * 1024


class NotRunningError(TelemetryError):
    """No pipeline is running on this state directory."""


class NotHereError(ConfigError):
    """What runs here has nothing of what was asked for: another role may."""


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
        """Listen on the port and the socket; give the address really taken.

        Raises:
            ConfigError: Another process has this socket. It keeps it.
            OSError: The port cannot be listened on.
        """
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
                web.get("/held", self._held),
                web.post("/held/release", self._release),
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
        listening = _listen(path)
        self._socket = path
        await web.SockSite(self._sites[1], listening).start()
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
                **{n: float(s in _STOPPED) for n, s in found.forwarders.items()},
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
        runner, stage = self._runner, "pseudonymizer"
        chosen = list(runner.ordered) if name == "all" else [name]
        actor, action = _peer(request), f"recipient.{order}"
        concerned = runner.pseudonymizer is not None or runner.orders.shared
        if concerned and order == "resume" and name in (stage, "all"):
            await self._witness(actor, "stage.resume", {"stage": stage})
            await runner.orders.release(stage)
            if name == stage:
                return web.json_response({"resumed": [name]})
        if not chosen or any(recipient not in runner.ordered for recipient in chosen):
            # Without the name: it is whatever somebody typed.
            await self._witness(actor, action, {}, "refused:unknown")
            return web.json_response({"detail": "no such recipient"}, status=404)
        await runner.order(chosen, paused=order == "pause", actor=actor)
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
        try:
            await self._runner.orders.revoke(digest)
        except BrokerError as error:
            told = f"It is revoked here, but other hosts were not told: do it again. {error}"
            answer = {"revoked": digest, "error": told, "kind": "BrokerError"}
            return web.json_response(answer, status=503)
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

    async def _held(self, request: web.Request) -> web.Response:
        """Give a page of held events, without their content."""
        runner = self._runner
        if runner.redrive is None:
            return _elsewhere()
        look = partial(page, runner.redrive.shelf, stream=HELD, **_asked(request))
        found, after = await runner.storage.call(look)
        return _encoded({"held": found, "next": after})

    async def _release(self, request: web.Request) -> web.Response:
        runner = self._runner
        if runner.redrive is None:
            return _elsewhere()
        try:
            meant = msgspec.json.decode(await request.read(), type=list[Meant])
        except msgspec.MsgspecError:
            return web.json_response({"detail": "This is no list of held events."}, status=400)
        await self._witness(_peer(request), "held.release", {"count": len(meant)}, "begun")
        now = datetime.now(UTC)
        return _encoded(await runner.storage.call(release, runner.redrive.shelf, meant, now))

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


def socket_name(role: str = "", recipient: str = "", member: str = "") -> str:
    """Name the socket of a process: roles that share a state folder must not share it.

    >>> socket_name(), socket_name("forward", "heap", "heap-0")
    ('admin.sock', 'admin.forward.heap.heap-0.sock')
    """
    if not re.fullmatch(r"[A-Za-z0-9._-]{0,40}", member):
        # It may be no name of a file, or longer than a socket's address.
        member = sha256(member.encode()).hexdigest()[:12]
    return ".".join(part for part in ("admin", role, recipient, member, "sock") if part)


def _listen(path: Path) -> socket.socket:
    """Listen on a socket of the file system; take the place of one that nobody answers on.

    Raises:
        ConfigError: Somebody answers on it.
    """
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        # Of two that start at once, each looks and takes while the other waits.
        fcntl.flock(folder, fcntl.LOCK_EX)
        # A path longer than 107 bytes cannot be bound, so it is bound through its folder.
        address = f"/proc/self/fd/{folder}/{path.name}"
        if _answers(address):
            raise ConfigError(
                "is the socket of a process that runs: two of one role and one name.",
                path=path,
                remedy="Give each its own name (--member, broker.member) or its own state folder.",
            )
        path.unlink(missing_ok=True)
        listening = socket.socket(socket.AF_UNIX)
        try:
            listening.bind(address)
            path.chmod(0o600)
            listening.listen(128)
        except OSError:
            listening.close()
            raise
        listening.settimeout(0.0)
    finally:
        os.close(folder)
    return listening


def _answers(address: str) -> bool:
    """Tell whether a process listens on a socket; one that is stopped or busy does, too."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(0.0)
        try:
            probe.connect(address)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError:  # its queue is full, or it is not ours to ask
            return True
    return True


def _by_kind(unknown: Any) -> dict[str, float]:
    kinds: dict[str, float] = {}
    for kind, _path in list(unknown):
        kinds[kind] = kinds.get(kind, 0.0) + 1
    return kinds


_TIMEOUT_S: Final = 10.0
_REFUSED, _ABSENT, _FAILED, _UNAVAILABLE = 400, 404, 500, 503
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


_RANKS: Final = ("admin.sock", "admin.pseudonymize", "admin.forward", "admin.gateway")


def _sockets(state: Path) -> list[Path]:
    """Find the sockets of a state directory, first of those who know most."""

    def rank(path: Path) -> tuple[int, str]:
        known = (n for n, name in enumerate(_RANKS) if path.name.startswith(name))
        return next(known, len(_RANKS)), path.name

    return sorted(state.glob("admin*.sock"), key=rank)


def ask(state: Path, method: str, target: str, body: bytes | None = None) -> Any:
    """Ask what runs on a state directory; of several roles the first that has what is asked for.

    Args:
        state: The directory.
        method: GET to look, POST to order.
        target: Path and query.
        body: JSON, where the order takes one.

    Raises:
        NotRunningError: Nothing does.
        NoAnswerError: It did not answer within ten seconds, or not as expected.
        NotHereError: None of them has it.
        ConfigError: It refuses.
        AuditError, BrokerError, VaultError: It could not do it.
    """
    refused: NotHereError | None = None
    for path in _sockets(state):
        try:
            return _ask(path, method, target, body)
        except NotRunningError:
            continue
        except NotHereError as error:
            refused = refused or error
    raise refused or _nothing(state)


def ask_each(state: Path, method: str, target: str) -> dict[str, Any]:
    """Ask everything that runs on a state directory; give the answers of those who have it.

    Returns:
        Answers by name of the process (``gateway``, ``forward.heap``; empty for a whole pipeline),
        those who know most first.

    Raises:
        NotRunningError, NotHereError, NoAnswerError, ConfigError, AuditError, BrokerError: As
            `ask`. Of several errors the first; the others were asked all the same.
    """
    answers: dict[str, Any] = {}
    refused: NotHereError | None = None
    failed: TelemetryError | None = None
    for path in _sockets(state):
        try:
            name = path.name.removeprefix("admin").removesuffix("sock").strip(".")
            answers[name] = _ask(path, method, target)
        except NotRunningError:
            continue
        except NotHereError as error:
            refused = refused or error
        except TelemetryError as error:
            failed = failed or error
    if failed is not None:
        raise failed
    if not answers:
        raise refused or _nothing(state)
    return answers


def _nothing(state: Path) -> NotRunningError:
    return NotRunningError(f"Nothing is running on {state}. Start it: telemetry run")


def _ask(path: Path, method: str, target: str, body: bytes | None = None) -> Any:
    state, connection = path.parent, _UnixConnection(path)
    try:
        connection.request(method, target, body)
        response = connection.getresponse()
        status, answer = response.status, json.loads(response.read())
    except (FileNotFoundError, ConnectionRefusedError):
        raise _nothing(state) from None
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
        refusal = NotHereError if status == _ABSENT else ConfigError
        raise refusal(str(told.get("detail", "It refuses.")))
    if status == _UNAVAILABLE:
        raise _KINDS.get(str(told.get("kind")), AuditError)(str(told.get("error", "")))
    raise NoAnswerError(f"{told.get('error', 'It failed.')} See the log of what runs on {state}.")
