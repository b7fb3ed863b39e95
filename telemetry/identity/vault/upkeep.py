"""What happens to all rows of a vault: rewrapping, forgetting, counting, backup and restore.

Owns the order in which a wrap key dies. Everything here works in bounded pieces, so that who serves
waits for milliseconds; everything may be cut short anywhere and begun again.

A wrap key lives like this: it is made and promoted; the vault raises its *floor*, below which no
row is written any more; every live row is moved under it; then those keys are destroyed that no row
needs. The key before it is kept for one more period, so that a backup of last week can be read: an
erased secret is gone from all copies after at most two periods.

Source:
    NIST SP 800-88 (cryptographic erase, under conditions on the keys); SDM Baustein 60, M60.P09.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sql

from telemetry.errors import ConfigError, VaultError
from telemetry.identity.keyring import Key
from telemetry.identity.rotation import Turn
from telemetry.identity.vault import Vault
from telemetry.identity.vault.tables import (
    ABOUT,
    PIN_SETS,
    SCHEMA,
    SUBJECTS,
    SUPPRESSIONS,
    about,
    change_subjects,
    insert,
    migrate,
    open_engine,
    set_about,
    transaction,
)

__all__ = [
    "ROTATE_AFTER",
    "TOMBSTONE_LIFE",
    "Stats",
    "backup",
    "forget",
    "restore",
    "rewrap",
    "rotate",
    "stats",
]

ROTATE_AFTER: Final = timedelta(days=7)
"""Period of the wrap key. Two of these are the horizon after which an erased secret is nowhere."""

TOMBSTONE_LIFE: Final = timedelta(days=21)
"""How long an erasure is remembered at least: until no backup and no spool can bring anything of
the subject back (7 days of spool and backup, 14 of the horizon), and a week."""

_ROWS: Final = 500
_COPY_ROWS: Final = 5000
_SPACE: Final = 1 << 64


# --- Wrap keys ------------------------------------------------------------------------------------


def _unheard(_turn: Turn) -> None:
    """Stand in for who wants to know what is done to keys."""


def rotate(
    vault: Vault,
    *,
    now: datetime,
    after: timedelta = ROTATE_AFTER,
    told: Callable[[Turn], None] = _unheard,
) -> Key | None:
    """Make a new wrap key and use it, if the present one is old enough.

    Args:
        vault: Its rows follow with `rewrap`.
        now: Aware time.
        after: Age at which a key is replaced; zero replaces it now.
        told: Called with each thing that was done to a key.

    Returns:
        The new key; None if the present one stays, or stays until all running processes have loaded
        its successor: call again.

    Raises:
        KeyringError: The keyset cannot be written.
    """
    ring = vault.keyring
    with ring.alone():
        primary = ring.primary("wrap")
        if after and now - (primary.not_before or primary.created) < after:
            return None
        # One that was made and not promoted: a rotation was cut short there, or it waits for a
        # process that has not loaded it.
        waiting = [
            key
            for key in _wrap_keys(vault)
            if key.state == "PRE_ACTIVE" and key.version > primary.version
        ]
        fresh = waiting[-1] if waiting else ring.create("wrap")
        if not waiting:
            told(Turn(what="created", key=fresh))
        if ring.lacking(fresh.kid):
            return None
        promoted = ring.promote(fresh.kid)
        told(Turn(what="promoted", key=promoted))
        return promoted


def rewrap(
    vault: Vault, *, keep: int = 1, rows: int = _ROWS, told: Callable[[Turn], None] = _unheard
) -> Iterator[float]:
    """Move all live rows under the primary wrap key, then destroy the keys that nobody needs.

    Args:
        vault: Goes on serving meanwhile.
        keep: How many keys before the primary stay, for backups: 1, or 0 after a compromise.
        rows: How many are looked at in one transaction.
        told: Called with each key that was destroyed.

    Yields:
        After each transaction, how much of the table is done, from 0 to 1. Whoever serves gets its
        turn in between.

    Raises:
        VaultError: It failed; what is done stays done.
        KeyringError: A key is missing, or the keyset cannot be written.
    """
    version = vault.keyring.primary("wrap").version
    with vault.transaction(writes=True) as connection:
        said = about(connection, "floor", "rewrapped", mine=True)
        set_about(connection, {"floor": str(max(version, int(said.get("floor", "0"))))})
    if int(said.get("rewrapped", "0")) < version:
        after, seen = b"", rows
        while seen == rows:
            after, seen = _rewrap_rows(vault, version, after, rows)
            yield int.from_bytes(after[:8], "big") / _SPACE
        with vault.transaction(writes=True) as connection:
            set_about(connection, {"rewrapped": str(version)})
        vault.drain()
    yield from _destroy_spent(vault, keep, told)
    yield 1.0


def _rewrap_rows(vault: Vault, version: int, after: bytes, rows: int) -> tuple[bytes, int]:
    """Move one page, with another secret where it is due; give its last locator and its length.

    Who is in use notices it within a minute, as an erasure by another process.
    """
    names = ("locator", "wrapped", "wrap_version", "pins", "created_month")
    page = sql.select(*(SUBJECTS.c[name] for name in names)).where(SUBJECTS.c.locator > after)
    pins = vault.pins_for_new()
    with vault.transaction(writes=True) as connection:
        found = connection.execute(page.order_by(SUBJECTS.c.locator).limit(rows)).all()
        moved = [
            vault.renewed(connection, row, version, pins)
            for row in found
            if row.wrapped is not None and row.wrap_version < version
        ]
        change_subjects(connection, moved)
    return (found[-1].locator if found else after), len(found)


def _destroy_spent(vault: Vault, keep: int, told: Callable[[Turn], None]) -> Iterator[float]:
    """Destroy the wrap keys that are old enough and wrap nothing."""
    with vault.transaction() as connection:
        said = about(connection, "floor", "rewrapped")
    floor, rewrapped = int(said.get("floor", "0")), int(said.get("rewrapped", "0"))
    living = [k for k in _wrap_keys(vault) if k.state != "DESTROYED" and k.version <= rewrapped]
    old = [key for key in living[: max(0, len(living) - 1 - keep)] if key.version < floor]
    if not old:
        return
    # Looked at, not assumed: a key is gone for good. Below the floor no row appears meanwhile.
    versions, after, seen = {key.version for key in old}, b"", _COPY_ROWS
    columns = (SUBJECTS.c.locator, SUBJECTS.c.wrap_version)
    while seen == _COPY_ROWS:
        page = sql.select(*columns).where(
            SUBJECTS.c.locator > after, SUBJECTS.c.wrapped.is_not(None)
        )
        with vault.transaction() as connection:
            rows = connection.execute(page.order_by(SUBJECTS.c.locator).limit(_COPY_ROWS)).all()
        if any(row.wrap_version in versions for row in rows):
            return
        after, seen = rows[-1].locator if rows else after, len(rows)
        yield int.from_bytes(after[:8], "big") / _SPACE
    for key in old:
        vault.keyring.destroy(key.kid)
        told(Turn(what="destroyed", key=key))


def _wrap_keys(vault: Vault) -> list[Key]:
    """All wrap keys, oldest first."""
    keys = [key for key in vault.keyring.entries() if key.use == "wrap"]
    return sorted(keys, key=lambda key: key.version)


# --- What is no longer needed ---------------------------------------------------------------------


def forget(vault: Vault, *, life: timedelta = TOMBSTONE_LIFE) -> int:
    """Delete the tombstones of subjects of whom nothing can come back any more.

    A tombstone stays while a wrap key lives that is older than it: such a key may open a copy of
    the secret. So where no key is ever rotated, no tombstone goes.

    Returns:
        How many subjects are forgotten.

    Raises:
        VaultError: It failed; what is done stays done.
    """
    living = [key.created for key in _wrap_keys(vault) if key.state != "DESTROYED"]
    oldest: date = min(key.astimezone(UTC).date() for key in living)
    before = min(vault.today() - life, oldest)
    vault.journal.forget(before)
    with vault.transaction(writes=True) as connection:
        old = SUBJECTS.c.erased_on < before.isoformat()
        gone = connection.execute(SUBJECTS.delete().where(old)).rowcount
        connection.execute(
            SUPPRESSIONS.delete().where(
                SUPPRESSIONS.c.state == "ERASED", SUPPRESSIONS.c.since < before.isoformat()
            )
        )
    return gone


# --- Counting -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """What is in a vault. Counts only.

    Attributes:
        database: ``sqlite`` or ``postgresql``.
        schema: Version of the schema.
        subjects: Living ones.
        erased: Tombstones.
        bytes: Size of the database's tables or file.
        wrapped: Living subjects by version of their wrap key.
        pinned: Living subjects by domain and by the token key they are pinned to.
        states: Suppressions by state.
        journal: Number of the last erasure or state obeyed.
        rewrapped: Up to which wrap key all rows were moved.
    """

    database: str
    schema: int
    subjects: int
    erased: int
    bytes: int
    wrapped: dict[int, int] = field(default_factory=dict)
    pinned: dict[str, dict[str, int]] = field(default_factory=dict)
    states: dict[str, int] = field(default_factory=dict)
    journal: int = 0
    rewrapped: int = 0


def stats(vault: Vault) -> Stats:
    """Count what is in a vault. Reads the whole table once.

    Raises:
        VaultError: It cannot be asked.
    """
    first: dict[str, str] = {}
    for key in vault.keyring.entries():
        if (key.use, key.epoch) == ("token", "rel"):
            first.setdefault(key.domain, key.kid)
    # On a connection of its own, so that who serves does not wait for it.
    source = _another(vault)
    try:
        with transaction(source) as connection:
            return _counted(vault, connection, first)
    finally:
        source.dispose()


def _counted(vault: Vault, connection: sql.Connection, first: dict[str, str]) -> Stats:
    columns = (SUBJECTS.c.wrap_version, SUBJECTS.c.pins, SUBJECTS.c.wrapped.is_(None))
    groups = connection.execute(sql.select(*columns, sql.func.count()).group_by(*columns)).all()
    sets = {0: dict(first)}
    for row in connection.execute(sql.select(PIN_SETS)):
        sets[row.number] = first | dict(vault.pins(connection, row.number))
    states = sql.select(SUPPRESSIONS.c.state, sql.func.count().label("number"))
    counted = connection.execute(states.group_by(SUPPRESSIONS.c.state)).all()
    said = about(connection, "schema", "position", "rewrapped")
    size = _size(connection)
    wrapped: dict[int, int] = {}
    pinned: dict[str, dict[str, int]] = {}
    erased = 0
    for version, pins, gone, number in groups:
        if gone:
            erased += number
            continue
        wrapped[version] = wrapped.get(version, 0) + number
        for domain, kid in sets[pins].items():
            held = pinned.setdefault(domain, {})
            held[kid] = held.get(kid, 0) + number
    return Stats(
        database=vault.engine.dialect.name,
        schema=int(said["schema"]),
        subjects=sum(wrapped.values()),
        erased=erased,
        bytes=size,
        wrapped=wrapped,
        pinned=pinned,
        states={row.state: row.number for row in counted},
        journal=int(said.get("position", "0")),
        rewrapped=int(said.get("rewrapped", "0")),
    )


def _another(vault: Vault) -> sql.Engine:
    """Give a connection of one's own to the same database, to read for long."""
    return open_engine(vault.engine.url.render_as_string(hide_password=False))


