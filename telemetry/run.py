"""``telemetry run``: gateway, pseudonymizer and forwarders in one process; or one of them on Kafka.

One asyncio loop serves clients and recipients; one thread alone uses the log and commits whatever
has queued since its last commit; one thread scrubs. Everything that can refuse to start does so in
`Runner.open`, before the first event. A process that is one role opens what that role needs and
nothing else: a gateway public keys, a forwarder its recipient's credentials and no key.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import importlib
import importlib.metadata
import os
import resource
import socket
import sys
import time
from collections import Counter
from collections.abc import (
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog

from telemetry import logs
from telemetry.admin import Admin, socket_name
from telemetry.books import Books
from telemetry.brokers import DEAD, HELD, SEALED, Broker, Entry, Room, Shelf, clean, stage_of
from telemetry.brokers.buffered import Buffered
from telemetry.brokers.spool import Spool
from telemetry.config import Bind, Settings
from telemetry.dead_letter import Brake, Bury, burying, ends_at, forgetting, sweep
from telemetry.edge import Edge
from telemetry.errors import (
    AuditError,
    BrokerError,
    ConfigError,
    KeyringError,
    TelemetryError,
)
from telemetry.forward import Forwarder, Rate
from telemetry.gateway import Gateway, Limits, Projects
from telemetry.identity import (
    Identity,
    Turn,
    initialise,
    initialise_development,
    load_dead_letter_sealer,
    load_spool_key,
)
from telemetry.identity.audit import AUDIT_FILE, KEY_ACTIONS, AuditLog, Body, Signer, about_key
from telemetry.identity.ways_back import sweep_requests
from telemetry.intake import Intake, Taken
from telemetry.orders import Orders
from telemetry.parcel import Parcel
from telemetry.pipeline import Pseudonymizer, Terms
from telemetry.policy import (
    Policy,
    PolicyRegister,
    Recipient,
)
from telemetry.redrive import Redrive
from telemetry.retention import Period, moment_before
from telemetry.rules import Schemas
from telemetry.sinks import Sink, shaping_only
from telemetry.start import (
    POLICIES_FILE,
    SPEED_FILE,
    SPOOL_FILE,
    Part,
    Start,
    check_broker,
    check_host,
    made_with,
    networks_of,
    open_custody,
    remember_speed,
    sink_of,
    unbindable,
)
from telemetry.status import Snapshot
from telemetry.upkeep import Upkeep

__all__ = [
    "SPOOL_FILE",
    "Part",
    "Runner",
    "Storage",
    "check_host",
    "keeps",
    "networks_of",
    "open_broker",
    "open_custody",
    "settle",
]

_log: structlog.stdlib.BoundLogger = structlog.get_logger("telemetry.run")
_T = TypeVar("_T")
_VERSION: Final = importlib.metadata.version("milchglas")
_LOG_S: Final = 1.0
_STUCK_S: Final = 90.0
_EXIT_LOG_LOST: Final = 71
_DRAIN_S: Final = 8.0
_TEND_S: Final = 15.0
_SWITCH_S: Final = 0.0005
"""How long a thread may keep the interpreter while others wait. With Python's 5 ms, an answer to a
client waits that long for the thread that scrubs, as often as it waits for disk or network."""
_LOOK_S: Final = 1.0
_SHORT_FROM: Final = 7 / 8
_SHORT_DISK_BYTES: Final = 64 * 1024 * 1024
"""When the rest of the log's room is kept for errors: an eighth of its quota, or so much disk."""
_SWEEP_S: Final = 600.0
"""How often the log is searched for dead and held parcels whose time is up."""
_GIVE_UP_S: Final = 72 * 3600.0
"""As long as a sealed event waits (DESIGN 5): what a recipient refuses for three days is parked."""


