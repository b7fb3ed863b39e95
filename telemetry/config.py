"""Settings: one typed object, read once at start.

``telemetry.toml`` (or the file named by ``TELEMETRY_CONFIG``), overridden by ``TELEMETRY_*``. An
unknown key is refused with its line. Secrets come from files or the environment; none has a
representation that shows it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec

from telemetry.errors import ConfigError
from telemetry.policy import read_toml

__all__ = [
    "Bind",
    "Project",
    "RecipientSettings",
    "Settings",
    "check_vault",
    "is_loopback",
    "load_settings",
]

_Bind = Annotated[str, msgspec.Meta(pattern=r"^(\[[0-9a-fA-F:]+\]|[^:\s]+):\d{1,5}$")]


_Prefix = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A section of the file. A key that is not declared here is refused."""


class PolicySection(_Section, frozen=True):
    """Attributes: path: Folder of another policy than the shipped one."""

    path: str = ""


class GatewaySection(_Section, frozen=True):
    """How the gateway takes requests.

    Attributes:
        trusted_proxies: How many proxies before us append to ``X-Forwarded-For``; 0: none, the
            socket's peer is the client.
        events_per_minute: Most events of one key in a minute; more are answered 429.
        on_broker_loss: What a gateway by itself does while Kafka is away: ``spool`` keeps events,
            encrypted, on its own disk and brings them to Kafka later; ``reject`` answers 503.
    """

    trusted_proxies: Annotated[int, msgspec.Meta(ge=0, le=8)] = 0
    events_per_minute: Annotated[int, msgspec.Meta(ge=1)] = 600_000
    on_broker_loss: Literal["spool", "reject"] = "spool"


class BrokerSection(_Section, frozen=True):
    """Where the log is.

    Attributes:
        kind: ``spool`` (one file under the state directory) or ``kafka``.
        quota_mib: Most space the spool may take, in MiB.
        bootstrap: ``host:port`` of Kafka brokers, with commas.
        protocol: ``plaintext`` (in development, and on loopback), ``tls`` or ``sasl_tls``.
        ca_file: Whom to trust; by default whom the system trusts.
        certificate_file, private_key_file: Who we are, for brokers that want a certificate.
        mechanism: How we say who we are with ``sasl_tls``. OAUTHBEARER takes the token of
            `token_file`, read at each connection; the others `username` and `password_file`.
        topic_prefix, group_prefix: First word of every topic, of every consumer group.
        member: Name of this process in its groups; by default the host's.
        partitions, replication: Of topics that ``telemetry topics`` makes.
        api_version: Protocol version of an old broker.
    """

    kind: Literal["spool", "kafka"] = "spool"
    quota_mib: Annotated[int, msgspec.Meta(ge=16)] = 4096
    bootstrap: str = ""
    protocol: Literal["plaintext", "tls", "sasl_tls"] = "plaintext"
    ca_file: str = ""
    certificate_file: str = ""
    private_key_file: str = ""
    mechanism: Literal["SCRAM-SHA-512", "SCRAM-SHA-256", "OAUTHBEARER"] = "SCRAM-SHA-512"
    username: str = ""
    password_file: str = ""
    token_file: str = ""
    topic_prefix: _Prefix = "telemetry"
    group_prefix: _Prefix = "telemetry"
    member: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]{0,200}$")] = ""
    partitions: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 12
    replication: Annotated[int, msgspec.Meta(ge=1, le=32)] = 3
    api_version: str = ""


class AuditSection(_Section, frozen=True):
    """Where signed checkpoints of the audit log go.

    Attributes:
        checkpoints: A folder that belongs to a second principal, such as the data protection
            officer; empty: they stay here only.
    """

    checkpoints: str = ""


class VaultSection(_Section, frozen=True):
    """Where the secrets of subjects are.

    Attributes:
        url: SQLAlchemy URL, ``postgresql+psycopg://…`` where more than one pseudonymizer works;
            empty: a SQLite file under the state directory. A password belongs into a passfile.
        journal: The same for the tombstone journal, which must not come back with a backup of the
            vault; empty: a SQLite file under the state directory.
        cache: How many subjects a process remembers, for less than a minute.
    """

    url: str = ""
    journal: str = ""
    cache: Annotated[int, msgspec.Meta(ge=0, le=10_000_000)] = 65_536

    def __repr__(self) -> str:
        return "VaultSection(…)"

    @property
    def shared(self) -> bool:
        """Whether several processes may work on it."""
        return self.url.startswith("postgresql")


