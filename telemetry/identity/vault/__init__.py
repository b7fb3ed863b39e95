"""The store of per-subject secrets and of who may not be processed.

Owns *subjects*: 32 random bytes for each, wrapped, under a keyed locator, with the token keys they
are pinned to; no identifier, no token, no exact date. Erasing a person destroys these bytes: no key
that is left gives their tokens again. And *suppressions*: objection, restriction, consent and
erasure under keyed tags. Knows no identifier; it sees locators and tags only.

`tables` holds the schema, `journal` what no backup may undo, `upkeep` what happens to all rows:
rewrapping, forgetting, backup, restore.

SQLite for one host, PostgreSQL for several, by the same statements. A SQLite vault shared by more
than one process needs SQLite 3.51.3 (or a release with its fix): earlier ones can lose a WAL when
two connections reset it at once. One process needs nothing: each vault is one connection, and
`Vault.claim` keeps a second one out.

Source:
    Art. 17, 18, 21 and 7(3) GDPR; EDPB Guidelines 01/2025 (consultation version), 92-93 and 107;
    RFC 8452 (AES-GCM-SIV).
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, date, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Generic, Literal, NamedTuple, TypeVar

import sqlalchemy as sql
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV

from telemetry.errors import CapsuleError, ConfigError, IdentifierError, KeyringError, VaultError
from telemetry.identity.keyring import Keyring, Secret
from telemetry.identity.pseudonym import frame
from telemetry.identity.vault.journal import Entry, Journal
from telemetry.identity.vault.tables import (
    ABOUT,
    PIN_SETS,
    SUBJECTS,
    SUPPRESSIONS,
    about,
    add_subjects,
    change_subjects,
    chunks,
    find_subjects,
    insert,
    migrate,
    open_engine,
    set_about,
    transaction,
)
from telemetry.retention import Period

__all__ = [
    "CACHE_ROWS",
    "CACHE_S",
    "MAX_AGE",
    "STATES",
    "Held",
    "Repair",
    "SuppressionState",
    "Tombstoned",
    "Unreadable",
    "Vault",
    "unwrap",
    "wrap",
]

Value = TypeVar("Value")
Repair = Literal["", "restore", "journal", "anew"]
SuppressionState = Literal["ACTIVE", "GRANTED", "WITHDRAWN", "OBJECTED", "RESTRICTED", "ERASED"]

STATES: Final[Mapping[str, int]] = MappingProxyType(
    {"GRANTED": 0, "ACTIVE": 1, "WITHDRAWN": 2, "OBJECTED": 3, "RESTRICTED": 4, "ERASED": 5}
)
"""Each state and how far it stops processing. No row means ACTIVE: no consent, no objection."""

CACHE_S: Final = 50.0
"""Age at which a remembered answer is asked again. Below 60 s, the promise to the person (privacy
notice, "objection"), so that the batch in hand is over by then as well."""

CACHE_ROWS: Final = 1 << 16
"""How many subjects and how many states are remembered, if nothing else is asked for."""

MAX_AGE: Final = Period(months=36)
"""How old a secret becomes, if nothing else is said."""
_FORMER_MONTHS: Final = (
    13  # no recipient keeps anything longer than twelve; the month is rounded up
)
_DUE_DAYS: Final = 21  # what nobody meets is rolled by a weekly rewrapping, before its month ends
_VANISHED: Final = "/"
"""Stands for the name of a backup, and is none: a vault waits for its restore, or to begin anew."""
_SECRET_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_NO_PINS: Final[Mapping[str, str]] = MappingProxyType({})

_FIND_STATES: Final = sql.select(SUPPRESSIONS.c.tag, SUPPRESSIONS.c.state).where(
    SUPPRESSIONS.c.tag.in_(sql.bindparam("keys", expanding=True))
)


class Held(Secret):
    """A subject's secret with what else its row says.

    Attributes:
        pins: The token key (its kid) by domain that was primary when the subject was first seen.
            Its tokens are made with these for as long as it lives, so that a rotation breaks no
            cohort. A domain that is not in it had no key then: its first key counts.
        former: The secret before this one, while recipients may still hold something under it.
        due: It is as old as a secret may become; `Vault.secrets` never gives such a one.
    """

    __slots__ = ("due", "former", "pins")

    def __init__(
        self,
        raw: bytes,
        pins: Mapping[str, str] = _NO_PINS,
        *,
        former: Held | None = None,
        due: bool = False,
    ) -> None:
        super().__init__(raw)
        self.pins, self.former, self.due = pins, former, due


class Renewed(NamedTuple):
    """What becomes of a row, if it still is what was read."""

    place: bytes
    was: bytes | None
    wrapped: bytes | None
    wrap_version: int
    created_month: str
    pins: int


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
    return _Wrapping(key, version).wrap(secret, locator, nonce)


def unwrap(key: bytes, wrapped: bytes, *, locator: bytes, version: int) -> bytes:
    """Decrypt what `wrap` made.

    Raises:
        CapsuleError: Another key, another row, or changed bytes (``secret_unreadable``).
    """
    return _Wrapping(key, version).unwrap(wrapped, locator)


class _Wrapping:
    """One wrap key, ready for many rows."""

    __slots__ = ("_cipher", "_head", "_tail", "version")

    def __init__(self, key: bytes, version: int) -> None:
        self.version = version
        self._cipher = AESGCMSIV(key)
        # The frame of ("tps/v1/wrap", locator, version), cut where the locator stands.
        self._head = frame("tps/v1/wrap") + b"\x00\x20"
        self._tail = frame(version.to_bytes(4, "big"))

    def wrap(self, secret: bytes, locator: bytes, nonce: bytes) -> bytes:
        return nonce + self._cipher.encrypt(nonce, secret, self._binding(locator))

    def unwrap(self, wrapped: bytes, locator: bytes) -> bytes:
        try:
            return self._cipher.decrypt(
                wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:], self._binding(locator)
            )
        except (InvalidTag, ValueError):
            raise CapsuleError("secret_unreadable") from None

    def _binding(self, locator: bytes) -> bytes:
        if len(locator) != _LOCATOR_BYTES:
            raise CapsuleError("secret_unreadable")
        return self._head + locator + self._tail


_LOCATOR_BYTES: Final = 32


class Vault:
    """Secrets and states, asked by the batch. Safe to share between threads.

    Args:
        url: SQLAlchemy URL, ``sqlite:////path`` or ``postgresql+psycopg://…``.
        keyring: Its wrap keys encrypt the secrets, its token keys are what subjects are pinned to.
        journal: SQLAlchemy URL of the tombstone journal; by default ``tombstones.sqlite3`` beside
            a SQLite vault. All processes of one vault share one journal.
        cache_rows: How many subjects, and how many states, are remembered for less than a minute.
        repair: ``restore`` also opens a vault that vanished or whose restore was cut short;
            ``journal`` begins a new journal in the place of one that was lost, and claims the vault
            first; ``anew`` begins a new vault in the place of one that vanished, and
            claims it first.
        max_age: How old a secret becomes, in whole months, at least
                `telemetry.retention.LEAST_AGE`.
        clock: Monotonic seconds.
        now: Aware wall clock, for the month of a row and the day of a tombstone.

    Raises:
        VaultError: It cannot be reached.
        KeyringError: It belongs to another keyset.
        ConfigError: A later version made it, its journal is another or is gone, a restore was cut
            short, or there was a vault and it is gone.
    """

    def __init__(
        self,
        url: str,
        *,
        keyring: Keyring,
        journal: str | None = None,
        cache_rows: int = CACHE_ROWS,
        repair: Repair = "",
        max_age: Period = MAX_AGE,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.keyring, self._clock, self._now = keyring, clock, now
        self._months = max_age.months
        self._lock = threading.RLock()
        self._pid = os.getpid()
        self._inherited: list[object] = []
        self._claimed: int | None = None
        self._subjects: _Remembered[Held | Tombstoned | Unreadable] = _Remembered(clock, cache_rows)
        self._states: _Remembered[SuppressionState] = _Remembered(clock, cache_rows)
        self._wrappings: dict[int, _Wrapping] = {}
        self._pin_sets: dict[int, Mapping[str, str]] = {0: _NO_PINS}
        self._generation = -1
        self._pins_now = 0
        self.engine = open_engine(url)
        try:
            self.journal = Journal(_journal_url(url) if journal is None else journal)
        except BaseException:
            self.engine.dispose()
            raise
        try:
            if repair in {"journal", "anew"}:
                self.claim()
            self._enter(repair)
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"Vault({self.engine.dialect.name})"

    def _enter(self, repair: str) -> None:
        """Bring the schema up to date, check what belongs together, obey the journal."""
        with self.transaction(writes=True) as connection:
            former = migrate(connection, self.today())
            belongs = {"keyset": self.keyring.primary("locator").kid, "journal": self.journal.name}
            found = about(connection, "keyset", "journal", "restoring", "floor")
            # Rows that are there can be locked.
            found = belongs | {"restoring": "", "floor": "0"} | found
            if repair == "journal":
                found["journal"] = belongs["journal"]
            if former == 0 and self._had_one():
                # Committed only where somebody repairs: what stays then is served by nobody.
                found["restoring"] = _VANISHED
            if repair == "anew":
                if former and found["restoring"] != _VANISHED:
                    raise ConfigError(
                        "No new vault is begun: there is one.",
                        remedy="Look at it with: telemetry vault stats",
                    )
                found["restoring"] = ""
            set_about(connection, found)
            if found["keyset"] != belongs["keyset"]:
                # With other keys every subject would be new: split in two, and not erasable.
                raise KeyringError(
                    "The vault belongs to another keyset.",
                    remedy="Restore the keyset that was made with this vault.",
                )
            if found["journal"] != belongs["journal"]:
                # An older vault would forget erasures that this journal does not know.
                raise ConfigError(
                    "The vault has another tombstone journal.",
                    remedy="Name its journal in [vault] journal, or bring it back. If it is lost "
                    "and this vault was never set back: telemetry vault restore --new-journal",
                )
            if found["restoring"] == _VANISHED and not repair:
                raise self._vanished()
            if found["restoring"] not in {"", _VANISHED} and repair != "restore":
                raise ConfigError(
                    "A restore of the vault was cut short.",
                    remedy="Run it again: telemetry vault restore FILE",
                )
            if former == 1 or repair == "journal":
                self._write_out(connection)
            self._obey(connection)
        self.journal.note_vault(self.today())

    def _had_one(self) -> bool:
        """Tell whether there was a vault of this keyset or journal, while there is none here.

        A token key in use has made tokens with secrets that only a vault can have held.
        """
        return self.journal.had_vault() or any(
            key.use == "token" and key.state != "PRE_ACTIVE" and key.not_before is not None
            for key in self.keyring.entries()
        )

    def _vanished(self) -> ConfigError:
        file = self.engine.url.database if self.engine.dialect.name == "sqlite" else None
        return ConfigError(
            "The vault is gone: its journal or its keyset shows that there was one.",
            path=Path(file) if file else None,
            remedy="Bring it back: its own file, or telemetry vault restore FILE. A new one gives "
            "every account new tokens, keeps objections and consents of the last three weeks only, "
            "and can erase nothing that recipients hold: telemetry vault restore --new-vault",
        )

    def today(self) -> date:
        """Give the day, UTC."""
        return self._now().astimezone(UTC).date()

    # --- Secrets --------------------------------------------------------------------------------

    def secrets(self, locators: Sequence[bytes]) -> dict[bytes, Held | Tombstoned | Unreadable]:
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
                if due := [key for key, held in fresh.items() if type(held) is Held and held.due]:
                    fresh |= self._roll(due)
                # Sorted, so that two who insert the same subjects never wait for each other, and
                # neighbours in the table are written together.
                unknown = sorted(set(missing) - set(fresh))
                if unknown:
                    fresh |= self._make(unknown)
                self._subjects.remember(fresh, asked_at)
                found |= fresh
            return found

    def find(self, locators: Sequence[bytes]) -> dict[bytes, Held | Tombstoned | Unreadable]:
        """Give the secrets of those subjects that there are, and make none.

        For who looks for a subject without meeting it: a search must not leave a trace.

        Raises:
            VaultError: It cannot be asked.
            KeyringError: A wrap key is missing.
        """
        with self._lock:
            return self._find(locators)

    def _find(self, locators: Sequence[bytes]) -> dict[bytes, Held | Tombstoned | Unreadable]:
        with self.transaction() as connection:
            rows, today = find_subjects(connection, locators), self.today()
            return {row.locator: self._open(connection, row, today) for row in rows}

    def _open(
        self, connection: sql.Connection, row: Any, today: date
    ) -> Held | Tombstoned | Unreadable:
        if row.wrapped is None:
            return _TOMBSTONED
        raw = self.unwrapped(row)
        if raw is None or not (len(raw) == _SECRET_BYTES or len(raw) > 2 * _SECRET_BYTES):
            return _UNREADABLE
        former = None
        if len(raw) > _SECRET_BYTES and self._has_former(row.created_month, today):
            then = MappingProxyType(json.loads(raw[2 * _SECRET_BYTES :]))
            former = Held(raw[_SECRET_BYTES : 2 * _SECRET_BYTES], then)
        pins = self.pins(connection, row.pins)
        due = self._is_due(row.locator, row.created_month, today)
        return Held(raw[:_SECRET_BYTES], pins, former=former, due=due)

    # --- Age ------------------------------------------------------------------------------------

    def _is_due(self, locator: bytes, month: str, today: date) -> bool:
        """Tell whether a secret is as old as it may become.

        Only the month in which it was made is known, so its last month is the one before it could
        be too old. The day in that month is the subject's own, by its locator: nobody becomes
        another on one day with everybody.
        """
        last = _months(month) + self._months - 1
        this = today.year * 12 + today.month - 1
        return this > last or (this == last and today.day > locator[-1] % _DUE_DAYS)

    @staticmethod
    def _has_former(month: str, today: date) -> bool:
        return today.year * 12 + today.month - 1 < _months(month) + _FORMER_MONTHS

    def _roll(self, locators: Sequence[bytes]) -> dict[bytes, Held | Tombstoned | Unreadable]:
        """Give subjects whose secret is too old another, and remember the former for a year."""
        pins = self.pins_for_new()
        with self.transaction(writes=True) as connection:
            wrapping = self._allowed(connection)
            rows = find_subjects(connection, sorted(locators))
            fresh = [self.renewed(connection, row, wrapping.version, pins) for row in rows]
            change_subjects(connection, [one for one in fresh if one.was is not None])
            rows, today = find_subjects(connection, locators), self.today()
            return {row.locator: self._open(connection, row, today) for row in rows}

    def renewed(self, connection: sql.Connection, row: Any, version: int, pins: int) -> Renewed:
        """Give what a living row becomes: under today's wrap key, with another secret if it is due.

        Args:
            connection: In a transaction.
            row: Of `find_subjects`.
            version: Of the wrap key.
            pins: From `pins_for_new`, taken before the transaction.
        """
        today, month = self.today(), row.created_month
        held = self._open(connection, row, today)
        if not isinstance(held, Held):
            # What cannot be opened is lost already and stays so; no old key must live for it.
            return Renewed(row.locator, row.wrapped, row.wrapped, version, month, row.pins)
        inside, former = held.expose(), held.former
        if held.due:
            month, former = today.isoformat()[:7], held
            inside = secrets.token_bytes(_SECRET_BYTES)
        else:
            pins = row.pins
        if former is not None:
            # The pins themselves: their number is another in a vault that was restored.
            keys = json.dumps(dict(former.pins), sort_keys=True, separators=(",", ":"))
            inside += former.expose() + keys.encode()
        nonce = secrets.token_bytes(_NONCE_BYTES)
        fresh = self.wrapping(version).wrap(inside, row.locator, nonce)
        return Renewed(row.locator, row.wrapped, fresh, version, month, pins)

    def unwrapped(self, row: Any) -> bytes | None:
        """Give the secret of a row; None if its wrap key was destroyed or the row was changed.

        Raises:
            KeyringError: The wrap key is not here.
        """
        try:
            return self.wrapping(row.wrap_version).unwrap(row.wrapped, row.locator)
        except CapsuleError:
            return None

    def _make(self, locators: Sequence[bytes]) -> dict[bytes, Held | Tombstoned | Unreadable]:
        month = self._now().astimezone(UTC).strftime("%Y-%m")
        raw = secrets.token_bytes(_SECRET_BYTES * len(locators))
        made = {
            locator: raw[at : at + _SECRET_BYTES]
            for locator, at in zip(locators, range(0, len(raw), _SECRET_BYTES), strict=True)
        }
        pins = self.pins_for_new()
        with self.transaction(writes=True) as connection:
            wrapping = self._allowed(connection)
            nonces = secrets.token_bytes(_NONCE_BYTES * len(locators))
            wrapped = {
                locator: wrapping.wrap(secret, locator, nonces[at : at + _NONCE_BYTES])
                for (locator, secret), at in zip(
                    made.items(), range(0, len(nonces), _NONCE_BYTES), strict=True
                )
            }
            version = wrapping.version
            rows = [(locator, row, version, month, pins) for locator, row in wrapped.items()]
            held = self._pin_sets[pins]
            if add_subjects(connection, rows) == len(rows):
                return {locator: Held(secret, held) for locator, secret in made.items()}
            stored = find_subjects(connection, locators)
            if len(stored) != len(rows):
                raise VaultError("The vault did not keep what it was given.")
            return {
                row.locator: Held(made[row.locator], held)
                if row.wrapped == wrapped[row.locator]
                else self._open(connection, row, self.today())
                for row in stored
            }

    def _allowed(self, connection: sql.Connection) -> _Wrapping:
        """Give the wrap key for new rows; with it, no row falls behind a rotation.

        Until the transaction ends nobody raises the floor, so a key below it is never written with
        after somebody has counted that it wraps nothing.
        """
        said = about(connection, "floor", "restoring", shared=True)
        if said["restoring"]:
            # Whoever is missing may be in the backup: a new secret now would split them in two.
            raise VaultError("The vault is being restored.")
        primary = self.keyring.primary("wrap")
        if primary.version < int(said["floor"]):
            self.keyring.refresh()
            primary = self.keyring.primary("wrap")
            if primary.version < int(said["floor"]):
                raise KeyringError(
                    "The vault is written with a newer wrap key than this keyset has.",
                    remedy="Bring the keyset up to date.",
                )
        return self.wrapping(primary.version)

    def wrapping(self, version: int) -> _Wrapping:
        """Give a wrap key, ready for use.

        Raises:
            CapsuleError: It was destroyed (``key_destroyed``).
            KeyringError: It is not here.
        """
        self._notice_keys()
        ready = self._wrappings.get(version)
        if ready is None:
            ready = _Wrapping(self.keyring.wrap(version).expose(), version)
            self._notice_keys()
            self._wrappings[version] = ready
        return ready

    def _notice_keys(self) -> None:
        if self._generation != self.keyring.generation:
            self._wrappings.clear()  # what was destroyed is used no more
            self._pins_now = -1
            self._generation = self.keyring.generation

    # --- Pins -----------------------------------------------------------------------------------

    def pins(self, connection: sql.Connection, number: int) -> Mapping[str, str]:
        """Give a set of pins by its number: the token key by domain."""
        if number not in self._pin_sets:
            for row in connection.execute(sql.select(PIN_SETS)):
                self._pin_sets[row.number] = MappingProxyType(json.loads(row.keys))
        if number not in self._pin_sets:
            raise VaultError("The vault lacks the pins of a subject.")
        return self._pin_sets[number]

    def pins_for_new(self) -> int:
        """Give the number of the set of today's primary token keys; enter it if it is new.

        Not within a transaction.
        """
        self._notice_keys()
        if self._pins_now in self._pin_sets:
            return self._pins_now
        primary = {
            key.domain: key.kid
            for key in self.keyring.entries()
            if (key.use, key.epoch, key.state) == ("token", "rel", "PRIMARY")
        }
        # In a transaction of its own: a number is remembered only once it is durable, or it could
        # come to mean another set.
        keys = json.dumps(primary, sort_keys=True, separators=(",", ":"))
        number = self.enter_pins(keys) if primary else 0
        self._pin_sets[number] = MappingProxyType(primary)
        self._pins_now = number
        return number

    def enter_pins(self, keys: str) -> int:
        """Give the number of a set of pins, in the form in which the table holds it."""
        sets = PIN_SETS.c
        wanted = sql.select(sets.number).where(sets["keys"] == keys)
        with self.transaction(writes=True) as connection:
            found: int | None = connection.scalar(wanted)
            while found is None:
                # Two may choose one number for two sets: then one of them chooses again.
                last = connection.scalar(sql.select(sql.func.max(sets.number))) or 0
                row = {"number": last + 1, "keys": keys}
                connection.execute(insert(connection, PIN_SETS).on_conflict_do_nothing(), row)
                found = connection.scalar(wanted)
        return found

    # --- Erasure --------------------------------------------------------------------------------

    def erase(self, locator: bytes) -> None:
        """Destroy a subject's secret and leave a tombstone, whether or not there was one.

        Durable on return here; other processes forget within a minute, backups when the wrap key
        is destroyed.

        Raises:
            VaultError: It cannot be written. Ask again; erasing twice changes nothing.
        """
        with self._lock:
            self._subjects.forget(locator)
            self.journal.append(locator, None, self.today())
            with self.transaction(writes=True) as connection:
                self._obey(connection)
            self.drain()

    def _obey(self, connection: sql.Connection) -> None:
        """Do what the journal says since this vault last read it.

        Never only what the caller has just written there: another process may have died between
        its entry and its own turn here.
        """
        said = about(connection, "position", mine=True)
        position = int(said.get("position", "0"))
        forgotten, last = self.journal.bounds()
        if said and position < forgotten:
            raise ConfigError(
                "The vault is older than its tombstone journal remembers.",
                remedy="Do not use it: erasures would be undone. Take a newer backup.",
            )
        if position > last:
            raise ConfigError(
                "The tombstone journal was set back: it is older than its vault.",
                remedy="Bring it back; or, if the vault itself was never set back: "
                "telemetry vault restore --new-journal",
            )
        for page in self.journal.since(position):
            for entry in page:
                self.obey(connection, entry)
            position = page[-1].n
        set_about(connection, {"position": str(position)})

    def obey(self, connection: sql.Connection, entry: Entry) -> None:
        """Do what one entry of the journal says; doing it twice changes nothing."""
        statement: Any
        if entry.state is None:
            stone = {
                "locator": entry.key,
                "wrapped": None,
                "wrap_version": 0,
                "created_month": entry.made_on[:7],
                "erased_on": entry.made_on,
                "pins": 0,
            }
            statement = insert(connection, SUBJECTS).values(stone)
            gone = {"wrapped": None, "wrap_version": 0, "erased_on": entry.made_on, "pins": 0}
            statement = statement.on_conflict_do_update(
                index_elements=[SUBJECTS.c.locator], set_=gone, where=SUBJECTS.c.erased_on.is_(None)
            )
            self._subjects.forget(entry.key)
        else:
            fields = {"tag": entry.key, "state": entry.state, "since": entry.made_on}
            statement = insert(connection, SUPPRESSIONS).values(fields)
            statement = statement.on_conflict_do_update(
                index_elements=[SUPPRESSIONS.c.tag],
                set_={"state": entry.state, "since": entry.made_on},
                where=SUPPRESSIONS.c.state != "ERASED",
            )
            self._states.forget(entry.key)
        connection.execute(statement)

    def _write_out(self, connection: sql.Connection) -> None:
        """Give a journal that knows nothing yet what this vault has to keep.

        For a vault from before there were journals, and for one whose journal was lost.
        """
        today = self.today()
        erased = sql.select(SUBJECTS.c.locator).where(SUBJECTS.c.wrapped.is_(None))
        for locator in connection.scalars(erased).all():
            self.journal.append(locator, None, today)
        states = sql.select(SUPPRESSIONS.c.tag, SUPPRESSIONS.c.state)
        for tag, state in connection.execute(states).all():
            self.journal.append(tag, state, today)
        connection.execute(ABOUT.delete().where(ABOUT.c.name == "position"))

    def drain(self) -> None:
        """Move the write-ahead log into the file, so that no old page of it keeps a secret."""
        if self.engine.dialect.name != "sqlite":
            return
        # Another reader may hinder it; then the next erasure or the last close does it, and what
        # lies there meanwhile is wrapped.
        with suppress(sql.exc.SQLAlchemyError, self._driver_error):
            raw = self.engine.raw_connection()
            try:
                raw.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            finally:
                raw.close()

    @property
    def _driver_error(self) -> type[Exception]:
        failure: type[Exception] = self.engine.dialect.loaded_dbapi.Error
        return failure

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
                with self.transaction() as connection:
                    for chunk in chunks(missing):
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
        with self._lock:
            self._states.forget(tag)
            if state != "ERASED" and self.states([tag])[tag] == "ERASED":
                raise IdentifierError("erased")
            self._states.forget(tag)
            self.journal.append(tag, state, self.today())
            with self.transaction(writes=True) as connection:
                self._obey(connection)
                kept = connection.scalar(
                    sql.select(SUPPRESSIONS.c.state).where(SUPPRESSIONS.c.tag == tag)
                )
        if kept == "ERASED" != state:
            raise IdentifierError("erased")

    # --- The connection -------------------------------------------------------------------------

    @contextmanager
    def transaction(self, *, writes: bool = False) -> Iterator[sql.Connection]:
        """Give the connection, alone, in a transaction.

        Raises:
            VaultError: The database failed.
        """
        with self._lock:
            if self._pid != os.getpid():
                # A connection is not for two processes. Nor is it closed here: SQLite would take
                # the last close for a reason to tidy up the files that the parent works on.
                self._inherited = [self.engine.pool, *self.journal.leave_to_parent()]
                self.engine.dispose(close=False)
                self._pid = os.getpid()
            with transaction(self.engine, writes=writes) as connection:
                yield connection

    def claim(self) -> None:
        """Be the only process that serves a SQLite vault, until `close`. Nothing for PostgreSQL.

        Raises:
            ConfigError: Another process serves it already.
        """
        path = self.engine.url.database
        if self.engine.dialect.name != "sqlite" or path is None or self._claimed is not None:
            return
        try:
            handle = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            raise VaultError("The vault cannot be opened.") from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            raise ConfigError(
                "Another process uses this SQLite vault.",
                path=Path(path),
                remedy="End it; or give all pseudonymizers one PostgreSQL vault: [vault] url.",
            ) from None
        self._claimed = handle

    def close(self) -> None:
        """Let go of the connection and forget what was remembered."""
        with self._lock:
            self._subjects.clear()
            self._states.clear()
            self._wrappings.clear()
            self.engine.dispose()
            self.journal.close()
            if self._claimed is not None:
                os.close(self._claimed)
                self._claimed = None


def _months(month: str) -> int:
    """Count the months up to one that is written like 2026-11."""
    return int(month[:4]) * 12 + int(month[5:7]) - 1


def _journal_url(url: str) -> str:
    """Give the journal that belongs to a SQLite vault of which nothing else was said."""
    try:
        parsed = sql.engine.make_url(url)
    except sql.exc.SQLAlchemyError:
        raise VaultError("The vault cannot be opened.") from None
    if parsed.get_backend_name() != "sqlite" or not parsed.database:
        raise ConfigError(
            "A PostgreSQL vault needs a tombstone journal of its own.",
            remedy="Name one in [vault] journal: a file, or a database on another server.",
        )
    return f"sqlite:///{Path(parsed.database).with_name('tombstones.sqlite3')}"


class _Remembered(Generic[Value]):
    """Answers not older than `CACHE_S`, a bounded number of them."""

    def __init__(self, clock: Callable[[], float], bound: int) -> None:
        self._clock, self._bound = clock, bound
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
        if len(self._rows) + len(fresh) > self._bound:
            now = self._clock()
            self._rows = {key: row for key, row in self._rows.items() if now < row[0]}
            if len(self._rows) + len(fresh) > self._bound:
                self._rows.clear()
        ends = asked_at + CACHE_S
        self._rows.update({key: (ends, value) for key, value in fresh.items()})

    def forget(self, key: bytes) -> None:
        self._rows.pop(key, None)

    def clear(self) -> None:
        self._rows.clear()
