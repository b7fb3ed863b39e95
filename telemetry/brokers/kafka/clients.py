"""kafka-python's clients, wrapped against their traps. Owns how they connect and what they may say.

Knows no topic and no parcel. The traps (K1 to K12) stand in ``docs/reliability.md``.
"""

from __future__ import annotations

import ctypes
import io
import logging
import os
import zlib
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import kafka
import zstandard
from kafka.net.sasl.oauth import AbstractTokenProvider
from kafka.record import default_records, legacy_records

from telemetry.config import BrokerSection
from telemetry.errors import BrokerError, ConfigError

__all__ = [
    "Clients",
    "Gone",
    "broker_error",
    "connection_options",
]

_log: Final = logging.getLogger(__name__)
_EXPANDED_BYTES: Final = 16 * 1024**2
"""Most that one batch of records may expand to: four of our largest records."""

Options = Mapping[str, Any] | Callable[[], Mapping[str, Any]]


class Clients:
    """Makes clients, all with the same way to connect.

    Args:
        bootstrap: ``host:port``, several separated by commas.
        member: Name of this process in its groups, kept over restarts (static membership, K12);
            empty: each start is a new member, and the group waits for the old one.
        timeout_s: Upper bound in seconds of a request.
        options: Further options, for each client that knows them; a function is asked for each
            client anew, so that a password that was changed on disk is used.
    """

    def __init__(
        self,
        bootstrap: str,
        *,
        member: str = "",
        timeout_s: float = 10.0,
        options: Options | None = None,
    ) -> None:
        quieten()
        self._bootstrap, self._member = bootstrap.split(","), member
        self.timeout_ms = int(timeout_s * 1000)
        self._options: Options = options or {}
        self.answered = False
        """Whether a broker has ever answered."""
        self.tells = True
        """Whether to write it into the log when none does; a command says it itself."""
        self._away = False

    def _connect(self, sort: Any, **options: Any) -> Any:
        """Make a client, and say once when no broker answers, and once when one does again.

        Raises:
            BrokerError: None does; it names the address and what to look at.
        """
        try:
            client = sort(**options)
        except (kafka.errors.KafkaTimeoutError, kafka.errors.KafkaConnectionError):
            addresses = ",".join(self._bootstrap)
            if self.tells and not self._away:
                _log.error("kafka_away bootstrap=%s", addresses)
            self._away = True
            raise BrokerError(
                f"No Kafka answers at {addresses}, or none that takes us. Check that it runs, "
                "broker.bootstrap, broker.protocol and its credentials, and the network between."
            ) from None
        if self.tells and self._away:
            _log.warning("kafka_back")
        self._away, self.answered = False, True
        return client

    def _common(self, sort: Any) -> dict[str, Any]:
        quieten()  # modules that were loaded since have loggers of their own
        options = self._options() if callable(self._options) else self._options
        common = {
            "bootstrap_servers": self._bootstrap,
            "bootstrap_timeout_ms": self.timeout_ms,
            "request_timeout_ms": self.timeout_ms,
            "reconnect_backoff_max_ms": 1000,
            "metadata_max_age_ms": 30_000,
            "metrics_enabled": False,
            **options,
        }
        return {name: value for name, value in common.items() if name in sort.DEFAULT_CONFIG}

    def producer(self, largest: int) -> Any:
        """Connect a producer. What it answered is on all in-sync replicas.

        Args:
            largest: Most bytes of a record.
        """
        return self._connect(
            kafka.KafkaProducer,
            acks="all",
            compression_type="zstd",
            delivery_timeout_ms=self.timeout_ms,
            max_block_ms=self.timeout_ms,
            max_request_size=largest + 64 * 1024,
            **self._common(kafka.KafkaProducer),
        )

    def reader(self, group: str = "") -> Any:
        """Connect a consumer; without a group it may read what it is told to, and commits nothing.

        Never with a deserializer: one that raises makes every later poll spin (K3).
        """
        membership: dict[str, Any] = {
            "partition_assignment_strategy": [_assignor()],
            "session_timeout_ms": 10_000,
            "heartbeat_interval_ms": 3_000,
            # A reader that is not tended for so long has died in a way that its heart did not see.
            "max_poll_interval_ms": 60_000,
            "group_instance_id": self._member or None,
        }
        return self._connect(
            kafka.KafkaConsumer,
            group_id=group or None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=100,
            fetch_max_bytes=8 * 1024**2,
            max_partition_fetch_bytes=1024**2,
            **{**(membership if group else {}), **self._common(kafka.KafkaConsumer)},
        )

    def administrator(self) -> Any:
        """Connect what asks for settings and commits."""
        return self._connect(kafka.KafkaAdminClient, **self._common(kafka.KafkaAdminClient))

    def drop(self, client: Any) -> None:
        """Close a client of whatever kind and do not wait for it long; closing may raise (K6)."""
        if client is None:
            return
        with suppress(Exception):
            if isinstance(client, kafka.KafkaProducer):
                client.close(timeout=1)
            elif isinstance(client, kafka.KafkaConsumer):
                client.close(autocommit=False, timeout_ms=1000)
            else:
                client.close()
        # Its destructor would close once more, wait for a thread that does not end, and complain.
        client.close = _closed

    @staticmethod
    def leave_to_parent(clients: Collection[Any]) -> None:
        """In a forked child: never touch them again, not even to free them (K5, K6)."""
        for client in clients:
            if client is not None:
                # Its threads did not survive the fork, and its destructor would wait for them.
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(client))


