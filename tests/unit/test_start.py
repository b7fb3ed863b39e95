"""One list of conditions: what `check` finds a start refuses, and neither leaves a trace."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import socket
import sqlite3
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from telemetry.admin import NotRunningError
from telemetry.cli import app, operate
from telemetry.config import (
    AuditSection,
    BrokerSection,
    CustodySection,
    GatewaySection,
    PolicySection,
    Project,
    RecipientSettings,
    Settings,
    VaultSection,
)
from telemetry.errors import TelemetryError
from telemetry.policy import Policy, load_policy, schemas_dir
from telemetry.rules import Schemas
from telemetry.run import Runner
from telemetry.start import Part, Start

KEY = "5e17" * 8
SECRET = "planted-q7wz"
DSN = f"https://{KEY}@o1.ingest.de.sentry.io/1"
RECIPIENTS = {
    "heap": RecipientSettings(url="https://heapanalytics.com", app_id="11"),
    "sentry": RecipientSettings(dsn=DSN),
}
SOUND: dict[str, Any] = {
    "environment": "staging",
    "bind": "127.0.0.1:0",
    "admin_bind": "127.0.0.1:0",
    "project": {"1": Project(key=KEY, tenant="web")},
    "recipient": RECIPIENTS,
}


@dataclass
class Place:
    """Where one installation is made and broken."""

    folder: Path
    more: dict[str, Any]
    stack: ExitStack

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def settings(self) -> Settings:
        return Settings(**(SOUND | {"state": str(self.state)} | self.more))


def tree(folder: Path) -> dict[str, object]:
    """What is in a folder: each file with its content and when it was written."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        status = path.stat()
        raw = path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(folder))] = (
            hashlib.sha256(raw).hexdigest(),
            status.st_mtime_ns,
            status.st_mode,
        )
    return found


async def opened(settings: Settings) -> None:
    runner = Runner(settings, lambda _: None)
    try:
        await runner.open()
    finally:
        await runner.close()


# --- Before anything was ever made -----------------------------------------------------------


def no_project(place: Place) -> None:
    place.more["project"] = {}


def from_outside(place: Place) -> None:
    place.more["bind"] = "0.0.0.0:0"


def no_stand_in(place: Place) -> None:
    place.more["recipient"] = {}


def another_host(place: Place) -> None:
    elsewhere = RecipientSettings(dsn=f"https://{KEY}@{SECRET}.example/1")
    place.more["recipient"] = RECIPIENTS | {"sentry": elsewhere}


def no_dsn(place: Place) -> None:
    place.more["recipient"] = RECIPIENTS | {"sentry": RecipientSettings(dsn=SECRET)}


def plain_http(place: Place) -> None:
    plain = RecipientSettings(url="http://heapanalytics.com", app_id=SECRET)
    place.more["recipient"] = RECIPIENTS | {"heap": plain}


def not_taken(place: Place) -> None:
    place.more["recipient"] = RECIPIENTS | {"sentry": RecipientSettings(dsn=DSN, app_id=SECRET)}


def no_credential_file(place: Place) -> None:
    heap = RecipientSettings(
        url="https://heapanalytics.com", app_id="11", api_key_file=str(place.folder / "absent")
    )
    place.more["recipient"] = RECIPIENTS | {"heap": heap}


def no_such_kind(place: Place) -> None:
    place.more["gateway"] = GatewaySection(yields=["everything"])


def no_bootstrap(place: Place) -> None:
    place.more["broker"] = BrokerSection(kind="kafka")
    place.more["vault"] = VaultSection(url="postgresql+psycopg://127.0.0.1:1/x", journal="x")


def plain_kafka(place: Place) -> None:
    place.more["broker"] = BrokerSection(kind="kafka", bootstrap="kafka.example:9092")
    place.more["vault"] = VaultSection(url="postgresql+psycopg://127.0.0.1:1/x", journal="x")


def alone_on_kafka(place: Place) -> None:
    place.more["broker"] = BrokerSection(kind="kafka", bootstrap="127.0.0.1:1")


def one_database(place: Place) -> None:
    url = f"sqlite:///{place.folder / 'one.sqlite3'}"
    place.more["vault"] = VaultSection(url=url, journal=url)