class Storage:
    """The one thread that uses the log, and what queues for it.

    Requests wait for durability together: whatever has queued while a commit was running goes into
    the next one. No timer is involved, so one request alone waits for one commit only.

    Args:
        broker: The log.
        folder: Where the embedded one is: the room on its disk is looked at.
    """

    def __init__(self, broker: Broker, folder: Path | None = None) -> None:
        self.broker = broker
        self._folder = folder
        embedded = folder is not None and isinstance(broker, Spool)
        self._file = folder / SPOOL_FILE if folder is not None and embedded else None
        self._short = False
        self.full: frozenset[str] = frozenset()
        """Recipients whose share of the log is nearly used up, as of the last look."""
        self._looked_at = float("-inf")
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="storage")
        self.stored: Counter[Entry] = Counter()
        """What was appended by this process since it started."""
        self.failing = False
        """Whether the last append failed."""
        self._waiting: list[tuple[Taken, asyncio.Future[None]]] = []
        self._committing: asyncio.Task[None] | None = None

    async def call(self, function: Callable[..., _T], *args: object) -> _T:
        """Run a function of the broker on the storage thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)

    async def store(self, taken: Taken) -> None:
        """Return when the parcels, dead letters and counts of one request are durable.

        Raises:
            BrokerError: Nothing of it is; the client may try again.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((taken, done))
        if self._committing is None:
            self._committing = asyncio.create_task(self._commit())
        await done

    def short(self) -> bool:
        """Tell whether the log's room is short, as of a second ago if this is asked often."""
        now = time.monotonic()
        if now - self._looked_at >= _LOOK_S:
            self._looked_at = now
            asyncio.get_running_loop().run_in_executor(self._thread, self._look)
        return self._short

    def _look(self) -> None:
        shelf = self.broker.spool if isinstance(self.broker, Buffered) else self.broker
        if self._folder is None or not isinstance(shelf, Shelf):
            return  # Kafka's room is Kafka's matter
        with suppress(BrokerError, OSError):
            room = shelf.room()
            used, most = room[""]
            self.full = frozenset(
                stage_of(stream)
                for stream, (taken, share) in room.items()
                if stream.startswith(clean("")) and taken > _SHORT_FROM * share
            )
            disk = os.statvfs(self._folder)
            free = disk.f_bavail * disk.f_frsize
            self._short = used > _SHORT_FROM * most or free < _SHORT_DISK_BYTES

    async def _commit(self) -> None:
        try:
            while self._waiting:
                group, self._waiting = self._waiting, []
                try:
                    await self.call(self._append, [taken for taken, _ in group])
                except BrokerError as error:
                    self.failing = True
                    self._answer(group, error)
                except Exception as error:  # noqa: BLE001 - whoever waits must be told
                    self.failing = True
                    self._answer(group, BrokerError("The log failed."))
                    _log.error("log_failed", error=type(error).__name__)
                else:
                    self.failing = False
                    self._answer(group, None)
        finally:
            self._committing = None

    @staticmethod
    def _answer(group: list[tuple[Taken, asyncio.Future[None]]], error: BrokerError | None) -> None:
        for _, done in group:
            if done.cancelled():
                continue
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error)

    def _append(self, group: list[Taken]) -> None:
        """Append what several requests brought: parcels, dead letters and counts together."""
        if self._file is not None and not self._file.exists():
            # SQLite would go on writing to what nobody finds at the next start.
            raise BrokerError("The log's file was taken away.")
        counts: Counter[Entry] = Counter()
        parcels: list[Parcel] = []
        dead: list[Parcel] = []
        for taken in group:
            counts.update(taken.counts)
            parcels += taken.parcels
            dead += taken.dead
        self.broker.append(SEALED, parcels, counts, beside={DEAD: dead} if dead else {})
        self.stored.update(counts)

    def close(self) -> None:
        """Finish what runs, then close the log."""
        self._thread.shutdown(wait=True)
        self.broker.close()


def open_broker(settings: Settings) -> Broker:
    """Open the log that the settings name.

    Raises:
        ConfigError: It is not configured completely.
        BrokerError: It cannot be opened.
    """
    if settings.broker.kind == "kafka":
        check_broker(settings)
        return _open_kafka(settings)
    return _open_spool(settings)


def _open_kafka(settings: Settings) -> Broker:
    section = settings.broker
    # Loaded only here: the embedded form needs no Kafka client.
    kafka = importlib.import_module("telemetry.brokers.kafka")
    clients = importlib.import_module("telemetry.brokers.kafka.clients")
    broker: Broker = kafka.KafkaBroker(
        section.bootstrap,
        member=section.member or socket.gethostname(),
        topic_prefix=section.topic_prefix,
        group_prefix=section.group_prefix,
        client_options=clients.connection_options(section),
    )
    return broker


