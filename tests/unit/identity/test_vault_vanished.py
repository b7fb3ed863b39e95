"""A vault that was there and is gone is missed: a new one would make every account another."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from telemetry.errors import ConfigError, VaultError
from telemetry.identity import initialise_development, open_vault
from telemetry.identity.keyring import Keyring
from telemetry.identity.vault import Tombstoned, Vault
from telemetry.identity.vault.journal import Journal
from telemetry.identity.vault.upkeep import backup, restore

A, B = (bytes([n]) * 32 for n in (1, 2))
Opened = Callable[..., Vault]


@pytest.fixture
def ring(tmp_path: Path) -> Keyring:
    initialise_development(tmp_path)
    return Keyring.load(tmp_path / "keys" / "keyset.json", environment="development")


@pytest.fixture
def opened(ring: Keyring, tmp_path: Path) -> Iterator[Opened]:
    vaults: list[Vault] = []

    def open_one(**given: Any) -> Vault:
        vaults.append(open_vault(tmp_path, ring, **given))
        return vaults[-1]

    yield open_one
    for vault in vaults:
        vault.close()


def remove(state: Path, *names: str) -> None:
    for name in names:
        for file in state.glob(f"{name}.sqlite3*"):
            file.unlink()


def refused(opened: Opened, **given: Any) -> None:
    with pytest.raises(ConfigError, match="The vault is gone") as caught:
        opened(**given)
    assert "telemetry vault restore FILE" in str(caught.value)
    assert "--new-vault" in str(caught.value)


def test_a_vault_that_vanished_is_refused_and_stays_refused(opened: Opened, tmp_path: Path) -> None:
    vault = opened()
    before = vault.secrets([A])
    vault.close()
    remove(tmp_path, "vault")
    refused(opened)
    refused(opened)  # what the first refusal left is no vault
    refused(opened, vault_url=f"sqlite:///{tmp_path}/elsewhere.sqlite3")
    assert before != {}


def test_an_empty_or_cut_off_file_is_no_vault_either(opened: Opened, tmp_path: Path) -> None:
    vault = opened()
    vault.secrets([A])
    vault.close()
    remove(tmp_path, "vault")
    (tmp_path / "vault.sqlite3").write_bytes(b"")
    refused(opened)


def test_a_first_start_that_was_cut_before_its_vault_starts(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Vault, "_enter", cut)
        with pytest.raises(KeyboardInterrupt):
            opened()
    assert (tmp_path / "tombstones.sqlite3").exists()
    assert set(opened().secrets([A])) == {A}


def test_a_first_start_that_was_cut_between_vault_and_mark_starts_and_marks(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "note_vault", cut)
        with pytest.raises(KeyboardInterrupt):
            opened()
    opened().close()
    remove(tmp_path, "vault")
    refused(opened)


def test_a_journal_from_before_there_was_a_mark_is_marked_at_the_next_opening(
    opened: Opened, tmp_path: Path
) -> None:
    opened().close()
    with sqlite3.connect(tmp_path / "tombstones.sqlite3") as old:
        old.execute("DROP TABLE vault")
    old.close()
    opened().close()
    remove(tmp_path, "vault")
    refused(opened)


def test_an_old_journal_with_an_erasure_tells_of_the_vault_too(
    opened: Opened, tmp_path: Path
) -> None:
    vault = opened()
    vault.erase(A)
    vault.close()
    with sqlite3.connect(tmp_path / "tombstones.sqlite3") as old:
        old.execute("DROP TABLE vault")
    old.close()
    remove(tmp_path, "vault")
    refused(opened)


def test_where_the_journal_vanished_too_a_token_key_in_use_tells_of_the_vault(
    opened: Opened, ring: Keyring, tmp_path: Path
) -> None:
    vault = opened()
    vault.secrets([A])
    ring.token_key("analytics@heap", "rel")
    vault.close()
    remove(tmp_path, "vault", "tombstones")
    refused(opened)


def test_a_restore_passes_and_nothing_is_served_before_it_is_through(
    opened: Opened, tmp_path: Path
) -> None:
    vault = opened()
    before = vault.secrets([A, B])
    copy = tmp_path / "copy.sqlite3"
    list(backup(vault, copy))
    vault.erase(B)
    vault.close()
    remove(tmp_path, "vault")
    empty = opened(repair="restore")
    with pytest.raises(ConfigError, match="not there"):
        list(restore(empty, tmp_path / "no-such-file"))
    with pytest.raises(VaultError, match="being restored"):
        empty.secrets([A])
    refused(opened)  # the attempt has left an empty vault, which is still none
    list(restore(opened(repair="restore"), copy))
    after = opened()
    assert after.secrets([A]) == {A: before[A]}
    assert isinstance(after.secrets([B])[B], Tombstoned)


def test_a_new_journal_does_not_make_the_vault_come_back(opened: Opened, tmp_path: Path) -> None:
    vault = opened()
    vault.secrets([A])
    vault.close()
    remove(tmp_path, "vault")
    opened(repair="journal").close()
    refused(opened)


@pytest.mark.parametrize("failed_first", [False, True])
def test_to_begin_anew_is_a_decision_and_still_obeys_the_journal(
    opened: Opened, tmp_path: Path, *, failed_first: bool
) -> None:
    vault = opened()
    before = vault.secrets([A, B])
    vault.erase(B)
    vault.close()
    remove(tmp_path, "vault")
    if failed_first:
        opened(repair="restore").close()
    opened(repair="anew").close()
    after = opened()
    assert after.secrets([A]) != {A: before[A]}
    assert isinstance(after.secrets([B])[B], Tombstoned)


def test_nobody_begins_anew_over_a_vault_that_is_there(opened: Opened) -> None:
    vault = opened()
    before = vault.secrets([A])
    with pytest.raises(ConfigError, match="there is one"):
        opened(repair="anew")
    assert opened().secrets([A]) == before