def _size(connection: sql.Connection) -> int:
    if connection.dialect.name == "sqlite":
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        each = connection.exec_driver_sql("PRAGMA page_size").scalar_one()
        return int(pages) * int(each)
    names = [table.name for table in (SUBJECTS, SUPPRESSIONS, PIN_SETS, ABOUT)]
    return sum(
        int(connection.scalar(sql.select(sql.func.pg_total_relation_size(name))) or 0)
        for name in names
    )


# --- Backup and restore ---------------------------------------------------------------------------


def backup(vault: Vault, path: Path) -> Iterator[float]:
    """Copy a vault into a new SQLite file, as it is at one moment.

    The copy holds what the vault holds: keyed locators and wrapped secrets. It is good for as long
    as its wrap key lives, two weeks; without the keyset it is good for nothing.

    Args:
        vault: Goes on serving meanwhile.
        path: Must not exist.

    Yields:
        After each piece, how much is done, from 0 to 1. The file has its name only at the end.

    Raises:
        ConfigError: There is such a file, or it cannot be written.
        VaultError: The vault cannot be asked.
    """
    if path.exists():
        raise ConfigError("exists already.", path=path, remedy="Name a new file.")
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    source = _another(vault)
    try:
        # A copy that was cut short has no name; it is durable before it gets one.
        copy = open_engine(f"sqlite:///{beside.absolute()}", write_ahead=False, durable=False)
    except VaultError:
        source.dispose()
        raise ConfigError("cannot be written.", path=path, remedy="Name another.") from None
    try:
        with transaction(copy, writes=True) as target:
            migrate(target, vault.today())
        if source.dialect.name == "postgresql":
            source = source.execution_options(isolation_level="REPEATABLE READ")
        with source.connect() as connection, connection.begin():
            for table in (ABOUT, PIN_SETS, SUPPRESSIONS, SUBJECTS):
                yield from _copy(connection, table, copy)
        with transaction(copy, writes=True) as target:
            set_about(target, {"taken": vault.today().isoformat()})
        copy.dispose()
        with beside.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)  # noqa: PTH105 - as everywhere where order matters
        yield 1.0
    except sql.exc.SQLAlchemyError:
        raise VaultError("The vault cannot be copied.") from None
    except OSError:
        raise ConfigError("cannot be written.", path=path, remedy="Name another.") from None
    finally:
        copy.dispose()
        source.dispose()
        beside.unlink(missing_ok=True)