def no_vault_server(place: Place) -> None:
    place.more["vault"] = VaultSection(
        url="postgresql+psycopg://127.0.0.1:1/vault?connect_timeout=2",
        journal=f"sqlite:///{place.folder / 'tombstones.sqlite3'}",
    )


def broken_policy(place: Place) -> None:
    folder = place.folder / "policy"
    shutil.copytree(schemas_dir() / "policy", folder)
    file = folder / "retention.toml"
    file.write_text(file.read_text("utf-8").replace('"P12M"', '"P13M"', 1), "utf-8")
    place.more["policy"] = PolicySection(path=str(folder))


def no_policy(place: Place) -> None:
    place.more["policy"] = PolicySection(path=str(place.folder / "absent"))


def revoked_policy(place: Place) -> None:
    place.state.mkdir(mode=0o700)
    line = {"digest": load_policy().digest, "state": "revoked", "at": "2026-11-22T00:00:00+00:00"}
    (place.state / "policies.ndjson").write_text(json.dumps(line) + "\n", "utf-8")


def unreadable_register(place: Place) -> None:
    (place.state / "policies.ndjson").mkdir(parents=True, mode=0o700)


def state_is_a_file(place: Place) -> None:
    place.state.write_text("")


def state_below_a_file(place: Place) -> None:
    (place.folder / "file").write_text("")
    place.more["state"] = str(place.folder / "file" / "state")


def no_folder_for_checkpoints(place: Place) -> None:
    place.more["audit"] = AuditSection(checkpoints=str(place.folder / "absent"))


def no_custody(place: Place) -> None:
    place.more["custody"] = CustodySection(kek=f"file:{place.folder / 'absent'}")


def open_custody_file(place: Place) -> None:
    file = place.folder / "kek"
    file.write_bytes(os.urandom(32))
    file.chmod(0o644)
    place.more["custody"] = CustodySection(kek=f"file:{file}")


def failing_program(place: Place) -> None:
    place.more["custody"] = CustodySection(kek="command:/bin/false")


def no_form_of_custody(place: Place) -> None:
    place.more["custody"] = CustodySection(kek=SECRET)


def backup_in_a_file(place: Place) -> None:
    (place.folder / "file").write_text("")
    place.more["custody"] = CustodySection(backup=str(place.folder / "file" / "backup"))


def copy_of_lost_keys(place: Place) -> None:
    backup = place.state / "backup"
    backup.mkdir(parents=True, mode=0o700)
    (backup / "keyset.json").write_text("{}")


def vault_of_lost_keys(place: Place) -> None:
    place.state.mkdir(mode=0o700)
    (place.state / "vault.sqlite3").write_bytes(b"")


def taken(place: Place, name: str) -> None:
    held = place.stack.enter_context(socket.socket())
    held.bind(("127.0.0.1", 0))
    held.listen()
    place.more[name] = f"127.0.0.1:{held.getsockname()[1]}"


def taken_port(place: Place) -> None:
    taken(place, "bind")


def taken_admin_port(place: Place) -> None:
    taken(place, "admin_bind")


def no_such_port(place: Place) -> None:
    place.more["bind"] = "127.0.0.1:99999"


def no_such_host(place: Place) -> None:
    place.more["admin_bind"] = "nowhere.invalid:4181"


def one_port_for_both(place: Place) -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        place.more["bind"] = place.more["admin_bind"] = f"127.0.0.1:{found.getsockname()[1]}"


def unreadable_pause(place: Place) -> None:
    place.state.mkdir(mode=0o700)
    (place.state / "paused.json").write_text("{")


FRESH: list[Callable[[Place], None]] = [
    no_project,
    from_outside,
    no_stand_in,
    another_host,
    no_dsn,
    plain_http,
    not_taken,
    no_credential_file,
    no_such_kind,
    no_bootstrap,
    plain_kafka,
    alone_on_kafka,
    one_database,
    no_vault_server,
    broken_policy,
    no_policy,
    revoked_policy,
    unreadable_register,
    state_is_a_file,
    state_below_a_file,
    no_folder_for_checkpoints,
    no_custody,
    open_custody_file,
    failing_program,
    no_form_of_custody,
    backup_in_a_file,
    copy_of_lost_keys,
    vault_of_lost_keys,
    taken_port,
    taken_admin_port,
    no_such_port,
    no_such_host,
    one_port_for_both,
    unreadable_pause,
]