def _closed(*_: object, **__: object) -> None:
    """Stand in for the `close` of a client that was closed or given up."""


def _assignor() -> Any:
    from kafka.coordinator.assignors.cooperative_sticky import (  # noqa: PLC0415 - names a module
        CooperativeStickyAssignor,
    )

    return CooperativeStickyAssignor


class Gone(kafka.ConsumerRebalanceListener):  # type: ignore[misc] # kafka-python has no types
    """Remembers which partitions were taken away, even if they came back since.

    It is called on the client's own thread, during our polls only. It must not commit (K8).
    """

    def __init__(self) -> None:
        self._partitions: set[Any] = set()

    def on_partitions_revoked(self, revoked: Collection[Any]) -> None:
        """Another member gets them, or all are dealt anew."""
        self._partitions.update(revoked)

    def on_partitions_assigned(self, assigned: Collection[Any]) -> None:
        """Nothing to do: what is assigned can be asked for."""

    def on_partitions_lost(self, lost: Collection[Any]) -> None:
        """The group went on without us: they are somebody else's already."""
        self._partitions.update(lost)

    def take(self) -> set[Any]:
        """Give what was taken away since the last call."""
        gone, self._partitions = self._partitions, set()
        return gone


# ---------------------------------------------------------------------- the way to the broker

_PROTOCOLS: Final[Mapping[str, str]] = {
    "plaintext": "PLAINTEXT",
    "tls": "SSL",
    "sasl_tls": "SASL_SSL",
}


def connection_options(section: BrokerSection) -> Callable[[], dict[str, Any]]:
    """Turn the settings into options for clients. Files are read for each client anew.

    Raises:
        ConfigError: They do not fit together, or a file cannot be read.
    """
    if section.protocol == "sasl_tls":
        needs = (
            ("token_file",) if section.mechanism == "OAUTHBEARER" else ("username", "password_file")
        )
        if lacking := [name for name in needs if not getattr(section, name)]:
            raise ConfigError(
                f"broker.protocol is sasl_tls, but broker.{lacking[0]} is not set.",
                remedy=f"{section.mechanism} needs {' and '.join(needs)}.",
            )
    elif section.username or section.password_file or section.token_file:
        raise ConfigError(
            "broker has credentials, but its protocol sends none.",
            remedy='Set broker.protocol to "sasl_tls".',
        )

    def options() -> dict[str, Any]:
        found: dict[str, Any] = {"security_protocol": _PROTOCOLS[section.protocol]}
        if section.api_version:
            found["api_version"] = tuple(map(int, section.api_version.split(".")))
        for name, option in (
            ("ca_file", "ssl_cafile"),
            ("certificate_file", "ssl_certfile"),
            ("private_key_file", "ssl_keyfile"),
        ):
            if path := getattr(section, name):
                if not os.access(path, os.R_OK):
                    raise ConfigError(
                        "cannot be read.", path=Path(path), remedy=f"See broker.{name}."
                    )
                found[option] = path
        if section.protocol == "sasl_tls":
            found["sasl_mechanism"] = section.mechanism
            if section.mechanism == "OAUTHBEARER":
                found["sasl_oauth_token_provider"] = _TokenFile(Path(section.token_file))
            else:
                found["sasl_plain_username"] = section.username
                found["sasl_plain_password"] = _secret(Path(section.password_file))
        return found

    options()  # what cannot be read now stops the start
    return options


