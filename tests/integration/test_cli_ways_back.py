"""``telemetry audit`` and ``telemetry account`` as operator, officer and support meet them."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from running import Running, command, until
from typer.testing import CliRunner

from telemetry.errors import TelemetryError
from telemetry.identity import Custody, initialise
from telemetry.identity.audit import AUDIT_FILE, AuditLog, actor_of
from telemetry.policy import schemas_dir
from telemetry.testing import HeapStandIn, SentryStandIn

ACCOUNT = "471100471100"
STRANGER = "815008150081"
SEARCH = "https://acme.sentry.example/issues/?query=user.id%3A{token}"

POLICY = """
[reason.abuse]
text = { de = "Missbrauch", en = "abuse" }
ways = ["join", "reidentify"]
source = "rule 7"

[person.erika]
user = "erika"
may = ["join", "request"]

[person.max]
user = "max"
may = ["approve"]
"""


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a pipeline ran, met an account, was paused and resumed, and stopped."""
    folder = tmp_path_factory.mktemp("installation")
    (folder / "officer").mkdir()
    shutil.copytree(schemas_dir() / "policy", folder / "policy")
    rules = folder / "policy" / "ways_back.toml"
    text = rules.read_text("utf-8").replace("enabled = false", "enabled = true")
    rules.write_text(text + POLICY, "utf-8")
    (folder / "telemetry.toml").write_text(f'[recipient.sentry]\nsearch = "{SEARCH}"\n', "utf-8")
    with HeapStandIn() as heap, SentryStandIn() as sentry:
        running = Running(
            folder,
            heap,
            sentry,
            TELEMETRY_POLICY=str(folder / "policy"),
            TELEMETRY_AUDIT_CHECKPOINTS=str(folder / "officer"),
        ).start()
        try:
            track = {"app_id": "1", "identity": ACCOUNT, "event": "task created"}
            assert running.post("/api/track", json.dumps(track).encode()) is not None
            event = {"event_id": "ab" * 16, "message": "it failed", "user": {"id": ACCOUNT}}
            assert running.envelope(event | {"timestamp": datetime.now(UTC).isoformat()})
            until(lambda: len(heap.events) == len(sentry.events) == 1, 20, "both are delivered")
            assert at(folder, "pause", "heap").returncode == 0
            assert at(folder, "pause", STRANGER).returncode == 2
            assert at(folder, "resume", "heap").returncode == 0
        finally:
            running.stop()
    return folder