class CustodySection(_Section, frozen=True):
    """Who holds the key that all others are wrapped with.

    Attributes:
        kek: ``file:PATH``, ``env:NAME``, ``credential:NAME`` or ``command:PROGRAM ARGUMENT…``;
            empty: ``file:STATE/custody/kek``, made at the first start. In development without it
            keys lie in the clear.
        backup: Folder of the second copy of the wrapped keys; empty: ``STATE/backup``.
    """

    kek: str = ""
    backup: str = ""

    def __repr__(self) -> str:
        return "CustodySection(…)"


class DeadSection(_Section, frozen=True):
    """When a stage stops rather than make dead letters of nearly everything.

    Attributes:
        run_length: Most dead letters in a row.
        ratio: Largest part of dead letters among a stage's last 2,000 outcomes, 0 to 1.
    """

    run_length: Annotated[int, msgspec.Meta(ge=1)] = 500
    ratio: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.5


class Project(_Section, frozen=True):
    """One application that may send.

    Attributes:
        key: Public key of its DSN.
        tenant: Name under which its events are kept apart.
    """

    key: str
    tenant: str


class RecipientSettings(_Section, frozen=True):
    """Address and credentials of one recipient; which of them it needs, its sink says.

    Attributes:
        url: Base URL (Heap). app_id: Environment id (Heap). dsn: Where events go (Sentry).
        api_key_file: File with the key for deletions (Heap).
        search: Address of its search with ``{token}`` in it, for `telemetry account token`.
    """

    url: str = ""
    app_id: str = ""
    dsn: str = ""
    api_key_file: str = ""
    search: Annotated[str, msgspec.Meta(pattern=r"^(https?://\S*\{token\}\S*)?$")] = ""

    def __repr__(self) -> str:
        return "RecipientSettings(…)"


class Settings(_Section, frozen=True):
    """Everything an operator may set.

    Attributes:
        environment: Only ``development`` has open keys, stand-ins, any recipient's host, and plain
            HTTP from outside, and keys in the clear.
        state: Folder for log, keys and vault.
        bind: Where clients connect. admin_bind: Health and metrics.
    """

    environment: Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9_-]{0,31}$")] = "development"
    state: str = ".telemetry"
    bind: _Bind = "127.0.0.1:4180"
    admin_bind: _Bind = "127.0.0.1:4181"
    log: Literal["auto", "json", "console"] = "auto"
    policy: PolicySection = PolicySection()
    gateway: GatewaySection = GatewaySection()
    broker: BrokerSection = BrokerSection()
    audit: AuditSection = AuditSection()
    vault: VaultSection = VaultSection()
    custody: CustodySection = CustodySection()
    dead: DeadSection = DeadSection()
    project: dict[str, Project] = {}
    recipient: dict[str, RecipientSettings] = {}

    @property
    def production(self) -> bool:
        """Whether this is the real thing."""
        return self.environment == "production"

    @property
    def trial(self) -> bool:
        """Whether this is somebody's own machine: open keys, stand-ins and any host are fine."""
        return self.environment == "development"

    @property
    def wraps_keys(self) -> bool:
        """Whether keys are wrapped; in development only if somebody asks for it."""
        return not self.trial or bool(self.custody.kek)

    @property
    def state_dir(self) -> Path:
        """Folder for log, keys and vault."""
        return Path(self.state)


class Bind(msgspec.Struct, frozen=True):
    """A host and a port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Bind:
        """Read ``host:port`` or ``[v6]:port``."""
        host, _, port = text.rpartition(":")
        return cls(host.strip("[]"), int(port))

    @property
    def loopback(self) -> bool:
        """Whether only this machine can connect."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can be meant."""
    return host.strip("[]") in ("localhost", "::1") or host.startswith("127.")


