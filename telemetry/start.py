"""What must hold before anything starts: one list, for a start and for ``telemetry check``.

Owns every reason for which ``telemetry run``, or a role by itself, is refused. Each condition looks
and none makes, sends or keeps anything: a start that is refused leaves everything as it was. Where
the same can still fail later (a port that somebody takes in between), the start says the same then.

Not asked: recipients, and Kafka. A PostgreSQL vault is: it tells whether it fits the keys.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import inspect
import os
import platform
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from scrubbers.detectors import Detectors
from scrubbers.model import RuleError
from scrubbers.user_agent import reduce_user_agent
from telemetry.brokers.spool import Spool
from telemetry.config import Bind, RecipientSettings, Settings, check_vault, is_loopback
from telemetry.errors import (
    AuditError,
    BrokerError,
    ConfigError,
    KeyringError,
    PolicyError,
    TelemetryError,
    VaultError,
)
from telemetry.identity import (
    Custody,
    guarded,
    inspect_vault,
    load_dead_letter_sealer,
    load_sealer,
    load_spool_key,
)
from telemetry.identity import inspect as inspect_keys
from telemetry.identity.audit import AUDIT_FILE, AuditLog
from telemetry.identity.keyring import Keyring
from telemetry.orders import Paused
from telemetry.policy import (
    Policy,
    PolicyRegister,
    Recipient,
    load_policy,
    policy_dir,
    schemas_dir,
)
from telemetry.rules import Schemas
from telemetry.sinks import Sink, shaping_only

__all__ = [
    "POLICIES_FILE",
    "SPEED_FILE",
    "SPOOL_FILE",
    "Finding",
    "Part",
    "Start",
    "check_broker",
    "check_host",
    "check_speed",
    "made_with",
    "networks_of",
    "open_custody",
    "remember_speed",
    "sink_of",
    "unbindable",
]

SPOOL_FILE: Final = "spool.sqlite3"
SPEED_FILE: Final = "detectors.fast"
POLICIES_FILE: Final = "policies.ndjson"
_PORTS: Final = 65_535
_VERSION: Final = importlib.metadata.version("milchglas")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Which roles a process plays.

    Attributes:
        gateway, pseudonymizer: Whether it is one.
        forwards: To which recipients it forwards; None: to all that the policy names with a sink.
    """

    gateway: bool = True
    pseudonymizer: bool = True
    forwards: tuple[str, ...] | None = None

    @property
    def whole(self) -> bool:
        """Whether it is the whole pipeline."""
        return self.gateway and self.pseudonymizer and self.forwards is None

    @property
    def name(self) -> str:
        """What the audit log calls it."""
        if self.whole:
            return "run"
        if self.gateway or self.pseudonymizer:
            return "gateway" if self.gateway else "pseudonymize"
        return "forward"


@dataclass(frozen=True, slots=True)
class Finding:
    """One reason for which a start is refused.

    Attributes:
        about: What was looked at, in a word or two: ``policy``, ``recipient heap``.
        error: What the start ends with.
    """

    about: str
    error: TelemetryError

    @property
    def remedy(self) -> str:
        """What to do about it."""
        if isinstance(self.error, ConfigError) and self.error.remedy:
            return self.error.remedy
        for kind, remedy in _REMEDIES:
            if isinstance(self.error, kind):
                return remedy
        return "See docs/keys.md." if isinstance(self.error, KeyringError) else ""

    def as_json(self) -> dict[str, Any]:
        """Give it as ``telemetry check --json`` shows it."""
        error = self.error
        told: dict[str, Any] = {"about": self.about, "error": type(error).__name__}
        if isinstance(error, ConfigError):
            path = None if error.path is None else str(error.path)
            told |= {"message": error.message, "path": path, "line": error.line}
        else:
            told |= {"message": str(error), "path": None, "line": None}
        return told | {"remedy": self.remedy}


_REMEDIES: Final = (
    (VaultError, "Check [vault] url and journal, and that the database answers this user."),
    (AuditError, "See docs/audit.md."),
    (BrokerError, "See docs/reliability.md."),
)


