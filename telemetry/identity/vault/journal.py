"""The tombstone journal: what must not be undone by a backup, kept apart from the vault.

Owns the order of all erasures, objections, restrictions and consents of the last three weeks. Each
is written here, durably, before the vault obeys; the vault remembers up to where it has read.
Whatever brings an older vault back - a restore, a copied file, a snapshot of a server - the vault
reads the rest when it is opened, before it answers anybody. What a crash cut short is completed in
the same way.

Holds locators and tags only: nothing here tells who it is about without the keys.

Source:
    SDM Baustein 60, M60.S10 and P08 (erasures are repeated after a restore); Baustein 62, M62.D08
    (a restriction survives a backup).
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from datetime import date
from typing import Final, NamedTuple

import sqlalchemy as sql

from telemetry.errors import VaultError
from telemetry.identity.vault.tables import alone, insert, look_into, open_engine, transaction

__all__ = ["Entry", "Journal", "Standing"]

_PAGE: Final = 1000
_METADATA: Final = sql.MetaData()
_ENTRIES: Final = sql.Table(
    "tombstones",
    _METADATA,
    sql.Column("n", sql.BigInteger, primary_key=True, autoincrement=False),
    sql.Column("key", sql.LargeBinary(32), nullable=False),
    sql.Column("state", sql.String(10)),  # NULL: `key` is a locator that is erased; else a tag
    sql.Column("made_on", sql.String(10), nullable=False),
)
_JOURNAL: Final = sql.Table(
    "journal",
    _METADATA,
    sql.Column("one", sql.Integer, primary_key=True, autoincrement=False),
    sql.Column("name", sql.String(32), nullable=False),
    sql.Column("last", sql.BigInteger, nullable=False),
    sql.Column("forgotten", sql.BigInteger, nullable=False),
)
# Made when a vault first opened with this journal; an older journal gets it at the next opening.
_VAULT: Final = sql.Table(
    "vault",
    _METADATA,
    sql.Column("one", sql.Integer, primary_key=True, autoincrement=False),
    sql.Column("since", sql.String(10), nullable=False),
)


class Entry(NamedTuple):
    """One line.

    Attributes:
        n: Its number; there are no gaps.
        key: A locator that is erased, or the tag of a state.
        state: The state, or None for an erasure.
        made_on: The day, UTC.
    """

    n: int
    key: bytes
    state: str | None
    made_on: str


class Standing(NamedTuple):
    """How far a journal is.

    Attributes:
        name: Which one it is.
        forgotten: The last number that is forgotten.
        last: The last that was given; 0 if none was.
        had_vault: Whether a vault has ever been opened with it.
    """

    name: str
    forgotten: int
    last: int
    had_vault: bool

    @classmethod
    def of(cls, url: str) -> Standing | None:
        """Read it without changing anything; None if there is no journal yet.

        Raises:
            VaultError: It cannot be asked.
            KeyringError: Its file may not be read and written.
        """
        engine = look_into(url)
        if engine is None:
            return None
        try:
            with transaction(engine) as connection:
                if not sql.inspect(connection).has_table(_JOURNAL.name):
                    return None
                query = sql.select(_JOURNAL.c.name, _JOURNAL.c.forgotten, _JOURNAL.c.last)
                row = connection.execute(query).first()
                noted = sql.inspect(connection).has_table(_VAULT.name) and (
                    connection.scalar(sql.select(_VAULT.c.one)) is not None
                )
        except VaultError:
            raise VaultError("The tombstone journal of the vault cannot be asked.") from None
        finally:
            engine.dispose()
        return None if row is None else cls(*row, noted or row.last > 0)


class Journal:
    """An append-only list that forgets what is old. Safe to share between processes.

    Args:
        url: SQLAlchemy URL, as the vault's, but of another file or server.

    Raises:
        VaultError: It cannot be reached.
    """

    def __init__(self, url: str) -> None:
        # Written seldom, so it needs no write-ahead log, and with it not the care that sharing one
        # between processes calls for.
        self._engine = open_engine(url, write_ahead=False)
        with transaction(self._engine, writes=True) as connection:
            alone(connection)
            _METADATA.create_all(connection)
            name = connection.scalar(sql.select(_JOURNAL.c.name))
            if name is None:
                name = secrets.token_hex(8)
                row = {"one": 1, "name": name, "last": 0, "forgotten": 0}
                connection.execute(_JOURNAL.insert(), row)
        self.name: str = name

    def __repr__(self) -> str:
        return f"Journal({self._engine.dialect.name})"

    def had_vault(self) -> bool:
        """Tell whether a vault has ever been opened with this journal."""
        with transaction(self._engine) as connection:
            noted = connection.scalar(sql.select(_VAULT.c.one)) is not None
            return noted or connection.execute(sql.select(_JOURNAL.c.last)).scalar_one() > 0

    def note_vault(self, today: date) -> None:
        """Write down, once, that there is a vault.

        Only after the vault is durable: else a crash between the two would make one missed that
        never was.

        Raises:
            VaultError: It cannot be written.
        """
        with transaction(self._engine) as connection:
            if connection.scalar(sql.select(_VAULT.c.one)) is not None:
                return
        with transaction(self._engine, writes=True) as connection:
            row = {"one": 1, "since": today.isoformat()}
            connection.execute(insert(connection, _VAULT).on_conflict_do_nothing(), row)

    def append(self, key: bytes, state: str | None, today: date) -> int:
        """Write one entry; give its number. Durable on return.

        Raises:
            VaultError: It cannot be written, so the vault must not obey either.
        """
        with transaction(self._engine, writes=True) as connection:
            # The row is locked until the commit: numbers become visible in their order.
            connection.execute(_JOURNAL.update().values(last=_JOURNAL.c.last + 1))
            n: int = connection.execute(sql.select(_JOURNAL.c.last)).scalar_one()
            row = {"n": n, "key": key, "state": state, "made_on": today.isoformat()}
            connection.execute(_ENTRIES.insert(), row)
        return n

    def since(self, n: int) -> Iterator[list[Entry]]:
        """Give what was written after entry `n`, in its order, page by page."""
        while True:
            with transaction(self._engine) as connection:
                query = sql.select(_ENTRIES).where(_ENTRIES.c.n > n)
                rows = connection.execute(query.order_by(_ENTRIES.c.n).limit(_PAGE)).all()
            if not rows:
                return
            yield [Entry(*row) for row in rows]
            n = rows[-1].n

    def bounds(self) -> tuple[int, int]:
        """Give the last number that is forgotten, and the last that was given; 0 if none was."""
        with transaction(self._engine) as connection:
            row = connection.execute(sql.select(_JOURNAL.c.forgotten, _JOURNAL.c.last)).one()
        return row.forgotten, row.last

    def forget(self, before: date) -> int:
        """Remove what was written before a day; give how many entries went.

        Raises:
            VaultError: It cannot be written.
        """
        old = _ENTRIES.c.made_on < before.isoformat()
        with transaction(self._engine, writes=True) as connection:
            last = connection.scalar(sql.select(sql.func.max(_ENTRIES.c.n)).where(old))
            if last is None:
                return 0
            connection.execute(_JOURNAL.update().values(forgotten=last))
            # By number: a clock that went back must not leave a gap.
            gone = connection.execute(_ENTRIES.delete().where(_ENTRIES.c.n <= last))
            return gone.rowcount

    def leave_to_parent(self) -> list[object]:
        """After a fork: use a connection of one's own, and give what must not be closed here."""
        inherited = self._engine.pool
        self._engine.dispose(close=False)
        return [inherited]

    def close(self) -> None:
        """Let go of the connection."""
        self._engine.dispose()
