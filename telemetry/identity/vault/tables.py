"""The tables of the vault, how they are reached, and how an older vault becomes today's.

Owns the schema and its versions, and what each of the two databases needs to be durable and to
forget. Knows no key and no identifier. SQLite and PostgreSQL take the same statements.

Versions: 1 had *subjects*, *suppressions* and *about*. 2 added pins, the day of a state, and the
position in the tombstone journal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sql
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.pool import QueuePool, StaticPool

from telemetry.errors import ConfigError, VaultError
from telemetry.identity import guarded

__all__ = [
    "ABOUT",
    "PIN_SETS",
    "SCHEMA",
    "SUBJECTS",
    "SUPPRESSIONS",
    "about",
    "add_subjects",
    "alone",
    "change_subjects",
    "check_version",
    "chunks",
    "find_subjects",
    "insert",
    "look_into",
    "migrate",
    "open_engine",
    "set_about",
    "transaction",
]

SCHEMA: Final = 2
_CHUNK: Final = 500
_TURN_S: Final = 30.0
# One number for all vaults: who changes the schema of one waits for who changes another's.
_ADVISORY: Final = 0x6D696C63

_METADATA: Final = sql.MetaData()
SUBJECTS: Final = sql.Table(
    "subjects",
    _METADATA,
    sql.Column("locator", sql.LargeBinary(32), primary_key=True),
    sql.Column("wrapped", sql.LargeBinary(60)),  # NULL once erased; longer for a year once rolled
    sql.Column("wrap_version", sql.Integer, nullable=False),
    sql.Column("created_month", sql.String(7), nullable=False),  # of the secret, not the subject
    sql.Column("erased_on", sql.String(10)),  # a tombstone goes when every old backup is dead
    sql.Column("pins", sql.Integer, nullable=False, server_default="0"),
    sqlite_with_rowid=False,
)
_TOMBSTONES: Final = sql.Index(
    "tombstones_by_day",
    SUBJECTS.c.erased_on,
    sqlite_where=SUBJECTS.c.erased_on.is_not(None),
    postgresql_where=SUBJECTS.c.erased_on.is_not(None),
)
SUPPRESSIONS: Final = sql.Table(
    "suppressions",
    _METADATA,
    sql.Column("tag", sql.LargeBinary(32), primary_key=True),
    sql.Column("state", sql.String(10), nullable=False),
    sql.Column("since", sql.String(10)),
    sqlite_with_rowid=False,
)
PIN_SETS: Final = sql.Table(
    "pin_sets",
    _METADATA,
    sql.Column("number", sql.Integer, primary_key=True),
    sql.Column("keys", sql.String(4000), nullable=False, unique=True),
)
"""Which token keys were primary when subjects were made: few rows, so that a subject's pins are one
small number. Number 0 is the empty set."""
ABOUT: Final = sql.Table(
    "about",
    _METADATA,
    sql.Column("name", sql.String(16), primary_key=True),
    sql.Column("value", sql.String(64), nullable=False),
)
FIND_SUBJECTS: Final = sql.select(
    *(SUBJECTS.c[name] for name in ("locator", "wrapped", "wrap_version", "pins", "created_month"))
).where(SUBJECTS.c.locator.in_(sql.bindparam("keys", expanding=True)))
NEW: Final = ("locator", "wrapped", "wrap_version", "created_month", "pins")
"""Columns of a subject that is made, in the order of `add_subjects`."""
_CHANGE: Final = (
    SUBJECTS.update()
    .where(SUBJECTS.c.locator == sql.bindparam("place"), SUBJECTS.c.wrapped == sql.bindparam("was"))
    .values({name: sql.bindparam(f"new_{name}") for name in NEW[1:]})
)
_LENGTHS: Final = (1, 8, 64, 256, _CHUNK)


def look_into(url: str) -> sql.Engine | None:
    """Make an engine that changes nothing, to look whether a database could be opened.

    Returns:
        None where there is nothing to look into yet, as `guarded.looking` says.

    Raises:
        VaultError: As `open_engine`.
        KeyringError: Its file may not be read and written.
    """
    try:
        parsed = sql.engine.make_url(url)
    except sql.exc.SQLAlchemyError:
        raise VaultError("The vault cannot be opened.") from None
    if parsed.get_backend_name() != "sqlite" or not parsed.database:
        return open_engine(url)
    connection = guarded.looking(Path(parsed.database))
    if connection is None:
        return None
    return sql.create_engine("sqlite://", creator=lambda: connection, poolclass=StaticPool)


def open_engine(url: str, *, write_ahead: bool = True, durable: bool = True) -> sql.Engine:
    """Make the engine of a SQLAlchemy URL.

    Args:
        url: ``sqlite:////path`` or ``postgresql+psycopg://…``.
        write_ahead: For SQLite, whether readers go on while somebody writes. Without, a file may be
            shared by processes under any version of SQLite.
        durable: For SQLite, whether a commit outlives a power cut. Only a file on which nobody
            relies yet does without.

    Raises:
        VaultError: It is no such URL, or its file or driver is not there.
    """
    try:
        parsed = sql.engine.make_url(url)
        if parsed.get_backend_name() == "postgresql":
            return sql.create_engine(parsed, hide_parameters=True, pool_pre_ping=True)
        if parsed.get_backend_name() != "sqlite" or not parsed.database:
            raise VaultError("A vault is sqlite:// with a path, or postgresql://.")
        # Made here, so that nobody else can read it for a moment.
        guarded.create(Path(parsed.database))
        engine = sql.create_engine(
            parsed,
            hide_parameters=True,
            # One connection, and one thread at a time that has it, for whatever purpose: SQLite
            # writes one at a time anyway, and two threads on one connection crash the process.
            poolclass=QueuePool,
            pool_size=1,
            max_overflow=0,
            pool_timeout=_TURN_S,
            connect_args={"check_same_thread": False},
        )
    except (sql.exc.SQLAlchemyError, ImportError, OSError):
        raise VaultError("The vault cannot be opened.") from None
    journal = "WAL" if write_ahead else "DELETE"

    def prepare(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # transactions are begun by `_begin`, not guessed
        for pragma in (
            "busy_timeout = 5000",
            "cache_size = -65536",  # KiB: locators are spread over all pages
            "wal_autocheckpoint = 4000",
            f"journal_mode = {journal}",
            # NORMAL loses acknowledged commits in a power cut.
            f"synchronous = {'FULL' if durable else 'OFF'}",
            "secure_delete = ON",
            "temp_store = MEMORY",
            "trusted_schema = OFF",
        ):
            connection.execute(f"PRAGMA {pragma}")

    sql.event.listen(engine, "connect", prepare)
    sql.event.listen(engine, "begin", _begin)
    return engine


def _begin(connection: sql.Connection) -> None:
    writes = connection.get_execution_options().get("milchglas_writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def transaction(engine: sql.Engine, *, writes: bool = False) -> Iterator[sql.Connection]:
    """Give a connection in a transaction; commit at the end, roll back on any error.

    Raises:
        VaultError: The database failed. Nothing of the transaction is kept, or all of it is and
            only the answer was lost.
    """
    try:
        with engine.connect() as connection:
            connection.execution_options(milchglas_writes=writes)
            with connection.begin():
                yield connection
    except sql.exc.SQLAlchemyError:
        # After a failed fsync SQLite's next answer is not to be trusted: open it again.
        with suppress(sql.exc.SQLAlchemyError):
            engine.dispose()
        raise VaultError("The vault cannot be asked.") from None


def insert(connection: sql.Connection, table: sql.Table) -> Any:
    """Give the INSERT of a connection's dialect: the one that knows ``on_conflict_…``."""
    return (sqlite if connection.dialect.name == "sqlite" else postgresql).insert(table)


