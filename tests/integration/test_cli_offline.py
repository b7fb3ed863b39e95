"""What an operator does where no pipeline runs: with the keys that are set, and witnessed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from telemetry.cli import app, keys, letters, policies, vault  # noqa: F401 - they register
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