# --- After it ran ----------------------------------------------------------------------------


def changed_keyset(place: Place) -> None:
    (place.state / "keys" / "keyset.json").write_text("{}")


def keyset_open_to_others(place: Place) -> None:
    (place.state / "keys" / "keyset.json").chmod(0o644)


def lost_keyset(place: Place) -> None:
    (place.state / "keys" / "keyset.json").unlink()


def lost_log_key(place: Place) -> None:
    (place.state / "keys" / "spool.json").unlink()


def lost_kek(place: Place) -> None:
    (place.state / "custody" / "kek").unlink()


def another_log_key(place: Place) -> None:
    connection = sqlite3.connect(place.state / "spool.sqlite3")
    connection.execute("UPDATE meta SET value = zeroblob(60) WHERE name = 'proof'")
    connection.commit()
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


def no_log(place: Place) -> None:
    connection = sqlite3.connect(place.state / "other.sqlite3")
    connection.execute("CREATE TABLE x (y)")
    connection.commit()
    connection.close()
    (place.state / "other.sqlite3").replace(place.state / "spool.sqlite3")


def changed_audit_log(place: Place) -> None:
    connection = sqlite3.connect(place.state / "audit.sqlite3")
    connection.execute("DELETE FROM entries WHERE seq = 1")
    connection.commit()
    connection.close()


def audit_log_set_back(place: Place) -> None:
    """The second principal holds what the log lacks."""
    officer = place.folder / "officer"
    officer.mkdir()
    note = "milchglas/audit\n999\n" + "A" * 43 + "=\n\n"
    (officer / "checkpoint-000000000999.txt").write_text(note, "utf-8")
    place.more["audit"] = AuditSection(checkpoints=str(officer))


def lost_journal(place: Place) -> None:
    (place.state / "tombstones.sqlite3").unlink()


def lost_vault(place: Place) -> None:
    (place.state / "vault.sqlite3").unlink()


def another_vault(place: Place) -> None:
    """The vault of other keys."""
    connection = sqlite3.connect(place.state / "vault.sqlite3")
    connection.execute("UPDATE about SET value = 'other' WHERE name = 'keyset'")
    connection.commit()
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


def later_vault(place: Place) -> None:
    connection = sqlite3.connect(place.state / "vault.sqlite3")
    connection.execute("UPDATE about SET value = '99' WHERE name = 'schema'")
    connection.commit()
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


def half_restored_vault(place: Place) -> None:
    connection = sqlite3.connect(place.state / "vault.sqlite3")
    connection.execute("UPDATE about SET value = '1' WHERE name = 'restoring'")
    connection.commit()
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


def journal_set_back(place: Place) -> None:
    connection = sqlite3.connect(place.state / "vault.sqlite3")
    connection.execute("UPDATE about SET value = '7' WHERE name = 'position'")
    connection.commit()
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


def claimed_vault(place: Place) -> None:
    handle = place.stack.enter_context((place.state / "vault.sqlite3.lock").open("w"))
    fcntl.flock(handle, fcntl.LOCK_EX)


def keys_of_development(place: Place) -> None:
    keys = place.state / "keys"
    shutil.rmtree(keys)
    shutil.rmtree(place.state / "backup")
    (place.state / "vault.sqlite3").unlink()
    from telemetry.identity import initialise_development

    initialise_development(place.state)


AFTER: list[Callable[[Place], None]] = [
    changed_keyset,
    keyset_open_to_others,
    lost_keyset,
    lost_log_key,
    lost_kek,
    another_log_key,
    no_log,
    changed_audit_log,
    audit_log_set_back,
    lost_journal,
    lost_vault,
    another_vault,
    later_vault,
    half_restored_vault,
    journal_set_back,
    claimed_vault,
    keys_of_development,
    revoked_policy,
    no_folder_for_checkpoints,
    backup_in_a_file,
    taken_port,
]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile the shipped policy once: it is the same in nearly all of these starts."""
    monkeypatch.setattr("telemetry.start.load_policy", loaded_once)
    monkeypatch.setattr("telemetry.start.Schemas", compiled_once)
    monkeypatch.setattr("scrubbers.detectors.Detectors.check_speed", lambda *_: None)


@cache
def loaded_once(folder: Path) -> Policy:
    return load_policy(folder)


def compiled_once(policy: Policy, _: object) -> Schemas:
    return _compiled(policy.folder)


@cache
def _compiled(folder: Path) -> Schemas:
    policy = loaded_once(folder)
    return Schemas(policy, policy.detectors)


@pytest.fixture
def stack() -> Any:
    with ExitStack() as found:
        yield found


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installation that ran once and stopped."""
    import asyncio

    folder = tmp_path_factory.mktemp("ran")
    asyncio.run(opened(Place(folder, {}, ExitStack()).settings()))
    return folder