def _copy(connection: sql.Connection, table: sql.Table, copy: sql.Engine) -> Iterator[float]:
    (key,) = table.primary_key
    after: Any = None
    while True:
        query = sql.select(table).order_by(key).limit(_COPY_ROWS)
        query = query if after is None else query.where(key > after)
        rows = connection.execute(query).mappings().all()
        if rows:
            with transaction(copy, writes=True) as target:
                statement = insert(target, table)
                fresh = {c.name: statement.excluded[c.name] for c in table.columns}
                statement = statement.on_conflict_do_update(index_elements=[key], set_=fresh)
                target.execute(statement, [dict(row) for row in rows])
            after = rows[-1][key.name]
        if table is SUBJECTS:
            yield int.from_bytes(after[:8], "big") / _SPACE if rows else 1.0
        if len(rows) < _COPY_ROWS:
            return


def restore(vault: Vault, path: Path) -> Iterator[float]:
    """Bring back what a backup has and the vault lacks. Nothing may be served meanwhile.

    First the vault obeys the whole tombstone journal; then each subject of the backup that it does
    not have is added. So whoever was erased since stays erased, at every moment, and a subject made
    since keeps its secret. If it is cut short, the vault refuses to serve until it is run again.

    Args:
        vault: Opened with ``repair="restore"``. May be new and empty.
        path: What `backup` made.

    Yields:
        How much is done, from 0 to 1.

    Raises:
        ConfigError: The file is no backup of this vault, or too old: its wrap key is destroyed, or
            the journal no longer knows everything that happened since.
        VaultError: It failed; run it again.
    """
    if not path.is_file():
        raise ConfigError("is not there.", path=path, remedy="Name a file of: vault backup.")
    source = open_engine(f"sqlite:///{path.absolute()}", write_ahead=False)
    try:
        with transaction(source) as connection:
            _check_backup(vault, connection, path)
        with vault.transaction(writes=True) as target:
            set_about(target, {"restoring": path.name[:64] or "yes"})
            # All rows are looked at again, whatever was moved before.
            set_about(target, {"rewrapped": "0"})
        numbers = _restore_pins(vault, source)
        for table in (SUPPRESSIONS, SUBJECTS):
            yield from _restore_rows(vault, source, table, numbers)
        with vault.transaction(writes=True) as target:
            set_about(target, {"restoring": ""})
        vault.drain()
        yield 1.0
    except sql.exc.SQLAlchemyError:
        raise VaultError("The backup cannot be read.") from None
    finally:
        source.dispose()