_ENVIRONMENT: Mapping[str, tuple[str, ...]] = {
    "TELEMETRY_ENVIRONMENT": ("environment",),
    "TELEMETRY_STATE": ("state",),
    "TELEMETRY_BIND": ("bind",),
    "TELEMETRY_ADMIN_BIND": ("admin_bind",),
    "TELEMETRY_LOG": ("log",),
    "TELEMETRY_POLICY": ("policy", "path"),
    "TELEMETRY_AUDIT_CHECKPOINTS": ("audit", "checkpoints"),
    "TELEMETRY_BROKER": ("broker", "kind"),
    "TELEMETRY_KAFKA_BOOTSTRAP": ("broker", "bootstrap"),
    "TELEMETRY_VAULT_URL": ("vault", "url"),
    "TELEMETRY_VAULT_JOURNAL": ("vault", "journal"),
    "TELEMETRY_CUSTODY_KEK": ("custody", "kek"),
    "TELEMETRY_CUSTODY_BACKUP": ("custody", "backup"),
    "TELEMETRY_SENTRY_DSN": ("recipient", "sentry", "dsn"),
    "TELEMETRY_HEAP_URL": ("recipient", "heap", "url"),
    "TELEMETRY_HEAP_APP_ID": ("recipient", "heap", "app_id"),
}


def load_settings(
    path: Path | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Settings:
    """Read the settings.

    Args:
        path: The file; by default ``TELEMETRY_CONFIG``, else ``telemetry.toml`` if there is one.
        environ: Stands in for the process environment.
        overrides: Top-level settings from the command line; None values are ignored.

    Raises:
        ConfigError: With file, line and what to do. A value from the environment is never shown.
    """
    environ = os.environ if environ is None else environ
    if path is None and environ.get("TELEMETRY_CONFIG"):
        path = Path(environ["TELEMETRY_CONFIG"])
    if path is None and Path("telemetry.toml").is_file():
        path = Path("telemetry.toml")
    settings = Settings() if path is None else read_toml(path, Settings, ConfigError)
    for name in ("url", "journal"):
        if "@" in (given := getattr(settings.vault, name)) and urlsplit(given).password:
            raise ConfigError(
                f"vault.{name} holds a password.",
                path=path,
                remedy="Leave it out, and name a file: ?passfile=/path, or PGPASSFILE.",
            )
    data = msgspec.to_builtins(settings)
    for variable, keys in _ENVIRONMENT.items():
        value = environ.get(variable)
        if not value:
            continue
        place = data
        for key in keys[:-1]:
            place = place.setdefault(key, {})
        place[keys[-1]] = value
    data.update({key: value for key, value in (overrides or {}).items() if value is not None})
    try:
        return msgspec.convert(data, Settings)
    except msgspec.ValidationError as error:
        where = str(error).partition(" - at `$.")[2].rstrip("`")
        variable = next((v for v, keys in _ENVIRONMENT.items() if ".".join(keys) == where), where)
        if (overrides or {}).get(where) is not None:
            variable = f"--{where.replace('_', '-')}"
        raise ConfigError(
            f"{variable} has a value that cannot be used.",
            remedy="deploy/config.reference.toml shows what it may be.",
        ) from None


def check_vault(settings: Settings) -> None:
    """Refuse a vault that cannot serve what the settings ask for.

    Two pseudonymizers with a SQLite vault each would give one account two tokens, and an erasure
    would reach one of them. A group of Kafka consumers may have a second member at any time, on any
    host, so with Kafka the vault must be one that can be shared. On one host a lock sees to it.

    Raises:
        ConfigError: It is a SQLite vault where there may be several pseudonymizers, or the vault
            and its journal are one database.
    """
    vault = settings.vault
    if settings.broker.kind == "kafka" and not vault.shared and not settings.trial:
        raise ConfigError(
            "vault.url is a SQLite vault, which serves one pseudonymizer; with Kafka there may be "
            "several.",
            remedy="Set vault.url or TELEMETRY_VAULT_URL to postgresql+psycopg://…",
        )
    if vault.url and vault.url == vault.journal:
        raise ConfigError(
            "vault.journal is the vault itself: a backup would bring both back.",
            remedy="Name a file, or a database on another server.",
        )