class Ran(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def at(folder: Path, *arguments: str, stdin: str = "", **more: str) -> Ran:
    """Run a command in the installation's folder, in this process: a new one takes a second."""
    from telemetry.cli import (  # noqa: F401 - they register
        account,
        app,
        audit,
        complain,
        keys,
        operate,
    )

    named = {
        "TELEMETRY_STATE": str(folder / "state"),
        "TELEMETRY_POLICY": str(folder / "policy"),
        "TELEMETRY_AUDIT_CHECKPOINTS": str(folder / "officer"),
        "NO_COLOR": "1",
        "COLUMNS": "200",
    }
    with contextlib.chdir(folder):
        ran = CliRunner().invoke(app, arguments, input=stdin, env=named | more)
    if not isinstance(ran.exception, TelemetryError):
        assert isinstance(ran.exception, SystemExit | None), ran.exception
        return Ran(ran.exit_code, ran.stdout, ran.stderr)
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        code = complain(ran.exception)
    return Ran(code, ran.stdout, ran.stderr + errors.getvalue())


def entries(folder: Path, *more: str) -> list[dict[str, Any]]:
    shown = at(folder, "audit", "log", "--json", *more)
    assert shown.returncode == 0, shown.stderr
    return [json.loads(line) for line in shown.stdout.splitlines()]


def tokens(folder: Path, account: str = ACCOUNT) -> dict[str, str]:
    told = json.loads(at(folder, "account", "token", "--json", stdin=account).stdout)
    return {one["recipient"]: one["token"] for one in told["ids"][0]["tokens"]}


# --- The audit log --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["audit", "log"],
        ["audit", "checkpoint"],
        ["audit", "verify"],
        ["audit", "prove"],
        ["audit", "erase"],
        ["account", "token"],
        ["account", "erase"],
        ["account", "join"],
        ["account", "reidentify", "request"],
        ["account", "reidentify", "approve"],
        ["account", "reidentify", "run"],
        ["account", "reidentify", "list"],
    ],
)
def test_help_shows_what_a_command_does_and_an_example(tmp_path: Path, words: list[str]) -> None:
    shown = at(tmp_path, *words, "--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "Example" in shown.stdout
    assert f"telemetry {' '.join(words)}" in " ".join(shown.stdout.split())


def test_a_run_leaves_what_happened_and_who_ordered_it(installation: Path) -> None:
    told = [
        (e["actor"], e["action"], e["result"], e.get("body", {})) for e in entries(installation)
    ]
    me = actor_of()
    assert [one[:3] for one in told[:2]] == [
        ("role:run", "run.start", "done"),
        ("role:run", "policy.load", "done"),
    ]
    assert (me, "recipient.pause", "done", {"recipient": "heap"}) in told
    assert (me, "recipient.pause", "refused:unknown", {}) in told
    assert (me, "recipient.resume", "done", {"recipient": "heap"}) in told
    totals = [body for _, action, _, body in told if action == "egress.total"]
    assert [t["delivered"] for t in totals if t["recipient"] == "heap"] == [1]
    assert ("role:run", "run.stop", "done", {"role": "run"}) in told
    raw = (installation / "state" / AUDIT_FILE).read_bytes()
    assert STRANGER.encode() not in raw
    assert ACCOUNT.encode() not in raw
    assert stat.S_IMODE((installation / "state" / AUDIT_FILE).stat().st_mode) == 0o600


def test_what_is_done_to_keys_is_witnessed_and_what_is_refused_too(installation: Path) -> None:
    made = json.loads(at(installation, "keys", "create", "wrap", "--json").stdout)
    assert at(installation, "keys", "promote", "00000000").returncode == 2
    primary = next(
        k["kid"]
        for k in json.loads(at(installation, "keys", "list", "--json").stdout)
        if (k["use"], k["state"]) == ("locator", "PRIMARY")
    )
    assert at(installation, "keys", "destroy", primary, "--yes").returncode == 2
    assert at(installation, "keys", "destroy", made["kid"], "--yes").returncode == 0
    told = [
        (e["action"], e["result"], e["body"].get("kid", ""))
        for e in entries(installation, "--action", "key.", "--actor", actor_of())
    ]
    assert told == [
        ("key.create", "done", made["kid"]),
        ("key.destroy", "refused:keyset", ""),
        ("key.destroy", "done", made["kid"]),
    ]


def test_an_officer_verifies_an_export_offline_and_sees_what_was_done_to_it(
    installation: Path, tmp_path: Path
) -> None:
    key = json.loads(at(installation, "audit", "checkpoint", "--json").stdout)["key"]
    export = tmp_path / "audit.jsonl"
    at(installation, "audit", "log", "--export", str(export))
    assert stat.S_IMODE(export.stat().st_mode) == 0o600
    (public,) = (installation / "officer").glob("*.pub")
    assert public.read_text("utf-8").strip() == key

    def verified(file: Path) -> tuple[int, dict[str, Any]]:
        # A folder with nothing in it: no state, no keyset, no policy.
        shown = command(
            "audit", "verify", str(file), "--key", str(public),
            "--checkpoint", str(installation / "officer"), "--json", cwd=tmp_path,
        )  # fmt: skip
        assert "Traceback" not in shown.stderr
        return shown.returncode, json.loads(shown.stdout)

    code, told = verified(export)
    assert (code, told["sound"]) == (0, True)
    assert told["covered"] == told["entries"] > 6
    lines = export.read_text("utf-8").splitlines()
    first = next(n for n, line in enumerate(lines) if '"seq": 0' in line)
    edited = [*lines]
    edited[first] = edited[first].replace("role:run", "role:nun")
    swapped = [*lines]
    swapped[first], swapped[first + 1] = swapped[first + 1], swapped[first]
    cases = {
        "edit": edited,
        "drop": lines[:first] + lines[first + 1 :],
        "reorder": swapped,
    }
    for kind, changed in cases.items():
        file = tmp_path / f"{kind}.jsonl"
        file.write_text("\n".join(changed) + "\n", "utf-8")
        code, told = verified(file)
        assert code == 1
        assert kind in {finding["kind"] for finding in told["findings"]}


def test_a_forked_log_is_refused_by_the_officers_checkpoints(
    installation: Path, tmp_path: Path
) -> None:
    """The state folder is set back to an empty log and goes on, with the true key."""
    fork = tmp_path / "fork"
    shutil.copytree(installation, fork)
    (fork / "state" / AUDIT_FILE).unlink()
    log = AuditLog(fork / "state" / AUDIT_FILE)
    for _ in range(40):
        log.record("role:run", "run.start", {}, "done")
    log.close()
    refused = at(fork, "audit", "checkpoint", TELEMETRY_AUDIT_CHECKPOINTS=str(fork / "officer"))
    assert refused.returncode == 1
    assert "does not continue" in refused.stderr
    quiet = {"TELEMETRY_AUDIT_CHECKPOINTS": ""}
    assert at(fork, "audit", "checkpoint", **quiet).returncode == 0
    at(fork, "audit", "log", "--export", str(tmp_path / "fork.jsonl"))
    (public,) = (installation / "officer").glob("*.pub")
    shown = command(
        "audit", "verify", str(tmp_path / "fork.jsonl"), "--key", str(public),
        "--checkpoint", str(installation / "officer"), "--json", cwd=tmp_path,
    )  # fmt: skip
    assert shown.returncode == 1
    assert "fork" in {finding["kind"] for finding in json.loads(shown.stdout)["findings"]}


def test_a_proof_convinces_offline_and_shows_nothing_else(
    installation: Path, tmp_path: Path
) -> None:
    key = json.loads(at(installation, "audit", "checkpoint", "--json").stdout)["key"]
    (tmp_path / "proof.json").write_text(at(installation, "audit", "prove", "2").stdout, "utf-8")
    shown = command("audit", "verify", str(tmp_path / "proof.json"), "--key", key, cwd=tmp_path)
    assert (shown.returncode, shown.stdout.strip()) == (0, "The proof holds.")
    other = (tmp_path / "proof.json").read_text("utf-8").replace('"seq": 2', '"seq": 3')
    (tmp_path / "other.json").write_text(other, "utf-8")
    shown = command("audit", "verify", str(tmp_path / "other.json"), "--key", key, cwd=tmp_path)
    assert (shown.returncode, shown.stdout.strip()) == (1, "The proof does not hold.")
    first = min((installation / "officer").glob("checkpoint-*.txt"))
    grown = at(installation, "audit", "prove", "--since", str(first))
    (tmp_path / "grown.json").write_text(grown.stdout, "utf-8")
    shown = command("audit", "verify", str(tmp_path / "grown.json"), "--key", key, cwd=tmp_path)
    assert shown.returncode == 0


def test_a_content_is_erased_and_the_export_stays_sound(installation: Path, tmp_path: Path) -> None:
    at(installation, "account", "token", "--ticket", "erika musterfrau", stdin=STRANGER)
    seq = str(entries(installation)[-1]["seq"])
    erased = at(installation, "audit", "erase", seq, "--reason", "a name in the ticket")
    assert (erased.returncode, json.loads(erased.stdout)) == (0, {"erased": int(seq)})
    export = tmp_path / "audit.jsonl"
    at(installation, "audit", "log", "--export", str(export))
    assert "musterfrau" not in export.read_text("utf-8")
    assert b"musterfrau" not in (installation / "state" / AUDIT_FILE).read_bytes()
    (public,) = (installation / "officer").glob("*.pub")
    shown = at(
        installation, "audit", "verify", str(export), "--key", str(public),
        "--checkpoint", str(installation / "officer"), "--json",
    )  # fmt: skip
    assert (shown.returncode, json.loads(shown.stdout)["erased"]) == (0, 1)
    assert at(installation, "audit", "erase", "9999", "--reason", "x").returncode == 1


@pytest.mark.parametrize(
    "words",
    [
        ["audit", "log"],
        ["audit", "verify", "absent.jsonl", "--key", "absent"],
        ["account", "token"],
    ],
)
def test_where_nothing_is_there_one_is_told_so(tmp_path: Path, words: list[str]) -> None:
    shown = at(tmp_path, *words, TELEMETRY_POLICY=str(schemas_dir() / "policy"))
    assert shown.returncode in {1, 2}
    assert shown.stdout == ""
    assert "Traceback" not in shown.stderr


# --- The ways back --------------------------------------------------------------------------------


def test_support_finds_an_account_at_the_recipients(installation: Path) -> None:
    shown = at(
        installation, "account", "token", "--ticket", "SUP-1", stdin=f"{ACCOUNT}\n{STRANGER}"
    )
    assert shown.returncode == 0, shown.stderr
    found = tokens(installation)
    assert set(found) >= {"heap"}
    assert found["heap"] in shown.stdout
    assert "nothing was ever sent of it" in shown.stdout
    for planted in (ACCOUNT, STRANGER):
        assert planted not in shown.stdout + shown.stderr


def test_tokens_come_with_ready_links_where_the_settings_say_where(installation: Path) -> None:
    told = json.loads(at(installation, "account", "token", "--json", stdin=ACCOUNT).stdout)
    for one in told["ids"][0]["tokens"]:
        expected = SEARCH.replace("{token}", one["token"]) if one["recipient"] == "sentry" else ""
        assert one["link"] == expected
    assert {"heap", "sentry"} == {one["recipient"] for one in told["ids"][0]["tokens"]}


def test_ids_come_from_a_file_and_organizations_have_tokens_too(
    installation: Path, tmp_path: Path
) -> None:
    (tmp_path / "ids.txt").write_text(f"\n{ACCOUNT}\nnot an id\n", "utf-8")
    shown = at(installation, "account", "token", "--ids", str(tmp_path / "ids.txt"), "--json")
    assert [row["state"] for row in json.loads(shown.stdout)["ids"]] == ["known", "unfit"]
    shown = at(installation, "account", "token", "--kind", "organization", "--json", stdin="17")
    assert shown.returncode == 1
    assert json.loads(shown.stdout)["ids"][0]["state"] == "unknown"


def test_ids_on_the_command_line_are_refused_outside_development(tmp_path: Path) -> None:
    state = tmp_path / "state"
    initialise(state, environment="staging", custody=Custody("", state=state))
    AuditLog(state / AUDIT_FILE).close()
    shutil.copytree(schemas_dir() / "policy", tmp_path / "policy")
    (tmp_path / "officer").mkdir()
    refused = at(tmp_path, "account", "token", ACCOUNT, TELEMETRY_ENVIRONMENT="staging")
    assert refused.returncode == 1
    assert "Refused" in refused.stderr
    assert ACCOUNT not in refused.stdout + refused.stderr
    (last,) = entries(tmp_path, "--action", "account.")
    assert (last["action"], last["result"]) == ("account.token", "refused:argv")
    given = at(tmp_path, "account", "token", stdin=ACCOUNT, TELEMETRY_ENVIRONMENT="staging")
    assert "nothing was ever sent of it" in given.stdout


def test_nobody_plays_another_person_outside_development(tmp_path: Path) -> None:
    state = tmp_path / "state"
    initialise(state, environment="staging", custody=Custody("", state=state))
    AuditLog(state / AUDIT_FILE).close()
    shutil.copytree(schemas_dir() / "policy", tmp_path / "policy")
    (tmp_path / "policy" / "ways_back.toml").write_text(
        (schemas_dir() / "policy" / "ways_back.toml").read_text("utf-8") + POLICY, "utf-8"
    )
    (tmp_path / "officer").mkdir()
    more = {"TELEMETRY_ENVIRONMENT": "staging", "TELEMETRY_PERSON": "erika"}
    at(tmp_path, "account", "token", stdin=ACCOUNT, **more)
    assert {entry["actor"] for entry in entries(tmp_path)} == {actor_of()}


def test_a_setting_lets_nobody_play_another_person_on_keys_that_are_wrapped(tmp_path: Path) -> None:
    state = tmp_path / "state"
    initialise(state, environment="production", custody=Custody("", state=state))
    AuditLog(state / AUDIT_FILE).close()
    shutil.copytree(schemas_dir() / "policy", tmp_path / "policy")
    (tmp_path / "policy" / "ways_back.toml").write_text(
        (schemas_dir() / "policy" / "ways_back.toml").read_text("utf-8") + POLICY, "utf-8"
    )
    (tmp_path / "officer").mkdir()
    kek = f"file:{state / 'custody' / 'kek'}"
    more = {"TELEMETRY_ENVIRONMENT": "development", "TELEMETRY_CUSTODY_KEK": kek}
    answered = at(tmp_path, "account", "token", stdin=ACCOUNT, **more, TELEMETRY_PERSON="erika")
    assert "nothing was ever sent of it" in answered.stdout, answered.stderr
    refused = at(tmp_path, "account", "token", ACCOUNT, **more)
    assert refused.returncode == 1
    assert "Refused" in refused.stderr
    made = [entry for entry in entries(tmp_path) if entry["action"] == "account.token"]
    assert {entry["actor"] for entry in made} == {actor_of()}
    assert made[-1]["result"] == "refused:argv"


def test_as_shipped_no_token_leads_to_an_account(installation: Path) -> None:
    token = tokens(installation)["heap"]
    shipped = {"TELEMETRY_POLICY": str(schemas_dir() / "policy")}
    refused = at(
        installation, "account", "reidentify", "request", "--reason", "abuse", "--ticket", "S-1",
        stdin=token, **shipped,
    )  # fmt: skip
    assert refused.returncode == 1
    assert "no way from a token to an account" in " ".join(refused.stderr.split())
    assert entries(installation)[-1]["result"] == "refused:off"


def test_two_persons_find_the_account_and_it_is_shown_once(
    installation: Path, tmp_path: Path
) -> None:
    token = tokens(installation)["heap"]
    erika, maximilian = {"TELEMETRY_PERSON": "erika"}, {"TELEMETRY_PERSON": "max"}
    way = ("account", "reidentify")
    made = at(
        installation, *way, "request", "--reason", "abuse", "--ticket", "SEC-7", "--json",
        stdin=token, **erika,
    )  # fmt: skip
    request = json.loads(made.stdout)["id"]
    assert token not in made.stdout
    (open_one,) = json.loads(at(installation, *way, "list", "--json", **maximilian).stdout)
    assert (open_one["id"], open_one["reason"], open_one["ticket"]) == (request, "abuse", "SEC-7")
    csv = tmp_path / "accounts.csv"
    csv.write_text(f'name,id\n"Example, Ltd",1\nsomebody,{ACCOUNT}\n', "utf-8")
    run = (*way, "run", request, "--candidates", str(csv), "--column", "id")
    assert at(installation, *run, **erika).returncode == 1
    assert at(installation, *way, "approve", request, **maximilian).returncode == 0
    failing = (*way, "run", request, "--command", "cat absent.csv")
    failed = at(installation, *failing, **erika)
    assert failed.returncode == 2
    assert ACCOUNT not in failed.stdout
    found = at(installation, *run, **erika)
    assert (found.returncode, found.stdout) == (0, f"{ACCOUNT}\n")
    again = at(installation, *run, **erika)
    assert (again.returncode, again.stdout) == (1, "")
    for path in (installation / "state").rglob("*"):
        if path.is_file() and path.name in {AUDIT_FILE, "ways_back.sqlite3"}:
            assert token.encode() not in path.read_bytes()
            assert ACCOUNT.encode() not in path.read_bytes()


def test_candidates_may_come_from_a_command(installation: Path, tmp_path: Path) -> None:
    token = tokens(installation)["heap"]
    way = ("account", "reidentify")
    made = at(
        installation, *way, "request", token, "--reason", "abuse", "--ticket", "SEC-8", "--json",
        TELEMETRY_PERSON="erika",
    )  # fmt: skip
    request = json.loads(made.stdout)["id"]
    at(installation, *way, "approve", request, TELEMETRY_PERSON="max")
    (tmp_path / "list").write_text(f"1\n{ACCOUNT}\n", "utf-8")
    found = at(
        installation, *way, "run", request, "--command", f"cat {tmp_path / 'list'}", "--json",
        TELEMETRY_PERSON="erika",
    )  # fmt: skip
    assert json.loads(found.stdout) == {"request": request, "found": True, "id": ACCOUNT}


def test_a_join_answers_for_a_named_account_only(installation: Path) -> None:
    found = tokens(installation)
    why = ("--reason", "abuse", "--ticket", "SEC-9", "--json")
    pair = (found["heap"], found["sentry"])
    same = at(installation, "account", "join", *pair, *why, stdin=ACCOUNT, TELEMETRY_PERSON="erika")
    assert (same.returncode, json.loads(same.stdout)) == (0, {"same": True})
    other = at(installation, "account", "join", *pair, *why, stdin="1", TELEMETRY_PERSON="erika")
    assert (other.returncode, json.loads(other.stdout)) == (1, {"same": False})
    refused = at(installation, "account", "join", *pair, *why, stdin=ACCOUNT)
    assert refused.returncode == 1
    assert entries(installation)[-1]["result"] == "refused:person"