def _open_spool(settings: Settings) -> Spool:
    key = load_spool_key(
        settings.state_dir, environment=settings.environment, custody=open_custody(settings)
    )
    return Spool(
        settings.state_dir / SPOOL_FILE,
        key=key.expose(),
        quota_bytes=settings.broker.quota_mib * 1024 * 1024,
    )


@dataclass(slots=True)
class _Swept:
    """What retention deleted in one store since it was recorded last: how many, and their ends."""

    count: int = 0
    moments: tuple[datetime, ...] = ()


class Runner:
    """All roles of the pipeline in one process, or a part of them.

    Args:
        settings: What the operator set.
        say: Prints a line that somebody who starts this must read.
        part: Which roles.
    """

    def __init__(
        self, settings: Settings, say: Callable[[str], None], part: Part | None = None
    ) -> None:
        self.settings, self._say, self.part = settings, say, part or Part()
        self._open = AsyncExitStack()
        self._stop = asyncio.Event()
        self._loops: list[asyncio.Task[None]] = []
        self.identity: Identity | None = None
        self.upkeep: Upkeep | None = None
        self.gateway: Gateway | None = None
        self.intake: Intake | None = None
        self.pseudonymizer: Pseudonymizer | None = None
        self.sinks: dict[str, Sink] = {}
        self.seen: Counter[tuple[str, tuple[str, ...]]] = Counter()
        self.stand_ins: dict[str, Any] = {}
        self.forwarders: dict[str, Forwarder] = {}
        self.redrive: Redrive | None = None
        self.address = self.admin_address = ("", 0)
        self.audit_every_s = 3600.0
        self._told: tuple[datetime, dict[str, dict[str, int]]] | None = None
        self._unwitnessed: list[Turn] = []
        self._swept: dict[str, _Swept] = {}

    async def open(self) -> None:
        """Check everything, open everything, start to listen.

        Raises:
            ConfigError: Something is wrong with the installation; nothing was started.
            BrokerError: The log cannot be opened.
        """
        settings, part = self.settings, self.part
        state = settings.state_dir
        # Before anything is made: a start that is refused leaves everything as it was.
        start = Start(settings, part)
        start.require()
        assert start.policy is not None  # noqa: S101 - or it would have been refused
        self.policy = policy = start.policy
        forwards = start.forwards
        os.umask(0o077)
        # A core dump holds keys, and events that nobody has scrubbed yet.
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        try:
            state.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ConfigError(
                f"cannot be made: {os.strerror(error.errno or 0)}.",
                path=state,
                remedy="Name another with --state, or let this user write there.",
            ) from None
        custody = open_custody(settings) if part.pseudonymizer else None
        # Only who has them makes keys; others get the public ones.
        if part.pseudonymizer and custody is None:
            initialise_development(state)
            self._say("Keys: made for development and marked insecure; production refuses them.")
        elif custody is not None and initialise(
            state, environment=settings.environment, custody=custody
        ):
            self._say(f"Keys: made. {custody.advice}")
        # First of all that is shared: whoever does not own the log changes nothing beside it.
        self.storage = Storage(self._open_log(), state)
        self._open.callback(self.storage.close)
        self._open_audit(state)
        self.register = register = PolicyRegister(state / POLICIES_FILE)
        register.enter(policy.digest, "live", datetime.now(UTC))
        self.orders = self._open_orders(state)
        self._open.callback(self.orders.close)
        if part.pseudonymizer:
            identity = Identity.open(
                state,
                environment=settings.environment,
                custody=custody,
                vault_url=settings.vault.url or None,
                journal_url=settings.vault.journal or None,
                cache_rows=settings.vault.cache,
                alone=True,
                max_age=policy.max_age,
            )
            self._open.callback(identity.close)
            self.identity, self.upkeep = identity, Upkeep(identity)
            # The first start makes its keys before there is a log; and a start may be cut short.
            entries = self.audit.entries(action="key.")
            self._unwitnessed += identity.unheard({str((e.body or {}).get("kid")) for e in entries})
            self._witness_turns()
            self.audit.checkpoint()
        self._open.callback(self._depart)
        self.sinks = {name: await self._sink(name) for name in forwards}
        if part.gateway or part.pseudonymizer:
            self._open_scrubbing(policy, register, start.schemas)
        for name, sink in self.sinks.items():
            self.forwarders[name] = Forwarder(
                name,
                sink,
                self.storage.broker,
                call=self.storage.call,
                rates=rates_of(policy.recipients[name]),
                drain_s=_DRAIN_S,
                give_up_s=_GIVE_UP_S,
                bury=self._bury(name),
                brake=self._brake(),
                accepts=register.accepts,
                guided=lambda: self.orders.known,
                share=partial(self._share, name),
            )
        for name in self.orders.govern(self.forwarders):
            self._say(f"{name}: paused, as ordered before. To go on: telemetry resume {name}")
        await self._listen()

    def _share(self, recipient: str) -> float:
        """Give the part of a recipient's limits that is this process's: others share its stream."""
        broker: Any = self.storage.broker
        shared = hasattr(broker, "share")
        return broker.share(clean(recipient), recipient) if shared else 1.0

    def _open_orders(self, state: Path) -> Orders:
        """Open what keeps orders. On Kafka a gateway obeys none, so it reads and writes none."""
        broker: Any = self.storage.broker
        shared = hasattr(broker, "board") and (self.part.whole or not self.part.gateway)
        return Orders(
            state / "paused.json",
            board=broker.board() if shared else None,
            register=self.register,
            recipients=[n for n, recipient in self.policy.recipients.items() if recipient.sink],
            release=self._release,
        )

    def _release(self, stage: str) -> None:
        if stage == "pseudonymizer" and self.pseudonymizer is not None:
            self.pseudonymizer.brake.release()

    def _open_log(self) -> Broker:
        broker = open_broker(self.settings)
        if self.part.whole or not self.part.gateway:
            return broker
        if self.settings.gateway.on_broker_loss == "reject":
            return broker
        try:
            return Buffered(broker, _open_spool(self.settings), name=self.settings.broker.member)
        except TelemetryError:
            broker.close()
            raise

    def _open_scrubbing(
        self, policy: Policy, register: PolicyRegister, schemas: Schemas | None
    ) -> None:
        """Open what gateway and pseudonymizer need, each for itself."""
        part, state = self.part, self.settings.state_dir
        assert schemas is not None  # noqa: S101 - a condition of the start of these roles
        remember_speed(policy.detectors, state / SPEED_FILE)
        dead_sealer = load_dead_letter_sealer(state / "keys" / "public.json")
        if part.gateway:
            self.edge = Edge(schemas)
            self.intake = Intake(policy, self.edge, Identity.sealer(state), dead_sealer)
        if not part.pseudonymizer:
            return
        identity = self.identity
        assert identity is not None  # noqa: S101 - `open` has opened it
        scrub_thread = ThreadPoolExecutor(1, thread_name_prefix="scrub")
        self._open.callback(scrub_thread.shutdown)
        loop = asyncio.get_running_loop()

        def on_scrub(function: Callable[..., _T], *args: object) -> asyncio.Future[_T]:
            return loop.run_in_executor(scrub_thread, function, *args)

        if isinstance(self.storage.broker, Shelf):
            self.redrive = Redrive(
                self.storage.broker,
                policy,
                schemas,
                Identity.sealer(state),
                dead_sealer,
                on_storage=self.storage.call,
                on_scrub=on_scrub,
            )
        # It shapes for all recipients and reaches none: it has nobody's address or credentials.
        shaping = {
            name: self.sinks.get(name) or shaping_only(recipient.sink)
            for name, recipient in policy.recipients.items()
            if recipient.sink
        }
        self.pseudonymizer = Pseudonymizer(
            self.storage.broker,
            identity,
            Terms(policy=policy, schemas=schemas, register=register, sinks=shaping),
            on_storage=self.storage.call,
            on_scrub=on_scrub,
            bury=burying(dead_sealer, "pseudonymizer"),
            brake=self._brake(),
        )

    def _bury(self, stage: str) -> Bury:
        """Say what becomes of what a recipient refuses for good."""
        public = self.settings.state_dir / "keys" / "public.json"
        if not self.part.whole and not public.exists():
            self._say(
                "Dead letters: what a recipient refuses is counted and its content forgotten. "
                f"To keep it, sealed: put the public keys at {public}"
            )
            return forgetting
        return burying(load_dead_letter_sealer(public), stage)

    def _open_audit(self, state: Path) -> None:
        """Open the audit log and witness what starts, before it does."""
        export = self.settings.audit.checkpoints
        self.audit = AuditLog(
            state / AUDIT_FILE,
            # Who holds no keys signs nothing: its log is a chain of digests, without checkpoints.
            signer=self._signer if self.part.pseudonymizer else None,
            export=Path(export) if export else None,
        )
        self._open.callback(self.audit.close)
        what: Body = {
            "role": self.part.name,
            "version": _VERSION,
            "environment": self.settings.environment,
        }
        self.witness("role:run", "run.start", what)
        policy = self.policy
        what = {"digest": policy.digest, "notice": policy.notice.version}
        self.witness("role:run", "policy.load", what)
        for name, recipient in policy.recipients.items():
            if recipient.refused:
                reason = " ".join(recipient.refused.split())[:400]
                what = {"recipient": name, "reason": reason}
                self.witness("role:run", "recipient.refuse", what)

    async def _listen(self) -> None:
        settings = self.settings
        admin_bind = Bind.parse(settings.admin_bind)
        gateway = self._gateway()
        self.admin = Admin(self)
        self._open.push_async_callback(self.admin.stop)
        with _taken("admin_bind", settings.admin_bind):
            self.admin_address = await self.admin.start(
                admin_bind.host, admin_bind.port, settings.state_dir / self._socket_name()
            )
        if gateway is not None:
            self.gateway = gateway
            bind = Bind.parse(settings.bind)
            with _taken("bind", settings.bind):
                self.address = await gateway.start(bind.host, bind.port)

    def _socket_name(self) -> str:
        if self.part.whole:
            return socket_name()
        recipients = "-".join(self.part.forwards or ())
        return socket_name(self.part.name, recipients, self.settings.broker.member)

    def _gateway(self) -> Gateway | None:
        settings = self.settings
        if self.intake is None:
            return None
        projects = Projects(settings.project, open_to_all=settings.trial and not settings.project)
        if projects.open_to_all:
            self._say("Clients: any key is accepted (no [project.…] is configured).")
        return Gateway(
            self.intake,
            self.storage.store,
            projects=projects,
            kinds=self.policy.purpose_of_kind,
            environment=settings.environment,
            trusted_proxies=settings.gateway.trusted_proxies,
            events_per_minute=settings.gateway.events_per_minute,
            yields=frozenset(settings.gateway.yields),
            short=self.storage.short,
            full=self._full_kinds,
            limits=Limits(stop_s=_DRAIN_S),
            ready=lambda: not self.holding,
            count=self._count,
        )

    @property
    def holding(self) -> str:
        """Why nothing is taken at the moment; empty if all is well."""
        if self.pseudonymizer is not None:
            return self.pseudonymizer.holding
        if self.storage.failing:
            return "BrokerError"
        broker = self.storage.broker
        return broker.ailing if isinstance(broker, Buffered) else ""

    def _full_kinds(self) -> Collection[str]:
        """Name the kinds that a recipient gets whose share of the log is nearly used up."""
        full, policy = self.storage.full, self.policy
        return full and {
            kind
            for kind, purpose in policy.purpose_of_kind.items()
            if full.intersection(policy.recipients_of(purpose))
        }

    def _brake(self) -> Brake:
        dead = self.settings.dead
        return Brake(run_length=dead.run_length, ratio=dead.ratio)

    def _count(self, name: str, labels: tuple[str, ...], number: int) -> None:
        self.seen[name, labels] += number

    async def _sink(self, name: str) -> Sink:
        """Make the sink of a recipient; in development a stand-in may take its place."""
        sink_class, given = sink_of(self.settings, self.policy, name)
        if given is None:
            place = await self._stand_in(name, sink_class.stand_in)
            recipient = self.policy.recipients[name]
            given = made_with(self.settings, recipient, name, sink_class, place)
        sink = sink_class(**given)
        self._open.push_async_callback(sink.close)
        return sink

    async def _stand_in(self, name: str, where: str) -> dict[str, str]:
        module, _, class_name = where.partition(":")
        stand_in = getattr(importlib.import_module(module), class_name)()
        await asyncio.get_running_loop().run_in_executor(None, stand_in.start)
        self._open.callback(stand_in.stop)
        self.stand_ins[name] = stand_in
        self._say(
            f"{name}: NOT the real one. A local stand-in takes its place and forgets all at the "
            f"end; what came last: {stand_in.url}/"
        )
        return dict(stand_in.settings)

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set; then stop taking, drain what is in flight, and close."""
        loops: dict[str, Callable[[asyncio.Event], Awaitable[None]]] = {
            name: forwarder.run for name, forwarder in self.forwarders.items()
        }
        loops |= {"audit": self._audit_hourly, "sweeper": self._sweep}
        if self.pseudonymizer is not None:
            loops |= {"pseudonymizer": self.pseudonymizer.run, "keys": self._tend}
        if self.upkeep is not None:
            loops["upkeep"] = self.upkeep.run
        if self.orders.shared:
            loops["orders"] = self.orders.run
        if hasattr(self.storage.broker, "tend"):
            loops["log"] = self._tend_log
        self._loops = [
            asyncio.create_task(self._watched(name, loop), name=name)
            for name, loop in loops.items()
        ]
        await stop.wait()

    async def _tend(self, stop: asyncio.Event) -> None:
        """Rotate, destroy and back up keys when it is their time."""
        identity, pseudonymizer = self.identity, self.pseudonymizer
        if identity is None or pseudonymizer is None:
            return
        periods = keeps(self.policy)
        while not stop.is_set():
            try:
                turns = await asyncio.get_running_loop().run_in_executor(
                    None,
                    lambda: identity.tend(keeps=periods, holding=bool(pseudonymizer.holding)),
                )
                for turn in turns:
                    _log.info(f"key_{turn.what}", use=turn.key.use, kid=turn.key.kid)
                self._unwitnessed += turns
            except KeyringError as error:
                # Nothing stops for this: keys in use stay in use. But somebody has to look.
                _log.error("keys_untended", reason=str(error))
            await asyncio.to_thread(self._witness_turns)
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), _TEND_S)

    async def _tend_log(self, stop: asyncio.Event) -> None:
        """Let the log do what it must do while nobody asks it, and see that it comes back."""
        broker: Any = self.storage.broker
        while not stop.is_set():
            tending = asyncio.ensure_future(self.storage.call(broker.tend))
            done, _ = await asyncio.wait({tending}, timeout=_STUCK_S)
            if broker.fenced or not done:
                # Somebody has our name, or a call that is bounded does not end: only a new process
                # helps. What was not finished is polled again.
                _log.error("log_lost", fenced=broker.fenced, busy_s=round(broker.busy_s))
                os._exit(_EXIT_LOG_LOST)
            with suppress(BrokerError):
                tending.result()
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), _LOG_S)

    async def _sweep(self, stop: asyncio.Event) -> None:
        """Delete dead and held parcels whose retention has ended, a stretch at a time."""
        while not stop.is_set():
            await self.sweep_once()
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), _SWEEP_S)

    async def sweep_once(self) -> int:
        """Go once through what is kept here; give how many parcels were deleted.

        The dead and the held stream (on Kafka the topics' own retention deletes), what was found
        damaged, and requests for a way back.
        """
        shelf, now = self.storage.broker, datetime.now(UTC)
        if self.part.pseudonymizer:
            await asyncio.to_thread(sweep_requests, self.settings.state_dir, now)
        spool = shelf.spool if isinstance(shelf, Buffered) else shelf
        swept = 0
        if isinstance(spool, Spool):
            limit = moment_before(now, self.policy.dead_letters)
            gone = await self.storage.call(spool.forget_lost, limit)
            swept += gone
            if gone:
                self._note_swept("lost", gone)
        if not isinstance(shelf, Shelf):
            return swept
        ends: Mapping[str, Callable[[Parcel], datetime]] = {
            DEAD: lambda letter: ends_at(letter, self.policy.dead_letters),
            HELD: lambda parcel: parcel.retain_until,
        }
        for stream, ends_of in ends.items():
            after, moments = 0, list[datetime]()

            def ended(
                parcel: Parcel,
                ends_of: Callable[[Parcel], datetime] = ends_of,
                moments: list[datetime] = moments,
            ) -> bool:
                moment = ends_of(parcel)
                if now >= moment:
                    moments.append(moment)
                return now >= moment

            while not self._stop.is_set():
                moments.clear()
                count, after = await self.storage.call(
                    partial(sweep, shelf, stream, ended, after=after)
                )
                if count:
                    self._note_swept(stream, count, moments)
                swept += count
                if not after:
                    break
        if swept:
            _log.info("swept", parcels=swept)
        return swept

    async def _watched(self, name: str, loop: Callable[[asyncio.Event], Awaitable[None]]) -> None:
        """Keep a loop going: an error of ours costs a second, never the loop and never an event."""
        while not self._stop.is_set():
            try:
                await loop(self._stop)
            except asyncio.CancelledError:
                raise
            except Exception as error:  # noqa: BLE001 - the edge of the loop; unfinished is polled again
                _log.error("loop_failed", stage=name, **logs.place(error))
                await asyncio.sleep(1.0)

    async def close(self) -> None:
        """Stop taking, finish what is in flight, let go of everything. Nothing taken is lost."""
        self._stop.set()
        if self.gateway is not None:
            await self.gateway.stop()
        if self._loops:
            _, late = await asyncio.wait(self._loops, timeout=_DRAIN_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await self._open.aclose()

    async def order(self, names: Collection[str], *, paused: bool, actor: str) -> None:
        """Pause recipients or go on with them; the order outlives this process.

        A pause protects, so it is done before it is recorded; to go on is recorded first.

        Args:
            names: Of recipients there are (`ordered`).
            paused: Whether to pause.
            actor: Who orders it, as `AuditLog.record` takes it.

        Raises:
            AuditError: It could not be recorded; nothing was resumed.
            BrokerError: Other processes were not told.
        """
        action = "recipient.pause" if paused else "recipient.resume"
        if not paused:
            await asyncio.to_thread(self._witness_each, actor, action, names)
            await self.orders.resume(names)
            return
        try:
            await self.orders.pause(names)
        finally:
            await asyncio.to_thread(self._witness_each, actor, action, names)

    @property
    def ordered(self) -> tuple[str, ...]:
        """Recipients to which orders can be given here: on Kafka all, whoever forwards to them."""
        return self.orders.recipients if self.orders.shared else tuple(self.forwarders)

    def _signer(self) -> Signer:
        if self.identity is None:
            raise KeyringError("There is no key to sign with yet.")
        return self.identity.signer()

    def _checkpoint(self) -> None:
        if self.identity is not None:
            self.audit.checkpoint()

    def witness(self, actor: str, action: str, what: Body, result: str = "done") -> None:
        """Record something in the audit log, under the live policy.

        Raises:
            AuditError: It cannot be written.
        """
        self.audit.record(actor, action, what, result, self.policy.digest)

    def _witness_each(self, actor: str, action: str, names: Iterable[str]) -> None:
        for name in names:
            self.witness(actor, action, {"recipient": name})

    def _witness_turns(self) -> None:
        """Record what was done to keys; what cannot be recorded now, the next time, in its order.

        To destroy a key protects, so it is done before it is recorded.
        """
        try:
            while self._unwitnessed:
                turn = self._unwitnessed[0]
                self.witness("role:run", KEY_ACTIONS[turn.what], about_key(turn.key))
                del self._unwitnessed[0]
        except AuditError as error:
            waiting = len(self._unwitnessed)
            _log.error("audit_failed", error=type(error).__name__, waiting=waiting)

    def _witness_swept(self) -> None:
        """Record what retention deleted since this was recorded last; it is deleted in any case.

        Raises:
            AuditError: It cannot be written; the next hour tells it.
        """
        while self._swept:
            store, swept = self._swept.popitem()
            what: dict[str, str | int] = {"store": store, "count": swept.count}
            if swept.moments:
                what["oldest"] = min(swept.moments).isoformat(timespec="seconds")
                what["latest"] = max(swept.moments).isoformat(timespec="seconds")
            try:
                self.witness("role:run", "retention.sweep", what)
            except AuditError:
                self._note_swept(store, swept.count, swept.moments)
                raise

    def _note_swept(self, store: str, count: int, moments: Sequence[datetime] = ()) -> None:
        swept = self._swept.setdefault(store, _Swept())
        swept.count += count
        swept.moments += (min(moments), max(moments)) if moments else ()

    async def _audit_hourly(self, stop: asyncio.Event) -> None:
        """Each hour: what went to whom, what is past its period, and a signed checkpoint."""
        # Kept over a failure, so that the next hour tells what this one could not.
        since, before = self._told = self._told or (datetime.now(UTC), (await self.books()).sent())
        while not stop.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), self.audit_every_s)
            now, sent = datetime.now(UTC), (await self.books()).sent()
            for name, counts in sent.items():
                fresh: dict[str, str | int] = {
                    word: count - before.get(name, {}).get(word, 0)
                    for word, count in counts.items()
                }
                fresh |= {"recipient": name, "since": since.isoformat(timespec="seconds")}
                await asyncio.to_thread(self.witness, "role:run", "egress.total", fresh)
            since, before = self._told = now, sent
            await asyncio.to_thread(self._witness_swept)
            keep_years = self.policy.ways_back.audit.keep_years
            await asyncio.to_thread(self.audit.prune, keep_years=keep_years)
            await asyncio.to_thread(self._checkpoint)

    def _depart(self) -> None:
        """Record the stop; a log that fails now must not keep anything from being closed."""
        if self.identity is not None:
            self._unwitnessed += self.identity.turns()
        self._witness_turns()
        try:
            self._witness_swept()
            self.witness("role:run", "run.stop", {"role": self.part.name})
            self._checkpoint()
        except AuditError as error:
            _log.error("audit_failed", error=type(error).__name__)

    async def snapshot(self) -> Snapshot:
        """Read everything that ``telemetry status`` tells of."""
        shelf = self.storage.broker
        books = await self.books()
        oldest: dict[str, Parcel] = {}
        room: dict[str, Room] = {}
        log_ends: dict[str, datetime] = {}
        if isinstance(shelf, Shelf):
            oldest, room = await self.storage.call(lambda: (shelf.oldest(), shelf.room()))
        elif hasattr(shelf, "waits"):
            waits: dict[str, tuple[Parcel, datetime]] = await self.storage.call(shelf.waits)
            topics = importlib.import_module("telemetry.brokers.kafka.topics")
            for stream, (parcel, taken_at) in waits.items():
                oldest[stream] = parcel
                kept = self.policy.log_retention[SEALED if stream == SEALED else "clean"]
                log_ends[stream] = taken_at + topics.least_kept(kept)
        return Snapshot(
            now=datetime.now(UTC),
            books=books,
            holding=self.holding,
            forwarders={name: each.state() for name, each in self.forwarders.items()},
            policy=self.policy.digest,
            accepted=self.register.accepts(self.policy.digest),
            environment=self.settings.environment,
            stand_ins=tuple(self.stand_ins),
            oldest=oldest,
            room=room,
            letters=self.policy.dead_letters,
            log_ends=log_ends,
        )

    async def books(self) -> Books:
        """Read the books as they stand."""
        if self.pseudonymizer is None and self.intake is not None:
            return Books(dict(self.storage.stored), {}, (), whole=False)
        broker = self.storage.broker
        if self.pseudonymizer is None:
            # A forwarder may not read the sealed log, so it knows its own recipients only.
            shared: Any = broker
            entries, pending = await self.storage.call(shared.books_of, tuple(self.sinks))
            return Books(entries, pending, tuple(self.sinks))
        snapshot = getattr(broker, "snapshot", lambda: (broker.books(), broker.pending()))
        entries, pending = await self.storage.call(snapshot)
        names = tuple(n for n, recipient in self.policy.recipients.items() if recipient.sink)
        return Books(entries, pending, names, shelved=isinstance(broker, Shelf))


def settle() -> None:
    """Make this process, which has opened its pipeline, one that only serves from here on.

    Gives back what only the start needed. What is loaded by now stays until the end, so the
    collector of garbage need not look at it again and again.
    """
    sys.setswitchinterval(_SWITCH_S)
    gc.collect()
    gc.freeze()
    with suppress(OSError, AttributeError):  # another C library keeps its own house
        ctypes.CDLL(None).malloc_trim(0)


def keeps(policy: Policy) -> dict[str, Period]:
    """Tell for each token domain how long an event of it may be processed and kept at all."""
    keeps: dict[str, Period] = {}
    for recipient in policy.recipients.values():
        for purpose in recipient.purposes:
            period = policy.retention[policy.purposes[purpose].retention]
            known = keeps.setdefault(recipient.domain, period)
            if period.may_exceed(known):
                keeps[recipient.domain] = period
    return keeps


@contextmanager
def _taken(name: str, address: str) -> Iterator[None]:
    """Say which setting names an address on which we cannot listen."""
    try:
        yield
    except OSError as error:
        raise unbindable(name, address, error) from None


def rates_of(recipient: Recipient) -> list[Rate]:
    """Give a recipient's documented limits as the forwarder keeps them."""
    return [
        Rate(events=r.events, period_s=r.period_s, each=r.each, kinds=frozenset(r.kinds))
        for r in recipient.rates
    ]
