"""A subject has one secret, everywhere and for ever, until it is erased; then never again."""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from telemetry.errors import CapsuleError, IdentifierError, KeyringError, VaultError
from telemetry.identity import initialise_development
from telemetry.identity.keyring import Keyring, Secret
from telemetry.identity.vault import CACHE_S, Tombstoned, Unreadable, Vault, unwrap, wrap

VECTORS: Any = json.loads(
    (Path(__file__).parents[2] / "vectors" / "identity.json").read_text("utf-8")
)
A, B, C = (bytes([n]) * 32 for n in (1, 2, 3))
Opened = Callable[..., Vault]


@pytest.fixture
def ring(tmp_path: Path) -> Keyring:
    initialise_development(tmp_path)
    return Keyring.load(tmp_path / "keys" / "keyset.json", environment="development")


@pytest.fixture
def opened(ring: Keyring, tmp_path: Path) -> Iterator[Opened]:
    vaults: list[Vault] = []

    def open_one(**given: Any) -> Vault:
        vaults.append(Vault(f"sqlite:///{tmp_path}/vault.sqlite3", keyring=ring, **given))
        return vaults[-1]

    yield open_one
    for vault in vaults:
        vault.close()


def test_a_wrapped_secret_has_the_value_of_its_vector() -> None:
    vector = VECTORS["wrap"]
    key = bytes.fromhex(VECTORS["keys"][vector["key"]])
    secret = bytes.fromhex(VECTORS["keys"][vector["secret"]])
    place = bytes.fromhex(VECTORS["locator"]["value"])
    nonce = bytes.fromhex(vector["nonce"])
    wrapped = wrap(key, secret, locator=place, version=1, nonce=nonce)
    assert wrapped == nonce + bytes.fromhex(vector["value"])
    assert unwrap(key, wrapped, locator=place, version=1) == secret
    for change in (
        {"locator": A},
        {"version": 2},
        {"key": bytes(32)},
        {"wrapped": wrapped[:-1]},
        {"wrapped": b""},
    ):
        given: dict[str, Any] = {"key": key, "wrapped": wrapped, "locator": place, "version": 1}
        given |= change
        with pytest.raises(CapsuleError):
            unwrap(given.pop("key"), given.pop("wrapped"), **given)


def test_a_new_subject_gets_a_secret_that_stays(opened: Opened) -> None:
    first = opened()
    made = first.secrets([A, B, A])
    assert set(made) == {A, B}
    assert all(isinstance(secret, Secret) for secret in made.values())
    assert made[A] != made[B]
    assert first.secrets([B, A]) == made
    first.close()
    assert opened().secrets([A, B]) == made


def test_more_subjects_than_one_statement_takes_are_found_again(opened: Opened) -> None:
    locators = [n.to_bytes(32, "big") for n in range(1201)]
    made = opened().secrets(locators)
    assert len(set(made.values())) == 1201
    assert opened().secrets(locators) == made