class Start:
    """The conditions of one start, and what they have loaded when they hold.

    Args:
        settings: What the operator set.
        part: Which roles are to start.

    Attributes:
        policy: Once its condition holds.
        schemas: The same, for roles that scrub.
        forwards: To whom this start forwards.
        keys: The keyset that is there; None if the first start is to make it.
    """

    def __init__(self, settings: Settings, part: Part) -> None:
        self.settings, self.part = settings, part
        self.policy: Policy | None = None
        self.schemas: Schemas | None = None
        self.forwards: tuple[str, ...] = ()
        self.keys: Keyring | None = None
        self._folder_fits = self._keys_fit = False

    @property
    def holds_keys(self) -> bool:
        """Whether a role of this start holds keys, and they could be looked at."""
        return self._keys_fit

    def findings(self, *, running: bool = False) -> Iterator[Finding]:
        """Look at everything; give each reason for which the start would be refused.

        What cannot be told because something before it is wrong is passed over.

        Args:
            running: The pipeline itself runs on this state folder: its ports and files are its.
        """
        for about, condition in self._conditions(running=running):
            try:
                condition()
            except TelemetryError as error:
                yield Finding(about, error)

    def require(self) -> None:
        """Refuse to start for the first reason there is.

        Raises:
            TelemetryError: That reason.
        """
        for finding in self.findings():
            raise finding.error

    def _conditions(self, *, running: bool) -> Iterator[tuple[str, Callable[[], None]]]:
        part, settings = self.part, self.settings
        yield "role", self._role
        yield "policy", self._policy
        if part.pseudonymizer:
            yield "vault settings", lambda: check_vault(settings)
        if settings.broker.kind == "kafka":
            yield "broker", lambda: check_broker(settings)
        if self.policy is not None:
            yield "recipients", self._recipients
            for name in self.forwards:
                yield f"recipient {name}", partial(self._recipient, name)
            if part.gateway or part.pseudonymizer:
                yield "schemas", self._schemas
            if part.pseudonymizer:
                yield "sinks", self._sinks
        if part.gateway:
            yield "bind", self._bind
            yield "projects", self._projects
            yield "gateway.yields", self._yields
        yield from self._state()
        if not running:
            yield from self._unowned()

    def _state(self) -> Iterator[tuple[str, Callable[[], None]]]:
        settings, state = self.settings, self.settings.state_dir
        yield "state", self._folder
        if not self._folder_fits:
            return
        yield "paused", lambda: _ignore(Paused(state / "paused.json").read())
        if self.policy is not None:
            yield "policy register", self._register
        if self.part.pseudonymizer:
            yield "keys", self._keys
        if self.part.gateway and not self.part.pseudonymizer:
            yield "public keys", lambda: _ignore(load_sealer(state / "keys" / "public.json"))
        if not self.part.pseudonymizer:
            yield "dead letters", self._dead_letters
        if self._logs_here and not (self.part.pseudonymizer and self.keys is None):
            yield (
                "log key",
                lambda: _ignore(
                    load_spool_key(
                        state, environment=settings.environment, custody=open_custody(settings)
                    )
                ),
            )

    def _unowned(self) -> Iterator[tuple[str, Callable[[], None]]]:
        """Look at what a running pipeline has for itself."""
        if self._folder_fits and self._logs_here:
            yield "log", self._log
        if self._folder_fits:
            yield "audit log", self._audit
        if self._keys_fit:
            yield "vault", self._vault
        yield "ports", self._ports

    @property
    def _logs_here(self) -> bool:
        """Whether this start opens the embedded log."""
        if self.settings.broker.kind == "spool":
            return True
        alone = self.part.gateway and not self.part.whole
        return alone and self.settings.gateway.on_broker_loss == "spool"

    # --- What the operator wrote ------------------------------------------------------------------

    def _role(self) -> None:
        if not self.part.whole and self.settings.broker.kind != "kafka":
            raise ConfigError(
                "a role by itself needs a log that others reach too.",
                remedy='Set broker.kind to "kafka"; or start all roles in one: telemetry run',
            )

    def _policy(self) -> None:
        self.policy = load_policy(policy_dir(self.settings.policy.path))

    def _recipients(self) -> None:
        recipients = self._loaded.recipients
        forwards = self.part.forwards
        if forwards is None:
            forwards = tuple(name for name, one in recipients.items() if one.sink)
        for name in forwards:
            if name not in recipients or not recipients[name].sink:
                known = ", ".join(name for name, one in recipients.items() if one.sink)
                raise ConfigError(
                    "recipients.toml names no such recipient with a sink.",
                    remedy=f"Use one of: {known}.",
                )
        self.forwards = forwards

    def _recipient(self, name: str) -> None:
        sink_class, given = sink_of(self.settings, self._loaded, name)
        if given is not None:
            sink_class(**given)  # it reads its arguments, and connects to nobody before it sends

    def _schemas(self) -> None:
        policy = self._loaded
        try:
            check_speed(policy.detectors, self.settings.state_dir / SPEED_FILE)
        except RuleError as error:
            raise PolicyError(str(error), path=policy.folder / "detectors.toml") from None
        if self.part.gateway:
            reduce_user_agent("")  # loads its table now, not while the first client waits
        self.schemas = Schemas(policy, policy.detectors)

    def _sinks(self) -> None:
        for recipient in self._loaded.recipients.values():
            if recipient.sink:
                shaping_only(recipient.sink)

    def _bind(self) -> None:
        settings = self.settings
        if not settings.trial and not Bind.parse(settings.bind).loopback:
            raise ConfigError(
                f"bind {settings.bind} would take events in clear over the network.",
                remedy="Bind to loopback and put a TLS proxy before it.",
            )

    def _projects(self) -> None:
        if not self.settings.trial and not self.settings.project:
            raise ConfigError(
                "no client may send: no [project.NAME] is configured.",
                remedy="Give each application a [project.NAME] with key and tenant.",
            )

    def _yields(self) -> None:
        for kind in self.settings.gateway.yields:
            if not (schemas_dir() / f"{kind}.avsc").is_file():
                raise ConfigError(
                    f"gateway.yields names {kind!r}, which is no kind.",
                    remedy="Kinds are the names of the records in schemas/.",
                )

    @property
    def _loaded(self) -> Policy:
        if self.policy is None:
            raise PolicyError("is not loaded.")
        return self.policy

    # --- What is in the state folder --------------------------------------------------------------

    def _folder(self) -> None:
        state = self.settings.state_dir
        try:
            guarded.check_writable(state / "admin.sock")
        except KeyringError:
            raise ConfigError(
                "is to be the state folder, but cannot be made or written.",
                path=state,
                remedy="Name another with --state, or let this user write there.",
            ) from None
        self._folder_fits = True

    def _register(self) -> None:
        path = self.settings.state_dir / POLICIES_FILE
        guarded.check_writable(path)
        PolicyRegister(path).check(self._loaded.digest)

    def _keys(self) -> None:
        settings = self.settings
        custody = open_custody(settings)
        self.keys = inspect_keys(
            settings.state_dir, environment=settings.environment, custody=custody
        )
        self._keys_fit = True

    def _dead_letters(self) -> None:
        """Look at the public key for them; a forwarder without one forgets what is refused."""
        public = self.settings.state_dir / "keys" / "public.json"
        if self.part.gateway or public.exists():
            load_dead_letter_sealer(public)

    def _log(self) -> None:
        settings, path = self.settings, self.settings.state_dir / SPOOL_FILE
        key: bytes | None = None
        with suppress(KeyringError):
            key = load_spool_key(
                settings.state_dir,
                environment=settings.environment,
                custody=open_custody(settings),
            ).expose()
        Spool.inspect(path, key=key)

    def _audit(self) -> None:
        export = self.settings.audit.checkpoints if self.part.pseudonymizer else ""
        AuditLog.inspect(
            self.settings.state_dir / AUDIT_FILE, export=Path(export) if export else None
        )

    def _vault(self) -> None:
        vault = self.settings.vault
        inspect_vault(
            self.settings.state_dir,
            self.keys,
            vault_url=vault.url or None,
            journal_url=vault.journal or None,
        )

    # --- Where it listens -------------------------------------------------------------------------

    def _ports(self) -> None:
        wanted = {"admin_bind": self.settings.admin_bind}
        if self.part.gateway:
            wanted["bind"] = self.settings.bind
        if len(set(wanted.values())) < len(wanted) and Bind.parse(self.settings.bind).port:
            raise ConfigError(
                f"bind and admin_bind are both {self.settings.bind}.",
                remedy="Give them two ports.",
            )
        for name, address in wanted.items():
            _check_free(name, address)