@cache
def _for_driver(kind: str, number: int) -> str:
    """Write a hot statement once, as SQLite's driver takes it."""
    dialect = sqlite.dialect()
    if kind == "insert":
        statement: Any = sqlite.insert(SUBJECTS).on_conflict_do_nothing()
        return str(statement.compile(dialect=dialect, column_keys=list(NEW)))
    statement = FIND_SUBJECTS.params(keys=[b""] * number)
    return str(statement.compile(dialect=dialect, compile_kwargs={"render_postcompile": True}))


def find_subjects(connection: sql.Connection, locators: Sequence[bytes]) -> list[Any]:
    """Read the rows of subjects: locator, wrapped, wrap_version, pins, created_month."""
    rows: list[Any] = []
    for chunk in chunks(locators):
        if connection.dialect.name == "sqlite":
            # Few lengths, so that the driver has each of these statements ready.
            number = next(size for size in _LENGTHS if size >= len(chunk))
            keys = (*chunk, *[chunk[-1]] * (number - len(chunk)))
            rows += connection.exec_driver_sql(_for_driver("find", number), keys).all()
        else:
            rows += connection.execute(FIND_SUBJECTS, {"keys": chunk}).all()
    return rows


def add_subjects(connection: sql.Connection, rows: Sequence[tuple[Any, ...]]) -> int:
    """Add rows, each with the columns `NEW`; leave what is there, tombstones too.

    Returns:
        How many were added.
    """
    if connection.dialect.name == "sqlite":
        # Past the parameters of SQLAlchemy, which cost as much as the rows (tests/bench/vault.py).
        return connection.exec_driver_sql(_for_driver("insert", 1), list(rows)).rowcount
    statement = insert(connection, SUBJECTS).on_conflict_do_nothing()
    named = [dict(zip(NEW, row, strict=True)) for row in rows]
    return connection.execute(statement, named).rowcount


