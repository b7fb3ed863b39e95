"""The vault on PostgreSQL, and two pseudonymizers on one vault as two real processes.

Needs PostgreSQL's server programs; skipped, aloud, where there are none.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from telemetry.errors import ConfigError, IdentifierError, VaultError
from telemetry.identity import initialise_development, open_vault
from telemetry.identity.keyring import Keyring, Secret
from telemetry.identity.vault import Tombstoned, Vault
from telemetry.identity.vault.journal import Journal
from telemetry.identity.vault.tables import open_engine
from telemetry.identity.vault.upkeep import backup, forget, restore, rewrap, rotate, stats
from tests.postgres import postgres


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgres() as url:
        yield url


TABLES = "subjects, suppressions, about, pin_sets"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    initialise_development(tmp_path)
    return tmp_path


@pytest.fixture
def opened(server: str, state: Path) -> Iterator[Callable[..., Vault]]:
    made: list[Vault] = []

    def open_one(**given: Any) -> Vault:
        path = state / "keys" / "keyset.json"
        ring = Keyring.load(path, environment="development")
        made.append(open_vault(state, ring, vault_url=server, **given))
        return made[-1]

    yield open_one
    for vault in made:
        vault.close()
    drop(server)


def drop(server: str) -> None:
    engine = open_engine(server)
    with engine.begin() as connection:
        connection.exec_driver_sql(f"DROP TABLE IF EXISTS {TABLES}")
    engine.dispose()


@pytest.fixture
def vaults(opened: Callable[..., Vault]) -> tuple[Vault, Vault]:
    return opened(), opened()


def test_secrets_erasure_and_states_hold_between_two_hosts(vaults: tuple[Vault, Vault]) -> None:
    one, two = vaults
    locators = [n.to_bytes(32, "big") for n in range(700)]
    made = one.secrets(locators)
    assert len(set(made.values())) == 700
    assert two.secrets(locators) == made
    one.erase(locators[0])
    one.erase(b"never seen".ljust(32))
    two._subjects.clear()
    got = two.secrets([*locators[:2], b"never seen".ljust(32)])
    assert [type(value) for value in got.values()].count(Tombstoned) == 2
    assert got[locators[1]] == made[locators[1]]
    one.set_state(locators[0], "OBJECTED")
    one.set_state(locators[0], "ERASED")
    assert two.states(locators[:2]) == {locators[0]: "ERASED", locators[1]: "ACTIVE"}
    with pytest.raises(IdentifierError):
        two.set_state(locators[0], "ACTIVE")


def test_hosts_that_meet_subjects_at_once_agree_on_every_secret(
    vaults: tuple[Vault, Vault],
) -> None:
    locators = [n.to_bytes(32, "big") for n in range(400)]
    got: list[dict[bytes, Any]] = []
    start = threading.Barrier(2)

    def work(vault: Vault, order: list[bytes]) -> None:
        start.wait(10)
        mine: dict[bytes, Any] = {}
        for at in range(0, 400, 40):
            mine |= vault.secrets(order[at : at + 40])
        got.append(mine)

    threads = [
        threading.Thread(target=work, args=(vaults[0], locators)),
        threading.Thread(target=work, args=(vaults[1], locators[::-1])),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(got) == 2
    assert got[0] == got[1]
    assert all(isinstance(secret, Secret) for secret in got[0].values())


def test_a_server_that_is_gone_holds(vaults: tuple[Vault, Vault]) -> None:
    one, two = vaults
    one.secrets([b"a" * 32])
    with two.engine.begin() as connection:
        connection.exec_driver_sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
        )
    assert isinstance(one.secrets([b"b" * 32])[b"b" * 32], Secret)  # the pool connects again
    with two.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE subjects RENAME TO elsewhere")
    with pytest.raises(VaultError):
        one.secrets([b"c" * 32])
    with two.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE elsewhere RENAME TO subjects")
    assert isinstance(one.secrets([b"c" * 32])[b"c" * 32], Secret)


def test_rotation_backup_and_restore_are_the_same_as_on_one_host(
    opened: Callable[..., Vault], server: str, state: Path
) -> None:
    vault = opened()
    locators = sorted(bytes([n % 256, n // 256]) * 16 for n in range(1, 1200))
    before = vault.secrets(locators)
    assert rotate(vault, now=datetime.now(UTC), after=timedelta(0)) is not None
    list(rewrap(vault, keep=0))
    assert stats(vault).wrapped == {2: len(locators)}
    list(backup(vault, state / "copy.sqlite3"))
    vault.erase(locators[0])
    vault.set_state(locators[1], "OBJECTED")
    vault.close()
    drop(server)  # the server is lost; its backup has neither
    list(restore(opened(repair="restore"), state / "copy.sqlite3"))
    got = opened().secrets(locators)
    assert isinstance(got.pop(locators[0]), Tombstoned)
    assert got == {one: before[one] for one in locators[1:]}
    assert opened().states([locators[1]]) == {locators[1]: "OBJECTED"}
    counted = stats(opened())
    assert (counted.database, counted.subjects, counted.erased) == ("postgresql", 1198, 1)
    assert counted.bytes > 0
    assert forget(opened()) == 0


def test_a_writer_in_the_middle_of_a_row_holds_up_the_floor_of_a_rotation(
    vaults: tuple[Vault, Vault],
) -> None:
    """Else it would write under a key that somebody has just counted as wrapping nothing."""
    writer, rotating = vaults
    inside, go_on = threading.Event(), threading.Event()
    pick = writer.wrapping

    def slow(version: int) -> Any:
        inside.set()
        assert go_on.wait(20)
        return pick(version)

    writer.wrapping = slow  # type: ignore[method-assign]
    late = threading.Thread(target=writer.secrets, args=([b"l" * 32],))
    late.start()
    assert inside.wait(20)
    rotate(rotating, now=datetime.now(UTC), after=timedelta(0))
    done = threading.Thread(target=lambda: list(rewrap(rotating, keep=0)))
    done.start()
    done.join(0.5)
    assert done.is_alive()
    go_on.set()
    late.join(20)
    done.join(20)
    assert stats(rotating).wrapped == {2: 1}
    states = {k.version: k.state for k in rotating.keyring.entries() if k.use == "wrap"}
    assert states == {1: "DESTROYED", 2: "PRIMARY"}


def test_pseudonymizers_with_journals_of_their_own_are_not_let_in(
    opened: Callable[..., Vault], state: Path
) -> None:
    opened()
    with pytest.raises(ConfigError, match="another tombstone journal"):
        opened(journal_url=f"sqlite:///{state}/another.sqlite3")


def test_the_journal_may_be_a_database_too(opened: Callable[..., Vault], server: str) -> None:
    engine = open_engine(server)
    with engine.connect() as connection:
        # CREATE DATABASE stands in no transaction.
        connection.execution_options(isolation_level="AUTOCOMMIT")
        connection.exec_driver_sql("CREATE DATABASE journal")
    engine.dispose()
    journal = server.replace("/postgres?", "/journal?")
    one, two = opened(journal_url=journal), opened(journal_url=journal)
    threads = [
        threading.Thread(target=lambda v=v, n=n: [v.erase(bytes([n, i]) * 16) for i in range(20)])
        for n, v in enumerate((one, two))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert one.journal.bounds() == (0, 40)
    assert stats(two).erased == 40
    one.close()
    two.close()
    drop(server)  # an empty database comes back: it is missed; and begun anew, the journal fills it
    with pytest.raises(ConfigError, match="The vault is gone"):
        opened(journal_url=journal)
    assert stats(opened(journal_url=journal, repair="anew")).erased == 40


WORKER = """
import sys, time
from pathlib import Path
from telemetry.identity import open_vault
from telemetry.identity.keyring import Keyring
state, url, seed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
ring = Keyring.load(state / "keys" / "keyset.json", environment="development")
vault = open_vault(state, ring, vault_url=url)
locators = [n.to_bytes(2, "big") * 16 for n in range(600)]
if seed:
    locators.reverse()
