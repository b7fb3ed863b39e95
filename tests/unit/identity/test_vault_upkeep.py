"""Rotation, backups and tombstones: what is erased is gone from every copy, and nothing else is."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from telemetry.errors import ConfigError, KeyringError, VaultError
from telemetry.identity import initialise_development, open_vault
from telemetry.identity.keyring import Keyring
from telemetry.identity.vault import Held, Tombstoned, Unreadable, Vault
from telemetry.identity.vault.tables import SUBJECTS
from telemetry.identity.vault.upkeep import backup, forget, restore, rewrap, rotate, stats

WEEK = timedelta(days=7)
A, B, C, D = (bytes([n]) * 32 for n in (1, 2, 3, 4))
MANY = [n.to_bytes(2, "big") * 16 for n in range(1, 700)]


class Place:
    """A state folder with a clock that the test moves."""

    def __init__(self, state: Path) -> None:
        self.state = state
        initialise_development(state)
        self.now = datetime.now(UTC) + timedelta(seconds=1)
        self.ring = self.load()
        self.opened: list[Vault] = []

    def load(self) -> Keyring:
        path = self.state / "keys" / "keyset.json"
        return Keyring.load(path, environment="development", now=lambda: self.now)

    def vault(self, ring: Keyring | None = None, **given: Any) -> Vault:
        vault = open_vault(self.state, ring or self.ring, **given)
        vault._now = lambda: self.now
        self.opened.append(vault)
        return vault

    def week(self, vault: Vault) -> None:
        self.now += WEEK
        assert rotate(vault, now=self.now) is not None
        run(rewrap(vault))

    def close(self) -> None:
        for vault in self.opened:
            vault.close()

    def versions(self) -> dict[int, str]:
        return {key.version: key.state for key in self.ring.entries() if key.use == "wrap"}


def run(steps: Iterator[float]) -> list[float]:
    done = list(steps)
    assert done[-1] == 1.0
    assert all(0 <= one <= 1 for one in done)
    return done


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    one = Place(tmp_path)
    yield one
    one.close()


def test_rotation_moves_every_row_and_changes_no_secret(place: Place) -> None:
    vault = place.vault()
    before = vault.secrets(MANY)
    place.week(vault)
    assert stats(vault).wrapped == {2: len(MANY)}
    assert place.vault().secrets(MANY) == before
    assert place.versions() == {1: "ENABLED", 2: "PRIMARY"}
    place.week(vault)
    assert place.versions() == {1: "DESTROYED", 2: "ENABLED", 3: "PRIMARY"}
    assert place.vault().secrets(MANY) == before


def test_the_wrap_key_is_replaced_each_week_and_not_before(place: Place) -> None:
    vault = place.vault()
    assert rotate(vault, now=place.now + WEEK - timedelta(minutes=1)) is None
    place.week(vault)
    assert rotate(vault, now=place.now + WEEK - timedelta(minutes=1)) is None


def test_after_a_compromise_no_former_key_stays(place: Place) -> None:
    vault = place.vault()
    before = vault.secrets([A, B])
    assert rotate(vault, now=place.now, after=timedelta(0)) is not None
    run(rewrap(vault, keep=0))
    assert place.versions() == {1: "DESTROYED", 2: "PRIMARY"}
    assert place.vault().secrets([A, B]) == before


def test_rewrapping_may_be_left_at_any_page_and_goes_on(place: Place) -> None:
    vault = place.vault()
    before = vault.secrets(MANY)
    place.now += WEEK
    rotate(vault, now=place.now)
    steps = rewrap(vault, keep=0, rows=100)
    for _ in range(3):
        next(steps)
    steps.close()
    half = stats(vault).wrapped
    assert half == {1: len(MANY) - 300, 2: 300}
    assert place.versions()[1] == "ENABLED"
    run(rewrap(place.vault(), keep=0, rows=100))
    assert stats(vault).wrapped == {2: len(MANY)}
    place.ring.refresh()
    assert place.versions()[1] == "DESTROYED"
    assert place.vault().secrets(MANY) == before


def test_a_rotation_that_was_cut_short_is_completed_and_not_begun_anew(place: Place) -> None:
    vault = place.vault()
    place.now += WEEK
    place.ring.create("wrap")  # and then the power failed
    fresh = rotate(vault, now=place.now)
    assert fresh is not None
    assert fresh.version == 2
    assert place.versions() == {1: "ENABLED", 2: "PRIMARY"}


def test_a_new_wrap_key_waits_for_every_running_process(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault = place.vault()
    other, another_process = place.load(), os.getppid()
    monkeypatch.setattr(os, "getpid", lambda: another_process)
    other.report()
    monkeypatch.undo()
    place.now += WEEK
    assert rotate(vault, now=place.now) is None
    assert place.versions() == {1: "PRIMARY", 2: "PRE_ACTIVE"}
    other.refresh()
    monkeypatch.setattr(os, "getpid", lambda: another_process)
    other.report()
    monkeypatch.undo()
    assert rotate(vault, now=place.now) is not None


def test_a_writer_that_slept_through_a_rotation_writes_with_the_new_key(place: Place) -> None:
    vault, sleeper = place.vault(), place.vault(place.load())
    sleeper.secrets([A])
    place.now += WEEK
    rotate(vault, now=place.now)
    run(rewrap(vault, keep=0))
    sleeper.secrets([B])
    assert stats(vault).wrapped == {2: 2}


def test_a_keyset_that_stays_behind_the_vault_holds(place: Place, tmp_path: Path) -> None:
    vault = place.vault()
    copy = tmp_path / "copy"
    shutil.copytree(place.state / "keys", copy / "keys")
    place.week(vault)
    behind = Keyring.load(copy / "keys" / "keyset.json", environment="development")
    late = place.vault(behind)
    with pytest.raises(KeyringError, match="newer wrap key"):
        late.secrets([C])
    assert stats(vault).subjects == 0


def test_a_row_that_cannot_be_opened_keeps_no_old_key_alive(place: Place) -> None:
    vault = place.vault()
    vault.secrets([A, B])
    with vault.transaction(writes=True) as connection:
        connection.execute(SUBJECTS.update().where(SUBJECTS.c.locator == A).values(wrapped=b"x"))
    rotate(vault, now=place.now, after=timedelta(0))
    run(rewrap(vault, keep=0))
    assert place.versions()[1] == "DESTROYED"
    fresh = place.vault()
    assert isinstance(fresh.secrets([A])[A], Unreadable)
    assert isinstance(fresh.secrets([B])[B], Held)


def test_an_erasure_during_the_rewrapping_is_not_undone(place: Place) -> None:
    vault = place.vault()
    vault.secrets(MANY)
    rotate(vault, now=place.now, after=timedelta(0))
    steps = rewrap(vault, keep=0, rows=100)
    next(steps)
    vault.erase(MANY[3])
    vault.erase(MANY[-1])
    list(steps)
    got = place.vault().secrets(MANY)
    assert [n for n, one in enumerate(MANY) if isinstance(got[one], Tombstoned)] == [3, 698]


def test_an_old_backup_of_an_erased_subject_is_dead_after_two_rotations(place: Place) -> None:
    vault = place.vault()
    secret = vault.secrets([A, B])[A]
    assert isinstance(secret, Held)
    copy = place.state / "copy.sqlite3"
    run(backup(vault, copy))
    with sqlite3.connect(copy) as reader:
        row = reader.execute("SELECT wrapped FROM subjects WHERE locator=?", (A,)).fetchone()
    reader.close()
    vault.erase(A)
    place.week(vault)
    place.week(vault)
    with pytest.raises(ConfigError, match="key that is destroyed"):
        run(restore(place.vault(repair="restore"), copy))
    # Neither the secret nor the key that opens its copy is in any file but that copy.
    for file in place.state.rglob("*"):
        if file.is_file() and file != copy:
            assert secret.expose() not in file.read_bytes()
            assert row[0][12:] not in file.read_bytes()


# --- Backup and restore ---------------------------------------------------------------------------


def test_a_vault_that_is_lost_comes_back_from_its_backup(place: Place) -> None:
    vault = place.vault()
    before = vault.secrets(MANY)
    vault.set_state(A, "OBJECTED")
    copy = place.state / "copy.sqlite3"
    run(backup(vault, copy))
    assert copy.stat().st_mode & 0o077 == 0
    vault.close()
    for file in place.state.glob("vault.sqlite3*"):
        file.unlink()
    fresh = place.vault(repair="restore")
    run(restore(fresh, copy))
    assert place.vault().secrets(MANY) == before
    assert place.vault().states([A, B]) == {A: "OBJECTED", B: "ACTIVE"}


def test_a_restore_undoes_no_erasure_no_objection_and_no_new_subject(place: Place) -> None:
    vault = place.vault()
    before = vault.secrets([A, B])
    vault.set_state(D, "GRANTED")
    copy = place.state / "copy.sqlite3"
    run(backup(vault, copy))
    vault.erase(A)
    vault.set_state(D, "WITHDRAWN")
    after = vault.secrets([C])
    run(restore(place.vault(repair="restore"), copy))
    got = place.vault().secrets([A, B, C])
    assert isinstance(got[A], Tombstoned)
    assert got[B] == before[B]
    assert got[C] == after[C]
    assert place.vault().states([D]) == {D: "WITHDRAWN"}


def test_erasures_hold_also_where_somebody_copies_the_old_file_back(place: Place) -> None:
    vault = place.vault()
    vault.secrets([A, B])
    vault.close()
    old = (place.state / "vault.sqlite3").read_bytes()
    vault = place.vault()
    vault.erase(A)
    vault.set_state(B, "RESTRICTED")
    vault.close()
    for file in place.state.glob("vault.sqlite3*"):
        file.unlink()
    (place.state / "vault.sqlite3").write_bytes(old)
    fresh = place.vault()
    assert isinstance(fresh.secrets([A])[A], Tombstoned)
    assert fresh.states([B]) == {B: "RESTRICTED"}


def test_a_lost_vault_without_any_backup_makes_no_erased_subject_anew(place: Place) -> None:
    vault = place.vault()
    vault.erase(A)
    vault.close()
    for file in place.state.glob("vault.sqlite3*"):
        file.unlink()
    assert isinstance(place.vault(repair="anew").secrets([A])[A], Tombstoned)


def test_nothing_is_served_while_a_restore_is_cut_short(place: Place) -> None:
    vault = place.vault()
    before = vault.secrets(MANY)
    copy = place.state / "copy.sqlite3"
    run(backup(vault, copy))
    fresh = place.vault(repair="restore")
    served = place.vault()
    steps = restore(fresh, copy)
    next(steps)
    steps.close()
    with fresh.transaction(writes=True) as connection:
        connection.execute(SUBJECTS.delete())  # as if it had been cut before the first page
    with pytest.raises(ConfigError, match="cut short"):
        place.vault()
    with pytest.raises(VaultError, match="being restored"):
        served.secrets([MANY[0]])
    run(restore(place.vault(repair="restore"), copy))
    assert place.vault().secrets(MANY) == before


def test_a_backup_that_the_journal_does_not_reach_is_refused(place: Place) -> None:
    vault = place.vault()
    vault.secrets([A])
    copy = place.state / "copy.sqlite3"
    run(backup(vault, copy))
    vault.erase(A)
    vault.journal.forget(place.now.date() + timedelta(days=1))
    with pytest.raises(ConfigError, match="older than the tombstone journal"):
        run(restore(place.vault(repair="restore"), copy))
    vault.close()
    for file in place.state.glob("vault.sqlite3*"):
        file.unlink()
    shutil.copy(copy, place.state / "vault.sqlite3")
    with pytest.raises(ConfigError, match="older than its tombstone journal"):
        place.vault()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda _: None, "not there"),
        (lambda path: path.write_bytes(b""), "no backup"),
        (lambda path: path.write_bytes(b"something else entirely" * 99), "cannot be"),
    ],
)
def test_what_is_no_backup_is_refused_and_changes_nothing(
    place: Place, make: Callable[[Path], Any], said: str
) -> None:
    vault = place.vault()
    before = vault.secrets([A])
    make(place.state / "copy.sqlite3")
    with pytest.raises((ConfigError, VaultError), match=said):
        run(restore(place.vault(repair="restore"), place.state / "copy.sqlite3"))
    assert place.vault().secrets([A]) == before


def test_a_backup_of_another_installation_is_refused(place: Place, tmp_path: Path) -> None:
    other = Place(tmp_path / "other")
    run(backup(other.vault(), tmp_path / "copy.sqlite3"))
    other.close()
    with pytest.raises(ConfigError, match="another keyset"):
        run(restore(place.vault(repair="restore"), tmp_path / "copy.sqlite3"))


def test_a_backup_overwrites_no_file_and_leaves_none_behind(place: Place) -> None:
    vault = place.vault()
    vault.secrets(MANY)
    copy = place.state / "copy.sqlite3"
    copy.write_bytes(b"mine")
    with pytest.raises(ConfigError, match="exists"):
        run(backup(vault, copy))
    assert copy.read_bytes() == b"mine"
    steps = backup(vault, place.state / "two.sqlite3")
    next(steps)
    steps.close()
    with pytest.raises(ConfigError, match="cannot be written"):
        run(backup(vault, place.state / "nowhere" / "at" / "all"))
    assert not [f for f in place.state.iterdir() if "two" in f.name or f.name.startswith(".copy")]


# --- Journal --------------------------------------------------------------------------------------


def test_a_vault_without_its_journal_is_not_served(place: Place) -> None:
    vault = place.vault()
    vault.secrets([B])
    vault.erase(A)
    vault.set_state(C, "OBJECTED")
    vault.close()
    (place.state / "tombstones.sqlite3").unlink()
    with pytest.raises(ConfigError, match="another tombstone journal"):
        place.vault()
    # Whoever knows that the vault was never set back begins a new one, and loses nothing.
    place.vault(repair="journal").close()
    for file in place.state.glob("vault.sqlite3*"):
        file.unlink()
    fresh = place.vault(repair="anew")
    assert isinstance(fresh.secrets([A])[A], Tombstoned)
    assert fresh.states([C]) == {C: "OBJECTED"}


def test_a_journal_that_was_set_back_is_refused(place: Place) -> None:
    vault = place.vault()
    vault.erase(A)
    old = (place.state / "tombstones.sqlite3").read_bytes()
    vault.erase(B)
    vault.close()
    (place.state / "tombstones.sqlite3").write_bytes(old)
    with pytest.raises(ConfigError, match="set back"):
        place.vault()


def test_an_erasure_cut_short_between_journal_and_vault_is_completed(place: Place) -> None:
    vault, other = place.vault(), place.vault()
    vault.secrets([A, B])
    vault.journal.append(A, None, vault.today())  # and then the power failed
    other.erase(C)  # somebody else's erasure does not step over it
    assert isinstance(place.vault().secrets([A])[A], Tombstoned)


def test_tombstones_go_after_three_weeks_if_no_key_is_left_that_opens_what_they_bury(
    place: Place,
) -> None:
    vault = place.vault()
    vault.secrets([A])
    vault.erase(A)
    vault.set_state(A, "ERASED")
    vault.set_state(B, "OBJECTED")
    place.now += timedelta(days=60)
    assert forget(vault) == 0  # the wrap key of its time still lives
    for _ in range(2):
        place.week(vault)
    assert forget(vault) == 1
    assert stats(vault).erased == 0
    assert stats(vault).states == {"OBJECTED": 1}
    assert vault.journal.bounds()[0] == 3
    assert isinstance(place.vault().secrets([A])[A], Held)


# --- Schema ---------------------------------------------------------------------------------------

FIRST_SCHEMA = """
CREATE TABLE subjects (
    locator BLOB NOT NULL, wrapped BLOB, wrap_version INTEGER NOT NULL,
    created_month VARCHAR(7) NOT NULL, erased_on VARCHAR(10), PRIMARY KEY (locator)
) WITHOUT ROWID;
CREATE TABLE suppressions (
    tag BLOB NOT NULL, state VARCHAR(10) NOT NULL, PRIMARY KEY (tag)
) WITHOUT ROWID;
CREATE TABLE about (
    name VARCHAR(16) NOT NULL, value VARCHAR(64) NOT NULL, PRIMARY KEY (name)
);
"""


def first_version(place: Place) -> dict[bytes, Held]:
    """Make a vault as version 0.1.0 made it, with two subjects, one tombstone and one objection."""
    vault = place.vault()
    made = vault.secrets([A, B])
    with vault.transaction() as connection:
        rows = connection.execute(
            SUBJECTS.select().with_only_columns(
                SUBJECTS.c.locator, SUBJECTS.c.wrapped, SUBJECTS.c.wrap_version
            )
        ).all()
    vault.close()
    for file in place.state.glob("*.sqlite3*"):
        file.unlink()
    with sqlite3.connect(place.state / "vault.sqlite3") as writer:
        writer.executescript(FIRST_SCHEMA)
        for row in rows:
            writer.execute("INSERT INTO subjects VALUES (?, ?, ?, '2026-11', NULL)", tuple(row))
        writer.execute("INSERT INTO subjects VALUES (?, NULL, 0, '2026-10', '2026-11-20')", (C,))
        writer.execute("INSERT INTO suppressions VALUES (?, 'OBJECTED')", (D,))
        kid = place.ring.primary("locator").kid
        writer.execute("INSERT INTO about VALUES ('keyset', ?)", (kid,))
    writer.close()
    return {locator: one for locator, one in made.items() if isinstance(one, Held)}


def test_a_vault_of_the_first_version_is_brought_up_to_date_in_place(place: Place) -> None:
    before = first_version(place)
    vault = place.vault()
    got = vault.secrets([A, B, C])
    assert {locator: got[locator] for locator in (A, B)} == before
    assert isinstance(got[C], Tombstoned)
    assert vault.states([D]) == {D: "OBJECTED"}
    assert stats(vault).schema == 2
    vault.erase(B)
    vault.close()
    # Its tombstones are in the journal now, as if it had always had one.
    for file in place.state.glob("vault.sqlite3*"):
        file.unlink()
    fresh = place.vault(repair="anew")
    assert isinstance(fresh.secrets([C])[C], Tombstoned)
    assert isinstance(fresh.secrets([B])[B], Tombstoned)
    assert fresh.states([D]) == {D: "OBJECTED"}


def test_a_migration_cut_short_is_done_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    before = first_version(place)

    def dies(_self: object, _connection: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Vault, "_obey", dies)
        with pytest.raises(KeyboardInterrupt):
            place.vault()
    with sqlite3.connect(place.state / "vault.sqlite3") as reader:
        columns = [row[1] for row in reader.execute("PRAGMA table_info(subjects)")]
    reader.close()
    assert "pins" not in columns
    got = place.vault().secrets([A, B, C])
    assert {locator: got[locator] for locator in (A, B)} == before
    assert isinstance(got[C], Tombstoned)


def test_a_vault_of_a_later_version_is_refused_and_left_alone(place: Place) -> None:
    place.vault().close()
    with sqlite3.connect(place.state / "vault.sqlite3") as writer:
        writer.execute("UPDATE about SET value='3' WHERE name='schema'")
    writer.close()
    with pytest.raises(ConfigError, match="later version"):
        place.vault()


# --- One process ----------------------------------------------------------------------------------


def test_a_sqlite_vault_is_served_by_one_process_at_a_time(place: Place) -> None:
    first, second = place.vault(), place.vault()
    first.claim()
    with pytest.raises(ConfigError, match="Another process"):
        second.claim()
    first.close()
    second.claim()


def test_stats_count_and_show_nothing_else(place: Place) -> None:
    vault = place.vault()
    vault.secrets([A, B, C])
    vault.erase(C)
    place.ring.token_key("analytics@heap", "rel")
    vault.secrets([D])
    counted = stats(vault)
    first = next(key.kid for key in place.ring.entries() if key.use == "token")
    assert (counted.subjects, counted.erased, counted.wrapped) == (3, 1, {1: 3})
    assert counted.pinned == {"analytics@heap": {first: 3}}
    shown = json.dumps(repr(counted))
    for locator in (A, B, C, D):
        assert locator.hex() not in shown
        assert repr(locator)[2:-1] not in shown


def test_a_vault_that_another_serves_is_not_changed_by_a_new_journal(tmp_path: Path) -> None:
    place = Place(tmp_path)
    serving = place.vault()
    serving.claim()
    serving.secrets([A])
    for file in tmp_path.glob("tombstones.sqlite3*"):
        file.rename(tmp_path / f"away-{file.name}")
    before = sqlite3.connect(tmp_path / "vault.sqlite3")
    held = before.execute("SELECT * FROM about ORDER BY name").fetchall()
    with pytest.raises(ConfigError, match="Another process uses"):
        place.vault(repair="journal")
    assert before.execute("SELECT * FROM about ORDER BY name").fetchall() == held
    before.close()
    place.close()
