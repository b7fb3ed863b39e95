"""What an operator does where no pipeline runs: with the keys that are set, and witnessed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from telemetry.cli import account, app, keys, letters, main, policies, vault  # noqa: F401 - they register
from telemetry.config import load_settings
from telemetry.identity import load_dead_letter_sealer


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

    monkeypatch.setattr("telemetry.cli.keys.load_settings", trap)
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