def _ignore(_: object) -> None:
    """Look only: what was loaded is loaded again by who uses it."""


def _check_free(name: str, address: str) -> None:
    """Bind as a server would, and let go at once."""
    bind = Bind.parse(address)
    if bind.port > _PORTS:
        raise ConfigError(
            f"{name} {address} has a port that there is not.", remedy=f"Use 1 to {_PORTS}."
        )
    try:
        places = socket.getaddrinfo(
            bind.host, bind.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, kind, protocol, _, place in places:
            with socket.socket(family, kind, protocol) as tried:
                # As asyncio does for its servers.
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    tried.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                tried.bind(place)
    except (OSError, UnicodeError) as error:
        raise unbindable(name, address, error) from None


def unbindable(name: str, address: str, error: Exception) -> ConfigError:
    """Say which setting names an address on which we cannot listen, and why."""
    if isinstance(error, socket.gaierror) or not isinstance(error, OSError):
        why = "no such host is known"
    else:
        why = os.strerror(error.errno or 0)
    return ConfigError(
        f"{name} {address} cannot be listened on: {why}.",
        remedy="End what listens there, or name another address.",
    )


# --- Settings, as a start takes them ------------------------------------------------------------


def open_custody(settings: Settings) -> Custody | None:
    """Give the custody of keys that the settings name; None where keys lie in the clear.

    Raises:
        KeyringError: custody.kek is none.
    """
    if not settings.wraps_keys:
        return None
    named = settings.custody
    return Custody(named.kek, state=settings.state_dir, backup=named.backup)


def check_broker(settings: Settings) -> None:
    """Refuse settings for Kafka that lack something or would show events; asks no broker.

    Raises:
        ConfigError: They do, or a file that they name cannot be read.
    """
    section = settings.broker
    if not section.bootstrap:
        raise ConfigError(
            "broker.kind is kafka, but no broker is named.",
            remedy="Set broker.bootstrap or TELEMETRY_KAFKA_BOOTSTRAP to host:port.",
        )
    hosts = [address.rpartition(":")[0] for address in section.bootstrap.split(",")]
    if section.protocol == "plaintext" and not settings.trial and not all(map(is_loopback, hosts)):
        raise ConfigError(
            "broker.protocol is plaintext, so events would cross the network in clear.",
            remedy='Set it to "tls" or "sasl_tls".',
        )
    # Loaded only here: the embedded form needs no Kafka client.
    clients = importlib.import_module("telemetry.brokers.kafka.clients")
    clients.connection_options(section)


_RECIPIENT_KEYS: Final = (*(f.name for f in msgspec.structs.fields(RecipientSettings)), "api_key")


def sink_of(
    settings: Settings, policy: Policy, name: str
) -> tuple[type[Sink], dict[str, Any] | None]:
    """Give the class of a recipient's sink and what it is made with.

    Args:
        settings: What the operator set.
        policy: Names the recipient, with a sink.
        name: The recipient.

    Returns:
        The class; and its arguments, None where a stand-in takes the recipient's place.

    Raises:
        ConfigError: Something is missing, too much, or leads where the policy lets nothing go.
    """
    recipient = policy.recipients[name]
    module, _, class_name = recipient.sink.partition(":")
    try:
        sink_class: type[Sink] = getattr(importlib.import_module(module), class_name)
    except (ImportError, AttributeError):
        raise ConfigError(
            f"recipients.toml names the sink {recipient.sink!r}, which does not exist.",
            remedy="Name an importable class as module:Class.",
        ) from None
    given = _given(settings.recipient.get(name, RecipientSettings()))
    if not given and settings.trial and sink_class.stand_in:
        return sink_class, None
    return sink_class, made_with(settings, recipient, name, sink_class, given)


def made_with(
    settings: Settings,
    recipient: Recipient,
    name: str,
    sink_class: type[Sink],
    given: Mapping[str, str],
) -> dict[str, Any]:
    """Give all arguments of a sink, from those that name its recipient's place.

    Raises:
        ConfigError: As `sink_of`.
    """
    takes = inspect.signature(sink_class).parameters
    if unknown := [key for key in given if key not in takes]:
        raise ConfigError(
            f"recipient.{name} has {unknown[0]!r}, which {sink_class.__name__} does not take.",
            remedy=f"It takes: {', '.join(k for k in takes if k in _RECIPIENT_KEYS)}.",
        )
    lacking = [k for k, p in takes.items() if p.default is p.empty and k not in given]
    if lacking:
        raise ConfigError(
            f"recipient.{name} lacks {' and '.join(map(repr, lacking))}.",
            remedy=f"Set it in telemetry.toml under [recipient.{name}].",
        )
    if not settings.trial:
        check_host(name, recipient.hosts, given)
    where = {"networks": networks_of(recipient, trial=settings.trial)}
    return {**given, **{key: where[key] for key in where if key in takes}}


def _given(settings: RecipientSettings) -> dict[str, str]:
    """Keyword arguments for a sink: what is set, with secrets read from their files."""
    given = {key: value for key, value in msgspec.to_builtins(settings).items() if value}
    given.pop("search", None)  # for who searches there, not for what sends
    if path := given.pop("api_key_file", ""):
        try:
            given["api_key"] = Path(path).read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError):
            raise ConfigError(
                "cannot be read.", path=Path(path), remedy="Name a readable file."
            ) from None
    return given