def test_of_two_that_meet_a_subject_at_once_both_get_the_secret_of_the_first(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = opened(), opened()
    winner: dict[bytes, Any] = {}
    find = Vault._find

    def late(self: Vault, locators: Any) -> Any:
        found = find(self, locators)
        if self is two and not winner:
            winner.update(one.secrets([A, B]))  # between the other's look and its insert
        return found

    monkeypatch.setattr(Vault, "_find", late)
    got = two.secrets([A, B, C])
    assert {locator: got[locator] for locator in (A, B)} == winner
    assert opened().secrets([A, B, C]) == got


def test_threads_with_their_own_connections_agree_on_every_secret(opened: Opened) -> None:
    vaults = [opened() for _ in range(3)]
    locators = [n.to_bytes(32, "big") for n in range(60)]
    got: list[dict[bytes, Any]] = []
    start = threading.Barrier(3)

    def work(vault: Vault) -> None:
        start.wait(10)
        mine: dict[bytes, Any] = {}
        for at in range(0, 60, 5):
            mine |= vault.secrets(locators[at : at + 5])
        got.append(mine)

    threads = [threading.Thread(target=work, args=(vault,)) for vault in vaults]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(got) == 3
    assert got[0] == got[1] == got[2]


def test_moving_the_log_into_the_file_takes_nothing_from_who_is_writing(opened: Opened) -> None:
    vault = opened()
    vault.secrets([A])
    drained = threading.Thread(target=vault.drain)
    with vault.transaction(writes=True) as connection:
        connection.exec_driver_sql("UPDATE subjects SET created_month = '1999-01'")
        drained.start()
        drained.join(0.3)  # the connection is taken: it waits its turn
        assert drained.is_alive()
    drained.join(10)
    assert not drained.is_alive()
    with vault.transaction() as connection:
        months = connection.exec_driver_sql("SELECT created_month FROM subjects").scalars().all()
    assert months == ["1999-01"]


def test_an_erased_subject_is_refused_for_ever_and_its_secret_is_in_no_file(
    opened: Opened, tmp_path: Path
) -> None:
    vault = opened()
    vault.secrets([A, B])
    with sqlite3.connect(tmp_path / "vault.sqlite3") as reader:
        (wrapped,) = reader.execute("SELECT wrapped FROM subjects WHERE locator=?", (A,)).fetchone()
    reader.close()
    vault.erase(A)
    assert isinstance(vault.secrets([A])[A], Tombstoned)
    assert isinstance(opened().secrets([A, B])[A], Tombstoned)
    vault.erase(A)
    assert isinstance(vault.secrets([A, B])[B], Secret)
    for file in tmp_path.glob("vault.sqlite3*"):
        assert wrapped[12:] not in file.read_bytes()


def test_a_subject_can_be_erased_before_it_was_ever_seen(opened: Opened) -> None:
    vault = opened()
    vault.erase(A)
    assert isinstance(vault.secrets([A])[A], Tombstoned)


def test_an_erasure_elsewhere_is_obeyed_within_a_minute(opened: Opened) -> None:
    now = [0.0]
    one, two = opened(clock=lambda: now[0]), opened()
    one.secrets([A])
    two.erase(A)
    now[0] = CACHE_S
    assert isinstance(one.secrets([A])[A], Tombstoned)
    assert CACHE_S < 60


def test_a_state_elsewhere_is_obeyed_within_a_minute(opened: Opened) -> None:
    now = [0.0]
    one, two = opened(clock=lambda: now[0]), opened()
    assert one.states([A, B]) == {A: "ACTIVE", B: "ACTIVE"}
    two.set_state(A, "OBJECTED")
    now[0] = CACHE_S
    assert one.states([A, B]) == {A: "OBJECTED", B: "ACTIVE"}


def test_states_are_kept_and_only_an_erasure_is_final(opened: Opened) -> None:
    vault = opened()
    for state in ("OBJECTED", "RESTRICTED", "GRANTED", "WITHDRAWN", "ACTIVE", "ERASED", "ERASED"):
        vault.set_state(A, state)  # type: ignore[arg-type]
        assert vault.states([A]) == opened().states([A]) == {A: state}
    with pytest.raises(IdentifierError, match="erased"):
        vault.set_state(A, "ACTIVE")
    assert opened().states([A]) == {A: "ERASED"}
    with pytest.raises(IdentifierError):
        vault.set_state(A, "FORGOTTEN")  # type: ignore[arg-type]


def test_a_state_of_a_later_version_stops_processing(opened: Opened, tmp_path: Path) -> None:
    vault = opened()
    with sqlite3.connect(tmp_path / "vault.sqlite3") as writer:
        writer.execute("INSERT INTO suppressions (tag, state) VALUES (?, 'LATER')", (A,))
    writer.close()
    assert vault.states([A]) == {A: "RESTRICTED"}


def test_a_row_tells_the_month_and_nothing_of_the_person(opened: Opened, tmp_path: Path) -> None:
    at = datetime(2026, 11, 30, 23, 59, 59, tzinfo=UTC)
    secret = opened(now=lambda: at).secrets([A])[A]
    assert isinstance(secret, Secret)
    with sqlite3.connect(tmp_path / "vault.sqlite3") as reader:
        reader.row_factory = sqlite3.Row
        row = dict(reader.execute("SELECT * FROM subjects").fetchone())
    reader.close()
    assert row.pop("created_month") == "2026-11"
    assert row.pop("locator") == A
    assert row.pop("erased_on") is None
    assert row.pop("wrap_version") == 1
    assert row.pop("pins") == 0
    assert secret.expose() not in row.pop("wrapped")
    assert row == {}


def test_rows_that_changed_or_lost_their_wrap_key_are_told_apart_from_new_subjects(
    opened: Opened, tmp_path: Path
) -> None:
    opened().secrets([A, B])
    with sqlite3.connect(tmp_path / "vault.sqlite3") as writer:
        writer.execute(
            "UPDATE subjects SET wrapped=(SELECT wrapped FROM subjects WHERE locator=?)"
            " WHERE locator=?",
            (B, A),
        )
    writer.close()
    got = opened().secrets([A, B])
    assert isinstance(got[A], Unreadable)
    assert isinstance(got[B], Secret)


def test_a_missing_wrap_key_holds_and_a_destroyed_one_parks(
    opened: Opened, ring: Keyring, tmp_path: Path
) -> None:
    opened().secrets([A])
    with sqlite3.connect(tmp_path / "vault.sqlite3") as writer:
        writer.execute("UPDATE subjects SET wrap_version=2")
    writer.close()
    with pytest.raises(KeyringError, match="wrap key"):
        opened().secrets([A])
    path = tmp_path / "keys" / "keyset.json"
    document = json.loads(path.read_bytes())
    gone = {k: v for k, v in document["keys"][3].items() if k != "k"}
    document["keys"].append(gone | {"version": 2, "state": "DESTROYED", "kid": "00000000"})
    path.write_text(json.dumps(document), "utf-8")
    ring.refresh()
    assert isinstance(opened().secrets([A])[A], Unreadable)


def test_a_vault_refuses_another_keyset(opened: Opened, tmp_path: Path) -> None:
    opened()
    initialise_development(tmp_path / "other")
    other = Keyring.load(tmp_path / "other" / "keys" / "keyset.json", environment="development")
    with pytest.raises(KeyringError, match="another keyset"):
        Vault(f"sqlite:///{tmp_path}/vault.sqlite3", keyring=other)


def test_sqlite_is_durable_private_and_overwrites_what_it_deletes(
    opened: Opened, tmp_path: Path
) -> None:
    vault = opened()
    vault.secrets([A])
    with vault.engine.connect() as connection:
        for pragma, expected in (
            ("journal_mode", "wal"),
            ("synchronous", 2),
            ("secure_delete", 1),
            ("temp_store", 2),
        ):
            assert connection.exec_driver_sql(f"PRAGMA {pragma}").scalar() == expected
    for file in tmp_path.glob("vault.sqlite3*"):
        assert file.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "url", ["", "sqlite://", "sqlite:////nowhere/at/all/vault", "mysql://x/y", "not a url"]
)
def test_a_vault_that_cannot_be_opened_is_an_error_of_the_outside(ring: Keyring, url: str) -> None:
    with pytest.raises(VaultError) as caught:
        Vault(url, keyring=ring)
    assert caught.value.retriable


