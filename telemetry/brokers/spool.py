"""The embedded log: one SQLite file for all streams, cursors and books. The default broker.

Owns durability without a server. Knows parcels only as bytes of batches; does not know what a
stream means, except whose books a lost record belongs to.

Guarantee: what `Spool.append` or `Spool.finish` returned for is on disk (WAL, ``synchronous=FULL``:
one fsync for each call) and survives kill -9 and power cuts. The outcome of a stage (outputs,
counts, cursor, deletion of the input) is one transaction, so there are no repeats between stages
and the books add up by construction. At least once holds only towards the outside: a caller whose
`append` failed may find the parcels stored after all and repeats them under the same event id.

Nothing readable is on disk: each batch is sealed with AES-256-GCM-SIV under the spool's key, bound
to its stream and its number of events. Event counts, sizes and stream names are in clear.

One owner. SQLite's own file lock is held from opening to closing (``locking_mode=EXCLUSIVE``); it
also keeps us clear of the WAL-reset bug of SQLite 3.7.0 to 3.51.2, which needs two connections.

Source:
    https://sqlite.org/wal.html, https://sqlite.org/howtocorrupt.html, https://sqlite.org/wal.html
    "WAL-reset bug"; RFC 8452 (AES-GCM-SIV).
"""

from __future__ import annotations

import ctypes
import logging
import os
import sqlite3
import time
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from threading import Lock
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV

from telemetry.batch import decode_batch
from telemetry.brokers import DEAD, HELD, SEALED, Counts, Entry, Kept, Polled, Room, pack, stage_of
from telemetry.errors import BrokerError, DecodeError, KeyringError, SpoolFull
from telemetry.parcel import Parcel

__all__ = ["BALLAST_BYTES", "KEY_BYTES", "QUOTA_BYTES", "Spool"]

KEY_BYTES: Final = 32
QUOTA_BYTES: Final = 8 * 1024**3
BALLAST_BYTES: Final = 16 * 1024**2

_log = logging.getLogger(__name__)

_APPLICATION_ID: Final = 0x4D696C63  # "Milc", so that `file` and a wrong path can be told apart
_FORMAT: Final = 2
_NONCE_BYTES: Final = 12
# A checkpoint moves this many pages of 4 KiB. Small, because when the disk is full the WAL must
# fit into what the ballast gives back; larger values gained nothing measurable.
_CHECKPOINT_PAGES: Final = 512
# Give pages back to the file system once this many are free and outnumber those in use.
_ASIDE: Final = ".damaged-"
"""Behind a file's name, and before the time in nanoseconds: one that was salvaged."""
_SHRINK_PAGES: Final = 1024
_SHRINK_EVERY_S: Final = 1.0
# Parts of the quota that a stream may take (docs/decisions/0014-shares-of-the-log.md). What is
# left, a quarter with two recipients, is the sealed log's alone: intake stops for nobody else.
_SHARES: Final = {DEAD: 1 / 8, HELD: 1 / 8}
_CLEAN_SHARE: Final = 1 / 4
# Above its share a dead letter is kept without its original, this far.
_BARE: Final = 1.25
_ROW_BYTES: Final = 100

