"""The same vault on PostgreSQL. Needs its server programs; skipped, aloud, where there are none."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from telemetry.errors import IdentifierError, VaultError
from telemetry.identity import initialise_development
from telemetry.identity.keyring import Keyring, Secret
from telemetry.identity.vault import Tombstoned, Vault

pytest.importorskip("psycopg")


def programs() -> Path | None:
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((one for one in folders if (one / "postgres").exists()), None)


def owner() -> str | None:
    """PostgreSQL refuses to run as root; None if we are root and have nobody else."""
    if os.geteuid() != 0:
        return pwd.getpwuid(os.geteuid()).pw_name
    try:
        return pwd.getpwnam("postgres").pw_name
    except KeyError:
        return None


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    folder, user = programs(), owner()
    if folder is None or user is None:
        pytest.skip("no PostgreSQL server programs, or nobody to run them as")
    home = Path(tempfile.mkdtemp(prefix="vault-"))
    as_user: dict[str, Any] = {"user": user} if os.geteuid() == 0 else {}
    if as_user:
        os.chown(home, pwd.getpwnam(user).pw_uid, -1)
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(  # noqa: S603 - programs of the distribution
        [folder / "initdb", "-D", home / "data", "-U", "vault", "-A", "trust", "--no-sync"],
        check=True,
        cwd=home,
        timeout=60,
        **as_user,
        **quiet,
    )
    process = subprocess.Popen(  # noqa: S603
        [folder / "postgres", "-D", home / "data", "-k", home, "-c", "listen_addresses="],
        cwd=home,
        **as_user,
        **quiet,
    )
    try:
        until = time.monotonic() + 30
        while not (home / ".s.PGSQL.5432").exists() and time.monotonic() < until:
            time.sleep(0.05)
        yield f"postgresql+psycopg://vault@/postgres?host={home}"
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def vaults(server: str, tmp_path: Path) -> Iterator[tuple[Vault, Vault]]:
    initialise_development(tmp_path)
    ring = Keyring.load(tmp_path / "keys" / "keyset.json", environment="development")
    one = Vault(server, keyring=ring)
    two = Vault(server, keyring=ring)
    yield one, two
    with one._engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE subjects, suppressions, about")
    one.close()
    two.close()


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
    with two._engine.begin() as connection:
        connection.exec_driver_sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
        )
    assert isinstance(one.secrets([b"b" * 32])[b"b" * 32], Secret)  # the pool connects again
    with two._engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE subjects RENAME TO elsewhere")
    with pytest.raises(VaultError):
        one.secrets([b"c" * 32])
    with two._engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE elsewhere RENAME TO subjects")
    assert isinstance(one.secrets([b"c" * 32])[b"c" * 32], Secret)