async def compared(place: Place) -> list[str]:
    """Look and start: both say the same, and neither leaves a trace. Give what was found."""
    settings = place.settings()
    before = tree(place.folder)
    findings = list(Start(settings, Part()).findings())
    assert tree(place.folder) == before, "to look changed something"
    assert findings, "nothing was found"
    with pytest.raises(TelemetryError) as refused:
        await opened(settings)
    assert str(refused.value) == str(findings[0].error)
    assert type(refused.value) is type(findings[0].error)
    assert tree(place.folder) == before, "a start that is refused changed something"
    for finding in findings:
        assert finding.remedy, f"no remedy: {finding.error}"
        assert SECRET not in json.dumps(finding.as_json())
        assert KEY not in json.dumps(finding.as_json())
    return [finding.about for finding in findings]


@pytest.mark.parametrize("breaks", FRESH, ids=lambda breaks: breaks.__name__)
async def test_a_first_start_is_refused_for_what_check_finds_and_makes_nothing(
    tmp_path: Path, stack: ExitStack, breaks: Callable[[Place], None]
) -> None:
    place = Place(tmp_path, {}, stack)
    breaks(place)
    await compared(place)


@pytest.mark.parametrize("breaks", AFTER, ids=lambda breaks: breaks.__name__)
async def test_a_later_start_is_refused_for_what_check_finds_and_changes_nothing(
    tmp_path: Path, ran: Path, stack: ExitStack, breaks: Callable[[Place], None]
) -> None:
    shutil.copytree(ran, tmp_path, dirs_exist_ok=True)
    place = Place(tmp_path, {}, stack)
    if breaks is revoked_policy:
        shutil.rmtree(place.state)
    breaks(place)
    await compared(place)


@pytest.mark.parametrize("breaks", AFTER, ids=lambda breaks: breaks.__name__)
async def test_check_is_no_stricter_than_the_start_itself(
    tmp_path: Path,
    ran: Path,
    stack: ExitStack,
    monkeypatch: pytest.MonkeyPatch,
    breaks: Callable[[Place], None],
) -> None:
    """Without the list, what opens keys, vault and logs refuses each of these by itself."""
    shutil.copytree(ran, tmp_path, dirs_exist_ok=True)
    place = Place(tmp_path, {}, stack)
    if breaks is revoked_policy:
        shutil.rmtree(place.state)
    breaks(place)

    def load_only(self: Start) -> None:
        list(self.findings())

    monkeypatch.setattr(Start, "require", load_only)
    with pytest.raises(TelemetryError):
        await opened(place.settings())


async def test_nothing_is_found_where_a_start_goes_through(tmp_path: Path) -> None:
    place = Place(tmp_path, {}, ExitStack())
    for _ in range(2):
        before = tree(tmp_path)
        assert list(Start(place.settings(), Part()).findings()) == []
        assert tree(tmp_path) == before
        await opened(place.settings())
    kept = place.state / "keys" / "public.json"
    kept.unlink()  # a start makes it anew
    assert list(Start(place.settings(), Part()).findings()) == []
    await opened(place.settings())
    assert kept.exists()


async def test_what_a_killed_process_left_is_no_reason_to_refuse(tmp_path: Path, ran: Path) -> None:
    """A database with a write-ahead log beside it is there; the start finishes it."""
    shutil.copytree(ran, tmp_path, dirs_exist_ok=True)
    place = Place(tmp_path, {}, ExitStack())
    killed = tmp_path / "killed"
    killed.mkdir()
    vault = place.state / "vault.sqlite3"
    connection = sqlite3.connect(vault)
    connection.execute("CREATE TABLE IF NOT EXISTS left_over (x)")
    connection.commit()
    for file in place.state.glob("vault.sqlite3*"):
        shutil.copy2(file, killed)
    connection.close()
    for file in killed.iterdir():
        shutil.copy2(file, place.state)
    assert (place.state / "vault.sqlite3-wal").stat().st_size
    assert list(Start(place.settings(), Part()).findings()) == []
    await opened(place.settings())