_SIZES: Final = """
CREATE TABLE sizes (stream TEXT PRIMARY KEY, bytes INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO sizes SELECT stream, sum(length(sealed)) FROM log GROUP BY 1;
"""
_TABLES: Final = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE log (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    stream TEXT NOT NULL,
    events INTEGER NOT NULL,
    sealed BLOB NOT NULL
);
CREATE INDEX log_of_stream ON log (stream, seq, events);
CREATE TABLE cursors (
    stream TEXT NOT NULL, "group" TEXT NOT NULL, seq INTEGER NOT NULL,
    PRIMARY KEY (stream, "group")
) WITHOUT ROWID;
CREATE TABLE books (
    stage TEXT NOT NULL, outcome TEXT NOT NULL, reason TEXT NOT NULL, n INTEGER NOT NULL,
    PRIMARY KEY (stage, outcome, reason)
) WITHOUT ROWID;
CREATE TABLE lost (
    seq INTEGER PRIMARY KEY,
    stream TEXT NOT NULL,
    events INTEGER NOT NULL,
    sealed BLOB NOT NULL,
    lost_at_s INTEGER NOT NULL
);
"""


@dataclass(frozen=True, slots=True)
class _Position:
    """From where a poll read, and the last row it gave."""

    start: int
    last: int


class Spool:
    """A durable log in one file, with books.

    Implements `telemetry.brokers.Broker`. Safe to call from several threads, one at a time gets
    through; not usable in a forked child.

    Args:
        path: The database file. Its folder must exist; beside it appear ``-wal`` and ``.ballast``.
        key: 32 random bytes that seal the batches. The same ones each time.
        quota_bytes: `append` raises `SpoolFull` above this. Outputs of `finish` may use an eighth
            more. Of it, the dead and the held stream may take an eighth each, each clean stream a
            quarter. Above its share a dead letter loses its original (`forgotten` in the books),
            and further ones, as all parcels of the other streams, are not stored but counted as
            dropped, ``no_room``, at the stage that would have read them.
        ballast_bytes: Size of a file that is deleted when the disk is full, because SQLite needs
            room even to delete. Must be larger than the WAL (2 MiB and the largest transaction).

    Raises:
        BrokerError: The file cannot be opened, is damaged, is of another version, or is open
            elsewhere.
        KeyringError: The key has not 32 bytes, or another one sealed this file.
    """

    def __init__(
        self,
        path: Path,
        *,
        key: bytes,
        quota_bytes: int = QUOTA_BYTES,
        ballast_bytes: int = BALLAST_BYTES,
    ) -> None:
        if len(key) != KEY_BYTES:
            raise KeyringError(f"the spool's key has not {KEY_BYTES} bytes.", path=path)
        self._path = path
        self._cipher = AESGCMSIV(key)
        self._quota_bytes = quota_bytes
        self._ballast = path.with_name(path.name + ".ballast")
        self._ballast_bytes = ballast_bytes
        self._lock = Lock()
        self._pid = os.getpid()
        self._connection: sqlite3.Connection | None = None
        self._closed = False
        self._disk_full = False
        self._damaged = False
        self._shrink_at = 0.0
        self._told: set[str] = set()
        # Mirrors of what is committed: they answer without reading, and after a disk error tell
        # whether the file still holds what was acknowledged.
        self._cursors: dict[tuple[str, str], int] = {}
        self._pending: dict[str, int] = {}
        self._bytes: dict[str, int] = {}
        self._last_seq = 0
        self._open()
        _open_spools.add(self)

    def __repr__(self) -> str:
        """Name the file, never the key or what is stored."""
        return f"Spool({self._path.name}, {'closed' if self._closed else 'open'})"

    # ------------------------------------------------------------------ the five calls

    def append(
        self,
        stream: str,
        parcels: Sequence[Parcel],
        counts: Counts,
        *,
        beside: Mapping[str, Sequence[Parcel]] | None = None,
    ) -> None:
        """Store parcels and add counts; both or none, on disk on return.

        Raises:
            SpoolFull: The quota is used up, or the disk is. Nothing was stored.
            BrokerError: The file cannot be written. Nothing was acknowledged.
        """
        own = self._seal(stream, parcels) if stream == SEALED else []
        extra = {**({} if stream == SEALED else {stream: parcels}), **(beside or {})}
        with self._lock:
            connection = self._ready()
            rows, counts = self._within_shares(extra, counts)
            rows = own + rows
            if rows:
                self._refuse_when_full(connection, sum(len(sealed) for _, _, sealed in rows))
            with self._transaction(connection):
                last = self._insert(connection, rows)
                self._count(connection, counts)
            self._note(rows, last)

    def poll(self, stream: str, group: str, max_events: int) -> Polled:
        """Read what follows the group's position, without moving it.

        Gives whole batches up to `max_events` parcels together, and at least one batch if any is
        waiting: more than `max_events` only if that one batch (at most 64) holds more. The first
        poll of a group makes it known; from then on parcels wait for it.

        A record that does not open is moved to the table ``lost`` and counted as ``dead`` with
        reason ``unreadable_record``; reading goes on behind it.

        Raises:
            BrokerError: The file cannot be read.
        """
        with self._lock:
            connection = self._ready()
            start = self._cursors.get((stream, group))
            if start is None:
                start = self._register(connection, stream, group)
            while True:
                position, parcels, unreadable = self._read(connection, stream, start, max_events)
                if not unreadable:
                    break
                self._set_aside(connection, stream, unreadable)
            if not parcels:
                self._shrink(connection)
            return Polled(stream=stream, group=group, position=position, parcels=parcels)

    def finish(
        self, polled: Polled, outputs: Mapping[str, Sequence[Parcel]], counts: Counts
    ) -> None:
        """Store outputs, add counts, move the group on and delete its input: one transaction.

        Rows that another known group has still to read stay until it has.

        Raises:
            SpoolFull: The outputs need more room than is left. Nothing was stored.
            BrokerError: The file cannot be written, or the position has moved since this poll
                (it was finished before): poll again.
        """
        position = polled.position
        if not isinstance(position, _Position):
            raise BrokerError("This was polled from another broker.")
        with self._lock:
            connection = self._ready()
            mark = (polled.stream, polled.group)
            if self._cursors.get(mark) != position.start:
                raise BrokerError("The position has moved since this poll. Poll again.")
            rows, counts = self._within_shares(outputs, counts)
            if rows:
                self._refuse_growth(connection, rows)
            cursors = self._cursors | {mark: position.last}
            done = min(seq for (stream, _), seq in cursors.items() if stream == polled.stream)
            with self._transaction(connection):
                last = self._insert(connection, rows)
                self._count(connection, counts)
                finished = freed = 0
                if position.last != position.start:
                    connection.execute(
                        'UPDATE cursors SET seq = ? WHERE stream = ? AND "group" = ?',
                        (position.last, *mark),
                    )
                    below = (polled.stream, done)
                    [(finished, freed)] = connection.execute(
                        "SELECT ifnull(sum(events), 0), ifnull(sum(length(sealed)), 0)"
                        " FROM log WHERE stream = ? AND seq <= ?",
                        below,
                    )
                    connection.execute("DELETE FROM log WHERE stream = ? AND seq <= ?", below)
                    self._resize(connection, polled.stream, -freed)
            self._cursors = cursors
            self._leave(polled.stream, finished, freed)
            self._note(rows, last)

    def books(self) -> dict[Entry, int]:
        """All counts since the file was created."""
        with self._lock:
            connection = self._ready()
            with self._reading():
                rows = connection.execute("SELECT stage, outcome, reason, n FROM books").fetchall()
        return {Entry(stage, outcome, reason): n for stage, outcome, reason, n in rows}

    def pending(self) -> dict[str, int]:
        """Parcels that some known group has not finished, by stream; streams with none are absent.

        Parcels of a stream that no group reads (dead letters) count as pending.
        """
        with self._lock:
            self._ready()
            return {stream: events for stream, events in self._pending.items() if events}

    # ------------------------------------------------------------------ a shelf

    def look(self, stream: str, after: int, most: int) -> list[Kept]:
        """Give the parcels of whole records behind `after`. Records that do not open are left out.

        Raises:
            BrokerError: The file cannot be read.
        """
        kept: list[Kept] = []
        with self._lock:
            connection = self._ready()
            with self._reading():
                rows = connection.execute(
                    "SELECT seq, events, sealed FROM log WHERE stream = ? AND seq > ? ORDER BY seq",
                    (stream, after),
                )
                for seq, events, sealed in rows:
                    with suppress(DecodeError):
                        opened = decode_batch(self._open_bytes(stream, events, sealed))
                        kept += (Kept(seq, parcel) for parcel in opened)
                    if len(kept) >= most:
                        rows.close()
                        break
        return kept

    def take_out(
        self,
        stream: str,
        gone: Sequence[Kept],
        counts: Counts,
        outputs: Mapping[str, Sequence[Parcel]] | None = None,
    ) -> None:
        """Delete single parcels, store outputs and add counts: one transaction.

        What is left of a record stays at its place, sealed anew.

        Raises:
            SpoolFull: The outputs need more room than is left. Nothing was changed.
            BrokerError: One of them is not there any more, or the file cannot be written.
        """
        with self._lock:
            connection = self._ready()
            rows, counts = self._within_shares(outputs or {}, counts)
            if rows:
                self._refuse_when_full(connection, sum(len(sealed) for _, _, sealed in rows))
            freed = 0
            with self._transaction(connection):
                for seq in sorted({one.seq for one in gone}):
                    leaving = [one.parcel for one in gone if one.seq == seq]
                    freed += self._thin_out(connection, stream, seq, leaving)
                last = self._insert(connection, rows)
                self._resize(connection, stream, -freed)
                self._count(connection, counts)
            self._leave(stream, len(gone), freed)
            self._note(rows, last)

    def _thin_out(
        self, connection: sqlite3.Connection, stream: str, seq: int, leaving: Sequence[Parcel]
    ) -> int:
        """Delete parcels of one record, and the record with its last one; give the bytes freed."""
        row = connection.execute(
            "SELECT events, sealed FROM log WHERE stream = ? AND seq = ?", (stream, seq)
        ).fetchone()
        if row is None:
            raise BrokerError("It is not there any more.")
        try:
            left = decode_batch(self._open_bytes(stream, *row))
        except DecodeError:
            raise BrokerError("It cannot be read any more.") from None
        for parcel in leaving:
            if parcel not in left:
                raise BrokerError("It is not there any more.")
            left.remove(parcel)
        if not left:
            connection.execute("DELETE FROM log WHERE seq = ?", (seq,))
            return len(row[1])
        # Fewer parcels of one header than before: they fit into the one batch they came from.
        [(_, events, sealed)] = self._seal(stream, left)
        connection.execute(
            "UPDATE log SET events = ?, sealed = ? WHERE seq = ?", (events, sealed, seq)
        )
        return len(row[1]) - len(sealed)

    def oldest(self) -> dict[str, Parcel]:
        """Give the first unfinished parcel of each stream that has one and can be read."""
        return {
            stream: kept[0].parcel
            for stream in self.pending()
            if (kept := self.look(stream, self._done(stream), 1))
        }

    def _done(self, stream: str) -> int:
        """Up to where every known group has read a stream."""
        return min((seq for (name, _), seq in self._cursors.items() if name == stream), default=0)

    def room(self) -> dict[str, Room]:
        """Give what each stream uses of its share; ``""`` stands for the file as a whole."""
        with self._lock:
            connection = self._ready()
            found = {"": Room(self._used_bytes(connection), self._quota_bytes)}
            for stream in sorted({*self._bytes, DEAD, HELD}):
                most = self._share_bytes(stream)
                found[stream] = Room(self._bytes.get(stream, 0), most or self._quota_bytes)
        return found

    def close(self) -> None:
        """Fold the WAL into the file and let go of it. What was acknowledged stays."""
        with self._lock:
            self._closed = True
            if self._pid == os.getpid():
                self._disconnect()

    # ------------------------------------------------------------------ upkeep

    def lost(self) -> int:
        """How many events lie in records that could not be opened and are kept, still sealed."""
        with self._lock:
            connection = self._ready()
            with self._reading():
                [(events,)] = connection.execute("SELECT ifnull(sum(events), 0) FROM lost")
        return int(events)

    def forget_lost(self, before: datetime) -> int:
        """Delete what was found damaged before a moment: its retention is over.

        Records that do not open, and whole files that were put aside when they were salvaged.

        Returns:
            How many events the records held. The books keep counting them as dead.
        """
        with self._lock:
            connection = self._ready()
            limit = (int(before.timestamp()),)
            with self._transaction(connection):
                [(events,)] = connection.execute(
                    "SELECT ifnull(sum(events), 0) FROM lost WHERE lost_at_s < ?", limit
                )
                connection.execute("DELETE FROM lost WHERE lost_at_s < ?", limit)
        for aside in self._path.parent.glob(f"{self._path.name}{_ASIDE}*"):
            at_ns = aside.name.rpartition("-")[2]
            if at_ns.isdigit() and int(at_ns) < before.timestamp() * 1e9:
                with suppress(OSError):
                    aside.unlink()
                    _log.warning("damaged_file_deleted file=%s", aside.name)
        return int(events)

    # ------------------------------------------------------------------ opening

    def _open(self) -> None:
        """Open the file, take the owner's lock, read the mirrors."""
        self._create()
        for is_last_try in (False, True):
            try:
                if self._damaged:
                    self._salvage()
                    self._damaged = False
                self._connect()
                break
            except sqlite3.Error as error:
                self._disconnect()
                if is_last_try or not _name_of(error).startswith("SQLITE_CORRUPT"):
                    raise self._explain(error) from None
                self._damaged = True
            except BaseException:
                self._disconnect()
                raise
        self._restore_ballast()

    def _connect(self) -> None:
        # check_same_thread: our lock lets one thread through at a time.
        self._connection = connection = sqlite3.connect(
            self._path, timeout=0, isolation_level=None, check_same_thread=False
        )
        self._configure(connection)
        self._check_key(connection)
        self._load(connection)

    def _create(self) -> None:
        """Make the file readable by nobody else before SQLite writes to it.

        An existing file is never opened here: closing any descriptor of it would drop the POSIX
        locks that another spool of this process may hold (howtocorrupt.html, 2.2).
        """
        try:
            descriptor = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        except FileExistsError:
            with suppress(OSError):
                self._path.chmod(0o600)
        except OSError as error:
            raise BrokerError(f"{self._path} cannot be created: {error.strerror}.") from None
        else:
            os.close(descriptor)
            self._sync_folder()

    def _sync_folder(self) -> None:
        """Make the names in the folder as durable as what the files hold."""
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _configure(self, connection: sqlite3.Connection) -> None:
        for pragma in (
            "locking_mode = EXCLUSIVE",  # before the first access: then no -shm file is used
            "page_size = 4096",
            "auto_vacuum = INCREMENTAL",  # before the first table
            "journal_mode = WAL",
            "synchronous = FULL",
            "fullfsync = ON",  # macOS: an fsync that reaches the platter
            "secure_delete = ON",
            f"wal_autocheckpoint = {_CHECKPOINT_PAGES}",
            f"journal_size_limit = {_CHECKPOINT_PAGES * 4096}",
            "cell_size_check = ON",
            "trusted_schema = OFF",
            "temp_store = MEMORY",  # no temporary file with pages of ours
        ):
            answer = connection.execute(f"PRAGMA {pragma}").fetchone()
            if pragma.startswith("journal_mode") and answer != ("wal",):
                raise BrokerError(f"{self._path} cannot use a write-ahead log.")
        connection.execute("BEGIN EXCLUSIVE")
        [(version,)] = connection.execute("PRAGMA user_version")
        [(application,)] = connection.execute("PRAGMA application_id")
        if (application, version) == (_APPLICATION_ID, 1):
            for statement in _SIZES.split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {_FORMAT}")
        elif (application, version) == (0, 0):
            [(tables,)] = connection.execute("SELECT count(*) FROM sqlite_schema")
            if tables:
                raise BrokerError(f"{self._path} is a database, but no spool.")
            for statement in (_TABLES + _SIZES).split(";"):
                connection.execute(statement)
            proof = self._seal_bytes("meta", 0, b"milchglas spool")
            connection.execute("INSERT INTO meta VALUES ('proof', ?)", (proof,))
            connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {_FORMAT}")
        elif (application, version) != (_APPLICATION_ID, _FORMAT):
            raise BrokerError(f"{self._path} is no spool of a version that this one reads.")
        connection.execute("COMMIT")

    def _check_key(self, connection: sqlite3.Connection) -> None:
        """Refuse a wrong key at once. Else every record would look damaged and be set aside."""
        row = connection.execute("SELECT value FROM meta WHERE name = 'proof'").fetchone()
        try:
            self._open_bytes("meta", 0, row[0] if row else b"")
        except DecodeError:
            raise KeyringError(
                "is sealed with another key.",
                path=self._path,
                remedy="Give the key it was made with, or move the file away.",
            ) from None

    def _load(self, connection: sqlite3.Connection) -> None:
        """Read the mirrors; after a disk error, check them against what was acknowledged."""
        rows = connection.execute('SELECT stream, "group", seq FROM cursors')
        cursors = {(stream, group): seq for stream, group, seq in rows}
        [(last,)] = connection.execute("SELECT ifnull(max(seq), 0) FROM sqlite_sequence")
        behind = any(cursors.get(mark, -1) < seq for mark, seq in self._cursors.items())
        if behind or last < self._last_seq:
            raise BrokerError(f"{self._path} has lost what it acknowledged, in a disk error.")
        self._cursors, self._last_seq = cursors, last
        self._pending = dict(connection.execute("SELECT stream, sum(events) FROM log GROUP BY 1"))
        self._bytes = dict(connection.execute("SELECT stream, bytes FROM sizes"))

    def _ready(self) -> sqlite3.Connection:
        """Give the connection, opened again if a disk error made it untrustworthy."""
        if self._pid != os.getpid():
            raise BrokerError(f"{self._path} was opened before a fork. Open it in the child.")
        if self._closed:
            raise BrokerError(f"{self._path} is closed.")
        if self._connection is None:
            self._forget_cached_pages()
            self._open()
        if self._connection is None:  # pragma: no cover - _open raises instead
            raise BrokerError(f"{self._path} is closed.")
        return self._connection

    def _forget_cached_pages(self) -> None:
        """Have the kernel read the files again.

        After a failed fsync Linux may keep pages as clean that never reached the disk; a check
        that reads them from memory would prove nothing.
        """
        for path in (self._path, self._path.with_name(self._path.name + "-wal")):
            with suppress(OSError, AttributeError):
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                finally:
                    os.close(descriptor)

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()

    # ------------------------------------------------------------------ sealing

    def _seal(self, stream: str, parcels: Sequence[Parcel]) -> list[tuple[str, int, bytes]]:
        """Pack parcels into rows: stream, number of events, sealed batch."""
        return [
            (stream, events, self._seal_bytes(stream, events, raw)) for raw, events in pack(parcels)
        ]

    def _seal_bytes(self, stream: str, events: int, raw: bytes) -> bytes:
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, raw, _bound_to(stream, events))

    def _open_bytes(self, stream: str, events: int, sealed: bytes) -> bytes:
        try:
            return self._cipher.decrypt(
                sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], _bound_to(stream, events)
            )
        except (InvalidTag, ValueError):
            raise DecodeError("unreadable_record") from None

    # ------------------------------------------------------------------ rows

    @contextmanager
    def _transaction(self, connection: sqlite3.Connection) -> Iterator[None]:
        """Make everything inside durable together, or nothing of it."""
        try:
            connection.execute("BEGIN IMMEDIATE")
            yield
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back(connection)
            raise self._recover(error) from None
        except BaseException:
            self._roll_back(connection)
            raise

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._recover(error) from None

    def _insert(
        self, connection: sqlite3.Connection, rows: Sequence[tuple[str, int, bytes]]
    ) -> int:
        """Write rows behind all others; gives the last sequence number."""
        last = self._last_seq
        for row in rows:
            done = connection.execute(
                "INSERT INTO log (stream, events, sealed) VALUES (?, ?, ?)", row
            )
            last = done.lastrowid or last
        added: Counter[str] = Counter()
        for stream, _, sealed in rows:
            added[stream] += len(sealed)
        for stream, size in added.items():
            self._resize(connection, stream, size)
        return last

    def _resize(self, connection: sqlite3.Connection, stream: str, more_bytes: int) -> None:
        if more_bytes:
            connection.execute(
                "INSERT INTO sizes VALUES (?, ?) ON CONFLICT DO UPDATE SET bytes = bytes + ?",
                (stream, more_bytes, more_bytes),
            )

    def _count(self, connection: sqlite3.Connection, counts: Counts) -> None:
        for entry, n in counts.items():
            connection.execute(
                "INSERT INTO books VALUES (?, ?, ?, ?)"
                " ON CONFLICT DO UPDATE SET n = n + excluded.n",
                (*entry, n),
            )

    def _note(self, rows: Sequence[tuple[str, int, bytes]], last: int) -> None:
        """Bring the mirrors up to what has just been committed."""
        for stream, events, sealed in rows:
            self._leave(stream, -events, -len(sealed))
        self._last_seq = last

    def _leave(self, stream: str, events: int, size: int) -> None:
        """Bring the mirrors up to what has left a stream."""
        self._pending[stream] = self._pending.get(stream, 0) - events
        self._bytes[stream] = self._bytes.get(stream, 0) - size

    def _register(self, connection: sqlite3.Connection, stream: str, group: str) -> int:
        """Make a group known, at the oldest record that is still there."""
        with self._transaction(connection):
            [(oldest,)] = connection.execute("SELECT min(seq) FROM log WHERE stream = ?", (stream,))
            start = self._last_seq if oldest is None else int(oldest) - 1
            connection.execute("INSERT INTO cursors VALUES (?, ?, ?)", (stream, group, start))
        self._cursors[stream, group] = start
        return start

    def _read(
        self, connection: sqlite3.Connection, stream: str, start: int, max_events: int
    ) -> tuple[_Position, list[Parcel], list[tuple[int, int]]]:
        """Read batches behind `start`: where it ended, their parcels, and what did not open."""
        last = start
        parcels: list[Parcel] = []
        unreadable: list[tuple[int, int]] = []
        with self._reading():
            rows = connection.execute(
                "SELECT seq, events, sealed FROM log WHERE stream = ? AND seq > ?"
                " ORDER BY seq LIMIT ?",
                (stream, start, max(1, max_events)),
            )
            for seq, events, sealed in rows:
                if parcels and len(parcels) + events > max_events:
                    rows.close()
                    break
                try:
                    parcels += decode_batch(self._open_bytes(stream, events, sealed))
                    last = seq
                except DecodeError:
                    unreadable.append((seq, events))
        return _Position(start, last), parcels, unreadable

    def _set_aside(
        self, connection: sqlite3.Connection, stream: str, unreadable: Sequence[tuple[int, int]]
    ) -> None:
        """Move records that do not open out of the way, and count what they held as dead.

        They stay as they are: another version, or a backup of the disk, may still read them.
        """
        events = sum(events for _, events in unreadable)
        freed = 0
        with self._transaction(connection):
            for seq, _ in unreadable:
                [(size,)] = connection.execute(
                    "SELECT length(sealed) FROM log WHERE seq = ?", (seq,)
                )
                freed += size
                connection.execute(
                    "INSERT INTO lost SELECT seq, stream, events, sealed, ? FROM log WHERE seq = ?",
                    (int(time.time()), seq),
                )
                connection.execute("DELETE FROM log WHERE seq = ?", (seq,))
            self._resize(connection, stream, -freed)
            self._count(connection, {Entry(stage_of(stream), "dead", "unreadable_record"): events})
        self._leave(stream, events, freed)

    # ------------------------------------------------------------------ room

    def _used_bytes(self, connection: sqlite3.Connection) -> int:
        with self._reading():
            [(pages,)] = connection.execute("PRAGMA page_count")
            [(free,)] = connection.execute("PRAGMA freelist_count")
        return int(pages - free) * 4096

    def _share_bytes(self, stream: str) -> int:
        """Most bytes that a stream may take; 0: as many as the quota has."""
        share = _CLEAN_SHARE if stream.startswith("clean.") else _SHARES.get(stream, 0.0)
        return int(self._quota_bytes * share)

    def _within_shares(
        self, outputs: Mapping[str, Sequence[Parcel]], counts: Counts
    ) -> tuple[list[tuple[str, int, bytes]], Counts]:
        """Seal what goes into each stream, as far as its share goes; count what does not."""
        rows: list[tuple[str, int, bytes]] = []
        for stream, given in outputs.items():
            parcels, most = given, self._share_bytes(stream)
            free = most - self._bytes.get(stream, 0) if most else _size_of(parcels)
            if parcels and stream == DEAD and _size_of(parcels) > free:
                parcels = [replace(parcel, body=b"", capsule=b"") for parcel in parcels]
                free += int(most * (_BARE - 1))
                forgotten = Entry(DEAD, "forgotten")
                counts = {**counts, forgotten: counts.get(forgotten, 0) + len(parcels)}
            if parcels and _size_of(parcels) > free:
                lost = Entry(stage_of(stream), "dropped", "no_room")
                counts = {**counts, lost: counts.get(lost, 0) + len(parcels)}
                parcels = ()
            if len(parcels) < len(given) and stream not in self._told:
                self._told.add(stream)
                _log.error("share_used_up stream=%s", stream)
            rows += self._seal(stream, parcels)
        return rows, counts

    def _refuse_when_full(self, connection: sqlite3.Connection, more_bytes: int) -> None:
        """Refuse new parcels above the quota, and while the disk has no room for the ballast."""
        if self._disk_full and not self._restore_ballast():
            raise SpoolFull(f"The disk of {self._path} is full.")
        if self._used_bytes(connection) + more_bytes > self._quota_bytes:
            raise SpoolFull(f"{self._path} has reached its quota.")

    def _refuse_growth(
        self, connection: sqlite3.Connection, rows: Sequence[tuple[str, int, bytes]]
    ) -> None:
        """Refuse clean parcels while there is no room for them. Their input waits where it is."""
        more_bytes = sum(len(sealed) for stream, _, sealed in rows if stream not in {DEAD, HELD})
        brim = self._quota_bytes + self._quota_bytes // 8
        if more_bytes and self._used_bytes(connection) + more_bytes > brim:
            raise SpoolFull(f"{self._path} has reached its quota.")

    def _restore_ballast(self) -> bool:
        """Make the ballast file again, if the disk has room for it and as much to work with."""
        try:
            if self._ballast.exists() and self._ballast.stat().st_size >= self._ballast_bytes:
                self._disk_full = False
                return True
            disk = os.statvfs(self._path.parent)
            if disk.f_bavail * disk.f_frsize < 2 * self._ballast_bytes:
                self._disk_full = True
                return False
            descriptor = os.open(self._ballast, os.O_CREAT | os.O_WRONLY, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, self._ballast_bytes)
            finally:
                os.close(descriptor)
        except OSError:
            self._drop_ballast()
            self._disk_full = True
            return False
        self._disk_full = False
        return True

    def _drop_ballast(self) -> None:
        with suppress(OSError):
            self._ballast.unlink(missing_ok=True)

    def _shrink(self, connection: sqlite3.Connection) -> None:
        """When idle, give free pages back to the file system, a few megabytes at a time."""
        now = time.monotonic()
        if now < self._shrink_at:
            return
        self._shrink_at = now + _SHRINK_EVERY_S
        with self._reading():
            [(pages,)] = connection.execute("PRAGMA page_count")
            [(free,)] = connection.execute("PRAGMA freelist_count")
            if free > pages // 2 and (free > _SHRINK_PAGES or self._disk_full):
                # Not `execute`: it stops after the first step, which frees a single page.
                connection.executescript(f"PRAGMA incremental_vacuum({_SHRINK_PAGES})")
                self._shrink_at = now  # more of it at the next idle poll
            if self._disk_full:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        if self._disk_full:
            self._restore_ballast()

    # ------------------------------------------------------------------ faults

    def _roll_back(self, connection: sqlite3.Connection) -> None:
        with suppress(sqlite3.Error):
            if connection.in_transaction:
                connection.execute("ROLLBACK")

    def _recover(self, error: sqlite3.Error) -> BrokerError:
        """Bring the spool into a state from which it can go on; say what happened."""
        name = _name_of(error)
        if name.startswith("SQLITE_FULL") or self._out_of_room():
            self._disk_full = True
            self._drop_ballast()
        if not name.startswith("SQLITE_FULL"):
            # After a failed fsync the next one says ok although pages are lost. Nothing that this
            # connection remembers is trusted: the next call opens and checks the file again.
            self._disconnect()
        self._damaged = self._damaged or name.startswith("SQLITE_CORRUPT")
        return self._explain(error)

    def _salvage(self) -> None:
        """Copy what can still be read into a fresh file, and put it in the damaged one's place.

        Records that their index names and that cannot be read any more are counted as ``dead`` with
        reason ``unreadable_record``. The damaged file stays beside it as ``.damaged-<time>``. A
        file whose books, cursors or key cannot be read is not repaired: somebody must look at it.

        Raises:
            sqlite3.Error: It cannot be repaired; nothing was changed.
        """
        fresh_path = self._path.with_name(self._path.name + ".salvage")
        for leftover in (fresh_path, fresh_path.with_name(fresh_path.name + "-wal")):
            leftover.unlink(missing_ok=True)
        os.close(os.open(fresh_path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        damaged = sqlite3.connect(self._path, timeout=0, isolation_level=None)
        fresh = sqlite3.connect(fresh_path, timeout=0, isolation_level=None)
        try:
            damaged.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._check_key(damaged)
            # Else its WAL would be taken for the fresh file's.
            [(busy, _, _)] = damaged.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            if busy:
                raise BrokerError(f"{self._path} is open in another process.")
            self._configure(fresh)
            fresh.execute("BEGIN")
            self._copy(damaged, fresh)
            fresh.execute("COMMIT")
        finally:
            fresh.close()
            damaged.close()
        # The link first: at no moment is there no file of that name.
        os.link(self._path, self._path.with_name(f"{self._path.name}{_ASIDE}{time.time_ns()}"))
        fresh_path.replace(self._path)
        self._sync_folder()
        _log.error("spool_salvaged file=%s", self._path.name)

    def _copy(self, damaged: sqlite3.Connection, fresh: sqlite3.Connection) -> None:
        for table, columns in (("cursors", 3), ("books", 4)):
            marks = ", ".join("?" * columns)
            rows = damaged.execute(f"SELECT * FROM {table}").fetchall()  # noqa: S608 - constants
            fresh.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)  # noqa: S608
        [(last,)] = damaged.execute("SELECT ifnull(max(seq), 0) FROM sqlite_sequence")
        for seq, (stream, events) in sorted(_rows_known_to(damaged).items()):
            sealed = None
            with suppress(sqlite3.Error):
                found = "SELECT sealed FROM log WHERE seq = ?"
                sealed = next(iter(damaged.execute(found, (seq,))), None)
            if sealed is None:
                entry = Entry(stage_of(stream), "dead", "unreadable_record")
                self._count(fresh, {entry: events})
            else:
                fresh.execute("INSERT INTO log VALUES (?, ?, ?, ?)", (seq, stream, events, *sealed))
        with suppress(sqlite3.Error):
            for row in damaged.execute("SELECT * FROM lost"):
                fresh.execute("INSERT INTO lost VALUES (?, ?, ?, ?, ?)", row)
        fresh.execute("DELETE FROM sizes")
        fresh.execute("INSERT INTO sizes SELECT stream, sum(length(sealed)) FROM log GROUP BY 1")
        fresh.execute("DELETE FROM sqlite_sequence")
        fresh.execute("INSERT INTO sqlite_sequence VALUES ('log', ?)", (last,))

    def _out_of_room(self) -> bool:
        try:
            disk = os.statvfs(self._path.parent)
        except OSError:
            return False
        return disk.f_bavail * disk.f_frsize < _CHECKPOINT_PAGES * 4096

    def _explain(self, error: sqlite3.Error) -> BrokerError:
        """Say what to do. SQLite's own text is left out: it may quote SQL."""
        name = _name_of(error)
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            return BrokerError(f"{self._path} is open in another process.")
        if name.startswith("SQLITE_FULL"):
            return SpoolFull(f"The disk of {self._path} is full.")
        if name.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")):
            return BrokerError(f"{self._path} is damaged. Move it away, keep it, and start anew.")
        return BrokerError(f"{self._path} cannot be read or written ({name}).")


def _size_of(parcels: Sequence[Parcel]) -> int:
    """Bytes that parcels take, about."""
    return sum(len(p.body) + len(p.capsule) + len(p.remarks) + _ROW_BYTES for p in parcels)


def _name_of(error: sqlite3.Error) -> str:
    return str(getattr(error, "sqlite_errorname", "") or type(error).__name__)


def _rows_known_to(damaged: sqlite3.Connection) -> dict[int, tuple[str, int]]:
    """Ask index and table, from both ends, which records there are: number, stream, events."""
    known: dict[int, tuple[str, int]] = {}
    for source in (
        "INDEXED BY log_of_stream ORDER BY stream, seq",
        "INDEXED BY log_of_stream ORDER BY stream DESC, seq DESC",
        "NOT INDEXED ORDER BY seq",
        "NOT INDEXED ORDER BY seq DESC",
    ):
        query = f"SELECT seq, stream, events FROM log {source}"  # noqa: S608 - constants
        with suppress(sqlite3.Error):
            for seq, stream, events in damaged.execute(query):
                known[seq] = (stream, events)
    return known


def _bound_to(stream: str, events: int) -> bytes:
    """Bind a sealed batch to where it stands: the associated data of its encryption."""
    return f"{stream}\0{events}".encode()


_open_spools: weakref.WeakSet[Spool] = weakref.WeakSet()


def _leave_to_parent() -> None:
    """In a forked child: never let the inherited connection be closed.

    Closing it, even by garbage collection at exit, would checkpoint and delete the WAL under the
    parent's hands. A reference that nobody gives back keeps it until the process is gone.
    """
    for spool in _open_spools:
        spool._lock = Lock()  # noqa: SLF001 - a thread that held it does not exist here
        connection = spool._connection  # noqa: SLF001 - same module
        if connection is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))


os.register_at_fork(after_in_child=_leave_to_parent)