def networks_of(recipient: Recipient, *, trial: bool) -> list[str]:
    """Give the networks in which a recipient may be besides the public Internet.

    Those that the policy has among its hosts; in development all.
    """
    if trial:
        return ["0.0.0.0/0", "::/0"]
    networks = []
    for host in recipient.hosts:
        with suppress(ValueError):
            networks.append(str(ip_network(host)))
    return networks


def check_speed(detectors: Detectors, memo: Path) -> None:
    """Refuse a table that would slow every event down; as `Detectors.check_speed`, but once.

    A table that was fast enough under a version of RE2 still is at the next start, which need not
    spend a third of a second on it. What decides it stands in the memo as one digest: whoever
    changes the table, RE2 or the memo has it measured again. Whether a table finds what it must is
    checked at each start, whatever the memo says.

    Args:
        detectors: The table.
        memo: Where `remember_speed` keeps the digest. One that cannot be read costs time only.

    Raises:
        RuleError: The table is too slow.
    """
    with suppress(OSError, UnicodeDecodeError):
        if memo.read_text("ascii").strip() == _digest_of_speed(detectors):
            return
    detectors.check_speed(time.thread_time)


def remember_speed(detectors: Detectors, memo: Path) -> None:
    """Write down that a table was fast enough. What cannot be written costs time at each start."""
    with suppress(OSError):
        memo.write_text(f"{_digest_of_speed(detectors)}\n", "ascii")


def _digest_of_speed(detectors: Detectors) -> str:
    what = [row.detector.anchor for row in detectors.rows]
    what += [importlib.metadata.version("google-re2"), platform.machine(), _VERSION]
    return hashlib.sha256(msgspec.json.encode(what)).hexdigest()


def check_host(name: str, hosts: Sequence[str], given: Mapping[str, str]) -> None:
    """Let nothing out but to the hosts that the policy names for a recipient.

    Args:
        name: The recipient.
        hosts: What ``recipients.toml`` names; their subdomains count too.
        given: Its settings, of which ``url`` and ``dsn`` say where it is.

    Raises:
        ConfigError: It is somewhere else. The message does not say where.
    """
    for key in ("url", "dsn"):
        host = urlsplit(given.get(key, "")).hostname
        if host is not None and not any(host == h or host.endswith(f".{h}") for h in hosts):
            raise ConfigError(
                f"recipient.{name} has a {key} at a host that recipients.toml does not name.",
                remedy=f"Use one of: {', '.join(hosts)}; or add the host to the policy.",
            )
