"""Opening a database a second time drops no lock that this process holds on it."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from telemetry.errors import AuditError
from telemetry.identity import audit, initialise_development, open_vault
from telemetry.identity.audit import AuditLog
from telemetry.identity.keyring import Keyring
from telemetry.identity.vault.tables import open_engine, transaction
from telemetry.identity.ways_back import _Requests

_WRITER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None)
try:
    connection.execute("BEGIN EXCLUSIVE")
except sqlite3.OperationalError:
    sys.exit(7)
"""
_REFUSED = 7

# What each command of an operator does beside the serving process: open, look, close.
_VISITOR = """
import sys
from pathlib import Path
from telemetry.identity import open_vault
from telemetry.identity.keyring import Keyring
state = Path(sys.argv[1])
ring = Keyring.load(state / "keys" / "keyset.json", environment="development")
vault = open_vault(state, ring)
held = vault.find([bytes([n]) * 32 for n in range(20)])
print(sorted(one.expose().hex() for one in held.values()))
vault.close()
"""

_SERVER = """
import os, signal, sys
from pathlib import Path
from telemetry.identity import open_vault
from telemetry.identity.keyring import Keyring
from telemetry.identity.vault import upkeep
import subprocess
state = Path(sys.argv[1])
ring = Keyring.load(state / "keys" / "keyset.json", environment="development")
vault = open_vault(state, ring)
vault.claim()
vault.secrets([bytes(32)])
if sys.argv[2] == "backup":
    list(upkeep.backup(vault, state / "copy.sqlite3"))
else:
    upkeep.stats(vault)
subprocess.run([sys.executable, "-c", sys.argv[3], str(state)], check=True, stdout=2)
held = vault.secrets([bytes([n]) * 32 for n in range(11)])
print(sorted(one.expose().hex() for one in held.values()), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def _open_audit(path: Path) -> None:
    AuditLog(path).close()


def _open_requests(path: Path) -> None:
    _Requests(path)._connection.close()


def _open_vault(path: Path) -> None:
    engine = open_engine(f"sqlite:///{path}", write_ahead=False)
    with transaction(engine):
        pass
    engine.dispose()


@pytest.mark.parametrize(
    ("open_again", "begin"),
    [(_open_audit, "EXCLUSIVE"), (_open_requests, "DEFERRED"), (_open_vault, "DEFERRED")],
)
def test_a_lock_keeps_writers_out_although_its_process_opened_the_file_again(
    tmp_path: Path,
    open_again: Callable[[Path], None],
    begin: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(audit, "_BUSY_S", 0.05)
    path = tmp_path / "one.sqlite3"
    open_again(path)
    assert path.stat().st_mode & 0o777 == 0o600
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute(f"BEGIN {begin}")
    holder.execute("SELECT count(*) FROM sqlite_master").fetchall()
    with suppress(AuditError):  # it waits for the holder, as it should, and gives up
        open_again(path)
    writer = [sys.executable, "-c", _WRITER, str(path)]
    other = subprocess.run(writer, check=False, timeout=30)  # noqa: S603 - our own text
    holder.close()
    assert other.returncode == _REFUSED


@pytest.mark.parametrize("done", ["stats", "backup"])
def test_subjects_outlive_a_kill_after_upkeep_and_a_visit_of_another_process(
    tmp_path: Path, done: str
) -> None:
    initialise_development(tmp_path)
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    served = subprocess.run(  # noqa: S603 - our own text
        [sys.executable, "-c", _SERVER, str(tmp_path), done, _VISITOR],
        check=False,
        capture_output=True,
        text=True,
        env=environ,
        timeout=60,
    )
    assert served.returncode == -signal.SIGKILL, served.stderr
    ring = Keyring.load(tmp_path / "keys" / "keyset.json", environment="development")
    vault = open_vault(tmp_path, ring)
    kept = vault.find([bytes([n]) * 32 for n in range(20)])
    vault.close()
    assert str(sorted(one.expose().hex() for one in kept.values())) == served.stdout.strip()
    assert len(kept) == len(range(11))