def _secret(path: Path) -> str:
    try:
        text = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise ConfigError("cannot be read.", path=path, remedy="Name a readable file.") from None
    if not text:
        raise ConfigError("is empty.", path=path, remedy="Write the secret into it.")
    return text


class _TokenFile(AbstractTokenProvider):  # type: ignore[misc] # kafka-python has no types
    """Gives the token of a file that somebody else keeps fresh, such as a projected volume."""

    def __init__(self, path: Path) -> None:
        self._path = path
        _secret(path)

    def token(self) -> str:
        return _secret(self._path)


# ---------------------------------------------------------------------- what a batch may expand to


class _ExpandsError(ValueError):
    """A batch expands beyond its bound, or says that it is compressed in a way we do not write."""


def _gzip(data: bytes) -> bytes:
    inflate = zlib.decompressobj(wbits=31)
    found = inflate.decompress(bytes(data), _EXPANDED_BYTES + 1)
    if len(found) > _EXPANDED_BYTES or not inflate.eof:
        raise _ExpandsError
    return found


def _zstd(data: bytes) -> bytes:
    source = io.BytesIO(data)
    # A window of more than that would be memory too, whatever comes out in the end.
    opener = zstandard.ZstdDecompressor(max_window_size=_EXPANDED_BYTES)
    with opener.stream_reader(source, read_across_frames=True) as reader:
        found = reader.read(_EXPANDED_BYTES + 1)
    if len(found) > _EXPANDED_BYTES:
        raise _ExpandsError
    return found


def _refused(_data: bytes) -> bytes:
    raise _ExpandsError


def _cap() -> None:
    """Bound what kafka-python expands in this process (K4); codecs that we do not write are off."""
    for module in (default_records, legacy_records):
        for name, codec in (
            ("gzip_decode", _gzip),
            ("zstd_decode", _zstd),
            ("snappy_decode", _refused),
            ("lz4_decode", _refused),
            ("lz4_decode_old_kafka", _refused),
        ):
            if hasattr(module, name):
                setattr(module, name, codec)


_cap()


# ---------------------------------------------------------------------- silence


def broker_error(error: Exception, about: str = "") -> BrokerError:
    """Name what failed; kafka-python's own messages may quote records and frames (K10)."""
    if isinstance(error, BrokerError):
        return error  # it is ours, and says more
    return BrokerError(f"Kafka failed{about and f' on {about}'} ({type(error).__name__}).")


class _WithoutArguments(logging.Filter):
    """Keeps the text of a log line and drops its arguments: some hold raw records (K10).

    Nothing of connections: each attempt would be three lines, several times a second while no
    broker answers. That is told once, by `Clients`.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name in _OF_CONNECTIONS or "Connection lost" in str(record.msg):
            return False
        record.args = ()
        record.exc_info = record.exc_text = record.stack_info = None
        return record.levelno >= logging.WARNING


_SILENCE: Final = _WithoutArguments()
_OF_CONNECTIONS: Final = (
    "kafka.cluster",
    "kafka.net.manager",
    "kafka.net.selector",
    "kafka.net.transport",
)


def quieten() -> None:
    """Keep kafka-python's loggers at warnings without arguments, also those made since last time.

    A filter on a logger does not see what its children log, so each has its own.
    """
    logging.getLogger("kafka").setLevel(logging.WARNING)
    for name in list(logging.root.manager.loggerDict):
        if name == "kafka" or name.startswith("kafka."):
            logging.getLogger(name).addFilter(_SILENCE)
