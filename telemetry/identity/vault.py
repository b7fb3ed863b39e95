"""The store of per-subject secrets and of who may not be processed.

Owns two tables. *subjects*: 32 random bytes for each subject, wrapped, under a keyed locator; no
identifier, no token, no exact date. Erasing a person destroys these bytes: no key that is left
gives their tokens again. *suppressions*: objection, restriction, consent and erasure under keyed
tags. Knows no identifier; it sees locators and tags only.

SQLite for one host, PostgreSQL for several, by the same statements. A SQLite vault shared by more
than one process needs SQLite 3.51.3 (or a release with its fix): earlier ones can lose a WAL when
two connections reset it at once. One process needs nothing: each vault is one connection.

Source:
    Art. 17, 18, 21 and 7(3) GDPR; EDPB Guidelines 01/2025 (consultation version), 92-93 and 107;
    RFC 8452 (AES-GCM-SIV).
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Generic, Literal, TypeVar

import sqlalchemy as sql
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.pool import StaticPool

from telemetry.errors import CapsuleError, IdentifierError, KeyringError, VaultError
from telemetry.identity.keyring import Keyring, Secret
from telemetry.identity.pseudonym import frame

__all__ = [
    "CACHE_S",
    "STATES",
    "SuppressionState",
    "Tombstoned",
    "Unreadable",
    "Vault",
    "unwrap",
    "wrap",
]

Value = TypeVar("Value")
SuppressionState = Literal["ACTIVE", "GRANTED", "WITHDRAWN", "OBJECTED", "RESTRICTED", "ERASED"]

STATES: Final[Mapping[str, int]] = MappingProxyType(
    {"GRANTED": 0, "ACTIVE": 1, "WITHDRAWN": 2, "OBJECTED": 3, "RESTRICTED": 4, "ERASED": 5}
)
"""Each state and how far it stops processing. No row means ACTIVE: no consent, no objection."""

CACHE_S: Final = 50.0
"""Age at which a remembered answer is asked again. Below 60 s, the promise to the person (privacy
notice, "objection"), so that the batch in hand is over by then as well."""

_CACHE_ROWS: Final = 1 << 16
_CHUNK: Final = 500
_SECRET_BYTES: Final = 32
_NONCE_BYTES: Final = 12

_METADATA: Final = sql.MetaData()
_SUBJECTS: Final = sql.Table(
    "subjects",
    _METADATA,
    sql.Column("locator", sql.LargeBinary(32), primary_key=True),
    sql.Column("wrapped", sql.LargeBinary(60)),  # NULL once erased
    sql.Column("wrap_version", sql.Integer, nullable=False),
    sql.Column("created_month", sql.String(7), nullable=False),
    sql.Column("erased_on", sql.String(10)),  # a tombstone goes when every old backup is dead
    sqlite_with_rowid=False,
)
_SUPPRESSIONS: Final = sql.Table(
    "suppressions",
    _METADATA,
    sql.Column("tag", sql.LargeBinary(32), primary_key=True),
    sql.Column("state", sql.String(10), nullable=False),
    sqlite_with_rowid=False,
)
_ABOUT: Final = sql.Table(
    "about",
    _METADATA,
    sql.Column("name", sql.String(16), primary_key=True),
    sql.Column("value", sql.String(64), nullable=False),
)

_FIND_SUBJECTS: Final = sql.select(
    _SUBJECTS.c.locator, _SUBJECTS.c.wrapped, _SUBJECTS.c.wrap_version
).where(_SUBJECTS.c.locator.in_(sql.bindparam("keys", expanding=True)))
_FIND_STATES: Final = sql.select(_SUPPRESSIONS.c.tag, _SUPPRESSIONS.c.state).where(
    _SUPPRESSIONS.c.tag.in_(sql.bindparam("keys", expanding=True))
)


class Tombstoned:
    """Stands where a secret was: the subject was erased and is not made again."""

    def __repr__(self) -> str:
        return "Tombstoned()"


class Unreadable:
    """Stands where a secret cannot be unwrapped: its wrap key was destroyed, or the row changed."""

    def __repr__(self) -> str:
        return "Unreadable()"


_TOMBSTONED: Final = Tombstoned()
_UNREADABLE: Final = Unreadable()


def wrap(
    key: bytes, secret: bytes, *, locator: bytes, version: int, nonce: bytes | None = None
) -> bytes:
    """Encrypt a subject's secret for its row: nonce, then ciphertext and tag.

    Args:
        key: Wrap key, 32 bytes.
        secret: 32 bytes.
        locator: Of its row; a secret moved to another row does not open.
        version: Number of the wrap key.
        nonce: Only for vectors; else random.
    """
    nonce = secrets.token_bytes(_NONCE_BYTES) if nonce is None else nonce
    return nonce + AESGCMSIV(key).encrypt(nonce, secret, _row_binding(locator, version))


def unwrap(key: bytes, wrapped: bytes, *, locator: bytes, version: int) -> bytes:
    """Decrypt what `wrap` made.

    Raises:
        CapsuleError: Another key, another row, or changed bytes (``secret_unreadable``).
    """
    try:
        return AESGCMSIV(key).decrypt(
            wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:], _row_binding(locator, version)
        )
    except (InvalidTag, ValueError):
        raise CapsuleError("secret_unreadable") from None


def _row_binding(locator: bytes, version: int) -> bytes:
    return frame("tps/v1/wrap", locator, version.to_bytes(4, "big"))


class Vault:
    """Secrets and states, asked by the batch. Safe to share between threads.

    Args:
        url: SQLAlchemy URL, ``sqlite:////path`` or ``postgresql+psycopg://…``.
        keyring: Its wrap keys encrypt the secrets.
        clock: Monotonic seconds.
        now: Aware wall clock, for the month of a row.

    Raises:
        VaultError: It cannot be reached.
        KeyringError: It belongs to another keyset.
    """

    def __init__(
        self,
        url: str,
        *,
        keyring: Keyring,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._keyring, self._clock, self._now = keyring, clock, now
        self._lock = threading.RLock()
        self._pid = os.getpid()
        self._inherited: sql.Pool | None = None
        self._subjects: _Remembered[Secret | Tombstoned | Unreadable] = _Remembered(clock)
        self._states: _Remembered[SuppressionState] = _Remembered(clock)
        self._engine = _engine(url)
        self._insert: Any = (
            sqlite.insert if self._engine.dialect.name == "sqlite" else postgresql.insert
        )
        with self._transaction(writes=True) as connection:
            _METADATA.create_all(connection)
            belongs = {"name": "keyset", "value": keyring.primary("locator").kid}
            connection.execute(self._insert(_ABOUT).on_conflict_do_nothing(), belongs)
            found = connection.scalar(sql.select(_ABOUT.c.value).where(_ABOUT.c.name == "keyset"))
        if found != belongs["value"]:
            # With other keys every subject would be new: split in two, and not erasable.
            raise KeyringError(
                "The vault belongs to another keyset.",
                remedy="Restore the keyset that was made with this vault.",
            )

    def __repr__(self) -> str:
        return f"Vault({self._engine.dialect.name})"

    # --- Secrets --------------------------------------------------------------------------------

    def secrets(self, locators: Sequence[bytes]) -> dict[bytes, Secret | Tombstoned | Unreadable]:
        """Give the secret of each subject; make and store those that are new.

        Durable on return. If two callers meet a subject at once, both get the secret of the first.

        Raises:
            VaultError: It cannot be asked. Hold; nothing may be sent without.
            KeyringError: A wrap key is missing.
        """
        with self._lock:
            found, missing = self._subjects.split(locators)
            if missing:
                asked_at = self._clock()
                fresh = self._find(missing)
                # Sorted, so that two who insert the same subjects never wait for each other.
                unknown = sorted(set(missing) - set(fresh))
                if unknown:
                    fresh |= self._make(unknown)
                self._subjects.remember(fresh, asked_at)
                found |= fresh
            return found

    def find(self, locators: Sequence[bytes]) -> dict[bytes, Secret | Tombstoned | Unreadable]:
        """Give the secrets of those subjects that have one; make none.

        Raises:
            VaultError: It cannot be asked.
            KeyringError: A wrap key is missing.
        """
        return self._find(locators)

    def _find(self, locators: Sequence[bytes]) -> dict[bytes, Secret | Tombstoned | Unreadable]:
        with self._transaction() as connection:
            rows = self._rows(connection, locators)
        return {row.locator: self._open(row) for row in rows}

    def _rows(self, connection: sql.Connection, locators: Sequence[bytes]) -> list[Any]:
        rows: list[Any] = []
        for chunk in _chunks(locators):
            rows += connection.execute(_FIND_SUBJECTS, {"keys": chunk}).all()
        return rows

    def _open(self, row: Any) -> Secret | Tombstoned | Unreadable:
        if row.wrapped is None:
            return _TOMBSTONED
        try:
            key = self._keyring.wrap(row.wrap_version)
            raw = unwrap(key.expose(), row.wrapped, locator=row.locator, version=row.wrap_version)
        except CapsuleError:
            return _UNREADABLE
        return Secret(raw) if len(raw) == _SECRET_BYTES else _UNREADABLE

    def _make(self, locators: Sequence[bytes]) -> dict[bytes, Secret | Tombstoned | Unreadable]:
        primary = self._keyring.primary("wrap")
        key, version = self._keyring.wrap(primary.version).expose(), primary.version
        month = self._now().astimezone(UTC).strftime("%Y-%m")
        made = {locator: secrets.token_bytes(_SECRET_BYTES) for locator in locators}
        wrapped = {
            locator: wrap(key, raw, locator=locator, version=version)
            for locator, raw in made.items()
        }
        rows = [
            {
                "locator": locator,
                "wrapped": wrapped[locator],
                "wrap_version": version,
                "created_month": month,
            }
            for locator in locators
        ]
        with self._transaction(writes=True) as connection:
            # A row that is there, tombstones too, stays as it is.
            inserted = connection.execute(self._insert(_SUBJECTS).on_conflict_do_nothing(), rows)
            if inserted.rowcount == len(rows):
                return {locator: Secret(raw) for locator, raw in made.items()}
            stored = self._rows(connection, locators)
        if len(stored) != len(rows):
            raise VaultError("The vault did not keep what it was given.")
        return {
            row.locator: Secret(made[row.locator])
            if row.wrapped == wrapped[row.locator]
            else self._open(row)
            for row in stored
        }

    def erase(self, locator: bytes) -> None:
        """Destroy a subject's secret and leave a tombstone, whether or not there was one.

        Durable on return here; other processes forget within a minute, backups when the wrap key
        is destroyed.

        Raises:
            VaultError: It cannot be written. Ask again; erasing twice changes nothing.
        """
        now = self._now().astimezone(UTC)
        stone = {
            "locator": locator,
            "wrapped": None,
            "wrap_version": 0,
            "created_month": now.strftime("%Y-%m"),
            "erased_on": now.date().isoformat(),
        }
        statement = self._insert(_SUBJECTS).values(stone)
        statement = statement.on_conflict_do_update(
            index_elements=[_SUBJECTS.c.locator],
            set_={"wrapped": None, "wrap_version": 0, "erased_on": statement.excluded.erased_on},
            where=_SUBJECTS.c.erased_on.is_(None),
        )
        with self._lock:
            self._subjects.forget(locator)
            with self._transaction(writes=True) as connection:
                connection.execute(statement)
            self._drain()

    def _drain(self) -> None:
        """Move the write-ahead log into the file, so that no old page of it keeps a secret."""
        if self._engine.dialect.name != "sqlite":
            return
        # Another reader may hinder it; then the next erasure or the last close does it, and what
        # lies there meanwhile is wrapped.
        with suppress(Exception):
            raw = self._engine.raw_connection()
            try:
                raw.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            finally:
                raw.close()

    # --- States ---------------------------------------------------------------------------------

    def states(self, tags: Sequence[bytes]) -> dict[bytes, SuppressionState]:
        """Give the state of each tag; ACTIVE where nothing is known.

        Raises:
            VaultError: It cannot be asked. Hold; a look-up that failed is no "not suppressed".
        """
        with self._lock:
            found, missing = self._states.split(tags)
            if missing:
                asked_at = self._clock()
                fresh: dict[bytes, SuppressionState] = dict.fromkeys(missing, "ACTIVE")
                with self._transaction() as connection:
                    for chunk in _chunks(missing):
                        for row in connection.execute(_FIND_STATES, {"keys": chunk}):
                            # What a later version may write there stops processing here.
                            fresh[row.tag] = row.state if row.state in STATES else "RESTRICTED"
                self._states.remember(fresh, asked_at)
                found |= fresh
            return found

    def set_state(self, tag: bytes, state: SuppressionState) -> None:
        """Record a state. Durable on return; other processes obey within a minute.

        Raises:
            IdentifierError: The subject is erased, which nothing takes back (``erased``); or there
                is no such state.
            VaultError: It cannot be written.
        """
        if state not in STATES:
            raise IdentifierError("unknown_state")
        statement = self._insert(_SUPPRESSIONS).values(tag=tag, state=state)
        statement = statement.on_conflict_do_update(
            index_elements=[_SUPPRESSIONS.c.tag],
            set_={"state": statement.excluded.state},
            where=sql.or_(_SUPPRESSIONS.c.state != "ERASED", statement.excluded.state == "ERASED"),
        )
        with self._lock:
            with self._transaction(writes=True) as connection:
                connection.execute(statement)
                kept = connection.scalar(
                    sql.select(_SUPPRESSIONS.c.state).where(_SUPPRESSIONS.c.tag == tag)
                )
            self._states.forget(tag)
        if kept != state:
            raise IdentifierError("erased")

    # --- The connection -------------------------------------------------------------------------

    @contextmanager
    def _transaction(self, *, writes: bool = False) -> Iterator[sql.Connection]:
        with self._lock:
            if self._pid != os.getpid():
                # A connection is not for two processes. Nor is it closed here: SQLite would take
                # the last close for a reason to tidy up the files that the parent works on.
                self._inherited = self._engine.pool
                self._engine.dispose(close=False)
                self._pid = os.getpid()
            try:
                with self._engine.connect() as connection:
                    connection.execution_options(milchglas_writes=writes)
                    with connection.begin():
                        yield connection
            except sql.exc.SQLAlchemyError:
                # After a failed fsync SQLite's next answer is not to be trusted: open it again.
                with suppress(sql.exc.SQLAlchemyError):
                    self._engine.dispose()
                raise VaultError("The vault cannot be asked.") from None

    def close(self) -> None:
        """Let go of the connection and forget what was remembered."""
        with self._lock:
            self._subjects.clear()
            self._states.clear()
            self._engine.dispose()


def _engine(url: str) -> sql.Engine:
    try:
        parsed = sql.engine.make_url(url)
        if parsed.get_backend_name() == "postgresql":
            return sql.create_engine(parsed, hide_parameters=True, pool_pre_ping=True)
        if parsed.get_backend_name() != "sqlite" or not parsed.database:
            raise VaultError("A vault is sqlite:// with a path, or postgresql://.")
        # Made here, so that nobody else can read it for a moment.
        os.close(os.open(Path(parsed.database), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        engine = sql.create_engine(
            parsed,
            hide_parameters=True,
            poolclass=StaticPool,
            connect_args={"check_same_thread": False},
        )
    except (sql.exc.SQLAlchemyError, ImportError, OSError):
        raise VaultError("The vault cannot be opened.") from None
    sql.event.listen(engine, "connect", _prepare)
    sql.event.listen(engine, "begin", _begin)
    return engine


def _prepare(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # transactions are begun by `_begin`, not guessed
    for pragma in (
        "busy_timeout = 5000",
        "journal_mode = WAL",
        "synchronous = FULL",  # NORMAL loses acknowledged commits in a power cut
        "secure_delete = ON",
        "temp_store = MEMORY",
        "trusted_schema = OFF",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: sql.Connection) -> None:
    writes = connection.get_execution_options().get("milchglas_writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _chunks(keys: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    for start in range(0, len(keys), _CHUNK):
        yield keys[start : start + _CHUNK]


class _Remembered(Generic[Value]):
    """Answers not older than `CACHE_S`, a bounded number of them."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._rows: dict[bytes, tuple[float, Value]] = {}

    def split(self, keys: Iterable[bytes]) -> tuple[dict[bytes, Value], list[bytes]]:
        """Give what is remembered, and the keys that have to be asked, each once."""
        now = self._clock()
        found: dict[bytes, Value] = {}
        missing: dict[bytes, None] = {}
        for key in keys:
            row = self._rows.get(key)
            if row is not None and now < row[0]:
                found[key] = row[1]
            else:
                missing[key] = None
        return found, list(missing)

    def remember(self, fresh: Mapping[bytes, Value], asked_at: float) -> None:
        if len(self._rows) + len(fresh) > _CACHE_ROWS:
            now = self._clock()
            self._rows = {key: row for key, row in self._rows.items() if now < row[0]}
            if len(self._rows) + len(fresh) > _CACHE_ROWS:
                self._rows.clear()
        ends = asked_at + CACHE_S
        self._rows.update({key: (ends, value) for key, value in fresh.items()})

    def forget(self, key: bytes) -> None:
        self._rows.pop(key, None)

    def clear(self) -> None:
        self._rows.clear()