async def test_everything_is_found_at_once(tmp_path: Path, stack: ExitStack) -> None:
    place = Place(tmp_path, {}, stack)
    for breaks in (no_project, no_stand_in, taken_port, no_folder_for_checkpoints, no_custody):
        breaks(place)
    about = await compared(place)
    assert set(about) == {
        "recipient heap",
        "recipient sentry",
        "projects",
        "keys",
        "audit log",
        "ports",
    }


@pytest.mark.parametrize(
    ("closed", "about"),
    [(".", "state"), ("officer", "audit log"), ("copies", "keys"), ("far", "keys")],
)
async def test_a_folder_that_this_user_may_not_write_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed: str, about: str
) -> None:
    """These tests may run as a user who may do anything, so the answer of the system is played."""
    for name in ("officer", "copies", "far"):
        (tmp_path / name).mkdir()
    place = Place(tmp_path, {}, ExitStack())
    place.more["audit"] = AuditSection(checkpoints=str(tmp_path / "officer"))
    custody = CustodySection(backup=str(tmp_path / "copies"))
    if closed == "far":
        custody = CustodySection(backup=str(tmp_path / "far" / "below" / "copies"))
    place.more["custody"] = custody
    refused = (tmp_path / closed).resolve()
    allowed = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: Path(path) != refused and allowed(path, mode)
    )
    found = await compared(place)
    assert found == [about]
    assert str(refused) in str(next(Start(place.settings(), Part()).findings()).error)


@pytest.mark.parametrize(
    ("part", "about"),
    [
        (Part(pseudonymizer=False, forwards=()), {"public keys", "dead letters", "log key"}),
        (Part(gateway=False, pseudonymizer=False, forwards=("sentry",)), set()),
        (Part(gateway=False, pseudonymizer=False, forwards=("jane",)), {"recipients"}),
        (Part(gateway=False, forwards=()), {"vault settings"}),
    ],
    ids=["gateway", "forward", "forward to nobody", "pseudonymize"],
)
async def test_a_role_is_looked_at_for_what_it_needs(
    tmp_path: Path, part: Part, about: set[str]
) -> None:
    tls = BrokerSection(kind="kafka", bootstrap="kafka.example:9093", protocol="tls")
    settings = Place(tmp_path, {"broker": tls}, ExitStack()).settings()
    found = list(Start(settings, part).findings())
    assert {finding.about for finding in found} == about
    assert "jane" not in str([finding.error for finding in found])


def test_check_lists_findings_with_remedies_on_stderr_and_as_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TELEMETRY_ENVIRONMENT", "production")
    told = CliRunner().invoke(app, ["check"])
    assert told.exit_code == 2
    assert told.stdout == ""
    assert told.stderr.count("Cannot start: ") >= 3
    assert "Give each application a [project.NAME]" in told.stderr
    report = json.loads(CliRunner().invoke(app, ["check", "--json"]).stdout)
    assert report["sound"] is False
    assert {"about", "error", "message", "path", "line", "remedy"} == set(report["findings"][0])
    assert all(finding["remedy"] for finding in report["findings"])
    assert len(report["policy"]) == 64
    assert list(tmp_path.iterdir()) == []


def test_check_beside_a_running_pipeline_does_not_complain_of_its_own(
    tmp_path: Path, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(tmp_path, {}, stack)
    taken_port(place)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TELEMETRY_BIND", place.more["bind"])
    assert CliRunner().invoke(app, ["check"]).exit_code == 2

    def answered(*_: object) -> dict[str, str]:
        return {}

    monkeypatch.setattr(operate, "ask", answered)
    told = CliRunner().invoke(app, ["check"])
    assert told.exit_code == 0
    assert "It runs already" in told.stdout

    def absent(*_: object) -> dict[str, str]:
        raise NotRunningError

    monkeypatch.setattr(operate, "ask", absent)
    assert CliRunner().invoke(app, ["check"]).exit_code == 2