def change_subjects(connection: sql.Connection, changes: Sequence[tuple[Any, ...]]) -> None:
    """Write other secrets into rows: locator, what was wrapped, and the new values of `NEW`.

    Only where a row still is what was read: on PostgreSQL somebody may have erased it.
    """
    if changes:
        named = ("place", "was", *(f"new_{name}" for name in NEW[1:]))
        connection.execute(_CHANGE, [dict(zip(named, one, strict=True)) for one in changes])


def chunks(keys: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Cut a list into pieces that one statement takes."""
    for start in range(0, len(keys), _CHUNK):
        yield keys[start : start + _CHUNK]


# --- What a vault says of itself ------------------------------------------------------------------


def about(
    connection: sql.Connection, *names: str, shared: bool = False, mine: bool = False
) -> dict[str, str]:
    """Read what the vault says of itself.

    Args:
        connection: In a transaction.
        names: What to read; what is not there is not in the answer.
        shared: Nobody changes it before this transaction ends.
        mine: Nobody else reads it so, or changes it, before this transaction ends.
    """
    query = sql.select(ABOUT.c.name, ABOUT.c.value).where(ABOUT.c.name.in_(names))
    if shared or mine:
        # SQLite knows no such clause and needs none: one writes at a time.
        query = query.with_for_update(read=shared)
    return {row.name: row.value for row in connection.execute(query)}


def set_about(connection: sql.Connection, values: Mapping[str, str]) -> None:
    """Write what the vault says of itself."""
    for name, value in values.items():
        statement = insert(connection, ABOUT).values(name=name, value=value)
        connection.execute(
            statement.on_conflict_do_update(
                index_elements=[ABOUT.c.name], set_={"value": statement.excluded.value}
            )
        )


# --- Versions -------------------------------------------------------------------------------------


def check_version(found: int) -> None:
    """Refuse a schema that is newer than ours.

    Raises:
        ConfigError: A later version made it.
    """
    if found > SCHEMA:
        raise ConfigError(
            "The vault was made by a later version.", remedy="Run that version, or a later one."
        )


def alone(connection: sql.Connection) -> None:
    """Make or change tables while nobody else does, until the transaction ends.

    SQLite lets one write at a time anyway; on PostgreSQL two first starts would make one table.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(sql.select(sql.func.pg_advisory_xact_lock(_ADVISORY)))


def migrate(connection: sql.Connection, today: date) -> int:
    """Bring the schema up to date, in place, within the transaction that is open.

    Returns:
        The version it had: 0 for an empty database.

    Raises:
        ConfigError: A later version made it.
    """
    alone(connection)
    tables = set(sql.inspect(connection).get_table_names())
    found = 0
    if "subjects" in tables:
        found = int(about(connection, "schema").get("schema", "1"))
    check_version(found)
    if found == 1:
        for statement in (
            "ALTER TABLE subjects ADD COLUMN pins INTEGER DEFAULT 0 NOT NULL",
            "ALTER TABLE suppressions ADD COLUMN since VARCHAR(10)",
        ):
            connection.exec_driver_sql(statement)
        # When a state of version 1 began nobody knows. Counted from today it stays long enough.
        connection.execute(SUPPRESSIONS.update().values(since=today.isoformat()))
    _METADATA.create_all(connection)
    if found == 1:
        _TOMBSTONES.create(connection)
    if found < SCHEMA:
        set_about(connection, {"schema": str(SCHEMA)})
    return found