def test_a_file_that_is_no_database_is_refused_and_left_alone(
    ring: Keyring, tmp_path: Path
) -> None:
    file = tmp_path / "other.txt"
    file.write_bytes(b"something else entirely" * 100)
    with pytest.raises(VaultError):
        Vault(f"sqlite:///{file}", keyring=ring)
    assert file.read_bytes() == b"something else entirely" * 100


def test_a_vault_that_is_locked_says_so_without_values_and_works_again_after(
    opened: Opened, tmp_path: Path
) -> None:
    vault = opened()
    with vault.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA busy_timeout=10")
    blocker = sqlite3.connect(tmp_path / "vault.sqlite3", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    with pytest.raises(VaultError) as caught:
        vault.secrets([A])
    assert caught.value.__suppress_context__
    assert repr(A) not in str(caught.value)
    blocker.execute("ROLLBACK")
    blocker.close()
    assert isinstance(vault.secrets([A])[A], Secret)


def test_a_failing_look_up_of_states_is_no_active(opened: Opened) -> None:
    vault = opened()
    with vault.engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE suppressions")
    with pytest.raises(VaultError):
        vault.states([B])


def test_what_is_remembered_has_a_bound(opened: Opened) -> None:
    vault = opened(cache_rows=10)
    for n in range(30):
        vault.secrets([n.to_bytes(32, "big")])
    assert len(vault._subjects._rows) <= 10


def test_a_forked_child_uses_a_connection_of_its_own(opened: Opened) -> None:
    vault = opened()
    made = vault.secrets([A])
    with vault.engine.connect() as connection:
        parents = connection.connection.driver_connection
    child = os.fork()
    if child == 0:
        status = 1
        try:
            vault._subjects.clear()
            status = 0 if vault.secrets([A, B])[A] == made[A] else 2
            with vault.engine.connect() as connection:
                if connection.connection.driver_connection is parents:
                    status = 3
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    vault._subjects.clear()
    assert vault.secrets([A, B]) == opened().secrets([A, B])


def test_nothing_of_a_vault_shows_a_secret_or_a_password(opened: Opened, ring: Keyring) -> None:
    vault = opened()
    secret = vault.secrets([A])[A]
    assert isinstance(secret, Secret)
    shown = f"{vault!r}{vault._subjects._rows!r}{secret!r}{vault.engine!r}"
    assert secret.expose().hex() not in shown
    assert repr(secret.expose()) not in shown
    with pytest.raises(VaultError) as caught:
        Vault("postgresql+nodriver://u:hunter2@192.0.2.1/v", keyring=ring)
    assert "hunter2" not in f"{caught.value!r}"


@pytest.mark.parametrize("number", [1, 2, 8, 9, 64, 65, 255, 256, 257, 499, 500, 501, 757])
def test_a_look_up_of_any_length_finds_who_is_there_and_nobody_else(
    opened: Opened, number: int
) -> None:
    vault = opened()
    locators = [n.to_bytes(2, "big") * 16 for n in range(2 * number)]
    made = vault.secrets(locators[:number])
    asked = locators[number // 2 : number // 2 + number]
    expected = {one: made[one] for one in asked if one in made}
    assert opened().find(asked) == expected
    assert opened().find([]) == {}


def test_a_new_subject_costs_few_calls_of_python(opened: Opened) -> None:
    """Counted, not timed: with SQLAlchemy's own parameters it was 24, and half of all the time."""
    vault = opened()
    batches = [
        [n.to_bytes(2, "big") * 16 for n in range(at, at + 256)] for at in range(0, 1024, 256)
    ]
    vault.secrets(batches[0])  # what is made once, is made
    calls = 0
    least = float("inf")

    def count(_frame: object, what: str, _of: object) -> None:
        nonlocal calls
        calls += what in {"call", "c_call"}

    for batch in batches[1:]:
        calls = 0
        sys.setprofile(count)
        try:
            vault.secrets(batch)
        finally:
            sys.setprofile(None)
        # Of the three, one is not disturbed by the garbage of other tests.
        least = min(least, calls / len(batch))
    assert least < 15