(state / f"ready{seed}").touch()
while not (state / "go").exists():
    time.sleep(0.001)
for at in range(0, 600, 20):
    for locator, held in vault.secrets(locators[at : at + 20]).items():
        print(locator.hex(), held.expose().hex())
"""


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_two_processes_that_meet_the_same_new_accounts_agree_on_one_secret_each(
    database: str, state: Path, request: pytest.FixtureRequest
) -> None:
    if database == "sqlite":
        url = f"sqlite:///{state}/vault.sqlite3"
    else:
        url = request.getfixturevalue("server")
        request.addfinalizer(lambda: drop(url))
    processes = [
        subprocess.Popen(  # noqa: S603 - our own interpreter, our own words
            [sys.executable, "-c", WORKER, str(state), url, str(seed)],
            stdout=subprocess.PIPE,
            text=True,
            env={"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": os.environ["PATH"]},
        )
        for seed in (0, 1)
    ]
    until = time.monotonic() + 60
    while not all((state / f"ready{seed}").exists() for seed in (0, 1)):
        assert time.monotonic() < until
        time.sleep(0.01)
    (state / "go").touch()
    answers = [sorted(one.communicate(timeout=60)[0].splitlines()) for one in processes]
    assert [one.returncode for one in processes] == [0, 0]
    assert len(answers[0]) == 600
    assert answers[0] == answers[1]
    assert len({line.split()[1] for line in answers[0]}) == 600


def test_many_that_start_at_once_on_an_empty_database_have_one_journal(server: str) -> None:
    names: list[str] = []
    begin = threading.Barrier(8)

    def start() -> None:
        begin.wait(10)
        journal = Journal(server)
        names.append(journal.name)
        journal.close()

    for _ in range(3):
        names.clear()
        engine = open_engine(server)
        with engine.begin() as connection:
            connection.exec_driver_sql("DROP TABLE IF EXISTS tombstones, journal, vault")
        engine.dispose()
        threads = [threading.Thread(target=start) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(names) == 8
        assert len(set(names)) == 1
