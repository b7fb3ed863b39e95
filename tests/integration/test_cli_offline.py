"""What an operator does where no pipeline runs: with the keys that are set, and witnessed."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from telemetry.brokers import DEAD, Entry
from telemetry.cli import account, app, keys, letters, main, policies, vault  # noqa: F401 - they register
from telemetry.config import load_settings
from telemetry.dead_letter import noted
from telemetry.errors import AuditError
from telemetry.identity import load_dead_letter_sealer
from telemetry.identity.audit import AUDIT_FILE, AuditLog, actor_of
from telemetry.policy import PolicyRegister
from telemetry.run import open_broker
from telemetry.testing.brokers import make_parcel


def told(state: Path, *arguments: str) -> Any:
    done = CliRunner().invoke(app, [*arguments, "--state", str(state), "--json"])
    assert done.exit_code == 0, (done.output, done.exception)
    return json.loads(done.stdout.splitlines()[-1])


def test_a_dead_letter_opens_with_the_key_that_custody_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, kek = tmp_path / "state", tmp_path / "safe" / "kek"
    kek.parent.mkdir(mode=0o700)
    monkeypatch.setenv("TELEMETRY_CUSTODY_KEK", f"file:{kek}")
    told(state, "keys", "init")
    assert kek.exists()
    (lying,) = state.rglob("dead-letter/keyset.json")
    brought = tmp_path / "brought.json"
    lying.rename(brought)
    assert load_settings(None, overrides={"state": str(state)}).wraps_keys
    sealer = load_dead_letter_sealer(state / "keys" / "public.json")
    sealed = sealer.seal(b"{}", event_id="0" * 32)
    opener = letters._Desk(None, state).opener(brought)
    assert opener.open(sealed, event_id="0" * 32) == b"{}"


def test_an_error_of_ours_shows_no_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def trap(*_: object, **__: object) -> None:
        raise ValueError("planted-mareike")

    monkeypatch.setattr("telemetry.cli.keys.settings_of", trap)
    monkeypatch.setattr(sys, "argv", ["telemetry", "keys", "list", "--state", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 70
    shown = "".join(capfd.readouterr())
    assert "ValueError at cli/keys.py:" in shown
    assert "planted" not in shown
    assert "Traceback" not in shown


def test_a_command_of_the_operators_gets_nothing_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEK", "planted-key")
    monkeypatch.setenv("TELEMETRY_SENTRY_DSN", "planted-dsn")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/planted-folder")
    monkeypatch.setenv("PGHOST", "db.example")
    settings = load_settings(
        None, environ={"TELEMETRY_STATE": str(tmp_path), "TELEMETRY_CUSTODY_KEK": "env:MY_KEK"}
    )
    with account._command(
        f"{sys.executable} -c 'import os; print(dict(os.environ))'", settings
    ) as lines:
        shown = "".join(lines)
    assert "planted" not in shown
    assert "db.example" in shown


def test_what_is_done_without_a_pipeline_is_witnessed_too(tmp_path: Path) -> None:
    state = tmp_path / "state"
    settings = load_settings(None, overrides={"state": str(state)})
    told(state, "keys", "init")
    told(state, "keys", "copies", "--add", "safe of mareike")
    told(state, "keys", "copies", "--remove", "safe of mareike")
    told(state, "vault", "rewrap", "--now", "--destroy", "--yes")
    told(state, "vault", "backup", str(tmp_path / "copy.sqlite3"))
    sealer = load_dead_letter_sealer(state / "keys" / "public.json")
    parcel, at = make_parcel(1), datetime.now(UTC)
    letter = replace(
        parcel,
        body=sealer.seal(b"{}", event_id=parcel.event_id),
        capsule=b"",
        reason="undecodable",
        remarks=noted("edge", at, path="", kind=parcel.kind, original=b"{}"),
        received_at=at,
        retain_until=at + timedelta(days=30),
    )
    broker = open_broker(settings)
    broker.append(DEAD, [letter], {Entry("edge", "items_in"): 1, Entry("edge", "dead", "x"): 1})
    broker.close()
    told(state, "dead", "list")
    (key,) = state.rglob("dead-letter/keyset.json")
    told(state, "dead", "show", letter.event_id, "--key", str(key))
    told(state, "dead", "purge", "--all", "--yes")
    register = PolicyRegister(state / "policies.ndjson")
    register.enter("c0" * 32, "live", datetime.now(UTC))
    told(state, "policy", "revoke", "c0c0c0c0", "--yes")
    log = AuditLog(state / AUDIT_FILE)
    entries = log.entries()
    log.close()
    assert {entry.actor for entry in entries} == {actor_of()}
    assert "mareike" not in repr(entries)
    made = list(takewhile(lambda e: e.action == "key.create", entries))
    assert [e.result for e in made] == ["begun", *["done"] * (len(made) - 1)]
    assert len(made) > 3
    # A rewrapping at once makes a wrap key and destroys the former ones; each is an entry.
    turns = {"key.create", "key.promote", "key.schedule", "key.destroy"}
    later = entries[len(made) :]
    assert {e.action for e in later} & turns
    assert [(e.action, e.result) for e in later if e.action not in turns] == [
        ("key.export", "begun"),
        ("key.export", "done"),
        ("key.export", "begun"),
        ("key.export", "done"),
        ("vault.rewrap", "begun"),
        ("vault.rewrap", "done"),
        ("vault.backup", "begun"),
        ("vault.backup", "done"),
        ("dead.open", "done"),
        ("dead.purge", "begun"),
        ("policy.revoke", "done"),
    ]


@pytest.mark.parametrize(
    "order",
    [
        ("vault", "rewrap"),
        ("vault", "backup", "copy.sqlite3"),
        ("keys", "init"),
        ("keys", "copies", "--add", "safe"),
    ],
)
def test_what_cannot_be_witnessed_is_not_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    state = tmp_path / "state"
    if order != ("keys", "init"):
        told(state, "keys", "init")
    (state / AUDIT_FILE).unlink(missing_ok=True)
    (state / AUDIT_FILE).mkdir(parents=True)
    keys_before = sorted((state / "keys").glob("*.json"))
    done = CliRunner().invoke(app, [*order, "--state", str(state), "--json"])
    assert isinstance(done.exception, AuditError)
    assert not (tmp_path / "copy.sqlite3").exists()
    assert sorted((state / "keys").glob("*.json")) == keys_before
