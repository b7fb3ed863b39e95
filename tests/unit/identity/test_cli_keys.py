"""``telemetry keys``: what an operator types, reads and gets as exit code."""

from __future__ import annotations

import json
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from telemetry.cli import EXIT_CONFIG, EXIT_NO, app, complain, keys, operate
from telemetry.errors import TelemetryError

Run = Callable[..., Result]

assert keys.__doc__
assert operate.__doc__


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    for name in ("TELEMETRY_CONFIG", "TELEMETRY_STATE", "TELEMETRY_CUSTODY_KEK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("telemetry.cli._on_terminal", lambda: True)

    def run(*words: str, env: Mapping[str, str] | None = None, text: str = "") -> Result:
        environ = {"TELEMETRY_ENVIRONMENT": "production", **(env or {})}
        result = CliRunner().invoke(app, words, env=environ, input=text)
        if isinstance(result.exception, TelemetryError):
            result.exit_code = complain(result.exception)
        return result

    return run


def answer(result: Result, code: int = 0) -> Any:
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def listed(run: Run, *words: str) -> dict[str, Any]:
    return {key["kid"]: key for key in answer(run("keys", "list", "--json", *words))}


def test_a_first_start_by_hand_says_what_to_keep_and_shows_no_key(run: Run, tmp_path: Path) -> None:
    result = run("keys", "init")
    assert result.exit_code == 0
    assert "Back up .telemetry/custody/kek once" in result.stdout.replace("\n", " ")
    kek = (tmp_path / ".telemetry" / "custody" / "kek").read_text("utf-8").strip()
    shown = "".join(run("keys", *words).output for words in (("list",), ("verify",), ("copies",)))
    assert kek not in result.output + shown
    assert answer(run("keys", "init", "--json"))["made_kek"] is False
    assert len(listed(run)) == 7


def test_a_key_lives_through_the_command_line(run: Run) -> None:
    run("keys", "init")
    made = answer(run("keys", "create", "seal", "--json"))
    assert made["state"] == "PRE_ACTIVE"
    former = next(
        k for k, key in listed(run).items() if (key["use"], key["state"]) == ("seal", "PRIMARY")
    )
    promoted = answer(run("keys", "promote", made["kid"], "--json"))
    assert promoted["state"] == "PRIMARY"
    assert listed(run)[former]["state"] == "ENABLED"
    assert listed(run)[former]["destroy_after"] is not None
    assert answer(run("keys", "disable", former, "--json"))["state"] == "DISABLED"
    assert answer(run("keys", "enable", former, "--json"))["state"] == "ENABLED"
    receipt = answer(run("keys", "destroy", former, "--yes", "--json"))
    assert receipt["kid"] == former
    assert receipt["signature"]
    assert former not in listed(run)
    assert listed(run, "--all")[former]["receipt"] == receipt
    assert answer(run("keys", "verify", "--json"))["complaints"] == []


def test_destroying_asks_first_and_no_is_an_answer(run: Run) -> None:
    run("keys", "init")
    kid = answer(run("keys", "create", "wrap", "--json"))["kid"]
    for text in ("n\n", "\n", ""):
        assert run("keys", "destroy", kid, text=text).exit_code == EXIT_NO
    assert kid in listed(run)
    assert run("keys", "destroy", kid, text="y\n").exit_code == 0
    assert kid not in listed(run)


@pytest.mark.parametrize(
    "words",
    [
        ("create", "locator"),
        ("create", "vault"),
        ("create", "token"),
        ("create", "token", "--domain", "heap", "--epoch", "rel"),
        ("promote", "00000000"),
        ("destroy", "00000000", "--yes"),
        ("rotate", "seal", "--to", "file:/x"),
        ("rotate", "kek"),
        ("rotate", "kek", "--to", "nowhere"),
    ],
)
def test_what_cannot_be_done_is_refused_and_changes_nothing(
    run: Run, tmp_path: Path, words: tuple[str, ...]
) -> None:
    run("keys", "init")
    keyset = tmp_path / ".telemetry" / "keys" / "keyset.json"
    before = keyset.read_bytes()
    assert run("keys", *words).exit_code == EXIT_CONFIG
    assert keyset.read_bytes() == before


def test_what_is_due_is_done_once(run: Run) -> None:
    run("keys", "init")
    assert [turn["what"] for turn in answer(run("keys", "rotate", "--json"))] == ["created"]
    assert answer(run("keys", "rotate", "--json")) == []
    assert answer(run("keys", "rotate", "wrap", "--json"))["version"] == 2
    given = ("--domain", "analytics@heap", "--epoch", "rel")
    assert run("keys", "rotate", "token", *given, text="n\n").exit_code == EXIT_NO
    assert answer(run("keys", "rotate", "token", *given, "--yes", "--json"))["state"] == "PRIMARY"


def test_another_custody_takes_over_and_the_former_one_is_not_needed(
    run: Run, tmp_path: Path
) -> None:
    run("keys", "init")
    to = f"file:{tmp_path / 'elsewhere'}"
    default = f"file:{Path('.telemetry/custody/kek')}"
    assert run("keys", "rotate", "kek", "--to", default).exit_code == EXIT_CONFIG
    result = run("keys", "rotate", "kek", "--to", to)
    assert result.exit_code == 0
    assert f"custody.kek = {json.dumps(to)}" in result.stdout
    assert run("keys", "list").exit_code == EXIT_CONFIG
    (tmp_path / ".telemetry" / "custody" / "kek").unlink()
    assert run("keys", "verify", env={"TELEMETRY_CUSTODY_KEK": to}).exit_code == 0


def test_verify_complains_of_a_stale_copy_and_of_a_copy_that_waits(
    run: Run, tmp_path: Path
) -> None:
    run("keys", "init")
    run("keys", "copies", "--add", "USB stick 3")
    kid = answer(run("keys", "create", "wrap", "--json"))["kid"]
    run("keys", "copies", "--add", "USB stick 4")
    assert "USB stick 4" in run("keys", "destroy", kid, "--yes").stdout
    assert any("USB stick 4" in c for c in answer(run("keys", "verify", "--json"), 1)["complaints"])
    run("keys", "copies", "--remove", "USB stick 4")
    assert answer(run("keys", "verify", "--json"))["complaints"] == []
    (tmp_path / ".telemetry" / "backup" / "keyset.json").write_bytes(b"{}")
    assert answer(run("keys", "verify", "--json"), EXIT_NO)["complaints"]
    run("keys", "rotate")
    assert answer(run("keys", "verify", "--json"))["complaints"] == []
    (tmp_path / ".telemetry" / "keys" / "public.json").write_bytes(b"{}")
    assert answer(run("keys", "verify", "--json"), EXIT_NO)["complaints"]


def test_the_public_file_is_printed_as_it_is(run: Run, tmp_path: Path) -> None:
    run("keys", "init")
    printed = run("keys", "export-public").stdout
    assert printed == (tmp_path / ".telemetry" / "keys" / "public.json").read_text("utf-8")
    assert '"d"' not in printed
    assert "wrapped" not in printed


COMPLETE = """
[project.1]
key = "5e175e175e175e175e175e175e175e17"
tenant = "web"
[recipient.heap]
url = "https://heapanalytics.com"
app_id = "11"
[recipient.sentry]
dsn = "https://5e175e175e175e175e175e175e175e17@o1.ingest.de.sentry.io/1"
"""


def test_check_says_what_to_keep_before_and_after_the_first_start(run: Run, tmp_path: Path) -> None:
    (tmp_path / "telemetry.toml").write_text(COMPLETE, "utf-8")
    before = answer(run("check", "--json"))["keys"]
    assert (before["state"], before["wrapped"]) == ("made at the first start", True)
    run("keys", "init")
    after = run("check")
    assert after.exit_code == 0
    assert "Back up .telemetry/custody/kek once" in after.stdout.replace("\n", " ")


@pytest.mark.parametrize("kek", ["env:ABSENT", "file:/nonexistent/kek", "command:false", "vault:x"])
def test_check_refuses_a_custody_that_would_stop_the_start(run: Run, kek: str) -> None:
    assert run("check", env={"TELEMETRY_CUSTODY_KEK": kek}).exit_code == EXIT_CONFIG


def test_a_key_in_the_environment_is_custody_enough(run: Run) -> None:
    kek = urlsafe_b64encode(secrets.token_bytes(32)).decode()
    env = {"TELEMETRY_CUSTODY_KEK": "env:THE_KEK", "THE_KEK": kek}
    assert run("keys", "init", env=env).exit_code == 0
    assert answer(run("keys", "verify", "--json", env=env))["wrapped"] is True
    assert run("keys", "list").exit_code == EXIT_CONFIG


def test_in_development_keys_lie_in_the_clear_and_it_says_so(run: Run) -> None:
    env = {"TELEMETRY_ENVIRONMENT": "development"}
    assert "for development only" in run("keys", "init", env=env).stdout
    assert "in the clear" in run("keys", "verify", env=env).stdout
    assert run("keys", "list").exit_code == EXIT_CONFIG


def test_every_command_has_an_example_in_its_help(run: Run) -> None:
    names = [command.name or "" for command in keys.keys_app.registered_commands]
    assert {"init", "create", "promote", "disable", "destroy", "rotate", "verify"} <= {
        *names,
        *(c.callback.__name__ for c in keys.keys_app.registered_commands if c.callback),
    }
    for command in ("init", "list", "create", "destroy", "rotate", "verify", "export-public"):
        assert f"telemetry keys {command}" in run("keys", command, "--help").stdout