def _check_backup(vault: Vault, connection: sql.Connection, path: Path) -> None:
    def refuse(what: str, remedy: str) -> None:
        raise ConfigError(what, path=path, remedy=remedy)

    if "subjects" not in sql.inspect(connection).get_table_names():
        refuse("is no backup of a vault.", "Name a file of: telemetry vault backup.")
    said = about(connection, "schema", "keyset", "journal", "position", "taken")
    if int(said.get("schema", "1")) != SCHEMA or "taken" not in said:
        refuse("is no backup of this version.", "Take one that this version made.")
    if said["keyset"] != vault.keyring.primary("locator").kid:
        refuse("belongs to another keyset.", "Restore the keyset that was made with it.")
    forgotten, last = vault.journal.bounds()
    if said["journal"] != vault.journal.name or not forgotten <= int(said["position"]) <= last:
        refuse(
            "is older than the tombstone journal remembers, or has another one.",
            "Take a newer backup: this one would undo erasures.",
        )
    living = sql.select(SUBJECTS.c.wrap_version).where(SUBJECTS.c.wrapped.is_not(None)).distinct()
    here = {key.version for key in _wrap_keys(vault) if key.secret is not None}
    if not set(connection.scalars(living)) <= here:
        refuse(
            "is wrapped with a key that is destroyed, as it is meant to be.",
            "Backups are good for one to two weeks; take a newer one.",
        )


def _restore_pins(vault: Vault, source: sql.Engine) -> dict[int, int]:
    """Enter the pin sets of a backup; give their numbers here by those there."""
    with transaction(source) as connection:
        sets = connection.execute(sql.select(PIN_SETS)).all()
    return {0: 0} | {row.number: vault.enter_pins(row.keys) for row in sets}


def _restore_rows(
    vault: Vault, source: sql.Engine, table: sql.Table, numbers: dict[int, int]
) -> Iterator[float]:
    (key,) = table.primary_key
    after = b""
    while True:
        query = sql.select(table).where(key > after).order_by(key).limit(_COPY_ROWS)
        with transaction(source) as connection:
            rows = [dict(row) for row in connection.execute(query).mappings()]
        if not rows:
            return
        for row in rows:
            if "pins" in row:
                row["pins"] = numbers[row["pins"]]
        with vault.transaction(writes=True) as target:
            # Tombstones of the journal are there already, and stay.
            target.execute(insert(target, table).on_conflict_do_nothing(), rows)
        after = rows[-1][key.name]
        if table is SUBJECTS:
            yield int.from_bytes(after[:8], "big") / _SPACE
